"""script/preprocessing/calibration.py with damaged files: a `UserError`, or cameras that work."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from script.preprocessing.calibration import read_calibration
from script.preprocessing.footage import Clip
from utils.errors import UserError

pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
CASES = 400  # of each kind of file

_TABLE = """[cam_{i}]
name = "cam_{i}"
size = [ 640, 480,]
matrix = [ [ 600.5, 0.0, 320.25,], [ 0.0, 601.0, 239.5,], [ 0.0, 0.0, 1.0,],]
distortions = [ -0.1, 0.02, 0.001, -0.002,]
rotation = [ 0.1, -0.{i}, 0.3,]
translation = [ 0.5, {i}.25, 3.0,]
fisheye = {fisheye}

"""
_CAMERA = """  <camera active="1" serial="cam{i}" model="Miqus">
   <fov_video_max left="0" top="0" right="639" bottom="479"/>
   <transform x="{i}500.0" y="-200.0" z="1200.0" r11="1" r12="0" r13="0"
    r21="0" r22="0.8" r23="0.6" r31="0" r32="-0.6" r33="0.8"/>
   <intrinsic focalLengthU="38432.0" focalLengthV="38464" centerPointU="20480.5"
    centerPointV="15328" radialDistortion1="-0.1" radialDistortion2="0.05"
    radialDistortion3="0.0" tangentalDistortion1="0.001" tangentalDistortion2="-0.001"/>
  </camera>
"""
TOML = "".join(_TABLE.format(i=i, fisheye=str(i == 2).lower()) for i in range(3))
TOML += "[metadata]\nadjusted = true\nerror = 0.21\n"
XML = '<?xml version="1.0"?>\n<calibration created="2026-11-01">\n <cameras>\n'
XML += "".join(_CAMERA.format(i=i) for i in range(3)) + " </cameras>\n</calibration>\n"
CLIPS = [Clip(f"cam{i:02d}", Path(f"cam{i:02d}.mp4"), (640, 480), 9, 30.0) for i in range(3)]

_WORDS = (
    *("nan", "-nan", "inf", "-1", "1e400", "1e308", "1e-320", "0", "9" * 30, "x", "", "true"),
    *('"640"', "[]", "[[1.0]]", "{}", "2026-11-01", "0x10", "-9223372036854775809", "1_0"),
    *("[" * 3000, "<a>" * 3000, "&amp;", "&x;", "<!DOCTYPE a>", "\0", "\ud7ff", "\\u0000"),
)


def _cut(text: str, rng: np.random.Generator) -> str:
    return text[: rng.integers(len(text))]


def _without(text: str, rng: np.random.Generator) -> str:
    at = int(rng.integers(len(text)))
    return text[:at] + text[at + int(rng.integers(1, 120)) :]


def _twice(text: str, rng: np.random.Generator) -> str:
    at = int(rng.integers(len(text)))
    return text[: at + int(rng.integers(1, 300))] + text[at:]


def _another_word(text: str, rng: np.random.Generator) -> str:
    """A number or a piece of text between spaces, commas or quotes becomes another."""
    marks = [i for i, c in enumerate(text) if c in ' ,"=[]\n']
    k = int(rng.integers(len(marks) - 1))
    return text[: marks[k] + 1] + _WORDS[rng.integers(len(_WORDS))] + text[marks[k + 1] :]


def _another_value(text: str, rng: np.random.Generator) -> str:
    """All that follows a key is another value."""
    lines = text.split("\n")
    at = int(rng.integers(len(lines)))
    key, equals, _ = lines[at].partition("=")
    lines[at] = key + equals + " " + _WORDS[rng.integers(len(_WORDS))]
    return "\n".join(lines)


def _other_bytes(text: str, rng: np.random.Generator) -> bytes:
    data = bytearray(text.encode())
    for _ in range(int(rng.integers(1, 5))):
        data[rng.integers(len(data))] = rng.integers(256)
    return bytes(data)


def _something_else(text: str, rng: np.random.Generator) -> bytes:
    contents = (b"", b"\n", b"<", b"[", b"<a/>", b"\xff\xfe<", rng.bytes(500), bytes(500), b"a=1")
    return contents[rng.integers(len(contents))]


_DAMAGES: tuple[Callable, ...] = (_cut, _without, _twice, _other_bytes, _something_else)
_DAMAGES += (_another_word,) * 5 + (_another_value,) * 3


def _fault(path: Path) -> str | None:
    """What is wrong with how a file is read."""
    try:
        cameras = read_calibration(path, CLIPS)
    except UserError as error:
        message = str(error)
        whole = len(message.splitlines()) == 1 and path.name in message and len(message) < 1300
        return None if whole else f"a bad message: {message[:200]!r}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    if [camera.name for camera in cameras] != [clip.name for clip in CLIPS]:
        return f"cameras {[camera.name for camera in cameras]}"
    for camera in cameras:
        numbers = np.concatenate([camera.lens.params, camera.world_to_camera.ravel()])
        rotation = camera.world_to_camera[:3, :3]
        if not (np.abs(numbers) < 1e30).all() or min(camera.lens.params[:2]) <= 0:
            return f"{camera.name} with {numbers}"
        if (camera.lens.width, camera.lens.height) != CLIPS[0].size:
            return f"{camera.name} of {camera.lens.width} x {camera.lens.height}"
        if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-2:
            return f"{camera.name} rotated by {rotation}"
    return None


@pytest.mark.parametrize(("name", "text"), [("calib.toml", TOML), ("rig.qca.txt", XML)])
def test_damaged_calibrations_are_refused_by_name_or_read_whole(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    assert len(read_calibration(path, CLIPS)) == 3
    faults = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for case in range(CASES):
            rng = np.random.default_rng([len(name), case])
            content = _DAMAGES[rng.integers(len(_DAMAGES))](text, rng)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
            if fault := _fault(path):
                faults[case] = fault
    assert not faults, "\n".join(f"case {case}: {fault}" for case, fault in faults.items())


@pytest.mark.parametrize(
    ("name", "old", "new", "match"),
    [
        ("calib.toml", "size = [ 640", "size = [ inf", "OverflowError"),
        ("calib.toml", "size = [ 640, 480", "size = [ 640, 0", "the size 640 x 0"),
        ("calib.toml", "size = [ 640", "size = [ 1e300", "the size 1000"),
        ("calib.toml", "[ 0.1,", "[ 0.1" + "[" * 3000, "Error"),
        ("calib.toml", "[ 0.5,", "[ 1e308,", "no usable intrinsics or pose"),
        ("rig.qca.txt", 'bottom="479"', 'bottom="-1"', "the size 640 x 0"),
        ("rig.qca.txt", 'right="639"', 'right="inf"', "OverflowError"),
        ("rig.qca.txt", 'r11="1"', 'r11="nan"', "no usable intrinsics or pose"),
        ("rig.qca.txt", 'z="1200.0"', 'z="1e400"', "no usable intrinsics or pose"),
    ],
)
def test_numbers_that_no_camera_has_are_refused_quietly(tmp_path, capfd, name, old, new, match):
    path = tmp_path / name
    path.write_text((TOML if name == "calib.toml" else XML).replace(old, new))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match=f"{name}: .*{match}"):
            read_calibration(path, CLIPS)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("lens", "match"),
    [
        ("640 480 nan 600 320 240", "no usable intrinsics"),
        ("640 480 -5 600 320 240", "no usable intrinsics"),
        ("9" * 30 + " 480 600 600 320 240", "a camera has the size 999"),
        ("640 0 600 600 320 240", "a camera has the size 640 x 0"),
    ],
)
def test_a_lens_of_a_colmap_model_that_is_none_is_refused(tmp_path, capfd, lens, match):
    (tmp_path / "cameras.txt").write_text(f"1 PINHOLE {lens}\n")
    rows = (f"{i + 1} 1 0 0 0 {i} 0 0 1 cam{i:02d}.png\n\n" for i in range(3))
    (tmp_path / "images.txt").write_text("".join(rows))
    with pytest.raises(UserError, match=match):
        read_calibration(tmp_path, CLIPS)
    assert capfd.readouterr().err == ""
