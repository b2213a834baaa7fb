"""Still images: decoding to uint8 RGB, compositing, resizing, and a cheap look for damage."""

from __future__ import annotations

import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from utils.errors import UserError, brief

SUFFIXES = (".png", ".jpg", ".jpeg")
WHITE = (255, 255, 255)
_PNG = b"\x89PNG\r\n\x1a\n"  # what a PNG begins with

# What Pillow raises for files that are no images, are cut, or pretend to be enormous.
_DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, MemoryError, Image.DecompressionBombError,
)  # fmt: skip


def list_images(folder: str | Path) -> list[Path]:
    """The images directly inside ``folder``, in natural order (frame 2 before frame 10)."""
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if e.name.lower().endswith(SUFFIXES)]
    return [Path(folder) / name for name in sorted(names, key=natural_key)]


def natural_key(name: str) -> list[str | int]:
    """Sorting key that compares runs of digits as numbers: cam2 < cam10."""
    parts = re.split(r"([0-9]+)", name)  # text and digits in turn, so like meets like
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def check_image(path: str | Path, *, checksums: bool = False) -> tuple[int, int]:
    """(width, height) of an image whose header and end are whole, at a fraction of a decode's cost.

    Args:
        path: any format that Pillow reads.
        checksums: of a PNG, reads all of it and compares what its chunks say of themselves.

    Raises:
        UserError: the file is missing, no image, or cut short.
    """
    path = Path(path)
    try:
        _check_png(path, checksums=checksums)
        with Image.open(path) as image:
            size, kind = image.size, image.format
            if not _has_end_marker(path, kind):
                image.load()  # trailing bytes are legal; only a decode can tell them from a cut
    except _DECODE_ERRORS as error:
        raise _unreadable(path, error) from None
    return size


def _has_end_marker(path: Path, kind: str | None) -> bool:
    """Whether the file ends as a complete JPEG or PNG does; False also when that cannot be told."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 12))
        tail = file.read(12)
    if kind == "JPEG":
        return tail.endswith(b"\xff\xd9")
    return kind == "PNG" and tail[4:8] == b"IEND"


def read_image(
    path: str | Path,
    size: tuple[int, int] | None = None,
    background: tuple[int, int, int] = WHITE,
) -> np.ndarray:
    """Decodes an image.

    Args:
        path: any format that Pillow reads.
        size: (width, height) wanted; None keeps the file's own.
        background: colour behind transparent pixels, blended in 8-bit values as they are stored
            (no linearisation), which is what the field's data sets expect.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        UserError: the file is missing, no image, or damaged.
    """
    try:
        _check_png(Path(path), checksums=True)
        with Image.open(path) as image:
            image.load()
            pixels = _to_rgb(image, background)
    except _DECODE_ERRORS as error:
        raise _unreadable(path, error) from None
    return pixels if size is None else resize_image(pixels, size)


def read_mask(path: str | Path) -> np.ndarray:
    """Decodes a mask of any kind: (H, W) uint8, the brightness; what is transparent is black.

    Raises:
        UserError: the file is missing, no image, or damaged.
    """
    return np.array(Image.fromarray(read_image(path, background=(0, 0, 0))).convert("L"))


def _check_png(path: Path, *, checksums: bool) -> None:
    """Looks at a PNG's chunks before Pillow does, which allocates whatever length a chunk claims.

    Args:
        path: of any file; one that is no PNG passes.
        checksums: also read the chunks that make the picture; Pillow checks some of them only.

    Raises:
        ValueError: a chunk is longer than the file, or damaged.
    """
    end, at = path.stat().st_size, len(_PNG)
    with path.open("rb") as file:
        if file.read(at) != _PNG:
            return
        while at + 12 <= end:  # length, kind, content, checksum
            file.seek(at)
            size, kind = struct.unpack(">I4s", file.read(8))
            at += 12 + size
            if at > end:
                raise ValueError("one of its chunks is longer than the file")
            if checksums and kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT"):
                content = file.read(size)
                if file.read(4) != struct.pack(">I", zlib.crc32(content, zlib.crc32(kind))):
                    raise ValueError(f"its chunk {kind.decode()} does not match its checksum")
            if kind == b"IEND":
                return


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> np.ndarray:
    """(H, W, 3) uint8 of an open image of any mode."""
    if image.mode.startswith("I") or image.mode == "F":  # 16-bit grey: convert() would clip it
        grey = np.asarray(image, dtype=np.float64) * (255.0 / 65535.0)
        return np.repeat(np.rint(grey).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
    if image.has_transparency_data:
        return composite(np.asarray(image.convert("RGBA")), background)
    return np.array(image.convert("RGB"))


def composite(rgba: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    """Straight-alpha ``rgba`` (H, W, 4) uint8 over a colour: (H, W, 3) uint8, rounded."""
    alpha = rgba[..., 3:].astype(np.uint32)
    over = rgba[..., :3] * alpha + np.asarray(background, np.uint32) * (255 - alpha)
    return ((over + 127) // 255).astype(np.uint8)


def resize_image(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) or (H, W) uint8 at ``size`` (width, height): area average down, bicubic up."""
    if pixels.shape[1::-1] == tuple(size):
        return pixels
    shrinks = size[0] <= pixels.shape[1] and size[1] <= pixels.shape[0]
    method = Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC
    return np.array(Image.fromarray(pixels).resize(size, method))


def _unreadable(path: str | Path, error: Exception) -> UserError:
    if not os.path.exists(path):
        return UserError(f"{path}: no such image; restore it or remove it from the scene's lists")
    return UserError(
        f"{path}: not a whole image ({brief(error)}); restore the file or extract it again"
    )
