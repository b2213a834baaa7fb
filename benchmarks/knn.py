"""Times the 3 nearest neighbours of 100,000 points against SciPy's `cKDTree`, in one run.

    python benchmarks/knn.py [--points 100000] [--threads 2] [--repeats 5] > knn.json

Milliseconds are medians and include building the trees; `ratio` is SciPy / ours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.spatial import cKDTree

from simple_knn import knn

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


def measure(cloud: np.ndarray, threads: int, repeats: int) -> dict[str, float | None]:
    """Our time and SciPy's; SciPy is left out for identical points, where it is quadratic."""
    points = torch.from_numpy(cloud)
    ours = median_ms(lambda: knn(points, NEIGHBOURS, threads), repeats)
    if (cloud == cloud[0]).all():
        return {"ms": round(ours, 1), "scipy_ms": None, "ratio": None}
    scipy = median_ms(
        lambda: cKDTree(cloud).query(cloud, k=NEIGHBOURS + 1, workers=threads), repeats
    )
    return {"ms": round(ours, 1), "scipy_ms": round(scipy, 1), "ratio": round(scipy / ours, 2)}


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each case")
    arguments = parser.parse_args()
    clouds = make_clouds(arguments.points)
    cases = {
        name: measure(cloud, arguments.threads, arguments.repeats) for name, cloud in clouds.items()
    }
    result = {"points": arguments.points, "threads": arguments.threads, "cases": cases}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
