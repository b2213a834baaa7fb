"""The hash-grid expert (Grid4D, Xu et al., NeurIPS 2024).

A hash grid over space gives each Gaussian an attention vector, which does not depend on time; three
hash grids over (x, y, t), (y, z, t) and (x, z, t) give it features of the moment. Their product is
decoded to a warp (a rotation about the box's centre and a translation) and to changes of rotation
and scale.

Deviations from the published field: its box is that of the scene's points instead of a constant,
with everything outside contracted into a margin (published: points beyond the constant get zero
features and no gradient); time covers the whole time axis (published: nine tenths); the warp turns
about the box's centre and its translation is in units of the box, so that a network output means
the same in a scene of any size (published: the world's origin and units); scales change before the
activation like everything else (published: after); and the two smoothness terms, which MoDE
computes without adding them to its loss, are in it.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hash_encoder import HashEncoder, HashGrid
from scene.experts.base import (
    Deformation,
    Expert,
    LearningRate,
    Moment,
    ParameterGroup,
    SceneFacts,
)
from scene.gaussian_model import Canonical

if TYPE_CHECKING:
    from arguments_MoDE.config import Config, ModelHashParams

SPACE_PAIRS = ((0, 1), (1, 2), (0, 2))  # xy, yz, xz, each with t
MARGIN = 0.25  # of the half box: where the grids hold what lies outside the box, out to infinity
OUTSIDE_WORTH_A_WARNING = 0.01  # share of the points; a few always drift out
OUTSIDE_INTERVAL = 100  # iterations after which they are counted
WARP_SIZE, IDENTITY = 7, (1.0, 0.0, 0.0, 0.0)


class Box(nn.Module):
    """Maps world positions to [0, 1]^3: the box linearly, the rest of space into a margin.

    An axis with u in [-1, 1] inside the box goes to 1 + m - m^2 / (|u| - 1 + m) beyond it, with the
    sign of u and m the margin: value and slope are continuous, and infinity lands on 1 + m.
    """

    def __init__(self, bbox: Tensor) -> None:
        """``bbox``: (2, 3) lowest and highest corner in world units; sides may be zero."""
        super().__init__()
        low, high = bbox.float()
        sides = high - low
        longest = sides.max().clamp_min(torch.finfo(torch.float32).tiny)
        self.register_buffer("center", (low + high) / 2)
        self.register_buffer("half_sides", torch.maximum(sides, 1e-3 * longest) / 2)  # (3,)

    @property
    def size(self) -> Tensor:
        """Scalar: half of the longest side, world units."""
        return self.half_sides.max()

    def outside(self, xyz: Tensor) -> Tensor:
        """(N,) whether each of ``xyz`` (N, 3) lies outside the box."""
        return ((xyz - self.center).abs() > self.half_sides * (1 + 1e-5)).any(dim=-1)

    def forward(self, xyz: Tensor) -> Tensor:
        """(N, 3) in [0, 1] from world positions (N, 3)."""
        u = (xyz - self.center) / self.half_sides
        beyond = (u.abs() - 1).clamp_min(0)
        squeezed = u.sign() * (1 + MARGIN - MARGIN**2 / (beyond + MARGIN))
        u = torch.where(beyond > 0, squeezed, u)
        return 0.5 + 0.5 * u / (1 + MARGIN)


def rotation_displacement(quaternions: Tensor, vectors: Tensor) -> Tensor:
    """R(q) v - v, exact where the rotation is small.

    Args:
        quaternions: (N, 4) wxyz, not normalised.
        vectors: (N, 3).

    Returns:
        (N, 3)
    """
    q = nn.functional.normalize(quaternions, dim=-1)
    axis = q[:, 1:]
    turn = 2 * torch.linalg.cross(axis, vectors)
    return q[:, :1] * turn + torch.linalg.cross(axis, turn)


def _grid(arguments: dict[str, Any], kind: str) -> HashGrid:
    """The grid that the keys of ``arguments`` with the prefix ``kind`` describe."""
    return HashGrid(
        dims=3,
        levels=arguments[f"{kind}_num_levels"],
        features=arguments[f"{kind}_level_dim"],
        base=arguments[f"{kind}_base_resolution"],
        desired=arguments[f"{kind}_desired_resolution"],
        log2_size=arguments[f"{kind}_log2_hashmap_size"],
    )


def _offsets(like: Tensor, largest: Tensor | float) -> Tensor:
    return (2 * torch.rand_like(like) - 1) * largest


class HashGridExpert(Expert):
    """Deltas decoded from hash grids at the canonical position, which gets no gradient by them."""

    name = "hash"

    def __init__(
        self, settings: ModelHashParams, facts: SceneFacts, zero_init_heads: bool = False
    ) -> None:
        """Builds grids and network as the configuration says."""
        super().__init__()
        self.box = Box(facts.bbox)
        self.space = HashEncoder(_grid(settings.grid_args, "canonical"))
        grid = _grid(settings.grid_args, "deform")
        self.space_time = nn.ModuleList(HashEncoder(grid) for _ in SPACE_PAIRS)
        width = settings.network_args["width"]
        self.directional = settings.network_args["directional"]
        self.of_space = nn.Linear(self.space.grid.width, width)
        self.of_moment = nn.Linear(len(SPACE_PAIRS) * grid.width, width)
        layers = [nn.Linear(width, width) for _ in range(settings.network_args["depth"])]
        self.hidden = nn.Sequential(*(m for layer in layers for m in (layer, nn.ReLU())))
        disabled = {
            "xyz": False,
            "log_scale": settings.hash_no_ds,
            "rotation": settings.hash_no_dr,
        }
        self.attributes = frozenset(name for name, off in disabled.items() if not off)
        sizes = {"xyz": WARP_SIZE, "log_scale": 3, "rotation": 4}
        self.heads = nn.ModuleDict(
            {n: nn.Linear(width, size) for n, size in sizes.items() if n in self.attributes}
        )
        if zero_init_heads:
            for parameter in self.heads.parameters():
                nn.init.zeros_(parameter)
        self.register_buffer("identity", torch.tensor(IDENTITY), persistent=False)
        self._cached: tuple[Any, Tensor, Tensor] | None = None
        self._warned = False

    @classmethod
    def build(cls, config: Config, facts: SceneFacts) -> HashGridExpert:
        """See `Expert.build`; the published fields are in `scene.experts.hash_published`."""
        if config.hash.hash_field != "contracted":
            from scene.experts.hash_published import PublishedHashExpert

            cls = PublishedHashExpert
        return cls(config.hash, facts, config.hidden.zero_init_heads)

    def forward(self, canonical: Canonical, moment: Moment, wanted: frozenset[str]) -> Deformation:
        """See `Expert.forward`."""
        xyz = canonical.xyz.detach()
        # Rarely, and only in iterations that are logged: it is read from the device.
        if self.training and not self._warned and moment.iteration % OUTSIDE_INTERVAL == 0:
            self._warn_of_points_outside(xyz)
        unit = self.box(xyz)
        features = self._moment_features(unit, unit.new_full((len(unit), 1), moment.time))
        hidden = self.hidden(self.of_moment(features).relu() * self._attention(canonical, unit))
        deltas = {n: head(hidden) for n, head in self.heads.items() if n in wanted}
        if "xyz" in deltas:
            deltas["xyz"] = self._warp(deltas["xyz"], canonical.xyz)
        return Deformation(**deltas)

    def _warp(self, raw: Tensor, xyz: Tensor) -> Tensor:
        """Displacement (N, 3), world units, from the warp head's output (N, 7)."""
        quaternion = raw[:, :4] + self.identity
        turned = rotation_displacement(quaternion, xyz - self.box.center)
        return turned + self.box.size * raw[:, 4:]

    def _moment_features(self, unit: Tensor, time: Tensor) -> Tensor:
        """(N, 3 L F) of positions (N, 3) and times (N, 1), both in [0, 1]."""
        return torch.cat(
            [
                encoder(torch.cat([unit[:, a : a + 1], unit[:, b : b + 1], time], dim=1))
                for encoder, (a, b) in zip(self.space_time, SPACE_PAIRS, strict=True)
            ],
            dim=1,
        )

    def _attention(self, canonical: Canonical, unit: Tensor) -> Tensor:
        """(N, W), which does not change with time: kept between calls when rendering.

        It is kept for all Gaussians, also where only some of them are asked for.
        """
        if self.training or torch.is_grad_enabled():
            return self._compute_attention(unit)
        xyz = (canonical.whole or canonical).xyz.detach()
        sources = (xyz, *self.space.parameters(), *self.of_space.parameters())
        key = [(s.data_ptr(), s._version, s.shape) for s in sources]
        if self._cached is None or self._cached[0] != key:
            # Holding the positions keeps their memory from being given to others meanwhile.
            self._cached = (key, xyz, self._compute_attention(self.box(xyz)))
        kept = self._cached[2]
        return kept if canonical.rows is None else kept[canonical.rows]

    def _compute_attention(self, unit: Tensor) -> Tensor:
        attention = self.of_space(self.space(unit)).sigmoid()
        return 2 * attention - 1 if self.directional else attention

    def train(self, mode: bool = True) -> HashGridExpert:
        """Also frees what was kept for rendering."""
        self._cached = None
        return super().train(mode)

    def _warn_of_points_outside(self, xyz: Tensor) -> None:
        count = int(self.box.outside(xyz).sum())
        if count > OUTSIDE_WORTH_A_WARNING * len(xyz):
            self._warned = True
            warnings.warn(
                f"hash grids: {count} of {len(xyz)} points lie outside the box of the scene's "
                f"points; they share the outer {MARGIN / (1 + MARGIN):.0%} of the grids",
                stacklevel=2,
            )

    def parameter_groups(self, config: Config, extent: float) -> list[ParameterGroup]:
        """Tables and network; neither rate goes with the extent, since outputs are in box units."""
        opt = config.opt
        tables = [*self.space.parameters(), *self.space_time.parameters()]
        known = {id(table) for table in tables}
        network = [p for p in self.parameters() if id(p) not in known]
        grid_rate = LearningRate(
            opt.hash_grid_lr_init, opt.hash_grid_lr_final, opt.hash_lr_max_steps
        )
        network_rate = LearningRate(
            opt.hash_net_lr_init, opt.hash_net_lr_final, opt.hash_lr_max_steps
        )
        return [
            ParameterGroup("grids", tables, grid_rate),
            ParameterGroup("network", network, network_rate),
        ]

    def regularizers(self, canonical: Canonical, config: Config) -> dict[str, Tensor]:
        """Mean squared change of the features over a small random step, for a share of the points.

        In space for the one grid; in space and time, at a random time for each point, for the
        others.
        """
        settings, terms = config.hash, {}
        weights = (settings.hash_space_smooth_weight, settings.hash_time_smooth_weight)
        if not any(weights):
            return terms
        count = len(canonical.xyz)
        chosen = torch.randperm(count, device=canonical.xyz.device)
        chosen = chosen[: max(1, round(settings.hash_smooth_ratio * count))]
        unit = self.box(canonical.xyz.detach()[chosen])
        moved = unit + _offsets(unit, settings.hash_space_perturb)
        if weights[0]:
            change = self.space(moved) - self.space(unit)
            terms["hash_space_smoothness"] = weights[0] * change.square().sum(-1).mean()
        if weights[1]:
            time = torch.rand_like(unit[:, :1])
            later = (time + _offsets(time, settings.hash_time_perturb)).clamp(0, 1)
            change = self._moment_features(moved, later) - self._moment_features(unit, time)
            terms["hash_time_smoothness"] = weights[1] * change.square().sum(-1).mean()
        return terms
