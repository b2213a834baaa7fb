"""The CUDA kernels under AddressSanitizer, ThreadSanitizer and UndefinedBehaviorSanitizer.

The planted mistakes show that each of them sees what it is there for.
"""

from __future__ import annotations

import pytest

import sanitized

RIGHT_OF = {  # planted mistake: the sanitizer that must find it, and what it calls it
    "barrier_between": ("thread", "data race"),
    "barrier_after": ("thread", "data race"),
    "warp_barrier": ("thread", "data race"),
    "sum_of_blocks": ("thread", "data race"),
    "sum_of_threads": ("thread", "data race"),
    "beyond_shared": ("address", "heap-buffer-overflow"),
    "beyond_global": ("address", "heap-buffer-overflow"),
    "misaligned": ("undefined", "misaligned address"),
    "overflow": ("undefined", "signed integer overflow"),
}


def run(sanitizer: str, subject: str):
    if not sanitized.library(sanitizer):
        pytest.skip(f"the compiler has no {sanitized.LIBRARIES[sanitizer]}")
    return sanitized.run(sanitizer, subject)


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", sanitized.LIBRARIES)
@pytest.mark.parametrize("package", sanitized.PACKAGES)
def test_kernels_are_clean(package, sanitizer):
    done = run(sanitizer, package)
    assert done.returncode == 0 and done.stdout == "done\n", done.stdout + done.stderr


@pytest.mark.parametrize("mistake", RIGHT_OF)
def test_a_planted_mistake_is_found(mistake):
    sanitizer, words = RIGHT_OF[mistake]
    done = run(sanitizer, f"planted.cu/{mistake}")
    assert done.returncode == sanitized.FOUND, done.stdout + done.stderr
    assert words in done.stderr and "planted.cu" in done.stderr


@pytest.mark.parametrize("mistake", RIGHT_OF)
def test_the_same_kernel_without_its_mistake_is_clean(mistake):
    done = run(RIGHT_OF[mistake][0], f"planted.cu/{mistake}_right")
    assert done.returncode == 0 and done.stdout == "done\n", done.stdout + done.stderr
