"""utils/video.py: round trips, selection of frames, damage, odd sizes, atomic writing."""

from __future__ import annotations

import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from utils.errors import UserError
from utils.video import probe_video, read_video, write_video


def _frames(count: int = 12, width: int = 64, height: int = 48) -> list[np.ndarray]:
    """Smooth colours with a bar that moves by two pixels a frame."""
    y, x = np.mgrid[:height, :width]
    frames = []
    for i in range(count):
        frame = np.stack([x * 200 / width, y * 200 / height, 0 * x + 90], axis=-1)
        frame[:, 2 * i : 2 * i + 8] = 240
        frames.append(frame.astype(np.uint8))
    return frames


@pytest.fixture
def clip(tmp_path):
    write_video(tmp_path / "clip.mp4", _frames(), fps=25)
    return tmp_path / "clip.mp4"


def test_round_trip_keeps_frames_and_colours(clip):
    read = np.stack(list(read_video(clip))).astype(float)
    error = read - np.stack(_frames())
    assert read.shape == (12, 48, 64, 3)
    assert np.abs(error).mean() < 3
    assert np.abs(error.mean(axis=(0, 1, 2))).max() < 1  # no colour cast


def test_file_is_h264_in_yuv420p(clip):
    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"


def test_file_says_which_yuv_it_holds(tmp_path):
    path = tmp_path / "green.mp4"
    write_video(path, [np.full((720, 960, 3), (0, 158, 115), np.uint8)])
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    assert frame.colorspace == 6  # BT.601; 2 would leave it to the player
    said = frame.reformat(format="rgb24", src_colorspace="ITU601").to_ndarray()
    assert np.abs(said.astype(int) - (0, 158, 115)).max() <= 3


@pytest.mark.parametrize("fps", [25, 29.97, 30000 / 1001, 12.5])
def test_probe_says_size_count_and_rate(tmp_path, fps):
    write_video(tmp_path / "a.mp4", _frames(5), fps=fps)
    info = probe_video(tmp_path / "a.mp4")
    assert (info.width, info.height, info.frames) == (64, 48, 5)
    assert info.fps == pytest.approx(fps, rel=1e-3)


def test_chosen_frames_in_ascending_order(clip):
    everything = list(read_video(clip))
    chosen = list(read_video(clip, [7, 2, 4]))
    assert all(np.array_equal(a, everything[i]) for a, i in zip(chosen, (2, 4, 7), strict=True))
    assert list(read_video(clip, [])) == []


def test_frames_can_be_scaled_down_without_a_shift(clip):
    small = next(read_video(clip, [0], size=(32, 24)))
    full = next(read_video(clip, [0]))
    average = full.reshape(24, 2, 32, 2, 3).mean(axis=(1, 3))
    assert np.abs(small - average).mean() < 2


def _turn(path, a: int, b: int, c: int, d: int) -> None:
    """Writes the first four numbers of the display matrix of an mp4's only track."""
    data, one = bytearray(path.read_bytes()), 1 << 16
    at = data.index(b"tkhd") + 4 + 4 + 5 * 4 + 8 + 8  # version and flags, times, layer, volume
    assert struct.unpack_from(">9i", data, at) == (one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, at, a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("matrix", "turns"), [((0, 1, -1, 0), 3), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)]
)
def test_pictures_are_turned_upright_as_the_file_asks_for(clip, matrix, turns):
    stored = list(read_video(clip))
    _turn(clip, *matrix)
    upright = [np.rot90(pixels, turns) for pixels in stored]
    assert all(map(np.array_equal, read_video(clip), upright))
    height, width = upright[0].shape[:2]
    info = probe_video(clip)
    assert (info.width, info.height, info.frames) == (width, height, 12)
    assert np.array_equal(next(read_video(clip, [7])), upright[7])
    small = next(read_video(clip, [7], (width // 2, height // 2)))
    assert small.shape == (height // 2, width // 2, 3) and small.flags.c_contiguous
    average = upright[7].reshape(height // 2, 2, width // 2, 2, 3).mean(axis=(1, 3))
    assert np.abs(small - average).mean() < 2


def test_a_quarter_turn_to_the_right_puts_the_left_side_on_top(tmp_path):
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:, :32] = 255
    write_video(tmp_path / "a.mp4", [frame])
    _turn(tmp_path / "a.mp4", 0, 1, -1, 0)
    (pixels,) = read_video(tmp_path / "a.mp4")
    assert pixels.shape == (64, 48, 3) and pixels[:30].min() > 200 and pixels[34:].max() < 50


def test_odd_sizes_are_padded_by_their_edge(tmp_path):
    frames = _frames(3, width=63, height=47)
    write_video(tmp_path / "a.mp4", frames, quality=5)
    read = np.stack(list(read_video(tmp_path / "a.mp4")))
    assert read.shape == (3, 48, 64, 3)
    assert np.abs(read[:, :47, :63].astype(float) - np.stack(frames)).mean() < 3
    assert np.abs(read[:, 47].astype(float) - read[:, 46]).mean() < 10
    assert np.abs(read[:, :, 63].astype(float) - read[:, :, 62]).mean() < 10


def test_a_generator_that_fails_leaves_the_old_file(clip):
    before = clip.read_bytes()

    def broken():
        yield _frames()[0]
        raise RuntimeError("renderer stopped")

    with pytest.raises(RuntimeError, match="renderer stopped"):
        write_video(clip, broken())
    assert clip.read_bytes() == before
    assert [p.name for p in clip.parent.iterdir()] == ["clip.mp4"]


def test_no_frames_write_no_file(tmp_path):
    assert write_video(tmp_path / "a.mp4", []) == 0
    assert list(tmp_path.iterdir()) == []


def test_frames_of_different_sizes_are_a_bug_of_the_caller(tmp_path):
    with pytest.raises(ValueError, match="frame 1 has shape"):
        write_video(tmp_path / "a.mp4", [_frames()[0], _frames(1, width=32)[0]])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"hello", bytes(5000)])
def test_files_that_are_no_video_are_named(tmp_path, content):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    for function in (probe_video, lambda p: list(read_video(p))):
        with pytest.raises(UserError, match="a.mp4"):
            function(path)


def test_missing_video_is_named(tmp_path):
    with pytest.raises(UserError, match="none.mp4: no such video"):
        probe_video(tmp_path / "none.mp4")


def test_file_without_video_stream_is_named(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(UserError, match="sound.mp4: holds no video stream"):
        probe_video(path)


def test_damaged_frame_is_named_by_its_index(clip):
    data = bytearray(clip.read_bytes())
    with av.open(str(clip)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        packet = packets[6]
        position, size = packet.pos, packet.size
    data[position + 8 : position + size] = bytes(size - 8)
    clip.write_bytes(data)
    with pytest.raises(UserError, match=r"clip.mp4: frame \d+ (is damaged|cannot be decoded)"):
        list(read_video(clip))


def test_damage_that_the_decoder_conceals_is_still_reported(clip):
    """Random bytes inside a frame: the decoder goes on and only flags it. A few decode as data."""
    whole = clip.read_bytes()
    with av.open(str(clip)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size > 60]
    messages = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        position, size = packets[seed % len(packets)]
        data = bytearray(whole)
        start = position + size // 3
        data[start : position + size] = rng.bytes(position + size - start)
        clip.write_bytes(data)
        try:
            list(read_video(clip))
        except UserError as error:
            messages.append(str(error))
    assert len(messages) >= 6
    assert any("is damaged" in message for message in messages)


def _fast_start(source, target) -> None:
    """Copies a video with its index in front, as most cameras and web sites write it."""
    with av.open(str(source)) as old, av.open(
        str(target), "w", options={"movflags": "faststart"}
    ) as new:  # fmt: skip
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)


@pytest.mark.parametrize("keep", [0.6, 0.95])
def test_cut_video_whose_index_survived_is_named(clip, tmp_path, keep):
    path = tmp_path / "web.mp4"
    _fast_start(clip, path)
    assert probe_video(path).frames == 12
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(UserError, match="web.mp4: cut short"):
        probe_video(path)
    with pytest.raises(UserError, match=r"web.mp4: (frame|ends after)"):
        list(read_video(path))


def test_frames_beyond_the_end_are_an_error(clip):
    with pytest.raises(UserError, match="ends after 12 of 40 frames"):
        list(read_video(clip, range(40)))


def test_container_without_frame_count_is_counted(clip, tmp_path):
    path = tmp_path / "clip.mkv"
    with av.open(str(clip)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    assert probe_video(path).frames == 12
    assert Fraction(probe_video(path).fps).limit_denominator(100) == 25
