"""How rough the planes of a HexPlane are, as one operator: the regularisers of its training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hexplane_encoder import _native


def roughness(
    space: Sequence[Tensor], time: Sequence[Tensor], num_threads: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Smoothness in space and in time, and distance of the time planes from 1.

    The mean squared second difference along a dimension is zero where there are fewer than 3
    samples.

    Args:
        space: planes (R_b, R_a, C).
        time: planes (R_t, R_a, C).
        num_threads: default `torch.get_num_threads()`; the result has the same bits for any.

    All are contiguous, float32 or float64, on the CPU. Once differentiable.

    Returns:
        Scalars: sum over the space planes of the mean of both dimensions' mean squared second
        differences; sum over the time planes of that along time; and of the mean of |1 - p|.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.
    """
    threads = torch.get_num_threads() if num_threads is None else num_threads
    planes = [*space, *time]
    for plane in planes:
        if plane.ndim != 3 or 0 in plane.shape or not plane.is_contiguous():
            raise ValueError(f"planes must be contiguous (H, W, C), got {tuple(plane.shape)}")
        if plane.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"planes must be float32 or float64, got {plane.dtype}")
        if plane.dtype != planes[0].dtype or plane.device.type != "cpu":
            raise ValueError(f"planes must be of one dtype, on the CPU, got {plane.dtype}")
    if threads < 1 or not planes:
        raise ValueError(f"there must be planes and threads, got {len(planes)} and {threads}")
    return _Roughness.apply(threads, len(space), *planes)


class _Roughness(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, threads: int, of_space: int, *planes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.threads, ctx.of_space = threads, of_space
        ctx.save_for_backward(*planes)
        ctx.set_materialize_grads(False)
        values = [plane.detach() for plane in planes]
        factors = _factors(values, of_space, (1.0, 1.0, 1.0))
        sums = _native.roughness(values, factors, threads)
        totals = [0.0, 0.0, 0.0]
        for i, (factor, found) in enumerate(zip(factors, sums, strict=True)):
            if i < of_space:
                totals[0] += factor[0] * found[0] + factor[1] * found[1]
            else:
                totals[1] += factor[0] * found[0]
                totals[2] += factor[2] * found[2]
        return tuple(values[0].new_tensor(total) for total in totals)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        planes = [plane.detach() for plane in ctx.saved_tensors]
        scales = tuple(0.0 if grad is None else float(grad) for grad in grads)
        results = [torch.empty_like(plane) for plane in planes]
        factors = _factors(planes, ctx.of_space, scales)
        _native.roughness_backward(planes, factors, ctx.threads, results)
        return None, None, *results


def _factors(
    planes: Sequence[Tensor], of_space: int, scales: tuple[float, float, float]
) -> list[tuple[float, float, float]]:
    """What the sums of each plane are multiplied by to become its share of the scaled measures."""
    space, time, one = scales
    factors = []
    for i, (height, width, channels) in enumerate(plane.shape for plane in planes):
        along_height = 1 / ((height - 2) * width * channels) if height > 2 else 0.0
        along_width = 1 / (height * (width - 2) * channels) if width > 2 else 0.0
        if i < of_space:
            factors.append((0.5 * space * along_height, 0.5 * space * along_width, 0.0))
        else:
            factors.append((time * along_height, 0.0, one / (height * width * channels)))
    return factors
