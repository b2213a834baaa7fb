"""utils/images.py: decoding, damage, compositing, area averages, natural order."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from utils.errors import UserError
from utils.images import (
    check_image,
    composite,
    list_images,
    natural_key,
    read_image,
    resize_image,
)


def _noise(height: int = 40, width: int = 60, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_png_survives_the_round_trip(tmp_path):
    Image.fromarray(_noise()).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), _noise())
    assert check_image(tmp_path / "a.png") == (60, 40)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("keep", [0, 0.02, 0.5, 0.98])
def test_cut_images_are_errors_by_look_and_by_decoding(tmp_path, suffix, keep):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(_noise()).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    for function in (check_image, read_image):
        with pytest.raises(UserError, match=f"a.{suffix}: not a whole image"):
            function(path)


def test_bytes_after_the_end_of_a_jpeg_are_no_damage(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(_noise()).save(path)
    path.write_bytes(path.read_bytes() + b"trailer")
    assert check_image(path) == (60, 40)


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(UserError, match="none.png: no such image"):
        read_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(UserError, match="text.png: not a whole image"):
        check_image(tmp_path / "text.png")


def test_enormous_image_is_refused_not_decoded(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.fromarray(_noise()).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match="a.png"):
        read_image(path)


def test_alpha_is_blended_in_stored_values():
    rgba = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], np.uint8)
    assert composite(rgba, (255, 255, 255)).tolist() == [
        [[200, 100, 0], [255, 255, 255], [244, 224, 204]]
    ]
    assert composite(rgba, (0, 0, 0)).tolist() == [[[200, 100, 0], [0, 0, 0], [40, 20, 0]]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.fromarray(_noise()).convert(mode).save(path)
    pixels = read_image(path)
    assert pixels.shape == (40, 60, 3) and pixels.dtype == np.uint8
    expected = np.asarray(Image.fromarray(_noise()).convert(mode).convert("RGB"))
    assert np.abs(pixels.astype(int) - expected).max() <= 1


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0, :, 1].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("factor", [2, 4, 5])
def test_shrinking_is_the_area_average(factor):
    small = resize_image(_noise(), (60 // factor, 40 // factor))
    blocks = _noise().reshape(40 // factor, factor, 60 // factor, factor, 3).mean(axis=(1, 3))
    assert np.abs(small - blocks).max() <= 1.01  # Pillow rounds after each axis


def test_resizing_keeps_positions():
    """A ramp stays the ramp of pixel centres, down by any factor and up."""
    ramp = np.repeat(np.linspace(0, 255, 60)[None, :, None], 40, axis=0).repeat(3, axis=2)
    for width in (30, 41, 90):
        out = resize_image(np.rint(ramp).astype(np.uint8), (width, 40))
        centres = ((np.arange(width) + 0.5) * 60 / width - 0.5).clip(0, 59)
        assert np.abs(out[20, 2:-2, 0] - centres[2:-2] * 255 / 59).max() < 3


def test_same_size_is_not_copied():
    pixels = _noise()
    assert resize_image(pixels, (60, 40)) is pixels


def test_natural_order():
    names = ["cam10", "cam2", "cam1", "a", "cam02b", "10", "9", ""]
    assert sorted(names, key=natural_key) == ["", "9", "10", "a", "cam1", "cam2", "cam02b", "cam10"]


def test_only_images_are_listed_in_natural_order(tmp_path):
    for name in ("10.png", "9.PNG", "8.jpeg", "notes.txt", "7.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    assert [p.name for p in list_images(tmp_path)] == ["7.jpg", "8.jpeg", "9.PNG", "10.png"]
