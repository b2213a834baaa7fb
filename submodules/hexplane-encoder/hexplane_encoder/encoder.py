"""The differentiable encoder: checks its arguments, allocates, and calls the native kernels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hexplane_encoder import devices

try:
    from hexplane_encoder import _native
except ImportError as error:
    raise ImportError(
        f"the native part of hexplane_encoder cannot be loaded ({error}); "
        "if it is not built, run: pip install -e submodules/hexplane-encoder"
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

    All are float32, or all float64, on one device. Differentiable once in every input. On a GPU the
    gradients of the grids are added atomically: their last bits vary from run to run.

    Raises:
        ValueError: shapes or dtypes that do not fit; the message names the argument.
        RuntimeError: a tensor on another device than xyz, or where this build does not compute.
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
        gpu = devices.gpu_of(xyz)
        if gpu is None:
            _native.forward(xyz.detach(), [grid.detach() for grid in grids], threads, features)
        else:
            _launch(gpu, "forward", xyz, grids, features.data_ptr())
        return features

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_features: Tensor) -> tuple[Tensor | None, ...]:
        xyz, *grids = (saved.detach() for saved in ctx.saved_tensors)
        wants_xyz, *wants_grid = ctx.needs_input_grad[1:]
        grad_features = grad_features.contiguous()
        gpu = devices.gpu_of(xyz)
        if gpu is None:
            backward, wanted = _backward_cpu, [any(wants_grid)] * len(grids)
        else:
            backward, wanted = partial(_backward_gpu, gpu), wants_grid
        grad_xyz = torch.empty_like(xyz) if wants_xyz else None
        grad_grids = [
            torch.zeros_like(g) if w else None for g, w in zip(grids, wanted, strict=True)
        ]
        backward(ctx.threads, xyz, grids, grad_features, grad_xyz, grad_grids)
        asked = zip(grad_grids, wants_grid, strict=True)
        return None, grad_xyz, *(grad if want else None for grad, want in asked)


def _backward_cpu(
    threads: int,
    xyz: Tensor,
    grids: list[Tensor],
    grad_features: Tensor,
    grad_xyz: Tensor | None,
    grad_grids: list[Tensor | None],
) -> None:
    block = min(xyz.shape[0], _native.BLOCK_POINTS)
    partials = xyz.new_empty((block, len(grids), grids[-1].shape[-1]))
    rows = torch.empty((len(grids), block), dtype=torch.int32)
    if grad_xyz is None:
        grad_xyz = xyz.new_empty((0, 3))  # not wanted
    wanted = [grad for grad in grad_grids if grad is not None]  # all, or none
    _native.backward(xyz, grids, grad_features, threads, grad_xyz, wanted, partials, rows)


def _backward_gpu(
    gpu: devices.Gpu,
    threads: int,
    xyz: Tensor,
    grids: list[Tensor],
    grad_features: Tensor,
    grad_xyz: Tensor | None,
    grad_grids: list[Tensor | None],
) -> None:
    del threads
    outputs = _address(grad_xyz), [_address(grad) for grad in grad_grids]
    _launch(gpu, "backward", xyz, grids, grad_features.data_ptr(), *outputs)


def _launch(
    gpu: devices.Gpu, name: str, xyz: Tensor, grids: Sequence[Tensor], *more: int | list[int]
) -> None:
    """Calls a CUDA kernel; tensors cross as addresses, so everything must be checked by now."""
    sizes = [size for grid in grids for size in (*grid.shape[:-1], 1)[:2]]
    kernel = getattr(gpu.kernels, f"{name}_{'f32' if xyz.dtype == torch.float32 else 'f64'}")
    kernel(
        gpu.device,
        gpu.stream,
        xyz.data_ptr(),
        xyz.shape[0],
        [grid.data_ptr() for grid in grids],
        sizes,
        grids[-1].shape[-1],
        *more,
    )


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _check_points(xyz: Tensor) -> None:
    if xyz.ndim != 2 or xyz.shape[1] != 3:
        raise ValueError(f"xyz must have shape (N, 3), got {tuple(xyz.shape)}")
    if xyz.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"xyz must be float32 or float64, got {xyz.dtype}")
    devices.check_device("xyz", xyz, xyz)


def _check_grids(xyz: Tensor, planes: Sequence[Tensor], lines: Sequence[Tensor]) -> None:
    if len(planes) != 3 or len(lines) != 3:
        raise ValueError(
            f"expected 3 space_planes and 3 time_lines, got {len(planes)} and {len(lines)}"
        )
    channels = lines[0].shape[-1] if lines[0].ndim else 0
    for name, plane in zip(PLANE_NAMES, planes, strict=True):
        _check_grid(f"space_planes[{name}]", plane, ("R_b", "R_a"), channels, xyz)
    for name, line in zip(LINE_NAMES, lines, strict=True):
        _check_grid(f"time_lines[{name}]", line, ("R",), channels, xyz)


def _check_grid(name: str, grid: Tensor, axes: tuple[str, ...], channels: int, xyz: Tensor) -> None:
    shape = tuple(grid.shape)
    if len(shape) != len(axes) + 1 or shape[-1] != channels or 0 in shape:
        raise ValueError(f"{name} must have shape ({', '.join(axes)}, C={channels}), got {shape}")
    if grid.dtype != xyz.dtype:
        raise ValueError(f"{name} must be {xyz.dtype} as xyz is, got {grid.dtype}")
    devices.check_device(name, grid, xyz)
