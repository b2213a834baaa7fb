"""Captures of single pictures, each with a pose and a time of its own, and the rigs among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from arguments_MoDE.config import ModelParams
from scene.camera_paths import closest_point
from scene.cameras import Camera
from scene.datasets.common import Capture, Shot, clip_frames, note
from scene.frames import ImageFrames
from scene.point_cloud import PointCloud, random_cloud, read_ply


@dataclass
class Picture:
    """An image with its camera, at the size it has on disk, and its time in the file's unit."""

    path: Path
    camera: Camera
    time: float


@dataclass
class Rig:
    """Which images share a camera: a fixed rig seen in turns, or one camera that moves.

    Attributes:
        names: of the cameras; just ``moving`` where no two need share a pose.
        rows: pose -> row in ``names``; empty where the camera moves.
    """

    names: list[str]
    rows: dict[bytes, int]

    def row(self, camera: Camera) -> int:
        """The row in ``names`` of an image's camera."""
        return self.rows.get(_pose_key(camera), 0)

    def renamed(self, camera: Camera) -> Camera:
        """Rig cameras share their name; a moving camera keeps the image's."""
        if not self.rows:
            return camera
        return replace(camera, name=self.names[self.row(camera)])


def find_rig(pictures: Sequence[Picture]) -> Rig:
    """A fixed rig if there are at most half as many poses as pictures, else a moving camera."""
    keys = list(dict.fromkeys(_pose_key(p.camera) for p in pictures))
    if 2 * len(keys) > len(pictures):
        return Rig(["moving"], {})
    return Rig([f"cam{row:02d}" for row in range(len(keys))], {k: i for i, k in enumerate(keys)})


def _pose_key(camera: Camera) -> bytes:
    intrinsics = np.array([camera.fx, camera.fy, camera.cx, camera.cy])
    values = np.concatenate([camera.world_to_camera.numpy().ravel(), intrinsics])
    return np.round(values, 4).astype(np.float32).tobytes()


def capture_pictures(
    capture: Capture, train: list[Picture], test: list[Picture], rig: Rig, model: ModelParams
) -> Capture:
    """Fills ``capture`` with the pictures of the clip in use, at times from 0 to 1; returns it.

    Args:
        capture: gets the frame count, the sources and the shots.
        train: pictures to train on; clip settings count their distinct times.
        test: held-out pictures.
        rig: which pictures share a camera.
        model: the clip settings.

    Raises:
        UserError: the clip settings leave nothing.
    """
    train, test, span = _clip(train, test, model, capture.poses_file.parent)
    rank = {time: i for i, time in enumerate(sorted({p.time for p in train + test}))}
    capture.frame_count = len(rank)
    for pictures, shots in ((train, capture.train), (test, capture.test)):
        for picture in pictures:
            camera = picture.camera
            slot = (len(capture.sources), 0)
            capture.sources.append(ImageFrames((picture.path,), (camera.width, camera.height)))
            time = (picture.time - span[0]) / ((span[1] - span[0]) or 1.0)
            row = rig.row(camera)
            shots.append(Shot(rig.renamed(camera), row, rank[picture.time], time, slot))
    return capture


def _clip(
    train: list[Picture], test: list[Picture], model: ModelParams, root: Path
) -> tuple[list[Picture], list[Picture], tuple[float, float]]:
    """The training and test pictures in use, and the file times that become 0 and 1.

    Clip settings count the training times. A cut clip runs from its first training time to its
    last, and test pictures outside are dropped. A whole clip runs over all times of both sets; if
    it begins at 0, that is the published division by the largest time.
    """
    times = sorted({picture.time for picture in train})
    chosen = clip_frames(len(times), model, root)
    if len(chosen) == len(times):
        both = [picture.time for picture in train + test]
        return train, test, (min(both), max(both))
    used = {times[i] for i in chosen}
    low, high = min(used), max(used)
    inside = [picture for picture in test if low <= picture.time <= high]
    if len(inside) < len(test):
        note(f"{len(test) - len(inside)} of {len(test)} test views lie outside the clip: left out")
    return [picture for picture in train if picture.time in used], inside, (low, high)


def first_cloud(root: Path, names: Sequence[str], train: Sequence[Picture]) -> PointCloud:
    """The first of these point clouds that exists, else random points where the cameras look.

    Raises:
        UserError: the cloud is damaged.
    """
    for name in names:
        if (root / name).exists():
            return read_ply(root / name)
    low, high = _camera_box([picture.camera for picture in train])
    note(f"{root}: has no {' or '.join(names[:2])}; starting from 10000 random points")
    return random_cloud(low, high, 10_000)


def _camera_box(cameras: list[Camera]) -> tuple[np.ndarray, np.ndarray]:
    """A box around the point the cameras look at, as wide as the nearest of them sees there."""
    poses = np.stack([np.linalg.inv(c.world_to_camera.double().numpy()) for c in cameras])
    centre = closest_point(poses)
    distance = float(np.linalg.norm(poses[:, :3, 3] - centre, axis=1).min())
    half = max(distance * min(c.tan_half_fov_x for c in cameras), 1e-3)
    return centre - half, centre + half
