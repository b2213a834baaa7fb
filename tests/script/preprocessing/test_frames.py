"""From videos to folders of frames: which pixels, and what is left after an interruption."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from scene.datasets.clips import PREPARED
from script.preprocessing.footage import find_clips, probe
from script.preprocessing.frames import Change, Extraction, all_frames, extract
from script.preprocessing.steps import Steps
from utils.errors import UserError
from utils.images import read_image
from utils.video import read_video, write_video

ROOT = Path(__file__).resolve().parents[3]
SIZE = (48, 32)


def filmed(path: Path, count: int, size: tuple[int, int] = SIZE, seed: int = 0) -> Path:
    """A video in which every frame is another."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, size[1] // 8, size[0] // 8, 3), np.uint8)
    write_video(path, (frame.repeat(8, 0).repeat(8, 1) for frame in coarse))
    return path


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    for i in range(3):
        filmed(tmp_path / f"cam{i}.mp4", 6, seed=i)
    return tmp_path


def jobs(scene: Path, frames: range = range(6), **options) -> list[Extraction]:
    return [
        Extraction(clip, frames, scene / "images" / clip.name, **{"size": clip.size, **options})
        for clip in find_clips(scene)
    ]


def times(scene: Path) -> dict[str, int]:
    files = sorted((scene / "images").rglob("*.*"))
    return {str(f.relative_to(scene / "images")): f.stat().st_mtime_ns for f in files}


def changed(before: dict[str, int], after: dict[str, int]) -> set[str]:
    assert before.keys() == after.keys()
    return {Path(name).parts[0] for name in before if before[name] != after[name]}


def hidden(folder: Path) -> list[Path]:
    return [p for p in folder.rglob(".*") if p.name != ".steps"]


@pytest.mark.parametrize("size", [SIZE, (24, 16)])
def test_frames_are_the_videos_bit_for_bit(scene, size):
    extract(jobs(scene, range(1, 6, 2), size=size), Steps(scene))
    for i in range(3):
        expected = list(read_video(scene / f"cam{i}.mp4", [1, 3, 5], size))
        folder = scene / f"images/cam{i}"
        assert sorted(p.name for p in folder.iterdir()) == ["0000.png", "0001.png", "0002.png"]
        for path, pixels in zip(sorted(folder.iterdir()), expected, strict=True):
            assert pixels.shape == (size[1], size[0], 3)
            assert np.array_equal(read_image(path), pixels)


def test_smaller_frames_are_area_means(scene):
    extract(jobs(scene, range(1), size=(3, 2)), Steps(scene))
    full = next(read_video(scene / "cam0.mp4", [0])).astype(float)
    means = full.reshape(2, 16, 3, 16, 3).mean(axis=(1, 3))
    assert np.abs(read_image(scene / "images/cam0/0000.png") - means).mean() < 4


def test_jpegs_are_close(scene):
    extract(jobs(scene, suffix="jpg"), Steps(scene))
    pixels = read_image(scene / "images/cam1/0005.jpg").astype(float)
    expected = next(read_video(scene / "cam1.mp4", [5]))
    assert 0 < np.abs(pixels - expected).mean() < 12


def test_a_change_is_applied_to_every_frame_and_is_part_of_the_key(scene):
    extract(jobs(scene, change=Change(lambda pixels: 255 - pixels, "negative")), Steps(scene))
    expected = 255 - next(read_video(scene / "cam2.mp4", [4]))
    assert np.array_equal(read_image(scene / "images/cam2/0004.png"), expected)
    before = times(scene)
    extract(jobs(scene, change=Change(lambda pixels: 255 - pixels, "negative")), Steps(scene))
    assert times(scene) == before
    extract(jobs(scene, change=Change(lambda pixels: pixels, "none")), Steps(scene))
    assert len(changed(before, times(scene))) == 3


def test_a_second_run_touches_nothing(scene, capsys):
    extract(jobs(scene), Steps(scene))
    before = times(scene)
    extract(jobs(scene), Steps(scene))
    assert times(scene) == before and "done already (3 cameras)" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["folder", "frame", "cut"])
def test_only_the_camera_that_lost_something_is_done_again(scene, damage):
    extract(jobs(scene), Steps(scene))
    before = times(scene)
    frame = scene / "images/cam1/0002.png"
    if damage == "folder":
        (scene / "images/cam1").rename(scene / "away")
    elif damage == "frame":
        frame.unlink()
    else:
        frame.write_bytes(frame.read_bytes()[:-5])
    extract(jobs(scene), Steps(scene))
    assert changed(before, times(scene)) == {"cam1"}
    assert np.array_equal(read_image(frame), next(read_video(scene / "cam1.mp4", [2])))


def test_another_video_is_extracted_again(scene):
    extract(jobs(scene), Steps(scene))
    before = times(scene)
    filmed(scene / "cam2.mp4", 6, seed=9)
    extract(jobs(scene), Steps(scene))
    assert changed(before, times(scene)) == {"cam2"}


def test_fewer_frames_leave_none_of_those_before(scene):
    extract(jobs(scene), Steps(scene))
    extract(jobs(scene, range(2)), Steps(scene))
    assert {p.name for p in (scene / "images/cam0").iterdir()} == {"0000.png", "0001.png"}


def extracted_elsewhere(scene: Path, frames: range = range(6)) -> dict[str, int]:
    """Frames without stamps."""
    extract(jobs(scene, frames), Steps(scene))
    (scene / ".steps").rename(scene / "forgotten")
    return times(scene)


def test_what_another_program_extracted_is_taken_as_it_is(scene):
    before = extracted_elsewhere(scene)
    extract(jobs(scene), Steps(scene))
    assert times(scene) == before


@pytest.mark.parametrize("fault", ["size", "count", "cut", "later frames"])
def test_what_another_program_extracted_otherwise_is_not(scene, fault):
    count = 5 if fault in ("count", "later frames") else 6
    before = extracted_elsewhere(scene, range(count))
    wanted = jobs(scene, size=(24, 16)) if fault == "size" else jobs(scene)
    if fault == "cut":
        path = scene / "images/cam0/0003.png"
        path.write_bytes(path.read_bytes()[:-20])
    if fault == "later frames":
        wanted = jobs(scene, range(1, 6))
    extract(wanted, Steps(scene))
    after = times(scene)
    redone = {Path(n).parts[0] for n in after if after[n] != before.get(n)}
    assert redone == ({"cam0"} if fault == "cut" else {"cam0", "cam1", "cam2"})


def test_an_error_in_one_video_leaves_the_finished_and_nothing_half(scene, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # one camera after another
    filmed(scene / "cam1.mp4", 3)
    with pytest.raises(UserError, match=r"cam1\.mp4: ends after 3 of 6 frames"):
        extract(jobs(scene), Steps(scene))
    assert [p.name for p in (scene / "images").iterdir()] == ["cam0"]
    assert len(list((scene / "images/cam0").iterdir())) == 6 and not hidden(scene)
    before = times(scene)
    filmed(scene / "cam1.mp4", 6)
    extract(jobs(scene), Steps(scene))
    after = times(scene)
    assert len(after) == 18 and before.items() <= after.items()


def test_the_frames_of_all_cameras_are_done_only_when_those_of_each_are(scene):
    steps, whole = Steps(scene), all_frames(jobs(scene))
    extract(jobs(scene), steps)
    assert steps.is_done(whole) and (scene / PREPARED).is_file()
    good = (scene / "cam1.mp4").read_bytes()
    filmed(scene / "cam1.mp4", 3)
    with pytest.raises(UserError, match="ends after 3"):
        extract(jobs(scene), steps)
    assert not (scene / PREPARED).exists()
    (scene / "cam1.mp4").write_bytes(good)
    extract(jobs(scene), steps)
    assert steps.is_done(all_frames(jobs(scene)))


def test_an_error_leaves_the_older_frames_of_that_camera(scene):
    extract(jobs(scene), Steps(scene))
    filmed(scene / "cam1.mp4", 3)
    with pytest.raises(UserError, match="ends after 3"):
        extract(jobs(scene), Steps(scene))
    assert len(times(scene)) == 18 and not hidden(scene)


def test_a_disk_that_is_full_names_a_file_and_leaves_nothing(scene, monkeypatch):
    def full(path, pixels):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("script.preprocessing.frames.save_image", full)
    with pytest.raises(OSError, match="No space left"):
        extract(jobs(scene), Steps(scene))
    assert not list((scene / "images").iterdir())


HEARD = """
import signal, threading, time
from concurrent.futures import ThreadPoolExecutor
from script.preprocessing.frames import _wait

def work():
    time.sleep(0.5)
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)  # a thread that wakes no other
    over.wait(20)

over = threading.Event()
with ThreadPoolExecutor(1) as pool:
    task = pool.submit(work)
    try:
        _wait([task])
    except KeyboardInterrupt:
        print("late" if task.done() else "heard")
    over.set()
"""


def test_ctrl_c_is_heard_though_it_does_not_end_the_wait():
    command = [sys.executable, "-c", HEARD]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert ran.stdout.strip() == "heard", ran.stderr


SLOWLY = """
import runpy, sys, time
from script.preprocessing import frames

save = frames.save_image

def slowly(path, *rest):  # the last camera hardly gets on after some frames
    time.sleep(3.0 if "cam2" in str(path) and path.stem > "0005" else 0.0)
    save(path, *rest)

frames.save_image = slowly
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_ctrl_c_leaves_no_half_folder_and_the_next_run_completes(tmp_path):
    for i in range(3):
        filmed(tmp_path / f"cam{i}.mp4", 60, (64, 48), seed=i)
    np.save(tmp_path / "poses_bounds.npy", np.load(ROOT / "demo/scene/poses_bounds.npy")[:3])
    command = [sys.executable, "-c", SLOWLY, "script/pre_n3v.py", "--videopath", str(tmp_path)]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    end = time.monotonic() + 60
    # In the middle of the last camera.
    while not list(tmp_path.glob("images/.partial-cam2.*/0005.png")):
        assert running.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130 and said.strip().endswith("interrupted")
    assert "Traceback" not in said and not hidden(tmp_path)
    whole = list((tmp_path / "images").iterdir())
    assert len(whole) < 3 and all(len(list(p.iterdir())) == 60 for p in whole)
    before = times(tmp_path)
    extract(jobs(tmp_path, range(60)), Steps(tmp_path))
    assert before.items() <= times(tmp_path).items()
    assert all(probe(tmp_path / f"images/cam{i}").frames == 60 for i in range(3))
