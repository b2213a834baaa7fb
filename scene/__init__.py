"""What is in the world: cameras, frames, points, Gaussians and how they move."""

from __future__ import annotations

from scene.datasets import load_scene
from scene.views import Scene, View

__all__ = ["Scene", "View", "load_scene"]
