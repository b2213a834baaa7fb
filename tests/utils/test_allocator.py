"""Memory that is freed stays with the process, unless the environment says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Page faults of writing 20 MB in blocks of 100 kB, all freed in between, for the second time.
FAULTS = """
{first}
import ctypes
import resource

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [ctypes.c_void_p(libc.malloc(100_000)) for _ in range(200)]
    for block in blocks:
        libc.memset(block, 1, 100_000)
    for block in reversed(blocks):
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


def second_faults(first: str) -> int:
    """What a new process counts the second time."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS.format(first=first)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is told")
def test_blocks_that_are_allocated_again_cost_no_page_faults() -> None:
    if second_faults("") < 4000:
        pytest.skip("this C library keeps what is freed in any case")
    assert second_faults("import utils.allocator as a; assert a.keep_freed_memory()") < 100


def test_what_the_environment_says_about_malloc_is_left_alone() -> None:
    code = "from utils.allocator import keep_freed_memory as keep; print(keep())"
    for setting in ({"MALLOC_TRIM_THRESHOLD_": "1"}, {"GLIBC_TUNABLES": "glibc.malloc.perturb=1"}):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=os.environ | setting,
        )
        assert done.stdout.split() == ["False"], done.stderr
