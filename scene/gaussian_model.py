"""The canonical Gaussians and everything else that is stored per Gaussian.

One mechanism serves all per-Gaussian parameters, our own six and whatever a module registers
(embeddings, router knots): they are saved, loaded, optimised and re-indexed alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from scene.spatial_order import spatial_order
from simple_knn._C import distCUDA2

SH_C0 = 0.28209479177387814
MAX_SH_DEGREE = 3
INITIAL_OPACITY = 0.1
CANONICAL = ("xyz", "f_dc", "f_rest", "log_scale", "rotation", "opacity")


class _Picked(Mapping):
    """Rows of the tensors of a mapping, picked one tensor at a time when it is read."""

    def __init__(self, values: Mapping[str, Tensor], rows: Tensor) -> None:
        self._values, self._rows = values, rows

    def __getitem__(self, name: str) -> Tensor:
        return self._values[name][self._rows]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


@dataclass(frozen=True)
class Canonical:
    """The raw canonical attributes that experts read; ``extra`` are registered parameters."""

    xyz: Tensor  # (N, 3)
    log_scale: Tensor  # (N, 3)
    rotation: Tensor  # (N, 4) wxyz, not normalised
    opacity: Tensor  # (N, 1) logits
    f_dc: Tensor  # (N, 1, 3)
    f_rest: Tensor  # (N, 15, 3)
    extra: Mapping[str, Tensor]
    whole: Canonical | None = None  # of what this is a subset, and which of its rows
    rows: Tensor | None = None

    def subset(self, rows: Tensor) -> Canonical:
        """The Gaussians ``rows`` (M,) only; ``extra`` is picked when it is read."""
        return Canonical(
            self.xyz[rows],
            self.log_scale[rows],
            self.rotation[rows],
            self.opacity[rows],
            self.f_dc[rows],
            self.f_rest[rows],
            _Picked(self.extra, rows),
            self,
            rows,
        )

    def detach(self) -> Canonical:
        """The same without gradient to the canonical attributes; ``extra`` keeps its gradient."""
        return Canonical(
            self.xyz.detach(),
            self.log_scale.detach(),
            self.rotation.detach(),
            self.opacity.detach(),
            self.f_dc.detach(),
            self.f_rest.detach(),
            self.extra,
        )


class GaussianModel(nn.Module):
    """N canonical Gaussians as raw float32 parameters, indexed by name.

    ====================  ===========  =====================
    name                  shape        activation
    ====================  ===========  =====================
    ``xyz``               (N, 3)       identity (world units)
    ``f_dc``              (N, 1, 3)    none (SH degree 0)
    ``f_rest``            (N, 15, 3)   none (SH degrees 1-3)
    ``log_scale``         (N, 3)       exp
    ``rotation``          (N, 4)       L2-normalise, wxyz
    ``opacity``           (N, 1)       sigmoid
    ====================  ===========  =====================
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        missing = [name for name in CANONICAL if name not in values]
        if missing:
            raise ValueError(f"canonical parameters missing: {', '.join(missing)}")
        self.values = nn.ParameterDict()
        self.active_sh_degree = 0
        for name, value in values.items():
            self.register(name, value)

    @classmethod
    def from_points(cls, xyz: np.ndarray, rgb: np.ndarray) -> GaussianModel:
        """Isotropic Gaussians on a point cloud, as large as the points are far apart.

        They are in spatial order, not in the cloud's.

        Args:
            xyz: (N, 3) float, world units.
            rgb: (N, 3) uint8.
        """
        points = torch.from_numpy(np.ascontiguousarray(xyz, dtype=np.float32))
        order, count = spatial_order(points), len(points)
        points = points[order]
        colors = torch.from_numpy(np.ascontiguousarray(rgb)).float()[order] / 255
        log_scale = distCUDA2(points).clamp_min(1e-7).sqrt().log()
        rotation = torch.zeros(count, 4)
        rotation[:, 0] = 1
        return cls(
            {
                "xyz": points,
                "f_dc": ((colors - 0.5) / SH_C0)[:, None],
                "f_rest": torch.zeros(count, (MAX_SH_DEGREE + 1) ** 2 - 1, 3),
                "log_scale": log_scale[:, None].repeat(1, 3),
                "rotation": rotation,
                "opacity": torch.full((count, 1), INITIAL_OPACITY).logit(),
            }
        )

    def register(self, name: str, value: Tensor) -> None:
        """Adds a per-Gaussian parameter; its first dimension is N."""
        if len(self.values) and len(value) != len(self):
            raise ValueError(f"{name} has {len(value)} rows for {len(self)} Gaussians")
        if name in self.values:
            raise ValueError(f"a per-Gaussian parameter {name!r} is already registered")
        self.values[name] = nn.Parameter(value.detach().float().contiguous())

    def __len__(self) -> int:
        return len(self.values["xyz"])

    def __getitem__(self, name: str) -> nn.Parameter:
        return self.values[name]

    @property
    def names(self) -> list[str]:
        """Names of all per-Gaussian parameters, in order of registration."""
        return list(self.values.keys())

    @property
    def xyz(self) -> nn.Parameter:
        """(N, 3) canonical positions, world units."""
        return self.values["xyz"]

    @property
    def f_dc(self) -> nn.Parameter:
        """(N, 1, 3) SH coefficients of degree 0."""
        return self.values["f_dc"]

    @property
    def f_rest(self) -> nn.Parameter:
        """(N, 15, 3) SH coefficients of degrees 1 to 3."""
        return self.values["f_rest"]

    @property
    def log_scale(self) -> nn.Parameter:
        """(N, 3) natural logarithm of the standard deviations."""
        return self.values["log_scale"]

    @property
    def rotation(self) -> nn.Parameter:
        """(N, 4) quaternions wxyz, not normalised."""
        return self.values["rotation"]

    @property
    def opacity(self) -> nn.Parameter:
        """(N, 1) opacity logits."""
        return self.values["opacity"]

    def canonical(self) -> Canonical:
        """The raw attributes, with gradient."""
        extra = {name: self.values[name] for name in self.names if name not in CANONICAL}
        return Canonical(
            self.xyz, self.log_scale, self.rotation, self.opacity, self.f_dc, self.f_rest, extra
        )

    @torch.no_grad()
    def reindex(
        self,
        source: Tensor,
        fresh: Tensor,
        overrides: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        """Replaces the set of Gaussians: row i of the new set is a copy of row ``source[i]``.

        Cloning, splitting and pruning are all this one operation.

        Args:
            source: (M,) int64, row of the old set that each new row copies.
            fresh: (M,) bool, rows that are new; their Adam moments start at zero.
            overrides: name -> (fresh.sum(), ...) values of the fresh rows that are not copies.
            optimizer: its state is re-indexed with the parameters.
        """
        for name in self.names:
            old = self.values[name]
            value = old.detach()[source]
            if name in overrides:
                value[fresh] = overrides[name]
            new = nn.Parameter(value)
            if optimizer is not None:
                _move_state(optimizer, old, new, source, fresh)
            self.values[name] = new


def _move_state(
    optimizer: torch.optim.Optimizer, old: Tensor, new: Tensor, source: Tensor, fresh: Tensor
) -> None:
    for group in optimizer.param_groups:
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
    state = optimizer.state.pop(old, None)
    if state is None:
        return
    for key, value in state.items():
        if torch.is_tensor(value) and value.shape == old.shape:
            moved = value[source]
            moved[fresh] = 0
            state[key] = moved
    optimizer.state[new] = state
