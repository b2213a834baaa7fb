"""`evaluate.py` as a user runs it: the numbers of rendering, reports, ways to get it wrong."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import evaluate
import render_emb
import render_hash
from arguments_MoDE.cli import parse_training, save_config
from evaluation import command, report
from evaluation.protocols import protocol_table
from scene import load_scene
from training import evaluation
from training.checkpoint import model_folder, save_model
from training.launch import build_model
from utils.errors import cli
from utils.lpips import NETS

SMALL = ["-r", "64", "-d", "3", "--max_points", "200", "--quiet"]
TINY = ["--kplanes_config", "resolution=[8, 8, 8, 4]", "--multires", "1", "--net_width", "8"]
GRIDS = ["--experts", "hexplane", "hash", "--grid_args", "canonical_num_levels=2",
         "deform_num_levels=2", "canonical_log2_hashmap_size=8",
         "deform_log2_hashmap_size=8"]  # fmt: skip
QUICK = ["--device", "cpu", "--lpips", "none", "--no-plots", "--quiet"]


def make_run(source: Path, out: Path, *flags: str) -> Path:
    """A run folder as training leaves it, with an untrained model."""
    arguments = parse_training(["-s", str(source), "-m", str(out), *SMALL, *flags], "train", "")
    model = build_model(load_scene(arguments.config.model), arguments.config)
    out.mkdir(parents=True)
    save_config(arguments.config, out / "config.json")
    for iteration in (20, 100):
        save_model(model, out, iteration, training_seconds=1.5)
    return out


@pytest.fixture(scope="module")
def kept(source, tmp_path_factory) -> Path:
    return make_run(source, tmp_path_factory.mktemp("run") / "run", *TINY)


@pytest.fixture
def run(kept, tmp_path) -> Path:
    """A run that the test may damage."""
    return Path(shutil.copytree(kept, tmp_path / "run"))


@pytest.fixture
def pictures(tmp_path) -> tuple[Path, Path]:
    """Two folders of three pictures of the same names, an odd moving square apart."""
    rng = np.random.default_rng(0)
    for name in ("renders", "truth"):
        (tmp_path / name).mkdir()
        for k in range(3):
            pixels = rng.integers(0, 30, (24, 32, 3)).astype(np.uint8)
            pixels[5:15, 5 + 4 * k : 15 + 4 * k] = 200
            Image.fromarray(pixels).save(tmp_path / name / f"{k:03d}.png")
    return tmp_path / "renders", tmp_path / "truth"


def go(*words: str | Path) -> int:
    return evaluate.main([*QUICK, *map(str, words)])


def fails(capsys, tmp_path: Path, *words: str | Path, out: Path | None = None) -> str:
    """Expects exit code 2, one line on stderr and nothing written; returns the line.

    Notes of the scene's reader, which may come before, are not counted.
    """
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        cli(lambda _: go(*words, "--out", out or tmp_path / "out"))
    assert stop.value.code == 2
    shown = capsys.readouterr()
    lines = [line for line in shown.err.strip().splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    assert sorted(tmp_path.rglob("*")) == before and shown.out == ""
    return lines[0]


def sources(out: Path) -> list[dict]:
    text = (out / "evaluation.json").read_text()
    return json.loads(text, parse_constant=pytest.fail)["sources"]


# ---- the numbers of rendering -------------------------------------------------------------------


@pytest.mark.parametrize("program", [render_emb, render_hash], ids=lambda p: p.__name__)
def test_numbers_are_those_of_rendering_bit_by_bit(program, source, tmp_path, monkeypatch):
    some = dict.fromkeys(NETS, 2 * 64 * 48)  # two of three views are compared by LPIPS
    monkeypatch.setattr(evaluation, "LPIPS_CPU_PIXELS", some)
    run = make_run(source, tmp_path / "run", *TINY, *(GRIDS if program is render_hash else []))
    program.main(
        ["--model_path", str(run), "--skip_train", "--skip_video", "--device", "cpu", "--quiet"]
    )
    rendered = json.loads((run / "test" / "ours_100" / "metrics.json").read_text())
    evaluate.main([str(run), "--out", str(tmp_path / "a"), *QUICK, "--lpips", "auto"])
    pictures = run / "test" / "ours_100"
    evaluate.main([str(pictures), "--out", str(tmp_path / "b"), *QUICK, "--lpips", "auto"])
    ours, theirs = sources(tmp_path / "a")[0], sources(tmp_path / "b")[0]
    assert list(ours["per_view"]) == list(theirs["per_view"]) == list(rendered["per_view"])
    for view, row in rendered["per_view"].items():
        assert {key: ours["per_view"][view][key] for key in row} == row
        eight_bit = {key: value for key, value in row.items() if key.endswith("_8bit")}
        assert len(eight_bit) == 2
        assert {key: theirs["per_view"][view][key] for key in eight_bit} == eight_bit
    for key in ("psnr", "ssim", "psnr_8bit", "ssim_8bit"):
        assert ours["means"][key] == rendered[key]
    if "lpips_alex_views" in rendered:
        assert ours["means"]["lpips_alex"] == rendered["lpips_alex"]
        assert ours["counts"]["lpips_alex"] == rendered["lpips_alex_views"] == 2
    assert ours["iteration"] == theirs["iteration"] == 100
    assert ours["means"]["psnr_moving"] == pytest.approx(theirs["means"]["psnr_moving"], abs=0.05)


def test_the_iteration_and_the_scenes_place_can_be_given(run, source, tmp_path, capsys):
    settings = json.loads((run / "config.json").read_text())
    settings["ModelParams"]["source_path"] = str(tmp_path / "gone")
    (run / "config.json").write_text(json.dumps(settings))
    assert "gone" in fails(capsys, tmp_path, run)
    assert go(run, "-s", source, "--iteration", "20", "--out", tmp_path / "out") == 0
    assert sources(tmp_path / "out")[0]["iteration"] == 20


def test_lpips_of_every_view_can_be_had(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "LPIPS_CPU_PIXELS", dict.fromkeys(NETS, 1))
    words = [str(pictures[0]), "--gt", str(pictures[1]), *QUICK, "--out", str(tmp_path / "out")]
    for which, views in (("auto", 2), ("all", 3)):
        evaluate.main([*words, "--lpips", which])
        counts = sources(tmp_path / "out")[0]["counts"]
        if "lpips_vgg_8bit" not in counts:
            pytest.skip("the weights of LPIPS are not there")
        assert counts["lpips_vgg_8bit"] == views


def test_transparent_pictures_are_laid_over_the_background(pictures, tmp_path):
    for folder, colour in zip(pictures, ((0, 0, 0, 0), (0, 0, 0, 255)), strict=True):
        for path in folder.iterdir():
            Image.new("RGBA", (32, 24), colour).save(path)
    words = (pictures[0], "--gt", pictures[1], "--out", tmp_path / "out")
    for background, psnr in (("white", 0), ("black", 100)):
        go(*words, "--background", background)
        assert sources(tmp_path / "out")[0]["psnr"] == psnr


# ---- reports ------------------------------------------------------------------------------------


def test_two_runs_are_compared_in_one_report(run, source, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    other = make_run(source, tmp_path / "other", *TINY, "--max_points", "50")
    out = tmp_path / "out"
    words = [str(run), str(other), "--names", "many", "few <b>", "--out", str(out), "--worst", "2"]
    assert evaluate.main([*words, *QUICK, "--plots"]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] == str(out / "report.html") and "many" in shown
    assert "not as protocol n3v has it: 3 frames of a camera and not 300" in shown
    page, text = (out / "report.html").read_text(), (out / "report.md").read_text()
    assert "few &lt;b&gt;" in page and "few <b>" not in page and "few \\<b>" in text
    files = {str(p.relative_to(out)) for p in out.rglob("*.png")}
    assert {"worst/00_00.png", "worst/01_01.png", "worst/all_01.png", "plots/psnr.png"} <= files
    for name in files:
        assert page.count(f'src="{name}"') == 1 and f"({name})" in text, name
    assert all(Image.open(out / name).size[0] > 100 for name in files)
    rows = list(csv.DictReader((out / "views.csv").open()))
    assert (
        len(rows) == 6
        and float(rows[0]["psnr"]) == sources(out)[0]["per_view"][rows[0]["view"]]["psnr"]
    )
    best = max(sources(out), key=lambda s: s["psnr"])
    assert f"| {best['label'].replace('<', chr(92) + '<')} | 3 | {best['psnr']:.2f} ★ |" in text


def test_the_worst_view_is_shown_as_truth_image_and_error(pictures, tmp_path):
    renders, truth = pictures
    Image.new("RGB", (32, 24), (60, 0, 0)).save(renders / "001.png")
    Image.new("RGB", (32, 24), (50, 0, 40)).save(truth / "001.png")
    go(renders, "--gt", truth, "--worst", "3", "--out", tmp_path / "out")
    found = sources(tmp_path / "out")[0]["per_view"]
    worst = sorted(found, key=lambda name: found[name]["psnr_8bit"])
    strip = np.asarray(Image.open(tmp_path / "out" / "worst" / f"00_{worst.index('001'):02d}.png"))
    assert strip.shape[:2] == (24 * 5 + 20, 3 * 160 + 8)
    middle = [tuple(strip[80, x].tolist()) for x in (80, 244, 408)]
    assert middle == [(50, 0, 40), (60, 0, 0), (40, 0, 160)]


def test_an_earlier_report_is_replaced_whole(pictures, tmp_path):
    out = tmp_path / "out"
    go(pictures[0], "--gt", pictures[1], "--worst", "3", "--out", out)
    assert (out / "worst" / "00_02.png").is_file()
    go(pictures[0], "--gt", pictures[1], "--worst", "1", "--out", out)
    assert [p.name for p in (out / "worst").iterdir()] == ["00_00.png"]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_folders_inside_are_cameras_and_order_may_pair_them(pictures, tmp_path):
    renders, truth = pictures
    for folder in pictures:
        for camera in ("left", "right"):
            shutil.copytree(folder, tmp_path / "rig" / folder.name / camera)
    for path in sorted((tmp_path / "rig" / "renders" / "left").iterdir()):
        path.rename(path.with_name(f"frame{path.name}"))
    rig = tmp_path / "rig"
    go(rig / "renders", "--gt", rig / "truth", "--by_order", "--out", tmp_path / "out")
    found = sources(tmp_path / "out")[0]
    assert list(found["per_camera"]) == ["left", "right"]
    assert found["per_camera"]["left"] == found["per_camera"]["right"]
    assert found["counts"]["flicker"] == 4
    assert "Cameras" in (tmp_path / "out" / "report.md").read_text()


def test_no_worst_views_and_no_time(pictures, tmp_path):
    words = (pictures[0], "--gt", pictures[1], "--worst", "0", "--no-temporal")
    assert go(*words, "--out", tmp_path / "out") == 0
    assert not (tmp_path / "out" / "worst").exists()
    assert "psnr_moving" not in sources(tmp_path / "out")[0]["means"]


def test_protocols_are_listed(capsys):
    assert evaluate.main(["--list_protocols"]) == 0
    assert capsys.readouterr().out == protocol_table()


def test_help_explains_itself(root):
    done = subprocess.run(
        [sys.executable, "evaluate.py", "--help"], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for word in ("SOURCE", "--gt", "--protocol", "--strict", "--temporal", "--out"):
        assert word in done.stdout


# ---- every way to get it wrong ------------------------------------------------------------------


def test_nothing_to_evaluate_and_nowhere_to_write(capsys, tmp_path, kept):
    assert "nothing to evaluate" in fails(capsys, tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli(lambda _: go(kept))
    assert stop.value.code == 2 and "--out" in capsys.readouterr().err


def test_sources_that_are_none(capsys, tmp_path, pictures):
    assert "nowhere: no such folder" in fails(capsys, tmp_path, tmp_path / "nowhere")
    assert "give --gt" in fails(capsys, tmp_path, pictures[0])
    (tmp_path / "file").write_text("")
    assert "file: no such folder" in fails(capsys, tmp_path, tmp_path / "file")
    (tmp_path / "empty").mkdir()
    words = (tmp_path / "empty", "--gt", pictures[1])
    assert "empty: holds no images" in fails(capsys, tmp_path, *words)
    words = (pictures[0], "--gt", tmp_path / "gone")
    assert "gone: no such folder" in fails(capsys, tmp_path, *words)


def test_a_run_without_the_iteration_or_with_damage(capsys, tmp_path, run):
    assert "20, 100" in fails(capsys, tmp_path, run, "--iteration", "30")
    path = model_folder(run, 100) / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    assert "damaged" in fails(capsys, tmp_path, run)


def test_ground_truth_is_not_asked_for_twice(capsys, tmp_path, run, pictures):
    assert "--gt is for folders" in fails(capsys, tmp_path, run, "--gt", pictures[1])


def test_pictures_that_do_not_pair(capsys, tmp_path, pictures):
    renders, truth = pictures
    (renders / "002.png").rename(renders / "003.png")
    line = fails(capsys, tmp_path, renders, "--gt", truth)
    assert "003 has no partner" in line and "--by_order" in line
    (renders / "003.png").unlink()
    line = fails(capsys, tmp_path, renders, "--gt", truth)
    assert "holds 2 pictures" in line and "002 has no partner" in line
    Image.new("RGB", (32, 24)).save(renders / "002.jpg")
    Image.new("RGB", (33, 24)).save(truth / "002.png")
    line = fails(capsys, tmp_path, renders, "--gt", truth)
    assert "32x24" in line and "33x24" in line
    shutil.copy(truth / "001.png", truth / "001.jpg")
    assert "have one name" in fails(capsys, tmp_path, renders, "--gt", truth)


@pytest.mark.parametrize("which", [0, 1])
def test_a_damaged_picture(capsys, tmp_path, pictures, which):
    path = pictures[which] / "001.png"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    assert "001.png" in fails(capsys, tmp_path, pictures[0], "--gt", pictures[1])


def test_pictures_too_small_for_the_window(capsys, tmp_path, pictures):
    for folder in pictures:
        for path in folder.iterdir():
            Image.new("RGB", (32, 10)).save(path)
    line = fails(capsys, tmp_path, pictures[0], "--gt", pictures[1])
    assert "32x10" in line and "11x11 window" in line


def test_no_order_in_time(capsys, tmp_path, pictures):
    for folder in pictures:
        for path, name in zip(sorted(folder.iterdir()), ("red", "green", "blue"), strict=True):
            path.rename(folder / f"{name}.png")
    words = (pictures[0], "--gt", pictures[1])
    assert "no order in time" in fails(capsys, tmp_path, *words, "--temporal")
    assert go(*words, "--out", tmp_path / "out") == 0
    assert "no order in time" in capsys.readouterr().out


def test_words_that_there_are_not(capsys, tmp_path, pictures):
    words = (pictures[0], "--gt", pictures[1])
    assert "did you mean 'n3v'" in fails(capsys, tmp_path, *words, "--protocol", "n3d")
    assert "did you mean --protocol?" in fails(capsys, tmp_path, *words, "--protocoll", "n3v")
    assert "--crop" in fails(capsys, tmp_path, *words, "--crop", "x")
    for flag in ("crop", "worst", "threads"):
        assert f"--{flag} is -2" in fails(capsys, tmp_path, *words, f"--{flag}", "-2")
    assert "--threads is 2000" in fails(capsys, tmp_path, *words, "--threads", "2000")
    assert "--names has 2" in fails(capsys, tmp_path, *words, "--names", "a", "b")
    assert "named twice" in fails(capsys, tmp_path, pictures[0], *words)
    line = fails(capsys, tmp_path, pictures[0], *words, "--names", "a", "a")
    assert "two sources have one name" in line


def test_strict_refuses_what_deviates(capsys, tmp_path, run):
    line = fails(capsys, tmp_path, run, "--strict")
    assert "3 frames" in line and "64x48 pixels" in line
    assert go(run, "--strict", "--protocol", "render", "--out", tmp_path / "out") == 0


def test_runs_with_other_views_are_not_compared(capsys, tmp_path, run, source):
    other = make_run(source, tmp_path / "other", *TINY, "-d", "2")
    line = fails(capsys, tmp_path, run, other)
    assert "different test views: cam00/0002 is 64x48 and missing" in line
    other = make_run(source, tmp_path / "third", *TINY, "-r", "32")
    assert "cam00/0000 is 64x48 and 32x24" in fails(capsys, tmp_path, run, other)


@pytest.mark.parametrize("flags", [["--start_frame", "1"], ["--frame_step", "2"]], ids=str)
def test_runs_of_other_frames_are_not_compared(capsys, tmp_path, run, source, flags):
    other = make_run(source, tmp_path / "other", *TINY, *flags)
    line = fails(capsys, tmp_path, run, other)
    name = "cam00/0000" if "--start_frame" in flags else "cam00/0001"
    assert f"run and other have different ground truth: {name} is of another frame" in line
    words = ["--skip_train", "--skip_video", "--no-lpips", "--quiet", "--device", "cpu"]
    for path in (run, other):
        render_emb.main(["--model_path", str(path), *words])
    capsys.readouterr()
    rendered = [path / "test" / "ours_100" for path in (run, other)]
    assert "different ground truth" in fails(capsys, tmp_path, *rendered)
    assert go(run, rendered[0], "--out", tmp_path / "out") == 0


def test_folders_that_are_not_ours_to_replace(capsys, tmp_path, pictures, run):
    words = (pictures[0], "--gt", pictures[1])
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("")
    assert "thesis.tex" in fails(capsys, tmp_path, *words, out=foreign)
    (foreign / "thesis.tex").unlink()
    (foreign / "evaluation.json").write_text("{}")
    assert "evaluation.json" in fails(capsys, tmp_path, *words, out=foreign)
    (tmp_path / "file").write_text("")
    assert "is a file" in fails(capsys, tmp_path, *words, out=tmp_path / "file" / "out")
    for out in (*pictures, tmp_path):
        assert "is evaluated" in fails(capsys, tmp_path, *words, out=out)
    assert "among the pictures" in fails(capsys, tmp_path, *words, out=pictures[1] / "out")
    assert "is evaluated" in fails(capsys, tmp_path, run, out=run)
    go(*words, "--out", tmp_path / "out")
    (tmp_path / "out" / "mine.txt").write_text("")
    capsys.readouterr()
    assert "mine.txt" in fails(capsys, tmp_path, *words)


def test_what_rendering_left_must_be_whole_and_without_masks(capsys, tmp_path, run):
    words = ["--model_path", str(run), "--skip_train", "--skip_video", "--no-lpips", "--quiet"]
    render_emb.main([*words, "--device", "cpu"])
    left = run / "test" / "ours_100"
    capsys.readouterr()
    record = json.loads((left / "metrics.json").read_text())
    for spoilt, said in (
        ("{", "not readable"),
        ("[]", "holds no metrics"),
        (json.dumps({**record, "masked": True}), "measured with masks"),
        (json.dumps({**record, "per_view": {}}), "does not list its 3 pictures"),
    ):
        (left / "metrics.json").write_text(spoilt)
        assert said in fails(capsys, tmp_path, left)
    (left / "metrics.json").write_text(json.dumps(record))
    assert "leave out --gt" in fails(capsys, tmp_path, left, "--gt", left / "gt")
    (left / "gt" / "00001.png").unlink()
    assert "00001 has no partner" in fails(capsys, tmp_path, left)


def test_a_failing_write_leaves_nothing(capsys, tmp_path, pictures, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "report.md")

    monkeypatch.setattr(report, "write_json", full)
    line = fails(capsys, tmp_path, pictures[0], "--gt", pictures[1])
    assert "No space left" in line


def test_without_matplotlib_one_line_says_so_before_anything_is_read(
    capsys, tmp_path, pictures, monkeypatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(command, "_open", lambda _: pytest.fail("read"))
    line = fails(capsys, tmp_path, pictures[0], "--gt", pictures[1], "--plots")
    assert "requirements-evaluate.txt" in line
