"""The settings and the command lines of MoE-GS: its router, pruning, distillation and rendering.

Made as those of MoDE are: dataclasses are the one source for flags and for what a run saves.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from arguments_MoDE.cli import (
    DEVICE_HELP,
    DEVICES,
    RECIPE_HELP,
    _Formatter,
    _Parser,
    add_group,
    first_pass,
    note_of,
    parse_flags,
    run_folder,
)
from arguments_MoDE.config import CACHES, RouterParams, option
from arguments_MoDE.recipe import read_moe_recipe
from arguments_MoDE.values import MOST_THREADS, accept, check_range, settings_of
from utils.errors import UserError

RANGES: dict[str, tuple[float, float]] = {
    "router_iterations": (1, 1e9),
    "router_batch_size": (1, 1e6),
    "temperature_init": (1e-4, 1e4),
    "temperature_final": (1e-4, 1e4),
    "init_mixprob": (-1e3, 1e3),
    "mask_lr": (0, 1e3),
    "mask_lr_final": (0, 1e3),
    "time_lr": (0, 1e3),
    "network_lr": (0, 1e3),
    "router_lambda_dssim": (0, 1),
    "router_seed": (0, 2**63 - 1),
    "share": (0, 0.999),
    "threshold": (0, 1e9),
    "views": (0, 1e9),
    "distill_iterations": (1, 1e9),
    "distill_lambda": (0, 1),
    "distill_lambda_dssim": (0, 1),
    "distill_lr_scale": (0, 1e3),
    "keep_checkpoints": (0, 1e9),
    "checkpoint_minutes": (0, 1e9),
    "threads": (0, MOST_THREADS),
    "test_iterations": (1, 1e9),
    "save_iterations": (1, 1e9),
    "checkpoint_iterations": (1, 1e9),
    "iteration": (-1, 1e9),
    "video_frames": (0, 1e6),
    "cache_gb": (0, 1e6),
}


@dataclass(kw_only=True)
class _Computing:
    """What every command of MoE-GS is asked for."""

    model_path: Path = field(default_factory=Path)
    device: str = option("auto", DEVICE_HELP, choices=DEVICES)
    quiet: bool = option(False, "print results only: no progress, no notes")
    threads: int = option(0, "CPU threads; 0: PyTorch's default")


@dataclass(kw_only=True)
class _Resumable(_Computing):
    """What every command is asked for that can be interrupted and goes on."""

    resume: bool = option(False, "go on with what was interrupted in the run folder")
    overwrite: bool = option(False, "replace what this command has left in the run folder")


@dataclass(kw_only=True)
class RouterArguments(_Resumable):
    """What ``train_moe.py router`` is asked for."""

    params: RouterParams
    configs: str | None = option(None, RECIPE_HELP + "; its RouterParams are read")
    experts: list[str] = option(
        [],
        "run folders of the experts, as PATH or NAME=PATH; default: all in the folder experts of "
        "the run, which must be complete",
    )
    start_router: str = option(
        "", "folder of a MoE with the same experts: begin with its router's weights, not anew"
    )
    source_path: str = option("", "scene folder; default: the experts'", short="s")
    test_iterations: list[int] = option(
        [500, 2000, 5000], "iterations at which the test views are measured"
    )
    save_iterations: list[int] = option(
        [500, 2000, 5000], "iterations at which the router is saved; the last always is"
    )
    checkpoint_iterations: list[int] = option(
        [], "iterations at which the training state is saved, for --resume"
    )
    checkpoint_minutes: float = option(
        10.0, "save the training state after so many minutes as well; 0: only as planned above"
    )
    keep_checkpoints: int = option(2, "training states to keep; 0: all")


@dataclass(kw_only=True)
class PruneArguments(_Resumable):
    """What ``train_moe.py prune`` is asked for."""

    moe: str = option("", "folder of the MoE to prune; it stays as it is")
    share: float = option(0.5, "share of all experts' Gaussians to remove")
    threshold: float | None = option(
        None, "instead of --share: remove Gaussians of an importance below it"
    )
    importance: str = option(
        "blend",
        "what counts: blend = a Gaussian's weight in the blended picture; gate = norm of the "
        "gradient of its expert's gates by its weights (published; costs far more, see "
        "docs/moe_gs.md); either a mean over training views",
        choices=("gate", "blend"),
    )
    views: int = option(0, "training views to measure on, evenly spaced; 0: all")
    source_path: str = option("", "where the scene is now; default: the MoE's", short="s")
    checkpoint_minutes: float = option(10.0, "save the sums after so many minutes; 0: never")


@dataclass(kw_only=True)
class DistillArguments(_Resumable):
    """What ``train_moe.py distill`` is asked for."""

    moe: str = option("", "folder of the MoE that teaches; it stays as it is")
    expert: str = option("", "name of its expert that learns")
    student: str = option(
        "", "run folder to start from in place of the expert: the same kind of model, pruned say"
    )
    distill_iterations: int = option(1000, "iterations of further training")
    distill_lambda: float = option(
        0.5,
        "weight of the ground truth where the gate trusts the expert; the rest has the MoE's "
        "picture where it does not",
    )
    distill_lambda_dssim: float = option(0.2, "share of 1 - SSIM in both losses; L1 has the rest")
    distill_lr_scale: float = option(
        3.0, "factor on the learning rates, which go on as the schedules say and fade out"
    )
    source_path: str = option("", "where the scene is now; default: the MoE's", short="s")
    checkpoint_iterations: list[int] = option(
        [], "iterations, counted on from the expert's, at which the training state is saved"
    )
    checkpoint_minutes: float = option(
        10.0, "save the training state after so many minutes as well; 0: only as planned above"
    )
    keep_checkpoints: int = option(2, "training states to keep; 0: all")


@dataclass(kw_only=True)
class MoERenderingArguments(_Computing):
    """What ``render_moe.py`` is asked for."""

    iteration: int = option(-1, "iteration of the router to render, of those saved; -1: the last")
    experts: list[str] = option([], "names of the experts that take part; default: all")
    skip_train: bool = option(False, "leave the training views out")
    skip_test: bool = option(False, "leave the held-out views out")
    skip_video: bool = option(False, "leave the path of novel views out")
    skip_experts: bool = option(False, "leave each expert's own picture and metrics out")
    skip_gates: bool = option(False, "leave the pictures of the gates out")
    lpips: bool = option(True, "measure LPIPS too, when its weights are found")
    lpips_experts: bool = option(False, "measure LPIPS of each expert's own pictures as well")
    source_path: str | None = option(None, "where the scene is now; default: the run's", short="s")
    video_frames: int | None = option(
        None, "frames of the rendered camera path; 0: as many as the clip has; default: the run's"
    )
    cache: str | None = option(
        None, "where decoded frames are kept, as in training; default: the run's", choices=CACHES
    )
    cache_gb: float | None = option(
        None, "memory for decoded frames, in GB, as in training; default: the run's"
    )


def parse_router(argv: Sequence[str] | None, prog: str, description: str) -> RouterArguments:
    """Reads the line of ``train_moe.py router``.

    Raises:
        UserError: names the flag.
    """
    values = _values(argv, prog, description, RouterArguments, RouterParams, recipe=True)
    params = RouterParams(**{f.name: values.pop(f.name) for f in fields(RouterParams)})
    check_ranges(vars(params))
    for name in ("test_iterations", "save_iterations", "checkpoint_iterations"):
        values[name] = sorted(set(values[name]))
    return RouterArguments(params=params, **values)


def parse_prune(argv: Sequence[str] | None, prog: str, description: str) -> PruneArguments:
    """Reads the line of ``train_moe.py prune``.

    Raises:
        UserError: names the flag.
    """
    return PruneArguments(**_with_moe(_values(argv, prog, description, PruneArguments)))


def parse_distill(argv: Sequence[str] | None, prog: str, description: str) -> DistillArguments:
    """Reads the line of ``train_moe.py distill``.

    Raises:
        UserError: names the flag.
    """
    values = _with_moe(_values(argv, prog, description, DistillArguments))
    if not values["expert"]:
        raise UserError("--expert is missing: name the MoE's expert that learns")
    return DistillArguments(**values)


def _with_moe(values: dict[str, Any]) -> dict[str, Any]:
    """The same, if the MoE to start from is given and is not the folder to write to."""
    if not values["moe"]:
        raise UserError("--moe is missing: give the folder of the MoE to start from")
    moe = Path(values["moe"]).expanduser()
    if moe.resolve() == values["model_path"].resolve():
        raise UserError(f"--expname {moe} is the MoE itself: give another folder to write to")
    source = values["source_path"]  # saved: whole, so that it is found from every folder
    source = os.path.abspath(os.path.expanduser(source)) if source else source
    return values | {"moe": str(moe), "source_path": source}


def parse_moe_rendering(
    argv: Sequence[str] | None, prog: str, description: str
) -> MoERenderingArguments:
    """Reads the line of ``render_moe.py``.

    Raises:
        UserError: names the flag.
    """
    values = _values(argv, prog, description, MoERenderingArguments)
    values["source_path"] = values["source_path"] and os.path.expanduser(values["source_path"])
    return MoERenderingArguments(**values)


def router_params(saved: dict[str, Any], where: object) -> RouterParams:
    """`RouterParams` from what a run saved.

    Raises:
        UserError: a setting is missing, unknown or of another type; the line names ``where``.
    """
    settings = {setting.name: setting for setting in settings_of(RouterParams)}
    wrong = sorted(set(settings) ^ set(saved))
    if wrong:
        raise UserError(f"{where}: setting {wrong[0]} is missing or unknown: train the router anew")
    params = RouterParams()
    for name, value in saved.items():
        try:
            setattr(params, name, accept(settings[name], value))
        except TypeError as error:
            raise UserError(f"{where}: {name} {error}") from None
    try:
        check_ranges(vars(params))
    except UserError as error:
        raise UserError(f"{where}: {error}; restore the file or train the router anew") from None
    return params


def as_dict(params: RouterParams) -> dict[str, Any]:
    """Setting -> value, ready for JSON."""
    return asdict(params)


def check_ranges(values: dict[str, Any]) -> None:
    """UserError where a value of a flag lies outside its range in `RANGES`."""
    for name, value in values.items():
        if name in RANGES and value is not None:
            check_range(name, value, *RANGES[name])


def moe_parser(
    prog: str, description: str, *sections: type, defaults: Mapping[str, Any] | None = None
) -> _Parser:
    """The flags of a command of MoE-GS: those of ``sections``, the first one's before the others'.

    The run folder is ``--expname``, or ``--model_path``; ``defaults`` go over the sections' own.
    """
    parser = _Parser(
        prog=prog, description=description, formatter_class=_Formatter, allow_abbrev=False
    )
    folder = parser.add_argument_group("run folder")
    folder.add_argument("-m", "--model_path", default="", metavar="TEXT", help="the MoE's folder")
    folder.add_argument("--expname", default="", metavar="TEXT", help="another name of the same")
    for section in sections:
        text = (section.__doc__ or "").splitlines()[0]
        add_group(parser, section.__name__, text, settings_of(section), dict(defaults or {}))
    parser.retired = {}
    return parser


def _values(
    argv: Sequence[str] | None,
    prog: str,
    description: str,
    *sections: type,
    recipe: bool = False,
) -> dict[str, Any]:
    """The values of all flags; with ``recipe``, over what ``--configs`` says of the router."""
    argv = list(sys.argv[1:] if argv is None else argv)
    first = first_pass(argv)
    note = note_of(first)
    given = read_moe_recipe(first.configs, note).router if recipe and first.configs else {}
    values = parse_flags(moe_parser(prog, description, *sections, defaults=given), argv, note)
    values["model_path"] = run_folder(values.pop("expname"), values["model_path"])
    check_ranges(values)
    if values.get("resume") and values["overwrite"]:
        raise UserError("--resume and --overwrite exclude each other; give one of them")
    return values
