"""Image metrics: PSNR and SSIM, also as a training loss.

All of them take float images in [0, 1] (data range 1) or uint8 images, of shape (C, H, W) or
(B, C, H, W). A metric "from 8-bit" is the metric of `to_8bit(image)`: what a reader of the saved
PNG would measure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from photometric_loss import compare

PSNR_CAP = 100.0  # dB: of identical images; a mean squared error of 1e-10 is float32 rounding

_RADIUS = 5
_SIGMA = 1.5
_C1 = 0.01**2
_C2 = 0.03**2
_STRIP_VALUES = 100_000  # per map and strip: the dozen maps of a strip then stay in a core's cache


def to_8bit(image: Tensor) -> Tensor:
    """Float image in [0, 1], of any shape, to uint8: clamped, rounded to the nearest level."""
    return image.detach().clamp(0, 1).mul(255).round().to(torch.uint8)


def psnr(image: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB, 20 log10(1 / sqrt(MSE)), of each image.

    At most `PSNR_CAP`, which identical images get too, so that means and JSON files stay finite.

    Args:
        image, target: (C, H, W) or (B, C, H, W).
        mask: (1, H, W) or (B, 1, H, W) bool, the pixels that count; None: all. NaN where none does.

    Returns:
        () for one image, (B,) for a batch; no gradient.

    Raises:
        ValueError: the shapes differ or are not (C, H, W) or (B, C, H, W).
    """
    batch = image.shape[:-3]
    image, target = _pair(image.detach(), target.detach())
    error = (image - target).square()
    if mask is None:
        error = error.flatten(1).mean(1)  # (B,)
    else:
        mask = mask.reshape(-1, 1, *image.shape[-2:])
        count = image.shape[1] * mask.flatten(1).sum(1)
        error = (error * mask).flatten(1).sum(1) / count
    return (-10 * error.log10()).clamp(max=PSNR_CAP).reshape(batch)


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Structural similarity, averaged over everything; a scalar, differentiable in both images.

    In one native pass, unless ``target`` wants a gradient too.

    Raises:
        ValueError: as `ssim_map`.
        RuntimeError: the images are where photometric_loss does not compute.
    """
    if target.requires_grad and torch.is_grad_enabled():
        return ssim_map(image, target).mean()
    image, target = _pair(image, target.detach())
    return compare(image, target, error=None).ssim


def ssim_map(image: Tensor, target: Tensor) -> Tensor:
    """Structural similarity at every pixel and channel, (B, C, H, W).

    The variant that Gaussian splatting papers report (Wang et al. 2004, and the border of
    depthwise convolution): 11x11 Gaussian window of sigma 1.5, population covariance, zeros beyond
    the border, C1 = 0.01^2, C2 = 0.03^2, data range 1. float64 stays float64; half precision is
    computed in float32.

    Raises:
        ValueError: the shapes differ or are not (C, H, W) or (B, C, H, W).
    """
    return _SsimMap.apply(*_pair(image, target))


def _pair(image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if image.shape != target.shape:
        raise ValueError(f"images differ in shape: {tuple(image.shape)}, {tuple(target.shape)}")
    if image.ndim not in (3, 4) or 0 in image.shape:
        raise ValueError(f"expected (C, H, W) or (B, C, H, W), got {tuple(image.shape)}")
    image, target = _unit_range(image), _unit_range(target)
    dtype = torch.promote_types(torch.promote_types(image.dtype, target.dtype), torch.float32)
    batch = (-1, *image.shape[-3:])
    return image.to(dtype).reshape(batch), target.to(dtype).reshape(batch)


def _unit_range(image: Tensor) -> Tensor:
    return image.to(torch.float32) / 255 if image.dtype == torch.uint8 else image


def _window() -> list[float]:
    weights = [math.exp(-(k**2) / (2 * _SIGMA**2)) for k in range(-_RADIUS, _RADIUS + 1)]
    return [weight / sum(weights) for weight in weights]


_WEIGHTS = _window()


def _blur(x: Tensor) -> Tensor:
    """Gaussian window over the last two dimensions, zeros beyond the border.

    As shifted additions: on a CPU several times faster than a depthwise or separable convolution.
    """
    for dim in (-1, -2):
        size = x.shape[dim]
        out = x * _WEIGHTS[_RADIUS]
        for k in range(1, min(_RADIUS + 1, size)):
            weight, rest = _WEIGHTS[_RADIUS + k], size - k
            out.narrow(dim, 0, rest).add_(x.narrow(dim, k, rest), alpha=weight)
            out.narrow(dim, k, rest).add_(x.narrow(dim, 0, rest), alpha=weight)
        x = out
    return x


def _strips(x: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Horizontal strips of ``x``: rows of the strip, those rows with the window's halo, the former
    within the latter. One strip on an accelerator, where launches cost more than memory."""
    height = x.shape[-2]
    rows = height
    if x.device.type == "cpu":
        rows = max(16, _STRIP_VALUES // (x.numel() // height))
    for low in range(0, height, rows):
        high = min(low + rows, height)
        start, stop = max(low - _RADIUS, 0), min(high + _RADIUS, height)
        yield slice(low, high), slice(start, stop), slice(low - start, high - start)


class _SsimMap(torch.autograd.Function):
    """SSIM with its derivative worked out, strip by strip: four blurs forward, three or four back.

    With m = blur(x), n = blur(y), p = blur(xy), q = blur(xx + yy), SSIM is
    S = (2mn + C1)(2(p - mn) + C2) / ((mm + nn + C1)(q - mm - nn + C2)), and since the blur is its
    own adjoint, dL/dx = blur(L' dS/dm) + y blur(L' dS/dp) + 2x blur(L' dS/dq).
    """

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor) -> Tensor:
        result = torch.empty_like(x)
        wanted = any(ctx.needs_input_grad)
        slopes = x.new_empty((4, *x.shape)) if wanted else None  # dS/dp, dS/dq, dS/dm, dS/dn
        for rows, halo, inner in _strips(x):
            maps = _blur(_products(x[..., halo, :], y[..., halo, :]))[..., inner, :]
            result[..., rows, :] = _compare(maps, None if slopes is None else slopes[..., rows, :])
        if wanted:
            ctx.save_for_backward(x, y, slopes)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, y, slopes = ctx.saved_tensors
        wanted = [i for i in range(2) if ctx.needs_input_grad[i]]
        results: list[Tensor | None] = [
            torch.empty_like(x) if i in wanted else None for i in range(2)
        ]
        kept = slopes if len(wanted) == 2 else slopes[: 3 + wanted[0]]
        for rows, halo, inner in _strips(x):
            blurred = _blur(kept[..., halo, :] * gradient[..., halo, :])[..., inner, :]
            for i in wanted:
                own, other = (x, y) if i == 0 else (y, x)
                part = torch.addcmul(blurred[2 + i], blurred[0], other[..., rows, :])
                results[i][..., rows, :] = part.addcmul_(blurred[1], own[..., rows, :], value=2)
        return results[0], results[1]


def _products(x: Tensor, y: Tensor) -> Tensor:
    """x, y, xy and xx + yy, stacked: (4, B, C, H, W)."""
    maps = x.new_empty((4, *x.shape))
    maps[0], maps[1] = x, y
    torch.mul(x, y, out=maps[2])
    torch.mul(x, x, out=maps[3])
    maps[3].addcmul_(y, y)
    return maps


def _compare(maps: Tensor, slopes: Tensor | None) -> Tensor:
    """S of the blurred maps (m, n, p, q); its derivatives by p, q, m, n into ``slopes``."""
    m, n, p, q = maps
    mn = m * n
    squares = torch.addcmul(m * m, n, n)
    luminance, structure = 2 * mn + _C1, 2 * (p - mn) + _C2
    base, spread = squares + _C1, q - squares + _C2
    inverse = 1 / (base * spread)
    result = luminance * structure * inverse
    if slopes is not None:
        torch.mul(luminance, 2 * inverse, out=slopes[0])
        torch.div(-result, spread, out=slopes[1])
        cross = 2 * (structure - luminance) * inverse  # by mn
        own = 2 * (result / base + slopes[1])  # minus the derivative by (mm + nn) / 2
        torch.sub(cross * n, own * m, out=slopes[2])
        torch.sub(cross * m, own * n, out=slopes[3])
    return result
