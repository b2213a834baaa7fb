"""Captures of single pictures, each with a pose and a time of its own, and the rigs among them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from arguments_MoDE.config import ModelParams
from scene.camera_paths import closest_point
from scene.cameras import Camera
from scene.datasets.common import Capture, Shot, clip_frames, frame_time, note
from scene.frames import ImageFrames
from scene.point_cloud import PointCloud, random_cloud, read_ply


@dataclass
class Picture:
    """An image of its own pose and time.

    Attributes:
        path: the image.
        camera: at the size that the image has on disk.
        time: in the file's unit.
        row: of the camera among those of the capture.
        mask: an image whose white pixels are those that count, if the capture names one.
    """

    path: Path
    camera: Camera
    time: float
    row: int = 0
    mask: Path | None = None


def find_rig(pictures: Sequence[Picture], held_out: Sequence[Picture] = ()) -> list[str]:
    """Finds out which pictures share a camera, and gives each its row.

    Args:
        pictures: that tell a rig from a camera that moves, which may stand still for a while.
        held_out: others, whose poses need not recur.

    Returns:
        The names of the cameras of a fixed rig, in the order in which they appear, if every pose
        recurs. No name for one camera that moves: all rows are 0 then.
    """
    every = [*pictures, *held_out]
    rows: dict[bytes, int] = {}
    for picture in every:
        picture.row = rows.setdefault(_pose_key(picture.camera), len(rows))
    if min(Counter(picture.row for picture in pictures).values()) > 1:
        return [f"cam{row:02d}" for row in range(len(rows))]
    for picture in every:
        picture.row = 0
    return []


def name_cameras(pictures: Sequence[Picture], names: Sequence[str]) -> list[str]:
    """Gives pictures the names of their rig's cameras; returns those.

    Without names the camera moves: it is called ``moving``, and pictures keep their own names.
    """
    for picture in pictures if names else ():
        picture.camera = replace(picture.camera, name=names[picture.row])
    return list(names) or ["moving"]


def _pose_key(camera: Camera) -> bytes:
    intrinsics = np.array([camera.fx, camera.fy, camera.cx, camera.cy])
    values = np.concatenate([camera.world_to_camera.numpy().ravel(), intrinsics])
    return np.round(values, 4).astype(np.float32).tobytes()


def capture_pictures(
    capture: Capture,
    train: list[Picture],
    test: list[Picture],
    model: ModelParams,
    *,
    numbered: bool = False,
) -> Capture:
    """Fills ``capture`` with the pictures of the clip in use, at times within 0 to 1; returns it.

    Args:
        capture: gets the frame count, the sources and the shots.
        train: pictures to train on; clip settings count their distinct times.
        test: held-out pictures.
        model: the clip settings.
        numbered: times are numbers of frames, for which ``time_convention`` says what becomes of
            them; other times are kept, whatever it says.

    Raises:
        UserError: the clip settings leave nothing.
    """
    train, test, span = _clip(train, test, model, capture.poses_file.parent)
    rank = {time: i for i, time in enumerate(sorted({p.time for p in train + test}))}
    capture.frame_count = len(rank)
    convention = model.time_convention if numbered else "full"
    latest = frame_time(len(rank) - 1, len(rank), convention) or 1.0
    for pictures, shots in ((train, capture.train), (test, capture.test)):
        for picture in pictures:
            camera = picture.camera
            slot = (len(capture.sources), 0)
            masks = (picture.mask,) if picture.mask else ()
            size = (camera.width, camera.height)
            capture.sources.append(ImageFrames((picture.path,), size, masks))
            time = latest * (picture.time - span[0]) / ((span[1] - span[0]) or 1.0)
            shots.append(Shot(camera, picture.row, rank[picture.time], time, slot))
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
    """A box around the point the cameras look at, as wide as the nearest of them sees there.

    Cameras that are all in one place say nothing of how far away that is: the unit is ours then.
    """
    poses = np.stack([np.linalg.inv(c.world_to_camera.double().numpy()) for c in cameras])
    centre = closest_point(poses)
    if np.ptp(poses[:, :3, 3], axis=0).max() < 1e-6:
        centre = poses[0, :3, 3] + poses[:, :3, 2].mean(axis=0)
    distance = float(np.linalg.norm(poses[:, :3, 3] - centre, axis=1).min())
    half = max(distance * min(c.tan_half_fov_x for c in cameras), 1e-3)
    return centre - half, centre + half
