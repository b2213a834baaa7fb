"""scene/cameras.py: the projection contract, resizing, validation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scene.cameras import Camera, camera_from_pose
from utils.errors import UserError


def _camera(**changes) -> Camera:
    generator = torch.Generator().manual_seed(3)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator))[0]
    rotation = rotation * torch.linalg.det(rotation)
    w2c = torch.eye(4)
    w2c[:3, :3] = rotation
    w2c[:3, 3] = torch.tensor([0.3, -0.2, 4.0])
    return replace(Camera("c", 64, 48, 70.0, 80.0, 30.0, 27.0, w2c), **changes)


def _points(count: int = 50) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (count, 3))


def test_what_the_rasteriser_reads_is_made_once_for_each_device_and_dtype():
    camera = _camera()
    view, full, centre, tangents = camera.on("cpu", torch.float32)
    assert torch.equal(view, camera.world_view_transform) and tangents.dtype == torch.float32
    assert torch.equal(full, camera.full_proj_transform)
    assert torch.equal(centre, camera.camera_center)
    assert tangents.tolist() == pytest.approx([64 / 140, 48 / 160])
    assert camera.on(torch.device("cpu"), torch.float32)[0] is view
    assert camera.on("cpu", torch.float64)[3].dtype == torch.float64
    moved = replace(camera, fx=35.0)
    assert moved.on("cpu", torch.float32)[3][0].item() == pytest.approx(64 / 70)


@pytest.mark.gpu
def test_a_gpu_gets_a_camera_without_being_waited_for():
    camera = _camera()
    torch.zeros(1, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        copies = camera.on("cuda", torch.float32)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for copy, own in zip(copies, camera.on("cpu", torch.float32), strict=True):
        assert copy.is_cuda and torch.equal(copy.cpu(), own)


def test_clip_space_agrees_with_the_pixel_formula():
    camera = _camera()
    points = torch.from_numpy(_points()).float()
    clip = torch.cat([points, torch.ones(len(points), 1)], dim=1) @ camera.full_proj_transform
    ndc = clip[:, :3] / clip[:, 3:]
    size = torch.tensor([64.0, 48.0])
    from_clip = ((ndc[:, :2] + 1) * size - 1) / 2  # NDC to pixels, as rasterisers do it
    local = points @ camera.world_to_camera[:3, :3].T + camera.world_to_camera[:3, 3]
    x, y, z = local.T
    expected = torch.stack([70 * x / z + 30 - 0.5, 80 * y / z + 27 - 0.5], dim=1)
    assert torch.allclose(from_clip, expected, atol=1e-3)
    pixels, depth = camera.project(points.numpy())
    assert np.allclose(pixels, expected, atol=1e-3)
    assert np.allclose(depth, z, atol=1e-5)


def test_depth_maps_near_to_zero_and_far_to_one():
    camera = _camera(near=0.5, far=20.0)
    local = torch.tensor([[0.0, 0, 0.5, 1], [0.0, 0, 20.0, 1]])
    clip = local @ camera.projection.T
    assert (clip[:, 2] / clip[:, 3]).tolist() == pytest.approx([0, 1], abs=1e-6)


def test_centred_principal_point_has_a_symmetric_projection():
    projection = _camera(cx=32.0, cy=24.0).projection
    assert projection[0, 2] == projection[1, 2] == 0


def test_view_matrix_is_the_transpose_and_centre_maps_to_the_origin():
    camera = _camera()
    assert torch.equal(camera.world_view_transform, camera.world_to_camera.T)
    centre = torch.cat([camera.camera_center, torch.ones(1)])
    assert torch.allclose(camera.world_to_camera @ centre, torch.tensor([0.0, 0, 0, 1]), atol=1e-5)


def test_tangents_of_the_field_of_view():
    camera = _camera()
    assert camera.tan_half_fov_x == pytest.approx(64 / 140)
    assert camera.tan_half_fov_y == pytest.approx(48 / 160)


def test_resizing_keeps_the_ray_of_every_image_position():
    camera, points = _camera(), _points()
    small = camera.resized(16, 24)
    before, _ = camera.project(points)
    after, _ = small.project(points)
    assert np.allclose((before + 0.5) / [64, 48], (after + 0.5) / [16, 24])
    assert camera.resized(64, 48) is camera


def test_pose_and_matrix_are_inverse():
    camera = _camera()
    pose = np.linalg.inv(camera.world_to_camera.double().numpy())
    again = camera_from_pose("c", (64, 48), (70, 80, 30, 27), pose)
    assert torch.allclose(again.world_to_camera, camera.world_to_camera, atol=1e-6)


def test_points_behind_or_outside_are_not_seen():
    camera = replace(_camera(), world_to_camera=torch.eye(4))
    points = np.array([[0, 0, 1.0], [0, 0, -1.0], [5, 0, 1.0], [0, 0, 0.001]])
    assert camera.sees(points).tolist() == [True, False, False, False]


def test_valid_camera_passes_and_is_returned():
    camera = _camera()
    assert camera.validate("file") is camera


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"fx": float("nan")}, "NaN"),
        ({"cy": float("inf")}, "NaN or infinite"),
        ({"fy": 0.0}, "positive"),
        ({"width": 0}, "positive"),
        ({"world_to_camera": torch.full((4, 4), float("nan"))}, "NaN"),
        ({"world_to_camera": torch.diag(torch.tensor([-1.0, 1, 1, 1]))}, "mirrors"),
        ({"world_to_camera": torch.diag(torch.tensor([2.0, 2, 2, 1]))}, "not a rotation"),
        ({"world_to_camera": torch.ones(4, 4)}, "not a rotation"),
        ({"world_to_camera": torch.diag(torch.tensor([1.0, 1, 1, 2]))}, "not a rotation"),
    ],
)
def test_faults_are_named_with_file_and_camera(change, match):
    with pytest.raises(UserError, match=f"poses.npy: camera c.*{match}"):
        _camera(**change).validate("poses.npy")
