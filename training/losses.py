"""The photometric loss; targets are uint8 until they arrive here."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from arguments_MoDE.config import OptimizationParams
from photometric_loss import compare

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
        targets: (B, 3, H, W) uint8 of any strides, or floats in [0, 1].
        mask: (B, 1, H, W) bool, the pixels that count; None: all. The others have no error and no
            gradient, and what ``targets`` has there is without effect, on SSIM's windows too: both
            images are given the render's own values there.
    """
    native = None if opt.loss == "charbonnier" else opt.loss
    ssim = error = None
    if native or opt.lambda_dssim:
        ssim, error = compare(images, targets, mask, ssim=opt.lambda_dssim != 0, error=native)
    terms = {opt.loss: _charbonnier(images, targets, mask) if error is None else error}
    if ssim is not None:
        terms["dssim"] = opt.lambda_dssim * (1 - ssim)
    return terms


def _charbonnier(images: Tensor, targets: Tensor, mask: Tensor | None) -> Tensor:
    if targets.dtype == torch.uint8:
        targets = targets.to(images.dtype) / 255
    if mask is not None:  # not even a NaN of theirs has an effect there
        targets = torch.where(mask, targets, images.detach())
    error = ((images - targets).square() + CHARBONNIER_EPS**2).sqrt()
    return (error if mask is None else error * mask).mean()  # it is not zero for equal pixels


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
