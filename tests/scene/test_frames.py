"""scene/frames.py: the budget is kept, nothing is decoded twice, threads agree."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
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
    _wait(lambda: (1, 3) in store._memory and not store._prefetcher.queued)
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


# ---- where frames are kept ----------------------------------------------------------------------


def _cached(sources, cache: str, tmp_path, budget: int = 2 * FRAME) -> FrameStore:
    sizes = [SIZE] * len(sources)
    return FrameStore(sources, sizes, budget=budget, spool_folder=tmp_path / "run", cache=cache)


@pytest.mark.parametrize("cache", ["auto", "ram", "disk", "none"])
def test_images_are_the_same_whatever_the_cache(images, cache, tmp_path):
    store = _cached(images, cache, tmp_path)
    for _ in range(2):
        for source in (2, 0, 1):
            for frame in range(5):
                store.prefetch([(source, (frame + 1) % 5)])
                assert np.array_equal(store.get(source, frame).numpy(), _pixels(source, frame))


def test_ram_keeps_everything_whatever_the_budget(images, videos, tmp_path, decodes):
    store = _cached([*images, *videos], "ram", tmp_path, budget=1)
    for _ in range(2):
        for source in range(5):
            for frame in range(4):
                store.get(source, frame)
    assert len(decodes) == len(set(decodes)) == 3 * 4 + 2
    assert store._held == 20 * FRAME and not (tmp_path / "run").exists()


def test_ram_refuses_what_the_machine_has_no_memory_for(images, tmp_path, decodes, monkeypatch):
    monkeypatch.setattr(frames_module, "available_memory", lambda: 15 * FRAME - 1)
    store = _cached(images, "ram", tmp_path)
    with pytest.raises(UserError, match=r"--cache ram: .*0\.0 GB of memory.*--cache disk.*-r"):
        store.prepare()
    assert decodes == []
    store.reserve([0, 1])  # these two fit, and what was refused does not count
    store.get(0, 0)


def test_ram_counts_what_it_holds_already_as_there(images, tmp_path, monkeypatch):
    monkeypatch.setattr(frames_module, "available_memory", lambda: 10 * FRAME)
    store = _cached(images, "ram", tmp_path)
    for frame in range(5):
        store.get(0, frame)
    store.reserve()


def test_ram_where_the_system_does_not_say_how_much_there_is(images, tmp_path, monkeypatch):
    monkeypatch.setattr(frames_module, "available_memory", lambda: None)
    _cached(images, "ram", tmp_path).prepare()


def test_disk_has_every_frame_and_memory_only_the_budget(images, tmp_path, decodes, capfd):
    store = _cached(images, "disk", tmp_path, budget=100 * FRAME)
    for _ in range(2):
        for frame in range(5):
            store.get(1, frame)
    assert store._spool._filled == {(1, frame) for frame in range(5)}
    assert len(decodes) == 5 and capfd.readouterr().err == ""
    small = _cached(images, "disk", tmp_path, budget=2 * FRAME)
    for _ in range(2):
        for frame in range(5):
            small.get(1, frame)
            assert small._held <= 2 * FRAME
    assert len(decodes) == 10


def test_disk_that_is_full_names_what_helps(images, tmp_path, monkeypatch):
    _free(monkeypatch, 0)
    with pytest.raises(UserError, match="GB of disk.*-r.*--cache auto or none"):
        _cached(images, "disk", tmp_path).reserve()


def test_none_keeps_nothing(images, tmp_path, decodes):
    store = _cached(images, "none", tmp_path, budget=100 * FRAME)
    for _ in range(3):
        store.get(0, 1)
        assert not store._memory and store._held == 0
    assert decodes == ["0_1.png"] * 3 and not (tmp_path / "run").exists()


def test_none_holds_what_was_prefetched_until_it_is_taken(images, tmp_path, decodes):
    store = _cached(images, "none", tmp_path)
    store.prefetch([(0, 1), (2, 4)])
    _wait(lambda: set(store._memory) == {(0, 1), (2, 4)})
    store.get(2, 4)
    assert set(store._memory) == {(0, 1)} and store._held == FRAME and len(decodes) == 2
    store.prefetch([(1, 0), (1, 1)])
    _wait(lambda: not store._prefetcher.queued)
    assert store._held == 2 * FRAME  # never more than the budget, taken or not


def test_none_is_left_with_nothing_by_a_prefetch_that_came_too_late(images, tmp_path, monkeypatch):
    """Both threads are busy with other images while the third is asked for."""
    release, decoded, original = threading.Event(), [], frames_module.read_image

    def slow(path, **options):
        decoded.append(path.name)
        if path.name.startswith("1"):
            assert release.wait(20)
        return original(path, **options)

    monkeypatch.setattr(frames_module, "read_image", slow)
    store = _cached(images, "none", tmp_path, budget=100 * FRAME)
    store.prefetch([(1, 0), (1, 1), (0, 3)])
    _wait(lambda: len(decoded) == 2)
    store.get(0, 3)
    release.set()
    _wait(lambda: set(store._memory) == {(1, 0), (1, 1)})
    store.prefetch([(1, 2)])  # behind whatever is still to come
    _wait(lambda: (1, 2) in store._memory and not store._prefetcher.queued)
    assert (0, 3) not in store._memory and decoded.count("0_3.png") == 1


def test_none_refuses_videos_at_once(images, videos, tmp_path):
    with pytest.raises(UserError, match=r"--cache none: .*cam0.mp4 .*--cache disk.*pre_n3v.py"):
        _cached([*images, *videos], "none", tmp_path)


def test_an_unknown_cache_is_a_mistake_of_the_caller(images, tmp_path):
    with pytest.raises(ValueError, match="'tape'"):
        _cached(images, "tape", tmp_path)


def test_images_of_one_source_are_decoded_at_the_same_time(images, tmp_path, monkeypatch):
    together = threading.Barrier(2, timeout=20)
    monkeypatch.setattr(frames_module, "read_image", lambda *_, **__: together.wait() or _zeros())
    store = _store(images, 100 * FRAME, tmp_path)
    store.prefetch([(0, 0)])
    assert store.get(0, 1).max() == 0


def _zeros() -> np.ndarray:
    return np.zeros((24, 32, 3), np.uint8)


# ---- masks --------------------------------------------------------------------------------------


def _mask(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def _half(white: slice) -> np.ndarray:
    pixels = np.zeros((24, 32), np.uint8)
    pixels[:, white] = 255
    return pixels


@pytest.fixture
def masked(images, videos, tmp_path) -> list:
    """A camera with two masks of five, one without, a video with a mask for all frames."""
    left = _mask(tmp_path / "left.png", _half(slice(16)))
    right = _mask(tmp_path / "right.png", _half(slice(16, 32)))
    per_frame = replace(images[0], masks=(None, left, None, right, None))
    return [per_frame, images[1], replace(videos[0], masks=(left,))]


@pytest.mark.parametrize("cache", ["auto", "ram", "disk"])
def test_masks_belong_to_their_frames(masked, cache, tmp_path):
    store = _cached(masked, cache, tmp_path)
    for _ in range(2):
        assert [store.mask(0, f) is None for f in range(5)] == [True, False, True, False, True]
        assert store.mask(1, 0) is None
        left, right = store.mask(0, 1), store.mask(0, 3)
        assert left.dtype == torch.bool and left[:, :16].all() and not left[:, 16:].any()
        assert torch.equal(right, ~left)
        assert all(torch.equal(store.mask(2, f), left) for f in range(4))
        assert np.array_equal(store.get(0, 1).numpy(), _pixels(0, 1))


def test_masks_are_area_averages_above_one_half(images, tmp_path):
    pixels = np.zeros((24, 32), np.uint8)
    pixels[0, :3], pixels[1, 0] = 255, 255  # a block of three in four, then one of one in four
    source = replace(images[0], masks=(_mask(tmp_path / "m.png", pixels),))
    mask = _store([source], 100 * FRAME, tmp_path, size=(16, 12)).mask(0, 4)
    assert mask.shape == (12, 16) and mask[0, 0] and mask.sum() == 1


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "P", "I;16"])
def test_masks_of_any_kind_of_image(images, tmp_path, mode):
    image = Image.fromarray(_half(slice(16)))
    if mode == "I;16":
        image = Image.fromarray(_half(slice(16)).astype(np.uint16) * 257)
    elif mode == "RGBA":  # white everywhere, transparent where it does not count
        image = Image.new("RGBA", SIZE, (255, 255, 255, 255))
        image.putalpha(Image.fromarray(_half(slice(16))))
    else:
        image = image.convert(mode)
    image.save(tmp_path / "m.png")
    source = replace(images[0], masks=(tmp_path / "m.png",))
    mask = _store([source], 100 * FRAME, tmp_path).mask(0, 0)
    assert mask[:, :16].all() and not mask[:, 16:].any()


def test_masks_count_for_the_budget_with_a_byte_per_pixel(masked, tmp_path):
    store = _store(masked, 2 * FRAME, tmp_path)
    for frame in range(5):
        store.get(0, frame), store.mask(0, frame)
        assert store._held == sum(p.nbytes for p in store._memory.values()) <= 2 * FRAME
    assert store.mask(0, 1).numpy().nbytes == FRAME // 3
    assert {(3, 1), (3, 3)} <= store._spool._filled


def test_one_mask_for_many_sources_is_decoded_once(images, tmp_path, monkeypatch):
    seen = []
    original = frames_module.read_mask
    monkeypatch.setattr(frames_module, "read_mask", lambda p: seen.append(p) or original(p))
    shared = (_mask(tmp_path / "m.png", _half(slice(16))),)
    store = _store([replace(s, masks=shared) for s in images], 100 * FRAME, tmp_path)
    assert all(store.mask(s, f)[0, 0] for s in range(3) for f in range(5))
    assert len(seen) == 1


def test_masks_are_prefetched_with_their_images(masked, tmp_path):
    store = _store(masked, 100 * FRAME, tmp_path)
    store.prefetch([(0, 1), (0, 2), (1, 0)])
    _wait(lambda: set(store._memory) == {(0, 1), (0, 2), (1, 0), (3, 1)})


def test_ram_counts_masks(masked, tmp_path, monkeypatch):
    monkeypatch.setattr(frames_module, "available_memory", lambda: 5 * FRAME)
    with pytest.raises(UserError, match="--cache ram"):
        _cached(masked, "ram", tmp_path).reserve([0])


def test_a_mask_that_went_bad_is_named(masked, tmp_path):
    store = _store(masked, 100 * FRAME, tmp_path)
    (tmp_path / "left.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match="left.png: not a whole image"):
        store.mask(0, 1)
    _mask(tmp_path / "right.png", np.zeros((5, 5), np.uint8))
    with pytest.raises(UserError, match="right.png: is 5 x 5 where its camera says 32 x 24"):
        store.mask(0, 3)
