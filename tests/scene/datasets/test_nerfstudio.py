"""scene/datasets/nerfstudio.py: intrinsics, rigs and moving cameras, times, splits, refusals."""

from __future__ import annotations

import builders
import numpy as np
import pytest

from scene.datasets import detect_format
from utils.errors import UserError


@pytest.fixture
def moving(tmp_path):
    builders.nerfstudio_scene(tmp_path)
    return tmp_path


def _edit(root, change) -> None:
    builders.edit_json(root / "transforms.json", change)


def _list(root, name: str, frames) -> None:
    _edit(root, lambda m: m.update({name: [f"images/frame_{i:05d}.png" for i in frames]}))


@pytest.mark.parametrize("cameras", [0, 4])
def test_cameras_project_the_marker_onto_the_picture(tmp_path, cameras):
    truth = builders.nerfstudio_scene(tmp_path, cameras=cameras)
    scene = builders.load(tmp_path)
    assert scene.kind == "nerfstudio"
    for view in scene.train + scene.test:
        row = view.camera_index if cameras else int(view.camera.name[-5:])
        assert builders.marker_error(view) < 0.25
        assert builders.projection_error(view.camera, truth[row]) < 1e-3


def test_a_gaussian_is_rendered_where_the_off_centre_principal_point_has_it(tmp_path):
    truth = builders.nerfstudio_scene(tmp_path)
    point = np.array([-0.1, 0.2, 0.3])
    view = builders.load(tmp_path).train[3]
    centre = builders.blob_centre(view.camera, point)
    assert np.linalg.norm(centre - truth[int(view.camera.name[-5:])].pixel(point)) < 0.05


def test_intrinsics_of_another_size_are_scaled(moving):
    truth = builders.off_centre(builders.rig(10))
    before = builders.load(moving).train[0]

    def double(meta: dict) -> None:
        for key in ("w", "h", "cx", "cy"):
            meta[key] *= 2
        for frame in meta["frames"]:
            frame.update(fl_x=2 * frame["fl_x"], fl_y=2 * frame["fl_y"])

    _edit(moving, double)
    after = builders.load(moving).train[0]
    assert builders.projection_error(before.camera, truth[1]) < 1e-3
    assert builders.projection_error(after.camera, truth[1]) < 1e-3
    half = builders.load(moving, resolution=2).train[0]
    assert builders.projection_error(half.camera, truth[1], scale=0.5) < 1e-3


def test_a_camera_angle_will_do_for_a_focal_length(moving):
    angle = 2 * np.arctan(32 / 50)

    def use_angle(meta: dict) -> None:
        meta["camera_angle_x"] = angle
        for frame in meta["frames"]:
            del frame["fl_x"], frame["fl_y"]

    _edit(moving, use_angle)
    assert builders.load(moving).train[0].camera.fx == pytest.approx(50)


def test_a_moving_camera_has_every_eighth_image_held_out(moving):
    scene = builders.load(moving)
    assert scene.camera_names == ["moving"]
    assert [v.camera.name for v in scene.test] == ["frame_00000", "frame_00008"]
    assert [v.camera.name for v in scene.train][:2] == ["frame_00001", "frame_00002"]
    assert len(builders.load(moving, llffhold=3).test) == 4
    assert not builders.load(moving, llffhold=0).test
    named = builders.load(moving, test_cameras=["frame_00004"])
    assert [v.camera.name for v in named.test] == ["frame_00004"]


@pytest.mark.parametrize("still", [range(1), range(6), range(4, 10)])
def test_a_camera_that_stands_still_for_a_while_is_no_rig(moving, still):
    def hold(meta: dict) -> None:
        first = meta["frames"][still[0]]
        for i in still:
            for key in ("transform_matrix", "fl_x", "fl_y"):
                meta["frames"][i][key] = first[key]

    _edit(moving, hold)
    scene = builders.load(moving)
    assert scene.camera_names == ["moving"]
    assert [v.camera.name for v in scene.test] == ["frame_00000", "frame_00008"]


def test_a_rig_has_its_first_camera_held_out_and_folders_give_the_names(tmp_path):
    builders.nerfstudio_scene(tmp_path, frames=5, cameras=3)
    scene = builders.load(tmp_path)
    assert scene.camera_names == ["eye0", "eye1", "eye2"]
    assert {v.camera.name for v in scene.test} == {"eye0"}
    assert (len(scene.test), len(scene.train)) == (5, 10)
    assert scene.times == [0.0, 0.25, 0.5, 0.75, 1.0]
    other = builders.load(tmp_path, test_cameras=["eye2", "1"])
    assert {v.camera.name for v in other.test} == {"eye1", "eye2"}


def test_a_rig_in_one_folder_is_numbered_in_the_order_of_names(tmp_path):
    builders.nerfstudio_scene(tmp_path, frames=5, cameras=3)

    def flatten(meta: dict) -> None:
        for frame in meta["frames"]:
            old = frame["file_path"]
            frame["file_path"] = "images/" + "_".join(old.split("/")[1:])
            (tmp_path / old).rename(tmp_path / frame["file_path"])

    _edit(tmp_path, flatten)
    scene = builders.load(tmp_path)
    assert scene.camera_names == ["cam00", "cam01", "cam02"]
    sources = scene.test[0].store.sources
    assert {sources[v.slot[0]].paths[0].name[:4] for v in scene.test} == {"eye0"}


def test_without_times_images_are_moments_in_natural_order(tmp_path, capsys):
    builders.nerfstudio_scene(tmp_path, times=False)
    _edit(tmp_path, lambda m: [_rename(tmp_path, f) for f in m["frames"]])
    scene = builders.load(tmp_path)
    assert "no 'time'" in capsys.readouterr().err
    assert scene.times == pytest.approx([i / 9 for i in range(10)])
    assert max(builders.marker_error(view) for view in scene.train + scene.test) < 0.25


def test_without_times_the_frames_of_each_camera_of_a_rig_are_numbered(tmp_path, capsys):
    builders.nerfstudio_scene(tmp_path, frames=5, cameras=3, times=False)
    scene = builders.load(tmp_path)
    assert "no 'time'; each is a moment of its camera, 3 stand still" in capsys.readouterr().err
    assert {v.camera.name for v in scene.test} == {"eye0"}
    for camera in range(3):
        views = [v for v in scene.train + scene.test if v.camera_index == camera]
        assert [v.time for v in views] == [0.0, 0.25, 0.5, 0.75, 1.0]
        assert max(builders.marker_error(view) for view in views) < 0.25
    assert builders.load(tmp_path, start_frame=1, frame_step=2).times == [0.0, 0.5, 1.0]


def test_cameras_with_more_frames_than_others_are_told_of_where_nothing_has_a_time(
    tmp_path, capsys
):
    builders.nerfstudio_scene(tmp_path, frames=5, cameras=3, times=False)
    _edit(tmp_path, lambda m: m["frames"].pop())
    builders.load(tmp_path)
    assert "the cameras have 4 to 5 frames; if some are missing" in capsys.readouterr().err


def test_the_time_convention_is_for_numbered_images_and_leaves_times_alone(tmp_path):
    for times, last in ((False, 0.9), (True, 1.0)):
        builders.nerfstudio_scene(tmp_path, times=times)
        scene = builders.load(tmp_path, time_convention="published")
        assert scene.times == pytest.approx([last * i / 9 for i in range(10)])


def _rename(root, frame: dict) -> None:
    """frame_00007 becomes f7, and so on, and the last one f10, after f9 in natural order only."""
    number = int(frame["file_path"][-9:-4])
    new = f"images/f{number + 1}.png"
    (root / frame["file_path"]).rename(root / new)
    frame["file_path"] = new


def test_times_of_some_frames_only_are_refused(moving):
    _edit(moving, lambda m: m["frames"][3].pop("time"))
    with pytest.raises(UserError, match="frame 3 has no 'time' but others do"):
        builders.load(moving)


def test_clip_settings_count_training_times(moving):
    scene = builders.load(moving, start_frame=2, frame_step=2, llffhold=0)
    assert [v.camera.name for v in scene.train] == [f"frame_0000{i}" for i in (2, 4, 6, 8)]
    assert scene.times == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_lists_of_file_names_are_the_split(moving, capsys):
    _list(moving, "train_filenames", range(5))
    _list(moving, "val_filenames", [6, 7])
    held_out = [v.camera.name for v in builders.load(moving).test]
    assert held_out == ["frame_00006", "frame_00007"]
    assert "3 images are in neither list" in capsys.readouterr().err
    _list(moving, "test_filenames", [8, 2])
    scene = builders.load(moving)
    assert [v.camera.name for v in scene.test] == ["frame_00002", "frame_00008"]
    assert [v.camera.name for v in scene.train] == [f"frame_0000{i}" for i in (0, 1, 3, 4)]
    other = builders.load(moving, test_cameras=["frame_00009"])
    assert (len(other.test), len(other.train)) == (1, 9)


def test_a_list_for_testing_alone_leaves_the_rest_for_training(moving):
    _list(moving, "test_filenames", [1])
    scene = builders.load(moving)
    assert (len(scene.test), len(scene.train)) == (1, 9)


def test_lists_that_leave_nothing_or_name_strangers(moving):
    _list(moving, "test_filenames", range(10))
    with pytest.raises(UserError, match="no image is left for training"):
        builders.load(moving)
    _list(moving, "test_filenames", [77])
    with pytest.raises(UserError, match="test_filenames names images/frame_00077.png"):
        builders.load(moving)
    _edit(moving, lambda m: m.update(test_filenames="all"))
    with pytest.raises(UserError, match="test_filenames is not a list"):
        builders.load(moving)


def test_clouds_in_their_order(moving, capsys):
    builders.write_ply(moving / "points3D_downsample.ply", builders.cloud(50))
    assert len(builders.load(moving).points) == 200
    _edit(moving, lambda m: m.pop("ply_file_path"))
    assert len(builders.load(moving).points) == 50
    (moving / "points3D_downsample.ply").unlink()
    assert len(builders.load(moving).points) == 200
    (moving / "sparse_pc.ply").unlink()
    scene = builders.load(moving)
    assert "10000 random points" in capsys.readouterr().err
    assert all(v.camera.sees(scene.points.xyz).mean() > 0.3 for v in scene.train)


@pytest.mark.parametrize(
    ("name", "match"),
    [("none.ply", "none.ply: missing"), ("../../c.ply", "leads out"), (7, "names no file")],
)
def test_a_cloud_that_is_not_there(moving, name, match):
    _edit(moving, lambda m: m.update(ply_file_path=name))
    with pytest.raises(UserError, match=match):
        builders.load(moving)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m.update(k1=0.1), "k1 is 0.1"),
        (lambda m: m["frames"][2].update(p2=-1e-4), "frame 2: .*p2 is -0.0001"),
        (lambda m: m.update(k3=float("nan")), "k3 is nan"),
        (lambda m: m.update(camera_model="OPENCV_FISHEYE"), "'OPENCV_FISHEYE'"),
        (lambda m: m.update(camera_model=["PINHOLE"]), "camera_model is"),
    ],
)
def test_a_distorted_lens_is_refused_with_the_commands_that_mend_it(moving, change, match):
    _edit(moving, change)
    with pytest.raises(UserError, match=f"{match}.*image_undistorter.*pre_multiview.py"):
        builders.load(moving)


def _first(meta: dict) -> dict:
    return meta["frames"][0]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m.update(frames=[]), "lists no frame"),
        (lambda m: m.update(frames=4), "no list 'frames'"),
        (lambda m: _first(m).pop("transform_matrix"), "frame 0: transform_matrix"),
        (lambda m: _first(m)["transform_matrix"][0].__setitem__(3, float("nan")), "NaN"),
        (lambda m: _first(m)["transform_matrix"][0].__setitem__(3, 1e300), "endless"),
        (lambda m: _first(m)["transform_matrix"].reverse(), "not a rotation"),
        (lambda m: _first(m).update(time="now"), "frame 0: time"),
        (lambda m: _first(m).update(time=float("inf")), "frame 0: time"),
        (lambda m: _first(m).update(fl_x=-3), "must be positive"),
        (lambda m: _first(m).update(cx=float("nan")), "frame 0: cx is nan"),
        (lambda m: (m.pop("cx"), _first(m).pop("fl_x")), "neither fl_x nor"),
        (lambda m: _first(m).update(file_path="images/none.png"), "frame 0: no image"),
        (lambda m: _first(m).pop("file_path"), "frame 0: file_path names no file"),
        (lambda m: _first(m).update(file_path="/etc/passwd"), "leads out"),
        (lambda m: _first(m).update(file_path="images/../../../x.png"), "leads out"),
        (lambda m: _first(m).update(file_path="a\0.png"), "names no file"),
        (lambda m: _first(m).update(file_path="./images/frame_00003.png"), "listed twice"),
    ],
)
def test_faults_of_the_file(moving, change, match):
    _edit(moving, change)
    with pytest.raises(UserError, match=f"transforms.json.*{match}") as error:
        builders.load(moving)
    assert "\n" not in str(error.value)


def test_images_may_be_in_a_folder_beside_the_scene(tmp_path):
    builders.nerfstudio_scene(tmp_path / "scene")
    (tmp_path / "scene" / "images").rename(tmp_path / "images")

    def move(meta: dict) -> None:
        for frame in meta["frames"]:
            frame["file_path"] = "../" + frame["file_path"]

    _edit(tmp_path / "scene", move)
    scene = builders.load(tmp_path / "scene")
    assert [v.camera.name for v in scene.test] == ["frame_00000", "frame_00008"]
    assert max(builders.marker_error(view) for view in scene.train) < 0.25


def test_world_to_camera_in_place_of_camera_to_world_is_refused(moving):
    def invert(meta: dict) -> None:
        for frame in meta["frames"]:
            flip = np.diag([1, -1, -1, 1])
            pose = np.array(frame["transform_matrix"]) @ flip
            frame["transform_matrix"] = (np.linalg.inv(pose) @ flip).tolist()

    _edit(moving, invert)
    with pytest.raises(UserError, match=r"transforms.json.*mixed up"):
        builders.load(moving)


def test_the_colmap_model_that_it_was_made_from_goes_behind(tmp_path):
    builders.nerfstudio_scene(tmp_path, times=False)
    truth = builders.rig(3)
    points = builders.cloud()
    for folder, title in (("colmap/sparse/0", "nerfstudio"), ("sparse/0", "COLMAP")):
        builders.write_colmap(tmp_path / folder, truth, points, binary=True, model="PINHOLE")
        assert detect_format(tmp_path).title == title
    _edit(tmp_path, lambda m: [f.update(time=0) for f in m["frames"]])
    assert detect_format(tmp_path).title == "nerfstudio"


def test_two_moments_are_enough_for_a_rig(tmp_path):
    builders.nerfstudio_scene(tmp_path, frames=2, cameras=3)
    assert builders.load(tmp_path).camera_names == ["eye0", "eye1", "eye2"]


def test_without_a_cloud_cameras_in_one_place_still_see_their_random_points(tmp_path):
    builders.nerfstudio_scene(tmp_path, cameras=2)
    _edit(tmp_path, lambda m: m.pop("ply_file_path"))
    (tmp_path / "sparse_pc.ply").unlink()
    scene = builders.load(tmp_path)
    assert len({view.camera.name for view in scene.train}) == 1
    assert scene.train[0].camera.sees(scene.points.xyz).mean() > 0.5


# Masks


def _masked(root, white: int) -> None:
    """Gives frame 3 a mask whose left ``white`` columns count."""
    mask = np.zeros((builders.SIZE[1], builders.SIZE[0], 3), np.uint8)
    mask[:, :white] = 255
    builders.save(root / "own_masks/third.png", mask)
    _edit(root, lambda m: _entry(m, 3).update(mask_path="own_masks/third.png"))


def _entry(meta: dict, number: int) -> dict:
    return next(f for f in meta["frames"] if f["file_path"].endswith(f"{number:05d}.png"))


def test_a_mask_path_is_the_mask_of_its_frame_alone(moving):
    _masked(moving, white=5)
    views = {view.camera.name: view for view in builders.load(moving).train}
    mask = views.pop("frame_00003").mask()
    assert mask[:, :5].all() and not mask[:, 5:].any()
    assert all(view.mask() is None for view in views.values())


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("own_masks/none.png", "frame 6: no mask .*none.png; restore it"),
        ("/etc/passwd", "mask_path /etc/passwd leads out"),
        ([1], "mask_path names no file"),
    ],
)
def test_a_mask_path_that_is_none_is_refused(moving, path, match):
    _edit(moving, lambda m: _entry(m, 3).update(mask_path=path))
    with pytest.raises(UserError, match=match):
        builders.load(moving)


@pytest.mark.parametrize("damage", ["cut", "empty", "a folder", "no list", "no frames"])
def test_a_damaged_file_is_not_passed_over_for_a_model(tmp_path, damage):
    truth = builders.nerfstudio_scene(tmp_path, frames=4)
    names = [f"frame_{i:05d}.png" for i in range(4)]
    builders.write_colmap(
        tmp_path / "sparse/0", truth, builders.cloud(), binary=True, model="PINHOLE", names=names
    )
    assert builders.load(tmp_path).kind == "nerfstudio"
    path = tmp_path / "transforms.json"
    contents = {"cut": path.read_text()[:-1], "empty": "", "no list": "{}"}
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    else:
        path.write_text(contents.get(damage, '{"frames": []}'))
    with pytest.raises(UserError, match=r"transforms.json: "):
        builders.load(tmp_path)


def test_a_cloud_whose_name_no_file_can_have_is_missing(moving):
    _edit(moving, lambda m: m.update(ply_file_path="y" * 5000))
    with pytest.raises(UserError, match=r"missing, but transforms.json names it"):
        builders.load(moving)
