"""Renders and measures a run of train_emb.py: training views, held-out views, a path of new ones.

    python render_emb.py --model_path output/coffee_martini --iteration 30000

writes images, videos and ``metrics.json`` to ``<run>/{train,test,video}/ours_<iteration>``. Each
set can be left out; everything else is read from the run, and ``--configs`` is only checked
against it:

    python render_emb.py --skip_test --skip_train --model_path output/coffee_martini \\
        --configs arguments_MoDE/emb/config_0/coffee_martini.py --iteration 30000
"""

from __future__ import annotations

from collections.abc import Sequence

import utils.threads  # noqa: F401  (before torch)
from training.rendering import render_main
from utils.errors import cli


def main(argv: Sequence[str] | None = None) -> int:
    """Parses, loads, renders; returns the exit code."""
    return render_main(argv, "render_emb.py", "Render and measure a HexPlane + embedding mixture.")


if __name__ == "__main__":
    cli(main)
