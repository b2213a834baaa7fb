"""Density control: where Gaussians are cloned, split and pruned (3DGS, Kerbl et al., 2023, 5.2).

All limits are configuration. Two deviations from the published code: the cap on the count is never
exceeded (the candidates with the largest gradients come first), and a Gaussian is judged by the
largest opacity it had at any time since the last pruning, since an expert may make it visible for a
moment only; where that was long ago, within the last iterations, since it may have faded for good.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from arguments_MoDE.config import OptimizationParams
from gaussian_renderer import RenderOutput
from scene.gaussian_model import GaussianModel
from training.schedules import Optimizer, interpolate
from utils.errors import UserError

Offspring = Callable[[Tensor], dict[str, Tensor]]  # of parents (M,): name -> (M, ...)

SPLIT_CHILDREN = 2
SPLIT_SHRINK = 1.6
RESET_OPACITY = 0.01
JUDGED = 500  # iterations before a pruning in which a Gaussian's opacity counts, at most


@dataclass(frozen=True)
class DensityChange:
    """How many Gaussians one round added and removed."""

    cloned: int = 0
    split: int = 0
    pruned: int = 0


class DensityControl:
    """Statistics of one stage, and the rounds that act on them."""

    def __init__(
        self, opt: OptimizationParams, extent: float, stage: str, stage_length: int
    ) -> None:
        """Starts with empty statistics.

        Args:
            extent: radius of the camera rig, world units.
            stage: ``coarse`` or ``fine``; they have thresholds of their own.
            stage_length: iterations of the stage.
        """
        self.opt, self.extent, self.stage = opt, extent, stage
        self.until = min(opt.densify_until_iter, stage_length)
        self.opacity_was_reset = False
        self.stats: dict[str, Tensor] = {}

    def observe(self, outputs: Sequence[RenderOutput], opacities: Sequence[Tensor]) -> None:
        """Adds one iteration: screen gradients summed over its views, radii, opacities (N, 1)."""
        count, device = len(opacities[0]), opacities[0].device
        if not self.stats or len(self.stats["gradient"]) != count:
            names = ("gradient", "seen", "radius", "opacity")
            self.stats = {name: torch.zeros(count, device=device) for name in names}
        radius = torch.stack([out.radii.amax(0) for out in outputs]).amax(0)
        gradient = sum(out.means2d.grad.sum(0) for out in outputs)[:, :2].norm(dim=-1)
        visible = radius > 0
        self.stats["gradient"] += torch.where(visible, gradient, 0)
        self.stats["seen"] += visible
        torch.maximum(self.stats["radius"], radius.float(), out=self.stats["radius"])
        for opacity in opacities:
            torch.maximum(self.stats["opacity"], opacity.detach()[:, 0], out=self.stats["opacity"])

    @property
    def active(self) -> bool:
        """Whether statistics have been gathered yet."""
        return bool(self.stats)

    def step(
        self,
        gaussians: GaussianModel,
        optimizer: Optimizer,
        iteration: int,
        offspring: Offspring | None = None,
    ) -> DensityChange:
        """Runs what is due at ``iteration`` of the stage.

        Then it waits for a GPU, several times: how many Gaussians there will be is read from it.

        Args:
            offspring: says in which parameters new Gaussians are no copies of their parents.
        """
        opt = self.opt
        if iteration > self.until or not self.active:
            return DensityChange()
        cloned = split = pruned = 0
        densify = self._densifies(iteration)
        if densify:
            cloned, split = self._densify(gaussians, optimizer, iteration, offspring)
            self._start_over("gradient", "seen")
        if self._prunes(iteration) and len(gaussians) > opt.prune_min_gaussians:
            pruned = self._prune(gaussians, optimizer, iteration)
            self._start_over("opacity")
        if densify:
            self._start_over("radius")
        if self._resets(iteration):
            self._reset_opacity(gaussians, optimizer)
        if opt.pruning_interval > JUDGED and (iteration + JUDGED) % opt.pruning_interval == 0:
            self._start_over("opacity")
        return DensityChange(cloned, split, pruned)

    def due(self, iteration: int) -> bool:
        """Whether `step` changes anything at ``iteration``."""
        kinds = (self._densifies, self._prunes, self._resets)
        return iteration <= self.until and any(kind(iteration) for kind in kinds)

    def _densifies(self, iteration: int) -> bool:
        opt = self.opt
        return iteration > opt.densify_from_iter and iteration % opt.densification_interval == 0

    def _prunes(self, iteration: int) -> bool:
        opt = self.opt
        return iteration > opt.pruning_from_iter and iteration % opt.pruning_interval == 0

    def _resets(self, iteration: int) -> bool:
        return iteration % self.opt.opacity_reset_interval == 0 and iteration < self.until

    def _threshold(self, kind: str, iteration: int) -> float:
        opt = self.opt
        if self.stage == "coarse":
            return getattr(
                opt,
                {"grad": "densify_grad_threshold_coarse", "opacity": "opacity_threshold_coarse"}[
                    kind
                ],
            )
        start, end = {
            "grad": (opt.densify_grad_threshold_fine_init, opt.densify_grad_threshold_after),
            "opacity": (opt.opacity_threshold_fine_init, opt.opacity_threshold_fine_after),
        }[kind]
        return interpolate(start, end, iteration / max(self.until, 1))

    def _densify(
        self,
        gaussians: GaussianModel,
        optimizer: Optimizer,
        iteration: int,
        offspring: Offspring | None,
    ) -> tuple[int, int]:
        count, room = len(gaussians), self.opt.max_gaussians - len(gaussians)
        if room <= 0:
            return 0, 0
        gradient = self.stats["gradient"] / self.stats["seen"].clamp_min(1)
        candidates = (gradient >= self._threshold("grad", iteration)).nonzero()[:, 0]
        if len(candidates) > room:  # each adds one
            candidates = candidates[gradient[candidates].topk(room).indices].sort().values
        if len(candidates) == 0:
            return 0, 0
        large = gaussians.log_scale.detach()[candidates].exp().amax(-1) > (
            self.opt.percent_dense * self.extent
        )
        clones, parents = candidates[~large], candidates[large]
        children = parents.repeat_interleave(SPLIT_CHILDREN)
        kept = torch.ones(count, dtype=torch.bool, device=gradient.device)
        kept[parents] = False
        survivors = kept.nonzero()[:, 0]
        source = torch.cat([survivors, clones, children])
        fresh = torch.arange(len(source), device=source.device) >= len(survivors)
        overrides = _children(gaussians, clones, children)
        if offspring is not None:
            overrides |= offspring(torch.cat([clones, children]))
        # Each new one behind its parent: so the order stays spatial. By where they are now it would
        # hang on rounding, and with it who gets which random numbers.
        order = source.argsort(stable=True)
        of_fresh = order[order >= len(survivors)] - len(survivors)
        overrides = {name: value[of_fresh] for name, value in overrides.items()}
        source, fresh = source[order], fresh[order]
        gaussians.reindex(source, fresh, overrides, optimizer.adam)
        self._follow(source, fresh)
        return len(clones), len(parents)

    def _follow(self, source: Tensor, fresh: Tensor) -> None:
        """Re-indexes the statistics with the Gaussians; new ones have not been seen anywhere."""
        for name, value in self.stats.items():
            moved = value[source]
            if name != "opacity":  # a child or clone is as opaque as its parent was
                moved[fresh] = 0
            self.stats[name] = moved

    def _start_over(self, *names: str) -> None:
        for name in names:
            self.stats[name].zero_()

    def _prune(self, gaussians: GaussianModel, optimizer: Optimizer, iteration: int) -> int:
        if not self.stats["opacity"].any():  # all steps since the last pruning were left out
            return 0
        faint = self.stats["opacity"] < self._threshold("opacity", iteration)
        useless = faint.clone()
        if self.opacity_was_reset:
            useless |= self.stats["radius"] > self.opt.max_screen_size
            size = gaussians.log_scale.detach().exp().amax(-1)
            useless |= size > self.opt.max_world_scale * self.extent
        source = (~useless).nonzero()[:, 0]
        if len(source) == 0:
            raise UserError(
                f"every Gaussian would be pruned at {self.stage} iteration {iteration}, "
                f"{int(faint.sum())} of {len(useless)} as too faint, the others as too large: "
                f"lower --opacity_threshold_{self.stage}* or the learning rates, or raise "
                f"--max_world_scale, --max_screen_size"
            )
        pruned = len(useless) - len(source)
        if pruned == 0:
            return 0
        fresh = torch.zeros(len(source), dtype=torch.bool, device=source.device)
        gaussians.reindex(source, fresh, {}, optimizer.adam)
        self._follow(source, fresh)
        return pruned

    @torch.no_grad()
    def _reset_opacity(self, gaussians: GaussianModel, optimizer: Optimizer) -> None:
        limit = torch.tensor(RESET_OPACITY).logit().item()
        gaussians.opacity.clamp_(max=limit)
        optimizer.reset_moments(gaussians.opacity)
        self._start_over("opacity")
        self.opacity_was_reset = True


def _children(gaussians: GaussianModel, clones: Tensor, children: Tensor) -> dict[str, Tensor]:
    """Positions and log-scales of the new rows: clones as they are, children drawn and shrunk."""
    xyz, log_scale = gaussians.xyz.detach(), gaussians.log_scale.detach()
    scale = log_scale[children].exp()
    offset = rotate(gaussians.rotation.detach()[children], scale * torch.randn_like(scale))
    shrink = torch.tensor(SPLIT_SHRINK).log().item()
    return {
        "xyz": torch.cat([xyz[clones], xyz[children] + offset]),
        "log_scale": torch.cat([log_scale[clones], log_scale[children] - shrink]),
    }


def rotate(quaternions: Tensor, vectors: Tensor) -> Tensor:
    """Rotates ``vectors`` (N, 3) by ``quaternions`` (N, 4) wxyz, which need not be normalised."""
    q = torch.nn.functional.normalize(quaternions, dim=-1)
    w, axis = q[:, :1], q[:, 1:]
    cross = 2 * torch.linalg.cross(axis, vectors)
    return vectors + w * cross + torch.linalg.cross(axis, cross)
