"""Neural 3D Video (DyNeRF): synchronised cameras with LLFF poses.

``poses_bounds.npy`` (N, 17): per camera a 3x5 matrix, whose columns are the axes down, right,
backwards, the centre, and (height, width, focal), then the nearest and farthest depth. Rows belong
to the cameras in the natural order of their names. A camera's frames are a video ``cam00.mp4``, or
images in ``images/cam00/`` or ``cam00/images/``, or one image ``images/cam00.png`` for a scene of
one time step. A video goes before images, being whole by construction, but not before the frames
that script/pre_n3v.py made of it, nor before those that ``--images`` names.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from arguments_MoDE.config import ModelParams
from scene.cameras import LARGEST, Camera, camera_from_pose
from scene.colmap import find_model
from scene.datasets.clips import add_rig, common_length, find_cameras, probe
from scene.datasets.common import Capture, choose_cameras, clip_frames, read_npy
from scene.point_cloud import PointCloud, read_ply
from utils import video
from utils.errors import UserError

MARKER = "poses_bounds.npy"
_CLOUDS = ("points3D_downsample.ply", "points3D_downsample2.ply")


def fits(root: Path) -> bool:
    """Whether there are poses, and more than the photos and COLMAP model of an LLFF scene."""
    if not (root / MARKER).exists():
        return False
    rig = any(p.suffix.lower() in video.SUFFIXES or p.is_dir() for p in root.glob("cam*"))
    rig = rig or any((root / name).exists() for name in _CLOUDS)
    return rig or find_model(root) is None


def load(root: Path, model: ModelParams) -> Capture:
    """Reads the scene; the first camera is held out unless ``test_cameras`` says otherwise.

    Raises:
        UserError: a file is missing or damaged, or poses and cameras do not match.
    """
    poses_file = root / MARKER
    rows = read_rows(poses_file)
    found = find_cameras(root, model.images, len(rows))
    if len(found) != len(rows):
        raise UserError(
            f"{poses_file}: has {len(rows)} rows but {root} has {len(found)} cameras (videos or "
            f"folders of frames{_examples(found)}); restore what is missing or remove its row"
        )
    names = list(found)
    clips = [probe(path) for path in found.values()]
    chosen = clip_frames(common_length(root, names, clips), model, root)
    held_out = choose_cameras(model.test_cameras, names, default=[0] if len(names) > 1 else [])
    capture = Capture("n3v", names, len(chosen), _cloud(root), poses_file)
    capture.focus_depth = _focus_depth(rows[:, 15:])
    cameras = [
        row_camera(name, row, clip.size).validate(poses_file)
        for name, row, clip in zip(names, rows, clips, strict=True)
    ]
    add_rig(capture, cameras, [clip.source(chosen) for clip in clips], held_out, model)
    return capture


def _examples(found: dict[str, Path]) -> str:
    names = list(found)
    return f": {', '.join(names[:3])} .. {names[-1]}" if len(names) > 3 else ""


def read_rows(path: Path) -> np.ndarray:
    """(N, 17) float64, finite."""
    rows = read_npy(path)
    if rows.ndim != 2 or rows.shape[1] != 17 or not len(rows):
        raise UserError(f"{path}: has shape {rows.shape}, not (cameras, 17); make it again")
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise UserError(f"{path}: row {bad[0]} holds NaN or infinite numbers; make it again")
    return rows


def row_camera(name: str, row: np.ndarray, size: tuple[int, int]) -> Camera:
    """Camera of one row, for frames of ``size``; the row's own size and focal length may differ."""
    llff = row[:15].reshape(3, 5)
    down, right, back, centre = llff[:, :4].T
    height, width, focal = llff[:, 4]
    pose = np.stack([right, down, -back, centre], axis=1)  # (3, 4), OpenCV axes
    if min(width, height) < 1:
        width = height = np.nan  # which Camera.validate refuses
    sx, sy = size[0] / width, size[1] / height
    if abs(focal) > LARGEST:
        focal = np.inf  # likewise
    return camera_from_pose(name, size, (focal * sx, focal * sy, size[0] / 2, size[1] / 2), pose)


def _focus_depth(bounds: np.ndarray) -> float | None:
    """Where LLFF's path looks: three quarters of the way, in disparity, between near and far."""
    near, far = 0.9 * bounds[:, 0].min(), 5.0 * min(bounds[:, 1].max(), 1e9)
    if not 1e-9 < near < far:
        return None
    return 1.0 / (0.25 / near + 0.75 / far)


def _cloud(root: Path) -> PointCloud:
    for name in _CLOUDS:
        if (root / name).exists():
            return read_ply(root / name)
    raise UserError(
        f"{root / _CLOUDS[0]}: missing; make it from COLMAP's dense cloud (fused.ply), thinned to "
        "some 100,000 points"
    )
