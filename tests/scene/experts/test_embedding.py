"""The embedding expert: temporal table, offsets, annealing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from arguments_MoDE.config import Config
from scene.experts import embedding
from scene.experts.base import Moment, SceneFacts
from scene.experts.embedding import EmbeddingExpert, read_table
from scene.gaussian_model import Canonical


def table_oracle(table: torch.Tensor, rows: int, time: float) -> torch.Tensor:
    """Resize by `interpolate`, then sample by `grid_sample` with reflection."""
    image = table.T[None, :, :, None]  # (1, D, R, 1)
    resized = F.interpolate(image, size=(rows, 1), mode="bilinear", align_corners=True)
    grid = torch.tensor([[[[0.0, 2 * time - 1]]]])
    out = F.grid_sample(resized, grid, align_corners=True, padding_mode="reflection")
    return out[0, :, 0, 0]


@pytest.mark.parametrize("rows", [2, 5, 12, 20])
@pytest.mark.parametrize("time", [-0.05, 0.0, 0.313, 0.5, 0.999, 1.0, 1.05])
def test_table_is_resized_then_read_with_reflection(rows, time):
    table = torch.randn(20, 3, generator=torch.Generator().manual_seed(rows))
    got = read_table(table, rows, torch.tensor(time))
    assert torch.allclose(got, table_oracle(table, rows, time), atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 5, 20])
@pytest.mark.parametrize("time", [-0.05, 0.0, 0.25, 0.313, 0.5, 0.999, 1.0, 1.05])
def test_a_table_is_read_alike_whether_the_time_is_looked_at_or_not(monkeypatch, rows, time):
    found = []
    for waits in (False, True):
        monkeypatch.setattr(embedding, "reading_waits", lambda tensor, waits=waits: waits)
        table = torch.randn(20, 3, generator=torch.Generator().manual_seed(rows)).requires_grad_()
        moment = torch.tensor(time, requires_grad=True)
        value = read_table(table, rows, moment)
        slopes = torch.autograd.grad(value.square().sum(), (table, moment), materialize_grads=True)
        found.append((value, *slopes))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))


def expert(**emb) -> EmbeddingExpert:
    torch.manual_seed(0)
    config = Config()
    for key, value in emb.items():
        setattr(config.emb, key, value)
    bbox = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])
    return EmbeddingExpert(config.emb, SceneFacts(bbox, 1.0, 40, 5))


def canonical(count: int = 6) -> Canonical:
    empty = torch.zeros(0)
    embedding = torch.randn(count, 32, generator=torch.Generator().manual_seed(1))
    return Canonical(empty, empty, empty, empty, empty, empty, {"embedding": embedding})


def test_rows_grow_from_minimum_to_maximum():
    made = expert()
    assert [made.rows(i) for i in (0, 10000, 20000, 10**6)] == [30, 90, 150, 150]
    assert expert(emb_no_c2f_temporal_embedding=True).rows(0) == 150
    assert expert(emb_use_coarse_temporal_embedding=True).rows(20000, "coarse") == 30


def test_unseen_camera_takes_the_mean_of_the_trained_offsets():
    made = expert()
    assert made.camera_time(Moment(0.5, 0)).item() == 0.5
    with torch.no_grad():
        made.offsets[3], made.offsets[39] = 0.02, 0.04  # more than 30 cameras
    assert made.camera_time(Moment(0.5, 0)).item() == pytest.approx(0.53)
    assert made.camera_time(Moment(0.5, 0, 39)).item() == pytest.approx(0.54)


def test_offset_receives_a_gradient_and_time_is_not_changed_in_place():
    made = expert()
    moment = Moment(0.5, 5000, 2)
    made(canonical(), moment, made.attributes).xyz.sum().backward()
    assert made.offsets.grad[2] != 0
    assert moment.time == 0.5


def test_annealing_starts_at_zero_and_ends_at_one():
    made = expert(emb_deform_from_iter=500)
    full = made(canonical(), Moment(0.3, 10**6), made.attributes)
    start = made(canonical(), Moment(0.3, 0), made.attributes)
    assert torch.equal(start.xyz, torch.zeros_like(full.xyz))
    made.settings.emb_no_c2f_temporal_embedding = True
    full = made(canonical(), Moment(0.3, 10**6), made.attributes)
    half = made(canonical(), Moment(0.3, 750), made.attributes)
    assert torch.allclose(half.xyz, 0.75 * full.xyz)
    assert torch.allclose(half.log_scale, 0.75 * 0.25 * full.log_scale)


def test_split_first_layer_is_the_layer_on_the_concatenation():
    made = expert(emb_no_fine_deform=True, emb_use_anneal=False)
    state, moment = canonical(), Moment(0.4, 0)
    branch = made.coarse
    temporal = read_table(made.table, made.rows(0), torch.tensor(0.4))
    weight = torch.cat([branch.of_time.weight, branch.of_embedding.weight], 1)
    joined = torch.cat([temporal.expand(6, -1), state.extra["embedding"]], 1)
    expected = branch.heads(joined, (weight, branch.of_time.bias), frozenset({"xyz"})).xyz
    assert torch.allclose(made(state, moment, frozenset({"xyz"})).xyz, expected, atol=1e-6)


def test_parameter_groups_cover_the_module_once():
    made = expert()
    grouped = [id(p) for g in made.parameter_groups(Config(), 1.0) for p in g.parameters]
    assert sorted(grouped) == sorted(id(p) for p in made.parameters())


def test_local_smoothness_is_zero_for_equal_embeddings_and_grows_with_difference():
    made, config = expert(), Config()
    config.emb.emb_smooth_weight = 1.0
    xyz = torch.rand(40, 3) * 0.01
    empty = torch.zeros(0)

    def loss(embedding: torch.Tensor) -> float:
        state = Canonical(xyz, empty, empty, empty, empty, empty, {"embedding": embedding})
        return made.regularizers(state, config)["embedding_smoothness"].item()

    assert loss(torch.ones(40, 32)) < 1e-8
    assert loss(torch.randn(40, 32)) > 0.1


def test_a_lone_gaussian_is_as_smooth_as_can_be():
    made, config = expert(), Config()
    config.emb.emb_smooth_weight = 1.0
    empty, embedding = torch.zeros(0), torch.randn(1, 32, requires_grad=True)
    lone = Canonical(torch.rand(1, 3), empty, empty, empty, empty, empty, {"embedding": embedding})
    term = made.regularizers(lone, config)["embedding_smoothness"]
    term.backward()
    assert term < 1e-8 and (embedding.grad == 0).all()


def test_neighbours_are_searched_again_when_the_gaussians_are_others_though_as_many():
    made, config = expert(), Config()
    config.emb.emb_smooth_weight = 1.0
    empty, embedding = torch.zeros(0), torch.randn(40, 32)

    def loss(xyz: torch.Tensor) -> float:
        state = Canonical(xyz, empty, empty, empty, empty, empty, {"embedding": embedding})
        return made.regularizers(state, config)["embedding_smoothness"].item()

    first, other = torch.rand(40, 3) * 0.01, torch.rand(40, 3) * 0.01
    before = loss(first)
    after = loss(other)
    assert after != before
    other += torch.rand(40, 3)  # as by the optimiser: in place
    assert loss(other) == after
    assert loss(first) == before
