"""Rigs of static cameras whose frames are a clip each: a video, a folder of frames or one image."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from arguments_MoDE.config import ModelParams
from scene.cameras import Camera
from scene.datasets.common import Capture, Shot, frame_time, note
from scene.frames import FrameSource, ImageFrames, Size, VideoFrames
from utils import images, video
from utils.errors import UserError

# What the preparing scripts write when the frames of all cameras are whole (their step "frames").
PREPARED = ".steps/frames.json"


@dataclass(frozen=True)
class Clip:
    """The frames of one camera.

    Attributes:
        path: a video, a folder of images, or one image.
        size: (width, height) of its frames, pixels.
        frames: how many there are.
    """

    path: Path
    size: Size
    frames: int

    def source(self, chosen: range) -> FrameSource:
        """Where the frames of these indices come from."""
        if self.path.is_dir():
            files = images.list_images(self.path)
            return ImageFrames(tuple(files[i] for i in chosen), self.size)
        if self.path.suffix.lower() in images.SUFFIXES:
            return ImageFrames((self.path,), self.size)
        return VideoFrames(self.path, chosen, self.size)


def probe(path: Path) -> Clip:
    """Looks at a camera's first frame and counts the others.

    Raises:
        UserError: the video or the first image is damaged.
    """
    if path.is_dir():
        files = images.list_images(path)
        if not files:
            raise UserError(f"{path}: a folder without images where a video is due; restore it")
        return Clip(path, images.check_image(files[0]), len(files))
    if path.suffix.lower() in images.SUFFIXES:
        return Clip(path, images.check_image(path), 1)
    info = video.probe_video(path)
    return Clip(path, (info.width, info.height), info.frames)


def find_cameras(root: Path, images_folder: str, count: int) -> dict[str, Path]:
    """Camera name -> its video, folder of frames or single image, in natural order of names.

    The first kind of which there are ``count`` cameras; if there is none, the kind with the most.
    Folders go before videos that they have the names of if ``images_folder`` was named on purpose,
    or if a preparing script made them and they are whole: a note says which of the two are read.

    Raises:
        UserError: the folder named on purpose lacks some of the videos' cameras.
    """
    extracted = root / images_folder
    inside = list(extracted.iterdir()) if extracted.is_dir() else []
    kinds = [
        {p.stem: p for p in root.glob("cam*") if p.suffix.lower() in video.SUFFIXES},
        {p.name: p for p in inside if holds_frames(p)},
        {p.parent.name: p for p in root.glob(f"cam*/{images_folder}") if holds_frames(p)},
        {p.stem: p for p in inside if p.suffix.lower() in images.SUFFIXES},
    ]
    films, folders = kinds[:2]
    lacking = in_order({name: films[name] for name in films.keys() - folders.keys()})
    if len(films) == count and lacking and films.keys() & folders.keys():
        _say_what_is_lacking(root, images_folder, list(lacking))
    if len(films) == count and films.keys() == folders.keys():
        if images_folder != ModelParams.images or _are_prepared(root, folders):
            note(f"{root}: has videos and frames in {images_folder}; reading the frames")
            return in_order(folders)
        note(
            f"{root}: has videos and frames in {images_folder}; reading the videos, since no "
            "preparing script made or finished the frames (to read those, move the videos away)"
        )
    complete = (found for found in kinds if len(found) == count)
    return in_order(next(complete, None) or max(kinds, key=len))


def _say_what_is_lacking(root: Path, folder: str, names: list[str]) -> None:
    """Frames of some cameras beside the videos of all: a note, or UserError if they were named."""
    lacking = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    if folder != ModelParams.images:
        raise UserError(
            f"--images {folder}: no frames of {lacking} in {root / folder}; restore them, or leave "
            "--images out to read the videos"
        )
    note(f"{root}: has videos, and in {folder} no frames of {lacking}; reading the videos")


def _are_prepared(root: Path, folders: dict[str, Path]) -> bool:
    """Whether these hold what a preparing script left in them, to the byte count."""
    found = [file for folder in folders.values() for file in images.list_images(folder)]
    try:
        made = json.loads((root / PREPARED).read_text(encoding="utf-8"))["files"]
        return made == {str(file.relative_to(root)): file.stat().st_size for file in found}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False  # no stamp, or none of those scripts


def in_order(found: dict[str, Path]) -> dict[str, Path]:
    """The same in natural order of names: cam2 before cam10."""
    return {name: found[name] for name in sorted(found, key=images.natural_key)}


def holds_frames(folder: Path) -> bool:
    """Whether this is a folder with images directly in it."""
    return folder.is_dir() and bool(images.list_images(folder))


def common_length(root: Path, names: Sequence[str], clips: Sequence[Clip]) -> int:
    """The number of frames that every camera has; a note names the shortest if they differ."""
    lengths = [clip.frames for clip in clips]
    shortest = min(lengths)
    if shortest < max(lengths):
        who = names[lengths.index(shortest)]
        note(f"{root}: {who} has {shortest} frames, others up to {max(lengths)}; using {shortest}")
    return shortest


def add_rig(
    capture: Capture,
    cameras: Sequence[Camera],
    sources: Sequence[FrameSource],
    held_out: Collection[int],
    model: ModelParams,
) -> None:
    """Puts a rig into ``capture``: every camera at every one of its ``frame_count`` times.

    Args:
        capture: gets the sources and the shots.
        cameras: in the order of its camera names, at the size of their frames.
        sources: the frames of each.
        held_out: rows of the test cameras.
        model: says how frames become times.
    """
    for row, (camera, source) in enumerate(zip(cameras, sources, strict=True)):
        capture.sources.append(source)
        shots = capture.test if row in held_out else capture.train
        for index in range(capture.frame_count):
            time = frame_time(index, capture.frame_count, model.time_convention)
            shots.append(Shot(camera, row, index, time, (row, index)))
