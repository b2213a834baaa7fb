"""Where and how the ground truth moves, and whether a render moves with it.

All of it is for a camera that stands still: then a pixel that changes has seen motion, or light.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

THRESHOLD = 8 / 255  # a change that the noise of a camera does not reach in a mean of nine pixels
SMOOTHED = 3  # pixels, side of that mean
REACH = 5  # pixels, side of the square by which changed pixels grow


def moving_mask(frame: Tensor, neighbours: Sequence[Tensor]) -> Tensor:
    """Which pixels of a frame of the ground truth are in a moving region, (1, H, W) bool.

    For every neighbour in time the signed difference to ``frame`` is averaged over 3x3 pixels
    (zeros beyond the border, always divided by nine). A pixel has changed where any channel of any
    of these means is larger than 8/255 in size. The moving region is every pixel of the 5x5 square
    around a pixel that has changed.

    So it covers where something is that was elsewhere a moment ago or will be a moment later, and
    what it uncovers; the inside of a large surface of one colour does not count as moving.

    Args:
        frame: (3, H, W) in [0, 1].
        neighbours: the frames before and after it, or the only one of them there is, likewise.
    """
    changed = torch.zeros_like(frame[:1], dtype=torch.bool)
    for other in neighbours:
        mean = F.avg_pool2d(frame - other, SMOOTHED, stride=1, padding=SMOOTHED // 2)
        changed |= (mean.abs() > THRESHOLD).any(0, keepdim=True)
    return F.max_pool2d(changed.float(), REACH, stride=1, padding=REACH // 2) > 0.5


def flicker(frame: Tensor, before: Tensor, still: Tensor) -> Tensor:
    """Mean change of pixels that should not change, from one frame to the next, in levels of 255.

    Args:
        frame, before: (3, H, W) in [0, 1], one moment and the one before it.
        still: (1, H, W) bool, where the ground truth does not move at either moment; some do.

    Returns:
        Scalar. A render's compares with the same of its ground truth, which is the camera's noise:
        above it the render flickers, below it the render is smoother than the video.
    """
    change = (frame - before).abs().mean(0, keepdim=True)  # (1, H, W)
    return 255 * (change * still).sum() / still.sum()
