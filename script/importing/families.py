"""The published families: how their run folders are told apart, and what each becomes here."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arguments_MoDE.config import Config
from arguments_MoDE.recipe import read_foreign
from scene.datasets import hypernerf
from scene.experts import SceneFacts
from scene.gaussian_model import MAX_SH_DEGREE, GaussianModel
from scene.mixture import MoDE
from scene.point_cloud import read_vertices
from script.importing import networks
from script.importing.files import load_pickled, read_namespace, state_dict
from script.importing.listing import Inventory, Listing, Settings
from utils.errors import UserError, brief
from utils.verify import plain_file

REST = (MAX_SH_DEGREE + 1) ** 2 - 1
NOT_READ = {  # in a run folder, by pattern
    "chkpnt*": "the state of training; it cannot be continued here",
    "events.*": "logs",
    "cameras.json": "the scene's cameras; rendering reads the scene itself",
    "input.ply": "the initial points; they are the scene's",
    "iter.txt": "read with --iteration best only",
    "deformation_table.pth": "which Gaussians move: all, as published code leaves it",
    "deformation_accum.pth": "statistics of training",
    "embnet.pth": "the embedding network, which a run with hash grids does not use",
    "deformation.pth": "of another family's network",
}
BY_LARGEST = ("4dgs", "grid4d")  # have HyperNeRF's times so
RECENTRED = ("vrig", "interp", "nerf")  # in a source path: Grid4D moves such scenes' cameras


@dataclass
class Source:
    """A published run folder at one iteration, opened."""

    root: Path
    family: str
    iteration: int
    folder: Path  # point_cloud/iteration_<n>
    deform: Path  # deform/iteration_<n>/deform.pth, which may not exist
    ply: Inventory
    settings: Settings
    listing: Listing

    def network(self, path: Path) -> Inventory:
        """A file with one state_dict."""
        return Inventory(path.name, state_dict(path, load_pickled(path)), self.listing)

    def hash_networks(self) -> tuple[Inventory, Inventory]:
        """The two state_dicts, grids and network, of ``deform.pth``."""
        pair = load_pickled(self.deform)
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise UserError(f"{self.deform} does not hold the two state_dicts of a hash-grid model")
        grid, net = (state_dict(self.deform, part) for part in pair)
        name = self.deform.name
        return (
            Inventory(f"{name} (grids)", grid, self.listing),
            Inventory(f"{name} (network)", net, self.listing),
        )


# ---- finding and telling apart ------------------------------------------------------------------


def open_source(
    root: Path, family: str | None, iteration: str, configs: Path | None, listing: Listing
) -> Source:
    """Reads settings and Gaussians of a published run.

    Args:
        family: of `FAMILIES`; None: by the files.
        iteration: a number, ``best``, or -1 for the last.
        configs: recipe to lay over ``cfg_args``.

    Raises:
        UserError: the folder is no such run, or a file is damaged or hostile.
    """
    if not (root / "point_cloud").is_dir():
        raise UserError(f"{root} is no published run folder (it has no point_cloud)")
    name = _choose_iteration(root, iteration)
    folder = root / "point_cloud" / f"iteration_{name}"
    vertices = read_vertices(plain_file(folder / "point_cloud.ply"))
    deform = root / "deform" / f"iteration_{name}" / "deform.pth"
    found = family or _detect(root, folder, deform, vertices)
    number = _best_number(root, folder, deform) if name == "best" else int(name)
    values = read_namespace(root / "cfg_args")
    where = "cfg_args"
    if configs is not None:
        where = f"cfg_args with {configs.name}"
        for section in read_foreign(configs).values():
            values |= section
    return Source(
        root,
        found,
        number,
        folder,
        deform,
        Inventory("point_cloud.ply", vertices, listing),
        Settings(where, values, listing),
        listing,
    )


def _choose_iteration(root: Path, wanted: str) -> str:
    folders = (root / "point_cloud").glob("iteration_*/point_cloud.ply")
    matches = [re.fullmatch(r"iteration_(\d{1,12}|best)", path.parent.name) for path in folders]
    found = sorted((m[1] for m in matches if m), key=lambda n: -1 if n == "best" else int(n))
    if not found:
        raise UserError(f"{root / 'point_cloud'} has no iteration_<n>/point_cloud.ply")
    if wanted == "-1":
        return found[-1]
    if wanted not in found:
        raise UserError(f"--iteration {brief(wanted, 40)}: {root} has only {', '.join(found)}")
    return wanted


def _best_number(root: Path, folder: Path, deform: Path) -> int:
    for path in (folder / "iter.txt", deform.parent / "iter.txt", root / "iter.txt"):
        if path.exists():
            with plain_file(path).open("rb") as file:
                text = file.read(64).strip()
            if text.isdigit() and len(text) <= 12:
                return int(text)
            raise UserError(f"{path} does not hold the number of an iteration")
    raise UserError(f"--iteration best: {root} has no iter.txt that says which one that is")


def _detect(root: Path, folder: Path, deform: Path, vertices: dict[str, np.ndarray]) -> str:
    network = (folder / "deformation.pth").exists()
    if "control_x_0" in vertices:
        return "mode"
    if "xyz_disp_0" in vertices or (folder / "dynamic_point_cloud.ply").exists():
        raise UserError(f"{root} is a run of Ex4DGS, which cannot be imported")
    if "omega_0" in vertices:
        raise UserError(f"{root} is a run of SpacetimeGaussians, which cannot be imported")
    if network:
        return "ed3dgs" if "embedding_0" in vertices else "4dgs"
    if deform.exists():
        return "grid4d"
    raise UserError(
        f"{folder} has neither a deformation.pth nor {deform.relative_to(root)} to move its "
        f"Gaussians; is it one of {', '.join(FAMILIES)}? (--family)"
    )


# ---- Gaussians ----------------------------------------------------------------------------------


def gaussians(ply: Inventory, listing: Listing) -> tuple[dict[str, Tensor], int]:
    """The canonical parameters, and the degree of the colours (3DGS's PLY layout)."""
    values = {
        "xyz": _columns(ply, ["x", "y", "z"]),
        "f_dc": _columns(ply, [f"f_dc_{i}" for i in range(3)])[:, None],
        "log_scale": _columns(ply, [f"scale_{i}" for i in range(3)]),
        "rotation": _columns(ply, [f"rot_{i}" for i in range(4)]),
        "opacity": _columns(ply, ["opacity"]),
    }
    count = len(values["xyz"])
    if not count:
        raise UserError(f"{ply.where}: holds no Gaussians")
    names = ply.numbered("f_rest_")
    degree = math.isqrt(len(names) // 3 + 1) - 1
    if len(names) != 3 * ((degree + 1) ** 2 - 1) or degree > MAX_SH_DEGREE:
        raise UserError(f"{ply.where}: {len(names)} f_rest columns are no degree from 0 to 3")
    values["f_rest"] = torch.zeros(count, REST, 3)
    if names:  # channel by channel
        channels = _columns(ply, names).view(count, 3, -1)
        values["f_rest"][:, : channels.shape[2]] = channels.transpose(1, 2)
    for axis in "xyz":
        ply.leave(f"n{axis}", "normals; zero")
    listing.mapped[f"{count} Gaussians"] = f"point_cloud.ply, colours of degree {degree}"
    return values, degree


def _columns(ply: Inventory, names: list[str]) -> Tensor:
    """(N, columns) float32, finite."""
    table = np.stack([ply.take(name) for name in names], axis=1).astype(np.float32)
    bad = int((~np.isfinite(table)).any(axis=1).sum())
    if bad:
        raise UserError(f"{ply.where}: {bad} Gaussians have {names[0]} that is not finite")
    return torch.from_numpy(table)


def _embeddings(ply: Inventory) -> Tensor:
    prefix = "embedding_" if "embedding_0" in ply else "gaussian_embedding_"
    return _columns(ply, ply.numbered(prefix) or [f"{prefix}0"])


def _knots(ply: Inventory, listing: Listing) -> dict[str, Tensor]:
    """MoDE's control points: channels 0 and 1 route positions, 2 and 3 rotations."""
    count = len(ply.numbered("control_x_"))
    tables = {
        "gate_xyz": ("control_x_", "control_y_"),
        "gate_rotation": ("control_z_", "control_l_"),
    }
    values = {
        name: torch.stack([_columns(ply, [f"{p}{k}" for k in range(count)]) for p in pair], dim=-1)
        for name, pair in tables.items()
    }
    if (_columns(ply, ["current_control_num"]) != count).any():
        listing.wrong.append(f"Gaussians with another number of knots than {count}")
    for channel in ("rx", "ry", "rz", "rl"):
        ply.leave(f"control_{channel}_*", "channels that the published renderer never reads")
    for name in ("trbf_center", "trbf_scale", "motion_*", "omega_*"):
        ply.leave(name, "of a polynomial expert that no published run evaluates")
    return values


# ---- families -----------------------------------------------------------------------------------


@dataclass
class Parts:
    """What a family makes of a source: experts in order, more per Gaussian, and settings."""

    experts: dict[str, networks.Part]
    values: dict[str, Tensor]
    hidden: dict[str, Any]


def _hexplane_file(source: Source) -> networks.Part:
    part = networks.hexplane(source.network(source.folder / "deformation.pth"), source.settings)
    source.listing.mapped["expert hexplane"] = "deformation.pth; time planes resampled"
    return part


def _four_d_gaussians(source: Source) -> Parts:
    path = source.folder / "deformation_table.pth"
    if path.exists():
        table = state_dict(path, {"deformation_table": load_pickled(path)})["deformation_table"]
        held = int((table == 0).sum())
        if held:
            source.listing.wrong.append(f"{held} Gaussians are held still by deformation_table")
    return Parts({"hexplane": _hexplane_file(source)}, {}, {})


def _ed3dgs(source: Source) -> Parts:
    values = _embeddings(source.ply)
    net = source.network(source.folder / "deformation.pth")
    part = networks.embedding(net, source.settings, values.shape[1])
    source.listing.mapped["expert embedding"] = "deformation.pth and embedding_* of the PLY"
    return Parts({"embedding": part}, {"embedding": values}, {})


def _grid4d(source: Source) -> Parts:
    part = networks.hash_grids(*source.hash_networks(), source.settings, "grid4d")
    source.listing.mapped["expert hash"] = "deform.pth; hash_field = grid4d"
    warm_up = source.settings.read("warm_up", int, 3000)
    if source.iteration < warm_up:
        source.listing.wrong.append(
            f"iteration {source.iteration} lies before warm_up = {warm_up}: published, nothing "
            "moves yet"
        )
    scene = str(source.settings.items.get("source_path", "")).lower()
    if any(word in scene for word in RECENTRED):
        source.listing.wrong.append(
            "a HyperNeRF or Nerfies scene by its source_path: Grid4D moves and scales its cameras, "
            "the reader here does not"
        )
    return Parts({"hash": part}, {}, {})


def _mode(source: Source) -> Parts:
    settings, listing = source.settings, source.listing
    first = _hexplane_file(source)
    values = _knots(source.ply, listing)
    embeddings = _embeddings(source.ply)
    hashed = source.deform.exists()
    if hashed:
        second = networks.hash_grids(*source.hash_networks(), settings, "mode")
        listing.mapped["expert hash"] = "deform.pth; hash_field = mode"
        listing.left_out["point_cloud.ply: embedding_*"] = NOT_READ["embnet.pth"]
    else:
        net = source.network(source.folder / "embnet.pth")
        second = networks.embedding(net, settings, embeddings.shape[1], "emb_")
        listing.mapped["expert embedding"] = "embnet.pth and embedding_* of the PLY"
        values["embedding"] = embeddings
    hidden = _mode_mixing(settings, first, second, values)
    for name in ("gate_xyz", "gate_rotation"):
        if name in values:
            pair = "x and y" if name == "gate_xyz" else "z and l"
            listing.mapped[name] = f"control_* of the PLY, channels {pair}"
    return Parts({"hexplane": first, ("hash" if hashed else "embedding"): second}, values, hidden)


def _mode_mixing(
    settings: Settings, first: networks.Part, second: networks.Part, values: dict[str, Tensor]
) -> dict[str, Any]:
    """The published mixing, gate and attributes; knots of attributes that are not mixed go."""
    listing, mixed = settings.listing, {}
    switches = {"xyz": ("MoE_mean", "no_dx"), "rotation": ("MoE_rotation", "no_dr")}
    for attribute, (flag, off) in switches.items():
        mixed[flag] = settings.read(flag, bool, False)
        if not mixed[flag]:
            values.pop(f"gate_{attribute}")
            listing.left_out[f"point_cloud.ply: control_*, {attribute}"] = f"{flag} = False"
        silent = [first.hidden[off], attribute == "rotation" and second.emb.get("emb_no_dr", False)]
        if mixed[flag] and any(silent):
            listing.wrong.append(f"{attribute} is mixed, but one of the experts is silent on it")
    top_k = settings.read("moe_top_k", int, 2)
    if top_k == 1 and all(mixed.values()):
        listing.wrong.append("moe_top_k = 1: published for each attribute, here one for all")
    knots = {v.shape[1] for n, v in values.items() if n.startswith("gate_")} or {3}
    settings.agree("control_num", max(knots))
    return {
        **mixed,
        "MoE_scale": False,
        "MoE_opacity": False,
        "MoE_sh": False,
        "gate": "published",
        "mixing": "published",
        "moe_top_k": top_k,
        "control_num": max(knots),
    }


FAMILIES: dict[str, Callable[[Source], Parts]] = {
    "4dgs": _four_d_gaussians,
    "ed3dgs": _ed3dgs,
    "grid4d": _grid4d,
    "mode": _mode,
}
WHITE = {"4dgs": True, "ed3dgs": True, "grid4d": False, "mode": True}  # published defaults


# ---- a run of ours ------------------------------------------------------------------------------


def build(
    source: Source, source_path: str | None, time_convention: str | None
) -> tuple[MoDE, Config]:
    """The model, with the settings that it is rendered with.

    ``time_convention`` None: as the family's readers have it.

    Raises:
        UserError: a tensor or a setting is missing or of another shape.
    """
    values, degree = gaussians(source.ply, source.listing)
    parts = FAMILIES[source.family](source)
    config = _config(source, parts, degree, source_path, time_convention)
    boxes = [part.bbox for part in parts.experts.values() if part.bbox is not None]
    bbox = boxes[0] if boxes else torch.stack([values["xyz"].amin(0), values["xyz"].amax(0)])
    offsets = [p.state["offsets"] for p in parts.experts.values() if "offsets" in p.state]
    facts = SceneFacts(bbox, 1.0, len(offsets[0]) if offsets else 0, max(config.model.duration, 1))
    source.listing.assumed["the scene's extent"] = "1; only training would need it"
    canonical = GaussianModel(values | parts.values)
    canonical.active_sh_degree = min(degree, config.model.sh_degree)
    state = {
        f"{name}.{key}": value
        for name, part in parts.experts.items()
        for key, value in part.state.items()
    }
    model = MoDE(canonical, config, facts)
    try:
        model.experts.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{source.root}: the networks do not fit: {brief(error)}") from None
    return model.eval(), config


def _config(
    source: Source, parts: Parts, degree: int, source_path: str | None, time_convention: str | None
) -> Config:
    settings, config = source.settings, Config()
    model = config.model
    said = settings.read("source_path", str, "")
    here = None if source_path is None else os.path.abspath(os.path.expanduser(source_path))
    model.source_path = said if here is None else here
    model.images = settings.read("images", str, "images")
    if os.path.isabs(model.images) or os.pardir in Path(model.images).parts:
        source.listing.assumed["images"] = f"'images'; {brief(model.images)} is not in the scene"
        model.images = "images"
    resolution = settings.read("resolution", int, -1)
    model.resolution = resolution if resolution > 0 else -1
    model.duration = max(settings.read("duration", int, 300), 0)
    model.sh_degree = min(max(settings.read("sh_degree", int, degree), 0), MAX_SH_DEGREE)
    model.white_background = settings.read("white_background", bool, WHITE[source.family])
    convention = time_convention or _convention(source.family, model.source_path)
    model.time_convention = convention
    source.listing.assumed["time_convention"] = (
        f"{convention}; where times are frames, that is "
        + ("i/F" if convention == "published" else "i/(F-1)")
        + ("" if time_convention else ", as published readers have it")
    )
    config.opt.iterations = source.iteration
    config.hidden.experts = list(parts.experts)
    for part in parts.experts.values():
        for section, found in (
            (config.hidden, part.hidden), (config.emb, part.emb), (config.hash, part.hash)
        ):  # fmt: skip
            for name, value in found.items():
                setattr(section, name, value)
    for name, value in parts.hidden.items():
        setattr(config.hidden, name, value)
    for name in ("convert_SHs_python", "compute_cov3D_python"):
        if settings.read(name, bool, False):
            source.listing.wrong.append(f"{name} = True draws undeformed attributes")
    return config


def _convention(family: str, source_path: str) -> str:
    """Published readers have i/F, but some divide HyperNeRF's numbers by the largest of them."""
    if family in BY_LARGEST and os.path.isdir(source_path):
        return "full" if hypernerf.fits(Path(source_path)) else "published"
    return "published"


def account(source: Source) -> None:
    """Lists every file, column and setting that was not read."""
    source.ply.close("no part of this family's pictures, as far as it is known")
    source.settings.close("a setting of training, or not known here")
    used = {source.folder / "point_cloud.ply", source.deform, source.root / "cfg_args"}
    used |= {source.folder / "deformation.pth"}
    if source.family == "mode" and not source.deform.exists():
        used.add(source.folder / "embnet.pth")
    for path in sorted([*source.root.iterdir(), *source.folder.iterdir()]):
        name = str(path.relative_to(source.root))
        if path in used or name in ("point_cloud", "deform"):
            continue
        reasons = (why for pattern, why in NOT_READ.items() if path.match(pattern))
        source.listing.left_out[brief(name, 120)] = next(reasons, "not part of the model")
    others = [p for p in (source.root / "point_cloud").iterdir() if p != source.folder]
    for path in sorted(others):
        source.listing.left_out[brief(f"point_cloud/{path.name}", 120)] = "another iteration"
