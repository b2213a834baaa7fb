"""HyperNeRF, Nerfies and NeRF-DS: ``dataset.json``, ``metadata.json``, ``camera/``, ``rgb/``.

``camera/<id>.json`` holds ``orientation`` (world-to-camera rotation, OpenCV axes), ``position``
(the camera's centre) and intrinsics for an image of ``image_size``. Images come from ``rgb/2x``, as
the published readers have it, else from the largest size there is; ``--images rgb/4x`` picks
another. Positions are used as the files have them, without the shift and scale of ``scene.json``,
since clouds are in that frame. A picture's time is its ``warp_id``, a number of frames: moved
and scaled so that the clip in use runs from 0 to 1, or to where ``--time_convention`` has its end.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arguments_MoDE.config import ModelParams
from scene.cameras import Camera, camera_from_pose
from scene.colmap import LARGEST
from scene.datasets.common import Capture, note, numbers, read_json, read_npy
from scene.datasets.pictures import Picture, capture_pictures
from scene.frames import Size
from scene.point_cloud import PointCloud, checked_cloud, read_ply
from utils.errors import UserError
from utils.images import SUFFIXES, check_image

MARKER = "dataset.json"
CLOUDS = ("points3D_downsample2.ply", "points3D_downsample.ply", "points3d.ply")
_POINTS = "points.npy"
_GRID = 17  # points along each axis of an image, at which distortion is looked at


def fits(root: Path) -> bool:
    """Whether there is the list of images, and beside it their cameras or times."""
    others = ((root / "camera").is_dir(), (root / "metadata.json").exists())
    return (root / MARKER).exists() and any(others)


def load(root: Path, model: ModelParams) -> Capture:
    """Reads the scene; the split is that of the files.

    Without ``val_ids``, as in interpolation captures, every fourth id is trained on and the ones
    halfway between are held out.

    Raises:
        UserError: a file is missing or damaged, or a setting does not apply to this format.
    """
    if model.test_cameras:
        raise UserError(f"--test_cameras: in this format {MARKER} names the test views")
    train_ids, test_ids = split(root / MARKER)
    reader = Reader(root, model.images)
    train = [reader.picture(name) for name in train_ids]
    test = [reader.picture(name) for name in test_ids]
    if reader.displaced > 0:
        note(
            f"{root / 'camera'}: lenses are distorted, by up to {reader.displaced:.2g} pixels; "
            "taken for pinholes, as published"
        )
    names = _number_cameras([*train, *test])
    capture = Capture("hypernerf", names, 0, _cloud(root), root / "camera")
    return capture_pictures(capture, train, test, model, numbered=True)


def _number_cameras(pictures: list[Picture]) -> list[str]:
    """Makes each ``camera_id`` a row; returns the names of the cameras.

    They may be the two of a rig that is itself moved, so that pictures keep their own names.
    """
    ids = sorted({picture.row for picture in pictures})
    for picture in pictures:
        picture.row = ids.index(picture.row)
    return [f"cam{i:02d}" for i in ids] if len(ids) > 1 else ["moving"]


def split(path: Path) -> tuple[list[str], list[str]]:
    """The ids to train on and the held-out ones."""
    meta = read_json(path)
    if not isinstance(meta, dict):
        raise UserError(f"{path}: is not a table of ids; restore the file")
    if _ids(path, meta, "val_ids", []):
        train, test = _ids(path, meta, "train_ids"), _ids(path, meta, "val_ids")
        if both := set(train) & set(test):
            note(f"{path}: {len(both)} ids of val_ids are in train_ids too: not trained on")
        train = [name for name in train if name not in both]
    else:
        every = _ids(path, meta, "ids")
        train, test = every[::4], every[2::4]
    if not train:
        raise UserError(f"{path}: lists no image to train on; restore the file")
    return train, test


def _ids(path: Path, meta: dict, key: str, default: Any = None) -> list[str]:
    """A list of image ids, all of which are plain file names."""
    ids = meta.get(key, default)
    if not isinstance(ids, list):
        raise UserError(f"{path}: has no list {key!r}; restore the file")
    for name in ids:
        if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*", name):
            raise UserError(
                f"{path}: {key}: {name!r} is not the name of an image; restore the file"
            )
    return ids


@dataclass(frozen=True)
class Lens:
    """What bends the rays of a pinhole: the lens of OpenCV.

    A ray (x, y, 1) at radius r lands as if it were at
    x (1 + k1 r² + k2 r⁴ + k3 r⁶) + 2 p1 x y + p2 (r² + 2 x²), and likewise in y.

    Attributes:
        radial: k1, k2, k3.
        tangential: p1, p2.
        skew: pixels that a unit of y moves to the right.
    """

    radial: np.ndarray
    tangential: np.ndarray
    skew: float

    def displacement(self, camera: Camera) -> float:
        """Largest distance in pixels between where a pinhole and the real lens put a ray.

        Args:
            camera: whose rays through the image, on a grid, are looked at.
        """
        u, v = np.linspace(0, camera.width, _GRID), np.linspace(0, camera.height, _GRID)[:, None]
        x, y = (u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy
        (k1, k2, k3), (p1, p2) = self.radial, self.tangential
        r2 = x * x + y * y
        swell = r2 * (k1 + r2 * (k2 + r2 * k3))
        dx = x * swell + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
        dy = y * swell + 2 * p2 * x * y + p1 * (r2 + 2 * y * y)
        return float(np.hypot(camera.fx * dx + self.skew * y, camera.fy * dy).max())


class Reader:
    """Reads pictures by id, and remembers what they have in common."""

    def __init__(self, root: Path, images: str) -> None:
        self.root = root
        self.folder = _images_folder(root, images)
        self.path = root / "metadata.json"
        self.metadata = read_json(self.path)
        if not isinstance(self.metadata, dict):
            raise UserError(f"{self.path}: is not a table of images by id; restore the file")
        self.lenses: dict[str, Lens] = {}  # by id, of the pictures that were read
        self.displaced = 0.0  # pixels of the images on disk, by distortion that is left out

    def moment(self, name: str) -> int:
        """The ``warp_id`` of a picture."""
        return self._whole(name, "warp_id")

    def picture(self, name: str) -> Picture:
        """One picture; its camera is named by its id, its row is the ``camera_id``."""
        time = self.moment(name)
        image = self._image(name)
        file = self.root / "camera" / f"{name}.json"
        camera, lens = _read_camera(file, name, check_image(image))
        self.lenses[name] = lens
        self.displaced = max(self.displaced, lens.displacement(camera))
        return Picture(image, camera, float(time), self._whole(name, "camera_id", 0))

    def _whole(self, name: str, key: str, default: int | None = None) -> int:
        """A number from 0 on of an image's entry in metadata.json."""
        entry = self.metadata.get(name)
        value = entry.get(key, default) if isinstance(entry, dict) else None
        if not isinstance(value, int) or not 0 <= value < 1 << 31:
            raise UserError(
                f"{self.path}: {name}: has no number {key!r}, but {MARKER} lists it; restore the "
                "file"
            )
        return value

    def _image(self, name: str) -> Path:
        candidates = [self.folder / f"{name}{suffix}" for suffix in SUFFIXES]
        found = next((path for path in candidates if path.is_file()), None)
        if found is None:
            raise UserError(f"{candidates[0]}: missing, but in {MARKER}; restore the image")
        return found


def _images_folder(root: Path, images: str) -> Path:
    """``rgb/2x``, else the folder of the largest images; ``--images`` overrules it."""
    if images != ModelParams.images:
        if not (root / images).is_dir():
            raise UserError(f"--images {images}: no such folder in {root}; name one, as rgb/2x")
        return root / images
    found = {}
    for path in (root / "rgb").glob("*x"):
        if re.fullmatch(r"\d{1,4}x", path.name) and path.is_dir():
            found[int(path.name[:-1])] = path
    if not found:
        raise UserError(f"{root / 'rgb' / '2x'}: missing; put the images there")
    return found.get(2) or found[min(found)]


def _read_camera(path: Path, name: str, size: Size) -> tuple[Camera, Lens]:
    """The pinhole of an image of ``size``, and what its lens really does besides."""
    meta = read_json(path)
    if not isinstance(meta, dict):
        raise UserError(f"{path}: is not a camera; restore the file")

    def value(key: str, shape: tuple[int, ...] = (), default: Any = None) -> np.ndarray:
        given = meta.get(key, default)
        if given is None:
            raise UserError(f"{path}: has no {key!r}; restore the file")
        found = numbers(given, shape, f"{path}: {key}")
        if not (np.abs(found) < LARGEST).all():
            raise UserError(f"{path}: {key} holds NaN or endless numbers; restore the file")
        return found

    focal, aspect = float(value("focal_length")), float(value("pixel_aspect_ratio", (), 1.0))
    native = value("image_size", (2,))
    if native.min() < 1:
        raise UserError(f"{path}: image_size is {native.tolist()}; restore the file")
    scale = np.array(size) / native  # images are smaller copies
    centre = value("principal_point", (2,)) * scale
    focals = np.array([focal, focal * aspect]) * scale
    pose = np.eye(4)
    pose[:3, :3] = value("orientation", (3, 3)).T
    pose[:3, 3] = value("position", (3,))
    camera = camera_from_pose(name, size, (*focals, *centre), pose).validate(path)
    lens = Lens(
        value("radial_distortion", (3,), [0.0] * 3),
        value("tangential_distortion", (2,), [0.0] * 2),
        float(value("skew", (), 0.0)) * scale[0],
    )
    return camera, lens


def _cloud(root: Path) -> PointCloud:
    """The initial points; those of Nerfies have no colours and start grey."""
    for name in CLOUDS:
        if (root / name).exists():
            return read_ply(root / name)
    path = root / _POINTS
    if not path.exists():
        raise UserError(
            f"{root / CLOUDS[1]}: missing, and {_POINTS} too; make it with python "
            f"script/pre_hypernerf.py --videopath {root}"
        )
    xyz = read_npy(path)
    if xyz.ndim != 2 or xyz.shape[1] != 3:
        raise UserError(f"{path}: has shape {xyz.shape}, not (N, 3); make it again")
    with np.errstate(over="ignore", invalid="ignore"):  # endless numbers and NaN, refused below
        narrow = xyz.astype(np.float32)
    return checked_cloud(path, narrow, np.full(xyz.shape, 128, np.uint8))
