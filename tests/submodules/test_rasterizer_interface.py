"""The published interface, and the errors that say what is wrong with an argument."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from rasterizer_scenes import random_cameras, random_gaussians

import diff_gaussian_rasterization
from diff_gaussian_rasterization import (
    GaussianRasterizationSettings,
    GaussianRasterizer,
    devices,
    rasterize,
)
from kernels import KERNELS, choose


@pytest.fixture(autouse=True, params=KERNELS)
def kernels(request, monkeypatch) -> str:
    """Every test runs on every path of the operator."""
    choose(
        request.param,
        monkeypatch,
        diff_gaussian_rasterization,
        request.module,
        ["rasterize", "mark_visible", "GaussianRasterizer"],
    )
    return request.param


def published_settings(cameras: dict, **changes) -> GaussianRasterizationSettings:
    values = dict(
        image_height=cameras["height"],
        image_width=cameras["width"],
        tanfovx=float(cameras["tanfov"][0, 0]),
        tanfovy=float(cameras["tanfov"][0, 1]),
        bg=cameras["background"],
        scale_modifier=1.0,
        viewmatrix=cameras["viewmatrices"][0],
        projmatrix=cameras["projmatrices"][0],
        sh_degree=cameras["sh_degree"],
        campos=cameras["camposs"][0],
        prefiltered=False,
        debug=False,
    )
    return GaussianRasterizationSettings(**(values | changes))


def published_call(rasterizer: GaussianRasterizer, gaussians: dict) -> tuple:
    one = {k: t.detach()[0].clone().requires_grad_() for k, t in gaussians.items()}
    means2d = torch.zeros_like(one["means3D"], requires_grad=True)
    out = rasterizer(
        means3D=one["means3D"],
        means2D=means2d,
        opacities=one["opacities"],
        shs=one["shs"],
        colors_precomp=None,
        scales=one["scales"],
        rotations=one["rotations"],
        cov3D_precomp=None,
    )
    return out, means2d


def test_settings_have_the_twelve_published_fields_in_order():
    assert GaussianRasterizationSettings._fields == (
        "image_height",
        "image_width",
        "tanfovx",
        "tanfovy",
        "bg",
        "scale_modifier",
        "viewmatrix",
        "projmatrix",
        "sh_degree",
        "campos",
        "prefiltered",
        "debug",
    )


def test_published_call_returns_color_radii_depth():
    gaussians, cameras = random_gaussians(40), random_cameras()
    expected = rasterize(**gaussians, **cameras)
    (color, radii, depth), means2d = published_call(
        GaussianRasterizer(raster_settings=published_settings(cameras)), gaussians
    )
    assert torch.equal(color, expected.color[0]) and torch.equal(depth, expected.depth[0])
    assert torch.equal(radii, expected.radii[0]) and radii.dtype == torch.int32
    color.sum().backward()
    assert means2d.grad.shape == (40, 3) and means2d.grad[radii > 0, :2].any()
    assert not means2d.grad[radii == 0].any()


def test_without_depth_two_values_return():
    gaussians, cameras = random_gaussians(10), random_cameras()
    rasterizer = GaussianRasterizer(published_settings(cameras), return_depth=False)
    (color, radii), _ = published_call(rasterizer, gaussians)
    assert color.shape == (3, 45, 70) and radii.shape == (10,)


def test_numbers_of_the_settings_may_be_tensors():
    gaussians, cameras = random_gaussians(10), random_cameras()
    settings = published_settings(cameras)
    numbers = ("image_height", "image_width", "tanfovx", "tanfovy", "scale_modifier", "sh_degree")
    as_tensors = settings._replace(**{n: torch.tensor(getattr(settings, n)) for n in numbers})
    plain, _ = published_call(GaussianRasterizer(settings), gaussians)
    tensors, _ = published_call(GaussianRasterizer(as_tensors), gaussians)
    assert torch.equal(plain[0], tensors[0])


def test_the_default_device_is_not_asked():
    gaussians, cameras = random_gaussians(10), random_cameras()
    expected = rasterize(**gaussians, **cameras)
    with torch.device("meta"):
        out = rasterize(**gaussians, **cameras)
    assert torch.equal(out.color, expected.color)


def test_mark_visible_is_the_near_plane_test():
    cameras = random_cameras()
    rasterizer = GaussianRasterizer(published_settings(cameras))
    points = torch.randn(200, 3)
    z = points @ cameras["viewmatrices"][0, :3, 2] + cameras["viewmatrices"][0, 3, 2]
    visible = rasterizer.markVisible(points)
    assert visible.dtype == torch.bool and torch.equal(visible, z > 0.2)
    assert rasterizer.markVisible(points[:0]).shape == (0,)


def without(arguments: dict, *names: str) -> dict:
    return {k: v for k, v in arguments.items() if k not in names}


def without_views(arguments: dict) -> dict:
    cameras = ("viewmatrices", "projmatrices", "camposs", "tanfov")
    return arguments | {name: arguments[name][:0] for name in cameras}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: without(a, "shs"), "exactly one of SHs"),
        (lambda a: a | {"colors": torch.zeros(1, 9, 3)}, "exactly one of SHs"),
        (lambda a: without(a, "scales"), "scales and rotations go together"),
        (lambda a: without(a, "scales", "rotations"), "exactly one of scales"),
        (lambda a: a | {"cov3Ds": torch.zeros(1, 9, 6)}, "exactly one of scales"),
        (lambda a: a | {"opacities": torch.zeros(1, 8, 1)}, "opacities must have the shape"),
        (lambda a: a | {"opacities": torch.zeros(1, 9)}, "opacities must have the shape"),
        (lambda a: a | {"means3D": torch.zeros(9, 3)}, "means3D must have the shape"),
        (lambda a: a | {"scales": torch.zeros(2, 9, 3)}, "scales must have the shape"),
        (lambda a: a | {"rotations": torch.zeros(1, 9, 4).double()}, "rotations is torch.float64"),
        (lambda a: a | {"means3D": torch.zeros(1, 9, 3).half()}, "float32 or float64"),
        (lambda a: a | {"means2D": torch.zeros(1, 8, 3)}, "means2D must have the shape"),
        (lambda a: a | {"background": torch.zeros(1, 3)}, "background must have the shape"),
        (lambda a: a | {"background": torch.zeros(5)}, "3 channels"),
        (lambda a: a | {"viewmatrices": torch.zeros(1, 3, 4)}, "viewmatrices must have the shape"),
        (lambda a: a | {"viewmatrices": torch.eye(4)}, "viewmatrices must have the shape"),
        (lambda a: a | {"viewmatrices": torch.tensor(1.0)}, "viewmatrices must have the shape"),
        (without_views, "viewmatrices must have the shape .* B at least 1"),
        (lambda a: a | {"tanfov": torch.zeros(2)}, "tanfov must have the shape"),
        (lambda a: a | {"sh_degree": 4}, "sh_degree must be 0 to 3"),
        (lambda a: a | {"shs": torch.zeros(1, 9, 4, 3)}, "degree 3 needs 16"),
        (lambda a: a | {"width": 0}, "image size"),
        (lambda a: a | {"num_threads": 0}, "num_threads"),
    ],
)
def test_a_wrong_argument_is_named(change, message):
    arguments = {k: t.detach() for k, t in random_gaussians(9).items()} | random_cameras()
    with pytest.raises(ValueError, match=message):
        rasterize(**change(arguments))


def test_tensors_on_several_devices_are_refused_by_name():
    arguments = random_gaussians(9) | random_cameras()
    arguments["scales"] = torch.empty(1, 9, 3, device="meta")
    with pytest.raises(RuntimeError, match="scales is on meta, but means3D is on"):
        diff_gaussian_rasterization.rasterize(**arguments)


def test_a_device_that_is_neither_cpu_nor_gpu_is_refused():
    arguments = random_gaussians(9) | random_cameras()
    moved = {k: t.to("meta") if isinstance(t, torch.Tensor) else t for k, t in arguments.items()}
    with pytest.raises(RuntimeError, match="means3D is on meta; .* computes on cpu"):
        diff_gaussian_rasterization.rasterize(**moved)


def test_gpu_tensors_meet_a_build_without_cuda_with_the_command_that_mends_it(monkeypatch):
    monkeypatch.setattr(devices, "DEVICES", ("cpu",))
    on_gpu = SimpleNamespace(device=torch.device("cuda:0"))
    with pytest.raises(RuntimeError, match="no CUDA kernels: .*--device cpu.*make clean setup"):
        devices.check_device("means3D", on_gpu, on_gpu)
