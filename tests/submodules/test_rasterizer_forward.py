"""What the rasteriser draws: against its plain PyTorch twin and against closed forms."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from rasterizer_scenes import random_cameras, random_gaussians

import diff_gaussian_rasterization
from diff_gaussian_rasterization import rasterize, reference
from kernels import KERNELS, choose


@pytest.fixture(autouse=True, params=KERNELS)
def kernels(request, monkeypatch) -> str:
    """Every test runs on every path of the operator."""
    choose(request.param, monkeypatch, diff_gaussian_rasterization, request.module, ["rasterize"])
    return request.param


# Colours and alpha are of order 1; depths of order 5, sums of several hundred terms.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def assert_same_images(actual, expected, tolerance: float) -> None:
    for name in ("color", "alpha", "depth"):
        a, e = getattr(actual, name), getattr(expected, name)
        assert a.shape == e.shape, name
        assert float((a - e).abs().max()) <= tolerance * max(1.0, float(e.abs().max())), name
    assert torch.equal(actual.radii, expected.radii)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sh_degree", [0, 1, 2, 3])
def test_spherical_harmonics_match_the_twin(dtype, sh_degree):
    gaussians = random_gaussians(80, dtype=dtype)
    cameras = random_cameras(dtype=dtype, sh_degree=sh_degree)
    assert_same_images(
        rasterize(**gaussians, **cameras),
        reference.rasterize(**gaussians, **cameras),
        TOLERANCE[dtype],
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 3, 7, 32])
def test_any_number_of_channels_matches_the_twin(dtype, channels):
    gaussians = random_gaussians(60, dtype=dtype, channels=channels)
    cameras = random_cameras(dtype=dtype, channels=channels)
    assert_same_images(
        rasterize(**gaussians, **cameras),
        reference.rasterize(**gaussians, **cameras),
        TOLERANCE[dtype],
    )


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 15), (33, 64), (5, 100)])
def test_sizes_that_do_not_fit_the_tiles_match_the_twin(size):
    gaussians = random_gaussians(40, dtype=torch.float64)
    cameras = random_cameras(width=size[0], height=size[1], dtype=torch.float64)
    assert_same_images(
        rasterize(**gaussians, **cameras), reference.rasterize(**gaussians, **cameras), 1e-12
    )


def test_precomputed_covariance_and_scale_modifier_match_the_twin():
    cameras = random_cameras(dtype=torch.float64)
    given = random_gaussians(60, dtype=torch.float64, precomputed_cov=True)
    assert_same_images(
        rasterize(**given, **cameras), reference.rasterize(**given, **cameras), 1e-12
    )
    scaled = random_gaussians(60, dtype=torch.float64)
    assert_same_images(
        rasterize(**scaled, **cameras, scale_modifier=1.7),
        reference.rasterize(**scaled, **cameras, scale_modifier=1.7),
        1e-12,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_drawn_before_the_near_plane(dtype):
    gaussians, cameras = random_gaussians(80, dtype=dtype), random_cameras(2, dtype=dtype)
    near = rasterize(**gaussians, **cameras, near_plane=3.9)
    assert_same_images(
        near, reference.rasterize(**gaussians, **cameras, near_plane=3.9), TOLERANCE[dtype]
    )
    plain = rasterize(**gaussians, **cameras)
    depths = (
        gaussians["means3D"] @ cameras["viewmatrices"][:, :3, 2:]
        + (cameras["viewmatrices"][:, None, 3, 2:])
    )
    assert torch.equal(near.radii, torch.where(depths[..., 0] > 3.9, plain.radii, 0))
    assert 20 < (near.radii > 0).sum() < 2 * (plain.radii > 0).sum() / 3
    near.color.sum().backward()
    culled = (near.radii == 0).all(0)
    for name, tensor in gaussians.items():
        assert not tensor.grad[0, culled].any(), name


def test_the_near_plane_itself_is_before_it():
    camera = straight_camera()
    for near, drawn in ((2.0, False), (2.0 - 1e-12, True), (0.2, True)):
        out = rasterize(**one_gaussian(0.7), **camera, near_plane=near)
        assert bool(out.radii) == bool(out.alpha.any()) == drawn


@pytest.mark.parametrize("near", [0.0, -1.0, math.nan, math.inf])
def test_a_near_plane_that_is_none_is_refused(near):
    with pytest.raises(ValueError, match="near_plane must be a number above 0"):
        rasterize(**one_gaussian(0.7), **straight_camera(), near_plane=near)


@pytest.mark.parametrize("scale", [0.003, 0.5, 3.0])
def test_tiny_and_huge_splats_match_the_twin(scale):
    gaussians = random_gaussians(50, dtype=torch.float64)
    with torch.no_grad():
        gaussians["scales"].mul_(scale / 0.1)
    cameras = random_cameras(dtype=torch.float64)
    assert_same_images(
        rasterize(**gaussians, **cameras), reference.rasterize(**gaussians, **cameras), 1e-12
    )


def test_opaque_layers_stop_every_pixel_like_the_twin():
    gaussians = random_gaussians(300, dtype=torch.float64)
    with torch.no_grad():
        gaussians["opacities"].copy_(0.9 + 0.1 * gaussians["opacities"])
        gaussians["scales"].mul_(3)
    cameras = random_cameras(dtype=torch.float64)
    out = rasterize(**gaussians, **cameras)
    assert float((1 - out.alpha).median()) < 1e-3
    assert_same_images(out, reference.rasterize(**gaussians, **cameras), 1e-12)


def one_gaussian(opacity: float, mean=(0.0, 0.0, 2.0), scale: float = 0.1) -> dict:
    dtype = torch.float64
    return dict(
        means3D=torch.tensor([[mean]], dtype=dtype),
        opacities=torch.tensor([[[opacity]]], dtype=dtype),
        colors=torch.tensor([[[0.2, 0.5, 0.9]]], dtype=dtype),
        scales=torch.full((1, 1, 3), scale, dtype=dtype),
        rotations=torch.tensor([[[1.0, 0, 0, 0]]], dtype=dtype),
    )


def straight_camera(width: int = 32, height: int = 32, focal: float = 40.0) -> dict:
    """At the origin, looking along z; the axis hits pixel ((width - 1) / 2, (height - 1) / 2)."""
    dtype = torch.float64
    projection = torch.zeros(4, 4, dtype=dtype)
    projection[0, 0], projection[1, 1] = 2 * focal / width, 2 * focal / height
    projection[2, 2] = projection[3, 2] = 1
    return dict(
        viewmatrices=torch.eye(4, dtype=dtype)[None],
        projmatrices=projection.T[None].contiguous(),
        camposs=torch.zeros(1, 3, dtype=dtype),
        tanfov=torch.tensor([[width / (2 * focal), height / (2 * focal)]], dtype=dtype),
        width=width,
        height=height,
        background=torch.tensor([1.0, 0.0, 0.5], dtype=dtype),
    )


def test_one_gaussian_is_its_closed_form():
    out = rasterize(**one_gaussian(0.7), **straight_camera())
    variance = (0.1 * 40 / 2) ** 2 + 0.3
    grid = torch.arange(32, dtype=torch.float64) - 15.5
    squared = grid[:, None] ** 2 + grid[None, :] ** 2
    alpha = 0.7 * torch.exp(-0.5 * squared / variance)
    alpha = torch.where(alpha < 1 / 255, 0, alpha)
    assert torch.allclose(out.alpha[0, 0], alpha, atol=1e-7)
    assert torch.allclose(out.depth[0, 0], 2 * alpha, atol=1e-7)
    expected = 0.2 * alpha + 1.0 * (1 - alpha)
    assert torch.allclose(out.color[0, 0], expected, atol=1e-7)
    assert out.radii.tolist() == [[math.ceil(3 * math.sqrt(variance + math.sqrt(0.1)))]]


def test_alpha_is_capped_at_99_percent():
    out = rasterize(**one_gaussian(1.0, mean=(0.025, 0.025, 2.0)), **straight_camera())
    assert float(out.alpha.max()) == pytest.approx(0.99, abs=1e-12)


def test_depth_order_not_list_order_decides():
    front, back = one_gaussian(0.9, (0, 0, 1.0)), one_gaussian(0.9, (0, 0, 3.0))
    back["colors"] = back["colors"].flip(-1)
    joined = {k: torch.cat([back[k], front[k]], dim=1) for k in front}
    swapped = {k: torch.cat([front[k], back[k]], dim=1) for k in front}
    a = rasterize(**joined, **straight_camera())
    b = rasterize(**swapped, **straight_camera())
    assert torch.equal(a.color, b.color)
    centre = a.color[0, :, 16, 16]
    assert centre[0] < centre[2]


def test_gaussians_of_one_depth_are_drawn_in_the_order_of_the_list():
    """Also where several threads sort them, each a part of 4,096 at least."""
    camera = random_cameras(width=100, height=80)
    camera["viewmatrices"] = torch.eye(4)[None]  # depths are z, of which there are four
    for count in (60, 30_000):
        gaussians = {n: t.detach() for n, t in random_gaussians(count).items()}
        gaussians["means3D"][..., 2] = torch.arange(count) % 4 + 2.0
        one = rasterize(**gaussians, **camera, num_threads=1)
        assert int((one.radii > 0).sum()) > min(4 * 4096, count / 2)
        for threads in (2, 3, 5):
            several = rasterize(**gaussians, **camera, num_threads=threads)
            assert all(torch.equal(a, b) for a, b in zip(one, several, strict=True))
        if count == 60:
            assert_same_images(one, reference.rasterize(**gaussians, **camera), 1e-5)


@pytest.mark.parametrize(
    "depths",
    [(4, 4), (4, 4.00001), (3, 5), (0.3, 30), (0.3, 1e6), (0.3, 1e20)],
    ids=lambda depths: f"{depths[0]:g}-{depths[1]:g}",
)
@pytest.mark.parametrize("count", [2, 300, 20_000])
def test_depths_of_any_range_and_number_are_drawn_in_their_order(count, depths):
    random = torch.Generator().manual_seed(0)
    uniform = partial(torch.rand, 1, count, generator=random)
    near, far = (math.log(depth) for depth in depths)
    z = torch.exp(near + (far - near) * uniform()).clamp(*depths)  # to sort in float32
    x, y = 0.2 * (uniform().mul(20).round() - 10), 0.1 * (uniform().mul(4).round() - 2)
    gaussians = dict(
        means3D=torch.stack([x * z / 4, y * z / 4, z], -1),
        opacities=torch.full((1, count, 1), 0.2),
        cov3Ds=1e-4 * z[..., None] ** 2 * torch.tensor([1.0, 0, 0, 1, 0, 1e-30]),
        colors=uniform(3),
    )
    camera = random_cameras(width=70, height=45)
    camera["viewmatrices"] = torch.eye(4)[None]
    camera["projmatrices"] = torch.tensor(
        [[1.8, 0, 0, 0], [0, 2.8, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]]
    )
    camera["projmatrices"] = camera["projmatrices"][None]
    once, twice = (rasterize(**gaussians, **camera, num_threads=threads) for threads in (1, 2))
    double = {name: tensor.double() for name, tensor in gaussians.items()}
    cameras = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in camera.items()}
    exact = rasterize(**double, **cameras)  # sorted another way
    assert exact.alpha.max() > 0.15
    assert torch.equal(once.color, twice.color)
    assert torch.allclose(once.color, exact.color.float(), atol=1e-4)


def test_no_gaussians_and_none_visible_show_the_background():
    camera = straight_camera()
    empty = {k: v[:, :0] for k, v in one_gaussian(0.5).items()}
    behind = one_gaussian(0.5, (0, 0, -2.0))
    for gaussians in (empty, behind):
        leaves = {k: v.clone().requires_grad_() for k, v in gaussians.items()}
        out = rasterize(**leaves, **camera)
        assert torch.equal(
            out.color, camera["background"][None, :, None, None].expand_as(out.color)
        )
        assert not out.alpha.any() and not out.depth.any() and not out.radii.any()
        out.color.sum().backward()
        assert all(not leaf.grad.any() for leaf in leaves.values())


def test_no_gaussians_lie_in_memory_as_they_like():
    transposed = {
        k: v.detach().movedim(1, -1).contiguous().movedim(-1, 1)[:, :0].requires_grad_()
        for k, v in random_gaussians(5).items()
    }
    out = rasterize(**transposed, **random_cameras())
    out.color.sum().backward()
    assert not out.alpha.any()
    assert all(leaf.grad.shape == leaf.shape for leaf in transposed.values())


def test_a_batch_is_the_same_as_a_loop():
    shared = random_gaussians(70, dtype=torch.float64)
    own = random_gaussians(70, dtype=torch.float64, batch=3, seed=5)
    mixed = dict(shared, means3D=own["means3D"], shs=own["shs"])
    cameras = random_cameras(3, dtype=torch.float64)
    per_view = ("viewmatrices", "projmatrices", "camposs", "tanfov")
    for gaussians in (shared, own, mixed):
        batch = rasterize(**gaussians, **cameras)
        for v in range(3):
            single = rasterize(
                **{k: t[v : v + 1] if t.shape[0] > 1 else t for k, t in gaussians.items()},
                **{k: c[v : v + 1] if k in per_view else c for k, c in cameras.items()},
            )
            for whole, part in zip(batch, single, strict=True):
                assert torch.equal(whole[v], part[0])
