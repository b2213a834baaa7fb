"""What a run says while it trains: `metrics.jsonl` always, TensorBoard when it is installed."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from utils.errors import UserError
from utils.files import atomic_file, sync

CURVES = "events.out.tfevents"  # begins the names of TensorBoard's files


class Report:
    """Appends events to the run folder and drives the progress bar."""

    def __init__(
        self,
        folder: Path,
        *,
        quiet: bool = False,
        keep_through: int | None = None,
        keep_bytes: int | None = None,
    ) -> None:
        """Opens ``metrics.jsonl``.

        Args:
            keep_through: on resuming, the step after which older lines are dropped; None starts
                the file anew.
            keep_bytes: how long the file was then, as `flush` said: what was written since is
                dropped, even of that step; None: not known.
        """
        self.path = folder / "metrics.jsonl"
        self.quiet = quiet
        kept = [] if keep_through is None else _lines_until(self.path, keep_through, keep_bytes)
        with atomic_file(self.path) as temporary:  # whole: the old lines are all there is of them
            temporary.write_bytes(b"".join(kept))
        self.file = self._open()
        self.board = _tensorboard(folder, keep_through)
        self.bar: tqdm | None = None

    def start_stage(self, stage: str, iterations: int, done: int) -> None:
        """Opens a progress bar over the stage's iterations."""
        self.close_bar()
        self.bar = tqdm(
            total=iterations, initial=done, desc=stage, disable=self.quiet, dynamic_ncols=True
        )

    def progress(self, **shown: str) -> None:
        """One iteration is done; ``shown`` are the numbers beside the bar, if any."""
        if self.bar is not None:
            if shown:
                self.bar.set_postfix(shown, refresh=False)
            self.bar.update()

    def event(self, kind: str, step: int, seconds: float, **values: Any) -> None:
        """Writes one line of JSON; values that are not finite become null.

        TensorBoard has the numbers as ``kind/name``, those of a set of views as ``kind/set/name``.

        Args:
            step: iterations over all stages, for TensorBoard's axis.
            seconds: training time so far.
        """
        clean = {k: None if _not_finite(v) else v for k, v in values.items()}
        record = {"event": kind, "step": step, "seconds": round(seconds, 3), **clean}
        self._append(f"{json.dumps(record)}\n".encode())
        if self.board is not None:
            tag = f"{kind}/{clean['set']}" if "set" in clean else kind
            for key, value in clean.items():
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    self.board.add_scalar(f"{tag}/{key}", value, step)

    def _open(self) -> BinaryIO:
        return self.path.open("ab", buffering=0)  # a line is one write: torn or whole, never later

    def _append(self, line: bytes) -> None:
        try:
            while line:
                line = line[self.file.write(line) :]
        except OSError as error:
            raise self._fault(error) from None

    def _fault(self, error: OSError) -> UserError:
        return UserError(
            f"{self.path} cannot be written ({error.strerror or error}); what was saved is intact: "
            f"make room for it, then --resume"
        )

    def flush(self) -> int:
        """Brings all lines to the disk: a checkpoint must not outlive the lines before it.

        Returns:
            Bytes in the file.

        Raises:
            UserError: the disk does not take them, or the run folder is gone.
        """
        try:
            if not self.path.exists():
                self.file.close()
                self.file = self._open()
                print(f"warning: {self.path} was gone; it begins anew here", file=sys.stderr)
            os.fsync(self.file.fileno())
            sync(self.path.parent)
            return os.fstat(self.file.fileno()).st_size
        except OSError as error:
            raise self._fault(error) from None

    def say(self, text: str) -> None:
        """Prints a line without breaking the bar."""
        if not self.quiet:
            tqdm.write(text)

    def warn(self, text: str) -> None:
        """Prints a warning to stderr, whether quiet or not, without breaking the bar."""
        tqdm.write(f"warning: {text}", file=sys.stderr)

    def close_bar(self) -> None:
        """Ends the progress bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def close(self) -> None:
        """Ends bar and files."""
        self.close_bar()
        self.file.close()
        if self.board is not None:
            self.board.close()


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _lines_until(path: Path, step: int, size: int | None) -> list[bytes]:
    if not path.exists():
        return []
    lines = path.read_bytes()[:size].splitlines(keepends=True)
    return [line for line in lines if _step_of(line) <= step]


def _step_of(line: bytes) -> float:
    """The line's step; a line that was cut off when the run stopped comes after everything."""
    try:
        step = json.loads(line)["step"] if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf
    return step if isinstance(step, int) else math.inf


def _tensorboard(folder: Path, keep_through: int | None) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    purge = None if keep_through is None else keep_through + 1  # hides the steps that come again
    return SummaryWriter(str(folder), purge_step=purge)
