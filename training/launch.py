"""What `train_emb.py` and its sisters share: from arguments to a trained run folder."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from arguments_MoDE.cli import TrainingArguments, parse_training
from arguments_MoDE.config import Config
from arguments_MoDE.saved import first_difference, load_config, save_config
from arguments_MoDE.values import all_settings
from scene import Scene, load_scene
from scene.experts import REGISTRY, SceneFacts
from scene.gaussian_model import GaussianModel
from scene.mixture import MoDE
from training.checkpoint import (
    FOLDERS,
    ORIGINS,
    checkpoints,
    latest_checkpoint,
    load_state,
    recover,
    restored,
    saved_iterations,
    set_others_aside,
)
from training.memory import check_memory
from training.reports import CURVES, Report
from training.trainer import Plan, Progress, Trainer
from utils.errors import UserError
from utils.files import make_folder, remove_folder, sole_user


def build_model(scene: Scene, config: Config) -> MoDE:
    """A fresh model on the scene's point cloud."""
    gaussians = GaussianModel.from_points(scene.points.xyz, scene.points.rgb)
    facts = SceneFacts(scene.bbox, scene.extent, len(scene.camera_names), scene.frame_count)
    return MoDE(gaussians, config, facts)


# What an iteration cannot do without: native package -> the expert that needs it, None: all do.
NATIVE: dict[str, str | None] = {
    "diff_gaussian_rasterization": None,
    "photometric_loss": None,
    "hexplane_encoder": "hexplane",
    "hash_encoder": "hash",
}


def choose_device(name: str, config: Config, *, quiet: bool = False) -> str:
    """The device to compute on: ``auto`` is a GPU where torch and the native packages have one.

    Args:
        config: of the run; it says which packages are needed.
        quiet: whether to say nothing of a GPU that is there and is not used.

    Raises:
        UserError: ``cuda`` was asked for and torch or a native package cannot.
    """
    if name == "cpu":
        return name
    if not torch.cuda.is_available():
        if name == "cuda":
            raise UserError("--device cuda: this PyTorch sees no GPU; use --device cpu or auto")
        return "cpu"
    without = _without_kernels(config)
    if not without:
        return "cuda"
    remedy = (
        f"built without CUDA kernels: {', '.join(without)}. Put nvcc of the CUDA toolkit on the "
        "PATH and run: make clean setup"
    )
    if name == "cuda":
        raise UserError(f"--device cuda: {remedy}; or use --device cpu")
    if not quiet:
        print(f"note: the GPU is not used, {remedy}", file=sys.stderr)
    return "cpu"


def _without_kernels(config: Config) -> list[str]:
    """The packages that the run needs and that compute on the CPU only."""
    experts = [] if config.hidden.static else config.hidden.experts
    needed = [package for package, expert in NATIVE.items() if expert in (None, *experts)]
    return [package for package in needed if "cuda" not in import_module(package).DEVICES]


def set_precision(config: Config) -> None:
    """Says how matrix products on a GPU round, in so many words rather than by default.

    float32 in full, and so are the convolutions of LPIPS; with ``tf32`` both keep 10 bits of the
    mantissa where the GPU is faster at that. Nothing changes on a CPU.
    """
    torch.backends.cuda.matmul.allow_tf32 = config.opt.tf32
    torch.backends.cudnn.allow_tf32 = config.opt.tf32


def train_main(
    argv: Sequence[str] | None, prog: str, description: str, experts: Sequence[str]
) -> int:
    """Trains as the command line says; returns the exit code.

    Args:
        experts: the mixture that is trained where neither a flag nor a recipe names another.
    """
    train_run(parse_training(argv, prog, description, tuple(REGISTRY), experts))
    return 0


def train_run(arguments: TrainingArguments) -> None:
    """Trains one run, unless its folder holds it already, and prints where it is.

    Raises:
        UserError: what the user can mend; `check_run` finds the faults of the run folder sooner.
    """
    config, folder = arguments.config, Path(arguments.config.model.model_path)
    if is_complete(arguments):
        print(f"{folder} is already trained with these settings; --overwrite trains it anew")
        return
    checkpoint = check_run(arguments)
    if arguments.resume and checkpoint is None and not arguments.quiet and is_run(folder):
        print(f"{folder} has no checkpoint yet: training from the beginning")
    device = choose_device(arguments.device, config, quiet=arguments.quiet)
    set_precision(config)
    torch.manual_seed(config.model.seed)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    scene = load_scene(config.model)
    scene.reserve()  # too little memory or disk space shows before anything is decoded,
    scene.prepare(scene.train)  # and damaged videos before the first iteration
    model = build_model(scene, config)
    check_memory(model, config, scene, device)
    if not arguments.quiet:
        print(_summary(scene, model, device))
    with ExitStack() as held:
        trainer = _trainer(model, scene, arguments, folder, device, checkpoint, held)
        trainer.train()
        trainer.report.close()
    print(
        f"{len(model.gaussians)} Gaussians in {trainer.progress.seconds:.0f} s; saved to {folder}"
    )


def _trainer(
    model: MoDE,
    scene: Scene,
    arguments: TrainingArguments,
    folder: Path,
    device: str,
    checkpoint: Path | None,
    held: ExitStack,
) -> Trainer:
    """The trainer, restored if there is a checkpoint; only now is the run folder written to.

    Args:
        held: what closes at the end of training; the run folder is locked until then.
    """
    config = arguments.config
    state = _state_of(checkpoint, config) if checkpoint else None
    make_folder(folder)
    held.enter_context(sole_user(folder))
    if arguments.overwrite:
        _clear(folder)
    set_others_aside(folder, checkpoint)
    own = checkpoint is not None and _is_within(checkpoint, folder)
    done = (
        restored(Progress, state[1]["progress"]).step(config.opt.coarse_iterations) if own else None
    )
    size = state[1].get("reported_bytes") if own else None
    report = Report(folder, quiet=arguments.quiet, keep_through=done, keep_bytes=size)
    plan = Plan(
        folder,
        arguments.test_iterations,
        arguments.save_iterations,
        arguments.checkpoint_iterations,
        60 * arguments.checkpoint_minutes,
        arguments.keep_checkpoints,
    )
    trainer = Trainer(model, scene, config, plan, report, device)
    if state:
        trainer.restore(*state)
        report.say(f"continuing from {checkpoint}")
        if not own:  # so that a run that is killed soon is not resumed from the beginning
            trainer.save_checkpoint()
    save_config(config, folder / "config.json")  # last: with it the folder counts as a run
    return trainer


def _state_of(checkpoint: Path, config: Config) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A checkpoint's content.

    Raises:
        UserError: its model is of another shape than ``config`` says, or trained for longer.
    """
    tensors, info = load_state(checkpoint)
    done = restored(Progress, info["progress"])
    if done.stage == "fine" and done.iteration > config.opt.iterations:
        raise UserError(
            f"{checkpoint} is at iteration {done.iteration}, beyond --iterations "
            f"{config.opt.iterations}: raise that or start from an earlier one"
        )
    for setting in all_settings().values():
        saved = info["config"].get(setting.section, {}).get(setting.name, setting.default)
        given = getattr(getattr(config, setting.section), setting.name)
        if setting.structural and saved != given:
            raise UserError(
                f"{checkpoint}: {setting.name} was {saved!r} there but is {given!r} now; "
                f"continue with the settings that it was trained with"
            )
    return tensors, info


def is_run(folder: Path) -> bool:
    """Whether a training has begun in ``folder``."""
    return (folder / "config.json").is_file()


def is_complete(arguments: TrainingArguments) -> bool:
    """Whether the run folder holds the last iteration of just this training."""
    folder = Path(arguments.config.model.model_path)
    if arguments.overwrite or not is_run(folder):
        return False
    same = first_difference(load_config(folder / "config.json"), arguments.config) is None
    return same and arguments.config.opt.iterations in saved_iterations(folder)


def check_run(arguments: TrainingArguments) -> Path | None:
    """Refuses a run folder that cannot be used; returns the checkpoint to go on from, if any."""
    folder = Path(arguments.config.model.model_path)
    check_writable(folder)
    check_apart(folder, arguments.config.model.source_path)
    check_single(folder)
    if folder.exists():
        with sole_user(folder):  # an early answer, and nobody's work that is tidied up
            recover(folder)
    used = is_run(folder) and not arguments.overwrite
    given = arguments.start_checkpoint
    if given and given != "latest":
        return _given_checkpoint(Path(given), folder, arguments)
    if not used and given:
        raise UserError(f"--start_checkpoint latest: {folder} holds no run; leave the flag out")
    if not used:
        return None
    if not (arguments.resume or given):
        raise UserError(
            f"{folder} holds another or an unfinished run: --resume continues it, "
            f"--overwrite replaces it, or choose another --expname"
        )
    return _own_checkpoint(folder, arguments)


def _own_checkpoint(folder: Path, arguments: TrainingArguments) -> Path | None:
    """The run folder's furthest whole checkpoint, if the settings are those of the run."""
    flag = "--start_checkpoint" if arguments.start_checkpoint else "--resume"
    difference = first_difference(load_config(folder / "config.json"), arguments.config)
    if difference is not None:
        key, saved, given = difference
        raise UserError(
            f"{flag}: {key} is {given!r} but {folder} was trained with {saved!r}; "
            f"use the same settings or --overwrite"
        )
    found = latest_checkpoint(folder)
    if found is None and arguments.start_checkpoint:
        raise UserError(
            f"--start_checkpoint latest: {folder} has none yet; --resume trains from the beginning"
        )
    return found


def _given_checkpoint(path: Path, folder: Path, arguments: TrainingArguments) -> Path:
    """The checkpoint ``--start_checkpoint`` names: a folder of its own, or a run's last."""
    used = is_run(folder) and not arguments.overwrite
    if checkpoints(path):
        path = latest_checkpoint(path) or path
    if not used:
        return path
    if not _is_within(path, folder):
        raise UserError(f"{folder} holds a run already: choose another --expname")
    latest = _own_checkpoint(folder, arguments)
    if latest is None or latest.resolve() != path.resolve():
        raise UserError(
            f"--start_checkpoint {path}: {folder} has gone on to {latest}; "
            f"choose another --expname to go on from the older one"
        )
    return latest


def _is_within(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents


def check_apart(folder: Path, source_path: str) -> None:
    """UserError where the run folder ``folder`` holds the scene."""
    source = Path(source_path).resolve()
    if folder.resolve() in (source, *source.parents):
        raise UserError(f"--expname {folder} holds the scene itself: give a folder of its own")


def check_single(folder: Path) -> None:
    """UserError where ``folder``, in which a single model is to be trained, is a MoE's."""
    if (folder / "moe.json").exists() or (folder / "experts").exists():
        raise UserError(f"{folder} holds a MoE: choose another --expname for the single model")


def check_writable(folder: Path) -> None:
    """An early error, before the scene is read, where the run folder cannot be made."""
    existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"--expname {folder}: {existing} is a file, not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"--expname {folder}: no permission to write to {existing}")


def clear_shown(folder: Path) -> None:
    """Removes pictures, metrics and curves: they are not of what replaces the run in ``folder``.

    Rendering and `training.reports.Report` left them.
    """
    for rendered in folder.glob("*/ours_*"):
        if rendered.parent.name in ("train", "test", "video"):
            shutil.rmtree(rendered, ignore_errors=True)
    for curves in folder.glob(f"{CURVES}.*"):
        curves.unlink(missing_ok=True)
    for name in ("metrics.json", "gates.json"):
        (folder / name).unlink(missing_ok=True)


def _clear(folder: Path) -> None:
    """Removes what runs write to their folder, and nothing else."""
    for name in FOLDERS:
        remove_folder(folder / name)
    clear_shown(folder)
    for name in ("metrics.jsonl", "config.json", *ORIGINS):
        (folder / name).unlink(missing_ok=True)


def _summary(scene: Scene, model: MoDE, device: str) -> str:
    size = f"{scene.train[0].camera.width}x{scene.train[0].camera.height}"
    experts = " + ".join(model.experts) or "static"
    return (
        f"{scene.kind}: {len(scene.train)} training and {len(scene.test)} test views of "
        f"{len(scene.camera_names)} cameras, {scene.frame_count} frames, {size}; "
        f"{len(model.gaussians)} points, extent {scene.extent:.3g}; {experts} on {device}"
    )
