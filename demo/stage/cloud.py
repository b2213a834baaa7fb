"""A point cloud as multi-view stereo would leave it: seen surfaces only, with depth noise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from demo.stage.meshes import Mesh, merge
from demo.stage.rig import Pinhole

CELL = 2  # pixels to a cell of the visibility buffer; larger than the spacing of vertices
DEPTH_NOISE, LATERAL_NOISE = 0.003, 0.0008  # of the depth
PLY_DTYPE = np.dtype(
    [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")]
    + [(name, "u1") for name in ("red", "green", "blue")]
)


def seen_by(camera: Pinhole, vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which vertices (V,) the camera sees, and the index of the nearest in every filled cell."""
    pixels, depth = camera.project(vertices)
    column, row = (np.floor((pixels[:, i] + 0.5) / CELL).astype(int) for i in (0, 1))
    columns, rows = camera.width // CELL, camera.height // CELL
    inside = (depth > 0.1) & (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
    index = np.flatnonzero(inside)
    cell = row[index] * columns + column[index]
    order = np.lexsort((depth[index], cell))
    cells, first = np.unique(cell[order], return_index=True)
    nearest = index[order[first]]
    buffer = np.full(columns * rows, np.inf)
    buffer[cells] = depth[nearest]
    visible = np.zeros(len(vertices), bool)
    visible[index] = depth[index] < 1.03 * buffer[cell]
    return visible, nearest


def depth_bounds(cameras: Sequence[Pinhole], scenes: Iterable[Mesh]) -> np.ndarray:
    """Rows (cameras, 2): a little less than the nearest depth seen, a little more than the last."""
    scenes = list(scenes)
    rows = []
    for camera in cameras:
        depths = [camera.project(s.vertices[seen_by(camera, s.vertices)[1]])[1] for s in scenes]
        low, high = np.percentile(np.concatenate(depths), [0.1, 99.9])
        rows.append((0.95 * low, 1.05 * high))
    return np.array(rows)


def triangulated(
    cameras: Sequence[Pinhole],
    actors: Sequence[Mesh],
    backdrop: Sequence[Mesh],
    count: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """``count`` points (PLY_DTYPE) on the ``actors``, drawn evenly over the pictures' pixels.

    A point must be the nearest surface in a cell of one camera and visible to a second one;
    ``backdrop`` meshes hide points but receive none.
    """
    scene = merge([*actors, *backdrop])
    visible, nearest = zip(*(seen_by(c, scene.vertices) for c in cameras), strict=True)
    views = np.sum(visible, axis=0)
    camera_of = np.concatenate([np.full(len(n), i) for i, n in enumerate(nearest)])
    vertex_of = np.concatenate(nearest)
    limit = sum(len(mesh.vertices) for mesh in actors)
    smooth = np.linalg.norm(scene.normals, axis=1) > 0.5  # not a pole, where normals vanish
    usable = np.flatnonzero(((views >= 2) & smooth)[vertex_of] & (vertex_of < limit))
    chosen = rng.choice(usable, count, replace=False)
    centers = np.stack([camera.center for camera in cameras])[camera_of[chosen]]
    return _noisy(scene, vertex_of[chosen], centers, rng)


def _noisy(
    scene: Mesh, index: np.ndarray, centers: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    ray = scene.vertices[index] - centers
    depth = np.linalg.norm(ray, axis=1, keepdims=True)
    noise = DEPTH_NOISE * ray * rng.normal(size=depth.shape)
    noise = noise + LATERAL_NOISE * depth * rng.normal(size=ray.shape)
    normals = scene.normals[index]
    away = np.sum(normals * ray, axis=1, keepdims=True) > 0
    points = np.empty(len(index), PLY_DTYPE)
    columns = np.hstack([scene.vertices[index] + noise, np.where(away, -normals, normals)])
    for name, values in zip(PLY_DTYPE.names[:6], columns.T, strict=True):
        points[name] = values
    colors = np.clip(scene.colors[index] + rng.normal(0, 0.01, (len(index), 3)), 0, 1)
    for name, values in zip(PLY_DTYPE.names[6:], colors.T, strict=True):
        points[name] = np.round(255 * values)
    return points
