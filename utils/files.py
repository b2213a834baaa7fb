"""Writing files so that a reader never sees half of one, and so that what was written stays.

What is being written has a temporary name beside the final one. It is flushed to the disk, then
renamed, then the folder's own entry is flushed: after a crash or a power cut there is the old one
or the new one, whole. Processes that are killed leave their temporary names behind;
`clear_leftovers` removes them.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from utils.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: there nobody is kept out
    fcntl = None

_ASKING = threading.Lock()
_PARTIAL = ".partial-"  # begins the name of what is being written, or removed
_ASIDE = ".aside-"  # begins the name of the folder that holds what is being replaced


def sync(path: Path) -> None:
    """Flushes a file's content, or the names in a folder, to the disk."""
    if path.is_dir() and os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # some network file systems' answer
            raise
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            sync(Path(root, name))
        sync(Path(root))


def make_folder(path: str | Path) -> None:
    """Makes ``path`` and what is missing above it, to stay; no error if it is there."""
    path = Path(path)
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync(made.parent)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` that replaces it when the block ends without error.

    The suffix is kept, since encoders choose their format by it. An error leaves nothing behind.
    """
    path = Path(path)
    make_folder(path.parent)
    prefix = f"{_PARTIAL}{path.name}."
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Like `atomic_file`, for a folder: an existing ``path`` is replaced only when all is well."""
    path = Path(path)
    make_folder(path.parent)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f"{_PARTIAL}{path.name}."))
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~_umask())
        _sync_tree(temporary)
        _replace_folder(temporary, path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace_folder(new: Path, path: Path) -> None:
    """Moves ``new`` to ``path``; what was there comes back if that fails."""
    if not path.exists():
        os.replace(new, path)
        return
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f"{_ASIDE}{path.name}."))
    try:
        os.replace(path, aside / path.name)
        try:
            os.replace(new, path)
        except BaseException:
            os.replace(aside / path.name, path)
            raise
        shutil.rmtree(aside / path.name, ignore_errors=True)
    finally:
        with suppress(OSError):  # never the old folder: only an empty one is removed
            aside.rmdir()


def remove_folder(path: Path) -> None:
    """Removes a folder so that nobody sees it half removed; one that is not there is no error.

    Raises:
        OSError: it cannot be removed; then it is as it was.
    """
    if not path.exists():
        return
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f"{_PARTIAL}{path.name}."))
    try:
        os.replace(path, aside / path.name)
        sync(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def clear_leftovers(folder: Path, name: str = "*") -> None:
    """Tidies up after processes that were killed while they wrote into ``folder``.

    What they were writing is removed; what they were about to replace comes back. Nobody may be
    writing there now.

    Args:
        name: of the files or folders that may have been written, as a pattern.
    """
    for aside in folder.glob(f"{_ASIDE}{name}.*"):
        for old in aside.iterdir():
            if not (folder / old.name).exists():
                os.replace(old, folder / old.name)
                sync(folder)
        shutil.rmtree(aside)
    for partial in folder.glob(f"{_PARTIAL}{name}.*"):
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink()


@contextmanager
def sole_user(folder: Path) -> Iterator[None]:
    """Keeps other processes that ask in this way out of ``folder``; ends with the process.

    Raises:
        UserError: another one is in it.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{folder} is in use by another training: wait for it or end it") from None


def write_json(path: str | Path, value: Any) -> None:
    """Writes ``value`` as indented JSON, atomically; NaN and infinities are a ValueError."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with atomic_file(path) as temporary:
        temporary.write_text(text)


def _umask() -> int:
    with _ASKING:  # it can only be read by setting it: two threads at once would leave it at 0
        mask = os.umask(0)
        os.umask(mask)
    return mask
