"""`render_layers` draws every set of Gaussians as `render` does, and its features beside it."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

import tiny
from diff_gaussian_rasterization import rasterize
from gaussian_renderer import render, render_layers
from scene.mixture import Splats

CAMERAS = [tiny.camera(0), tiny.camera(2)]
BACKGROUND = torch.tensor([0.2, 0.5, 0.9])


def splats(count: int, rows: int = 16, seed: int = 0) -> Splats:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=random)

    return Splats(normal(3), 0.3 * normal(3) - 2, normal(4), normal(1), 0.3 * normal(rows, 3))


def layers(rows: int = 16) -> tuple[list[Splats], list[Tensor]]:
    sets = [splats(50, seed=0), splats(0, seed=1), splats(1, seed=2), splats(40, rows, seed=3)]
    random = torch.Generator().manual_seed(9)
    return sets, [torch.randn(len(s.means), 2, generator=random) for s in sets]


def test_images_are_those_of_each_set_alone():
    sets, features = layers()
    out = render_layers(CAMERAS, sets, features, BACKGROUND, 2)
    for k, layer in enumerate(sets):
        alone = render(CAMERAS, layer, BACKGROUND, 2)
        assert torch.allclose(out.images[:, k], alone.images, atol=1e-6)
        assert torch.allclose(out.alpha[:, k], alone.alpha, atol=1e-6)
        assert torch.allclose(out.depth[:, k], alone.depth, atol=1e-5)
    assert torch.equal(
        out.radii, torch.cat([render(CAMERAS, s, BACKGROUND, 2).radii for s in sets], 1)
    )
    assert out.alpha.amax((0, 2, 3, 4))[[0, 3]].min() > 0.5


def test_cameras_draw_nothing_before_their_near_plane():
    sets, features = layers()
    near = [replace(camera, near_plane=3.0) for camera in CAMERAS]
    out, alone = (
        render_layers(near, sets, features, BACKGROUND, 2),
        render(near, sets[0], BACKGROUND, 2),
    )
    depths = [
        s.means @ c.world_to_camera[2, :3] + c.world_to_camera[2, 3] for s in sets for c in near
    ]
    everything = render_layers(CAMERAS, sets, features, BACKGROUND, 2)
    beyond = torch.cat([torch.stack(depths[2 * k : 2 * k + 2]) for k in range(len(sets))], 1) > 3.0
    assert torch.equal(out.radii, torch.where(beyond, everything.radii, 0))
    assert torch.equal(alone.radii, out.radii[:, : len(sets[0].means)])
    assert 0 < (out.radii > 0).sum() < (everything.radii > 0).sum()


def test_no_background_leaks_into_the_features():
    sets, features = layers()
    ones = [torch.ones_like(f) for f in features]
    out = render_layers(CAMERAS, sets, ones, BACKGROUND, 2)
    assert torch.allclose(out.features, out.alpha.expand_as(out.features), atol=1e-6)
    assert out.features[:, 1].abs().max() == 0
    assert torch.allclose(out.images[:, 1], BACKGROUND[:, None, None].expand(2, 3, 16, 24))


def test_features_are_optional():
    sets, features = layers()
    without = render_layers(CAMERAS, sets, None, BACKGROUND, 2)
    assert without.features is None
    assert torch.allclose(
        without.images, render_layers(CAMERAS, sets, features, BACKGROUND, 2).images, atol=1e-6
    )


def test_harmonics_that_a_set_lacks_count_as_0():
    sets, features = layers(rows=4)
    padded = torch.cat([sets[3].sh, torch.zeros(40, 12, 3)], 1)
    expected = render(CAMERAS, replace(sets[3], sh=padded), BACKGROUND, 3)
    out = render_layers(CAMERAS, sets, features, BACKGROUND, 3)
    assert torch.allclose(out.images[:, 3], expected.images, atol=1e-6)


def test_gradients_are_those_of_each_set_alone():
    sets, features = layers()
    random = torch.Generator().manual_seed(5)
    weights = torch.rand(2, 4, 5, 16, 24, generator=random)

    def leaves() -> tuple[list[Splats], list[Tensor]]:
        made = [
            Splats(*(getattr(s, f.name).clone().requires_grad_() for f in fields(s))) for s in sets
        ]
        return made, [f.clone().requires_grad_() for f in features]

    together, weighted = leaves()
    out = render_layers(CAMERAS, together, weighted, BACKGROUND, 2)
    (torch.cat([out.images, out.features], 2) * weights).sum().backward()
    apart, weighted_apart = leaves()
    for k, layer in enumerate(apart):
        images = render(CAMERAS, layer, BACKGROUND, 2).images
        (
            (images * weights[:, k, :3]).sum()
            + (features_alone(layer, weighted_apart[k]) * weights[:, k, 3:]).sum()
        ).backward()
    for k in (0, 2, 3):
        for field in fields(Splats):
            actual, expected = (getattr(s[k], field.name).grad for s in (together, apart))
            assert torch.allclose(
                actual, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
            )
        assert torch.allclose(weighted[k].grad, weighted_apart[k].grad, atol=1e-5)


def features_alone(layer: Splats, features: Tensor) -> Tensor:
    copies = zip(*(camera.on("cpu", torch.float32) for camera in CAMERAS), strict=True)
    names = ("viewmatrices", "projmatrices", "camposs", "tanfov")
    return rasterize(
        layer.means[None],
        layer.opacity_logits[None],
        colors=features[None],
        scales=layer.log_scales[None],
        rotations=layer.quaternions[None],
        raw=True,
        width=tiny.WIDTH,
        height=tiny.HEIGHT,
        background=torch.zeros(2),
        **dict(zip(names, (torch.stack(values) for values in copies), strict=True)),
    ).color


def test_with_a_shared_transmittance_layers_sum_to_the_render_of_all():
    sets, features = layers()
    out = render_layers(CAMERAS, sets, features, BACKGROUND, 2, shared_transmittance=True)
    union = Splats(*(torch.cat([getattr(s, f.name) for s in sets]) for f in fields(Splats)))
    whole = render(CAMERAS, union, BACKGROUND, 2)
    assert torch.allclose(out.images.sum(1), whole.images, atol=1e-5)
    assert torch.allclose(out.alpha.sum(1), whole.alpha, atol=1e-5)
    assert torch.allclose(out.depth.sum(1), whole.depth, atol=1e-4)
    blended = features_alone(union, torch.cat(features))
    assert torch.allclose(out.features.sum(1), blended, atol=1e-4)


def test_images_of_frozen_gaussians_take_no_gradient():
    sets, features = layers()
    weights = [f.requires_grad_() for f in features]
    out = render_layers(CAMERAS, sets, weights, BACKGROUND, 2)
    assert out.features.requires_grad and not out.images.requires_grad
    sets[3].opacity_logits.requires_grad_()
    assert render_layers(CAMERAS, sets, weights, BACKGROUND, 2).images.requires_grad
    with torch.no_grad():
        assert not render_layers(CAMERAS, sets, weights, BACKGROUND, 2).features.requires_grad


def test_mistakes_are_named():
    sets, features = layers()
    with pytest.raises(ValueError, match="features"):
        render_layers(CAMERAS, sets, features[:2], BACKGROUND, 2)
    with pytest.raises(ValueError, match="features"):
        render_layers(CAMERAS, sets, features[::-1], BACKGROUND, 2)
    with pytest.raises(ValueError, match="features"):
        render_layers(CAMERAS, sets, [*features[:3], features[3][:, :1]], BACKGROUND, 2)
    with pytest.raises(ValueError, match="no layers"):
        render_layers(CAMERAS, [], [], BACKGROUND, 2)
    with pytest.raises(ValueError, match="one size"):
        render_layers([CAMERAS[0], replace(CAMERAS[1], width=30)], sets, features, BACKGROUND, 2)
    with pytest.raises(ValueError, match="one near plane"):
        render_layers(
            [CAMERAS[0], replace(CAMERAS[1], near_plane=1.0)], sets, features, BACKGROUND, 2
        )
