"""Gradients of the rasteriser: the twin's, finite differences, batches, numbers of threads."""

from __future__ import annotations

import pytest
import torch
from rasterizer_scenes import (
    image_loss,
    random_cameras,
    random_gaussians,
    raw_gaussians,
    relative_error,
    render_with_gradients,
)

import diff_gaussian_rasterization
from diff_gaussian_rasterization import operator, rasterize, reference
from kernels import KERNELS, choose


@pytest.fixture(autouse=True, params=KERNELS)
def kernels(request, monkeypatch) -> str:
    """Every test runs on every path of the operator."""
    choose(request.param, monkeypatch, diff_gaussian_rasterization, request.module, ["rasterize"])
    return request.param


TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}


def assert_gradients_match_twin(
    gaussians, cameras, dtype, parts="color alpha depth", **options
) -> None:
    _, actual = render_with_gradients(rasterize, gaussians, cameras, parts, **options)
    _, expected = render_with_gradients(reference.rasterize, gaussians, cameras, parts, **options)
    for name, value in expected.items():
        assert actual[name].shape == value.shape
        assert relative_error(actual[name], value) <= TOLERANCE[dtype], name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sh_degree", [0, 1, 2, 3])
def test_gradients_match_the_twin(dtype, sh_degree):
    gaussians = random_gaussians(60, dtype=dtype)
    cameras = random_cameras(dtype=dtype, sh_degree=sh_degree)
    assert_gradients_match_twin(gaussians, cameras, dtype)


@pytest.mark.parametrize("parts", ["color", "alpha", "depth", "color alpha"])
def test_each_image_has_its_own_gradient(parts):
    gaussians = random_gaussians(60, dtype=torch.float64)
    cameras = random_cameras(dtype=torch.float64)
    assert_gradients_match_twin(gaussians, cameras, torch.float64, parts)


@pytest.mark.parametrize("precomputed_cov", [False, True])
def test_images_and_gradients_of_raw_parameters_match_the_twin(precomputed_cov):
    raw = raw_gaussians(60, dtype=torch.float64, precomputed_cov=precomputed_cov)
    cameras = random_cameras(2, dtype=torch.float64) | dict(raw=True, scale_modifier=1.3)
    out, gradients = render_with_gradients(rasterize, raw, cameras)
    expected, expected_gradients = render_with_gradients(reference.rasterize, raw, cameras)
    assert relative_error(out.color, expected.color) < 1e-12
    for name, e in expected_gradients.items():
        assert relative_error(gradients[name], e) < 1e-9, name


def test_raw_parameters_that_are_extreme_are_culled_or_drawn_as_the_twin_does():
    raw = {k: t.detach().clone() for k, t in raw_gaussians(12).items()}
    raw["scales"][0, 0], raw["scales"][0, 1] = 100.0, -200.0  # exp: infinite, zero
    raw["opacities"][0, 2], raw["opacities"][0, 3] = 200.0, -200.0
    raw["rotations"][0, 4] = 0.0
    raw["opacities"][0, 5] = torch.nan
    cameras = random_cameras() | dict(raw=True)
    out, expected = rasterize(**raw, **cameras), reference.rasterize(**raw, **cameras)
    assert out.radii[0, 0] == 0 and out.radii[0, 5] == 0
    assert out.color.isfinite().all()
    assert relative_error(out.color, expected.color) < 1e-5
    assert torch.equal(out.radii, expected.radii)


def test_gradients_under_a_scale_modifier_match_the_twin():
    gaussians = random_gaussians(60, dtype=torch.float64)
    cameras = random_cameras(dtype=torch.float64)
    assert_gradients_match_twin(gaussians, cameras, torch.float64, scale_modifier=1.3)


@pytest.mark.parametrize("channels", [1, 3, 7, 32])
def test_gradients_of_any_number_of_channels_match_the_twin(channels):
    gaussians = random_gaussians(40, dtype=torch.float64, channels=channels)
    cameras = random_cameras(dtype=torch.float64, channels=channels)
    assert_gradients_match_twin(gaussians, cameras, torch.float64)


def test_gradients_of_precomputed_covariance_match_the_twin():
    gaussians = random_gaussians(50, dtype=torch.float64, precomputed_cov=True)
    assert_gradients_match_twin(gaussians, random_cameras(dtype=torch.float64), torch.float64)


def test_gradients_where_pixels_stop_and_alpha_is_capped_match_the_twin():
    gaussians = random_gaussians(150, dtype=torch.float64)
    with torch.no_grad():
        gaussians["opacities"].copy_(0.97 + 0.03 * gaussians["opacities"])
        gaussians["scales"].mul_(3)
    assert_gradients_match_twin(gaussians, random_cameras(dtype=torch.float64), torch.float64)


@pytest.mark.parametrize("count", [63, 64, 65, 128, 130, 600])
def test_lists_around_the_sizes_of_a_batch_match_the_twin(count):
    """Kernels take splats of a tile, and Gaussians of a chunk, 64 at a time."""
    gaussians = random_gaussians(count, dtype=torch.float64, channels=3)
    with torch.no_grad():
        gaussians["opacities"].mul_(0.05)  # no pixel stops
        gaussians["scales"].mul_(4)
    cameras = random_cameras(width=16, height=16, dtype=torch.float64)
    assert_gradients_match_twin(gaussians, cameras, torch.float64)
    # Other kernels: nothing is kept for gradients, and only those of the colours are gathered.
    frozen = {name: t.detach() for name, t in gaussians.items()}
    image = rasterize(**frozen, **cameras).color
    assert relative_error(image, reference.rasterize(**frozen, **cameras).color) <= 1e-12
    leaf = {"colors": frozen.pop("colors").requires_grad_()}
    by_color = [
        torch.autograd.grad(image_loss(draw(**frozen, **leaf, **cameras)), leaf["colors"])[0]
        for draw in (rasterize, reference.rasterize)
    ]
    assert relative_error(*by_color) <= TOLERANCE[torch.float64]


def test_gradients_outside_the_frustum_margin_match_the_twin():
    gaussians = random_gaussians(60, dtype=torch.float64)
    with torch.no_grad():
        gaussians["means3D"][..., :2].mul_(3)
        gaussians["scales"].mul_(4)
    cameras = random_cameras(dtype=torch.float64)
    ratio = gaussians["means3D"][..., :2] / gaussians["means3D"][..., 2:]
    assert bool((ratio.abs() > 1.4 * cameras["tanfov"]).any())
    assert_gradients_match_twin(gaussians, cameras, torch.float64)


def central_differences(function, tensor: torch.Tensor, step: float = 1e-6) -> torch.Tensor:
    """Derivative of a scalar function of no arguments by every element of `tensor`."""
    flat = tensor.detach().view(-1)
    result = torch.empty_like(flat)
    for i in range(flat.numel()):
        value = float(flat[i])
        flat[i] = value + step
        above = float(function())
        flat[i] = value - step
        below = float(function())
        flat[i] = value
        result[i] = (above - below) / (2 * step)
    return result.view_as(tensor)


@pytest.mark.parametrize("source", ["sh", "colors", "cov3D"])
def test_gradients_match_finite_differences(source):
    gaussians = random_gaussians(
        6,
        dtype=torch.float64,
        channels=2 if source == "colors" else None,
        precomputed_cov=source == "cov3D",
        seed=3,
    )
    cameras = random_cameras(
        width=32, height=24, dtype=torch.float64, channels=2 if source == "colors" else 3
    )
    with torch.no_grad():
        gaussians["means3D"].mul_(0.5).add_(torch.tensor([0.0, 0.0, 1.0]))  # inside the frustum

    def loss() -> torch.Tensor:
        return image_loss(rasterize(**gaussians, **cameras, num_threads=1))

    actual = torch.autograd.grad(loss(), list(gaussians.values()))
    with torch.no_grad():
        for (name, tensor), gradient in zip(gaussians.items(), actual, strict=True):
            expected = central_differences(loss, tensor)
            assert float(expected.abs().max()) > 0, name
            assert relative_error(gradient, expected) <= 1e-5, name


def test_means2d_gradient_is_by_normalised_device_coordinates():
    """Moving all centres by d in NDC is adding d times the w row to a row of the projection."""
    gaussians = random_gaussians(20, dtype=torch.float64)
    cameras = random_cameras(dtype=torch.float64)
    _, gradients = render_with_gradients(rasterize, gaussians, cameras)
    matrix = cameras["projmatrices"].clone()
    for axis in (0, 1):
        values = []
        for step in (1e-6, -1e-6):
            cameras["projmatrices"] = matrix.clone()
            cameras["projmatrices"][..., axis] += step * matrix[..., 3]
            values.append(float(image_loss(rasterize(**gaussians, **cameras))))
        slope = (values[0] - values[1]) / 2e-6
        assert float(gradients["means2D"][..., axis].sum()) == pytest.approx(slope, rel=1e-4)
    assert not gradients["means2D"][..., 2].any()


def test_only_what_is_asked_for_gets_a_gradient():
    gaussians = {k: t.detach() for k, t in random_gaussians(20).items()}
    gaussians["opacities"].requires_grad_()
    rasterize(**gaussians, **random_cameras()).color.sum().backward()
    assert gaussians["opacities"].grad is not None
    assert all(t.grad is None for k, t in gaussians.items() if k != "opacities")
    out = rasterize(**{k: t.detach() for k, t in gaussians.items()}, **random_cameras())
    assert not out.color.requires_grad


def test_unused_coefficients_get_zero_gradient():
    gaussians = random_gaussians(20)
    _, gradients = render_with_gradients(rasterize, gaussians, random_cameras(sh_degree=1))
    assert gradients["shs"][:, :, :4].any() and not gradients["shs"][:, :, 4:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_thread_count_changes_no_bit(dtype):
    gaussians = random_gaussians(20000, dtype=dtype)
    cameras = random_cameras(2, 150, 90, dtype=dtype)
    first, first_gradients = render_with_gradients(rasterize, gaussians, cameras, num_threads=1)
    for threads in (2, 3, 7):
        out, gradients = render_with_gradients(rasterize, gaussians, cameras, num_threads=threads)
        assert all(torch.equal(a, b) for a, b in zip(first, out, strict=True)), threads
        for name, value in first_gradients.items():
            assert torch.equal(value, gradients[name]), (threads, name)


def test_shared_gaussians_get_the_sum_of_the_views():
    shared = random_gaussians(50, dtype=torch.float64)
    cameras = random_cameras(3, dtype=torch.float64)
    own = {
        k: t.detach().repeat(3, *[1] * (t.dim() - 1)).requires_grad_() for k, t in shared.items()
    }
    _, actual = render_with_gradients(rasterize, shared, cameras)
    _, per_view = render_with_gradients(rasterize, own, cameras)
    for name in shared:
        assert actual[name].shape[0] == 1
        assert relative_error(actual[name][0], per_view[name].sum(0)) <= 1e-12, name
    assert torch.equal(actual["means2D"], per_view["means2D"])


def test_expanded_gaussians_are_read_in_place_and_get_the_same_gradient():
    shared = random_gaussians(50, dtype=torch.float64)
    cameras = random_cameras(3, dtype=torch.float64)
    _, expected = render_with_gradients(rasterize, shared, cameras)
    expanded = {k: t.expand(3, *t.shape[1:]) for k, t in shared.items()}
    for name, tensor in expanded.items():
        inside = operator._per_view(tensor)
        assert inside.shape[0] == 1 and inside.data_ptr() == shared[name].data_ptr(), name
    loss = image_loss(rasterize(**expanded, **cameras))
    for (name, _), gradient in zip(
        shared.items(), torch.autograd.grad(loss, list(shared.values())), strict=True
    ):
        assert relative_error(gradient, expected[name]) <= 1e-12, name


def test_views_of_a_batch_are_read_where_they_lie():
    every_other = random_gaussians(30, dtype=torch.float64, batch=6)["means3D"].detach()[::2]
    assert operator._per_view(every_other).data_ptr() == every_other.data_ptr()
    assert operator._per_view(every_other).stride() == every_other.stride()
    gaussians = {k: t.detach() for k, t in random_gaussians(30, dtype=torch.float64).items()}
    cameras = random_cameras(3, dtype=torch.float64)
    strided = rasterize(**(gaussians | {"means3D": every_other}), **cameras)
    copied = rasterize(**(gaussians | {"means3D": every_other.clone()}), **cameras)
    assert torch.equal(strided.color, copied.color)


def test_gradient_images_need_not_be_contiguous():
    gaussians, cameras = random_gaussians(20), random_cameras()
    out = rasterize(**gaussians, **cameras)
    weight = torch.rand(out.color.shape)
    scrambled = weight.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    first = torch.autograd.grad(out.color, gaussians["shs"], weight, retain_graph=True)
    second = torch.autograd.grad(out.color, gaussians["shs"], scrambled)
    assert torch.equal(first[0], second[0])
