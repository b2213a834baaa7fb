"""Trains the router of a MoE: the experts are frozen, only the router learns.

The loss is (1 - s) L1 + s (1 - SSIM) of the blended picture; RAdam, a rate for w and w_dir that
decays log-linearly, constant ones for w_time and the network. The state of a run can be saved at
any iteration and continued bit by bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arguments_MoDE.config import OptimizationParams, RouterParams
from arguments_MoDE.moe import RouterArguments, as_dict, parse_router, router_params
from scene import Scene, View, load_scene
from scene.experts.base import LearningRate
from scene.pixel_router import TIME, WEIGHT
from training.checkpoint import (
    STATE_KEYS,
    drop_checkpoints,
    latest_checkpoint,
    load_state,
    recover,
    restored,
    save_state,
)
from training.evaluation import evaluate_views, together
from training.launch import (
    check_apart,
    check_writable,
    clear_shown,
    is_run,
    set_precision,
)
from training.losses import CameraColors, photometric
from training.moe.files import (
    Member,
    begun_with,
    build,
    check_scene,
    device_of,
    load_experts,
    load_members,
    load_moe,
    named_folders,
    read_settings,
    router_sha256,
    save_router,
    saved_routers,
    started_from,
    training_temperature,
    write_settings,
)
from training.moe.model import Blend, MoEGS
from training.moe.views import MoEViewRenderer
from training.reports import Report
from training.sampler import ViewSampler
from training.schedules import rate_at
from training.transfers import target_loader
from utils.errors import UserError
from utils.files import make_folder, remove_folder, sole_user
from utils.interrupts import DelayedInterrupt
from utils.metrics import psnr

LOG_INTERVAL = 10
EVALUATED_VIEWS = 30  # at most, while training; rendering measures all
FOLDERS = ("router", "checkpoint")
PROG = "train_moe.py router"
DESCRIPTION = "Train the router of a MoE on frozen experts."


@dataclass
class Progress:
    """Where a run stands."""

    iteration: int = 0
    seconds: float = 0.0  # of training, without evaluation and saving
    smooth: dict[str, float] = field(default_factory=dict)  # running means for the bar


@dataclass(frozen=True)
class _Shot:
    """Views of a batch of one size, and what came out."""

    images: Tensor  # (B, 3, H, W), in the cameras' colours
    targets: Tensor  # (B, 3, H, W) uint8
    mask: Tensor | None  # (B, 1, H, W) bool, the pixels that count; None: all
    gates: Tensor  # (B, E, H, W)
    loss: Tensor  # the mean over their pixels


def _numbers(loss: Tensor, shots: Sequence[_Shot]) -> dict[str, float]:
    ratios = [psnr(s.images.detach(), s.targets, s.mask).view(-1) for s in shots]
    decided = [s.gates.detach().amax(1).flatten() for s in shots]
    return {
        "loss": float(loss.detach()),
        "psnr": float(torch.cat(ratios).nanmean()),
        "largest_gate": float(torch.cat(decided).mean()),
    }


class RouterTrainer:
    """Trains the router of one MoE on one scene."""

    def __init__(
        self, model: MoEGS, scene: Scene, arguments: RouterArguments, report: Report, device: str
    ) -> None:
        """Nothing is trained yet; see `train` and `restore`."""
        self.model, self.scene, self.report = model.to(device), scene, report
        self.arguments, self.params = arguments, arguments.params
        self.device = torch.device(device)
        self.background = torch.tensor(scene.background, device=device)
        # (1 - s) times the weighted terms is (1 - s) L1 + s (1 - SSIM).
        share = self.params.router_lambda_dssim
        self.scale = max(1 - share, 1e-6)
        self.loss = OptimizationParams(loss="l1", lambda_dssim=share / self.scale)
        self.targets = target_loader(device)
        settings = [expert.config.opt for expert in model.experts.values()]
        colored = [opt for opt in settings if opt.camera_color]
        self.color_rate = LearningRate((colored or settings)[0].exposure_lr)
        self.colors = None
        if colored:  # of rigs whose cameras differ in colour, as the experts' trainer
            self.colors = CameraColors(len(scene.camera_names)).to(device)
        trained = sorted({view.camera_index for view in scene.train})
        self.trained_cameras = torch.tensor(trained, device=device)
        self.sampler = ViewSampler(
            scene.train, self.params.router_batch_size, same_time=True, seed=self.params.router_seed
        )
        self.rates = self._rates()
        self.optimizer = torch.optim.RAdam(
            [{"params": p, "name": name, "lr": 0.0} for name, p in self._groups().items() if p]
        )
        self.progress = Progress()
        self._saved = time.monotonic()

    def _rates(self) -> dict[str, LearningRate]:
        p = self.params
        return {
            WEIGHT: LearningRate(p.mask_lr, p.mask_lr_final),
            TIME: LearningRate(p.time_lr),
            "network": LearningRate(p.network_lr),
            "camera_color": self.color_rate,
        }

    def _groups(self) -> dict[str, list[torch.nn.Parameter]]:
        own = list(self.model.router.gaussians.values())
        network = getattr(self.model.router, "network", None)
        return {
            WEIGHT: [values[WEIGHT] for values in own if WEIGHT in values],
            TIME: [values[TIME] for values in own if TIME in values],
            "network": [] if network is None else list(network.parameters()),
            "camera_color": [] if self.colors is None else [self.colors.delta],
        }

    # ---- one iteration --------------------------------------------------------------------------

    def iterate(self) -> dict[str, float]:
        """One batch: render, loss, backward, optimiser step."""
        iteration = self.progress.iteration + 1
        for group in self.optimizer.param_groups:
            rate = self.rates[group["name"]]
            group["lr"] = rate_at(rate, iteration, self.params.router_iterations)
        batch = self.sampler.next()
        self.targets.expect([*batch, *self.sampler.coming()])
        shots = [
            self._shot([batch[i] for i in rows], iteration) for rows in together(batch, len(batch))
        ]
        total = sum(shot.images.numel() for shot in shots)
        loss = sum(shot.images.numel() / total * shot.loss for shot in shots)
        self._step(loss, batch, iteration)
        self.progress.iteration = iteration
        return {} if iteration % LOG_INTERVAL else _numbers(loss, shots)

    def _shot(self, views: list[View], iteration: int) -> _Shot:
        blend = self._blend(views, iteration)
        targets, mask = self.targets.take(views)
        targets = targets.permute(0, 3, 1, 2)
        images = self._in_camera_colors(blend.images, views)
        loss = self.scale * sum(photometric(images, targets, self.loss, mask).values())
        return _Shot(images, targets, mask, blend.gates, loss)

    def _blend(self, batch: list[View], iteration: int) -> Blend:
        temperature = training_temperature(self.params, iteration)
        cameras = [view.camera for view in batch]
        return self.model(cameras, batch[0].time, self.background, temperature)

    def _in_camera_colors(self, images: Tensor, views: list[View]) -> Tensor:
        if self.colors is None:
            return images
        pairs = zip(images, views, strict=True)
        return torch.stack(
            [self.colors(image, v.camera_index, self.trained_cameras) for image, v in pairs]
        )

    def _step(self, loss: Tensor, batch: list[View], iteration: int) -> None:
        """Backward and update, if all is finite."""
        names = ", ".join(view.name for view in batch)
        if not torch.isfinite(loss):
            raise UserError(
                f"router iteration {iteration}: the loss is not finite for view {names}; "
                f"look at that view's image and camera, and at the experts"
            )
        loss.backward()
        parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
        gradients = [p.grad.sum() for p in parameters if p.grad is not None]
        if gradients and not torch.isfinite(torch.stack(gradients)).all():
            raise UserError(
                f"router iteration {iteration}: a gradient is not finite for view {names}; "
                f"lower the learning rates"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    # ---- the whole training ---------------------------------------------------------------------

    def train(self) -> None:
        """Runs what is left, evaluates, and saves the router.

        The first Ctrl-C or SIGTERM is heeded between two iterations: it leaves a checkpoint behind
        and is passed on as `utils.interrupts.Interrupted`. The second one ends at once.
        """
        p, goal = self.progress, self.params.router_iterations
        self.report.start_stage("router", goal, p.iteration)
        try:
            with DelayedInterrupt() as interrupt:
                while p.iteration < goal:
                    started = time.perf_counter()
                    numbers = self.iterate()
                    p.seconds += time.perf_counter() - started
                    self._log(numbers)
                    due = p.iteration < goal and self._milestones()
                    if due or interrupt.requested is not None:
                        saved = self.save_checkpoint()
                    if interrupt.requested is not None:
                        self.report.say(f"stopped by a signal; --resume continues from {saved}")
                        interrupt.stop()
                self._finish()
                interrupt.stop()
        finally:
            self.report.close_bar()

    def _finish(self) -> None:
        """Evaluates the last iteration and saves it; with its router the MoE is complete."""
        try:
            self.evaluate()
        except UserError:  # a damaged test image costs no training
            self._save()
            raise
        self._save()

    def _milestones(self) -> bool:
        """Evaluates and saves as planned; returns whether a checkpoint is due."""
        iteration, plan = self.progress.iteration, self.arguments
        if iteration in plan.test_iterations:
            self.evaluate()
        if iteration in plan.save_iterations:
            self._save()
        late = time.monotonic() - self._saved >= 60 * plan.checkpoint_minutes > 0
        return iteration in plan.checkpoint_iterations or late

    def _log(self, numbers: dict[str, float]) -> None:
        if not numbers:
            self.report.progress()
            return
        smooth = self.progress.smooth
        for key in ("loss", "psnr"):
            old = smooth.get(key, math.nan)
            new = old if math.isnan(numbers[key]) else numbers[key]
            smooth[key] = new if math.isnan(old) else 0.8 * old + 0.2 * new
        self.report.progress(loss=f"{smooth['loss']:.4f}", psnr=f"{smooth['psnr']:.2f}")
        self._event("train", **numbers)

    def _event(self, kind: str, **values: Any) -> None:
        p = self.progress
        self.report.event(kind, p.iteration, p.seconds, stage="router", **values)

    def evaluate(self) -> dict[str, dict[str, float]]:
        """PSNR and SSIM on evenly spaced test and training views, reported and returned."""
        result = {}
        render = MoEViewRenderer(self.model, self.scene, self.params)
        for name, views in (("test", self.scene.test), ("train", self.scene.train)):
            if not views:
                continue
            result[name] = evaluate_views(render, views, limit=EVALUATED_VIEWS)
            self._event("evaluate", set=name, **result[name])
            numbers = ", ".join(f"{k} {v:.4g}" for k, v in result[name].items())
            self.report.say(f"[router {self.progress.iteration}] {name}: {numbers}")
        return result

    def _save(self) -> None:
        self.report.flush()
        p = self.progress
        save_router(self.model, self.arguments.model_path, p.iteration, p.seconds)

    # ---- resuming -------------------------------------------------------------------------------

    def save_checkpoint(self) -> Path:
        """Writes everything that `restore` needs and returns the folder.

        Raises:
            UserError: the disk does not take it; the older ones are intact then.
        """
        reported = self.report.flush()
        queue, sampler_state = self.sampler.state()
        tensors = {f"router/{n}": v for n, v in self.model.router.state_dict().items()}
        tensors |= {f"optimizer/{n}": v for n, v in self._moments().items()}
        tensors |= {"rng/sampler": sampler_state}
        if self.colors is not None:
            tensors["colors/delta"] = self.colors.delta
        info = {
            "config": as_dict(self.params),
            "progress": vars(self.progress),
            "queue": queue,
            "reported_bytes": reported,
        }
        folder = self.arguments.model_path / "checkpoint" / f"router_{self.progress.iteration}"
        save_state(folder, tensors, info)
        drop_checkpoints(self.arguments.model_path, self.arguments.keep_checkpoints)
        self._saved = time.monotonic()
        return folder

    def _moments(self) -> dict[str, Tensor]:
        """RAdam's state: ``<group>/<index>/<key>`` -> tensor."""
        return {
            f"{group['name']}/{i}/{key}": value
            for group in self.optimizer.param_groups
            for i, parameter in enumerate(group["params"])
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }

    def restore(self, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        """Continues where `save_checkpoint` stopped; the model is of the same experts.

        Raises:
            UserError: the checkpoint is of other experts.
        """
        router = {k[len("router/") :]: v for k, v in tensors.items() if k.startswith("router/")}
        try:
            self.model.router.load_state_dict(router)
        except RuntimeError:
            raise UserError("the checkpoint is of other experts: --overwrite trains anew") from None
        for group in self.optimizer.param_groups:
            for i, parameter in enumerate(group["params"]):
                prefix = f"optimizer/{group['name']}/{i}/"
                found = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
                if found:  # the step count stays on the CPU, where RAdam keeps it
                    self.optimizer.state[parameter] = {
                        k: v if k == "step" else v.to(self.device) for k, v in found.items()
                    }
        if self.colors is not None:
            self.colors.delta.data.copy_(tensors["colors/delta"])
        self.sampler.restore(info["queue"], tensors["rng/sampler"])
        self.progress = restored(Progress, info["progress"])


# ---- the command --------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Trains a router as the command line says; returns the exit code."""
    arguments = parse_router(argv, PROG, DESCRIPTION)
    folder = arguments.model_path
    check_writable(folder)
    if _is_complete(arguments):
        print(f"{folder} has this router already; --overwrite trains it anew")
        return 0
    checkpoint = _starting_point(arguments)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    runs = load_experts(named_folders(arguments.experts, folder), "cpu", arguments.source_path)
    members = [Member.of(name, run) for name, run in runs.items()]
    if _is_begun(arguments):
        _check_same(arguments, members)
    config = next(iter(runs.values())).config
    device = device_of(arguments.device, runs, quiet=arguments.quiet)
    set_precision(config)
    if arguments.source_path:
        config.model.source_path = arguments.source_path
    check_apart(folder, config.model.source_path)
    scene = load_scene(config.model)
    check_scene(runs, scene)
    scene.reserve()
    scene.prepare(scene.train)
    state = _state_of(checkpoint, arguments) if checkpoint else None
    model = build(runs, arguments.params)
    start = begun_with(folder) if _is_begun(arguments) else ""
    if arguments.start_router:
        start = router_sha256(Path(arguments.start_router))
    elif start and state is None:
        raise UserError(
            f"--resume: {folder} began with another router's weights and has no checkpoint yet; "
            f"give the same --start_router again, or --overwrite trains anew"
        )
    if arguments.start_router and state is None:
        _start_from(Path(arguments.start_router), model, arguments, members)
    if not arguments.quiet:
        print(_summary(scene, model, device))
    with ExitStack() as held:
        make_folder(folder)
        held.enter_context(sole_user(folder))
        if arguments.overwrite:
            clear_shown(folder)
        if arguments.overwrite or checkpoint is None:
            _clear(folder)
        done = None if state is None else restored(Progress, state[1]["progress"]).iteration
        size = None if state is None else state[1].get("reported_bytes")
        report = Report(folder, quiet=arguments.quiet, keep_through=done, keep_bytes=size)
        trainer = RouterTrainer(model, scene, arguments, report, device)
        if state is not None:
            trainer.restore(*state)
            report.say(f"continuing from {checkpoint}")
        write_settings(folder, arguments.params, members, start)
        trainer.train()
        report.close()
    print(f"router trained in {trainer.progress.seconds:.0f} s; saved to {folder}")
    return 0


def _start_from(
    start: Path, model: MoEGS, arguments: RouterArguments, members: Sequence[Member]
) -> None:
    """Gives ``model`` the weights of another MoE's router, which must have the same experts.

    One that has been distilled since counts as the same, however often: its Gaussians are still
    the same ones.
    """
    params, before = read_settings(start)
    if params.router != arguments.params.router:
        raise UserError(
            f"--start_router {start}: its router is {params.router}, "
            f"--router is {arguments.params.router}"
        )
    names, ours = [m.name for m in before], [m.name for m in members]
    if names != ours:
        raise UserError(
            f"--start_router {start}: its experts are {', '.join(names)}, not {', '.join(ours)}: "
            f"name the same with --experts, in this order"
        )
    for old, new in zip(before, members, strict=True):
        if old.sha256 not in (new.sha256, *started_from(new.path)):
            raise UserError(
                f"--start_router {start}: expert {new.name} is not the one at {new.path}"
            )
    model.router.load_state_dict(load_moe(start).model.router.state_dict())


def _summary(scene: Scene, model: MoEGS, device: str) -> str:
    experts = ", ".join(f"{n} ({len(e.gaussians)} Gaussians)" for n, e in model.experts.items())
    return f"{scene.kind}: {len(scene.train)} training views; experts {experts}; on {device}"


def _is_complete(arguments: RouterArguments) -> bool:
    folder = arguments.model_path
    if arguments.overwrite or not (folder / "moe.json").is_file():
        return False
    params, members = read_settings(folder)
    if params != arguments.params or params.router_iterations not in saved_routers(folder):
        return False
    given = named_folders(arguments.experts, folder)
    if arguments.start_router and router_sha256(Path(arguments.start_router)) != begun_with(folder):
        return False
    paths = {member.name: member.path.resolve() for member in members}
    if paths != {name: path.resolve() for name, path in given.items()}:
        return False
    load_members(members, "cpu")  # an error where an expert was trained anew since
    return True


def _is_begun(arguments: RouterArguments) -> bool:
    """Whether the run folder has a router, or a part of one, that is to be continued."""
    return (arguments.model_path / "moe.json").is_file() and not arguments.overwrite


def _starting_point(arguments: RouterArguments) -> Path | None:
    """Refuses a run folder that cannot be used; returns the checkpoint to go on from, if any."""
    folder = arguments.model_path
    if is_run(folder):
        raise UserError(f"{folder} holds the run of a single model: choose another --expname")
    if folder.exists():
        with sole_user(folder):  # an early answer, and nobody's work that is tidied up
            recover(folder, FOLDERS)
    if not _is_begun(arguments):
        return None
    if not arguments.resume:
        raise UserError(
            f"{folder} holds another or an unfinished router: --resume continues it, "
            f"--overwrite replaces it, or choose another --expname"
        )
    found = latest_checkpoint(folder, STATE_KEYS)
    if found is None and not arguments.quiet:
        print(f"{folder} has no checkpoint yet: training from the beginning")
    return found


def _check_same(arguments: RouterArguments, members: Sequence[Member]) -> None:
    """UserError where the run folder was begun with other experts or settings."""
    params, before = read_settings(arguments.model_path)
    for saved, now in zip(before, members, strict=False):
        if (saved.name, saved.sha256) != (now.name, now.sha256):
            raise UserError(
                f"--resume: {arguments.model_path} was begun with expert {saved.name} as it was "
                f"then, not with {now.name} at {now.path}; --overwrite trains anew"
            )
    if len(before) != len(members):
        raise UserError(
            f"--resume: {arguments.model_path} was begun with {len(before)} experts, "
            f"not {len(members)}; name the same with --experts, or --overwrite"
        )
    start = arguments.start_router
    if start and router_sha256(Path(start)) != begun_with(arguments.model_path):
        raise UserError(
            f"--resume: {arguments.model_path} was not begun with the router of --start_router "
            f"{start}; leave it out, or --overwrite trains anew"
        )
    _check_params(params, arguments.params)


def _check_params(saved: RouterParams, given: RouterParams) -> None:
    for key, value in as_dict(given).items():
        if getattr(saved, key) != value:
            raise UserError(
                f"--resume: {key} is {value!r} but the run was begun with {getattr(saved, key)!r}; "
                f"use the same settings or --overwrite"
            )


def _state_of(
    checkpoint: Path, arguments: RouterArguments
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A checkpoint's content, if its settings are those of the line."""
    tensors, info = load_state(checkpoint, STATE_KEYS)
    _check_params(router_params(info["config"], checkpoint / "state.json"), arguments.params)
    return tensors, info


def _clear(folder: Path) -> None:
    """Removes what training a router writes, and nothing else: never the experts."""
    for name in FOLDERS:
        remove_folder(folder / name)
    for name in ("metrics.jsonl", "metrics.json", "moe.json"):
        (folder / name).unlink(missing_ok=True)
