"""COLMAP scenes: photos with poses from structure from motion, in ``sparse/0`` beside ``images``.

Every image is a moment of its own, in the natural order of their names, as in a video of one camera
that moves; a scene that stands still is one that no expert finds anything to do in. Every eighth
image is held out (``--llffhold``), or those that ``--test_cameras`` names.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from arguments_MoDE.config import ModelParams
from scene.cameras import Camera, camera_from_pose
from scene.colmap import ColmapImage, ColmapModel, find_model, read_model
from scene.datasets.common import Capture, Shot, choose_cameras, clip_frames, frame_time
from scene.frames import ImageFrames
from utils.errors import UserError
from utils.images import check_image, list_images

MARKER = "sparse/0/cameras.bin or .txt"


def fits(root: Path) -> bool:
    """Whether there is a COLMAP model in the usual place."""
    return find_model(root) is not None


def load(root: Path, model: ModelParams) -> Capture:
    """Reads the scene.

    Raises:
        UserError: a file is missing or damaged, a lens is distorted, or these are static cameras.
    """
    folder = find_model(root) or root / "sparse" / "0"
    colmap = read_model(folder)
    pictures = _images_folder(root, model.images)
    _refuse_clips(pictures, colmap, root)
    chosen = clip_frames(len(colmap.images), model, folder)
    images = [colmap.images[i] for i in chosen]
    names = [image.name for image in images]
    every = range(0, len(names), model.llffhold) if model.llffhold else ()
    default = list(every) if len(names) > 1 else []
    held_out = set(choose_cameras(model.test_cameras, names, default))
    capture = Capture("colmap", names, len(images), colmap.points, colmap.paths[1])
    for row, image in enumerate(images):
        camera, path = _camera(colmap, image, pictures, root)
        capture.sources.append(ImageFrames((path,), (camera.width, camera.height)))
        time = frame_time(row, len(images), model.time_convention)
        shots = capture.test if row in held_out else capture.train
        shots.append(Shot(camera, row, row, time, (row, 0)))
    return capture


def _images_folder(root: Path, name: str) -> Path:
    """``images``, or the largest of ``images_2``, ``images_4``, … where that is missing."""
    if (root / name).is_dir():
        return root / name
    smaller = [p for p in root.glob(f"{name}_*") if re.fullmatch(r"\d+", p.name[len(name) + 1 :])]
    if not smaller:
        raise UserError(f"{root / name}: missing; put the undistorted photos there")
    return min(smaller, key=lambda p: int(p.name[len(name) + 1 :]))


def _refuse_clips(pictures: Path, colmap: ColmapModel, root: Path) -> None:
    """Refuses a model with one image of each of several folders that all have more frames."""
    folders = {(pictures / image.name).parent for image in colmap.images}
    if len(folders) < max(len(colmap.images), 2):
        return
    if all(os.path.isdir(folder) and len(list_images(folder)) > 1 for folder in folders):
        raise UserError(
            f"{colmap.paths[1]}: has one image of each folder of frames (as {min(folders)}), so "
            f"these are static cameras, not one that moves; move those folders to {root / 'images'}"
        )


def _camera(
    colmap: ColmapModel, image: ColmapImage, pictures: Path, root: Path
) -> tuple[Camera, Path]:
    """The camera at the size of its photo on disk, and the photo."""
    lens, cameras_file = colmap.cameras[image.camera_id], colmap.paths[0]
    intrinsics = lens.pinhole()
    if intrinsics is None:
        raise UserError(
            f"{cameras_file}: camera {image.camera_id} is a distorted {lens.model}; undistort "
            "with: colmap image_undistorter"
            f" --image_path {pictures} --input_path {cameras_file.parent}"
            f" --output_path {root}_undistorted"
        )
    path = _photo(pictures, image.name)
    width, height = check_image(path)
    sx, sy = width / max(lens.width, 1), height / max(lens.height, 1)
    if abs(width - lens.width * sy) > 2 and abs(height - lens.height * sx) > 2:
        raise UserError(
            f"{path}: is {width} x {height}, which is no scaled {lens.width} x {lens.height} as "
            f"{cameras_file} says; restore the photo or the model"
        )
    fx, fy, cx, cy = intrinsics
    scaled = (fx * sx, fy * sy, cx * sx, cy * sy)
    camera = camera_from_pose(image.name, (width, height), scaled, image.camera_to_world())
    return camera.validate(f"{cameras_file} or {colmap.paths[1].name}"), path


def _photo(pictures: Path, name: str) -> Path:
    """The file of a registered image; smaller copies may have another suffix.

    Raises:
        UserError: there is none, or its name leads out of the folder.
    """
    path = pictures / name
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise UserError(f"{name}: this image of the COLMAP model is not in {pictures}; rename it")
    if path.is_file():
        return path
    if path.parent.is_dir():
        for candidate in sorted(path.parent.iterdir()):
            if candidate.stem == path.stem and candidate.is_file():
                return candidate
    raise UserError(f"{path}: missing, but in the COLMAP model; restore the photo")
