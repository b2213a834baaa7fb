"""D-NeRF and NeRF-Blender scenes: ``transforms_{train,val,test}.json``, one image per time.

Poses and intrinsics are as `scene.datasets.transforms` has them. Times are moved and scaled so that
the clip in use runs from 0 to 1.
"""

from __future__ import annotations

from pathlib import Path

from arguments_MoDE.config import ModelParams
from scene.datasets.common import Capture, note
from scene.datasets.pictures import Picture, capture_pictures, find_rig, first_cloud, name_cameras
from scene.datasets.transforms import read_frames, read_picture
from utils.errors import UserError

MARKER = "transforms_train.json"
_CLOUDS = ("fused.ply", "points3d.ply", "points3D.ply")


def load(root: Path, model: ModelParams) -> Capture:
    """Reads the scene; the split is that of the files, ``transforms_val.json`` is not used.

    Raises:
        UserError: a file is missing or damaged, or a setting does not apply to this format.
    """
    if model.test_cameras:
        raise UserError("--test_cameras: in this format transforms_test.json names the test views")
    train = _read_transforms(root / MARKER)
    test_file = root / "transforms_test.json"
    test = _read_transforms(test_file) if test_file.exists() else []
    if not test:
        note(f"{test_file} is missing or empty: no view is held out")
    names = name_cameras([*train, *test], find_rig(train, test))
    capture = Capture("blender", names, 0, first_cloud(root, _CLOUDS, train), root / MARKER)
    return capture_pictures(capture, train, test, model)


def _read_transforms(path: Path) -> list[Picture]:
    meta, frames = read_frames(path)
    if path.name == MARKER and not frames:
        raise UserError(f"{path}: lists no frame; there is nothing to train on")
    return [read_picture(path, meta, index, frame) for index, frame in enumerate(frames)]
