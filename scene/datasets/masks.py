"""Masks: which pixels of an image count, in the folder ``masks`` of a scene of any format.

White counts, black does not. For the image ``images/cam00/0000.jpg`` the first of these is taken:
``masks/cam00/0000.jpg.png`` (as COLMAP names them), ``masks/cam00/0000.png``, and for the whole
camera ``masks/cam00.png``, which is also the one for a video ``cam00.mp4``. Where images do not lie
in the images folder, their path inside the scene folder is meant. A reader that knows better sets
`ImageFrames.masks` itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from scene.datasets.common import Capture, note
from scene.frames import FrameSource, ImageFrames
from utils.errors import UserError
from utils.images import check_image, list_images, read_mask

FOLDER = "masks"
_IMAGE_FOLDERS = ("images", "images_2", "images_4", "images_8", "ims")


def add_masks(capture: Capture, root: Path, images_folder: str) -> None:
    """Gives the capture's sources their masks; says how many images have one.

    Raises:
        UserError: a mask is damaged, or has not the size of its image; nothing is left of the
            training images.
    """
    files = _files(root / FOLDER)
    names = _Names(root, images_folder)
    capture.sources = [
        source if source.masks else replace(source, masks=names.find(source, files))
        for source in capture.sources
    ]
    if not files and not any(source.masks for source in capture.sources):
        return
    _check(capture.sources)
    _refuse_black(capture)
    _say(capture.sources, root, _unknown(capture.sources, files, names))


def _files(folder: Path) -> dict[str, Path]:
    """Every file below ``folder``, by its path in there, and folders that are called .png."""
    every = (p for p in folder.rglob("*") if not p.name.startswith("."))
    paths = (p for p in every if p.is_file() or p.suffix == ".png")
    return {path.relative_to(folder).as_posix(): path for path in paths}


class _Names:
    """How the masks of images and videos may be called."""

    def __init__(self, root: Path, images_folder: str) -> None:
        self._bases = [root / name for name in (images_folder, *_IMAGE_FOLDERS)] + [root]
        self._inner = Path(images_folder).name

    def find(self, source: FrameSource, files: dict[str, Path]) -> tuple[Path | None, ...]:
        """A mask for each frame, a single one if it is the same for all, or none at all."""
        if isinstance(source, ImageFrames):
            found = [_first(self.of_image(path), files) for path in source.paths]
        else:
            found = [_first(self.of_camera(source.path.with_suffix("")), files)]
        if not any(found):
            return ()
        return (found[0],) if len(set(found)) == 1 else tuple(found)

    def of_image(self, path: Path) -> list[str]:
        """For one image; then for its whole folder."""
        own = [n for inside in self._inside(path) for n in (inside, os.path.splitext(inside)[0])]
        return [f"{name}.png" for name in own] + self.of_camera(path.parent)

    def of_camera(self, path: Path) -> list[str]:
        """For all frames of a folder, or of a video without its suffix."""
        return [f"{name}.png" for name in self._inside(path) if name != "."]

    def _inside(self, path: Path) -> list[str]:
        """The path in the images folder, and in the scene folder; ``cam00/images`` is ``cam00``."""
        path = Path(os.path.normpath(path))
        names = []
        for base in self._bases:
            if path.is_relative_to(os.path.normpath(base)):
                inside = path.relative_to(os.path.normpath(base))
                names.append(inside.as_posix())
                parts = [part for part in inside.parts if part != self._inner]
                names.append(Path(*parts).as_posix())
        return list(dict.fromkeys(names))


def _first(names: Iterable[str], files: dict[str, Path]) -> Path | None:
    return next((files[name] for name in names if name in files), None)


def _check(sources: list[FrameSource]) -> None:
    for path, native in {(path, s.native): None for s in sources for path in s.masks if path}:
        size = check_image(path)
        if size != native:
            raise UserError(
                f"{path}: is {size[0]} x {size[1]} where its image is {native[0]} x {native[1]}; "
                "make the mask at the image's size"
            )


def _mask_of(source: FrameSource, frame: int) -> Path | None:
    masks = source.masks
    return None if not masks else masks[0] if len(masks) == 1 else masks[frame]


def _refuse_black(capture: Capture) -> None:
    """Looks at the masks of training images until something is left of one."""
    seen = dict.fromkeys(_mask_of(capture.sources[s.slot[0]], s.slot[1]) for s in capture.train)
    for path in seen:
        if path is None or (read_mask(path) > 127).any():
            return
    raise UserError(
        f"{next(iter(seen))}: this and all other masks of training images are black, so nothing "
        "counts; white is what counts: invert them"
    )


def _unknown(sources: list[FrameSource], files: dict[str, Path], names: _Names) -> list[Path]:
    """Files that are no mask of an image, not even of one that the clip leaves out."""
    used = {path for source in sources for path in source.masks}
    left = {name: path for name, path in files.items() if path not in used}
    if not left:
        return []
    images = (source for source in sources if isinstance(source, ImageFrames))
    for folder in {path.parent for source in images for path in source.paths}:
        for image in list_images(folder):
            for name in names.of_image(image):
                left.pop(name, None)
    return list(left.values())


def _say(sources: list[FrameSource], root: Path, unknown: list[Path]) -> None:
    total = sum(len(source) for source in sources)
    masked = sum(_mask_of(s, f) is not None for s in sources for f in range(len(s)))
    note(f"{root}: {masked} of {total} images have a mask; what is black there does not count")
    if unknown:
        note(
            f"{unknown[0]}{f' and {len(unknown) - 1} more' if len(unknown) > 1 else ''}: the scene "
            f"has no such image or camera; a mask is named {FOLDER}/<image>.png"
        )
