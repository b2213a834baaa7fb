"""The training loop: a coarse stage on the canonical Gaussians, then a fine one that deforms them.

Each stage starts with a fresh optimiser and its schedules at their beginning, as published. The
state of a run can be saved at any iteration and continued bit by bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arguments_MoDE.config import Config
from gaussian_renderer import RenderOutput, render
from scene import Scene, View
from scene.experts.base import LearningRate, ParameterGroup
from scene.gaussian_model import MAX_SH_DEGREE
from scene.mixture import MoDE, Splats
from training.checkpoint import drop_checkpoints, restored, save_model, save_state
from training.checks import Checks, DeferredChecks, ImmediateChecks, NotFinite, Where
from training.density import DensityChange, DensityControl
from training.evaluation import ViewRenderer, evaluate_views
from training.losses import CameraColors, photometric
from training.reports import Report
from training.sampler import ViewSampler
from training.schedules import Optimizer, parameter_groups
from training.transfers import target_loader
from utils.errors import UserError
from utils.interrupts import DelayedInterrupt
from utils.metrics import psnr

STAGES = ("coarse", "fine")
LOG_INTERVAL = 10
MOST_SKIPPED = 20  # steps in a row that `--nonfinite skip` leaves out
SUDDEN = 0.5  # share of the Gaussians that one round may add or prune without a warning
EVALUATED_VIEWS = 30  # at most, while training; rendering measures all


@dataclass(frozen=True)
class Plan:
    """When to evaluate and save, in iterations of the fine stage, and where to."""

    model_path: Path
    test_iterations: Sequence[int] = ()
    save_iterations: Sequence[int] = ()
    checkpoint_iterations: Sequence[int] = ()
    checkpoint_seconds: float = 0.0  # between further checkpoints, in either stage; 0: none
    keep_checkpoints: int = 2  # the furthest ones; 0: all


@dataclass
class Progress:
    """Where a run stands."""

    stage: str = "coarse"
    iteration: int = 0  # done in this stage
    seconds: float = 0.0  # of training, without evaluation and saving
    smooth: dict[str, float] = field(default_factory=dict)  # running means for the bar
    skipped: int = 0  # steps in a row that were not finite and were left out

    def step(self, coarse_iterations: int) -> int:
        """Iterations done over both stages."""
        return self.iteration + (coarse_iterations if self.stage == "fine" else 0)


@dataclass(frozen=True)
class Shot:
    """Views of a batch that were rendered together, and what came out."""

    views: list[View]
    images: Tensor  # (B, 3, H, W), in the cameras' colours
    targets: Tensor  # (B, 3, H, W) uint8
    output: RenderOutput
    splats: Splats
    mask: Tensor | None = None  # (B, 1, H, W) bool, the pixels that count; None: all


class Trainer:
    """Trains one model on one scene."""

    begin = 0  # the iteration of the stage at which this training begins

    def __init__(
        self,
        model: MoDE,
        scene: Scene,
        config: Config,
        plan: Plan,
        report: Report,
        device: str = "cpu",
        deferred_checks: bool | None = None,
    ) -> None:
        """Nothing is trained yet; see `train` and `restore`.

        Args:
            deferred_checks: whether loss and gradients are checked on the device, so that most
                iterations read nothing from it, see `training.checks`; None: where it is a GPU and
                steps that are not finite end the run.
        """
        self.model, self.scene, self.config, self.plan = model.to(device), scene, config, plan
        self.report, self.device = report, torch.device(device)
        if deferred_checks is None:
            deferred_checks = self.device.type == "cuda" and config.opt.nonfinite == "stop"
        self.deferred_checks = deferred_checks
        self.background = torch.tensor(scene.background, device=device)
        trained = sorted({view.camera_index for view in scene.train})
        self.trained_cameras = torch.tensor(trained, device=device)
        self.targets = target_loader(device)
        self.colors = (
            CameraColors(len(scene.camera_names)).to(device) if config.opt.camera_color else None
        )
        self.progress = Progress()
        self._checkpointed = time.monotonic()
        self.sampler = ViewSampler(
            scene.train,
            config.opt.batch_size,
            same_time=config.opt.batch_same_time,
            seed=config.model.seed,
        )
        self._start_stage("coarse")

    # ---- stages ---------------------------------------------------------------------------------

    def stage_length(self, stage: str) -> int:
        """Iterations of ``stage``."""
        opt = self.config.opt
        return opt.coarse_iterations if stage == "coarse" else opt.iterations

    def _start_stage(self, stage: str) -> None:
        length = self.stage_length(stage)
        self.progress.stage, self.progress.iteration = stage, 0
        groups = parameter_groups(self.model, self.config, self.scene.extent)
        if self.colors is not None:
            rate = LearningRate(self.config.opt.exposure_lr)
            groups.append(ParameterGroup("camera_color", [self.colors.delta], rate))
        self.optimizer = self._optimizer(groups, length)
        self.density = DensityControl(self.config.opt, self.scene.extent, stage, length)
        self.checks: Checks = (
            DeferredChecks(self.device) if self.deferred_checks else ImmediateChecks()
        )

    def _end_coarse(self) -> dict[str, float]:
        change = self._settle()
        if change:
            self._event("train", gaussians=len(self.model.gaussians), **change)
        self._start_stage("fine")
        return change

    def _optimizer(self, groups: list[ParameterGroup], length: int) -> Optimizer:
        return Optimizer(groups, length)

    def train(self) -> None:
        """Runs what is left of both stages, evaluates, and saves the model.

        The first Ctrl-C or SIGTERM is heeded between two iterations: it leaves a checkpoint behind
        and is passed on as `utils.interrupts.Interrupted`. The second one ends at once.
        """
        self.model.train()
        self._checkpointed = time.monotonic()
        try:
            with DelayedInterrupt() as interrupt:
                if self.progress.stage == "coarse":
                    self._run_stage(interrupt)
                    self._end_coarse()
                self._run_stage(interrupt)
                self._finish()
                interrupt.stop()
        finally:
            self.report.close_bar()

    def _run_stage(self, interrupt: DelayedInterrupt) -> None:
        stage, length = self.progress.stage, self.stage_length(self.progress.stage)
        self.report.start_stage(stage, length, self.progress.iteration)
        while self.progress.iteration < length:
            started = time.perf_counter()
            numbers = self.iterate()
            self.progress.seconds += time.perf_counter() - started
            self._log(numbers)
            due = stage == "fine" and self._milestones()
            if due or interrupt.requested is not None or self._checkpoint_is_late():
                folder = self.save_checkpoint()
            if interrupt.requested is not None:
                self.report.say(f"stopped by a signal; --resume continues from {folder}")
                interrupt.stop()

    def _checkpoint_is_late(self) -> bool:
        seconds = self.plan.checkpoint_seconds
        return seconds > 0 and time.monotonic() - self._checkpointed >= seconds

    # ---- one iteration --------------------------------------------------------------------------

    def iterate(self) -> dict[str, float]:
        """What is due after the iteration before; then a batch: render, loss, backward, step.

        New Gaussians, reset opacities and the like come right before the step that begins to make
        up for them: what is evaluated and saved after an iteration has been trained.

        With deferred checks it reads nothing from the device unless `_reads` says so.
        """
        change = self._settle()
        iteration = self.progress.iteration + 1
        self.optimizer.set_rates(iteration)
        gaussians = self.model.gaussians
        if iteration % self.config.opt.sh_interval == 0:
            limit = min(self.config.model.sh_degree, MAX_SH_DEGREE)
            gaussians.active_sh_degree = min(gaussians.active_sh_degree + 1, limit)
        batch = self._next_batch()
        shots = self._render_batch(batch, iteration)
        terms = self._loss_terms(shots, iteration)
        loss = torch.stack(list(terms.values())).sum()
        try:
            self._update(Where(self.progress.stage, iteration), loss, terms, shots)
        except NotFinite as error:
            self._skip(error)
            return change
        self.progress.iteration, self.progress.skipped = iteration, 0
        numbers = self._numbers(loss, terms, shots) if iteration % LOG_INTERVAL == 0 else {}
        return numbers | change

    def _settle(self) -> dict[str, float]:
        """Density control, and what experts change, after the iteration that was the last.

        Returns:
            how many Gaussians were cloned, split and pruned, if any were.
        """
        stage, iteration = self.progress.stage, self.progress.iteration
        if iteration == self.begin:
            return {}
        gaussians, offspring = self.model.gaussians, self.model.offspring
        change = self.density.step(gaussians, self.optimizer, iteration, offspring)
        if stage == "fine":
            self.model.evolve(iteration)
        self._watch_count(change, iteration)
        return vars(change) if any(vars(change).values()) else {}

    def _update(
        self, where: Where, loss: Tensor, terms: dict[str, Tensor], shots: list[Shot]
    ) -> None:
        """Backward pass and optimiser step, if all is finite."""
        self.checks.loss(where, loss, terms, shots)
        loss.backward()
        self.checks.gradients(where, self.optimizer, shots)
        if where.iteration <= self.density.until:
            opacities = [shot.splats.opacities.detach() for shot in shots]
            self.density.observe([shot.output for shot in shots], opacities)
        self.optimizer.step(self.checks.failed)
        if self._reads(where.iteration):
            self.checks.read()

    def _skip(self, error: NotFinite) -> None:
        """Leaves a step out that is not finite, or ends the run, as ``--nonfinite`` says."""
        p = self.progress
        if self.config.opt.nonfinite == "stop" or p.skipped + 1 >= MOST_SKIPPED:
            raise error
        self.optimizer.adam.zero_grad(set_to_none=True)
        p.iteration, p.skipped = p.iteration + 1, p.skipped + 1
        self.report.warn(f"step left out: {error}")
        self._event("skip", skipped=p.skipped)

    def _watch_count(self, change: DensityChange, iteration: int) -> None:
        """Warns where the count of Gaussians collapses, explodes, or meets its limit."""
        added, pruned = change.cloned + change.split, change.pruned
        now, most = len(self.model.gaussians), self.config.opt.max_gaussians
        before = now + pruned - added
        where = f"{self.progress.stage} iteration {iteration}"
        if pruned > SUDDEN * (before + added):
            self.report.warn(
                f"{where}: {pruned} of {before + added} Gaussians pruned at once; if the picture "
                f"suffers, lower --opacity_threshold_{self.progress.stage}* or raise "
                f"--max_screen_size, --max_world_scale"
            )
        if added > SUDDEN * before:
            self.report.warn(
                f"{where}: {added} Gaussians added to {before} at once; if that is too many, raise "
                f"--densify_grad_threshold_{self.progress.stage}*"
            )
        if added and now >= most > before:
            self.report.warn(f"{where}: there are now --max_gaussians {most}, none are added")

    def _reads(self, iteration: int) -> bool:
        """Whether something is read from the device at the end of ``iteration``."""
        plan, last = self.plan, self.stage_length(self.progress.stage)
        milestones = (*plan.test_iterations, *plan.save_iterations, *plan.checkpoint_iterations)
        due = iteration % LOG_INTERVAL == 0 or self.density.due(iteration)
        return due or iteration == last or iteration in milestones

    def _next_batch(self) -> list[View]:
        """This iteration's views; the next one's images are fetched in the background."""
        batch = self.sampler.next()
        self.targets.expect([*batch, *self.sampler.coming()])
        return batch

    def _render_batch(self, batch: list[View], iteration: int) -> list[Shot]:
        """Renders the views, those together that share Gaussians and size."""
        shots = []
        for _, group in groupby(sorted(batch, key=self._shared), key=self._shared):
            views = list(group)
            cameras = {view.camera_index for view in views}
            splats = self.model.deform(
                views[0].time,
                # Where several cameras share a deformation, no single one's time offset is right.
                camera_index=cameras.pop() if len(cameras) == 1 else None,
                iteration=iteration,
                stage=self.progress.stage,
            )
            degree = self.model.gaussians.active_sh_degree
            out = render([view.camera for view in views], splats, self.background, degree)
            out.means2d.retain_grad()
            targets, mask = self.targets.take(views)
            images = self._in_camera_colors(out.images, views)
            shots.append(Shot(views, images, targets.permute(0, 3, 1, 2), out, splats, mask))
        return shots

    def _shared(self, view: View) -> tuple[float, int, int, int]:
        """Views with equal keys see the same Gaussians at one size and are rendered together."""
        coarse = self.progress.stage == "coarse"
        camera = -1 if coarse or self.config.opt.batch_same_time else view.camera_index
        return 0.0 if coarse else view.time, camera, view.camera.width, view.camera.height

    def _loss_terms(self, shots: list[Shot], iteration: int) -> dict[str, Tensor]:
        """The mean over all pixels of the batch, and the regularisers."""
        total = sum(shot.images.numel() for shot in shots)
        terms: dict[str, Tensor] = {}
        for shot in shots:
            share = shot.images.numel() / total
            parts = photometric(shot.images, shot.targets, self.config.opt, shot.mask)
            for name, value in parts.items():
                terms[name] = terms.get(name, 0) + share * value
        if self.progress.stage == "coarse":
            return terms
        times = [view.time for shot in shots for view in shot.views]
        return terms | self.model.regularizers(times, iteration)

    def _in_camera_colors(self, images: Tensor, views: list[View]) -> Tensor:
        if self.colors is None:
            return images
        return torch.stack(
            [
                self.colors(image, view.camera_index, self.trained_cameras)
                for image, view in zip(images, views, strict=True)
            ]
        )

    # ---- reporting, evaluating, saving ----------------------------------------------------------

    def _numbers(
        self, loss: Tensor, terms: dict[str, Tensor], shots: list[Shot]
    ) -> dict[str, float]:
        ratios = [psnr(s.images.detach(), s.targets, s.mask).view(-1) for s in shots]
        numbers = {"loss": loss, "psnr": torch.cat(ratios).nanmean(), **terms}
        values = torch.stack([value.detach() for value in numbers.values()])  # read all at once
        return dict(zip(numbers, values.tolist(), strict=True))

    def _log(self, numbers: dict[str, float]) -> None:
        smooth, count = self.progress.smooth, len(self.model.gaussians)
        if "loss" not in numbers:
            self.report.progress()
        else:
            for key in ("loss", "psnr"):
                old = smooth.get(key, math.nan)
                new = old if math.isnan(numbers[key]) else numbers[key]  # of a batch without pixels
                smooth[key] = new if math.isnan(old) else 0.6 * old + 0.4 * new
            self.report.progress(
                loss=f"{smooth['loss']:.4f}", psnr=f"{smooth['psnr']:.2f}", gaussians=str(count)
            )
        if numbers:
            self._event("train", gaussians=count, **numbers)

    def _event(self, kind: str, **values: Any) -> None:
        p = self.progress
        done = p.step(self.stage_length("coarse"))
        self.report.event(kind, done, p.seconds, stage=p.stage, iteration=p.iteration, **values)

    def _milestones(self) -> bool:
        """Evaluates and saves as planned; returns whether a checkpoint is planned, too.

        What is due after the last iteration anyway is left to `_finish`.
        """
        iteration = self.progress.iteration
        last = iteration == self.stage_length("fine")
        if iteration in self.plan.test_iterations and not last:
            self.evaluate()
        if iteration in self.plan.save_iterations and not last:
            self._save()
        return iteration in self.plan.checkpoint_iterations

    def _save(self) -> None:
        """Saves the model, as the last of what belongs to this iteration."""
        self.checks.read()
        p = self.progress
        self._event("save", gaussians=len(self.model.gaussians))
        self.report.flush()
        save_model(self.model, self.plan.model_path, p.iteration, p.seconds)

    def _finish(self) -> None:
        """Evaluates the last iteration and saves it; with its model the run counts as complete."""
        try:
            self.evaluate()
        except UserError:  # a damaged test image costs no training
            self._save()
            raise
        self._save()

    def evaluate(self) -> dict[str, dict[str, float]]:
        """PSNR and SSIM on evenly spaced test and training views, reported and returned."""
        result, p = {}, self.progress
        self.model.eval()
        render_view = ViewRenderer(self.model, self.scene, p.iteration, p.stage)
        for name, views in (("test", self.scene.test), ("train", self.scene.train)):
            if not views:
                continue
            result[name] = evaluate_views(render_view, views, limit=EVALUATED_VIEWS)
            self._event("evaluate", set=name, **result[name])
            numbers = ", ".join(f"{k} {v:.4g}" for k, v in result[name].items())
            self.report.say(f"[{p.stage} {p.iteration}] {name}: {numbers}")
        self.model.train()
        return result

    # ---- resuming -------------------------------------------------------------------------------

    def save_checkpoint(self) -> Path:
        """Writes everything that `restore` needs and returns the folder.

        Older checkpoints are removed as planned, once this one is on the disk.

        Raises:
            UserError: the disk does not take it; the older ones are intact then.
        """
        self.checks.read()
        reported = self.report.flush()
        p = self.progress
        queue, sampler_state = self.sampler.state()
        tensors = {f"gaussians/{n}": self.model.gaussians[n] for n in self.model.gaussians.names}
        tensors |= {f"experts/{n}": v for n, v in self.model.experts.state_dict().items()}
        tensors |= {f"carried/{n}": v for n, v in self.model.carried().items()}
        tensors |= {f"optimizer/{n}": v for n, v in self.optimizer.state_tensors().items()}
        tensors |= {f"density/{n}": v for n, v in self.density.stats.items()}
        tensors |= {"rng/sampler": sampler_state, "rng/torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            tensors["rng/cuda"] = torch.cuda.get_rng_state(self.device)
        if self.colors is not None:
            tensors["colors/delta"] = self.colors.delta
        info = {
            "config": self.config.as_dict(),
            "progress": vars(p),
            "queue": queue,
            "views": self.sampler.digest(),
            "active_sh_degree": self.model.gaussians.active_sh_degree,
            "opacity_was_reset": self.density.opacity_was_reset,
            "reported_bytes": reported,
        }
        folder = self.plan.model_path / "checkpoint" / f"{p.stage}_{p.iteration}"
        save_state(folder, tensors, info)
        drop_checkpoints(self.plan.model_path, self.plan.keep_checkpoints)
        self._checkpointed = time.monotonic()
        return folder

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        """Continues where `save_checkpoint` stopped; the model has been built for the same run."""
        parts = _by_prefix(tensors)
        gaussians = self.model.gaussians
        for name, value in parts["gaussians"].items():
            gaussians.values[name] = torch.nn.Parameter(value.to(self.device))
        gaussians.active_sh_degree = info["active_sh_degree"]
        self.model.experts.load_state_dict(parts.get("experts", {}))
        self.model.carry_on(_to(parts.get("carried", {}), self.device))
        if self.colors is not None:
            self.colors.delta.copy_(parts["colors"]["delta"])
        self._start_stage(info["progress"]["stage"])
        self.progress = restored(Progress, info["progress"])
        self.optimizer.load_state_tensors(_to(parts.get("optimizer", {}), self.device))
        self.density.stats = _to(parts.get("density", {}), self.device)
        self.density.opacity_was_reset = info["opacity_was_reset"]
        # Another run's views may be others; then an epoch begins.
        same = info.get("views", self.sampler.digest()) == self.sampler.digest()
        self.sampler.restore(info["queue"] if same else [], parts["rng"]["sampler"])
        torch.set_rng_state(parts["rng"]["torch"])
        if self.device.type == "cuda" and "cuda" in parts["rng"]:
            torch.cuda.set_rng_state(parts["rng"]["cuda"], self.device)


def _by_prefix(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        prefix, rest = name.split("/", 1)
        parts.setdefault(prefix, {})[rest] = value
    return parts


def _to(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in tensors.items()}
