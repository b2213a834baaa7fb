"""The reader of pickled arrays: right on what it is for, and deaf to everything else."""

from __future__ import annotations

import os
import pickle
import struct

import numpy as np
import pytest

from utils.array_pickle import ArrayPickleError, read_array_pickle


def _arrays() -> dict:
    generator = np.random.default_rng(0)
    kernel = generator.normal(size=(3, 2, 4, 5)).astype(np.float32)
    return {
        "Net_0": {"Conv_0": {"kernel": kernel, "bias": np.zeros(0, np.float32)}},
        "Lin_0": {
            "fortran": np.asfortranarray(kernel[0, 0]),
            "scalar": np.float32([2]).reshape(()),
        },
    }


def _same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return a.shape == b.shape and bool((a == b).all())


class _Runs:
    """Unpickling it touches a file."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_arrays_come_back_as_they_were(tmp_path):
    path = tmp_path / "a.ckpt"
    path.write_bytes(pickle.dumps(_arrays(), protocol=3))
    assert _same(read_array_pickle(path), _arrays())


def test_a_pickle_that_runs_a_command_is_refused_and_runs_nothing(tmp_path):
    path, trace = tmp_path / "a.ckpt", tmp_path / "trace"
    path.write_bytes(pickle.dumps({"a": _Runs(trace)}, protocol=3))
    with pytest.raises(ArrayPickleError, match="refused.*system"):
        read_array_pickle(path)
    assert not trace.exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_commands_are_refused_in_every_protocol(tmp_path, protocol):
    path, trace = tmp_path / "a.ckpt", tmp_path / "trace"
    path.write_bytes(pickle.dumps(_Runs(trace), protocol=protocol))
    with pytest.raises(ArrayPickleError):
        read_array_pickle(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    "content",
    [
        {"a": 3},
        {"a": [1]},
        {3: np.zeros(2, np.float32)},
        {"a": np.zeros(2, np.float64)},
        {"a": np.array([None])},
        {"a": np.zeros(2, ">f4")},
        [np.zeros(2, np.float32)],
        "text",
    ],
)
def test_other_contents_are_refused(tmp_path, content):
    path = tmp_path / "a.ckpt"
    path.write_bytes(pickle.dumps(content, protocol=3))
    with pytest.raises(ArrayPickleError):
        read_array_pickle(path)


def test_truncations_are_refused(tmp_path):
    path = tmp_path / "a.ckpt"
    whole = pickle.dumps(_arrays(), protocol=3)
    for length in range(0, len(whole), 5):
        path.write_bytes(whole[:length])
        with pytest.raises(ArrayPickleError):
            read_array_pickle(path)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_random_damage_never_escapes_as_another_error(tmp_path):
    path = tmp_path / "a.ckpt"
    whole = pickle.dumps(_arrays(), protocol=3)
    generator = np.random.default_rng(1)
    for _ in range(500):
        damaged = bytearray(whole)
        for position in generator.integers(0, len(whole), 3):
            damaged[position] = generator.integers(256)
        path.write_bytes(bytes(damaged))
        try:
            read_array_pickle(path)
        except ArrayPickleError:
            pass


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x03.",
        b"\x80\x03(((((.",
        b"\x80\x03}r" + struct.pack("<I", 2**32 - 1) + b".",  # a memo of 32 GB, were it an array
        b"\x80\x03B" + struct.pack("<I", 2**32 - 1) + b"x.",
        b"\x80\x03h\x07.",
        b"\x80\x03}u.",
        b"\x80\x03}(X\x01\x00\x00\x00au.",
    ],
)
def test_malformed_instructions(tmp_path, content):
    path = tmp_path / "a.ckpt"
    path.write_bytes(content)
    if content.startswith(b"\x80\x03}r"):
        assert read_array_pickle(path) == {}
    else:
        with pytest.raises(ArrayPickleError):
            read_array_pickle(path)


def test_a_file_beyond_the_budget_is_refused_unread(tmp_path):
    path = tmp_path / "a.ckpt"
    path.write_bytes(pickle.dumps(_arrays(), protocol=3))
    with pytest.raises(ArrayPickleError, match="more than the 100"):
        read_array_pickle(path, max_bytes=100)
