"""Finds what would make Python wait for a GPU, on a machine without one."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
READS = {  # the number or the size of the result is read from the device
    aten._local_scalar_dense.default,  # item(), bool(), int(), float(), `if tensor`
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten._unique2.default,
}
WRITES = {aten.lift_fresh.default}  # torch.tensor(...), x.new_tensor(...), x[[0, 1]]: host memory
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default}


class Waited(AssertionError):
    """A GPU would have been waited for."""


class NoWaiting(TorchDispatchMode):
    """Raises `Waited` at what reads a device or copies to it without page-locked memory.

    ``tolist`` and ``numpy`` do not pass here: see `forbid_reading`.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        by_mask = func in INDEXING and any(i is not None and i.dtype == torch.bool for i in args[1])
        if func in READS or func in WRITES or by_mask:
            raise Waited(f"{func} waits for a GPU")
        return func(*args, **(kwargs or {}))


def forbid_reading(monkeypatch) -> None:
    """The ways to read a tensor that no operator is called for."""

    def refuse(self, *_):
        raise Waited("a tensor was read")

    for name in ("tolist", "numpy", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
