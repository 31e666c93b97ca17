"""Compaction on a machine with processes: what moves, what stays, requests that wait for it, kcompactd."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from kmemd.core import stats
from kmemd.core.pages import PG_LRU, PG_MLOCKED, PG_UNEVICTABLE
from kmemd.core.pte import PFN_MASK, PFN_SHIFT
from kmemd.machine import Machine
from kmemd.mm.compaction_zone import COMPACT_MAX_DEFER_SHIFT, Priority, Result, ZoneState
from kmemd.mm.gfp import GFP_HIGHUSER_MOVABLE, GFP_KERNEL, F
from kmemd.mm.mm_types import VM_LOCKED
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


def frames(system: System, pid: int, vpns: list[int]) -> list[int]:
    """The page frames of a process' pages."""
    mm, mmu = system.kernel.tasks.find(pid).mm, system.kernel.mmu
    return [(int(mmu.words[mmu.leaf(mm.id, vpn)[0]]) & PFN_MASK) >> PFN_SHIFT for vpn in vpns]


def test_unevictable_pages_stay_when_they_are_to(system: System) -> None:
    punched(system, 64)
    pid = next(task.pid for task in system.kernel.tasks if task.comm == "hog")
    for page in range(8, 64 * 256, 16):
        system.command(f"mlock p m+{page * 4}K 32K")
    start = max(system.kernel.tasks.find(pid).mm.vmas, key=lambda vma: vma.flags & VM_LOCKED).vpn - 8
    locked = [start + page for page in range(64 * 256) if page % 16 >= 8]
    system.kernel.lru.drain_all()
    flags = system.kernel.pages.flags
    evictable = np.count_nonzero((flags >> PG_LRU & 1 == 1) & (flags >> PG_UNEVICTABLE & 1 == 0))
    before = frames(system, pid, locked)
    system.write("/proc/sys/vm/compact_unevictable_allowed", "0")
    system.write("/proc/sys/vm/compact_memory", "1")
    assert 0 < event(system, stats.PGMIGRATE_SUCCESS) <= evictable
    assert frames(system, pid, locked) == before
    moved = event(system, stats.PGMIGRATE_SUCCESS)
    system.write("/proc/sys/vm/compact_unevictable_allowed", "1")
    system.write("/proc/sys/vm/compact_memory", "1")
    assert event(system, stats.PGMIGRATE_SUCCESS) - moved > 2000
    after = frames(system, pid, locked)
    assert sum(a != b for a, b in zip(before, after, strict=True)) > 2000
    assert all(int(flags[pfn]) >> PG_MLOCKED & 1 for pfn in after)
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


def without_huge_blocks(system: System) -> list[int]:
    """Take all blocks of the order of huge pages and above."""
    kernel, taken = system.kernel, []
    while any(sum(zone.nr_free[9:]) for zone in kernel.zones):
        taken.append(kernel.page_alloc.alloc_pages(GFP_KERNEL | F.NORETRY | F.NOWARN, 9))
    return taken


def test_kcompactd_works_when_kswapd_asks(system: System) -> None:
    punched(system)
    kernel = system.kernel
    without_huge_blocks(system)
    wakes = event(system, stats.KCOMPACTD_WAKE)
    thread = next(task for task in kernel.tasks if task.comm == "kcompactd0")
    before = thread.stime_ns
    kernel.kcompactd.wakeup(0, 9, 1)
    system.advance(0.1)
    assert event(system, stats.KCOMPACTD_WAKE) == wakes + 1
    assert event(system, stats.KCOMPACTD_MIGRATE_SCANNED) > 0
    assert event(system, stats.KCOMPACTD_FREE_SCANNED) > 0
    assert any(sum(zone.nr_free[9:]) for zone in kernel.zones)
    assert thread.stime_ns > before
    kernel.kcompactd.wakeup(0, 0, 1)
    system.advance(0.1)
    assert event(system, stats.KCOMPACTD_WAKE) == wakes + 1
    system.check()


def test_a_demand_for_huge_blocks_wakes_kswapd_and_that_kcompactd(system: System) -> None:
    system.command("create /mnt/data 40M")
    system.command("read_file /mnt/data")
    system.write("/proc/sys/vm/compaction_proactiveness", "0")
    punched(system, 140)
    thread = next(task for task in system.kernel.tasks if task.comm == "kcompactd0")
    before, start = vmstat(system), thread.stime_ns
    demand = "alloc_pages order=9 gfp=GFP_TRANSHUGE_LIGHT|__GFP_KSWAPD_RECLAIM"
    with pytest.raises(OSError, match="no free block of order 9") as error:
        system.command(f"a = {demand} n=1000")
    assert error.value.errno == errno.EAGAIN
    system.advance(2)
    moved = {name: value - before[name] for name, value in vmstat(system).items()}
    assert moved["compact_daemon_wake"] >= 1
    assert moved["compact_daemon_migrate_scanned"] > 0
    assert moved["compact_daemon_free_scanned"] > 0
    assert moved["compact_migrate_scanned"] >= moved["compact_daemon_migrate_scanned"]
    assert moved["compact_free_scanned"] >= moved["compact_daemon_free_scanned"]
    assert moved["compact_isolated"] > moved["pgmigrate_success"] > 0
    assert moved["compact_stall"] == 0
    assert thread.stime_ns > start
    assert "pfn=" in system.command(f"b = {demand}")
    system.check()


def vmstat(system: System) -> dict[str, int]:
    lines = (line.split() for line in system.read("/proc/vmstat").decode().splitlines())
    return {name: int(value) for name, value in lines}


def test_others_work_between_two_portions_of_kcompactd() -> None:
    system = System.boot(Machine.of_memory("test", "x86_64", 2, (256 * MIB,), ((0, 1),), ((10,),)), cmdline=NEVER)
    punched(system)
    without_huge_blocks(system)
    kernel = system.kernel
    kernel.kcompactd.wakeup(0, 9, 1)
    now = kernel.clock.now
    kernel.step()
    assert kernel.clock.now == now
    assert event(system, stats.PGMIGRATE_SUCCESS) > 0
    assert event(system, stats.KCOMPACTD_MIGRATE_SCANNED) == 0
    system.check()
    system.command("madvise p m 64M MADV_DONTNEED")
    system.command("access p m 32M w")
    system.advance(1)
    system.check()
    assert event(system, stats.KCOMPACTD_MIGRATE_SCANNED) > 0


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
