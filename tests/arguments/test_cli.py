"""The command line: what wins over what, which commands parse, and how mistakes are reported."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from arguments_MoDE.cli import (
    RenderingArguments,
    TrainingArguments,
    parse_rendering,
    parse_training,
    rendering_parser,
    run_folder,
    save_config,
    training_parser,
)
from arguments_MoDE.config import Config
from utils.errors import UserError

HERE = Path(__file__).resolve().parent
RECIPE = "arguments_MoDE/dynerf/config_rot_0/coffee_martini.py"


def train(*flags: str) -> TrainingArguments:
    """Parses a training command that names a scene and a run folder."""
    return parse_training(["-s", "scene", "--expname", "run", *flags], "train_emb.py", "Trains.")


def render(*flags: str) -> RenderingArguments:
    """Parses a rendering command."""
    return parse_rendering(list(flags), "render_emb.py", "Renders.")


@pytest.fixture
def recipe(tmp_path) -> str:
    """A recipe with a few unusual values."""
    path = tmp_path / "recipe.py"
    path.write_text(
        "OptimizationParams = dict(iterations=111, batch_size=7)\n"
        "ModelParams = dict(white_background=False)\n"
        "ModelHiddenParams = dict(kplanes_config=dict(output_coordinate_dim=9))\n"
    )
    return str(path)


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A run folder called ``run`` in the current directory."""
    monkeypatch.chdir(tmp_path)
    config = Config()
    config.model.source_path = "/data/scene"
    save_config(config, tmp_path / "run" / "config.json")
    return tmp_path / "run"


# ------------------------------------------------------------------------------------ precedence


def test_flags_beat_the_recipe_and_the_recipe_beats_the_defaults(recipe):
    config = train("--configs", recipe, "--iterations", "5").config
    assert config.opt.iterations == 5
    assert config.opt.batch_size == 7
    assert config.opt.coarse_iterations == Config().opt.coarse_iterations


def test_the_order_of_flags_and_recipe_does_not_matter(recipe):
    assert train("--iterations", "5", "--configs", recipe).config.opt.iterations == 5


def test_a_flag_wins_even_with_the_default_value(recipe):
    flag = str(Config().opt.iterations)
    assert train("--configs", recipe, "--iterations", flag).config.opt.iterations == int(flag)
    assert train("--configs", recipe, "--white_background").config.model.white_background


def test_a_dict_flag_changes_only_the_keys_it_names(recipe):
    planes = train(
        "--configs", recipe, "--kplanes_config", "resolution=[8,8,8,4]"
    ).config.hidden.kplanes_config
    assert planes["resolution"] == [8, 8, 8, 4]
    assert planes["output_coordinate_dim"] == 9
    twice = ("--kplanes_config", '{"output_coordinate_dim": 3}', "--kplanes_config")
    planes = train(*twice, "resolution=[8,8,8,4]").config.hidden.kplanes_config
    assert (planes["output_coordinate_dim"], planes["resolution"]) == (3, [8, 8, 8, 4])


def experts_of_the_hash_family(*flags: str) -> list[str]:
    argv = ["-s", "scene", "--expname", "run", *flags]
    return parse_training(argv, "train_hash.py", "", (), ("hexplane", "hash")).config.hidden.experts


def test_a_command_has_experts_of_its_own_that_recipes_and_flags_replace(recipe, tmp_path):
    assert experts_of_the_hash_family() == ["hexplane", "hash"]
    assert experts_of_the_hash_family("--configs", recipe) == ["hexplane", "hash"]
    path = tmp_path / "zero.py"
    path.write_text("ModelHiddenParams = dict(experts=['zero'])\n")
    assert experts_of_the_hash_family("--configs", str(path)) == ["zero"]
    assert experts_of_the_hash_family("--configs", str(path), "--experts", "hash") == ["hash"]


def test_a_run_folder_given_by_flag_replaces_the_recipes(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text("ModelParams = dict(expname='mine', source_path='there')")
    parsed = parse_training(["--configs", str(path)], "t", "")
    assert parsed.config.model.model_path == "mine"
    parsed = parse_training(["--configs", str(path), "-m", "other"], "t", "")
    assert parsed.config.model.model_path == "other"


# ----------------------------------------------------------------------------------------- types


def test_switches_go_both_ways():
    assert train("--no-white_background").config.model.white_background is False
    assert train("--no-emb_use_anneal").config.emb.emb_use_anneal is False
    assert train("--static").config.hidden.static is True
    assert train("--no_dx", "--no-no_dx").config.hidden.no_dx is False


def test_one_letter_aliases():
    flags = ("-m", "run", "-i", "pictures", "-r", "4", "-d", "10", "-w")
    model = parse_training(["-s", "scene", *flags], "t", "").config.model
    assert (model.model_path, model.images, model.resolution) == ("run", "pictures", 4)
    assert (model.duration, model.white_background) == (10, True)
    assert model.source_path == os.path.abspath("scene")


def test_lists_negative_numbers_and_exponents():
    parsed = train(
        "--multires", "1", "2", "--test_cameras", "cam00", "3", "-r", "-1", "--feature_lr", "1e-3"
    )
    assert parsed.config.hidden.multires == [1, 2]
    assert parsed.config.model.test_cameras == ["cam00", "3"]
    assert parsed.config.model.resolution == -1
    assert parsed.config.opt.feature_lr == 1e-3
    assert train("--entropy_weight_init", "-1e-3").config.opt.entropy_weight_init == -1e-3


def test_every_view_may_be_held_out_by_a_flag_that_another_overrules():
    model = train("--llffhold", "1", "--test_cameras", "cam00").config.model
    assert (model.llffhold, model.test_cameras) == (1, ["cam00"])


def test_the_flags_that_no_recipe_sets():
    parsed = train(
        *("--device", "cpu", "--threads", "2", "--quiet", "--resume"),
        *(
            "--test_iterations",
            "20",
            "10",
            "20",
            "--save_iterations",
            "--checkpoint_iterations",
            "5",
        ),
    )
    assert (parsed.device, parsed.threads) == ("cpu", 2)
    assert (parsed.quiet, parsed.resume, parsed.overwrite) == (True, True, False)
    assert parsed.test_iterations == [10, 20]
    assert parsed.save_iterations == []
    assert parsed.checkpoint_iterations == [5]
    assert parsed.start_checkpoint is None


# ------------------------------------------------------------------------ the published commands


def test_the_published_training_command(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    argv = ["-s", "N3V/coffee_martini", "--expname", "out/cm", "--configs", RECIPE]
    parsed = parse_training(argv, "train_emb.py", "", ("hexplane", "embedding"))
    assert parsed.configs == RECIPE
    assert parsed.config.opt.batch_size == 4
    assert parsed.config.model.model_path == str(Path("out/cm"))


def test_the_published_rendering_command(run):
    parsed = render(
        *("--skip_test", "--skip_train", "--model_path", "run"),
        *("--configs", _agreeing_recipe(run), "--iteration", "30000"),
    )
    assert parsed.model_path == Path("run")
    assert (parsed.iteration, parsed.skip_test, parsed.skip_train) == (30000, True, True)
    assert parsed.skip_video is False


def _agreeing_recipe(run: Path) -> str:
    path = run.parent / "recipe.py"
    path.write_text(
        "ModelHiddenParams = dict(control_num=3)\nOptimizationParams = dict(iterations=9)"
    )
    return str(path)


def test_flags_of_the_published_programs_without_effect_are_noted(capsys):
    parsed = train("--port", "6017", "--ip", "127.0.0.1", "--eval")
    assert parsed.config.model.source_path == os.path.abspath("scene")
    assert capsys.readouterr().err.count("has no effect") == 3
    train("--port", "6017", "--quiet")
    assert capsys.readouterr().err == ""


# ------------------------------------------------------------------------------------ run folder


def test_both_names_of_the_run_folder_are_one(tmp_path):
    assert (
        run_folder("a/b", "") == run_folder("", "a/b") == run_folder("a/b", "a/b/") == Path("a/b")
    )
    assert run_folder(str(tmp_path), "") == tmp_path
    with pytest.raises(UserError, match="--expname a and --model_path b"):
        run_folder("a", "b")
    with pytest.raises(UserError, match="--expname"):
        run_folder("", "")


@pytest.mark.parametrize("absolute", [False, True])
def test_the_same_path_trains_and_renders(tmp_path, monkeypatch, absolute):
    monkeypatch.chdir(tmp_path)
    path = str(tmp_path / "out/run") if absolute else "out/run"
    trained = parse_training(["-s", "scene", "--expname", path], "t", "").config
    save_config(trained, Path(trained.model.model_path) / "config.json")
    rendered = render("--model_path", path)
    assert rendered.model_path.resolve() == (tmp_path / "out/run").resolve()
    assert rendered.config == trained


def test_rendering_looks_into_output_as_well(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_config(Config(), tmp_path / "output" / "cm" / "config.json")
    assert render("--model_path", "cm").model_path == Path("output/cm")
    save_config(Config(), tmp_path / "cm" / "config.json")
    assert render("--model_path", "cm").model_path == Path("cm")


def test_a_missing_run_is_named(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        render("--model_path", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        render("--model_path", str(tmp_path))


def test_a_mixture_of_models_has_another_program(tmp_path):
    (tmp_path / "moe.json").touch()
    with pytest.raises(UserError, match=r"render it with render_moe\.py"):
        render("--model_path", str(tmp_path))


# ------------------------------------------------------------------------------------- rendering


def test_rendering_takes_the_settings_of_the_run_and_a_few_overrides(run):
    parsed = render("-m", "run")
    assert parsed.config.model.source_path == "/data/scene"
    assert (parsed.iteration, parsed.lpips, parsed.configs) == (-1, True, None)
    parsed = render("-m", "run", "-s", "moved", "-r", "2", "--video_frames", "5", "--no-lpips")
    assert parsed.config.model.source_path == "moved"
    assert (parsed.config.model.resolution, parsed.config.model.video_frames) == (2, 5)
    assert parsed.lpips is False
    assert render("-m", "run", "--cache_gb", "0.5").config.model.cache_gb == 0.5
    assert render("-m", "run", "--cache", "none").config.model.cache == "none"


def test_the_home_of_a_moved_scene_is_found_where_no_shell_has_put_it(run, monkeypatch):
    monkeypatch.setenv("HOME", "/elsewhere")
    parsed = render("-m", "run", "--source_path=~/scene")
    assert parsed.config.model.source_path == "/elsewhere/scene"


def test_rendering_knows_where_a_moved_run_is(run):
    config = Config()
    config.model.model_path = "where/it/was/trained"
    save_config(config, run / "config.json")
    assert render("-m", "run").config.model.model_path == "run"


def test_an_unknown_expert_or_a_bad_value_of_a_saved_run_is_named(run):
    config = Config()
    config.hidden.experts = ["hexplane", "gird"]
    save_config(config, run / "config.json")
    known = ("hexplane", "embedding")
    with pytest.raises(UserError, match=r"config\.json: --experts: there is no expert 'gird'"):
        parse_rendering(["-m", "run"], "render_emb.py", "", known)
    config = Config()
    config.opt.batch_size = 0
    save_config(config, run / "config.json")
    with pytest.raises(UserError, match=r"config\.json: --batch_size is 0"):
        parse_rendering(["-m", "run"], "render_emb.py", "", known)


def test_a_seed_at_rendering_is_taken_with_a_note(run, capsys):
    render("-m", "run", "--seed", "1")
    assert "--seed has no effect" in capsys.readouterr().err


def test_a_recipe_that_contradicts_the_run_is_refused(run):
    with pytest.raises(UserError, match="control_num = 5"):
        path = run.parent / "recipe.py"
        path.write_text("ModelHiddenParams = dict(control_num=5)")
        render("--model_path", "run", "--configs", str(path))


# -------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--itertions", "5"], "--iterations"),
        (["--batch-size", "5"], "--batch_size"),
        (["--itertions=5"], "--iterations"),
        (["--iter", "5"], "unknown flag --iter"),
        (["-z"], "unknown flag -z"),
        (["extra"], "unexpected argument 'extra'"),
        (["--iterations", "many"], "--iterations: 'many' is not a whole number"),
        (["--iterations", "1.5"], "--iterations"),
        (["--iterations"], "--iterations"),
        (["--feature_lr", "nan"], "feature_lr"),
        (["--batch_size", "0"], "--batch_size is 0; it must be at least 1"),
        (["--gate", "hard"], "--gate"),
        (["--device", "tpu"], "--device"),
        (["--experts", "hexplane", "gird"], "there is no expert 'gird'"),
        (["--grid_args", "deform_base_resolution=[64,64,8]"], "deform_desired_resolution"),
        (["--grid_args", "deform_base_resolution=[8,8]"], "3 numbers"),
        (["--grid_args", "canonical_log2_hashmap_size=40"], "canonical_log2_hashmap_size is 40"),
        (["--grid_args", "bound=1.6"], "no key 'bound'"),
        (["--network_args", "width=0"], "width is 0"),
        (["--keyframe_num", "0"], "--keyframe_num"),
        (["--kplanes_config", "resolution"], "key=value"),
        (["--kplanes_config", "resolution=[1,"], "JSON"),
        (["--kplanes_config", "size=3"], "no key 'size'"),
        (["--kplanes_config", "resolution=many"], "resolution"),
        (["--test_iterations", "0"], "--test_iterations"),
        (["--threads", "-1"], "--threads"),
        (["--threads", "100000"], "--threads is 100000; it must be at most 1024"),
        (["--seed", "-1"], "--seed"),
        (["--llffhold", "1"], "--llffhold is 1, which holds every view out; give 2"),
        (["--resume", "--overwrite"], "--resume and --overwrite"),
        (["--model_path", "another"], "different run folders"),
        (["--configs", "no/such/recipe.py"], "no/such/recipe.py"),
        (["--configs", ""], "recipe"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_flag(flags, says):
    argv = ["-s", "scene", "--expname", "run", *flags]
    with pytest.raises(UserError) as caught:
        parse_training(argv, "train_emb.py", "", ("hexplane", "embedding"))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "says"),
    [([], "--expname"), (["--expname", "run"], "--source_path"), (["-s", "scene"], "--expname")],
)
def test_a_missing_scene_or_run_folder_is_named(argv, says):
    with pytest.raises(UserError, match=says):
        parse_training(argv, "train_emb.py", "")


# ------------------------------------------------------------------------------------------ help


def test_help_shows_the_values_of_the_recipe(recipe, capsys):
    with pytest.raises(SystemExit) as ended:
        train("--configs", recipe, "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    assert "Trains." in text and "(default: 111)" in text


def test_help_of_rendering(capsys):
    with pytest.raises(SystemExit):
        render("--help")
    assert "--skip_video" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "parser"), [("flags_train", training_parser), ("flags_render", rendering_parser)]
)
def test_the_command_line_is_frozen(name, parser):
    """Flags are promises: a change here is deliberate, and updates the list in the same commit.

    ``UPDATE_FLAGS=1 python -m pytest tests/arguments/test_cli.py`` writes the lists anew.
    """
    path = HERE / f"{name}.txt"
    flags = parser("program", "").flags()
    if os.environ.get("UPDATE_FLAGS"):
        path.write_text("\n".join(flags) + "\n")
    assert flags == path.read_text().splitlines()
