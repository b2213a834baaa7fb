"""utils/files.py: the old stays until the new is whole, and nothing is left lying about."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from utils.files import atomic_folder


@pytest.fixture
def old(tmp_path) -> Path:
    """A folder that is to be replaced."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("old")
    return folder


def _replace(folder: Path) -> None:
    with atomic_folder(folder) as temporary:
        (temporary / "weights").write_text("new")


def test_a_folder_is_replaced_whole(old):
    _replace(old)
    assert (old / "weights").read_text() == "new"
    assert list(old.parent.iterdir()) == [old]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("failing", [1, 2])
def test_the_old_folder_comes_back_when_a_move_fails(old, monkeypatch, failing, error):
    moves, replace = [], os.replace

    def fails_once(source, target):
        moves.append(target)
        if len(moves) == failing:
            raise error
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_once)
    with pytest.raises(type(error)):
        _replace(old)
    assert (old / "weights").read_text() == "old"
    assert list(old.parent.iterdir()) == [old]


def test_an_error_in_the_block_leaves_the_old_folder(old):
    with pytest.raises(ValueError), atomic_folder(old) as temporary:
        (temporary / "weights").write_text("half")
        raise ValueError
    assert (old / "weights").read_text() == "old"
    assert list(old.parent.iterdir()) == [old]
