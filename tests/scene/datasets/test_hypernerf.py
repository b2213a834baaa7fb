"""scene/datasets/hypernerf.py: cameras, splits, times, image sizes, lenses, clouds, damage."""

from __future__ import annotations

import warnings

import builders
import numpy as np
import pytest
from PIL import Image

from scene.datasets import detect_format
from utils.errors import UserError


@pytest.fixture
def capture(tmp_path):
    builders.hypernerf_scene(tmp_path)
    return tmp_path


def _edit_cameras(root, change) -> None:
    for path in (root / "camera").iterdir():
        builders.edit_json(path, change)


@pytest.mark.parametrize("rig_of_two", [False, True])
def test_cameras_project_the_marker_onto_the_picture(tmp_path, rig_of_two):
    truth = builders.hypernerf_scene(tmp_path, rig_of_two=rig_of_two)
    ids = [path.stem for path in (tmp_path / "rgb" / "2x").iterdir()]
    ids.sort(key=lambda name: (name[2:], name[0]))
    scene = builders.load(tmp_path)
    assert scene.kind == "hypernerf"
    for view in scene.train + scene.test:
        assert builders.marker_error(view) < 0.25
        assert builders.projection_error(view.camera, truth[ids.index(view.camera.name)]) < 1e-3


def test_a_gaussian_is_rendered_where_the_off_centre_principal_point_has_it(tmp_path):
    truth = builders.hypernerf_scene(tmp_path)
    point = np.array([0.1, 0.2, -0.3])
    centre = builders.blob_centre(builders.load(tmp_path).train[1].camera, point)
    assert np.linalg.norm(centre - truth[4].pixel(point)) < 0.05


def test_without_val_ids_every_fourth_is_trained_on_and_those_between_are_held_out(capture):
    scene = builders.load(capture)
    assert [v.camera.name for v in scene.train] == ["0_000000", "0_000004", "0_000008"]
    assert [v.camera.name for v in scene.test] == ["0_000002", "0_000006"]
    assert scene.camera_names == ["moving"]
    assert scene.times == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_val_ids_are_held_out_and_camera_ids_are_rows(tmp_path):
    builders.hypernerf_scene(tmp_path, frames=4, rig_of_two=True)
    scene = builders.load(tmp_path)
    assert [v.camera.name for v in scene.train] == ["0_000000", "1_000001", "0_000002", "1_000003"]
    assert [v.camera.name for v in scene.test] == ["1_000000", "0_000001", "1_000002", "0_000003"]
    assert scene.camera_names == ["cam00", "cam01"]
    assert [v.camera_index for v in scene.train] == [0, 1, 0, 1]
    assert scene.times == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert len({v.name for v in scene.train + scene.test}) == 8


def test_an_id_in_both_lists_is_not_trained_on(tmp_path, capsys):
    builders.hypernerf_scene(tmp_path, frames=4, rig_of_two=True)
    builders.edit_json(tmp_path / "dataset.json", lambda m: m.update(train_ids=m["ids"]))
    scene = builders.load(tmp_path)
    assert (len(scene.train), len(scene.test)) == (4, 4)
    assert "4 ids of val_ids are in train_ids" in capsys.readouterr().err


def test_times_are_warp_ids_whatever_the_order_of_the_ids(capture):
    def double_and_shift(metadata: dict) -> None:
        for entry in metadata.values():
            entry["warp_id"] = 2 * entry["warp_id"] + 6

    builders.edit_json(capture / "metadata.json", double_and_shift)
    builders.edit_json(capture / "dataset.json", lambda m: m["ids"].reverse())
    scene = builders.load(capture)
    assert [v.time for v in scene.train] == [1.0, 0.5, 0.0]
    assert max(builders.marker_error(view) for view in scene.train + scene.test) < 0.25


def test_clip_settings_count_training_times(capture, capsys):
    scene = builders.load(capture, start_frame=1)
    assert [v.camera.name for v in scene.train] == ["0_000004", "0_000008"]
    assert [(v.camera.name, v.time) for v in scene.test] == [("0_000006", 0.5)]
    assert "1 of 2 test views lie outside the clip" in capsys.readouterr().err


@pytest.mark.parametrize("rig_of_two", [False, True])
def test_published_time_is_number_over_count(tmp_path, rig_of_two):
    builders.hypernerf_scene(tmp_path, rig_of_two=rig_of_two)
    scene = builders.load(tmp_path, time_convention="published")
    count = scene.frame_count
    assert scene.times == pytest.approx([i / count for i in range(count)])
    assert [v.time for v in scene.video] == pytest.approx(scene.times)
    cut = builders.load(tmp_path, time_convention="published", duration=2)
    assert cut.times == pytest.approx([i / cut.frame_count for i in range(cut.frame_count)])


def test_published_time_of_a_single_moment_is_zero(tmp_path):
    builders.hypernerf_scene(tmp_path)
    assert builders.load(tmp_path, time_convention="published", duration=1).times == [0.0]


def _rescale(root, folder: str, size: tuple[int, int]) -> None:
    (root / "rgb" / folder).mkdir()
    for path in (root / "rgb" / "2x").iterdir():
        Image.open(path).resize(size, Image.Resampling.BICUBIC).save(
            root / "rgb" / folder / path.name
        )


def test_half_size_is_used_as_published_unless_it_is_missing_or_another_is_named(capture):
    _rescale(capture, "1x", (128, 96))
    _rescale(capture, "4x", (32, 24))
    assert builders.load(capture).train[0].camera.width == 64
    for images, width in (("rgb/4x", 32), ("rgb/1x", 128)):
        view = builders.load(capture, images=images).train[1]
        assert view.camera.width == width
        assert builders.marker_error(view) < 0.3
    with pytest.raises(UserError, match="--images rgb/8x: no such folder"):
        builders.load(capture, images="rgb/8x")
    (capture / "rgb" / "2x").rename(capture / "rgb" / "16x")
    assert builders.load(capture).train[0].camera.width == 128


def test_no_images_at_all(capture):
    (capture / "rgb").rename(capture / "pictures")
    with pytest.raises(UserError, match="rgb/2x: missing"):
        builders.load(capture)


def test_distortion_is_left_out_and_a_note_says_by_how_much(capture, capsys):
    builders.load(capture)
    assert "distorted" not in capsys.readouterr().err
    k1, p2 = 0.02, 0.003
    _edit_cameras(
        capture, lambda m: m.update(radial_distortion=[k1, 0, 0], tangential_distortion=[0, p2])
    )
    scene = builders.load(capture)
    said = capsys.readouterr().err
    worst = 0.0
    for view in scene.train + scene.test:
        c = view.camera
        for u in (0, c.width):
            for v in (0, c.height):
                x, y = (u - c.cx) / c.fx, (v - c.cy) / c.fy
                r2 = x**2 + y**2
                dx, dy = x * k1 * r2 + p2 * (r2 + 2 * x * x), y * k1 * r2 + 2 * p2 * x * y
                worst = max(worst, float(np.hypot(dx * c.fx, dy * c.fy)))
    assert f"up to {worst:.2g} pixels" in said
    assert max(builders.marker_error(view) for view in scene.train) < 0.25


def test_skew_is_a_distortion_too(capture, capsys):
    _edit_cameras(capture, lambda m: m.update(skew=1.0))
    builders.load(capture)
    assert "distorted" in capsys.readouterr().err


def test_positions_are_used_as_they_are(tmp_path):
    truth = builders.hypernerf_scene(tmp_path)
    centres = [v.camera.camera_center.numpy() for v in builders.load(tmp_path).train]
    assert np.allclose(centres, [truth[i].pose[:3, 3] for i in (0, 4, 8)], atol=1e-5)


def test_clouds_in_their_order(capture):
    np.save(capture / "points.npy", builders.cloud(30).xyz)
    assert len(builders.load(capture).points) == 200
    builders.write_ply(capture / "points3D_downsample2.ply", builders.cloud(50))
    assert len(builders.load(capture).points) == 50
    (capture / "points3D_downsample2.ply").rename(capture / "points3d.ply")
    (capture / "points3D_downsample.ply").unlink()
    assert len(builders.load(capture).points) == 50
    (capture / "points3d.ply").unlink()
    points = builders.load(capture).points
    assert np.allclose(points.xyz, builders.cloud(30).xyz) and (points.rgb == 128).all()
    (capture / "points.npy").unlink()
    with pytest.raises(UserError, match=r"points3D_downsample.ply: missing.*pre_hypernerf.py"):
        builders.load(capture)


def test_points_of_another_shape(capture):
    (capture / "points3D_downsample.ply").unlink()
    np.save(capture / "points.npy", np.zeros((5, 4)))
    with pytest.raises(UserError, match=r"points.npy: has shape \(5, 4\)"):
        builders.load(capture)


def test_test_cameras_do_not_apply(capture):
    with pytest.raises(UserError, match="--test_cameras: .*dataset.json"):
        builders.load(capture, test_cameras=["0"])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m.update(orientation=[[1, 0], [0, 1]]), "orientation should be .* 3 x 3"),
        (lambda m: m["orientation"][0].__setitem__(0, float("nan")), "orientation holds NaN"),
        (lambda m: m["orientation"].__setitem__(0, [0, 0, 0]), "not a rotation"),
        (lambda m: m["orientation"].reverse(), "mirrors the world"),
        (lambda m: m.update(position=None), "has no 'position'"),
        (lambda m: m.update(focal_length=-5), "positive"),
        (lambda m: m.update(focal_length=10**400), "focal_length should be"),
        (lambda m: m.update(focal_length=1e300), "focal_length holds"),
        (lambda m: m.pop("focal_length"), "has no 'focal_length'"),
        (lambda m: m.update(principal_point="centre"), "principal_point should be"),
        (lambda m: m.update(radial_distortion=[1, 2]), "radial_distortion should be .* 3"),
        (lambda m: m.update(image_size=[0, 0]), "image_size is"),
    ],
)
def test_faults_of_a_camera_file(capture, change, match):
    builders.edit_json(capture / "camera" / "0_000004.json", change)
    with pytest.raises(UserError, match=f"0_000004.json.*{match}"):
        builders.load(capture)


@pytest.mark.parametrize(
    ("file", "change", "match"),
    [
        ("dataset.json", lambda m: m.pop("ids"), "no list 'ids'"),
        ("dataset.json", lambda m: m.update(ids=[]), "no image to train on"),
        ("dataset.json", lambda m: m.update(val_ids="all"), "no list 'val_ids'"),
        ("dataset.json", lambda m: m["ids"].__setitem__(0, "../0"), "'../0' is not the name"),
        ("dataset.json", lambda m: m["ids"].__setitem__(0, 7), "7 is not the name"),
        ("metadata.json", lambda m: m.pop("0_000004"), "0_000004: has no number 'warp_id'"),
        ("metadata.json", lambda m: m["0_000004"].update(warp_id="x"), "no number 'warp_id'"),
        ("metadata.json", lambda m: m["0_000004"].update(warp_id=-1), "no number 'warp_id'"),
        ("metadata.json", lambda m: m["0_000004"].update(camera_id=[]), "no number 'camera_id'"),
    ],
)
def test_faults_of_the_lists(capture, file, change, match):
    builders.edit_json(capture / file, change)
    with pytest.raises(UserError, match=f"{file}: .*{match}"):
        builders.load(capture)


@pytest.mark.parametrize("file", ["dataset.json", "metadata.json", "camera/0_000004.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "3"])
def test_json_that_is_damaged_or_something_else(capture, file, content):
    (capture / file).write_text(content)
    with pytest.raises(UserError, match=file):
        builders.load(capture)


@pytest.mark.parametrize("file", ["metadata.json", "camera/0_000004.json", "rgb/2x/0_000004.png"])
def test_a_missing_file_is_named(capture, file):
    (capture / file).unlink()
    with pytest.raises(UserError, match=f"{file}: missing"):
        builders.load(capture)


def test_a_stray_dataset_file_beside_a_colmap_model_changes_nothing(tmp_path):
    builders.colmap_scene(tmp_path)
    builders.write_json(tmp_path / "dataset.json", {})
    assert detect_format(tmp_path).title == "COLMAP"


def _points(root, content) -> None:
    (root / "points3D_downsample.ply").unlink()
    np.save(root / "points.npy", content)


def test_points_with_more_behind_them_are_refused(capture):
    _points(capture, builders.cloud().xyz)
    path = capture / "points.npy"
    path.write_bytes(path.read_bytes().replace(b"(200, 3)", b"(100, 3)"))
    with pytest.raises(UserError, match=r"points.npy: .*1200 bytes follow the array"):
        builders.load(capture)


def test_points_that_are_an_archive_are_refused(capture):
    _points(capture, np.zeros(3))
    (capture / "points.npy").write_bytes(b"PK\x05\x06" + bytes(18))
    with pytest.raises(UserError, match=r"points.npy: .*an archive"):
        builders.load(capture)


@pytest.mark.parametrize(
    ("bits", "kind"),
    [
        (b"\0\0\xa0\x7f", "<f4"),
        (b"\0\0\0\0\0\0\xf4\x7f", "<f8"),
        (b"\xff" * 6 + b"\xef\x7f", "<f8"),
    ],
)
def test_points_beyond_numbers_are_refused_without_a_warning(capture, bits, kind):
    points = builders.cloud().xyz.astype(kind)
    points[3, 0] = np.frombuffer(bits, kind)[0]
    _points(capture, points)
    path = capture / "points.npy"
    data = bytearray(path.read_bytes())
    at = len(data) - points.nbytes + 9 * points.itemsize
    data[at : at + len(bits)] = bits  # numpy itself may have made a signalling NaN a quiet one
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match=r"points.npy: 1 of 200 points are not finite"):
            builders.load(capture)


def test_an_id_without_times_names_the_list_it_is_in(capture):
    builders.edit_json(capture / "metadata.json", lambda meta: meta.pop("0_000000"))
    with pytest.raises(UserError, match=r"metadata.json: 0_000000: .*dataset.json lists it"):
        builders.load(capture)


def test_a_folder_in_the_place_of_the_list_is_no_colmap_scene(tmp_path):
    builders.hypernerf_scene(tmp_path)
    builders.colmap_scene(tmp_path)
    (tmp_path / "dataset.json").unlink()
    (tmp_path / "dataset.json").mkdir()
    with pytest.raises(UserError, match=r"dataset.json: not readable"):
        builders.load(tmp_path)
