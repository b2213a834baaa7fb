"""The keyframe expert: through its keyframes, along splines and arcs, still at the start."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from arguments_MoDE.config import Config
from scene.experts.base import Moment, SceneFacts
from scene.experts.keyframe import KeyframeExpert, slerp
from scene.gaussian_model import Canonical

FACTS = SceneFacts(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]), 3.0, 2, 5)


def expert(keyframes: int = 5) -> KeyframeExpert:
    config = Config()
    config.motion.keyframe_num = keyframes
    return KeyframeExpert(config.motion, FACTS)


def state(made: KeyframeExpert, spread: float = 1.0, count: int = 6) -> Canonical:
    extra = {
        n: (v + spread * torch.randn_like(v)).requires_grad_()
        for n, v in made.per_gaussian(count).items()
    }
    rotation = (2 * torch.randn(count, 4)).requires_grad_()
    empty = torch.zeros(0)
    return Canonical(torch.randn(count, 3), empty, rotation, empty, empty, empty, extra)


def catmull_rom(keys: torch.Tensor, time: float) -> torch.Tensor:
    """The spline segment by segment, for one time inside the first or a later segment."""
    position = time * (len(keys) - 1)
    i = min(int(position), len(keys) - 2)
    u = position - i
    last = len(keys) - 1
    slopes = [
        (keys[min(k + 1, last)] - keys[max(k - 1, 0)]) / (min(k + 1, last) - max(k - 1, 0))
        for k in (i, i + 1)
    ]
    return (
        (2 * u**3 - 3 * u**2 + 1) * keys[i]
        + (u**3 - 2 * u**2 + u) * slopes[0]
        + (3 * u**2 - 2 * u**3) * keys[i + 1]
        + (u**3 - u**2) * slopes[1]
    )


@pytest.mark.parametrize("time", [0.0, 0.1, 0.37, 0.5, 0.93, 1.0])
def test_positions_follow_the_spline(time):
    made = expert()
    s = state(made)
    got = made(s, Moment(time, 0), made.attributes).xyz
    keys = s.extra["keyframe_xyz"]
    expected = torch.stack([catmull_rom(row, time) for row in keys])
    assert torch.allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("keyframe", range(5))
def test_rotations_pass_through_the_keyframes(keyframe):
    made = expert()
    s = state(made)
    got = s.rotation + made(s, Moment(keyframe / 4, 0), made.attributes).rotation
    there = F.normalize(s.rotation + s.extra["keyframe_rotation"][:, keyframe], dim=-1)
    cosine = (F.normalize(got, dim=-1) * there).sum(-1).abs()
    assert torch.allclose(cosine, torch.ones(6), atol=1e-5)


def test_slerp_turns_at_a_constant_rate_the_shorter_way():
    start = torch.tensor([[1.0, 0, 0, 0]])
    half = math.radians(35)
    end = torch.tensor([[math.cos(half), math.sin(half), 0, 0]])
    for share in (0.0, 0.25, 0.8, 1.0):
        expected = torch.tensor([[math.cos(share * half), math.sin(share * half), 0, 0]])
        assert torch.allclose(slerp(start, end, share), expected, atol=1e-6)
        assert torch.allclose(slerp(start, -end, share), expected, atol=1e-6)


def test_slerp_of_equal_rotations_has_a_finite_gradient():
    q = F.normalize(torch.randn(4, 4), dim=-1).requires_grad_()
    slerp(q, q.clone(), 0.3).sum().backward()
    assert torch.isfinite(q.grad).all()


@pytest.mark.parametrize("keyframes", [1, 2, 6])
def test_it_starts_still(keyframes):
    made = expert(keyframes)
    got = made(state(made, spread=0.0), Moment(0.43, 0), made.attributes)
    assert torch.equal(got.xyz, torch.zeros(6, 3))
    assert got.rotation.abs().max() < 1e-6


def test_gradients_reach_the_keyframes_around_the_moment():
    made = expert()
    s = state(made)
    got = made(s, Moment(0.4, 0), made.attributes)
    ((got.xyz**2).sum() + (got.rotation * torch.randn(6, 4)).sum()).backward()
    per_key = s.extra["keyframe_rotation"].grad.abs().sum((0, 2))
    assert (per_key > 0).tolist() == [False, True, True, False, False]
    assert s.extra["keyframe_xyz"].grad[:, 1].abs().sum() > 0
    assert s.rotation.grad is not None


def test_every_parameter_has_a_rate():
    made = expert()
    assert made.per_gaussian_rates(Config()).keys() == made.per_gaussian(1).keys()
