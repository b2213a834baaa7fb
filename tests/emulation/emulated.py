"""Builds the CUDA kernels of a package as C++ against the emulated GPU, and loads them.

The result has the functions of the package's ``_cuda`` module and takes addresses in main memory.
Kernels of the tests' own are built the same way, see `Library`.
With a sanitizer it must be loaded into a Python in which the sanitizer's library is preloaded.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import nanobind
import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
COMMON = ROOT / "submodules" / "common" / "include"
BUILD = ROOT / "build" / "emulated"

# No contraction of a * b + c: nvcc and the compiler of the CPU kernels fuse as they like, and the
# tests must not depend on which does.
FLAGS = [
    "-std=c++17",
    "-O2",
    "-ffp-contract=off",
    "-g1",
    "-fPIC",
    "-pthread",
    "-fvisibility=hidden",
    "-Wno-unknown-pragmas",
]
STRICT = ["-Wall", "-Wextra", "-Werror"]


class Unit(NamedTuple):
    """One file to compile; ``name`` tells apart the objects of one source."""

    source: Path
    options: list[str]
    name: str = ""


def compiler() -> str:
    """The C++ compiler: ``$CXX``, else g++, else c++."""
    return os.environ.get("CXX") or shutil.which("g++") or "c++"


def includes(package: Path) -> list[str]:
    """Compiler flags; the emulation's headers come before those of a real CUDA."""
    nanobind_root = Path(nanobind.include_dir()).parent
    folders = [HERE / "include", COMMON, package / "include", package / "src"]
    system = [
        Path(nanobind.include_dir()),
        nanobind_root / "ext" / "robin_map" / "include",
        Path(sysconfig.get_paths()["include"]),
    ]
    flags = [flag for folder in folders for flag in ("-I", str(folder))]
    return flags + [flag for folder in system for flag in ("-isystem", str(folder))]


def sources(package: Path) -> list[Path]:
    """The package's kernels and their bindings."""
    found = [*sorted((package / "src").glob("*.cu")), package / "src" / "bindings_cuda.cpp"]
    if len(found) < 2:
        raise FileNotFoundError(f"{package} has no CUDA sources")
    return found


def _key(package: Path, watched: Iterable[Path], flags: Iterable[str]) -> str:
    """A hash of everything that the build depends on."""
    total = hashlib.sha256(" ".join(flags).encode())
    folders = (package / "src", package / "include", COMMON, HERE / "include")
    found = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in (*found, HERE / "emulation.cpp", HERE / "runner.h", *watched):
        total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()[:16]


def compile_unit(command: list[str], result: Path) -> None:
    """Runs a compiler or a linker; what it says goes to a .log beside the result.

    Raises:
        RuntimeError: with the command and the end of what it says.
    """
    done = subprocess.run([*command, "-o", str(result)], capture_output=True, text=True)
    result.with_suffix(".log").write_text(done.stdout + done.stderr)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-6000:]}")


def made_once(result: Path, make: Callable[[Path], None]) -> Path:
    """``result``, made by ``make(unfinished path)`` unless it is there.

    Several test processes may want it at once: one makes it, the others wait.
    """
    result.parent.mkdir(parents=True, exist_ok=True)
    with (result.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not result.exists():
            unfinished = result.with_suffix(".part")
            make(unfinished)
            unfinished.rename(result)
    return result


def build(package: str, sanitizer: str = "") -> Path:
    """The extension module of ``submodules/<package>``, built unless it is up to date.

    Args:
        sanitizer: ``address``, ``thread``, ``undefined``, or nothing.
    """
    folder = ROOT / "submodules" / package
    nanobind_source = Path(nanobind.source_dir()) / "nb_combined.cpp"
    foreign = [(nanobind_source, ["-O1", "-g0"])]
    return _build(folder, sources(folder), foreign, sanitizer, f"{package}/_cuda.so")


def build_library(source: str, sanitizer: str = "") -> Path:
    """A library of a .cu file of this folder, see runner.h; built unless it is up to date."""
    return _build(HERE, [HERE / source], [], sanitizer, f"{source}/library.so")


def _build(
    folder: Path,
    watched: list[Path],
    foreign: list[tuple[Path, list[str]]],
    sanitizer: str,
    result: str,
) -> Path:
    """Compiles ``watched``, with the sanitizer, and ``foreign``, without; links them."""
    extra = [f"-fsanitize={sanitizer}", "-fno-omit-frame-pointer"] if sanitizer else []
    flags = [*FLAGS, *includes(folder)]
    key = _key(folder, watched, [compiler(), *FLAGS, *STRICT, *extra])
    name, file = result.split("/")
    # Only what is under test is instrumented; the scheduler tells the sanitizers what it does.
    units = [Unit(path, [*flags, *extra, *STRICT]) for path in watched]
    units.append(Unit(HERE / "emulation.cpp", [*flags, *STRICT]))
    units += [Unit(path, [*flags, *more]) for path, more in foreign]
    module = BUILD / f"{name}-{sanitizer or 'plain'}-{key}" / file
    return made_once(module, lambda unfinished: compile_and_link(units, extra, unfinished))


def compile_and_link(
    units: list[Unit], options: list[str], module: Path, objects: Sequence[Path] = ()
) -> None:
    """Compiles units, several at a time, and links them and ready ``objects`` to a library."""
    results = [module.parent / f"{unit.name or unit.source.stem}.o" for unit in units]
    commands = [[compiler(), *unit.options, "-x", "c++", "-c", str(unit.source)] for unit in units]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_unit, commands, results))
    everything = map(str, (*results, *objects))
    compile_unit([compiler(), "-shared", "-pthread", *options, *everything], module)


@lru_cache
def load(package: str, sanitizer: str = "") -> ModuleType:
    """The module, loaded."""
    path = build(package, sanitizer)
    name = f"emulated_{package.replace('-', '_')}._cuda"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Library:
    """The functions of a .cu file of this folder; each works on an array of 32-bit values."""

    def __init__(self, source: str, sanitizer: str = "") -> None:
        self.loaded = ctypes.CDLL(str(build_library(source, sanitizer)))
        self.loaded.run_by_name.restype = ctypes.c_char_p

    def run(self, name: str, data: np.ndarray, grid: int = 1, block: int = 64) -> None:
        """Calls ``name`` on ``data`` (int32 or float32), in place.

        Raises:
            RuntimeError: with what the emulation says.
        """
        where = ctypes.c_void_p(data.ctypes.data)
        error = self.loaded.run_by_name(name.encode(), grid, block, where, data.size)
        if error:
            raise RuntimeError(error.decode())

    def set_order(self, order: int) -> None:
        """As `set_order` for a package."""
        self.loaded.emulation_set_order(order)


def set_order(package: str, order: int, sanitizer: str = "") -> None:
    """The order in which the threads of a block run: 0 by index, 1 reversed, else shuffled."""
    ctypes.CDLL(str(build(package, sanitizer))).emulation_set_order(order)
