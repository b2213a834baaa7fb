"""What the README tells people to type exists: targets, scripts, flags, recipes, files."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
MADE = ("output/", "<", ".venv")  # what running makes, or the reader puts in
OTHERS = {  # names of files in the user's own data, not in this repository
    "transforms_train.json",
    "transforms_test.json",
    "transforms_val.json",
    "train_meta.json",
    "test_meta.json",
    "sparse/0",
    "cameras_parameters.txt",
    "images/cam00/",
    "rgb/2x",
    "report.md",
}


def bash_commands() -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def make_targets(text: str) -> set[str]:
    calls = re.findall(r"(?:^|`)make((?: [\w.=/'\"<>-]+)+)", text, re.MULTILINE)
    words = (word for call in calls for word in call.split())
    return {word for word in words if re.fullmatch(r"[a-z][a-z-]*", word)}


def targets_of_makefile() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_there_are_commands():
    assert {"make demo", "make test"} <= set(bash_commands())


@pytest.mark.parametrize("document", ["README.md", "docs/dependencies.md", "CHANGELOG.md"])
def test_every_make_target_that_is_named_exists(document: str):
    named = make_targets((ROOT / document).read_text())
    assert named and named <= targets_of_makefile()


def test_every_makefile_target_is_explained_by_make_help():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    explained = set(re.findall(r"^  make ([a-z-]+) +\S", shown.stdout, re.MULTILINE))
    assert explained == targets_of_makefile()


@pytest.mark.parametrize(
    "target", ["setup", "demo", "demo-static", "demo-moe", "test", "lint", "lpips"]
)
def test_targets_expand_to_commands(target: str):
    subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, check=True)


def python_commands() -> list[list[str]]:
    makefile = (ROOT / "Makefile").read_text()
    found = [line for line in bash_commands() if line.startswith("python ")]
    found += [match.group() for match in re.finditer(r"(?:train|render)_\w+\.py .*", makefile)]
    return [
        shlex.split(re.sub(r"\$\(if \$\(FORCE\),(\S+),(\S+)\)", r"\1 \2", line)) for line in found
    ]


@pytest.mark.parametrize("words", python_commands(), ids=" ".join)
def test_files_of_python_commands_exist(words: list[str]):
    files = [word for word in words if word.endswith(".py") or word == "demo/scene"]
    assert files
    assert [name for name in files if not (ROOT / name).exists()] == []


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train_emb.py", "render_emb.py"])
def test_flags_that_are_named_are_in_the_help(script: str):
    shown = subprocess.run(
        [sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    lines = [words for words in python_commands() if script in words]
    flags = {word for words in lines for word in words if re.match(r"--?[A-Za-z]", word)}
    assert flags
    assert {flag for flag in flags if not re.search(rf"{re.escape(flag)}\b", shown)} == set()


def test_files_that_are_named_exist():
    named = re.findall(r"`([\w./-]+\.(?:md|txt|toml|py)|[\w-]+(?:/[\w-]+)+/?|LICENSE)`", README)
    missing = [
        name
        for name in named
        if not (ROOT / name).exists() and not name.startswith(MADE) and name not in OTHERS
    ]
    assert missing == ["_cpu.py"] or missing == []


def test_the_tree_shows_folders_that_exist():
    tree = re.search(r"## What is where\n\n```\n(.*?)```", README, re.DOTALL)
    assert tree
    top = [line.split("  ")[0] for line in tree.group(1).splitlines() if not line.startswith(" ")]
    names = [name for line in top for name in line.split()]
    assert len(names) > 5
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_ci_runs_the_test_command_as_the_readme_has_it():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert "make test" in lines and "make lint" in lines
