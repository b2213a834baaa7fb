"""What stands still: a wooden floor with a rug, two papered walls, a picture, a pole, a plinth."""

from __future__ import annotations

import numpy as np

from demo.stage.meshes import FLOOR, Mesh, lit, merge, patch, revolved, turned_over
from demo.stage.patterns import band, clouds, dots, mix, rgb, step, stripes

CORNER = np.array([0.35, FLOOR, 5.7])
LEFT = np.array([-0.8, 0.0, -0.6])  # along the left wall, away from the corner
RIGHT = np.array([0.6, 0.0, -0.8])
WALL_LENGTH, WALL_HEIGHT = 5.0, 3.6
SPACING = 0.022  # between vertices, metres: about a pixel at the walls
RUG = np.array([0.1, 3.95])  # x, z
POLE = np.array([1.42, FLOOR, 3.75])


def _floor_color(x: np.ndarray, z: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    along, across = 0.8 * x + 0.6 * z, 0.6 * x - 0.8 * z
    plank = 0.42
    row = np.floor(across / plank).astype(int)
    shade = rng.uniform(-1, 1, 64)[row % 64]
    color = mix(rgb("#9a6a43"), rgb("#c4925f"), 0.5 + 0.32 * shade)
    color = color * (1 + 0.06 * clouds(along * 0.3, across, (0.13, 0.35), rng))[:, None]
    gap = np.abs((across / plank + 0.5) % 1.0 - 0.5) * plank
    return mix(color, rgb("#5f3f2a"), 0.75 * step(0.022 - gap, 0.03))


def _rug_color(x: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    dx, dz = x - RUG[0], z - RUG[1]
    radius, angle = np.hypot(dx, dz), np.arctan2(dz, dx)
    color = mix(rgb("#f0e2c4"), rgb("#2f4b6e"), step(radius - 1.22, 0.05))
    petals = 0.80 + 0.13 * np.cos(12 * angle)
    color = mix(color, rgb("#c8553d"), step(petals - radius, 0.05))
    color = mix(color, rgb("#f0e2c4"), step(0.55 - radius, 0.05))
    color = mix(color, rgb("#2f4b6e"), step(0.40 + 0.07 * np.cos(6 * angle) - radius, 0.05))
    ring = band(radius, 1.02, 1.10, 0.04)
    return mix(color, rgb("#e0a33c"), ring), step(1.42 - radius, 0.04)


def floor(seed: int) -> Mesh:
    """The floor between the rig and the walls, y = FLOOR."""
    rng = np.random.default_rng([seed, 2])
    x0, z0, width, depth = -3.6, 1.6, 7.2, 4.4

    def color(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        x, z = x0 + width * u, z0 + depth * v
        rug, weight = _rug_color(x, z)
        weave = 1 + 0.035 * clouds(x, z, (0.15, 0.4), rng)
        return mix(_floor_color(x, z, rng), rug * weave[:, None], weight)

    size = (int(depth / SPACING), int(width / SPACING))
    return lit(patch((x0, FLOOR, z0), (width, 0, 0), (0, 0, depth), color, size))


def _corner_shade(s: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Soft darkening (V, 1) towards the corner and the floor, as ambient light would leave it."""
    return (1 - 0.22 * np.exp(-s / 0.5) - 0.16 * np.exp(-h / 0.3))[:, None]


def _panelled(paper: np.ndarray, s: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Wooden panels below the wallpaper."""
    inset = band(s % 0.6, 0.1, 0.5, 0.04) * band(h, 0.16, 0.5, 0.04)
    panel = mix(rgb("#e9e1d0"), rgb("#c9bda6"), inset)
    return mix(paper, panel, step(0.66 - h, 0.03)) * _corner_shade(s, h)


def _left_color(s: np.ndarray, h: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    paper = mix(rgb("#2f7f86"), rgb("#3f979a"), stripes(s, 0.5, 0.08))
    leaf = dots(s + 0.25 * (np.floor(h / 0.36) % 2), h, 0.36, 0.07, 0.04)
    paper = mix(paper, rgb("#8fd0c0"), 0.6 * leaf)
    paper = paper * (1 + 0.05 * clouds(s, h, (0.25, 0.9), rng))[:, None]
    return _panelled(paper, s, h)


def _right_color(s: np.ndarray, h: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    wave = np.sin(2 * np.pi * s / 0.55) * 0.09
    paper = mix(rgb("#e3b261"), rgb("#d9984d"), stripes(h + wave, 0.46, 0.07))
    paper = paper * (1 + 0.05 * clouds(s, h, (0.25, 0.9), rng))[:, None]
    return _panelled(paper, s, h)


def wall(which: str, seed: int) -> Mesh:
    """The 'left' or the 'right' wall, as far as any camera sees it."""
    rng = np.random.default_rng([seed, 3 if which == "left" else 4])
    along, paint = (LEFT, _left_color) if which == "left" else (RIGHT, _right_color)

    def color(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        return paint(u * WALL_LENGTH, v * WALL_HEIGHT, rng)

    size = (int(WALL_HEIGHT / SPACING), int(WALL_LENGTH / SPACING))
    mesh = patch(CORNER, along * WALL_LENGTH, (0, -WALL_HEIGHT, 0), color, size)
    return lit(turned_over(mesh) if which == "left" else mesh)


def _landscape(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A framed picture: sun, two ridges and a lake; u to the right, v up."""
    x, y = 1.4 * u, v
    color = mix(rgb("#f6c59a"), rgb("#5a86b8"), np.clip(1.5 * (y - 0.35), 0, 1))
    color = mix(color, rgb("#fff1b8"), step(0.13 - np.hypot(x - 0.95, y - 0.68), 0.04))
    ridge = 0.48 + 0.12 * np.sin(5.2 * x) + 0.05 * np.sin(11 * x + 1)
    color = mix(color, rgb("#6b5b95"), step(ridge - y, 0.04))
    color = mix(color, rgb("#3f6f4e"), step(0.34 + 0.08 * np.sin(4 * x + 2.2) - y, 0.04))
    edge = np.minimum(np.minimum(x, 1.4 - x), np.minimum(y, 1 - y))
    return mix(color, rgb("#5b3a29"), step(0.085 - edge, 0.03))


def picture() -> Mesh:
    """The landscape on the right wall, just in front of it."""
    normal = np.array([-0.8, 0.0, -0.6])
    origin = CORNER + 0.62 * RIGHT + [0, -1.52, 0] + 0.03 * normal
    return lit(patch(origin, 1.12 * RIGHT, (0, -0.8, 0), _landscape, (50, 70)))


def plinth() -> Mesh:
    """A turned wooden column that carries the cube."""
    profile = [
        (0.36, 0),
        (0.36, 0.07),
        (0.25, 0.13),
        (0.22, 0.3),
        (0.25, 0.36),
        (0.34, 0.4),
        (0.0, 0.4),
    ]

    def color(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        return mix(rgb("#efe6d6"), rgb("#8d8fb5"), stripes(u, 0.25, 0.04) * band(v, 0.2, 0.6, 0.05))

    return lit(revolved(profile, (-0.02, FLOOR, 4.55), color, (48, 96)))


def pole() -> Mesh:
    """The flag's pole with its foot and a knob."""
    profile = [
        (0.16, 0),
        (0.16, 0.05),
        (0.035, 0.09),
        (0.03, 1.5),
        (0.06, 1.54),
        (0.06, 1.6),
        (0.0, 1.63),
    ]

    def color(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        return mix(rgb("#d8d2c8"), rgb("#b5482f"), stripes(v, 0.22, 0.03))

    return lit(revolved(profile, POLE, color, (90, 28)))


def background(seed: int) -> dict[str, Mesh]:
    """All that never moves, by name."""
    return {
        "floor": floor(seed),
        "left wall": wall("left", seed),
        "right wall": wall("right", seed),
        "furniture": merge([picture(), plinth(), pole()]),
    }
