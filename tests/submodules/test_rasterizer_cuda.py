"""What only the CUDA path of the rasteriser has: batches, buckets, shared splats, orders."""

from __future__ import annotations

import pytest
import torch
from rasterizer_scenes import (
    random_cameras,
    random_gaussians,
    relative_error,
    render_with_gradients,
)

import diff_gaussian_rasterization
import emulated
from diff_gaussian_rasterization import cuda, rasterize, reference
from kernels import KERNELS, choose

PACKAGE = "diff-gaussian-rasterization"


@pytest.fixture(autouse=True, params=KERNELS[1:])
def kernels(request, monkeypatch) -> str:
    """The CUDA sources only, emulated or on a GPU."""
    choose(request.param, monkeypatch, diff_gaussian_rasterization, request.module, ["rasterize"])
    return request.param


def assert_matches(gaussians: dict, cameras: dict, function) -> None:
    """Images and gradients of the CUDA path are those of ``function``, in float64."""
    out, gradients = render_with_gradients(rasterize, gaussians, cameras)
    expected, expected_gradients = render_with_gradients(function, gaussians, cameras)
    for a, e in zip(out, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-10)
    for name, e in expected_gradients.items():
        assert relative_error(gradients[name], e) < 1e-8, name


def faint(count: int, **options) -> dict:
    """Gaussians so faint that hundreds of them lie before a pixel stops."""
    gaussians = random_gaussians(count, dtype=torch.float64, **options)
    gaussians["opacities"] = (gaussians["opacities"].detach() * 0.03 + 0.005).requires_grad_()
    return gaussians


@pytest.mark.parametrize("count", [31, 32, 33, 255, 256, 257, 520])
def test_tiles_with_as_many_splats_as_buckets_and_batches_have(count):
    gaussians = faint(count)
    gaussians["means3D"] = (gaussians["means3D"].detach() * 0.2 + 1.6).requires_grad_()
    gaussians["scales"] = (gaussians["scales"].detach() * 3).requires_grad_()
    cameras = random_cameras(width=16, height=16, dtype=torch.float64)
    assert_matches(gaussians, cameras, reference.rasterize)


def test_splats_over_more_tiles_than_one_thread_lists():
    gaussians = random_gaussians(40, dtype=torch.float64)
    scales = gaussians["scales"].detach().clone()
    scales[:, ::3] *= 20
    gaussians["scales"] = scales.requires_grad_()
    cameras = random_cameras(2, 150, 110, dtype=torch.float64)
    out = rasterize(**gaussians, **cameras)
    assert (out.radii > 40).any() and (out.radii < 20).any()
    assert_matches(gaussians, cameras, reference.rasterize)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 15, 16, 19, 20, 40])
def test_groups_of_features_of_every_size(channels):
    gaussians = random_gaussians(50, dtype=torch.float64, channels=channels)
    cameras = random_cameras(width=40, height=30, channels=channels, dtype=torch.float64)
    assert_matches(gaussians, cameras, reference.rasterize)


def test_one_sort_and_two_sorts_give_the_same_bits(monkeypatch):
    gaussians, cameras = random_gaussians(300, batch=2), random_cameras(2)
    two, two_gradients = render_with_gradients(rasterize, gaussians, cameras)
    forward = cuda.forward
    monkeypatch.setattr(cuda, "forward", lambda *a, **k: forward(*a, **k, one_sort=True))
    one, one_gradients = render_with_gradients(rasterize, gaussians, cameras)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert all(torch.equal(one_gradients[k], v) for k, v in two_gradients.items())


def test_two_runs_give_the_same_bits():
    gaussians, cameras = random_gaussians(2000), random_cameras(2, 100, 60)
    first, first_gradients = render_with_gradients(rasterize, gaussians, cameras)
    second, second_gradients = render_with_gradients(rasterize, gaussians, cameras)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(second_gradients[k], v) for k, v in first_gradients.items())


@pytest.mark.parametrize("order", [1, 7])
def test_the_order_in_which_threads_run_changes_no_bit(order, kernels):
    if kernels != "emulated":
        pytest.skip("only the emulation can choose the order")
    gaussians, cameras = random_gaussians(400), random_cameras(2, 60, 40)
    first, first_gradients = render_with_gradients(rasterize, gaussians, cameras)
    try:
        emulated.set_order(PACKAGE, order)
        other, gradients = render_with_gradients(rasterize, gaussians, cameras)
    finally:
        emulated.set_order(PACKAGE, 0)
    assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert all(torch.equal(gradients[k], v) for k, v in first_gradients.items())


def test_nothing_is_kept_where_no_gradient_is_wanted(monkeypatch):
    states = []
    forward = cuda.forward
    monkeypatch.setattr(
        cuda, "forward", lambda *a, **k: states.append(forward(*a, **k)) or states[-1]
    )
    gaussians = {k: t.detach() for k, t in random_gaussians(30).items()}
    rasterize(**gaussians, **random_cameras())
    assert states == [None]


def test_more_pairs_than_can_be_counted_are_refused(monkeypatch):
    monkeypatch.setattr(cuda, "MAX_PAIRS", 10)
    with pytest.raises(RuntimeError, match="splat-tile pairs are more than"):
        rasterize(**random_gaussians(50), **random_cameras())


def test_float32_agrees_with_the_cpu_path():
    gaussians, cameras = random_gaussians(3000), random_cameras(2, 120, 80)
    out, gradients = render_with_gradients(rasterize, gaussians, cameras)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diff_gaussian_rasterization.devices, "gpu_of", lambda tensor: None)
        expected, expected_gradients = render_with_gradients(
            diff_gaussian_rasterization.rasterize, gaussians, cameras
        )
    for a, e in zip(out[:3], expected[:3], strict=True):
        assert relative_error(a, e) < 1e-5
    assert torch.equal(out.radii, expected.radii)
    for name, e in expected_gradients.items():
        assert relative_error(gradients[name], e) < 1e-4, name
