"""MoDE: several experts deform one set of canonical Gaussians, a router blends what they say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arguments_MoDE.config import Config
from scene.experts import REGISTRY, Expert, Moment, SceneFacts
from scene.gaussian_model import Canonical, GaussianModel
from scene.router import ATTRIBUTES, Router
from utils.errors import UserError

RawSplats = dict[str, Tensor]  # attribute of `ATTRIBUTES` -> raw values (N, ...)


@dataclass(frozen=True)
class Splats:
    """Activated Gaussians at one time, ready for the rasteriser."""

    means: Tensor  # (N, 3) world units
    scales: Tensor  # (N, 3) standard deviations, world units
    rotations: Tensor  # (N, 4) unit quaternions wxyz
    opacities: Tensor  # (N, 1) in (0, 1)
    sh: Tensor  # (N, M, 3)


def blend(canonical: Tensor, deltas: list[Tensor | None], gates: Tensor) -> Tensor:
    """canonical + sum over experts of gate x delta; None is a zero delta.

    Args:
        canonical: (N, ...).
        deltas: E entries, each (N, ...) or None.
        gates: (N, E).
    """
    return reduce(
        torch.add,
        (_per_row(gates[:, k], d) * d for k, d in enumerate(deltas) if d is not None),
        canonical,
    )


def blend_published(canonical: Tensor, deltas: list[Tensor | None], gates: Tensor) -> Tensor:
    """Sum over experts of gate x absolute value, all but the first on the detached canonical set.

    The published mixing: the same value as `blend`, but the canonical set's gradient is scaled by
    the first expert's gate.
    """
    total = None
    for k, delta in enumerate(deltas):
        value = canonical if k == 0 else canonical.detach()
        value = value if delta is None else value + delta
        term = _per_row(gates[:, k], value) * value
        total = term if total is None else total + term
    return total


def align_hemisphere(canonical: Tensor, deltas: list[Tensor | None]) -> list[Tensor | None]:
    """Rewrites quaternion deltas so that every canonical + delta is in the first one's hemisphere.

    q and -q are one rotation; blended without this, two experts that agree can cancel.
    """
    reference = (canonical if deltas[0] is None else canonical + deltas[0]).detach()
    aligned: list[Tensor | None] = [deltas[0]]
    for delta in deltas[1:]:
        rotation = canonical if delta is None else canonical + delta
        opposite = (rotation.detach() * reference).sum(-1, keepdim=True) < 0
        if delta is None and not opposite.any():
            aligned.append(None)
            continue
        aligned.append(torch.where(opposite, -rotation, rotation) - canonical)
    return aligned


def _per_row(gate: Tensor, value: Tensor) -> Tensor:
    return gate.view(-1, *([1] * (value.dim() - 1)))


class MoDE(nn.Module):
    """Canonical Gaussians, experts and router: what is trained, saved and rendered."""

    def __init__(self, gaussians: GaussianModel, config: Config, facts: SceneFacts) -> None:
        """Builds the experts that ``config`` names and registers their per-Gaussian parameters.

        Parameters that ``gaussians`` already has (loaded from a run) are kept.
        """
        super().__init__()
        self.config = config
        self.facts = facts
        self.gaussians = gaussians
        names = [] if config.hidden.static else config.hidden.experts
        self.experts: Mapping[str, Expert] = nn.ModuleDict(
            {name: REGISTRY[name](config, facts) for name in names}
        )
        self.router = self._build_router()
        self._register()

    def _build_router(self) -> Router:
        hidden = self.config.hidden
        mixed = {
            "xyz": hidden.MoE_mean,
            "rotation": hidden.MoE_rotation,
            "log_scale": hidden.MoE_scale,
            "opacity": hidden.MoE_opacity,
            "sh": hidden.MoE_sh,
        }
        # With one expert its gate is 1 whatever the logits are: nothing to store or to learn.
        routed = tuple(a for a in ATTRIBUTES if mixed[a] and len(self.experts) > 1)
        return Router(
            max(len(self.experts), 1),
            routed,
            hidden.control_num,
            gate=hidden.gate,
            temperature=hidden.temp,
            top_k=min(hidden.moe_top_k, len(self.experts)),
            warmup=self.config.opt.warmup_gate,
        )

    def _register(self) -> None:
        count = len(self.gaussians)
        initial: dict[str, Tensor] = {}
        for expert in self.experts.values():
            initial |= expert.per_gaussian(count)
        initial |= self.router.initial_parameters(count, torch.default_generator)
        for name, value in initial.items():
            if name not in self.gaussians.values:
                self.gaussians.register(name, value)
            elif self.gaussians[name].shape != value.shape:
                raise UserError(
                    f"{name} has shape {list(self.gaussians[name].shape[1:])} per Gaussian where "
                    f"the settings ask for {list(value.shape[1:])}: config.json and model differ"
                )

    def wanted(self, index: int) -> frozenset[str]:
        """Attributes that expert ``index`` must compute: the mixed ones; all, for the first."""
        expert = list(self.experts.values())[index]
        return expert.attributes if index == 0 else expert.attributes & set(self.router.attributes)

    def warming_up(self, iteration: int, stage: str) -> bool:
        """Whether the router does not decide yet."""
        return stage == "fine" and self.training and iteration < self.config.opt.gaiting_from_iter

    def deform(
        self,
        time: float,
        *,
        camera_index: int | None = None,
        iteration: int = 0,
        stage: str = "fine",
    ) -> Splats:
        """The Gaussians at ``time`` in [0, 1].

        Args:
            camera_index: row of the training camera, None for a camera never seen.
            iteration: of the fine stage, for the schedules inside experts.
            stage: ``coarse`` returns the canonical Gaussians.
        """
        canonical = self.gaussians.canonical()
        if stage == "coarse" or not self.experts:
            return activate(raw_attributes(canonical))
        moment = Moment(time, iteration, camera_index)
        warming_up = self.warming_up(iteration, stage)
        return activate(self.mix(canonical, moment, warming_up=warming_up))

    def mix(self, canonical: Canonical, moment: Moment, *, warming_up: bool = False) -> RawSplats:
        """The raw attributes after the blended deformation of all experts."""
        published = self.config.hidden.mixing == "published"
        guest = canonical.detach() if published else canonical
        parts = [
            expert(canonical if k == 0 else guest, moment, self.wanted(k))
            for k, expert in enumerate(self.experts.values())
        ]
        gates = self.router(canonical, moment.time, warming_up=warming_up)
        raw = raw_attributes(canonical)
        for attribute, base in raw.items():
            deltas = [getattr(part, attribute) for part in parts]
            if attribute not in gates:  # the host's alone
                raw[attribute] = base if deltas[0] is None else base + deltas[0]
                continue
            if attribute == "rotation" and not published:
                deltas = align_hemisphere(base, deltas)
            rule = blend_published if published else blend
            raw[attribute] = rule(base, deltas, gates[attribute])
        return raw

    def regularizers(self) -> dict[str, Tensor]:
        """The experts' weighted terms of the loss, by name."""
        canonical = self.gaussians.canonical()
        terms: dict[str, Tensor] = {}
        for expert in self.experts.values():
            terms |= expert.regularizers(canonical, self.config)
        return terms


def raw_attributes(canonical: Canonical) -> RawSplats:
    """The canonical attributes by the router's names; ``sh`` is (N, 16, 3)."""
    return {
        "xyz": canonical.xyz,
        "rotation": canonical.rotation,
        "log_scale": canonical.log_scale,
        "opacity": canonical.opacity,
        "sh": torch.cat([canonical.f_dc, canonical.f_rest], dim=1),
    }


def activate(raw: RawSplats) -> Splats:
    """Applies the activations: exp, normalise, sigmoid."""
    return Splats(
        means=raw["xyz"],
        scales=raw["log_scale"].exp(),
        rotations=F.normalize(raw["rotation"], dim=-1),
        opacities=raw["opacity"].sigmoid(),
        sh=raw["sh"],
    )
