"""Neural 3D Video (DyNeRF): synchronised cameras with LLFF poses.

``poses_bounds.npy`` (N, 17): per camera a 3x5 matrix, whose columns are the axes down, right,
backwards, the centre, and (height, width, focal), then the nearest and farthest depth. Rows belong
to the cameras in the natural order of their names. A camera's frames are a video ``cam00.mp4``, or
images in ``images/cam00/`` or ``cam00/images/``, or one image ``images/cam00.png`` for a scene of
one time step; a video goes before images, being whole by construction.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from arguments_MoDE.config import ModelParams
from scene.cameras import LARGEST, Camera, camera_from_pose
from scene.colmap import find_model
from scene.datasets.common import (
    Capture,
    Shot,
    choose_cameras,
    clip_frames,
    frame_time,
    note,
    read_npy,
)
from scene.frames import FrameSource, ImageFrames, VideoFrames
from scene.point_cloud import PointCloud, read_ply
from utils import images, video
from utils.errors import UserError

MARKER = "poses_bounds.npy"
_CLOUDS = ("points3D_downsample.ply", "points3D_downsample2.ply")


def fits(root: Path) -> bool:
    """Whether there are poses, and more than the photos and COLMAP model of an LLFF scene."""
    if not (root / MARKER).is_file():
        return False
    rig = any(p.suffix.lower() in video.SUFFIXES or p.is_dir() for p in root.glob("cam*"))
    rig = rig or any((root / name).exists() for name in _CLOUDS)
    return rig or find_model(root) is None


def load(root: Path, model: ModelParams) -> Capture:
    """Reads the scene; the first camera is held out unless ``test_cameras`` says otherwise.

    Raises:
        UserError: a file is missing or damaged, or poses and cameras do not match.
    """
    poses_file = root / MARKER
    rows = _read_rows(poses_file)
    found = find_cameras(root, model.images, len(rows))
    if len(found) != len(rows):
        raise UserError(
            f"{poses_file}: has {len(rows)} rows but {root} has {len(found)} cameras (videos or "
            f"folders of frames{_examples(found)}); restore what is missing or remove its row"
        )
    names = list(found)
    probed = [_probe(path) for path in found.values()]
    chosen = clip_frames(_common_length(root, names, probed), model, root)
    held_out = choose_cameras(model.test_cameras, names, default=[0] if len(names) > 1 else [])
    capture = Capture("n3v", names, len(chosen), _cloud(root), poses_file)
    capture.focus_depth = _focus_depth(rows[:, 15:])
    for row, (name, path) in enumerate(found.items()):
        size = probed[row][0]
        camera = _camera(name, rows[row], size).validate(poses_file)
        capture.sources.append(_source(path, chosen, size))
        shots = capture.test if row in held_out else capture.train
        for index in range(len(chosen)):
            time = frame_time(index, len(chosen), model.time_convention)
            shots.append(Shot(camera, row, index, time, (row, index)))
    return capture


def _examples(found: dict[str, Path]) -> str:
    names = list(found)
    return f": {', '.join(names[:3])} .. {names[-1]}" if len(names) > 3 else ""


def _read_rows(path: Path) -> np.ndarray:
    """(N, 17) float64, finite."""
    rows = read_npy(path)
    if rows.ndim != 2 or rows.shape[1] != 17 or not len(rows):
        raise UserError(f"{path}: has shape {rows.shape}, not (cameras, 17); make it again")
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise UserError(f"{path}: row {bad[0]} holds NaN or infinite numbers; make it again")
    return rows


def _camera(name: str, row: np.ndarray, size: tuple[int, int]) -> Camera:
    """Camera of one row, for frames of ``size``; the row's own size and focal length may differ."""
    llff = row[:15].reshape(3, 5)
    down, right, back, centre = llff[:, :4].T
    height, width, focal = llff[:, 4]
    pose = np.stack([right, down, -back, centre], axis=1)  # (3, 4), OpenCV axes
    if min(width, height) < 1:
        width = height = np.nan  # which Camera.validate refuses
    sx, sy = size[0] / width, size[1] / height
    if abs(focal) > LARGEST:
        focal = np.inf  # likewise
    return camera_from_pose(name, size, (focal * sx, focal * sy, size[0] / 2, size[1] / 2), pose)


def find_cameras(root: Path, images_folder: str, count: int) -> dict[str, Path]:
    """Camera name -> its video, folder of frames or single image, in natural order of names.

    The first kind of which there are ``count`` cameras; if there is none, the kind with the most.
    """
    extracted = root / images_folder
    inside = list(extracted.iterdir()) if extracted.is_dir() else []
    kinds = [
        {p.stem: p for p in root.glob("cam*") if p.suffix.lower() in video.SUFFIXES},
        {p.name: p for p in inside if _holds_frames(p)},
        {p.parent.name: p for p in root.glob(f"cam*/{images_folder}") if _holds_frames(p)},
        {p.stem: p for p in inside if p.suffix.lower() in images.SUFFIXES},
    ]
    complete = (found for found in kinds if len(found) == count)
    found = next(complete, None) or max(kinds, key=len)
    return {name: found[name] for name in sorted(found, key=images.natural_key)}


def _holds_frames(folder: Path) -> bool:
    return folder.is_dir() and bool(images.list_images(folder))


def _probe(path: Path) -> tuple[tuple[int, int], int]:
    """Size in pixels and number of frames of a camera."""
    if path.is_dir():
        files = images.list_images(path)
        if not files:
            raise UserError(f"{path}: a folder without images where a video is due; restore it")
        return images.check_image(files[0]), len(files)
    if path.suffix.lower() in images.SUFFIXES:
        return images.check_image(path), 1
    info = video.probe_video(path)
    return (info.width, info.height), info.frames


def _common_length(root: Path, names: list[str], probed: list[tuple]) -> int:
    """The number of frames that every camera has."""
    lengths = [count for _, count in probed]
    shortest = min(lengths)
    if shortest < max(lengths):
        who = names[lengths.index(shortest)]
        note(f"{root}: {who} has {shortest} frames, others up to {max(lengths)}; using {shortest}")
    return shortest


def _source(path: Path, chosen: range, size: tuple[int, int]) -> FrameSource:
    if path.is_dir():
        files = images.list_images(path)
        return ImageFrames(tuple(files[i] for i in chosen), size)
    if path.suffix.lower() in images.SUFFIXES:
        return ImageFrames((path,), size)
    return VideoFrames(path, chosen, size)


def _focus_depth(bounds: np.ndarray) -> float | None:
    """Where LLFF's path looks: three quarters of the way, in disparity, between near and far."""
    near, far = 0.9 * bounds[:, 0].min(), 5.0 * min(bounds[:, 1].max(), 1e9)
    if not 1e-9 < near < far:
        return None
    return 1.0 / (0.25 / near + 0.75 / far)


def _cloud(root: Path) -> PointCloud:
    for name in _CLOUDS:
        if (root / name).exists():
            return read_ply(root / name)
    raise UserError(
        f"{root / _CLOUDS[0]}: missing; make it from COLMAP's dense cloud (fused.ply), thinned to "
        "some 100,000 points"
    )
