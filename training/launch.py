"""What `train_emb.py` and its sisters share: from arguments to a trained run folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import diff_gaussian_rasterization
import hexplane_encoder
import photometric_loss
from arguments_MoDE.cli import TrainingArguments, parse_training
from arguments_MoDE.config import Config
from arguments_MoDE.saved import first_difference, load_config, save_config
from arguments_MoDE.values import all_settings
from scene import Scene, load_scene
from scene.experts import REGISTRY, SceneFacts
from scene.gaussian_model import GaussianModel
from scene.mixture import MoDE
from training.checkpoint import latest_checkpoint, load_state, saved_iterations
from training.reports import Report
from training.trainer import Plan, Progress, Trainer
from utils.errors import UserError


def build_model(scene: Scene, config: Config) -> MoDE:
    """A fresh model on the scene's point cloud."""
    gaussians = GaussianModel.from_points(scene.points.xyz, scene.points.rgb)
    facts = SceneFacts(scene.bbox, scene.extent, len(scene.camera_names), scene.frame_count)
    return MoDE(gaussians, config, facts)


# what an iteration cannot do without
NATIVE = (diff_gaussian_rasterization, hexplane_encoder, photometric_loss)


def choose_device(name: str) -> str:
    """The device to compute on: ``auto`` is a GPU where torch and the native packages have one.

    Raises:
        UserError: ``cuda`` was asked for and torch or a native package cannot.
    """
    without = [package.__name__ for package in NATIVE if "cuda" not in package.DEVICES]
    if name == "auto":
        return "cuda" if torch.cuda.is_available() and not without else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this PyTorch sees no GPU; use --device cpu or auto")
    if name == "cuda" and without:
        raise UserError(
            f"--device cuda: {', '.join(without)} computes on the CPU only; use --device cpu"
        )
    return name


def train_main(
    argv: Sequence[str] | None, prog: str, description: str, experts: Sequence[str]
) -> int:
    """Trains as the command line says; returns the exit code.

    Args:
        experts: the mixture that is trained where neither a flag nor a recipe names another.
    """
    arguments = parse_training(argv, prog, description, tuple(REGISTRY), experts)
    config, folder = arguments.config, Path(arguments.config.model.model_path)
    if _is_complete(folder, arguments):
        print(f"{folder} is already trained with these settings; --overwrite trains it anew")
        return 0
    checkpoint = _starting_point(folder, arguments)
    device = choose_device(arguments.device)
    torch.manual_seed(config.model.seed)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    scene = load_scene(config.model)
    scene.reserve()  # too little memory or disk space shows before anything is decoded,
    scene.prepare(scene.train)  # and damaged videos before the first iteration
    model = build_model(scene, config)
    if not arguments.quiet:
        print(_summary(scene, model, device))
    trainer = _trainer(model, scene, arguments, folder, device, checkpoint)
    trainer.train()
    trainer.evaluate()
    trainer.report.close()
    print(
        f"{len(model.gaussians)} Gaussians in {trainer.progress.seconds:.0f} s; saved to {folder}"
    )
    return 0


def _trainer(
    model: MoDE,
    scene: Scene,
    arguments: TrainingArguments,
    folder: Path,
    device: str,
    checkpoint: Path | None,
) -> Trainer:
    """The trainer, restored if there is a checkpoint; only now is the run folder written to."""
    config = arguments.config
    state = _state_of(checkpoint, config) if checkpoint else None
    if arguments.overwrite:
        _clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_config(config, folder / "config.json")
    done = None
    if state and not arguments.start_checkpoint:
        done = Progress(**state[1]["progress"]).step(config.opt.coarse_iterations)
    report = Report(folder, quiet=arguments.quiet, keep_through=done)
    plan = Plan(
        folder,
        arguments.test_iterations,
        arguments.save_iterations,
        arguments.checkpoint_iterations,
    )
    trainer = Trainer(model, scene, config, plan, report, device)
    if state:
        trainer.restore(*state)
        report.say(f"continuing from {checkpoint}")
    return trainer


def _state_of(checkpoint: Path, config: Config) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A checkpoint's content; an error where its model is of another shape than ``config`` says."""
    tensors, info = load_state(checkpoint)
    for setting in all_settings().values():
        saved = info["config"].get(setting.section, {}).get(setting.name, setting.default)
        given = getattr(getattr(config, setting.section), setting.name)
        if setting.structural and saved != given:
            raise UserError(
                f"{checkpoint}: {setting.name} was {saved!r} there but is {given!r} now; "
                f"continue with the settings that it was trained with"
            )
    return tensors, info


def _is_complete(folder: Path, arguments: TrainingArguments) -> bool:
    if arguments.overwrite or not (folder / "config.json").is_file():
        return False
    same = first_difference(load_config(folder / "config.json"), arguments.config) is None
    return same and arguments.config.opt.iterations in saved_iterations(folder)


def _starting_point(folder: Path, arguments: TrainingArguments) -> Path | None:
    """Refuses a run folder that cannot be used; returns the checkpoint to go on from, if any."""
    _check_writable(folder)
    source = Path(arguments.config.model.source_path).resolve()
    if folder.resolve() in (source, *source.parents):
        raise UserError(f"--expname {folder} holds the scene itself: give a folder of its own")
    used = (folder / "config.json").is_file() and not arguments.overwrite
    if arguments.start_checkpoint:
        if used and not arguments.resume:
            raise UserError(f"{folder} holds a run already: choose another --expname")
        return Path(arguments.start_checkpoint)
    if not used:
        return None
    if not arguments.resume:
        raise UserError(
            f"{folder} holds another or an unfinished run: --resume continues it, "
            f"--overwrite replaces it, or choose another --expname"
        )
    difference = first_difference(load_config(folder / "config.json"), arguments.config)
    if difference is not None:
        key, saved, given = difference
        raise UserError(
            f"--resume: {key} is {given!r} but {folder} was trained with {saved!r}; "
            f"use the same settings or --overwrite"
        )
    return latest_checkpoint(folder)


def _check_writable(folder: Path) -> None:
    """An early error, before the scene is read, where the run folder cannot be made."""
    existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"--expname {folder}: {existing} is a file, not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"--expname {folder}: no permission to write to {existing}")


def _clear(folder: Path) -> None:
    """Removes what runs write to their folder, and nothing else."""
    for name in ("point_cloud", "checkpoint"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for rendered in folder.glob("*/ours_*"):
        if rendered.parent.name in ("train", "test", "video"):
            shutil.rmtree(rendered, ignore_errors=True)
    for name in ("metrics.json", "metrics.jsonl", "config.json"):
        (folder / name).unlink(missing_ok=True)


def _summary(scene: Scene, model: MoDE, device: str) -> str:
    size = f"{scene.train[0].camera.width}x{scene.train[0].camera.height}"
    experts = " + ".join(model.experts) or "static"
    return (
        f"{scene.kind}: {len(scene.train)} training and {len(scene.test)} test views of "
        f"{len(scene.camera_names)} cameras, {scene.frame_count} frames, {size}; "
        f"{len(model.gaussians)} points, extent {scene.extent:.3g}; {experts} on {device}"
    )
