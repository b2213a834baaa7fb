"""The neighbour search: checks its arguments, allocates, and calls the native kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from simple_knn import devices

try:
    from simple_knn import _native
except ImportError as error:
    raise ImportError(
        f"the native part of simple_knn cannot be loaded ({error}); "
        "if it is not built, run: pip install -e submodules/simple-knn"
    ) from error


def knn(points: Tensor, k: int, num_threads: int | None = None) -> tuple[Tensor, Tensor]:
    """The k nearest other points of every point, exactly.

    Args:
        points: (N, 3) of any float dtype; the search is in float32. A CUDA tensor is searched on
            its GPU; on the CPU where this build has no CUDA kernels (`simple_knn.DEVICES`), and for
            any other device. The results are returned on the tensor's device.
        k: neighbours of each point, at least 1; meant for small k (inserting costs O(k)).
        num_threads: of the CPU, default `torch.get_num_threads()`; the result is the same for any.

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
    _check_type(points)
    gpu = gpu_or_none(points)
    cloud = points.detach().to(points.device if gpu else "cpu", torch.float32).contiguous()
    _check_values(gpu, points, cloud)
    dist2 = cloud.new_empty((len(cloud), k))
    index = torch.empty_like(dist2, dtype=torch.int64)
    if gpu is None:
        _native.nearest_neighbours(cloud, threads, dist2, index)
    else:
        search_on_gpu(gpu, cloud, dist2, index)
    return dist2.to(points.device), index.to(points.device)


def gpu_or_none(points: Tensor) -> devices.Gpu | None:
    """The GPU to search on; None, the CPU, where this build has no kernels for that device."""
    return devices.gpu_of(points) if points.device.type in devices.DEVICES else None


def search_on_gpu(
    gpu: devices.Gpu, cloud: Tensor, dist2: Tensor, index: Tensor, scanned: Tensor | None = None
) -> None:
    """Fills dist2 and index (N, k) for valid points (N, 3) float32, all contiguous, on one GPU.

    ``scanned`` (N,) int32, if given, gets the number of leaves of the tree that the search of each
    point looked into: what its time goes by.
    """
    if len(cloud) == 0:
        return
    sizes = gpu.kernels.scratch_bytes(gpu.device, len(cloud))
    # torch's allocator lends them again only to work that is queued after this.
    scratch = [cloud.new_empty(size, dtype=torch.uint8) for size in sizes]
    gpu.kernels.nearest_neighbours(
        gpu.device,
        gpu.stream,
        cloud.data_ptr(),
        len(cloud),
        dist2.shape[1],
        [array.data_ptr() for array in scratch],
        sizes,
        dist2.data_ptr(),
        index.data_ptr(),
        0 if scanned is None else scanned.data_ptr(),
    )


def _check_type(points: Tensor) -> None:
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points must have shape (N, 3), got {tuple(points.shape)}")
    if not points.is_floating_point():
        raise ValueError(f"points must be of a float dtype, got {points.dtype}")
    if len(points) >= 2**31:
        raise ValueError(f"at most 2**31 - 1 points can be searched, got {len(points)}")


def _check_values(gpu: devices.Gpu | None, points: Tensor, cloud: Tensor) -> None:
    invalid = _native.first_invalid(cloud) if gpu is None else _first_invalid_on_gpu(gpu, cloud)
    if invalid >= 0:
        raise ValueError(
            f"point {invalid} is {points[invalid].tolist()}: coordinates must be finite and at "
            f"most {_native.MAX_COORDINATE:.0e} in magnitude; remove such points first"
        )


def _first_invalid_on_gpu(gpu: devices.Gpu, cloud: Tensor) -> int:
    """Index of the first invalid point, or -1. Waits for the GPU, the only time in a search."""
    first = torch.full((1,), len(cloud), dtype=torch.int32, device=cloud.device)
    gpu.kernels.first_invalid(
        gpu.device, gpu.stream, cloud.data_ptr(), len(cloud), first.data_ptr()
    )
    index = int(first.item())
    return index if index < len(cloud) else -1
