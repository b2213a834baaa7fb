"""Trains MoDE with a HexPlane and a per-Gaussian embedding expert.

    python train_emb.py -s data/N3V/coffee_martini --expname output/coffee_martini \
        --configs arguments_MoDE/dynerf/config_rot_0/coffee_martini.py

On a machine without a GPU, a recipe of its size (a few minutes):

    python train_emb.py -s demo/scene --expname output/demo --configs arguments_MoDE/demo/demo.py
"""

from __future__ import annotations

from collections.abc import Sequence

import utils.threads  # noqa: F401  (before torch)
from training.launch import train_main
from utils.errors import cli

EXPERTS = ("hexplane", "embedding")


def main(argv: Sequence[str] | None = None) -> int:
    """Parses, builds, trains; returns the exit code."""
    description = "Train a HexPlane + embedding mixture on a scene."
    return train_main(argv, "train_emb.py", description, EXPERTS)


if __name__ == "__main__":
    cli(main)
