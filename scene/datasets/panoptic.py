"""PanopticSports (Dynamic 3D Gaussians): ``train_meta.json``, ``test_meta.json``, ``ims``.

Each JSON file holds ``w``, ``h`` and, per frame and camera, ``k`` (3x3 intrinsics), ``w2c`` (4x4),
``fn`` (image below ``ims``) and ``cam_id``. ``init_pt_cld.npz`` holds ``data`` (N, 6 or more): xyz,
rgb in [0, 1].
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arguments_MoDE.config import ModelParams
from scene.cameras import LARGEST, Camera
from scene.datasets.checks import are_inverted
from scene.datasets.common import (
    Capture,
    Shot,
    choose_cameras,
    clip_frames,
    frame_time,
    note,
    numbers,
    read_json,
    read_npz,
)
from scene.frames import ImageFrames
from scene.point_cloud import PointCloud, checked_cloud, colours_to_uint8
from utils.errors import UserError

MARKER = "train_meta.json"
_CLOUD = "init_pt_cld.npz"


@dataclass
class _Track:
    """One camera over the frames that are used."""

    cameras: list[Camera]
    paths: list[Path]
    held_out: bool
    meta: str  # name of the file that lists it


def load(root: Path, model: ModelParams) -> Capture:
    """Reads the scene; ``test_meta.json`` names the test cameras unless ``test_cameras`` does.

    Raises:
        UserError: a file is missing or damaged, or poses are no world-to-camera matrices.
    """
    tracks: dict[int, _Track] = {}
    cloud = _read_cloud(root) if (root / _CLOUD).exists() else None  # else: metadata first
    frame_count = _read_meta(root / MARKER, model, tracks, cloud, held_out=False)
    if (root / "test_meta.json").exists():
        other = _read_meta(root / "test_meta.json", model, tracks, cloud, held_out=True)
        frame_count = _common_length(root, frame_count, other)
    elif not model.test_cameras:
        note(f"{root / 'test_meta.json'} is missing: no camera is held out")
    ids = sorted(tracks)
    names = [f"cam{camera:02d}" for camera in ids]
    default = [row for row, camera in enumerate(ids) if tracks[camera].held_out]
    held_out = choose_cameras(model.test_cameras, names, default)
    capture = Capture("panoptic", names, frame_count, cloud or _read_cloud(root), root / MARKER)
    for row, camera in enumerate(ids):
        track = tracks[camera]
        first = track.cameras[0]
        paths = tuple(track.paths[:frame_count])
        size = (first.width, first.height)
        capture.sources.append(ImageFrames(paths, size, sized_by=track.meta))
        shots = capture.test if row in held_out else capture.train
        for index in range(frame_count):
            time = frame_time(index, frame_count, model.time_convention)
            shots.append(Shot(track.cameras[index], row, index, time, (row, index)))
    return capture


def _common_length(root: Path, train: int, test: int) -> int:
    if train != test:
        note(f"{root}: train_meta.json has {train} frames, test_meta.json {test}; using the fewer")
    return min(train, test)


def _read_meta(
    path: Path,
    model: ModelParams,
    tracks: dict[int, _Track],
    cloud: PointCloud | None,
    held_out: bool,
) -> int:
    """Adds the cameras of one JSON file to ``tracks``; returns the number of frames used."""
    meta = read_json(path)
    columns = _columns(path, meta)
    frames = clip_frames(len(columns["fn"]), model, path)
    size = _size(path, meta)
    _refuse_faults(path, columns, frames, size, cloud)
    for position, frame in enumerate(frames):
        rows = zip(*(columns[key][frame] for key in ("cam_id", "fn", "k", "w2c")), strict=True)
        for camera_id, name, k, w2c in rows:
            if not isinstance(camera_id, int) or not isinstance(name, str):
                raise UserError(f"{path}: frame {frame}: cam_id must be a number and fn a text")
            track = tracks.setdefault(camera_id, _Track([], [], held_out, path.name))
            if track.held_out != held_out or len(track.cameras) != position:
                raise UserError(
                    f"{path}: camera {camera_id} is listed twice or misses frame "
                    f"{frames[len(track.cameras) - 1]}; list every camera once in every frame"
                )
            track.cameras.append(_camera(path, frame, camera_id, size, k, w2c, track.cameras[-1:]))
            track.paths.append(path.parent / "ims" / name)
    mine = {camera: track for camera, track in tracks.items() if track.held_out == held_out}
    short = [camera for camera, track in mine.items() if len(track.cameras) < len(frames)]
    if short:
        raise UserError(f"{path}: camera {short[0]} is not listed in every frame; add its rows")
    return len(frames)


def _size(path: Path, meta: dict) -> tuple[int, int]:
    width, height = numbers([meta["w"], meta["h"]], (2,), f"{path}: w, h").tolist()
    if not (1 <= width <= 1e6 and 1 <= height <= 1e6 and width % 1 == height % 1 == 0):
        raise UserError(f"{path}: w, h should be pixels but are {width:g}, {height:g}; repair them")
    return int(width), int(height)


def _columns(path: Path, meta: Any) -> dict[str, list]:
    """The per-frame lists, checked to agree in length."""
    keys = ("fn", "k", "w2c", "cam_id")
    missing = [k for k in ("w", "h", *keys) if not isinstance(meta, dict) or k not in meta]
    if missing:
        raise UserError(f"{path}: has no entry {missing[0]!r}; it is not a PanopticSports file")
    columns = {key: meta[key] for key in keys}
    if any(not isinstance(v, list) for v in columns.values()):
        raise UserError(f"{path}: {', '.join(keys)} must be lists with one entry per frame")
    if len({len(v) for v in columns.values()}) > 1 or not columns["fn"]:
        lengths = ", ".join(f"{k} {len(v)}" for k, v in columns.items())
        raise UserError(f"{path}: frames listed: {lengths}; the counts must agree and not be 0")
    for frame, rows in enumerate(zip(*columns.values(), strict=True)):
        if any(not isinstance(r, list) for r in rows) or len({len(r) for r in rows}) > 1:
            raise UserError(f"{path}: frame {frame} lists different numbers of cameras per key")
    return columns


def _refuse_faults(
    path: Path, columns: dict[str, list], frames: range, size: tuple, cloud: PointCloud | None
) -> None:
    """Looks at the file as a whole, so that one line says all that is wrong with its poses.

    Raises:
        UserError: the world is left-handed, matrices are camera-to-world, or frames are missing.
    """
    cameras = _first_cameras(path, columns, frames[0], size)
    mirrored = bool(cameras) and all(_determinant(camera) < 0 for camera in cameras)
    inverted = are_inverted(cameras, None if cloud is None else cloud.xyz)
    faults = []
    if mirrored:
        faults.append("w2c mirrors the world (determinant -1): its frame is left-handed")
    if inverted:
        faults.append("w2c holds camera-to-world where world-to-camera is due (mixed up)")
    faults += _missing_frames(path, columns, frames)
    if faults:
        count = f"{len(faults)} faults: " if len(faults) > 1 else ""
        raise UserError(f"{path}: {count}{'; '.join(faults)}{_remedy(mirrored, inverted)}")


def _remedy(mirrored: bool, inverted: bool) -> str:
    """How to convert the matrices; negating another world axis gives the same scene turned."""
    line = "row" if inverted else "column"  # where the world's axes are
    steps = [f"negate its first {line} (the world's x; negate it in the cloud too)"] * mirrored
    steps += ["invert it"] * inverted
    return f"; convert each matrix of w2c: {', then '.join(steps)}" if steps else ""


def _determinant(camera: Camera) -> float:
    return float(np.linalg.det(camera.world_to_camera[:3, :3].double().numpy()))


def _first_cameras(path: Path, columns: dict[str, list], frame: int, size: tuple) -> list[Camera]:
    """The cameras of one frame, not validated; none where they cannot be judged as a whole."""
    where = [f"{path}: frame {frame}, camera {camera}" for camera in columns["cam_id"][frame]]

    def table(key: str, shape: tuple[int, int]) -> np.ndarray:
        rows = zip(columns[key][frame], where, strict=True)
        found = [numbers(value, shape, f"{place}: {key}") for value, place in rows]
        return np.array(found).reshape(-1, *shape)

    matrices, k = table("w2c", (4, 4)), table("k", (3, 3))
    known = np.isfinite(matrices).all() and np.isfinite(k).all()
    known = known and max(np.abs(matrices).max(initial=0), np.abs(k).max(initial=0)) < LARGEST
    if not known or (np.abs(np.linalg.det(matrices)) < 0.5).any() or (k[:, 0, 0] <= 0).any():
        return []
    return [
        Camera("", *size, k[i, 0, 0], k[i, 1, 1], k[i, 0, 2], k[i, 1, 2], torch.from_numpy(w2c))
        for i, w2c in enumerate(matrices)
    ]


def _missing_frames(path: Path, columns: dict[str, list], frames: range) -> list[str]:
    """What is said of rows and images that are not there; the first of each are named."""
    seen: dict[int, set[int]] = {}
    absent = []
    for frame in frames:
        for camera, name in zip(columns["cam_id"][frame], columns["fn"][frame], strict=True):
            odd = not isinstance(camera, int) or not isinstance(name, str)
            if odd or frame in seen.setdefault(camera, set()):
                return []  # worse than missing: it is named where the rows are read
            seen[camera].add(frame)
            if not os.path.isfile(image := path.parent / "ims" / name):
                absent.append((camera, frame, image))
    return _missing_rows(seen, frames) + _missing_images(absent)


def _missing_rows(seen: dict[int, set[int]], frames: range) -> list[str]:
    gaps = {camera: [f for f in frames if f not in mine] for camera, mine in seen.items()}
    return [
        f"camera {camera} misses frame {missing[0]}"
        + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
        + "; list it once in every frame"
        for camera, missing in gaps.items()
        if missing
    ][:3]


def _missing_images(absent: list[tuple[int, int, Path]]) -> list[str]:
    if not absent:
        return []
    camera, frame, image = absent[0]
    more = f", nor {len(absent) - 1} more" if len(absent) > 1 else ""
    return [
        f"camera {camera} misses the image of frame {frame} ({image}: no such image{more}); "
        "restore it or use fewer frames (--duration)"
    ]


def _camera(
    path: Path, frame: int, camera_id: int, size: tuple, k: Any, w2c: Any, previous: list[Camera]
) -> Camera:
    """The camera of one image; the previous frame's object where nothing moved."""
    where = f"{path}: frame {frame}, camera {camera_id}"
    intrinsics = numbers(k, (3, 3), f"{where}: k")
    matrix = torch.from_numpy(numbers(w2c, (4, 4), f"{where}: w2c")).float()
    fx, fy, cx, cy = (float(intrinsics[i]) for i in ((0, 0), (1, 1), (0, 2), (1, 2)))
    if previous and torch.equal(previous[0].world_to_camera, matrix):
        last = previous[0]
        if (last.fx, last.fy, last.cx, last.cy) == (fx, fy, cx, cy):
            return last
    camera = Camera(f"cam{camera_id:02d}", size[0], size[1], fx, fy, cx, cy, matrix)
    return camera.validate(f"{path}: frame {frame}")


def _read_cloud(root: Path) -> PointCloud:
    path = root / _CLOUD
    data = read_npz(path, "data")
    if data.ndim != 2 or data.shape[1] < 6:
        raise UserError(f"{path}: 'data' has shape {data.shape}, not (N, 6 or more): xyz, rgb")
    return checked_cloud(path, data[:, :3].astype(np.float32), colours_to_uint8(data[:, 3:6]))
