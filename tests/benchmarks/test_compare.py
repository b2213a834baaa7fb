"""Results side by side: which numbers are compared, in which direction, and the exit code."""

from __future__ import annotations

import json

import pytest

from benchmarks import compare

HEXPLANE = {
    "threads": 2,
    "cases": [
        {"points": 10, "channels": 16, "forward_ms": 2.0, "twin_forward_ms": 8.0, "ratio": 4.0},
        {"points": 20, "channels": 16, "forward_ms": 4.0, "twin_forward_ms": 8.0, "ratio": 2.0},
    ],
}
CHECK = {
    "seconds": 500,
    "stages": {
        "tests:gpu": {"seconds": 99, "results": {"passed": 3}},
        "bench:ssim": {"seconds": 9, "results": {"ms": 3.0, "convolution_ms": 9.0}},
        "gsplat:n3v": {
            "results": {
                "ours": {"forward": {"ms": 1.0, "peak_mib": 50.0}},
                "gsplat": {"forward": {"ms": 2.0}},
            }
        },
        "demo:comparison": {"results": {"fps_cuda": 300.0, "psnr_cuda": 29.0}},
        "profile": {"results": {"kernels": [{"name": "blend", "calls": 1.0, "us": 7.0}]}},
    },
}


def changed(result: dict, old: str, new: str) -> dict:
    text = json.dumps(result)
    assert old in text
    return json.loads(text.replace(old, new))


def run(tmp_path, before, after, *flags: str) -> int:
    for name, result in (("before", before), ("after", after)):
        (tmp_path / name).write_text(json.dumps(result))
    return compare.main([str(tmp_path / "before"), str(tmp_path / "after"), *flags])


def test_rows_are_told_apart_by_what_is_not_measured():
    found = compare.measurements(HEXPLANE)
    assert found == {
        "cases[10 16]/forward_ms": 2.0,
        "cases[10 16]/twin_forward_ms": 8.0,
        "cases[20 16]/forward_ms": 4.0,
        "cases[20 16]/twin_forward_ms": 8.0,
    }


def test_of_a_whole_check_what_was_measured_is_taken():
    assert compare.measurements(CHECK) == {
        "bench:ssim/ms": 3.0,
        "bench:ssim/convolution_ms": 9.0,
        "gsplat:n3v/ours/forward/ms": 1.0,
        "gsplat:n3v/ours/forward/peak_mib": 50.0,
        "gsplat:n3v/gsplat/forward/ms": 2.0,
        "demo:comparison/fps_cuda": 300.0,
        "profile/kernels[blend]/us": 7.0,
    }


def test_units_are_words_of_a_key_or_of_the_one_above():
    result = {
        "ms_mean": 1.0,
        "parts_ms": {"render": 2.0},
        "moving": {"fps": 3.0, "frames": 50},
        "peak_gb": 4.0,
        "gaussians": 5,
        "forms": 6.0,
        "agree": True,
    }
    wanted = ["ms_mean", "parts_ms/render", "moving/fps", "peak_gb"]
    assert list(compare.measurements(result)) == wanted
    assert compare.worsening("moving/fps", 10.0, 5.0) == 2.0
    assert compare.worsening("parts_ms/render", 10.0, 5.0) == 0.5


def test_equal_results_pass(tmp_path, capsys):
    assert run(tmp_path, CHECK, CHECK, "--threshold", "1.01") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 7 and all(line.endswith("1.000") for line in lines[1:])


@pytest.mark.parametrize(
    ("old", "new", "worse"),
    [
        ('"ms": 3.0', '"ms": 3.6', True),
        ('"ms": 3.0', '"ms": 2.0', False),
        ('"ms": 1.0', '"ms": 1.2', True),
        ('"peak_mib": 50.0', '"peak_mib": 60.0', True),
        ('"us": 7.0', '"us": 8.0', True),
        ('"fps_cuda": 300.0', '"fps_cuda": 250.0', True),
        ('"fps_cuda": 300.0', '"fps_cuda": 360.0', False),
        ('"ms": 2.0', '"ms": 4.0', False),  # gsplat's
        ('"convolution_ms": 9.0', '"convolution_ms": 19.0', False),
        ('"ms": 3.0', '"ms": 3.2', False),  # within the threshold
    ],
)
def test_what_is_worse_by_more_than_the_threshold_fails(tmp_path, capsys, old, new, worse):
    after = changed(CHECK, old, new)
    assert run(tmp_path, CHECK, after, "--threshold", "1.1") == worse
    assert ("worse" in capsys.readouterr().out) == worse
    assert run(tmp_path, CHECK, after) == 0  # without a threshold it only shows


def test_a_measurement_that_is_missing_is_shown_on_its_side(tmp_path, capsys):
    assert run(tmp_path, {"a_ms": 1.0, "b_ms": 2.0}, {"b_ms": 2.0, "c_ms": 3.0}) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert lines == [["a_ms", "1", "-", "-"], ["b_ms", "2", "2", "1.000"], ["c_ms", "-", "3", "-"]]


def test_a_time_of_zero_has_no_ratio(tmp_path):
    assert run(tmp_path, {"a_ms": 0.0, "b_ms": 1.0}, {"a_ms": 5.0, "b_ms": 1.0}) == 0


def test_folders_are_compared_by_name(tmp_path, capsys):
    for side, ms in (("before", 1.0), ("after", 2.0)):
        (tmp_path / side).mkdir()
        (tmp_path / side / "knn.json").write_text(json.dumps({"ms": ms}))
    folders = [str(tmp_path / "before"), str(tmp_path / "after")]
    assert compare.main([*folders, "--threshold", "1.5"]) == 1
    assert "knn.json: ms" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("after", "said"),
    [({"c_ms": 1.0}, "no measurement in common"), ("{", "is not JSON"), (None, "cannot be read")],
)
def test_what_cannot_be_compared_is_named(tmp_path, capsys, after, said):
    (tmp_path / "before").write_text('{"a_ms": 1.0}')
    if after is not None:
        text = after if isinstance(after, str) else json.dumps(after)
        (tmp_path / "after").write_text(text)
    assert compare.main([str(tmp_path / "before"), str(tmp_path / "after")]) == 2
    assert said in capsys.readouterr().err
