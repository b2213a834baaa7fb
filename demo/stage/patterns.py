"""Procedural colour: soft-edged, band-limited patterns that a small picture still resolves.

Every function takes flat coordinate arrays and returns weights (V,) in [0, 1] or colours (V, 3).
"""

from __future__ import annotations

import numpy as np


def rgb(code: str) -> np.ndarray:
    """'#rrggbb' -> (3,) in [0, 1]."""
    return np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)]) / 255.0


def step(x: np.ndarray, width: float) -> np.ndarray:
    """A smooth step from 0 (x << 0) to 1 (x >> 0) over about ``width``."""
    return 0.5 + 0.5 * np.tanh(2.0 * x / width)


def mix(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Colours: ``a`` where the weight is 0, ``b`` where it is 1."""
    weight = np.asarray(weight)[:, None]
    return a * (1 - weight) + b * weight


def band(x: np.ndarray, low: float, high: float, width: float) -> np.ndarray:
    """1 between ``low`` and ``high``, with soft edges."""
    return step(x - low, width) * step(high - x, width)


def stripes(x: np.ndarray, period: float, width: float) -> np.ndarray:
    """Alternating bands of equal breadth; ``width`` is the softness of an edge, as x measured."""
    sawtooth = np.abs((x / period) % 1.0 - 0.5) - 0.25  # crosses 0 at every edge
    return step(sawtooth * period, width)


def dots(a: np.ndarray, b: np.ndarray, period: float, radius: float, width: float) -> np.ndarray:
    """Round dots on a square lattice."""
    da, db = ((x / period) % 1.0 - 0.5 for x in (a, b))
    return step(radius - period * np.hypot(da, db), width)


def clouds(
    a: np.ndarray, b: np.ndarray, wavelength: tuple[float, float], rng: np.random.Generator
) -> np.ndarray:
    """Band-limited noise (V,) of about unit variance: 24 plane waves of random direction, phase."""
    total = np.zeros(np.shape(a))
    for _ in range(24):
        length = np.exp(rng.uniform(np.log(wavelength[0]), np.log(wavelength[1])))
        angle, phase = rng.uniform(0, 2 * np.pi, 2)
        total += np.cos(2 * np.pi / length * (a * np.cos(angle) + b * np.sin(angle)) + phase)
    return total / np.sqrt(12.0)


def star(a: np.ndarray, b: np.ndarray, radius: float) -> np.ndarray:
    """A field like a signed distance, positive inside a rounded five-pointed star at the origin."""
    angle = np.arctan2(a, -b)
    return radius * (1 + 0.28 * np.cos(5 * angle)) - np.hypot(a, b)
