"""Reads recipe files of the published shape without ever executing them.

A recipe is a Python file that holds literals only::

    _base_ = "default.py"  # or a list; relative to this file; later ones win
    OptimizationParams = dict(iterations=30000, batch_size=4)
    ModelHiddenParams = {"kplanes_config": {"resolution": [64, 64, 64, 150]}}

Strings, numbers, ``None``, booleans, lists, tuples, dicts, and ``+ - * /`` of numbers are read;
anything else is an error that names its line. Dicts are merged key by key over the base's.

A recipe of `train_moe.py` has three sections more: what is mixed, settings of single members that
are laid over the others, and those of the router::

    MoEParams = dict(members=["hexplane", "polynomial"])
    ExpertParams = dict(polynomial=dict(OptimizationParams=dict(movelr=100.0)))
    RouterParams = dict(router_iterations=600)
"""

from __future__ import annotations

import ast
import difflib
import operator
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arguments_MoDE.config import MoEParams, RouterParams
from arguments_MoDE.retired import ANY, RETIRED, TRANSLATED
from arguments_MoDE.values import Sections, accept, all_settings, section_types, settings_of
from utils.errors import UserError

LARGEST_FILE = 256 * 1024  # bytes; recipes are a few kilobytes
LARGEST_NUMBER = 1e300  # that arithmetic may give
REPOSITORY = Path(__file__).resolve().parents[1]

Note = Callable[[str], None]


@dataclass
class MoERecipe:
    """What a recipe of `train_moe.py` sets, and only that."""

    common: Sections = field(default_factory=dict)  # for every member
    moe: dict[str, Any] = field(default_factory=dict)  # of `MoEParams`
    experts: dict[str, Sections] = field(default_factory=dict)  # member -> over the common ones
    router: dict[str, Any] = field(default_factory=dict)  # of `RouterParams`


_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def print_note(text: str) -> None:
    """Shows a remark on stderr, so that it never mixes with results."""
    print(f"note: {text}", file=sys.stderr)


def read_recipe(path: str | Path, note: Note = print_note) -> Sections:
    """Reads a recipe and its bases into ``{section: {key: value}}``, holding only what they set.

    Args:
        path: the file, relative to the current directory or else to the repository.
        note: receives a line for every published key that has no effect here.

    Raises:
        UserError: names the file, and the line where there is one.
    """
    recipe = read_moe_recipe(path, note)
    if recipe.moe or recipe.experts or recipe.router:
        raise UserError(
            f"recipe {path} is of several models: train them with train_moe.py, or give one of "
            "the recipes that its _base_ names"
        )
    return recipe.common


def read_moe_recipe(path: str | Path, note: Note = print_note) -> MoERecipe:
    """Reads a recipe that may have the sections of `train_moe.py`; otherwise as `read_recipe`."""
    return _read(find_recipe(path), note, ())


def find_recipe(path: str | Path) -> Path:
    """The recipe's file; UserError with the nearest names where there is none."""
    path = Path(path)
    for candidate in (path, REPOSITORY / path):
        if candidate.is_file():
            return candidate
    if path.is_dir():
        raise UserError(f"recipe {path} is a folder; give one of its .py files")
    raise UserError(f"recipe {path} does not exist{_nearest_recipes(path)}")


def read_text(path: Path, what: str, limit: int = LARGEST_FILE) -> str:
    """A small UTF-8 text file; UserError where it cannot be read, is too large or is not text."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"{what} {path}: {error.strerror}") from None
    if len(data) > limit:
        raise UserError(f"{what} {path} is larger than {limit // 1024} KiB; is it the right file?")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{what} {path} is not UTF-8 text (byte {error.start})") from None


def nearest(name: str, names: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` with the nearest of ``names``, or nothing when none is near."""
    by_lower = {other.lower(): other for other in names}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[found[0]]!r}?" if found else ""


# -------------------------------------------------------------------------------------- files


def _read(path: Path, note: Note, above: tuple[Path, ...]) -> MoERecipe:
    here = path.resolve()
    if here in above:
        raise UserError(f"recipe {path}: _base_ leads back to this file; remove one of the links")
    assignments = _assignments(path)
    result = MoERecipe()
    for base in _bases(path, assignments):
        _merge_recipes(result, _read(base, note, (*above, here)))
    _merge_recipes(result, _own(path, assignments, note))
    return result


def _merge_recipes(target: MoERecipe, source: MoERecipe) -> None:
    _merge(target.common, source.common)
    target.moe |= source.moe
    target.router |= source.router
    for member, sections in source.experts.items():
        _merge(target.experts.setdefault(member, {}), sections)


def _nearest_recipes(path: Path) -> str:
    beside = path.parent.glob("*.py") if path.parent.is_dir() else ()
    ours = (p.relative_to(REPOSITORY) for p in (REPOSITORY / "arguments_MoDE").glob("*/**/*.py"))
    names = sorted({str(candidate) for candidate in (*beside, *ours)})
    found = difflib.get_close_matches(str(path), names, n=3, cutoff=0.5)
    return f"; the nearest are {', '.join(found)}" if found else ""


def _merge(target: Sections, source: Sections) -> None:
    for section, values in source.items():
        known = target.setdefault(section, {})
        for key, value in values.items():
            both = isinstance(value, dict) and isinstance(known.get(key), dict)
            known[key] = {**known[key], **value} if both else value


def _bases(path: Path, assignments: dict[str, ast.expr]) -> Iterator[Path]:
    if "_base_" not in assignments:
        return
    node = assignments["_base_"]
    value = literal(path, node)
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}:{node.lineno}: _base_ must be a file name or a list of them")
    for name in names:
        base = path.parent / name
        if not base.is_file():
            near = _nearest_recipes(base)
            raise UserError(f"{path}:{node.lineno}: _base_ {base} does not exist{near}")
        yield base


# ----------------------------------------------------------------------------------- literals


def _assignments(path: Path) -> dict[str, ast.expr]:
    """Name -> expression of the file's top-level assignments; nothing else may stand there."""
    found: dict[str, ast.expr] = {}
    for statement in _parse(path).body:
        if isinstance(statement, ast.Expr) and _is_string(statement.value):
            continue  # a docstring
        target = statement.targets[0] if isinstance(statement, ast.Assign) else None
        if not isinstance(target, ast.Name) or len(statement.targets) > 1:
            raise UserError(
                f"{path}:{statement.lineno}: a recipe holds only assignments like "
                "OptimizationParams = dict(...); it is read, never run"
            )
        if target.id in found:
            raise UserError(f"{path}:{statement.lineno}: {target.id} is assigned twice; merge them")
        found[target.id] = statement.value
    return found


def _parse(path: Path) -> ast.Module:
    text = read_text(path, "recipe")
    try:
        return ast.parse(text, filename=str(path))
    except SyntaxError as error:
        raise UserError(f"{path}:{error.lineno or 1}: syntax error: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"recipe {path} cannot be parsed: {error or 'nested too deeply'}") from None


def literal(path: Path, node: ast.expr) -> Any:
    """The value of a literal expression; lists for tuples."""
    try:
        return _value(path, node)
    except RecursionError:
        raise UserError(f"{path}:{node.lineno}: nested too deeply") from None


def _value(path: Path, node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, (str, int, float, type(None))):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(path, item) for item in node.elts]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        number = _number(path, node.operand)
        return -number if isinstance(node.op, ast.USub) else number
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _arithmetic(path, node)
    if _is_dict(node):
        return {key: _value(path, value) for key, value in _items(path, node)}
    raise UserError(
        f"{path}:{node.lineno}: {_excerpt(node)} is not a literal; "
        "only strings, numbers, lists and dicts are read, and nothing is run"
    )


def _number(path: Path, node: ast.expr) -> float:
    value = _value(path, node)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{path}:{node.lineno}: {_excerpt(node)} is not a number")
    return value


def _arithmetic(path: Path, node: ast.BinOp) -> float:
    left, right = _number(path, node.left), _number(path, node.right)
    try:
        result = _OPERATORS[type(node.op)](left, right)
    except (ZeroDivisionError, OverflowError) as error:
        raise UserError(f"{path}:{node.lineno}: {_excerpt(node)}: {error}") from None
    if not abs(result) <= LARGEST_NUMBER:
        raise UserError(f"{path}:{node.lineno}: {_excerpt(node)} is too large a number")
    return result


def _is_string(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_dict(node: ast.expr) -> bool:
    """``{...}`` or ``dict(...)`` with keywords only."""
    if isinstance(node, ast.Dict):
        return True
    call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    return call and node.func.id == "dict" and not node.args


def _items(path: Path, node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """The keys and value expressions of a dict literal, each key once."""
    if isinstance(node, ast.Dict):
        pairs = list(zip(node.keys, node.values, strict=True))
        if not all(key is not None and _is_string(key) for key, _ in pairs):
            raise UserError(f"{path}:{node.lineno}: the keys of a dict must be plain strings")
        items = [(key.value, value) for key, value in pairs]
    else:
        items = [(keyword.arg, keyword.value) for keyword in node.keywords]
    seen = set()
    for key, value in items:
        if key is None:
            raise UserError(f"{path}:{value.lineno}: ** is not read in a recipe; list the keys")
        if key in seen:
            raise UserError(f"{path}:{value.lineno}: {key} is given twice; remove one")
        seen.add(key)
        yield key, value


def _excerpt(node: ast.expr) -> str:
    text = ast.unparse(node)
    return text if len(text) <= 60 else text[:57] + "..."


# ----------------------------------------------------------------------------------- sections


def read_foreign(path: Path) -> Sections:
    """The sections of another program's recipe and its bases, whatever their keys are.

    Raises:
        UserError: names the file, and the line where there is one.
    """
    return _read_foreign(path, ())


def _read_foreign(path: Path, above: tuple[Path, ...]) -> Sections:
    here = path.resolve()
    if here in above:
        raise UserError(f"recipe {path}: _base_ leads back to this file; remove one of the links")
    assignments = _assignments(path)
    result: Sections = {}
    for base in _bases(path, assignments):
        _merge(result, _read_foreign(base, (*above, here)))
    own = {name: literal(path, node) for name, node in assignments.items() if name != "_base_"}
    _merge(result, {name: value for name, value in own.items() if isinstance(value, dict)})
    return result


MOE_SECTIONS = ("MoEParams", "ExpertParams", "RouterParams")


def _own(path: Path, assignments: dict[str, ast.expr], note: Note) -> MoERecipe:
    """What one file says itself, every key known and every value of its type."""
    result = MoERecipe()
    for name, node in assignments.items():
        if name == "MoEParams":
            result.moe = _plain(path, MoEParams, node)
        elif name == "RouterParams":
            result.router = _plain(path, RouterParams, node)
        elif name == "ExpertParams":
            result.experts = {
                member: _sections(path, _section_items(path, f"{name}['{member}']", value), note)
                for member, value in _section_items(path, name, node)
            }
    ordinary = [(n, v) for n, v in assignments.items() if n not in ("_base_", *MOE_SECTIONS)]
    result.common = _sections(path, ordinary, note, MOE_SECTIONS)
    return result


def _plain(path: Path, section: type, node: ast.expr) -> dict[str, Any]:
    """A section that is not among those of `Config`."""
    known = {setting.name: setting for setting in settings_of(section)}
    result = {}
    for key, value in _section_items(path, section.__name__, node):
        where = f"{path}:{value.lineno}"
        if key not in known:
            raise UserError(
                f"{where}: unknown key {key!r} in {section.__name__}{nearest(key, known)}"
            )
        try:
            result[key] = accept(known[key], literal(path, value))
        except TypeError as error:
            raise UserError(f"{where}: {key} {error}") from None
    return result


def _sections(
    path: Path,
    items: Iterable[tuple[str, ast.expr]],
    note: Note,
    further: tuple[str, ...] = (),
) -> Sections:
    """Settings by section; ``further`` names may stand beside them and are read elsewhere."""
    result: Sections = {}
    for name, node in items:
        names = [*section_types(), "PipelineParams"]
        if name not in names:
            hint = nearest(name, [*names, *further]) or f"; sections are {', '.join(names)}"
            raise UserError(f"{path}:{node.lineno}: unknown section {name!r}{hint}")
        for key, value in _section_items(path, name, node):
            _read_key(result, path, name, key, value, note)
    return result


def _section_items(path: Path, name: str, node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    if not _is_dict(node):
        raise UserError(f"{path}:{node.lineno}: {name} must be dict(key=value, ...)")
    yield from _items(path, node)


def _read_key(
    result: Sections, path: Path, section: str, key: str, node: ast.expr, note: Note
) -> None:
    where = f"{path}:{node.lineno}"
    value = literal(path, node)
    setting = all_settings().get(key)
    if setting is None:
        _check_retired(where, section, key, value, note)
        return
    if setting.section != section:
        note(f"{where}: {key} belongs in {setting.section}; it is read as if it stood there")
    if isinstance(value, bool):
        value = TRANSLATED.get(key, {}).get(value, value)
    try:
        accepted = accept(setting, value)
    except TypeError as error:
        raise UserError(f"{where}: {key} {error}") from None
    target = result.setdefault(setting.section, {})
    if key in target:
        raise UserError(f"{where}: {key} is given in two sections; keep it in {setting.section}")
    target[key] = accepted


def _check_retired(where: str, section: str, key: str, value: Any, note: Note) -> None:
    retired = RETIRED.get(section, {}).get(key)
    if retired is None:
        known = [*all_settings(), *RETIRED.get(section, {})]
        raise UserError(f"{where}: unknown key {key!r} in {section}{nearest(key, known)}")
    if retired.only is not ANY and value != retired.only:
        raise UserError(
            f"{where}: {key} = {value!r} is not supported ({retired.reason}); remove it"
        )
    note(f"{where}: {key} has no effect: {retired.reason}")
