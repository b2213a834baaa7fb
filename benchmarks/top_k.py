"""What keeping fewer experts saves at rendering, and what it costs.

    python benchmarks/top_k.py output/three --threads 1

For a trained run, prints as JSON for every ``--moe_top_k``: milliseconds of the deformation of one
moment (the median over the test times, each timed alone, rounds interleaved), frames per second of
deformation and rasterisation, PSNR over the test views, and the mean number of experts that were
evaluated for a Gaussian.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scene import load_scene
from scene.mixture import MoDE
from training.checkpoint import load_run
from training.evaluation import evaluate_views, measure_fps, view_renderer

ROUNDS = 5


@torch.no_grad()
def deform_ms(model: MoDE, times: list[float], iteration: int) -> float:
    """Median milliseconds of one deformation."""
    taken = []
    for moment in times:
        started = time.perf_counter()
        model.deform(moment, iteration=iteration)
        taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken)


@torch.no_grad()
def experts_per_gaussian(model: MoDE, times: list[float]) -> float:
    """Mean number of experts that a Gaussian has a gate above zero for, in any attribute."""
    counts = []
    for moment in times:
        used = sum((gate > 0).float() for gate in model.gates(moment).values()) > 0  # (N, E)
        counts.append(used.sum(-1).float().mean().item())
    return statistics.fmean(counts)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a trained run with two experts or more")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    run = load_run(arguments.run)
    scene = load_scene(run.config.model)
    times = sorted({view.time for view in scene.test})
    choices = list(range(1, len(run.model.experts) + 1))
    rounds: dict[int, list[float]] = {k: [] for k in choices}
    for _ in range(ROUNDS):
        for k in choices:
            run.model.router.top_k = k
            rounds[k].append(deform_ms(run.model, times, run.iteration))
    report = {}
    render = view_renderer(run.model, scene, run.iteration)
    for k in choices:
        run.model.router.top_k = k
        report[f"top_k={k}"] = {
            "deform_ms": round(statistics.median(rounds[k]), 2),
            "fps": round(measure_fps(render, scene.test, "cpu")[0], 1),
            "psnr": round(evaluate_views(render, scene.test)["psnr"], 2),
            "experts_per_gaussian": round(experts_per_gaussian(run.model, times), 2),
        }
    facts = {"gaussians": len(run.model.gaussians), "threads": arguments.threads}
    print(json.dumps({**facts, **report}, indent=1))


if __name__ == "__main__":
    main()
