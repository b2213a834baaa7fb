"""Times SSIM and L1 as a training loss, forward and backward: native, and in plain PyTorch.

    python benchmarks/ssim.py [--width 1352] [--height 1014] [--threads 2] [--repeats 5]
                              [--device cuda] > ssim.json

Milliseconds are minima over the repeats, which take turns, so that a busy machine is busy for all;
the gradient is that of the first image only. `native_ms` reads 8-bit targets as they are stored;
`ms` is the SSIM of `utils.metrics.ssim_map` with its derivative worked out, from float targets.
On a CPU `light_ms` is the time that the bytes of `native_ms` take at this machine's bandwidth
(`light.py`): image and targets read, the gradient written, each once. `native_of_light` is the
measured time as a multiple. Arithmetic is left out: two blurs of five images, and their adjoint.
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

from benchmarks import light
from photometric_loss import compare
from utils.metrics import ssim_map

LAMBDA_DSSIM = 0.2


def convolution_ssim(x: Tensor, y: Tensor) -> Tensor:
    """The same by autograd through 11-tap convolutions along rows and columns."""
    line = torch.exp(-((torch.arange(11.0) - 5) ** 2) / (2 * 1.5**2))
    line = (line / line.sum()).to(x.device)

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


def weighted(ssim: Tensor, error: Tensor) -> Tensor:
    """The loss of 3D Gaussian splatting."""
    return (1 - LAMBDA_DSSIM) * error + LAMBDA_DSSIM * (1 - ssim)


def losses(x: Tensor, frames: Tensor) -> dict[str, Callable[[], Tensor]]:
    """What is timed, by its name in the result; ``frames`` (1, H, W, 3) uint8."""
    stored = frames.permute(0, 3, 1, 2)
    y = (stored / 255).contiguous()
    return {
        "native_ms": lambda: weighted(*compare(x, stored)),
        "with_l1_ms": lambda: weighted(ssim_map(x, y).mean(), (x - y).abs().mean()),
        "native_ssim_ms": lambda: compare(x, stored, error=None).ssim,
        "ms": lambda: ssim_map(x, y).mean(),
        "convolution_ms": lambda: convolution_ssim(x, y),
        "native_l1_ms": lambda: compare(x, stored, ssim=False).error,
        "l1_ms": lambda: (x - stored.to(x.dtype) / 255).abs().mean(),
    }


def once_ms(loss: Callable[[], Tensor], x: Tensor) -> float:
    """Forward and backward, in milliseconds."""
    x.grad = None
    synchronize(x.device)
    start = time.perf_counter()
    loss().backward()
    synchronize(x.device)
    return 1e3 * (time.perf_counter() - start)


def synchronize(device: torch.device) -> None:
    """Waits for what the device still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best_ms(x: Tensor, frames: Tensor, repeats: int) -> dict[str, float]:
    """The minimum of each over the repeats, after one warm-up."""
    every = losses(x, frames)
    best = {name: float("inf") for name in every}
    for turn in range(repeats + 1):
        for name, loss in every.items():
            spent = once_ms(loss, x)
            best[name] = min(best[name], spent) if turn else best[name]
    return {name: round(value, 3) for name, value in best.items()}


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1352)
    parser.add_argument("--height", type=int, default=1014)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    height, width, device = arguments.height, arguments.width, torch.device(arguments.device)
    x = torch.rand(1, 3, height, width, device=device, requires_grad=True)
    frames = torch.randint(0, 256, (1, height, width, 3), dtype=torch.uint8, device=device)
    times = best_ms(x, frames, arguments.repeats)
    y = frames.permute(0, 3, 1, 2) / 255
    result = {
        "size": [width, height],
        "threads": arguments.threads,
        "device": str(device) if device.type == "cpu" else torch.cuda.get_device_name(device),
        **times,
        "pytorch_to_native": round(times["with_l1_ms"] / times["native_ms"], 2),
        "difference": abs(compare(x, y).ssim.item() - convolution_ssim(x, y).item()),
    }
    if device.type == "cpu":
        found = light.beside(times["native_ms"], light.size_of([x, frames, x]), light.bandwidth())
        result |= {"light_ms": found["light_ms"], "native_of_light": found["of_light"]}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
