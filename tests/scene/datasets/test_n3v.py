"""scene/datasets/n3v.py: videos or frames, LLFF poses, per-camera intrinsics."""

from __future__ import annotations

import shutil
import struct

import builders
import numpy as np
import pytest

from scene.datasets import clips, n3v
from utils.errors import UserError


@pytest.mark.parametrize("layout", ["video", "images", "nested"])
def test_cameras_project_the_marker_onto_the_picture(tmp_path, layout):
    builders.n3v_scene(tmp_path, layout=layout)
    scene = builders.load(tmp_path)
    assert scene.kind == "n3v"
    assert max(builders.marker_error(view) for view in scene.train + scene.test) < 0.25


def test_first_camera_is_held_out_and_times_span_the_clip(tmp_path):
    builders.n3v_scene(tmp_path, cameras=4, frames=5)
    scene = builders.load(tmp_path)
    assert scene.camera_names == ["cam00", "cam01", "cam02", "cam03"]
    assert [v.name for v in scene.test] == [f"cam00/000{i}" for i in range(5)]
    assert {v.camera_index for v in scene.train} == {1, 2, 3}
    assert scene.times == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert (scene.frame_count, len(scene.train)) == (5, 15)


def test_published_time_is_index_over_count(tmp_path):
    builders.n3v_scene(tmp_path, frames=5)
    scene = builders.load(tmp_path, time_convention="published")
    assert scene.times == [0.0, 0.2, 0.4, 0.6, 0.8]


def test_one_time_step_from_flat_images_has_time_zero(tmp_path):
    builders.n3v_scene(tmp_path, frames=1, layout="flat")
    scene = builders.load(tmp_path)
    assert scene.times == [0.0]
    assert builders.marker_error(scene.test[0]) < 0.25


def test_frames_larger_than_the_row_says_scale_the_focal_length(tmp_path):
    truth = builders.n3v_scene(tmp_path, frames=1, layout="flat", size=(128, 96))
    scene = builders.load(tmp_path)
    cameras = [scene.test[0].camera] + [v.camera for v in scene.train]
    assert [c.fx for c in cameras] == pytest.approx([2 * t.fx for t in truth])
    assert max(builders.marker_error(v) for v in scene.train) < 0.25


@pytest.mark.parametrize("resolution", [2, 48, 100])
def test_marker_stays_in_place_at_other_resolutions(tmp_path, resolution):
    builders.n3v_scene(tmp_path, frames=3, layout="images")
    scene = builders.load(tmp_path, resolution=resolution)
    width = 32 if resolution == 2 else resolution
    assert scene.train[0].image().shape[1] == scene.train[0].camera.width == width
    assert max(builders.marker_error(view) for view in scene.train) < 0.3


@pytest.mark.parametrize("layout", ["video", "images"])
def test_clip_settings_choose_frames(tmp_path, layout):
    builders.n3v_scene(tmp_path, frames=9, layout=layout)
    scene = builders.load(tmp_path, start_frame=1, frame_step=3, duration=2)
    assert scene.times == [0.0, 1.0]
    full = builders.load(tmp_path)
    by_name = {v.name: v for v in full.train}
    assert (scene.train[1].image() == by_name["cam01/0004"].image()).all()


@pytest.mark.parametrize("wanted", [["cam02", "cam01"], ["1", "2"]])
def test_test_cameras_by_name_or_index(tmp_path, wanted):
    builders.n3v_scene(tmp_path)
    scene = builders.load(tmp_path, test_cameras=wanted)
    assert {v.camera.name for v in scene.test} == {"cam01", "cam02"}
    assert {v.camera.name for v in scene.train} == {"cam00", "cam03"}


def test_unknown_test_camera_lists_the_names(tmp_path):
    builders.n3v_scene(tmp_path)
    with pytest.raises(UserError, match="cam99.*cam00, cam01"):
        builders.load(tmp_path, test_cameras=["cam99"])


def test_shorter_camera_limits_the_clip(tmp_path, capsys):
    builders.n3v_scene(tmp_path, frames=5, layout="images")
    (tmp_path / "images" / "cam02" / "0004.png").unlink()
    assert builders.load(tmp_path).frame_count == 4
    assert "cam02 has 4 frames" in capsys.readouterr().err


def test_frames_stand_in_for_a_missing_video_and_strays_are_no_cameras(tmp_path):
    builders.n3v_scene(tmp_path, frames=3)
    builders.n3v_scene(tmp_path, frames=3, layout="images")
    builders.n3v_scene(tmp_path, frames=1, layout="flat")
    builders.save(tmp_path / "images" / "masks" / "0.png", np.zeros((4, 4, 3), np.uint8))
    assert builders.load(tmp_path).train[0].store.sources[0].path.name == "cam00.mp4"
    (tmp_path / "images" / "masks" / "0.png").unlink()
    (tmp_path / "cam03.mp4").unlink()
    scene = builders.load(tmp_path)
    assert scene.train[0].store.sources[0].paths[2].name == "0002.png"
    assert max(builders.marker_error(view) for view in scene.train) < 0.25


def _prepared(root) -> None:
    """Frames beside the videos, fewer than theirs, with the stamp of the preparing scripts."""
    builders.n3v_scene(root, frames=5)
    builders.n3v_scene(root, frames=3, layout="images")
    files = sorted((root / "images").rglob("*.png"))
    sizes = {str(path.relative_to(root)): path.stat().st_size for path in files}
    builders.write_json(root / clips.PREPARED, {"key": "", "files": sizes})


def test_frames_that_were_prepared_go_before_their_videos(tmp_path, capsys):
    _prepared(tmp_path)
    scene = builders.load(tmp_path)
    assert (scene.frame_count, scene.train[0].store.sources[0].paths[2].name) == (3, "0002.png")
    assert "has videos and frames in images; reading the frames" in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["frame", "cut", "camera", "stamp", "no stamp", "more"])
def test_frames_that_are_not_whole_do_not_go_before_videos(tmp_path, capsys, fault):
    _prepared(tmp_path)
    frame = tmp_path / "images/cam02/0002.png"
    if fault == "frame":
        frame.unlink()
    elif fault == "cut":
        frame.write_bytes(frame.read_bytes()[:-5])
    elif fault == "camera":
        shutil.rmtree(frame.parent)
    elif fault == "stamp":
        (tmp_path / clips.PREPARED).write_text("[]")
    elif fault == "no stamp":
        (tmp_path / clips.PREPARED).unlink()
    else:
        shutil.copy(frame, frame.with_name("0003.png"))
    scene = builders.load(tmp_path)
    assert (scene.frame_count, scene.train[0].store.sources[0].path.name) == (5, "cam00.mp4")
    said = "in images no frames of cam02; reading the videos" if fault == "camera" else "since no"
    assert said in capsys.readouterr().err


def test_a_folder_of_frames_that_is_named_goes_before_videos(tmp_path, capsys):
    _prepared(tmp_path)
    (tmp_path / "images").rename(tmp_path / "images_2")
    assert builders.load(tmp_path).frame_count == 5
    assert builders.load(tmp_path, images="images_2").frame_count == 3
    assert "frames in images_2; reading the frames" in capsys.readouterr().err
    for name in ("cam01", "cam03"):
        shutil.rmtree(tmp_path / "images_2" / name)
    with pytest.raises(UserError, match="--images images_2: no frames of cam01, cam03 in"):
        builders.load(tmp_path, images="images_2")


def test_video_path_is_a_spiral_through_the_clip(tmp_path):
    builders.n3v_scene(tmp_path, frames=6)
    scene = builders.load(tmp_path, video_frames=12)
    assert len(scene.video) == 12
    assert (scene.video[0].time, scene.video[-1].time) == (0.0, 1.0)
    assert all(
        v.store is None and v.camera.sees(scene.points.xyz).mean() > 0.5 for v in scene.video
    )


def test_llff_axes_agree_with_colmap_on_a_real_scene(shared_data):
    """Five cameras of a real kitchen: the two files' poses differ by one similarity only."""
    folder = shared_data / "n3v_stills"
    ours = np.stack([_pose(row) for row in n3v.read_rows(folder / "poses_bounds.npy")])
    colmap = _colmap_poses(folder / "sparse" / "0" / "images.bin")
    turn = _nearest_rotation(
        sum(c[:3, :3] @ o[:3, :3].T for c, o in zip(colmap, ours, strict=True))
    )
    for c, o in zip(colmap, ours, strict=True):
        angle = np.degrees(
            np.arccos(np.clip((np.trace(c[:3, :3].T @ turn @ o[:3, :3]) - 1) / 2, -1, 1))
        )
        assert angle < 1.0
    a, b = (p[:, :3, 3] - p[:, :3, 3].mean(axis=0) for p in (colmap, ours))
    b = b @ turn.T
    scale = (a * b).sum() / (b * b).sum()
    assert np.abs(a - scale * b).max() < 0.02 * np.abs(a).max()


def _pose(row: np.ndarray) -> np.ndarray:
    camera = n3v.row_camera("c", row, (1352, 1014)).validate("poses_bounds.npy")
    return np.linalg.inv(camera.world_to_camera.double().numpy())


def _nearest_rotation(matrix: np.ndarray) -> np.ndarray:
    u, _, vt = np.linalg.svd(matrix)
    return u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt


def _colmap_poses(path) -> np.ndarray:
    """Camera-to-world poses of COLMAP's images.bin, by the number in the image's name."""
    data, poses = path.read_bytes(), {}
    (count,), offset = struct.unpack_from("<Q", data), 8
    for _ in range(count):
        _, w, x, y, z, *t, _ = struct.unpack_from("<I7dI", data, offset)
        offset += 64
        end = data.index(b"\0", offset)
        name = data[offset:end].decode()
        (points,) = struct.unpack_from("<Q", data, end + 1)
        offset = end + 9 + 24 * points
        rotation = np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ]
        )
        w2c = np.eye(4)
        w2c[:3, :3], w2c[:3, 3] = rotation, t
        poses[int(name.split(".")[0])] = np.linalg.inv(w2c)
    return np.stack([poses[k] for k in sorted(poses)])
