"""`render_emb.py` as a user runs it, on an untrained model of the demo scene at 64 x 48."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import render_emb
from arguments_MoDE.cli import parse_training, save_config
from scene import load_scene
from training import rendering
from training.checkpoint import model_folder, save_model
from training.launch import build_model
from utils.errors import cli
from utils.video import probe_video

SMALL = ["-r", "64", "-d", "3", "--max_points", "200", "--quiet"]
TINY = ["--kplanes_config", "resolution=[8, 8, 8, 4]", "--multires", "1", "--net_width", "8"]
RECIPE = "arguments_MoDE/emb/config_0/coffee_martini.py"


def make_run(source: Path, out: Path, iterations: tuple[int, ...], *flags: str) -> Path:
    """A run folder as training leaves it, with models that were saved unchanged."""
    arguments = parse_training(["-s", str(source), "-m", str(out), *SMALL, *flags], "train", "")
    model = build_model(load_scene(arguments.config.model), arguments.config)
    out.mkdir(parents=True)
    save_config(arguments.config, out / "config.json")
    for iteration in iterations:
        save_model(model, out, iteration, training_seconds=1.5)
    return out


@pytest.fixture(scope="module")
def kept(source, tmp_path_factory) -> Path:
    return make_run(source, tmp_path_factory.mktemp("run") / "run", (20, 100), *TINY)


@pytest.fixture
def run(kept, tmp_path) -> Path:
    """A run that the test may damage."""
    return Path(shutil.copytree(kept, tmp_path / "run"))


def render(folder: Path, *more: str) -> int:
    arguments = ["--model_path", str(folder), "--device", "cpu", "--no-lpips", "--quiet", *more]
    return render_emb.main(arguments)


def fails(capsys, folder: Path, *more: str) -> str:
    """Expects exit code 2, one line on stderr and nothing rendered; returns the line."""
    with pytest.raises(SystemExit) as stop:
        cli(lambda _: render(folder, *more))
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    left = [name for name in ("train", "test", "video", "metrics.json") if (folder / name).exists()]
    assert left == []
    return lines[0]


def test_all_sets_of_the_last_iteration(run, capsys):
    assert render(run) == 0
    out = capsys.readouterr().out
    assert "psnr" in out and str(run / "test" / "ours_100") in out
    collected = json.loads((run / "metrics.json").read_text())
    assert {name: s["views"] for name, s in collected["sets"].items()} == {
        "train": 6,
        "test": 3,
        "video": 3,
    }
    assert list(collected)[-1] == "psnr" and 3 < collected["psnr"] < 60
    metrics = json.loads((run / "test" / "ours_100" / "metrics.json").read_text())
    assert metrics["training_seconds"] == 1.5 and metrics["psnr"] == collected["psnr"]
    assert metrics["bytes_on_disk"] == sum(
        path.stat().st_size for path in model_folder(run, 100).iterdir()
    )
    video = probe_video(run / "video" / "ours_100" / "video_rgb.mp4")
    assert (video.width, video.height, video.frames) == (64, 48, 3)


def test_sets_are_skipped_and_the_iteration_is_the_asked_one(run):
    render(run, "--skip_train", "--skip_video", "--iteration", "20")
    assert (run / "test" / "ours_20" / "renders" / "00002.png").is_file()
    assert not (run / "train").exists() and not (run / "video").exists()


def test_relative_path_and_another_number_of_path_frames(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    render(Path("run"), "--skip_train", "--skip_test", "--video_frames", "5")
    assert probe_video(run / "video" / "ours_100" / "video_rgb.mp4").frames == 5


def test_metrics_are_measured_on_the_frames_at_the_asked_resolution(run):
    render(run, "--skip_train", "--skip_video", "-r", "32")
    assert probe_video(run / "test" / "ours_100" / "video_gt.mp4").width == 32


@pytest.mark.slow
def test_the_documented_command(source, tmp_path, root):
    """In a process of its own; the run has the published architecture of that recipe."""
    run = make_run(source, tmp_path / "run", (30000,), "--configs", RECIPE)
    command = f"render_emb.py --skip_test --skip_train --model_path {run} --configs"
    command = [sys.executable, *command.split(), RECIPE, "--iteration", "30000"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert probe_video(run / "video" / "ours_30000" / "video_rgb.mp4").frames == 3
    assert not (run / "test").exists() and not (run / "train").exists()


def test_help_explains_itself(root):
    done = subprocess.run(
        [sys.executable, "render_emb.py", "--help"], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0
    for flag in ("--model_path", "--iteration", "--skip_train", "--skip_test", "--skip_video"):
        assert flag in done.stdout


def test_missing_run_folder(tmp_path, capsys):
    assert "nowhere" in fails(capsys, tmp_path / "nowhere")


def test_folder_that_is_no_run(tmp_path, capsys):
    assert "config.json" in fails(capsys, tmp_path)


def test_missing_iteration_lists_those_there_are(run, capsys):
    line = fails(capsys, run, "--iteration", "30000")
    assert "--iteration 30000" in line and "20, 100" in line


def test_run_that_saved_nothing_yet(run, capsys):
    shutil.rmtree(run / "point_cloud")
    assert "no saved model" in fails(capsys, run)


def test_contradicting_recipe_names_the_key(run, tmp_path, capsys):
    recipe = tmp_path / "mine.py"
    recipe.write_text("ModelHiddenParams = dict(net_width=128)\n")
    line = fails(capsys, run, "--configs", str(recipe))
    assert "net_width" in line and "128" in line and "8" in line


def test_recipe_that_only_trains_differently_is_no_contradiction(run, tmp_path):
    recipe = tmp_path / "mine.py"
    recipe.write_text("OptimizationParams = dict(iterations=99, feature_lr=0.1)\n")
    assert render(run, "--skip_train", "--skip_video", "--configs", str(recipe)) == 0


@pytest.mark.parametrize("name", ["point_cloud.ply", "model.safetensors"])
def test_a_flipped_bit_is_found_by_the_digest(run, capsys, name):
    path = model_folder(run, 100) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    line = fails(capsys, run)
    assert name in line and "damaged" in line


@pytest.mark.parametrize("name", ["point_cloud.ply", "model.safetensors", "manifest.json"])
def test_a_missing_file_of_the_model(run, capsys, name):
    (model_folder(run, 100) / name).unlink()
    line = fails(capsys, run, "--iteration", "100")
    assert name in line or "--iteration 100" in line


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}'])
def test_damaged_manifest(run, capsys, text):
    (model_folder(run, 100) / "manifest.json").write_text(text)
    assert "manifest.json" in fails(capsys, run)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"ModelParams": {"nonsense": 1}}'])
def test_damaged_settings(run, capsys, text):
    (run / "config.json").write_text(text)
    assert "config.json" in fails(capsys, run)


def test_device_that_is_not_there(run, capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has the GPU that the test wants to be missing")
    assert "--device cuda" in fails(capsys, run, "--device", "cuda")


def test_unknown_device(run, capsys):
    assert "--device" in fails(capsys, run, "--device", "tpu")


def test_everything_skipped(run, capsys):
    line = fails(capsys, run, "--skip_train", "--skip_test", "--skip_video")
    assert "--skip_train" in line and "nothing to render" in line


def test_a_scene_that_moved_is_found_with_a_flag(run, source, tmp_path, capsys):
    config = json.loads((run / "config.json").read_text())
    config["ModelParams"]["source_path"] = str(tmp_path / "gone")
    (run / "config.json").write_text(json.dumps(config))
    assert "gone" in fails(capsys, run)
    assert render(run, "--skip_train", "--skip_video", "-s", str(source)) == 0


def test_a_run_that_moved_keeps_its_frames_where_it_is_now(run, tmp_path, capsys):
    """They exceed the memory they may have, and their file goes into the run folder."""
    config = json.loads((run / "config.json").read_text())
    config["ModelParams"].update(model_path=str(tmp_path / "before"), cache_gb=1e-5)
    (run / "config.json").write_text(json.dumps(config))
    assert render(run, "--skip_train", "--skip_video") == 0
    assert f"temporary file in {run}" in capsys.readouterr().err
    assert not (tmp_path / "before").exists()


def _rendered_at(run: Path) -> dict[str, int]:
    """Inode by set: a folder that is rendered again is another one."""
    return {name: (run / name).stat().st_ino for name in ("test/ours_100", "video/ours_100")}


def test_existing_renders_are_left_until_the_model_is_newer(run, capsys):
    flags = ("--skip_train", "--skip_existing")
    render(run, *flags)
    before = _rendered_at(run)
    capsys.readouterr()
    render(run, "--iteration", "20", "--skip_train", "--skip_video")
    shutil.move(run / "config.json", run / "kept.json")
    config = json.loads((run / "kept.json").read_text())
    config["ModelParams"]["source_path"] = "gone"  # which nobody looks at
    (run / "config.json").write_text(json.dumps(config))
    assert render(run, *flags) == 0
    assert _rendered_at(run) == before
    assert capsys.readouterr().out.count("is rendered already") == 2
    assert json.loads((run / "metrics.json").read_text())["iteration"] == 100
    shutil.move(run / "kept.json", run / "config.json")
    os.utime(model_folder(run, 100) / "manifest.json")
    (run / "video" / "ours_100" / "metrics.json").touch()
    render(run, *flags)
    after = _rendered_at(run)
    assert after["test/ours_100"] != before["test/ours_100"]
    assert after["video/ours_100"] == before["video/ours_100"]


def test_existing_renders_and_a_set_without_views_are_no_error(run, monkeypatch):
    def without_test_views(model):
        scene = load_scene(model)
        scene.test = []
        return scene

    monkeypatch.setattr(rendering, "load_scene", without_test_views)
    render(run, "--skip_train", "--skip_test")
    assert render(run, "--skip_train", "--skip_existing") == 0


def test_corrupt_video_of_the_scene(run, source, tmp_path, capsys):
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    video = copy / "cam00.mp4"
    video.write_bytes(video.read_bytes()[:5000])
    assert "cam00.mp4" in fails(capsys, run, "-s", str(copy))


def test_gates_are_drawn_and_counted(run, capsys):
    assert render(run, "--skip_train", "--skip_video", "--gate_viz", "xyz") == 0
    out = run / "test" / "ours_100"
    pictures = sorted((out / "gates_xyz").iterdir())
    assert [p.name for p in pictures] == ["00000.png", "00001.png", "00002.png"]
    assert probe_video(out / "video_gates_xyz.mp4").frames == 3
    assert not (out / "gates_rotation").exists()
    record = json.loads((run / "gates.json").read_text())
    assert set(record["gates"]) == {"xyz", "rotation"} and record["iteration"] == 100
    assert "hexplane" in capsys.readouterr().out


def test_skip_existing_draws_the_gates_that_are_missing(run, capsys):
    flags = ("--skip_train", "--skip_video", "--skip_existing")
    assert render(run, *flags) == 0
    assert render(run, *flags, "--gate_viz") == 0
    assert (run / "test" / "ours_100" / "gates_rotation").is_dir()
    capsys.readouterr()
    assert render(run, *flags, "--gate_viz") == 0
    assert "is rendered already" in capsys.readouterr().out


def test_gates_that_there_are_not_are_refused(run, capsys):
    assert "--gate_viz sh" in fails(capsys, run, "--gate_viz", "sh")


def test_fewer_experts_can_be_kept_when_rendering(run):
    flags = ("--skip_train", "--skip_video")
    assert render(run, *flags, "--moe_top_k", "1") == 0
    assert render(run, *flags) == 0


def test_a_negative_number_of_experts_is_refused(run, capsys):
    assert "--moe_top_k is -1" in fails(capsys, run, "--moe_top_k", "-1")
