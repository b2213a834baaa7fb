"""The decoder behind an encoder: checks its arguments, allocates, and calls the native kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hexplane_encoder import _native

MAX_HEADS = _native.MAX_HEADS
Layer = tuple[Tensor, Tensor]  # weight (out, in), bias (out,)


def decode(
    inputs: Tensor,
    first: Layer | None,
    inner: Layer,
    last: Sequence[Layer],
    num_threads: int | None = None,
) -> tuple[Tensor, ...]:
    """``relu(relu(first(x)) @ inner_k.T + inner_bias_k) @ last_k.T + last_bias_k`` for each head k.

    Nothing between the inputs and the outputs is stored: the rows go through all layers a few at a
    time, and the backward pass computes them again.

    Args:
        inputs: (N, F).
        first: weight (W, F) and bias (W,); None: ``inputs`` are what the first ReLU takes, F = W.
        inner: weight (K x W, W) and bias (K x W,) of all K heads, one below the other.
        last: weight (S_k, W) and bias (S_k,) of each head, at most `MAX_HEADS`.
        num_threads: default `torch.get_num_threads()`; the result has the same bits for any.

    All are float32, or all float64, on the CPU. Once differentiable.

    Returns:
        K tensors (N, S_k).

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; the message names the argument.
    """
    threads = torch.get_num_threads() if num_threads is None else num_threads
    if threads < 1:
        raise ValueError(f"num_threads must be at least 1, got {threads}")
    _check(inputs, first, inner, last)
    tensors = [*(first or ()), *inner, *(tensor for layer in last for tensor in layer)]
    contiguous = [tensor.contiguous() for tensor in tensors]
    return _Decode.apply(threads, first is not None, inputs.contiguous(), *contiguous)


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, threads: int, has_first: bool, inputs: Tensor, *layers: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.threads, ctx.has_first = threads, has_first
        ctx.save_for_backward(inputs, *layers)
        ctx.set_materialize_grads(False)
        first, inner, last = _parts([layer.detach() for layer in layers], has_first)
        outputs = tuple(inputs.new_empty(len(inputs), len(bias)) for bias in last[1::2])
        _native.decode(inputs.detach(), first, inner, last, threads, list(outputs))
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs, *layers = (saved.detach() for saved in ctx.saved_tensors)
        given = [inputs.new_empty(0) if grad is None else grad.contiguous() for grad in grads]
        grad_layers = [torch.empty_like(layer) for layer in layers]
        grad_inputs = torch.empty_like(inputs) if ctx.needs_input_grad[2] else inputs.new_empty(0)
        _native.decode_backward(
            inputs,
            *_parts(layers, ctx.has_first),
            given,
            ctx.threads,
            grad_inputs,
            *_parts(grad_layers, ctx.has_first),
        )
        return None, None, grad_inputs if ctx.needs_input_grad[2] else None, *grad_layers


def _parts(
    layers: Sequence[Tensor], has_first: bool
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The first layer, if any, the inner and the last ones: weights and biases in turn."""
    start = 2 if has_first else 0
    return list(layers[:start]), list(layers[start : start + 2]), list(layers[start + 2 :])


def _check(inputs: Tensor, first: Layer | None, inner: Layer, last: Sequence[Layer]) -> None:
    if inputs.ndim != 2 or inputs.shape[1] < 1:
        raise ValueError(f"inputs must have shape (N, F), got {tuple(inputs.shape)}")
    if inputs.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"inputs must be float32 or float64, got {inputs.dtype}")
    if not 1 <= len(last) <= MAX_HEADS:
        raise ValueError(f"last must be 1 to {MAX_HEADS} layers, got {len(last)}")
    width = inputs.shape[1]
    if first is not None:
        width = len(first[1])
        _check_layer("first", first, (width, inputs.shape[1]), inputs)
    _check_layer("inner", inner, (len(last) * width, width), inputs)
    for k, layer in enumerate(last):
        _check_layer(f"last[{k}]", layer, (len(layer[1]), width), inputs)


def _check_layer(name: str, layer: Layer, shape: tuple[int, int], inputs: Tensor) -> None:
    weight, bias = layer
    if tuple(weight.shape) != shape or tuple(bias.shape) != shape[:1] or 0 in shape:
        found = f"{tuple(weight.shape)} and {tuple(bias.shape)}"
        raise ValueError(f"{name} must have shapes {shape} and {shape[:1]}, got {found}")
    for tensor in (inputs, weight, bias):
        if tensor.dtype != inputs.dtype or tensor.device.type != "cpu":
            raise ValueError(
                f"{name} must be {inputs.dtype} on the CPU with its inputs, "
                f"got {tensor.dtype} on {tensor.device}"
            )
