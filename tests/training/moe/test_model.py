"""MoE-GS as a whole: blended pictures, gates, what learns and what does not."""

from __future__ import annotations

import pytest
import torch

import tiny
from gaussian_renderer import render
from scene.mixture import Splats
from scene.pixel_router import TIME, WEIGHT, gates_of, rays_of
from tiny_moe import ITERATION, NAMES, mixture, scatter
from training.evaluation import ViewRenderer
from training.moe.model import MoEGS

WHITE = torch.ones(3)
CAMERAS = [tiny.camera(0), tiny.camera(2)]


@pytest.mark.parametrize("router", ["volume_aware", "pixel"])
def test_the_picture_is_the_sum_of_gates_times_experts(router):
    model = scatter(mixture(router))
    blend = model(CAMERAS, 0.4, WHITE, 0.5)
    assert blend.gates.shape == (2, 2, tiny.HEIGHT, tiny.WIDTH)
    assert torch.allclose(blend.gates.sum(1), torch.ones(2, tiny.HEIGHT, tiny.WIDTH), atol=1e-6)
    assert torch.equal(blend.gates, gates_of(blend.logits, 0.5))
    written = sum(blend.gates[:, k, None] * blend.experts[:, k] for k in range(2))
    assert torch.allclose(blend.images, written, atol=1e-6)
    assert blend.gates.std() > 0.05  # the experts count for different amounts


def test_logits_are_of_the_splatted_features():
    """Drawn here by themselves, over nothing."""
    model = scatter(mixture())
    blend = model([CAMERAS[1]], 0.4, WHITE, 1.0)
    maps = []
    for name in NAMES:
        features = model.router.features(name, 0.4)
        splats = model.splats(name, 0.4)
        sh = (features[:, None] - 0.5) / 0.28209479177387814  # whose colour is the feature
        part = Splats(
            splats.means, splats.log_scales, splats.quaternions, splats.opacity_logits, sh
        )
        shifted = Splats(*(vars(part) | {"sh": sh + 100}).values())  # colours are cut off at 0
        alone = render([CAMERAS[1]], shifted, torch.zeros(3), 0)
        maps.append(alone.images - 100 * 0.28209479177387814 * alone.alpha)
    rays = rays_of([CAMERAS[1]], model.centre, model.extent)
    logits = model.router.logits(torch.stack(maps, 1), rays, 0.4)
    assert torch.allclose(blend.logits, logits, atol=1e-3)


def test_nothing_leaks_from_the_background_into_the_maps():
    """Where no Gaussian is, a map is 0, whatever lies behind."""
    model = scatter(mixture())
    with torch.no_grad():
        for name in NAMES:
            model.experts[name].gaussians.log_scale.fill_(-4)
    splats = [model.splats(name, 0.4) for name in NAMES]
    features = [model.router.features(name, 0.4) for name in NAMES]
    white, black = (
        model.layers([CAMERAS[0]], splats, features, torch.full((3,), shade))
        for shade in (1.0, 0.0)
    )
    assert torch.equal(white.features, black.features)
    empty = white.alpha[:, :, 0] == 0
    assert empty.float().mean() > 0.1
    assert (white.features.movedim(2, -1)[empty] == 0).all()
    assert (white.images.movedim(2, -1)[empty] == 1).all()
    assert not torch.equal(white.images, black.images)


@pytest.mark.parametrize("chosen", NAMES)
@pytest.mark.parametrize("router", ["volume_aware", "pixel"])
@pytest.mark.parametrize("degrees", [(0, 0), (3, 1)])
def test_one_expert_alone_is_its_own_picture_to_the_bit(chosen, router, degrees):
    model = scatter(mixture(router))
    for name, degree in zip(NAMES, degrees, strict=True):
        model.experts[name].gaussians.active_sh_degree = degree
    world = tiny.scene()
    view = world.train[1]
    blend = model([view.camera], view.time, WHITE, 0.1, [chosen])
    alone = ViewRenderer(model.experts[chosen], world, ITERATION)(view)
    assert torch.equal(blend.images[0], alone)
    assert (blend.gates == 1).all() and blend.experts.shape[1] == 1


def test_experts_of_different_degrees_are_drawn_each_with_its_own():
    model = scatter(mixture())
    model.experts[NAMES[0]].gaussians.active_sh_degree = 2
    world = tiny.scene()
    view = world.train[2]
    blend = model([view.camera], view.time, WHITE, 0.1)
    for k, name in enumerate(NAMES):
        alone = ViewRenderer(model.experts[name], world, ITERATION)(view)
        assert torch.equal(blend.experts[0, k], alone)


@pytest.mark.parametrize("router", ["volume_aware", "pixel"])
def test_leaving_experts_out_leaves_the_others_logits(router):
    names = ("hexplane", "polynomial", "keyframe")
    model = scatter(mixture(router, names))
    whole = model([CAMERAS[0]], 0.4, WHITE, 0.5)
    part = model(
        [CAMERAS[0]], 0.4, WHITE, 0.5, ["keyframe", "hexplane"]
    )  # order counts for nothing
    assert torch.allclose(part.logits, whole.logits[:, [0, 2]], atol=1e-6)
    assert torch.allclose(part.gates, gates_of(whole.logits[:, [0, 2]], 0.5), atol=1e-5)
    assert torch.equal(part.experts, whole.experts[:, [0, 2]])


def test_the_order_of_experts_is_the_order_of_the_results():
    one = scatter(mixture(names=NAMES))
    experts = {name: one.experts[name] for name in NAMES[::-1]}
    other = MoEGS(experts, dict.fromkeys(NAMES, ITERATION), "volume_aware")
    other.router.load_state_dict(one.router.state_dict())
    first, second = (m(CAMERAS, 0.7, WHITE, 0.5) for m in (one, other))
    assert torch.allclose(first.images, second.images, atol=1e-6)
    for name in ("experts", "gates", "logits"):
        assert torch.allclose(getattr(first, name), getattr(second, name).flip(1), atol=1e-6)


def test_an_expert_that_is_not_seen_is_the_background():
    """Its maps are 0: its logit is what the network makes of the ray alone."""
    model = scatter(mixture())
    with torch.no_grad():
        model.experts[NAMES[1]].gaussians.xyz[:, 2] = -100  # behind every camera
    blend = model([CAMERAS[0]], 0.4, WHITE, 0.5)
    assert (blend.experts[:, 1] == 1).all() and torch.isfinite(blend.images).all()
    rays = rays_of([CAMERAS[0]], model.centre, model.extent)
    nothing = torch.zeros(1, 1, 3, tiny.HEIGHT, tiny.WIDTH)
    assert torch.allclose(blend.logits[:, 1:], model.router.logits(nothing, rays, 0.4), atol=1e-6)
    blend.images.square().mean().backward()
    own = model.router.gaussians[NAMES[1]]
    assert own[WEIGHT].grad is None or (own[WEIGHT].grad == 0).all()


def test_experts_are_frozen():
    model = scatter(mixture())
    assert not any(p.requires_grad for p in model.experts.parameters())
    assert all(not expert.training for expert in model.experts.values())
    blend = model(CAMERAS, 0.4, WHITE, 0.5)
    blend.images.square().mean().backward()
    assert all(p.grad is None for p in model.experts.parameters())
    grads = {n: p.grad for n, p in model.router.named_parameters()}
    assert all(g is not None and g.abs().max() > 0 for g in grads.values()), grads.keys()


def _loss(model: MoEGS, pixels: torch.Tensor) -> torch.Tensor:
    blend = model([CAMERAS[1]], 0.6, WHITE, 0.7)
    return (blend.images.double() * pixels).sum()


STEPS = (1e-3, 2e-3)


def _slope(model: MoEGS, pixels: torch.Tensor, parameter, step: torch.Tensor) -> float:
    """Half of what the loss changes from one side to the other."""
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            parameter += sign * step
            ends.append(_loss(model, pixels).item())
            parameter -= sign * step
    return (ends[0] - ends[1]) / 2


@pytest.mark.parametrize("router", ["volume_aware", "pixel"])
def test_gradients_against_differences(router):
    """By w, w_dir, w_time and the network; float32, so along the gradient itself."""
    model = scatter(mixture(router), seed=5)  # no ReLU has its kink within a step
    pixels = torch.randn(1, 3, tiny.HEIGHT, tiny.WIDTH, dtype=torch.float64)
    _loss(model, pixels).backward()
    checked = 0
    for name, parameter in model.router.named_parameters():
        # Along the gradient: the largest change for a step; each column of the weights by itself.
        columns = range(parameter.shape[1]) if name.endswith(WEIGHT) else [slice(None)]
        for column in columns:
            direction = torch.zeros_like(parameter)
            direction[:, column] = parameter.grad[:, column] / parameter.grad[:, column].norm()
            expected = (direction * parameter.grad).sum().item()
            near, far = (
                _slope(model, pixels, parameter, size * direction) / size for size in STEPS
            )
            found = 2 * near - far  # ReLU's kinks make an error in proportion to the step
            assert found == pytest.approx(expected, rel=0.03, abs=5e-3), (name, column)
            checked += 1
    assert checked == (2 * 3 + 3 if router == "volume_aware" else 3)


def test_temperature_and_time_reach_the_gates():
    model = scatter(mixture())
    soft, hard = (model([CAMERAS[0]], 0.4, WHITE, t).gates.amax(1).mean() for t in (5.0, 0.05))
    assert hard > soft + 0.2
    early, late = (model([CAMERAS[0]], t, WHITE, 0.5).logits for t in (0.0, 1.0))
    assert not torch.allclose(early, late, atol=1e-3)
    with torch.no_grad():
        for name in NAMES:
            model.router.gaussians[name][TIME].zero_()
    assert model([CAMERAS[0]], 0.4, WHITE, 0.5).gates.isfinite().all()


def test_rays_are_measured_from_the_scenes_centre():
    """In units of its extent: a scene that is moved and scaled has the same rays."""
    model = mixture()
    facts = model.experts[NAMES[0]].facts
    assert torch.equal(model.centre, facts.bbox.mean(0)) and model.extent == facts.extent
    (ray,) = rays_of([CAMERAS[0]], model.centre, model.extent)
    origin = (CAMERAS[0].camera_center - facts.bbox.mean(0)) / facts.extent
    assert torch.allclose(ray[:3, 0, 0], origin)


# ---- all experts' Gaussians as one set ----------------------------------------------------------


def test_the_volume_router_draws_all_gaussians_as_one_with_scaled_opacities():
    model = scatter(mixture("volume"))
    blend = model([CAMERAS[1]], 0.4, WHITE, 0.5)
    parts = []
    for name in NAMES:
        splats = model.splats(name, 0.4)
        opacity = splats.opacities * model.router.log_share(name, 0.4).exp()
        parts.append((splats.means, splats.log_scales, splats.quaternions, opacity, splats.sh))
    means, scales, quaternions, opacity, sh = (
        torch.cat(values) for values in zip(*parts, strict=True)
    )
    union = Splats(means, scales, quaternions, opacity.logit(), sh)
    assert torch.allclose(blend.images, render([CAMERAS[1]], union, WHITE, 0).images, atol=1e-5)
    assert torch.allclose(blend.gates.sum(1), torch.ones(1, tiny.HEIGHT, tiny.WIDTH), atol=1e-5)
    assert blend.logits is None
    blend.images.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.router.parameters())
    assert all(p.grad is None for p in model.experts.parameters())


def test_with_one_transmittance_the_layers_add_up():
    """Equation 9 as written: with equal gates of 1 the sum is the render of all Gaussians."""
    model = scatter(mixture(shared_transmittance=True))
    blend = model([CAMERAS[1]], 0.4, WHITE, 0.5)
    splats = [model.splats(name, 0.4) for name in NAMES]
    union = Splats(
        *(torch.cat(values) for values in zip(*(vars(s).values() for s in splats), strict=True))
    )
    whole = render([CAMERAS[1]], union, WHITE, 0).images
    assert torch.allclose(blend.experts.sum(1), whole, atol=1e-5)
