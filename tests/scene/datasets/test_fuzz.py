"""Thousands of damaged files: every one is refused by name in one line, or read right."""

from __future__ import annotations

import os
import signal
import time

import builders
import fuzzing
import numpy as np
import pytest

CASES = 10_000


@pytest.mark.slow
def test_damaged_files_are_refused_by_name_or_read_right():
    outcomes = fuzzing.run([fuzzing.Case(0, number) for number in range(CASES)])
    assert len(outcomes) == CASES
    failures = [str(outcome) for outcome in outcomes if outcome.fault is not None]
    assert not failures, "\n".join(
        [*failures[:20], "again: python tests/scene/datasets/fuzzing.py --only seed:number"]
    )
    results = [outcome.result for outcome in outcomes]
    assert results.count("refused") > 0.5 * CASES  # the damage is real
    assert results.count("changed") and results.count("same")


def test_a_case_is_the_same_whenever_it_is_run():
    data = b"0123456789" * 40
    for number in range(50):
        case = fuzzing.Case(3, number)
        if not case.pair[1].endswith(".json"):
            assert case.damage(data) == case.damage(data)


def _hang(root, **_) -> None:
    time.sleep(60)


def _crash(root, **_) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _fail(root, **_) -> None:
    raise KeyError("frames")


def _allocate(root, **_) -> None:
    np.empty(fuzzing.MEMORY + 1, np.uint8)


def _refuse_badly(root, **_) -> None:
    from utils.errors import UserError

    raise UserError("something is wrong somewhere")


def _print_traceback(root, **_) -> None:
    from utils.errors import UserError

    os.write(2, b"Traceback (most recent call last):\n")
    raise UserError("cam01.mp4: bad")


@pytest.mark.parametrize(
    ("reader", "result"),
    [
        (_hang, "hang"),
        (_crash, "crash"),
        (_fail, "exception"),
        (_allocate, "exception"),
        (_refuse_badly, "refused"),
        (_print_traceback, "stderr"),
    ],
)
def test_what_readers_must_not_do_is_noticed(monkeypatch, reader, result):
    load, parent = builders.load, os.getpid()

    def misbehave(root, **settings):
        return load(root, **settings) if os.getpid() == parent else reader(root, **settings)

    monkeypatch.setattr(builders, "load", misbehave)
    monkeypatch.setattr(fuzzing, "SECONDS", 0.5)
    (outcome,) = fuzzing.run([fuzzing.Case(0, 0)], workers=1)
    assert outcome.result == result and outcome.fault is not None


def test_a_reader_that_does_not_look_is_noticed(monkeypatch):
    """One that gives the same scene for anything, but for a point less or another pixel."""
    load, parent = builders.load, os.getpid()
    wholes: dict = {}

    def careless(root, **settings):
        if os.getpid() == parent:
            wholes[root.name] = load(root, **settings)
            return wholes[root.name]
        scene = wholes[root.name]
        scene.points.xyz, scene.points.rgb = scene.points.xyz[:-1], scene.points.rgb[:-1]
        return scene

    monkeypatch.setattr(builders, "load", careless)
    outcomes = fuzzing.run([fuzzing.Case(0, number) for number in range(44)], workers=1)
    assert sum(outcome.result == "wrong" for outcome in outcomes) > 30
