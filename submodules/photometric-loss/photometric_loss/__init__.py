"""How images differ from their targets: SSIM and the mean absolute or squared error, as a loss.

    from photometric_loss import compare
    ssim, error = compare(images, targets, mask, error="l1")
    loss = 0.8 * error + 0.2 * (1 - ssim)

One pass over float images and 8-bit targets yields both means and what the backward pass needs.
`photometric_loss.reference` says the same in plain PyTorch.
"""

from __future__ import annotations

from photometric_loss.devices import DEVICES
from photometric_loss.operator import Comparison, compare

__all__ = ["DEVICES", "Comparison", "compare"]
__version__ = "0.1.0"
