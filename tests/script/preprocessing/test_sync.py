"""Time offsets: found where motion tells them, and not believed where it does not."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

from script.pre_multiview import shifted, synchronised
from script.preprocessing.footage import Clip, find_clips
from script.preprocessing.sync import SHORTEST, all_energies, estimate_offsets
from utils.errors import UserError
from utils.video import write_video


def bursts(times: np.ndarray, seed: int = 0) -> np.ndarray:
    """How much moves at these times, in frames: smooth peaks at random moments."""
    rng = np.random.default_rng(seed)
    centres, heights = rng.uniform(-60, 260, 36), rng.uniform(1, 6, 36)
    peaks = heights * np.exp(-0.5 * ((times[:, None] - centres) / 2.0) ** 2)
    return 1.0 + peaks.sum(axis=1)


def curves(shifts: list[float], count: int = 120, noise: float = 0.05) -> list[np.ndarray]:
    """A camera with shift s shows at its frame i what happens at time i - s."""
    rng = np.random.default_rng(1)
    found = []
    for gain, s in enumerate(shifts, 1):
        energy = 0.7 * gain * bursts(np.arange(count) - s)
        found.append(energy * (1 + noise * rng.standard_normal(count)))
    return found


@pytest.mark.parametrize("shift", [0, 5, -5, 17, -24])
def test_whole_frames_are_found_in_spite_of_noise_and_gain(shift):
    first, second = estimate_offsets(curves([0, shift]), 30)
    assert first.is_clear and second.is_clear and first.frames == 0
    assert second.frames == pytest.approx(shift, abs=0.25)


@pytest.mark.parametrize("shift", [0.5, -3.3, 8.7])
def test_fractions_of_a_frame_are_found(shift):
    second = estimate_offsets(curves([0, shift]), 30)[1]
    assert second.is_clear and second.frames == pytest.approx(shift, abs=0.25)


def test_three_cameras_agree():
    found = estimate_offsets(curves([0, 4, -7]), 30)
    assert [f.frames for f in found] == pytest.approx([0, 4, -7], abs=0.25)


def test_a_camera_that_shows_something_else_does_not_spoil_the_others():
    energies = curves([0, 0, 6])
    energies[1] = 1 + np.random.default_rng(5).random(120)
    found = estimate_offsets(energies, 30)
    assert found[0].is_clear and found[2].is_clear and not found[1].is_clear
    assert found[2].frames - found[0].frames == pytest.approx(6, abs=0.25)


def test_a_shift_beyond_the_largest_looked_for_is_not_clear():
    assert not estimate_offsets(curves([0, 25]), 10)[1].is_clear


@pytest.mark.parametrize("count", [20, 30, 60, 120])
def test_motion_that_has_nothing_in_common_is_not_clear(count):
    times, rng = np.arange(count), np.random.default_rng(0)
    smooth = [[bursts(times, seed), bursts(times, seed + 500)] for seed in range(60)]
    rough = [[1 + rng.random(count), 1 + rng.random(count)] for _ in range(60)]
    for pairs in (smooth, rough):
        clear = [estimate_offsets(pair, 30)[1].is_clear for pair in pairs]
        assert np.mean(clear) <= 0.06


def test_short_clips_with_much_in_common_are_clear():
    second = estimate_offsets([c[:50] for c in curves([0, 5])], 30)[1]
    assert second.is_clear and second.frames == pytest.approx(5, abs=0.3)


def test_periodic_motion_is_not_clear():
    times = np.arange(160)
    energies = [3 + np.cos(2 * np.pi * (times - s) / 10) for s in (0, 3)]
    assert not any(offset.is_clear for offset in estimate_offsets(energies, 30))


def test_nothing_that_moves_is_not_clear():
    found = estimate_offsets([np.zeros(60), np.zeros(60), np.full(60, 2.0)], 30)
    assert not any(offset.is_clear for offset in found)
    assert all(np.isfinite(offset.frames) for offset in found)


def test_short_clips_and_single_cameras_are_not_compared():
    for energies in (curves([0, 2], SHORTEST - 1), curves([0])):
        assert [(o.frames, o.confidence) for o in estimate_offsets(energies, 30)] == (
            [(0, 0)] * len(energies)
        )


# ---- pixels -------------------------------------------------------------------------------------


def square_at(time: int) -> np.ndarray:
    """A moving square; how far it jumps differs from frame to frame."""
    steps = np.random.default_rng(3).integers(0, 2, 200) * np.tile([0, 3, 0, 0, 9, 1, 0, 5], 25)
    x = 4 + int(steps[: time + 20].sum()) % 48
    pixels = np.full((48, 64, 3), 40, np.uint8)
    pixels[16:28, x : x + 12] = (250, 200, 60)
    pixels[:12] = 20 + 3 * time  # which moment this is
    return pixels


def film(path: Path, first: int, count: int) -> None:
    write_video(path, (square_at(first + i) for i in range(count)))


def moment(clip: Clip, frame: int) -> int:
    pixels = next(clip.read([frame]))
    return round((float(pixels[:8].mean()) - 20) / 3)


@pytest.fixture(scope="module")
def footage(tmp_path_factory) -> list[Clip]:
    """cam1 was started 5 frames before the others, so that its index is 5 higher."""
    root = tmp_path_factory.mktemp("footage")
    film(root / "cam0.mp4", 5, 60)
    film(root / "cam1.mp4", 0, 60)
    film(root / "cam2.mp4", 5, 60)
    return find_clips(root)


def flags(**changed: object) -> argparse.Namespace:
    values = {"no_sync": False, "max_offset": 30, "apply_offsets": True} | changed
    return argparse.Namespace(**values)


def test_videos_that_began_at_other_moments_are_recognised(footage):
    found = estimate_offsets(all_energies(footage, range(60)), 30)
    assert all(offset.is_clear for offset in found)
    assert [offset.frames for offset in found] == pytest.approx([0, 5, 0], abs=0.3)


@pytest.mark.parametrize("frames", [range(60), range(2, 50, 3), range(0, 60, 8)])
def test_applied_offsets_put_frames_of_one_moment_together(footage, frames, capsys):
    capture = synchronised(footage, frames, flags())
    assert "cam1 +5; applied" in capsys.readouterr().out
    assert len({len(chosen) for chosen in capture.frames}) == 1
    for row in (0, len(capture.frames[0]) - 1):
        shown = [moment(c, f[row]) for c, f in zip(footage, capture.frames, strict=True)]
        assert len(set(shown)) == 1, shown
    assert all(0 <= f[0] and f[-1] < 60 for f in capture.frames)
    assert capture.frames[0].step == frames.step


def test_offsets_are_only_told_unless_they_are_to_be_applied(footage, capsys):
    capture = synchronised(footage, range(60), flags(apply_offsets=False))
    assert capture.frames == [range(60)] * 3
    assert "cam1 +5; if report.md agrees" in capsys.readouterr().err


def test_nothing_is_decoded_where_it_is_not_wanted(footage, monkeypatch):
    monkeypatch.setattr(Clip, "read", None)
    capture = synchronised(footage, range(60), flags(no_sync=True))
    assert capture.offsets is None and capture.frames == [range(60)] * 3


@pytest.mark.parametrize(
    ("shifts", "frames", "expected"),
    [
        ([0, 5], range(60), [range(55), range(5, 60)]),
        ([0, -5], range(60), [range(5, 60), range(55)]),
        ([0, 3, -2], range(10, 20), [range(10, 20), range(13, 23), range(8, 18)]),
    ],
)
def test_moments_that_all_cameras_have_are_kept(shifts, frames, expected):
    clips = [Clip(f"cam{i}", Path("x"), (8, 8), 60, 30.0) for i in range(len(shifts))]
    assert shifted(clips, frames, shifts) == expected


def test_offsets_that_leave_nothing_are_refused():
    clips = [Clip(f"cam{i}", Path("x"), (8, 8), 10, 30.0) for i in range(2)]
    with pytest.raises(UserError, match="nothing is left"):
        shifted(clips, range(10), [0, 10])
