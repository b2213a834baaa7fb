"""Distillation: one expert learns from the MoE, so that it can be used alone.

Where the gate trusts the expert it is compared with the ground truth, elsewhere with the MoE's
picture (MoE-GS, equation 11), G being the expert's gate::

    L_k = lambda L(G I_k, G I_GT) + (1 - lambda) L((1 - G) I_k, (1 - G) I_MoE)

The MoE is frozen, the copy of the expert in it too. The expert goes on from where its training
ended, with a fresh optimiser, without density control: it keeps its size.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arguments_MoDE.config import Config, OptimizationParams
from arguments_MoDE.moe import DistillArguments, parse_distill
from arguments_MoDE.saved import first_difference, load_config, save_config
from scene import Scene, load_scene
from scene.experts.base import ParameterGroup
from training.checkpoint import (
    FOLDERS,
    ORIGINS,
    Run,
    latest_checkpoint,
    load_run,
    load_state,
    recover,
    restored,
    saved_iterations,
)
from training.launch import (
    check_apart,
    check_single,
    check_writable,
    clear_shown,
    is_run,
    set_precision,
)
from training.losses import photometric, to_float
from training.moe.files import (
    Member,
    MoERun,
    check_same_scene,
    check_scene,
    check_untouched,
    device_of,
    is_imported,
    load_moe,
    router_folder,
    started_from,
)
from training.moe.views import MoEViewRenderer
from training.reports import Report
from training.schedules import Optimizer
from training.trainer import Plan, Progress, Shot, Trainer
from utils.errors import UserError
from utils.files import make_folder, remove_folder, sole_user
from utils.verify import digest, read_sealed, write_sealed

PROG = "train_moe.py distill"
DESCRIPTION = "Train one expert further, with its MoE as the teacher."
FADED = 0.03  # of the learning rates, at the end
TEST_SHARES = (0.25, 0.5, 0.75)  # of the iterations, at which test views are measured as well


def distillation_loss(
    images: Tensor,
    plain: Tensor,
    targets: Tensor,
    taught: Tensor,
    gate: Tensor,
    weight: float,
    dssim: float,
    mask: Tensor | None = None,
) -> dict[str, Tensor]:
    """The two terms of equation 11, weighted.

    Args:
        images: (B, 3, H, W), the expert's, in the colours of the cameras.
        plain: (B, 3, H, W), the same in the scene's colours, which the MoE has, too.
        targets: (B, 3, H, W) in [0, 1], the ground truth.
        taught: (B, 3, H, W), the MoE's.
        gate: (B, 1, H, W), the expert's.
        weight: lambda.
        dssim: share s of 1 - SSIM: L = (1 - s) L1 + s (1 - SSIM).
        mask: (B, 1, H, W) bool, the pixels that count; None: all.
    """
    scale = max(1 - dssim, 1e-6)
    settings = OptimizationParams(loss="l1", lambda_dssim=dssim / scale)
    pairs = {
        "truth": (weight, gate, images, targets),
        "teacher": (1 - weight, 1 - gate, plain, taught),
    }
    return {
        name: share * scale * sum(photometric(g * own, g * to, settings, mask).values())
        for name, (share, g, own, to) in pairs.items()
        if share > 0
    }


class FadingOptimizer(Optimizer):
    """Goes on with the rates that training ended with, and fades them out log-linearly.

    Decays that end with the stage have ended: they are those of the student's own training, not of
    the longer stage. Other rates are constant; with them the expert would only jitter.
    """

    def __init__(
        self, groups: list[ParameterGroup], trained: int, span: tuple[int, int], scale: float
    ) -> None:
        """Scales all rates, from ``scale`` at the begin of ``span`` to `FADED` of that at its end.

        Args:
            trained: length of the stage that the student was trained in.
            span: iterations at which distillation begins and ends.
        """
        super().__init__(groups, trained)
        self.span, self.scale = span, scale

    def set_rates(self, iteration: int) -> None:
        """See `Optimizer.set_rates`."""
        super().set_rates(iteration)
        begin, end = self.span
        share = (iteration - begin) / max(end - begin, 1)
        for group in self.adam.param_groups:
            group["lr"] *= self.scale * FADED ** min(max(share, 0.0), 1.0)


class DistillTrainer(Trainer):
    """Trains an expert further; see the module's text."""

    def __init__(
        self,
        teacher: MoERun,
        arguments: DistillArguments,
        student: Run,
        scene: Scene,
        config: Config,
        plan: Plan,
        report: Report,
        device: str,
    ) -> None:
        """``config`` is `distilled_config`; nothing is trained yet."""
        self.arguments, self.begin = arguments, student.iteration
        self.trained = student.config.opt.iterations
        self.index = list(teacher.runs).index(arguments.expert)
        super().__init__(student.model, scene, config, plan, report, device)
        self.teacher = MoEViewRenderer(teacher.model.to(device), scene, teacher.params)
        self._start_stage("fine")
        self.progress = Progress("fine", student.iteration)

    def _optimizer(self, groups: list[ParameterGroup], length: int) -> Optimizer:
        span = self.begin, length
        return FadingOptimizer(groups, self.trained, span, self.arguments.distill_lr_scale)

    def _loss_terms(self, shots: list[Shot], iteration: int) -> dict[str, Tensor]:
        """Those of `distillation_loss`, and the expert's own regularisers."""
        total = sum(shot.images.numel() for shot in shots)
        terms: dict[str, Tensor] = {}
        for shot in shots:
            taught = self.teacher.blend(shot.views)
            parts = distillation_loss(
                shot.images,
                shot.output.images,
                to_float(shot.targets.permute(0, 2, 3, 1)),
                taught.images,
                taught.gates[:, self.index, None],
                self.arguments.distill_lambda,
                self.arguments.distill_lambda_dssim,
                shot.mask,
            )
            for name, value in parts.items():
                terms[name] = terms.get(name, 0) + shot.images.numel() / total * value
        times = [view.time for shot in shots for view in shot.views]
        return terms | self.model.regularizers(times, iteration)


def student_of(teacher: MoERun, arguments: DistillArguments) -> Run:
    """What learns, as it is now: the MoE's expert, or the run that ``--student`` names.

    Raises:
        UserError: it is imported, or ``--student`` is of other pictures or another kind of model.
    """
    own = teacher.runs[arguments.expert]
    if not arguments.student:
        _refuse_imported(own, f"--expert {arguments.expert}")
        return load_run(own.model_path, own.iteration)
    run = load_run(arguments.student)
    _refuse_imported(run, f"--student {arguments.student}")
    both = {arguments.expert: own, f"--student {arguments.student}": run}
    check_same_scene(both, arguments.source_path)
    ours, theirs = own.config.hidden.experts, run.config.hidden.experts
    if ours != theirs:
        raise UserError(
            f"--student {arguments.student}: it is {' + '.join(theirs)}, --expert "
            f"{arguments.expert} is {' + '.join(ours)}"
        )
    return run


def _refuse_imported(run: Run, where: str) -> None:
    if is_imported(run):
        raise UserError(
            f"{where}: {run.model_path} is imported, and what is imported cannot be trained "
            f"further; distil an expert that was trained here"
        )


def distilled_config(run: Run, arguments: DistillArguments) -> Config:
    """The settings of the student ``run``, with more iterations and without density control."""
    config = copy.deepcopy(run.config)
    config.opt.iterations = run.iteration + arguments.distill_iterations
    config.opt.densify_until_iter = 0
    config.opt.gaiting_from_iter = min(config.opt.gaiting_from_iter, run.iteration)
    config.model.model_path = str(arguments.model_path)
    if arguments.source_path:
        config.model.source_path = arguments.source_path
    return config


def main(argv: Sequence[str] | None = None) -> int:
    """Distils as the command line says; returns the exit code."""
    arguments = parse_distill(argv, PROG, DESCRIPTION)
    folder = arguments.model_path
    check_writable(folder)
    teacher = load_moe(Path(arguments.moe))
    if arguments.expert not in teacher.runs:
        known = ", ".join(teacher.runs)
        raise UserError(f"--expert {arguments.expert}: {arguments.moe} has {known}")
    check_untouched(folder, teacher)
    student = student_of(teacher, arguments)
    if folder.resolve() == student.model_path.resolve():
        raise UserError(f"--expname {folder} is the student itself: give a folder of its own")
    config = distilled_config(student, arguments)
    check_apart(folder, config.model.source_path)
    record = _record(teacher, student, arguments)
    if _is_complete(arguments, config, record):
        print(f"{folder} is distilled already with these settings; --overwrite does it anew")
        return 0
    checkpoint = _starting_point(arguments, config, record)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = device_of(arguments.device, teacher.runs, quiet=arguments.quiet)
    set_precision(config)
    torch.manual_seed(config.model.seed)
    scene = load_scene(config.model)
    check_scene(teacher.runs, scene)
    scene.reserve()
    scene.prepare(scene.train)
    with ExitStack() as held:
        trainer = _trainer(teacher, student, arguments, config, scene, device, checkpoint, held)
        trainer.train()
        trainer.report.close()
    print(f"distilled in {trainer.progress.seconds:.0f} s; saved to {folder}")
    return 0


def _trainer(
    teacher: MoERun,
    student: Run,
    arguments: DistillArguments,
    config: Config,
    scene: Scene,
    device: str,
    checkpoint: Path | None,
    held: ExitStack,
) -> DistillTrainer:
    """The trainer, restored if there is a checkpoint; only now is the run folder written to."""
    folder = arguments.model_path
    state = load_state(checkpoint) if checkpoint else None
    earlier = {"earlier_sha256": started_from(student.model_path)}
    record = _record(teacher, student, arguments) | earlier
    make_folder(folder)
    held.enter_context(sole_user(folder))
    if arguments.overwrite:
        clear_shown(folder)
    if state is None:
        _clear(folder)
    done = None if state is None else restored(Progress, state[1]["progress"]).iteration
    done = None if done is None else done + config.opt.coarse_iterations
    size = None if state is None else state[1].get("reported_bytes")
    report = Report(folder, quiet=arguments.quiet, keep_through=done, keep_bytes=size)
    steps = [round(share * arguments.distill_iterations) for share in TEST_SHARES]
    plan = Plan(
        folder,
        [student.iteration + step for step in steps],
        [],
        [student.iteration + step for step in arguments.checkpoint_iterations],
        60 * arguments.checkpoint_minutes,
        arguments.keep_checkpoints,
    )
    student.model.to(device).requires_grad_(True)
    trainer = DistillTrainer(teacher, arguments, student, scene, config, plan, report, device)
    if state is not None:
        trainer.restore(*state)
        report.say(f"continuing from {checkpoint}")
    write_sealed(folder / "distill.json", record)
    save_config(config, folder / "config.json")  # last: with it the folder counts as a run
    return trainer


def _record(teacher: MoERun, student: Run, arguments: DistillArguments) -> dict[str, Any]:
    """What a distillation depends on beside the student's settings."""
    router = router_folder(teacher.model_path, teacher.iteration)
    return {
        "moe": arguments.moe,
        "router_iteration": teacher.iteration,
        "router_sha256": digest(router / "manifest.json"),
        "expert": arguments.expert,
        "expert_sha256": Member.of(arguments.expert, student).sha256,
        "distill_lambda": arguments.distill_lambda,
        "distill_lambda_dssim": arguments.distill_lambda_dssim,
        "distill_lr_scale": arguments.distill_lr_scale,
    }


def _difference(
    folder: Path, config: Config, record: dict[str, Any]
) -> tuple[str, Any, Any] | None:
    """The first setting in which the run folder's distillation differs, as (name, its, ours)."""
    saved = read_sealed(folder / "distill.json")[0] if (folder / "distill.json").exists() else {}
    for key, value in record.items():
        if key != "moe" and saved.get(key) != value:  # the MoE may have been moved
            return key, saved.get(key), value
    return first_difference(load_config(folder / "config.json"), config)


def _is_complete(arguments: DistillArguments, config: Config, record: dict[str, Any]) -> bool:
    folder = arguments.model_path
    if arguments.overwrite or not is_run(folder):
        return False
    same = _difference(folder, config, record) is None
    return same and config.opt.iterations in saved_iterations(folder)


def _starting_point(
    arguments: DistillArguments, config: Config, record: dict[str, Any]
) -> Path | None:
    """Refuses a run folder that cannot be used; returns the checkpoint to go on from, if any."""
    folder = arguments.model_path
    check_single(folder)
    if folder.exists():
        with sole_user(folder):
            recover(folder)
    if not is_run(folder) or arguments.overwrite:
        return None
    if not arguments.resume:
        raise UserError(
            f"{folder} holds another or an unfinished run: --resume continues it, "
            f"--overwrite replaces it, or choose another --expname"
        )
    difference = _difference(folder, config, record)
    if difference is not None:
        key, saved, given = difference
        raise UserError(
            f"--resume: {key} is {given!r} but {folder} was begun with {saved!r}; "
            f"use the same settings or --overwrite"
        )
    return latest_checkpoint(folder)


def _clear(folder: Path) -> None:
    for name in FOLDERS:
        remove_folder(folder / name)
    for name in ("metrics.json", "metrics.jsonl", "config.json", *ORIGINS):
        (folder / name).unlink(missing_ok=True)
