"""Builds the CUDA kernels of a package as C++ against the emulated GPU, and loads them.

The result has the functions of the package's ``_cuda`` module and takes addresses in main memory.
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
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import nanobind

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


def _key(package: Path, flags: Iterable[str]) -> str:
    """A hash of everything that the build depends on."""
    total = hashlib.sha256(" ".join(flags).encode())
    for folder in (package / "src", package / "include", COMMON, HERE):
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".cu", ".cuh", ".h", ".cpp"):
                total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()[:16]


def _compile(command: list[str], log: Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    log.write_text(done.stdout + done.stderr)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-6000:]}")


def build(package: str, sanitizer: str = "") -> Path:
    """The extension module of ``submodules/<package>``, built unless it is up to date.

    Args:
        sanitizer: ``address``, ``thread``, ``undefined``, or nothing.
    """
    folder = ROOT / "submodules" / package
    extra = [f"-fsanitize={sanitizer}", "-fno-omit-frame-pointer"] if sanitizer else []
    flags = [*FLAGS, *includes(folder)]
    key = _key(folder, [compiler(), *FLAGS, *STRICT, *extra])
    target = BUILD / f"{package}-{sanitizer or 'plain'}-{key}"
    module = target / "_cuda.so"
    target.mkdir(parents=True, exist_ok=True)
    with (target / "lock").open("w") as lock:  # several test processes want it at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not module.exists():
            _build(folder, flags, extra, target, module)
    return module


def _build(folder: Path, flags: list[str], extra: list[str], target: Path, module: Path) -> None:
    nanobind_source = Path(nanobind.source_dir()) / "nb_combined.cpp"
    # Only what is under test is instrumented; the scheduler tells the sanitizers what it does.
    units = [(path, [*extra, *STRICT]) for path in sources(folder)]
    units += [(HERE / "emulation.cpp", STRICT), (nanobind_source, ["-O1", "-g0"])]
    objects, commands = [], []
    for path, more in units:
        result = target / f"{path.stem}.o"
        commands.append(
            ([compiler(), *flags, *more, "-x", "c++", "-c", str(path), "-o", str(result)], result)
        )
        objects.append(str(result))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda c: _compile(c[0], c[1].with_suffix(".log")), commands))
    unfinished = module.with_suffix(".part")
    link = [compiler(), "-shared", "-pthread", *extra, *objects, "-o", str(unfinished)]
    _compile(link, target / "link.log")
    unfinished.rename(module)


@lru_cache
def load(package: str, sanitizer: str = "") -> ModuleType:
    """The module, loaded."""
    path = build(package, sanitizer)
    name = f"emulated_{package.replace('-', '_')}._cuda"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def set_order(package: str, order: int, sanitizer: str = "") -> None:
    """The order in which the threads of a block run: 0 by index, 1 reversed, else shuffled."""
    ctypes.CDLL(str(build(package, sanitizer))).emulation_set_order(order)
