"""What holds for every camera, whatever its pose and lens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from scene.cameras import Camera, camera_from_pose
from utils.errors import UserError

numbers = st.floats(-50, 50, width=32)
vectors = st.tuples(numbers, numbers, numbers).map(np.array)
quaternions = st.tuples(*[st.floats(-1, 1, width=32)] * 4).map(np.array)
sizes = st.tuples(st.integers(1, 4000), st.integers(1, 4000))
focals = st.floats(0.3, 5.0)


def rotation(q: np.ndarray) -> np.ndarray:
    """(3, 3) of a quaternion wxyz of any length but zero."""
    w, x, y, z = q / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


@st.composite
def cameras(draw) -> Camera:
    q = draw(quaternions)
    assume(np.linalg.norm(q) > 0.1)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation(q), draw(vectors)
    width, height = draw(sizes)
    fx, fy = draw(focals) * width, draw(focals) * height
    cx, cy = (draw(st.floats(0, 1)) * n for n in (width, height))
    return camera_from_pose("cam", (width, height), (fx, fy, cx, cy), pose)


@given(cameras())
@settings(deadline=None)
def test_every_rigid_pose_is_valid_and_its_centre_is_where_it_was_put(camera):
    assert camera.validate("test") is camera
    centre = camera.camera_center.numpy()
    local = camera.world_to_camera.numpy() @ np.append(centre, 1)
    assert np.abs(local[:3]).max() < 1e-3
    assert np.linalg.norm(camera.forward.numpy()) == pytest.approx(1, abs=1e-5)


@given(cameras(), st.floats(0.05, 90), st.floats(-0.5, 0.5), st.floats(-0.5, 0.5))
@settings(deadline=None)
def test_what_a_pixel_sees_is_projected_back_to_it(camera, depth, across, down):
    u, v = (across + 0.5) * camera.width - 0.5, (down + 0.5) * camera.height - 0.5
    ray = [(u + 0.5 - camera.cx) / camera.fx, (v + 0.5 - camera.cy) / camera.fy, 1.0]
    matrix = camera.world_to_camera.double().numpy()
    point = np.linalg.solve(matrix[:3, :3], np.array(ray) * depth - matrix[:3, 3])
    pixels, found = camera.project(point[None])
    assert found[0] == pytest.approx(depth, rel=1e-5)
    assert np.abs(pixels[0] - [u, v]).max() < 1e-3 * max(camera.width, camera.height)
    if max(abs(across), abs(down)) < 0.49:
        assert camera.sees(point[None])[0]
    behind = np.linalg.solve(matrix[:3, :3], np.array(ray) * -depth - matrix[:3, 3])
    assert not camera.sees(behind[None])[0]


@given(cameras(), st.floats(0.1, 50), st.floats(-0.4, 0.4), st.floats(-0.4, 0.4))
@settings(deadline=None)
def test_clip_space_and_the_pixel_formula_agree(camera, depth, across, down):
    local = np.array([across * depth, down * depth, depth])
    matrix = camera.world_to_camera.double().numpy()
    point = np.linalg.solve(matrix[:3, :3], local - matrix[:3, 3])
    clip = np.append(point, 1) @ camera.full_proj_transform.double().numpy()
    ndc = clip[:3] / clip[3]
    size = np.array([camera.width, camera.height])
    pixel = ((ndc[:2] + 1) * size - 1) / 2
    expected, _ = camera.project(point[None])
    assert np.abs(pixel - expected[0]).max() < 2e-3 * size.max()
    assert clip[3] == pytest.approx(depth, rel=1e-3, abs=1e-3)


@given(cameras(), sizes)
@settings(deadline=None)
def test_resizing_keeps_every_ray(camera, size):
    other = camera.resized(*size)
    points = np.array([[0.1, 0.2, 3.0], [1.0, -1.0, 9.0]])
    before, depth = camera.project(points)
    after, _ = other.project(points)
    assume(depth.min() > 0.1)
    share = (before + 0.5) / [camera.width, camera.height]
    assert np.allclose((after + 0.5) / [other.width, other.height], share, atol=1e-6, rtol=1e-6)
    assert other.tan_half_fov_x == pytest.approx(camera.tan_half_fov_x)


@given(cameras(), st.integers(0, 2), st.sampled_from([np.nan, np.inf, -np.inf, 1e30]))
@settings(deadline=None)
def test_a_pose_with_one_impossible_number_is_refused(camera, row, value):
    camera.world_to_camera[row, 3] = value
    with pytest.raises(UserError, match="test: camera cam"):
        camera.validate("test")


@given(cameras(), st.integers(0, 2), st.floats(-3, 3))
@settings(deadline=None)
def test_a_pose_that_stretches_or_mirrors_is_refused(camera, axis, factor):
    assume(abs(factor - 1) > 0.05)
    camera.world_to_camera[axis, :3] *= factor
    with pytest.raises(UserError, match="rotation|mirrors"):
        camera.validate("test")
