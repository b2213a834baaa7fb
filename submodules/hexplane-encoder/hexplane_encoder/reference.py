"""Encoder and decoder in plain PyTorch: documentation and the oracle of tests; runs anywhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

PLANE_AXES = ((0, 1), (0, 2), (1, 2))  # (width, height) of each plane


def encode(xyz: Tensor, space_planes: Sequence[Tensor], time_lines: Sequence[Tensor]) -> Tensor:
    """Same contract as `hexplane_encoder.encode`, on any device; a chain of `grid_sample` calls."""
    nan_rows = xyz.isnan().any(dim=1, keepdim=True)
    # Set aside: the backward of grid_sample on the CPU writes out of bounds for NaN coordinates.
    xyz = torch.where(nan_rows, 0.0, xyz)
    features = torch.ones((), dtype=xyz.dtype, device=xyz.device)
    for plane, axes in zip(space_planes, PLANE_AXES, strict=True):
        features = features * sample_plane(plane, xyz[:, axes])
    for axis, line in enumerate(time_lines):
        across = torch.zeros_like(xyz[:, axis])
        along_width = torch.stack((xyz[:, axis], across), dim=1)  # (N, 2)
        features = features * sample_plane(line[None], along_width)
    return torch.where(nan_rows, torch.nan, features)


def sample_plane(plane: Tensor, coordinates: Tensor) -> Tensor:
    """Bilinear lookup of `plane` (H, W, C) at `coordinates` (N, 2) in [-1, 1], (width, height)."""
    image = plane.permute(2, 0, 1)[None]  # (1, C, H, W)
    grid = coordinates.clamp(-2.0, 2.0)[None, None]  # infinities would become NaN within
    sampled = F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return sampled[0, :, 0].T  # (N, C)


def decode(
    inputs: Tensor,
    first: tuple[Tensor, Tensor] | None,
    inner: tuple[Tensor, Tensor],
    last: Sequence[tuple[Tensor, Tensor]],
) -> tuple[Tensor, ...]:
    """Same contract as `hexplane_encoder.decode`, on any device; a chain of linear layers."""
    hidden = inputs if first is None else F.linear(inputs, *first)
    parts = F.linear(hidden.relu(), *inner).relu().split(hidden.shape[1], dim=1)
    return tuple(F.linear(part, *layer) for part, layer in zip(parts, last, strict=True))


def roughness(space: Sequence[Tensor], time: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Same contract as `hexplane_encoder.roughness`, on any device."""
    none = (*space, *time)[0].new_zeros(())
    smooth = (0.5 * (curvature(plane, 0) + curvature(plane, 1)) for plane in space)
    steady = (curvature(plane, 0) for plane in time)
    near_one = ((1 - plane).abs().mean() for plane in time)
    return sum(smooth, none), sum(steady, none), sum(near_one, none)


def curvature(plane: Tensor, dim: int) -> Tensor:
    """Mean squared second difference along ``dim``; zero where there are fewer than 3 samples."""
    if plane.shape[dim] < 3:
        return plane.new_zeros(())
    return plane.diff(n=2, dim=dim).square().mean()
