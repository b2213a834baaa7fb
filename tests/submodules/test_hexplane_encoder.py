"""The HexPlane encoder: values and gradients against its plain PyTorch twin, and its edges."""

from __future__ import annotations

import pytest
import torch

import emulated
import hexplane_encoder
from hexplane_encoder import encode, reference
from kernels import KERNELS, choose, only


@pytest.fixture(autouse=True, params=KERNELS)
def kernels(request, monkeypatch) -> str:
    """Every test runs on every path of the operator."""
    choose(request.param, monkeypatch, hexplane_encoder, request.module, ["encode"])
    return request.param


# float32: sums of up to some thousand terms in another order; float64: the same, 2^-29 finer.
TOLERANCE = {
    torch.float32: {"rtol": 1e-4, "atol": 2e-5},
    torch.float64: {"rtol": 1e-10, "atol": 1e-12},
}


def make_inputs(
    count: int = 500,
    channels: int = 16,
    sizes: tuple[int, int, int] = (9, 7, 5),
    dtype: torch.dtype = torch.float32,
    reach: float = 1.3,
    seed: int = 0,
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """Points that reach beyond the border, planes and lines; each axis has a size of its own."""
    random = torch.Generator().manual_seed(seed)
    rx, ry, rz = sizes

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=random, dtype=dtype) + 0.5

    xyz = (uniform(count, 3) * 2 - 2) * reach
    planes = [uniform(b, a, channels) for b, a in ((ry, rx), (rz, rx), (rz, ry))]
    lines = [uniform(r, channels) for r in sizes]
    return xyz, planes, lines


def gradients(function, xyz, planes, lines, **options) -> list[torch.Tensor]:
    """The features and the gradient of a weighted sum of them in every input."""
    leaves = [tensor.clone().requires_grad_() for tensor in (xyz, *planes, *lines)]
    features = function(leaves[0], leaves[1:4], leaves[4:], **options)
    weights = torch.linspace(-1, 2, features.numel(), dtype=xyz.dtype).reshape(features.shape)
    return [features.detach(), *torch.autograd.grad((features * weights).sum(), leaves)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 3, 8, 16, 31, 32])
def test_equals_the_twin(dtype, channels):
    inputs = make_inputs(channels=channels, dtype=dtype)
    ours, twin = gradients(encode, *inputs), gradients(reference.encode, *inputs)
    for actual, expected in zip(ours, twin, strict=True):
        torch.testing.assert_close(actual, expected, **TOLERANCE[dtype])


def test_equals_the_twin_over_several_blocks_of_points():
    inputs = make_inputs(count=70_000, channels=3, dtype=torch.float64)
    ours = gradients(encode, *inputs, num_threads=3)
    for actual, expected in zip(ours, gradients(reference.encode, *inputs), strict=True):
        torch.testing.assert_close(actual, expected, **TOLERANCE[torch.float64])


def test_axes_with_a_single_sample():
    inputs = make_inputs(sizes=(1, 4, 1), dtype=torch.float64)
    ours, twin = gradients(encode, *inputs), gradients(reference.encode, *inputs)
    for actual, expected in zip(ours, twin, strict=True):
        torch.testing.assert_close(actual, expected, **TOLERANCE[torch.float64])


def test_known_values_at_corners_and_cell_centre():
    ramp = torch.arange(6.0).reshape(2, 3, 1)  # value 3 * row + column
    ones = [torch.ones(2, 2, 1), torch.ones(2, 2, 1)]
    xyz = torch.tensor([[-1.0, -1, 0], [1, -1, 0], [-1, 1, 0], [0.5, 0, 0], [9, 9, 9]])
    features = encode(xyz, [ramp, *ones], [torch.ones(2, 1)] * 3)
    torch.testing.assert_close(features[:, 0], torch.tensor([0.0, 2, 3, 3, 5]))


def test_gradcheck_of_every_input():
    xyz, planes, lines = make_inputs(count=6, channels=3, sizes=(4, 3, 5), dtype=torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (xyz, *planes, *lines)]
    assert torch.autograd.gradcheck(lambda p, *g: encode(p, g[:3], g[3:]), leaves)


def test_points_outside_get_no_gradient_along_that_axis():
    _, planes, lines = make_inputs()
    xyz = torch.tensor([[1.5, 0.1, -7.0], [float("inf"), -float("inf"), 0.3]], requires_grad=True)
    encode(xyz, planes, lines).sum().backward()
    assert ((xyz.grad == 0) == (xyz.detach().abs() > 1)).all()


def test_an_infinite_upstream_gradient_stays_out_of_axes_on_which_the_point_is_outside():
    _, planes, lines = make_inputs()
    xyz = torch.tensor([[1.5, 0.1, -7.0]], requires_grad=True)
    features = encode(xyz, planes, lines)
    features.backward(torch.full_like(features, float("inf")))
    assert xyz.grad[0, 0] == 0 and xyz.grad[0, 2] == 0


@only("cpu")
@pytest.mark.parametrize("spread", ["even", "one cell"])
def test_same_bits_for_any_number_of_threads(spread):
    inputs = make_inputs(count=40_000, sizes=(40, 33, 17))
    if spread == "one cell":
        inputs[0].mul_(1e-3)
    alone = gradients(encode, *inputs, num_threads=1)
    for threads in (2, 3, 5, 16):
        together = gradients(encode, *inputs, num_threads=threads)
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@only("emulated")
def test_same_values_in_any_order_of_the_threads():
    inputs = make_inputs(count=700)
    results = []
    try:
        for order in (0, 1, 7):
            emulated.set_order("hexplane-encoder", order)
            results.append(gradients(encode, *inputs))
    finally:
        emulated.set_order("hexplane-encoder", 0)
    for features, grad_xyz, *grad_grids in results[1:]:
        assert torch.equal(features, results[0][0])
        assert torch.equal(grad_xyz, results[0][1])
        for actual, expected in zip(grad_grids, results[0][2:], strict=True):
            torch.testing.assert_close(actual, expected, **TOLERANCE[torch.float32])
    assert any(not torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))


@pytest.mark.parametrize("count", [0, 1])
def test_few_points(count):
    inputs = make_inputs(count=count)
    ours, twin = gradients(encode, *inputs), gradients(reference.encode, *inputs)
    for actual, expected in zip(ours, twin, strict=True):
        torch.testing.assert_close(actual, expected, **TOLERANCE[torch.float32])


def test_nan_rows_stay_nan_and_pass_no_gradient():
    xyz, planes, lines = make_inputs(count=3000)
    clean = gradients(encode, xyz[1:], planes, lines)
    xyz[0] = torch.tensor([0.0, float("nan"), 0.0])
    features, *grads = gradients(encode, xyz, planes, lines, num_threads=2)
    assert features[0].isnan().all()
    assert torch.equal(features[1:], clean[0])
    assert (grads[0][0] == 0).all()
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf"), 3e38, 1e-42])
def test_poisoned_coordinates_equal_the_twin(poison):
    xyz, planes, lines = make_inputs(count=6)
    xyz[torch.arange(6), torch.arange(6) % 3] = poison
    for actual, expected in zip(
        gradients(encode, xyz, planes, lines),
        gradients(reference.encode, xyz, planes, lines),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected, equal_nan=True, **TOLERANCE[xyz.dtype])


def test_inputs_that_need_no_gradient_get_none():
    xyz, planes, lines = make_inputs()
    lines[1].requires_grad_()
    encode(xyz, planes, lines).sum().backward()
    assert lines[1].grad is not None
    assert xyz.grad is None and planes[0].grad is None and lines[0].grad is None
    lines[1].requires_grad_(False)
    xyz.requires_grad_()
    encode(xyz, planes, lines).sum().backward()
    assert xyz.grad is not None


def test_strided_inputs_are_accepted_and_keep_their_gradient():
    xyz, planes, lines = make_inputs()
    channels_first = planes[0].permute(2, 0, 1).contiguous().requires_grad_()
    strided = [channels_first.permute(1, 2, 0), *planes[1:]]
    features = encode(xyz.T.contiguous().T, strided, lines)
    assert torch.equal(features, encode(xyz, planes, lines))
    features.sum().backward()
    assert channels_first.grad.shape == channels_first.shape


def wrong_inputs(name: str):
    xyz, planes, lines = make_inputs(count=4)
    if name == "xyz of two columns":
        xyz = xyz[:, :2]
    elif name == "integer xyz":
        xyz = xyz.int()
    elif name == "two planes":
        planes = planes[:2]
    elif name == "plane of rank 4":
        planes[1] = planes[1][None]
    elif name == "channels differ":
        planes[2] = planes[2][..., :5]
    elif name == "empty line":
        lines[0] = lines[0][:0]
    elif name == "dtypes differ":
        lines[2] = lines[2].double()
    return xyz, planes, lines


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("xyz of two columns", r"xyz must have shape \(N, 3\)"),
        ("integer xyz", "xyz must be float32 or float64"),
        ("two planes", "expected 3 space_planes"),
        ("plane of rank 4", r"space_planes\[xz\] must have shape"),
        ("channels differ", r"space_planes\[yz\] must have shape"),
        ("empty line", r"time_lines\[x\] must have shape"),
        ("dtypes differ", r"time_lines\[z\] must be torch.float32"),
    ],
)
def test_wrong_shapes_and_dtypes_are_named(name, message):
    with pytest.raises(ValueError, match=message):
        encode(*wrong_inputs(name))


def test_zero_threads_are_refused():
    with pytest.raises(ValueError, match="num_threads"):
        encode(*make_inputs(), num_threads=0)


def test_tensors_on_another_device_are_refused():
    xyz, planes, lines = make_inputs(count=4)
    with pytest.raises(RuntimeError, match="computes on"):
        hexplane_encoder.encode(xyz.to("meta"), planes, lines)
    with pytest.raises(RuntimeError, match=r"space_planes\[xy\] is on"):
        hexplane_encoder.encode(xyz, [planes[0].to("meta"), *planes[1:]], lines)
