"""Technicolor light field scenes: ``cameras_parameters.txt`` and 16 synchronised cameras.

The file has a line of titles, then a row per camera, cam00 first: focal length, principal point x
and y (pixels of 2048 x 1088), two numbers that are not used, the quaternion (columns 5 to 8) and
the translation (9 to 11). As the published readers do, the quaternion is taken as wxyz and the pose
as world-to-camera with OpenCV axes, as COLMAP has them.

Frames are ``images/cam00/0000.png`` …, which go first, or the files as they are published,
``<Scene>_undist_<frame>_<camera>.png``.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from arguments_MoDE.config import ModelParams
from scene.cameras import Camera, camera_from_pose
from scene.colmap import LARGEST, ColmapImage
from scene.datasets.clips import add_rig, common_length, holds_frames, probe
from scene.datasets.common import Capture, choose_cameras, clip_frames
from scene.frames import ImageFrames, Size
from scene.point_cloud import PointCloud, read_ply
from utils.errors import UserError
from utils.images import check_image

MARKER = "cameras_parameters.txt"
NATIVE = (2048, 1088)  # pixels, which the intrinsics refer to
HELD_OUT = "cam10"
_CLOUD = "points3D_downsample.ply"
_COLUMNS = 12
_RAW = re.compile(r"(.+)_undist_(\d{1,9})_(\d{1,4})\.png")


def load(root: Path, model: ModelParams) -> Capture:
    """Reads the scene; ``cam10`` is held out unless ``test_cameras`` says otherwise.

    Raises:
        UserError: a file is missing or damaged, or a row is no camera.
    """
    path = root / MARKER
    rows = read_rows(path)
    names = [f"cam{row:02d}" for row in range(len(rows))]
    sources = _sources(root, names, model)
    held_out = names.index(HELD_OUT) if HELD_OUT in names else 0
    test = choose_cameras(model.test_cameras, names, default=[held_out] if len(names) > 1 else [])
    capture = Capture("technicolor", names, len(sources[0]), _cloud(root), path)
    cameras = [
        row_camera(name, row, source.native).validate(path)
        for name, row, source in zip(names, rows, sources, strict=True)
    ]
    add_rig(capture, cameras, sources, test, model)
    return capture


def read_rows(path: Path) -> np.ndarray:
    """(N, 12) float64: the columns that are used, and those between."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()[1:]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error}); restore the file") from None
    rows = [_read_row(path, i, line) for i, line in enumerate(lines, 2) if line.strip()]
    if not rows:
        raise UserError(f"{path}: has no row after its titles; restore the file")
    return np.array(rows)


def _read_row(path: Path, line_number: int, line: str) -> list[float]:
    where = f"{path}: line {line_number}"
    words = line.replace(",", " ").split()
    if len(words) < _COLUMNS:
        raise UserError(f"{where}: has {len(words)} of {_COLUMNS} columns; restore the file")
    try:
        values = [float(word) for word in words[:_COLUMNS]]
    except ValueError as error:
        raise UserError(f"{where}: not a row of numbers ({error}); restore the file") from None
    if not (np.abs(values) < LARGEST).all() or np.abs(values[5:9]).max() < 1e-6:
        raise UserError(f"{where}: is no camera (NaN, or a quaternion of zeros); restore the file")
    return values


def row_camera(name: str, row: np.ndarray, size: Size) -> Camera:
    """The camera of one row, for frames of ``size``."""
    focal, cx, cy = row[:3]
    sx, sy = size[0] / NATIVE[0], size[1] / NATIVE[1]
    pose = ColmapImage(name, 0, tuple(row[5:9]), tuple(row[9:12])).camera_to_world()
    return camera_from_pose(name, size, (focal * sx, focal * sy, cx * sx, cy * sy), pose)


def _sources(root: Path, names: list[str], model: ModelParams) -> list[ImageFrames]:
    """The frames in use of each camera.

    Raises:
        UserError: a camera or a frame is missing; the line names the first.
    """
    folders = [root / model.images / name for name in names]
    raw = raw_files(root, len(names))
    missing = [folder for folder in folders if not holds_frames(folder)]
    if not missing:
        _refuse_unlisted(root / model.images, len(names))
        clips = [probe(folder) for folder in folders]
        chosen = clip_frames(common_length(root, names, clips), model, root)
        return [clip.source(chosen) for clip in clips]
    if raw is None:
        raise UserError(
            f"{missing[0]}: has no frames for this row of {MARKER}, and there are no files "
            f"<Scene>_undist_<frame>_<camera>.png in {root}; restore them"
        )
    scene, files = raw
    numbers = sorted(set().union(*files))
    used = [numbers[i] for i in clip_frames(len(numbers), model, root)]
    return [_raw_source(root, scene, camera, used) for camera in range(len(names))]


def _refuse_unlisted(extracted: Path, cameras: int) -> None:
    """Refuses folders of frames of cameras that have no row: rows may have been lost."""
    for path in sorted(extracted.iterdir()):
        number = re.fullmatch(r"cam(\d{2,4})", path.name)
        if number and int(number.group(1)) >= cameras and holds_frames(path):
            raise _unlisted(path, number.group(1))


def _unlisted(path: Path, number: str) -> UserError:
    return UserError(
        f"{path}: {MARKER} has no row {number}; restore that file, or remove the camera's frames"
    )


def raw_name(scene: str, number: int, camera: int) -> str:
    """The name that a frame is published under."""
    return f"{scene}_undist_{number:05d}_{camera:02d}.png"


def raw_files(root: Path, cameras: int) -> tuple[str, list[dict[int, Path]]] | None:
    """The scene's name in the published files, and for each camera its files by frame number.

    Args:
        cameras: how many there are; one of them may have no file.

    Returns:
        None if there is no such file at all.

    Raises:
        UserError: there are files of two scenes, or of a camera that has no row.
    """
    found = [match for p in root.iterdir() if (match := _RAW.fullmatch(p.name))]
    scenes = sorted({match.group(1) for match in found})
    if len(scenes) > 1:
        raise UserError(f"{root}: has frames of {scenes[0]} and of {scenes[1]}; keep one scene")
    for match in sorted(found, key=lambda match: match.group()):
        if int(match.group(3)) >= cameras:
            raise _unlisted(root / match.group(), match.group(3))
    files: list[dict[int, Path]] = [{} for _ in range(cameras)]
    for match in found:
        files[int(match.group(3))][int(match.group(2))] = root / match.group()
    return (scenes[0], files) if found else None


def _raw_source(root: Path, scene: str, camera: int, numbers: list[int]) -> ImageFrames:
    paths = tuple(root / raw_name(scene, number, camera) for number in numbers)
    for path in paths:
        if not path.is_file():
            raise UserError(
                f"{path}: missing, where other cameras or frames are there; restore it, or remove "
                f"the row of camera {camera:02d} in {MARKER}"
            )
    return ImageFrames(paths, check_image(paths[0]))


def _cloud(root: Path) -> PointCloud:
    path = root / _CLOUD
    if path.exists():
        return read_ply(path)
    raise UserError(
        f"{path}: missing; make it with python script/pre_technicolor.py --videopath {root}"
    )
