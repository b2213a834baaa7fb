"""The same tests for every path of an operator: CPU, CUDA kernels emulated, CUDA on a GPU.

A test file asks for it with one fixture:

    @pytest.fixture(autouse=True, params=KERNELS)
    def kernels(request, monkeypatch):
        choose(request.param, monkeypatch, hexplane_encoder, request.module, ["encode"])

A test that is about some of them only is marked ``@only("cpu")``.
``emulated`` computes on CPU tensors with the CUDA sources compiled against the emulated GPU;
``cuda`` moves the tensors to the GPU and the results back: tests need not know where they run.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import emulated

KERNELS = ["cpu", "emulated", pytest.param("cuda", marks=pytest.mark.gpu)]


def only(*kinds: str) -> pytest.MarkDecorator:
    """For tests of some paths, or of what no path has a part in."""
    return pytest.mark.parametrize("kernels", kinds, indirect=True)


def folder_of(package: ModuleType) -> str:
    """Name of the package's folder in ``submodules``."""
    return package.__name__.replace("_", "-")


def choose(
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    package: ModuleType,
    tests: ModuleType,
    functions: Sequence[str],
) -> None:
    """Makes ``functions``, imported into the module ``tests``, compute with kernels of a kind."""
    if kind == "emulated":
        devices = importlib.import_module(f"{package.__name__}.devices")
        gpu = devices.Gpu(emulated.load(folder_of(package)), 0, 0)
        monkeypatch.setattr(devices, "gpu_of", lambda tensor: gpu)
    elif kind == "cuda":
        if "cuda" not in package.DEVICES:
            pytest.fail(f"there is a GPU, but {package.__name__} was built without CUDA")
        for name in functions:
            monkeypatch.setattr(tests, name, on_gpu(getattr(tests, name)))


def on_gpu(function: Callable) -> Callable:
    """``function`` with all its tensors moved to the GPU and its results back, differentiably."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = function(*_moved(args, "cuda"), **_moved(kwargs, "cuda"))
        return _moved(result, "cpu")

    return wrapped


def _moved(value: Any, device: str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device) if value.device.type in ("cpu", "cuda") else value
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_moved(item, device) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(item, device) for item in value)
    return value


def same_bits_on_gpu(function: Callable[[], Sequence[Tensor]]) -> bool:
    """Whether two runs give equal bits, for results that are meant to be deterministic."""
    first, second = function(), function()
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
