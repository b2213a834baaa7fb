"""Nothing is ever updated by a step that is not finite, and the run ends with a line that says why.

With ``--nonfinite skip`` it goes on with the next batch instead, unless too many in a row are bad.

On the CPU loss and gradients are looked at before they are used (`ImmediateChecks`). On a GPU that
would make Python wait for the device in every iteration. There `DeferredChecks` keep a flag on the
device that rises with the first number that is not finite; while it is up the optimiser's steps
change nothing, so that parameters and moments stay as they were before that iteration, whatever
runs until the flag is read. It is read where the loop waits anyway and before anything is saved,
measured or changed by density control.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, NoReturn, Protocol

import torch
from torch import Tensor

from scene import View
from training.schedules import Optimizer
from utils.errors import UserError


class Pictured(Protocol):
    """Rendered views, as `training.trainer.Shot`."""

    views: list[View]
    images: Tensor  # (B, 3, H, W)


class NotFinite(UserError):
    """A loss or a gradient is not finite."""


class Where(NamedTuple):
    """An iteration, for messages."""

    stage: str
    iteration: int


class ImmediateChecks:
    """Looks at once."""

    failed: Tensor | None = None  # on the device, above zero: `Optimizer.step` must do nothing

    def loss(
        self, where: Where, loss: Tensor, terms: dict[str, Tensor], shots: Sequence[Pictured]
    ) -> None:
        """Checks the loss before its backward pass.

        Raises:
            UserError: it is not finite; the line names the terms and the views at fault.
        """
        if torch.isfinite(loss):
            return
        bad = [name for name, value in terms.items() if not torch.isfinite(value)]
        views = [view.name for view, image in _pairs(shots) if not torch.isfinite(image).all()]
        _stop(where, _terms(bad), views or _names(shots))

    def gradients(self, where: Where, optimizer: Optimizer, shots: Sequence[Pictured]) -> None:
        """Checks the gradients before the optimiser's step.

        Raises:
            UserError: one is not finite; the line names its group and the batch.
        """
        bad = optimizer.first_bad_gradient()
        if bad is not None:
            _stop(where, f"gradient of {bad}", _names(shots))

    def read(self) -> None:
        """Raises what `loss` and `gradients` put off: nothing."""


@dataclass(frozen=True)
class _Record:
    """What one iteration was asked, and the answers, which are still on the device."""

    where: Where
    terms: list[str]
    views: list[str]
    groups: list[str]
    finite: list[Tensor]  # bool: the loss and its terms; the views' images; the gradients

    def names(self) -> list[str]:
        return ["loss", *self.terms, *self.views, *self.groups]


class DeferredChecks:
    """Looks on the device; Python learns of it in `read`."""

    def __init__(self, device: torch.device) -> None:
        """Nothing has failed."""
        self.failed = torch.zeros((), device=device)
        self._records: list[_Record] = []

    def loss(
        self, where: Where, loss: Tensor, terms: dict[str, Tensor], shots: Sequence[Pictured]
    ) -> None:
        """As `ImmediateChecks.loss`, but nothing is raised before `read`."""
        # The sum of an image is not finite as soon as one of its values is not.
        images = torch.cat([shot.images.detach().sum((1, 2, 3)) for shot in shots])
        numbers = torch.stack([loss.detach(), *(term.detach() for term in terms.values())])
        finite = [torch.isfinite(numbers), torch.isfinite(images)]
        self._records.append(_Record(where, list(terms), _names(shots), [], finite))
        self._raise_flag(finite[0])

    def gradients(self, where: Where, optimizer: Optimizer, shots: Sequence[Pictured]) -> None:
        """As `ImmediateChecks.gradients`, but nothing is raised before `read`."""
        names, sizes = optimizer.gradient_sizes()
        if not names:
            return
        record, finite = self._records[-1], torch.isfinite(sizes)
        record.groups.extend(names)
        record.finite.append(finite)
        self._raise_flag(finite)

    def _raise_flag(self, finite: Tensor) -> None:
        torch.maximum(self.failed, (~finite.all()).float(), out=self.failed)

    def read(self) -> None:
        """Waits for the device.

        Raises:
            UserError: of the first iteration that was not finite, as the immediate checks word it.
                Nothing has been updated since, nor will be: every further call says so again.
        """
        if not self._records:
            return
        found = [answer for record in self._records for answer in record.finite]
        answers = torch.cat(found).tolist()
        for record in self._records:
            names = record.names()
            own, answers = answers[: len(names)], answers[len(names) :]
            self._judge(record, own)
        self._records = []

    def _judge(self, record: _Record, finite: list[bool]) -> None:
        of_loss, of_views = 1 + len(record.terms), len(record.views)
        terms, views = finite[:of_loss], finite[of_loss : of_loss + of_views]
        if not all(terms):
            bad = _missing(record.terms, terms[1:])
            _stop(record.where, _terms(bad), _missing(record.views, views) or record.views)
        groups = _missing(record.groups, finite[of_loss + of_views :])
        if groups:
            _stop(record.where, f"gradient of {groups[0]}", record.views)


Checks = ImmediateChecks | DeferredChecks


def _pairs(shots: Sequence[Pictured]) -> Iterator[tuple[View, Tensor]]:
    for shot in shots:
        yield from zip(shot.views, shot.images, strict=True)


def _names(shots: Sequence[Pictured]) -> list[str]:
    return [view.name for shot in shots for view in shot.views]


def _missing(names: list[str], finite: list[bool]) -> list[str]:
    return [name for name, good in zip(names, finite, strict=True) if not good]


def _terms(bad: list[str]) -> str:
    return f"loss term {', '.join(bad)}" if bad else "the sum of the loss terms"


def _stop(where: Where, what: str, views: list[str]) -> NoReturn:
    raise NotFinite(
        f"{where.stage} iteration {where.iteration}: {what} is not finite for view "
        f"{', '.join(views)}; nothing was updated by it. Lower the learning rates or look at "
        f"that view's image and camera"
    )
