"""What a deformation expert is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from scene.gaussian_model import Canonical

if TYPE_CHECKING:
    from arguments_MoDE.config import Config


@dataclass(frozen=True)
class Moment:
    """When, and for whom, a deformation is asked."""

    time: float  # in [0, 1] over the clip
    iteration: int  # of the fine stage; schedules inside experts follow it
    camera_index: int | None = None  # row of a training camera; None: a camera never seen


@dataclass
class Deformation:
    """Raw deltas on the canonical attributes; None is not this expert's business."""

    xyz: Tensor | None = None  # (N, 3)
    rotation: Tensor | None = None  # (N, 4)
    log_scale: Tensor | None = None  # (N, 3)
    opacity: Tensor | None = None  # (N, 1) logits
    sh: Tensor | None = None  # (N, 16, 3)


@dataclass(frozen=True)
class LearningRate:
    """Log-linear decay from ``initial`` to ``final`` over ``steps``; 0 steps: the whole stage."""

    initial: float
    final: float | None = None  # None: constant
    steps: int = 0


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are optimised alike."""

    name: str
    parameters: list[nn.Parameter]
    rate: LearningRate


@dataclass(frozen=True)
class SceneFacts:
    """What an expert may know about the scene when it is built."""

    bbox: Tensor  # (2, 3) lowest and highest corner of the point cloud, world units
    extent: float  # radius of the camera rig, world units
    cameras: int  # number of cameras, for per-camera tables
    frames: int  # frames of the clip


class Expert(nn.Module):
    """One way of moving the canonical Gaussians in time.

    A subclass implements `forward`, and as far as it has them, its per-Gaussian parameters, its
    optimiser groups and its regularisers; then it is added to the registry in
    ``scene/experts/__init__.py``.
    """

    name: ClassVar[str]
    attributes: frozenset[str]  # what this instance deforms, a subset of router.ATTRIBUTES

    def forward(self, canonical: Canonical, moment: Moment, wanted: frozenset[str]) -> Deformation:
        """Deltas for those of ``wanted`` that this expert deforms; nothing else is computed."""
        raise TypeError(f"{type(self).__name__} does not say how it deforms")

    def per_gaussian(self, count: int) -> dict[str, Tensor]:
        """Initial values of this expert's per-Gaussian parameters: name -> (N, ...)."""
        return {}

    def per_gaussian_rates(self, config: Config) -> dict[str, LearningRate]:
        """Learning rates of the parameters named by `per_gaussian`."""
        return {}

    def parameter_groups(self, config: Config, extent: float) -> list[ParameterGroup]:
        """Optimiser groups that together cover all of this module's parameters."""
        return []

    def regularizers(self, canonical: Canonical, config: Config) -> dict[str, Tensor]:
        """Weighted scalar terms of the loss, by name; only those with a non-zero weight."""
        return {}


HEAD_SIZES = {"xyz": 3, "log_scale": 3, "rotation": 4, "opacity": 1, "sh": 48}


def head(width: int, outputs: int) -> nn.Sequential:
    """ReLU, Linear, ReLU, Linear: the decoder head of HexPlane and of the embedding expert."""
    return nn.Sequential(nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs))


def trunk(width: int, depth: int) -> nn.Sequential:
    """The layers after the first Linear: (depth - 1) x [ReLU, Linear]."""
    layers: list[nn.Module] = []
    for _ in range(depth - 1):
        layers += [nn.ReLU(), nn.Linear(width, width)]
    return nn.Sequential(*layers)


def zero_last_layers(heads: nn.ModuleDict) -> None:
    """Makes every head output zero, so that training starts without deformation."""
    for module in heads.values():
        torch.nn.init.zeros_(module[-1].weight)
        torch.nn.init.zeros_(module[-1].bias)


def decode(heads: nn.ModuleDict, hidden: Tensor, wanted: frozenset[str]) -> Deformation:
    """Runs those heads that are wanted."""
    outputs = {name: heads[name](hidden) for name in heads if name in wanted}
    if "sh" in outputs:
        outputs["sh"] = outputs["sh"].unflatten(-1, (16, 3))
    return Deformation(**outputs)
