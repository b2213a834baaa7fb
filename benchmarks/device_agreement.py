"""Do CPU and GPU draw the same images, with the same gradients?

    python benchmarks/device_agreement.py --data garden.npz

A small scene of large Gaussians and the garden, colour, alpha and depth. Images must agree within
1e-4, but for pixels in which a decision falls on its border (an alpha at 1/255, a transmittance at
1e-4, two Gaussians at one depth): those are counted, and may be one in a thousand. Gradients must
agree within 1e-3 of their norm, for each input. `--device cpu` compares the CPU, with two threads,
with itself: only this program is then tested.

Prints one JSON object; exit code 1 where they do not agree.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks import scenes
from diff_gaussian_rasterization import rasterize

IMAGE_TOLERANCE = 1e-4
FLIPPED_SHARE = 1e-3
GRADIENT_TOLERANCE = 1e-3
IMAGES = ("color", "alpha", "depth")


def small_scene() -> scenes.Scene:
    """2000 Gaussians of the room, larger than there, so that many overlap in a small image."""
    scene = scenes.n3v(2000, (149, 101), views=2, seed=1)
    gaussians = dict(scene.gaussians, scales=scene.gaussians["scales"].detach() * 5)
    return scenes.Scene(
        "small", gaussians, scene.world_to_camera, scene.focal, scene.width, scene.height
    )


def draw(scene: scenes.Scene, camera: int, threads: int) -> tuple[dict, dict]:
    """Images, and the gradients of a weighted sum of them, on the CPU."""
    out = rasterize(
        **scene.gaussians, **scene.cameras()[camera], **scene.shared(), num_threads=threads
    )
    images = {name: getattr(out, name) for name in IMAGES}
    random = torch.Generator().manual_seed(0)
    total = sum(
        (image * (torch.rand(image.shape, generator=random) - 0.3).to(image.device)).sum()
        for image in images.values()
    )
    gradients = torch.autograd.grad(total, list(scene.gaussians.values()))
    names = scene.gaussians
    return (
        {name: image.detach().cpu() for name, image in images.items()},
        {name: grad.cpu() for name, grad in zip(names, gradients, strict=True)},
    )


def image_gap(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, float]:
    """Pixels that differ by more than the tolerance, and the largest difference of the others.

    Depth is compared in units of its largest value.
    """
    gap = torch.stack(
        [
            (a[name] - b[name]).abs().amax(1)[0]
            / (b[name].abs().max().clamp(min=1e-9) if name == "depth" else 1)
            for name in IMAGES
        ]
    ).amax(0)
    flipped = ~(gap <= IMAGE_TOLERANCE)  # NaN too
    rest = gap[~flipped]
    return {
        "pixels": gap.numel(),
        "flipped": int(flipped.sum()),
        "max_of_others": float(rest.max()) if len(rest) else 0.0,
        "max": float(gap.max()),
    }


def gradient_gap(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, float]:
    """Norm of the difference over the norm, for each input."""
    return {name: float((a[name] - b[name]).norm() / b[name].norm().clamp(min=1e-12)) for name in b}


def compare(scene: scenes.Scene, device: str) -> dict:
    """All numbers of one scene, worst view, and whether they are small enough."""
    there = scene.to(device)
    here = scene.to("cpu")
    views = []
    for camera in range(len(scene.focal)):
        images, gradients = draw(there, camera, 2)
        expected, expected_gradients = draw(here, camera, torch.get_num_threads())
        views.append(
            {
                "image": image_gap(images, expected),
                "gradients": gradient_gap(gradients, expected_gradients),
            }
        )
    return {
        "scene": scene.name,
        "size": [scene.width, scene.height],
        "agree": all(agrees(view) for view in views),
        "views": views,
    }


def agrees(view: dict) -> bool:
    """Whether one view is within the tolerances."""
    image = view["image"]
    few = image["flipped"] <= FLIPPED_SHARE * image["pixels"]
    return few and all(gap <= GRADIENT_TOLERANCE for gap in view["gradients"].values())


def main() -> int:
    """Prints one JSON object; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="path of garden.npz; without it only `small`")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--count", type=int, help="thin the garden to about this many points")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("device_agreement.py: torch sees no GPU", file=sys.stderr)
        return 2
    chosen = [small_scene()]
    if args.data:
        chosen.append(scenes.garden(args.data, count=args.count))
    rows = [compare(scene, args.device) for scene in chosen]
    print(json.dumps({"benchmark": "device_agreement", "device": args.device, "scenes": rows}))
    return 0 if all(row["agree"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
