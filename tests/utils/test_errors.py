"""utils/errors.py: how commands end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHATTY = "from utils.errors import cli\ncli(lambda _: print('\\n'.join(['line'] * 100000)))"


def test_a_reader_that_has_enough_is_no_error_to_talk_about():
    command = [sys.executable, "-c", CHATTY]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout.readline() == "line\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1
