"""Times the HexPlane encoder against its plain PyTorch twin (`grid_sample`), in one run.

    python benchmarks/hexplane.py [--threads 2] [--repeats 5] > hexplane.json

Milliseconds are medians; `ratio` is twin / ours for forward and backward together.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

import hexplane_encoder
from hexplane_encoder import reference

CASES = ((10_000, 16, 64), (10_000, 16, 128), (100_000, 16, 64), (100_000, 16, 128))


def make_inputs(count: int, channels: int, size: int) -> list[torch.Tensor]:
    """Points inside the cube, three planes and three lines, all with gradients."""
    random = torch.Generator().manual_seed(0)
    shapes = [(size, size, channels)] * 3 + [(size, channels)] * 3
    grids = [torch.rand(shape, generator=random) + 0.5 for shape in shapes]
    xyz = torch.rand((count, 3), generator=random) * 2 - 1
    return [tensor.requires_grad_() for tensor in (xyz, *grids)]


def time_passes(encode: Callable, inputs: list[torch.Tensor], repeats: int) -> tuple[float, float]:
    """Median milliseconds of (forward, forward and backward), after one warm-up."""
    forward, both = [], []
    for repeat in range(repeats + 1):
        start = time.perf_counter()
        features = encode(inputs[0], inputs[1:4], inputs[4:])
        middle = time.perf_counter()
        torch.autograd.grad(features, inputs, torch.ones_like(features))
        end = time.perf_counter()
        if repeat:
            forward.append(1e3 * (middle - start))
            both.append(1e3 * (end - start))
    return statistics.median(forward), statistics.median(both)


def measure(count: int, channels: int, size: int, repeats: int) -> dict[str, float]:
    """One row of the table."""
    inputs = make_inputs(count, channels, size)
    forward, both = time_passes(hexplane_encoder.encode, inputs, repeats)
    twin_forward, twin_both = time_passes(reference.encode, inputs, repeats)
    return {
        "points": count,
        "channels": channels,
        "resolution": size,
        "forward_ms": round(forward, 2),
        "forward_backward_ms": round(both, 2),
        "twin_forward_ms": round(twin_forward, 2),
        "twin_forward_backward_ms": round(twin_both, 2),
        "ratio": round(twin_both / both, 2),
    }


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each case")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = [measure(*case, arguments.repeats) for case in CASES]
    print(json.dumps({"threads": arguments.threads, "cases": rows}, indent=2))


if __name__ == "__main__":
    main()
