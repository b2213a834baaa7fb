"""The hash-grid expert's published fields, for models that were trained elsewhere.

Of Grid4D (Xu et al., NeurIPS 2024) and of MoDE's copy of it. Both have a cube around the origin in
place of the scene's box, beyond which features are zero; time covers nine tenths of its axis; the
warp turns about the origin and moves in world units. They differ in what a head's output means:

``mode``    deltas of the raw attributes, as everywhere else here.
``grid4d``  the rotation's is added to the normalised quaternion, and the sum is used as it is,
            of whatever length; the scale's is added to the scale itself. A quaternion of another
            length than 1 also stretches, so that scales and rotation change together.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scene.experts.base import Deformation, Moment, SceneFacts
from scene.experts.hash_grid import SPACE_PAIRS, HashGridExpert
from scene.gaussian_model import Canonical

if TYPE_CHECKING:
    from arguments_MoDE.config import ModelHashParams

TIME_SHARE = 0.9  # of the time axis
SMALLEST_SCALE = 1e-30


class Cube(nn.Module):
    """Maps the cube [-bound, bound]^3 to [0, 1]^3, linearly; what is outside stays outside."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.bound = bound
        self.register_buffer("center", torch.zeros(3), persistent=False)
        self.register_buffer("size", torch.ones(()), persistent=False)  # the warp's unit: the world

    def outside(self, xyz: Tensor) -> Tensor:
        """(N,) whether each of ``xyz`` (N, 3) lies outside the cube."""
        return (xyz.abs() > self.bound).any(dim=-1)

    def forward(self, xyz: Tensor) -> Tensor:
        """(N, 3) from world positions (N, 3)."""
        return (xyz + self.bound) / (2 * self.bound)


class PublishedHashExpert(HashGridExpert):
    """Deltas decoded from hash grids as published; see the module."""

    def __init__(
        self, settings: ModelHashParams, facts: SceneFacts, zero_init_heads: bool = False
    ) -> None:
        """Builds grids and network as the configuration says."""
        super().__init__(settings, facts, zero_init_heads)
        self.box = Cube(settings.hash_bound)
        self.after_activation = settings.hash_field == "grid4d"

    def forward(self, canonical: Canonical, moment: Moment, wanted: frozenset[str]) -> Deformation:
        """See `Expert.forward`."""
        coupled = frozenset({"log_scale", "rotation"})
        if not (self.after_activation and wanted & coupled):
            return super().forward(canonical, moment, wanted)
        part = super().forward(canonical, moment, (wanted | coupled) & self.attributes)
        log_scale, rotation = _activated_sum(canonical, part)
        return dataclasses.replace(
            part,
            log_scale=log_scale - canonical.log_scale if "log_scale" in wanted else None,
            rotation=rotation - canonical.rotation if "rotation" in wanted else None,
        )

    def _moment_features(self, unit: Tensor, time: Tensor) -> Tensor:
        """(N, 3 L F); zero where a position (N, 3) of a grid's pair of axes is outside."""
        features = super()._moment_features(unit, (1 - TIME_SHARE) / 2 + TIME_SHARE * time)
        parts = features.chunk(len(SPACE_PAIRS), dim=1)
        inside = _inside(unit)  # (N, 3)
        kept = [
            torch.where(inside[:, a : a + 1] & inside[:, b : b + 1], part, 0.0)
            for part, (a, b) in zip(parts, SPACE_PAIRS, strict=True)
        ]
        return torch.cat(kept, dim=1)

    def _compute_attention(self, unit: Tensor) -> Tensor:
        features = torch.where(_inside(unit).all(dim=1, keepdim=True), self.space(unit), 0.0)
        attention = self.of_space(features).sigmoid()
        return 2 * attention - 1 if self.directional else attention


def _inside(unit: Tensor) -> Tensor:
    return (unit >= 0) & (unit <= 1)


def _activated_sum(canonical: Canonical, part: Deformation) -> tuple[Tensor, Tensor]:
    """Raw log-scales (N, 3) and quaternions (N, 4) of what is published as drawn.

    With q the unnormalised quaternion, r its length and R its rotation, the published matrix is
    M = (1 - r^2) I + r^2 R, and the covariance M S^2 M^T. Where r is 1, that is R itself;
    elsewhere the singular values of M S are its axes' lengths.
    """
    scale = canonical.log_scale.exp()
    if part.log_scale is not None:
        scale = scale + part.log_scale
    scale = scale.abs().clamp_min(SMALLEST_SCALE)  # only its square is drawn
    quaternion = F.normalize(canonical.rotation, dim=-1)
    if part.rotation is not None:
        quaternion = quaternion + part.rotation
    length2 = quaternion.square().sum(-1)  # (N,)
    log_scale, quaternion = scale.log(), quaternion.clone()
    stretched = ((length2 - 1).abs() > 1e-6).nonzero()[:, 0]
    if len(stretched):
        matrix = _published_matrix(quaternion[stretched]) * scale[stretched, None].double()
        axes, lengths, _ = torch.linalg.svd(matrix)
        axes = axes * torch.linalg.det(axes).sign()[:, None, None]  # a rotation, not a mirror
        log_scale[stretched] = lengths.clamp_min(SMALLEST_SCALE).log().float()
        quaternion[stretched] = _quaternion_of(axes).float()
    return log_scale, quaternion


def _published_matrix(quaternion: Tensor) -> Tensor:
    """(N, 3, 3) float64 of quaternions (N, 4) that are used as they are."""
    w, axis = quaternion[:, :1, None].double(), quaternion[:, 1:].double()
    zero = torch.zeros_like(axis[:, 0])
    x, y, z = axis.unbind(-1)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).view(-1, 3, 3)
    eye = torch.eye(3, dtype=torch.float64, device=axis.device)
    return eye + 2 * (w * cross + cross @ cross)


def _quaternion_of(rotation: Tensor) -> Tensor:
    """(N, 4) unit quaternions wxyz of rotation matrices (N, 3, 3).

    The quaternion's outer product with itself is linear in the matrix; its longest row is the one
    without cancellation.
    """
    m = rotation
    d0, d1, d2 = m[:, 0, 0], m[:, 1, 1], m[:, 2, 2]
    wx, wy, wz = m[:, 2, 1] - m[:, 1, 2], m[:, 0, 2] - m[:, 2, 0], m[:, 1, 0] - m[:, 0, 1]
    xy, xz, yz = m[:, 0, 1] + m[:, 1, 0], m[:, 0, 2] + m[:, 2, 0], m[:, 1, 2] + m[:, 2, 1]
    rows = [
        [1 + d0 + d1 + d2, wx, wy, wz],
        [wx, 1 + d0 - d1 - d2, xy, xz],
        [wy, xy, 1 - d0 + d1 - d2, yz],
        [wz, xz, yz, 1 - d0 - d1 + d2],
    ]
    outer = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=1)  # (N, 4, 4)
    longest = outer.norm(dim=-1).argmax(dim=1)
    return F.normalize(outer[torch.arange(len(outer), device=outer.device), longest], dim=-1)
