"""Which views an iteration sees."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import torch

from scene import View


class ViewSampler:
    """Batches of views, each view once per epoch in random order; its state can be saved.

    With ``same_time`` all views of a batch are of one frame, so that the deformation is computed
    once for the batch; batches then cover the views of a frame without repetition.
    """

    def __init__(
        self, views: Sequence[View], batch_size: int, *, same_time: bool = False, seed: int = 0
    ) -> None:
        """Draws from ``views``, which must not be empty."""
        if not views:
            raise ValueError("there are no training views to draw from")
        self.views, self.batch_size, self.same_time = views, batch_size, same_time
        self.generator = torch.Generator().manual_seed(seed)
        self.queue: list[list[int]] = []

    def next(self) -> list[View]:
        """The next batch: ``batch_size`` views, fewer where a frame has fewer."""
        if not self.queue:
            self.queue = self._epoch()[::-1]
        return [self.views[i] for i in self.queue.pop()]

    def coming(self) -> list[View]:
        """The batch that `next` will give."""
        if not self.queue:  # the next epoch is drawn early, so that its first images are fetched
            self.queue = self._epoch()[::-1]
        return [self.views[i] for i in self.queue[-1]]

    def _epoch(self) -> list[list[int]]:
        order = torch.randperm(len(self.views), generator=self.generator).tolist()
        if not self.same_time:
            return self._batches(order)
        by_frame: dict[int, list[int]] = defaultdict(list)
        for i in order:
            by_frame[self.views[i].frame_index].append(i)
        batches = [batch for group in by_frame.values() for batch in self._batches(group)]
        shuffled = torch.randperm(len(batches), generator=self.generator).tolist()
        return [batches[i] for i in shuffled]

    def _batches(self, order: list[int]) -> list[list[int]]:
        size = self.batch_size
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        if len(batches) > 1 and len(batches[-1]) < size:
            batches[-1] = order[-size:]  # fill the last one from views already drawn
        return batches

    def digest(self) -> str:
        """Tells these views from others; the numbers of a queue mean nothing among others."""
        told = [(view.name, view.camera_index, view.frame_index, view.time) for view in self.views]
        return hashlib.sha256(repr(told).encode()).hexdigest()

    def state(self) -> tuple[list[list[int]], torch.Tensor]:
        """Batches left in this epoch, and the generator's state (uint8)."""
        return [list(batch) for batch in self.queue], self.generator.get_state()

    def restore(self, queue: list[list[int]], generator_state: torch.Tensor) -> None:
        """Puts back what `state` gave."""
        self.queue = [list(batch) for batch in queue]
        self.generator.set_state(generator_state)
