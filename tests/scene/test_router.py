"""The router: spline, gates, and that it learns."""

from __future__ import annotations

import pytest
import torch

from scene.gaussian_model import Canonical
from scene.router import (
    Router,
    balance_loss,
    entropy,
    hermite_weights,
    keep_top,
    published_gate,
    softmax_gate,
)


def hermite_oracle(knots: list[float], time: float) -> float:
    """The textbook form: two points, two finite-difference tangents."""
    n = len(knots)
    s = time * (n - 1)
    i = min(max(int(s), 0), n - 2)
    u = s - i
    clamp = lambda k: knots[min(max(k, 0), n - 1)]  # noqa: E731
    m0 = knots[1] - knots[0] if i == 0 else (clamp(i + 1) - clamp(i - 1)) / 2
    m1 = knots[-1] - knots[-2] if i + 1 == n - 1 else (clamp(i + 2) - clamp(i)) / 2
    return (
        (1 + 2 * u) * (1 - u) ** 2 * knots[i]
        + u * (1 - u) ** 2 * m0
        + u * u * (3 - 2 * u) * knots[i + 1]
        + u * u * (u - 1) * m1
    )


@pytest.mark.parametrize("knots", [2, 3, 5, 9])
@pytest.mark.parametrize("time", [0.0, 0.1, 1 / 3, 0.5, 0.77, 1.0])
def test_hermite_weights_are_the_textbook_spline(knots, time):
    values = torch.randn(knots, generator=torch.Generator().manual_seed(knots)).tolist()
    weights = hermite_weights(time, knots)
    assert sum(weights) == pytest.approx(1)
    got = sum(w * v for w, v in zip(weights, values, strict=True))
    assert got == pytest.approx(hermite_oracle(values, time))


def test_two_knots_interpolate_linearly_and_one_is_constant():
    assert hermite_weights(0.3, 2) == pytest.approx([0.7, 0.3])
    assert hermite_weights(0.3, 1) == [1.0]


def test_spline_is_smooth_across_an_inner_knot():
    values = torch.tensor([0.3, -1.0, 2.0, 0.5, 0.1], dtype=torch.float64)

    def at(time: float) -> float:
        return float(torch.tensor(hermite_weights(time, 5), dtype=torch.float64) @ values)

    h = 1e-6
    left = (at(0.5) - at(0.5 - h)) / h
    right = (at(0.5 + h) - at(0.5)) / h
    assert left == pytest.approx(right, abs=1e-3)


def test_published_gate_of_two_experts_knows_two_values_only():
    logits = torch.randn(1000, 2, dtype=torch.float64, requires_grad=True)
    gates = published_gate(logits)
    high = 1 / (1 + torch.exp(torch.tensor(-(2**0.5), dtype=torch.float64)))
    assert torch.allclose(gates.amax(-1), high.expand(1000))
    gates[:, 0].sum().backward()
    assert logits.grad.abs().median() < 1e-12


def test_softmax_gate_has_ordinary_gradients():
    logits = torch.randn(20, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: softmax_gate(z, 0.7), logits)


def test_top_k_keeps_the_largest_and_renormalises():
    gates = {"xyz": softmax_gate(torch.tensor([[2.0, 1.0, 0.0]]))}
    kept = keep_top(gates, {"xyz": (0, 1, 2)}, 2)["xyz"]
    assert kept[0, 2] == 0
    assert kept[0, 0] / kept[0, 1] == pytest.approx(torch.e, rel=1e-5)
    assert kept.sum().item() == pytest.approx(1)


def test_top_k_chooses_once_for_all_attributes():
    gates = {
        "xyz": torch.tensor([[0.9, 0.1, 0.0], [0.4, 0.35, 0.25]]),
        "rotation": torch.tensor([[0.4, 0.6, 0.0], [0.1, 0.2, 0.7]]),
    }
    kept = keep_top(gates, {"xyz": (0, 1, 2), "rotation": (0, 1, 2)}, 1)
    assert kept["xyz"].tolist() == kept["rotation"].tolist() == [[1, 0, 0], [0, 0, 1]]


def test_top_k_leaves_an_attribute_its_own_best_where_the_chosen_has_no_part_in_it():
    gates = {
        "xyz": torch.tensor([[0.1, 0.1, 0.8], [0.1, 0.1, 0.8]]),
        "opacity": torch.tensor([[0.3, 0.7], [0.0, 1.0]]),
        "rotation": torch.tensor([[0.1, 0.1, 0.8], [0.1, 0.1, 0.8]]),
    }
    members = {"xyz": (0, 1, 2), "opacity": (0, 1), "rotation": (0, 1, 2)}
    kept = keep_top(gates, members, 1)
    assert kept["xyz"].tolist() == kept["rotation"].tolist() == [[0, 0, 1], [0, 0, 1]]
    assert kept["opacity"].tolist() == [[0, 1], [0, 1]]
    for gate in kept.values():
        assert gate.isfinite().all() and torch.allclose(gate.sum(-1), torch.ones(2))


def test_top_k_has_ordinary_gradients():
    logits = torch.randn(20, 3, dtype=torch.float64, requires_grad=True)
    members = {"xyz": (0, 1, 2), "opacity": (0, 1, 2)}

    def kept(z):
        gates = {"xyz": softmax_gate(z), "opacity": softmax_gate(z[:, [2, 0, 1]])}
        return tuple(keep_top(gates, members, 2).values())

    assert torch.autograd.gradcheck(kept, logits)


@pytest.mark.parametrize("top_k", [1, 2])
def test_a_gate_that_is_left_alone_is_one_and_has_the_gradient_of_all(top_k):
    """With 1 everywhere, with 2 where one of the chosen has no part in the attribute."""
    logits = torch.randn(50, 3, dtype=torch.float64, requires_grad=True)
    members = {"xyz": (0, 1, 2), "opacity": (0, 2)}
    columns = {a: list(rows) for a, rows in members.items()}
    gates = {a: softmax_gate(logits[:, columns[a]]) for a in members}
    kept = keep_top(gates, members, top_k)
    for attribute in members:
        alone = (kept[attribute] > 0).sum(-1) == 1
        assert alone.all() if top_k == 1 else alone.any() == (attribute == "opacity")
        assert (kept[attribute][alone].amax(-1) == 1).all()
        worth = torch.randn(50, len(members[attribute]), dtype=torch.float64)
        found, expected = (
            torch.autograd.grad((g[attribute] * worth).sum(), logits, retain_graph=True)[0]
            for g in (kept, gates)
        )
        assert torch.allclose(found[alone], expected[alone], atol=1e-12)


@pytest.mark.parametrize("top_k", [0, 1])
def test_the_router_finds_the_better_expert_whatever_is_dropped(top_k):
    """Three experts, another one of which is right for each Gaussian.

    With two kept it finds the better of them: of the third it hears nothing.
    """
    router = Router({"xyz": (0, 1, 2)}, 1, top_k=top_k)
    generator = torch.Generator().manual_seed(0)
    knots = torch.nn.Parameter(router.initial_parameters(600, generator)["gate_xyz"])
    right = torch.arange(600) % 3
    deltas = torch.nn.functional.one_hot(right, 3).double() - 1.0  # 0 where right, else -1
    adam = torch.optim.Adam([knots], lr=0.05)
    for _ in range(200):
        adam.zero_grad()
        gates = router(canonical_with({"gate_xyz": knots}), 0.5)["xyz"]
        (gates * deltas).sum(-1).square().sum().backward()
        adam.step()
    gates = router(canonical_with({"gate_xyz": knots}), 0.5)["xyz"]
    assert (gates.argmax(-1) == right).float().mean() > 0.95


def test_temperature_sharpens():
    logits = torch.tensor([[1.0, 0.0]])
    assert softmax_gate(logits, 0.1)[0, 0] > softmax_gate(logits, 1.0)[0, 0]


def canonical_with(extra: dict[str, torch.Tensor]) -> Canonical:
    empty = torch.zeros(0)
    return Canonical(empty, empty, empty, empty, empty, empty, extra)


@pytest.mark.parametrize("top_k", [0, 1, 2])
@pytest.mark.parametrize("warmup", ["random", "uniform"])
def test_warm_up_gives_every_expert_its_share_and_the_router_no_gradient(warmup, top_k):
    router = Router({"xyz": (0, 1, 2)}, 4, warmup=warmup, top_k=top_k)
    knots = torch.nn.Parameter(router.initial_parameters(5000, torch.Generator())["gate_xyz"])
    gates = router(canonical_with({"gate_xyz": knots}), 0.4, warming_up=True)["xyz"]
    assert torch.allclose(gates.sum(-1), torch.ones(5000))
    assert torch.allclose(gates.mean(0), torch.full((3,), 1 / 3), atol=0.02)
    assert not gates.requires_grad


def test_gates_follow_the_knots_in_time():
    knots = torch.tensor([[[5.0, 0.0], [0.0, 0.0], [0.0, 5.0]]])
    router = Router({"rotation": (0, 1)}, 3)
    canonical = canonical_with({"gate_rotation": knots})
    first, middle, last = (router(canonical, t)["rotation"][0] for t in (0.0, 0.5, 1.0))
    assert first[0] > 0.99 and last[1] > 0.99
    assert middle[0].item() == pytest.approx(0.5)


def train_toy(gate: str, steps: int) -> float:
    """Share of Gaussians that trust their better expert, at the time where fewest do.

    Each Gaussian has one expert that is nearly right and one that is off.
    """
    count, knots = 4000, 3
    generator = torch.Generator().manual_seed(0)
    better = torch.randint(2, (count,), generator=generator)
    error = torch.rand(count, 2, generator=generator) * 0.5 + 0.5
    error[torch.arange(count), better] *= 0.1
    router = Router({"xyz": (0, 1)}, knots, gate=gate)
    values = torch.nn.Parameter(router.initial_parameters(count, generator)["gate_xyz"])
    adam = torch.optim.Adam([values], lr=5e-3, eps=1e-15)
    canonical = canonical_with({"gate_xyz": values})
    for _ in range(steps):
        time = torch.rand((), generator=generator).item()
        gates = router(canonical, time)["xyz"]
        loss = (gates * error).sum(-1).abs().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    with torch.no_grad():
        shares = [
            (router(canonical, time)["xyz"].argmax(-1) == better).float().mean().item()
            for time in (0.0, 0.2, 0.5, 0.7, 1.0)
        ]
    return min(shares)


def test_softmax_router_finds_the_better_expert():
    assert train_toy("softmax", 400) >= 0.99


def test_published_router_stays_at_chance():
    assert 0.4 < train_toy("published", 400) < 0.6


def test_unknown_attribute_is_refused():
    with pytest.raises(ValueError, match="colour"):
        Router({"colour": (0, 1)}, 3)


def test_balance_is_zero_for_equal_use_and_largest_for_one_expert():
    equal = torch.eye(4).repeat(5, 1)
    alone = torch.zeros(20, 4)
    alone[:, 2] = 1
    assert balance_loss(equal).item() == pytest.approx(0, abs=1e-6)
    assert balance_loss(alone).item() == pytest.approx(3)


def test_entropy_runs_from_zero_to_one():
    assert entropy(torch.full((3, 4), 0.25)).item() == pytest.approx(1)
    assert entropy(torch.eye(4)).item() == pytest.approx(0, abs=1e-5)


def test_losses_of_the_gates_have_right_gradients():
    logits = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    for measure in (balance_loss, entropy):
        assert torch.autograd.gradcheck(lambda z, m=measure: m(softmax_gate(z)), logits)


def test_a_single_member_needs_no_router():
    with pytest.raises(ValueError, match="less than two"):
        Router({"xyz": (0,)}, 3)
