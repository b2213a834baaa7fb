"""The neighbour search: exact against SciPy on hostile clouds, the published contract, edges."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

import emulated
import simple_knn
from kernels import KERNELS, choose
from simple_knn import devices, knn, reference, search
from simple_knn._C import distCUDA2

GPU = KERNELS[-1]


@pytest.fixture(autouse=True, params=KERNELS)
def kernels(request, monkeypatch) -> str:
    """Every test runs on every path of the search."""
    choose(request.param, monkeypatch, simple_knn, request.module, ["knn", "distCUDA2"])
    return request.param


ROUNDING = 5e-7  # relative: three differences, squares and sums in float32, a few times 2^-24


def make_cloud(kind: str, count: int) -> np.ndarray:
    """A cloud (count, 3) float32 of the named distribution."""
    random = np.random.default_rng(0)
    cloud = random.uniform(-1, 1, (count, 3))
    if kind == "clusters":
        cloud = cloud * 1e-4 + random.integers(-3, 3, (count, 1))
    elif kind == "far outliers":
        cloud[:: max(count // 10, 1)] *= 1e6
    elif kind == "far from the origin":
        cloud += 1e4
    elif kind == "collinear":
        cloud = cloud[:, :1] * np.array([[1.0, 2.0, 3.0]])
    elif kind == "along z":
        cloud[:, :2] = 0.25
    elif kind == "plane":
        cloud[:, 1] = 0.25
    elif kind == "thin sheet":
        cloud[:, 1] *= 1e-5
    elif kind == "all scales":
        cloud *= 10.0 ** random.uniform(-9, 15, (count, 1))
    elif kind == "lattice":
        cloud = np.floor(cloud * 6)
    elif kind == "duplicates":
        cloud = cloud[random.integers(0, max(count // 5, 1), count)]
    elif kind == "mostly identical":
        cloud[: count - count // 100] = 0.5
    elif kind == "identical":
        cloud[:] = 0.5
    elif kind == "tiny":
        cloud *= 1e-12
    elif kind == "huge":
        cloud *= 9e17
    return cloud.astype(np.float32)


KINDS = [
    "even",
    "clusters",
    "far outliers",
    "far from the origin",
    "collinear",
    "along z",
    "plane",
    "thin sheet",
    "all scales",
    "lattice",
    "duplicates",
    "mostly identical",
    "identical",
    "tiny",
    "huge",
]


def scipy_dist2(cloud: np.ndarray, k: int) -> np.ndarray:
    """Squared distances (N, k) in float64; dropping the first drops the point or its duplicate."""
    exact = cloud.astype(np.float64)
    return cKDTree(exact).query(exact, k=k + 1)[0][:, 1:] ** 2


def on_cpu(points: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The answer of the CPU's kernel, whatever kernels the test runs on."""
    dist2, index = torch.empty(len(points), k), torch.empty(len(points), k, dtype=torch.int64)
    search._native.nearest_neighbours(points, 1, dist2, index)
    return dist2, index


@pytest.mark.parametrize("k", [1, 3, 8, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_distances_equal_scipys(kind, k):
    cloud = make_cloud(kind, 3000)
    dist2, _ = knn(torch.from_numpy(cloud), k)
    np.testing.assert_allclose(dist2, scipy_dist2(cloud, k), rtol=ROUNDING)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 8, 9, 20])
@pytest.mark.parametrize("kind", KINDS)
def test_distances_have_the_bits_of_the_cpus(kind, k):
    points = torch.from_numpy(make_cloud(kind, 2500))
    assert torch.equal(knn(points, k)[0], on_cpu(points, k)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_indices_are_distinct_others_at_those_distances(kind):
    points = torch.from_numpy(make_cloud(kind, 3000))
    dist2, index = knn(points, 8)
    again = (points[index] - points[:, None]).square().sum(dim=2)
    torch.testing.assert_close(dist2, again, rtol=ROUNDING, atol=0)
    assert (index != torch.arange(3000)[:, None]).all()
    assert (index.sort(dim=1).values.diff(dim=1) > 0).all()
    assert (dist2.diff(dim=1) >= 0).all()


@pytest.mark.parametrize("count", [0, 1, 2, 5, 17, 300])
def test_equals_the_twin(count):
    points = torch.from_numpy(make_cloud("even", count))
    dist2, index = knn(points, 4)
    twin_dist2, twin_index = reference.knn(points, 4)
    torch.testing.assert_close(dist2, twin_dist2, rtol=ROUNDING, atol=0)
    assert torch.equal(index, twin_index)


@pytest.mark.parametrize("count", [*range(15, 35), 63, 64, 65, 255, 256, 257, 2047, 2048, 2049])
def test_every_number_of_points_fills_its_leaves(count):
    points = torch.from_numpy(make_cloud("even", count))
    dist2, index = knn(points, 3)
    expected_dist2, expected_index = on_cpu(points, 3)
    assert torch.equal(dist2, expected_dist2) and torch.equal(index, expected_index)


@pytest.mark.parametrize("count", [1, 7, 16, 40])
@pytest.mark.parametrize("k", [3, 8, 50])
def test_more_neighbours_than_points(count, k):
    points = torch.from_numpy(make_cloud("even", count))
    dist2, index = knn(points, k)
    expected_dist2, expected_index = on_cpu(points, k)
    assert torch.equal(dist2, expected_dist2) and torch.equal(index, expected_index)
    assert ((index >= 0).sum(dim=1) == min(k, count - 1)).all()


def test_rows_are_padded_where_there_are_too_few_points():
    dist2, index = knn(torch.tensor([[0.0, 0, 0], [0, 3, 4]]), 3)
    assert dist2.tolist() == [[25.0, torch.inf, torch.inf]] * 2
    assert index.tolist() == [[1, -1, -1], [0, -1, -1]]


def test_published_mean_of_three_squared_distances():
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3], [50, 50, 50]])
    mean = distCUDA2(points)
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean[0], torch.tensor((1.0 + 4 + 9) / 3))
    torch.testing.assert_close(mean[1], torch.tensor((1.0 + 5 + 10) / 3))


def test_published_mean_counts_duplicates_as_zero():
    points = torch.tensor([[1.0, 1, 1]] * 3 + [[1, 1, 4]] + [[90, 0, 0]])
    torch.testing.assert_close(distCUDA2(points)[:3], torch.tensor([3.0, 3, 3]))


@pytest.mark.parametrize(("count", "expected"), [(0, []), (1, [0.0]), (2, [1.0, 1.0])])
def test_published_mean_of_fewer_than_four_points(count, expected):
    line = torch.tensor([[0.0, 0, 0], [1, 0, 0], [3, 0, 0]])
    assert distCUDA2(line[:count]).tolist() == expected


def test_published_mean_of_three_points_averages_the_two_others():
    assert distCUDA2(torch.tensor([[0.0, 0, 0], [1, 0, 0], [3, 0, 0]])).tolist() == [5, 2.5, 6.5]


@pytest.mark.parametrize("kind", ["even", "lattice", "identical"])
def test_same_result_for_any_number_of_threads(kind):
    points = torch.from_numpy(make_cloud(kind, 20_000))
    dist2, index = knn(points, 3, num_threads=1)
    for threads in (2, 3, 7):
        other_dist2, other_index = knn(points, 3, num_threads=threads)
        assert torch.equal(dist2, other_dist2) and torch.equal(index, other_index)


@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_thousand_points_never_take_quadratic_time(kind, kernels):
    points = torch.from_numpy(make_cloud(kind, 3000 if kernels == "emulated" else 100_000))
    start = time.process_time()
    distCUDA2(points)
    assert time.process_time() - start < 2.0  # all pairs would take minutes; typical is 0.1


def leaves_scanned(points: torch.Tensor, kernels: str) -> torch.Tensor:
    """How many leaves, of up to 16 points, the search for each point's 3 neighbours looked into."""
    cloud = points.cuda() if kernels == "cuda" else points
    dist2 = cloud.new_empty(len(cloud), 3)
    index = torch.empty_like(dist2, dtype=torch.int64)
    scanned = cloud.new_empty(len(cloud), dtype=torch.int32)
    search.search_on_gpu(devices.gpu_of(cloud), cloud, dist2, index, scanned)
    return scanned.cpu().float()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernels", ["emulated", GPU], indirect=True)
def test_a_search_looks_into_few_leaves(kind, kernels):
    scanned = leaves_scanned(torch.from_numpy(make_cloud(kind, 20_000)), kernels)  # 2048 leaves
    assert scanned.min() >= 1
    assert scanned.mean() < 8
    assert scanned.max() < 40


@pytest.mark.parametrize("kind", ["even", "lattice", "duplicates"])
def test_same_result_in_whatever_order_threads_run(kind, kernels):
    points = torch.from_numpy(make_cloud(kind, 2500))
    results = []
    try:
        for order in (0, 1, 7):
            if kernels == "emulated":
                emulated.set_order("simple-knn", order)
            results.append(knn(points, 3))
    finally:
        if kernels == "emulated":
            emulated.set_order("simple-knn", 0)
    for dist2, index in results[1:]:
        assert torch.equal(dist2, results[0][0]) and torch.equal(index, results[0][1])


def test_strided_and_half_precision_points_are_accepted():
    points = torch.from_numpy(make_cloud("even", 100))
    assert torch.equal(distCUDA2(points.T.contiguous().T), distCUDA2(points))
    assert torch.equal(distCUDA2(points.half()), distCUDA2(points.half().float()))
    assert not distCUDA2(points.requires_grad_()).requires_grad


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf"), 2e18])
@pytest.mark.parametrize("axis", [0, 2])
def test_unusable_points_are_named(poison, axis):
    points = torch.from_numpy(make_cloud("even", 100))
    points[[40, 70], axis] = poison
    for function in (distCUDA2, lambda p: knn(p, 3)):
        with pytest.raises(ValueError, match="point 40 is .*finite"):
            function(points)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (torch.zeros(5, 2), r"shape \(N, 3\)"),
        (torch.zeros(3), r"shape \(N, 3\)"),
        (torch.zeros(()), r"shape \(N, 3\)"),
        (torch.zeros(5, 3, dtype=torch.int64), "float dtype"),
    ],
)
def test_wrong_shapes_and_dtypes_are_refused(points, message):
    for function in (distCUDA2, lambda p: knn(p, 3)):
        with pytest.raises(ValueError, match=message):
            function(points)


@pytest.mark.parametrize(("k", "threads"), [(0, 1), (3, 0)])
def test_counts_below_one_are_refused(k, threads):
    with pytest.raises(ValueError, match="at least 1"):
        knn(torch.zeros(5, 3), k, num_threads=threads)


@pytest.mark.parametrize("kernels", [GPU], indirect=True)
def test_cuda_points_are_answered_on_their_device(kernels):
    points = torch.from_numpy(make_cloud("even", 100)).cuda()
    for result in (*simple_knn.knn(points, 3), simple_knn._C.distCUDA2(points)):
        assert result.device == points.device


@pytest.mark.parametrize("kernels", ["cpu", GPU], indirect=True)
def test_without_cuda_kernels_cuda_points_go_to_the_cpu_and_back(kernels, monkeypatch):
    monkeypatch.setattr(devices, "DEVICES", ("cpu",))
    elsewhere = SimpleNamespace(device=torch.device("cuda", 0))
    assert search.gpu_or_none(elsewhere) is None
    if kernels == "cuda":
        points = torch.from_numpy(make_cloud("even", 100))
        answered = simple_knn.knn(points.cuda(), 3)
        assert all(tensor.is_cuda for tensor in answered)
        assert torch.equal(answered[0].cpu(), on_cpu(points, 3)[0])
