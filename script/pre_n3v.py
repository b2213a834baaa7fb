"""Prepares a Neural 3D Video scene: frames, COLMAP with its known poses, and initial points.

python script/pre_n3v.py --videopath <dataset>/<scene>
python script/pre_n3v.py --videopath <dataset>/<scene> --endframe 60 -r 2 --format jpg

<scene> holds cam*.mp4 (or a folder of images for each camera) and poses_bounds.npy. Made in it:

images/cam00/0000.png …        the frames of every camera
colmap/                        features, matches and points of the known poses
colmap/dense/workspace/fused.ply
points3D_downsample.ply        what training starts from

Training reads the frames and leaves the videos alone (with --no_frames: the other way round).
What is done and still valid is skipped, so an interrupted run goes on where it was. COLMAP is the
package pycolmap (pip install -r requirements-preprocess.txt) or a program (--colmap_bin). Where it
has no CUDA there is no dense stereo: the points are then triangulated at several moments.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scene.cameras import Camera
from scene.datasets.n3v import MARKER, read_rows, row_camera
from script.preprocessing import options
from script.preprocessing.footage import Clip, check_rates, choose_frames, find_clips
from script.preprocessing.frames import Extraction, all_frames, extract
from script.preprocessing.rig import Rig, chosen_tools, extracted, has_own_points, make_points
from script.preprocessing.steps import Steps
from utils.errors import UserError, cli

PUBLISHED_END = 300  # frames; flame_salmon_1 is longer, and the field uses its first 300


def known_cameras(
    root: Path, clips: Sequence[Clip], sizes: Sequence[tuple[int, int]]
) -> list[Camera]:
    """The cameras of ``poses_bounds.npy``, row i being the i-th clip's, at the sizes given.

    Raises:
        UserError: the file is missing or damaged, or has another number of rows.
    """
    path = root / MARKER
    rows = read_rows(path)
    if len(rows) != len(clips):
        raise UserError(
            f"{path}: has {len(rows)} rows but there are {len(clips)} cameras "
            f"({', '.join(clip.name for clip in clips)}); restore the videos that are missing"
        )
    return [
        row_camera(clip.name, row, size).validate(path)
        for clip, row, size in zip(clips, rows, sizes, strict=True)
    ]


def prepare(chosen: argparse.Namespace) -> None:
    """All steps of one scene."""
    root = options.folder(chosen.videopath)
    clips = find_clips(root, "cam*")
    frames = choose_frames(
        clips, chosen.startframe, chosen.endframe, chosen.step, default_end=PUBLISHED_END
    )
    check_rates(clips)
    sizes = [options.smaller(clip.size, chosen.resolution) for clip in clips]
    cameras = known_cameras(root, clips, sizes)
    tools = chosen_tools(root, chosen)
    print(f"{root}: {len(clips)} cameras, {len(frames)} frames of each")
    steps = Steps(root, redo=chosen.redo)
    rig = Rig(root, cameras, clips, frames)
    if clips[0].path.parent != root / "images":
        jobs = [
            Extraction(clip, frames, root / "images" / clip.name, size, chosen.format)
            for clip, size in zip(clips, sizes, strict=True)
        ]
        if chosen.no_frames:
            steps.forget(all_frames(jobs))  # of an earlier run: training is to read the videos
        else:
            extract(jobs, steps)
            done = extracted(root / "images", [clip.name for clip in clips])
            rig = Rig(root, cameras, done, range(len(frames)))
    if not has_own_points(root, steps):
        make_points(rig, tools, steps, chosen)
    print(f"ready: python -m scene.inspect {shlex.quote(str(root))}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        prog="pre_n3v.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--videopath", type=Path, required=True, help="the scene's folder, made ready in place"
    )
    options.add_frames(parser, f"{PUBLISHED_END}, or what the shortest video has")
    options.add_output(parser)
    parser.add_argument(
        "--no_frames",
        action="store_true",
        help="extracts nothing: training reads the videos themselves",
    )
    options.add_cloud(parser)
    chosen = parser.parse_args(argv)
    options.check(chosen)
    return chosen


def main(argv: Sequence[str] | None = None) -> None:
    """Prepares the scene."""
    prepare(parse(argv))


if __name__ == "__main__":
    cli(main)
