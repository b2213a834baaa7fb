"""Times the 3 nearest neighbours of 100,000 points against SciPy's `cKDTree`, in one run.

    python benchmarks/knn.py [--points 100000] [--threads 2] [--repeats 5] > knn.json
    python benchmarks/knn.py --device cuda > knn_cuda.json

Milliseconds are medians and include building the trees; `ratio` is SciPy / ours. On a GPU they are
the GPU's own time between two events, for points that are on it already; SciPy's are the CPU's.
On a CPU `light_ms` is the time that the points, read once, and the distances and indices, written
once, take at this machine's bandwidth (`light.py`); `of_light` is the measured time as a multiple.
It leaves out the search itself, so it is far below what a tree can reach.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.spatial import cKDTree

import light
from simple_knn import DEVICES, knn

NEIGHBOURS = 3


def make_clouds(count: int) -> dict[str, np.ndarray]:
    """Clouds (count, 3) float32, even and badly distributed."""
    random = np.random.default_rng(0)
    clusters = random.normal(size=(count, 3)) * 1e-3 + random.integers(0, 8, (count, 1))
    outliers = random.normal(size=(count, 3))
    outliers[: count // 1000] *= 1e6
    clouds = {
        "uniform": random.uniform(size=(count, 3)),
        "surface": random.normal(size=(count, 3)),
        "clusters": clusters,
        "far outliers": outliers,
        "collinear": random.uniform(size=(count, 1)) * np.array([[1.0, 2.0, 3.0]]),
        "identical": np.ones((count, 3)),
    }
    clouds["surface"] /= np.linalg.norm(clouds["surface"], axis=1, keepdims=True)
    return {name: cloud.astype(np.float32) for name, cloud in clouds.items()}


def median_ms(function: Callable[[], object], repeats: int) -> float:
    """Median wall time of `function`, after one warm-up where it is repeated."""
    times = []
    for _ in range(repeats + (repeats > 1)):
        start = time.perf_counter()
        function()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[1:] or times)


def median_gpu_ms(function: Callable[[], object], repeats: int) -> float:
    """Median time of `function` on the GPU between two events, after three warm-ups."""
    times = []
    for _ in range(3 + repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[3:])


def measure(cloud: np.ndarray, device: str, threads: int, repeats: int) -> dict[str, float | None]:
    """Our time and SciPy's; SciPy is left out for identical points, where it is quadratic."""
    points = torch.from_numpy(cloud).to(device)
    clock = median_gpu_ms if device == "cuda" else median_ms
    ours = clock(lambda: knn(points, NEIGHBOURS, threads), repeats)
    if (cloud == cloud[0]).all():
        return {"ms": round(ours, 3), "scipy_ms": None, "ratio": None}
    scipy = median_ms(
        lambda: cKDTree(cloud).query(cloud, k=NEIGHBOURS + 1, workers=threads), repeats
    )
    return {"ms": round(ours, 3), "scipy_ms": round(scipy, 1), "ratio": round(scipy / ours, 2)}


def add_light(cases: dict[str, dict], points: int, bandwidth: float) -> None:
    """Writes the time of light, which is the same for all clouds, into each case."""
    moved = points * (3 * 4 + NEIGHBOURS * (4 + 8))  # float32; float32 and int64
    for case in cases.values():
        case |= light.beside(case["ms"], moved, bandwidth)


def check_device(device: str) -> None:
    """Exits with code 2 and one line where this machine or build cannot compute on `device`."""
    problem = ""
    if device == "cuda" and not torch.cuda.is_available():
        problem = "torch sees no CUDA device here"
    elif device not in DEVICES:
        problem = "simple_knn was built without CUDA: install nvcc, then: make clean setup"
    if problem:
        print(f"--device {device}: {problem}", file=sys.stderr)
        raise SystemExit(2)


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where ours runs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each case")
    arguments = parser.parse_args()
    check_device(arguments.device)
    cases = {
        name: measure(cloud, arguments.device, arguments.threads, arguments.repeats)
        for name, cloud in make_clouds(arguments.points).items()
    }
    if arguments.device == "cpu":
        torch.set_num_threads(arguments.threads)
        add_light(cases, arguments.points, light.bandwidth())
    result = {
        "points": arguments.points,
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu",
        "threads": arguments.threads,
        "cases": cases,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
