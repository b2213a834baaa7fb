"""The first computation of a process gives the bits of every later one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Enough elements for two threads, which both make their first call into MKL's vector functions.
FIRST_AND_LATER = """
import {imported}
import torch
torch.set_num_threads(2)
values = torch.arange(1, 8001) * 0.00137
first = values.sqrt()
torch.set_num_threads(1)
print(torch.equal(first, values.sqrt()))
"""


def printed(code: str, environment: dict[str, str]) -> list[str]:
    """The words that a new process prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def first_equals_later(imported: str) -> bool:
    """Whether a new process' first square root, by two threads, equals its second, by one."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    return printed(FIRST_AND_LATER.format(imported=imported), environment) == ["True"]


@pytest.mark.slow
def test_first_computation_by_two_threads_is_the_same_as_later_ones() -> None:
    """Without `utils.threads` one process in ten differed: sixteen notice it four times of five.

    One after the other: processes that share the cores rarely make the two calls at one time.
    """
    assert all(first_equals_later("utils.threads") for _ in range(16))


HUGE_PAGES = """
import utils.threads
import torch
large = torch.zeros(16 << 20).add_(1)  # 64 MB
with open("/proc/self/smaps_rollup") as file:
    print(next(int(line.split()[1]) for line in file if line.startswith("AnonHugePages")))
"""


def huge_kilobytes(setting: dict[str, str]) -> int:
    """What of a process with a large tensor lies in huge pages."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("THP_")} | setting
    return int(printed(HUGE_PAGES, environment)[0])


def test_large_tensors_lie_in_huge_pages() -> None:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists() or "[madvise]" not in setting.read_text():
        pytest.skip("the system does not leave it to programs to ask for huge pages")
    asked = huge_kilobytes({})
    if asked == 0 and huge_kilobytes({"THP_MEM_ALLOC_ENABLE": "1"}) == 0:
        pytest.skip("the system has no huge pages to give, or this torch does not ask for them")
    assert asked >= 32 << 10
    assert huge_kilobytes({"THP_MEM_ALLOC_ENABLE": "0"}) == 0


def test_waiting_can_be_chosen_in_the_environment() -> None:
    """What the user sets is left alone."""
    chosen = {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "7", "THP_MEM_ALLOC_ENABLE": "0"}
    code = f"import os, utils.threads; print(*map(os.environ.get, {list(chosen)}))"
    assert printed(code, os.environ | chosen) == ["ACTIVE", "7", "0"]
