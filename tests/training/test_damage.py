"""Every change of a byte in a model or a checkpoint is noticed; every format stays readable."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from arguments_MoDE.cli import save_config
from arguments_MoDE.config import Config
from scene.gaussian_model import CANONICAL
from training.checkpoint import (
    FORMAT,
    READABLE,
    load_run,
    load_state,
    model_folder,
    save_model,
    save_state,
)
from training.launch import build_model
from utils.errors import UserError
from utils.verify import read_sealed, write_sealed

STATE = {"config": {}, "progress": {}, "queue": [], "active_sh_degree": 0, "opacity_was_reset": 0}
FLIPS = 300  # per file; five files


def _model(folder: Path) -> Callable[[], object]:
    settings = tiny.config()
    settings.hidden.experts = ["hexplane"]
    model = build_model(tiny.scene(8), settings)
    save_config(settings, folder / "config.json")
    save_model(model, folder, 7, 1.5)
    return lambda: load_run(folder)


def _checkpoint(folder: Path) -> Callable[[], object]:
    tensors = {"a": torch.randn(40), "b": torch.arange(9)}
    save_state(folder / "fine_3", tensors, STATE | {"queue": [3, 1, 2]})
    return lambda: load_state(folder / "fine_3")


@pytest.mark.slow
@pytest.mark.parametrize("make", [_model, _checkpoint])
def test_every_flipped_byte_is_noticed(tmp_path, make):
    load = make(tmp_path)
    load()
    generator = np.random.default_rng(0)
    files = [p for p in tmp_path.rglob("*") if p.is_file() and p.name != "config.json"]
    assert len(files) == (3 if make is _model else 2)
    for path in files:
        whole = path.read_bytes()
        ends = [*range(60), *range(len(whole) - 120, len(whole))]  # headers, and the seal
        for position in [*ends, *generator.integers(0, len(whole), FLIPS - len(ends))]:
            damaged = bytearray(whole)
            damaged[position] ^= int(generator.integers(1, 256))
            path.write_bytes(bytes(damaged))
            with pytest.raises(UserError):
                load()
        path.write_bytes(whole)
    load()


def test_a_space_for_a_space_of_another_kind_is_noticed(tmp_path):
    """JSON means the same, the bytes are others."""
    write_sealed(tmp_path / "a.json", {"x": 1})
    whole = (tmp_path / "a.json").read_bytes()
    assert read_sealed(tmp_path / "a.json") == ({"x": 1}, True)
    for damaged in (whole.replace(b"  ", b" \t", 1), whole + b" ", whole.replace(b'"x"', b'"y"')):
        (tmp_path / "a.json").write_bytes(damaged)
        with pytest.raises(UserError, match="seal is broken"):
            read_sealed(tmp_path / "a.json")


def test_an_older_format_cannot_be_claimed_to_escape_the_seal(tmp_path):
    load = _model(tmp_path)
    path = model_folder(tmp_path, 7) / "manifest.json"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"format": 2', b'"format": 1'))
    with pytest.raises(UserError, match="seal is broken"):
        load()
    path.write_bytes(whole.replace(b'"seal": ', b'"sael": '))
    with pytest.raises(UserError, match="seal is missing"):
        load()
    content, _ = read_sealed(_written(path, whole))
    path.unlink()
    write_sealed(path, content | {"format": 1})
    with pytest.raises(UserError, match="seal is missing"):  # format 1 has none
        load()


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# ---- formats ------------------------------------------------------------------------------------
#
# Written here byte by byte, without the code that saves: a change of the format that has no reader
# for what was saved before fails here. A new format gets a writer of its own beside these.

XYZ = [[0.5, -1.0, 2.0], [0.25, 4.0, -8.0]]
PLY = ["x", "y", "z", "nx", "ny", "nz", *(f"f_dc_{i}" for i in range(3))]
PLY += [*(f"f_rest_{i}" for i in range(45)), "opacity", *(f"scale_{i}" for i in range(3))]
PLY += [f"rot_{i}" for i in range(4)]
PER_GAUSSIAN = dict(
    zip(CANONICAL, ([3], [1, 3], [15, 3], [3], [4], [1]), strict=True)
)  # fmt: skip
HEXPLANE = {  # of one level with C = 2 and [2, 3, 4] x 5 samples, width 4, xyz only
    "bbox": (2, 3), "space.0": (3, 2, 2), "space.1": (4, 2, 2), "space.2": (4, 3, 2),
    "time.0": (5, 2, 2), "time.1": (5, 3, 2), "time.2": (5, 4, 2),
}  # fmt: skip
TENSORS = {f"hexplane.field.{name}": shape for name, shape in HEXPLANE.items()} | {
    "hexplane.first.weight": (4, 2), "hexplane.first.bias": (4,),
    "hexplane.heads.first.weight": (4, 4), "hexplane.heads.first.bias": (4,),
    "hexplane.heads.last.xyz.weight": (3, 4), "hexplane.heads.last.xyz.bias": (3,),
}  # fmt: skip


def _ply() -> bytes:
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(XYZ)}"]
    header += [f"property float {name}" for name in PLY] + ["end_header\n"]
    rows = b"".join(
        struct.pack(f"<{len(PLY)}f", *xyz, *(i / 64 for i in range(3, len(PLY)))) for xyz in XYZ
    )
    return "\n".join(header).encode() + rows


def _safetensors(shapes: dict[str, tuple[int, ...]]) -> bytes:
    header, data = {}, b""
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        values = struct.pack(f"<{size}f", *((i % 7) / 8 for i in range(size)))
        offsets = [len(data), len(data) + len(values)]
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": offsets}
        data += values
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _sealed(value: dict, number: int) -> bytes:
    if number == 1:
        return json.dumps(value).encode()
    body = json.dumps(value, indent=2).encode()[:-2]
    return body + b',\n  "seal": "' + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'


def _write_format(number: int, folder: Path) -> None:
    """A run with a model at iteration 20 and a checkpoint, in format ``number``."""
    settings = Config()
    settings.hidden.experts, settings.hidden.multires = ["hexplane"], [1]
    settings.hidden.net_width, settings.hidden.no_ds, settings.hidden.no_dr = 4, True, True
    settings.hidden.kplanes_config |= {"output_coordinate_dim": 2, "resolution": [2, 3, 4, 5]}
    save_config(settings, folder / "config.json")
    model, checkpoint = folder / "point_cloud/iteration_20", folder / "checkpoint/fine_20"
    model.mkdir(parents=True), checkpoint.mkdir(parents=True)
    files = {"point_cloud.ply": _ply(), "model.safetensors": _safetensors(TENSORS)}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    facts = {"bbox": [[-1, -1, -1], [1, 1, 1]], "extent": 2.5, "cameras": 3, "frames": 4}
    manifest = {
        "format": number, "iteration": 20, "active_sh_degree": 2, "gaussians": 2,
        "per_gaussian": PER_GAUSSIAN, "facts": facts, "training_seconds": 1.5, "sha256": digests,
    }  # fmt: skip
    state = _safetensors({"some.tensor": (2, 3)})
    info = {"format": number, **STATE, "sha256": hashlib.sha256(state).hexdigest()}
    if number >= 2:
        manifest["bytes"] = {name: len(data) for name, data in files.items()}
        info["bytes"] = len(state)
    for name, data in (files | {"manifest.json": _sealed(manifest, number)}).items():
        (model / name).write_bytes(data)
    (checkpoint / "state.safetensors").write_bytes(state)
    (checkpoint / "state.json").write_bytes(_sealed(info, number))


@pytest.mark.parametrize("number", range(1, FORMAT + 1))
def test_every_format_is_still_read(tmp_path, number):
    assert number in READABLE
    _write_format(number, tmp_path)
    run = load_run(tmp_path)
    gaussians = run.model.gaussians
    assert (run.iteration, run.training_seconds, gaussians.active_sh_degree) == (20, 1.5, 2)
    assert gaussians.xyz.tolist() == XYZ
    assert gaussians.f_rest[1, :, 2].tolist() == [(9 + 30 + i) / 64 for i in range(15)]
    assert gaussians.rotation[0].tolist() == [(len(PLY) - 4 + i) / 64 for i in range(4)]
    first = run.model.experts["hexplane"].heads.first.weight
    assert first.flatten()[:9].tolist() == [(i % 7) / 8 for i in range(9)]
    assert run.model.facts.extent == 2.5 and run.model.facts.bbox[1].tolist() == [1, 1, 1]
    tensors, info = load_state(tmp_path / "checkpoint/fine_20")
    assert tensors["some.tensor"].tolist() == [[0.0, 0.125, 0.25], [0.375, 0.5, 0.625]]
    assert {key: info[key] for key in STATE} == STATE


def test_what_is_written_now_is_the_newest_format_here(tmp_path):
    """Pins the keys: one more, or one less, is a new format."""
    _model(tmp_path)
    _checkpoint(tmp_path)
    written = [model_folder(tmp_path, 7) / "manifest.json", tmp_path / "fine_3" / "state.json"]
    byhand = tmp_path / "byhand"
    byhand.mkdir()
    _write_format(FORMAT, byhand)
    expected = [byhand / "point_cloud/iteration_20/manifest.json"]
    expected += [byhand / "checkpoint/fine_20/state.json"]
    for ours, theirs in zip(written, expected, strict=True):
        assert read_sealed(ours)[0].keys() == read_sealed(theirs)[0].keys()
    assert json.loads(written[0].read_text())["format"] == FORMAT


def test_a_format_from_the_future_is_one_line(tmp_path):
    _write_format(FORMAT + 1, tmp_path)
    with pytest.raises(UserError, match=r"format 3, this version reads 1 and 2"):
        load_run(tmp_path)
