"""Damages the files of small scenes in thousands of ways, loads them, and judges what comes of it.

python tests/scene/datasets/fuzzing.py --cases 5000 --seed 0
python tests/scene/datasets/fuzzing.py --cases 5000 --scenes multiview hypernerf
python tests/scene/datasets/fuzzing.py --only 0:4711        (a case that failed, alone)

A case is good if, within seconds and two gigabytes, the scene is refused by a `UserError` of one
line that names the altered file, or is read with a result that is whole (`_broken`) and right
(`_wrong`): the same as before, or another in a way that the file's format has no means to notice.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import count, islice
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[3]), str(Path(__file__).parent)]

import builders
from PIL import Image

from scene import Scene
from utils.errors import UserError

SECONDS = 5.0  # for one case
MEMORY = 2 << 30  # bytes that a case may add to the process's address space
TEXT = (".json", ".txt", ".ascii.ply")


# ---- the scenes ---------------------------------------------------------------------------------


def _blender_ascii(root: Path) -> None:
    """A D-NeRF scene whose cloud is ascii."""
    builders.blender_scene(root, frames=4, cameras=2)
    cloud = builders.cloud(30)
    lines = ["ply", "format ascii 1.0", f"element vertex {len(cloud)}"]
    lines += [f"property float {axis}" for axis in "xyz"]
    lines += [f"property uchar {name}" for name in ("red", "green", "blue")]
    lines += ["end_header"]
    for xyz, rgb in zip(cloud.xyz, cloud.rgb, strict=True):
        lines.append(" ".join(map(str, (*xyz.tolist(), *rgb.tolist()))))
    (root / "fused.ply").write_text("\n".join(lines) + "\n")


def _panoptic_packed(root: Path) -> None:
    """A PanopticSports scene whose cloud is compressed."""
    builders.panoptic_scene(root, cameras=3, frames=1)
    with np.load(root / "init_pt_cld.npz") as arrays:
        data = arrays["data"]
    np.savez_compressed(root / "init_pt_cld.npz", data=data)


def _colmap_jpeg(root: Path) -> None:
    """A COLMAP scene whose photos are JPEGs."""
    builders.colmap_scene(root, frames=3)
    for path in (root / "images").glob("*.png"):
        Image.open(path).save(path.with_suffix(".jpg"), quality=90)
        path.unlink()


def _hypernerf_grey(root: Path) -> None:
    """A HyperNeRF capture whose points have no colours."""
    builders.hypernerf_scene(root, frames=7)
    (root / "points3D_downsample.ply").unlink()
    np.save(root / "points.npy", builders.cloud(50).xyz.astype(np.float64))


def _nerfstudio_bare(root: Path) -> None:
    """A rig of nerfstudio's without times and without a cloud."""
    builders.nerfstudio_scene(root, frames=2, cameras=3, times=False)
    builders.edit_json(root / "transforms.json", lambda meta: meta.pop("ply_file_path"))
    (root / "sparse_pc.ply").unlink()


def _nerfstudio_and_model(root: Path, *, times: bool) -> None:
    """A folder with transforms.json and a COLMAP model; the times decide which one is read."""
    truth = builders.nerfstudio_scene(root, frames=4, times=times)
    names = [f"frame_{i:05d}.png" for i in range(4)]
    builders.write_colmap(
        root / "sparse/0", truth, builders.cloud(60), binary=True, model="PINHOLE", names=names
    )


def _multiview_and_transforms(root: Path) -> None:
    """A rig with a model where nerfstudio would have it, and the transforms.json of nerfstudio."""
    truth = builders.nerfstudio_scene(root, frames=2, cameras=3)
    names = [f"eye{i}.png" for i in range(3)]
    builders.write_colmap(
        root / "colmap/sparse/0",
        *(truth, builders.cloud(60)),
        **{"binary": False, "model": "PINHOLE", "names": names},
    )


def _masked(root: Path) -> None:
    """Frames of which one has a mask of its own, and one camera one for all."""
    builders.n3v_scene(root, cameras=3, frames=2, layout="images")
    mask = np.zeros(builders.SIZE[::-1], np.uint8)
    mask[8:40, 10:30] = 255
    builders.save(root / "masks/cam01.png", mask)
    builders.save(root / "masks/cam02/0001.png", mask[::-1])


@dataclass(frozen=True)
class Target:
    """A scene to damage: its builder and the files of it that are altered."""

    name: str
    build: Callable[[Path], Any]
    files: tuple[str, ...]


# A new format is a line here.
TARGETS = (
    Target(
        "n3v",
        partial(builders.n3v_scene, cameras=3, frames=3),
        ("cam01.mp4", "poses_bounds.npy", "points3D_downsample.ply"),
    ),
    Target(
        "n3v-images",
        partial(builders.n3v_scene, cameras=3, frames=2, layout="images"),
        ("images/cam01/0001.png", "images/cam02/0000.png", "poses_bounds.npy"),
    ),
    Target(
        "blender",
        partial(builders.blender_scene, frames=4, cameras=2),
        ("transforms_train.json", "transforms_test.json", "train/r_0001.png", "fused.ply"),
    ),
    Target("blender-ascii", _blender_ascii, ("fused.ply",)),
    Target(
        "panoptic",
        partial(builders.panoptic_scene, cameras=3, frames=2),
        ("train_meta.json", "test_meta.json", "init_pt_cld.npz", "ims/1/000001.png"),
    ),
    Target("panoptic-packed", _panoptic_packed, ("init_pt_cld.npz",)),
    Target(
        "colmap",
        _colmap_jpeg,
        (
            "sparse/0/cameras.bin",
            "sparse/0/images.bin",
            "sparse/0/points3D.bin",
            "images/0001.jpg",
        ),
    ),
    Target(
        "colmap-text",
        partial(builders.colmap_scene, frames=3, binary=False),
        ("sparse/0/cameras.txt", "sparse/0/images.txt", "sparse/0/points3D.txt"),
    ),
    Target(
        "multiview",
        partial(builders.multiview_scene, cameras=3, frames=2),
        (
            *("sparse/0/cameras.txt", "sparse/0/images.txt", "sparse/0/points3D.txt"),
            "images/cam01/0001.png",
        ),
    ),
    Target(
        "multiview-published",
        partial(builders.multiview_scene, cameras=3, frames=2, layout="published"),
        ("sparse_/cameras.bin", "sparse_/images.bin", "points3D_multipleview.ply"),
    ),
    Target(
        "technicolor",
        partial(builders.technicolor_scene, cameras=4, frames=2),
        ("cameras_parameters.txt", "Toy_undist_00152_02.png"),
    ),
    Target(
        "technicolor-images",
        partial(builders.technicolor_scene, cameras=3, frames=2, layout="images"),
        ("cameras_parameters.txt",),
    ),
    Target(
        "hypernerf",
        _hypernerf_grey,
        (
            *("dataset.json", "metadata.json", "scene.json", "camera/0_000002.json"),
            *("camera/0_000004.json", "points.npy", "rgb/2x/0_000004.png"),
        ),
    ),
    Target(
        "hypernerf-rig",
        partial(builders.hypernerf_scene, frames=3, rig_of_two=True),
        ("dataset.json", "metadata.json"),
    ),
    Target(
        "nerfstudio",
        partial(builders.nerfstudio_scene, frames=4),
        ("transforms.json", "sparse_pc.ply", "images/frame_00001.png"),
    ),
    Target("nerfstudio-bare", _nerfstudio_bare, ("transforms.json",)),
    # Folders that are of two formats: damage must not make the one the other.
    Target(
        "nerfstudio-model",
        partial(_nerfstudio_and_model, times=True),
        ("transforms.json", "sparse/0/images.bin"),
    ),
    Target(
        "colmap-transforms",
        partial(_nerfstudio_and_model, times=False),
        ("transforms.json", "sparse/0/cameras.bin", "sparse/0/images.bin"),
    ),
    Target(
        "multiview-transforms",
        _multiview_and_transforms,
        ("colmap/sparse/0/cameras.txt", "colmap/sparse/0/images.txt", "transforms.json"),
    ),
    Target("masks", _masked, ("masks/cam01.png", "masks/cam02/0001.png")),
)
PAIRS = [(target, file) for target in TARGETS for file in target.files]


# ---- the damage ---------------------------------------------------------------------------------

Damage = tuple[str, bytes | None]  # what was done, and the new content; None is a folder


def _span(rng: np.random.Generator, size: int, most: int = 200) -> tuple[int, int]:
    """A piece of the file that is not empty."""
    start = int(rng.integers(0, size))
    return start, min(size, start + int(rng.integers(1, most)))


def _truncate(data: bytes, rng: np.random.Generator) -> Damage:
    end = int(rng.integers(0, len(data)))
    if rng.random() < 0.3:  # the end is where cuts are hard to see
        end = len(data) - int(rng.integers(1, min(40, len(data))))
    return f"truncated to {end} of {len(data)} bytes", data[:end]


def _flip_bits(data: bytes, rng: np.random.Generator) -> Damage:
    changed = bytearray(data)
    places = [
        (int(rng.integers(len(data))), int(rng.integers(8))) for _ in range(rng.integers(1, 9))
    ]
    for at, bit in places:
        changed[at] ^= 1 << bit
    return f"bits flipped at {places}", bytes(changed)


_EXTREMES = (
    *(b"\0", b"\xff", b"\x7f", b"\x80", b"\0\0\0\0", b"\xff" * 4, b"\xff" * 8, b"\xff\xff\xff\x7f"),
    *(b"\xff" * 7 + b"\x7f", b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0" * 6 + b"\xf0\x7f"),
    *(b"\0" * 6 + b"\xf8\x7f", b"\0\0\0\0\1\0\0\0", b"\0\0\0@\0\0\0\0", b"\r\n", b"99999999"),
)


def _overwrite(data: bytes, rng: np.random.Generator) -> Damage:
    value = _EXTREMES[rng.integers(len(_EXTREMES))]
    at = int(rng.integers(0, max(1, len(data) - len(value))))
    if rng.random() < 0.3:
        at = int(rng.integers(0, 64)) % max(1, len(data) - len(value))  # headers and counts
    changed = data[:at] + value + data[at + len(value) :]
    return f"{value!r} at {at}", changed


def _delete(data: bytes, rng: np.random.Generator) -> Damage:
    start, end = _span(rng, len(data))
    return f"bytes {start} to {end} deleted", data[:start] + data[end:]


def _duplicate(data: bytes, rng: np.random.Generator) -> Damage:
    start, end = _span(rng, len(data))
    return f"bytes {start} to {end} doubled", data[:end] + data[start:]


def _zero(data: bytes, rng: np.random.Generator) -> Damage:
    start, end = _span(rng, len(data))
    return f"bytes {start} to {end} zeroed", data[:start] + bytes(end - start) + data[end:]


def _swap(data: bytes, rng: np.random.Generator) -> Damage:
    size = int(rng.integers(1, max(2, len(data) // 3)))
    a, b = sorted(int(n) for n in rng.integers(0, max(1, len(data) - size), 2))
    b = min(max(b, a + size), len(data) - size)
    if b < a + size:
        return _zero(data, rng)
    changed = data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size]
    return f"{size} bytes at {a} and {b} swapped", changed + data[b + size :]


def _replace(data: bytes, rng: np.random.Generator) -> Damage:
    """Something else entirely in the file's place."""
    contents = {
        "empty": b"",
        "a folder": None,
        "JSON": b'{"frames": []}',
        "a PNG header": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        "a PLY": b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n0\n",
        "an archive": b"PK\x05\x06" + bytes(18),
        "an array": b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'shape': (3,)}",
        "zeros": bytes(len(data)),
        "noise": rng.bytes(len(data)),
        "text": b"no such thing\n" * 30,
        "mp4 brands": b"\0\0\0\x18ftypisom\0\0\0\0isomiso2",
    }
    name = list(contents)[rng.integers(len(contents))]
    return f"replaced by {name}", contents[name]


_VALUES = (
    *(None, "x", "", 1e308, -1e308, 1e39, float("nan"), float("inf"), 10**400, -(10**30), 1 << 63),
    *(-1, 0, 0.0, 1e-320, True, [], {}, [[[]]], [None], {"a": 1}, "../../etc/passwd", "a\0b", "\n"),
    *("y" * 5000, "\ud800", [1, 2, 3], [[1.0] * 4] * 4, [[0] * 3] * 3, 1.5, 2, 65, "1"),
)


def _json_places(value: Any, found: list | None = None) -> list[tuple[Any, Any]]:
    """(container, key) of every value inside a parsed JSON file."""
    found = [] if found is None else found
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        found.append((value, key))
        if isinstance(inner, (dict, list)):
            _json_places(inner, found)
    return found


def _alter_json(data: bytes, rng: np.random.Generator) -> Damage:
    value = json.loads(data)
    places = _json_places(value)
    shallow = [p for p in places if isinstance(p[0], dict) or not isinstance(p[0][p[1]], float)]
    chosen = shallow if rng.random() < 0.6 else places
    container, key = chosen[rng.integers(len(chosen))]
    if rng.random() < 0.25:
        del container[key]
        return f"{key!r} deleted", json.dumps(value).encode()
    new = _VALUES[rng.integers(len(_VALUES))]
    container[key] = new
    return f"{key!r} is now {str(new)[:30]!r}", json.dumps(value).encode()


def _alter_word(data: bytes, rng: np.random.Generator) -> Damage:
    """One word of a text file becomes another."""
    words = data.split(b" ")
    at = int(rng.integers(len(words)))
    new = (b"nan", b"inf", b"-1", b"1e400", b"0", b"", b"x", b"9" * 30, b"\xff", b"1_0")
    chosen = new[rng.integers(len(new))]
    return f"word {at} is now {chosen!r}", b" ".join([*words[:at], chosen, *words[at + 1 :]])


_DAMAGES = (_truncate, _truncate, _flip_bits, _overwrite, _overwrite, _delete, _duplicate, _zero)
_DAMAGES += (_swap, _replace)


@dataclass(frozen=True)
class Case:
    """One damage to one file; everything follows from the two numbers."""

    seed: int
    number: int

    @property
    def pair(self) -> tuple[Target, str]:
        return PAIRS[self.number % len(PAIRS)]

    def damage(self, data: bytes) -> Damage:
        """What is done to the file, and its new content."""
        rng = np.random.default_rng([self.seed, self.number])
        file = self.pair[1]
        choices = list(_DAMAGES)
        if file.endswith(".json"):
            choices += [_alter_json] * 10
        elif file.endswith(".txt") or data.startswith(b"ply\nformat ascii"):
            choices += [_alter_word] * 4
        return choices[rng.integers(len(choices))](data, rng)


# ---- the judgement ------------------------------------------------------------------------------


@dataclass
class Reading:
    """What of a scene is compared."""

    shape: tuple  # kind, cameras, frames, views, sizes: what may not change unnoticed
    xyz: np.ndarray
    rgb: np.ndarray
    rest: dict[str, Any] = field(default_factory=dict)  # poses, times, pixels

    def equals(self, other: Reading) -> bool:
        same = self.shape == other.shape and self.rest == other.rest
        return same and np.array_equal(self.xyz, other.xyz) and np.array_equal(self.rgb, other.rgb)


def read(root: Path) -> Reading:
    """Loads a scene and decodes all its images."""
    scene = builders.load(root, duration=0)
    broken = _broken(scene)
    if broken:
        raise AssertionError(f"read, but {broken}")
    views = scene.train + scene.test
    sizes = tuple((v.camera.width, v.camera.height) for v in views)
    counts = (len(scene.camera_names), scene.frame_count, len(scene.train), len(scene.test))
    rest = {
        "cameras": [_numbers(v.camera).tobytes() for v in views],
        "names": [v.name for v in views],
        "times": [v.time for v in views],
        "pixels": [v.image().numpy().tobytes() for v in views],
        "masks": [None if (m := v.mask()) is None else m.numpy().tobytes() for v in views],
    }
    return Reading((scene.kind, counts, sizes), scene.points.xyz, scene.points.rgb, rest)


def _numbers(camera) -> np.ndarray:
    intrinsics = [camera.fx, camera.fy, camera.cx, camera.cy]
    return np.concatenate([camera.world_to_camera.double().numpy().ravel(), intrinsics])


def _broken(scene: Scene) -> str | None:
    """What of the result no caller could work with."""
    for view in scene.train + scene.test:
        image, camera = view.image(), view.camera
        if tuple(image.shape) != (camera.height, camera.width, 3) or image.element_size() != 1:
            return f"{view.name} has an image of shape {tuple(image.shape)}"
        if (mask := view.mask()) is not None and mask.shape != image.shape[:2]:
            return f"{view.name} has a mask of shape {tuple(mask.shape)}"
        if not np.isfinite(_numbers(camera)).all() or not 0 <= view.time <= 1:
            return f"{view.name} has a camera or time that is not finite or out of range"
        if not camera.full_proj_transform.isfinite().all() or camera.fx < 1e-30:
            return f"{view.name} cannot be projected into with float32"
    if not scene.train:
        return "there is no training view"
    points = scene.points
    if points.xyz.shape != points.rgb.shape or not np.isfinite(points.xyz).all():
        return "its points are not finite, or have no colour each"
    if not (np.isfinite(scene.extent) and scene.extent > 0):
        return f"its extent is {scene.extent}"
    if not np.isfinite(((points.bbox[1] - points.bbox[0]) ** 2).sum()):
        return "its box is too large for float32"
    for view in scene.video:
        if not np.isfinite(_numbers(view.camera)).all():
            return "its camera path is not finite"
    return None


def _wrong(case: Case, what: str, data: bytes, now: Reading, before: Reading) -> str | None:
    """Why a success is a wrong one: the file's format had the means to notice the damage.

    The format of the scene must stay. Anything cut has to be noticed. So has what a checksum covers
    (PNG, npz), and whatever changes the number of cameras, views or points, unless the file itself
    is a list of them (JSON), which then must list as many. A number, a pixel or a coordinate that
    became another cannot be noticed; nor can a COLMAP text without the comment that counts, or a
    JPEG of a pixel or two more, which is a scaled photo as well.
    """
    file = case.pair[1]
    if now.shape[0] != before.shape[0]:
        return f"a {now.shape[0]} scene in place of a {before.shape[0]} one"
    if file == "cameras_parameters.txt":
        return _rows_disagree(what, now, before)
    if now.equals(before) or (file.endswith(".txt") and b"# Number of" not in data):
        return None
    if what.startswith("truncated") and not _last_row_only(data, now, before):
        return "a cut that was not noticed"
    if file.endswith((".png", ".npz")):
        return "a checksum that was not looked at"
    if len(now.xyz) != len(before.xyz):
        return f"{len(now.xyz)} points in place of {len(before.xyz)}"
    if file.endswith(".json"):
        return _json_disagrees(file, data, now, before)
    if file.endswith(".jpg") and now.shape[:2] == before.shape[:2]:
        sizes = np.abs(np.subtract(now.shape[2], before.shape[2]))
        return None if sizes.max() <= 2 else f"a photo off by {sizes.max()} pixels"
    if now.shape != before.shape:
        return f"{now.shape} in place of {before.shape}"
    return None


def _last_row_only(data: bytes, now: Reading, before: Reading) -> bool:
    """An ascii PLY may end without a newline, so a cut in its very last number cannot be seen."""
    if not data.startswith(b"ply\nformat ascii") or now.rest != before.rest:
        return False
    same = np.array_equal(now.xyz, before.xyz) and len(now.rgb) == len(before.rgb)
    return same and np.array_equal(now.rgb[:-1], before.rgb[:-1])


def _rows_disagree(what: str, now: Reading, before: Reading) -> str | None:
    """Technicolor's cameras all have frames, which count them; a cut may be in the last number."""
    if now.shape != before.shape:
        return f"{now.shape} in place of {before.shape}"
    altered = {
        name.split("/")[0]
        for name, a, b in zip(
            *(now.rest["names"], now.rest["cameras"], before.rest["cameras"]), strict=True
        )
        if a != b
    }
    last = max(name.split("/")[0] for name in now.rest["names"])
    if what.startswith("truncated") and not altered <= {last}:
        return f"a cut that altered {sorted(altered)}"
    return None


def _json_disagrees(file: str, data: bytes, now: Reading, before: Reading) -> str | None:
    """A JSON file may list views: there must be as many."""
    meta, views = json.loads(data), now.shape[1][2:]
    if file == "transforms.json" and now.shape[0] == "nerfstudio":
        listed, views = len(meta["frames"]), sum(views)
    elif file == "dataset.json":
        listed = _listed_ids(meta)
    elif "transforms_" in file or "_meta" in file:
        return _split_disagrees(file, meta, now)
    else:  # cameras or times of pictures that another file lists
        listed = before.shape[1][2:]
    return f"{views} views where {listed} are listed" if views != listed else None


def _listed_ids(meta: dict) -> tuple[int, int]:
    """The numbers of training and test views that a dataset.json lists."""
    if meta.get("val_ids"):
        held_out = set(meta["val_ids"])
        return sum(name not in held_out for name in meta["train_ids"]), len(meta["val_ids"])
    return len(meta["ids"][::4]), len(meta["ids"][2::4])


def _split_disagrees(file: str, meta: dict, now: Reading) -> str | None:
    """Of the file for one half of the views."""
    lists = meta["frames"] if "frames" in meta else [n for frame in meta["fn"] for n in frame]
    counted = now.shape[1][3 if "test" in file else 2]
    frames = len(meta.get("fn", ()))  # of panoptic scenes, where the shorter file decides
    if counted != len(lists) and not (frames and frames > now.shape[1][1]):
        return f"{counted} views where {len(lists)} are listed"
    return None


@dataclass(frozen=True)
class Outcome:
    """What came of a case; ``fault`` is None where all is well."""

    case: Case
    result: str  # refused, same, changed, or what went wrong
    seconds: float
    what: str = ""
    fault: str | None = None

    def __str__(self) -> str:
        target, file = self.case.pair
        return (
            f"{self.case.seed}:{self.case.number} {target.name} {file}: {self.what}: "
            f"{self.result}: {self.fault}"
        )


def judge(case: Case, folder: Path, before: Reading) -> Outcome:
    """Runs one case in a folder that holds the whole scene, which is mended afterwards."""
    path = folder / case.pair[1]
    whole = path.read_bytes()
    what, data = case.damage(whole)
    start = time.perf_counter()
    try:
        path.unlink()
        path.mkdir() if data is None else path.write_bytes(data)
        result, fault = _attempt(case, what, data, folder, before)
    finally:
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        path.write_bytes(whole)
    seconds = time.perf_counter() - start
    if fault is None and seconds > SECONDS:
        result, fault = "slow", f"took {seconds:.1f} s"
    return Outcome(case, result, seconds, what, fault)


def _attempt(
    case: Case, what: str, data: bytes | None, folder: Path, before: Reading
) -> tuple[str, str | None]:
    try:
        now = read(folder)
    except UserError as error:
        return "refused", _message_fault(str(error), Path(case.pair[1]))
    except AssertionError as error:
        return "broken", str(error)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        line = f"{Path(place.filename).name}:{place.lineno}"
        return "exception", f"{type(error).__name__}: {str(error)[:150]} at {line}"
    fault = _wrong(case, what, data or b"", now, before)
    return ("wrong" if fault else "same" if now.equals(before) else "changed"), fault


def _message_fault(message: str, file: Path) -> str | None:
    if len(message.splitlines()) != 1:
        return f"a message of several lines: {message[:200]!r}"
    if file.name not in message and file.stem not in message:
        return f"a message that does not name the file: {message[:300]}"
    if "unknown scene type" in message:
        return "a message that the scene is of no format"
    if len(message) > 1300:
        return f"a message of {len(message)} characters: {message[:120]} ..."
    return None


# ---- the workers --------------------------------------------------------------------------------


def _work(pipe: Connection, source: Path, readings: dict[str, Reading]) -> None:
    """A process that judges the cases it is sent, in its own copy of the scenes."""
    with tempfile.TemporaryDirectory(prefix="fuzz.") as name, tempfile.TemporaryFile() as errors:
        folder = Path(name) / "scenes"
        shutil.copytree(source, folder)
        os.dup2(errors.fileno(), 2)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        warnings.simplefilter("error", RuntimeWarning)  # of numbers that nobody looked at
        while (case := pipe.recv()) is not None:
            errors.truncate(0)
            errors.seek(0)
            target = case.pair[0].name
            outcome = judge(case, folder / target, readings[target])
            errors.seek(0)
            if outcome.fault is None and b"Traceback" in (said := errors.read()):
                text = said.decode("utf-8", "replace")[-300:]
                outcome = Outcome(case, "stderr", outcome.seconds, outcome.what, text)
            pipe.send(outcome)


class _Worker:
    """A process and the case it is at."""

    def __init__(self, source: Path, readings: dict[str, Reading]) -> None:
        self.arguments = (source, readings)
        self.case: Case | None = None
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, *self.arguments), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, case: Case | None) -> None:
        self.case, self.since = case, time.perf_counter()
        self.pipe.send(case)

    def lost(self, result: str, fault: str) -> Outcome:
        """The process is ended and replaced; its case failed."""
        self.process.kill()
        self.process.join()
        self.pipe.close()
        outcome = Outcome(self.case, result, time.perf_counter() - self.since, "?", fault)
        self.start()
        return outcome

    def poll(self, ready: Iterable[Connection]) -> Outcome | None:
        if self.pipe in ready:
            try:
                return self.pipe.recv()
            except (EOFError, OSError):
                return self.lost("crash", "the process died")
        if time.perf_counter() - self.since > 2 * SECONDS:
            return self.lost("hang", f"still at it after {2 * SECONDS:g} s")
        return None


def run(cases: Iterable[Case], workers: int = 2) -> list[Outcome]:
    """Judges cases in processes of their own, so that a hang or a crash is a result too."""
    waiting, outcomes = iter(cases), []
    with tempfile.TemporaryDirectory(prefix="fuzz.") as name:
        readings = {}
        for target in TARGETS:
            target.build(Path(name) / target.name)
            readings[target.name] = read(Path(name) / target.name)
        pool = [_Worker(Path(name), readings) for _ in range(workers)]
        busy = [worker for worker in pool if _next(worker, waiting)]
        while busy:
            ready = wait([worker.pipe for worker in busy], timeout=0.5)
            for worker in list(busy):
                outcome = worker.poll(ready)
                if outcome is None:
                    continue
                outcomes.append(outcome)
                if not _next(worker, waiting):
                    busy.remove(worker)
        for worker in pool:
            worker.give(None)
            worker.process.join()
    return sorted(outcomes, key=lambda outcome: outcome.case.number)


def _next(worker: _Worker, waiting: Iterable[Case]) -> bool:
    case = next(waiting, None)
    if case is not None:
        worker.give(case)
    return case is not None


def table(outcomes: list[Outcome]) -> str:
    """Counts of results per file."""
    results = sorted({o.result for o in outcomes})
    rows = [["scene", "file", "cases", *results, "faults", "ms"]]
    for target, file in PAIRS:
        mine = [o for o in outcomes if o.case.pair == (target, file)]
        if mine:
            counts = Counter(o.result for o in mine)
            faults = sum(o.fault is not None for o in mine)
            mean = 1000 * float(np.mean([o.seconds for o in mine]))
            row = [target.name, file, len(mine), *(counts[r] for r in results), faults]
            rows.append([*map(str, row), f"{mean:.0f}"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _numbers_of(cases: int, scenes: list[str] | None) -> Iterable[int]:
    """The first so many numbers of cases, of these scenes only if there are some."""
    wanted = (n for n in count() if not scenes or PAIRS[n % len(PAIRS)][0].name in scenes)
    return islice(wanted, cases)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", nargs="+", choices=[t.name for t in TARGETS])
    parser.add_argument("--only", help="seed:number of one case")
    arguments = parser.parse_args()
    seed, numbers = arguments.seed, _numbers_of(arguments.cases, arguments.scenes)
    if arguments.only:
        seed, number = map(int, arguments.only.split(":"))
        numbers = [number]
    start = time.perf_counter()
    outcomes = run([Case(seed, number) for number in numbers])
    failures = [o for o in outcomes if o.fault is not None]
    for failure in failures:
        print(failure)
    print(table(outcomes))
    seconds = time.perf_counter() - start
    print(f"{len(outcomes)} cases, {len(failures)} failures, {seconds:.0f} s")
    if arguments.only:
        print(outcomes[0])
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
