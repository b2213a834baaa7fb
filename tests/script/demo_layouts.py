"""The demo scene in the layouts of other data sets: real texture, known poses, known surfaces."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from scene.cameras import Camera
from scene.datasets.n3v import read_rows, row_camera
from scene.point_cloud import read_ply
from script.preprocessing.colmap_tools import quaternion
from utils.video import read_video

DEMO = Path(__file__).resolve().parents[2] / "demo" / "scene"
FRAMES = 40
TOP, HEIGHT = 20, 136  # of the part that has the shape of Technicolor's frames; not in the middle


@cache
def demo_camera(number: int) -> Camera:
    return row_camera(f"cam{number:02d}", read_rows(DEMO / "poses_bounds.npy")[number], (256, 192))


@cache
def demo_frames(number: int) -> np.ndarray:
    """(40, 192, 256, 3) uint8."""
    return np.stack(list(read_video(DEMO / f"cam{number:02d}.mp4", range(FRAMES))))


def technicolor(
    root: Path, cameras: list[int], frames: list[int], scene: str = "Toy", first: int = 7
) -> None:
    """Some of the demo's cameras and frames as published: whole rows, numbers from ``first``."""
    root.mkdir(parents=True, exist_ok=True)
    lines = ["focal cx cy aspect skew qw qx qy qz tx ty tz"]
    for row, number in enumerate(cameras):
        camera = demo_camera(number)
        matrix = camera.world_to_camera.double().numpy()
        lens = (8 * camera.fx, 8 * camera.cx, 8 * (camera.cy - TOP))
        values = (*lens, 1, 0, *quaternion(matrix[:3, :3]), *matrix[:3, 3])
        lines.append(" ".join(f"{value:.9g}" for value in values))
        for i, frame in enumerate(frames):
            pixels = demo_frames(number)[frame, TOP : TOP + HEIGHT]
            file = root / f"{scene}_undist_{first + i:05d}_{row:02d}.png"
            Image.fromarray(pixels).save(file, compress_level=1)
    (root / "cameras_parameters.txt").write_text("\n".join(lines) + "\n")


def hypernerf(root: Path, count: int, k1: float = 0.0) -> None:
    """A moving camera: moment i of ``count``, taken by the demo's cameras in turn.

    The images are half as large as the camera files say; every fifth is held out.

    Args:
        k1: of a lens that bends the pictures.
    """
    ids = [f"{i:06d}" for i in range(count)]
    (root / "rgb" / "2x").mkdir(parents=True)
    (root / "camera").mkdir()
    for i, name in enumerate(ids):
        camera = demo_camera(i % 14)
        pixels = demo_frames(i % 14)[i * FRAMES // count]
        pixels = bent(pixels, camera, k1) if k1 else pixels
        Image.fromarray(pixels).save(root / "rgb" / "2x" / f"{name}.png", compress_level=1)
        (root / "camera" / f"{name}.json").write_text(json.dumps(_entry(camera, k1)))
    table = {name: {"warp_id": i, "appearance_id": i, "camera_id": 0} for i, name in enumerate(ids)}
    (root / "metadata.json").write_text(json.dumps(table))
    held_out = ids[2::5]
    splits = {"ids": ids, "train_ids": [n for n in ids if n not in held_out], "val_ids": held_out}
    (root / "dataset.json").write_text(json.dumps(splits))


def _entry(camera: Camera, k1: float) -> dict:
    matrix = camera.world_to_camera.double().numpy()
    return {
        "orientation": matrix[:3, :3].tolist(),
        "position": (-matrix[:3, :3].T @ matrix[:3, 3]).tolist(),
        "focal_length": 2 * camera.fx,
        "principal_point": [2 * camera.cx, 2 * camera.cy],
        "pixel_aspect_ratio": 1.0,
        "skew": 0.0,
        "radial_distortion": [k1, 0.0, 0.0],
        "tangential_distortion": [0.0, 0.0],
        "image_size": [2 * camera.width, 2 * camera.height],
    }


def bent(pixels: np.ndarray, camera: Camera, k1: float) -> np.ndarray:
    """What a lens of this distortion would have shown; nearest pixels of a four times finer one."""
    y, x = np.mgrid[: camera.height, : camera.width] + 0.5
    u, v = (x - camera.cx) / camera.fx, (y - camera.cy) / camera.fy
    radius = np.hypot(u, v)
    straight = radius.copy()
    for _ in range(50):  # straight * (1 + k1 straight²) = radius
        straight = radius / (1 + k1 * straight**2)
    scale = straight / np.maximum(radius, 1e-9)
    fine = np.array(Image.fromarray(pixels).resize((4 * camera.width, 4 * camera.height), 3))
    column = 4 * (camera.fx * u * scale + camera.cx)
    row = 4 * (camera.fy * v * scale + camera.cy)
    return fine[
        row.astype(int).clip(0, 4 * camera.height - 1),
        column.astype(int).clip(0, 4 * camera.width - 1),
    ]


def distances(cloud: Path) -> np.ndarray:
    """From each point of a cloud to the nearest of the demo's; the scene is some 4 units wide."""
    truth = read_ply(DEMO / "points3D_downsample.ply").xyz
    return np.array([np.linalg.norm(truth - point, axis=1).min() for point in read_ply(cloud).xyz])
