"""Learning rates and the optimiser over all groups."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scene.experts.base import LearningRate, ParameterGroup
from training.schedules import Optimizer, rate_at


def test_decay_is_log_linear_and_stops_at_the_final_value():
    rate = LearningRate(1e-2, 1e-4, 100)
    assert rate_at(rate, 0, 0) == pytest.approx(1e-2)
    assert rate_at(rate, 50, 0) == pytest.approx(1e-3)
    assert rate_at(rate, 100, 0) == rate_at(rate, 1000, 0) == pytest.approx(1e-4)


def test_zero_steps_means_the_whole_stage():
    rate = LearningRate(1e-2, 1e-4)
    assert rate_at(rate, 20, 40) == pytest.approx(1e-3)


def test_without_final_value_the_rate_is_constant():
    assert rate_at(LearningRate(0.5), 10**6, 10) == 0.5


def test_a_final_value_of_zero_is_no_error():
    assert rate_at(LearningRate(1e-2, 0.0, 10), 10, 0) < 1e-20


def optimizer(parameter: nn.Parameter) -> Optimizer:
    return Optimizer([ParameterGroup("a", [parameter], LearningRate(0.1))], 10)


def test_step_applies_the_scheduled_rate():
    parameter = nn.Parameter(torch.zeros(3))
    made = optimizer(parameter)
    made.set_rates(1)
    parameter.sum().backward()
    made.step()
    assert torch.allclose(parameter, torch.full((3,), -0.1))
    assert parameter.grad is None


def test_bad_gradient_is_named():
    parameter = nn.Parameter(torch.zeros(3))
    made = optimizer(parameter)
    assert made.first_bad_gradient() is None
    parameter.grad = torch.tensor([0.0, float("nan"), 0.0])
    assert made.first_bad_gradient() == "a"


def test_state_round_trip_continues_bit_by_bit():
    start = torch.randn(4)
    results = []
    for interrupted in (False, True):
        parameter = nn.Parameter(start.clone())
        made = optimizer(parameter)
        for step in range(6):
            if interrupted and step == 3:
                saved = {k: v.clone() for k, v in made.state_tensors().items()}
                parameter = nn.Parameter(parameter.detach().clone())
                made = optimizer(parameter)
                made.load_state_tensors(saved)
            made.set_rates(step)
            (parameter.square() * (step + 1)).sum().backward()
            made.step()
        results.append(parameter.detach())
    assert torch.equal(*results)
