"""Flags that the preparing scripts share."""

from __future__ import annotations

import argparse
from pathlib import Path

from script.preprocessing.colmap_tools import Features
from utils.errors import UserError

MAX_POINTS = 100_000


def add_frames(parser: argparse.ArgumentParser, end: str) -> None:
    """--startframe, --endframe, --step; ``end`` says what --endframe is by default."""
    group = parser.add_argument_group("which frames")
    group.add_argument("--startframe", type=int, default=0, help="first frame (default 0)")
    group.add_argument(
        "--endframe", type=int, default=None, help=f"the frame after the last one (default: {end})"
    )
    group.add_argument("--step", type=int, default=1, help="every how many frames (default 1)")


def add_output(parser: argparse.ArgumentParser) -> None:
    """How frames are written, and whether what is done is done again."""
    group = parser.add_argument_group("output")
    group.add_argument(
        "-r", "--resolution", type=int, default=1,
        help="frames smaller by this factor per side: 1, 2, 4 or 8 (default 1)",
    )  # fmt: skip
    group.add_argument(
        "--format", choices=("png", "jpg"), default="png",
        help="of the frames; jpg takes a tenth of the space and loses a little (default png)",
    )  # fmt: skip
    group.add_argument("--redo", action="store_true", help="does everything again")


def add_cloud(parser: argparse.ArgumentParser) -> None:
    """How the initial points are made."""
    group = parser.add_argument_group("initial points")
    group.add_argument(
        "--colmap_bin", default=None,
        help="a COLMAP program to use in place of the package pycolmap",
    )  # fmt: skip
    group.add_argument(
        "--dense", choices=("auto", "on", "off"), default="auto",
        help="dense stereo of the first frame; auto: when COLMAP was built with CUDA",
    )  # fmt: skip
    group.add_argument(
        "--cloud_frames", type=int, default=6,
        help="without dense stereo: how many moments of the clip to triangulate (default 6)",
    )  # fmt: skip
    group.add_argument(
        "--max_image_size", type=int, default=1600,
        help="pixels of the longer side at which features are found (default 1600)",
    )  # fmt: skip
    group.add_argument(
        "--max_features", type=int, default=8192, help="features per image (default 8192)"
    )
    group.add_argument(
        "--max_points", type=int, default=MAX_POINTS,
        help=f"points that are left at most (default {MAX_POINTS})",
    )  # fmt: skip
    group.add_argument("--threads", type=int, default=-1, help="of COLMAP (default: all)")


def check(options: argparse.Namespace) -> None:
    """Refuses values that mean nothing.

    Raises:
        UserError: names the flag.
    """
    if options.resolution not in (1, 2, 4, 8):
        raise UserError(f"-r/--resolution {options.resolution}: give 1, 2, 4 or 8")
    for name, least in (
        ("cloud_frames", 1), ("max_image_size", 64), ("max_features", 16), ("max_points", 1),
    ):  # fmt: skip
        if getattr(options, name, least) < least:
            raise UserError(f"--{name} {getattr(options, name)}: give at least {least}")
    if options.threads == 0 or options.threads < -1:
        raise UserError(f"--threads {options.threads}: give -1 (all) or at least 1")


def features(options: argparse.Namespace) -> Features:
    """How COLMAP should find features."""
    return Features(options.max_image_size, options.max_features, options.threads)


def smaller(size: tuple[int, int], factor: int) -> tuple[int, int]:
    """(width, height) reduced by a factor."""
    return max(1, round(size[0] / factor)), max(1, round(size[1] / factor))


def folder(path: Path) -> Path:
    """A folder that exists.

    Raises:
        UserError: it does not.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder")
    return path
