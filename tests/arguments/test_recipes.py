"""The recipes in the repository: all load, all are valid, and they hold the published numbers."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from arguments_MoDE.config import Config
from arguments_MoDE.recipe import read_recipe
from arguments_MoDE.saved import check_recipe
from arguments_MoDE.values import merged, validate

FOLDER = Path(__file__).resolve().parents[2] / "arguments_MoDE"
RECIPES = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.glob("*/**/*.py"))
SCENES = (
    "coffee_martini",
    "cook_spinach",
    "cut_roasted_beef",
    "flame_salmon_1",
    "flame_steak",
    "sear_steak",
)


def resolved(name: str) -> Config:
    """The settings that a recipe gives, none of its keys without effect."""
    notes: list[str] = []
    config = merged(Config(), read_recipe(FOLDER / name, notes.append))
    assert not notes
    return config


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_loads_and_is_valid(name):
    validate(resolved(name), ("hexplane", "embedding"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_says_what_it_is(name):
    text = ast.get_docstring(ast.parse((FOLDER / name).read_text()))
    assert text
    if Path(name).stem == "default_cpu" and not name.startswith("emb"):
        assert "gives up" in text.lower()


def test_every_scene_has_its_recipes():
    folders = ("dynerf/config_rot_0", "dynerf/config_rot_1", "dynerf/config_rot_2", "emb/config_0")
    expected = {f"{folder}/{scene}.py" for folder in folders for scene in ("default", *SCENES)}
    for folder in ("dynerf/config_rot_0", "emb/config_0"):
        expected |= {f"{folder}/{scene}_cpu.py" for scene in ("default", *SCENES)}
    expected |= {
        f"{kind}/default{cpu}.py" for kind in ("dnerf", "panoptic") for cpu in ("", "_cpu")
    }
    assert expected | {"demo/demo.py"} <= set(RECIPES)


@pytest.mark.parametrize("scene", [*SCENES, "default", "coffee_martini_cpu", "sear_steak_cpu"])
def test_training_and_rendering_recipes_of_the_published_commands_agree(scene):
    train, render = f"dynerf/config_rot_0/{scene}.py", f"emb/config_0/{scene}.py"
    assert resolved(train) == resolved(render)
    check_recipe(resolved(train), read_recipe(FOLDER / render))


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
