"""script/pre_multiview.py: from videos to a trained scene, poses unknown or calibrated."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import footage
from arguments_MoDE.config import ModelParams
from scene.datasets import detect_format, load_scene
from script.pre_multiview import main
from script.preprocessing.frames import save_image
from utils.errors import UserError
from utils.video import read_video, write_video

pytest.importorskip("pycolmap")
pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
ROOT = Path(__file__).resolve().parents[2]
QUICK = ["--max_features", "3000", "--cloud_frames", "2", "--sfm_frames", "2"]


def _run(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def _load(folder: Path):
    return load_scene(ModelParams(source_path=str(folder), duration=0))


def _centres(scene) -> dict[str, np.ndarray]:
    views = [*scene.train, *scene.test]
    return {view.camera.name: view.camera.camera_center.double().numpy() for view in views}


@pytest.fixture(scope="module")
def filmed(tmp_path_factory):
    """(folder of videos, their cameras)."""
    pytest.importorskip("panda3d")
    folder = tmp_path_factory.mktemp("filmed") / "videos"
    return folder, footage.film(folder)


@pytest.fixture(scope="module")
def recovered(filmed, tmp_path_factory):
    """(scene folder, the true cameras, what the command printed)."""
    videos, cameras = filmed
    out = tmp_path_factory.mktemp("recovered") / "scene"
    done = _run("script/pre_multiview.py", videos, "--out", out, *QUICK)
    assert done.returncode == 0, done.stderr
    return out, cameras, done.stdout


@pytest.mark.slow
def test_camera_centres_are_recovered_within_one_per_cent_of_the_rig(recovered):
    out, cameras, _ = recovered
    found = _centres(_load(out))
    truth = np.stack([camera.center for camera in cameras])
    residuals = footage.similarity_residuals(np.stack([found[c.name] for c in cameras]), truth)
    size = np.linalg.norm(truth - truth.mean(axis=0), axis=1).max()
    assert residuals.max() < 0.01 * size


@pytest.mark.slow
def test_what_was_recovered_is_a_scene_with_a_report(recovered):
    out, cameras, printed = recovered
    assert detect_format(out).title == "multi-view"
    scene = _load(out)
    assert scene.camera_names == [camera.name for camera in cameras]
    assert scene.frame_count == footage.FRAMES and len(scene.points) > 500
    text = (out / "report.md").read_text()
    assert all(f"| {camera.name} |" in text for camera in cameras)
    assert (out / "report/rig.png").is_file() and (out / "report/cameras.jpg").is_file()
    assert "posed 7 of 7 cameras" in printed


WRITES = """
import sys
from pathlib import Path
from unittest.mock import MagicMock
from script import pre_multiview as made
made.load_scene = made.examine = made.draw_rig = made.poses_of = made.report = MagicMock()
made.report.as_markdown.return_value = "5.4\\xb0"
made.write_report(MagicMock(root=Path(sys.argv[1])), [], MagicMock(), [], MagicMock())
"""


def test_the_report_is_utf8_in_any_locale(tmp_path):
    words = [sys.executable, "-c", WRITES, str(tmp_path)]
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run(words, cwd=ROOT, env={**os.environ, **locale}, check=True)
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == "5.4\xb0"


@pytest.mark.slow
def test_a_second_run_makes_nothing_again(recovered, filmed):
    out, *_ = recovered
    before = {p: p.stat().st_mtime_ns for p in (out / "images").rglob("*.png")}
    done = _run("script/pre_multiview.py", filmed[0], "--out", out, *QUICK)
    assert done.returncode == 0 and "…" not in done.stdout
    assert before == {p: p.stat().st_mtime_ns for p in (out / "images").rglob("*.png")}


@pytest.mark.slow
def test_what_was_recovered_trains_and_renders(recovered, tmp_path):
    """The held-out camera is nearer to its picture than a picture of its mean colour is."""
    out, *_ = recovered
    run = tmp_path / "run"
    small = ["--iterations", 150, "--coarse_iterations", 100, "--max_points", 2000]
    recipe = "arguments_MoDE/demo/demo.py"
    trained = _run(
        "train_emb.py", "-s", out, "--expname", run, "--configs", recipe, "-r", 2, *small
    )
    assert trained.returncode == 0, trained.stderr[-2000:]
    rendered = _run("render_emb.py", "--model_path", run, "--skip_train", "--skip_video")
    assert rendered.returncode == 0, rendered.stderr[-2000:]
    results = json.loads(next((run / "test").glob("ours_*/metrics.json")).read_text())
    assert results["psnr"] > _psnr_of_mean_colour(_load(out).test)


def _psnr_of_mean_colour(views) -> float:
    """Of a picture that is the views' mean colour everywhere."""
    pixels = np.stack([view.image().numpy() for view in views]) / 255
    return -10 * np.log10(((pixels - pixels.mean(axis=(0, 1, 2))) ** 2).mean())


# Poses that are known


@pytest.fixture(scope="module")
def pose2sim() -> Path:
    """Four synchronised videos of a treadmill and their calibration, in an installed package."""
    try:
        files = importlib.metadata.distribution("pose2sim").files or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("real videos are not there: pip install --no-deps -r requirements-footage.txt")
    found = [f for f in files if f.match("Demo_SinglePerson/calibration/Calib.qca.txt")]
    return Path(found[0].locate()).parent.parent


@pytest.fixture(scope="module")
def calibrated(pose2sim, tmp_path_factory):
    """The scene that the command makes of the real videos, a quarter of the size."""
    out = tmp_path_factory.mktemp("calibrated") / "scene"
    words = ["--calibration", pose2sim / "calibration/Calib.qca.txt", "-r", 4, "--endframe", 16]
    done = _run("script/pre_multiview.py", pose2sim / "videos", "--out", out, *words, *QUICK)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_real_videos_with_a_calibration_become_a_scene(calibrated):
    scene = _load(calibrated)
    assert scene.camera_names == ["cam01", "cam02", "cam03", "cam04"]
    assert scene.frame_count == 16 and len(scene.points) >= 1000
    centres = _centres(scene)  # the file has them in millimetres
    assert np.allclose(centres["cam01"], [1.46023, -1.90916, 1.89651], atol=1e-4)
    assert np.allclose(centres["cam04"], [-3.75872, -1.41567, 1.88179], atol=1e-4)


# Bolts of the treadmill, found by eye: pixels in the undistorted pictures at a quarter of the size.
BOLTS = (
    dict(cam01=(14.8, 262.2), cam02=(103.2, 256.5), cam03=(226.5, 305.5), cam04=(218.8, 355.5)),
    dict(cam01=(125.2, 256.5), cam02=(204.2, 263.8), cam03=(128.8, 373.2), cam04=(79.8, 364.2)),
)


@pytest.mark.slow
@pytest.mark.parametrize("marks", BOLTS)
def test_four_calibrated_cameras_agree_about_where_a_bolt_is(calibrated, marks):
    """Within 5 pixels (this calibration's own accuracy), and on the floor: z = 0 by its origin."""
    scene = _load(calibrated)
    cameras = {view.camera.name: view.camera for view in [*scene.train, *scene.test]}
    point = _nearest_to_lines([_line(cameras[name], pixel) for name, pixel in marks.items()])
    assert abs(point[2]) < 0.03  # metres
    for name, pixel in marks.items():
        projected, depth = cameras[name].project(point[None])
        assert depth[0] > 0 and np.linalg.norm(projected[0] - pixel) < 5


def _line(camera, pixel) -> tuple[np.ndarray, np.ndarray]:
    """Start and direction, in the world, of what a pixel sees."""
    x, y = pixel[0] + 0.5 - camera.cx, pixel[1] + 0.5 - camera.cy
    ray = np.array([x / camera.fx, y / camera.fy, 1.0])
    return camera.camera_center.numpy(), camera.world_to_camera[:3, :3].numpy().T @ ray


def _nearest_to_lines(lines) -> np.ndarray:
    """(3,) the point with the least squared distance to lines (start, direction)."""
    a, b = np.zeros((3, 3)), np.zeros(3)
    for start, direction in lines:
        unit = direction / np.linalg.norm(direction)
        across = np.eye(3) - np.outer(unit, unit)
        a, b = a + across, b + across @ start
    return np.linalg.solve(a, b)


@pytest.mark.slow
def test_real_videos_train_and_render(calibrated, tmp_path):
    run = tmp_path / "run"
    small = ["--iterations", 40, "--coarse_iterations", 40, "--max_points", 3000, "-r", 2]
    recipe = "arguments_MoDE/demo/demo_hash.py"
    trained = _run("train_hash.py", "-s", calibrated, "--expname", run, "--configs", recipe, *small)
    assert trained.returncode == 0, trained.stderr[-2000:]
    rendered = _run("render_hash.py", "--model_path", run, "--skip_train", "--skip_video")
    assert rendered.returncode == 0, rendered.stderr[-2000:]
    results = json.loads(next((run / "test").glob("ours_*/metrics.json")).read_text())
    assert np.isfinite(results["psnr"]) and len(list(run.rglob("test/ours_*/renders/*.png"))) == 16


# Time


@pytest.mark.slow
def test_a_camera_that_was_started_late_is_found_and_put_right(pose2sim, tmp_path):
    """Of real videos, one copied without its first three frames."""
    videos = tmp_path / "videos"
    videos.mkdir()
    source = pose2sim / "videos"
    for name, late in (("cam01", 0), ("cam02", 3)):
        frames = list(read_video(source / "cam01.mp4", size=(272, 480)))[late : late + 60]
        write_video(videos / f"{name}.mp4", frames, 60)
    calibration = ["--calibration", pose2sim / "calibration/Calib.qca.txt"]
    out = tmp_path / "scene"
    words = ["script/pre_multiview.py", videos, "--out", out, *calibration, *QUICK]
    assert "cam02 -3" in _run(*words).stderr
    assert "cam02 -3; applied" in _run(*words, "--apply_offsets").stdout
    assert len(list((out / "images/cam02").iterdir())) == 57


# What can go wrong


@pytest.fixture
def small(tmp_path) -> Path:
    """Two short videos of noise: nothing can be matched."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        frames = [rng.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(4)]
        write_video(tmp_path / "in" / f"{name}.mp4", frames, 30)
    return tmp_path / "in"


def _refused(match: str, *words: object) -> None:
    with pytest.raises(UserError, match=match) as error:
        main([str(word) for word in words])
    assert "\n" not in str(error.value)


def test_help_says_what_it_makes():
    done = _run("script/pre_multiview.py", "--help")
    assert done.returncode == 0 and "report.md" in done.stdout and "--calibration" in done.stdout


def test_wrong_use_is_one_line_and_exit_code_two(tmp_path):
    done = _run("script/pre_multiview.py", tmp_path / "nothing")
    assert done.returncode == 2 and done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["-r", 3], "--resolution 3: give 1, 2, 4 or 8"),
        (["--focal", -1], "--focal -1.0: give a length"),
        (["--focal", "-1e3"], "--focal -1000.0: give a length"),
        (["--sfm_frames", 0], "--sfm_frames"),
        (["--cloud_frames", 0], "--cloud_frames 0: give at least 1"),
        (["--threads", 0], "--threads 0"),
        (["--endframe", 9], r"--endframe 9: shorter than that: .*a.mp4 \(4 frames\)"),
        (["--startframe", 4], "--startframe 4: leaves nothing"),
        (["--step", 0], "--step 0"),
        (["--dense", "on"], "--dense on: this COLMAP was built without CUDA"),
        (["--calibration", "nowhere.toml"], "--calibration nowhere.toml: no such file"),
        (["--colmap_bin", "/bin/true"], "is no COLMAP"),
    ],
)
def test_flags_that_mean_nothing_are_named(small, tmp_path, words, match):
    calibration = tmp_path / "c.toml"
    calibration.write_text(CALIBRATION)
    words = words if "--calibration" in words else [*words, "--calibration", calibration]
    _refused(match, small, "--out", tmp_path / "out", *words)
    assert not list(tmp_path.glob("out/points3D*")) and not list(tmp_path.glob("out/sparse"))


CALIBRATION = "".join(
    f"""
[{name}]
name = "{name}"
size = [64, 48]
matrix = [[60.0, 0.0, 31.5], [0.0, 60.0, 23.5], [0.0, 0.0, 1.0]]
distortions = [0.0, 0.0, 0.0, 0.0]
rotation = [0.0, 0.0, 0.0]
translation = [{-x}, 0.0, 2.0]
"""
    for name, x in (("a", 0.0), ("b", 0.2))
)


def test_cameras_that_nothing_connects_are_refused_with_a_remedy(small, tmp_path):
    _refused("no two cameras could be posed.*--calibration", small, "--out", tmp_path / "out")
    assert not list((tmp_path / "out").rglob(".partial-*"))  # nothing half-made


def test_frame_rates_that_differ_are_refused(small, tmp_path):
    frames = list(read_video(small / "a.mp4"))
    write_video(small / "c.mp4", frames, 25)
    _refused("frames a second differ: c 25, the others 30", small, "--out", tmp_path / "out")


def test_all_damaged_videos_are_named(small, tmp_path):
    for name in ("a", "b"):
        data = (small / f"{name}.mp4").read_bytes()
        (small / f"{name}.mp4").write_bytes(data[: len(data) // 2])
    _refused("a.mp4.*b.mp4", small, "--out", tmp_path / "out")


def test_footage_in_the_folder_that_frames_go_to_needs_another_place(small, tmp_path):
    for name in ("a", "b"):
        folder = tmp_path / "scene/images" / name
        folder.mkdir(parents=True)
        save_image(folder / "0.png", np.zeros((48, 64, 3), np.uint8))
    _refused("--out: missing", tmp_path / "scene")
