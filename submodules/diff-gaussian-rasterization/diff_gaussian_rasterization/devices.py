"""Where this build computes: on the CPU, and on NVIDIA GPUs if nvcc was there when it was built."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

PACKAGE = "diff_gaussian_rasterization"


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
    """How to compute where ``tensor`` lives: None on the CPU. Launches go to torch's stream."""
    if tensor.device.type != "cuda":
        return None
    stream = torch.cuda.current_stream(tensor.device).cuda_stream
    return Gpu(_cuda, tensor.device.index, stream)


def check_device(tensors: Mapping[str, Tensor | None]) -> None:
    """RuntimeError unless this build computes where the tensors are, and all are in one place."""
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    first, like = next(iter(given.items()))
    for name, tensor in given.items():
        if tensor.device != like.device:
            raise RuntimeError(
                f"{name} is on {tensor.device}, but {first} is on {like.device}: move one of them"
            )
    if like.device.type in DEVICES:
        return
    if like.device.type == "cuda":
        raise RuntimeError(
            f"{first} is on {like.device}, but this build of {PACKAGE} has no CUDA kernels: run "
            "with --device cpu, or install the CUDA toolkit (nvcc), then: make clean setup"
        )
    raise RuntimeError(f"{first} is on {like.device}; {PACKAGE} computes on {', '.join(DEVICES)}")
