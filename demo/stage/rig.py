"""Fourteen static pinhole cameras on two arcs, as in N3V, and their ``poses_bounds.npy`` rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 256, 192
FOCAL = 252.0
TARGET = np.array([0.05, 0.22, 4.1])
RADIUS = 4.1


@dataclass(frozen=True)
class Pinhole:
    """Rotation columns: camera's right, down and forward axes; the focal length in pixels."""

    name: str
    rotation: np.ndarray  # (3, 3) camera to world
    center: np.ndarray  # (3,)
    focal: float
    width: int = WIDTH
    height: int = HEIGHT

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points (N, 3) -> pixels (N, 2), pixel centres at integers, and depths (N,)."""
        local = (points - self.center) @ self.rotation
        depth = local[:, 2]
        centre = np.array([self.width / 2, self.height / 2]) - 0.5
        safe = np.where(np.abs(depth) < 1e-9, 1e-9, depth)
        return self.focal * local[:, :2] / safe[:, None] + centre, depth


def look_at(center: np.ndarray, target: np.ndarray, roll: float) -> np.ndarray:
    """Camera-to-world rotation at ``center``, looking at ``target``; roll in radians."""
    forward = (target - center) / np.linalg.norm(target - center)
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    cosine, sine = np.cos(roll), np.sin(roll)
    return np.stack([cosine * right + sine * down, cosine * down - sine * right, forward], axis=1)


def _place(name: str, azimuth: float, elevation: float, rng: np.random.Generator) -> Pinhole:
    """A camera at angles (degrees) about the target, shaken a little as a hand-built rig is."""
    azimuth, elevation = np.radians([azimuth, elevation] + rng.normal(0, 0.25, 2))
    offset = [np.sin(azimuth) * np.cos(elevation), -np.sin(elevation)]
    offset = np.array([*offset, -np.cos(azimuth) * np.cos(elevation)])
    center = TARGET + RADIUS * offset * (1 + rng.uniform(-0.02, 0.02))
    target = TARGET + rng.normal(0, 0.03, 3)
    focal = FOCAL * (1 + rng.uniform(-0.01, 0.01))
    return Pinhole(name, look_at(center, target, rng.normal(0, 0.01)), center, float(focal))


def build_rig(seed: int) -> list[Pinhole]:
    """``cam00`` in the middle, ``cam01..07`` on the upper arc, ``cam08..13`` on the lower one."""
    rng = np.random.default_rng([seed, 1])
    angles = [(0.0, 9.5)]
    angles += [(azimuth, 14.0) for azimuth in np.linspace(-17, 17, 7)]
    angles += [(azimuth, 5.0) for azimuth in np.linspace(-15, 15, 6)]
    return [_place(f"cam{i:02d}", *angle, rng) for i, angle in enumerate(angles)]


def poses_bounds(cameras: list[Pinhole], bounds: np.ndarray) -> np.ndarray:
    """Rows (N, 17): flattened 3x5 [down, right, back | centre | (H, W, focal)], then near, far."""
    rows = []
    for camera, near_far in zip(cameras, bounds, strict=True):
        right, down, forward = camera.rotation.T
        size = np.array([camera.height, camera.width, camera.focal])
        matrix = np.stack([down, right, -forward, camera.center, size], axis=1)
        rows.append(np.concatenate([matrix.ravel(), near_far]))
    return np.stack(rows).astype(np.float64)
