"""The command line: flags generated from the dataclasses, laid over a recipe, laid over defaults.

The recipe that ``--configs`` names is read first and sets the defaults; then the whole line is
parsed, so that explicit flags win and ``--configs RECIPE --help`` shows the recipe's values.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from arguments_MoDE.config import CACHES, Config, option
from arguments_MoDE.recipe import Note, nearest, print_note, read_recipe
from arguments_MoDE.retired import RETIRED_AT_RENDERING, RETIRED_FLAGS
from arguments_MoDE.saved import check_recipe, first_difference, load_config, save_config
from arguments_MoDE.values import (
    MOST_THREADS,
    Sections,
    Setting,
    all_settings,
    check_range,
    describe,
    merged,
    section_types,
    settings_of,
    validate,
)
from utils.errors import UserError
from utils.flags import NumberParser

__all__ = [
    "RenderingArguments",
    "TrainingArguments",
    "check_recipe",
    "first_difference",
    "load_config",
    "parse_rendering",
    "parse_training",
    "rendering_parser",
    "run_folder",
    "save_config",
    "training_parser",
    "validate",
]

RECIPE_HELP = "recipe file, relative to the current directory or else to the repository"
DEVICES = ("auto", "cpu", "cuda")
DEVICE_HELP = "where to compute; auto: a GPU if there is one and the native packages can use it"


@dataclass
class TrainingArguments:
    """What a training command asks for: the resolved settings, and flags that no recipe sets."""

    config: Config
    configs: str | None = option(None, RECIPE_HELP + "; explicit flags win over it")
    device: str = option("auto", DEVICE_HELP, choices=DEVICES)
    test_iterations: list[int] = option(
        [3000, 7000, 14000], "fine iterations at which the test views are measured"
    )
    save_iterations: list[int] = option(
        [14000, 20000, 30000], "fine iterations at which the model is saved; the last always is"
    )
    checkpoint_iterations: list[int] = option(
        [], "fine iterations at which the training state is saved, for --resume"
    )
    checkpoint_minutes: float = option(
        10.0, "save the training state after so many minutes as well; 0: only as planned above"
    )
    keep_checkpoints: int = option(
        2, "training states to keep, the older ones are removed; 0: all. Models are all kept"
    )
    start_checkpoint: str | None = option(
        None,
        "training state to start from: a folder in checkpoint/, a run folder (its last one), or "
        "latest: that of the run folder itself, as --resume but refused without one",
    )
    resume: bool = option(False, "go on with the run folder's unfinished run")
    overwrite: bool = option(False, "replace the run that is in the run folder")
    quiet: bool = option(False, "print results only: no progress, no notes")
    threads: int = option(0, "CPU threads; 0: PyTorch's default")


@dataclass
class RenderingArguments:
    """What a rendering command asks for, beside the settings saved with the run.

    ``config`` holds those settings, with ``source_path`` and the like already replaced where a flag
    gives another.
    """

    model_path: Path
    config: Config = field(default_factory=Config)
    configs: str | None = option(
        None, RECIPE_HELP + "; optional: only checked against the run's own settings"
    )
    iteration: int = option(-1, "fine iteration to render, of those saved; -1: the last")
    skip_train: bool = option(False, "leave the training views out")
    skip_test: bool = option(False, "leave the held-out views out")
    skip_video: bool = option(False, "leave the path of novel views out")
    skip_existing: bool = option(
        False,
        "leave out what was rendered since the model was saved, whatever the flags were then, "
        "unless it lacks the pictures of --gate_viz or an LPIPS that can be computed now",
    )
    device: str = option("auto", DEVICE_HELP, choices=DEVICES)
    quiet: bool = option(False, "print results only: no progress, no notes")
    threads: int = option(0, "CPU threads; 0: PyTorch's default")
    lpips: bool = option(True, "measure LPIPS too, when its weights are found")
    gate_viz: list[str] | None = option(
        None,
        "also draw which expert the router trusts where, with a table of how much each is used; "
        "of these attributes (xyz, rotation, log_scale, opacity, sh), without a name of all",
    )
    moe_top_k: int | None = option(
        None,
        "experts kept per Gaussian, 0: all; fewer are faster, since experts without "
        "weight are not evaluated; default: the run's",
    )
    source_path: str | None = option(None, "where the scene is now; default: the run's", short="s")
    resolution: int | None = option(
        None, "size of the frames, as in training; default: the run's", short="r"
    )
    video_frames: int | None = option(
        None, "frames of the rendered camera path; 0: as many as the clip has; default: the run's"
    )
    cache: str | None = option(
        None, "where decoded frames are kept, as in training; default: the run's", choices=CACHES
    )
    cache_gb: float | None = option(
        None, "memory for decoded frames, in GB, as in training; default: the run's"
    )


# ----------------------------------------------------------------------------------- commands


def parse_training(
    argv: Sequence[str] | None,
    prog: str,
    description: str,
    known_experts: Sequence[str] = (),
    default_experts: Sequence[str] = (),
) -> TrainingArguments:
    """Reads a training command line; ``config.model.model_path`` is then the run folder.

    Args:
        argv: the arguments without the program's name; None: those of this process.
        prog: the program's name in ``--help``.
        description: its first line there.
        known_experts: names that ``--experts`` may have; empty: not checked.
        default_experts: what ``--experts`` is where neither it nor the recipe says.

    Raises:
        UserError: names the flag, or the recipe's file and line.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    recipe, note = _recipe_of(argv)
    base = Config()
    base.hidden.experts = list(default_experts) or base.hidden.experts
    base = merged(base, recipe)
    values = parse_flags(training_parser(prog, description, base), argv, note)
    return training_arguments(base, values, known_experts)


def training_arguments(
    base: Config, values: dict[str, Any], known_experts: Sequence[str] = ()
) -> TrainingArguments:
    """The checked arguments of a training from ``base`` and the ``values`` of all flags."""
    config = _resolve(base, values)
    validate(config, known_experts)
    extras = {setting.name: values[setting.name] for setting in settings_of(TrainingArguments)}
    arguments = TrainingArguments(config=config, **extras)
    _check_training(arguments)
    return arguments


def parse_rendering(
    argv: Sequence[str] | None,
    prog: str,
    description: str,
    known_experts: Sequence[str] = (),
) -> RenderingArguments:
    """Reads a rendering command line and the settings of the run that it names.

    ``config.model.model_path`` is then the run folder, wherever the run was trained.

    Args:
        argv: the arguments without the program's name; None: those of this process.
        prog: the program's name in ``--help``.
        description: its first line there.
        known_experts: names that the run's experts may have; empty: not checked.

    Raises:
        UserError: names the flag, the run folder, or the setting in which a recipe contradicts it.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    recipe, note = _recipe_of(argv)
    values = parse_flags(rendering_parser(prog, description), argv, note)
    folder = _existing_run(run_folder(values.pop("expname"), values.pop("model_path")))
    config = load_config(folder / "config.json")
    _check_saved(folder / "config.json", config, known_experts)
    check_recipe(config, recipe)
    for name in ("source_path", "resolution", "video_frames", "cache", "cache_gb"):
        if values[name] is not None:
            setattr(config.model, name, values[name])
    config.model.source_path = os.path.expanduser(config.model.source_path)
    config.model.model_path, config.model.expname = str(folder), ""
    validate(config)
    check_range("iteration", values["iteration"], -1)
    check_range("threads", values["threads"], 0, MOST_THREADS)
    if values["moe_top_k"] is not None:
        check_range("moe_top_k", values["moe_top_k"], 0)
    return RenderingArguments(model_path=folder, config=config, **values)


def _check_saved(path: Path, config: Config, known_experts: Sequence[str]) -> None:
    try:
        validate(config, known_experts)
    except UserError as error:
        raise UserError(f"{path}: {error}; restore the file or retrain the run") from None


def run_folder(expname: str, model_path: str) -> Path:
    """The run folder, as the user gave it: relative to the current directory, or absolute.

    ``--expname`` and ``--model_path`` are two names of the same thing, in training and rendering.
    """
    if expname and model_path and Path(expname) != Path(model_path):
        raise UserError(
            f"--expname {expname} and --model_path {model_path} name different run folders; "
            "give one of them"
        )
    if not expname and not model_path:
        raise UserError("the run folder is missing: give it with --expname (or -m/--model_path)")
    return Path(expname or model_path).expanduser()


def _existing_run(folder: Path) -> Path:
    """``folder``, or ``output/<folder>``, where other versions of this program put it."""
    for candidate in (folder, Path("output") / folder):
        if (candidate / "moe.json").is_file():
            raise UserError(f"{candidate} is a mixture of models: render it with render_moe.py")
        if candidate.is_dir():
            return candidate
    raise UserError(f"run folder {folder} does not exist; train with --expname {folder} first")


def _recipe_of(argv: Sequence[str]) -> tuple[Sections, Note]:
    """Reads the recipe that ``--configs`` names, if any."""
    first = first_pass(argv)
    note = note_of(first)
    return (read_recipe(first.configs, note) if first.configs is not None else {}), note


def first_pass(argv: Sequence[str], *, lists: Sequence[str] = ()) -> argparse.Namespace:
    """``configs`` and ``quiet`` of a command line, and ``lists`` of words; all else is left."""
    first = _Parser(add_help=False, allow_abbrev=False)
    first.add_argument("--configs")
    first.add_argument("--quiet", action="store_true")
    for name in lists:
        first.add_argument(f"--{name}", nargs="*")
    return first.parse_known_args(argv)[0]


def note_of(first: argparse.Namespace) -> Note:
    """Where remarks on a recipe go: nowhere with ``--quiet``."""
    return (lambda text: None) if first.quiet else print_note


def _resolve(base: Config, values: dict[str, Any]) -> Config:
    """The settings with explicit flags over the recipe's, and paths made definite."""
    sections: Sections = {name: {} for name in section_types()}
    for setting in all_settings().values():
        sections[setting.section][setting.name] = values[setting.name]
    config = merged(base, sections)
    model, recipe = config.model, base.model
    if not model.expname and not model.model_path:
        model.expname, model.model_path = recipe.expname, recipe.model_path
    model.model_path = str(run_folder(model.expname, model.model_path))
    model.expname = ""
    if not model.source_path:
        raise UserError("the scene folder is missing: give it with -s/--source_path")
    model.source_path = os.path.abspath(os.path.expanduser(model.source_path))
    return config


def _check_training(arguments: TrainingArguments) -> None:
    for name in ("test_iterations", "save_iterations", "checkpoint_iterations"):
        check_range(name, getattr(arguments, name), 1)
        setattr(arguments, name, sorted(set(getattr(arguments, name))))
    check_range("checkpoint_minutes", arguments.checkpoint_minutes, 0)
    check_range("keep_checkpoints", arguments.keep_checkpoints, 0)
    check_range("threads", arguments.threads, 0, MOST_THREADS)
    model = arguments.config.model
    if model.llffhold == 1 and not model.test_cameras:
        raise UserError(
            "--llffhold is 1, which holds every view out; give 2 or more, or 0 for none"
        )
    ways = [
        name for name in ("start_checkpoint", "resume", "overwrite") if getattr(arguments, name)
    ]
    if len(ways) > 1:
        raise UserError(f"--{ways[0]} and --{ways[1]} exclude each other; give one of them")


# ------------------------------------------------------------------------------------ parsers


def training_parser(
    prog: str, description: str, base: Config | None = None, *, more: str = ""
) -> _Parser:
    """The flags of a training command, with the values of ``base`` as defaults.

    Args:
        more: further flags, for the line that shows the usage.
    """
    base = base or Config()
    parser = _Parser(
        prog=prog,
        description=description,
        usage=f"%(prog)s -s SCENE --expname RUN {more}[--configs RECIPE] [--flag value ...]",
        epilog="Every setting may stand in a recipe as well; a flag given here wins over it.",
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    add_group(parser, "run", "What to do with the run.", settings_of(TrainingArguments), {})
    for name, section in section_types().items():
        values = {**vars(getattr(base, name)), "expname": "", "model_path": ""}
        add_group(parser, name, section.__doc__ or "", settings_of(section), values)
    _add_retired(parser, RETIRED_FLAGS)
    return parser


def rendering_parser(prog: str, description: str) -> _Parser:
    """The flags of a rendering command; everything else is saved with the run."""
    parser = _Parser(
        prog=prog,
        description=description,
        usage="%(prog)s --model_path RUN [--iteration N] [--skip_train] [--skip_test] [options]",
        epilog="All other settings are read from the run folder.",
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    run = [item for item in settings_of(section_types()["ModelParams"]) if item.name in _FOLDERS]
    add_group(parser, "run", "Which run to render.", run, {})
    rest = settings_of(RenderingArguments)
    add_group(parser, "rendering", "What to render.", rest, {})
    _add_retired(parser, RETIRED_FLAGS | RETIRED_AT_RENDERING)
    return parser


_FOLDERS = ("model_path", "expname")


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=100)


class _Parser(NumberParser):
    """Reports a faulty line as a `UserError` instead of printing the usage."""

    retired: dict[str, tuple[bool, str]]  # accepted flags without effect: takes a value, why

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')} (--help lists the flags)")

    def flags(self) -> list[str]:
        """Every flag on one line with its aliases, in order, hidden ones left out."""
        shown = (a for a in self._actions if a.option_strings and a.help != argparse.SUPPRESS)
        return [" ".join(action.option_strings) for action in shown]


class _Switch(argparse.Action):
    """``--flag`` and ``--no-flag``."""

    def __init__(self, option_strings: Sequence[str], dest: str, **rest: Any) -> None:
        self.negative = [f"--no-{name[2:]}" for name in option_strings if name[:2] == "--"]
        super().__init__([*option_strings, *self.negative], dest, nargs=0, **rest)

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        setattr(namespace, self.dest, option_string not in self.negative)


class _Merge(argparse.Action):
    """Lays ``key=value`` pairs or JSON objects over the dict that is already there."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        result = dict(getattr(namespace, self.dest))
        for value in values:
            result.update(value)
        setattr(namespace, self.dest, result)


def add_group(
    parser: _Parser, title: str, text: str, settings: Sequence[Setting], values: dict[str, Any]
) -> None:
    """A flag for each of ``settings``, with the defaults ``values``."""
    group = parser.add_argument_group(title, text.splitlines()[0])
    for setting in settings:
        default = values.get(setting.name, setting.default)
        names = [f"-{setting.short}"] if setting.short else []
        group.add_argument(
            *names,
            f"--{setting.name}",
            default=default,
            help=_help(setting, default),
            **_parsing(setting),
        )


def _help(setting: Setting, default: Any) -> str:
    shown = default
    if isinstance(default, list):
        shown = " ".join(map(str, default))
    text = setting.help if default in (None, "", []) else f"{setting.help} (default: {shown})"
    return text.replace("%", "%%")


def _parsing(setting: Setting) -> dict[str, Any]:
    """argparse's keywords for a setting's type."""
    kind = next((k for k in typing.get_args(setting.kind) if _optional(setting)), setting.kind)
    if kind is bool:
        return {"action": _Switch}
    if (typing.get_origin(kind) or kind) is dict:
        return {"action": _Merge, "nargs": "+", "type": _pairs, "metavar": "KEY=VALUE"}
    if typing.get_origin(kind) is list:
        item = typing.get_args(kind)[0]
        return {"nargs": "*", "type": _reader(item), "metavar": _METAVARS[item]}
    if setting.choices:
        return {"choices": setting.choices}
    return {"type": _reader(kind), "metavar": _METAVARS[kind]}


_METAVARS = {int: "N", float: "X", str: "TEXT"}


def _optional(setting: Setting) -> bool:
    return type(None) in typing.get_args(setting.kind)


def _reader(kind: type) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {describe(kind)}") from None

    return read


def _pairs(text: str) -> dict[str, Any]:
    """A JSON object, or ``key=value`` with a JSON value (a bare word is a string)."""
    key, equals, value = text.partition("=")
    try:
        if text.lstrip().startswith("{"):
            return dict(json.loads(text))
        if not equals:
            raise argparse.ArgumentTypeError(f"{text!r} is not key=value")
        return {key.strip(): _json_or_text(value)}
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from None


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        if text[:1] in ("[", "{"):
            raise
        return text


def _add_retired(parser: _Parser, retired: dict[str, tuple[bool, str]]) -> None:
    parser.retired = retired
    for name, (takes_value, _) in retired.items():
        keywords = {} if takes_value else {"action": "store_true"}
        dest = f"retired_{name}"
        parser.add_argument(
            f"--{name}", dest=dest, default=None, help=argparse.SUPPRESS, **keywords
        )


def parse_flags(parser: _Parser, argv: Sequence[str], note: Note) -> dict[str, Any]:
    """The values of all flags; notes the retired ones and refuses what is unknown."""
    known, rest = parser.parse_known_args(argv)
    if rest:
        word = rest[0].partition("=")[0]
        if not word.startswith("-"):
            raise UserError(f"unexpected argument {word!r} (--help lists the flags)")
        names = [name for action in parser.flags() for name in action.split()]
        hint = nearest(word, names) or " (--help lists the flags)"
        raise UserError(f"unknown flag {word}{hint}")
    values = vars(known)
    for name, (_, reason) in parser.retired.items():
        if values.pop(f"retired_{name}") is not None:
            note(f"--{name} has no effect: {reason}")
    return values
