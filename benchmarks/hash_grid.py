"""Times the hash-grid encoder against its plain PyTorch twin, in one run.

    python benchmarks/hash_grid.py [--threads 2] [--repeats 5] > hash_grid.json

Milliseconds are medians; `ratio` is twin / ours for forward and backward together. The gradient is
that of the table, as training needs it, and in the case that says so that of the points as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

import hash_encoder
from hash_encoder import HashGrid, reference

SPACE_TIME = HashGrid(3, 32, 2, 8, (32, 32, 16), 19)  # all dense
FINE = HashGrid(3, 32, 2, 16, (512, 512, 128), 19)  # most levels hashed
CASES = (  # name, points, grid, whether the points need a gradient
    ("space-time grid, table", 100_000, SPACE_TIME, False),
    ("space-time grid, table and points", 100_000, SPACE_TIME, True),
    ("fine space-time grid, table", 100_000, FINE, False),
)


def make_inputs(count: int, grid: HashGrid, with_points: bool) -> list[torch.Tensor]:
    """Points inside the unit cube and a table; the table needs a gradient, the points may."""
    random = torch.Generator().manual_seed(0)
    x = torch.rand((count, grid.dims), generator=random)
    table = torch.rand((grid.rows, grid.features), generator=random) - 0.5
    return [x.requires_grad_(with_points), table.requires_grad_()]


def time_passes(
    encode: Callable, inputs: list[torch.Tensor], grid: HashGrid, repeats: int
) -> tuple[float, float]:
    """Median milliseconds of (forward, forward and backward), after one warm-up."""
    forward, both = [], []
    leaves = [tensor for tensor in inputs if tensor.requires_grad]
    for repeat in range(repeats + 1):
        start = time.perf_counter()
        features = encode(*inputs, grid)
        middle = time.perf_counter()
        torch.autograd.grad(features, leaves, torch.ones_like(features))
        end = time.perf_counter()
        if repeat:
            forward.append(1e3 * (middle - start))
            both.append(1e3 * (end - start))
    return statistics.median(forward), statistics.median(both)


def measure(name: str, count: int, grid: HashGrid, with_points: bool, repeats: int) -> dict:
    """One row of the table."""
    inputs = make_inputs(count, grid, with_points)
    forward, both = time_passes(hash_encoder.encode, inputs, grid, repeats)
    twin_forward, twin_both = time_passes(reference.encode, inputs, grid, repeats)
    return {
        "case": name,
        "points": count,
        "levels": grid.levels,
        "rows": grid.rows,
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
