"""SSIMs other than the one of `utils.metrics`: what further published tables report.

Images are (3, H, W) float in [0, 1]; both functions return one number, the mean over channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, table of section 4
_SIDE, _SIGMA = 11, 1.5
MS_SSIM_SMALLEST = (_SIDE - 1) * 2 ** (len(SCALE_WEIGHTS) - 1) + 1  # pixels on a side


def uniform_ssim(image: Tensor, target: Tensor, data_range: float = 1.0, side: int = 7) -> Tensor:
    """SSIM as scikit-image has it by default: a mean window and sample covariance.

    Wang et al. 2004 with K1 = 0.01, K2 = 0.03. Only windows inside the image count. A data range
    of 2 for images in [0, 1] quadruples both constants: published, but wrong.

    Raises:
        ValueError: the images are smaller than the window, or differ in shape.
    """
    _check(image, target, side)
    x, y = image.double(), target.double()
    mx, my, xx, yy, xy = F.avg_pool2d(torch.stack([x, y, x * x, y * y, x * y]), side, stride=1)
    unbiased = side**2 / (side**2 - 1)
    sx, sy, sxy = ((a - b) * unbiased for a, b in ((xx, mx * mx), (yy, my * my), (xy, mx * my)))
    luminance, contrast = _factors(mx, my, sx, sy, sxy, data_range)
    return (luminance * contrast).mean()


def ms_ssim(image: Tensor, target: Tensor) -> Tensor:
    """Multi-scale SSIM (Wang et al. 2003): data range 1, 11x11 Gaussian windows of sigma 1.5.

    Contrast of five scales, each half the one before (2x2 means, an odd side padded by one pixel
    of zeros on both ends as pytorch-msssim does), and luminance of the last. Only windows inside
    the image count. Negative means count as zero.

    Raises:
        ValueError: a side is shorter than `MS_SSIM_SMALLEST`, or the images differ in shape.
    """
    _check(image, target, MS_SSIM_SMALLEST)
    x, y = image.double()[None], target.double()[None]
    result = torch.ones(x.shape[1], dtype=x.dtype, device=x.device)
    for scale, weight in enumerate(SCALE_WEIGHTS):
        maps = _gaussian(torch.cat([x, y, x * x, y * y, x * y])).unsqueeze(1)
        mx, my = maps[0], maps[1]
        sx, sy, sxy = maps[2] - mx * mx, maps[3] - my * my, maps[4] - mx * my
        luminance, contrast = _factors(mx, my, sx, sy, sxy, 1.0)
        last = scale == len(SCALE_WEIGHTS) - 1
        value = (luminance * contrast if last else contrast).mean((0, 2, 3))  # (3,)
        result = result * value.clamp(min=0) ** weight
        padding = [side % 2 for side in x.shape[2:]]
        x, y = (F.avg_pool2d(z, 2, padding=padding) for z in (x, y))
    return result.mean()


def _check(image: Tensor, target: Tensor, smallest: int) -> None:
    if image.shape != target.shape or image.ndim != 3:
        raise ValueError(f"not two images: {tuple(image.shape)}, {tuple(target.shape)}")
    if min(image.shape[1:]) < smallest:
        raise ValueError(f"{tuple(image.shape)} is smaller than {smallest} on a side")


def _factors(mx, my, sx, sy, sxy, data_range: float) -> tuple[Tensor, Tensor]:
    """The luminance, and the contrast and structure factor of SSIM, at every window."""
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    return (2 * mx * my + c1) / (mx * mx + my * my + c1), (2 * sxy + c2) / (sx + sy + c2)


def _gaussian(x: Tensor) -> Tensor:
    """Gaussian means of windows inside the image: (B, C, H, W) to (B, C, H - 10, W - 10)."""
    offsets = torch.arange(_SIDE, dtype=x.dtype, device=x.device) - _SIDE // 2
    weights = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    weights = weights / weights.sum()
    x = sum(w * x[..., k : x.shape[-1] - _SIDE + 1 + k] for k, w in enumerate(weights))
    return sum(w * x[..., k : x.shape[-2] - _SIDE + 1 + k, :] for k, w in enumerate(weights))
