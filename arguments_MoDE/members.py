"""The command line of ``train_moe.py experts``: one training for each member of a mixture.

A recipe's common sections hold for every member, what its ``ExpertParams`` says of a member is laid
over them, and explicit flags win over both, for all members alike.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from arguments_MoDE.cli import (
    TrainingArguments,
    add_group,
    first_pass,
    note_of,
    parse_flags,
    run_folder,
    training_arguments,
    training_parser,
)
from arguments_MoDE.config import Config, MoEParams
from arguments_MoDE.recipe import MoERecipe, nearest, read_moe_recipe
from arguments_MoDE.values import Sections, merged, settings_of
from utils.errors import UserError

MODE = ("hexplane", "embedding")  # what the member ``mode`` mixes
FOLDER = "experts"  # of the members' run folders, in that of the mixture
NAMES = "letters, digits, _ + -, and no word that modules of PyTorch have, such as train"
_NAME = re.compile(r"[A-Za-z0-9_+-]{1,60}")


@dataclass(frozen=True)
class Member:
    """One model of the mixture, and how it is trained."""

    name: str
    arguments: TrainingArguments

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return Path(self.arguments.config.model.model_path)


def is_name(name: str) -> bool:
    """Whether an expert may be called so: a folder and a part of a module have this name, too."""
    return bool(_NAME.fullmatch(name)) and not hasattr(nn.ModuleDict(), name)


def parse_members(
    argv: Sequence[str] | None, prog: str, description: str, known_experts: Sequence[str]
) -> tuple[Path, list[Member]]:
    """Reads a command line that trains several models.

    Args:
        argv: the arguments without the program's name; None: those of this process.
        prog: the program's name in ``--help``.
        description: its first line there.
        known_experts: names that experts may have.

    Returns:
        The mixture's folder, and its members in their order.

    Raises:
        UserError: names the flag, the member, or the recipe's file and line.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    first = first_pass(argv, lists=["members"])
    note = note_of(first)
    recipe = read_moe_recipe(first.configs, note) if first.configs is not None else MoERecipe()
    for name, sections in recipe.experts.items():  # of members left out, too: they may be misspelt
        _experts_of(name, sections, known_experts, f"{first.configs}: ExpertParams")
    command = _Command(argv, prog, description, recipe)
    base = merged(Config(), recipe.common)
    values = parse_flags(command.parser(base), argv, note)
    _refuse_single(argv, values)
    names = _checked(values["members"])
    folder = run_folder(
        values["expname"] or base.model.expname, values["model_path"] or base.model.model_path
    )
    return folder, [_member(name, folder, base, command, known_experts) for name in names]


@dataclass(frozen=True)
class _Command:
    """A command line that is read once for every member, each time over other defaults."""

    argv: Sequence[str]
    prog: str
    description: str
    recipe: MoERecipe

    def parser(self, base: Config) -> argparse.ArgumentParser:
        """All flags, with the values of ``base`` as defaults."""
        made = training_parser(self.prog, self.description, base, more="--members NAME ... ")
        text, moe = MoEParams.__doc__ or "", MoEParams(**self.recipe.moe)
        add_group(made, "mixture", text, settings_of(MoEParams), vars(moe))
        return made


def _member(
    name: str, folder: Path, base: Config, command: _Command, known_experts: Sequence[str]
) -> Member:
    own = command.recipe.experts.get(name, {})
    experts = _experts_of(name, own, known_experts, "--members")
    defaults = merged(base, own)
    defaults.hidden.experts = experts
    values = parse_flags(command.parser(defaults), command.argv, lambda text: None)
    values["expname"], values["model_path"] = str(folder / FOLDER / name), ""
    try:
        return Member(name, training_arguments(defaults, values, known_experts))
    except UserError as error:
        raise UserError(f"member {name}: {error}") from None


def _experts_of(name: str, own: Sections, known: Sequence[str], where: str) -> list[str]:
    """The experts of the member ``name``, as ``own`` settings say, or else the name itself."""
    if not is_name(name):
        raise UserError(f"{where}: {name!r} is no name for a member ({NAMES}): give it another")
    given = own.get("ModelHiddenParams", {}).get("experts")
    if given:
        return list(given)
    parts = list(MODE) if name == "mode" else name.split("+")
    for part in parts:
        if part not in known:
            hint = nearest(part, [*known, "mode"]) or f"; there are {', '.join([*known, 'mode'])}"
            raise UserError(
                f"{where}: there is no expert {part!r}{hint} (ExpertParams of a recipe may give "
                "other members their experts)"
            )
    return parts


def _checked(names: Sequence[str]) -> Sequence[str]:
    """The members' names, once each and at least one."""
    if not names:
        raise UserError("the members are missing: name them with --members, or in MoEParams")
    lowered = [name.lower() for name in names]  # folders, on systems that heed no case
    for name in names:
        if lowered.count(name.lower()) > 1:
            raise UserError(f"--members names {name!r} twice; name every member once")
    return names


def _refuse_single(argv: Sequence[str], values: dict[str, Any]) -> None:
    """Flags that make sense for the training of one model only."""
    if any(word.partition("=")[0] == "--experts" for word in argv):
        raise UserError("--experts is of a single model; --members says which are trained")
    if values["start_checkpoint"] is not None:
        raise UserError("--start_checkpoint is of a single model; --resume goes on with all")
