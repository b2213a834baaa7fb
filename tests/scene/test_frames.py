"""scene/frames.py: the budget is kept, nothing is decoded twice, threads agree."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import scene.frames as frames_module
from scene.frames import FrameStore, ImageFrames, VideoFrames
from utils.errors import UserError
from utils.video import write_video

SIZE = (32, 24)
FRAME = 32 * 24 * 3


def _pixels(source: int, frame: int) -> np.ndarray:
    rng = np.random.default_rng([source, frame])
    return rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)


@pytest.fixture
def images(tmp_path) -> list[ImageFrames]:
    """Three cameras of five PNG frames."""
    sources = []
    for source in range(3):
        paths = tuple(tmp_path / f"{source}_{frame}.png" for frame in range(5))
        for frame, path in enumerate(paths):
            Image.fromarray(_pixels(source, frame)).save(path)
        sources.append(ImageFrames(paths, SIZE))
    return sources


@pytest.fixture
def videos(tmp_path) -> list[VideoFrames]:
    """Two cameras of eight frames, every other one used; frame i has grey level 20 i."""
    sources = []
    for source in range(2):
        path = tmp_path / f"cam{source}.mp4"
        write_video(path, [np.full((24, 32, 3), 20 * i + source, np.uint8) for i in range(8)])
        sources.append(VideoFrames(path, range(0, 8, 2), SIZE))
    return sources


@pytest.fixture
def decodes(monkeypatch) -> list[str]:
    """Names of the files decoded so far."""
    seen: list[str] = []
    for name in ("read_image", "read_video"):
        original = getattr(frames_module, name)

        def counted(path, *args, _original=original, **kwargs):
            seen.append(Path(path).name)
            return _original(path, *args, **kwargs)

        monkeypatch.setattr(frames_module, name, counted)
    return seen


def _store(sources, budget: int, tmp_path, size=SIZE) -> FrameStore:
    return FrameStore(sources, [size] * len(sources), budget=budget, spool_folder=tmp_path / "run")


@pytest.mark.parametrize("budget", [100 * FRAME, 4 * FRAME, 1], ids=["all fit", "some", "none"])
def test_images_come_back_exactly_whatever_the_budget(images, budget, tmp_path):
    store = _store(images, budget, tmp_path)
    for _ in range(2):
        for source in (2, 0, 1):
            for frame in range(5):
                assert np.array_equal(store.get(source, frame).numpy(), _pixels(source, frame))


@pytest.mark.parametrize("budget", [100 * FRAME, 4 * FRAME, 1], ids=["all fit", "some", "none"])
def test_video_frames_come_back_in_order_whatever_the_budget(videos, budget, tmp_path):
    store = _store(videos, budget, tmp_path)
    for _ in range(2):
        for source, frame in [(1, 3), (0, 0), (1, 0), (0, 2), (0, 3), (1, 1)]:
            assert abs(store.get(source, frame).float().mean() - (40 * frame + source)) < 2


@pytest.mark.parametrize("budget", [100 * FRAME, 1])
def test_every_file_is_decoded_once(images, videos, budget, tmp_path, decodes):
    store = _store([*images, *videos], budget, tmp_path)
    for _ in range(3):
        for source in range(5):
            for frame in range(4):
                store.get(source, frame)
    assert len(decodes) == len(set(decodes)) == 3 * 4 + 2


def test_memory_stays_within_the_budget(images, videos, tmp_path):
    store = _store([*images, *videos], 4 * FRAME, tmp_path)
    for source in range(5):
        for frame in range(4):
            store.get(source, frame)
            assert store._held == sum(p.nbytes for p in store._memory.values()) <= 4 * FRAME


def test_least_recently_used_frame_goes_first(images, tmp_path):
    store = _store(images, 2 * FRAME, tmp_path)
    store.get(0, 0), store.get(0, 1), store.get(0, 0), store.get(0, 2)
    assert set(store._memory) == {(0, 0), (0, 2)}


def test_nothing_is_decoded_before_it_is_asked_for(images, tmp_path, decodes):
    store = _store(images, 1, tmp_path)
    assert decodes == [] and not (tmp_path / "run").exists()
    store.get(1, 3)
    assert decodes == ["1_3.png"]


def test_spool_leaves_no_file_behind(images, videos, tmp_path):
    store = _store([*images, *videos], FRAME, tmp_path)
    store.get(0, 0), store.get(3, 0)
    assert list((tmp_path / "run").iterdir()) == []


def test_prepare_decodes_the_videos_asked_for(videos, tmp_path, decodes):
    store = _store(videos, 100 * FRAME, tmp_path)
    store.prepare([1])
    assert decodes == ["cam1.mp4"]
    store.prepare()
    store.prepare()
    assert decodes == ["cam1.mp4", "cam0.mp4"]


def _wait(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_prefetch_brings_frames_into_memory(images, tmp_path, decodes):
    store = _store(images, 100 * FRAME, tmp_path)
    store.prefetch([(0, 1), (2, 4)])
    _wait(lambda: set(store._memory) == {(0, 1), (2, 4)})
    store.get(2, 4)
    assert len(decodes) == 2


def test_prefetch_of_what_is_there_starts_nothing(images, tmp_path):
    store = _store(images, 100 * FRAME, tmp_path)
    store.get(0, 1)
    store.prefetch([(0, 1)] * 3)
    assert store._prefetcher is None


def test_prefetch_uses_few_daemon_threads_that_end_with_the_store(images, tmp_path):
    before = set(threading.enumerate())
    store = _store(images, 100 * FRAME, tmp_path)
    for frame in range(5):
        store.prefetch([(0, frame), (1, frame), (2, frame)])
    started = set(threading.enumerate()) - before
    assert 1 <= len(started) <= 2 and all(thread.daemon for thread in started)
    memory = store._memory
    _wait(lambda: len(memory) == 15)
    del store
    _wait(lambda: not any(thread.is_alive() for thread in started))


def test_a_failed_prefetch_is_silent_until_the_frame_is_asked_for(images, tmp_path, capfd):
    images[1].paths[2].write_bytes(b"")
    store = _store(images, 100 * FRAME, tmp_path)
    store.prefetch([(1, 2), (9, 9), (1, 3)])
    _wait(lambda: (1, 3) in store._memory and not store._prefetcher._queued)
    assert capfd.readouterr() == ("", "")
    with pytest.raises(UserError, match="1_2.png"):
        store.get(1, 2)


def test_prefetching_does_not_keep_the_process_alive(images, root):
    """The first frame of the script takes a minute to decode."""
    script = f"""
import time
import scene.frames as frames
frames.read_image = lambda *_, **__: time.sleep(60)
source = frames.ImageFrames(({str(images[0].paths[0])!r},), (32, 24))
store = frames.FrameStore([source], [(32, 24)])
store.prefetch([(0, 0)])
time.sleep(0.1)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, timeout=50, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_many_threads_get_the_right_frames(images, videos, tmp_path, decodes):
    store = _store([*images, *videos], 3 * FRAME, tmp_path)
    wanted = [(s, f) for s in range(5) for f in range(4)] * 5
    np.random.default_rng(0).shuffle(wanted)
    barrier = threading.Barrier(4)

    def work(part: int) -> bool:
        barrier.wait()
        for source, frame in wanted[part::4]:
            pixels = store.get(source, frame).numpy()
            if source < 3:
                assert np.array_equal(pixels, _pixels(source, frame))
            else:
                assert abs(float(pixels.mean()) - (40 * frame + source - 3)) < 2
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
    assert len(decodes) == len(set(decodes))


def test_frames_come_at_the_target_size(images, videos, tmp_path):
    store = _store([*images, *videos], 100 * FRAME, tmp_path, size=(16, 12))
    assert store.get(0, 0).shape == store.get(3, 0).shape == (12, 16, 3)
    mean = _pixels(0, 0).reshape(12, 2, 16, 2, 3).mean(axis=(1, 3))
    assert np.abs(store.get(0, 0).numpy() - mean).max() <= 1.01  # the area average


def test_image_of_another_size_than_its_camera_is_named(images, tmp_path):
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(images[1].paths[2])
    with pytest.raises(UserError, match="1_2.png: is 5 x 5 where its camera says 32 x 24"):
        _store(images, 1, tmp_path).get(1, 2)


def test_too_little_disk_is_an_error_before_anything_is_written(images, tmp_path, monkeypatch):
    monkeypatch.setattr(frames_module.shutil, "disk_usage", lambda _: type("U", (), {"free": 10}))
    with pytest.raises(UserError, match=r"GB of disk.*--cache_gb"):
        _store(images, 1, tmp_path).get(0, 0)


def _free(monkeypatch, space: int) -> None:
    """The disk has ``space`` bytes left, whatever is written."""
    usage = type("Usage", (), {"free": space})
    monkeypatch.setattr(frames_module.shutil, "disk_usage", lambda _: usage)


def test_sources_that_nobody_asks_for_need_no_disk(images, tmp_path, monkeypatch):
    _free(monkeypatch, 0)
    store = _store(images, 5 * FRAME, tmp_path)
    for frame in range(5):
        store.get(1, frame)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="GB of disk"):
        store.get(2, 0)
    assert np.array_equal(store.get(1, 4).numpy(), _pixels(1, 4))


def test_disk_space_is_counted_as_sources_are_used(images, tmp_path, monkeypatch):
    _free(monkeypatch, 10 * FRAME)
    store = _store(images, FRAME, tmp_path)
    store.get(0, 0), store.get(1, 0)
    with pytest.raises(UserError, match="GB of disk"):
        store.get(2, 0)  # 4 + 4 frames are still to be written, 5 more do not fit
    for frame in range(5):
        store.get(0, frame), store.get(1, frame)
    assert np.array_equal(store.get(2, 0).numpy(), _pixels(2, 0))


def test_prepare_looks_for_disk_space_for_all_it_is_told(images, tmp_path, monkeypatch, decodes):
    _free(monkeypatch, 12 * FRAME)
    store = _store(images, FRAME, tmp_path)
    store.prepare([0, 1])
    with pytest.raises(UserError, match="GB of disk"):
        store.prepare()
    assert decodes == []


def test_frames_decoded_before_the_spool_began_are_in_it(images, tmp_path, decodes):
    store = _store(images, 6 * FRAME, tmp_path)
    for source in (0, 1, 2, 0, 1, 2):
        for frame in range(5):
            assert np.array_equal(store.get(source, frame).numpy(), _pixels(source, frame))
    assert len(decodes) == len(set(decodes)) == 15


def test_a_failed_video_is_not_taken_for_decoded(videos, tmp_path):
    data = videos[0].path.read_bytes()
    store = _store(videos, 100 * FRAME, tmp_path)
    videos[0].path.write_bytes(data[: len(data) // 2])
    for _ in range(2):
        with pytest.raises(UserError, match="cam0.mp4"):
            store.get(0, 1)
    videos[0].path.write_bytes(data)
    assert store.get(0, 1).shape == (24, 32, 3)
