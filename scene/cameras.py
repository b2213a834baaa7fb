"""Pinhole cameras: OpenCV axes, world-to-camera matrices, pixel centres at integer coordinates."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from utils.devices import upload
from utils.errors import UserError

# Largest deviation of R Rᵀ from the identity that passes as a rotation: files store 6 digits or so.
_ROTATION_TOLERANCE = 1e-2
_SHORTEST = 1e-3  # focal length, pixels; positive for all that a camera can be
LARGEST = 1e9  # of a pose's or lens's numbers: float32 has room for what is made of them


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera at one pose.

    A point (x, y, z) in camera space lands on pixel (fx x/z + cx - 0.5, fy y/z + cy - 0.5), so a
    centred principal point is cx = width / 2.

    Attributes:
        name: for messages and file names.
        width, height: of the image, in pixels.
        fx, fy, cx, cy: focal lengths and principal point, in pixels.
        world_to_camera: (4, 4) float32 on the CPU; x right, y down, z forward.
        near, far: depths of the clipping planes, in world units.
        near_plane: depth at or below which a Gaussian is not drawn, in world units.
    """

    name: str
    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    world_to_camera: torch.Tensor
    near: float = 0.01
    far: float = 100.0
    near_plane: float = 0.2

    @cached_property
    def world_view_transform(self) -> torch.Tensor:
        """(4, 4): ``world_to_camera`` transposed, for row vectors, as the rasteriser reads it."""
        return self.world_to_camera.T.contiguous()

    @cached_property
    def projection(self) -> torch.Tensor:
        """(4, 4): camera space to clip space; z is mapped to [0, 1] between near and far."""
        p = torch.zeros(4, 4)
        p[0, 0] = 2 * self.fx / self.width
        p[1, 1] = 2 * self.fy / self.height
        p[0, 2] = 2 * self.cx / self.width - 1
        p[1, 2] = 2 * self.cy / self.height - 1
        p[2, 2] = self.far / (self.far - self.near)
        p[2, 3] = -self.far * self.near / (self.far - self.near)
        p[3, 2] = 1
        return p

    @cached_property
    def full_proj_transform(self) -> torch.Tensor:
        """(4, 4): world to clip space for row vectors, (P W2C)ᵀ."""
        return (self.projection @ self.world_to_camera).T.contiguous()

    @cached_property
    def camera_center(self) -> torch.Tensor:
        """(3,): the centre of projection, in world units."""
        w2c = self.world_to_camera.double()
        return torch.linalg.solve(w2c[:3, :3], -w2c[:3, 3]).float()

    @property
    def forward(self) -> torch.Tensor:
        """(3,): the viewing direction in the world, of unit length."""
        return self.world_to_camera[2, :3]

    @property
    def tan_half_fov_x(self) -> float:
        """Tangent of half the horizontal field of view of a centred camera of this focal length."""
        return self.width / (2 * self.fx)

    @property
    def tan_half_fov_y(self) -> float:
        """The same, vertically."""
        return self.height / (2 * self.fy)

    def on(self, device: torch.device | str, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """What the rasteriser reads of a camera: its two transforms, centre and (2,) tangents.

        On ``device``, where they stay: a copy of theirs in every iteration would wait for a GPU.
        """
        key = torch.device(device), dtype
        if key not in self._copies:
            tangents = torch.tensor([self.tan_half_fov_x, self.tan_half_fov_y])
            own = self.world_view_transform, self.full_proj_transform, self.camera_center, tangents
            self._copies[key] = tuple(upload(value.to(dtype), device) for value in own)
        return self._copies[key]

    @cached_property
    def _copies(self) -> dict[tuple[torch.device, torch.dtype], tuple[torch.Tensor, ...]]:
        return {}

    def resized(self, width: int, height: int) -> Camera:
        """The same camera with another number of pixels; intrinsics scale per axis."""
        if (width, height) == (self.width, self.height):
            return self
        sx, sy = width / self.width, height / self.height
        return replace(
            self,
            width=width,
            height=height,
            fx=self.fx * sx,
            fy=self.fy * sy,
            cx=self.cx * sx,
            cy=self.cy * sy,
        )

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixel coordinates (N, 2) and depths (N,) of world points (N, 3); float64.

        Points at or behind the camera's plane get meaningless pixels: look at the depth.
        """
        w2c = self.world_to_camera.double().numpy()
        local = points.astype(np.float64) @ w2c[:3, :3].T + w2c[:3, 3]
        depth = local[:, 2]
        z = np.where(depth > 1e-9, depth, 1e-9)
        u = self.fx * local[:, 0] / z + self.cx - 0.5
        v = self.fy * local[:, 1] / z + self.cy - 0.5
        return np.stack([u, v], axis=1), depth

    def sees(self, points: np.ndarray) -> np.ndarray:
        """(N,) bool: which world points (N, 3) fall inside the image, in front of ``near``."""
        pixels, depth = self.project(points)
        inside = (pixels > -0.5) & (pixels < np.array([self.width, self.height]) - 0.5)
        return inside.all(axis=1) & (depth > self.near)

    def validate(self, source: object) -> Camera:
        """Returns the camera itself if it can be rendered from.

        Raises:
            UserError: NaN, a size or focal length that is not positive, or a pose whose rotation
                part is none; the line names ``source``, the file at fault.
        """
        where = f"{source}: camera {self.name}"
        intrinsics = np.array([self.fx, self.fy, self.cx, self.cy], dtype=np.float64)
        w2c = self.world_to_camera.double().numpy()
        if not (np.isfinite(intrinsics).all() and np.isfinite(w2c).all()):
            raise UserError(f"{where} holds NaN or infinite numbers; repair or recompute its pose")
        if max(np.abs(intrinsics).max(), np.abs(w2c).max()) > LARGEST:
            raise UserError(
                f"{where} holds numbers above {LARGEST:g}; repair or recompute its pose"
            )
        if min(self.width, self.height) < 1 or min(self.fx, self.fy) < _SHORTEST:
            raise UserError(
                f"{where} has size {self.width} x {self.height} and focal lengths {self.fx:g}, "
                f"{self.fy:g}; all of them must be positive"
            )
        _validate_rotation(w2c, where)
        return self


def _validate_rotation(w2c: np.ndarray, where: str) -> None:
    rotation = w2c[:3, :3]
    error = np.abs(rotation @ rotation.T - np.eye(3)).max()
    if error > _ROTATION_TOLERANCE or np.abs(w2c[3] - [0, 0, 0, 1]).max() > 1e-6:
        raise UserError(f"{where}: its pose is not a rotation and a translation; recompute it")
    if np.linalg.det(rotation) < 0:
        raise UserError(
            f"{where}: its pose mirrors the world (determinant -1): the file's frame is "
            "left-handed; negate one world axis, the same in all poses (a row of camera-to-world, "
            "a column of world-to-camera) and in the cloud, or export again right-handed"
        )


def camera_from_pose(
    name: str,
    size: tuple[int, int],
    intrinsics: tuple[float, float, float, float],
    pose: np.ndarray,
) -> Camera:
    """Builds a camera from a camera-to-world pose with OpenCV axes.

    Args:
        name: of the camera.
        size: (width, height) in pixels.
        intrinsics: fx, fy, cx, cy in pixels.
        pose: (3, 4) or (4, 4) camera-to-world; its rotation part may be slightly off.
    """
    rotation, centre = pose[:3, :3].astype(np.float64), pose[:3, 3].astype(np.float64)
    w2c = np.eye(4)
    w2c[:3, :3] = rotation.T
    with np.errstate(over="ignore", invalid="ignore"):  # validate() refuses what comes of it
        w2c[:3, 3] = -rotation.T @ centre
    fx, fy, cx, cy = map(float, intrinsics)
    matrix = torch.from_numpy(w2c).float()
    return Camera(name, int(size[0]), int(size[1]), fx, fy, cx, cy, matrix)
