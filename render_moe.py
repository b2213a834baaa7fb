"""Renders and measures a MoE of train_moe.py: blended pictures, each expert's own, and the gates.

    python render_moe.py --model_path output/coffee_martini_moe

writes images, videos and ``metrics.json`` to ``<run>/{train,test,video}/ours_<iteration>``. Each
set can be left out, and so can experts: ``--experts hexplane keyframe``.
"""

from __future__ import annotations

from collections.abc import Sequence

import utils.threads  # noqa: F401  (before torch)
from training.moe import rendering
from utils.errors import cli


def main(argv: Sequence[str] | None = None) -> int:
    """Parses, loads, renders; returns the exit code."""
    return rendering.main(argv, "render_moe.py", "Render and measure a mixture of dynamic models.")


if __name__ == "__main__":
    cli(main)
