"""COLMAP models: cameras, posed images and points, from text or binary files.

The format is that of COLMAP's documentation ("Output Format"). Every count that a file claims is
checked against its size before anything is allocated, and a file that ends early is an error that
names it; nothing is read that has no use here (feature tracks are stepped over).
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np

from scene.point_cloud import PointCloud, checked_cloud
from utils.errors import UserError, brief
from utils.images import natural_key

NAMES = ("cameras", "images", "points3D")
# Name and number of parameters of each model, in the order of the binary files' numbers.
MODELS = (
    ("SIMPLE_PINHOLE", 3),
    ("PINHOLE", 4),
    ("SIMPLE_RADIAL", 4),
    ("RADIAL", 5),
    ("OPENCV", 8),
    ("OPENCV_FISHEYE", 8),
    ("FULL_OPENCV", 12),
    ("FOV", 5),
    ("SIMPLE_RADIAL_FISHEYE", 4),
    ("RADIAL_FISHEYE", 5),
    ("THIN_PRISM_FISHEYE", 12),
)
LARGEST = 1e30  # of a pose's numbers: squares of larger ones do not fit float32
_COUNTS = dict(MODELS)
# Models that are a pinhole when all parameters after the intrinsics are zero; fisheyes never are.
_ONE_FOCAL = ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL")
_TWO_FOCALS = ("PINHOLE", "OPENCV", "FULL_OPENCV")


@dataclass(frozen=True)
class ColmapCamera:
    """Intrinsics as the file has them; pixels, the top left corner at (0, 0)."""

    model: str
    width: int
    height: int
    params: tuple[float, ...]

    def pinhole(self) -> tuple[float, float, float, float] | None:
        """fx, fy, cx, cy, or None where the lens is distorted."""
        if self.model in _ONE_FOCAL:
            f, cx, cy, *rest = self.params
            intrinsics = (f, f, cx, cy)
        elif self.model in _TWO_FOCALS:
            fx, fy, cx, cy, *rest = self.params
            intrinsics = (fx, fy, cx, cy)
        else:
            return None
        return None if any(rest) else intrinsics


@dataclass(frozen=True)
class ColmapImage:
    """A registered image."""

    name: str
    camera_id: int
    quaternion: tuple[float, float, float, float]  # wxyz, world to camera
    translation: tuple[float, float, float]  # world to camera

    def camera_to_world(self) -> np.ndarray:
        """(4, 4) with OpenCV axes."""
        w, x, y, z = np.array(self.quaternion) / np.linalg.norm(self.quaternion)
        rotation = np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ]
        )
        pose = np.eye(4)
        pose[:3, :3] = rotation.T
        pose[:3, 3] = -rotation.T @ np.array(self.translation)
        return pose


@dataclass(frozen=True)
class ColmapModel:
    """What a model folder holds; ``images`` are in the natural order of their names.

    ``paths`` are the three files, in the order of `NAMES`.
    """

    cameras: dict[int, ColmapCamera]
    images: list[ColmapImage]
    points: PointCloud
    paths: tuple[Path, ...] = ()


def find_model(root: Path) -> Path | None:
    """A scene's model: in ``sparse/0``, ``sparse`` or ``colmap/sparse/0``, the first there is."""
    folders = (root / name for name in ("sparse/0", "sparse", "colmap/sparse/0"))
    return next((folder for folder in folders if is_model(folder)), None)


def is_model(folder: Path) -> bool:
    """Whether a model's list of cameras is in this folder."""
    return any((folder / f"cameras{suffix}").exists() for suffix in (".bin", ".txt"))


def read_model(folder: Path) -> ColmapModel:
    """Reads the three files of a model, binary ones before text.

    Raises:
        UserError: a file is missing or damaged, or the files do not belong together.
    """
    cameras, images = read_poses(folder)
    return ColmapModel(cameras, images, read_points(folder), tuple(model_paths(folder)))


def read_poses(folder: Path) -> tuple[dict[int, ColmapCamera], list[ColmapImage]]:
    """The cameras of a model by number, and its images in the natural order of their names.

    Raises:
        UserError: a file is missing or damaged, or the two do not belong together.
    """
    lenses, pictures, _ = model_paths(folder)
    binary = lenses.suffix == ".bin"
    cameras = _read(lenses, _binary_cameras if binary else _text_cameras)
    images = _read(pictures, _binary_images if binary else _text_images)
    if not images:
        raise UserError(f"{pictures}: registers no image; run structure from motion again")
    names = Counter(image.name for image in images)
    for image in images:
        if names[image.name] > 1:
            raise UserError(f"{pictures}: registers {image.name} twice; copy the model again")
        if image.camera_id not in cameras:
            raise UserError(
                f"{pictures}: {image.name} has camera {image.camera_id}, which {lenses.name} "
                "lacks; copy the model again"
            )
        numbers = np.array((*image.quaternion, *image.translation))
        if not ((np.abs(numbers) < LARGEST).all() and np.abs(numbers[:4]).max() > 1e-6):
            raise UserError(f"{pictures}: the pose of {image.name} is no pose; make it again")
    return cameras, images


def read_points(folder: Path) -> PointCloud:
    """The points of a model.

    Raises:
        UserError: the file is missing or damaged, or holds no point.
    """
    path = model_paths(folder)[2]
    reader = _binary_points if path.suffix == ".bin" else _text_points
    return checked_cloud(path, *_read(path, reader))


def model_paths(folder: Path) -> list[Path]:
    """The three files: binary ones if the cameras are."""
    suffix = next((s for s in (".bin", ".txt") if (folder / f"cameras{s}").exists()), ".bin")
    return [folder / f"{name}{suffix}" for name in NAMES]


def _read(path: Path, reader):
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); copy the model again"
        ) from None
    try:
        with np.errstate(over="ignore"):  # what overflows becomes infinite, which is refused
            return reader(data)
    except (ValueError, KeyError, IndexError, struct.error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged ({brief(error)}); copy the model again") from None


def _in_order(images: list[ColmapImage]) -> list[ColmapImage]:
    """By name, frame 2 before frame 10; a ValueError where a name's digits are no number's."""
    return sorted(images, key=lambda image: natural_key(image.name))


# ---- binary -------------------------------------------------------------------------------------


class _Cursor:
    """Reads little-endian values one after the other."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, form: str) -> tuple:
        values = struct.unpack_from("<" + form, self.data, self.at)  # struct.error at the end
        self.at += struct.calcsize("<" + form)
        return values

    def skip(self, size: int) -> None:
        if size > len(self.data) - self.at:
            raise ValueError(f"ends at byte {len(self.data)}, where more is promised")
        self.at += size

    def count(self, smallest: int) -> int:
        """A number of records that take ``smallest`` bytes each at least."""
        (count,) = self.take("Q")
        if count * smallest > len(self.data) - self.at:
            raise ValueError(f"claims {count} records, more than the file has room for")
        return count

    def finish(self) -> None:
        """The end is where the counts say that it is."""
        if self.at != len(self.data):
            raise ValueError(f"{len(self.data) - self.at} bytes follow the last record")

    def text(self) -> str:
        end = self.data.index(b"\0", self.at)
        text = self.data[self.at : end].decode("utf-8")
        self.at = end + 1
        return text


def _binary_cameras(data: bytes) -> dict[int, ColmapCamera]:
    cursor, cameras = _Cursor(data), {}
    for _ in range(cursor.count(24)):
        number, model, width, height = cursor.take("iiQQ")
        if not 0 <= model < len(MODELS):
            raise ValueError(f"camera {number} has the unknown model {model}")
        name, count = MODELS[model]
        cameras[number] = ColmapCamera(name, width, height, cursor.take(f"{count}d"))
    cursor.finish()
    return cameras


def _binary_images(data: bytes) -> list[ColmapImage]:
    cursor, images = _Cursor(data), []
    for _ in range(cursor.count(73)):
        _, *pose, camera = cursor.take("i7di")
        name = cursor.text()
        cursor.skip(24 * cursor.count(24))
        images.append(ColmapImage(name, camera, tuple(pose[:4]), tuple(pose[4:])))
    cursor.finish()
    return _in_order(images)


def _binary_points(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    cursor = _Cursor(data)
    count = cursor.count(51)
    xyz, rgb = np.empty((count, 3), np.float32), np.empty((count, 3), np.uint8)
    for row in range(count):
        values = cursor.take("Q3d3Bd")
        xyz[row], rgb[row] = values[1:4], values[4:7]
        cursor.skip(8 * cursor.count(8))
    cursor.finish()
    return xyz, rgb


# ---- text ---------------------------------------------------------------------------------------


def _lines(data: bytes) -> tuple[list[str], int | None]:
    """Lines without comments, and the number of records if the comments tell it, as COLMAP's do.

    Empty lines stay, since an image may have no features.

    Raises:
        ValueError: no text, or a file of COLMAP's without a count or the end of its last line.
    """
    if b"\0" in data:
        raise ValueError("holds zero bytes, which no text does")
    lines = data.decode("utf-8").splitlines()
    said = next((line for line in lines if line.startswith("# Number of ")), None)
    match = said and re.match(r"# Number of \w+: (\d{1,18})\b", said)
    if said and not match:
        raise ValueError("its comment 'Number of' has no number; if it was edited, remove that")
    count = int(match[1]) if match else None
    if count is not None and not data.endswith(b"\n"):
        raise ValueError("ends within a line")
    return [line for line in lines if not line.startswith("#")], count


def _check_count(found: int, count: int | None) -> None:
    if count is not None and found != count:
        raise ValueError(
            f"a comment in it promises {count} and {found} follow; if it was edited, remove that"
        )


def _text_cameras(data: bytes) -> dict[int, ColmapCamera]:
    cameras = {}
    lines, count = _lines(data)
    for line in filter(str.strip, lines):
        number, model, width, height, *params = line.split()
        if len(params) != _COUNTS[model]:
            raise ValueError(f"camera {number} has {len(params)} parameters for {model}")
        cameras[int(number)] = ColmapCamera(
            model, int(width), int(height), tuple(map(float, params))
        )
    _check_count(len(cameras), count)
    return cameras


def _text_images(data: bytes) -> list[ColmapImage]:
    images = []
    lines, count = _lines(data)
    while lines and not lines[0].strip():
        lines.pop(0)
    for line, features in zip_longest(lines[::2], lines[1::2], fillvalue=""):
        if not line.strip():
            continue
        words = line.split(maxsplit=9)
        pose = tuple(map(float, words[1:8]))
        images.append(ColmapImage(words[9].strip(), int(words[8]), pose[:4], pose[4:]))
        if len(features.split()) % 3:
            raise ValueError(f"the features of {images[-1].name} are not x, y, point each")
    _check_count(len(images), count)
    return _in_order(images)


def _text_points(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    lines, count = _lines(data)
    rows = [line.split() for line in filter(str.strip, lines)]
    for number, row in enumerate(rows):
        if len(row) < 8 or len(row) % 2:
            raise ValueError(f"point {number} is not id, xyz, rgb, error and pairs of its track")
    table = np.array([row[1:7] for row in rows], dtype=np.float64).reshape(len(rows), 6)
    if not ((table[:, 3:] >= 0) & (table[:, 3:] <= 255)).all():
        raise ValueError("holds colours that are not from 0 to 255")
    _check_count(len(rows), count)
    return table[:, :3].astype(np.float32), table[:, 3:].astype(np.uint8)
