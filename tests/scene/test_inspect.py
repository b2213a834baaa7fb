"""scene/inspect.py: what it prints of a folder, the picture of the rig, what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import builders
import numpy as np
import pytest
from PIL import Image

from arguments_MoDE.config import ModelParams
from scene import load_scene
from scene.inspect import PANEL, TEST_COLOUR, TRAIN_COLOUR, describe, draw_rig, main, poses_of
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path) -> Path:
    builders.panoptic_scene(tmp_path / "dome", cameras=5, frames=4)
    return tmp_path / "dome"


def test_it_says_what_there_is(folder, tmp_path, capsys):
    main([str(folder), "--rig", str(tmp_path / "rig.png")])
    text = capsys.readouterr().out
    for said in ("PanopticSports", "16, from 4 poses", "4, of cam02", "64 x 48", "from 0 to 1"):
        assert said in text, said
    assert "suspicious" not in text


def test_cameras_are_a_line_each(folder, tmp_path, capsys):
    main([str(folder), "--rig", str(tmp_path / "rig.png"), "--cameras", "--test_cameras", "0"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("cam0")] == ["train"] * 4 + [
        "held"
    ]


def test_a_camera_that_moves_is_one_camera(tmp_path, capsys):
    builders.blender_scene(tmp_path / "dnerf", frames=8, cameras=8)
    main([str(tmp_path / "dnerf"), "--rig", str(tmp_path / "rig.png")])
    assert "a camera that moves" in capsys.readouterr().out


def test_a_rig_of_one_moment_is_no_camera_that_moves(tmp_path, capsys):
    truth = builders.multiview_scene(tmp_path / "stills", frames=1)
    main([str(tmp_path / "stills"), "--rig", str(tmp_path / "rig.png")])
    said = capsys.readouterr().out
    assert "3, from 3 poses\n" in said and "1, of cam00\n" in said
    assert f"\nbaseline         {_nearest(truth):.4g} " in said


def _nearest(truth) -> float:
    centres = [camera.pose[:3, 3] for camera in truth]
    return min(np.linalg.norm(a - b) for i, a in enumerate(centres) for b in centres[:i])


def test_the_baseline_is_that_of_the_nearest_two_cameras(tmp_path, capsys):
    truth = builders.multiview_scene(tmp_path / "rig", frames=3)
    main([str(tmp_path / "rig"), "--rig", str(tmp_path / "rig.png")])
    assert f"\nbaseline         {_nearest(truth):.4g} " in capsys.readouterr().out


def test_cameras_with_both_kinds_of_views_have_a_baseline_too(tmp_path, capsys):
    truth = builders.blender_scene(tmp_path / "turns", frames=24, cameras=3)
    main([str(tmp_path / "turns"), "--rig", str(tmp_path / "rig.png")])
    assert f"\nbaseline         {_nearest(truth):.4g} " in capsys.readouterr().out


def test_a_camera_that_moves_has_no_baseline(tmp_path, capsys):
    builders.colmap_scene(tmp_path / "walk")
    main([str(tmp_path / "walk"), "--rig", str(tmp_path / "rig.png")])
    assert "\nbaseline" not in capsys.readouterr().out


def test_every_nth_image_is_held_out_as_in_training(tmp_path, capsys):
    builders.colmap_scene(tmp_path / "walk", frames=9)
    main([str(tmp_path / "walk"), "--rig", str(tmp_path / "rig.png"), "--llffhold", "3"])
    assert "held-out views   3" in capsys.readouterr().out
    with pytest.raises(UserError, match="--llffhold -1"):
        main([str(tmp_path / "walk"), "--rig", str(tmp_path / "rig.png"), "--llffhold", "-1"])


def test_frames_in_another_folder_are_named_as_in_training(tmp_path, capsys):
    builders.multiview_scene(tmp_path / "rig", names="cam{:02d}/0000.png")
    (tmp_path / "rig/images").rename(tmp_path / "rig/frames")
    main([str(tmp_path / "rig"), "--rig", str(tmp_path / "rig.png"), "--images", "frames"])
    assert "multi-view\ntraining views   9, from 3 poses" in capsys.readouterr().out


def test_a_camera_that_looks_away_is_suspicious(folder):
    scene = load_scene(ModelParams(source_path=str(folder), duration=0))
    scene.points.xyz[:] = scene.train[0].camera.camera_center - 3 * scene.train[0].camera.forward
    name = scene.train[0].camera.name
    lines = describe(scene, poses_of(scene), "title")
    assert any(line.startswith("suspicious") and name in line for line in lines)


def test_the_picture_shows_points_and_both_kinds_of_cameras(folder):
    scene = load_scene(ModelParams(source_path=str(folder), duration=0))
    pixels = np.asarray(draw_rig(scene, poses_of(scene)))
    assert pixels.shape == (PANEL, 2 * PANEL, 3)
    for colour in (TRAIN_COLOUR, TEST_COLOUR, tuple(scene.points.rgb[0])):
        found = (pixels == np.array(colour)).all(-1)
        assert found[:, :PANEL].any() and found[:, PANEL:].any(), colour


def test_a_point_is_drawn_where_the_axes_say(folder):
    scene = load_scene(ModelParams(source_path=str(folder), duration=0))
    scene.points.xyz[:] = [0.0, 0.0, 0.0]
    scene.points.rgb[:] = [1, 255, 3]
    pixels = np.asarray(draw_rig(scene, poses_of(scene)))
    centres = np.stack([v.camera.camera_center.numpy() for v in scene.train + scene.test])
    low, high = np.minimum(centres.min(0), 0), np.maximum(centres.max(0), 0)
    shift = -(low + high) / 2 / (high - low).max() * (PANEL - 60) + PANEL / 2
    y, x = np.argwhere((pixels[:, :PANEL] == [1, 255, 3]).all(-1))[0]
    assert abs(x - shift[0]) <= 1 and abs(y - shift[2]) <= 1


def test_a_folder_that_is_nothing_is_refused_and_nothing_is_drawn(tmp_path):
    (tmp_path / "empty").mkdir()
    command = [sys.executable, "-m", "scene.inspect", str(tmp_path / "empty")]
    done = subprocess.run(
        [*command, "--rig", str(tmp_path / "rig.png")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and "unknown scene type" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not (tmp_path / "rig.png").exists()


def test_another_kind_of_picture_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"--rig .*\.jpg"):
        main([str(folder), "--rig", str(tmp_path / "rig.jpg")])


def test_points_that_no_camera_sees_are_counted(folder):
    scene = load_scene(ModelParams(source_path=str(folder), duration=0))
    scene.points.xyz[::2] = 1e4
    assert any(line.startswith("out of view") for line in describe(scene, poses_of(scene), ""))


def test_a_real_dome(shared_data, tmp_path):
    path = tmp_path / "rig.png"
    main([str(shared_data / "panoptic_basketball"), "--rig", str(path)])
    assert Image.open(path).size == (2 * PANEL, PANEL)
