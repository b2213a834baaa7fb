"""Settings kept with a run: writing, reading, and comparing them with a recipe or another run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from arguments_MoDE.config import Config
from arguments_MoDE.recipe import nearest, read_text
from arguments_MoDE.values import Sections, accept, all_settings, merged, section_types
from utils.errors import UserError
from utils.files import write_json

# Where a run lies and how it is handled, not what it is.
IRRELEVANT = ("model_path", "expname", "cache", "cache_gb", "video_frames", "nonfinite")


def save_config(config: Config, path: str | Path) -> None:
    """Writes every setting as JSON, atomically."""
    write_json(path, config.as_dict())


def load_config(path: str | Path) -> Config:
    """Reads what `save_config` wrote.

    Settings that the file lacks (it may be older than they are) keep their defaults.

    Raises:
        UserError: the file is missing, damaged, or has a key or a type that no setting has.
    """
    path = Path(path)
    sections = _parse(path)
    accepted: Sections = {}
    for section, values in sections.items():
        if section not in section_types() or not isinstance(values, dict):
            raise UserError(
                f"{path}: unknown section {section!r}{nearest(section, section_types())}"
            )
        accepted[section] = {
            name: _accept(path, section, name, value) for name, value in values.items()
        }
    return merged(Config(), accepted)


def check_recipe(config: Config, recipe: Sections) -> None:
    """UserError for the first structural setting in which ``recipe`` contradicts a run's settings.

    Only what the recipe or its bases set counts: a recipe that is silent agrees.
    """
    for section, values in recipe.items():
        for name, says in values.items():
            has = getattr(getattr(config, section), name)
            if all_settings()[name].structural and not _agrees(says, has):
                raise UserError(
                    f"--configs: the recipe says {name} = {says!r}, but the run was trained with "
                    f"{has!r}; leave --configs out or give the recipe it was trained with"
                )


def first_difference(one: Config, other: Config) -> tuple[str, Any, Any] | None:
    """The first setting in which two runs differ, as (name, one's, other's), or None.

    Where a run lies does not count, and of the scene's folder only its name does: both may have
    been moved, or given as a relative path once and as an absolute one later. Nor do settings that
    nothing trained depends on.
    """
    for setting in all_settings().values():
        if setting.name in IRRELEVANT:
            continue
        a = getattr(getattr(one, setting.section), setting.name)
        b = getattr(getattr(other, setting.section), setting.name)
        if setting.name == "source_path":
            a, b = Path(a).name, Path(b).name
        if a != b:
            return setting.name, a, b
    return None


def _parse(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path} does not exist; is its folder one that training wrote?")
    try:
        value = json.loads(read_text(path, "settings"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); restore or retrain the run") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold one JSON object, a section for each key")
    return value


def _accept(path: Path, section: str, name: str, value: Any) -> Any:
    setting = all_settings().get(name)
    if setting is None or setting.section != section:
        names = [item.name for item in all_settings().values() if item.section == section]
        raise UserError(f"{path}: unknown key {name!r} in {section}{nearest(name, names)}")
    try:
        return accept(setting, value)
    except TypeError as error:
        raise UserError(f"{path}: {name} {error}") from None


def _agrees(says: Any, has: Any) -> bool:
    if isinstance(says, dict):
        return all(has.get(key) == value for key, value in says.items())
    return says == has
