"""Trainers killed with SIGKILL at random instants, in the middle of saves too, and resumed.

    PYTHONPATH=.:tests/scene/datasets python tests/training/kills.py --kills 50

A run of some two dozen iterations that saves after each one is started, killed, resumed and killed
again until it ends; then the next one, until there have been so many kills. A kill comes at a
random time, or at a random one of the changes that the run makes to its folder (a file opened for
writing, a rename, a removal). It must not cost more than the steps since the last save, and every
run must end in the same bits as one that is left alone. Prints JSON; exit code 1 if one does not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import builders

import train_emb
import train_hash
from training.checkpoint import checkpoints, latest_checkpoint
from training.trainer import Trainer

COMMANDS = {"emb": train_emb.main, "hash": train_hash.main}
RECIPE = """
ModelParams = dict(sh_degree=1, seed=3)
OptimizationParams = dict(
    coarse_iterations=9, iterations=15, batch_size=2, lambda_dssim=0.1, gaiting_from_iter=5,
    densify_from_iter=2, densification_interval=4, pruning_from_iter=2, pruning_interval=3,
    prune_min_gaussians=0, max_gaussians=400, opacity_reset_interval=6, max_world_scale=0.3,
    densify_grad_threshold_coarse=1e-6, densify_grad_threshold_fine_init=1e-6,
    densify_grad_threshold_after=1e-6,
)
ModelHiddenParams = dict(
    kplanes_config={"output_coordinate_dim": 4, "resolution": [6, 6, 6, 4]}, multires=[1],
    net_width=8,
)
ModelEmbParams = dict(emb_net_width=8, emb_temporal_embedding_dim=16)
ModelHashParams = dict(
    grid_args=dict(canonical_num_levels=4, canonical_desired_resolution=64,
                   canonical_log2_hashmap_size=8, deform_num_levels=4, deform_log2_hashmap_size=8),
    network_args=dict(depth=1, width=8),
)
"""
FLAGS = ["--device", "cpu", "--threads", "1", "--quiet", "--save_iterations", "8"]
FLAGS += ["--test_iterations", "6", "--checkpoint_minutes", "1e-9", "--max_points", "150"]
FINAL = ("iteration_8", "iteration_15")
WATCHED = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod")
ENDED, KILLED = 0, -signal.SIGKILL


def scene(folder: Path) -> Path:
    """Writes a scene of 4 cameras and 3 frames of 24 x 16, and the recipe."""
    builders.n3v_scene(folder / "scene", cameras=4, frames=3, layout="images", size=(24, 16))
    (folder / "recipe.py").write_text(RECIPE)
    return folder


@dataclass
class Attempt:
    """How a process fared."""

    code: int
    seconds: float
    changes: int = 0  # that it made to the run folder; 0 if it was killed
    began: str | None = None  # the checkpoint that it went on from
    saved: list[str] = field(default_factory=list)  # those that it completed


def attempt(
    family: str,
    folder: Path,
    out: Path,
    *,
    after: float | None = None,
    at_change: int | None = None,
) -> Attempt:
    """Trains in a process of its own, which is killed.

    Args:
        after: seconds after which it is killed.
        at_change: the number of the change to its folder before which it is.
    """
    reading, writing = os.pipe()
    started = time.monotonic()
    child = os.fork()  # torch is loaded already: a new interpreter would take seconds
    if child == 0:
        os.close(reading)
        _train(family, folder, out, at_change, lambda text: os.write(writing, f"{text}\n".encode()))
    os.close(writing)
    status = _wait(child, started, after)
    with os.fdopen(reading) as pipe:
        lines = [line.split() for line in pipe.read().splitlines()]
    made = Attempt(os.waitstatus_to_exitcode(status), time.monotonic() - started)
    for word, value in lines:
        if word == "saved":
            made.saved.append(value)
        elif word == "began":
            made.began = value
        else:
            made.changes = int(value)
    return made


def _wait(child: int, started: float, after: float | None) -> int:
    while after is not None and time.monotonic() - started < after:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.001)
    if after is not None:
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def _train(
    family: str, folder: Path, out: Path, at_change: int | None, tell: Callable[[str], object]
) -> None:
    """The child: never returns."""
    code = 1
    try:
        log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        counter = _count_changes(out, at_change)
        _tell_of_checkpoints(tell)
        arguments = ["-s", str(folder / "scene"), "--expname", str(out), *FLAGS]
        arguments += ["--configs", str(folder / "recipe.py")]
        arguments += ["--resume"] if (out / "config.json").exists() else []
        code = COMMANDS[family](arguments)
        tell(f"changes {counter[0]}")
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _count_changes(out: Path, at_change: int | None) -> list[int]:
    count, prefix = [0], str(out)

    def heed(event: str, details: tuple) -> None:
        if event not in WATCHED or not str(details[0]).startswith(prefix):
            return
        if event == "open" and not _writes(details):
            return
        count[0] += 1
        if count[0] == at_change:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(heed)
    return count


def _writes(details: tuple) -> bool:
    _, mode, flags = details
    changing = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    return any(c in mode for c in "wax+") if isinstance(mode, str) else bool(flags & changing)


def _tell_of_checkpoints(tell: Callable[[str], object]) -> None:
    save, restore = Trainer.save_checkpoint, Trainer.restore

    def saves(self):
        folder = save(self)
        tell(f"saved {folder.name}")
        return folder

    def restores(self, tensors, info):
        restore(self, tensors, info)
        tell(f"began {self.progress.stage}_{self.progress.iteration}")

    Trainer.save_checkpoint, Trainer.restore = saves, restores


def results(out: Path) -> dict[str, object]:
    """What must be the same however often a run was interrupted."""
    found: dict[str, object] = {}
    for name in FINAL:
        for file in ("point_cloud.ply", "model.safetensors"):
            found[f"{name}/{file}"] = (out / "point_cloud" / name / file).read_bytes()
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found["metrics.jsonl"] = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    found["files"] = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if _counts(p))
    return found


def _counts(path: Path) -> bool:
    return path.is_file() and "tfevents" not in path.name


def _order(name: str) -> tuple[bool, int]:
    stage, number = name.split("_")
    return stage == "fine", int(number)


@dataclass
class Count:
    """What the kills came to."""

    kills: int = 0
    runs: int = 0
    resumed: int = 0  # kills after which a process went on from the last save, or a later one
    before_a_save: int = 0  # of them, those that came before there was one
    after_the_end: int = 0  # of them, those after which nothing was left to do
    in_saves: int = 0  # kills that left something half written behind
    faults: list[str] = field(default_factory=list)


def drive(
    folder: Path, kills: int, seed: int, families: tuple[str, ...] = ("emb", "hash")
) -> Count:
    """Kills trainers ``kills`` times."""
    rng, count = random.Random(seed), Count()
    scene(folder)
    whole = {}
    for family in families:
        alone = attempt(family, folder, folder / f"{family}_alone")
        if alone.code != ENDED:
            raise RuntimeError((folder / f"{family}_alone.log").read_text())
        whole[family] = (alone, results(folder / f"{family}_alone"))
    while count.kills < kills:
        family = families[count.runs % len(families)]
        _one_run(rng, count, kills, family, folder, *whole[family])
        count.runs += 1
    return count


def _one_run(
    rng: random.Random,
    count: Count,
    kills: int,
    family: str,
    folder: Path,
    alone: Attempt,
    expected: dict[str, object],
) -> None:
    """A run that is killed and resumed until it ends, which it may once there were enough kills."""
    out = folder / f"{family}_{count.runs}"
    reached: str | None = None  # the furthest checkpoint that a process completed
    pending = 0  # kills since a process last got to work
    while True:
        how: dict[str, float] = {}
        if count.kills < kills:
            how = {"after": rng.uniform(0, 1.05 * alone.seconds)}
            if rng.random() < 0.5:
                how = {"at_change": rng.randint(1, alone.changes)}
        made = attempt(family, folder, out, **how)
        if made.began or made.saved:
            if reached and (made.began is None or _order(made.began) < _order(reached)):
                count.faults.append(f"{out.name}: {reached} was saved, began at {made.began}")
            count.resumed += pending
            count.before_a_save += pending if made.began is None else 0
            pending = 0
        if made.code == ENDED:
            count.resumed, count.after_the_end = (
                count.resumed + pending,
                count.after_the_end + pending,
            )
            break
        if made.code != KILLED:
            count.faults.append(f"{out.name}: exit code {made.code}: {_last_line(out)}")
            return
        reached = made.saved[-1] if made.saved else reached
        count.kills, pending = count.kills + 1, pending + 1
        count.in_saves += any(".partial-" in str(p) or ".aside-" in str(p) for p in out.rglob("*"))
        if reached:
            _check_folder(out, reached, count)
    got = results(out)
    different = [name for name in expected if expected[name] != got[name]]
    if different:
        count.faults.append(f"{out.name} differs in {different} from a run left alone")


def _check_folder(out: Path, reached: str, count: Count) -> None:
    """The checkpoints on the disk right after a kill: all whole, the last one at least as far."""
    latest = latest_checkpoint(out)
    if latest is None or _order(latest.name) < _order(reached):
        count.faults.append(f"{out.name}: {reached} had been saved, {latest} is the last")
    elif latest != checkpoints(out)[-1]:
        count.faults.append(f"{out.name}: {checkpoints(out)[-1]} is damaged")


def _last_line(out: Path) -> str:
    lines = out.with_suffix(".log").read_text().strip().splitlines()
    return lines[-1] if lines else "nothing said"


def main() -> int:
    """Drives, prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="how often to kill")
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        count = drive(Path(folder), options.kills, options.seed)
    print(json.dumps(vars(count) | {"seconds": round(time.monotonic() - started, 1)}, indent=2))
    return 1 if count.faults else 0


if __name__ == "__main__":
    sys.exit(main())
