"""The pixel routers' arithmetic: rays, network, logits, gates."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

import tiny
import tiny_moe
from scene.pixel_router import (
    RAY_CHANNELS,
    ROUTERS,
    TIME,
    WEIGHT,
    Perceptron,
    RayRouter,
    VolumeAwarePixelRouter,
    VolumeRouter,
    gates_of,
    rays_of,
)

COUNTS = {"a": 5, "b": 7, "c": 0}
CENTRE = torch.tensor([0.5, -0.25, 1.0])


def wild(router):
    """The router with random weights."""
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.normal_()
    return router


@pytest.mark.parametrize("camera", [tiny.camera(2), tiny_moe.off_centre()], ids=["plain", "off"])
def test_points_on_a_ray_land_on_its_pixel(camera):
    """Projected as the rasteriser has it: pixel (fx x/z + cx - 0.5, fy y/z + cy - 0.5)."""
    (ray,) = rays_of([camera], CENTRE, 2.0)
    assert ray.shape == (6, camera.height, camera.width) and ray.dtype == torch.float32
    assert torch.allclose(ray[3:].norm(dim=0), torch.ones(camera.height, camera.width), atol=1e-6)
    origins = 2.0 * ray[:3] + CENTRE[:, None, None]
    assert torch.allclose(origins, camera.camera_center[:, None, None].expand_as(origins))
    for depth in (0.7, 9.0):
        points = (origins + depth * ray[3:]).flatten(1)  # (3, P)
        local = camera.world_to_camera[:3, :3] @ points + camera.world_to_camera[:3, 3:]
        assert (local[2] > 0).all()
        u = camera.fx * local[0] / local[2] + camera.cx - 0.5
        v = camera.fy * local[1] / local[2] + camera.cy - 0.5
        rows, columns = torch.meshgrid(
            torch.arange(camera.height), torch.arange(camera.width), indexing="ij"
        )
        assert torch.allclose(u, columns.flatten().float(), atol=2e-4)
        assert torch.allclose(v, rows.flatten().float(), atol=2e-4)


def test_a_point_is_drawn_where_its_ray_goes():
    """The brightest pixel of a small Gaussian on a ray is the ray's, as the rasteriser sees it."""
    from gaussian_renderer import render
    from scene.mixture import Splats

    camera = tiny_moe.off_centre()
    (ray,) = rays_of([camera], torch.zeros(3), 1.0)
    for row, column in ((3, 4), (12, 20)):
        point = ray[:3, row, column] + 4 * ray[3:, row, column]
        sh = torch.ones(1, 1, 3)
        dot = Splats(
            point[None], torch.full((1, 3), -3.0), torch.tensor([[1.0, 0, 0, 0]]), sh[:, :, 0], sh
        )
        alpha = render([camera], dot, torch.zeros(3), 0).alpha[0, 0]
        assert divmod(int(alpha.argmax()), camera.width) == (row, column)


def test_a_batch_has_each_cameras_rays():
    cameras = [tiny.camera(0), tiny.camera(2)]
    both = rays_of(cameras, CENTRE, 2.0)
    assert torch.equal(both, torch.cat([rays_of([c], CENTRE, 2.0) for c in cameras]))
    assert not torch.equal(both[0], both[1])


@pytest.mark.parametrize("experts", [1, 3])
def test_the_network_is_three_convolutions_of_one_pixel(experts):
    """8 -> 6 -> 3 -> 1 with ReLU between, none at the end, no biases."""
    network = wild(Perceptron(8, experts))
    assert [tuple(m.shape) for m in network.layers] == [
        (experts, 6, 8),
        (experts, 3, 6),
        (experts, 1, 3),
    ]
    inputs = torch.randn(2, experts, 8, 35)
    out = network(inputs)
    assert out.shape == (2, experts, 35)
    for k in range(experts):
        hidden = inputs[:, k].unflatten(2, (5, 7))
        for i, matrix in enumerate(network.layers):
            hidden = F.conv2d(F.relu(hidden) if i else hidden, matrix[k][:, :, None, None])
        assert torch.allclose(out[:, k], hidden[:, 0].flatten(1), atol=1e-5)


def test_the_network_begins_as_pytorchs_convolutions_do():
    torch.manual_seed(0)
    first = Perceptron(8).layers[0][0]
    bound = 1 / 8**0.5
    assert first.abs().max() <= bound and first.abs().max() > 0.8 * bound


def test_what_is_splatted_is_w_wdir_and_t_times_wtime():
    router = wild(VolumeAwarePixelRouter(COUNTS, 0.9))
    own = router.gaussians["b"]
    for time in (0.0, 0.3, 1.0):
        features = router.features("b", time)
        assert features.shape == (7, 3)
        assert torch.equal(features[:, :2], own[WEIGHT])
        assert torch.equal(features[:, 2], time * own[TIME][:, 0])


def test_weights_begin_as_published():
    router = VolumeAwarePixelRouter(COUNTS, 0.9)
    for name, count in COUNTS.items():
        own = router.gaussians[name]
        assert torch.equal(own[WEIGHT], torch.full((count, 2), 0.9))
        assert torch.equal(own[TIME], torch.zeros(count, 1))


def test_logits_are_the_written_formula():
    """w(u) + Phi(w_dir(u), w_time(u), ray(u)), with one network for all experts."""
    router = wild(VolumeAwarePixelRouter(COUNTS, 0.9))
    maps, rays = torch.randn(2, 3, 3, 4, 5), torch.randn(2, 6, 4, 5)
    logits = router.logits(maps, rays, 0.4)
    assert logits.shape == (2, 3, 4, 5) and router.network.layers[0].shape[0] == 1
    first, second, third = (matrix[0] for matrix in router.network.layers)
    for b, k, y, x in itertools.product((0, 1), range(3), (0, 3), (0, 4)):
        inputs = torch.cat([maps[b, k, 1:, y, x], rays[b, :, y, x]])
        phi = third @ F.relu(second @ F.relu(first @ inputs))
        assert torch.allclose(logits[b, k, y, x], maps[b, k, 0, y, x] + phi[0], atol=1e-5)


def test_the_pixel_router_sees_ray_and_time_with_a_network_for_each_expert():
    router = wild(RayRouter(COUNTS, 0.9))
    rays = torch.randn(2, 6, 4, 5)
    logits = router.logits(None, rays, 0.4)
    for k, (y, x) in itertools.product(range(3), ((0, 0), (3, 4))):
        hidden = torch.cat([rays[1, :, y, x], torch.tensor([0.4])])
        for i, matrix in enumerate(router.network.layers):
            hidden = matrix[k] @ (F.relu(hidden) if i else hidden)
        assert torch.allclose(logits[1, k, y, x], hidden[0], atol=1e-5)
    assert router.features("a", 0.4) is None and not list(router.gaussians.parameters())


def test_the_volume_routers_share_of_an_opacity():
    router = wild(VolumeRouter(COUNTS, 0.9))
    own = router.gaussians["a"]
    share = router.log_share("a", 0.25).exp()
    assert torch.allclose(share, torch.sigmoid(own[WEIGHT] + 0.25 * own[TIME]))
    fresh = VolumeRouter(COUNTS, 0.9).log_share("a", 0.7).exp()
    assert torch.allclose(fresh, torch.full((5, 1), 0.9))
    with pytest.raises(TypeError, match="does not route pixels"):
        router.logits(None, torch.zeros(1, 6, 2, 2), 0.0)


def test_gates_are_a_softmax_over_experts():
    logits = torch.randn(2, 3, 4, 5)
    gates = gates_of(logits, 0.5)
    assert torch.allclose(gates.sum(1), torch.ones(2, 4, 5), atol=1e-6)
    written = (logits / 0.5).exp()
    assert torch.allclose(gates, written / written.sum(1, keepdim=True), atol=1e-6)
    assert torch.allclose(gates_of(logits, 1e4), torch.full_like(gates, 1 / 3), atol=1e-3)
    hard = gates_of(logits, 1e-4)
    assert torch.equal(hard.argmax(1), logits.argmax(1)) and hard.amax(1).min() > 0.99


def test_logits_of_any_size_leave_finite_gates():
    logits = torch.tensor([1e30, -1e30, 0.0]).view(1, 3, 1, 1)
    assert torch.equal(gates_of(logits, 1e-4).flatten(), torch.tensor([1.0, 0, 0]))


def test_every_router_is_registered_by_its_name():
    assert {name: router.name for name, router in ROUTERS.items()} == {n: n for n in ROUTERS}
    assert set(ROUTERS) == {"volume_aware", "pixel", "volume"} and RAY_CHANNELS == 6
