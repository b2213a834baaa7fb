"""The mixture: what the blend is, where gradients go, what is not computed."""

from __future__ import annotations

import pytest
import torch

from arguments_MoDE.config import Config
from scene import mixture
from scene.experts import Deformation, Moment, SceneFacts
from scene.gaussian_model import GaussianModel
from scene.mixture import MoDE, align_hemisphere, blend, blend_published
from scene.router import entropy, knots_for


def small_model(emb: dict | None = None, **hidden) -> MoDE:
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
    for key, value in (emb or {}).items():
        setattr(config.emb, key, value)
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


def test_an_expert_that_is_silent_is_aligned_with_one_that_turned_over(monkeypatch):
    base = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    deltas = [torch.tensor([[-2.0, 0.0, 0.0, 0.0], [0.0, 0.1, 0.0, 0.0]]), None]
    for waits in (False, True):
        monkeypatch.setattr(mixture, "reading_waits", lambda tensor, waits=waits: waits)
        silent = align_hemisphere(base, deltas)[1]
        assert torch.equal(silent, torch.tensor([[-2.0, 0, 0, 0], [0, 0, 0, 0]]))
        same = align_hemisphere(base, [torch.zeros(2, 4), None])[1]
        assert torch.equal(same, torch.zeros(2, 4)) if waits else same is None


def test_quaternions_are_aligned_with_the_one_that_counts_most(monkeypatch):
    base = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    turned = [[1.0, 0.0, 0.0, 0.0], [0.05, 1.0, 0.0, 0.0], [0.05, -1.0, 0.0, 0.0]]
    deltas = [torch.tensor([q]) - base for q in turned]  # two are 11 degrees apart
    for waits in (False, True):
        monkeypatch.setattr(mixture, "reading_waits", lambda tensor, waits=waits: waits)
        for gates in ([[0.0, 0.6, 0.4]], [[0.1, 0.45, 0.45]]):
            weights = torch.tensor(gates)
            mixed = blend(base, align_hemisphere(base, deltas, weights), weights)
            assert mixed[0, 1] > 0.85


@pytest.mark.parametrize("top_k, asked", [(0, False), (1, True), (2, False), (9, False)])
def test_which_gaussians_need_an_expert_is_asked_only_where_gates_are_dropped(top_k, asked):
    model = small_model(moe_top_k=top_k)
    gates = {a: torch.tensor([[1.0, 0.0]]).expand(30, 2) for a in ("xyz", "rotation")}
    model.attribute_experts = {"xyz": (0, 1), "rotation": (0, 1)}
    rows = model._needed_rows(1, gates)
    assert model.router.drops is asked and (rows is not None) is asked


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
    assert not model.router.members
    assert not any(name.startswith("gate_") for name in model.gaussians.names)


def test_an_attribute_that_one_expert_deforms_is_that_experts_alone():
    model = small_model(MoE_opacity=True, no_do=False)  # the embedding has no opacity head
    assert "opacity" not in model.router.members
    assert model.attribute_experts["opacity"] == (0,)
    canonical = model.gaussians.canonical()
    alone = model.experts["hexplane"](canonical, Moment(0.3, 0), frozenset({"opacity"}))
    mixed = model.mix(canonical, Moment(0.3, 0))
    assert torch.allclose(mixed["opacity"], canonical.opacity + alone.opacity)


def test_gates_are_over_the_experts_that_have_the_attribute():
    model = small_model(
        experts=["hexplane", "embedding", "keyframe"], MoE_scale=True
    )  # keyframes do not change scales
    assert model.router.members == {"xyz": (0, 1, 2), "rotation": (0, 1, 2), "log_scale": (0, 1)}
    assert model.gaussians["gate_log_scale"].shape[-1] == 2


def test_the_zero_expert_counts_for_every_attribute():
    model = small_model(experts=["hexplane", "zero"], MoE_scale=True)
    assert all(rows == (0, 1) for rows in model.router.members.values())
    canonical = model.gaussians.canonical()
    delta = model.experts["hexplane"](canonical, Moment(0.3, 0), frozenset({"xyz"})).xyz
    gate = model.router(canonical, 0.3)["xyz"]
    mixed = model.mix(canonical, Moment(0.3, 0))
    assert torch.allclose(mixed["xyz"], canonical.xyz + gate[:, :1] * delta)


@pytest.mark.parametrize("mixing", ["delta", "published"])
def test_without_a_router_the_deltas_add_up(mixing):
    model = small_model(gate="sum", mixing=mixing)
    assert not any(name.startswith("gate_") for name in model.gaussians.names)
    canonical, moment = model.gaussians.canonical(), Moment(0.3, 0)
    wanted = frozenset({"xyz", "rotation"})
    parts = [expert(canonical, moment, wanted) for expert in model.experts.values()]
    mixed = model.mix(canonical, moment)
    for name in wanted:
        expected = getattr(canonical, name) + sum(getattr(part, name) for part in parts)
        assert torch.allclose(mixed[name], expected)


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
    "switch", ["MoE_mean", "MoE_rotation", "MoE_scale", "MoE_opacity", "MoE_sh"]
)
def test_each_attribute_can_be_mixed_by_itself(switch):
    switches = dict.fromkeys(
        ["MoE_mean", "MoE_rotation", "MoE_scale", "MoE_opacity", "MoE_sh"], False
    )
    both = {switch: True, "no_do": False, "no_dshs": False}
    model = small_model(emb={"emb_no_do": False}, **(switches | both))
    (attribute,) = model.router.members
    name = model.router.parameter_name(attribute)
    assert model.gaussians[name].shape == (30, model.config.hidden.control_num, 2)


def decided_model(*experts: str, **settings) -> MoDE:
    """A model whose gates favour another expert for each third of the Gaussians, at all times."""
    model = small_model(experts=list(experts), **settings).eval()
    for name in model.gaussians.names:
        if name.startswith("gate_"):
            knots = model.gaussians[name].data.zero_()
            owner = torch.arange(len(knots)) % knots.shape[-1]
            knots[torch.arange(len(knots)), :, owner] = 5.0
    for parameter in model.experts.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


ALL = ("hexplane", "embedding", "hash", "polynomial", "keyframe", "zero")


@torch.no_grad()
@pytest.mark.parametrize("count", [2, 3, 6])
def test_experts_without_weight_are_not_computed_for_those_gaussians(count):
    model = decided_model(*ALL[:count], moe_top_k=1, emb={"emb_use_anneal": False})
    model.config.hidden.MoE_scale = True
    asked = {}
    for name, expert in model.experts.items():
        expert.register_forward_pre_hook(
            lambda _, args, n=name: asked.update({n: len(args[0].xyz)})
        )
    canonical, moment = model.gaussians.canonical(), Moment(0.3, 2000)
    sparse = model.mix(canonical, moment)
    assert asked["embedding"] == 30 // count
    with torch.enable_grad():  # every expert for every Gaussian
        dense = model.mix(canonical, moment)
    assert asked["embedding"] == 30
    for name in sparse:
        assert torch.allclose(sparse[name], dense[name], atol=1e-6), name


@torch.no_grad()
def test_signs_of_quaternions_are_not_those_of_an_expert_that_is_not_computed(monkeypatch):
    model = decided_model("keyframe", "embedding", "hash", moe_top_k=2)
    model.gaussians["gate_rotation"].data[:] = torch.tensor([-5.0, 0.1, 0.0])
    model.gaussians["gate_xyz"].data[:] = torch.tensor([-5.0, 0.1, 0.0])
    turned = ([0.0, 1.0, 0.3, 0.0], [0.3, 1.0, 0.0, 0.0], [0.3, -1.0, 0.5, 0.0])
    for expert, q in zip(model.experts.values(), turned, strict=True):
        rotation = torch.tensor(q)

        def turn(canonical, moment, wanted, rotation=rotation):
            zero = torch.zeros_like(canonical.xyz)
            return Deformation(xyz=zero, rotation=rotation - canonical.rotation)

        monkeypatch.setattr(expert, "forward", turn)
    canonical, moment = model.gaussians.canonical(), Moment(0.3, 2000)
    sparse = model.mix(canonical, moment)["rotation"]
    with torch.enable_grad():  # every expert for every Gaussian, as in training
        dense = model.mix(canonical, moment)["rotation"]
    assert torch.allclose(sparse, dense, atol=1e-6)


@torch.no_grad()
def test_an_expert_that_nobody_chose_is_not_computed():
    model = decided_model("hexplane", "keyframe", moe_top_k=1)
    for name in ("gate_xyz", "gate_rotation"):
        model.gaussians[name].data[..., 1] = -9.0
    model.experts["keyframe"].forward = lambda *_: pytest.fail("was computed")
    model.mix(model.gaussians.canonical(), Moment(0.3, 2000))


@torch.no_grad()
def test_an_attribute_that_is_not_routed_is_computed_for_all():
    model = decided_model("hexplane", "embedding", moe_top_k=1)  # scales are the host's alone
    canonical, moment = model.gaussians.canonical(), Moment(0.3, 2000)
    expected = model.experts["hexplane"](canonical, moment, frozenset({"log_scale"})).log_scale
    mixed = model.mix(canonical, moment)["log_scale"]
    assert torch.allclose(mixed, canonical.log_scale + expected, atol=1e-6)
    assert bool((expected != 0).all())


@torch.no_grad()
def test_the_hash_experts_attention_follows_a_subset():
    model = decided_model("hash", "hexplane", moe_top_k=1)
    canonical, moment = model.gaussians.canonical(), Moment(0.3, 0)
    expert, rows = model.experts["hash"], torch.tensor([3, 17, 29])
    whole = expert(canonical, moment, frozenset({"xyz"})).xyz
    assert torch.allclose(
        expert(canonical.subset(rows), moment, frozenset({"xyz"})).xyz, whole[rows]
    )
    assert len(expert._cached[2]) == 30  # kept for all, not computed again for a subset


def test_gates_are_wide_for_inspection():
    model = decided_model("hexplane", "keyframe", "embedding", MoE_scale=True)
    gates = model.gates(0.4)["log_scale"]  # no business of the keyframes
    assert gates.shape == (30, 3) and (gates[:, 1] == 0).all()
    assert torch.allclose(gates.sum(-1), torch.ones(30))


def test_router_losses_are_off_unless_weighted_and_wait_for_the_warm_up():
    model = small_model(l1_time_planes=0, plane_tv_weight=0, time_smoothness_weight=0).train()
    opt = model.config.opt
    assert model.regularizers([0.2], 5) == {}
    opt.balance_weight, opt.entropy_weight_final, opt.iterations = 2.0, 0.5, 100
    opt.gaiting_from_iter = 10
    assert model.regularizers([0.2], 9) == {}
    assert set(model.regularizers([0.2], 50)) == {"gate_balance", "gate_entropy"}
    half = model.regularizers([0.2], 50)["gate_entropy"]
    assert torch.allclose(2 * half, model.regularizers([0.2], 100)["gate_entropy"])


@pytest.mark.parametrize(
    "weights", [{"balance_weight": 1.0}, {"entropy_weight_init": -1.0}, {"entropy_weight_init": 1}]
)
def test_router_losses_do_what_they_say(weights):
    model = small_model().train()
    model.config.opt.iterations = 10**9  # the schedule stands at its start
    for name, value in weights.items():
        setattr(model.config.opt, name, value)
    knots = model.gaussians["gate_xyz"]
    with torch.no_grad():
        knots[..., 0] += 1.0  # the first expert is ahead
    before = model.gates(0.5)["xyz"]
    optimizer = torch.optim.SGD([knots], lr=20.0)
    for _ in range(20):
        terms = model.regularizers([0.5], 0)
        optimizer.zero_grad()
        (terms.get("gate_balance", 0) + terms.get("gate_entropy", 0)).backward()
        optimizer.step()
    after = model.gates(0.5)["xyz"]
    if "balance_weight" in weights:
        assert (after.mean(0) - 0.5).abs().max() < 0.5 * (before.mean(0) - 0.5).abs().max()
    elif weights["entropy_weight_init"] < 0:
        assert entropy(after) > entropy(before) + 0.05
    else:
        assert entropy(after) < entropy(before) - 0.05


def test_entropy_is_that_of_the_gates_before_experts_are_dropped():
    found = []
    for top_k in (0, 1):
        model = small_model(moe_top_k=top_k).train()
        model.config.opt.entropy_weight_init = model.config.opt.entropy_weight_final = 1.0
        term = model.regularizers([0.3], 5)["gate_entropy"]
        found.append((term, *torch.autograd.grad(term, model.gaussians["gate_xyz"])))
    (whole, slope), (kept, slope_of_kept) = found
    assert whole > 0.9 and torch.allclose(kept, whole)
    assert torch.allclose(slope_of_kept, slope, atol=1e-9)


def test_a_longer_clip_has_more_knots_when_asked_to_choose():
    assert [knots_for(frames) for frames in (1, 15, 40, 60, 300, 3000)] == [3, 3, 4, 6, 12, 12]
    model = small_model(control_num=0)
    assert model.gaussians["gate_xyz"].shape[1] == 3
