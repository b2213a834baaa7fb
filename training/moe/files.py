"""What a MoE leaves on disk.

::

    <run>/moe.json                           settings, the experts and what they were, the scene
    <run>/experts/<name>/                    runs of experts, where they were trained here
    <run>/router/iteration_<n>/              a router
        router.safetensors                   the weights of all Gaussians, and the network
        manifest.json                        sizes and SHA-256 digests
    <run>/checkpoint/router_<n>/             everything needed to go on bit by bit

A router belongs to its experts, Gaussian by Gaussian: it is refused beside any others.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from arguments_MoDE.config import Config
from arguments_MoDE.members import NAMES, is_name
from arguments_MoDE.moe import RouterParams, as_dict, router_params
from scene import Scene, load_scene
from training.checkpoint import IMPORT, Run, load_run, model_folder, read_versioned, saving
from training.launch import choose_device
from training.moe.model import MoEGS
from utils.errors import UserError, brief
from utils.files import atomic_file
from utils.verify import check_file, digest, read_sealed, write_sealed

FORMAT = 1
FILE = "router.safetensors"
MOST_ITERATIONS, LONGEST_PATH = 10**9, 4096
# Settings that all experts of a MoE share: they say which pictures they were trained on.
SAME_SCENE = (
    "source_path",
    "images",
    "resolution",
    "start_frame",
    "duration",
    "frame_step",
    "time_convention",
    "white_background",
    "near_plane",
    "test_cameras",
    "llffhold",
)
HELD_OUT = ("test_cameras", "llffhold")  # these may differ where the same views are left


@dataclass(frozen=True)
class Member:
    """An expert as a MoE knows it."""

    name: str
    path: Path
    iteration: int
    sha256: str  # of its manifest

    @classmethod
    def of(cls, name: str, run: Run) -> Member:
        """The expert that ``run`` is."""
        manifest = model_folder(run.model_path, run.iteration) / "manifest.json"
        return cls(name, run.model_path, run.iteration, digest(manifest))


@dataclass
class MoERun:
    """A trained MoE, as rendering needs it."""

    model: MoEGS
    params: RouterParams
    runs: dict[str, Run]
    iteration: int
    model_path: Path
    training_seconds: float  # of the router alone

    @property
    def temperature(self) -> float:
        """Of the softmax when rendering."""
        return rendering_temperature(self.params)

    @property
    def config(self) -> Config:
        """Settings of the first expert: which scene, and how it is read."""
        return next(iter(self.runs.values())).config


def rendering_temperature(params: RouterParams) -> float:
    """The softmax' temperature when rendering."""
    return 1.0 if params.temperature == "published" else params.temperature_final


def training_temperature(params: RouterParams, iteration: int) -> float:
    """The same in training: log-linear from the initial to the final one."""
    if params.temperature == "published":
        return 0.01
    share = min(iteration / max(params.router_iterations, 1), 1.0)
    ends = math.log(params.temperature_init), math.log(params.temperature_final)
    return math.exp((1 - share) * ends[0] + share * ends[1])


# ---- experts ------------------------------------------------------------------------------------


def named_folders(given: Sequence[str], folder: Path) -> dict[str, Path]:
    """Name -> run folder of the experts that ``--experts`` names, or of those in the MoE's folder.

    Raises:
        UserError: a name is given twice or is none, or there are no experts.
    """
    named: dict[str, Path] = {}
    for text in given:
        name, equals, path = text.partition("=")
        name, path = (name, path) if equals else (Path(text).name, text)
        _check_name(name, f"--experts {text}")
        if name in named:
            raise UserError(f"--experts: two are called {name}; give one of them as NAME=PATH")
        named[name] = Path(path).expanduser()
    if not given:
        found = sorted((folder / "experts").glob("*/config.json"))
        named = {path.parent.name: path.parent for path in found}
        for name, path in named.items():
            _check_name(name, f"--experts {path}")
    if not named:
        raise UserError(
            f"{folder / 'experts'} holds no experts: train some (train_moe.py experts), "
            f"or name run folders with --experts"
        )
    return named


def _check_name(name: str, where: str) -> None:
    if not is_name(name):
        raise UserError(
            f"{where}: {name!r} is no name for an expert ({NAMES}): give --experts NAME=PATH"
        )


def load_experts(folders: Mapping[str, Path], device: str, source_path: str = "") -> dict[str, Run]:
    """The experts' last models, which must be of one scene.

    Args:
        source_path: where it is now; empty: where it was.

    Raises:
        UserError: names the expert and what is wrong with it.
    """
    runs: dict[str, Run] = {}
    for name, path in folders.items():
        try:
            runs[name] = load_run(path, -1, device)
        except UserError as error:
            raise UserError(f"expert {name}: {error}") from None
        goal = runs[name].config.opt.iterations
        if runs[name].iteration < goal:
            raise UserError(
                f"expert {name}: {path} stopped at iteration {runs[name].iteration} of {goal}; "
                f"finish it with --resume"
            )
    check_same_scene(runs, source_path)
    return runs


def check_same_scene(runs: Mapping[str, Run], source_path: str = "") -> None:
    """UserError where experts were trained on different pictures; it names both and the setting.

    The scene is read where settings differ that may hold out the same views.

    Args:
        source_path: where it is now, if that is said: it may have been elsewhere for each.
    """
    keys = [key for key in SAME_SCENE if not (source_path and key == "source_path")]
    (first, reference), *others = runs.items()
    for name, run in others:
        for key in keys:
            one, other = getattr(reference.config.model, key), getattr(run.config.model, key)
            same = _comparable(key, one) == _comparable(key, other)
            if not same and key in HELD_OUT:
                same = _views(reference, source_path) == _views(run, source_path)
            if not same:
                moved = " (-s says where one is that has moved)" if key == "source_path" else ""
                raise UserError(
                    f"expert {name}: {key} was {brief(repr(other))}, but {brief(repr(one))} for "
                    f"expert {first}; a MoE blends experts of one scene, read alike{moved}"
                )
        ours, theirs = _trained_on(reference), _trained_on(run)
        for key in ours.keys() & theirs.keys():
            if ours[key] != theirs[key]:
                raise UserError(
                    f"expert {name}: trained on {theirs[key]} {key}, expert {first} on "
                    f"{ours[key]}; a MoE blends experts of one scene"
                )


def _views(run: Run, source_path: str) -> set[str]:
    """The names of the views that ``run`` was trained on."""
    model = replace(run.config.model, model_path="", cache="ram")  # nothing is written
    model.source_path = source_path or model.source_path
    return {view.name for view in load_scene(model).train}


def _trained_on(run: Run) -> dict[str, int]:
    """Numbers of frames and cameras of the scene that ``run`` was trained on.

    Empty if it is imported: published runs have tables of fixed sizes and say the most frames only.
    """
    if is_imported(run):
        return {}
    return {"frames": run.model.facts.frames, "cameras": run.model.facts.cameras}


def is_imported(run: Run) -> bool:
    """Whether ``run`` was trained elsewhere, by a published program."""
    return (run.model_path / IMPORT).is_file()


def device_of(name: str, runs: Mapping[str, Run], *, quiet: bool = False) -> str:
    """The device that every expert can compute on; see `training.launch.choose_device`."""
    devices = {choose_device(name, run.config, quiet=quiet) for run in runs.values()}
    return devices.pop() if len(devices) == 1 else "cpu"


def check_scene(runs: Mapping[str, Run], scene: Scene) -> None:
    """UserError where an expert was not trained on ``scene``; it names the expert."""
    for name, run in runs.items():
        found = {"frames": scene.frame_count, "cameras": len(scene.camera_names)}
        for key, count in _trained_on(run).items():
            if count != found[key]:
                raise UserError(
                    f"expert {name}: trained on {count} {key}, {scene.source_path} "
                    f"has {found[key]}: give the scene that it was trained on"
                )


def check_untouched(folder: Path, run: MoERun) -> None:
    """UserError where what goes to ``folder`` could replace a part of ``run``, its origin."""
    here = folder.resolve()
    parts = {f"expert {name}": part.model_path for name, part in run.runs.items()}
    for what, path in {"the MoE": run.model_path, **parts}.items():
        if here in (path.resolve(), *path.resolve().parents):
            raise UserError(
                f"--expname {folder} holds {what} that this begins with: give another folder"
            )


def _comparable(key: str, value: Any) -> Any:
    if key == "images":
        return os.path.normpath(value)
    return os.path.realpath(value) if key == "source_path" else value


# ---- the MoE's own files ------------------------------------------------------------------------


def build(runs: Mapping[str, Run], params: RouterParams) -> MoEGS:
    """Experts and a fresh router, on the experts' device; the seed is the settings'."""
    torch.manual_seed(params.router_seed)
    models = {name: run.model for name, run in runs.items()}
    iterations = {name: run.iteration for name, run in runs.items()}
    device = next(iter(models.values())).gaussians.xyz.device
    moe = MoEGS(
        models,
        iterations,
        params.router,
        initial_weight=params.init_mixprob,
        shared_transmittance=params.shared_transmittance,
    )
    return moe.to(device)


def write_settings(
    folder: Path, params: RouterParams, members: Sequence[Member], start: str = ""
) -> None:
    """Writes ``moe.json``: with it the folder is a MoE's.

    Args:
        start: `router_sha256` of the router that this one begins with; empty: it begins anew.
    """
    experts = [{**vars(member), "path": _relative(member.path, folder)} for member in members]
    value = {"format": FORMAT, "router": as_dict(params), "experts": experts}
    with atomic_file(folder / "moe.json") as temporary:
        write_sealed(temporary, value | ({"start_sha256": start} if start else {}))


def router_sha256(folder: Path) -> str:
    """SHA-256 of the manifest of the last router in the MoE's ``folder``.

    Raises:
        UserError: there is none.
    """
    read_settings(folder)
    last = max(saved_routers(folder), default=None)
    if last is None:
        raise UserError(f"{folder} has no router: train_moe.py router makes it")
    return digest(router_folder(folder, last) / "manifest.json")


def begun_with(folder: Path) -> str:
    """What `write_settings` was given as ``start``."""
    return str(_read(folder / "moe.json").get("start_sha256", ""))


def _relative(path: Path, folder: Path) -> str:
    """As a path from the MoE's folder where the expert lies inside it, so that both can move."""
    path, folder = path.resolve(), folder.resolve()
    return str(path.relative_to(folder) if folder in path.parents else path)


def read_settings(folder: Path) -> tuple[RouterParams, list[Member]]:
    """What `write_settings` wrote.

    Raises:
        UserError: it is missing or damaged.
    """
    path = folder / "moe.json"
    if not path.is_file():
        raise UserError(
            f"{folder} is not a MoE's folder (no moe.json): train_moe.py router makes it"
        )
    value = _read(path)
    try:
        params = router_params(dict(value["router"]), path)
        members = [_member(entry, folder) for entry in value["experts"]]
        if not members or len({member.name for member in members}) < len(members):
            raise ValueError("experts")
    except (KeyError, TypeError, ValueError) as error:
        said = brief(f"{type(error).__name__}: {error}")
        raise UserError(f"{path} is damaged ({said}): train the router anew") from None
    return params, members


def _member(entry: dict[str, Any], folder: Path) -> Member:
    name, path, iteration = entry["name"], entry["path"], entry["iteration"]
    if not is_name(name):  # else pictures and models could be written anywhere
        raise ValueError(f"{brief(repr(name), 80)} is no name for an expert")
    if type(path) is not str or not 0 < len(path) <= LONGEST_PATH or "\0" in path:
        raise ValueError(f"{brief(repr(path), 80)} is no path of expert {name}")
    if type(iteration) is not int or not 0 < iteration <= MOST_ITERATIONS:
        raise ValueError(f"{brief(repr(iteration), 30)} is no iteration of expert {name}")
    return Member(name, folder / path, iteration, str(entry["sha256"]))


def started_from(path: Path) -> list[str]:
    """SHA-256 of the manifests of the models that the distilled run ``path`` began with.

    Its student's, and what that began with if it was distilled, too; none where ``path`` is not.

    Raises:
        UserError: the record is damaged.
    """
    record = path / "distill.json"
    if not record.is_file():
        return []
    value = read_sealed(record)[0]
    found = [value.get("expert_sha256"), value.get("earlier_sha256", [])]
    if not (isinstance(found[0], str) and isinstance(found[1], list)):
        raise UserError(f"{record} is damaged: copy it again, or distil anew")
    return [found[0], *found[1]]


def load_members(members: Sequence[Member], device: str) -> dict[str, Run]:
    """The experts of a MoE, which must be those that it was made of.

    Raises:
        UserError: one is missing, damaged, or another than it was.
    """
    runs = {}
    for member in members:
        try:
            run = load_run(member.path, member.iteration, device)
        except UserError as error:
            raise UserError(f"expert {member.name}: {error}") from None
        if Member.of(member.name, run).sha256 != member.sha256:
            raise UserError(
                f"expert {member.name}: {member.path} was trained anew since the router was; "
                f"train the router again"
            )
        runs[member.name] = run
    return runs


def router_folder(model_path: Path, iteration: int) -> Path:
    """Where the router of ``iteration`` lies."""
    return model_path / "router" / f"iteration_{iteration}"


def saved_routers(model_path: Path) -> list[int]:
    """Iterations that have a router, ascending."""
    found = (model_path / "router").glob("iteration_*/manifest.json")
    numbers = [re.fullmatch(r"iteration_(\d+)", path.parent.name) for path in found]
    return sorted(int(match[1]) for match in numbers if match)


def save_router(model: MoEGS, model_path: Path, iteration: int, seconds: float) -> Path:
    """Writes the router of ``iteration``.

    Raises:
        UserError: the disk does not take it; nothing has changed then.
    """
    with saving(router_folder(model_path, iteration)) as folder:
        state = model.router.state_dict()
        save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, folder / FILE)
        manifest = {
            "format": FORMAT,
            "iteration": iteration,
            "training_seconds": round(seconds, 3),
            "bytes": (folder / FILE).stat().st_size,
            "sha256": digest(folder / FILE),
        }
        write_sealed(folder / "manifest.json", manifest)
    return router_folder(model_path, iteration)


def load_moe(model_path: Path, iteration: int = -1, device: str = "cpu") -> MoERun:
    """Reads a trained MoE.

    Args:
        iteration: of the router; -1 is the last.

    Raises:
        UserError: the folder is no MoE's, has no such iteration, or something in it is damaged or
            does not belong together.
    """
    params, members = read_settings(model_path)
    found = saved_routers(model_path)
    if not found:
        raise UserError(f"{model_path} has no router yet: train_moe.py router trains one")
    iteration = found[-1] if iteration == -1 else iteration
    if iteration not in found:
        listed = ", ".join(map(str, found))
        raise UserError(f"--iteration {iteration}: {model_path} has only {listed}")
    runs = load_members(members, device)
    model = build(runs, params)
    folder = router_folder(model_path, iteration)
    manifest = _read(folder / "manifest.json")
    check_file(folder / FILE, manifest.get("sha256"), manifest.get("bytes"))
    try:
        model.router.load_state_dict(load_file(folder / FILE))
        seconds = float(manifest["training_seconds"])
        if not math.isfinite(seconds):
            raise ValueError(f"training_seconds is {seconds}")
    except (
        *(KeyError, OverflowError, RuntimeError, SafetensorError, TypeError, ValueError),
    ) as error:
        raise UserError(f"{folder / FILE} does not fit its experts: {brief(error)}") from None
    return MoERun(model.eval(), params, runs, iteration, model_path, seconds)


def folder_bytes(run: MoERun, model_path: Path | None = None) -> int:
    """Size on disk of a MoE's experts and router, without settings and pictures.

    Args:
        model_path: where its router lies; None: where it was read from.
    """
    folders = [model_folder(part.model_path, part.iteration) for part in run.runs.values()]
    folders.append(router_folder(model_path or run.model_path, run.iteration))
    return sum(p.stat().st_size for folder in folders for p in folder.rglob("*") if p.is_file())


def _read(path: Path) -> dict[str, Any]:
    return read_versioned(path, (FORMAT,), sealed_from=1)
