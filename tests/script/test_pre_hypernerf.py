"""Initial points of a moving camera: where the surfaces are, straight lenses or bent ones."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("pycolmap", reason="pip install -r requirements-preprocess.txt")

from demo_layouts import demo_camera, demo_frames, distances, hypernerf

from arguments_MoDE.config import ModelParams
from scene import load_scene
from scene.cameras import Camera, camera_from_pose
from scene.colmap import read_points
from scene.point_cloud import write_ply
from script import pre_hypernerf
from script.pre_hypernerf import choose_pairs, find_photos, main
from script.preprocessing.colmap_tools import Features, find_tools
from utils.errors import UserError
from utils.images import read_image

ROOT = Path(__file__).resolve().parents[2]
COUNT = 20  # images, of which 16 are to train on
SPARSE = "colmap/posed/distorted/sparse"
CLOUD = "points3D_downsample.ply"


def state(root: Path) -> dict[str, tuple[int, int]]:
    """Every file but the stamps, with what tells that it was written again."""
    files = [p for p in root.rglob("*") if p.is_file() and ".steps" not in p.parts]
    return {str(p.relative_to(root)): (p.stat().st_ino, p.stat().st_mtime_ns) for p in files}


def run(root: Path, *flags: str) -> None:
    main(["--videopath", str(root), *flags])


def triangulated(root: Path) -> np.ndarray:
    """Distances from the surfaces of the points that COLMAP found."""
    write_ply(root / "triangulated.ply", read_points(root / SPARSE))
    return distances(root / "triangulated.ply")


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """The demo as a capture, with nothing made of it."""
    root = tmp_path_factory.mktemp("template") / "capture"
    hypernerf(root, COUNT)
    return root


@pytest.fixture
def scene(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "capture"))


@pytest.fixture(scope="module")
def prepared(template: Path, tmp_path_factory) -> Path:
    """The same, prepared; tests only look at it."""
    root = Path(shutil.copytree(template, tmp_path_factory.mktemp("prepared") / "capture"))
    run(root)
    return root


# ---- what is made -------------------------------------------------------------------------------


def test_points_lie_on_the_surfaces(prepared):
    found = triangulated(Path(prepared))
    assert len(found) > 700
    assert np.median(found) < 0.08 and np.percentile(found, 90) < 0.4  # of a scene 4 units wide


def test_only_images_to_train_on_are_taken(prepared):
    held_out = json.loads((prepared / "dataset.json").read_text())["val_ids"]
    taken = {path.stem for path in (prepared / "colmap" / "posed" / "input").iterdir()}
    assert len(taken) == 16 and taken.isdisjoint(held_out)


def test_every_step_leaves_its_files(prepared):
    for name in ("posed/input.db", "posed/manual/images.txt", "dense/workspace/fused.ply"):
        assert (prepared / "colmap" / name).is_file(), name
    assert [p.name for p in prepared.iterdir() if p.name[0] == "."] == [".steps"]


def test_the_capture_loads(prepared):
    loaded = load_scene(ModelParams(source_path=str(prepared)))
    assert (loaded.kind, len(loaded.train), len(loaded.test)) == ("hypernerf", 16, 4)
    assert len(loaded.points) > 1000


def test_a_second_run_does_nothing(prepared, capsys):
    before = state(prepared)
    run(prepared)
    assert state(prepared) == before
    assert " …" not in capsys.readouterr().out


def test_listed_pairs_give_the_points_as_well(scene, monkeypatch, capsys):
    monkeypatch.setattr(pre_hypernerf, "EXHAUSTIVE", 5)
    monkeypatch.setattr(pre_hypernerf, "NEIGHBOURS", 3)
    run(scene, "--max_points", "500")
    pairs = (scene / "colmap" / "posed" / "pairs.txt").read_text().splitlines()
    assert f"matching {len(pairs)} pairs" in capsys.readouterr().out and 16 < len(pairs) < 120
    found = triangulated(scene)
    assert len(found) > 400 and np.median(found) < 0.08
    assert len(load_scene(ModelParams(source_path=str(scene))).points) <= 500


def test_bent_pictures_are_undistorted_first(tmp_path, capsys):
    hypernerf(tmp_path / "a", COUNT, k1=0.15)
    run(tmp_path / "a")
    assert "lenses: distorted by up to 9" in capsys.readouterr().out
    found = triangulated(tmp_path / "a")
    assert len(found) > 700
    assert np.median(found) < 0.08 and np.percentile(found, 90) < 0.4


@pytest.mark.parametrize("k1", [0.15, -0.25])
def test_undistorted_pictures_are_what_a_pinhole_would_show(tmp_path, k1):
    hypernerf(tmp_path / "a", 3, k1=k1)
    photos = find_photos(tmp_path / "a", ModelParams.images, 200)
    bent, straight = read_image(photos.paths[0]), demo_frames(0)[0]
    camera, truth = photos.cameras[0], demo_camera(0)
    assert camera.fx == pytest.approx(truth.fx) and camera.width != truth.width
    assert torch.allclose(camera.world_to_camera, truth.world_to_camera, atol=1e-6)
    y, x = np.mgrid[: camera.height, : camera.width]
    x = np.rint(x + truth.cx - camera.cx).astype(int)  # where the same ray is in the straight one
    y = np.rint(y + truth.cy - camera.cy).astype(int)
    inside = (x >= 0) & (x < truth.width) & (y >= 0) & (y < truth.height)
    found = next(photos.read([0]))[inside].astype(float)
    wanted, before = (p[y[inside], x[inside]].astype(float) for p in (straight, bent))
    assert np.abs(found - wanted).mean() < 0.6 * np.abs(before - wanted).mean()


def test_too_few_points_are_made_up_for(scene, capsys):
    run(scene, "--max_images", "4", "--max_features", "64")
    said = capsys.readouterr()
    assert "20000 sampled" in said.out and "could be triangulated" in said.err
    assert len(load_scene(ModelParams(source_path=str(scene))).points) >= 20_000


def test_a_cloud_that_goes_first_is_mentioned(scene, capsys):
    write_ply(scene / "points3D_downsample2.ply", load_cloud())
    run(scene, "--max_images", "4", "--max_features", "64")
    assert f"points3D_downsample2.ply: is read before {CLOUD}" in capsys.readouterr().err


def load_cloud():
    from scene.point_cloud import read_ply

    return read_ply(ROOT / "demo" / "scene" / CLOUD)


# ---- which pairs --------------------------------------------------------------------------------


def circle(count: int) -> list[Camera]:
    """Cameras all around the origin, which they look at."""
    cameras = []
    for i in range(count):
        c, s = np.cos(2 * np.pi * i / count), np.sin(2 * np.pi * i / count)
        pose = np.eye(4)
        pose[:3, :3] = [[c, 0, -s], [0, 1, 0], [s, 0, c]]
        pose[:3, 3] = -4 * pose[:3, 2]
        cameras.append(camera_from_pose(f"{i}", (64, 48), (50, 50, 32, 24), pose))
    return cameras


def test_few_images_are_all_matched():
    assert choose_pairs(circle(60)) is None


def test_many_images_are_matched_with_those_that_show_the_same():
    cameras = circle(200)
    pairs = choose_pairs(cameras)
    assert len(set(pairs)) == len(pairs) < 200 * 24 and all(a < b for a, b in pairs)
    assert {(i, i + 1) for i in range(199)} < set(pairs)
    apart = [min(b - a, 200 - b + a) for a, b in pairs]
    assert 20 <= max(apart) <= 25  # within 45 degrees, and not only the nearest
    assert (0, 199) in pairs  # neighbours in space, at both ends of the clip


def test_a_colmap_program_is_given_the_list_of_pairs(tmp_path):
    program = tmp_path / "colmap"
    program.write_text(f'#!/bin/sh\necho COLMAP\necho "$@" >> {tmp_path}/said\n')
    program.chmod(0o755)
    tools = find_tools(str(program), Features(), tmp_path / "colmap.log")
    tools.match(tmp_path / "input.db", tmp_path / "pairs.txt")
    tools.match(tmp_path / "input.db")
    said = [line for line in (tmp_path / "said").read_text().splitlines() if "database" in line]
    assert said[0].startswith("matches_importer") and said[1].startswith("exhaustive_matcher")
    assert f"--match_list_path {tmp_path / 'pairs.txt'} --match_type pairs" in said[0]
    assert "match_list_path" not in said[1]


# ---- wrong use ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max_images", "1"], "--max_images 1"),
        (["--max_points", "0"], "--max_points 0"),
        (["--images", "rgb/9x"], "--images rgb/9x"),
        (["--colmap_bin", "/nowhere/colmap"], "--colmap_bin /nowhere/colmap: cannot be run"),
    ],
)
def test_flags_that_mean_nothing_are_refused(scene, flags, message):
    with pytest.raises(UserError, match=message):
        run(scene, *flags)
    assert not (scene / CLOUD).exists()


def cut_image(scene: Path) -> None:
    path = scene / "rgb" / "2x" / "000003.png"
    path.write_bytes(path.read_bytes()[:-2000])


def damage_image(scene: Path) -> None:
    path = scene / "rgb" / "2x" / "000003.png"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


def one_image(scene: Path) -> None:
    ids = {"ids": ["000000"], "train_ids": ["000000"], "val_ids": ["000001"]}
    (scene / "dataset.json").write_text(json.dumps(ids))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: (s / "dataset.json").unlink(), "has no dataset.json"),
        (lambda s: (s / "metadata.json").unlink(), "metadata.json"),
        (lambda s: (s / "camera" / "000003.json").unlink(), "000003.json"),
        (lambda s: (s / "rgb" / "2x" / "000003.png").unlink(), r"000003\.png: missing"),
        (cut_image, r"000003\.png: not a whole image"),
        (damage_image, r"000003\.png: not a whole image"),
        (one_image, "one image to train on"),
    ],
)
def test_a_capture_that_is_not_whole_is_one_line(scene, change, message):
    change(scene)
    with pytest.raises(UserError, match=message):
        run(scene)
    assert not (scene / CLOUD).exists()
    assert not list(scene.rglob(".partial-*"))


def test_dense_stereo_without_cuda_is_refused(scene):
    import pycolmap

    if pycolmap.has_cuda:
        pytest.skip("this pycolmap has CUDA")
    with pytest.raises(UserError, match="--dense on"):
        run(scene, "--dense", "on")


def test_the_reader_names_the_command(scene):
    with pytest.raises(UserError, match=r"script/pre_hypernerf\.py --videopath"):
        load_scene(ModelParams(source_path=str(scene)))


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--help"], 0, "--max_images"),
        (["--videopath", "/nowhere/chicken"], 2, "error: /nowhere/chicken: no such folder"),
        ([], 2, "--videopath"),
    ],
)
def test_the_command_itself(arguments, code, text):
    command = [sys.executable, str(ROOT / "script" / "pre_hypernerf.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert done.returncode == code and text in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
