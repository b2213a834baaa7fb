"""What was filmed: found, in order, and refused in one line where it cannot be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from script.preprocessing.footage import Clip, check_rates, choose_frames, find_clips, spread
from utils.errors import UserError
from utils.video import write_video


def video(path: Path, frames: int = 4, fps: float = 30, size: tuple[int, int] = (32, 24)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, [np.full((size[1], size[0], 3), 9 * i, np.uint8) for i in range(frames)], fps)


def pictures(folder: Path, frames: int = 3, size: tuple[int, int] = (32, 24)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(frames):
        Image.new("RGB", size, (9 * i, 0, 0)).save(folder / f"{i}.png")


def clips_of(*frames: int, fps: float | None = 30.0) -> list[Clip]:
    return [Clip(f"cam{i}", Path(f"cam{i}.mp4"), (32, 24), n, fps) for i, n in enumerate(frames)]


def names(root: Path, pattern: str = "*") -> list[str]:
    return [clip.name for clip in find_clips(root, pattern)]


@pytest.mark.parametrize("folder", [".", "videos"])
def test_videos_are_found_in_natural_order(tmp_path, folder):
    for name in ("cam10.mp4", "cam2.MP4", "cam1.mkv"):
        video(tmp_path / folder / name.lower())
    (tmp_path / folder / "cam2.mp4").rename(tmp_path / folder / "cam2.MP4")
    clips = find_clips(tmp_path)
    assert [clip.name for clip in clips] == ["cam1", "cam2", "cam10"]
    first = clips[0]
    assert (first.size, first.frames, first.fps, first.is_video) == ((32, 24), 4, 30, True)


@pytest.mark.parametrize("folder", [".", "images"])
def test_folders_of_images_are_found_in_natural_order(tmp_path, folder):
    for name in ("cam10", "cam9"):
        pictures(tmp_path / folder / name)
    clips = find_clips(tmp_path)
    assert [clip.name for clip in clips] == ["cam9", "cam10"]
    assert (clips[0].size, clips[0].frames, clips[0].fps) == ((32, 24), 3, None)


def test_videos_go_before_images_and_what_does_not_fit_is_passed_over(tmp_path):
    video(tmp_path / "cam1.mp4")
    video(tmp_path / "other.mp4")
    pictures(tmp_path / "cam2")
    (tmp_path / "cam3.txt").touch()
    (tmp_path / "cam4.mp4").mkdir()
    assert names(tmp_path, "cam*") == ["cam1"] and names(tmp_path) == ["cam1", "other"]


def test_our_own_folders_are_no_cameras(tmp_path):
    for name in ("colmap", "report", "masks", ".hidden", "left", "right"):
        pictures(tmp_path / name)
    assert names(tmp_path) == ["left", "right"]


def test_hidden_files_are_no_cameras(tmp_path):
    video(tmp_path / "cam1.mp4")
    (tmp_path / "._cam1.mp4").write_bytes(b"what macOS leaves on other disks")
    assert names(tmp_path) == ["cam1"]


def test_all_damaged_videos_are_named_in_one_line(tmp_path):
    for i in range(3):
        video(tmp_path / f"cam{i}.mp4")
    (tmp_path / "cam0.mp4").write_bytes(b"")
    whole = (tmp_path / "cam2.mp4").read_bytes()
    (tmp_path / "cam2.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError) as error:
        find_clips(tmp_path)
    text = str(error.value)
    assert "cam0.mp4" in text and "cam2.mp4" in text and "cam1.mp4" not in text


def test_a_damaged_first_image_is_named(tmp_path):
    pictures(tmp_path / "cam1")
    (tmp_path / "cam1/0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="0.png"):
        find_clips(tmp_path)


def test_two_videos_of_one_name_are_refused(tmp_path):
    video(tmp_path / "cam1.mp4")
    video(tmp_path / "cam1.mov")
    with pytest.raises(UserError, match="two videos are named cam1"):
        find_clips(tmp_path)


def test_names_with_spaces_are_refused_as_colmap_cannot_read_them(tmp_path):
    video(tmp_path / "cam 1.mp4")
    with pytest.raises(UserError, match=r"rename cam 1\.mp4"):
        find_clips(tmp_path)


def test_a_folder_without_footage_says_what_is_missing(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="neither videos .* nor a folder of images"):
        find_clips(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        find_clips(tmp_path / "nowhere")


def test_frame_rates_that_differ_are_refused(tmp_path):
    rates = [30.0, 30.0, 29.97, 25.0]
    clips = [Clip(f"cam{i}", Path(f"cam{i}.mp4"), (8, 8), 9, fps) for i, fps in enumerate(rates)]
    with pytest.raises(UserError, match=r"cam2 29\.97, cam3 25, the others 30;"):
        check_rates(clips)
    with pytest.raises(UserError, match="cam2"):
        check_rates([clips[0], clips[2]])
    assert check_rates(clips[:2]) == 30.0
    assert check_rates(clips_of(3, 3, fps=None)) is None


def test_the_rate_of_a_file_is_what_is_compared(tmp_path):
    video(tmp_path / "cam0.mp4", fps=30)
    video(tmp_path / "cam1.mp4", fps=30)
    video(tmp_path / "cam2.mp4", fps=24)
    with pytest.raises(UserError, match="cam2 24"):
        check_rates(find_clips(tmp_path))


def test_by_default_the_shortest_decides_with_a_note(capsys):
    assert choose_frames(clips_of(9, 7, 8), 0, None, 1) == range(7)
    assert "cam1: 7 frames, others up to 9; using 7" in capsys.readouterr().err


def test_no_note_where_nothing_is_lost_by_it(capsys):
    assert choose_frames(clips_of(9, 9), 0, None, 1) == range(9)
    assert choose_frames(clips_of(9, 8), 0, None, 1, default_end=5) == range(5)
    assert capsys.readouterr().err == ""


def test_an_end_beyond_a_clip_names_the_short_ones():
    with pytest.raises(UserError) as error:
        choose_frames(clips_of(9, 7, 12), 0, 10, 1)
    text = str(error.value)
    assert "cam0.mp4 (9 frames), cam1.mp4 (7 frames)" in text and "--endframe 7" in text
    assert "cam2" not in text


def test_start_end_and_step_choose():
    assert list(choose_frames(clips_of(20, 20), 3, 12, 4)) == [3, 7, 11]


@pytest.mark.parametrize(
    ("start", "end", "step", "text"),
    [
        (-1, None, 1, "--startframe -1"),
        (0, None, 0, "--step 0"),
        (20, None, 1, "--startframe 20: leaves nothing of the 20 frames"),
        (5, 5, 1, "--startframe 5 --endframe 5: leaves no frame"),
        (0, -3, 1, "--endframe -3: leaves no frame"),
    ],
)
def test_frames_out_of_range_are_refused(start, end, step, text):
    with pytest.raises(UserError, match=text):
        choose_frames(clips_of(20, 20), start, end, step)


def test_images_are_read_by_index_and_reduced(tmp_path):
    pictures(tmp_path / "cam1", frames=12)
    (clip,) = find_clips(tmp_path)
    frames = list(clip.read([2, 10], (16, 12)))
    assert [f.shape for f in frames] == [(12, 16, 3)] * 2
    assert [int(f[0, 0, 0]) for f in frames] == [18, 90]
    assert clip.file(10).name == "10.png"


def test_an_image_of_another_size_is_named(tmp_path):
    pictures(tmp_path / "cam1")
    Image.new("RGB", (16, 12)).save(tmp_path / "cam1/1.png")
    (clip,) = find_clips(tmp_path)
    with pytest.raises(UserError, match=r"1\.png: is 16 x 12 where the others are 32 x 24"):
        list(clip.read(range(3)))


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [5]), (2, [5, 14]), (4, [5, 8, 11, 14]), (99, list(range(5, 15)))]
)
def test_moments_are_spread_evenly(count, expected):
    assert spread(range(5, 15), count) == expected
