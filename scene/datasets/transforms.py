"""The entries of transforms files, as D-NeRF, Instant-NGP and nerfstudio write them.

Poses are camera-to-world with OpenGL axes (y up, looking along -z). Intrinsics come from each frame
(``fl_x``, ``fl_y``, ``cx``, ``cy``, ``w``, ``h``), then from the file's head, then from
``camera_angle_x`` and the image's size.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from scene.cameras import camera_from_pose
from scene.colmap import LARGEST
from scene.datasets.common import numbers, read_json
from scene.datasets.pictures import Picture
from utils.errors import UserError, brief
from utils.images import SUFFIXES, check_image

_OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])  # flips the camera's own y and z axes


def read_frames(path: Path) -> tuple[dict, list[dict]]:
    """The head of a transforms file and its frames.

    Raises:
        UserError: the file is missing or no transforms file.
    """
    meta = read_json(path)
    frames = meta.get("frames") if isinstance(meta, dict) else None
    if not isinstance(frames, list) or not all(isinstance(f, dict) for f in frames):
        raise UserError(f"{path}: has no list 'frames'; it is not a transforms file")
    return meta, frames


def read_picture(path: Path, meta: dict, index: int, frame: dict) -> Picture:
    """One frame of a transforms file; its camera is named like the image, without suffix.

    Args:
        path: the file, to which image names are relative.
        meta: its head.
        index: of the frame, for messages.
        frame: the entry; its time is 0 where it has none.

    Raises:
        UserError: the image is missing or damaged, or an entry is no pose, intrinsics or time.
    """
    where = f"{path}: frame {index}"
    image = _find_image(path, where, frame.get("file_path"))
    size = check_image(image)
    pose = numbers(frame.get("transform_matrix"), (4, 4), f"{where}: transform_matrix")
    if not (np.abs(pose) < LARGEST).all():
        raise UserError(
            f"{where}: transform_matrix holds NaN or endless numbers; repair or recompute the pose"
        )
    intrinsics = _intrinsics(where, {**meta, **frame}, size)
    camera = camera_from_pose(image.stem, size, intrinsics, pose @ _OPENGL_TO_OPENCV)
    time = float(numbers(frame.get("time", 0.0), (), f"{where}: time"))
    if not (math.isfinite(time) and time >= 0):
        raise UserError(f"{where}: time {time} is not a number from 0 on; repair the file")
    return Picture(image, camera.validate(where), time)


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
        if entry.get(key) is None:
            return None
        found = float(numbers(entry[key], (), f"{where}: {key}"))
        if not math.isfinite(found):
            raise UserError(f"{where}: {key} is {found}; repair the file")
        return found

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
