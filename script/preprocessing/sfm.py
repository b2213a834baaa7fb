"""Structure from motion of a rig of static cameras, from several moments at once.

A static camera sees every moment from the same place, so the features of several moments all
belong to one image of it: moments are matched each by itself (the same moment in two cameras), and
the matches are then put together. What moves gives further points in this way, instead of being in
the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from script.preprocessing.calibration import Calibrated
from script.preprocessing.colmap_tools import SEED, Features
from script.preprocessing.frames import save_image
from script.preprocessing.steps import warn
from utils.errors import UserError

# Narrow rigs fail COLMAP's demands on the first pair (16 degrees, 100 inliers): tried in turn.
_DEMANDS = ((16.0, 100, 30), (4.0, 50, 20), (1.5, 30, 15))

pycolmap.logging.minloglevel = 2  # errors only: it reports every step of every image


@dataclass(frozen=True)
class Settings:
    """How cameras are recovered.

    Attributes:
        model: COLMAP's name of the lens.
        shared: one set of intrinsics for all cameras of a size.
        focal: focal length to begin with, pixels; None: 1.2 times the longer side.
    """

    model: str = "SIMPLE_RADIAL"
    shared: bool = True
    focal: float | None = None


def recover_cameras(
    names: Sequence[str],
    moments: Sequence[Sequence[np.ndarray]],
    folder: Path,
    features: Features,
    settings: Settings,
) -> tuple[list[Calibrated], pycolmap.Reconstruction]:
    """Lenses and poses of the cameras, in COLMAP's arbitrary frame and scale.

    Args:
        names: of the cameras.
        moments: for each moment a frame of every camera, (H, W, 3) uint8.
        folder: an existing one for databases and images.

    Returns:
        The cameras that could be posed, in the order of ``names``, and COLMAP's model.

    Raises:
        UserError: fewer than two could.
    """
    databases = []
    for index, frames in enumerate(moments):
        images = folder / f"moment_{index}"
        images.mkdir()
        for name, pixels in zip(names, frames, strict=True):
            save_image(images / f"{name}.png", pixels)
        databases.append(folder / f"moment_{index}.db")
        _extract_and_match(images, databases[-1], names, frames, features, settings)
    _put_together(databases)
    model = _map(databases[0], folder / "moment_0", folder / "models", len(names), features)
    return _cameras(model, names), model


def _extract_and_match(
    images: Path,
    database: Path,
    names: Sequence[str],
    frames: Sequence[np.ndarray],
    features: Features,
    settings: Settings,
) -> None:
    extraction = pycolmap.FeatureExtractionOptions()
    extraction.max_image_size = features.max_image_size
    extraction.sift.max_num_features = features.max_num
    extraction.num_threads = features.threads
    mode = pycolmap.CameraMode.SINGLE if settings.shared else pycolmap.CameraMode.PER_IMAGE
    for (width, height), group in _by_size(names, frames).items():
        reader = pycolmap.ImageReaderOptions()
        reader.camera_model = settings.model
        if settings.focal:
            reader.camera_params = _initial(settings, width, height)
        pycolmap.extract_features(
            database,
            images,
            image_names=[f"{name}.png" for name in group],
            camera_mode=mode,
            reader_options=reader,
            extraction_options=extraction,
        )
    matching = pycolmap.FeatureMatchingOptions()
    matching.num_threads = features.threads
    pycolmap.set_random_seed(SEED)
    pycolmap.match_exhaustive(database, matching_options=matching)


def _by_size(
    names: Sequence[str], frames: Sequence[np.ndarray]
) -> dict[tuple[int, int], list[str]]:
    """(width, height) -> the cameras of that size."""
    groups: dict[tuple[int, int], list[str]] = {}
    for name, pixels in zip(names, frames, strict=True):
        groups.setdefault(pixels.shape[1::-1], []).append(name)
    return groups


def _initial(settings: Settings, width: int, height: int) -> str:
    """The model's parameters with the given focal length, no distortion."""
    model = pycolmap.CameraModelId.__members__[settings.model]
    camera = pycolmap.Camera.create_from_model_id(1, model, settings.focal, width, height)
    return ", ".join(repr(float(v)) for v in camera.params)


@contextmanager
def _opened(path: Path) -> Iterator[pycolmap.Database]:
    database = pycolmap.Database.open(path)
    try:
        yield database
    finally:
        database.close()


def _put_together(databases: Sequence[Path]) -> None:
    """Adds the features and matches of all databases to the first one, and verifies them anew."""
    with _opened(databases[0]) as first:
        images = {image.name: image.image_id for image in first.read_all_images()}
        points = {name: [first.read_keypoints(i)] for name, i in images.items()}
        pairs = _inlier_pairs(first, dict.fromkeys(images, 0))
        for path in databases[1:]:
            offsets = {name: sum(map(len, found)) for name, found in points.items()}
            with _opened(path) as other:
                numbers = {image.name: image.image_id for image in other.read_all_images()}
                for name in images:
                    points[name].append(other.read_keypoints(numbers[name]))
                for pair, found in _inlier_pairs(other, offsets).items():
                    pairs.setdefault(pair, []).extend(found)
        first.clear_matches()
        first.clear_two_view_geometries()
        for name, number in images.items():
            first.update_keypoints(number, np.concatenate(points[name]))
        for (a, b), found in pairs.items():
            first.write_matches(images[a], images[b], np.concatenate(found).astype(np.uint32))
    pycolmap.geometric_verification(databases[0])


def _inlier_pairs(
    database: pycolmap.Database, offsets: dict[str, int]
) -> dict[tuple[str, str], list[np.ndarray]]:
    """Names of two images -> their matches (M, 2), with the offsets added to the features' numbers.

    All matches are taken, verified or not: together with those of other moments, a few that were
    not enough alone may be.
    """
    images = sorted(database.read_all_images(), key=lambda image: image.name)
    pairs = {}
    for row, a in enumerate(images):
        for b in images[row + 1 :]:
            matches = np.asarray(database.read_matches(a.image_id, b.image_id))
            if len(matches):
                shift = [offsets[a.name], offsets[b.name]]
                pairs[a.name, b.name] = [matches.astype(np.int64) + shift]
    return pairs


def _map(
    database: Path, images: Path, out: Path, count: int, features: Features
) -> pycolmap.Reconstruction:
    """The model with the most cameras; demands on the first pair are lowered until all are in."""
    best: pycolmap.Reconstruction | None = None
    for row, demands in enumerate(_DEMANDS):
        folder = out / str(row)
        folder.mkdir(parents=True)
        options = _mapping_options(*demands, features)
        models = pycolmap.incremental_mapping(database, images, folder, options)
        for model in models.values():
            if best is None or model.num_reg_images() > best.num_reg_images():
                best = model
        if best is not None and best.num_reg_images() == count:
            break
    if best is None or best.num_reg_images() < 2:
        raise UserError(
            f"{database.parent}: no two cameras could be posed: too little that both show. Give "
            "more moments (--sfm_frames), or calibrate the cameras (--calibration)"
        )
    return best


def _mapping_options(
    angle: float, inliers: int, pose_inliers: int, features: Features
) -> pycolmap.IncrementalPipelineOptions:
    options = pycolmap.IncrementalPipelineOptions()
    options.random_seed = SEED
    options.num_threads = features.threads
    options.min_model_size = 2
    options.mapper.init_min_tri_angle = angle
    options.mapper.init_min_num_inliers = inliers
    options.mapper.abs_pose_min_num_inliers = pose_inliers
    options.triangulation.ignore_two_view_tracks = False  # few cameras: pairs are all there is
    return options


def _cameras(model: pycolmap.Reconstruction, names: Sequence[str]) -> list[Calibrated]:
    """In the frame of the average camera: its axes are the world's, the mean centre its origin."""
    posed = {Path(image.name).stem: image for image in model.images.values() if image.has_pose}
    poses = {}
    for name, image in posed.items():
        poses[name] = np.eye(4)
        poses[name][:3] = image.cam_from_world().matrix()
    world = _average_frame(list(poses.values()))
    return [
        Calibrated(name, model.cameras[posed[name].camera_id], poses[name] @ world)
        for name in names
        if name in posed
    ]


def _average_frame(poses: Sequence[np.ndarray]) -> np.ndarray:
    """(4, 4): from a world with the average camera's axes and centre to that of ``poses``."""
    inverse = np.stack([np.linalg.inv(pose) for pose in poses])
    u, _, vt = np.linalg.svd(inverse[:, :3, :3].mean(axis=0))
    rotation = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
    frame = np.eye(4)
    frame[:3, :3], frame[:3, 3] = rotation, inverse[:, :3, 3].mean(axis=0)
    return frame


def warn_about_missing(cameras: Sequence[Calibrated], names: Sequence[str]) -> None:
    """Names the cameras that could not be posed.

    Raises:
        UserError: more than half of them could not.
    """
    posed = {camera.name for camera in cameras}
    missing = [name for name in names if name not in posed]
    if not missing:
        return
    message = f"{', '.join(missing)} could not be posed: too little in common with the others"
    if len(missing) > len(names) / 2:
        raise UserError(f"{message}; give more moments (--sfm_frames) or a --calibration")
    warn(f"{message}; left out")
