"""The set-up's decisions: which environment, which versions, what has to be built again."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from script import bootstrap
from script.bootstrap import Interpreter, NativePackage, SetupError

PINS = "# tested\ntorch==2.13.0\nnumpy==2.4.6; python_version >= '3.11'\nav==18.1.0\n"


def make_interpreter(**changes: object) -> Interpreter:
    values = dict(executable="/py/bin/python", version=(3, 11, 7), prefix="/py", is_base=True)
    return Interpreter(**{**values, **changes})


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "submodules" / "fast-thing"
    (folder / "src").mkdir(parents=True)
    (folder / "fast_thing").mkdir()
    (folder / "pyproject.toml").write_text('[build-system]\n[project]\nname = "fast_thing"\n')
    (folder / "src" / "a.cpp").write_text("int a;")
    (folder / "fast_thing" / "__init__.py").write_text("")
    return folder


def test_probe_reports_this_interpreter():
    found = bootstrap.probe(sys.executable)
    assert found.version == sys.version_info[:3]
    assert found.packages["pytest"]


def test_probe_of_a_missing_python_names_it(tmp_path: Path):
    with pytest.raises(SetupError, match="no-python.*PYTHON="):
        bootstrap.probe(str(tmp_path / "no-python"))


def test_probe_of_a_broken_python_gives_its_last_words(tmp_path: Path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho cannot load >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(SetupError, match="cannot load"):
        bootstrap.probe(str(broken))


@pytest.mark.parametrize("version", [(3, 10, 0), (3, 13, 2), (4, 0)])
def test_new_enough_python_is_accepted(version):
    bootstrap.check_python(version)


@pytest.mark.parametrize("version", [(3, 9, 18), (2, 7, 18)])
def test_old_python_is_refused_with_both_versions(version):
    with pytest.raises(SetupError, match=r"Python 3\.10 or newer.*this is \d\.\d"):
        bootstrap.check_python(version)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("2.13.0+cpu", (2, 13, 0)),
        ("2.5.1+cu124", (2, 5, 1)),
        ("2.6.0a0+git1", (2, 6, 0)),
        ("x", ()),
    ],
)
def test_release_numbers(text, numbers):
    assert bootstrap.release(text) == numbers


def test_torch_too_old_is_refused_and_not_replaced():
    with pytest.raises(SetupError, match=r"torch 2\.3\.1.*not ours to replace"):
        bootstrap.check_torch(make_interpreter(packages={"torch": "2.3.1+cu121"}))


@pytest.mark.parametrize("packages", [{}, {"torch": "2.4.0"}, {"torch": "2.13.0+cu130"}])
def test_usable_or_missing_torch_passes(packages):
    bootstrap.check_torch(make_interpreter(packages=packages))


def test_compiler_named_by_cxx_is_used(tmp_path: Path):
    (tmp_path / "my-c++").write_text("#!/bin/sh\n")
    (tmp_path / "my-c++").chmod(0o755)
    found = bootstrap.compiler({"CXX": "my-c++ -O1", "PATH": str(tmp_path)})
    assert found == str(tmp_path / "my-c++")


def test_missing_compiler_says_how_to_get_one(tmp_path: Path):
    with pytest.raises(SetupError, match=r"no C\+\+ compiler.*apt install g\+\+"):
        bootstrap.compiler({"PATH": str(tmp_path)})


def test_requirement_names_skip_options_and_comments():
    text = "-r other.txt\n# numpy\nTorch>=2.4\nscikit_image >= 0.2 # why\n\npillow\n"
    assert bootstrap.requirement_names(text) == ["torch", "scikit-image", "pillow"]


def test_own_environment_gets_the_tested_versions_and_keeps_its_torch():
    limits = bootstrap.own_constraints(PINS, "2.5.1+cu124").split("\n")
    assert "torch==2.5.1+cu124" in limits and "torch==2.13.0" not in limits
    assert "numpy==2.4.6; python_version >= '3.11'" in limits


def test_other_environment_keeps_what_it_has():
    limits = bootstrap.constraints_for(PINS, {"torch": "2.6.0", "numpy": "1.26.4"}).split()
    assert limits == ["av==18.1.0", "torch==2.6.0"]


def test_without_torch_the_tested_one_is_the_limit():
    assert "torch==2.13.0" in bootstrap.own_constraints(PINS, None)


def test_every_required_package_is_pinned(root: Path):
    names = bootstrap.requirement_names((root / "constraints.txt").read_text())
    wanted = [
        name
        for file in ("requirements.txt", "requirements-dev.txt")
        for name in bootstrap.requirement_names((root / file).read_text())
    ]
    assert sorted(names) == sorted(wanted)


def test_base_python_works_in_a_venv_of_the_repository(tmp_path: Path):
    python = bootstrap.environment_python(make_interpreter(), tmp_path)
    assert python.is_relative_to(tmp_path / ".venv")


def test_active_environment_is_used_as_it_is(tmp_path: Path):
    active = make_interpreter(is_base=False)
    assert bootstrap.environment_python(active, tmp_path) == Path("/py/bin/python")


@pytest.mark.parametrize(
    ("packages", "shares"), [({"torch": "2.7.0"}, True), ({"torch": "1.13"}, False), ({}, False)]
)
def test_venv_sees_the_callers_packages_when_its_torch_is_usable(packages, shares):
    command = bootstrap.venv_command(make_interpreter(packages=packages), Path(".venv"))
    assert ("--system-site-packages" in command) == shares


@pytest.mark.parametrize(
    ("folder", "setting", "ours"),
    [(".venv", "false", True), (".venv", "true", False), ("other", "false", False)],
)
def test_only_an_isolated_venv_of_the_repository_is_ours(tmp_path: Path, folder, setting, ours):
    (tmp_path / folder).mkdir()
    settings = tmp_path / folder / "pyvenv.cfg"
    settings.write_text(f"home = /x\ninclude-system-site-packages = {setting}\n")
    assert bootstrap.is_ours(str(tmp_path / folder), tmp_path) == ours


def test_native_packages_are_found_by_their_pyproject(package: Path):
    (package.parent / "notes").mkdir()
    found = bootstrap.native_packages(package.parent)
    assert found == [NativePackage("fast-thing", package)]
    assert found[0].module == "fast_thing"


def test_pyproject_without_a_name_is_named(package: Path):
    (package / "pyproject.toml").write_text("[project]\n")
    with pytest.raises(SetupError, match=r"fast-thing.pyproject\.toml has no"):
        bootstrap.native_packages(package.parent)


@pytest.mark.parametrize(
    "change", ["src/a.cpp", "src/new.h", "fast_thing/new.py", "CMakeLists.txt"]
)
def test_sources_that_need_a_build_change_the_key(package: Path, change: str):
    before = bootstrap.source_key(package)
    (package / change).write_text("changed")
    assert bootstrap.source_key(package) != before


@pytest.mark.parametrize(
    "change", ["fast_thing/__init__.py", "build/x.o", "tests/t.cpp", ".cache/c"]
)
def test_what_needs_no_build_keeps_the_key(package: Path, change: str):
    before = bootstrap.source_key(package)
    (package / change).parent.mkdir(exist_ok=True)
    (package / change).write_text("changed")
    assert bootstrap.source_key(package) == before


@pytest.mark.parametrize("name", ["CXXFLAGS", "CMAKE_CUDA_ARCHITECTURES", "CMAKE_ARGS"])
def test_build_settings_change_the_toolchain_key(name: str):
    plain = bootstrap.toolchain_key({"PATH": ""}, (3, 11))
    assert bootstrap.toolchain_key({"PATH": "", name: "x"}, (3, 11)) != plain


def test_another_minor_python_changes_the_toolchain_key():
    keys = {bootstrap.toolchain_key({"PATH": ""}, (3, minor, 1)) for minor in (10, 11)}
    assert len(keys) == 2


def test_boundaries_count_in_a_digest():
    assert bootstrap.digest(["ab", "c"]) != bootstrap.digest(["a", "bc"])


def test_state_knows_only_the_same_key(tmp_path: Path):
    state = bootstrap.State(tmp_path / "state")
    assert not state.is_done("torch", "1")
    state.remember("torch", "1")
    assert state.is_done("torch", "1") and not state.is_done("torch", "2")
    state.forget("torch")
    assert not state.is_done("torch", "1")


def test_package_installed_from_elsewhere_is_not_taken_for_this_one(tmp_path: Path):
    package = NativePackage("fast-thing", tmp_path / "a b")
    have = {"fast-thing": "0.1"}
    here = {"fast-thing": (tmp_path / "a b").as_uri()}
    assert bootstrap.is_editable(make_interpreter(packages=have, sources=here), package)
    there = {"fast-thing": (tmp_path / "other").as_uri()}
    assert not bootstrap.is_editable(make_interpreter(packages=have, sources=there), package)
    assert not bootstrap.is_editable(make_interpreter(), package)


def test_failing_step_shows_the_logs_end_and_names_the_log(tmp_path: Path, capsys):
    steps = bootstrap.Steps(2, tmp_path)
    command = [sys.executable, "-c", "print('no such header'); raise SystemExit(1)"]
    with pytest.raises(SetupError, match=r"it did not build; full log: .*thing\.log"):
        steps.run("thing", "building", command, "it did not build")
    assert "no such header" in capsys.readouterr().out


def test_step_that_succeeds_counts_and_reports_its_time(tmp_path: Path, capsys):
    steps = bootstrap.Steps(2, tmp_path)
    steps.skip("first", "up to date")
    steps.run("second", "building", [sys.executable, "-c", ""], "")
    out = capsys.readouterr().out
    assert "[1/2] first" in out and "[2/2] second" in out and "done in" in out


def test_error_ends_in_one_line_and_code_2(tmp_path: Path, capsys):
    code = bootstrap.main(["--print-python", "--python", str(tmp_path / "none")])
    captured = capsys.readouterr()
    assert code == 2 and captured.err.startswith("error: ") and captured.err.count("\n") == 1
