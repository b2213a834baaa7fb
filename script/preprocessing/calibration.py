"""Cameras that were calibrated before: what the common files say, as lenses and poses.

Read are TOML files as Anipose, Pose2Sim, Caliscope and FreeMoCap write them (a table for each
camera with ``name``, ``size``, ``matrix``, ``distortions``, ``rotation`` as a Rodrigues vector and
``translation``, world to camera), Qualisys' XML (``.qca.txt``) and folders with a COLMAP model that
has an image for each camera.
"""

from __future__ import annotations

import importlib
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType

import numpy as np
import pycolmap

from scene.colmap import LARGEST, is_model, read_poses
from script.preprocessing.colmap_tools import INSTALL
from script.preprocessing.footage import Clip
from utils.errors import UserError, brief

LARGEST_FILE = 4 << 20  # bytes; a calibration has some kilobytes
SUBPIXELS = 64  # Qualisys counts in 64ths of a pixel
WIDEST = 1 << 20  # pixels; a frame has some thousands
MILLIMETRES = 1e-3  # Qualisys' lengths, in metres
# What damaged files make of the readers and of the numbers that they hold; TOML and XML may be
# nested more deeply than Python can follow.
_DAMAGE = (
    *(OSError, ValueError, LookupError, TypeError, ArithmeticError, RuntimeError),
    ElementTree.ParseError,
)


@dataclass(frozen=True)
class Calibrated:
    """A camera's lens at the size it was calibrated at, and its pose.

    Attributes:
        name: as the file has it.
        lens: intrinsics and distortion; pixels, top left corner at (0, 0).
        world_to_camera: (4, 4) float64, OpenCV axes.
    """

    name: str
    lens: pycolmap.Camera
    world_to_camera: np.ndarray


def read_calibration(path: Path, clips: Sequence[Clip]) -> list[Calibrated]:
    """The calibrated camera of every clip, at the clips' sizes and with their names.

    Raises:
        UserError: the file is missing, damaged or of no known kind, or has no camera for a clip.
    """
    found = _read(path)
    _check_names([camera.name for camera in found], path)
    _check_names([clip.name for clip in clips], clips[0].path.parent)
    by_name = {_plain(camera.name): camera for camera in found}
    missing = [clip.name for clip in clips if _plain(clip.name) not in by_name]
    if missing:
        raise UserError(
            f"{path}: has no camera {', '.join(missing)}, only "
            f"{', '.join(camera.name for camera in found)}; name videos and cameras alike"
        )
    return [_fitted(by_name[_plain(clip.name)], clip, path) for clip in clips]


def _check_names(names: Sequence[str], source: Path) -> None:
    first: dict[str, str] = {}
    for name in names:
        plain = _plain(name)
        if plain in first:
            raise UserError(
                f"{source}: cameras {first[plain]} and {name} have one name; rename one"
            )
        first[plain] = name


def _plain(name: str) -> str:
    """cam_01, Cam01 and cam1 are the same."""
    return re.sub(r"0*(\d+)", r"\1", re.sub(r"[\W_]", "", name.lower()))


def _read(path: Path) -> list[Calibrated]:
    model = is_model(path)
    if not model and (path.is_dir() or not path.exists()):
        raise UserError(f"--calibration {path}: no such file, nor a folder with a COLMAP model")
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # endless numbers, refused below
            cameras = _from_colmap(path) if model else _from_file(path)
    except _DAMAGE as error:
        raise UserError(
            f"--calibration {path}: not a calibration ({type(error).__name__}: {brief(error)}); "
            "give a TOML of Pose2Sim or Anipose, a .qca.txt of Qualisys, or a COLMAP model's folder"
        ) from None
    if not cameras:
        raise UserError(f"--calibration {path}: holds no camera")
    return [_checked(camera, path) for camera in cameras]


def _from_file(path: Path) -> list[Calibrated]:
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError("larger than 4 MB")
    text = path.read_text(encoding="utf-8")
    return _from_xml(text) if text.lstrip().startswith("<") else _from_toml(text)


def _checked(camera: Calibrated, path: Path) -> Calibrated:
    rotation = camera.world_to_camera[:3, :3]
    numbers = np.concatenate([camera.lens.params, camera.world_to_camera.ravel()])
    focal = [camera.lens.params[i] for i in camera.lens.focal_length_idxs()]
    size = min(camera.lens.width, camera.lens.height)
    if not (np.abs(numbers) < LARGEST).all() or not min(focal) > 0 or size < 1:
        raise UserError(f"{path}: {camera.name} has no usable intrinsics or pose; calibrate again")
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-2 or np.linalg.det(rotation) < 0:
        raise UserError(f"{path}: the rotation of {camera.name} is none; calibrate again")
    return camera


def _from_toml(text: str) -> list[Calibrated]:
    tables = _toml_parser().loads(text)
    return [
        _from_table(key, table)
        for key, table in tables.items()
        if isinstance(table, dict) and "matrix" in table
    ]


def _toml_parser() -> ModuleType:
    """Python's own from 3.11 on, before that the package it was made of."""
    for name in ("tomllib", "tomli"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise UserError(f"--calibration: TOML needs Python 3.11 or the package tomli: {INSTALL}")


def _from_table(key: str, table: dict) -> Calibrated:
    matrix = np.array(table["matrix"], dtype=np.float64).reshape(3, 3)
    width, height = (int(v) for v in table["size"])
    distortion = [float(v) for v in table.get("distortions", [])]
    focal_and_centre = [matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]]
    lens = opencv_lens(
        (width, height), focal_and_centre, distortion, fisheye=bool(table.get("fisheye", False))
    )
    pose = np.eye(4)
    pose[:3, :3] = pycolmap.Rotation3d(axis_angle=_vector(table["rotation"])).matrix()
    pose[:3, 3] = _vector(table["translation"])
    return Calibrated(str(table.get("name", key)), lens, pose)


def _vector(values: object) -> np.ndarray:
    return np.array(values, dtype=np.float64).reshape(3)


def opencv_lens(
    size: tuple[int, int],
    intrinsics: Sequence[float],
    distortion: Sequence[float],
    *,
    fisheye: bool = False,
) -> pycolmap.Camera:
    """The lens of OpenCV's parameters.

    Args:
        size: (width, height) in pixels.
        intrinsics: fx, fy, cx, cy; OpenCV has pixel centres at integers, COLMAP at halves, so that
            half a pixel is added to the centre.
        distortion: k1, k2, p1, p2 and k3 to k6; for a fisheye k1 to k4. Missing ones are 0.

    Raises:
        ValueError: more coefficients than the model has, or no size.
    """
    fx, fy, cx, cy = (float(v) for v in intrinsics)
    most = 4 if fisheye else 8
    if len(distortion) > most:
        raise ValueError(f"{len(distortion)} distortion coefficients, at most {most} are known")
    k = [*distortion, *[0.0] * (most - len(distortion))]
    parameters = [fx, fy, cx + 0.5, cy + 0.5, *k]
    if fisheye:
        model = "OPENCV_FISHEYE"
    elif any(k[4:]):
        model = "FULL_OPENCV"
    else:
        model, parameters = "OPENCV", parameters[:8]
    return _lens(model, size, parameters)


def _lens(model: str, size: tuple[int, int], parameters: Sequence[float]) -> pycolmap.Camera:
    """The lens; pycolmap itself prints errors where a size is none.

    Raises:
        ValueError: the size is none.
    """
    if not all(1 <= length < WIDEST for length in size):
        raise ValueError(f"a camera has the size {brief(' x '.join(map(str, size)))}")
    return pycolmap.Camera(model=model, width=size[0], height=size[1], params=parameters)


def _from_xml(text: str) -> list[Calibrated]:
    """Qualisys: rows of the matrix are the camera's axes right, up, backwards in the world."""
    if "<!" in text:  # document types and entities: a calibration has none
        raise ValueError("declares entities")
    return [_from_element(camera) for camera in ElementTree.fromstring(text).iter("camera")]


def _from_element(camera: ElementTree.Element) -> Calibrated:
    transform = _numbers(camera, "transform")
    lens = _numbers(camera, "intrinsic")
    video = _numbers(camera, "fov_video_max")
    axes = np.array([[transform[f"r{i}{j}"] for j in (1, 2, 3)] for i in (1, 2, 3)])
    centre = MILLIMETRES * np.array([transform[axis] for axis in "xyz"])
    pose = np.eye(4)
    pose[:3, :3] = np.diag([1.0, -1.0, -1.0]) @ axes
    pose[:3, 3] = -pose[:3, :3] @ centre
    size = (int(video["right"] - video["left"]) + 1, int(video["bottom"] - video["top"]) + 1)
    names = ("focalLengthU", "focalLengthV", "centerPointU", "centerPointV")
    intrinsics = [lens[name] / SUBPIXELS for name in names]
    names = ("radialDistortion1", "radialDistortion2", "tangentalDistortion1",
             "tangentalDistortion2", "radialDistortion3")  # fmt: skip
    distortion = [lens[name] for name in names]
    return Calibrated(camera.attrib["serial"], opencv_lens(size, intrinsics, distortion), pose)


def _numbers(camera: ElementTree.Element, tag: str) -> dict[str, float]:
    element = camera.find(tag)
    if element is None:
        raise ValueError(f"a camera has no <{tag}>")
    return {key: float(value) for key, value in element.attrib.items()}


def _from_colmap(folder: Path) -> list[Calibrated]:
    lenses, images = read_poses(folder)
    cameras = []
    for image in images:
        path = PurePosixPath(image.name)
        lens = lenses[image.camera_id]
        cameras.append(
            Calibrated(
                path.parent.name or path.stem,
                _lens(lens.model, (lens.width, lens.height), lens.params),
                np.linalg.inv(image.camera_to_world()),
            )
        )
    return cameras


def _fitted(camera: Calibrated, clip: Clip, path: Path) -> Calibrated:
    """For frames of the clip's size: scaled where the shape is the same, else cropped.

    Encoders cut a few rows or columns off where a size is no multiple of 16; no more is accepted.

    Raises:
        UserError: neither.
    """
    lens, (width, height) = camera.lens, clip.size
    scale = width / lens.width
    fitted = pycolmap.Camera(lens.todict())
    if abs(height / lens.height / scale - 1) < 2e-3:
        fitted.rescale(width, height)
    elif 0 <= lens.width - width < 16 and 0 <= lens.height - height < 16:
        fitted.width, fitted.height = width, height
    else:
        raise UserError(
            f"{path}: {camera.name} was calibrated at {lens.width} x {lens.height}, but "
            f"{clip.path} has {width} x {height}; calibrate at the size that is filmed"
        )
    return Calibrated(clip.name, fitted, camera.world_to_camera)
