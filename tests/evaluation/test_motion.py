"""The moving region and flicker: cases with an answer, and scipy's filters as an oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evaluation.motion import REACH, SMOOTHED, THRESHOLD, flicker, moving_mask


def frame_with_square(x: int, size: int = 6, grey: float = 0.5) -> torch.Tensor:
    frame = torch.full((3, 30, 40), grey)
    frame[:, 12 : 12 + size, x : x + size] = 1.0
    return frame


def test_nothing_moves_in_equal_frames():
    frame = frame_with_square(10)
    assert not moving_mask(frame, [frame, frame]).any()
    assert not moving_mask(frame, []).any()


def test_a_square_moves_where_it_is_and_where_it_was():
    before, now = frame_with_square(10), frame_with_square(20)
    mask = moving_mask(now, [before])
    assert mask.shape == (1, 30, 40)
    assert mask[0, 12:18, 10:16].all() and mask[0, 12:18, 20:26].all()
    rows, columns = torch.nonzero(mask[0], as_tuple=True)
    grown = REACH // 2 + SMOOTHED // 2
    assert rows.min() == 12 - grown and rows.max() == 17 + grown
    assert columns.min() == 10 - grown and columns.max() == 25 + grown


def test_either_neighbour_will_do_and_any_channel():
    now, other = frame_with_square(10), frame_with_square(10)
    other[2, 20:25, 5:10] += 0.1
    assert torch.equal(moving_mask(now, [now, other]), moving_mask(now, [other]))
    assert moving_mask(now, [other])[0, 22, 7]


def test_changes_count_from_the_threshold_and_cancel_as_noise_does():
    now = torch.full((3, 20, 20), 0.5)
    assert moving_mask(now, [now + 1.01 * THRESHOLD])[0, 2:-2, 2:-2].all()
    assert not moving_mask(now, [now + 0.99 * THRESHOLD]).any()
    chequered = (torch.arange(20)[:, None] + torch.arange(20)) % 2 * 2.0 - 1
    assert not moving_mask(now, [now + 4 * THRESHOLD * chequered])[0, 3:-3, 3:-3].any()


def test_the_region_is_what_scipys_filters_make_of_the_definition():
    ndimage = pytest.importorskip("scipy.ndimage")
    generator = torch.Generator().manual_seed(2)
    frames = [0.5 + 0.1 * torch.randn(3, 31, 27, generator=generator) for _ in range(3)]
    changed = np.zeros((31, 27), bool)
    for other in (frames[0], frames[2]):
        for channel in (frames[1] - other).numpy():
            mean = ndimage.uniform_filter(channel, SMOOTHED, mode="constant")
            changed |= np.abs(mean) > THRESHOLD
    expected = ndimage.binary_dilation(changed, np.ones((REACH, REACH)))
    assert 0.1 < changed.mean() < 0.99
    mask = moving_mask(frames[1], [frames[0], frames[2]])
    np.testing.assert_array_equal(mask[0].numpy(), expected)


def test_flicker_is_the_mean_change_of_still_pixels_in_levels():
    before = torch.full((3, 4, 6), 0.5)
    now = before.clone()
    now[:, :, :3] += 2 / 255
    now[:, :, 3:] -= 0.3  # where something moves
    still = torch.zeros(1, 4, 6, dtype=torch.bool)
    still[..., :4] = True
    expected = (3 * 2 + 255 * 0.3) / 4
    assert flicker(now, before, still).item() == pytest.approx(expected, rel=1e-5)
    assert flicker(now, now, still).item() == 0
