"""What a run leaves on disk: models for rendering, checkpoints for resuming.

::

    <run>/config.json                                the resolved settings
    <run>/point_cloud/iteration_<n>/                 a model
        point_cloud.ply                              all per-Gaussian parameters, 3DGS layout first
        model.safetensors                            the experts' networks and tables
        manifest.json                                counts, shapes, sizes and SHA-256 digests
    <run>/checkpoint/<stage>_<n>/                    everything needed to go on bit by bit
        state.safetensors, state.json

Nothing is pickled. Folders appear whole or not at all, and on reading everything is checked: the
JSON files are sealed (`utils.verify`), and hold the digests of the others. Format 1 had no seals.
Of the checkpoints the last two are kept, the older one until the newer is safely on the disk.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from arguments_MoDE.config import Config
from arguments_MoDE.saved import load_config
from arguments_MoDE.values import validate
from scene.experts import REGISTRY, SceneFacts
from scene.gaussian_model import MAX_SH_DEGREE, GaussianModel
from scene.mixture import MoDE
from scene.point_cloud import read_vertices, write_vertices
from utils.errors import UserError, brief
from utils.files import atomic_folder, clear_leftovers, remove_folder
from utils.verify import check_file, digest, plain_file, read_sealed, write_sealed

T = TypeVar("T")

FORMAT = 2
READABLE = (1, 2)
SEALED_FROM = 2
MOST_CAMERAS, MOST_FRAMES = 10**6, 10**9  # that a scene may have
MODEL_FILES = ("point_cloud.ply", "model.safetensors")
FOLDERS = ("point_cloud", "checkpoint")
RUN_FILES = ("config.json", "metrics.jsonl", "moe.json", "prune.json", "distill.json")
IMPORT = "import.json"  # in runs that are imported, and in what pruning leaves of them
ORIGINS = ("distill.json", IMPORT)  # in runs that were not trained from the points of a scene
STATE_KEYS = ("config", "progress", "queue", "sha256")
MODE_STATE_KEYS = (*STATE_KEYS, "active_sh_degree", "opacity_was_reset")
MANIFEST_KEYS = ("active_sh_degree", "per_gaussian", "facts", "training_seconds", "sha256")


@dataclass
class Run:
    """A trained model, as rendering needs it."""

    config: Config
    model: MoDE
    iteration: int
    model_path: Path
    training_seconds: float


# ---- per-Gaussian parameters as PLY columns -----------------------------------------------------


def ply_columns(name: str, shape: tuple[int, ...]) -> list[str]:
    """Column names of a per-Gaussian parameter, in the order of `flatten_for_ply`.

    The six canonical ones are named as every 3DGS viewer expects; others ``<name>_<i>``.
    """
    if name == "xyz":
        return ["x", "y", "z"]
    prefix = {"log_scale": "scale", "rotation": "rot"}.get(name, name)
    if name == "opacity":
        return ["opacity"]
    size = int(np.prod(shape))
    return [f"{prefix}_{i}" for i in range(size)]


def flatten_for_ply(name: str, value: Tensor) -> np.ndarray:
    """(N, columns); SH coefficients go channel by channel, as 3DGS has them."""
    if name in ("f_dc", "f_rest"):
        value = value.transpose(1, 2)
    return value.detach().cpu().flatten(1).numpy()


def _unflatten(name: str, flat: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    value = torch.from_numpy(np.ascontiguousarray(flat))
    if name in ("f_dc", "f_rest"):
        return value.view(-1, shape[1], shape[0]).transpose(1, 2).contiguous()
    return value.view(-1, *shape)


def _ply_vertices(gaussians: GaussianModel) -> dict[str, np.ndarray]:
    order = ["xyz", "f_dc", "f_rest", "opacity", "log_scale", "rotation"]
    order += [name for name in gaussians.names if name not in order]
    columns: dict[str, np.ndarray] = {}
    for name in order:
        flat = flatten_for_ply(name, gaussians[name])
        names = ply_columns(name, tuple(gaussians[name].shape[1:]))
        columns |= {column: flat[:, i] for i, column in enumerate(names)}
        if name == "xyz":  # viewers expect normals here
            columns |= {n: np.zeros(len(flat), np.float32) for n in ("nx", "ny", "nz")}
    return columns


# ---- models -------------------------------------------------------------------------------------


def model_folder(model_path: Path, iteration: int) -> Path:
    """Where the model of ``iteration`` lies."""
    return model_path / "point_cloud" / f"iteration_{iteration}"


def saved_iterations(model_path: Path) -> list[int]:
    """Iterations that have a model, ascending."""
    found = (model_path / "point_cloud").glob("iteration_*/manifest.json")
    numbers = [re.fullmatch(r"iteration_(\d+)", path.parent.name) for path in found]
    return sorted(int(match[1]) for match in numbers if match)


def save_model(model: MoDE, model_path: Path, iteration: int, training_seconds: float) -> Path:
    """Writes the model of ``iteration``; an older one of the same number is replaced.

    Raises:
        UserError: the disk does not take it; nothing has changed then.
    """
    gaussians, facts = model.gaussians, model.facts
    with saving(model_folder(model_path, iteration)) as folder:
        write_vertices(folder / "point_cloud.ply", _ply_vertices(gaussians))
        save_file(_contiguous(model.experts.state_dict()), folder / "model.safetensors")
        manifest = {
            "format": FORMAT,
            "iteration": iteration,
            "active_sh_degree": gaussians.active_sh_degree,
            "gaussians": len(gaussians),
            "per_gaussian": {n: list(gaussians[n].shape[1:]) for n in gaussians.names},
            "facts": {
                "bbox": facts.bbox.tolist(),
                "extent": facts.extent,
                "cameras": facts.cameras,
                "frames": facts.frames,
            },
            "training_seconds": round(training_seconds, 3),
            "bytes": {n: (folder / n).stat().st_size for n in MODEL_FILES},
            "sha256": {n: digest(folder / n) for n in MODEL_FILES},
        }
        write_sealed(folder / "manifest.json", manifest)
    return model_folder(model_path, iteration)


def load_run(model_path: str | Path, iteration: int = -1, device: str = "cpu") -> Run:
    """Reads a trained model.

    Args:
        iteration: which one; -1 is the last.

    Raises:
        UserError: if the folder is no run, has no such iteration, or a file is damaged.
    """
    model_path = Path(model_path)
    if not (model_path / "config.json").is_file():
        raise UserError(f"{model_path} is not a run folder (no config.json): train there first")
    config = _load_settings(model_path / "config.json")
    found = saved_iterations(model_path)
    if not found:
        raise UserError(f"{model_path} has no saved model yet: let training reach a save")
    if iteration == -1:
        iteration = found[-1]
    if iteration not in found:
        listed = ", ".join(map(str, found))
        raise UserError(f"--iteration {iteration}: {model_path} has only {listed}")
    folder = model_folder(model_path, iteration)
    manifest = _read_manifest(folder)
    try:
        seconds = float(manifest["training_seconds"])
        model = _build(folder, manifest, config).to(device).eval()
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        said = brief(f"{type(error).__name__}: {error}")
        raise UserError(f"{folder / 'manifest.json'} is damaged ({said}): copy it again") from None
    return Run(config, model, iteration, model_path, seconds)


def _load_settings(path: Path) -> Config:
    config = load_config(plain_file(path))
    try:
        validate(config, tuple(REGISTRY))
    except UserError as error:
        raise UserError(f"{path}: {error}; restore the file or retrain the run") from None
    return config


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    manifest = read_versioned(path)
    missing = [key for key in MANIFEST_KEYS if key not in manifest]
    digests, sizes = manifest.get("sha256"), manifest.get("bytes", {})
    proven = isinstance(digests, dict) and set(digests) == set(MODEL_FILES)
    if missing or not proven or not isinstance(sizes, dict):
        raise UserError(f"{path} is incomplete ({', '.join(missing) or 'sha256'}): copy it again")
    for name in MODEL_FILES:
        check_file(folder / name, digests[name], sizes.get(name))
    return manifest


def _build(folder: Path, manifest: dict[str, Any], config: Config) -> MoDE:
    vertices = read_vertices(folder / "point_cloud.ply")
    values = {}
    for name, shape in manifest["per_gaussian"].items():
        sizes = [_whole(size, len(vertices)) for size in shape]
        if len(sizes) > 2 or math.prod(sizes) not in range(1, len(vertices) + 1):
            raise ValueError(f"{name} cannot have shape {shape}")
        columns = ply_columns(name, tuple(shape))
        missing = [column for column in columns if column not in vertices]
        if missing:
            raise UserError(f"{folder / 'point_cloud.ply'}: column {missing[0]} is missing")
        flat = np.stack([vertices[column] for column in columns], axis=1)
        values[name] = _unflatten(name, flat, tuple(shape))
    gaussians = GaussianModel(values)
    gaussians.active_sh_degree = _whole(manifest["active_sh_degree"], MAX_SH_DEGREE)
    facts = _facts(manifest["facts"])
    _check_shapes(config, facts, folder / "model.safetensors")
    model = MoDE(gaussians, config, facts)
    _load_experts(model, folder / "model.safetensors")
    return model


def _facts(saved: dict[str, Any]) -> SceneFacts:
    bbox = torch.tensor(saved["bbox"], dtype=torch.float32)
    extent = float(saved["extent"])
    if bbox.shape != (2, 3) or not bbox.isfinite().all() or not math.isfinite(extent):
        raise ValueError("facts are no numbers of a scene")
    return SceneFacts(
        bbox, extent, _whole(saved["cameras"], MOST_CAMERAS), _whole(saved["frames"], MOST_FRAMES)
    )


def _whole(value: Any, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{brief(value, 30)} is no whole number from 0 to {most}")
    return value


def _check_shapes(config: Config, facts: SceneFacts, path: Path) -> None:
    """Refuses settings that ask for other tensors than the file has, before memory is spent."""
    names = [] if config.hidden.static else config.hidden.experts
    with torch.device("meta"):  # shapes only
        experts = torch.nn.ModuleDict({name: REGISTRY[name](config, facts) for name in names})
    wanted = {name: ("F32", list(value.shape)) for name, value in experts.state_dict().items()}
    found = {}
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():
                piece = file.get_slice(name)
                found[name] = (piece.get_dtype(), piece.get_shape())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is not readable: {brief(error)}") from None
    for name in sorted({*wanted, *found}):
        if wanted.get(name) != found.get(name):
            raise UserError(
                f"{path} does not fit the run's config.json: {brief(name, 80)} is "
                f"{found.get(name)} where the settings ask for {wanted.get(name)}"
            )


def _load_experts(model: MoDE, path: Path) -> None:
    try:
        model.experts.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as error:
        raise UserError(f"{path} does not fit the run's config.json: {brief(error)}") from None


# ---- checkpoints --------------------------------------------------------------------------------


def save_state(folder: Path, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
    """Writes a checkpoint: tensors and a JSON-able dict.

    Raises:
        UserError: the disk does not take it; nothing has changed then.
    """
    with saving(folder) as temporary:
        save_file(_contiguous(tensors), temporary / "state.safetensors")
        path = temporary / "state.safetensors"
        proof = {"bytes": path.stat().st_size, "sha256": digest(path)}
        write_sealed(temporary / "state.json", {"format": FORMAT, **info, **proof})


def load_state(
    folder: Path, required: Sequence[str] = MODE_STATE_KEYS
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a checkpoint that `save_state` wrote.

    Args:
        required: keys that its dict must have.

    Raises:
        UserError: if it is missing or damaged.
    """
    if not (folder / "state.json").is_file():
        raise UserError(f"{folder} is not a checkpoint (no state.json)")
    info = read_versioned(folder / "state.json")
    missing = [key for key in required if key not in info]
    if missing:
        raise UserError(f"{folder / 'state.json'} is incomplete ({', '.join(missing)})")
    path = folder / "state.safetensors"
    check_file(path, info["sha256"], info.get("bytes"))
    try:
        loaded = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is not readable: {brief(error)}") from None
    # Copied: mapped tensors are not aligned as allocated ones are, and vectorised sums then round
    # differently, so that a resumed run would drift from an uninterrupted one.
    return {name: value.clone() for name, value in loaded.items()}, info


def checkpoints(model_path: Path) -> list[Path]:
    """The run's checkpoints, damaged or not, from the first to the furthest."""
    found = []
    for path in (model_path / "checkpoint").glob("*_*/state.json"):
        match = re.fullmatch(r"(coarse|fine|router|prune)_(\d+)", path.parent.name)
        if match:
            found.append((match[1] != "coarse", int(match[2]), path.parent))
    return [folder for *_, folder in sorted(found)]


def restored(kind: type[T], saved: Any) -> T:
    """A dataclass from the dict of its fields that a checkpoint has.

    Raises:
        UserError: it has other ones, so another version of this program wrote it.
    """
    if not isinstance(saved, dict) or set(saved) != {item.name for item in fields(kind)}:
        raise UserError(
            "the checkpoint's state.json is of another version of this program (its progress is "
            f"{brief(repr(saved), 80)}): --overwrite trains anew"
        )
    return kind(**saved)


def latest_checkpoint(model_path: Path, required: Sequence[str] = MODE_STATE_KEYS) -> Path | None:
    """The furthest checkpoint that is whole, or None if the run has none yet.

    Each one that is damaged is complained of on stderr.

    Args:
        required: see `load_state`.

    Raises:
        UserError: there are checkpoints, and all of them are damaged.
    """
    found = checkpoints(model_path)
    for folder in reversed(found):
        try:
            load_state(folder, required)
        except UserError as error:
            print(f"warning: {error}", file=sys.stderr)
            continue
        if folder != found[-1]:
            print(f"warning: going back to the older checkpoint {folder}", file=sys.stderr)
        return folder
    if found:
        raise UserError(f"no checkpoint in {found[0].parent} is whole: --overwrite trains anew")
    return None


def recover(model_path: Path, folders: Sequence[str] = FOLDERS) -> None:
    """Tidies up a run folder after processes that were killed while they wrote into it.

    What they were writing is removed, what they were about to replace comes back.

    Args:
        folders: in it, that they write.
    """
    for name in (*RUN_FILES, *folders):
        clear_leftovers(model_path, name)
    for name in folders:
        clear_leftovers(model_path / name)


def set_others_aside(model_path: Path, start: Path | None) -> None:
    """Renames the checkpoints that a training from ``start`` does not continue: they do not count.

    Those are all that lie beyond ``start`` (damaged ones), or all that there are if it is not among
    them (what a run left that was killed before it counted as one).
    """
    found = checkpoints(model_path)
    for folder in found[found.index(start) + 1 :] if start in found else found:
        aside = folder.with_name(f"{folder.name}.set_aside")
        remove_folder(aside)
        folder.rename(aside)


def drop_checkpoints(model_path: Path, keep: int) -> None:
    """Removes all but the ``keep`` furthest checkpoints; 0 keeps all.

    Raises:
        UserError: one cannot be removed.
    """
    for folder in checkpoints(model_path)[:-keep] if keep else []:
        try:
            remove_folder(folder)
        except OSError as error:
            raise UserError(
                f"{folder} is no longer needed but cannot be removed: {error}"
            ) from None


# ---- shared -------------------------------------------------------------------------------------


@contextmanager
def saving(folder: Path) -> Iterator[Path]:
    """`atomic_folder`, where what the disk refuses is a UserError."""
    try:
        with atomic_folder(folder) as temporary:
            yield temporary
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder} could not be saved ({error}); what was saved before is intact: "
            f"make room or give permission there, then --resume"
        ) from error


def read_versioned(
    path: Path, readable: Sequence[int] = READABLE, sealed_from: int = SEALED_FROM
) -> dict[str, Any]:
    """A manifest or the like of a format that is known here.

    Args:
        readable: the formats that are.
        sealed_from: the first of them that has a seal.

    Raises:
        UserError: it is damaged or of another format.
    """
    value, sealed = read_sealed(path)
    number = value.get("format")
    if number not in readable:
        raise UserError(
            f"{path}: format {brief(repr(number), 30)}, this version reads "
            f"{' and '.join(map(str, readable))}"
        )
    if sealed != (number >= sealed_from):
        raise UserError(f"{path} is damaged (its seal is missing): copy it again or train anew")
    return value


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
