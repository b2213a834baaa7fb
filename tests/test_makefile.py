"""What `make` runs, with a stand-in for Python that notes its arguments: nothing is set up here."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

STAND_IN = """#!/bin/sh
printf '%s\\n' "$@" >> "{log}"
echo -- >> "{log}"
case "$1" in train_*) exit {code};; esac
"""


@pytest.fixture
def clone(root, tmp_path) -> Path:
    """A folder with the Makefile; its name and that of its Python have spaces."""
    folder = tmp_path / "a clone"
    (folder / "script").mkdir(parents=True)
    shutil.copy(root / "Makefile", folder)
    python = folder / "its python"
    script = f"import sys\nif '--print-python' in sys.argv: print({str(python)!r})\n"
    (folder / "script" / "bootstrap.py").write_text(script)
    return folder


def make(clone: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs make; training ends with ``code``."""
    python = clone / "its python"
    python.write_text(STAND_IN.format(log=clone / "log", code=code))
    python.chmod(0o755)
    command = ["make", f"PYTHON={sys.executable}", *arguments]
    return subprocess.run(command, cwd=clone, capture_output=True, text=True)


def calls(clone: Path) -> list[list[str]]:
    """The arguments of every call of the stand-in."""
    parts = (clone / "log").read_text().split("--\n")
    return [part.splitlines() for part in parts if part]


def test_names_with_spaces_reach_the_programs_whole(clone):
    done = make(clone, "demo", "DEMO=my runs/one")
    assert done.returncode == 0, done.stderr
    train, render, show = calls(clone)
    assert train[0] == "train_emb.py" and train[-3:] == ["--resume", "--expname", "my runs/one"]
    assert render[:3] == ["render_emb.py", "--model_path", "my runs/one"]
    assert "--skip_existing" in render
    assert show == ["script/show_metrics.py", "my runs/one"]


@pytest.mark.parametrize("trained", [False, True])
def test_the_static_run_stands_beside_the_demo_if_there_is_one(clone, trained):
    if trained:
        (clone / "my runs" / "one" / "test").mkdir(parents=True)
    done = make(clone, "demo-static", "DEMO=my runs/one")
    assert done.returncode == 0, done.stderr
    train, render, show = calls(clone)
    assert train[-3:] == ["--expname", "my runs/one_static", "--static"]
    assert show[1:] == ["my runs/one"] * trained + ["my runs/one_static"]


@pytest.mark.parametrize("target", ["demo", "demo-static", "demo-moe"])
def test_a_run_that_was_refused_is_told_how_to_start_anew(clone, target):
    done = make(clone, target, code=2)
    assert done.returncode != 0
    assert f"make {target} FORCE=1" in done.stderr
    assert len(calls(clone)) == 1
    again = make(clone, target, "FORCE=1", code=2)
    assert again.returncode != 0 and "FORCE=1" not in again.stderr
    assert "--overwrite" in calls(clone)[1] and "--resume" not in calls(clone)[1]


def test_an_interrupted_training_is_not_given_advice(clone):
    done = make(clone, "demo", code=130)
    assert done.returncode != 0 and "FORCE" not in done.stderr + done.stdout
