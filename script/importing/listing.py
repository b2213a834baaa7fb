"""What becomes of everything in a published run folder: nothing is dropped without a word."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from utils.errors import UserError, brief

REQUIRED = object()


@dataclass
class Listing:
    """What was mapped, assumed and left out, and where a picture would differ from the published.

    Attributes:
        mapped: name here -> where it comes from.
        assumed: setting -> why it has the value that it has.
        left_out: name in the source -> why.
        wrong: what cannot be represented and shows in the pictures.
    """

    mapped: dict[str, str] = field(default_factory=dict)
    assumed: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The same as text, a line for each entry."""
        said = [f"mapped    {ours}: {theirs}" for ours, theirs in self.mapped.items()]
        said += [f"assumed   {what}: {why}" for what, why in self.assumed.items()]
        said += [f"left out  {what}: {why}" for what, why in self.left_out.items()]
        return said + [f"WRONG     {what}" for what in self.wrong]


class Inventory:
    """The named things of one file, of which each is taken or listed as left out."""

    def __init__(self, where: str, items: Mapping[str, Any], listing: Listing) -> None:
        self.where, self.listing = where, listing
        self.items, self.open = dict(items), dict.fromkeys(items)

    def __contains__(self, name: str) -> bool:
        return name in self.items

    def take(self, name: str) -> Any:
        """One of them, now accounted for; UserError where there is none of the name."""
        if name not in self.items:
            raise UserError(f"{self.where}: {name} is missing; is --family right?")
        self.open.pop(name, None)
        return self.items[name]

    def numbered(self, prefix: str) -> list[str]:
        """The names ``<prefix><i>`` there are, i from 0 without a gap."""
        names: list[str] = []
        while (name := f"{prefix}{len(names)}") in self.items:
            names.append(name)
        return names

    def leave(self, pattern: str, why: str) -> None:
        """Lists all that match ``pattern`` (as of file names) and are not taken yet."""
        found = [name for name in self.open if fnmatch.fnmatchcase(name, pattern)]
        for name in found:
            del self.open[name]
        if found:
            more = f" ({len(found)})" if len(found) > 1 else ""
            self.listing.left_out[f"{self.where}: {pattern}{more}"] = why

    def close(self, why: str, *, wrong: bool = False) -> None:
        """Lists what is still open, by name; ``wrong``: it may show in the pictures."""
        for name in self.open:
            entry = f"{self.where}: {brief(name, 80)}"
            self.listing.left_out[entry] = why
            if wrong:
                self.listing.wrong.append(f"{entry}: {why}")
        self.open.clear()


class Settings(Inventory):
    """The settings of a published run: its ``cfg_args`` with a recipe laid over it."""

    def read(self, name: str, kind: type, default: Any = REQUIRED) -> Any:
        """A setting of type ``kind``.

        Args:
            default: the published one, for a run that does not say; `REQUIRED`: there is none that
                could be relied upon.

        Raises:
            UserError: it is of another type, or missing.
        """
        if name not in self.items:
            if default is REQUIRED:
                raise UserError(
                    f"{self.where}: does not say {name}, which the picture depends on; name the "
                    "recipe that the run was trained with by --configs"
                )
            self.listing.assumed[name] = f"{brief(repr(default), 60)}, as published; not said"
            return default
        value = self.take(name)
        right = isinstance(value, (int, float) if kind is float else kind)
        if not right or (isinstance(value, bool) and kind is not bool):
            raise UserError(
                f"{self.where}: {name} is {brief(repr(value), 60)}, not a {kind.__name__}"
            )
        return kind(value)

    def agree(self, name: str, actual: Any) -> None:
        """UserError where the setting, if there is one, is not what the tensors say."""
        if name in self.items and self.take(name) != actual:
            raise UserError(
                f"{self.where}: says {name} = {brief(repr(self.items[name]), 60)} but the tensors "
                f"say {brief(repr(actual), 60)}; name the recipe that the run was trained with by "
                "--configs"
            )
