"""What pages hold goes with them to other frames: by migrate_pages(2) and by compaction, whoever else knows them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kmemd.core import stats
from kmemd.core.pages import PG_SWAPCACHE
from kmemd.machine import Machine, SwapDevice
from kmemd.system import System

MIB = 1 << 20
ANON = "flags=MAP_PRIVATE|MAP_ANONYMOUS"
MAPPINGS = {
    "anonymous": (ANON, ()),
    "forked": (ANON, ("q = fork p",)),
    "locked": (ANON, ("mlock p m 4M",)),
    "tmpfs": ("flags=MAP_SHARED|MAP_ANONYMOUS", ()),
    "huge": (ANON, ()),
    "hugetlb": ("flags=MAP_PRIVATE|MAP_ANONYMOUS|MAP_HUGETLB", ()),
    "file": ("file=/mnt/data flags=MAP_SHARED", ()),
    "private file": ("file=/mnt/data flags=MAP_PRIVATE", ()),
}
TAGS = {page: f"tag-{page}" for page in range(0, 1024, 37)}


def boot(kind: str) -> System:
    machine = Machine.of_memory("test", "x86_64", 2, (512 * MIB, 512 * MIB), ((0,), (1,)), ((10, 20), (20, 10)))
    machine = replace(machine, swap=(SwapDevice("/dev/vdb", 64 * MIB),))
    always = "always" if kind == "huge" else "never"
    system = System.boot(machine, cmdline=f"transparent_hugepage={always}")
    system.write("/proc/sys/vm/nr_hugepages", "16")
    system.command("create /mnt/data 4M")
    return system


def written(kind: str) -> System:
    """A process with 4 MiB that it wrote tags into."""
    system = boot(kind)
    how, then = MAPPINGS[kind]
    system.run(["p = spawn a", f"m = mmap p 4M {how}", "access p m 4M w"])
    for page, tag in TAGS.items():
        system.command(f"write p m+{page * 4}K {tag}")
    system.run(then)
    return system


def tags_are_there(system: System) -> None:
    for page, tag in TAGS.items():
        assert tag in system.command(f"read p m+{page * 4}K {len(tag)}")


@pytest.mark.parametrize("kind", MAPPINGS)
def test_contents_go_to_another_node_and_back(kind: str) -> None:
    system = written(kind)
    for source, target in ((0, 1), (1, 0)):
        system.command(f"migrate_pages p {source} {target}")
        tags_are_there(system)
        system.check()
    if kind != "hugetlb":
        assert system.kernel.vmstat.events[stats.PGMIGRATE_SUCCESS] >= 2 * 1024


@pytest.mark.parametrize("kind", [kind for kind in MAPPINGS if kind not in ("huge", "hugetlb")])
def test_contents_survive_compaction(kind: str) -> None:
    system = written(kind)
    before = int(system.kernel.vmstat.events[stats.PGMIGRATE_SUCCESS])
    system.command("r = spawn holes")
    system.command("h = mmap r 16M")
    system.command("access r h 16M w")
    system.command("madvise r h 16M MADV_DONTNEED")
    system.write("/proc/sys/vm/compact_memory", "1")
    assert system.kernel.vmstat.events[stats.PGMIGRATE_SUCCESS] > before
    tags_are_there(system)
    system.check()


def test_pages_of_the_swap_cache_keep_their_slots() -> None:
    system = written("anonymous")
    system.command("madvise p m 4M MADV_PAGEOUT")
    system.command("access p m 4M r")
    system.kernel.lru.drain_all()
    cached = (system.kernel.pages.flags >> PG_SWAPCACHE & 1).sum()
    system.command("migrate_pages p 0 1")
    assert (system.kernel.pages.flags >> PG_SWAPCACHE & 1).sum() == cached
    tags_are_there(system)
    system.check()


def test_unmapped_pages_of_files_move_with_what_they_hold() -> None:
    system = written("file")
    system.run(["sync", "munmap p m 4M"])
    moved = int(system.kernel.vmstat.events[stats.PGMIGRATE_SUCCESS])
    system.write("/proc/sys/vm/compact_memory", "1")
    assert system.kernel.vmstat.events[stats.PGMIGRATE_SUCCESS] > moved
    system.check()
    system.command("m = mmap p 4M file=/mnt/data flags=MAP_SHARED")
    tags_are_there(system)
    system.check()
