"""The experts, by name. A new one is a file here and a line in `REGISTRY`."""

from __future__ import annotations

from collections.abc import Callable

from arguments_MoDE.config import Config
from scene.experts.base import Deformation, Expert, Moment, SceneFacts
from scene.experts.embedding import EmbeddingExpert
from scene.experts.hexplane import HexPlaneExpert

REGISTRY: dict[str, Callable[[Config, SceneFacts], Expert]] = {
    "hexplane": lambda c, facts: HexPlaneExpert(c.hidden, facts),
    "embedding": lambda c, facts: EmbeddingExpert(c.emb, facts, c.hidden.zero_init_heads),
}

__all__ = ["REGISTRY", "Deformation", "Expert", "Moment", "SceneFacts"]
