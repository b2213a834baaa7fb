"""How good and how fast a model renders: numbers only, nothing is written.

PSNR and SSIM are of the render clamped to [0, 1] against the 8-bit ground truth, in float and, with
the suffix ``_8bit``, from the rounded render as a PNG holds it. Data range 1 throughout.

Where the ground truth has a mask, only pixels that count are measured: PSNR is of them alone, SSIM
is the mean of its map over them, and LPIPS, which cannot leave out pixels, sees the ground truth at
the others, as SSIM's windows do. Results say ``masked`` then: they do not compare with others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from gaussian_renderer import render
from scene import Scene, View
from scene.mixture import MoDE
from training.losses import to_float
from training.transfers import TargetLoader, target_loader
from utils.errors import UserError
from utils.lpips import LpipsUnavailable, load_lpips
from utils.metrics import psnr, ssim, ssim_map, to_8bit

Render = Callable[[View], Tensor]  # of a view: (3, H, W), float, not clamped
Measures = dict[str, Tensor]  # name of a metric -> scalar, on the device that rendered

WARM_UP_FRAMES = 3
TIMED_FRAMES = 100
TIMED_SECONDS = 5.0
# Views of one time that are rendered at once, at most: they share a deformation. On a CPU four take
# a third of the time of four alone (docs/log.md), with the same bits; not measured on a GPU.
TOGETHER = 4
# Pixels that a CPU compares with a network in about half a minute; a GPU compares every view.
LPIPS_CPU_PIXELS = {"alex": 20e6, "vgg": 0.75e6}


def evenly_spaced(count: int, limit: int | None) -> list[int]:
    """At most ``limit`` (None: all) of the indices below ``count``, first and last among them."""
    if limit is None or limit >= count:
        return list(range(count))
    if limit == 1:
        return [count // 2]
    return [round(i * (count - 1) / (limit - 1)) for i in range(limit)]


class ViewRenderer:
    """Renders views as of cameras never seen, on the model's device."""

    def __init__(self, model: MoDE, scene: Scene, iteration: int, stage: str = "fine") -> None:
        """Of ``model`` as it is at ``iteration`` of ``stage``."""
        self.model, self.iteration, self.stage = model, iteration, stage
        self.background = torch.tensor(scene.background, device=model.gaussians.xyz.device)

    def __call__(self, view: View) -> Tensor:
        """A `Render`."""
        return self.together([view])[0]

    @torch.no_grad()
    def together(self, views: Sequence[View]) -> Tensor:
        """(B, 3, H, W) of views of one time and one size, as `together` groups them."""
        splats = self.model.deform(views[0].time, iteration=self.iteration, stage=self.stage)
        degree = self.model.gaussians.active_sh_degree
        return render([view.camera for view in views], splats, self.background, degree).images


def together(views: Sequence[View], limit: int) -> list[list[int]]:
    """Positions of views that can be rendered at once, at most ``limit``: of one time and size."""
    groups: dict[tuple[float, int, int], list[int]] = {}
    for index, view in enumerate(views):
        key = (view.time, view.camera.width, view.camera.height)
        groups.setdefault(key, []).append(index)
    return [g[i : i + limit] for g in groups.values() for i in range(0, len(g), limit)]


def target_of(view: View, device: torch.device | str) -> Tensor:
    """The view's ground truth, (3, H, W) float in [0, 1]."""
    return to_float(view.image().to(device)[None])[0]


def counts(view: View) -> bool:
    """Whether any pixel of the view's ground truth counts."""
    mask = view.mask()
    return mask is None or bool(mask.any())


@torch.no_grad()
def compare(image: Tensor, target: Tensor, mask: Tensor | None = None) -> dict[str, float]:
    """PSNR (dB) and SSIM of a render (3, H, W), in float and from 8-bit.

    Args:
        mask: (1, H, W) bool, the pixels that count; None: all. Without any, there are no numbers.
    """
    if mask is not None and not mask.any():
        return {}
    return as_numbers([measures(image, target, mask)])[0]


def measures(image: Tensor, target: Tensor, mask: Tensor | None) -> Measures:
    """What `compare` returns, still on the device; some pixel counts."""
    rounded = to_8bit(image).to(target) / 255
    found = {
        **quality(rounded, target, mask, "_8bit"),
        **quality(image.clamp(0, 1), target, mask),
    }
    return {key: found[key] for key in ("ssim_8bit", "psnr_8bit", "ssim", "psnr")}


def quality(image: Tensor, target: Tensor, mask: Tensor | None, suffix: str = "") -> Measures:
    """``psnr`` and ``ssim``, with ``suffix``, of an image in [0, 1]; some pixel counts."""
    if mask is None:
        similarity = ssim(image, target)
    else:  # picking pixels waits for a GPU
        similarity = ssim_map(fill_masked(image, target, mask), target)[0][:, mask[0]].mean()
    return {f"psnr{suffix}": psnr(image, target, mask), f"ssim{suffix}": similarity}


def stacked(rows: Sequence[Measures]) -> Tensor:
    """All values of all rows, row by row: one copy takes them to the host."""
    values = [value for row in rows for value in row.values()]
    return torch.stack(values) if values else torch.zeros(0)


def as_numbers(rows: Sequence[Measures], values: Tensor | None = None) -> list[dict[str, float]]:
    """The rows as numbers; ``values`` are they `stacked` where that was done before."""
    flat = iter((stacked(rows) if values is None else values).tolist())
    return [{name: next(flat) for name in row} for row in rows]


def fill_masked(image: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """``image`` with the pixels of ``target`` where ``mask`` says that they do not count."""
    return image if mask is None else torch.where(mask, image, target)


def mean_of(rows: Iterable[dict[str, float]]) -> dict[str, float]:
    """Mean of every key over the rows that have it, in order of first appearance."""
    collected: dict[str, list[float]] = {}
    for row in rows:
        for key, value in row.items():
            collected.setdefault(key, []).append(value)
    return {key: sum(values) / len(values) for key, values in collected.items()}


def finite(images: Tensor) -> Tensor:
    """(B,) bool: which of ``images`` (B, 3, H, W) hold neither NaN nor infinities."""
    return torch.isfinite(images).flatten(1).all(1)


def refuse_unless(are_finite: Tensor, views: Sequence[View]) -> None:
    """Looks at what `finite` says of the renders of ``views``.

    Raises:
        UserError: one of them is not finite, which no metric may hide.
    """
    for good, view in zip(are_finite.tolist(), views, strict=True):
        if not good:
            raise UserError(
                f"view {view.name}: the model renders values that are not finite; "
                "render an earlier --iteration or train again"
            )


@torch.no_grad()
def evaluate_views(
    render: Render, views: Sequence[View], limit: int | None = None
) -> dict[str, float]:
    """Mean PSNR and SSIM (float) over at most ``limit`` evenly spaced views; None: all.

    Returns:
        ``psnr`` in dB, ``ssim`` and ``views``, how many were measured; no numbers without views;
        ``masked`` if any of them has a mask.
    """
    chosen = [views[index] for index in evenly_spaced(len(views), limit)]
    rows: list[Measures] = []
    loader: TargetLoader | None = None
    for index, view in enumerate(chosen):
        image = render(view).clamp(0, 1)
        loader = loader or target_loader(image.device)
        loader.expect(chosen[index : index + 2])
        if counts(view):
            target, mask = loader.take([view])
            rows.append(quality(image, to_float(target)[0], None if mask is None else mask[0]))
    masked = any(view.mask() is not None for view in chosen)
    numbers = mean_of(as_numbers(rows))
    return {**numbers, "views": len(rows), **({"masked": True} if masked else {})}


@torch.no_grad()
def measure_fps(
    render: Render,
    views: Sequence[View],
    device: torch.device | str,
    *,
    seconds: float = TIMED_SECONDS,
) -> tuple[float, int]:
    """Frames per second of deformation and rasterisation, and of how many frames that is.

    Warm, synchronised, one view at a time, without ground truth, metrics or files. Up to
    `TIMED_FRAMES` evenly spaced views are timed, fewer (but three) once ``seconds`` have passed.
    The clock stops when a GPU is through with the last of them, however far it had fallen behind.
    """
    chosen = [views[i] for i in evenly_spaced(len(views), TIMED_FRAMES)]
    for i in range(WARM_UP_FRAMES):
        render(chosen[i % len(chosen)])
    _synchronise(device)
    start, done = time.perf_counter(), 0
    while done < max(len(chosen), 3):
        render(chosen[done % len(chosen)])
        done += 1
        if done >= 3 and time.perf_counter() - start > seconds:
            break
    _synchronise(device)
    return done / (time.perf_counter() - start), done


def _synchronise(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


class Perceptual:
    """LPIPS with several networks, or the reason why not; each network is loaded once."""

    def __init__(self, nets: Sequence[str], device: torch.device | str) -> None:
        """Looks for the weights of ``nets`` (of `utils.lpips.NETS`); none of them asks for none."""
        self.device = torch.device(device)
        self.models: dict[str, torch.nn.Module] = {}
        self.reasons: dict[str, str] = {}
        for net in nets:
            try:
                self.models[net] = load_lpips(net, device=device)
            except LpipsUnavailable as reason:
                self.reasons[net] = str(reason)
        if not nets:
            self.reasons["lpips"] = "not available because it was not asked for"

    def choose(self, views: Sequence[View]) -> dict[str, set[int]]:
        """The views that each network compares: all on a GPU, half a minute's worth on a CPU."""
        pixels = max(view.camera.width * view.camera.height for view in views)
        return {net: self.choose_of(net, len(views), pixels) for net in self.models}

    def choose_of(self, net: str, count: int, pixels: int) -> set[int]:
        """The same, for one network and ``count`` images of at most ``pixels`` pixels."""
        return set(evenly_spaced(count, self._limit(net, pixels)))

    def _limit(self, net: str, pixels: int) -> int | None:
        return max(2, int(LPIPS_CPU_PIXELS[net] / pixels)) if self.device.type == "cpu" else None

    @torch.no_grad()
    def compare(self, image: Tensor, target: Tensor, nets: Iterable[str]) -> dict[str, float]:
        """``lpips_<net>`` (images scaled to [-1, 1]) and ``lpips_<net>_legacy`` ([0, 1])."""
        return as_numbers([self.measures(image, target, nets)])[0]

    @torch.no_grad()
    def measures(self, image: Tensor, target: Tensor, nets: Iterable[str]) -> Measures:
        """What `compare` returns, still on the device."""
        image, row = image.clamp(0, 1), {}
        for net in nets:
            try:
                for suffix, convention in (("_legacy", "legacy"), ("", "correct")):
                    distance = self.models[net](image, target, convention)
                    row[f"lpips_{net}{suffix}"] = distance.reshape(())
            except LpipsUnavailable as reason:
                self.reasons[net] = str(reason)
        return row

    def summary(self, rows: Sequence[dict[str, float]]) -> dict[str, float | int | str | None]:
        """``lpips`` (the first network's mean), why a network is missing, and counts of views."""
        result: dict[str, float | int | str | None] = {}
        for net in self.models:
            values = [row[f"lpips_{net}"] for row in rows if f"lpips_{net}" in row]
            if values:
                result[f"lpips_{net}_views"] = len(values)
                result.setdefault("lpips", sum(values) / len(values))
        if self.reasons:
            result["lpips_reason"] = "; ".join(dict.fromkeys(self.reasons.values()))
        return {"lpips": None, **result}
