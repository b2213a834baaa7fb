"""Synthetic run folders in the published layouts, and the published formulas in plain PyTorch.

Both are written from the published descriptions alone: nothing here uses the experts, the encoders
or the importer, so that agreement between the two means something. Tensors are random; shapes,
names and file layouts are the published ones, at small sizes.
"""

from __future__ import annotations

import itertools
import math
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

POINTS, WIDTH = 40, 8
State = dict[str, Tensor]
Splat = dict[str, Tensor]  # xyz, scale, rotation (drawn as it is), opacity, sh


def canonical(spread: float = 1.0) -> State:
    """Raw 3DGS parameters of random Gaussians."""
    return {
        "xyz": spread * (2 * torch.rand(POINTS, 3) - 1),
        "f_dc": torch.randn(POINTS, 1, 3),
        "f_rest": torch.randn(POINTS, 15, 3),
        "opacity": torch.randn(POINTS, 1),
        "scaling": torch.randn(POINTS, 3) - 2,
        "rotation": torch.randn(POINTS, 4),
    }


def write_ply(
    path: Path,
    c: State,
    before: Mapping[str, np.ndarray] | None = None,
    between: Mapping[str, np.ndarray] | None = None,
    after: Mapping[str, np.ndarray] | None = None,
) -> None:
    """The 3DGS layout, with columns before and after the normals, and after the rotations."""
    columns = {axis: c["xyz"][:, i] for i, axis in enumerate("xyz")} | dict(before or {})
    columns |= {name: torch.zeros(POINTS) for name in ("nx", "ny", "nz")} | dict(between or {})
    columns |= {f"f_dc_{i}": c["f_dc"][:, 0, i] for i in range(3)}
    for channel, coefficient in itertools.product(range(3), range(c["f_rest"].shape[1])):
        index = channel * c["f_rest"].shape[1] + coefficient
        columns[f"f_rest_{index}"] = c["f_rest"][:, coefficient, channel]
    columns["opacity"] = c["opacity"][:, 0]
    columns |= {f"scale_{i}": c["scaling"][:, i] for i in range(3)}
    columns |= {f"rot_{i}": c["rotation"][:, i] for i in range(4)} | dict(after or {})
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {POINTS}"]
    header += [f"property float {name}" for name in columns] + ["end_header\n"]
    table = np.stack([np.asarray(v, dtype="<f4") for v in columns.values()], axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("\n".join(header).encode() + table.tobytes())


def write_settings(root: Path, **settings: object) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "cfg_args").write_text(str(Namespace(**settings)))


def linear(name: str, inputs: int, outputs: int, gain: float = 1.0) -> State:
    weight = gain * torch.randn(outputs, inputs) / math.sqrt(inputs)
    return {f"{name}.weight": weight, f"{name}.bias": 0.1 * torch.randn(outputs)}


def apply(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def head(state: State, name: str, hidden: Tensor) -> Tensor:
    """ReLU, Linear, ReLU, Linear."""
    return apply(state, f"{name}.3", apply(state, f"{name}.1", hidden.relu()).relu())


def trunk(state: State, name: str, x: Tensor, depth: int) -> Tensor:
    hidden = apply(state, f"{name}.0", x)
    for i in range(1, depth):
        hidden = apply(state, f"{name}.{2 * i}", hidden.relu())
    return hidden


def head_tensors(names: list[str], sizes: list[int]) -> State:
    state: State = {}
    for name, size in zip(names, sizes, strict=True):
        state |= linear(f"{name}.1", WIDTH, WIDTH) | linear(f"{name}.3", WIDTH, size, 0.3)
    return state


def raw(c: State) -> dict[str, Tensor]:
    sh = torch.cat([c["f_dc"], F.pad(c["f_rest"], (0, 0, 0, 15 - c["f_rest"].shape[1]))], dim=1)
    names = {"xyz": "xyz", "scaling": "scaling", "rotation": "rotation", "opacity": "opacity"}
    return {ours: c[theirs] for ours, theirs in names.items()} | {"sh": sh}


def activated(r: Mapping[str, Tensor]) -> Splat:
    return {
        "xyz": r["xyz"],
        "scale": r["scaling"].exp(),
        "rotation": F.normalize(r["rotation"], dim=-1),
        "opacity": r["opacity"].sigmoid(),
        "sh": r["sh"],
    }


def covariance(scale: Tensor, rotation: Tensor) -> Tensor:
    """(N, 3, 3) as the rasteriser computes it from a quaternion used as it is."""
    w, x, y, z = rotation.double().unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    stretched = torch.stack(rows, dim=-1).view(-1, 3, 3) * scale.double()[:, None]
    return stretched @ stretched.mT


# ---- 4DGaussians --------------------------------------------------------------------------------

HEX_HEADS = ["pos_deform", "scales_deform", "rotations_deform", "opacity_deform", "shs_deform"]
HEX_SIZES = [3, 3, 4, 1, 48]
BASE, MULTIRES, CHANNELS = [4, 5, 6], [1, 2], 3


def hexplane_tensors(times: int = 7, depth: int = 1) -> State:
    """``deformation.pth``, the parts that are never evaluated included."""
    state = {
        "time_poc": torch.rand(4), "pos_poc": torch.rand(10),
        "rotation_scaling_poc": torch.rand(2), "opacity_poc": torch.rand(2),
    }  # fmt: skip
    state |= linear("timenet.0", 9, 64) | linear("timenet.2", 64, 32)
    net = "deformation_net."
    low, high = torch.tensor([-0.7, -0.6, -0.9]), torch.tensor([0.8, 0.5, 0.6])
    state[net + "grid.aabb"] = torch.stack([high, low])
    for level, multiple in enumerate(MULTIRES):
        resolution = [multiple * r for r in BASE] + [times]
        for i, (a, b) in enumerate(itertools.combinations(range(4), 2)):
            plane = 0.3 + torch.rand(1, CHANNELS, resolution[b], resolution[a])
            state[f"{net}grid.grids.{level}.{i}"] = plane
    state |= linear(net + "feature_out.0", CHANNELS * len(MULTIRES), WIDTH)
    for i in range(1, depth):
        state |= linear(f"{net}feature_out.{2 * i}", WIDTH, WIDTH)
    return state | head_tensors([net + name for name in HEX_HEADS], HEX_SIZES)


def hexplane_settings(times: int = 7, depth: int = 1, **more: object) -> dict[str, object]:
    planes = {"grid_dimensions": 2, "input_coordinate_dim": 4, "output_coordinate_dim": CHANNELS}
    return {
        "sh_degree": 3, "source_path": "/data/n3v/scene", "model_path": "/elsewhere/run",
        "images": "images", "resolution": -1, "white_background": True, "data_device": "cuda",
        "kplanes_config": planes | {"resolution": [*BASE, times]}, "multires": MULTIRES,
        "net_width": WIDTH, "defor_depth": depth, "no_dx": False, "no_ds": False, "no_dr": False,
        "no_do": False, "no_dshs": False, "no_grid": False, "iterations": 14000,
        "position_lr_init": 0.00016, "apply_rotation": False, "static_mlp": False,
        "empty_voxel": False, "expname": "dynerf/scene", "configs": None,
    } | more  # fmt: skip


def hexplane_features(state: State, xyz: Tensor, t: float) -> Tensor:
    """Time is the grid coordinate as it is; the box's first corner lands on -1."""
    first, second = state["deformation_net.grid.aabb"]
    unit = (xyz - first) * (2.0 / (second - first)) - 1.0
    points = torch.cat([unit, torch.full((len(xyz), 1), t)], dim=1)
    features = []
    for level in range(len(MULTIRES)):
        product = torch.ones(len(xyz), CHANNELS)
        for i, (a, b) in enumerate(itertools.combinations(range(4), 2)):
            plane = state[f"deformation_net.grid.grids.{level}.{i}"]
            where = points[:, [a, b]][None, None]
            found = F.grid_sample(plane, where, padding_mode="border", align_corners=True)
            product = product * found[0, :, 0].T
        features.append(product)
    return torch.cat(features, dim=1)


def hexplane_raw(
    state: State, c: State, t: float, depth: int = 1, off: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    net = "deformation_net."
    hidden = trunk(state, net + "feature_out", hexplane_features(state, c["xyz"], t), depth)
    result = raw(c)
    for name, attribute in zip(HEX_HEADS, result, strict=True):
        if attribute not in off:
            delta = head(state, net + name, hidden)
            result[attribute] = result[attribute] + delta.view(result[attribute].shape)
    return result


def write_4dgs(
    root: Path, times: int = 7, depth: int = 1, iteration: int = 14000, **settings: object
) -> tuple[State, State]:
    c, state = canonical(), hexplane_tensors(times, depth)
    folder = root / "point_cloud" / f"iteration_{iteration}"
    write_ply(folder / "point_cloud.ply", c)
    write_settings(root, **hexplane_settings(times, depth, **settings))
    torch.save(state, folder / "deformation.pth")
    torch.save(torch.ones(POINTS, dtype=torch.bool), folder / "deformation_table.pth")
    torch.save(torch.zeros(POINTS, 3), folder / "deformation_accum.pth")
    return c, state


# ---- E-D3DGS ------------------------------------------------------------------------------------

EMB_HEADS = ["pos_deform", "scales_deform", "rotations_deform", "opacity_deform", "rgb_deform"]
TEMPORAL, PER_GAUSSIAN, ROWS = 6, 32, 11


def embedding_tensors(depth: int = 1) -> State:
    state = {"weight": torch.randn(ROWS, TEMPORAL), "offsets": torch.zeros(30, 1)}
    state["offsets"][1:4, 0] = torch.tensor([0.01, -0.03, 0.08])
    for letter in "cf":
        state |= linear(f"feature_out_{letter}.0", TEMPORAL + PER_GAUSSIAN, WIDTH)
        for i in range(1, depth):
            state |= linear(f"feature_out_{letter}.{2 * i}", WIDTH, WIDTH)
        state |= head_tensors([f"{name}_{letter}" for name in EMB_HEADS], HEX_SIZES)
    return state


def embedding_settings(prefix: str = "", **more: object) -> dict[str, object]:
    settings = {
        "net_width": WIDTH, "defor_depth": 1, "min_embeddings": 4, "max_embeddings": ROWS,
        "temporal_embedding_dim": TEMPORAL, "gaussian_embedding_dim": PER_GAUSSIAN,
        "no_ds": False, "no_dr": False, "no_do": False, "no_dc": False, "zero_temporal": False,
        "use_coarse_temporal_embedding": True, "no_c2f_temporal_embedding": False,
        "c2f_temporal_iter": 10000, "no_coarse_deform": False, "no_fine_deform": False,
        "use_anneal": True, "deform_from_iter": 5000,
    } | more  # fmt: skip
    return {prefix + name: value for name, value in settings.items()}


def temporal_vector(table: Tensor, rows: int, t: float) -> Tensor:
    resized = F.interpolate(table.T[None, :, :, None], (rows, 1), mode="bilinear",
                            align_corners=True)  # fmt: skip
    where = torch.tensor([[[[0.0, 2 * t - 1]]]])
    found = F.grid_sample(resized, where, padding_mode="reflection", align_corners=True)
    return found[0, :, 0, 0]


def embedding_raw(
    state: State, c: State, e: Tensor, t: float, iteration: int, s: Mapping[str, object],
    depth: int = 1,
) -> dict[str, Tensor]:  # fmt: skip
    moved = state["offsets"][state["offsets"] != 0]
    t = t + (float(moved.mean()) if len(moved) else 0.0)
    low, high = s["min_embeddings"], s["max_embeddings"]
    share = min(iteration, s["c2f_temporal_iter"]) / s["c2f_temporal_iter"]
    fine = high if s["no_c2f_temporal_embedding"] else int(low + (high - low) * share)
    coarse = low if s["use_coarse_temporal_embedding"] else fine
    k = k_late = 1.0
    if s["use_anneal"]:
        k = min(max(iteration / 1000, 0), 1)
        k_late = min(max((iteration - s["deform_from_iter"]) / 1000, 0), 1)
    factors = {"xyz": k, "scaling": k * k_late, "rotation": k, "opacity": k * k_late, "sh": k_late}
    off = {"scaling": "no_ds", "rotation": "no_dr", "opacity": "no_do", "sh": "no_dc"}
    result = raw(c)
    for letter, rows in (("c", coarse), ("f", fine)):
        vector = temporal_vector(state["weight"], rows, t).expand(POINTS, -1)
        hidden = trunk(state, f"feature_out_{letter}", torch.cat([vector, e], dim=1), depth)
        for name, attribute in zip(EMB_HEADS, result, strict=True):
            if attribute in off and s[off[attribute]]:
                continue
            delta = factors[attribute] * head(state, f"{name}_{letter}", hidden)
            result[attribute] = result[attribute] + delta.view(result[attribute].shape)
    return result


def embedding_columns(e: Tensor) -> dict[str, Tensor]:
    return {f"embedding_{i}": e[:, i] for i in range(e.shape[1])}


def write_ed3dgs(
    root: Path, depth: int = 1, iteration: int = 80000, **settings: object
) -> tuple[State, State, Tensor, dict[str, object]]:
    c, state, e = canonical(), embedding_tensors(depth), torch.randn(POINTS, PER_GAUSSIAN)
    folder = root / "point_cloud" / f"iteration_{iteration}"
    write_ply(folder / "point_cloud.ply", c, after=embedding_columns(e))
    said = embedding_settings(defor_depth=depth, **settings)
    common = {"sh_degree": 3, "source_path": "/data/n3v/scene", "white_background": True}
    write_settings(root, **common, resolution=2, images="images", **said)
    torch.save(state, folder / "deformation.pth")
    return c, state, e, said


# ---- Grid4D -------------------------------------------------------------------------------------

PRIMES = (1, 2654435761, 805459861)
GRIDS = {  # base, desired, levels; tables of at most 2^LOG2 rows
    "xyz": ([4, 4, 4], [12, 12, 12], 4),
    "xyt": ([4, 4, 4], [10, 10, 6], 5),
    "yzt": ([4, 4, 4], [10, 10, 6], 5),
    "xzt": ([4, 4, 4], [10, 10, 6], 5),
}
LOG2 = 8  # 256 rows: some levels are hashed


def allocated(base: list[int], desired: list[int], levels: int, log2: int = LOG2) -> list[int]:
    """Rows of each level, with resolutions in float64 as the allocator has them."""
    sizes = []
    for level in range(levels):
        sides = [
            math.ceil(b * (d / b) ** (level / (levels - 1)) - 1e-9)
            for b, d in zip(base, desired, strict=True)
        ]
        sizes.append(min(2**log2, math.prod(sides)))
    return sizes


def grid_tensors() -> State:
    state: State = {}
    for name, (base, desired, levels) in GRIDS.items():
        sizes = allocated(base, desired, levels)
        growth = [(d / b) ** (1 / (levels - 1)) for b, d in zip(base, desired, strict=True)]
        key = f"{name}_encoding."
        state[key + "embeddings"] = torch.randn(sum(sizes), 2)
        state[key + "offsets"] = torch.tensor([0, *itertools.accumulate(sizes)], dtype=torch.int32)
        state[key + "per_level_scale"] = torch.tensor(growth)
        state[key + "base_resolution"] = torch.tensor(base, dtype=torch.int32)
    return state


def lookup(state: State, name: str, points: np.ndarray) -> Tensor:
    """One encoder at points (N, 3) in [0, 1]; zero outside. Loops, in float32 as the kernel."""
    table = state[f"{name}_encoding.embeddings"].numpy()
    offsets = state[f"{name}_encoding.offsets"].tolist()
    log_growth = np.log2(state[f"{name}_encoding.per_level_scale"].numpy().astype(np.float32))
    base = state[f"{name}_encoding.base_resolution"].numpy().astype(np.float32)
    result = np.zeros((len(points), 2 * (len(offsets) - 1)), np.float32)
    for level, first in enumerate(offsets[:-1]):
        size = offsets[level + 1] - first
        scale = np.exp2(np.float32(level) * log_growth) * base - np.float32(1)
        resolution = np.ceil(scale).astype(int) + 1
        for n, point in enumerate(points):
            if (point < 0).any() or (point > 1).any():
                continue
            position = point.astype(np.float32) * scale
            cell = np.floor(position).astype(int)
            f = position - cell
            f = f * f * (3 - 2 * f)
            for corner in itertools.product((0, 1), repeat=3):
                weight = np.prod([f[d] if corner[d] else 1 - f[d] for d in range(3)])
                row = kernel_row(cell + corner, resolution, size)
                result[n, 2 * level : 2 * level + 2] += weight * table[first + row]
    return torch.from_numpy(result)


def kernel_row(sample: np.ndarray, resolution: np.ndarray, size: int) -> int:
    index, stride = 0, 1
    for d in range(3):
        if stride > size:
            break
        index += int(sample[d]) * stride
        stride *= int(resolution[d])
    if stride > size:
        index = 0
        for d in range(3):
            index ^= (int(sample[d]) * PRIMES[d]) & 0xFFFFFFFF
    return index % size


def hash_network(depth: int) -> State:
    levels = {name: grid[2] for name, grid in GRIDS.items()}
    state = linear("spatial_mlp.0", 2 * levels["xyz"], WIDTH)
    state |= linear("temporal_mlp.0", 2 * 3 * levels["xyt"], WIDTH)
    for i in range(depth):
        state |= linear(f"grid_mlp.{2 * i}", WIDTH, WIDTH)
    state |= linear("gaussian_warp", WIDTH, 7, 0.5) | linear("gaussian_rotation", WIDTH, 4, 0.5)
    return state | linear("gaussian_scaling", WIDTH, 3, 0.05)


def hash_outputs(
    grid: State, net: State, xyz: Tensor, t: float, bound: float, depth: int, directional: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Warped positions and the outputs for rotation and scale."""
    unit = ((xyz + bound) / (2 * bound)).numpy()
    moment = (0.9 * bound * (2 * t - 1) + bound) / (2 * bound)
    time = np.full((len(unit), 1), moment, np.float32)
    pairs = (("xyt", [0, 1]), ("yzt", [1, 2]), ("xzt", [0, 2]))
    parts = [lookup(grid, n, np.concatenate([unit[:, axes], time], axis=1)) for n, axes in pairs]
    attention = apply(net, "spatial_mlp.0", lookup(grid, "xyz", unit)).sigmoid()
    attention = 2 * attention - 1 if directional else attention
    hidden = apply(net, "temporal_mlp.0", torch.cat(parts, dim=1)).relu() * attention
    for i in range(depth):
        hidden = apply(net, f"grid_mlp.{2 * i}", hidden).relu()
    warp = apply(net, "gaussian_warp", hidden)
    q = warp[:, :4] + torch.tensor([1.0, 0, 0, 0])
    s = 2 / q.square().sum(-1)
    w, x, y, z = q.unbind(-1)
    rows = [
        1 - s * (y * y + z * z), s * (x * y - w * z), s * (x * z + w * y),
        s * (x * y + w * z), 1 - s * (x * x + z * z), s * (y * z - w * x),
        s * (x * z - w * y), s * (y * z + w * x), 1 - s * (x * x + y * y),
    ]  # fmt: skip
    matrix = torch.stack(rows, dim=-1).view(-1, 3, 3)
    moved = (matrix @ xyz[:, :, None])[:, :, 0] + warp[:, 4:]
    return moved, apply(net, "gaussian_rotation", hidden), apply(net, "gaussian_scaling", hidden)


def grid_settings(bound: float, depth: int, directional: bool) -> dict[str, object]:
    return {
        "grid_args": {
            "canonical_num_levels": 4, "canonical_level_dim": 2, "canonical_base_resolution": 4,
            "canonical_desired_resolution": 12, "canonical_log2_hashmap_size": LOG2,
            "deform_num_levels": 5, "deform_level_dim": 2, "deform_base_resolution": [4, 4, 4],
            "deform_desired_resolution": [10, 10, 6], "deform_log2_hashmap_size": LOG2,
            "bound": bound,
        },
        "network_args": {"depth": depth, "width": WIDTH, "directional": directional},
        "scale_xyz": 1.0,
    }  # fmt: skip


def grid4d_splat(c: State, outputs: tuple[Tensor, Tensor, Tensor]) -> Splat:
    moved, rotation, scale = outputs
    return {
        "xyz": moved,
        "scale": c["scaling"].exp() + scale,
        "rotation": F.normalize(c["rotation"], dim=-1) + rotation,
        "opacity": c["opacity"].sigmoid(),
        "sh": raw(c)["sh"],
    }


def write_hash_file(root: Path, iteration: int | str, depth: int) -> tuple[State, State]:
    grid, net = grid_tensors(), hash_network(depth)
    folder = root / "deform" / f"iteration_{iteration}"
    folder.mkdir(parents=True)
    torch.save((grid, net), folder / "deform.pth")
    return grid, net


def write_grid4d(
    root: Path, bound: float = 0.9, depth: int = 0, directional: bool = True,
    iteration: int | str = 20000, **settings: object,
) -> tuple[State, State, State]:  # fmt: skip
    c = canonical()  # some of them outside the bound
    write_ply(root / "point_cloud" / f"iteration_{iteration}" / "point_cloud.ply", c)
    common = {"sh_degree": 3, "source_path": "/data/n3v/scene", "white_background": False}
    common |= {"images": "images", "resolution": -1, "warm_up": 3000}
    write_settings(root, **(common | grid_settings(bound, depth, directional) | settings))
    return c, *write_hash_file(root, iteration, depth)


# ---- MoDE ---------------------------------------------------------------------------------------

KNOTS = 4
CHANNEL_NAMES = ("x", "y", "z", "l", "rx", "ry", "rz", "rl")


def spline(p: Tensor, t: float) -> Tensor:
    """(N, channels) of control points (N, K, channels), by the published one-sided Hermite."""
    k = p.shape[1]
    s = t * (k - 1)
    i = min(max(math.floor(s), 0), k - 2)
    u = s - i
    before, p0, p1, after = (p[:, min(max(j, 0), k - 1)] for j in (i - 1, i, i + 1, i + 2))
    m0 = p1 - p0 if i == 0 else (p1 - before) / 2
    m1 = p1 - p0 if i + 1 == k - 1 else (after - p0) / 2
    return (
        (1 + 2 * u) * (1 - u) ** 2 * p0
        + u * (1 - u) ** 2 * m0
        + u * u * (3 - 2 * u) * p1
        + u * u * (u - 1) * m1
    )


def published_gates(logits: Tensor) -> Tensor:
    spread = logits.std(dim=-1, unbiased=True, keepdim=True).clamp_min(1e-6)
    return torch.softmax(logits / spread, dim=-1)


def mode_splat(
    a: dict[str, Tensor], b_xyz: Tensor, b_rotation: Tensor, control: Tensor, t: float
) -> Splat:
    logits = spline(control, t)
    gp, gr = published_gates(logits[:, 0:2]), published_gates(logits[:, 2:4])
    mixed = dict(a)
    mixed["xyz"] = gp[:, :1] * a["xyz"] + gp[:, 1:] * b_xyz
    mixed["rotation"] = gr[:, :1] * a["rotation"] + gr[:, 1:] * b_rotation
    return activated(mixed)


def write_mode(root: Path, hashed: bool, iteration: int = 30000, **settings: object) -> dict:
    c, state = canonical(), hexplane_tensors()
    state["deformation_net.rotations_deform.3.weight"] *= 8
    c["rotation"] *= 0.2  # so that the experts disagree by more than a quarter turn somewhere
    e, control = torch.randn(POINTS, PER_GAUSSIAN), torch.randn(POINTS, KNOTS, 8)
    folder = root / "point_cloud" / f"iteration_{iteration}"
    leftovers = [*(f"motion_{i}" for i in range(9)), *(f"omega_{i}" for i in range(4))]
    after = embedding_columns(e)
    for k, (channel, name) in itertools.product(range(KNOTS), enumerate(CHANNEL_NAMES)):
        after[f"control_{name}_{k}"] = control[:, k, channel]
    after["current_control_num"] = torch.full((POINTS,), float(KNOTS))
    write_ply(
        folder / "point_cloud.ply",
        c,
        before={"trbf_center": torch.zeros(POINTS), "trbf_scale": torch.ones(POINTS)},
        between={name: torch.zeros(POINTS) for name in leftovers},
        after=after,
    )
    torch.save(state, folder / "deformation.pth")
    torch.save(torch.ones(POINTS, dtype=torch.bool), folder / "deformation_table.pth")
    emb = embedding_tensors()
    torch.save(emb, folder / "embnet.pth")
    late = {"use_coarse_temporal_embedding": False, "c2f_temporal_iter": 20000, "no_do": True}
    said = hexplane_settings() | embedding_settings("emb_", **late, deform_from_iter=0)
    said |= {"MoE_mean": True, "MoE_rotation": True, "MoE_opacity": False, "MoE_scale": False}
    said |= {"moe_top_k": 2, "control_num": KNOTS} | grid_settings(0.9, 1, True) | settings
    write_settings(root, **said)
    made = {"c": c, "hexplane": state, "e": e, "emb": emb, "control": control, "settings": said}
    if hashed:
        made["grid"], made["net"] = write_hash_file(root, iteration, 1)
    return made
