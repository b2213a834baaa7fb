"""Checks of what a caller hands over: every mistake is a `ValueError` that names the argument."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

MAX_SH_DEGREE = 3


def check_exclusive(shs: object, colors: object, scales: object, rotations: object, cov: object):
    """Raises unless there is exactly one source of colour and exactly one of shape."""
    if (shs is None) == (colors is None):
        raise ValueError("give exactly one of SHs (shs) and precomputed colors")
    if (scales is None) != (rotations is None):
        raise ValueError("scales and rotations go together: one of them is missing")
    if (scales is None) == (cov is None):
        raise ValueError("give exactly one of scales with rotations and precomputed 3D covariance")


def check_dtype(tensors: Mapping[str, Tensor | None], dtype: torch.dtype) -> None:
    """Raises unless all tensors have the dtype of means3D, float32 or float64."""
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"means3D must be float32 or float64, not {dtype}")
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype != dtype:
            raise ValueError(
                f"{name} is {tensor.dtype}, but means3D is {dtype}: convert one of them"
            )


def check_shape(name: str, tensor: Tensor, shape: tuple[int | None, ...], batch: int) -> None:
    """Raises unless `tensor` has the shape (batch or 1, *shape); None in `shape` is any size."""
    expected = ", ".join("*" if size is None else str(size) for size in shape)
    fits = tensor.dim() == len(shape) + 1 and tensor.shape[0] in (1, batch)
    if not fits or any(
        want is not None and have != want
        for have, want in zip(tensor.shape[1:], shape, strict=True)
    ):
        raise ValueError(
            f"{name} must have the shape ({batch} or 1, {expected}), not {tuple(tensor.shape)}"
        )


def views_of(viewmatrices: Tensor) -> int:
    """B of `viewmatrices` (B, 4, 4). Of no views nothing would be drawn, nor any gradient set."""
    if viewmatrices.dim() != 3 or viewmatrices.shape[0] == 0:
        raise ValueError(
            "viewmatrices must have the shape (B, 4, 4), B at least 1, "
            f"not {tuple(viewmatrices.shape)}"
        )
    return viewmatrices.shape[0]


def check_sh(shs: Tensor, sh_degree: int, channels: int) -> None:
    """Raises unless `shs` (B, N, M, 3) holds the coefficients of `sh_degree`."""
    if not 0 <= sh_degree <= MAX_SH_DEGREE:
        raise ValueError(f"sh_degree must be 0 to {MAX_SH_DEGREE}, not {sh_degree}")
    if channels != 3:
        raise ValueError(f"spherical harmonics give 3 channels, but background has {channels}")
    if shs.shape[2] < (sh_degree + 1) ** 2:
        raise ValueError(
            f"shs has {shs.shape[2]} coefficients, but degree {sh_degree} needs "
            f"{(sh_degree + 1) ** 2}"
        )


def check_features(features: Tensor | None, channels: int) -> None:
    """Raises unless `features` (B, N, F) leave a channel of the background to the colours."""
    if features is None:
        return
    if features.dim() != 3 or features.shape[2] == 0:
        raise ValueError(f"features must have the shape (B, N, F), not {tuple(features.shape)}")
    if features.shape[2] >= channels:
        raise ValueError(
            f"background has {channels} values, but must have those of the colours and of the "
            f"{features.shape[2]} features"
        )


def check_size(width: int, height: int) -> None:
    """Raises unless the image has at least one pixel and its indices fit."""
    if not (0 < width <= 1 << 20 and 0 < height <= 1 << 20):
        raise ValueError(f"the image size {width} x {height} is not between 1 and 2^20 pixels")


def near_plane_of(value: float) -> float:
    """`value` as a number above 0: at 0 and below nothing can be projected."""
    near = float(value)
    if not 0.0 < near < math.inf:
        raise ValueError(f"near_plane must be a number above 0, not {value}")
    return near
