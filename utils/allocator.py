"""What the C library does with memory that is given back.

glibc hands free memory back to the system when there is much of it, and the system fills every page
with zeros before it gives it out again. An iteration allocates and frees the same blocks as the one
before: in the demo 2,500 pages, 6 of 110 ms on one thread. Up to 32 MB they are kept here. Larger
ones are given back as before: glibc's aligned blocks would leave gaps of their own size.
``MALLOC_*`` in the environment wins.
"""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGEST_KEPT = 32 << 20  # bytes of a block; glibc's own limit grows up to this
KEPT = 1 << 30  # bytes at the heap's end; more is given back


def keep_freed_memory() -> bool:
    """Makes malloc keep what is freed for the next allocation; whether it can be told to."""
    chosen = any(name.startswith("MALLOC_") for name in os.environ)
    if chosen or "malloc" in os.environ.get("GLIBC_TUNABLES", "") or sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, LARGEST_KEPT) and mallopt(_TRIM_THRESHOLD, KEPT))
