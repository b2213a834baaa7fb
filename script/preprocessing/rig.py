"""From a rig of static cameras with known poses to initial points: what all rigs have in common."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scene.cameras import Camera
from scene.point_cloud import read_ply, write_ply, write_vertices
from script.downsample_point import read_columns, thinned
from script.preprocessing import cloud, options
from script.preprocessing.colmap_tools import Tools, find_tools
from script.preprocessing.footage import Clip, probe, spread
from script.preprocessing.steps import Step, Steps, warn
from utils.errors import UserError
from utils.files import atomic_file, atomic_folder

WORKSPACE = "colmap/dense/workspace"
FUSED = f"{WORKSPACE}/fused.ply"
CLOUD = "points3D_downsample.ply"


@dataclass
class Rig:
    """Static cameras and what they filmed.

    Attributes:
        root: the scene folder.
        cameras: at the size that frames are used at.
        clips: where each camera's frames are; larger ones are reduced when read.
        frames: which of them are used.
    """

    root: Path
    cameras: Sequence[Camera]
    clips: Sequence[Clip]
    frames: Sequence[int]

    def moment(self, frame: int) -> list[np.ndarray]:
        """The frame of this index, of every camera: (H, W, 3) uint8 each."""
        pairs = zip(self.clips, self.cameras, strict=True)
        return [next(clip.read([frame], (c.width, c.height))) for clip, c in pairs]

    def files(self, frame: int) -> list[Path]:
        """What `moment` reads."""
        return [clip.file(frame) for clip in self.clips]

    def key(self) -> list:
        """The poses and intrinsics as plain JSON."""
        return camera_key(self.cameras)


def camera_key(cameras: Sequence[Camera]) -> list:
    """Poses and intrinsics as plain JSON."""
    return [
        [c.name, c.width, c.height, c.fx, c.fy, c.cx, c.cy, c.world_to_camera.tolist()]
        for c in cameras
    ]


def extracted(images: Path, names: Sequence[str]) -> list[Clip]:
    """The clips that frames were extracted to, in the order of ``names``."""
    return [probe(images / name) for name in names]


def chosen_tools(root: Path, chosen: argparse.Namespace) -> Tools:
    """COLMAP as the flags want it; asked for before any work, so that it is missed at once.

    Args:
        root: the scene folder, which gets a program's log.
        chosen: flags of `options.add_cloud`.

    Raises:
        UserError: it is not there, or dense stereo is asked of a build that has none.
    """
    log = root / "colmap" / "colmap.log"
    tools = find_tools(chosen.colmap_bin, options.features(chosen), log)
    if chosen.dense == "on" and not tools.has_cuda:
        raise UserError("--dense on: this COLMAP was built without CUDA; leave it out")
    return tools


def has_own_points(root: Path, steps: Steps) -> bool:
    """Whether initial points are there that none of our runs made: they are kept, with a note.

    Only for data whose poses are given: where they are recovered, old points lie in another frame.

    Raises:
        UserError: the file is damaged.
    """
    if steps.redo or not (root / CLOUD).exists() or steps.is_stamped(_thinning(root, 0)):
        return False
    count = len(read_ply(root / CLOUD))
    warn(f"{root / CLOUD}: keeping these {count} points; --redo makes new ones")
    return True


def make_points(rig: Rig, tools: Tools, steps: Steps, chosen: argparse.Namespace) -> list[Path]:
    """``colmap/`` and ``points3D_downsample.ply``: the way of N3V's published preparation.

    For the first frame, and without dense stereo for others too, ``colmap/frame_0000/`` with
    features, matches (``input.db``), the known poses (``manual``) and what they triangulate to
    (``distorted/sparse``); of the first frame ``colmap/dense/workspace``, undistorted; and in it
    ``fused.ply``, by dense stereo or from the triangulated points of all moments.

    Args:
        chosen: flags of `options.add_cloud`.

    Returns:
        The folders of the moments that were triangulated.

    Raises:
        UserError: COLMAP fails.
    """
    dense = is_dense(tools, chosen)
    moments = spread(rig.frames, 1 if dense else chosen.cloud_frames)
    folders = [_triangulate(rig, i, tools, steps, chosen) for i in moments]
    make_workspace(rig.root, tools, steps, folders[0])
    clouds = [folder / cloud.SPARSE for folder in folders]
    fused = Step("dense cloud" if dense else "cloud", clouds, [rig.root / FUSED], rig.key())
    make = (lambda: fuse_dense(rig.root, tools)) if dense else (lambda: _fuse_sparse(rig, folders))
    steps.run(fused, make)
    thin(rig.root, steps, chosen.max_points)
    return folders


def is_dense(tools: Tools, chosen: argparse.Namespace) -> bool:
    """Whether points come from dense stereo."""
    return tools.has_cuda and chosen.dense != "off"


def _triangulate(
    rig: Rig, index: int, tools: Tools, steps: Steps, chosen: argparse.Namespace
) -> Path:
    """A model of the moment ``index``."""
    folder = rig.root / "colmap" / f"frame_{index:04d}"
    step = Step(
        f"triangulation of frame {index}",
        rig.files(index),
        [folder],
        [rig.key(), chosen.max_image_size, chosen.max_features, chosen.colmap_bin],
    )
    steps.run(step, lambda: cloud.triangulate_moment(tools, rig.cameras, rig.moment(index), folder))
    return folder


def make_workspace(root: Path, tools: Tools, steps: Steps, first: Path) -> None:
    """What dense stereo reads: the images of a model, undistorted (of pinholes: copied)."""
    target = root / WORKSPACE
    step = Step("workspace", [first], [target / "images", target / "sparse"])

    def make() -> None:
        with atomic_folder(target) as temporary:
            tools.undistort(first / "input", first / cloud.SPARSE, temporary)

    steps.run(step, make)


def fuse_dense(root: Path, tools: Tools) -> None:
    """``fused.ply`` by dense stereo in the workspace."""
    with atomic_file(root / FUSED) as temporary:
        tools.stereo(root / WORKSPACE, temporary)


def _fuse_sparse(rig: Rig, folders: Sequence[Path]) -> None:
    """The triangulated points of all moments, under the name that dense stereo's cloud has."""
    points = cloud.merged(folders)
    points = cloud.completed(points, rig.cameras, rig.moment(rig.frames[0]), str(rig.root))
    write_ply(rig.root / FUSED, points)
    without = sum(not cloud.has_points(folder) for folder in folders)
    empty = f" ({without} of them gave none)" if without else ""
    print(f"cloud: {len(points)} points from {len(folders)} moments{empty}")


def _thinning(root: Path, most: int) -> Step:
    return Step("initial points", [root / FUSED], [root / CLOUD], most)


def thin(root: Path, steps: Steps, most: int) -> None:
    """``points3D_downsample.ply``, of ``fused.ply``."""

    def make() -> None:
        columns, _ = thinned(read_columns(root / FUSED), most)
        write_vertices(root / CLOUD, columns)
        print(f"initial points: {len(columns['x'])} in {root / CLOUD}")

    steps.run(_thinning(root, most), make)
