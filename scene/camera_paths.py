"""Camera paths for the video set, fitted to the training cameras.

Cameras that all look the same way get the spiral of LLFF (Mildenhall et al. 2019): it stays inside
the rig and looks at one depth. Cameras that look at the scene from around it get an orbit at their
own height and distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from scene.cameras import Camera, camera_from_pose

# Longer mean viewing directions mean cameras that look the same way: within about 50 degrees.
_FORWARD_FACING = 0.65
_SPREAD = 90  # percentile of the cameras' offsets that a path reaches, per axis


def fit_path(
    cameras: Sequence[Camera], frames: int, *, focus_depth: float | None = None, turns: int = 2
) -> list[Camera]:
    """A closed path of ``frames`` cameras that suits how ``cameras`` face the scene.

    Args:
        cameras: of the training views, each pose once.
        frames: how many cameras to return, at least 1.
        focus_depth: distance in front of the average camera that a spiral looks at, world units;
            None: where the optical axes come closest to each other.
        turns: of a spiral over the whole path.

    Returns:
        Cameras named "path" with the first camera's size and the rig's median focal lengths.
    """
    poses = np.stack([np.linalg.inv(c.world_to_camera.double().numpy()) for c in cameras])
    if is_forward_facing(poses):
        path = _spiral(poses, frames, focus_depth or _focus_depth(poses), turns)
    else:
        path = _orbit(poses, frames)
    model = _typical_camera(cameras)
    size, centre = (model.width, model.height), (model.cx, model.cy)
    return [
        replace(
            camera_from_pose("path", size, (model.fx, model.fy, *centre), pose),
            near=model.near,
            far=model.far,
            near_plane=model.near_plane,
        )
        for pose in path
    ]


def is_forward_facing(poses: np.ndarray) -> bool:
    """Whether camera-to-world poses (N, 4, 4) look about the same way, rather than from around."""
    return bool(np.linalg.norm(poses[:, :3, 2].mean(axis=0)) > _FORWARD_FACING)


def closest_point(poses: np.ndarray) -> np.ndarray:
    """(3,): the point with the least squared distance to all optical axes.

    A small pull towards the cameras' mean keeps parallel axes solvable.
    """
    centres, axes = poses[:, :3, 3], poses[:, :3, 2]
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]  # (N, 3, 3): off-axis projectors
    pull = 1e-6 * len(poses) * np.eye(3)
    target = (across @ centres[:, :, None]).sum(axis=0)[:, 0] + pull @ centres.mean(axis=0)
    return np.linalg.solve(across.sum(axis=0) + pull, target)


def _focus_depth(poses: np.ndarray) -> float:
    """Depth of `closest_point` before the average camera; the rig's size times 5 if behind it."""
    centre = poses[:, :3, 3].mean(axis=0)
    depth = float((closest_point(poses) - centre) @ _unit(poses[:, :3, 2].mean(axis=0)))
    spread = float(np.linalg.norm(poses[:, :3, 3] - centre, axis=1).max())
    return depth if depth > 1e-3 * max(spread, 1e-9) else 5 * (spread or 1.0)


def _typical_camera(cameras: Sequence[Camera]) -> Camera:
    """The first camera's size with the median field of view and a centred principal point."""
    first = cameras[0]
    fx = float(np.median([c.fx / c.width for c in cameras])) * first.width
    fy = float(np.median([c.fy / c.height for c in cameras])) * first.height
    return replace(first, fx=fx, fy=fy, cx=first.width / 2, cy=first.height / 2)


def _spiral(poses: np.ndarray, frames: int, focus_depth: float, turns: int) -> np.ndarray:
    """(F, 4, 4): `turns` ellipses across the rig, moving back and forth, looking at a point."""
    average = _average_pose(poses)
    local = (poses[:, :3, 3] - average[:3, 3]) @ average[:3, :3]  # offsets in the average's axes
    radii = np.percentile(np.abs(local), _SPREAD, axis=0)
    focus = average[:3, 3] + focus_depth * average[:3, 2]
    path = []
    for theta in np.linspace(0, 2 * np.pi * turns, frames, endpoint=False):
        offset = radii * [np.cos(theta), np.sin(theta), -np.sin(theta / 2)]
        centre = average[:3, 3] + average[:3, :3] @ offset
        path.append(look_at(centre, focus, up=-average[:3, 1]))
    return np.stack(path)


def _average_pose(poses: np.ndarray) -> np.ndarray:
    """(4, 4): mean centre, mean viewing direction, mean up."""
    centre, forward = poses[:, :3, 3].mean(axis=0), poses[:, :3, 2].mean(axis=0)
    return look_at(centre, centre + forward, up=-poses[:, :3, 1].mean(axis=0))


def _orbit(poses: np.ndarray, frames: int) -> np.ndarray:
    """(F, 4, 4): a full circle around the point the cameras look at, from the first camera on."""
    focus, up = closest_point(poses), _rig_up(poses)
    offsets = poses[:, :3, 3] - focus
    heights = offsets @ up
    flat = offsets - heights[:, None] * up
    radius, height = np.median(np.linalg.norm(flat, axis=1)), np.median(heights)
    start = _unit(flat[np.argmax(np.linalg.norm(flat, axis=1) > 0.5 * radius)])
    side = np.cross(up, start)
    angles = np.linspace(0, 2 * np.pi, frames, endpoint=False)
    around = np.cos(angles)[:, None] * start + np.sin(angles)[:, None] * side
    centres = focus + radius * around + height * up
    return np.stack([look_at(centre, focus, up) for centre in centres])


def _rig_up(poses: np.ndarray) -> np.ndarray:
    """The world's up: what every camera's right-hand axis is most at right angles to.

    Cameras are tilted up and down but rarely rolled, so their right axes span the ground plane; its
    sign comes from the mean of the cameras' own ups.
    """
    mean_up = -poses[:, :3, 1].mean(axis=0)
    right = poses[:, :3, 0]
    values, vectors = np.linalg.eigh(right.T @ right)
    if values[0] > 0.5 * values[1]:  # no clear plane: rolled cameras
        return _unit(mean_up)
    return vectors[:, 0] * (1.0 if vectors[:, 0] @ mean_up >= 0 else -1.0)


def look_at(centre: np.ndarray, target: np.ndarray, up: np.ndarray) -> np.ndarray:
    """(4, 4) camera-to-world pose at ``centre`` that looks at ``target``; OpenCV axes."""
    forward = _unit(target - centre)
    right = np.cross(forward, up)
    if np.linalg.norm(right) < 1e-6 * max(np.linalg.norm(up), 1e-9):  # looking straight up or down
        right = np.cross(forward, np.eye(3)[np.argmin(np.abs(forward))])
    right = _unit(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose[:3, 3] = centre
    return pose


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(np.linalg.norm(vector), 1e-12)
