"""The hash-grid encoder: values and gradients against its plain PyTorch twin, and its edges."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import emulated
import hash_encoder
from hash_encoder import HashEncoder, HashGrid, devices, encode, reference
from hash_encoder import encoder as implementation
from kernels import KERNELS, choose, only


@pytest.fixture(autouse=True, params=KERNELS)
def kernels(request, monkeypatch) -> str:
    """Every test of the operator runs on every path of it."""
    choose(request.param, monkeypatch, hash_encoder, request.module, ["encode"])
    return request.param


# float32: sums of up to some thousand terms in another order; float64: the same, 2^-29 finer.
TOLERANCE = {
    torch.float32: {"rtol": 1e-4, "atol": 2e-5},
    torch.float64: {"rtol": 1e-10, "atol": 1e-12},
}
# Most have per-axis resolutions, dense coarse levels and hashed fine ones.
GRIDS = {
    "2d": HashGrid(2, 5, 2, (3, 5), (40, 30), 8),
    "3d": HashGrid(3, 6, 2, (4, 3, 2), (20, 16, 32), 9),
    "4d": HashGrid(4, 4, 2, (2, 3, 2, 3), (9, 8, 7, 6), 8),
    "linear": HashGrid(3, 6, 2, (4, 3, 2), (20, 16, 32), 9, "linear"),
    "dense": HashGrid(3, 4, 2, 3, (9, 8, 7), 19),
    "one level": HashGrid(3, 1, 2, 5, 9, 10),
    "one sample": HashGrid(3, 3, 2, (1, 4, 1), (1, 9, 5), 5),
    "one sample, hashed": HashGrid(2, 2, 2, (1, 40), (1, 90), 4),
}


def make_inputs(
    grid: HashGrid, count: int = 500, dtype: torch.dtype = torch.float32, reach: float = 0.2
) -> tuple[torch.Tensor, torch.Tensor]:
    """Points that reach beyond the border by `reach`, and a table."""
    random = torch.Generator().manual_seed(0)
    x = torch.rand(count, grid.dims, generator=random, dtype=dtype) * (1 + 2 * reach) - reach
    table = torch.rand(grid.rows, grid.features, generator=random, dtype=dtype) - 0.5
    return x, table


def gradients(function, x, table, grid, **options) -> list[torch.Tensor]:
    """The features and the gradient of a weighted sum of them in both inputs."""
    leaves = [tensor.clone().requires_grad_() for tensor in (x, table)]
    features = function(*leaves, grid, **options)
    weights = torch.linspace(-1, 2, features.numel(), dtype=x.dtype).reshape(features.shape)
    return [features.detach(), *torch.autograd.grad((features * weights).sum(), leaves)]


def assert_equals_twin(x: torch.Tensor, table: torch.Tensor, grid: HashGrid, **options) -> None:
    ours = gradients(encode, x, table, grid, **options)
    for actual, expected in zip(ours, gradients(reference.encode, x, table, grid), strict=True):
        torch.testing.assert_close(actual, expected, equal_nan=True, **TOLERANCE[x.dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", GRIDS)
def test_equals_the_twin(name, dtype):
    assert_equals_twin(*make_inputs(GRIDS[name], dtype=dtype), GRIDS[name])


@pytest.mark.parametrize("dims", [2, 3, 4])
@pytest.mark.parametrize("features", [1, 3, 4, 8, 9])
def test_equals_the_twin_for_any_number_of_features(features, dims):
    grid = HashGrid(dims, 3, features, 3, 12, 7)
    assert_equals_twin(*make_inputs(grid, 200), grid)


@pytest.mark.parametrize("threads", [1, 3])
def test_equals_the_twin_over_several_tiles_of_points(threads):
    grid = GRIDS["3d"]
    assert_equals_twin(*make_inputs(grid, 9_001, torch.float64), grid, num_threads=threads)


@pytest.mark.parametrize("features", [1, 3, 4])
@pytest.mark.parametrize("levels", [33, 70])
def test_equals_the_twin_for_more_levels_than_a_launch_takes(levels, features):
    grid = HashGrid(2, levels, features, 2, (40, 30), 7)
    assert_equals_twin(*make_inputs(grid, 150), grid)


@pytest.mark.parametrize("shift", [0, 1, 2, 3])
@pytest.mark.parametrize("features", [2, 4, 6, 8])
def test_arrays_at_any_address(features, shift):
    grid = HashGrid(3, 4, features, 3, 12, 7)
    x, table = make_inputs(grid, 100)
    buffer = torch.empty(table.numel() + shift)
    shifted = buffer[shift:].view_as(table).copy_(table)
    upstream = torch.rand(100 * grid.width + shift)[shift:].view(100, grid.width)
    results = []
    for rows in (shifted, table):
        leaves = [x.clone().requires_grad_(), rows.detach().requires_grad_()]
        features_of = encode(*leaves, grid)
        results.append([features_of, *torch.autograd.grad(features_of, leaves, upstream)])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, **TOLERANCE[torch.float32])


def test_equals_the_twin_on_levels_too_large_for_the_cache():
    grid = HashGrid(3, 3, 2, 60, 2048, 17)
    assert grid.hashed == (True, True, True)
    assert_equals_twin(*make_inputs(grid, 600, torch.float64), grid)


@only("cpu")
def test_the_grids_above_are_dense_and_hashed():
    assert GRIDS["dense"].hashed == (False,) * 4
    for name in ("2d", "3d", "4d", "linear", "one sample"):
        assert set(GRIDS[name].hashed) == {False, True}


@only("cpu")
@pytest.mark.parametrize(
    ("grid", "rows"),
    [
        (HashGrid(3, 16, 2, 16, 2048, 19), 6_098_108),
        (HashGrid(3, 32, 2, 8, (32, 32, 16), 19), 161_213),
        (HashGrid(3, 32, 2, 16, (512, 512, 128), 19), 9_590_151),
    ],
)
def test_table_sizes_of_grid4d(grid, rows):
    assert grid.rows == rows == sum(grid.level_rows)
    assert grid.offsets[0] == 0 and len(grid.offsets) == grid.levels + 1


@only("cpu")
def test_levels_grow_from_base_to_desired_along_every_axis():
    grid = HashGrid(3, 12, 2, (8, 16, 5), (512, 300, 5), 19)
    assert grid.resolutions[0] == (8, 16, 5)
    assert grid.resolutions[-1] == (512, 300, 5)
    assert list(grid.resolutions) == sorted(grid.resolutions)
    assert grid.width == 24


def test_known_values_of_a_dense_level():
    grid = HashGrid(2, 1, 1, (3, 2), (3, 2), 10, "linear")
    table = torch.arange(6.0)[:, None]  # value column + 3 * row
    x = torch.tensor([[0.0, 0.0], [1, 0], [0, 1], [0.75, 0.5], [9, 9], [-1, 0.5]])
    expected = torch.tensor([0.0, 2, 3, 3, 5, 1.5])
    torch.testing.assert_close(encode(x, table, grid)[:, 0], expected)
    smooth = dataclasses.replace(grid, interpolation="smoothstep")
    quarter = encode(torch.tensor([[0.125, 0.0]]), table, smooth)  # a quarter of the first cell
    torch.testing.assert_close(quarter[0, 0], torch.tensor(3 / 16 - 2 / 64))


def test_known_row_of_a_hashed_level():
    grid = HashGrid(4, 1, 1, 101, 101, 12)
    sample = (7, 20, 100, 33)
    hashed = 7 ^ (20 * 2654435761) ^ (100 * 805459861) ^ (33 * 3674653429)
    table = torch.zeros(grid.rows, 1, dtype=torch.float64)
    table[hashed % 2**12] = 1
    x = torch.tensor([sample], dtype=torch.float64) / 100
    torch.testing.assert_close(encode(x, table, grid), torch.ones(1, 1, dtype=torch.float64))


@pytest.mark.parametrize("interpolation", ["smoothstep", "linear"])
@pytest.mark.parametrize("dims", [2, 3, 4])
def test_gradcheck_of_both_inputs(dims, interpolation):
    grid = HashGrid(dims, 3, 2, 2, 5, 6, interpolation)
    x, table = make_inputs(grid, count=4, dtype=torch.float64, reach=-0.03)
    leaves = [x.requires_grad_(), table.requires_grad_()]
    assert torch.autograd.gradcheck(lambda x, table: encode(x, table, grid), leaves)


@pytest.mark.parametrize("name", ["3d", "linear"])
def test_points_outside_have_the_features_of_the_border_and_no_gradient_on_that_axis(name):
    grid = GRIDS[name]
    _, table = make_inputs(grid)
    inf = float("inf")
    x = torch.tensor([[1.5, 0.13, -7.0], [inf, -inf, 0.33], [0.2, 0.4, 0.6]], requires_grad=True)
    features = encode(x, table, grid)
    assert torch.equal(features, encode(x.detach().clamp(0, 1), table, grid))
    assert (features != 0).all()
    features.sum().backward()
    outside = (x.detach() < 0) | (x.detach() > 1)
    assert ((x.grad == 0) == outside).all()


def test_an_infinite_upstream_gradient_stays_out_of_axes_on_which_the_point_is_outside():
    grid = GRIDS["3d"]
    _, table = make_inputs(grid)
    x = torch.tensor([[-0.5, 0.4, 1.5]], requires_grad=True)
    features = encode(x, table, grid)
    features.backward(torch.full_like(features, float("inf")))
    assert x.grad[0, 0] == 0 and x.grad[0, 2] == 0


@only("cpu")
@pytest.mark.parametrize("levels", [1, 3, 32])
@pytest.mark.parametrize("spread", ["even", "one cell"])
def test_same_bits_for_any_number_of_threads(spread, levels):
    grid = HashGrid(3, levels, 2, (8, 9, 7), (40, 33, 17), 12)
    x, table = make_inputs(grid, count=50_000)
    if spread == "one cell":
        x = 0.5 + 1e-3 * x
    alone = gradients(encode, x, table, grid, num_threads=1)
    for threads in (2, 3, 5, 16):
        together = gradients(encode, x, table, grid, num_threads=threads)
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("count", [0, 1])
def test_few_points(count):
    assert_equals_twin(*make_inputs(GRIDS["3d"], count=count), GRIDS["3d"])


def test_nan_rows_stay_nan_and_pass_no_gradient(kernels):
    grid = GRIDS["3d"]
    x, table = make_inputs(grid, count=6000)
    x[0] = torch.tensor([0.3, float("nan"), 0.7])
    clean, finite = encode(x[1:], table, grid), encode(x[1:], table.requires_grad_(), grid)
    features, grad_x, grad_table = gradients(encode, x, table, grid, num_threads=2)
    weights = torch.linspace(-1, 2, features.numel()).reshape(features.shape)
    (without,) = torch.autograd.grad((finite * weights[1:]).sum(), table)
    assert features[0].isnan().all()
    assert torch.equal(features[1:], clean)
    assert (grad_x[0] == 0).all() and grad_x.isfinite().all()
    if kernels == "cpu":
        assert torch.equal(grad_table, without)
    else:  # added atomically
        torch.testing.assert_close(grad_table, without, **TOLERANCE[torch.float32])


@only("emulated")
@pytest.mark.parametrize("spread", ["even", "one cell"])
@pytest.mark.parametrize("name", ["2d", "3d", "4d"])
def test_same_values_in_any_order_of_the_threads(name, spread):
    grid = GRIDS[name]
    x, table = make_inputs(grid, count=700)
    if spread == "one cell":
        x = 0.5 + 1e-3 * x
    results = []
    try:
        for order in (0, 1, 7):
            emulated.set_order("hash-encoder", order)
            results.append(gradients(encode, x, table, grid))
    finally:
        emulated.set_order("hash-encoder", 0)
    for features, grad_x, grad_table in results[1:]:
        assert torch.equal(features, results[0][0])
        assert torch.equal(grad_x, results[0][1])
        torch.testing.assert_close(grad_table, results[0][2], **TOLERANCE[torch.float32])
    assert spread == "even" or any(not torch.equal(r[2], results[0][2]) for r in results[1:])


def test_nan_rows_keep_out_a_nan_upstream_gradient():
    grid = GRIDS["3d"]
    x, table = make_inputs(grid, count=10)
    x[3, 1] = float("nan")
    leaves = [x.requires_grad_(), table.requires_grad_()]
    features = encode(*leaves, grid)
    upstream = torch.where(features.isnan(), torch.nan, 1.0)
    for grad in torch.autograd.grad(features, leaves, upstream):
        assert grad.isfinite().all()


@pytest.mark.parametrize(
    "poison", [float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 1e-42, -0.0, 1.0, 1 + 1e-7]
)
@pytest.mark.parametrize("name", GRIDS)
def test_poisoned_coordinates_equal_the_twin(name, poison):
    grid = GRIDS[name]
    x, table = make_inputs(grid, count=8)
    x[torch.arange(8), torch.arange(8) % grid.dims] = poison
    assert_equals_twin(x, table, grid)


def test_a_poisoned_row_of_the_table_reaches_only_its_points():
    grid = HashGrid(2, 1, 2, 5, 5, 10)
    x, table = make_inputs(grid, count=200)
    table[0] = float("nan")  # the sample at the origin: the cell below a quarter along both axes
    near = (x < 0.25).all(dim=1)
    assert torch.equal(encode(x, table, grid).isnan().all(dim=1), near) and near.any()


def test_inputs_that_need_no_gradient_get_none():
    grid = GRIDS["3d"]
    x, table = make_inputs(grid)
    table.requires_grad_()
    encode(x, table, grid).sum().backward()
    assert table.grad is not None and x.grad is None
    fixed = table.detach()
    x.requires_grad_()
    encode(x, fixed, grid).sum().backward()
    assert x.grad is not None and fixed.grad is None


def test_strided_inputs_are_accepted_and_keep_their_gradient():
    grid = GRIDS["3d"]
    x, table = make_inputs(grid)
    features_first = table.T.contiguous().requires_grad_()
    features = encode(x.T.contiguous().T, features_first.T, grid)
    assert torch.equal(features, encode(x, table, grid))
    features.sum().backward()
    assert features_first.grad.shape == features_first.shape


def test_module_holds_a_small_random_table_and_learns():
    grid = GRIDS["3d"]
    encoder = HashEncoder(grid, generator=torch.Generator().manual_seed(1))
    again = HashEncoder(grid, generator=torch.Generator().manual_seed(1))
    assert torch.equal(encoder.table, again.table)
    assert encoder.table.shape == (grid.rows, 2)
    assert 0.9e-4 < encoder.table.abs().max() <= 1e-4
    assert [name for name, _ in encoder.named_parameters()] == ["table"]
    x, _ = make_inputs(grid)
    features = encoder(x)
    assert features.shape == (500, grid.width)
    features.square().sum().backward()
    assert encoder.table.grad.abs().max() > 0


def wrong_inputs(name: str):
    grid = GRIDS["3d"]
    x, table = make_inputs(grid, count=4)
    if name == "x of two columns":
        x = x[:, :2]
    elif name == "flat x":
        x = x[0]
    elif name == "half x":
        x = x.half()
    elif name == "short table":
        table = table[:-1]
    elif name == "features differ":
        table = table[:, :1]
    elif name == "dtypes differ":
        table = table.double()
    return x, table, grid


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x of two columns", r"x must have shape \(N, 3\), got \(4, 2\)"),
        ("flat x", r"x must have shape \(N, 3\)"),
        ("half x", "x must be float32 or float64"),
        ("short table", "table must have shape"),
        ("features differ", "table must have shape"),
        ("dtypes differ", "table must be torch.float32"),
    ],
)
def test_wrong_shapes_and_dtypes_are_named(name, message):
    with pytest.raises(ValueError, match=message):
        encode(*wrong_inputs(name))


@only("cpu")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dims": 5}, "dims must be an integer from 2 to 4, got 5"),
        ({"dims": 1}, "dims"),
        ({"levels": 0}, "levels"),
        ({"features": 0}, "features"),
        ({"features": 2.0}, "features"),
        ({"log2_size": 0}, "log2_size"),
        ({"log2_size": 40}, "log2_size"),
        ({"base": (16, 16)}, "base must be one number or 3"),
        ({"base": 0}, r"base\[0\]"),
        ({"desired": (2048, 8, 2048)}, r"desired\[1\] must be an integer from 16"),
        ({"desired": 2**25}, r"desired\[0\]"),
        ({"interpolation": "cubic"}, "interpolation must be one of"),
    ],
)
def test_impossible_grids_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        HashGrid(**wrong)


def test_zero_threads_are_refused():
    with pytest.raises(ValueError, match="num_threads"):
        encode(*make_inputs(GRIDS["3d"]), GRIDS["3d"], num_threads=0)


@only("cpu")
def test_the_kernels_refuse_arrays_that_do_not_fit():
    from hash_encoder import _native

    x, table = make_inputs(GRIDS["3d"], count=4)
    layout, features = implementation._layout(GRIDS["3d"]), torch.empty(4, 11)
    with pytest.raises(ValueError, match="do not fit"):
        _native.forward(x, table, layout, 1, features)
    with pytest.raises(ValueError, match="too few rows"):
        few = _native.Layout([[4.0, 4.0]], [[5, 5]], [0, 24], [False], 2, True)
        _native.forward(x, table, few, 1, features)


@only("emulated")
@pytest.mark.parametrize("wrong", ["x", "table", "features", "grad_x"])
def test_the_cuda_kernels_refuse_arrays_that_do_not_fit(wrong):
    grid, gpu = GRIDS["3d"], devices.gpu_of(torch.empty(0))
    sizes = {"x": 12, "table": grid.rows * 2, "features": 4 * grid.width, "grad_x": 12}
    sizes[wrong] -= 1
    x, table, features, grad_x = ((0, size) for size in sizes.values())  # never looked at
    levels = implementation._device_grid(gpu.kernels, grid)
    where = gpu.device, gpu.stream, levels
    with pytest.raises(ValueError, match="do not fit|grad_x must be as x"):
        gpu.kernels.backward_points_f32(*where, x, table, features, grad_x)
    if wrong == "grad_x":
        return
    with pytest.raises(ValueError, match="do not fit"):
        gpu.kernels.forward_f32(*where, x, table, features)
    with pytest.raises(ValueError, match="do not fit"):
        gpu.kernels.backward_table_f64(*where, x, features, table)


IMPOSSIBLE_LEVELS = [  # scales, resolutions, offsets, hashed; what is wrong
    ([[4.0, 4.0]], [[5, 5]], [0, 24], [False], "too few rows"),
    ([[4.0, 4.0]], [[5, 5]], [0, 24], [True], "too few rows"),
    ([[4.1, 4.0]], [[5, 5]], [0, 25], [False], "beyond its samples"),
    ([[4.0, 4.0]], [[5, 5]], [1, 26], [False], "do not fit"),
    ([[4.0, 4.0]], [[5, 5]], [0, 25, 30], [False], "do not fit"),
    ([[4.0]], [[5]], [0, 5], [False], "dims"),
    ([[4.0, 4.0]] * 2, [[5, 5], [5]], [0, 25, 50], [False] * 2, "ragged"),
    ([[2.0**23] * 2], [[2**24] * 2], [0, 2**48], [False], "too large"),
]


@only("cpu", "emulated")
@pytest.mark.parametrize("wrong", IMPOSSIBLE_LEVELS, ids=lambda wrong: wrong[-1])
def test_levels_that_could_leave_their_table_are_refused(wrong, kernels):
    *levels, message = wrong
    with pytest.raises(ValueError, match=message):
        if kernels == "emulated":
            emulated.load("hash-encoder").make_grid(*levels, 2, True)
        else:
            x, table = make_inputs(GRIDS["2d"], count=4)
            layout = implementation._native.Layout(*levels, 2, True)
            implementation._native.forward(x, table, layout, 1, torch.empty(4, 2))


@only("cpu")
def test_tensors_on_another_device_are_refused():
    grid = GRIDS["3d"]
    x, table = make_inputs(grid, count=4)
    with pytest.raises(RuntimeError, match="x is on meta; hash_encoder computes on cpu"):
        encode(x.to("meta"), table.to("meta"), grid)
    with pytest.raises(RuntimeError, match="table is on meta, but another input is on cpu"):
        encode(x, table.to("meta"), grid)


@only("cpu")
@pytest.mark.gpu
def test_a_gpu_is_refused_with_the_remedy_by_a_build_without_kernels(monkeypatch):
    monkeypatch.setattr(devices, "DEVICES", ("cpu",))
    grid = GRIDS["3d"]
    x, table = make_inputs(grid, count=4)
    with pytest.raises(RuntimeError, match="--device cpu"):
        encode(x.cuda(), table.cuda(), grid)
