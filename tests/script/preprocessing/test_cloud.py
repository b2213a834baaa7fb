"""Initial points: stray ones taken out, and sampled ones where there are too few."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from scene.cameras import Camera
from scene.point_cloud import PointCloud
from script.preprocessing import cloud
from script.preprocessing.colmap_tools import PosedImage, write_model
from utils.errors import UserError

WIDTH, HEIGHT = 120, 90
BEHIND = 6.0  # radius of the wall around everything
REACH = 3.0  # distance of the cameras from the ball in the middle


def looking_in(angle: float, name: str = "cam", away: bool = False) -> Camera:
    """On a circle around the origin, looking at it; y points down in the world too."""
    back = np.array([np.sin(angle), 0.0, -np.cos(angle)])
    forward = back if away else -back
    right = np.cross([0.0, 1.0, 0.0], forward)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, [0.0, 1.0, 0.0], forward])
    pose[:3, 3] = -pose[:3, :3] @ (REACH * back)
    w2c = torch.from_numpy(pose).float()
    return Camera(name, WIDTH, HEIGHT, 110.0, 110.0, WIDTH / 2, HEIGHT / 2, w2c)


def colour_at(points: np.ndarray) -> np.ndarray:
    """(N, 3) uint8 that change quickly over space."""
    cell = np.floor(points / 0.3).astype(np.int64) + 1000
    mixed = cell[:, :1] * 7919 + cell[:, 1:2] * 104_729 + cell[:, 2:] * 1_299_709
    return (mixed * np.array([31, 57, 91]) % 251).astype(np.uint8)


def hit(origin: np.ndarray, rays: np.ndarray, radius: float, far: bool) -> np.ndarray:
    """Where rays of unit length enter a ball around the origin, or leave it; NaN where not."""
    along = -(rays @ origin)
    root = radius**2 - (origin @ origin - along**2)
    half = np.sqrt(np.where(root > 0, root, np.nan))
    return along + half if far else along - half


def picture(camera: Camera) -> np.ndarray:
    """A ball of radius 1 at the origin, and the wall behind it."""
    w2c = camera.world_to_camera.double().numpy()
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    local = np.stack([(x - camera.cx) / camera.fx, (y - camera.cy) / camera.fy, x * 0 + 1], -1)
    rays = local.reshape(-1, 3) @ w2c[:3, :3]
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    origin = -w2c[:3, :3].T @ w2c[:3, 3]
    near, wall = hit(origin, rays, 1.0, False), hit(origin, rays, BEHIND, True)
    points = origin + rays * np.where(np.isnan(near), wall, near)[:, None]
    return colour_at(points).reshape(HEIGHT, WIDTH, 3)


@pytest.fixture(scope="module")
def rig() -> list[Camera]:
    return [looking_in(angle, f"cam{i}") for i, angle in enumerate(np.linspace(-0.5, 0.5, 8))]


@pytest.fixture(scope="module")
def frames(rig) -> list[np.ndarray]:
    return [picture(camera) for camera in rig]


def near_the_ball(xyz: np.ndarray) -> float:
    """Share of points that are at the side of the ball that the cameras see."""
    radius = np.linalg.norm(xyz, axis=1)
    return float(((np.abs(radius - 1) < 0.05) & (xyz[:, 2] < -0.3)).mean())


def test_points_are_sampled_at_surfaces_and_have_their_colours(rig, frames):
    found = cloud.sample_consistent(rig, frames, 3000)
    by_chance = cloud._in_shared_volume(rig, 300_000, np.random.default_rng(0))
    by_chance = by_chance[sum(c.sees(by_chance) for c in rig) >= len(rig) / 2]
    assert len(found) == 3000  # of 12,000 in view, so that 4 times as often as by chance is all
    assert near_the_ball(found.xyz) > 2 * near_the_ball(by_chance) > 0
    at_ball = np.abs(np.linalg.norm(found.xyz, axis=1) - 1) < 0.02
    at_ball &= found.xyz[:, 2] < -0.5
    error = np.abs(colour_at(found.xyz[at_ball]).astype(float) - found.rgb[at_ball]).mean()
    assert at_ball.sum() > 20 and error < 40  # 80 or so between colours at random


def test_sampling_is_repeatable_and_in_view(rig, frames):
    first, again = (cloud.sample_consistent(rig, frames, 50) for _ in range(2))
    assert np.array_equal(first.xyz, again.xyz) and np.array_equal(first.rgb, again.rgb)
    assert (sum(c.sees(first.xyz).astype(int) for c in rig) >= 4).all()
    other = cloud.sample_consistent(rig, frames, 50, seed=1)
    assert not np.array_equal(first.xyz, other.xyz)


def test_cameras_that_share_no_view_are_told(frames):
    away = [looking_in(0.0, away=True), looking_in(np.pi, away=True)]
    with pytest.raises(UserError, match="in view of two cameras"):
        cloud.sample_consistent(away, frames[:2], 10)


def test_points_that_few_see_or_far_away_are_taken_out(rig):
    rng = np.random.default_rng(0)
    good = rng.uniform(-0.4, 0.4, (100, 3))
    behind_them = np.array([[0.0, 0, -20], [0.0, 0, -40]])
    far_off = np.array([[0.0, 0, 90], [0.1, 0, 50]])
    anywhere = rng.uniform(-3, 3, (5000, 3))
    one_sees = anywhere[sum(c.sees(anywhere).astype(int) for c in rig) == 1][:1]
    assert len(one_sees)
    assert sum(int(c.sees(far_off)[0]) for c in rig) >= 2
    xyz = np.concatenate([good, behind_them, far_off, one_sees]).astype(np.float32)
    rgb = np.arange(3 * len(xyz), dtype=np.int64).reshape(-1, 3).astype(np.uint8)
    kept = cloud.without_strays(PointCloud(xyz, rgb), rig)
    assert np.array_equal(kept.xyz, xyz[:100]) and np.array_equal(kept.rgb, rgb[:100])


def test_no_points_stay_none(rig):
    empty = PointCloud(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8))
    assert len(cloud.without_strays(empty, rig)) == 0


def model_of(folder: Path, camera: Camera, count: int, first: int) -> None:
    points = np.arange(first, first + 3 * count, dtype=np.float32).reshape(-1, 3)
    found = PointCloud(points, np.full((count, 3), first, np.uint8))
    write_model(folder / cloud.SPARSE, [PosedImage("a.png", camera)], {"a.png": (1, 1)}, found)


def test_moments_are_put_together_and_empty_ones_passed_over(tmp_path, rig):
    model_of(tmp_path / "a", rig[0], 2, 0)
    model_of(tmp_path / "b", rig[0], 0, 0)
    model_of(tmp_path / "c", rig[0], 1, 60)
    found = cloud.merged([tmp_path / name for name in ("a", "b", "c")])
    assert found.xyz.tolist() == [[0, 1, 2], [3, 4, 5], [60, 61, 62]]
    assert found.rgb[:, 0].tolist() == [0, 0, 60]
    none = cloud.merged([tmp_path / "b"])
    assert none.xyz.shape == (0, 3) and none.rgb.shape == (0, 3)
    with pytest.raises(UserError, match="points3D.bin: cannot be read"):
        cloud.merged([tmp_path / "nowhere"])


def test_a_damaged_model_is_named_and_not_taken_for_an_empty_one(tmp_path):
    for content in (b"", bytes(7), bytes([3]) + bytes(7)):
        path = tmp_path / cloud.SPARSE / "points3D.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        for name in ("cameras.bin", "images.bin"):
            (path.parent / name).write_bytes(bytes(8))
        path.write_bytes(content)
        with pytest.raises(UserError, match="points3D.bin: damaged"):
            cloud.merged([tmp_path])


def test_cameras_that_look_the_same_way_get_points_before_them():
    cameras = []
    for x in (-0.2, 0.0, 0.2):
        w2c = torch.eye(4)
        w2c[0, 3] = -x
        cameras.append(Camera(f"c{x}", WIDTH, HEIGHT, 110.0, 110.0, WIDTH / 2, HEIGHT / 2, w2c))
    grey = [np.full((HEIGHT, WIDTH, 3), 128, np.uint8)] * 3
    found = cloud.sample_consistent(cameras, grey, 50)
    assert len(found) == 50 and (found.xyz[:, 2] > 0).all()
    assert np.median(found.xyz[:, 2]) > 0.5


def some_points(count: int) -> PointCloud:
    xyz = np.random.default_rng(0).uniform(-0.4, 0.4, (count, 3)).astype(np.float32)
    return PointCloud(xyz, np.full((count, 3), 7, np.uint8))


def test_enough_points_are_left_as_they_are(rig, frames, capsys):
    found = cloud.completed(some_points(cloud.ENOUGH), rig, frames, "scene")
    assert len(found) == cloud.ENOUGH and capsys.readouterr().err == ""


def test_too_few_points_get_sampled_ones_and_a_note(rig, frames, capsys, monkeypatch):
    monkeypatch.setattr(cloud, "SAMPLED", 40)
    given = some_points(cloud.ENOUGH - 1)
    found = cloud.completed(given, rig, frames, "the scene")
    assert len(found) == cloud.ENOUGH - 1 + 40
    assert np.array_equal(found.xyz[: len(given)], given.xyz)
    said = capsys.readouterr().err
    assert said.startswith(f"note: the scene: only {cloud.ENOUGH - 1} points could")
    assert len(said.splitlines()) == 1


def test_bare_walls_end_in_sampled_points(tmp_path, rig):
    """Nothing to match at all: COLMAP is content, and the cloud is sampled."""
    pytest.importorskip("pycolmap")
    from script.preprocessing.colmap_tools import Features, Pycolmap

    grey = [np.full((HEIGHT, WIDTH, 3), 128, np.uint8)] * 3
    tools = Pycolmap(Features(1600, 500, 1))
    cloud.triangulate_moment(tools, rig[:3], grey, tmp_path / "frame_0000")
    assert len(cloud.merged([tmp_path / "frame_0000"])) == 0
    tools.undistort(
        tmp_path / "frame_0000/input", tmp_path / "frame_0000" / cloud.SPARSE, tmp_path / "w"
    )
    assert (tmp_path / "w/images").is_dir()
