"""The zero expert: nothing moves, alone or in a mixture."""

from __future__ import annotations

import torch

import tiny
from scene.experts import Moment
from scene.experts.zero import ZeroExpert
from scene.router import ATTRIBUTES
from training.launch import build_model


def build(*experts: str):
    settings = tiny.config()
    settings.hidden.experts = list(experts)
    return build_model(tiny.scene(), settings)


def test_it_says_nothing():
    made = ZeroExpert()
    delta = made(None, Moment(0.5, 0), frozenset({"xyz", "rotation"}))
    assert set(vars(delta).values()) == {None}
    assert made.attributes == frozenset(ATTRIBUTES) and not list(made.parameters())


def test_alone_it_is_a_static_scene():
    model = build("zero")
    canonical, later = model.deform(0.0, stage="coarse"), model.deform(0.7)
    for name, value in vars(canonical).items():
        assert torch.equal(getattr(later, name), value), name


def test_beside_another_it_takes_its_share_of_the_movement():
    model, alone = build("hexplane", "zero").eval(), build("hexplane").eval()
    alone.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        for name in model.gaussians.names:
            if name.startswith("gate_"):
                model.gaussians[name].zero_()
    start = model.gaussians.xyz
    half, full = (m.deform(0.6).means - start for m in (model, alone))
    assert torch.allclose(half, full / 2, atol=1e-6) and full.abs().max() > 1e-3
