"""What the report remarks before anything is compared."""

from __future__ import annotations

import pytest

from evaluation.measure import Measured
from evaluation.report import _remarks
from evaluation.sources import Item

KEYS = {"psnr": "psnr", "ssim": "ssim", "lpips": "lpips_alex"}


def two_cameras(tlpips: int, lpips: int = 6) -> Measured:
    """Three moments each, with so many numbers of either kind."""
    items = [
        Item(f"c{i // 3}/{i % 3}", f"c{i // 3}", f"c{i // 3}", i % 3, (8, 8)) for i in range(6)
    ]
    rows: dict[str, dict[str, float]] = {item.name: {"psnr": 20.0} for item in items}
    for name in list(rows)[:lpips]:
        rows[name]["lpips_alex"] = 0.1
    for item in [item for item in items if item.moment > 0][:tlpips]:
        rows[item.name]["tlpips"] = 0.1
    return Measured("run", {}, [], [], KEYS, items, rows)


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ((4, 6), []),
        ((0, 6), []),
        ((3, 6), ["tLPIPS is of 3 of 4 steps in time, evenly spaced"]),
        ((4, 5), ["LPIPS is of 5 of 6 views, evenly spaced"]),
    ],
    ids=str,
)
def test_what_was_not_compared_by_lpips_is_told(counts, said):
    assert _remarks(two_cameras(*counts)) == said
