"""Sets two results side by side: one line for each measurement, as a ratio of medians.

    python benchmarks/compare.py before.json after.json
    python benchmarks/compare.py before/ after/ --threshold 1.1

Either is a file that a benchmark, or `gpu_check.py`, has written, or a folder of such files that
are paired by name. A ratio above 1 is slower, or more memory, than before: also for frames per
second. With `--threshold` the exit code is 1 where a ratio is above it. What the benchmarks measure
of others' code, or of the machine, for comparison (gsplat, SciPy, PyTorch twins, the time of light)
is shown and never counted.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.errors import cli

# Units, as words of a key (`forward_ms`, `ms_mean`, `peak_mib`), or of the one above (`parts_ms`)
COSTS = {"ms", "us", "seconds", "minutes", "mib", "gb"}  # less is better
SPEEDS = {"fps"}  # more is better
OTHERS = ("twin", "scipy", "convolution", "gsplat", "light")  # not our code
MEASURED = re.compile(r"^(?:bench|gsplat|profile|demo)(?::|$)")  # stages of gpu_check.py
LONGEST_LABEL = 70


def measurements(result: Any) -> dict[str, float]:
    """Label -> number, of everything in a result that says a time, a speed or a memory."""
    if isinstance(result, dict) and isinstance(result.get("stages"), dict):
        stages = result["stages"].items()
        result = {name: s.get("results", {}) for name, s in stages if MEASURED.match(name)}
    return dict(_walk(result, ""))


def _walk(value: Any, label: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _walk(item, f"{label}/{key}" if label else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _walk(item, f"{label}[{_identity(item, index)}]")
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and is_measured(label):
        yield label, float(value)


def _identity(item: Any, index: int) -> str:
    """What tells a row from the others: all of it that is not measured."""
    if not isinstance(item, dict):
        return str(index)
    if isinstance(item.get("name"), str):
        return item["name"]
    plain = [
        str(v)
        for k, v in item.items()
        if isinstance(v, (str, int)) and not isinstance(v, bool) and not is_measured(k)
    ]
    return " ".join(plain) or str(index)


def unit_of(label: str) -> str:
    """The unit that a label names, in its last part or in that above; nothing without one."""
    for part in reversed(label.split("/")[-2:]):
        found = (COSTS | SPEEDS).intersection(part.partition("[")[0].split("_"))
        if found:
            return min(found)
    return ""


def is_measured(label: str) -> bool:
    """Whether a label is the name of a measurement."""
    return bool(unit_of(label))


def is_ours(label: str) -> bool:
    """Whether a measurement is of this project's code."""
    parts = re.split("/|: ", label)
    return not any(p.startswith(OTHERS) for p in parts if ":" not in p)


def worsening(label: str, before: float, after: float) -> float | None:
    """How many times worse; None where it cannot be said."""
    if unit_of(label) in SPEEDS:
        before, after = after, before
    return after / before if before > 0 and after > 0 else None


def load(path: Path) -> dict[str, dict[str, float]]:
    """Name -> measurements, of a file (under the name ``""``) or of all files of a folder.

    Raises:
        ValueError: something that is no JSON, or a folder without any.
    """
    if not path.is_dir():
        return {"": _load_file(path)}
    found = {file.name: _load_file(file) for file in sorted(path.glob("*.json"))}
    if not found:
        raise ValueError(f"{path} has no *.json")
    return found


def _load_file(path: Path) -> dict[str, float]:
    try:
        return measurements(json.loads(path.read_text()))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def rows(before: dict, after: dict) -> list[tuple[str, float | None, float | None]]:
    """(label, before, after) of every measurement; None where a side lacks it."""
    found = []
    for name in dict.fromkeys([*before, *after]):
        one, other = before.get(name, {}), after.get(name, {})
        start = f"{name}: " if name else ""
        found += [(start + k, one.get(k), other.get(k)) for k in dict.fromkeys([*one, *other])]
    return found


def line(label: str, before: float | None, after: float | None, ratio: float | None) -> str:
    """One line of the table."""
    shown = label if len(label) <= LONGEST_LABEL else f"…{label[1 - LONGEST_LABEL :]}"
    cells = ["-" if v is None else f"{v:.4g}" for v in (before, after)]
    last = "-" if ratio is None else f"{ratio:.3f}"
    return f"{shown:{LONGEST_LABEL}} {cells[0]:>10} {cells[1]:>10} {last:>7}"


def compare(before: dict, after: dict, threshold: float | None) -> tuple[list[str], list[str]]:
    """The lines of the table, and the labels that are worse by more than the threshold."""
    lines = [f"{'':{LONGEST_LABEL}} {'before':>10} {'after':>10} {'ratio':>7}"]
    worse = []
    for label, one, other in rows(before, after):
        ratio = None if one is None or other is None else worsening(label, one, other)
        text = line(label, one, other, ratio)
        if threshold and ratio is not None and ratio > threshold and is_ours(label):
            worse.append(label)
            text += "  worse"
        lines.append(text)
    return lines, worse


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path, help="a JSON file or a folder of them")
    parser.add_argument("after", type=Path)
    parser.add_argument("--threshold", type=float, help="exit code 1 above this ratio, say 1.1")
    args = parser.parse_args(argv)
    try:
        before, after = load(args.before), load(args.after)
    except ValueError as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return 2
    if not any(None not in row[1:] for row in rows(before, after)):
        print("compare.py: the two have no measurement in common", file=sys.stderr)
        return 2
    lines, worse = compare(before, after, args.threshold)
    print("\n".join(lines))
    return 1 if worse else 0


if __name__ == "__main__":
    cli(main)
