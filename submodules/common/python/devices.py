"""Where this build computes: on the CPU, and on NVIDIA GPUs if nvcc was there when it was built.

One file for all native packages (`submodules/common/python`); each installs a copy into itself.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

PACKAGE = __name__.rpartition(".")[0]


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
    """How to compute where ``tensor`` lives: None on the CPU. Launches go to torch's stream.

    The tensor must be where this build computes, see `check_device`.
    """
    if tensor.device.type != "cuda":
        return None
    stream = torch.cuda.current_stream(tensor.device).cuda_stream
    return Gpu(_cuda, tensor.device.index, stream)


def check_device(name: str, tensor: Tensor, like: Tensor, like_name: str = "another input") -> None:
    """RuntimeError unless this build computes where ``tensor`` is, and ``like`` is there too."""
    if tensor.device != like.device:
        raise RuntimeError(
            f"{name} is on {tensor.device}, but {like_name} is on {like.device}: move one of them"
        )
    if tensor.device.type in DEVICES:
        return
    if tensor.device.type == "cuda":
        raise RuntimeError(
            f"{name} is on {tensor.device}, but this build of {PACKAGE} has no CUDA kernels: run "
            "with --device cpu, or install the CUDA toolkit (nvcc), then: make clean setup"
        )
    raise RuntimeError(f"{name} is on {tensor.device}; {PACKAGE} computes on {', '.join(DEVICES)}")
