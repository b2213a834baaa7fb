"""Thinning a point cloud: how many are left, what they are, and what can go wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scene.point_cloud import read_ply, read_vertices, write_vertices
from script.downsample_point import cubes, fitting_size, main, merge
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def cloud_of(count: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    columns = {name: scale * rng.random(count).astype(np.float32) for name in "xyz"}
    columns |= {n: np.full(count, v, np.float32) for n, v in {"nx": 0, "ny": 0, "nz": 2}.items()}
    return columns | {
        n: rng.integers(0, 256, count).astype(np.uint8) for n in ("red", "green", "blue")
    }


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    path = tmp_path / "fused.ply"
    write_vertices(path, cloud_of(20_000))
    return path


@pytest.mark.parametrize("limit", [1, 7, 500, 19_999])
def test_no_more_points_than_asked_for_and_not_many_fewer(dense, tmp_path, limit):
    out = tmp_path / "out.ply"
    main([str(dense), str(out), "--max_points", str(limit)])
    count = len(read_ply(out))
    assert 0.5 * limit <= count <= limit


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_unit_of_length_does_not_matter(scale):
    columns = cloud_of(5000, scale)
    xyz = np.stack([columns[axis] for axis in "xyz"], axis=1).astype(np.float64)
    size = fitting_size(xyz, 1000, scale * 1e-6)
    assert 900 <= len(np.unique(cubes(xyz, size))) <= 1000


@pytest.mark.parametrize("more", [[], ["--voxel", "0.01"]])
def test_a_point_far_off_does_not_empty_the_rest(tmp_path, more):
    columns = cloud_of(20_000)
    columns["y"][7] = -1e6
    write_vertices(tmp_path / "a.ply", columns)
    main([str(tmp_path / "a.ply"), str(tmp_path / "out.ply"), "--max_points", "9000", *more])
    after = read_ply(tmp_path / "out.ply")
    assert 8000 <= len(after) <= 9000 and after.bbox[0, 1] == -1e6


def test_points_of_a_cube_become_their_mean():
    columns = {name: np.array([0.0, 0.2, 5.0]) for name in "xyz"}
    columns |= {"nx": np.array([1.0, 0, 0]), "ny": np.array([0.0, 1, 0]), "nz": np.zeros(3)}
    columns |= {name: np.array([10, 20, 200], np.uint8) for name in ("red", "green", "blue")}
    merged = merge(columns, 1.0)
    assert merged["x"].tolist() == pytest.approx([0.1, 5.0])
    assert merged["red"].tolist() == [15, 200]
    assert merged["nx"].tolist() == pytest.approx([0.5**0.5, 0]) and merged["nz"].tolist() == [0, 0]


def test_a_small_cloud_is_written_as_it_is(dense, tmp_path, capsys):
    out = tmp_path / "out.ply"
    main([str(dense), str(out)])
    before, after = read_vertices(dense), read_vertices(out)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert "20000 of 20000" in capsys.readouterr().out


def test_a_voxel_merges_even_what_is_small_enough(dense, tmp_path):
    out = tmp_path / "out.ply"
    main([str(dense), str(out), "--voxel", "0.5"])
    assert len(read_ply(out)) == 8


def test_ascii_without_normals_or_colours_gets_both(tmp_path):
    source, out = tmp_path / "a.ply", tmp_path / "out.ply"
    header = "ply\nformat ascii 1.0\nelement vertex 2\n"
    header += "".join(f"property double {axis}\n" for axis in "xyz")
    source.write_text(header + "end_header\n0 0 0\n1 2 3\n")
    main([str(source), str(out)])
    vertices = read_vertices(out)
    assert vertices["nz"].tolist() == [0, 0] and vertices["red"].tolist() == [128, 128]
    assert vertices["y"].tolist() == [0, 2]


def test_points_that_are_not_finite_are_left_out(tmp_path, capsys):
    columns = cloud_of(10)
    columns["y"][3] = np.nan
    write_vertices(tmp_path / "a.ply", columns)
    main([str(tmp_path / "a.ply"), str(tmp_path / "out.ply")])
    assert len(read_ply(tmp_path / "out.ply")) == 9
    assert "1 points that are not finite" in capsys.readouterr().out


def test_points_in_one_place_are_one(tmp_path):
    columns = {name: values[:1].repeat(50) for name, values in cloud_of(1).items()}
    write_vertices(tmp_path / "a.ply", columns)
    main([str(tmp_path / "a.ply"), str(tmp_path / "out.ply"), "--max_points", "5"])
    assert len(read_ply(tmp_path / "out.ply")) == 1


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--max_points", "0"], "--max_points is 0"),
        (["--voxel", "0"], "--voxel is 0"),
        (["--voxel", "-1e-3"], "--voxel is -0.001"),
        (["--voxel", "nan"], "--voxel is nan"),
        (["--voxel", "1e-19"], "--voxel 1e-19 is too small"),
    ],
)
def test_flags_out_of_range_are_refused(dense, tmp_path, flags, name):
    out = tmp_path / "out.ply"
    with pytest.raises(UserError, match=name):
        main([str(dense), str(out), *flags])
    assert not out.exists()


def test_an_output_that_is_no_ply_is_refused(dense, tmp_path):
    with pytest.raises(UserError, match="ending .ply"):
        main([str(dense), str(tmp_path / "out.txt")])
    (tmp_path / "folder.ply").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        main([str(dense), str(tmp_path / "folder.ply")])


def test_a_cut_file_is_one_line_and_leaves_nothing(dense, tmp_path):
    dense.write_bytes(dense.read_bytes()[:-100])
    before = sorted(tmp_path.iterdir())
    command = [sys.executable, str(ROOT / "script" / "downsample_point.py")]
    done = subprocess.run(
        [*command, str(dense), str(tmp_path / "out.ply")], capture_output=True, text=True
    )
    assert done.returncode == 2 and "fused.ply" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and sorted(tmp_path.iterdir()) == before


def test_a_cloud_without_a_point_is_refused(tmp_path):
    write_vertices(tmp_path / "a.ply", {n: v[:0] for n, v in cloud_of(1).items()})
    with pytest.raises(UserError, match="no finite point"):
        main([str(tmp_path / "a.ply"), str(tmp_path / "out.ply")])


def test_a_real_cloud(shared_data, tmp_path):
    source = shared_data / "dnerf_mujoco" / "scene7_deformation" / "fused.ply"
    out = tmp_path / "out.ply"
    main([str(source), str(out), "--max_points", "4000"])
    before, after = read_ply(source), read_ply(out)
    assert 3500 <= len(after) <= 4000
    assert np.abs(before.xyz.mean(0) - after.xyz.mean(0)).max() < 0.02 * np.ptp(before.xyz)
