"""Every instruction set that a native module has and that runs here computes the same."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from rasterizer_scenes import random_cameras, random_gaussians

import diff_gaussian_rasterization as rasterizer
import hash_encoder
import hexplane_encoder
import photometric_loss
import simple_knn

HERE = Path(__file__).resolve().parent
PACKAGES = {
    package.__name__: package
    for package in (rasterizer, photometric_loss, hexplane_encoder, hash_encoder, simple_knn)
}
MODULES = {name: importlib.import_module(f"{name}._native") for name in PACKAGES}
TWINS = {name: importlib.import_module(f"{name}.reference") for name in PACKAGES}
VALUES, GRADIENTS = 1e-5, 1e-4  # float32, relative to the largest value


def run_at(isa: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A Python process that is asked for an instruction set."""
    environment = os.environ | {"NATIVE_ISA": isa}
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True
    )


def rendered(package: ModuleType, **options) -> dict[str, torch.Tensor]:
    """Images of a scene of a few hundred Gaussians, and their gradients."""
    gaussians = random_gaussians(300)
    out = package.rasterize(**gaussians, **random_cameras(2), **options)
    images = {"color": out.color, "alpha": out.alpha, "depth": out.depth}
    random = torch.Generator().manual_seed(1)
    weighed = [
        (image * torch.randn(image.shape, generator=random)).sum() for image in images.values()
    ]
    sum(weighed).backward()
    found = {name: image.detach() for name, image in images.items()}
    return found | {f"grad of {name}": tensor.grad for name, tensor in gaussians.items()}


def compared(package: ModuleType, **options) -> dict[str, torch.Tensor]:
    """SSIM and error of images whose width is no multiple of anything, and their gradient."""
    random = torch.Generator().manual_seed(2)
    images = torch.rand(2, 3, 67, 53, generator=random).requires_grad_()
    targets = (255 * torch.rand(images.shape, generator=random)).to(torch.uint8)
    ssim, error = package.compare(images, targets, error="l1", **options)
    (ssim + 0.3 * error).backward()
    # Of means over all pixels: each gradient is of the order of one over their number.
    gradient = images.grad * images.numel()
    return {"ssim": ssim.detach(), "error": error.detach(), "grad of images": gradient}


def encoded(package: ModuleType, inputs: list[torch.Tensor], encode: Callable) -> dict:
    """Features, and the gradients of a weighted sum of them."""
    leaves = [tensor.requires_grad_() for tensor in inputs]
    features = encode(package, leaves)
    (features * torch.linspace(-1, 2, features.numel()).reshape(features.shape)).sum().backward()
    gradients = {f"grad of input {i}": leaf.grad for i, leaf in enumerate(leaves)}
    return {"features": features.detach()} | gradients


def planes(package: ModuleType, **options) -> dict[str, torch.Tensor]:
    """A HexPlane whose number of channels fills no register, and points enough for threads."""
    random = torch.Generator().manual_seed(3)
    sizes = [(7, 9, 13), (5, 9, 13), (5, 7, 13), (9, 13), (7, 13), (5, 13)]
    grids = [torch.rand(*size, generator=random) + 0.5 for size in sizes]
    points = 2.2 * torch.rand(5000, 3, generator=random) - 1.1
    found = encoded(
        package, [points, *grids], lambda p, x: p.encode(x[0], x[1:4], x[4:], **options)
    )
    grids = [grid.requires_grad_() for grid in grids]
    measures = package.roughness(grids[:2], grids[2:3], **options)
    rough = torch.autograd.grad(sum(measures), grids[:3])
    found |= {f"roughness {i}": value.detach() for i, value in enumerate(measures)}
    found |= {f"grad of roughness {i}": value for i, value in enumerate(rough)}
    return found | decoded(package, found["features"], **options)


def decoded(package: ModuleType, features: torch.Tensor, **options) -> dict[str, torch.Tensor]:
    """Heads with fewer and with more outputs than a register holds, of a width that fills none."""
    random, width = torch.Generator().manual_seed(6), 21

    def leaf(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=random) / shape[-1] ** 0.5).requires_grad_()

    inputs = features.clone().requires_grad_()
    first, inner = (leaf(width, 13), leaf(width)), (leaf(3 * width, width), leaf(3 * width))
    last = [(leaf(size, width), leaf(size)) for size in (3, 1, 48)]
    outputs = package.decode(inputs, first, inner, last, **options)
    leaves = [inputs, *first, *inner, *(tensor for layer in last for tensor in layer)]
    sum(output.square().mean() for output in outputs).backward()
    found = {f"output {k}": output.detach() for k, output in enumerate(outputs)}
    return found | {f"grad of decoder {i}": leaf.grad for i, leaf in enumerate(leaves)}


def hashed(package: ModuleType, **options) -> dict[str, torch.Tensor]:
    """A hash grid of dense and hashed levels."""
    random = torch.Generator().manual_seed(4)
    grid = hash_encoder.HashGrid(3, 6, 2, (4, 3, 2), (20, 16, 32), 9)
    points = 1.4 * torch.rand(20000, 3, generator=random) - 0.2
    table = torch.rand(grid.rows, grid.features, generator=random) - 0.5
    return encoded(package, [points, table], lambda p, x: p.encode(x[0], x[1], grid, **options))


def neighbours(package: ModuleType, **options) -> dict[str, torch.Tensor]:
    """Squared distances of a cloud of points."""
    points = torch.rand(5000, 3, generator=torch.Generator().manual_seed(5))
    return {"distances": package.knn(points, 3, **options)[0]}


OPERATORS = {
    "diff_gaussian_rasterization": rendered,
    "photometric_loss": compared,
    "hexplane_encoder": planes,
    "hash_encoder": hashed,
    "simple_knn": neighbours,
}


@pytest.mark.parametrize(
    ("package", "isa"), [(name, isa) for name in OPERATORS for isa in MODULES[name].isas]
)
def test_each_matches_the_twin(package, isa, tmp_path):
    result = run_at(isa, __file__, package, str(tmp_path / "found.pt"))
    assert result.returncode == 0, result.stderr
    found = torch.load(tmp_path / "found.pt")
    assert found["isa"] == isa
    for name, expected in OPERATORS[package](TWINS[package]).items():
        tolerance = GRADIENTS if name.startswith("grad") else VALUES
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
    found = {"isa": MODULES[package].isa}
    found["one thread"] = OPERATORS[package](PACKAGES[package], num_threads=1)
    found["three threads"] = OPERATORS[package](PACKAGES[package], num_threads=3)
    torch.save(found, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
