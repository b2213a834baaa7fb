"""`train_hash.py` and `render_hash.py`: what is theirs alone; `test_*_emb.py` has the rest."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import render_emb
import render_hash
import train_emb
import train_hash
from utils.errors import cli

SMALL = ["-r", "64", "-d", "4", "--max_points", "400", "--densify_until_iter", "0", "--quiet"]
SHORT = ["--coarse_iterations", "2", "--iterations", "3", "--device", "cpu", "--threads", "1"]
GRIDS = ["--configs", "arguments_MoDE/demo/demo_hash.py"]
TEST_SET = ["--skip_train", "--skip_video", "--no-lpips", "--quiet", "--device", "cpu"]


def train(command, source: Path, out: Path, *more: str) -> dict:
    """Trains, and returns the saved settings of the mixture."""
    assert command.main(["-s", str(source), "--expname", str(out), *SMALL, *SHORT, *more]) == 0
    return json.loads((out / "config.json").read_text())["ModelHiddenParams"]


def psnr(command, out: Path, *more: str) -> float:
    assert command.main(["--model_path", str(out), *TEST_SET, *more]) == 0
    return json.loads((out / "metrics.json").read_text())["psnr"]


def test_each_pair_renders_the_others_runs(source, tmp_path):
    ours, theirs = tmp_path / "hash", tmp_path / "emb"
    assert train(train_hash, source, ours, *GRIDS)["experts"] == ["hexplane", "hash"]
    assert train(train_emb, source, theirs)["experts"] == ["hexplane", "embedding"]
    assert psnr(render_emb, ours) > 3 and psnr(render_hash, theirs) > 3


def test_experts_that_are_named_win(source, tmp_path):
    named = ["--experts", "keyframe", "polynomial"]
    assert train(train_hash, source, tmp_path / "run", *named)["experts"] == named[1:]
    assert psnr(render_hash, tmp_path / "run") > 3


def test_either_command_resumes_only_its_own_mixture(source, tmp_path, capsys):
    train(train_hash, source, tmp_path / "run", *GRIDS, "--checkpoint_iterations", "2")
    shutil.rmtree(tmp_path / "run" / "point_cloud")
    train(train_hash, source, tmp_path / "run", *GRIDS, "--checkpoint_iterations", "2", "--resume")
    with pytest.raises(SystemExit):
        cli(lambda _: train(train_emb, source, tmp_path / "run", "--resume"))
    assert "--resume" in capsys.readouterr().err


@pytest.mark.slow
def test_the_published_commands(source, tmp_path, root):
    """In processes of their own; only the lengths are cut, and the tables to a test's size."""
    rows = ["canonical_log2_hashmap_size=10", "deform_log2_hashmap_size=10"]
    configs = "arguments_MoDE/dynerf/config_rot_0/coffee_martini.py"
    run = tmp_path / "run"
    training = ["train_hash.py", "-s", str(source), "--expname", str(run), "--configs", configs]
    done = subprocess.run(
        [sys.executable, *training, *SMALL, *SHORT, "--grid_args", *rows],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    recipe = tmp_path / "rendering.py"  # hash/config_0's, with those rows
    recipe.write_text(
        f"_base_ = {str(root / 'arguments_MoDE/hash/config_0/coffee_martini.py')!r}\n"
        "ModelHashParams = dict(grid_args=dict(canonical_log2_hashmap_size=10, "
        "deform_log2_hashmap_size=10))\n"
    )
    rendering = ["render_hash.py", "--skip_test", "--skip_train", "--model_path", str(run)]
    done = subprocess.run(
        [sys.executable, *rendering, "--configs", str(recipe), "--iteration", "3", "--quiet"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (run / "video" / "ours_3" / "video_rgb.mp4").is_file()


@pytest.mark.parametrize("script", ["train_hash.py", "render_hash.py"])
def test_help_explains_itself(script, root):
    done = subprocess.run(
        [sys.executable, script, "--help"], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "hash-grid mixture" in done.stdout and "--configs" in done.stdout
