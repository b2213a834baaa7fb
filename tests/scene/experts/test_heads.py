"""Decoder heads: the joined first layer is the separate ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from scene.experts.base import HEAD_SIZES, Heads


def separate(heads: Heads, hidden: torch.Tensor, name: str) -> torch.Tensor:
    rows = slice(heads.names.index(name) * heads.width, (heads.names.index(name) + 1) * heads.width)
    inner = F.linear(hidden.relu(), heads.first.weight[rows], heads.first.bias[rows]).relu()
    return heads.last[name](inner)


def test_joined_heads_equal_separate_ones_whichever_are_wanted():
    heads, hidden = Heads(8, frozenset(HEAD_SIZES)), torch.randn(5, 8)
    for wanted in ({"xyz"}, {"opacity", "rotation"}, set(HEAD_SIZES)):
        delta = heads(hidden, frozenset(wanted))
        for name in HEAD_SIZES:
            got = getattr(delta, name)
            if name not in wanted:
                assert got is None
                continue
            assert torch.allclose(got.flatten(1), separate(heads, hidden, name), atol=1e-6)


def test_colours_come_as_coefficients():
    delta = Heads(8, frozenset({"sh"}))(torch.randn(5, 8), frozenset({"sh"}))
    assert delta.sh.shape == (5, 16, 3)


def test_heads_not_wanted_get_no_gradient():
    heads = Heads(4, frozenset({"xyz", "rotation"}))
    heads(torch.randn(5, 4), frozenset({"xyz"})).xyz.sum().backward()
    assert heads.last["rotation"].weight.grad is None
    assert heads.first.weight.grad[4:].abs().sum() == 0


def test_xavier_bounds_are_those_of_each_head_alone():
    heads = Heads(64, frozenset({"xyz", "sh"}))
    heads.xavier_()
    bound = (6 / 128) ** 0.5
    assert 0.9 * bound < heads.first.weight.abs().max() <= bound


def test_zeroed_heads_say_nothing():
    heads = Heads(8, frozenset({"xyz"}))
    heads.zero_last_()
    assert torch.equal(heads(torch.randn(5, 8), frozenset({"xyz"})).xyz, torch.zeros(5, 3))
