"""Gate-aware pruning: the importance is what it is said to be, and the rest fits together."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

import tiny
import tiny_moe
import train_moe
from arguments_MoDE.moe import PruneArguments
from diff_gaussian_rasterization import reference
from gaussian_renderer import _camera_arguments
from scene import load_scene
from scene.pixel_router import TIME, WEIGHT, gates_of
from tiny_moe import (
    COMMON,
    CURVES,
    ITERATION,
    NAMES,
    fails,
    files_in,
    mixture,
    moe,
    pretend_rendered,
    scatter,
)
from training.checkpoint import load_run
from training.evaluation import ViewRenderer
from training.moe import prune as prune_module
from training.moe.files import load_moe, read_settings
from training.moe.model import MoEGS
from training.moe.prune import Importance, gate_importance, keep_rows, kept_rows
from training.rendering import collect
from utils.interrupts import Interrupted

WHITE = torch.ones(3)

# ---- importance ---------------------------------------------------------------------------------


def _gate(model: MoEGS, view, features: list, k: int, temperature: float, held) -> float:
    """Mean gate of expert k, the others' logits held."""
    splats = [model.splats(name, view.time) for name in NAMES]
    logits = model.blend(
        [view.camera], NAMES, splats, features, view.time, WHITE, temperature
    ).logits.double()
    other = 1 - k
    mixed = torch.stack([held[:, other], logits[:, k]], 1) / temperature
    return torch.softmax(mixed, 1)[:, 1].mean().item()


def test_gate_importance_is_the_gradients_norm():
    """Equation 10 by differences, for some Gaussians of each of two experts."""
    names, model = NAMES, scatter(mixture(), size=1.0)  # so that all three weights count
    view, temperature = tiny.scene().train[5], 0.8
    found = gate_importance(model, view, WHITE, temperature, "gate")
    with torch.no_grad():
        features = [model.router.features(name, view.time) for name in names]
        splats = [model.splats(name, view.time) for name in names]
        held = model.blend(
            [view.camera], names, splats, features, view.time, WHITE, temperature
        ).logits.double()
    step, shares = 0.01, []
    for k, name in enumerate(names):
        assert found[name].shape == (len(model.experts[name].gaussians),)
        for i in found[name].argsort(descending=True)[:4].tolist():
            slopes = []
            for column in range(3):
                ends = []
                for sign in (1, -1):
                    moved = [f.clone() for f in features]
                    moved[k][i, column] += sign * step
                    with torch.no_grad():
                        ends.append(_gate(model, view, moved, k, temperature, held))
                slopes.append((ends[0] - ends[1]) / (2 * step))
            written = torch.tensor(slopes).norm().item()
            assert found[name][i].item() == pytest.approx(written, rel=0.05, abs=2e-6)
            shares.append(abs(slopes[0]) / written)
    assert min(shares) < 0.9


def test_gate_importance_works_where_gradients_are_off():
    model = scatter(mixture())
    found = gate_importance(model, tiny.scene().train[0], WHITE, 0.5, "gate")
    assert all(not values.requires_grad and values.max() > 0 for values in found.values())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("router", ["volume_aware", "pixel"])
def test_blend_importance_is_the_weight_in_the_picture(router):
    """Against the rasteriser's reference: each Gaussian's own map of T alpha."""
    model = scatter(mixture(router))
    view = tiny.scene().train[4]
    found = gate_importance(model, view, WHITE, 0.5, "blend")
    gates = model([view.camera], view.time, WHITE, 0.5).gates
    for k, name in enumerate(NAMES):
        splats = model.splats(name, view.time)
        count = len(splats.means)
        maps = reference.rasterize(
            splats.means[None],
            splats.opacities[None],
            colors=torch.eye(count)[None],
            scales=splats.scales[None],
            rotations=splats.rotations[None],
            background=torch.zeros(count),
            **_camera_arguments([view.camera], splats.means),
        ).color[0]  # (N, H, W): what Gaussian i contributes
        written = (gates[0, k] * maps).mean((1, 2))
        assert torch.allclose(found[name], written, atol=1e-6) and written.max() > 1e-3


def test_what_no_camera_sees_has_no_importance():
    model = scatter(mixture())
    with torch.no_grad():
        model.experts[NAMES[0]].gaussians.xyz[:5, 2] = -50
    for kind in ("gate", "blend"):
        found = gate_importance(model, tiny.scene().train[0], WHITE, 0.5, kind)[NAMES[0]]
        assert (found[:5] == 0).all() and (found[5:] > 0).any()


# ---- which stay ---------------------------------------------------------------------------------


def kept(values: dict[str, list[float]], **flags) -> dict[str, list[int]]:
    importance = {name: torch.tensor(own) for name, own in values.items()}
    rows, _ = kept_rows(importance, PruneArguments(**flags))
    return {name: own.tolist() for name, own in rows.items()}


def test_shares_are_exact_over_all_experts():
    values = {"a": [0.1, 5.0, 0.2], "b": [0.3, 0.15, 7.0, 6.0]}
    assert kept(values, share=3 / 7) == {"a": [1], "b": [0, 2, 3]}
    assert kept(values, share=0.0) == {"a": [0, 1, 2], "b": [0, 1, 2, 3]}
    assert kept(values, share=6 / 7) == {"a": [], "b": [2]}
    generator = torch.Generator().manual_seed(0)
    many = {"a": torch.rand(61, generator=generator).tolist(), "b": [0.5] * 39}
    for percent in range(0, 100, 7):
        rows = kept(many, share=percent / 100)
        assert sum(map(len, rows.values())) == 100 - percent


def test_a_share_is_met_where_most_have_the_same_importance():
    """Where gates decide sharply the gradient of nearly all of them is 0."""
    values = {"a": [0.0] * 8, "b": [0.0, 1.0]}
    assert sum(map(len, kept(values, share=0.5).values())) == 5
    assert kept(values, share=0.9) == {"a": [], "b": [1]}


def test_a_threshold_is_what_stays_begins_with():
    values = {"a": [0.1, 5.0, 0.2], "b": [0.3, 0.15]}
    assert kept(values, threshold=0.2) == {
        "a": torch.tensor([0.1, 5.0, 0.2]).ge(0.2).nonzero()[:, 0].tolist(),
        "b": [0],
    }
    assert kept(values, threshold=0.0) == {"a": [0, 1, 2], "b": [0, 1]}


# ---- what is left -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return tiny_moe.scene_folder(tmp_path_factory.mktemp("data") / "scene")


@pytest.fixture(scope="module")
def made(source, tmp_path_factory) -> Path:
    """A MoE, not to be changed."""
    return moe(tmp_path_factory.mktemp("moe") / "moe", source)


def test_without_what_no_camera_sees_the_pictures_stay(made):
    """Gaussians and their weights go together: row by row."""
    run = load_moe(made)
    world = load_scene(run.config.model)
    hidden = {}
    for name, expert in run.model.experts.items():
        with torch.no_grad():
            expert.gaussians.opacity[3:11:2] = -30  # in the middle of the rows
        hidden[name] = torch.tensor([3, 5, 7, 9])
    before = [run.model([v.camera], v.time, WHITE, 0.5) for v in world.train]
    old = {n: run.model.router.gaussians[n][WEIGHT].clone() for n in NAMES}
    counts = {n: len(e.gaussians) for n, e in run.model.experts.items()}
    rows = {
        n: torch.tensor([i for i in range(count) if i not in hidden[n]])
        for n, count in counts.items()
    }
    keep_rows(run, rows)
    for name in NAMES:
        own = run.model.router.gaussians[name]
        assert len(run.model.experts[name].gaussians) == counts[name] - 4
        assert torch.equal(own[WEIGHT], old[name][rows[name]])
        assert len(own[TIME]) == counts[name] - 4
    for view, blend in zip(world.train, before, strict=True):
        now = run.model([view.camera], view.time, WHITE, 0.5)
        assert torch.allclose(now.images, blend.images, atol=1e-6)
        assert torch.allclose(now.gates, blend.gates, atol=1e-5)
    assert torch.allclose(now.gates, gates_of(now.logits, 0.5))


def command(made: Path, out: Path, *more: str) -> int:
    return train_moe.main(["prune", "--moe", str(made), "--expname", str(out), *COMMON, *more])


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Speed is measured elsewhere."""
    monkeypatch.setattr(prune_module, "measure_fps", lambda *_, **__: (12.5, 3))


@pytest.mark.parametrize("importance", ["gate", "blend"])
def test_the_command_prunes_into_a_folder_that_stands_alone(
    made, tmp_path, capsys, monkeypatch, importance
):
    before, out = files_in(made), tmp_path / "out"
    assert command(made, out, "--share", "0.4", "--importance", importance) == 0
    assert files_in(made) == before
    total = sum(len(e.gaussians) for e in load_moe(made).model.experts.values())
    run = load_moe(out)
    left = {n: len(e.gaussians) for n, e in run.model.experts.items()}
    assert sum(left.values()) == total - round(0.4 * total)
    record = json.loads((out / "prune.json").read_text())
    assert record["after"]["gaussians"] == left and record["views"] == 9
    assert record["importance"] == importance and record["after"]["psnr"] > 0
    assert record["after"]["bytes_on_disk"] < record["before"]["bytes_on_disk"]
    assert sorted(p.name for p in out.iterdir()) == ["experts", "moe.json", "prune.json", "router"]
    assert all(m.path == out / "experts" / m.name for m in read_settings(out)[1])
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()[1:3]] == ["before", "after"]
    # What was pruned is what the importance says.
    whole = load_moe(made)
    arguments = PruneArguments(share=0.4, importance=importance, quiet=True, model_path=tmp_path)
    sums = Importance(whole, load_scene(whole.config.model), arguments, "cpu")
    rows, limit = kept_rows(sums.measure(), arguments)
    assert record["threshold"] == pytest.approx(limit)
    for name in NAMES:
        expected = whole.model.experts[name].gaussians.xyz[rows[name]]
        assert torch.equal(run.model.experts[name].gaussians.xyz, expected)
        weights = whole.model.router.gaussians[name][WEIGHT][rows[name]]
        assert torch.equal(run.model.router.gaussians[name][WEIGHT], weights)
    # It moves, and its experts are runs.
    moved = tmp_path / "moved"
    out.rename(moved)
    view = load_scene(whole.config.model).test[0]
    alone = load_run(moved / "experts" / NAMES[0])
    image = ViewRenderer(alone.model, load_scene(alone.config.model), ITERATION)(view)
    assert image.shape == (3, 16, 24) and load_moe(moved)


def test_a_threshold_and_views_are_heeded(made, tmp_path):
    assert command(made, tmp_path / "a", "--threshold", "0", "--views", "2") == 0
    record = json.loads((tmp_path / "a" / "prune.json").read_text())
    assert record["threshold"] == 0 and record["views"] == 2
    assert record["after"]["gaussians"] == record["before"]["gaussians"]
    assert command(made, tmp_path / "b", "--share", "0.1", "--views", "500") == 0
    assert json.loads((tmp_path / "b" / "prune.json").read_text())["views"] == 9


def test_where_nothing_is_left_it_says_so_and_another_share_costs_nothing(
    made, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "out"
    said = fails(capsys, lambda: command(made, out, "--threshold", "1e6"))
    assert f"nothing would be left of expert {NAMES[0]}" in said and "--resume" in said
    assert not (out / "moe.json").exists() and not (out / "experts").exists()
    monkeypatch.setattr(prune_module, "gate_importance", None)  # is not asked again
    assert command(made, out, "--resume", "--share", "0.2") == 0
    assert load_moe(out) and not (out / "checkpoint").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_it_goes_on_to_the_same_bits(made, tmp_path, capsys, monkeypatch, number):
    straight, out = tmp_path / "straight", tmp_path / "out"
    command(made, straight)
    real, calls = prune_module.gate_importance, []

    def importance(*args):
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), number)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(prune_module, "gate_importance", importance)
        with pytest.raises(Interrupted) as stop:
            command(made, out)
        assert stop.value.number == number and len(calls) == 4
        assert [p.name for p in (out / "checkpoint").iterdir()] == ["prune_4"]
        assert "--resume" in fails(capsys, lambda: command(made, out))
        for flag in (("--importance", "gate"), ("--views", "5")):
            said = fails(capsys, lambda f=flag: command(made, out, "--resume", *f))
            assert f"made with another {flag[0]}" in said
        assert command(made, out, "--resume") == 0
        assert len(calls) == 9
    ours, theirs = files_in(straight), files_in(out)
    for name in ours:
        if name.endswith((".ply", ".safetensors")):
            assert ours[name] == theirs[name]


def test_another_router_of_the_same_iteration_is_not_continued(made, source, tmp_path, capsys):
    out, other = tmp_path / "out", tmp_path / "other"
    fails(capsys, lambda: command(made, out, "--threshold", "1e6"))
    moe(other, source, seed=6)
    assert "another" in fails(capsys, lambda: command(other, out, "--resume"))


def test_routers_without_weights_of_gaussians_are_refused(source, tmp_path, capsys):
    ray = moe(tmp_path / "ray", source, router="pixel")
    volume = moe(tmp_path / "volume", source, router="volume")
    out = tmp_path / "out"
    said = fails(capsys, lambda: command(ray, out, "--importance", "gate"))
    assert "of the kind pixel" in said and "--importance blend" in said
    assert "of the kind volume" in fails(capsys, lambda: command(volume, out))
    assert "of the kind volume" in fails(
        capsys, lambda: command(volume, out, "--importance", "blend")
    )
    assert not out.exists()
    assert command(ray, out, "--importance", "blend", "--share", "0.2") == 0


def test_folders_with_other_work_are_not_touched(made, source, tmp_path, capsys):
    """Neither without a word nor with --overwrite or --resume."""
    trained = tiny_moe.experts(tmp_path / "trained", source)  # its router is still to be trained
    single = tmp_path / "single"
    shutil.copytree(made / "experts" / NAMES[0], single)
    inside = tmp_path / "inside"
    shutil.copytree(made, inside / "deep")
    before = files_in(tmp_path)
    for more in ((), ("--overwrite",), ("--resume",)):
        lines = {
            "holds experts that no pruning made": lambda m=more: command(made, trained, *m),
            "holds the run of a single model": lambda m=more: command(made, single, *m),
            "is the MoE itself": lambda m=more: command(inside / "deep", inside / "deep", *m),
            "holds the MoE that this begins with": lambda m=more: command(
                inside / "deep", inside, *m
            ),
            "holds the scene itself": lambda m=more: command(made, source, *m),
        }
        for said, run in lines.items():
            assert said in fails(capsys, run)
    named = tmp_path / "named"
    line = ["router", "--expname", str(named), "--router_iterations", "1", *COMMON, "--experts"]
    assert train_moe.main([*line, str(trained / "experts" / NAMES[0])]) == 0
    said = fails(capsys, lambda: command(named, trained, "--overwrite", "--importance", "blend"))
    assert f"holds expert {NAMES[0]} that this begins with" in said
    assert {k: v for k, v in files_in(tmp_path).items() if not k.startswith("named/")} == before


def test_a_pruned_moe_is_overwritten_when_asked(made, tmp_path, capsys):
    out = tmp_path / "out"
    command(made, out, "--share", "0.2")
    assert "--overwrite replaces it" in fails(capsys, lambda: command(made, out))
    assert "--overwrite replaces it" in fails(capsys, lambda: command(made, out, "--resume"))
    assert command(made, out, "--share", "0.6", "--overwrite") == 0
    left = json.loads((out / "prune.json").read_text())["after"]["gaussians"]
    assert {n: len(e.gaussians) for n, e in load_moe(out).model.experts.items()} == left


def test_pictures_of_the_moe_that_is_overwritten_are_not_taken_for_the_new_ones(made, tmp_path):
    out = tmp_path / "out"
    command(made, out, "--share", "0.2")
    pretend_rendered(out, 4)
    assert command(made, out, "--share", "0.6", "--overwrite") == 0
    assert not (out / CURVES).exists()
    assert collect(out, 4)["sets"] == {} and not (out / "gates.json").exists()
    assert (out / "test" / "notes.txt").exists()


def test_a_moved_scene_is_said_of_all_experts(made, source, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(source, moved)
    command(made, tmp_path / "out", "-s", str(moved), "--share", "0.2")
    saved = {
        json.loads(path.read_text())["ModelParams"]["source_path"]
        for path in (tmp_path / "out" / "experts").glob("*/config.json")
    }
    assert saved == {str(moved)}
