"""From videos to folders of frames: several cameras at once, each of them whole or not there."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from script.preprocessing.footage import Clip, Size
from script.preprocessing.steps import Step, Steps
from utils.errors import UserError
from utils.files import atomic_folder
from utils.images import check_image

FORMATS = ("png", "jpg")
JPEG_QUALITY = 95
HEARING = 0.2  # s, between two looks whether Ctrl-C was pressed
MOST_THREADS = 8  # each holds a few frames, of 16 MB each at 2704 x 2028


@dataclass(frozen=True)
class Change:
    """What is done with every frame of a camera, after resizing; ``key`` is its plain JSON."""

    apply: Callable[[np.ndarray], np.ndarray]
    key: object


@dataclass(frozen=True)
class Extraction:
    """One camera's frames: which, from where, to which folder, and how.

    Attributes:
        clip: what is read.
        frames: indices in the clip; the files are counted from 0000 all the same.
        target: the folder that the frames go into.
        size: (width, height) before the change, area-filtered.
        suffix: png, or jpg (a tenth of the space, a little loss).
        change: undistortion.
        link: files that need no change are linked, or else copied, in place of being written anew.
    """

    clip: Clip
    frames: range
    target: Path
    size: Size
    suffix: str = "png"
    change: Change | None = None
    link: bool = False

    @property
    def step(self) -> Step:
        """How it is recognised as done."""
        change = self.change.key if self.change else None
        settings = [list(self.frames), self.suffix, list(self.size), change]
        return Step(f"frames {self.target.name}", self.clip.sources, [self.target], settings)

    def names(self) -> list[str]:
        """The files: ``0000.png`` and on."""
        return [f"{i:04d}.{self.suffix}" for i in range(len(self.frames))]

    @property
    def is_link(self) -> bool:
        """Whether its files can be those of the clip."""
        if not self.link or self.change or self.clip.is_video or self.size != self.clip.size:
            return False
        return all(self.clip.file(i).suffix.lower() == f".{self.suffix}" for i in self.frames)


class _Stopped(Exception):
    """Another camera failed, or the user pressed Ctrl-C."""


def all_frames(jobs: Sequence[Extraction]) -> Step:
    """The frames of all cameras together; its stamp is what readers of the scene believe."""
    return Step("frames", [], [job.target for job in jobs], [job.step.key() for job in jobs])


def extract(jobs: Sequence[Extraction], steps: Steps) -> None:
    """Writes the frames of all cameras that are not done.

    Frames that another program extracted (no stamp, but the right number, names and size) are
    taken as they are, where the clip's first ones are wanted. After Ctrl-C or an error, finished
    cameras stay and no half one is there; `all_frames` counts as done when the last one is.

    Raises:
        UserError: a video is damaged (its frame is named), or the disk is full.
    """
    for job in jobs:
        if not steps.redo and not steps.is_stamped(job.step) and _is_complete(job):
            steps.adopt(job.step)
    todo = [job for job in jobs if not steps.is_done(job.step)]
    if not todo:
        print(f"frames: done already ({len(jobs)} cameras)")
    else:
        steps.forget(all_frames(jobs))
        total = sum(len(job.frames) for job in todo)
        with tqdm(total=total, desc="frames", unit="frame", mininterval=0.5) as bar:
            _run_all(todo, steps, bar)
    if not steps.is_done(all_frames(jobs)):
        steps.adopt(all_frames(jobs))


def _is_complete(job: Extraction) -> bool:
    """Whether the target has just these files, each whole and of the right size."""
    if job.change or job.frames != range(len(job.frames)) or not job.target.is_dir():
        return False
    if {p.name for p in job.target.iterdir()} != set(job.names()):
        return False
    try:
        return all(check_image(job.target / name) == job.size for name in job.names())
    except UserError:
        return False


def _run_all(jobs: Sequence[Extraction], steps: Steps, bar: tqdm) -> None:
    """Several cameras at a time; the first error, or Ctrl-C, stops all before it is raised."""
    stop = threading.Event()
    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_THREADS, len(jobs)))
    try:
        tasks = [
            pool.submit(steps.run, job.step, lambda job=job: _write(job, bar, stop), quiet=True)
            for job in jobs
        ]
        _wait(tasks)
        for error in [task.exception() for task in tasks if task.done()]:
            if error is not None:
                raise error
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _wait(tasks: Sequence[Future]) -> None:
    """Until all have ended, or one with an error.

    In slices, as Python handles a signal only between two instructions: a Ctrl-C that arrives after
    the last one before the wait would not be heard before its end.
    """
    while True:
        done, left = wait(tasks, timeout=HEARING, return_when=FIRST_EXCEPTION)
        if not left or any(task.exception() for task in done):
            return


def _write(job: Extraction, bar: tqdm, stop: threading.Event) -> None:
    with atomic_folder(job.target) as folder:
        if job.is_link:
            _link(job, folder, bar, stop)
            return
        frames = job.clip.read(job.frames, job.size)
        for name, pixels in zip(job.names(), frames, strict=True):
            if stop.is_set():
                raise _Stopped
            save_image(folder / name, job.change.apply(pixels) if job.change else pixels)
            bar.update()


def _link(job: Extraction, folder: Path, bar: tqdm, stop: threading.Event) -> None:
    """The clip's own files under the new names; a copy where the disk knows no hard links."""
    for name, index in zip(job.names(), job.frames, strict=True):
        if stop.is_set():
            raise _Stopped
        file = job.clip.file(index).resolve()
        job.clip.check_size(file, check_image(file))
        try:
            os.link(file, folder / name)
        except OSError:
            shutil.copyfile(file, folder / name)
        bar.update()


def save_image(path: Path, pixels: np.ndarray) -> None:
    """Writes (H, W, 3) uint8 as the suffix says; PNGs are compressed for speed, not size."""
    options = {"compress_level": 1} if path.suffix == ".png" else {"quality": JPEG_QUALITY}
    Image.fromarray(pixels).save(path, **options)
