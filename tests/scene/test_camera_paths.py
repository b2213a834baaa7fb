"""scene/camera_paths.py: spirals for rigs that face one way, orbits for rigs around the scene."""

from __future__ import annotations

import numpy as np
import pytest

from scene.camera_paths import closest_point, fit_path, is_forward_facing, look_at
from scene.cameras import Camera, camera_from_pose


def _cameras(centres: np.ndarray, target: np.ndarray, up=(0, 0, 1.0)) -> list[Camera]:
    poses = [look_at(np.asarray(c, float), target, np.asarray(up, float)) for c in centres]
    return [camera_from_pose(f"c{i}", (64, 48), (60, 60, 30, 24), p) for i, p in enumerate(poses)]


def _poses(cameras: list[Camera]) -> np.ndarray:
    return np.stack([np.linalg.inv(c.world_to_camera.double().numpy()) for c in cameras])


@pytest.fixture
def wall() -> list[Camera]:
    """A 3 x 3 grid of cameras, 0.4 apart, that look along +y at a point 5 units away."""
    grid = [(x, 0.0, z) for x in (-0.4, 0, 0.4) for z in (-0.4, 0, 0.4)]
    return _cameras(np.array(grid), np.array([0.0, 5.0, 0.0]))


@pytest.fixture
def ring() -> list[Camera]:
    """Ten cameras on a circle of radius 3, at height 2 above a target off the origin."""
    angles = np.linspace(0, 2 * np.pi, 10, endpoint=False)
    target = np.array([1.0, -2.0, 0.5])
    centres = target + np.stack([3 * np.cos(angles), 3 * np.sin(angles), 0 * angles + 2], axis=1)
    return _cameras(centres, target)


def test_look_at_is_a_rotation_that_looks_there():
    pose = look_at(np.array([1.0, 2, 3]), np.array([4.0, 4, 4]), np.array([0, 0, 1.0]))
    assert np.allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3))
    assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)
    assert np.allclose(pose[:3, 2] * np.sqrt(14), [3, 2, 1])
    assert pose[2, 1] < 0  # the image's down points down


def test_look_at_straight_up_is_still_a_rotation():
    pose = look_at(np.zeros(3), np.array([0, 0, 1.0]), np.array([0, 0, 1.0]))
    assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)


def test_rigs_are_told_apart(wall, ring):
    assert is_forward_facing(_poses(wall))
    assert not is_forward_facing(_poses(ring))


def test_closest_point_is_where_the_axes_meet(wall, ring):
    assert np.allclose(closest_point(_poses(wall)), [0, 5, 0], atol=1e-3)
    assert np.allclose(closest_point(_poses(ring)), [1, -2, 0.5], atol=1e-3)


def test_spiral_stays_inside_the_rig_and_looks_at_the_focus(wall):
    path = fit_path(wall, 40)
    centres = np.stack([c.camera_center.numpy() for c in path])
    assert np.abs(centres[:, [0, 2]]).max() <= 0.41
    assert np.abs(centres[:, [0, 2]]).max(axis=0).min() > 0.3  # and uses it
    for camera in path:
        pixel, depth = camera.project(np.array([[0, 5.0, 0]]))
        assert np.allclose(pixel[0], [31.5, 23.5], atol=0.05) and depth > 4
    ups = np.stack([-c.world_to_camera[1, :3].numpy() for c in path])
    assert ups[:, 2].min() > 0.9


def test_spiral_takes_a_given_depth(wall):
    camera = fit_path(wall, 4, focus_depth=2.0)[0]
    pixel, _ = camera.project(np.array([[0, 2.0, 0]]))
    assert np.allclose(pixel[0], [31.5, 23.5], atol=0.05)


def test_parallel_cameras_get_a_finite_spiral():
    cameras = _cameras(np.array([[0, 0, 0], [1, 0, 0]]), np.array([0, 1e9, 0]))
    centres = np.stack([c.camera_center.numpy() for c in fit_path(cameras, 8)])
    assert np.isfinite(centres).all() and np.abs(centres).max() < 2


def test_one_camera_gets_a_path_that_stands_still():
    cameras = _cameras(np.array([[1.0, 2, 3]]), np.array([0, 9.0, 3]))
    centres = np.stack([c.camera_center.numpy() for c in fit_path(cameras, 5)])
    assert np.allclose(centres, [1, 2, 3], atol=1e-5)


def test_orbit_goes_once_around_at_the_rig_s_height_and_distance(ring):
    path = fit_path(ring, 36)
    offsets = np.stack([c.camera_center.numpy() for c in path]) - [1, -2, 0.5]
    assert np.allclose(offsets[:, 2], 2, atol=1e-3)
    assert np.allclose(np.linalg.norm(offsets[:, :2], axis=1), 3, atol=1e-3)
    angles = np.unwrap(np.arctan2(offsets[:, 1], offsets[:, 0]))
    assert abs(angles[-1] - angles[0]) == pytest.approx(2 * np.pi * 35 / 36, abs=1e-3)
    assert np.allclose(offsets[0], ring[0].camera_center.numpy() - [1, -2, 0.5], atol=1e-3)
    for camera in path:
        pixel, _ = camera.project(np.array([[1, -2, 0.5]]))
        assert np.allclose(pixel[0], [31.5, 23.5], atol=0.05)
        assert -camera.world_to_camera[1, 2] > 0.7  # upright


def test_path_cameras_have_the_rig_s_size_and_median_focal_length(wall):
    wall[0] = wall[0].resized(64, 48)
    path = fit_path(wall, 3)
    assert (path[0].name, path[0].width, path[0].height) == ("path", 64, 48)
    assert (path[0].fx, path[0].cx) == (pytest.approx(60), 32)
    assert all(c.validate("path") for c in path)


def test_one_frame_is_a_path(ring, wall):
    assert len(fit_path(ring, 1)) == len(fit_path(wall, 1)) == 1
