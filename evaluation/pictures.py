"""Pictures for the report: ground truth, images and where they differ, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAIN = 4  # errors are shown so many times as bright
_TITLE = 20  # pixels, height of the titles
_GAP = 4
_WIDEST = 640  # pixels of a tile, at most
_SMALLEST = 160  # and at least: tiny pictures are enlarged by a whole number


def error_picture(image: np.ndarray, target: np.ndarray) -> np.ndarray:
    """`GAIN` times the absolute difference of two pictures (H, W, 3) uint8, likewise."""
    difference = np.abs(image.astype(np.int16) - target)
    return (GAIN * difference).clip(0, 255).astype(np.uint8)


def strip(tiles: Sequence[tuple[str, np.ndarray]]) -> Image.Image:
    """Pictures of one size (H, W, 3) uint8 in a row, each under its title."""
    height, width = tiles[0][1].shape[:2]
    size = _tile_size(width, height)
    sheet = Image.new(
        "RGB", (len(tiles) * (size[0] + _GAP) - _GAP, size[1] + _TITLE), (255, 255, 255)
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for column, (title, pixels) in enumerate(tiles):
        x = column * (size[0] + _GAP)
        sheet.paste(_scaled(pixels, size), (x, _TITLE))
        draw.text((x + 3, 2), _fitting(title, size[0] - 6, font), fill=(0, 0, 0), font=font)
    return sheet


def _tile_size(width: int, height: int) -> tuple[int, int]:
    if width < _SMALLEST:
        factor = -(-_SMALLEST // width)
        return width * factor, height * factor
    shown = min(width, _WIDEST)
    return shown, max(1, round(height * shown / width))


def _scaled(pixels: np.ndarray, size: tuple[int, int]) -> Image.Image:
    image = Image.fromarray(pixels)
    enlarges = size[0] > image.width
    return image.resize(size, Image.Resampling.NEAREST if enlarges else Image.Resampling.BOX)


def _fitting(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """The text, cut where it is wider than ``width`` pixels."""
    while len(text) > 1 and font.getlength(text) > width:
        text = text[:-2].rstrip() + "…"
    return text
