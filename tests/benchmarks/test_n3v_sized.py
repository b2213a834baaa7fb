"""The benchmarks at Neural 3D Video's size run, at a tiny one, and their numbers fit together."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

TINY = "--cameras 3 --frames 4 --size 40 30 --gaussians 80 --threads 1".split()


@pytest.fixture
def benchmark(root, monkeypatch, capsys):
    """Runs a benchmark's command line; returns what it printed."""
    monkeypatch.setattr(sys, "path", [str(root / "benchmarks"), *sys.path])

    def run(name: str, *more: str) -> dict:
        spec = importlib.util.spec_from_file_location(name, root / "benchmarks" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *TINY, *more])
        module.main()
        return json.loads(capsys.readouterr().out)

    return run


def test_training_is_timed_whole_and_in_parts(benchmark):
    backward = torch.Tensor.backward
    found = benchmark("train_n3v_sized", "--iterations", "4", "--batch", "2")
    parts = "data deform raster loss backward checks density optimizer".split()
    assert sorted(found["parts_ms"]) == sorted(parts)
    assert 0 < found["ms_median"] <= found["ms_max"]
    assert found["minutes"] == pytest.approx(found["ms_mean"] * 33_000 / 60_000, abs=0.01)
    assert found["parts_ms"]["backward"] > 0 and found["peak_gb"] > 0.01
    assert (found["gaussians"], found["size"], found["device"]) == (80, [40, 30], "cpu")
    products = found["products"]
    assert products["gigaflop"] > 0 and 0 < products["share"] < 1
    ratio = products["gigaflop_per_second"] / products["peak_gigaflop_per_second"]
    assert products["of_peak"] == pytest.approx(ratio, abs=0.01)
    assert torch.Tensor.backward is backward


@pytest.mark.parametrize("experts", [["hexplane", "embedding"], ["hexplane"]])
def test_rendering_is_timed_in_motion_and_standing_still(benchmark, experts):
    found = benchmark("render_n3v_sized", "--seconds", "0.2", "--experts", *experts)
    assert found["moving"]["frames"] >= 3 and found["still"]["frames"] >= 3
    assert found["still"]["fps"] > found["moving"]["fps"] > 0
    assert sorted(found["parts_ms"]) == ["deform", "raster"]


@pytest.mark.parametrize("name", ["train_n3v_sized", "render_n3v_sized"])
def test_threads_wait_as_those_of_the_commands(root, name):
    """The variables are read once, when torch loads; from then on nobody can tell."""
    code = (
        "import os, runpy, sys\n"
        "class Torch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            print(os.environ.get('GOMP_SPINCOUNT'))\n"
        "            sys.exit()\n"
        "sys.meta_path.insert(0, Torch())\n"
        f"runpy.run_path({str(root / 'benchmarks' / f'{name}.py')!r})\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "PYTHONPATH")},
    )
    assert found.stdout.strip() == "10000", found.stderr


@pytest.mark.gpu
def test_both_run_on_a_gpu(benchmark):
    assert benchmark("train_n3v_sized", "--device", "cuda")["ms_median"] > 0
    assert benchmark("render_n3v_sized", "--device", "cuda")["moving"]["fps"] > 0


def test_the_room_is_before_all_cameras_and_the_recipe_is_the_data_sets(root, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(root / "benchmarks"), *sys.path])
    import n3v_sized

    arguments = n3v_sized.parser("").parse_args([])
    scene = n3v_sized.build_scene(arguments)
    assert len(scene.train) == 3 * 10 and len(scene.test) == 10
    assert {v.camera_index for v in scene.test} == {0}
    for view in scene.train[::10]:
        assert view.camera.validate("benchmark").sees(scene.points.xyz).mean() > 0.4
    config = n3v_sized.build_config(arguments)
    assert config.hidden.net_width == 128 and config.opt.batch_size == 2
    model = n3v_sized.build_trained(scene, config)
    assert len(model.gaussians) == arguments.gaussians and list(model.experts) == arguments.experts
