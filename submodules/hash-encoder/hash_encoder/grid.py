"""What a hash grid looks like: resolutions and rows of its levels. No tensors, no native code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

INTERPOLATIONS = ("smoothstep", "linear")
FINEST = 2**24  # samples along an axis: the integers that float32 tells apart
LARGEST_LOG2_SIZE = 28


@dataclass(frozen=True)
class HashGrid:
    """Levels of growing resolution over the unit cube, and the layout of their common table.

    Level l of L has v = base * (desired / base)^(l / (L - 1)) samples along an axis, rounded up to
    its resolution; coordinate 1 lies at position v - 1. A level whose samples fit into 2^log2_size
    rows is dense, with the first axis running fastest; any other has just as many rows, which its
    samples share through the hash.

    Args:
        dims: axes of a point, 2 to 4.
        levels: L, at least 1.
        features: F, features of a level.
        base: samples of the coarsest level, one number for all axes or one for each.
        desired: samples of the finest level, likewise; at least `base`.
        log2_size: the most rows of one level are 2^log2_size.
        interpolation: "smoothstep" (weights 3f^2 - 2f^3, first derivatives continuous) or "linear".

    Raises:
        ValueError: a value out of its range; the message names it.
    """

    dims: int = 3
    levels: int = 16
    features: int = 2
    base: int | Sequence[int] = 16
    desired: int | Sequence[int] = 2048
    log2_size: int = 19
    interpolation: str = "smoothstep"

    def __post_init__(self) -> None:
        _check_range("dims", self.dims, 2, 4)
        _check_range("levels", self.levels, 1, 1024)
        _check_range("features", self.features, 1, 1024)
        _check_range("log2_size", self.log2_size, 1, LARGEST_LOG2_SIZE)
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"interpolation must be one of {INTERPOLATIONS}, got {self.interpolation!r}"
            )
        base = _per_axis("base", self.base, self.dims, (1,) * self.dims)
        object.__setattr__(self, "base", base)
        object.__setattr__(self, "desired", _per_axis("desired", self.desired, self.dims, base))

    @cached_property
    def samples(self) -> tuple[tuple[float, ...], ...]:
        """(L, D) the unrounded numbers of samples v."""
        steps = max(self.levels - 1, 1)
        axes = list(zip(self.base, self.desired, strict=True))
        return tuple(
            tuple(_snap(low * (high / low) ** (level / steps)) for low, high in axes)
            for level in range(self.levels)
        )

    @cached_property
    def resolutions(self) -> tuple[tuple[int, ...], ...]:
        """(L, D) samples along each axis of each level."""
        return tuple(tuple(math.ceil(v) for v in level) for level in self.samples)

    @cached_property
    def scales(self) -> tuple[tuple[float, ...], ...]:
        """(L, D) position of coordinate 1 among the samples."""
        return tuple(tuple(v - 1.0 for v in level) for level in self.samples)

    @cached_property
    def hashed(self) -> tuple[bool, ...]:
        """(L,) whether the samples of a level share rows through the hash."""
        return tuple(math.prod(level) > 2**self.log2_size for level in self.resolutions)

    @cached_property
    def level_rows(self) -> tuple[int, ...]:
        """(L,) rows of each level."""
        return tuple(min(math.prod(level), 2**self.log2_size) for level in self.resolutions)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """(L + 1,) first row of each level, and the end of the last."""
        return tuple(accumulate(self.level_rows, initial=0))

    @property
    def rows(self) -> int:
        """Rows of the table."""
        return self.offsets[-1]

    @property
    def width(self) -> int:
        """Features of a point over all levels, L * F."""
        return self.levels * self.features


def _snap(value: float) -> float:
    """`value`, or the integer that it misses by rounding alone, so that 512 stays 512."""
    nearest = round(value)
    return float(nearest) if abs(value - nearest) < 1e-9 * value else value


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} must be an integer from {low} to {high}, got {value!r}")


def _per_axis(
    name: str, value: int | Sequence[int], dims: int, lowest: tuple[int, ...]
) -> tuple[int, ...]:
    values = (value,) * dims if isinstance(value, int) else tuple(value)
    if len(values) != dims:
        raise ValueError(f"{name} must be one number or {dims}, one per axis; got {value!r}")
    for axis, (number, low) in enumerate(zip(values, lowest, strict=True)):
        _check_range(f"{name}[{axis}]", number, low, FINEST)
    return values
