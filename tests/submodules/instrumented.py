"""Runs the CPU code of the native packages under sanitizers, in Pythons that have them preloaded.

`run` builds a package and runs all its operators, forward and backward, once for each instruction
set that this machine has and each number of threads. The exit code is 0 if the sanitizers had
nothing to report; otherwise it stops at their first report, which is in stderr.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import nanobind

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT), str(HERE.parent / "emulation")]

from emulated import STRICT, Unit, compile_and_link, compile_unit, compiler, made_once  # noqa: E402
from sanitized import run_preloaded  # noqa: E402

COMMON = ROOT / "submodules" / "common"
BUILD = ROOT / "build" / "sanitized"
SANITIZERS = ("address,undefined", "thread")
THREADS = (1, 3)

# As NativeIsa.cmake has them, but for -O3: at -O1 it compiles in a tenth of the time.
FLAGS = [
    *("-std=c++17", "-O1", "-g1", "-fPIC", "-pthread", "-fvisibility=hidden"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    *("-Wno-maybe-uninitialized", "-Wno-uninitialized"),
]
# What `undefined` leaves out but is so: a number that does not fit the integer it is made to be.
INSTRUMENT = {
    "address,undefined": [
        "-fsanitize=address,undefined,float-cast-overflow",
        "-fno-sanitize=vptr",  # needs nanobind to be instrumented as well
        "-fno-omit-frame-pointer",
    ],
    "thread": ["-fsanitize=thread", "-fno-omit-frame-pointer"],
}


# -------------------------------------------------------------------------------------- the build


class Package:
    """What the CMakeLists.txt of a native package says of its CPU module."""

    def __init__(self, name: str) -> None:
        self.folder = ROOT / "submodules" / name.replace("_", "-")
        listed = (self.folder / "CMakeLists.txt").read_text()
        common = (COMMON / "cmake" / "NativeIsa.cmake").read_text()
        self.settings = settings(common) | settings(listed)
        found = re.search(r"\bnative_kernels\(\s*\w+\s+([^)]*)\)", listed)
        options: list[list[str]] = [[], [], []]
        heads = {"OPTIONS": 1, "AVX512_OPTIONS": 2}
        at = 0
        for word in self._expanded(found.group(1)):
            at = heads.get(word, at)
            if word not in heads:
                options[at].append(word)
        self.kernels, self.options, self.avx512_options = options
        sources = re.findall(r"[\w./-]+\.cpp\b", listed)
        left_out = {*self.kernels, "src/bindings_cuda.cpp"}
        self.others = [source for source in dict.fromkeys(sources) if source not in left_out]
        if not self.kernels or "src/bindings.cpp" not in self.others:
            raise ValueError(f"cannot read the sources from {self.folder / 'CMakeLists.txt'}")

    def level_options(self, level: str) -> list[str]:
        """Compiler options of the kernels at an instruction set."""
        isa = [] if level == "baseline" else self._expanded(f"${{NATIVE_OPTIONS_{level}}}")
        return [*isa, *self.options, *(self.avx512_options if level == "avx512" else [])]

    def _expanded(self, text: str) -> list[str]:
        return expanded(text, self.settings).split()

    def units(self, levels: list[str], flags: list[str]) -> list[Unit]:
        """Everything to compile; each kernel once per instruction set."""
        folders = (self.folder / "include", self.folder / "src", COMMON / "include")
        flags = [*FLAGS, *flags, *STRICT, *(f"-I{folder}" for folder in folders)]
        units = [
            Unit(
                self.folder / source,
                [*flags, *self.level_options(level), f"-DNATIVE_LEVEL={level}"],
                f"{Path(source).stem}-{level}",
            )
            for source in self.kernels
            for level in levels
        ]
        flags = [*flags, *nanobind_flags(), *(f"-DNATIVE_HAS_{level.upper()}" for level in levels)]
        return units + [Unit(self.folder / source, flags) for source in self.others]

    def files(self) -> list[Path]:
        """All files that the build may depend on."""
        folders = (self.folder / "src", self.folder / "include", COMMON)
        found = [path for folder in folders for path in sorted(folder.rglob("*"))]
        return [self.folder / "CMakeLists.txt", *(path for path in found if path.is_file())]


def expanded(text: str, known: dict[str, str]) -> str:
    """CMake's ``${variables}`` by their values; unknown ones are empty, as there."""
    return re.sub(r"\$\{(\w+)\}", lambda match: known.get(match.group(1), ""), text)


def settings(text: str) -> dict[str, str]:
    """The variables that a CMake file sets at its top, plainly."""
    known: dict[str, str] = {}
    for name, value in re.findall(r"^\s*set\((\w+) ([^()\"]*)\)", text, re.MULTILINE):
        known[name] = expanded(value, known)
    return known


def nanobind_flags() -> list[str]:
    """Where its headers and Python's are; they are not held to our warnings."""
    include = Path(nanobind.include_dir())
    folders = (include, include.parent / "ext" / "robin_map" / "include")
    python = Path(sysconfig.get_paths()["include"])
    return [flag for folder in (*folders, python) for flag in ("-isystem", str(folder))]


def digest(files: list[Path], options: list[str]) -> str:
    """A hash of everything that a build depends on."""
    total = hashlib.sha256(" ".join([compiler(), nanobind.__version__, *options]).encode())
    for path in files:
        total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()[:16]


def nanobind_object() -> Path:
    """The part of nanobind that modules link; it is not under test and not instrumented."""
    source = Path(nanobind.source_dir()) / "nb_combined.cpp"
    flags = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-DNDEBUG", *nanobind_flags()]
    result = BUILD / f"nanobind-{digest([source], flags)}" / "nb_combined.o"
    command = [compiler(), *flags, "-x", "c++", "-c", str(source)]
    return made_once(result, partial(compile_unit, command))


def build(name: str, sanitizers: str) -> Path:
    """The module ``_native`` of a package with sanitizers, built unless it is up to date."""
    package, flags, levels = Package(name), INSTRUMENT[sanitizers], levels_here()
    units = package.units(levels, flags)
    key = digest(package.files(), [word for unit in units for word in unit.options])
    module = BUILD / f"{name}-{sanitizers.replace(',', '-')}-{key}" / "_native.so"
    runtime = [nanobind_object()]
    return made_once(module, lambda part: compile_and_link(units, flags, part, runtime))


def build_planted(sanitizers: str) -> Path:
    """planted.cpp, with what the packages run threads with."""
    rasteriser = ROOT / "submodules" / "diff-gaussian-rasterization" / "src"
    sources = [
        HERE / "planted.cpp",
        rasteriser / "thread_pool.cpp",
        COMMON / "src" / "workers.cpp",
    ]
    flags = INSTRUMENT[sanitizers]
    options = [*FLAGS, *STRICT, *flags, "-fvisibility=default"]
    options += [f"-I{COMMON / 'include'}", f"-I{rasteriser}"]
    key = digest([*sources, rasteriser / "thread_pool.h"], options)
    units = [Unit(source, options) for source in sources]
    library = BUILD / f"planted-{sanitizers.replace(',', '-')}-{key}" / "planted.so"
    return made_once(library, lambda part: compile_and_link(units, flags, part))


@lru_cache
def levels_here() -> list[str]:
    """The instruction sets that were built and that this machine has."""
    return list(importlib.import_module("simple_knn._native").isas)


# --------------------------------------------------------------------------------------- the runs


def exercises() -> dict[str, list[Callable[[], None]]]:
    """For each package what runs all its operators; with the modules that are loaded by then."""
    from benchmarks.exercise_operators import EXERCISES

    found = {
        name.replace("-", "_"): [partial(exercise, "cpu") for exercise in listed]
        for name, listed in EXERCISES.items()
    }
    for name, more in MORE.items():
        found[name] += more
    return found


def odd_renders() -> None:
    """Gaussians enough for several threads, values that are no numbers, and two renders at once."""
    import torch
    from rasterizer_scenes import random_cameras, random_gaussians, render_with_gradients
    from test_rasterizer_edges import EXTREME, NOT_FINITE

    from diff_gaussian_rasterization import rasterize

    def render(count: int, dtype: torch.dtype, **poison) -> None:
        gaussians = random_gaussians(count, dtype=dtype)
        with torch.no_grad():
            for field, value in poison.items():
                gaussians[field][0, 7] = torch.tensor(value)
        render_with_gradients(rasterize, gaussians, random_cameras(2, dtype=dtype))

    for dtype in (torch.float32, torch.float64):
        render(1500, dtype)
        for field, value in (*NOT_FINITE, *EXTREME):
            render(30, dtype, **{field: value})
    others = [threading.Thread(target=render, args=(700, torch.float32)) for _ in range(2)]
    for thread in others:
        thread.start()
    for thread in others:
        thread.join()


def odd_lookups() -> None:
    """Planes: points enough for several threads, some of them no numbers or far away."""
    import torch

    from hexplane_encoder import encode

    sizes = ((7, 9), (5, 9), (5, 7), (9,), (7,), (5,))
    for dtype in (torch.float32, torch.float64):
        for count, channels in ((6001, 8), (7, 33)):
            grids = [torch.rand(*size, channels, dtype=dtype).requires_grad_() for size in sizes]
            points = odd_points(count, 3, dtype) * 2 - 1
            encode(points.requires_grad_(), grids[:3], grids[3:]).sum().backward()


def odd_hashes() -> None:
    """Hash grids: every width, none and many points, some of them no numbers or far away."""
    import torch

    from hash_encoder import HashGrid, encode

    for dtype in (torch.float32, torch.float64):
        for dims, levels, features in ((2, 34, 1), (3, 6, 2), (3, 4, 8), (4, 3, 3)):
            grid = HashGrid(dims, levels, features, 2, 9, 6)
            table = torch.rand(grid.rows, features, dtype=dtype).requires_grad_()
            for count in (0, 9001):
                points = odd_points(count, dims, dtype).requires_grad_()
                encode(points, table, grid).sum().backward()


def odd_clouds() -> None:
    """Neighbours: no point, one, equal ones, and a cloud that several threads share."""
    import torch

    from simple_knn import knn

    cloud = torch.rand(5001, 3)
    few = cloud[:300]
    for points in (cloud[:0], cloud[:1], (6 * few).floor(), cloud, 1e17 * few, 1e-40 * few):
        for k in (1, 20):
            knn(points, k)


def odd_images() -> None:
    """Losses: images of one row or column, and one that several threads share; no numbers."""
    import torch

    from photometric_loss import compare

    for dtype in (torch.float32, torch.float64):
        for shape in ((1, 1, 1, 40), (1, 2, 300, 1), (2, 3, 67, 131)):
            images = torch.rand(shape, dtype=dtype)
            images[..., 0, 0], images[..., -1, -1] = torch.nan, 1e30
            targets = (255 * torch.rand(shape)).to(torch.uint8)
            found = compare(images.requires_grad_(), targets, error="l2")
            sum(term.sum() for term in found if term is not None).backward()


def odd_points(count: int, dims: int, dtype):
    """Points (count, dims) about the unit cube; the first are its corner, or nowhere."""
    import torch

    points = 1.4 * torch.rand(count, dims, dtype=dtype) - 0.2
    for row, value in enumerate((1.0, torch.nan, torch.inf, -torch.inf, 1e38, -1e38)):
        points[row : row + 1, -1] = value
    return points


MORE: dict[str, list[Callable[[], None]]] = {
    "diff_gaussian_rasterization": [odd_renders],
    "hexplane_encoder": [odd_lookups],
    "hash_encoder": [odd_hashes],
    "simple_knn": [odd_clouds],
    "photometric_loss": [odd_images],
}


def run(sanitizers: str, subject: str) -> subprocess.CompletedProcess:
    """Builds a package, or ``planted/<function>``, and runs it under sanitizers."""
    planted = subject.startswith("planted/")
    module = build_planted(sanitizers) if planted else build(subject, sanitizers)
    levels = [] if planted else levels_here()
    command = [str(HERE / "instrumented.py"), str(module), subject, *levels]
    return run_preloaded(command, sanitizers, timeout=800)


def use(package: str, module: Path, level: str) -> None:
    """Makes a package, which must not be imported yet, use the module at an instruction set."""
    os.environ["NATIVE_ISA"] = level
    name = f"{package}._native"
    spec = importlib.util.spec_from_file_location(name, module)
    native = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(native)
    sys.modules[name] = native
    importlib.import_module(package)
    if native.isa != level or sys.modules[name] is not native:
        raise ImportError(f"{package} does not use {module} at {level}")


def exercise(package: str, module: Path, level: str) -> None:
    """All operators of a package, with each number of threads."""
    import torch

    use(package, module, level)
    if "libasan" in os.environ["LD_PRELOAD"] and not torch.empty(1000).isnan().all():
        raise RuntimeError("new memory is not full of NaN: ASAN_OPTIONS has no effect")
    for threads in THREADS:
        # Its own threads are not the subject; the packages only ask for their number.
        torch.get_num_threads = lambda threads=threads: threads
        for one in exercises()[package]:
            torch.manual_seed(0)
            one()


def main(module: str, subject: str, *levels: str) -> int:
    """The part under the sanitizers; a child for each instruction set, as one loads only once."""
    if not levels:
        getattr(ctypes.CDLL(module), subject.split("/")[1])(64)
        print("done")
    for level in levels:
        child = os.fork()
        if child == 0:
            exercise(subject, Path(module), level)
            print(f"done {level}", flush=True)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
