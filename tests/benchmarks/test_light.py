"""The times of light: what is counted for them, what is measured, and the fields of the results."""

from __future__ import annotations

import importlib
import json
import sys

import pytest
import torch

from benchmarks import compare, light, rasterizer_garden, rasterizer_light, scenes
from diff_gaussian_rasterization import RasterOutput, _native, rasterize, reference

TILE, TILE_ROWS = 16, 32  # of the lists
# Pixels that the rasteriser looks at together.
LANES = {"avx512": 16, "avx2": 8}.get(_native.isa, 4)
LANES_OF_DOUBLES = 4


# ---- counting -----------------------------------------------------------------------------------


def stacked(count: int, opacity: float, size: tuple[int, int], **layers) -> RasterOutput:
    """Splats behind each other that are far larger than the image."""
    width, height = size
    camera = dict(
        viewmatrices=torch.eye(4)[None],
        projmatrices=torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, -0.1, 0]])[
            None
        ],
        camposs=torch.zeros(1, 3),
        tanfov=torch.ones(1, 2),
    )
    means = torch.tensor([[0.0, 0.0, 2.0 + i] for i in range(count)])[None]
    return rasterize(
        means.requires_grad_(),
        torch.full((1, count, 1), opacity),
        colors=torch.rand(1, count, 3),
        cov3Ds=torch.tensor([[1e4, 0, 0, 1e4, 0, 1e-4]]).expand(count, 6)[None].contiguous(),
        **camera,
        width=width,
        height=height,
        background=torch.zeros(3),
        **layers,
    )


@pytest.mark.parametrize(
    ("opacity", "looked_at", "blended"),
    [
        (0.98, 3, 2),  # transmittance 0.02, 0.0004; 8e-6 would be too little
        (0.5, 5, 5),
        (0.003, 0, 0),  # below 1/255: the footprint is empty
    ],
)
@pytest.mark.parametrize("size", [(32, 16), (21, 19)], ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_a_stack_is_looked_at_until_pixels_stop(opacity, looked_at, blended, size, threads):
    found = rasterizer_light.count_work(stacked(5, opacity, size), threads)
    pixels, groups = size[0] * size[1], -(-size[0] // LANES) * size[1]
    listed, tiles = (5 if blended else 0), -(-size[0] // TILE) * -(-size[1] // TILE_ROWS)
    assert found == {
        "looked_at": looked_at * pixels,
        "blended": blended * pixels,
        "lanes": looked_at * groups * LANES,
        "looked_at_back": blended * pixels,
        "listed": listed,
        "tiles": listed * tiles,
        "drawn": blended,
    }


def test_layers_with_a_transmittance_each_are_counted_each():
    one = rasterizer_light.count_work(stacked(3, 0.5, (21, 19)))
    two = rasterizer_light.count_work(stacked(6, 0.5, (21, 19), layers=[3, 3]))
    assert two == {name: 2 * number for name, number in one.items()}


def row_touched(splats: reference.Splats, i: int, tau: float, pad: float, size) -> torch.Tensor:
    """(H, W) whether the ellipse of level ``tau`` reaches the group that a pixel lies in."""
    width, height = size
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    xx, xy, yy = splats.conic[i]
    lanes = LANES_OF_DOUBLES
    low = xs // lanes * lanes - splats.centre[i, 0] - pad
    high = low + lanes - 1 + 2 * pad
    touched = torch.zeros(height, width, dtype=torch.bool)
    for shift in (-pad, 0.0, pad):
        dy = ys - splats.centre[i, 1] + shift
        dx = torch.minimum(torch.maximum(-xy / xx * dy, low), high)
        touched |= xx * dx * dx + 2 * xy * dx * dy + yy * dy * dy <= tau
    x0, y0, x1, y1 = splats.tiles[i]
    inside = (xs >= TILE * x0) & (xs < TILE * x1) & (ys >= TILE * y0) & (ys < TILE * y1)
    return touched & inside


def counted(splats: reference.Splats, opacities: torch.Tensor, size, pad: float) -> dict[str, int]:
    """The same counts in plain PyTorch, all pixels at once; footprints are larger by ``pad``."""
    width, height = size
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    t = torch.ones(height, width, dtype=torch.float64)
    going = torch.ones_like(t, dtype=torch.bool)
    so_far, back = torch.zeros_like(t, dtype=torch.long), torch.zeros_like(t, dtype=torch.long)
    sums = dict(looked_at=0, blended=0, lanes=0, listed=0, tiles=0, drawn=0)
    order = torch.argsort(splats.depth, stable=True)
    for i in order[splats.visible[order] & (opacities[order] >= 1 / 255)].tolist():
        tau = 2 * torch.log(255 * opacities[i]).item() * (1 + pad / 10) + pad / 10
        whole_tiles = (-(-width // TILE) * TILE, -(-height // TILE_ROWS) * TILE_ROWS)
        everywhere = row_touched(splats, i, tau, pad, whole_tiles)
        touched = everywhere[:height, :width]
        xx, xy, yy = splats.conic[i]
        dx, dy = splats.centre[i, 0] - xs, splats.centre[i, 1] - ys
        alpha = opacities[i] * torch.exp(-0.5 * (xx * dx * dx + yy * dy * dy) - xy * dx * dy)
        seen = going & touched & (alpha >= 1 / 255)
        after = t * (1 - alpha.clamp(max=0.99))
        drawn = seen & (after >= 1e-4)
        lanes = LANES_OF_DOUBLES
        padded = torch.nn.functional.pad(touched & going, (0, -width % lanes))
        sums["looked_at"] += (touched & going).sum().item()
        sums["blended"] += drawn.sum().item()
        sums["lanes"] += lanes * padded.unflatten(1, (-1, lanes)).any(-1).sum().item()
        rows, columns = torch.nonzero(everywhere, as_tuple=True)
        tiles = set(zip((rows // TILE_ROWS).tolist(), (columns // TILE).tolist(), strict=True))
        sums["tiles"] += len(tiles)
        sums["listed"] += bool(tiles)
        sums["drawn"] += drawn.any().item()
        so_far += touched
        back = torch.where(drawn, so_far, back)
        going &= ~(seen & ~drawn)
        t = torch.where(drawn, after, t)
    return sums | {"looked_at_back": back.sum().item()}


def test_pairs_are_those_of_plain_pytorch():
    scene = scenes.n3v(150, (53, 39))
    gaussians = {name: tensor.detach().double() for name, tensor in scene.gaussians.items()}
    gaussians["scales"] *= 6  # until pixels stop
    gaussians["means3D"].requires_grad_()
    shared = scene.shared() | {"background": torch.zeros(3, dtype=torch.float64)}
    camera = {name: tensor.double() for name, tensor in scene.cameras()[0].items()}
    found = rasterizer_light.count_work(rasterize(**gaussians, **camera, **shared), 2)

    matrices = (tensor[0] for tensor in camera.values())
    cov = reference.covariances(gaussians["scales"][0], gaussians["rotations"][0], 1.0)
    view = reference.Camera(*matrices, scene.width, scene.height)
    splats = reference.project(view, gaussians["means3D"].detach()[0], cov, None)
    least, most = (
        counted(splats, gaussians["opacities"][0, :, 0], (53, 39), pad) for pad in (0.0, 0.03)
    )
    assert found["blended"] == least["blended"] > 5000
    for name, number in found.items():
        assert least[name] <= number <= most[name], name
        assert most[name] <= 1.03 * least[name]  # the margins of footprints are all between them
    assert found["blended"] < 0.9 * found["looked_at"]
    assert found["looked_at_back"] < found["looked_at"] < found["lanes"]


# ---- measuring ----------------------------------------------------------------------------------


def test_more_arithmetic_takes_longer():
    ns = rasterizer_light.bare_ns(turns=5)
    assert 0 < ns["look"] < ns["blend"] < ns["gather"]
    assert 0 < ns["footprint"] < ns["project"] < ns["project_back"]
    assert 0 < ns["color"] < ns["color_back"]


def test_a_pair_that_is_only_looked_at_costs_less():
    ns = dict.fromkeys(rasterizer_light.SPLAT_WORKS, 0.0) | dict(look=1.0, blend=3.0, gather=6.0)
    counts = dict(looked_at=5e6, blended=2e6, looked_at_back=4e6, lanes=9e6)
    counts |= dict(listed=3, tiles=4, drawn=2)
    found = rasterizer_light.arithmetic_ms(counts, ns)
    assert found["forward"] == pytest.approx({"pixels": 5 + 2 * 2, "splats": 0})
    assert found["backward"] == pytest.approx({"pixels": 4 + 2 * 5, "splats": 0})


def test_splats_cost_what_their_stages_and_tiles_do():
    ns = dict(look=0.0, blend=0.0, gather=0.0, project=1.0, footprint=2.0, spans=3.0, color=4.0)
    ns |= dict(project_back=5.0, color_back=6.0)
    counts = dict(looked_at=0, blended=0, looked_at_back=0, listed=4e6, tiles=7e6, drawn=2e6)
    found = rasterizer_light.arithmetic_ms(counts, ns)
    assert found["forward"]["splats"] == pytest.approx(4 * (1 + 2 + 4) + 7 * 3)
    assert found["backward"]["splats"] == pytest.approx(2 * (5 + 6))


def test_bytes_are_counted_once_each_way():
    x, grid = torch.zeros(10, 3), torch.zeros(7, 2, requires_grad=True)
    out = torch.zeros(10, 2, dtype=torch.float64)
    assert light.forward_bytes([x, grid], out) == 120 + 56 + 160
    assert light.forward_backward_bytes([x, grid], out) == 2 * (120 + 56 + 160) + 56


def test_a_time_is_given_as_a_multiple_of_light():
    assert light.beside(6.0, 2e6, 1e9) == {"light_ms": 2.0, "of_light": 3.0}
    assert light.beside(6.0, 4e6, 1e9, "forward") == {
        "light_forward_ms": 4.0,
        "forward_of_light": 1.5,
    }


def test_a_machine_has_some_speed():
    assert 1e8 < light.bandwidth(8) < 1e13
    assert 1e8 < light.multiply_add_peak(1_000_000) < 1e14


# ---- results ------------------------------------------------------------------------------------


@pytest.fixture
def printed(root, monkeypatch, capsys):
    """Runs a program of the folder; returns its JSON object."""
    monkeypatch.syspath_prepend(root / "benchmarks")
    copy = importlib.import_module("light")
    monkeypatch.setattr(copy, "COPIED_MIB", 8)
    before = torch.get_num_threads()

    def run(name: str, *flags: str) -> dict:
        module = importlib.import_module(name)
        monkeypatch.setattr(sys, "argv", [name, *flags])
        module.main()
        return json.loads(capsys.readouterr().out)

    yield run
    torch.set_num_threads(before)


def test_the_rasteriser_is_set_beside_its_light(monkeypatch, capsys):
    flags = "--scene n3v --count 200 --size 48x32 --runs 1 --threads 2".split()
    monkeypatch.setattr(rasterizer_light, "TURNS", 2)
    monkeypatch.setattr(sys, "argv", ["rasterizer_garden.py", *flags])
    before = torch.get_num_threads()
    rasterizer_garden.main()
    torch.set_num_threads(before)
    found = json.loads(capsys.readouterr().out)
    for name in ("forward", "forward_backward"):
        ratio = found[f"{name}_ms"] / found[f"light_{name}_ms"]
        assert found[f"{name}_of_light"] == pytest.approx(ratio, rel=0.02) and ratio > 1
        assert found[f"{name}_of_pixels"] > found[f"{name}_of_light"]
    assert found["light_forward_backward_ms"] > found["light_forward_ms"] > 0
    parts, counts = found["light_parts_ms"], found["counts"]
    assert found["light_forward_ms"] == pytest.approx(sum(parts["forward"].values()), abs=0.003)
    both = sum(ms for part in parts.values() for ms in part.values())
    assert found["light_forward_backward_ms"] == pytest.approx(both, abs=0.005)
    assert 0 < counts["blended"] <= counts["looked_at"] <= counts["lanes"]
    assert 0 < counts["drawn"] <= counts["listed"] <= counts["tiles"]
    ratio = found["one_thread_forward_ms"] / found["forward_ms"]
    assert found["scaling"] == pytest.approx(ratio, abs=0.02)


def test_one_thread_is_not_set_against_itself():
    found = rasterizer_garden.measure(scenes.n3v(50, (32, 24), views=1), 1, 1)
    assert "scaling" not in found and "one_thread_forward_ms" not in found


@pytest.mark.parametrize("name", ["hexplane", "hash_grid"])
def test_encoders_are_set_beside_the_bytes_that_they_move(name, printed):
    found = printed(name, "--threads", "1", "--repeats", "1", "--points", "40")
    assert {case["points"] for case in found["cases"]} == {40}
    for case in found["cases"]:
        assert case["light_forward_backward_ms"] > case["light_forward_ms"] > 0
        ratio = case["forward_ms"] / case["light_forward_ms"]
        assert case["forward_of_light"] == pytest.approx(ratio, rel=0.05)


def test_rows_that_no_point_touches_need_not_move(printed):
    printed("hash_grid", "--threads", "1", "--repeats", "1", "--points", "1")
    module = importlib.import_module("hash_grid")
    grid = module.HashGrid(2, 1, 2, 8, 8, 10)  # 64 rows of 2 features; a point touches 4
    x, table = torch.full((1, 2), 0.53), torch.ones(grid.rows, 2, requires_grad=True)
    forward, both = module.moved_bytes(x, table, grid)
    assert forward == 4 * (2 + 4 * 2 + 2)
    assert both == 2 * forward + 4 * 2 * grid.rows  # the gradient is written everywhere


def test_the_loss_and_the_neighbours_are_set_beside_the_bytes_that_they_move(printed):
    tiny = "--width 64 --height 48 --threads 1 --repeats 1".split()
    loss = printed("ssim", *tiny)
    ratio = loss["native_ms"] / loss["light_ms"]
    assert ratio > 1 and loss["native_of_light"] == pytest.approx(ratio, rel=0.5)  # rounding
    found = printed("knn", "--points", "2000", "--threads", "1", "--repeats", "1")
    for case in found["cases"].values():
        assert case["of_light"] == pytest.approx(case["ms"] / case["light_ms"], rel=0.05)


def test_light_is_shown_and_never_counted(tmp_path):
    for name, ms in (("before.json", 1.0), ("after.json", 9.0)):
        result = {"light_forward_ms": ms, "forward_ms": 10.0, "forward_of_light": 10 / ms}
        (tmp_path / name).write_text(json.dumps(result))
    sides = [str(tmp_path / name) for name in ("before.json", "after.json")]
    assert compare.main([*sides, "--threshold", "1.1"]) == 0
    labels = compare.measurements(json.loads((tmp_path / "after.json").read_text()))
    assert list(labels) == ["light_forward_ms", "forward_ms"]
