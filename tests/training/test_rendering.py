"""What rendering leaves on disk, from a fake model whose every pixel is off by 0.1 (20 dB)."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_scene import FakeModel, GreyStore, clip, fake_render, fake_scene
from PIL import Image

import tiny
from arguments_MoDE.cli import save_config
from arguments_MoDE.config import Config
from gaussian_renderer import render
from training import evaluation, rendering
from training.checkpoint import Run, load_run, model_folder
from training.rendering import ImageWriter, collect, is_rendered, render_sets, table
from utils.errors import UserError
from utils.lpips import LpipsUnavailable
from utils.video import probe_video

STRICT = {"parse_constant": lambda text: pytest.fail(f"{text} is not JSON")}


@pytest.fixture
def run(tmp_path, monkeypatch) -> Run:
    monkeypatch.setattr(evaluation, "render", fake_render)
    folder = model_folder(tmp_path, 30)
    folder.mkdir(parents=True)
    (folder / "point_cloud.ply").write_bytes(b"x" * 1000)
    (folder / "manifest.json").write_bytes(b"y" * 24)
    return Run(Config(), FakeModel(), 30, tmp_path, 12.5)


def _go(run: Run, scene=None, **options):
    return render_sets(run, scene or fake_scene(), lpips=(), quiet=True, **options)


def _load(path: Path) -> dict:
    return json.loads(path.read_text(), **STRICT)


def test_a_test_set_leaves_images_videos_and_metrics(run):
    _go(run, sets=("test",))
    out = run.model_path / "test" / "ours_30"
    assert sorted(p.name for p in (out / "renders").iterdir()) == [f"{i:05d}.png" for i in range(4)]
    truth = np.array(Image.open(out / "gt" / "00002.png"))
    render = np.array(Image.open(out / "renders" / "00002.png"))
    assert truth.shape == (36, 48, 3) and (truth == 48).all() and (render == 48 + 26).all()
    for name in ("video_rgb.mp4", "video_gt.mp4"):
        info = probe_video(out / name)
        assert (info.width, info.height, info.frames, info.fps) == (48, 36, 4, 30)
    assert not (run.model_path / "train").exists()


def test_metrics_are_strict_json_and_end_with_the_mean_psnr(run):
    result = _go(run, sets=("test",))["test"]
    metrics = _load(run.model_path / "test" / "ours_30" / "metrics.json")
    assert metrics == json.loads(json.dumps(result))
    assert list(metrics)[-1] == "psnr"
    assert metrics["psnr"] == pytest.approx(20, abs=1e-3)
    assert metrics["psnr_8bit"] == pytest.approx(-20 * math.log10(26 / 255), abs=1e-3)
    assert 0 < metrics["ssim"] < 1 and 0 < metrics["ssim_8bit"] < 1
    assert metrics["lpips"] is None and metrics["lpips_reason"].startswith("not available because")
    assert metrics["gaussians"] == 7 and metrics["bytes_on_disk"] == 1024
    assert metrics["training_seconds"] == 12.5 and metrics["data_range"] == 1.0
    assert metrics["fps"] > 0 and metrics["views"] == 4
    assert list(metrics["per_view"]) == [f"cam00/{i:04d}" for i in range(4)]
    assert all(key == key.lower() for key in metrics)


def test_means_are_over_all_views_and_over_those_of_a_camera(run, monkeypatch):
    def each_its_own(cameras, splats, *rest):
        output = fake_render(cameras, splats, *rest)
        for image, camera in zip(output.images, cameras, strict=True):
            image += 0.1 * int(camera.name[-1]) + splats
        return output

    monkeypatch.setattr(evaluation, "render", each_its_own)
    metrics = _go(run, fake_scene(test_cameras=2), sets=("test",))["test"]
    for key in ("psnr", "ssim", "psnr_8bit", "ssim_8bit"):
        values = [row[key] for row in metrics["per_view"].values()]
        assert len(set(values)) == 8
        assert metrics[key] == pytest.approx(np.mean(values))
        assert metrics["per_camera"]["cam01"][key] == pytest.approx(np.mean(values[4:]))


def test_the_model_is_asked_as_for_a_camera_never_seen(run):
    _go(run, sets=("train", "test"))
    asked = run.model.asked
    assert {row[1:] for row in asked} == {(None, 30, "fine")}
    assert {row[0] for row in asked} == {0, 1 / 3, 2 / 3, 1}


def test_a_camera_path_has_speed_and_a_video_but_no_quality(run):
    _go(run, sets=("video",))
    out = run.model_path / "video" / "ours_30"
    metrics = _load(out / "metrics.json")
    assert metrics["fps"] > 0 and "psnr" not in metrics and "per_view" not in metrics
    assert probe_video(out / "video_rgb.mp4").frames == 4
    assert not (out / "video_gt.mp4").exists() and not (out / "gt").exists()


def test_several_cameras_have_a_video_and_means_each(run):
    _go(run, fake_scene(test_cameras=2), sets=("test",))
    out = run.model_path / "test" / "ours_30"
    assert probe_video(out / "video_rgb.mp4").frames == 8
    assert probe_video(out / "video_rgb_cam01.mp4").frames == 4
    assert probe_video(out / "video_gt_cam00.mp4").frames == 4
    assert list(_load(out / "metrics.json")["per_camera"]) == ["cam00", "cam01"]


def test_cameras_of_different_sizes_have_only_their_own_videos(run):
    scene = fake_scene()
    scene.test += clip("wide", 1, width=60)
    _go(run, scene, sets=("test",))
    out = run.model_path / "test" / "ours_30"
    assert not (out / "video_rgb.mp4").exists()
    assert probe_video(out / "video_rgb_wide.mp4").width == 60


def test_camera_names_cannot_leave_the_folder(run):
    scene = fake_scene()
    scene.test += clip("../../evil", 1)
    _go(run, scene, sets=("test",))
    out = run.model_path / "test" / "ours_30"
    assert (out / "video_rgb_.._.._evil.mp4").is_file()


def test_cameras_of_like_names_have_a_video_each(run):
    scene = fake_scene()
    names = ("cam 1", "cam/1", "cam_1", "cam_1-2")
    for frames, name in enumerate(names, 2):
        scene.test += clip(name, 1, frames)
    _go(run, scene, sets=("test",))
    out = run.model_path / "test" / "ours_30"
    files = ("cam_1-3", "cam_1-4", "cam_1", "cam_1-2")
    assert [probe_video(out / f"video_rgb_{file}.mp4").frames for file in files] == [2, 3, 4, 5]


def test_the_runs_metrics_collect_the_sets_and_prefer_the_test_set(run, monkeypatch):
    _go(run, sets=("train", "video"))
    collected = _load(run.model_path / "metrics.json")
    assert list(collected["sets"]) == ["train", "video"] and list(collected)[-1] == "psnr"
    assert collected["psnr"] == collected["sets"]["train"]["psnr"]
    brighter = evaluation.render

    def worse(cameras, splats, *rest):
        return brighter(cameras, splats + 0.1, *rest)

    monkeypatch.setattr(evaluation, "render", worse)
    _go(run, sets=("test",))
    collected = _load(run.model_path / "metrics.json")
    assert list(collected["sets"]) == ["train", "test", "video"]
    assert collected["psnr"] == collected["sets"]["test"]["psnr"] == pytest.approx(13.98, abs=0.01)
    assert list(collected)[-1] == "psnr" and "per_view" not in collected["sets"]["test"]
    assert collect(run.model_path, 31)["sets"] == {}


def test_a_failure_leaves_the_earlier_result_and_nothing_half_done(run, monkeypatch):
    _go(run, sets=("test",))
    before = (run.model_path / "test" / "ours_30" / "metrics.json").read_text()
    calls = []

    def fails_late(cameras, splats, *rest):
        calls.append(0)
        output = fake_render(cameras, splats, *rest)
        if len(calls) == 9:
            output.images = output.images * math.nan
        return output

    monkeypatch.setattr(evaluation, "render", fails_late)
    with pytest.raises(UserError, match="cam00/0001.*not finite"):
        _go(run, sets=("test",))
    assert (run.model_path / "test" / "ours_30" / "metrics.json").read_text() == before
    assert [p.name for p in (run.model_path / "test").iterdir()] == ["ours_30"]


def test_rendering_again_replaces_the_folder_whole(run):
    _go(run, fake_scene(frames=6), sets=("test",))
    _go(run, sets=("test",))
    renders = run.model_path / "test" / "ours_30" / "renders"
    assert len(list(renders.iterdir())) == 4


def test_a_folder_without_permission_is_not_said_to_lack_space_only(run, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("utils.files.tempfile.mkdtemp", refused)
    with pytest.raises(UserError, match="Permission denied.*give permission there"):
        _go(run, sets=("test",))


def test_a_full_disk_is_a_user_error(run, monkeypatch):
    def full(self, path, **_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match="ours_30 cannot be written .No space left"):
        _go(run, sets=("test",))
    assert list((run.model_path / "test").iterdir()) == []


def test_writers_bound_what_waits_and_report_the_first_error(tmp_path):
    (tmp_path / "file").write_text("")
    pixels = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(OSError), ImageWriter(1) as writer:
        for i in range(50):
            writer.submit(tmp_path / "file" / f"{i}.png", pixels)
    assert len(writer.futures) < 10


def test_empty_sets_are_passed_over(run):
    scene = fake_scene()
    scene.test = []
    assert list(_go(run, scene)) == ["train", "video"]


def test_no_gradient_is_recorded(run, monkeypatch):
    grad = []

    def watched(*arguments):
        grad.append(torch.is_grad_enabled())
        return fake_render(*arguments)

    monkeypatch.setattr(evaluation, "render", watched)
    _go(run, sets=("test",))
    assert grad and not any(grad)


def test_what_is_rendered_already_is_newer_than_the_model_and_whole(run):
    _go(run, sets=("test",))
    assert is_rendered(run.model_path, "test", 30, ())
    assert not is_rendered(run.model_path, "train", 30, ())
    assert not is_rendered(run.model_path, "test", 31, ())
    metrics = run.model_path / "test" / "ours_30" / "metrics.json"
    text = metrics.read_text()
    for damaged in (text[:-9], "[]"):
        metrics.write_text(damaged)
        assert not is_rendered(run.model_path, "test", 30, ())
    metrics.write_text(text)
    later = metrics.stat().st_mtime_ns + 10**9
    os.utime(model_folder(run.model_path, 30) / "manifest.json", ns=(later, later))
    assert not is_rendered(run.model_path, "test", 30, ())


def test_lpips_that_can_be_had_now_is_measured_after_all(run, monkeypatch):
    _go(run, sets=("test", "video"))
    monkeypatch.setattr(evaluation, "load_lpips", _no_weights)
    assert is_rendered(run.model_path, "test", 30, ("alex",))
    monkeypatch.setattr(evaluation, "load_lpips", lambda net, device: torch.nn.Identity())
    assert not is_rendered(run.model_path, "test", 30, ("alex",))
    assert is_rendered(run.model_path, "test", 30, ())
    assert is_rendered(run.model_path, "video", 30, ("alex",))


def _no_weights(net, device):
    raise LpipsUnavailable("not available because there are no weights")


def test_the_table_names_sets_and_reasons(run):
    text = table(_go(run))
    lines = text.splitlines()
    assert lines[0].split()[:3] == ["set", "views", "psnr"]
    assert [line.split()[0] for line in lines[1:4]] == ["train", "test", "video"]
    assert "20.00" in lines[2] and lines[4].startswith("LPIPS not available because")


def _half_masked(self, source: int, frame: int) -> torch.Tensor:
    """The left half counts; nothing does in frame 3."""
    mask = torch.zeros(self.height, self.width, dtype=torch.bool)
    mask[:, : self.width // 2] = frame < 3
    return mask


def test_masked_metrics_say_so_in_every_place(run, monkeypatch):
    monkeypatch.setattr(GreyStore, "mask", _half_masked)
    results = _go(run, sets=("test",))
    record = _load(run.model_path / "test" / "ours_30" / "metrics.json")
    assert record["masked"] is True and list(record)[-1] == "psnr"
    assert record["psnr"] == pytest.approx(20, abs=0.1)
    assert record["per_view"]["cam00/0003"] == {}
    assert _load(run.model_path / "metrics.json")["sets"]["test"]["masked"] is True
    assert "test: masked" in table(results)


def test_a_set_without_a_pixel_that_counts_has_no_metrics_and_is_rendered(run, monkeypatch):
    monkeypatch.setattr(GreyStore, "mask", lambda s, *_: torch.zeros(s.height, s.width) > 0)
    record = _go(run, sets=("test",))["test"]
    assert record["masked"] is True and "psnr" not in record
    assert "psnr" not in _load(run.model_path / "metrics.json")


# ---- several views at once -----------------------------------------------------------------------


def _files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for sub in ("renders", "gt") for p in (folder / sub).iterdir()}


def test_views_rendered_together_leave_the_same_files_and_metrics(run, monkeypatch):
    scene, found = fake_scene(test_cameras=3), []
    for limit in (1, 2, 4):
        monkeypatch.setattr(rendering, "TOGETHER", limit)
        run.model.asked.clear()
        record = _go(run, scene, sets=("test",))["test"]
        assert len(run.model.asked) == 15 + {1: 12, 2: 8, 4: 4}[limit]  # 15: for the speed
        found.append((_files(run.model_path / "test" / "ours_30"), record["per_view"]))
    assert found[0] == found[1] == found[2]
    assert list(found[2][1]) == [view.name for view in scene.test]


def test_the_view_of_a_batch_that_is_not_finite_is_named(run, monkeypatch):
    def fails(cameras, splats, *rest):
        output = fake_render(cameras, splats, *rest)
        if len(cameras) == 2:
            output.images[1, 0, 3, 3] = math.inf
        return output

    monkeypatch.setattr(evaluation, "render", fails)
    with pytest.raises(UserError, match="view cam01/0000: .*not finite"):
        _go(run, fake_scene(test_cameras=2), sets=("test",))
    assert list((run.model_path / "test").iterdir()) == []


# ---- on a GPU ------------------------------------------------------------------------------------


def _tiny_run(folder: Path, device: str) -> tuple[Run, dict]:
    """A saved run of the tiny scene, rendered on ``device``: the run, and the training set's."""
    trainer = tiny.trainer(folder, tiny.config(coarse_iterations=2, iterations=4))
    save_config(trainer.config, folder / "config.json")
    trainer.train()
    trainer.report.close()
    loaded = load_run(folder, device=device)
    results = render_sets(
        loaded, trainer.scene, sets=("train",), device=device, lpips=(), quiet=True
    )
    return loaded, results["train"]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_real_run_is_rendered_and_measured_alike_wherever_it_is(tmp_path, device):
    run, record = _tiny_run(tmp_path, device)
    scene = tiny.scene()
    for index, view in enumerate(scene.train):
        with torch.no_grad():
            model = run.model.cpu()
            splats = model.deform(view.time, iteration=4)
            degree = model.gaussians.active_sh_degree
            image = render([view.camera], splats, torch.ones(3), degree).images[0]
        path = tmp_path / "train" / "ours_4" / "renders" / f"{index:05d}.png"
        pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1).int()
        assert (pixels - evaluation.to_8bit(image).int()).abs().max() <= 1
        row = evaluation.compare(image, evaluation.target_of(view, "cpu"))
        assert record["per_view"][view.name] == pytest.approx(row, abs=1e-3)
