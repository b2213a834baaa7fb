"""The embedded demo scene: its files agree with each other, and with the script that makes them.

The decoding of poses_bounds.npy is written out here once more, so that the demo's cameras are
checked against the convention and not against the code that wrote them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
import pytest
from plyfile import PlyData

if TYPE_CHECKING:
    from demo.stage.renderer import Painter

ROOT = Path(__file__).resolve().parents[2]
SCENE = ROOT / "demo" / "scene"
NAMES = [f"cam{i:02d}" for i in range(14)]
SIZE = (192, 256)  # H, W


def decode_rows() -> list[tuple[np.ndarray, float, np.ndarray]]:
    """World-to-camera (4, 4), focal, [near, far] of every row; LLFF axes: down, right, back."""
    cameras = []
    for row in np.load(SCENE / "poses_bounds.npy", allow_pickle=False):
        matrix = row[:15].reshape(3, 5)
        assert tuple(matrix[:2, 4]) == SIZE
        pose = np.eye(4)
        pose[:3, :3] = np.stack([matrix[:, 1], matrix[:, 0], -matrix[:, 2]], axis=1)
        pose[:3, 3] = matrix[:, 3]
        cameras.append((np.linalg.inv(pose), matrix[2, 4], row[15:]))
    return cameras


def project(camera: tuple, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 2), pixel centres at integers, and depths (N,)."""
    world_to_camera, focal, _ = camera
    x, y, z = world_to_camera[:3, :3] @ points.T + world_to_camera[:3, 3:]
    pixels = [focal * x / z + SIZE[1] / 2 - 0.5, focal * y / z + SIZE[0] / 2 - 0.5]
    return np.stack(pixels, axis=1), z


def inside(pixels: np.ndarray) -> np.ndarray:
    """(N,) which pixels lie in the picture."""
    return ((pixels > 0) & (pixels < np.array(SIZE[::-1]) - 1)).all(axis=1)


@pytest.fixture(scope="module")
def clips() -> dict[str, np.ndarray]:
    """uint8 (F, H, W, 3) by camera."""
    decoded = {}
    for path in sorted(SCENE.glob("cam*.mp4")):
        with av.open(str(path)) as container:
            assert float(container.streams.video[0].average_rate) == 30
            frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        decoded[path.stem] = np.stack(frames)
    return decoded


@pytest.fixture(scope="module")
def cloud() -> tuple[np.ndarray, np.ndarray]:
    """Positions (N, 3) and colours (N, 3) in [0, 255]."""
    vertex = PlyData.read(SCENE / "points3D_downsample.ply")["vertex"]
    assert [str(p.val_dtype) for p in vertex.properties] == ["f4"] * 6 + ["u1"] * 3
    normals = np.stack([vertex[name] for name in ("nx", "ny", "nz")], axis=1)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-4)
    xyz = np.stack([vertex[name] for name in "xyz"], axis=1).astype(np.float64)
    rgb = np.stack([vertex[name] for name in ("red", "green", "blue")], axis=1)
    return xyz, rgb.astype(np.float64)


def test_the_folder_is_complete_and_small() -> None:
    files = sorted(SCENE.iterdir())
    expected = [*(f"{name}.mp4" for name in NAMES), "points3D_downsample.ply", "poses_bounds.npy"]
    assert [path.name for path in files] == expected
    assert sum(path.stat().st_size for path in files) < 4_000_000


def test_every_video_decodes_to_the_same_number_of_frames(clips: dict[str, np.ndarray]) -> None:
    assert list(clips) == NAMES
    assert {clip.shape for clip in clips.values()} == {(40, *SIZE, 3)}


def test_poses_are_rotations_and_the_held_out_camera_is_surrounded() -> None:
    cameras = decode_rows()
    assert len(cameras) == len(NAMES)
    centers = []
    for world_to_camera, focal, (near, far) in cameras:
        rotation = world_to_camera[:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-10)
        assert np.linalg.det(rotation) > 0
        assert 245 < focal < 260 and 1 < near < far < 8
        centers.append(-rotation.T @ world_to_camera[:3, 3])
    others = np.array(centers[1:])[:, :2] - centers[0][:2]
    for sign_x in (-1, 1):
        for sign_y in (-1, 1):
            assert (others * [sign_x, sign_y] > 0).all(axis=1).any()
    assert len({focal for _, focal, _ in cameras}) == len(cameras)


def test_points_lie_in_front_of_most_cameras(cloud: tuple[np.ndarray, np.ndarray]) -> None:
    xyz, _ = cloud
    assert 4000 <= len(xyz) <= 8000
    assert np.isfinite(xyz).all()
    seen = np.zeros(len(xyz))
    for camera in decode_rows():
        pixels, depth = project(camera, xyz)
        within = inside(pixels) & (depth > 0)
        near, far = camera[2]
        assert np.mean((depth[within] > near) & (depth[within] < far)) > 0.99
        seen += within
    assert np.mean(seen >= 2) > 0.99  # noise pushes a few over an edge
    assert np.mean(seen >= 10) > 0.7


def colour_gap(camera: tuple, image: np.ndarray, cloud: tuple[np.ndarray, np.ndarray]) -> float:
    """Median difference, in 8-bit levels, of the points' colours to the picture under them."""
    xyz, rgb = cloud
    pixels, depth = project(camera, xyz)
    keep = inside(pixels) & (depth > 0)
    x, y = np.round(pixels[keep]).astype(int).T
    return float(np.median(np.abs(image[y, x] - rgb[keep]).max(axis=1)))


def test_points_have_the_colours_of_the_first_frames(
    clips: dict[str, np.ndarray], cloud: tuple[np.ndarray, np.ndarray]
) -> None:
    for name, camera in zip(NAMES, decode_rows(), strict=True):
        image = clips[name][0].astype(np.float64)
        assert colour_gap(camera, image, cloud) < 12
        assert colour_gap(camera, image[:, ::-1], cloud) > 30


def test_much_of_the_picture_moves(clips: dict[str, np.ndarray]) -> None:
    held_out = clips["cam00"].astype(np.float64)
    ever = (np.ptp(held_out, axis=0).max(axis=-1) > 24).mean()
    assert 0.2 < ever < 0.5
    still = np.mean((held_out - held_out.mean(axis=0)) ** 2)
    assert 10 * np.log10(255**2 / still) < 24  # no static model can do better than this, in dB


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The maker as a command."""
    command = [sys.executable, str(ROOT / "script" / "make_demo_scene.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_maker_refuses_an_impossible_number_of_frames(tmp_path: Path) -> None:
    result = run_script("--frames", "0", "--out", str(tmp_path / "scene"))
    assert result.returncode == 2
    assert result.stderr.strip() == "error: --frames 0: give at least 1"
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def painter() -> Painter:
    """The software renderer at the demo's size."""
    pytest.importorskip("panda3d", reason="panda3d draws the demo scene; not needed to use it")
    from demo.stage.renderer import Painter

    return Painter(SIZE[1], SIZE[0])


def test_markers_land_where_the_poses_file_says(painter: Painter) -> None:
    from demo.stage.meshes import directions, surface
    from demo.stage.rig import build_rig

    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    offsets = []
    for point in rng.uniform([-1.0, -0.4, 3.2], [1.0, 0.9, 4.6], (6, 3)):
        marker = surface(
            lambda u, v, at=point: at + 0.05 * directions(u, v),
            lambda u, v: np.ones((len(u), 3)),
            (17, 33),
        )
        painter.show("marker", marker)
        for camera, row in zip(build_rig(0), decode_rows(), strict=True):
            image = painter.picture(camera)[..., 0]
            expected, _ = project(row, point[None])
            got = np.array([(image * columns).sum(), (image * rows).sum()]) / image.sum()
            offsets.append(got - expected[0])
    painter.show("marker", None)
    assert np.abs(offsets).max() < 0.3
    np.testing.assert_allclose(np.mean(offsets, axis=0), 0, atol=0.02)


def test_the_cloud_is_written_as_the_script_writes_it(tmp_path: Path) -> None:
    from demo.stage.cloud import PLY_DTYPE
    from scene.point_cloud import read_vertices, write_vertices

    columns = read_vertices(SCENE / "points3D_downsample.ply")
    assert {name: values.dtype for name, values in columns.items()} == {
        name: PLY_DTYPE[name] for name in PLY_DTYPE.names
    }
    write_vertices(tmp_path / "points.ply", columns)
    written = (tmp_path / "points.ply").read_bytes()
    assert written == (SCENE / "points3D_downsample.ply").read_bytes()


def test_the_files_are_those_that_the_script_makes(
    painter: Painter, clips: dict[str, np.ndarray]
) -> None:
    from demo.stage import actors, rig, room

    cameras, background = rig.build_rig(0), room.background(0)
    poses = np.load(SCENE / "poses_bounds.npy", allow_pickle=False)
    bounds = poses[:, 15:]
    np.testing.assert_allclose(rig.poses_bounds(cameras, bounds), poses, rtol=0, atol=1e-9)
    for frame, index in ((0, 0), (23, 7)):
        moment = frame / 39
        stage = {**background, **actors.cast(moment)}
        stage["floor"] = actors.shaded_floor(background["floor"], moment)
        for name, mesh in stage.items():
            painter.show(name, mesh)
        drawn = painter.picture(cameras[index]) * 255
        again = painter.picture(cameras[index]) * 255
        np.testing.assert_array_equal(drawn, again)
        error = np.mean((drawn - clips[NAMES[index]][frame]) ** 2)
        assert 10 * np.log10(255**2 / error) > 38
