"""scene/datasets/blender.py: OpenGL poses, intrinsics per frame, compositing, times."""

from __future__ import annotations

import builders
import numpy as np
import pytest
import torch
from PIL import Image

from utils.errors import UserError


def test_cameras_project_the_marker_onto_the_picture(tmp_path):
    builders.blender_scene(tmp_path)
    scene = builders.load(tmp_path)
    assert scene.kind == "blender"
    assert max(builders.marker_error(view) for view in scene.train + scene.test) < 0.25


def test_splits_and_rig_rows(tmp_path):
    builders.blender_scene(tmp_path, frames=12, cameras=4)
    scene = builders.load(tmp_path)
    assert (len(scene.train), len(scene.test), scene.frame_count) == (9, 3, 12)
    assert scene.camera_names == ["cam00", "cam01", "cam02", "cam03"]
    assert [v.camera_index for v in scene.train[:4]] == [0, 1, 2, 0]
    assert len({v.name for v in scene.train}) == 9


def test_the_pose_of_a_held_out_view_need_not_recur_for_a_rig(tmp_path):
    builders.blender_scene(tmp_path, frames=7, cameras=4)
    scene = builders.load(tmp_path)
    assert scene.camera_names == ["cam00", "cam01", "cam02", "cam03"]
    assert [view.camera.name for view in scene.test] == ["cam03"]


def test_a_moving_camera_is_one_row(tmp_path):
    builders.blender_scene(tmp_path, frames=6, cameras=6)
    scene = builders.load(tmp_path)
    assert scene.camera_names == ["moving"]
    assert {v.camera_index for v in scene.train} == {0}
    assert len({v.camera.name for v in scene.train}) == len(scene.train)


@pytest.mark.parametrize(("white", "colour"), [(True, 255), (False, 0)])
def test_transparent_pixels_show_the_background(tmp_path, white, colour):
    builders.blender_scene(tmp_path)
    pixels = np.zeros((*builders.SIZE[::-1], 4), np.uint8)
    pixels[:, :32] = (200, 100, 50, 128)
    builders.save(tmp_path / "train" / "r_0000.png", pixels)
    scene = builders.load(tmp_path, white_background=white)
    image = scene.train[0].image()
    assert scene.background == (colour / 255,) * 3
    assert image[0, -1].tolist() == [colour] * 3
    expected = np.array([200, 100, 50]) * 128 / 255 + colour * 127 / 255
    assert np.abs(image[0, 0].numpy() - expected).max() <= 0.51


def test_every_camera_has_the_near_plane_that_was_asked_for(tmp_path):
    builders.blender_scene(tmp_path)
    for resolution in (1, 2):
        scene = builders.load(tmp_path, near_plane=0.7, resolution=resolution)
        views = (*scene.train, *scene.test, *scene.video)
        assert scene.video and {view.camera.near_plane for view in views} == {0.7}
    assert builders.load(tmp_path).train[0].camera.near_plane == 0.2


def _rewrite_times(root, change) -> None:
    for split in ("train", "test"):
        path = root / f"transforms_{split}.json"
        builders.edit_json(path, lambda m: [f.update(time=change(f["time"])) for f in m["frames"]])


@pytest.mark.parametrize("largest", [0.7, 1.0, 7.0])
def test_times_are_divided_by_the_largest(tmp_path, largest):
    builders.blender_scene(tmp_path, frames=8)
    _rewrite_times(tmp_path, lambda time: time * largest)
    scene = builders.load(tmp_path)
    assert [v.time for v in scene.train] == pytest.approx([i / 7 for i in (0, 1, 2, 4, 5, 6)])
    assert [v.time for v in scene.test] == pytest.approx([3 / 7, 1])
    assert scene.video[-1].time == 1


def test_a_single_time_is_zero(tmp_path):
    builders.blender_scene(tmp_path, frames=4)
    _rewrite_times(tmp_path, lambda time: 0.4)
    scene = builders.load(tmp_path)
    assert scene.times == [0.0] and scene.frame_count == 1


# Of 12 frames the training views are 0 1 2, 4 5 6, 8 9 10 and the test views 3, 7, 11.
@pytest.mark.parametrize(
    ("settings", "train", "test"),
    [
        ({"duration": 6}, [0, 1, 2, 4, 5, 6], [3]),
        ({"start_frame": 3}, [4, 5, 6, 8, 9, 10], [7]),
        ({"start_frame": 2, "duration": 4}, [2, 4, 5, 6], [3]),
        ({"frame_step": 2}, [0, 2, 5, 8, 10], [3, 7]),
        ({"duration": 1}, [0], []),
    ],
)
def test_a_cut_clip_runs_from_zero_to_one(tmp_path, capsys, settings, train, test):
    builders.blender_scene(tmp_path, frames=12)
    scene = builders.load(tmp_path, **settings)
    first, length = train[0], max(train[-1] - train[0], 1)
    for views, frames in ((scene.train, train), (scene.test, test)):
        assert [v.time for v in views] == pytest.approx([(f - first) / length for f in frames])
        assert [v.frame_index for v in views] == [sorted(train + test).index(f) for f in frames]
    assert scene.frame_count == len(scene.video) == len(train) + len(test)
    assert (scene.video[0].time, scene.video[-1].time) == (0, 1 if len(train) > 1 else 0)
    assert f"{3 - len(test)} of 3 test views lie outside the clip" in capsys.readouterr().err


def test_a_duration_that_all_fit_into_keeps_every_test_view(tmp_path):
    builders.blender_scene(tmp_path, frames=12)
    scene = builders.load(tmp_path, duration=9)
    assert len(scene.test) == 3 and scene.times[-1] == 1


def test_field_of_view_serves_where_no_focal_length_is_given(tmp_path):
    builders.blender_scene(tmp_path)
    path = tmp_path / "transforms_train.json"
    builders.edit_json(path, lambda m: [f.pop("fl_x") for f in m["frames"]])
    camera = builders.load(tmp_path).train[0].camera
    assert camera.fx == camera.fy == pytest.approx(32 / np.tan(0.35))


def test_intrinsics_follow_an_image_that_was_resized(tmp_path):
    truth = builders.blender_scene(tmp_path)
    path = tmp_path / "train" / "r_0000.png"
    builders.save(path, np.array(Image.open(path).resize((32, 24))))
    builders.edit_json(
        tmp_path / "transforms_train.json", lambda m: [f.update(w=64, h=48) for f in m["frames"]]
    )
    view = builders.load(tmp_path).train[0]
    assert (view.camera.width, view.camera.fx) == (32, pytest.approx(truth[0].fx / 2))
    assert builders.marker_error(view) < 0.3


def test_principal_point_is_honoured(tmp_path):
    builders.blender_scene(tmp_path)
    path = tmp_path / "transforms_train.json"
    builders.edit_json(path, lambda m: [f.update(cx=20.0, cy=30.0) for f in m["frames"]])
    camera = builders.load(tmp_path, resolution=2).train[0].camera
    assert (camera.cx, camera.cy) == (10.0, 15.0)


def test_random_points_lie_where_the_cameras_look(tmp_path, capsys):
    builders.blender_scene(tmp_path)
    (tmp_path / "fused.ply").unlink()
    scene = builders.load(tmp_path)
    assert "fused.ply" in capsys.readouterr().err
    assert np.mean([v.camera.sees(scene.points.xyz).mean() for v in scene.train]) > 0.5
    assert scene.points.xyz.std(axis=0).min() > 0.3


def test_test_cameras_are_refused(tmp_path):
    builders.blender_scene(tmp_path)
    with pytest.raises(UserError, match="transforms_test.json"):
        builders.load(tmp_path, test_cameras=["0"])


def test_missing_image_is_named(tmp_path):
    builders.blender_scene(tmp_path)
    (tmp_path / "train" / "r_0001.png").unlink()
    with pytest.raises(UserError, match="r_0001"):
        builders.load(tmp_path)


@pytest.mark.parametrize(
    "name", ["scene3_collision", "scene5_rapid_motion", "scene7_deformation", "scene10_texture"]
)
def test_real_scenes_have_cameras_that_see_the_middle(shared_data, name):
    scene = builders.load(shared_data / "dnerf_mujoco" / name, resolution=4, max_points=3000)
    centres = torch.stack([v.camera.camera_center for v in scene.train])
    assert torch.linalg.norm(centres - centres.mean(0), dim=1).max() * 1.1 == pytest.approx(
        scene.extent, rel=1e-5
    )
    assert scene.times[0] == 0.0 and scene.times[-1] <= 1.0
    assert min(v.camera.sees(scene.points.xyz).mean() for v in scene.train) > 0.25
    assert all(v.camera.sees(np.zeros((1, 3)))[0] for v in scene.train)


def test_a_real_ball_is_where_two_cameras_see_it(shared_data):
    """Rays through a pink ball from two cameras at almost the same time all but meet."""
    scene = builders.load(shared_data / "dnerf_mujoco" / "scene10_texture", max_points=3000)
    rays = [_ray_to_ball(view) for view in scene.train[:13]]
    gaps = [_gap(a, b) for a, b in zip(rays, rays[1:], strict=False) if a and b]
    assert len(gaps) >= 5
    assert (
        np.median(gaps) < 0.05
    )  # world units; the radius is 0.5, a camera turned around gives 0.4


def _ray_to_ball(view) -> tuple[np.ndarray, np.ndarray] | None:
    """Origin and direction of the ray to the pink pixels' middle; None if they touch the border."""
    image = view.image().numpy().astype(int)
    rows, columns = np.nonzero(image[..., 0] - image[..., 1] > 60)
    size = np.array([view.camera.width, view.camera.height])
    if not len(rows) or min(rows.min(), columns.min()) == 0 or rows.max() + 1 == size[1]:
        return None
    if columns.max() + 1 == size[0]:
        return None
    x, y = (columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2
    camera = view.camera
    local = [(x + 0.5 - camera.cx) / camera.fx, (y + 0.5 - camera.cy) / camera.fy, 1.0]
    direction = camera.world_to_camera[:3, :3].double().numpy().T @ local
    return camera.camera_center.double().numpy(), direction / np.linalg.norm(direction)


def _gap(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    """Distance between two lines."""
    normal = np.cross(a[1], b[1])
    return float(abs((b[0] - a[0]) @ normal) / np.linalg.norm(normal))
