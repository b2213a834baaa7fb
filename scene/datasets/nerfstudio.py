"""nerfstudio and Instant-NGP captures: ``transforms.json``, with times or without.

Poses and intrinsics are as `scene.datasets.transforms` has them; ``applied_transform`` is in the
poses already, and in the cloud that ``ply_file_path`` names, so there is nothing to do for it.
Each frame has a ``time``, in any unit, or none has: then the images are moments in the natural
order of their names, those of each camera by themselves if it is a static rig. Image names may lead
to a folder beside the scene's (``../images/0000.png``) but no further. A frame's mask is its
``mask_path``: white counts.

Held out are, in this order: what ``--test_cameras`` names (images where the camera moves); the list
``test_filenames`` of the file, else ``val_filenames``; the first camera of a static rig, which is
one where every pose recurs; every eighth image (``--llffhold``).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from arguments_MoDE.config import ModelParams
from scene.colmap import find_model
from scene.datasets.common import Capture, choose_cameras, note, numbers
from scene.datasets.pictures import (
    Picture,
    capture_pictures,
    find_rig,
    first_cloud,
    name_cameras,
)
from scene.datasets.transforms import read_frames, read_picture
from scene.point_cloud import PointCloud, read_ply
from utils.errors import UserError, brief
from utils.images import SUFFIXES, natural_key

MARKER = "transforms.json"
_CLOUDS = ("points3D_downsample.ply", "fused.ply", "sparse_pc.ply")
_DISTORTION = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")
_PINHOLES = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE")


def fits(root: Path) -> bool:
    """Whether there is the file, and it says more than the COLMAP model that it was made from.

    ``colmap/sparse/0`` is where nerfstudio itself leaves that model; one in ``sparse`` is read as
    a COLMAP scene unless the frames have times. A damaged file may have had them, so it fits, and
    is refused by name.
    """
    path = root / MARKER
    if not path.exists():
        return False
    return find_model(root) in (None, root / "colmap" / "sparse" / "0") or _has_times(path)


def _has_times(path: Path) -> bool:
    """Whether frames have times, as far as can be told."""
    try:
        frames = read_frames(path)[1]
    except UserError:  # reading it says so
        return True
    return not frames or any("time" in frame for frame in frames)


def load(root: Path, model: ModelParams) -> Capture:
    """Reads the scene.

    Raises:
        UserError: a file is missing or damaged, a lens is distorted, or some frames lack times.
    """
    path = root / MARKER
    meta, frames = read_frames(path)
    if not frames:
        raise UserError(f"{path}: lists no frame; there is nothing to train on")
    pictures = _read_pictures(path, meta, frames)
    every = list(pictures.values())
    rig = find_rig(every)
    numbered = not any(_is_timed(frame) for frame in frames)
    if numbered:
        _number(path, every, len(rig))
    names = name_cameras(every, _named(rig, pictures))
    held_out, left_out = _split(path, meta, pictures, names, model)
    train = [p for name, p in pictures.items() if name not in held_out | left_out]
    test = [p for name, p in pictures.items() if name in held_out]
    if not train:
        raise UserError(f"{path}: no image is left for training; hold out fewer")
    capture = Capture("nerfstudio", names, 0, _cloud(root, meta, train), path)
    return capture_pictures(capture, train, test, model, numbered=numbered)


# ---- frames -------------------------------------------------------------------------------------


def _read_pictures(path: Path, meta: dict, frames: list[dict]) -> dict[str, Picture]:
    """Name -> picture, in natural order; the name is the file's path without its suffix."""
    timed = [_is_timed(frame) for frame in frames]
    if any(timed) and not all(timed):
        raise UserError(
            f"{path}: frame {timed.index(False)} has no 'time' but others do; add it, or remove all"
        )
    pictures: dict[str, Picture] = {}
    for index, frame in enumerate(frames):
        where = f"{path}: frame {index}"
        name = _name(where, "file_path", frame.get("file_path"))
        if name in pictures:
            raise UserError(f"{where}: {frame['file_path']} is listed twice; remove one of them")
        _refuse_distortion(where, {**meta, **frame}, path.parent)
        pictures[name] = read_picture(path, meta, index, frame)
        pictures[name].mask = _mask(where, path.parent, frame.get("mask_path"))
    pictures = {name: pictures[name] for name in sorted(pictures, key=natural_key)}
    above = os.path.commonpath([os.path.dirname(name) for name in pictures])
    for name, picture in pictures.items():
        picture.camera = replace(picture.camera, name=os.path.relpath(name, above or "."))
    return pictures


def _is_timed(frame: dict) -> bool:
    return frame.get("time") is not None


def _number(path: Path, pictures: list[Picture], cameras: int) -> None:
    """Gives pictures times in their order: of all, or of each camera of a rig by itself."""
    counts: Counter[int] = Counter()
    for picture in pictures:  # whose row is 0 where there is no rig
        picture.time = float(counts[picture.row])
        counts[picture.row] += 1
    what = (
        f"each is a moment of its camera, {cameras} stand still" if cameras else "each is a moment"
    )
    note(f"{path}: frames have no 'time'; {what}, in the order of their names")
    if len(set(counts.values())) > 1:
        note(
            f"{path}: the cameras have {min(counts.values())} to {max(counts.values())} frames; if "
            "some are missing in between, add 'time' to all"
        )


def _name(where: str, key: str, value: Any) -> str:
    """An image's path without suffix, with no ``.`` or superfluous ``..`` in it.

    Raises:
        UserError: it is none, or leads further than to a folder beside the scene's.
    """
    if not isinstance(value, str) or not value or "\0" in value:
        raise UserError(f"{where}: {key} names no file; repair the file")
    path = PurePosixPath(os.path.normpath(value))
    if path.is_absolute() or path.parts[:2] == ("..", ".."):
        raise UserError(
            f"{where}: {key} {value} leads out of the scene folder; make it relative to it"
        )
    return str(path.with_suffix("") if path.suffix.lower() in SUFFIXES else path)


def _mask(where: str, root: Path, value: Any) -> Path | None:
    """The file of a frame's ``mask_path``, which is relative to the scene folder like its image."""
    if value is None:
        return None
    _name(where, "mask_path", value)
    if not os.path.isfile(root / value):
        raise UserError(f"{where}: no mask {brief(root / value, 300)}; restore it")
    return root / value


def _refuse_distortion(where: str, entry: dict, root: Path) -> None:
    lens = entry.get("camera_model") or "PINHOLE"
    found = [key for key in _DISTORTION if numbers(entry.get(key) or 0.0, (), f"{where}: {key}")]
    if lens in _PINHOLES and not found:
        return
    what = f"{found[0]} is {entry[found[0]]}" if found else f"camera_model is {lens!r}"
    raise UserError(
        f"{where}: the lens is distorted ({what}), and nerfstudio has no command that undistorts "
        "images; run colmap image_undistorter on its COLMAP model and train on the output as a "
        f"COLMAP scene, or, for a rig of static cameras, python script/pre_multiview.py {root}"
    )


# ---- cameras and the split ----------------------------------------------------------------------


def _named(names: list[str], pictures: dict[str, Picture]) -> list[str]:
    """A rig's cameras named like the folders of their images, where each has one of its own."""
    folders: dict[int, set[str]] = {}
    for name, picture in pictures.items():
        folders.setdefault(picture.row, set()).add(PurePosixPath(name).parent.name)
    own = [next(iter(folders[row])) for row in range(len(names)) if len(folders[row]) == 1]
    return own if len(set(own)) == len(names) and "" not in own else names


def _split(
    path: Path, meta: dict, pictures: dict[str, Picture], cameras: list[str], model: ModelParams
) -> tuple[set[str], set[str]]:
    """The names of the held-out pictures, and of those that no list has."""
    lists = {
        key: set(_listed(path, meta, f"{key}_filenames", pictures))
        for key in ("train", "val", "test")
        if meta.get(f"{key}_filenames")
    }
    if lists and not model.test_cameras:
        held_out = lists.get("test") or lists.get("val", set())
        left_out = set(pictures) - held_out - lists["train"] if "train" in lists else set()
        if left_out:
            note(f"{path}: {len(left_out)} images are in neither list: left out")
        return held_out, left_out
    if cameras != ["moving"]:
        rows = choose_cameras(model.test_cameras, cameras, [0] if len(cameras) > 1 else [])
        return {name for name, picture in pictures.items() if picture.row in rows}, set()
    every = range(0, len(pictures), model.llffhold) if model.llffhold and len(pictures) > 1 else ()
    shown = [picture.camera.name for picture in pictures.values()]
    rows = choose_cameras(model.test_cameras, shown, list(every))
    return {name for row, name in enumerate(pictures) if row in rows}, set()


def _listed(path: Path, meta: dict, key: str, names: Collection[str]) -> list[str]:
    """The names of a list of file names of the file's head."""
    listed = meta[key]
    if not isinstance(listed, list):
        raise UserError(f"{path}: {key} is not a list; repair the file")
    found = [_name(str(path), key, entry) for entry in listed]
    for entry, name in zip(listed, found, strict=True):
        if name not in names:
            raise UserError(f"{path}: {key} names {entry}, which no frame has; repair the list")
    return found


def _cloud(root: Path, meta: dict, train: list[Picture]) -> PointCloud:
    """The file's own cloud, else one by its name, else random points."""
    name = meta.get("ply_file_path")
    if name:
        _name(str(root / MARKER), "ply_file_path", name)
        if not os.path.isfile(root / name):  # False also for names that no file can have
            shown = brief(root / name, 300)
            raise UserError(f"{shown}: missing, but {MARKER} names it; restore the cloud")
        return read_ply(root / name)
    return first_cloud(root, _CLOUDS, train)
