"""Pictures of the gates and the table of how much each expert is used."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import tiny
from training.gates import (
    PALETTE,
    chosen_attributes,
    expert_colors,
    gate_renderer,
    gate_usage,
    usage_table,
    with_legend,
)
from training.launch import build_model
from utils.errors import UserError


@pytest.fixture
def scene():
    return tiny.scene()


def model_of(scene, *experts: str, gate: str = "softmax"):
    config = tiny.config()
    config.hidden.gate = gate
    config.hidden.experts = list(experts)
    model = build_model(scene, config).eval()
    for name in model.gaussians.names:
        if name.startswith("gate_"):
            model.gaussians[name].data.zero_()
    return model


def decide(model, attribute: str, expert: int, knot=slice(None)) -> None:
    """Lets one expert have it all, at all knots or at one."""
    model.gaussians[f"gate_{attribute}"].data[:, knot, expert] = 30.0


def test_every_expert_has_a_colour_of_its_own():
    names = [*PALETTE, *(f"new {k}" for k in range(60))]
    colors = expert_colors(names)
    assert len(set(colors.values())) == len(names)
    assert all(0 <= part <= 255 for color in colors.values() for part in color)


@pytest.mark.parametrize("expert", [0, 1])
def test_a_picture_has_the_colour_of_the_expert_that_decides(scene, expert):
    model = model_of(scene, "hexplane", "embedding")
    decide(model, "xyz", expert)
    model.gaussians.opacity.data.fill_(8.0)  # opaque
    model.gaussians.log_scale.data.fill_(0.5)  # and large: they fill the image
    picture = gate_renderer(model, scene, 10, "xyz")(scene.test[0])
    wanted = torch.tensor(PALETTE[list(model.experts)[expert]]) / 255
    assert torch.allclose(picture[:, 8, 12], wanted, atol=0.01)


def test_the_legend_is_below_and_leaves_the_picture_alone(scene):
    model = model_of(scene, "hexplane", "embedding")
    decide(model, "xyz", 1)
    pixels = np.full((40, 300, 3), 77, np.uint8)
    both = with_legend(pixels, model, "xyz", 0.5)
    assert (both[:40] == 77).all() and both.shape[1:] == (300, 3) and both.shape[0] % 2 == 0
    strip = both[40:].reshape(-1, 3)
    for name in ("hexplane", "embedding"):
        assert (strip == PALETTE[name]).all(-1).any(), name


def test_a_narrow_legend_takes_more_rows(scene):
    model = model_of(scene, "hexplane", "embedding", "keyframe")
    heights = [
        with_legend(np.zeros((10, width, 3), np.uint8), model, "xyz", 0).shape[0]
        for width in (600, 120)
    ]
    assert heights[1] > heights[0]


@pytest.mark.parametrize("width", range(40, 400, 6))
def test_the_legend_is_as_high_whatever_the_shares_are(width):
    router = SimpleNamespace(members={"xyz": (0, 1, 2)})
    pixels, heights = np.zeros((10, width, 3), np.uint8), set()
    for shares in ((0.05, 0.95, 0.0), (0.5, 0.5, 0.0), (1.0, 0.0, 0.0), (0.88, 0.06, 0.06)):
        gates = {"xyz": torch.tensor([shares])}
        model = SimpleNamespace(
            experts=["hexplane", "hash", "keyframe"], router=router, gates=lambda _, g=gates: g
        )
        heights.add(with_legend(pixels, model, "xyz", 0.5).shape[0])
    assert len(heights) == 1


def test_usage_counts_weights_and_changes_of_mind(scene):
    model = model_of(scene, "hexplane", "embedding")
    decide(model, "xyz", 1)
    decide(model, "rotation", 0, knot=0)
    decide(model, "rotation", 1, knot=2)
    usage = gate_usage(model, [0.0, 0.5, 1.0], 10)
    assert usage["xyz"]["all"]["weight"]["embedding"] == pytest.approx(1, abs=1e-5)
    assert usage["xyz"]["all"]["entropy"] == pytest.approx(0, abs=1e-4)
    assert usage["xyz"]["all"]["changes"] == 0
    rotation = usage["rotation"]["all"]
    assert rotation["changes"] == 1
    assert rotation["weight"]["hexplane"] == pytest.approx(0.5, abs=0.01)
    assert sum(rotation["best"].values()) == pytest.approx(1)


def test_the_moving_tenth_is_judged_by_itself(scene):
    model = model_of(scene, "hexplane", "keyframe")
    model.experts["hexplane"].heads.zero_last_()
    with torch.no_grad():
        model.gaussians["keyframe_xyz"][:6, -1] += 1.0  # 6 of 60 Gaussians move
        model.gaussians["gate_xyz"][6:, :, 0] = 30.0  # the others are the HexPlane's
    usage = gate_usage(model, [0.0, 1.0], 10)["xyz"]
    assert usage["moving"]["weight"]["keyframe"] == pytest.approx(0.5)
    assert usage["all"]["weight"]["keyframe"] == pytest.approx(0.05, abs=1e-3)


def test_the_table_has_a_row_per_attribute_and_group(scene):
    model = model_of(scene, "hexplane", "embedding")
    lines = usage_table(gate_usage(model, [0.0, 1.0], 10)).splitlines()
    assert len(lines) == 1 + 2 * 2 and len({len(line) for line in lines}) == 1
    assert "hexplane" in lines[0] and "50 %" in lines[1]


def test_a_run_without_a_router_has_no_gates(scene):
    with pytest.raises(UserError, match="no router"):
        chosen_attributes(model_of(scene, "hexplane"), [])


@pytest.mark.parametrize("wanted", [[], ["xyz"]], ids=str)
def test_deltas_that_are_added_up_have_no_gates(scene, wanted):
    with pytest.raises(UserError, match="no router .* --gate sum"):
        chosen_attributes(model_of(scene, "hexplane", "embedding", gate="sum"), wanted)


def test_an_attribute_that_is_not_routed_is_refused_by_name(scene):
    model = model_of(scene, "hexplane", "embedding")
    assert chosen_attributes(model, []) == ["xyz", "rotation"]
    with pytest.raises(UserError, match="sh: this run routes xyz, rotation"):
        chosen_attributes(model, ["sh"])
