"""The training loop: a coarse stage on the canonical Gaussians, then a fine one that deforms them.

Each stage starts with a fresh optimiser and its schedules at their beginning, as published. The
state of a run can be saved at any iteration and continued bit by bit.
"""

from __future__ import annotations

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
from training.checkpoint import save_model, save_state
from training.density import DensityControl
from training.evaluation import evaluate_views
from training.losses import CameraColors, photometric, to_float
from training.reports import Report
from training.sampler import ViewSampler
from training.schedules import Optimizer, parameter_groups
from utils.errors import UserError
from utils.metrics import psnr

STAGES = ("coarse", "fine")
SH_INTERVAL = 1000  # iterations after which one more SH degree is used
LOG_INTERVAL = 10
EVALUATED_VIEWS = 30  # at most, while training; rendering measures all


@dataclass(frozen=True)
class Plan:
    """When to evaluate and save, in iterations of the fine stage, and where to."""

    model_path: Path
    test_iterations: Sequence[int] = ()
    save_iterations: Sequence[int] = ()
    checkpoint_iterations: Sequence[int] = ()
    seed: int = 0


@dataclass
class Progress:
    """Where a run stands."""

    stage: str = "coarse"
    iteration: int = 0  # done in this stage
    seconds: float = 0.0  # of training, without evaluation and saving
    smooth: dict[str, float] = field(default_factory=dict)  # running means for the bar


class Trainer:
    """Trains one model on one scene."""

    def __init__(
        self,
        model: MoDE,
        scene: Scene,
        config: Config,
        plan: Plan,
        report: Report,
        device: str = "cpu",
    ) -> None:
        """Nothing is trained yet; see `train` and `restore`."""
        self.model, self.scene, self.config, self.plan = model.to(device), scene, config, plan
        self.report, self.device = report, torch.device(device)
        self.background = torch.tensor(scene.background, device=device)
        self.trained_cameras = sorted({view.camera_index for view in scene.train})
        self.colors = (
            CameraColors(len(scene.camera_names)).to(device) if config.opt.camera_color else None
        )
        self.progress = Progress()
        self.sampler = ViewSampler(
            scene.train,
            config.opt.batch_size,
            same_time=config.opt.batch_same_time,
            seed=plan.seed,
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
        self.optimizer = Optimizer(groups, length)
        self.density = DensityControl(self.config.opt, self.scene.extent, stage, length)

    def train(self) -> None:
        """Runs what is left of both stages; on Ctrl-C a checkpoint is left behind."""
        self.model.train()
        try:
            if self.progress.stage == "coarse":
                self._run_stage()
                self._start_stage("fine")
            self._run_stage()
        except KeyboardInterrupt:
            folder = self.save_checkpoint()
            self.report.say(f"interrupted; --resume continues from {folder}")
            raise
        finally:
            self.report.close_bar()

    def _run_stage(self) -> None:
        stage, length = self.progress.stage, self.stage_length(self.progress.stage)
        self.report.start_stage(stage, length, self.progress.iteration)
        while self.progress.iteration < length:
            started = time.perf_counter()
            numbers = self.iterate()
            self.progress.seconds += time.perf_counter() - started
            self._log(numbers)
            if stage == "fine":
                self._milestones()

    # ---- one iteration --------------------------------------------------------------------------

    def iterate(self) -> dict[str, float]:
        """One batch: render, loss, backward, optimiser step, density control."""
        iteration = self.progress.iteration + 1
        self.optimizer.set_rates(iteration)
        gaussians = self.model.gaussians
        if iteration % SH_INTERVAL == 0:
            limit = min(self.config.model.sh_degree, MAX_SH_DEGREE)
            gaussians.active_sh_degree = min(gaussians.active_sh_degree + 1, limit)
        batch = self.sampler.next()
        images, targets, outputs, splats = self._render_batch(batch, iteration)
        terms = photometric(images, targets, self.config.opt)
        if self.progress.stage == "fine":
            terms |= self.model.regularizers()
        loss = torch.stack(list(terms.values())).sum()
        self._refuse_bad_loss(loss, terms, images, batch, iteration)
        loss.backward()
        self._refuse_bad_gradient(batch, iteration)
        if iteration <= self.density.until:
            self.density.observe(outputs, [s.opacities for s in splats])
        self.optimizer.step()
        change = self.density.step(gaussians, self.optimizer, iteration)
        self.progress.iteration = iteration
        return self._numbers(iteration, loss, terms, images, targets) | (
            vars(change) if any(vars(change).values()) else {}
        )

    def _render_batch(
        self, batch: list[View], iteration: int
    ) -> tuple[Tensor, Tensor, list[RenderOutput], list[Splats]]:
        """Images and targets (B, 3, H, W); views that share their deformation share a render."""
        images, targets, outputs, all_splats = [], [], [], []
        for _, group in groupby(batch, key=self._deformation_key):
            views = list(group)
            splats = self.model.deform(
                views[0].time,
                camera_index=views[0].camera_index,
                iteration=iteration,
                stage=self.progress.stage,
            )
            cameras = [view.camera for view in views]
            degree = self.model.gaussians.active_sh_degree
            out = render(cameras, splats, self.background, degree)
            out.means2d.retain_grad()
            images.append(self._in_camera_colors(out.images, views))
            targets.append(torch.stack([view.image() for view in views]))
            outputs.append(out)
            all_splats.append(splats)
        target = to_float(torch.cat(targets).to(self.device))
        return torch.cat(images), target, outputs, all_splats

    def _deformation_key(self, view: View) -> tuple[float, int, tuple[int, int]]:
        """Views with equal keys see the same Gaussians and may be rendered together."""
        shared = self.config.opt.batch_same_time or self.progress.stage == "coarse"
        camera = -1 if shared else view.camera_index
        frame = 0.0 if self.progress.stage == "coarse" else view.time
        return frame, camera, (view.camera.width, view.camera.height)

    def _in_camera_colors(self, images: Tensor, views: list[View]) -> Tensor:
        if self.colors is None:
            return images
        return torch.stack(
            [
                self.colors(image, view.camera_index, self.trained_cameras)
                for image, view in zip(images, views, strict=True)
            ]
        )

    def _refuse_bad_loss(
        self,
        loss: Tensor,
        terms: dict[str, Tensor],
        images: Tensor,
        batch: list[View],
        iteration: int,
    ) -> None:
        if torch.isfinite(loss):
            return
        bad = [name for name, value in terms.items() if not torch.isfinite(value)]
        views = [v.name for v, i in zip(batch, images, strict=True) if not torch.isfinite(i).all()]
        self._stop(iteration, f"loss term {', '.join(bad)}", views or [v.name for v in batch])

    def _refuse_bad_gradient(self, batch: list[View], iteration: int) -> None:
        bad = self.optimizer.first_bad_gradient()
        if bad is not None:
            self._stop(iteration, f"gradient of {bad}", [v.name for v in batch])

    def _stop(self, iteration: int, what: str, views: list[str]) -> None:
        raise UserError(
            f"{self.progress.stage} iteration {iteration}: {what} is not finite for view "
            f"{', '.join(views)}; nothing was updated by it. Lower the learning rates or look at "
            f"that view's image and camera"
        )

    # ---- reporting, evaluating, saving ----------------------------------------------------------

    def _numbers(
        self,
        iteration: int,
        loss: Tensor,
        terms: dict[str, Tensor],
        images: Tensor,
        targets: Tensor,
    ) -> dict[str, float]:
        if iteration % LOG_INTERVAL:
            return {}
        numbers = {"loss": loss.item(), "psnr": psnr(images.detach(), targets).mean().item()}
        return numbers | {name: value.item() for name, value in terms.items()}

    def _log(self, numbers: dict[str, float]) -> None:
        smooth, count = self.progress.smooth, len(self.model.gaussians)
        if "loss" not in numbers:
            self.report.progress()
        else:
            for key in ("loss", "psnr"):
                smooth[key] = 0.6 * smooth.get(key, numbers[key]) + 0.4 * numbers[key]
            self.report.progress(
                loss=f"{smooth['loss']:.4f}", psnr=f"{smooth['psnr']:.2f}", gaussians=str(count)
            )
        if numbers:
            self._event("train", gaussians=count, **numbers)

    def _event(self, kind: str, **values: Any) -> None:
        p = self.progress
        done = p.iteration + (self.stage_length("coarse") if p.stage == "fine" else 0)
        self.report.event(kind, done, p.seconds, stage=p.stage, iteration=p.iteration, **values)

    def _milestones(self) -> None:
        iteration = self.progress.iteration
        if iteration in self.plan.test_iterations:
            self.evaluate()
        if iteration in self.plan.save_iterations or iteration == self.stage_length("fine"):
            save_model(self.model, self.plan.model_path, iteration, self.progress.seconds)
            self._event("save", gaussians=len(self.model.gaussians))
        if iteration in self.plan.checkpoint_iterations:
            self.save_checkpoint()

    def evaluate(self) -> dict[str, dict[str, float]]:
        """PSNR and SSIM on evenly spaced test and training views, reported and returned."""
        result = {}
        self.model.eval()
        for name, views in (("test", self.scene.test), ("train", self.scene.train)):
            if not views:
                continue
            result[name] = evaluate_views(self.render_view, views, limit=EVALUATED_VIEWS)
            self._event("evaluate", set=name, **result[name])
            numbers = ", ".join(f"{k} {v:.4g}" for k, v in result[name].items())
            self.report.say(f"[{self.progress.stage} {self.progress.iteration}] {name}: {numbers}")
        self.model.train()
        return result

    @torch.no_grad()
    def render_view(self, view: View) -> Tensor:
        """The image (3, H, W) of ``view`` as of a camera never seen."""
        p = self.progress
        splats = self.model.deform(view.time, iteration=p.iteration, stage=p.stage)
        degree = self.model.gaussians.active_sh_degree
        return render([view.camera], splats, self.background, degree).images[0]

    # ---- resuming -------------------------------------------------------------------------------

    def save_checkpoint(self) -> Path:
        """Writes everything that `restore` needs and returns the folder."""
        p = self.progress
        queue, sampler_state = self.sampler.state()
        tensors = {f"gaussians/{n}": self.model.gaussians[n] for n in self.model.gaussians.names}
        tensors |= {f"experts/{n}": v for n, v in self.model.experts.state_dict().items()}
        tensors |= {f"optimizer/{n}": v for n, v in self.optimizer.state_tensors().items()}
        tensors |= {f"density/{n}": v for n, v in self.density.stats.items()}
        tensors |= {"rng/sampler": sampler_state, "rng/torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            tensors["rng/cuda"] = torch.cuda.get_rng_state(self.device)
        if self.colors is not None:
            tensors["colors/delta"] = self.colors.delta
        info = {
            "progress": vars(p),
            "queue": queue,
            "active_sh_degree": self.model.gaussians.active_sh_degree,
            "opacity_was_reset": self.density.opacity_was_reset,
        }
        folder = self.plan.model_path / "checkpoint" / f"{p.stage}_{p.iteration}"
        save_state(folder, tensors, info)
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
        if self.colors is not None:
            self.colors.delta.copy_(parts["colors"]["delta"])
        self._start_stage(info["progress"]["stage"])
        self.progress = Progress(**info["progress"])
        self.optimizer.load_state_tensors(_to(parts.get("optimizer", {}), self.device))
        self.density.stats = _to(parts.get("density", {}), self.device)
        self.density.opacity_was_reset = info["opacity_was_reset"]
        self.sampler.restore(info["queue"], parts["rng"]["sampler"])
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
