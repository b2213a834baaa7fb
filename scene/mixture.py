"""MoDE: several experts deform one set of canonical Gaussians, a router blends what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arguments_MoDE.config import Config
from scene.experts import REGISTRY, Deformation, Expert, Moment, SceneFacts
from scene.gaussian_model import Canonical, GaussianModel
from scene.router import ATTRIBUTES, Router, balance_loss, entropy, knots_for
from utils.devices import reading_waits
from utils.errors import UserError

RawSplats = dict[str, Tensor]  # attribute of `ATTRIBUTES` -> raw values (N, ...)
WORTH_SKIPPING = 0.9  # share of the Gaussians above which picking them out costs more than it saves


@dataclass(frozen=True)
class Splats:
    """Gaussians at one time, as the rasteriser takes them: it applies the activations itself."""

    means: Tensor  # (N, 3) world units
    log_scales: Tensor  # (N, 3)
    quaternions: Tensor  # (N, 4) wxyz, of any length
    opacity_logits: Tensor  # (N, 1)
    sh: Tensor  # (N, M, 3)

    @property
    def scales(self) -> Tensor:
        """(N, 3) standard deviations, world units."""
        return self.log_scales.exp()

    @property
    def rotations(self) -> Tensor:
        """(N, 4) unit quaternions wxyz."""
        return F.normalize(self.quaternions, dim=-1)

    @property
    def opacities(self) -> Tensor:
        """(N, 1) in (0, 1)."""
        return self.opacity_logits.sigmoid()


def blend(canonical: Tensor, deltas: list[Tensor | None], gates: Tensor) -> Tensor:
    """canonical + sum over experts of gate x delta; None is a zero delta.

    Args:
        canonical: (N, ...).
        deltas: E entries, each (N, ...) or None.
        gates: (N, E).
    """
    total = canonical
    for gate, delta in zip(gates.unbind(1), deltas, strict=True):
        if delta is not None:
            total = torch.addcmul(total, _per_row(gate, delta), delta)
    return total


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


def align_hemisphere(
    canonical: Tensor, deltas: list[Tensor | None], gates: Tensor | None = None
) -> list[Tensor | None]:
    """Rewrites quaternion deltas so that every canonical + delta is in one hemisphere.

    q and -q are one rotation; blended without this, two experts that agree can cancel. The
    hemisphere is that of the expert that counts most: another one may have hardly a weight, or none
    and not be computed, and says nothing of which signs the others should have.

    Args:
        gates: (N, E); None, and of two experts: the first one's hemisphere, the rotation is the
            same.
    """
    rotations = [canonical if delta is None else canonical + delta for delta in deltas]
    reference, first = rotations[0].detach(), 1
    if gates is not None and len(deltas) > 2:
        every = torch.stack([rotation.detach() for rotation in rotations], dim=1)  # (N, E, 4)
        strongest = gates.detach().argmax(-1)[:, None, None]
        reference, first = torch.take_along_dim(every, strongest, dim=1)[:, 0], 0
    aligned = deltas[:first]
    for rotation, delta in zip(rotations[first:], deltas[first:], strict=True):
        opposite = (rotation.detach() * reference).sum(-1, keepdim=True) < 0
        if not reading_waits(opposite) and not opposite.any():
            aligned.append(delta)
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
        self.attribute_experts = self._attribute_experts()
        self.router = self._build_router()
        self._register()

    def _attribute_experts(self) -> dict[str, tuple[int, ...]]:
        """Attribute -> rows of the experts that deform it: all that can if it is mixed."""
        hidden = self.config.hidden
        mixed = {
            "xyz": hidden.MoE_mean,
            "rotation": hidden.MoE_rotation,
            "log_scale": hidden.MoE_scale,
            "opacity": hidden.MoE_opacity,
            "sh": hidden.MoE_sh,
        }
        able = {
            a: tuple(k for k, e in enumerate(self.experts.values()) if a in e.attributes)
            for a in ATTRIBUTES
        }
        return {a: able[a] if mixed[a] else able[a][:1] if 0 in able[a] else () for a in able}

    def _build_router(self) -> Router:
        hidden = self.config.hidden
        # With one expert its gate is 1 whatever the logits are: nothing to store or to learn.
        members = {a: rows for a, rows in self.attribute_experts.items() if len(rows) > 1}
        return Router(
            members,
            hidden.control_num or knots_for(self.facts.frames),
            gate=hidden.gate,
            temperature=hidden.temp,
            top_k=hidden.moe_top_k,
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

    def offspring(self, parents: Tensor) -> dict[str, Tensor]:
        """The experts' parameters in which new Gaussians differ from ``parents`` (M,)."""
        values: dict[str, Tensor] = {}
        for expert in self.experts.values():
            values |= expert.offspring(self.gaussians, parents)
        return values

    def evolve(self, iteration: int) -> None:
        """What experts change outside of gradients, after ``iteration`` of the fine stage."""
        for expert in self.experts.values():
            expert.evolve(self.gaussians, iteration)

    def carried(self) -> dict[str, Tensor]:
        """What the experts need to go on training besides parameters: "expert/name" -> tensor."""
        return {
            f"{name}/{key}": value
            for name, expert in self.experts.items()
            for key, value in expert.carried().items()
        }

    def carry_on(self, tensors: Mapping[str, Tensor]) -> None:
        """Gives the experts what `carried` took from them."""
        canonical = self.gaussians.canonical()
        for name, expert in self.experts.items():
            start = f"{name}/"
            own = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
            expert.carry_on(canonical, own)

    def wanted(self, index: int) -> frozenset[str]:
        """Attributes that expert ``index`` must compute."""
        return frozenset(a for a, rows in self.attribute_experts.items() if index in rows)

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
            return splats_of(raw_attributes(canonical))
        moment = Moment(time, iteration, camera_index)
        warming_up = self.warming_up(iteration, stage)
        return splats_of(self.mix(canonical, moment, warming_up=warming_up))

    def mix(self, canonical: Canonical, moment: Moment, *, warming_up: bool = False) -> RawSplats:
        """The raw attributes after the blended deformation of all experts."""
        added = self.router.gate == "sum"
        published = self.config.hidden.mixing == "published" and not added
        gates = self.router(canonical, moment.time, warming_up=warming_up)
        parts = self._deformations(canonical, moment, gates, detached=published)
        raw = raw_attributes(canonical)
        for attribute, base in raw.items():
            rows = self.attribute_experts[attribute]
            deltas = [getattr(parts[k], attribute) for k in rows]
            if attribute not in gates:  # one expert's alone, or nobody's
                raw[attribute] = reduce(torch.add, (d for d in deltas if d is not None), base)
                continue
            if attribute == "rotation" and not (published or added):
                deltas = align_hemisphere(base, deltas, gates[attribute])
            rule = blend_published if published else blend
            raw[attribute] = rule(base, deltas, gates[attribute])
        return raw

    def _deformations(
        self, canonical: Canonical, moment: Moment, gates: dict[str, Tensor], *, detached: bool
    ) -> list[Deformation]:
        """What every expert says; without gradients, only of Gaussians where it has a weight.

        Args:
            detached: whether all experts but the first see the canonical set without gradient.
        """
        guest = canonical.detach() if detached else canonical
        skip = not torch.is_grad_enabled()
        parts = []
        for k, expert in enumerate(self.experts.values()):
            seen = canonical if k == 0 else guest
            rows = self._needed_rows(k, gates) if skip else None
            if rows is None:
                parts.append(expert(seen, moment, self.wanted(k)))
            elif len(rows) == 0:
                parts.append(Deformation())
            else:
                part = expert(seen.subset(rows), moment, self.wanted(k))
                parts.append(part.scattered(rows, len(canonical.xyz)))
        return parts

    def _needed_rows(self, index: int, gates: dict[str, Tensor]) -> Tensor | None:
        """Gaussians for which expert ``index`` has a gate above zero; None: (nearly) all.

        How many they are is read from the device. That is not asked where no gate is dropped.
        """
        if not self.router.drops:
            return None
        needed = None
        for attribute, experts in self.attribute_experts.items():
            if index not in experts:
                continue
            if attribute not in gates:  # ungated
                return None
            used = gates[attribute][:, experts.index(index)] > 0
            needed = used if needed is None else needed | used
        if needed is None:
            return None
        rows = needed.nonzero()[:, 0]
        return rows if len(rows) < WORTH_SKIPPING * len(needed) else None

    def gates(self, time: float) -> dict[str, Tensor]:
        """Attribute -> gates (N, experts) at ``time``, zero where an expert has no part in it.

        Only of attributes that are routed.
        """
        canonical = self.gaussians.canonical()
        full = {}
        for attribute, gate in self.router(canonical, time).items():
            wide = gate.new_zeros(len(gate), len(self.experts))
            wide[:, list(self.router.members[attribute])] = gate
            full[attribute] = wide
        return full

    def regularizers(self, times: Sequence[float] = (), iteration: int = 0) -> dict[str, Tensor]:
        """The weighted terms of the loss besides the image's, by name.

        Args:
            times: of the batch; the router's terms are means over their gates.
            iteration: of the fine stage.
        """
        canonical = self.gaussians.canonical()
        terms: dict[str, Tensor] = {}
        for expert in self.experts.values():
            terms |= expert.regularizers(canonical, self.config)
        if not self.warming_up(iteration, "fine"):
            terms |= self._router_terms(canonical, times, iteration)
        return terms

    def _router_terms(
        self, canonical: Canonical, times: Sequence[float], iteration: int
    ) -> dict[str, Tensor]:
        opt = self.config.opt
        share = min(iteration / max(opt.iterations, 1), 1.0)
        weights = {
            "gate_balance": (opt.balance_weight, balance_loss),
            "gate_entropy": (
                (1 - share) * opt.entropy_weight_init + share * opt.entropy_weight_final,
                entropy,
            ),
        }
        weights = {name: pair for name, pair in weights.items() if pair[0] != 0}
        if not (weights and self.router.learned and times):
            return {}
        whole = [self.router(canonical, t, drop=False) for t in set(times)]
        kept = [self.router.dropped(gates) for gates in whole]
        # What is kept of a gate is more decided than the router is, and of one expert entirely so.
        of = {"gate_balance": kept, "gate_entropy": whole}
        return {
            name: weight
            * torch.stack([measure(g) for gates in of[name] for g in gates.values()]).mean()
            for name, (weight, measure) in weights.items()
        }


def raw_attributes(canonical: Canonical) -> RawSplats:
    """The canonical attributes by the router's names; ``sh`` is (N, 16, 3)."""
    return {
        "xyz": canonical.xyz,
        "rotation": canonical.rotation,
        "log_scale": canonical.log_scale,
        "opacity": canonical.opacity,
        "sh": torch.cat([canonical.f_dc, canonical.f_rest], dim=1),
    }


def splats_of(raw: RawSplats) -> Splats:
    """The attributes by the names that a renderer knows them by."""
    return Splats(raw["xyz"], raw["log_scale"], raw["rotation"], raw["opacity"], raw["sh"])
