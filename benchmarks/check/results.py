"""What the stages of `benchmarks/gpu_check.py` have found: read, judged and reported."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

from benchmarks.check import result_lines
from benchmarks.check.stages import BAD, CheckFailed, Files, Outcome, files_of, last_object
from benchmarks.compare import is_ours, measurements

LARGEST_LOG = 2**20  # bytes of a stage in logs.txt
PSNR_TOLERANCE = 0.1  # dB between a demo trained on the CPU and one on a GPU
SHOWN = 4  # measurements of a benchmark in the table


def read_wheels(machine: Files, files: Files) -> dict[str, Any]:
    """The wheels, from what the stage `machine` has printed.

    Raises:
        CheckFailed: one could not be installed.
    """
    del files
    wheels = last_object(machine)["wheels"]
    broken = [f"{name}: {text}" for name, text in wheels.items() if text != "ok"]
    if broken:
        raise CheckFailed("; ".join(broken), wheels)
    return wheels


def read_tests(path: Path, must_pass: bool, files: Files) -> dict[str, Any]:
    """Numbers of tests.

    Args:
        must_pass: that all are skipped is a failure too.

    Raises:
        CheckFailed: a test failed, or nothing ran.
    """
    del files
    found = result_lines.summary(path)
    if not found:
        raise CheckFailed("no test has ended")
    if found["failed"]:
        raise CheckFailed(f"{len(found['failed'])} tests failed", found)
    if must_pass and not found["passed"]:
        raise CheckFailed("no test has passed", found)
    return found


def read_sanitizer(log: Path | None, files: Files) -> dict[str, Any]:
    """Operators that ran, and what the sanitizer says of them.

    Raises:
        CheckFailed: an operator failed, the sanitizer has errors, or did not come to its end.
    """
    found = last_object(files)
    bad = {name: text for name, text in found["operators"].items() if text != "ok"}
    if log is not None:
        text = log.read_text(errors="replace") if log.exists() else ""
        found["errors"] = sanitizer_errors(text)
        if found["errors"] is None:
            raise CheckFailed("the sanitizer has not come to its end", found)
        if found["errors"]:
            found["report"] = text[:4000]
            raise CheckFailed(f"the sanitizer has {found['errors']} errors", found)
    if bad:
        raise CheckFailed("; ".join(f"{name}: {text}" for name, text in bad.items()), found)
    return found


def sanitizer_errors(text: str) -> int | None:
    """The number of errors of a compute-sanitizer report; None where it has no summary."""
    numbers = re.findall(r"ERROR SUMMARY: (\d+) error", text)
    numbers += re.findall(r"RACECHECK SUMMARY: \d+ hazards? displayed \((\d+) error", text)
    return sum(map(int, numbers)) if numbers else None


def read_demo(run: Path, files: Files) -> dict[str, Any]:
    """Quality, speed of rendering and time of training of a rendered run.

    Raises:
        CheckFailed: it is not rendered.
    """
    del files
    paths = sorted((run / "test").glob("ours_*/metrics.json"))
    if not paths:
        raise CheckFailed("the run was not rendered")
    record = json.loads(paths[-1].read_text())
    kept = ("device", "threads", "psnr", "ssim", "fps", "gaussians", "training_seconds")
    return {key: record[key] for key in kept if key in record}


def compare_demos(cpu: Path, cuda: Path, files: Files) -> dict[str, Any]:
    """Whether both devices train the demo equally well.

    Raises:
        CheckFailed: they do not, or one was not trained.
    """
    first, second = read_demo(cpu, files), read_demo(cuda, files)
    gap = second["psnr"] - first["psnr"]
    found = {
        "psnr_cpu": round(first["psnr"], 3),
        "psnr_cuda": round(second["psnr"], 3),
        "psnr_gap": round(gap, 3),
        "times_faster_training": round(first["training_seconds"] / second["training_seconds"], 2),
        "fps_cpu": round(first["fps"], 1),
        "fps_cuda": round(second["fps"], 1),
    }
    if not abs(gap) <= PSNR_TOLERANCE:
        raise CheckFailed(f"PSNR differs by {gap:+.2f} dB", found)
    return found


# ---- the report ---------------------------------------------------------------------------------


def brief(name: str, outcome: Outcome) -> str:
    """A few words about a stage for the table."""
    found, reason = outcome.results, outcome.reason
    try:
        words = _words(name.partition(":")[0], found)
    except (KeyError, TypeError, ValueError, IndexError):
        words = ""
    return "; ".join(filter(None, [reason, words]))


def _words(group: str, found: dict[str, Any]) -> str:
    if not found:
        return ""
    if group == "machine":
        missing = [line.split(":")[0] for line in found["missing"]]
        lacking = f"; missing: {', '.join(missing)}" if missing else ""
        return f"{found['gpu'] or 'no GPU'}, nvcc {found['nvcc'] or '-'}{lacking}"
    if group == "tests":
        return (
            f"{found['passed']} passed, {len(found['failed'])} failed, {found['skipped']} skipped"
        )
    if group == "sanitize":
        return f"{len(found['operators'])} operators, {found.get('errors', '-')} errors"
    if group == "gsplat":
        ratios = found["gsplat_over_ours"]
        ours = found["ours"]
        parts = (f"{kind} {ours[kind]['ms']} ms, gsplat x{ratios[kind]}" for kind in ratios)
        return "; ".join(parts)
    if group == "agreement":
        flipped = [view["image"]["flipped"] for row in found["scenes"] for view in row["views"]]
        worst = max(
            max(view["gradients"].values()) for row in found["scenes"] for view in row["views"]
        )
        return f"pixels that flip: {flipped}; gradients within {worst:.1e}"
    if group == "profile":
        longest = found["kernels"][0]
        return f"{found['total_us']} us; longest {longest['us']} us {longest['name'][:40]}"
    ours = [(label, value) for label, value in measurements(found).items() if is_ours(label)]
    return ", ".join(f"{label} {value:g}" for label, value in ours[:SHOWN])


class Report:
    """Keeps what is known in the folder of results, after every stage."""

    def __init__(self, folder: Path, work: Path, facts: dict[str, Any]) -> None:
        self.folder, self.work, self.facts = folder, work, facts
        self.outcomes: dict[str, Outcome] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "logs.txt"
        self.log.write_text("")
        self.order: list[str] = []
        self.started = time.monotonic()

    def add(self, name: str, outcome: Outcome) -> None:
        """One more stage is known."""
        self.outcomes[name] = outcome
        print(f"{outcome.status:9} {name} {outcome.seconds:.0f} s {outcome.reason}", flush=True)
        files = files_of(name, self.work)
        with self.log.open("ab") as file:
            for path in (files.log, files.out):
                if path.exists() and outcome.limit:  # of this run, not of an earlier one
                    file.write(f"\n===== {name}: {path.suffix}\n".encode())
                    file.write(path.read_bytes()[-LARGEST_LOG:])
        self.write()

    def write(self) -> None:
        """Writes the JSON and the table."""
        seconds = round(time.monotonic() - self.started, 1)
        whole = {
            **self.facts,
            "seconds": seconds,
            "failed": self.failed(),
            "stages": {name: self.outcomes[name].as_dict() for name in self._sorted()},
        }
        unfinished = self.folder / "gpu_check.json.part"
        unfinished.write_text(json.dumps(whole, indent=1, default=str))
        unfinished.replace(self.folder / "gpu_check.json")
        (self.folder / "summary.txt").write_text(self.table())

    def _sorted(self) -> list[str]:
        return [name for name in self.order if name in self.outcomes]

    def failed(self) -> list[str]:
        """The stages that failed or were over their limit."""
        return [name for name in self._sorted() if self.outcomes[name].status in BAD]

    def table(self) -> str:
        """One line for each stage."""
        lines = []
        for name in self.order:
            if name not in self.outcomes:
                lines.append(f"{name:28} {'-':9}")
                continue
            outcome = self.outcomes[name]
            words = brief(name, outcome)[:150]
            lines.append(f"{name:28} {outcome.status:9} {outcome.seconds:6.0f} s  {words}")
        failed = self.failed()
        lines.append(f"failed: {', '.join(failed)}" if failed else "nothing failed")
        return "\n".join(lines) + "\n"
