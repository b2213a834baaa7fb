"""utils/errors.py: how commands end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("encoding", ["ascii", "ascii:surrogateescape", "latin-1"])
def test_characters_that_the_output_cannot_show_do_not_end_a_command(encoding):
    code = "from utils.errors import cli\ncli(lambda _: print('\u2026'))"
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("\\u2026\n", "", 0)


def test_closed_outputs_do_not_end_a_command():
    code = (
        "import sys\nfrom utils.errors import cli\n"
        "cli(lambda _: print('x') or sys.stderr.write('x') and sys.stdout.write('x') and 3)"
    )
    command = ["sh", "-c", '"$0" -c "$1" >&- 2>&-', sys.executable, code]
    assert subprocess.run(command, cwd=ROOT).returncode == 3
