"""The members of a mixture: what they are called, and which settings each of them gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from arguments_MoDE.members import MODE, Member, parse_members
from arguments_MoDE.recipe import read_moe_recipe, read_recipe
from scene.experts import REGISTRY
from utils.errors import UserError

RECIPE = """
OptimizationParams = dict(iterations=111, feature_lr=0.1)
MoEParams = dict(members=["hexplane", "long"])
ExpertParams = dict(
    hexplane=dict(OptimizationParams=dict(iterations=7)),
    long=dict(ModelHiddenParams=dict(experts=["polynomial"]), ModelParams=dict(sh_degree=1)),
)
"""


def parse(*flags: str) -> list[Member]:
    argv = ["-s", "scene", "--expname", "out", *flags]
    return parse_members(argv, "train_moe.py experts", "", tuple(REGISTRY))[1]


def recipe(folder: Path, text: str = RECIPE, name: str = "recipe.py") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_a_member_is_an_expert_a_mixture_or_mode():
    members = parse("--members", "keyframe", "hexplane+hash", "mode")
    assert [m.arguments.config.hidden.experts for m in members] == [
        ["keyframe"],
        ["hexplane", "hash"],
        list(MODE),
    ]
    assert [m.folder for m in members] == [
        Path("out/experts/keyframe"),
        Path("out/experts/hexplane+hash"),
        Path("out/experts/mode"),
    ]


def test_flags_beat_a_members_settings_which_beat_the_common_ones(tmp_path):
    hexplane, long = parse("--configs", recipe(tmp_path), "--feature_lr", "0.2")
    assert (hexplane.name, hexplane.arguments.config.opt.iterations) == ("hexplane", 7)
    assert (long.arguments.config.hidden.experts, long.arguments.config.opt.iterations) == (
        ["polynomial"],
        111,
    )
    assert long.arguments.config.model.sh_degree == 1
    assert hexplane.arguments.config.model.sh_degree == 3
    assert {m.arguments.config.opt.feature_lr for m in (hexplane, long)} == {0.2}
    both = parse("--configs", recipe(tmp_path), "--iterations", "5")
    assert {m.arguments.config.opt.iterations for m in both} == {5}


def test_the_line_chooses_other_members_than_the_recipe(tmp_path):
    (only,) = parse("--members", "long", "--configs", recipe(tmp_path))
    assert only.name == "long"


def test_a_recipe_inherits_the_settings_of_members(tmp_path):
    recipe(tmp_path, name="base.py")
    text = """
_base_ = "base.py"
ExpertParams = dict(hexplane=dict(OptimizationParams=dict(feature_lr=0.3)))
"""
    read = read_moe_recipe(recipe(tmp_path, text, "derived.py"))
    assert read.moe == {"members": ["hexplane", "long"]}
    assert read.experts["hexplane"] == {
        "OptimizationParams": {"iterations": 7, "feature_lr": 0.3},
    }


def test_a_recipe_of_several_models_is_not_one_of_a_single(tmp_path):
    with pytest.raises(UserError, match=r"recipe\.py is of several models.*train_moe\.py"):
        read_recipe(recipe(tmp_path))


FAULTS = {  # a recipe -> what is said of it
    "ExpertParams = dict(polynomal=dict())": "no expert 'polynomal'; did you mean 'polynomial'",
    "ExpertParams = dict(hash=dict(OptimizationParam=dict(iterations=1)))": (
        r"recipe\.py:1: unknown section 'OptimizationParam'; did you mean 'OptimizationParams'"
    ),
    "ExpertParams = dict(hash=dict(OptimizationParams=dict(iteration=1)))": (
        "unknown key 'iteration' in OptimizationParams; did you mean 'iterations'"
    ),
    "ExpertParams = dict(hash=5)": r"ExpertParams\['hash'\] must be dict",
    "ExpertParams = dict(hash=dict(OptimizationParams=dict(movelr='x')))": "movelr is 'x'",
    "ExpertParams = dict(hash=dict(OptimizationParams=dict(movelr=-1)))": (
        "member hash: --movelr is -1.0; it must be at least 0"
    ),
    "ExpertParams = {'../x': dict(ModelHiddenParams=dict(experts=['hash']))}": "'../x' is no name",
    "ExpertParams = {'hex.small': dict(ModelHiddenParams=dict(experts=['hash']))}": (
        "'hex.small' is no name for a member"
    ),
    "ExpertParams = dict(half=dict(ModelHiddenParams=dict(experts=['hash'])))": (
        "'half' is no name for a member .*such as train.: give it another"
    ),
    "MoEParams = dict(member=['x'])": "unknown key 'member' in MoEParams; did you mean 'members'",
    "MoEParams = dict(members='hash')": "members is 'hash'; it must be a list of strings",
    "MoEParam = dict(members=['hash'])": "unknown section 'MoEParam'; did you mean 'MoEParams'",
}


@pytest.mark.parametrize("text", FAULTS)
def test_faults_of_a_recipe_are_named(text, tmp_path):
    with pytest.raises(UserError, match=FAULTS[text]):
        parse("--members", "hash", "--configs", recipe(tmp_path, text))


@pytest.mark.parametrize(
    "flags, said",
    [
        ((), "the members are missing"),
        (("--members",), "the members are missing"),
        (("--members", "hexplan"), "no expert 'hexplan'; did you mean 'hexplane'"),
        (("--members", "hexplane+sponge"), "no expert 'sponge'; there are hexplane"),
        (("--members", "hash", "mode", "hash"), "names 'hash' twice"),
        (("--members", "hexplane+hexplane"), "member hexplane.hexplane: --experts names one twice"),
        (("--members", "hash", "--experts", "hash"), "--experts is of a single model"),
        (
            ("--members", "hash", "--start_checkpoint", "latest"),
            "--start_checkpoint is of a single",
        ),
        (("--members", "hash", "--resume", "--overwrite"), "exclude each other"),
        (("--members", "hash", "--iteration", "3"), "--iteration; did you mean '--iterations'"),
    ],
)
def test_faults_of_the_line_are_named(flags, said):
    with pytest.raises(UserError, match=said):
        parse(*flags)


def test_help_shows_the_members_and_the_recipes_values(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--configs", recipe(tmp_path), "--help")
    assert stop.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "usage: train_moe.py experts -s SCENE --expname RUN --members NAME" in shown
    assert "(default: hexplane long)" in shown and "(default: 111)" in shown
