"""utils/files.py: the old stays until the new is whole, and nothing is left lying about."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
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


def test_threads_at_once_keep_the_umask(tmp_path, monkeypatch):
    ask = os.umask

    def slowly(mask: int) -> int:
        before = ask(mask)
        time.sleep(0.003)
        return before

    def make(i: int) -> int:
        with atomic_folder(tmp_path / str(i)):
            pass
        return (tmp_path / str(i)).stat().st_mode & 0o777

    mask = ask(0o027)
    try:
        monkeypatch.setattr(os, "umask", slowly)
        with ThreadPoolExecutor(8) as pool:
            modes = set(pool.map(make, range(32)))
        assert modes == {0o750} and ask(0o027) == 0o027
    finally:
        ask(mask)
