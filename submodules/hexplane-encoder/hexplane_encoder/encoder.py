"""The differentiable encoder: checks its arguments, allocates, and calls the native kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

try:
    from hexplane_encoder import _native
except ImportError as error:
    raise ImportError(
        f"the native part of hexplane_encoder is not built ({error}); "
        "run: pip install -e submodules/hexplane-encoder"
    ) from error

PLANE_NAMES = ("xy", "xz", "yz")
LINE_NAMES = ("x", "y", "z")


def encode(
    xyz: Tensor,
    space_planes: Sequence[Tensor],
    time_lines: Sequence[Tensor],
    num_threads: int | None = None,
) -> Tensor:
    """Features (N, C) of points: the product of three plane and three line lookups.

    Args:
        xyz: (N, 3) in [-1, 1]; -1 is the first sample of an axis and +1 its last. Points outside
            are clamped to the border and get no gradient there. A row with a NaN becomes NaN and
            passes no gradient.
        space_planes: three (R_b, R_a, C), over the axis pairs (a, b) = (x, y), (x, z), (y, z).
        time_lines: three (R, C), over x, y, z: the space-time planes at the time wanted.
        num_threads: default `torch.get_num_threads()`; the result has the same bits for any.

    All are float32, or all float64, on the CPU. Differentiable once in every input.

    Raises:
        ValueError: shapes or dtypes that do not fit; the message names the argument.
        RuntimeError: a tensor that is not on the CPU.
    """
    threads = torch.get_num_threads() if num_threads is None else num_threads
    if threads < 1:
        raise ValueError(f"num_threads must be at least 1, got {threads}")
    _check_points(xyz)
    _check_grids(xyz, space_planes, time_lines)
    grids = [grid.contiguous() for grid in (*space_planes, *time_lines)]
    return _Encode.apply(threads, xyz.contiguous(), *grids)


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, threads: int, xyz: Tensor, *grids: Tensor) -> Tensor:
        ctx.threads = threads
        ctx.save_for_backward(xyz, *grids)
        features = xyz.new_empty((xyz.shape[0], grids[-1].shape[-1]))
        _native.forward(xyz.detach(), [grid.detach() for grid in grids], threads, features)
        return features

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_features: Tensor) -> tuple[Tensor | None, ...]:
        xyz, *grids = (saved.detach() for saved in ctx.saved_tensors)
        wants_xyz, *wants_grid = ctx.needs_input_grad[1:]
        grad_xyz = torch.empty_like(xyz) if wants_xyz else xyz.new_empty((0, 3))
        grad_grids = [torch.zeros_like(grid) for grid in grids] if any(wants_grid) else []
        block = min(xyz.shape[0], _native.BLOCK_POINTS)
        partials = xyz.new_empty((block, len(grids), grids[-1].shape[-1]))
        rows = torch.empty((len(grids), block), dtype=torch.int32)
        grad_features = grad_features.contiguous()
        _native.backward(
            xyz, grids, grad_features, ctx.threads, grad_xyz, grad_grids, partials, rows
        )
        wanted = [g if w else None for g, w in zip(grad_grids, wants_grid, strict=False)]
        return None, grad_xyz if wants_xyz else None, *(wanted or [None] * len(grids))


def _check_points(xyz: Tensor) -> None:
    if xyz.ndim != 2 or xyz.shape[1] != 3:
        raise ValueError(f"xyz must have shape (N, 3), got {tuple(xyz.shape)}")
    if xyz.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"xyz must be float32 or float64, got {xyz.dtype}")
    _check_device("xyz", xyz)


def _check_grids(xyz: Tensor, planes: Sequence[Tensor], lines: Sequence[Tensor]) -> None:
    if len(planes) != 3 or len(lines) != 3:
        raise ValueError(
            f"expected 3 space_planes and 3 time_lines, got {len(planes)} and {len(lines)}"
        )
    channels = lines[0].shape[-1] if lines[0].ndim else 0
    for name, plane in zip(PLANE_NAMES, planes, strict=True):
        _check_grid(f"space_planes[{name}]", plane, ("R_b", "R_a"), channels, xyz.dtype)
    for name, line in zip(LINE_NAMES, lines, strict=True):
        _check_grid(f"time_lines[{name}]", line, ("R",), channels, xyz.dtype)


def _check_grid(
    name: str, grid: Tensor, axes: tuple[str, ...], channels: int, dtype: torch.dtype
) -> None:
    shape = tuple(grid.shape)
    if len(shape) != len(axes) + 1 or shape[-1] != channels or 0 in shape:
        raise ValueError(f"{name} must have shape ({', '.join(axes)}, C={channels}), got {shape}")
    if grid.dtype != dtype:
        raise ValueError(f"{name} must be {dtype} as xyz is, got {grid.dtype}")
    _check_device(name, grid)


def _check_device(name: str, tensor: Tensor) -> None:
    if tensor.device.type != "cpu":
        raise RuntimeError(
            f"hexplane_encoder has CPU kernels only, but {name} is on {tensor.device}: run with "
            "--device cpu, or call hexplane_encoder.reference.encode, which runs on any device"
        )
