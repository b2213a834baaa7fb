"""Every instruction set that a native module has and that runs here computes the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rasterizer_scenes import random_cameras, random_gaussians

from diff_gaussian_rasterization import _native as rasterizer
from diff_gaussian_rasterization import rasterize, reference
from photometric_loss import compare
from photometric_loss import operator as photometric
from photometric_loss import reference as photometric_reference

HERE = Path(__file__).resolve().parent
MODULES = {"diff_gaussian_rasterization": rasterizer, "photometric_loss": photometric._native}
IMAGES, GRADIENTS = 1e-5, 1e-4  # float32, relative to the largest value


def run_at(isa: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A Python process that is asked for an instruction set."""
    environment = os.environ | {"NATIVE_ISA": isa}
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True
    )


def rendered(render=rasterize, **options) -> dict[str, torch.Tensor]:
    """Images of a scene of a few hundred Gaussians, and their gradients."""
    gaussians = random_gaussians(300)
    out = render(**gaussians, **random_cameras(2), **options)
    images = {"color": out.color, "alpha": out.alpha, "depth": out.depth}
    random = torch.Generator().manual_seed(1)
    weighed = [
        (image * torch.randn(image.shape, generator=random)).sum() for image in images.values()
    ]
    sum(weighed).backward()
    found = {name: image.detach() for name, image in images.items()}
    return found | {f"grad of {name}": tensor.grad for name, tensor in gaussians.items()}


def compared(judge=compare, **options) -> dict[str, torch.Tensor]:
    """SSIM and error of images whose width is no multiple of anything, and their gradient."""
    random = torch.Generator().manual_seed(2)
    images = torch.rand(2, 3, 67, 53, generator=random).requires_grad_()
    targets = (255 * torch.rand(images.shape, generator=random)).to(torch.uint8)
    ssim, error = judge(images, targets, error="l1", **options)
    (ssim + 0.3 * error).backward()
    # Of means over all pixels: each gradient is of the order of one over their number.
    gradient = images.grad * images.numel()
    return {"ssim": ssim.detach(), "error": error.detach(), "grad of images": gradient}


OPERATORS = {
    "diff_gaussian_rasterization": (rendered, reference.rasterize),
    "photometric_loss": (compared, photometric_reference.compare),
}


@pytest.mark.parametrize(
    ("package", "isa"), [(name, isa) for name in OPERATORS for isa in MODULES[name].isas]
)
def test_each_matches_the_twin(package, isa, tmp_path):
    result = run_at(isa, __file__, package, str(tmp_path / "found.pt"))
    assert result.returncode == 0, result.stderr
    found = torch.load(tmp_path / "found.pt")
    assert found["isa"] == isa
    compute, twin = OPERATORS[package]
    for name, expected in compute(twin).items():
        tolerance = GRADIENTS if name.startswith("grad") else IMAGES
        error = float((found["one thread"][name] - expected).abs().max())
        assert error <= tolerance * max(1.0, float(expected.abs().max())), name
        assert torch.equal(found["one thread"][name], found["three threads"][name]), name


@pytest.mark.parametrize("package", MODULES)
def test_the_best_is_in_use_and_the_plainest_is_there(package):
    module = MODULES[package]
    if not os.environ.get("NATIVE_ISA"):
        assert module.isa == module.isas[-1]
    assert module.isa in module.isas
    assert module.isas == [name for name in ("baseline", "avx2", "avx512") if name in module.isas]


@pytest.mark.parametrize("package", MODULES)
def test_what_cannot_be_had_is_refused_in_one_line(package):
    result = run_at("sse9", "-c", f"import {package}._native")
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: "), last
    assert "NATIVE_ISA=sse9 cannot be had" in last
    for name in MODULES[package].isas:
        assert name in last


def main(package: str, path: str) -> None:
    """What the tests compare, from a process of its own."""
    compute, _ = OPERATORS[package]
    found = {"isa": MODULES[package].isa}
    found["one thread"] = compute(num_threads=1)
    found["three threads"] = compute(num_threads=3)
    torch.save(found, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
