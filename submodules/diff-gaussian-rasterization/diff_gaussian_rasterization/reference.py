"""The rasteriser in plain PyTorch: what is drawn, said simply; the oracle of the tests.

Each function works on one camera and N Gaussians; `rasterize` loops over views. Every Gaussian is
blended over the whole image with masks, so it is slow, and readable. The gradients are autograd's,
made equal to the contract's in the four places that the comments name.

Source: Kerbl et al., "3D Gaussian Splatting for Real-Time Radiance Field Rendering", 2023, and the
behaviour of its published rasteriser.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diff_gaussian_rasterization import layered
from diff_gaussian_rasterization.operator import NEAR_PLANE, PerLayer, RasterOutput

TILE = 16  # pixels
DILATION = 0.3  # px^2 added to the diagonal of the 2D covariance
FRUSTUM_MARGIN = 1.3  # x/z and y/z are clamped to this multiple of tan(fov / 2) in the Jacobian
MAX_RADIUS = 1e9  # px
MIN_ALPHA, MAX_ALPHA = 1.0 / 255.0, 0.99
MIN_TRANSMITTANCE = 1e-4

SH_C0 = 0.28209479177387814
SH_C1 = 0.4886025119029199
SH_C2 = (
    1.0925484305920792,
    -1.0925484305920792,
    0.31539156525252005,
    -1.0925484305920792,
    0.5462742152960396,
)
SH_C3 = (
    -0.5900435899266435,
    2.890611442640554,
    -0.4570457994644658,
    0.3731763325901154,
    -0.4570457994644658,
    1.445305721320277,
    -0.5900435899266435,
)


class Camera(NamedTuple):
    """One view: transposed matrices as the published interface has them."""

    view: Tensor  # (4, 4)
    projection: Tensor  # (4, 4)
    position: Tensor  # (3,)
    tanfov: Tensor  # (2,)
    width: int
    height: int
    near_plane: float = NEAR_PLANE  # view-space z at or below which a Gaussian is culled

    @property
    def focal(self) -> Tensor:
        """(2,) focal lengths in pixels."""
        return self.tanfov.new_tensor([self.width, self.height]) / (2 * self.tanfov)


class Splats(NamedTuple):
    """N projected Gaussians; only where `visible` are the other values meaningful."""

    centre: Tensor  # (N, 2) pixels, pixel centres at integers
    conic: Tensor  # (N, 3) inverse 2D covariance xx, xy, yy
    depth: Tensor  # (N,) view-space z
    radius: Tensor  # (N,) pixels
    tiles: Tensor  # (N, 4) x0, y0, x1, y1 of the tiles to draw in, end exclusive
    visible: Tensor  # (N,) bool


def rotation_matrices(quaternions: Tensor) -> Tensor:
    """(N, 4) wxyz, used as given -> (N, 3, 3)."""
    w, x, y, z = quaternions.unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def covariances(scales: Tensor, quaternions: Tensor, modifier: float) -> Tensor:
    """Sigma = L L^T with L = R diag(modifier * scale): (N, 3, 3)."""
    factor = rotation_matrices(quaternions) * (modifier * scales)[:, None, :]
    return factor @ factor.transpose(-1, -2)


def unpack_covariances(cov: Tensor) -> Tensor:
    """(N, 6) xx, xy, xz, yy, yz, zz -> (N, 3, 3)."""
    return cov[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(-1, 3, 3)


def affine_maps(camera: Camera, t: Tensor) -> Tensor:
    """J W at the camera-space points t (N, 3): (N, 2, 3) (EWA splatting, Zwicker et al., 2001)."""
    z = t[:, 2]
    limit = FRUSTUM_MARGIN * camera.tanfov
    ratio = t[:, :2] / z[:, None]
    clamped = ratio.clamp(-limit, limit)
    # Contract: where the clamp is active, the clamped x and y are constants.
    xy = torch.where(clamped == ratio, t[:, :2], (clamped * z[:, None]).detach())
    fx, fy = camera.focal
    zero = torch.zeros_like(z)
    row0 = torch.stack([fx / z, zero, -fx * xy[:, 0] / (z * z)], -1)
    row1 = torch.stack([zero, fy / z, -fy * xy[:, 1] / (z * z)], -1)
    return torch.stack([row0, row1], -2) @ camera.view[:3, :3].T


def project_centres(camera: Camera, means: Tensor, means2d: Tensor | None) -> Tensor:
    """(N, 2) pixel coordinates. Contract: the gradient of `means2d` is that by the NDC."""
    clip = means @ camera.projection[:3] + camera.projection[3]
    ndc = clip[:, :2] / (clip[:, 3:] + 1e-7)
    if means2d is not None:
        ndc = ndc + (means2d - means2d.detach())[:, :2]
    size = ndc.new_tensor([camera.width, camera.height])
    return ((ndc + 1) * size - 1) * 0.5


def tile_rectangles(camera: Camera, centre: Tensor, radius: Tensor) -> Tensor:
    """(N, 4) tiles within `radius` of the centre along each axis, rounded outwards."""
    count = centre.new_tensor(
        [(camera.width + TILE - 1) // TILE, (camera.height + TILE - 1) // TILE]
    )
    low = ((centre - radius[:, None]) / TILE).clamp(min=centre.new_zeros(2), max=count)
    high = ((centre + radius[:, None] + TILE - 1) / TILE).clamp(min=centre.new_zeros(2), max=count)
    return torch.cat([low, high], -1).long()


def project(camera: Camera, means: Tensor, cov: Tensor, means2d: Tensor | None) -> Splats:
    """Projects N Gaussians with 3D covariances (N, 3, 3)."""
    t = means @ camera.view[:3, :3] + camera.view[3, :3]
    in_front = t[:, 2] > camera.near_plane
    t = torch.where(in_front[:, None], t, torch.ones_like(t))
    maps = affine_maps(camera, t)
    cov2d = maps @ cov @ maps.transpose(-1, -2)
    a, b, c = cov2d[:, 0, 0] + DILATION, cov2d[:, 0, 1], cov2d[:, 1, 1] + DILATION
    det = a * c - b * b
    mid = 0.5 * (a + c)
    spread = (mid * mid - det).clamp(min=0.1).sqrt()
    radius = (3 * (mid + spread).sqrt()).ceil().detach()
    centre = project_centres(camera, means, means2d)
    positive = in_front & (det > 0) & (a > 0) & det.isfinite() & (radius <= MAX_RADIUS)
    positive = positive & cov.isfinite().all(-1).all(-1) & centre.isfinite().all(-1)
    safe = torch.where(positive, det, torch.ones_like(det))
    tiles = tile_rectangles(camera, centre.detach().nan_to_num(), radius.nan_to_num())
    drawn = positive & (tiles[:, 2] > tiles[:, 0]) & (tiles[:, 3] > tiles[:, 1])
    return Splats(
        centre, torch.stack([c, -b, a], -1) / safe[:, None], t[:, 2], radius, tiles, drawn
    )


def sh_basis(degree: int, d: Tensor) -> Tensor:
    """Values at unit directions (N, 3): (N, (degree + 1)^2)."""
    x, y, z = d.unbind(-1)
    basis = [torch.full_like(x, SH_C0)]
    if degree >= 1:
        basis += [-SH_C1 * y, SH_C1 * z, -SH_C1 * x]
    if degree >= 2:
        xx, yy, zz = x * x, y * y, z * z
        basis += [
            SH_C2[0] * x * y,
            SH_C2[1] * y * z,
            SH_C2[2] * (2 * zz - xx - yy),
            SH_C2[3] * x * z,
            SH_C2[4] * (xx - yy),
        ]
    if degree >= 3:
        basis += [
            SH_C3[0] * y * (3 * xx - yy),
            SH_C3[1] * x * y * z,
            SH_C3[2] * y * (4 * zz - xx - yy),
            SH_C3[3] * z * (2 * zz - 3 * xx - 3 * yy),
            SH_C3[4] * x * (4 * zz - xx - yy),
            SH_C3[5] * z * (xx - yy),
            SH_C3[6] * x * (xx - 3 * yy),
        ]
    return torch.stack(basis, -1)


def sh_colors(degree: int, means: Tensor, position: Tensor, shs: Tensor) -> Tensor:
    """(N, 3) = max(0, 0.5 + sum of basis * coefficient), for coefficients (N, M, 3)."""
    direction = torch.nn.functional.normalize(means - position, dim=-1)
    basis = sh_basis(degree, direction)
    return ((basis[..., None] * shs[:, : basis.shape[1]]).sum(1) + 0.5).clamp(min=0)


def cap_alpha(alpha: Tensor) -> Tensor:
    """min(alpha, 0.99). Contract: the gradient passes the cap unchanged."""
    fixed = alpha.detach()
    return fixed.clamp(max=MAX_ALPHA) + (alpha - fixed)  # in this order nothing large cancels


def blend(
    camera: Camera, splats: Splats, opacities: Tensor, features: Tensor
) -> tuple[Tensor, Tensor]:
    """Front to back over the image: sums of feature * alpha * T (K, H, W), final T (H, W)."""
    ys, xs = torch.meshgrid(
        torch.arange(camera.height), torch.arange(camera.width), indexing="ij"
    )  # (H, W)
    transmittance = features.new_ones(camera.height, camera.width)
    going = torch.ones(camera.height, camera.width, dtype=torch.bool)
    sums = features.new_zeros(features.shape[1], camera.height, camera.width)
    order = torch.argsort(splats.depth.detach(), stable=True)
    for i in order[splats.visible[order]].tolist():
        dx, dy = splats.centre[i, 0] - xs, splats.centre[i, 1] - ys
        xx, xy, yy = splats.conic[i]
        # Above 0 by rounding only: the conic is positive definite.
        power = (-0.5 * (xx * dx * dx + yy * dy * dy) - xy * dx * dy).clamp(max=0)
        alpha = cap_alpha(opacities[i] * torch.exp(power))
        x0, y0, x1, y1 = splats.tiles[i]
        inside = (xs >= TILE * x0) & (xs < TILE * x1) & (ys >= TILE * y0) & (ys < TILE * y1)
        seen = going & inside & (alpha >= MIN_ALPHA)
        after = transmittance * (1 - alpha)
        stops = seen & (after < MIN_TRANSMITTANCE)
        going = going & ~stops
        drawn = seen & ~stops
        weight = torch.where(drawn, alpha * transmittance, 0)
        sums = sums + features[i, :, None, None] * weight
        transmittance = torch.where(drawn, after, transmittance)
    return sums, transmittance


def render(
    camera: Camera,
    means: Tensor,
    opacities: Tensor,
    shs: Tensor | None,
    colors: Tensor | None,
    cov: Tensor,
    background: Tensor,
    sh_degree: int,
    means2d: Tensor | None = None,
    further: Tensor | None = None,
    owners: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One view: color (C, H, W), alpha (1, H, W), depth (1, H, W), radii (N,) int32.

    `further` (N, F) are channels beside the colours. With `owners` (N, E), ones where a Gaussian is
    the layer's, images have the axis E in front, and share the transmittance.
    """
    if shs is not None:
        colors = sh_colors(sh_degree, means, camera.position, shs)
        raw_finite = shs[:, : (sh_degree + 1) ** 2].isfinite().all(-1).all(-1)
    else:
        raw_finite = colors.isfinite().all(-1)
    if further is not None:
        colors = torch.cat([colors, further], -1)
        raw_finite = raw_finite & further.isfinite().all(-1)
    finite = raw_finite & opacities[:, 0].isfinite() & means.isfinite().all(-1)
    splats = project(camera, means, cov, means2d)
    splats = splats._replace(visible=splats.visible & finite)
    radii = torch.where(splats.visible, splats.radius.nan_to_num(), 0).to(torch.int32)
    features = torch.cat([colors, splats.depth[:, None]], -1)
    light = background[:, None, None]
    if owners is None:
        sums, transmittance = blend(camera, splats, opacities[:, 0], features)
        return sums[:-1] + transmittance * light, 1 - transmittance[None], sums[-1:], radii
    # Per layer its own sums: of the features, and of the weights, which are the layer's alpha.
    features = torch.cat([features, torch.ones_like(features[:, :1])], -1)
    spread = owners[:, :, None] * features[:, None]  # (N, E, C + 2)
    sums, transmittance = blend(camera, splats, opacities[:, 0], spread.flatten(1))
    sums = sums.unflatten(0, spread.shape[1:])
    color = sums[:, :-2] + transmittance * light / owners.shape[1]
    return color, sums[:, -1:], sums[:, -2:-1], radii


def _owners(layers: Sequence[int], like: Tensor) -> Tensor:
    """(N, E): 1 where Gaussian n is one of layer e."""
    numbers = torch.repeat_interleave(torch.arange(len(layers)), torch.tensor(list(layers)))
    return torch.nn.functional.one_hot(numbers, len(layers)).to(like)


def _draw(
    gaussians: layered.Part,
    owners: Tensor | None,
    *,
    viewmatrices: Tensor,
    projmatrices: Tensor,
    camposs: Tensor,
    tanfov: Tensor,
    width: int,
    height: int,
    background: Tensor,
    sh_degree: int,
    scale_modifier: float,
    near_plane: float,
    raw: bool,
) -> RasterOutput:
    """All views of Gaussians in one stack."""
    gaussians = dict(gaussians)
    if raw:
        gaussians["opacities"] = gaussians["opacities"].sigmoid()
        if gaussians["scales"] is not None:
            gaussians["scales"] = gaussians["scales"].exp()
            gaussians["rotations"] = torch.nn.functional.normalize(gaussians["rotations"], dim=-1)

    def of(tensor: Tensor | None, v: int) -> Tensor | None:
        return None if tensor is None else tensor[v if tensor.shape[0] > 1 else 0]

    views = []
    for v in range(viewmatrices.shape[0]):
        camera = Camera(
            *(of(tensor, v) for tensor in (viewmatrices, projmatrices, camposs, tanfov)),
            *(width, height, near_plane),
        )
        own = {name: of(tensor, v) for name, tensor in gaussians.items()}
        if own["cov3Ds"] is None:
            cov = covariances(own["scales"], own["rotations"], scale_modifier)
        else:
            cov = unpack_covariances(own["cov3Ds"])
        means, opacities, shs, colors = (
            own[name] for name in ("means3D", "opacities", "shs", "colors")
        )
        views.append(
            render(
                *(camera, means, opacities, shs, colors, cov, background, sh_degree),
                *(own["means2D"], own["features"], owners),
            )
        )
    return RasterOutput(*(torch.stack(parts) for parts in zip(*views, strict=True)))


def _one_by_one(gaussians: layered.Part, layers: Sequence[int], view: dict) -> RasterOutput:
    """Every layer alone, then all images beside each other."""
    pieces = {
        name: [None] * len(layers) if t is None else t.split(list(layers), 1)
        for name, t in gaussians.items()
    }
    alone = [
        _draw({name: pieces[name][k] for name in pieces}, None, **view) for k in range(len(layers))
    ]
    images = [torch.stack(same, 1) for same in list(zip(*alone, strict=True))[:3]]
    return RasterOutput(*images, torch.cat([out.radii for out in alone], 1))


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
    """The twin of `diff_gaussian_rasterization.rasterize`, argument for argument."""
    del num_threads
    parts = layered.parts_of(
        dict(means3D=means3D, means2D=means2D, opacities=opacities, shs=shs, colors=colors,
             features=features, scales=scales, rotations=rotations, cov3Ds=cov3Ds)
    )  # fmt: skip
    layers = layered.counts_of(parts, layers, isinstance(means3D, Sequence))
    gaussians = layered.joined(parts)
    view = dict(
        viewmatrices=viewmatrices, projmatrices=projmatrices, camposs=camposs, tanfov=tanfov,
        width=width, height=height, background=background, sh_degree=sh_degree,
        scale_modifier=scale_modifier, near_plane=near_plane, raw=raw,
    )  # fmt: skip
    if layers is None:
        return _draw(gaussians, None, **view)
    if shared_transmittance:
        return _draw(gaussians, _owners(layers, gaussians["means3D"]), **view)
    return _one_by_one(gaussians, layers, view)
