"""What was filmed: a clip per camera, a video or a folder of images, looked at before any work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from script.preprocessing.steps import warn
from utils.errors import UserError
from utils.images import check_image, list_images, natural_key, read_image, resize_image
from utils.video import SUFFIXES, probe_video, read_video

Size = tuple[int, int]  # width, height
FPS_TOLERANCE = 5e-4  # relative: 29.97 and 30 frames a second drift apart by a frame in 33 s
OUR_FOLDERS = ("images", "colmap", "sparse", "report", "masks")  # in a scene, but no camera's


@dataclass(frozen=True)
class Clip:
    """The frames of one camera. ``fps`` is None for images, which do not say.

    ``files`` are its images where they are not all that is in the folder ``path``.
    """

    name: str
    path: Path
    size: Size
    frames: int
    fps: float | None
    files: tuple[Path, ...] = ()

    @property
    def is_video(self) -> bool:
        """Whether the frames are in a video file."""
        return self.fps is not None

    @property
    def sources(self) -> Sequence[Path]:
        """The files or the folder that all frames are in."""
        return self.files or [self.path]

    def images(self) -> Sequence[Path]:
        """The files of the frames, if it is no video."""
        return self.files or list_images(self.path)

    def file(self, index: int) -> Path:
        """The file that a frame is in."""
        return self.path if self.is_video else self.images()[index]

    def read(self, indices: Sequence[int], size: Size | None = None) -> Iterator[np.ndarray]:
        """The frames of these ascending indices: (H, W, 3) uint8 RGB, area-filtered to ``size``.

        Raises:
            UserError: a frame is damaged or missing, named by its index or file.
        """
        if self.is_video:
            yield from read_video(self.path, indices, size)
            return
        files = self.images()
        for index in indices:
            pixels = read_image(files[index])
            self.check_size(files[index], pixels.shape[1::-1])
            yield pixels if size is None else resize_image(pixels, size)

    def check_size(self, file: Path, size: Size) -> None:
        """Refuses an image that has another size than the rest.

        Raises:
            UserError: it has; the line names the file.
        """
        if tuple(size) != tuple(self.size):
            raise UserError(
                f"{file}: is {size[0]} x {size[1]} where the others are "
                f"{self.size[0]} x {self.size[1]}; export the frames again at one size"
            )


def find_clips(root: Path, pattern: str = "*") -> list[Clip]:
    """The cameras of a folder, in the natural order of their names.

    Videos directly in it, else in ``videos/``; else folders of images directly in it, else in
    ``images/``.

    Args:
        root: where to look.
        pattern: of the names that count.

    Raises:
        UserError: no such folder, nothing in it, or files that are damaged: each is named.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the folder with the cameras' videos")
    for paths in _candidates(root, pattern):
        if paths:
            return _probe_all(sorted(paths, key=lambda path: natural_key(path.stem)))
    raise UserError(
        f"{root}: holds neither videos ({', '.join(SUFFIXES)}) named {pattern} nor a folder of "
        "images for each camera; put a file or folder there for every camera"
    )


def _candidates(root: Path, pattern: str) -> Iterator[list[Path]]:
    for folder in (root, root / "videos"):
        yield [
            p
            for p in folder.glob(pattern)
            if p.suffix.lower() in SUFFIXES and p.name[0] != "." and p.is_file()
        ]
    for folder in (root, root / "images"):
        yield [
            p
            for p in folder.glob(pattern)
            if p.is_dir() and p.name not in OUR_FOLDERS and p.name[0] != "." and list_images(p)
        ]


def _probe_all(paths: Sequence[Path]) -> list[Clip]:
    """Probes every clip, and names all that are damaged at once."""
    clips, faults = [], []
    spaced = [path.name for path in paths if len(path.stem.split()) != 1]
    if spaced:
        raise UserError(
            f"{paths[0].parent}: COLMAP takes no names with spaces; rename {', '.join(spaced)}"
        )
    for path in paths:
        try:
            clips.append(probe(path))
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError("; ".join(faults))
    names = [clip.name for clip in clips]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{paths[0].parent}: two videos are named {name}; rename one of them")
    return clips


def probe(path: Path) -> Clip:
    """What a video file or a folder of images holds.

    Raises:
        UserError: the file, or the first image, is damaged.
    """
    if path.is_dir():
        files = list_images(path)
        return Clip(path.name, path, check_image(files[0]), len(files), None)
    info = probe_video(path)
    return Clip(path.stem, path, (info.width, info.height), info.frames, info.fps)


def choose_frames(
    clips: Sequence[Clip], start: int, end: int | None, step: int, *, default_end: int | None = None
) -> range:
    """The frames to use of every clip.

    Args:
        start, end, step: as given; ``end`` None: as many as all clips have, and at most
            ``default_end``.

    Raises:
        UserError: out of range, or a clip is shorter than ``end``; the clips are named.
    """
    if start < 0 or step < 1:
        raise UserError(f"--startframe {start} --step {step}: give at least 0 and at least 1")
    shortest = min(clip.frames for clip in clips)
    if end is not None and end <= start:
        raise UserError(f"--startframe {start} --endframe {end}: leaves no frame; give a later end")
    if end is not None:
        short = [f"{clip.path} ({clip.frames} frames)" for clip in clips if clip.frames < end]
        if short:
            raise UserError(
                f"--endframe {end}: shorter than that: {', '.join(short)}; restore them or give "
                f"--endframe {shortest}"
            )
    else:
        end = min(shortest, default_end) if default_end else shortest
        short = [clip.name for clip in clips if clip.frames == shortest]
        if end == shortest and len(short) < len(clips):
            longest = max(clip.frames for clip in clips)
            warn(
                f"{', '.join(short)}: {shortest} frames, others up to {longest}; "
                f"using {shortest} of each"
            )
    chosen = range(start, end, step)
    if not chosen:
        raise UserError(f"--startframe {start}: leaves nothing of the {end} frames; give less")
    return chosen


def check_rates(clips: Sequence[Clip]) -> float | None:
    """The frame rate that all videos share; None for images.

    Raises:
        UserError: rates differ: frame i is then not the same moment in every camera.
    """
    rates = {clip.name: clip.fps for clip in clips if clip.fps}
    if not rates:
        return None
    usual = max(rates.values(), key=lambda fps: sum(_alike(fps, r) for r in rates.values()))
    odd = [f"{name} {fps:.5g}" for name, fps in rates.items() if not _alike(fps, usual)]
    if odd:
        raise UserError(
            f"{clips[0].path.parent}: frames a second differ: {', '.join(odd)}, the others "
            f"{usual:.5g}; convert those first (ffmpeg -i in.mp4 -r {usual:.5g} out.mp4)"
        )
    return usual


def _alike(a: float, b: float) -> bool:
    return abs(a / b - 1) <= FPS_TOLERANCE


def spread(frames: Sequence[int], count: int) -> list[int]:
    """``count`` of the frames (or all), evenly spread, the first among them."""
    count = min(count, len(frames))
    rows = np.unique(np.linspace(0, len(frames) - 1, count).round().astype(int))
    return [frames[row] for row in rows]
