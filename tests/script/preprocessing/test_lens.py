"""Undistortion, against the lens equations written out by hand."""

from __future__ import annotations

import numpy as np
import pytest

pycolmap = pytest.importorskip("pycolmap")

from script.preprocessing import lens  # noqa: E402

WIDTH, HEIGHT = 160, 120
OPENCV = [150.0, 145.0, 83.0, 58.5, -0.25, 0.08, 0.004, -0.003]


def camera(model: str, params: list[float]) -> pycolmap.Camera:
    return pycolmap.Camera(model=model, width=WIDTH, height=HEIGHT, params=params)


def distorted(u: np.ndarray, v: np.ndarray, params: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """OpenCV's equations: rays (u, v, 1) to pixels whose top left corner is (0, 0)."""
    fx, fy, cx, cy, k1, k2, p1, p2 = params
    r2 = u * u + v * v
    radial = 1 + k1 * r2 + k2 * r2 * r2
    x = u * radial + 2 * p1 * u * v + p2 * (r2 + 2 * u * u)
    y = v * radial + p1 * (r2 + 2 * v * v) + 2 * p2 * u * v
    return fx * x + cx, fy * y + cy


def rays(target: pycolmap.Camera) -> tuple[np.ndarray, np.ndarray]:
    """Through the pixel centres of a pinhole."""
    fx, fy, cx, cy = lens.pinhole(target)
    x, y = np.meshgrid(np.arange(target.width), np.arange(target.height))
    return (x + 0.5 - cx) / fx, (y + 0.5 - cy) / fy


def gradient(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Red rises to the right, green downwards, both linear in the pixel."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.arange(width)
    pixels[..., 1] = np.arange(height)[:, None]
    return pixels


def through(model: pycolmap.Camera) -> tuple[np.ndarray, pycolmap.Camera]:
    target = lens.undistorted(model)
    return lens.undistortion(model, target)(gradient(model.width, model.height)), target


def test_every_pixel_comes_from_where_opencv_says():
    picture, target = through(camera("OPENCV", OPENCV))
    x, y = distorted(*rays(target), OPENCV)
    inside = (x > 1) & (x < WIDTH - 1) & (y > 1) & (y < HEIGHT - 1)
    assert inside.mean() > 0.9
    # The gradient's value at a pixel's centre x + 0.5 is x.
    assert np.abs(picture[..., 0] - (x - 0.5))[inside].max() <= 0.51
    assert np.abs(picture[..., 1] - (y - 0.5))[inside].max() <= 0.51


def test_fisheyes_are_equidistant():
    k = [0.02, -0.01, 0.0, 0.0]
    picture, target = through(camera("OPENCV_FISHEYE", [90.0, 90.0, 80.0, 60.0, *k]))
    u, v = rays(target)
    r = np.hypot(u, v)
    theta = np.arctan(r)
    scale = theta * (1 + k[0] * theta**2 + k[1] * theta**4) / np.maximum(r, 1e-12)
    x, y = 90 * u * scale + 80, 90 * v * scale + 60
    inside = (x > 1) & (x < WIDTH - 1) & (y > 1) & (y < HEIGHT - 1)
    assert inside.mean() > 0.9
    assert np.abs(picture[..., 0] - (x - 0.5))[inside].max() <= 0.51


def test_straight_lines_become_straight():
    """The edge of a half-plane in space, seen through the lens, then undistorted."""
    model = camera("OPENCV", OPENCV)
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    seen = np.asarray(model.cam_from_img(np.stack([x.ravel(), y.ravel()], axis=1)))
    u, v = seen[:, 0].reshape(y.shape), seen[:, 1].reshape(y.shape)
    side = np.clip(0.5 + (v - 0.1 * u - 0.25) * 80, 0, 1)  # a soft edge near the lower border
    pixels = np.repeat((255 * side).astype(np.uint8)[..., None], 3, axis=2)
    target = lens.undistorted(model)
    straight = lens.undistortion(model, target)(pixels)

    def bend(image: np.ndarray) -> float:
        height = (image[..., 0] < 128).argmin(axis=0)[10:-10]  # the first bright row per column
        at = np.arange(len(height))
        return float(np.abs(height - np.polyval(np.polyfit(at, height, 1), at)).max())

    assert bend(pixels) > 1.3 and bend(straight) < 0.7


@pytest.mark.parametrize(
    ("model", "params"),
    [
        ("PINHOLE", [150.0, 145.0, 83.0, 58.5]),
        ("SIMPLE_PINHOLE", [150.0, 83.0, 58.5]),
        ("SIMPLE_RADIAL", [150.0, 83.0, 58.5, 0.0]),
        ("OPENCV", [150.0, 145.0, 83.0, 58.5, 0, 0, 0, 0]),
    ],
)
def test_what_is_a_pinhole_already_is_left_as_it_is(model, params):
    found = camera(model, params)
    assert not lens.is_distorted(found)
    picture, target = through(found)
    assert np.array_equal(picture, gradient())
    fy = 145.0 if 145.0 in params else 150.0
    assert target.model_name == "PINHOLE" and lens.pinhole(target) == (150.0, fy, 83.0, 58.5)


@pytest.mark.parametrize(
    ("model", "params"),
    [
        ("SIMPLE_RADIAL", [150.0, 80.0, 60.0, 0.01]),
        ("RADIAL", [150.0, 80.0, 60.0, 0.0, 0.01]),
        ("OPENCV", [150.0, 150.0, 80.0, 60.0, 0, 0, 0, 0.001]),
        ("OPENCV_FISHEYE", [150.0, 150.0, 80.0, 60.0, 0, 0, 0, 0]),
        ("FOV", [150.0, 150.0, 80.0, 60.0, 0.2]),
    ],
)
def test_what_is_distorted_is_known_as_such(model, params):
    assert lens.is_distorted(camera(model, params))


def test_a_barrel_picture_fills_the_pinholes():
    """No pixel of the result comes from outside of the picture."""
    model = camera("SIMPLE_RADIAL", [150.0, 80.0, 60.0, -0.1])
    target = lens.undistorted(model)
    x, y = distorted(*rays(target), [150.0, 150.0, 80.0, 60.0, -0.1, 0, 0, 0])
    assert x.min() > 0 and x.max() < WIDTH and y.min() > 0 and y.max() < HEIGHT


def test_a_lens_for_smaller_pictures_sees_the_same():
    model = camera("OPENCV", OPENCV)
    small = lens.resized(model, WIDTH // 2, HEIGHT // 2)
    assert (small.width, small.height) == (80, 60) and (model.width, model.height) == (160, 120)
    ray = np.array([[0.2, -0.3, 1.0]])
    assert np.allclose(2 * np.asarray(small.img_from_cam(ray)), model.img_from_cam(ray))
    picture, target = through(small)
    x, _ = distorted(*rays(target), [*(0.5 * np.array(OPENCV[:4])), *OPENCV[4:]])
    inside = (x > 1) & (x < 79)
    assert np.abs(picture[..., 0] - (x - 0.5))[inside].max() <= 0.51
