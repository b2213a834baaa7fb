"""The HexPlane expert against a plain grid_sample field."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from arguments_MoDE.config import Config
from scene.experts.base import Moment, SceneFacts
from scene.experts.hexplane import HexPlaneExpert, HexPlaneField, _curvature, _Rows
from scene.gaussian_model import Canonical


def field(levels=(1, 2)) -> HexPlaneField:
    torch.manual_seed(0)
    bbox = torch.tensor([[-1.0, -2.0, 0.0], [1.0, 2.0, 3.0]])
    made = HexPlaneField(bbox, 4, [6, 5, 7, 9], list(levels))
    for plane in made.time:
        torch.nn.init.normal_(plane)
    return made


def oracle(made: HexPlaneField, xyz: torch.Tensor, time: float) -> torch.Tensor:
    """Six bilinear samples by grid_sample, multiplied; levels concatenated."""
    low, high = made.bbox
    unit = (xyz - low) / (high - low) * 2 - 1
    point = torch.cat([unit, torch.full((len(xyz), 1), 2 * time - 1)], 1)

    def sample(plane, a, b):
        grid = torch.stack([point[:, a], point[:, b]], -1)[None, None]
        image = plane.permute(2, 0, 1)[None]
        out = F.grid_sample(image, grid, align_corners=True, padding_mode="border")
        return out[0, :, 0].T

    levels = []
    for i in range(0, len(made.space), 3):
        value = 1
        for plane, (a, b) in zip(made.space[i : i + 3], ((0, 1), (0, 2), (1, 2)), strict=True):
            value = value * sample(plane, a, b)
        for a, plane in enumerate(made.time[i : i + 3]):
            value = value * sample(plane, a, 3)
        levels.append(value)
    return torch.cat(levels, 1)


@pytest.mark.parametrize("time", [0.0, 0.21, 0.5, 1.0])
def test_field_equals_six_sampled_planes(time):
    made = field()
    xyz = torch.rand(50, 3) * torch.tensor([3.0, 5.0, 4.0]) - torch.tensor([1.5, 2.5, 0.5])
    assert torch.allclose(made(xyz, time), oracle(made, xyz, time), atol=1e-5)


def test_the_field_of_a_flat_cloud_does_not_jump_at_its_plane():
    torch.manual_seed(0)
    flat = HexPlaneField(torch.tensor([[-1.0, -1.0, 2.0], [1.0, 1.0, 2.0]]), 4, [8, 8, 8, 5], [1])
    xyz = torch.tensor([[0.1, 0.1, 2 - 1e-6], [0.1, 0.1, 2.0], [0.1, 0.1, 2 + 1e-6]])
    xyz.requires_grad_()
    values = flat(xyz, 0.3)
    assert torch.allclose(values, values[1:2].expand(3, -1), rtol=0.05)
    values.sum().backward()
    assert (xyz.grad[:, 2] != 0).all()


def test_gradient_reaches_positions_and_planes_as_the_oracle_says():
    made = field()
    xyz = torch.rand(20, 3) * torch.tensor([1.8, 3.6, 2.7]) - torch.tensor([0.9, 1.8, -0.1])
    weights = torch.randn(20, 8)
    results = []
    for function in (made, lambda x, t: oracle(made, x, t)):
        made.zero_grad()
        x = xyz.clone().requires_grad_()
        (function(x, 0.37) * weights).sum().backward()
        results.append([x.grad, *(p.grad.clone() for p in made.parameters())])
    for ours, expected in zip(*results, strict=True):
        assert torch.allclose(ours, expected, atol=1e-4)


def test_time_uses_the_whole_axis():
    made = field((1,))
    xyz = torch.zeros(1, 3)
    before = [made(xyz, t).detach().clone() for t in (0.0, 1.0)]
    with torch.no_grad():
        for plane in made.time:
            plane[0] += 1
    after = [made(xyz, t) for t in (0.0, 1.0)]
    assert not torch.allclose(before[0], after[0])
    assert torch.allclose(before[1], after[1])


def expert(**hidden) -> HexPlaneExpert:
    config = Config()
    for key, value in hidden.items():
        setattr(config.hidden, key, value)
    config.hidden.kplanes_config["resolution"] = [4, 4, 4, 5]
    bbox = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])
    return HexPlaneExpert(config.hidden, SceneFacts(bbox, 1.0, 2, 5))


def test_zero_initialised_heads_leave_the_gaussians_where_they_are():
    xyz = torch.rand(6, 3)
    empty = torch.zeros(0)
    canonical = Canonical(xyz, empty, empty, empty, empty, empty, {})
    made = expert(zero_init_heads=True)
    delta = made(canonical, Moment(0.5, 0), made.attributes)
    assert torch.equal(delta.xyz, torch.zeros(6, 3))
    assert delta.sh is None


def test_disabled_attributes_are_not_deformed():
    assert expert(no_ds=True, no_do=False).attributes == {"xyz", "rotation", "opacity"}


def test_curvature_is_zero_on_a_ramp_and_positive_on_a_bend():
    ramp = torch.arange(6.0)[:, None, None].expand(6, 2, 1)
    assert _curvature(ramp, 0) == 0
    assert _curvature(ramp**2, 0) == pytest.approx(4.0)
    assert _curvature(ramp, 1) == 0  # two samples have no second difference


def test_regularisers_with_zero_weight_are_absent():
    made, config = expert(), Config()
    config.hidden.plane_tv_weight = 0.0
    assert set(made.regularizers(None, config)) == {"time_smoothness", "l1_time"}


def test_parameter_groups_cover_the_module_once():
    made = expert()
    grouped = [id(p) for g in made.parameter_groups(Config(), 1.0) for p in g.parameters]
    assert sorted(grouped) == sorted(id(p) for p in made.parameters())


@pytest.mark.parametrize(("shape", "dim"), [((3, 2, 2), 0), ((5, 4, 3), 0), ((5, 7, 1), 1)])
def test_curvature_and_its_gradient_are_those_of_the_plain_formula(shape, dim):
    plane = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    expected = plane.diff(n=2, dim=dim).square().mean()
    torch.testing.assert_close(_curvature(plane, dim), expected)
    assert torch.autograd.gradcheck(lambda p: _curvature(p, dim), plane)


@pytest.mark.parametrize("time", [-0.5, 0.0, 0.3, 0.5, 1.0])
def test_lines_of_planes_and_their_gradient_are_those_of_the_plain_formula(time):
    planes = [torch.rand(n, 3, 2, dtype=torch.float64, requires_grad=True) for n in (5, 2, 1)]
    for plane, line in zip(planes, _Rows.apply(time, *planes), strict=True):
        position = min(max(time, 0.0), 1.0) * (len(plane) - 1)
        low = int(position)
        high = min(low + 1, len(plane) - 1)
        expected = plane[low] + (position - low) * (plane[high] - plane[low])
        torch.testing.assert_close(line, expected)
    assert torch.autograd.gradcheck(lambda *p: _Rows.apply(time, *p), planes)
