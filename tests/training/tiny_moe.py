"""Tiny experts and mixtures of them, on a scene on disk of 4 cameras and 3 frames of 24 x 16."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import builders
import pytest
import torch

import tiny
from arguments_MoDE.cli import save_config
from arguments_MoDE.config import RouterParams
from arguments_MoDE.moe import RouterArguments
from scene import Scene, load_scene
from scene.cameras import Camera
from scene.experts import SceneFacts
from scene.gaussian_model import GaussianModel
from scene.mixture import MoDE
from training.checkpoint import save_model
from training.moe.files import Member, build, load_experts, save_router, write_settings
from training.moe.model import MoEGS
from training.moe.router import RouterTrainer
from training.reports import Report
from utils.errors import cli

ITERATION = 16  # at which the experts stopped
NAMES = ("hexplane", "polynomial")
COMMON = ["--device", "cpu", "--quiet"]
ROUTERS = ("volume_aware", "pixel", "volume")


def scene_folder(folder: Path) -> Path:
    """Writes the scene."""
    builders.n3v_scene(folder, cameras=4, frames=3, layout="images", size=(24, 16))
    return folder


def settings_of(name: str, source: Path | str = "", **opt):
    """Of a run with the expert ``name`` alone."""
    settings = tiny.config(coarse_iterations=0, iterations=ITERATION, batch_size=1, **opt)
    settings.hidden.experts = [name]
    settings.model.source_path = str(source)
    settings.model.cache = "ram" if source else settings.model.cache
    return settings


def model_of(name: str, world: Scene, settings, *, seed: int = 0, count: int = 40) -> MoDE:
    """An expert whose Gaussians are seen and differ with ``seed``; it is not trained."""
    torch.manual_seed(seed)
    facts = SceneFacts(world.bbox, world.extent, len(world.camera_names), world.frame_count)
    gaussians = GaussianModel.from_points(world.points.xyz[:count], world.points.rgb[:count])
    model = MoDE(gaussians, settings, facts)
    own = model.gaussians
    with torch.no_grad():
        own.xyz.add_(0.1 * torch.randn_like(own.xyz))
        own.log_scale.copy_(-1.7 + 0.3 * torch.randn_like(own.log_scale))
        own.opacity.normal_()
        own.f_dc.normal_()
        own.f_rest.normal_(0, 0.1)
        for parameter in model.experts.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return model


def expert(folder: Path, source: Path, name: str, *, degree: int = 0, **how) -> Path:
    """Writes the run of an expert; returns its folder."""
    settings = settings_of(name, source, **how.pop("opt", {}))
    for key, value in vars(how.pop("model", settings.model)).items():  # read as another run is
        setattr(settings.model, key, value)
    settings.model.model_path = str(folder)
    model = model_of(name, load_scene(settings.model), settings, **how)
    model.gaussians.active_sh_degree = degree
    save_config(settings, folder / "config.json")
    save_model(model, folder, ITERATION, 2.5)
    return folder


def experts(folder: Path, source: Path, names=NAMES, **how) -> Path:
    """Writes experts to ``folder``/experts; returns ``folder``."""
    for seed, name in enumerate(names):
        expert(folder / "experts" / name, source, name, seed=seed, count=40 + 7 * seed, **how)
    return folder


def moe(folder: Path, source: Path, names=NAMES, *, seed: int = 5, opt=None, **params) -> Path:
    """Writes experts and a router of random weights; returns ``folder``."""
    experts(folder, source, names, opt=opt or {})
    settings = RouterParams(router_iterations=4, temperature_final=0.5, **params)
    runs = load_experts({name: folder / "experts" / name for name in names}, "cpu")
    model = build(runs, settings)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.router.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    save_router(model, folder, settings.router_iterations, 1.5)
    write_settings(folder, settings, [Member.of(name, run) for name, run in runs.items()])
    return folder


def mixture(router: str = "volume_aware", names=NAMES, **how) -> MoEGS:
    """The same in memory, on the scene of `tiny`."""
    models = {
        name: model_of(name, tiny.scene(), settings_of(name), seed=k, count=30 + 5 * k)
        for k, name in enumerate(names)
    }
    torch.manual_seed(0)
    return MoEGS(models, dict.fromkeys(names, ITERATION), router, **how)


def scatter(model: MoEGS, seed: int = 3, size: float = 0.5) -> MoEGS:
    """Makes every weight of the router another one."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.router.parameters():
            parameter += size * torch.randn_like(parameter)
    return model


def off_centre(width: int = 24, height: int = 16) -> Camera:
    """A camera with a principal point off the centre, turned and off the axis."""
    angle = torch.tensor(0.2)
    w2c = torch.eye(4)
    w2c[0, 0] = w2c[2, 2] = angle.cos()
    w2c[0, 2], w2c[2, 0] = angle.sin(), -angle.sin()
    w2c[:3, 3] = torch.tensor([0.3, -0.2, 4.0])
    return Camera("off", width, height, 21.0, 19.0, 9.3, 10.1, w2c)


def router_trainer(
    folder: Path, model: MoEGS, world: Scene | None = None, params=None, keep=None, **plan
) -> RouterTrainer:
    """Nothing is trained yet; ``keep``: through which iteration ``metrics.jsonl`` is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    arguments = RouterArguments(params=params or RouterParams(), model_path=folder, **plan)
    report = Report(folder, quiet=True, keep_through=keep)
    return RouterTrainer(model, world or tiny.scene(), arguments, report, "cpu")


CURVES = "events.out.tfevents.1.host.2"  # of TensorBoard


def pretend_rendered(folder: Path, iteration: int) -> Path:
    """Writes what rendering leaves, curves, and a file of somebody else; returns ``folder``."""
    for path in ("metrics.json", "gates.json", f"test/ours_{iteration}/metrics.json"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text('{"psnr": 99.0}')
    (folder / CURVES).write_text("")
    (folder / "test" / "notes.txt").write_text("mine")
    return folder


def files_in(folder: Path) -> dict[str, bytes]:
    """Relative path -> content of everything in ``folder``."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def fails(capsys, run: Callable[[], object], code: int = 2) -> str:
    """Expects the exit code and one line on stderr; returns it."""
    with pytest.raises(SystemExit) as stop:
        cli(lambda _: run())
    assert stop.value.code == code
    said = capsys.readouterr()
    (line,) = (x for x in said.err.splitlines() if x.startswith("error: "))
    assert len(line) < 1500
    return line
