"""The order of Gaussians: those that are near each other in space are near each other in memory.

What a tile of an image shows, a cell of a grid holds or a camera does not see is then a few
stretches of each tensor, which caches have and whole blocks of Gaussians agree on. `docs/log.md`
has what it saves. It decides nothing but who gets which random number, and how sums are rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor

BITS = 21  # of a coordinate: three of them fill an int64, and far outliers leave the rest cells


def spatial_order(xyz: Tensor) -> Tensor:
    """The rows of ``xyz`` along a Z-order curve (Morton, 1966) through the cube around them.

    Points of the same cell, a two-millionth of the cube's edge, keep their order; all do where some
    are not finite.

    Args:
        xyz: (N, 3) float, any unit.

    Returns:
        (N,) int64, a permutation.
    """
    points = xyz.detach().double()
    if len(points) == 0:
        return torch.zeros(0, dtype=torch.int64, device=xyz.device)
    low = points.amin(0)
    edge = (points - low).max()  # one for all axes: cells are cubes
    cells = ((points - low) / edge * (2**BITS - 1)).nan_to_num().clamp(0, 2**BITS - 1).long()
    x, y, z = _spread(cells).unbind(-1)
    return (x | y << 1 | z << 2).argsort(stable=True)


def _spread(x: Tensor) -> Tensor:
    """Bit i of each number becomes bit 3 i: halves of ever smaller groups of bits move apart."""
    for shift, mask in (
        (32, 0x001F00000000FFFF),
        (16, 0x001F0000FF0000FF),
        (8, 0x100F00F00F00F00F),
        (4, 0x10C30C30C30C30C3),
        (2, 0x1249249249249249),
    ):
        x = (x | x << shift) & mask
    return x
