"""The keyframe expert: through its keyframes, along splines and arcs, still at the start."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from arguments_MoDE.config import Config
from scene.experts.base import Moment, SceneFacts
from scene.experts.keyframe import SHORTEST_FADE, KeyframeExpert, fading, slerp
from scene.gaussian_model import Canonical, GaussianModel

FACTS = SceneFacts(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]), 3.0, 2, 5)


def expert(keyframes: int = 5, **settings) -> KeyframeExpert:
    config = Config()
    config.motion.keyframe_num = keyframes
    for name, value in settings.items():
        setattr(config.motion, f"keyframe_{name}", value)
    return KeyframeExpert(config.motion, FACTS)


def state(made: KeyframeExpert, spread: float = 1.0, count: int = 6) -> Canonical:
    extra = {
        n: (v + spread * torch.randn_like(v)).requires_grad_()
        for n, v in made.per_gaussian(count).items()
    }
    rotation = (2 * torch.randn(count, 4)).requires_grad_()
    opacity = torch.randn(count, 1).requires_grad_()
    empty = torch.zeros(count, 0)
    return Canonical(torch.randn(count, 3), empty, rotation, opacity, empty, empty, extra)


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


# ---- temporal opacity ---------------------------------------------------------------------------


def test_visibility_is_whole_between_two_moments_and_fades_outside():
    span, fade = torch.tensor([[0.3, 0.6]]), torch.tensor([[0.2, 0.1]]).log()
    for time, d, width in ((0.1, 0.2, 0.25), (0.3, 0, 1), (0.45, 0, 1), (0.9, 0.3, 0.15)):
        got = torch.exp(-fading(time, span, fade, 0.05))
        assert got.item() == pytest.approx(math.exp(-((d / width) ** 2)), rel=1e-5)
        assert torch.equal(fading(time, span.flip(-1), fade, 0.05), fading(time, span, fade, 0.05))


def test_the_opacity_is_multiplied_by_the_visibility_and_all_of_it_is_learned():
    made = expert(opacity=True)
    s = state(made, spread=0.3)
    got = made(s, Moment(0.95, 0), made.attributes)
    shortest = SHORTEST_FADE / (FACTS.frames - 1)
    seen = torch.exp(-fading(0.95, s.extra["keyframe_span"], s.extra["keyframe_fade"], shortest))
    assert torch.allclose(
        (s.opacity + got.opacity).sigmoid(), s.opacity.sigmoid() * seen, atol=1e-6
    )
    got.opacity.sum().backward()
    for name in ("keyframe_span", "keyframe_fade"):
        assert (s.extra[name].grad.abs().sum(-1) > 0).any(), name


def test_without_the_option_opacity_is_not_its_business():
    assert expert().attributes == {"xyz", "rotation"}
    assert expert().per_gaussian(3).keys() == {"keyframe_xyz", "keyframe_rotation"}


# ---- static and dynamic sets --------------------------------------------------------------------

SETS = {"sets": True, "opacity": True}


def test_static_gaussians_move_along_a_line_and_dynamic_ones_as_without_sets():
    made, plain = expert(**SETS), expert(opacity=True)
    s = state(made)
    flag = torch.tensor([1.0, 0, 1, 0, 0, 1])
    s.extra["keyframe_dynamic"].data[:, 0] = flag
    got = made(s, Moment(0.37, 0), made.attributes)
    alone = plain(s, Moment(0.37, 0), plain.attributes)
    dynamic = flag.bool()
    for name in ("xyz", "rotation", "opacity"):
        value = getattr(got, name)
        assert torch.allclose(value[dynamic], getattr(alone, name)[dynamic], atol=1e-6), name
        line = 0.37 * s.extra["keyframe_velocity"] if name == "xyz" else torch.zeros_like(value)
        assert torch.equal(value[~dynamic], line[~dynamic]), name


def test_each_set_learns_what_is_its_own_only():
    made = expert(**SETS)
    s = state(made)
    s.extra["keyframe_dynamic"].data[:, 0] = torch.tensor([1.0, 0, 1, 0, 0, 1])
    got = made(s, Moment(0.9, 0), made.attributes)
    (got.xyz.square().sum() + got.opacity.sum()).backward()
    moved = s.extra["keyframe_xyz"].grad.abs().sum((1, 2)) > 0
    assert moved.tolist() == [True, False, True, False, False, True]
    line = s.extra["keyframe_velocity"].grad.abs().sum(1) > 0
    assert line.tolist() == [False, True, False, True, True, False]


def test_keyframes_are_computed_for_dynamic_gaussians_only(monkeypatch):
    made = expert(**SETS)
    s = state(made)
    s.extra["keyframe_dynamic"].data[:, 0] = torch.tensor([0.0, 0, 1, 0, 0, 1])
    seen, original = [], KeyframeExpert._dynamic
    monkeypatch.setattr(
        KeyframeExpert,
        "_dynamic",
        lambda self, canonical, *rest: (
            seen.append(len(canonical.xyz)) or original(self, canonical, *rest)
        ),
    )
    made(s, Moment(0.5, 0), made.attributes)
    assert seen == [2]


def gaussians(made: KeyframeExpert, count: int = 10) -> GaussianModel:
    model = GaussianModel.from_points(torch.rand(count, 3).numpy(), torch.zeros(count, 3).numpy())
    for name, value in made.per_gaussian(count).items():
        model.register(name, value)
    return model


def test_those_that_move_farthest_become_dynamic_and_go_on_along_their_line():
    made = expert(**SETS, extract_share=0.2, extract_interval=3)
    model = gaussians(made)
    with torch.no_grad():
        model["keyframe_velocity"][:, 1] = torch.arange(10.0)
    before = made(model.canonical(), Moment(0.37, 0), frozenset({"xyz"})).xyz
    made.evolve(model, 2)
    assert model["keyframe_dynamic"].sum() == 0
    made.evolve(model, 3)
    assert model["keyframe_dynamic"][:, 0].nonzero()[:, 0].tolist() == [8, 9]
    after = made(model.canonical(), Moment(0.37, 0), frozenset({"xyz"})).xyz
    assert torch.allclose(before, after, atol=1e-5)
    made.evolve(model, 6)
    assert model["keyframe_dynamic"][:, 0].nonzero()[:, 0].tolist() == [7, 8, 9]


def test_what_stands_still_stays_static():
    made = expert(**SETS, extract_share=1.0, extract_interval=1)
    model = gaussians(made)
    made.evolve(model, 1)
    assert model["keyframe_dynamic"].sum() == 0


def test_the_set_is_copied_with_the_gaussian_and_never_optimised():
    made = expert(**SETS)
    assert "keyframe_dynamic" not in made.per_gaussian_rates(Config())
    model = gaussians(made)
    with torch.no_grad():
        model["keyframe_dynamic"][4] = 1
    model.reindex(torch.tensor([4, 0, 4]), torch.tensor([False, False, True]), {})
    assert model["keyframe_dynamic"][:, 0].tolist() == [1, 0, 1]


@pytest.mark.parametrize("settings", [{}, {"opacity": True}, {"sets": True}, SETS])
def test_every_parameter_but_the_set_has_a_rate(settings):
    made = expert(**settings)
    names = made.per_gaussian(1).keys() - {"keyframe_dynamic"}
    assert made.per_gaussian_rates(Config()).keys() == names
