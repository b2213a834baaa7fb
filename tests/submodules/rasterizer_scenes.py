"""Small scenes for the tests of the rasteriser, and the two ways to draw them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diff_gaussian_rasterization import RasterOutput

SHAPES = {"opacities": 1, "scales": 3, "rotations": 4, "cov3Ds": 6}


def random_gaussians(
    count: int,
    *,
    dtype: torch.dtype = torch.float32,
    batch: int = 1,
    channels: int | None = None,
    precomputed_cov: bool = False,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Gaussians in a cloud about 4 in front of the cameras; SH of degree 3 unless `channels`."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, count, *shape, generator=random, dtype=torch.float64)

    tensors = {
        "means3D": normal(3) * torch.tensor([1.0, 0.8, 1.0]) + torch.tensor([0.0, 0.0, 4.0]),
        "opacities": normal(1).sigmoid() * 0.95 + 0.02,
        "scales": torch.exp(0.5 * normal(3) - 2.2),
        # Not of unit length, on purpose: they are used as given.
        "rotations": torch.nn.functional.normalize(normal(4), dim=-1) * (1 + 0.1 * normal(1)),
    }
    if channels is None:
        tensors["shs"] = 0.3 * normal(16, 3)
    else:
        tensors["colors"] = normal(channels).sigmoid()
    if precomputed_cov:
        factor = normal(3, 3) * 0.1
        full = factor @ factor.transpose(-1, -2)
        del tensors["scales"], tensors["rotations"]
        tensors["cov3Ds"] = full.flatten(-2)[..., [0, 1, 2, 4, 5, 8]]
    return {name: t.to(dtype).contiguous().requires_grad_() for name, t in tensors.items()}


def raw_gaussians(count: int, **options) -> dict[str, Tensor]:
    """`random_gaussians` before their activations, for `rasterize(raw=True)`."""
    tensors = {name: t.detach() for name, t in random_gaussians(count, **options).items()}
    tensors["opacities"] = tensors["opacities"].logit()
    if "scales" in tensors:
        tensors["scales"] = tensors["scales"].log()
        tensors["rotations"] = 3 * tensors["rotations"]
    return {name: t.requires_grad_() for name, t in tensors.items()}


def random_cameras(
    views: int = 1,
    width: int = 70,
    height: int = 45,
    *,
    channels: int = 3,
    sh_degree: int = 3,
    dtype: torch.dtype = torch.float32,
) -> dict:
    """Camera arguments of `rasterize`: turned, shifted, with an off-centre principal point."""
    fx, fy, near, far = 0.9 * width, 0.95 * width, 0.01, 100.0
    projection = torch.zeros(4, 4, dtype=torch.float64)
    projection[0, 0], projection[1, 1] = 2 * fx / width, 2 * fy / height
    projection[0, 2], projection[1, 2] = 0.03, -0.02
    projection[2, 2], projection[2, 3] = far / (far - near), -far * near / (far - near)
    projection[3, 2] = 1
    w2c = torch.eye(4, dtype=torch.float64).repeat(views, 1, 1)
    for v in range(views):
        c, s = math.cos(0.1 * v + 0.05), math.sin(0.1 * v + 0.05)
        w2c[v, :3, :3] = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]])
        w2c[v, :3, 3] = torch.tensor([0.1 * v, 0.05, 0.2])
    tensors = dict(
        viewmatrices=w2c.transpose(1, 2),
        projmatrices=(projection @ w2c).transpose(1, 2),
        camposs=torch.linalg.inv(w2c)[:, :3, 3],
        tanfov=torch.tensor([[width / (2 * fx), height / (2 * fy)]]).repeat(views, 1),
        background=torch.linspace(0.1, 0.7, channels),
    )
    tensors = {name: t.to(dtype).contiguous() for name, t in tensors.items()}
    return tensors | dict(width=width, height=height, sh_degree=sh_degree)


def image_loss(out: RasterOutput, parts: str = "color alpha depth") -> Tensor:
    """A weighted sum of the named images, with weights that do not depend on the renderer."""
    random = torch.Generator().manual_seed(1)
    loss = out.color.new_zeros(())
    for name in ("color", "alpha", "depth"):
        image = getattr(out, name)
        weight = torch.rand(image.shape, generator=random, dtype=torch.float64) - 0.3
        if name in parts.split():
            loss = loss + (image * weight.to(image.dtype)).sum()
    return loss


def render_with_gradients(
    function,
    gaussians: dict[str, Tensor],
    cameras: dict,
    parts: str = "color alpha depth",
    **options,
) -> tuple[RasterOutput, dict[str, Tensor]]:
    """The images and the gradients of `image_loss` in every tensor and in means2D."""
    views, means = cameras["viewmatrices"].shape[0], gaussians["means3D"]
    means2d = means.new_zeros(views, *means.shape[1:]).requires_grad_()
    out = function(**gaussians, **cameras, means2D=means2d, **options)
    leaves = dict(gaussians, means2D=means2d)
    grads = torch.autograd.grad(image_loss(out, parts), list(leaves.values()), allow_unused=True)
    pairs = zip(leaves.values(), grads, strict=True)
    zeros = (torch.zeros_like(t) if g is None else g for t, g in pairs)
    return out, dict(zip(leaves, zeros, strict=True))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest magnitude expected."""
    scale = expected.abs().max().clamp(min=1e-12)
    return float((actual - expected).abs().max() / scale)
