"""Prepares a Technicolor scene: frames, COLMAP with its known poses, and initial points.

python script/pre_technicolor.py --videopath <dataset>/Birthday
python script/pre_technicolor.py --videopath <dataset>/Birthday --repair
python script/pre_technicolor.py --videopath <dataset>/Painter --startframe 100 --endframe 120 -r 2

The scene's folder holds cameras_parameters.txt and the files as they are published,
<Scene>_undist_<frame>_<camera>.png (or images/cam00/ … with a folder for each camera). Made in it:

images/cam00/0000.png …        the frames of every camera; at full size the published files
                               under new names (hard links), which take no more space
colmap/                        features, matches and points of the known poses
colmap/dense/workspace/fused.ply
points3D_downsample.ply        what training starts from

Frames are numbered as in the names of the files. Without --startframe and --endframe they are those
that published results use, if all are there: Birthday and Train 151 to 200, Fabien and Theater 51
to 100, Painter 100 to 149. Otherwise they are all that every camera has.

What is done and still valid is skipped, so an interrupted run goes on where it was. COLMAP is the
package pycolmap (pip install -r requirements-preprocess.txt) or a program (--colmap_bin). Where it
has no CUDA there is no dense stereo: the points are then triangulated at several moments.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scene.cameras import Camera
from scene.datasets.technicolor import MARKER, raw_files, raw_name, read_rows, row_camera
from script.preprocessing import options
from script.preprocessing.footage import Clip, choose_frames, find_clips, probe
from script.preprocessing.frames import MOST_THREADS, Extraction, extract
from script.preprocessing.rig import Rig, chosen_tools, extracted, has_own_points, make_points
from script.preprocessing.steps import Step, Steps, warn
from utils.errors import UserError, cli
from utils.files import write_json
from utils.images import check_image

PUBLISHED = {
    "birthday": range(151, 201),
    "fabien": range(51, 101),
    "painter": range(100, 150),
    "theater": range(51, 101),
    "train": range(151, 201),
}
DAMAGED = "damaged.json"  # in .steps: names of the published files that are not whole

Files = dict[int, Path]  # of one camera, by frame number


# ---- which frames -------------------------------------------------------------------------------


def choose_numbers(
    root: Path, scene: str, files: Sequence[Files], chosen: argparse.Namespace
) -> list[int]:
    """The numbers of the frames in use, which every camera has.

    Raises:
        UserError: --startframe, --endframe or --step leave nothing, or some camera lacks a frame
            that they ask for.
    """
    start, end, step = chosen.startframe, chosen.endframe, chosen.step
    common = set.intersection(*(set(numbers) for numbers in files))
    given = (start, end) != (None, None)
    published = PUBLISHED.get(scene.lower(), range(0))
    if published and not given and common.issuperset(published):
        numbers = list(published)
    else:
        every = sorted(set().union(*files))
        numbers = _between(every, 0 if start is None else start, end)
    absent = sorted(set(numbers) - common)
    if absent:
        file = _missing(root, scene, files, absent[0])
        if given:
            raise UserError(f"{file}: missing, where other cameras have it; restore it, or leave "
                            "that frame out by --startframe, --endframe")  # fmt: skip
        warn(f"{file}: missing, where other cameras have it; {len(absent)} such frames left out")
    numbers = [n for n in numbers if n in common][::step]
    if not numbers:
        raise UserError(f"{root}: there is no frame that every camera has; restore the files")
    return numbers


def _between(every: Sequence[int], start: int, end: int | None) -> list[int]:
    """Those from ``start`` up to, not including, ``end``."""
    has = f"there are frames {every[0]} to {every[-1]}"
    if end is not None and end - 1 > every[-1]:
        raise UserError(f"--endframe {end}: {has}; give at most {every[-1] + 1}")
    numbers = [n for n in every if start <= n and (end is None or n < end)]
    if not numbers:
        flag = f"--startframe {start}" + ("" if end is None else f" --endframe {end}")
        raise UserError(f"{flag}: {has} (numbers as in the files' names), so none is left")
    return numbers


def _missing(root: Path, scene: str, files: Sequence[Files], number: int) -> Path:
    """The file that is missing of a frame that not every camera has."""
    camera = next(i for i, numbers in enumerate(files) if number not in numbers)
    return root / raw_name(scene, number, camera)


# ---- frames that are damaged --------------------------------------------------------------------


def damaged_files(paths: Sequence[Path], steps: Steps) -> list[str]:
    """The names of those that are not whole; looked at once, all of every file."""
    path = steps.root / ".steps" / DAMAGED
    steps.run(Step("check of the files", paths, [path]), lambda: write_json(path, _check(paths)))
    return json.loads(path.read_text(encoding="utf-8"))


def _check(paths: Sequence[Path]) -> list[str]:
    with ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_THREADS)) as pool:
        found = pool.map(_is_whole, paths)
        bar = tqdm(found, total=len(paths), desc="check", unit="file", mininterval=0.5)
        return [path.name for path, whole in zip(paths, bar, strict=True) if not whole]


def _is_whole(path: Path) -> bool:
    try:
        check_image(path, checksums=True)
    except UserError:
        return False
    return True


def repaired(files: Sequence[Path], damaged: Sequence[str], repair: bool) -> tuple[Path, ...]:
    """One camera's files, with the previous whole one (else the next) for each that is damaged.

    Raises:
        UserError: there are damaged ones and ``repair`` is not set, or no other.
    """
    whole = [i for i, file in enumerate(files) if file.name not in damaged]
    result = []
    for i, file in enumerate(files):
        if file.name in damaged:
            if not repair:
                raise UserError(f"{file}: damaged; get the file again, or give --repair, which "
                                "shows that camera's previous frame in its place")  # fmt: skip
            if not whole:
                raise UserError(f"{file}: damaged, and so is every other frame of that camera")
            file = files[max((j for j in whole if j < i), default=whole[0])]
            warn(f"{files[i]}: damaged; {file.name} in its place")
        result.append(file)
    return tuple(result)


# ---- the scene ----------------------------------------------------------------------------------


def raw_clips(
    root: Path, scene: str, files: Sequence[Files], steps: Steps, chosen: argparse.Namespace
) -> list[Clip]:
    """For each camera the published files in use.

    Raises:
        UserError: a camera has none, or files are missing or damaged.
    """
    for camera, numbers in enumerate(files):
        if not numbers:
            raise UserError(
                f"{root}: has no file {scene}_undist_<frame>_{camera:02d}.png, but a row for that "
                f"camera in {MARKER}; restore the files"
            )
    numbers = choose_numbers(root, scene, files, chosen)
    used = [[of_camera[number] for number in numbers] for of_camera in files]
    damaged = damaged_files([path for paths in used for path in paths], steps)
    clips = []
    for camera, paths in enumerate(used):
        whole = repaired(paths, damaged, chosen.repair)
        size = check_image(whole[0])
        clips.append(Clip(f"cam{camera:02d}", root, size, len(whole), None, whole))
    print(f"{root}: {len(clips)} cameras, {len(numbers)} frames, {numbers[0]} to {numbers[-1]}")
    return clips


def folder_clips(root: Path, names: Sequence[str]) -> list[Clip]:
    """For each camera its folder in ``images/``.

    Raises:
        UserError: one is missing, or there is another.
    """
    try:
        found = {clip.name for clip in find_clips(root / "images", "cam*")}
    except UserError:
        found = set()
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(
            f"{root / 'images' / missing[0]}: has no frames, and there are no files <Scene>_undist_"
            f"<frame>_<camera>.png in {root}; put the published files there"
        )
    return [probe(root / "images" / name) for name in names]


def known_cameras(root: Path, clips: Sequence[Clip], factor: int) -> list[Camera]:
    """The cameras of ``cameras_parameters.txt``, at the size of the frames that are made."""
    path = root / MARKER
    return [
        row_camera(clip.name, row, options.smaller(clip.size, factor)).validate(path)
        for clip, row in zip(clips, read_rows(path), strict=True)
    ]


def prepare(chosen: argparse.Namespace) -> None:
    """All steps of one scene."""
    root = options.folder(chosen.videopath)
    names = [f"cam{row:02d}" for row in range(len(read_rows(root / MARKER)))]
    tools = chosen_tools(root, chosen)
    steps = Steps(root, redo=chosen.redo)
    raw = raw_files(root, len(names))
    if raw is None:
        clips = folder_clips(root, names)
        frames = choose_frames(clips, chosen.startframe or 0, chosen.endframe, chosen.step)
        print(f"{root}: {len(clips)} cameras, {len(frames)} frames of each")
    else:
        clips = raw_clips(root, *raw, steps, chosen)
        frames = range(clips[0].frames)
    cameras = known_cameras(root, clips, chosen.resolution)
    if raw is not None:
        _extract(clips, cameras, root, steps, chosen)
        clips, frames = extracted(root / "images", names), range(len(frames))
    if not has_own_points(root, steps):
        make_points(Rig(root, cameras, clips, frames), tools, steps, chosen)
    print(f"ready: python -m scene.inspect {shlex.quote(str(root))}")


def _extract(
    clips: Sequence[Clip],
    cameras: Sequence[Camera],
    root: Path,
    steps: Steps,
    chosen: argparse.Namespace,
) -> None:
    jobs = [
        Extraction(
            clip,
            range(clip.frames),
            root / "images" / clip.name,
            (camera.width, camera.height),
            chosen.format,
            link=True,
        )
        for clip, camera in zip(clips, cameras, strict=True)
    ]
    extract(jobs, steps)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        prog="pre_technicolor.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--videopath", type=Path, required=True, help="the scene's folder, made ready in place"
    )
    options.add_frames(parser, "see above", start=None)
    parser.add_argument(
        "--repair",
        action="store_true",
        help="shows the camera's previous frame in place of one that is damaged "
        "(Birthday is published with one: frame 173 of camera 09)",
    )
    options.add_output(parser)
    options.add_cloud(parser)
    chosen = parser.parse_args(argv)
    options.check(chosen)
    if (chosen.startframe or 0) < 0 or chosen.step < 1:
        raise UserError(
            f"--startframe {chosen.startframe} --step {chosen.step}: give at least 0 and at least 1"
        )
    return chosen


def main(argv: Sequence[str] | None = None) -> None:
    """Prepares the scene."""
    prepare(parse(argv))


if __name__ == "__main__":
    cli(main)
