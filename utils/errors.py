"""Errors that a user can cause, and how every entry point reports them."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence

_LONGEST = 1200  # characters of a message
_SURROUNDINGS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)  # no bug of ours


class UserError(Exception):
    """Something the user can mend; the message is one line: the file or flag, and the remedy.

    What damaged files bring into a message (line breaks, control characters, pages of text) is
    taken out or cut in the middle.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_cut(_one_line(message), _LONGEST))


def brief(said: object, most: int = 160) -> str:
    """What a library or a damaged file says, as a part of a message."""
    return _cut(_one_line(str(said)), most)


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    return f"{text[: 2 * most // 3]} ... {text[len(text) - most // 3 :]}"


def cli(main: Callable[[Sequence[str] | None], int | None]) -> None:
    """Runs ``main(None)`` as a command: a `UserError` becomes one line on stderr and exit code 2.

    So does an error of the operating system that names a file (no permission) or is of the disk
    (full, read-only). Ctrl-C exits with 130 and a line, as shells expect, and another signal with
    128 + its number; any other exception is a bug and keeps its traceback. Warnings are a line
    each, without the line of code that they came from. Characters that the output's encoding does
    not have are written as ``\\xe9``, and what is closed (``2>&-``) takes everything.
    """
    sys.stdout = sys.stdout or open(os.devnull, "w")  # None: it is closed
    sys.stderr = sys.stderr or open(os.devnull, "w")
    if isinstance(sys.stdout, io.TextIOWrapper):  # as stderr is, and no traceback
        sys.stdout.reconfigure(errors="backslashreplace")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        code = main(None)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # whoever read the output has enough of it, as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain
        sys.exit(1)
    except OSError as error:
        if error.filename is None and error.errno not in _SURROUNDINGS:
            raise
        where = "" if error.filename is None else f"{error.filename}: "
        print(f"error: {where}{error.strerror}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as error:
        number = getattr(error, "number", signal.SIGINT)
        print("interrupted" if number == signal.SIGINT else "terminated", file=sys.stderr)
        sys.exit(128 + number)
    sys.exit(code or 0)
