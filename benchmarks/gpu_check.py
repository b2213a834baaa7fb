"""Everything that only a GPU can tell, in one command of under ten minutes.

    python benchmarks/gpu_check.py --out FOLDER [--wheels FOLDER] [--data FOLDER] [--minutes 9.5]
    python benchmarks/gpu_check.py --dry-run        # the same stages, tiny and on the CPU
    python benchmarks/gpu_check.py --list

In order of importance: builds all native packages for the GPU that is there, warnings being errors;
runs the tests of the operators on it; compares CPU with GPU; trains the demo on both; runs every
operator under compute-sanitizer; compares with gsplat; runs the benchmarks; runs the other tests as
time allows. It needs torch, nvcc and what building needs, and no network: what is missing (gsplat,
PyAV) can be carried along as wheels. Every stage has a limit of time. After each, results are
written to `gpu_check.json`, what it printed to `logs.txt`, and a table to `summary.txt`, which is
printed at the end.

Exit code: 0 where nothing failed, 1 where something did, 2 without a GPU or with wrong arguments.
What could not be done is in the table with its reason and is no failure.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.check import environment
from benchmarks.check.plan import Plan
from benchmarks.check.results import Report
from benchmarks.check.stages import Schedule, Stage, select
from utils.errors import cli

ROOT = Path(__file__).resolve().parents[1]
COMMIT = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]


def check(stages: Sequence[Stage], report: Report, work: Path, seconds: float) -> int:
    """Runs the stages and prints the table; returns the exit code."""
    report.order = [stage.name for stage in stages]
    Schedule(stages, work, seconds, report.add).run()
    report.write()
    print(f"\n{report.table()}", flush=True)
    return 1 if report.failed() else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    default = Path(os.environ.get("OUT") or ROOT / "output" / "gpu_check")
    parser.add_argument("--out", type=Path, default=default, help="default: $OUT or %(default)s")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu_check")
    parser.add_argument("--minutes", type=float, default=9.5, help="until everything is ended")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--dry-run", action="store_true", help="the same as --device cpu")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install: gsplat, av, ...")
    parser.add_argument("--data", type=Path, help="folder of test data; default: MOEGS_TEST_DATA")
    parser.add_argument("--garden", type=Path, help="garden.npz, where it is not in that folder")
    parser.add_argument("--demo", type=Path, default=ROOT / "demo" / "scene")
    parser.add_argument("--only", nargs="+", default=[], metavar="STAGE", help="as --list has them")
    parser.add_argument("--skip", nargs="+", default=[], metavar="STAGE", help="taken for done")
    parser.add_argument("--list", action="store_true", help="prints the stages and ends")
    args = parser.parse_args(argv)
    if args.dry_run:
        args.device = "cpu"
    if args.data is None and os.environ.get("MOEGS_TEST_DATA"):
        args.data = Path(os.environ["MOEGS_TEST_DATA"])
    for name in ("wheels", "data", "garden", "demo"):
        path = getattr(args, name)
        if path is not None and not path.exists():
            parser.error(f"--{name} {path}: it is not there")
    if args.minutes <= 0:
        parser.error(f"--minutes {args.minutes}: it must be positive")
    return args


GPU = """
import torch
if torch.cuda.is_available():
    print("capability %d.%d" % torch.cuda.get_device_capability())
"""


def compute_capability() -> str:
    """That of the first GPU as torch sees it; nothing where it sees none, or there is no torch."""
    done = subprocess.run([sys.executable, "-c", GPU], capture_output=True, text=True)
    match = re.search(r"^capability (\d+\.\d+)$", done.stdout, re.MULTILINE)
    return match.group(1) if match else ""


def main(argv: Sequence[str] | None = None, capability: Callable[[], str] = compute_capability):
    """Runs the check; returns the exit code."""
    args = parse(argv)
    args.capability = capability() if args.device == "cuda" and not args.list else ""
    if args.device == "cuda" and not args.list and not args.capability:
        print("gpu_check.py: torch sees no GPU here; --dry-run tries the stages on the CPU")
        return 2
    try:
        stages = select(Plan(args).stages(), args.only, args.skip)
    except ValueError as error:
        print(f"gpu_check.py: {error}", file=sys.stderr)
        return 2
    if args.list:
        print("\n".join(f"{stage.name:28} {stage.limit:4.0f} s" for stage in stages))
        return 0
    facts = {"date": time.strftime("%Y-%m-%d %H:%M:%S"), "device": args.device}
    facts |= {"minutes": args.minutes, "commit": environment.first_line(COMMIT)}
    report = Report(args.out, args.work.resolve(), facts)
    # so that what runs is ended as well
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return check(stages, report, args.work.resolve(), 60 * args.minutes)
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    cli(main)
