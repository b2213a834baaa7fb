"""Our rasteriser and gsplat's on the same Gaussians and cameras, in one process, in turns.

    python benchmarks/rasterizer_gsplat.py --data garden.npz --size 1296x840
    python benchmarks/rasterizer_gsplat.py --scene n3v --size 1352x1014

Needs a GPU and gsplat (`pip install gsplat`), which compiles its kernels on first use, with fast
math by its own choice. Ours always makes alpha and depth, so gsplat renders RGB+D. gsplat's
`packed` is measured both ways. Everything is measured twice; `spread` is the larger of the two
over the smaller. The images of all cameras must agree; they are not equal to the last bit:
gsplat's footprint ends where an opacity falls under 1/255, ours at 3 sigma as published.

Prints one JSON object; exit code 1 where the images do not agree.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks import scenes
from benchmarks.clock import alternating_ms, peak_mib
from diff_gaussian_rasterization import rasterize

NEAR_PLANE = 0.2  # where ours culls
SH_DEGREE = 3
# Colours are in [0, 1]. The square of 3 sigma leaves out alphas of up to 0.011 a Gaussian.
MEAN_TOLERANCE = 2e-3
FAR_OFF = 0.03  # a pixel that differs by more is counted,
FAR_OFF_SHARE = 1e-3  # and so many of them are too many

Render = Callable[[int], tuple[Tensor, Tensor, Tensor]]  # camera -> colour, alpha, depth


def our_render(scene: scenes.Scene) -> Render:
    """Colour (H, W, 3), alpha and depth (H, W, 1) of a camera."""
    cameras, shared = scene.cameras(), scene.shared(SH_DEGREE)

    def render(camera: int) -> tuple[Tensor, Tensor, Tensor]:
        out = rasterize(**scene.gaussians, **cameras[camera], **shared)
        return tuple(image[0].permute(1, 2, 0) for image in (out.color, out.alpha, out.depth))

    return render


def intrinsics(scene: scenes.Scene) -> Tensor:
    """(V, 3, 3) as gsplat takes them."""
    k = torch.zeros(len(scene.focal), 3, 3, device=scene.device)
    k[:, 0, 0], k[:, 1, 1] = scene.focal[:, 0], scene.focal[:, 1]
    k[:, 0, 2], k[:, 1, 2], k[:, 2, 2] = scene.width / 2, scene.height / 2, 1
    return k


def their_render(scene: scenes.Scene, packed: bool) -> Render:
    """The same by gsplat."""
    from gsplat import rasterization

    k = intrinsics(scene)
    g = scene.gaussians

    def render(camera: int) -> tuple[Tensor, Tensor, Tensor]:
        image, alpha, _ = rasterization(
            g["means3D"][0],
            g["rotations"][0],
            g["scales"][0],
            g["opacities"][0, :, 0],
            g["shs"][0],
            scene.world_to_camera[camera : camera + 1],
            k[camera : camera + 1],
            scene.width,
            scene.height,
            near_plane=NEAR_PLANE,
            sh_degree=SH_DEGREE,
            packed=packed,
            render_mode="RGB+D",
        )
        return image[0, ..., :3], alpha[0], image[0, ..., 3:]

    return render


@torch.no_grad()
def agreement(scene: scenes.Scene, ours: Render, theirs: Render) -> dict[str, float]:
    """The worst differences of all views: of colours, of alpha, and of depth over its largest."""
    views = []
    for camera in range(len(scene.focal)):
        (c1, a1, d1), (c2, a2, d2) = ours(camera), theirs(camera)
        gap = (c1 - c2).abs()
        found = dict(
            colour_max=gap.max(),
            colour_mean=gap.mean(),
            far_off_share=(gap.amax(-1) > FAR_OFF).float().mean(),
            alpha_max=(a1 - a2).abs().max(),
            depth_mean=(d1 - d2).abs().mean() / d1.abs().max().clamp(min=1e-9),
        )
        views.append(found)
    # the maximum of tensors, unlike Python's, is NaN where one of them is
    return {key: float(torch.stack([view[key] for view in views]).amax()) for key in views[0]}


def agree(found: dict[str, float]) -> bool:
    """Whether differences are what the two footprints explain; NaN is not."""
    return found["colour_mean"] <= MEAN_TOLERANCE and found["far_off_share"] <= FAR_OFF_SHARE


def passes(scene: scenes.Scene, render: Render) -> dict[str, Callable[[], None]]:
    """Forward over all cameras, and the same with the backward pass."""
    random = torch.Generator().manual_seed(0)
    weights = torch.rand(scene.height, scene.width, 3, generator=random).to(scene.device)
    leaves, views = list(scene.gaussians.values()), len(scene.focal)

    def forward() -> None:
        with torch.no_grad():
            for camera in range(views):
                render(camera)

    def forward_backward() -> None:
        for camera in range(views):
            torch.autograd.grad(render(camera)[0], leaves, weights)

    return {"forward": forward, "forward_backward": forward_backward}


def measure(scene: scenes.Scene, renders: dict[str, Render], runs: int) -> dict[str, dict]:
    """Times and memory for each renderer and pass, in milliseconds per view."""
    works = {name: passes(scene, render) for name, render in renders.items()}
    rows = {}
    for kind in ("forward", "forward_backward"):
        turn = {name: work[kind] for name, work in works.items()}
        first, second = (alternating_ms(turn, runs, scene.device) for _ in range(2))
        for name, work in turn.items():
            both = first[name], second[name]
            rows.setdefault(name, {})[kind] = {
                "ms": round(min(both) / len(scene.focal), 4),
                "spread": round(max(both) / min(both), 3),
                "peak_mib": peak_mib(work, scene.device),
            }
    return rows


def compare(scene: scenes.Scene, runs: int) -> dict:
    """All numbers of one scene; `gsplat_over_ours` above 1 is where ours is faster."""
    renders = {
        "ours": our_render(scene),
        "gsplat": their_render(scene, packed=False),
        "gsplat_packed": their_render(scene, packed=True),
    }
    differences = agreement(scene, renders["ours"], renders["gsplat"])
    rows = measure(scene, renders, runs)
    ratios = {
        kind: round(
            min(rows["gsplat"][kind]["ms"], rows["gsplat_packed"][kind]["ms"])
            / rows["ours"][kind]["ms"],
            3,
        )
        for kind in rows["ours"]
    }
    return {
        "agree": agree(differences),
        "differences": differences,
        "render_mode": "RGB+D",
        "gsplat_over_ours": ratios,
        **rows,
    }


def main() -> int:
    """Prints one JSON object; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    scenes.add_arguments(parser)
    parser.add_argument("--runs", type=int, default=15, help="timed runs of each, twice")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "rasterizer_gsplat.py: torch sees no GPU, and gsplat has no CPU path", file=sys.stderr
        )
        return 2
    import gsplat

    scene = scenes.chosen(parser, args).to("cuda")
    about = dict(
        benchmark="rasterizer_gsplat",
        scene=scene.name,
        order=args.order,
        gsplat=gsplat.__version__,
        gpu=torch.cuda.get_device_name(),
        gaussians=scene.count,
        width=scene.width,
        height=scene.height,
        views=len(scene.focal),
        runs=args.runs,
    )
    result = compare(scene, args.runs)
    print(json.dumps(about | result))
    return 0 if result["agree"] else 1


if __name__ == "__main__":
    sys.exit(main())
