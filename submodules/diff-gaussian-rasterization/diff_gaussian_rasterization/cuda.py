"""A render on a GPU: allocates with torch, launches the stages of `src/cuda_rasterizer.h` in order.

The host waits for the GPU once, for the number of (splat, tile) pairs, which says how much memory
the rest needs. Tensors cross to the kernels as addresses; `rasterize` has checked them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from diff_gaussian_rasterization.devices import Gpu

TILE_PIXELS = 256
MAX_PAIRS = 2**31 - 1

Strided = tuple[int, int]  # address of a tensor, elements between its views or 0


class Splats(NamedTuple):
    """What is known of every (view, Gaussian); B * N rows. See `SplatArrays` in C++."""

    geometry: Tensor
    features: Tensor
    footprints: Tensor
    tiles: Tensor
    first_slot: Tensor
    keys: Tensor
    numbers: Tensor


class Pairs(NamedTuple):
    """The (splat, tile) pairs in the order of the tiles, front to back. See `PairArrays`."""

    slots: Tensor
    splats: Tensor
    tile_start: Tensor
    bucket_start: Tensor | None


class Kept(NamedTuple):
    """What the backward pass needs of the pixels. See `KeptArrays`."""

    checkpoints: Tensor
    final_sums: Tensor
    final_transmittance: Tensor
    last: Tensor


class State(NamedTuple):
    """What the backward pass needs of the forward one."""

    splats: Splats
    pairs: Pairs
    kept: Kept


class Call:
    """One render: its sizes, its inputs as the kernels take them, and where to launch."""

    def __init__(self, gpu: Gpu, settings: Any, tensors: tuple[Tensor | None, ...]) -> None:
        """Tensors: means, opacities, shs, colors, features, scales, rotations, cov3Ds, the camera's
        four, background, layer starts; they must outlive this object."""
        means, _, shs, _, features = tensors[:5]
        views, gaussians, planes = tensors[8].shape[0], means.shape[1], tensors[12].shape[0]
        extras = 0 if features is None else features.shape[2]
        layers, shared = len(settings.layers or [0]), settings.shared
        self.gpu, self.means, self.settings = gpu, means, settings
        self.splats = views * gaussians
        # Of a pixel: colours, further features, depth; if layers share their transmittance, the
        # same and alpha for each.
        self.sums = layers * (planes + 2) if shared else planes + 1
        tiles_x, tiles_y = -(-settings.width // 16), -(-settings.height // 16)
        self.tiles = views * (1 if shared else layers) * tiles_x * tiles_y
        self.suffix = "f32" if means.dtype == torch.float32 else "f64"
        sizes = (
            settings.width,
            settings.height,
            settings.sh_degree,
            0 if shs is None else shs.shape[2],
            views,
            gaussians,
            planes - extras,
            extras,
            layers,
            int(shared),
            int(settings.raw),
        )
        scalars = (settings.scale_modifier, settings.near_plane)
        inputs = [strided(t) for t in tensors]
        self.where = (gpu.device, gpu.stream)
        self.inputs = (*self.where, sizes, scalars, inputs)

    def launch(self, name: str, *arguments: Any) -> None:
        """Runs a stage that depends on the inputs and their dtype."""
        getattr(self.gpu.kernels, f"{name}_{self.suffix}")(*self.inputs, *arguments)

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Uninitialised memory where the inputs are; their dtype unless given."""
        return self.means.new_empty(shape, dtype=dtype or self.means.dtype)


def strided(tensor: Tensor | None) -> Strided:
    """As the kernels take a tensor whose first dimension is the batch; 0: none, or shared."""
    if tensor is None:
        return 0, 0
    return tensor.data_ptr(), tensor.stride(0) if tensor.shape[0] > 1 else 0


def addresses(tensors: tuple[Tensor | None, ...]) -> list[int]:
    """The addresses, 0 for None."""
    return [0 if t is None else t.data_ptr() for t in tensors]


def forward(
    gpu: Gpu,
    settings: Any,
    tensors: tuple[Tensor | None, ...],
    images: tuple[Tensor, Tensor, Tensor],
    radii: Tensor,
    *,
    keep: bool,
    one_sort: bool = False,
) -> State | None:
    """Fills ``images`` (color, alpha, depth) and ``radii``; with ``keep`` returns the state.

    Args:
        one_sort: sorts the pairs once by tile and depth in 64 bits instead of the splats by depth
            and then the pairs by tile: the same order, for comparing their speed. float32 only.
    """
    call = Call(gpu, settings, tensors)
    splats = _project(call, radii)
    order, offsets = _depth_order(call, splats, sort=not one_sort)
    count = _read(offsets[-1:])  # the one wait for the GPU
    if count > MAX_PAIRS:
        raise RuntimeError(
            f"{count} splat-tile pairs are more than 2^31 - 1: render fewer views at once, or "
            "Gaussians that are smaller on the image"
        )
    pairs = _tile_order(call, splats, order, offsets, count, keep=keep, one_sort=one_sort)
    kept = _empty_kept(call, count) if keep else None
    call.launch(
        "blend",
        addresses(splats),
        addresses(pairs),
        addresses(images),
        addresses(kept) if kept else [0] * 4,
    )
    return State(splats, pairs, kept) if kept else None


def backward(
    gpu: Gpu,
    settings: Any,
    tensors: tuple[Tensor | None, ...],
    state: State,
    images: tuple[Tensor | None, ...],
    gradients: list[Tensor | None],
) -> None:
    """Fills ``gradients`` from those of the images; each is a tensor or None: not wanted."""
    call = Call(gpu, settings, tensors)
    stride = gpu.kernels.value_stride(call.sums)
    wanted = [strided(gradient) for gradient in gradients]
    values = call.empty(state.pairs.slots.shape[0], stride)
    call.launch(
        "blend_backward",
        addresses(state.splats),
        addresses(state.pairs),
        _most_buckets(call, state.pairs.slots.shape[0]),
        addresses(images),
        wanted,
        addresses(state.kept),
        values.data_ptr(),
    )
    sums = call.empty(call.splats, stride)
    call.launch(
        "project_backward",
        addresses(state.splats),
        values.data_ptr(),
        sums.data_ptr(),
        wanted,
    )


def mark_visible(gpu: Gpu, positions: Tensor, view: Tensor, visible: Tensor) -> None:
    """Fills ``visible`` (N,)."""
    kernel = gpu.kernels.mark_visible_f32
    if positions.dtype == torch.float64:
        kernel = gpu.kernels.mark_visible_f64
    count = positions.shape[0]
    kernel(*gpu[1:], positions.data_ptr(), view.data_ptr(), count, visible.data_ptr())


def _read(value: Tensor) -> int:
    """The one element of ``value``; waits for what makes it, and for nothing queued later."""
    if value.device.type != "cuda":
        return int(value)
    here = torch.empty(1, dtype=value.dtype, device="cpu", pin_memory=True)
    here.copy_(value, non_blocking=True)
    ready = torch.cuda.Event()
    ready.record(torch.cuda.current_stream(value.device))
    ready.synchronize()
    return int(here)


# ------------------------------------------------------------------------------------------- stages


def _project(call: Call, radii: Tensor) -> Splats:
    kernels, wide, count = call.gpu.kernels, call.suffix == "f64", call.splats
    splats = Splats(
        geometry=call.empty(count, kernels.geometry_bytes(wide), dtype=torch.uint8),
        features=call.empty(count, kernels.feature_stride(call.sums)),
        footprints=call.empty(count, kernels.footprint_bytes(wide), dtype=torch.uint8),
        tiles=call.empty(count, dtype=torch.int32),
        first_slot=call.empty(count, dtype=torch.int32),
        keys=call.empty(count, dtype=torch.int64 if wide else torch.int32),
        numbers=call.empty(count, dtype=torch.int32),
    )
    call.launch("project", addresses(splats), radii.data_ptr())
    return splats


def _sorted(call: Call, keys: Tensor, values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Keys and values in ascending order of the lowest ``bits`` of the keys, stable."""
    kernels, count = call.gpu.kernels, keys.shape[0]
    scratch = call.empty(kernels.sort_bytes(count, keys.element_size()), dtype=torch.uint8)
    sorted_keys, sorted_values = torch.empty_like(keys), torch.empty_like(values)
    sort = kernels.sort_u64 if keys.element_size() == 8 else kernels.sort_u32
    sort(
        *call.where,
        scratch.data_ptr(),
        scratch.shape[0],
        *addresses((keys, sorted_keys, values, sorted_values)),
        count,
        bits,
    )
    return sorted_keys, sorted_values


def _depth_order(call: Call, splats: Splats, *, sort: bool) -> tuple[Tensor, Tensor]:
    """The splats front to back, and the first slot of each in that order, with the total last."""
    order = splats.numbers
    if sort:
        order = _sorted(call, splats.keys, order, 8 * splats.keys.element_size())[1]
    kernels, count = call.gpu.kernels, call.splats
    scratch = call.empty(kernels.scan_bytes(count + 1), dtype=torch.uint8)
    counts = call.empty(count + 1, dtype=torch.int64)
    offsets = torch.empty_like(counts)
    kernels.place_splats(
        *call.where,
        scratch.data_ptr(),
        scratch.shape[0],
        *addresses((order, splats.tiles)),
        count,
        *addresses((counts, offsets)),
    )
    return order, offsets


def _tile_order(
    call: Call,
    splats: Splats,
    order: Tensor,
    offsets: Tensor,
    count: int,
    *,
    keep: bool,
    one_sort: bool,
) -> Pairs:
    kernels, tiles = call.gpu.kernels, call.tiles
    slots = call.empty(count, dtype=torch.int32)
    splat_of_slot = torch.empty_like(slots)
    keys = call.empty(count, dtype=torch.int64 if one_sort else torch.int32)
    call.launch(
        "list_pairs_by_depth" if one_sort else "list_pairs",
        addresses(splats),
        *addresses((order, offsets, keys, slots, splat_of_slot)),
    )
    bits = max(1, (tiles - 1).bit_length())
    keys, slots = _sorted(call, keys, slots, 32 + bits if one_sort else bits)
    tile_start = call.empty(tiles + 1, dtype=torch.int32)
    buckets = torch.empty_like(tile_start) if keep else None
    bucket_start = torch.empty_like(tile_start) if keep else None
    scratch = call.empty(kernels.scan_bytes(tiles + 1), dtype=torch.uint8)
    find = kernels.find_tiles_u64 if one_sort else kernels.find_tiles_u32
    find(
        *call.where,
        *(scratch.data_ptr(), scratch.shape[0], keys.data_ptr(), count, tiles),
        *addresses((tile_start, buckets, bucket_start)),
    )
    return Pairs(slots, splat_of_slot, tile_start, bucket_start)


def _most_buckets(call: Call, pairs: int) -> int:
    """At least the number of buckets, without asking the GPU: each tile may have one unfilled."""
    return pairs // call.gpu.kernels.bucket + min(call.tiles, pairs)


def _empty_kept(call: Call, pairs: int) -> Kept:
    return Kept(
        checkpoints=call.empty(_most_buckets(call, pairs), 1 + call.sums, TILE_PIXELS),
        final_sums=call.empty(call.tiles, call.sums, TILE_PIXELS),
        final_transmittance=call.empty(call.tiles, TILE_PIXELS),
        last=call.empty(call.tiles, TILE_PIXELS, dtype=torch.int32),
    )
