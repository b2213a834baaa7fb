"""Thins a point cloud to what training starts from: at most 100,000 points.

python script/downsample_point.py fused.ply points3D_downsample.ply
python script/downsample_point.py fused.ply points3D_downsample.ply --max_points 40000
python script/downsample_point.py fused.ply points3D_downsample.ply --voxel 0.02

Space is divided into cubes, and the points of each become one: the mean of their positions, colours
and normals. The cubes grow until few enough points are left, and then no further than they must. A
cloud that has few enough is written as it is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scene.point_cloud import FINEST, cells, colours_of, read_vertices, write_vertices
from utils.errors import UserError, cli
from utils.flags import NumberParser

MAX_POINTS = 100_000
AXES, NORMALS, COLOURS = ("x", "y", "z"), ("nx", "ny", "nz"), ("red", "green", "blue")
CLOSE_ENOUGH = 1.02  # ratio of the cubes that are just too small and just large enough


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """Positions (float64), normals (float64, zero where there are none) and colours (uint8).

    Points that are not finite are left out, with a note.

    Raises:
        UserError: the file is missing, damaged, no point cloud, or holds no finite point.
    """
    vertices = read_vertices(path)
    missing = [axis for axis in AXES if axis not in vertices]
    if missing:
        raise UserError(f"{path}: has no vertex property {missing[0]!r}; name a point cloud")
    count = len(vertices["x"])
    zeros = np.zeros(count)
    columns = {name: vertices[name].astype(np.float64) for name in AXES}
    columns |= {name: np.nan_to_num(vertices.get(name, zeros)).astype(float) for name in NORMALS}
    colours = colours_of(vertices, count)
    columns |= {name: colours[:, i] for i, name in enumerate(COLOURS)}
    finite = np.isfinite(np.stack([columns[axis] for axis in AXES])).all(axis=0)
    if not finite.any():
        raise UserError(f"{path}: holds no finite point; make the cloud again")
    if not finite.all():
        print(f"note: {int((~finite).sum())} points that are not finite are left out")
    return {name: values[finite] for name, values in columns.items()}


def cubes(xyz: np.ndarray, size: float) -> np.ndarray:
    """(N,) int64 numbers of the cubes of side ``size`` that the points (N, 3) lie in."""
    return cells(xyz - xyz.min(axis=0), size)


def merge(columns: dict[str, np.ndarray], size: float) -> dict[str, np.ndarray]:
    """One point per occupied cube: means, normals of length 1 (or 0), colours rounded to uint8."""
    xyz = np.stack([columns[axis] for axis in AXES], axis=1)
    owner = np.unique(cubes(xyz, size), return_inverse=True)[1].reshape(-1)
    members = np.bincount(owner)
    means = {name: np.bincount(owner, values) / members for name, values in columns.items()}
    length = np.sqrt(sum(means[name] ** 2 for name in NORMALS))
    for name in NORMALS:
        means[name] = means[name] / np.where(length > 0, length, 1)
    for name in COLOURS:
        means[name] = np.rint(means[name]).astype(np.uint8)
    return means


def fitting_size(xyz: np.ndarray, max_points: int, start: float) -> float:
    """The smallest side, within two per cent, of cubes with at most ``max_points`` occupied.

    Args:
        xyz: (N, 3).
        start: the smallest side that is allowed, world units.
    """

    def occupied(size: float) -> int:
        return len(np.unique(cubes(xyz, size)))

    if occupied(start) <= max_points:
        return start
    large = 1.01 * float((xyz.max(axis=0) - xyz.min(axis=0)).max())  # one cube holds everything
    while occupied(large / 2) <= max_points:
        large /= 2
    small = max(large / 2, start)
    while large > CLOSE_ENOUGH * small:
        middle = (small * large) ** 0.5
        small, large = (small, middle) if occupied(middle) <= max_points else (middle, large)
    return large


def thinned(
    columns: dict[str, np.ndarray], max_points: int, voxel: float | None = None
) -> tuple[dict[str, np.ndarray], float | None]:
    """The cloud with at most ``max_points``, and the side of the cubes (None: as it was).

    Args:
        voxel: side to begin with, world units; without it a cloud that is small enough stays.

    Raises:
        UserError: ``voxel`` is too small for a cloud of this size.
    """
    xyz = np.stack([columns[axis] for axis in AXES], axis=1)
    if voxel is None and len(xyz) <= max_points:
        return columns, None
    span = float((xyz.max(axis=0) - xyz.min(axis=0)).max())
    finest = FINEST * span if span > 0 else 1.0  # all in one place: one cube of any size
    if voxel is not None and voxel < finest:
        raise UserError(f"--voxel {voxel:g} is too small for a cloud {span:g} wide; leave it out")
    size = fitting_size(xyz, max_points, voxel or finest)
    return merge(columns, size), size


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = NumberParser(
        prog="downsample_point.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="in.ply", type=Path, help="PLY, ascii or binary")
    parser.add_argument("target", metavar="out.ply", type=Path, help="where to write, binary")
    parser.add_argument(
        "--max_points", type=int, default=MAX_POINTS, help=f"points at most (default {MAX_POINTS})"
    )
    parser.add_argument(
        "--voxel",
        type=float,
        help="side of the cubes to begin with, in the cloud's units; merges even when there are "
        "few enough points (default: as small as --max_points allows)",
    )
    arguments = parser.parse_args(argv)
    if arguments.max_points < 1:
        raise UserError(f"--max_points is {arguments.max_points}; give 1 or more")
    if arguments.voxel is not None and not 0 < arguments.voxel < np.inf:
        raise UserError(f"--voxel is {arguments.voxel:g}; give a length above 0")
    if arguments.target.suffix.lower() != ".ply":
        raise UserError(f"{arguments.target}: name the output with the ending .ply")
    if arguments.target.is_dir():
        raise UserError(f"{arguments.target} is a folder; name a file")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Reads, thins, writes."""
    arguments = parse(argv)
    columns = read_columns(arguments.source)
    result, size = thinned(columns, arguments.max_points, arguments.voxel)
    for name in AXES + NORMALS:
        result[name] = result[name].astype(np.float32)
    write_vertices(arguments.target, result)
    how = "as they were" if size is None else f"one for each cube of side {size:.4g}"
    print(f"{arguments.target}: {len(result['x'])} of {len(columns['x'])} points, {how}")


if __name__ == "__main__":
    cli(main)
