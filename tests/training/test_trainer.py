"""The training loop on a tiny scene."""

from __future__ import annotations

import dataclasses
import json
import os
import signal

import pytest
import torch

import tiny
from arguments_MoDE.saved import save_config
from training.checkpoint import load_run, load_state, saved_iterations
from training.trainer import Shot
from utils.errors import UserError


def parameters(trainer) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters()}


def run(trainer, stop: tuple[str, int] | None = None) -> None:
    """Trains to the end, or through iteration ``stop`` of its stage."""
    trainer.model.train()
    while True:
        p = trainer.progress
        if stop == (p.stage, p.iteration):
            return
        if p.iteration == trainer.stage_length(p.stage):
            if p.stage == "fine":
                return
            trainer._end_coarse()
            continue
        trainer.iterate()


@pytest.mark.parametrize("stop", [("coarse", 5), ("fine", 3), ("fine", 11)])
def test_resumed_run_equals_an_uninterrupted_one_bit_by_bit(tmp_path, stop):
    straight = tiny.trainer(tmp_path)
    run(straight)
    first = tiny.trainer(tmp_path)
    run(first, stop)
    folder = first.save_checkpoint()
    second = tiny.trainer(tmp_path)
    torch.manual_seed(99)  # the checkpoint must bring its own random state
    second.restore(*load_state(folder))
    run(second)
    expected, got = parameters(straight), parameters(second)
    assert expected.keys() == got.keys()
    different = [n for n in expected if not torch.equal(expected[n], got[n])]
    assert not different


def test_training_lowers_the_loss_on_one_view(tmp_path):
    settings = tiny.config(iterations=150, batch_size=1, lambda_dssim=0.0, densify_until_iter=0)
    trainer = tiny.trainer(tmp_path, settings)
    trainer.scene.train = trainer.scene.train[:1]
    trainer.sampler.views = trainer.scene.train
    before = trainer.evaluate()["train"]["psnr"]
    run(trainer)
    assert trainer.evaluate()["train"]["psnr"] > before + 1


def test_every_parameter_group_moves_in_the_fine_stage(tmp_path):
    settings = tiny.config(gaiting_from_iter=0, densify_until_iter=0, iterations=30)
    trainer = tiny.trainer(tmp_path, settings)
    trainer._start_stage("fine")
    before = parameters(trainer)
    trainer.model.gaussians.active_sh_degree = 3
    run(trainer)
    after = parameters(trainer)
    still = [n for n in before if torch.equal(before[n], after[n])]
    # Heads of the guest that are not mixed are not computed, and the camera that is never trained
    # keeps its row of the offsets.
    assert all("last.log_scale" in n or "last.sh" in n for n in still), still


def test_nan_in_an_image_stops_before_the_step_and_names_view_and_term(tmp_path):
    trainer = tiny.trainer(tmp_path)
    trainer._start_stage("fine")
    trainer.model.train()
    with torch.no_grad():
        trainer.model.experts["hexplane"].heads.last["log_scale"].bias.fill_(float("nan"))
        trainer.background[0] = float("nan")
    before = parameters(trainer)
    with pytest.raises(UserError, match=r"fine iteration 1: loss term .*l1.* cam0\d/000\d"):
        trainer.iterate()
    after = parameters(trainer)
    assert all(torch.equal(before[n].nan_to_num(9), after[n].nan_to_num(9)) for n in before)


def test_views_of_one_time_are_rendered_together_and_give_the_same_step(tmp_path):
    steps = []
    for together in (False, True):
        settings = tiny.config(
            densify_until_iter=0, iterations=1, coarse_iterations=1, offsets_lr=0.0
        )
        trainer = tiny.trainer(tmp_path, settings)
        trainer._start_stage("fine")
        batch = [v for v in trainer.scene.train if v.frame_index == 2]
        trainer.sampler.next = lambda batch=batch: batch
        settings.opt.batch_same_time, settings.opt.gaiting_from_iter = together, 0
        trainer.model.train()
        trainer.iterate()
        steps.append(parameters(trainer))
    for name in steps[0]:
        assert torch.allclose(steps[0][name], steps[1][name], atol=2e-4), name


def test_cameras_that_see_nothing_train_without_error(tmp_path):
    trainer = tiny.trainer(tmp_path, tiny.config(densify_until_iter=0))
    with torch.no_grad():
        trainer.model.gaussians.xyz[:, 2] = -100.0
    run(trainer)
    assert trainer.progress.iteration == 16


def test_a_run_folder_renders_as_the_model_in_memory(tmp_path):
    from arguments_MoDE.cli import save_config

    trainer = tiny.trainer(tmp_path, save_iterations=[10])
    save_config(trainer.config, tmp_path / "config.json")
    trainer.train()
    assert saved_iterations(tmp_path) == [10, 16]
    loaded = load_run(tmp_path)
    assert loaded.iteration == 16
    trainer.model.eval()
    with torch.no_grad():
        ours = trainer.model.deform(0.4, iteration=16)
        theirs = loaded.model.deform(0.4, iteration=16)
    for name in ("means", "scales", "rotations", "opacities", "sh"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


def press_ctrl_c_in_iteration(trainer, stage: str, iteration: int) -> None:
    """Delivers the signal in the middle of that iteration, between backward and step."""
    original = trainer.optimizer.first_bad_gradient
    p = trainer.progress

    def pressed():
        if (p.stage, p.iteration) == (stage, iteration - 1):
            os.kill(os.getpid(), signal.SIGINT)
        return original()

    trainer.optimizer.first_bad_gradient = pressed


def test_ctrl_c_finishes_the_iteration_and_leaves_a_checkpoint_that_continues_the_run(tmp_path):
    straight = tiny.trainer(tmp_path / "a")
    run(straight)
    first = tiny.trainer(tmp_path / "b")
    press_ctrl_c_in_iteration(first, "coarse", 5)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    folder = tmp_path / "b" / "checkpoint" / "coarse_5"
    second = tiny.trainer(tmp_path / "b")
    second.restore(*load_state(folder))
    run(second)
    expected, got = parameters(straight), parameters(second)
    assert [n for n in expected if not torch.equal(expected[n], got[n])] == []


def test_a_run_stopped_after_its_last_iteration_still_saves_its_model(tmp_path):
    first = tiny.trainer(tmp_path)
    run(first)
    folder = first.save_checkpoint()
    second = tiny.trainer(tmp_path)
    second.restore(*load_state(folder))
    second.train()
    assert saved_iterations(tmp_path) == [16]


def test_views_of_different_size_share_a_batch(tmp_path):
    trainer = tiny.trainer(tmp_path, tiny.config(batch_size=4))
    views = trainer.scene.train
    half = views[0].camera.resized(tiny.WIDTH // 2, tiny.HEIGHT // 2)
    small = dataclasses.replace(views[0], camera=half, store=HalfSize())
    trainer.sampler.views = [small, *views[1:]]
    run(trainer)
    assert trainer.progress.iteration == 16


class HalfSize:
    def get(self, source, frame):
        return torch.full((tiny.HEIGHT // 2, tiny.WIDTH // 2, 3), 100, dtype=torch.uint8)

    def mask(self, source, frame):
        return None

    def prefetch(self, pairs):
        pass


def test_loss_of_a_mixed_batch_is_the_mean_over_all_pixels(tmp_path):
    trainer = tiny.trainer(tmp_path, tiny.config(lambda_dssim=0.0))
    big, small = torch.full((1, 3, 8, 8), 0.5), torch.full((2, 3, 4, 4), 0.1)
    shots = [Shot([], i, torch.zeros_like(i), None, None) for i in (big, small)]
    expected = (64 * 0.5 + 32 * 0.1) / 96
    assert trainer._loss_terms(shots, 1)["l1"].item() == pytest.approx(expected)


def test_cameras_that_share_a_deformation_leave_the_time_offsets_alone(tmp_path):
    settings = tiny.config(batch_same_time=True, gaiting_from_iter=0, offsets_lr=0.1)
    trainer = tiny.trainer(tmp_path, settings)
    run(trainer)
    assert trainer.model.experts["embedding"].offsets.abs().sum() == 0


def test_metrics_jsonl_holds_strict_json_lines(tmp_path):
    trainer = tiny.trainer(tmp_path, test_iterations=[10])
    trainer.train()
    trainer.report.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line, parse_constant=lambda c: pytest.fail(c)) for line in lines]
    kinds = {r["event"] for r in records}
    assert kinds >= {"train", "evaluate", "save"}
    assert any("psnr" in r and r.get("set") == "test" for r in records)


def test_camera_colors_are_trained_and_survive_a_checkpoint(tmp_path):
    trainer = tiny.trainer(tmp_path, tiny.config(camera_color=True))
    run(trainer)
    assert trainer.colors.delta.detach().abs().sum() > 0
    folder = trainer.save_checkpoint()
    other = tiny.trainer(tmp_path, tiny.config(camera_color=True))
    other.restore(*load_state(folder))
    assert torch.equal(other.colors.delta, trainer.colors.delta)


@pytest.mark.gpu
@pytest.mark.parametrize("stage", ["coarse", "fine"])
def test_a_gpu_trains_as_the_cpu_does(tmp_path, stage):
    found = []
    for device in ("cpu", "cuda"):
        settings = tiny.config(densify_until_iter=0, gaiting_from_iter=0, coarse_iterations=30)
        settings.opt.iterations = 30
        trainer = tiny.trainer(tmp_path, settings, device=device)
        trainer._start_stage(stage)
        trainer.model.train()
        numbers = [trainer.iterate() for _ in range(30)]
        found.append([row["loss"] for row in numbers if row])
    assert found[0] == pytest.approx(found[1], rel=1e-3)


# ---- masks --------------------------------------------------------------------------------------


def moving_patch() -> torch.Tensor:
    """(cameras, frames, H, W) bool: all but a patch that moves over the clip."""
    masks = torch.ones(tiny.CAMERAS, tiny.FRAMES, tiny.HEIGHT, tiny.WIDTH, dtype=torch.bool)
    for frame in range(tiny.FRAMES):
        masks[:, frame, 4:12, 4 * frame : 4 * frame + 8] = False
    return masks


@pytest.mark.parametrize("loss", ["l1", "l2", "charbonnier"])
def test_what_is_masked_out_changes_no_bit_of_the_training(tmp_path, loss):
    found = []
    for garbage in (None, 0, 255):
        trainer = tiny.trainer(tmp_path, tiny.config(loss=loss, lambda_dssim=0.3))
        store = trainer.scene.train[0].store
        store.masks = moving_patch()
        if garbage is not None:
            store.pixels[~store.masks] = garbage
        run(trainer)
        found.append(parameters(trainer))
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in other)


def test_a_mask_that_hides_nothing_changes_nothing(tmp_path):
    found = []
    for masks in (None, torch.ones_like(moving_patch())):
        trainer = tiny.trainer(tmp_path)
        trainer.scene.train[0].store.masks = masks
        run(trainer, ("coarse", 3))
        found.append(parameters(trainer))
    assert all(torch.allclose(found[0][n], found[1][n], atol=1e-6) for n in found[0])


def test_views_that_are_masked_out_whole_teach_nothing_and_are_survived(tmp_path):
    settings = tiny.config(densify_until_iter=0, coarse_iterations=20)
    trainer = tiny.trainer(tmp_path, settings)
    trainer.scene.train[0].store.masks = torch.zeros_like(moving_patch())
    before = parameters(trainer)
    run(trainer, ("coarse", 20))
    assert all(torch.equal(before[n], p) for n, p in parameters(trainer).items())
    trainer._log({"loss": 0.0, "psnr": float("nan")})
    trainer._log({"loss": 0.0, "psnr": 20.0})
    assert trainer.progress.smooth["psnr"] == 20.0


def test_evaluation_while_training_says_that_it_is_masked(tmp_path):
    trainer = tiny.trainer(tmp_path)
    assert "masked" not in trainer.evaluate()["test"]
    trainer.scene.train[0].store.masks = moving_patch()
    assert trainer.evaluate()["test"]["masked"] is True


def test_what_is_saved_and_evaluated_has_been_trained_since_density_control_changed_it(tmp_path):
    """An iteration that densifies and resets opacities does so after its model is looked at."""
    settings = tiny.config(
        coarse_iterations=4, iterations=8, opacity_reset_interval=4, max_gaussians=1000
    )
    trainer = tiny.trainer(tmp_path, settings, save_iterations=(4,))
    save_config(settings, tmp_path / "config.json")
    trainer.train()
    events = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    changed = [e for e in events if e.get("split") or e.get("cloned")]
    assert [(e["stage"], e["iteration"]) for e in changed] == [("coarse", 4), ("fine", 5)]
    early, late = (load_run(tmp_path, iteration).model.gaussians for iteration in (4, 8))
    assert early.opacity.sigmoid().max() > 0.05  # a reset leaves 0.01
    assert len(early) == changed[0]["gaussians"]
    grown = changed[1]["split"] + changed[1]["cloned"] - changed[1]["pruned"]
    assert len(late) == len(early) + grown > len(early)


def test_the_regularisers_are_told_the_iteration_that_the_router_has(tmp_path):
    settings = tiny.config(coarse_iterations=0, iterations=9, gaiting_from_iter=5)
    settings.opt.entropy_weight_final = 0.5
    trainer = tiny.trainer(tmp_path, settings)
    trainer._start_stage("fine")
    trainer.model.train()
    seen, terms = [], trainer._loss_terms
    trainer._loss_terms = lambda *given: seen.append(terms(*given)) or seen[-1]
    decides = [not trainer.model.warming_up(i, "fine") for i in range(1, 10)]
    for _ in range(9):
        trainer.iterate()
    assert decides == [any("entropy" in name for name in found) for found in seen]
    assert decides.index(True) == 4


def test_colours_get_a_degree_more_at_every_interval_of_a_stage(tmp_path):
    settings = tiny.config(sh_interval=3, coarse_iterations=4, iterations=7, densify_until_iter=0)
    settings.model.sh_degree = 2
    trainer = tiny.trainer(tmp_path, settings)
    degrees = []
    for _ in range(11):
        if trainer.progress.stage == "coarse" and trainer.progress.iteration == 4:
            trainer._end_coarse()
        trainer.iterate()
        degrees.append(trainer.model.gaussians.active_sh_degree)
    assert degrees == [0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2]
