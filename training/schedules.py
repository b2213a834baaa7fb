"""Learning-rate schedules and the optimiser over all parameters of a run."""

from __future__ import annotations

import math

import torch

from arguments_MoDE.config import Config
from scene.experts.base import LearningRate, ParameterGroup
from scene.mixture import MoDE
from scene.router import Router

ADAM_EPS = 1e-15  # as all published 3DGS code: gradients of means are of the order 1e-6


def rate_at(rate: LearningRate, step: int, stage_length: int) -> float:
    """Log-linear interpolation from ``initial`` to ``final``; constant without a final value."""
    if rate.final is None or rate.initial <= 0:
        return rate.initial
    steps = rate.steps or stage_length
    share = min(max(step / max(steps, 1), 0.0), 1.0)
    final = max(rate.final, 1e-30)  # 0 would have no logarithm
    return math.exp((1 - share) * math.log(rate.initial) + share * math.log(final))


def interpolate(start: float, end: float, share: float) -> float:
    """Linear from ``start`` to ``end``, ``share`` clipped to [0, 1]."""
    return start + (end - start) * min(max(share, 0.0), 1.0)


def parameter_groups(model: MoDE, config: Config, extent: float) -> list[ParameterGroup]:
    """Every trained parameter of ``model`` in exactly one group.

    In a static or coarse stage the experts' groups are there as well; without a gradient they are
    left alone.
    """
    groups = _gaussian_groups(model, config, extent)
    for name, expert in model.experts.items():
        groups += [
            ParameterGroup(f"{name}.{g.name}", g.parameters, g.rate)
            for g in expert.parameter_groups(config, extent)
        ]
    return groups


def _gaussian_groups(model: MoDE, config: Config, extent: float) -> list[ParameterGroup]:
    opt = config.opt
    gate = LearningRate(opt.weight_movelr, opt.weight_movelr_final, opt.weight_lr_max_steps)
    rates = {
        "xyz": LearningRate(
            opt.position_lr_init * extent, opt.position_lr_final * extent, opt.position_lr_max_steps
        ),
        "f_dc": LearningRate(opt.feature_lr),
        "f_rest": LearningRate(opt.feature_lr / 20),
        "opacity": LearningRate(opt.opacity_lr),
        "log_scale": LearningRate(opt.scaling_lr),
        "rotation": LearningRate(opt.rotation_lr),
    }
    rates |= {Router.parameter_name(a): gate for a in model.router.learned}
    for expert in model.experts.values():
        rates |= expert.per_gaussian_rates(config)
    return [
        ParameterGroup(f"gaussians.{n}", [model.gaussians[n]], rates[n])
        for n in model.gaussians.names
        if n in rates
    ]


class Optimizer:
    """Adam over named groups, each with its own schedule."""

    def __init__(self, groups: list[ParameterGroup], stage_length: int) -> None:
        """Fresh moments; ``stage_length`` in iterations stands in for schedules of 0 steps.

        Fused: torch has it for the CPU and for CUDA, where it is a few launches for all parameters,
        keeps the step counts on the device and can be told there to do nothing.
        """
        self.stage_length = stage_length
        self.rates = {g.name: g.rate for g in groups}
        self.adam = torch.optim.Adam(
            [{"params": g.parameters, "name": g.name, "lr": 0.0} for g in groups if g.parameters],
            eps=ADAM_EPS,
            fused=True,
        )

    def set_rates(self, iteration: int) -> None:
        """Sets every group's learning rate for ``iteration`` of the stage."""
        for group in self.adam.param_groups:
            group["lr"] = rate_at(self.rates[group["name"]], iteration, self.stage_length)

    def step(self, failed: torch.Tensor | None = None) -> None:
        """One Adam step on the parameters that have a gradient, which is then dropped.

        Args:
            failed: a scalar on the parameters' device; where it is 1 the step changes nothing, not
                the moments nor the step counts either. Nobody waits for it.
        """
        self.adam.found_inf = failed  # as torch.amp.GradScaler tells fused optimisers
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)

    def first_bad_gradient(self) -> str | None:
        """Name of the first group with a gradient that is not finite."""
        names, gradients = self._gradients()
        if not names:
            return None
        finite = torch.isfinite(torch.stack([gradient.sum() for gradient in gradients]))
        return None if bool(finite.all()) else names[int((~finite).nonzero()[0])]

    def gradient_sizes(self) -> tuple[list[str], torch.Tensor]:
        """Every gradient's sum of magnitudes, not finite where it is not, and its group's name."""
        names, gradients = self._gradients()
        sizes = torch._foreach_norm(gradients, 1) if names else []  # one launch for many
        return names, torch.stack(list(sizes)) if names else torch.zeros(0)

    def _gradients(self) -> tuple[list[str], list[torch.Tensor]]:
        pairs = [
            (group["name"], parameter.grad)
            for group in self.adam.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        return [name for name, _ in pairs], [gradient for _, gradient in pairs]

    def reset_moments(self, parameter: torch.Tensor) -> None:
        """Zeroes the moments of ``parameter``."""
        for value in self.adam.state.get(parameter, {}).values():
            if value.shape == parameter.shape:
                value.zero_()

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """Moments and step counts as a flat dict: ``<group>/<index>/<key>`` -> tensor."""
        flat = {}
        for group in self.adam.param_groups:
            for i, parameter in enumerate(group["params"]):
                for key, value in self.adam.state.get(parameter, {}).items():
                    flat[f"{group['name']}/{i}/{key}"] = value
        return flat

    def load_state_tensors(self, flat: dict[str, torch.Tensor]) -> None:
        """Puts back what `state_tensors` gave."""
        for group in self.adam.param_groups:
            for i, parameter in enumerate(group["params"]):
                prefix = f"{group['name']}/{i}/"
                state = {k[len(prefix) :]: v for k, v in flat.items() if k.startswith(prefix)}
                if state:
                    self.adam.state[parameter] = state
