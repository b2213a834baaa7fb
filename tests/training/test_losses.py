"""The photometric loss and the per-camera colours."""

from __future__ import annotations

import pytest
import torch

from arguments_MoDE.config import OptimizationParams
from training.losses import CameraColors, photometric, to_float
from utils.metrics import ssim_map


def test_uint8_becomes_unit_range_channels_first():
    image = torch.tensor([[[[0, 128, 255]]]], dtype=torch.uint8)
    assert torch.allclose(to_float(image)[0, :, 0, 0], torch.tensor([0.0, 128 / 255, 1.0]))


@pytest.mark.parametrize("loss, expected", [("l1", 0.5), ("l2", 0.25), ("charbonnier", 0.5)])
def test_loss_of_a_constant_difference(loss, expected):
    images, targets = torch.full((2, 3, 16, 16), 0.75), torch.full((2, 3, 16, 16), 0.25)
    terms = photometric(images, targets, OptimizationParams(loss=loss))
    assert terms[loss].item() == pytest.approx(expected, abs=1e-4)
    assert "dssim" not in terms


def test_dssim_is_added_with_its_weight():
    images, targets = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16)
    one = photometric(images, targets, OptimizationParams(lambda_dssim=1.0))["dssim"]
    half = photometric(images, targets, OptimizationParams(lambda_dssim=0.5))["dssim"]
    assert one.item() == pytest.approx(2 * half.item())
    assert photometric(images, images, OptimizationParams(lambda_dssim=1.0))["dssim"] < 1e-6


def test_camera_colors_start_as_the_identity_and_keep_their_median_there():
    colors, image = CameraColors(4), torch.rand(3, 5, 6)
    assert torch.equal(colors(image, 2, [1, 2, 3]), image)
    with torch.no_grad():
        colors.delta[1:] = torch.randn(3, 3, 4)
        colors.delta[3, :, 3] = 9.0  # one camera far off moves nothing
        colors.delta[1:, :, :3] = 0
    shown = torch.stack([colors(image, c, [1, 2, 3]) for c in (1, 2, 3)])
    assert torch.allclose(shown.median(0).values, image, atol=1e-5)


def test_camera_colors_learn_a_gain():
    colors, image = CameraColors(3), torch.rand(3, 8, 8)
    adam = torch.optim.Adam(colors.parameters(), lr=0.02)
    for _ in range(200):
        loss = (colors(image, 0, [0, 1, 2]) - 1.2 * image).abs().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert loss < 0.01


def masked_pair() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images with a gradient, targets, and a mask with holes and a wholly masked image."""
    images = torch.rand(2, 3, 24, 30, requires_grad=True)
    mask = torch.rand(2, 1, 24, 30) > 0.3
    mask[0, :, 5:15, 5:20], mask[1] = False, False
    return images, torch.rand(2, 3, 24, 30), mask


@pytest.mark.parametrize("loss", ["l1", "l2", "charbonnier"])
def test_masked_pixels_have_no_gradient_and_their_truth_no_effect(loss):
    images, targets, mask = masked_pair()
    opt, found = OptimizationParams(loss=loss, lambda_dssim=0.4), []
    for garbage in (0.0, 7.0):
        images.grad = None
        terms = photometric(images, torch.where(mask, targets, garbage), opt, mask)
        sum(terms.values()).backward()
        found.append((terms, images.grad.clone()))
    gradient = found[0][1]
    assert (gradient * ~mask == 0).all() and (gradient[0] * mask[0]).abs().sum() > 0
    assert torch.equal(gradient, found[1][1])
    assert all(torch.equal(found[0][0][name], value) for name, value in found[1][0].items())


@pytest.mark.parametrize("loss", ["l1", "l2", "charbonnier"])
def test_an_image_without_a_pixel_that_counts_has_no_loss(loss):
    images, targets, mask = masked_pair()
    terms = photometric(images[1:], targets[1:], OptimizationParams(loss=loss), mask[1:])
    assert terms[loss].item() == 0


def test_masked_loss_is_the_sum_over_counted_pixels():
    images, targets, mask = masked_pair()
    value = photometric(images, targets, OptimizationParams(loss="l1"), mask)["l1"].item()
    error = (images - targets).abs().detach().numpy() * mask.numpy()
    assert value == pytest.approx(error.sum() / images.numel(), rel=1e-5)


@pytest.mark.parametrize("loss", ["l1", "l2", "charbonnier"])
@pytest.mark.parametrize("masked", [False, True])
def test_frames_as_they_are_stored_give_the_loss_of_their_floats(loss, masked):
    frames = torch.randint(0, 256, (2, 24, 30, 3), dtype=torch.uint8)
    images, _, mask = masked_pair()
    opt, found = OptimizationParams(loss=loss, lambda_dssim=0.4), []
    for targets in (frames.permute(0, 3, 1, 2), to_float(frames)):
        terms = photometric(images, targets, opt, mask if masked else None)
        found.append((terms, torch.autograd.grad(sum(terms.values()), images)[0]))
    for name, value in found[0][0].items():
        assert value.item() == pytest.approx(found[1][0][name].item(), rel=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-9)


def test_dssim_is_that_of_the_metrics():
    images, targets, mask = masked_pair()
    terms = photometric(images, targets, OptimizationParams(lambda_dssim=1.0), mask)
    own = images.detach()
    shown, wanted = torch.where(mask, images, own), torch.where(mask, targets, own)
    expected = 1 - ssim_map(shown, wanted).mean()
    assert terms["dssim"].item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = [torch.autograd.grad(value, images)[0] for value in (terms["dssim"], expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-8)
