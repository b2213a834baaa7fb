"""Runs the CPU's benchmarks one after the other: one JSON file for each, with what it ran on.

    python benchmarks/cpu_all.py --out before --data garden.npz --threads 2
    python benchmarks/cpu_all.py --out before --quick --only ssim hexplane    # seconds, tiny
    python benchmarks/compare.py before after

A file has the name, the command, threads, machine, versions and the load before and after, and the
program's own object as `result`. Files of an earlier run are written over. Without `--data` those
that need the garden are left out, which is said. The exit code is 1 where a benchmark failed, whose
file is removed: a folder never has old numbers beside new ones under one name.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from utils.errors import cli

HERE = Path(__file__).resolve().parent
PACKAGES = ("torch", "numpy", "scipy")
LAST_LINES = 5  # of what a benchmark that failed said


@dataclass(frozen=True)
class Benchmark:
    """A program of this folder that takes --threads and prints one JSON object."""

    command: str
    quick: str  # further arguments, tiny
    garden: bool = False  # needs the file of the garden


N3V_CLIP = "--cameras 4 --frames 10 --size 676 507 --gaussians 50000"
TINY_CLIP = "--cameras 3 --frames 4 --size 64 48 --gaussians 300"
TINY_SCENE = "--runs 1 --count 500 --size 96x64"
BENCHMARKS = {
    "rasterizer-garden": Benchmark(
        "rasterizer_garden.py --scene garden --size 648x420", TINY_SCENE, garden=True
    ),
    "rasterizer-garden-large": Benchmark(
        "rasterizer_garden.py --scene garden --size 1296x840", TINY_SCENE, garden=True
    ),
    "rasterizer-n3v": Benchmark(
        "rasterizer_garden.py --scene n3v --size 1352x1014 --count 200000 --runs 9", TINY_SCENE
    ),
    "ssim": Benchmark("ssim.py", "--width 64 --height 48 --repeats 1"),
    "hexplane": Benchmark("hexplane.py", "--repeats 1 --points 1000"),
    "hash-grid": Benchmark("hash_grid.py", "--repeats 1 --points 1000"),
    "knn": Benchmark("knn.py", "--points 2000 --repeats 1"),
    "train": Benchmark(f"train_n3v_sized.py {N3V_CLIP}", f"{TINY_CLIP} --iterations 2"),
    "render": Benchmark(f"render_n3v_sized.py {N3V_CLIP}", f"{TINY_CLIP} --seconds 0.2"),
    "frame-loader": Benchmark(
        "frame_loader.py", "--cameras 3 --frames 3 --gaussians 200 --cases png:auto"
    ),
}


def arguments_of(name: str, options: argparse.Namespace) -> list[str]:
    """The command line of a benchmark, without the interpreter."""
    benchmark = BENCHMARKS[name]
    words = [*benchmark.command.split(), "--threads", str(options.threads)]
    if benchmark.garden:
        words += ["--data", str(options.data)]
    return words + (benchmark.quick.split() if options.quick else [])


def machine() -> dict[str, Any]:
    """The processor and the system."""
    name = platform.processor() or platform.machine()
    described = Path("/proc/cpuinfo")
    if described.is_file():
        lines = described.read_text().splitlines()
        name = next((x.partition(": ")[2] for x in lines if x.startswith("model name")), name)
    return {"cpu": name, "cores": os.cpu_count(), "system": platform.platform()}


def versions() -> dict[str, str]:
    """Of Python and of what the benchmarks compute with; of packages that are there."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def load() -> list[float]:
    """Programs that wanted to run, means of 1, 5 and 15 minutes; empty where it is not known."""
    return [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else []


def run(name: str, options: argparse.Namespace) -> tuple[dict[str, Any] | None, str]:
    """What the file of a benchmark holds, or None and why there is none."""
    words = arguments_of(name, options)
    before, started = load(), time.time()
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    command = [sys.executable, str(HERE / words[0]), *words[1:]]
    done = subprocess.run(
        command, cwd=HERE.parent, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return None, "\n".join(done.stderr.strip().splitlines()[-LAST_LINES:])
    try:
        result = json.loads(done.stdout)
    except ValueError:
        return None, "it did not print one JSON object"
    return {
        "name": name,
        "command": " ".join(words),
        "quick": options.quick,
        "threads": options.threads,
        "machine": machine(),
        "versions": versions(),
        "load_before": before,
        "load_after": load(),
        "taken": round(time.time() - started, 1),  # seconds of the whole program
        "result": result,
    }, ""


def write(path: Path, record: dict[str, Any]) -> None:
    """Whole, or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    part.replace(path)


def chosen(options: argparse.Namespace) -> list[str]:
    """The names of what is run, in order; says what is left out."""
    names = [name for name in BENCHMARKS if not options.only or name in options.only]
    if options.data is None:
        for name in [name for name in names if BENCHMARKS[name].garden]:
            names.remove(name)
            print(f"{name}: left out, it needs --data, the path of garden.npz", flush=True)
    return names


def main(argv: Sequence[str] | None = None) -> int:
    """Runs them; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the JSON files")
    parser.add_argument("--data", type=Path, help="path of garden.npz")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="tiny: do they run?")
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), metavar="NAME")
    options = parser.parse_args(argv)
    if options.data is not None:
        if not options.data.is_file():
            parser.error(f"--data {options.data}: there is no such file")
        options.data = options.data.resolve()
    names, failed = chosen(options), 0
    if not names:
        parser.error("nothing is left to run")
    options.out.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names, 1):
        print(f"[{index}/{len(names)}] {name} ...", flush=True)
        path = options.out / f"{name}.json"
        path.unlink(missing_ok=True)
        record, problem = run(name, options)
        if record is None:
            failed += 1
            print(f"{name}: failed\n{problem}", flush=True)
        else:
            write(path, record)
            print(f"{name}: {record['taken']} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    cli(main)
