"""What differs between a CPU and an accelerator, in the few places where code must know."""

from __future__ import annotations

import torch
from torch import Tensor


def reading_waits(tensor: Tensor) -> bool:
    """Whether a number read from ``tensor`` makes Python wait for a queue of kernels.

    On an accelerator it does, and the queue is empty then: the next kernels are launched into an
    idle device. A training iteration therefore reads nothing where this is true.
    """
    return tensor.device.type != "cpu"


def upload(tensor: Tensor, device: torch.device | str) -> Tensor:
    """``tensor`` on ``device``, copied without waiting; itself where it is there already.

    It goes through page-locked memory, which torch does not give to others before the copy is done.
    """
    if torch.device(device).type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
