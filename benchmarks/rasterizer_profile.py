"""The kernels of one forward and backward pass of the rasteriser, with their times.

    python benchmarks/rasterizer_profile.py --scene n3v --device cuda

From `torch.profiler`; the mean of `--runs` passes over the first camera, after one to warm up.
Prints one JSON object: a row for each kernel (on a CPU, each operator), longest first.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import scenes
from benchmarks.clock import synchronise
from diff_gaussian_rasterization import rasterize

LONGEST_NAME = 120


def one_pass(scene: scenes.Scene, camera: dict) -> None:
    """Forward and backward of one view."""
    out = rasterize(**scene.gaussians, **camera, **scene.shared())
    torch.autograd.grad(out.color.sum(), list(scene.gaussians.values()))
    synchronise(scene.device)


def kernels(scene: scenes.Scene, runs: int) -> list[dict]:
    """Rows of name, launches of one pass and microseconds of one pass."""
    camera = scene.cameras()[0]
    on_gpu = scene.device.type == "cuda"
    one_pass(scene, camera)
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as found:
        for _ in range(runs):
            one_pass(scene, camera)
    rows = []
    for event in found.key_averages():
        total = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        name = event.key[:LONGEST_NAME]
        rows.append({"name": name, "calls": event.count / runs, "us": round(total / runs, 1)})
    rows = [row for row in rows if row["us"] > 0]
    return sorted(rows, key=lambda row: -row["us"])


def main() -> int:
    """Prints one JSON object; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    scenes.add_arguments(parser)
    parser.set_defaults(scene="n3v")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("rasterizer_profile.py: torch sees no GPU", file=sys.stderr)
        return 2
    scene = scenes.chosen(parser, args).to(args.device)
    rows = kernels(scene, args.runs)
    about = dict(
        benchmark="rasterizer_profile", scene=scene.name, order=args.order, device=args.device
    )
    size = dict(gaussians=scene.count, width=scene.width, height=scene.height)
    total = round(sum(row["us"] for row in rows), 1)
    print(json.dumps(about | size | {"total_us": total, "kernels": rows}))
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main())
