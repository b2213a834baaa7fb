"""Negative numbers on a command line."""

from __future__ import annotations

import pytest

from utils.flags import NumberParser


@pytest.fixture
def parser() -> NumberParser:
    made = NumberParser(exit_on_error=False)
    group = made.add_argument_group("numbers")
    group.add_argument("-x", type=float)
    group.add_argument("--many", type=float, nargs="*")
    return made


@pytest.mark.parametrize(
    "text", ["-1", "-0.5", "-.5", "-5.", "-1e-3", "-2.5E+4", "-.5e2", "-1_0e1"]
)
def test_every_way_to_write_a_negative_number_is_a_value(parser, text):
    found = parser.parse_args(["-x", text, "--many", text, "1", text])
    assert found.x == float(text) and found.many == [float(text), 1.0, float(text)]


@pytest.mark.parametrize("text", ["-e3", "-1e", "-1-2", "--1e3", "-y"])
def test_other_words_with_a_dash_are_flags(parser, text):
    assert parser.parse_known_args(["--many", "1", text])[1] == [text]
