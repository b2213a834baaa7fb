"""The CPU code of the native packages under sanitizers: addresses, undefined behaviour, threads.

The planted mistakes show that each of them sees what it is there for, also across the threads that
the packages start.
"""

from __future__ import annotations

import subprocess

import pytest

import instrumented
import sanitized
from benchmarks.exercise_operators import packages

RIGHT_OF = {  # planted mistake: the sanitizers that must find it, and what they call it
    "pool": ("thread", "data race"),
    "workers": ("thread", "data race"),
    "beyond": ("address,undefined", "heap-buffer-overflow"),
    "overflow": ("address,undefined", "signed integer overflow"),
    "cast": ("address,undefined", "outside the range of representable values"),
}


def run(sanitizers: str, subject: str) -> subprocess.CompletedProcess:
    for sanitizer in sanitizers.split(","):
        if not sanitized.library(sanitizer):
            pytest.skip(f"the compiler has no {sanitized.LIBRARIES[sanitizer]}")
    return instrumented.run(sanitizers, subject)


@pytest.mark.slow
@pytest.mark.timeout(900)  # the first time, it compiles
@pytest.mark.parametrize("sanitizers", instrumented.SANITIZERS)
@pytest.mark.parametrize("package", [name.replace("-", "_") for name in packages()])
def test_operators_are_clean(package, sanitizers):
    done = run(sanitizers, package)
    everything = "".join(f"done {level}\n" for level in instrumented.levels_here())
    assert done.returncode == 0 and done.stdout == everything, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("mistake", RIGHT_OF)
def test_a_planted_mistake_is_found(mistake):
    sanitizers, words = RIGHT_OF[mistake]
    done = run(sanitizers, f"planted/{mistake}")
    assert done.returncode == sanitized.FOUND, done.stdout + done.stderr
    assert words in done.stderr and "planted.cpp" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("mistake", RIGHT_OF)
def test_the_same_function_without_its_mistake_is_clean(mistake):
    done = run(RIGHT_OF[mistake][0], f"planted/{mistake}_right")
    assert done.returncode == 0 and done.stdout == "done\n", done.stdout + done.stderr
