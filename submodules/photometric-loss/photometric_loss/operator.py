"""The differentiable comparison: checks its arguments, allocates, and calls the native kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from photometric_loss import arguments, devices

try:
    from photometric_loss import _native
except ImportError as error:
    raise ImportError(
        f"the native part of photometric_loss cannot be loaded ({error}); "
        "if it is not built, run: pip install -e submodules/photometric-loss"
    ) from error


class Comparison(NamedTuple):
    """Means over batch, channels and pixels, each a scalar tensor; None: not asked for."""

    ssim: Tensor | None
    error: Tensor | None


def compare(
    images: Tensor,
    targets: Tensor,
    mask: Tensor | None = None,
    *,
    ssim: bool = True,
    error: str | None = "l1",
    num_threads: int | None = None,
) -> Comparison:
    """Mean structural similarity and mean error of images and their targets.

    SSIM is that of Wang et al. (2004) as Gaussian splatting papers report it: 11x11 Gaussian window
    of sigma 1.5, population covariance, zeros beyond the border, C1 = 0.01^2, C2 = 0.03^2, data
    range 1.

    Args:
        images: (B, C, H, W) float32 or float64, not clamped; differentiable once.
        targets: (B, C, H, W) of the images' dtype, or uint8, which is read as value / 255. Any
            strides are read as they are: a permuted (B, H, W, C) costs no copy. No gradient.
        mask: (B, 1, H, W) bool, the pixels that count; None: all. Where it is False both images
            have the value of ``images``, without a gradient: no error, and no effect of the target.
            The means are still over all pixels.
        ssim: whether SSIM is wanted; without it no window is evaluated.
        error: ``l1``: absolute, ``l2``: squared, None: none wanted.
        num_threads: default `torch.get_num_threads()`.

    The results have the images' dtype; sums are in double and in a fixed order, so that all bits,
    those of the gradient included, are the same in every run and for any number of threads.

    Raises:
        ValueError: shapes or dtypes that do not fit, or targets that want a gradient; the message
            names the argument.
        RuntimeError: a tensor on another device than images, or where this build does not compute.
    """
    threads = torch.get_num_threads() if num_threads is None else num_threads
    if threads < 1:
        raise ValueError(f"num_threads must be at least 1, got {threads}")
    arguments.check(images, targets, mask, ssim, error)
    differentiable = images.requires_grad and torch.is_grad_enabled()
    call = _Call(ssim, arguments.ERRORS.index(error), differentiable, threads)
    mask = None if mask is None else mask.contiguous()
    return Comparison(*_Compare.apply(call, images.contiguous(), targets, mask))


@dataclass(frozen=True)
class _Call:
    """What is wanted."""

    ssim: bool
    error_kind: int  # photometric::Error
    differentiable: bool
    threads: int


class _Compare(torch.autograd.Function):
    """Keeps the derivative of SSIM by the images (CPU), or by the blurred maps (GPU: three)."""

    @staticmethod
    def forward(ctx, call: _Call, images: Tensor, targets: Tensor, mask: Tensor | None):
        gpu = devices.gpu_of(images)
        scalars = [
            images.new_empty(()) if wanted else None for wanted in (call.ssim, call.error_kind)
        ]
        slopes = None
        if call.ssim and call.differentiable:
            slopes = images.new_empty((1 if gpu is None else _SLOPES, *images.shape))
        if gpu is None:
            _forward_cpu(call, images.detach(), targets, mask, scalars, slopes)
        else:
            _forward_gpu(gpu, call, images, targets, mask, scalars, slopes)
        ctx.call = call
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(images, targets, mask, slopes)
        return tuple(scalars)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_ssim: Tensor | None, grad_error: Tensor | None):
        images, targets, mask, slopes = ctx.saved_tensors
        if grad_ssim is None and grad_error is None:
            return None, None, None, None
        images = images.detach()
        gradient = torch.empty_like(images)
        gpu = devices.gpu_of(images)
        inputs, grads = (images, targets, mask), (grad_ssim, grad_error)
        if gpu is None:
            _backward_cpu(ctx.call, *inputs, slopes, *grads, gradient)
        else:
            _backward_gpu(gpu, ctx.call, *inputs, slopes, *grads, gradient)
        return None, gradient, None, None


_SLOPES = 3  # photometric::kSlopes


def _forward_cpu(
    call: _Call,
    images: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    scalars: list[Tensor | None],
    slopes: Tensor | None,
) -> None:
    ssim, error = scalars
    _native.forward(
        images,
        targets,
        _bytes(mask),
        call.error_kind,
        call.threads,
        images.new_empty(0) if ssim is None else ssim,
        images.new_empty(()) if error is None else error,
        images.new_empty((0, 0, 0, 0)) if slopes is None else slopes[0],
    )


def _backward_cpu(
    call: _Call,
    images: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    slopes: Tensor | None,
    grad_ssim: Tensor | None,
    grad_error: Tensor | None,
    gradient: Tensor,
) -> None:
    without = grad_ssim is None
    _native.backward(
        images,
        targets,
        _bytes(mask),
        0 if grad_error is None else call.error_kind,
        call.threads,
        images.new_empty((0, 0, 0, 0)) if without else slopes[0],
        images.new_empty(0) if without else grad_ssim,
        images.new_empty(0) if grad_error is None else grad_error,
        gradient,
    )


def _bytes(mask: Tensor | None) -> Tensor:
    """The mask as the CPU kernels take it: empty where there is none."""
    if mask is None:
        return torch.empty(0, dtype=torch.uint8, device="cpu")
    return mask.view(torch.uint8)


def _launch(
    gpu: devices.Gpu,
    name: str,
    images: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    *more: int,
) -> None:
    """Calls CUDA kernels; tensors cross as addresses, so everything must be checked by now."""
    kernel = getattr(gpu.kernels, f"{name}_{'f32' if images.dtype == torch.float32 else 'f64'}")
    kernel(
        gpu.device,
        gpu.stream,
        images.data_ptr(),
        list(images.shape),
        targets.data_ptr(),
        targets.dtype == torch.uint8,
        list(targets.stride()),
        _address(mask),
        *more,
    )


def _forward_gpu(
    gpu: devices.Gpu,
    call: _Call,
    images: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    scalars: list[Tensor | None],
    slopes: Tensor | None,
) -> None:
    blocks = gpu.kernels.blocks(list(images.shape))
    partials = images.new_empty((2, blocks), dtype=torch.float64)
    addresses = [_address(tensor) for tensor in (*scalars, slopes, partials)]
    _launch(gpu, "forward", images, targets, mask, call.error_kind, *addresses)


def _backward_gpu(
    gpu: devices.Gpu,
    call: _Call,
    images: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    slopes: Tensor | None,
    grad_ssim: Tensor | None,
    grad_error: Tensor | None,
    gradient: Tensor,
) -> None:
    kind = 0 if grad_error is None else call.error_kind
    addresses = [_address(tensor) for tensor in (slopes, grad_ssim, grad_error, gradient)]
    _launch(gpu, "backward", images, targets, mask, kind, *addresses)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
