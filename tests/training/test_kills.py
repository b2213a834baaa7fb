"""A few of the kills of `kills.py`; it is the place to ask for more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("kills.py")


@pytest.mark.slow
def test_killed_trainers_are_resumed_to_the_same_bits(root):
    """In a process of its own: it forks, which one with threads should not."""
    command = [sys.executable, str(DRIVER), "--kills", "8", "--seed", "1"]
    paths = os.pathsep.join([str(root), str(root / "tests/scene/datasets")])
    environment = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout)
    assert said["kills"] == said["resumed"] == 8 and said["runs"] >= 2
