"""Multi-view folders: a clip for each of some static cameras, and a COLMAP model that poses them.

The model (in ``sparse/0``, ``sparse``, ``colmap/sparse/0`` or ``sparse_``) has one image for each
camera, ``cam00.png`` or ``cam00/anything.png``; any name will do in place of ``cam00`` as long as
the frames have it too. Frames are ``images/cam00/0000.png`` …, or ``cam00/0000.png`` … (or
``cam00/images/0000.png`` …), or a video ``cam00.mp4``. Folders go before videos: they hold the
undistorted frames of videos that are not. In ``sparse_``, the layout that 4DGaussians calls
MultipleView, ``image1.jpg`` is a frame of ``cam01``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from arguments_MoDE.config import ModelParams
from scene.cameras import Camera, camera_from_pose
from scene.colmap import (
    ColmapCamera,
    ColmapImage,
    is_model,
    model_paths,
    read_points,
    read_poses,
)
from scene.datasets.clips import Clip, add_rig, common_length, holds_frames, in_order, probe
from scene.datasets.common import Capture, choose_cameras, clip_frames, note
from scene.point_cloud import PointCloud, read_ply
from utils import video
from utils.errors import UserError

MARKER = "a COLMAP model with clips camXX/"
_MODELS = ("sparse/0", "sparse", "colmap/sparse/0", "sparse_")
_CLOUDS = ("points3D_downsample.ply", "points3D_multipleview.ply")


def fits(root: Path) -> bool:
    """Whether an image of a COLMAP model belongs to a clip, and no clip has two images.

    A damaged model beside clips fits too: reading it says what is wrong, where another format
    might not look at it.
    """
    if _find_model(root, _kinds(root, ModelParams.images)):
        return True
    return _find_model(root, [kind for _, kind in _elsewhere(root)]) is not None


def load(root: Path, model: ModelParams) -> Capture:
    """Reads the scene; the first camera is held out unless ``test_cameras`` says otherwise.

    Raises:
        UserError: a file is missing or damaged, a camera has no frames, or a lens is distorted.
    """
    kinds = _kinds(root, model.images)
    folder = _find_model(root, kinds)
    if folder is None:
        raise _without_frames(root, model.images)
    lenses, images = read_poses(folder)
    found = _most_complete(kinds, images, folder)
    posed = _by_camera(root, images, found, folder)
    names = list(in_order({name: found[name] for name in posed}))
    clips = [probe(found[name]) for name in names]
    chosen = clip_frames(common_length(root, names, clips), model, root)
    held_out = choose_cameras(model.test_cameras, names, default=[0] if len(names) > 1 else [])
    capture = Capture("multiview", names, len(chosen), _cloud(root, folder), folder)
    cameras = [
        _camera(name, posed[name], lenses[posed[name].camera_id], clip, root, folder)
        for name, clip in zip(names, clips, strict=True)
    ]
    add_rig(capture, cameras, [clip.source(chosen) for clip in clips], held_out, model)
    return capture


def _find_model(root: Path, kinds: list[dict[str, Path]]) -> Path | None:
    """The first model in which cameras of clips have an image each, or that cannot be read."""
    kinds = [kind for kind in kinds if kind]
    for folder in (root / name for name in _MODELS):
        if not (kinds and is_model(folder)):
            continue
        try:
            _, images = read_poses(folder)
        except UserError:  # `load` meets it again and says so
            return folder
        found = _most_complete(kinds, images, folder)
        cameras = [name for i in images if (name := _camera_of(i, found, folder))]
        alone = folder.name == "sparse_"  # no other format looks there
        if cameras and (alone or len(set(cameras)) == len(cameras)):
            return folder
    return None


def _kinds(root: Path, images_folder: str) -> list[dict[str, Path]]:
    """Name -> folder or video, for each way to keep frames."""
    extracted = root / images_folder
    inside = list(extracted.iterdir()) if extracted.is_dir() else []
    here = [path for path in root.iterdir() if path != extracted]
    nested = [path / images_folder for path in here]
    return [
        {p.name: p for p in inside if holds_frames(p)},
        {p.name: p for p in here if holds_frames(p)},
        {p.parent.name: p for p in nested if holds_frames(p)},
        {p.stem: p for p in here if p.suffix.lower() in video.SUFFIXES and p.is_file()},
    ]


def _elsewhere(root: Path) -> list[tuple[str, dict[str, Path]]]:
    """What ``--images`` may have to name, with the folders of frames that it would find.

    That is a folder of the scene that has folders of frames in it (``frames/camXX``), or the name
    of folders of frames that several have (``camXX/frames``).
    """
    nested: dict[str, dict[str, Path]] = {}
    found = []
    for folder in in_order({path.name: path for path in root.iterdir()}).values():
        if folder.name in ("masks", "sparse") or folder.name[0] == "." or not folder.is_dir():
            continue
        inside = {path.name: path for path in folder.iterdir() if holds_frames(path)}
        found.append((folder.name, inside))
        for name, path in inside.items():
            nested.setdefault(name, {})[folder.name] = path
    return [(name, kind) for name, kind in [*found, *nested.items()] if kind]


def _without_frames(root: Path, images_folder: str) -> UserError:
    """What is wrong where ``--images`` names no frames; a damaged model is refused by name."""
    others = _elsewhere(root)
    folder = _find_model(root, [kind for _, kind in others])
    remedy = "name the one that has"
    if folder is not None:
        _, images = read_poses(folder)
        best = _most_complete([kind for _, kind in others], images, folder)
        remedy = f"give --images {next(name for name, kind in others if kind is best)}"
    return UserError(
        f"--images {images_folder}: {root / images_folder} has no folder of frames for any image "
        f"of the COLMAP model; {remedy}"
    )


def _most_complete(
    kinds: list[dict[str, Path]], images: list[ColmapImage], folder: Path
) -> dict[str, Path]:
    """The kind with frames for the most images of the model; the first of equals."""
    return max(kinds, key=lambda kind: sum(bool(_camera_of(i, kind, folder)) for i in images))


def _camera_of(image: ColmapImage, names: Iterable[str], folder: Path) -> str | None:
    """Which of the cameras ``names`` an image of the model in ``folder`` was taken by."""
    path = PurePosixPath(image.name)
    candidates = [path.parent.name, path.stem]
    number = re.fullmatch(r"image(\d{1,4})", path.stem)
    if number and folder.name == "sparse_":
        candidates.append(f"cam{int(number.group(1)):02d}")
    return next((name for name in candidates if name in names), None)


def _by_camera(
    root: Path, images: list[ColmapImage], found: dict[str, Path], folder: Path
) -> dict[str, ColmapImage]:
    """Camera name -> the image that has its pose.

    Raises:
        UserError: an image has no camera with frames, or two have the same.
    """
    posed: dict[str, ColmapImage] = {}
    for image in images:
        name = _camera_of(image, found, folder)
        if name is None:
            raise UserError(
                f"{model_paths(folder)[1]}: {image.name} has a pose but no frames (a folder or "
                f"video of that name beside {_some(found)} in {root}); restore its frames"
            )
        if name in posed:
            raise UserError(
                f"{model_paths(folder)[1]}: {image.name} and {posed[name].name} are both of camera "
                f"{name}; keep one of them"
            )
        posed[name] = image
    if left := [name for name in found if name not in posed]:
        note(f"{folder}: has no pose for {_some(left)}: left out")
    return posed


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _camera(
    name: str, image: ColmapImage, lens: ColmapCamera, clip: Clip, root: Path, folder: Path
) -> Camera:
    """The camera at the size of its frames."""
    intrinsics = lens.pinhole()
    if intrinsics is None:
        raise UserError(
            f"{folder}: camera {image.camera_id} ({name}) is a distorted {lens.model}; undistort "
            f"every frame: python script/pre_multiview.py {root} does, or run colmap "
            f"image_undistorter --input_path {folder} --output_path {root}_undistorted for each"
        )
    sx, sy = clip.size[0] / max(lens.width, 1), clip.size[1] / max(lens.height, 1)
    fx, fy, cx, cy = intrinsics
    scaled = (fx * sx, fy * sy, cx * sx, cy * sy)
    camera = camera_from_pose(name, clip.size, scaled, image.camera_to_world())
    files = model_paths(folder)
    return camera.validate(f"{files[0]} or {files[1].name}")


def _cloud(root: Path, folder: Path) -> PointCloud:
    """A cloud in the scene folder, else the points of the model."""
    for name in _CLOUDS:
        if (root / name).exists():
            return read_ply(root / name)
    try:
        return read_points(folder)
    except UserError as error:
        raise UserError(
            f"{root / _CLOUDS[0]}: missing, and the COLMAP model has no points in its place "
            f"({error}); make it with python script/pre_multiview.py {root}"
        ) from None
