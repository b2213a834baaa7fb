"""The keyframe expert (after the dynamic Gaussians of Ex4DGS, Lee et al., NeurIPS 2024).

Each Gaussian has a displacement and a quaternion at keyframes spread evenly over the clip. Between
them positions follow a cubic Hermite spline with finite differences as tangents, rotations the
shortest arc (slerp).

Deviations: keyframes hold differences to the canonical Gaussian, which is what makes them mixable;
tangents at the ends are one-sided (published: frames of padding); rotations take the shorter way
round (published: whichever the signs say); opacity is not this expert's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from scene.experts.base import Deformation, Expert, LearningRate, Moment, SceneFacts
from scene.gaussian_model import Canonical
from scene.router import hermite_weights

if TYPE_CHECKING:
    from arguments_MoDE.config import Config, ModelMotionParams

NEAREST = 1 - 1e-4  # cosine above which an arc is a line within float32


def slerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """The rotation at ``share`` of the shorter arc between two.

    Args:
        start: (N, 4) unit quaternions.
        end: (N, 4), likewise.
        share: in [0, 1].

    Returns:
        (N, 4) unit quaternions in the hemisphere of ``start``.
    """
    cosine = (start * end).sum(-1, keepdim=True)
    end = torch.where(cosine < 0, -end, end)
    angle = cosine.abs().clamp(max=NEAREST).acos()
    low, high = torch.sin((1 - share) * angle), torch.sin(share * angle)
    return F.normalize(low * start + high * end, dim=-1)


class KeyframeExpert(Expert):
    """Deltas interpolated between keyframes of each Gaussian."""

    name = "keyframe"
    attributes = frozenset({"xyz", "rotation"})

    def __init__(self, settings: ModelMotionParams, facts: SceneFacts) -> None:
        """There are no parameters but those of the Gaussians."""
        super().__init__()
        self.keyframes, self.extent = settings.keyframe_num, facts.extent

    @classmethod
    def build(cls, config: Config, facts: SceneFacts) -> KeyframeExpert:
        """See `Expert.build`."""
        return cls(config.motion, facts)

    def per_gaussian(self, count: int) -> dict[str, Tensor]:
        """Every keyframe is the canonical Gaussian."""
        return {
            "keyframe_xyz": torch.zeros(count, self.keyframes, 3),
            "keyframe_rotation": torch.zeros(count, self.keyframes, 4),
        }

    def per_gaussian_rates(self, config: Config) -> dict[str, LearningRate]:
        """That of positions goes with the canonical ones', that of rotations is constant."""
        opt = config.opt
        share = opt.keyframe_lr * self.extent
        xyz = LearningRate(
            share * opt.position_lr_init, share * opt.position_lr_final, opt.position_lr_max_steps
        )
        return {"keyframe_xyz": xyz, "keyframe_rotation": LearningRate(opt.keyframe_rotation_lr)}

    def forward(self, canonical: Canonical, moment: Moment, wanted: frozenset[str]) -> Deformation:
        """See `Expert.forward`."""
        deformation = Deformation()
        if "xyz" in wanted:
            deformation.xyz = self._displacement(canonical.extra["keyframe_xyz"], moment.time)
        if "rotation" in wanted:
            deformation.rotation = self._turn(
                canonical.rotation, canonical.extra["keyframe_rotation"], moment.time
            )
        return deformation

    def _displacement(self, keys: Tensor, time: float) -> Tensor:
        """(N, 3) of the spline through the keyframes (N, K, 3)."""
        weights = enumerate(hermite_weights(time, self.keyframes))
        return sum(w * keys[:, k] for k, w in weights if w != 0.0)

    def _turn(self, rotation: Tensor, keys: Tensor, time: float) -> Tensor:
        """(N, 4) that makes ``rotation`` the arc between two of ``rotation`` + ``keys``."""
        position = min(max(time, 0.0), 1.0) * (self.keyframes - 1)
        i = min(int(position), max(self.keyframes - 2, 0))
        ends = (keys[:, i], keys[:, min(i + 1, self.keyframes - 1)])
        start, end = (F.normalize(rotation + key, dim=-1) for key in ends)
        length = rotation.norm(dim=-1, keepdim=True)
        return length * slerp(start, end, position - i) - rotation
