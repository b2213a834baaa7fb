"""Video files: probing, sequential decoding that names damaged frames, and H.264 encoding."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import Interpolation

from utils.errors import UserError
from utils.files import atomic_file

SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v")


def _scaling() -> Interpolation:
    """Area filter with exact chroma; older PyAV versions cannot combine flags."""
    try:
        return Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    except (AttributeError, TypeError):
        return Interpolation.AREA


_SCALING = _scaling()
# What libswscale makes of RGB; where a file does not say so, players guess BT.709 for large ones.
_COLOURS = "colormatrix=smpte170m"


@dataclass(frozen=True)
class VideoInfo:
    """What a video file says about itself: size in pixels, number of frames, frames per second.

    The size is that of the upright picture, as `read_video` gives it.
    """

    width: int
    height: int
    frames: int
    fps: float


def probe_video(path: str | Path) -> VideoInfo:
    """Opens a video, decodes its first frame, and checks that the file holds what its index lists.

    Raises:
        UserError: the file is missing, no video, cut short, or its first frame is damaged.
    """
    with _open(path) as (container, stream):
        listed = _listed_frames(path, stream)
        first = next(iter(_decode(path, container, stream)), None)
        if first is None:
            raise UserError(f"{path}: holds no video frame; restore the file")
        width, height = first.width, first.height
        if _quarter_turns(first, stream) % 2:
            width, height = height, width
        rate = stream.average_rate or stream.guessed_rate or Fraction(30)
    return VideoInfo(width, height, listed or _count_packets(path), float(rate))


def _listed_frames(path: str | Path, stream: av.VideoStream) -> int:
    """Frame count of the container's header, 0 if it has none.

    Raises:
        UserError: the index points beyond the end of the file.
    """
    entries = getattr(stream, "index_entries", None) or ()
    end = max((entry.pos + entry.size for entry in entries), default=0)
    size = Path(path).stat().st_size
    if end > size:
        raise UserError(f"{path}: cut short ({size} of {end} bytes); restore the file")
    return stream.frames


def _count_packets(path: str | Path) -> int:
    """Number of frames by reading the file through, without decoding."""
    with _open(path) as (container, stream):
        return sum(1 for packet in container.demux(stream) if packet.size)


def read_video(
    path: str | Path, frames: Collection[int] | None = None, size: tuple[int, int] | None = None
) -> Iterator[np.ndarray]:
    """Decodes a video once from its start, yielding the wanted frames in ascending order.

    Frames are turned as the file asks for, which phones do where they were held upright.

    Args:
        path: the file.
        frames: indices of the frames to yield; None: all. Decoding stops after the last of them.
        size: (width, height) wanted, upright and area-filtered; None keeps the file's own.

    Yields:
        (H, W, 3) uint8, RGB.

    Raises:
        UserError: the file is missing, a frame is damaged, or the file ends before the last one.
    """
    wanted = None if frames is None else set(frames)
    count = turns = 0
    with _open(path) as (container, stream):
        for count, frame in enumerate(_decode(path, container, stream), start=1):
            if count == 1:
                turns = _quarter_turns(frame, stream)
            if wanted is None or count - 1 in wanted:
                yield _to_rgb(frame, size, turns)
            if wanted is not None and count > max(wanted, default=-1):
                return
        expected = stream.frames if wanted is None else max(wanted, default=-1) + 1
    if count < expected:
        raise UserError(f"{path}: ends after {count} of {expected} frames; restore the file")


def _quarter_turns(frame: av.VideoFrame, stream: av.VideoStream) -> int:
    """By how many quarter turns, counter-clockwise, the stored picture must be turned: 0 to 3."""
    degrees = getattr(frame, "rotation", None)
    if degrees is None:  # older PyAV versions say it of the stream
        degrees = (getattr(stream, "side_data", None) or {}).get("DISPLAYMATRIX", 0)
    return round(degrees / 90) % 4


def _to_rgb(frame: av.VideoFrame, size: tuple[int, int] | None, turns: int) -> np.ndarray:
    width, height = frame.width, frame.height
    if size is not None:
        width, height = size[::-1] if turns % 2 else size
    scaled = frame.reformat(width=width, height=height, format="rgb24", interpolation=_SCALING)
    pixels = scaled.to_ndarray()
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


@contextmanager
def _open(path: str | Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """The container and its first video stream, closed at the end; libav's errors become ours."""
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video:
                raise UserError(f"{path}: holds no video stream; restore the file")
            stream = container.streams.video[0]
            stream.thread_type = "FRAME"  # slice threads would leave damaged frames unflagged
            yield container, stream
    except FFmpegError as error:
        if not Path(path).exists():
            raise UserError(f"{path}: no such video; restore it") from None
        raise UserError(f"{path}: not a readable video ({error.strerror}); restore it") from None


def _decode(
    path: str | Path, container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[av.VideoFrame]:
    """All frames in order of presentation.

    Raises:
        UserError: a frame that the decoder reports as damaged, named by its index.
    """
    index = -1
    try:
        for index, frame in enumerate(container.decode(stream)):
            if frame.is_corrupt:
                raise UserError(f"{path}: frame {index} is damaged; restore the file")
            yield frame
    except FFmpegError as error:
        raise UserError(
            f"{path}: frame {index + 1} cannot be decoded ({error.strerror}); restore the file"
        ) from None


def write_video(
    path: str | Path, frames: Iterable[np.ndarray], fps: float = 30.0, quality: int = 18
) -> int:
    """Encodes frames as H.264, yuv420p, in an mp4 that plays everywhere; atomic.

    Args:
        path: the file, its suffix naming the container; replaced only when all frames are in.
        frames: (H, W, 3) uint8 RGB each, all of one size; consumed one at a time. Odd sizes are
            padded by repeating the last row or column, as yuv420p needs even ones.
        fps: frames per second.
        quality: libx264's constant rate factor; lower is better, 0 to 51.

    Returns:
        The number of frames written; 0 writes no file.

    Raises:
        ValueError: frames differ in size.
    """
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        return 0
    with atomic_file(path) as temporary, av.open(str(temporary), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.options = {"crf": str(quality), "preset": "veryfast", "x264-params": _COLOURS}
        stream.pix_fmt = "yuv420p"
        stream.height, stream.width = (n + n % 2 for n in first.shape[:2])
        count = _encode(container, stream, first, iterator)
        container.mux(stream.encode())
    return count


def _encode(
    container: av.container.OutputContainer,
    stream: av.VideoStream,
    first: np.ndarray,
    rest: Iterator[np.ndarray],
) -> int:
    """Encodes ``first`` and the rest; returns how many."""
    count, pixels = 0, first
    while pixels is not None:
        if pixels.shape != first.shape:
            raise ValueError(f"frame {count} has shape {pixels.shape}, the first {first.shape}")
        container.mux(stream.encode(_to_yuv(pixels)))
        count += 1
        pixels = next(rest, None)
    return count


def _to_yuv(pixels: np.ndarray) -> av.VideoFrame:
    height, width = pixels.shape[:2]
    if height % 2 or width % 2:
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    return frame.reformat(format="yuv420p", interpolation=_SCALING)
