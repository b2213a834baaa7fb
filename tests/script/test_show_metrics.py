"""The table of metrics: last iteration, several runs, and faults that a user can cause."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from script import show_metrics
from utils.errors import UserError


def write_run(run: Path, iteration: int, **metrics: object) -> None:
    folder = run / "test" / f"ours_{iteration}"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "video_rgb.mp4").touch()


def test_last_iteration_is_shown_by_number_and_not_by_spelling(tmp_path: Path, capsys):
    write_run(tmp_path, 900, psnr=20.0)
    write_run(tmp_path, 3000, psnr=30.126, views=[1, 2])
    assert show_metrics.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "30.13" in out and "20.0" not in out and "views" not in out
    assert str(tmp_path / "test" / "ours_3000" / "video_rgb.mp4") in out
    assert "ours_900" not in out


def test_asked_iteration_is_shown(tmp_path: Path, capsys):
    write_run(tmp_path, 900, psnr=20.0)
    write_run(tmp_path, 3000, psnr=30.0)
    show_metrics.main([str(tmp_path), "--iteration", "900"])
    assert "20.00" in capsys.readouterr().out


def test_runs_stand_side_by_side_and_gaps_are_marked(tmp_path: Path, capsys):
    write_run(tmp_path / "a", 1, psnr=31.0, lpips_alex=0.0712)
    write_run(tmp_path / "b", 1, psnr=25.0)
    show_metrics.main([str(tmp_path / "a"), str(tmp_path / "b")])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["psnr", "31.00", "25.00"] in rows
    assert ["lpips_alex", "0.0712", "-"] in rows


def test_long_texts_stand_below_the_table(tmp_path: Path, capsys):
    reason = "not available because no weights were found on this machine"
    write_run(tmp_path / "a", 1, lpips_reason=reason, psnr=31.0)
    write_run(tmp_path / "b", 1, lpips_reason=reason, psnr=25.0)
    show_metrics.main([str(tmp_path / "a"), str(tmp_path / "b")])
    lines = capsys.readouterr().out.splitlines()
    assert lines.count(f"lpips_reason: {reason}") == 1
    assert lines.index(f"lpips_reason: {reason}") > [row.split()[:1] for row in lines].index(
        ["psnr"]
    )


def test_videos_of_single_cameras_are_not_listed(tmp_path: Path, capsys):
    write_run(tmp_path, 1, psnr=31.0)
    (tmp_path / "test" / "ours_1" / "video_rgb_cam03.mp4").touch()
    show_metrics.main([str(tmp_path)])
    out = capsys.readouterr().out
    assert "video_rgb.mp4" in out and "cam03" not in out


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (12345, "12,345"), (1234.6, "1,235"), (0.91234, "0.9123")]
)
def test_cells(value, text):
    assert show_metrics.show(value) == text


def test_run_without_renders_says_what_to_run(tmp_path: Path):
    with pytest.raises(UserError, match="nothing of the test set.*render_emb.py"):
        show_metrics.main([str(tmp_path)])
    (tmp_path / "moe.json").touch()
    with pytest.raises(UserError, match="nothing of the test set.*render_moe.py"):
        show_metrics.main([str(tmp_path)])


def test_run_that_is_not_there_is_said_to_be_missing(tmp_path: Path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        show_metrics.main([str(tmp_path / "nowhere")])


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_damaged_metrics_file_is_named(tmp_path: Path, text: str):
    write_run(tmp_path, 1, psnr=1.0)
    (tmp_path / "test" / "ours_1" / "metrics.json").write_text(text)
    with pytest.raises(UserError, match=r"metrics\.json.*render the run again"):
        show_metrics.main([str(tmp_path)])
