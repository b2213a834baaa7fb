"""What proves that a file is what was written, and reading that no file can turn against us.

A *sealed* JSON file ends in the SHA-256 of all its bytes before that line, so that a change of any
one byte, a space included, is noticed. Other files are proven by a sealed one that holds their
sizes and digests.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from pathlib import Path
from typing import Any

from utils.errors import UserError, brief
from utils.files import atomic_file

LARGEST_JSON = 1 << 28  # bytes; a checkpoint's queue of samples is some megabytes
_SEAL = re.compile(rb'(?P<body>.*),\n  "seal": "(?P<seal>[0-9a-f]{64})"\n\}\n', re.DOTALL)


def plain_file(path: Path) -> Path:
    """``path``, which is a file itself: no link out of its folder, no device and no pipe.

    Raises:
        UserError: it is something else, or missing.
    """
    try:
        mode = path.lstat().st_mode
    except OSError as error:
        raise UserError(
            f"{path} is missing ({error.strerror}): the folder is incomplete, copy it again"
        ) from None
    if stat.S_ISLNK(mode):
        raise UserError(f"{path} is a symbolic link: put the file itself there (cp -L)")
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is no regular file: copy the folder again")
    return path


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def check_file(path: Path, sha256: Any, size: Any = None) -> None:
    """Refuses a file whose content is not what was written.

    Args:
        size: bytes it must have, looked at before its content is read; None: not known.
    """
    actual = plain_file(path).stat().st_size
    if size is not None and actual != size:
        raise UserError(
            f"{path} is damaged ({actual} bytes instead of {brief(size, 30)}): copy it again"
        )
    if digest(path) != sha256:
        raise UserError(f"{path} is damaged (its SHA-256 differs): copy it again or train anew")


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Writes ``value``, not empty, as indented JSON with a seal, atomically."""
    if not value or "seal" in value:
        raise ValueError("only an object with other keys than 'seal' can be sealed")
    body = json.dumps(value, indent=2, allow_nan=False).removesuffix("\n}").encode()
    seal = hashlib.sha256(body).hexdigest()
    with atomic_file(path) as temporary:
        temporary.write_bytes(body + f',\n  "seal": "{seal}"\n}}\n'.encode())


def read_sealed(path: Path) -> tuple[dict[str, Any], bool]:
    """The object in a JSON file without its seal, and whether it has one.

    Raises:
        UserError: the file is missing, too large, no JSON object, or its seal is broken.
    """
    data = _read(plain_file(path))
    match = _SEAL.fullmatch(data)
    broken = match and hashlib.sha256(match["body"]).hexdigest().encode() != match["seal"]
    if broken or (not match and b'"seal"' in data):
        raise UserError(f"{path} is damaged (its seal is broken): copy it again or train anew")
    value = _parse(path, data)
    value.pop("seal", None)
    return value, bool(match)


def _read(path: Path) -> bytes:
    if path.stat().st_size > LARGEST_JSON:
        raise UserError(f"{path} is larger than {LARGEST_JSON >> 20} MiB: is it the right file?")
    return path.read_bytes()


def _parse(path: Path, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:  # wrong encodings are ValueErrors too
        raise UserError(f"{path} is not readable JSON: {brief(error)}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object")
    return value
