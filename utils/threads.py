"""How threads wait, and what must happen before two of them compute; imported before torch.

**Waiting.** OpenMP's threads spin for milliseconds after each parallel region by default, which
takes the processor from whoever else wants it; put to sleep at once, each of the hundreds of short
operations of an iteration pays for waking them. They spin here for a fraction of a millisecond,
then sleep. 150 iterations of the demo: 17.4 s against 23.1 s asleep at once and 22.3 s spinning for
ever; beside two busy programs 32.0, 33.4 and (spinning ten times as long) 42.1 s; docs/log.md.
``OMP_WAIT_POLICY`` and ``GOMP_SPINCOUNT`` in the environment win. Read once, when torch loads.

**Before two compute.** MKL's vector functions (square root, logarithm, ...) choose their
implementation at their first call. Made by two threads at once, that call now and then computed one
thread's share by another implementation than ever after, a unit in the last place off: the same
seed trained two different models. So the first call is made here, by one thread.

**Memory**, too, is told here how to be kept, see `utils.allocator`. And torch is to ask for huge
pages for what takes 2 MB or more, where Linux lets it: an iteration with 100,000 Gaussians takes
5 % less time, one with 300,000 7 % less, the demo's 2 % more; docs/log.md. With
``THP_MEM_ALLOC_ENABLE=0`` in the environment it does not.
"""

from __future__ import annotations

import os

from utils.allocator import keep_freed_memory

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # some 0.2 ms
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import torch  # (it reads all of them once)

keep_freed_memory()
torch.ones(1).sqrt()  # one element: on this thread alone
