"""scene/colmap.py and scene/datasets/colmap.py: both encodings, lenses, the split, damage."""

from __future__ import annotations

import struct

import builders
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from scene.colmap import MODELS, ColmapCamera, find_model, read_model
from utils.errors import UserError


@pytest.mark.parametrize("binary", [True, False])
def test_cameras_project_the_marker_onto_the_picture(tmp_path, binary):
    builders.colmap_scene(tmp_path, binary=binary)
    scene = builders.load(tmp_path)
    assert scene.kind == "colmap"
    assert max(builders.marker_error(view) for view in scene.train + scene.test) < 0.25
    assert np.allclose(scene.points.xyz, builders.cloud().xyz, atol=1e-5)
    assert (scene.points.rgb == builders.cloud().rgb).all()


def test_every_eighth_image_is_held_out_unless_told_otherwise(tmp_path):
    builders.colmap_scene(tmp_path, frames=9)
    held_out = {v.camera.name for v in builders.load(tmp_path).test}
    assert held_out == {"0000.png", "0008.png"}
    assert len(builders.load(tmp_path, llffhold=3).test) == 3
    assert not builders.load(tmp_path, llffhold=0).test
    named = builders.load(tmp_path, test_cameras=["0003.png"])
    assert [v.camera.name for v in named.test] == ["0003.png"]


def test_times_run_over_the_images_in_order_of_name(tmp_path):
    builders.colmap_scene(tmp_path, frames=5)
    assert builders.load(tmp_path).times == [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("binary", [True, False])
def test_photos_are_moments_in_natural_order(tmp_path, binary):
    truth = builders.rig(12, spread=0.05)
    names = [f"{i + 1}.png" for i in range(12)]
    for i, name in enumerate(names):
        builders.save(tmp_path / "images" / name, builders.picture(truth[i], i / 11))
    folder = tmp_path / "sparse/0"
    builders.write_colmap(
        folder, truth, builders.cloud(), binary=binary, model="PINHOLE", names=names
    )
    scene = builders.load(tmp_path)
    assert [v.camera.name for v in scene.test] == ["1.png", "9.png"]
    by_time = sorted(scene.train + scene.test, key=lambda view: view.time)
    assert [v.camera.name for v in by_time] == names
    assert max(builders.marker_error(view) for view in by_time) < 0.25


def test_a_name_with_more_digits_than_a_number_can_have_is_refused(tmp_path):
    builders.colmap_scene(tmp_path, binary=False)
    path = tmp_path / "sparse/0/images.txt"
    path.write_text(path.read_text().replace("0004.png", f"{'7' * 5000}.png"))
    with pytest.raises(UserError, match=r"images.txt: damaged"):
        builders.load(tmp_path)


def _rig_in_a_folder(root, frames: int) -> None:
    """Folders one deeper than those of multi-view scenes; the model has one image of each."""
    truth = builders.rig(4)
    names = [f"rig/cam{i:02d}/0000.png" for i in range(4)]
    for name in names:
        for frame in range(frames):
            path = root / "images" / name
            builders.save(path.with_name(f"{frame:04d}.png"), np.zeros((48, 64, 3), np.uint8))
    points = builders.cloud()
    builders.write_colmap(
        root / "sparse/0", truth, points, binary=True, model="PINHOLE", names=names
    )


def test_first_frames_of_clips_are_refused_and_single_photos_in_folders_are_not(tmp_path):
    _rig_in_a_folder(tmp_path / "clips", frames=3)
    with pytest.raises(UserError, match=r"images.bin: .* static cameras.* to .*images$"):
        builders.load(tmp_path / "clips")
    for path in list((tmp_path / "clips/images/rig").iterdir()):
        path.rename(tmp_path / "clips/images" / path.name)  # as the line says
    assert builders.load(tmp_path / "clips").kind == "multiview"
    _rig_in_a_folder(tmp_path / "photos", frames=1)
    assert builders.load(tmp_path / "photos").kind == "colmap"


def test_smaller_photos_scale_the_intrinsics(tmp_path):
    builders.colmap_scene(tmp_path)
    (tmp_path / "images_2").mkdir()
    for path in (tmp_path / "images").iterdir():
        half = Image.open(path).resize((32, 24), Image.Resampling.BOX)
        half.save(tmp_path / "images_2" / path.name)
        path.unlink()
    (tmp_path / "images").rmdir()
    scene = builders.load(tmp_path)
    assert scene.train[0].camera.width == 32
    assert max(builders.marker_error(view) for view in scene.train) < 0.5


def test_a_distorted_lens_is_refused_with_the_command_that_mends_it(tmp_path):
    builders.colmap_scene(tmp_path, model="OPENCV")
    with pytest.raises(UserError, match="OPENCV.*colmap image_undistorter --image_path"):
        builders.load(tmp_path)


@pytest.mark.parametrize(
    ("model", "params", "pinhole"),
    [
        ("SIMPLE_PINHOLE", (5.0, 1.0, 2.0), (5, 5, 1, 2)),
        ("PINHOLE", (5.0, 6.0, 1.0, 2.0), (5, 6, 1, 2)),
        ("SIMPLE_RADIAL", (5.0, 1.0, 2.0, 0.0), (5, 5, 1, 2)),
        ("SIMPLE_RADIAL", (5.0, 1.0, 2.0, 1e-3), None),
        ("OPENCV", (5.0, 6.0, 1.0, 2.0, 0.0, 0.0, 0.0, 0.0), (5, 6, 1, 2)),
        ("OPENCV_FISHEYE", (5.0, 6.0, 1.0, 2.0, 0.0, 0.0, 0.0, 0.0), None),
    ],
)
def test_lenses_that_are_pinholes(model, params, pinhole):
    assert ColmapCamera(model, 10, 10, params).pinhole() == pinhole


def test_a_missing_photo_is_named(tmp_path):
    builders.colmap_scene(tmp_path)
    (tmp_path / "images" / "0004.png").unlink()
    with pytest.raises(UserError, match="0004.png: missing"):
        builders.load(tmp_path)


def test_a_photo_outside_the_folder_is_refused(tmp_path):
    builders.colmap_scene(tmp_path, binary=False)
    path = tmp_path / "sparse" / "0" / "images.txt"
    path.write_text(path.read_text().replace("0004.png", "../0004.png"))
    with pytest.raises(UserError, match=r"\.\./0004.png"):
        builders.load(tmp_path)


@pytest.mark.parametrize("name", ["images", "points3D"])
def test_a_missing_file_of_the_model_is_named(tmp_path, name):
    builders.colmap_scene(tmp_path)
    (tmp_path / "sparse" / "0" / f"{name}.bin").unlink()
    with pytest.raises(UserError, match=f"{name}.bin: cannot be read"):
        builders.load(tmp_path)


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
@pytest.mark.parametrize("binary", [True, False])
def test_a_file_cut_anywhere_is_an_error_or_the_whole_of_what_is_left(tmp_path, name, binary):
    builders.colmap_scene(tmp_path, binary=binary)
    folder = tmp_path / "sparse" / "0"
    path = folder / f"{name}{'.bin' if binary else '.txt'}"
    whole = path.read_bytes()
    lengths = range(0, len(whole), max(1, len(whole) // 40))
    faults = 0
    before = _content(folder)
    for length in lengths:
        path.write_bytes(whole[:length])
        try:
            assert _content(folder) == before and not binary  # behind what is used of it
        except UserError as error:
            faults += name in str(error)
    assert faults == len(lengths) if binary else faults > len(lengths) // 2


def _content(folder) -> tuple:
    model = read_model(folder)
    return model.cameras, model.images, model.points.xyz.tolist(), model.points.rgb.tolist()


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
def test_a_count_that_the_file_has_no_room_for_costs_nothing(tmp_path, name):
    builders.colmap_scene(tmp_path)
    path = tmp_path / "sparse" / "0" / f"{name}.bin"
    path.write_bytes(struct.pack("<Q", 1 << 60) + path.read_bytes()[8:])
    with pytest.raises(UserError, match=f"{name}.bin: damaged .claims 1152921504606846976"):
        read_model(path.parent)


@given(at=st.integers(0, 1 << 16), value=st.integers(0, 255))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_byte_may_be_wrong(tmp_path, at, value):
    folder = tmp_path / "sparse" / "0"
    if not folder.exists():
        builders.colmap_scene(tmp_path, frames=3)
    path = folder / ("cameras.bin", "images.bin", "points3D.bin")[at % 3]
    whole = path.read_bytes()
    broken = bytearray(whole)
    broken[at % len(broken)] = value
    path.write_bytes(broken)
    try:
        read_model(folder)
    except UserError:
        pass
    finally:
        path.write_bytes(whole)


def test_a_pose_that_is_none_is_refused(tmp_path):
    builders.colmap_scene(tmp_path, binary=False)
    path = tmp_path / "sparse" / "0" / "images.txt"
    lines = path.read_text().splitlines()
    words = lines[2].split()
    lines[2] = " ".join([words[0], "nan", *words[2:]])
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match="pose of 0000.png"):
        read_model(path.parent)


def test_the_number_of_a_model_is_its_place_in_the_table():
    assert [MODELS[i][0] for i in (0, 1, 4, 6, 10)] == [
        "SIMPLE_PINHOLE",
        "PINHOLE",
        "OPENCV",
        "FULL_OPENCV",
        "THIN_PRISM_FISHEYE",
    ]


def test_photos_with_llff_poses_beside_a_model_are_no_video_rig(tmp_path):
    builders.colmap_scene(tmp_path)
    np.save(tmp_path / "poses_bounds.npy", np.zeros((9, 17)))
    assert builders.load(tmp_path).kind == "colmap"


def test_a_real_distorted_model_is_read_and_refused_as_a_scene(shared_data):
    root = shared_data / "colmap_beer"
    model = read_model(find_model(root))
    assert (len(model.images), len(model.points)) == (71, 4414)
    with pytest.raises(UserError, match="SIMPLE_RADIAL.*image_undistorter"):
        builders.load(root)


def test_real_points_have_the_colours_of_the_pixels_they_project_to(shared_data, tmp_path):
    root = shared_data / "n3v_stills"
    (tmp_path / "sparse").symlink_to(root / "sparse")
    (tmp_path / "images").mkdir()
    for photo, name in enumerate((0, 3, 5, 8, 14), 1):  # the photos were renamed, in this order
        (tmp_path / "images" / f"{name}.jpg").symlink_to(root / "images" / f"{photo}.jpg")
    scene = builders.load(tmp_path)
    rng = np.random.default_rng(0)
    for view in scene.train + scene.test:
        seen = view.camera.sees(scene.points.xyz)
        pixels, _ = view.camera.project(scene.points.xyz[seen])
        x, y = np.rint(pixels).astype(int).T
        colours = view.image().numpy()[y, x].astype(float)
        points = scene.points.rgb[seen].astype(float)
        error = np.median(np.abs(colours - points))
        by_chance = np.median(np.abs(colours - rng.permutation(points)))
        assert error < 0.4 * by_chance, (view.name, error, by_chance)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("images: 9", "images: ", "'Number of' has no number"),
        ("0001.png", "0001.pn\0", "zero bytes"),
        ("0001.png", "0002.png", "registers 0002.png twice"),
    ],
)
def test_a_text_that_was_written_over_is_refused(tmp_path, old, new, match):
    builders.colmap_scene(tmp_path, binary=False)
    path = tmp_path / "sparse/0/images.txt"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=f"images.txt: .*{match}"):
        builders.load(tmp_path)


def test_a_folder_in_the_place_of_the_cameras_is_no_reason_to_read_another_format(tmp_path):
    builders.nerfstudio_scene(tmp_path, times=False)
    (tmp_path / "sparse/0/cameras.bin").mkdir(parents=True)
    with pytest.raises(UserError, match=r"cameras.bin: cannot be read"):
        builders.load(tmp_path)
