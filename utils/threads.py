"""How threads wait; imported before torch by every entry point.

OpenMP's threads spin for milliseconds after each parallel region by default. The rasteriser's own
threads run in between, so on a small machine the spinning takes the processor from them: on two
cores an iteration then costs up to twice as much. The variable is read once, when torch loads.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
