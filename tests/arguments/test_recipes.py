"""The recipes in the repository: all load, all are valid, and they hold the published numbers."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import train_emb
import train_hash
from arguments_MoDE.cli import parse_training
from arguments_MoDE.config import Config
from arguments_MoDE.members import parse_members
from arguments_MoDE.recipe import read_recipe
from arguments_MoDE.saved import check_recipe
from arguments_MoDE.values import merged, validate
from scene.experts import REGISTRY

FOLDER = Path(__file__).resolve().parents[2] / "arguments_MoDE"
ALL = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.glob("*/**/*.py"))
MIXTURES = [name for name in ALL if name.startswith("moe/")]  # of `train_moe.py`
RECIPES = [name for name in ALL if name not in MIXTURES]
SCENES = (
    "coffee_martini",
    "cook_spinach",
    "cut_roasted_beef",
    "flame_salmon_1",
    "flame_steak",
    "sear_steak",
)
# Data set -> its scenes, each with a recipe for both families.
SETS = {
    "technicolor": ("birthday", "fabien", "painter", "theater", "train"),
    "hypernerf": ("broom2", "3dprinter", "chicken", "banana"),
    "dnerf": (
        "bouncingballs",
        "hellwarrior",
        "hook",
        "jumpingjacks",
        "lego",
        "mutant",
        "standup",
        "trex",
    ),
    "panoptic": ("basketball", "boxes", "football", "juggle", "softball", "tennis"),
}
SCENE_RECIPES = [(kind, scene) for kind, scenes in SETS.items() for scene in scenes]
DURATIONS = {"technicolor": 50, "hypernerf": 0, "dnerf": 300, "panoptic": 150}
TIME_ROWS = {  # of HexPlane: about half of the frames
    "technicolor/birthday": 25,
    "hypernerf/broom2": 100,
    "hypernerf/3dprinter": 100,
    "hypernerf/chicken": 80,
    "hypernerf/banana": 250,
    "dnerf/bouncingballs": 75,
    "dnerf/hellwarrior": 50,
    "dnerf/hook": 50,
    "dnerf/jumpingjacks": 100,
    "dnerf/lego": 25,
    "dnerf/mutant": 75,
    "dnerf/standup": 75,
    "dnerf/trex": 100,
    "panoptic/boxes": 75,
}


def resolved(name: str) -> Config:
    """The settings that a recipe gives, none of its keys without effect."""
    notes: list[str] = []
    config = merged(Config(), read_recipe(FOLDER / name, notes.append))
    assert not notes
    return config


def as_trained(name: str, family: str, run: Path) -> Config:
    """What ``train_emb.py`` or ``train_hash.py`` would train by a recipe."""
    program = {"emb": train_emb, "hash": train_hash}[family]
    argv = ["-s", "scene", "-m", str(run), "--configs", str(FOLDER / name)]
    script = f"train_{family}.py"
    return parse_training(argv, script, "", tuple(REGISTRY), program.EXPERTS).config


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_loads_and_is_valid(name):
    validate(resolved(name), tuple(REGISTRY))


@pytest.mark.parametrize("name", RECIPES)
def test_few_gaussians_are_not_pruned_by_size(name):
    """Published programs prune above 200,000 only; by size it costs a small run several dB."""
    opt = resolved(name).opt
    reset = opt.opacity_reset_interval < opt.iterations  # before, no limit of size counts
    unlimited = min(opt.max_screen_size, opt.max_world_scale) >= 1e9
    assert opt.prune_min_gaussians >= 200000 or not reset or unlimited


@pytest.mark.parametrize("name", MIXTURES)
def test_every_recipe_of_several_models_gives_its_members(name, tmp_path, capsys):
    argv = ["-s", "scene", "-m", str(tmp_path), "--configs", str(FOLDER / name)]
    _, members = parse_members(argv, "train_moe.py experts", "", tuple(REGISTRY))
    assert len(members) >= 2 and capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ALL)
def test_every_recipe_says_what_it_is(name):
    text = ast.get_docstring(ast.parse((FOLDER / name).read_text()))
    assert text
    if Path(name).stem == "default_cpu" and not name.startswith(("emb", "hash")):
        assert "gives up" in text.lower()


def test_every_scene_has_its_recipes():
    folders = [f"dynerf/config_rot_{i}" for i in range(3)] + ["emb/config_0", "hash/config_0"]
    expected = {f"{folder}/{scene}.py" for folder in folders for scene in ("default", *SCENES)}
    for folder in ("dynerf/config_rot_0", "emb/config_0", "hash/config_0"):
        expected |= {f"{folder}/{scene}_cpu.py" for scene in ("default", *SCENES)}
    expected |= {
        f"{kind}/default{family}{cpu}.py"
        for kind in SETS
        for family in ("", "_hash")
        for cpu in ("", "_cpu")
    }
    assert expected | {"demo/demo.py", "demo/demo_hash.py"} <= set(RECIPES)


@pytest.mark.parametrize("family", ["emb", "hash"])
@pytest.mark.parametrize("kind, scene", [*SCENE_RECIPES, *((kind, "default") for kind in SETS)])
def test_scenes_of_the_other_data_sets_have_a_recipe_for_each_family(
    kind, scene, family, tmp_path, capsys
):
    cpu = ("", "_cpu") if scene == "default" else ("",)
    for ending in cpu:
        name = f"{kind}/{scene}{'_hash' if family == 'hash' else ''}{ending}.py"
        config = as_trained(name, family, tmp_path)
        assert capsys.readouterr().err == ""
        second = {"emb": "embedding", "hash": "hash"}[family]
        assert config.hidden.experts == ["hexplane", second]
        assert config.model.duration == DURATIONS[kind] or ending


@pytest.mark.parametrize("kind, scene", SCENE_RECIPES)
def test_both_families_of_a_scene_differ_in_the_second_expert_only(kind, scene):
    emb, hashed = (resolved(f"{kind}/{scene}{family}.py") for family in ("", "_hash"))
    hashed.hidden.experts = emb.hidden.experts
    hashed.ModelHashParams = emb.hash
    for config in (emb, hashed):
        for name in vars(config.opt):
            if name.startswith(("hash_", "embnet_", "embedding_", "offsets_")):
                setattr(config.opt, name, None)
    assert emb == hashed


@pytest.mark.parametrize("name", TIME_ROWS)
def test_rows_of_time_of_the_scenes(name):
    for family in ("", "_hash"):
        config = resolved(f"{name}{family}.py")
        assert config.hidden.kplanes_config["resolution"] == [64, 64, 64, TIME_ROWS[name]]
    rows = config.emb
    if not name.startswith("panoptic"):
        assert rows.emb_max_embeddings == TIME_ROWS[name] == 5 * rows.emb_min_embeddings


def test_published_numbers_of_the_other_data_sets():
    technicolor, train = resolved("technicolor/painter.py"), resolved("technicolor/train.py")
    assert technicolor.model.resolution == 1
    assert (technicolor.opt.embnet_lr_init, technicolor.opt.embnet_lr_final) == (1.6e-3, 1.6e-4)
    assert (train.opt.embnet_lr_init, train.opt.embnet_lr_final) == (5e-3, 5e-5)
    hypernerf = resolved("hypernerf/chicken.py")
    for emb in (technicolor.emb, hypernerf.emb):  # as all of E-D3DGS's configurations
        assert emb.emb_use_coarse_temporal_embedding
    assert (hypernerf.opt.iterations, hypernerf.opt.batch_size) == (14000, 2)
    assert (hypernerf.hidden.multires, hypernerf.hidden.net_width) == ([1, 2, 4], 128)
    assert hypernerf.hidden.no_do and hypernerf.hidden.no_dshs and hypernerf.emb.emb_no_dc
    printer = resolved("hypernerf/3dprinter_hash.py").hash.grid_args
    assert printer["canonical_desired_resolution"] == 256
    assert printer["deform_desired_resolution"] == [512, 512, 32]
    banana, lego = resolved("hypernerf/banana_hash.py").opt, resolved("dnerf/lego_hash.py").opt
    assert (banana.hash_grid_lr_init, banana.hash_grid_lr_final) == (1.6e-3, 1.6e-5)
    assert (lego.hash_grid_lr_init, lego.hash_grid_lr_final) == (4e-2, 4e-4)
    assert resolved("dnerf/trex_hash.py").hash.hash_space_smooth_weight == 0.5


@pytest.mark.parametrize("mixture", ["n3v/four", "n3v/two", "technicolor/three"])
def test_published_numbers_of_the_members_of_mixtures(mixture, tmp_path):
    argv = ["-s", "scene", "-m", str(tmp_path), "--configs", str(FOLDER / f"moe/{mixture}.py")]
    _, members = parse_members(argv, "train_moe.py experts", "", tuple(REGISTRY))
    opts = {member.name: member.arguments.config.opt for member in members}
    largest = opts["polynomial"].max_screen_size, opts["polynomial"].max_world_scale
    assert min(largest) > 1e6  # SpacetimeGaussians prunes faint ones only
    keyframe = opts["keyframe"]
    assert (keyframe.rotation_lr, keyframe.keyframe_rotation_lr) == (1e-5, 1e-3)
    if mixture.startswith("technicolor"):  # Painter's, of 0.8 L1 + 0.2 (1 - SSIM)
        scale = 1 / (1 + keyframe.lambda_dssim)
        assert scale * keyframe.densify_grad_threshold_fine_init == pytest.approx(2.5e-4)
        assert scale * keyframe.densify_grad_threshold_after == pytest.approx(2.5e-4)


@pytest.mark.parametrize("scene", [*SCENES, "default", "coffee_martini_cpu", "sear_steak_cpu"])
def test_training_and_rendering_recipes_of_the_published_commands_agree(scene):
    train, render = f"dynerf/config_rot_0/{scene}.py", f"emb/config_0/{scene}.py"
    assert resolved(train) == resolved(render)
    check_recipe(resolved(train), read_recipe(FOLDER / render))


@pytest.mark.parametrize("scene", [*SCENES, "default", "coffee_martini_cpu", "sear_steak_cpu"])
def test_recipes_of_the_hash_pair_agree(scene, tmp_path):
    render = f"hash/config_0/{scene}.py"
    train = str(FOLDER / f"dynerf/config_rot_0/{scene}.py")
    argv = ["-s", "scene", "-m", str(tmp_path), "--configs", train]
    trained = parse_training(argv, "train_hash.py", "", tuple(REGISTRY), train_hash.EXPERTS).config
    check_recipe(trained, read_recipe(FOLDER / render))
    trained.model.source_path = trained.model.model_path = ""
    assert trained == resolved(render)


@pytest.mark.parametrize("scene", SCENES)
def test_published_numbers_of_the_hash_grids(scene):
    config = resolved(f"hash/config_0/{scene}.py")
    fine, weight = (
        ([64, 64], 0.0)
        if scene in ("coffee_martini", "flame_salmon_1")
        else (
            [512, 512],
            0.5,
        )
    )
    assert config.hash.grid_args["deform_desired_resolution"] == [*fine, 128]
    assert config.hash.grid_args["deform_base_resolution"] == [16, 16, 16]
    assert config.hash.hash_space_smooth_weight == config.hash.hash_time_smooth_weight == weight
    assert config.hash.network_args == {"depth": 0, "width": 256, "directional": True}
    assert (config.opt.hash_net_lr_init, config.opt.hash_grid_lr_init) == (1.6e-4, 8e-3)


@pytest.mark.parametrize("scene", SCENES)
def test_published_numbers_of_the_headline_recipe(scene):
    config = resolved(f"dynerf/config_rot_0/{scene}.py")
    assert (config.opt.iterations, config.opt.coarse_iterations) == (30000, 3000)
    assert config.opt.batch_size == (4 if scene in ("coffee_martini", "flame_salmon_1") else 2)
    assert (config.opt.densify_until_iter, config.opt.opacity_reset_interval) == (10000, 60000)
    assert (config.opt.gaiting_from_iter, config.hidden.control_num) == (3000, 3)
    assert (config.hidden.MoE_mean, config.hidden.MoE_rotation) == (True, True)
    assert config.hidden.kplanes_config["output_coordinate_dim"] == 16
    assert config.hidden.kplanes_config["resolution"] == [64, 64, 64, 150]
    assert (config.hidden.multires, config.hidden.net_width) == ([1, 2], 128)
    assert config.hidden.plane_tv_weight == 2e-4
    assert config.hidden.time_smoothness_weight == 1e-3
    assert config.hidden.l1_time_planes == 1e-4
    assert not (config.hidden.no_ds or config.hidden.no_do or config.hidden.no_dshs)
    assert config.opt.position_lr_max_steps == 20000
    assert config.model.time_convention == "published"


@pytest.mark.parametrize("scene", SCENES)
def test_the_variants_differ_in_what_they_are_named_for(scene):
    base, rot1, rot2 = (resolved(f"dynerf/config_rot_{i}/{scene}.py") for i in (0, 1, 2))
    assert rot1.opt.gaiting_from_iter == 0
    rot1.opt.gaiting_from_iter = 3000
    assert rot1 == base
    assert rot2.hidden.control_num == 5
    rot2.hidden.control_num = 3
    assert rot2 == base
