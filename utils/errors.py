"""Errors that a user can cause, and how every entry point reports them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence


class UserError(Exception):
    """Something the user can mend; the message is one line: the file or flag, and the remedy."""


def cli(main: Callable[[Sequence[str] | None], int | None]) -> None:
    """Runs ``main(None)`` as a command: a `UserError` becomes one line on stderr and exit code 2.

    So does an error of the operating system that names a file (no permission, disk full). Ctrl-C
    exits with 130 and a line, as shells expect; any other exception is a bug and keeps its
    traceback. Warnings are a line each, without the line of code that they came from.
    """
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        code = main(None)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(code or 0)
