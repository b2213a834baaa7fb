"""scene/datasets/multiview.py: layouts, names, lenses, what is missing, what it is taken for."""

from __future__ import annotations

import builders
import numpy as np
import pytest

from scene.datasets import detect_format
from scene.point_cloud import PointCloud
from utils.errors import UserError


@pytest.mark.parametrize("layout", ["images", "root", "nested", "video", "published"])
def test_cameras_project_the_marker_onto_the_picture(tmp_path, layout):
    truth = builders.multiview_scene(tmp_path, layout=layout)
    scene = builders.load(tmp_path)
    assert scene.kind == "multiview"
    assert max(builders.marker_error(view) for view in scene.train + scene.test) < 0.3
    for view in scene.train + scene.test:
        assert builders.projection_error(view.camera, truth[view.camera_index]) < 1e-3


def test_a_gaussian_is_rendered_where_the_off_centre_principal_point_has_it(tmp_path):
    truth = builders.multiview_scene(tmp_path)
    point = np.array([0.2, -0.1, 0.3])
    for view in builders.load(tmp_path).train[::3]:
        centre = builders.blob_centre(view.camera, point)
        assert np.linalg.norm(centre - truth[view.camera_index].pixel(point)) < 0.05


@pytest.mark.parametrize("names", ["cam{:02d}.png", "cam{:02d}/anything.png", "in/cam{:02d}.jpg"])
def test_images_of_the_model_belong_to_cameras_by_name_or_folder(tmp_path, names):
    builders.multiview_scene(tmp_path, names=names)
    assert builders.load(tmp_path).camera_names == ["cam00", "cam01", "cam02", "cam03"]


def test_cameras_may_have_any_name(tmp_path):
    truth = builders.multiview_scene(tmp_path)
    listed = ["door.png", "oven.png", "sink.png", "tap.png"]
    for i, name in enumerate(listed):
        (tmp_path / "images" / f"cam{i:02d}").rename(tmp_path / "images" / name[:-4])
    points = builders.cloud()
    builders.write_colmap(
        tmp_path / "sparse/0", truth, points, binary=False, model="PINHOLE", names=listed
    )
    scene = builders.load(tmp_path)
    assert scene.camera_names == ["door", "oven", "sink", "tap"]
    assert max(builders.marker_error(view) for view in scene.train) < 0.3


def test_first_camera_in_natural_order_is_held_out_unless_told_otherwise(tmp_path):
    builders.multiview_scene(tmp_path, cameras=12, frames=2, names="cam{:02d}.png")
    for i in range(12):  # cam2 comes before cam10
        (tmp_path / "images" / f"cam{i:02d}").rename(tmp_path / "images" / f"c{i + 2}")
    path = tmp_path / "sparse/0/images.txt"
    text = path.read_text()
    for i in reversed(range(12)):
        text = text.replace(f"cam{i:02d}.png", f"c{i + 2}.png")
    path.write_text(text)
    scene = builders.load(tmp_path)
    assert scene.camera_names == [f"c{i}" for i in range(2, 14)]
    assert {v.camera.name for v in scene.test} == {"c2"}
    other = builders.load(tmp_path, test_cameras=["c10", "0"])
    assert {v.camera.name for v in other.test} == {"c2", "c10"}


def test_times_and_clip_settings(tmp_path):
    builders.multiview_scene(tmp_path, frames=5)
    assert builders.load(tmp_path).times == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert builders.load(tmp_path, time_convention="published").times[-1] == 0.8
    cut = builders.load(tmp_path, start_frame=1, frame_step=2)
    assert cut.times == [0.0, 1.0]
    assert cut.train[1].store.sources[0].paths[1].name == "0003.png"


def test_frames_larger_than_the_model_scale_the_intrinsics(tmp_path):
    truth = builders.multiview_scene(tmp_path, size=(128, 96))
    scene = builders.load(tmp_path)
    view = scene.train[0]
    assert (view.camera.width, view.camera.fx) == (128, pytest.approx(2 * truth[1].fx))
    assert builders.projection_error(view.camera, truth[1], scale=2) < 1e-3
    assert builders.marker_error(view) < 0.3
    small = builders.load(tmp_path, resolution=4).train[0]
    assert builders.projection_error(small.camera, truth[1], scale=0.5) < 1e-3
    assert builders.marker_error(small) < 0.3


def test_undistorted_frames_go_before_the_videos_they_are_of(tmp_path):
    builders.multiview_scene(tmp_path, layout="video")
    builders.multiview_scene(tmp_path)
    assert builders.load(tmp_path).train[0].store.sources[0].paths[0].name == "0000.png"


def test_points_are_the_scenes_cloud_else_the_models(tmp_path):
    builders.multiview_scene(tmp_path)
    assert len(builders.load(tmp_path).points) == 200
    builders.write_ply(tmp_path / "points3D_multipleview.ply", builders.cloud(60))
    assert len(builders.load(tmp_path).points) == 60
    builders.write_ply(tmp_path / "points3D_downsample.ply", builders.cloud(50))
    assert len(builders.load(tmp_path).points) == 50


def _without_points(root) -> None:
    truth = builders.multiview_scene(root)
    none = PointCloud(np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8))
    names = [f"cam{i:02d}.png" for i in range(4)]
    builders.write_colmap(
        root / "sparse/0", truth, none, binary=False, model="PINHOLE", names=names
    )


def test_a_model_without_points_needs_a_cloud(tmp_path):
    _without_points(tmp_path)
    with pytest.raises(UserError, match=r"points3D_downsample.ply: missing.*pre_multiview.py"):
        builders.load(tmp_path)
    builders.write_ply(tmp_path / "points3D_downsample.ply", builders.cloud(50))
    assert len(builders.load(tmp_path).points) == 50


def test_a_distorted_lens_is_refused_with_the_command_that_mends_it(tmp_path):
    builders.multiview_scene(tmp_path, model="OPENCV")
    with pytest.raises(UserError, match=r"cam00.*OPENCV.*pre_multiview.py .*image_undistorter"):
        builders.load(tmp_path)


def test_a_camera_without_frames_is_named(tmp_path):
    builders.multiview_scene(tmp_path)
    (tmp_path / "images" / "cam02").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"cam02.png .*has a pose but no frames"):
        builders.load(tmp_path)


def test_a_camera_without_a_pose_is_left_out_and_named(tmp_path, capsys):
    builders.multiview_scene(tmp_path)
    builders.save(tmp_path / "images" / "cam77" / "0.png", np.zeros((4, 4, 3), np.uint8))
    assert builders.load(tmp_path).camera_names == ["cam00", "cam01", "cam02", "cam03"]
    assert "no pose for cam77" in capsys.readouterr().err


def test_the_shortest_camera_limits_the_clip(tmp_path, capsys):
    builders.multiview_scene(tmp_path)
    (tmp_path / "images" / "cam01" / "0002.png").unlink()
    assert builders.load(tmp_path).frame_count == 2
    assert "cam01 has 2 frames" in capsys.readouterr().err


def test_images_in_another_folder_are_named_by_a_flag(tmp_path):
    builders.multiview_scene(tmp_path, frames=2)
    (tmp_path / "large").mkdir()
    for path in list((tmp_path / "images").iterdir()):
        (tmp_path / "large" / path.name).mkdir()
        builders.save(tmp_path / "large" / path.name / "0.png", np.zeros((96, 128, 3), np.uint8))
    assert builders.load(tmp_path, images="large").train[0].camera.width == 128
    with pytest.raises(UserError, match="--images nowhere: .* no folder of frames"):
        builders.load(tmp_path, images="nowhere")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("folder", ["frames", "images_2"])
def test_frames_in_another_folder_only_are_of_a_rig_too(tmp_path, folder, nested):
    builders.multiview_scene(tmp_path, names="cam{:02d}/0000.png")
    for path in list((tmp_path / "images").iterdir()):
        target = tmp_path / (f"{path.name}/{folder}" if nested else f"{folder}/{path.name}")
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    (tmp_path / "images").rmdir()
    scene = builders.load(tmp_path, images=folder)
    assert (scene.kind, scene.frame_count, len(scene.camera_names)) == ("multiview", 3, 4)
    assert max(builders.marker_error(view) for view in scene.train + scene.test) < 0.25
    with pytest.raises(UserError, match=f"--images images: .*; give --images {folder}$"):
        builders.load(tmp_path)
    (tmp_path / "sparse/0/images.txt").write_text("")
    with pytest.raises(UserError, match=r"images\.txt: registers no image"):
        builders.load(tmp_path)


def test_photos_in_a_folder_per_camera_that_moves_are_a_colmap_scene(tmp_path):
    names = ["left/{:04d}.png", "right/{:04d}.png"]
    listed = [names[i % 2].format(i) for i in range(6)]
    truth = builders.rig(6)
    for name, camera in zip(listed, truth, strict=True):
        builders.save(tmp_path / "images" / name, builders.picture(camera, 0.0))
    points = builders.cloud()
    builders.write_colmap(
        tmp_path / "sparse/0", truth, points, binary=True, model="PINHOLE", names=listed
    )
    assert detect_format(tmp_path).title == "COLMAP"


def test_a_plain_colmap_scene_is_still_one(tmp_path):
    builders.colmap_scene(tmp_path)
    builders.save(tmp_path / "masks" / "0.png", np.zeros((4, 4, 3), np.uint8))
    assert detect_format(tmp_path).title == "COLMAP"


def test_a_numbered_image_means_a_camera_in_the_published_layout_only(tmp_path):
    builders.multiview_scene(tmp_path, layout="published")
    assert builders.load(tmp_path).camera_names == ["cam01", "cam02", "cam03", "cam04"]
    (tmp_path / "sparse_").rename(tmp_path / "sparse")
    assert detect_format(tmp_path).title == "COLMAP"


def test_a_name_that_leads_elsewhere_leads_nowhere(tmp_path):
    builders.multiview_scene(tmp_path)
    path = tmp_path / "sparse/0/images.txt"
    path.write_text(path.read_text().replace("cam02.png", "../../etc/passwd"))
    with pytest.raises(UserError, match=r"\.\./\.\./etc/passwd.*no frames"):
        builders.load(tmp_path)


def test_a_damaged_model_is_named(tmp_path):
    builders.multiview_scene(tmp_path)
    path = tmp_path / "sparse/0/images.txt"
    path.write_text(path.read_text().replace("cam02.png", ""))
    with pytest.raises(UserError, match="images.txt: damaged"):
        builders.load(tmp_path)


@pytest.mark.parametrize("file", ["cameras", "images"])
@pytest.mark.parametrize("folder", ["sparse/0", "sparse", "colmap/sparse/0", "sparse_"])
def test_a_damaged_model_is_refused_by_name_in_every_place(tmp_path, folder, file):
    """Where COLMAP's reader does not look too, and where nerfstudio's would not look at it."""
    truth = builders.nerfstudio_scene(tmp_path, frames=2, cameras=3)
    names = [f"eye{i}.png" for i in range(3)]
    builders.write_colmap(
        tmp_path / folder, truth, builders.cloud(), binary=True, model="PINHOLE", names=names
    )
    assert builders.load(tmp_path).kind == "multiview"
    path = tmp_path / folder / f"{file}.bin"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=f"{folder}/{file}.bin: damaged"):
        builders.load(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=f"{folder}/{file}.bin: cannot be read"):
        builders.load(tmp_path)


def test_an_image_that_is_registered_twice_is_refused(tmp_path):
    builders.multiview_scene(tmp_path)
    path = tmp_path / "sparse/0/images.txt"
    path.write_text(path.read_text().replace("cam02.png", "cam01.png"))
    with pytest.raises(UserError, match=r"images.txt: registers cam01.png twice"):
        builders.load(tmp_path)


def test_two_images_of_one_camera_in_the_published_layout_are_refused(tmp_path):
    builders.multiview_scene(tmp_path, layout="published")
    path = tmp_path / "sparse_/images.bin"
    path.write_bytes(path.read_bytes().replace(b"image2.jpg", b"image1.jpf"))
    with pytest.raises(UserError, match=r"images.bin: image1.jpg and image1.jpf are both of"):
        builders.load(tmp_path)


def test_the_files_are_named_where_a_lens_or_a_name_is_wrong(tmp_path):
    builders.multiview_scene(tmp_path)
    lenses, images = (tmp_path / "sparse/0" / f"{name}.txt" for name in ("cameras", "images"))
    whole = lenses.read_text()
    lenses.write_text(whole.replace("50.0", "nan"))
    with pytest.raises(UserError, match=r"cameras.txt or images.txt: camera cam00"):
        builders.load(tmp_path)
    lenses.write_text(whole)
    images.write_text(images.read_text().replace("cam02.png", "cam20.png"))
    with pytest.raises(UserError, match=r"images.txt: cam20.png has a pose but no frames"):
        builders.load(tmp_path)
