"""SSIM and the error: values and gradients against the plain PyTorch twin, and the edges."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import emulated
import photometric_loss
from kernels import KERNELS, choose, folder_of, same_bits_on_gpu
from photometric_loss import compare, reference


@pytest.fixture(autouse=True, params=KERNELS)
def kernels(request, monkeypatch) -> str:
    """Every test runs on every path of the operator."""
    choose(request.param, monkeypatch, photometric_loss, request.module, ["compare"])
    return request.param


# SSIM subtracts squares of means, which cancels: an eighth of the digits of float32 in a smooth
# image. Gradients are relative to the largest, as a sum over 121 neighbours is.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def make_pair(
    *shape: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Images a little outside [0, 1], 8-bit targets like them, and a mask with holes."""
    random = torch.Generator().manual_seed(seed)
    batch, _, height, width = shape
    images = torch.rand(shape, generator=random, dtype=dtype) * 1.2 - 0.1
    noisy = images + 0.2 * torch.randn(shape, generator=random, dtype=dtype)
    mask = torch.rand(batch, 1, height, width, generator=random) > 0.3
    return images, noisy.clamp(0, 1).mul(255).round().to(torch.uint8), mask


def results(function: Callable, images: Tensor, *arguments, **options) -> list[Tensor]:
    """Both means and the gradient of each, and of a weighted sum of them."""
    leaf = images.clone().requires_grad_()
    terms = [term for term in function(leaf, *arguments, **options) if term is not None]
    gradients = [torch.autograd.grad(term, leaf, retain_graph=True)[0] for term in terms]
    total = sum((i + 0.3) * term for i, term in enumerate(terms))
    gradients.append(torch.autograd.grad(total, leaf)[0])
    return [*(term.detach() for term in terms), *gradients]


def assert_close(actual: list[Tensor], expected: list[Tensor]) -> None:
    """Equal to the tolerance of the dtype, relative to the largest value of each tensor."""
    assert len(actual) == len(expected)
    for ours, twin in zip(actual, expected, strict=True):
        assert ours.dtype == twin.dtype and ours.shape == twin.shape
        scale = twin.abs().max().item()
        tolerance = TOLERANCE[ours.dtype]
        torch.testing.assert_close(ours, twin, rtol=tolerance, atol=tolerance * scale)


def assert_same_bits(actual: list[Tensor], expected: list[Tensor]) -> None:
    """Equal in every bit."""
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("error", ["l1", "l2"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bytes_", [False, True])
def test_equals_the_twin(dtype, error, masked, bytes_):
    images, targets, mask = make_pair(2, 3, 37, 53, dtype=dtype)
    targets = targets if bytes_ else targets.to(dtype) / 255
    inputs = images, targets, mask if masked else None
    assert_close(
        results(compare, *inputs, error=error), results(reference.compare, *inputs, error=error)
    )


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_any_number_of_images_and_channels(batch, channels):
    inputs = make_pair(batch, channels, 17, 12, dtype=torch.float64)
    assert_close(results(compare, *inputs), results(reference.compare, *inputs))


SIZES = [
    (1, 1),
    (1, 20),
    (20, 1),
    (5, 5),
    (6, 40),
    (11, 11),
    (16, 32),
    (17, 33),
    (15, 31),
    (90, 70),
]


@pytest.mark.parametrize("size", SIZES)
def test_sizes_around_the_window_and_the_tiles(size):
    inputs = make_pair(2, 1, *size, dtype=torch.float64)
    assert_close(results(compare, *inputs), results(reference.compare, *inputs))


@pytest.mark.parametrize(
    "options", [{"ssim": False}, {"error": None}, {"ssim": False, "error": "l2"}]
)
def test_only_what_is_asked_for(options):
    inputs = make_pair(2, 3, 21, 45)
    found = compare(*inputs, **options)
    assert (found.ssim is None) == ("ssim" in options)
    assert (found.error is None) == ("error" in options and options["error"] is None)
    assert_close(
        results(compare, *inputs, **options), results(reference.compare, *inputs, **options)
    )


@pytest.mark.parametrize("error", ["l1", "l2"])
def test_gradcheck(error):
    images, targets, mask = make_pair(2, 2, 9, 13, dtype=torch.float64)
    images.requires_grad_()
    fixed = images.detach() * ~mask  # what the twin detaches stays where it is

    def terms(x: Tensor) -> tuple[Tensor, ...]:
        return compare(x * mask + fixed, targets, mask, error=error)

    assert torch.autograd.gradcheck(terms, images)
    assert torch.autograd.gradcheck(lambda x: compare(x, targets, error=error), images)


def test_known_values():
    """Of constant images the window's border is what it cuts off, the rest the luminance term."""
    images = torch.full((1, 3, 30, 40), 0.25, dtype=torch.float64)
    assert compare(images, images + 0.5).error.item() == 0.5
    assert compare(images, images + 0.5, error="l2").error.item() == 0.25
    middle = reference.ssim_map(images, images + 0.5)[0, 0, 15, 20].item()
    luminance = (2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4)
    assert middle == pytest.approx(luminance)  # that of the twin, whose mean is compared elsewhere
    same = compare(images, images)
    assert same.ssim.item() == pytest.approx(1) and same.error.item() == 0


def test_the_absolute_error_has_no_slope_where_images_are_equal():
    images, targets, _ = make_pair(1, 3, 8, 9)
    images[..., ::2] = targets[..., ::2].float() / 255
    gradient = results(compare, images, targets, ssim=False)[1]
    assert (gradient[..., ::2] == 0).all() and (gradient[..., 1::2] != 0).all()


@pytest.mark.parametrize("masked", [False, True])
def test_bytes_and_floats_have_the_same_bits(masked):
    images, targets, mask = make_pair(2, 3, 33, 50)
    mask = mask if masked else None
    floats = targets.float() / 255
    assert_same_bits(
        results(compare, images, targets, mask), results(compare, images, floats, mask)
    )


def test_all_levels_of_a_byte_are_its_value_over_255():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 4, 64)
    for dtype in (torch.float32, torch.float64):
        error = compare(levels.to(dtype) / 255, levels, ssim=False).error
        assert error.item() == 0


def test_strided_inputs_are_read_as_they_are():
    images, targets, mask = make_pair(2, 3, 20, 31)
    expected = results(compare, images, targets, mask)
    by_row = targets.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    by_column = targets.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    every_other = targets.repeat_interleave(2, 3)[..., ::2]
    for strided in (by_row, by_column, every_other, by_column.float() / 255):
        assert_same_bits(results(compare, images, strided, mask), expected)
    sideways = images.mT.contiguous().mT
    strided_mask = mask.mT.contiguous().mT
    assert_same_bits(results(compare, sideways, targets, strided_mask), expected)
    one = targets[:1, :1].expand_as(targets)  # strides of 0
    assert_same_bits(results(compare, images, one), results(compare, images, one.contiguous()))


@pytest.mark.parametrize("error", ["l1", "l2"])
def test_masked_pixels_have_no_gradient_and_their_target_no_effect(error):
    images, targets, mask = make_pair(2, 3, 24, 30)
    mask[1] = False
    found = results(compare, images, targets, mask, error=error)
    other = torch.where(mask, targets, 255 - targets)
    assert_same_bits(results(compare, images, other, mask, error=error), found)
    assert all((gradient * ~mask == 0).all() for gradient in found[2:])
    assert all((gradient * mask)[0].abs().sum() > 0 for gradient in found[2:])


def test_an_image_without_a_pixel_that_counts():
    images, targets, mask = make_pair(1, 3, 24, 30)
    ssim, error, *gradients = results(compare, images, targets, torch.zeros_like(mask))
    assert error.item() == 0 and ssim.item() == pytest.approx(1, abs=1e-6)
    assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 3e38, -3e38])
@pytest.mark.parametrize("where", [(0, 0), (15, 31), (16, 32), (39, 69)])
@pytest.mark.parametrize("counts", [False, True])
def test_poison_is_never_a_silent_number(poison, where, counts):
    images, targets, mask = make_pair(1, 2, 40, 70)
    images[0, 1, where[0], where[1]] = poison
    mask[0, 0, where[0], where[1]] = counts
    for error in ("l1", "l2"):
        ours = compare(images, targets, mask, error=error)
        twin = reference.compare(images, targets, mask, error=error)
        torch.testing.assert_close(ours.error, twin.error, equal_nan=True)
        assert ours.ssim.isnan()
    if math.isnan(poison):
        assert ours.error.isnan()
        assert not counts or results(compare, images, targets, mask)[-1].isnan().any()
        slope = results(compare, images, targets, mask, ssim=False)[1][0, 1, where[0], where[1]]
        assert slope.isnan() if counts else slope == 0


def test_poison_in_float_targets():
    images, targets, mask = make_pair(1, 2, 20, 30)
    targets = targets.float() / 255
    targets[0, 0, 7, 9], mask[0, 0, 7, 9] = math.nan, True
    assert all(term.isnan() for term in compare(images, targets, mask))
    mask[0, 0, 7, 9] = False
    assert all(term.isfinite() for term in compare(images, targets, mask))


@pytest.mark.parametrize("value", [1e-40, 1e-20, 0.0, -0.0, 1e4])
def test_images_of_unusual_size_equal_the_twin_in_double(value):
    images, targets, _ = make_pair(1, 2, 20, 30)
    images = images * value
    expected = reference.compare(images.double(), targets)
    for ours, twin in zip(compare(images, targets), expected, strict=True):
        assert ours.item() == pytest.approx(twin.item(), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_bits_for_any_number_of_threads(dtype, kernels):
    size = (2, 3, 150, 97) if kernels == "cpu" else (2, 3, 40, 37)
    inputs = make_pair(*size, dtype=dtype)
    alone = results(compare, *inputs, num_threads=1)
    for threads in (2, 3, 5, 16):
        assert_same_bits(results(compare, *inputs, num_threads=threads), alone)


def test_same_bits_in_every_run_and_order_of_threads(kernels):
    inputs = make_pair(2, 3, 40, 37)
    first = results(compare, *inputs)
    assert same_bits_on_gpu(lambda: results(compare, *inputs))
    if kernels != "emulated":
        return
    try:
        for order in (0, 1, 7):
            emulated.set_order(folder_of(photometric_loss), order)
            assert_same_bits(results(compare, *inputs), first)
    finally:
        emulated.set_order(folder_of(photometric_loss), 0)


def test_sums_of_many_pixels_are_accurate(kernels):
    """A sum in float32 would lose three digits of a million equal errors."""
    size = (1, 3, 500, 700) if kernels != "emulated" else (1, 1, 160, 200)
    images = torch.full(size, 0.1)
    ssim, error = compare(images, torch.zeros(size))
    assert error.item() == images[0, 0, 0, 0].item()
    expected = reference.compare(images.double(), torch.zeros(size, dtype=torch.float64)).ssim
    assert ssim.item() == pytest.approx(expected.item(), rel=2e-7)


def test_agrees_with_scikit_image_away_from_the_border(kernels):
    """scikit-image mirrors at the border: constant frames make the border the same for both."""
    metrics = pytest.importorskip("skimage.metrics")
    images, targets, _ = make_pair(1, 3, 44, 50, dtype=torch.float64)
    targets = targets.double() / 255
    inner = torch.zeros(44, 50, dtype=torch.bool)
    inner[10:-10, 10:-10] = True  # the frame is 0 in both: padding with zeros and mirroring agree
    images, targets = images * inner, targets * inner
    expected = metrics.structural_similarity(
        images[0].numpy(),
        targets[0].numpy(),
        channel_axis=0,
        data_range=1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )[1].mean()
    assert compare(images, targets).ssim.item() == pytest.approx(expected, abs=1e-9)


def test_agrees_with_pytorch_msssim_in_value_and_gradient():
    """pytorch-msssim has no padding: with zeros around both images it sees what we see."""
    msssim = pytest.importorskip("pytorch_msssim")
    images, targets, _ = make_pair(2, 3, 30, 41, dtype=torch.float64)
    targets = targets.double() / 255

    def padded(x: Tensor, y: Tensor) -> tuple[Tensor]:
        frame = (5, 5, 5, 5)
        x, y = torch.nn.functional.pad(x, frame), torch.nn.functional.pad(y, frame)
        return (msssim.ssim(x, y, data_range=1),)

    ours = results(lambda x, y: compare(x, y, error=None), images, targets)
    for actual, expected in zip(ours, results(padded, images, targets), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-8)  # its window is float32


def test_the_graph_can_be_walked_twice_and_without_a_gradient_nothing_is_kept():
    images, targets, mask = make_pair(1, 3, 20, 30)
    assert compare(images, targets, mask).ssim.grad_fn is None
    images.requires_grad_()
    with torch.no_grad():
        assert compare(images, targets, mask).ssim.grad_fn is None
    ssim, error = compare(images, targets, mask)
    once = torch.autograd.grad(ssim + error, images, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(ssim + error, images)[0], once)


def wrong_inputs(name: str) -> tuple[tuple, dict]:
    images, targets, mask = make_pair(2, 3, 12, 14)
    changed = {
        "images of rank 3": ((images[0], targets[0], None), {}),
        "an empty batch": ((images[:0], targets[:0], None), {}),
        "half images": ((images.half(), targets, None), {}),
        "another size": ((images, targets[..., 1:], None), {}),
        "targets in double": ((images, targets.double(), None), {}),
        "targets with a gradient": ((images, targets.float().requires_grad_(), None), {}),
        "a mask for each channel": ((images, targets, mask.expand(2, 3, 12, 14)), {}),
        "a float mask": ((images, targets, mask.float()), {}),
        "an unknown error": ((images, targets, mask), {"error": "huber"}),
        "nothing": ((images, targets, mask), {"ssim": False, "error": None}),
        "no threads": ((images, targets, mask), {"num_threads": 0}),
    }
    return changed[name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("images of rank 3", r"images must have shape \(B, C, H, W\)"),
        ("an empty batch", r"images must have shape \(B, C, H, W\), none 0"),
        ("half images", "images must be float32 or float64"),
        ("another size", r"targets must have shape \(2, 3, 12, 14\)"),
        ("targets in double", "targets must be uint8 or torch.float32"),
        ("targets with a gradient", "targets get no gradient"),
        ("a mask for each channel", r"mask must have shape \(2, 1, 12, 14\)"),
        ("a float mask", "mask must be bool"),
        ("an unknown error", "error must be one of None, 'l1', 'l2', got 'huber'"),
        ("nothing", "nothing to compute"),
        ("no threads", "num_threads"),
    ],
)
def test_wrong_arguments_are_named(name, message):
    arguments, options = wrong_inputs(name)
    with pytest.raises(ValueError, match=message):
        compare(*arguments, **options)


def test_the_default_device_is_not_asked():
    images, targets, _ = make_pair(1, 3, 20, 30)
    expected = compare(images, targets)
    with torch.device("meta"):
        found = compare(images, targets)
    assert torch.equal(found.ssim, expected.ssim) and torch.equal(found.error, expected.error)


def test_tensors_on_another_device_are_refused():
    images, targets, mask = make_pair(1, 3, 12, 14)
    with pytest.raises(RuntimeError, match="computes on"):
        photometric_loss.compare(images.to("meta"), targets.to("meta"))
    with pytest.raises(RuntimeError, match="targets is on"):
        photometric_loss.compare(images, targets.to("meta"))
    with pytest.raises(RuntimeError, match="mask is on"):
        photometric_loss.compare(images, targets, mask.to("meta"))
