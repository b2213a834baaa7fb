"""Renders and measures a run of train_hash.py: training views, held-out views, a path of new ones.

    python render_hash.py --model_path output/coffee_martini_hash --iteration 30000

writes what `render_emb.py` writes. A run knows its experts, so that either command renders any run;
``--configs`` is only checked against it:

    python render_hash.py --skip_test --skip_train --model_path output/coffee_martini_hash \\
        --configs arguments_MoDE/hash/config_0/coffee_martini.py --iteration 30000
"""

from __future__ import annotations

from collections.abc import Sequence

import utils.threads  # noqa: F401  (before torch)
from training.rendering import render_main
from utils.errors import cli


def main(argv: Sequence[str] | None = None) -> int:
    """Parses, loads, renders; returns the exit code."""
    return render_main(argv, "render_hash.py", "Render and measure a HexPlane + hash-grid mixture.")


if __name__ == "__main__":
    cli(main)
