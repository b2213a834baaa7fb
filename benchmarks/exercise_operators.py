"""Runs every native operator once on small inputs with awkward sizes, forward and backward.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck \
        python benchmarks/exercise_operators.py

Made to be run under compute-sanitizer: without torch's caching of memory every tensor is an
allocation of its own, so that an access beyond its end is found. Results are only checked for
being finite; that they are right is for the tests. Prints one JSON object; exit code 1 where an
operator has an error, or a package of `submodules` has no exercise here.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks import scenes

ROOT = Path(__file__).resolve().parents[1]
DTYPES = (torch.float32, torch.float64)


def check(tensors: Iterable[Tensor | None]) -> None:
    """FloatingPointError unless all numbers are finite."""
    for tensor in tensors:
        if tensor is not None and not torch.isfinite(tensor).all():
            raise FloatingPointError(f"a result of shape {tuple(tensor.shape)} is not finite")


def differentiate(results: Sequence[Tensor], leaves: Sequence[Tensor]) -> None:
    """Gradients of a weighted sum of `results` in `leaves`, and all of it finite."""
    total = sum(
        (result * torch.linspace(-1, 2, result.numel(), device=result.device).view_as(result)).sum()
        for result in results
    )
    check([*results, *torch.autograd.grad(total, list(leaves), allow_unused=True)])


def leaves_of(tensors: dict[str, Tensor], device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Copies on the device that want gradients."""
    return {k: t.detach().to(device, dtype).requires_grad_() for k, t in tensors.items()}


# ---- rasteriser ---------------------------------------------------------------------------------


def rasteriser(device: str) -> None:
    """All degrees of harmonics, channels, covariances, batches; images that are no whole tiles."""
    for dtype in DTYPES:
        for degree in range(4):
            _draw(scenes.n3v(301, (70, 45), views=2), device, dtype, degree)
        for channels in (1, 3, 4, 7, 32):
            _draw(scenes.n3v(130, (33, 18), views=1), device, dtype, channels=channels)
        _draw(scenes.n3v(130, (64, 32), views=2), device, dtype, covariances=True)
        for size in ((1, 1), (16, 16), (17, 1), (257, 3)):
            _draw(scenes.n3v(40, size, views=1), device, dtype, 1)
        for count in (0, 1, 2):
            _draw(scenes.n3v(3, (40, 24), views=3), device, dtype, 0, keep=count)


def _draw(
    scene: scenes.Scene,
    device: str,
    dtype: torch.dtype,
    degree: int = 0,
    channels: int | None = None,
    covariances: bool = False,
    keep: int | None = None,
) -> None:
    from diff_gaussian_rasterization import rasterize

    tensors = {name: tensor[:, :keep] for name, tensor in scene.gaussians.items()}
    count = tensors["means3D"].shape[1]
    random = torch.Generator().manual_seed(0)
    if channels:
        del tensors["shs"]
        tensors["colors"] = torch.rand(1, count, channels, generator=random)
    if covariances:
        half = 0.1 * torch.randn(1, count, 3, 3, generator=random)
        full = (half @ half.mT).flatten(-2)
        del tensors["scales"], tensors["rotations"]
        tensors["cov3Ds"] = full[..., [0, 1, 2, 4, 5, 8]]
    leaves = leaves_of(tensors, device, dtype)
    views = scene.cameras()
    cameras = {k: torch.cat([v[k] for v in views]).to(device, dtype) for k in views[0]}
    leaves["means2D"] = torch.zeros(
        len(views), count, 3, device=device, dtype=dtype, requires_grad=True
    )
    out = rasterize(
        **leaves,
        **cameras,
        width=scene.width,
        height=scene.height,
        sh_degree=degree,
        background=torch.ones(channels or 3, device=device, dtype=dtype),
    )
    differentiate([out.color, out.alpha, out.depth], list(leaves.values()))


def layers(device: str) -> None:
    """Features beside colours; layers, some empty, with transmittances of their own and shared."""
    from diff_gaussian_rasterization import rasterize

    scene = scenes.n3v(301, (70, 45), views=1)
    random = torch.Generator().manual_seed(0)
    for dtype in DTYPES:
        camera = {k: t.to(device, dtype) for k, t in scene.cameras()[0].items()}
        for features, counts, shared in (
            (3, None, False),
            (3, [100, 0, 201], False),
            (3, [100, 0, 201], True),
            (13, [1] * 301, False),
        ):
            tensors = scene.gaussians | {"features": torch.rand(1, 301, features, generator=random)}
            leaves = leaves_of(tensors, device, dtype)
            options = dict(width=scene.width, height=scene.height, layers=counts)
            background = torch.ones(3 + features, device=device, dtype=dtype)
            out = rasterize(
                **leaves, **camera, **options, background=background, shared_transmittance=shared
            )
            differentiate([out.color, out.alpha, out.depth], list(leaves.values()))
            frozen = {n: t if n == "features" else t.detach() for n, t in leaves.items()}
            out = rasterize(
                **frozen, **camera, **options, background=background, shared_transmittance=shared
            )
            differentiate([out.color], [frozen["features"]])


def visibility(device: str) -> None:
    """The published interface's other function."""
    from diff_gaussian_rasterization import mark_visible

    scene = scenes.n3v(513, (32, 32), views=1)
    for dtype in DTYPES:
        positions = scene.gaussians["means3D"][0].detach().to(device, dtype)
        view = scene.cameras()[0]["viewmatrices"][0].to(device, dtype)
        if not mark_visible(positions, view).any():
            raise ValueError("nothing is visible")


# ---- encoders and neighbours --------------------------------------------------------------------


def hexplane(device: str) -> None:
    """Channels that are and are not a multiple of four, points outside, few and many."""
    from hexplane_encoder import encode

    random = torch.Generator().manual_seed(0)
    for dtype in DTYPES:
        for count, channels in ((1, 1), (257, 16), (1000, 31), (300, 32), (0, 4)):
            shapes = [(7, 9, channels), (5, 9, channels), (5, 7, channels)]
            shapes += [(size, channels) for size in (9, 7, 5)]
            tensors = {
                str(i): torch.rand(shape, generator=random) + 0.5 for i, shape in enumerate(shapes)
            }
            tensors["xyz"] = 2.6 * torch.rand(count, 3, generator=random) - 1.3
            leaves = leaves_of(tensors, device, dtype)
            grids = [leaves[str(i)] for i in range(6)]
            features = encode(leaves["xyz"], grids[:3], grids[3:])
            differentiate([features], list(leaves.values()))


def hash_grid(device: str) -> None:
    """Three and four dimensions, dense and hashed levels."""
    from hash_encoder import HashGrid, encode

    random = torch.Generator().manual_seed(0)
    grids = [HashGrid(3, 4, 2, 4, (32, 32, 16), 10), HashGrid(4, 3, 2, 4, (16, 16, 16, 8), 9)]
    for dtype in DTYPES:
        for grid in grids:
            for count in (1, 257, 1000):
                tensors = {
                    "x": 1.2 * torch.rand(count, grid.dims, generator=random) - 0.1,
                    "table": torch.rand(grid.rows, grid.features, generator=random) - 0.5,
                }
                leaves = leaves_of(tensors, device, dtype)
                features = encode(leaves["x"], leaves["table"], grid)
                differentiate([features], list(leaves.values()))


def neighbours(device: str) -> None:
    """Fewer points than neighbours, equal points, and a cloud."""
    from simple_knn import knn

    random = torch.Generator().manual_seed(0)
    clouds = [torch.rand(count, 3, generator=random) for count in (1, 3, 33, 1000, 4097)]
    for cloud in [*clouds, torch.ones(300, 3)]:
        for k in (1, 3, 8):
            squared, index = knn(cloud.to(device), k)
            known = index >= 0
            check([squared[known]])
            if int(known.sum()) != len(cloud) * min(k, len(cloud) - 1):
                raise ValueError(f"{len(cloud)} points have wrong numbers of neighbours")


def ssim_loss(device: str) -> None:
    """Images smaller than the window, and ones that are no multiple of anything."""
    from utils.metrics import ssim

    random = torch.Generator().manual_seed(0)
    for shape in ((1, 3, 5, 7), (2, 3, 45, 70), (1, 3, 33, 129)):
        a, b = (torch.rand(shape, generator=random).to(device).requires_grad_() for _ in range(2))
        differentiate([ssim(a, b)], [a, b])


def photometric(device: str) -> None:
    """All errors, with and without SSIM and mask; 8-bit targets, also of permuted strides."""
    from photometric_loss import compare

    random = torch.Generator().manual_seed(0)
    for dtype in DTYPES:
        for batch, channels, height, width in ((1, 1, 1, 1), (1, 3, 5, 7), (2, 3, 45, 70)):
            shape = (batch, channels, height, width)
            pixels = torch.randint(256, (batch, height, width, channels), generator=random)
            bytes_ = pixels.to(device, torch.uint8).permute(0, 3, 1, 2)
            floats = torch.rand(shape, generator=random).to(device, dtype)
            mask = torch.rand((batch, 1, height, width), generator=random).to(device) > 0.3
            for targets in (bytes_, floats):
                for ssim, error in ((True, "l1"), (False, "l2"), (True, None)):
                    for some in (None, mask):
                        images = floats.flip(-1).contiguous().requires_grad_()
                        found = compare(images, targets, some, ssim=ssim, error=error)
                        differentiate([x for x in found if x is not None], [images])


# Native package -> its exercises. A package of `submodules` that is not here is an error.
EXERCISES: dict[str, list[Callable[[str], None]]] = {
    "diff-gaussian-rasterization": [rasteriser, layers, visibility],
    "hexplane-encoder": [hexplane],
    "hash-encoder": [hash_grid],
    "simple-knn": [neighbours],
    "photometric-loss": [photometric],
}
OTHERS = [ssim_loss]  # in plain torch, or by a package of its own


def packages() -> list[str]:
    """The native packages of this repository."""
    return sorted(path.parent.name for path in (ROOT / "submodules").glob("*/pyproject.toml"))


def computes_on(package: str, device: str) -> str:
    """Why the package does not compute on the device; nothing if it does."""
    module = importlib.import_module(package.replace("-", "_"))
    kinds = getattr(module, "DEVICES", ("cpu",))
    return "" if device in kinds else f"{package} computes on {', '.join(kinds)} only"


def run(exercise: Callable[[str], None], device: str) -> str:
    """``"ok"``, or what went wrong; the traceback goes to stderr."""
    try:
        exercise(device)
        if device == "cuda":
            torch.cuda.synchronize()
    except Exception as error:  # of any kind: the other operators are to be run as well
        traceback.print_exc()
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return "ok"


def exercise_all(device: str, only: Sequence[str]) -> dict[str, str]:
    """``"ok"`` or what went wrong, for each operator."""
    found = {}
    for package in packages():
        if only and package not in only:
            continue
        if package not in EXERCISES:
            found[package] = "has no exercise in benchmarks/exercise_operators.py"
            continue
        refused = computes_on(package, device)
        for exercise in EXERCISES[package]:
            found[exercise.__name__] = refused or run(exercise, device)
    for exercise in OTHERS if not only else []:
        found[exercise.__name__] = run(exercise, device)
    return found


def main() -> int:
    """Prints one JSON object; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--only", nargs="+", default=(), help="packages, as in submodules/")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("exercise_operators.py: torch sees no GPU", file=sys.stderr)
        return 2
    found = exercise_all(args.device, args.only)
    print(json.dumps({"device": args.device, "operators": found}))
    return 0 if found and all(text == "ok" for text in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
