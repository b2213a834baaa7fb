"""Says what a scene folder is, before anything is trained on it, and draws the camera rig.

python -m scene.inspect <scene folder>
python -m scene.inspect <scene folder> --test_cameras 0 10 --rig rig.png --cameras
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from arguments_MoDE.config import ModelParams
from scene.cameras import Camera
from scene.datasets import detect_format, load_scene
from scene.views import Scene
from utils.errors import UserError, cli
from utils.files import atomic_file

PANEL = 560  # pixels, of each of the two projections
MARGIN = 30
DRAWN_POINTS = 6000
NAMES_UP_TO = 40  # cameras; more names than that cover each other
FEW = 0.01  # share of the points below which a camera is suspicious
ON_PATH = 0.9  # share of the views, of several moments, with a pose of their own: a moving camera
TRAIN_COLOUR, TEST_COLOUR = (0, 90, 160), (200, 60, 0)
PLANES = (("seen along y", 0, 2), ("seen along z", 0, 1))


@dataclass(frozen=True)
class Pose:
    """A place that views are taken from, and of what."""

    camera: Camera
    held_out: bool
    views: int
    seen: float  # share of the initial points inside its image


def poses_of(scene: Scene) -> list[Pose]:
    """The distinct poses of the training and test views, in their order."""
    found: dict[tuple[bool, bytes], tuple[Camera, int]] = {}
    for held_out, views in ((False, scene.train), (True, scene.test)):
        for view in views:
            key = (held_out, view.camera.world_to_camera.numpy().tobytes())
            camera, count = found.get(key, (view.camera, 0))
            found[key] = (camera, count + 1)
    return [
        Pose(camera, held_out, count, float(camera.sees(scene.points.xyz).mean()))
        for (held_out, _), (camera, count) in found.items()
    ]


def describe(scene: Scene, poses: Sequence[Pose], title: str) -> list[str]:
    """What the scene is, a line each."""
    low, high = scene.points.bbox
    sizes = sorted({(pose.camera.width, pose.camera.height) for pose in poses})
    held_out = list(dict.fromkeys(pose.camera.name for pose in poses if pose.held_out))
    train = sum(not pose.held_out for pose in poses)
    moments = len({view.time for view in scene.train})
    moving = moments > 1 and train > ON_PATH * len(scene.train)
    times = scene.times
    lines = [
        f"{scene.source_path}: {title}",
        f"training views   {len(scene.train)}, from {train} poses"
        + (" (a camera that moves)" if moving else ""),
        f"held-out views   {len(scene.test)}"
        + ("" if moving or not held_out else f", of {_shortened(held_out)}"),
        f"times            {len(times)}, from {times[0]:.4g} to {times[-1]:.4g}",
        "image size       " + _shortened([f"{w} x {h}" for w, h in sizes]),
        f"initial points   {len(scene.points)}, in the box {_vector(low)} to {_vector(high)}",
        f"rig              radius {scene.extent:.4g} (the scene extent of learning rates)",
    ]
    if not moving and len(poses) > 1:
        lines.append(f"baseline         {baseline(poses):.4g} between the nearest two cameras")
    return lines + _suspicions(scene, poses)


def baseline(poses: Sequence[Pose]) -> float:
    """Distance between the two nearest centres of cameras, world units; 0 if all are in one."""
    centres = np.stack([pose.camera.camera_center.numpy() for pose in poses]).astype(np.float64)
    centres = np.unique(centres, axis=0)  # a camera may have both training and held-out views
    nearest = [np.linalg.norm(centres[:i] - c, axis=1).min() for i, c in enumerate(centres) if i]
    return float(min(nearest, default=0.0))


def _suspicions(scene: Scene, poses: Sequence[Pose]) -> list[str]:
    blind = [pose.camera.name for pose in poses if pose.seen < FEW]
    lines = []
    if blind:
        lines.append(
            f"suspicious       {_shortened(list(dict.fromkeys(blind)))}: less than {FEW:.0%} of "
            "the points in view; is the pose right?"
        )
    seen = np.zeros(len(scene.points), bool)
    for pose in poses:
        if not pose.held_out:
            seen |= pose.camera.sees(scene.points.xyz)
    if not seen.all():
        lines.append(
            f"out of view      {1 - seen.mean():.1%} of the points, for every training view"
        )
    return lines


def camera_table(poses: Sequence[Pose]) -> list[str]:
    """A line per pose: name, set, views, size, focal length, centre, share of the points seen."""
    rows = [["camera", "set", "views", "size", "focal", "centre", "points in view"]]
    for pose in poses:
        camera = pose.camera
        rows.append(
            [
                camera.name,
                "held out" if pose.held_out else "train",
                str(pose.views),
                f"{camera.width}x{camera.height}",
                f"{camera.fx:.0f}",
                _vector(camera.camera_center.numpy()),
                f"{pose.seen:.0%}",
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _vector(values: np.ndarray) -> str:
    return "(" + ", ".join(f"{v:.3g}" for v in values) + ")"


def _shortened(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# ---- the picture --------------------------------------------------------------------------------


def draw_rig(scene: Scene, poses: Sequence[Pose]) -> Image.Image:
    """The points and cameras in two projections side by side; held-out cameras in orange."""
    centres = np.stack([pose.camera.camera_center.numpy() for pose in poses])
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(scene.points))[:DRAWN_POINTS]
    low, high = np.percentile(scene.points.xyz, [2, 98], axis=0)
    low, high = np.minimum(low, centres.min(0)), np.maximum(high, centres.max(0))
    middle, span = (low + high) / 2, float((high - low).max()) or 1.0
    sheet = Image.new("RGB", (2 * PANEL, PANEL), "white")
    for column, (title, a, b) in enumerate(PLANES):

        def place(points: np.ndarray, a: int = a, b: int = b, column: int = column) -> np.ndarray:
            flat = (points[..., [a, b]] - middle[[a, b]]) / span  # in [-0.5, 0.5]
            return flat * (PANEL - 2 * MARGIN) + PANEL / 2 + [column * PANEL, 0]

        _draw_points(sheet, place(scene.points.xyz[rows]), scene.points.rgb[rows], column)
        draw = ImageDraw.Draw(sheet)
        draw.text((column * PANEL + 8, 6), title, fill="black", font=ImageFont.load_default(14))
        for pose in poses:
            _draw_camera(draw, pose, place, 0.05 * span, named=len(poses) <= NAMES_UP_TO)
    return sheet


def _draw_points(sheet: Image.Image, where: np.ndarray, rgb: np.ndarray, column: int) -> None:
    pixels = np.asarray(sheet).copy()
    x, y = np.rint(where).astype(int).T
    inside = (x >= column * PANEL) & (x < (column + 1) * PANEL) & (y >= 0) & (y < PANEL)
    pixels[y[inside], x[inside]] = rgb[inside]
    sheet.paste(Image.fromarray(pixels))


def _draw_camera(draw: ImageDraw.ImageDraw, pose: Pose, place, size: float, *, named: bool) -> None:
    """The pyramid of its field of view, ``size`` world units long."""
    camera, colour = pose.camera, TEST_COLOUR if pose.held_out else TRAIN_COLOUR
    corners = [
        ((x - camera.cx) / camera.fx, (y - camera.cy) / camera.fy, 1.0)
        for x, y in ((0, 0), (camera.width, 0), (camera.width, camera.height), (0, camera.height))
    ]
    centre = camera.camera_center.numpy()
    world = centre + size * np.array(corners) @ camera.world_to_camera[:3, :3].numpy()
    tip = tuple(place(centre))
    base = [tuple(point) for point in place(world)]
    for start, end in zip(base, base[1:] + base[:1], strict=True):
        draw.line([start, end], fill=colour)
        draw.line([tip, start], fill=colour)
    if named:
        draw.text(
            (tip[0] + 4, tip[1] - 6), camera.name, fill=colour, font=ImageFont.load_default(10)
        )


# ---- the command --------------------------------------------------------------------------------


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scene.inspect",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source_path", metavar="folder", type=Path, help="the scene's folder")
    parser.add_argument(
        "--test_cameras", nargs="+", default=[], help="cameras to hold out, as in training"
    )
    parser.add_argument(
        "--llffhold",
        type=int,
        default=ModelParams.llffhold,
        help="hold out every n-th image of a camera that moves, 0: none, as in training",
    )
    parser.add_argument(
        "-i",
        "--images",
        default=ModelParams.images,
        help="folder of extracted frames inside the scene folder, as in training",
    )
    parser.add_argument("--cameras", action="store_true", help="also a line for every camera")
    parser.add_argument(
        "--rig", type=Path, help="where to draw the rig (default: ./<folder>_rig.png)"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints and draws."""
    arguments = parse(argv)
    rig = arguments.rig or Path(f"{arguments.source_path.resolve().name}_rig.png")
    if rig.suffix.lower() != ".png":
        raise UserError(f"--rig {rig}: name a file that ends in .png")
    if arguments.llffhold < 0:
        raise UserError(f"--llffhold {arguments.llffhold}: give 0 for none, or a positive number")
    settings = ModelParams(
        source_path=str(arguments.source_path),
        images=arguments.images,
        duration=0,
        test_cameras=arguments.test_cameras,
        llffhold=arguments.llffhold,
    )
    title = detect_format(arguments.source_path).title
    scene = load_scene(settings)
    poses = poses_of(scene)
    print("\n".join(describe(scene, poses, title)))
    if arguments.cameras:
        print("\n".join(camera_table(poses)))
    with atomic_file(rig) as temporary:
        draw_rig(scene, poses).save(temporary)
    print(f"rig drawn        {rig}")


if __name__ == "__main__":
    cli(main)
