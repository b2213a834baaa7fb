"""The pixel routers of MoE-GS: how much each expert's picture counts at each pixel.

Every Gaussian i of every expert k holds three numbers, [w, w_dir, t w_time]. Splatted with the
expert's own deformed Gaussians they give three maps; a small network of 1x1 convolutions, the same
for all experts, turns two of them and the pixel's ray into a correction of the first (MoE-GS, Jin
et al., ICLR 2026, section 3.2)::

    logit_k(u) = w_k(u) + Phi(w_dir,k(u), w_time,k(u), ray(u)),    gate = softmax_k(logit / tau)

Two ablations: ``pixel`` knows only the ray and the time, with a network of its own for every
expert; ``volume`` has no network and no softmax: a weight in (0, 1) scales each Gaussian's opacity,
and all experts' Gaussians are drawn as one set.

Deviations: nothing leaks into the maps where there is no Gaussian (published: a constant 1 behind
them); ray origins are measured from the scene's centre in units of its extent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scene.cameras import Camera

WIDTHS = (6, 3, 1)  # of the network's layers, as published
RAY_CHANNELS = 6  # origin and direction
TIME, WEIGHT = "time", "weight"  # the per-Gaussian parameters


class Perceptron(nn.Module):
    """1x1 convolutions with ReLU between them and without biases, as matrix products."""

    def __init__(self, inputs: int, experts: int = 1) -> None:
        """One network, or one of its own for each of ``experts``; PyTorch's initialisation."""
        super().__init__()
        sizes = (inputs, *WIDTHS)
        self.layers = nn.ParameterList()
        for size, width in zip(sizes, WIDTHS, strict=False):
            matrices = torch.empty(experts, width, size)
            for matrix in matrices:
                nn.init.kaiming_uniform_(matrix, a=5**0.5)
            self.layers.append(nn.Parameter(matrices))

    def forward(self, *inputs: Tensor) -> Tensor:
        """(B, E, C, P) of P pixels to (B, E, P); E may be 1 where experts differ by networks.

        Channels may come in several parts, in order: what all experts see is then multiplied once.
        """
        first, *rest = self.layers
        columns = first.split([part.shape[2] for part in inputs], dim=2)
        hidden = reduce(torch.add, map(torch.matmul, columns, inputs))
        for matrix in rest:
            hidden = matrix @ F.relu(hidden)
        return hidden[:, :, 0]


class PixelRouter(nn.Module):
    """What a router is; subclasses say what it knows."""

    name: ClassVar[str]
    splats: ClassVar[bool]  # whether maps of `features` are needed

    def __init__(self, counts: Mapping[str, int], initial_weight: float) -> None:
        """For experts of ``counts`` Gaussians, in order.

        Args:
            initial_weight: of w and w_dir; w_time starts at 0.
        """
        super().__init__()
        self.names = list(counts)
        self.gaussians = nn.ModuleDict(
            {name: nn.ParameterDict(self._initial(n, initial_weight)) for name, n in counts.items()}
        )

    def _initial(self, count: int, weight: float) -> dict[str, nn.Parameter]:
        return {}

    def features(self, name: str, time: float) -> Tensor | None:
        """(N, 3) that are splatted with the Gaussians of expert ``name``; None: nothing is."""
        return None

    def logits(self, maps: Tensor | None, rays: Tensor, time: float) -> Tensor:
        """(B, E, H, W) before the softmax.

        Args:
            maps: (B, E, 3, H, W), the splatted features; None where there are none.
            rays: (B, 6, H, W).
        """
        raise TypeError(f"{type(self).__name__} does not route pixels")


class VolumeAwarePixelRouter(PixelRouter):
    """The proposed one: splatted weights, corrected by a network that sees the ray."""

    name, splats = "volume_aware", True

    def __init__(self, counts: Mapping[str, int], initial_weight: float) -> None:
        """See `PixelRouter`."""
        super().__init__(counts, initial_weight)
        self.network = Perceptron(2 + RAY_CHANNELS)

    def _initial(self, count: int, weight: float) -> dict[str, nn.Parameter]:
        return {
            WEIGHT: nn.Parameter(torch.full((count, 2), weight)),
            TIME: nn.Parameter(torch.zeros(count, 1)),
        }

    def features(self, name: str, time: float) -> Tensor:
        """See `PixelRouter.features`: w, w_dir and t w_time."""
        own = self.gaussians[name]
        return torch.cat([own[WEIGHT], time * own[TIME]], dim=1)

    def logits(self, maps: Tensor | None, rays: Tensor, time: float) -> Tensor:
        """See `PixelRouter.logits`."""
        seen = rays[:, None].flatten(3)  # (B, 1, 6, P)
        return maps[:, :, 0] + self.network(maps[:, :, 1:].flatten(3), seen).view_as(maps[:, :, 0])


class RayRouter(PixelRouter):
    """The ablation that knows where the camera looks and when, and nothing of the volume."""

    name, splats = "pixel", False

    def __init__(self, counts: Mapping[str, int], initial_weight: float) -> None:
        """See `PixelRouter`; there is nothing per Gaussian."""
        super().__init__(counts, initial_weight)
        self.network = Perceptron(RAY_CHANNELS + 1, len(counts))

    def logits(self, maps: Tensor | None, rays: Tensor, time: float) -> Tensor:
        """See `PixelRouter.logits`."""
        moment = torch.full_like(rays[:, :1], time)
        inputs = torch.cat([rays, moment], dim=1)[:, None].flatten(3)  # (B, 1, 7, P)
        return self.network(inputs).unflatten(2, rays.shape[2:])


class VolumeRouter(PixelRouter):
    """The ablation without pixels: each Gaussian's opacity is scaled, and all are drawn as one."""

    name, splats = "volume", False

    def _initial(self, count: int, weight: float) -> dict[str, nn.Parameter]:
        weight = min(max(weight, 1e-3), 1 - 1e-3)  # a share: its logit is what is learned
        return {
            WEIGHT: nn.Parameter(torch.full((count, 1), weight).logit()),
            TIME: nn.Parameter(torch.zeros(count, 1)),
        }

    def log_share(self, name: str, time: float) -> Tensor:
        """(N, 1): the logarithm of the share of its opacity that a Gaussian keeps at ``time``."""
        own = self.gaussians[name]
        return F.logsigmoid(own[WEIGHT] + time * own[TIME])


ROUTERS = {router.name: router for router in (VolumeAwarePixelRouter, RayRouter, VolumeRouter)}


def gates_of(logits: Tensor, temperature: float) -> Tensor:
    """Softmax over the experts: (B, E, H, W) logits to weights that sum to 1 per pixel."""
    return torch.softmax(logits / temperature, dim=1)


def rays_of(
    cameras: Sequence[Camera], centre: Tensor, extent: float, device: torch.device | str = "cpu"
) -> Tensor:
    """(B, 6, H, W): origin and unit direction of the ray through each pixel's centre, float32.

    Args:
        centre: (3,), the point from which origins are measured, world units.
        extent: the length that counts as 1 for them, world units.
    """
    return torch.stack([_rays(camera, centre, extent, device) for camera in cameras])


def _rays(camera: Camera, centre: Tensor, extent: float, device: torch.device | str) -> Tensor:
    pose, *_ = camera.on(device, torch.float32)  # transposed
    x = (torch.arange(camera.width, device=device) + 0.5 - camera.cx) / camera.fx
    y = (torch.arange(camera.height, device=device) + 0.5 - camera.cy) / camera.fy
    local = torch.ones(3, camera.height, camera.width, device=device)  # camera axes
    local[0], local[1] = x, y[:, None]
    turned = (pose[:3, :3] @ local.flatten(1)).view_as(local)
    directions = turned / turned.square().sum(0).sqrt()  # along z at least 1: never 0
    origin = (camera.camera_center.to(device) - centre.to(device)) / extent
    return torch.cat([origin[:, None, None].expand_as(local), directions])
