"""Where this build computes: on the CPU, and on NVIDIA GPUs if nvcc was there when it was built."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

PACKAGE = "simple_knn"


def _optional(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:  # not built; one that is there and does not load is an error
        return None


_cuda = _optional(f"{PACKAGE}._cuda")

DEVICES = ("cpu",) if _cuda is None else ("cpu", "cuda")  # kinds of device


class Gpu(NamedTuple):
    """The CUDA kernels, and where to launch them."""

    kernels: ModuleType
    device: int
    stream: int  # cudaStream_t


def gpu_of(tensor: Tensor) -> Gpu | None:
    """The GPU to search on, where ``tensor`` is on one and this build has CUDA; else None: the CPU.

    Launches go to torch's stream.
    """
    if tensor.device.type != "cuda" or _cuda is None:
        return None
    stream = torch.cuda.current_stream(tensor.device).cuda_stream
    return Gpu(_cuda, tensor.device.index, stream)
