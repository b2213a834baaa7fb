"""Commands talk to nobody, start no program, and write to their run folder alone.

Python reports every file that it opens, every rename and removal and every socket to an audit hook,
libraries' too. Native code does not, so the folders it might write to are new and empty here: the
current one, the home, and that for temporary files.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import kills
import published
import tiny_moe

WATCH = r'''
import atexit, json, os, sys

FORBIDDEN = ("socket.__new__", "socket.connect", "socket.bind", "socket.getaddrinfo",
             "socket.gethostbyname", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn",
             "os.fork", "urllib.Request", "pickle.find_class")
ONE_PATH = ("os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.chown", "os.utime")
TWO_PATHS = ("os.rename", "os.link", "os.symlink")
CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
seen = []

def whole(path, rest):
    """The absolute path, also where it is relative to an open folder, as shutil.rmtree's are."""
    folder = rest[0] if rest and isinstance(rest[0], int) and rest[0] > 2 else None
    base = os.getcwd() if folder is None else os.readlink(f"/proc/self/fd/{folder}")
    return os.path.normpath(os.path.join(base, path))

def heed(event, details):
    if event in FORBIDDEN:
        seen.append(["forbidden", event, repr(details)])
        raise RuntimeError(f"{event} is forbidden")
    if event == "open":
        path, mode, flags = details
        writes = set("wax+") & set(mode) if isinstance(mode, str) else (flags or 0) & CHANGES
        if writes and not isinstance(path, int):
            seen.append(["write", event, os.path.abspath(os.fsdecode(path))])
    elif event in ONE_PATH + TWO_PATHS:
        count = 1 + (event in TWO_PATHS)
        for i, path in enumerate(details[:count]):
            if not isinstance(path, int):
                seen.append(["write", event, whole(os.fsdecode(path), details[i - count:])])

report = sys.argv[1]
atexit.register(lambda: print(json.dumps(seen), file=open(report, "w")))
sys.argv = sys.argv[2:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
sys.addaudithook(heed)
'''
TORCHS = "torchinductor_"  # an empty folder for temporary files that torch makes, and does not use
RUN = "from {module} import main\nfrom utils.errors import cli\ncli(main)\n"


def watched(root: Path, tmp_path: Path, module: str, *arguments: str) -> list[list[str]]:
    """Runs a command where nothing else is; returns what it did, as [kind, event, path]."""
    report = tmp_path / "report.json"
    places = {name: tmp_path / name for name in ("here", "home", "temporary")}
    for place in places.values():
        place.mkdir(exist_ok=True)
    inherited = {k: v for k, v in os.environ.items() if k != "TORCHINDUCTOR_CACHE_DIR"}
    environment = inherited | {  # which torch sets where it has been imported, as in this process
        "HOME": str(places["home"]),
        "TMPDIR": str(places["temporary"]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", WATCH + RUN.format(module=module), str(report)]
        + [str(root / f"{module}.py"), *arguments],
        cwd=places["here"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    left = [p for place in places.values() for p in place.rglob("*")]
    left = [p for p in left if not p.name.startswith(TORCHS)]  # what is in it has another name
    assert left == [], "something was left outside the run folder"
    return json.loads(report.read_text())


def outside(seen: list[list[str]], run: Path, *more: Path) -> list[list[str]]:
    """What was forbidden, and writes that are not below ``run`` (or to a device, or ``more``)."""
    allowed = (str(run), "/dev/", "/proc/self/", *map(str, more))
    return [s for s in seen if s[0] != "write" or not s[2].startswith(allowed)]


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["auto", "disk"])
def test_training_writes_to_its_run_folder_alone(root, tmp_path, cache):
    small = kills.scene(tmp_path / "small")
    out = tmp_path / "runs" / "run"
    flags = ["-s", str(small / "scene"), "--expname", str(out), "--cache", cache, *kills.FLAGS]
    before = sorted(p.as_posix() for p in small.rglob("*"))
    seen = watched(root, tmp_path, "train_emb", *flags, "--configs", str(small / "recipe.py"))
    assert outside(seen, out, out.parent, tmp_path / "temporary") == []
    assert any(s[2].startswith(str(out)) for s in seen) and (out / "config.json").exists()
    assert sorted(p.as_posix() for p in small.rglob("*")) == before
    assert [p.name for p in out.parent.iterdir()] == ["run"]
    flags = ["--model_path", str(out), "--no-lpips", "--quiet", "--device", "cpu"]
    seen = watched(root, tmp_path, "render_emb", *flags)
    assert outside(seen, out, tmp_path / "temporary") == []
    assert (out / "metrics.json").exists()
    report = tmp_path / "reports" / "comparison"
    # Frames that are kept on the disk lie in the run folder here, too.
    written = [report, report.parent, *([out] if cache == "disk" else [])]
    flags = [str(out), "--out", str(report), "--lpips", "none", "--no-plots", "--quiet"]
    seen = watched(root, tmp_path, "evaluate", *flags, "--device", "cpu")
    assert outside(seen, *written, tmp_path / "temporary") == []
    assert [p.name for p in report.parent.iterdir()] == ["comparison"]


def test_importing_writes_to_its_destination_alone(root, tmp_path):
    published.write_4dgs(tmp_path / "theirs")
    before = sorted(p.as_posix() for p in (tmp_path / "theirs").rglob("*"))
    out = tmp_path / "runs" / "ours"
    flags = [str(tmp_path / "theirs"), str(out)]
    seen = watched(root / "script", tmp_path, "import_checkpoint", *flags)
    assert outside(seen, out, out.parent, tmp_path / "temporary") == []
    assert [p.name for p in out.parent.iterdir()] == ["ours"]
    assert sorted(p.as_posix() for p in (tmp_path / "theirs").rglob("*")) == before


@pytest.mark.slow
def test_a_mixture_is_trained_pruned_distilled_and_rendered_within_its_folders(root, tmp_path):
    source = tiny_moe.scene_folder(tmp_path / "scene")
    runs = tmp_path / "runs"
    made = tiny_moe.experts(runs / "moe", source)
    kept = tiny_moe.files_in(made), tiny_moe.files_in(source)
    moe, common = ["--moe", str(made)], ["--device", "cpu", "--quiet"]
    commands = {
        "moe": ["router", "--router_iterations", "2"],
        "pruned": ["prune", *moe, "--share", "0.2", "--views", "2"],
        "pupil": ["distill", *moe, "--expert", tiny_moe.NAMES[0], "--distill_iterations", "2"],
    }
    for name, (command, *flags) in commands.items():
        line = [command, "--expname", str(runs / name), *common, *flags]
        seen = watched(root, tmp_path, "train_moe", *line)
        assert outside(seen, runs / name, tmp_path / "temporary") == []
    line = ["--model_path", str(made), "--no-lpips", "--skip_train", *common]
    seen = watched(root, tmp_path, "render_moe", *line)
    assert outside(seen, made, tmp_path / "temporary") == []
    now = tiny_moe.files_in(made)
    assert {name: now[name] for name in kept[0]} == kept[0]
    assert tiny_moe.files_in(source) == kept[1]
    assert sorted(p.name for p in runs.iterdir()) == ["moe", "pruned", "pupil"]


@pytest.mark.parametrize(
    "code, found",
    [
        ("import socket; socket.create_connection(('127.0.0.1', 9))", "socket.*is forbidden"),
        ("import subprocess; subprocess.run(['true'])", "subprocess.Popen is forbidden"),
        ("open('elsewhere', 'w').close()", "something was left"),
        ("import os; os.mkdir('elsewhere')", "something was left"),
        ("import ctypes; ctypes.CDLL(None).creat(b'elsewhere', 0o600)", "something was left"),
    ],
)
def test_the_watch_sees_what_it_must(root, tmp_path, code, found):
    (tmp_path / "bad.py").write_text(f"def main(argv):\n    {code}\n")
    (tmp_path / "utils").symlink_to(root / "utils")
    with pytest.raises(AssertionError, match=found):
        watched(tmp_path, tmp_path, "bad")


def test_the_watch_sees_writes_that_leave_nothing(root, tmp_path):
    code = "import os; os.mkdir('../x'); open('../x/y', 'w').close(); os.replace('../x/y', '../z')"
    (tmp_path / "bad.py").write_text(f"def main(argv):\n    {code}\n")
    (tmp_path / "utils").symlink_to(root / "utils")
    seen = outside(watched(tmp_path, tmp_path, "bad"), tmp_path / "run")
    assert [(s[1], Path(s[2]).name) for s in seen] == [
        ("os.mkdir", "x"),
        ("open", "y"),
        ("os.rename", "y"),
        ("os.rename", "z"),
    ]
