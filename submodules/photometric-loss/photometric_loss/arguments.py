"""Checks of what `compare` is given; the messages name the argument."""

from __future__ import annotations

import torch
from torch import Tensor

from photometric_loss import devices

ERRORS = (None, "l1", "l2")  # in the order of photometric::Error


def check(images: Tensor, targets: Tensor, mask: Tensor | None, ssim: bool, error: str | None):
    """Raises what `compare` documents."""
    if error not in ERRORS:
        raise ValueError(f"error must be one of None, 'l1', 'l2', got {error!r}")
    if error is None and not ssim:
        raise ValueError("nothing to compute: ssim is False and error is None")
    _check_images(images)
    _check_targets(images, targets)
    if mask is not None:
        _check_mask(images, mask)


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"images must have shape (B, C, H, W), none 0, got {tuple(images.shape)}")
    if images.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"images must be float32 or float64, got {images.dtype}")
    devices.check_device("images", images, images)


def _check_targets(images: Tensor, targets: Tensor) -> None:
    if targets.shape != images.shape:
        raise ValueError(
            f"targets must have shape {tuple(images.shape)} as images have, "
            f"got {tuple(targets.shape)}"
        )
    if targets.dtype not in (torch.uint8, images.dtype):
        raise ValueError(f"targets must be uint8 or {images.dtype}, got {targets.dtype}")
    if targets.requires_grad:
        raise ValueError("targets get no gradient: detach them")
    devices.check_device("targets", targets, images)


def _check_mask(images: Tensor, mask: Tensor) -> None:
    batch, _, height, width = images.shape
    if mask.shape != (batch, 1, height, width):
        raise ValueError(
            f"mask must have shape {(batch, 1, height, width)}, got {tuple(mask.shape)}"
        )
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool, got {mask.dtype}")
    devices.check_device("mask", mask, images)
