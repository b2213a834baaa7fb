"""Medians of times on a CPU or a GPU, and the memory that a call takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

WARM_UP = 2


def synchronise(device: torch.device | str) -> None:
    """Waits for a GPU; a CPU has nothing to wait for."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def once_ms(work: Callable[[], object], device: torch.device | str = "cpu") -> float:
    """Milliseconds of one call: between two events of the GPU's stream, or wall time on a CPU."""
    if torch.device(device).type == "cpu":
        start = time.perf_counter()
        work()
        return 1000 * (time.perf_counter() - start)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    first.record()
    work()
    last.record()
    last.synchronize()
    return first.elapsed_time(last)


def median_ms(work: Callable[[], object], runs: int, device: torch.device | str = "cpu") -> float:
    """Median milliseconds of `work` after some calls to warm up."""
    times = [once_ms(work, device) for _ in range(runs + WARM_UP)]
    return statistics.median(times[WARM_UP:])


def alternating_ms(
    works: dict[str, Callable[[], object]], runs: int, device: torch.device | str
) -> dict[str, float]:
    """Median milliseconds of each of `works`, taken in turns: what disturbs one disturbs all."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for run in range(runs + WARM_UP):
        for name, work in works.items():
            ms = once_ms(work, device)
            if run >= WARM_UP:
                times[name].append(ms)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_mib(work: Callable[[], object], device: torch.device | str) -> float | None:
    """MiB of GPU memory that `work` takes beyond what is taken before it; None on a CPU."""
    if torch.device(device).type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    torch.cuda.synchronize(device)
    return round((torch.cuda.max_memory_allocated(device) - before) / 2**20, 1)
