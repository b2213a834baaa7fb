"""From a scene folder to a `Scene`: the formats are listed in one table, and all else is common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from arguments_MoDE.config import ModelParams
from scene.camera_paths import fit_path
from scene.cameras import Camera
from scene.datasets import (
    blender,
    colmap,
    hypernerf,
    multiview,
    n3v,
    nerfstudio,
    panoptic,
    technicolor,
)
from scene.datasets.checks import check_images, check_poses
from scene.datasets.common import Capture, Shot, frame_time
from scene.datasets.masks import add_masks
from scene.frames import FrameStore, Size, VideoFrames
from scene.point_cloud import PointCloud, random_cloud, thin
from scene.views import Scene, View, scene_extent
from utils.errors import UserError

_DEFAULT_WIDTH = 1600  # pixels; wider frames are halved until they fit, as 3DGS's default does
_DECODE_AT_ONCE = 150_000_000  # pixels of video that decode in about a second on one core


@dataclass(frozen=True)
class Format:
    """One row of the table: a folder that ``fits`` is read by ``load``; ``marker`` says why."""

    marker: str
    title: str
    load: Callable[[Path, ModelParams], Capture]
    fits: Callable[[Path], bool]


def _has(marker: str) -> Callable[[Path], bool]:
    return lambda root: (
        root / marker
    ).exists()  # a folder of that name is for the reader to refuse


FORMATS = (
    Format(n3v.MARKER, "Neural 3D Video", n3v.load, n3v.fits),
    Format(panoptic.MARKER, "PanopticSports", panoptic.load, _has(panoptic.MARKER)),
    Format(blender.MARKER, "D-NeRF / Blender", blender.load, _has(blender.MARKER)),
    Format(technicolor.MARKER, "Technicolor", technicolor.load, _has(technicolor.MARKER)),
    Format(hypernerf.MARKER, "HyperNeRF", hypernerf.load, hypernerf.fits),
    # The last three may come with a COLMAP model, which alone is what the last one needs.
    Format(multiview.MARKER, "multi-view", multiview.load, multiview.fits),
    Format(nerfstudio.MARKER, "nerfstudio", nerfstudio.load, nerfstudio.fits),
    Format(colmap.MARKER, "COLMAP", colmap.load, colmap.fits),
)


def detect_format(root: Path) -> Format:
    """The first format that the folder fits.

    Raises:
        UserError: no such folder, or none of the markers; the line lists them.
    """
    if not root.is_dir():
        what = "is a file" if root.exists() else "no such folder"
        raise UserError(f"-s {root}: {what}; give the scene's folder")
    for candidate in FORMATS:
        if candidate.fits(root):
            return candidate
    looked_for = ", ".join(f"{f.marker} ({f.title})" for f in FORMATS)
    raise UserError(f"{root}: unknown scene type; looked for {looked_for} and found none of them")


def load_scene(model: ModelParams) -> Scene:
    """Reads a scene.

    Files are looked at closely enough that most damage shows here; frames are decoded when views
    ask for them, except short clips, which are decoded (and so checked in full) at once.

    Args:
        model: where the scene is and how to read it.

    Raises:
        UserError: anything wrong with the folder, its files or the settings.
    """
    if not model.source_path:
        raise UserError("-s/--source_path: missing; give the scene's folder")
    root = Path(model.source_path)
    capture = detect_format(root).load(root, model)
    check_images(capture)
    add_masks(capture, root, model.images)
    cameras = list({id(s.camera): s.camera for s in capture.train}.values())
    check_poses(capture, cameras)
    colour = 255 if model.white_background else 0
    store = _frame_store(capture, model, (colour,) * 3)
    resize = _Resizer(model.resolution, model.near_plane)
    scene = Scene(
        kind=capture.kind,
        source_path=root,
        camera_names=capture.camera_names,
        train=[_view(shot, resize, store) for shot in capture.train],
        test=[_view(shot, resize, store) for shot in capture.test],
        video=_video_views([resize(camera) for camera in cameras], capture, model),
        points=_initial_points(capture.points, model, model.seed),
        extent=scene_extent(cameras, capture.points),
        frame_count=capture.frame_count,
        background=(colour / 255.0,) * 3,
    )
    _decode_short_clips(store)
    return scene


def target_size(native: Size, resolution: int) -> Size:
    """(width, height) for the setting ``resolution``: see `ModelParams.resolution`.

    Raises:
        UserError: the setting is 0 or below -1, or leaves no pixel.
    """
    width, height = native
    if resolution == -1:
        factor = 1
        while width / factor > _DEFAULT_WIDTH:
            factor *= 2
        size = (round(width / factor), round(height / factor))
    elif resolution in (1, 2, 4, 8):
        size = (round(width / resolution), round(height / resolution))
    elif resolution > 0:
        size = (resolution, round(height * resolution / width))
    else:
        raise UserError(f"-r/--resolution {resolution}: give -1, 1, 2, 4, 8 or a width in pixels")
    if min(size) < 1:
        raise UserError(f"-r/--resolution {resolution}: nothing is left of {width} x {height}")
    return size


class _Resizer:
    """Cameras at the chosen resolution and near plane, one object each: matrices are made once."""

    def __init__(self, resolution: int, near_plane: float) -> None:
        self._resolution, self._near_plane = resolution, near_plane
        self._done: dict[int, tuple[Camera, Camera]] = {}  # keeps the key's object alive

    def __call__(self, camera: Camera) -> Camera:
        if id(camera) not in self._done:
            size = target_size((camera.width, camera.height), self._resolution)
            self._done[id(camera)] = (
                camera,
                replace(camera.resized(*size), near_plane=self._near_plane),
            )
        return self._done[id(camera)][1]


def _frame_store(capture: Capture, model: ModelParams, background: tuple) -> FrameStore:
    return FrameStore(
        capture.sources,
        [target_size(source.native, model.resolution) for source in capture.sources],
        budget=int(model.cache_gb * 1e9),
        spool_folder=model.model_path or None,
        background=background,
        cache=model.cache,
    )


def _view(shot: Shot, resize: _Resizer, store: FrameStore) -> View:
    camera = resize(shot.camera)
    return View(camera, shot.camera_index, shot.frame_index, shot.time, store, shot.slot)


def _video_views(cameras: list[Camera], capture: Capture, model: ModelParams) -> list[View]:
    """A path once through the clip."""
    count = model.video_frames or capture.frame_count
    path = fit_path(cameras, count, focus_depth=capture.focus_depth)
    convention = model.time_convention
    return [View(c, -1, i, frame_time(i, count, convention)) for i, c in enumerate(path)]


def _initial_points(cloud: PointCloud, model: ModelParams, seed: int) -> PointCloud:
    """The cloud as --max_points and --add_points want it; random points fill its box."""
    points = thin(cloud, model.max_points, seed) if model.max_points else cloud
    if not model.add_points:
        return points
    extra = random_cloud(*cloud.bbox, model.add_points, seed)
    both = ((points.xyz, extra.xyz), (points.rgb, extra.rgb))
    return PointCloud(*(np.concatenate(pair) for pair in both))


def _decode_short_clips(store: FrameStore) -> None:
    """Decodes videos now if that takes about a second, which finds damage anywhere in them."""
    videos = [i for i, s in enumerate(store.sources) if isinstance(s, VideoFrames)]
    native = (store.sources[i] for i in videos)
    if sum((s.indices[-1] + 1) * s.native[0] * s.native[1] for s in native) <= _DECODE_AT_ONCE:
        store.prepare(videos)
