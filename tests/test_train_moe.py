"""`train_moe.py` as a user runs it, on the demo scene cut down to a few tiny frames."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

import render_moe
import train_moe
from training.checkpoint import load_run, saved_iterations
from training.moe.files import load_moe
from utils.errors import cli
from utils.interrupts import Interrupted

SMALL = ["-r", "64", "-d", "4", "--max_points", "300", "--densify_until_iter", "0", "--quiet"]
SHORT = ["--coarse_iterations", "2", "--iterations", "4", "--device", "cpu"]
PAIR = ["--members", "polynomial", "keyframe"]


def train(source: Path, out: Path, *more: str) -> int:
    line = ["-s", str(source), "--expname", str(out), *SMALL, *SHORT, *more]
    return train_moe.main(["experts", *line])


def fails(capsys, run) -> str:
    """Expects exit code 2 and one line; returns it."""
    with pytest.raises(SystemExit) as stop:
        cli(lambda _: run())
    assert stop.value.code == 2
    (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("error: "))
    return line


def model_bytes(out: Path, member: str) -> bytes:
    folder = out / "experts" / member / "point_cloud" / "iteration_4"
    return (folder / "point_cloud.ply").read_bytes()


@pytest.fixture(scope="module")
def trained(source, tmp_path_factory) -> Path:
    """Two members, trained in one go; not to be changed."""
    out = tmp_path_factory.mktemp("moe") / "out"
    assert train(source, out, *PAIR, "--checkpoint_iterations", "2") == 0
    return out


def test_every_member_is_a_run_of_its_own(trained):
    for name in PAIR[1:]:
        run = load_run(trained / "experts" / name)
        assert list(run.model.experts) == [name] and run.iteration == 4


def test_a_member_is_what_its_expert_alone_would_be(trained, source, tmp_path):
    """The second member depends neither on the first nor on who trains it."""
    import train_emb

    out = tmp_path / "alone"
    line = ["-s", str(source), "--expname", str(out), *SMALL, *SHORT, "--experts", "keyframe"]
    assert train_emb.main(line) == 0
    alone = out / "point_cloud" / "iteration_4" / "point_cloud.ply"
    assert alone.read_bytes() == model_bytes(trained, "keyframe")


def test_complete_members_are_left_alone_and_listed(trained, source, capsys):
    before = {name: model_bytes(trained, name) for name in PAIR[1:]}
    times = {p: p.stat().st_mtime_ns for p in trained.rglob("*") if p.is_file()}
    assert train(source, trained, *PAIR, "--checkpoint_iterations", "2") == 0
    said = capsys.readouterr().out
    assert said.count("already trained") == 2
    assert said.splitlines()[-3].split() == [
        *("member", "experts", "PSNR,", "training", "views", "Gaussians", "seconds")
    ]
    assert [line.split()[0] for line in said.splitlines()[-2:]] == PAIR[1:]
    assert all(line.split()[3] == "dB" for line in said.splitlines()[-2:])
    assert before == {name: model_bytes(trained, name) for name in PAIR[1:]}
    assert times == {p: p.stat().st_mtime_ns for p in times}


@pytest.fixture
def unfinished(trained, tmp_path) -> Path:
    """As if training had been stopped after the third iteration of the second member."""
    out = tmp_path / "out"
    shutil.copytree(trained, out)
    shutil.rmtree(out / "experts" / "keyframe" / "point_cloud")
    return out


def test_an_unfinished_member_is_resumed_to_the_same_model(unfinished, trained, source, capsys):
    flags = (*PAIR, "--checkpoint_iterations", "2")
    assert "--resume continues it" in fails(capsys, lambda: train(source, unfinished, *flags))
    assert train(source, unfinished, *flags, "--resume") == 0
    assert model_bytes(unfinished, "keyframe") == model_bytes(trained, "keyframe")


def test_the_last_members_fault_shows_before_the_first_is_trained(unfinished, source, capsys):
    shutil.rmtree(unfinished / "experts" / "polynomial")
    assert "keyframe holds another or an unfinished run" in fails(
        capsys, lambda: train(source, unfinished, *PAIR)
    )
    assert not (unfinished / "experts" / "polynomial").exists()


def test_another_setting_is_refused_by_name_and_overwritten_when_asked(unfinished, source, capsys):
    other = (*PAIR, "--feature_lr", "0.1")
    assert "feature_lr is 0.1" in fails(
        capsys, lambda: train(source, unfinished, *other, "--resume")
    )
    assert train(source, unfinished, *other, "--overwrite") == 0
    assert saved_iterations(unfinished / "experts" / "keyframe") == [4]


def test_misuse_leaves_nothing_behind(source, tmp_path, capsys):
    out = tmp_path / "out"
    lines = {
        "no such folder": lambda: train(tmp_path / "nowhere", out, *PAIR),
        "no expert 'hexplan'": lambda: train(source, out, "--members", "hexplan"),
        "names 'hash' twice": lambda: train(source, out, "--members", "hash", "hash"),
        "the members are missing": lambda: train(source, out),
    }
    for said, run in lines.items():
        assert said in fails(capsys, run)
        assert not out.exists()


def test_folders_that_are_something_else_are_refused(source, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "is a file" in fails(capsys, lambda: train(source, tmp_path / "file", *PAIR))
    assert "holds the scene itself" in fails(capsys, lambda: train(source, source, *PAIR))
    assert not (source / "experts").exists()
    single = tmp_path / "single"
    single.mkdir()
    (single / "config.json").write_text("{}")
    assert "holds the run of a single model" in fails(capsys, lambda: train(source, single, *PAIR))


@pytest.mark.parametrize("part", ["moe.json", "experts/keyframe/config.json"])
def test_a_single_model_is_not_trained_into_a_mixture(source, tmp_path, capsys, part):
    import train_emb

    out = tmp_path / "out"
    (out / part).parent.mkdir(parents=True)
    (out / part).write_text("{}")
    line = ["-s", str(source), "--expname", str(out), *SMALL, *SHORT]
    for more in ([], ["--overwrite"], ["--start_checkpoint", str(tmp_path)]):
        assert "holds a MoE" in fails(capsys, lambda m=more: train_emb.main([*line, *m]))
    assert [path for path in out.rglob("*") if path.is_file()] == [out / part]


def test_commands_and_help(capsys):
    assert train_moe.main([]) == train_moe.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in train_moe.COMMANDS)
    assert "did you mean 'experts'" in fails(capsys, lambda: train_moe.main(["expert"]))


def test_ctrl_c_ends_all_members_with_the_code_of_shells(source, tmp_path, monkeypatch):
    begun = []

    def interrupted(arguments) -> None:
        begun.append(arguments)
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr("training.moe.experts.train_run", interrupted)
    with pytest.raises(SystemExit) as stop:
        cli(lambda _: train(source, tmp_path / "out", *PAIR))
    assert stop.value.code == 130 and len(begun) == 1


# ---- all of it ----------------------------------------------------------------------------------


def test_from_experts_to_pictures(trained, source, tmp_path):
    """Experts, router, pruning, distillation, a mixture with the pupil, and its pictures."""
    common, moe = ["--device", "cpu", "--quiet"], tmp_path / "moe"
    shutil.copytree(trained, moe)

    def run(command: str, out: Path, *flags: str) -> None:
        assert train_moe.main([command, "--expname", str(out), *common, *flags]) == 0

    run("router", moe, "--router_iterations", "4")
    pruned, pupil, again = (tmp_path / name for name in ("pruned", "pupil", "again"))
    run("prune", pruned, "--moe", str(moe), "--share", "0.5", "--views", "3")
    run("distill", pupil, "--moe", str(pruned), "--expert", "keyframe", "--distill_iterations", "3")
    both = [str(pruned / "experts" / "polynomial"), f"keyframe={pupil}"]
    run("router", again, "--router_iterations", "2", "--experts", *both)
    counts = {}
    for folder in (moe, pruned, again):
        run_of = load_moe(folder)
        counts[folder] = sum(len(e.gaussians) for e in run_of.model.experts.values())
    assert counts[moe] == 2 * counts[pruned] == 2 * counts[again] > 100
    flags = ["--skip_train", "--skip_video", "--no-lpips", *common]
    assert render_moe.main(["-m", str(again), *flags]) == 0
    said = json.loads((again / "test" / "ours_2" / "metrics.json").read_text())
    assert said["experts_used"] == ["polynomial", "keyframe"] and said["psnr"] > 5


@pytest.mark.parametrize("command", ["router", "prune", "distill"])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stop:
        train_moe.main([command, "--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0 and f"train_moe.py {command}" in shown and "--expname" in shown


def test_a_command_without_its_folder_says_so(capsys):
    for command in ("router", "prune", "distill"):
        assert "--expname" in fails(capsys, lambda c=command: train_moe.main([c]))
