"""Decoder heads as one operator: ReLU, Linear, ReLU, Linear on a shared hidden vector.

As separate operators, the activations between the two layers, (N, heads x W), are the largest
tensors of an iteration, and autograd writes and reads them half a dozen times: once per split,
concatenation, threshold and sum. On the CPU one native operator takes a few rows at a time through
all layers (`hexplane_encoder.decode`). Elsewhere the activations between the two layers are at
least not kept: the backward pass computes them again, which costs no more than storing them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import hexplane_encoder
from utils.devices import reading_waits

Layer = tuple[Tensor, Tensor]  # weight (out, in), bias (out,)


def decode(
    inputs: Tensor, before: Layer, inner: Layer, last: Sequence[Layer]
) -> tuple[Tensor, ...]:
    """The heads on ``inputs`` @ weight.T + bias.

    Args:
        inputs: (N, F).
        before: weight (W, F) and bias (W,) of the layer whose result the heads share.
        inner: the first layers of all K heads, one below the other: (K x W, W) and (K x W,).
        last: weight (S_k, W) and bias (S_k,) of each head's second layer.

    Returns:
        K tensors (N, S_k). Once differentiable.
    """
    if not reading_waits(inputs):
        return hexplane_encoder.decode(inputs, before, inner, last)
    return two_layer_heads(F.linear(inputs, *before), *inner, last)


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
        values = _first_layer(hidden.relu(), weight, bias)
        parts = values.split(weight.shape[1], dim=1)
        ctx.save_for_backward(hidden, weight, bias, *last[::2])
        ctx.set_materialize_grads(False)
        layers = zip(parts, last[::2], last[1::2], strict=True)
        return tuple(torch.addmm(b, part, w.t()) for part, w, b in layers)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, *last = ctx.saved_tensors
        width = weight.shape[1]
        active = hidden.relu()
        values = _first_layer(active, weight, bias)
        inner = torch.empty_like(values)
        grad_last: list[Tensor] = []
        parts = zip(inner.split(width, 1), values.split(width, 1), strict=True)
        for (part, value), w, grad in zip(parts, last, grads, strict=True):
            grad_last += _last_backward(part, value, w, grad)
        _mask(inner, values)
        into = inner @ weight
        _mask(into, active)
        return into, inner.t() @ active, inner.sum(0), *grad_last


def _first_layer(active: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The activations between the layers."""
    return torch.addmm(bias, active, weight.t()).relu_()


def _last_backward(
    into: Tensor, value: Tensor, weight: Tensor, grad: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Writes the gradient of a second layer's input; those of its weight and bias."""
    if grad is None:  # nothing depends on this head
        into.zero_()
        return torch.zeros_like(weight), weight.new_zeros(len(weight))
    torch.mm(grad, weight, out=into)
    return grad.t() @ value, grad.sum(0)


def _mask(grad: Tensor, activation: Tensor) -> None:
    """The backward pass of ReLU, in place."""
    torch.ops.aten.threshold_backward.grad_input(grad, activation, 0, grad_input=grad)
