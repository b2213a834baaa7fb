"""Checks that every format has in common: images that are whole, poses that see the cloud."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from scene.camera_paths import closest_point
from scene.cameras import Camera
from scene.datasets.common import Capture
from scene.frames import ImageFrames
from utils.errors import UserError
from utils.images import check_image


def check_images(capture: Capture) -> None:
    """Looks at the header and the end of every image, which takes a fraction of a decode.

    Raises:
        UserError: an image is missing, cut, or has another size than its camera.
    """
    for source in capture.sources:
        if not isinstance(source, ImageFrames):
            continue
        for path in source.paths:
            size = check_image(path)
            if size != source.native:
                by = f" by {source.sized_by}" if source.sized_by else ""
                raise UserError(
                    f"{path}: is {size[0]} x {size[1]} where {source.native[0]} x "
                    f"{source.native[1]} is expected{by}; extract or export the frames again"
                )


def check_poses(capture: Capture, cameras: list[Camera]) -> None:
    """Refuses poses with which the cameras look past the cloud, and names the usual reason.

    Raises:
        UserError: no camera sees a point, or many see none but would with inverted poses.
    """
    points = _some_points(capture.points.xyz, 2000)
    some = _some_cameras(cameras)
    blind = _blind_share(some, points)
    if are_inverted(some, points):
        raise UserError(
            f"{capture.poses_file}: {blind:.0%} of the cameras look past the initial cloud, and do "
            "not with inverted poses: camera-to-world and world-to-camera are mixed up; invert them"
        )
    if blind == 1 and not any(camera.sees(capture.points.xyz).any() for camera in cameras):
        raise UserError(
            f"{capture.poses_file}: no training camera sees any point of the initial cloud; poses "
            "and cloud are in different frames: make both with the same tool"
        )


def are_inverted(cameras: list[Camera], xyz: np.ndarray | None) -> bool:
    """Whether the matrices are camera-to-world by all appearance, mirrored or not.

    Cameras that look past the points (N, 3) in their world, and would not with inverted poses, are.
    Without points (None), those are whose optical axes meet behind most of them, and inverted meet
    inside every image.
    """
    some = _some_cameras(cameras)
    other = [_inverted(camera) for camera in some]
    if xyz is not None:
        points = _some_points(xyz, 2000)
        blind = _blind_share(some, points) if some else 0.0
        return blind > 0.2 and _blind_share(other, points) < blind / 4
    if len(some) < 3:
        return False
    return _meeting_seen(some) < 0.5 and _meeting_seen(other) == 1


def _meeting_seen(cameras: list[Camera]) -> float:
    """Share of the cameras that see the point that all optical axes come nearest to."""
    poses = np.stack([np.linalg.inv(c.world_to_camera.double().numpy()) for c in cameras])
    point = closest_point(poses)[None]
    return float(np.mean([camera.sees(point)[0] for camera in cameras]))


def _some_cameras(cameras: list[Camera]) -> list[Camera]:
    return cameras[:: max(1, len(cameras) // 50)]


def _some_points(xyz: np.ndarray, count: int) -> np.ndarray:
    """At most ``count`` rows, always the same ones."""
    if len(xyz) <= count:
        return xyz
    return xyz[np.random.default_rng(0).choice(len(xyz), count, replace=False)]


def _blind_share(cameras: list[Camera], points: np.ndarray) -> float:
    """Share of the cameras that see less than one in a hundred points."""
    return float(np.mean([camera.sees(points).mean() < 0.01 for camera in cameras]))


def _inverted(camera: Camera) -> Camera:
    inverse = camera.world_to_camera.double().inverse().float()
    return replace(camera, world_to_camera=inverse)
