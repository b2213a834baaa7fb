"""Lenses: pycolmap's camera models, and the resampling that makes a pinhole's picture of one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pycolmap
import torch

# Number of leading parameters that are focal lengths and principal point.
_PINHOLE = {"SIMPLE_PINHOLE": 3, "SIMPLE_RADIAL": 3, "RADIAL": 3}
_PINHOLES = ("SIMPLE_PINHOLE", "PINHOLE")


def is_distorted(lens: pycolmap.Camera) -> bool:
    """Whether it is anything else than a pinhole."""
    name = lens.model_name
    return name not in _PINHOLES and (
        "FISHEYE" in name or any(lens.params[_PINHOLE.get(name, 4) :])
    )


def pinhole(lens: pycolmap.Camera) -> tuple[float, float, float, float]:
    """fx, fy, cx, cy of a lens that is not distorted; pixels, top left corner at (0, 0)."""
    k = lens.calibration_matrix()
    return float(k[0, 0]), float(k[1, 1]), float(k[0, 2]), float(k[1, 2])


def undistorted(lens: pycolmap.Camera) -> pycolmap.Camera:
    """The PINHOLE whose picture the lens's can fill without blank pixels; ``lens`` if it is one."""
    if not is_distorted(lens):
        fx, fy, cx, cy = pinhole(lens)
        return pycolmap.Camera(
            model="PINHOLE", width=lens.width, height=lens.height, params=[fx, fy, cx, cy]
        )
    return pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(), lens)


def undistortion(
    lens: pycolmap.Camera, target: pycolmap.Camera
) -> Callable[[np.ndarray], np.ndarray]:
    """A function that resamples pictures of ``lens`` to pictures of the pinhole ``target``.

    Bilinear; both take (H, W, 3) uint8 of their camera's size. The map is computed once.
    """
    x, y = np.meshgrid(np.arange(target.width) + 0.5, np.arange(target.height) + 0.5)
    rays = target.cam_from_img(np.stack([x.ravel(), y.ravel()], axis=1))
    where = np.asarray(lens.img_from_cam(np.c_[rays, np.ones(len(rays))]))  # pixel corners at 0
    grid = torch.from_numpy(2 * where / [lens.width, lens.height] - 1).float()
    grid = torch.nan_to_num(grid, nan=-2.0).view(1, target.height, target.width, 2)

    def apply(pixels: np.ndarray) -> np.ndarray:
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
        sampled = torch.nn.functional.grid_sample(
            image, grid, mode="bilinear", padding_mode="border", align_corners=False
        )
        return sampled[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()

    return apply


def resized(lens: pycolmap.Camera, width: int, height: int) -> pycolmap.Camera:
    """The lens for pictures of another size."""
    copy = pycolmap.Camera(lens.todict())
    copy.rescale(width, height)
    return copy
