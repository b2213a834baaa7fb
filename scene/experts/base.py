"""What a deformation expert is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scene.experts.heads import Layer, decode
from scene.gaussian_model import Canonical, GaussianModel

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

    def scattered(self, rows: Tensor, count: int) -> Deformation:
        """These deltas of the Gaussians ``rows`` as those of all ``count``; zero elsewhere."""
        deltas = {name: value for name, value in vars(self).items() if value is not None}
        return Deformation(
            **{
                name: value.new_zeros(count, *value.shape[1:]).index_copy_(0, rows, value)
                for name, value in deltas.items()
            }
        )


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

    A subclass implements `forward`, and as far as it has them, its settings (`build`), per-Gaussian
    parameters, optimiser groups and regularisers; then it is added to the registry in
    ``scene/experts/__init__.py``.
    """

    name: ClassVar[str]
    attributes: frozenset[str]  # what this instance deforms, a subset of router.ATTRIBUTES

    @classmethod
    def build(cls, config: Config, facts: SceneFacts) -> Expert:
        """This expert as ``config`` describes it; without settings of its own there is one only."""
        return cls()

    def forward(self, canonical: Canonical, moment: Moment, wanted: frozenset[str]) -> Deformation:
        """Deltas for those of ``wanted`` that this expert deforms; nothing else is computed."""
        raise TypeError(f"{type(self).__name__} does not say how it deforms")

    def per_gaussian(self, count: int) -> dict[str, Tensor]:
        """Initial values of this expert's per-Gaussian parameters: name -> (N, ...)."""
        return {}

    def offspring(self, gaussians: GaussianModel, parents: Tensor) -> dict[str, Tensor]:
        """Parameters in which clones and children are not copies: name -> (M, ...).

        Args:
            parents: (M,) int64, the Gaussian that each new one comes from.
        """
        return {}

    def evolve(self, gaussians: GaussianModel, iteration: int) -> None:
        """What changes outside of gradients, after each ``iteration`` of the fine stage."""

    def carried(self) -> dict[str, Tensor]:
        """What a resumed training needs besides parameters, and rendering does not, by name."""
        return {}

    def carry_on(self, canonical: Canonical, tensors: Mapping[str, Tensor]) -> None:
        """Takes what `carried` gave; nothing, from a checkpoint that has nothing of this expert."""

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


def trunk(width: int, depth: int) -> nn.Sequential:
    """The layers after the first Linear: (depth - 1) x [ReLU, Linear]."""
    layers: list[nn.Module] = []
    for _ in range(depth - 1):
        layers += [nn.ReLU(), nn.Linear(width, width)]
    return nn.Sequential(*layers)


def through(layers: nn.Sequential, inputs: Tensor, before: Layer) -> tuple[Tensor, Layer]:
    """All but the last Linear of a first layer and a `trunk`: its input, and the last one itself.

    `Heads` compute it together with their own layers.

    Args:
        layers: of `trunk`.
        inputs: (N, F), of the first layer.
        before: weight and bias of the first layer.
    """
    for layer in layers:
        if isinstance(layer, nn.Linear):
            inputs = F.linear(inputs, *before).relu()
            before = (layer.weight, layer.bias)
    return inputs, before


class Heads(nn.Module):
    """One decoder head per attribute on a shared hidden vector: ReLU, Linear, ReLU, Linear.

    The first layers of all heads are one matrix, since one large product is faster than several
    small ones; only the rows of the wanted heads take part.
    """

    def __init__(self, width: int, attributes: frozenset[str]) -> None:
        """Heads for ``attributes``, PyTorch's default initialisation."""
        super().__init__()
        self.width = width
        self.names = [name for name in HEAD_SIZES if name in attributes]
        self.first = nn.Linear(width, width * len(self.names))
        self.last = nn.ModuleDict({n: nn.Linear(width, HEAD_SIZES[n]) for n in self.names})

    def forward(self, inputs: Tensor, before: Layer, wanted: frozenset[str]) -> Deformation:
        """Deltas of the ``wanted`` attributes.

        Args:
            inputs: (N, F).
            before: weight (W, F) and bias (W,) of the Linear that makes the hidden vector of them.
            wanted: names; others are not computed.
        """
        chosen = [name for name in self.names if name in wanted]
        if not chosen:
            return Deformation()
        weight, bias = self.first.weight, self.first.bias
        if len(chosen) < len(self.names):
            weight, bias = self._rows(weight, chosen), self._rows(bias, chosen)
        last = [(self.last[name].weight, self.last[name].bias) for name in chosen]
        values = decode(inputs, before, (weight, bias), last)
        outputs = dict(zip(chosen, values, strict=True))
        if "sh" in outputs:
            outputs["sh"] = outputs["sh"].unflatten(-1, (16, 3))
        return Deformation(**outputs)

    def _rows(self, stacked: Tensor, chosen: list[str]) -> Tensor:
        blocks = stacked.split(self.width)
        return torch.cat([blocks[self.names.index(name)] for name in chosen])

    def xavier_(self) -> None:
        """Xavier-uniform weights for every layer of every head, as if each stood alone."""
        for block in self.first.weight.data.split(self.width):
            nn.init.xavier_uniform_(block)
        for layer in self.last.values():
            nn.init.xavier_uniform_(layer.weight)

    def zero_last_(self) -> None:
        """Makes every output zero, so that training starts without deformation."""
        for layer in self.last.values():
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
