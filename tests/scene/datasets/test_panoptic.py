"""scene/datasets/panoptic.py: intrinsics per camera, split files, frame range, real data."""

from __future__ import annotations

import json

import builders
import numpy as np
import pytest
from PIL import Image

from utils.errors import UserError


def test_cameras_project_the_marker_onto_the_picture(tmp_path):
    builders.panoptic_scene(tmp_path)
    scene = builders.load(tmp_path)
    assert scene.kind == "panoptic"
    assert max(builders.marker_error(view) for view in scene.train + scene.test) < 0.25


def test_split_files_decide_and_can_be_overruled(tmp_path):
    builders.panoptic_scene(tmp_path, cameras=5, frames=4)
    scene = builders.load(tmp_path)
    assert {v.camera.name for v in scene.test} == {"cam02"}
    assert scene.camera_names == [f"cam{i:02d}" for i in range(5)]
    other = builders.load(tmp_path, test_cameras=["cam00", "4"])
    assert {v.camera.name for v in other.test} == {"cam00", "cam04"}
    assert {v.camera.name for v in other.train} == {"cam01", "cam02", "cam03"}


def test_frame_range(tmp_path):
    builders.panoptic_scene(tmp_path, frames=6)
    scene = builders.load(tmp_path, start_frame=1, frame_step=2)
    full = builders.load(tmp_path)
    assert scene.times == [0.0, 0.5, 1.0]
    assert (scene.train[1].image() == full.train[3].image()).all()


def test_start_beyond_the_clip_names_the_flag(tmp_path):
    builders.panoptic_scene(tmp_path)
    with pytest.raises(UserError, match="--start_frame 40"):
        builders.load(tmp_path, start_frame=40)


def test_one_camera_object_serves_all_frames(tmp_path):
    builders.panoptic_scene(tmp_path)
    scene = builders.load(tmp_path)
    assert len({id(v.camera) for v in scene.train}) == 4


def test_orbit_for_cameras_around(tmp_path):
    builders.panoptic_scene(tmp_path)
    scene = builders.load(tmp_path, video_frames=8)
    assert all(v.camera.sees(scene.points.xyz).mean() > 0.5 for v in scene.video)
    forwards = np.stack([v.camera.forward.numpy() for v in scene.video])
    assert np.linalg.norm(forwards.mean(axis=0)) < 0.3


def test_real_cloud_has_the_colours_of_the_pixels_it_projects_to(shared_data):
    """Correlation of point and pixel colours, which peaks where it should: at no offset."""
    scene = builders.load(shared_data / "panoptic_basketball", duration=1, resolution=1)
    assert (len(scene.train), len(scene.test)) == (27, 4)

    def correlation(shift: tuple[int, int]) -> float:
        values = []
        for view in scene.train[::4]:
            seen = view.camera.sees(scene.points.xyz)
            pixels, _ = view.camera.project(scene.points.xyz[seen])
            column, row = np.rint(pixels + shift).astype(int).clip(0, [639, 359]).T
            image = view.image().numpy()[row, column].astype(float)
            values.append(np.corrcoef(image.ravel(), scene.points.rgb[seen].ravel())[0, 1])
        return float(np.mean(values))

    middle = correlation((0, 0))
    assert middle > 0.7
    assert all(correlation(s) < middle for s in [(3, 0), (-3, 0), (0, 3), (0, -3)])


LEFT_HANDED, INVERTED = "left-handed", "camera-to-world where world-to-camera is due"


@pytest.fixture
def hfu(shared_data, tmp_path):
    """The real bad metadata cut to twelve frames, with images and a cloud made around it."""
    folder = shared_data / "hfu_bad_metadata"
    fixed = json.loads((folder / "poses_fixed.json").read_text())
    meta = json.loads((folder / "train_meta.json").read_text())
    short = {k: v[:12] if isinstance(v, list) else v for k, v in meta.items()}
    assert [len(v) for v in meta.values() if isinstance(v, list)] == [fixed["frames"]] * 4
    builders.write_json(tmp_path / "train_meta.json", short)
    for frame in short["fn"]:
        for name in frame:
            path = tmp_path / "ims" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (short["w"], short["h"])).save(path, quality=10)
    rng = np.random.default_rng(0)
    xyz = rng.normal([0.56, -0.77, -0.56], 0.3, (500, 3))  # where the three cameras look
    _save_cloud(tmp_path, xyz)
    return tmp_path


def _save_cloud(root, xyz: np.ndarray) -> None:
    data = np.concatenate([xyz, np.full((len(xyz), 3), 0.5)], axis=1)
    np.savez(root / "init_pt_cld.npz", data=data.astype(np.float32))


def _change_poses(root, change) -> None:
    def edit(meta: dict) -> None:
        meta["w2c"] = [[change(np.array(m)).tolist() for m in frame] for frame in meta["w2c"]]

    builders.edit_json(root / "train_meta.json", edit)


def _mirror_cloud(root) -> None:
    with np.load(root / "init_pt_cld.npz") as arrays:
        xyz = arrays["data"][:, :3].copy()
    _save_cloud(root, xyz * [-1, 1, 1])


def _refusal(root) -> str:
    with pytest.raises(UserError) as error:
        builders.load(root, duration=0)
    message = str(error.value)
    assert "\n" not in message and "train_meta.json" in message
    return message


NEGATE_ROW = np.diag([-1.0, 1, 1, 1])


@pytest.mark.parametrize("with_cloud", [True, False])
def test_real_bad_metadata_is_refused_with_all_reasons_in_one_line(hfu, with_cloud):
    (hfu / "ims" / "3" / "00011.jpg").unlink()
    if not with_cloud:
        (hfu / "init_pt_cld.npz").unlink()
    message = _refusal(hfu)
    assert "3 faults" in message and LEFT_HANDED in message and INVERTED in message
    assert "camera 3 misses the image of frame 11" in message
    assert "negate its first row" in message and "then invert it" in message


def test_each_fault_of_the_real_metadata_alone(hfu):
    _change_poses(hfu, lambda m: NEGATE_ROW @ m)
    _mirror_cloud(hfu)
    message = _refusal(hfu)
    assert INVERTED in message and LEFT_HANDED not in message
    assert message.endswith("convert each matrix of w2c: invert it")
    _change_poses(hfu, lambda m: np.linalg.inv(NEGATE_ROW @ m))
    _mirror_cloud(hfu)
    message = _refusal(hfu)
    assert INVERTED not in message and LEFT_HANDED in message
    assert "negate its first column" in message and "invert" not in message
    _change_poses(hfu, lambda m: m @ NEGATE_ROW)
    _mirror_cloud(hfu)
    builders.load(hfu)  # nothing is left
    (hfu / "ims" / "2" / "00005.jpg").unlink()
    message = _refusal(hfu)
    assert "camera 2 misses the image of frame 5" in message and "w2c" not in message


def test_a_row_that_is_missing_is_named_by_camera_and_frame(tmp_path):
    builders.panoptic_scene(tmp_path)
    builders.edit_json(
        tmp_path / "train_meta.json",
        lambda m: [m[key][1].pop() for key in ("fn", "k", "w2c", "cam_id")],
    )
    assert "camera 4 misses frame 1" in _refusal(tmp_path)


def test_the_hint_makes_the_right_poses_of_the_real_metadata(hfu, shared_data):
    fixed = json.loads((shared_data / "hfu_bad_metadata" / "poses_fixed.json").read_text())
    _change_poses(hfu, lambda m: np.linalg.inv(NEGATE_ROW @ m))  # word by word as it says
    _mirror_cloud(hfu)
    scene = builders.load(hfu)
    loaded = {v.camera.name: v.camera.world_to_camera.numpy() for v in scene.train}
    assert len(loaded) == len(fixed["cams"]) == 3
    for camera in fixed["cams"]:
        expected = np.array(camera["w2c_opencv"])
        assert np.allclose(loaded[f"cam{camera['cam']:02d}"], expected, atol=1e-6)


def test_another_world_axis_than_the_hint_says_only_turns_the_world(shared_data):
    folder = shared_data / "hfu_bad_metadata"
    meta = json.loads((folder / "train_meta.json").read_text())
    fixed = json.loads((folder / "poses_fixed.json").read_text())
    turn = np.diag([-1.0, -1, 1, 1])  # half a turn around z
    for matrix, camera in zip(meta["w2c"][0], fixed["cams"], strict=True):
        other = np.diag([1.0, -1, 1, 1]) @ matrix
        assert np.allclose(turn @ other, camera["c2w_opencv"], atol=1e-6)


def test_camera_to_world_in_place_of_world_to_camera_is_refused(tmp_path):
    builders.panoptic_scene(tmp_path)
    for name in ("train_meta.json", "test_meta.json"):
        builders.edit_json(tmp_path / name, _invert_poses)
    with pytest.raises(UserError, match=r"train_meta.json.*mixed up"):
        builders.load(tmp_path)


def _invert_poses(meta: dict) -> None:
    meta["w2c"] = [np.linalg.inv(np.array(frame)).tolist() for frame in meta["w2c"]]
