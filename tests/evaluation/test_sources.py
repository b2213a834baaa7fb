"""Runs as sources: which clips have an order in time, in what order they come, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_scene import ERROR, FakeModel, fake_render, fake_scene

from arguments_MoDE.config import Config
from evaluation.sources import RunSource
from training import evaluation
from training.checkpoint import Run
from utils.errors import UserError


@pytest.fixture
def source(monkeypatch) -> RunSource:
    """Two cameras of four frames."""
    monkeypatch.setattr(evaluation, "render", fake_render)
    return RunSource("run", Run(Config(), FakeModel(), 30, Path("run"), 1.0), fake_scene(2))


def test_cameras_that_stand_still_have_clips(source):
    assert [item.clip for item in source.items] == ["cam00"] * 4 + ["cam01"] * 4
    assert source.items[0].size == (48, 36) and source.items[5].name == "cam01/0001"


def test_a_camera_that_moves_has_none(source):
    view = source.scene.test[2]
    moved = view.camera.world_to_camera.clone()
    moved[0, 3] += 0.1
    source.scene.test[2] = replace(view, camera=replace(view.camera, world_to_camera=moved))
    again = RunSource("run", source.run, source.scene)
    assert [item.clip for item in again.items] == [None] * 4 + ["cam01"] * 4


def test_two_pictures_of_one_moment_have_no_order(source):
    source.scene.test[2] = replace(source.scene.test[2], time=source.scene.test[1].time)
    again = RunSource("run", source.run, source.scene)
    assert [item.clip for item in again.items] == [None] * 4 + ["cam01"] * 4


def test_every_clip_comes_in_order_of_time_whatever_the_order_of_views(source):
    source.scene.test.reverse()
    again = RunSource("run", source.run, source.scene)
    found = list(again.images(range(8)))
    assert sorted(index for index, _ in found) == list(range(8))
    moments = [again.items[index].moment for index, _ in found]
    assert moments == sorted(moments)
    for index, image in found:
        grey = again.target(index).float().mean() / 255 + ERROR
        assert image.mean() == pytest.approx(grey.item(), abs=1e-6)


def test_what_is_not_finite_is_refused(source, monkeypatch):
    def broken(*arguments):
        result = fake_render(*arguments)
        result.images[0, 0, 3, 5] = torch.nan
        return result

    monkeypatch.setattr(evaluation, "render", broken)
    with pytest.raises(UserError, match="cam00/0000: the model renders values that are not finite"):
        list(source.images(range(8)))
