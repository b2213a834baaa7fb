"""What the compiler makes of the CUDA kernels: registers, spills, memory of each, in docs/cuda.md.

    python benchmarks/ptxas_report.py                            # writes the table
    python benchmarks/ptxas_report.py --check                    # exit code 1 where a kernel spills
    python benchmarks/ptxas_report.py --check --allow slow_kernel --architectures sm_75 sm_100

Compiles every submodules/*/src/*.cu for each architecture with nvcc, which needs no GPU, and reads
what ptxas says of it. Nothing is linked or kept. Kernels of CUB are left out.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.errors import UserError, brief, cli
from utils.files import atomic_file

ROOT = Path(__file__).resolve().parents[1]
SUBMODULES = ROOT / "submodules"
DOCUMENT = ROOT / "docs" / "cuda.md"
INTRODUCTION = """# CUDA

What the CUDA kernels of this toolkit ask of a GPU.
"""
BEGIN, END = "<!-- ptxas: begin -->", "<!-- ptxas: end -->"
FOREIGN = ("cub::", "thrust::")  # namespaces of kernels that are not ours

_ENTRY = re.compile(r"Compiling entry function '([^']+)' for '(\w+)'")
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+)(?:\+\d+)? bytes smem")
_OWN_OPTIONS = re.compile(
    r"set_source_files_properties\(\s*src/(\S+\.cu)\s+PROPERTIES\s+COMPILE_OPTIONS\s+\"?([^\")]+)"
)


@dataclass
class Kernel:
    """One kernel, compiled for one architecture. Sizes are bytes."""

    mangled: str
    architecture: str
    registers: int = 0
    spill_stores: int = 0  # of the kernel and of the functions in it that are not inlined
    spill_loads: int = 0
    shared: int = 0  # static
    stack: int = 0
    source: str = ""  # package/file
    name: str = ""  # short, with template arguments

    @property
    def spills(self) -> bool:
        return self.spill_stores + self.spill_loads > 0


def parse_ptxas(text: str) -> list[Kernel]:
    """The kernels in what ``nvcc -Xptxas -v`` says, by their mangled names."""
    kernels: list[Kernel] = []
    for line in text.splitlines():
        if entry := _ENTRY.search(line):
            kernels.append(Kernel(*entry.groups()))
        elif not kernels:
            continue
        elif frame := _FRAME.search(line):
            stack, stores, loads = (int(size) for size in frame.groups())
            kernels[-1].stack = max(kernels[-1].stack, stack)
            kernels[-1].spill_stores += stores
            kernels[-1].spill_loads += loads
        elif registers := _REGISTERS.search(line):
            kernels[-1].registers = int(registers[1])
            shared = _SHARED.search(line)
            kernels[-1].shared = int(shared[1]) if shared else 0
    return kernels


def is_foreign(signature: str) -> bool:
    """Whether a demangled kernel comes from a library."""
    return _qualified(signature).startswith(FOREIGN)


def short_name(signature: str) -> str:
    """``void a::f<b::T, 2>(int*)`` as ``f<T, 2>``."""
    return re.sub(r"\b[A-Za-z_]\w*::", "", _qualified(signature)).replace("> >", ">>")


def _qualified(signature: str) -> str:
    """A demangled signature without its return type and parameters."""
    text = signature.replace("(anonymous namespace)::", "")
    depth, start = 0, 0
    for i, character in enumerate(text):
        depth += (character == "<") - (character == ">")
        if depth == 0 and character == " ":
            start = i + 1  # what came before is the return type
        elif depth == 0 and character == "(":
            return text[start:i]
    return text[start:]


def demangle(names: Sequence[str]) -> list[str]:
    """The names as C++ writes them."""
    command = [_tool("c++filt", "it comes with binutils")]
    done = subprocess.run(
        command, input="\n".join(names), capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def _tool(name: str, advice: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise UserError(f"{name} is not on the PATH: {advice}")
    return found


def own_options(package: Path, source: Path) -> list[str]:
    """The compiler options that the package's CMakeLists.txt gives to this file alone."""
    options = dict(_OWN_OPTIONS.findall((package / "CMakeLists.txt").read_text(encoding="utf-8")))
    return options.get(source.name, "").replace(";", " ").split()


def compile_kernels(nvcc: str, source: Path, architecture: str) -> list[Kernel]:
    """The kernels of one file, compiled for one architecture."""
    package = source.parent.parent
    folders = [SUBMODULES / "common" / "include", package / "include", package / "src"]
    with tempfile.TemporaryDirectory() as temporary:
        command = [nvcc, "-std=c++17", "-lineinfo", f"-arch={architecture}", "-Xptxas", "-v"]
        command += [flag for folder in folders for flag in ("-I", str(folder))]
        command += own_options(package, source)
        command += ["-cubin", str(source), "-o", str(Path(temporary) / "kernels.cubin")]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{source}: nvcc fails for {architecture}: {brief(done.stderr, 600)}")
    kernels = parse_ptxas(done.stdout + done.stderr)
    signatures = demangle([kernel.mangled for kernel in kernels])
    for kernel, signature in zip(kernels, signatures, strict=True):
        kernel.source, kernel.name = f"{package.name}/{source.name}", short_name(signature)
    ours = zip(kernels, signatures, strict=True)
    return [kernel for kernel, signature in ours if not is_foreign(signature)]


def compile_all(nvcc: str, architectures: Sequence[str], jobs: int) -> list[Kernel]:
    """The kernels of all packages, in the order of the table."""
    cases = [
        (source, architecture)
        for source in sorted(SUBMODULES.glob("*/src/*.cu"))
        for architecture in architectures
    ]
    with ThreadPoolExecutor(jobs) as pool:
        found = pool.map(lambda case: compile_kernels(nvcc, *case), cases)
        kernels = [kernel for part in found for kernel in part]
    places = {name: place for place, name in enumerate(architectures)}
    return sorted(kernels, key=lambda k: (k.source, k.name, places[k.architecture]))


def nvcc_release(nvcc: str) -> str:
    """``13.0`` or the like."""
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release ([\d.]+)", said)
    if release is None:
        raise UserError(f"{nvcc} --version says no release: {brief(said)}")
    return release[1]


def table(kernels: Iterable[Kernel]) -> str:
    """The kernels as a Markdown table."""
    lines = [
        "| source | kernel | for | registers | spills: stores / loads, B | shared, B | stack, B |",
        "|---|---|---|--:|--:|--:|--:|",
    ]
    for k in kernels:
        lines.append(
            f"| {k.source} | `{k.name}` | {k.architecture} | {k.registers} "
            f"| {k.spill_stores} / {k.spill_loads} | {k.shared} | {k.stack} |"
        )
    return "\n".join(lines)


def with_section(document: str, section: str) -> str:
    """The document with ``section`` between its two markers.

    Raises:
        UserError: it has not one of each, in order.
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise UserError(f"the document must have one line '{BEGIN}' and, after it, one '{END}'")
    return f"{before}{BEGIN}\n{section}\n{END}{after}"


def write_section(path: Path, section: str) -> None:
    """Puts the section into the file, which is made where it is not there."""
    text = f"{INTRODUCTION}\n{BEGIN}\n{END}\n"
    if path.exists():
        text = path.read_text(encoding="utf-8")
    try:
        text = with_section(text, section)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def spilling(kernels: Iterable[Kernel], allowed: Sequence[str]) -> list[Kernel]:
    """Those that spill, but for kernels allowed by name, with or without template arguments."""
    return [
        kernel
        for kernel in kernels
        if kernel.spills and kernel.name not in allowed and kernel.name.split("<")[0] not in allowed
    ]


def check(kernels: Sequence[Kernel], allowed: Sequence[str]) -> int:
    """Lists the kernels that spill; the exit code."""
    found = spilling(kernels, allowed)
    for k in found:
        print(
            f"{k.source}: {k.name} spills on {k.architecture}: {k.spill_stores} bytes of stores, "
            f"{k.spill_loads} of loads ({k.registers} registers)"
        )
    print(f"{len(kernels)} kernels compiled, {len(found)} spill that are not allowed to")
    return 1 if found else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--architectures",
        nargs="+",
        default=["sm_80", "sm_90"],
        metavar="SM",
        help="GPU architectures to compile for (default: sm_80 sm_90)",
    )
    parser.add_argument("--jobs", type=int, default=2, help="files compiled at a time (default: 2)")
    parser.add_argument(
        "--output", type=Path, default=DOCUMENT, help="Markdown file (default: docs/cuda.md)"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; list the kernels that spill and exit with code 1 if there are any",
    )
    parser.add_argument(
        "--allow",
        nargs="+",
        default=[],
        metavar="KERNEL",
        help="with --check: kernels that may spill, by name, with template arguments or without",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Compiles, then writes the table or checks; the exit code."""
    arguments = parse(argv)
    if arguments.jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {arguments.jobs}")
    for name in arguments.architectures:
        if not re.fullmatch(r"sm_\d+[af]?", name):
            raise UserError(f"--architectures: '{name}' is not like sm_80")
    nvcc = _tool("nvcc", "install the CUDA toolkit")
    kernels = compile_all(nvcc, list(dict.fromkeys(arguments.architectures)), arguments.jobs)
    if arguments.check:
        return check(kernels, arguments.allow)
    said = f"Written by `python benchmarks/ptxas_report.py`, nvcc {nvcc_release(nvcc)}."
    write_section(arguments.output, f"{said}\n\n{table(kernels)}")
    print(f"{arguments.output}: {len(kernels)} kernels")
    return 0


if __name__ == "__main__":
    cli(main)
