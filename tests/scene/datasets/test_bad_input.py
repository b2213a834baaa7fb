"""What a user's scene folder can have wrong: one `UserError` that names the file, in seconds."""

from __future__ import annotations

import time
import warnings

import builders
import numpy as np
import pytest

from scene.point_cloud import PointCloud, write_ply
from utils.errors import UserError


def _refused(root, match: str, **settings) -> None:
    start = time.perf_counter()
    with pytest.raises(UserError, match=match) as error:
        builders.load(root, **settings)
    assert "\n" not in str(error.value)
    assert time.perf_counter() - start < 5


@pytest.fixture
def n3v(tmp_path):
    builders.n3v_scene(tmp_path, frames=12)
    return tmp_path


@pytest.fixture
def frames(tmp_path):
    builders.n3v_scene(tmp_path, frames=3, layout="images")
    return tmp_path


@pytest.fixture
def blender(tmp_path):
    builders.blender_scene(tmp_path)
    return tmp_path


@pytest.fixture
def panoptic(tmp_path):
    builders.panoptic_scene(tmp_path)
    return tmp_path


def _halve(path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


# Videos


def test_video_cut_in_half(n3v):
    _halve(n3v / "cam02.mp4")
    _refused(n3v, "cam02.mp4")


def test_video_of_random_bytes(n3v):
    (n3v / "cam02.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    _refused(n3v, "cam02.mp4: not a readable video")


def test_empty_video_file(n3v):
    (n3v / "cam02.mp4").write_bytes(b"")
    _refused(n3v, "cam02.mp4")


def test_video_with_damage_in_the_middle_names_the_frame(n3v):
    path = n3v / "cam02.mp4"
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat")
    middle = (start + data.index(b"moov")) // 2
    data[middle : middle + 400] = bytes(400)
    path.write_bytes(data)
    _refused(n3v, r"cam02.mp4: (frame \d+|ends after \d+)")


# Poses


def test_missing_video_reports_both_counts(n3v):
    (n3v / "cam02.mp4").unlink()
    _refused(n3v, "has 4 rows but .* has 3 cameras")


def test_no_camera_at_all(n3v):
    for path in n3v.glob("*.mp4"):
        path.unlink()
    _refused(n3v, "has 4 rows but .* has 0 cameras")


def test_wrong_number_of_rows(n3v):
    rows = np.load(n3v / "poses_bounds.npy")
    np.save(n3v / "poses_bounds.npy", rows[:3])
    _refused(n3v, "has 3 rows but .* has 4 cameras")


@pytest.mark.parametrize("shape", [(4, 15), (4, 3, 5), (0, 17)])
def test_wrong_shape_of_poses(n3v, shape):
    np.save(n3v / "poses_bounds.npy", np.zeros(shape))
    _refused(n3v, "poses_bounds.npy: has shape")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_poses_that_are_not_finite_name_the_row(n3v, value):
    rows = np.load(n3v / "poses_bounds.npy")
    rows[2, 3] = value
    np.save(n3v / "poses_bounds.npy", rows)
    _refused(n3v, "poses_bounds.npy: row 2 holds NaN")


def test_poses_that_are_no_rotation(n3v):
    np.save(n3v / "poses_bounds.npy", np.zeros((4, 17)))
    _refused(n3v, "poses_bounds.npy: camera cam00")


def test_mirrored_poses(n3v):
    rows = np.load(n3v / "poses_bounds.npy")
    rows[:, [0, 5, 10]] *= -1
    np.save(n3v / "poses_bounds.npy", rows)
    _refused(n3v, "cam00: its pose mirrors the world")


def test_negative_focal_length(n3v):
    rows = np.load(n3v / "poses_bounds.npy")
    rows[1, 14] = -5
    np.save(n3v / "poses_bounds.npy", rows)
    _refused(n3v, "cam01 .*must be positive")


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00v\x00{'descr'"])
def test_poses_file_that_is_no_array(n3v, content):
    (n3v / "poses_bounds.npy").write_bytes(content)
    _refused(n3v, "poses_bounds.npy")


def test_poses_file_with_a_pickle_is_not_unpickled(n3v):
    np.save(n3v / "poses_bounds.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    _refused(n3v, "poses_bounds.npy")


def test_poses_file_that_claims_terabytes(n3v):
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 17), }"
    header += b" " * (117 - len(header)) + b"\n"
    (n3v / "poses_bounds.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00" + header + bytes(100))
    _refused(n3v, "poses_bounds.npy")


def test_cloud_in_another_frame_than_the_poses(n3v):
    far = builders.cloud()
    write_ply(n3v / "points3D_downsample.ply", PointCloud(far.xyz + [0, 0, -1000], far.rgb))
    _refused(n3v, "poses_bounds.npy: no training camera sees any point")


# Point clouds


def test_empty_point_cloud_names_file_and_script(n3v):
    empty = PointCloud(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8))
    write_ply(n3v / "points3D_downsample.ply", empty)
    _refused(n3v, r"points3D_downsample.ply: holds no points; make it again")


def test_missing_point_cloud_names_file_and_remedy(n3v):
    (n3v / "points3D_downsample.ply").unlink()
    _refused(n3v, r"points3D_downsample.ply: missing; make it")


def test_point_cloud_cut_in_half(n3v):
    _halve(n3v / "points3D_downsample.ply")
    _refused(n3v, "points3D_downsample.ply: claims 200 vertex rows")


def test_points_that_are_not_finite(n3v):
    cloud = builders.cloud()
    cloud.xyz[7, 1] = np.nan
    write_ply(n3v / "points3D_downsample.ply", cloud)
    _refused(n3v, "points3D_downsample.ply: 1 of 200 points")


# Images


def test_jpeg_cut_in_half(panoptic):
    path = panoptic / "ims" / "1" / "000002.png"
    jpeg = path.with_suffix(".jpg")
    noise = np.random.default_rng(0).integers(0, 256, (*builders.SIZE[::-1], 3), dtype=np.uint8)
    builders.save(jpeg, noise)
    _halve(jpeg)
    jpeg.rename(path)
    _refused(panoptic, "1/000002.png: not a whole image")


@pytest.mark.parametrize("layout", ["n3v", "blender"])
def test_png_cut_in_half(layout, request):
    root = request.getfixturevalue("frames" if layout == "n3v" else "blender")
    path = root / ("images/cam03/0001.png" if layout == "n3v" else "test/r_0003.png")
    _halve(path)
    _refused(root, f"{path.name}: not a whole image")


def test_frame_of_another_size(frames):
    builders.save(frames / "images" / "cam01" / "0001.png", np.zeros((20, 20, 3), np.uint8))
    _refused(frames, "cam01/0001.png: is 20 x 20 where 64 x 48")


def test_missing_frame(panoptic):
    (panoptic / "ims" / "3" / "000001.png").unlink()
    _refused(panoptic, "3/000001.png: no such image")


# JSON files


@pytest.mark.parametrize(
    ("kind", "name"), [("blender", "transforms_train.json"), ("panoptic", "train_meta.json")]
)
@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"frames": 4}', "[" * 100_000])
def test_json_that_is_damaged_or_something_else(kind, name, content, request):
    root = request.getfixturevalue(kind)
    (root / name).write_text(content)
    _refused(root, name)


def _first(meta: dict) -> dict:
    return meta["frames"][0]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: _first(m).pop("transform_matrix"), "frame 0: transform_matrix"),
        (lambda m: _first(m).update(transform_matrix=[[1, 2], [3, 4]]), "shape 4 x 4"),
        (lambda m: _first(m).update(transform_matrix=[["x"] * 4] * 4), "transform_matrix"),
        (lambda m: _first(m)["transform_matrix"][0].__setitem__(3, float("nan")), "NaN"),
        (lambda m: _first(m).update(time=float("nan")), "frame 0: time"),
        (lambda m: _first(m).update(time="now"), "frame 0: time"),
        (lambda m: _first(m).update(time=-1), "frame 0: time"),
        (lambda m: _first(m).update(fl_x=-3), "must be positive"),
        (lambda m: _first(m).update(file_path=7), "frame 0: has no 'file_path'"),
        (lambda m: _first(m).update(file_path="./train/none"), "frame 0: no image"),
        (lambda m: m.update(frames=[]), "lists no frame"),
        (lambda m: (m.pop("camera_angle_x"), _first(m).pop("fl_x")), "neither fl_x nor"),
    ],
)
def test_faults_of_a_transforms_file(blender, change, match):
    builders.edit_json(blender / "transforms_train.json", change)
    _refused(blender, f"transforms_train.json.*{match}")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m.pop("w2c"), "has no entry 'w2c'"),
        (lambda m: m["k"].pop(), "frames listed"),
        (lambda m: m["fn"][1].pop(), "frame 1 lists different numbers of cameras"),
        (lambda m: [m[k][1].pop() for k in ("fn", "k", "w2c", "cam_id")], "every frame"),
        (lambda m: m["k"][0].__setitem__(0, [1, 2]), "frame 0, camera 0: k"),
        (lambda m: m["w2c"][2][1][0].__setitem__(0, float("nan")), "frame 2: camera cam01 .*NaN"),
        (lambda m: m["cam_id"][0].__setitem__(0, "zero"), "cam_id must be a number"),
        (lambda m: m["cam_id"][0].__setitem__(0, 1), "camera 1 is listed twice"),
        (lambda m: m.update(w="wide"), "w, h"),
        (lambda m: m.update(w=65), "is 64 x 48 where 65 x 48"),
        (lambda m: m.update({k: [] for k in ("fn", "k", "w2c", "cam_id")}), "frames listed"),
    ],
)
def test_faults_of_a_panoptic_file(panoptic, change, match):
    builders.edit_json(panoptic / "train_meta.json", change)
    _refused(panoptic, match)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive"])
def test_panoptic_cloud_that_is_no_archive(panoptic, content):
    (panoptic / "init_pt_cld.npz").write_bytes(content)
    _refused(panoptic, "init_pt_cld.npz")


@pytest.mark.parametrize(
    "arrays", [{"other": np.zeros((5, 7))}, {"data": np.zeros((5, 3))}, {"data": np.zeros((0, 7))}]
)
def test_panoptic_cloud_without_points(panoptic, arrays):
    np.savez(panoptic / "init_pt_cld.npz", **arrays)
    _refused(panoptic, "init_pt_cld.npz")


@pytest.mark.parametrize("method", [b"\x07\x00", b"\x0e\x00", b"\x63\x00"])
def test_panoptic_cloud_packed_in_another_way(panoptic, method):
    path = panoptic / "init_pt_cld.npz"
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        at = data.rindex(signature) + offset
        data[at : at + 2] = method
    path.write_bytes(data)
    _refused(panoptic, "init_pt_cld.npz: has no readable array 'data'")


def test_compressed_panoptic_cloud_with_a_wrong_byte(panoptic):
    path = panoptic / "init_pt_cld.npz"
    np.savez_compressed(path, data=np.random.default_rng(0).random((50, 7)))
    data = bytearray(path.read_bytes())
    for at in range(60, 120):
        data[at] ^= 0xFF
    path.write_bytes(data)
    _refused(panoptic, "init_pt_cld.npz: has no readable array 'data'")


def test_signalling_nan_in_the_panoptic_cloud_is_no_warning(panoptic):
    data = np.ones((5, 7), np.float32)
    data.view(np.uint32)[2, 1] = 0x7F800001
    np.savez(panoptic / "init_pt_cld.npz", data=data)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        _refused(panoptic, "init_pt_cld.npz: 1 of 5 points are not finite")


def test_panoptic_cloud_with_a_pickle_is_not_unpickled(panoptic):
    np.savez(panoptic / "init_pt_cld.npz", data=np.array([{"a": 1}], dtype=object))
    _refused(panoptic, "init_pt_cld.npz: has no readable array 'data'")


# What damaged bytes brought to light (fuzzing.py)


@pytest.fixture
def colmap(tmp_path):
    builders.colmap_scene(tmp_path, frames=3)
    return tmp_path


@pytest.fixture
def colmap_text(tmp_path):
    builders.colmap_scene(tmp_path, frames=3, binary=False)
    return tmp_path


def _edit(path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


def _edit_word(path, row: int, word: int, new: str) -> None:
    """Changes one word of a line that is no comment."""
    lines = path.read_text().splitlines()
    at = [i for i, line in enumerate(lines) if not line.startswith("#")][row]
    words = lines[at].split()
    words[word] = new
    lines[at] = " ".join(words)
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("file", ["poses_bounds.npy", "init_pt_cld.npz"])
def test_array_whose_header_has_no_end(file, request):
    root = request.getfixturevalue("n3v" if file.endswith("npy") else "panoptic")
    if file.endswith("npz"):
        np.savez(root / file, data=np.zeros((2, 7)))
    data = (root / file).read_bytes()
    at = data.index(b"'shape'")
    (root / file).write_bytes(data[:at] + b" " * 20 + data[at + 20 :])
    _refused(root, file)


@pytest.mark.parametrize("size", [1e-310, 0.1, np.nextafter(0, 1)])
def test_image_size_in_the_poses_that_is_none(n3v, size):
    rows = np.load(n3v / "poses_bounds.npy")
    rows[1, 4] = size
    np.save(n3v / "poses_bounds.npy", rows)
    _refused(n3v, "poses_bounds.npy: camera cam01 holds NaN")


@pytest.mark.parametrize("bounds", [(1e-310, 1e308), (1e-310, 1.0), (-1.0, 1.0), (1.0, 1e308)])
def test_bounds_that_overflow_leave_a_camera_path(n3v, bounds):
    rows = np.load(n3v / "poses_bounds.npy")
    rows[:, 15:] = bounds
    np.save(n3v / "poses_bounds.npy", rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        path = builders.load(n3v).video
    assert all(view.camera.world_to_camera.isfinite().all() for view in path)


@pytest.mark.parametrize("value", [1e12, -1e30, 1e38])
def test_pose_too_large_for_float32(n3v, value):
    rows = np.load(n3v / "poses_bounds.npy")
    rows[1, 3] = value
    np.save(n3v / "poses_bounds.npy", rows)
    _refused(n3v, r"poses_bounds.npy: camera cam01 holds numbers above 1e\+09")


def test_folder_in_the_place_of_a_video(n3v):
    (n3v / "cam01.mp4").unlink()
    (n3v / "cam01.mp4").mkdir()
    _refused(n3v, "cam01.mp4: a folder without images")


def test_video_whose_metadata_is_no_text_is_read(n3v):
    before = builders.load(n3v).train[0].image().clone()
    for name in ("cam00.mp4", "cam01.mp4"):
        _edit(n3v / name, b"Lavf", b"L\xff\xfef")
    assert (builders.load(n3v).train[0].image() == before).all()


@pytest.mark.parametrize("count", [1, 20, 199])
@pytest.mark.parametrize("ascii_ply", [True, False])
def test_cloud_with_more_rows_than_it_says(blender, count, ascii_ply):
    path = blender / "fused.ply"
    if ascii_ply:
        _write_ascii(path)
    _edit(path, b"element vertex 200\n", f"element vertex {count}\n".encode())
    _refused(blender, "fused.ply: goes on .*after")


def _write_ascii(path, colour: object = 7) -> None:
    cloud = builders.cloud()
    lines = ["ply", "format ascii 1.0", f"element vertex {len(cloud)}"]
    lines += [f"property float {axis}" for axis in "xyz"]
    lines += [f"property uchar {name}" for name in ("red", "green", "blue")] + ["end_header"]
    lines += [" ".join(map(str, (*row, 1, 2, colour))) for row in cloud.xyz.tolist()]
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("colour", ["nan", "inf", "1e30", "-1", "256"])
def test_ascii_colours_that_do_not_fit_their_type(blender, colour):
    _write_ascii(blender / "fused.ply")
    assert (builders.load(blender).points.rgb == [1, 2, 7]).all()
    _write_ascii(blender / "fused.ply", colour)
    _refused(blender, "fused.ply: has values of blue that are no uchar")


def test_points_beyond_float32(n3v):
    cloud = builders.cloud()
    cloud.xyz[3, 1] = 1e30
    write_ply(n3v / "points3D_downsample.ply", cloud)
    _refused(n3v, "points3D_downsample.ply: 1 of 200 points have coordinates above")


@pytest.mark.parametrize("chunk", [b"IDAT", b"IHDR"])
def test_png_whose_checksum_does_not_match(frames, chunk):
    path = frames / "images" / "cam01" / "0001.png"
    data = bytearray(path.read_bytes())
    at = data.index(chunk)
    end = at + 4 + int.from_bytes(data[at - 4 : at], "big")
    data[end] ^= 1  # of the checksum itself
    path.write_bytes(data)
    with pytest.raises(UserError, match="cam01/0001.png: not a whole image"):
        builders.load(frames).train[1].image()


@pytest.mark.parametrize("length", [0x7FFFFFFF, 0xFFFFFFFF, 100_000])
def test_png_chunk_longer_than_the_file_costs_nothing(frames, length):
    path = frames / "images" / "cam01" / "0001.png"
    data = bytearray(path.read_bytes())
    at = data.index(b"IDAT")
    data[at - 4 : at] = length.to_bytes(4, "big")
    path.write_bytes(data)
    _refused(frames, "cam01/0001.png: not a whole image .one of its chunks is longer")


@pytest.mark.parametrize("value", [10**400, float("nan"), float("inf"), 64.5, 0, -64])
def test_width_that_is_no_number_of_pixels(panoptic, value):
    builders.edit_json(panoptic / "train_meta.json", lambda m: m.update(w=value))
    _refused(panoptic, "train_meta.json: w, h should be")


def test_width_of_one_file_that_the_images_do_not_have_names_that_file(panoptic):
    builders.edit_json(panoptic / "test_meta.json", lambda m: m.update(w=65))
    _refused(panoptic, "is 64 x 48 where 65 x 48 is expected by test_meta.json")


@pytest.mark.parametrize("key", ["w2c", "k"])
def test_number_that_no_float_holds(panoptic, key):
    def change(meta: dict) -> None:
        meta[key][0][0][1][1] = 10**400

    builders.edit_json(panoptic / "train_meta.json", change)
    _refused(panoptic, f"train_meta.json: frame 0, camera 0: {key}")


@pytest.mark.parametrize("name", ["y" * 5000, "a\0b", "two\nlines", "../../nowhere"])
@pytest.mark.parametrize("kind", ["blender", "panoptic"])
def test_image_name_that_no_file_can_have(kind, name, request):
    def change(meta: dict) -> None:
        if kind == "blender":
            _first(meta)["file_path"] = name
        else:
            meta["fn"][0][0] = name

    root = request.getfixturevalue(kind)
    file = "transforms_train.json" if kind == "blender" else "train_meta.json"
    builders.edit_json(root / file, change)
    _refused(root, rf"{file}: .*(no image|no such image)")


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
def test_bytes_after_the_last_record(colmap, name):
    path = colmap / "sparse" / "0" / f"{name}.bin"
    path.write_bytes(path.read_bytes() + b"\0")
    _refused(colmap, f"{name}.bin: damaged .1 bytes follow the last record")


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
@pytest.mark.parametrize("lines", [1, 2])
def test_text_model_cut_after_a_line(colmap_text, name, lines):
    path = colmap_text / "sparse" / "0" / f"{name}.txt"
    rows = path.read_text().splitlines(keepends=True)
    path.write_text("".join(rows[: -lines * (2 if name == "images" else 1)]))
    _refused(colmap_text, f"{name}.txt")


@pytest.mark.parametrize("name", ["cameras", "images"])
def test_text_model_cut_within_its_last_number(colmap_text, name):
    path = colmap_text / "sparse" / "0" / f"{name}.txt"
    path.write_bytes(path.read_bytes().rstrip()[:-1])
    _refused(colmap_text, f"{name}.txt: damaged .ends within a line")


def test_text_model_without_comments_may_end_without_a_newline(colmap_text):
    for path in (colmap_text / "sparse" / "0").iterdir():
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        path.write_text("\n".join(lines))
    assert len(builders.load(colmap_text).points) == 200


@pytest.mark.parametrize("value", ["nan", "256", "-1", "1e9"])
def test_text_colours_that_are_none(colmap_text, value):
    _edit_word(colmap_text / "sparse" / "0" / "points3D.txt", 5, 4, value)
    _refused(colmap_text, "points3D.txt: damaged .*colours")


def test_row_of_text_points_without_its_error(colmap_text):
    path = colmap_text / "sparse" / "0" / "points3D.txt"
    rows = path.read_text().splitlines()
    rows[-1] = " ".join(rows[-1].split()[:7])
    path.write_text("\n".join(rows) + "\n")
    _refused(colmap_text, "points3D.txt: damaged .point 199 is not")


def test_features_and_poses_out_of_step(colmap_text):
    path = colmap_text / "sparse" / "0" / "images.txt"
    rows = path.read_text().splitlines()
    rows[3] += " 4.0"
    path.write_text("\n".join(rows) + "\n")
    _refused(colmap_text, "images.txt: damaged .the features of 0000.png")


@pytest.mark.parametrize("value", ["0", "-1", "nan", "1e-300", "1e300"])
def test_senseless_focal_length_names_the_file_of_the_cameras(colmap_text, value):
    _edit_word(colmap_text / "sparse" / "0" / "cameras.txt", 1, 4, value)
    _refused(colmap_text, "cameras.txt or images.txt: camera 0001.png")


def test_photo_of_another_shape_than_its_camera(colmap):
    builders.save(colmap / "images" / "0001.png", np.zeros((32, 64, 3), np.uint8))
    _refused(colmap, "0001.png: is 64 x 32, which is no scaled 64 x 48 .*cameras.bin")


def test_pages_of_damage_do_not_fill_the_screen(blender):
    _edit(blender / "fused.ply", b"property float y\n", b"property " + 9000 * b"\1\2 " + b"y\n")
    with pytest.raises(UserError, match="fused.ply") as error:
        builders.load(blender)
    assert len(str(error.value)) < 500 and str(error.value).isprintable()


# Settings


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"start_frame": 12}, "--start_frame 12 leaves nothing of the 12 frames"),
        ({"frame_step": 0}, "--frame_step"),
        ({"duration": -1}, "--duration"),
        ({"resolution": 0}, "--resolution 0"),
        ({"test_cameras": ["0", "1", "2", "3"]}, "--test_cameras"),
    ],
)
def test_settings_that_leave_nothing_name_the_flag(n3v, settings, match):
    _refused(n3v, match, **settings)
