"""Multi-resolution hash-grid features of 2D, 3D or 4D points.

    from hash_encoder import HashEncoder, HashGrid, encode
    grid = HashGrid(dims=3, levels=16, base=16, desired=2048)
    features = HashEncoder(grid)(x)          # x (N, 3) in [0, 1] -> (N, 32)
    features = encode(x, table, grid)        # the same with a table of your own

A hash grid (Mueller et al., "Instant Neural Graphics Primitives", SIGGRAPH 2022) is a stack of
regular grids of growing resolution whose samples are rows of one table of learnt features: coarse
levels have a row for every sample, fine ones share rows through a hash. Here the axes may have
resolutions of their own, as the space-time grids of Grid4D (Xu et al., NeurIPS 2024) need.
`hash_encoder.reference` says the same in plain PyTorch.
"""

from __future__ import annotations

from hash_encoder.devices import DEVICES
from hash_encoder.encoder import encode
from hash_encoder.grid import HashGrid
from hash_encoder.module import HashEncoder

__all__ = ["DEVICES", "HashEncoder", "HashGrid", "encode"]
__version__ = "0.1.0"
