"""How the benchmarks of operators time them: medians, by the clock or by the events of a GPU."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

WARM_UP = {"cpu": 1, "cuda": 5}  # runs before the timed ones, by kind of device


def parse(description: str, package: ModuleType) -> argparse.Namespace:
    """The flags `device`, `threads`, `repeats` and `points`; sets torch's threads.

    A device on which torch or this build of ``package`` cannot compute ends the program.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each case")
    parser.add_argument("--points", type=int, help="of each case at most; default: the case's own")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this PyTorch sees no GPU")
    if arguments.device not in package.DEVICES:
        parser.error(f"--device {arguments.device}: {package.__name__} is built without it")
    torch.set_num_threads(arguments.threads)
    return arguments


def limited(cases: Sequence[tuple], at: int, points: int | None) -> list[tuple]:
    """The cases, with no more points than that at index ``at``."""
    if points is None:
        return list(cases)
    return [(*case[:at], min(case[at], points), *case[at + 1 :]) for case in cases]


def name_of(device: str) -> str:
    """What a result says of where it was measured."""
    return torch.cuda.get_device_name() if device == "cuda" else device


def time_passes(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], repeats: int
) -> tuple[float, float]:
    """Median milliseconds of (forward, forward and backward), to the inputs that need gradients.

    On a GPU nothing is waited for before the last run: times are those of the queue, which is empty
    only where the host is too slow to fill it.
    """
    device = inputs[0].device.type
    leaves = [tensor for tensor in inputs if tensor.requires_grad]
    marks = []
    for _ in range(WARM_UP[device] + repeats):
        start = _mark(device)
        outputs = function(*inputs)
        middle = _mark(device)
        torch.autograd.grad(outputs, leaves, torch.ones_like(outputs))
        marks.append((start, middle, _mark(device)))
    if device == "cuda":
        torch.cuda.synchronize()
    timed = marks[WARM_UP[device] :]
    forward = statistics.median(_milliseconds(start, middle) for start, middle, _ in timed)
    return forward, statistics.median(_milliseconds(start, end) for start, _, end in timed)


def _mark(device: str) -> float | torch.cuda.Event:
    if device == "cpu":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _milliseconds(start: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    return 1e3 * (end - start) if isinstance(start, float) else start.elapsed_time(end)
