"""The router: per Gaussian and per attribute, which expert to trust at which time.

Logits at K knots uniform in [0, 1], one per expert that deforms the attribute, interpolated by a
cubic Hermite spline whose tangents are finite differences (one-sided at the ends), then a softmax
over those experts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from scene.gaussian_model import Canonical
from utils.devices import reading_waits

ATTRIBUTES = ("xyz", "rotation", "log_scale", "opacity", "sh")
INITIAL_LOGIT_STD = 0.01
FRAMES_PER_KNOT = 15


def hermite_weights(time: float, knots: int) -> list[float]:
    """The weight of each knot's value at ``time``: the spline is linear in its knots.

    Args:
        time: in [0, 1]; outside it the end segments continue.
        knots: K >= 1; K = 1 is constant, K = 2 linear.

    Returns:
        K weights that sum to 1.
    """
    if knots == 1:
        return [1.0]
    position = time * (knots - 1)
    i = min(max(int(position), 0), knots - 2)
    u = position - i
    h00, h10 = (1 + 2 * u) * (1 - u) ** 2, u * (1 - u) ** 2
    h01, h11 = u * u * (3 - 2 * u), u * u * (u - 1)
    weights = [0.0] * knots
    weights[i] += h00
    weights[i + 1] += h01
    for knot, h in ((i, h10), (i + 1, h11)):  # add h x the tangent at that knot
        low, high = max(knot - 1, 0), min(knot + 1, knots - 1)
        slope = h / (high - low)
        weights[high] += slope
        weights[low] -= slope
    return weights


def knots_for(frames: int) -> int:
    """Knots for a clip of ``frames``: one more for every `FRAMES_PER_KNOT`, 3 to 12."""
    return min(max(2 + frames // FRAMES_PER_KNOT, 3), 12)


def softmax_gate(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Softmax over the experts: (N, E) logits to (N, E) weights that sum to 1 per row.

    In memory the weights lie expert by expert: on a CPU a softmax over rows of two takes ten times
    as long as one over two rows, and each expert's weights are used by themselves.
    """
    return torch.softmax(logits.t() / temperature, dim=0).t()


def interpolate(knots: Tensor, weights: Sequence[float]) -> Tensor:
    """The sum of knots (N, K, E) times ``weights`` (K): logits (N, E), in memory by expert."""
    if reading_waits(knots):  # where a tensor of the weights would be waited for
        return sum(w * knots[:, k] for k, w in enumerate(weights) if w != 0.0)
    experts = knots.shape[-1]
    of_knots = torch.tensor(weights, dtype=knots.dtype)[None, :, None]
    selected = of_knots * torch.eye(experts, dtype=knots.dtype)[:, None]  # (E, K, E)
    return (selected.flatten(1) @ knots.flatten(1).t()).t()


def published_gate(logits: Tensor) -> Tensor:
    """The published gate: logits divided by their standard deviation over the experts.

    Kept for parity only. With two experts it emits 0.8044 and 0.1956 whatever the logits are, so
    its gradient is zero and the router learns nothing.
    """
    if logits.shape[-1] == 1:
        return torch.ones_like(logits)
    spread = logits.std(dim=-1, keepdim=True).clamp_min(1e-6)
    return torch.softmax(logits / spread, dim=-1)


def keep_top(
    gates: Mapping[str, Tensor], members: Mapping[str, tuple[int, ...]], top_k: int
) -> dict[str, Tensor]:
    """Only the ``top_k`` experts that a Gaussian trusts most, their gates renormalised.

    The choice is one for all attributes of a Gaussian, by the sum of the gates over them: an expert
    must be evaluated for a Gaussian as soon as one attribute needs it, so that a choice for each
    attribute would save next to nothing. An attribute that none of the chosen experts deforms
    keeps its own best one.

    Where one gate is left it is 1, whatever the logits are: no gradient would reach them, and who
    is followed would stay what chance made it. There the gradient is that of all gates, as if none
    had been dropped (straight-through: Bengio et al., arXiv:1308.3432, section 4).

    Args:
        gates: attribute -> (N, members) weights that sum to 1 per row.
        members: attribute -> rows of the experts behind the columns.
        top_k: at least 1.
    """
    some = next(iter(gates.values()))
    total = some.new_zeros(len(some), 1 + max(max(rows) for rows in members.values()))
    # Column by column: a list as index would be copied to the device, which waits for it.
    for attribute, gate in gates.items():
        for column, row in enumerate(members[attribute]):
            total[:, row] += gate.detach()[:, column]
    chosen = torch.zeros_like(total).scatter_(-1, total.topk(top_k, dim=-1).indices, 1.0)
    kept = {}
    for attribute, gate in gates.items():
        mask = torch.stack([chosen[:, row] for row in members[attribute]], dim=-1)
        own_best = torch.zeros_like(gate).scatter_(-1, gate.detach().argmax(-1, keepdim=True), 1.0)
        any_left = (gate.detach() * mask).sum(-1, keepdim=True) > 0
        mask = torch.where(any_left, mask, own_best)
        weights = gate * mask
        weights = weights / weights.sum(dim=-1, keepdim=True)
        alone = mask.sum(-1, keepdim=True) == 1
        kept[attribute] = torch.where(alone, mask + (gate - gate.detach()), weights)
    return kept


class Router:
    """Gates from per-Gaussian knots; it owns no parameters, they live with the Gaussians."""

    def __init__(
        self,
        members: Mapping[str, tuple[int, ...]],
        knots: int,
        *,
        gate: str = "softmax",
        temperature: float = 1.0,
        top_k: int = 0,
        warmup: str = "random",
    ) -> None:
        """Routes each attribute (of `ATTRIBUTES`) between its ``members``.

        Args:
            members: attribute -> rows of the experts that deform it, at least two. An expert that
                has nothing to say about an attribute is no member: its silence would only hold
                the others back.
            top_k: experts kept per Gaussian, see `keep_top`; 0: all.
            gate: ``softmax``; ``published``; or ``sum``, which is no router at all: every gate is
                1 and the deltas add up (the baseline that a router must beat).
            warmup: gates while warming up, ``random`` per Gaussian and call, or ``uniform``, which
                drops nobody.
        """
        if knots < 1 or temperature <= 0:
            raise ValueError("a router needs at least one knot and a temperature > 0")
        unknown = set(members) - set(ATTRIBUTES)
        if unknown:
            raise ValueError(f"cannot route {sorted(unknown)}; known: {ATTRIBUTES}")
        if any(len(rows) < 2 for rows in members.values()):
            raise ValueError("an attribute with less than two experts needs no router")
        self.members, self.knots = dict(members), knots
        self.gate, self.temperature, self.top_k, self.warmup = gate, temperature, top_k, warmup

    @property
    def learned(self) -> tuple[str, ...]:
        """The attributes that have knots."""
        return () if self.gate == "sum" else tuple(self.members)

    @property
    def drops(self) -> bool:
        """Whether `keep_top` leaves some Gaussians without some expert."""
        experts = {row for rows in self.members.values() for row in rows}
        return self.gate != "sum" and 0 < self.top_k < len(experts)

    @staticmethod
    def parameter_name(attribute: str) -> str:
        """Name of the per-Gaussian knots (N, K, E) of ``attribute``, E its members."""
        return f"gate_{attribute}"

    def initial_parameters(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Small random knots for ``count`` Gaussians: name -> (N, K, E)."""
        return {
            self.parameter_name(a): INITIAL_LOGIT_STD
            * torch.randn((count, self.knots, len(self.members[a])), generator=generator)
            for a in self.learned
        }

    def __call__(
        self, canonical: Canonical, time: float, *, warming_up: bool = False, drop: bool = True
    ) -> dict[str, Tensor]:
        """Attribute -> gates (N, E) of its members at ``time``.

        Each row sums to 1, except with the gate ``sum``.

        Args:
            drop: whether only the ``top_k`` experts are kept.
        """
        if self.gate == "sum":
            shape = {a: (len(canonical.xyz), len(rows)) for a, rows in self.members.items()}
            return {a: canonical.xyz.new_ones(size) for a, size in shape.items()}
        weights = hermite_weights(time, self.knots)
        gates = {}
        for attribute in self.members:
            knots = canonical.extra[self.parameter_name(attribute)]  # (N, K, E)
            if warming_up:
                gates[attribute] = self._warmup_gate(knots)
                continue
            gates[attribute] = self._gate(interpolate(knots, weights))
        if warming_up and self.warmup == "uniform":
            return gates  # all alike: the last experts would be dropped everywhere
        return self.dropped(gates) if drop else gates

    def dropped(self, gates: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is left of ``gates`` of all experts."""
        return keep_top(gates, self.members, self.top_k) if self.drops else gates

    def _gate(self, logits: Tensor) -> Tensor:
        if self.gate == "published":
            return published_gate(logits)
        return softmax_gate(logits, self.temperature)

    def _warmup_gate(self, knots: Tensor) -> Tensor:
        shape = (len(knots), knots.shape[-1])
        if self.warmup == "uniform":
            return knots.new_full(shape, 1 / shape[1])
        return self._gate(torch.randn(shape, device=knots.device, dtype=knots.dtype))


def balance_loss(gates: Tensor) -> Tensor:
    """How unevenly the experts are used: squared coefficient of variation of their mean gates.

    0 when every expert has the same share of all Gaussians, E - 1 when one has everything (the
    importance loss of Shazeer et al., ICLR 2017, section 4).

    Args:
        gates: (N, E) whose rows sum to 1.
    """
    share = gates.mean(0)
    return gates.shape[-1] * share.square().sum() - 1


def entropy(gates: Tensor) -> Tensor:
    """Mean entropy of the rows of ``gates`` (N, E), over that of equal weights: 0 to 1."""
    logs = gates.clamp_min(1e-12).log()
    return -(gates * logs).sum(-1).mean() / math.log(gates.shape[-1])
