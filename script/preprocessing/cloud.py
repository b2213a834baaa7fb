"""Initial points from known poses: triangulated at some moments, or sampled where colours agree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from scene.camera_paths import closest_point
from scene.cameras import Camera
from scene.colmap import read_points
from scene.point_cloud import PointCloud
from script.preprocessing.colmap_tools import PosedImage, Tools, triangulated_model
from script.preprocessing.frames import save_image
from script.preprocessing.steps import warn
from utils.errors import UserError
from utils.files import atomic_folder
from utils.images import resize_image

SPARSE = "distorted/sparse"  # in a moment's folder
ENOUGH = 1000  # points below which sampled ones are added
SAMPLED = 20_000  # of those
TRIES = 10  # random points for each that is kept
SAMPLE_WIDTH = 160  # pixels
FAR = 5.0  # times the distance from the middle that 90 % of the points keep within


def triangulate_moment(
    tools: Tools,
    cameras: Sequence[Camera],
    frames: Iterable[np.ndarray],
    folder: Path,
    pairs: Sequence[tuple[int, int]] | None = None,
) -> None:
    """A model of one moment in ``folder``: ``input/``, ``input.db``, ``manual/``, ``distorted/``.

    Args:
        cameras: one per frame, at the frame's size.
        frames: (H, W, 3) uint8 each, taken one after the other.
        pairs: rows of the cameras whose frames are matched; None: all with all.
    """
    with atomic_folder(folder) as temporary:
        posed = []
        (temporary / "input").mkdir()
        for camera, pixels in zip(cameras, frames, strict=True):
            posed.append(PosedImage(f"{camera.name}.png", camera))
            save_image(temporary / "input" / posed[-1].name, pixels)
        triangulated_model(tools, posed, temporary / "input", temporary, pairs)


def merged(folders: Sequence[Path]) -> PointCloud:
    """The points of several moments' models, as far as they have any; it may be empty.

    Raises:
        UserError: a model is damaged.
    """
    clouds = [PointCloud(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8))]
    clouds += [read_points(folder / SPARSE) for folder in folders if has_points(folder)]
    both = ([c.xyz for c in clouds], [c.rgb for c in clouds])
    return PointCloud(*(np.concatenate(parts) for parts in both))


def has_points(folder: Path) -> bool:
    """Whether anything was triangulated at a moment. Damaged files count: readers name them."""
    binary, text = (folder / SPARSE / f"points3D{suffix}" for suffix in (".bin", ".txt"))
    if binary.exists():
        return binary.read_bytes() != bytes(8)  # the number of points is all there is
    return not text.exists() or any(
        line.strip() and not line.startswith(b"#") for line in text.read_bytes().splitlines()
    )


def completed(
    cloud: PointCloud, cameras: Sequence[Camera], frames: Sequence[np.ndarray], what: str
) -> PointCloud:
    """The cloud without stray points; with sampled points where there are too few to train from."""
    kept = without_strays(cloud, cameras)
    return kept if len(kept) >= ENOUGH else with_samples(kept, cameras, frames, what)


def with_samples(
    kept: PointCloud, cameras: Sequence[Camera], frames: Sequence[np.ndarray], what: str
) -> PointCloud:
    """The cloud and `sample_consistent` points besides, with a note about ``what``."""
    warn(
        f"{what}: only {len(kept)} points could be triangulated (features that no other camera "
        "shows: wide baselines, bare walls); adding points where the cameras' colours agree"
    )
    try:
        more = sample_consistent(cameras, frames, SAMPLED)
    except UserError as error:
        raise UserError(f"{what}: {error}") from None
    return PointCloud(np.concatenate([kept.xyz, more.xyz]), np.concatenate([kept.rgb, more.rgb]))


def without_strays(cloud: PointCloud, cameras: Sequence[Camera]) -> PointCloud:
    """Without points that fewer than two cameras see, or that lie beyond all others by far."""
    if not len(cloud):
        return cloud
    seen = sum(camera.sees(cloud.xyz).astype(int) for camera in cameras)
    middle = np.median(cloud.xyz, axis=0)
    distance = np.linalg.norm(cloud.xyz - middle, axis=1)
    near = distance <= FAR * max(float(np.percentile(distance, 90)), 1e-9)
    keep = near & (seen >= min(2, len(cameras)))
    return PointCloud(cloud.xyz[keep], cloud.rgb[keep])


def sample_consistent(
    cameras: Sequence[Camera], frames: Sequence[np.ndarray], count: int, seed: int = 0
) -> PointCloud:
    """Points in the volume that the cameras share, where their colours agree best.

    A poor relation of space carving (Kutulakos and Seitz, 2000) without visibility: of random
    points in view of at least half of the cameras, and of two, those with the least spread of
    colours between the cameras.

    Args:
        cameras: one per frame, at the frame's size.
        frames: (H, W, 3) uint8 each, of one moment.
        count: of points.

    Raises:
        UserError: no point is in view of two cameras.
    """
    rng = np.random.default_rng(seed)
    small = [c.resized(*_small(c)) for c in cameras]
    pictures = [resize_image(f, (c.width, c.height)) for f, c in zip(frames, small, strict=True)]
    xyz = _in_shared_volume(small, count * TRIES, rng)
    colours, seen = _colours(small, pictures, xyz)
    needed = max(2, (len(cameras) + 1) // 2)
    enough = seen.sum(axis=0) >= min(needed, len(cameras))
    if not enough.any():
        raise UserError("no point is in view of two cameras at once: are the poses right?")
    weight = seen[..., None] / np.maximum(seen.sum(axis=0), 1)[:, None]  # (cameras, N, 1)
    mean = (weight * colours).sum(axis=0)
    spread = np.sqrt((weight * (colours - mean) ** 2).sum(axis=(0, 2)))
    order = np.argsort(np.where(enough, spread, np.inf))[: min(count, int(enough.sum()))]
    return PointCloud(xyz[order].astype(np.float32), mean[order].round().astype(np.uint8))


def _small(camera: Camera) -> tuple[int, int]:
    """A size at which a pixel is an area: colours then compare in spite of small errors."""
    return SAMPLE_WIDTH, max(1, round(SAMPLE_WIDTH * camera.height / camera.width))


def _in_shared_volume(
    cameras: Sequence[Camera], count: int, rng: np.random.Generator
) -> np.ndarray:
    """(count, 3) uniform in a ball around the point that the cameras look at.

    Cameras that look the same way meet nowhere before them: the ball is then five times their
    distance from each other away, as `scene.camera_paths` has it.
    """
    poses = np.stack([np.linalg.inv(c.world_to_camera.double().numpy()) for c in cameras])
    places, axes = poses[:, :3, 3], poses[:, :3, 2]
    spread = float(np.linalg.norm(places - places.mean(axis=0), axis=1).max())
    centre = closest_point(poses)
    if np.median(((centre - places) * axes).sum(axis=1)) < spread / 2:
        centre = places.mean(axis=0) + 5 * spread * axes.mean(axis=0)
    reach = float(np.median(np.linalg.norm(places - centre, axis=1)))
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return centre + directions * (reach * rng.random((count, 1)) ** (1 / 3))


def _colours(
    cameras: Sequence[Camera], pictures: Sequence[np.ndarray], xyz: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(cameras, N, 3) float colours where the points project, and (cameras, N) whether they do."""
    colours = np.zeros((len(cameras), len(xyz), 3))
    seen = np.zeros((len(cameras), len(xyz)), bool)
    for row, (camera, picture) in enumerate(zip(cameras, pictures, strict=True)):
        pixels, _ = camera.project(xyz)
        seen[row] = camera.sees(xyz)
        x, y = np.rint(pixels[seen[row]]).astype(int).T
        colours[row, seen[row]] = picture[y.clip(0, camera.height - 1), x.clip(0, camera.width - 1)]
    return colours, seen
