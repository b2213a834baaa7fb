"""Evaluation without files: which views, which numbers, and that speed is speed alone."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from fake_scene import GreyStore, clip

from training import evaluation
from training.evaluation import Perceptual, compare, evaluate_views, evenly_spaced, measure_fps
from utils.errors import UserError
from utils.lpips import LPIPS, LpipsUnavailable
from utils.metrics import psnr, ssim, ssim_map, to_8bit


@pytest.mark.parametrize(
    ("count", "limit", "expected"),
    [
        (5, None, [0, 1, 2, 3, 4]),
        (5, 9, [0, 1, 2, 3, 4]),
        (9, 3, [0, 4, 8]),
        (300, 4, [0, 100, 199, 299]),
        (7, 1, [3]),
        (0, 3, []),
    ],
)
def test_views_are_evenly_spaced_with_both_ends(count, limit, expected):
    assert evenly_spaced(count, limit) == expected


def test_no_view_is_taken_twice():
    for count in range(1, 60):
        for limit in range(1, 60):
            chosen = evenly_spaced(count, limit)
            assert len(set(chosen)) == len(chosen) == min(count, limit)
            assert all(0 <= i < count for i in chosen)


def test_float_and_8_bit_differ_only_by_rounding():
    target = torch.rand(3, 30, 40)
    image = target + 0.4 / 255
    row = compare(image, target)
    assert row["psnr"] == pytest.approx(psnr(image.clamp(0, 1), target).item())
    rounded = (image.clamp(0, 1) * 255).round() / 255
    assert row["psnr_8bit"] == pytest.approx(psnr(rounded, target).item())
    assert row["ssim_8bit"] == pytest.approx(ssim(rounded, target).item())
    assert list(row)[-1] == "psnr"


def test_renders_beyond_white_count_as_white():
    target = torch.ones(3, 12, 12)
    assert compare(target + 3, target)["psnr"] == 100


def test_evaluation_is_the_mean_over_the_chosen_views_only():
    views = clip("cam", 0, frames=9)
    seen = []

    def render(view):
        seen.append(view.frame_index)
        off = 0.1 if view.frame_index == 4 else 0.01
        return view.image().permute(2, 0, 1) / 255 + off

    result = evaluate_views(render, views, limit=3)
    assert seen == [0, 4, 8]
    assert result["psnr"] == pytest.approx((40 + 20 + 40) / 3, abs=1e-2)
    assert 0 < result["ssim"] < 1 and result["views"] == 3


def test_evaluation_without_views_has_no_numbers():
    assert evaluate_views(lambda view: None, []) == {"views": 0}


def test_evaluation_builds_no_graph():
    weight = torch.ones((), requires_grad=True)
    images = []

    def render(view):
        images.append(view.image().permute(2, 0, 1) / 255 * weight)
        return images[-1]

    evaluate_views(render, clip("cam", 0))
    assert not any(image.requires_grad for image in images)


def test_speed_is_of_rendering_alone(monkeypatch):
    monkeypatch.setattr(GreyStore, "get", lambda *_: pytest.fail("ground truth was read"))
    calls = []

    def render(view):
        calls.append(view.frame_index)
        time.sleep(0.2 if len(calls) == 1 else 0.01)  # the first frame compiles, allocates ...

    fps, frames = measure_fps(render, clip("cam", 0, frames=8), "cpu")
    assert frames == 8
    assert len(calls) == 8 + evaluation.WARM_UP_FRAMES
    assert 50 < fps <= 100


def test_speed_of_a_slow_model_is_measured_on_few_frames():
    fps, frames = measure_fps(lambda view: time.sleep(0.02), clip("cam", 0, 50), "cpu", seconds=0.1)
    assert 3 <= frames <= 10 and 0 < fps <= 50


def test_speed_of_a_single_view():
    _, frames = measure_fps(lambda view: None, clip("cam", 0, 1), "cpu")
    assert frames == 3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_render_that_is_not_finite_is_named(bad):
    views, images = clip("cam03", 0)[:3], torch.rand(3, 3, 4, 5)
    evaluation.refuse_unless(evaluation.finite(images), views)
    images[2, 1, 3, 4] = bad
    with pytest.raises(UserError, match="cam03/0002.*not finite"):
        evaluation.refuse_unless(evaluation.finite(images), views)


# ---- several views at once -----------------------------------------------------------------------


def test_views_of_one_time_and_size_are_taken_together_up_to_the_limit():
    views = [*clip("a", 0, frames=2), *clip("b", 1, frames=2), *clip("c", 2, frames=2)]
    views += [*clip("wide", 3, frames=1, width=60), *clip("high", 4, frames=1, height=50)]
    assert evaluation.together(views, 4) == [[0, 2, 4], [1, 3, 5], [6], [7]]
    assert evaluation.together(views, 2) == [[0, 2], [4], [1, 3], [5], [6], [7]]
    assert evaluation.together(views, 1) == [[0], [2], [4], [1], [3], [5], [6], [7]]


def test_measures_are_read_as_the_numbers_that_each_row_has():
    rows = [{"a": torch.tensor(1.5)}, {}, {"a": torch.tensor(2.5), "b": torch.tensor(-1.0)}]
    expected = [{"a": 1.5}, {}, {"a": 2.5, "b": -1.0}]
    assert evaluation.as_numbers(rows) == expected
    assert evaluation.as_numbers(rows, evaluation.stacked(rows)) == expected
    assert evaluation.as_numbers([{}]) == [{}] and evaluation.as_numbers([]) == []


@pytest.fixture
def random_alex(monkeypatch):
    """AlexNet with random weights stands for the true ones; VGG is not available."""

    def load(net, weights=None, device="cpu"):
        if net == "vgg":
            raise LpipsUnavailable("not available because of the test")
        torch.manual_seed(0)
        model = LPIPS(net)
        for parameter in model.parameters():
            torch.nn.init.uniform_(parameter, 0, 0.1)
        return model

    monkeypatch.setattr(evaluation, "load_lpips", load)


def test_lpips_reports_both_conventions_and_why_a_network_is_missing(random_alex):
    perceptual = Perceptual(("alex", "vgg"), "cpu")
    views = clip("cam", 0, frames=3)
    assert perceptual.choose(views) == {"alex": {0, 1, 2}}
    row = perceptual.compare(torch.rand(3, 40, 40), torch.rand(3, 40, 40), ["alex"])
    assert row["lpips_alex"] > 0 and row["lpips_alex_legacy"] > 0
    assert row["lpips_alex"] != row["lpips_alex_legacy"]
    assert perceptual.summary([row, {}]) == {
        "lpips": row["lpips_alex"],
        "lpips_alex_views": 1,
        "lpips_reason": "not available because of the test",
    }


def test_lpips_of_tiny_images_is_a_reason(random_alex):
    perceptual = Perceptual(("alex",), "cpu")
    row = perceptual.compare(torch.rand(3, 20, 40), torch.rand(3, 20, 40), ["alex"])
    summary = perceptual.summary([row])
    assert row == {} and summary["lpips"] is None
    assert "too few" in summary["lpips_reason"]


def test_a_cpu_compares_few_large_images(random_alex, monkeypatch):
    monkeypatch.setitem(evaluation.LPIPS_CPU_PIXELS, "alex", 3 * 48 * 36)
    perceptual = Perceptual(("alex",), "cpu")
    assert perceptual.choose(clip("cam", 0, frames=9)) == {"alex": {0, 4, 8}}


def test_lpips_that_was_not_asked_for_says_so():
    summary = Perceptual((), "cpu").summary([])
    assert summary["lpips"] is None and "not asked for" in summary["lpips_reason"]


# ---- masks --------------------------------------------------------------------------------------


def masked_pair() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A render, the truth, and a mask whose hidden part is far off in both."""
    target = torch.rand(3, 30, 40)
    image = (target + 0.05 * torch.randn_like(target)).clamp(0, 1)
    mask = torch.ones(1, 30, 40, dtype=torch.bool)
    mask[:, 8:20, 10:25] = False
    return torch.where(mask, image, 1 - target), target, mask


def test_masked_metrics_are_of_the_counted_pixels_alone():
    image, target, mask = masked_pair()
    row = compare(image, target, mask)
    counted = mask[0].numpy()
    error = (image - target).double().numpy()[:, counted]
    assert row["psnr"] == pytest.approx(-10 * np.log10((error**2).mean()), abs=1e-4)
    rounded = (to_8bit(image).double() / 255 - target).numpy()[:, counted]
    assert row["psnr_8bit"] == pytest.approx(-10 * np.log10((rounded**2).mean()), abs=1e-4)
    filled = torch.where(mask, image, target)
    assert row["ssim"] == pytest.approx(ssim_map(filled, target)[0].numpy()[:, counted].mean())
    assert row["ssim"] < ssim(filled, target).item()  # pixels that are equal by force do not help
    assert list(row) == list(compare(image, target))


def test_what_a_render_has_where_nothing_counts_is_without_effect():
    image, target, mask = masked_pair()
    assert compare(image, target, mask) == compare(torch.where(mask, image, 0.3), target, mask)


def test_a_view_without_a_pixel_that_counts_has_no_numbers():
    image, target, mask = masked_pair()
    assert compare(image, target, torch.zeros_like(mask)) == {}


def test_evaluation_of_masked_views_says_so_and_leaves_out_empty_ones(monkeypatch):
    masks = {0: None, 1: torch.zeros(36, 48, dtype=torch.bool), 2: torch.zeros(36, 48) == 0}
    monkeypatch.setattr(GreyStore, "mask", lambda self, source, frame: masks[frame])
    offsets = [0.1, 0.5, 0.01]
    result = evaluate_views(
        lambda view: view.image().permute(2, 0, 1) / 255 + offsets[view.frame_index],
        clip("cam", 0, frames=3),
    )
    assert result["psnr"] == pytest.approx((20 + 40) / 2, abs=1e-2)
    assert result["views"] == 2 and result["masked"] is True
