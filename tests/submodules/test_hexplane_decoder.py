"""The decoder: values and gradients against its plain PyTorch twin, and its edges."""

from __future__ import annotations

import pytest
import torch

from hexplane_encoder import decode, reference
from hexplane_encoder.decoder import MAX_HEADS

# float32: sums of up to some thousand terms in another order; float64: the same, 2^-29 finer.
TOLERANCE = {
    torch.float32: {"rtol": 1e-4, "atol": 1e-4},
    torch.float64: {"rtol": 1e-10, "atol": 1e-11},
}


def make_layers(
    rows: int = 500,
    inputs: int = 9,
    width: int = 24,
    sizes: tuple[int, ...] = (3, 1, 48),
    dtype: torch.dtype = torch.float64,
    has_first: bool = True,
    seed: int = 0,
):
    """Inputs (N, F) and the three kinds of layers, all wanting gradients."""
    random = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, dtype=dtype).requires_grad_()

    x = leaf(rows, inputs if has_first else width)
    first = (leaf(width, inputs), leaf(width)) if has_first else None
    inner = (leaf(len(sizes) * width, width), leaf(len(sizes) * width))
    return x, first, inner, [(leaf(size, width), leaf(size)) for size in sizes]


def leaves(x, first, inner, last) -> list[torch.Tensor]:
    """All tensors in one list."""
    return [x, *(first or ()), *inner, *(tensor for layer in last for tensor in layer)]


def gradients(outputs, tensors) -> list[torch.Tensor]:
    """Of a weighted sum of the outputs, over the number of rows."""
    weights = [torch.linspace(-1, 2, o.numel(), dtype=o.dtype).view_as(o) for o in outputs]
    total = sum((w * o).sum() for w, o in zip(weights, outputs, strict=True))
    return list(torch.autograd.grad(total / max(len(outputs[0]), 1), leaves(*tensors)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("has_first", [True, False])
@pytest.mark.parametrize("width", [1, 7, 16, 40, 64, 65, 128])
def test_equals_the_twin(dtype, has_first, width):
    tensors = make_layers(width=width, dtype=dtype, has_first=has_first)
    found, expected = decode(*tensors), reference.decode(*tensors)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE[dtype])
    pairs = zip(gradients(found, tensors), gradients(expected, tensors), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, **TOLERANCE[dtype])


@pytest.mark.parametrize("rows", [0, 1, 2, 5, 6, 7, 15, 16, 17, 47, 48, 49, 1000])
@pytest.mark.parametrize("inputs", [1, 33])
def test_any_number_of_rows(rows, inputs):
    tensors = make_layers(rows, inputs, sizes=(4, 3))
    found, expected = decode(*tensors), reference.decode(*tensors)
    both = [*zip(found, expected, strict=True)]
    both += zip(gradients(found, tensors), gradients(expected, tensors), strict=True)
    for a, b in both:
        torch.testing.assert_close(a, b, **TOLERANCE[torch.float64])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("outputs", range(1, 18))
def test_any_number_of_outputs(dtype, outputs):
    tensors = make_layers(51, width=40, sizes=(outputs,), dtype=dtype)
    found, expected = decode(*tensors), reference.decode(*tensors)
    torch.testing.assert_close(found[0], expected[0], **TOLERANCE[dtype])


def test_gradients_equal_finite_differences():
    x, first, inner, last = make_layers(5, 3, 4, (2, 1))

    def function(*flat):
        return decode(flat[0], flat[1:3], flat[3:5], [flat[5:7], flat[7:9]])

    assert torch.autograd.gradcheck(function, leaves(x, first, inner, last))


def test_the_bits_do_not_depend_on_the_number_of_threads():
    tensors = make_layers(3001, dtype=torch.float32)
    for threads in (2, 3, 5, 40):
        for a, b in zip(decode(*tensors, 1), decode(*tensors, threads), strict=True):
            assert torch.equal(a, b)
        pair = [gradients(decode(*tensors, n), tensors) for n in (1, threads)]
        assert all(torch.equal(a, b) for a, b in zip(*pair, strict=True))


def test_a_head_that_nothing_depends_on_passes_no_gradient():
    tensors = make_layers(sizes=(3, 4))
    found, expected = (function(*tensors)[0].sum() for function in (decode, reference.decode))
    flat = leaves(*tensors)
    pairs = zip(
        torch.autograd.grad(found, flat),
        torch.autograd.grad(expected, flat, materialize_grads=True),
        strict=True,
    )
    for a, b in pairs:
        torch.testing.assert_close(a, b, **TOLERANCE[torch.float64])


def test_inputs_without_gradient_are_fine():
    x, *layers = make_layers(20)
    constant = x.detach()
    total = sum(output.sum() for output in decode(constant, *layers))
    expected = sum(output.sum() for output in reference.decode(constant, *layers))
    flat = leaves(constant, *layers)[1:]
    pairs = zip(torch.autograd.grad(total, flat), torch.autograd.grad(expected, flat), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, **TOLERANCE[torch.float64])
    with torch.no_grad():
        assert not any(output.requires_grad for output in decode(x, *layers))


def test_inputs_of_any_strides():
    x, first, inner, last = make_layers(20)
    turned = x.detach().t().contiguous().t()
    assert not turned.is_contiguous()
    for a, b in zip(decode(turned, first, inner, last), decode(x, first, inner, last), strict=True):
        assert torch.equal(a, b)


def test_values_that_are_not_finite_stay_in_their_row():
    x, *layers = make_layers(60)
    with torch.no_grad():
        x[2, 0], x[40, 1] = float("nan"), float("inf")
        clean = torch.ones(60, dtype=torch.bool).index_fill_(0, torch.tensor([2, 40]), False)
        pairs = zip(decode(x, *layers), reference.decode(x, *layers), strict=True)
        for a, b in pairs:
            assert a[2].isnan().all() and a[clean].isfinite().all()
            torch.testing.assert_close(a, b, equal_nan=True)


def test_nothing_of_the_size_of_the_activations_is_kept():
    tensors = make_layers(400)
    kept = decode(*tensors)[0].grad_fn.saved_tensors
    assert max(tensor.numel() for tensor in kept) == tensors[0].numel()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3)}, "inputs must have shape"),
        ({"x": torch.zeros(3, 9, dtype=torch.int32)}, "inputs must be float32 or float64"),
        ({"x": torch.zeros(3, 8, dtype=torch.float64)}, r"first must have shapes \(24, 8\)"),
        ({"x": torch.zeros(3, 9)}, "first must be torch.float32"),
        ({"inner": (torch.zeros(70, 24), torch.zeros(70))}, r"inner must have shapes \(72, 24\)"),
        ({"last": []}, f"last must be 1 to {MAX_HEADS} layers, got 0"),
        ({"last": [(torch.zeros(1, 24), torch.zeros(1))] * 9}, "last must be 1 to 8 layers, got 9"),
        ({"threads": 0}, "num_threads must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    x, first, inner, last = make_layers(3)
    given = {"x": x, "first": first, "inner": inner, "last": last, "threads": 1} | change
    with pytest.raises(ValueError, match=message):
        decode(*given.values())
