"""All CPU benchmarks in one go: what is run, what a file holds, and that a failure is one."""

from __future__ import annotations

import json
import os

import pytest

from benchmarks import compare, cpu_all

TINY = ["--quick", "--threads", "1"]


@pytest.fixture
def fast_table(monkeypatch):
    """Two that print at once, and one that fails."""
    table = {
        "good": cpu_all.Benchmark("scenes.py --count 50 --size 32x32", ""),
        "garden": cpu_all.Benchmark("scenes.py", "", garden=True),
        "bad": cpu_all.Benchmark("ssim.py --no-such-flag", ""),
    }
    monkeypatch.setattr(cpu_all, "BENCHMARKS", table)
    monkeypatch.setattr(cpu_all, "arguments_of", lambda name, options: table[name].command.split())


def test_a_file_says_what_was_run_and_on_what(tmp_path, capsys):
    flags = [*TINY, "--only", "ssim", "hexplane", "--out"]
    for side in ("before", "after"):
        assert cpu_all.main([*flags, str(tmp_path / side)]) == 0
    said = capsys.readouterr().out
    assert "[1/2] ssim" in said and "[2/2] hexplane" in said
    assert sorted(os.listdir(tmp_path / "after")) == ["hexplane.json", "ssim.json"]
    found = json.loads((tmp_path / "after" / "ssim.json").read_text())
    assert (found["name"], found["threads"], found["quick"]) == ("ssim", 1, True)
    assert found["command"].startswith("ssim.py --threads 1 --width 64")
    assert found["machine"]["cpu"] and found["versions"]["torch"]
    assert found["result"]["native_ms"] > 0 and found["result"]["native_of_light"] > 0

    assert compare.main([str(tmp_path / "before"), str(tmp_path / "after")]) == 0
    table = capsys.readouterr().out
    assert "ssim.json: result/native_ms" in table and "load" not in table


def test_without_the_garden_its_benchmarks_are_left_out_aloud(fast_table, tmp_path, capsys):
    assert cpu_all.main([*TINY, "--only", "good", "garden", "--out", str(tmp_path)]) == 0
    assert "garden: left out, it needs --data" in capsys.readouterr().out
    assert os.listdir(tmp_path) == ["good.json"]
    with pytest.raises(SystemExit):
        cpu_all.main([*TINY, "--only", "garden", "--out", str(tmp_path)])
    assert "nothing is left to run" in capsys.readouterr().err


def test_a_failure_leaves_no_older_numbers_and_does_not_stop_the_others(
    fast_table, tmp_path, capsys
):
    (tmp_path / "bad.json").write_text("{}")
    assert cpu_all.main([*TINY, "--only", "bad", "good", "--out", str(tmp_path)]) == 1
    assert "bad: failed" in capsys.readouterr().out
    assert os.listdir(tmp_path) == ["good.json"]


def test_a_file_that_is_not_there_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cpu_all.main(["--data", "no.npz", "--out", str(tmp_path)])
    assert "there is no such file" in capsys.readouterr().err


def test_every_benchmark_takes_its_flags(tmp_path, monkeypatch, root):
    options = cpu_all.argparse.Namespace(threads=2, data=tmp_path / "garden.npz", quick=True)
    for name, benchmark in cpu_all.BENCHMARKS.items():
        words = cpu_all.arguments_of(name, options)
        assert (root / "benchmarks" / words[0]).is_file()
        assert words[words.index("--threads") + 1] == "2"
        assert ("--data" in words) == benchmark.garden
    assert sum(benchmark.garden for benchmark in cpu_all.BENCHMARKS.values()) == 2


@pytest.mark.slow
def test_all_run_quickly(tmp_path, shared_data):
    garden = shared_data / "rasterizer" / "garden.npz"
    assert cpu_all.main([*TINY, "--data", str(garden), "--out", str(tmp_path)]) == 0
    assert {path.stem for path in tmp_path.glob("*.json")} == cpu_all.BENCHMARKS.keys()
