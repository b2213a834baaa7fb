"""Which views an iteration sees."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest

from training.sampler import ViewSampler


def views(cameras: int = 3, frames: int = 5) -> list[SimpleNamespace]:
    return [SimpleNamespace(camera=c, frame_index=f) for c in range(cameras) for f in range(frames)]


def test_every_view_once_per_epoch():
    all_views = views()
    sampler = ViewSampler(all_views, 5)
    drawn = [id(v) for _ in range(3) for v in sampler.next()]
    assert Counter(drawn) == Counter(id(v) for v in all_views)


def test_a_short_last_batch_is_filled():
    sampler = ViewSampler(views(1, 7), 3)
    assert [len(sampler.next()) for _ in range(6)] == [3] * 6


def test_batches_of_one_time_hold_one_frame_without_repetition():
    sampler = ViewSampler(views(), 2, same_time=True)
    for _ in range(20):
        batch = sampler.next()
        assert len({v.frame_index for v in batch}) == 1
        assert len({v.camera for v in batch}) == 2


def test_restored_sampler_goes_on_as_the_first_would_have():
    first, second = (ViewSampler(views(), 2, seed=3) for _ in range(2))
    for _ in range(5):
        first.next()
    second.restore(*first.state())
    key = lambda batch: [(v.camera, v.frame_index) for v in batch]  # noqa: E731
    assert [key(first.next()) for _ in range(30)] == [key(second.next()) for _ in range(30)]


def test_coming_is_what_comes_even_between_epochs_and_after_a_checkpoint():
    key = lambda batch: [(v.camera, v.frame_index) for v in batch]  # noqa: E731
    sampler, plain = ViewSampler(views(), 2, seed=3), ViewSampler(views(), 2, seed=3)
    for _ in range(30):  # several epochs
        assert key(sampler.next()) == key(plain.next())  # to look ahead changes nothing
        promised = key(sampler.coming())
        restored = ViewSampler(views(), 2)
        restored.restore(*sampler.state())
        assert promised == key(restored.coming()) == key(restored.next())


def test_seed_decides_the_order():
    orders = [
        [
            (v.camera, v.frame_index)
            for _ in range(15)
            for v in ViewSampler(views(), 1, seed=s).next()
        ]
        for s in (0, 0, 1, 2, 3)
    ]
    assert orders[0] == orders[1]
    assert len({tuple(o) for o in orders}) > 1


def test_no_views_is_refused():
    with pytest.raises(ValueError, match="no training views"):
        ViewSampler([], 1)
