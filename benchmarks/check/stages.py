"""Stages of a long check: in order of importance, each with a limit of time, all with a deadline.

A stage is some commands, run one after the other as processes of their own, in a folder with a
file for what they print to stdout and one for stderr. One stage runs in the foreground; those
marked `background` run beside it. A stage that needs another runs only where that one passed; one
that uses or waits for others starts when they have ended, whatever came of them, and lets later
stages go first until then. What is over its limit is ended, with all its processes, and reported.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

POLL = 0.1  # seconds
GRACE = 3.0  # seconds between asking a process to end and ending it
LEAST = 2.0  # seconds: with less left, nothing is started
LOG_END = 6000  # characters kept of the log of a stage that did not pass

PASSED, FAILED, TIMEOUT, NOT_DONE = "passed", "failed", "timeout", "not done"
BAD = (FAILED, TIMEOUT)


class CheckFailed(Exception):
    """What a stage found is not as it must be; the message is one line, `results` what is known."""

    def __init__(self, message: str, results: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.results = results or {}


@dataclass(frozen=True)
class Files:
    """Where a stage's output is."""

    out: Path  # stdout of its commands
    log: Path  # stderr

    def objects(self) -> list[dict[str, Any]]:
        """All JSON objects of stdout that begin a line; other text is passed over."""
        text = self.out.read_text(errors="replace") if self.out.exists() else ""
        decoder, found, at = json.JSONDecoder(), [], 0
        while (at := text.find("{", at)) >= 0:
            end = at + 1
            if at == 0 or text[at - 1] == "\n":
                with contextlib.suppress(ValueError):
                    value, end = decoder.raw_decode(text, at)
                    found.append(value)
            at = end
        return found


def files_of(stage: str, folder: Path) -> Files:
    """Where the output of a stage is, in the folder of all of them."""
    stem = stage.replace(":", "_")
    return Files(folder / f"{stem}.out", folder / f"{stem}.log")


def last_object(files: Files) -> dict[str, Any]:
    """The last JSON object of stdout.

    Raises:
        CheckFailed: there is none.
    """
    found = files.objects()
    if not found:
        raise CheckFailed("printed no JSON object")
    return found[-1]


def no_results(files: Files) -> dict[str, Any]:
    """For commands that say nothing but by their exit code."""
    del files
    return {}


@dataclass(frozen=True)
class Stage:
    """One stage; see the module."""

    name: str
    commands: tuple[tuple[str, ...], ...] = ()
    limit: float = 60.0  # seconds
    read: Callable[[Files], dict[str, Any]] = last_object  # also of a stage that did not pass
    codes: tuple[int, ...] = (0,)  # exit codes that are no failure by themselves
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()  # goes after them, whatever came of them; chosen along with it
    waits: tuple[str, ...] = ()
    background: bool = False
    optional: bool = False  # being cut short is no fault: as much as time allows
    theirs: bool = False  # others' code: where it fails, something is not done, and no more
    environment: Mapping[str, str] = field(default_factory=dict)
    absent: str = ""  # why it cannot be done
    absent_status: str = NOT_DONE  # FAILED where it should have been possible


@dataclass
class Outcome:
    """What came of a stage."""

    status: str
    reason: str = ""  # one line, where it did not pass
    seconds: float = 0.0
    limit: float = 0.0
    results: dict[str, Any] = field(default_factory=dict)
    log_end: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without what is empty."""
        return {key: value for key, value in asdict(self).items() if value not in ("", {})}


class Running:
    """A stage whose commands are running."""

    def __init__(self, stage: Stage, folder: Path, limit: float, clock: Callable[[], float]):
        self.stage, self.limit, self.clock = stage, limit, clock
        self.files = files_of(stage.name, folder)
        self.started = clock()
        self._out, self._log = self.files.out.open("wb"), self.files.log.open("wb")
        self._left = list(stage.commands)
        self._process: subprocess.Popen | None = None
        self.code = 0
        self._error = ""
        self._next()

    def _next(self) -> None:
        command = self._left.pop(0) if self._left else None
        self._process = None
        if command is None:
            return
        self._log.write(f"$ {' '.join(command)}\n".encode())
        self._log.flush()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._out,
                stderr=self._log,
                env={**os.environ, **self.stage.environment},
                start_new_session=True,
            )
        except OSError as error:
            self._error = f"cannot run {command[0]}: {error.strerror}"

    def ended(self) -> bool:
        """Whether all commands are done, or one has failed; starts the next one."""
        while self._process is not None and (code := self._process.poll()) is not None:
            self.code = code
            if code not in self.stage.codes:
                return True
            self._next()
        return self._process is None

    def overdue(self) -> bool:
        """Whether the limit has passed."""
        return self.clock() - self.started > self.limit

    def kill(self) -> None:
        """Ends the process and all that it started."""
        if self._process is None:
            return
        for sign, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        self._process = None

    def outcome(self, timed_out: bool) -> Outcome:
        """What came of it; reads the results, also those of a stage that was cut short."""
        self._out.close()
        self._log.close()
        reason = self._error or self._bad_code()
        results: dict[str, Any] = {}
        try:
            results = self.stage.read(self.files)
        except CheckFailed as error:
            results, said = error.results, str(error)
            reason = f"{said} ({reason})" if reason else said
        except Exception as error:  # a reader must not end the whole check
            reason = reason or f"its results cannot be read: {type(error).__name__}: {error}"
        status = FAILED if reason else PASSED
        if timed_out:
            late = f"over its limit of {self.limit:.0f} s"
            if self.stage.optional and not _says_failed(results):
                status, reason = PASSED, f"cut short: {late}"
            else:
                status, reason = TIMEOUT, late
        if self.stage.theirs and status in BAD:
            status = NOT_DONE
        seconds = round(self.clock() - self.started, 1)
        end = "" if status == PASSED else self._log_end()
        return Outcome(status, reason, seconds, self.limit, results, end)

    def _bad_code(self) -> str:
        return "" if self.code in self.stage.codes else f"exit code {self.code}"

    def _log_end(self) -> str:
        texts = (path.read_text(errors="replace") for path in (self.files.out, self.files.log))
        return "".join(texts)[-LOG_END:]


def _says_failed(results: Mapping[str, Any]) -> bool:
    return bool(results.get("failed"))


class Schedule:
    """Runs stages until all have an outcome or the deadline has passed."""

    def __init__(
        self,
        stages: Sequence[Stage],
        folder: Path,
        seconds: float,
        report: Callable[[str, Outcome], None] = lambda name, outcome: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            seconds: from now to the deadline.
            report: is called with each outcome as soon as it is known.
        """
        self.pending = list(stages)
        self.folder, self.report, self.clock = folder, report, clock
        self.names = {stage.name for stage in stages}
        self.deadline = clock() + seconds
        self.running: list[Running] = []
        self.outcomes: dict[str, Outcome] = {}

    def run(self) -> dict[str, Outcome]:
        """Name -> outcome of each stage, in the order in which they ended."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            while self.pending or self.running:
                self._collect()
                self._start()
                if self.running:
                    time.sleep(POLL)
        finally:
            for job in self.running:
                job.kill()
        return self.outcomes

    def _settle(self, name: str, outcome: Outcome) -> None:
        self.outcomes[name] = outcome
        self.report(name, outcome)

    def _collect(self) -> None:
        """Takes the outcomes of what has ended, and ends what is over its limit."""
        for job in list(self.running):
            late = not job.ended() and job.overdue()
            if late:
                job.kill()
            if late or job.ended():
                self.running.remove(job)
                self._settle(job.stage.name, job.outcome(late))

    def _start(self) -> None:
        """Starts what can be: everything in the background, and one stage in the foreground."""
        for stage in list(self.pending):
            refused = self._refusal(stage)
            if refused:
                self.pending.remove(stage)
                self._settle(stage.name, refused)
            elif self._ready(stage) and (stage.background or not self._foreground()):
                self.pending.remove(stage)
                left = self.deadline - self.clock()
                limit = min(stage.limit, left)
                self.running.append(Running(stage, self.folder, limit, self.clock))
        if self.pending and not self.running and not any(map(self._ready, self.pending)):
            for stage in self.pending:  # they wait for each other
                self._settle(stage.name, Outcome(NOT_DONE, f"waits for {', '.join(stage.waits)}"))
            self.pending = []

    def _foreground(self) -> bool:
        return any(not job.stage.background for job in self.running)

    def _refusal(self, stage: Stage) -> Outcome | None:
        """Why a stage will never run, if it is known by now."""
        if stage.absent:
            return Outcome(stage.absent_status, stage.absent)
        for name in stage.needs:
            known = self.outcomes.get(name)
            if known is not None and known.status != PASSED:
                why = known.reason if known.status == NOT_DONE else known.status
                return Outcome(NOT_DONE, f"needs {name}: {why}")
        if self.deadline - self.clock() < LEAST:
            return Outcome(NOT_DONE, "no time left")
        return None

    def _ready(self, stage: Stage) -> bool:
        before = {*stage.needs, *stage.uses, *stage.waits} & self.names
        return before <= self.outcomes.keys()


def select(
    stages: Sequence[Stage], only: Iterable[str] = (), skip: Iterable[str] = ()
) -> list[Stage]:
    """The stages that are named, and what they need or use; `bench` is all of `bench:...`.

    What is skipped is taken for done by those that need it.

    Raises:
        ValueError: a name that fits no stage.
    """
    only, skip = list(only), list(skip)
    for name in (*only, *skip):
        if not any(_fits(stage.name, name) for stage in stages):
            raise ValueError(f"there is no stage {name}; --list shows them")
    chosen = {s.name for s in stages if not only or any(_fits(s.name, name) for name in only)}
    while True:
        along = (name for s in stages if s.name in chosen for name in (*s.needs, *s.uses))
        needed = {*along} - chosen
        if not needed:
            break
        chosen |= needed
    chosen -= {s.name for s in stages if any(_fits(s.name, name) for name in skip)}
    return [stage for stage in stages if stage.name in chosen]


def _fits(name: str, wanted: str) -> bool:
    return name == wanted or name.startswith(f"{wanted}:")
