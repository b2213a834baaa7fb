"""The roughness of planes: values and gradients against the plain PyTorch twin, and its edges."""

from __future__ import annotations

import pytest
import torch

from hexplane_encoder import reference, roughness

# Of a mean over thousands of float32; float64: the same, 2^-29 finer.
TOLERANCE = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-7},
    torch.float64: {"rtol": 1e-12, "atol": 1e-14},
}
SIZES = [(9, 7, 16), (12, 40, 3), (3, 3, 1), (2, 5, 4), (6, 2, 4), (1, 1, 2), (5, 1, 33)]


def make_planes(sizes=SIZES, dtype=torch.float64, seed=0) -> list[torch.Tensor]:
    """Planes with some values of exactly 1."""
    random = torch.Generator().manual_seed(seed)
    planes = [2 * torch.rand(size, generator=random, dtype=dtype) for size in sizes]
    return [plane.index_fill_(1, torch.tensor([0]), 1.0).requires_grad_() for plane in planes]


def weighed(values) -> torch.Tensor:
    return 0.5 * values[0] - 2 * values[1] + 3 * values[2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_twin(dtype):
    space, time = make_planes(dtype=dtype), make_planes(dtype=dtype, seed=1)
    found, expected = roughness(space, time), reference.roughness(space, time)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE[dtype])
    grads = [
        torch.autograd.grad(weighed(v), [*space, *time], materialize_grads=True)
        for v in (found, expected)
    ]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE[dtype])


def test_gradients_equal_finite_differences():
    planes = [torch.rand(5, 4, 2, dtype=torch.float64).requires_grad_() for _ in range(2)]
    assert torch.autograd.gradcheck(lambda a, b: roughness([a], [b]), planes)


@pytest.mark.parametrize("measure", range(3))
def test_a_measure_that_nothing_depends_on_passes_no_gradient(measure):
    space, time = make_planes(), make_planes(seed=1)
    grads = [
        torch.autograd.grad(f(space, time)[measure], [*space, *time], materialize_grads=True)
        for f in (roughness, reference.roughness)
    ]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE[torch.float64])


def test_the_bits_do_not_depend_on_the_number_of_threads():
    planes = make_planes([(96, 96, 16), (150, 96, 16)], torch.float32)
    results = []
    for threads in (1, 2, 3, 7):
        values = roughness(planes[:1], planes[1:], threads)
        results.append([*values, *torch.autograd.grad(weighed(values), planes)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_values_that_are_not_finite_are_not_hidden():
    space, time = make_planes(), make_planes(seed=1)
    with torch.no_grad():
        time[0][4, 3, 2] = float("nan")
    values = roughness(space, time)
    assert values[0].isfinite() and values[1].isnan() and values[2].isnan()
    assert torch.autograd.grad(values[2], time)[0][4, 3, 2].isnan()


def test_what_does_not_fit_is_named():
    plane = torch.rand(4, 4, 2)
    with pytest.raises(ValueError, match="contiguous"):
        roughness([plane.transpose(0, 1)], [plane])
    with pytest.raises(ValueError, match="one dtype"):
        roughness([plane], [plane.double()])
    with pytest.raises(ValueError, match=r"float32 or float64, got torch\.float16"):
        roughness([plane.half()], [plane.half()])
    with pytest.raises(ValueError, match="planes and threads, got 0"):
        roughness([], [])
    with pytest.raises(ValueError, match="got 2 and 0"):
        roughness([plane], [plane], 0)
