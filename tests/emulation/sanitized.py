"""Runs emulated kernels under a sanitizer, in a Python of its own that preloads its library.

    python tests/emulation/sanitized.py address hash_encoder
    python tests/emulation/sanitized.py thread planted.cu/barrier_between

The exit code is 0 if the sanitizer had nothing to report; `run` gives its words. A package is made
known by a function in `PACKAGES` that runs all its kernels, forward and backward, on small scenes.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

import emulated

HERE = Path(__file__).resolve()
LIBRARIES = {"address": "libasan.so", "thread": "libtsan.so", "undefined": "libubsan.so"}
# Python frees not all its memory at exit; a report ends the program at once with a code of its own.
FOUND = 66
# New memory is full of NaN. The runs of the CPU's operators look for it in their results: nothing
# is read before it is set.
UNSET = "malloc_fill_byte=255:max_malloc_fill_size=1000000000"
OPTIONS = {
    "ASAN_OPTIONS": f"detect_leaks=0:exitcode={FOUND}:{UNSET}",
    "TSAN_OPTIONS": f"halt_on_error=1:exitcode={FOUND}",
    "UBSAN_OPTIONS": f"halt_on_error=1:print_stacktrace=1:exitcode={FOUND}",
}
QUIET = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # other threads are not the subject


# ------------------------------------------------------------------------------------- the scenes


def run_hexplane_encoder() -> None:
    """Channels moved singly and as vectors; points on the border, outside and NaN."""
    import torch

    from hexplane_encoder import encode

    for channels in (3, 8):
        xyz = _points(40, 3) * 3 - 1.5
        planes = [torch.rand(b, a, channels) for b, a in ((4, 5), (3, 5), (3, 4))]
        lines = [torch.rand(r, channels) for r in (5, 4, 3)]
        _differentiate(lambda x, *g: encode(x, g[:3], g[3:]), [xyz, *planes, *lines])


def run_hash_encoder() -> None:
    """Dense and hashed levels, more than a launch takes; features moved singly and as vectors."""
    import torch

    from hash_encoder import HashGrid, encode

    for dims, levels, features in ((2, 34, 1), (3, 6, 2), (3, 4, 8), (4, 3, 3)):
        grid = HashGrid(dims, levels, features, 2, 9, 6)
        table = torch.rand(grid.rows, features)
        _differentiate(
            lambda x, t, grid=grid: encode(x, t, grid), [_points(40, dims) * 1.4 - 0.2, table]
        )


def run_simple_knn() -> None:
    """Clouds with and without duplicates; candidates in registers and in the output's rows."""
    import torch

    from simple_knn import knn

    random = torch.Generator().manual_seed(0)
    cloud = torch.rand(350, 3, generator=random)
    for points in (cloud, (6 * cloud[:300]).floor(), cloud[:17], cloud[:1]):
        for k in (3, 20):
            knn(points, k)


def run_diff_gaussian_rasterization() -> None:
    """Two views; pixels that stop, splats over many tiles, more features than one launch takes."""
    import torch

    from diff_gaussian_rasterization import mark_visible, rasterize

    sys.path.insert(0, str(HERE.parent.parent / "submodules"))
    from rasterizer_scenes import random_cameras, random_gaussians, render_with_gradients

    for dtype in (torch.float32, torch.float64):
        for channels in (None, 6):
            gaussians = random_gaussians(90, dtype=dtype, channels=channels)
            with torch.no_grad():
                gaussians["scales"][:, ::9] *= 25
                gaussians["opacities"][:, ::3] = 0.999
            size = dict(width=70, height=38, channels=channels or 3)
            render_with_gradients(rasterize, gaussians, random_cameras(2, dtype=dtype, **size))
    mark_visible(gaussians["means3D"][0], torch.eye(4, dtype=dtype))


def run_photometric_loss() -> None:
    """Several tiles with a ragged end, a mask, 8-bit targets as stored; every kernel."""
    import torch

    from photometric_loss import compare

    frames = torch.randint(0, 256, (1, 19, 37, 2), dtype=torch.uint8).permute(0, 3, 1, 2)
    mask = torch.rand(1, 1, 19, 37) > 0.3
    for options in ({}, {"ssim": False, "error": "l2"}):

        def terms(images, options=options):
            compared = compare(images, frames, mask, **options)
            return tuple(term for term in compared if term is not None)

        _differentiate(terms, [torch.rand(1, 2, 19, 37)])


PACKAGES: dict[str, Callable[[], None]] = {
    "hexplane_encoder": run_hexplane_encoder,
    "hash_encoder": run_hash_encoder,
    "simple_knn": run_simple_knn,
    "photometric_loss": run_photometric_loss,
    "diff_gaussian_rasterization": run_diff_gaussian_rasterization,
}


def _points(count: int, dims: int):
    """Points (count, dims) in the unit cube; the first is its corner, the second is no point."""
    import torch

    points = torch.rand(count, dims)
    points[0], points[1, -1] = 1.0, torch.nan
    return points


def _differentiate(function: Callable, inputs: list) -> None:
    """Forward and backward to all inputs, float32 and float64."""
    import torch

    for dtype in (torch.float32, torch.float64):
        leaves = [tensor.to(dtype, copy=True).requires_grad_() for tensor in inputs]
        outputs = function(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        torch.autograd.grad(outputs, leaves, [torch.ones_like(output) for output in outputs])


# -------------------------------------------------------------------------------- a run, in parts


def run(sanitizer: str, subject: str) -> subprocess.CompletedProcess:
    """Runs a package, or `<file>.cu/<function>`, under a sanitizer; compiles it before."""
    if subject in PACKAGES:
        emulated.build(subject.replace("_", "-"), sanitizer)
    else:
        emulated.build_library(subject.split("/")[0], sanitizer)
    return run_preloaded([str(HERE), sanitizer, subject], sanitizer)


def run_preloaded(
    command: list[str], sanitizers: str, timeout: int = 280
) -> subprocess.CompletedProcess:
    """Runs Python with the libraries of sanitizers (``address,undefined``) in it from the start."""
    libraries = " ".join(library(sanitizer) for sanitizer in sanitizers.split(","))
    environment = {**os.environ, **OPTIONS, **QUIET, "LD_PRELOAD": libraries}
    command = [*_fixed_addresses(), sys.executable, *command]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)


@lru_cache
def library(sanitizer: str) -> str:
    """Path of the sanitizer's library; empty where the compiler has none."""
    name = LIBRARIES[sanitizer]
    command = [emulated.compiler(), f"-print-file-name={name}"]
    path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return path if Path(path).is_absolute() else ""


@lru_cache
def _fixed_addresses() -> tuple[str, ...]:
    """ThreadSanitizer cannot place its memory between the random addresses of newer kernels."""
    setarch = shutil.which("setarch")
    if setarch is None or subprocess.run([setarch, "-R", "true"], capture_output=True).returncode:
        return ()
    return setarch, "-R"


def _emulate(package: str, sanitizer: str) -> None:
    """Makes a package compute with its CUDA kernels, emulated, on CPU tensors."""
    devices = importlib.import_module(f"{package}.devices")
    gpu = devices.Gpu(emulated.load(package.replace("_", "-"), sanitizer), 0, 0)
    devices.gpu_of = lambda tensor: gpu


def main(sanitizer: str, subject: str) -> None:
    """The part under the sanitizer."""
    if subject in PACKAGES:
        _emulate(subject, sanitizer)
        PACKAGES[subject]()
    else:
        source, function = subject.split("/")
        data = np.zeros(128, np.int32)  # for two blocks of 64 threads
        emulated.Library(source, sanitizer).run(function, data, grid=2)
    print("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
