"""What training does about numbers that are not finite, counts that jump, too little memory."""

from __future__ import annotations

import json

import pytest
import torch

import kills
import tiny
from training import memory
from training.density import DensityChange
from training.launch import build_model
from training.memory import check_memory, needed_bytes
from training.trainer import MOST_SKIPPED
from utils.errors import UserError, cli


def poisoned(trainer, iterations: set[int]) -> None:
    """Makes the ground truth of those iterations of the stage not finite."""
    real = trainer._loss_terms

    def terms(*given):
        found = real(*given)
        if trainer.progress.iteration + 1 in iterations:
            found["l1"] = found["l1"] * float("nan")
        return found

    trainer._loss_terms = terms


def bad_gradients(trainer, iterations: set[int]) -> None:
    """A finite loss whose gradient is not."""
    real = trainer._loss_terms

    def terms(*given):
        found = real(*given)
        if trainer.progress.iteration + 1 in iterations:
            found["l1"] = found["l1"] + (trainer.model.gaussians.xyz.sum() * 0).sqrt()
        return found

    trainer._loss_terms = terms


def state(trainer) -> dict[str, torch.Tensor]:
    named = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    moments = {f"adam/{n}": v.clone() for n, v in trainer.optimizer.state_tensors().items()}
    return named | moments | {f"stats/{n}": v.clone() for n, v in trainer.density.stats.items()}


@pytest.mark.parametrize("break_it", [poisoned, bad_gradients])
def test_a_step_that_is_not_finite_is_left_out_and_said(tmp_path, capsys, break_it):
    trainer = tiny.trainer(tmp_path, tiny.config(nonfinite="skip"))
    break_it(trainer, {3})
    for i in range(1, 6):
        before = state(trainer)
        trainer.iterate()
        after = state(trainer)
        same = before.keys() == after.keys() and all(
            torch.equal(before[n], after[n]) for n in after
        )
        assert same == (i == 3) and trainer.progress.iteration == i
    assert all(value.isfinite().all() for value in state(trainer).values())
    said = capsys.readouterr().err
    assert said.count("warning: step left out: coarse iteration 3: ") == 1
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["event"] == "skip"] == [3]


def test_too_many_in_a_row_end_the_run(tmp_path):
    trainer = tiny.trainer(tmp_path, tiny.config(nonfinite="skip", coarse_iterations=100))
    poisoned(trainer, {2} | set(range(4, 100)))
    with pytest.raises(UserError, match=f"coarse iteration {3 + MOST_SKIPPED}: loss term l1"):
        trainer.train()
    assert trainer.progress.skipped == MOST_SKIPPED - 1


@pytest.mark.parametrize("bad", [set(), {4}, {3, 4, 5}])
def test_a_step_left_out_leaves_no_density_control_out(tmp_path, bad):
    settings = tiny.config(nonfinite="skip", coarse_iterations=20, opacity_reset_interval=6)
    trainer = tiny.trainer(tmp_path, settings)
    poisoned(trainer, bad | {6})
    changes = {i: trainer.iterate() for i in range(7)}  # i: iterations before
    assert [i for i, change in changes.items() if "split" in change] == [4]
    assert trainer.density.opacity_was_reset


def test_nothing_is_pruned_by_what_nobody_saw(tmp_path):
    """All steps of a pruning interval were left out."""
    trainer = tiny.trainer(tmp_path, tiny.config(nonfinite="skip", coarse_iterations=20))
    poisoned(trainer, set(range(5, 14)))
    for _ in range(13):
        trainer.iterate()
    assert len(trainer.model.gaussians) >= 60


def test_it_stops_unless_told_otherwise(tmp_path):
    trainer = tiny.trainer(tmp_path)
    bad_gradients(trainer, {2})
    trainer.iterate()
    with pytest.raises(UserError, match=r"iteration 2: gradient of gaussians\.xyz is not finite"):
        trainer.iterate()


def test_a_run_that_stopped_may_go_on_by_skipping(tmp_path):
    """The choice is not part of what a run is."""
    small, out = kills.scene(tmp_path / "small"), tmp_path / "run"
    flags = ["-s", str(small / "scene"), "--expname", str(out), *kills.FLAGS]
    flags += ["--configs", str(small / "recipe.py")]
    assert kills.COMMANDS["emb"](flags) == 0
    assert kills.COMMANDS["emb"]([*flags, "--nonfinite", "skip"]) == 0  # complete, and the same


# ---- counts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, now, expected",
    [
        (DensityChange(pruned=31), 29, "31 of 60 Gaussians pruned at once"),
        (DensityChange(pruned=29), 31, None),
        (DensityChange(cloned=20, split=11), 91, "31 Gaussians added to 60 at once"),
        (DensityChange(cloned=29), 89, None),
        (DensityChange(cloned=2), 90, "there are now --max_gaussians 90"),
        (DensityChange(), 90, None),
        (DensityChange(cloned=40, pruned=60), 40, "60 of 100 Gaussians pruned"),
    ],
)
def test_jumps_of_the_count_are_warned_of(tmp_path, capsys, monkeypatch, change, now, expected):
    trainer = tiny.trainer(tmp_path, tiny.config(max_gaussians=90 if now == 90 else 1000))
    monkeypatch.setattr(type(trainer.model.gaussians), "__len__", lambda self: now)
    trainer._watch_count(change, 7)
    said = capsys.readouterr().err
    if expected is None:
        assert said == ""
    else:
        assert said.startswith("warning: coarse iteration 7: ") and expected in said


def test_a_real_round_is_watched(tmp_path, capsys):
    trainer = tiny.trainer(tmp_path, tiny.config(max_gaussians=5000))
    for _ in range(5):
        trainer.iterate()
    assert "coarse iteration 4: 60 Gaussians added to 60 at once" in capsys.readouterr().err


# ---- memory -------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """Checks a run where so many bytes are free; returns what was asked for per Gaussian count."""

    def check(free: int | None, **opt) -> tuple[int, int]:
        monkeypatch.setattr(memory, "available_memory", lambda: free)
        config, scene = tiny.config(**opt), tiny.scene()
        model = build_model(scene, config)
        check_memory(model, config, scene, "cpu")
        return tuple(sum(needed_bytes(model, config, scene, n)) for n in (60, 10**6))

    return check


def test_memory_that_cannot_do_is_refused_and_that_may_not_do_is_said(asked, capsys):
    few, many = asked(None, max_gaussians=10**6)
    assert asked(many, max_gaussians=10**6) and capsys.readouterr().err == ""
    asked(many - 1, max_gaussians=10**6)
    assert "warning: if densification reaches --max_gaussians 1000000" in capsys.readouterr().err
    asked(many - 1, max_gaussians=10**6, densify_until_iter=0)
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match="60 Gaussians and a batch of 2 need at least"):
        asked(few - 1)


def test_the_estimate_is_no_more_than_what_training_takes(tmp_path):
    """Against the tensors that a training and its checkpoint really hold."""
    trainer = tiny.trainer(tmp_path, tiny.config(gaiting_from_iter=0))
    trainer._start_stage("fine")
    trainer.model.train()
    computing, saving = needed_bytes(trainer.model, trainer.config, trainer.scene, 60)
    gradients = []
    real = trainer.optimizer.step

    def step(failed):
        gradients.extend(p.grad.nbytes for p in trainer.model.parameters() if p.grad is not None)
        real(failed)

    trainer.optimizer.step = step
    trainer.iterate()
    moments = sum(v.nbytes for v in trainer.optimizer.state_tensors().values())
    images = 12 * 4 * 2 * tiny.WIDTH * tiny.HEIGHT
    assert computing - images <= 1.1 * (sum(gradients) + moments)  # heads that are not mixed
    assert computing - images >= 0.8 * (sum(gradients) + moments)
    assert saving == pytest.approx(
        moments + sum(p.nbytes for p in trainer.model.parameters()), rel=0.2
    )


def test_a_command_refuses_before_it_makes_a_folder(tmp_path, monkeypatch, capsys):
    small, out = kills.scene(tmp_path / "small"), tmp_path / "run"
    monkeypatch.setattr(memory, "available_memory", lambda: 10_000)
    flags = ["-s", str(small / "scene"), "--expname", str(out), *kills.FLAGS]
    with pytest.raises(SystemExit) as stop:
        cli(lambda _: kills.COMMANDS["emb"](flags))
    assert stop.value.code == 2 and not out.exists()
    assert "need at least" in capsys.readouterr().err
