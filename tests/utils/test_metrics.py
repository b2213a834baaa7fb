"""PSNR and SSIM against their definitions and against two independent implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from utils.metrics import PSNR_CAP, psnr, ssim, ssim_map, to_8bit


def _pair(height: int = 40, width: int = 53, batch: int | None = None, dtype=torch.float32):
    """A smooth image and a noisy version of it, so that SSIM is neither 0 nor 1."""
    generator = torch.Generator().manual_seed(3)
    shape = (3, height, width) if batch is None else (batch, 3, height, width)
    coarse = torch.rand(*shape[:-2], 6, 6, generator=generator).reshape(-1, 3, 6, 6)
    image = F.interpolate(coarse, (height, width), mode="bicubic").reshape(shape).clamp(0, 1)
    noisy = (image + 0.1 * torch.randn(shape, generator=generator)).clamp(0, 1)
    return image.to(dtype), noisy.to(dtype)


def _naive_ssim_map(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The definition, with a dense depthwise 11x11 convolution and zero padding."""
    line = torch.exp(-((torch.arange(11, dtype=x.dtype) - 5) ** 2) / (2 * 1.5**2))
    window = torch.outer(line, line)
    window = (window / window.sum()).expand(x.shape[1], 1, 11, 11)

    def blur(z):
        return F.conv2d(z, window, padding=5, groups=z.shape[1])

    mx, my = blur(x), blur(y)
    sx, sy, sxy = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * mx * my + c1) * (2 * sxy + c2)) / ((mx**2 + my**2 + c1) * (sx + sy + c2))


def test_psnr_of_a_known_error():
    image = torch.full((3, 4, 5), 0.5)
    assert psnr(image, image + 0.1).item() == pytest.approx(20.0, abs=1e-4)


def test_psnr_of_a_batch_is_one_for_each_image():
    image = torch.zeros(2, 3, 4, 4)
    other = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 0.01)])
    assert psnr(image, other).tolist() == pytest.approx([20, 40], abs=1e-4)


def test_psnr_of_identical_images_is_the_cap():
    image, _ = _pair()
    assert psnr(image, image) == PSNR_CAP
    assert psnr(image, image + 1e-7) == PSNR_CAP


def test_psnr_of_nan_is_nan_and_not_the_cap():
    image, _ = _pair()
    assert math.isnan(psnr(image * math.nan, image))


def test_psnr_agrees_with_scikit_image_in_float_and_from_8_bit():
    metrics = pytest.importorskip("skimage.metrics")
    image, noisy = _pair()
    expected = metrics.peak_signal_noise_ratio(image.numpy(), noisy.numpy(), data_range=1)
    assert psnr(noisy, image).item() == pytest.approx(expected, abs=1e-4)
    a, b = to_8bit(image), to_8bit(noisy)
    expected = metrics.peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=255)
    assert psnr(b, a).item() == pytest.approx(expected, abs=1e-4)


def test_to_8bit_clamps_and_rounds_to_nearest():
    values = torch.tensor([-1.0, 0.0, 0.49 / 255, 0.51 / 255, 254.6 / 255, 1.0, 7.0])
    assert to_8bit(values).tolist() == [0, 0, 0, 1, 255, 255, 255]


def test_ssim_of_identical_images_is_one():
    image, _ = _pair()
    assert ssim(image, image).item() == pytest.approx(1, abs=1e-6)


def test_ssim_agrees_with_the_definition():
    x, y = _pair(batch=2, dtype=torch.float64)
    torch.testing.assert_close(ssim_map(x, y), _naive_ssim_map(x, y), rtol=1e-9, atol=1e-9)


def test_ssim_strips_join_without_a_seam(monkeypatch):
    """A small budget makes strips of 16 rows, the least."""
    monkeypatch.setattr("utils.metrics._STRIP_VALUES", 1)
    x, y = _pair(75, 53, dtype=torch.float64)
    torch.testing.assert_close(ssim_map(x, y)[0], _naive_ssim_map(x[None], y[None])[0])
    x.requires_grad_()
    ours = torch.autograd.grad(ssim_map(x, y).mean(), x)[0]
    expected = torch.autograd.grad(_naive_ssim_map(x[None], y[None]).mean(), x)[0]
    torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-12)


def test_ssim_agrees_with_scikit_image_away_from_the_border():
    """scikit-image mirrors at the border where we (as the papers' code) pad with zeros, so only
    pixels whose window lies inside the image are comparable."""
    metrics = pytest.importorskip("skimage.metrics")
    x, y = _pair(dtype=torch.float64)
    _, expected = metrics.structural_similarity(
        x.numpy(),
        y.numpy(),
        channel_axis=0,
        data_range=1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    ours = ssim_map(x, y)[0, :, 5:-5, 5:-5].numpy()
    np.testing.assert_allclose(ours, expected[:, 5:-5, 5:-5], rtol=1e-6, atol=1e-9)


def test_ssim_agrees_with_pytorch_msssim_away_from_the_border():
    """pytorch-msssim keeps only windows inside the image ("valid" convolution)."""
    msssim = pytest.importorskip("pytorch_msssim")
    x, y = _pair(batch=2)
    expected = msssim.ssim(x, y, data_range=1).item()
    assert ssim_map(x, y)[..., 5:-5, 5:-5].mean().item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (True, True)])
def test_ssim_gradient(wanted):
    x, y = _pair(13, 9, 2, torch.float64)
    x.requires_grad_(wanted[0])
    y.requires_grad_(wanted[1])
    weights = torch.rand(2, 3, 13, 9, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: (ssim_map(a, b) * weights).sum(), (x, y))


@pytest.mark.parametrize("size", [(1, 1), (3, 20), (11, 4)])
def test_ssim_of_images_smaller_than_the_window(size):
    x, y = _pair(*size, dtype=torch.float64)
    torch.testing.assert_close(ssim_map(x, y)[0], _naive_ssim_map(x[None], y[None])[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_ssim_takes_any_float_type_and_returns_gradients_of_that_type(dtype):
    x, y = _pair(dtype=dtype)
    x.requires_grad_()
    value = ssim(x, y)
    value.backward()
    assert x.grad.dtype == dtype
    expected = ssim(x.detach().double(), y.double()).item()
    assert value.item() == pytest.approx(expected, abs=1e-5)


def test_8_bit_images_are_the_same_images():
    image, noisy = _pair()
    a, b = to_8bit(image), to_8bit(noisy)
    assert ssim(a, b).item() == pytest.approx(ssim(a / 255, b / 255).item(), abs=1e-6)
    assert psnr(a, b).item() == pytest.approx(psnr(a / 255, b / 255).item(), abs=1e-6)


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize("shapes", [((3, 4, 5), (3, 5, 4)), ((4, 5), (4, 5)), ((0, 3, 4, 5),) * 2])
def test_shapes_that_make_no_sense_are_refused(metric, shapes):
    with pytest.raises(ValueError, match="shape|expected"):
        metric(torch.zeros(shapes[0]), torch.zeros(shapes[1]))
