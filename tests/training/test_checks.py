"""Nothing that is not finite updates anything; on a GPU that is found out without waiting."""

from __future__ import annotations

import pytest
import torch

import scene.experts.embedding
import scene.experts.heads
import scene.experts.hexplane
import scene.mixture
import scene.router
import silence
import tiny
from scene.experts.base import LearningRate, ParameterGroup
from training.schedules import Optimizer
from training.trainer import LOG_INTERVAL
from utils.errors import UserError

STILL = dict(densify_until_iter=0, coarse_iterations=30, iterations=30, gaiting_from_iter=0)

# The modules that go another way on a GPU.
ASK = (
    scene.experts.embedding,
    scene.experts.heads,
    scene.experts.hexplane,
    scene.mixture,
    scene.router,
)


def state(trainer) -> dict[str, torch.Tensor]:
    """Everything that a step may change: parameters, moments and step counts."""
    tensors = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    return tensors | {n: v.clone() for n, v in trainer.optimizer.state_tensors().items()}


def changed(before: dict, after: dict) -> list[str]:
    """Names of tensors that differ; moments that have just been made are zero."""
    missing = {n: torch.zeros_like(v) for n, v in after.items()}
    return [n for n, v in after.items() if not torch.equal(before.get(n, missing[n]), v)]


def made(folder, stage="fine", deferred=True, **opt):
    trainer = tiny.trainer(folder, tiny.config(**(STILL | opt)), deferred=deferred)
    trainer._start_stage(stage)
    trainer.model.train()
    return trainer


# ---- the same training ---------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0, 15])
def test_checking_later_gives_the_same_training_bit_by_bit(tmp_path, density):
    found = []
    for deferred in (False, True):
        torch.manual_seed(0)
        settings = tiny.config(densify_until_iter=density)
        trainer = tiny.trainer(tmp_path, settings, deferred=deferred)
        trainer.train()
        found.append(state(trainer))
    assert found[0].keys() == found[1].keys() and changed(*found) == []


def test_a_gpu_defers_and_a_cpu_does_not(tmp_path):
    assert tiny.trainer(tmp_path).deferred_checks is False
    assert tiny.trainer(tmp_path).checks.failed is None


# ---- what fails ----------------------------------------------------------------------------------


def break_background(trainer) -> None:
    trainer.background[0] = float("nan")


def break_gradient(trainer) -> None:
    """A loss that is finite with a gradient that is not."""
    original = trainer._loss_terms

    def with_a_root(*given):
        root = (
            (0 * trainer.model.experts["hexplane"].heads.last["xyz"].weight).square().sum().sqrt()
        )
        return original(*given) | {"root": root}

    trainer._loss_terms = with_a_root


@pytest.mark.parametrize(
    "breaks, message",
    [
        (break_background, r"fine iteration 4: loss term .*l1.* cam0\d/000\d, cam0\d/000\d; noth"),
        (break_gradient, r"fine iteration 4: gradient of hexplane.deformation .* cam0\d/000\d, ca"),
    ],
)
def test_the_message_is_the_same_and_nothing_is_updated_from_then_on(tmp_path, breaks, message):
    lines, states = [], []
    for deferred in (False, True):
        trainer = made(tmp_path, deferred=deferred)
        for _ in range(3):
            trainer.iterate()
        before = state(trainer)
        breaks(trainer)
        with pytest.raises(UserError, match=message) as caught:
            for _ in range(LOG_INTERVAL):
                trainer.iterate()
        assert changed(before, state(trainer)) == []
        assert trainer.progress.iteration == (LOG_INTERVAL - 1 if deferred else 3)
        lines.append(str(caught.value))
        states.append(before)
    assert lines[0] == lines[1] and changed(*states) == []


def test_one_bad_view_of_a_batch_is_the_one_that_is_named(tmp_path):
    trainer = made(tmp_path, stage="coarse", camera_color=True, batch_size=8)
    with torch.no_grad():
        trainer.colors.delta[2, 0, 3] = float("inf")
    for _ in range(LOG_INTERVAL - 1):
        trainer.iterate()
    with pytest.raises(UserError, match=r"coarse iteration 1: loss term l1, dssim") as caught:
        trainer.iterate()
    assert "cam02/" in str(caught.value) and "cam01/" not in str(caught.value)


def test_a_bad_step_that_heals_is_still_an_error(tmp_path):
    trainer = made(tmp_path)
    good = trainer.background.clone()
    break_background(trainer)
    trainer.iterate()
    before = state(trainer)
    trainer.background.copy_(good)
    for _ in range(LOG_INTERVAL - 2):
        trainer.iterate()
    assert changed(before, state(trainer)) == []  # or the line's "nothing" would not be true
    for _ in range(2):
        with pytest.raises(UserError, match="fine iteration 1"):
            trainer.iterate()
    assert changed(before, state(trainer)) == []


@pytest.mark.parametrize("saves", ["save_checkpoint", "_save"])
def test_a_run_that_has_failed_is_not_saved(tmp_path, saves):
    trainer = made(tmp_path)
    break_background(trainer)
    trainer.iterate()
    with pytest.raises(UserError, match="fine iteration 1: loss term"):
        getattr(trainer, saves)()
    assert not (tmp_path / "checkpoint").exists() and not (tmp_path / "point_cloud").exists()


@pytest.mark.parametrize("what", ["density control", "milestone", "end"])
def test_a_run_that_has_failed_ends_before_anything_is_made_of_it(tmp_path, what):
    opt = {
        "density control": dict(
            densify_until_iter=20, densify_from_iter=1, densification_interval=3
        ),
        "milestone": {},
        "end": dict(iterations=3),
    }[what]
    trainer = made(tmp_path, **opt)
    if what == "milestone":
        object.__setattr__(trainer.plan, "test_iterations", [3])
    trainer.density._densify = lambda *_: pytest.fail("it acted on what is not finite")
    break_background(trainer)
    trainer.iterate()
    trainer.iterate()
    with pytest.raises(UserError, match="fine iteration 1: loss term"):
        trainer.iterate()


def test_a_step_that_has_failed_leaves_parameters_moments_and_counts():
    parameter = torch.nn.Parameter(torch.ones(5))
    optimizer = Optimizer([ParameterGroup("a", [parameter], LearningRate(0.1))], 10)
    optimizer.set_rates(1)
    failed = torch.zeros(())
    for value, expected in ((0.0, True), (1.0, False), (0.0, True)):
        before = {"p": parameter.detach().clone()} | {
            k: v.clone() for k, v in optimizer.state_tensors().items()
        }
        parameter.grad = torch.full((5,), float("nan") if value else 1.0)
        optimizer.step(failed.fill_(value))
        after = {"p": parameter.detach().clone()} | optimizer.state_tensors()
        assert bool(changed(before, after)) is expected
        assert parameter.grad is None
    assert optimizer.state_tensors()["a/0/step"].item() == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_number_among_many_gradients_is_seen(value):
    parameters = [torch.nn.Parameter(torch.zeros(1000)) for _ in range(3)]
    groups = [
        ParameterGroup(n, [p], LearningRate(0.1)) for n, p in zip("abc", parameters, strict=True)
    ]
    optimizer = Optimizer(groups, 10)
    assert optimizer.gradient_sizes()[0] == []
    for parameter in parameters:
        parameter.grad = torch.full((1000,), 1e30)
    parameters[1].grad[999] = value
    names, sizes = optimizer.gradient_sizes()
    assert names == ["a", "b", "c"]
    assert torch.isfinite(sizes).tolist() == [True, False, True]
    assert optimizer.first_bad_gradient() == "b"


# ---- without waiting -----------------------------------------------------------------------------


def _hash(settings) -> None:
    settings.hidden.experts = ["hexplane", "hash"]
    settings.hash.hash_space_smooth_weight = settings.hash.hash_time_smooth_weight = 0.1


def _three(settings) -> None:
    settings.hidden.experts = ["hexplane", "embedding", "hash"]
    settings.hidden.moe_top_k, settings.hidden.MoE_scale = 2, True


def _motion(settings) -> None:
    settings.hidden.experts = ["polynomial", "keyframe", "zero"]


def _regularized(settings) -> None:
    settings.opt.balance_weight = settings.opt.entropy_weight_final = 0.1
    settings.opt.loss, settings.opt.batch_same_time = "charbonnier", True


def _colors(settings) -> None:
    settings.opt.camera_color, settings.hidden.gate = True, "published"


KINDS = {
    "plain": lambda settings: None,
    "hash": _hash,
    "three": _three,
    "motion": _motion,
    "regularized": _regularized,
    "colors": _colors,
}


def _trained(folder, kind, deferred, stage):
    settings = tiny.config(**(STILL | {"densify_until_iter": 30, "densify_from_iter": 20}))
    KINDS[kind](settings)
    trainer = tiny.trainer(folder, settings, deferred=deferred)
    trainer._start_stage(stage)
    trainer.model.train()
    trainer.iterate()  # caches fill
    for view in trainer.scene.train:
        view.camera.on("cpu", torch.float32)  # a GPU gets it once, through page-locked memory
    return trainer


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("stage", ["coarse", "fine"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_iteration_between_two_logs_reads_nothing(tmp_path, monkeypatch, kind, stage, masked):
    for module in ASK:
        monkeypatch.setattr(module, "reading_waits", lambda tensor: True)
    trainer = _trained(tmp_path, kind, True, stage)
    if masked:
        shape = (tiny.CAMERAS, tiny.FRAMES, tiny.HEIGHT, tiny.WIDTH)
        trainer.scene.train[0].store.masks = torch.ones(shape, dtype=torch.bool)
    forbidden = pytest.MonkeyPatch()
    silence.forbid_reading(forbidden)
    try:
        with silence.NoWaiting():
            trainer.iterate()
            trainer.iterate()
    finally:
        forbidden.undo()
    assert trainer.progress.iteration == 3 < LOG_INTERVAL and trainer.density.active


def test_what_would_wait_is_found(tmp_path):
    trainer = _trained(tmp_path, "plain", False, "fine")
    with pytest.raises(silence.Waited, match="lift_fresh|_local_scalar_dense"), silence.NoWaiting():
        trainer.iterate()
    x = torch.zeros(3)
    for wait in (
        lambda: x[x > 0],
        lambda: x[[0, 1]],
        lambda: x.nonzero(),
        lambda: torch.tensor([1.0]),
        lambda: bool(x.any()),
    ):
        with pytest.raises(silence.Waited), silence.NoWaiting():
            wait()


def test_reading_as_on_a_gpu_gives_the_same_training_but_for_rounding(tmp_path, monkeypatch):
    found = []
    for waits in (False, True):
        for module in ASK:
            monkeypatch.setattr(module, "reading_waits", lambda tensor, waits=waits: waits)
        trainer = made(tmp_path, offsets_lr=1e-2)
        for _ in range(9):
            trainer.iterate()
        found.append(state(trainer))
    assert all(torch.allclose(v, found[1][n], atol=1e-5) for n, v in found[0].items())


@pytest.mark.gpu
@pytest.mark.parametrize("stage", ["coarse", "fine"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_is_not_waited_for_between_two_logs(tmp_path, kind, stage):
    settings = tiny.config(**(STILL | {"densify_until_iter": 30, "densify_from_iter": 20}))
    KINDS[kind](settings)
    trainer = tiny.trainer(tmp_path, settings, device="cuda")
    trainer._start_stage(stage)
    trainer.model.train()
    while trainer.progress.iteration % LOG_INTERVAL or not trainer.progress.iteration:
        trainer.iterate()  # libraries load, caches fill
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(LOG_INTERVAL - 1):
            trainer.iterate()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    trainer.iterate()
    assert trainer.progress.iteration == 2 * LOG_INTERVAL


@pytest.mark.gpu
@pytest.mark.parametrize("breaks", [break_background, break_gradient])
def test_a_gpu_changes_nothing_by_a_step_that_is_not_finite(tmp_path, breaks):
    trainer = tiny.trainer(tmp_path, tiny.config(**STILL), device="cuda")
    trainer._start_stage("fine")
    trainer.model.train()
    for _ in range(3):
        trainer.iterate()
    before = state(trainer)
    breaks(trainer)
    with pytest.raises(UserError, match="fine iteration 4"):
        for _ in range(LOG_INTERVAL):
            trainer.iterate()
    assert changed(before, state(trainer)) == []
