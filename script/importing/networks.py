"""Published networks as ours: which tensor becomes which, and how it is turned and resampled.

Sources are the published descriptions of 4DGaussians, E-D3DGS, Grid4D and MoDE.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hash_encoder import HashGrid
from scene.experts.base import HEAD_SIZES
from script.importing.listing import REQUIRED, Inventory, Settings
from utils.errors import UserError, brief

State = dict[str, Tensor]


@dataclass
class Part:
    """One expert: its tensors, and the settings that build a module for them."""

    state: State
    hidden: dict[str, Any] = field(default_factory=dict)
    emb: dict[str, Any] = field(default_factory=dict)
    hash: dict[str, Any] = field(default_factory=dict)
    bbox: Tensor | None = None  # (2, 3)


def _take(inventory: Inventory, name: str, shape: tuple[int | None, ...]) -> Tensor:
    """A tensor of a shape; None: any size from 1."""
    value = inventory.take(name)
    fits = len(value.shape) == len(shape) and all(
        size > 0 if want is None else size == want
        for size, want in zip(value.shape, shape, strict=True)
    )
    if not fits:
        raise UserError(
            f"{inventory.where}: {name} has shape {list(value.shape)} instead of "
            f"{['any' if n is None else n for n in shape]}"
        )
    return value


def _linear(net: Inventory, name: str, inputs: int | None, outputs: int | None) -> State:
    weight = _take(net, f"{name}.weight", (outputs, inputs))
    return {"weight": weight, "bias": _take(net, f"{name}.bias", (len(weight),))}


def _named(prefix: str, tensors: State) -> State:
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def _trunk(net: Inventory, name: str, width: int) -> tuple[State, int]:
    """The layers after the first of a Sequential: (Linear, [ReLU, Linear] ...); and the depth."""
    state: State = {}
    depth = 1
    while f"{name}.{2 * depth}.weight" in net:
        state |= _named(f"trunk.{2 * depth - 1}", _linear(net, f"{name}.{2 * depth}", width, width))
        depth += 1
    return state, depth


def _heads(net: Inventory, published: Mapping[str, str], used: Iterable[str], width: int) -> State:
    """Heads (ReLU, Linear, ReLU, Linear); the first layers of those in use become one matrix."""
    used, first, state = set(used), [], {}
    for attribute, size in HEAD_SIZES.items():
        name = published[attribute]
        if attribute not in used:
            net.leave(f"{name}.*", f"the run switches the head for {attribute} off")
            continue
        first.append(_linear(net, f"{name}.1", width, width))
        state |= _named(f"heads.last.{attribute}", _linear(net, f"{name}.3", width, size))
    for key in ("weight", "bias"):
        state[f"heads.first.{key}"] = torch.cat([layer[key] for layer in first])
    return state


def _used(settings: Settings, switches: Mapping[str, tuple[str, bool]]) -> set[str]:
    """Attributes whose switch, named with its published default, does not turn them off."""
    used = {a for a, (name, off) in switches.items() if not settings.read(name, bool, off)}
    if not used:
        raise UserError(f"{settings.where}: switches every head off; nothing moves")
    return used


# ---- HexPlane -----------------------------------------------------------------------------------

NET = "deformation_net."
GRIDS = NET + "grid.grids."
SPACE, TIME = (0, 1, 3), (2, 4, 5)  # of the planes xy, xz, xt, yz, yt, zt
SPACE_AXES = ((0, 1), (0, 2), (1, 2))
HEXPLANE_HEADS = {
    "xyz": NET + "pos_deform",
    "log_scale": NET + "scales_deform",
    "rotation": NET + "rotations_deform",
    "opacity": NET + "opacity_deform",
    "sh": NET + "shs_deform",
}
HEXPLANE_SWITCHES = {
    "xyz": ("no_dx", False),
    "log_scale": ("no_ds", False),
    "rotation": ("no_dr", False),
    "opacity": ("no_do", True),
    "sh": ("no_dshs", True),
}
NOT_REPRESENTED = {
    "apply_rotation": "rotations are multiplied rather than added",
    "static_mlp": "a mask by a network holds Gaussians still",
    "empty_voxel": "a grid of voxels holds Gaussians still",
}


def hexplane(net: Inventory, settings: Settings) -> Part:
    """The deformation network of 4DGaussians and of MoDE (``deformation.pth``)."""
    if settings.read("no_grid", bool, False):
        raise UserError(f"{settings.where}: no_grid = True is a network without a HexPlane")
    for name, what in NOT_REPRESENTED.items():
        if settings.read(name, bool, False):
            settings.listing.wrong.append(f"{name} = True ({what})")
    bbox, mirrored = _bounding_box(_take(net, NET + "grid.aabb", (2, 3)), net.where)
    levels = [_level(net, i) for i in range(_count_levels(net))]
    channels = {plane.shape[1] for level in levels for plane in level}
    if len(channels) != 1:
        raise UserError(f"{net.where}: planes have {sorted(channels)} channels; one is expected")
    resolution, multires = _resolution(net, levels)
    _check_planes(settings, channels, resolution, multires)
    first = _linear(net, NET + "feature_out.0", len(levels) * max(channels), None)
    width = len(first["weight"])
    trunk, depth = _trunk(net, NET + "feature_out", width)
    settings.agree("net_width", width)
    if settings.items.get("defor_depth") != 0 or depth != 1:  # 0 and 1 are the same
        settings.agree("defor_depth", depth)
    settings.open.pop("defor_depth", None)
    used = _used(settings, HEXPLANE_SWITCHES)
    state = _named("first", first) | trunk | _heads(net, HEXPLANE_HEADS, used, width)
    state |= {"field.bbox": bbox} | _planes(levels, mirrored)
    for pattern, why in (
        ("timenet.*", "never evaluated"),
        ("*_poc", "frequencies of encodings that the published network does not use"),
    ):
        net.leave(pattern, why)
    net.close("not of a network that is known here", wrong=True)
    hidden = {
        "kplanes_config": {
            "grid_dimensions": 2,
            "input_coordinate_dim": 4,
            "output_coordinate_dim": max(channels),
            "resolution": resolution,
        },
        "multires": multires,
        "net_width": width,
        "defor_depth": depth,
        **{name: a not in used for a, (name, _) in HEXPLANE_SWITCHES.items()},
    }
    return Part(state, hidden=hidden, bbox=bbox)


def _bounding_box(aabb: Tensor, where: str) -> tuple[Tensor, list[bool]]:
    """Lowest and highest corner, and the axes that run from high to low (published: all)."""
    if (aabb[0] == aabb[1]).any():
        raise UserError(f"{where}: the box aabb is flat ({aabb.tolist()}); it cannot be imported")
    return torch.stack([aabb.amin(0), aabb.amax(0)]), (aabb[0] > aabb[1]).tolist()


def _count_levels(net: Inventory) -> int:
    count = 0
    while f"{GRIDS}{count}.0" in net:
        count += 1
    if not count:
        raise UserError(f"{net.where}: holds no planes ({GRIDS}0.0); is --family right?")
    return count


def _level(net: Inventory, level: int) -> list[Tensor]:
    """Six planes (1, C, height, width) that fit together."""
    planes = [_take(net, f"{GRIDS}{level}.{i}", (1, None, None, None)) for i in range(6)]
    x, y, z = planes[0].shape[3], planes[0].shape[2], planes[1].shape[2]
    t = planes[2].shape[2]
    sizes = [(y, x), (z, x), (t, x), (z, y), (t, y), (t, z)]
    if [tuple(p.shape[2:]) for p in planes] != sizes or min(x, y, z, t) < 2:
        raise UserError(f"{net.where}: the planes of level {level} do not fit together")
    return planes


def _resolution(net: Inventory, levels: list[list[Tensor]]) -> tuple[list[int], list[int]]:
    """[x, y, z, t] that every level multiplies in space, and the multipliers."""
    sizes = [(p[0].shape[3], p[0].shape[2], p[1].shape[2]) for p in levels]
    times = {p[2].shape[2] for p in levels}
    base = [reduce(math.gcd, axis) for axis in zip(*sizes, strict=True)]
    multires = [size[0] // base[0] for size in sizes]
    if any(list(s) != [m * b for b in base] for s, m in zip(sizes, multires, strict=True)):
        raise UserError(f"{net.where}: the levels are no multiples of one resolution: {sizes}")
    if len(times) != 1 or min(base) < 2:
        raise UserError(f"{net.where}: levels of {sorted(times)} times cannot be imported")
    return [*base, *times], multires


def _check_planes(
    settings: Settings, channels: set[int], resolution: list[int], multires: list[int]
) -> None:
    """The run's own words on its planes, if it has any, must be theirs."""
    planes = settings.read("kplanes_config", dict, {}) if "kplanes_config" in settings else {}
    levels = settings.read("multires", list, []) if "multires" in settings else []
    said = planes.get("resolution")
    found = [[m * r for r in resolution[:3]] + resolution[3:] for m in multires]
    if isinstance(said, list) and len(said) == 4 and levels:
        if [[m * r for r in said[:3]] + said[3:] for m in levels] != found:
            settings.items["resolution and multires"] = (said, levels)
            settings.agree("resolution and multires", found)
    if planes.get("output_coordinate_dim", max(channels)) != max(channels):
        settings.agree("kplanes_config", {"output_coordinate_dim": max(channels)})


def _planes(levels: list[list[Tensor]], mirrored: list[bool]) -> State:
    """Ours are channels last, from low to high, and their time axis is the published upper half."""
    state: State = {}
    for i, planes in enumerate(levels):
        for k, (plane, axes) in enumerate(zip(SPACE, SPACE_AXES, strict=True)):
            flips = [1 - side for side in (0, 1) if mirrored[axes[side]]]  # width first
            state[f"field.space.{3 * i + k}"] = planes[plane][0].permute(1, 2, 0).flip(flips)
        for axis, plane in enumerate(TIME):
            turned = upper_half(planes[plane][0].permute(1, 2, 0))
            state[f"field.time.{3 * i + axis}"] = turned.flip([1] if mirrored[axis] else [])
    return state


def upper_half(plane: Tensor) -> Tensor:
    """(R_t, ...) of the same: the published time in [0, 1] reads only rows (R_t - 1) / 2 and on.

    Rows at half steps, so that linear interpolation between them gives the same for any R_t.
    """
    twice = torch.arange(len(plane) - 1, 2 * len(plane) - 1)
    return (plane[twice // 2] + plane[(twice + 1) // 2]) / 2


# ---- per-Gaussian embedding ---------------------------------------------------------------------

EMBEDDING_HEADS = {
    "xyz": "pos_deform_{}",
    "log_scale": "scales_deform_{}",
    "rotation": "rotations_deform_{}",
    "opacity": "opacity_deform_{}",
    "sh": "rgb_deform_{}",
}


def embedding(net: Inventory, settings: Settings, size: int, prefix: str = "") -> Part:
    """The network of E-D3DGS (``deformation.pth``) and of MoDE (``embnet.pth``).

    Args:
        size: numbers per Gaussian in the PLY.
        prefix: of the settings' names: MoDE calls them ``emb_...``.
    """

    def read(name: str, kind: type, default: Any) -> Any:
        return settings.read(prefix + name, kind, DEFAULTS[name] if prefix else default)

    table = _take(net, "weight", (None, None))
    rows, columns = table.shape
    offsets = net.take("offsets")
    used = {"xyz"} | {a for a, name in EMBEDDING_SWITCHES.items() if not read(name, bool, False)}
    branches = {
        "coarse": not read("no_coarse_deform", bool, False),
        "fine": not read("no_fine_deform", bool, False),
    }
    state: State = {"table": table, "offsets": offsets.flatten().float()}
    shapes = set()
    for branch, wanted in branches.items():
        letter = branch[0]
        if not wanted:
            net.leave(f"*_{letter}.*", f"the run switches the {branch} branch off")
            continue
        part, width, depth = _branch(net, letter, columns, size, used)
        state |= _named(branch, part)
        shapes.add((width, depth))
    if len(shapes) != 1:
        raise UserError(f"{net.where}: coarse and fine branches differ in width or depth")
    width, depth = shapes.pop()
    net.close("not of a network that is known here", wrong=True)
    for name, actual in (
        ("net_width", width),
        ("max_embeddings", rows),
        ("temporal_embedding_dim", columns),
        ("gaussian_embedding_dim", size),
    ):
        settings.agree(prefix + name, actual)
    if settings.items.get(f"{prefix}defor_depth") != 0 or depth != 1:
        settings.agree(f"{prefix}defor_depth", depth)
    settings.open.pop(f"{prefix}defor_depth", None)
    emb = {
        "emb_net_width": width,
        "emb_defor_depth": depth,
        "emb_max_embeddings": rows,
        "emb_temporal_embedding_dim": columns,
        "emb_gaussian_embedding_dim": size,
        "emb_no_coarse_deform": not branches["coarse"],
        "emb_no_fine_deform": not branches["fine"],
        **{f"emb_{name}": a not in used for a, name in EMBEDDING_SWITCHES.items()},
        **_schedule(read),
    }
    return Part(state, emb=emb)


def _schedule(read: Callable[[str, type, Any], Any]) -> dict[str, Any]:
    """When rows and deltas grow; E-D3DGS's recipes differ in all of it."""
    found = {
        "use_coarse_temporal_embedding": read("use_coarse_temporal_embedding", bool, REQUIRED),
        "no_c2f_temporal_embedding": read("no_c2f_temporal_embedding", bool, False),
        "use_anneal": read("use_anneal", bool, REQUIRED),
    }
    if found["use_coarse_temporal_embedding"] or not found["no_c2f_temporal_embedding"]:
        found["min_embeddings"] = read("min_embeddings", int, REQUIRED)
    if not found["no_c2f_temporal_embedding"]:
        found["c2f_temporal_iter"] = read("c2f_temporal_iter", int, REQUIRED)
    if found["use_anneal"]:
        found["deform_from_iter"] = read("deform_from_iter", int, REQUIRED)
    found.setdefault("min_embeddings", 1)
    return {f"emb_{name}": value for name, value in found.items()}


EMBEDDING_SWITCHES = {
    "log_scale": "no_ds",
    "rotation": "no_dr",
    "opacity": "no_do",
    "sh": "no_dc",
}
DEFAULTS = {  # of MoDE
    "no_ds": False, "no_dr": False, "no_do": True, "no_dc": False,
    "no_coarse_deform": False, "no_fine_deform": False,
    "min_embeddings": 30, "c2f_temporal_iter": 20000, "no_c2f_temporal_embedding": False,
    "use_coarse_temporal_embedding": False, "use_anneal": True, "deform_from_iter": 0,
}  # fmt: skip


def _branch(
    net: Inventory, letter: str, columns: int, size: int, used: set[str]
) -> tuple[State, int, int]:
    """One branch: its first layer on (temporal, per-Gaussian) vectors is two here."""
    name = f"feature_out_{letter}"
    first = _linear(net, f"{name}.0", columns + size, None)
    width = len(first["weight"])
    trunk, depth = _trunk(net, name, width)
    state = {
        "of_time.weight": first["weight"][:, :columns].contiguous(),
        "of_time.bias": first["bias"],
        "of_embedding.weight": first["weight"][:, columns:].contiguous(),
    }
    heads = {a: pattern.format(letter) for a, pattern in EMBEDDING_HEADS.items()}
    return state | trunk | _heads(net, heads, used, width), width, depth


# ---- hash grids ---------------------------------------------------------------------------------

PRIMES = (1, 2654435761, 805459861)


def hash_grids(grid: Inventory, net: Inventory, settings: Settings, variant: str) -> Part:
    """The grids and the network of Grid4D and of MoDE (the two halves of ``deform.pth``).

    Args:
        variant: ``grid4d`` or ``mode``, see `scene.experts.hash_published`.
    """
    space, table = encoder(grid, "xyz")
    moments = [encoder(grid, name) for name in ("xyt", "yzt", "xzt")]
    if len({g for g, _ in moments}) != 1:
        raise UserError(f"{grid.where}: the three grids in time are not alike")
    if len(set(space.base)) != 1 or len(set(space.desired)) != 1:
        raise UserError(f"{grid.where}: the grid in space differs along its axes")
    moment = moments[0][0]
    state = {"space.table": table}
    state |= {f"space_time.{i}.table": table for i, (_, table) in enumerate(moments)}
    of_space = _linear(net, "spatial_mlp.0", space.width, None)
    width, depth = len(of_space["weight"]), 0
    state |= _named("of_space", of_space)
    state |= _named("of_moment", _linear(net, "temporal_mlp.0", 3 * moment.width, width))
    while f"grid_mlp.{2 * depth}.weight" in net:
        state |= _named(f"hidden.{2 * depth}", _linear(net, f"grid_mlp.{2 * depth}", width, width))
        depth += 1
    heads = {"xyz": ("gaussian_warp", 7), "rotation": ("gaussian_rotation", 4)}
    if variant == "grid4d":
        heads["log_scale"] = ("gaussian_scaling", 3)
    for attribute, (name, size) in heads.items():
        state |= _named(f"heads.{attribute}", _linear(net, name, width, size))
    net.leave("gaussian_scaling.*", "MoDE does not use this head")
    for inventory in (grid, net):
        inventory.close("not of a network that is known here", wrong=True)
    return Part(
        state,
        hash={
            "grid_args": _described("canonical", space, 1) | _described("deform", moment, 3),
            **_hash_settings(settings, variant, width, depth),
            "hash_field": variant,
            "hash_no_ds": variant == "mode",
        },
    )


def _hash_settings(settings: Settings, variant: str, width: int, depth: int) -> dict[str, Any]:
    """What the tensors do not say: the cube and the attention's range."""
    said = settings.read("grid_args", dict, {}) if "grid_args" in settings else {}
    bound = said["bound"] if "bound" in said else None
    if bound is None:
        bound = settings.read("bound", float, 1.6 if variant == "mode" else REQUIRED)
    scale = settings.read("scale_xyz", float, 1.0)
    numbers = [bound, scale]
    if any(isinstance(n, bool) or not isinstance(n, (int, float)) or n <= 0 for n in numbers):
        raise UserError(
            f"{settings.where}: bound {bound!r} and scale_xyz {scale!r} must be above 0"
        )
    network = settings.read("network_args", dict, {"directional": True})
    directional = network.get("directional")
    if not isinstance(directional, bool):
        raise UserError(f"{settings.where}: network_args does not say directional = True or False")
    for name, actual in (("width", width), ("depth", depth)):
        if network.get(name, actual) != actual:
            raise UserError(
                f"{settings.where}: network_args says {name} = {network[name]!r} but the tensors "
                f"say {actual}; name the recipe that the run was trained with by --configs"
            )
    return {
        "hash_bound": float(bound) / float(scale),
        "network_args": {"depth": depth, "width": width, "directional": directional},
    }


def _described(kind: str, grid: HashGrid, axes: int) -> dict[str, Any]:
    def each(values: tuple[int, ...]) -> int | list[int]:
        return values[0] if axes == 1 else list(values)

    return {
        f"{kind}_num_levels": grid.levels,
        f"{kind}_level_dim": grid.features,
        f"{kind}_base_resolution": each(grid.base),
        f"{kind}_desired_resolution": each(grid.desired),
        f"{kind}_log2_hashmap_size": grid.log2_size,
    }


def encoder(grid: Inventory, name: str) -> tuple[HashGrid, Tensor]:
    """One encoder's levels as ours, and its table with rows where ours look for them."""
    where = f"{grid.where}: {name}_encoding"
    table = _take(grid, f"{name}_encoding.embeddings", (None, None))
    offsets = _take(grid, f"{name}_encoding.offsets", (None,)).tolist()
    base = _take(grid, f"{name}_encoding.base_resolution", (3,)).double()
    growth = _take(grid, f"{name}_encoding.per_level_scale", (3,)).double()
    sizes = [high - low for low, high in zip(offsets, offsets[1:], strict=False)]
    if not sizes or offsets[0] != 0 or offsets[-1] != len(table) or min(sizes) < 1:
        raise UserError(f"{where}: its offsets are not those of its {len(table)} rows")
    if (base < 1).any() or (growth < 1).any():
        raise UserError(f"{where}: its resolutions are {base.tolist()} times {growth.tolist()}")
    desired = base * growth ** (len(sizes) - 1)
    try:
        ours = HashGrid(
            dims=3,
            levels=len(sizes),
            features=table.shape[1],
            base=[round(n) for n in base.tolist()],
            desired=[round(n) for n in desired.tolist()],
            log2_size=max((int(max(sizes)) - 1).bit_length(), 1),
        )
        _ = ours.rows
    except (ValueError, OverflowError) as error:
        raise UserError(f"{where}: {brief(error)}") from None
    if ours.rows > 2 * len(table) + 8 * len(sizes):
        raise UserError(f"{where}: {len(table)} rows are too few for its resolutions")
    resolutions = kernel_resolutions(base.numpy(), growth.numpy(), len(sizes))
    rows = [
        low + _published_rows(where, ours, level, size, resolutions[level])
        for level, (low, size) in enumerate(zip(offsets, sizes, strict=False))
    ]
    return ours, table[torch.from_numpy(np.concatenate(rows))]


def kernel_resolutions(base: np.ndarray, growth: np.ndarray, levels: int) -> np.ndarray:
    """(L, 3) samples along each axis, in float32 as the published kernel has them."""
    steps = np.arange(levels, dtype=np.float32)[:, None]
    scale = np.exp2(steps * np.log2(growth.astype(np.float32))) * base.astype(np.float32) - 1
    return np.ceil(scale.astype(np.float32)).astype(np.int64) + 1


def _published_rows(
    where: str, ours: HashGrid, level: int, size: int, resolution: np.ndarray
) -> np.ndarray:
    """Row of the published level in each row of ours."""
    strides = np.cumprod([1, *resolution.tolist()])
    if ours.hashed[level]:
        if size != 2**ours.log2_size or strides[-1] <= size:
            raise UserError(f"{where}: level {level} has {size} rows, which no hash here gives")
        return np.arange(size)
    x, y, z = (np.arange(n) for n in ours.resolutions[level])
    samples = (x[None, None, :], y[None, :, None], z[:, None, None])  # first axis fastest
    if strides[-1] <= size:
        index = sum(s * stride for s, stride in zip(samples, strides.tolist(), strict=False))
    else:
        terms = [(s * prime) & 0xFFFFFFFF for s, prime in zip(samples, PRIMES, strict=True)]
        index = terms[0] ^ terms[1] ^ terms[2]
    return (index % size).reshape(-1)
