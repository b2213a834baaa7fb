"""The published Python interface over `rasterize`, so that other code bases can use it as it is."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from diff_gaussian_rasterization.operator import mark_visible, rasterize


class GaussianRasterizationSettings(NamedTuple):
    """One camera. Numbers may be 0-d tensors; matrices are transposed, as published.

    `prefiltered` and `debug` are accepted and change nothing.
    """

    image_height: int
    image_width: int
    tanfovx: float
    tanfovy: float
    bg: Tensor  # (C,)
    scale_modifier: float
    viewmatrix: Tensor  # (4, 4) transposed world-to-camera
    projmatrix: Tensor  # (4, 4) transposed world-to-clip
    sh_degree: int
    campos: Tensor  # (3,)
    prefiltered: bool
    debug: bool


class GaussianRasterizer(nn.Module):
    """Draws Gaussians with one camera.

    Returns (color (C, H, W), radii (N,), depth (1, H, W)), as the depth fork does; with
    `return_depth=False` (color, radii), as the original does.
    """

    def __init__(
        self, raster_settings: GaussianRasterizationSettings, return_depth: bool = True
    ) -> None:
        super().__init__()
        self.raster_settings = raster_settings
        self.return_depth = return_depth

    def markVisible(self, positions: Tensor) -> Tensor:
        """(N,) bool: whether each position (N, 3) is in front of the near plane, z > 0.2."""
        return mark_visible(positions, self.raster_settings.viewmatrix.to(positions.dtype))

    def forward(
        self,
        means3D: Tensor,
        means2D: Tensor | None,
        opacities: Tensor,
        shs: Tensor | None = None,
        colors_precomp: Tensor | None = None,
        scales: Tensor | None = None,
        rotations: Tensor | None = None,
        cov3D_precomp: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Shapes as in `rasterize`, without the leading batch dimension."""
        settings = self.raster_settings

        def one(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[None]

        def camera(value: Tensor) -> Tensor:
            return value.to(means3D.dtype)

        tangents = [[float(settings.tanfovx), float(settings.tanfovy)]]
        tanfov = torch.tensor(tangents, dtype=means3D.dtype, device=means3D.device)
        out = rasterize(
            means3D[None],
            opacities[None],
            shs=one(shs),
            colors=one(colors_precomp),
            scales=one(scales),
            rotations=one(rotations),
            cov3Ds=one(cov3D_precomp),
            viewmatrices=camera(settings.viewmatrix)[None],
            projmatrices=camera(settings.projmatrix)[None],
            camposs=camera(settings.campos)[None],
            tanfov=tanfov,
            width=int(settings.image_width),
            height=int(settings.image_height),
            background=camera(settings.bg),
            sh_degree=int(settings.sh_degree),
            scale_modifier=float(settings.scale_modifier),
            means2D=one(means2D),
        )
        if self.return_depth:
            return out.color[0], out.radii[0], out.depth[0]
        return out.color[0], out.radii[0]
