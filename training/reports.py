"""What a run says while it trains: `metrics.jsonl` always, TensorBoard when it is installed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from tqdm import tqdm


class Report:
    """Appends events to the run folder and drives the progress bar."""

    def __init__(
        self, folder: Path, *, quiet: bool = False, keep_through: int | None = None
    ) -> None:
        """Opens ``metrics.jsonl``.

        Args:
            keep_through: on resuming, the step after which older lines are dropped; None starts
                the file anew.
        """
        self.path = folder / "metrics.jsonl"
        self.quiet = quiet
        kept = [] if keep_through is None else _lines_until(self.path, keep_through)
        self.file = self.path.open("w")
        self.file.writelines(kept)
        self.board = _tensorboard(folder)
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

        Args:
            step: iterations over all stages, for TensorBoard's axis.
            seconds: training time so far.
        """
        clean = {k: None if _not_finite(v) else v for k, v in values.items()}
        record = {"event": kind, "step": step, "seconds": round(seconds, 3), **clean}
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        if self.board is not None:
            for key, value in clean.items():
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    self.board.add_scalar(f"{kind}/{key}", value, step)

    def say(self, text: str) -> None:
        """Prints a line without breaking the bar."""
        if not self.quiet:
            tqdm.write(text)

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


def _lines_until(path: Path, step: int) -> list[str]:
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [line for line in lines if _step_of(line) <= step]


def _step_of(line: str) -> float:
    """The line's step; a line that was cut off when the run stopped comes after everything."""
    try:
        return json.loads(line)["step"] if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))
