"""Distillation: the loss, what goes on from where, what stays as it was, and what comes out."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

import render_emb
import tiny_moe
import train_moe
from arguments_MoDE.moe import DistillArguments
from scene import load_scene
from tiny_moe import COMMON, CURVES, ITERATION, NAMES, fails, files_in, moe, pretend_rendered
from training.checkpoint import checkpoints, load_run, load_state, saved_iterations
from training.moe.distill import (
    FADED,
    DistillTrainer,
    distillation_loss,
    distilled_config,
    student_of,
)
from training.moe.files import load_moe
from training.rendering import collect
from training.reports import Report
from training.schedules import rate_at
from training.trainer import Plan
from utils.interrupts import Interrupted
from utils.metrics import ssim
from utils.verify import read_sealed, write_sealed

STEPS = 6

# ---- the loss -----------------------------------------------------------------------------------


def _written(images, plain, targets, taught, gate, weight, dssim):
    def distance(a, b):
        similar = torch.stack([ssim(x, y) for x, y in zip(a, b, strict=True)]).mean()
        return (1 - dssim) * (a - b).abs().mean() + dssim * (1 - similar)

    return (
        weight * distance(gate * images, gate * targets),
        (1 - weight) * distance((1 - gate) * plain, (1 - gate) * taught),
    )


@pytest.mark.parametrize("weight, dssim", [(0.5, 0.2), (0.8, 0.0), (0.3, 0.6), (0.4, 1.0)])
def test_the_loss_is_equation_11(weight, dssim):
    images, plain, targets, taught = torch.rand(4, 2, 3, 16, 24)
    gate = torch.rand(2, 1, 16, 24)
    found = distillation_loss(images, plain, targets, taught, gate, weight, dssim)
    truth, teacher = _written(images, plain, targets, taught, gate, weight, dssim)
    assert found["truth"].item() == pytest.approx(truth.item(), rel=1e-4, abs=1e-5)
    assert found["teacher"].item() == pytest.approx(teacher.item(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("weight, name", [(1.0, "truth"), (0.0, "teacher")])
def test_at_its_ends_lambda_leaves_one_term(weight, name):
    tensors = torch.rand(4, 1, 3, 16, 24)
    found = distillation_loss(*tensors, torch.rand(1, 1, 16, 24), weight, 0.2)
    assert list(found) == [name]


def test_pixels_that_do_not_count_have_no_effect():
    images, targets, taught = (torch.rand(1, 3, 16, 24) for _ in range(3))
    gate, mask = torch.rand(1, 1, 16, 24), torch.ones(1, 1, 16, 24, dtype=torch.bool)
    mask[..., :12] = False
    images.requires_grad_()
    ends = []
    for other in (0.0, 1.0):
        changed = [torch.where(mask, x, other) for x in (targets, taught)]
        terms = distillation_loss(images, images, *changed, gate, 0.5, 0.2, mask)
        ends.append(sum(terms.values()))
    assert torch.equal(*ends)
    (gradient,) = torch.autograd.grad(ends[0], images)
    assert (gradient[..., :12] == 0).all() and (gradient[..., 12:] != 0).any()


# ---- the trainer --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return tiny_moe.scene_folder(tmp_path_factory.mktemp("data") / "scene")


@pytest.fixture(scope="module")
def made(source, tmp_path_factory) -> Path:
    """A MoE, not to be changed."""
    return moe(tmp_path_factory.mktemp("moe") / "moe", source)


def trainer_of(folder: Path, made: Path, name: str, *, color: bool = False, **how):
    arguments = DistillArguments(
        model_path=folder, moe=str(made), expert=name, distill_iterations=STEPS, **how
    )
    teacher = load_moe(made)
    student = student_of(teacher, arguments)
    config = distilled_config(student, arguments)
    config.opt.camera_color, config.opt.batch_size = color, 2
    config.opt.batch_same_time = True
    world = load_scene(config.model)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    student.model.requires_grad_(True)
    report = Report(folder, quiet=True)
    made_of = (teacher, arguments, student, world, config, Plan(folder), report, "cpu")
    trainer = DistillTrainer(*made_of)
    trainer.model.train()
    return trainer


def test_what_was_due_after_the_student_s_last_iteration_stays_undone(made, tmp_path, monkeypatch):
    """Its training ended without it; what is due after an iteration of distillation is done."""
    trainer = trainer_of(tmp_path, made, NAMES[1])
    evolved = []
    monkeypatch.setattr(trainer.model, "evolve", evolved.append)
    for _ in range(3):
        trainer.iterate()
    assert evolved == [ITERATION + 1, ITERATION + 2]


@pytest.mark.parametrize("name", NAMES)
def test_the_trainer_asks_for_the_loss_of_its_expert_and_its_gate(made, tmp_path, name):
    trainer = trainer_of(tmp_path, made, name, distill_lambda=0.3, distill_lambda_dssim=0.4)
    batch = trainer._next_batch()
    assert len(batch) == 2
    shots = trainer._render_batch(batch, ITERATION + 1)
    terms = trainer._loss_terms(shots, ITERATION + 1)
    (shot,) = shots
    run = load_moe(made)
    blend = run.model([v.camera for v in shot.views], shot.views[0].time, torch.ones(3), 0.5)
    gate = blend.gates[:, NAMES.index(name), None]
    targets = torch.stack([v.image().permute(2, 0, 1) / 255 for v in shot.views])
    own = shot.images.detach()
    written = _written(own, own, targets, blend.images.detach(), gate.detach(), 0.3, 0.4)
    assert terms["truth"].item() == pytest.approx(written[0].item(), rel=1e-3)
    assert terms["teacher"].item() == pytest.approx(written[1].item(), rel=1e-3)
    assert set(terms) > {"truth", "teacher"} or name != "hexplane"  # and its own regularisers


def test_it_goes_on_counting_where_the_expert_ended(made, tmp_path, monkeypatch):
    """Schedules inside experts are those of the iterations after its last one."""
    trainer = trainer_of(tmp_path, made, NAMES[0])
    assert (trainer.progress.stage, trainer.progress.iteration) == ("fine", ITERATION)
    assert trainer.stage_length("fine") == ITERATION + STEPS
    seen, real = [], trainer.model.deform

    def deform(time, **how):
        seen.append((how["iteration"], how["stage"]))
        return real(time, **how)

    trainer.model.deform = deform
    for _ in range(2):
        trainer.iterate()
    assert seen == [(ITERATION + 1, "fine"), (ITERATION + 2, "fine")]
    assert not trainer.model.warming_up(ITERATION, "fine")


def test_learning_rates_are_scaled_and_fade_out(made, tmp_path):
    whole = trainer_of(tmp_path / "a", made, NAMES[0], distill_lr_scale=1.0)
    tenth = trainer_of(tmp_path / "b", made, NAMES[0], distill_lr_scale=0.1)
    for trainer in (whole, tenth):
        trainer.iterate()
    rates = [{g["name"]: g["lr"] for g in t.optimizer.adam.param_groups} for t in (whole, tenth)]
    assert rates[0].keys() == rates[1].keys() and len(rates[0]) > 5
    for name, rate in rates[0].items():
        assert rates[1][name] == pytest.approx(0.1 * rate, rel=1e-6)
    for _ in range(STEPS - 1):
        whole.iterate()
    last = {g["name"]: g["lr"] for g in whole.optimizer.adam.param_groups}
    assert last["gaussians.opacity"] == pytest.approx(FADED * whole.config.opt.opacity_lr)


@pytest.mark.parametrize("steps", [0, 3 * ITERATION], ids=["decays end with the run", "or later"])
def test_learning_rates_go_on_from_those_that_training_ended_with(source, tmp_path, steps):
    """A run that is longer now has no say in decays that were over."""
    made = moe(tmp_path / "moe", source, opt={"position_lr_max_steps": steps})
    trainer = trainer_of(tmp_path / "out", made, NAMES[0], distill_lr_scale=1.0)
    decays = {n: r for n, r in trainer.optimizer.rates.items() if r.final is not None}
    assert {"gaussians.xyz", "hexplane.grid"} <= decays.keys()
    for step in range(1, STEPS + 1):
        trainer.iterate()
        found = {g["name"]: g["lr"] for g in trainer.optimizer.adam.param_groups}
        for name, rate in decays.items():
            plain = rate_at(rate, ITERATION + step if steps else ITERATION, ITERATION)
            assert found[name] == pytest.approx(plain * FADED ** (step / STEPS)), name


def test_a_student_that_was_distilled_before_goes_on_from_its_own_end(source, tmp_path):
    made = moe(tmp_path / "moe", source, opt={"position_lr_max_steps": 0})
    command(made, tmp_path / "once", expert=NAMES[0])
    trainer = trainer_of(tmp_path / "out", made, NAMES[0], student=str(tmp_path / "once"))
    xyz = trainer.optimizer.rates["gaussians.xyz"]
    trainer.iterate()
    first = {g["name"]: g["lr"] for g in trainer.optimizer.adam.param_groups}["gaussians.xyz"]
    assert first == pytest.approx(3 * xyz.final * FADED ** (1 / STEPS))


def test_its_size_stays_and_so_does_the_teacher(made, tmp_path):
    trainer = trainer_of(tmp_path, made, NAMES[0])
    count = len(trainer.model.gaussians)
    teacher = trainer.teacher.model
    before = {n: p.clone() for n, p in teacher.named_parameters()}
    student = {n: p.clone() for n, p in trainer.model.named_parameters()}
    for _ in range(STEPS):
        trainer.iterate()
    assert len(trainer.model.gaussians) == count
    assert all(torch.equal(p, before[n]) for n, p in teacher.named_parameters())
    assert all(p.grad is None for p in teacher.parameters())
    moved = [n for n, p in trainer.model.named_parameters() if not torch.equal(p, student[n])]
    assert "gaussians.values.xyz" in moved and any(n.startswith("experts.") for n in moved)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("color", [False, True])
def test_six_iterations_are_four_and_two(made, tmp_path, name, color):
    def state(trainer):
        tensors, info = load_state(trainer.save_checkpoint())
        info["progress"].pop("seconds")
        rates = {g["name"]: g["lr"] for g in trainer.optimizer.adam.param_groups}
        return tensors, {k: info[k] for k in ("progress", "queue", "active_sh_degree")}, rates

    straight = trainer_of(tmp_path / "a", made, name, color=color, distill_lr_scale=0.5)
    for _ in range(STEPS):
        straight.iterate()
    first = trainer_of(tmp_path / "b", made, name, color=color, distill_lr_scale=0.5)
    for _ in range(4):
        first.iterate()
    saved = load_state(first.save_checkpoint())
    second = trainer_of(tmp_path / "c", made, name, color=color, distill_lr_scale=0.5)
    torch.manual_seed(99)
    second.restore(*saved)
    second.model.train()
    assert second.progress.iteration == ITERATION + 4
    for _ in range(2):
        second.iterate()
    (ours, info, rates), (theirs, other, others) = map(state, (straight, second))
    assert ours.keys() == theirs.keys()
    assert [k for k in ours if ours[k].numpy().tobytes() != theirs[k].numpy().tobytes()] == []
    assert (info, rates) == (other, others)


# ---- the command --------------------------------------------------------------------------------


def command(made: Path, out: Path, *more: str, expert: str = NAMES[1]) -> int:
    line = ["distill", "--moe", str(made), "--expert", expert, "--expname", str(out), *COMMON]
    return train_moe.main([*line, "--distill_iterations", str(STEPS), *more])


def model_file(out: Path) -> bytes:
    folder = out / "point_cloud" / f"iteration_{ITERATION + STEPS}"
    return (folder / "point_cloud.ply").read_bytes()


def test_what_comes_out_is_a_run_that_renders_and_joins_a_moe(made, tmp_path, capsys):
    before, out = files_in(made), tmp_path / "better"
    assert command(made, out) == 0
    assert files_in(made) == before
    assert saved_iterations(out) == [ITERATION + STEPS]
    run = load_run(out)
    assert len(run.model.gaussians) == len(load_run(made / "experts" / NAMES[1]).model.gaussians)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    measured = [r["iteration"] for r in rows if r["event"] == "evaluate" and r["set"] == "test"]
    assert measured == [ITERATION + 2, ITERATION + 3, ITERATION + 4, ITERATION + STEPS]
    assert render_emb.main(["-m", str(out), *COMMON, "--no-lpips", "--skip_train"]) == 0
    line = ["router", "--expname", str(tmp_path / "moe"), "--router_iterations", "2", *COMMON]
    both = [str(made / "experts" / NAMES[0]), str(out)]
    assert train_moe.main([*line, "--experts", *both]) == 0
    assert list(load_moe(tmp_path / "moe").runs) == [NAMES[0], "better"]
    assert command(made, out) == 0
    assert "is distilled already" in capsys.readouterr().out


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_a_checkpoint_and_the_run_goes_on_to_the_same_bits(
    made, tmp_path, capsys, monkeypatch, number, code
):
    out, straight = tmp_path / "out", tmp_path / "straight"
    command(made, straight)
    real = DistillTrainer._loss_terms

    def terms(self, *given):
        if self.progress.iteration == ITERATION + 2:
            os.kill(os.getpid(), number)
        return real(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(DistillTrainer, "_loss_terms", terms)
        with pytest.raises(Interrupted) as stop:
            command(made, out)
    assert 128 + stop.value.number == code
    assert [p.name for p in checkpoints(out)] == [f"fine_{ITERATION + 3}"]
    assert "--resume continues it" in fails(capsys, lambda: command(made, out))
    assert command(made, out, "--resume") == 0
    assert model_file(out) == model_file(straight)
    lines = [
        [
            {k: v for k, v in json.loads(x).items() if k != "seconds"}
            for x in (f / "metrics.jsonl").read_text().splitlines()
        ]
        for f in (out, straight)
    ]
    assert lines[0] == lines[1]


def test_other_settings_are_neither_done_already_nor_continued(made, source, tmp_path, capsys):
    """Settings that the expert's own do not tell: they count, too."""
    done, stopped = tmp_path / "done", tmp_path / "stopped"
    command(made, done, "--checkpoint_iterations", "3")
    shutil.copytree(done, stopped)
    shutil.rmtree(stopped / "point_cloud")
    before = files_in(tmp_path)
    for flag, value in {
        "--distill_lambda": "0.25",
        "--distill_lambda_dssim": "0.1",
        "--distill_lr_scale": "0.5",
        "--distill_iterations": "9",
    }.items():
        for out in (done, stopped):
            assert "another or an unfinished run" in fails(
                capsys, lambda o=out, f=flag, v=value: command(made, o, f, v)
            )
            said = fails(capsys, lambda o=out, f=flag, v=value: command(made, o, f, v, "--resume"))
            assert "iterations" in said if "iterations" in flag else flag[2:] in said
    said = fails(capsys, lambda: command(made, stopped, "--resume", expert=NAMES[0]))
    assert "--resume: expert" in said
    assert files_in(tmp_path) == before
    other = moe(tmp_path / "other", source, seed=6)
    assert "router_sha256" in fails(capsys, lambda: command(other, stopped, "--resume"))
    moved = tmp_path / "moved"
    shutil.copytree(made, moved)
    assert command(moved, stopped, "--resume") == 0
    assert model_file(stopped) == model_file(done)
    assert command(made, done, "--distill_lambda", "0.25", "--overwrite") == 0
    assert model_file(stopped) != model_file(done)


def test_pictures_of_the_run_that_is_overwritten_are_not_taken_for_the_new_ones(made, tmp_path):
    out = tmp_path / "out"
    command(made, out)
    pretend_rendered(out, ITERATION + STEPS)
    (out / "import.json").write_text("{}")
    assert command(made, out, "--distill_lambda", "0.25", "--overwrite") == 0
    assert not (out / "import.json").exists() and not (out / CURVES).exists()
    assert collect(out, ITERATION + STEPS)["sets"] == {} and not (out / "gates.json").exists()
    assert (out / "test" / "notes.txt").exists()


def test_a_scene_that_moved_in_between_is_said_once(made, source, tmp_path, capsys):
    """Expert and student were trained where it was and where it is."""
    moved, out = tmp_path / "moved", tmp_path / "out"
    shutil.copytree(source, moved)
    command(made, out, "-s", str(moved))
    experts = ["--experts", str(made / "experts" / NAMES[0]), f"{NAMES[1]}={out}"]
    line = ["router", "--expname", str(tmp_path / "moe"), "--router_iterations", "2", *COMMON]
    said = fails(capsys, lambda: train_moe.main([*line, *experts]))
    assert "source_path was" in said and "-s says where" in said
    assert train_moe.main([*line, *experts, "-s", str(moved)]) == 0
    more = ["--student", str(out), "-s", str(moved)]
    assert command(made, tmp_path / "twice", *more) == 0


def test_a_router_begins_with_weights_of_experts_that_were_distilled_since(made, tmp_path):
    """Once or more often."""
    once, twice = tmp_path / "once", tmp_path / "twice"
    command(made, once)
    command(made, twice, "--student", str(once))
    weights = load_moe(made).model.router.gaussians[NAMES[1]]["weight"]
    line = ["router", "--start_router", str(made), "--mask_lr", "0", "--router_iterations", "2"]
    for out in (once, twice):
        experts = ["--experts", str(made / "experts" / NAMES[0]), f"{NAMES[1]}={out}"]
        moe_of = tmp_path / f"of_{out.name}"
        train_moe.main([*line, *experts, "--expname", str(moe_of), *COMMON])
        assert torch.equal(load_moe(moe_of).model.router.gaussians[NAMES[1]]["weight"], weights)


@pytest.mark.parametrize("change", [{"earlier_sha256": 5}, {"expert_sha256": None}])
def test_a_record_of_other_things_is_refused(made, tmp_path, capsys, change):
    once = tmp_path / "once"
    command(made, once)
    write_sealed(once / "distill.json", read_sealed(once / "distill.json")[0] | change)
    more = ["--student", str(once)]
    assert "distill.json is damaged" in fails(
        capsys, lambda: command(made, tmp_path / "twice", *more)
    )
    assert not (tmp_path / "twice").exists()


def test_misuse_is_one_line_and_leaves_nothing(made, source, tmp_path, capsys):
    out = tmp_path / "out"
    lines = {
        f"--expert nobody: {made} has {', '.join(NAMES)}": dict(expert="nobody"),
        "--expert is missing": dict(expert=""),
    }
    for said, how in lines.items():
        assert said in fails(capsys, lambda h=how: command(made, out, **h))
    assert "--distill_lambda is 1.5" in fails(
        capsys, lambda: command(made, out, "--distill_lambda", "1.5")
    )
    assert not out.exists()


def test_the_mixture_and_its_experts_are_never_overwritten(made, source, tmp_path, capsys):
    copy = tmp_path / "moe"
    shutil.copytree(made, copy)
    other = tiny_moe.experts(tmp_path / "trained", source)
    before = files_in(tmp_path)
    for more in ((), ("--overwrite",), ("--resume",)):
        lines = {
            f"holds expert {NAMES[1]} that this begins with": copy / "experts" / NAMES[1],
            f"holds expert {NAMES[0]} that": copy / "experts" / NAMES[0],
            "is the MoE itself": copy,
            "holds the MoE that this begins with": tmp_path,
            "holds a MoE": other,
            "holds the scene itself": source,
        }
        for said, out in lines.items():
            assert said in fails(capsys, lambda o=out, m=more: command(copy, o, *m))
    assert files_in(tmp_path) == before


def test_a_record_that_is_damaged_is_refused(made, tmp_path, capsys):
    out = tmp_path / "out"
    command(made, out)
    path = out / "distill.json"
    path.write_text(path.read_text().replace('"distill_lambda": 0.5', '"distill_lambda": 0.6'))
    assert "distill.json is damaged" in fails(capsys, lambda: command(made, out))
    path.unlink()
    assert "another or an unfinished run" in fails(capsys, lambda: command(made, out))
