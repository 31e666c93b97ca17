"""Failures made on purpose: which allocations fail, what is said, and that nothing is lost."""

from __future__ import annotations

import errno

import pytest

from kmemd import System
from kmemd.system import SystemCallError

DEBUG = "/sys/kernel/debug"


def boot(cmdline: str = "") -> System:
    return System.boot(machine="default", seed=1, cmdline=cmdline, clock="manual")


def knob(system: System, path: str, value: object) -> None:
    system.write(f"{DEBUG}/{path}", f"{value}\n")


def outcome(system: System, command: str) -> str:
    try:
        system.command(command)
    except SystemCallError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


@pytest.mark.parametrize("directory", ["failslab", "fail_page_alloc"])
def test_the_files_begin_as_linux_has_them(directory: str) -> None:
    system = boot()
    found = {
        name: system.read(f"{DEBUG}/{directory}/{name}").decode().strip()
        for name in ("probability", "interval", "times", "space", "verbose", "task-filter", "ignore-gfp-wait")
    }
    assert found == {
        "probability": "0",
        "interval": "1",
        "times": "1",
        "space": "0",
        "verbose": "2",
        "task-filter": "N",
        "ignore-gfp-wait": "Y",
    }
    with pytest.raises(SystemCallError, match="EINVAL"):
        knob(system, f"{directory}/probability", "many")
    knob(system, f"{directory}/times", -1)
    assert system.read(f"{DEBUG}/{directory}/times") == b"-1\n"
    knob(system, f"{directory}/task-filter", "perhaps")
    assert system.read(f"{DEBUG}/{directory}/task-filter") == b"N\n"


def test_slabs_fail_as_often_as_times_says_and_the_log_tells() -> None:
    system = boot()
    knob(system, "failslab/probability", 100)
    knob(system, "failslab/times", 2)
    assert outcome(system, "kmalloc 64") == "ok", "GFP_KERNEL may wait, and ignore-gfp-wait is on"
    first = system.kernel.printk.next_seq
    outcomes = [outcome(system, "kmalloc 64 gfp=GFP_ATOMIC") for _ in range(4)]
    assert outcomes == ["ENOMEM", "ENOMEM", "ok", "ok"]
    said = [line for record in system.kernel.printk.since(first) for line in record.text.splitlines()]
    assert said.count("FAULT_INJECTION: forcing a failure.") == 2
    assert "name failslab, interval 1, probability 100, space 0, times 2" in said
    assert any(line.startswith(" should_fail_ex+") for line in said)
    asked = ["should_failslab", "slab_pre_alloc_hook.constprop.0", "__kmem_cache_alloc_node", "__kmalloc"]
    at = next(n for n, line in enumerate(said) if line.startswith(" should_failslab+"))
    assert [line.split("+")[0].strip() for line in said[at : at + 4]] == asked
    assert outcome(system, "kmalloc 64 gfp=GFP_ATOMIC|__GFP_NOFAIL") == "ok"
    system.check()


def test_interval_and_space() -> None:
    system = boot()
    for name, value in (("probability", 100), ("times", -1), ("interval", 3), ("ignore-gfp-wait", "N")):
        knob(system, f"failslab/{name}", value)
    outcomes = [outcome(system, "kmalloc 64") for _ in range(6)]
    assert outcomes == ["ok", "ok", "ENOMEM", "ok", "ok", "ENOMEM"]
    knob(system, "failslab/interval", 1)
    knob(system, "failslab/space", 200)
    assert [outcome(system, "kmalloc 64") for _ in range(3)] == ["ok", "ok", "ok"]
    assert system.read(f"{DEBUG}/failslab/space") == b"8\n"
    assert outcome(system, "kmalloc 64") == "ENOMEM"
    system.check()


def test_only_marked_caches_and_marked_tasks() -> None:
    system = boot()
    for name, value in (("probability", 100), ("times", -1), ("ignore-gfp-wait", "N"), ("cache-filter", "Y")):
        knob(system, f"failslab/{name}", value)
    assert outcome(system, "kmalloc 96") == "ok"
    pid = system.command("spawn w image=tiny").split("pid=")[1].split()[0]
    knob(system, "failslab/cache-filter", "N")
    knob(system, "failslab/task-filter", "Y")
    assert outcome(system, f"kmalloc 96 pid={pid}") == "ok"
    system.write(f"/proc/{pid}/make-it-fail", "1\n")
    assert outcome(system, f"kmalloc 96 pid={pid}") == "ENOMEM"
    assert outcome(system, "kmalloc 96") == "ok"


def test_pages_from_an_order_on() -> None:
    system = boot()
    for name, value in (("probability", 100), ("times", -1), ("ignore-gfp-wait", "N")):
        knob(system, f"fail_page_alloc/{name}", value)
    assert outcome(system, "alloc_pages order=0") == "ok"
    assert outcome(system, "alloc_pages order=1") == "ENOMEM"
    assert outcome(system, "alloc_pages order=1 gfp=GFP_HIGHUSER") == "ok"
    knob(system, "fail_page_alloc/ignore-gfp-highmem", "N")
    assert outcome(system, "alloc_pages order=1 gfp=GFP_HIGHUSER") == "ENOMEM"
    knob(system, "fail_page_alloc/min-order", 0)
    assert outcome(system, "alloc_pages order=0") == "ENOMEM"
    knob(system, "fail_page_alloc/probability", 0)
    assert outcome(system, "alloc_pages order=3") == "ok"
    system.check()


def test_the_nth_call_of_a_task_fails() -> None:
    system = boot()
    knob(system, "failslab/ignore-gfp-wait", "N")
    pid = system.command("spawn w image=tiny").split("pid=")[1].split()[0]
    system.write(f"/proc/{pid}/fail-nth", "3\n")
    assert [outcome(system, f"kmalloc 32 pid={pid}") for _ in range(4)] == ["ok", "ok", "ENOMEM", "ok"]
    assert system.read(f"/proc/{pid}/fail-nth") == b"0\n"


def test_the_command_line_sets_a_capability() -> None:
    system = boot("failslab=1,100,0,1")
    assert system.read(f"{DEBUG}/failslab/probability") == b"100\n"
    assert outcome(system, "kmalloc 64 gfp=GFP_ATOMIC") == "ENOMEM"
    assert outcome(system, "kmalloc 64 gfp=GFP_ATOMIC") == "ok"


def test_a_row_of_allocations_ends_at_the_one_that_fails() -> None:
    system = boot()
    for name, value in (("probability", 100), ("times", 1), ("interval", 11), ("ignore-gfp-wait", "N")):
        knob(system, f"failslab/{name}", value)
    assert outcome(system, "a = kmalloc 64 n=100") == "EAGAIN"
    assert len(system.kernel.handles.get("a")) == 10
    assert system.read(f"{DEBUG}/failslab/times") == b"0\n"
    system.check()
