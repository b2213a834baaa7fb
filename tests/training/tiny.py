"""A tiny scene and model for tests of training: a few points, 3 cameras, 4 frames of 24 x 16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from arguments_MoDE.config import Config
from scene import Scene, View
from scene.cameras import Camera
from scene.point_cloud import PointCloud
from training.launch import build_model
from training.reports import Report
from training.trainer import Plan, Trainer

WIDTH, HEIGHT, CAMERAS, FRAMES = 24, 16, 3, 4


class Images:
    """A frame store of random images."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = (CAMERAS, FRAMES, HEIGHT, WIDTH, 3)
        self.pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        self.masks: torch.Tensor | None = None  # (cameras, frames, H, W) bool

    def get(self, camera: int, frame: int) -> torch.Tensor:
        return self.pixels[camera, frame]

    def mask(self, camera: int, frame: int) -> torch.Tensor | None:
        return None if self.masks is None else self.masks[camera, frame]

    def prefetch(self, pairs: list[tuple[int, int]]) -> None:
        pass


def camera(index: int) -> Camera:
    w2c = torch.eye(4)
    w2c[0, 3], w2c[2, 3] = 0.3 * (index - 1), 4.0
    return Camera(f"cam{index:02d}", WIDTH, HEIGHT, 20.0, 20.0, WIDTH / 2, HEIGHT / 2, w2c)


def scene(points: int = 60) -> Scene:
    rng = np.random.default_rng(0)
    cloud = PointCloud(
        rng.uniform(-1, 1, (points, 3)).astype(np.float32),
        rng.integers(0, 255, (points, 3)).astype(np.uint8),
    )
    store = Images()
    views = [
        View(camera(c), c, f, f / (FRAMES - 1), store, (c, f))
        for c in range(CAMERAS)
        for f in range(FRAMES)
    ]
    return Scene(
        kind="tiny",
        source_path=Path("."),
        camera_names=[f"cam{c:02d}" for c in range(CAMERAS)],
        train=[v for v in views if v.camera_index > 0],
        test=[v for v in views if v.camera_index == 0],
        video=[],
        points=cloud,
        extent=1.0,
        frame_count=FRAMES,
        background=(1.0, 1.0, 1.0),
    )


def config(**opt) -> Config:
    made = Config()
    made.hidden.kplanes_config = {
        "grid_dimensions": 2,
        "input_coordinate_dim": 4,
        "output_coordinate_dim": 4,
        "resolution": [6, 6, 6, 4],
    }
    made.hidden.multires, made.hidden.net_width = [1], 8
    made.emb.emb_net_width, made.emb.emb_temporal_embedding_dim = 8, 16
    defaults = {
        "coarse_iterations": 8,
        "iterations": 16,
        "batch_size": 2,
        "densify_from_iter": 2,
        "densification_interval": 4,
        "pruning_from_iter": 2,
        "pruning_interval": 4,
        "prune_min_gaussians": 0,
        "max_gaussians": 90,
        "gaiting_from_iter": 6,
        "densify_grad_threshold_fine_init": 1e-5,
        "densify_grad_threshold_coarse": 1e-5,
        "densify_grad_threshold_after": 1e-5,
        "lambda_dssim": 0.1,
    }
    for key, value in (defaults | opt).items():
        assert hasattr(made.opt, key), key
        setattr(made.opt, key, value)
    return made


def family(name: str, **opt) -> Config:
    """`config` for ``emb`` or ``hash``: the mixtures of `train_emb.py` and `train_hash.py`."""
    made = config(**opt)
    if name == "hash":
        made.hidden.experts = ["hexplane", "hash"]
        made.hash.grid_args |= {
            "canonical_num_levels": 4,
            "canonical_desired_resolution": 64,
            "canonical_log2_hashmap_size": 8,
            "deform_num_levels": 4,
            "deform_log2_hashmap_size": 8,
        }
        made.hash.network_args = {"depth": 1, "width": 8, "directional": True}
    return made


def trainer(
    folder: Path,
    settings: Config | None = None,
    *,
    device: str = "cpu",
    deferred: bool | None = None,
    points: int = 60,
    **plan,
) -> Trainer:
    torch.manual_seed(0)
    folder.mkdir(exist_ok=True)
    settings = settings or config()
    world = scene(points)
    report = Report(folder, quiet=True)
    model, plans = build_model(world, settings), Plan(folder, **plan)
    return Trainer(model, world, settings, plans, report, device, deferred)
