"""Small scenes on disk in each format, and what is true of them.

Every frame shows a dark gradient with one bright disc where the world point `marker(time)` is seen,
so a test can check poses, intrinsics, resizing and the order of frames at once: the loaded camera
must project the marker onto the disc of the loaded image.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from arguments_MoDE.config import ModelParams
from gaussian_renderer import render
from scene import Scene, View, load_scene
from scene.cameras import Camera
from scene.point_cloud import PointCloud, write_ply
from utils.video import write_video

SIZE = (64, 48)  # width, height
RADIUS = 4.0  # of the disc, pixels


@dataclass
class RigCamera:
    """Ground truth: OpenCV camera-to-world pose and intrinsics in pixels of SIZE."""

    pose: np.ndarray
    fx: float
    fy: float
    cx: float
    cy: float

    def pixel(self, point: np.ndarray) -> np.ndarray:
        """Where a world point lands; written out here independently of scene.cameras."""
        x, y, z = self.pose[:3, :3].T @ (point - self.pose[:3, 3])
        return np.array([self.fx * x / z + self.cx - 0.5, self.fy * y / z + self.cy - 0.5])


def marker(time: float) -> np.ndarray:
    """The moving point that every frame shows."""
    return np.array([0.5 * math.sin(3 * time), 0.3 * math.cos(2 * time), 0.4 * time])


def rig(count: int, *, around: bool = False, spread: float = 0.2) -> list[RigCamera]:
    """Cameras 4 units from the origin that look near it: side by side, or all around it.

    They are rolled and their focal lengths differ, so that nothing is right by symmetry.
    """
    cameras = []
    for i in range(count):
        angle = 2 * math.pi * i / count if around else spread * (i - (count - 1) / 2)
        yaw, pitch, roll = angle, 0.1 * (-1) ** i, 0.03 * i
        rotation = _rotation("y", yaw) @ _rotation("x", pitch) @ _rotation("z", roll)
        pose = np.eye(4)
        pose[:3, :3] = rotation
        pose[:3, 3] = rotation @ [0.02 * i, 0.0, -4.0]
        focal = 50.0 + 2 * i
        cameras.append(RigCamera(pose, focal, focal, SIZE[0] / 2, SIZE[1] / 2))
    return cameras


def _rotation(axis: str, angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    a, b = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(3)
    matrix[[a, b, a, b], [a, b, b, a]] = [c, c, -s, s]
    return matrix


def picture(camera: RigCamera, time: float, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W, 3) uint8: the disc at the marker's pixel, antialiased, on a gradient."""
    y, x = np.mgrid[: size[1], : size[0]].astype(np.float64)
    scale = size[0] / SIZE[0]
    u, v = (camera.pixel(marker(time)) + 0.5) * scale - 0.5
    disc = np.clip(RADIUS * scale + 0.5 - np.hypot(x - u, y - v), 0, 1)[..., None]
    ground = np.stack([20 + 0 * x, 40 * x / size[0], 40 * y / size[1]], axis=-1)
    return np.rint(ground * (1 - disc) + 255 * disc).astype(np.uint8)


def disc_centre(image: np.ndarray) -> np.ndarray:
    """Centroid (x, y) of the bright disc."""
    weight = np.clip(image.astype(np.float64).min(axis=2) - 100, 0, None)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


def cloud(count: int = 200) -> PointCloud:
    """Points in the unit box around the origin."""
    rng = np.random.default_rng(0)
    xyz = rng.uniform(-0.8, 0.8, (count, 3)).astype(np.float32)
    return PointCloud(xyz, rng.integers(0, 256, (count, 3), dtype=np.uint8))


def n3v_scene(
    root: Path,
    cameras: int = 4,
    frames: int = 5,
    *,
    layout: str = "video",
    size: tuple[int, int] = SIZE,
) -> list[RigCamera]:
    """Writes an N3V scene; layout video, images (images/camXX), nested (camXX/images) or flat."""
    root.mkdir(parents=True, exist_ok=True)
    truth = rig(cameras)
    for i, camera in enumerate(truth):
        pictures = [picture(camera, frame_time(f, frames), size) for f in range(frames)]
        if layout == "video":
            write_video(root / f"cam{i:02d}.mp4", pictures, quality=10)
        elif layout == "flat":
            save(root / "images" / f"cam{i:02d}.png", pictures[0])
        else:
            parts = ("images", f"cam{i:02d}")
            folder = root.joinpath(*(parts if layout == "images" else parts[::-1]))
            for f, pixels in enumerate(pictures):
                save(folder / f"{f:04d}.png", pixels)
    np.save(root / "poses_bounds.npy", np.stack([llff_row(c) for c in truth]))
    write_ply(root / "points3D_downsample.ply", cloud())
    return truth


def frame_time(index: int, count: int) -> float:
    """Time at which a test scene's frame was drawn."""
    return index / (count - 1) if count > 1 else 0.0


def llff_row(camera: RigCamera) -> np.ndarray:
    """(17,): axes down, right, backwards, the centre, (height, width, focal), near, far."""
    right, down, forward, centre = camera.pose[:3].T
    hwf = np.array([SIZE[1], SIZE[0], camera.fx])
    matrix = np.stack([down, right, -forward, centre, hwf], axis=1)
    return np.concatenate([matrix.ravel(), [2.0, 9.0]])


def blender_scene(root: Path, frames: int = 8, *, cameras: int = 4) -> list[RigCamera]:
    """Writes a D-NeRF scene: each frame from the next camera in turn, every fourth for testing."""
    truth = rig(cameras, around=True)
    splits: dict[str, list] = {"train": [], "test": []}
    for i in range(frames):
        split, camera = ("test" if i % 4 == 3 else "train"), truth[i % cameras]
        stem = f"./{split}/r_{i:04d}"
        alpha = np.full((*SIZE[::-1], 1), 255, np.uint8)
        pixels = picture(camera, frame_time(i, frames))
        save(root / f"{stem}.png", np.concatenate([pixels, alpha], axis=2))
        splits[split].append(
            {
                "file_path": stem,
                "time": frame_time(i, frames),
                "transform_matrix": (camera.pose @ np.diag([1, -1, -1, 1])).tolist(),
                "fl_x": camera.fx,
                "cx": camera.cx,
                "cy": camera.cy,
            }
        )
    for split, entries in splits.items():
        write_json(root / f"transforms_{split}.json", {"camera_angle_x": 0.7, "frames": entries})
    write_ply(root / "fused.ply", cloud())
    return truth


def panoptic_scene(root: Path, cameras: int = 5, frames: int = 4) -> list[RigCamera]:
    """Writes a PanopticSports scene with off-centre principal points; camera 2 is held out."""
    truth = rig(cameras, around=True)
    for camera in truth:
        camera.fy, camera.cx, camera.cy = camera.fx * 1.1, 30.0, 26.0
    for split, ids in (("train", [i for i in range(cameras) if i != 2]), ("test", [2])):
        meta: dict = {"w": SIZE[0], "h": SIZE[1], "k": [], "w2c": [], "fn": [], "cam_id": []}
        for f in range(frames):
            meta["cam_id"].append(ids)
            meta["fn"].append([f"{i}/{f:06d}.png" for i in ids])
            meta["k"].append([intrinsic_matrix(truth[i]) for i in ids])
            meta["w2c"].append([np.linalg.inv(truth[i].pose).tolist() for i in ids])
            for i in ids:
                pixels = picture(truth[i], frame_time(f, frames))
                save(root / "ims" / str(i) / f"{f:06d}.png", pixels)
        write_json(root / f"{split}_meta.json", meta)
    points = cloud()
    data = np.concatenate([points.xyz, points.rgb / 255.0, np.ones((len(points), 1))], axis=1)
    np.savez(root / "init_pt_cld.npz", data=data.astype(np.float32))
    return truth


def intrinsic_matrix(camera: RigCamera) -> list[list[float]]:
    """3x3, as nested lists."""
    return [[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]]


def save(path: Path, pixels: np.ndarray) -> None:
    """Writes an image by its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_json(path: Path, value: object) -> None:
    """Writes JSON; NaN as Python spells it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def edit_json(path: Path, change) -> None:
    """Lets ``change`` alter the parsed file in place."""
    value = json.loads(path.read_text())
    change(value)
    write_json(path, value)


def load(root: Path, **settings) -> Scene:
    """Loads a scene with `ModelParams` of these settings."""
    return load_scene(ModelParams(source_path=str(root), **settings))


def marker_error(view: View) -> float:
    """Distance in pixels between the disc in the view's image and the marker's projection.

    Blender-style scenes too: the marker follows `View.time`.
    """
    pixels, depth = view.camera.project(marker(view.time)[None])
    assert depth[0] > 0
    return float(np.linalg.norm(pixels[0] - disc_centre(view.image().numpy())))


def projection_error(camera: Camera, truth: RigCamera, scale: float = 1.0) -> float:
    """Largest distance in pixels between where a camera and the formula put points of the cloud.

    ``scale``: pixels of the camera's image for one of SIZE.
    """
    points = cloud(50).xyz.astype(np.float64)
    wanted = np.stack([(truth.pixel(point) + 0.5) * scale - 0.5 for point in points])
    return float(np.linalg.norm(camera.project(points)[0] - wanted, axis=1).max())


def blob_centre(camera: Camera, point: np.ndarray) -> np.ndarray:
    """Centroid (x, y) in pixels of one small Gaussian at ``point``, as it is rendered."""
    gaussian = SimpleNamespace(
        means=torch.tensor(point, dtype=torch.float32)[None],
        log_scales=torch.full((1, 3), 0.1).log(),
        quaternions=torch.tensor([[1.0, 0.0, 0.0, 0.0]]),
        opacity_logits=torch.full((1, 1), 20.0),
        sh=torch.ones(1, 1, 3),
    )
    alpha = render([camera], gaussian, torch.zeros(3), 0).alpha[0, 0]
    weight = alpha.detach().double().numpy()
    y, x = np.mgrid[: camera.height, : camera.width]
    return np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


def colmap_scene(
    root: Path, frames: int = 9, *, binary: bool = True, model: str = "PINHOLE"
) -> list[RigCamera]:
    """A camera that moves: photos ``images/0000.png`` and a model in ``sparse/0``."""
    cameras = rig(frames)
    for index, camera in enumerate(cameras):
        save(root / "images" / f"{index:04d}.png", picture(camera, frame_time(index, frames)))
    write_colmap(root / "sparse" / "0", cameras, cloud(), binary=binary, model=model)
    return cameras


def write_colmap(
    folder: Path,
    cameras: list[RigCamera],
    points: PointCloud,
    *,
    binary: bool,
    model: str,
    names: list[str] | None = None,
) -> None:
    """The three files of a COLMAP model: images named 0000.png on, a camera each, with features."""
    folder.mkdir(parents=True, exist_ok=True)
    names = names or [f"{i:04d}.png" for i in range(len(cameras))]
    lenses = []
    for camera in cameras:
        pinhole = (camera.fx, camera.fy, camera.cx, camera.cy)
        lenses.append({"PINHOLE": pinhole, "OPENCV": (*pinhole, 0.1, 0, 0, 0)}[model])
    poses = [_colmap_pose(camera.pose) for camera in cameras]
    write = _write_colmap_binary if binary else _write_colmap_text
    write(folder, lenses, list(zip(names, poses, strict=True)), points, model)


def _colmap_pose(pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """World-to-camera quaternion wxyz and translation."""
    rotation = pose[:3, :3].T
    w = math.sqrt(max(1 + np.trace(rotation), 0)) / 2
    assert w > 0.1, "this simple formula needs small rotations"
    vector = np.array(
        [
            rotation[2, 1] - rotation[1, 2],
            rotation[0, 2] - rotation[2, 0],
            rotation[1, 0] - rotation[0, 1],
        ]
    )
    return np.array([w, *(vector / (4 * w))]), -rotation @ pose[:3, 3]


def _write_colmap_binary(folder: Path, lenses, poses, points: PointCloud, model: str) -> None:
    number = {"PINHOLE": 1, "OPENCV": 4}[model]
    out = struct.pack("<Q", len(lenses))
    for i, lens in enumerate(lenses):
        out += struct.pack(f"<iiQQ{len(lens)}d", i + 1, number, *SIZE, *lens)
    (folder / "cameras.bin").write_bytes(out)
    out = struct.pack("<Q", len(poses))
    for i, (name, (quaternion, translation)) in reversed(list(enumerate(poses))):
        out += struct.pack("<i7di", i + 1, *quaternion, *translation, i + 1)
        out += name.encode() + b"\0"
        out += struct.pack("<Q", i) + i * struct.pack("<ddq", 1.0, 2.0, -1)
    (folder / "images.bin").write_bytes(out)
    out = struct.pack("<Q", len(points))
    for i, (xyz, rgb) in enumerate(zip(points.xyz, points.rgb, strict=True)):
        track = i % 3
        out += struct.pack("<Q3d3BdQ", i, *map(float, xyz), *map(int, rgb), 0.5, track)
        out += track * struct.pack("<ii", 1, 0)
    (folder / "points3D.bin").write_bytes(out)


def _write_colmap_text(folder: Path, lenses, poses, points: PointCloud, model: str) -> None:
    lines = ["# Camera list", f"# Number of cameras: {len(lenses)}"]
    for i, lens in enumerate(lenses):
        lines.append(" ".join(map(str, (i + 1, model, *SIZE, *lens))))
    (folder / "cameras.txt").write_text("\n".join(lines) + "\n")
    lines = ["# Image list with two lines of data per image:"]
    lines.append(f"# Number of images: {len(poses)}, mean observations per image: 1")
    for i, (name, (quaternion, translation)) in enumerate(poses):
        lines.append(" ".join(map(str, (i + 1, *quaternion, *translation, i + 1, name))))
        lines.append("" if i % 2 else "1.0 2.0 -1")
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    lines = ["# 3D point list", f"# Number of points: {len(points)}, mean track length: 2"]
    for i, (xyz, rgb) in enumerate(zip(points.xyz, points.rgb, strict=True)):
        lines.append(" ".join(map(str, (i, *xyz, *rgb, 0.5, 1, 0, 2, 0))))
    (folder / "points3D.txt").write_text("\n".join(lines) + "\n")


def off_centre(cameras: list[RigCamera], cx: float = 29.0, cy: float = 27.0) -> list[RigCamera]:
    """Moves the principal points, in pixels of SIZE, and makes pixels oblong; returns the same."""
    for camera in cameras:
        camera.fy, camera.cx, camera.cy = camera.fx * 1.1, cx, cy
    return cameras


def multiview_scene(
    root: Path,
    cameras: int = 4,
    frames: int = 3,
    *,
    layout: str = "images",
    names: str = "cam{:02d}.png",
    model: str = "PINHOLE",
    size: tuple[int, int] = SIZE,
) -> list[RigCamera]:
    """Writes a rig with a COLMAP model.

    Layout: images (images/camXX), root (camXX), nested (camXX/images), video, or published
    (4DGaussians' MultipleView, which counts cameras and frames from 1). ``names``: of the model's
    images, by number of the camera.
    """
    truth = off_centre(rig(cameras))
    published = layout == "published"
    for i, camera in enumerate(truth):
        pictures = [picture(camera, frame_time(f, frames), size) for f in range(frames)]
        name = f"cam{i + published:02d}"
        folder = root.joinpath(
            *{"images": ("images", name), "nested": (name, "images")}.get(layout, (name,))
        )
        if layout == "video":
            root.mkdir(parents=True, exist_ok=True)
            write_video(root / f"{name}.mp4", pictures, quality=10)
            continue
        for f, pixels in enumerate(pictures):
            save(folder / (f"frame_{f + 1:05d}.jpg" if published else f"{f:04d}.png"), pixels)
    listed = [("image{}.jpg" if published else names).format(i + published) for i in range(cameras)]
    where = root / "sparse_" if published else root / "sparse" / "0"
    write_colmap(where, truth, cloud(), binary=published, model=model, names=listed)
    if published:
        write_ply(root / "points3D_multipleview.ply", cloud(100))
    return truth


TECHNICOLOR = (64, 34)  # the small copies of its frames, 1/32 of their size


def technicolor_scene(
    root: Path, cameras: int = 12, frames: int = 3, *, layout: str = "raw"
) -> list[RigCamera]:
    """Writes a Technicolor scene, its frames from number 151 on, or extracted (images/camXX)."""
    truth = off_centre(rig(cameras, spread=0.05), 30.5, 15.0)
    lines = ["focal cx cy aspect skew qw qx qy qz tx ty tz"]
    for i, camera in enumerate(truth):
        camera.fy = camera.fx
        quaternion, translation = _colmap_pose(camera.pose)
        numbers = (camera.fx * 32, camera.cx * 32, camera.cy * 32, 1, 0, *quaternion, *translation)
        lines.append(" ".join(f"{number:.9g}" for number in numbers))
        for f in range(frames):
            raw = root / f"Toy_undist_{151 + f:05d}_{i:02d}.png"
            extracted = root / "images" / f"cam{i:02d}" / f"{f:04d}.png"
            pixels = picture(camera, frame_time(f, frames), TECHNICOLOR)
            save(raw if layout == "raw" else extracted, pixels)
    (root / "cameras_parameters.txt").write_text("\n".join(lines) + "\n")
    write_ply(root / "points3D_downsample.ply", cloud())
    return truth


def hypernerf_scene(root: Path, frames: int = 9, *, rig_of_two: bool = False) -> list[RigCamera]:
    """Writes a HyperNeRF capture, its images half as large as the camera files say.

    With ``rig_of_two``, each moment has an image of either camera, which take turns in being held
    out; else the files hold out none. Cameras in the order of the ids.
    """
    views = 2 if rig_of_two else 1
    truth = off_centre(rig(frames * views, spread=0.05))
    ids = [f"{i % views}_{i // views:06d}" for i in range(frames * views)]
    metadata = {}
    for i, (name, camera) in enumerate(zip(ids, truth, strict=True)):
        time = i // views
        save(root / "rgb" / "2x" / f"{name}.png", picture(camera, frame_time(time, frames)))
        metadata[name] = {"warp_id": time, "appearance_id": time, "camera_id": i % views}
        entry = {
            "orientation": camera.pose[:3, :3].T.tolist(),
            "position": camera.pose[:3, 3].tolist(),
            "focal_length": 2 * camera.fx,
            "principal_point": [2 * camera.cx, 2 * camera.cy],
            "skew": 0.0,
            "pixel_aspect_ratio": camera.fy / camera.fx,
            "radial_distortion": [0.0, 0.0, 0.0],
            "tangential_distortion": [0.0, 0.0],
            "image_size": [2 * SIZE[0], 2 * SIZE[1]],
        }
        write_json(root / "camera" / f"{name}.json", entry)
    held_out = [name for i, name in enumerate(ids) if (i % 2) ^ (i // 2 % 2)] if views > 1 else []
    trained = [name for name in ids if name not in held_out] if views > 1 else []
    write_json(root / "metadata.json", metadata)
    write_json(root / "scene.json", {"scale": 0.1, "center": [1.0, 2.0, 3.0]})
    dataset = {"count": len(ids), "ids": ids, "train_ids": trained, "val_ids": held_out}
    write_json(root / "dataset.json", dataset)
    write_ply(root / "points3D_downsample.ply", cloud())
    return truth


def nerfstudio_scene(
    root: Path, frames: int = 10, *, cameras: int = 0, times: bool = True
) -> list[RigCamera]:
    """Writes ``transforms.json``: a rig of so many cameras with a folder each, or a moving one.

    Entries are in reverse order of their names. Returns the cameras of the rig, or of the frames.
    """
    truth = off_centre(rig(cameras or frames))
    entries = []
    for i in range(frames):
        for number, camera in enumerate(truth) if cameras else [(None, truth[i])]:
            folder = "images" if number is None else f"images/eye{number}"
            save(root / folder / f"frame_{i:05d}.png", picture(camera, frame_time(i, frames)))
            entry = {
                "file_path": f"{folder}/frame_{i:05d}.png",
                "transform_matrix": (camera.pose @ np.diag([1, -1, -1, 1])).tolist(),
                "fl_x": camera.fx,
                "fl_y": camera.fy,
            }
            entries.append(entry | ({"time": 0.5 * i} if times else {}))
    head = {"w": SIZE[0], "h": SIZE[1], "cx": truth[0].cx, "cy": truth[0].cy}
    head |= {"camera_model": "OPENCV", "k1": 0.0, "p1": 0, "ply_file_path": "sparse_pc.ply"}
    head |= {"applied_transform": [[0, 1, 0, 5], [1, 0, 0, 6], [0, 0, -1, 7]]}
    write_json(root / "transforms.json", {**head, "frames": entries[::-1]})
    write_ply(root / "sparse_pc.ply", cloud())
    return truth
