"""MoE-GS: several dynamic models that share nothing, blended per pixel by a router.

The experts are frozen; what they draw never changes while a router is trained. Each is a model of
its own, with its own Gaussians (`scene.mixture.MoDE` with one expert or several)::

    I_MoE(u) = sum_k gate_k(u) I_k(u)                          (MoE-GS, equation 8)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from gaussian_renderer import LayersOutput, render, render_layers
from scene.cameras import Camera
from scene.experts.polynomial import visibility_delta
from scene.mixture import MoDE, Splats
from scene.pixel_router import ROUTERS, PixelRouter, VolumeRouter, gates_of, rays_of


@dataclass(frozen=True)
class Blend:
    """B pictures of E experts, and how they are blended."""

    images: Tensor  # (B, 3, H, W), the blended pictures; not clamped
    experts: Tensor  # (B, E, 3, H, W), each expert's own
    gates: Tensor  # (B, E, H, W), sum to 1 over the experts
    logits: Tensor | None = None  # (B, E, H, W), before the softmax; None: there is none


class MoEGS(nn.Module):
    """Frozen experts and a router."""

    def __init__(
        self,
        experts: Mapping[str, MoDE],
        iterations: Mapping[str, int],
        router: str,
        *,
        initial_weight: float = 0.9,
        shared_transmittance: bool = False,
    ) -> None:
        """Freezes ``experts`` and builds a fresh router.

        Args:
            experts: by name, in the order of the gates.
            iterations: of the fine stage, at which each of them is drawn.
            router: name of a router in `scene.pixel_router.ROUTERS`.
            initial_weight: see `PixelRouter`.
            shared_transmittance: all experts' Gaussians hide each other in one pass over them (the
                paper's equation 9 as it is written), rather than each expert's its own.
        """
        super().__init__()
        self.experts: Mapping[str, MoDE] = nn.ModuleDict(experts)
        self.iterations = dict(iterations)
        for expert in self.experts.values():
            expert.eval().requires_grad_(False)
        counts = {name: len(expert.gaussians) for name, expert in self.experts.items()}
        self.router: PixelRouter = ROUTERS[router](counts, initial_weight)
        self.shared_transmittance = shared_transmittance
        facts = next(iter(self.experts.values())).facts
        self.centre, self.extent = facts.bbox.mean(0), facts.extent

    def forward(
        self,
        cameras: Sequence[Camera],
        time: float,
        background: Tensor,
        temperature: float,
        chosen: Sequence[str] | None = None,
    ) -> Blend:
        """The pictures of B cameras of one size at ``time`` in [0, 1].

        Args:
            background: (3,) in [0, 1].
            temperature: of the softmax.
            chosen: names of the experts that take part; None: all of them.
        """
        names = [name for name in self.experts if chosen is None or name in chosen]
        with torch.no_grad():
            splats = [self.splats(name, time) for name in names]
        if isinstance(self.router, VolumeRouter):
            return self._union(cameras, names, splats, time, background)
        features = [self.router.features(name, time) for name in names]
        return self.blend(
            cameras,
            names,
            splats,
            features if self.router.splats else None,
            time,
            background,
            temperature,
        )

    def blend(
        self,
        cameras: Sequence[Camera],
        names: Sequence[str],
        splats: Sequence[Splats],
        features: Sequence[Tensor] | None,
        time: float,
        background: Tensor,
        temperature: float,
    ) -> Blend:
        """What `forward` returns, from the Gaussians and router features of the experts ``names``.

        Args:
            splats: one for each of ``names``.
            features: (N_k, 3) each, as `PixelRouter.features`; None where the router has none.
        """
        layers = self.layers(cameras, splats, features, background)
        rays = rays_of(cameras, self.centre, self.extent, background.device)
        logits = self.router.logits(layers.features, rays, time)
        if logits.shape[1] != len(names):  # of a router whose network knows all experts
            logits = logits[:, [list(self.experts).index(name) for name in names]]
        gates = gates_of(logits, temperature)
        images = (gates[:, :, None] * layers.images).sum(1)
        return Blend(images, layers.images, gates, logits)

    def layers(
        self,
        cameras: Sequence[Camera],
        splats: Sequence[Splats],
        features: Sequence[Tensor] | None,
        background: Tensor,
    ) -> LayersOutput:
        """The experts' pictures before they are blended, and the splatted ``features``."""
        return render_layers(
            cameras,
            splats,
            features,
            background,
            self._sh_degree(),
            shared_transmittance=self.shared_transmittance,
        )

    def splats(self, name: str, time: float) -> Splats:
        """The Gaussians of an expert at ``time``, as of a camera never seen."""
        expert = self.experts[name]
        splats = expert.deform(time, iteration=self.iterations[name])
        active = (expert.gaussians.active_sh_degree + 1) ** 2
        if splats.sh.shape[1] > active and expert.gaussians.active_sh_degree < self._sh_degree():
            sh = splats.sh.clone()  # drawn with other experts' degree: higher bands say nothing
            sh[:, active:] = 0
            splats = replace(splats, sh=sh)
        return splats

    def _sh_degree(self) -> int:
        return max(expert.gaussians.active_sh_degree for expert in self.experts.values())

    def _union(
        self,
        cameras: Sequence[Camera],
        names: Sequence[str],
        splats: Sequence[Splats],
        time: float,
        background: Tensor,
    ) -> Blend:
        """All experts' Gaussians drawn as one set, their opacities scaled by the router."""
        scaled = [self._scaled(name, part, time) for name, part in zip(names, splats, strict=True)]
        degree = self._sh_degree()
        whole = Splats(
            *(torch.cat([getattr(part, f.name) for part in scaled]) for f in fields(Splats))
        )
        images = render(cameras, whole, background, degree).images
        layers = render_layers(cameras, scaled, None, background, degree, shared_transmittance=True)
        shares = layers.alpha[:, :, 0].detach() + 1e-6  # where there is nothing: the same for all
        gates = shares / shares.sum(1, keepdim=True)
        return Blend(images, layers.images.detach(), gates)

    def _scaled(self, name: str, splats: Splats, time: float) -> Splats:
        share = self.router.log_share(name, time)
        delta = visibility_delta(splats.opacity_logits, -share)
        return replace(splats, opacity_logits=splats.opacity_logits + delta)
