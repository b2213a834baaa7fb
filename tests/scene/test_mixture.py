"""The mixture: what the blend is, where gradients go, what is not computed."""

from __future__ import annotations

import pytest
import torch

from arguments_MoDE.config import Config
from scene.experts import SceneFacts
from scene.gaussian_model import GaussianModel
from scene.mixture import MoDE, align_hemisphere, blend, blend_published


def small_model(**hidden) -> MoDE:
    torch.manual_seed(0)
    config = Config()
    config.hidden.kplanes_config = {
        "grid_dimensions": 2,
        "input_coordinate_dim": 4,
        "output_coordinate_dim": 4,
        "resolution": [8, 8, 8, 5],
    }
    config.hidden.multires, config.hidden.net_width = [1, 2], 8
    config.emb.emb_net_width = 8
    for key, value in hidden.items():
        setattr(config.hidden, key, value)
    points = torch.randn(30, 3)
    gaussians = GaussianModel.from_points(points.numpy(), torch.full((30, 3), 90).byte().numpy())
    bbox = torch.stack([points.amin(0), points.amax(0)])
    return MoDE(gaussians, config, SceneFacts(bbox, 2.0, 3, 10))


def test_both_mixings_give_the_same_value():
    base, gates = torch.randn(5, 3), torch.softmax(torch.randn(5, 2), -1)
    deltas = [torch.randn(5, 3), torch.randn(5, 3)]
    assert torch.allclose(
        blend(base, deltas, gates), blend_published(base, deltas, gates), atol=1e-6
    )


def test_delta_mixing_passes_the_canonical_gradient_in_full_and_published_only_the_hosts_share():
    gates = torch.tensor([[0.25, 0.75]])
    deltas = [torch.ones(1, 3), torch.ones(1, 3)]
    for rule, expected in ((blend, 1.0), (blend_published, 0.25)):
        base = torch.zeros(1, 3, requires_grad=True)
        rule(base, deltas, gates).sum().backward()
        assert torch.allclose(base.grad, torch.full((1, 3), expected)), rule.__name__


def test_an_expert_that_says_nothing_stays_put():
    base, gates = torch.randn(4, 3), torch.full((4, 2), 0.5)
    delta = torch.randn(4, 3)
    assert torch.allclose(blend(base, [delta, None], gates), base + 0.5 * delta)
    assert torch.allclose(blend_published(base, [delta, None], gates), base + 0.5 * delta)


def test_opposite_quaternions_do_not_cancel():
    base = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    deltas = [torch.zeros(1, 4), torch.tensor([[-2.0, 0.0, 0.0, 0.0]])]  # q and -q: one rotation
    aligned = align_hemisphere(base, deltas)
    mixed = blend(base, aligned, torch.full((1, 2), 0.5))
    assert torch.allclose(mixed, base)


def test_coarse_stage_is_the_canonical_set_and_the_experts_get_no_gradient():
    model = small_model()
    splats = model.deform(0.3, stage="coarse")
    assert torch.equal(splats.means, model.gaussians.xyz)
    splats.means.sum().backward()
    assert all(p.grad is None for p in model.experts.parameters())


def test_every_trained_parameter_gets_a_gradient():
    model = small_model(MoE_scale=True, no_do=False, no_dshs=False)
    splats = model.deform(0.4, camera_index=1, iteration=2000)
    total = sum(
        (v * torch.randn_like(v)).sum()
        for v in (splats.means, splats.scales, splats.rotations, splats.opacities, splats.sh)
    )
    total.backward()
    unused = {n for n, p in model.named_parameters() if p.grad is None}
    allowed = {"opacity", "sh"}  # heads of the guest that are not mixed
    assert all("embedding" in n and any(f"heads.last.{a}" in n for a in allowed) for n in unused), (
        unused
    )


def test_heads_that_are_not_mixed_are_not_computed():
    model = small_model()
    assert model.wanted(0) == {"xyz", "log_scale", "rotation"}
    assert model.wanted(1) == {"xyz", "rotation"}


def test_one_expert_needs_no_router():
    model = small_model(experts=["hexplane"])
    assert model.router.attributes == ()
    assert not any(name.startswith("gate_") for name in model.gaussians.names)


def test_static_has_no_experts():
    model = small_model(static=True)
    assert len(model.experts) == 0
    assert torch.equal(model.deform(0.7).means, model.gaussians.xyz)


def test_random_warm_up_only_while_training():
    model = small_model()
    model.config.opt.gaiting_from_iter = 100
    model.train()
    assert model.warming_up(99, "fine") and not model.warming_up(100, "fine")
    model.eval()
    assert not model.warming_up(0, "fine")


@pytest.mark.parametrize(
    "attribute", ["MoE_mean", "MoE_rotation", "MoE_scale", "MoE_opacity", "MoE_sh"]
)
def test_each_attribute_can_be_mixed_by_itself(attribute):
    switches = dict.fromkeys(
        ["MoE_mean", "MoE_rotation", "MoE_scale", "MoE_opacity", "MoE_sh"], False
    )
    model = small_model(**(switches | {attribute: True, "no_do": False, "no_dshs": False}))
    assert len(model.router.attributes) == 1
    name = model.router.parameter_name(model.router.attributes[0])
    assert model.gaussians[name].shape == (30, model.config.hidden.control_num, 2)
