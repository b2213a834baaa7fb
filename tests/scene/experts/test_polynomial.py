"""The polynomial expert: values against the formulas, the opacity's logit, what starts still."""

from __future__ import annotations

import pytest
import torch

from arguments_MoDE.config import Config
from scene.experts.base import Moment, SceneFacts
from scene.experts.polynomial import PolynomialExpert, visibility_delta
from scene.gaussian_model import Canonical

FACTS = SceneFacts(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]), 3.0, 2, 5)


def state(count: int = 7, moving: bool = True, **motion) -> Canonical:
    config = Config()
    for name, value in motion.items():
        setattr(config.motion, name, value)
    extra = PolynomialExpert(config.motion, FACTS).per_gaussian(count)
    if moving:
        extra = {n: v + 0.3 * torch.randn_like(v) for n, v in extra.items()}
    extra = {n: v.requires_grad_() for n, v in extra.items()}
    opacity = torch.randn(count, 1, requires_grad=True)
    empty = torch.zeros(0)
    return Canonical(
        torch.randn(count, 3), empty, torch.randn(count, 4), opacity, empty, empty, extra
    )


def expert() -> PolynomialExpert:
    return PolynomialExpert(Config().motion, FACTS)


@pytest.mark.parametrize("time", [0.0, 0.4, 1.0])
def test_values_are_those_of_the_formulas(time):
    made, s = expert(), state()
    got = made(s, Moment(time, 0), made.attributes)
    d = time - s.extra["trbf_center"]
    m = s.extra["motion"]
    assert torch.allclose(got.xyz, m[:, 0] * d + m[:, 1] * d**2 + m[:, 2] * d**3, atol=1e-6)
    assert torch.allclose(got.rotation, d * s.extra["omega"])
    seen = s.opacity.sigmoid() * torch.exp(-((d / s.extra["trbf_scale"].exp()) ** 2))
    assert torch.allclose((s.opacity + got.opacity).sigmoid(), seen, atol=1e-6)
    assert got.log_scale is None and got.sh is None


@pytest.mark.parametrize("logit", [-12.0, 0.0, 12.0, 80.0])
@pytest.mark.parametrize("exponent", [0.0, 1e-6, 0.5, 15.0, 1e6])
def test_the_logit_delta_multiplies_the_opacity(logit, exponent):
    o = torch.tensor([[logit]], requires_grad=True)
    e = torch.tensor([[exponent]], requires_grad=True)
    delta = visibility_delta(o, e)
    wide, visible = o.detach().double(), torch.tensor(-min(exponent, 20.0)).double().exp()
    if logit < 60:
        expected = wide.sigmoid() * visible
        assert torch.allclose((wide + delta.double()).sigmoid(), expected, rtol=1e-4, atol=0)
    delta.backward()
    assert torch.isfinite(delta) and torch.isfinite(o.grad) and torch.isfinite(e.grad)
    if exponent == 0.0:
        assert delta.item() == 0.0


def test_it_starts_without_motion_and_nearly_visible_throughout():
    made, s = expert(), state(moving=False)
    got = made(s, Moment(1.0, 0), made.attributes)
    assert torch.equal(got.xyz, torch.zeros(7, 3)) and torch.equal(got.rotation, torch.zeros(7, 4))
    assert ((s.opacity + got.opacity).sigmoid() / s.opacity.sigmoid()).min() > 0.95


def test_the_centre_learns_from_the_opacity_alone():
    made, s = expert(), state()
    made(s, Moment(0.2, 0), frozenset({"xyz", "rotation"})).xyz.sum().backward()
    assert s.extra["trbf_center"].grad is None
    got = made(s, Moment(0.2, 0), made.attributes)
    (got.xyz.sum() + got.rotation.sum() + got.opacity.sum()).backward()
    assert all(v.grad.abs().sum() > 0 for v in s.extra.values())


def test_only_what_is_wanted_is_computed():
    got = expert()(state(), Moment(0.2, 0), frozenset({"rotation"}))
    assert got.xyz is None and got.opacity is None


def test_every_parameter_has_a_rate_and_the_motions_goes_with_the_extent():
    made, config = expert(), Config()
    rates = made.per_gaussian_rates(config)
    assert rates.keys() == made.per_gaussian(1).keys()
    assert rates["motion"].initial == pytest.approx(0.5 * 3.5 * 3.0 * config.opt.position_lr_init)


def test_centres_are_spread_over_the_clip_and_those_of_new_gaussians_too():
    config = Config()
    config.motion.trbf_spread = True
    made = PolynomialExpert(config.motion, FACTS)
    centers = made.per_gaussian(2000)["trbf_center"]
    assert centers.shape == (2000, 1) and 0 <= centers.min() < 0.01 and 0.99 < centers.max() <= 1
    assert centers.mean().item() == pytest.approx(0.5, abs=0.03)
    fresh = made.offspring(None, torch.tensor([3, 3, 7]))
    assert fresh.keys() == {"trbf_center"} and len(fresh["trbf_center"].unique()) == 3
    assert expert().offspring(None, torch.tensor([3])) == {}
