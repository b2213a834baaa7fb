"""D-NeRF and NeRF-Blender scenes: ``transforms_{train,val,test}.json``, one image per time.

Poses are camera-to-world with OpenGL axes (y up, looking along -z). Intrinsics come from each frame
(``fl_x``, ``fl_y``, ``cx``, ``cy``, ``w``, ``h``), then from the file's head, then from
``camera_angle_x`` and the image's size. Times are moved and scaled so that the clip in use runs
from 0 to 1.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from arguments_MoDE.config import ModelParams
from scene.camera_paths import closest_point
from scene.cameras import Camera, camera_from_pose
from scene.datasets.common import Capture, Shot, clip_frames, note, numbers, read_json
from scene.frames import ImageFrames
from scene.point_cloud import PointCloud, random_cloud, read_ply
from utils.errors import UserError, brief
from utils.images import SUFFIXES, check_image

MARKER = "transforms_train.json"
_CLOUDS = ("fused.ply", "points3d.ply", "points3D.ply")
_OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])  # flips the camera's own y and z axes


@dataclass
class _Picture:
    """One entry of a transforms file."""

    path: Path
    camera: Camera
    time: float


def load(root: Path, model: ModelParams) -> Capture:
    """Reads the scene; the split is that of the files, ``transforms_val.json`` is not used.

    Raises:
        UserError: a file is missing or damaged, or a setting does not apply to this format.
    """
    if model.test_cameras:
        raise UserError("--test_cameras: in this format transforms_test.json names the test views")
    train = _read_transforms(root / MARKER)
    test_file = root / "transforms_test.json"
    test = _read_transforms(test_file) if test_file.exists() else []
    if not test:
        note(f"{test_file} is missing or empty: no view is held out")
    rig, cloud = _rig([*train, *test]), _cloud(root, train)
    train, test, span = _clip(train, test, model, root)
    rank = {time: i for i, time in enumerate(sorted({p.time for p in train + test}))}
    capture = Capture("blender", rig.names, len(rank), cloud, root / MARKER)
    for pictures, shots in ((train, capture.train), (test, capture.test)):
        for picture in pictures:
            camera = picture.camera
            row = rig.row(camera)
            slot = (len(capture.sources), 0)
            capture.sources.append(ImageFrames((picture.path,), (camera.width, camera.height)))
            time = (picture.time - span[0]) / ((span[1] - span[0]) or 1.0)
            shots.append(Shot(rig.renamed(camera), row, rank[picture.time], time, slot))
    return capture


def _clip(
    train: list[_Picture], test: list[_Picture], model: ModelParams, root: Path
) -> tuple[list[_Picture], list[_Picture], tuple[float, float]]:
    """The training and test pictures in use, and the file times that become 0 and 1.

    Clip settings count the training times. A cut clip runs from its first training time to its
    last, and test pictures outside are dropped. A whole clip runs over all times of both files; if
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


def _read_transforms(path: Path) -> list[_Picture]:
    meta = read_json(path)
    frames = meta.get("frames") if isinstance(meta, dict) else None
    if not isinstance(frames, list) or not all(isinstance(f, dict) for f in frames):
        raise UserError(f"{path}: has no list 'frames'; it is not a transforms file")
    if path.name == MARKER and not frames:
        raise UserError(f"{path}: lists no frame; there is nothing to train on")
    return [_read_picture(path, meta, index, frame) for index, frame in enumerate(frames)]


def _read_picture(path: Path, meta: dict, index: int, frame: dict) -> _Picture:
    where = f"{path}: frame {index}"
    image = _find_image(path, where, frame.get("file_path"))
    size = check_image(image)
    pose = numbers(frame.get("transform_matrix"), (4, 4), f"{where}: transform_matrix")
    if not np.isfinite(pose).all():
        raise UserError(f"{where}: transform_matrix holds NaN; repair or recompute the pose")
    intrinsics = _intrinsics(where, {**meta, **frame}, size)
    camera = camera_from_pose(image.stem, size, intrinsics, pose @ _OPENGL_TO_OPENCV)
    time = float(numbers(frame.get("time", 0.0), (), f"{where}: time"))
    if not (math.isfinite(time) and time >= 0):
        raise UserError(f"{where}: time {time} is not a number from 0 on; repair the file")
    return _Picture(image, camera.validate(where), time)


def _find_image(path: Path, where: str, name: Any) -> Path:
    """The image that an entry names, with or without its suffix."""
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: has no 'file_path'; repair the file")
    stem = path.parent / name
    candidates = [stem, *(stem.with_name(stem.name + suffix) for suffix in SUFFIXES)]
    for candidate in candidates:
        if os.path.isfile(candidate):  # False also for names that no file can have
            return candidate
    raise UserError(
        f"{where}: no image {brief(stem, 300)} (nor with {', '.join(SUFFIXES)}); restore it"
    )


def _intrinsics(where: str, entry: dict, size: tuple[int, int]) -> tuple[float, ...]:
    """fx, fy, cx, cy in pixels of the image as it is on disk."""

    def value(key: str) -> float | None:
        found = entry.get(key)
        return None if found is None else float(numbers(found, (), f"{where}: {key}"))

    width, height = value("w") or size[0], value("h") or size[1]
    angle_x, angle_y = value("camera_angle_x"), value("camera_angle_y")
    fx = value("fl_x") or (angle_x and width / (2 * math.tan(angle_x / 2)))
    if not fx:
        raise UserError(f"{where}: has neither fl_x nor camera_angle_x; add one to the file")
    fy = value("fl_y") or (angle_y and height / (2 * math.tan(angle_y / 2))) or fx
    cx, cy = value("cx"), value("cy")
    cx, cy = width / 2 if cx is None else cx, height / 2 if cy is None else cy
    sx, sy = size[0] / width, size[1] / height  # the image may have been resized since
    return fx * sx, fy * sy, cx * sx, cy * sy


@dataclass
class _Rig:
    """Which images share a camera: a fixed rig seen in turns, or one camera that moves."""

    names: list[str]
    rows: dict[bytes, int]

    def row(self, camera: Camera) -> int:
        return self.rows.get(_pose_key(camera), 0)

    def renamed(self, camera: Camera) -> Camera:
        """Rig cameras share their name; a moving camera keeps the image's."""
        if not self.rows:
            return camera
        return replace(camera, name=self.names[self.row(camera)])


def _rig(pictures: list[_Picture]) -> _Rig:
    keys = list(dict.fromkeys(_pose_key(p.camera) for p in pictures))
    if 2 * len(keys) > len(pictures):
        return _Rig(["moving"], {})
    return _Rig([f"cam{row:02d}" for row in range(len(keys))], {k: i for i, k in enumerate(keys)})


def _pose_key(camera: Camera) -> bytes:
    intrinsics = np.array([camera.fx, camera.fy, camera.cx, camera.cy])
    values = np.concatenate([camera.world_to_camera.numpy().ravel(), intrinsics])
    return np.round(values, 4).astype(np.float32).tobytes()


def _cloud(root: Path, train: list[_Picture]) -> PointCloud:
    for name in _CLOUDS:
        if (root / name).exists():
            return read_ply(root / name)
    low, high = _camera_box([picture.camera for picture in train])
    note(f"{root}: has no {' or '.join(_CLOUDS[:2])}; starting from 10000 random points")
    return random_cloud(low, high, 10_000)


def _camera_box(cameras: list[Camera]) -> tuple[np.ndarray, np.ndarray]:
    """A box around the point the cameras look at, as wide as the nearest of them sees there."""
    poses = np.stack([np.linalg.inv(c.world_to_camera.double().numpy()) for c in cameras])
    centre = closest_point(poses)
    distance = float(np.linalg.norm(poses[:, :3, 3] - centre, axis=1).min())
    half = max(distance * min(c.tan_half_fov_x for c in cameras), 1e-3)
    return centre - half, centre + half
