"""Canonical Gaussians: initialisation and the one mechanism that re-indexes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scene.gaussian_model import CANONICAL, GaussianModel
from scene.spatial_order import spatial_order


def grid_points(n: int = 4, spacing: float = 0.5) -> np.ndarray:
    axis = np.arange(n) * spacing
    return np.stack(np.meshgrid(axis, axis, axis), -1).reshape(-1, 3).astype(np.float32)


def model(n: int = 4) -> GaussianModel:
    points = grid_points(n)
    rgb = np.full((len(points), 3), 128, np.uint8)
    gaussians = GaussianModel.from_points(points, rgb)
    gaussians.register("embedding", torch.arange(len(points) * 2.0).view(-1, 2))
    return gaussians


def test_initial_gaussians_are_as_large_as_points_are_apart():
    gaussians = model()
    assert torch.allclose(gaussians.log_scale.exp(), torch.tensor(0.5), atol=1e-5)
    assert torch.allclose(gaussians.opacity.sigmoid(), torch.tensor(0.1))
    assert torch.equal(gaussians.rotation[0], torch.tensor([1.0, 0, 0, 0]))


def test_color_survives_the_round_trip_through_sh():
    gaussians = model()
    assert torch.allclose(gaussians.f_dc * 0.28209479177387814 + 0.5, torch.tensor(128 / 255))


def test_reindex_copies_every_parameter_alike_and_overrides_only_fresh_rows():
    gaussians = model()
    before = {name: gaussians[name].detach().clone() for name in gaussians.names}
    source = torch.tensor([3, 5, 5, 5])
    fresh = torch.tensor([False, False, True, True])
    moved = torch.full((2, 3), 9.0)
    gaussians.reindex(source, fresh, {"xyz": moved})
    assert len(gaussians) == 4
    for name in [*CANONICAL, "embedding"]:
        expected = before[name][source]
        if name == "xyz":
            expected[fresh] = moved
        assert torch.equal(gaussians[name].detach(), expected), name


def test_reindex_takes_adam_moments_along_and_starts_fresh_rows_at_zero():
    gaussians = model()
    adam = torch.optim.Adam([{"params": [gaussians[n]]} for n in gaussians.names], lr=0.1)
    sum(gaussians[n].square().sum() for n in gaussians.names).backward()
    adam.step()
    moments = adam.state[gaussians["embedding"]]["exp_avg"].clone()
    gaussians.reindex(torch.tensor([7, 7]), torch.tensor([False, True]), {}, adam)
    state = adam.state[gaussians["embedding"]]
    assert torch.equal(state["exp_avg"][0], moments[7])
    assert torch.equal(state["exp_avg"][1], torch.zeros(2))
    held = {id(p) for group in adam.param_groups for p in group["params"]}
    assert held == {id(gaussians[n]) for n in gaussians.names}
    assert len(adam.state) == len(gaussians.names)


def test_registering_twice_or_with_the_wrong_count_is_refused():
    gaussians = model()
    with pytest.raises(ValueError, match="already"):
        gaussians.register("embedding", torch.zeros(len(gaussians), 1))
    with pytest.raises(ValueError, match="rows"):
        gaussians.register("other", torch.zeros(3, 1))


def test_initial_gaussians_are_in_spatial_order_with_their_colours_and_sizes():
    random = np.random.default_rng(0)
    points = random.random((300, 3), dtype=np.float32)
    rgb = np.floor(points * 255.99).astype(np.uint8)  # tells where a point is
    gaussians = GaussianModel.from_points(points, rgb)
    assert torch.equal(spatial_order(gaussians.xyz), torch.arange(300))
    colors = gaussians.f_dc[:, 0] * 0.28209479177387814 + 0.5
    assert torch.allclose(colors, gaussians.xyz, atol=1 / 255)
    ordered = points[spatial_order(torch.from_numpy(points)).numpy()]
    assert torch.equal(gaussians.log_scale, GaussianModel.from_points(ordered, rgb).log_scale)
