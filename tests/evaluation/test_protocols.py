"""The table of protocols: consistent with itself, with the metrics, and with its document."""

from __future__ import annotations

import re

import pytest

from evaluation.measure import _SSIMS
from evaluation.protocols import (
    PROTOCOLS,
    SSIM_WINDOWS,
    SSIMS,
    find_protocol,
    protocol_of_kind,
    protocol_table,
)
from utils.errors import UserError
from utils.lpips import CONVENTIONS, NETS


def test_the_document_shows_the_table_of_the_code(root):
    document = (root / "docs" / "evaluation.md").read_text()
    shown = re.search(r"<!-- protocols -->\n(.*)<!-- end of protocols -->", document, re.DOTALL)
    assert shown, "docs/evaluation.md has lost its marks"
    assert shown.group(1) == protocol_table()


def test_the_promised_protocols_are_there_each_once():
    names = [protocol.name for protocol in PROTOCOLS]
    assert len(set(names)) == len(names)
    assert {"n3v", "technicolor", "hypernerf", "dnerf", "panoptic"} < set(names)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
def test_every_protocol_names_what_can_be_measured_and_its_source(protocol):
    assert {protocol.ssim, *protocol.also} <= SSIMS.keys() == {"ssim", *_SSIMS}
    assert SSIM_WINDOWS.keys() == SSIMS.keys()
    assert protocol.ssim not in protocol.also
    assert protocol.lpips_net in NETS and protocol.lpips_range in CONVENTIONS
    assert protocol.source and protocol.differing.endswith(".")
    assert f"**{protocol.name}**, after {protocol.source}" in protocol_table()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("n3v", "n3v"),
        ("blender", "dnerf"),
        ("technicolor", "technicolor"),
        ("hypernerf", "hypernerf"),
        ("panoptic", "panoptic"),
        ("colmap", "render"),
        ("multiview", "render"),
    ],
)
def test_every_kind_of_scene_has_a_protocol(kind, name):
    assert protocol_of_kind(kind).name == name


def test_kinds_are_those_that_the_readers_give(root):
    readers = "".join(path.read_text() for path in (root / "scene" / "datasets").glob("*.py"))
    for protocol in PROTOCOLS:
        for kind in protocol.kinds:
            assert re.search(rf'Capture\(\s*"{kind}"|kind="{kind}"', readers), kind


def test_an_unknown_protocol_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="--protocol tecnicolor: unknown; did you mean 'technicol"):
        find_protocol("tecnicolor")
    with pytest.raises(UserError, match="unknown; there are n3v, technicolor"):
        find_protocol("zzz")
