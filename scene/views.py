"""What a scene is to the rest of the toolkit: views (camera, time, image) and a point cloud."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from scene.cameras import Camera
from scene.frames import FrameStore
from scene.point_cloud import PointCloud


@dataclass(frozen=True, eq=False)
class View:
    """One camera at one time, with its image if there is one.

    Attributes:
        camera: at the size that the scene is read at.
        camera_index: row in `Scene.camera_names`; -1 for a camera path.
        frame_index: position in the clip as it is used, from 0.
        time: in [0, 1].
        store: where the image comes from; None for a camera path.
        slot: (source, frame) of the image in the store.
    """

    camera: Camera
    camera_index: int
    frame_index: int
    time: float
    store: FrameStore | None = None
    slot: tuple[int, int] = (0, 0)

    @property
    def name(self) -> str:
        """Unique within a set: ``cam01/0003``."""
        return f"{self.camera.name}/{self.frame_index:04d}"

    def image(self) -> torch.Tensor:
        """(H, W, 3) uint8 RGB at the camera's size; shared, do not write into it.

        Raises:
            UserError: the image's file is missing or damaged.
            ValueError: the view has no image.
        """
        if self.store is None:
            raise ValueError(f"view {self.name} is of a camera path and has no image")
        return self.store.get(*self.slot)

    def mask(self) -> torch.Tensor | None:
        """Which pixels of the image count: (H, W) bool, shared; None: all of them.

        Raises:
            UserError: the mask's file is missing or damaged.
        """
        return None if self.store is None else self.store.mask(*self.slot)


@dataclass
class Scene:
    """A scene as it was read.

    Attributes:
        kind: the format's short name, such as n3v or colmap.
        source_path: the scene folder.
        camera_names: of the rig, training and held-out cameras alike.
        train, test: views with images, in the order of the format's files.
        video: views of a camera path fitted to the training cameras, without images.
        points: the initial cloud.
        extent: 1.1 times the largest distance of a training camera from their mean, world units.
        frame_count: distinct times of the clip as it is used.
        background: RGB in [0, 1], behind everything.
    """

    kind: str
    source_path: Path
    camera_names: list[str]
    train: list[View]
    test: list[View]
    video: list[View]
    points: PointCloud
    extent: float
    frame_count: int
    background: tuple[float, float, float]

    @cached_property
    def bbox(self) -> torch.Tensor:
        """(2, 3) float32: lowest and highest coordinates of the initial cloud."""
        return torch.from_numpy(self.points.bbox)

    @cached_property
    def times(self) -> list[float]:
        """The distinct times of the training and test views, ascending."""
        return sorted({view.time for view in (*self.train, *self.test)})

    def prepare(self, views: Sequence[View] | None = None) -> None:
        """Decodes the videos behind ``views`` (default: training and test) now.

        Optional: it moves the wait, and any damaged frame, to before the first iteration.
        """
        for store, sources in self._sources_of(views):
            store.prepare(sources)

    def reserve(self, views: Sequence[View] | None = None) -> None:
        """Makes sure that there is room, in memory or on disk, for the frames of ``views``.

        Raises:
            UserError: there is too little, as ``--cache`` is.
        """
        for store, sources in self._sources_of(views):
            store.reserve(sources)

    def _sources_of(self, views: Sequence[View] | None) -> list[tuple[FrameStore, set[int]]]:
        """The stores behind ``views`` (default: training and test), with the sources asked of."""
        wanted: dict[int, tuple[FrameStore, set[int]]] = {}
        for view in (*self.train, *self.test) if views is None else views:
            if view.store is not None:
                wanted.setdefault(id(view.store), (view.store, set()))[1].add(view.slot[0])
        return list(wanted.values())


def scene_extent(cameras: Sequence[Camera], points: PointCloud) -> float:
    """1.1 times the largest distance of a camera centre from the mean centre (3DGS).

    With one camera (or several in one place) that would be zero: then half the diagonal of the box
    that holds the middle 90 % of the points, which is what the extent stands for.
    """
    centres = torch.stack([camera.camera_center for camera in cameras]).double()
    radius = float((centres - centres.mean(dim=0)).norm(dim=1).max())
    low, high = np.percentile(points.xyz.astype(np.float64), [5, 95], axis=0)
    diagonal = float(np.linalg.norm(high - low))
    if radius > 1e-4 * max(diagonal, 1e-9):
        return 1.1 * radius
    return 0.5 * diagonal or 1.0
