"""Preparing a Technicolor scene: which frames, whole ones, and points where the surfaces are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pycolmap", reason="pip install -r requirements-preprocess.txt")

from demo_layouts import demo_frames, distances, technicolor

from arguments_MoDE.config import ModelParams
from scene import load_scene
from scene.colmap import read_points
from script.pre_technicolor import PUBLISHED, main
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
CAMERAS, FRAMES = list(range(14)), [0, 20, 39]


def state(root: Path) -> dict[str, tuple[int, int]]:
    """Every file but the stamps, with what tells that it was written again."""
    files = [p for p in root.rglob("*") if p.is_file() and ".steps" not in p.parts]
    return {str(p.relative_to(root)): (p.stat().st_ino, p.stat().st_mtime_ns) for p in files}


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """The demo as published files, numbered from 7, with nothing made of them."""
    root = tmp_path_factory.mktemp("template") / "Toy"
    technicolor(root, CAMERAS, FRAMES)
    return root


@pytest.fixture
def scene(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "Toy"))


@pytest.fixture(scope="module")
def prepared(template: Path, tmp_path_factory) -> Path:
    """The same, prepared; tests only look at it."""
    root = Path(shutil.copytree(template, tmp_path_factory.mktemp("prepared") / "Toy"))
    main(["--videopath", str(root), "--cloud_frames", "2"])
    return root


def run(root: Path, *flags: str) -> None:
    """Prepares with little work for COLMAP."""
    main(["--videopath", str(root), "--cloud_frames", "1", "--max_features", "64", *flags])


def frame_of(root: Path, camera: int, index: int) -> np.ndarray:
    with Image.open(root / "images" / f"cam{camera:02d}" / f"{index:04d}.png") as image:
        return np.array(image)


# ---- what is made -------------------------------------------------------------------------------


def test_frames_are_the_published_files_under_new_names(prepared):
    assert sorted(p.name for p in (prepared / "images").iterdir()) == [
        f"cam{i:02d}" for i in CAMERAS
    ]
    for camera in (0, 13):
        names = sorted(p.name for p in (prepared / "images" / f"cam{camera:02d}").iterdir())
        assert names == ["0000.png", "0001.png", "0002.png"]
        assert np.array_equal(frame_of(prepared, camera, 1), demo_frames(camera)[20, 20:156])
    raw = prepared / "Toy_undist_00008_13.png"
    assert os.path.samefile(raw, prepared / "images" / "cam13" / "0001.png")


def test_points_lie_on_the_surfaces(prepared):
    found = distances(prepared / "points3D_downsample.ply")
    assert len(found) > 1000
    assert np.median(found) < 0.08 and np.percentile(found, 90) < 0.4  # of a scene 4 units wide


def test_every_step_of_the_published_way_leaves_its_files(prepared):
    for name in (
        "colmap/frame_0000/input.db",
        "colmap/frame_0000/manual/images.txt",
        "colmap/frame_0000/distorted/sparse/points3D.bin",
        "colmap/dense/workspace/fused.ply",
        "colmap/dense/workspace/images/cam00.png",
    ):
        assert (prepared / name).is_file(), name
    assert len(read_points(prepared / "colmap" / "frame_0000" / "distorted" / "sparse")) > 300
    assert [p.name for p in prepared.iterdir() if p.name[0] == "."] == [".steps"]


def test_the_scene_loads(prepared):
    loaded = load_scene(ModelParams(source_path=str(prepared)))
    assert (len(loaded.train), len(loaded.test)) == (13 * 3, 3)
    assert loaded.test[0].camera.name == "cam10"


def test_a_second_run_does_nothing(prepared, capsys):
    before = state(prepared)
    main(["--videopath", str(prepared), "--cloud_frames", "2"])
    assert state(prepared) == before
    assert " …" not in capsys.readouterr().out


def test_frames_can_be_smaller_and_jpeg(scene):
    run(scene, "-r", "2", "--format", "jpg")
    with Image.open(scene / "images" / "cam03" / "0002.jpg") as image:
        assert image.size == (128, 68)
    assert load_scene(ModelParams(source_path=str(scene))).train[0].camera.width == 128


def test_frames_that_are_extracted_already_will_do(prepared, tmp_path):
    shutil.copytree(prepared / "images", tmp_path / "Toy" / "images")
    shutil.copy(prepared / "cameras_parameters.txt", tmp_path / "Toy")
    before = state(tmp_path / "Toy")
    run(tmp_path / "Toy")
    assert state(tmp_path / "Toy").items() >= before.items()
    assert load_scene(ModelParams(source_path=str(tmp_path / "Toy"))).test


# ---- which frames -------------------------------------------------------------------------------


def test_frames_are_chosen_by_the_numbers_in_their_names(scene):
    run(scene, "--startframe", "7", "--endframe", "10", "--step", "2")
    assert len(list((scene / "images" / "cam00").iterdir())) == 2
    assert np.array_equal(frame_of(scene, 4, 1), demo_frames(4)[39, 20:156])


def test_the_published_range_is_the_default_where_it_is_there(tmp_path, monkeypatch):
    monkeypatch.setitem(PUBLISHED, "painter", range(100, 102))
    technicolor(tmp_path / "a", [0, 4, 8], [0, 20, 39], scene="Painter", first=99)
    run(tmp_path / "a")
    assert len(list((tmp_path / "a" / "images" / "cam00").iterdir())) == 2
    assert np.array_equal(frame_of(tmp_path / "a", 0, 0), demo_frames(0)[20, 20:156])
    technicolor(tmp_path / "b", [0, 4, 8], [0, 20, 39], scene="Painter", first=101)
    run(tmp_path / "b")
    assert len(list((tmp_path / "b" / "images" / "cam00").iterdir())) == 3


def test_the_published_ranges_have_fifty_frames():
    assert {len(frames) for frames in PUBLISHED.values()} == {50}
    assert PUBLISHED["painter"][0] == 100 and PUBLISHED["birthday"][-1] == 200


def test_a_frame_that_some_camera_lacks_is_left_out_with_a_note(scene, capsys):
    (scene / "Toy_undist_00008_03.png").unlink()
    run(scene)
    assert "Toy_undist_00008_03.png: missing" in capsys.readouterr().err
    assert len(list((scene / "images" / "cam00").iterdir())) == 2
    assert np.array_equal(frame_of(scene, 4, 1), demo_frames(4)[39, 20:156])


# ---- damage -------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, flip])
def test_a_damaged_frame_is_an_error_that_names_the_flag(scene, damage):
    damage(scene / "Toy_undist_00008_09.png")
    for _ in range(2):
        with pytest.raises(UserError, match=r"00008_09\.png: damaged.*--repair"):
            run(scene)
    assert not (scene / "images").exists() and not (scene / "colmap").exists()


def test_repair_shows_the_previous_frame(scene, capsys):
    truncate(scene / "Toy_undist_00008_09.png")
    truncate(scene / "Toy_undist_00007_05.png")
    run(scene, "--repair")
    notes = capsys.readouterr().err
    assert "00008_09.png: damaged; Toy_undist_00007_09.png in its place" in notes
    assert np.array_equal(frame_of(scene, 9, 1), demo_frames(9)[0, 20:156])
    assert np.array_equal(frame_of(scene, 9, 2), demo_frames(9)[39, 20:156])
    assert np.array_equal(frame_of(scene, 5, 0), demo_frames(5)[20, 20:156])  # no previous one
    before = state(scene)
    run(scene, "--repair")
    assert state(scene) == before


def test_a_file_that_comes_again_whole_is_noticed(scene):
    good = (scene / "Toy_undist_00008_09.png").read_bytes()
    truncate(scene / "Toy_undist_00008_09.png")
    run(scene, "--repair")
    (scene / "Toy_undist_00008_09.png").write_bytes(good)
    run(scene)
    assert np.array_equal(frame_of(scene, 9, 1), demo_frames(9)[20, 20:156])


def test_a_camera_without_a_whole_frame_cannot_be_repaired(scene):
    for number in (7, 8, 9):
        truncate(scene / f"Toy_undist_0000{number}_09.png")
    with pytest.raises(UserError, match="every other frame of that camera"):
        run(scene, "--repair")


# ---- wrong use ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--startframe", "-1"], "--startframe -1"),
        (["--step", "0"], "--step 0"),
        (["--startframe", "10"], r"--startframe 10: there are frames 7 to 9"),
        (["--endframe", "7"], r"--startframe 0 --endframe 7: there are frames 7 to 9"),
        (["--endframe", "12"], r"--endframe 12: .*at most 10"),
        (["-r", "3"], "--resolution 3"),
        (["--cloud_frames", "0"], "--cloud_frames 0"),
        (["--colmap_bin", "/nowhere/colmap"], "--colmap_bin /nowhere/colmap: cannot be run"),
    ],
)
def test_flags_that_mean_nothing_are_refused(scene, flags, message):
    with pytest.raises(UserError, match=message):
        main(["--videopath", str(scene), *flags])
    assert not (scene / "points3D_downsample.ply").exists()


def test_dense_stereo_without_cuda_is_refused(scene):
    import pycolmap

    if pycolmap.has_cuda:
        pytest.skip("this pycolmap has CUDA")
    with pytest.raises(UserError, match="--dense on"):
        run(scene, "--dense", "on")


def remove_camera(scene: Path) -> None:
    for path in scene.glob("*_03.png"):
        path.unlink()


def remove_frames(scene: Path) -> None:
    for path in scene.glob("*.png"):
        path.unlink()


def remove_one_frame(scene: Path) -> None:
    (scene / "Toy_undist_00008_03.png").unlink()


def resize_one_frame(scene: Path) -> None:
    Image.new("RGB", (100, 50)).save(scene / "Toy_undist_00008_03.png")


def remove_rows(scene: Path) -> None:
    path = scene / "cameras_parameters.txt"
    path.write_text("\n".join(path.read_text().splitlines()[:3]))


@pytest.mark.parametrize(
    ("change", "flags", "message"),
    [
        (lambda s: (s / "cameras_parameters.txt").unlink(), [], "cameras_parameters.txt: cannot"),
        (remove_camera, [], r"no file Toy_undist_<frame>_03\.png"),
        (remove_frames, [], r"cam00: has no frames.*published files"),
        (remove_one_frame, ["--endframe", "10"], r"Toy_undist_00008_03\.png: missing"),
        (resize_one_frame, [], r"Toy_undist_00008_03\.png: is 100 x 50 where the others"),
        (remove_rows, [], "has no row 02"),
    ],
)
def test_a_scene_that_is_not_whole_is_one_line(scene, change, flags, message):
    change(scene)
    with pytest.raises(UserError, match=message):
        run(scene, *flags)
    assert not (scene / "points3D_downsample.ply").exists()
    assert not list(scene.rglob(".cam*"))


def test_the_reader_names_the_command(scene):
    with pytest.raises(UserError, match=r"script/pre_technicolor\.py --videopath"):
        load_scene(ModelParams(source_path=str(scene)))


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--help"], 0, "--repair"),
        (["--videopath", "/nowhere/Birthday"], 2, "error: /nowhere/Birthday: no such folder"),
        ([], 2, "--videopath"),
    ],
)
def test_the_command_itself(arguments, code, text):
    command = [sys.executable, str(ROOT / "script" / "pre_technicolor.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert done.returncode == code and text in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
