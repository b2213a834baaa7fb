"""The parallel loops: each chunk once, shares that stay, others that help, failures told."""

from __future__ import annotations

import ctypes

import pytest

import instrumented
from emulated import STRICT, Unit, compile_and_link, made_once

THREADS = 3


@pytest.fixture(scope="module")
def pool() -> ctypes.CDLL:
    """thread_pool_checks.cpp, compiled with the rasteriser's pool and the others' workers."""
    source = instrumented.ROOT / "submodules" / "diff-gaussian-rasterization" / "src"
    common = instrumented.COMMON
    sources = [
        instrumented.HERE / "thread_pool_checks.cpp",
        source / "thread_pool.cpp",
        common / "src" / "workers.cpp",
    ]
    folders = [f"-I{source}", f"-I{common / 'include'}"]
    options = [*instrumented.FLAGS, *STRICT, "-fvisibility=default", *folders]
    headers = [source / "thread_pool.h", common / "include" / "native" / "workers.h"]
    key = instrumented.digest([*sources, *headers], options)
    units = [Unit(path, options) for path in sources]
    library = instrumented.BUILD / f"thread-pool-{key}" / "pool.so"
    found = ctypes.CDLL(str(made_once(library, lambda part: compile_and_link(units, [], part))))
    found.share_of_a_busy_worker_is_done.restype = ctypes.c_bool
    return found


@pytest.mark.parametrize("threads", [1, 2, THREADS, 7])
@pytest.mark.parametrize("chunks", [0, 1, 2, 6, 7, 100])
def test_every_chunk_runs_once(pool, chunks, threads):
    assert pool.mistaken_chunks(chunks, threads, 50) == 0


@pytest.mark.parametrize("chunks", [THREADS, 8, 100])
def test_workers_begin_with_the_same_shares_in_every_loop(pool, chunks):
    for _ in range(5):
        assert pool.begun_elsewhere(chunks, THREADS) == 0


@pytest.mark.parametrize("busy", range(THREADS))
@pytest.mark.parametrize("chunks", [THREADS, 50])
def test_the_share_of_a_busy_worker_is_taken_over(pool, chunks, busy):
    assert pool.share_of_a_busy_worker_is_done(chunks, THREADS, busy)


@pytest.mark.parametrize("failing", [0, 5, 9])
@pytest.mark.parametrize("threads", [2, THREADS])
def test_a_failure_is_told_once_all_has_run(pool, failing, threads):
    assert pool.ran_beside_a_failure(10, threads, failing) == 10
    assert pool.mistaken_chunks(10, threads, 1) == 0  # and the next loop is as ever


@pytest.mark.parametrize("failing", [(0, 0), (2, 2), (0, 1)])
@pytest.mark.parametrize("workers", [3, 4])
def test_workers_that_fail_are_told_once_all_are_done(pool, workers, failing):
    assert pool.worked_beside_failures(workers, *failing) == workers


def test_loops_at_once_and_within_each_other_are_whole(pool):
    assert pool.ran_at_once(20, THREADS) == 20 + 20 * 20


def test_fewer_threads_than_asked_for_do_it_all(pool):
    mistakes = pool.mistaken_chunks_without_threads(100, 64)  # more than any other loop has
    if mistakes < 0:
        pytest.skip("this system does not let a test use up its threads")
    assert mistakes == 0
    assert pool.mistaken_chunks(100, 64, 1) == 0  # and the next loop gets those that it asks for
