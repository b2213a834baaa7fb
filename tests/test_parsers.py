"""Whatever a file holds, its parser answers with a value or with one line that names the file."""

from __future__ import annotations

import json
from pathlib import Path

import builders
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arguments_MoDE.config import Config
from arguments_MoDE.recipe import read_recipe
from arguments_MoDE.saved import load_config, save_config
from arguments_MoDE.values import all_settings, validate
from scene.colmap import read_model
from scene.point_cloud import read_ply, read_vertices, write_vertices
from training.reports import Report
from utils.errors import UserError

many = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
WORDS = ["dict(", ")", "{", "}", "[", "]", ",", "=", ":", "**", "*", "-", "1", "1e999", "0x", "'"]
WORDS += ["'a'", "None", "True", "\n", " ", "OptimizationParams", "_base_", "iterations", "lambda"]
WORDS += ["__import__('os')", "f'{1}'", "1_0", "\\", "\0", "é", "9" * 400, "(", "#", "if", "for"]


def answers(parse, path: Path) -> object | None:
    """What ``parse`` gives, None where it refuses; anything but a `UserError` is raised."""
    try:
        return parse(path)
    except UserError as error:
        assert str(error).count("\n") == 0 and path.name.split(".")[0] in str(error)
        return None


@st.composite
def damaged(draw, whole: bytes) -> bytes:
    """``whole`` with a piece overwritten, cut out, doubled, or the end cut off."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        size = draw(st.integers(0, 12))
        kind = draw(st.sampled_from(["write", "cut", "double", "end"]))
        if kind == "write":
            data[at : at + size] = draw(st.binary(min_size=size, max_size=size))
        elif kind == "cut":
            del data[at : at + size]
        elif kind == "double":
            data[at:at] = data[at : at + size]
        else:
            del data[at:]
    return bytes(data)


# ---- recipes and settings -----------------------------------------------------------------------


@given(st.lists(st.sampled_from(WORDS), max_size=25).map("".join))
@many
def test_any_text_is_a_recipe_or_refused(tmp_path, text):
    path = tmp_path / "recipe.py"
    path.write_text(text, encoding="utf-8", newline="")
    answers(lambda p: read_recipe(p, lambda note: None), path)


RECIPE = b"""OptimizationParams = dict(iterations=2 * 300, lambda_dssim=.1, loss='l1', batch_size=2)
ModelHiddenParams = {"kplanes_config": {"resolution": [64, 64, 64, 150]}, 'multires': (1, 2)}
"""


@given(damaged(RECIPE))
@many
def test_a_damaged_recipe_gives_settings_of_the_right_types_or_is_refused(tmp_path, data):
    path = tmp_path / "recipe.py"
    path.write_bytes(data)
    found = answers(lambda p: read_recipe(p, lambda note: None), path)
    for section, values in (found or {}).items():
        for name in values:
            assert all_settings()[name].section == section


plain = {
    "iterations": st.integers(0, 10**6),
    "lambda_dssim": st.floats(0, 1),
    "loss": st.sampled_from(["l1", "l2", "charbonnier"]),
    "camera_color": st.booleans(),
}


@given(st.fixed_dictionaries({}, optional=plain))
@many
def test_what_a_recipe_says_is_what_is_read(tmp_path, values):
    path = tmp_path / "recipe.py"
    path.write_text(f"OptimizationParams = {values!r}\n")
    read = read_recipe(path, lambda note: None)
    assert read == ({"OptimizationParams": values} if values else {})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(st.sampled_from(sorted(all_settings())), JSON)
@many
def test_saved_settings_of_any_kind_are_accepted_or_refused(tmp_path, name, value):
    path, sections = tmp_path / "config.json", Config().as_dict()
    sections[all_settings()[name].section][name] = value
    path.write_text(json.dumps(sections))
    config = answers(load_config, path)
    if config is not None:
        try:
            validate(config)
        except UserError as error:
            assert "\n" not in str(error)


@given(st.data())
@many
def test_damaged_saved_settings_are_accepted_or_refused(tmp_path, data):
    path = tmp_path / "config.json"
    save_config(Config(), path)
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    answers(load_config, path)


@given(st.data())
@many
def test_any_settings_survive_the_round_trip(tmp_path, data):
    config = Config()
    for name, values in plain.items():
        setattr(config.opt, name, data.draw(values))
    save_config(config, tmp_path / "config.json")
    assert load_config(tmp_path / "config.json") == config


@given(damaged(b'{"event": "train", "step": 10, "loss": 0.1}\n' * 3))
@many
def test_a_damaged_log_keeps_its_whole_lines(tmp_path, data):
    (tmp_path / "metrics.jsonl").write_bytes(data)
    Report(tmp_path, quiet=True, keep_through=10).close()
    for line in (tmp_path / "metrics.jsonl").read_bytes().splitlines():
        assert json.loads(line)["step"] <= 10


# ---- clouds and models --------------------------------------------------------------------------

HEADER = ["ply", "format ascii 1.0", "format binary_little_endian 1.0", "format", "end_header"]
HEADER += ["element vertex 2", "element vertex -1", "element vertex 999999999999", "element face 1"]
HEADER += ["property float x", "property float y", "property float z", "property list uchar int v"]
HEADER += [
    "property list float int v",
    "property",
    "comment é",
    "",
    "\0",
    "x" * 300,
    "property a b",
]


@given(st.lists(st.sampled_from(HEADER), max_size=12), st.binary(max_size=40))
@many
def test_any_header_is_a_cloud_or_refused(tmp_path, lines, body):
    path = tmp_path / "cloud.ply"
    path.write_bytes("\n".join(["ply", *lines, "end_header\n"]).encode() + body)
    found = answers(read_vertices, path)
    if found is not None:
        assert len({len(column) for column in found.values()}) <= 1
    cloud = answers(read_ply, path)
    assert cloud is None or np.isfinite(cloud.xyz).all()


@given(st.data())
@many
def test_a_damaged_cloud_is_read_whole_or_refused(tmp_path, data):
    path = tmp_path / "cloud.ply"
    rng = np.random.default_rng(0)
    write_vertices(path, {axis: rng.normal(size=5).astype(np.float32) for axis in "xyz"})
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    cloud = answers(read_ply, path)
    assert cloud is None or (np.isfinite(cloud.xyz).all() and len(cloud) == len(cloud.rgb))


@pytest.mark.parametrize("name", ["cameras.txt", "images.txt", "points3D.txt"])
@given(data=st.data())
@many
def test_a_damaged_text_model_is_read_or_refused(tmp_path, name, data):
    folder = tmp_path / "sparse" / "0"
    if not folder.exists():
        builders.colmap_scene(tmp_path, frames=3, binary=False)
    path = folder / name
    whole = path.read_bytes()
    path.write_bytes(data.draw(damaged(whole)))
    try:
        model = read_model(folder)
        assert np.isfinite(model.points.xyz).all()
    except UserError as error:
        assert "\n" not in str(error)
    finally:
        path.write_bytes(whole)
