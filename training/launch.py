"""What `train_emb.py` and its sisters share: from arguments to a trained run folder."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

import diff_gaussian_rasterization
import hexplane_encoder
from arguments_MoDE.cli import TrainingArguments, parse_training
from arguments_MoDE.config import Config
from arguments_MoDE.saved import first_difference, load_config, save_config
from scene import Scene, load_scene
from scene.experts import REGISTRY, SceneFacts
from scene.gaussian_model import GaussianModel
from scene.mixture import MoDE
from training.checkpoint import latest_checkpoint, load_state, saved_iterations
from training.reports import Report
from training.trainer import Plan, Trainer
from utils.errors import UserError


def build_model(scene: Scene, config: Config) -> MoDE:
    """A fresh model on the scene's point cloud."""
    gaussians = GaussianModel.from_points(scene.points.xyz, scene.points.rgb)
    facts = SceneFacts(scene.bbox, scene.extent, len(scene.camera_names), scene.frame_count)
    return MoDE(gaussians, config, facts)


NATIVE = (diff_gaussian_rasterization, hexplane_encoder)  # what an iteration cannot do without


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


def train_main(argv: Sequence[str] | None, prog: str, description: str) -> int:
    """Trains as the command line says; returns the exit code."""
    arguments = parse_training(argv, prog, description, tuple(REGISTRY))
    config, folder = arguments.config, Path(arguments.config.model.model_path)
    if _is_complete(folder, arguments):
        print(f"{folder} is already trained with these settings; --overwrite trains it anew")
        return 0
    checkpoint = _prepare(folder, arguments)
    torch.manual_seed(arguments.seed)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = choose_device(arguments.device)
    scene = load_scene(config.model)
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
    state = load_state(checkpoint) if checkpoint else None
    folder.mkdir(parents=True, exist_ok=True)
    save_config(arguments.config, folder / "config.json")
    before = state[1]["progress"]["seconds"] if state else None
    report = Report(folder, quiet=arguments.quiet, keep_before=before)
    plan = Plan(
        folder,
        arguments.test_iterations,
        arguments.save_iterations,
        arguments.checkpoint_iterations,
        arguments.seed,
    )
    trainer = Trainer(model, scene, arguments.config, plan, report, device)
    if state:
        trainer.restore(*state)
        report.say(f"resumed from {checkpoint}")
    return trainer


def _is_complete(folder: Path, arguments: TrainingArguments) -> bool:
    if arguments.overwrite or not (folder / "config.json").is_file():
        return False
    same = first_difference(load_config(folder / "config.json"), arguments.config) is None
    return same and arguments.config.opt.iterations in saved_iterations(folder)


def _prepare(folder: Path, arguments: TrainingArguments) -> Path | None:
    """Clears or refuses a run folder in use; returns the checkpoint to go on from, if any."""
    if arguments.start_checkpoint:
        return Path(arguments.start_checkpoint)
    if not (folder / "config.json").is_file():
        return None
    if arguments.overwrite:
        for name in ("point_cloud", "checkpoint", "train", "test", "video"):
            shutil.rmtree(folder / name, ignore_errors=True)
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


def _summary(scene: Scene, model: MoDE, device: str) -> str:
    size = f"{scene.train[0].camera.width}x{scene.train[0].camera.height}"
    experts = " + ".join(model.experts) or "static"
    return (
        f"{scene.kind}: {len(scene.train)} training and {len(scene.test)} test views of "
        f"{len(scene.camera_names)} cameras, {scene.frame_count} frames, {size}; "
        f"{len(model.gaussians)} points, extent {scene.extent:.3g}; {experts} on {device}"
    )
