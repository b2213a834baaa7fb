"""Ctrl-C that waits for a good moment."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class DelayedInterrupt:
    """While active, the first Ctrl-C only sets `requested`; a second one interrupts at once.

    For loops that must stop between two steps, never inside one. Outside the main thread, where
    signals cannot be caught, it does nothing.
    """

    def __init__(self) -> None:
        """Not active yet: use it in a ``with`` statement."""
        self.requested = False
        self._before: object = None
        self._caught = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> DelayedInterrupt:
        if self._caught:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._caught:
            signal.signal(signal.SIGINT, self._before)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
