"""Real data against a computation of its own: what the readers give is where the pictures show it.

COLMAP models are read a second time by pycolmap; everything else is read here from the raw files.
"""

from __future__ import annotations

import json
from pathlib import Path

import builders
import numpy as np
import pytest
from PIL import Image

from scene.colmap import ColmapModel, find_model, read_model
from scene.datasets import n3v
from utils.images import natural_key

BOTH = ("colmap_beer", "n3v_stills")


@pytest.fixture
def pycolmap():
    """The second reader of COLMAP models."""
    return pytest.importorskip("pycolmap")


def _observations(model) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Image name -> pixels (N, 2) of its features, and the points (N, 3) they were made into."""
    found = {}
    for image in model.images.values():
        seen = [p for p in image.points2D if p.has_point3D()]
        xyz = [model.points3D[p.point3D_id].xyz for p in seen]
        found[image.name] = (np.array([p.xy for p in seen]), np.array(xyz))
    return found


def _radial(local: np.ndarray, lens) -> np.ndarray:
    """Pixels (N, 2) of camera-space points through f, cx, cy, k or fx, fy, cx, cy."""
    u = local[:, :2] / local[:, 2:]
    if lens.model == "PINHOLE":
        fx, fy, cx, cy = lens.params
        return u * [fx, fy] + [cx, cy]
    f, cx, cy, k = lens.params
    return f * u * (1 + k * (u**2).sum(axis=1, keepdims=True)) + [cx, cy]


# ---- COLMAP models ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOTH)
def test_a_model_is_what_pycolmap_reads(shared_data, pycolmap, name):
    folder = find_model(shared_data / name)
    ours, theirs = read_model(folder), pycolmap.Reconstruction(folder)
    assert set(ours.cameras) == set(theirs.cameras)
    for number, lens in ours.cameras.items():
        other = theirs.cameras[number]
        assert (lens.model, lens.width, lens.height) == (
            other.model.name, other.width, other.height,
        )  # fmt: skip
        assert np.array_equal(lens.params, other.params)
    images = {image.name: image for image in theirs.images.values()}
    assert [image.name for image in ours.images] == sorted(images, key=natural_key)
    for image in ours.images:
        other = images[image.name]
        assert image.camera_id == other.camera_id
        w2c = np.linalg.inv(image.camera_to_world())[:3]
        assert np.allclose(w2c, other.cam_from_world().matrix(), atol=1e-9)
    _assert_same_points(ours, theirs)


def _assert_same_points(ours: ColmapModel, theirs) -> None:
    points = list(theirs.points3D.values())
    rows = np.array([[*p.xyz.astype(np.float32), *p.color] for p in points])
    mine = np.concatenate([ours.points.xyz, ours.points.rgb], axis=1)
    assert np.array_equal(rows[np.lexsort(rows.T)], mine[np.lexsort(mine.T)])


@pytest.mark.parametrize("name", BOTH)
def test_points_land_on_the_features_they_were_made_from(shared_data, pycolmap, name):
    """Within a pixel in the middle, and for each point as near as the model itself says."""
    folder = find_model(shared_data / name)
    ours, theirs = read_model(folder), pycolmap.Reconstruction(folder)
    observations = _observations(theirs)
    errors, of_point = [], {}
    for image in ours.images:
        pixels, xyz = observations[image.name]
        w2c = np.linalg.inv(image.camera_to_world())
        found = _radial(xyz @ w2c[:3, :3].T + w2c[:3, 3], ours.cameras[image.camera_id])
        errors.append(np.linalg.norm(found - pixels, axis=1))
        for point, error in zip(map(bytes, xyz), errors[-1], strict=True):
            of_point.setdefault(point, []).append(error)
    errors = np.concatenate(errors)
    assert np.median(errors) < 0.7 and np.percentile(errors, 95) < 2.5  # pixels
    said = {p.xyz.tobytes(): p.error for p in theirs.points3D.values()}
    assert len(said) == len(of_point)
    off = [np.mean(found) - said[point] for point, found in of_point.items()]
    assert np.median(np.abs(off)) < 0.15


def test_a_distorted_scene_is_right_once_it_is_undistorted(shared_data, pycolmap, tmp_path):
    """By the way that the refusal of a distorted lens names, on photos of an eighth of the size."""
    root = shared_data / "colmap_beer"
    distorted = _small_model(pycolmap, root, tmp_path / "small")
    pycolmap.undistort_images(tmp_path / "scene", tmp_path / "small", root / "images_8")
    scene = builders.load(tmp_path / "scene")
    views = scene.train + scene.test
    names = {image.name: image for image in distorted.images.values()}
    assert len(views) == len(names) == 29 and len(scene.points) > 500
    observations = _observations(distorted)
    errors, untouched = [], []
    for view in views:
        pixels, xyz = observations[view.camera.name]
        f, cx, cy, k = distorted.cameras[names[view.camera.name].camera_id].params
        camera = view.camera
        u = _undistorted((pixels - [cx, cy]) / f, k)
        expected = u * [camera.fx, camera.fy] + [camera.cx, camera.cy] - 0.5
        found, _ = camera.project(xyz)
        errors.append(np.linalg.norm(found - expected, axis=1))
        untouched.append(np.linalg.norm(found - (pixels - 0.5), axis=1))
    errors, untouched = np.concatenate(errors), np.concatenate(untouched)
    assert np.median(errors) < 0.12 and np.percentile(errors, 95) < 0.5  # pixels
    assert np.median(untouched) > 3 * np.median(errors)  # undistortion is not nothing


def _small_model(pycolmap, root: Path, folder: Path):
    """The model of the photos that are there, for an eighth of the pixels; also written."""
    model = pycolmap.Reconstruction(root / "sparse" / "0")
    there = {path.name for path in (root / "images_8").iterdir()}
    for image in list(model.images.values()):
        if image.name not in there:
            model.deregister_frame(image.frame_id)
    folder.mkdir()
    for camera in model.cameras.values():
        camera.rescale(camera.width // 8, camera.height // 8)
    for image in model.images.values():
        for point in image.points2D:
            point.xy = point.xy / 8
    model.write(folder)
    again = pycolmap.Reconstruction(folder)
    assert {image.name for image in again.images.values()} == there
    return again


def _undistorted(distorted: np.ndarray, k: float) -> np.ndarray:
    """Inverse of u (1 + k |u|^2), by fixed-point iteration."""
    u = distorted
    for _ in range(30):
        u = distorted / (1 + k * (u**2).sum(axis=1, keepdims=True))
    return u


# ---- Neural 3D Video ----------------------------------------------------------------------------


def test_llff_poses_are_those_of_the_model_up_to_a_similarity(shared_data, pycolmap):
    folder = shared_data / "n3v_stills"
    theirs = pycolmap.Reconstruction(folder / "sparse" / "0")
    images = sorted(theirs.images.values(), key=lambda i: int(i.name.split(".")[0]))
    w2c = np.array([image.cam_from_world().matrix() for image in images])
    rotations = w2c[:, :, :3].transpose(0, 2, 1)
    centres = np.array([-r @ t for r, t in zip(rotations, w2c[:, :, 3], strict=True)])
    rows = n3v.read_rows(folder / "poses_bounds.npy")
    cameras = [n3v.row_camera("c", row, (1352, 1014)).validate("poses") for row in rows]
    ours = np.linalg.inv(np.stack([c.world_to_camera.double().numpy() for c in cameras]))
    scale, turn, shift = _umeyama(ours[:, :3, 3], centres)
    off = np.linalg.norm(scale * ours[:, :3, 3] @ turn.T + shift - centres, axis=1)
    size = np.linalg.norm(centres - centres.mean(axis=0), axis=1).max()
    assert np.sqrt((off**2).mean()) < 0.01 * size and off.max() < 0.015 * size
    for mine, other in zip(ours[:, :3, :3], rotations, strict=True):
        cosine = (np.trace((turn @ mine).T @ other) - 1) / 2
        assert np.degrees(np.arccos(np.clip(cosine, -1, 1))) < 1


def _umeyama(a: np.ndarray, b: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Scale, rotation and shift that bring a (N, 3) nearest to b (Umeyama 1991)."""
    ma, mb = a.mean(axis=0), b.mean(axis=0)
    u, d, vt = np.linalg.svd((b - mb).T @ (a - ma) / len(a))
    signs = np.array([1, 1, np.sign(np.linalg.det(u @ vt))])
    turn = u @ np.diag(signs) @ vt
    scale = (d * signs).sum() / ((a - ma) ** 2).sum(axis=1).mean()
    return scale, turn, mb - scale * turn @ ma


# ---- PanopticSports -----------------------------------------------------------------------------


@pytest.mark.parametrize("resolution", [1, 2])
def test_panoptic_cameras_project_as_the_raw_matrices_do(shared_data, resolution):
    root = shared_data / "panoptic_basketball"
    scene = builders.load(root, resolution=resolution, duration=2)
    xyz = np.load(root / "init_pt_cld.npz")["data"][:, :3].astype(np.float64)
    compared = 0
    for split, views in (("train", scene.train), ("test", scene.test)):
        meta = json.loads((root / f"{split}_meta.json").read_text())
        for view in views:
            frame = view.frame_index
            row = meta["cam_id"][frame].index(int(view.camera.name[3:]))
            k, w2c = np.array(meta["k"][frame][row]), np.array(meta["w2c"][frame][row])
            local = xyz @ w2c[:3, :3].T + w2c[:3, 3]
            front = local[:, 2] > 0.1
            homogeneous = local[front] @ k.T
            expected = homogeneous[:, :2] / homogeneous[:, 2:] / resolution - 0.5
            found, depth = view.camera.project(xyz[front])
            assert np.allclose(found, expected, atol=2e-3 * max(1, np.abs(expected).max() / 1000))
            assert np.allclose(depth, local[front, 2], atol=1e-5)
            compared += 1
    assert compared == 31 * 2


def test_panoptic_colours_are_those_of_the_right_picture(shared_data):
    scene = builders.load(shared_data / "panoptic_basketball", resolution=1, duration=1)
    views = scene.train + scene.test

    def difference(poses: int, pictures: int) -> float:
        """Median over the visible points of the distance to the picture's colour."""
        camera = views[poses].camera
        seen = camera.sees(scene.points.xyz)
        column, row = np.rint(camera.project(scene.points.xyz[seen])[0]).astype(int).T
        colour = views[pictures].image().numpy()[row, column].astype(float)
        return float(np.median(np.abs(colour - scene.points.rgb[seen])))

    right = np.array([difference(i, i) for i in range(len(views))])
    wrong = np.array([difference(i, (i + 7) % len(views)) for i in range(len(views))])
    assert np.median(right) < 16  # of 255; points are also seen through each other
    assert np.median(wrong) > 2 * np.median(right)
    assert (right < wrong).mean() > 0.95


# ---- D-NeRF -------------------------------------------------------------------------------------

DNERF = ("scene3_collision", "scene5_rapid_motion", "scene7_deformation", "scene10_texture")


@pytest.mark.parametrize("name", DNERF)
def test_blender_poses_are_turned_to_opencv_axes(shared_data, name):
    root = shared_data / "dnerf_mujoco" / name
    frames = json.loads((root / "transforms_train.json").read_text())["frames"]
    scene = builders.load(root, max_points=1000)
    assert len(scene.train) == len(frames)
    for view, frame in zip(scene.train, frames, strict=True):
        pose = np.array(frame["transform_matrix"])
        right, up, back, centre = pose[:3].T
        camera = view.camera
        assert np.allclose(camera.camera_center, centre, atol=1e-5)
        ahead = centre - 2 * back + 0.3 * right + 0.1 * up  # seen to the right of and above
        pixel, depth = camera.project(ahead[None])
        x = frame["fl_x"] * 0.15 + frame["cx"] - 0.5
        y = -frame["fl_y"] * 0.05 + frame["cy"] - 0.5
        assert np.allclose(pixel[0], [x, y], atol=1e-3) and depth[0] == pytest.approx(2, abs=1e-4)


@pytest.mark.parametrize("name", DNERF)
def test_what_all_other_cameras_see_is_inside_the_mask_of_each(shared_data, name):
    """A visual hull of random points, since the cloud of these scenes is a cube of random points.

    The wrong turns that are rotations too are the control: no turn, and one upside down.
    """
    root = shared_data / "dnerf_mujoco" / name
    frames = json.loads((root / "transforms_train.json").read_text())["frames"][:9]
    scene = builders.load(root, max_points=1000)
    points = np.random.default_rng(0).uniform(-3, 3, (40_000, 3))
    masks = []
    for frame in frames:
        with Image.open((root / frame["file_path"]).with_suffix(".png")) as image:
            masks.append(np.asarray(image)[..., 3] > 127)
    cameras = [view.camera for view in scene.train[: len(masks)]]
    right = _inside_each(cameras, masks, points, np.eye(3))

    def share(inside: np.ndarray) -> float:
        """Mean over cameras: how much of the others' hull is inside this one's mask."""
        hulls = (np.delete(right, i, axis=0).all(axis=0) for i in range(len(right)))
        return float(np.mean([own[hull].mean() for own, hull in zip(inside, hulls, strict=True)]))

    assert share(right) > 0.75
    for turn in (np.diag([1.0, -1, -1]), np.diag([-1.0, -1, 1])):
        assert share(_inside_each(cameras, masks, points, turn)) < 0.75 * share(right)


def _inside_each(cameras, masks, points: np.ndarray, turn: np.ndarray) -> np.ndarray:
    pairs = zip(cameras, masks, strict=True)
    return np.stack([_inside(camera, mask, points, turn) for camera, mask in pairs])


def _inside(camera, mask: np.ndarray, points: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """(N,) bool: whether points land on the mask, with the camera turned in its own axes."""
    w2c = camera.world_to_camera.double().numpy()
    local = (points @ w2c[:3, :3].T + w2c[:3, 3]) @ turn.T
    back = (local - w2c[:3, 3]) @ w2c[:3, :3]  # world points that land there unturned
    pixels, depth = camera.project(back)
    seen = camera.sees(back)
    column, row = np.rint(np.where(seen[:, None], pixels, 0)).astype(int).T
    return seen & (depth > 0) & mask[row, column]
