"""Camera and Gaussians to an image; nothing here knows of time or training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from diff_gaussian_rasterization import rasterize
from scene.cameras import Camera


class Gaussians(Protocol):
    """Gaussians before their activations, as `scene.mixture.Splats`."""

    means: Tensor  # (N, 3)
    log_scales: Tensor  # (N, 3)
    quaternions: Tensor  # (N, 4) wxyz, of any length
    opacity_logits: Tensor  # (N, 1)
    sh: Tensor  # (N, M, 3)


@dataclass(frozen=True)
class RenderOutput:
    """B images of the same Gaussians."""

    images: Tensor  # (B, 3, H, W), background blended in; not clamped
    alpha: Tensor  # (B, 1, H, W)
    depth: Tensor  # (B, 1, H, W), sum of z x weight, not divided by alpha
    radii: Tensor  # (B, N) int32, pixels; 0 where culled
    means2d: Tensor  # (B, N, 3), its .grad is the screen gradient in NDC units


def render(
    cameras: Sequence[Camera],
    gaussians: Gaussians,
    background: Tensor,
    sh_degree: int,
) -> RenderOutput:
    """Renders ``gaussians`` from B cameras of equal size.

    Args:
        background: (3,) in [0, 1].
        sh_degree: active degree; coefficients above it are not read.

    Raises:
        ValueError: if the cameras differ in size.
    """
    sizes = {(c.width, c.height) for c in cameras}
    if len(sizes) != 1:
        raise ValueError(f"cameras of one batch must have one size, got {sorted(sizes)}")
    (width, height), count = sizes.pop(), len(gaussians.means)
    device, dtype = gaussians.means.device, gaussians.means.dtype

    means2d = torch.zeros(
        len(cameras), count, 3, device=device, dtype=dtype, requires_grad=torch.is_grad_enabled()
    )
    copies = zip(*(camera.on(device, dtype) for camera in cameras), strict=True)
    views, projections, centres, tangents = (torch.stack(values) for values in copies)
    out = rasterize(
        gaussians.means[None],
        gaussians.opacity_logits[None],
        shs=gaussians.sh[None],
        scales=gaussians.log_scales[None],
        rotations=gaussians.quaternions[None],
        raw=True,
        viewmatrices=views,
        projmatrices=projections,
        camposs=centres,
        tanfov=tangents,
        width=width,
        height=height,
        background=background.to(device=device, dtype=dtype),
        sh_degree=sh_degree,
        means2D=means2d,
    )
    return RenderOutput(out.color, out.alpha, out.depth, out.radii, means2d)
