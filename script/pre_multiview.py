"""Makes a trainable scene of any synchronised videos: recovers the cameras, or takes a calibration.

python script/pre_multiview.py <footage>
python script/pre_multiview.py <footage> --out <scene> --calibration Calib.toml -r 2

<footage> holds a video for each camera, or a folder of images for each. The cameras must stand
still. Their poses and lenses are recovered from what they film (structure from motion), or read
from a calibration: a TOML of Pose2Sim, Anipose or Caliscope, a .qca.txt of Qualisys, or a folder
with a COLMAP model. Made in <scene>, by default in <footage> itself:

images/cam00/0000.png …        undistorted frames of every camera
sparse/0/                      the cameras and points, as COLMAP has them
points3D_downsample.ply        what training starts from
report.md                      what was found, and what looks wrong: read it before training

Everything is checked first: frame rates, lengths, damaged files; and whether the videos began at
the same moment, from how much moves in them. What is done and still valid is skipped when the
script is run again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from arguments_MoDE.config import ModelParams
from scene.cameras import Camera, camera_from_pose
from scene.datasets import load_scene
from scene.inspect import draw_rig, poses_of
from scene.point_cloud import read_ply
from scene.views import scene_extent
from script.preprocessing import options, report, sync
from script.preprocessing.colmap_tools import require_pycolmap
from script.preprocessing.footage import Clip, check_rates, choose_frames, find_clips, spread
from script.preprocessing.frames import Change, Extraction, extract
from script.preprocessing.rig import CLOUD, Rig, chosen_tools, extracted, make_points
from script.preprocessing.steps import Step, Steps, warn
from utils.errors import UserError, cli
from utils.files import atomic_file, atomic_folder, write_json
from utils.flags import NumberParser

CAMERAS = "cameras.json"  # in .steps: what structure from motion found
MODEL = "sparse/0"
LENSES = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "OPENCV_FISHEYE")


@dataclass
class Capture:
    """The clips of a capture, one per camera, and which frames of each belong together."""

    clips: list[Clip]
    frames: list[range]  # of each clip; equally long
    offsets: list[sync.Offset] | None
    energies: list[np.ndarray]

    def without(self, names: Sequence[str]) -> Capture:
        """The same without some cameras."""
        keep = [row for row, clip in enumerate(self.clips) if clip.name not in names]
        return Capture(
            [self.clips[row] for row in keep],
            [self.frames[row] for row in keep],
            self.offsets and [self.offsets[row] for row in keep],
            [self.energies[row] for row in keep] if self.energies else [],
        )


def synchronised(clips: list[Clip], frames: range, chosen: argparse.Namespace) -> Capture:
    """The time offsets, and with --apply_offsets the frames that are of the same moments."""
    every = range(frames.start, frames.stop)  # offsets are in frames of the clip, not in steps
    if chosen.no_sync or len(every) < sync.SHORTEST or len(clips) < 2:
        return Capture(clips, [frames] * len(clips), None, [])
    energies = sync.all_energies(clips, every)
    offsets = sync.estimate_offsets(energies, chosen.max_offset)
    shifts = [round(offset.frames) if offset.is_clear else 0 for offset in offsets]
    out_of_step = [f"{c.name} {s:+d}" for c, s in zip(clips, shifts, strict=True) if s]
    if not out_of_step:
        return Capture(clips, [frames] * len(clips), offsets, energies)
    text = f"frames out of step with {clips[0].name}: {', '.join(out_of_step)}"
    if not chosen.apply_offsets:
        warn(f"{text}; if report.md agrees, run again with --apply_offsets")
        return Capture(clips, [frames] * len(clips), offsets, energies)
    print(f"{text}; applied")
    return Capture(clips, shifted(clips, frames, shifts), offsets, energies)


def shifted(clips: Sequence[Clip], frames: range, shifts: Sequence[int]) -> list[range]:
    """For each clip the frames of the moments that all of them have.

    Raises:
        UserError: there is no such moment.
    """
    first = max(frames.start, *(-s for s in shifts))
    ends = [clip.frames - s for clip, s in zip(clips, shifts, strict=True)]
    moments = range(first, min(frames.stop, *ends), frames.step)
    if not moments:
        raise UserError("--apply_offsets: nothing is left of the clips; look at report.md")
    return [range(moments.start + s, moments.stop + s, frames.step) for s in shifts]


# ---- cameras ------------------------------------------------------------------------------------


def find_cameras(capture: Capture, out: Path, steps: Steps, chosen: argparse.Namespace) -> list:
    """The lens and pose of every camera that has one, from the calibration or recovered."""
    from script.preprocessing import calibration

    if chosen.calibration:
        return calibration.read_calibration(chosen.calibration, capture.clips)
    path = out / ".steps" / CAMERAS
    names = ("camera_model", "intrinsics", "focal", "sfm_frames", "max_image_size", "max_features")
    key = [[getattr(chosen, name) for name in names], [list(f) for f in capture.frames]]
    step = Step("structure from motion", [clip.path for clip in capture.clips], [path], key)
    steps.run(step, lambda: _recover(capture, path, chosen))
    return _read_cameras(path)


def _recover(capture: Capture, path: Path, chosen: argparse.Namespace) -> None:
    from script.preprocessing import sfm

    names = [clip.name for clip in capture.clips]
    rows = spread(range(len(capture.frames[0])), chosen.sfm_frames)
    pairs = list(zip(capture.clips, capture.frames, strict=True))
    clips = [list(clip.read([frames[row] for row in rows])) for clip, frames in pairs]
    settings = sfm.Settings(chosen.camera_model, chosen.intrinsics == "shared", chosen.focal)
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".sfm.", dir=path.parent))
    try:
        cameras, model = sfm.recover_cameras(
            names,
            [[clip[i] for clip in clips] for i in range(len(rows))],
            work,
            options.features(chosen),
            settings,
        )
    finally:
        shutil.rmtree(work, ignore_errors=True)
    sfm.warn_about_missing(cameras, names)
    print(
        f"posed {len(cameras)} of {len(names)} cameras from {model.num_points3D()} points, mean "
        f"reprojection error {model.compute_mean_reprojection_error():.2f} pixels"
    )
    entries = [
        {
            "name": camera.name,
            "model": camera.lens.model_name,
            "size": [camera.lens.width, camera.lens.height],
            "params": [float(v) for v in camera.lens.params],
            "world_to_camera": camera.world_to_camera.tolist(),
        }
        for camera in cameras
    ]
    write_json(path, entries)


def _read_cameras(path: Path) -> list:
    import pycolmap

    from script.preprocessing.calibration import Calibrated

    return [
        Calibrated(
            entry["name"],
            pycolmap.Camera(
                model=entry["model"],
                width=entry["size"][0],
                height=entry["size"][1],
                params=entry["params"],
            ),
            np.array(entry["world_to_camera"]),
        )
        for entry in json.loads(path.read_text(encoding="utf-8"))
    ]


def pinhole_camera(found, factor: int) -> tuple[Camera, Change | None]:
    """The camera of a calibrated one's undistorted frames, and what undistorts them.

    Args:
        found: `calibration.Calibrated`.
        factor: by which frames are smaller than the lens's size.
    """
    from script.preprocessing import lens

    small = lens.resized(
        found.lens, *options.smaller((found.lens.width, found.lens.height), factor)
    )
    target = lens.undistorted(small)
    size = (target.width, target.height)
    pose = np.linalg.inv(found.world_to_camera)
    camera = camera_from_pose(found.name, size, lens.pinhole(target), pose).validate(found.name)
    if not lens.is_distorted(small):
        return camera, None
    key = [small.model_name, size, [float(v) for v in small.params]]
    return camera, Change(lens.undistortion(small, target), key)


# ---- the scene ----------------------------------------------------------------------------------


def prepare(chosen: argparse.Namespace) -> None:
    """All steps of one capture."""
    options.folder(chosen.footage)
    out = chosen.out or chosen.footage
    clips = find_clips(chosen.footage)
    if (out / "images").resolve() == clips[0].path.parent.resolve():
        raise UserError(f"--out: missing; {out / 'images'} holds the footage itself, so name a "
                        "new folder for the scene")  # fmt: skip
    check_rates(clips)
    frames = choose_frames(clips, chosen.startframe, chosen.endframe, chosen.step)
    require_pycolmap()
    tools = chosen_tools(out, chosen)
    print(f"{chosen.footage}: {len(clips)} cameras, {len(frames)} frames of each")
    out.mkdir(parents=True, exist_ok=True)
    steps = Steps(out, redo=chosen.redo)
    capture = synchronised(clips, frames, chosen)
    found = find_cameras(capture, out, steps, chosen)
    missing = sorted({clip.name for clip in clips} - {camera.name for camera in found})
    capture = capture.without(missing)
    both = [pinhole_camera(camera, chosen.resolution) for camera in found]
    cameras = [camera for camera, _ in both]
    _extract(capture, [change for _, change in both], out, steps, chosen)
    names = [camera.name for camera in cameras]
    rig = Rig(out, cameras, extracted(out / "images", names), range(len(capture.frames[0])))
    folders = make_points(rig, tools, steps, chosen)
    write_model(out, cameras, steps)
    write_report(rig, folders, capture, missing, chosen)


def _extract(
    capture: Capture, changes: list, out: Path, steps: Steps, chosen: argparse.Namespace
) -> None:
    triples = zip(capture.clips, capture.frames, changes, strict=True)
    jobs = [
        Extraction(
            clip,
            frames,
            out / "images" / clip.name,
            options.smaller(clip.size, chosen.resolution),
            chosen.format,
            change,
        )
        for clip, frames, change in triples
    ]
    extract(jobs, steps)


def write_model(out: Path, cameras: Sequence[Camera], steps: Steps) -> None:
    """``sparse/0`` as text: an image for each camera, and the initial points without tracks."""
    from script.preprocessing import colmap_tools

    posed = [colmap_tools.PosedImage(f"{camera.name}.png", camera) for camera in cameras]
    numbers = {image.name: (i, i) for i, image in enumerate(posed, 1)}
    key = [[c.name, c.width, c.height, c.fx, c.fy, c.cx, c.cy, c.world_to_camera.tolist()]
           for c in cameras]  # fmt: skip

    def make() -> None:
        cloud = read_ply(out / CLOUD)
        with atomic_folder(out / MODEL) as temporary:
            colmap_tools.write_model(temporary, posed, numbers, cloud)

    steps.run(Step("model", [out / CLOUD], [out / MODEL], key), make)


def write_report(
    rig: Rig,
    folders: Sequence[Path],
    capture: Capture,
    missing: list[str],
    chosen: argparse.Namespace,
) -> None:
    """``report.md`` and its pictures; the scene is read as training reads it."""
    out = rig.root
    scene = load_scene(ModelParams(source_path=str(out), duration=0))
    findings = examine(rig, folders, capture, missing, chosen)
    pictures = [("The rig", "report/rig.png"), ("What the cameras see", "report/cameras.jpg")]
    report.save_picture(out / "report/rig.png", draw_rig(scene, poses_of(scene)))
    names = [camera.name for camera in rig.cameras]
    sheet = report.contact_sheet(names, rig.moment(rig.frames[0]))
    report.save_picture(out / "report/cameras.jpg", sheet)
    if capture.energies:
        pictures.append(("Motion in each camera, over time", "report/motion.png"))
        plot = report.motion_plot([c.name for c in capture.clips], capture.energies)
        report.save_picture(out / "report/motion.png", plot)
    with atomic_file(out / "report.md") as temporary:
        text = report.as_markdown(findings, out.resolve().name, pictures)
        temporary.write_text(text, encoding="utf-8")
    for line in findings.suspicions():
        warn(line)
    print(f"ready: {out}; read {out / 'report.md'}, then train with -s {shlex.quote(str(out))}")


def examine(
    rig: Rig,
    folders: Sequence[Path],
    capture: Capture,
    missing: list[str],
    chosen: argparse.Namespace,
) -> report.Findings:
    """Everything that the report says; ``folders`` are of the moments that were triangulated."""
    cloud = read_ply(rig.root / CLOUD)
    moments = {folder: rig.moment(int(folder.name[6:])) for folder in folders}
    observations, errors, gains = report.observe(rig.cameras, moments)
    near = report.neighbours(rig.cameras)
    cameras = [
        report.CameraFinding(
            camera=camera,
            frames=capture.clips[row].frames,
            fps=capture.clips[row].fps,
            coverage=float(camera.sees(cloud.xyz).mean()),
            observations=observations[row],
            error=errors[row],
            gain=gains[row],
            offset=capture.offsets[row] if capture.offsets else None,
            neighbour=near[row][0],
            angle=near[row][1],
        )
        for row, camera in enumerate(rig.cameras)
    ]
    source = str(chosen.calibration.name) if chosen.calibration else "structure from motion"
    radius = scene_extent(rig.cameras, cloud)
    return report.Findings(cameras, len(cloud), radius, missing, source)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = NumberParser(
        prog="pre_multiview.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("footage", type=Path, help="a video or a folder of images per camera")
    parser.add_argument("--out", type=Path, help="the scene's folder (default: the footage's)")
    options.add_frames(parser, "what the shortest video has")
    _add_cameras(parser)
    _add_time(parser)
    options.add_output(parser)
    options.add_cloud(parser)
    chosen = parser.parse_args(argv)
    options.check(chosen)
    if chosen.sfm_frames < 1 or chosen.max_offset < 1:
        raise UserError("--sfm_frames, --max_offset: give at least 1")
    if chosen.focal is not None and not chosen.focal > 0:
        raise UserError(f"--focal {chosen.focal}: give a length in pixels")
    return chosen


def _add_cameras(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("cameras")
    group.add_argument(
        "--calibration", type=Path, help="what is known already; nothing is recovered then"
    )
    group.add_argument(
        "--camera_model", default="SIMPLE_RADIAL", choices=LENSES,
        help="the lens that is recovered (default SIMPLE_RADIAL)",
    )  # fmt: skip
    group.add_argument(
        "--intrinsics", choices=("shared", "per_camera"), default="shared",
        help="whether cameras of one image size have the same lens (default shared)",
    )  # fmt: skip
    group.add_argument(
        "--focal", type=float, help="focal length to begin with, pixels (default: 1.2 widths)"
    )
    group.add_argument(
        "--sfm_frames", type=int, default=4, help="moments to recover them from (default 4)"
    )


def _add_time(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("time")
    group.add_argument(
        "--apply_offsets", action="store_true",
        help="uses frames of the same moment where videos did not begin at the same time",
    )  # fmt: skip
    group.add_argument(
        "--max_offset", type=int, default=30, help="frames looked for at most (default 30)"
    )
    group.add_argument(
        "--no_sync", action="store_true",
        help="does not look for time offsets, which decodes every video once",
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Prepares the capture."""
    prepare(parse(argv))


if __name__ == "__main__":
    cli(main)
