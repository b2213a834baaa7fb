"""The stages of `benchmarks/gpu_check.py`: what is run, in which order, within which limits."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.check import environment, result_lines
from benchmarks.check.results import (
    compare_demos,
    read_demo,
    read_sanitizer,
    read_tests,
    read_wheels,
)
from benchmarks.check.stages import FAILED, NOT_DONE, Stage, files_of, no_results

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "benchmarks"
TEST_WORKERS = 8
CPU_TRAINING_THREADS = 2


@dataclass(frozen=True)
class Benchmark:
    """A program of this folder that takes --device and prints one JSON object."""

    script: str
    arguments: tuple[str, ...] = ()
    tiny: tuple[str, ...] = ()  # further arguments of a dry run
    garden: bool = False  # needs the file of the garden


# A clip of Neural 3D Video at the size that is usual for it, and one for a dry run.
N3V_CLIP = tuple("--cameras 20 --frames 300 --size 1352 1014 --gaussians 150000".split())
TINY_CLIP = tuple("--cameras 3 --frames 4 --size 64 48 --gaussians 500".split())

BENCHMARKS = {
    "rasterizer-garden": Benchmark(
        "rasterizer_garden.py", (), ("--runs", "1", "--count", "2000"), garden=True
    ),
    "rasterizer-n3v": Benchmark(
        "rasterizer_garden.py",
        ("--scene", "n3v", "--size", "1352x1014"),
        ("--runs", "1", "--count", "2000", "--size", "96x64"),
    ),
    "single-pass": Benchmark("single_pass.py", (), ("--repeats", "1", "--case", "demo")),
    "train": Benchmark(
        "train_n3v_sized.py",
        (*N3V_CLIP, "--batch", "2", "--iterations", "200"),
        (*TINY_CLIP, "--iterations", "2"),
    ),
    "render": Benchmark("render_n3v_sized.py", N3V_CLIP, (*TINY_CLIP, "--seconds", "0.5")),
    "hexplane": Benchmark("hexplane.py", (), ("--repeats", "1")),
    "hash-grid": Benchmark("hash_grid.py", (), ("--repeats", "1")),
    "knn": Benchmark("knn.py", (), ("--repeats", "1", "--points", "2000")),
    "ssim": Benchmark("ssim.py", (), ("--repeats", "1", "--width", "64", "--height", "48")),
}
NOT_FOR_A_DEVICE = {  # programs of this folder that the table leaves out, and why
    "mixture.py": "hours of training: quality, not speed",
    "top_k.py": "needs a trained run",
    "frame_loader.py": "decodes on the CPU",
}
USED_OTHERWISE = {  # and those that other stages run, or that are no benchmarks
    "gpu_check.py": "the check itself",
    "compare.py": "compares results",
    "scenes.py": "the scenes",
    "clock.py": "the clock",
    "timing.py": "the clock of the encoders' benchmarks",
    "light.py": "what the machine can do",
    "rasterizer_light.py": "what the rasteriser has to do",
    "cpu_all.py": "runs the others on a CPU",
    "n3v_sized.py": "what training and rendering are timed on",
    "ptxas_report.py": "needs no GPU",
    "exercise_operators.py": "sanitize",
    "device_agreement.py": "agreement",
    "rasterizer_gsplat.py": "gsplat",
    "rasterizer_profile.py": "profile",
}
GSPLAT_CASES = {  # name -> arguments, and whether they need the file of the garden
    "garden-648x420": (("--scene", "garden", "--size", "648x420"), True),
    "garden-1296x840": (("--scene", "garden", "--size", "1296x840"), True),
    "n3v-1352x1014": (("--scene", "n3v", "--size", "1352x1014"), False),
}
SANITIZERS = {"memcheck": 200.0, "racecheck": 200.0, "synccheck": 60.0, "initcheck": 60.0}


class Plan:
    """The stages, for a device, its files and folders."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.work, self.device = args, args.work.resolve(), args.device
        self.on_gpu = self.device == "cuda"
        self.venv = self.work / "venv"
        self.python = str(self.venv / "bin" / "python")
        self.garden = args.garden or garden_file(args.data)
        self.environment = self._environment()

    def _environment(self) -> dict[str, str]:
        """Of all stages."""
        cores = len(os.sched_getaffinity(0))
        found = {
            "PATH": os.pathsep.join([str(self.venv / "bin"), environment.search_path()]),
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])
            ),
            "PYTHONUNBUFFERED": "1",
            "NATIVE_WERROR": "ON",
            "NATIVE_CUDA": "ON" if self.on_gpu else "OFF",
            "CMAKE_BUILD_PARALLEL_LEVEL": str(max(2, cores // 4)),
            "TORCH_EXTENSIONS_DIR": str(self.work / "extensions"),
            "MAX_JOBS": str(max(2, cores)),
        }
        if self.args.data:
            found["MOEGS_TEST_DATA"] = str(self.args.data.resolve())
        if self.args.capability:
            found["TORCH_CUDA_ARCH_LIST"] = self.args.capability
        return found

    def _script(self, name: str, *arguments: str) -> tuple[str, ...]:
        return (self.python, str(HERE / name), *arguments)

    def _no_garden(self) -> str:
        return "" if self.garden else "no garden.npz: name its folder with --data, or --garden FILE"

    def stages(self) -> list[Stage]:
        """All of them, in order of importance."""
        groups = [
            self._environment_stages(),
            self._gsplat_build(),
            self._builds(),
            [self._demo("cpu")],
            [self._sanitizer(tool, beside=True) for tool in ("memcheck", "racecheck")],
            [self._tests("gpu", "gpu", 200.0)],
            [self._agreement()],
            self._timed(),
            [self._sanitizer(tool) for tool in ("synccheck", "initcheck")],
            [self._tests("rest", "not gpu and not slow", 300.0)],
            [self._tests("slow", "not gpu and slow", 300.0)] if self.on_gpu else [],
        ]
        return [
            replace(stage, environment={**self.environment, **stage.environment})
            for group in groups
            for stage in group
        ]

    def _timed(self) -> list[Stage]:
        """What is timed runs when nothing else does, but for the demo's training on two cores."""
        demo = [self._demo("cuda"), self._demo_comparison()] if self.on_gpu else []
        found = [*demo, *self._gsplat_cases(), *self._benchmarks(), self._profile()]
        return [replace(stage, uses=self.built, waits=self.noise) for stage in found]

    # ---- what everything stands on

    def _environment_stages(self) -> list[Stage]:
        command = [sys.executable, str(HERE / "check" / "environment.py"), str(self.venv)]
        command += ["--device", self.device]
        if not self.args.wheels:
            return [Stage("machine", (tuple(command),), 60.0)]
        command += ["--wheels", str(self.args.wheels)]
        machine = files_of("machine", self.work)
        return [
            Stage("machine", (tuple(command),), 60.0),
            Stage("wheels", (), read=partial(read_wheels, machine), needs=("machine",)),
        ]

    def _builds(self) -> list[Stage]:
        """A stage for each native package, all at once."""
        folders = sorted(p.parent for p in (ROOT / "submodules").glob("*/pyproject.toml"))
        pip = "-m pip install -v --no-index --no-deps --no-build-isolation -e".split()
        nanobind = "import nanobind; print('-Dnanobind_DIR=' + nanobind.cmake_dir())"
        shell = f'CMAKE_ARGS="$("$0" -c "{nanobind}")" exec "$0" "$@"'
        return [
            Stage(
                f"build:{folder.name}",
                (("sh", "-c", shell, self.python, *pip, str(folder)),),
                300.0,
                no_results,
                needs=("machine",),
                background=True,
            )
            for folder in folders
        ]

    @property
    def built(self) -> tuple[str, ...]:
        """The names of the stages that build."""
        return tuple(stage.name for stage in self._builds())

    @property
    def noise(self) -> tuple[str, ...]:
        """The names of the other stages that run beside some and disturb what is timed."""
        return ("gsplat:build", "sanitize:memcheck", "sanitize:racecheck")

    # ---- tests

    def _tests(self, name: str, marks: str, limit: float) -> Stage:
        """The tests with these marks; in a dry run those of one package."""
        results = self.work / f"tests_{name}.jsonl"
        command = [self.python, *"-m pytest -q -p benchmarks.check.result_lines".split()]
        command += ["-m", marks, *"-p no:cacheprovider --continue-on-collection-errors".split()]
        command += ["--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")]
        if self._has("pytest-xdist") and self.on_gpu:
            command += ["-n", str(TEST_WORKERS)]
        if not self._has("pytest-timeout"):  # its setting would be an unknown one
            command += ["-o", "addopts=--import-mode=importlib --strict-markers"]
        few = ROOT / "tests" / "submodules" / "test_hexplane_encoder.py"
        command.append(str(ROOT / "tests" if self.on_gpu else few))
        return Stage(
            f"tests:{name}",
            (tuple(command),),
            limit,
            partial(read_tests, results, self.on_gpu and name == "gpu"),
            codes=(0, 1),  # what 1 means, `read_tests` tells from the tests
            needs=("machine",),
            # the other tests go last: started while something compiles, they would take the time
            # of what is waiting for that
            waits=() if name == "gpu" else tuple(stage.name for stage in self._timed()),
            uses=self.built,
            optional=name != "gpu",
            environment={result_lines.VARIABLE: str(results), "OMP_NUM_THREADS": "1"},
        )

    def _has(self, package: str) -> bool:
        return has(package, self.args.wheels)

    # ---- right results

    def _agreement(self) -> Stage:
        command = self._script("device_agreement.py", "--device", self.device)
        if self.garden:
            command += ("--data", str(self.garden))
        if not self.on_gpu:
            command += ("--count", "2000")
        return Stage("agreement", (command,), 60.0, needs=("machine",), uses=self.built)

    def _demo(self, device: str) -> Stage:
        """Trains the demo and renders its held-out camera."""
        run = self._demo_run(device)
        train = [self.python, str(ROOT / "train_emb.py"), "-s", str(self.args.demo)]
        train += ["--configs", str(ROOT / "arguments_MoDE" / "demo" / "demo.py")]
        train += ["--expname", str(run), "--device", device, "--overwrite", "--quiet"]
        if device == "cpu":
            train += ["--threads", str(CPU_TRAINING_THREADS)]
        if not self.on_gpu:
            train += ["--iterations", "6", "--coarse_iterations", "4"]
        render = [self.python, str(ROOT / "render_emb.py"), "--model_path", str(run)]
        render += ["--skip_train", "--skip_video", "--device", device, "--quiet"]
        decodes = self._has("av") or not any(self.args.demo.glob("*.mp4"))
        return Stage(
            f"demo:{device}",
            (tuple(train), tuple(render)),
            400.0 if device == "cpu" else 90.0,
            partial(read_demo, run),
            needs=("machine",),
            uses=self.built,
            background=device == "cpu",
            absent="" if decodes else "PyAV is missing, which decodes the demo's videos: --wheels",
        )

    def _demo_run(self, device: str) -> Path:
        return self.work / f"demo_{device}"

    def _demo_comparison(self) -> Stage:
        runs = self._demo_run("cpu"), self._demo_run("cuda")
        read = partial(compare_demos, *runs)
        return Stage("demo:comparison", (), 5.0, read, needs=("demo:cpu", "demo:cuda"))

    def _sanitizer(self, tool: str, beside: bool = False) -> Stage:
        exercise = self._script("exercise_operators.py", "--device", self.device)
        found = self.work / f"{tool}.txt"
        command, absent = exercise, ""
        if self.on_gpu:
            sanitizer = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "86")
            command = (*sanitizer, "--log-file", str(found), *exercise)
            if not shutil.which("compute-sanitizer", path=environment.search_path()):
                absent = "there is no compute-sanitizer"
        return Stage(
            f"sanitize:{tool}",
            (command,),
            SANITIZERS[tool],
            partial(read_sanitizer, found if self.on_gpu else None),
            needs=("machine",),
            uses=self.built,
            background=beside and self.on_gpu,
            environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            absent=absent,
        )

    # ---- speed

    def _gsplat_build(self) -> list[Stage]:
        """gsplat compiles itself on first use, beside other stages."""
        code = "from gsplat.cuda._backend import _C; assert _C is not None, 'gsplat did not build'"
        absent = "" if self.on_gpu else "gsplat has no CPU path"
        if not absent and not self._has("gsplat"):
            absent = "gsplat is missing: --wheels"
        build = Stage(
            "gsplat:build",
            ((self.python, "-c", code),),
            300.0,
            no_results,
            needs=("machine",),
            background=True,
            theirs=True,
            absent=absent,
        )
        return [build]

    def _gsplat_cases(self) -> list[Stage]:
        found = []
        for name, (arguments, garden) in GSPLAT_CASES.items():
            data = ("--data", str(self.garden)) if garden else ()
            command = self._script("rasterizer_gsplat.py", *arguments, *data)
            found.append(
                Stage(
                    f"gsplat:{name}",
                    (command,),
                    60.0,
                    needs=("machine", "gsplat:build"),
                    absent=self._no_garden() if garden else "",
                )
            )
        return found

    def _benchmarks(self) -> list[Stage]:
        return [self._benchmark(name, benchmark) for name, benchmark in BENCHMARKS.items()]

    def _benchmark(self, name: str, benchmark: Benchmark) -> Stage:
        data = ("--data", str(self.garden)) if benchmark.garden else ()
        arguments = (*benchmark.arguments, *data, "--device", self.device)
        tiny = () if self.on_gpu else benchmark.tiny
        missing = missing_script(HERE / benchmark.script)
        return Stage(
            f"bench:{name}",
            (self._script(benchmark.script, *arguments, *tiny),),
            60.0 if self.on_gpu else 180.0,  # a CPU takes long over the plain PyTorch twins
            needs=("machine",),
            absent=missing or (self._no_garden() if benchmark.garden else ""),
            absent_status=FAILED if missing else NOT_DONE,
        )

    def _profile(self) -> Stage:
        tiny = () if self.on_gpu else ("--count", "2000", "--size", "96x64", "--runs", "1")
        command = self._script("rasterizer_profile.py", "--device", self.device, *tiny)
        return Stage("profile", (command,), 40.0, needs=("machine",))


def has(package: str, wheels: Path | None) -> bool:
    """Whether a package is installed, or is among the wheels."""
    stem = package.replace("-", "_")
    return installed(package) or (wheels is not None and any(wheels.glob(f"{stem}-*.whl")))


def installed(package: str) -> bool:
    """Whether the running Python has a package."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def garden_file(data: Path | None) -> Path | None:
    """The garden in the folder of test data: the one named, or one beside or in the checkout."""
    folders = [data] if data else [ROOT.parent / "shared" / "data", ROOT / "shared" / "data"]
    paths = (folder / "rasterizer" / "garden.npz" for folder in folders)
    return next((path for path in paths if path.is_file()), None)


def missing_script(path: Path) -> str:
    """Why a benchmark of the table cannot run; nothing if it can."""
    name = path.relative_to(ROOT)
    if not path.is_file():
        return f"missing: there is no {name}"
    known = "--device" in path.read_text() or "add_arguments(" in path.read_text()
    return "" if known else f"missing: {name} has no --device"
