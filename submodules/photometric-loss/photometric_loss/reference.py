"""The comparison in plain PyTorch: the oracle of the tests, and the definition, on any device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from photometric_loss.operator import Comparison

RADIUS = 5
SIGMA = 1.5
C1 = 0.01**2
C2 = 0.03**2


def compare(
    images: Tensor,
    targets: Tensor,
    mask: Tensor | None = None,
    *,
    ssim: bool = True,
    error: str | None = "l1",
) -> Comparison:
    """As `photometric_loss.compare`; the gradients come from autograd."""
    if targets.dtype == torch.uint8:
        targets = targets.to(images.dtype) / 255
    if mask is not None:
        own = images.detach()
        images, targets = torch.where(mask, images, own), torch.where(mask, targets, own)
    difference = images - targets
    errors = {"l1": difference.abs, "l2": difference.square}
    return Comparison(
        ssim_map(images, targets).mean() if ssim else None,
        errors[error]().mean() if error else None,
    )


def ssim_map(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity at every pixel and channel of (B, C, H, W)."""
    m, n, p, q = (blur(z) for z in (x, y, x * y, x * x + y * y))
    luminance, structure = 2 * m * n + C1, 2 * (p - m * n) + C2
    base, spread = m * m + n * n + C1, q - m * m - n * n + C2
    return luminance * structure / (base * spread)


def blur(x: Tensor) -> Tensor:
    """The Gaussian window over the last two dimensions of (B, C, H, W), zeros beyond the border."""
    steps = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float64, device=x.device)
    line = torch.exp(-(steps**2) / (2 * SIGMA**2))
    line = (line / line.sum()).to(x.dtype)
    planes = x.reshape(-1, 1, *x.shape[-2:])
    rows = F.conv2d(planes, line.view(1, 1, 1, -1), padding=(0, RADIUS))
    return F.conv2d(rows, line.view(1, 1, -1, 1), padding=(RADIUS, 0)).view_as(x)
