"""What moves: a tumbling cube, a jelly, a flag, a zigzagging ball, a flickering sign, a sudden gem.

Each actor is a function of the time t in [0, 1] and returns its mesh, or None while it is absent.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from demo.stage.meshes import (
    FLOOR,
    Mesh,
    directions,
    lit,
    merge,
    moved,
    patch,
    surface,
    turned_over,
)
from demo.stage.patterns import band, dots, mix, rgb, star, step, stripes
from demo.stage.room import CORNER, LEFT, POLE

BALL_RADIUS = 0.17
# Corners of the ball's path (x, y, z), run along straight lines at constant speed.
BALL_PATH = np.array(
    [
        [-0.30, 0.32, 3.35],
        [-0.60, FLOOR - BALL_RADIUS, 3.15],
        [-0.10, 0.46, 3.05],
        [0.24, FLOOR - BALL_RADIUS, 3.10],
        [0.64, 0.40, 3.30],
        [0.12, 0.62, 3.15],
        [-0.16, FLOOR - BALL_RADIUS, 3.05],
    ]
)
CUBE_CENTER = np.array([-0.02, 0.18, 4.55])
JELLY_BASE = np.array([-1.08, FLOOR, 3.75])
GEM_BASE = np.array([0.86, FLOOR, 3.35])
SIGN_ON = ((0.0, 0.16), (0.36, 0.44), (0.52, 0.80))  # when the sign is lit
GEM_TIME = 0.4


def _axis_rotation(axis: np.ndarray, angle: float) -> np.ndarray:
    """Rodrigues' formula."""
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _face_colors() -> list[Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    """One pattern per face of the cube, each with a darker rim."""
    patterns = [
        (lambda u, v: stripes(u, 0.5, 0.06), "#d94f4f", "#f7d9c4"),
        (lambda u, v: dots(u, v, 0.5, 0.14, 0.06), "#3d6fb4", "#f4f1e4"),
        (lambda u, v: stripes(u + v, 0.5, 0.08), "#3b9b6d", "#f2e394"),
        (lambda u, v: step(0.3 - np.hypot(u - 0.5, v - 0.5), 0.06), "#e8a33d", "#7a3b69"),
        (lambda u, v: stripes(u, 0.667, 0.06) * stripes(v, 0.667, 0.06), "#8a5fb0", "#f3d6ef"),
        (lambda u, v: band(u, 0.36, 0.64, 0.06) + band(v, 0.36, 0.64, 0.06), "#2fa3a8", "#f6f3e6"),
    ]

    def face(pattern: Callable, dark: str, light: str) -> Callable:
        def color(u: np.ndarray, v: np.ndarray) -> np.ndarray:
            edge = np.minimum(np.minimum(u, 1 - u), np.minimum(v, 1 - v))
            inner = mix(rgb(dark), rgb(light), np.clip(pattern(u, v), 0, 1))
            return mix(inner, rgb(dark) * 0.75, step(0.06 - edge, 0.05))

        return color

    return [face(*pattern) for pattern in patterns]


def cube(t: float) -> Mesh:
    """Rigid: a cube of side 0.66 that makes two thirds of a turn about a tilted axis."""
    x, y, z = np.eye(3)
    frames = [(x, y), (y, x), (y, z), (z, y), (z, x), (x, z)]  # du x dv points outwards
    faces = []
    for (a, b), color in zip(frames, _face_colors(), strict=True):
        origin = 0.5 * np.cross(a, b) - 0.5 * a - 0.5 * b
        faces.append(patch(0.66 * origin, 0.66 * a, 0.66 * b, color, (40, 40)))
    rotation = _axis_rotation(np.array([0.25, -1.0, 0.2]), 2 * np.pi * (0.05 + 0.55 * t))
    tilt = _axis_rotation(np.array([1.0, 0.0, 0.3]), 0.45)
    return lit(moved(merge(faces), rotation @ tilt, CUBE_CENTER))


def _face_of_jelly(azimuth: np.ndarray, height: np.ndarray, color: np.ndarray) -> np.ndarray:
    """Eyes and a smile; azimuth in radians from the front, height in [-1, 1] upwards."""
    for side in (-1, 1):
        eye = np.hypot(azimuth - 0.36 * side, 1.1 * (height - 0.28))
        color = mix(color, rgb("#fbf8ee"), step(0.20 - eye, 0.06))
        color = mix(color, rgb("#2a2135"), step(0.10 - eye, 0.05))
    curve = height + 0.22 - 0.55 * azimuth**2
    smile = step(0.055 - np.abs(curve), 0.05) * step(0.40 - np.abs(azimuth), 0.08)
    return mix(color, rgb("#4a1f45"), smile)


def jelly(t: float) -> Mesh:
    """Non-rigid: a soft body that breathes, sways and carries a ripple round its waist."""
    phase = 2 * np.pi * 1.5 * t
    squash = 1 + 0.17 * np.sin(phase)
    sway = 0.22 * np.sin(phase * 0.667 + 0.6)

    def position(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        unit = directions(u, v)
        height = 0.5 - 0.5 * unit[:, 1]  # 0 at the foot, 1 at the top
        ripple = 1 + 0.07 * np.cos(3 * 2 * np.pi * u - phase) * np.sin(np.pi * v)
        radius = 0.43 / np.sqrt(squash) * ripple * (1 + 0.12 * np.cos(np.pi * height))
        x = unit[:, 0] * radius + sway * height**1.5
        return JELLY_BASE + np.stack([x, -0.84 * squash * height, unit[:, 2] * radius], -1)

    def color(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        unit = directions(u, v)
        spots = dots(8 * u, 4 * v + 0.5 * (np.floor(8 * u) % 2), 1.0, 0.2, 0.12)
        plain_body = mix(rgb("#ff86b8"), rgb("#b766dd"), np.clip(v, 0, 1))
        body = mix(plain_body, rgb("#ffd0e4"), 0.6 * spots)
        azimuth = (2 * np.pi * (u - 0.22) + np.pi) % (2 * np.pi) - np.pi
        plain = step(0.75 - np.abs(azimuth), 0.2) * step(unit[:, 1] + 0.75, 0.2)
        body = mix(body, plain_body, plain)
        return _face_of_jelly(azimuth, -unit[:, 1], body)

    return lit(surface(position, color, (90, 160)))


def flag(t: float) -> Mesh:
    """Non-rigid: cloth that flies from the pole in travelling waves, stiller near the pole."""
    width, height = 0.98, 0.70
    phase = 2 * np.pi * 1.25 * t

    def position(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        free = np.clip(u, 0, None) ** 0.8
        z = -0.13 * free * np.sin(2 * np.pi * 1.1 * u - phase + 0.7 * v)
        y = 0.07 * free * np.sin(2 * np.pi * 0.8 * u - phase + 1.0) + 0.06 * u
        x = -width * u * (0.94 + 0.03 * np.sin(phase))
        return POLE + np.stack([x, y - 1.46 + height * v, z], -1)

    def color(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        a, b = (u - 0.5) * width, (v - 0.5) * height
        bars = mix(rgb("#f4efe2"), rgb("#7d62b3"), stripes(a + 0.5 * b, 0.3, 0.035))
        bars = mix(bars, rgb("#2f8f94"), step(0.055 - height * np.minimum(v, 1 - v), 0.03))
        bars = mix(bars, rgb("#f4efe2"), step(star(a, b, 0.245), 0.03))
        return mix(bars, rgb("#e4572e"), step(star(a, b, 0.185), 0.03))

    return lit(surface(position, color, (56, 80)))


def ball_center(t: float) -> np.ndarray:
    """(3,) position on the zigzag, at constant speed."""
    lengths = np.linalg.norm(np.diff(BALL_PATH, axis=0), axis=1)
    knots = np.concatenate([[0], np.cumsum(lengths)]) / lengths.sum()
    return np.array([np.interp(t, knots, BALL_PATH[:, i]) for i in range(3)])


def ball(t: float) -> Mesh:
    """Fast: a beach ball that changes direction abruptly, in the air and on the floor."""

    def color(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        sectors = mix(rgb("#f7f3e8"), rgb("#e23d3d"), stripes(u, 0.333, 0.03))
        return mix(sectors, rgb("#f2c230"), step(0.16 - np.minimum(v, 1 - v), 0.04))

    def position(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        return BALL_RADIUS * directions(u, v)

    turn = _axis_rotation(np.array([0.6, 0.1, 1.0]), 0.5 + 1.6 * t)
    return lit(moved(surface(position, color, (48, 80)), turn, ball_center(t)))


def sign_is_on(t: float) -> bool:
    """Whether the star on the left wall is lit."""
    return any(start <= t < end for start, end in SIGN_ON)


def sign(t: float) -> Mesh:
    """Flickering: a star on a board on the left wall; its colours change, its shape does not."""
    normal = np.array([0.6, 0.0, -0.8])
    side = 0.92
    origin = CORNER + 1.42 * LEFT + [0, -1.42, 0] + 0.04 * normal
    tube, core = ("#ffd75e", "#ff9f40") if sign_is_on(t) else ("#6a5d52", "#453c48")

    def color(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        a, b = side * (u - 0.5), side * (v - 0.5)
        board = mix(rgb("#34384f"), rgb("#454b6b"), stripes(u - v, 0.4, 0.1))
        edge = 0.5 * side - np.maximum(np.abs(a), np.abs(b))
        board = mix(board, rgb("#b9b3c9"), step(0.05 - edge, 0.03))
        field = star(a, -b, 0.27)
        return mix(mix(board, rgb(tube), step(field, 0.03)), rgb(core), step(field - 0.1, 0.04))

    return lit(turned_over(patch(origin, side * LEFT, (0, -side, 0), color, (56, 56))))


def gem(t: float) -> Mesh | None:
    """Appears: a faceted gem pops out of the floor within three frames, overshoots and stays."""
    if t < GEM_TIME:
        return None
    age = (t - GEM_TIME) * 13 + 0.45
    size = 0.30 * (1 - np.exp(-2.2 * age) * np.cos(2.6 * age))
    angles = np.linspace(0, 2 * np.pi, 7)[:-1] + 0.3
    ring = np.stack([np.cos(angles), np.full(6, -1.15), np.sin(angles)], -1)
    tops, bottom = np.array([0, -1.9, 0.0]), np.array([0, -0.05, 0.0])
    hues = ["#45c4b0", "#2a9d8f", "#7be0c3", "#1f7f86", "#a8f0d8", "#36b3a0"]
    facets = []
    for i, hue in enumerate(hues):
        a, b = ring[i], ring[(i + 1) % 6]
        facets.append(_facet(size * a, size * tops, size * b, rgb(hue)))
        facets.append(_facet(size * b, size * bottom, size * a, rgb(hue) * 0.82))
    return moved(lit(merge(facets), 0.8), np.eye(3), GEM_BASE)


def _facet(a: np.ndarray, b: np.ndarray, c: np.ndarray, tint: np.ndarray) -> Mesh:
    """A triangle a, b, c as a patch folded onto it, lighter towards its middle."""

    def position(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        u, v = u[:, None], v[:, None]
        return a + v * (b - a) * (1 - u) + u * (c - a)

    def color(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        inside = np.minimum(np.minimum(u, 1 - u), v * (1 - u))
        return mix(tint * 0.86, np.minimum(tint * 1.1, 1), step(inside - 0.12, 0.1))

    return surface(position, color, (16, 16))


def cast(t: float) -> dict[str, Mesh | None]:
    """All actors at time t, by name."""
    return {
        "cube": cube(t),
        "jelly": jelly(t),
        "flag": flag(t),
        "ball": ball(t),
        "sign": sign(t),
        "gem": gem(t),
    }


def shadows(t: float) -> list[tuple[np.ndarray, float, float]]:
    """Soft round shadows on the floor: (x, z), radius, strength; the ball's fades as it rises."""
    centre = ball_center(t)
    above = FLOOR - BALL_RADIUS - centre[1]
    blobs = [
        (JELLY_BASE[[0, 2]], 0.62, 0.45),
        (CUBE_CENTER[[0, 2]], 0.55, 0.40),
        (POLE[[0, 2]], 0.25, 0.35),
        (centre[[0, 2]], 0.24 + 0.15 * above, 0.45 / (1 + 2.5 * above)),
    ]
    if t >= GEM_TIME:
        blobs.append((GEM_BASE[[0, 2]], 0.30, 0.35))
    return blobs


def shaded_floor(floor: Mesh, t: float) -> Mesh:
    """The floor with the shadows of time t painted on it."""
    light = np.ones(len(floor.vertices))
    for centre, radius, strength in shadows(t):
        distance2 = np.sum((floor.vertices[:, [0, 2]] - centre) ** 2, axis=1)
        light *= 1 - strength * np.exp(-((distance2 / radius**2) ** 1.5))
    return Mesh(floor.vertices, floor.normals, floor.colors * light[:, None], floor.triangles)
