"""Reading published files without running anything in them."""

from __future__ import annotations

import ast
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arguments_MoDE.recipe import literal, read_text
from utils.errors import UserError, brief
from utils.verify import plain_file

LARGEST_CFG = 1 << 20  # bytes


def read_namespace(path: Path) -> dict[str, Any]:
    """The settings in a ``cfg_args``: the printed text of an argparse Namespace, read as literals.

    Raises:
        UserError: it is anything but ``Namespace(name=literal, ...)``.
    """
    text = read_text(plain_file(path), "settings", LARGEST_CFG)
    try:
        node = ast.parse(text.strip(), filename=str(path), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{path} cannot be read as settings: {brief(error)}") from None
    named = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args
    if not named or node.func.id != "Namespace" or any(k.arg is None for k in node.keywords):
        raise UserError(f"{path} is no Namespace(name=value, ...); it is read, never run")
    names = [keyword.arg for keyword in node.keywords]
    if len(set(names)) != len(names):
        raise UserError(f"{path} gives a setting twice; no program printed that")
    return {keyword.arg: literal(path, keyword.value) for keyword in node.keywords}


def load_pickled(path: Path) -> Any:
    """What ``torch.save`` wrote, by PyTorch's restricted unpickler: tensors and plain containers.

    Raises:
        UserError: the file is missing, damaged, packed, of PyTorch before 1.6, or holds code.
    """
    _check_archive(plain_file(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles newer than its default
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file made for it makes the library raise
        said = brief(str(error).strip().partition("\n")[0] or type(error).__name__)
        raise UserError(f"{path} holds more than tensors, or is damaged: {said}") from None


def _check_archive(path: Path) -> None:
    """Refuses an archive that holds more bytes than it has."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"{path} is no file of torch.save since PyTorch 1.6: {brief(error)}"
        ) from None
    packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if packed or sum(member.file_size for member in members) > path.stat().st_size:
        raise UserError(f"{path} claims more bytes than it has; torch.save packs nothing")


def state_dict(path: Path, value: Any) -> dict[str, Tensor]:
    """``value`` as names and float32 (or whole-number) tensors on the CPU.

    Raises:
        UserError: it is something else, or a number is not finite.
    """
    if not isinstance(value, Mapping):
        raise UserError(f"{path} holds a {type(value).__name__} where a state_dict is expected")
    tensors = {}
    for name, item in value.items():
        if not isinstance(name, str) or not isinstance(item, Tensor):
            raise UserError(f"{path}: {brief(repr(name), 60)} is no named tensor")
        tensors[name] = _checked(path, name, item)
    return tensors


def _checked(path: Path, name: str, value: Tensor) -> Tensor:
    plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
    if not plain or value.dtype.is_complex:
        raise UserError(f"{path}: {brief(name, 60)} is no plain tensor")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise UserError(f"{path}: {brief(name, 60)} claims more numbers than the file has")
    value = value.detach()
    if value.is_floating_point():
        value = value.float()
        if not value.isfinite().all():
            raise UserError(f"{path}: {brief(name, 60)} holds numbers that are not finite")
    return value.contiguous()
