"""The keyframe expert (after Ex4DGS, Lee et al., NeurIPS 2024).

Each Gaussian has a displacement and a quaternion at keyframes spread evenly over the clip. Between
them positions follow a cubic Hermite spline with finite differences as tangents, rotations the
shortest arc (slerp).

With ``keyframe_opacity`` a Gaussian is visible between two moments of its own, c0 and c1, and fades
on either side of them, d the time from the nearer one, as exp(-(d / s)^2), s of that side.

With ``keyframe_sets`` there are static Gaussians, which move along a line, x + t v, and dynamic
ones, which have all of the above; nothing of it is computed for static ones. All start static. Now
and then those that move farthest become dynamic, their keyframes on the line that they moved on.
Which they are is a parameter that nobody optimises, so clones, children and saved models keep it.

Deviations: keyframes hold differences to the canonical Gaussian, which is what makes them mixable;
tangents at the ends are one-sided (published: frames of padding); rotations take the shorter way
round (published: whichever the signs say); before both moments the distance is to the nearer
(published: to the later, so that opacity jumps); farthest is by v alone (published: by v over the
squared distance from one camera, among Gaussians seen by it, and again where the loss is largest);
clones and children are visible when their parents are (published: moments of their own, nearby).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from scene.experts.base import Deformation, Expert, LearningRate, Moment, SceneFacts
from scene.experts.polynomial import visibility_delta
from scene.gaussian_model import Canonical, GaussianModel
from scene.router import hermite_weights

if TYPE_CHECKING:
    from arguments_MoDE.config import Config, ModelMotionParams

NEAREST = 1 - 1e-4  # cosine above which an arc is a line within float32
INITIAL_SPAN = (0.25, 0.75)  # published: for the moment t of the smallest error, t/2 and (1 + t)/2
SHORTEST_FADE = 1.27  # frames; published: 3 of padding over 2.36
DYNAMIC = 0.5  # above it the flag says dynamic


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


def fading(time: float, span: Tensor, log_fade: Tensor, shortest: float) -> Tensor:
    """-log of the visibility at ``time``: 0 between two moments, the squared distance outside.

    Args:
        span: (N, 2) the two moments, in any order.
        log_fade: (N, 2) log-widths of the fading before the earlier and after the later one.
        shortest: is added to both widths.

    Returns:
        (N, 1), at least 0.
    """
    low, high = span.amin(-1, keepdim=True), span.amax(-1, keepdim=True)
    width = log_fade.exp() + shortest
    before, after = (low - time).clamp_min(0), (time - high).clamp_min(0)
    return (before / width[:, :1]).square() + (after / width[:, 1:]).square()


class KeyframeExpert(Expert):
    """Deltas interpolated between keyframes of each Gaussian."""

    name = "keyframe"

    def __init__(self, settings: ModelMotionParams, facts: SceneFacts) -> None:
        """There are no parameters but those of the Gaussians."""
        super().__init__()
        self.keyframes, self.extent = settings.keyframe_num, facts.extent
        self.sets, self.fades = settings.keyframe_sets, settings.keyframe_opacity
        self.initial_fade = settings.keyframe_fade_init
        self.shortest = SHORTEST_FADE / max(facts.frames - 1, 1)
        self.share = settings.keyframe_extract_share
        self.interval = settings.keyframe_extract_interval
        self.attributes = frozenset({"xyz", "rotation"} | ({"opacity"} if self.fades else set()))

    @classmethod
    def build(cls, config: Config, facts: SceneFacts) -> KeyframeExpert:
        """See `Expert.build`."""
        return cls(config.motion, facts)

    def per_gaussian(self, count: int) -> dict[str, Tensor]:
        """Every keyframe is the canonical Gaussian, and with sets all are static."""
        values = {
            "keyframe_xyz": torch.zeros(count, self.keyframes, 3),
            "keyframe_rotation": torch.zeros(count, self.keyframes, 4),
        }
        if self.fades:
            values["keyframe_span"] = torch.tensor(INITIAL_SPAN).repeat(count, 1)
            values["keyframe_fade"] = torch.full((count, 2), self.initial_fade)
        if self.sets:
            values["keyframe_velocity"] = torch.zeros(count, 3)
            values["keyframe_dynamic"] = torch.zeros(count, 1)
        return values

    def per_gaussian_rates(self, config: Config) -> dict[str, LearningRate]:
        """That of positions goes with the canonical ones', the others are constant."""
        opt = config.opt
        share = opt.keyframe_lr * self.extent
        xyz = LearningRate(
            share * opt.position_lr_init, share * opt.position_lr_final, opt.position_lr_max_steps
        )
        rates = {"keyframe_xyz": xyz, "keyframe_rotation": LearningRate(opt.keyframe_rotation_lr)}
        if self.fades:
            rates["keyframe_span"] = LearningRate(opt.keyframe_span_lr)
            rates["keyframe_fade"] = LearningRate(opt.keyframe_fade_lr)
        if self.sets:
            rates["keyframe_velocity"] = xyz
        return rates

    def forward(self, canonical: Canonical, moment: Moment, wanted: frozenset[str]) -> Deformation:
        """See `Expert.forward`."""
        if not self.sets:
            return self._dynamic(canonical, moment, wanted)
        dynamic = canonical.extra["keyframe_dynamic"][:, 0] > DYNAMIC
        rows = dynamic.nonzero()[:, 0]  # a GPU is waited for
        moved = self._dynamic(canonical.subset(rows), moment, wanted)
        moved = moved.scattered(rows, len(dynamic))
        if "xyz" in wanted:
            line = moment.time * canonical.extra["keyframe_velocity"]
            moved.xyz = moved.xyz + torch.where(dynamic[:, None], 0, line)
        return moved

    def _dynamic(self, canonical: Canonical, moment: Moment, wanted: frozenset[str]) -> Deformation:
        deformation, extra = Deformation(), canonical.extra
        if "xyz" in wanted:
            deformation.xyz = self._displacement(extra["keyframe_xyz"], moment.time)
        if "rotation" in wanted:
            deformation.rotation = self._turn(
                canonical.rotation, extra["keyframe_rotation"], moment.time
            )
        if "opacity" in wanted:
            span, fade = extra["keyframe_span"], extra["keyframe_fade"]
            exponent = fading(moment.time, span, fade, self.shortest)
            deformation.opacity = visibility_delta(canonical.opacity, exponent)
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

    @torch.no_grad()
    def evolve(self, gaussians: GaussianModel, iteration: int) -> None:
        """Every ``keyframe_extract_interval``, a share of the static Gaussians become dynamic."""
        if not self.sets or iteration % self.interval:
            return
        dynamic, velocity = gaussians["keyframe_dynamic"], gaussians["keyframe_velocity"]
        static = (dynamic[:, 0] <= DYNAMIC).nonzero()[:, 0]
        speed = velocity[static].norm(dim=-1)
        chosen = speed.topk(int(self.share * len(static))).indices
        rows = static[chosen[speed[chosen] > 0]]
        times = torch.linspace(0, 1, self.keyframes, device=rows.device)
        gaussians["keyframe_xyz"][rows] = times[:, None] * velocity[rows, None]
        dynamic[rows] = 1
