"""The differentiable encoder: checks its arguments, allocates, and calls the native kernels."""

from __future__ import annotations

import atexit
from functools import lru_cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hash_encoder.grid import HashGrid

try:
    from hash_encoder import _native
except ImportError as error:
    raise ImportError(
        f"the native part of hash_encoder is not built ({error}); "
        "run: pip install -e submodules/hash-encoder"
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

    Both are float32, or both float64, on the CPU. Differentiable once in both.

    Raises:
        ValueError: shapes or dtypes that do not fit; the message names the argument.
        RuntimeError: a tensor that is not on the CPU.
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
        _native.forward(x.detach(), table.detach(), _layout(grid), threads, features)
        return features

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_features: Tensor) -> tuple[Tensor | None, ...]:
        x, table = (saved.detach() for saved in ctx.saved_tensors)
        layout, grad_features = _layout(ctx.grid), grad_features.contiguous()
        grad_x = grad_table = None
        if ctx.needs_input_grad[2]:
            grad_x = torch.empty_like(x)
            _native.backward_points(x, table, layout, grad_features, ctx.threads, grad_x)
        if ctx.needs_input_grad[3]:
            grad_table = torch.empty_like(table)
            _native.backward_table(x, layout, grad_features, ctx.threads, grad_table)
        return None, None, grad_x, grad_table


@lru_cache(maxsize=64)
def _layout(grid: HashGrid) -> _native.Layout:
    """The grid as the kernels take it."""
    return _native.Layout(
        scales=grid.scales,
        resolutions=grid.resolutions,
        offsets=grid.offsets,
        hashed=grid.hashed,
        features=grid.features,
        smooth=grid.interpolation == "smoothstep",
    )


atexit.register(_layout.cache_clear)  # nanobind reports objects that outlive the interpreter


def _check_points(x: Tensor, grid: HashGrid) -> None:
    if x.ndim != 2 or x.shape[1] != grid.dims:
        raise ValueError(f"x must have shape (N, {grid.dims}), got {tuple(x.shape)}")
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"x must be float32 or float64, got {x.dtype}")
    _check_device("x", x)


def _check_table(x: Tensor, table: Tensor, grid: HashGrid) -> None:
    shape = (grid.rows, grid.features)
    if tuple(table.shape) != shape:
        raise ValueError(f"table must have shape {shape}, got {tuple(table.shape)}")
    if table.dtype != x.dtype:
        raise ValueError(f"table must be {x.dtype} as x is, got {table.dtype}")
    _check_device("table", table)


def _check_device(name: str, tensor: Tensor) -> None:
    if tensor.device.type != "cpu":
        raise RuntimeError(
            f"hash_encoder has CPU kernels only, but {name} is on {tensor.device}: run with "
            "--device cpu, or call hash_encoder.reference.encode, which runs on any device"
        )
