"""Makes the initial points of a HyperNeRF, Nerfies or NeRF-DS capture, by COLMAP with its poses.

python script/pre_hypernerf.py --videopath <dataset>/vrig-chicken
python script/pre_hypernerf.py --videopath <dataset>/vrig-chicken --max_images 100

The capture's folder holds dataset.json, metadata.json, camera/ and rgb/2x/, all that training needs
but a point cloud. Made in it:

colmap/posed/                  features, matches and points of the known poses
colmap/dense/workspace/fused.ply
points3D_downsample.ply        what training starts from

Of the images to train on, never of those held out, at most --max_images are taken, evenly spread in
time. Lenses that the camera files call distorted are undistorted before features are found. Up to
60 images are all matched with each other. Of more, each is matched with the 8 that come next, and
of the cameras that look the same way (within 45 degrees) with the 8 nearest and 8 of the others,
evenly spread by their distance. Only what stands still has points: what moves was elsewhere in the
next image.

What is done and still valid is skipped. COLMAP is the package pycolmap (pip install -r
requirements-preprocess.txt) or, where no lens is distorted, a program (--colmap_bin). Where it has
no CUDA there is no dense stereo, and the points are the triangulated ones.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from arguments_MoDE.config import ModelParams
from scene.cameras import Camera, camera_from_pose
from scene.datasets.hypernerf import CLOUDS, MARKER, Lens, Reader, fits, split
from scene.point_cloud import write_ply
from script.preprocessing import cloud, options
from script.preprocessing.colmap_tools import INSTALL, Tools
from script.preprocessing.footage import spread
from script.preprocessing.rig import (
    CLOUD,
    FUSED,
    camera_key,
    chosen_tools,
    fuse_dense,
    has_own_points,
    is_dense,
    make_workspace,
    thin,
)
from script.preprocessing.steps import Step, Steps, warn
from utils.errors import UserError, cli
from utils.images import read_image

POSED = "colmap/posed"
MAX_IMAGES = 200
EXHAUSTIVE = 60  # images, up to which all are matched with all: 1770 pairs
NEIGHBOURS = 8  # of each of the three kinds
SAME_WAY = np.cos(np.radians(45))  # of viewing directions whose pictures may be matched
BENT = 0.1  # pixels: lenses that bend less are pinholes
SAMPLED_FROM = 40  # images, where too few points could be triangulated

Undistortion = Callable[[np.ndarray], np.ndarray]


@dataclass
class Photos:
    """The images in use, in the order of their times.

    Attributes:
        paths: of the files.
        cameras: pinholes, at the size of the images once they are undistorted.
        changes: what undistorts each; None: nothing needs to.
        keys: of the changes, plain JSON.
    """

    paths: list[Path] = field(default_factory=list)
    cameras: list[Camera] = field(default_factory=list)
    changes: list[Undistortion | None] = field(default_factory=list)
    keys: list[list[float]] = field(default_factory=list)

    def read(self, rows: Sequence[int]) -> Iterator[np.ndarray]:
        """(H, W, 3) uint8 of each row, undistorted."""
        for row in rows:
            pixels, change = read_image(self.paths[row]), self.changes[row]
            yield change(pixels) if change else pixels


# ---- what is there ------------------------------------------------------------------------------


def find_photos(root: Path, images: str, most: int) -> Photos:
    """At most so many of the images to train on, evenly spread in time.

    Raises:
        UserError: this is no such capture, a file is missing or damaged, or there is one image.
    """
    if not fits(root):
        raise UserError(
            f"{root}: has no {MARKER} with metadata.json or camera/ beside it, as captures of "
            "HyperNeRF and Nerfies have; give the folder that does"
        )
    reader = Reader(root, images)
    names = sorted(split(root / MARKER)[0], key=lambda name: (reader.moment(name), name))
    names = spread(names, most)
    if len(names) < 2:
        raise UserError(f"{root / MARKER}: has one image to train on; points need two or more")
    undistort, photos = _Undistorter(), Photos()
    for name in names:
        picture = reader.picture(name)
        camera, change, key = undistort(picture.camera, reader.lenses[name])
        photos.paths.append(picture.path)
        photos.cameras.append(camera)
        photos.changes.append(change)
        photos.keys.append(key)
    if reader.displaced > BENT:
        print(f"lenses: distorted by up to {reader.displaced:.2g} pixels; undistorted first")
    return photos


class _Undistorter:
    """Makes the resampling of each lens, once for all images that share it."""

    def __init__(self) -> None:
        self.made: dict[tuple, tuple] = {}

    def __call__(
        self, camera: Camera, lens: Lens
    ) -> tuple[Camera, Undistortion | None, list[float]]:
        """The pinhole that an image of ``camera`` becomes, what makes it so, and that one's key."""
        if lens.displacement(camera) <= BENT:
            return camera, None, []
        key = (camera.width, camera.height, *_parameters(camera, lens))
        if key not in self.made:
            self.made[key] = _undistortion(*key[:2], key[2:])
        size, intrinsics, change = self.made[key]
        pose = np.linalg.inv(camera.world_to_camera.double().numpy())
        return camera_from_pose(camera.name, size, intrinsics, pose), change, list(key)


def _parameters(camera: Camera, lens: Lens) -> list[float]:
    """Those of the lens model FULL_OPENCV, which has no skew; that of these captures is none."""
    (k1, k2, k3), (p1, p2) = lens.radial, lens.tangential
    values = [camera.fx, camera.fy, camera.cx, camera.cy, k1, k2, p1, p2, k3, 0, 0, 0]
    return [float(value) for value in values]


def _undistortion(width: int, height: int, params: Sequence[float]) -> tuple:
    """Size and intrinsics of the pinhole, and the function that makes its pictures."""
    try:
        import pycolmap

        from script.preprocessing import lens
    except ImportError:
        raise UserError(
            f"pycolmap is not installed, and these lenses are distorted: {INSTALL}"
        ) from None
    bent = pycolmap.Camera(model="FULL_OPENCV", width=width, height=height, params=params)
    target = lens.undistorted(bent)
    size = (target.width, target.height)
    return size, lens.pinhole(target), lens.undistortion(bent, target)


# ---- which pairs --------------------------------------------------------------------------------


def choose_pairs(cameras: Sequence[Camera]) -> list[tuple[int, int]] | None:
    """Rows of the images that are matched; None: all with all.

    Args:
        cameras: in the order of time.
    """
    count = len(cameras)
    if count <= EXHAUSTIVE:
        return None
    centres = np.stack([camera.camera_center.double().numpy() for camera in cameras])
    forward = np.stack([camera.forward.double().numpy() for camera in cameras])
    pairs = set()
    for row in range(count):
        others = list(range(row + 1, min(row + 1 + NEIGHBOURS, count)))
        near = np.argsort(np.linalg.norm(centres - centres[row], axis=1), kind="stable")
        near = [int(i) for i in near if i != row and forward[i] @ forward[row] > SAME_WAY]
        others += near[:NEIGHBOURS] + spread(near[NEIGHBOURS:], NEIGHBOURS)
        pairs |= {(min(row, other), max(row, other)) for other in others}
    return sorted(pairs)


# ---- the points ---------------------------------------------------------------------------------


def make_points(
    root: Path, photos: Photos, tools: Tools, steps: Steps, chosen: argparse.Namespace
) -> None:
    """``colmap/`` and ``points3D_downsample.ply``.

    Raises:
        UserError: COLMAP fails.
    """
    dense = is_dense(tools, chosen)
    folder, pairs = root / POSED, choose_pairs(photos.cameras)
    settings = [camera_key(photos.cameras), photos.keys, chosen.max_image_size]
    settings += [chosen.max_features, chosen.colmap_bin]
    triangulation = Step("triangulation", photos.paths, [folder], settings)

    def triangulate() -> None:
        count = len(photos.cameras)
        print(f"matching {len(pairs) if pairs else count * (count - 1) // 2} pairs", flush=True)
        frames = photos.read(range(count))
        cloud.triangulate_moment(tools, photos.cameras, frames, folder, pairs)

    steps.run(triangulation, triangulate)
    make_workspace(root, tools, steps, folder)
    fused = Step("dense cloud" if dense else "cloud", [folder / cloud.SPARSE], [root / FUSED])
    make = (lambda: fuse_dense(root, tools)) if dense else (lambda: _fuse_sparse(root, photos))
    steps.run(fused, make)
    thin(root, steps, chosen.max_points)


def _fuse_sparse(root: Path, photos: Photos) -> None:
    """The triangulated points, with sampled ones where they are too few."""
    points = cloud.without_strays(cloud.merged([root / POSED]), photos.cameras)
    found = len(points)
    if found < cloud.ENOUGH:
        rows = spread(range(len(photos.cameras)), SAMPLED_FROM)
        cameras = [photos.cameras[row] for row in rows]
        points = cloud.with_samples(points, cameras, list(photos.read(rows)), str(root))
    write_ply(root / FUSED, points)
    print(f"cloud: {found} points from {len(photos.cameras)} images, {len(points) - found} sampled")


def prepare(chosen: argparse.Namespace) -> None:
    """All steps of one capture."""
    root = options.folder(chosen.videopath)
    tools = chosen_tools(root, chosen)
    photos = find_photos(root, chosen.images, chosen.max_images)
    print(f"{root}: {len(photos.paths)} images to train on, from {photos.paths[0].parent}")
    steps = Steps(root, redo=chosen.redo)
    if not has_own_points(root, steps):
        make_points(root, photos, tools, steps, chosen)
    first = next(name for name in CLOUDS if (root / name).exists())
    if first != CLOUD:
        warn(f"{root / first}: is read before {CLOUD}; move it away to train from the new points")
    print(f"ready: python -m scene.inspect {shlex.quote(str(root))}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        prog="pre_hypernerf.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--videopath", type=Path, required=True, help="the capture's folder, made ready in place"
    )
    group = parser.add_argument_group("which images")
    group.add_argument(
        "--max_images",
        type=int,
        default=MAX_IMAGES,
        help=f"of the images to train on, at most (default {MAX_IMAGES})",
    )
    group.add_argument(
        "--images",
        default=ModelParams.images,
        help="folder of the images (default: rgb/2x, else that of the largest)",
    )
    options.add_output(parser, frames=False)
    options.add_cloud(parser, moments=False)
    chosen = parser.parse_args(argv)
    options.check(chosen)
    if chosen.max_images < 2:
        raise UserError(f"--max_images {chosen.max_images}: give at least 2")
    return chosen


def main(argv: Sequence[str] | None = None) -> None:
    """Prepares the capture."""
    prepare(parse(argv))


if __name__ == "__main__":
    cli(main)
