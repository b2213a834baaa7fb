"""Where pictures to be measured come from: a run that is rendered, or folders of images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from arguments_MoDE.config import ModelParams
from scene import Scene, View
from scene.datasets import detect_format
from scene.frames import FrameSource, VideoFrames
from training.checkpoint import Run
from training.evaluation import TOGETHER, ViewRenderer, finite, refuse_unless, together
from training.moe.files import MoERun
from training.moe.views import MoEViewRenderer
from utils.errors import UserError
from utils.images import read_image
from utils.video import read_video


@dataclass(frozen=True)
class Item:
    """One picture with ground truth.

    Attributes:
        name: unique within its source, the same in all sources that can be compared.
        camera: for means per camera.
        clip: pictures of one clip were taken by one camera that stands still, in the order of
            ``moment``; None: it is not known to, so that neighbours say nothing about motion.
        moment: grows with time.
        size: (width, height), pixels.
    """

    name: str
    camera: str
    clip: str | None
    moment: float
    size: tuple[int, int]


class Source(Protocol):
    """What is measured.

    Attributes:
        label: in tables.
        items: in their order.
        exact: whether images have not been rounded to 8 bits.
        facts: about it, for the record.
        notes: what a reader of its numbers should know.
        kind: of its scene, where that is known.
        background: behind transparent ground truth; None: not known.
        device: where its images are.
    """

    label: str
    items: list[Item]
    exact: bool
    facts: dict[str, Any]
    notes: list[str]
    kind: str | None
    background: tuple[float, float, float] | None
    device: torch.device | str

    def prepare(self, chosen: Sequence[int]) -> None:
        """Makes ready to show the chosen items."""

    def images(self, chosen: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """Index and image, (3, H, W) float, of the chosen items, every clip in order of time."""

    def target(self, index: int) -> Tensor:
        """The ground truth, (H, W, 3) uint8 on the CPU."""

    def peek(self, index: int) -> Tensor:
        """The same, also before `prepare`: no other frames are decoded for it."""

    def mask(self, index: int) -> Tensor | None:
        """The pixels that count, (H, W) bool on the CPU; None: all."""


@dataclass
class RunSource:
    """The held-out views of a trained run, rendered as `render_*.py` do."""

    label: str
    run: Run
    scene: Scene
    items: list[Item] = field(init=False)
    exact: bool = field(init=False, default=True)
    notes: list[str] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        clips = _still_clips(self.scene.test)
        self.items = [
            Item(
                view.name,
                view.camera.name,
                clips.get(view.camera_index),
                view.time,
                (view.camera.width, view.camera.height),
            )
            for view in self.scene.test
        ]

    @property
    def kind(self) -> str:
        """As `Scene.kind`."""
        return self.scene.kind

    @property
    def background(self) -> tuple[float, float, float]:
        """As `Scene.background`."""
        return self.scene.background

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.run.model.gaussians.xyz.device

    @property
    def facts(self) -> dict[str, Any]:
        """What the numbers are of."""
        return {
            "run": str(self.run.model_path),
            "iteration": self.run.iteration,
            "scene": str(self.scene.source_path),
            "gaussians": len(self.run.model.gaussians),
            "training_seconds": self.run.training_seconds,
        }

    @property
    def settings(self) -> ModelParams:
        """How the scene is read."""
        return self.run.config.model

    @cached_property
    def held_out(self) -> Counter[str] | None:
        """Camera -> pictures that the scene's files hold out, whatever part of them is used.

        None: the whole scene cannot be read, as when frames that are not used are missing.
        """
        root = self.scene.source_path
        whole = replace(self.settings, start_frame=0, duration=0, frame_step=1, test_cameras=[])
        try:
            with redirect_stderr(StringIO()):  # notes, which reading the scene has shown
                capture = detect_format(root).load(root, whole)
        except UserError:
            return None
        return Counter(shot.camera.name for shot in capture.test)

    def prepare(self, chosen: Sequence[int]) -> None:
        """Makes sure that there is room for the frames, and decodes them."""
        views = [self.scene.test[index] for index in chosen]
        self.scene.reserve(views)
        self.scene.prepare(views)

    def images(self, chosen: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """See `Source.images`; not clamped.

        Raises:
            UserError: the model renders what is not finite.
        """
        views = [self.scene.test[index] for index in chosen]
        renderer = self._renderer()
        groups = sorted(together(views, TOGETHER), key=lambda group: views[group[0]].time)
        for group in groups:
            images = renderer.together([views[i] for i in group])
            refuse_unless(finite(images), [views[i] for i in group])
            yield from zip((chosen[i] for i in group), images, strict=True)

    def _renderer(self) -> ViewRenderer | MoEViewRenderer:
        return ViewRenderer(self.run.model, self.scene, self.run.iteration)

    def target(self, index: int) -> Tensor:
        """See `Source.target`."""
        return self.scene.test[index].image()

    def peek(self, index: int) -> Tensor:
        """See `Source.peek`."""
        view, origin = self.scene.test[index], self.origin(index)
        if not isinstance(origin, VideoFrames):
            return view.image()
        size = (view.camera.width, view.camera.height)
        (pixels,) = read_video(origin.path, [origin.indices[view.slot[1]]], size)
        return torch.from_numpy(pixels)

    def origin(self, index: int) -> FrameSource:
        """The files that the ground truth of an item is from."""
        view = self.scene.test[index]
        return view.store.sources[view.slot[0]]

    def mask(self, index: int) -> Tensor | None:
        """See `Source.mask`."""
        return self.scene.test[index].mask()


@dataclass
class MoESource(RunSource):
    """The same of a mixture of models, as `render_moe.py` draws it with all of its experts."""

    run: MoERun

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return next(iter(self.run.runs.values())).model.gaussians.xyz.device

    @property
    def facts(self) -> dict[str, Any]:
        """What the numbers are of."""
        runs = self.run.runs
        return {
            "run": str(self.run.model_path),
            "iteration": self.run.iteration,
            "scene": str(self.scene.source_path),
            "experts": list(runs),
            "gaussians": sum(len(part.model.gaussians) for part in runs.values()),
            "training_seconds": self.run.training_seconds
            + sum(part.training_seconds for part in runs.values()),
        }

    def _renderer(self) -> ViewRenderer | MoEViewRenderer:
        return MoEViewRenderer(self.run.model, self.scene, self.run.params)


def _still_clips(views: Sequence[View]) -> dict[int, str]:
    """Rows of the cameras that stand still over several moments -> a name of their clip."""
    rows: dict[int, list[View]] = {}
    for view in views:
        rows.setdefault(view.camera_index, []).append(view)
    return {
        row: seen[0].camera.name
        for row, seen in rows.items()
        if len({view.time for view in seen}) == len(seen) > 1
        and all(_same_pose(view, seen[0]) for view in seen)
    }


def _same_pose(view: View, other: View) -> bool:
    return torch.equal(view.camera.world_to_camera, other.camera.world_to_camera)


@dataclass
class FolderSource:
    """Images in files, as 8-bit colours, paired with ground truth.

    Attributes:
        files: the render and the ground truth of each item.
        views: the set of a run's views that they show; None: not known.
        backdrop: colour behind transparent pixels, 0 to 255.
        device: where images are put.
    """

    label: str
    items: list[Item]
    files: list[tuple[Path, Path]]
    facts: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    backdrop: tuple[int, int, int] = (255, 255, 255)
    device: str = "cpu"
    views: str | None = None
    exact: bool = field(init=False, default=False)
    kind: str | None = field(init=False, default=None)
    background: tuple[float, float, float] | None = field(init=False, default=None)

    def prepare(self, chosen: Sequence[int]) -> None:
        """Nothing: files are read one by one."""

    def images(self, chosen: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """See `Source.images`.

        Raises:
            UserError: a file is missing or damaged.
        """
        for index in sorted(chosen, key=lambda i: self.items[i].moment):
            pixels = torch.from_numpy(read_image(self.files[index][0], background=self.backdrop))
            yield index, pixels.to(self.device).permute(2, 0, 1).float() / 255

    def target(self, index: int) -> Tensor:
        """See `Source.target`."""
        return torch.from_numpy(read_image(self.files[index][1], background=self.backdrop))

    def peek(self, index: int) -> Tensor:
        """See `Source.peek`."""
        return self.target(index)

    def mask(self, index: int) -> None:
        """None: files have no masks."""
        return None
