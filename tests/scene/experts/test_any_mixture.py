"""Mixtures of any experts: every combination trains, is saved, and comes back the same."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

import tiny
from arguments_MoDE.config import Config
from arguments_MoDE.saved import save_config
from scene.experts import REGISTRY
from training.checkpoint import load_run
from utils.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:hash grids")

COMBINATIONS = [c for size in range(1, 6) for c in combinations(REGISTRY, size)]


def config(experts: tuple[str, ...], **hidden) -> Config:
    made = tiny.config(coarse_iterations=1, iterations=3, gaiting_from_iter=1)
    made.hash.grid_args.update(
        canonical_num_levels=2,
        canonical_base_resolution=4,
        canonical_desired_resolution=8,
        deform_num_levels=2,
        deform_base_resolution=[4, 4, 2],
        deform_desired_resolution=[6, 6, 4],
    )
    made.hash.network_args["width"] = 8
    made.hidden.experts = list(experts)
    switches = {f"MoE_{name}": True for name in ("mean", "rotation", "scale", "opacity", "sh")}
    for name, value in (switches | {"no_do": False, "no_dshs": False} | hidden).items():
        setattr(made.hidden, name, value)
    return made


def train_and_reload(folder, settings: Config) -> None:
    """Three fine iterations; the saved run gives the same Gaussians."""
    trainer = tiny.trainer(folder, settings)
    trainer.train()
    save_config(settings, folder / "config.json")
    loaded = load_run(folder).model
    assert list(loaded.experts) == settings.hidden.experts
    with torch.no_grad():
        before = trainer.model.eval().deform(0.6, iteration=3)
        after = loaded.deform(0.6, iteration=3)
    for name, value in vars(before).items():
        assert torch.isfinite(value).all()
        assert torch.allclose(value, getattr(after, name), atol=1e-6), name


@pytest.mark.parametrize("experts", COMBINATIONS, ids="+".join)
def test_every_combination_trains_and_survives_saving(experts, tmp_path):
    train_and_reload(tmp_path, config(experts))


@pytest.mark.parametrize("top_k", [0, 1, 2, 9])
def test_top_k_acts_within_the_number_of_experts(top_k, tmp_path):
    train_and_reload(tmp_path, config(("keyframe", "hash", "polynomial"), moe_top_k=top_k))


@pytest.mark.parametrize("mixing", ["delta", "published"])
def test_the_order_of_experts_says_who_is_host(mixing, tmp_path):
    train_and_reload(tmp_path, config(("hash", "hexplane"), mixing=mixing, MoE_scale=False))


@pytest.mark.parametrize("name", REGISTRY)
def test_every_trained_tensor_of_an_expert_has_a_gradient(name, tmp_path):
    trainer = tiny.trainer(tmp_path, config((name,)))
    model = trainer.model
    trainer._start_stage("fine")
    splats = model.deform(0.4, camera_index=1, iteration=2000)
    loss = sum((torch.randn_like(v) * v).sum() for v in vars(splats).values())
    (loss + sum(model.regularizers().values())).backward()
    for group in trainer.optimizer.adam.param_groups:
        for parameter in group["params"]:
            assert parameter.grad is not None, group["name"]


@pytest.mark.parametrize("name", REGISTRY)
def test_its_name_is_that_of_the_registry(name):
    model = tiny.build_model(tiny.scene(), config((name,)))
    assert model.experts[name].name == name


@pytest.mark.parametrize("experts", [("keyframe",), ("hexplane", "keyframe", "polynomial")])
def test_sets_and_temporal_opacity_train_and_survive_saving(experts, tmp_path):
    settings = config(experts, MoE_opacity=True)
    settings.motion.keyframe_sets = settings.motion.keyframe_opacity = True
    settings.motion.keyframe_extract_interval, settings.motion.keyframe_extract_share = 1, 0.3
    settings.motion.trbf_spread = True
    train_and_reload(tmp_path, settings)
    dynamic = load_run(tmp_path).model.gaussians["keyframe_dynamic"]
    assert 0 < dynamic.sum() < len(dynamic)


def test_a_run_says_which_of_its_settings_its_parameters_contradict(tmp_path):
    """As many keyframes as the model has, or none of it is read."""
    train_and_reload(tmp_path, config(("keyframe",)))
    settings = config(("keyframe",))
    settings.motion.keyframe_num += 1
    save_config(settings, tmp_path / "config.json")
    with pytest.raises(UserError, match="keyframe_xyz has shape"):
        load_run(tmp_path)
