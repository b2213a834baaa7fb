"""Pictures of a MoE for evaluation and rendering."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from arguments_MoDE.moe import RouterParams
from scene import Scene, View
from training.moe.files import rendering_temperature
from training.moe.model import Blend, MoEGS


class MoEViewRenderer:
    """Renders views with a MoE, on its device; a `training.evaluation.Render`."""

    def __init__(
        self,
        model: MoEGS,
        scene: Scene,
        params: RouterParams,
        chosen: Sequence[str] | None = None,
    ) -> None:
        """With the experts ``chosen``; None: all."""
        self.model, self.chosen = model, chosen
        self.temperature = rendering_temperature(params)
        device = next(iter(model.experts.values())).gaussians.xyz.device
        self.background = torch.tensor(scene.background, device=device)

    def __call__(self, view: View) -> Tensor:
        """(3, H, W), not clamped."""
        return self.together([view])[0]

    def together(self, views: Sequence[View]) -> Tensor:
        """(B, 3, H, W) of views of one time and one size."""
        return self.blend(views).images

    @torch.no_grad()
    def blend(self, views: Sequence[View]) -> Blend:
        """The same with each expert's picture and the gates."""
        cameras = [view.camera for view in views]
        return self.model(cameras, views[0].time, self.background, self.temperature, self.chosen)
