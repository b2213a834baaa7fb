"""Times SSIM as a training loss, forward and backward, against a separable convolution.

    python benchmarks/ssim.py [--width 1352] [--height 1014] [--threads 2] [--repeats 5] > ssim.json

Milliseconds are minima over the repeats; the gradient is that of the first image only.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.metrics import ssim


def convolution_ssim(x: Tensor, y: Tensor) -> Tensor:
    """The same by autograd through 11-tap convolutions along rows and columns."""
    line = torch.exp(-((torch.arange(11.0) - 5) ** 2) / (2 * 1.5**2))
    line = line / line.sum()

    def blur(z: Tensor) -> Tensor:
        planes = z.reshape(-1, 1, *z.shape[-2:])
        rows = F.conv2d(planes, line.view(1, 1, 1, 11), padding=(0, 5))
        return F.conv2d(rows, line.view(1, 1, 11, 1), padding=(5, 0)).view_as(z)

    m, n = blur(x), blur(y)
    variances = blur(x * x) - m * m + blur(y * y) - n * n
    covariance = blur(x * y) - m * n
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * m * n + c1) * (2 * covariance + c2)
    return (top / ((m * m + n * n + c1) * (variances + c2))).mean()


def best_ms(loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, repeats: int) -> float:
    """Forward and backward, in milliseconds, after one warm-up."""
    times = []
    for _ in range(repeats + 1):
        x.grad = None
        start = time.perf_counter()
        loss(x, y).backward()
        times.append(1e3 * (time.perf_counter() - start))
    return round(min(times[1:]), 1)


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1352)
    parser.add_argument("--height", type=int, default=1014)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    x = torch.rand(1, 3, arguments.height, arguments.width, requires_grad=True)
    y = torch.rand(1, 3, arguments.height, arguments.width)
    result = {
        "size": [arguments.width, arguments.height],
        "threads": arguments.threads,
        "ms": best_ms(ssim, x, y, arguments.repeats),
        "convolution_ms": best_ms(convolution_ssim, x, y, arguments.repeats),
        "difference": abs(ssim(x, y).item() - convolution_ssim(x, y).item()),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
