"""The emulated GPU does what a GPU does, and says so where a GPU would hang."""

from __future__ import annotations

import numpy as np
import pytest

import emulated

ORDERS = [0, 1, 7]  # by index, reversed, shuffled


@pytest.fixture(scope="module")
def checks() -> emulated.Library:
    return emulated.Library("checks.cu")


@pytest.fixture(scope="module")
def planted() -> emulated.Library:
    return emulated.Library("planted.cu")


@pytest.fixture(params=ORDERS)
def order(request, checks, planted) -> int:
    """The order in which the threads of a block run; nothing but `arrivals` may depend on it."""
    for library in (checks, planted):
        library.set_order(request.param)
    yield request.param
    for library in (checks, planted):
        library.set_order(0)


def rows(library: emulated.Library, name: str, count: int, block: int) -> np.ndarray:
    """The results (count, block) of a kernel that has `count` for each thread of one block."""
    data = np.full(count * block, -1, np.int32)
    library.run(name, data, block=block)
    return data.reshape(count, block)


def test_shuffles(checks, order):
    lanes = np.arange(64)
    warp, eighth, lane, place = lanes // 32 * 32, lanes // 8 * 8, lanes % 32, lanes % 8
    expected = [
        warp + 3,
        np.where(lane >= 2, lanes - 2, lanes),
        np.where(lane < 30, lanes + 2, lanes),
        lanes ^ 5,
        eighth + 1,
        np.where(place >= 3, lanes - 3, lanes),
        np.where(place < 5, lanes + 3, lanes),
        lanes ^ 3,
    ]
    assert (rows(checks, "shuffles", 8, 64) == 10 * np.array(expected)).all()


@pytest.mark.parametrize("block", [64, 40, 33, 7])
def test_votes_of_whole_and_partial_warps(checks, order, block):
    lanes = np.arange(block)
    warps = np.array_split(lanes, range(32, block, 32))
    ballots = [sum(1 << int(t % 32) for t in warp if t % 3 == 0) for warp in warps]
    expected = [
        np.repeat(np.array(ballots, np.uint32).view(np.int32), [len(warp) for warp in warps]),
        np.repeat([33 in warp for warp in warps], [len(warp) for warp in warps]),
        np.full(block, len(range(0, block, 3))),
        np.ones(block),
        np.zeros(block),
        np.full(block, 4 + 40 + 3100),
    ]
    assert (rows(checks, "votes", 6, block) == np.array(expected)).all()


def test_tiles(checks, order):
    lanes = np.arange(40)  # the last tile lies in a partial warp
    first = lanes // 8 * 8
    votes = [sum(1 << k for k in range(8) if (f + k) % 3 == 0) for f in first]
    expected = [
        8 * first + 28,
        lanes % 8,
        lanes // 8,
        votes,
        first == 8,
        first >= 8,
        first + 2,
        np.where(lanes % 8, lanes - 1, lanes),
        np.where(lanes % 8 < 7, lanes + 1, lanes),
    ]
    assert (rows(checks, "tiles", 9, 40) == np.array(expected)).all()


@pytest.mark.parametrize("count", [1, 31, 64, 1000])
def test_barriers_with_threads_that_have_returned(checks, order, count):
    data = np.arange(count, dtype=np.int32)
    checks.run("scan", data, block=1024)
    assert (data == np.cumsum(np.arange(count))).all()


def test_threads_run_in_the_order_asked_for(checks, order):
    data = np.zeros(65, np.int32)
    checks.run("arrivals", data)
    by_index = np.arange(64)
    assert (np.sort(data[1:]) == by_index).all()
    assert (data[1:] == by_index).all() == (order == 0)
    assert (data[1:] == by_index[::-1]).all() == (order == 1)


def test_atomics(checks, order):
    data = np.zeros(12, np.int32)
    checks.run("atomics", data)
    assert data[:3].tolist() == [2016, 63, -63]
    assert data[3:10].view(np.float32).tolist() == [32, 64, 128, 192, 256, 320, 384]
    assert data[10:].view(np.float64).tolist() == [16]


def test_shared_memory_is_nan_at_the_start_of_every_block(checks):
    data = np.zeros(5, np.int32)
    checks.run("unwritten", data, grid=5)
    assert (data == 1).all()


@pytest.mark.parametrize("count", [1, 100, 128])
def test_coordinates(checks, order, count):
    data = np.zeros(count, np.int32)
    checks.run("coordinates", data, grid=2, block=64)
    index = np.arange(count)
    assert (data == 200000 + 1000 * (index // 64) + index % 64).all()


def test_sort_is_stable_and_by_the_bits_asked_for(checks):
    keys = np.random.default_rng(0).integers(0, 2**12, 200).astype(np.int32)
    data = np.concatenate([keys, np.arange(200), np.zeros(400)]).astype(np.int32)
    checks.run("sort", data)
    expected = np.argsort(keys >> 4 & 15, kind="stable")
    assert (data[400:600] == keys[expected]).all()
    assert (data[600:] == expected).all()


def test_sums(checks):
    values = np.arange(1, 11)
    data = np.concatenate([values, np.zeros(10)]).astype(np.int32)
    checks.run("sums", data)
    assert (data == np.concatenate([values, np.cumsum(values) - values])).all()


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("divergent_barrier", "32 at a barrier, 32 at a warp intrinsic"),
        ("absent_lanes", "48 at a barrier, 16 at a warp intrinsic"),
        ("left_out_lane", "without its own lane"),
    ],
)
def test_what_would_hang_a_gpu_is_reported(planted, order, mistake, message):
    data = np.zeros(64, np.int32)
    with pytest.raises(RuntimeError, match=message):
        planted.run(mistake, data)
    planted.run(f"{mistake}_right", data)  # which shows that nothing is left of the other


def test_a_missing_barrier_shows_in_the_values_of_some_order(planted, checks):
    results = []
    for order in ORDERS:
        data = np.zeros(64, np.int32)
        planted.set_order(order)
        planted.run("barrier_between", data)
        results.append(data)
    planted.set_order(0)
    assert any((result != results[0]).any() for result in results[1:])


def test_blocks_of_impossible_sizes_are_refused(checks):
    with pytest.raises(RuntimeError, match="1 to 1024 threads"):
        checks.run("arrivals", np.zeros(2000, np.int32), block=1025)
