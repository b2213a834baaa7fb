"""Reads pickles of nested dicts of float32 numpy arrays without the pickle machine.

The weights of one package are published only as such pickles. Unpickling a file means running it;
this reader walks the instructions as data instead and knows the few that such a file needs: no
name in the file is ever imported or called, so the worst a hostile file can do is be refused.
"""

from __future__ import annotations

import io
import pickletools
from pathlib import Path
from typing import Any

import numpy as np

_RECONSTRUCT = {
    "numpy.core.multiarray _reconstruct",
    "numpy._core.multiarray _reconstruct",
}
_KNOWN_GLOBALS = _RECONSTRUCT | {"numpy ndarray", "numpy dtype"}
_LITERALS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE"),
    *("SHORT_BINBYTES", "BINBYTES"),
}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


class ArrayPickleError(ValueError):
    """The file is damaged, or holds something other than nested dicts of float32 arrays."""


class _Name(str):
    """A global that the file mentions, "module name"."""


class _Unfinished:
    """An array or a dtype whose state has not been read yet."""

    def __init__(self, kind: str) -> None:
        self.kind = kind


def read_array_pickle(path: str | Path, max_bytes: int = 2**28) -> dict[str, Any]:
    """Nested dicts of read-only float32 arrays from a pickle of any protocol up to 3.

    Raises:
        ArrayPickleError: the file is larger than ``max_bytes``, damaged, or not of this kind.
    """
    size = Path(path).stat().st_size
    if size > max_bytes:
        raise ArrayPickleError(f"{size} bytes are more than the {max_bytes} expected")
    try:
        # From memory, where a length that lies cannot make read() allocate more than there is.
        result = _Walker().run(io.BytesIO(Path(path).read_bytes()))
    except ArrayPickleError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise ArrayPickleError(f"damaged: {error}") from error
    if not isinstance(result, dict):
        raise ArrayPickleError("holds no dict")
    return result


class _Walker:
    """The stack and the memo of a pickle, filled by its instructions."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, file: Any) -> Any:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "STOP":
                return self.stack.pop()
            self.step(opcode.name, argument)
        raise ArrayPickleError("damaged: it has no end")

    def step(self, name: str, argument: Any) -> None:
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _LITERALS:
            self.stack.append(_LITERALS[name])
        elif name in _TUPLES:
            self.stack.append(self.pop_many(_TUPLES[name]))
        else:
            handler = getattr(self, f"do_{name.lower()}", None)
            if handler is None:
                raise ArrayPickleError(f"refused: instruction {name} has no place in arrays")
            handler(argument)

    def pop_many(self, count: int) -> tuple:
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return tuple(values)

    def pop_to_mark(self) -> tuple:
        for count, value in enumerate(reversed(self.stack)):
            if value is _MARK:
                values = self.pop_many(count)
                self.stack.pop()
                return values
        raise ArrayPickleError("damaged: a mark is missing")

    def do_proto(self, _: int) -> None:
        """The version says nothing that the instructions do not."""

    def do_mark(self, _: None) -> None:
        self.stack.append(_MARK)

    def do_empty_dict(self, _: None) -> None:
        self.stack.append({})

    def do_tuple(self, _: None) -> None:
        self.stack.append(self.pop_to_mark())

    def do_binput(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    do_long_binput = do_binput

    def do_binget(self, index: int) -> None:
        self.stack.append(self.memo[index])

    do_long_binget = do_binget

    def do_setitem(self, _: None) -> None:
        self.set_items(self.pop_many(2))

    def do_setitems(self, _: None) -> None:
        self.set_items(self.pop_to_mark())

    def set_items(self, values: tuple) -> None:
        target = self.stack[-1]
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, str) or type(value) not in (dict, np.ndarray):
                raise ArrayPickleError("holds something other than named arrays")
            target[key] = value

    def do_global(self, name: str) -> None:
        if name not in _KNOWN_GLOBALS:
            raise ArrayPickleError(f"refused: it names {name.replace(' ', '.')}")
        self.stack.append(_Name(name))

    def do_reduce(self, _: None) -> None:
        called, arguments = self.pop_many(2)
        if not isinstance(called, _Name) or not isinstance(arguments, tuple):
            raise ArrayPickleError("refused: it calls something that is no numpy constructor")
        if called in _RECONSTRUCT:
            self.stack.append(_Unfinished("array"))
        elif called == "numpy dtype" and arguments[0] == "f4":
            self.stack.append(_Unfinished("dtype"))
        else:
            raise ArrayPickleError("holds arrays of another type than float32")

    def do_build(self, _: None) -> None:
        target, state = self.pop_many(2)
        if not isinstance(target, _Unfinished):
            raise ArrayPickleError("refused: it sets the state of something that is no array")
        self.stack.append(target if target.kind == "dtype" else _array(state))
        if target.kind == "dtype" and state[1] not in ("<", "="):
            raise ArrayPickleError("holds arrays that are not little-endian")


def _array(state: tuple) -> np.ndarray:
    """What numpy's ``__setstate__`` makes of (version, shape, dtype, Fortran order, bytes)."""
    _, shape, dtype, fortran, data = state
    if not (isinstance(dtype, _Unfinished) and dtype.kind == "dtype" and isinstance(data, bytes)):
        raise ArrayPickleError("holds arrays of another type than float32")
    return np.frombuffer(data, "<f4").reshape(shape, order="F" if fortran else "C")
