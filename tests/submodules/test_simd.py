"""The rasteriser's vectors: what their own arithmetic promises, at each instruction set."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

import instrumented
from emulated import STRICT, Unit, compile_and_link, made_once

COUNT = 1 << 18


@pytest.fixture(scope="module", params=instrumented.levels_here())
def simd(request) -> ctypes.CDLL:
    """simd_checks.cpp at an instruction set."""
    package = instrumented.Package("diff_gaussian_rasterization")
    source = instrumented.HERE / "simd_checks.cpp"
    options = [*instrumented.FLAGS, *STRICT, *package.level_options(request.param)]
    options += ["-fvisibility=default", f"-DNATIVE_LEVEL={request.param}"]
    headers = [
        package.folder / "src" / "simd.h",
        package.folder / "include" / "gaussian_rasterizer" / "math.h",
    ]
    options += [f"-I{package.folder / folder}" for folder in ("src", "include")]
    key = instrumented.digest([source, *headers], options)
    library = instrumented.BUILD / f"simd-{request.param}-{key}" / "simd.so"
    units = [Unit(source, options)]
    return ctypes.CDLL(str(made_once(library, lambda part: compile_and_link(units, [], part))))


def aligned(values: np.ndarray) -> np.ndarray:
    """A copy as float32 that begins at a multiple of 64 bytes."""
    memory = np.zeros(values.size + 16, np.float32)
    start = -(memory.ctypes.data // 4) % 16
    memory[start : start + values.size] = values
    return memory[start : start + values.size]


def pointer(values: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(values.ctypes.data)


def powers_of_two(simd: ctypes.CDLL, exponents: np.ndarray) -> np.ndarray:
    """2^x of float32 numbers."""
    padded = np.zeros(-(-exponents.size // 16) * 16)
    padded[: exponents.size] = exponents
    x, y = aligned(padded), aligned(padded)
    simd.powers_of_two(pointer(x), ctypes.c_long(x.size), pointer(y))
    return y[: exponents.size].copy()


def test_powers_of_two_are_as_near_as_simd_h_says(simd):
    random = np.random.default_rng(0)
    steps = np.arange(-126 * 64, 1) / 64  # where tables and roundings change
    exponents = np.concatenate(
        [-random.uniform(0, 126, COUNT), -np.exp2(-random.uniform(0, 40, COUNT)), steps]
    ).astype(np.float32)
    exponents = np.concatenate(
        [exponents, np.nextafter(steps.astype(np.float32), np.float32(-np.inf))]
    )
    exponents = exponents[exponents >= -126]
    exact = np.exp2(exponents.astype(np.float64))
    unit = np.spacing(exact.astype(np.float32)).astype(np.float64)
    error = np.max(np.abs(powers_of_two(simd, exponents) - exact) / unit)
    assert error <= (1.8 if simd.lanes() == 16 else 2.2)


def test_whole_powers_of_two_are_exact(simd):
    exponents = np.arange(-126, 1).astype(np.float32)
    assert np.array_equal(powers_of_two(simd, exponents), np.exp2(exponents))


def test_powers_below_all_normal_numbers_are_next_to_nothing(simd):
    exponents = np.array([-126.5, -127, -150, -1e3, -1e6, -1e30], np.float32)
    found = powers_of_two(simd, exponents)
    assert np.all(found >= 0) and np.all(found <= 2.0**-126)


def exponentials(simd: ctypes.CDLL, exponents: np.ndarray) -> np.ndarray:
    """e^x of float32 numbers."""
    x, y = exponents.astype(np.float32), np.empty(exponents.size, np.float32)
    simd.exponentials(pointer(x), ctypes.c_long(x.size), pointer(y))
    return y


def test_exponentials_are_as_near_as_math_h_says(simd):
    random = np.random.default_rng(0)
    halves = (np.arange(-124, 127) + 0.5) * np.log(2)  # where roundings change
    exponents = np.concatenate(
        [random.uniform(-87, 88.72, COUNT), random.normal(0, 1e-3, COUNT), halves, [-87, 88.7228]]
    ).astype(np.float32)
    exact = np.exp(exponents.astype(np.float64))
    unit = np.spacing(exact.astype(np.float32)).astype(np.float64)
    assert np.max(np.abs(exponentials(simd, exponents) - exact) / unit) <= 1


def test_exponentials_of_what_is_small_large_or_no_number(simd):
    exponents = np.array([-88, -1e3, -1e30, -np.inf, 0, -0.0, 88.73, 1e3, 1e30, np.inf, np.nan])
    wanted = np.array([0, 0, 0, 0, 1, 1, np.inf, np.inf, np.inf, np.inf, np.nan], np.float32)
    assert np.array_equal(exponentials(simd, exponents), wanted, equal_nan=True)


def test_multiply_adds_are_those_of_their_arguments(simd):
    random = np.random.default_rng(1)
    a, b, c = (aligned(random.normal(size=COUNT)) for _ in range(3))
    sums, differences = aligned(np.zeros(COUNT)), aligned(np.zeros(COUNT))
    arrays = [pointer(x) for x in (a, b, c)]
    simd.multiply_adds(*arrays, ctypes.c_long(COUNT), pointer(sums), pointer(differences))
    product, addend = a.astype(np.float64) * b, c.astype(np.float64)
    # Rounded once or twice: the terms may be larger than what they come to.
    tolerance = 2.0**-24 * (2 * np.abs(product) + np.abs(addend))
    assert np.all(np.abs(sums - (product + addend)) <= tolerance)
    assert np.all(np.abs(differences - (addend - product)) <= tolerance)


def test_sums_of_lanes_are_in_their_places(simd):
    x = aligned(np.random.default_rng(2).normal(size=COUNT))
    vectors = COUNT // simd.lanes()
    at_once, each = aligned(np.zeros(vectors)), aligned(np.zeros(vectors))
    simd.sums_of_lanes(pointer(x), ctypes.c_long(COUNT), pointer(at_once), pointer(each))
    exact = x.reshape(vectors, -1).astype(np.float64).sum(1)
    np.testing.assert_allclose(at_once, exact, atol=1e-5)
    np.testing.assert_allclose(each, exact, atol=1e-5)
