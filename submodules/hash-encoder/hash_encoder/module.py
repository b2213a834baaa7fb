"""The encoder as a module that owns its table."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hash_encoder.encoder import encode
from hash_encoder.grid import HashGrid

INITIAL_RANGE = 1e-4


class HashEncoder(nn.Module):
    """`encode` with a learnt table (grid.rows, F), drawn from U(-1e-4, 1e-4).

    Args:
        grid: the description of the levels.
        generator: source of the initial table; default the global one of torch.
    """

    def __init__(self, grid: HashGrid, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.grid = grid
        table = torch.empty(grid.rows, grid.features)
        table.uniform_(-INITIAL_RANGE, INITIAL_RANGE, generator=generator)
        self.table = nn.Parameter(table)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, L * F) of points x (N, D) in [0, 1]; see `hash_encoder.encode`."""
        return encode(x, self.table, self.grid)

    def extra_repr(self) -> str:
        """The grid, when the module is printed."""
        return f"{self.grid}, rows={self.grid.rows}"
