"""How threads wait; imported before torch by every entry point.

OpenMP's threads spin for milliseconds after each parallel region by default, which takes the
processor from whoever else wants it. Where other programs share the machine, waiting without
spinning made an iteration much faster (225 ms to 135 ms on two busy cores); where nothing else runs
it made it slower (84 to 115 ms became 92 to 124 ms). Passive is the choice that never goes badly
wrong; ``OMP_WAIT_POLICY=ACTIVE`` in the environment wins over it. Read once, when torch loads.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
