"""`render_moe.py` as a user runs it, on a tiny mixture; what it measures is what it draws."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import render_moe
import tiny_moe
from scene import load_scene
from tiny_moe import COMMON, ITERATION, NAMES, fails, files_in, moe
from training.evaluation import ViewRenderer, evaluate_views
from training.gates import expert_colors
from training.moe.files import load_moe
from training.moe.views import MoEViewRenderer
from utils.metrics import to_8bit

QUICK = ["--no-lpips", "--skip_train", "--skip_video"]


def render(folder: Path, *more: str) -> int:
    return render_moe.main(["--model_path", str(folder), *COMMON, *more])


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return tiny_moe.scene_folder(tmp_path_factory.mktemp("data") / "scene")


@pytest.fixture(scope="module")
def made(source, tmp_path_factory) -> Path:
    """A MoE, not to be changed."""
    return moe(tmp_path_factory.mktemp("moe") / "moe", source)


@pytest.fixture(scope="module")
def rendered(made, tmp_path_factory) -> Path:
    """Its test set, rendered; not to be changed."""
    folder = tmp_path_factory.mktemp("rendered") / "moe"
    shutil.copytree(made, folder)
    assert render(folder, *QUICK) == 0
    return folder


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_what_is_written(rendered, made):
    out = rendered / "test" / "ours_4"
    names = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    frames = [f"{i:05d}.png" for i in range(3)]
    for folder in ("renders", "gt", "gates", *(f"experts/{n}/renders" for n in NAMES)):
        assert {f"{folder}/{frame}" for frame in frames} <= names
    assert {
        "metrics.json",
        "video_gates.mp4",
        *(f"experts/{n}/video_rgb.mp4" for n in NAMES),
    } <= names
    assert not any(n.startswith("experts/") and "/gt/" in n for n in names)
    own = {k: v for k, v in files_in(rendered).items() if not k.startswith("test/")}
    assert {k: v for k, v in own.items() if k != "metrics.json"} == files_in(made)


def test_pictures_are_the_mixtures_and_the_experts_own(rendered):
    run, out = load_moe(rendered), rendered / "test" / "ours_4"
    world = load_scene(run.config.model)
    blended = MoEViewRenderer(run.model, world, run.params)
    for i, view in enumerate(world.test):
        written = to_8bit(blended(view)).permute(1, 2, 0).numpy()
        assert np.array_equal(pixels(out / "renders" / f"{i:05d}.png"), written)
        for name in NAMES:
            own = ViewRenderer(run.model.experts[name], world, ITERATION)(view)
            path = out / "experts" / name / "renders" / f"{i:05d}.png"
            assert np.array_equal(pixels(path), to_8bit(own).permute(1, 2, 0).numpy())


def test_numbers_are_those_of_the_pictures(rendered):
    run = load_moe(rendered)
    world = load_scene(run.config.model)
    said = json.loads((rendered / "test" / "ours_4" / "metrics.json").read_text())
    blended = evaluate_views(MoEViewRenderer(run.model, world, run.params), world.test)
    assert said["psnr"] == pytest.approx(blended["psnr"], abs=1e-3)
    assert said["experts_used"] == [*NAMES] and said["temperature"] == 0.5
    assert said["gaussians"] == sum(len(e.gaussians) for e in run.model.experts.values())
    assert said["training_seconds"] == 1.5 + 2 * 2.5
    for name in NAMES:
        own = ViewRenderer(run.model.experts[name], world, ITERATION)
        alone = evaluate_views(own, world.test)["psnr"]
        assert said["experts"][name]["psnr"] == pytest.approx(alone, abs=1e-3)
        assert said["experts"][name]["fps"] > 0
    assert sum(said["gates"].values()) == pytest.approx(1, abs=1e-5)
    sizes = [
        p.stat().st_size
        for f in (rendered / "router", rendered / "experts")
        for p in f.rglob("*")
        if p.is_file() and p.name != "config.json"
    ]
    assert said["bytes_on_disk"] == sum(sizes)


def test_gates_are_drawn_in_the_experts_colours(rendered):
    run = load_moe(rendered)
    world = load_scene(run.config.model)
    colors = torch.tensor([expert_colors(list(run.runs))[n] for n in NAMES]) / 255
    assert len({tuple(c.tolist()) for c in colors}) == 2
    view = world.test[1]
    gates = MoEViewRenderer(run.model, world, run.params).blend([view]).gates[0]
    written = to_8bit(torch.einsum("ehw,ec->chw", gates, colors)).permute(1, 2, 0).numpy()
    drawn = pixels(rendered / "test" / "ours_4" / "gates" / "00001.png")
    height, width = written.shape[:2]
    assert drawn.shape[1] == width and drawn.shape[0] > height  # and a legend below
    assert np.array_equal(drawn[:height], written)
    assert drawn[height:].std() > 0


@pytest.fixture
def copy(made, tmp_path) -> Path:
    shutil.copytree(made, tmp_path / "moe")
    return tmp_path / "moe"


def test_an_expert_can_be_left_out(copy, capsys):
    assert render(copy, *QUICK, "--experts", NAMES[1]) == 0
    said = json.loads((copy / "test" / "ours_4" / "metrics.json").read_text())
    assert said["experts_used"] == [NAMES[1]] and said["gates"] == {NAMES[1]: 1.0}
    assert said["psnr"] == pytest.approx(said["experts"][NAMES[1]]["psnr"], abs=1e-4)
    assert said["gaussians"] == 47
    out = copy / "test" / "ours_4"
    for i in range(3):
        one, other = (out / p / f"{i:05d}.png" for p in ("renders", f"experts/{NAMES[1]}/renders"))
        assert one.read_bytes() == other.read_bytes()
    assert f"{NAMES[1]} alone: psnr" in capsys.readouterr().out


def test_parts_can_be_skipped(copy):
    assert render(copy, *QUICK, "--skip_experts", "--skip_gates") == 0
    out = copy / "test" / "ours_4"
    assert not (out / "experts").exists() and not (out / "gates").exists()
    said = json.loads((out / "metrics.json").read_text())
    assert "experts" not in said and "gates" not in said and said["psnr"] > 0


def test_videos_of_a_path_have_gates_and_experts_too(copy):
    flags = ("--no-lpips", "--skip_train", "--skip_test", "--video_frames", "2")
    assert render(copy, *flags) == 0
    out = copy / "video" / "ours_4"
    assert (out / "video_gates.mp4").exists() and (out / "video_rgb.mp4").exists()
    assert not (out / "gt").exists()


def test_misuse_is_one_line_and_leaves_the_folder_as_it_was(copy, source, tmp_path, capsys):
    before = files_in(copy)
    other = tmp_path / "five"
    tiny_moe.builders.n3v_scene(other, cameras=5, frames=3, layout="images", size=(24, 16))
    lines = {
        f"--experts nobody: this MoE has {', '.join(NAMES)}": ("--experts", "nobody"),
        "leave nothing to render": ("--skip_train", "--skip_test", "--skip_video"),
        "--iteration 9: ": ("--iteration", "9"),
        "nowhere": ("-s", str(tmp_path / "nowhere")),
        f"expert {NAMES[0]}: trained on 4 cameras": ("-s", str(other)),
    }
    for said, flags in lines.items():
        assert said in fails(capsys, lambda f=flags: render(copy, *f))
    assert files_in(copy) == before
    shutil.rmtree(copy / "experts" / NAMES[0])
    assert f"expert {NAMES[0]}: " in fails(capsys, lambda: render(copy))


def test_the_experts_folder_of_an_older_rendering_is_replaced(copy):
    """What is drawn with fewer experts holds no pictures of the others."""
    render(copy, *QUICK)
    render(copy, *QUICK, "--experts", NAMES[0])
    folder = copy / "test" / "ours_4" / "experts"
    assert [p.name for p in folder.iterdir()] == [NAMES[0]]


@pytest.mark.parametrize("router", ["pixel", "volume"])
def test_the_ablations_are_rendered_alike(source, tmp_path, router):
    folder = moe(tmp_path / "moe", source, router=router)
    assert render(folder, *QUICK) == 0
    said = json.loads((folder / "test" / "ours_4" / "metrics.json").read_text())
    assert sum(said["gates"].values()) == pytest.approx(1, abs=1e-4)
