"""Steps of a long preparation: skipped when done and valid, done anew when not, never left half.

A step that is finished leaves a stamp: a digest of its settings and of the files it read (their
sizes and times), and the names and sizes of the files it made. It counts as done while all of that
still holds.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.files import write_json


@dataclass(frozen=True)
class Step:
    """What a step depends on and what it makes.

    Attributes:
        name: unique in the scene folder.
        reads: files and folders whose change makes the result invalid.
        writes: files and folders of the scene that it makes.
        settings: whatever else the result depends on, plain JSON.
    """

    name: str
    reads: Sequence[Path]
    writes: Sequence[Path]
    settings: Any = None

    def key(self) -> str:
        """Digest of the settings and of the names, sizes and times of all files that are read."""
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode())
        for path in self.reads:
            for file, size in _sizes(path):
                digest.update(f"{file.name}\0{size}\0{file.stat().st_mtime_ns}\0".encode())
        return digest.hexdigest()


class Steps:
    """The steps of one scene folder; their stamps are in ``<folder>/.steps``."""

    def __init__(self, root: Path, *, redo: bool = False) -> None:
        """``redo``: nothing counts as done."""
        self.root = root
        self.redo = redo
        self.made: list[str] = []  # names of the steps that ran

    def run(self, step: Step, make: Callable[[], object], *, quiet: bool = False) -> bool:
        """Calls ``make`` unless what it would make is there and valid; says so unless ``quiet``.

        Each of ``step.writes`` must appear whole or not at all (`utils.files`).

        Returns:
            Whether it was made.
        """
        if self.is_done(step):
            if not quiet:
                print(f"{step.name}: done already")
            return False
        self.forget(step)
        if not quiet:
            print(f"{step.name} …", flush=True)
        make()
        self.adopt(step)
        self.made.append(step.name)
        return True

    def adopt(self, step: Step) -> None:
        """Stamps what is there as done."""
        made = {str(p.relative_to(self.root)): s for w in step.writes for p, s in _sizes(w)}
        write_json(self._stamp(step), {"key": step.key(), "files": made})

    def forget(self, step: Step) -> None:
        """Takes the stamp away: what is there no longer counts as done."""
        self._stamp(step).unlink(missing_ok=True)

    def is_stamped(self, step: Step) -> bool:
        """Whether the step was ever finished here, with whatever settings."""
        return self._stamp(step).exists()

    def is_done(self, step: Step) -> bool:
        """Whether the stamp is of this step as it is, and its files are there at their sizes."""
        if self.redo:
            return False
        try:
            stamp = json.loads(self._stamp(step).read_text(encoding="utf-8"))
            files = stamp["files"].items()
            return (
                stamp["key"] == step.key()
                and all((self.root / path).stat().st_size == size for path, size in files)
                and all(path.exists() for path in step.writes)
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False  # no stamp, or none of ours

    def _stamp(self, step: Step) -> Path:
        return self.root / ".steps" / f"{step.name.replace('/', '_').replace(' ', '_')}.json"


def _sizes(path: Path) -> list[tuple[Path, int]]:
    """Every file in or at ``path`` with its size."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return [(file, file.stat().st_size) for file in files]


def warn(message: str) -> None:
    """Tells the user something that is no error, in one line."""
    print(f"note: {message}", file=sys.stderr, flush=True)
