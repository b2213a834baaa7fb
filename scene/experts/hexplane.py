"""The HexPlane expert (4DGaussians, Wu et al., CVPR 2024; HexPlane, Cao and Johnson, CVPR 2023).

Six feature planes over the pairs of the axes x, y, z, t, at several resolutions; the product of
their bilinear samples is decoded to deltas of the attributes.

Three deviations from the published field: time covers the whole time axis (published: only its
upper half), the smoothness term of a space plane covers both of its axes (published: one), and
positions are normalised by the box of the initial points without a mirrored axis (immaterial).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

import hexplane_encoder
from scene.experts.base import (
    Deformation,
    Expert,
    Heads,
    LearningRate,
    Moment,
    ParameterGroup,
    SceneFacts,
    through,
    trunk,
)
from scene.gaussian_model import Canonical
from utils.devices import reading_waits

if TYPE_CHECKING:
    from arguments_MoDE.config import Config, ModelHiddenParams

SPACE_PAIRS = ((0, 1), (0, 2), (1, 2))  # xy, xz, yz
THINNEST = 1e-3  # side of the box over its longest one


class HexPlaneField(nn.Module):
    """Multi-resolution HexPlane; features (N, C x levels)."""

    def __init__(
        self, bbox: Tensor, channels: int, resolution: list[int], levels: list[int]
    ) -> None:
        """Builds the planes.

        Args:
            bbox: (2, 3) lowest and highest corner in world units; points outside take the edge. A
                side shorter than a thousandth of the longest one is lengthened to that.
            channels: C, features per plane.
            resolution: [x, y, z, t] at level 1; time is the same at every level.
            levels: multipliers of the spatial resolution.
        """
        super().__init__()
        self.register_buffer("bbox", _thickened(bbox.float()))
        self.space = nn.ParameterList()  # (R_b, R_a, C), channels last
        self.time = nn.ParameterList()  # (R_t, R_a, C)
        for level in levels:
            size = [level * r for r in resolution[:3]]
            for a, b in SPACE_PAIRS:
                plane = torch.empty(size[b], size[a], channels).uniform_(0.1, 0.5)
                self.space.append(nn.Parameter(plane))
            for a in range(3):
                self.time.append(nn.Parameter(torch.ones(resolution[3], size[a], channels)))

    def forward(self, xyz: Tensor, time: float) -> Tensor:
        """Features of ``xyz`` (N, 3), world units, at ``time`` in [0, 1]."""
        low, high = self.bbox
        unit = (xyz - low) * (2 / (high - low).clamp_min(1e-9)) - 1
        lines = _Rows.apply(time, *self.time)
        features = [
            hexplane_encoder.encode(unit, list(self.space[i : i + 3]), lines[i : i + 3])
            for i in range(0, len(self.space), 3)
        ]
        return torch.cat(features, dim=-1)


def _thickened(bbox: Tensor) -> Tensor:
    """The box (2, 3) with sides that planes can be told apart along, for a cloud that is flat."""
    low, high = bbox
    least = THINNEST * (high - low).max()
    missing = (least - (high - low)).clamp_min(0) / 2
    return torch.stack([low - missing, high + missing])


class _Rows(torch.autograd.Function):
    """Planes (R_t, R, C) interpolated linearly to their lines (R, C) at one time.

    With the derivative worked out: autograd would fill a plane with zeros for each of the two rows
    that a line is made of, and add them up.
    """

    @staticmethod
    def forward(ctx, time: float, *planes: Tensor) -> tuple[Tensor, ...]:
        ctx.shapes = [plane.shape for plane in planes]
        ctx.places = [_place(time, len(plane)) for plane in planes]
        ctx.set_materialize_grads(False)
        return tuple(
            plane[i].clone() if u == 0.0 else torch.lerp(plane[i], plane[i + 1], u)
            for plane, (i, u) in zip(planes, ctx.places, strict=True)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        results: list[Tensor | None] = []
        for grad, shape, (i, u) in zip(grads, ctx.shapes, ctx.places, strict=True):
            results.append(None if grad is None else grad.new_zeros(shape))
            if grad is not None and u == 0.0:
                results[-1][i] = grad
            elif grad is not None:
                torch.mul(grad, 1 - u, out=results[-1][i])
                torch.mul(grad, u, out=results[-1][i + 1])
        return None, *results


def _place(time: float, rows: int) -> tuple[int, float]:
    """The row before ``time`` in [0, 1], and how far it is to the next."""
    position = min(max(time, 0.0), 1.0) * (rows - 1)
    i = min(int(position), max(rows - 2, 0))
    return i, position - i


class _Curvature(torch.autograd.Function):
    """Mean squared second difference along a dimension of at least 3 samples.

    With the derivative worked out: half the time of ``diff(n=2).square().mean()``. On the CPU
    `hexplane_encoder.roughness` computes it for all planes at once.
    """

    @staticmethod
    def forward(ctx, plane: Tensor, dim: int) -> Tensor:
        size = plane.shape[dim] - 2
        bend = plane.narrow(dim, 2, size) + plane.narrow(dim, 0, size)
        bend.sub_(plane.narrow(dim, 1, size), alpha=2)
        ctx.save_for_backward(bend)
        ctx.shape, ctx.dim = plane.shape, dim
        return bend.square().mean()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (bend,) = ctx.saved_tensors
        dim, size = ctx.dim, bend.shape[ctx.dim]
        scaled = bend * (2 * gradient / bend.numel())
        result = scaled.new_zeros(ctx.shape)
        result.narrow(dim, 0, size).copy_(scaled)
        result.narrow(dim, 1, size).sub_(scaled, alpha=2)
        result.narrow(dim, 2, size).add_(scaled)
        return result, None


def _curvature(plane: Tensor, dim: int) -> Tensor:
    """Mean squared second difference along ``dim``; zero where there are fewer than 3 samples."""
    if plane.shape[dim] < 3:
        return plane.new_zeros(())
    return _Curvature.apply(plane, dim)


def _roughness(field: HexPlaneField) -> tuple[Tensor, Tensor, Tensor]:
    """See `hexplane_encoder.roughness`; its planes may be on a GPU."""
    space, time = list(field.space), list(field.time)
    if not reading_waits(space[0]):
        return hexplane_encoder.roughness(space, time)
    smooth = sum(0.5 * (_curvature(p, 0) + _curvature(p, 1)) for p in space)
    steady = sum(_curvature(p, 0) for p in time)
    return smooth, steady, sum((1 - p).abs().mean() for p in time)


class HexPlaneExpert(Expert):
    """Deltas decoded from a HexPlane at the canonical position."""

    name = "hexplane"

    def __init__(self, hidden: ModelHiddenParams, facts: SceneFacts) -> None:
        """Builds field and decoder as the configuration says."""
        super().__init__()
        planes = hidden.kplanes_config
        channels = planes["output_coordinate_dim"]
        self.field = HexPlaneField(facts.bbox, channels, planes["resolution"], hidden.multires)
        self.first = nn.Linear(channels * len(hidden.multires), hidden.net_width)
        self.trunk = trunk(hidden.net_width, hidden.defor_depth)
        disabled = {
            "xyz": hidden.no_dx,
            "log_scale": hidden.no_ds,
            "rotation": hidden.no_dr,
            "opacity": hidden.no_do,
            "sh": hidden.no_dshs,
        }
        self.attributes = frozenset(name for name, off in disabled.items() if not off)
        self.heads = Heads(hidden.net_width, self.attributes)
        for module in (self.first, *self.trunk):
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        self.heads.xavier_()
        if hidden.zero_init_heads:
            self.heads.zero_last_()

    @classmethod
    def build(cls, config: Config, facts: SceneFacts) -> HexPlaneExpert:
        """See `Expert.build`."""
        return cls(config.hidden, facts)

    def forward(self, canonical: Canonical, moment: Moment, wanted: frozenset[str]) -> Deformation:
        """See `Expert.forward`."""
        features = self.field(canonical.xyz, moment.time)
        before = (self.first.weight, self.first.bias)
        return self.heads(*through(self.trunk, features, before), wanted)

    def parameter_groups(self, config: Config, extent: float) -> list[ParameterGroup]:
        """Planes and decoder, each with its own decay over ``position_lr_max_steps``."""
        opt = config.opt
        scale = extent if opt.scale_lr_by_extent else 1.0
        planes = list(self.field.parameters())
        decoder = [p for n, p in self.named_parameters() if not n.startswith("field.")]

        def rate(initial: float, final: float) -> LearningRate:
            return LearningRate(initial * scale, final * scale, opt.position_lr_max_steps)

        return [
            ParameterGroup("grid", planes, rate(opt.grid_lr_init, opt.grid_lr_final)),
            ParameterGroup(
                "deformation", decoder, rate(opt.deformation_lr_init, opt.deformation_lr_final)
            ),
        ]

    def regularizers(self, canonical: Canonical, config: Config) -> dict[str, Tensor]:
        """Smoothness in space and time and closeness of the time planes to 1 (sums over planes)."""
        hidden = config.hidden
        weights = {
            "plane_tv": hidden.plane_tv_weight,
            "time_smoothness": hidden.time_smoothness_weight,
            "l1_time": hidden.l1_time_planes,
        }
        if not any(weights.values()):
            return {}
        values = dict(zip(weights, _roughness(self.field), strict=True))
        return {name: weight * values[name] for name, weight in weights.items() if weight}
