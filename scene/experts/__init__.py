"""The experts, by name. A new one is a file here and a line in `REGISTRY`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from arguments_MoDE.config import Config
from scene.experts.base import Deformation, Expert, Moment, SceneFacts

Builder = Callable[[Config, SceneFacts], Expert]


def _in(module: str, name: str) -> Builder:
    """Builds the class ``name`` of a module here, imported only where that expert is used."""

    def build(config: Config, facts: SceneFacts) -> Expert:
        return getattr(import_module(f"scene.experts.{module}"), name).build(config, facts)

    return build


REGISTRY: dict[str, Builder] = {
    "hexplane": _in("hexplane", "HexPlaneExpert"),
    "embedding": _in("embedding", "EmbeddingExpert"),
    "hash": _in("hash_grid", "HashGridExpert"),
    "polynomial": _in("polynomial", "PolynomialExpert"),
    "keyframe": _in("keyframe", "KeyframeExpert"),
    "zero": _in("zero", "ZeroExpert"),
}

__all__ = ["REGISTRY", "Deformation", "Expert", "Moment", "SceneFacts"]
