"""The command lines of MoE-GS: flags, recipes, ranges, and how mistakes are reported."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path

import pytest

from arguments_MoDE.config import RouterParams
from arguments_MoDE.moe import (
    DistillArguments,
    MoERenderingArguments,
    PruneArguments,
    RouterArguments,
    as_dict,
    moe_parser,
    parse_distill,
    parse_moe_rendering,
    parse_prune,
    parse_router,
    router_params,
)
from utils.errors import UserError

HERE = Path(__file__).resolve().parent
SECTIONS = {
    "router": (RouterArguments, RouterParams),
    "prune": (PruneArguments,),
    "distill": (DistillArguments,),
    "render_moe": (MoERenderingArguments,),
}


def router(*flags: str) -> RouterArguments:
    return parse_router(["--expname", "run", *flags], "train_moe.py router", "Trains.")


def prune(*flags: str) -> PruneArguments:
    return parse_prune(["--expname", "run", *flags], "train_moe.py prune", "Prunes.")


def distill(*flags: str) -> DistillArguments:
    return parse_distill(["--expname", "run", *flags], "train_moe.py distill", "Distils.")


def rendering(*flags: str) -> MoERenderingArguments:
    return parse_moe_rendering([*flags], "render_moe.py", "Renders.")


def test_where_the_scene_is_now_is_kept_as_a_whole_path():
    """What is pruned or distilled saves it."""
    for parse, more in ((prune, []), (distill, ["--expert", "a"])):
        parsed = parse("--moe", "moe", *more, "-s", "scene")
        assert parsed.source_path == os.path.abspath("scene")
        assert parse("--moe", "moe", *more).source_path == ""
        parsed = parse("--moe", "moe", *more, "-s", "~/scene")
        assert parsed.source_path == os.path.expanduser("~/scene")


def test_rendering_finds_home_where_no_shell_has_put_it():
    assert rendering("-m", "run", "--source_path=~/scene").source_path == os.path.expanduser(
        "~/scene"
    )
    assert rendering("-m", "run").source_path is None


@pytest.mark.parametrize("name", SECTIONS)
def test_the_command_line_is_frozen(name):
    """``UPDATE_FLAGS=1 python -m pytest tests/arguments/test_moe.py`` writes the lists anew."""
    path = HERE / f"flags_{name}.txt"
    flags = moe_parser("program", "", *SECTIONS[name]).flags()
    if os.environ.get("UPDATE_FLAGS"):
        path.write_text("\n".join(flags) + "\n")
    assert flags == path.read_text().splitlines()


@pytest.mark.parametrize(
    ("parse", "says"),
    [
        (router, ("Trains.", "--temperature_final", "(default: 0.1)", "--start_router")),
        (prune, ("Prunes.", "--importance", "gate = norm of the gradient", "{gate,blend}")),
        (distill, ("Distils.", "--distill_lambda", "(default: 0.5)")),
        (rendering, ("Renders.", "--skip_gates", "--experts")),
    ],
)
def test_help_explains(parse, says, capsys):
    with pytest.raises(SystemExit) as ended:
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0 and all(word in text for word in says)


def test_every_flag_has_a_help_text():
    for sections in SECTIONS.values():
        for section in sections:
            for item in fields(section):
                assert item.name == "params" or item.name == "model_path" or item.metadata, item


@pytest.fixture
def recipe(tmp_path) -> str:
    path = tmp_path / "recipe.py"
    path.write_text(
        "RouterParams = dict(mask_lr=0.25, router='pixel')\n"
        "OptimizationParams = dict(iterations=7)\nMoEParams = dict(members=['hash'])\n"
    )
    return str(path)


def test_flags_beat_the_recipe_and_the_recipe_the_defaults(recipe):
    assert router().params == RouterParams()
    params = router("--configs", recipe).params
    assert (params.mask_lr, params.router, params.time_lr) == (
        0.25,
        "pixel",
        RouterParams().time_lr,
    )
    assert router("--mask_lr", "0.5", "--configs", recipe).params.mask_lr == 0.5


def test_the_router_of_technicolor_has_the_rates_published_for_it():
    n3v, technicolor = (
        router("--configs", f"arguments_MoDE/moe/{name}/three.py").params
        for name in ("n3v", "technicolor")
    )
    assert (n3v.mask_lr, n3v.time_lr, n3v.network_lr) == (0.5, 0.05, 0.05)
    assert (technicolor.mask_lr, technicolor.time_lr, technicolor.network_lr) == (0.1, 0.01, 0.01)
    for params in (n3v, technicolor):  # a hundredth after 10,000 iterations
        assert params.router_iterations == 5000
        assert params.mask_lr_final == pytest.approx(params.mask_lr / 10)


def test_help_shows_the_values_of_the_recipe(recipe, capsys):
    with pytest.raises(SystemExit):
        router("--configs", recipe, "--help")
    assert "(default: 0.25)" in " ".join(capsys.readouterr().out.split())


def test_iterations_are_sorted_and_once():
    parsed = router("--save_iterations", "20", "10", "20", "--checkpoint_iterations", "3", "1")
    assert parsed.save_iterations == [10, 20] and parsed.checkpoint_iterations == [1, 3]


def test_values_arrive():
    parsed = prune("--moe", "~/m", "--share", "0.25", "--threshold", "1e-5", "--views", "3")
    assert (parsed.share, parsed.threshold, parsed.views) == (0.25, 1e-5, 3)
    assert parsed.moe == str(Path("~/m").expanduser()) and parsed.model_path == Path("run")
    parsed = distill("--moe", "m", "--expert", "a", "--distill_lr_scale", "0.1")
    assert (parsed.expert, parsed.distill_lr_scale, parsed.distill_lambda) == ("a", 0.1, 0.5)
    parsed = rendering("-m", "run", "--experts", "a", "b", "--no-lpips", "--skip_gates")
    assert (parsed.experts, parsed.lpips, parsed.skip_gates) == (["a", "b"], False, True)
    assert parsed.iteration == -1


MISUSE = {
    "--router_iterations": (router, "0"),
    "--router_batch_size": (router, "0"),
    "--temperature_init": (router, "0"),
    "--temperature_final": (router, "nan"),
    "--mask_lr": (router, "-1"),
    "--router_lambda_dssim": (router, "1.5"),
    "--router_seed": (router, "-1"),
    "--threads": (router, "-1"),
    "--share": (prune, "1"),
    "--threshold": (prune, "-1"),
    "--views": (prune, "-3"),
    "--distill_lambda": (distill, "-0.1"),
    "--distill_lambda_dssim": (distill, "2"),
    "--distill_iterations": (distill, "0"),
    "--iteration": (rendering, "-2"),
    "--video_frames": (rendering, "-3"),
    "--cache_gb": (rendering, "nan"),
    "--checkpoint_minutes": (prune, "-1"),
    "--save_iterations": (router, "0"),
}

NEEDED = {
    router: (),
    prune: ("--moe", "m"),
    distill: ("--moe", "m", "--expert", "e"),
    rendering: ("-m", "run"),
}


@pytest.mark.parametrize("flag", MISUSE)
def test_values_out_of_range_are_named(flag):
    parse, value = MISUSE[flag]
    with pytest.raises(UserError, match=f"^{flag} is .*must be") as caught:
        parse(*NEEDED[parse], flag, value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("parse", "flags", "says"),
    [
        (router, ["--threads", "100000"], "--threads is 100000; it must be at most 1024"),
        (router, ["--router", "both"], "--router.*volume_aware"),
        (router, ["--routr", "pixel"], "--routr.*did you mean"),
        (router, ["--mask_lr", "fast"], "--mask_lr"),
        (router, ["--resume", "--overwrite"], "exclude each other"),
        (router, ["--configs", "nowhere.py"], "nowhere.py does not exist"),
        (router, ["word"], "unexpected argument 'word'"),
        (prune, [], "--moe is missing"),
        (prune, ["--moe", "run"], "--expname run is the MoE itself"),
        (prune, ["--moe", "./x/../run"], "is the MoE itself"),
        (prune, ["--moe", "m", "--importance", "size"], "--importance.*gate"),
        (distill, ["--moe", "m"], "--expert is missing"),
        (distill, ["--expert", "a"], "--moe is missing"),
        (distill, ["--moe", "m", "--expert", "a", "--lambda", "1"], "unknown flag --lambda"),
        (rendering, ["-m", "run", "--device", "tpu"], "--device"),
        (rendering, [], "--model_path|--expname"),
    ],
)
def test_mistakes_are_named_in_one_line(parse, flags, says):
    with pytest.raises(UserError, match=says) as caught:
        parse(*flags)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("RouterParams = dict(mask_rl=1)", "unknown key 'mask_rl' in RouterParams; did you mean"),
        ("RouterParams = dict(router='both')", "router"),
        ("RouterParams = dict(mask_lr='x')", "mask_lr is 'x'"),
        ("RouterParams = dict(mask_lr=-1)", "--mask_lr is -1"),
        ("RouterParam = dict()", "unknown section 'RouterParam'; did you mean"),
        ("RouterParams = 5", "RouterParams"),
    ],
)
def test_faults_of_a_recipe_are_named(tmp_path, text, says):
    path = tmp_path / "recipe.py"
    path.write_text(text)
    with pytest.raises(UserError, match=says):
        router("--configs", str(path))


def test_saved_settings_are_read_strictly():
    saved = as_dict(RouterParams(mask_lr=0.125))
    assert router_params(saved, "moe.json") == RouterParams(mask_lr=0.125)
    for change, says in {
        "missing": "mask_lr is missing or unknown",
        "more": "more is missing or unknown",
        "range": "--mask_lr is -1.0; it must be at least 0; restore",
        "type": "mask_lr is 'x'; it must be a number",
    }.items():
        other = dict(saved)
        if change == "missing":
            del other["mask_lr"]
        else:
            other["more" if change == "more" else "mask_lr"] = -1.0 if change == "range" else "x"
        with pytest.raises(UserError, match=f"moe.json.*({says})"):
            router_params(other, "moe.json")


def test_every_recipe_of_a_mixture_says_how_its_router_is_trained_within_ranges(root):
    found = sorted((root / "arguments_MoDE" / "moe").rglob("*.py"))
    assert len(found) > 3
    for path in found:
        assert router("--configs", str(path)).params.router == "volume_aware"
