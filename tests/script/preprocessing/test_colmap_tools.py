"""COLMAP's steps: models written and read back, and a program in place of the package."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

pycolmap = pytest.importorskip("pycolmap")

from scene.cameras import Camera  # noqa: E402
from scene.colmap import read_model, read_points  # noqa: E402
from scene.point_cloud import PointCloud, read_ply  # noqa: E402
from script.pre_n3v import main  # noqa: E402
from script.preprocessing.colmap_tools import (  # noqa: E402
    ColmapProgram,
    Features,
    PosedImage,
    Pycolmap,
    quaternion,
    write_model,
)
from utils.errors import UserError  # noqa: E402

DEMO = Path(__file__).resolve().parents[3] / "demo/scene"
CAMERAS = 6

# ---- models -------------------------------------------------------------------------------------

HALF_TURNS = [np.diag(d) for d in ([1.0, -1, -1], [-1.0, 1, -1], [-1.0, -1, 1])]
HALF_TURNS += [Rotation.from_rotvec(np.pi * np.array(a) / 3**0.5).as_matrix()
               for a in ([1, 1, 1], [1, -1, 1], [-1, 1, 1])]  # fmt: skip


@pytest.mark.parametrize(
    "rotation",
    [np.eye(3), *HALF_TURNS, *Rotation.random(20, random_state=0).as_matrix()],
)
def test_quaternions_are_scipys(rotation):
    found = np.array(quaternion(rotation))
    x, y, z, w = Rotation.from_matrix(rotation).as_quat()
    assert abs(found @ [w, x, y, z]) == pytest.approx(1, abs=1e-12)  # either sign is the rotation
    assert found[0] >= 0 and np.linalg.norm(found) == pytest.approx(1)


def test_a_matrix_that_is_nearly_a_rotation_gives_the_nearest():
    rotation = Rotation.from_rotvec([0.3, -1, 2]).as_matrix()
    noisy = rotation + 1e-4 * np.random.default_rng(0).standard_normal((3, 3))
    w, x, y, z = quaternion(noisy)
    found = Rotation.from_quat([x, y, z, w]).as_matrix()
    u, _, vt = np.linalg.svd(noisy)
    assert np.abs(found - u @ vt).max() < 1e-6


def posed() -> list[PosedImage]:
    found = []
    for i, turn in enumerate([*HALF_TURNS[:2], Rotation.from_rotvec([0.2, 0.4, -1]).as_matrix()]):
        pose = torch.eye(4)
        pose[:3, :3] = torch.from_numpy(turn)
        pose[:3, 3] = torch.tensor([0.1 * i, -1, 3.3])
        camera = Camera(f"cam{i}", 64 + i, 48, 50.5 + i, 51.25, 31 + i / 3, 24.5, pose)
        found.append(PosedImage(f"cam{i}.png", camera))
    return found


def test_a_model_is_read_back_by_us_and_by_colmap(tmp_path):
    images = posed()
    numbers = {"cam0.png": (3, 7), "cam1.png": (1, 9), "cam2.png": (2, 8)}
    cloud = PointCloud(
        np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32),
        np.arange(15, dtype=np.uint8).reshape(5, 3),
    )
    write_model(tmp_path / "m", images, numbers, cloud)
    ours, theirs = read_model(tmp_path / "m"), pycolmap.Reconstruction(tmp_path / "m")
    assert np.array_equal(ours.points.xyz, cloud.xyz) and np.array_equal(ours.points.rgb, cloud.rgb)
    assert theirs.num_points3D() == 5
    for read, (name, camera) in zip(ours.images, ((p.name, p.camera) for p in images), strict=True):
        number, lens_number = numbers[name]
        w2c = camera.world_to_camera.numpy()
        assert read.name == name and read.camera_id == lens_number
        assert np.linalg.inv(read.camera_to_world()) == pytest.approx(w2c, abs=1e-6)
        image = theirs.images[number]
        assert image.name == name and image.camera_id == lens_number
        assert image.cam_from_world().matrix() == pytest.approx(w2c[:3], abs=1e-6)
        lens = theirs.cameras[lens_number]
        assert (lens.model_name, lens.width, lens.height) == (
            "PINHOLE", camera.width, camera.height
        )  # fmt: skip
        assert lens.params.tolist() == [camera.fx, camera.fy, camera.cx, camera.cy]
        assert ours.cameras[lens_number].params == tuple(lens.params)


# ---- a program ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """A `colmap` that pycolmap works for."""
    path = tmp_path_factory.mktemp("bin") / "colmap"
    code = (Path(__file__).parent / "fake_colmap.py").read_text()
    path.write_text(f"#!{sys.executable}\n{code}")
    path.chmod(0o755)
    return path


def scene_in(folder: Path) -> Path:
    for path in sorted(DEMO.glob("cam*.mp4"))[:CAMERAS]:
        shutil.copy(path, folder)
    np.save(folder / "poses_bounds.npy", np.load(DEMO / "poses_bounds.npy")[:CAMERAS])
    return folder


def prepare(folder: Path, *flags: object) -> None:
    main(
        ["--videopath", str(folder), "--no_frames", "--endframe", "3", "--cloud_frames", "1"]
        + ["--max_features", "1500", *map(str, flags)]
    )


@pytest.fixture(scope="module")
def by_package(tmp_path_factory) -> int:
    """Number of points that pycolmap triangulates."""
    folder = scene_in(tmp_path_factory.mktemp("package"))
    prepare(folder)
    return len(read_points(folder / "colmap/frame_0000/distorted/sparse"))


def test_the_packages_fusion_leaves_a_cloud_and_nothing_else(tmp_path, by_package, monkeypatch):
    """Without depth maps, which need CUDA, the cloud is empty; what it is called is to be seen."""
    prepare(scene_in(tmp_path))
    monkeypatch.setattr(pycolmap, "patch_match_stereo", lambda workspace: None)
    Pycolmap(Features()).stereo(tmp_path / "colmap/dense/workspace", tmp_path / "fused.ply")
    header = (tmp_path / "fused.ply").read_bytes()
    assert header.startswith(b"ply") and b"property float nx" in header
    assert not list(tmp_path.glob("*.vis"))


@pytest.mark.parametrize("version", ["", "older"])
def test_a_program_gives_as_many_points_as_the_package(
    tmp_path, program, by_package, monkeypatch, version
):
    monkeypatch.setenv("FAKE_COLMAP", version)
    prepare(scene_in(tmp_path), "--colmap_bin", program)
    points = len(read_points(tmp_path / "colmap/frame_0000/distorted/sparse"))
    assert by_package > 200 and points == pytest.approx(by_package, rel=0.05)
    assert (tmp_path / "colmap/dense/workspace/images/cam00.png").exists()
    log = (tmp_path / "colmap/colmap.log").read_text()
    commands = ("feature_extractor", "exhaustive_matcher", "point_triangulator",
                "image_undistorter")  # fmt: skip
    assert all(f" {command} --" in log for command in commands)
    names = {p.name for p in (tmp_path / "colmap/frame_0000").iterdir()}
    assert names == {"input", "input.db", "manual", "distorted"}


def test_with_cuda_the_cloud_is_dense_stereos(tmp_path, program, monkeypatch):
    monkeypatch.setenv("FAKE_COLMAP", "cuda")
    prepare(scene_in(tmp_path), "--colmap_bin", program)
    workspace = tmp_path / "colmap/dense/workspace"
    assert len(read_ply(workspace / "fused.ply")) == 3
    cloud = read_ply(tmp_path / "points3D_downsample.ply")
    assert cloud.xyz[:, 0].tolist() == [0, 1, 2] and cloud.rgb[2].tolist() == [2, 20, 30]
    assert not [p for p in workspace.iterdir() if p.name[0] == "." or p.suffix == ".vis"]


def test_dense_stereo_can_be_left_out(tmp_path, program, monkeypatch):
    monkeypatch.setenv("FAKE_COLMAP", "cuda fail=patch_match_stereo")
    prepare(scene_in(tmp_path), "--colmap_bin", program, "--dense", "off")
    assert len(read_ply(tmp_path / "points3D_downsample.ply")) > 200


@pytest.mark.parametrize(
    ("command", "gone"),
    [
        ("exhaustive_matcher", "colmap/frame_0000"),
        ("image_undistorter", "colmap/dense/workspace"),
        ("stereo_fusion", "colmap/dense/workspace/fused.ply"),
    ],
)
def test_a_failure_is_one_line_with_the_log_and_nothing_half(
    tmp_path, program, monkeypatch, command, gone
):
    monkeypatch.setenv("FAKE_COLMAP", f"cuda fail={command}")
    with pytest.raises(UserError) as error:
        prepare(scene_in(tmp_path), "--colmap_bin", program)
    said, log = str(error.value), tmp_path / "colmap/colmap.log"
    assert f"{command}: failed with exit code 1 (ERROR: the disk is über-full)" in said
    assert said.endswith(str(log)) and "a line before it" in log.read_text()
    assert not (tmp_path / gone).exists()
    left = list((tmp_path / "colmap").rglob(".*"))
    assert not left and not (tmp_path / "points3D_downsample.ply").exists()
    monkeypatch.setenv("FAKE_COLMAP", "cuda")
    prepare(tmp_path, "--colmap_bin", program)
    assert (tmp_path / "points3D_downsample.ply").exists()


def written(tmp_path: Path, text: str, mode: int) -> Path:
    path = tmp_path / "program"
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        (None, 0, "cannot be run"),
        ("#!/bin/sh\necho COLMAP", 0o644, "cannot be run"),
        ("COLMAP", 0o755, "cannot be run"),
        ("#!/bin/sh\necho something else", 0o755, "is no COLMAP"),
        ("#!/bin/sh\nprintf '\\377\\376'", 0o755, "is no COLMAP"),
    ],
)
def test_what_is_no_colmap_is_refused_before_any_work(tmp_path, text, mode, said):
    path = tmp_path / "program" if text is None else written(tmp_path, text, mode)
    folder = tmp_path / "scene"
    folder.mkdir()
    before = sorted(scene_in(folder).rglob("*"))
    with pytest.raises(UserError, match=f"--colmap_bin {path}: {said}"):
        main(["--videopath", str(folder), "--colmap_bin", str(path)])
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("banner", "cuda"),
    [("with CUDA", True), ("without CUDA", False), ("no word of it", False)],
)
def test_the_banner_tells_of_cuda(tmp_path, banner, cuda):
    path = written(tmp_path, f"#!/bin/sh\necho 'COLMAP 3.9 (Commit x {banner})'", 0o755)
    assert ColmapProgram(str(path), Features(), tmp_path / "log").has_cuda is cuda
