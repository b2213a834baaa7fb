"""The hash-grid expert against a plain version of its parts: box, warp, attention, regularisers."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch.nn.functional as F

from arguments_MoDE.config import Config
from hash_encoder import reference
from scene.experts.base import Moment, SceneFacts
from scene.experts.hash_grid import (
    OUTSIDE_INTERVAL,
    Box,
    HashGridExpert,
    rotation_displacement,
)
from scene.gaussian_model import Canonical
from training.trainer import LOG_INTERVAL

pytestmark = pytest.mark.filterwarnings("ignore:hash grids")

BBOX = torch.tensor([[-3.0, -1.0, 2.0], [1.0, 1.0, 5.0]])
SMALL = {
    "canonical_num_levels": 3,
    "canonical_level_dim": 2,
    "canonical_base_resolution": 4,
    "canonical_desired_resolution": 16,
    "canonical_log2_hashmap_size": 9,
    "deform_num_levels": 4,
    "deform_level_dim": 2,
    "deform_base_resolution": [4, 4, 3],
    "deform_desired_resolution": [12, 12, 9],
    "deform_log2_hashmap_size": 8,
}


def settings(**values) -> Config:
    config = Config()
    config.hash.grid_args = dict(SMALL)
    config.hash.network_args = {"depth": 1, "width": 8, "directional": True}
    for name, value in values.items():
        setattr(config.hash, name, value)
    return config


def expert(zero_init_heads: bool = False, **values) -> HashGridExpert:
    torch.manual_seed(0)
    facts = SceneFacts(BBOX, 2.0, 3, 10)
    made = HashGridExpert(settings(**values).hash, facts, zero_init_heads)
    for encoder in (made.space, *made.space_time):  # tables as training leaves them
        torch.nn.init.normal_(encoder.table)
    return made


def canonical(count: int = 40, reach: float = 1.3) -> Canonical:
    low, high = BBOX
    spread = reach * (torch.rand(count, 3) - 0.5)
    xyz = ((low + high) / 2 + spread * (high - low)).requires_grad_()
    rotation = F.normalize(torch.randn(count, 4), dim=-1)
    empty = torch.zeros(0)
    return Canonical(xyz, torch.zeros(count, 3), rotation, empty, empty, empty, {})


# ------------------------------------------------------------------------------------------- box


def test_the_box_is_mapped_linearly_to_the_inner_part_of_the_grid():
    corners = Box(BBOX)(torch.stack([BBOX[0], BBOX.mean(0), BBOX[1]]))
    expected = torch.tensor([0.1, 0.5, 0.9])[:, None].expand(3, 3)
    assert torch.allclose(corners, expected, atol=1e-6)


def test_no_point_is_out_of_the_grid_and_their_order_is_kept():
    box = Box(BBOX)
    line = torch.cat([-torch.logspace(8, -3, 200), torch.logspace(-3, 8, 200)])
    unit = box(line[:, None].expand(-1, 3))
    assert unit.min() >= 0 and unit.max() <= 1
    assert (unit.diff(dim=0) >= 0).all()
    near = line.abs() < 100
    assert (unit[near].diff(dim=0) > 0).all()


def test_value_and_slope_are_continuous_at_the_sides():
    box = Box(BBOX)
    x = torch.tensor([[0.999, 0, 3], [1.001, 0, 3]], requires_grad=True)
    unit = box(x)
    unit.sum().backward()
    assert (unit[1, 0] - unit[0, 0]).item() == pytest.approx(0.002 * 0.2, rel=0.02)
    assert x.grad[1, 0].item() == pytest.approx(x.grad[0, 0].item(), rel=0.01)


@pytest.mark.parametrize("sides", [(0.0, 0.0, 0.0), (1.0, 0.0, 1.0)])
def test_a_flat_box_gives_finite_coordinates(sides):
    bbox = torch.stack([torch.zeros(3), torch.tensor(sides)])
    assert torch.isfinite(Box(bbox)(torch.randn(20, 3))).all()


def test_scaling_and_moving_the_scene_changes_nothing():
    points = torch.randn(30, 3) * 4
    moved = Box(BBOX * 50 + 7)(points * 50 + 7)
    assert torch.allclose(Box(BBOX)(points), moved, atol=1e-5)


# -------------------------------------------------------------------------------------- the field


def matrix(q: torch.Tensor) -> torch.Tensor:
    """Rotation matrices (N, 3, 3) of quaternions (N, 4), entry by entry."""
    w, x, y, z = F.normalize(q, dim=-1).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def test_displacement_is_that_of_the_rotation_matrix():
    q, v = torch.randn(20, 4), torch.randn(20, 3)
    expected = (matrix(q) @ v[..., None])[..., 0] - v
    assert torch.allclose(rotation_displacement(q, v), expected, atol=1e-5)


def test_displacement_by_a_tiny_rotation_keeps_its_digits():
    q = torch.tensor([[1.0, 1e-7, 0.0, 0.0]])
    got = rotation_displacement(q, torch.tensor([[0.0, 1000.0, 0.0]]))
    assert got[0, 2].item() == pytest.approx(2e-4, rel=1e-4)


def plain(made: HashGridExpert, state: Canonical, time: float) -> dict[str, torch.Tensor]:
    """The same field, written out with the encoder's plain twin and rotation matrices."""
    center, half = BBOX.mean(0), (BBOX[1] - BBOX[0]) / 2
    u = (state.xyz.detach() - center) / half
    far = 1.25 - 0.0625 / (u.abs() - 0.75)
    unit = torch.where(u.abs() > 1, u.sign() * far, u) / 2.5 + 0.5
    t = torch.full((len(u),), time)
    x, y, z = unit.unbind(1)
    features = torch.cat(
        [
            reference.encode(torch.stack([a, b, t], 1), e.table, e.grid)
            for e, (a, b) in zip(made.space_time, [(x, y), (y, z), (x, z)], strict=True)
        ],
        1,
    )
    space = reference.encode(unit, made.space.table, made.space.grid)
    attention = 2 * torch.sigmoid(made.of_space(space)) - 1
    hidden = made.hidden(F.relu(made.of_moment(features)) * attention)
    warp = made.heads["xyz"](hidden)
    q = warp[:, :4] + torch.tensor([1.0, 0, 0, 0])
    offset = state.xyz - center
    moved = (matrix(q) @ offset[..., None])[..., 0] + half.max() * warp[:, 4:]
    return {
        "xyz": moved - offset,
        "rotation": made.heads["rotation"](hidden),
        "log_scale": made.heads["log_scale"](hidden),
    }


@pytest.mark.parametrize("time", [0.0, 0.37, 1.0])
def test_the_field_is_the_plain_one(time):
    made, state = expert(), canonical()
    got = made(state, Moment(time, 0), made.attributes)
    for name, value in plain(made, state, time).items():
        assert torch.allclose(getattr(got, name), value, atol=1e-5), name
    assert got.opacity is None and got.sh is None


def test_gradients_are_those_of_the_plain_field_and_reach_everything():
    made, state = expert(), canonical()
    weights = {n: torch.randn(40, s) for n, s in (("xyz", 3), ("rotation", 4), ("log_scale", 3))}
    results = []
    for field in (lambda: vars(made(state, Moment(0.4, 0), made.attributes)), None):
        made.zero_grad()
        state.xyz.grad = None
        outputs = field() if field else plain(made, state, 0.4)
        sum((w * outputs[n]).sum() for n, w in weights.items()).backward()
        results.append([state.xyz.grad, *(p.grad.clone() for p in made.parameters())])
    for ours, expected in zip(*results, strict=True):
        assert torch.allclose(ours, expected, atol=1e-3, rtol=1e-3)
        assert ours.abs().sum() > 0


def test_zero_initialised_heads_leave_the_gaussians_where_they_are():
    made, state = expert(zero_init_heads=True), canonical()
    delta = made(state, Moment(0.5, 0), made.attributes)
    for name in made.attributes:
        assert torch.equal(getattr(delta, name), torch.zeros_like(getattr(delta, name))), name


def test_only_what_is_wanted_is_computed():
    assert expert(hash_no_ds=True).attributes == {"xyz", "rotation"}
    made = expert()
    delta = made(canonical(), Moment(0.5, 0), frozenset({"rotation"}))
    assert delta.xyz is None and delta.log_scale is None and delta.rotation is not None


# -------------------------------------------------------------------------------------- rendering


@torch.no_grad()
def test_attention_is_kept_between_the_frames_of_a_rendering():
    made, state = expert().eval(), canonical()
    calls = []
    made.space.register_forward_hook(lambda *_: calls.append(1))
    first = made(state, Moment(0.2, 0), made.attributes).xyz
    again = made(state, Moment(0.2, 0), made.attributes).xyz
    assert len(calls) == 1 and torch.equal(first, again)


@pytest.mark.parametrize("changed", ["in place", "replaced", "weights", "trained on"])
def test_attention_follows_what_it_depends_on(changed):
    made, state = expert().eval(), canonical()
    with torch.no_grad():
        made(state, Moment(0.2, 0), made.attributes)
        if changed == "in place":
            state.xyz.add_(0.3)
        elif changed == "replaced":
            state = canonical()
        else:
            made.train(changed == "trained on")
            made.of_space.weight.mul_(2)
            made.eval()
        got = made(state, Moment(0.2, 0), made.attributes).xyz
        expected = plain(made, state, 0.2)["xyz"]
    assert torch.allclose(got, expected, atol=1e-5)


def test_attention_has_its_gradient_in_training_whatever_was_rendered_before():
    made, state = expert().eval(), canonical()
    with torch.no_grad():
        made(state, Moment(0.2, 0), made.attributes)
    made(state, Moment(0.2, 0), made.attributes).xyz.sum().backward()
    assert made.space.table.grad.abs().sum() > 0


def test_many_points_outside_are_counted_once():
    made = expert()
    state = canonical(100, reach=1.5)
    with pytest.warns(UserWarning, match=r"of 100 points lie outside"):
        made(state, Moment(0.1, 0), made.attributes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made(state, Moment(0.1, 0), made.attributes)
        expert()(canonical(100, reach=0.99), Moment(0.1, 0), made.attributes)


def test_points_outside_are_not_counted_in_every_iteration():
    made, state = expert(), canonical(100, reach=1.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for iteration in (1, 50, 99, 101):  # counting reads the device
            made(state, Moment(0.1, iteration), made.attributes)
    with pytest.warns(UserWarning, match=r"of 100 points lie outside"):
        made(state, Moment(0.1, 300), made.attributes)
    assert OUTSIDE_INTERVAL % LOG_INTERVAL == 0  # iterations in which the device is read anyway


def test_what_goes_with_the_device_is_not_saved():
    assert "identity" in dict(expert().named_buffers()) and "identity" not in expert().state_dict()


# ------------------------------------------------------------------------------------ regularisers


def test_regularisers_are_in_the_loss_and_reach_their_grids():
    made, config = expert(), settings()
    terms = made.regularizers(canonical(200), config)
    assert set(terms) == {"hash_space_smoothness", "hash_time_smoothness"}
    terms["hash_space_smoothness"].backward()
    assert made.space.table.grad.abs().sum() > 0
    assert made.space_time[0].table.grad is None
    terms["hash_time_smoothness"].backward()
    assert all(e.table.grad.abs().sum() > 0 for e in made.space_time)


def test_regularisers_with_zero_weight_are_absent():
    made = expert()
    assert made.regularizers(canonical(), settings(hash_space_smooth_weight=0.0)).keys() == {
        "hash_time_smoothness"
    }
    none = settings(hash_space_smooth_weight=0.0, hash_time_smooth_weight=0.0)
    assert made.regularizers(canonical(), none) == {}


def test_smoothness_is_zero_for_constant_tables_and_grows_with_the_step():
    made, state = expert(), canonical(2000)

    def measured(step: float) -> list[float]:
        torch.manual_seed(1)
        config = settings(hash_space_perturb=step, hash_time_perturb=step, hash_smooth_ratio=1.0)
        return [t.item() for t in made.regularizers(state, config).values()]

    for small, large in zip(measured(1e-3), measured(1e-2), strict=True):
        assert large > 20 * small > 0  # quadratic in the step where the grid is smooth
    for encoder in (made.space, *made.space_time):
        torch.nn.init.constant_(encoder.table, 0.7)
    assert max(measured(1e-2)) < 1e-10


def test_parameter_groups_cover_the_module_once():
    made = expert()
    groups = made.parameter_groups(Config(), 5.0)
    grouped = [id(p) for g in groups for p in g.parameters]
    assert sorted(grouped) == sorted(id(p) for p in made.parameters())
    assert groups[0].rate.initial == Config().opt.hash_grid_lr_init
    assert math.isclose(groups[1].rate.initial, Config().opt.hash_net_lr_init)
