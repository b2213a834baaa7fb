"""Checks that every format has in common: images that are whole, poses that see the cloud."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from scene.cameras import Camera
from scene.datasets.common import Capture
from scene.frames import ImageFrames
from utils.errors import UserError
from utils.images import check_image


def check_images(capture: Capture) -> None:
    """Looks at the header and the end of every image, which takes a fraction of a decode.

    Raises:
        UserError: an image is missing, cut, or has another size than its camera.
    """
    for source in capture.sources:
        if not isinstance(source, ImageFrames):
            continue
        for path in source.paths:
            size = check_image(path)
            if size != source.native:
                raise UserError(
                    f"{path}: is {size[0]} x {size[1]} where {source.native[0]} x "
                    f"{source.native[1]} is expected; extract or export the frames again"
                )


def check_poses(capture: Capture, cameras: list[Camera]) -> None:
    """Refuses poses with which the cameras look past the cloud, and names the usual reason.

    Raises:
        UserError: no camera sees a point, or inverted poses see far more of them.
    """
    points = _some_points(capture.points.xyz, 2000)
    some = cameras[:: max(1, len(cameras) // 50)]
    seen = float(np.mean([camera.sees(points).mean() for camera in some]))
    inverted = float(np.mean([_inverted(camera).sees(points).mean() for camera in some]))
    if seen < 0.05 and inverted > max(3 * seen, 0.05):
        raise UserError(
            f"{capture.poses_file}: the cameras see {seen:.0%} of the points, with inverted poses "
            f"{inverted:.0%}: camera-to-world and world-to-camera are mixed up; invert the poses"
        )
    if seen == 0 and not any(camera.sees(capture.points.xyz).any() for camera in cameras):
        raise UserError(
            f"{capture.poses_file}: no training camera sees any point of the initial cloud; poses "
            "and cloud are in different frames: make both with the same tool"
        )


def _some_points(xyz: np.ndarray, count: int) -> np.ndarray:
    """At most ``count`` rows, always the same ones."""
    if len(xyz) <= count:
        return xyz
    return xyz[np.random.default_rng(0).choice(len(xyz), count, replace=False)]


def _inverted(camera: Camera) -> Camera:
    inverse = camera.world_to_camera.double().inverse().float()
    return replace(camera, world_to_camera=inverse)
