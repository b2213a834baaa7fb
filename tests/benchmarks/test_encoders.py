"""The benchmarks of the encoders run, on few points, on the devices that there are."""

from __future__ import annotations

import importlib
import json
import sys

import pytest
import torch

from hash_encoder import HashGrid

SMALL = {
    "hash_grid": [("tiny", 50, HashGrid(3, 3, 2, 2, 8, 6), True)],
    "hexplane": [(50, 4, 8)],
}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=SMALL)
def benchmark(request, root, monkeypatch):
    monkeypatch.syspath_prepend(root / "benchmarks")
    module = importlib.import_module(request.param)
    monkeypatch.setattr(module, "CASES", SMALL[request.param])
    return module


def call(benchmark, monkeypatch, *flags: str) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["benchmark", "--threads", str(threads), *flags])
    benchmark.main()


@pytest.mark.parametrize("device", DEVICES)
def test_every_case_gives_milliseconds(benchmark, monkeypatch, capsys, device):
    call(benchmark, monkeypatch, "--device", device, "--repeats", "3")
    found = json.loads(capsys.readouterr().out)
    assert found["device"] == (torch.cuda.get_device_name() if device == "cuda" else "cpu")
    (case,) = found["cases"]
    for name in ("", "twin_"):
        assert 0 < case[f"{name}forward_ms"] < case[f"{name}forward_backward_ms"]


def test_a_gpu_that_is_not_there_is_named(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        call(benchmark, monkeypatch, "--device", "cuda")
    assert "sees no GPU" in capsys.readouterr().err
