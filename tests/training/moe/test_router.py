"""Training the router: it learns, stops and goes on exactly, and refuses what does not belong."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny
import tiny_moe
import train_moe
from arguments_MoDE.config import RouterParams
from gaussian_renderer import render
from tiny_moe import (
    COMMON,
    CURVES,
    ITERATION,
    NAMES,
    fails,
    files_in,
    mixture,
    pretend_rendered,
    router_trainer,
)
from training.checkpoint import checkpoints, load_state
from training.evaluation import evaluate_views
from training.moe import router as router_module
from training.moe.files import (
    begun_with,
    load_moe,
    read_settings,
    rendering_temperature,
    router_sha256,
    saved_routers,
    training_temperature,
)
from training.moe.model import MoEGS
from training.moe.router import RouterTrainer
from training.moe.views import MoEViewRenderer
from training.rendering import collect
from utils.errors import UserError
from utils.interrupts import Interrupted
from utils.metrics import to_8bit
from utils.verify import read_sealed, write_sealed

# ---- what is learned ----------------------------------------------------------------------------


def halves() -> tuple[MoEGS, object]:
    """Two experts of the same Gaussians, each painted wrongly in one half; what they should show.

    The first is right on the left, the second on the right.
    """
    settings = tiny_moe.settings_of("polynomial")
    models, right = {}, None
    world = tiny.scene()
    for name, sign in (("left", 1), ("right", -1)):
        model = tiny_moe.model_of("polynomial", world, settings, seed=0, count=60)
        own = model.gaussians
        with torch.no_grad():
            for parameter in model.experts.parameters():
                parameter.zero_()
            for key in own.names:
                if key not in ("xyz", "log_scale", "rotation", "opacity", "f_dc", "f_rest"):
                    own[key].zero_()
            own.opacity.fill_(2)
            own.f_rest.zero_()
            truth = own.f_dc.clone()
            wrong = (sign * own.xyz[:, 0] > 0)[:, None, None]
            own.f_dc.copy_(torch.where(wrong, -truth, truth))
        models[name], right = model, truth
    model = MoEGS(models, dict.fromkeys(models, ITERATION), "volume_aware")
    for view in world.train + world.test:
        part = models["left"].deform(view.time, iteration=ITERATION)
        sh = torch.cat([right, torch.zeros_like(part.sh[:, 1:])], dim=1)
        out = render([view.camera], replace(part, sh=sh), torch.ones(3), 0).images[0]
        view.store.pixels[view.slot] = to_8bit(out.detach()).permute(1, 2, 0)
    return model, world


def test_the_right_expert_is_trusted_where_it_is_right(tmp_path):
    model, world = halves()
    params = RouterParams(router_iterations=100, temperature_final=0.3)
    trainer = router_trainer(tmp_path, model, world, params)
    for _ in range(100):
        trainer.iterate()
    render = MoEViewRenderer(model, world, params)
    reached = evaluate_views(render, world.train)["psnr"]
    alone = [
        evaluate_views(MoEViewRenderer(model, world, params, [n]), world.train)["psnr"]
        for n in ("left", "right")
    ]
    assert reached > max(alone) + 5
    shares = []
    for view in world.train:
        blend = render.blend([view])
        wrong = (blend.experts[0] - blend.experts[0].flip(0)).abs().amax(1)[0] > 0.2
        truth = view.image().permute(2, 0, 1) / 255
        better = (blend.experts[0] - truth).abs().mean(1).argmin(0)
        shares.append(blend.gates[0].gather(0, better[None])[0][wrong])
    trusted = torch.cat(shares)
    assert len(trusted) > 100 and trusted.median() > 0.9 and (trusted > 0.5).float().mean() > 0.9


@pytest.mark.parametrize("router", tiny_moe.ROUTERS)
def test_the_loss_falls_and_experts_stay_as_they_are(tmp_path, router):
    model = mixture(router)
    before = {n: p.clone() for n, p in model.experts.named_parameters()}
    params = RouterParams(router=router, router_iterations=40)
    trainer = router_trainer(tmp_path, model, params=params)
    world, start = trainer.scene, {n: p.clone() for n, p in model.router.named_parameters()}
    first = evaluate_views(MoEViewRenderer(model, world, params), world.train)["psnr"]
    for _ in range(40):
        trainer.iterate()
    last = evaluate_views(MoEViewRenderer(model, world, params), world.train)["psnr"]
    assert last > first
    assert all(torch.equal(p, before[n]) for n, p in model.experts.named_parameters())
    assert all(p.grad is None for p in model.experts.parameters())
    assert all(not torch.equal(p, start[n]) for n, p in model.router.named_parameters())


def test_the_loss_is_l1_and_dssim_in_their_shares(tmp_path):
    """Against the written formula, with views of a batch."""
    from utils.metrics import ssim

    params = RouterParams(router_lambda_dssim=0.3, router_batch_size=2, temperature="published")
    trainer = router_trainer(tmp_path, tiny_moe.scatter(mixture()), params=params)
    seen = {}
    trainer._step = lambda loss, batch, iteration: seen.update(loss=loss, batch=batch)
    trainer.iterate()
    views = seen["batch"]
    assert len(views) == 2 and len({v.time for v in views}) == 1
    images = trainer.model([v.camera for v in views], views[0].time, torch.ones(3), 0.01).images
    targets = torch.stack([v.image().permute(2, 0, 1) / 255 for v in views])
    similar = torch.stack([ssim(i, t) for i, t in zip(images, targets, strict=True)]).mean()
    written = 0.7 * (images - targets).abs().mean() + 0.3 * (1 - similar)
    assert seen["loss"].item() == pytest.approx(written.item(), rel=1e-4)


def test_views_of_different_sizes_share_a_batch(tmp_path):
    """A rig's cameras may differ; every pixel counts alike."""
    world, small = tiny.scene(), tiny.Images(seed=4)
    small.pixels = small.pixels[:, :, :12, :16].contiguous()
    lens = replace(tiny.camera(2), width=16, height=12, cx=8.0, cy=6.0)
    world.train[:] = [
        replace(v, camera=lens, store=small) if v.camera_index == 2 else v for v in world.train
    ]
    params = RouterParams(router_lambda_dssim=0.0, router_batch_size=2, temperature="published")
    trainer = router_trainer(tmp_path, tiny_moe.scatter(mixture()), world, params)
    seen = {}
    trainer._step = lambda loss, batch, iteration: seen.update(loss=loss, batch=batch)
    trainer.iterate()
    errors = []
    for view in seen["batch"]:
        image = trainer.model([view.camera], view.time, torch.ones(3), 0.01).images[0]
        errors.append((image - view.image().permute(2, 0, 1) / 255).abs().flatten())
    assert sorted(map(len, errors)) == [3 * 16 * 12, 3 * 24 * 16]
    assert seen["loss"].item() == pytest.approx(torch.cat(errors).mean().item(), rel=1e-4)


def test_pixels_that_do_not_count_teach_nothing(tmp_path):
    ends = []
    for shade in (0, 255):
        world = tiny.scene()
        store = world.train[0].store
        store.masks = torch.ones(store.pixels.shape[:-1], dtype=torch.bool)
        store.masks[..., :12] = False
        store.pixels[..., :12, :] = shade
        trainer = router_trainer(tmp_path / str(shade), mixture(), world)
        for _ in range(3):
            trainer.iterate()
        ends.append(trainer.model.router.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_temperatures():
    annealed = RouterParams(router_iterations=100, temperature_init=2.0, temperature_final=0.02)
    assert training_temperature(annealed, 0) == pytest.approx(2)
    assert training_temperature(annealed, 50) == pytest.approx(0.2)  # log-linear
    assert training_temperature(annealed, 100) == pytest.approx(0.02)
    assert rendering_temperature(annealed) == 0.02
    published = RouterParams(temperature="published")
    assert training_temperature(published, 1) == training_temperature(published, 5000) == 0.01
    assert rendering_temperature(published) == 1


def test_rates_and_optimiser_are_the_written_ones(tmp_path):
    params = RouterParams(router_iterations=10, mask_lr=0.5, mask_lr_final=0.005)
    trainer = router_trainer(tmp_path, mixture(), params=params)
    assert isinstance(trainer.optimizer, torch.optim.RAdam)
    trainer.progress.iteration = 4
    trainer.iterate()
    rates = {g["name"]: g["lr"] for g in trainer.optimizer.param_groups}
    assert rates == pytest.approx({"weight": 0.05, "time": 0.05, "network": 0.05})
    counts = {g["name"]: len(g["params"]) for g in trainer.optimizer.param_groups}
    assert counts == {"weight": 2, "time": 2, "network": 3}
    shapes = {tuple(p.shape[1:]) for p in trainer.optimizer.param_groups[0]["params"]}
    assert shapes == {(2,)}  # w and w_dir are learned with one rate


def test_the_temperature_of_an_iteration_is_the_schedules(tmp_path):
    params = RouterParams(router_iterations=4)
    trainer = router_trainer(tmp_path, mixture(), params=params)
    seen, real = [], trainer.model.forward

    def forward(cameras, time, background, temperature, chosen=None):
        seen.append(temperature)
        return real(cameras, time, background, temperature, chosen)

    trainer.model.forward = forward
    for _ in range(4):
        trainer.iterate()
    assert seen == [training_temperature(params, i) for i in (1, 2, 3, 4)]


def test_cameras_that_differ_in_colour_are_compared_in_theirs(tmp_path):
    model = mixture()
    for expert in model.experts.values():
        expert.config.opt.camera_color = True
    trainer = router_trainer(tmp_path, model, params=RouterParams(router_iterations=5))
    assert "camera_color" in {g["name"] for g in trainer.optimizer.param_groups}
    for _ in range(5):
        trainer.iterate()
    moved = trainer.colors.delta.detach().abs().sum((1, 2))
    assert (moved > 0).tolist() == [False, True, True]  # camera 0 is held out
    assert set(model.router.state_dict()) == set(mixture().router.state_dict())


@pytest.mark.parametrize("row", range(len(NAMES)))
def test_colours_of_cameras_are_learnt_where_any_expert_did(tmp_path, row):
    """Whichever is named first."""
    model = mixture()
    opt = model.experts[NAMES[row]].config.opt
    opt.camera_color, opt.exposure_lr = True, 0.0625
    trainer = router_trainer(tmp_path, model)
    assert trainer.colors is not None and trainer.rates["camera_color"].initial == 0.0625


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_ends_the_training_in_one_line(tmp_path, what):
    trainer = router_trainer(tmp_path, mixture())
    if what == "loss":
        with torch.no_grad():
            trainer.model.router.network.layers[0][0, 0, 0] = float("nan")
    else:
        own = trainer.model.router.gaussians[NAMES[0]]["weight"]
        own.register_hook(lambda grad: grad / 0)
    before = {n: p.detach().clone() for n, p in trainer.model.router.named_parameters()}
    with pytest.raises(UserError, match=f"router iteration 1: .*{what} is not finite.*cam0"):
        trainer.iterate()
    for name, parameter in trainer.model.router.named_parameters():
        assert torch.equal(parameter.nan_to_num(7), before[name].nan_to_num(7))


# ---- going on -----------------------------------------------------------------------------------

LENGTH = 12


def _everything(trainer: RouterTrainer) -> tuple[dict, dict, list]:
    tensors, info = load_state(trainer.save_checkpoint(), ())
    for key in ("sha256", "reported_bytes"):
        info.pop(key)
    info["progress"].pop("seconds")
    rates = {g["name"]: g["lr"] for g in trainer.optimizer.param_groups}
    lines = (trainer.arguments.model_path / "metrics.jsonl").read_text().splitlines()
    rows = [{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in lines]
    return tensors, info | {"rates": rates}, rows


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("router", tiny_moe.ROUTERS)
def test_twelve_iterations_are_seven_and_five(tmp_path, monkeypatch, router, threads):
    """Weights, moments, colours, sampler, progress and what was reported, to the bit."""
    monkeypatch.setattr(router_module, "LOG_INTERVAL", 3)
    params = RouterParams(router=router, router_iterations=LENGTH, router_batch_size=2)

    def fresh(folder: str, keep: int | None = None) -> RouterTrainer:
        model = mixture(router)
        for expert in model.experts.values():
            expert.config.opt.camera_color = True
        return router_trainer(tmp_path / folder, model, params=params, keep=keep)

    def run(trainer: RouterTrainer, until: int) -> None:
        while trainer.progress.iteration < until:
            trainer._log(trainer.iterate())

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        straight = fresh("straight")
        run(straight, LENGTH)
        first = fresh("first")
        run(first, 7)
        state = load_state(first.save_checkpoint(), ())
        run(first, 10)  # what is reported after the checkpoint is reported again
        shutil.copytree(tmp_path / "first", tmp_path / "second")
        second = fresh("second", keep=7)
        torch.manual_seed(99)
        second.sampler.generator.manual_seed(99)
        second.restore(*state)
        assert second.progress.iteration == 7
        run(second, LENGTH)
        (ours, info, rows), (theirs, other, lines) = map(_everything, (straight, second))
    finally:
        torch.set_num_threads(before)
    assert ours.keys() == theirs.keys() and any(k.startswith("optimizer/") for k in ours)
    assert [k for k in ours if ours[k].numpy().tobytes() != theirs[k].numpy().tobytes()] == []
    assert info == other
    assert rows == lines and [r["step"] for r in rows] == [3, 6, 9, 12]


@pytest.mark.parametrize("lost", ["optimizer", "rng", "queue", "router"])
def test_the_comparison_above_shows_what_a_checkpoint_lacks(tmp_path, lost):
    params = RouterParams(router_iterations=LENGTH)
    straight = router_trainer(tmp_path / "straight", mixture(), params=params)
    first = router_trainer(tmp_path / "first", mixture(), params=params)
    second = router_trainer(tmp_path / "second", mixture(), params=params)
    fresh, _ = load_state(second.save_checkpoint(), ())
    for _ in range(5):
        first.iterate()
    tensors, info = load_state(first.save_checkpoint(), ())
    if lost == "queue":
        info["queue"] = info["queue"][::-1]
    else:
        tensors = {k: v for k, v in tensors.items() if not k.startswith(lost)} | {
            k: v for k, v in fresh.items() if k.startswith(lost)
        }
    second.restore(tensors, info)
    for trainer in (straight, second):
        while trainer.progress.iteration < LENGTH:
            trainer.iterate()
    (ours, *_), (theirs, *_) = map(_everything, (straight, second))
    assert [k for k in ours if ours[k].numpy().tobytes() != theirs[k].numpy().tobytes()]


# ---- the command --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scene_of(tmp_path_factory) -> Path:
    return tiny_moe.scene_folder(tmp_path_factory.mktemp("data") / "scene")


@pytest.fixture(scope="module")
def pair(scene_of, tmp_path_factory) -> Path:
    """Two experts, not to be changed."""
    return tiny_moe.experts(tmp_path_factory.mktemp("pair"), scene_of)


def flags(out: Path, pair: Path, *more: str) -> list[str]:
    named = [f"{name}={pair / 'experts' / name}" for name in NAMES]
    line = ["router", "--expname", str(out), "--experts", *named, *COMMON]
    return [*line, "--router_iterations", "6", "--router_batch_size", "2", *more]


def command(out: Path, pair: Path, *more: str) -> int:
    return train_moe.main(flags(out, pair, *more))


def test_the_command_trains_saves_and_reports(pair, tmp_path, capsys):
    out, before = tmp_path / "out", files_in(pair)
    plan = ("--save_iterations", "3", "--test_iterations", "4", "--checkpoint_iterations", "2", "5")
    assert command(out, pair, *plan) == 0
    assert saved_routers(out) == [3, 6]
    assert [p.name for p in checkpoints(out)] == ["router_2", "router_5"]
    run = load_moe(out)
    assert run.iteration == 6 and run.params.router_iterations == 6 and list(run.runs) == [*NAMES]
    assert load_moe(out, 3).iteration == 3
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    measured = [(r["step"], r["set"]) for r in rows if r["event"] == "evaluate"]
    assert measured == [(4, "test"), (4, "train"), (6, "test"), (6, "train")]
    assert all(0 < r["psnr"] < 60 and r["stage"] == "router" for r in rows if "psnr" in r)
    assert files_in(pair) == before
    assert "router trained" in capsys.readouterr().out


def test_a_complete_router_is_left_alone(pair, tmp_path, capsys):
    out = tmp_path / "out"
    command(out, pair)
    before = files_in(out)
    assert command(out, pair) == command(out, pair, "--resume") == 0
    assert capsys.readouterr().out.count("has this router already") == 2
    assert files_in(out) == before
    assert command(out, pair, "--overwrite", "--router_seed", "3") == 0
    assert (
        files_in(out)["router/iteration_6/router.safetensors"]
        != (before["router/iteration_6/router.safetensors"])
    )


def test_pictures_of_the_router_that_is_overwritten_are_not_taken_for_the_new_ones(pair, tmp_path):
    out = tmp_path / "out"
    command(out, pair)
    pretend_rendered(out, 6)
    pretend_rendered(out / "experts" / NAMES[0], ITERATION)  # of a run of its own
    assert command(out, pair, "--overwrite", "--router_seed", "3") == 0
    assert not (out / CURVES).exists()
    assert collect(out, 6)["sets"] == {} and not (out / "gates.json").exists()
    assert not (out / "metrics.json").exists() and (out / "test" / "notes.txt").exists()
    assert list(collect(out / "experts" / NAMES[0], ITERATION)["sets"]) == ["test"]


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_a_checkpoint_and_the_run_goes_on_to_the_same_bits(
    pair, tmp_path, capsys, monkeypatch, number, code
):
    out, straight = tmp_path / "out", tmp_path / "straight"
    real = RouterTrainer._step

    def step(self, loss, batch, iteration):
        if iteration == 4:
            os.kill(os.getpid(), number)
        real(self, loss, batch, iteration)

    with monkeypatch.context() as patch:
        patch.setattr(RouterTrainer, "_step", step)
        with pytest.raises(Interrupted) as stop:
            command(out, pair)
    assert 128 + stop.value.number == code
    assert [p.name for p in checkpoints(out)] == ["router_4"] and saved_routers(out) == []
    assert "--resume continues it" in fails(capsys, lambda: command(out, pair))
    assert command(out, pair, "--resume") == 0
    command(straight, pair)
    for name in ("router.safetensors",):
        ours, theirs = (f / "router" / "iteration_6" / name for f in (out, straight))
        assert ours.read_bytes() == theirs.read_bytes()
    assert [json.loads(x)["event"] for x in (out / "metrics.jsonl").read_text().splitlines()] == [
        json.loads(x)["event"] for x in (straight / "metrics.jsonl").read_text().splitlines()
    ]


@pytest.fixture
def stopped(pair, tmp_path) -> Path:
    """A run that ended after iteration 4 of 6."""
    out = tmp_path / "stopped"
    command(out, pair, "--checkpoint_iterations", "4")
    shutil.rmtree(out / "router")
    return out


@pytest.mark.parametrize("checkpointed", [True, False])
def test_resuming_with_other_settings_or_experts_is_refused_by_name(
    stopped, pair, scene_of, tmp_path, capsys, checkpointed
):
    """Also where nothing has been saved to go on from: what is there is not replaced unasked."""
    if not checkpointed:
        shutil.rmtree(stopped / "checkpoint")
    before = files_in(stopped)
    other = tmp_path / "other"
    shutil.copytree(pair, other)
    shutil.rmtree(other / "experts" / NAMES[1])
    tiny_moe.expert(other / "experts" / NAMES[1], scene_of, NAMES[1], seed=9)
    third = tiny_moe.expert(tmp_path / "third", scene_of, "hexplane", seed=8)
    lines = {
        "mask_lr is 0.25 but the run was begun with 0.5": (pair, "--mask_lr", "0.25"),
        "router_iterations is 9": (pair, "--router_iterations", "9"),
        "router is 'pixel'": (pair, "--router", "pixel"),
        f"begun with expert {NAMES[1]} as it was then": (other,),
    }
    for said, (folder, *more) in lines.items():
        assert said in fails(capsys, lambda f=folder, m=more: command(stopped, f, *m, "--resume"))
    line = flags(stopped, pair, "--resume")
    line.insert(line.index("--device"), str(third))
    assert "begun with 2 experts, not 3" in fails(capsys, lambda: train_moe.main(line))
    assert files_in(stopped) == before
    assert command(stopped, pair, "--resume") == 0 and saved_routers(stopped) == [6]


def test_a_complete_router_is_not_replaced_by_resuming_with_other_settings(pair, tmp_path, capsys):
    out = tmp_path / "out"
    command(out, pair)
    before = files_in(out)
    said = fails(capsys, lambda: command(out, pair, "--resume", "--router_seed", "1"))
    assert "router_seed is 1" in said and files_in(out) == before


def test_folders_of_something_else_are_not_touched(pair, scene_of, tmp_path, capsys):
    """A run of one expert, with checkpoints of its own; the scene; a file."""
    single = tmp_path / "single"
    shutil.copytree(pair / "experts" / NAMES[0], single)
    (single / "checkpoint" / "fine_3").mkdir(parents=True)
    (single / "checkpoint" / "fine_3" / "state.json").write_text("{}")
    (single / "metrics.jsonl").write_text("\n")
    (tmp_path / "file").write_text("")
    before = files_in(single)
    for more in ((), ("--overwrite",), ("--resume",)):
        said = fails(capsys, lambda m=more: command(single, pair, *m))
        assert "holds the run of a single model" in said
    assert "holds the scene itself" in fails(capsys, lambda: command(scene_of, pair))
    assert "is a file" in fails(capsys, lambda: command(tmp_path / "file", pair))
    assert files_in(single) == before and not (scene_of / "moe.json").exists()


def test_a_test_image_that_is_damaged_costs_no_training(pair, tmp_path, monkeypatch):
    def broken(self):
        raise UserError("test image x is damaged")

    monkeypatch.setattr(RouterTrainer, "evaluate", broken)
    with pytest.raises(UserError, match="test image x"):
        command(tmp_path / "out", pair)
    assert saved_routers(tmp_path / "out") == [6]


def test_what_killed_trainings_left_is_tidied_up(stopped, pair):
    for name in ("checkpoint/.partial-router_5.abc", "router/.partial-iteration_6.abc"):
        (stopped / name).mkdir(parents=True)
        (stopped / name / "state.json").write_text("{")
    (stopped / ".partial-moe.json.abc.json").write_text("{")
    command(stopped, pair, "--resume")
    assert list(stopped.rglob(".partial-*")) == []


def test_a_checkpoint_of_another_version_is_refused_in_one_line(stopped, pair, capsys):
    path = stopped / "checkpoint" / "router_4" / "state.json"
    state = read_sealed(path)[0]
    path.unlink()
    write_sealed(path, state | {"progress": {"step": 4}})
    said = fails(capsys, lambda: command(stopped, pair, "--resume"))
    assert "another version of this program (its progress is {'step': 4})" in said


def test_a_router_begins_with_anothers_weights(pair, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    command(first, pair)
    assert command(second, pair, "--start_router", str(first), "--mask_lr", "0") == 0
    weights = [load_moe(f).model.router.gaussians[NAMES[0]]["weight"] for f in (first, second)]
    assert torch.equal(*weights)
    said = fails(
        capsys,
        lambda: command(tmp_path / "x", pair, "--start_router", str(first), "--router", "pixel"),
    )
    assert "--start_router" in said and "volume_aware" in said and not (tmp_path / "x").exists()
    assert "no moe.json" in fails(
        capsys, lambda: command(tmp_path / "x", pair, "--start_router", str(pair))
    )
    line = flags(tmp_path / "x", pair, "--start_router", str(first))
    at = line.index("--experts") + 1
    line[at : at + 2] = line[at : at + 2][::-1]  # the pixel router's networks go by the order
    said = fails(capsys, lambda: train_moe.main(line))
    assert f"its experts are {', '.join(NAMES)}, not {', '.join(NAMES[::-1])}" in said
    assert not (tmp_path / "x").exists()


def test_what_a_router_began_with_is_kept_and_no_other_is_taken_for_it(pair, tmp_path, capsys):
    first, other, out = tmp_path / "first", tmp_path / "other", tmp_path / "out"
    command(first, pair)
    command(other, pair, "--router_seed", "7")
    command(out, pair, "--start_router", str(first), "--checkpoint_iterations", "4")
    shutil.rmtree(out / "router")  # as if it had stopped there
    assert begun_with(out) == router_sha256(first) != router_sha256(other)
    said = fails(capsys, lambda: command(out, pair, "--start_router", str(other), "--resume"))
    assert "was not begun with the router of --start_router" in said and str(other) in said
    early = tmp_path / "early"
    shutil.copytree(out, early)
    shutil.rmtree(early / "checkpoint")
    before = files_in(early)
    assert "same --start_router again" in fails(capsys, lambda: command(early, pair, "--resume"))
    assert files_in(early) == before
    assert command(early, pair, "--resume", "--start_router", str(first)) == 0
    assert command(out, pair, "--resume") == 0 and begun_with(out) == router_sha256(first)
    capsys.readouterr()
    assert command(out, pair, "--start_router", str(first)) == 0
    assert "has this router already" in capsys.readouterr().out
    assert "--overwrite" in fails(capsys, lambda: command(out, pair, "--start_router", str(other)))
    assert begun_with(first) == ""
    said = fails(capsys, lambda: command(first, pair, "--start_router", str(other), "--resume"))
    assert "was not begun with" in said


def test_settings_are_saved_as_they_were_given(pair, tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text("RouterParams = dict(mask_lr=0.125, time_lr=0.0125)\n")
    command(tmp_path / "out", pair, "--configs", str(recipe), "--time_lr", "0.5")
    params, members = read_settings(tmp_path / "out")
    assert (params.mask_lr, params.time_lr, params.router_iterations) == (0.125, 0.5, 6)
    assert [m.path for m in members] == [pair / "experts" / name for name in NAMES]
