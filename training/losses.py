"""The photometric loss; targets are uint8 until they arrive here."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from arguments_MoDE.config import OptimizationParams
from utils.metrics import ssim

CHARBONNIER_EPS = 1e-3


def to_float(images: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) float in [0, 1]."""
    return images.permute(0, 3, 1, 2).to(torch.float32).mul_(1 / 255)


def photometric(
    images: Tensor, targets: Tensor, opt: OptimizationParams, mask: Tensor | None = None
) -> dict[str, Tensor]:
    """Weighted terms of the loss, by name; each a mean over batch, channels and pixels.

    Args:
        images: (B, 3, H, W), not clamped.
        targets: (B, 3, H, W) in [0, 1].
        mask: (B, 1, H, W) bool, the pixels that count; None: all. The others have no error and no
            gradient, and what ``targets`` has there is without effect, on SSIM's windows too: both
            images are given the render's own values there.
    """
    if mask is not None:
        own = images.detach()
        images, targets = torch.where(mask, images, own), torch.where(mask, targets, own)
    difference = images - targets
    if opt.loss == "l1":
        error = difference.abs()
    elif opt.loss == "l2":
        error = difference.square()
    else:
        error = (difference.square() + CHARBONNIER_EPS**2).sqrt()
        error = error if mask is None else error * mask  # it is not zero for equal pixels
    terms = {opt.loss: error.mean()}
    if opt.lambda_dssim:
        terms["dssim"] = opt.lambda_dssim * (1 - ssim(images, targets))
    return terms


class CameraColors(nn.Module):
    """An affine colour transform per training camera, for rigs whose cameras differ in colour.

    The image of camera c becomes ``A_c rgb + b_c``. Cameras never seen get the identity; the median
    over the training cameras is held there, so that the scene has the colours of a typical camera
    (the mean would follow the few whose exposure is far off).
    """

    def __init__(self, cameras: int) -> None:
        """Identity for each of ``cameras`` rows."""
        super().__init__()
        self.delta = nn.Parameter(torch.zeros(cameras, 3, 4))

    def forward(self, image: Tensor, camera_index: int, trained: Tensor) -> Tensor:
        """Transforms an image (3, H, W) of training camera ``camera_index``.

        Args:
            trained: (C,) int64, rows of all training cameras, over which the median is taken out.
        """
        delta = self.delta[camera_index] - self.delta[trained].median(0).values
        flat = image.flatten(1)
        moved = torch.addmm(delta[:, 3:], delta[:, :3], flat)
        return image + moved.view_as(image)
