"""Rules for what is committed: sizes, line ends, docstrings, nothing of one machine, layers."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BINARY = {".mp4", ".npy", ".npz", ".ply", ".png", ".jpg", ".safetensors", ".gif", ".webp"}
LARGEST = 4 * 2**20  # bytes
# Folders of one person's or one machine's, and hosts that packages come from. Written in pieces, so
# that this file passes its own test.
PLACES = "|".join(
    ["/w" + "ork/", "/r" + "oot/", "/ho" + "me/", "/Us" + "ers/", "/t" + "mp/", "/o" + "pt/"]
)
HOSTS = "|".join([r"py" + r"pi\.org", r"python" + r"hosted\.", r"download\.py" + r"torch\."])
FORBIDDEN = re.compile(rf"(?<![\w.~>)}}])(?:{PLACES})|{HOSTS}")
LAYERS = {  # a package may import those named, and itself
    "utils": set(),
    "arguments_MoDE": {"utils"},
    "scene": {"arguments_MoDE", "utils"},
    "gaussian_renderer": {"scene", "arguments_MoDE", "utils"},
    "training": {"gaussian_renderer", "scene", "arguments_MoDE", "utils"},
    "evaluation": {"training", "gaussian_renderer", "scene", "arguments_MoDE", "utils"},
}


def tracked() -> list[Path]:
    """The committed files; without git, for example in an archive, there is nothing to check."""
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    paths = (ROOT / name for name in done.stdout.decode().split("\0") if name)
    return [path for path in paths if path.is_file()]


def texts() -> list[tuple[Path, str]]:
    return [(path, path.read_bytes().decode()) for path in tracked() if path.suffix not in BINARY]


def python_trees() -> list[tuple[Path, ast.Module]]:
    return [(path, ast.parse(text)) for path, text in texts() if path.suffix == ".py"]


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_no_large_file():
    assert [shown(path) for path in tracked() if path.stat().st_size > LARGEST] == []


def test_demo_scene_is_small():
    scene = [path for path in tracked() if shown(path).startswith("demo/")]
    assert sum(path.stat().st_size for path in scene) < LARGEST


def test_text_files_end_their_lines_the_same_way():
    assert [shown(path) for path, text in texts() if "\r" in text] == []


def test_text_files_end_with_one_newline():
    bad = [shown(path) for path, text in texts() if text and not text.endswith("\n")]
    assert bad == []


def test_nothing_of_one_machine_is_named():
    found = [
        f"{shown(path)}: {match.group()}"
        for path, text in texts()
        for match in FORBIDDEN.finditer(text)
    ]
    assert found == []


def test_every_module_says_what_it_is_for():
    silent = [
        shown(path) for path, tree in python_trees() if tree.body and not ast.get_docstring(tree)
    ]
    assert [name for name in silent if not is_recipe(name)] == []


def is_recipe(name: str) -> bool:
    """Recipes are files of literals in the folders of ``arguments_MoDE``."""
    return name.startswith("arguments_MoDE/") and name.count("/") > 1


def imported(tree: ast.Module) -> set[str]:
    """The top-level packages that a module imports anywhere."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", LAYERS)
def test_no_package_reaches_up(package: str):
    allowed = LAYERS[package] | {package}
    reached = {
        f"{shown(path)}: {name}"
        for path, tree in python_trees()
        if shown(path).startswith(f"{package}/")
        for name in imported(tree) & LAYERS.keys() - allowed
    }
    assert reached == set()


def test_tests_alone_import_what_is_under_a_strong_copyleft():
    users = [shown(path) for path, tree in python_trees() if "plyfile" in imported(tree)]
    assert [name for name in users if not name.startswith("tests/")] == []


def test_nothing_reads_pickles_or_runs_text():
    calls = re.compile(
        r"\b(?:pickle\.loads?|torch\.load\((?![^)]*weights_only=True)|eval\(|exec\()"
    )
    found = []
    for path, tree in python_trees():
        if shown(path).startswith("tests/"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and calls.match(ast.unparse(node)):
                found.append(f"{shown(path)}:{node.lineno}: {ast.unparse(node)[:60]}")
    assert found == []
