"""Projection, conics, radii, depths and spherical harmonics against gsplat's PyTorch functions."""

from __future__ import annotations

import pytest
import torch
from rasterizer_scenes import random_gaussians

from diff_gaussian_rasterization import rasterize, reference

gsplat = pytest.importorskip("gsplat.cuda._torch_impl", reason="gsplat is a development need")

WIDTH, HEIGHT, FX, FY = 48, 40, 50.0, 55.0
COUNT = 24


def scene() -> dict[str, torch.Tensor]:
    gaussians = random_gaussians(COUNT, dtype=torch.float64, seed=11)
    gaussians = {k: t.detach() for k, t in gaussians.items()}
    gaussians["rotations"] = torch.nn.functional.normalize(gaussians["rotations"], dim=-1)
    return gaussians


def world_to_camera() -> torch.Tensor:
    w2c = torch.eye(4, dtype=torch.float64)
    w2c[:3, :3] = reference.rotation_matrices(
        torch.nn.functional.normalize(torch.tensor([[1.0, 0.05, -0.1, 0.08]]), dim=-1).double()
    )[0]
    w2c[:3, 3] = torch.tensor([0.1, -0.05, 0.3])
    return w2c


def our_camera(views: int) -> dict:
    w2c = world_to_camera()
    projection = torch.zeros(4, 4, dtype=torch.float64)
    projection[0, 0], projection[1, 1] = 2 * FX / WIDTH, 2 * FY / HEIGHT
    projection[2, 2] = projection[3, 2] = 1
    return dict(
        viewmatrices=w2c.T.contiguous().repeat(views, 1, 1),
        projmatrices=(projection @ w2c).T.contiguous().repeat(views, 1, 1),
        camposs=torch.linalg.inv(w2c)[:3, 3].repeat(views, 1),
        tanfov=torch.tensor([[WIDTH / (2 * FX), HEIGHT / (2 * FY)]]).double().repeat(views, 1),
        width=WIDTH,
        height=HEIGHT,
        background=torch.zeros(3, dtype=torch.float64),
        sh_degree=3,
    )


def their_projection(gaussians: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Centres (N, 2) with pixel centres at integers, conics (N, 3), depths (N,)."""
    covariances, _ = gsplat._quat_scale_to_covar_preci(
        gaussians["rotations"][0], gaussians["scales"][0], True, False, False
    )
    intrinsics = torch.tensor([[FX, 0, WIDTH / 2], [0, FY, HEIGHT / 2], [0, 0, 1]]).double()
    _, centres, depths, conics, _ = gsplat._fully_fused_projection(
        gaussians["means3D"][0],
        covariances,
        world_to_camera()[None],
        intrinsics[None],
        WIDTH,
        HEIGHT,
    )
    return centres[0] - 0.5, conics[0], depths[0]


def each_alone(gaussians: dict) -> dict:
    """A batch of COUNT views, each with one Gaussian."""
    return {k: t.transpose(0, 1).contiguous() for k, t in gaussians.items()}


def test_every_gaussian_alone_is_drawn_where_gsplat_projects_it():
    gaussians = scene()
    centres, conics, depths = their_projection(gaussians)
    out = rasterize(**each_alone(gaussians), **our_camera(COUNT))
    ys, xs = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    dx = centres[:, 0, None, None] - xs
    dy = centres[:, 1, None, None] - ys
    xx, xy, yy = (conics[:, i, None, None] for i in range(3))
    power = -0.5 * (xx * dx * dx + yy * dy * dy) - xy * dx * dy
    alpha = gaussians["opacities"][0, :, :, None] * power.exp()
    drawn = out.alpha[:, 0] > 0
    assert int(drawn.any(-1).any(-1).sum()) > COUNT // 2
    # w + 1e-7 in the perspective division is the published one's, not gsplat's.
    assert torch.allclose(out.alpha[:, 0][drawn], alpha.clamp(max=0.99)[drawn], atol=1e-6)
    near = (dx.abs() < 3 * xx.rsqrt()) & (dy.abs() < 3 * yy.rsqrt())  # inside the 3 sigma square
    assert not (near & ~drawn & (alpha > 1.01 / 255)).any()
    expected = depths[:, None, None].expand_as(alpha)[drawn]
    assert torch.allclose(out.depth[:, 0][drawn] / out.alpha[:, 0][drawn], expected, atol=1e-9)


def test_radii_are_three_sigma_of_gsplats_covariance():
    gaussians = scene()
    _, conics, _ = their_projection(gaussians)
    matrices = torch.stack([conics[:, 0], conics[:, 1], conics[:, 1], conics[:, 2]], -1)
    eigenvalues = 1 / torch.linalg.eigvalsh(matrices.view(-1, 2, 2))
    spread = (eigenvalues[:, 0] - eigenvalues[:, 1]).abs() / 2
    mid = eigenvalues.mean(-1)
    expected = (3 * (mid + spread.clamp(min=0.1**0.5)).sqrt()).ceil().int()
    radii = rasterize(**gaussians, **our_camera(1)).radii[0]
    assert int((radii > 0).sum()) > COUNT // 2
    assert torch.equal(radii[radii > 0], expected[radii > 0])


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_colours_are_gsplats_spherical_harmonics(degree):
    gaussians = scene()
    camera = our_camera(COUNT) | {"sh_degree": degree}
    out = rasterize(**each_alone(gaussians), **camera)
    directions = gaussians["means3D"][0] - camera["camposs"]
    expected = gsplat._spherical_harmonics(degree, directions, gaussians["shs"][0])
    expected = (expected + 0.5).clamp(min=0)
    alpha = out.alpha.flatten(1).max(-1)
    pixel = out.color.flatten(2).gather(2, alpha.indices[:, None, None].expand(-1, 3, 1))[..., 0]
    seen = alpha.values > 0
    actual = pixel[seen] / alpha.values[seen, None]
    assert torch.allclose(actual, expected[seen], atol=1e-6)
