"""Run folders made by somebody who means harm: nothing runs, and each is refused in one line.

Seals and digests are right here: whoever makes such a folder can compute them too.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import time
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from arguments_MoDE.cli import save_config
from training.checkpoint import (
    MODEL_FILES,
    load_run,
    load_state,
    model_folder,
    save_model,
    save_state,
)
from training.launch import build_model
from training.rendering import render_main
from utils.errors import UserError, cli
from utils.verify import digest, read_sealed, write_sealed

STATE = {"config": {}, "progress": {}, "queue": [], "active_sh_degree": 0, "opacity_was_reset": 0}


@pytest.fixture
def run(tmp_path) -> Path:
    settings = tiny.config()
    settings.model.source_path = str(tmp_path / "scene")
    model = build_model(tiny.scene(12), settings)
    save_config(settings, tmp_path / "run" / "config.json")
    save_model(model, tmp_path / "run", 7, 1.5)
    return tmp_path / "run"


def refused(run: Path, capsys) -> str:
    """The one line with which rendering refuses the run, quickly and with little memory."""
    start = time.perf_counter()
    tracemalloc.start()
    with pytest.raises(SystemExit) as stop:
        cli(lambda _: render_main(["-m", str(run), "--quiet"], "render_emb.py", ""))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    said = capsys.readouterr()
    assert stop.value.code == 2 and not said.out
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and len(said.err) < 1500
    assert time.perf_counter() - start < 10 and peak < 50_000_000
    return said.err


def sealed(run: Path, **changes: object) -> None:
    """Changes the manifest, with the files' sizes and digests as they are now."""
    folder = model_folder(run, 7)
    manifest, _ = read_sealed(folder / "manifest.json")
    manifest["bytes"] = {name: (folder / name).stat().st_size for name in MODEL_FILES}
    manifest["sha256"] = {name: digest(folder / name) for name in MODEL_FILES}
    write_sealed(folder / "manifest.json", manifest | changes)


def test_the_run_itself_is_read(run):
    """Else every refusal below could be for another reason."""
    sealed(run)
    assert len(load_run(run).model.gaussians) == 12


class _Runs:
    """Unpickling it touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("name", [*MODEL_FILES, "manifest.json"])
def test_a_pickle_in_the_place_of_a_file(run, capsys, tmp_path, name):
    trace = tmp_path / "trace"
    path = model_folder(run, 7) / name
    path.write_bytes(pickle.dumps(_Runs(trace)))
    if name in MODEL_FILES:
        sealed(run)
    assert name in refused(run, capsys)
    assert not trace.exists()


def _headed(header: bytes, data: bytes = b"", size: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if size is None else size) + header + data


def _tensor(begin: int, end: int, shape: list[int]) -> dict:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


SAFETENSORS = {
    "a header of 8 EB": _headed(b"{}", size=2**63 - 1),
    "a header longer than the file": _headed(b"{}", size=99_000_000),
    "tensors on top of each other": _headed(
        json.dumps({"a": _tensor(0, 16, [4]), "b": _tensor(4, 20, [4])}).encode(), bytes(20)
    ),
    "a tensor beyond the end": _headed(json.dumps({"a": _tensor(0, 4 << 40, [1 << 40])}).encode()),
    "a shape that overflows": _headed(
        json.dumps({"a": _tensor(0, 16, [2**33, 2**33])}).encode(), bytes(16)
    ),
    "deep nesting": _headed(b'{"a":' + b"[" * 90_000 + b"]" * 90_000 + b"}"),
}


@pytest.mark.parametrize("bomb", SAFETENSORS)
def test_a_safetensors_bomb_in_the_model(run, capsys, bomb):
    (model_folder(run, 7) / "model.safetensors").write_bytes(SAFETENSORS[bomb])
    sealed(run)
    assert "model.safetensors is not readable" in refused(run, capsys)


@pytest.mark.parametrize("bomb", SAFETENSORS)
def test_a_safetensors_bomb_in_a_checkpoint(tmp_path, bomb):
    save_state(tmp_path / "fine_3", {"a": torch.zeros(1)}, STATE)
    folder = tmp_path / "fine_3"
    (folder / "state.safetensors").write_bytes(SAFETENSORS[bomb])
    info, _ = read_sealed(folder / "state.json")
    path = folder / "state.safetensors"
    info |= {"bytes": path.stat().st_size, "sha256": digest(path)}
    write_sealed(folder / "state.json", info)
    with pytest.raises(UserError, match=r"state\.safetensors is not readable"):
        load_state(folder)


@pytest.mark.parametrize("count", [10**12, 10**17])
def test_a_ply_that_claims_a_million_million_gaussians(run, capsys, count):
    path = model_folder(run, 7) / "point_cloud.ply"
    path.write_bytes(path.read_bytes().replace(b"vertex 12\n", b"vertex %d\n" % count))
    sealed(run)
    assert f"claims {count} vertex rows" in refused(run, capsys)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 100_000, '{"a": ' + "9" * 10_000 + "}"])
def test_json_that_is_nested_without_end(run, capsys, text):
    (model_folder(run, 7) / "manifest.json").write_text(text)
    assert "manifest.json is not readable JSON" in refused(run, capsys)


@pytest.mark.parametrize("name", ["../../../secret", "/etc/hostname"])
def test_names_that_lead_out_of_the_folder(run, capsys, name):
    """A manifest that would have other files read than those beside it."""
    sealed(run, sha256={name: "0" * 64, "model.safetensors": "0" * 64})
    assert "manifest.json is incomplete" in refused(run, capsys)
    sealed(run, per_gaussian={name: [3]})
    assert "column" in refused(run, capsys)


@pytest.mark.parametrize(
    "change",
    [
        {"active_sh_degree": 10**9},
        {"active_sh_degree": "3"},
        {"training_seconds": [1]},
        {"per_gaussian": {"xyz": [-3, -1]}},
        {"per_gaussian": {"xyz": [[3]]}},
        {"facts": {"bbox": [[0, 0, 0]], "extent": 1, "cameras": 3, "frames": 4}},
        {"facts": {"bbox": [[0, 0, 0], [1, 1, 1]], "extent": 1, "cameras": 10**12, "frames": 4}},
    ],
    ids=str,
)
def test_a_manifest_with_numbers_of_no_scene(run, capsys, change):
    sealed(run, **change)
    assert "manifest.json is damaged" in refused(run, capsys)


@pytest.mark.parametrize(
    "change",
    [
        ("hidden", "net_width", 10**7),
        ("hidden", "multires", [10**6]),
        ("hidden", "defor_depth", 10**9),
        ("emb", "emb_max_embeddings", 10**12),
        ("emb", "emb_gaussian_embedding_dim", 10**9),
    ],
    ids=lambda change: change[1],
)
def test_settings_that_ask_for_more_memory_than_there_is(run, capsys, change):
    settings = tiny.config()
    section, name, value = change
    setattr(getattr(settings, section), name, value)
    save_config(settings, run / "config.json")
    said = refused(run, capsys)
    assert "does not fit the run's config.json" in said or name in said


@pytest.mark.parametrize("name", [*MODEL_FILES, "manifest.json"])
def test_links_to_files_elsewhere(run, capsys, tmp_path, name):
    path = model_folder(run, 7) / name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert f"{name} is a symbolic link" in refused(run, capsys)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_does_not_hang(run, capsys):
    path = model_folder(run, 7) / "point_cloud.ply"
    path.unlink()
    os.mkfifo(path)
    assert "is no regular file" in refused(run, capsys)


def test_code_in_the_settings_is_text(run, capsys, tmp_path):
    trace = tmp_path / "trace"
    code = f"__import__('os').system('touch {trace}')"
    (run / "config.json").write_text(code)
    assert "not valid JSON" in refused(run, capsys)
    settings = {"ModelParams": {"sh_degree": code}}
    (run / "config.json").write_text(json.dumps(settings))
    assert "sh_degree" in refused(run, capsys)
    assert not trace.exists()


def test_tensors_of_another_kind_are_refused(run, capsys):
    """The right names and shapes, but numbers that no network has."""
    path = model_folder(run, 7) / "model.safetensors"
    tensors = load_file(path)
    save_file({name: value.to(torch.complex64) for name, value in tensors.items()}, path)
    sealed(run)
    assert "model.safetensors" in refused(run, capsys)
