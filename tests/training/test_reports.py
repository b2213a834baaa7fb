"""`metrics.jsonl` over a run that is stopped and resumed."""

from __future__ import annotations

import json

import pytest

from training.reports import Report


def steps(folder) -> list[int]:
    return [
        json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


@pytest.fixture
def stopped(tmp_path) -> int:
    """A run that was at step 20 at its checkpoint and went on; returns the file's length then."""
    report = Report(tmp_path, quiet=True)
    for step in (10, 20):
        report.event("train", step, 0.1, loss=1.0)
    size = report.flush()
    for step in (20, 30):
        report.event("evaluate", step, 0.2, psnr=9.0)
    report.close()
    return size


@pytest.mark.parametrize(
    "torn",
    [b'{"event": "train", "step": 4', b"\x00" * 300, b"\xff\xfe\n", b"[]\n", b'{"step":"x"}\n'],
)
def test_what_came_after_the_checkpoint_is_dropped_torn_or_not(tmp_path, stopped, torn):
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    report = Report(tmp_path, quiet=True, keep_through=20, keep_bytes=stopped)
    assert steps(tmp_path) == [10, 20]
    report.event("train", 30, 0.3, loss=1.0)
    assert steps(tmp_path) == [10, 20, 30]


def test_checkpoints_that_do_not_know_the_length_go_by_the_step(tmp_path, stopped):
    Report(tmp_path, quiet=True, keep_through=20)
    assert steps(tmp_path) == [10, 20, 20]


def test_a_file_that_became_shorter_keeps_its_whole_lines(tmp_path, stopped):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[: stopped - 5])
    Report(tmp_path, quiet=True, keep_through=20, keep_bytes=stopped)
    assert steps(tmp_path) == [10]


def test_an_old_file_is_whole_until_the_new_one_is(tmp_path, stopped, monkeypatch):
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("utils.files.os.replace", fails)
    with pytest.raises(OSError):
        Report(tmp_path, quiet=True, keep_through=20, keep_bytes=stopped)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_run_that_begins_has_no_lines(tmp_path, stopped):
    Report(tmp_path, quiet=True)
    assert steps(tmp_path) == []


def test_curves_of_test_and_training_views_are_apart(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    report = Report(tmp_path, quiet=True)
    report.event("train", 10, 0.1, loss=0.5)
    for name, psnr in (("test", 9.0), ("train", 12.0)):
        report.event("evaluate", 10, 0.1, set=name, psnr=psnr)
    report.close()
    written = accumulator.EventAccumulator(str(tmp_path)).Reload()
    found = {tag: [s.value for s in written.Scalars(tag)] for tag in written.Tags()["scalars"]}
    assert found == {
        "train/loss": [0.5],
        "evaluate/test/psnr": [9.0],
        "evaluate/train/psnr": [12.0],
    }
