"""The check on a GPU, without one: scheduling, limits, failures, its report, and the dry run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from benchmarks import gpu_check
from benchmarks.check import environment, plan, result_lines, results, stages
from benchmarks.check.stages import CheckFailed, Files, Outcome, Schedule, Stage

QUICK = 20.0  # seconds in which everything below must end


def program(code: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", code)


SAYS_ONE = program("print('{\"answer\": 1}')")
SLEEPS = program("import time; time.sleep(60)")


def run(tmp_path, *todo: Stage, seconds: float = QUICK) -> dict[str, Outcome]:
    return Schedule(todo, tmp_path, seconds).run()


# ---- one stage ----------------------------------------------------------------------------------


def test_a_stage_yields_the_object_that_it_prints(tmp_path):
    found = run(tmp_path, Stage("one", (SAYS_ONE,)))["one"]
    assert (found.status, found.results, found.reason) == ("passed", {"answer": 1}, "")


def test_an_exit_code_is_a_failure_with_the_end_of_the_log(tmp_path):
    code = "import sys; print('{\"answer\": 1}'); print('it broke', file=sys.stderr); sys.exit(3)"
    found = run(tmp_path, Stage("bad", (program(code),)))["bad"]
    assert (found.status, found.reason) == ("failed", "exit code 3")
    assert found.results == {"answer": 1} and "it broke" in found.log_end


def test_a_code_that_is_allowed_is_no_failure(tmp_path):
    code = "import sys; print('{}'); sys.exit(1)"
    todo = [Stage(str(n), (program(code),), codes=codes) for n, codes in ((0, (0, 1)), (1, (0, 2)))]
    assert [outcome.status for outcome in run(tmp_path, *todo).values()] == ["passed", "failed"]


def test_a_stage_without_an_object_has_failed(tmp_path):
    found = run(tmp_path, Stage("mute", (program("print('nothing')"),)))["mute"]
    assert (found.status, found.reason) == ("failed", "printed no JSON object")


def test_a_program_that_is_not_there_is_named(tmp_path):
    found = run(tmp_path, Stage("none", (("no-such-program",),)))["none"]
    assert found.status == "failed" and "cannot run no-such-program" in found.reason


def test_commands_run_in_turn_and_stop_at_the_first_failure(tmp_path):
    mark = tmp_path / "mark"
    touch = program(f"open({str(mark)!r}, 'w')")
    fails = program("raise SystemExit(1)")
    found = run(tmp_path, Stage("turn", (fails, touch), read=stages.no_results))["turn"]
    assert found.status == "failed" and not mark.exists()
    found = run(tmp_path, Stage("turn", (touch, SAYS_ONE)))["turn"]
    assert found.status == "passed" and mark.exists()


def test_what_a_reader_refuses_has_failed_with_its_results(tmp_path):
    def refuse(files: Files) -> dict:
        raise CheckFailed("not good enough", stages.last_object(files))

    found = run(tmp_path, Stage("read", (SAYS_ONE,), read=refuse))["read"]
    assert (found.status, found.reason) == ("failed", "not good enough")
    assert found.results == {"answer": 1}


def test_a_reader_with_a_bug_ends_its_stage_only(tmp_path):
    found = run(tmp_path, Stage("bug", (SAYS_ONE,), read=lambda files: 1 / 0), Stage("b", ()))
    assert found["bug"].status == "failed" and "ZeroDivisionError" in found["bug"].reason
    assert "b" in found


def test_objects_are_found_between_other_lines(tmp_path):
    files = Files(tmp_path / "out", tmp_path / "log")
    files.out.write_text('warning {"no": 0}\n{"a": {\n"b": 1}}\nmore\n{broken\n{"c": 2}')
    assert files.objects() == [{"a": {"b": 1}}, {"c": 2}]


# ---- limits -------------------------------------------------------------------------------------


def test_a_stage_over_its_limit_is_ended_with_its_children(tmp_path):
    child = tmp_path / "child"
    code = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(child)!r}, 'w').write(str(child.pid))\n"
        "print('{\"answer\": 1}', flush=True)\n"
        "time.sleep(60)"
    )
    start = time.monotonic()
    found = run(tmp_path, Stage("slow", (program(code),), limit=5.0))["slow"]
    assert time.monotonic() - start < QUICK
    assert found.status == "timeout" and found.results == {"answer": 1}
    assert ends(int(child.read_text()))


def ends(pid: int, within: float = 10.0) -> bool:
    """Whether a process that was killed is gone: on a busy machine that takes a moment."""
    deadline = time.monotonic() + within
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has waited for does not."""
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
def test_a_process_that_does_not_want_to_end_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "GRACE", 0.5)
    code = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('{\"pid\": %d}' % os.getpid(), flush=True)\n"
        "time.sleep(60)"
    )
    found = run(tmp_path, Stage("deaf", (program(code),), limit=4.0))["deaf"]
    assert found.status == "timeout" and ends(found.results["pid"])


def test_as_much_as_time_allows_is_no_fault_but_a_failure_in_it_is(tmp_path):
    def partial(failed: dict):
        return lambda files: {"failed": failed}

    found = run(
        tmp_path,
        Stage("good", (SLEEPS,), limit=0.3, read=partial({}), optional=True),
        Stage("bad", (SLEEPS,), limit=0.3, read=partial({"test": "why"}), optional=True),
    )
    assert found["good"].status == "passed" and "cut short" in found["good"].reason
    assert found["bad"].status == "timeout"


def test_the_deadline_ends_what_runs_and_leaves_out_the_rest(tmp_path):
    start = time.monotonic()
    todo = [
        Stage("beside", (SLEEPS,), background=True),
        Stage("now", (SLEEPS,)),
        Stage("never", (SAYS_ONE,)),
    ]
    found = run(tmp_path, *todo, seconds=3.0)
    assert time.monotonic() - start < QUICK
    assert {name: outcome.status for name, outcome in found.items()} == {
        "beside": "timeout",
        "now": "timeout",
        "never": "not done",
    }
    assert found["never"].reason == "no time left"


# ---- order --------------------------------------------------------------------------------------


def test_the_foreground_is_one_after_the_other_and_the_background_beside_it(tmp_path):
    nap = program(
        "import time; start = time.time(); time.sleep(1)\n"
        "print('{\"at\": [%f, %f]}' % (start, time.time()))"
    )
    found = run(
        tmp_path,
        Stage("a", (nap,)),
        Stage("b", (nap,)),
        Stage("beside", (nap,), background=True),
    )
    a, b, beside = (found[name].results["at"] for name in ("a", "b", "beside"))
    assert a[1] <= b[0]
    assert beside[0] < a[1]


def test_what_waits_lets_later_stages_go_first(tmp_path):
    nap = program("import time; time.sleep(1); print('{}')")
    order = list(
        run(
            tmp_path,
            Stage("compile", (nap,), background=True),
            Stage("timing", (SAYS_ONE,), waits=("compile",)),
            Stage("test", (SAYS_ONE,)),
        )
    )
    assert order == ["test", "compile", "timing"]


def test_what_needs_a_failure_is_not_done_and_what_waits_for_it_is(tmp_path):
    found = run(
        tmp_path,
        Stage("bad", (program("raise SystemExit(1)"),), read=stages.no_results),
        Stage("needs", (SAYS_ONE,), needs=("bad",)),
        Stage("further", (SAYS_ONE,), needs=("needs",)),
        Stage("waits", (SAYS_ONE,), waits=("bad",)),
        Stage("uses", (SAYS_ONE,), uses=("bad",)),
    )
    statuses = [found[name].status for name in ("bad", "needs", "further", "waits", "uses")]
    assert statuses == ["failed", "not done", "not done", "passed", "passed"]
    assert list(found)[0] == "bad"
    assert found["needs"].reason == "needs bad: failed"


def test_what_is_absent_is_reported_with_its_reason_and_its_status(tmp_path):
    found = run(
        tmp_path,
        Stage("tool", (SAYS_ONE,), absent="there is no tool"),
        Stage("script", (SAYS_ONE,), absent="missing: script", absent_status=stages.FAILED),
        Stage("after", (SAYS_ONE,), needs=("tool",)),
    )
    assert (found["tool"].status, found["tool"].reason) == ("not done", "there is no tool")
    assert found["script"].status == "failed"
    assert found["after"].reason == "needs tool: there is no tool"


def test_stages_that_wait_for_each_other_are_not_waited_for(tmp_path):
    a, b = Stage("a", (SAYS_ONE,), waits=("b",)), Stage("b", (SAYS_ONE,), waits=("a",))
    assert {outcome.status for outcome in run(tmp_path, a, b).values()} == {"not done"}


def names(found: list[Stage]) -> list[str]:
    return [stage.name for stage in found]


def test_stages_are_chosen_by_name_or_group_with_what_they_need():
    every = [
        Stage("machine"),
        Stage("bench:a", needs=("machine",)),
        Stage("bench:b", needs=("machine",)),
        Stage("tests:gpu"),
    ]
    assert names(stages.select(every, ["bench"])) == ["machine", "bench:a", "bench:b"]
    assert names(stages.select(every, ["bench:a"], ["machine"])) == ["bench:a"]
    assert names(stages.select(every, skip=["bench"])) == ["machine", "tests:gpu"]
    with pytest.raises(ValueError, match="no stage benc;"):
        stages.select(every, ["benc"])


# ---- readers ------------------------------------------------------------------------------------

CLEAN = "========= ERROR SUMMARY: 0 errors\n"
RACES = "========= RACECHECK SUMMARY: 3 hazards displayed (2 errors, 1 warning)\n"


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        (CLEAN, 0),
        ("========= ERROR SUMMARY: 12 errors\n", 12),
        (RACES, 2),
        ("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", 0),
        ("========= COMPUTE-SANITIZER\n", None),
    ],
)
def test_a_sanitizer_report_is_understood(text, errors):
    assert results.sanitizer_errors(text) == errors


@pytest.mark.parametrize(
    ("text", "operators", "said"),
    [
        (CLEAN, {"a": "ok"}, ""),
        (CLEAN, {"a": "ok", "b": "RuntimeError: no"}, "b: RuntimeError: no"),
        (RACES, {"a": "ok"}, "the sanitizer has 2 errors"),
        ("", {"a": "ok"}, "the sanitizer has not come to its end"),
    ],
)
def test_a_sanitized_run_fails_by_its_operators_or_its_report(tmp_path, text, operators, said):
    files, report = Files(tmp_path / "out", tmp_path / "log"), tmp_path / "report"
    files.out.write_text(json.dumps({"operators": operators}))
    report.write_text(text)
    if not said:
        assert results.read_sanitizer(report, files)["errors"] == 0
        return
    with pytest.raises(CheckFailed, match=said):
        results.read_sanitizer(report, files)


def write_demo(run, psnr: float, seconds: float) -> None:
    folder = run / "test" / "ours_1000"
    folder.mkdir(parents=True)
    record = {"psnr": psnr, "fps": 100.0, "training_seconds": seconds, "views": 3}
    (folder / "metrics.json").write_text(json.dumps(record))


@pytest.mark.parametrize(("gap", "good"), [(0.05, True), (-0.15, False), (float("nan"), False)])
def test_both_devices_must_train_equally_well(tmp_path, gap, good):
    write_demo(tmp_path / "cpu", 29.0, 100.0)
    write_demo(tmp_path / "cuda", 29.0 + gap, 20.0)
    files = Files(tmp_path / "out", tmp_path / "log")
    if good:
        found = results.compare_demos(tmp_path / "cpu", tmp_path / "cuda", files)
        assert found["times_faster_training"] == 5.0
        return
    with pytest.raises(CheckFailed, match="PSNR differs"):
        results.compare_demos(tmp_path / "cpu", tmp_path / "cuda", files)


TESTS = """
import pytest

def test_passes(): pass
def test_fails(): assert 1 == 2
@pytest.fixture
def broken(): raise RuntimeError("set-up")
def test_cannot_start(broken): pass
@pytest.mark.skip(reason="no GPU here")
def test_is_skipped(): pass
@pytest.mark.xfail(strict=False, reason="later")
def test_is_expected_to_fail(): assert False
"""


@pytest.fixture
def written_tests(tmp_path, root):
    """Results of a run of `TESTS`, and of a file that does not even load."""
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_broken.py").write_text("import no_such_module_at_all\n")
    (tmp_path / "test_optional.py").write_text("raise ImportError(\"No module named 'plyfile'\")\n")
    path = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.check.result_lines"]
    command += ["-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(tmp_path)]
    subprocess.run(
        [*command, "--continue-on-collection-errors", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(root), result_lines.VARIABLE: str(path)},
        capture_output=True,
    )
    return path


def test_results_of_tests_are_summed_up(written_tests):
    found = result_lines.summary(written_tests)
    assert found["passed"] == 1
    assert found["skip_reasons"] == {
        "no GPU here": 1,
        "expected to fail: later": 1,
        "the file needs plyfile": 1,
    }
    why = {name.rpartition("::")[2]: text for name, text in found["failed"].items()}
    assert "assert 1 == 2" in why["test_fails"] and "set-up" in why["test_cannot_start"]
    assert any("no_such_module_at_all" in text for text in why.values()) and len(why) == 3


def test_a_half_written_line_is_left_out(tmp_path):
    path = tmp_path / "results.jsonl"
    row = json.dumps({"test": "a", "outcome": "passed", "s": 1.0})
    path.write_text(f"{row}\n{row[:9]}")
    assert result_lines.summary(path)["passed"] == 1


def test_tests_that_are_all_skipped_on_a_gpu_have_failed(tmp_path):
    path, files = tmp_path / "results.jsonl", Files(tmp_path / "out", tmp_path / "log")
    path.write_text(json.dumps({"test": "a", "outcome": "skipped", "s": 0, "why": "x"}) + "\n")
    assert results.read_tests(path, False, files)["skipped"] == 1
    with pytest.raises(CheckFailed, match="no test has passed"):
        results.read_tests(path, True, files)
    with pytest.raises(CheckFailed, match="no test has ended"):
        results.read_tests(tmp_path / "none", False, files)


# ---- the whole ----------------------------------------------------------------------------------


@pytest.fixture
def stubs(monkeypatch):
    """Stages in place of the real ones; the list is the test's to fill."""
    found: list[Stage] = []
    monkeypatch.setattr(plan.Plan, "stages", lambda self: found)
    return found


def main(tmp_path, *flags: str) -> int:
    folders = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    return gpu_check.main([*folders, "--minutes", "0.4", *flags])


def report(tmp_path) -> dict:
    return json.loads((tmp_path / "out" / "gpu_check.json").read_text())


def test_a_dry_run_writes_results_logs_and_a_table(tmp_path, stubs, capsys):
    loud = program("import sys; print('said aloud', file=sys.stderr); print('{\"fps\": 5}')")
    stubs += [Stage("bench:loud", (loud,)), Stage("gone", absent="no such thing")]
    assert main(tmp_path, "--dry-run") == 0
    found = report(tmp_path)
    assert found["stages"]["bench:loud"]["results"] == {"fps": 5} and found["device"] == "cpu"
    assert found["stages"]["gone"]["reason"] == "no such thing" and found["failed"] == []
    assert "said aloud" in (tmp_path / "out" / "logs.txt").read_text()
    table = (tmp_path / "out" / "summary.txt").read_text()
    assert "fps 5" in table and "no such thing" in table and "nothing failed" in table
    assert capsys.readouterr().out.endswith(table + "\n")


def test_a_failure_is_in_the_exit_code_the_json_and_the_table(tmp_path, stubs):
    stubs += [Stage("bad", (program("raise SystemExit('it broke')"),)), Stage("good", (SAYS_ONE,))]
    assert main(tmp_path, "--dry-run") == 1
    found = report(tmp_path)
    assert found["failed"] == ["bad"] and "it broke" in found["stages"]["bad"]["log_end"]
    assert "failed: bad" in (tmp_path / "out" / "summary.txt").read_text()


def test_results_are_written_after_every_stage(tmp_path, stubs, monkeypatch):
    seen = []
    add = results.Report.add

    def spy(self, name, outcome):
        add(self, name, outcome)
        seen.append(list(report(tmp_path)["stages"]))

    monkeypatch.setattr(results.Report, "add", spy)
    stubs += [Stage("a", (SAYS_ONE,)), Stage("b", (SAYS_ONE,))]
    main(tmp_path, "--dry-run")
    assert seen == [["a"], ["a", "b"]]


def test_few_and_small_files_are_left(tmp_path, stubs, monkeypatch):
    monkeypatch.setattr(results, "LARGEST_LOG", 1000)
    stubs += [Stage("wordy", (program("print('x' * 100000); print('{}')"),))]
    main(tmp_path, "--dry-run")
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert sorted(sizes) == ["gpu_check.json", "logs.txt", "summary.txt"]
    assert max(sizes.values()) < 3000


def test_without_a_gpu_it_says_so_in_one_line(tmp_path, capsys):
    assert gpu_check.main(["--out", str(tmp_path / "out")], capability=lambda: "") == 2
    assert capsys.readouterr().out.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--wheels", "no/such/folder"], "--wheels no/such/folder: it is not there"),
        (["--minutes", "0"], "must be positive"),
    ],
)
def test_wrong_arguments_are_named(flags, said, capsys):
    with pytest.raises(SystemExit) as ended:
        gpu_check.main(["--dry-run", *flags])
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_an_unknown_stage_is_named(tmp_path, capsys):
    assert main(tmp_path, "--dry-run", "--only", "bunch") == 2
    assert "no stage bunch" in capsys.readouterr().err


# ---- the plan -----------------------------------------------------------------------------------


def planned(*flags: str) -> list[Stage]:
    args = gpu_check.parse(list(flags))
    args.capability = "9.0" if args.device == "cuda" else ""
    return plan.Plan(args).stages()


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_stages_have_names_of_their_own_and_know_each_other(device):
    found = planned("--device", device)
    known = set(names(found))
    assert len(known) == len(found)
    for stage in found:
        assert {*stage.needs, *stage.uses, *stage.waits} <= known, stage.name
        assert stage.commands or stage.name == "demo:comparison"


def test_every_native_package_is_built_and_exercised():
    from benchmarks import exercise_operators

    built = {n.removeprefix("build:") for n in names(planned()) if n.startswith("build:")}
    assert built == set(exercise_operators.packages())
    assert built <= exercise_operators.EXERCISES.keys()


def test_every_benchmark_is_in_the_table_or_left_out_for_a_reason(root):
    scripts = {benchmark.script for benchmark in plan.BENCHMARKS.values()}
    scripts |= plan.NOT_FOR_A_DEVICE.keys() | plan.USED_OTHERWISE.keys()
    there = {path.name for path in (root / "benchmarks").glob("*.py")} - {"__init__.py"}
    assert there <= scripts


def test_a_benchmark_that_is_not_there_or_knows_no_device_is_a_failure(tmp_path, monkeypatch, root):
    table = {
        "none": plan.Benchmark("no_such_benchmark.py"),
        "cpu": plan.Benchmark("mixture.py"),
        "good": plan.Benchmark("rasterizer_profile.py"),
    }
    monkeypatch.setattr(plan, "BENCHMARKS", table)
    found = {s.name: s for s in planned() if s.name.startswith("bench:")}
    assert found["bench:none"].absent == "missing: there is no benchmarks/no_such_benchmark.py"
    assert found["bench:cpu"].absent == "missing: benchmarks/mixture.py has no --device"
    assert found["bench:none"].absent_status == stages.FAILED
    assert found["bench:good"].absent == ""


def test_gsplat_is_compiled_when_its_wheel_is_carried_along(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "installed", lambda package: False)
    build = {s.name: s for s in planned()}["gsplat:build"]
    assert build.absent == "gsplat is missing: --wheels"
    (tmp_path / "gsplat-1.5.3-py3-none-any.whl").touch()
    build = {s.name: s for s in planned("--wheels", str(tmp_path))}["gsplat:build"]
    assert build.absent == "" and build.background
    assert build.environment["TORCH_CUDA_ARCH_LIST"] == "9.0"


def test_the_environment_sees_the_packages_of_this_python(tmp_path):
    python = environment.make(tmp_path / "venv")
    assert environment.make(tmp_path / "venv") == python  # again
    found = environment.versions(python)
    assert {"torch", "numpy", "pytest"} <= found.keys()


def test_what_is_missing_is_a_line_each(tmp_path, monkeypatch):
    python = environment.make(tmp_path / "venv")
    monkeypatch.setattr(environment, "USEFUL", {"no-such-package": "nothing"})
    monkeypatch.setattr(environment, "TOOLS", {"no-such-tool": "nothing", "nvcc": "building"})
    monkeypatch.setattr(environment, "first_line", lambda *args: "")
    missing = environment.machine(python, "cuda")["missing"]
    assert "no-such-package: nothing" in missing and "no-such-tool: nothing" in missing
    assert any(line.startswith("nvidia-smi") for line in missing)


def test_a_wheel_that_is_broken_is_named(tmp_path):
    python = environment.make(tmp_path / "venv")
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "some-1.0-py3-none-any.whl").write_bytes(b"not a zip")
    found = environment.install(python, tmp_path / "wheels")
    assert list(found) == ["some-1.0-py3-none-any.whl"]
    assert found["some-1.0-py3-none-any.whl"] != "ok"


def test_what_is_timed_waits_for_what_runs_beside_it():
    found = {stage.name: stage for stage in planned()}
    beside = {n for n, s in found.items() if s.background and n != "demo:cpu"}
    timed = [n for n in found if n.startswith(("bench:", "gsplat:n3v", "gsplat:garden"))]
    for name in [*timed, "profile", "demo:cuda"]:
        assert beside <= {*found[name].uses, *found[name].waits}, name
    assert set(timed) <= set(found["tests:rest"].waits)


def test_what_is_chosen_is_built_as_well():
    for name in ("bench:hexplane", "tests:gpu", "sanitize:memcheck", "agreement", "demo:cuda"):
        chosen = names(stages.select(planned(), [name]))
        assert chosen[0] == "machine" and "build:hexplane-encoder" in chosen, name
        assert "gsplat:build" not in chosen


def test_the_wheels_that_were_installed_are_a_stage(tmp_path):
    machine, files = Files(tmp_path / "m.out", tmp_path / "m.log"), Files(tmp_path, tmp_path)
    machine.out.write_text(json.dumps({"wheels": {"a.whl": "ok"}}))
    assert results.read_wheels(machine, files) == {"a.whl": "ok"}
    machine.out.write_text(json.dumps({"wheels": {"a.whl": "ok", "b.whl": "wrong platform"}}))
    with pytest.raises(CheckFailed, match="b.whl: wrong platform"):
        results.read_wheels(machine, files)
    assert "wheels" in names(planned("--wheels", str(tmp_path)))


def test_others_code_that_fails_is_not_done(tmp_path):
    found = run(
        tmp_path,
        Stage("gsplat:build", (program("raise SystemExit('no nvcc')"),), theirs=True),
        Stage("gsplat:case", (SAYS_ONE,), needs=("gsplat:build",)),
    )
    assert {outcome.status for outcome in found.values()} == {"not done"}
    assert "no nvcc" in found["gsplat:build"].log_end
    assert "exit code 1" in found["gsplat:case"].reason


def test_a_check_that_is_ended_ends_what_it_runs(tmp_path, root):
    """SIGTERM, as from a machine whose time is up."""
    mark = tmp_path / "pid"
    code = f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    script = (
        "import sys; from pathlib import Path; from benchmarks import gpu_check\n"
        "from benchmarks.check import plan, stages\n"
        f"todo = [stages.Stage('sleeps', ((sys.executable, '-S', '-c', {code!r}),))]\n"
        "plan.Plan.stages = lambda self: todo\n"
        f"gpu_check.main(['--dry-run', '--out', {str(tmp_path / 'out')!r}, "
        f"'--work', {str(tmp_path / 'work')!r}])\n"
    )
    check = subprocess.Popen([sys.executable, "-c", script], cwd=root)
    until = time.monotonic() + QUICK
    while not (mark.exists() and mark.read_text()) and time.monotonic() < until:
        time.sleep(0.1)
    assert alive(int(mark.read_text()))
    check.terminate()
    assert check.wait(QUICK) == 143
    assert ends(int(mark.read_text()))
