"""A scene of flat grey images and a model that renders them a little off."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from scene import Scene, View
from scene.cameras import Camera
from scene.point_cloud import PointCloud

ERROR = 0.1  # of every pixel of every render: 20 dB


@dataclass
class GreyStore:
    """Every frame is flat; a frame's grey is 40 + 4 times its number."""

    width: int
    height: int

    def get(self, source: int, frame: int) -> torch.Tensor:
        return torch.full((self.height, self.width, 3), 40 + 4 * frame, dtype=torch.uint8)

    def mask(self, source: int, frame: int) -> torch.Tensor | None:
        return None

    def prefetch(self, slots: list[tuple[int, int]]) -> None:
        pass


def camera(name: str, width: int = 48, height: int = 36) -> Camera:
    """A camera at the origin."""
    return Camera(name, width, height, 50, 50, width / 2, height / 2, torch.eye(4))


def clip(name: str, index: int, frames: int = 4, with_images: bool = True, **size) -> list[View]:
    """The views of one camera over time."""
    lens = camera(name, **size)
    store = GreyStore(lens.width, lens.height) if with_images else None
    times = np.linspace(0, 1, frames).tolist()
    return [View(lens, index, i, times[i], store, (index, i)) for i in range(frames)]


def fake_scene(test_cameras: int = 1, frames: int = 4, **size) -> Scene:
    """``test_cameras`` held-out cameras, one training camera, and a path."""
    names = [f"cam{i:02d}" for i in range(test_cameras + 1)]
    test = [view for i in range(test_cameras) for view in clip(names[i], i, frames, **size)]
    train = clip(names[-1], test_cameras, frames, **size)
    path = clip("path", -1, frames, with_images=False, **size)
    points = PointCloud(np.zeros((1, 3), np.float32), np.zeros((1, 3), np.uint8))
    return Scene("fake", Path("fake"), names, train, test, path, points, 1.0, frames, (1.0,) * 3)


class FakeModel:
    """Remembers how it was asked; "deforms" to the grey that the ground truth has."""

    def __init__(self, frames: int = 4) -> None:
        self.gaussians = type(
            "Gaussians",
            (),
            {"active_sh_degree": 2, "__len__": lambda _: 7, "xyz": torch.zeros(7, 3)},
        )()
        self.frames, self.asked = frames, []

    def eval(self) -> FakeModel:
        """As a module's."""
        return self

    def deform(self, time: float, *, camera_index=None, iteration: int, stage: str) -> float:
        """The grey of the frame at ``time``."""
        self.asked.append((time, camera_index, iteration, stage))
        return (40 + 4 * time * (self.frames - 1)) / 255


def fake_render(cameras, splats, background, sh_degree):
    """Flat images, `ERROR` too bright."""
    images = [torch.full((3, c.height, c.width), splats + ERROR) for c in cameras]
    return SimpleNamespace(images=torch.stack(images))
