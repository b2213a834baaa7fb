"""Runs and rendered sets on disk: what is not as a protocol has it, and what is noted of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import builders
import pytest

import render_moe
import tiny_moe
from evaluation import opening
from evaluation.measure import choose, deviations
from evaluation.opening import open_rendered, open_run
from evaluation.protocols import find_protocol, protocol_of_kind
from evaluation.sources import FolderSource, RunSource
from training.moe import files

N3V = replace(find_protocol("n3v"), size=(24, 16), frame_count=3)
HALF = "32x24 pixels and not the files' 64x48"


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Neural 3D Video of eight frames."""
    folder = tmp_path_factory.mktemp("n3v") / "scene"
    builders.n3v_scene(folder, cameras=4, frames=8, layout="images", size=(24, 16))
    return folder


def opened(folder: Path, scene: Path, **settings) -> RunSource:
    """A run of the scene that is read so."""
    run = tiny_moe.expert(folder, scene, "polynomial", model=SimpleNamespace(**settings))
    return open_run(run, "run", iteration=-1, device="cpu", source_path=None, quiet=True)


def told(source: RunSource, protocol=None) -> list[str]:
    protocol = protocol or protocol_of_kind(source.kind)
    return deviations(source, protocol, choose(source, protocol))


def test_the_first_frames_are_the_protocols(tmp_path, clips):
    assert told(opened(tmp_path / "run", clips), N3V) == []
    assert told(opened(tmp_path / "three", clips, duration=3), N3V) == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"start_frame": 2}, "start_frame 2 and not 0"),
        ({"frame_step": 2}, "frame_step 2 and not 1"),
    ],
    ids=str,
)
def test_as_many_other_frames_are_not(tmp_path, clips, settings, said):
    assert told(opened(tmp_path / "run", clips, **settings), N3V) == [said]
    render = find_protocol("render")
    assert told(opened(tmp_path / "any", clips, **settings), render) == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, []),
        ({"duration": 4}, []),
        ({"duration": 2}, ["2 held-out pictures and not the scene's 4"]),
        ({"start_frame": 1}, ["3 held-out pictures and not the scene's 4"]),
        ({"frame_step": 2}, ["2 held-out pictures and not the scene's 4"]),
        ({"resolution": 2}, [HALF]),
        ({"test_cameras": ["cam02"]}, []),
        ({"test_cameras": ["cam01"]}, ["cameras cam01 and not cam02"]),
        ({"duration": 2, "resolution": 2}, ["2 held-out pictures and not the scene's 4", HALF]),
    ],
    ids=str,
)
def test_what_the_files_hold_out_is_the_protocols_at_their_size(tmp_path, settings, said):
    builders.panoptic_scene(tmp_path / "scene", cameras=4, frames=4)
    assert told(opened(tmp_path / "run", tmp_path / "scene", **settings)) == said


def test_a_part_of_a_scene_that_is_not_whole_is_not_the_protocols(tmp_path):
    builders.panoptic_scene(tmp_path / "scene", cameras=4, frames=4)
    (tmp_path / "scene" / "ims" / "2" / "000003.png").unlink()
    source = opened(tmp_path / "run", tmp_path / "scene", duration=3)
    assert told(source) == ["held-out pictures of a part of the scene"]


def test_pictures_of_another_folder_are_not_the_protocols(tmp_path):
    scene = tmp_path / "scene"
    builders.hypernerf_scene(scene)
    assert told(opened(tmp_path / "run", scene)) == []
    (scene / "rgb" / "2x").rename(scene / "rgb" / "4x")
    assert told(opened(tmp_path / "other", scene)) == ["pictures of rgb/4x and not rgb/2x"]


def rendered(folder: Path, scene: Path, *flags: str) -> Path:
    """A mixture of two experts whose training and test views are rendered."""
    if not folder.exists():
        tiny_moe.moe(folder, scene)
    flags = ("--no-lpips", "--skip_video", "--skip_experts", "--skip_gates", *flags)
    render_moe.main(["-m", str(folder), *tiny_moe.COMMON, *flags])
    return folder


def set_of(run: Path, name: str) -> FolderSource:
    return open_rendered(run / name / "ours_4", name, "cpu")


def test_a_rendered_training_set_is_not_held_out(tmp_path):
    run = rendered(tmp_path / "moe", tiny_moe.scene_folder(tmp_path / "scene"))
    protocol = replace(find_protocol("render"), eight_bit=True)
    assert told(set_of(run, "test"), protocol) == []
    assert told(set_of(run, "train"), protocol) == [
        "views of the train set, which are not held out"
    ]


def test_a_set_that_some_experts_drew_says_which(tmp_path):
    run = rendered(tmp_path / "moe", tiny_moe.scene_folder(tmp_path / "scene"), "--skip_train")
    whole = set_of(run, "test")
    assert whole.notes == [] and whole.facts["experts_used"] == ["hexplane", "polynomial"]
    rendered(run, tmp_path / "scene", "--skip_train", "--experts", "polynomial")
    assert set_of(run, "test").notes == [
        "rendered with the experts polynomial, of hexplane, polynomial"
    ]
    (run / "moe.json").unlink()
    assert set_of(run, "test").notes == ["rendered with the experts polynomial"]


def test_a_mixture_is_on_a_device_that_all_of_its_experts_can_use(tmp_path, monkeypatch):
    def choose(name: str, config, *, quiet: bool = False) -> str:
        return "meta" if config.hidden.experts == ["hexplane"] else "cpu"

    for module in (opening, files):
        monkeypatch.setattr(module, "choose_device", choose)
    made = tiny_moe.moe(tmp_path / "moe", tiny_moe.scene_folder(tmp_path / "scene"))
    how = {"iteration": -1, "device": "auto", "source_path": None, "quiet": True}
    assert open_run(made, "moe", **how).device.type == "cpu"
