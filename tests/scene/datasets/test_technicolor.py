"""scene/datasets/technicolor.py: rows, raw and extracted frames, sizes, what is missing."""

from __future__ import annotations

import builders
import numpy as np
import pytest

from utils.errors import UserError


@pytest.fixture
def raw(tmp_path):
    builders.technicolor_scene(tmp_path)
    return tmp_path


@pytest.mark.parametrize("layout", ["raw", "images"])
def test_cameras_project_the_marker_onto_the_picture(tmp_path, layout):
    truth = builders.technicolor_scene(tmp_path, layout=layout)
    scene = builders.load(tmp_path)
    assert scene.kind == "technicolor"
    assert max(builders.marker_error(view) for view in scene.train + scene.test) < 0.25
    for view in scene.train + scene.test:
        assert builders.projection_error(view.camera, truth[view.camera_index]) < 1e-3


def test_intrinsics_are_those_of_the_native_size(tmp_path):
    truth = builders.technicolor_scene(tmp_path)
    for path in tmp_path.glob("*.png"):
        builders.save(path, np.zeros((272, 512, 3), np.uint8))
    view = builders.load(tmp_path).train[0]
    assert (view.camera.width, view.camera.height) == (512, 272)
    assert builders.projection_error(view.camera, truth[0], scale=8) < 1e-2
    small = builders.load(tmp_path, resolution=8).train[0]
    assert builders.projection_error(small.camera, truth[0]) < 1e-3


def test_a_gaussian_is_rendered_where_the_off_centre_principal_point_has_it(tmp_path):
    truth = builders.technicolor_scene(tmp_path)
    point = np.array([0.1, -0.1, 0.2])
    view = builders.load(tmp_path).train[0]
    centre = builders.blob_centre(view.camera, point)
    assert np.linalg.norm(centre - truth[0].pixel(point)) < 0.05


def test_cam10_is_held_out_unless_told_otherwise(raw):
    scene = builders.load(raw)
    assert {v.camera.name for v in scene.test} == {"cam10"}
    assert scene.camera_names == [f"cam{i:02d}" for i in range(12)]
    other = builders.load(raw, test_cameras=["cam02", "3"])
    assert {v.camera.name for v in other.test} == {"cam02", "cam03"}


def test_a_smaller_rig_holds_out_its_first_camera(tmp_path):
    builders.technicolor_scene(tmp_path, cameras=4)
    assert {v.camera.name for v in builders.load(tmp_path).test} == {"cam00"}


def test_times_and_clip_settings(tmp_path):
    builders.technicolor_scene(tmp_path, cameras=3, frames=5)
    assert builders.load(tmp_path).times == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert builders.load(tmp_path, time_convention="published").times[-1] == 0.8
    cut = builders.load(tmp_path, start_frame=1, frame_step=2)
    assert cut.times == [0.0, 1.0]
    assert [p.name for p in cut.train[0].store.sources[2].paths] == [
        "Toy_undist_00152_02.png",
        "Toy_undist_00154_02.png",
    ]


def test_extracted_frames_go_before_raw_ones_if_all_cameras_have_them(tmp_path):
    builders.technicolor_scene(tmp_path, cameras=3)
    builders.technicolor_scene(tmp_path, cameras=3, layout="images")
    assert builders.load(tmp_path).train[0].store.sources[0].paths[0].name == "0000.png"
    (tmp_path / "images" / "cam01").rename(tmp_path / "elsewhere")
    assert builders.load(tmp_path).train[0].store.sources[0].paths[0].name.startswith("Toy_")


def test_the_first_missing_frame_is_named(raw):
    (raw / "Toy_undist_00152_07.png").unlink()
    with pytest.raises(UserError, match=r"Toy_undist_00152_07.png: missing"):
        builders.load(raw)
    assert builders.load(raw, duration=1).frame_count == 1


def test_a_camera_that_the_file_does_not_list_is_named(raw):
    builders.save(raw / "Toy_undist_00151_12.png", np.zeros((34, 64, 3), np.uint8))
    with pytest.raises(UserError, match=r"Toy_undist_00151_12.png.*no row 12"):
        builders.load(raw)


def test_frames_of_two_scenes_are_refused(raw):
    builders.save(raw / "Painter_undist_00151_00.png", np.zeros((34, 64, 3), np.uint8))
    with pytest.raises(UserError, match="frames of Painter and of Toy"):
        builders.load(raw)


def test_no_frames_at_all(raw):
    for path in raw.glob("*.png"):
        path.unlink()
    with pytest.raises(UserError, match=r"images/cam00: has no frames.*restore them"):
        builders.load(raw)


def test_a_missing_cloud_is_named_with_the_command_that_makes_it(raw):
    (raw / "points3D_downsample.ply").unlink()
    with pytest.raises(UserError, match=r"points3D_downsample.ply: missing.*pre_technicolor.py"):
        builders.load(raw)


def test_columns_may_be_separated_by_commas(raw):
    path = raw / "cameras_parameters.txt"
    path.write_text(path.read_text().replace(" ", ", "))
    assert max(builders.marker_error(view) for view in builders.load(raw).train) < 0.25


def _edit(root, column: int, word: str, line: int = 3) -> None:
    path = root / "cameras_parameters.txt"
    lines = path.read_text().splitlines()
    words = lines[line - 1].split()
    words[column] = word
    lines[line - 1] = " ".join(words)
    path.write_text("\n".join(lines))


@pytest.mark.parametrize("column", [0, 1, 5, 11])
@pytest.mark.parametrize("word", ["nan", "inf", "1e300"])
def test_numbers_that_are_not_finite_name_the_line(raw, column, word):
    _edit(raw, column, word)
    with pytest.raises(UserError, match="line 3: is no camera"):
        builders.load(raw)


@pytest.mark.parametrize("word", ["0", "-7"])
def test_a_focal_length_that_is_none(raw, word):
    _edit(raw, 0, word)
    with pytest.raises(UserError, match="camera cam01 .* positive"):
        builders.load(raw)


def test_a_quaternion_of_zeros(raw):
    for column in range(5, 9):
        _edit(raw, column, "0")
    with pytest.raises(UserError, match="line 3: is no camera"):
        builders.load(raw)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("titles\n", "has no row after its titles"),
        ("titles\n1 2 3\n", "line 2: has 3 of 12 columns"),
        ("titles\n" + "x " * 12, "line 2: not a row of numbers"),
    ],
)
def test_a_file_that_is_something_else(raw, text, match):
    (raw / "cameras_parameters.txt").write_text(text)
    with pytest.raises(UserError, match=f"cameras_parameters.txt: {match}"):
        builders.load(raw)


def test_a_file_of_random_bytes(raw):
    (raw / "cameras_parameters.txt").write_bytes(np.random.default_rng(0).bytes(500))
    with pytest.raises(UserError, match="cameras_parameters.txt: cannot be read as text"):
        builders.load(raw)


def test_camera_to_world_in_place_of_world_to_camera_is_refused(tmp_path):
    truth = builders.technicolor_scene(tmp_path)
    path = tmp_path / "cameras_parameters.txt"
    lines = path.read_text().splitlines()
    for i, camera in enumerate(truth):
        w, x, y, z = map(float, lines[i + 1].split()[5:9])
        values = [*lines[i + 1].split()[:5], w, -x, -y, -z, *camera.pose[:3, 3]]
        lines[i + 1] = " ".join(map(str, values))
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"cameras_parameters.txt.*mixed up"):
        builders.load(tmp_path)


def test_extracted_frames_of_a_camera_whose_row_is_lost_are_named(tmp_path):
    builders.technicolor_scene(tmp_path, cameras=4, layout="images")
    path = tmp_path / "cameras_parameters.txt"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(UserError, match=r"cam03: cameras_parameters.txt has no row 03"):
        builders.load(tmp_path)


@pytest.mark.parametrize("layout", ["raw", "images"])
def test_a_row_without_frames_names_the_file_with_the_rows(tmp_path, layout):
    builders.technicolor_scene(tmp_path, cameras=3, layout=layout)
    path = tmp_path / "cameras_parameters.txt"
    path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n")
    with pytest.raises(UserError, match=r"03.*cameras_parameters.txt"):
        builders.load(tmp_path)
