"""Flags that the preparing scripts share."""

from __future__ import annotations

import argparse
from pathlib import Path

from script.preprocessing.colmap_tools import Features
from utils.errors import UserError

MAX_POINTS = 100_000


def add_frames(parser: argparse.ArgumentParser, end: str, *, start: int | None = 0) -> None:
    """--startframe, --endframe, --step; ``end`` says what --endframe is by default.

    ``start`` None: so does it of --startframe.
    """
    group = parser.add_argument_group("which frames")
    first = end if start is None else start
    group.add_argument(
        "--startframe", type=int, default=start, help=f"first frame (default: {first})"
    )
    group.add_argument(
        "--endframe", type=int, default=None, help=f"the frame after the last one (default: {end})"
    )
    group.add_argument("--step", type=int, default=1, help="every how many frames (default 1)")


def add_output(parser: argparse.ArgumentParser, *, frames: bool = True) -> None:
    """How ``frames`` are written, if any are, and whether what is done is done again."""
    group = parser.add_argument_group("output")
    if frames:
        _add_frame_files(group)
    group.add_argument("--redo", action="store_true", help="does everything again")


def _add_frame_files(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-r", "--resolution", type=int, default=1,
        help="frames smaller by this factor per side: 1, 2, 4 or 8 (default 1)",
    )  # fmt: skip
    group.add_argument(
        "--format", choices=("png", "jpg"), default="png",
        help="of the frames; jpg takes a tenth of the space and loses a little (default png)",
    )  # fmt: skip


def add_cloud(parser: argparse.ArgumentParser, *, moments: bool = True) -> None:
    """How the initial points are made; ``moments``: of a rig, each moment by itself."""
    group = parser.add_argument_group("initial points")
    what = "dense stereo of the first frame" if moments else "dense stereo"
    group.add_argument(
        "--colmap_bin", default=None,
        help="a COLMAP program to use in place of the package pycolmap",
    )  # fmt: skip
    group.add_argument(
        "--dense", choices=("auto", "on", "off"), default="auto",
        help=f"{what}; auto: when COLMAP was built with CUDA",
    )  # fmt: skip
    if moments:
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
    if getattr(options, "resolution", 1) not in (1, 2, 4, 8):
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
