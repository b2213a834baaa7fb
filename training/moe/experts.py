"""Stage 1 of MoE-GS: the members of a mixture, each a dynamic model of its own.

Each is a run like any other, with Gaussians and density control of its own, in
``<expname>/experts/<member>``; what trains it is what trains a MoDE model (`training.launch`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from arguments_MoDE.members import Member, parse_members
from scene.experts import REGISTRY
from training.checkpoint import load_run
from training.launch import check_apart, check_run, is_complete, is_run, train_run
from utils.errors import UserError

PROG = "train_moe.py experts"
DESCRIPTION = "Train the members of a mixture of models, one after the other."


def main(argv: Sequence[str] | None = None) -> int:
    """Parses, trains every member that is not complete, and shows a table of all."""
    folder, members = parse_members(argv, PROG, DESCRIPTION, tuple(REGISTRY))
    _check(folder, members)
    for number, member in enumerate(members, 1):
        print(f"member {number} of {len(members)}: {member.name}")
        train_run(member.arguments)
    print(table(members))
    return 0


def _check(folder: Path, members: Sequence[Member]) -> None:
    """Every member's run folder can be used: the last one's fault shows before hours of training.

    Raises:
        UserError: names the folder and what to do.
    """
    check_apart(folder, members[0].arguments.config.model.source_path)
    if is_run(folder):
        raise UserError(f"{folder} holds the run of a single model: choose another --expname")
    for member in members:
        if not is_complete(member.arguments):
            check_run(member.arguments)


def table(members: Sequence[Member]) -> str:
    """What became of the members, of the training views alone: experts are chosen before tests."""
    rows = [("member", "experts", "PSNR, training views", "Gaussians", "seconds")]
    rows += [_row(member) for member in members]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _row(member: Member) -> tuple[str, ...]:
    run = load_run(member.folder)
    found = _last_training_psnr(member.folder / "metrics.jsonl")
    psnr = "-" if found is None else f"{found:.2f} dB"
    experts = "+".join(run.config.hidden.experts)
    count, seconds = len(run.model.gaussians), run.training_seconds
    return member.name, experts, psnr, str(count), f"{seconds:.0f}"


def _last_training_psnr(path: Path) -> float | None:
    """dB over the training views that were measured last; None where the run says nothing of it."""
    if not path.is_file():
        return None
    last = None
    for line in path.read_text().splitlines():
        record = json.loads(line)
        if record.get("event") == "evaluate" and record.get("set") == "train":
            last = record.get("psnr")
    return last
