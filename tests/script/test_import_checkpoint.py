"""Imported runs deform points as the published formulas say, and nothing is dropped silently."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import published
import render_moe
import tiny
import tiny_moe
import train_moe
from arguments_MoDE.cli import parse_rendering
from hash_encoder import encode
from scene.experts import REGISTRY
from scene.mixture import Splats
from script.import_checkpoint import main
from script.importing.listing import Inventory, Listing
from script.importing.networks import encoder, kernel_resolutions
from training.checkpoint import Run, load_run
from training.moe import prune
from training.moe.files import load_moe
from training.rendering import render_sets
from utils.errors import UserError

TIMES = [0.0, 1 / 300, 0.19, 0.5, 0.77, 299 / 300, 1.0]


def imported(source: Path, *flags: str) -> Run:
    main([str(source), str(source.parent / "ours"), *flags])
    return load_run(source.parent / "ours")


@torch.no_grad()
def ours_at(run: Run, time: float) -> Splats:
    return run.model.deform(time, iteration=run.iteration)


def assert_same(ours: Splats, theirs: published.Splat, atol: float = 2e-5) -> None:
    """The same Gaussians; of scale and rotation what is drawn, their covariance."""
    for mine, name in ((ours.means, "xyz"), (ours.opacities, "opacity"), (ours.sh, "sh")):
        assert torch.allclose(mine, theirs[name], atol=atol, rtol=1e-4), name
    mine = published.covariance(ours.scales, ours.rotations)
    wanted = published.covariance(theirs["scale"], theirs["rotation"])
    size = wanted.flatten(1).norm(dim=1)[:, None, None]
    assert ((mine - wanted).abs() < 1e-4 * size).all()


def assert_same_activations(ours: Splats, theirs: published.Splat) -> None:
    """Stronger than the covariance: scales and rotations themselves."""
    assert torch.allclose(ours.scales, theirs["scale"], rtol=1e-4)
    cosine = (ours.rotations * theirs["rotation"]).sum(-1).abs()
    assert torch.allclose(cosine, torch.ones_like(cosine), atol=1e-5)


def moves(splats: list[Splats]) -> bool:
    return float((splats[0].means - splats[-1].means).abs().max()) > 1e-3


# ---- the formulas -------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [7, 8, 2])  # odd: time 0 lies on a row; even: between two
@pytest.mark.parametrize("depth", [1, 3])
def test_4dgs_deforms_as_published(tmp_path, times, depth):
    c, state = published.write_4dgs(tmp_path / "theirs", times, depth)
    run = imported(tmp_path / "theirs")
    assert run.iteration == 14000 and list(run.model.experts) == ["hexplane"]
    found = [ours_at(run, t) for t in TIMES]
    assert moves(found)
    for t, ours in zip(TIMES, found, strict=True):
        theirs = published.activated(published.hexplane_raw(state, c, t, depth))
        assert_same(ours, theirs)
        assert_same_activations(ours, theirs)


def test_4dgs_with_heads_switched_off(tmp_path):
    c, state = published.write_4dgs(tmp_path / "theirs", no_do=True, no_dshs=True, no_ds=True)
    run = imported(tmp_path / "theirs")
    for t in TIMES:
        theirs = published.hexplane_raw(state, c, t, off=("opacity", "sh", "scaling"))
        assert_same(ours_at(run, t), published.activated(theirs))
    left = json.loads((tmp_path / "ours" / "import.json").read_text())["left_out"]
    assert "deformation.pth: deformation_net.opacity_deform.* (4)" in left


def test_a_box_that_runs_from_low_to_high_is_not_mirrored(tmp_path):
    c, state = published.write_4dgs(tmp_path / "theirs")
    state["deformation_net.grid.aabb"] = state["deformation_net.grid.aabb"].flip(0)
    state["deformation_net.grid.aabb"][:, 1] = state["deformation_net.grid.aabb"][:, 1].flip(0)
    path = tmp_path / "theirs/point_cloud/iteration_14000/deformation.pth"
    torch.save(state, path)
    run = imported(tmp_path / "theirs")
    assert_same(ours_at(run, 0.3), published.activated(published.hexplane_raw(state, c, 0.3)))


@pytest.mark.parametrize(
    "iteration, changes",
    [
        (80000, {}),
        (6300, {}),  # rows still grow, late attributes fade in
        (400, {}),
        (80000, {"use_coarse_temporal_embedding": False, "no_dc": True}),
        (300, {"use_anneal": False, "no_c2f_temporal_embedding": True, "no_do": True}),
    ],
)
@pytest.mark.parametrize("depth", [1, 2])
def test_ed3dgs_deforms_as_published(tmp_path, iteration, changes, depth):
    root = tmp_path / "theirs"
    c, state, e, said = published.write_ed3dgs(root, depth, iteration, **changes)
    run = imported(root)
    found = [ours_at(run, t) for t in TIMES]
    assert moves(found)
    for t, ours in zip(TIMES, found, strict=True):
        theirs = published.embedding_raw(state, c, e, t, iteration, said, depth)
        assert_same(ours, published.activated(theirs))
        assert_same_activations(ours, published.activated(theirs))


@pytest.mark.parametrize("depth, directional", [(0, True), (1, True), (2, False)])
def test_grid4d_deforms_as_published(tmp_path, depth, directional):
    c, grid, net = published.write_grid4d(tmp_path / "theirs", 0.9, depth, directional)
    assert (c["xyz"].abs() > 0.9).any(dim=1).float().mean() > 0.1  # these get no features
    run = imported(tmp_path / "theirs")
    assert not run.config.model.white_background
    found = [ours_at(run, t) for t in TIMES]
    assert moves(found)
    for t, ours in zip(TIMES[::2], found[::2], strict=True):
        outputs = published.hash_outputs(grid, net, c["xyz"], t, 0.9, depth, directional)
        theirs = published.grid4d_splat(c, outputs)
        stretch = theirs["rotation"].norm(dim=-1)
        assert (stretch - 1).abs().max() > 0.1  # and is drawn as it is
        assert_same(ours, theirs)


def test_scale_xyz_scales_the_positions_that_the_grids_see(tmp_path):
    c, grid, net = published.write_grid4d(tmp_path / "theirs", bound=1.8, scale_xyz=2.0)
    run = imported(tmp_path / "theirs")
    outputs = published.hash_outputs(grid, net, c["xyz"], 0.4, 0.9, 0, True)
    assert_same(ours_at(run, 0.4), published.grid4d_splat(c, outputs))


@pytest.mark.parametrize("iteration", [30000, 700])
def test_mode_with_embeddings_mixes_as_published(tmp_path, iteration):
    made = published.write_mode(tmp_path / "theirs", hashed=False, iteration=iteration)
    run = imported(tmp_path / "theirs")
    assert list(run.model.experts) == ["hexplane", "embedding"]
    said = {k.removeprefix("emb_"): v for k, v in made["settings"].items() if k[:4] == "emb_"}
    for t in TIMES:
        a = published.hexplane_raw(made["hexplane"], made["c"], t)
        b = published.embedding_raw(made["emb"], made["c"], made["e"], t, iteration, said)
        assert ((a["rotation"] * b["rotation"]).sum(-1) < 0).any()  # blended without alignment
        theirs = published.mode_splat(a, b["xyz"], b["rotation"], made["control"], t)
        assert_same(ours_at(run, t), theirs)


def test_mode_with_hash_grids_mixes_as_published(tmp_path):
    made = published.write_mode(tmp_path / "theirs", hashed=True)
    run = imported(tmp_path / "theirs")
    assert list(run.model.experts) == ["hexplane", "hash"]
    for t in TIMES[::2]:
        a = published.hexplane_raw(made["hexplane"], made["c"], t)
        xyz, turn, _ = published.hash_outputs(
            made["grid"], made["net"], made["c"]["xyz"], t, 0.9, 1, True
        )
        b_rotation = made["c"]["rotation"] + turn
        assert_same(ours_at(run, t), published.mode_splat(a, xyz, b_rotation, made["control"], t))


def test_mode_that_mixes_positions_only(tmp_path):
    made = published.write_mode(tmp_path / "theirs", hashed=True, MoE_rotation=False)
    run = imported(tmp_path / "theirs")
    a = published.hexplane_raw(made["hexplane"], made["c"], 0.6)
    xyz, _, _ = published.hash_outputs(
        made["grid"], made["net"], made["c"]["xyz"], 0.6, 0.9, 1, True
    )
    theirs = published.mode_splat(a, xyz, a["rotation"], made["control"], 0.6)
    assert_same(ours_at(run, 0.6), theirs)


def test_colours_of_a_lower_degree(tmp_path):
    root = tmp_path / "theirs"
    c, state = published.write_4dgs(root, sh_degree=1)
    c["f_rest"] = c["f_rest"][:, :3]
    published.write_ply(root / "point_cloud/iteration_14000/point_cloud.ply", c)
    run = imported(root)
    assert run.model.gaussians.active_sh_degree == 1
    assert_same(ours_at(run, 0.3), published.activated(published.hexplane_raw(state, c, 0.3)))


@pytest.mark.parametrize("write", ["4dgs", "ed3dgs", "grid4d"])
def test_an_imported_run_is_rendered_and_measured(tmp_path, write):
    getattr(published, f"write_{write}")(tmp_path / "theirs")
    (tmp_path / "else").mkdir()
    run = imported(tmp_path / "theirs", "--source_path", str(tmp_path / "else"))
    arguments = parse_rendering(["-m", str(tmp_path / "ours")], "", "", tuple(REGISTRY))
    assert arguments.config.model.source_path == str(tmp_path / "else")
    assert arguments.config.model.time_convention == "published"
    record = render_sets(run, tiny.scene(), sets=["test"], lpips=(), quiet=True)["test"]
    assert record["psnr"] > 3 and record["gaussians"] == published.POINTS


def test_the_command_that_renders_it_can_be_pasted(tmp_path, capsys):
    published.write_4dgs(tmp_path / "theirs")
    main([str(tmp_path / "theirs"), str(tmp_path / "our run")])
    assert capsys.readouterr().out.rstrip().endswith(f"--model_path '{tmp_path}/our run'")


def test_the_scenes_path_is_saved_whole(tmp_path, monkeypatch):
    published.write_4dgs(tmp_path / "theirs")
    monkeypatch.chdir(tmp_path)
    for name in ("scene", "scenes"):
        (tmp_path / name).mkdir()
    run = imported(tmp_path / "theirs", "--source_path", "scenes/../scene/")
    assert run.config.model.source_path == str(tmp_path / "scene")


@pytest.mark.parametrize(("write", "convention"), [("4dgs", "full"), ("ed3dgs", "published")])
def test_times_of_hypernerf_are_as_the_familys_reader_has_them(tmp_path, write, convention):
    getattr(published, f"write_{write}")(tmp_path / "theirs")
    (tmp_path / "hand/camera").mkdir(parents=True)
    (tmp_path / "hand/dataset.json").touch()
    run = imported(tmp_path / "theirs", "--source_path", str(tmp_path / "hand"))
    assert run.config.model.time_convention == convention


@pytest.mark.parametrize("write", ["4dgs", "ed3dgs", "grid4d"])
@pytest.mark.parametrize("first", [True, False])
def test_an_imported_run_and_one_of_ours_are_mixed(tmp_path, write, first):
    """It does not know how many frames and cameras the scene has, so these are not compared."""
    scene, out = tiny_moe.scene_folder(tmp_path / "scene"), tmp_path / "moe"
    getattr(published, f"write_{write}")(tmp_path / "theirs")
    run = imported(tmp_path / "theirs", "--source_path", str(scene))
    own = tiny_moe.expert(tmp_path / "own", scene, "polynomial", model=run.config.model)
    experts = {"theirs": tmp_path / "ours", "own": own}
    names = list(experts) if first else list(experts)[::-1]
    line = ["router", "--expname", str(out), "--experts", *(f"{n}={experts[n]}" for n in names)]
    assert train_moe.main([*line, "--router_iterations", "3", *tiny_moe.COMMON]) == 0
    assert list(load_moe(out).runs) == names
    rows = [json.loads(row) for row in (out / "metrics.jsonl").read_text().splitlines()]
    assert any(row["event"] == "evaluate" and 0 < row["psnr"] < 60 for row in rows)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory) -> Path:
    """A MoE of an imported run, ``theirs``, and one of ours."""
    folder = tmp_path_factory.mktemp("mixture")
    scene = tiny_moe.scene_folder(folder / "scene")
    published.write_4dgs(folder / "theirs")
    run = imported(folder / "theirs", "--source_path", str(scene))
    own = tiny_moe.expert(folder / "own", scene, "polynomial", model=run.config.model)
    line = ["router", "--expname", str(folder / "moe"), "--router_iterations", "2"]
    experts = ["--experts", f"theirs={folder / 'ours'}", f"own={own}"]
    train_moe.main([*line, *experts, *tiny_moe.COMMON])
    return folder / "moe"


def test_a_mixture_with_an_imported_run_can_be_pruned_drawn_and_trained_again(
    mixture, tmp_path, monkeypatch
):
    monkeypatch.setattr(prune, "measure_fps", lambda *_, **__: (12.5, 3))  # quickly
    half, again = tmp_path / "half", tmp_path / "again"
    line = ["prune", "--moe", str(mixture), "--expname", str(half), "--share", "0.3"]
    train_moe.main([*line, *tiny_moe.COMMON])
    line = ["--no-lpips", "--skip_video", "--skip_train", "--skip_experts", "--skip_gates"]
    assert render_moe.main(["-m", str(half), *line, *tiny_moe.COMMON]) == 0
    experts = [f"{name}={half / 'experts' / name}" for name in ("theirs", "own")]
    line = ["router", "--expname", str(again), "--start_router", str(half), "--experts", *experts]
    assert train_moe.main([*line, "--router_iterations", "2", *tiny_moe.COMMON]) == 0


def test_an_imported_run_is_not_distilled(mixture, tmp_path, capsys):
    line = ["distill", "--moe", str(mixture), "--expert", "theirs", *tiny_moe.COMMON]
    line += ["--expname", str(tmp_path / "out")]
    theirs = str(mixture.parent / "ours")
    for more, named in (([], "--expert theirs"), (["--student", theirs], f"--student {theirs}")):
        said = tiny_moe.fails(capsys, lambda m=more: train_moe.main([*line, *m]))
        assert f"{named}: {theirs} is imported, and what is imported cannot be trained" in said
    assert not (tmp_path / "out").exists()


# ---- rows of hash grids -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "base, desired, rows",
    [([8, 8, 8], [32, 32, 16], 161_213), ([16, 16, 16], [64, 64, 128], 3_669_390)],
)
def test_levels_of_the_published_size_are_looked_up_as_the_kernel_does(base, desired, rows):
    """Resolutions in float32 are not those that rows were allocated for: strides differ."""
    growth = torch.tensor([(d / b) ** (1 / 31) for b, d in zip(base, desired, strict=True)])
    sizes = published.allocated(base, desired, 32, log2=19)
    assert sum(sizes) == rows
    state = {
        "xyt_encoding.embeddings": torch.randn(rows, 2),
        "xyt_encoding.offsets": torch.tensor([0, *itertools.accumulate(sizes)], dtype=torch.int32),
        "xyt_encoding.per_level_scale": growth,
        "xyt_encoding.base_resolution": torch.tensor(base),
    }
    grid, table = encoder(Inventory("deform.pth", state, Listing()), "xyt")
    kernel = kernel_resolutions(np.array(base), growth.numpy(), 32)
    assert (kernel != np.array(grid.resolutions)).any()  # else this tests nothing
    points = torch.rand(8, 3)
    wanted = published.lookup(state, "xyt", points.numpy())
    assert torch.allclose(encode(points, table, grid), wanted, atol=1e-3)


# ---- what is said, and what is refused ----------------------------------------------------------


def test_everything_in_the_folder_is_accounted_for(tmp_path, capsys):
    root = tmp_path / "theirs"
    published.write_mode(root, hashed=True, some_new_switch=3)
    (root / "chkpnt_fine_14000.pth").write_bytes(b"never opened")
    (root / "notes.txt").write_text("mine")
    (root / "point_cloud" / "coarse_iteration_3000").mkdir()
    main([str(root), str(tmp_path / "ours")])
    record = json.loads((tmp_path / "ours" / "import.json").read_text())
    assert record["family"] == "mode" and record["wrong"] == []
    left = record["left_out"]
    for name in (
        "point_cloud.ply: motion_* (9)",
        "point_cloud.ply: control_rx_* (4)",
        "deformation.pth: timenet.* (4)",
        "deform.pth (network): gaussian_scaling.* (2)",
        "point_cloud/iteration_30000/embnet.pth",
        "point_cloud/coarse_iteration_3000",
        "chkpnt_fine_14000.pth",
        "notes.txt",
        "cfg_args: some_new_switch",
    ):
        assert left[name]
    assert not any("f_dc" in name or "scale_0" in name for name in left)
    said = capsys.readouterr().out
    assert all(name in said for name in left) and "render_hash.py --model_path" in said


def test_a_recipe_laid_over_settings_that_lack_it(tmp_path):
    """Runs whose cfg_args has the defaults only: refused, until the recipe is named."""
    root = tmp_path / "theirs"
    c, state = published.write_4dgs(root, net_width=64, no_do=True)
    with pytest.raises(UserError, match="net_width = 64 but the tensors say 8; name the recipe"):
        main([str(root), str(tmp_path / "ours")])
    (tmp_path / "base.py").write_text("ModelHiddenParams = dict(net_width=8)\n")
    recipe = tmp_path / "recipe.py"
    recipe.write_text("_base_ = 'base.py'\nModelHiddenParams = dict(no_do=False, other=1)\n")
    run = imported(root, "--configs", str(recipe))
    assert_same(ours_at(run, 0.3), published.activated(published.hexplane_raw(state, c, 0.3)))


def test_a_setting_that_the_picture_depends_on_must_be_said(tmp_path):
    root = tmp_path / "theirs"
    *_, said = published.write_ed3dgs(root)
    del said["use_anneal"]
    published.write_settings(root, **said)
    with pytest.raises(UserError, match=r"cfg_args: does not say use_anneal.*--configs"):
        main([str(root), str(tmp_path / "ours")])


@pytest.mark.parametrize(
    "write, changes, match",
    [
        ("4dgs", {"apply_rotation": True}, "apply_rotation"),
        ("4dgs", {"static_mlp": True}, "static_mlp"),
        ("4dgs", {"empty_voxel": True}, "empty_voxel"),
        ("4dgs", {"convert_SHs_python": True}, "convert_SHs_python"),
        ("grid4d", {"warm_up": 30000}, "before warm_up = 30000"),
        ("grid4d", {"source_path": "/data/hypernerf/vrig-chicken"}, "HyperNeRF"),
        ("mode", {"moe_top_k": 1}, "moe_top_k = 1"),
        ("mode", {"no_dr": True}, "rotation is mixed"),
        ("mode", {"emb_no_dr": True}, "rotation is mixed"),
    ],
)
def test_what_would_look_wrong_is_refused_unless_it_is_allowed(tmp_path, write, changes, match):
    root = tmp_path / "theirs"
    if write == "mode":
        published.write_mode(root, hashed=False, **changes)
    else:
        getattr(published, f"write_{write}")(root, **changes)
    with pytest.raises(UserError, match=f"{match}.*--allow_partial"):
        main([str(root), str(tmp_path / "ours")])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["theirs"]
    run = imported(root, "--allow_partial")
    assert run.model is not None
    record = json.loads((tmp_path / "ours" / "import.json").read_text())
    assert any(match in line for line in record["wrong"])


def test_gaussians_that_are_held_still_are_said(tmp_path):
    root = tmp_path / "theirs"
    published.write_4dgs(root)
    path = root / "point_cloud/iteration_14000/deformation_table.pth"
    torch.save(torch.arange(published.POINTS) > 2, path)
    with pytest.raises(UserError, match="3 Gaussians .*deformation_table"):
        main([str(root), str(tmp_path / "ours")])


def test_tensors_that_no_known_network_has_are_refused(tmp_path):
    root = tmp_path / "theirs"
    _, state = published.write_4dgs(root)
    path = root / "point_cloud/iteration_14000/deformation.pth"
    torch.save(state | published.linear("deformation_net.gate", 8, 8), path)
    with pytest.raises(UserError, match=r"deformation_net\.gate\.weight: not of a network"):
        main([str(root), str(tmp_path / "ours")])


def test_families_and_iterations_are_told_apart(tmp_path, capsys):
    published.write_ed3dgs(tmp_path / "e", iteration=5000)
    published.write_ed3dgs(tmp_path / "e", iteration=30000)
    main([str(tmp_path / "e"), str(tmp_path / "last")])
    assert load_run(tmp_path / "last").iteration == 30000
    main([str(tmp_path / "e"), str(tmp_path / "first"), "--iteration", "5000"])
    assert load_run(tmp_path / "first").iteration == 5000
    assert "point_cloud/iteration_30000: another iteration" in capsys.readouterr().out
    with pytest.raises(UserError, match="has only 5000, 30000"):
        main([str(tmp_path / "e"), str(tmp_path / "x"), "--iteration", "7"])
    published.write_grid4d(tmp_path / "g", iteration="best")
    with pytest.raises(UserError, match=r"no iter\.txt"):
        main([str(tmp_path / "g"), str(tmp_path / "x")])
    (tmp_path / "g/deform/iteration_best/iter.txt").write_text("17000\n")
    main([str(tmp_path / "g"), str(tmp_path / "best")])
    assert load_run(tmp_path / "best").iteration == 17000
    with pytest.raises(UserError, match=r"deformation\.pth is missing"):
        main([str(tmp_path / "g"), str(tmp_path / "x"), "--family", "4dgs"])


def test_an_existing_folder_is_not_touched(tmp_path):
    published.write_4dgs(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    with pytest.raises(UserError, match="is there already"):
        main([str(tmp_path / "theirs"), str(tmp_path / "ours")])
    assert not list((tmp_path / "ours").iterdir())


@pytest.mark.parametrize("images", ["/tmp", "../others", "sub/../../others"])
def test_pictures_outside_of_the_scene_are_not_read(tmp_path, images):
    published.write_4dgs(tmp_path / "theirs", images=images)
    assert imported(tmp_path / "theirs").config.model.images == "images"
    record = json.loads((tmp_path / "ours" / "import.json").read_text())
    assert images in record["assumed"]["images"]


@pytest.mark.parametrize("scene", ["nowhere", "~nobody/scene", "n" * 5000, "theirs/cfg_args"])
def test_a_scene_that_is_not_there_is_named(tmp_path, monkeypatch, scene):
    published.write_4dgs(tmp_path / "theirs")
    monkeypatch.chdir(tmp_path)
    what = "is a file" if "cfg_args" in scene else "no such folder"
    with pytest.raises(UserError, match=f"^--source_path {scene[:50]}.*: {what}"):
        main([str(tmp_path / "theirs"), str(tmp_path / "ours"), "-s", scene])
    assert not (tmp_path / "ours").exists()
