"""Videos of a rig with known cameras, drawn by the demo's renderer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from demo.stage import actors, rig, room
from script.make_demo_scene import encode

SCALE = 2  # of the demo's 256 x 192
FRAMES = 8
SPAN = 0.3  # of the demo's clip: things move by a few pixels a frame


def cameras() -> list[rig.Pinhole]:
    """Every other camera of the demo's rig, with larger pictures and one focal length."""
    size = {"width": rig.WIDTH * SCALE, "height": rig.HEIGHT * SCALE, "focal": rig.FOCAL * SCALE}
    return [replace(camera, **size) for camera in rig.build_rig(0)[::2]]


def film(folder: Path, late: dict[str, int] | None = None) -> list[rig.Pinhole]:
    """Writes a video for each camera; returns the cameras.

    Args:
        folder: where to.
        late: by how many frames a camera was started later than the others.
    """
    from demo.stage.renderer import Painter

    known = cameras()
    late = late or {}
    total = FRAMES + max(late.values(), default=0)
    painter = Painter(known[0].width, known[0].height, 2)
    background = room.background(0)
    for name, mesh in background.items():
        painter.show(name, mesh)
    clips: dict[str, list[np.ndarray]] = {camera.name: [] for camera in known}
    for frame in range(total):
        moment = SPAN * frame / (FRAMES - 1)
        painter.show("floor", actors.shaded_floor(background["floor"], moment))
        for name, mesh in actors.cast(moment).items():
            painter.show(name, mesh)
        for camera in known:
            if 0 <= frame - late.get(camera.name, 0) < FRAMES:
                clips[camera.name].append(np.round(painter.picture(camera) * 255).astype(np.uint8))
    folder.mkdir(parents=True)
    for name, frames in clips.items():
        encode(folder / f"{name}.mp4", np.stack(frames), 30, 12)
    return known


def similarity_residuals(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(N,) distances of ``found`` (N, 3) to ``truth`` after the best similarity (Umeyama, 1991)."""
    a, b = found - found.mean(axis=0), truth - truth.mean(axis=0)
    u, s, vt = np.linalg.svd(b.T @ a)
    sign = np.diag([1.0, 1.0, np.linalg.det(u @ vt)])
    scale = np.trace(np.diag(s) @ sign) / (a**2).sum()
    return np.linalg.norm(scale * a @ (u @ sign @ vt).T - b, axis=1)
