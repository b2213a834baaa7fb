"""What the settings accept: their types, choices and ranges, in one place.

Recipes, flags and saved runs come through `accept`, every resolved `Config` through `validate`.
"""

from __future__ import annotations

import copy
import functools
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

from arguments_MoDE.config import Config
from utils.errors import UserError

Sections = dict[str, dict[str, Any]]

LARGEST_INTEGER = 2**53  # beyond it JSON readers and tensors lose digits
MOST_THREADS = 1024  # more than there is use for; with many more, libraries fail obscurely


@dataclass(frozen=True)
class Setting:
    """One field of one section, with what the field's metadata says about it."""

    section: str
    name: str
    kind: Any
    default: Any
    help: str
    short: str | None
    choices: tuple[str, ...] | None
    structural: bool


def settings_of(section: type) -> list[Setting]:
    """The settings that a dataclass declares with `option`, in order."""
    kinds = typing.get_type_hints(section)
    return [
        Setting(
            section=section.__name__,
            name=item.name,
            kind=kinds[item.name],
            default=item.default if item.default is not MISSING else item.default_factory(),
            help=item.metadata["help"],
            short=item.metadata.get("short"),
            choices=item.metadata.get("choices"),
            structural=item.metadata.get("structural", False),
        )
        for item in fields(section)
        if "help" in item.metadata
    ]


@functools.cache
def section_types() -> dict[str, type]:
    """The sections of a `Config` by name, in order."""
    kinds = typing.get_type_hints(Config)
    return {item.name: kinds[item.name] for item in fields(Config)}


@functools.cache
def all_settings() -> dict[str, Setting]:
    """Every setting of a `Config` by name: names are unique over the sections, as flags must be."""
    found: dict[str, Setting] = {}
    for section in section_types().values():
        for setting in settings_of(section):
            if setting.name in found:
                raise ValueError(f"two settings are called {setting.name}")
            found[setting.name] = setting
    return found


def describe(kind: Any) -> str:
    """A type in the words of an error message."""
    words = {int: "a whole number", float: "a number", bool: "True or False", str: "a string"}
    plural = {int: "whole numbers", float: "numbers", str: "strings"}
    if kind in words:
        return words[kind]
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is list:
        return f"a list of {plural.get(arguments[0], 'values')}"
    if _is_optional(kind):
        return f"{describe(arguments[0])} or None"
    return "a dict" if (typing.get_origin(kind) or kind) is dict else str(kind)


def accept(setting: Setting, value: Any) -> Any:
    """``value`` as the setting's type; TypeError, in words for the user, where it is of another."""
    accepted = _coerce(value, setting.kind, setting.default)
    if setting.choices is not None and accepted not in setting.choices:
        raise TypeError(f"is {value!r}; it must be one of {', '.join(setting.choices)}")
    return accepted


def _coerce(value: Any, kind: Any, example: Any) -> Any:
    if _is_optional(kind):
        return None if value is None else _coerce(value, typing.get_args(kind)[0], example)
    if typing.get_origin(kind) is list and isinstance(value, (list, tuple)):
        return [_coerce(item, typing.get_args(kind)[0], None) for item in value]
    if (typing.get_origin(kind) or kind) is dict and isinstance(value, dict):
        return _coerce_dict(value, example)
    if kind is float and _is_number(value):
        return _finite(value)
    if kind is int and _is_number(value) and not isinstance(value, float):
        if abs(value) > LARGEST_INTEGER:
            raise TypeError("is too large a number")
        return value
    if kind in (bool, str) and isinstance(value, kind):
        return value
    raise TypeError(f"is {_short(value)}; it must be {describe(kind)}")


def _coerce_dict(value: dict, example: dict | None) -> dict:
    """A dict setting takes the keys of its default only, each of the type it has there."""
    if not example:
        return {_coerce(key, str, None): copy.deepcopy(item) for key, item in value.items()}
    for key in value:
        if key not in example:
            raise TypeError(f"has no key {key!r}; it has {', '.join(example)}")
    accepted = {}
    for key, item in value.items():
        try:
            accepted[key] = _coerce(item, _kind_of(example[key]), example[key])
        except TypeError as error:
            raise TypeError(f"['{key}'] {error}") from None
    return accepted


def _kind_of(example: Any) -> Any:
    if isinstance(example, list) and example:
        return list[type(example[0])]
    return type(example)


def _is_optional(kind: Any) -> bool:
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return union and type(None) in typing.get_args(kind)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _finite(value: float) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise TypeError(f"is {_short(value)}; it must be a finite number")
    return number


def _short(value: Any, width: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."


def merged(config: Config, sections: Mapping[str, Mapping[str, Any]]) -> Config:
    """A copy of ``config`` with ``sections`` laid over it; dicts are merged key by key."""
    result = copy.deepcopy(config)
    for section, values in sections.items():
        target = getattr(result, section)
        for name, value in values.items():
            old = getattr(target, name)
            both = isinstance(old, dict) and isinstance(value, dict)
            setattr(target, name, {**old, **value} if both else copy.deepcopy(value))
    return result


# ------------------------------------------------------------------------------------- ranges

# Every number must be at least 0; those below have a range of their own.
RANGES: dict[str, tuple[float, float]] = {
    "resolution": (-1, math.inf),
    "sh_degree": (0, 3),
    "near_plane": (1e-6, math.inf),
    "frame_step": (1, math.inf),
    "llffhold": (0, math.inf),
    "seed": (0, 2**63 - 1),
    "batch_size": (1, math.inf),
    "densification_interval": (1, math.inf),
    "pruning_interval": (1, math.inf),
    "opacity_reset_interval": (1, math.inf),
    "sh_interval": (1, math.inf),
    "max_gaussians": (1, math.inf),
    "opacity_threshold_coarse": (0, 1),
    "opacity_threshold_fine_init": (0, 1),
    "opacity_threshold_fine_after": (0, 1),
    "temp": (1e-6, math.inf),
    "control_num": (0, 1000),
    "entropy_weight_init": (-math.inf, math.inf),
    "entropy_weight_final": (-math.inf, math.inf),
    "net_width": (1, math.inf),
    "multires": (1, math.inf),
    "defor_depth": (0, 64),
    "emb_defor_depth": (0, 64),
    "emb_net_width": (1, math.inf),
    "emb_min_embeddings": (1, math.inf),
    "emb_max_embeddings": (1, math.inf),
    "emb_temporal_embedding_dim": (1, math.inf),
    "emb_gaussian_embedding_dim": (1, math.inf),
    "hash_bound": (1e-6, 1e6),
    "hash_smooth_ratio": (0, 1),
    "hash_space_perturb": (0, 1),
    "hash_time_perturb": (0, 1),
    "trbf_scale_init": (-10, 10),
    "keyframe_num": (1, math.inf),
    "keyframe_fade_init": (-10, 10),
    "keyframe_extract_interval": (1, math.inf),
    "keyframe_extract_share": (0, 1),
}


def validate(config: Config, known_experts: Sequence[str] = ()) -> None:
    """Checks what a type cannot say; UserError names the flag and its bound.

    ``moe_top_k`` may exceed the number of experts, as it does in published recipes: it acts as
    ``min(moe_top_k, experts)``.

    Args:
        config: the resolved settings.
        known_experts: the names of the registered experts; empty skips that check.
    """
    for setting in all_settings().values():
        value = getattr(getattr(config, setting.section), setting.name)
        try:
            accept(setting, value)
        except TypeError as error:
            raise UserError(f"--{setting.name} {error}") from None
        _check_range(setting.name, value)
    _check_decays(config)
    _check_experts(config, known_experts)
    _check_hexplane(config)
    _check_embedding(config)
    _check_hash(config)
    if config.model.resolution == 0:
        raise UserError("--resolution is 0; -1 keeps the frames' size, 2 halves it")
    if config.motion.keyframe_sets and config.motion.keyframe_num < 2:
        raise UserError("--keyframe_num is 1; with --keyframe_sets it must be at least 2")


def check_range(name: str, value: Any, low: float, high: float = math.inf) -> None:
    """UserError where ``value``, or an item of it, lies outside [low, high]."""
    for item in value if isinstance(value, list) else [value]:
        if low <= item <= high:
            continue
        bound = f"at least {low:g}" if item < low else f"at most {high:g}"
        raise UserError(f"--{name} is {item}; it must be {bound}")


def _check_range(name: str, value: Any) -> None:
    items = value if isinstance(value, list) else [value]
    if items and all(_is_number(item) for item in items):
        check_range(name, value, *RANGES.get(name, (0, math.inf)))


LINEAR = ("entropy_weight_final",)  # ends of schedules that may cross zero


def _check_decays(config: Config) -> None:
    """A log-linear decay needs both ends positive, or both zero."""
    values = vars(config.opt)
    for name, final in values.items():
        if not name.endswith("_final") or name in LINEAR:
            continue
        start = name.removesuffix("_final")
        start = start if start in values else f"{start}_init"
        if start in values and (final > 0) != (values[start] > 0):
            raise UserError(
                f"--{start} is {values[start]:g} and --{name} is {final:g}; "
                "both must be positive, or both 0"
            )


def _check_experts(config: Config, known: Sequence[str]) -> None:
    experts = config.hidden.experts
    if not experts:
        raise UserError("--experts is empty; name at least one")
    if len(set(experts)) < len(experts):
        raise UserError(f"--experts names one twice: {' '.join(experts)}")
    for name in experts:
        if known and name not in known:
            raise UserError(f"--experts: there is no expert {name!r}; there are {', '.join(known)}")


def _check_hexplane(config: Config) -> None:
    planes = config.hidden.kplanes_config
    if not config.hidden.multires:
        raise UserError("--multires is empty; 1 is a single level")
    if planes.get("grid_dimensions", 2) != 2 or planes.get("input_coordinate_dim", 4) != 4:
        raise UserError("--kplanes_config must have grid_dimensions=2 and input_coordinate_dim=4")
    resolution = planes.get("resolution", [])
    if len(resolution) != 4 or min(resolution) < 2:
        raise UserError(
            f"--kplanes_config: resolution is {resolution}; it must be 4 numbers from 2"
        )
    if planes.get("output_coordinate_dim", 0) < 1:
        raise UserError("--kplanes_config: output_coordinate_dim must be at least 1")


def _check_embedding(config: Config) -> None:
    emb = config.emb
    if emb.emb_min_embeddings > emb.emb_max_embeddings:
        raise UserError(
            f"--emb_min_embeddings {emb.emb_min_embeddings} exceeds "
            f"--emb_max_embeddings {emb.emb_max_embeddings}"
        )
    if emb.emb_no_coarse_deform and emb.emb_no_fine_deform:
        raise UserError("--emb_no_coarse_deform and --emb_no_fine_deform leave no branch; drop one")


def _check_hash(config: Config) -> None:
    grids, network = config.hash.grid_args, config.hash.network_args
    for kind, axes in (("canonical", 1), ("deform", 3)):
        for name in ("num_levels", "level_dim", "log2_hashmap_size"):
            _check_item("grid_args", f"{kind}_{name}", grids, 1, 28 if "log2" in name else 64)
        base, desired = (grids[f"{kind}_{name}_resolution"] for name in ("base", "desired"))
        pairs = list(zip(base, desired, strict=False)) if axes > 1 else [(base, desired)]
        complete = axes == 1 or len(base) == len(desired) == axes
        if not complete or any(not 1 <= low <= high <= 2**24 for low, high in pairs):
            numbers = f"{axes} numbers" if axes > 1 else "a number"
            raise UserError(
                f"--grid_args: {kind}_base_resolution is {base} and {kind}_desired_resolution "
                f"{desired}; each must be {numbers} from 1, the second not below the first"
            )
    _check_item("network_args", "depth", network, 0, 64)
    _check_item("network_args", "width", network, 1, 65536)


def _check_item(setting: str, key: str, values: Mapping[str, Any], low: int, high: int) -> None:
    if not low <= values[key] <= high:
        raise UserError(
            f"--{setting}: {key} is {values[key]}; it must be a whole number from {low} to {high}"
        )
