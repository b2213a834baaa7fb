"""utils/errors.py: what is in a message stays one line that can be read."""

from __future__ import annotations

import pytest

from utils.errors import UserError, brief


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("a.ply: damaged; copy it again", "a.ply: damaged; copy it again"),
        ("a\nb\r\nc\td", "a b  c d"),
        ("a\0b\x1b[31mc", "a\ufffdb\ufffd[31mc"),
        ("ü 点", "ü 点"),
    ],
)
def test_a_message_is_one_line_that_can_be_printed(message, shown):
    assert str(UserError(message)) == shown


def test_a_long_message_keeps_its_file_and_its_remedy():
    message = str(UserError(f"a.ply: {'x' * 10_000}; make it again"))
    assert message.startswith("a.ply: xxx") and message.endswith("xxx; make it again")
    assert len(message) < 1300


def test_what_a_library_says_is_cut():
    assert brief(ValueError("short")) == "short"
    assert len(brief(ValueError("long" * 1000))) < 170
