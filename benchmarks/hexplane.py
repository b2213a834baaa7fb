"""Times the HexPlane encoder against its plain PyTorch twin (`grid_sample`), in one run.

    python benchmarks/hexplane.py [--device cpu|cuda] [--threads 2] [--repeats 5] \
        [--points N] > hexplane.json

Milliseconds are medians; `ratio` is twin / ours for forward and backward together. On a CPU
`light_forward_ms` and `light_forward_backward_ms` are the time that the bytes of inputs, outputs
and gradients take at this machine's bandwidth, if each moves once (`light.py`); `forward_of_light`
and `forward_backward_of_light` are the measured times as multiples. Arithmetic is left out, and
every lookup after the first of a cell, as if it stayed in a register.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import utils.threads  # noqa: F401  (before torch, as in training)

# isort: split
import torch

import hexplane_encoder
import light
from hexplane_encoder import reference
from timing import limited, name_of, parse, time_passes

CASES = ((10_000, 16, 64), (10_000, 16, 128), (100_000, 16, 64), (100_000, 16, 128))


def make_inputs(count: int, channels: int, size: int, device: str) -> list[torch.Tensor]:
    """Points inside the cube, three planes and three lines, all with gradients."""
    random = torch.Generator().manual_seed(0)
    shapes = [(size, size, channels)] * 3 + [(size, channels)] * 3
    grids = [torch.rand(shape, generator=random) + 0.5 for shape in shapes]
    xyz = torch.rand((count, 3), generator=random) * 2 - 1
    return [tensor.to(device).requires_grad_() for tensor in (xyz, *grids)]


def measure(
    count: int, channels: int, size: int, device: str, repeats: int, bandwidth: float | None
) -> dict[str, float]:
    """One row of the table; with the time of light where the bandwidth is known."""
    inputs = make_inputs(count, channels, size, device)
    forward, both = time_passes(
        lambda xyz, *grids: hexplane_encoder.encode(xyz, grids[:3], grids[3:]), inputs, repeats
    )
    twin_forward, twin_both = time_passes(
        lambda xyz, *grids: reference.encode(xyz, grids[:3], grids[3:]), inputs, repeats
    )
    row = {
        "points": count,
        "channels": channels,
        "resolution": size,
        "forward_ms": round(forward, 3),
        "forward_backward_ms": round(both, 3),
        "twin_forward_ms": round(twin_forward, 3),
        "twin_forward_backward_ms": round(twin_both, 3),
        "ratio": round(twin_both / both, 2),
    }
    if bandwidth is None:
        return row
    out = torch.empty(count, channels)
    moved = light.forward_bytes(inputs, out), light.forward_backward_bytes(inputs, out)
    row |= light.beside(forward, moved[0], bandwidth, "forward")
    return row | light.beside(both, moved[1], bandwidth, "forward_backward")


def main() -> None:
    """Prints one JSON object."""
    flags = parse(__doc__.splitlines()[0], hexplane_encoder)
    cases = limited(CASES, 0, flags.points)
    bandwidth = light.bandwidth() if flags.device == "cpu" else None
    rows = [measure(*case, flags.device, flags.repeats, bandwidth) for case in cases]
    where = {"device": name_of(flags.device), "threads": flags.threads}
    print(json.dumps({**where, "cases": rows}, indent=2))


if __name__ == "__main__":
    main()
