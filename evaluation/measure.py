"""Measures a source by a protocol: every picture by itself, and its clips in time.

Names of numbers: as `render_*.py` has them; ``_8bit`` says that the render was rounded to 8 bits
first. Besides, of the render as the protocol takes it (rounded or not):

- ``ssim_uniform7``, ``ssim_uniform7_range2``, ``ms_ssim``: see `evaluation.protocols.SSIMS`.
- ``psnr_moving``, ``ssim_moving``, ``psnr_still``: of the moving region (`motion.moving_mask`) and
  of the rest; ``moving_share``, that region's part of the pixels that count.
- ``flicker``, ``flicker_gt``: see `motion.flicker`, of the render and of the ground truth, where
  pixels of both moments count.
- ``tlpips``: | LPIPS(render, render before) - LPIPS(truth, truth before) |, by the protocol's
  network and range (Chu et al. 2020, TecoGAN, without the factor of 100 of its tables); the render
  has the ground truth where pixels of either moment do not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from evaluation.motion import flicker, moving_mask
from evaluation.protocols import SSIM_WINDOWS, Protocol
from evaluation.similarity import MS_SSIM_SMALLEST, ms_ssim, uniform_ssim
from evaluation.sources import FolderSource, Item, RunSource, Source
from scene.frames import ImageFrames
from training.evaluation import (
    Measures,
    Perceptual,
    as_numbers,
    fill_masked,
    mean_of,
    measures,
    quality,
)
from training.losses import to_float
from utils.errors import UserError
from utils.lpips import LpipsUnavailable
from utils.metrics import to_8bit

_SSIMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ssim_uniform7": uniform_ssim,
    "ssim_uniform7_range2": lambda image, target: uniform_ssim(image, target, 2.0),
    "ms_ssim": ms_ssim,
}


@dataclass(frozen=True)
class Picture:
    """A picture that is shown in the report: (H, W, 3) uint8 each."""

    name: str
    image: np.ndarray
    target: np.ndarray


@dataclass
class Measured:
    """All numbers of a source.

    Attributes:
        keys: names of the numbers that the protocol calls PSNR, SSIM and LPIPS.
        rows: by picture, in order; empty where no pixel counts.
        cameras, means: of the rows.
        reasons: why numbers are missing.
        worst: pictures of the lowest PSNR, the lowest first.
        kept: pictures that were asked for.
    """

    label: str
    facts: dict[str, Any]
    deviations: list[str]
    notes: list[str]
    keys: dict[str, str]
    items: list[Item]
    rows: dict[str, dict[str, float]]
    reasons: list[str] = field(default_factory=list)
    worst: list[Picture] = field(default_factory=list)
    kept: dict[str, Picture] = field(default_factory=dict)

    @property
    def means(self) -> dict[str, float]:
        """Mean of every number over the pictures that have it; D-SSIM of those of the SSIMs."""
        means = mean_of(self.rows.values())
        return means | {f"d_{key}": (1 - means[key]) / 2 for key in _SSIMS if key in means}

    @property
    def cameras(self) -> dict[str, dict[str, float]]:
        """Means of every camera."""
        names = dict.fromkeys(item.camera for item in self.items)
        return {
            camera: mean_of(self.rows[i.name] for i in self.items if i.camera == camera)
            for camera in names
        }

    @property
    def headline(self) -> dict[str, float | None]:
        """``psnr``, ``ssim`` and ``lpips`` as the protocol has them; None: not available."""
        means = self.means
        return {name: means.get(key) for name, key in self.keys.items()}

    def count(self, key: str) -> int:
        """Of how many pictures a mean is."""
        return sum(key in row for row in self.rows.values())


def choose(source: Source, protocol: Protocol) -> list[int]:
    """The pictures that the protocol measures: the first ``frame_count`` of every camera."""
    seen: dict[str, int] = {}
    chosen = []
    for index, item in enumerate(source.items):
        seen[item.camera] = seen.get(item.camera, 0) + 1
        if protocol.frame_count is None or seen[item.camera] <= protocol.frame_count:
            chosen.append(index)
    return chosen


def refuse_small(source: Source, protocol: Protocol) -> None:
    """Raises UserError where a picture is smaller than a window of the protocol, after its crop."""
    window = max(SSIM_WINDOWS[key] for key in (protocol.ssim, "ssim"))
    for item in source.items:
        width, height = (side - 2 * protocol.crop for side in item.size)
        if min(width, height) < window:
            cropped = f" after --crop {protocol.crop}" if protocol.crop else ""
            raise UserError(
                f"{source.label}: {item.name} is {max(width, 0)}x{max(height, 0)} pixels{cropped}, "
                f"smaller than the {window}x{window} window of SSIM; give larger pictures"
            )


class Meter:
    """Measures one source."""

    def __init__(
        self,
        source: Source,
        protocol: Protocol,
        perceptual: Perceptual,
        *,
        in_time: bool = True,
        every_lpips: bool = False,
    ) -> None:
        """Args:
        in_time: measure what moves and what flickers, in the clips there are.
        every_lpips: compare every picture by LPIPS, however long it takes on a CPU.
        """
        self.source, self.protocol, self.perceptual = source, protocol, perceptual
        self.chosen = choose(source, protocol)
        self.items = [source.items[index] for index in self.chosen]
        self.every_lpips = every_lpips
        self.neighbours = _neighbours(source.items, self.chosen) if in_time else {}
        self.targets: dict[int, Tensor] = {}
        # Of each clip the last picture: its index, itself, what moves in it and what counts.
        self.before: dict[str | None, tuple[int, Tensor, Tensor, Tensor]] = {}
        pixels = max(item.size[0] * item.size[1] for item in self.items)
        self.compared = {
            net: {self.chosen[i] for i in self._some(net, len(self.chosen), pixels)}
            for net in perceptual.models
        }
        pairs = [index for index, (before, _) in self.neighbours.items() if before is not None]
        net = protocol.lpips_net
        some = self._some(net, len(pairs), 2 * pixels) if net in perceptual.models else ()
        self.pairs = {pairs[i] for i in some}

    def _some(self, net: str, count: int, pixels: int) -> set[int]:
        if self.every_lpips:
            return set(range(count))
        return self.perceptual.choose_of(net, count, pixels)

    def keys(self) -> dict[str, str]:
        """See `Measured.keys`."""
        rounded = "_8bit" if self.protocol.eight_bit or not self.source.exact else ""
        ssim = f"ssim{rounded}" if self.protocol.ssim == "ssim" else self.protocol.ssim
        legacy = "_legacy" if self.protocol.lpips_range == "legacy" else ""
        lpips = f"lpips_{self.protocol.lpips_net}{legacy}{rounded}"
        return {"psnr": f"psnr{rounded}", "ssim": ssim, "lpips": lpips}

    @torch.no_grad()
    def measure(self, *, worst: int, keep: Sequence[str] = (), quiet: bool = False) -> Measured:
        """Renders or reads every picture and measures it.

        Args:
            worst: how many pictures of low PSNR to keep.
            keep: names of pictures to keep besides.
        """
        self.source.prepare(self.chosen)
        keys, found = self.keys(), {}
        gallery = _Gallery(keys["psnr"], worst, set(keep))
        bar = tqdm(total=len(self.chosen), desc=f"measure {self.source.label}", disable=quiet)
        with bar:
            for index, image in self.source.images(self.chosen):
                row, shown, target = self._picture(index, image)
                name = self.source.items[index].name
                found[name] = as_numbers([row])[0]
                gallery.offer(name, found[name], shown, target)
                bar.update()
        return Measured(
            label=self.source.label,
            facts=self.source.facts,
            deviations=deviations(self.source, self.protocol, self.chosen),
            notes=list(self.source.notes),
            keys=keys,
            items=self.items,
            rows={item.name: found[item.name] for item in self.items},
            reasons=self._reasons(),
            worst=gallery.worst(),
            kept=gallery.kept,
        )

    def _picture(self, index: int, image: Tensor) -> tuple[Measures, Tensor, Tensor]:
        """The numbers of a picture, itself as the protocol takes it, and its ground truth."""
        image, target = self._cropped(image), self._target(index, image.device)
        mask = self._mask(index, image.device)
        rounded = self.protocol.eight_bit and self.source.exact
        shown = to_8bit(image).float() / 255 if rounded else image.clamp(0, 1)
        row: Measures = {}
        if mask is None or bool(mask.any()):
            row |= self._alone(index, image, shown, target, mask)
        if index in self.neighbours:
            row |= self._in_time(index, shown, target, mask)
        return row, shown, target

    def _alone(
        self, index: int, image: Tensor, shown: Tensor, target: Tensor, mask: Tensor | None
    ) -> Measures:
        nets = [net for net, indices in self.compared.items() if index in indices]
        row = self.perceptual.measures(fill_masked(image, target, mask), target, nets)
        row |= measures(image, target, mask)
        filled = fill_masked(shown, target, mask)
        if not self.source.exact:  # what is from PNGs has been rounded and nothing else
            row = {_rounded(key): value for key, value in row.items()}
        elif self.protocol.eight_bit:
            of_shown = self.perceptual.measures(filled, target, nets)
            row |= {_rounded(key): value for key, value in of_shown.items()}
        for key in {self.protocol.ssim, *self.protocol.also} & _SSIMS.keys():
            if key != "ms_ssim" or min(shown.shape[1:]) >= MS_SSIM_SMALLEST:
                row[key] = _SSIMS[key](filled, target).float()
        return row

    def _in_time(self, index: int, shown: Tensor, target: Tensor, mask: Tensor | None) -> Measures:
        """The numbers of the moving region, and those of the step from the moment before."""
        before, after = self.neighbours[index]
        others = [self._target(i, shown.device) for i in (before, after) if i is not None]
        moving = moving_mask(target, others)
        counted = torch.ones_like(moving) if mask is None else mask
        region, rest = moving & counted, counted & ~moving
        row: Measures = {}
        if bool(counted.any()):
            row["moving_share"] = region.sum() / counted.sum()
        if bool(region.any()):
            row |= quality(shown, target, region, "_moving")
        if bool(rest.any()):
            row |= {"psnr_still": quality(shown, target, rest)["psnr"]}
        clip = self.source.items[index].clip
        if before is not None:
            row |= self._step(index, before, shown, target, moving, counted)
        self.before[clip] = (index, shown, moving, counted)
        return row

    def _step(
        self,
        index: int,
        before: int,
        shown: Tensor,
        target: Tensor,
        moving: Tensor,
        counted: Tensor,
    ) -> Measures:
        """What changes from the picture before, where pixels of both count."""
        clip = self.source.items[index].clip
        last, shown_before, moving_before, counted_before = self.before[clip]
        if last != before:
            raise RuntimeError(f"pictures came out of order: {last} before {index}")
        target_before, row = self._target(before, shown.device), {}
        both = counted & counted_before
        still = both & ~moving & ~moving_before
        if bool(still.any()):
            row["flicker"] = flicker(shown, shown_before, still)
            row["flicker_gt"] = flicker(target, target_before, still)
        if index in self.pairs and bool(both.any()):
            filled = fill_masked(shown, target, both)
            filled_before = fill_masked(shown_before, target_before, both)
            model, how = self.perceptual.models[self.protocol.lpips_net], self.protocol.lpips_range
            try:
                ours = model(filled, filled_before, how)
                row["tlpips"] = (ours - model(target, target_before, how)).abs().reshape(())
            except LpipsUnavailable as reason:
                self.perceptual.reasons[self.protocol.lpips_net] = str(reason)
        return row

    def _target(self, index: int, device: torch.device) -> Tensor:
        """(3, H, W) in [0, 1]; the last few are kept, since neighbours in time ask again."""
        if index not in self.targets:
            pixels = self.source.target(index).to(device)
            self.targets[index] = self._cropped(to_float(pixels[None])[0])
            clips = len({item.clip for item in self.items})
            while len(self.targets) > 3 * clips + 1:
                del self.targets[next(iter(self.targets))]
        return self.targets[index]

    def _mask(self, index: int, device: torch.device) -> Tensor | None:
        mask = self.source.mask(index)
        return None if mask is None else self._cropped(mask.to(device)[None])

    def _cropped(self, image: Tensor) -> Tensor:
        crop = self.protocol.crop
        height, width = image.shape[-2:]
        return image[..., crop : height - crop, crop : width - crop].contiguous()

    def _reasons(self) -> list[str]:
        """Why numbers are missing that the protocol has, or are of some pictures only."""
        reasons = [f"LPIPS {text}" for text in dict.fromkeys(self.perceptual.reasons.values())]
        sizes = [min(item.size) - 2 * self.protocol.crop for item in self.items]
        if "ms_ssim" in (self.protocol.ssim, *self.protocol.also) and min(sizes) < MS_SSIM_SMALLEST:
            reasons.append(f"MS-SSIM needs {MS_SSIM_SMALLEST} pixels on a side")
        if not any(item.clip for item in self.items):
            reasons.append(f"moving regions and temporal metrics: {NO_CLIP}")
        return reasons


NO_CLIP = (
    "no camera that stands still shows several moments in order, so that pictures have no order "
    "in time"
)


def _rounded(key: str) -> str:
    return key if key.endswith("_8bit") else f"{key}_8bit"


def _neighbours(
    items: Sequence[Item], chosen: Sequence[int]
) -> dict[int, tuple[int | None, int | None]]:
    """The picture before and after, of every picture in a clip of several."""
    clips: dict[str, list[int]] = {}
    for index in chosen:
        if items[index].clip is not None:
            clips.setdefault(items[index].clip, []).append(index)
    found: dict[int, tuple[int | None, int | None]] = {}
    for members in clips.values():
        row = [None, *sorted(members, key=lambda i: items[i].moment), None]
        if len(row) > 3:
            found |= {row[k]: (row[k - 1], row[k + 1]) for k in range(1, len(row) - 1)}
    return found


class _Gallery:
    """Keeps the pictures that the report shows, and no others."""

    def __init__(self, key: str, worst: int, names: set[str]) -> None:
        self.key, self.limit, self.names = key, worst, names
        self.found: list[tuple[float, str, Picture]] = []
        self.kept: dict[str, Picture] = {}

    def offer(self, name: str, row: dict[str, float], image: Tensor, target: Tensor) -> None:
        value = row.get(self.key)
        low = value is not None and self._is_low(value)
        if name not in self.names and not low:
            return
        picture = Picture(name, _pixels(image), _pixels(target))
        if name in self.names:
            self.kept[name] = picture
        if low:
            self.found = sorted([*self.found, (value, name, picture)], key=lambda f: f[:2])
            self.found = self.found[: self.limit]

    def _is_low(self, value: float) -> bool:
        room = len(self.found) < self.limit
        return room or (bool(self.found) and value < self.found[-1][0])

    def worst(self) -> list[Picture]:
        return [picture for _, _, picture in self.found]


def _pixels(image: Tensor) -> np.ndarray:
    return to_8bit(image).permute(1, 2, 0).cpu().numpy()


def deviations(source: Source, protocol: Protocol, chosen: Sequence[int]) -> list[str]:
    """In what the pictures are not those of the protocol, so that numbers do not compare."""
    items = [source.items[index] for index in chosen]
    found = []
    if source.kind is not None and protocol.kinds and source.kind not in protocol.kinds:
        found.append(f"the scene is of kind {source.kind}, not {', '.join(protocol.kinds)}")
    cameras = dict.fromkeys(item.camera for item in items)
    if protocol.test_cameras is not None and source.kind is not None:
        if set(cameras) != set(protocol.test_cameras):
            found.append(f"cameras {', '.join(cameras)} and not {', '.join(protocol.test_cameras)}")
    counts = sorted({sum(item.camera == camera for item in items) for camera in cameras})
    if protocol.frame_count is not None and counts != [protocol.frame_count]:
        shown = " or ".join(map(str, counts))
        found.append(f"{shown} frames of a camera and not {protocol.frame_count}")
    sizes = dict.fromkeys(item.size for item in items)
    if protocol.size is not None and list(sizes) != [protocol.size]:
        shown = ", ".join(f"{w}x{h}" for w, h in sizes)
        found.append(f"{shown} pixels and not {protocol.size[0]}x{protocol.size[1]}")
    if isinstance(source, RunSource):
        found += _left_out(source, protocol) + _other_files(source, protocol, chosen)
    if isinstance(source, FolderSource) and source.views not in (None, "test"):
        found.append(f"views of the {source.views} set, which are not held out")
    if protocol.background and source.background not in (None, protocol.background):
        found.append("another background than the protocol's")
    if not source.exact and not protocol.eight_bit:
        found.append("8-bit pictures, where the protocol measures floats")
    if any(source.mask(index) is not None for index in chosen):
        found.append("masked: metrics are of the pixels that count")
    if protocol.crop:
        found.append(f"{protocol.crop} pixels of every side are left out")
    return found


def _left_out(source: RunSource, protocol: Protocol) -> list[str]:
    """Which of the protocol's frames and cameras a run's settings leave out."""
    settings, found = source.settings, []
    if protocol.first_frame not in (None, settings.start_frame):
        found.append(f"start_frame {settings.start_frame} and not {protocol.first_frame}")
    if protocol.frame_count is not None and settings.frame_step != 1:
        found.append(f"frame_step {settings.frame_step} and not 1")
    moved = settings.start_frame > 0 or settings.frame_step > 1 or settings.test_cameras
    if not protocol.by_files or not (moved or 0 < settings.duration <= source.scene.frame_count):
        return found
    ours, whole = Counter(item.camera for item in source.items), source.held_out
    if whole is None:
        found.append("held-out pictures of a part of the scene")
    elif settings.test_cameras and set(ours) != set(whole):
        found.append(f"cameras {', '.join(ours)} and not {', '.join(whole)}")
    elif ours != whole:
        found.append(f"{ours.total()} held-out pictures and not the scene's {whole.total()}")
    return found


def _other_files(source: RunSource, protocol: Protocol, chosen: Sequence[int]) -> list[str]:
    """Whether pictures are resized, or of other files than the protocol's."""
    found = {}
    for index in chosen if protocol.by_files else ():
        (width, height), origin = source.items[index].size, source.origin(index)
        if protocol.size is None and (width, height) != origin.native:
            size = f"{origin.native[0]}x{origin.native[1]}"
            found[f"{width}x{height} pixels and not the files' {size}"] = None
        if protocol.folder is not None and isinstance(origin, ImageFrames):
            folder = origin.paths[0].parent
            if folder != source.scene.source_path / protocol.folder:
                found[f"pictures of {'/'.join(folder.parts[-2:])} and not {protocol.folder}"] = None
    return list(found)
