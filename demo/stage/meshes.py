"""Coloured triangle meshes, and the few shapes that the demo scene is built from.

World axes are those of an OpenCV camera that looks into the room: x right, y down, z forward.
Colour is stored per vertex, so a mesh must be finely divided (a pixel or so between vertices); in
exchange the colour of every surface point is known exactly, and no texture filter has a say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

FLOOR = 1.1  # y of the floor
LIGHT = np.array([-0.35, -0.85, -0.55]) / np.linalg.norm([0.35, 0.85, 0.55])  # towards the light


@dataclass(frozen=True)
class Mesh:
    """vertices (V, 3), unit normals (V, 3), colors (V, 3) from 0 to 1, triangles (T, 3)."""

    vertices: np.ndarray
    normals: np.ndarray
    colors: np.ndarray
    triangles: np.ndarray


def grid_triangles(rows: int, columns: int) -> np.ndarray:
    """Triangles (2 (rows-1)(columns-1), 3) over a row-major lattice of vertices."""
    index = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    both = np.stack([np.stack([a, b, d], -1), np.stack([a, d, c], -1)])
    return both.reshape(-1, 3)


def lattice(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Two flat arrays (rows*columns,) in [0, 1]: u along the columns, v along the rows."""
    v, u = np.meshgrid(np.linspace(0, 1, rows), np.linspace(0, 1, columns), indexing="ij")
    return u.ravel(), v.ravel()


def surface(
    position: Callable[[np.ndarray, np.ndarray], np.ndarray],
    color: Callable[[np.ndarray, np.ndarray], np.ndarray],
    size: tuple[int, int],
) -> Mesh:
    """A parametric surface: ``position(u, v)`` and ``color(u, v)`` give (V, 3) for u, v in [0, 1].

    Normals come from central differences of ``position``; their sign follows du x dv.
    """
    u, v = lattice(*size)
    step = 1e-4
    along_u = position(u + step, v) - position(u - step, v)
    along_v = position(u, v + step) - position(u, v - step)
    normals = np.cross(along_u, along_v)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    return Mesh(position(u, v), normals, np.clip(color(u, v), 0, 1), grid_triangles(*size))


def patch(
    origin: Sequence[float],
    along_u: Sequence[float],
    along_v: Sequence[float],
    color: Callable[[np.ndarray, np.ndarray], np.ndarray],
    size: tuple[int, int],
) -> Mesh:
    """A flat parallelogram from ``origin``, spanned by two edge vectors."""
    o, a, b = (np.asarray(x, float) for x in (origin, along_u, along_v))
    return surface(lambda u, v: o + u[:, None] * a + v[:, None] * b, color, size)


def directions(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Unit vectors (V, 3): u runs round the vertical axis, v from the top (0) to the bottom (1)."""
    phi, theta = 2 * np.pi * u, np.pi * v
    ring = np.sin(theta)
    return np.stack([ring * np.cos(phi), -np.cos(theta), -ring * np.sin(phi)], -1)


def revolved(
    profile: Sequence[tuple[float, float]],
    base: Sequence[float],
    color: Callable[[np.ndarray, np.ndarray], np.ndarray],
    size: tuple[int, int],
) -> Mesh:
    """A body turned about the vertical through ``base``; profile points are (radius, height)."""
    points = np.asarray(profile, float)
    knots = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    knots /= knots[-1]

    def position(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        radius, height = (np.interp(v, knots, points[:, i]) for i in (0, 1))
        phi = 2 * np.pi * u
        offset = np.stack([radius * np.cos(phi), -height, radius * np.sin(phi)], -1)
        return np.asarray(base, float) + offset

    return surface(position, color, size)


def merge(meshes: Sequence[Mesh]) -> Mesh:
    """One mesh out of several, in their order."""
    starts = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes[:-1]])
    return Mesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate([mesh.normals for mesh in meshes]),
        np.concatenate([mesh.colors for mesh in meshes]),
        np.concatenate([mesh.triangles + s for mesh, s in zip(meshes, starts, strict=True)]),
    )


def moved(mesh: Mesh, rotation: np.ndarray, translation: Sequence[float]) -> Mesh:
    """The mesh under x -> rotation x + translation, colours untouched."""
    offset = np.asarray(translation, float)
    vertices, normals = mesh.vertices @ rotation.T + offset, mesh.normals @ rotation.T
    return Mesh(vertices, normals, mesh.colors, mesh.triangles)


def turned_over(mesh: Mesh) -> Mesh:
    """The same surface with its normals on the other side."""
    return Mesh(mesh.vertices, -mesh.normals, mesh.colors, mesh.triangles[:, ::-1])


def lit(mesh: Mesh, ambient: float = 0.72) -> Mesh:
    """Wrapped Lambert shading multiplied into the colours; it does not depend on the view."""
    facing = 0.5 + 0.5 * mesh.normals @ LIGHT
    colors = mesh.colors * (ambient + (1.08 - ambient) * facing)[:, None]
    return Mesh(mesh.vertices, mesh.normals, np.clip(colors, 0, 1), mesh.triangles)
