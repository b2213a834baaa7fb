"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_ASKING = threading.Lock()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` that replaces it when the block ends without error.

    The suffix is kept, since encoders choose their format by it. An error leaves nothing behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _sync(temporary)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Like `atomic_file`, for a folder: an existing ``path`` is replaced only when all is well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~_umask())
        _replace_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace_folder(new: Path, path: Path) -> None:
    """Moves ``new`` to ``path``; what was there comes back if that fails."""
    if not path.exists():
        os.replace(new, path)
        return
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
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
