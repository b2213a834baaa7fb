"""Measures runs or folders of images against ground truth by a named protocol, and compares them.

    python evaluate.py output/demo --out output/demo_evaluation
    python evaluate.py output/demo output/demo_static --out output/comparison
    python evaluate.py output/demo/test/ours_1000 --out output/demo_pictures
    python evaluate.py MINE --gt TRUTH --protocol technicolor --out output/mine

writes ``report.html`` and ``report.md`` with plots and the worst views as pictures, all numbers to
``evaluation.json``, and those of single views to ``views.csv``. ``--list_protocols`` prints what
the protocols are and where they come from; docs/evaluation.md explains the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import utils.threads  # noqa: F401  (before torch)
from evaluation.command import evaluate_main
from utils.errors import cli


def main(argv: Sequence[str] | None = None) -> int:
    """Parses, measures, reports; returns the exit code."""
    return evaluate_main(argv)


if __name__ == "__main__":
    cli(main)
