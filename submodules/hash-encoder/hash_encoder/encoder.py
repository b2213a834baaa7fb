"""The differentiable encoder: checks its arguments, allocates, and calls the native kernels."""

from __future__ import annotations

import atexit
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hash_encoder import devices
from hash_encoder.grid import HashGrid

try:
    from hash_encoder import _native
except ImportError as error:
    raise ImportError(
        f"the native part of hash_encoder cannot be loaded ({error}); "
        "if it is not built, run: pip install -e submodules/hash-encoder"
    ) from error


def encode(x: Tensor, table: Tensor, grid: HashGrid, num_threads: int | None = None) -> Tensor:
    """Features (N, L * F) of points, level by level: F features of level 0, of level 1, ...

    Args:
        x: (N, D) in [0, 1]. Points outside are clamped to the border of the unit cube and get no
            gradient along the axes that they leave it on; never zero features. A row with a NaN
            becomes NaN and passes no gradient.
        table: (grid.rows, F), the levels one after the other.
        grid: the description of the levels.
        num_threads: default `torch.get_num_threads()`; the result has the same bits for any.

    Both are float32, or both float64, on one device. Differentiable once in both. On a GPU the
    gradient of the table is added atomically: its last bits vary from run to run.

    Raises:
        ValueError: shapes or dtypes that do not fit; the message names the argument.
        RuntimeError: a tensor on another device than x, or where this build does not compute.
    """
    threads = torch.get_num_threads() if num_threads is None else num_threads
    if threads < 1:
        raise ValueError(f"num_threads must be at least 1, got {threads}")
    _check_points(x, grid)
    _check_table(x, table, grid)
    return _Encode.apply(grid, threads, x.contiguous(), table.contiguous())


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, grid: HashGrid, threads: int, x: Tensor, table: Tensor) -> Tensor:
        ctx.grid, ctx.threads = grid, threads
        ctx.save_for_backward(x, table)
        features = x.new_empty((x.shape[0], grid.width))
        gpu = devices.gpu_of(x)
        if gpu is None:
            _native.forward(x.detach(), table.detach(), _layout(grid), threads, features)
        else:
            _launch(gpu, "forward", grid, x, table, features)
        return features

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_features: Tensor) -> tuple[Tensor | None, ...]:
        x, table = (saved.detach() for saved in ctx.saved_tensors)
        grad_features = grad_features.contiguous()
        _, _, wants_x, wants_table = ctx.needs_input_grad
        grad_x = torch.empty_like(x) if wants_x else None
        gpu = devices.gpu_of(x)
        if gpu is None:
            grad_table = torch.empty_like(table) if wants_table else None
            _backward_cpu(ctx.grid, ctx.threads, x, table, grad_features, grad_x, grad_table)
        else:
            grad_table = torch.zeros_like(table) if wants_table else None
            _backward_gpu(gpu, ctx.grid, x, table, grad_features, grad_x, grad_table)
        return None, None, grad_x, grad_table


def _backward_cpu(
    grid: HashGrid,
    threads: int,
    x: Tensor,
    table: Tensor,
    grad_features: Tensor,
    grad_x: Tensor | None,
    grad_table: Tensor | None,
) -> None:
    layout = _layout(grid)
    if grad_x is not None:
        _native.backward_points(x, table, layout, grad_features, threads, grad_x)
    if grad_table is not None:
        _native.backward_table(x, layout, grad_features, threads, grad_table)


def _backward_gpu(
    gpu: devices.Gpu,
    grid: HashGrid,
    x: Tensor,
    table: Tensor,
    grad_features: Tensor,
    grad_x: Tensor | None,
    grad_table: Tensor | None,
) -> None:
    if grad_x is not None:
        _launch(gpu, "backward_points", grid, x, table, grad_features, grad_x)
    if grad_table is not None:
        _launch(gpu, "backward_table", grid, x, grad_features, grad_table)


def _launch(gpu: devices.Gpu, name: str, grid: HashGrid, *arrays: Tensor) -> None:
    """Calls a CUDA kernel; tensors cross as addresses, so everything must be checked by now."""
    kernel = getattr(gpu.kernels, f"{name}_{'f32' if arrays[0].dtype == torch.float32 else 'f64'}")
    levels = _device_grid(gpu.kernels, grid)
    kernel(gpu.device, gpu.stream, levels, *((a.data_ptr(), a.numel()) for a in arrays))


def _described(grid: HashGrid) -> dict[str, Any]:
    """The grid in the words of the kernels."""
    return dict(
        scales=grid.scales,
        resolutions=grid.resolutions,
        offsets=grid.offsets,
        hashed=grid.hashed,
        features=grid.features,
        smooth=grid.interpolation == "smoothstep",
    )


@lru_cache(maxsize=64)
def _layout(grid: HashGrid) -> _native.Layout:
    """The grid as the CPU kernels take it."""
    return _native.Layout(**_described(grid))


@lru_cache(maxsize=64)
def _device_grid(kernels: ModuleType, grid: HashGrid) -> object:
    """The grid as the CUDA kernels take it; nothing of it lies on the device."""
    return kernels.make_grid(**_described(grid))


atexit.register(_layout.cache_clear)  # nanobind reports objects that outlive the interpreter


def _check_points(x: Tensor, grid: HashGrid) -> None:
    if x.ndim != 2 or x.shape[1] != grid.dims:
        raise ValueError(f"x must have shape (N, {grid.dims}), got {tuple(x.shape)}")
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"x must be float32 or float64, got {x.dtype}")
    devices.check_device("x", x, x)


def _check_table(x: Tensor, table: Tensor, grid: HashGrid) -> None:
    shape = (grid.rows, grid.features)
    if tuple(table.shape) != shape:
        raise ValueError(f"table must have shape {shape}, got {tuple(table.shape)}")
    if table.dtype != x.dtype:
        raise ValueError(f"table must be {x.dtype} as x is, got {table.dtype}")
    devices.check_device("table", table, x)
