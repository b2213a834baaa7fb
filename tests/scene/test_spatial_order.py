"""The order that Gaussians are kept in."""

from __future__ import annotations

import pytest
import torch

from scene.spatial_order import BITS, spatial_order


def code(cell: list[int]) -> int:
    """Bit by bit: x, y and z in turns, x lowest."""
    return sum((cell[d] >> bit & 1) << (3 * bit + d) for bit in range(BITS) for d in range(3))


def test_order_is_that_of_interleaved_bits():
    cells = torch.randint(2**BITS, (500, 3), generator=torch.Generator().manual_seed(0))
    cells[0], cells[1] = 0, 2**BITS - 1  # the cube's corners: cells are then what they are
    expected = sorted(range(len(cells)), key=lambda i: code(cells[i].tolist()))
    assert spatial_order(cells.double()).tolist() == expected


def test_cells_are_cubes_whatever_the_cloud_is_like():
    """A flat cloud is ordered by its long axes: its short one is within a cell."""
    flat = torch.rand(4096, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 1, 0])
    noise = torch.rand(4096, generator=torch.Generator().manual_seed(1))
    thick = flat + torch.stack([torch.zeros(4096), torch.zeros(4096), 1e-8 * noise], 1)
    assert torch.equal(spatial_order(flat), spatial_order(thick))


def test_points_in_order_are_near_their_neighbours():
    points = torch.rand(5000, 3, generator=torch.Generator().manual_seed(0))

    def step(xyz: torch.Tensor) -> float:
        return (xyz[1:] - xyz[:-1]).norm(dim=1).median().item()

    assert step(points[spatial_order(points)]) < 0.15 * step(points)


def test_one_outlier_does_not_undo_the_order_of_the_rest():
    points = torch.rand(2000, 3, generator=torch.Generator().manual_seed(0))
    with_outlier = torch.cat([points, torch.full((1, 3), 1000.0)])
    ordered = with_outlier[spatial_order(with_outlier)][:-1]
    assert (ordered[1:] - ordered[:-1]).norm(dim=1).median() < 0.12


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_points_have_an_order(count):
    assert sorted(spatial_order(torch.rand(count, 3)).tolist()) == list(range(count))


def test_points_at_one_place_keep_their_order():
    assert spatial_order(torch.full((100, 3), 3.0)).tolist() == list(range(100))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_points_that_are_not_finite_leave_the_order_as_it_is(bad):
    points = torch.rand(50, 3)
    points[7, 1] = bad
    assert spatial_order(points).tolist() == list(range(50))
