"""The decoder heads as one operator against the same layers as separate ones.

Here the path of devices other than the CPU; that of the CPU is `test_hexplane_decoder`'s.
"""

import pytest
import torch

from scene.experts import heads

SIZES = (3, 4, 48)
WIDTH = 8


def problem(rows: int, seed: int = 0, dtype: torch.dtype = torch.float64):
    """Hidden vectors, first layers and last layers, all wanting gradients."""
    random = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, dtype=dtype).requires_grad_()

    first = leaf(len(SIZES) * WIDTH, WIDTH), leaf(len(SIZES) * WIDTH)
    return leaf(rows, WIDTH), *first, [(leaf(size, WIDTH), leaf(size)) for size in SIZES]


def separate(hidden, weight, bias, last):
    """The twin, in plain PyTorch."""
    inner = (hidden.relu() @ weight.T + bias).relu()
    return [part @ w.T + b for part, (w, b) in zip(inner.split(WIDTH, dim=1), last, strict=True)]


def test_both_paths_decode_the_same():
    hidden, weight, bias, last = problem(40)
    eye, zero = torch.eye(WIDTH, dtype=hidden.dtype), hidden.new_zeros(WIDTH)
    found = heads.decode(hidden, (eye, zero), (weight, bias), last)
    for a, b in zip(found, heads.two_layer_heads(hidden, weight, bias, last), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def leaves(hidden, weight, bias, last):
    return [hidden, weight, bias, *(tensor for layer in last for tensor in layer)]


@pytest.mark.parametrize("rows", [0, 1, 5, 500])
def test_values_and_gradients_equal_separate_layers(rows):
    tensors = problem(rows)
    found, expected = heads.two_layer_heads(*tensors), separate(*tensors)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    weights = [torch.randn(len(e), e.shape[1], dtype=e.dtype) for e in expected]
    sums = [sum((w * o).sum() for w, o in zip(weights, x, strict=True)) for x in (found, expected)]
    grads = [torch.autograd.grad(total, leaves(*tensors)) for total in sums]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_gradients_equal_finite_differences():
    hidden, weight, bias, last = problem(5, seed=3)
    flat = leaves(hidden, weight, bias, last)

    def function(hidden, weight, bias, *rest):
        return heads.two_layer_heads(
            hidden, weight, bias, list(zip(rest[::2], rest[1::2], strict=True))
        )

    assert torch.autograd.gradcheck(function, flat)


def test_a_head_that_nothing_depends_on_passes_no_gradient():
    hidden, weight, bias, last = problem(23)
    first, *_ = heads.two_layer_heads(hidden, weight, bias, last)
    first.sum().backward()
    expected = torch.autograd.grad(separate(hidden, weight, bias, last)[0].sum(), [hidden, weight])
    torch.testing.assert_close(hidden.grad, expected[0])
    torch.testing.assert_close(weight.grad, expected[1])
    assert not weight.grad[WIDTH:].any() and not last[1][0].grad.any()


def test_values_that_are_not_finite_stay_in_their_row():
    hidden, weight, bias, last = problem(6)
    with torch.no_grad():
        hidden[2, 0], hidden[4, 1] = float("nan"), float("inf")
        clean = torch.tensor([0, 1, 3, 5])
        found = heads.two_layer_heads(hidden, weight, bias, last)
        expected = separate(hidden, weight, bias, last)
        for a, b in zip(found, expected, strict=True):
            assert a[2].isnan().any()
            torch.testing.assert_close(a, b, equal_nan=True)
            assert a[clean].isfinite().all()


def test_nothing_of_the_size_of_the_activations_is_kept():
    tensors = problem(400, dtype=torch.float32)
    kept = heads.two_layer_heads(*tensors)[0].grad_fn.saved_tensors
    assert max(tensor.numel() for tensor in kept) == tensors[0].numel()
