"""What every format's loader returns, and the small readers they share."""

from __future__ import annotations

import io
import json
import lzma
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from arguments_MoDE.config import ModelParams
from scene.cameras import Camera
from scene.frames import FrameSource
from scene.point_cloud import PointCloud
from utils.errors import UserError, brief

_NPZ_BUDGET = 4 << 30  # unpacked bytes
# What numpy raises for damaged arrays; it reads their headers as Python text.
_ARRAY_ERRORS = (OSError, ValueError, TypeError, EOFError, SyntaxError, tokenize.TokenError)
# And for archives: damage, a missing member, other packing, a password.
_ARCHIVE_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, KeyError, MemoryError),
    *(NotImplementedError, RuntimeError),
)


@dataclass(frozen=True)
class Shot:
    """A view before its resolution is chosen: the camera has the file's own size."""

    camera: Camera
    camera_index: int
    frame_index: int
    time: float
    slot: tuple[int, int]  # (source, frame) in Capture.sources


@dataclass
class Capture:
    """What a format's loader found in a scene folder.

    Attributes:
        kind: the format's short name.
        camera_names: of the rig, training and held-out cameras alike.
        sources: where the frames are.
        train, test: shots by camera, then by time.
        frame_count: distinct times.
        points: the initial cloud.
        poses_file: the file to name when poses are at fault.
        focus_depth: that a spiral path should look at, world units; None: found from the poses.
    """

    kind: str
    camera_names: list[str]
    frame_count: int
    points: PointCloud
    poses_file: Path
    sources: list[FrameSource] = field(default_factory=list)
    train: list[Shot] = field(default_factory=list)
    test: list[Shot] = field(default_factory=list)
    focus_depth: float | None = None


def note(message: str) -> None:
    """Tells the user something that is no error, in one line."""
    print(f"note: {message}", file=sys.stderr)


def read_json(path: Path) -> Any:
    """Parses a JSON file.

    Raises:
        UserError: the file is missing or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; the scene folder is incomplete") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not readable JSON ({brief(error)}); restore the file") from None


def read_npy(path: Path) -> np.ndarray:
    """Reads a .npy file of numbers as float64; pickled objects are refused.

    Raises:
        UserError: the file is missing, damaged, or holds no numbers.
    """
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)  # mapping checks the file's size
        return np.array(values, dtype=np.float64)
    except FileNotFoundError:
        raise UserError(f"{path}: missing; the scene folder is incomplete") from None
    except _ARRAY_ERRORS as error:
        raise UserError(
            f"{path}: not an array of numbers ({brief(error)}); make it again"
        ) from None


def read_npz(path: Path, key: str) -> np.ndarray:
    """Reads one array of numbers of a .npz file; pickled objects are refused.

    Raises:
        UserError: the file is missing or damaged, or has no such array.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > _NPZ_BUDGET:
                raise ValueError("it would unpack to more than 4 GiB")
            member = archive.read(f"{key}.npy")  # whole, so that its checksum is looked at
        array = np.load(io.BytesIO(member), allow_pickle=False)
        with np.errstate(invalid="ignore"):  # signalling NaN is NaN
            return np.asarray(array) + np.float32(0)  # objects and strings fail here
    except FileNotFoundError:
        raise UserError(f"{path}: missing; the scene folder is incomplete") from None
    except (*_ARRAY_ERRORS, *_ARCHIVE_ERRORS) as error:
        raise UserError(
            f"{path}: has no readable array {key!r} ({brief(error)}); make it again"
        ) from None


def numbers(value: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    """``value`` from a parsed file as a float64 array of this shape; -1 in the shape is any length.

    Raises:
        UserError: it has another shape or holds something else than numbers; ``what`` names it.
    """
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):  # JSON has whole numbers of any length
        array = None
    if array is None or array.ndim != len(shape):
        found = "something else" if array is None else f"shape {array.shape}"
    elif any(n not in (-1, m) for n, m in zip(shape, array.shape, strict=True)):
        found = f"shape {array.shape}"
    else:
        return array
    wanted = " x ".join("any" if n < 0 else str(n) for n in shape)
    raise UserError(f"{what} should be numbers of shape {wanted} but is {found}; repair the file")


def clip_frames(total: int, model: ModelParams, source: object) -> range:
    """The frames of a clip of ``total`` that --start_frame, --duration and --frame_step choose.

    Raises:
        UserError: a setting is out of range, or nothing is left.
    """
    if model.frame_step < 1 or model.start_frame < 0 or model.duration < 0:
        raise UserError(
            "--frame_step must be at least 1, --start_frame and --duration at least 0; got "
            f"{model.frame_step}, {model.start_frame}, {model.duration}"
        )
    chosen = range(model.start_frame, total, model.frame_step)
    if not chosen:
        raise UserError(
            f"--start_frame {model.start_frame} leaves nothing of the {total} frames of {source}"
        )
    if model.duration and len(chosen) > model.duration:
        note(f"using {model.duration} of {len(chosen)} frames (--duration 0 uses all)")
        chosen = chosen[: model.duration]
    return chosen


def frame_time(index: int, count: int, convention: str) -> float:
    """Time of frame ``index`` of ``count``: i/(F-1) by default, i/F as published."""
    if convention == "published":
        return index / count
    return index / (count - 1) if count > 1 else 0.0


def choose_cameras(
    wanted: Sequence[str], names: Sequence[str], default: Sequence[int]
) -> list[int]:
    """Rows of the held-out cameras, given by name or index; ``default`` if none are given.

    Raises:
        UserError: no such camera, or none is left for training.
    """
    rows = {_camera_row(str(token), names) for token in wanted} if wanted else set(default)
    if len(rows) >= len(names):
        raise UserError(
            f"--test_cameras holds out all {len(names)} cameras; leave at least one for training"
        )
    return sorted(rows)


def _camera_row(token: str, names: Sequence[str]) -> int:
    if token in names:
        return list(names).index(token)
    if token.isdecimal() and int(token) < len(names):
        return int(token)
    raise UserError(
        f"--test_cameras {token}: no such camera; there are {', '.join(names)} "
        f"(or 0 to {len(names) - 1})"
    )
