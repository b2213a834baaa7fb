"""Exact nearest neighbours of every point of a cloud.

    from simple_knn import knn
    from simple_knn._C import distCUDA2  # the interface published with 3D Gaussian Splatting

`simple_knn.reference` says the same in plain PyTorch, by all pairs.
"""

from __future__ import annotations

from simple_knn.devices import DEVICES
from simple_knn.search import knn

__all__ = ["DEVICES", "knn"]
__version__ = "0.1.0"
