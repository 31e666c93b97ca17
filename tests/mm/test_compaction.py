"""Compaction on a machine with processes: what moves, what stays, requests that wait for it, kcompactd."""

from __future__ import annotations

import pytest

from kmemd.core import stats
from kmemd.machine import Machine
from kmemd.mm.compaction_zone import COMPACT_MAX_DEFER_SHIFT, Priority, Result, ZoneState
from kmemd.mm.gfp import GFP_HIGHUSER_MOVABLE, GFP_KERNEL, F
from kmemd.system import System

MIB = 1 << 20
NEVER = "transparent_hugepage=never"


def machine(mib: int = 256, nodes: int = 1) -> Machine:
    cpus = tuple((cpu,) for cpu in range(nodes))
    distances = tuple(tuple(10 if a == b else 20 for b in range(nodes)) for a in range(nodes))
    return Machine.of_memory("test", "x86_64", nodes, (mib * MIB // nodes,) * nodes, cpus, distances)


def punched(system: System, mib: int = 160, hole: int = 8) -> None:
    """A process that has every other run of ``hole`` pages of ``mib`` MiB."""
    system.command("p = spawn hog")
    system.command(f"m = mmap p {mib}M")
    system.command(f"access p m {mib}M w")
    for page in range(0, mib * 256, 2 * hole):
        system.command(f"madvise p m+{page * 4}K {hole * 4}K MADV_DONTNEED")
    system.kernel.page_alloc.drain_all_pages()


def large(system: System) -> int:
    """Free pages in blocks of the highest order."""
    return sum(zone.nr_free[10] << 10 for zone in system.kernel.zones)


def event(system: System, number: int) -> int:
    return int(system.kernel.vmstat.events[number])


@pytest.fixture
def system() -> System:
    return System.boot(machine(), cmdline=NEVER)


def test_compact_memory_makes_large_blocks(system: System) -> None:
    punched(system)
    before = large(system)
    system.write("/proc/sys/vm/compact_memory", "1")
    system.kernel.page_alloc.drain_all_pages()
    assert large(system) > before + 60 * MIB // 4096
    moved = event(system, stats.PGMIGRATE_SUCCESS)
    assert moved > 8000
    assert event(system, stats.COMPACTISOLATED) >= 2 * moved
    assert event(system, stats.COMPACTMIGRATE_SCANNED) > moved
    assert event(system, stats.COMPACTFREE_SCANNED) > moved
    assert event(system, stats.COMPACTSTALL) == 0
    system.check()


def test_what_was_written_survives(system: System) -> None:
    punched(system)
    for page in range(8, 40_000, 1600):
        system.command(f"write p m+{page * 4}K tag-{page}")
    frames = system.read("/proc/kpagecount")
    system.write("/proc/sys/vm/compact_memory", "1")
    assert system.read("/proc/kpagecount") != frames
    for page in range(8, 40_000, 1600):
        assert f"tag-{page}" in system.command(f"read p m+{page * 4}K {len(f'tag-{page}')}")
    system.check()


def test_forked_locked_and_file_pages_move_too(system: System) -> None:
    punched(system, 64)
    system.command("q = fork p")
    system.command("mlock p m+32K 32K")
    system.command("f = mmap p 8M flags=MAP_SHARED|MAP_ANONYMOUS")
    system.command("access p f 8M w")
    system.command("write p f+4M shared")
    system.write("/proc/sys/vm/compact_memory", "1")
    assert event(system, stats.PGMIGRATE_SUCCESS) > 1000
    assert "shared" in system.command("read p f+4M 6")
    system.check()
    system.command("access q m+32K 32K w")
    system.check()


def test_unevictable_pages_stay_when_they_are_to(system: System) -> None:
    punched(system, 64)
    for page in range(8, 64 * 256, 16):
        system.command(f"mlock p m+{page * 4}K 32K")
    system.write("/proc/sys/vm/compact_unevictable_allowed", "0")
    before = event(system, stats.PGMIGRATE_SUCCESS)
    system.write("/proc/sys/vm/compact_memory", "1")
    assert event(system, stats.PGMIGRATE_SUCCESS) - before < 1000
    system.write("/proc/sys/vm/compact_unevictable_allowed", "1")
    system.write("/proc/sys/vm/compact_memory", "1")
    assert event(system, stats.PGMIGRATE_SUCCESS) - before > 2000
    system.check()


def test_one_node_is_compacted_alone() -> None:
    system = System.boot(machine(512, 2), cmdline=NEVER)
    system.command("p = spawn hog")
    system.command("m = mmap p 64M")
    system.command("mbind p m 64M MPOL_BIND 1")
    system.command("access p m 64M w")
    for page in range(0, 64 * 256, 2):
        system.command(f"madvise p m+{page * 4}K 4K MADV_DONTNEED")
    system.write("/sys/devices/system/node/node0/compact", "1")
    first = event(system, stats.PGMIGRATE_SUCCESS)
    system.write("/sys/devices/system/node/node1/compact", "1")
    assert event(system, stats.PGMIGRATE_SUCCESS) - first > 5 * first
    system.check()


# -- for a request -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cmdline", [NEVER, f"{NEVER} page_owner=on"])
def test_a_request_for_a_huge_page_has_memory_compacted(cmdline: str) -> None:
    system = System.boot(machine(), cmdline=cmdline)
    punched(system)
    kernel = system.kernel
    taken = []
    while any(sum(zone.nr_free[9:]) for zone in kernel.zones):
        taken.append(kernel.page_alloc.alloc_pages(GFP_KERNEL | F.NORETRY | F.NOWARN, 9))
    before = event(system, stats.COMPACTSTALL)
    pfn = kernel.page_alloc.alloc_pages(GFP_HIGHUSER_MOVABLE | F.NOWARN, 9)
    assert pfn % 512 == 0
    assert event(system, stats.COMPACTSTALL) > before
    assert event(system, stats.COMPACTSUCCESS) == 1
    assert event(system, stats.PGMIGRATE_SUCCESS) > 0
    system.check()
    kernel.page_alloc.free_pages(pfn, 9)
    for block in taken:
        kernel.page_alloc.free_pages(block, 9)
    system.check()


def test_deferral_doubles_and_is_reset() -> None:
    state = ZoneState(None)  # type: ignore[arg-type]
    assert not state.deferred(9)
    for shift in range(1, COMPACT_MAX_DEFER_SHIFT + 2):
        state.defer(9)
        assert state.defer_shift == min(shift, COMPACT_MAX_DEFER_SHIFT)
        skipped = [state.deferred(9) for _ in range(1 << state.defer_shift)]
        assert skipped == [True] * (len(skipped) - 1) + [False]
    assert state.restarting(9)
    state.defer_reset(9, allocated=False)
    assert (state.order_failed, state.defer_shift) == (10, COMPACT_MAX_DEFER_SHIFT)
    assert not state.deferred(9)
    state.defer_reset(9, allocated=True)
    assert (state.considered, state.defer_shift) == (0, 0)


def test_a_zone_that_cannot_be_compacted_is_left_alone(system: System) -> None:
    kernel = system.kernel
    pages = kernel.page_alloc.alloc_pages_bulk(GFP_KERNEL | F.NORETRY | F.NOWARN, 0, 10**6)
    kernel.page_alloc.free_pages_bulk(pages[::2].copy())
    kernel.page_alloc.drain_all_pages()
    zone = kernel.zones[1]
    scanned, results = [], []
    for _ in range(4):
        before = event(system, stats.COMPACTMIGRATE_SCANNED)
        result, caught = kernel.compaction.try_to_compact_pages([zone], GFP_KERNEL, 9, 0, 1, Priority.SYNC_LIGHT)
        scanned.append(event(system, stats.COMPACTMIGRATE_SCANNED) > before)
        results.append(result)
        assert caught == -1
    assert results[0] in (Result.COMPLETE, Result.PARTIAL_SKIPPED)
    assert results[1:] == [Result.DEFERRED, results[2], Result.DEFERRED]
    assert scanned == [True, False, scanned[2], False]
    assert (
        kernel.compaction.try_to_compact_pages([zone], F.DIRECT_RECLAIM, 9, 0, 1, Priority.ASYNC)[0] == Result.SKIPPED
    )


# -- kcompactd -----------------------------------------------------------------------------------------------


def test_kcompactd_works_when_kswapd_asks(system: System) -> None:
    punched(system)
    kernel = system.kernel
    taken = []
    while any(sum(zone.nr_free[9:]) for zone in kernel.zones):
        taken.append(kernel.page_alloc.alloc_pages(GFP_KERNEL | F.NORETRY | F.NOWARN, 9))
    wakes = event(system, stats.KCOMPACTD_WAKE)
    kernel.kcompactd.wakeup(0, 9, 1)
    kernel.step()
    assert event(system, stats.KCOMPACTD_WAKE) == wakes + 1
    assert event(system, stats.KCOMPACTD_MIGRATE_SCANNED) > 0
    assert event(system, stats.KCOMPACTD_FREE_SCANNED) > 0
    thread = next(task for task in kernel.tasks if task.comm == "kcompactd0")
    assert thread.stime_ns > 0
    kernel.kcompactd.wakeup(0, 0, 1)
    kernel.step()
    assert event(system, stats.KCOMPACTD_WAKE) == wakes + 1
    system.check()


def test_proactive_compaction_follows_the_score() -> None:
    system = System.boot(machine(), cmdline=NEVER)
    system.write("/proc/sys/vm/compaction_proactiveness", "0")
    punched(system, hole=1)
    system.advance(10)
    assert event(system, stats.PGMIGRATE_SUCCESS) == 0
    compaction, node = system.kernel.compaction, system.kernel.nodes[0]
    score = compaction.fragmentation_score_node(node)
    compaction.compaction_proactiveness = 100 - score + 15
    assert compaction.fragmentation_score_wmark(low=False) < score
    compaction.on_proactiveness()
    system.advance(0.1)
    assert event(system, stats.PGMIGRATE_SUCCESS) > 0
    assert event(system, stats.KCOMPACTD_WAKE) == 0
    assert compaction.fragmentation_score_node(node) < score
    system.check()


def test_watermarks_of_the_score() -> None:
    compaction = System.boot(machine()).kernel.compaction
    found = []
    for compaction.compaction_proactiveness in (0, 20, 60, 100):
        found.append((compaction.fragmentation_score_wmark(low=True), compaction.fragmentation_score_wmark(low=False)))
    assert found == [(100, 100), (80, 90), (40, 50), (5, 15)]
