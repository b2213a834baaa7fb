"""SSIM's variants, by the windows and ranges of the protocols, against independent ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from evaluation.similarity import MS_SSIM_SMALLEST, ms_ssim, uniform_ssim
from utils.metrics import ssim


def pair(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A smooth image and a noisy, shifted version of it."""
    generator = torch.Generator().manual_seed(11)
    coarse = torch.rand(1, 3, 7, 9, generator=generator)
    image = F.interpolate(coarse, (height, width), mode="bicubic")[0].clamp(0, 1)
    noisy = image.roll(2, -1) + 0.08 * torch.randn(3, height, width, generator=generator)
    return image, noisy.clamp(0, 1)


def skimage_ssim(image, target, **options):
    metrics = pytest.importorskip("skimage.metrics")
    return metrics.structural_similarity(
        image.double().numpy(), target.double().numpy(), channel_axis=0, **options
    )


@pytest.mark.parametrize("data_range", [1.0, 2.0])
@pytest.mark.parametrize("size", [(7, 7), (41, 56)])
def test_the_mean_window_is_scikit_images_default(data_range, size):
    image, target = pair(*size)
    expected = skimage_ssim(image, target, data_range=data_range)
    assert uniform_ssim(image, target, data_range).item() == pytest.approx(expected, abs=1e-6)


def test_the_gaussian_window_is_scikit_images_with_zeros_around():
    """Zeros are put around by hand, since scikit-image mirrors at the border."""
    image, target = pair(37, 44)
    padded = [F.pad(x, (5, 5, 5, 5)) for x in (image, target)]
    _, full = skimage_ssim(
        *padded,
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    expected = full[:, 5:-5, 5:-5].mean()
    assert ssim(image, target).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("size", [(161, 161), (177, 190), (165, 203)])
def test_five_scales_are_those_of_pytorch_msssim(size):
    msssim = pytest.importorskip("pytorch_msssim")
    image, target = pair(*size)
    expected = msssim.ms_ssim(image[None].double(), target[None].double(), data_range=1.0).item()
    assert 0.1 < expected < 0.99
    assert ms_ssim(image, target).item() == pytest.approx(expected, abs=1e-5)


def test_identical_images_are_alike_and_opposite_ones_are_not():
    image, _ = pair(170, 170)
    assert ms_ssim(image, image).item() == pytest.approx(1, abs=1e-9)
    assert uniform_ssim(image, image).item() == pytest.approx(1, abs=1e-9)
    assert ms_ssim(image, 1 - image).item() < 0.1


@pytest.mark.parametrize(("measure", "side"), [(uniform_ssim, 7), (ms_ssim, MS_SSIM_SMALLEST)])
def test_pictures_smaller_than_the_window_are_refused(measure, side):
    whole = torch.rand(3, side, side)
    assert np.isfinite(measure(whole, whole).item())
    with pytest.raises(ValueError, match="smaller than"):
        measure(torch.rand(3, side - 1, side), torch.rand(3, side - 1, side))
    with pytest.raises(ValueError, match="not two images"):
        measure(torch.rand(3, side, side), torch.rand(3, side, side + 1))
