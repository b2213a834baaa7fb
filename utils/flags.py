"""Reading numbers from a command line."""

from __future__ import annotations

import argparse
import re
from typing import Any

_NEGATIVE = re.compile(r"-(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?$")


class NumberParser(argparse.ArgumentParser):
    """Takes every negative number for a value.

    argparse knows those without an exponent only, and takes ``-1e-3`` for a flag.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._negative_number_matcher = _NEGATIVE  # no public name for it
