"""What is written to disk: layouts, digests, and that damage is noticed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import tiny
from arguments_MoDE.cli import save_config
from scene.point_cloud import read_vertices
from training.checkpoint import (
    latest_checkpoint,
    load_run,
    load_state,
    model_folder,
    restored,
    save_model,
    save_state,
)
from training.launch import build_model
from training.trainer import Progress
from utils.errors import UserError

STATE = {"config": {}, "progress": {}, "queue": [], "active_sh_degree": 0, "opacity_was_reset": 0}


@pytest.fixture
def saved(tmp_path):
    settings = tiny.config()
    model = build_model(tiny.scene(), settings)
    save_config(settings, tmp_path / "config.json")
    save_model(model, tmp_path, 7, 1.5)
    return tmp_path, model


def test_ply_begins_as_every_3dgs_viewer_expects(saved):
    folder, model = saved
    vertices = read_vertices(model_folder(folder, 7) / "point_cloud.ply")
    names = list(vertices)
    assert names[:9] == ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    assert names[9:54] == [f"f_rest_{i}" for i in range(45)]
    assert names[54:62] == [
        "opacity",
        *(f"scale_{i}" for i in range(3)),
        *(f"rot_{i}" for i in range(4)),
    ]
    assert names[62:94] == [f"embedding_{i}" for i in range(32)]


def test_sh_is_channel_major_in_the_ply(saved):
    folder, model = saved
    with torch.no_grad():
        model.gaussians.f_rest.copy_(torch.randn_like(model.gaussians.f_rest))
    save_model(model, folder, 8, 0.0)
    vertices = read_vertices(model_folder(folder, 8) / "point_cloud.ply")
    expected = model.gaussians.f_rest[:, 4, 2].detach().numpy()  # coefficient 5 of blue
    assert np.array_equal(vertices["f_rest_34"], expected)
    assert torch.equal(load_run(folder).model.gaussians.f_rest, model.gaussians.f_rest)


@pytest.mark.parametrize("name", ["point_cloud.ply", "model.safetensors"])
def test_a_flipped_byte_is_noticed(saved, name):
    folder, _ = saved
    path = model_folder(folder, 7) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=f"{name} is damaged"):
        load_run(folder)


def test_a_missing_file_is_named(saved):
    folder, _ = saved
    (model_folder(folder, 7) / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        load_run(folder)


def test_an_unknown_iteration_lists_those_there_are(saved):
    with pytest.raises(UserError, match="--iteration 30000: .* has only 7"):
        load_run(saved[0], 30000)


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        load_run(tmp_path / "nothing")


def test_an_interrupted_save_leaves_the_old_one(saved, monkeypatch):
    folder, model = saved
    before = (model_folder(folder, 7) / "manifest.json").read_bytes()
    monkeypatch.setattr(
        "training.checkpoint.digest", lambda path: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(UserError, match="iteration_7 could not be saved .disk full"):
        save_model(model, folder, 7, 2.0)
    assert (model_folder(folder, 7) / "manifest.json").read_bytes() == before
    assert [p.name for p in (folder / "point_cloud").iterdir()] == ["iteration_7"]


def test_checkpoint_round_trip_and_order(tmp_path):
    tensors = {"a": torch.arange(3), "b": torch.zeros(0, 2)}
    for name in ("coarse_900", "fine_20", "fine_100"):
        save_state(tmp_path / "checkpoint" / name, tensors, STATE | {"progress": name})
    latest = latest_checkpoint(tmp_path)
    assert latest.name == "fine_100"
    loaded, info = load_state(latest)
    assert torch.equal(loaded["a"], tensors["a"]) and info["progress"] == "fine_100"


def test_damaged_checkpoint_is_refused(tmp_path):
    save_state(tmp_path / "c", {"a": torch.arange(3)}, STATE)
    info = json.loads((tmp_path / "c" / "state.json").read_text())
    (tmp_path / "c" / "state.json").write_text(json.dumps(info | {"sha256": "0" * 64}))
    with pytest.raises(UserError, match="damaged"):
        load_state(tmp_path / "c")


@pytest.mark.parametrize(
    "change",
    [
        {"facts": {}},
        {"per_gaussian": {"xyz": [3]}},
        {"per_gaussian": {"xyz": [10**9]}},
        {"per_gaussian": 3},
        {"sha256": {}},
    ],
)
def test_a_manifest_that_says_nonsense_is_one_line(saved, change):
    folder, _ = saved
    path = model_folder(folder, 7) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=r"manifest\.json"):
        load_run(folder)


def test_settings_that_do_not_fit_the_model_are_named(saved):
    folder, _ = saved
    settings = tiny.config()
    settings.hidden.control_num = 5
    save_config(settings, folder / "config.json")
    with pytest.raises(UserError, match="gate_xyz has shape"):
        load_run(folder)


def test_a_checkpoint_without_its_keys_is_refused(tmp_path):
    save_state(tmp_path / "c", {"a": torch.arange(3)}, {"progress": {}})
    with pytest.raises(UserError, match="incomplete"):
        load_state(tmp_path / "c")


@pytest.mark.parametrize("saved", [{}, {"iteration": 3}, [], "fine", None])
def test_progress_of_another_version_is_refused_in_one_line(saved):
    assert restored(Progress, vars(Progress("fine", 3))) == Progress("fine", 3)
    with pytest.raises(UserError, match="another version of this program"):
        restored(Progress, saved)


def test_progress_with_a_field_more_is_refused():
    with pytest.raises(UserError, match="'warp': 9"):
        restored(Progress, {"warp": 9} | vars(Progress()))
