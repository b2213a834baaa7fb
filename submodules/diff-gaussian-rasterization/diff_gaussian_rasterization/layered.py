"""Gaussians in layers: numbers of successive ones, or tensors of their own for each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 16  # pixels
MAX_TILES = 2**31 - 1

Part = dict[str, Tensor | None]  # the tensors of all Gaussians, or of those of a layer, by name


def parts_of(values: Mapping[str, object]) -> list[Part]:
    """The tensors of all Gaussians, or those of each layer where sequences of them are given."""
    given = {name: value for name, value in values.items() if value is not None}
    counts = {n: len(v) if isinstance(v, Sequence) else None for n, v in given.items()}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{n} has {'one' if c is None else c}" for n, c in counts.items())
        raise ValueError(f"give one tensor for each layer, of every kind alike: {shown}")
    layers = counts["means3D"]
    if layers is None:
        return [dict(values)]
    if layers == 0:
        raise ValueError("means3D is empty: there must be at least one layer")
    missing = [f"{n}[{k}]" for n, v in given.items() for k in range(layers) if v[k] is None]
    if missing:
        raise ValueError(f"give a tensor for each layer, but {', '.join(missing)} is None")
    return [
        {name: None if value is None else value[k] for name, value in values.items()}
        for k in range(layers)
    ]


def counts_of(
    parts: Sequence[Part], layers: Sequence[int] | None, separate: bool
) -> tuple[int, ...] | None:
    """The numbers of Gaussians of the layers; None if there are none.

    Raises:
        ValueError: `layers` are not those of the separate tensors that are given.
    """
    named = None if layers is None else tuple(int(count) for count in layers)
    if not separate:
        return named
    counts = tuple(part["means3D"].shape[1] for part in parts if part["means3D"].dim() == 3)
    if named not in (None, counts):
        raise ValueError(f"layers are {list(named)}, but the tensors have {list(counts)} Gaussians")
    return counts


def check(
    parts: Sequence[Part],
    layers: Sequence[int] | None,
    shared: bool,
    images: tuple[int, int, int],
) -> None:
    """Raises unless the layers are all Gaussians, and the tiles of all images can be counted.

    Args:
        images: views, width and height.
    """
    if layers is None:
        if shared:
            raise ValueError("shared_transmittance needs layers")
        return
    count = sum(part["means3D"].shape[1] for part in parts)
    if not layers or min(layers) < 0 or sum(layers) != count:
        raise ValueError(
            f"layers must be numbers of Gaussians that sum to {count}, not {list(layers)}"
        )
    views, width, height = images
    tiles = views * -(-width // TILE) * -(-height // TILE)
    if len(layers) * tiles > MAX_TILES:
        raise ValueError(f"{len(layers)} layers of {tiles} tiles are more than 2^31 - 1 tiles")
    widths = {0 if p["features"] is None else p["features"].shape[2] for p in parts}
    if len(widths) > 1:
        raise ValueError(f"features of all layers must be alike, not {sorted(widths)} of them")


@lru_cache(maxsize=64)
def starts(layers: tuple[int, ...], device: torch.device) -> Tensor:
    """(E + 1,) int32: the first Gaussian of each layer, and N."""
    with torch.inference_mode(False):  # or no later render could keep it for its backward pass
        return torch.tensor([0, *accumulate(layers)], dtype=torch.int32, device=device)


def joined(parts: Sequence[Part]) -> Part:
    """All layers in one tensor of each kind; missing rows of harmonics are 0."""
    joined = {}
    for name in parts[0]:
        tensors = [part[name] for part in parts]
        if tensors[0] is None:
            joined[name] = None
            continue
        views = max(tensor.shape[0] for tensor in tensors)
        rows = max(tensor.shape[2] for tensor in tensors)
        # Only harmonics differ in their rows.
        padded = [
            F.pad(t, (0, 0, 0, rows - t.shape[2])) if t.shape[2] < rows else t for t in tensors
        ]
        joined[name] = torch.cat([t.expand(views, *t.shape[1:]) for t in padded], 1)
    return joined
