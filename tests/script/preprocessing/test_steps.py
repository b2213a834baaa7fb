"""Steps of a preparation: skipped when done and valid, made again when not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from script.preprocessing.steps import Step, Steps


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.txt"
    path.write_text("read")
    return path


class Maker:
    """Makes ``out/`` with two files, and counts how often."""

    def __init__(self, root: Path, source: Path) -> None:
        self.root, self.source, self.times = root, source, 0

    def step(self, settings: object = None) -> Step:
        return Step("a step/with a name", [self.source], [self.root / "out"], settings)

    def run(self, settings: object = None, **options: bool) -> bool:
        return Steps(self.root, **options).run(self.step(settings), self.make)

    def make(self) -> None:
        self.times += 1
        (self.root / "out/deep").mkdir(parents=True, exist_ok=True)
        (self.root / "out/a").write_text("one")
        (self.root / "out/deep/b").write_text("two")


@pytest.fixture
def maker(tmp_path: Path, source: Path) -> Maker:
    maker = Maker(tmp_path, source)
    assert maker.run() and maker.times == 1
    return maker


def test_what_is_done_is_skipped_and_said(maker, capsys):
    assert not maker.run() and maker.times == 1
    assert "a step/with a name: done already" in capsys.readouterr().out


def test_the_names_of_the_steps_that_ran_are_kept(tmp_path, source):
    maker = Maker(tmp_path, source)
    steps = Steps(tmp_path)
    steps.run(maker.step(), maker.make, quiet=True)
    steps.run(maker.step(), maker.make, quiet=True)
    assert steps.made == ["a step/with a name"]


def test_other_settings_make_it_again(maker):
    assert maker.run({"size": 2}) and not maker.run({"size": 2}) and maker.run()


@pytest.mark.parametrize("text", ["longer than before", "raed"])
def test_another_input_makes_it_again(maker, text):
    maker.source.write_text(text)
    assert maker.run()


def test_a_new_file_in_a_folder_that_is_read_makes_it_again(tmp_path):
    folder = tmp_path / "read"
    folder.mkdir()
    maker = Maker(tmp_path, folder)
    assert maker.run() and not maker.run()
    (folder / "more").touch()
    assert maker.run()


@pytest.mark.parametrize("name", ["a", "deep/b"])
def test_a_missing_output_is_made_again(maker, name):
    (maker.root / "out" / name).unlink()
    assert maker.run() and (maker.root / "out" / name).exists()


def test_a_cut_output_is_made_again(maker):
    (maker.root / "out/deep/b").write_text("t")
    assert maker.run() and (maker.root / "out/deep/b").read_text() == "two"


def test_redo_makes_everything_again(maker):
    assert maker.run(redo=True) and maker.times == 2


@pytest.mark.parametrize("stamp", ["", "{", "[]", "{}", '{"files": 3}', '{"key": "", "files": {}}'])
def test_a_damaged_stamp_counts_as_none(maker, stamp):
    (file,) = (maker.root / ".steps").iterdir()
    file.write_text(stamp)
    assert maker.run() and not maker.run()


def test_a_stamp_of_no_files_does_not_stand_for_outputs(maker):
    (file,) = (maker.root / ".steps").iterdir()
    file.write_text(json.dumps({"key": maker.step().key(), "files": {}}))
    (maker.root / "out").rename(maker.root / "away")
    assert maker.run()


def test_an_error_leaves_no_stamp(maker):
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Steps(maker.root).run(maker.step(1), fail)
    assert not Steps(maker.root).is_stamped(maker.step()) and maker.run()


def test_what_another_made_can_be_adopted(tmp_path, source):
    maker = Maker(tmp_path, source)
    maker.make()
    steps = Steps(tmp_path)
    assert not steps.is_stamped(maker.step()) and not steps.is_done(maker.step())
    steps.adopt(maker.step())
    assert not maker.run() and maker.times == 1
