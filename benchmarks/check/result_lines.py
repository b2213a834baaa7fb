"""A pytest plugin: a line of JSON for each finished test, so that a run that is ended leaves them.

GPU_CHECK_RESULTS=results.jsonl python -m pytest -p benchmarks.check.result_lines
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

VARIABLE = "GPU_CHECK_RESULTS"
LONGEST = 400  # characters of a message
# Test files that need one of these and do not find it are left out, with the reason.
OPTIONAL = ("av", "hypothesis", "PIL", "plyfile", "pycolmap", "pytorch_msssim", "scipy", "skimage")
MISSING = re.compile(rf"No module named '({'|'.join(OPTIONAL)})[.']")


def pytest_configure(config: Any) -> None:
    """Registers the writer where it is wanted, in the process that hears of all workers."""
    path = os.environ.get(VARIABLE)
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Writer(Path(path)), "result-lines")


class Writer:
    """Appends to the file as tests end."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("w")

    def _write(self, **row: Any) -> None:
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """One line for a test; a further one where its set-up or its end fails."""
        if report.when != "call" and report.outcome == "passed":
            return
        row = {"test": report.nodeid, "outcome": report.outcome, "s": round(report.duration, 2)}
        if report.outcome == "skipped":
            row["why"] = _reason(report)
        elif report.outcome == "failed":
            row["why"] = _crash(report)
        self._write(**row)

    def pytest_collectreport(self, report: Any) -> None:
        """A file that cannot be imported is a failure, but where what it needs is optional."""
        missing = MISSING.search(str(report.longrepr)) if report.failed else None
        if missing:
            why = f"the file needs {missing.group(1)}"
            self._write(test=report.nodeid, outcome="skipped", s=0, why=why)
        elif report.failed:
            self._write(test=report.nodeid, outcome="failed", s=0, why=_crash(report))
        elif report.outcome == "skipped":
            self._write(test=report.nodeid, outcome="skipped", s=0, why=_reason(report))


def _reason(report: Any) -> str:
    if hasattr(report, "wasxfail"):
        return f"expected to fail: {report.wasxfail}"[:LONGEST]
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")[:LONGEST]


def _crash(report: Any) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else str(report.longrepr)[-LONGEST:]
    return text[:LONGEST]


def summary(path: Path) -> dict[str, Any]:
    """Numbers of passed and skipped tests, what failed and why, and the reasons for skips."""
    if not path.exists():
        return {}
    rows = []
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):  # the last one may be half written
            rows.append(json.loads(line))
    skipped = Counter(row["why"] for row in rows if row["outcome"] == "skipped")
    return {
        "passed": sum(row["outcome"] == "passed" for row in rows),
        "failed": {row["test"]: row["why"] for row in rows if row["outcome"] == "failed"},
        "skipped": sum(skipped.values()),
        "skip_reasons": dict(skipped.most_common()),
        "slowest": {row["test"]: row["s"] for row in sorted(rows, key=lambda row: -row["s"])[:10]},
    }
