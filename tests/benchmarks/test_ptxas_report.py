"""The report on compiled kernels: what it reads from ptxas, names, the table and the check."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys

import pytest

from utils.errors import UserError


@pytest.fixture(scope="module")
def report(root):
    spec = importlib.util.spec_from_file_location(
        "ptxas_report", root / "benchmarks" / "ptxas_report.py"
    )
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Three kernels: one of CUDA 13's lines, one of CUDA 11's, and one with a function that is called.
PTXAS = """\
ptxas info    : 24 bytes gmem, 8 bytes cmem[4]
ptxas info    : Compiling entry function '_ZN4moss5blendIfLi3EEEvPKT_' for 'sm_90'
ptxas info    : Function properties for _ZN4moss5blendIfLi3EEEvPKT_
    216 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 39 registers, used 1 barriers, 216 bytes cumulative stack size
ptxas info    : Compile time = 26.4 ms
ptxas info    : Compiling entry function '_ZN4moss4sortEPiS0_' for 'sm_80'
ptxas info    : Function properties for _ZN4moss4sortEPiS0_
    48 bytes stack frame, 44 bytes spill stores, 52 bytes spill loads
ptxas info    : Used 255 registers, 9216+0 bytes smem, 384 bytes cmem[0], 16 bytes cmem[2]
ptxas info    : Compiling entry function '_ZN4moss4packEPi' for 'sm_80'
ptxas info    : Function properties for _ZN4moss4packEPi
    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Function properties for _ZN4moss5innerEi
    32 bytes stack frame, 16 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 64 registers, used 0 barriers, 128 bytes smem, 360 bytes cmem[0]
"""


def test_sizes_of_every_kernel_are_read(report):
    blend, sort, pack = report.parse_ptxas(PTXAS)
    assert blend == report.Kernel("_ZN4moss5blendIfLi3EEEvPKT_", "sm_90", registers=39, stack=216)
    assert (sort.architecture, sort.registers, sort.shared) == ("sm_80", 255, 9216)
    assert (sort.spill_stores, sort.spill_loads, sort.stack) == (44, 52, 48)
    assert (pack.spill_stores, pack.spill_loads, pack.stack, pack.shared) == (20, 24, 32, 128)
    assert [kernel.spills for kernel in (blend, sort, pack)] == [False, True, True]


def test_what_is_not_ptxas_has_no_kernels(report):
    assert report.parse_ptxas("") == []
    assert report.parse_ptxas("nvcc warning: 0 bytes stack frame, Used 7 registers") == []


@pytest.mark.parametrize(
    ("signature", "name"),
    [
        ("moss::sort(int*, int*)", "sort"),
        ("void moss::blend<float, 3>(float const*)", "blend<float, 3>"),
        (
            "void a::(anonymous namespace)::f<a::(anonymous namespace)::List<1> >(a::Shape, long)",
            "f<List<1>>",
        ),
        ("void a::f<(a::Mode)1, void (*)(int)>(int (*)(float))", "f<(Mode)1, void (*)(int)>"),
        ("plain", "plain"),
    ],
)
def test_names_are_short(report, signature, name):
    assert report.short_name(signature) == name


def test_kernels_of_cub_are_told_apart(report):
    assert report.is_foreign("void cub::CUB_300001_SM_800::RadixSort<int>(int*)")
    assert not report.is_foreign("void ours::f<cub::Policy>(cub::Sum)")


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="needs c++filt")
def test_names_are_demangled_in_order(report):
    assert report.demangle(["_ZN4moss4packEPi", "plain"]) == ["moss::pack(int*)", "plain"]


def named_kernels(report):
    kernels = report.parse_ptxas(PTXAS)
    for kernel, name in zip(kernels, ("blend<float, 3>", "sort<2>", "pack"), strict=True):
        kernel.source, kernel.name = "moss/moss.cu", name
    return kernels


def test_the_table_has_a_line_for_each(report):
    lines = report.table(named_kernels(report)).splitlines()
    assert lines[2] == "| moss/moss.cu | `blend<float, 3>` | sm_90 | 39 | 0 / 0 | 0 | 216 |"
    assert lines[3] == "| moss/moss.cu | `sort<2>` | sm_80 | 255 | 44 / 52 | 9216 | 48 |"
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 5


@pytest.mark.parametrize(
    ("allowed", "left"),
    [
        ([], ["sort<2>", "pack"]),
        (["sort"], ["pack"]),
        (["sort<2>", "pack"], []),
        (["sort<3>", "pac"], ["sort<2>", "pack"]),
    ],
)
def test_the_check_lists_kernels_that_spill_unless_allowed(report, capsys, allowed, left):
    kernels = named_kernels(report)
    assert [kernel.name for kernel in report.spilling(kernels, allowed)] == left
    assert report.check(kernels, allowed) == (1 if left else 0)
    said = capsys.readouterr().out
    assert all(f"{name} spills on sm_80" in said for name in left)
    assert f"3 kernels compiled, {len(left)} spill" in said


def test_the_section_is_made_then_replaced_and_the_rest_is_kept(report, tmp_path):
    path = tmp_path / "cuda.md"
    report.write_section(path, "first")
    assert path.read_text().startswith("# CUDA\n")
    path.write_text(path.read_text() + "\nmore\n")
    report.write_section(path, "second")
    text = path.read_text()
    assert "first" not in text and text.endswith(f"\nsecond\n{report.END}\n\nmore\n")


@pytest.mark.parametrize("text", ["", "{begin}", "{end} {begin}", "{begin}{end}{begin}{end}"])
def test_a_document_without_both_markers_is_left_alone(report, tmp_path, text):
    path = tmp_path / "cuda.md"
    path.write_text(text.format(begin=report.BEGIN, end=report.END))
    before = path.read_text()
    with pytest.raises(UserError, match=r"cuda\.md: the document must have one line"):
        report.write_section(path, "new")
    assert path.read_text() == before


def test_options_of_one_file_are_those_of_its_package(report, tmp_path):
    (tmp_path / "CMakeLists.txt").write_text(
        "set_source_files_properties(src/one.cu PROPERTIES COMPILE_OPTIONS -fmad=false)\n"
        'set_source_files_properties(src/two.cu PROPERTIES\n  COMPILE_OPTIONS "-a;-b")\n'
    )
    expected = {"one.cu": ["-fmad=false"], "two.cu": ["-a", "-b"], "three.cu": []}
    for name, options in expected.items():
        assert report.own_options(tmp_path, tmp_path / "src" / name) == options


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "nvcc is not on the PATH"),
        (["--jobs", "0"], "--jobs must be at least 1"),
        (["--architectures", "80"], "'80' is not like sm_80"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(root, flags, message):
    done = subprocess.run(
        [sys.executable, root / "benchmarks" / "ptxas_report.py", *flags],
        capture_output=True,
        text=True,
        env={"PATH": ""},
    )
    assert done.returncode == 2
    assert message in done.stderr and len(done.stderr.splitlines()) == 1
