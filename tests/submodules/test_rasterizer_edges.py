"""Values that break rasterisers: each is drawn as the twin draws it, or culled without a trace."""

from __future__ import annotations

import os
import threading

import pytest
import torch
from rasterizer_scenes import random_cameras, random_gaussians, render_with_gradients

import diff_gaussian_rasterization
from diff_gaussian_rasterization import rasterize, reference
from kernels import KERNELS, choose


@pytest.fixture(autouse=True, params=KERNELS)
def kernels(request, monkeypatch) -> str:
    """Every test runs on every path of the operator."""
    choose(request.param, monkeypatch, diff_gaussian_rasterization, request.module, ["rasterize"])
    return request.param


NAN, INF = float("nan"), float("inf")
VICTIM = 7  # index of the poisoned Gaussian


def poisoned(field: str, value, count: int = 30) -> dict[str, torch.Tensor]:
    gaussians = random_gaussians(count)
    with torch.no_grad():
        gaussians[field][0, VICTIM] = torch.as_tensor(value)
    return gaussians


def without_victim(gaussians: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    keep = [i for i in range(gaussians["means3D"].shape[1]) if i != VICTIM]
    return {k: t.detach()[:, keep].clone().requires_grad_() for k, t in gaussians.items()}


NOT_FINITE = [
    ("means3D", [NAN, 0.0, 4.0]),
    ("means3D", [INF, 0.0, 4.0]),
    ("means3D", [0.0, -INF, 4.0]),
    ("means3D", [0.0, 0.0, NAN]),
    ("means3D", [0.0, 0.0, INF]),
    ("means3D", [3e38, 3e38, 3e38]),
    ("opacities", NAN),
    ("opacities", INF),
    ("opacities", -INF),
    ("scales", [NAN, 0.1, 0.1]),
    ("scales", [INF, 0.1, 0.1]),
    ("scales", [1e20, 1e20, 1e20]),
    ("scales", [3e38, 0.1, 0.1]),
    ("rotations", [NAN, 0.0, 0.0, 1.0]),
    ("rotations", [INF, 0.0, 0.0, 1.0]),
    ("rotations", [1e30, 1e30, 0.0, 1.0]),
    ("shs", NAN),
    ("shs", INF),
    ("shs", 3e38),
]


@pytest.mark.parametrize(("field", "value"), NOT_FINITE)
def test_a_gaussian_that_is_not_finite_leaves_no_trace(field, value):
    gaussians, cameras = poisoned(field, value), random_cameras()
    out, gradients = render_with_gradients(rasterize, gaussians, cameras)
    clean, clean_gradients = render_with_gradients(rasterize, without_victim(gaussians), cameras)
    assert int(out.radii[0, VICTIM]) == 0
    for name in ("color", "alpha", "depth"):
        assert torch.equal(getattr(out, name), getattr(clean, name)), name
    keep = [i for i in range(30) if i != VICTIM]
    for name, gradient in gradients.items():
        assert not gradient[0, VICTIM].any(), name
        assert torch.equal(gradient[0, keep], clean_gradients[name][0]), name


EXTREME = [
    ("means3D", [1e-42, -1e-42, 4.0]),  # denormal
    ("means3D", [0.0, 0.0, -4.0]),  # behind
    ("means3D", [1e30, 0.0, 4.0]),  # far to the side
    ("means3D", [1e5, -1e5, 4.0]),
    ("means3D", [0.0, 0.0, 1e6]),
    ("opacities", 0.0),
    ("opacities", 1.0),
    ("opacities", 1e-42),
    ("opacities", 1.0 / 255.0),
    ("opacities", 0.99),
    ("opacities", -0.5),
    ("opacities", 7.0),
    ("scales", [0.0, 0.0, 0.0]),
    ("scales", [1e-42, 1e-42, 1e-42]),
    ("scales", [1e4, 1e4, 1e4]),
    ("scales", [-0.1, 0.1, 0.1]),
    ("rotations", [0.0, 0.0, 0.0, 0.0]),
    ("rotations", [1e-42, 0.0, 0.0, 0.0]),
    ("shs", 1e-42),
    ("shs", -1e6),
]


@pytest.mark.parametrize(("field", "value"), EXTREME)
def test_an_extreme_value_is_drawn_as_the_twin_draws_it(field, value):
    gaussians, cameras = poisoned(field, value), random_cameras()
    out, gradients = render_with_gradients(rasterize, gaussians, cameras)
    with torch.no_grad():
        twin = reference.rasterize(**gaussians, **cameras)
    # A radius is rounded up: a last bit of float32 is a pixel where radii are in the 100,000s.
    assert ((out.radii - twin.radii).abs() <= 1e-5 * twin.radii).all()
    for name in ("color", "alpha", "depth"):
        expected = getattr(twin, name)
        scale = max(1.0, float(expected.abs().max()))
        assert float((getattr(out, name).detach() - expected).abs().max()) <= 1e-5 * scale, name
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_an_opacity_far_above_1_is_capped_as_the_twin_caps_it():
    gaussians = random_gaussians(30, dtype=torch.float64)
    with torch.no_grad():
        gaussians["opacities"][0, VICTIM] = 1e20
    cameras = random_cameras(dtype=torch.float64)
    ours, gradients = render_with_gradients(rasterize, gaussians, cameras)
    twin, expected = render_with_gradients(reference.rasterize, gaussians, cameras)
    assert torch.allclose(ours.color, twin.color, atol=1e-12)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, expected[name], rtol=1e-8, atol=1e-8), name


def aligned_gaussian(x: float, y: float, opacity: float) -> tuple[dict, dict]:
    """One small Gaussian whose centre lands exactly on pixel (x, y) of a 64 x 48 image."""
    width, height, focal = 64, 48, 64.0
    mean = [(x + 0.5 - width / 2) / focal * 2, (y + 0.5 - height / 2) / focal * 2, 2.0]
    dtype = torch.float64
    gaussians = dict(
        means3D=torch.tensor([[mean]], dtype=dtype),
        opacities=torch.tensor([[[opacity]]], dtype=dtype),
        colors=torch.ones(1, 1, 1, dtype=dtype),
        scales=torch.full((1, 1, 3), 0.01, dtype=dtype),
        rotations=torch.tensor([[[1.0, 0, 0, 0]]], dtype=dtype),
    )
    projection = torch.diag(torch.tensor([2 * focal / width, 2 * focal / height, 1, 0]).double())
    projection[3, 2] = 1
    cameras = dict(
        viewmatrices=torch.eye(4, dtype=dtype)[None],
        projmatrices=projection.T[None].contiguous(),
        camposs=torch.zeros(1, 3, dtype=dtype),
        tanfov=torch.tensor([[width / (2 * focal), height / (2 * focal)]], dtype=dtype),
        width=width,
        height=height,
        background=torch.zeros(1, dtype=dtype),
    )
    return gaussians, cameras


@pytest.mark.parametrize("x", [-3.0, -0.5, 0.0, 15.0, 15.5, 16.0, 31.999, 47.5, 63.0, 63.5, 66.0])
@pytest.mark.parametrize("y", [-1.0, 15.5, 16.0, 47.0, 49.0])
def test_a_centre_on_the_edge_of_a_tile_or_of_the_image(x, y):
    gaussians, cameras = aligned_gaussian(x, y, 0.9)
    out, twin = rasterize(**gaussians, **cameras), reference.rasterize(**gaussians, **cameras)
    assert torch.allclose(out.color, twin.color, atol=1e-12)
    assert torch.equal(out.radii, twin.radii)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("opacity", [-0.5, 0.0, 0.003])
def test_a_gaussian_too_faint_to_be_seen_touches_no_tile(opacity, dtype):
    """Wherever its rectangle begins; the logarithm of its opacity may be no number."""
    for y in range(-8, 56):
        gaussians, cameras = aligned_gaussian(30.0, y, opacity)
        arguments = {
            name: t.to(dtype) if isinstance(t, torch.Tensor) else t
            for name, t in (gaussians | cameras).items()
        }
        out, twin = rasterize(**arguments), reference.rasterize(**arguments)
        assert not out.color.any() and not out.alpha.any()
        assert torch.equal(out.radii, twin.radii)


def test_flat_splats_at_any_angle_lose_no_pixel_to_tile_culling():
    """Needles: the case in which tiles and rows are left out most."""
    gaussians = random_gaussians(60, dtype=torch.float64, seed=2)
    with torch.no_grad():
        gaussians["scales"].copy_(torch.tensor([0.8, 0.01, 0.002]))
    cameras = random_cameras(width=100, height=90, dtype=torch.float64)
    out, twin = rasterize(**gaussians, **cameras), reference.rasterize(**gaussians, **cameras)
    assert torch.allclose(out.color, twin.color, atol=1e-12)


def test_covariance_that_is_not_positive_definite_is_culled():
    gaussians = random_gaussians(10, precomputed_cov=True)
    with torch.no_grad():
        gaussians["cov3Ds"][0, 3] = torch.tensor([-5.0, 0, 0, -5.0, 0, -5.0])
        gaussians["cov3Ds"][0, 4] = torch.tensor([1.0, 9.0, 0, 1.0, 0, 1.0])
    out, gradients = render_with_gradients(rasterize, gaussians, random_cameras())
    assert out.radii[0, 3] == 0 and out.radii[0, 4] == 0
    assert not gradients["cov3Ds"][0, 3:5].any()


def test_a_child_of_fork_can_render(kernels):
    if kernels == "cuda":
        pytest.skip("a child of fork cannot use CUDA at all")
    gaussians, cameras = random_gaussians(2000), random_cameras(width=100, height=80)
    with torch.no_grad():
        expected = rasterize(**gaussians, **cameras, num_threads=2).color
        child = os.fork()
        if child == 0:
            same = torch.equal(rasterize(**gaussians, **cameras, num_threads=2).color, expected)
            os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_renders_from_several_threads_do_not_disturb_each_other():
    gaussians, cameras = random_gaussians(2000), random_cameras(width=100, height=80)
    with torch.no_grad():
        expected = rasterize(**gaussians, **cameras).color
        results = []

        def work() -> None:
            with torch.no_grad():
                results.extend(
                    rasterize(**gaussians, **cameras, num_threads=2).color for _ in range(10)
                )

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 40 and all(torch.equal(r, expected) for r in results)
