"""A virtual environment for a check, beside the one that runs it, and what the machine has.

    python benchmarks/check/environment.py FOLDER [--wheels FOLDER] [--device cuda|cpu]

It sees all packages of the running Python but has none of its editable installs, so that native
packages that are built into it are those of this checkout. Nothing is fetched: wheels come from a
folder. Prints one JSON object: versions, the GPU, and what is missing, one line each.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

REQUIRED = {  # package -> what cannot be done without it
    "torch": "everything",
    "numpy": "everything",
    "scikit-build-core": "building",
    "nanobind": "building and the emulated tests",
    "pytest": "the tests",
}
USEFUL = {
    "pytest-xdist": "tests run one after the other",
    "pytest-timeout": "a test that hangs is ended only with its stage",
    "hypothesis": "its tests are skipped or fail",
    "scipy": "the garden cannot be read, and no comparison with its neighbours",
    "av": "the demo's videos cannot be decoded: no training",
    "safetensors": "no training",
    "pillow": "no training",
    "tqdm": "no training",
    "gsplat": "no comparison with gsplat",
    "jaxtyping": "gsplat does not load",
    "rich": "gsplat does not load",
    "plyfile": "some tests are skipped",
    "pytorch-msssim": "some tests are skipped",
    "scikit-image": "some tests are skipped",
}
TOOLS = {  # program -> what it is for
    "cmake": "building",
    "ninja": "building, and gsplat",
    "g++": "building and the emulated tests",
    "nvcc": "building with CUDA",
    "compute-sanitizer": "looking for accesses out of bounds and races",
}
CUDA_FOLDERS = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")


def search_path() -> str:
    """PATH, with the running Python's folder before and a CUDA toolkit's usual ones after it."""
    own = str(Path(sys.executable).parent)
    return os.pathsep.join([own, os.environ.get("PATH", ""), *CUDA_FOLDERS])


def make(folder: Path) -> Path:
    """The environment's Python; the environment is made unless it is there."""
    python = folder / "bin" / "python"
    if not python.exists():
        with_pip = importlib.util.find_spec("pip") is None
        venv.EnvBuilder(with_pip=with_pip, symlinks=True).create(folder)
    own = next((folder / "lib").glob("python*/site-packages"))
    parents = [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
    (own / "parent.pth").write_text("".join(f"{path}\n" for path in parents if path != str(own)))
    return python


def install(python: Path, wheels: Path) -> dict[str, str]:
    """Installs each wheel of a folder by itself; name -> ``"ok"`` or the last line of the error."""
    found = {}
    for wheel in sorted(wheels.glob("*.whl")):
        command = [str(python), "-m", "pip", "install", "-q", "--no-index", "--no-deps", wheel]
        done = subprocess.run(command, capture_output=True, text=True)
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        found[wheel.name] = lines[-1] if done.returncode else "ok"
    return found


VERSIONS = """
import importlib.metadata, json
found = {}
for one in importlib.metadata.distributions():
    name = (one.metadata["Name"] or "").lower().replace("_", "-").replace(".", "-")
    found.setdefault(name, one.version)
print(json.dumps(found))
"""


def versions(python: Path) -> dict[str, str]:
    """Package -> version, of those that matter here and are there."""
    done = subprocess.run([str(python), "-c", VERSIONS], capture_output=True, text=True, check=True)
    everything = json.loads(done.stdout)
    return {n: everything[n] for n in (*REQUIRED, *USEFUL) if n in everything}


def first_line(command: list[str], pattern: str = ".+") -> str:
    """What matches in the output of a program; nothing where it does not run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    match = re.search(pattern, done.stdout)
    return match.group().strip() if match and not done.returncode else ""


def machine(python: Path, device: str) -> dict:
    """What there is, and under `missing` a line for everything that is not."""
    packages = versions(python)
    tools = {name: shutil.which(name, path=search_path()) for name in TOOLS}
    smi = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,compute_cap"]
    gpu = first_line([*smi, "--format=csv,noheader"])
    torch = "import torch; print(torch.version.cuda, torch.cuda.is_available())"
    missing = [
        f"{name}: {why}" for name, why in (REQUIRED | USEFUL).items() if name not in packages
    ]
    missing += [f"{name}: {why}" for name, why in TOOLS.items() if not tools[name]]
    if device == "cuda" and not gpu:
        missing.append("nvidia-smi: it does not run, or sees no GPU")
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": gpu,
        "nvcc": first_line([tools["nvcc"] or "nvcc", "--version"], r"release \S+ V\S+"),
        "torch_cuda": first_line([str(python), "-c", torch]),
        "packages": packages,
        "missing": missing,
    }


def main() -> int:
    """Prints one JSON object; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the environment is made")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to install into it")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    args = parser.parse_args()
    python = make(args.folder)
    wheels = install(python, args.wheels) if args.wheels else {}
    found = machine(python, args.device)
    for line in found["missing"]:
        print(f"missing: {line}", file=sys.stderr)
    print(json.dumps({**found, "wheels": wheels}))
    lacking = [name for name in REQUIRED if name not in found["packages"]]
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())
