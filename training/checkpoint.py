"""What a run leaves on disk: models for rendering, checkpoints for resuming.

::

    <run>/config.json                                the resolved settings
    <run>/point_cloud/iteration_<n>/                 a model
        point_cloud.ply                              all per-Gaussian parameters, 3DGS layout first
        model.safetensors                            the experts' networks and tables
        manifest.json                                counts, shapes and SHA-256 digests
    <run>/checkpoint/<stage>_<n>/                    everything needed to go on bit by bit
        state.safetensors, state.json

Nothing is pickled. Folders appear whole or not at all, and digests are checked on reading. Of the
checkpoints the last two are kept, the older one until the newer is safely on the disk.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from arguments_MoDE.config import Config
from arguments_MoDE.saved import load_config
from scene.experts import SceneFacts
from scene.gaussian_model import GaussianModel
from scene.mixture import MoDE
from scene.point_cloud import read_vertices, write_vertices
from utils.errors import UserError
from utils.files import atomic_folder, clear_leftovers, remove_folder, write_json

FORMAT = 1
MODEL_FILES = ("point_cloud.ply", "model.safetensors")
FOLDERS = ("point_cloud", "checkpoint")
STATE_KEYS = ("config", "progress", "queue", "active_sh_degree", "opacity_was_reset", "sha256")
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
    with _saving(model_folder(model_path, iteration)) as folder:
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
            "sha256": {n: digest(folder / n) for n in MODEL_FILES},
        }
        write_json(folder / "manifest.json", manifest)
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
    config = load_config(model_path / "config.json")
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
        model = _build(folder, manifest, config).to(device).eval()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / 'manifest.json'} is damaged ({error}): copy it again") from None
    return Run(config, model, iteration, model_path, manifest["training_seconds"])


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    manifest = _read_json(path)
    if manifest.get("format") != FORMAT:
        raise UserError(f"{path}: format {manifest.get('format')!r}, this version reads {FORMAT}")
    missing = [key for key in MANIFEST_KEYS if key not in manifest]
    if missing or set(manifest["sha256"]) != set(MODEL_FILES):
        raise UserError(f"{path} is incomplete ({', '.join(missing) or 'sha256'}): copy it again")
    for name, expected in manifest["sha256"].items():
        check_digest(folder / name, expected)
    return manifest


def _build(folder: Path, manifest: dict[str, Any], config: Config) -> MoDE:
    vertices = read_vertices(folder / "point_cloud.ply")
    values = {}
    for name, shape in manifest["per_gaussian"].items():
        if len(shape) > 2 or int(np.prod(shape)) not in range(1, len(vertices) + 1):
            raise ValueError(f"{name} cannot have shape {shape}")
        columns = ply_columns(name, tuple(shape))
        missing = [column for column in columns if column not in vertices]
        if missing:
            raise UserError(f"{folder / 'point_cloud.ply'}: column {missing[0]} is missing")
        flat = np.stack([vertices[column] for column in columns], axis=1)
        values[name] = _unflatten(name, flat, tuple(shape))
    gaussians = GaussianModel(values)
    gaussians.active_sh_degree = manifest["active_sh_degree"]
    facts = manifest["facts"]
    model = MoDE(
        gaussians,
        config,
        SceneFacts(torch.tensor(facts["bbox"]), facts["extent"], facts["cameras"], facts["frames"]),
    )
    _load_experts(model, folder / "model.safetensors")
    return model


def _load_experts(model: MoDE, path: Path) -> None:
    try:
        model.experts.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{path} does not fit the run's config.json: {first}") from None


# ---- checkpoints --------------------------------------------------------------------------------


def save_state(folder: Path, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
    """Writes a checkpoint: tensors and a JSON-able dict.

    Raises:
        UserError: the disk does not take it; nothing has changed then.
    """
    with _saving(folder) as temporary:
        save_file(_contiguous(tensors), temporary / "state.safetensors")
        info = {"format": FORMAT, **info, "sha256": digest(temporary / "state.safetensors")}
        write_json(temporary / "state.json", info)


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a checkpoint that `save_state` wrote.

    Raises:
        UserError: if it is missing or damaged.
    """
    if not (folder / "state.json").is_file():
        raise UserError(f"{folder} is not a checkpoint (no state.json)")
    info = _read_json(folder / "state.json")
    if info.get("format") != FORMAT:
        raise UserError(f"{folder}: format {info.get('format')!r}, this version reads {FORMAT}")
    missing = [key for key in STATE_KEYS if key not in info]
    if missing:
        raise UserError(f"{folder / 'state.json'} is incomplete ({', '.join(missing)})")
    check_digest(folder / "state.safetensors", info["sha256"])
    loaded = load_file(folder / "state.safetensors")
    # Copied: mapped tensors are not aligned as allocated ones are, and vectorised sums then round
    # differently, so that a resumed run would drift from an uninterrupted one.
    return {name: value.clone() for name, value in loaded.items()}, info


def checkpoints(model_path: Path) -> list[Path]:
    """The run's checkpoints, damaged or not, from the first to the furthest."""
    found = []
    for path in (model_path / "checkpoint").glob("*_*/state.json"):
        match = re.fullmatch(r"(coarse|fine)_(\d+)", path.parent.name)
        if match:
            found.append((match[1] == "fine", int(match[2]), path.parent))
    return [folder for *_, folder in sorted(found)]


def latest_checkpoint(model_path: Path) -> Path | None:
    """The furthest checkpoint that is whole, or None if the run has none yet.

    Each one that is damaged is complained of on stderr.

    Raises:
        UserError: there are checkpoints, and all of them are damaged.
    """
    found = checkpoints(model_path)
    for folder in reversed(found):
        try:
            load_state(folder)
        except UserError as error:
            print(f"warning: {error}", file=sys.stderr)
            continue
        if folder != found[-1]:
            print(f"warning: going back to the older checkpoint {folder}", file=sys.stderr)
        return folder
    if found:
        raise UserError(f"no checkpoint in {found[0].parent} is whole: --overwrite trains anew")
    return None


def recover(model_path: Path) -> None:
    """Tidies up a run folder after processes that were killed while they wrote into it.

    What they were writing is removed, what they were about to replace comes back.
    """
    for name in ("config.json", "metrics.jsonl", *FOLDERS):
        clear_leftovers(model_path, name)
    for name in FOLDERS:
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
def _saving(folder: Path) -> Iterator[Path]:
    """`atomic_folder`, where what the disk refuses is a UserError."""
    try:
        with atomic_folder(folder) as temporary:
            yield temporary
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder} could not be saved ({error}); what was saved before is intact: "
            f"make room or give permission there, then --resume"
        ) from error


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def check_digest(path: Path, expected: str) -> None:
    """Refuses a file whose content is not what was written."""
    if not path.is_file():
        raise UserError(f"{path} is missing: the run folder is incomplete, copy it again")
    if digest(path) != expected:
        raise UserError(f"{path} is damaged (its SHA-256 differs): copy it again or train anew")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object")
    return value


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
