"""Recipes are read as literals, merged over their bases, and never executed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from arguments_MoDE.recipe import LARGEST_FILE, read_recipe
from arguments_MoDE.retired import RETIRED, TRANSLATED
from arguments_MoDE.values import all_settings, section_types
from utils.errors import UserError


def write(folder: Path, text: str, name: str = "recipe.py") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refusal(path: Path) -> str:
    """The message with which a recipe is refused: always one line that names the file."""
    with pytest.raises(UserError) as caught:
        read_recipe(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path.name) in message
    return message


def test_reads_every_kind_of_literal(tmp_path):
    path = write(
        tmp_path,
        '"""A docstring."""\n'
        "OptimizationParams = dict(iterations=20, feature_lr=1/400, opacity_lr=-(-0.05))\n"
        "ModelHiddenParams = {'multires': (1, 2), 'gate': 'published',\n"
        "    'kplanes_config': dict(resolution=[8, 8, 8, 4])}\n"
        "ModelParams = dict(white_background=False, resolution=-1)\n",
    )
    assert read_recipe(path) == {
        "OptimizationParams": {
            "iterations": 20,
            "feature_lr": 0.0025,
            "opacity_lr": 0.05,
        },
        "ModelHiddenParams": {
            "multires": [1, 2],
            "gate": "published",
            "kplanes_config": {"resolution": [8, 8, 8, 4]},
        },
        "ModelParams": {"white_background": False, "resolution": -1},
    }


def test_whole_numbers_are_read_as_numbers_where_those_are_expected(tmp_path):
    path = write(tmp_path, "OptimizationParams = dict(lambda_dssim=1)")
    value = read_recipe(path)["OptimizationParams"]["lambda_dssim"]
    assert value == 1.0 and isinstance(value, float)


# ------------------------------------------------------------------------------- never executed


@pytest.mark.parametrize(
    "text",
    [
        "open({marker!r}, 'w')",
        "import os",
        "__import__('os').mknod({marker!r})",
        "OptimizationParams = dict(iterations=open({marker!r}, 'w').write('1'))",
        "OptimizationParams = dict([('iterations', open({marker!r}, 'w'))])",
        "OptimizationParams = dict(**open({marker!r}, 'w'))",
        "OptimizationParams = {{**open({marker!r}, 'w')}}",
        "OptimizationParams = dict(iterations=[open({marker!r}, 'w') for _ in 'a'])",
        "OptimizationParams = dict(iterations=(lambda: open({marker!r}, 'w'))())",
        "OptimizationParams = dict(expname=f\"{{open({marker!r}, 'w')}}\")",
        "_base_ = open({marker!r}, 'w').name",
        "x: open({marker!r}, 'w') = 1",
        "def f(a=open({marker!r}, 'w')): pass",
        "for _ in [open({marker!r}, 'w')]: pass",
        "(a := open({marker!r}, 'w'))",
    ],
)
def test_code_is_refused_and_never_runs(tmp_path, text):
    marker = tmp_path / "ran"
    path = write(tmp_path, "\n" + text.format(marker=str(marker)))
    assert ":2:" in refusal(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "value",
    [
        "iterations",
        "9 ** 9 ** 9",
        "1 / 0",
        "'a' * 3",
        "True + 1",
        "b'1'",
        "1j",
        "...",
        "1e308 * 10",
    ],
)
def test_values_that_are_no_literals_are_refused(tmp_path, value):
    assert ":1:" in refusal(write(tmp_path, f"OptimizationParams = dict(feature_lr={value})"))


# -------------------------------------------------------------------------- unknown, wrong type


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("OptimizationParams = dict(itertions=1)", "iterations"),
        ("OptimizationParams = dict(Batch_Size=1)", "batch_size"),
        ("OptimisationParams = dict(iterations=1)", "OptimizationParams"),
        ("ModelHiddenParams = dict(moe_mean=True)", "MoE_mean"),
        ("ModelHiddenParams = dict(kplanes_config={'resolutions': [1]})", "resolution"),
        ("PipelineParams = dict(debugg=True)", "debug"),
    ],
)
def test_an_unknown_key_names_its_line_and_the_nearest(tmp_path, text, nearest):
    message = refusal(write(tmp_path, text))
    assert ":1:" in message and nearest in message


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("iterations", "'many'", "whole number"),
        ("iterations", "3.0", "whole number"),
        ("iterations", "True", "whole number"),
        ("iterations", "10 * 1000000000000000000", "too large"),
        ("feature_lr", "None", "number"),
        ("feature_lr", "1e999", "finite"),
        ("camera_color", "1", "True or False"),
        ("loss", "'L1'", "l1, l2"),
    ],
)
def test_a_wrong_type_names_the_expected_one(tmp_path, key, value, expected):
    message = refusal(write(tmp_path, f"OptimizationParams = dict({key}={value})"))
    assert key in message and expected in message


def test_items_of_lists_and_dicts_have_types_too(tmp_path):
    assert "whole number" in refusal(write(tmp_path, "ModelHiddenParams = dict(multires=['1'])"))
    text = "ModelHiddenParams = dict(kplanes_config=dict(resolution=[64, 64, 64, 'x']))"
    assert "resolution" in refusal(write(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    [
        "OptimizationParams = dict(iterations=1, iterations=2)",
        "OptimizationParams = {'iterations': 1, 'iterations': 2}",
        "OptimizationParams = dict(iterations=1)\nOptimizationParams = dict(batch_size=1)",
        "OptimizationParams = 3",
        "OptimizationParams = Namespace(iterations=1)",
        "OptimizationParams = a.dict(iterations=1)",
        "OptimizationParams = {1: 2}",
        "a = b = dict()",
    ],
)
def test_ambiguous_files_are_refused(tmp_path, text):
    refusal(write(tmp_path, text))


# ------------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize(
    "data",
    [
        b"OptimizationParams = dict(iterations=",
        b"OptimizationParams = dict(feature_lr=0)\n\0",
        "ModelParams = dict(images='bild\xe4r')".encode("latin-1"),
        b"a = " + b"(" * 5000,
        b"OptimizationParams = dict(feature_lr=" + b"-" * 100_000 + b"1)",
        b"OptimizationParams = dict(feature_lr=1" + b"+1" * 50_000 + b")",
        b"#" * (LARGEST_FILE + 1),
        b"OptimizationParams = dict(iterations=" + b"9" * 5000 + b")",
    ],
    ids=["cut", "nul", "latin-1", "brackets", "minus", "sum", "huge", "digits"],
)
def test_damaged_files_are_refused(tmp_path, data):
    path = tmp_path / "recipe.py"
    path.write_bytes(data)
    assert len(refusal(path).removeprefix(str(tmp_path))) < 300


def test_a_missing_recipe_names_the_nearest(tmp_path):
    path = "arguments_MoDE/dynerf/config_rot_0/cofee_martini.py"
    with pytest.raises(UserError, match=r"config_rot_0/coffee_martini\.py"):
        read_recipe(path)
    write(tmp_path, "", "scene.py")
    with pytest.raises(UserError, match=r"nearest.*scene\.py"):
        read_recipe(tmp_path / "scenes.py")


def test_a_folder_is_no_recipe(tmp_path):
    assert "folder" in refusal(tmp_path)


def test_recipes_of_the_repository_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = read_recipe("arguments_MoDE/dynerf/config_rot_0/coffee_martini.py")
    assert recipe["OptimizationParams"]["batch_size"] == 4


# --------------------------------------------------------------------------------------- bases


def test_a_recipe_beats_its_bases_and_later_bases_beat_earlier(tmp_path):
    write(tmp_path, "OptimizationParams = dict(iterations=1, batch_size=1, feature_lr=1.0)", "a.py")
    write(tmp_path, "OptimizationParams = dict(iterations=2, batch_size=2)", "deep/b.py")
    path = write(
        tmp_path, "_base_ = ['a.py', 'deep/b.py']\nOptimizationParams = dict(iterations=3)"
    )
    assert read_recipe(path) == {
        "OptimizationParams": {"iterations": 3, "batch_size": 2, "feature_lr": 1.0}
    }


def test_bases_are_relative_to_the_file_that_names_them(tmp_path):
    write(tmp_path, "OptimizationParams = dict(iterations=5)", "default.py")
    write(tmp_path, "_base_ = '../default.py'", "scenes/default.py")
    path = write(tmp_path, "_base_ = 'default.py'", "scenes/a.py")
    assert read_recipe(path)["OptimizationParams"]["iterations"] == 5


def test_dicts_are_merged_key_by_key(tmp_path):
    write(
        tmp_path,
        "ModelHiddenParams = dict(kplanes_config=dict(output_coordinate_dim=8, resolution=[4]))",
        "base.py",
    )
    path = write(
        tmp_path,
        "_base_ = 'base.py'\nModelHiddenParams = dict(kplanes_config=dict(resolution=[9, 9]))",
    )
    assert read_recipe(path)["ModelHiddenParams"]["kplanes_config"] == {
        "output_coordinate_dim": 8,
        "resolution": [9, 9],
    }


def test_a_circle_of_bases_is_refused(tmp_path):
    write(tmp_path, "_base_ = 'b.py'", "a.py")
    write(tmp_path, "_base_ = 'a.py'", "b.py")
    with pytest.raises(UserError, match="_base_ leads back"):
        read_recipe(tmp_path / "a.py")


def test_one_base_may_be_reached_by_two_ways(tmp_path):
    write(tmp_path, "OptimizationParams = dict(iterations=5)", "root.py")
    write(tmp_path, "_base_ = 'root.py'", "a.py")
    write(tmp_path, "_base_ = 'root.py'", "b.py")
    path = write(tmp_path, "_base_ = ['a.py', 'b.py']")
    assert read_recipe(path)["OptimizationParams"]["iterations"] == 5


def test_a_missing_base_names_the_line(tmp_path):
    assert ":1:" in refusal(write(tmp_path, "_base_ = 'defautl.py'"))
    assert ":1:" in refusal(write(tmp_path, "_base_ = 3"))


# ------------------------------------------------------------------------- published recipes


def test_published_keys_without_effect_are_noted_and_left_out(tmp_path):
    path = write(
        tmp_path,
        "OptimizationParams = dict(dataloader=True, iterations=5, lambda_lpips=0)\n"
        "ModelHiddenParams = dict(timebase_pe=4, empty_voxel=False)\n"
        "PipelineParams = dict(debug=False)\n",
    )
    notes: list[str] = []
    assert read_recipe(path, notes.append) == {"OptimizationParams": {"iterations": 5}}
    assert len(notes) == 5
    assert all("no effect" in note for note in notes)
    assert "recipe.py:1: dataloader" in notes[0]


def test_a_published_switch_that_changed_something_is_refused(tmp_path):
    message = refusal(write(tmp_path, "ModelHiddenParams = dict(static_mlp=True)"))
    assert "static_mlp" in message and "not supported" in message


def test_notes_go_to_stderr(tmp_path, capsys):
    read_recipe(write(tmp_path, "OptimizationParams = dict(dataloader=True)"))
    out, err = capsys.readouterr()
    assert out == "" and "dataloader" in err


def test_a_key_in_the_wrong_section_is_read_and_noted(tmp_path):
    notes: list[str] = []
    path = write(tmp_path, "ModelParams = dict(net_width=32)")
    assert read_recipe(path, notes.append) == {"ModelHiddenParams": {"net_width": 32}}
    assert "belongs in ModelHiddenParams" in notes[0]


def test_published_booleans_become_counts(tmp_path):
    path = write(tmp_path, "ModelParams = dict(add_points=True)")
    assert read_recipe(path)["ModelParams"]["add_points"] == 100_000


def test_the_table_of_retired_keys_holds_no_setting():
    retired = [key for keys in RETIRED.values() for key in keys]
    assert not set(retired) & set(all_settings())
    assert set(RETIRED) <= {*section_types(), "PipelineParams"}
    assert set(TRANSLATED) <= set(all_settings())


def test_reading_a_recipe_imports_nothing(tmp_path):
    path = write(tmp_path, "OptimizationParams = dict(iterations=5)", "wholly_unseen_recipe.py")
    read_recipe(path)
    assert "wholly_unseen_recipe" not in sys.modules
