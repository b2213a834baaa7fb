"""Whole measurements of pictures in memory and in files, against scikit-image, scipy and LPIPS."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.measure import Meter, choose, deviations, refuse_small
from evaluation.opening import open_folders
from evaluation.protocols import PROTOCOLS, Protocol, find_protocol
from evaluation.sources import Item
from training.evaluation import Perceptual
from utils.errors import UserError
from utils.lpips import LpipsUnavailable, load_lpips
from utils.metrics import to_8bit

RENDER = find_protocol("render")
NO_LPIPS = Perceptual((), "cpu")


class Shown:
    """Pictures in memory, floats as a renderer gives them."""

    exact, kind, background, device = True, None, None, "cpu"

    def __init__(self, images, targets, masks=None, clip: str | None = "cam") -> None:
        self.label, self.facts, self.notes = "shown", {}, []
        self.shown, self.truth, self.masks = images, targets, masks
        size = (images[0].shape[2], images[0].shape[1])
        self.items = [Item(f"cam/{i}", "cam", clip, i, size) for i in range(len(images))]

    def prepare(self, chosen: Sequence[int]) -> None:
        pass

    def images(self, chosen: Sequence[int]) -> Iterator[tuple[int, torch.Tensor]]:
        yield from ((index, self.shown[index]) for index in chosen)

    def target(self, index: int) -> torch.Tensor:
        return self.truth[index]

    def mask(self, index: int) -> torch.Tensor | None:
        return None if self.masks is None else self.masks[index]


def clip(frames: int = 4, height: int = 40, width: int = 52, clip: str | None = "cam") -> Shown:
    """A bright square that moves over a gradient, and renders with errors beyond [0, 1]."""
    generator = torch.Generator().manual_seed(4)
    x = torch.linspace(0.2, 0.8, width).expand(3, height, width)
    truth = []
    for k in range(frames):
        frame = x.clone()
        frame[:, 10:20, 5 + 6 * k : 15 + 6 * k] = torch.tensor([1.0, 0.9, 0.1]).view(3, 1, 1)
        truth.append(frame)
    images = [f + 0.08 * torch.randn(f.shape, generator=generator) for f in truth]
    return Shown(images, [to_8bit(f).permute(1, 2, 0) for f in truth], clip=clip)


def measured(source, protocol: Protocol = RENDER, perceptual: Perceptual = NO_LPIPS, **options):
    return Meter(source, protocol, perceptual, **options).measure(worst=0, quiet=True)


def as_taken(source: Shown, index: int, protocol: Protocol) -> tuple[np.ndarray, np.ndarray]:
    """Render and ground truth, (3, H, W) float64, by numpy alone."""
    image = source.shown[index].numpy().clip(0, 1)
    if protocol.eight_bit:  # in float32, as a program would: elsewhere halves round otherwise
        image = np.rint(image * 255) / 255
    return image.astype(np.float64), source.truth[index].numpy().transpose(2, 0, 1) / 255


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
def test_every_protocols_psnr_and_ssims_are_scikit_images(protocol):
    metrics = pytest.importorskip("skimage.metrics")
    source = clip(3, 170, 181)
    found = measured(source, protocol)
    for index, row in enumerate(found.rows.values()):
        image, target = as_taken(source, index, protocol)
        expected = metrics.peak_signal_noise_ratio(target, image, data_range=1)
        assert row[found.keys["psnr"]] == pytest.approx(expected, abs=1e-4)
        padded = [np.pad(x, ((0, 0), (5, 5), (5, 5))) for x in (image, target)]
        _, full = metrics.structural_similarity(
            *padded, channel_axis=0, data_range=1, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False, full=True,
        )  # fmt: skip
        assert row[found.keys["ssim"]] == pytest.approx(full[:, 5:-5, 5:-5].mean(), abs=1e-4)
        for key, data_range in (("ssim_uniform7", 1), ("ssim_uniform7_range2", 2)):
            if key in protocol.also:
                expected = metrics.structural_similarity(
                    image, target, channel_axis=0, data_range=data_range
                )
                assert row[key] == pytest.approx(expected, abs=1e-4)
    assert protocol.also == tuple(key for key in protocol.also if key in found.means)
    for key in protocol.also:
        assert found.means[f"d_{key}"] == pytest.approx((1 - found.means[key]) / 2)


@pytest.mark.parametrize("protocol", [RENDER, find_protocol("dnerf")], ids=lambda p: p.name)
def test_moving_and_still_psnr_are_scikit_images_over_scipys_regions(protocol):
    metrics, ndimage = pytest.importorskip("skimage.metrics"), pytest.importorskip("scipy.ndimage")
    source = clip()
    found = measured(source, protocol)
    truth = [as_taken(source, i, protocol)[1] for i in range(4)]
    for index, row in enumerate(found.rows.values()):
        changed = np.zeros((40, 52), bool)
        for other in {max(index - 1, 0), min(index + 1, 3)} - {index}:
            for channel in truth[index] - truth[other]:
                mean = ndimage.uniform_filter(channel, 3, mode="constant")
                changed |= np.abs(mean) > 8 / 255
        moving = ndimage.binary_dilation(changed, np.ones((5, 5)))
        image, target = as_taken(source, index, protocol)
        for key, region in (("psnr_moving", moving), ("psnr_still", ~moving)):
            expected = metrics.peak_signal_noise_ratio(
                target[:, region], image[:, region], data_range=1
            )
            assert row[key] == pytest.approx(expected, abs=1e-4)
        assert row["moving_share"] == pytest.approx(moving.mean(), abs=1e-6)


def test_flicker_belongs_to_the_later_frame_and_the_truth_has_its_own():
    source = clip()
    rows = list(measured(source).rows.values())
    assert "flicker" not in rows[0] and all("flicker" in row for row in rows[1:])
    assert rows[1]["flicker_gt"] == 0
    steady = Shown([image * 0 + 0.5 for image in source.shown], source.truth)
    assert [row["flicker"] for row in list(measured(steady).rows.values())[1:]] == [0, 0, 0]
    # two independent errors of sigma 0.08 differ by 2 sigma / sqrt(pi) on average
    assert rows[1]["flicker"] == pytest.approx(255 * 2 * 0.08 / np.pi**0.5, rel=0.1)


def test_what_moved_a_moment_before_does_not_flicker_yet():
    source = clip(4)
    steady = [image * 0 + 0.5 for image in source.shown]
    steady[2][:, 10:20, 5:9] = 1.0  # where the square was at first: it moves up to frame 1
    rows = list(measured(Shown(steady, source.truth)).rows.values())
    assert rows[2]["flicker"] == 0 and rows[3]["flicker"] > 0


def test_pictures_without_order_in_time_have_no_such_numbers_and_the_reason():
    found = measured(clip(clip=None))
    assert not {"flicker", "psnr_moving"} & found.means.keys()
    assert any("no order in time" in reason for reason in found.reasons)
    assert "psnr_moving" not in measured(clip(), in_time=False).means


def test_masked_pixels_count_nowhere():
    source = clip()
    mask = torch.ones(40, 52, dtype=torch.bool)
    mask[:, 26:] = False
    spoilt = [image.clone() for image in source.shown]
    for image in spoilt:
        image[..., 26:] = 0
    n3v = find_protocol("n3v")
    a = measured(Shown(source.shown, source.truth, [mask] * 4), n3v)
    b = measured(Shown(spoilt, source.truth, [mask] * 4), n3v)
    assert a.means == b.means and a.means["psnr"] != measured(source).means["psnr"]
    assert "ssim_uniform7" in a.means
    assert any("masked" in text for text in a.deviations)
    nothing = [torch.zeros_like(mask), mask, mask, mask]
    assert list(measured(Shown(source.shown, source.truth, nothing)).rows.values())[0] == {}


def masked(frames: int = 4) -> tuple[Shown, Shown]:
    """Two clips of one truth that differ where frames 1 and 2 do not count, each elsewhere."""
    source = clip(frames)
    masks = [torch.ones(40, 52, dtype=torch.bool) for _ in range(frames)]
    masks[1][:, 26:] = masks[2][25:] = False
    spoilt = [image.clone() for image in source.shown]
    spoilt[1][..., 26:] = spoilt[2][:, 25:] = 0.5
    return tuple(Shown(shown, source.truth, masks) for shown in (source.shown, spoilt))


def test_pixels_that_do_not_count_in_one_frame_do_not_flicker_in_the_next():
    a, b = (measured(source) for source in masked())
    assert a.rows == b.rows and a.count("flicker") == 3
    unmasked = measured(clip())
    assert a.rows["cam/3"]["flicker"] != unmasked.rows["cam/3"]["flicker"]


def test_the_crop_is_left_out_of_everything():
    source = clip()
    cropped = dataclasses.replace(RENDER, crop=4)
    inner = Shown(
        [image[:, 4:-4, 4:-4] for image in source.shown], [t[4:-4, 4:-4] for t in source.truth]
    )
    assert measured(source, cropped).means == measured(inner).means
    assert any("4 pixels of every side" in t for t in measured(source, cropped).deviations)


@pytest.fixture(scope="module")
def perceptual() -> Perceptual:
    found = Perceptual(("alex",), "cpu")
    if not found.models:
        pytest.skip(found.reasons["alex"])
    return found


@pytest.mark.parametrize("name", ["n3v", "hypernerf", "render"])
def test_lpips_is_that_of_the_protocols_range_and_rounding(name, perceptual):
    protocol, source = find_protocol(name), clip(2)
    found = measured(source, protocol, perceptual)
    image, target = (torch.from_numpy(x).float() for x in as_taken(source, 0, protocol))
    expected = load_lpips("alex")(image, target, protocol.lpips_range).item()
    row = found.rows["cam/0"]
    assert row[found.keys["lpips"]] == pytest.approx(expected, abs=1e-6)
    others = {value for key, value in row.items() if key.startswith("lpips")} - {
        row[found.keys["lpips"]]
    }
    assert min(abs(value - expected) for value in others) > 1e-6


def pattern(phase: float) -> torch.Tensor:
    """The pattern of which the package lpips 0.1.4 gave the numbers below."""
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (64, 80)), indexing="ij")
    waves = ((0.3, 0.1), (0.05, 0.4), (0.7, 0.2))
    channels = [torch.sin(x * f + y * g + phase * (k + 1)) for k, (f, g) in enumerate(waves)]
    return (torch.stack(channels) / 2 + 0.5).float()


@pytest.mark.parametrize(
    ("net", "key", "expected"),
    [
        ("alex", "lpips_alex", 0.079352170),
        ("alex", "lpips_alex_legacy", 0.081309535),
        ("vgg", "lpips_vgg", 0.380833745),
        ("vgg", "lpips_vgg_legacy", 0.345733672),
    ],
)
def test_lpips_has_the_values_of_the_original_package(net, key, expected):
    """Up to the rounding of the ground truth to 8 bits, which the original was not given."""
    try:
        load_lpips(net)
    except LpipsUnavailable as reason:
        pytest.skip(str(reason))
    source = Shown([pattern(0.0)], [to_8bit(pattern(0.7)).permute(1, 2, 0)])
    found = measured(source, RENDER, Perceptual((net,), "cpu"))
    assert found.means[key] == pytest.approx(expected, abs=1e-4 if net == "alex" else 1e-3)


def test_tlpips_is_the_difference_of_two_steps(perceptual):
    protocol, source = find_protocol("n3v"), clip(3)
    found = measured(source, protocol, perceptual, every_lpips=True)
    model = load_lpips("alex")
    pairs = [[torch.from_numpy(x).float() for x in as_taken(source, i, protocol)] for i in (1, 2)]
    (a, t), (b, u) = pairs
    expected = abs(model(b, a, "legacy") - model(u, t, "legacy")).item()
    assert found.rows["cam/2"]["tlpips"] == pytest.approx(expected, abs=1e-6)
    assert "tlpips" not in found.rows["cam/0"] and found.count("tlpips") == 2
    steady = Shown([x * 0 for x in source.shown], source.truth)
    row = measured(steady, protocol, perceptual).rows["cam/2"]  # changes less than the truth
    assert row["tlpips"] == pytest.approx(model(u, t, "legacy").item(), abs=1e-6)
    perfect = Shown([x.permute(2, 0, 1) / 255 for x in source.truth], source.truth)
    assert measured(perfect, protocol, perceptual).means["tlpips"] < 1e-6


def test_pixels_that_do_not_count_in_one_frame_do_not_matter_to_tlpips(perceptual):
    a, b = (measured(source, perceptual=perceptual, every_lpips=True) for source in masked())
    assert a.rows == b.rows and a.count("tlpips") == 3
    source = clip(2)
    half = torch.zeros(40, 52, dtype=torch.bool)
    half[20:] = True
    nowhere = Shown(source.shown, source.truth, [half, ~half])
    found = measured(nowhere, perceptual=perceptual, every_lpips=True)
    assert not {"tlpips", "flicker"} & found.means.keys()


def test_frames_beyond_the_protocols_are_left_out_and_deviations_are_told():
    source = clip(4)
    short = dataclasses.replace(find_protocol("n3v"), frame_count=3, size=(52, 40))
    assert choose(source, short) == [0, 1, 2]
    assert list(measured(source, short).rows) == ["cam/0", "cam/1", "cam/2"]
    assert deviations(source, short, [0, 1, 2]) == []
    source.kind = "colmap"
    told = "; ".join(deviations(source, find_protocol("n3v"), range(4)))
    for text in ("kind colmap", "cameras cam and not cam00", "4 frames", "52x40 pixels"):
        assert text in told
    source.kind, source.background = "blender", (0.0, 0.0, 0.0)
    assert "another background" in "; ".join(deviations(source, find_protocol("dnerf"), range(4)))


def test_pictures_smaller_than_the_window_are_refused_also_by_a_crop():
    source = clip(1, 20, 30)
    refuse_small(source, RENDER)
    refuse_small(source, dataclasses.replace(RENDER, crop=4))
    with pytest.raises(UserError, match="20x10 pixels after --crop 5"):
        refuse_small(source, dataclasses.replace(RENDER, crop=5))
    with pytest.raises(UserError, match=r"30x10 pixels, smaller than the 11x11 window of SSIM"):
        refuse_small(clip(1, 10, 30), RENDER)


def test_the_lowest_are_kept_in_order_and_those_asked_for():
    source = clip(4)
    for index, error in enumerate((0.1, 0.4, 0.2, 0.3)):
        source.shown[index] = source.shown[index] * 0 + error
        source.truth[index] = torch.zeros(40, 52, 3, dtype=torch.uint8)
    found = Meter(source, RENDER, NO_LPIPS).measure(worst=2, keep=["cam/0"], quiet=True)
    assert [picture.name for picture in found.worst] == ["cam/1", "cam/3"]
    assert list(found.kept) == ["cam/0"] and found.kept["cam/0"].image.shape == (40, 52, 3)


def write(folder: Path, pictures: dict[str, np.ndarray]) -> Path:
    for name, pixels in pictures.items():
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def test_pictures_in_files_are_measured_as_their_renders_rounded(tmp_path):
    source = clip(3)
    rounded = {f"{i:03d}": to_8bit(x).permute(1, 2, 0).numpy() for i, x in enumerate(source.shown)}
    truth = {f"{i:03d}": x.numpy() for i, x in enumerate(source.truth)}
    files = open_folders(write(tmp_path / "a", rounded), write(tmp_path / "b", truth), "files")
    from_files, from_floats = measured(files), measured(source, find_protocol("dnerf"))
    assert "psnr" not in from_files.means
    for key in ("psnr_8bit", "ssim_8bit", "psnr_moving", "ssim_moving", "psnr_still", "flicker"):
        assert from_files.means[key] == from_floats.means[key]
    assert "8-bit pictures, where the protocol measures floats" in from_files.deviations
