"""Renders the views of a trained run to images, videos and metrics: what `render_*.py` share.

::

    <run>/<set>/ours_<n>/renders/00000.png, gt/00000.png     in the order of the set
    <run>/<set>/ours_<n>/video_rgb.mp4, video_gt.mp4         the whole set
    <run>/<set>/ours_<n>/video_rgb_<camera>.mp4, ...         besides, for sets of several cameras
    <run>/<set>/ours_<n>/metrics.json                        "psnr", the set's mean, is its last key
    <run>/metrics.json                                       all sets of that iteration, likewise

and with ``--gate_viz``::

    <run>/<set>/ours_<n>/gates_<attribute>/00000.png, video_gates_<attribute>.mp4
    <run>/gates.json                                         how much each expert is used

A set's folder appears whole or not at all. The set ``video``, a camera path, has no ground truth
and so no metrics but speed and size.
"""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from arguments_MoDE.cli import RenderingArguments, parse_rendering
from scene import Scene, View, load_scene
from scene.experts import REGISTRY
from scene.mixture import MoDE
from training.checkpoint import Run, load_run, model_folder, saved_iterations
from training.evaluation import (
    TOGETHER,
    Measures,
    Perceptual,
    Render,
    ViewRenderer,
    as_numbers,
    counts,
    evenly_spaced,
    fill_masked,
    finite,
    mean_of,
    measure_fps,
    measures,
    refuse_unless,
    stacked,
    together,
)
from training.gates import (
    USAGE_TIMES,
    chosen_attributes,
    gate_renderer,
    gate_usage,
    usage_table,
    with_legend,
)
from training.launch import choose_device, set_precision
from training.losses import to_float
from training.transfers import Download, target_loader
from utils.errors import UserError
from utils.files import atomic_folder, write_json
from utils.images import read_image
from utils.lpips import NETS
from utils.metrics import to_8bit
from utils.video import write_video

SETS = ("train", "test", "video")
VIDEO_FPS = 30.0
_NOT_COLLECTED = ("per_view", "per_camera")


def render_main(argv: Sequence[str] | None, prog: str, description: str) -> int:
    """Renders a run as the command line says; returns the exit code."""
    arguments = parse_rendering(argv, prog, description, tuple(REGISTRY))
    sets = [name for name in SETS if not getattr(arguments, f"skip_{name}")]
    if not sets:
        raise UserError("--skip_train, --skip_test and --skip_video leave nothing to render")
    nets = NETS if arguments.lpips else ()
    wanted = sets
    if arguments.skip_existing:
        done = _rendered(sets, arguments, nets)
        sets = [name for name in sets if name not in done]
        if not sets:
            return 0
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = choose_device(arguments.device, arguments.config, quiet=arguments.quiet)
    set_precision(arguments.config)
    run = load_run(arguments.model_path, arguments.iteration, device)
    if arguments.moe_top_k is not None:
        run.model.router.top_k = arguments.moe_top_k
    drawn = [] if arguments.gate_viz is None else chosen_attributes(run.model, arguments.gate_viz)
    scene = load_scene(arguments.config.model)
    scene.prepare([view for name in sets for view in getattr(scene, name)])
    results = render_sets(
        run, scene, sets=sets, device=device, lpips=nets, gates=drawn, quiet=arguments.quiet
    )
    if not results and sets == wanted:
        raise UserError(f"{scene.source_path} has no views in the sets {', '.join(sets)}")
    if results:
        print(table(results))
    for name in results:
        print(set_folder(run.model_path, name, run.iteration))
    if drawn:
        print(_write_usage(run, scene))
    return 0


def _write_usage(run: Run, scene: Scene) -> str:
    """Writes how much each expert is used to ``gates.json``; returns it as a table."""
    times = [scene.times[i] for i in evenly_spaced(len(scene.times), USAGE_TIMES)]
    usage = gate_usage(run.model, times, run.iteration)
    record = {"iteration": run.iteration, "times": times, "gates": usage}
    write_json(run.model_path / "gates.json", record)
    return usage_table(usage)


def set_folder(model_path: Path, name: str, iteration: int) -> Path:
    """Where the rendered set ``name`` lies."""
    return model_path / name / f"ours_{iteration}"


def _rendered(sets: Sequence[str], arguments: RenderingArguments, nets: Sequence[str]) -> list[str]:
    """Those of the sets that need not be rendered again, which are printed."""
    path, iteration = arguments.model_path, arguments.iteration
    if iteration == -1:
        iteration = max(saved_iterations(path), default=-1)
    done = [
        name
        for name in sets
        if is_rendered(path, name, iteration, nets)
        and _has_gates(set_folder(path, name, iteration), arguments.gate_viz)
    ]
    for name in done:
        print(f"{set_folder(path, name, iteration)} is rendered already")
    if done:
        write_json(path / "metrics.json", collect(path, iteration))
    return done


def _has_gates(folder: Path, wanted: Sequence[str] | None) -> bool:
    if wanted is None:
        return True
    drawn = {path.name.removeprefix("gates_") for path in folder.glob("gates_*")}
    return set(wanted) <= drawn if wanted else bool(drawn)


def is_rendered(model_path: Path, name: str, iteration: int, nets: Sequence[str]) -> bool:
    """Whether a set was rendered after its model was saved, and measured with what there is.

    Args:
        nets: LPIPS networks; one that was not available then, and is now, is a reason to measure
            again.
    """
    path = set_folder(model_path, name, iteration) / "metrics.json"
    manifest = model_folder(model_path, iteration) / "manifest.json"
    try:
        if path.stat().st_mtime_ns < manifest.stat().st_mtime_ns:
            return False
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    if not isinstance(record, dict):
        return False
    missing = [net for net in nets if f"lpips_{net}_views" not in record]
    return "psnr" not in record or not Perceptual(missing, "cpu").models


def render_sets(
    run: Run,
    scene: Scene,
    *,
    sets: Sequence[str] = SETS,
    device: str = "cpu",
    lpips: Sequence[str] = NETS,
    gates: Sequence[str] = (),
    quiet: bool = False,
) -> dict[str, dict[str, Any]]:
    """Renders and measures the sets of a run into its folder.

    Args:
        sets: of `SETS`; those without views are passed over.
        lpips: networks of `utils.lpips.NETS` to measure with; they may turn out not available.
        gates: routed attributes whose gates are drawn as well.

    Returns:
        What each set's ``metrics.json`` holds.

    Raises:
        UserError: a set cannot be rendered or written; its folder is then left as it was.
    """
    gate_views = {a: gate_renderer(run.model, scene, run.iteration, a) for a in gates}

    def draw_gates(folder: Path, views: Sequence[View], perceptual: Perceptual) -> dict[str, Any]:
        _draw_gates(views, folder, run.model, gate_views, quiet)
        return {}

    subject = Subject(
        run.model_path,
        run.iteration,
        ViewRenderer(run.model, scene, run.iteration),
        _size_facts(run),
        draw_gates,
    )
    return render_subject(subject, scene, sets=sets, device=device, lpips=lpips, quiet=quiet)


class Renderer(Protocol):
    """Renders views, as `training.evaluation.ViewRenderer`."""

    def __call__(self, view: View) -> Tensor:
        """(3, H, W), not clamped."""

    def together(self, views: Sequence[View]) -> Tensor:
        """(B, 3, H, W) of views of one time and one size."""


@dataclass(frozen=True)
class Subject:
    """What is rendered, where to, and what its metrics say of it besides."""

    model_path: Path
    iteration: int
    render: Renderer
    facts: dict[str, Any]  # of size and training
    # Draws more into a set's folder; what it returns joins the set's metrics.
    extras: Callable[[Path, Sequence[View], Perceptual], dict[str, Any]]


def render_subject(
    subject: Subject,
    scene: Scene,
    *,
    sets: Sequence[str],
    device: str,
    lpips: Sequence[str],
    quiet: bool,
) -> dict[str, dict[str, Any]]:
    """Renders and measures sets; see `render_sets`."""
    measured = any(getattr(scene, name) for name in sets if name != "video")
    perceptual = Perceptual(lpips if measured else (), device)
    results = {}
    for name in sets:
        views = getattr(scene, name)
        if views:
            results[name] = _render_set(name, views, subject, perceptual, device, quiet)
    if results:
        path = subject.model_path
        write_json(path / "metrics.json", collect(path, subject.iteration))
    return results


def _render_set(
    name: str,
    views: Sequence[View],
    subject: Subject,
    perceptual: Perceptual,
    device: str,
    quiet: bool,
) -> dict[str, Any]:
    out = set_folder(subject.model_path, name, subject.iteration)
    fps, timed = measure_fps(subject.render, views, device)
    try:
        with atomic_folder(out) as folder:
            rows = Frames(name, views, subject.render, perceptual, device).write(folder, quiet)
            more = subject.extras(folder, views, perceptual)
            write_videos(folder, views, quiet)
            record = {
                "set": name,
                "iteration": subject.iteration,
                "views": len(views),
                "device": str(device),
                "threads": torch.get_num_threads(),
                "fps": fps,
                "fps_frames": timed,
                **subject.facts,
                **more,
                **_quality(views, rows, perceptual),
            }
            write_json(folder / "metrics.json", record)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror or error}); "
            "make room or give permission there"
        ) from error
    return record


def _size_facts(run: Run) -> dict[str, Any]:
    folder = model_folder(run.model_path, run.iteration)
    return {
        "gaussians": len(run.model.gaussians),
        "bytes_on_disk": sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()),
        "training_seconds": run.training_seconds,
    }


def _quality(
    views: Sequence[View], rows: list[dict[str, float]], perceptual: Perceptual
) -> dict[str, Any]:
    """Per view, per camera and mean, in this order; nothing for a camera path."""
    if not rows:
        return {}
    cameras = {
        camera: mean_of(rows[i] for i in indices) for camera, indices in by_camera(views).items()
    }
    means = mean_of(rows)
    last = {"psnr": means.pop("psnr")} if "psnr" in means else {}
    return {
        "data_range": 1.0,
        **({"masked": True} if any(view.mask() is not None for view in views) else {}),
        "per_view": {view.name: row for view, row in zip(views, rows, strict=True)},
        "per_camera": cameras,
        **perceptual.summary(rows),
        **means,
        **last,
    }


def by_camera(views: Sequence[View]) -> dict[str, list[int]]:
    """Positions of the views of each camera, in order."""
    cameras: dict[str, list[int]] = {}
    for index, view in enumerate(views):
        cameras.setdefault(view.camera.name, []).append(index)
    return cameras


# ---- frames -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Batch:
    """Views that were rendered at once, and what is on its way to the host."""

    indices: list[int]
    rows: dict[int, Measures]  # of the views with ground truth
    download: Download  # whether each is finite, its pixels, and the rows' values


class Frames:
    """Renders a set to images and measures them.

    While one batch is written and the next is decoded, a GPU renders; Python waits for it once a
    batch, when the following one is queued already.
    """

    def __init__(
        self,
        name: str,
        views: Sequence[View],
        render: Renderer,
        perceptual: Perceptual,
        device: str,
    ) -> None:
        self.name, self.views, self.render, self.perceptual = name, views, render, perceptual
        self.chosen = {} if name == "video" else perceptual.choose(views)
        self.loader = target_loader(device)
        self.batches = together(views, TOGETHER)

    def write(
        self, folder: Path, quiet: bool, *, ground_truth: bool = True
    ) -> list[dict[str, float]]:
        """Writes every view's render and returns its metrics, if it has any.

        Args:
            ground_truth: whether that of each view is written as well.
        """
        self.ground_truth = ground_truth
        rows: dict[int, dict[str, float]] = {}
        bar = tqdm(total=len(self.views), desc=f"render {self.name}", disable=quiet)
        with ImageWriter() as writer, bar:
            queued: deque[_Batch] = deque()
            for number, indices in enumerate(self.batches):
                self._expect(self.batches[number : number + 2])
                queued.append(self._begin(indices))
                if len(queued) > 1:
                    rows |= self._finish(queued.popleft(), folder, writer, bar)
            for batch in queued:
                rows |= self._finish(batch, folder, writer, bar)
        return [rows[index] for index in sorted(rows)]

    def _expect(self, batches: Sequence[list[int]]) -> None:
        views = [self.views[index] for indices in batches for index in indices]
        self.loader.expect(view for view in views if view.store is not None)

    @torch.no_grad()
    def _begin(self, indices: list[int]) -> _Batch:
        """Queues everything of a batch."""
        images = self.render.together([self.views[index] for index in indices])
        pairs = zip(indices, images, strict=True)
        rows = {i: self._measure(i, im) for i, im in pairs if self.views[i].store is not None}
        values = stacked(list(rows.values()))
        return _Batch(indices, rows, Download(finite(images), _channels_last(images), values))

    def _measure(self, index: int, image: Tensor) -> Measures:
        view = self.views[index]
        if not counts(view):
            return {}
        targets, masks = self.loader.take([view])
        target, mask = to_float(targets)[0], None if masks is None else masks[0]
        nets = [net for net, indices in self.chosen.items() if index in indices]
        row = self.perceptual.measures(fill_masked(image, target, mask), target, nets)
        return row | measures(image, target, mask)

    def _finish(
        self, batch: _Batch, folder: Path, writer: ImageWriter, bar: tqdm
    ) -> dict[int, dict[str, float]]:
        """Waits for a batch, writes its images and returns its metrics by position."""
        good, pixels, values = batch.download.wait()
        views = [self.views[index] for index in batch.indices]
        refuse_unless(good, views)
        for index, view, picture in zip(batch.indices, views, pixels.numpy(), strict=True):
            writer.submit(folder / "renders" / f"{index:05d}.png", picture)
            if self.ground_truth and view.store is not None:
                writer.submit(folder / "gt" / f"{index:05d}.png", view.image().numpy())
        bar.update(len(views))
        numbers = as_numbers(list(batch.rows.values()), values)
        return dict(zip(batch.rows, numbers, strict=True))


def _draw_gates(
    views: Sequence[View],
    folder: Path,
    model: MoDE,
    gate_views: Mapping[str, Render],
    quiet: bool,
) -> None:
    """Writes a picture of the gates of each attribute for every view, with a legend."""
    with ImageWriter() as writer:
        for attribute, draw in gate_views.items():
            bar = tqdm(views, desc=f"gates of {attribute}", disable=quiet)
            for index, view in enumerate(bar):
                pixels = with_legend(to_pixels(draw(view)), model, attribute, view.time)
                writer.submit(folder / f"gates_{attribute}" / f"{index:05d}.png", pixels)


def to_pixels(image: Tensor) -> np.ndarray:
    """(3, H, W) float to (H, W, 3) uint8 on the host."""
    return _channels_last(image[None])[0].cpu().numpy()


def _channels_last(images: Tensor) -> Tensor:
    """(B, 3, H, W) float to (B, H, W, 3) uint8."""
    return to_8bit(images).permute(0, 2, 3, 1).contiguous()


class ImageWriter:
    """Writes PNGs on worker threads; few images wait at a time; an error surfaces soon."""

    def __init__(self, workers: int | None = None) -> None:
        """``workers``: threads; None: as many as cores, at most 8."""
        workers = workers or min(os.cpu_count() or 1, 8)
        self.pool = ThreadPoolExecutor(workers)
        self.slots = threading.BoundedSemaphore(2 * workers)
        self.futures: deque[Future] = deque()

    def __enter__(self) -> ImageWriter:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.pool.shutdown(wait=True, cancel_futures=kind is not None)
        if kind is None:
            for future in self.futures:
                future.result()

    def submit(self, path: Path, pixels: np.ndarray) -> None:
        """Queues an image (H, W, 3) uint8; waits while too many are queued."""
        self.slots.acquire()
        while self.futures and self.futures[0].done():
            self.futures.popleft().result()
        self.futures.append(self.pool.submit(self._write, path, pixels))

    def _write(self, path: Path, pixels: np.ndarray) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, compress_level=1)
        finally:
            self.slots.release()


# ---- videos -------------------------------------------------------------------------------------


def write_videos(folder: Path, views: Sequence[View], quiet: bool) -> None:
    """Encodes the images just written, so that no frame need be kept in memory."""
    kinds = {"renders": "rgb", "gt": "gt", **{p.name: p.name for p in folder.glob("gates*")}}
    jobs = {
        folder / f"video_{short}{suffix}.mp4": [folder / kind / f"{i:05d}.png" for i in indices]
        for suffix, indices in _clips(views).items()
        for kind, short in kinds.items()
        if (folder / kind).is_dir()
    }
    with ThreadPoolExecutor(2) as pool:
        encoded = pool.map(_encode, jobs, jobs.values())
        list(tqdm(encoded, desc="encode", total=len(jobs), disable=quiet, leave=False))


def _encode(path: Path, images: list[Path]) -> None:
    write_video(path, (read_image(image) for image in images), VIDEO_FPS)


def _clips(views: Sequence[View]) -> dict[str, list[int]]:
    """Suffix of a video -> positions of its views.

    The whole set, unless its cameras differ in size, and every camera that has a clip of its own.
    """
    clips: dict[str, list[int]] = {}
    if len({(view.camera.width, view.camera.height) for view in views}) == 1:
        clips[""] = list(range(len(views)))
    cameras = by_camera(views)
    if len(cameras) > 1:
        slugs = _slugs([c for c, indices in cameras.items() if len(indices) > 1])
        clips |= {f"_{slug}": cameras[c] for c, slug in slugs.items()}
    return clips


def _slugs(names: Sequence[str]) -> dict[str, str]:
    """Name -> what a file may be called after it, different for all; plain names are kept."""
    plain = {n: "".join(c if c.isalnum() or c in "-_." else "_" for c in n) for n in names}
    taken = {n for n in names if plain[n] == n}
    slugs = {}
    for name in names:
        slug, number = plain[name], 1
        while slug in taken and slug != name:
            number += 1
            slug = f"{plain[name]}-{number}"
        taken.add(slug)
        slugs[name] = slug
    return slugs


# ---- what all sets measured ---------------------------------------------------------------------


def collect(model_path: Path, iteration: int) -> dict[str, Any]:
    """The metrics of all sets rendered at ``iteration``, without those of single views.

    Its last key, ``psnr``, is the test set's mean; the training set's where there is no other.
    """
    sets = {}
    for name in SETS:
        path = set_folder(model_path, name, iteration) / "metrics.json"
        if path.is_file():
            values = json.loads(path.read_text())
            sets[name] = {k: v for k, v in values.items() if k not in _NOT_COLLECTED}
    measured = [sets[name] for name in ("test", "train") if "psnr" in sets.get(name, {})]
    result = {"iteration": iteration, "sets": sets}
    return result | ({"psnr": measured[0]["psnr"]} if measured else {})


def table(results: dict[str, dict[str, Any]]) -> str:
    """The sets' metrics as aligned text, one row a set."""
    columns = ("views", "psnr", "ssim", "lpips_alex", "lpips_vgg", "fps", "gaussians", "MB")
    rows = [["set", *columns]]
    for name, values in results.items():
        values = {**values, "MB": values["bytes_on_disk"] / 1e6}
        rows.append([name, *(_cell(values.get(column)) for column in columns)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(t.rjust(w) for t, w in zip(row, widths, strict=True)) for row in rows]
    lines += [
        f"{name}: masked, the metrics are of the pixels that count"
        for name, values in results.items()
        if values.get("masked")
    ]
    reasons = {v["lpips_reason"] for v in results.values() if v.get("lpips_reason")}
    return "\n".join(lines + [f"LPIPS {reason}" for reason in sorted(reasons)])


def _cell(value: float | int | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.{2 if value >= 1 else 4}f}"
