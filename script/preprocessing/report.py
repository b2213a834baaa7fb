"""What was found in a capture, as numbers, as a list of suspicions, and as ``report.md``."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from scene.cameras import Camera
from scene.colmap import read_points
from script.preprocessing.cloud import SPARSE, has_points
from script.preprocessing.sync import Offset
from utils.files import atomic_file
from utils.images import resize_image

OFFSET = 0.75  # frames from which a camera is called out of step
EXPOSURE = 0.15  # relative difference of brightness
ENOUGH = 10  # comparisons from which brightness is told
ERROR = 2.0  # pixels of mean reprojection error at which a pose is doubted, at 1600 pixels
BLIND = 0.25  # of the usual share of points in view
TILE = 240  # pixels, width of a picture on the contact sheet
COLUMNS = 6
PLOT = (900, 260)


@dataclass
class CameraFinding:
    """What is known about one camera.

    Attributes:
        camera: at the size of its frames.
        frames, fps: of its clip; no fps for images.
        coverage: share of the initial points in view.
        observations: features of triangulated points in its pictures.
        error: mean reprojection error of these, pixels; None without any.
        gain: brightness relative to the median camera; None where nothing could be compared.
        offset: in time; None if it was not estimated.
        neighbour: distance to the nearest other camera, world units.
        angle: between its axis and that camera's, degrees.
    """

    camera: Camera
    frames: int
    fps: float | None
    coverage: float
    observations: int
    error: float | None
    gain: float | None
    offset: Offset | None
    neighbour: float
    angle: float


@dataclass
class Findings:
    """What is known about a capture."""

    cameras: list[CameraFinding]
    points: int
    radius: float  # of the rig, world units
    missing: list[str] = field(default_factory=list)  # cameras without a pose
    poses_from: str = ""

    def suspicions(self) -> list[str]:
        """A line for each thing that should be looked at, with what to do."""
        lines = [
            f"{name}: no pose was found, so it is left out; it may see too little of what the "
            "others see"
            for name in self.missing
        ]
        usual = float(np.median([c.coverage for c in self.cameras]))
        for found in self.cameras:
            lines += [f"{found.camera.name}: {text}" for text in _suspicions(found, usual)]
        return lines


def _suspicions(found: CameraFinding, usual_coverage: float) -> list[str]:
    lines = []
    if found.coverage < BLIND * usual_coverage:
        lines.append(
            f"sees {found.coverage:.0%} of the points, others {usual_coverage:.0%}; is its pose "
            "right, does it look at the scene?"
        )
    limit = ERROR * max(found.camera.width, found.camera.height) / 1600
    if found.error is not None and found.error > max(limit, 1.0):
        lines.append(
            f"mean reprojection error {found.error:.2f} pixels; its pose or lens is not right"
        )
    if found.gain is not None and abs(found.gain - 1) > EXPOSURE:
        lines.append(
            f"{abs(found.gain - 1):.0%} {'brighter' if found.gain > 1 else 'darker'} than the "
            "others; train with --camera_color"
        )
    if found.offset and found.offset.is_clear and abs(found.offset.frames) > OFFSET:
        lines.append(
            f"{found.offset.frames:+.1f} frames out of step with the first camera (correlation "
            f"{found.offset.confidence:.2f}); use --apply_offsets"
        )
    return lines


def observe(
    cameras: Sequence[Camera], pictures: dict[Path, Sequence[np.ndarray]]
) -> tuple[list[int], list[float | None], list[float | None]]:
    """Observations, mean reprojection error and relative brightness of every camera.

    Brightness is compared where it can be: at the same triangulated points, as others see them.

    Args:
        cameras: at the size of the pictures.
        pictures: folder of a triangulated moment -> a frame of every camera.
    """
    import pycolmap

    errors: list[list[float]] = [[] for _ in cameras]
    ratios: dict[tuple[int, int], list[float]] = {}
    rows = {f"{camera.name}.png": row for row, camera in enumerate(cameras)}
    for folder, frames in pictures.items():
        if not has_points(folder):
            continue
        read_points(folder / SPARSE)  # damaged files, which would hang pycolmap, are named here
        model = pycolmap.Reconstruction(folder / SPARSE)
        for point in model.points3D.values():
            _observe_point(model, point, rows, cameras, frames, errors, ratios)
    means = [float(np.mean(e)) if e else None for e in errors]
    return [len(e) for e in errors], means, _gains(ratios, len(cameras))


def _gains(ratios: dict[tuple[int, int], list[float]], count: int) -> list[float | None]:
    """Relative to the median camera, from log ratios of pairs by weighted least squares.

    In this way a camera is not compared with itself, and a dark one does not make those bright
    that it was compared with.
    """
    rows, values, seen = [], [], np.zeros(count, int)
    for (a, b), logs in ratios.items():
        row = np.zeros(count)
        row[a], row[b] = len(logs), -len(logs)
        rows.append(row)
        values.append(len(logs) * np.median(logs))
        seen[[a, b]] += len(logs)
    known = seen >= ENOUGH
    if not known.any():
        return [None] * count
    solution = np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)[0]
    gains = np.exp(solution - np.median(solution[known]))
    return [float(gain) if k else None for gain, k in zip(gains, known, strict=True)]


def _observe_point(model, point, rows, cameras, frames, errors, ratios) -> None:
    """Adds a point's errors to its cameras' lists, and log brightness ratios to its pairs'."""
    lights = {}
    for element in point.track.elements:
        image = model.images[element.image_id]
        row = rows[image.name]
        where = image.points2D[element.point2D_idx].xy - 0.5  # COLMAP's pixel centres are at 0.5
        pixel = cameras[row].project(point.xyz[None])[0][0]
        errors[row].append(float(np.linalg.norm(pixel - where)))
        lights[row] = _brightness(frames[row], where)
    # Neither black nor burnt out.
    usable = sorted(row for row, light in lights.items() if 10 < light < 245)
    for a, b in itertools.combinations(usable, 2):
        ratios.setdefault((a, b), []).append(float(np.log(lights[a] / lights[b])))


def _brightness(picture: np.ndarray, where: np.ndarray) -> float:
    """Mean grey level of the 5 x 5 pixels around a place."""
    x, y = np.rint(where).astype(int)
    patch = picture[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3]
    return float(patch.mean()) if patch.size else 0.0


def neighbours(cameras: Sequence[Camera]) -> list[tuple[float, float]]:
    """For every camera the distance to the nearest other, and the angle to its axis in degrees."""
    centres = np.stack([camera.camera_center.numpy() for camera in cameras])
    axes = np.stack([camera.forward.numpy() for camera in cameras])
    found = []
    for row in range(len(cameras)):
        distance = np.linalg.norm(centres - centres[row], axis=1)
        distance[row] = np.inf
        nearest = int(distance.argmin())
        cosine = float(np.clip(axes[row] @ axes[nearest], -1, 1))
        found.append((float(distance[nearest]), float(np.degrees(np.arccos(cosine)))))
    return found


# ---- the report ---------------------------------------------------------------------------------


def as_markdown(findings: Findings, title: str, pictures: Sequence[tuple[str, str]]) -> str:
    """The report; ``pictures`` are titles and relative paths."""
    suspicions = findings.suspicions()
    distances = [c.neighbour for c in findings.cameras]
    angles = [c.angle for c in findings.cameras]
    errors = [c.error for c in findings.cameras if c.error is not None]
    lines = [
        f"# {title}",
        "",
        f"- {len(findings.cameras)} cameras with poses from {findings.poses_from}",
        f"- {findings.points} initial points",
        f"- rig: radius {findings.radius:.4g}; to the nearest other camera "
        f"{min(distances):.4g} to {max(distances):.4g}, axes {min(angles):.1f} to "
        f"{max(angles):.1f} degrees apart",
        f"- mean reprojection error {np.mean(errors):.2f} pixels"
        if errors
        else "- no point could be triangulated, so that no pose could be checked",
        "",
        "## To look at",
        "",
        *([f"- {line}" for line in suspicions] or ["Nothing is suspicious."]),
        "",
        "## Cameras",
        "",
        *_table(findings.cameras),
    ]
    for name, path in pictures:
        lines += ["", f"## {name}", "", f"![{name}]({path})"]
    return "\n".join(lines) + "\n"


def _table(cameras: Sequence[CameraFinding]) -> list[str]:
    heads = [
        "camera", "size", "frames", "fps", "focal", "points in view", "observations", "error, px",
        "brightness", "offset, frames", "nearest camera", "angle",
    ]  # fmt: skip
    rows = [heads, ["---"] * len(heads)]
    for found in cameras:
        offset = found.offset
        rows.append(
            [
                found.camera.name,
                f"{found.camera.width} x {found.camera.height}",
                str(found.frames),
                f"{found.fps:.4g}" if found.fps else "images",
                f"{found.camera.fx:.0f}",
                f"{found.coverage:.0%}",
                str(found.observations),
                "" if found.error is None else f"{found.error:.2f}",
                "" if found.gain is None else f"{found.gain:.2f}",
                f"{offset.frames:+.2f}" if offset and offset.is_clear else "not clear",
                f"{found.neighbour:.4g}",
                f"{found.angle:.1f}°",
            ]
        )
    return ["| " + " | ".join(row) + " |" for row in rows]


def contact_sheet(names: Sequence[str], pictures: Sequence[np.ndarray]) -> Image.Image:
    """A frame of every camera, with its name."""
    height = max(round(TILE * p.shape[0] / p.shape[1]) for p in pictures) + 18
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (TILE * min(COLUMNS, len(pictures)), height * rows), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for i, (name, pixels) in enumerate(zip(names, pictures, strict=True)):
        x, y = i % COLUMNS * TILE, i // COLUMNS * height
        small = resize_image(pixels, (TILE, round(TILE * pixels.shape[0] / pixels.shape[1])))
        sheet.paste(Image.fromarray(small), (x, y + 18))
        draw.text((x + 4, y + 2), name, fill="black", font=font)
    return sheet


def motion_plot(names: Sequence[str], energies: Sequence[np.ndarray]) -> Image.Image:
    """The curves whose shifts are the time offsets, each on its own scale, one above the other."""
    width, height = PLOT[0], max(PLOT[1], 24 * len(names))
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    band = height / len(names)
    for row, (name, energy) in enumerate(zip(names, energies, strict=True)):
        span = float(np.ptp(energy)) or 1.0
        x = np.linspace(60, width - 8, len(energy))
        y = (row + 1) * band - 2 - (energy - energy.min()) / span * (band - 6)
        draw.line([tuple(p) for p in np.stack([x, y], axis=1)], fill=(0, 90, 160))
        draw.text((4, row * band + band / 2 - 6), name, fill="black", font=font)
    return sheet


def save_picture(path: Path, image: Image.Image) -> None:
    """Writes a picture, whole or not at all."""
    with atomic_file(path) as temporary:
        image.save(temporary)
