"""The dataclasses: well-formed settings, ranges, and the JSON that a run keeps."""

from __future__ import annotations

import json
import math
from dataclasses import fields

import pytest

from arguments_MoDE.config import SECTIONS, Config
from arguments_MoDE.recipe import read_recipe
from arguments_MoDE.saved import check_recipe, first_difference, load_config, save_config
from arguments_MoDE.values import (
    RANGES,
    accept,
    all_settings,
    check_range,
    merged,
    section_types,
    validate,
)
from utils.errors import UserError


def config_with(**values) -> Config:
    """The defaults with some settings replaced."""
    sections: dict[str, dict] = {}
    for name, value in values.items():
        sections.setdefault(all_settings()[name].section, {})[name] = value
    return merged(Config(), sections)


# --------------------------------------------------------------------------------- dataclasses


def test_every_field_is_described_and_its_default_has_its_type():
    described = all_settings()
    declared = [f.name for section in section_types().values() for f in fields(section)]
    assert list(described) == declared
    for setting in described.values():
        assert setting.help and "\n" not in setting.help
        assert accept(setting, setting.default) == setting.default


def test_the_sections_are_those_that_recipes_name():
    assert tuple(section_types()) == SECTIONS


def test_the_defaults_are_valid():
    validate(Config(), ("hexplane", "embedding"))


def test_defaults_are_not_shared_between_configs():
    one = Config()
    one.hidden.kplanes_config["resolution"][0] = 1
    one.hidden.experts.append("other")
    assert Config().hidden.kplanes_config["resolution"][0] != 1
    assert "other" not in Config().hidden.experts


def test_merging_copies():
    base, lists = Config(), [1, 2]
    result = merged(base, {"ModelHiddenParams": {"multires": lists}})
    lists.append(3)
    result.hidden.experts.append("other")
    assert result.hidden.multires == [1, 2] and "other" not in base.hidden.experts


# -------------------------------------------------------------------------------------- ranges


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("sh_degree", 4),
        ("sh_degree", -1),
        ("control_num", -1),
        ("resolution", 0),
        ("resolution", -2),
        ("iterations", -1),
        ("feature_lr", -1e-3),
        ("feature_lr", math.nan),
        ("feature_lr", math.inf),
        ("lambda_dssim", -0.1),
        ("opacity_threshold_coarse", 1.5),
        ("temp", 0.0),
        ("moe_top_k", -1),
        ("multires", []),
        ("multires", [0]),
        ("experts", []),
        ("experts", ["hexplane", "hexplane"]),
        ("experts", ["hexplain"]),
        ("gate", "Softmax"),
        ("grid_lr_final", 0.0),
        ("weight_movelr_final", 0.0),
        ("emb_min_embeddings", 151),
        ("kplanes_config", {"resolution": [64, 64, 64]}),
        ("kplanes_config", {"resolution": [64, 64, 64, 1]}),
        ("kplanes_config", {"output_coordinate_dim": 0}),
        ("kplanes_config", {"grid_dimensions": 3}),
        ("kplanes_config", {"unknown": 3}),
    ],
)
def test_a_value_out_of_range_names_its_flag(name, value):
    with pytest.raises(UserError, match=name):
        validate(config_with(**{name: value}), ("hexplane", "embedding"))


def test_an_expert_without_a_branch_is_refused():
    with pytest.raises(UserError, match="emb_no_fine_deform"):
        validate(config_with(emb_no_coarse_deform=True, emb_no_fine_deform=True))


def test_sets_need_two_keyframes_as_a_line_has_two_ends():
    validate(config_with(keyframe_num=1))
    validate(config_with(keyframe_num=2, keyframe_sets=True))
    with pytest.raises(UserError, match="--keyframe_num is 1; with --keyframe_sets"):
        validate(config_with(keyframe_num=1, keyframe_sets=True))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("moe_top_k", 2),  # with one expert: as published recipes have it
        ("moe_top_k", 0),
        ("sh_degree", 0),
        ("resolution", -1),
        ("duration", 0),
        ("iterations", 0),
    ],
)
def test_the_edges_of_the_ranges_are_allowed(name, value):
    validate(config_with(**{name: value, "experts": ["hexplane"]}), ("hexplane",))


def test_a_decay_may_be_switched_off_at_both_ends():
    validate(config_with(grid_lr_init=0.0, grid_lr_final=0.0))


def test_every_range_belongs_to_a_setting():
    assert set(RANGES) <= set(all_settings())


def test_a_range_names_the_faulty_item():
    with pytest.raises(UserError, match=r"--save_iterations is 0; it must be at least 1"):
        check_range("save_iterations", [5, 0], 1)


# ---------------------------------------------------------------------------------- saved runs


def test_the_settings_survive_being_saved(tmp_path):
    config = config_with(
        iterations=7,
        experts=["embedding"],
        test_cameras=["caméra 1"],
        feature_lr=1 / 3,
        kplanes_config={"resolution": [8, 8, 8, 4]},
        white_background=False,
    )
    save_config(config, tmp_path / "run" / "config.json")
    loaded = load_config(tmp_path / "run" / "config.json")
    assert loaded == config
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "config.json"
    save_config(Config(), path)
    with pytest.raises(ValueError):
        save_config(config_with(feature_lr=math.nan), path)
    assert load_config(path) == Config()
    assert list(tmp_path.iterdir()) == [path]


def test_settings_newer_than_the_file_keep_their_defaults(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"OptimizationParams": {"iterations": 5}}')
    assert load_config(path) == config_with(iterations=5)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[" * 20000, "not valid JSON"),
        ("[]", "one JSON object"),
        ('{"Model": {}}', "unknown section 'Model'"),
        ('{"ModelParams": []}', "ModelParams"),
        ('{"ModelParams": {"image": "x"}}', "did you mean 'images'"),
        ('{"ModelParams": {"net_width": 3}}', "net_width"),
        ('{"ModelParams": {"images": 3}}', "images is 3; it must be a string"),
        ('{"OptimizationParams": {"feature_lr": NaN}}', "finite"),
        ('{"OptimizationParams": {"iterations": 1.5}}', "whole number"),
        ('{"OptimizationParams": {"iterations": true}}', "whole number"),
        ('{"ModelHiddenParams": {"gate": "hard"}}', "softmax, published"),
        ('{"ModelHiddenParams": {"kplanes_config": {"resolution": "x"}}}', "resolution"),
    ],
)
def test_a_damaged_file_of_settings_is_refused(tmp_path, text, says):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_missing_or_binary_settings_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_config(tmp_path / "config.json")
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\0")
    with pytest.raises(UserError, match="not UTF-8"):
        load_config(tmp_path / "config.json")


# ------------------------------------------------------------------- a recipe against a run


def recipe(tmp_path, text: str) -> dict:
    """What a recipe of this text sets."""
    path = tmp_path / "recipe.py"
    path.write_text(text)
    return read_recipe(path)


def test_a_contradicting_recipe_names_the_key_and_both_values(tmp_path):
    says = recipe(tmp_path, "ModelHiddenParams = dict(control_num=5)")
    with pytest.raises(UserError, match=r"control_num = 5.*trained with 3"):
        check_recipe(config_with(control_num=3), says)


def test_a_contradiction_inside_a_dict_counts_and_silence_does_not(tmp_path):
    run = config_with(kplanes_config={"output_coordinate_dim": 8, "resolution": [8, 8, 8, 4]})
    text = "ModelHiddenParams = dict(kplanes_config=dict(resolution=[8, 8, 8, 4]))"
    check_recipe(run, recipe(tmp_path, text))
    with pytest.raises(UserError, match="kplanes_config"):
        check_recipe(run, recipe(tmp_path, text.replace("4]", "5]")))


def test_what_does_not_shape_the_model_may_differ(tmp_path):
    check_recipe(Config(), recipe(tmp_path, "OptimizationParams = dict(iterations=1)"))


def test_runs_are_compared_without_their_places(tmp_path):
    one = config_with(source_path="data/scene", model_path="a")
    assert first_difference(one, config_with(source_path="/x/scene", model_path="b")) is None
    assert first_difference(one, config_with(source_path="data/other"))[0] == "source_path"
    other = config_with(source_path="data/scene", cache="ram", cache_gb=9.0, video_frames=5)
    assert first_difference(one, other) is None
    other = config_with(source_path="data/scene", batch_size=3)
    assert first_difference(one, other) == ("batch_size", 1, 3)


def test_the_settings_are_plain_json():
    assert json.loads(json.dumps(Config().as_dict())) == Config().as_dict()


@pytest.mark.parametrize("ends", [(0.0, 0.01), (-0.01, 0.01), (0.02, 0.0)])
def test_the_weight_of_the_entropy_may_cross_zero(ends):
    config = Config()
    config.opt.entropy_weight_init, config.opt.entropy_weight_final = ends
    validate(config)
