"""Calibration files: their numbers as lenses and poses, and every way in which they are wrong."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

pycolmap = pytest.importorskip("pycolmap")
pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")

from script.preprocessing.calibration import opencv_lens, read_calibration  # noqa: E402
from script.preprocessing.footage import Clip  # noqa: E402
from utils.errors import UserError  # noqa: E402

SIZE = (640, 480)


def clips(*names: str, size: tuple[int, int] = SIZE) -> list[Clip]:
    return [Clip(name, Path(f"filmed/{name}.mp4"), size, 9, 30.0) for name in names]


# ---- TOML ---------------------------------------------------------------------------------------


def table(key: str = "cam_01", **changed: str) -> str:
    """A quarter turn about the camera's y axis."""
    values = {
        "name": '"cam_01"',
        "size": "[ 640.0, 480.0,]",
        "matrix": "[ [ 500.0, 0.0, 319.5,], [ 0.0, 510.0, 239.5,], [ 0.0, 0.0, 1.0,],]",
        "distortions": "[ 0.1, -0.02, 0.003, -0.004,]",
        "rotation": f"[ 0.0, {math.pi / 2}, 0.0,]",
        "translation": "[ 1.0, 2.0, 3.0,]",
        "fisheye": "false",
    } | changed
    lines = [f"{name} = {value}" for name, value in values.items() if value]
    return "\n".join([f"[{key}]", *lines, ""])


def toml(tmp_path: Path, *tables: str) -> Path:
    path = tmp_path / "Calib.toml"
    path.write_text("\n".join([*tables, "[metadata]", "adjusted = false", "error = 0.0"]))
    return path


def test_a_tomls_numbers(tmp_path):
    (found,) = read_calibration(toml(tmp_path, table()), clips("cam_01"))
    assert found.name == "cam_01" and found.lens.model_name == "OPENCV"
    assert (found.lens.width, found.lens.height) == SIZE
    # OpenCV's pixel centres are at integers, COLMAP's at halves.
    expected = [500, 510, 320, 240, 0.1, -0.02, 0.003, -0.004]
    assert found.lens.params == pytest.approx(expected)
    turn = [[0, 0, 1, 1], [0, 1, 0, 2], [-1, 0, 0, 3], [0, 0, 0, 1]]  # of x to -z, and z to x
    assert found.world_to_camera == pytest.approx(np.array(turn, float), abs=1e-12)


def test_a_rotation_vector_is_rodrigues(tmp_path):
    vector = np.array([0.3, -0.8, 0.5])
    path = toml(tmp_path, table(rotation=str(vector.tolist())))
    (found,) = read_calibration(path, clips("cam1"))
    angle = np.linalg.norm(vector)
    x, y, z = vector / angle
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    rodrigues = np.eye(3) + math.sin(angle) * k + (1 - math.cos(angle)) * k @ k
    assert found.world_to_camera[:3, :3] == pytest.approx(rodrigues, abs=1e-12)


def test_a_file_without_a_name_or_distortion_is_read(tmp_path):
    path = toml(tmp_path, table("cam_1", name="", distortions="", fisheye=""))
    (found,) = read_calibration(path, clips("cam1"))
    assert found.lens.params[4:] == pytest.approx(np.zeros(4))


def test_fisheyes_and_a_third_coefficient(tmp_path):
    fisheye = toml(tmp_path, table(fisheye="true"))
    assert read_calibration(fisheye, clips("cam1"))[0].lens.model_name == "OPENCV_FISHEYE"
    five = toml(tmp_path, table(distortions="[0.1, 0.2, 0.3, 0.4, 0.5]"))
    lens = read_calibration(five, clips("cam1"))[0].lens
    assert lens.model_name == "FULL_OPENCV"
    assert lens.params[4:] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0, 0, 0])


def test_a_lens_projects_as_opencv_does():
    k1, k2, p1, p2, k3, k4, k5, k6 = k = [0.1, -0.05, 0.002, -0.001, 0.01, 0.02, 0.03, -0.01]
    lens = opencv_lens(SIZE, [500, 510, 319.5, 239.5], k)
    x, y = 0.3, -0.2
    r2 = x * x + y * y
    radial = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
    u = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    v = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    expected = [[500 * u + 320, 510 * v + 240]]
    assert np.asarray(lens.img_from_cam(np.array([[x, y, 1.0]]))) == pytest.approx(
        np.array(expected)
    )


@pytest.mark.parametrize("name", ["cam_01", "cam1", "Cam01", "CAM-001", "cam__1"])
def test_names_are_matched_loosely_and_are_the_clips(tmp_path, name):
    (found,) = read_calibration(toml(tmp_path, table()), clips(name))
    assert found.name == name


def test_cameras_come_in_the_order_of_the_clips(tmp_path):
    tables = [
        table(f"c{i}", name=f'"cam{i}"', translation=f"[{i}.0, 0.0, 0.0]") for i in (10, 1, 2)
    ]
    found = read_calibration(toml(tmp_path, *tables), clips("cam1", "cam10"))
    assert [(c.name, c.world_to_camera[0, 3]) for c in found] == [("cam1", 1), ("cam10", 10)]


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"size": ""}, "size"),
        ({"size": "[640]"}, "not a calibration"),
        ({"size": "[inf, inf]"}, "not a calibration"),
        ({"size": "[-640, 480]"}, "not a calibration|no usable"),
        ({"size": "[0, 480]"}, "not a calibration|no usable"),
        ({"matrix": "[1.0, 2.0]"}, "not a calibration"),
        ({"matrix": '"x"'}, "not a calibration"),
        ({"matrix": "[[nan, 0, 1], [0, 500, 1], [0, 0, 1]]"}, "no usable intrinsics"),
        ({"matrix": "[[-5, 0, 1], [0, 500, 1], [0, 0, 1]]"}, "no usable intrinsics"),
        ({"distortions": "5"}, "not a calibration"),
        ({"distortions": "[1, 2, 3, 4, 5, 6, 7, 8, 9]"}, "9 distortion coefficients"),
        ({"distortions": "[nan, 0, 0, 0]"}, "no usable intrinsics"),
        ({"rotation": "[0.0, 1.0]"}, "not a calibration"),
        ({"rotation": "[nan, 0.0, 0.0]"}, "no usable"),
        ({"translation": "[inf, 0.0, 0.0]"}, "no usable"),
        ({"translation": "2001-01-01"}, "not a calibration"),
        ({"translation": ""}, "translation"),
        ({"rotation": "[" * 3000 + "]" * 3000}, "not a calibration"),
    ],
)
def test_a_toml_that_is_wrong_is_named(tmp_path, changed, text):
    with pytest.raises(UserError, match=f"Calib.toml.*({text})"):
        read_calibration(toml(tmp_path, table(**changed)), clips("cam1"))


def test_missing_cameras_are_all_named(tmp_path):
    with pytest.raises(UserError, match="has no camera cam2, left, only cam_01"):
        read_calibration(toml(tmp_path, table()), clips("cam1", "cam2", "left"))


def test_two_of_one_name_are_refused(tmp_path):
    twice = toml(tmp_path, table("a"), table("b", name='"Cam1"'))
    with pytest.raises(UserError, match=r"Calib\.toml: cameras cam_01 and Cam1 have one name"):
        read_calibration(twice, clips("cam1"))
    with pytest.raises(UserError, match="filmed: cameras cam1 and cam01 have one name"):
        read_calibration(toml(tmp_path, table()), clips("cam1", "cam01"))


def test_a_name_of_many_digits_is_a_name(tmp_path):
    with pytest.raises(UserError, match="has no camera cam1"):
        read_calibration(toml(tmp_path, table(name='"' + "9" * 9000 + '"')), clips("cam1"))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "holds no camera"),
        (b"[a]\nb = 1\n", "holds no camera"),
        (b"not = = toml", "not a calibration"),
        (b"\xff\xfe\x00", "not a calibration"),
        (b"#" * (5 << 20), "larger than 4 MB"),
        (b"<calibration><cameras>", "not a calibration"),
        (b"<calibration></calibration>", "holds no camera"),
    ],
)
def test_files_that_are_none_are_named(tmp_path, content, text):
    path = tmp_path / "Calib.toml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"Calib.toml.*{text}"):
        read_calibration(path, clips("cam1"))


def test_a_path_that_is_none_is_named(tmp_path):
    for path in (tmp_path / "nowhere.toml", tmp_path):
        with pytest.raises(UserError, match="no such file, nor a folder with a COLMAP model"):
            read_calibration(path, clips("cam1"))


# ---- sizes --------------------------------------------------------------------------------------


def test_smaller_footage_of_the_same_shape_scales_the_lens(tmp_path):
    (found,) = read_calibration(toml(tmp_path, table()), clips("cam1", size=(320, 240)))
    assert (found.lens.width, found.lens.height) == (320, 240)
    assert found.lens.params[:4] == pytest.approx([250, 255, 160, 120])


def test_rows_that_the_encoder_cut_off_leave_the_lens(tmp_path):
    (found,) = read_calibration(toml(tmp_path, table()), clips("cam1", size=(640, 472)))
    assert found.lens.params[:4] == pytest.approx([500, 510, 320, 240])
    assert (found.lens.width, found.lens.height) == (640, 472)


@pytest.mark.parametrize("size", [(480, 640), (640, 460), (644, 480)])
def test_another_shape_is_refused(tmp_path, size):
    with pytest.raises(UserError, match="cam_01 was calibrated at 640 x 480"):
        read_calibration(toml(tmp_path, table()), clips("cam1", size=size))


# ---- Qualisys -----------------------------------------------------------------------------------


def qualisys(tmp_path: Path, serial: str = "cam01", **changed: str) -> Path:
    """A camera 2 m before the origin that looks along the world's y axis, with z upwards."""
    rows = {"r11": 1, "r12": 0, "r13": 0, "r21": 0, "r22": 0, "r23": 1, "r31": 0, "r32": -1,
            "r33": 0, "x": 100, "y": -2000, "z": 500}  # fmt: skip
    lens = {
        "focalLengthU": 64 * 500, "focalLengthV": 64 * 510, "centerPointU": 64 * 319.5,
        "centerPointV": 64 * 239.5, "radialDistortion1": 0.1, "radialDistortion2": -0.02,
        "radialDistortion3": 0, "tangentalDistortion1": 0.003, "tangentalDistortion2": -0.004,
    }  # fmt: skip
    values = {k: str(v) for k, v in (rows | lens).items()} | changed

    def attributes(names: dict) -> str:
        return " ".join(f'{name}="{values[name]}"' for name in names if values[name])

    path = tmp_path / "Calib.qca.txt"
    path.write_text(
        f"""<?xml version='1.0' encoding='ASCII'?>
<calibration type="regular"><results std-dev="0."/><cameras>
  <camera active="1" serial="{serial}" viewrotation="0">
    <fov_marker bottom="9" left="0" right="9" top="0"/>
    <fov_video_max bottom="479" left="0" right="639" top="0"/>
    <transform {attributes(rows)}/>
    <intrinsic skew="0.0" {attributes(lens)}/>
  </camera>
</cameras></calibration>
"""
    )
    return path


def test_qualisys_numbers(tmp_path):
    (found,) = read_calibration(qualisys(tmp_path), clips("cam1"))
    assert (found.lens.width, found.lens.height) == SIZE
    expected = [500, 510, 320, 240, 0.1, -0.02, 0.003, -0.004]
    assert found.lens.params == pytest.approx(expected)
    pose = found.world_to_camera
    assert pose[:3, :3] @ [0.1, -2.0, 0.5] + pose[:3, 3] == pytest.approx(np.zeros(3), abs=1e-12)
    # The point 3 m ahead, 1 m to the right and 0.5 m up of the camera is right of and above centre.
    point = pose @ [1.1, 1.0, 1.0, 1.0]
    assert point[:3] == pytest.approx([1.0, -0.5, 3.0])


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"r11": "-1"}, "the rotation of cam01 is none"),  # left-handed
        ({"r11": "2"}, "the rotation of cam01 is none"),
        ({"r11": "nan"}, "no usable"),
        ({"x": "many"}, "not a calibration"),
        ({"focalLengthU": ""}, "focalLengthU"),
        ({"focalLengthU": "0"}, "no usable"),
    ],
)
def test_qualisys_files_that_are_wrong_are_named(tmp_path, changed, text):
    with pytest.raises(UserError, match=f"qca.txt.*{text}"):
        read_calibration(qualisys(tmp_path, **changed), clips("cam1"))


@pytest.mark.parametrize("old", ["<transform ", "<intrinsic ", "<fov_video_max "])
def test_a_camera_without_an_element_is_refused(tmp_path, old):
    path = qualisys(tmp_path)
    path.write_text(path.read_text().replace(old, "<other "))
    with pytest.raises(UserError, match=f"a camera has no {old.strip()}>"):
        read_calibration(path, clips("cam1"))


def test_an_infinite_size_is_refused(tmp_path):
    path = qualisys(tmp_path)
    path.write_text(path.read_text().replace('right="639"', 'right="inf"'))
    with pytest.raises(UserError, match="not a calibration"):
        read_calibration(path, clips("cam1"))


def test_entities_are_refused_before_they_are_expanded(tmp_path):
    path = qualisys(tmp_path, serial="&h;")
    entities = "".join(
        f'<!ENTITY {name} "{f"&{before};" * 10}">'
        for before, name in zip("abcdefg", "bcdefgh", strict=True)
    )
    head, rest = path.read_text().split("\n", 1)
    path.write_text(f'{head}\n<!DOCTYPE x [<!ENTITY a "ha">{entities}]>\n{rest}')
    with pytest.raises(UserError, match="declares entities"):
        read_calibration(path, clips("cam1"))


# ---- COLMAP -------------------------------------------------------------------------------------


def model(tmp_path: Path, lens: str = "OPENCV 640 480 500 510 320 240 0.1 0 0 0") -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    half = math.sqrt(0.5)
    (folder / "cameras.txt").write_text(f"7 {lens}\n")
    (folder / "images.txt").write_text(
        f"1 {half} 0 {half} 0 1 2 3 7 cam_02/0000.png\n\n2 1 0 0 0 0 0 0 7 cam_01.png\n\n"
    )
    (folder / "points3D.txt").write_text("")
    return folder


def test_a_colmap_models_numbers(tmp_path):
    first, second = read_calibration(model(tmp_path), clips("cam1", "cam2"))
    assert first.world_to_camera == pytest.approx(np.eye(4), abs=1e-12)
    turn = [[0, 0, 1, 1], [0, 1, 0, 2], [-1, 0, 0, 3], [0, 0, 0, 1]]
    assert second.world_to_camera == pytest.approx(np.array(turn, float), abs=1e-12)
    for camera in (first, second):
        assert camera.lens.model_name == "OPENCV"  # in COLMAP's own pixels: nothing is added
        assert camera.lens.params == pytest.approx([500, 510, 320, 240, 0.1, 0, 0, 0])


@pytest.mark.parametrize(
    ("lens", "text"),
    [
        ("SIMPLE_RADIAL 640 480 nan 320 240 0", "NaN|no usable"),
        ("SIMPLE_RADIAL 640 480 -5 320 240 0", "positive|no usable"),
        ("SIMPLE_RADIAL 640 480 500 320 240", "cameras.txt"),
        ("WONDERFUL 640 480 500 320 240", "cameras.txt"),
    ],
)
def test_a_colmap_model_that_is_wrong_is_named(tmp_path, lens, text):
    with pytest.raises(UserError, match=text):
        read_calibration(model(tmp_path, lens), clips("cam1", "cam2"))


def test_a_principal_point_at_the_border_is_no_fault_of_the_focal_length(tmp_path):
    folder = model(tmp_path, "SIMPLE_RADIAL 640 480 500 -1 240 0")
    assert read_calibration(folder, clips("cam1"))[0].lens.params[1] == -1
