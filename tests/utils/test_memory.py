"""utils/memory.py: the machine's memory, and a container's limit below it."""

from __future__ import annotations

import pytest

from utils import memory


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with 1000 KiB left and no control groups."""
    (tmp_path / "meminfo").write_text("MemTotal: 9999 kB\nMemAvailable: 1000 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    return tmp_path


def test_of_this_machine_is_a_sensible_number():
    available = memory.available_memory()
    assert available is None or 1 << 20 < available < 1 << 50


def test_without_a_container(machine):
    assert memory.available_memory() == 1000 * 1024


def test_a_container_may_use_what_its_limit_leaves(machine):
    (machine / "memory.max").write_text("5000\n")
    (machine / "memory.current").write_text("4000\n")
    (machine / "memory.stat").write_text("anon 1\ninactive_file 300\n")
    assert memory.available_memory() == 1300


def test_a_container_of_the_older_kind(machine):
    (machine / "memory").mkdir()
    (machine / "memory" / "memory.limit_in_bytes").write_text("5000")
    (machine / "memory" / "memory.usage_in_bytes").write_text("4000")
    (machine / "memory" / "memory.stat").write_text("inactive_file 7\ntotal_inactive_file 300")
    assert memory.available_memory() == 1300


def test_a_container_without_a_limit(machine):
    (machine / "memory.max").write_text("max\n")
    assert memory.available_memory() == 1000 * 1024


def test_where_nothing_is_known(machine, monkeypatch):
    (machine / "meminfo").write_text("")
    monkeypatch.delattr(memory.os, "sysconf", raising=False)
    assert memory.available_memory() is None
