"""scene/datasets/panoptic.py: intrinsics per camera, split files, frame range, real data."""

from __future__ import annotations

import builders
import numpy as np
import pytest

from utils.errors import UserError


def test_cameras_project_the_marker_onto_the_picture(tmp_path):
    builders.panoptic_scene(tmp_path)
    scene = builders.load(tmp_path)
    assert scene.kind == "panoptic"
    assert max(builders.marker_error(view) for view in scene.train + scene.test) < 0.25


def test_split_files_decide_and_can_be_overruled(tmp_path):
    builders.panoptic_scene(tmp_path, cameras=5, frames=4)
    scene = builders.load(tmp_path)
    assert {v.camera.name for v in scene.test} == {"cam02"}
    assert scene.camera_names == [f"cam{i:02d}" for i in range(5)]
    other = builders.load(tmp_path, test_cameras=["cam00", "4"])
    assert {v.camera.name for v in other.test} == {"cam00", "cam04"}
    assert {v.camera.name for v in other.train} == {"cam01", "cam02", "cam03"}


def test_frame_range(tmp_path):
    builders.panoptic_scene(tmp_path, frames=6)
    scene = builders.load(tmp_path, start_frame=1, frame_step=2)
    full = builders.load(tmp_path)
    assert scene.times == [0.0, 0.5, 1.0]
    assert (scene.train[1].image() == full.train[3].image()).all()


def test_start_beyond_the_clip_names_the_flag(tmp_path):
    builders.panoptic_scene(tmp_path)
    with pytest.raises(UserError, match="--start_frame 40"):
        builders.load(tmp_path, start_frame=40)


def test_one_camera_object_serves_all_frames(tmp_path):
    builders.panoptic_scene(tmp_path)
    scene = builders.load(tmp_path)
    assert len({id(v.camera) for v in scene.train}) == 4


def test_orbit_for_cameras_around(tmp_path):
    builders.panoptic_scene(tmp_path)
    scene = builders.load(tmp_path, video_frames=8)
    assert all(v.camera.sees(scene.points.xyz).mean() > 0.5 for v in scene.video)
    forwards = np.stack([v.camera.forward.numpy() for v in scene.video])
    assert np.linalg.norm(forwards.mean(axis=0)) < 0.3


def test_real_cloud_has_the_colours_of_the_pixels_it_projects_to(shared_data):
    """Correlation of point and pixel colours, which peaks where it should: at no offset."""
    scene = builders.load(shared_data / "panoptic_basketball", duration=1, resolution=1)
    assert (len(scene.train), len(scene.test)) == (27, 4)

    def correlation(shift: tuple[int, int]) -> float:
        values = []
        for view in scene.train[::4]:
            seen = view.camera.sees(scene.points.xyz)
            pixels, _ = view.camera.project(scene.points.xyz[seen])
            column, row = np.rint(pixels + shift).astype(int).clip(0, [639, 359]).T
            image = view.image().numpy()[row, column].astype(float)
            values.append(np.corrcoef(image.ravel(), scene.points.rgb[seen].ravel())[0, 1])
        return float(np.mean(values))

    middle = correlation((0, 0))
    assert middle > 0.7
    assert all(correlation(s) < middle for s in [(3, 0), (-3, 0), (0, 3), (0, -3)])


def test_real_left_handed_metadata_is_refused(shared_data):
    with pytest.raises(UserError, match=r"mirrors the world.*left-handed"):
        builders.load(shared_data / "hfu_bad_metadata")


def test_camera_to_world_in_place_of_world_to_camera_is_refused(tmp_path):
    builders.panoptic_scene(tmp_path)
    for name in ("train_meta.json", "test_meta.json"):
        builders.edit_json(tmp_path / name, _invert_poses)
    with pytest.raises(UserError, match=r"train_meta.json.*mixed up"):
        builders.load(tmp_path)


def _invert_poses(meta: dict) -> None:
    meta["w2c"] = [np.linalg.inv(np.array(frame)).tolist() for frame in meta["w2c"]]
