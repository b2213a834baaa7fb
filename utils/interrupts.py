"""Ctrl-C and requests to end that wait for a good moment."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

HEEDED = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C; what schedulers and shutdowns send


class Interrupted(KeyboardInterrupt):
    """A signal ended the program; `utils.errors.cli` exits with 128 + its number."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class DelayedInterrupt:
    """While active, the first signal of `HEEDED` only sets `requested`; a second one ends at once.

    For loops that must stop between two steps, never inside one. Outside the main thread, where
    signals cannot be caught, it does nothing.
    """

    def __init__(self) -> None:
        """Not active yet: use it in a ``with`` statement."""
        self.requested: int | None = None  # the signal's number
        self._before: dict[int, object] = {}
        self._caught = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> DelayedInterrupt:
        if self._caught:
            self._before = {number: signal.signal(number, self._note) for number in HEEDED}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def stop(self) -> None:
        """Raises `Interrupted` if a signal has come; for those good moments."""
        if self.requested is not None:
            raise Interrupted(self.requested)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None:
            raise Interrupted(number)
        self.requested = number
