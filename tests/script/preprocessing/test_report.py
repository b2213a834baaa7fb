"""The report: what is measured, what is called suspicious, and how it is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scene.cameras import Camera
from script.preprocessing import report
from script.preprocessing.report import CameraFinding, Findings
from script.preprocessing.sync import Offset
from utils.errors import UserError

WIDTH, HEIGHT = 200, 150


def camera(name: str, x: float = 0.0, turn: float = 0.0) -> Camera:
    """At (x, 0, 0), turned about y by ``turn`` radians; looks along z at first."""
    c, s = np.cos(turn), np.sin(turn)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.tensor([[c, 0, -s], [0, 1, 0], [s, 0, c]])
    pose[:3, 3] = -pose[:3, :3] @ torch.tensor([x, 0, 0], dtype=torch.float64)
    return Camera(name, WIDTH, HEIGHT, 180.0, 180.0, WIDTH / 2, HEIGHT / 2, pose.float())


def finding(name: str = "cam0", **changed: object) -> CameraFinding:
    plain = CameraFinding(camera(name), 60, 30.0, 0.8, 500, 0.4, 1.0, Offset(0.1, 0.9), 0.5, 12.0)
    return replace(plain, **changed)


def suspicions(**changed: object) -> list[str]:
    cameras = [finding(f"cam{i}") for i in range(3)]
    return Findings([*cameras, finding("odd", **changed)], 1000, 2.0).suspicions()


def test_nothing_is_suspicious_about_a_good_rig():
    assert suspicions() == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"coverage": 0.1}, "odd: sees 10% of the points, others 80%"),
        ({"error": 1.7}, "odd: mean reprojection error 1.70 pixels"),
        ({"gain": 0.7}, "odd: 30% darker than the others; train with --camera_color"),
        ({"gain": 1.25}, "odd: 25% brighter"),
        ({"offset": Offset(-5.2, 0.8)}, "odd: -5.2 frames out of step"),
    ],
)
def test_each_kind_of_fault_is_one_line(changed, said):
    (line,) = suspicions(**changed)
    assert line.startswith(said)


@pytest.mark.parametrize(
    "changed",
    [
        {"coverage": 0.3},
        {"error": None},
        {"error": 0.99},
        {"gain": None},
        {"gain": 0.9},
        {"offset": None},
        {"offset": Offset(9.0, 0.3)},
        {"offset": Offset(0.6, 0.9)},
    ],
)
def test_what_is_usual_or_unknown_is_no_fault(changed):
    assert suspicions(**changed) == []


def test_reprojection_errors_count_by_the_pictures_size():
    wide = replace(camera("odd"), width=3200)
    assert suspicions(camera=wide, error=3.5) == []
    assert len(suspicions(camera=wide, error=4.5)) == 1


def test_missing_cameras_are_named():
    found = Findings([finding()], 10, 1.0, missing=["cam7"])
    assert found.suspicions()[0].startswith("cam7: no pose was found")


def test_the_nearest_camera_and_the_angle_to_it():
    rig = [camera("a"), camera("b", 1.0, np.radians(20)), camera("c", 4.0, np.radians(-10))]
    found = report.neighbours(rig)
    assert [d for d, _ in found] == pytest.approx([1, 1, 3])
    assert [a for _, a in found] == pytest.approx([20, 20, 30], abs=1e-3)


# ---- measured on a model ------------------------------------------------------------------------


def model(folder: Path, rig: list[Camera], count: int, off: np.ndarray) -> np.ndarray:
    """A COLMAP model with tracks; features of camera i are ``off[i]`` pixels from where they are.

    Points are seen in turn by two and by all cameras.
    """
    import pycolmap

    xyz = np.random.default_rng(0).uniform([-0.6, -0.6, 2.5], [1.2, 0.6, 3.5], (count, 3))
    found = pycolmap.Reconstruction()
    for i, c in enumerate(rig, 1):
        lens = pycolmap.Camera(
            camera_id=i, model="PINHOLE", width=c.width, height=c.height,
            params=[c.fx, c.fy, c.cx, c.cy],
        )  # fmt: skip
        found.add_camera_with_trivial_rig(lens)
        image = pycolmap.Image(image_id=i, camera_id=i, name=f"{c.name}.png")
        where = c.project(xyz)[0] + 0.5 + off[i - 1]
        image.points2D = pycolmap.Point2DList([pycolmap.Point2D(xy=xy) for xy in where])
        pose = pycolmap.Rigid3d(c.world_to_camera.numpy()[:3].astype(float))
        found.add_image_with_trivial_frame(image, pose)
    for row, point in enumerate(xyz):
        seen = range(len(rig)) if row % 2 else [row // 2 % len(rig), (row // 2 + 1) % len(rig)]
        track = pycolmap.Track()
        for i in seen:
            track.add_element(i + 1, row)
        found.add_point3D(point, track)
    folder.mkdir(parents=True)
    found.write_text(folder)
    return xyz


@pytest.fixture
def rig() -> list[Camera]:
    return [camera(f"cam{i}", 0.2 * i) for i in range(4)]


def pictures(brightness: list[float]) -> list[np.ndarray]:
    return [np.full((HEIGHT, WIDTH, 3), round(120 * b), np.uint8) for b in brightness]


def test_a_darker_camera_is_found_with_its_number(tmp_path, rig):
    pytest.importorskip("pycolmap")
    model(tmp_path / "m" / report.SPARSE, rig, 80, np.zeros((4, 2)))
    frames = pictures([1.0, 1.0, 0.7, 1.0])
    observations, errors, gains = report.observe(rig, {tmp_path / "m": frames})
    assert gains == pytest.approx([1, 1, 0.7, 1], abs=0.02)
    assert observations == [40 + 20] * 4
    assert errors == pytest.approx([0] * 4, abs=1e-3)
    cameras = [
        finding(c.name, gain=gain, error=error)
        for c, gain, error in zip(rig, gains, errors, strict=True)
    ]
    (line,) = Findings(cameras, 80, 1.0).suspicions()
    assert line.startswith("cam2: 30% darker")


def test_reprojection_errors_are_those_of_the_camera(tmp_path, rig):
    pytest.importorskip("pycolmap")
    off = np.array([[0, 0], [3, -4], [0, 0], [0.5, 0]])
    model(tmp_path / "m" / report.SPARSE, rig, 40, off)
    errors = report.observe(rig, {tmp_path / "m": pictures([1] * 4)})[1]
    assert errors == pytest.approx([0, 5, 0, 0.5], abs=1e-3)


def test_moments_add_up_and_damaged_ones_are_named(tmp_path, rig):
    pytest.importorskip("pycolmap")
    frames = pictures([1] * 4)
    for name in "ab":
        model(tmp_path / name / report.SPARSE, rig, 40, np.zeros((4, 2)))
    both = {tmp_path / "a": frames, tmp_path / "b": frames}
    assert report.observe(rig, both)[0] == [60] * 4
    for path in (tmp_path / "b" / report.SPARSE).glob("points3D.*"):
        path.write_bytes(b"damaged")
    with pytest.raises(UserError, match="points3D.txt: damaged"):
        report.observe(rig, both)
    assert report.observe(rig, {}) == ([0] * 4, [None] * 4, [None] * 4)


def test_burnt_out_places_and_few_points_tell_no_brightness(tmp_path, rig):
    pytest.importorskip("pycolmap")
    model(tmp_path / "few" / report.SPARSE, rig, 4, np.zeros((4, 2)))
    model(tmp_path / "many" / report.SPARSE, rig, 80, np.zeros((4, 2)))
    assert report.observe(rig, {tmp_path / "few": pictures([1] * 4)})[2] == [None] * 4
    assert report.observe(rig, {tmp_path / "many": pictures([2.12] * 4)})[2] == [None] * 4


# ---- written ------------------------------------------------------------------------------------


def test_the_report_has_every_camera_and_what_is_suspicious():
    cameras = [finding(f"cam{i}") for i in range(3)]
    cameras += [finding("still", fps=None, error=None, gain=None, offset=None)]
    cameras += [finding("dark", gain=0.7, offset=Offset(3, 0.2))]
    found = Findings(cameras, 1234, 2.5, ["lost"], "Calib.toml")
    lines = report.as_markdown(found, "my scene", [("The rig", "report/rig.png")]).splitlines()
    assert lines[0] == "# my scene" and "- 1234 initial points" in lines
    assert "- 5 cameras with poses from Calib.toml" in lines
    assert "![The rig](report/rig.png)" in lines
    assert any(line.startswith("- dark: 30% darker") for line in lines)
    assert any(line.startswith("- lost: no pose") for line in lines)
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    assert [row[0] for row in rows] == ["camera", "---", "cam0", "cam1", "cam2", "still", "dark"]
    assert len({len(line.split("|")) for line in lines if line.startswith("| ")}) == 1
    table = {row[0]: row for row in rows}
    assert table["cam0"][1:5] == ["200 x 150", "60", "30", "180"]
    assert "+0.10" in table["cam0"] and "not clear" in table["dark"] and "images" in table["still"]


def test_a_report_without_faults_or_points_says_so():
    text = report.as_markdown(Findings([finding(error=None)], 0, 1.0), "x", [])
    assert "Nothing is suspicious." in text and "no point could be triangulated" in text


@pytest.mark.parametrize("count", [1, 8])
def test_the_contact_sheet_shows_every_camera(tmp_path, count):
    colours = [(30 * i + 10, 200 - 20 * i, 90) for i in range(count)]
    frames = [np.full((150, 200, 3), colour, np.uint8) for colour in colours]
    report.save_picture(
        tmp_path / "new/sheet.png", report.contact_sheet([f"c{i}" for i in range(count)], frames)
    )
    with Image.open(tmp_path / "new/sheet.png") as image:
        shown = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    assert set(colours) <= shown


def test_the_motion_plot_draws_a_curve_for_every_camera():
    energies = [np.sin(np.arange(50.0)), np.zeros(50), np.arange(50.0)]
    plot = np.array(report.motion_plot(["a", "b", "c"], energies).convert("RGB"))
    blue = (plot == (0, 90, 160)).all(axis=2)
    bands = np.array_split(blue, 3)
    assert all(band.any(axis=0).sum() > 700 for band in bands)
    assert len(np.flatnonzero(bands[1].any(axis=1))) == 1  # what is still is a line
