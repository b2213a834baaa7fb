"""How much memory a process may still take."""

from __future__ import annotations

import os
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
# Limit, use, and the line of the statistics with what the kernel would give back: versions 2, 1.
_LIMITS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)


def available_memory() -> int | None:
    """Bytes that can be allocated without swapping; None where the system does not say.

    The lesser of what the machine has left and what the container's limit leaves.
    """
    known = [n for n in (_of_machine(), *map(_of_container, _LIMITS)) if n is not None]
    return max(0, min(known)) if known else None


def _of_machine() -> int | None:
    try:
        return 1024 * _table(_MEMINFO)["MemAvailable:"]
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows, macOS
        return None


def _of_container(names: tuple[str, str, str, str]) -> int | None:
    """What a control group's limit leaves; None without a group, or without a limit."""
    limit, used, statistics, reclaimable = names
    try:
        bound = int((_CGROUP / limit).read_text())  # "max" is no number: there is no limit
        taken = int((_CGROUP / used).read_text())
        return bound - taken + _table(_CGROUP / statistics).get(reclaimable, 0)
    except (OSError, ValueError):
        return None


def _table(path: Path) -> dict[str, int]:
    """Lines of a name and a whole number."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {line[0]: int(line[1]) for line in lines if len(line) > 1}
