"""The polynomial expert (SpacetimeGaussians, Li et al., CVPR 2024).

Each Gaussian moves along a cubic in time, turns at a constant rate, and is visible around a moment
of its own. With d = t - c, c the Gaussian's centre in time and s its log-width::

    x(t) = x + m1 d + m2 d^2 + m3 d^3,   q(t) = q + d w,   opacity(t) = sigmoid(o) exp(-(d / e^s)^2)

The moment is learned through the opacity alone. A point cloud does not say which frame its points
came from, where the published centres start: ours start in the middle of the clip, or, with
``trbf_spread``, anywhere in it, and then those of new Gaussians do, too, as published. Other
deviations: widths start at ``trbf_scale_init``, and the motion's learning rate decays with the
positions'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scene.experts.base import Deformation, Expert, LearningRate, Moment, SceneFacts
from scene.gaussian_model import Canonical, GaussianModel

if TYPE_CHECKING:
    from arguments_MoDE.config import Config, ModelMotionParams

DEGREE = 3
INITIAL_CENTER = 0.5
FAINTEST = 20.0  # -log of the smallest visibility; beyond it there is nothing to see or to learn
LARGEST_LOGIT = 60.0  # exp() of it is finite in float32


def visibility_delta(opacity: Tensor, exponent: Tensor) -> Tensor:
    """The logit delta that multiplies an opacity: sigmoid(o + delta) = sigmoid(o) exp(-exponent).

    With v = exp(-exponent): delta = log v - log(1 + (1 - v) e^o), in which nothing cancels.

    Args:
        opacity: (N, 1) logits o.
        exponent: (N, 1), at least 0; values beyond 20 count as 20.

    Returns:
        (N, 1), at most 0.
    """
    exponent = exponent.clamp(max=FAINTEST)
    odds = opacity.clamp(max=LARGEST_LOGIT).exp()
    return -exponent - torch.log1p(-torch.expm1(-exponent) * odds)


class PolynomialExpert(Expert):
    """Deltas from a few numbers per Gaussian and powers of time."""

    name = "polynomial"
    attributes = frozenset({"xyz", "rotation", "opacity"})

    def __init__(self, settings: ModelMotionParams, facts: SceneFacts) -> None:
        """There are no parameters but those of the Gaussians."""
        super().__init__()
        self.initial_width, self.spread = settings.trbf_scale_init, settings.trbf_spread
        self.extent = facts.extent

    @classmethod
    def build(cls, config: Config, facts: SceneFacts) -> PolynomialExpert:
        """See `Expert.build`."""
        return cls(config.motion, facts)

    def per_gaussian(self, count: int) -> dict[str, Tensor]:
        """No motion, and visible over the whole clip if the initial width is large."""
        return {
            "motion": torch.zeros(count, DEGREE, 3),
            "omega": torch.zeros(count, 4),
            "trbf_center": self._centers(count),
            "trbf_scale": torch.full((count, 1), self.initial_width),
        }

    def _centers(self, count: int) -> Tensor:
        """Initial (N, 1) centres in time."""
        if self.spread:
            return torch.rand(count, 1)
        return torch.full((count, 1), INITIAL_CENTER)

    def offspring(self, gaussians: GaussianModel, parents: Tensor) -> dict[str, Tensor]:
        """Where centres are spread, a new Gaussian has one of its own."""
        if not self.spread:
            return {}
        return {"trbf_center": self._centers(len(parents)).to(parents.device)}

    def per_gaussian_rates(self, config: Config) -> dict[str, LearningRate]:
        """The motion's goes with the positions', the others are constant."""
        opt = config.opt
        share = 0.5 * opt.movelr * self.extent
        motion = LearningRate(
            share * opt.position_lr_init, share * opt.position_lr_final, opt.position_lr_max_steps
        )
        return {
            "motion": motion,
            "omega": LearningRate(opt.omega_lr),
            "trbf_center": LearningRate(opt.trbfc_lr),
            "trbf_scale": LearningRate(opt.trbfs_lr),
        }

    def forward(self, canonical: Canonical, moment: Moment, wanted: frozenset[str]) -> Deformation:
        """See `Expert.forward`."""
        since = moment.time - canonical.extra["trbf_center"]  # (N, 1)
        fixed = since.detach()
        deformation = Deformation()
        if "xyz" in wanted:
            powers = torch.stack([fixed, fixed**2, fixed**3], dim=1)  # (N, 3, 1)
            deformation.xyz = (canonical.extra["motion"] * powers).sum(1)
        if "rotation" in wanted:
            deformation.rotation = fixed * canonical.extra["omega"]
        if "opacity" in wanted:
            exponent = (since * torch.exp(-canonical.extra["trbf_scale"])).square()
            deformation.opacity = visibility_delta(canonical.opacity, exponent)
        return deformation
