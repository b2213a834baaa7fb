"""scene/datasets/__init__.py: which format a folder is, and what all formats share."""

from __future__ import annotations

import builders
import numpy as np
import pytest

from arguments_MoDE.config import ModelParams
from scene.datasets import FORMATS, detect_format, load_scene, target_size
from utils.errors import UserError


@pytest.mark.parametrize(
    ("build", "kind"),
    [
        (builders.n3v_scene, "n3v"),
        (builders.panoptic_scene, "panoptic"),
        (builders.blender_scene, "blender"),
        (builders.technicolor_scene, "technicolor"),
        (builders.hypernerf_scene, "hypernerf"),
        (builders.multiview_scene, "multiview"),
        (builders.nerfstudio_scene, "nerfstudio"),
        (builders.colmap_scene, "colmap"),
    ],
)
def test_each_format_is_recognised(tmp_path, build, kind):
    build(tmp_path)
    assert builders.load(tmp_path).kind == kind


def test_unknown_folder_lists_everything_looked_for(tmp_path):
    with pytest.raises(UserError) as error:
        detect_format(tmp_path)
    assert all(f.marker in str(error.value) for f in FORMATS)


def test_missing_folder_and_missing_flag_are_named(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        builders.load(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: is a file; give the scene's folder"):
        builders.load(tmp_path / "file")
    with pytest.raises(UserError, match="--source_path"):
        load_scene(ModelParams())


@pytest.mark.parametrize(
    ("native", "resolution", "expected"),
    [
        ((2704, 2028), -1, (1352, 1014)),
        ((1600, 900), -1, (1600, 900)),
        ((4096, 2160), -1, (1024, 540)),
        ((2704, 2028), 1, (2704, 2028)),
        ((1001, 501), 2, (500, 250)),
        ((800, 800), 8, (100, 100)),
        ((640, 360), 160, (160, 90)),
        ((640, 360), 1280, (1280, 720)),
    ],
)
def test_target_size(native, resolution, expected):
    assert target_size(native, resolution) == expected


@pytest.mark.parametrize("resolution", [0, -2])
def test_senseless_resolution_names_the_flag(resolution):
    with pytest.raises(UserError, match="--resolution"):
        target_size((64, 48), resolution)


def test_points_are_thinned_and_added_to(tmp_path):
    builders.blender_scene(tmp_path)
    assert len(builders.load(tmp_path).points) == 200
    assert 25 <= len(builders.load(tmp_path, max_points=50).points) <= 50
    more = builders.load(tmp_path, add_points=300)
    assert len(more.points) == 500
    assert np.allclose(more.points.bbox, builders.load(tmp_path).points.bbox)


def test_extent_of_a_single_camera_comes_from_the_cloud(tmp_path):
    builders.n3v_scene(tmp_path, cameras=2, frames=2)
    scene = builders.load(tmp_path)
    assert len({v.camera.name for v in scene.train}) == 1
    assert 0.5 < scene.extent < 2.0


def test_extent_is_the_farthest_training_camera_from_their_mean(tmp_path):
    truth = builders.n3v_scene(tmp_path, cameras=4)
    centres = np.stack([c.pose[:3, 3] for c in truth[1:]])
    farthest = np.linalg.norm(centres - centres.mean(axis=0), axis=1).max()
    assert builders.load(tmp_path).extent == pytest.approx(1.1 * farthest, rel=1e-5)


def test_bbox_is_that_of_the_points(tmp_path):
    builders.n3v_scene(tmp_path)
    scene = builders.load(tmp_path)
    assert np.array_equal(scene.bbox.numpy(), scene.points.bbox)
    assert scene.bbox.shape == (2, 3)
