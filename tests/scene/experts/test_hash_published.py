"""The published hash fields; the tests of the importer compare them with published formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from scene.experts.base import Deformation
from scene.experts.hash_published import Cube, _activated_sum, _quaternion_of
from scene.gaussian_model import Canonical


def _matrix(q: torch.Tensor) -> torch.Tensor:
    """(N, 3, 3) of quaternions used as they are, as rasterisers compute it."""
    w, x, y, z = q.double().unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).view(-1, 3, 3)


def _canonical(count: int) -> Canonical:
    n = torch.randn
    return Canonical(
        n(count, 3), n(count, 3), n(count, 4), n(count, 1), n(count, 1, 3), n(count, 15, 3), {}
    )


def _covariance(log_scale: torch.Tensor, quaternion: torch.Tensor) -> torch.Tensor:
    axes = _matrix(quaternion) * log_scale.double().exp()[:, None]
    return axes @ axes.mT


def test_quaternions_of_rotations_come_back():
    special = torch.eye(4, dtype=torch.float64)  # none, and half a turn about each axis
    q = torch.cat([special, F.normalize(torch.randn(500, 4, dtype=torch.float64), dim=-1)])
    same = (_quaternion_of(_matrix(q)) * q).sum(-1).abs()
    assert torch.allclose(same, torch.ones_like(same), atol=1e-12)


@pytest.mark.parametrize("size", [0.0, 1e-4, 0.3, 3.0])
def test_a_quaternion_of_any_length_is_drawn_as_the_covariance_that_it_gives(size):
    canonical = _canonical(400)
    part = Deformation(rotation=size * torch.randn(400, 4), log_scale=0.3 * torch.randn(400, 3))
    log_scale, quaternion = _activated_sum(canonical, part)
    scale = canonical.log_scale.exp() + part.log_scale
    assert (scale < 0).any()  # drawn as its square
    wanted = _matrix(F.normalize(canonical.rotation, dim=-1) + part.rotation)
    wanted = wanted * scale.double()[:, None]
    wanted = wanted @ wanted.mT
    found = _covariance(log_scale, F.normalize(quaternion, dim=-1))
    error = (found - wanted).flatten(1).norm(dim=1)
    assert (error < 1e-5 * wanted.flatten(1).norm(dim=1)).all()


def test_without_changes_nothing_changes():
    canonical = _canonical(9)
    log_scale, quaternion = _activated_sum(canonical, Deformation())
    assert torch.allclose(log_scale, canonical.log_scale, atol=1e-6)
    assert torch.allclose(quaternion, F.normalize(canonical.rotation, dim=-1))


def test_the_cube_is_not_squeezed():
    points = torch.tensor([[-2.0, 0.0, 2.0], [3.0, 1.0, -1.0]])
    cube = Cube(2.0)
    assert cube(points).tolist() == [[0.0, 0.5, 1.0], [1.25, 0.75, 0.25]]
    assert cube.outside(points).tolist() == [False, True]
