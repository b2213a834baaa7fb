"""Prints what runs were measured at, a column each, and where their videos are.

python script/show_metrics.py output/demo
python script/show_metrics.py output/demo output/demo_static
python script/show_metrics.py output/demo --set train --iteration 3000
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.errors import UserError, cli

SETS = ("train", "test", "video")
LONGEST_CELL = 24  # characters


def renders(run: Path, name: str) -> dict[int, Path]:
    """The rendered folders ``<run>/<set>/ours_<n>`` by iteration n, lowest first."""
    found = {}
    for folder in (run / name).glob("ours_*"):
        match = re.fullmatch(r"ours_(\d+)", folder.name)
        if match:
            found[int(match.group(1))] = folder
    return dict(sorted(found.items()))


def rendered(run: Path, name: str, iteration: int) -> Path:
    """The folder of one iteration (-1: the last) of a set; UserError when it was not rendered."""
    found = renders(run, name)
    wanted = max(found, default=-1) if iteration < 0 else iteration
    if wanted not in found:
        if not run.is_dir():
            raise UserError(f"{run}: no such folder; give a run's")
        what = "nothing" if iteration < 0 else f"no iteration {iteration}"
        program = "render_moe.py" if (run / "moe.json").is_file() else "render_emb.py"
        raise UserError(
            f"{run}: {what} of the {name} set is rendered; run {program} --model_path {run}"
        )
    return found[wanted]


def read_metrics(folder: Path) -> dict[str, float | str]:
    """The numbers and short texts of ``metrics.json``, in its order; lists of views are not."""
    path = folder / "metrics.json"
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; render the run again") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); render the run again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no table of metrics; render the run again")
    return {key: value for key, value in values.items() if isinstance(value, (int, float, str))}


def show(value: float | str | None) -> str:
    """One cell: numbers with the digits that mean something."""
    if value is None:
        return "-"
    if isinstance(value, str) or isinstance(value, bool):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) < 1 else f"{value:.2f}"


def table(columns: dict[str, dict[str, float | str]]) -> str:
    """The rows of all columns' keys, aligned, in order of first appearance."""
    keys = list(dict.fromkeys(key for column in columns.values() for key in column))
    rows = [["", *columns]]
    rows += [[key, *(show(column.get(key)) for column in columns.values())] for key in keys]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for first, *rest in rows:
        cells = [text.rjust(width) for text, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def notes(columns: dict[str, dict[str, float | str]]) -> list[str]:
    """Texts too long for a cell, each once; they leave the columns."""
    found: dict[str, None] = {}
    for column in columns.values():
        for key in [key for key, value in column.items() if len(show(value)) > LONGEST_CELL]:
            found[f"{key}: {column.pop(key)}"] = None
    return list(found)


def videos(run: Path) -> list[Path]:
    """The videos of the last rendered iteration of every set, without those of single cameras."""
    last = [max(found.items())[1] for found in (renders(run, name) for name in SETS) if found]
    paths = (folder / f"video_{kind}.mp4" for folder in last for kind in ("rgb", "gt"))
    return [path for path in paths if path.is_file()]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(description="Print the metrics of runs side by side.")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--set", choices=SETS, default="test", help="which rendered set")
    parser.add_argument("--iteration", type=int, default=-1, help="-1: the last rendered one")
    options = parser.parse_args(argv)
    folders = {str(run): rendered(run, options.set, options.iteration) for run in options.runs}
    columns = {name: read_metrics(folder) for name, folder in folders.items()}
    below = notes(columns)
    print("\n".join([table(columns), *below]))
    for path in (path for run in options.runs for path in videos(run)):
        print(path)
    return 0


if __name__ == "__main__":
    cli(main)
