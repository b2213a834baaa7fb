"""Further channels beside the colours, and several layers of Gaussians in one render."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from rasterizer_scenes import (
    image_loss,
    random_cameras,
    random_gaussians,
    raw_gaussians,
    relative_error,
    render_with_gradients,
)
from torch import Tensor

import diff_gaussian_rasterization
from diff_gaussian_rasterization import RasterOutput, layered, operator, rasterize, reference
from kernels import KERNELS, choose, only

LAYERS = (25, 0, 1, 40, 14)
COUNT = sum(LAYERS)
IMAGES = ("color", "alpha", "depth")


@pytest.fixture(autouse=True, params=KERNELS)
def kernels(request, monkeypatch) -> str:
    choose(request.param, monkeypatch, diff_gaussian_rasterization, request.module, ["rasterize"])
    return request.param


def scene(
    extras: int = 3,
    *,
    count: int = COUNT,
    views: int = 2,
    dtype: torch.dtype = torch.float64,
    channels: int | None = None,
    make=random_gaussians,
    **options,
) -> tuple[dict[str, Tensor], dict]:
    """Gaussians with `extras` features, and cameras whose background is 0 behind these."""
    gaussians = make(count, dtype=dtype, channels=channels, **options)
    random = torch.Generator().manual_seed(7)
    batch = gaussians["means3D"].shape[0]
    features = torch.randn(batch, count, extras, generator=random, dtype=torch.float64)
    cameras = random_cameras(views, channels=channels or 3, dtype=dtype)
    if extras:
        gaussians["features"] = features.to(dtype).requires_grad_()
        nothing = torch.zeros(extras, dtype=dtype)
        cameras["background"] = torch.cat([cameras["background"], nothing])
    return gaussians, cameras


def assert_matches(actual, expected, *, images: float, gradients: float) -> None:
    """Compares two results of `render_with_gradients`, with tolerances relative to the largest."""
    for name in IMAGES:
        a, e = getattr(actual[0], name), getattr(expected[0], name)
        assert a.shape == e.shape, name
        assert relative_error(a, e) <= images, name
    assert torch.equal(actual[0].radii, expected[0].radii)
    assert actual[1].keys() == expected[1].keys()
    for name, e in expected[1].items():
        assert relative_error(actual[1][name], e) <= gradients, name


def parts(gaussians: dict[str, Tensor], layers=LAYERS) -> list[dict[str, Tensor]]:
    """The Gaussians of each layer, as leaves of their own."""
    split = {name: t.detach().split(list(layers), 1) for name, t in gaussians.items()}
    return [
        {name: pieces[k].clone().requires_grad_() for name, pieces in split.items()}
        for k in range(len(layers))
    ]


def weights_of(out: RasterOutput) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(3)
    return {
        name: torch.rand(getattr(out, name).shape, generator=random).to(out.color) - 0.3
        for name in IMAGES
    }


def weighted(images: list[Tensor], weights: list[Tensor]) -> Tensor:
    pairs = zip(images, weights, strict=True)
    return torch.stack([(image * weight).sum() for image, weight in pairs]).sum()


# ---------------------------------------------------------------------------------- the definition

TWINS = {
    "harmonics": {},
    "colours": dict(channels=2),
    "one feature": dict(extras=1),
    "no features": dict(extras=0),
    "many": dict(extras=9, channels=11),
    "covariances": dict(precomputed_cov=True),
    "every view its own": dict(batch=2),
    "raw": dict(make=raw_gaussians),
}
LAYERINGS = {
    "none": {},
    "layers": dict(layers=LAYERS),
    "shared": dict(layers=LAYERS, shared_transmittance=True),
}


@pytest.mark.parametrize("layering", LAYERINGS)
@pytest.mark.parametrize("options", TWINS)
def test_twin(options, layering):
    gaussians, cameras = scene(**TWINS[options])
    settings = LAYERINGS[layering] | ({"raw": True} if options == "raw" else {})
    assert_matches(
        render_with_gradients(rasterize, gaussians, cameras, **settings),
        render_with_gradients(reference.rasterize, gaussians, cameras, **settings),
        images=1e-11,
        gradients=1e-8,
    )


@pytest.mark.parametrize("layering", LAYERINGS)
def test_twin_in_single_precision(layering):
    gaussians, cameras = scene(dtype=torch.float32)
    exact = {name: t.detach().double().requires_grad_() for name, t in gaussians.items()}
    views = {k: v.double() if isinstance(v, Tensor) else v for k, v in cameras.items()}
    expected = render_with_gradients(reference.rasterize, exact, views, **LAYERINGS[layering])
    actual = render_with_gradients(rasterize, gaussians, cameras, **LAYERINGS[layering])
    assert_matches(actual, expected, images=1e-5, gradients=1e-3)


@only("cpu")
@pytest.mark.parametrize("shared", [False, True])
def test_gradcheck(shared):
    layers = (3, 0, 4)
    gaussians, cameras = scene(2, count=7, views=1)
    with torch.no_grad():
        gaussians["scales"].mul_(3)
    cameras |= dict(width=12, height=9)
    names = [name for name in gaussians if name != "shs"]

    def images(*tensors: Tensor) -> tuple[Tensor, ...]:
        replaced = gaussians | dict(zip(names, tensors, strict=True))
        out = rasterize(**replaced, **cameras, layers=layers, shared_transmittance=shared)
        return out.color, out.alpha, out.depth

    assert torch.autograd.gradcheck(images, [gaussians[name] for name in names], atol=1e-4)


# ---------------------------------------------------------------------------------------- features


@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("extras", [1, 3, 20])
def test_features_are_blended_with_the_weights_of_the_colours(channels, extras):
    gaussians, cameras = scene(extras, channels=channels, dtype=torch.float32)
    out = rasterize(**gaussians, **cameras)
    colours = channels or 3
    plain = {name: t for name, t in gaussians.items() if name != "features"}
    first = rasterize(**plain, **cameras | {"background": cameras["background"][:colours]})
    assert torch.equal(out.color[:, :colours], first.color)
    assert torch.equal(out.alpha, first.alpha) and torch.equal(out.depth, first.depth)
    del plain[next(name for name in ("shs", "colors") if name in plain)]
    second = rasterize(
        **plain, **cameras | {"background": torch.zeros(extras)}, colors=gaussians["features"]
    )
    assert torch.equal(out.color[:, colours:], second.color)


def test_the_background_leaks_into_no_feature():
    gaussians, cameras = scene(2)
    gaussians["features"] = torch.ones_like(gaussians["features"])
    out = rasterize(**gaussians, **cameras)
    assert torch.allclose(out.color[:, 3:], out.alpha.expand(-1, 2, -1, -1), atol=1e-12)
    assert float(out.alpha.detach().min()) < 0.5


FROZEN = [
    ["features"],
    ["shs"],
    ["shs", "features"],
    ["opacities"],
    ["means3D", "features"],
    ["means2D"],
    ["rotations"],
]


@pytest.mark.parametrize("layering", LAYERINGS)
@pytest.mark.parametrize("wanted", FROZEN, ids=" ".join)
def test_gradients_do_not_depend_on_which_are_wanted(wanted, layering):
    gaussians, cameras = scene()
    _, every = render_with_gradients(rasterize, gaussians, cameras, **LAYERINGS[layering])
    means2d = torch.zeros(2, COUNT, 3, dtype=torch.float64)
    some = {name: t.detach() for name, t in gaussians.items()} | {"means2D": means2d}
    for name in wanted:
        some[name] = some[name].requires_grad_()
    out = rasterize(**some, **cameras, **LAYERINGS[layering])
    found = torch.autograd.grad(image_loss(out), [some[name] for name in wanted])
    for name, gradient in zip(wanted, found, strict=True):
        assert torch.equal(gradient, every[name]), name


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("channels", [None, 5, 6, 11])
@pytest.mark.parametrize("extras", [1, 3])
def test_features_alone_have_the_gradients_that_they_have_beside_all(extras, channels, shared):
    gaussians, cameras = scene(extras, channels=channels)
    layers = dict(layers=(25, 40, 15), shared_transmittance=shared)
    _, every = render_with_gradients(rasterize, gaussians, cameras, **layers)
    frozen = {n: t if n == "features" else t.detach() for n, t in gaussians.items()}
    out = rasterize(**frozen, **cameras, **layers)
    (gradient,) = torch.autograd.grad(image_loss(out), [frozen["features"]])
    assert torch.equal(gradient, every["features"])


@pytest.mark.parametrize("parts_", ["color", "depth", "alpha", "alpha depth"])
@pytest.mark.parametrize("layering", LAYERINGS)
def test_images_without_a_gradient_count_for_nothing(parts_, layering):
    gaussians, cameras = scene()
    settings = LAYERINGS[layering]
    actual = render_with_gradients(rasterize, gaussians, cameras, parts_, **settings)
    expected = render_with_gradients(reference.rasterize, gaussians, cameras, parts_, **settings)
    assert_matches(actual, expected, images=1e-11, gradients=1e-8)


def test_features_alone_get_none_from_depth():
    gaussians, cameras = scene()
    frozen = {n: t if n == "features" else t.detach() for n, t in gaussians.items()}
    out = rasterize(**frozen, **cameras, layers=LAYERS)
    (gradient,) = torch.autograd.grad(out.depth.sum() + out.alpha.sum(), [frozen["features"]])
    assert not gradient.any()


# ------------------------------------------------------------------------------------------ layers


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, dict(extras=0), dict(channels=5), dict(batch=2)])
def test_layers_have_the_bits_of_separate_renders(options, dtype):
    gaussians, cameras = scene(dtype=dtype, **options)
    out = rasterize(**gaussians, **cameras, layers=LAYERS)
    weights = weights_of(out)
    images = [getattr(out, name) for name in IMAGES]
    together = torch.autograd.grad(
        weighted(images, list(weights.values())), list(gaussians.values())
    )
    alone = parts(gaussians)
    for k, (layer, (begin, end)) in enumerate(zip(alone, pairwise(starts()), strict=True)):
        own = rasterize(**layer, **cameras)
        for name in IMAGES:
            assert torch.equal(getattr(out, name)[:, k], getattr(own, name)), (name, k)
        assert torch.equal(out.radii[:, begin:end], own.radii)
        loss = weighted([getattr(own, n) for n in IMAGES], [w[:, k] for w in weights.values()])
        gradients = torch.autograd.grad(loss, list(layer.values()))
        for name, gradient, whole in zip(layer, gradients, together, strict=True):
            assert torch.equal(whole[:, begin:end], gradient), (name, k)


def starts() -> list[int]:
    return [sum(LAYERS[:k]) for k in range(len(LAYERS) + 1)]


def test_one_layer_is_a_render_with_one_axis_more():
    gaussians, cameras = scene()
    plain, one = (
        rasterize(**gaussians, **cameras),
        rasterize(**gaussians, **cameras, layers=[COUNT]),
    )
    for name in IMAGES:
        assert torch.equal(getattr(one, name)[:, 0], getattr(plain, name)), name


def test_layers_with_a_shared_transmittance_sum_to_the_render_of_all():
    gaussians, cameras = scene()
    layers = dict(layers=LAYERS, shared_transmittance=True)
    out, whole = rasterize(**gaussians, **cameras, **layers), rasterize(**gaussians, **cameras)
    for name in IMAGES:
        image, expected = getattr(out, name), getattr(whole, name)
        assert image.shape == (2, len(LAYERS), *expected.shape[1:])
        assert torch.allclose(image.sum(1), expected, atol=1e-12), name
    assert torch.equal(out.radii, whole.radii)
    apart = rasterize(**gaussians, **cameras, layers=LAYERS)
    assert float((out.alpha - apart.alpha).detach().min()) < -0.1  # behind other layers


@pytest.mark.parametrize("shared", [False, True])
def test_an_empty_layer_is_background(shared):
    gaussians, cameras = scene()
    out = rasterize(**gaussians, **cameras, layers=LAYERS, shared_transmittance=shared)
    assert not out.alpha[:, 1].any() and not out.depth[:, 1].any()
    if not shared:
        light = cameras["background"][:, None, None].expand(out.color[:, 1].shape)
        assert torch.equal(out.color[:, 1], light)


@pytest.mark.parametrize("shared", [False, True])
def test_no_gaussians_at_all(shared):
    gaussians, cameras = scene(count=0)
    out, gradients = render_with_gradients(
        rasterize, gaussians, cameras, layers=[0, 0], shared_transmittance=shared
    )
    assert out.color.shape == (2, 2, 6, 45, 70) and out.radii.shape == (2, 0)
    light = cameras["background"][:, None, None] / (2 if shared else 1)
    assert torch.equal(out.color, light.expand_as(out.color))
    assert gradients["features"].shape == (1, 0, 3)


def test_a_render_in_inference_mode_leaves_later_ones_their_gradients():
    gaussians, cameras = scene()
    layered.starts.cache_clear()
    with torch.inference_mode():
        rasterize(**gaussians, **cameras, layers=LAYERS)
    rasterize(**gaussians, **cameras, layers=LAYERS).color.sum().backward()
    assert gaussians["means3D"].grad.any()


def test_more_layers_than_gaussians_that_are_seen():
    gaussians, cameras = scene(count=40, views=1)
    layers = [1] * 40
    assert_matches(
        render_with_gradients(rasterize, gaussians, cameras, layers=layers),
        render_with_gradients(reference.rasterize, gaussians, cameras, layers=layers),
        images=1e-11,
        gradients=1e-8,
    )


def test_layers_over_many_chunks_of_gaussians():
    layers = (700, 1100, 3, 0, 900)
    gaussians, cameras = scene(count=sum(layers), dtype=torch.float32)
    out = rasterize(**gaussians, **cameras, layers=layers)
    for k, layer in enumerate(parts(gaussians, layers)):
        assert torch.equal(out.color[:, k], rasterize(**layer, **cameras).color)


# ------------------------------------------------------------------- tensors of their own per layer


def separate(layers=LAYERS, **options) -> tuple[dict[str, list[Tensor]], dict]:
    """The same Gaussians in tensors of each layer; of the first one the harmonics end earlier."""
    gaussians, cameras = scene(**options)
    pieces = parts(gaussians, layers)
    together = {name: [piece[name] for piece in pieces] for name in pieces[0]}
    if "shs" in together:
        together["shs"][0] = together["shs"][0].detach()[:, :, :9].clone().requires_grad_()
        cameras["sh_degree"] = 2
    return together, cameras


def joined(together: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """Leaves with all layers in one."""
    whole = {}
    for name, pieces in together.items():
        rows = max(t.shape[2] for t in pieces)
        padded = [
            torch.cat([t, t.new_zeros(*t.shape[:2], rows - t.shape[2], *t.shape[3:])], 2)
            for t in pieces
        ]
        whole[name] = torch.cat(padded, 1).detach().requires_grad_()
    return whole


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("options", [{}, dict(extras=0), dict(channels=5), dict(batch=2)])
def test_tensors_of_each_layer_are_drawn_as_those_of_all(options, shared):
    together, cameras = separate(dtype=torch.float32, **options)
    whole = joined(together)
    out = rasterize(**together, **cameras, shared_transmittance=shared)
    expected = rasterize(**whole, **cameras, layers=LAYERS, shared_transmittance=shared)
    assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))
    leaves = [t for pieces in together.values() for t in pieces]
    found = torch.autograd.grad(image_loss(out), leaves)
    gradients = torch.autograd.grad(image_loss(expected), list(whole.values()))
    for name, gradient in zip(together, gradients, strict=True):
        own, found = found[: len(LAYERS)], found[len(LAYERS) :]
        for piece, part in zip(own, gradient.split(LAYERS, 1), strict=True):
            assert torch.equal(piece, part[:, :, : piece.shape[2]]), name


def test_only_some_layers_want_gradients():
    together, cameras = separate()
    every = torch.autograd.grad(
        image_loss(rasterize(**together, **cameras)),
        [together["features"][3], together["means3D"][4], together["shs"][0]],
    )
    frozen = {name: [t.detach() for t in pieces] for name, pieces in together.items()}
    wanted = [
        frozen[name][k].requires_grad_()
        for name, k in (("features", 3), ("means3D", 4), ("shs", 0))
    ]
    found = torch.autograd.grad(image_loss(rasterize(**frozen, **cameras)), wanted)
    assert all(torch.equal(a, b) for a, b in zip(found, every, strict=True))


def test_layers_with_and_without_a_tensor_for_each_view():
    together, cameras = separate()
    mixed = {
        n: [t.expand(2, *t.shape[1:]) if k == 0 else t for k, t in enumerate(pieces)]
        for n, pieces in together.items()
    }
    mixed["means3D"][3] = mixed["means3D"][3].repeat(2, 1, 1)
    leaves = together["means3D"] + together["features"]
    out, expected = rasterize(**mixed, **cameras), rasterize(**together, **cameras)
    assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))
    pairs = zip(*(torch.autograd.grad(image_loss(o), leaves) for o in (out, expected)), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in pairs)


def test_the_twin_takes_tensors_of_each_layer():
    together, cameras = separate()
    means2d = [torch.zeros(2, n, 3, dtype=torch.float64).requires_grad_() for n in LAYERS]
    leaves = [t for pieces in (*together.values(), means2d) for t in pieces]
    results = []
    for function in (rasterize, reference.rasterize):
        out = function(**together, **cameras, means2D=means2d)
        results.append(torch.autograd.grad(image_loss(out), leaves, allow_unused=True))
    for a, b in zip(*results, strict=True):
        expected = torch.zeros_like(a) if b is None else b
        assert not a.numel() or relative_error(a, expected) < 1e-8


SEPARATE_MISTAKES = [
    (lambda g: g["opacities"].pop(), "opacities has 4"),
    (lambda g: g.update(opacities=torch.zeros(1, COUNT, 1)), "opacities has one"),
    (
        lambda g: g.update(layers=[COUNT]),
        "layers are \\[80\\], but the tensors have \\[25, 0, 1, 40, 14\\]",
    ),
    (lambda g: g.update({n: [] for n in g}), "at least one layer"),
    (lambda g: g["scales"].__setitem__(2, torch.zeros(1, 2, 3)), "scales must have the shape"),
    (lambda g: g["shs"].__setitem__(3, None), "for each layer, but shs\\[3\\] is None"),
    (lambda g: g["means3D"].__setitem__(0, None), "for each layer, but means3D\\[0\\] is None"),
]


@only("cpu")
@pytest.mark.parametrize(("spoil", "message"), SEPARATE_MISTAKES)
def test_mistakes_in_tensors_of_each_layer_are_named(spoil, message):
    together, cameras = separate(dtype=torch.float32)
    spoil(together)
    with pytest.raises(ValueError, match=message):
        rasterize(**together, **cameras)


@only("cpu")
def test_layers_have_as_many_features_each():
    together, cameras = separate(channels=4)
    together["colors"][1] = torch.zeros(1, 0, 5, dtype=torch.float64)
    together["features"][1] = torch.zeros(1, 0, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="features of all layers must be alike"):
        rasterize(**together, **cameras)


# ---------------------------------------------------------------------------------------- the rest


@only("cpu")
@pytest.mark.parametrize("layering", LAYERINGS)
@pytest.mark.parametrize("wanted", ["all", "features"])
def test_bits_do_not_depend_on_the_number_of_threads(layering, wanted):
    layers = (3000, 0, 5000, 1, 2000)
    gaussians, cameras = scene(count=sum(layers), dtype=torch.float32)
    if wanted == "features":
        gaussians = {n: t if n == wanted else t.detach() for n, t in gaussians.items()}
    settings = dict(LAYERINGS[layering])
    if settings:
        settings["layers"] = layers
    leaves = [t for t in gaussians.values() if t.requires_grad]
    results = []
    for threads in (1, 2, 5):
        out = rasterize(**gaussians, **cameras, **settings, num_threads=threads)
        results.append([*out, *torch.autograd.grad(image_loss(out), leaves)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("field", ["features", "means3D", "opacities", "shs"])
@pytest.mark.parametrize("shared", [False, True])
def test_a_gaussian_that_is_not_finite_leaves_no_trace(field, value, shared):
    victim = 27  # in layer 3
    gaussians, cameras = scene(dtype=torch.float32)
    if value == 3e38 and field in ("features", "opacities"):
        pytest.skip("a finite value like any other")
    with torch.no_grad():
        gaussians[field][0, victim] = value
    settings = dict(shared_transmittance=shared)
    out, gradients = render_with_gradients(rasterize, gaussians, cameras, layers=LAYERS, **settings)
    keep = [i for i in range(COUNT) if i != victim]
    rest = {n: t.detach()[:, keep].clone().requires_grad_() for n, t in gaussians.items()}
    fewer = (*LAYERS[:3], LAYERS[3] - 1, LAYERS[4])
    clean, expected = render_with_gradients(rasterize, rest, cameras, layers=fewer, **settings)
    assert not out.radii[:, victim].any()
    for name in IMAGES:
        assert torch.equal(getattr(out, name), getattr(clean, name)), name
    for name, gradient in gradients.items():
        assert not gradient[:, victim].any(), name
        assert torch.equal(gradient[:, keep], expected[name]), name


@only("cpu")
@pytest.mark.parametrize("layering", LAYERINGS)
def test_nothing_is_kept_where_no_gradient_is_wanted(layering, monkeypatch):
    states = []
    kernel = operator._kernel

    def spied(name: str, dtype: torch.dtype):
        function = kernel(name, dtype)
        if name != "forward":
            return function
        return lambda *arguments: states.append(function(*arguments)) or states[-1]

    monkeypatch.setattr(operator, "_kernel", spied)
    gaussians, cameras = scene()
    settings = LAYERINGS[layering]
    kept = rasterize(**gaussians, **cameras, **settings)
    with torch.no_grad():
        without = rasterize(**gaussians, **cameras, **settings)
    frozen = {name: t.detach() for name, t in gaussians.items()}
    constant = rasterize(**frozen, **cameras, **settings)
    assert [state is None for state in states] == [False, True, True]
    for name in IMAGES:
        assert torch.equal(getattr(without, name), getattr(kept, name))
        assert torch.equal(getattr(constant, name), getattr(kept, name))
    assert not without.color.requires_grad and not constant.color.requires_grad


MISTAKES = [
    (dict(layers=[COUNT - 1]), "layers must be numbers of Gaussians that sum to 80"),
    (dict(layers=[COUNT + 1, -1]), "layers must be numbers"),
    (dict(layers=[]), "layers must be numbers"),
    (dict(shared_transmittance=True), "shared_transmittance needs layers"),
    (dict(features=torch.zeros(1, COUNT, 0)), "features must have the shape"),
    (dict(features=torch.zeros(COUNT, 3)), "features must have the shape"),
    (dict(features=torch.zeros(1, COUNT - 1, 3)), "features must have the shape"),
    (dict(features=torch.zeros(3, COUNT, 3)), "features must have the shape"),
    (dict(features=torch.zeros(1, COUNT, 3, dtype=torch.float64)), "features is torch.float64"),
    (dict(features=torch.zeros(1, COUNT, 6)), "background has 6 values"),
    (dict(features=torch.zeros(1, COUNT, 2)), "3 channels, but background has 4"),
    (dict(layers=[COUNT] + [0] * 2**22, width=2**19), "more than 2\\^31 - 1 tiles"),
]


@only("cpu")
@pytest.mark.parametrize(("change", "message"), MISTAKES)
def test_mistakes_are_named(change, message):
    gaussians, cameras = scene(dtype=torch.float32)
    with pytest.raises(ValueError, match=message):
        rasterize(**gaussians | cameras | change)
