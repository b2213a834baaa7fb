"""Which device a command computes on."""

from __future__ import annotations

import importlib

import pytest
import torch

from arguments_MoDE.config import Config
from training import launch
from utils.errors import UserError


@pytest.fixture
def machine(monkeypatch):
    """Pretends that torch has a GPU or not, and what the native packages were built for."""

    def pretend(gpu: bool, built: tuple[str, ...], *only: str) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        for package in launch.NATIVE:
            kinds = built if package in only or not only else ("cpu", "cuda")
            monkeypatch.setattr(importlib.import_module(package), "DEVICES", kinds)

    return pretend


def config(*experts: str, static: bool = False) -> Config:
    made = Config()
    made.hidden.experts, made.hidden.static = list(experts), static
    return made


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
    assert launch.choose_device("auto", config("hexplane")) == expected
    assert launch.choose_device("cpu", config("hexplane")) == "cpu"


def test_a_gpu_that_is_not_there_is_an_error(machine):
    machine(False, ("cpu", "cuda"))
    with pytest.raises(UserError, match="--device cuda: this PyTorch sees no GPU"):
        launch.choose_device("cuda", config("hexplane"))


def test_a_cpu_build_asked_for_cuda_is_an_error_that_names_it_and_the_remedy(machine):
    machine(True, ("cpu",))
    expected = r"diff_gaussian_rasterization.* nvcc .* make clean setup; or use --device cpu"
    with pytest.raises(UserError, match=expected):
        launch.choose_device("cuda", config("hexplane"))


def test_a_gpu_that_is_left_alone_is_noted_with_the_remedy(machine, capsys):
    machine(True, ("cpu",), "hexplane_encoder")
    assert launch.choose_device("auto", config("hexplane")) == "cpu"
    note = capsys.readouterr().err
    assert "hexplane_encoder" in note and "make clean setup" in note and "raster" not in note


def test_a_machine_without_a_gpu_is_not_told_to_build_for_one(machine, capsys):
    machine(False, ("cpu",))
    assert launch.choose_device("auto", config("hexplane")) == "cpu"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "package, experts, static, needed",
    [
        ("hash_encoder", ("hexplane", "hash"), False, True),
        ("hash_encoder", ("hexplane", "embedding"), False, False),
        ("hexplane_encoder", ("hexplane", "embedding"), False, True),
        ("hexplane_encoder", ("polynomial",), False, False),
        ("hexplane_encoder", ("hexplane",), True, False),
        ("diff_gaussian_rasterization", (), True, True),
    ],
)
def test_a_package_is_needed_where_its_expert_is(machine, package, experts, static, needed):
    machine(True, ("cpu",), package)
    run = config(*experts, static=static)
    assert launch.choose_device("auto", run) == ("cpu" if needed else "cuda")


@pytest.mark.parametrize("tf32", [False, True])
def test_rounding_of_matrix_products_is_what_the_run_says(tf32):
    flags = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [flag.allow_tf32 for flag in flags]
    run = config()
    run.opt.tf32 = tf32
    try:
        launch.set_precision(run)
        assert [flag.allow_tf32 for flag in flags] == [tf32, tf32]
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value
    assert Config().opt.tf32 is False
