"""The per-Gaussian embedding expert (E-D3DGS, Bae et al., ECCV 2024).

Each Gaussian carries a learned vector, each time a vector from a table that is read at a resolution
growing with training; two small networks, coarse and fine, turn the pair into deltas. The position
is not an input.

Deviations: per-camera time offsets have as many rows as there are cameras (published: 30), and the
query time is not changed in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from scene.experts.base import (
    HEAD_SIZES,
    Deformation,
    Expert,
    Heads,
    LearningRate,
    Moment,
    ParameterGroup,
    SceneFacts,
    through,
    trunk,
)
from scene.gaussian_model import Canonical
from simple_knn import knn
from utils.devices import reading_waits

if TYPE_CHECKING:
    from arguments_MoDE.config import Config, ModelEmbParams

NEIGHBOURS = 20
SMOOTHNESS_SHARPNESS = 2000.0
ANNEAL_ITERATIONS = 1000


def read_table(table: Tensor, rows: int, time: Tensor) -> Tensor:
    """The temporal embedding at ``time``, from the table resized to ``rows``.

    The table (R, D) is resized along its rows by linear interpolation (ends aligned) and read
    linearly at ``time`` x (rows - 1); outside [0, 1] time is reflected.

    Args:
        time: scalar tensor; its gradient is that of the interpolation.

    Returns:
        (D,)
    """
    time = 1 - (1 - time.abs() % 2).abs()  # reflection at 0 and 1
    if rows > 1:
        i = (time.detach() * (rows - 1)).clamp(0, rows - 2)
        i = i.double().floor() if reading_waits(i) else int(i)
        low, high = (_read_row(table, (i + k) / (rows - 1)) for k in (0, 1))
        return torch.lerp(low, high, time * (rows - 1) - i)
    return _read_row(table, 0.0)


def _read_row(table: Tensor, position: float | Tensor) -> Tensor:
    """The table at ``position`` in [0, 1]: a number, or a float64 scalar that is not to be read."""
    row, last = position * (len(table) - 1), max(len(table) - 2, 0)
    if isinstance(row, float):
        i = min(int(row), last)
        return torch.lerp(table[i], table[min(i + 1, len(table) - 1)], row - i)
    i = row.floor().clamp(max=last)
    low, high = (_pick_row(table, (i + k).clamp(max=len(table) - 1)) for k in (0, 1))
    return torch.lerp(low, high, (row - i).to(table.dtype))


def _pick_row(table: Tensor, index: Tensor) -> Tensor:
    return table.index_select(0, index.long()[None])[0]  # table[index] would read the index


class _Branch(nn.Module):
    """Trunk on (temporal vector, embedding) and one head per attribute."""

    def __init__(self, emb: ModelEmbParams, attributes: frozenset[str]) -> None:
        super().__init__()
        width = emb.emb_net_width
        # The first layer on the concatenation, as two: the temporal part is the same for all
        # Gaussians and is computed once instead of N times.
        self.of_time = nn.Linear(emb.emb_temporal_embedding_dim, width)
        self.of_embedding = nn.Linear(emb.emb_gaussian_embedding_dim, width, bias=False)
        inputs = emb.emb_temporal_embedding_dim + emb.emb_gaussian_embedding_dim
        for parameter in self.parameters():  # PyTorch's default for the concatenated layer
            nn.init.uniform_(parameter, -(inputs**-0.5), inputs**-0.5)
        self.trunk = trunk(width, emb.emb_defor_depth)
        self.heads = Heads(width, attributes)

    def forward(self, temporal: Tensor, embedding: Tensor, wanted: frozenset[str]) -> Deformation:
        before = (self.of_embedding.weight, self.of_time(temporal))
        return self.heads(*through(self.trunk, embedding, before), wanted)


class EmbeddingExpert(Expert):
    """Deltas decoded from a learned vector per Gaussian and one per time."""

    name = "embedding"

    def __init__(
        self, emb: ModelEmbParams, facts: SceneFacts, zero_init_heads: bool = False
    ) -> None:
        """Builds table, offsets and branches as the configuration says."""
        super().__init__()
        self.settings = emb
        disabled = {
            "xyz": False,
            "log_scale": emb.emb_no_ds,
            "rotation": emb.emb_no_dr,
            "opacity": emb.emb_no_do,
            "sh": emb.emb_no_dc,
        }
        self.attributes = frozenset(name for name, off in disabled.items() if not off)
        shape = (emb.emb_max_embeddings, emb.emb_temporal_embedding_dim)
        spread = 0.0 if emb.emb_zero_temporal else 0.01 / shape[1] ** 0.5
        self.table = nn.Parameter(torch.randn(shape) * spread)
        self.offsets = nn.Parameter(torch.zeros(max(facts.cameras, 1)))
        self.coarse = None if emb.emb_no_coarse_deform else _Branch(emb, self.attributes)
        self.fine = None if emb.emb_no_fine_deform else _Branch(emb, self.attributes)
        if zero_init_heads:
            for branch in self._branches():
                branch.heads.zero_last_()
        self._neighbours: _Neighbours | None = None

    @classmethod
    def build(cls, config: Config, facts: SceneFacts) -> EmbeddingExpert:
        """See `Expert.build`."""
        return cls(config.emb, facts, config.hidden.zero_init_heads)

    def _branches(self) -> list[_Branch]:
        return [branch for branch in (self.coarse, self.fine) if branch is not None]

    def per_gaussian(self, count: int) -> dict[str, Tensor]:
        """``embedding`` (N, 32), zero at first."""
        return {"embedding": torch.zeros(count, self.settings.emb_gaussian_embedding_dim)}

    def per_gaussian_rates(self, config: Config) -> dict[str, LearningRate]:
        """A constant rate."""
        return {"embedding": LearningRate(config.opt.embedding_lr)}

    def rows(self, iteration: int, branch: str = "fine") -> int:
        """Rows at which the temporal table is read at ``iteration`` of the fine stage."""
        emb = self.settings
        if branch == "coarse" and emb.emb_use_coarse_temporal_embedding:
            return emb.emb_min_embeddings
        if emb.emb_no_c2f_temporal_embedding or emb.emb_c2f_temporal_iter <= 0:
            return emb.emb_max_embeddings
        share = min(max(iteration / emb.emb_c2f_temporal_iter, 0.0), 1.0)
        return int(
            emb.emb_min_embeddings + (emb.emb_max_embeddings - emb.emb_min_embeddings) * share
        )

    def camera_time(self, moment: Moment) -> Tensor:
        """Scalar time, shifted by the camera's offset; unseen cameras take the mean trained one."""
        if moment.camera_index is not None:
            return moment.time + self.offsets[moment.camera_index]
        shifts = self.offsets.detach()
        return moment.time + shifts.sum() / (shifts != 0).sum().clamp_min(1)

    def forward(self, canonical: Canonical, moment: Moment, wanted: frozenset[str]) -> Deformation:
        """See `Expert.forward`; the fine branch's deltas are added to the coarse one's."""
        embedding = canonical.extra["embedding"]
        time = self.camera_time(moment)
        total = Deformation()
        for name, branch in (("coarse", self.coarse), ("fine", self.fine)):
            if branch is None:
                continue
            temporal = read_table(self.table, self.rows(moment.iteration, name), time)
            _accumulate(total, branch(temporal, embedding, wanted))
        return self._annealed(total, moment.iteration)

    def _annealed(self, total: Deformation, iteration: int) -> Deformation:
        if not self.settings.emb_use_anneal:
            return total
        late = iteration - self.settings.emb_deform_from_iter
        k, k_late = (min(max(i / ANNEAL_ITERATIONS, 0.0), 1.0) for i in (iteration, late))
        factors = {
            "xyz": k,
            "rotation": k,
            "log_scale": k * k_late,
            "opacity": k * k_late,
            "sh": k_late,
        }
        for name, factor in factors.items():
            value = getattr(total, name)
            if value is not None and factor != 1.0:
                setattr(total, name, factor * value)
        return total

    def parameter_groups(self, config: Config, extent: float) -> list[ParameterGroup]:
        """Networks with the table, and the time offsets."""
        opt = config.opt
        scale = extent if opt.scale_lr_by_extent else 1.0
        network = [p for n, p in self.named_parameters() if n != "offsets"]
        rate = LearningRate(
            opt.embnet_lr_init * scale, opt.embnet_lr_final * scale, opt.embnet_lr_max_steps
        )
        return [
            ParameterGroup("embnet", network, rate),
            ParameterGroup("offsets", [self.offsets], LearningRate(opt.offsets_lr)),
        ]

    def regularizers(self, canonical: Canonical, config: Config) -> dict[str, Tensor]:
        """Local smoothness of the embeddings (E-D3DGS, section 3.4), when it has a weight."""
        if not config.emb.emb_smooth_weight:
            return {}
        smooth = self._local_smoothness(canonical)
        return {"embedding_smoothness": config.emb.emb_smooth_weight * smooth}

    def _local_smoothness(self, canonical: Canonical) -> Tensor:
        embedding = canonical.extra["embedding"]
        weight, index = self._neighbourhood(canonical.xyz)
        difference = (embedding[:, None] - embedding[index]).square().sum(-1)  # (N, K)
        return (weight * difference + 1e-20).sqrt().mean()

    def _neighbourhood(self, xyz: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and rows (N, 20) of the neighbours, kept while the Gaussians stay the same.

        Density control makes a new parameter of ``xyz``, the optimiser changes the one there is.
        """
        if self._neighbours is None or self._neighbours.of is not xyz:
            self._neighbours = _Neighbours(xyz, xyz.detach().clone())
        return self._neighbours.weight, self._neighbours.index

    def carried(self) -> dict[str, Tensor]:
        """See `Expert.carried`: where the Gaussians were when their neighbours were searched."""
        return {} if self._neighbours is None else {"searched": self._neighbours.searched}

    def carry_on(self, canonical: Canonical, tensors: Mapping[str, Tensor]) -> None:
        """See `Expert.carry_on`."""
        searched = tensors.get("searched")
        self._neighbours = None if searched is None else _Neighbours(canonical.xyz, searched)


class _Neighbours:
    """The nearest ones of each Gaussian, from when the Gaussians last became others.

    The search is on the CPU: it waits for a GPU, but so does the density control before it.
    """

    def __init__(self, of: Tensor, searched: Tensor) -> None:
        """Searches.

        Args:
            of: (N, 3) the positions as a parameter, which they are the neighbours of.
            searched: (N, 3) where those were then.
        """
        self.of, self.searched = of, searched
        # A lone Gaussian has none: itself, infinitely far off, with no weight.
        dist2, self.index = knn(searched, max(min(NEIGHBOURS, len(searched) - 1), 1))
        self.weight = torch.exp(-SMOOTHNESS_SHARPNESS * dist2)


def _accumulate(total: Deformation, part: Deformation) -> None:
    for name in HEAD_SIZES:
        value, before = getattr(part, name), getattr(total, name)
        if value is not None:
            setattr(total, name, value if before is None else before + value)
