"""Differentiable rasterisation of 3D Gaussians (Kerbl et al., 2023), written anew.

`rasterize` draws batches of (camera, Gaussians) with any number of channels, alpha and depth, all
with gradients. `GaussianRasterizationSettings` and `GaussianRasterizer` are the published
interface. `diff_gaussian_rasterization.reference` is the same in plain PyTorch: the definition of
what is drawn, and the oracle of the tests.
"""

from __future__ import annotations

from diff_gaussian_rasterization.devices import DEVICES
from diff_gaussian_rasterization.interface import (
    GaussianRasterizationSettings,
    GaussianRasterizer,
)
from diff_gaussian_rasterization.operator import RasterOutput, mark_visible, rasterize

__all__ = [
    "DEVICES",
    "GaussianRasterizationSettings",
    "GaussianRasterizer",
    "RasterOutput",
    "mark_visible",
    "rasterize",
]
__version__ = "0.1.0"
