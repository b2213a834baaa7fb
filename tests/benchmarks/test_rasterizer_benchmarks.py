"""The rasteriser's benchmarks: their scenes, and that their judgements can be negative."""

from __future__ import annotations

import argparse
import inspect
import json
import sys

import numpy as np
import pytest
import torch

from benchmarks import (
    clock,
    device_agreement,
    exercise_operators,
    rasterizer_garden,
    rasterizer_gsplat,
    rasterizer_profile,
    scenes,
    single_pass,
)
from diff_gaussian_rasterization import RasterOutput, rasterize, reference
from scene.spatial_order import spatial_order


@pytest.fixture(scope="module")
def room() -> scenes.Scene:
    return scenes.n3v(5000, (338, 253))


@pytest.fixture
def garden_file(tmp_path):
    """Three cameras before a cloud, in the layout of garden.npz."""
    rng = np.random.default_rng(0)
    poses = np.repeat(np.eye(4)[None], 3, 0)
    poses[:, 2, 3] = 4
    k = np.array([[80.0, 0, 40], [0, 90, 30], [0, 0, 1]])
    path = tmp_path / "garden.npz"
    np.savez(
        path,
        means3d=rng.normal(size=(200, 3)).astype(np.float32),
        colors=rng.integers(0, 256, (200, 3), dtype=np.uint8),
        viewmats=poses.astype(np.float32),
        Ks=np.repeat(k[None], 3, 0).astype(np.float32),
        width=80,
        height=60,
    )
    return path


# ---- scenes -------------------------------------------------------------------------------------


def test_the_room_is_the_same_for_the_same_seed():
    first, second, other = (scenes.n3v(300, (64, 48), seed=seed).gaussians for seed in (3, 3, 4))
    for name in first:
        assert torch.equal(first[name], second[name])
    assert not torch.equal(first["means3D"], other["means3D"])


def test_the_room_has_what_trained_scenes_have(room):
    opacity = room.gaussians["opacities"].detach()
    assert (opacity > 0.7).float().mean() > 0.4 and (opacity < 0.3).float().mean() > 0.3
    assert opacity.max() <= scenes.LARGEST_OPACITY  # under the clamps of both renderers
    scale = room.gaussians["scales"].detach()
    assert scale[..., 2].median() < 0.5 * scale[..., 0].median()  # flat
    assert scale.amax() > 8 * scale[..., 0].median()  # a long tail
    length = room.gaussians["rotations"].norm(dim=-1)
    assert torch.allclose(length, torch.ones_like(length), atol=1e-5)


def test_gaussians_lie_flat_on_the_walls(room):
    rotations = reference.rotation_matrices(room.gaussians["rotations"].detach()[0])
    across = rotations[:, :, 2]  # world direction of the thin axis
    means = room.gaussians["means3D"].detach()[0] - torch.tensor([0, 0, scenes.ROOM_DEPTH])
    on_right = (means[:, 0] - scenes.ROOM[0]).abs() < 0.02
    assert on_right.sum() > 50
    assert (across[on_right, 0].abs() > 0.99).float().mean() > 0.9


def test_all_cameras_see_the_room(room):
    found = scenes.statistics(room)
    assert found["seen"] > 0.7 and found["covered"] > 0.1 and found["pairs_per_pixel"] > 5


def test_pairs_are_counted_as_the_tiles_under_the_squares(room):
    camera = room.cameras()[0]
    radii = rasterize(**room.gaussians, **camera, **room.shared()).radii[0]
    tiles = scenes._tiles(room, camera, radii)
    assert (tiles[radii == 0] == 0).all()
    whole = 22 * 16  # the image has 22 x 16 tiles
    assert tiles.max() <= whole
    sides = (2 * radii[radii > 0] / scenes.TILE).ceil() + 1
    assert (tiles[radii > 0] <= sides**2).all()


def test_the_garden_is_scaled_to_the_size_that_is_asked_for(garden_file):
    own, twice = scenes.garden(garden_file), scenes.garden(garden_file, (160, 120), count=100)
    assert (own.width, own.height, own.count) == (80, 60, 200)
    assert twice.count == 100
    assert torch.allclose(twice.focal, 2 * own.focal)
    assert torch.allclose(own.cameras()[0]["tanfov"], torch.tensor([[0.5, 1 / 3]]))


@pytest.mark.parametrize("name", scenes.SCENES)
def test_a_scene_has_the_order_that_is_asked_for(name, garden_file):
    parser = argparse.ArgumentParser()
    scenes.add_arguments(parser)
    flags = ["--scene", name, "--data", str(garden_file), "--count", "200", "--size", "48x32"]
    found = {
        order: scenes.chosen(parser, parser.parse_args([*flags, "--order", order])).gaussians
        for order in scenes.ORDERS
    }
    default = scenes.chosen(parser, parser.parse_args(flags)).gaussians
    order = spatial_order(found["given"]["means3D"][0])
    assert not torch.equal(order, torch.arange(len(order)))
    for key, given in found["given"].items():
        assert torch.equal(found["spatial"][key], given[:, order])
        assert torch.equal(default[key], found["spatial"][key])
        assert found["spatial"][key].is_leaf and found["spatial"][key].requires_grad


def test_a_moved_scene_wants_gradients(room):
    moved = room.to("cpu")
    assert all(t.is_leaf and t.requires_grad for t in moved.gaussians.values())


@pytest.mark.parametrize("text", ["640", "640x", "0x4", "ax4", "-3x4"])
def test_a_wrong_size_is_named(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not WxH"):
        scenes.size_of(text)


# ---- programs -----------------------------------------------------------------------------------


def printed(monkeypatch, capsys, module, *flags: str) -> tuple[int | None, dict]:
    monkeypatch.setattr(sys, "argv", [module.__name__, *flags])
    code = module.main()
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("scene", ["garden", "n3v"])
def test_the_benchmark_prints_times(scene, garden_file, monkeypatch, capsys):
    flags = ["--scene", scene, "--count", "100", "--size", "48x32", "--runs", "1"]
    flags += ["--data", str(garden_file), "--threads", "1"]
    _, found = printed(monkeypatch, capsys, rasterizer_garden, *flags)
    assert (found["width"], found["height"], found["gaussians"]) == (48, 32, 100)
    assert 0 < found["forward_ms"] and 0 < found["forward_backward_ms"]
    assert found["peak_mib"] is None  # no GPU memory was looked at


def test_the_garden_needs_its_file(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["rasterizer_garden.py"])
    with pytest.raises(SystemExit):
        rasterizer_garden.main()
    assert "needs --data" in capsys.readouterr().err


def test_the_profile_has_a_row_for_each_operator(monkeypatch, capsys):
    flags = ["--device", "cpu", "--count", "100", "--size", "48x32", "--runs", "2"]
    code, found = printed(monkeypatch, capsys, rasterizer_profile, *flags)
    assert code == 0
    names = [row["name"] for row in found["kernels"]]
    assert "_Rasterize" in names and "_RasterizeBackward" in names
    assert sum(row["us"] for row in found["kernels"]) == pytest.approx(found["total_us"], abs=0.1)


def test_the_ways_to_draw_several_experts_draw_the_same(monkeypatch):
    monkeypatch.setitem(single_pass.CASES, "demo", (400, (64, 48)))
    experts = single_pass.experts("demo", [], "cpu")
    (single,) = single_pass.single(experts)
    (joined,), (shared,) = single_pass.joined(experts), single_pass.shared(experts)
    separate, calls = single_pass.separate(experts), single_pass.two_calls(experts)
    for k in range(single_pass.EXPERTS):
        assert torch.equal(single.color[:, k], separate[k].color)
        assert torch.equal(joined.color[:, k], separate[k].color)
        apart = torch.cat([calls[2 * k].color, calls[2 * k + 1].color], 1)
        assert torch.equal(single.color[:, k], apart)
        assert float(single.color[:, k].abs().max()) > 0.1
    assert shared.color.shape == single.color.shape
    assert float((shared.alpha - single.alpha).min()) < -0.1


@pytest.mark.parametrize(("pass_", "wanted"), [("image", 0), ("router", 3), ("all", 18)])
def test_the_single_pass_is_compared_with_the_others(pass_, wanted, monkeypatch, capsys):
    monkeypatch.setitem(single_pass.CASES, "demo", (100, (48, 32)))
    assert len(single_pass.experts("demo", single_pass.PASSES[pass_], "cpu").leaves) == wanted
    flags = ["--case", "demo", "--pass", pass_, "--repeats", "1", "--threads", "1"]
    _, found = printed(monkeypatch, capsys, single_pass, *flags)
    (case,) = found["cases"]
    assert case["name"] == f"demo/{pass_}" and set(case["ms"]) == set(single_pass.WAYS)
    half = 0.0051  # times and ratio are rounded to hundredths
    single, separate = case["ms"]["single"], case["ms"]["separate"]
    low, high = (separate - half) / (single + half), (separate + half) / (single - half)
    assert low - half <= case["of_single"]["separate"] <= high + half


def test_times_are_medians_in_turns():
    calls = []
    works = {name: (lambda name=name: calls.append(name)) for name in ("a", "b")}
    found = clock.alternating_ms(works, 3, "cpu")
    assert calls == ["a", "b"] * (3 + clock.WARM_UP) and set(found) == {"a", "b"}


# ---- CPU and GPU --------------------------------------------------------------------------------


def test_one_device_agrees_with_itself(monkeypatch, capsys):
    code, found = printed(monkeypatch, capsys, device_agreement, "--device", "cpu")
    assert code == 0 and found["scenes"][0]["views"][0]["image"]["flipped"] == 0


def spoilt(monkeypatch, spoil) -> None:
    """Every second call of the rasteriser gives something else."""
    calls = []

    def draw(*args, **kwargs):
        calls.append(1)
        out = rasterize(*args, **kwargs)
        return spoil(out) if len(calls) % 2 else out

    monkeypatch.setattr(device_agreement, "rasterize", draw)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda out: out._replace(color=out.color + 2e-4),
        lambda out: out._replace(color=out.color.flip(-1)),
        lambda out: out._replace(depth=out.depth * 1.001),
        lambda out: out._replace(
            color=out.color.detach() + 1.01 * (out.color - out.color.detach())
        ),
        lambda out: out._replace(alpha=out.alpha * float("nan")),
    ],
    ids=["offset", "mirrored", "depth", "gradient", "nan"],
)
def test_devices_that_differ_are_noticed(monkeypatch, capsys, spoil):
    spoilt(monkeypatch, spoil)
    code, found = printed(monkeypatch, capsys, device_agreement, "--device", "cpu")
    assert code == 1 and not found["scenes"][0]["agree"]


def test_a_few_pixels_may_flip_and_are_counted(monkeypatch, capsys):
    def flip(out: RasterOutput) -> RasterOutput:
        bump = torch.zeros_like(out.color)
        bump[..., 10, 20:25] = 0.01
        return out._replace(color=out.color + bump)

    spoilt(monkeypatch, flip)
    code, found = printed(monkeypatch, capsys, device_agreement, "--device", "cpu")
    image = found["scenes"][0]["views"][0]["image"]
    assert code == 0 and image["flipped"] == 5 and image["max"] == pytest.approx(0.01, rel=1e-3)


# ---- gsplat -------------------------------------------------------------------------------------


def test_both_renderers_are_given_the_same_camera(room):
    k = rasterizer_gsplat.intrinsics(room)[0].double()
    camera, points = room.cameras()[0], room.gaussians["means3D"].detach()[0].double()
    ones = torch.ones_like(points[:, :1])
    clip = torch.cat([points, ones], -1) @ camera["projmatrices"][0].double()
    size = torch.tensor([room.width, room.height])
    ours = ((clip[:, :2] / clip[:, 3:] + 1) * size - 1) / 2
    seen = torch.cat([points, ones], -1) @ room.world_to_camera[0].double().T
    theirs = (seen[:, :3] @ k.T)[:, :2] / seen[:, 2:3] - 0.5  # pixel centres at integers
    before = seen[:, 2] > 0.5
    assert torch.allclose(ours[before], theirs[before], atol=1e-2)


def test_gsplats_images_must_be_ours(room):
    ours = rasterizer_gsplat.our_render(room)

    def shifted(camera: int):
        colour, alpha, depth = ours(camera)
        return colour.roll(1, 0), alpha, depth

    def close(camera: int):
        colour, alpha, depth = ours(camera)
        return colour + 1e-3, alpha, depth

    def nan(camera: int):
        colour, alpha, depth = ours(camera)
        return colour * float("nan"), alpha, depth

    same, near, far, broken = (
        rasterizer_gsplat.agreement(room, ours, theirs) for theirs in (ours, close, shifted, nan)
    )
    assert same["colour_max"] == 0 and rasterizer_gsplat.agree(same)
    assert near["colour_mean"] == pytest.approx(1e-3, rel=1e-2) and rasterizer_gsplat.agree(near)
    assert not rasterizer_gsplat.agree(far)
    assert not rasterizer_gsplat.agree(broken)


def test_each_renderer_is_timed_twice(room):
    small = scenes.n3v(50, (32, 24), views=2)
    render = rasterizer_gsplat.our_render(small)
    found = rasterizer_gsplat.measure(small, {"ours": render, "again": render}, 1)
    for row in found.values():
        assert set(row) == {"forward", "forward_backward"}
        assert all(part["ms"] > 0 and part["spread"] >= 1 for part in row.values())


# ---- exercise -----------------------------------------------------------------------------------


def test_every_operator_is_exercised(monkeypatch, capsys):
    code, found = printed(monkeypatch, capsys, exercise_operators, "--device", "cpu")
    assert code == 0 and set(found["operators"].values()) == {"ok"}


def test_a_package_without_an_exercise_is_a_failure(monkeypatch, capsys):
    monkeypatch.setattr(exercise_operators, "packages", lambda: ["new-operator"])
    code, found = printed(monkeypatch, capsys, exercise_operators, "--device", "cpu")
    assert code == 1 and "has no exercise" in found["operators"]["new-operator"]


def test_an_operator_that_fails_does_not_stop_the_others(monkeypatch, capsys):
    def broken(device: str) -> None:
        exercise_operators.check([torch.tensor([1.0, float("inf")])])

    exercises = {"hexplane-encoder": [broken, exercise_operators.hexplane]}
    monkeypatch.setattr(exercise_operators, "EXERCISES", exercises)
    flags = ["--device", "cpu", "--only", "hexplane-encoder"]
    code, found = printed(monkeypatch, capsys, exercise_operators, *flags)
    assert code == 1 and found["operators"]["hexplane"] == "ok"
    assert found["operators"]["broken"].startswith("FloatingPointError")


def test_a_package_that_does_not_compute_there_is_named():
    said = exercise_operators.computes_on("hexplane-encoder", "tpu")
    assert said.startswith("hexplane-encoder computes on cpu")


def test_gsplat_is_called_as_it_is_declared(room, monkeypatch):
    gsplat = pytest.importorskip("gsplat", reason="gsplat is a development need")
    declared, ours = inspect.signature(gsplat.rasterization), rasterizer_gsplat.our_render(room)
    seen = []

    def stand_in(*args, **kwargs):
        given = declared.bind(*args, **kwargs).arguments
        seen.append(given)
        colour, alpha, depth = ours(0)
        return torch.cat([colour, depth], -1)[None], alpha[None], {}

    monkeypatch.setattr(gsplat, "rasterization", stand_in)
    with torch.no_grad():
        theirs = rasterizer_gsplat.their_render(room, packed=True)(0)
        for image, own in zip(theirs, ours(0), strict=True):
            assert torch.equal(image, own)
    shapes = {k: tuple(v.shape) for k, v in seen[0].items() if isinstance(v, torch.Tensor)}
    assert shapes == {
        "means": (5000, 3),
        "quats": (5000, 4),
        "scales": (5000, 3),
        "opacities": (5000,),
        "colors": (5000, 16, 3),
        "viewmats": (1, 4, 4),
        "Ks": (1, 3, 3),
    }
    assert (seen[0]["width"], seen[0]["height"]) == (room.width, room.height)
