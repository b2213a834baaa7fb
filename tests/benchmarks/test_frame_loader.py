"""The frame loader's benchmark runs, on a tiny rig, and its shares are shares."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest


@pytest.fixture
def loader(root, monkeypatch):
    spec = importlib.util.spec_from_file_location(
        "frame_loader_benchmark", root / "benchmarks" / "frame_loader.py"
    )
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SIZE", (64, 48))
    return module


def test_every_kind_of_file_gives_numbers(loader, monkeypatch, capsys):
    cases = ["png:none", "jpg:disk", "mp4:auto"]
    size = ["--cameras", "3", "--frames", "5", "--gaussians", "60", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["frame_loader.py", *size, "--cases", *cases])
    loader.main()
    found = json.loads(capsys.readouterr().out)
    assert list(found["cases"]) == cases
    for case in found["cases"].values():
        assert (case["size"], case["views"]) == ([32, 24], 10)
        for epoch in (case["cold"], case["warm"]):
            assert 0 <= epoch["wait_share"] < 1 and 0 < epoch["wait_ms"] < epoch["ms"]
            assert epoch["cpu_share"] < 1


def test_frames_are_textured_so_that_decoding_costs_what_photos_cost(loader):
    pixels = loader.picture(loader.texture(0), 1)
    assert pixels.shape == (48, 64, 3) and pixels.std() > 15
    assert (pixels != loader.picture(loader.texture(0), 2)).mean() > 0.9
