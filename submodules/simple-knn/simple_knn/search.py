"""The neighbour search: checks its arguments, allocates, and calls the native kernel."""

from __future__ import annotations

import torch
from torch import Tensor

try:
    from simple_knn import _native
except ImportError as error:
    raise ImportError(
        f"the native part of simple_knn is not built ({error}); "
        "run: pip install -e submodules/simple-knn"
    ) from error


def knn(points: Tensor, k: int, num_threads: int | None = None) -> tuple[Tensor, Tensor]:
    """The k nearest other points of every point, exactly.

    Args:
        points: (N, 3) of any float dtype; the search is in float32. A CUDA tensor is searched on
            the CPU, and the results are returned on its device.
        k: neighbours of each point, at least 1; meant for small k (inserting costs O(k)).
        num_threads: default `torch.get_num_threads()`; the result is the same for any.

    Returns:
        dist2 (N, k) float32, squared distances in ascending order, and index (N, k) int64. A point
        is not its own neighbour, but its duplicates are, at 0. Where there are fewer than k other
        points, rows end in +inf and -1. Which of several equally distant points is named is open.

    Raises:
        ValueError: wrong shape or dtype, k or num_threads below 1, or a point with NaN, infinite
            or overflowing (beyond 1e18) coordinates; the message names the first such point.
    """
    threads = torch.get_num_threads() if num_threads is None else num_threads
    if k < 1 or threads < 1:
        raise ValueError(f"k and num_threads must be at least 1, got {k} and {threads}")
    cloud = _checked(points)
    dist2 = torch.empty((len(cloud), k), dtype=torch.float32)
    index = torch.empty((len(cloud), k), dtype=torch.int64)
    _native.nearest_neighbours(cloud, threads, dist2, index)
    return dist2.to(points.device), index.to(points.device)


def _checked(points: Tensor) -> Tensor:
    """The points as a contiguous float32 tensor (N, 3) on the CPU, all of them usable."""
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points must have shape (N, 3), got {tuple(points.shape)}")
    if not points.is_floating_point():
        raise ValueError(f"points must be of a float dtype, got {points.dtype}")
    if len(points) >= 2**31:
        raise ValueError(f"at most 2**31 - 1 points can be searched, got {len(points)}")
    cloud = points.detach().to("cpu", torch.float32).contiguous()
    invalid = _native.first_invalid(cloud)
    if invalid >= 0:
        raise ValueError(
            f"point {invalid} is {points[invalid].tolist()}: coordinates must be finite and at "
            f"most {_native.MAX_COORDINATE:.0e} in magnitude; remove such points first"
        )
    return cloud
