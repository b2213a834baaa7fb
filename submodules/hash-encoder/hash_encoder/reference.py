"""The encoder in plain PyTorch: its documentation and the oracle of its tests; runs anywhere."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from hash_encoder.grid import HashGrid

PRIMES = (1, 2654435761, 805459861, 3674653429)


def encode(x: Tensor, table: Tensor, grid: HashGrid) -> Tensor:
    """Same contract as `hash_encoder.encode`, on any device and differentiable twice."""
    nan_rows = x.isnan().any(dim=1, keepdim=True)
    x = torch.where(nan_rows, 0.0, x).clamp(0.0, 1.0)
    tables = table.split(grid.level_rows)
    features = [encode_level(x, tables[level], grid, level) for level in range(grid.levels)]
    return torch.where(nan_rows, torch.nan, torch.cat(features, dim=1))


def encode_level(x: Tensor, table: Tensor, grid: HashGrid, level: int) -> Tensor:
    """Features (N, F) of one level, whose rows are `table`; x (N, D) lies in [0, 1]."""
    resolution = torch.tensor(grid.resolutions[level], device=x.device)  # (D,)
    position = x * torch.tensor(grid.scales[level], dtype=x.dtype, device=x.device)
    last_cell = (resolution - 2).clamp(min=0)
    cell = torch.minimum(position.detach().floor().long(), last_cell)  # (N, D)
    weight = position - cell
    if grid.interpolation == "smoothstep":
        weight = weight * weight * (3 - 2 * weight)
    corners = list(itertools.product((0, 1), repeat=grid.dims))
    steps = torch.tensor(corners, device=x.device)  # (2^D, D)
    samples = torch.minimum(cell[:, None] + steps, resolution - 1)  # (N, 2^D, D)
    values = F.embedding(table_rows(samples, grid, level), table)  # (N, 2^D, F)
    return (values * corner_weights(weight, steps)[..., None]).sum(dim=1)


def table_rows(samples: Tensor, grid: HashGrid, level: int) -> Tensor:
    """Row of each sample (..., D) in the table of its level."""
    if grid.hashed[level]:
        terms = samples * torch.tensor(PRIMES[: grid.dims], device=samples.device)
        row = terms[..., 0]
        for axis in range(1, grid.dims):
            row = row ^ terms[..., axis]
        return row & (grid.level_rows[level] - 1)
    strides = itertools.accumulate(grid.resolutions[level][:-1], lambda a, b: a * b, initial=1)
    return sum(samples[..., axis] * stride for axis, stride in enumerate(strides))


def corner_weights(weight: Tensor, steps: Tensor) -> Tensor:
    """Products (N, 2^D) of `weight` (N, D) on the high sides of the axes, 1 - it on the low."""
    product = torch.ones((), dtype=weight.dtype, device=weight.device)
    for axis, high in enumerate(steps.bool().T):
        along = weight[:, axis, None]
        product = product * torch.where(high, along, 1 - along)
    return product
