"""Does training wait for its images? Real iterations at 676x507 with every kind of file and cache.

    python benchmarks/frame_loader.py [--threads 2] [--cases png:auto mp4:disk] > frame_loader.json

A rig of cameras is written to a temporary folder, 1352x1014, textured and noisy, and trained on as
`train_emb.py` does it, with the demo's recipe, at half size and a fixed number of Gaussians. For
each kind of file and cache, and for the first epoch (cold: what is kept is yet to be decoded) and
the next (warm):

- ``ms``: mean of an iteration;
- ``wait_ms``, ``wait_p95_ms``, ``wait_share``: of it, in which training stood waiting for images;
- ``cpu_ms``: processor time of an iteration, of all threads, and ``cpu_share``: how much of it goes
  into frames, which is what they delay training by even if it never waits. Measured against
  iterations in between, whose frames cost nothing.

Videos are decoded before the first iteration; ``prepare_s`` says how long that takes. The system's
own cache of files is warm, as the files have just been written.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import utils.threads  # noqa: F401  before torch

# isort: split
import numpy as np
import torch
from PIL import Image

from arguments_MoDE.cli import parse_training
from arguments_MoDE.config import Config
from scene import Scene, load_scene
from scene.point_cloud import PointCloud, write_ply
from training.launch import build_model
from training.reports import Report
from training.trainer import Plan, Trainer
from utils.video import write_video

ROOT = Path(__file__).resolve().parents[1]
SIZE = (1352, 1014)
DISTINCT = 4  # pictures of a camera; further frames are links to them
SMALL_CACHE_GB = 0.02  # 19 frames of 676x507
CASES = ("png:auto", "png:disk", "png:none", "jpg:auto", "jpg:disk", "jpg:none") + (
    "mp4:auto",
    "mp4:disk",
)


# ---- the scene ----------------------------------------------------------------------------------


def texture(seed: int) -> np.ndarray:
    """(H, W, 3) float32 in [0, 255]: random patches of all sizes, as natural images have them."""
    rng = np.random.default_rng(seed)
    total = np.zeros((SIZE[1], SIZE[0], 3), np.float32)
    for cells in (4, 12, 36, 108, 324):
        grid = rng.uniform(-1, 1, (cells, cells, 3)).astype(np.float32)
        for c in range(3):
            band = Image.fromarray(grid[..., c]).resize(SIZE, Image.Resampling.BICUBIC)
            total[..., c] += np.asarray(band) / np.sqrt(cells)
    return (127 + 100 * total / np.abs(total).max()).astype(np.float32)


def picture(base: np.ndarray, frame: int) -> np.ndarray:
    """The texture moved by a few pixels, with the noise of a sensor: uint8."""
    rng = np.random.default_rng(frame)
    moved = np.roll(base, (3 * frame, 5 * frame), axis=(0, 1))
    noise = rng.normal(0, 1.5, base.shape).astype(np.float32)
    return np.clip(np.rint(moved + noise), 0, 255).astype(np.uint8)


def write_frames(root: Path, kind: str, cameras: int, frames: int) -> None:
    """Images ``images/camXX/0000.png`` or videos ``camXX.mp4``."""
    for camera in range(cameras):
        base = texture(camera)
        if kind == "mp4":
            clip = (picture(base, frame) for frame in range(frames))
            write_video(root / f"cam{camera:02d}.mp4", clip)
            continue
        folder = root / "images" / f"cam{camera:02d}"
        folder.mkdir(parents=True)
        options = {"quality": 95} if kind == "jpg" else {}
        for frame in range(frames):
            path = folder / f"{frame:04d}.{kind}"
            if frame < DISTINCT:
                Image.fromarray(picture(base, frame)).save(path, **options)
            else:
                os.link(folder / f"{frame % DISTINCT:04d}.{kind}", path)


def write_scene(root: Path, kind: str, cameras: int, frames: int, gaussians: int) -> None:
    """A Neural 3D Video scene: cameras side by side, 4 units before a box of points."""
    root.mkdir()
    write_frames(root, kind, cameras, frames)
    rows = []
    for camera in range(cameras):
        axes = np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1]])  # rows: down, right, backwards
        centre = [0.2 * (camera - cameras / 2), 0, -4]
        hwf = [SIZE[1], SIZE[0], SIZE[0]]
        matrix = np.column_stack([*axes, centre, hwf])
        rows.append(np.concatenate([matrix.ravel(), [2.0, 9.0]]))
    np.save(root / "poses_bounds.npy", np.array(rows))
    rng = np.random.default_rng(0)
    xyz = rng.uniform(-1.5, 1.5, (gaussians, 3)).astype(np.float32)
    colours = rng.integers(0, 256, xyz.shape, dtype=np.uint8)
    write_ply(root / "points3D_downsample.ply", PointCloud(xyz, colours))


# ---- training -----------------------------------------------------------------------------------


def make_config(root: Path, out: Path, cache: str, gaussians: int) -> Config:
    """The demo's recipe at half size, with a number of Gaussians that stays."""
    flags = ["-s", str(root), "--expname", str(out), "-r", "2", "--cache", cache, "--quiet"]
    flags += ["--configs", str(ROOT / "arguments_MoDE" / "demo" / "demo.py")]
    flags += ["--max_points", "0", "--max_gaussians", str(gaussians)]
    flags += ["--densify_until_iter", "0", "--iterations", "100000"]
    if cache == "disk":
        flags += ["--cache_gb", str(SMALL_CACHE_GB)]
    return parse_training(flags, "frame_loader.py", "", (), ("hexplane", "embedding")).config


def make_trainer(scene: Scene, config: Config, out: Path) -> Trainer:
    """A trainer at the start of its fine stage."""
    out.mkdir(parents=True, exist_ok=True)
    report = Report(out, quiet=True)
    trainer = Trainer(build_model(scene, config), scene, config, Plan(out), report)
    trainer._start_stage("fine")
    trainer.model.train()
    return trainer


class Waiting:
    """Counts the seconds that the training thread spends in the store's `get`."""

    def __init__(self, store) -> None:
        self.seconds, self._get = 0.0, store.get
        store.get = self

    def __call__(self, source: int, frame: int) -> torch.Tensor:
        start = time.perf_counter()
        pixels = self._get(source, frame)
        self.seconds += time.perf_counter() - start
        return pixels


class Free:
    """A store whose frames cost nothing: the same ones always."""

    def __init__(self, pixels: torch.Tensor) -> None:
        self.pixels = pixels

    def get(self, source: int, frame: int) -> torch.Tensor:
        return self.pixels

    def mask(self, source: int, frame: int) -> None:
        return None

    def prefetch(self, wanted: list) -> None:
        pass


def timed(trainer: Trainer) -> tuple[float, float]:
    """Milliseconds of one iteration, and of processor time of the whole process meanwhile."""
    start, cpu = time.perf_counter(), time.process_time()
    trainer.iterate()
    return 1e3 * (time.perf_counter() - start), 1e3 * (time.process_time() - cpu)


def measure(trainer: Trainer, free: Trainer, waiting: Waiting, iterations: int) -> dict:
    """One epoch, with iterations that need no images in between."""
    times, cpu, waits, free_cpu = [], [], [], []
    for i in range(iterations):
        waiting.seconds = 0.0
        both = timed(trainer)
        times.append(both[0])
        cpu.append(both[1])
        waits.append(1e3 * waiting.seconds)
        if i % 10 == 9 or i == iterations - 1:
            time.sleep(0.1)  # for what is being prefetched
            free_cpu += [timed(free)[1] for _ in range(3)]
    return {
        "ms": round(statistics.fmean(times), 1),
        "wait_ms": round(statistics.fmean(waits), 2),
        "wait_p95_ms": round(float(np.percentile(waits, 95)), 2),
        "wait_share": round(sum(waits) / sum(times), 4),
        "cpu_ms": round(statistics.fmean(cpu), 1),
        "cpu_share": round(1 - statistics.fmean(free_cpu) / statistics.fmean(cpu), 3),
    }


def run_case(root: Path, out: Path, cache: str, gaussians: int) -> dict:
    """Numbers of one kind of file with one cache."""
    config = make_config(root, out, cache, gaussians)
    start = time.perf_counter()
    scene = load_scene(config.model)
    scene.prepare(scene.train)
    seconds = time.perf_counter() - start
    camera = scene.train[0].camera
    free_store = Free(torch.randint(256, (camera.height, camera.width, 3), dtype=torch.uint8))
    free_views = [replace(view, store=free_store) for view in scene.train]
    free = make_trainer(replace(scene, train=free_views), config, out / "free")
    for _ in range(3):
        timed(free)  # warm-up
    trainer, waiting = make_trainer(scene, config, out), Waiting(scene.train[0].store)
    iterations = len(scene.train) // config.opt.batch_size
    return {
        "cold": measure(trainer, free, waiting, iterations),
        "warm": measure(trainer, free, waiting, iterations),
        "prepare_s": round(seconds, 1),
        "size": [camera.width, camera.height],
        "views": len(scene.train),
        "batch": config.opt.batch_size,
    }


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cameras", type=int, default=8, help="the first is held out")
    parser.add_argument("--frames", type=int, default=20, help="of each camera")
    parser.add_argument("--gaussians", type=int, default=20_000)
    parser.add_argument("--cases", nargs="+", default=CASES, help="kind:cache")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    facts = {name: getattr(arguments, name) for name in ("threads", "frames", "gaussians")}
    results: dict = {**facts, "load": [round(x, 2) for x in os.getloadavg()], "cases": {}}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        for case in arguments.cases:
            kind, cache = case.split(":")
            root = Path(folder) / kind
            if not root.is_dir():
                write_scene(root, kind, arguments.cameras, arguments.frames, arguments.gaussians)
            results["cases"][case] = run_case(
                root, Path(folder) / "run", cache, arguments.gaussians
            )
            results["load_after"] = [round(x, 2) for x in os.getloadavg()]
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
