"""Speed of the rasteriser: 138,766 Gaussians of a real scene at 648x420, harmonics of degree 3.

Claim: on two cores, forward under 100 ms and forward + backward under 400 ms.

    python benchmarks/rasterizer_garden.py --data garden.npz --threads 2

The file holds `means3d` (N, 3), `colors` (N, 3) uint8, `viewmats` (V, 4, 4), `Ks` (V, 3, 3),
`width` and `height`. Scales are the root mean squared distance to the three nearest neighbours,
opacity is 0.6. Prints one JSON object; times are medians over `--runs`, over all its cameras.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree

from diff_gaussian_rasterization import rasterize
from diff_gaussian_rasterization.reference import SH_C0

NEAR, FAR = 0.01, 100.0


def load_gaussians(data: dict[str, np.ndarray], count: int | None) -> dict[str, torch.Tensor]:
    """Activated Gaussians (1, N, ...) that want gradients; every k-th point if `count` is given."""
    step = 1 if count is None else max(1, len(data["means3d"]) // count)
    means = data["means3d"][::step].astype(np.float32)
    distances, _ = cKDTree(means).query(means, k=4)
    scale = np.sqrt((distances[:, 1:] ** 2).mean(1)).clip(1e-4).astype(np.float32)
    n = len(means)
    shs = torch.zeros(n, 16, 3)
    shs[:, 0] = (torch.from_numpy(data["colors"][::step]).float() / 255 - 0.5) / SH_C0
    shs[:, 1:] = 0.05 * torch.randn(n, 15, 3, generator=torch.Generator().manual_seed(0))
    tensors = dict(
        means3D=torch.from_numpy(means),
        opacities=torch.full((n, 1), 0.6),
        scales=torch.from_numpy(scale)[:, None].repeat(1, 3),
        rotations=torch.tensor([[1.0, 0.0, 0.0, 0.0]]).repeat(n, 1),
        shs=shs,
    )
    return {name: tensor[None].requires_grad_() for name, tensor in tensors.items()}


def load_cameras(data: dict[str, np.ndarray], width: int, height: int) -> list[dict]:
    """The cameras of the file, each as the camera arguments of `rasterize`, scaled to the size."""
    cameras = []
    for w2c, k in zip(data["viewmats"], data["Ks"], strict=True):
        fx = k[0, 0] * width / int(data["width"])
        fy = k[1, 1] * height / int(data["height"])
        projection = np.zeros((4, 4))
        projection[0, 0], projection[1, 1] = 2 * fx / width, 2 * fy / height
        projection[2, 2], projection[2, 3] = FAR / (FAR - NEAR), -FAR * NEAR / (FAR - NEAR)
        projection[3, 2] = 1
        arrays = dict(
            viewmatrices=w2c.T,
            projmatrices=(projection @ w2c).T,
            camposs=np.linalg.inv(w2c)[:3, 3],
            tanfov=np.array([width / (2 * fx), height / (2 * fy)]),
        )
        cameras.append({k: torch.tensor(v, dtype=torch.float32)[None] for k, v in arrays.items()})
    return cameras


def median_ms(work: Callable[[], object], runs: int) -> float:
    """Median wall time of `work` in milliseconds after two calls to warm up."""
    times = []
    for run in range(runs + 2):
        start = time.perf_counter()
        work()
        if run >= 2:
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def measure(gaussians: dict, cameras: list[dict], size: tuple[int, int], args) -> dict[str, float]:
    """Milliseconds per view, without and with the backward pass."""
    shared = dict(
        width=size[0],
        height=size[1],
        sh_degree=3,
        background=torch.zeros(3),
        num_threads=args.threads,
    )
    target = torch.rand(1, 3, size[1], size[0])

    def forward() -> None:
        with torch.no_grad():
            for camera in cameras:
                rasterize(**gaussians, **camera, **shared)

    def both() -> None:
        for camera in cameras:
            out = rasterize(**gaussians, **camera, **shared)
            out.color.backward(target)
            for tensor in gaussians.values():
                tensor.grad = None

    views = len(cameras)
    return {
        "forward_ms": round(median_ms(forward, args.runs) / views, 2),
        "forward_backward_ms": round(median_ms(both, args.runs) / views, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="path of garden.npz")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=int, default=15, help="timed runs; the median is printed")
    parser.add_argument("--count", type=int, help="thin the cloud to about this many points")
    parser.add_argument("--width", type=int, help="pixels; default: as in the file")
    parser.add_argument("--height", type=int, help="pixels; default: as in the file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with np.load(args.data, allow_pickle=False) as file:
        data = dict(file)
    size = (args.width or int(data["width"]), args.height or int(data["height"]))
    gaussians = load_gaussians(data, args.count)
    cameras = load_cameras(data, *size)
    result = measure(gaussians, cameras, size, args)
    about = dict(
        benchmark="rasterizer_garden",
        gaussians=gaussians["means3D"].shape[1],
        width=size[0],
        height=size[1],
        views=len(cameras),
        threads=args.threads,
        runs=args.runs,
    )
    print(json.dumps(about | result))


if __name__ == "__main__":
    main()
