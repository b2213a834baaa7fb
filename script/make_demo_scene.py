"""Makes the demo scene from nothing: videos, poses and points in the layout of N3V.

    python script/make_demo_scene.py --out demo/scene

It needs panda3d (a software renderer: neither a GPU nor a display) and half a minute. The scene is
in the repository already; nothing else needs this script. The same seed gives the same poses,
points and frames, and with the same build of x264 the same files.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo.stage import actors, cloud, rig, room
from demo.stage.meshes import Mesh, merge
from scene.point_cloud import write_vertices
from utils.errors import UserError, cli
from utils.files import atomic_folder

if TYPE_CHECKING:
    from demo.stage.renderer import Painter

EXTRA_TIMES = (1 / 3, 2 / 3, 1.0)  # further moments whose moving surfaces the cloud holds


def render_clips(
    cameras: Sequence[rig.Pinhole], background: dict[str, Mesh], frames: int, oversample: int
) -> np.ndarray:
    """uint8 (cameras, frames, H, W, 3)."""
    painter = _painter(oversample)
    for name, mesh in background.items():
        painter.show(name, mesh)
    clips = np.empty((len(cameras), frames, rig.HEIGHT, rig.WIDTH, 3), np.uint8)
    for frame in tqdm(range(frames), desc="rendering", unit="frame"):
        moment = frame / max(frames - 1, 1)
        painter.show("floor", actors.shaded_floor(background["floor"], moment))
        for name, mesh in actors.cast(moment).items():
            painter.show(name, mesh)
        for index, camera in enumerate(cameras):
            clips[index, frame] = np.round(painter.picture(camera) * 255)
    return clips


def _painter(oversample: int) -> Painter:
    try:
        from demo.stage.renderer import Painter
    except ImportError as error:
        raise UserError(
            "panda3d is missing, and draws the demo scene: pip install panda3d"
        ) from error
    return Painter(rig.WIDTH, rig.HEIGHT, oversample)


def encode(path: Path, frames: np.ndarray, fps: int, crf: int) -> None:
    """Writes uint8 frames (F, H, W, 3) as H.264 at full chroma, with one thread so that it repeats.

    4:2:0 would cost 7 dB here. (N3V's own videos are 4:2:0, but are used at half their resolution.)
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv444p"
        stream.options = {"crf": str(crf), "preset": "veryslow", "threads": "1"}
        for pixels in frames:
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def decode(path: Path) -> np.ndarray:
    """uint8 (F, H, W, 3)."""
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def make_points(
    cameras: Sequence[rig.Pinhole], background: dict[str, Mesh], count: int, seed: int
) -> np.ndarray:
    """Three quarters of the points show all surfaces at time 0, the others what moves, later on."""
    rng = np.random.default_rng([seed, 5])
    later = count // 4 // len(EXTRA_TIMES)
    still = [actors.shaded_floor(background["floor"], 0.0)]
    still += [mesh for name, mesh in background.items() if name != "floor"]
    first = count - later * len(EXTRA_TIMES)
    parts = [cloud.triangulated(cameras, [*_present(0.0), *still], [], first, rng)]
    parts += [cloud.triangulated(cameras, _present(t), still, later, rng) for t in EXTRA_TIMES]
    return np.concatenate(parts)


def _present(moment: float) -> list[Mesh]:
    return [mesh for mesh in actors.cast(moment).values() if mesh is not None]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """dB between 8-bit images."""
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float(10 * np.log10(255.0**2 / max(error, 1e-12)))


def report(folder: Path, clips: np.ndarray) -> str:
    """What a reader should know about the result, one fact a line."""
    decoded = [decode(path) for path in sorted(folder.glob("cam*.mp4"))]
    losses = [psnr(a, b) for a, b in zip(clips, decoded, strict=True)]
    held_out = clips[0].astype(np.float64)
    away = np.abs(held_out - np.median(held_out, axis=0)).max(axis=-1) > 16
    ever = np.ptp(held_out, axis=0).max(axis=-1) > 24
    bytes_total = sum(path.stat().st_size for path in folder.iterdir())
    return "\n".join(
        [
            f"size: {bytes_total / 1e6:.2f} MB, {len(clips)} cameras x {clips.shape[1]} frames",
            f"compression: {np.mean(losses):.2f} dB mean, {np.min(losses):.2f} dB worst camera",
            f"moving pixels in cam00: {away.mean():.1%} of a frame, {ever.mean():.1%} at some time",
            f"best still picture of cam00: {psnr(held_out, held_out.mean(axis=0)):.2f} dB",
        ]
    )


def make_scene(options: argparse.Namespace) -> str:
    """Makes the whole folder, replacing an existing one only at the end; returns the report."""
    cameras = rig.build_rig(options.seed)
    background = room.background(options.seed)
    clips = render_clips(cameras, background, options.frames, options.oversample)
    bounds = cloud.depth_bounds(
        cameras, [merge([*_present(t), *background.values()]) for t in (0.0, *EXTRA_TIMES)]
    )
    with atomic_folder(options.out) as folder:
        np.save(folder / "poses_bounds.npy", rig.poses_bounds(cameras, bounds))
        points = make_points(cameras, background, options.points, options.seed)
        columns = {name: points[name] for name in points.dtype.names}
        write_vertices(folder / "points3D_downsample.ply", columns)
        for camera, frames in zip(
            cameras, tqdm(clips, desc="encoding", unit="camera"), strict=True
        ):
            encode(folder / f"{camera.name}.mp4", frames, options.fps, options.crf)
        return report(folder, clips)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; UserError for values that make no scene."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo/scene"), help="folder to (re)place")
    parser.add_argument("--seed", type=int, default=0, help="of poses, textures and points, >= 0")
    parser.add_argument("--frames", type=int, default=40, help="frames a video")
    parser.add_argument("--fps", type=int, default=30, help="frames a second")
    parser.add_argument("--crf", type=int, default=12, help="x264 quality, 0 (lossless) to 51")
    parser.add_argument("--oversample", type=int, default=4, help="samples a pixel, per axis")
    parser.add_argument("--points", type=int, default=6000, help="points in the cloud")
    options = parser.parse_args(arguments)
    lowest = {"seed": 0, "frames": 1, "fps": 1, "crf": 0, "oversample": 1, "points": 1}
    for name, least in lowest.items():
        if getattr(options, name) < least:
            raise UserError(f"--{name} {getattr(options, name)}: give at least {least}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    options = parse(arguments)
    started = time.perf_counter()
    print(make_scene(options))
    print(f"wrote {options.out} in {time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    cli(main)
