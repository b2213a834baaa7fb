"""A MoE's files: what is written is read, and what is damaged, foreign or hostile is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import builders
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import render_moe
import tiny_moe
import train_moe
from arguments_MoDE.config import RouterParams
from arguments_MoDE.members import is_name
from scene import load_scene
from tiny_moe import COMMON, ITERATION, NAMES, fails, files_in, moe
from training import launch
from training.checkpoint import load_run
from training.moe import files
from training.moe.files import (
    Member,
    build,
    check_scene,
    device_of,
    load_experts,
    load_moe,
    named_folders,
    read_settings,
    router_folder,
    save_router,
    saved_routers,
    write_settings,
)
from utils.errors import UserError
from utils.verify import digest, read_sealed, write_sealed


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return tiny_moe.scene_folder(tmp_path_factory.mktemp("data") / "scene")


@pytest.fixture(scope="module")
def made(source, tmp_path_factory) -> Path:
    """A MoE, not to be changed."""
    return moe(tmp_path_factory.mktemp("moe") / "moe", source)


@pytest.fixture
def copy(made, tmp_path) -> Path:
    """One to be changed."""
    shutil.copytree(made, tmp_path / "moe")
    return tmp_path / "moe"


# ---- round trip ---------------------------------------------------------------------------------


@pytest.mark.parametrize("router", ["volume_aware", "pixel", "volume"])
def test_what_is_saved_is_read(source, tmp_path, router):
    folder = moe(tmp_path / "moe", source, router=router, mask_lr=0.25)
    run = load_moe(folder)
    assert (run.iteration, run.training_seconds, run.params.mask_lr) == (4, 1.5, 0.25)
    assert run.params == read_settings(folder)[0] and run.params.router == router
    assert run.temperature == 0.5 and run.model_path == folder
    assert not run.model.training and list(run.runs) == list(run.model.experts) == [*NAMES]
    saved = load_file(router_folder(folder, 4) / "router.safetensors")
    state = run.model.router.state_dict()
    assert saved.keys() == state.keys() and all(torch.equal(saved[n], state[n]) for n in saved)
    fresh = build(run.runs, run.params).router.state_dict()
    assert any(not torch.equal(state[n], fresh[n]) for n in state)
    for name in NAMES:
        alone = load_run(folder / "experts" / name).model
        assert torch.equal(run.model.experts[name].gaussians.xyz, alone.gaussians.xyz)


def test_a_fresh_router_is_the_seeds(made):
    runs = load_experts(named_folders([], made), "cpu")
    one, same, other = (
        build(runs, RouterParams(router_seed=seed)).router.network.layers[0] for seed in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_folder_with_its_experts_inside_can_be_moved(copy, tmp_path):
    target = tmp_path / "elsewhere" / "moe"
    target.parent.mkdir()
    copy.rename(target)
    assert [e["path"] for e in read_sealed(target / "moe.json")[0]["experts"]] == [
        f"experts/{name}" for name in NAMES
    ]
    assert load_moe(target).runs[NAMES[0]].model_path == target / "experts" / NAMES[0]


def test_experts_elsewhere_are_found_where_they_were(made, tmp_path, monkeypatch):
    monkeypatch.chdir(made.parent)
    runs = load_experts({"a": Path("moe/experts") / NAMES[0]}, "cpu")
    params = RouterParams(router_iterations=2)
    write_settings(tmp_path / "out", params, [Member.of("a", runs["a"])])
    save_router(build(runs, params), tmp_path / "out", 2, 0)
    monkeypatch.chdir(tmp_path)
    assert load_moe(Path("out")).runs["a"].model_path == made / "experts" / NAMES[0]


def test_iterations_are_chosen_and_named(copy):
    run = load_moe(copy)
    save_router(run.model, copy, 3, 1)
    (copy / "router" / "iteration_x").mkdir()
    assert saved_routers(copy) == [3, 4]
    assert load_moe(copy).iteration == 4 and load_moe(copy, 3).iteration == 3
    with pytest.raises(UserError, match="--iteration 5: .* has only 3, 4"):
        load_moe(copy, 5)
    shutil.rmtree(copy / "router")
    with pytest.raises(UserError, match="has no router yet"):
        load_moe(copy)


# ---- names --------------------------------------------------------------------------------------


def test_names_of_experts(tmp_path):
    given = ["runs/a", "b=runs/x", "c+d=runs/y/"]
    assert named_folders(given, tmp_path) == {
        "a": Path("runs/a"),
        "b": Path("runs/x"),
        "c+d": Path("runs/y"),
    }
    with pytest.raises(UserError, match="two are called a"):
        named_folders(["x/a", "y/a"], tmp_path)
    with pytest.raises(UserError, match="holds no experts"):
        named_folders([], tmp_path)
    for bad in ("..", "=x", "a.b", "a/=x", "ü=x", "a" * 61 + "=x", "train", "keys=x", "_modules=x"):
        with pytest.raises(UserError, match="is no name for an expert.*NAME=PATH"):
            named_folders([bad], tmp_path)
    (tmp_path / "experts" / "half").mkdir(parents=True)
    (tmp_path / "experts" / "half" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"experts/half: 'half' is no name.*NAME=PATH"):
        named_folders([], tmp_path)


@pytest.mark.parametrize("name", ["a", "hash", "c+d", "4DGS", "x" * 60])
def test_every_name_that_is_allowed_can_be_a_modules(name):
    assert is_name(name)
    torch.nn.ModuleDict({name: torch.nn.Identity()})


# ---- what does not belong together --------------------------------------------------------------


def test_an_expert_that_was_trained_anew_is_refused(copy, source):
    shutil.rmtree(copy / "experts" / NAMES[1])
    tiny_moe.expert(copy / "experts" / NAMES[1], source, NAMES[1], seed=77, count=47)
    with pytest.raises(UserError, match=f"expert {NAMES[1]}: .* was trained anew"):
        load_moe(copy)


def test_an_expert_that_is_missing_is_named(copy):
    shutil.rmtree(copy / "experts" / NAMES[0] / "point_cloud")
    with pytest.raises(UserError, match=f"expert {NAMES[0]}: .*no saved model"):
        load_moe(copy)
    shutil.rmtree(copy / "experts" / NAMES[0])
    with pytest.raises(UserError, match=f"expert {NAMES[0]}: .*is not a run folder"):
        load_moe(copy)


def test_experts_that_changed_places_are_refused(copy):
    one, other = (copy / "experts" / name for name in NAMES)
    one.rename(copy / "x"), other.rename(one), (copy / "x").rename(other)
    with pytest.raises(UserError, match="was trained anew"):
        load_moe(copy)


def test_a_router_of_other_experts_is_refused(copy, source, tmp_path):
    """Of other counts: the file is whole, but does not fit."""
    other = moe(tmp_path / "other", source, (*NAMES[:1], "keyframe"))
    for more in (
        router_folder(other, 4),
        router_folder(moe(tmp_path / "p", source, router="pixel"), 4),
    ):
        shutil.rmtree(router_folder(copy, 4))
        shutil.copytree(more, router_folder(copy, 4))
        with pytest.raises(UserError, match=r"router\.safetensors does not fit its experts"):
            load_moe(copy)


CHANGES = {
    "images": "photos",
    "resolution": 2,
    "start_frame": 1,
    "duration": 2,
    "frame_step": 2,
    "time_convention": "published",
    "test_cameras": ["cam01"],
    "white_background": False,
    "near_plane": 0.5,
    "source_path": "/elsewhere",
}


@pytest.mark.parametrize("key", CHANGES)
def test_experts_of_different_pictures_are_refused_by_name(copy, key):
    path = copy / "experts" / NAMES[1] / "config.json"
    config = json.loads(path.read_text())
    assert config["ModelParams"][key] != CHANGES[key]
    config["ModelParams"][key] = CHANGES[key]
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"expert {NAMES[1]}: {key} was .*for expert {NAMES[0]}"):
        load_experts(named_folders([], copy), "cpu")


def test_an_expert_that_was_trained_on_what_another_held_out_is_refused(tmp_path):
    """Photos of a camera that moves: every fourth is held out, or none."""
    photos = tmp_path / "scene"
    builders.colmap_scene(photos)
    for name, every in zip(NAMES, (4, 0), strict=True):
        model = SimpleNamespace(llffhold=every)
        tiny_moe.expert(tmp_path / "experts" / name, photos, name, model=model)
    with pytest.raises(UserError, match=f"{NAMES[1]}: llffhold was 0, but 4 for .*{NAMES[0]}"):
        load_experts(named_folders([], tmp_path), "cpu")


@pytest.mark.parametrize(
    "same", [{"test_cameras": ["cam00"]}, {"test_cameras": ["0"]}, {"llffhold": 3}]
)
def test_experts_whose_settings_hold_out_the_same_views_are_not_refused(copy, same):
    """The camera that is held out by default is named, or there are no photos to hold out."""
    path = copy / "experts" / NAMES[1] / "config.json"
    config = json.loads(path.read_text())
    config["ModelParams"].update(same)
    path.write_text(json.dumps(config))
    before = files_in(copy)
    assert list(load_experts(named_folders([], copy), "cpu")) == [*NAMES]
    assert files_in(copy) == before


@pytest.mark.parametrize("key, count", [("frames", 7), ("cameras", 9)])
def test_experts_of_another_count_of_frames_or_cameras_are_refused(copy, source, key, count):
    run = load_run(copy / "experts" / NAMES[1])
    run.model.facts = type(run.model.facts)(
        *(
            count if f == key else getattr(run.model.facts, f)
            for f in run.model.facts.__dataclass_fields__
        )
    )
    with pytest.raises(UserError, match=f"{NAMES[1]}: trained on {count} {key}, expert"):
        files.check_same_scene({NAMES[0]: load_run(copy / "experts" / NAMES[0]), NAMES[1]: run})
    with pytest.raises(UserError, match=f"{NAMES[1]}: trained on {count} {key}, .* has"):
        check_scene({NAMES[1]: run}, load_scene(run.config.model))


def test_an_expert_that_is_not_finished_is_refused(copy):
    path = copy / "experts" / NAMES[0] / "config.json"
    path.write_text(path.read_text().replace(f'"iterations": {ITERATION}', '"iterations": 99'))
    with pytest.raises(UserError, match=f"expert {NAMES[0]}: .*{ITERATION} of 99; finish it"):
        load_experts(named_folders([], copy), "cpu")


def test_the_device_is_one_that_every_expert_has(made, monkeypatch):
    """A package without CUDA kernels that only the second one needs keeps all on the CPU."""
    runs = load_moe(made).runs
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    lacking = {NAMES[0]: [], NAMES[1]: ["hash_encoder"]}
    of = {id(run.config): lacking[name] for name, run in runs.items()}
    monkeypatch.setattr(launch, "_without_kernels", lambda config: of[id(config)])
    assert device_of("auto", runs, quiet=True) == "cpu"
    with pytest.raises(UserError, match="--device cuda: built without CUDA kernels: hash_encoder"):
        device_of("cuda", runs)
    lacking[NAMES[1]].clear()
    assert device_of("auto", runs) == "cuda" and device_of("cpu", runs) == "cpu"


# ---- damage -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["moe.json", "router/iteration_4/manifest.json", "router/iteration_4/router.safetensors"],
)
def test_a_byte_that_changed_is_noticed(copy, monkeypatch, name):
    runs = load_experts(named_folders([], copy), "cpu")
    monkeypatch.setattr(files, "load_members", lambda *_: runs)  # theirs: test_damage.py
    path = copy / name
    whole, generator = path.read_bytes(), np.random.default_rng(0)
    ends = [*range(40), *range(len(whole) - 90, len(whole))]
    for position in [*ends, *generator.integers(0, len(whole), 120)]:
        damaged = bytearray(whole)
        damaged[position] ^= int(generator.integers(1, 256))
        path.write_bytes(bytes(damaged))
        with pytest.raises(UserError):
            load_moe(copy)
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError):
        load_moe(copy)
    path.write_bytes(whole)
    load_moe(copy)


def test_writes_that_fail_leave_the_older_router(copy, monkeypatch):
    run, before = load_moe(copy), files_in(copy)
    real, calls = os.fsync, [0]

    def failing(at):
        def fsync(descriptor):
            calls[0] += 1
            if calls[0] >= at:
                raise OSError(28, "No space left on device")
            return real(descriptor)

        return fsync

    for write in (
        lambda: save_router(tiny_moe.scatter(run.model), copy, 4, 2.0),
        lambda: write_settings(copy, RouterParams(), []),
    ):
        for at in (1, 2):
            calls[0] = 0
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", failing(at))
                with pytest.raises((UserError, OSError), match="No space left"):
                    write()
            if at == 1:  # later ones may have put it in its place
                assert files_in(copy) == before
            assert not list(copy.rglob(".partial-*")) and load_moe(copy)


# ---- malice -------------------------------------------------------------------------------------


def resealed(copy: Path, change) -> None:
    value, _ = read_sealed(copy / "moe.json")
    change(value)
    write_sealed(copy / "moe.json", value)


def refused(copy: Path, capsys) -> str:
    """The one line of `render_moe.py`, quickly and with little memory."""
    start = time.perf_counter()
    tracemalloc.start()
    said = fails(capsys, lambda: render_moe.main(["-m", str(copy), *COMMON]))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.perf_counter() - start < 10 and peak < 50_000_000
    return said


@pytest.mark.parametrize(
    "name",
    ["../../../out", "/out", "a/b", "", "train", ".", 5, None, ["a"], "a\nb", "x" * 100_000],
    ids=lambda name: str(name)[:12],
)
def test_names_that_could_lead_elsewhere(copy, capsys, name):
    """Pictures and pruned experts are written to folders of these names."""
    resealed(copy, lambda v: v["experts"][0].update(name=name))
    before = files_in(copy.parent)
    assert "moe.json is damaged" in refused(copy, capsys)
    assert files_in(copy.parent) == before


@pytest.mark.parametrize(
    "entry",
    [
        {"path": 5},
        {"path": ""},
        {"path": "\0"},
        {"path": None},
        {"iteration": -1},
        {"iteration": 10**400},
        {"iteration": float(ITERATION)},
        {"iteration": True},
        {"iteration": "16"},
    ],
    ids=lambda entry: str(entry)[:24],
)
def test_members_of_wrong_types(copy, capsys, entry):
    resealed(copy, lambda v: v["experts"][0].update(entry))
    assert "moe.json is damaged" in refused(copy, capsys)


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.update(experts=[]),
        lambda v: v.update(experts={}),
        lambda v: v.update(experts=5),
        lambda v: v.update(experts=[5]),
        lambda v: v.update(experts=[[]]),
        lambda v: v.update(experts=v["experts"][:1] * 2),
        lambda v: v.pop("experts"),
        lambda v: v.update(router=[1]),
        lambda v: v.update(router=None),
        lambda v: v.pop("router"),
        lambda v: v["router"].update(router="other"),
        lambda v: v["router"].update(temperature_final=0),
        lambda v: v["router"].update(temperature_final="1"),
        lambda v: v["router"].update(router_seed=2**64),
        lambda v: v["router"].update(init_mixprob=10**400),
        lambda v: v["router"].update(shared_transmittance=1.5),
        lambda v: v["router"].pop("mask_lr"),
        lambda v: v["router"].update(more=1),
        lambda v: v.update(format=2),
        lambda v: v.update(format=[1]),
    ],
)
def test_settings_of_wrong_types_and_ranges(copy, capsys, change):
    resealed(copy, change)
    assert "error: " in refused(copy, capsys)


def test_paths_that_are_no_runs(copy, capsys, tmp_path):
    for path in ("/dev", "/dev/zero", "../../..", "experts", "x" * 5000, str(tmp_path / "gone")):
        resealed(copy, lambda v, p=path: v["experts"][0].update(path=p))
        refused(copy, capsys)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 100_000, "5", "", "\x80", "{}"])
def test_moe_json_that_is_none(copy, capsys, text):
    (copy / "moe.json").write_bytes(text.encode("latin-1"))
    assert "moe.json" in refused(copy, capsys)


class _Runs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def _headed(header: bytes, data: bytes = b"", size: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if size is None else size) + header + data


def _tensor(begin: int, end: int, shape: list[int]) -> dict:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


BOMBS = {
    "header of 8 EB": _headed(b"{}", size=2**63 - 1),
    "overlap": _headed(
        json.dumps({"a": _tensor(0, 16, [4]), "b": _tensor(4, 20, [4])}).encode(), bytes(20)
    ),
    "beyond the end": _headed(json.dumps({"a": _tensor(0, 4 << 40, [1 << 40])}).encode()),
    "nested": _headed(b'{"a":' + b"[" * 90_000 + b"]" * 90_000 + b"}"),
    "empty": b"",
}


@pytest.mark.parametrize("bomb", [*BOMBS, "pickle"])
def test_a_bomb_in_the_place_of_the_router(copy, capsys, tmp_path, bomb):
    folder, trace = router_folder(copy, 4), tmp_path / "trace"
    path = folder / "router.safetensors"
    path.write_bytes(pickle.dumps(_Runs(trace)) if bomb == "pickle" else BOMBS[bomb])
    manifest, _ = read_sealed(folder / "manifest.json")
    proof = {"bytes": path.stat().st_size, "sha256": digest(path)}
    write_sealed(folder / "manifest.json", manifest | proof)
    assert "router.safetensors does not fit its experts" in refused(copy, capsys)
    assert not trace.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"training_seconds": 10**400},
        {"training_seconds": "x"},
        {"training_seconds": None},
        {"sha256": None},
        {"bytes": "5"},
        {"format": 99},
    ],
    ids=str,
)
def test_a_manifest_with_other_things(copy, capsys, change):
    path = router_folder(copy, 4) / "manifest.json"
    write_sealed(path, read_sealed(path)[0] | change)
    refused(copy, capsys)


def test_a_router_of_other_tensors(copy, capsys):
    folder = router_folder(copy, 4)
    path = folder / "router.safetensors"
    saved = load_file(path)
    key = f"gaussians.{NAMES[0]}.weight"
    for tensors in ({}, saved | {"more": torch.ones(1)}, saved | {key: torch.ones(3, 2)}):
        save_file(tensors, path)
        manifest, _ = read_sealed(folder / "manifest.json")
        proof = {"bytes": path.stat().st_size, "sha256": digest(path)}
        write_sealed(folder / "manifest.json", manifest | proof)
        assert "does not fit its experts" in refused(copy, capsys)


@pytest.mark.parametrize("name", ["moe.json", "router/iteration_4/router.safetensors"])
def test_links_out_of_the_folder_are_not_followed(copy, capsys, tmp_path, name):
    (copy / name).rename(tmp_path / "away")
    (copy / name).symlink_to(tmp_path / "away")
    assert "is a symbolic link" in refused(copy, capsys)


def test_commands_say_what_is_no_moe(tmp_path, capsys, made):
    lines = {
        "no moe.json": [
            lambda: render_moe.main(["-m", str(tmp_path), *COMMON]),
            lambda: train_moe.main(
                ["prune", "--moe", str(tmp_path), "--expname", str(tmp_path / "x"), *COMMON]
            ),
            lambda: train_moe.main(
                ["distill", "--moe", str(made / "experts" / NAMES[0]), "--expert", "a"]
                + ["--expname", str(tmp_path / "x"), *COMMON]
            ),
        ],
    }
    for said, commands in lines.items():
        for command in commands:
            assert said in fails(capsys, command)
    assert list(tmp_path.iterdir()) == []
