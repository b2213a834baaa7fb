"""What keeping fewer experts saves at rendering, and what it costs.

    python benchmarks/top_k.py                         # experts of the published size
    python benchmarks/top_k.py output/three            # a trained run, with PSNR

Prints as JSON for every ``--moe_top_k`` the milliseconds of processor time of the deformation of
one moment on one thread (medians; the settings take turns), the mean number of experts that are
evaluated for a Gaussian, and for a run also PSNR over the test views. The published size is that of
the recipe for Neural 3D Video with HexPlane, embedding and hash grid, random points and random
gates. Prediction for E experts of equal cost: k / E of the time of the experts, plus what is there
for all Gaussians whatever k is (gates, blending, activation).
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

from arguments_MoDE.cli import parse_training
from scene import load_scene
from scene.experts import REGISTRY, SceneFacts
from scene.gaussian_model import GaussianModel
from scene.mixture import MoDE
from training.checkpoint import load_run
from training.evaluation import ViewRenderer, evaluate_views

ROUNDS = 5
MOMENTS = 8
PUBLISHED = "arguments_MoDE/hash/config_0/coffee_martini.py"
EXPERTS = ["hexplane", "embedding", "hash"]


def published_model(count: int) -> MoDE:
    """Three experts of the published size over ``count`` random Gaussians with decided gates."""
    recipe = str(Path(__file__).resolve().parents[1] / PUBLISHED)
    command = ["-s", ".", "--expname", "unused", "--configs", recipe, "--experts", *EXPERTS]
    config = parse_training(command, "top_k.py", "", tuple(REGISTRY), ("hexplane",)).config
    generator = torch.Generator().manual_seed(0)
    xyz = torch.rand(count, 3, generator=generator)
    gaussians = GaussianModel.from_points(xyz.numpy(), (255 * xyz).byte().numpy())
    facts = SceneFacts(torch.stack([xyz.amin(0), xyz.amax(0)]), 1.0, cameras=20, frames=300)
    model = MoDE(gaussians, config, facts).eval()
    favourite = torch.randint(len(EXPERTS), (count, 1, 1), generator=generator)
    for attribute in model.router.learned:
        knots = model.gaussians[model.router.parameter_name(attribute)].data
        knots += 3.0 * (torch.arange(knots.shape[-1]) == favourite)
    return model


@torch.no_grad()
def deform_ms(model: MoDE, times: list[float], iteration: int) -> float:
    """Median milliseconds of processor time of one deformation."""
    taken = []
    for moment in times:
        started = time.process_time()
        model.deform(moment, iteration=iteration)
        taken.append(1000 * (time.process_time() - started))
    return statistics.median(taken)


@torch.no_grad()
def experts_per_gaussian(model: MoDE, times: list[float]) -> float:
    """Mean number of experts that a Gaussian has a gate above zero for, in any attribute."""
    counts = []
    for moment in times:
        used = sum((gate > 0).float() for gate in model.gates(moment).values()) > 0  # (N, E)
        counts.append(used.sum(-1).float().mean().item())
    return statistics.fmean(counts)


def measure(model: MoDE, times: list[float], iteration: int) -> dict[str, dict[str, float]]:
    """``top_k=<k>`` -> numbers."""
    choices = range(1, len(model.experts) + 1)
    rounds: dict[int, list[float]] = {k: [] for k in choices}
    for _ in range(ROUNDS):
        for k in choices:
            model.router.top_k = k
            rounds[k].append(deform_ms(model, times, iteration))
    report = {}
    for k in choices:
        model.router.top_k = k
        report[f"top_k={k}"] = {
            "deform_ms": round(statistics.median(rounds[k]), 2),
            "experts_per_gaussian": round(experts_per_gaussian(model, times), 2),
        }
    return report


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path, help="a trained run with two experts or more")
    parser.add_argument("--gaussians", type=int, default=50_000, help="without a run")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.run is None:
        model = published_model(arguments.gaussians)
        report = measure(model, [i / (MOMENTS - 1) for i in range(MOMENTS)], 30000)
    else:
        run = load_run(arguments.run)
        model, scene = run.model, load_scene(run.config.model)
        render = ViewRenderer(model, scene, run.iteration)
        report = measure(model, sorted({view.time for view in scene.test}), run.iteration)
        for k in range(1, len(model.experts) + 1):
            model.router.top_k = k
            psnr = evaluate_views(render, scene.test)["psnr"]
            report[f"top_k={k}"]["psnr"] = round(psnr, 2)
    print(json.dumps({"gaussians": len(model.gaussians), **report}, indent=1))


if __name__ == "__main__":
    main()
