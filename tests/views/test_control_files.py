"""The files below kmemd/."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from kmemd import System
from kmemd.system import SystemCallError


@pytest.fixture
def system() -> System:
    return System.boot("two-node", seed=42)


def lines(system: System, name: str) -> list[str]:
    return system.read(f"/kmemd/{name}").decode().splitlines()


def test_handles_has_a_line_for_each_kind(system: System) -> None:
    system.run(
        [
            "p = alloc_pages order=1 n=3",
            "o = kmalloc 100 n=2",
            "v = vmalloc 5000",
            "k = kmem_cache_create mine 40",
            "t = spawn worker",
        ]
    )
    pages, objects, area, cache, task = lines(system, "handles")
    pfn = system.kernel.handles["p"].pfn
    assert pages == f"p kind=pages pfn={pfn} order=1 addr={0xFFFF888000000000 + pfn * 4096:#x} size=8192 n=3"
    assert objects.startswith("o kind=slab cache=kmalloc-128 addr=0xffff888")
    assert objects.endswith(" size=100 n=2")
    assert area.startswith("v kind=vmalloc addr=0xffffc9")
    assert cache == "k kind=cache cache=mine"
    assert task == f"t kind=task pid={system.kernel.handles['t'].pid}"


def test_the_clock_is_model_time(system: System) -> None:
    system.advance(2)
    words = dict(word.split("=") for word in lines(system, "clock")[0].split())
    assert int(words["ns"]) == system.kernel.clock.now
    assert int(words["jiffies"]) == system.kernel.clock.jiffies
    assert int(words["boot_time"]) == system.kernel.machine.boot_time_s


def test_seed_machine_and_cpu(system: System) -> None:
    assert lines(system, "seed") == ["42"]
    machine, first, second = lines(system, "machine")
    assert machine.startswith("name=two-node arch=x86_64 cpus=4 memory=")
    total = sum(int(line.split("memory=")[1].split()[0]) for line in (first, second))
    assert machine.endswith(f" memory={total}")
    system.command("sched_setaffinity 3")
    context = system.kernel.context
    assert lines(system, "cpu") == [f"cpu=3 pid={context.pid} comm={context.comm}"]


def test_a_long_failed_line_is_shown_around_the_word(system: System) -> None:
    with suppress(SystemCallError):
        system.command("alloc_pages " + " " * 500 + "oder=3")
    reason, line, caret = lines(system, "error_log")
    assert reason.endswith("EINVAL: alloc_pages has no key oder (did you mean order?)")
    assert line[caret.index("^") :].startswith("oder=3")


def test_modes(system: System) -> None:
    modes = {
        node.path.rpartition("/")[2]: node.entry.mode for node in system.tree.children(system.tree.lookup("/kmemd"))
    }
    private = {"ctl": 0o600, "error_log": 0o400, "handles": 0o400, "check": 0o400}
    public = {"clock": 0o444, "seed": 0o444, "machine": 0o444, "cpu": 0o444}
    assert modes.items() >= {**private, **public}.items()


def test_a_twin_says_where_it_is_not_its_original(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "sys").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:        1000000 kB\n")
    notes = [line for line in lines(System.boot(tmp_path), "machine") if line.startswith("note=")]
    assert "note=proc/zoneinfo: not readable: zones and free lists are those of a fresh boot of this size" in notes
