"""pre_n3v.py on the demo scene: what it makes, what it skips, and how it refuses."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial import cKDTree

pytest.importorskip("pycolmap")

from arguments_MoDE.config import ModelParams
from scene.colmap import read_points
from scene.datasets import load_scene
from scene.frames import VideoFrames
from scene.point_cloud import read_ply
from scene.views import Scene
from script.pre_n3v import main
from utils.errors import UserError
from utils.images import list_images, read_image
from utils.video import read_video, write_video

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "demo/scene"
CLOUD = "points3D_downsample.ply"
QUICK = ["--endframe", "8", "--cloud_frames", "2", "--max_features", "2000"]


def footage(folder: Path, count: int = 14) -> Path:
    """The demo's first cameras, as they were filmed."""
    folder.mkdir(exist_ok=True)
    for path in sorted(DEMO.glob("cam*.mp4"))[:count]:
        shutil.copy(path, folder)
    np.save(folder / "poses_bounds.npy", np.load(DEMO / "poses_bounds.npy")[:count])
    return folder


def run(folder: Path, *flags: str) -> None:
    main(["--videopath", str(folder), *flags])


def small(folder: Path, *flags: str) -> None:
    run(folder, "--endframe", "2", "--cloud_frames", "1", "--max_features", "800", *flags)


def files(folder: Path) -> dict[str, int]:
    return {
        str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()
    }


def half_written(folder: Path) -> list[Path]:
    return [p for p in folder.rglob(".*") if p.name != ".steps"]


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    folder = footage(tmp_path_factory.mktemp("n3v") / "scene")
    run(folder, *QUICK)
    return folder


def test_everything_is_where_it_was_published_to_be(scene):
    assert sorted(p.name for p in (scene / "images").iterdir()) == [f"cam{i:02}" for i in range(14)]
    for i in range(14):
        names = [p.name for p in list_images(scene / f"images/cam{i:02}")]
        assert names == [f"{j:04}.png" for j in range(8)]
    for frame in ("colmap/frame_0000", "colmap/frame_0007"):
        for name in ("input", "input.db", "manual/images.txt", "distorted/sparse/points3D.bin"):
            assert (scene / frame / name).exists(), (frame, name)
    workspace = scene / "colmap/dense/workspace"
    assert (workspace / "fused.ply").exists() and len(list_images(workspace / "images")) == 14
    assert not half_written(scene)


def test_frames_are_the_videos(scene):
    for i in (0, 13):
        expected = next(read_video(scene / f"cam{i:02}.mp4", [5]))
        assert np.array_equal(read_image(scene / f"images/cam{i:02}/0005.png"), expected)


def test_points_are_at_the_demos_own(scene):
    found, known = read_ply(scene / CLOUD), read_ply(DEMO / CLOUD)
    distance, nearest = cKDTree(known.xyz).query(found.xyz)
    assert len(found) > 1000 and np.median(distance) < 0.1
    off = np.abs(found.rgb.astype(float) - known.rgb[nearest]).mean()
    assert off < 40


def test_the_scene_can_be_trained_on(scene):
    loaded = load_scene(ModelParams(source_path=str(scene)))
    assert len(loaded.train) == 13 * 8 and len(loaded.test) == 8
    assert sources(loaded) == {scene / f"images/cam{i:02}/0000.png" for i in range(14)}


def sources(loaded: Scene) -> set[Path]:
    """The videos, or the first frames, that a scene's pictures come from."""
    every = loaded.train[0].store.sources
    return {s.path if isinstance(s, VideoFrames) else s.paths[0] for s in every}


def test_the_frames_that_were_asked_for_are_those_that_training_reads(tmp_path):
    folder = footage(tmp_path)
    flags = ["--startframe", "4", "--endframe", "12", "--step", "2", "-r", "2"]
    run(folder, *flags, "--cloud_frames", "1", "--max_features", "800")
    view = load_scene(ModelParams(source_path=str(folder))).train[3]
    assert view.name == "cam01/0003" and view.camera.width == 128
    expected = next(read_video(folder / "cam01.mp4", [10], (128, 96)))
    assert np.array_equal(view.image().numpy(), expected)


def test_without_frames_after_all_those_of_an_earlier_run_are_left_aside(tmp_path):
    folder = footage(tmp_path, 4)
    shutil.copy(DEMO / CLOUD, folder)
    small(folder)
    scene = ModelParams(source_path=str(folder))
    assert load_scene(scene).frame_count == 2
    small(folder, "--no_frames")
    assert sources(load_scene(scene)) == {folder / f"cam0{i}.mp4" for i in range(4)}


def test_a_second_run_skips_everything(scene, capsys):
    before = files(scene)
    run(scene, *QUICK)
    said = capsys.readouterr().out
    assert files(scene) == before
    for step in ("frames", "triangulation of frame 7", "workspace", "cloud", "initial points"):
        assert f"{step}: done already" in said


def test_videos_that_were_deleted_are_not_missed(scene, tmp_path):
    shutil.copytree(scene, tmp_path / "copy")
    for path in (tmp_path / "copy").glob("cam*.mp4"):
        path.unlink()
    (tmp_path / "copy" / CLOUD).unlink()
    run(tmp_path / "copy", *QUICK)
    assert len(read_ply(tmp_path / "copy" / CLOUD)) == len(read_ply(scene / CLOUD))


def test_without_frames_training_reads_the_videos(tmp_path):
    small(footage(tmp_path, 4), "--no_frames")
    assert not (tmp_path / "images").exists() and (tmp_path / CLOUD).exists()
    loaded = load_scene(ModelParams(source_path=str(tmp_path)))
    assert sources(loaded) == {tmp_path / f"cam0{i}.mp4" for i in range(4)}


def test_points_that_somebody_else_made_are_kept_unless_asked(tmp_path, capsys):
    folder = footage(tmp_path, 4)
    shutil.copy(DEMO / CLOUD, folder)
    small(folder, "--no_frames")
    assert "keeping these 6000 points; --redo makes new ones" in capsys.readouterr().err
    assert (folder / CLOUD).read_bytes() == (DEMO / CLOUD).read_bytes()
    small(folder, "--no_frames", "--redo")
    assert (folder / CLOUD).read_bytes() != (DEMO / CLOUD).read_bytes()


def test_smaller_frames_as_jpegs(tmp_path):
    small(footage(tmp_path), "-r", "2", "--format", "jpg")
    with Image.open(tmp_path / "images/cam03/0001.jpg") as image:
        assert image.size == (128, 96) and image.format == "JPEG"
    lens = (tmp_path / "colmap/frame_0000/manual/cameras.txt").read_text().split()
    assert lens[1:4] == ["PINHOLE", "128", "96"]
    found, known = (
        read_points(tmp_path / "colmap/frame_0000/distorted/sparse"),
        read_ply(DEMO / CLOUD),
    )
    assert np.median(cKDTree(known.xyz).query(found.xyz)[0]) < 0.15


def test_folders_of_images_are_footage_too(tmp_path):
    footage(tmp_path, 3)
    for path in sorted(tmp_path.glob("cam*.mp4")):
        folder = tmp_path / path.stem
        folder.mkdir()
        for i, pixels in enumerate(read_video(path, [0, 1, 2])):
            Image.fromarray(pixels).save(folder / f"frame_{i}.png")
        path.unlink()
    small(tmp_path, "--startframe", "1", "--endframe", "3")
    names = [p.name for p in list_images(tmp_path / "images/cam02")]
    assert names == ["0000.png", "0001.png"] and (tmp_path / CLOUD).exists()
    first = read_image(tmp_path / "cam02/frame_1.png")
    assert np.array_equal(read_image(tmp_path / "images/cam02/0000.png"), first)


# ---- refusals -----------------------------------------------------------------------------------


def lose_poses(scene: Path) -> None:
    (scene / "poses_bounds.npy").unlink()


def lose_a_video(scene: Path) -> None:
    (scene / "cam01.mp4").unlink()


def cut_a_video(scene: Path) -> None:
    path = scene / "cam01.mp4"
    path.write_bytes(path.read_bytes()[:20_000])


def spoil_a_row(scene: Path) -> None:
    rows = np.load(scene / "poses_bounds.npy")
    rows[1, 3] = np.nan
    np.save(scene / "poses_bounds.npy", rows)


def change_a_rate(scene: Path) -> None:
    write_video(scene / "cam01.mp4", read_video(scene / "cam01.mp4", range(9)), 7)


def nothing(scene: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("spoil", "flags", "said"),
    [
        (lose_poses, [], "poses_bounds.npy"),
        (lose_a_video, [], "has 3 rows but there are 2 cameras (cam00, cam02)"),
        (cut_a_video, [], "cam01.mp4"),
        (spoil_a_row, [], "row 1 holds NaN"),
        (change_a_rate, [], "frames a second differ: cam01 7"),
        (nothing, ["--endframe", "999"], "--endframe 999: shorter than that"),
        (nothing, ["--startframe", "500"], "--startframe 500"),
        (nothing, ["-r", "3"], "--resolution 3: give 1, 2, 4 or 8"),
        (nothing, ["--dense", "on"], "--dense on: this COLMAP was built without CUDA"),
        (nothing, ["--colmap_bin", "/nowhere/colmap"], "--colmap_bin /nowhere/colmap"),
        (nothing, ["--threads", "0"], "--threads 0"),
        (nothing, ["--cloud_frames", "0"], "--cloud_frames 0"),
    ],
)
def test_wrong_use_is_refused_before_anything_is_written(tmp_path, spoil, flags, said):
    spoil(footage(tmp_path, 3))
    before = files(tmp_path)
    with pytest.raises(UserError) as error:
        run(tmp_path, *flags)
    assert said in str(error.value)
    assert files(tmp_path) == before and not (tmp_path / "images").exists()


def command(*words: str, **options) -> subprocess.CompletedProcess:
    program = [sys.executable, str(ROOT / "script/pre_n3v.py")]
    return subprocess.run([*program, *words], capture_output=True, text=True, **options)


def test_an_error_is_one_line_and_exit_code_2(tmp_path):
    done = command("--videopath", str(tmp_path / "nowhere"))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"error: {tmp_path / 'nowhere'}: no such folder\n"


def test_a_missing_pycolmap_is_told_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycolmap", None)  # importing it is now an ImportError
    footage(tmp_path, 3)
    with pytest.raises(UserError, match="pycolmap is not installed: pip install -r requirements-"):
        run(tmp_path)
    assert not (tmp_path / "images").exists()


def test_without_pycolmap_the_command_says_so_in_one_line(tmp_path):
    (tmp_path / "without").mkdir()
    (tmp_path / "without/pycolmap.py").write_text("raise ImportError('none here')")
    scene = footage(tmp_path / "scene", 3)
    done = command("--videopath", str(scene), env={"PYTHONPATH": str(tmp_path / "without")})
    assert done.returncode == 2 and done.stderr.startswith("error: pycolmap is not installed")
    assert len(done.stderr.splitlines()) == 1 and not (scene / "images").exists()


def test_help_names_every_group():
    done = command("--help")
    assert done.returncode == 0
    for word in ("--videopath", "--endframe", "--no_frames", "--format", "--dense", "--colmap_bin"):
        assert word in done.stdout
