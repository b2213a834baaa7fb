"""`train_emb.py` as a user runs it, on the demo scene cut down to a few tiny frames."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import train_emb
from training.checkpoint import saved_iterations
from utils.errors import cli
from utils.video import read_video

SMALL = ["-r", "64", "-d", "4", "--max_points", "400", "--densify_until_iter", "0", "--quiet"]
SHORT = ["--coarse_iterations", "4", "--iterations", "6", "--device", "cpu"]


@pytest.fixture(scope="module")
def scene_folder(root) -> Path:
    return root / "demo" / "scene"


@pytest.fixture
def copy(scene_folder, tmp_path) -> Path:
    """The demo scene with three cameras, to be damaged."""
    folder = tmp_path / "scene"
    folder.mkdir()
    for name in ("cam00.mp4", "cam01.mp4", "cam02.mp4", "points3D_downsample.ply"):
        shutil.copy(scene_folder / name, folder / name)
    poses = np.load(scene_folder / "poses_bounds.npy")
    np.save(folder / "poses_bounds.npy", poses[:3])
    return folder


def train(source: Path, out: Path, *more: str) -> int:
    return train_emb.main(["-s", str(source), "--expname", str(out), *SMALL, *SHORT, *more])


def fails(capsys, source: Path, out: Path, *more: str) -> str:
    """Runs the command, expects exit code 2, one line and no run folder; returns the line."""
    with pytest.raises(SystemExit) as stop:
        cli(lambda _: train(source, out, *more))
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and lines[-1] == errors[0], lines
    assert not out.exists()
    return errors[0]


def test_training_leaves_a_run_that_says_it_is_complete(copy, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(copy, out, "--save_iterations", "3") == 0
    assert saved_iterations(out) == [3, 6]
    saved = json.loads((out / "config.json").read_text())
    assert saved["OptimizationParams"]["iterations"] == 6
    capsys.readouterr()
    assert train(copy, out, "--save_iterations", "3") == 0
    assert "already trained" in capsys.readouterr().out


def test_a_run_folder_in_use_is_not_overwritten_unasked(copy, tmp_path, capsys):
    out = tmp_path / "run"
    train(copy, out)
    with pytest.raises(SystemExit):
        cli(lambda _: train(copy, out, "--feature_lr", "0.1"))
    assert "--overwrite" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli(lambda _: train(copy, out, "--feature_lr", "0.1", "--resume"))
    assert "feature_lr is 0.1" in capsys.readouterr().err
    (out / "gates.json").write_text("{}")  # of rendering
    assert train(copy, out, "--feature_lr", "0.1", "--overwrite") == 0
    assert not (out / "gates.json").exists()


def test_an_unfinished_run_is_resumed_to_the_same_model(copy, tmp_path):
    straight, resumed = tmp_path / "a", tmp_path / "b"
    train(copy, straight)
    train(copy, resumed, "--checkpoint_iterations", "3")
    shutil.rmtree(resumed / "point_cloud")  # as if it had been stopped after iteration 3
    train(copy, resumed, "--checkpoint_iterations", "3", "--resume")
    name = Path("point_cloud") / "iteration_6" / "point_cloud.ply"
    assert (straight / name).read_bytes() == (resumed / name).read_bytes()


def test_static_trains_without_experts(copy, tmp_path):
    out = tmp_path / "run"
    assert train(copy, out, "--static") == 0
    manifest = json.loads((out / "point_cloud" / "iteration_6" / "manifest.json").read_text())
    assert "embedding" not in manifest["per_gaussian"]


def test_help_explains_itself(root):
    done = subprocess.run(
        [sys.executable, "train_emb.py", "--help"], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0
    for flag in ("--source_path", "--configs", "--expname", "--device", "--resume", "--static"):
        assert flag in done.stdout


def test_missing_folder(tmp_path, capsys):
    assert "nowhere" in fails(capsys, tmp_path / "nowhere", tmp_path / "run")


def test_unknown_scene_type_lists_what_was_looked_for(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    line = fails(capsys, tmp_path / "empty", tmp_path / "run")
    for looked_for in ("poses_bounds.npy", "transforms_train.json", "train_meta.json"):
        assert looked_for in line


def test_wrong_recipe_key_names_the_nearest(copy, tmp_path, capsys):
    recipe = tmp_path / "mine.py"
    recipe.write_text("OptimizationParams = dict(itterations=5)\n")
    assert "iterations" in fails(capsys, copy, tmp_path / "run", "--configs", str(recipe))


def test_unknown_device(copy, tmp_path, capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has the GPU that the test wants to be missing")
    assert "--device" in fails(capsys, copy, tmp_path / "run", "--device", "cuda")


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def test_corrupt_video(copy, tmp_path, capsys):
    cut(copy / "cam01.mp4")
    assert "cam01.mp4" in fails(capsys, copy, tmp_path / "run")


def test_poses_with_the_wrong_number_of_rows(copy, tmp_path, capsys):
    poses = np.load(copy / "poses_bounds.npy")
    np.save(copy / "poses_bounds.npy", poses[:2])
    line = fails(capsys, copy, tmp_path / "run")
    assert "poses_bounds.npy" in line and "2" in line and "3" in line


def test_nan_poses(copy, tmp_path, capsys):
    poses = np.load(copy / "poses_bounds.npy")
    poses[1, 3] = np.nan
    np.save(copy / "poses_bounds.npy", poses)
    assert "poses_bounds.npy" in fails(capsys, copy, tmp_path / "run")


def test_empty_point_cloud(copy, tmp_path, capsys):
    (copy / "points3D_downsample.ply").write_text(
        "ply\nformat ascii 1.0\nelement vertex 0\nproperty float x\nproperty float y\n"
        "property float z\nproperty uchar red\nproperty uchar green\nproperty uchar blue\n"
        "end_header\n"
    )
    assert "points3D_downsample.ply" in fails(capsys, copy, tmp_path / "run")


def test_half_a_jpeg(copy, tmp_path, capsys):
    from PIL import Image

    for cam in ("cam00", "cam01", "cam02"):
        folder = copy / "images" / cam
        folder.mkdir(parents=True)
        (copy / f"{cam}.mp4").unlink()
        for i in range(3):
            noise = np.random.default_rng(i).integers(0, 255, (48, 64, 3)).astype(np.uint8)
            Image.fromarray(noise).save(folder / f"{i:04d}.jpg")
    cut(copy / "images" / "cam02" / "0001.jpg")
    line = fails(capsys, copy, tmp_path / "run")
    assert "cam02" in line and "0001.jpg" in line


def test_a_failing_overwrite_leaves_the_old_run_alone(copy, tmp_path, capsys):
    out = tmp_path / "run"
    train(copy, out)
    (copy / "points3D_downsample.ply").unlink()
    with pytest.raises(SystemExit):
        cli(lambda _: train(copy, out, "--overwrite"))
    assert saved_iterations(out) == [6]


def test_overwriting_removes_only_what_runs_write(copy, tmp_path):
    out = tmp_path / "run"
    train(copy, out)
    (out / "test").mkdir()
    (out / "test" / "mine.png").write_text("not ours")
    train(copy, out, "--overwrite")
    assert (out / "test" / "mine.png").exists()


def test_overwriting_leaves_no_curves_and_no_origin_of_the_old_run(copy, tmp_path):
    out = tmp_path / "run"
    train(copy, out)
    old = [out / name for name in ("events.out.tfevents.1.host.2", "distill.json", "import.json")]
    for path in old:
        path.write_text("{}")
    (out / "events.txt").write_text("not ours")
    train(copy, out, "--overwrite")
    assert not any(path.exists() for path in old) and (out / "events.txt").exists()


def test_the_scene_folder_is_no_run_folder(copy, capsys):
    with pytest.raises(SystemExit):
        cli(lambda _: train(copy, copy, "--overwrite"))
    assert "holds the scene itself" in capsys.readouterr().err


def test_a_file_is_no_run_folder(copy, tmp_path, capsys):
    (tmp_path / "run").write_text("")
    with pytest.raises(SystemExit) as stop:
        cli(lambda _: train(copy, tmp_path / "run"))
    assert stop.value.code == 2
    assert "is a file" in capsys.readouterr().err


def test_another_seed_is_another_run(copy, tmp_path, capsys):
    out = tmp_path / "run"
    train(copy, out)
    with pytest.raises(SystemExit):
        cli(lambda _: train(copy, out, "--resume", "--seed", "7"))
    assert "seed is 7" in capsys.readouterr().err


def test_a_start_checkpoint_of_another_shape_names_the_setting(copy, tmp_path, capsys):
    out = tmp_path / "run"
    train(copy, out, "--checkpoint_iterations", "3")
    start = str(out / "checkpoint" / "fine_3")
    with pytest.raises(SystemExit):
        cli(
            lambda _: train(copy, tmp_path / "b", "--start_checkpoint", start, "--control_num", "5")
        )
    assert "control_num was 3" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
    assert train(copy, tmp_path / "b", "--start_checkpoint", start, "--feature_lr", "0.1") == 0


def test_a_start_checkpoint_beyond_the_last_iteration_is_refused(copy, tmp_path, capsys):
    train(copy, tmp_path / "run", "--checkpoint_iterations", "5")
    more = ["--start_checkpoint", str(tmp_path / "run" / "checkpoint" / "fine_5"), "--iterations"]
    line = fails(capsys, copy, tmp_path / "b", *more, "4")
    assert "fine_5 is at iteration 5, beyond --iterations 4" in line
    assert train(copy, tmp_path / "b", *more, "5") == 0
    assert saved_iterations(tmp_path / "b") == [5]


def test_no_iterations_at_all_saves_the_canonical_model(copy, tmp_path):
    out = tmp_path / "run"
    train(copy, out, "--iterations", "0")
    assert saved_iterations(out) == [0]


# ---- where frames are kept, and masks -----------------------------------------------------------


def test_frames_that_memory_cannot_hold_are_refused_before_they_are_decoded(
    copy, tmp_path, capsys, monkeypatch
):
    """There is room for those of the two training cameras, not for the held-out one's as well."""
    monkeypatch.setattr("scene.datasets._DECODE_AT_ONCE", 0)
    monkeypatch.setattr("scene.frames.available_memory", lambda: 2 * 4 * 64 * 48 * 3)
    monkeypatch.setattr("scene.frames.read_video", lambda *_: pytest.fail("decoded"))
    error = fails(capsys, copy, tmp_path / "run", "--cache", "ram")
    assert "--cache ram: the decoded frames need 0.0 GB" in error and "--cache disk" in error


def test_videos_cannot_be_read_without_a_cache(copy, tmp_path, capsys):
    error = fails(capsys, copy, tmp_path / "run", "--cache", "none")
    assert "--cache none" in error and "cam00.mp4 is a video" in error and "--cache disk" in error


def test_frames_on_disk_leave_no_file_and_another_cache_may_resume(copy, tmp_path, capsys):
    out = tmp_path / "run"
    flags = ("--checkpoint_iterations", "3")
    assert train(copy, out, "--cache", "disk", *flags) == 0
    assert "temporary" not in str(sorted(out.iterdir()))
    capsys.readouterr()
    assert train(copy, out, "--cache", "ram", *flags) == 0
    assert "already trained" in capsys.readouterr().out


def test_masked_cameras_are_noted_and_trained_on(copy, tmp_path, capsys):
    first = read_first_frame(copy / "cam01.mp4")
    (copy / "masks").mkdir()
    mask = np.zeros(first.shape[:2], np.uint8)
    mask[: len(mask) // 2] = 255
    for camera in ("cam00", "cam01"):
        Image.fromarray(mask).save(copy / "masks" / f"{camera}.png")
    out = tmp_path / "run"
    assert train(copy, out) == 0
    assert "8 of 12 images have a mask" in capsys.readouterr().err
    lines = (out / "metrics.jsonl").read_text().splitlines()
    evaluations = [r for r in map(json.loads, lines) if r["event"] == "evaluate"]
    assert [r["masked"] for r in evaluations if r["set"] == "test"] == [True]


def read_first_frame(path: Path) -> np.ndarray:
    return next(iter(read_video(path, [0])))
