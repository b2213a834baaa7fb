"""Between host and device without waiting: ground truth one way, results the other.

Ground truth of coming views is copied to the GPU on a stream of its own while the present ones are
computed with. On the CPU there is nothing to copy, and both classes hand through what they get.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from scene import View
from utils.devices import upload


class Targets(NamedTuple):
    """The ground truth of B views of one size."""

    images: Tensor  # (B, H, W, 3) uint8
    masks: Tensor | None  # (B, 1, H, W) bool, the pixels that count; None: all of all views


class TargetLoader:
    """Ground truth on the CPU: what is expected is decoded in the background, and that is all."""

    def expect(self, views: Iterable[View]) -> None:
        """Begins to fetch what `take` will be asked for; what is not among it is forgotten."""
        for view in views:
            if view.store is not None:
                view.store.prefetch([view.slot])

    def take(self, views: Sequence[View]) -> Targets:
        """The ground truth of ``views``, whether it was expected or not.

        Raises:
            UserError: a file is missing or damaged.
        """
        return _stacked([(view.image(), view.mask()) for view in views])


class _Copies(NamedTuple):
    """A view's ground truth on the device, once ``done`` has happened there."""

    image: Tensor
    mask: Tensor | None
    done: torch.cuda.Event


class StreamedTargetLoader(TargetLoader):
    """Ground truth on a GPU.

    A thread fetches the expected frames and queues their copies on a stream beside the one that
    computes. Frames are kept by view, so neither the order nor the content of batches can differ
    from the CPU's, and which views come next is only looked at, never drawn: the sampler's state
    does not run ahead.
    """

    def __init__(self, device: torch.device) -> None:
        """``device``: the GPU."""
        self.device = device
        self._stream = torch.cuda.Stream(device)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="targets")
        self._coming: dict[View, Future[_Copies]] = {}

    def expect(self, views: Iterable[View]) -> None:
        """See `TargetLoader.expect`; an error is put off until `take`."""
        views = [view for view in views if view.store is not None]
        started = {view: f for view, f in self._coming.items() if view in views}
        missing = [view for view in views if view not in started]
        super().expect(missing)  # several are decoded at once, and the thread waits for each
        self._coming = started | {v: self._thread.submit(self._fetch, v) for v in missing}

    def take(self, views: Sequence[View]) -> Targets:
        """See `TargetLoader.take`."""
        self.expect([*self._coming, *views])
        return _stacked([self._received(self._coming[view].result()) for view in views])

    def _fetch(self, view: View) -> _Copies:
        image, mask = view.image(), view.mask()
        with torch.cuda.stream(self._stream):
            image = upload(image, self.device)
            mask = None if mask is None else upload(mask, self.device)
            return _Copies(image, mask, self._stream.record_event())

    def _received(self, copies: _Copies) -> tuple[Tensor, Tensor | None]:
        """The copies, safe to use on the stream that computes.

        That stream, not Python, waits for them. They belong to the other stream's memory: without
        `record_stream` it could be given to the next copy while this stream still reads it.
        """
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(copies.done)
        for tensor in (copies.image, copies.mask):
            if tensor is not None:
                tensor.record_stream(stream)
        return copies.image, copies.mask


def target_loader(device: torch.device | str) -> TargetLoader:
    """The loader for ``device``."""
    device = torch.device(device)
    return StreamedTargetLoader(device) if device.type == "cuda" else TargetLoader()


def _stacked(pairs: Sequence[tuple[Tensor, Tensor | None]]) -> Targets:
    images = torch.stack([image for image, _ in pairs])
    masks = [mask for _, mask in pairs]
    if all(mask is None for mask in masks):
        return Targets(images, None)
    whole = torch.ones(images.shape[1:3], dtype=torch.bool, device=images.device)
    return Targets(images, torch.stack([whole if m is None else m for m in masks])[:, None])


class Download:
    """Tensors on their way to the host."""

    def __init__(self, *tensors: Tensor) -> None:
        """Queues the copies; on the CPU there are none."""
        self._source = tensors  # until they are copied
        self._host = [self._begin(tensor) for tensor in tensors]
        gpu = next((t.device for t in tensors if t.device.type == "cuda"), None)
        self._done = None if gpu is None else torch.cuda.current_stream(gpu).record_event()

    @staticmethod
    def _begin(tensor: Tensor) -> Tensor:
        if tensor.device.type != "cuda":
            return tensor.cpu()
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)

    def wait(self) -> list[Tensor]:
        """The tensors on the host, once they are there."""
        if self._done is not None:
            self._done.synchronize()
        self._source = ()
        return self._host
