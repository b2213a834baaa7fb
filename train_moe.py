"""Trains MoE-GS: several models, each for itself, and then what blends their pictures.

    python train_moe.py experts -s data/N3V/coffee_martini --expname output/moe \
        --configs arguments_MoDE/moe/n3v/three.py

On a machine without a GPU, a recipe of its size (a few minutes):

    python train_moe.py experts -s demo/scene --expname output/moe \
        --configs arguments_MoDE/moe/demo.py

``python train_moe.py experts --help`` explains the flags.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

import utils.threads  # noqa: F401  (before torch)
from arguments_MoDE.recipe import nearest
from utils.errors import UserError, cli

COMMANDS = {  # each is the module of that name in training/moe, with a main(argv)
    "experts": "train every model of a mixture, each with Gaussians of its own",
    "router": "train the router that blends their pictures, the models frozen",
    "prune": "remove the Gaussians that count least in the blended picture, or to the gates",
    "distill": "train one model further, with the mixture as its teacher",
}


def usage() -> str:
    """What ``--help`` says."""
    width = max(map(len, COMMANDS))
    commands = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        ["usage: train_moe.py COMMAND [flags]", "", "Train a mixture of models.", ""]
        + ["commands:", *commands, "", "train_moe.py COMMAND --help lists the flags."]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Hands the line to the command that it names; returns the exit code."""
    command, *rest = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if command in ("-h", "--help"):
        print(usage())
        return 0
    if command not in COMMANDS:
        hint = nearest(command, COMMANDS) or f"; there are {', '.join(COMMANDS)}"
        raise UserError(f"train_moe.py has no command {command!r}{hint}")
    return import_module(f"training.moe.{command}").main(rest)


if __name__ == "__main__":
    cli(main)
