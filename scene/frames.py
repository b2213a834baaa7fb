"""Ground-truth frames: uint8, decoded when asked for, never more of them in memory than a budget.

A *source* is the frames of one camera: a video, or a list of images; with masks or without. Decoded
frames live in a least-recently-used cache of ``budget`` bytes. When the sources asked for so far do
not fit in it together, decoded frames are also kept as raw bytes in an unnamed temporary file (a
spool), from which a frame of 1352 x 1014 comes back in about 2 ms. The spool is read and written,
not mapped, so it never counts as the process's memory, and its disk space is given back when the
process ends, however it ends. Videos are decoded once, from start to end.

That is the cache ``auto``. ``disk`` has the spool from the start; ``ram`` has none and no budget,
but refuses frames that the machine has no memory for; ``none`` decodes images anew each time and
holds nothing but what was prefetched and not yet taken.
"""

from __future__ import annotations

import math
import shutil
import sys
import tempfile
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO

import numpy as np
import torch
from tqdm import tqdm

from arguments_MoDE.config import CACHES
from utils.errors import UserError
from utils.images import WHITE, read_image, read_mask, resize_image
from utils.memory import available_memory
from utils.video import read_video

Size = tuple[int, int]  # width, height
Slot = tuple[int, int]  # source, frame

_PREFETCH_THREADS = 2
_LESS = {  # the remedy where a disk is full
    "auto": "lower the resolution (-r), or raise --cache_gb",
    "disk": "lower the resolution (-r), or use --cache auto or none",
}


@dataclass(frozen=True)
class ImageFrames:
    """One image file per frame.

    Attributes:
        paths: the files.
        native: the size that every file must have.
        masks: which pixels count: none, one image for all frames, or one (or None) per frame.
        sized_by: the file that says the size, if any, for messages.
    """

    paths: tuple[Path, ...]
    native: Size
    masks: tuple[Path | None, ...] = ()
    sized_by: str = ""

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class VideoFrames:
    """Frames of a video file, by ascending index in it; ``masks`` as of images."""

    path: Path
    indices: Sequence[int]
    native: Size
    masks: tuple[Path | None, ...] = ()

    def __len__(self) -> int:
        return len(self.indices)


FrameSource = ImageFrames | VideoFrames


@dataclass(frozen=True)
class _Masks:
    """The masks of a source, which the store keeps as a source of its own."""

    paths: tuple[Path | None, ...]
    native: Size

    def __len__(self) -> int:
        return len(self.paths)


class FrameStore:
    """Thread-safe access to the frames of several sources at their target sizes."""

    def __init__(
        self,
        sources: Sequence[FrameSource],
        sizes: Sequence[Size],
        *,
        budget: int = 4 << 30,
        spool_folder: str | Path | None = None,
        background: tuple[int, int, int] = WHITE,
        cache: str = "auto",
    ) -> None:
        """Reads nothing yet.

        Args:
            sources: one per camera (or per image, where images differ in size).
            sizes: (width, height) at which each source's frames are wanted.
            budget: bytes of decoded frames to keep in memory, at least one frame.
            spool_folder: where the spool goes if there is one; None: the system's temporary folder.
                Made when needed.
            background: colour behind transparent pixels.
            cache: of `CACHES`, see above; ``ram`` has no use for a budget.

        Raises:
            UserError: the cache is ``none`` and a source is a video.
        """
        if cache not in CACHES:
            raise ValueError(f"cache is {cache!r}, not one of {', '.join(CACHES)}")
        self.sources: list[FrameSource | _Masks] = list(sources)
        self.sizes = list(sizes)
        self.background = background
        self.cache = cache
        self.budget = sys.maxsize if cache == "ram" else budget
        self.spool_folder = spool_folder
        self._masks = self._add_masks()
        if cache == "none":
            self._refuse_videos()
        self._shapes = [
            (h, w) if isinstance(source, _Masks) else (h, w, 3)
            for source, (w, h) in zip(self.sources, self.sizes, strict=True)
        ]
        self._bytes = [
            len(source) * math.prod(shape)
            for source, shape in zip(self.sources, self._shapes, strict=True)
        ]
        self._used: set[int] = set()  # sources that anything was asked of
        self._used_bytes = 0  # of all their frames
        self._memory: OrderedDict[Slot, np.ndarray] = OrderedDict()
        self._held = 0  # bytes in _memory
        self._memory_lock = threading.Lock()
        self._locks: dict[Slot, threading.Lock] = {}  # of frames and, as (source, -1), of videos
        self._keep_lock = threading.Lock()  # of _used, and of what goes where
        self._decoded: set[int] = set()  # videos that have been through the decoder
        self._spool = _Spool(spool_folder, self._bytes, self._shapes, cache)
        self._prefetcher: _Prefetcher | None = None

    def _add_masks(self) -> dict[int, int]:
        """Appends the sources' masks to them, equal ones once; returns source -> its masks'."""
        found: dict[tuple[_Masks, Size], int] = {}
        result = {}
        for index, source in enumerate(list(self.sources)):
            if any(source.masks):
                key = (_Masks(source.masks, source.native), self.sizes[index])
                if key not in found:
                    found[key] = len(self.sources)
                    self.sources.append(key[0])
                    self.sizes.append(key[1])
                result[index] = found[key]
        return result

    def _refuse_videos(self) -> None:
        for source in self.sources:
            if isinstance(source, VideoFrames):
                raise UserError(
                    f"--cache none: {source.path} is a video, and finding a single frame in it "
                    "takes too long; use --cache disk, or extract frames with script/pre_n3v.py"
                )

    def get(self, source: int, frame: int) -> torch.Tensor:
        """Frame ``frame`` of source ``source``: (H, W, 3) uint8. Shared: do not write into it.

        Raises:
            UserError: the file is missing or damaged, or its size is not what the scene says.
        """
        return torch.from_numpy(self._get(source, frame))

    def mask(self, source: int, frame: int) -> torch.Tensor | None:
        """Which pixels of that frame count: (H, W) bool, shared; None: all, it has no mask.

        Raises:
            UserError: the mask's file is missing or damaged, or has not the size of its image.
        """
        slot = self._mask_slot(source, frame)
        return None if slot is None else torch.from_numpy(self._get(*slot)).view(torch.bool)

    def _mask_slot(self, source: int, frame: int) -> Slot | None:
        """Where the frame's mask is, if it has one."""
        if source not in self._masks:
            return None
        masks = self._masks[source]
        paths = self.sources[masks].paths
        frame = 0 if len(paths) == 1 else frame
        return None if paths[frame] is None else (masks, frame)

    def _get(self, source: int, frame: int, ahead: bool = False) -> np.ndarray:
        """A frame or mask as an array; ``ahead``: it is not wanted yet, but will be."""
        pixels = self._recall(source, frame, ahead)
        if pixels is not None:
            return pixels
        with self._lock_of(source, frame):  # two threads never decode the same thing at once
            pixels = self._recall(source, frame, ahead)
            if pixels is None:
                pixels = self._spool.read(source, frame)
            if pixels is None:
                self._use({source})
                return self._decode(source, frame, self._still_ahead(source, frame, ahead))
            self._remember(source, frame, pixels)
            return pixels

    def _still_ahead(self, source: int, frame: int, ahead: bool) -> bool:
        """Whether a frame that is about to be decoded will be asked for later.

        Who cannot wait for a prefetch takes its place; with the cache ``none``, what it brought
        afterwards would be left lying.
        """
        if self._prefetcher is None:
            return ahead
        if not ahead:
            self._prefetcher.queued.discard((source, frame))
        return ahead and (source, frame) in self._prefetcher.queued

    def _lock_of(self, source: int, frame: int) -> threading.Lock:
        slot = (source, -1 if isinstance(self.sources[source], VideoFrames) else frame)
        return self._locks.setdefault(slot, threading.Lock())

    def prefetch(self, wanted: Iterable[Slot]) -> None:
        """Begins to load (source, frame) pairs in the background, on threads that end nothing.

        Their masks too. Cheap for what is in memory. Nothing is raised: what fails here fails in
        `get` or `mask`.
        """
        images = list(wanted)
        masks = (self._mask_slot(*slot) for slot in images if slot[0] in self._masks)
        missing = [slot for slot in (*images, *masks) if slot and slot not in self._memory]
        if not missing:
            return
        if self._prefetcher is None:
            self._prefetcher = _Prefetcher(self)
        self._prefetcher.add(missing)

    def reserve(self, sources: Iterable[int] | None = None) -> None:
        """Makes sure that there is room for all frames of ``sources`` (default: all).

        Raises:
            UserError: too little memory or disk space, as the cache is.
        """
        self._use(range(len(self.sources)) if sources is None else set(sources))

    def prepare(self, sources: Iterable[int] | None = None) -> None:
        """Decodes the videos among ``sources`` (default: all) now, with a progress bar.

        Room is looked for at once, for the images among them too.

        Raises:
            UserError: a damaged video or frame, or too little disk space or memory.
        """
        chosen = range(len(self.sources)) if sources is None else sorted(set(sources))
        self._use(chosen)
        videos = [s for s in chosen if self._needs_decoding(s)]
        total = sum(len(self.sources[s]) for s in videos)
        with _progress(total, "videos") as bar:
            for source in videos:
                with self._lock_of(source, 0):
                    if self._needs_decoding(source):
                        self._decode_video(source, bar)

    def _needs_decoding(self, source: int) -> bool:
        return isinstance(self.sources[source], VideoFrames) and source not in self._decoded

    def _use(self, sources: Iterable[int]) -> None:
        """Counts sources and their masks as in use; the spool begins when they outgrow the budget.

        Raises:
            UserError: too little disk space or memory for them; they do not count then.
        """
        with self._keep_lock:
            wanted = set(sources)
            new = wanted.union(self._masks[s] for s in wanted if s in self._masks) - self._used
            if not new:
                return
            used_bytes = self._used_bytes + sum(self._bytes[source] for source in new)
            if self.cache == "ram":
                _refuse_beyond_memory(used_bytes, self._held)
            elif self._spool.in_use:
                self._spool.reserve(new)
            elif self.cache == "disk" or (self.cache == "auto" and used_bytes > self.budget):
                self._begin_spool(new | self._used)
            self._used |= new
            self._used_bytes = used_bytes

    def _begin_spool(self, sources: Iterable[int]) -> None:
        """So far all frames fitted, so the ones in memory are all that was ever decoded."""
        self._spool.reserve(sources)
        with self._memory_lock:
            frames = list(self._memory.items())
        for slot, pixels in frames:
            self._spool.write(*slot, pixels)

    def _recall(self, source: int, frame: int, ahead: bool) -> np.ndarray | None:
        """From memory; with the cache ``none``, what is taken does not stay there."""
        with self._memory_lock:
            pixels = self._memory.get((source, frame))
            if pixels is None:
                return None
            if self.cache == "none" and not ahead:
                del self._memory[source, frame]
                self._held -= pixels.nbytes
            else:
                self._memory.move_to_end((source, frame))
            return pixels

    def _remember(self, source: int, frame: int, pixels: np.ndarray) -> None:
        """Keeps a frame in memory and forgets the least recently used ones beyond the budget."""
        with self._memory_lock:
            if (source, frame) in self._memory:
                return
            self._memory[source, frame] = pixels
            self._held += pixels.nbytes
            while self._held > self.budget and len(self._memory) > 1:
                self._held -= self._memory.popitem(last=False)[1].nbytes

    def _keep(self, source: int, frame: int, pixels: np.ndarray, ahead: bool = False) -> None:
        if self.cache == "none" and not ahead:
            return
        with self._keep_lock:
            if self._spool.in_use:
                self._spool.write(source, frame, pixels)
            self._remember(source, frame, pixels)

    def _decode(self, source: int, frame: int, ahead: bool) -> np.ndarray:
        origin = self.sources[source]
        if isinstance(origin, VideoFrames):
            with _progress(len(origin), origin.path.name) as bar:
                return self._decode_video(source, bar, frame)
        if isinstance(origin, _Masks):
            pixels = read_mask(origin.paths[frame])
        else:
            pixels = read_image(origin.paths[frame], background=self.background)
        _check_size(origin.paths[frame], pixels, origin.native)
        pixels = resize_image(pixels, self.sizes[source])
        if isinstance(origin, _Masks):
            pixels = (pixels > 127).astype(np.uint8)
        self._keep(source, frame, pixels, ahead)
        return pixels

    def _decode_video(self, source: int, bar: tqdm, wanted: int = -1) -> np.ndarray | None:
        """Decodes a whole video; returns frame ``wanted`` of it, None for -1."""
        origin = self.sources[source]
        result = None
        for frame, pixels in enumerate(read_video(origin.path, origin.indices, self.sizes[source])):
            self._keep(source, frame, pixels)
            result = pixels if frame == wanted else result
            bar.update()
        self._decoded.add(source)
        return result


def _check_size(path: Path, pixels: np.ndarray, native: Size) -> None:
    height, width = pixels.shape[:2]
    if (width, height) != native:
        raise UserError(
            f"{path}: is {width} x {height} where its camera says "
            f"{native[0]} x {native[1]}; extract the frames again at one size"
        )


def _refuse_beyond_memory(wanted: int, held: int) -> None:
    """UserError if ``wanted`` bytes, of which ``held`` are there already, are too many."""
    available = available_memory()
    if available is not None and wanted - held > available:
        raise UserError(
            f"--cache ram: the decoded frames need {(wanted - held) / 1e9:.1f} GB of memory and "
            f"{available / 1e9:.1f} GB are available; use --cache disk, or lower the resolution "
            "(-r)"
        )


def _progress(total: int, what: str) -> tqdm:
    """A bar that appears only if decoding takes more than two seconds."""
    return tqdm(total=total, desc=f"decoding {what}", unit="frame", delay=2, mininterval=1)


class _Prefetcher:
    """Daemon threads that load what they are told, until the store is gone."""

    def __init__(self, store: FrameStore) -> None:
        self._queue: SimpleQueue[Slot | None] = SimpleQueue()
        self.queued: set[Slot] = set()  # what is removed from it before its turn is not loaded
        arguments = (weakref.ref(store), self._queue, self.queued)
        for _ in range(_PREFETCH_THREADS):
            try:
                threading.Thread(target=_load_all, args=arguments, daemon=True).start()
            except RuntimeError:  # no further thread can be had: `get` does without
                return
            weakref.finalize(store, self._queue.put, None)

    def add(self, slots: Iterable[Slot]) -> None:
        for slot in slots:
            if slot not in self.queued:
                self.queued.add(slot)
                self._queue.put(slot)


def _load_all(
    owner: weakref.ref[FrameStore], queue: SimpleQueue[Slot | None], queued: set[Slot]
) -> None:
    """What a prefetching thread does; it holds the store only while it loads a frame."""
    while (slot := queue.get()) is not None:
        store = owner()
        try:
            if store is not None and slot in queued:
                store._get(*slot, ahead=True)
        except Exception:  # the caller of `get` meets it again
            pass
        finally:
            queued.discard(slot)
            del store


class _Spool:
    """Raw frames in one unnamed temporary file; which of them are there is known in memory."""

    def __init__(
        self,
        folder: str | Path | None,
        source_bytes: Sequence[int],
        shapes: Sequence[tuple[int, ...]],
        cache: str,
    ) -> None:
        self._folder = Path(folder or tempfile.gettempdir())
        self._source_bytes = source_bytes
        self._shapes = shapes  # of a frame of each source
        self._cache = cache
        self._starts: dict[int, int] = {}  # offsets of the sources that disk space was found for
        self._end = 0  # bytes that they take when all are written
        self._written = 0  # bytes of them so far
        self._filled: set[Slot] = set()
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None

    @property
    def in_use(self) -> bool:
        """Whether the spool has begun."""
        return bool(self._starts)

    def reserve(self, sources: Iterable[int]) -> None:
        """Makes sure that there is disk space for these and for what is still to be written.

        Raises:
            UserError: there is too little, or no file can be made.
        """
        with self._lock:
            added = {source: self._source_bytes[source] for source in sorted(sources)}
            missing = self._end - self._written + sum(added.values())
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                free = shutil.disk_usage(self._folder).free
                if free < missing:
                    raise UserError(
                        f"{self._folder}: decoded frames need {missing / 1e9:.1f} GB of disk and "
                        f"{free / 1e9:.1f} GB are free; {_LESS[self._cache]}"
                    )
                self._open()
            except OSError as error:
                raise self._unwritable(error) from None
            for source, count in added.items():
                self._starts[source] = self._end
                self._end += count

    def _open(self) -> BinaryIO:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)
            if self._cache == "auto":  # else it was asked for
                print(
                    "note: decoded frames exceed --cache_gb; they are also kept in a temporary "
                    f"file in {self._folder}",
                    file=sys.stderr,
                )
        return self._file

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"{self._folder}: the disk cache of frames cannot be written "
            f"({error.strerror or error}); {_LESS[self._cache]}"
        )

    def _offset(self, source: int, frame: int) -> int:
        return self._starts[source] + frame * math.prod(self._shapes[source])

    def read(self, source: int, frame: int) -> np.ndarray | None:
        """The frame, or None if it has not been written."""
        with self._lock:
            if (source, frame) not in self._filled:
                return None
            file = self._open()
            file.seek(self._offset(source, frame))
            pixels = np.empty(self._shapes[source], np.uint8)
            view = memoryview(pixels).cast("B")
            while view and (count := file.readinto(view)):
                view = view[count:]
        return pixels

    def write(self, source: int, frame: int, pixels: np.ndarray) -> None:
        """Keeps a frame for later.

        Raises:
            UserError: the disk is full.
        """
        with self._lock:
            if (source, frame) in self._filled:
                return
            file = self._open()
            try:
                file.seek(self._offset(source, frame))
                view = memoryview(np.ascontiguousarray(pixels)).cast("B")
                while view:
                    view = view[file.write(view) :]
            except OSError as error:
                raise self._unwritable(error) from None
            self._filled.add((source, frame))
            self._written += pixels.nbytes
