"""The mixture benchmark's bookkeeping: masks, what is left to run, and the comparisons."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys

import pytest
import torch
from fake_scene import clip


@pytest.fixture(scope="module")
def mixture(root):
    spec = importlib.util.spec_from_file_location(
        "mixture_benchmark", root / "benchmarks" / "mixture.py"
    )
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def arguments(mixture, tmp_path):
    return argparse.Namespace(
        out=tmp_path, split="test", scenes=["demo"], variants=None, seeds=2, jobs=1
    )


def record(mixture, arguments, variant: str, seed: int, psnr: float, moving: float) -> None:
    path = mixture.result_path(arguments, mixture.cell_name("demo", variant, seed))
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = {"psnr": psnr, "moving": moving, "gaussians": 10, "ms": 5.0}
    path.write_text(json.dumps(numbers))


def test_first_seeds_of_everything_come_before_second_ones(mixture, arguments):
    arguments.seeds = None
    order = [seed for _, _, seed in mixture.cells(arguments)]
    routed = len(mixture.VARIANTS) - len(mixture.CONTROLS)  # controls have one seed
    assert order == [0] * len(mixture.VARIANTS) + [1] * routed + [2] * routed


def test_the_longer_run_is_made_only_when_asked_for(mixture, arguments):
    arguments.scenes = None
    assert "panoptic_half" not in {scene for scene, _, _ in mixture.cells(arguments)}
    arguments.scenes = ["panoptic_half"]
    assert {scene for scene, _, _ in mixture.cells(arguments)} == {"panoptic_half"}


def test_a_control_is_compared_over_the_seeds_that_both_have(mixture, arguments):
    for seed in (0, 1):
        record(mixture, arguments, "hexplane+hash", seed, 21.0 + 4 * seed, 17.5)
    record(mixture, arguments, "hash, plain sum", 0, 20.0, 17.0)
    assert "| whole image | +1.00 | +1.00 |" in mixture.tables(arguments)


def test_a_mixture_is_compared_with_its_best_member_in_each_column(mixture, arguments):
    for seed in (0, 1):
        record(mixture, arguments, "hexplane", seed, 20.0 + seed, 15.0)
        record(mixture, arguments, "hash", seed, 19.0, 16.0)
        record(mixture, arguments, "hexplane+hash", seed, 21.0, 17.5)
    text = mixture.tables(arguments)
    rows = [line for line in text.splitlines() if line.startswith(("| whole", "| moving"))]
    assert rows[0].split("|")[2].strip() == "+0.50" and rows[1].split("|")[2].strip() == "+1.50"
    assert "20.50 ± 0.71" in text


def test_a_mixture_without_all_its_members_is_not_compared(mixture, arguments):
    record(mixture, arguments, "hexplane", 0, 20.0, 15.0)
    record(mixture, arguments, "hexplane+hash", 0, 21.0, 17.5)
    assert "hexplane+hash - its best member: not measured" in mixture.tables(arguments)


def test_the_moving_region_is_where_a_camera_s_pixels_change(mixture):
    views = clip("a", 0, frames=6)  # all grey, brighter with every frame: std 7.5 / 255 = 0.029
    (mask,) = mixture.moving_masks(views).values()
    assert not mask.any()
    store = views[0].store
    flat = store.get

    def with_square(source: int, frame: int) -> torch.Tensor:
        image = flat(source, frame)
        image[3:6, 4:9] = 40 * frame
        return image

    store.get = with_square
    for view in views:
        object.__setattr__(view, "store", store)
    (mask,) = mixture.moving_masks(views).values()
    assert mask[3:6, 4:9].all() and int(mask.sum()) == 15


def test_a_camera_with_few_frames_has_no_moving_region(mixture):
    assert mixture.moving_masks(clip("a", 0, frames=4)) == {}
