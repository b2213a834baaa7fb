"""A synthetic scene of the size of a Neural 3D Video clip, and MoDE on it, for the benchmarks.

A room with a figure in it, seen by an arc of cameras; the recipe is Neural 3D Video's. Frames come
from a few images in memory, as from a frame cache that is full: decoding is another benchmark's
(`frame_loader.py`). What is drawn is not what the frames show, so nothing here says anything about
quality; the Gaussians' sizes and opacities are spread as in a trained model.
"""

from __future__ import annotations

import argparse
import math
import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from arguments_MoDE.config import Config
from arguments_MoDE.recipe import read_recipe
from arguments_MoDE.values import merged
from scene import Scene, View
from scene.cameras import Camera, camera_from_pose
from scene.gaussian_model import MAX_SH_DEGREE
from scene.mixture import MoDE
from scene.point_cloud import PointCloud
from scene.views import scene_extent
from training.launch import build_model

RECIPE = "arguments_MoDE/dynerf/config_rot_0/cook_spinach.py"
EXPERTS = ("hexplane", "embedding")
DISTINCT = 64  # images in memory, whatever the number of frames
FOCAL = 0.54  # of the width, as Neural 3D Video's cameras have it


def parser(description: str) -> argparse.ArgumentParser:
    """The arguments that say how large everything is; the defaults take a CPU seconds."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--cameras", type=int, default=4)
    made.add_argument("--frames", type=int, default=10)
    made.add_argument("--size", type=int, nargs=2, default=(169, 127), metavar=("W", "H"))
    made.add_argument("--gaussians", type=int, default=3000)
    made.add_argument("--experts", nargs="+", default=list(EXPERTS))
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument("--threads", type=int, default=torch.get_num_threads())
    return made


# ---- the scene ----------------------------------------------------------------------------------


class Images:
    """A frame store that has a few frames for all."""

    def __init__(self, width: int, height: int, count: int) -> None:
        random = torch.Generator().manual_seed(0)
        coarse = torch.rand((count, 3, height // 8 + 1, width // 8 + 1), generator=random)
        size = (height, width)
        self.pixels = [
            torch.nn.functional.interpolate(image[None], size=size, mode="bicubic")[0]
            .clamp(0, 1)
            .mul(255)
            .to(torch.uint8)
            .permute(1, 2, 0)
            .contiguous()
            for image in coarse
        ]

    def get(self, source: int, frame: int) -> torch.Tensor:
        """(H, W, 3) uint8."""
        return self.pixels[(31 * source + frame) % len(self.pixels)]

    def mask(self, source: int, frame: int) -> None:
        """There is none."""

    def prefetch(self, slots: list[tuple[int, int]]) -> None:
        """All is there."""


def build_scene(arguments: argparse.Namespace) -> Scene:
    """The scene, its first camera held out."""
    width, height = arguments.size
    frames, last = arguments.frames, max(arguments.cameras - 1, 1)
    names = [f"cam{index:02d}" for index in range(arguments.cameras)]
    cameras = [_camera(name, i / last, width, height) for i, name in enumerate(names)]
    store = Images(width, height, min(DISTINCT, frames * len(cameras)))
    views = [
        View(camera, c, frame, frame / max(frames - 1, 1), store, (c, frame))
        for c, camera in enumerate(cameras)
        for frame in range(frames)
    ]
    points = _room(arguments.gaussians)
    return Scene(
        kind="synthetic",
        source_path=Path("."),
        camera_names=names,
        train=[view for view in views if view.camera_index > 0],
        test=[view for view in views if view.camera_index == 0],
        video=[],
        points=points,
        extent=scene_extent(cameras[1:] or cameras, points),
        frame_count=frames,
        background=(1.0, 1.0, 1.0),
    )


def _camera(name: str, share: float, width: int, height: int) -> Camera:
    """On an arc of 80 degrees around the room's middle (0, 0, 3), looking at it."""
    angle = math.radians(80 * (share - 0.5))
    centre = np.array([5 * math.sin(angle), -0.3, 3 - 5 * math.cos(angle)])
    forward = np.array([0.0, 0.0, 3.0]) - centre
    forward /= np.linalg.norm(forward)
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right)
    pose = np.stack([right, np.cross(forward, right), forward, centre], axis=1)
    focal = FOCAL * width
    return camera_from_pose(name, (width, height), (focal, focal, width / 2, height / 2), pose)


def _room(count: int) -> PointCloud:
    """Two thirds on walls, floor and ceiling, the rest on a figure in the middle."""
    random = np.random.default_rng(0)
    box = np.array([[-4.0, -2.0, 0.0], [4.0, 2.0, 7.0]], dtype=np.float32)
    xyz = random.uniform(*box, (count, 3)).astype(np.float32)
    side = random.choice([(0, 0), (0, 1), (1, 0), (1, 1), (2, 1)], count)  # axis; low or high
    xyz[np.arange(count), side[:, 0]] = box[side[:, 1], side[:, 0]]
    figure = random.random(count) < 1 / 3
    xyz[figure] = random.normal((0, 0.3, 3), (0.4, 0.7, 0.4), (figure.sum(), 3))
    return PointCloud(xyz, random.integers(0, 255, (count, 3)).astype(np.uint8))


# ---- the model ----------------------------------------------------------------------------------


def build_config(arguments: argparse.Namespace) -> Config:
    """Neural 3D Video's recipe with a fixed number of Gaussians."""
    config = merged(Config(), read_recipe(RECIPE, note=lambda text: None))
    config.hidden.experts = list(arguments.experts)
    config.opt.max_gaussians = config.opt.prune_min_gaussians = arguments.gaussians
    return config


@torch.no_grad()
def build_trained(scene: Scene, config: Config) -> MoDE:
    """A model whose Gaussians are as different as trained ones."""
    torch.manual_seed(0)
    model = build_model(scene, config)
    gaussians = model.gaussians
    gaussians.active_sh_degree = MAX_SH_DEGREE
    gaussians.opacity.uniform_(-2, 4)
    gaussians.rotation.normal_()
    gaussians.f_rest.normal_(std=0.05)
    gaussians.log_scale.add_(0.5 * torch.randn_like(gaussians.log_scale))
    return model


# ---- clocks -------------------------------------------------------------------------------------


class Clock:
    """Moments, on the device's own time."""

    def __init__(self, device: str) -> None:
        self.device = device

    def now(self) -> Any:
        """A moment; on a GPU, when it gets there, which nobody waits for."""
        if self.device != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self) -> None:
        """Until the device is through with everything."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def ms(self, start: Any, end: Any) -> float:
        """Milliseconds between two moments that are over."""
        return start.elapsed_time(end) if self.device == "cuda" else 1e3 * (end - start)


class Stopwatch:
    """Sums up, per round, how long named functions take."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._spans: list[dict[str, list[tuple[Any, Any]]]] = []

    def timed(self, part: str, function: Callable) -> Callable:
        """``function``, timed as ``part``."""

        def run(*arguments, **named):
            start = self.clock.now()
            result = function(*arguments, **named)
            self._spans[-1][part].append((start, self.clock.now()))
            return result

        return run

    def round(self) -> None:
        """Begins a round."""
        self._spans.append(defaultdict(list))

    def medians(self) -> dict[str, float]:
        """Part -> median over the rounds of its milliseconds per round."""
        self.clock.wait()
        parts = list(dict.fromkeys(part for spans in self._spans for part in spans))
        return {
            part: statistics.median(
                sum(self.clock.ms(*span) for span in spans[part]) for spans in self._spans
            )
            for part in parts
        }


def facts(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was measured, and on what."""
    gpu = arguments.device == "cuda"
    return {
        **vars(arguments),
        "torch": torch.__version__,
        "device_name": torch.cuda.get_device_name() if gpu else "CPU",
    }


def peak_gb(device: str) -> float:
    """Peak memory: what torch allocated on the GPU, or the process's own."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
