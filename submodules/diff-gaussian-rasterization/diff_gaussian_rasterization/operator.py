"""`rasterize`: the differentiable operator over batches of (camera, Gaussians)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diff_gaussian_rasterization import _native, arguments, cuda, devices, layered

NEAR_PLANE = 0.2  # as published


class RasterOutput(NamedTuple):
    """B rendered views of N Gaussians with C channels; with layers, images have an axis E after B.

    color: (B, C, H, W), blended over the background; after C channels of colour F of `features`.
    alpha: (B, 1, H, W) = 1 - final transmittance.
    depth: (B, 1, H, W) = sum of view-space z * alpha * T; not divided by alpha, no background.
    radii: (B, N) int32 pixels, ceil of 3 sigma; 0 where the Gaussian was culled.
    """

    color: Tensor
    alpha: Tensor
    depth: Tensor
    radii: Tensor


class Settings(NamedTuple):
    """What a render needs besides tensors.

    `layers` are the numbers of Gaussians or None, `threads` is the number of CPU threads; `keep`:
    there may be a backward pass.
    """

    width: int
    height: int
    sh_degree: int
    scale_modifier: float
    near_plane: float
    raw: bool
    layers: tuple[int, ...] | None
    shared: bool
    threads: int
    keep: bool


# The differentiable inputs in the order in which _Rasterize takes and returns them: of all
# Gaussians, or of each layer, one after the other.
_DIFFERENTIABLE = (
    "means3D",
    "means2D",
    "opacities",
    "shs",
    "colors",
    "features",
    "scales",
    "rotations",
    "cov3Ds",
)
_MEANS2D = 1  # its values are not read
_COMMON = 6  # tensors after those of the Gaussians: four of the camera, background, layer starts

PerLayer = Tensor | Sequence[Tensor]
Part = tuple[Tensor | None, ...]  # as _DIFFERENTIABLE, or these without means2D


def _kernel(name: str, dtype: torch.dtype) -> Any:
    return getattr(_native, f"{name}_{'f32' if dtype == torch.float32 else 'f64'}")


def _grouped(tensors: Sequence[Tensor | None], size: int) -> list[Part]:
    return [tuple(tensors[at : at + size]) for at in range(0, len(tensors), size)]


def _native_inputs(settings: Settings, tensors: tuple[Tensor | None, ...]) -> Any:
    """The C++ view of the inputs; `tensors` must outlive it."""
    tensors = tuple(None if t is None else t.detach() for t in tensors)
    return _kernel("inputs", tensors[0].dtype)(
        settings.width,
        settings.height,
        settings.sh_degree,
        settings.scale_modifier,
        settings.near_plane,
        settings.raw,
        settings.shared,
        _grouped(tensors[:-_COMMON], len(_DIFFERENTIABLE) - 1),
        *tensors[-_COMMON:],
    )


class _Rasterize(torch.autograd.Function):
    """Tensors come checked, contiguous in each view, shared ones with a leading dimension of 1."""

    @staticmethod
    def forward(
        ctx: Any,
        settings: Settings,
        cameras: tuple[Tensor, ...],
        background: Tensor,
        layer_start: Tensor | None,
        *differentiable: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        parts = _grouped(differentiable, len(_DIFFERENTIABLE))
        read = [t for part in parts for t in (*part[:_MEANS2D], *part[_MEANS2D + 1 :])]
        tensors = (*read, *cameras, background, layer_start)
        means, batch = differentiable[0], cameras[0].shape[0]
        layers = () if settings.layers is None else (len(settings.layers),)
        leading, size = (batch, *layers), (settings.height, settings.width)
        color = means.new_empty((*leading, background.shape[0], *size))
        alpha, depth = means.new_empty((*leading, 1, *size)), means.new_empty((*leading, 1, *size))
        count = sum(part[0].shape[1] for part in parts)
        radii = means.new_empty((batch, count), dtype=torch.int32)
        gpu, keep = devices.gpu_of(means), settings.keep
        if gpu is None:
            state = _kernel("forward", means.dtype)(
                _native_inputs(settings, tensors),
                *(color, alpha, depth, radii, keep, settings.threads),
            )
        else:
            images = (color, alpha, depth)
            state = cuda.forward(gpu, settings, tensors, images, radii, keep=keep)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(radii)
        if keep:
            ctx.settings, ctx.state, ctx.batch = settings, state, batch
            ctx.save_for_backward(*tensors)
        return color, alpha, depth, radii

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, color: Tensor | None, alpha: Tensor | None, depth: Tensor | None, _):
        tensors, wanted = ctx.saved_tensors, ctx.needs_input_grad[4:]
        read = _grouped(tensors[:-_COMMON], len(_DIFFERENTIABLE) - 1)
        needs = _grouped(wanted, len(_DIFFERENTIABLE))
        grads = [_empty_gradients(ctx.batch, *pair) for pair in zip(read, needs, strict=True)]
        images = tuple(None if g is None else g.contiguous() for g in (color, alpha, depth))
        gpu = devices.gpu_of(tensors[0])
        if gpu is None:
            _kernel("backward", tensors[0].dtype)(
                *(_native_inputs(ctx.settings, tensors), ctx.state),
                *(*images, grads, ctx.settings.threads),
            )
        else:
            (own,) = grads
            cuda.backward(gpu, ctx.settings, tensors, ctx.state, images, own)
        return None, None, None, None, *(gradient for part in grads for gradient in part)


def _empty_gradients(batch: int, read: Part, needs: tuple[bool, ...]) -> list[Tensor | None]:
    """Memory for those of the gradients of a part that are needed."""
    means = read[0]
    like_means2d = means.new_empty((batch, *means.shape[1:])) if needs[_MEANS2D] else None
    likes = (*read[:_MEANS2D], like_means2d, *read[_MEANS2D:])
    return [
        torch.empty_like(like) if need and like is not None else None
        for need, like in zip(needs, likes, strict=True)
    ]


class _OneOfMany(torch.autograd.Function):
    """(B, ...) expanded from one entry -> that entry (1, ...), without a copy either way.

    The gradient of the shared entry is spread evenly over the B views of the expanded tensor, so
    that it is whole again when autograd sums over them.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.views = tensor.shape[0]
        return tensor[:1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return (grad / ctx.views).expand(ctx.views, *grad.shape[1:])


def _per_view(tensor: Tensor | None) -> Tensor | None:
    """Contiguous within each view; an expanded batch dimension becomes 1 and is never copied."""
    if tensor is None:
        return None
    if tensor.shape[0] > 1 and tensor.stride(0) == 0:
        tensor = _OneOfMany.apply(tensor)
    if tensor.shape[0] > 0 and not tensor[0].is_contiguous():
        tensor = tensor.contiguous()
    return tensor


def _check_devices(tensors: dict[str, Tensor | None]) -> None:
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    first, like = next(iter(given.items()))
    for name, tensor in given.items():
        devices.check_device(name, tensor, like, first)


def _check(tensors: dict[str, Tensor | None], settings: Settings) -> None:
    _check_devices(tensors)
    arguments.check_dtype(tensors, tensors["means3D"].dtype)
    arguments.check_size(settings.width, settings.height)
    batch = arguments.views_of(tensors["viewmatrices"])
    background, features = tensors["background"], tensors["features"]
    if background.dim() != 1 or background.shape[0] == 0:
        raise ValueError(f"background must have the shape (C,), not {tuple(background.shape)}")
    count = tensors["means3D"].shape[1] if tensors["means3D"].dim() == 3 else None
    arguments.check_features(features, background.shape[0])
    extras = 0 if features is None else features.shape[2]
    channels = background.shape[0] - extras
    shapes = {
        "means3D": (count, 3),
        "means2D": (count, 3),
        "opacities": (count, 1),
        "shs": (count, None, 3),
        "colors": (count, channels),
        "features": (count, extras),
        "scales": (count, 3),
        "rotations": (count, 4),
        "cov3Ds": (count, 6),
        "viewmatrices": (4, 4),
        "projmatrices": (4, 4),
        "camposs": (3,),
        "tanfov": (2,),
    }
    for name, shape in shapes.items():
        if tensors[name] is not None:
            arguments.check_shape(name, tensors[name], shape, batch)
    if tensors["shs"] is not None:
        arguments.check_sh(tensors["shs"], settings.sh_degree, channels)


def rasterize(
    means3D: PerLayer,
    opacities: PerLayer,
    *,
    shs: PerLayer | None = None,
    colors: PerLayer | None = None,
    features: PerLayer | None = None,
    scales: PerLayer | None = None,
    rotations: PerLayer | None = None,
    cov3Ds: PerLayer | None = None,
    viewmatrices: Tensor,
    projmatrices: Tensor,
    camposs: Tensor,
    tanfov: Tensor,
    width: int,
    height: int,
    background: Tensor,
    sh_degree: int = 0,
    scale_modifier: float = 1.0,
    near_plane: float = NEAR_PLANE,
    raw: bool = False,
    means2D: PerLayer | None = None,
    layers: Sequence[int] | None = None,
    shared_transmittance: bool = False,
    num_threads: int | None = None,
) -> RasterOutput:
    """Draws N Gaussians into B views. All tensors are float32, or all float64, on one device.

    Every leading B may be 1, or an expanded dimension: the entry is then shared by all views,
    read in place and given the sum of the views' gradients.

    Args:
        means3D: (B, N, 3) centres in world space.
        opacities: (B, N, 1), normally in (0, 1).
        shs: (B, N, M, 3) spherical harmonics, M >= (sh_degree + 1)^2; three channels.
        colors: (B, N, C) instead of `shs`: the channels to blend, used as they are.
        features: (B, N, F) further channels, blended with the same weights and used as they are.
        scales: (B, N, 3) standard deviations along the axes.
        rotations: (B, N, 4) quaternions wxyz, used as given, not normalised.
        cov3Ds: (B, N, 6) instead of scales and rotations: xx, xy, xz, yy, yz, zz.
        viewmatrices: (B, 4, 4) transposed world-to-camera matrices (OpenCV axes).
        projmatrices: (B, 4, 4) transposed world-to-clip matrices.
        camposs: (B, 3) camera centres, for the viewing direction of the harmonics.
        tanfov: (B, 2) tangents of half the horizontal and the vertical field of view.
        width, height: pixels.
        background: (C,); with features (C + F,), normally 0 behind these.
        sh_degree: 0 to 3, the degree to evaluate.
        scale_modifier: multiplies all scales.
        near_plane: view-space z, above 0, at or below which a Gaussian is culled; 0.2 as published.
        raw: scales are given as logarithms, opacities as logits and quaternions in any length:
            their activations (exp, sigmoid, division by the length) and the gradients of these
            are part of the render. Not for cov3Ds, which are used as they are.
        means2D: (B, N, 3) whose values are unused: receives, as its gradient, that of the
            projected centre in normalised device coordinates (x, y; z is 0).
        layers: E numbers of Gaussians that sum to N; 0 is allowed. The first ones are layer 0, and
            so on. Each layer is drawn as if it were alone, to the last bit: color is
            (B, E, C, H, W), alpha and depth are (B, E, 1, H, W). Instead of naming numbers, each
            tensor of the Gaussians can be a sequence of E tensors: on the CPU none is copied.
        shared_transmittance: all layers are drawn in one front-to-back order with one transmittance
            T, and each gets the part of its own Gaussians, C_k = sum_j T_j alpha_j c_j [e_j = k]
            (MoE-GS, eq. 9; alpha and depth alike), and the share 1/E of the background's light. So
            the sums over the layers are the images without layers.
        num_threads: CPU threads, by default `torch.get_num_threads()`. The results do not depend
            on it, not even in the last bit; on a GPU too, two runs give the same bits.

    There are no gradients for radii, background and cameras, and no second derivatives.
    A Gaussian with a value that is not finite is culled: radius 0, gradient 0.

    Raises:
        ValueError: an argument is missing, superfluous, or of the wrong shape or dtype.
        RuntimeError: tensors on several devices, or where this build does not compute.
    """
    arguments.check_exclusive(shs, colors, scales, rotations, cov3Ds)
    threads = torch.get_num_threads() if num_threads is None else int(num_threads)
    if threads < 1:
        raise ValueError(f"num_threads must be at least 1, not {threads}")
    values = (means3D, means2D, opacities, shs, colors, features, scales, rotations, cov3Ds)
    parts = layered.parts_of(dict(zip(_DIFFERENTIABLE, values, strict=True)))
    settings = Settings(
        width=int(width),
        height=int(height),
        sh_degree=int(sh_degree),
        scale_modifier=float(scale_modifier),
        near_plane=arguments.near_plane_of(near_plane),
        raw=bool(raw),
        layers=layered.counts_of(parts, layers, isinstance(means3D, Sequence)),
        shared=bool(shared_transmittance),
        threads=threads,
        keep=torch.is_grad_enabled()
        and any(t is not None and t.requires_grad for part in parts for t in part.values()),
    )
    cameras = dict(
        viewmatrices=viewmatrices, projmatrices=projmatrices, camposs=camposs, tanfov=tanfov
    )
    for part in parts:
        _check(part | cameras | {"background": background}, settings)
    images = (viewmatrices.shape[0], settings.width, settings.height)
    layered.check(parts, settings.layers, settings.shared, images)
    means = parts[0]["means3D"]
    if len(parts) > 1 and devices.gpu_of(means) is not None:
        parts = [layered.joined(parts)]
    return RasterOutput(
        *_Rasterize.apply(
            settings,
            tuple(camera.detach().contiguous() for camera in cameras.values()),
            background.detach().contiguous(),
            None if settings.layers is None else layered.starts(settings.layers, means.device),
            *(
                tensor if name == "means2D" else _per_view(tensor)
                for part in parts
                for name, tensor in part.items()
            ),
        )
    )


def mark_visible(positions: Tensor, viewmatrix: Tensor) -> Tensor:
    """(N,) bool: whether the view-space z of each position (N, 3) is above 0.2.

    `viewmatrix` is the transposed world-to-camera matrix (4, 4).
    """
    tensors = {"means3D": positions, "viewmatrix": viewmatrix}
    _check_devices(tensors)
    arguments.check_dtype(tensors, positions.dtype)
    arguments.check_shape("positions", positions[None], (None, 3), 1)
    arguments.check_shape("viewmatrix", viewmatrix[None], (4, 4), 1)
    visible = positions.new_empty(positions.shape[0], dtype=torch.bool)
    positions, viewmatrix = positions.detach().contiguous(), viewmatrix.detach().contiguous()
    gpu = devices.gpu_of(positions)
    if gpu is None:
        _kernel("mark_visible", positions.dtype)(positions, viewmatrix, visible)
    else:
        cuda.mark_visible(gpu, positions, viewmatrix, visible)
    return visible
