"""Times rendering of MoDE at the size of a Neural 3D Video clip, on a synthetic scene.

    python benchmarks/render_n3v_sized.py --device cuda --cameras 20 --frames 300 --size 1352 1014 \
        --gaussians 150000 > render.json
    python benchmarks/render_n3v_sized.py                       # seconds, on a CPU

``moving`` is frames per second of router, experts and rasterisation, another time in every frame,
as `metrics.json` has it; ``still`` is of rasterisation alone, as in a viewer whose time stands
still while the camera moves. Without copies to the host or files. ``parts_ms`` are medians.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import utils.threads  # noqa: F401  (before torch, as in training and rendering)

# isort: split
import torch

import n3v_sized
import training.evaluation
from gaussian_renderer import render
from scene import Scene, View
from scene.mixture import MoDE
from training.evaluation import Render, ViewRenderer, measure_fps

ITERATION = 30_000  # of the fine stage: schedules inside experts are at their end


def still(model: MoDE, scene: Scene, time: float) -> Render:
    """Renders any view as of one time, deformed once."""
    background = torch.tensor(scene.background, device=model.gaussians.xyz.device)
    with torch.no_grad():
        splats = model.deform(time, iteration=ITERATION)
    degree = model.gaussians.active_sh_degree

    @torch.no_grad()
    def render_view(view: View) -> torch.Tensor:
        return render([view.camera], splats, background, degree).images[0]

    return render_view


def parts(
    model: MoDE, renderer: ViewRenderer, views: list[View], clock: n3v_sized.Clock
) -> dict[str, float]:
    """Milliseconds of the parts of a frame; the model is not fit for use afterwards."""
    watch, kept = n3v_sized.Stopwatch(clock), training.evaluation.render
    model.deform = watch.timed("deform", model.deform)
    training.evaluation.render = watch.timed("raster", kept)
    try:
        for view in views:
            watch.round()
            renderer(view)
    finally:
        training.evaluation.render = kept
    return {part: round(ms, 3) for part, ms in watch.medians().items()}


def main() -> None:
    """Prints one JSON object."""
    parser = n3v_sized.parser(__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of measuring, each, at most")
    parser.add_argument("--top-k", type=int, help="experts kept per Gaussian; default: as trained")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = n3v_sized.build_config(arguments)
    if arguments.top_k is not None:
        config.hidden.moe_top_k = arguments.top_k
    scene = n3v_sized.build_scene(arguments)
    model = n3v_sized.build_trained(scene, config).to(arguments.device).eval()
    renderer = ViewRenderer(model, scene, ITERATION)
    limits = {"device": arguments.device, "seconds": arguments.seconds}
    moving, frames = measure_fps(renderer, scene.test, **limits)
    cameras = scene.train[:: arguments.frames] or scene.test
    standing, still_frames = measure_fps(still(model, scene, 0.5), cameras * 20, **limits)
    result = {
        **n3v_sized.facts(arguments),
        "moving": {"fps": round(moving, 2), "frames": frames},
        "still": {"fps": round(standing, 2), "frames": still_frames},
        "parts_ms": parts(model, renderer, scene.test[:50], n3v_sized.Clock(arguments.device)),
        "peak_gb": round(n3v_sized.peak_gb(arguments.device), 3),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
