"""Which device a command computes on."""

from __future__ import annotations

import pytest
import torch

from training import launch
from utils.errors import UserError


@pytest.fixture
def machine(monkeypatch):
    """Pretends that torch has a GPU or not, and what the native packages were built for."""

    def pretend(gpu: bool, built: tuple[str, ...]) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        for package in launch.NATIVE:
            monkeypatch.setattr(package, "DEVICES", built)

    return pretend


@pytest.mark.parametrize(
    "gpu, built, expected",
    [
        (False, ("cpu",), "cpu"),
        (True, ("cpu",), "cpu"),
        (False, ("cpu", "cuda"), "cpu"),
        (True, ("cpu", "cuda"), "cuda"),
    ],
)
def test_auto_takes_a_gpu_only_where_everything_can_use_it(machine, gpu, built, expected):
    machine(gpu, built)
    assert launch.choose_device("auto") == expected
    assert launch.choose_device("cpu") == "cpu"


def test_a_gpu_that_is_not_there_is_an_error(machine):
    machine(False, ("cpu", "cuda"))
    with pytest.raises(UserError, match="--device cuda: this PyTorch sees no GPU"):
        launch.choose_device("cuda")


def test_a_cpu_build_asked_for_cuda_is_an_error_that_names_it(machine):
    machine(True, ("cpu",))
    with pytest.raises(UserError, match="diff_gaussian_rasterization.* use --device cpu"):
        launch.choose_device("cuda")
