"""Speed of the rasteriser on a scene of `benchmarks/scenes.py`, harmonics of degree 3.

Claim: the garden (138,766 Gaussians of a real scene, 648x420) takes on two cores under 100 ms
forward and under 400 ms forward + backward.

    python benchmarks/rasterizer_garden.py --data garden.npz --threads 2
    python benchmarks/rasterizer_garden.py --scene n3v --size 1352x1014 --device cuda

Prints one JSON object; times are medians over `--runs`, per view, over all cameras of the scene.
On a GPU they are those between two events of its stream, `peak_mib` is what a view takes beyond
the Gaussians, and `forward_one_sort_ms` is the forward pass with one sort of 64-bit keys (tile and
depth) in place of two shorter ones. On a CPU the unavoidable work alone is timed beside it, which
`benchmarks/rasterizer_light.py` describes: `light_forward_ms`, `light_forward_backward_ms`, and the
measured times as multiples (`forward_of_light`, `forward_backward_of_light`; `*_of_pixels` of the
work on pixels and bytes alone). With several threads, one thread takes turns with them:
`one_thread_forward_ms`, and `scaling`, how many times longer.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import utils.threads  # noqa: F401  (before torch, as in training and rendering)

# isort: split
import torch

from benchmarks import rasterizer_light, scenes
from benchmarks.clock import alternating_ms, median_ms, peak_mib
from diff_gaussian_rasterization import cuda, rasterize


def measure(scene: scenes.Scene, runs: int, threads: int) -> dict[str, float | None]:
    """Milliseconds per view without and with the backward pass, and the memory of the latter."""
    cameras, shared = scene.cameras(), scene.shared() | {"num_threads": threads}
    random = torch.Generator().manual_seed(0)
    weights = torch.rand(1, 3, scene.height, scene.width, generator=random).to(scene.device)

    def forward(num_threads: int = threads) -> None:
        with torch.no_grad():
            for camera in cameras:
                rasterize(**scene.gaussians, **camera, **shared | {"num_threads": num_threads})

    def both() -> None:
        for camera in cameras:
            out = rasterize(**scene.gaussians, **camera, **shared)
            out.color.backward(weights)
            for tensor in scene.gaussians.values():
                tensor.grad = None

    views, device = len(cameras), scene.device
    works = {"forward_ms": forward}
    if device.type == "cpu" and threads > 1:
        works["one_thread_forward_ms"] = partial(forward, 1)
    times = {
        **{k: round(ms / views, 3) for k, ms in alternating_ms(works, runs, device).items()},
        "forward_backward_ms": round(median_ms(both, runs, device) / views, 3),
        "peak_mib": peak_mib(both, device),
    }
    if device.type == "cuda":
        with patch.object(cuda, "forward", partial(cuda.forward, one_sort=True)):
            times["forward_one_sort_ms"] = round(median_ms(forward, runs, device) / views, 3)
    if len(works) > 1:
        times["scaling"] = round(times["one_thread_forward_ms"] / times["forward_ms"], 2)
    return times


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    scenes.add_arguments(parser)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=int, default=15, help="timed runs; the median is printed")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    scene = scenes.chosen(parser, args).to(args.device)
    about = dict(
        benchmark="rasterizer_garden",
        scene=scene.name,
        order=args.order,
        device=args.device,
        gaussians=scene.count,
        width=scene.width,
        height=scene.height,
        views=len(scene.world_to_camera),
        threads=args.threads,
        runs=args.runs,
    )
    found = measure(scene, args.runs, args.threads)
    if args.device == "cpu":
        light = rasterizer_light.bound(scene, args.threads)
        found |= rasterizer_light.beside(found, light) | light
    print(json.dumps(about | found))


if __name__ == "__main__":
    main()
