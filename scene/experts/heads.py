"""Decoder heads as one operator: ReLU, Linear, ReLU, Linear on a shared hidden vector.

As separate operators, the activations between the two layers, (N, heads x W), are the largest
tensors of an iteration, and autograd writes and reads them half a dozen times: once per split,
concatenation, threshold and sum. Here the rows are gone through in chunks that stay in the caches,
and the backward pass computes the activations again, which costs no more than storing them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

CHUNK = 2048  # rows at a time on a CPU


def two_layer_heads(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    last: Sequence[tuple[Tensor, Tensor]],
) -> tuple[Tensor, ...]:
    """``relu(relu(hidden) @ weight_k.T + bias_k) @ last_k.T + last_bias_k`` for each head k.

    Args:
        hidden: (N, W), before its ReLU.
        weight: (K x W, W), the first layers of all K heads, one below the other.
        bias: (K x W,).
        last: weight (S_k, W) and bias (S_k,) of each head's second layer.

    Returns:
        K tensors (N, S_k). Once differentiable.
    """
    return _TwoLayerHeads.apply(hidden, weight, bias, *(p for layer in last for p in layer))


class _TwoLayerHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, *last: Tensor
    ) -> tuple[Tensor, ...]:
        outputs = tuple(hidden.new_empty(len(hidden), len(b)) for b in last[1::2])
        inner = hidden.new_empty(_chunk(hidden), len(weight))
        for rows in _chunks(hidden):
            values = _first_layer(hidden[rows].relu(), weight, bias, inner)
            parts = values.split(weight.shape[1], dim=1)
            for part, w, b, output in zip(parts, last[::2], last[1::2], outputs, strict=True):
                torch.addmm(b, part, w.t(), out=output[rows])
        ctx.save_for_backward(hidden, weight, bias, *last[::2])
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, *last = ctx.saved_tensors
        width = weight.shape[1]
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        grad_bias = weight.new_zeros(len(weight))
        grad_last = [(torch.zeros_like(w), w.new_zeros(len(w))) for w in last]
        inner = hidden.new_empty(_chunk(hidden), len(weight))
        grad_inner = torch.empty_like(inner)
        for rows in _chunks(hidden):
            active = hidden[rows].relu()
            values = _first_layer(active, weight, bias, inner)
            block = grad_inner[: len(active)]
            parts = zip(block.split(width, 1), values.split(width, 1), strict=True)
            for (part, value), w, grad, sums in zip(parts, last, grads, grad_last, strict=True):
                _last_backward(part, value, w, None if grad is None else grad[rows], sums)
            _mask(block, values)
            into = torch.mm(block, weight, out=grad_hidden[rows])
            _mask(into, active)
            grad_weight.addmm_(block.t(), active)
            grad_bias += block.sum(0)
        return grad_hidden, grad_weight, grad_bias, *(g for pair in grad_last for g in pair)


def _first_layer(active: Tensor, weight: Tensor, bias: Tensor, into: Tensor) -> Tensor:
    """The activations between the layers, in the first rows of ``into``."""
    return torch.addmm(bias, active, weight.t(), out=into[: len(active)]).relu_()


def _last_backward(
    into: Tensor, value: Tensor, weight: Tensor, grad: Tensor | None, sums: tuple[Tensor, Tensor]
) -> None:
    """Writes the gradient of a second layer's input, adds those of its weight and bias."""
    if grad is None:  # nothing depends on this head
        into.zero_()
        return
    torch.mm(grad, weight, out=into)
    sums[0].addmm_(grad.t(), value)
    sums[1].add_(grad.sum(0))


def _mask(grad: Tensor, activation: Tensor) -> None:
    """The backward pass of ReLU, in place."""
    torch.ops.aten.threshold_backward.grad_input(grad, activation, 0, grad_input=grad)


def _chunk(rows: Tensor) -> int:
    return min(CHUNK, len(rows)) if rows.device.type == "cpu" else len(rows)


def _chunks(rows: Tensor) -> Iterator[slice]:
    count, step = len(rows), _chunk(rows)
    for start in range(0, count, max(step, 1)):
        yield slice(start, min(start + step, count))
