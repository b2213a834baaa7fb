"""Renders the views of a MoE: the blended pictures, each expert's own, and the gates.

As `training.rendering` lays a run out, and besides::

    <moe>/<set>/ours_<n>/experts/<name>/renders/00000.png, video_rgb.mp4
    <moe>/<set>/ours_<n>/gates/00000.png, video_gates.mp4        with a legend

``metrics.json`` of a set holds the experts' numbers under ``experts``, and how much each counts.
With ``--experts`` only those take part; ``experts_used`` says which.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from arguments_MoDE.moe import MoERenderingArguments, parse_moe_rendering
from scene import Scene, View, load_scene
from training.checkpoint import model_folder
from training.evaluation import (
    TOGETHER,
    Perceptual,
    ViewRenderer,
    mean_of,
    measure_fps,
    together,
)
from training.gates import expert_colors, legend
from training.launch import set_precision
from training.moe.files import MoERun, check_scene, device_of, load_moe, router_folder
from training.moe.views import MoEViewRenderer
from training.rendering import (
    SETS,
    Frames,
    ImageWriter,
    Subject,
    render_subject,
    set_folder,
    table,
    to_pixels,
    write_videos,
)
from utils.errors import UserError
from utils.lpips import NETS


def main(argv: Sequence[str] | None, prog: str, description: str) -> int:
    """Renders a MoE as the command line says; returns the exit code."""
    arguments = parse_moe_rendering(argv, prog, description)
    sets = [name for name in SETS if not getattr(arguments, f"skip_{name}")]
    if not sets:
        raise UserError("--skip_train, --skip_test and --skip_video leave nothing to render")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    run = load_moe(arguments.model_path, arguments.iteration)
    device = device_of(arguments.device, run.runs, quiet=arguments.quiet)
    set_precision(run.config)
    run.model.to(device)
    chosen = _chosen(run, arguments.experts)
    for name in ("source_path", "video_frames", "cache", "cache_gb"):
        if getattr(arguments, name) is not None:
            setattr(run.config.model, name, getattr(arguments, name))
    run.config.model.source_path = os.path.abspath(run.config.model.source_path)
    scene = load_scene(run.config.model)
    check_scene(run.runs, scene)
    scene.prepare([view for name in sets for view in getattr(scene, name)])
    results = render_moe(run, scene, arguments, sets=sets, device=device, chosen=chosen)
    if not results:
        raise UserError(f"{scene.source_path} has no views in the sets {', '.join(sets)}")
    print(table(results))
    for name, values in results.items():
        print(_experts_table(name, values))
        print(set_folder(run.model_path, name, run.iteration))
    return 0


def _chosen(run: MoERun, wanted: Sequence[str]) -> list[str]:
    """The experts that take part, in the MoE's order."""
    names = list(run.runs)
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise UserError(f"--experts {unknown[0]}: this MoE has {', '.join(names)}")
    return [name for name in names if not wanted or name in wanted]


def render_moe(
    run: MoERun,
    scene: Scene,
    arguments: MoERenderingArguments,
    *,
    sets: Sequence[str],
    device: str,
    chosen: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """Renders and measures sets of a MoE into its folder; returns what each ``metrics.json`` holds.

    Raises:
        UserError: a set cannot be rendered or written; its folder is then left as it was.
    """
    extras = _Extras(run, scene, arguments, chosen, device)
    subject = Subject(run.model_path, run.iteration, extras.render, _facts(run, chosen), extras)
    return render_subject(
        subject,
        scene,
        sets=sets,
        device=device,
        lpips=NETS if arguments.lpips else (),
        quiet=arguments.quiet,
    )


def _facts(run: MoERun, chosen: Sequence[str]) -> dict[str, Any]:
    folders = [model_folder(run.runs[name].model_path, run.runs[name].iteration) for name in chosen]
    folders.append(router_folder(run.model_path, run.iteration))
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {
        "experts_used": list(chosen),
        "temperature": run.temperature,
        "gaussians": sum(len(run.model.experts[name].gaussians) for name in chosen),
        "bytes_on_disk": sum(path.stat().st_size for path in files),
        "training_seconds": run.training_seconds
        + sum(run.runs[name].training_seconds for name in chosen),
    }


class _Extras:
    """Draws each expert's pictures and the gates into a set's folder."""

    def __init__(
        self,
        run: MoERun,
        scene: Scene,
        arguments: MoERenderingArguments,
        chosen: Sequence[str],
        device: str,
    ) -> None:
        self.run, self.scene, self.arguments = run, scene, arguments
        self.chosen, self.device = chosen, device
        self.render = MoEViewRenderer(run.model, scene, run.params, chosen)
        self.colors = expert_colors(list(run.runs))

    def __call__(
        self, folder: Path, views: Sequence[View], perceptual: Perceptual
    ) -> dict[str, Any]:
        """See `training.rendering.Subject`."""
        shares = {} if self.arguments.skip_gates else {"gates": self._draw_gates(folder, views)}
        if self.arguments.skip_experts:
            return shares
        experts = {name: self._draw(name, folder, views, perceptual) for name in self.chosen}
        return {"experts": experts, **shares}

    def _draw(
        self, name: str, folder: Path, views: Sequence[View], perceptual: Perceptual
    ) -> dict[str, Any]:
        """One expert's pictures; returns its metrics."""
        run, quiet = self.run.runs[name], self.arguments.quiet
        render = ViewRenderer(self.run.model.experts[name], self.scene, run.iteration)
        out = folder / "experts" / name
        fps, _ = measure_fps(render, views, self.device, seconds=2.0)
        if not self.arguments.lpips_experts:
            perceptual = Perceptual((), self.device)
        rows = Frames(name, views, render, perceptual, self.device).write(
            out, quiet, ground_truth=False
        )
        write_videos(out, views, quiet)
        gaussians = len(self.run.model.experts[name].gaussians)
        return {"fps": fps, "gaussians": gaussians, **mean_of(rows)}

    def _draw_gates(self, folder: Path, views: Sequence[View]) -> dict[str, float]:
        """A picture of the gates for every view; returns the experts' mean gates."""
        rows = []
        batches = together(views, TOGETHER)
        bar = tqdm(total=len(views), desc="gates", disable=self.arguments.quiet)
        with ImageWriter() as writer, bar:
            for indices in batches:
                blend = self.render.blend([views[i] for i in indices])
                for index, gates in zip(indices, blend.gates, strict=True):
                    rows.append(dict(zip(self.chosen, gates.mean((1, 2)).tolist(), strict=True)))
                    writer.submit(folder / "gates" / f"{index:05d}.png", self._picture(gates))
                bar.update(len(indices))
        return mean_of(rows)

    def _picture(self, gates: Tensor) -> np.ndarray:
        """(H + h, W, 3) uint8: each expert's colour by its gate (E, H, W), and a legend below."""
        colors = torch.tensor([self.colors[n] for n in self.chosen], device=gates.device) / 255
        pixels = to_pixels(torch.einsum("ehw,ec->chw", gates, colors))
        means = gates.mean((1, 2)).tolist()
        pairs = zip(self.chosen, means, strict=True)
        entries = [(self.colors[name], name, mean) for name, mean in pairs]
        return np.concatenate([pixels, legend(entries, "gates", pixels.shape[1])])


def _experts_table(title: str, values: dict[str, Any]) -> str:
    """One line for every expert: what it reaches alone, and how much it counts."""
    lines = []
    for name in values["experts_used"]:
        own = values.get("experts", {}).get(name, {})
        words = [f"{key} {own[key]:.4g}" for key in ("psnr", "ssim", "fps") if key in own]
        if name in values.get("gates", {}):
            words.append(f"mean gate {values['gates'][name]:.3f}")
        if words:
            lines.append(f"{title}: {name} alone: {', '.join(words)}")
    return "\n".join(lines)
