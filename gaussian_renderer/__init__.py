"""Camera and Gaussians to an image; nothing here knows of time or training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from diff_gaussian_rasterization import rasterize
from scene.cameras import Camera

_ATTRIBUTES = ("means", "log_scales", "quaternions", "opacity_logits", "sh")


class Gaussians(Protocol):
    """Gaussians before their activations, as `scene.mixture.Splats`."""

    means: Tensor  # (N, 3)
    log_scales: Tensor  # (N, 3)
    quaternions: Tensor  # (N, 4) wxyz, of any length
    opacity_logits: Tensor  # (N, 1)
    sh: Tensor  # (N, M, 3)


@dataclass(frozen=True)
class RenderOutput:
    """B images of the same Gaussians."""

    images: Tensor  # (B, 3, H, W), background blended in; not clamped
    alpha: Tensor  # (B, 1, H, W)
    depth: Tensor  # (B, 1, H, W), sum of z x weight, not divided by alpha
    radii: Tensor  # (B, N) int32, pixels; 0 where culled
    means2d: Tensor  # (B, N, 3), its .grad is the screen gradient in NDC units


@dataclass(frozen=True)
class LayersOutput:
    """B images of each of E sets of Gaussians (layers)."""

    images: Tensor  # (B, E, 3, H, W), background blended in; not clamped
    features: (
        Tensor | None
    )  # (B, E, F, H, W), sums of feature x weight: no background; None if none
    alpha: Tensor  # (B, E, 1, H, W)
    depth: Tensor  # (B, E, 1, H, W), sum of z x weight, not divided by alpha
    radii: Tensor  # (B, N_1 + ... + N_E) int32, pixels; 0 where culled; layer after layer


def render(
    cameras: Sequence[Camera],
    gaussians: Gaussians,
    background: Tensor,
    sh_degree: int,
) -> RenderOutput:
    """Renders ``gaussians`` from B cameras of equal size.

    Args:
        background: (3,) in [0, 1].
        sh_degree: active degree; coefficients above it are not read.

    Raises:
        ValueError: if the cameras differ in size or near plane.
    """
    means = gaussians.means
    means2d = means.new_zeros(len(cameras), len(means), 3, requires_grad=torch.is_grad_enabled())
    out = rasterize(
        gaussians.means[None],
        gaussians.opacity_logits[None],
        shs=gaussians.sh[None],
        scales=gaussians.log_scales[None],
        rotations=gaussians.quaternions[None],
        raw=True,
        background=background.to(means),
        sh_degree=sh_degree,
        means2D=means2d,
        **_camera_arguments(cameras, means),
    )
    return RenderOutput(out.color, out.alpha, out.depth, out.radii, means2d)


def render_layers(
    cameras: Sequence[Camera],
    gaussians: Sequence[Gaussians],
    features: Sequence[Tensor] | None,
    background: Tensor,
    sh_degree: int,
    shared_transmittance: bool = False,
) -> LayersOutput:
    """Renders E sets of Gaussians (layers) apart from each other, from B cameras of equal size.

    Each layer is drawn as `render` draws it alone, and beside its colours, with the same weights,
    its ``features``: all in one pass of the rasteriser. Gradients reach all attributes and the
    features; where only features want them, the geometry's are not computed.

    Args:
        gaussians: E sets of N_e Gaussians, of any numbers, 0 too. Where the sets have different
            numbers of harmonics, those that a set lacks count as 0.
        features: E tensors (N_e, F), blended beside the colours, without background; or None.
        background: (3,) in [0, 1], behind every layer.
        sh_degree: active degree; coefficients above it are not read.
        shared_transmittance: all layers are drawn in one front-to-back order with one transmittance
            T: C_k = sum_j T_j alpha_j c_j [e_j = k] (MoE-GS, eq. 9), and every layer gets the share
            1/E of the background's light. So images, features, alpha and depth, summed over the
            layers, are those of one render of all Gaussians.

    Raises:
        ValueError: if the cameras differ in size or near plane, or the features do not fit the
            Gaussians.
    """
    _check_layers(gaussians, features)
    means = gaussians[0].means
    rows = max(layer.sh.shape[1] for layer in gaussians)
    out = rasterize(
        [layer.means[None] for layer in gaussians],
        [layer.opacity_logits[None] for layer in gaussians],
        shs=[_with_rows(layer.sh, rows)[None] for layer in gaussians],
        features=None if features is None else [values[None] for values in features],
        scales=[layer.log_scales[None] for layer in gaussians],
        rotations=[layer.quaternions[None] for layer in gaussians],
        raw=True,
        background=F.pad(
            background.to(means), (0, 0 if features is None else features[0].shape[1])
        ),
        sh_degree=sh_degree,
        shared_transmittance=shared_transmittance,
        **_camera_arguments(cameras, means),
    )
    images, splatted = out.color[:, :, :3], None if features is None else out.color[:, :, 3:]
    if not any(getattr(layer, name).requires_grad for layer in gaussians for name in _ATTRIBUTES):
        images = images.detach()  # or autograd would make zeros of a gradient that nothing wants
    return LayersOutput(images, splatted, out.alpha, out.depth, out.radii)


def _with_rows(sh: Tensor, rows: int) -> Tensor:
    """Harmonics (N, M, 3) with zeros up to ``rows``."""
    return sh if sh.shape[1] == rows else F.pad(sh, (0, 0, 0, rows - sh.shape[1]))


def _check_layers(gaussians: Sequence[Gaussians], features: Sequence[Tensor] | None) -> None:
    if not gaussians:
        raise ValueError("there are no layers to render")
    counts = [len(layer.means) for layer in gaussians]
    if features is None:
        return
    shapes = [tuple(values.shape) for values in features]
    widths = {shape[1:] for shape in shapes}
    if [shape[:1] for shape in shapes] != [(n,) for n in counts] or len(widths) != 1:
        raise ValueError(
            f"features must be one (N, F) for each layer, with N = {counts}, not {shapes}"
        )


def _camera_arguments(cameras: Sequence[Camera], like: Tensor) -> dict:
    """What `rasterize` takes of B cameras, on the device and in the dtype of ``like``."""
    sizes = {(c.width, c.height) for c in cameras}
    if len(sizes) != 1:
        raise ValueError(f"cameras of one batch must have one size, got {sorted(sizes)}")
    near = {camera.near_plane for camera in cameras}
    if len(near) != 1:
        raise ValueError(f"cameras of one batch must have one near plane, got {sorted(near)}")
    width, height = sizes.pop()
    copies = zip(*(camera.on(like.device, like.dtype) for camera in cameras), strict=True)
    views, projections, centres, tangents = (torch.stack(values) for values in copies)
    return dict(
        viewmatrices=views,
        projmatrices=projections,
        camposs=centres,
        tanfov=tangents,
        width=width,
        height=height,
        near_plane=near.pop(),
    )
