"""Density control: who is cloned, split and pruned, and the limits."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from arguments_MoDE.config import OptimizationParams
from scene.experts.base import LearningRate, ParameterGroup
from scene.gaussian_model import GaussianModel
from training.density import DensityControl, rotate
from training.schedules import Optimizer
from utils.errors import UserError

EXTENT = 10.0  # split above a scale of 0.1


def setup(count: int = 6, **options) -> tuple[GaussianModel, Optimizer, DensityControl]:
    points = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)
    gaussians = GaussianModel.from_points(points, np.zeros((count, 3), np.uint8))
    gaussians.register("embedding", torch.arange(float(count))[:, None])
    with torch.no_grad():
        gaussians.log_scale.fill_(float(np.log(0.05)))
        gaussians.opacity.fill_(2.0)
    groups = [ParameterGroup(n, [gaussians[n]], LearningRate(0.1)) for n in gaussians.names]
    defaults = {"prune_min_gaussians": 0, "densify_until_iter": 1000}
    opt = OptimizationParams(**(defaults | options))
    return gaussians, Optimizer(groups, 1000), DensityControl(opt, EXTENT, "fine", 1000)


def seen(
    control: DensityControl, gaussians: GaussianModel, gradients: list[float], radius: int = 3
):
    means2d = torch.zeros(1, len(gaussians), 3, requires_grad=True)
    means2d.grad = torch.zeros(1, len(gaussians), 3)
    means2d.grad[0, :, 0] = torch.tensor(gradients)
    radii = torch.full((1, len(gaussians)), radius, dtype=torch.int32)
    out = SimpleNamespace(radii=radii, means2d=means2d)
    control.observe([out], [gaussians.opacity.sigmoid()])


def test_small_gaussian_with_large_gradient_is_cloned_with_all_it_has():
    gaussians, optimizer, control = setup()
    seen(control, gaussians, [0, 0, 1.0, 0, 0, 0])
    change = control.step(gaussians, optimizer, 600)
    assert (change.cloned, change.split) == (1, 0)
    for name in gaussians.names:
        assert torch.equal(gaussians[name][2], gaussians[name][3]), name


def test_what_experts_say_of_new_gaussians_counts_for_clones_and_children_alone():
    gaussians, optimizer, control = setup()
    with torch.no_grad():
        gaussians.log_scale[4] = 0.0
    seen(control, gaussians, [0, 0, 1.0, 0, 1.0, 0])
    said = []
    change = control.step(
        gaussians,
        optimizer,
        600,
        lambda parents: said.append(parents.tolist()) or {"embedding": torch.full((3, 1), -1.0)},
    )
    assert (change.cloned, change.split, said) == (1, 1, [[2, 4, 4]])
    assert gaussians["embedding"][:, 0].tolist() == [0, 1, 2, -1, 3, -1, -1, 5]


def test_what_is_due_is_known_beforehand():
    options = {"densification_interval": 7, "pruning_interval": 11, "opacity_reset_interval": 30}
    options |= {"densify_from_iter": 20, "pruning_from_iter": 15, "densify_until_iter": 90}
    gaussians, optimizer, control = setup(**options)
    seen(control, gaussians, [0.0] * 6)
    acted = []
    control._densify = lambda *_: acted.append("densify") or (0, 0)
    control._prune = lambda *_: acted.append("prune") or 0
    control._reset_opacity = lambda *_: acted.append("reset")
    kinds = set()
    for iteration in range(1, 120):
        control.step(gaussians, optimizer, iteration)
        assert control.due(iteration) is bool(acted), iteration
        kinds.update(acted)
        acted.clear()
    assert kinds == {"densify", "prune", "reset"}


def test_large_gaussian_is_replaced_by_two_smaller_ones():
    gaussians, optimizer, control = setup()
    with torch.no_grad():
        gaussians.log_scale[4] = float(np.log(0.5))
    seen(control, gaussians, [0, 0, 0, 0, 1.0, 0])
    change = control.step(gaussians, optimizer, 600)
    assert (change.cloned, change.split) == (0, 1)
    assert len(gaussians) == 7
    assert gaussians["embedding"][:, 0].tolist() == [0, 1, 2, 3, 4, 4, 5]
    assert torch.allclose(gaussians.log_scale[4:6].exp(), torch.tensor(0.5 / 1.6))
    assert not torch.equal(gaussians.xyz[4], gaussians.xyz[5])


def test_children_are_drawn_from_their_parent():
    gaussians, optimizer, control = setup(4000)
    with torch.no_grad():
        gaussians.xyz.zero_()
        gaussians.log_scale.copy_(torch.tensor([0.4, 0.2, 0.3]).log())
        half = 0.5**0.5  # a quarter turn about z: x and y change places
        gaussians.rotation.copy_(torch.tensor([half, 0, 0, half]))
    seen(control, gaussians, [1.0] * 4000)
    control.step(gaussians, optimizer, 600)
    spread = gaussians.xyz.detach().std(0)
    assert torch.allclose(spread, torch.tensor([0.2, 0.4, 0.3]), rtol=0.05)


def test_the_cap_is_never_exceeded_and_the_largest_gradients_come_first():
    gaussians, optimizer, control = setup(max_gaussians=8)
    seen(control, gaussians, [1.0, 5.0, 2.0, 4.0, 3.0, 0.5])
    control.step(gaussians, optimizer, 600)
    assert len(gaussians) == 8
    assert gaussians["embedding"][:, 0].tolist() == [0, 1, 1, 2, 3, 3, 4, 5]


def test_new_gaussians_come_behind_their_parents_with_statistics_and_no_moments():
    gaussians, optimizer, control = setup(200, pruning_interval=7)  # 600 is none of its multiples
    with torch.no_grad():
        gaussians.log_scale[::3] = float(np.log(0.5))
    gaussians["embedding"].sum().backward()
    optimizer.step()
    moments = optimizer.adam.state[gaussians["embedding"]]["exp_avg"]
    moments.copy_(gaussians["embedding"].detach() + 1)  # tell whose they are, as the opacities do
    seen(control, gaussians, [1.0 if i % 5 == 0 else 0.0 for i in range(200)])
    control.stats["opacity"] = moments[:, 0].clone()
    before = {n: gaussians[n].detach().clone() for n in gaussians.names}
    change = control.step(
        gaussians,
        optimizer,
        600,
        lambda parents: {"opacity": parents[:, None].float()},  # tells who the parent was
    )
    assert change.cloned > 10 and change.split > 5 and len(gaussians) == 240
    fresh = optimizer.adam.state[gaussians["embedding"]]["exp_avg"][:, 0] == 0
    assert fresh.sum() == change.cloned + 2 * change.split
    rows = {e: i for i, e in enumerate(before["embedding"][:, 0].tolist())}
    old = torch.tensor([rows[e] for e in gaussians["embedding"][:, 0].tolist()])
    assert torch.equal(old, old.sort().values)
    assert torch.equal(gaussians.opacity[fresh, 0].detach(), old[fresh].float())
    assert torch.equal(gaussians.opacity[~fresh].detach(), before["opacity"][old[~fresh]])
    far = (gaussians.xyz.detach() - before["xyz"][old]).norm(dim=1)
    split = before["log_scale"][old, 0] > -1
    assert (far[~(fresh & split)] == 0).all() and (far[fresh & split] > 0).all()
    assert far.max() < 3.0  # children are drawn with a deviation of 0.5
    for name in ("f_dc", "rotation"):
        assert torch.equal(gaussians[name].detach(), before[name][old]), name
    moments = optimizer.adam.state[gaussians["embedding"]]["exp_avg"]
    assert torch.equal(moments[~fresh], before["embedding"][old[~fresh]] + 1)
    assert torch.equal(control.stats["opacity"], before["embedding"][old, 0] + 1)


def test_gradient_is_averaged_over_the_iterations_that_saw_the_gaussian():
    gaussians, optimizer, control = setup(
        densify_grad_threshold_fine_init=0.6, densify_grad_threshold_after=0.6
    )
    seen(control, gaussians, [1.0, 1.0, 0, 0, 0, 0])
    seen(control, gaussians, [0.0, 0.9, 0, 0, 0, 0])
    assert control.step(gaussians, optimizer, 600).cloned == 1


def test_faint_gaussians_are_pruned_and_the_moments_follow():
    gaussians, optimizer, control = setup()
    with torch.no_grad():
        gaussians.opacity[3] = -9.0
    seen(control, gaussians, [0.0] * 6)
    assert control.step(gaussians, optimizer, 600).pruned == 1
    assert gaussians["embedding"][:, 0].tolist() == [0, 1, 2, 4, 5]
    assert len(control.stats["seen"]) == 5


def test_a_gaussian_that_shone_once_since_the_last_pruning_stays():
    gaussians, optimizer, control = setup()
    with torch.no_grad():
        gaussians.opacity[3] = -9.0
    seen(control, gaussians, [0.0] * 6)
    control.observe(
        [
            SimpleNamespace(
                radii=torch.ones(1, 6, dtype=torch.int32),
                means2d=SimpleNamespace(grad=torch.zeros(1, 6, 3)),
            )
        ],
        [torch.full((6, 1), 0.5)],
    )
    assert control.step(gaussians, optimizer, 600).pruned == 0


@pytest.mark.parametrize("faded_at, pruned", [(7000, 1), (7600, 0)])
def test_a_gaussian_that_faded_long_before_a_rare_pruning_goes(faded_at, pruned):
    gaussians, optimizer, control = setup(pruning_interval=8000, opacity_reset_interval=100000)
    control.until = 15000
    total = 0
    for iteration in range(6000, 8001, 100):
        with torch.no_grad():
            gaussians.opacity[3] = -9.0 if iteration > faded_at else 2.0
        seen(control, gaussians, [0.0] * 6)
        total += control.step(gaussians, optimizer, iteration).pruned
    assert total == pruned


def test_nothing_is_pruned_below_the_minimum_count():
    gaussians, optimizer, control = setup(prune_min_gaussians=100)
    with torch.no_grad():
        gaussians.opacity[3] = -9.0
    seen(control, gaussians, [0.0] * 6)
    assert control.step(gaussians, optimizer, 600).pruned == 0


def test_pruning_everything_is_an_error_that_says_what_to_do():
    gaussians, optimizer, control = setup()
    with torch.no_grad():
        gaussians.opacity.fill_(-9.0)
    seen(control, gaussians, [0.0] * 6)
    with pytest.raises(UserError, match="6 of 6 as too faint.*lower --opacity_threshold_fine"):
        control.step(gaussians, optimizer, 600)


def test_pruning_everything_by_its_size_is_told_from_faintness():
    gaussians, optimizer, control = setup()
    control.opacity_was_reset = True
    with torch.no_grad():
        gaussians.log_scale.fill_(5.0)
    seen(control, gaussians, [0.0] * 6)
    with pytest.raises(UserError, match="0 of 6 as too faint, .* raise --max_world_scale"):
        control.step(gaussians, optimizer, 600)


def test_opacity_reset_lowers_but_never_raises_and_zeroes_moments():
    gaussians, optimizer, control = setup(opacity_reset_interval=600)
    with torch.no_grad():
        gaussians.opacity[0] = -8.0
    gaussians.opacity.sum().backward()
    optimizer.step()
    seen(control, gaussians, [0.0] * 6)
    control.opt.prune_min_gaussians = 100
    before = gaussians.opacity[0].item()
    control.step(gaussians, optimizer, 600)
    assert gaussians.opacity[0].item() == before
    assert torch.allclose(gaussians.opacity[1:].sigmoid(), torch.tensor(0.01))
    assert optimizer.adam.state[gaussians.opacity]["exp_avg"].abs().sum() == 0


def test_big_ones_go_only_after_an_opacity_reset():
    for was_reset, expected in ((False, 0), (True, 6)):
        gaussians, optimizer, control = setup(12)
        control.opacity_was_reset = was_reset
        with torch.no_grad():
            gaussians.log_scale[:6] = float(np.log(2.0))
        seen(control, gaussians, [0.0] * 12)
        assert control.step(gaussians, optimizer, 600).pruned == expected


def test_nothing_happens_after_the_last_iteration():
    gaussians, optimizer, control = setup(densify_until_iter=500)
    seen(control, gaussians, [1.0] * 6)
    assert control.step(gaussians, optimizer, 600).cloned == 0


def test_rotation_of_vectors_is_the_matrix_of_the_quaternion():
    half = 0.5**0.5
    q = torch.tensor([[half, 0.0, 0.0, half]]) * 3  # any length
    assert torch.allclose(
        rotate(q, torch.tensor([[1.0, 0.0, 0.0]])), torch.tensor([[0.0, 1.0, 0.0]]), atol=1e-6
    )


def test_the_screen_size_counts_in_a_round_that_densifies_too():
    gaussians, optimizer, control = setup(8)
    control.opacity_was_reset = True
    seen(control, gaussians, [1.0] + [0.0] * 7)
    control.stats["radius"][5] = 500
    change = control.step(gaussians, optimizer, 600)
    assert (change.cloned, change.pruned) == (1, 1)
    assert 5 not in gaussians["embedding"][:, 0].tolist()


def test_each_round_judges_what_was_seen_since_the_last():
    gaussians, optimizer, control = setup(densify_grad_threshold_fine_init=0.6)
    control.opt.densify_grad_threshold_after = 0.6
    seen(control, gaussians, [0.5] * 6)
    assert control.step(gaussians, optimizer, 600).cloned == 0
    seen(control, gaussians, [0.65] + [0.0] * 5)  # with the old round's 0.5 the mean would be lower
    assert control.step(gaussians, optimizer, 700).cloned == 1
