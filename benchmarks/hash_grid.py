"""Times the hash-grid encoder against its plain PyTorch twin, in one run.

    python benchmarks/hash_grid.py [--device cpu|cuda] [--threads 2] [--repeats 5] \
        [--points N] > hash_grid.json

Milliseconds are medians; `ratio` is twin / ours for forward and backward together. The gradient is
that of the table, as training needs it, and in the case that says so that of the points as well.
On a CPU `light_forward_ms` and `light_forward_backward_ms` are the time that the bytes take at this
machine's bandwidth (`light.py`), if the points, the rows that they touch, outputs and gradients
move once; `forward_of_light` and `forward_backward_of_light` are the measured times as multiples.
Arithmetic is left out, and every lookup of a row after the first, and that rows are scattered.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import utils.threads  # noqa: F401  (before torch, as in training)

# isort: split
import torch

import hash_encoder
import light
from hash_encoder import HashGrid, reference
from timing import limited, name_of, parse, time_passes

SPACE_TIME = HashGrid(3, 32, 2, 8, (32, 32, 16), 19)  # all dense
FINE = HashGrid(3, 32, 2, 16, (512, 512, 128), 19)  # most levels hashed
CASES = (  # name, points, grid, whether the points need a gradient
    ("space-time grid, table", 100_000, SPACE_TIME, False),
    ("space-time grid, table and points", 100_000, SPACE_TIME, True),
    ("fine space-time grid, table", 100_000, FINE, False),
)


def make_inputs(count: int, grid: HashGrid, with_points: bool, device: str) -> list[torch.Tensor]:
    """Points inside the unit cube and a table; the table needs a gradient, the points may."""
    random = torch.Generator().manual_seed(0)
    x = torch.rand((count, grid.dims), generator=random).to(device)
    table = torch.rand((grid.rows, grid.features), generator=random).to(device) - 0.5
    return [x.requires_grad_(with_points), table.requires_grad_()]


def measure(
    name: str,
    count: int,
    grid: HashGrid,
    with_points: bool,
    device: str,
    repeats: int,
    bandwidth: float | None,
) -> dict:
    """One row of the table; with the time of light where the bandwidth is known."""
    inputs = make_inputs(count, grid, with_points, device)
    forward, both = time_passes(
        lambda x, table: hash_encoder.encode(x, table, grid), inputs, repeats
    )
    twin_forward, twin_both = time_passes(
        lambda x, table: reference.encode(x, table, grid), inputs, repeats
    )
    row = {
        "case": name,
        "points": count,
        "levels": grid.levels,
        "rows": grid.rows,
        "forward_ms": round(forward, 3),
        "forward_backward_ms": round(both, 3),
        "twin_forward_ms": round(twin_forward, 3),
        "twin_forward_backward_ms": round(twin_both, 3),
        "ratio": round(twin_both / both, 2),
    }
    if bandwidth is None:
        return row
    moved = moved_bytes(*inputs, grid)
    row |= light.beside(forward, moved[0], bandwidth, "forward")
    return row | light.beside(both, moved[1], bandwidth, "forward_backward")


def moved_bytes(x: torch.Tensor, table: torch.Tensor, grid: HashGrid) -> tuple[int, int]:
    """Bytes that must move: (forward, forward and backward)."""
    out = hash_encoder.encode(x, table, grid)
    (gradient,) = torch.autograd.grad(out, table, torch.ones_like(out))
    untouched = (gradient == 0).all(dim=1).sum().item() * grid.features * table.element_size()
    forward = light.forward_bytes((x, table), out) - untouched
    return forward, light.forward_backward_bytes((x, table), out) - 2 * untouched


def main() -> None:
    """Prints one JSON object."""
    flags = parse(__doc__.splitlines()[0], hash_encoder)
    cases = limited(CASES, 1, flags.points)
    bandwidth = light.bandwidth() if flags.device == "cpu" else None
    rows = [measure(*case, flags.device, flags.repeats, bandwidth) for case in cases]
    where = {"device": name_of(flags.device), "threads": flags.threads}
    print(json.dumps({**where, "cases": rows}, indent=2))


if __name__ == "__main__":
    main()
