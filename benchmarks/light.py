"""What this machine can do at most, in the same run: bytes and multiplications a second.

Bandwidth is that of copying far more than the caches hold, reads and writes together; the peak is
that of float32 multiply-adds of registers with the widest vectors in use, which no library's matrix
product need reach (on a processor with AVX-512, one of a library that uses AVX2 reaches less than
half). Both are the best of several runs: what a busy machine takes away from one is not what it can
do. Others divide by them for a time (`light_ms`) that no code could beat here while its data comes
from memory, and print the measured time as a multiple of it (`of_light`). Cases of a few megabytes
may stay in the caches, which are faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from diff_gaussian_rasterization import _native

COPIED_MIB = 256
MULTIPLY_ADDS = 200_000_000
RUNS = 7


def best_seconds(work: Callable[[], object], runs: int = RUNS) -> float:
    """The shortest of several runs, after one to warm up."""
    work()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def bandwidth(mib: int = COPIED_MIB) -> float:
    """Bytes per second, read and written, of a copy on torch's threads."""
    source = torch.ones(mib * 2**18)  # float32
    target = torch.zeros_like(source)
    return 2 * size_of([source]) / best_seconds(lambda: target.copy_(source))


def multiply_add_peak(count: int = MULTIPLY_ADDS) -> float:
    """Operations per second, two to a multiply-add: that of one thread times torch's threads."""
    work = _native.BareWork.multiply_add
    best = min(_native.bare_kernel_ns(count, work) for _ in range(RUNS))
    return 2e9 / best * torch.get_num_threads()


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of all of them."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def forward_bytes(inputs: Sequence[Tensor], out: Tensor) -> int:
    """Inputs read once, the output written once."""
    return size_of([*inputs, out])


def forward_backward_bytes(inputs: Sequence[Tensor], out: Tensor) -> int:
    """The same, then the output's gradient and the inputs read and the gradients written."""
    gradients = [tensor for tensor in inputs if tensor.requires_grad]
    return 2 * forward_bytes(inputs, out) + size_of(gradients)


def beside(ms: float, moved: float, per_second: float, of: str = "") -> dict[str, float]:
    """`light_ms` of moving so many bytes, and how many times longer ``ms`` is; ``of`` what."""
    light_ms = 1e3 * moved / per_second
    start = f"{of}_" if of else ""
    return {
        f"light_{start}ms": round(light_ms, 4),
        f"{start}of_light": round(ms / light_ms, 2),
    }
