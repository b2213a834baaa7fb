"""Disks that fail, signals, damage: one line, and the last good checkpoint is intact."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError

import kills
import tiny
from arguments_MoDE.cli import save_config
from training import checkpoint, launch
from training.checkpoint import (
    checkpoints,
    latest_checkpoint,
    load_run,
    load_state,
    recover,
    saved_iterations,
    set_others_aside,
)
from utils import files
from utils.errors import UserError, cli
from utils.files import sole_user

FULL = OSError(errno.ENOSPC, "No space left on device")


class FailingDisk:
    """Makes the nth call fail that changes the disk, and all calls after it."""

    def __init__(self, monkeypatch, error: Exception, *, only_once: bool = False) -> None:
        self.calls, self.fails_at, self.error, self.only_once = 0, None, error, only_once
        for name in ("fsync", "replace", "chmod", "mkdir"):
            self._wrap(monkeypatch, os, name)
        self._wrap(monkeypatch, files.tempfile, "mkstemp")
        self._wrap(monkeypatch, files.tempfile, "mkdtemp")
        self._wrap(monkeypatch, Path, "open", half=True)
        self._wrap(monkeypatch, Path, "write_text", half=True)
        self._wrap(monkeypatch, checkpoint, "save_file", half=True)

    def _wrap(self, monkeypatch, owner, name: str, half: bool = False) -> None:
        real = getattr(owner, name)

        def call(*args, **kwargs):
            if name == "open" and (args[1:] or [kwargs.get("mode", "r")])[0][0] == "r":
                return real(*args, **kwargs)
            self.calls += 1
            late = self.fails_at is not None and self.calls > self.fails_at
            if self.calls == self.fails_at or (late and not self.only_once):
                if half:
                    self._write_half(args)
                if name == "save_file":
                    raise SafetensorError(f"I/O error: {self.error}")
                raise self.error
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    @staticmethod
    def _write_half(args) -> None:
        path = next(a for a in args if isinstance(a, Path))
        with open(path, "wb") as file:
            file.write(b"\x00" * 7)


@pytest.fixture
def run(tmp_path):
    """A run with two checkpoints and two models, and its trainer, which is ready for more."""
    trainer = tiny.trainer(tmp_path / "run", checkpoint_iterations=[2, 4], save_iterations=[2, 4])
    save_config(trainer.config, tmp_path / "run" / "config.json")
    trainer._start_stage("fine")
    trainer.model.train()
    for _ in range(4):
        trainer.iterate()
        if trainer._milestones():
            trainer.save_checkpoint()
    return tmp_path / "run", trainer


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != "metrics.jsonl" and "tfevents" not in p.name
    }


@pytest.mark.parametrize("only_once", [False, True])
@pytest.mark.parametrize("what", ["checkpoint", "model", "the same again"])
def test_writes_that_fail_at_every_nth_call(run, monkeypatch, what, only_once):
    folder, trainer = run
    before = contents(folder)
    if what != "the same again":
        trainer.iterate()
    save = trainer._save if what == "model" else trainer.save_checkpoint
    failed = 0
    for n in range(1, 200):
        with monkeypatch.context() as patch:
            disk = FailingDisk(patch, FULL, only_once=only_once)
            disk.fails_at = n
            try:
                save()
            except UserError as error:
                assert "No space left" in str(error) and str(folder) in str(error), n
                failed += 1
            else:
                if disk.calls < n:
                    break
        if not only_once:  # what a failing disk does not take back, the next start does
            recover(folder)
        assert load_state(latest_checkpoint(folder))[1]["progress"]["iteration"] >= 4, n
        assert load_run(folder).iteration >= 4
        held = contents(folder)
        missing = {name.split("/")[1] for name in before if name not in held}
        assert missing <= {"fine_2"} and (not missing or "fine_5" in str(list(held))), n
        assert not list(folder.rglob(".*")), n
    assert failed > 8 and disk.calls < n


def test_metrics_that_cannot_be_written_are_one_line(run, monkeypatch):
    folder, trainer = run
    with Path("/dev/full").open("ab", buffering=0) as full:
        trainer.report.file = full
        with pytest.raises(UserError, match=r"metrics\.jsonl cannot be written .*No space left"):
            trainer._event("train", loss=1.0)


def test_a_run_folder_that_vanishes_is_made_again(run, capsys):
    """With what can be saved: nothing of the training so far need be lost."""

    folder, trainer = run
    shutil.rmtree(folder)
    folder.mkdir()
    made = trainer.save_checkpoint()
    assert latest_checkpoint(folder) == made
    assert "metrics.jsonl was gone" in capsys.readouterr().err
    trainer._event("train", loss=1.0)
    assert json.loads((folder / "metrics.jsonl").read_text())["loss"] == 1.0


def test_a_read_only_run_folder_is_one_line(run, monkeypatch):
    folder, trainer = run
    trainer.iterate()
    with monkeypatch.context() as patch:
        FailingDisk(patch, OSError(errno.EROFS, "Read-only file system")).fails_at = 1
        with pytest.raises(UserError, match="Read-only file system.*saved.* is intact"):
            trainer.save_checkpoint()
    assert latest_checkpoint(folder).name == "fine_4"


# ---- generations --------------------------------------------------------------------------------


@pytest.mark.parametrize("keep, left", [(1, [6]), (2, [5, 6]), (3, [4, 5, 6]), (0, [2, 4, 5, 6])])
def test_so_many_checkpoints_are_kept_and_all_models(tmp_path, keep, left):
    plan = {"save_iterations": [2, 4, 6], "keep_checkpoints": keep}
    trainer = tiny.trainer(tmp_path, **plan)
    trainer._start_stage("fine")
    for i in range(1, 7):
        trainer.iterate()
        trainer._milestones()
        if i in (2, 4, 5, 6):
            trainer.save_checkpoint()
    assert [p.name for p in checkpoints(tmp_path)] == [f"fine_{i}" for i in left]
    assert saved_iterations(tmp_path) == [2, 4, 6]


def test_the_older_generation_goes_only_when_the_newer_is_on_the_disk(run, monkeypatch):
    folder, trainer = run
    synced, removed = [], []
    fsync, remove = os.fsync, files.remove_folder

    def note_sync(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def note_removal(path):
        removed.append((path.name, list(synced)))
        remove(path)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(checkpoint, "remove_folder", note_removal)
    trainer.iterate()
    trainer.save_checkpoint()
    ((name, before),) = removed
    assert name == "fine_2" and before[-1] == str(folder / "checkpoint")
    parts = {Path(p).name for p in before[:-1] if "fine_5" in p}
    assert {"state.safetensors", "state.json"} <= parts
    assert any(Path(p).name.startswith(".partial-fine_5") for p in before)  # the folder itself


def damage(folder: Path, name: str = "state.safetensors") -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)


def test_a_damaged_checkpoint_is_complained_of_and_the_older_one_taken(run, capsys):
    folder, _ = run
    damage(folder / "checkpoint" / "fine_4")
    assert latest_checkpoint(folder).name == "fine_2"
    said = capsys.readouterr().err.splitlines()
    assert "fine_4" in said[0] and "damaged" in said[0] and all("warning: " in s for s in said)
    assert said[1].endswith("fine_2")
    set_others_aside(folder, folder / "checkpoint" / "fine_2")
    assert [p.name for p in checkpoints(folder)] == ["fine_2"]
    assert (folder / "checkpoint" / "fine_4.set_aside").is_dir()
    damage(folder / "checkpoint" / "fine_2")
    with pytest.raises(UserError, match="no checkpoint in .* is whole"):
        latest_checkpoint(folder)


def test_what_killed_processes_left_is_tidied_up_and_what_they_moved_aside_comes_back(run):
    folder, _ = run
    before = contents(folder)
    (folder / ".partial-config.json.abc.json").write_text("{")
    (folder / "point_cloud" / ".partial-iteration_9.abc").mkdir()
    aside = folder / "checkpoint" / ".aside-fine_4.abc"
    aside.mkdir()
    (folder / "checkpoint" / "fine_4").rename(aside / "fine_4")  # killed between two renames
    mine = folder / ".partial-thoughts.txt"
    mine.write_text("not of a run")
    recover(folder)
    mine.unlink()
    assert contents(folder) == before
    assert not list(folder.rglob(".aside-*"))


# ---- processes ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return kills.scene(tmp_path_factory.mktemp("small"))


def flags(small: Path, out: Path, *more: str) -> list[str]:
    given = ["-s", str(small / "scene"), "--expname", str(out), *kills.FLAGS]
    return [*given, "--configs", str(small / "recipe.py"), *more]


def train(small: Path, out: Path, *more: str) -> int:
    return kills.COMMANDS["emb"](flags(small, out, *more))


@contextmanager
def training(root: Path, small: Path, out: Path, *more: str):
    """A training of thousands of iterations in a process of its own, once it is under way."""
    command = [sys.executable, "train_emb.py", *flags(small, out, "--iterations", "100000", *more)]
    command += ["--checkpoint_minutes", "0.002", "--opacity_reset_interval", "1000000"]
    with subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True) as process:
        try:
            for _ in range(3000):
                if process.poll() is not None or any("fine" in p.name for p in checkpoints(out)):
                    break
                time.sleep(0.01)
            assert process.poll() is None, process.stderr.read()
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_finish_the_step_and_save(root, small, tmp_path, number, code):
    out = tmp_path / "run"
    with training(root, small, out) as process:
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == code, said
    assert said.splitlines()[-1] == {143: "terminated", 130: "interrupted"}[code]
    assert "Traceback" not in said
    _, info = load_state(checkpoints(out)[-1])
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] <= info["progress"]["iteration"] + 9  # nothing was done after the save
    assert not list(out.rglob(".partial-*"))


def test_a_second_signal_ends_at_once(tmp_path, monkeypatch):
    """While it saves, after the first one, as long as that may take."""
    trainer = tiny.trainer(tmp_path)
    reached = []

    def slow(tensors, path):
        reached.append("saving")
        os.kill(os.getpid(), signal.SIGTERM)
        reached.append("saved")

    real = trainer.optimizer.first_bad_gradient

    def first(*args):
        os.kill(os.getpid(), signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(checkpoint, "save_file", slow)
    trainer.optimizer.first_bad_gradient = first
    with pytest.raises(SystemExit) as stop:
        cli(lambda _: trainer.train())
    assert stop.value.code == 143 and reached == ["saving"]
    assert checkpoints(tmp_path) == [] and not list(tmp_path.rglob(".partial-*"))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_images_that_vanish_are_one_line_and_the_last_save_is_gone_on_from(
    small, tmp_path, monkeypatch, capsys
):
    mine, kept, out = tmp_path / "small", tmp_path / "kept", tmp_path / "run"
    shutil.copytree(small, mine)
    save = launch.Trainer.save_checkpoint

    def save_and_lose_the_images(trainer):
        made = save(trainer)
        if trainer.progress.stage == "fine" and not kept.exists():
            (mine / "scene" / "images").rename(kept)
        return made

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(launch.Trainer, "save_checkpoint", save_and_lose_the_images)
        cli(lambda _: train(mine, out, "--cache", "none"))
    assert stop.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and str(mine / "scene" / "images") in line
    assert latest_checkpoint(out) == checkpoints(out)[-1]
    kept.rename(mine / "scene" / "images")
    assert train(mine, out, "--cache", "none", "--resume") == 0


def test_two_trainings_do_not_share_a_run_folder(small, tmp_path, capsys):
    out = tmp_path / "run"
    train(small, out)
    with sole_user(out), pytest.raises(SystemExit) as stop:
        cli(lambda _: train(small, out, "--overwrite"))
    assert stop.value.code == 2
    assert "in use by another training" in capsys.readouterr().err
    assert saved_iterations(out) == [8, 15]


def unfinished(small: Path, out: Path) -> None:
    """A run as if it had been stopped somewhere after its last but one checkpoint."""
    train(small, out, "--keep_checkpoints", "4")

    shutil.rmtree(out / "point_cloud" / "iteration_15")


def test_start_checkpoint_latest_goes_on_to_the_same_end(small, tmp_path, capsys):
    alone, out = tmp_path / "alone", tmp_path / "run"
    train(small, alone)
    unfinished(small, out)
    damage(out / "checkpoint" / "fine_15")
    with (out / "metrics.jsonl").open("ab") as file:
        file.write(b'{"event": "train", "st')  # torn, as a kill leaves it
    capsys.readouterr()
    assert train(small, out, "--start_checkpoint", "latest", "--checkpoint_minutes", "0") == 0
    assert "fine_15" in capsys.readouterr().err
    ours, theirs = kills.results(out), kills.results(alone)
    ours.pop("files"), theirs.pop("files")
    assert ours == theirs


def test_latest_of_nothing_is_refused_and_of_a_run_without_one_too(small, tmp_path, capsys):
    def refused(out: Path, *more: str) -> str:
        with pytest.raises(SystemExit):
            cli(lambda _: train(small, out, "--start_checkpoint", "latest", *more))
        return capsys.readouterr().err

    assert "holds no run" in refused(tmp_path / "nothing")
    unfinished(small, tmp_path / "run")

    shutil.rmtree(tmp_path / "run" / "checkpoint")
    assert "has none yet" in refused(tmp_path / "run")
    assert train(small, tmp_path / "run", "--resume") == 0


def test_another_runs_checkpoint_is_gone_on_from_and_never_lost(small, tmp_path, monkeypatch):
    first, second, alone = tmp_path / "first", tmp_path / "second", tmp_path / "alone"
    train(small, first, "--keep_checkpoints", "6")
    start = ["--start_checkpoint", str(first / "checkpoint" / "fine_10")]
    assert train(small, alone, *start) == 0
    with monkeypatch.context() as patch:  # killed right after its start
        patch.setattr(launch.Trainer, "train", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(small, second, *start, "--checkpoint_minutes", "0")
    assert train(small, second, "--resume", "--checkpoint_minutes", "0") == 0
    for name in kills.FINAL[1:]:
        file = Path("point_cloud") / name / "point_cloud.ply"
        assert (second / file).read_bytes() == (alone / file).read_bytes()
        assert (second / file).read_bytes() == (first / file).read_bytes()


def test_an_older_checkpoint_of_the_run_itself_is_refused(small, tmp_path, capsys):
    out = tmp_path / "run"
    unfinished(small, out)
    older = str(out / "checkpoint" / "fine_13")
    with pytest.raises(SystemExit):
        cli(lambda _: train(small, out, "--start_checkpoint", older))
    assert "choose another --expname" in capsys.readouterr().err
    assert train(small, out, "--start_checkpoint", str(out)) == 0


def test_a_model_opens_in_other_programs(small, tmp_path):
    """As plyfile reads it, and in the columns and activations of 3DGS viewers."""
    import plyfile

    out = tmp_path / "run"
    train(small, out)
    file = out / "point_cloud" / "iteration_15" / "point_cloud.ply"
    with file.open("rb") as stream:
        read = plyfile.PlyData.read(stream)
    (element,) = read.elements
    names = [p.name for p in element.properties]
    model = load_run(out).model.gaussians
    assert element.name == "vertex" and len(element.data) == len(model)
    assert {p.val_dtype for p in element.properties[:62]} == {"f4"}
    assert names[:3] == ["x", "y", "z"] and names[54:62][0] == "opacity"
    scales = np.stack([element[f"scale_{i}"] for i in range(3)], axis=1)
    assert np.array_equal(scales, model.log_scale.detach().numpy())
    rotations = np.stack([element[f"rot_{i}"] for i in range(4)], axis=1)
    assert np.array_equal(rotations, model.rotation.detach().numpy())


def test_a_start_tidies_up_first(small, tmp_path, monkeypatch):
    """A checkpoint that had been moved aside, to be replaced, is the one that is gone on from."""
    out, began = tmp_path / "run", []
    unfinished(small, out)
    aside = out / "checkpoint" / ".aside-fine_15.abc"
    aside.mkdir()
    (out / "checkpoint" / "fine_15").rename(aside / "fine_15")
    (out / "point_cloud" / ".partial-iteration_15.abc").mkdir()
    restore = launch.Trainer.restore
    monkeypatch.setattr(
        launch.Trainer,
        "restore",
        lambda self, tensors, info: (began.append(info["progress"]), restore(self, tensors, info)),
    )
    train(small, out, "--resume")
    assert [(p["stage"], p["iteration"]) for p in began] == [("fine", 15)]
    assert not [*out.rglob(".aside-*"), *out.rglob(".partial-*")]
