"""The fault loop: walks, demand zero, copy on write, TLB, batches, and the same state from all three builds."""

from __future__ import annotations

import random
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kmemd.core import access_stats
from kmemd.core import lru as installed_lru
from kmemd.core import mmu as installed
from kmemd.core import ptes as installed_ptes
from kmemd.core.context import Context
from kmemd.core.pages import ALLOCATED, PG_ANON_EXCLUSIVE, PG_LRU, PageMap
from kmemd.core.pte import ACCESSED, DIRTY, NX, PFN_MASK, PFN_SHIFT, PRESENT, RW, SPECIAL, USER
from tests.core import builds

PAGES = 1 << 14
ZERO = 5
BASE = 0x7F0000000
READ_WRITE = installed.ROW_READ | installed.ROW_WRITE | installed.ROW_FAST
PROT = PRESENT | USER | RW
EVENTS = 16
MODULES = ("mmu", "lru", "ptes", "rmap")
Build = tuple[ModuleType, ...]


@pytest.fixture(params=["installed", "uncompiled", "checked"])
def build(request: pytest.FixtureRequest) -> Build:
    return build_of(request.param)


def build_of(kind: str) -> Build:
    """The modules that the tests need, of one build."""
    return tuple(builds.load(kind, name) for name in MODULES)


def make(build: Build, *, pages: int = PAGES, cpus: int = 2, bits: int = 9, levels: int = 4) -> Any:
    """One address space, number 1, on a machine whose allocator hands out pages upwards from PFN 64."""
    mmu_module, lru_module, ptes_module, rmap_module = build
    vmstat = SimpleNamespace(
        events=np.zeros(EVENTS, dtype=np.int64),
        zone_stat=np.zeros((1, 16), dtype=np.int64),
        node_stat=np.zeros((1, 48), dtype=np.int64),
    )
    page_map, context = PageMap(pages), Context()
    zones = [(0, 0, pages)]
    lru = lru_module.Lru(page_map, context, zones, cpus, vmstat, (1, 0, 7), range(9))
    costs = (1, 30, 600, 90, 150)
    mmu = mmu_module.Mmu(page_map, context, zones, [0] * cpus, vmstat, lru, bits, levels, ZERO, (10, 17, 14), costs)
    ptes = ptes_module.PteRanges(mmu, page_map, zones, vmstat, (17, 18), 1 << bits)
    made = SimpleNamespace(mmu=mmu, lru=lru, ptes=ptes, pages=page_map, context=context, vmstat=vmstat, next=64)
    made.mapped = rmap_module.MappedPages(mmu)
    made.limit = pages

    def take(n: int) -> np.ndarray:
        n = max(0, min(n, made.limit - made.next))
        pfns = np.arange(made.next, made.next + n, dtype=np.int64)
        made.next += n
        page_map.kind[pfns] = ALLOCATED
        return pfns

    def table(mm: int, vpn: int) -> int:
        while mmu.slot(mm, vpn) < 0:
            mmu.install(mm, vpn, mmu.leaf(mm, vpn)[1], int(take(1)[0]))
        return int(mmu.slot(mm, vpn))

    mmu.supply = lambda row, vpns: take(len(vpns))
    mmu.make_table = table
    mmu.copied = lambda old, new: None
    for mm in (1, 2):
        mmu.new_mm(mm, int(take(1)[0]))
    return made


def rows(*vmas: tuple[int, int, int]) -> np.ndarray:
    """The table of mappings: start, end and flags of each; its anon_vma is its number, from 7 on."""
    table = np.zeros((len(vmas), installed.VMA_COLUMNS), dtype=np.int64)
    for number, (start, end, flags) in enumerate(vmas):
        table[number] = start, end, flags, 7 + number, 0, PROT
    return table


def touch(machine: Any, vpns: Any, op: int = installed.WRITE, table: Any = None, mm: int = 1) -> int:
    table = rows((BASE, BASE + 4096, READ_WRITE)) if table is None else table
    return int(machine.mmu.access(mm, np.asarray(vpns, dtype=np.int64), 0, op, table))


def entry(machine: Any, vpn: int, mm: int = 1) -> int:
    return int(machine.mmu.words[machine.mmu.slot(mm, vpn)])


def stat(machine: Any, number: int) -> int:
    return int(machine.mmu.stats[number])


def test_a_written_page_is_new_exclusive_and_dirty(build: Build) -> None:
    machine = make(build)
    assert touch(machine, [BASE + 3]) == 1
    found = entry(machine, BASE + 3)
    pfn = (found & PFN_MASK) >> PFN_SHIFT
    assert found & (PRESENT | RW | ACCESSED | DIRTY | NX) == PRESENT | RW | ACCESSED | DIRTY | NX
    assert (machine.pages.mapping[pfn], machine.pages.index[pfn], machine.pages.mapcount[pfn]) == (7, BASE + 3, 1)
    assert int(machine.pages.flags[pfn]) >> PG_ANON_EXCLUSIVE & 1
    assert machine.vmstat.node_stat[0, 17] == 1
    assert stat(machine, access_stats.NEW_PAGES) == 1
    assert int(machine.mmu.tables[1]) == 3


def test_a_read_maps_the_zero_page_which_a_write_replaces(build: Build) -> None:
    machine = make(build)
    touch(machine, [BASE, BASE + 1], installed.READ)
    assert (entry(machine, BASE) & PFN_MASK) >> PFN_SHIFT == ZERO
    assert entry(machine, BASE) & (SPECIAL | RW | DIRTY) == SPECIAL
    assert int((machine.mmu.rss + machine.mmu.rss_task)[4:8].sum()) == 0
    touch(machine, [BASE])
    assert (entry(machine, BASE) & PFN_MASK) >> PFN_SHIFT != ZERO
    assert int((machine.mmu.rss + machine.mmu.rss_task)[4:8].sum()) == 1


def test_rss_is_handed_over_at_every_66th_fault(build: Build) -> None:
    machine = make(build)
    touch(machine, np.arange(BASE, BASE + 65))
    assert int(machine.mmu.rss[5]) == 0
    touch(machine, [BASE + 65])
    assert (int(machine.mmu.rss[5]), int(machine.mmu.rss_task[5])) == (65, 1)


def test_pages_reach_their_list_fifteen_at_a_time(build: Build) -> None:
    machine = make(build)
    touch(machine, np.arange(BASE, BASE + 17))
    assert machine.vmstat.zone_stat[0, 1] == 15
    assert len(machine.lru.pending(0, installed_lru.ADD)) == 2
    machine.lru.drain_local()
    assert machine.vmstat.zone_stat[0, 1] == 17
    last = (entry(machine, BASE + 16) & PFN_MASK) >> PFN_SHIFT
    assert int(machine.pages.flags[last]) >> PG_LRU & 1


def test_why_an_access_stops(build: Build) -> None:
    machine = make(build)
    table = rows((BASE, BASE + 4, installed.ROW_READ | installed.ROW_FAST), (BASE + 8, BASE + 9, installed.ROW_READ))
    assert touch(machine, [BASE, BASE + 5], installed.READ, table) == 1
    assert machine.mmu.why == installed.NO_VMA
    assert touch(machine, [BASE + 1], installed.WRITE, table) == 0
    assert machine.mmu.why == installed.BAD_ACCESS
    assert touch(machine, [BASE + 8], installed.READ, table) == 0
    assert (machine.mmu.why, machine.mmu.row) == (installed.SLOW, 1)


def test_without_memory_nothing_of_the_failed_faults_stays(build: Build) -> None:
    machine = make(build)
    touch(machine, [BASE])
    machine.limit = machine.next + 10
    done = touch(machine, np.arange(BASE, BASE + 100))
    assert (done, machine.mmu.why) == (11, installed.NO_MEMORY)
    assert entry(machine, BASE + 11) == 0
    assert int((machine.mmu.rss + machine.mmu.rss_task)[5]) == 11
    assert not machine.mmu.stale(1)
    machine.limit = PAGES
    assert touch(machine, np.arange(BASE, BASE + 100)) == 100


def test_the_tlb_answers_what_was_walked_and_forgets_what_is_flushed(build: Build) -> None:
    machine = make(build)
    touch(machine, np.arange(BASE, BASE + 32))
    walks = stat(machine, access_stats.WALKS)
    touch(machine, np.arange(BASE, BASE + 32))
    assert stat(machine, access_stats.WALKS) == walks
    machine.mmu.flush_range(1, BASE, BASE + 2)
    touch(machine, np.arange(BASE, BASE + 32))
    assert stat(machine, access_stats.WALKS) == walks + 2
    machine.mmu.flush_mm(1)
    touch(machine, np.arange(BASE, BASE + 32))
    assert stat(machine, access_stats.WALKS) == walks + 34


def test_a_flush_reaches_other_cpus_that_run_the_task(build: Build) -> None:
    machine = make(build)
    touch(machine, [BASE])
    machine.context.cpu = 1
    touch(machine, [BASE])
    machine.mmu.flush_range(1, BASE, BASE + 1)
    assert stat(machine, access_stats.SHOOTDOWNS) == 1
    machine.context.cpu = 0
    before = stat(machine, access_stats.WALKS)
    touch(machine, [BASE])
    assert stat(machine, access_stats.WALKS) == before + 1


def fork(machine: Any) -> None:
    """Have address space 2 show what 1 maps."""
    found = machine.mmu.extents(1, BASE, BASE + 4096)
    targets = np.array([machine.mmu.make_table(2, vpn) for vpn in found[:, 0].tolist()], dtype=np.int64)
    machine.ptes.copy(2, found, targets, True)
    machine.mmu.flush_mm(1)


def test_after_fork_the_first_writer_copies_and_the_last_one_reuses(build: Build) -> None:
    machine = make(build)
    touch(machine, np.arange(BASE, BASE + 30))
    machine.lru.drain_local()
    machine.mmu.sync_rss(1)
    fork(machine)
    shared = (entry(machine, BASE) & PFN_MASK) >> PFN_SHIFT
    assert int(machine.pages.mapcount[shared]) == 2
    assert not entry(machine, BASE) & RW
    touch(machine, [BASE], mm=2)
    assert (entry(machine, BASE, 2) & PFN_MASK) >> PFN_SHIFT != shared
    assert (entry(machine, BASE) & PFN_MASK) >> PFN_SHIFT == shared
    assert stat(machine, access_stats.COPIES) == 1
    touch(machine, [BASE])
    assert (entry(machine, BASE) & PFN_MASK) >> PFN_SHIFT == shared
    assert stat(machine, access_stats.REUSES) == int(machine.vmstat.events[14]) == 1
    assert int(machine.mmu.rss[9] + machine.mmu.rss_task[9]) == 30


def test_zap_gives_back_what_nobody_else_maps(build: Build) -> None:
    machine = make(build)
    touch(machine, np.arange(BASE, BASE + 20))
    touch(machine, np.arange(BASE + 20, BASE + 25), installed.READ)
    machine.lru.drain_local()
    machine.mmu.sync_rss(1)
    fork(machine)
    freed, *others = machine.ptes.zap(1, machine.mmu.extents(1, BASE, BASE + 4096))
    assert (freed, others) == (0, [0, 0, 0, 0])
    freed, *others = machine.ptes.zap(2, machine.mmu.extents(2, BASE, BASE + 4096))
    assert (freed, others) == (20, [0, 0, 0, 0])
    assert not machine.mmu.rss[4:12].any()
    assert machine.vmstat.node_stat[0, 17] == 0
    assert not machine.pages.mapping[machine.ptes.freed[:20]].any()


def test_tables_go_when_nothing_needs_them(build: Build) -> None:
    machine = make(build)
    touch(machine, [BASE, BASE + 4000])
    assert int(machine.mmu.tables[1]) == len(machine.mmu.table_pfns(1)) == 4
    machine.ptes.zap(1, machine.mmu.extents(1, BASE, BASE + 4096))
    assert len(machine.mmu.free_tables(1, BASE, BASE + 512)) == 1
    assert len(machine.mmu.free_tables(1, 0, 1 << 36)) == 3
    assert int(machine.mmu.tables[1]) == 0
    assert len(machine.mmu.extents(1, 0, 1 << 36)) == 0


@pytest.mark.parametrize(
    ("bits", "levels", "top"), [(9, 4, 1 << 35), (9, 5, 1 << 44), (10, 2, 1 << 19), (9, 3, 1 << 19)]
)
def test_any_number_of_levels(build: Build, bits: int, levels: int, top: int) -> None:
    machine = make(build, bits=bits, levels=levels)
    table = rows((16, top, READ_WRITE))
    assert touch(machine, [16, top - 1], table=table) == 2
    assert len(machine.mmu.table_pfns(1)) == 2 * (levels - 1)
    assert int(machine.mmu.tables[1]) == 2 * min(levels - 1, 3)  # mm_pgtables_bytes has no P4D tables
    found = machine.mmu.extents(1, 0, top)
    assert found[:, 3].tolist() == [0, 0]
    assert found[:, 1].sum() == 2 << bits if top - 1 >> bits != 16 >> bits else 1 << bits
    machine.ptes.zap(1, found)
    assert len(machine.mmu.free_tables(1, 0, top)) == 2 * (levels - 1)
    assert int(machine.mmu.tables[1]) == 0


def test_scan_adds_up_what_smaps_shows(build: Build) -> None:
    machine = make(build)
    touch(machine, np.arange(BASE, BASE + 8))
    fork(machine)
    touch(machine, [BASE], mm=2)
    totals = np.zeros(installed_ptes.SCAN_ITEMS, dtype=np.int64)
    machine.ptes.scan(machine.mmu.extents(2, BASE, BASE + 4096), totals)
    assert totals[installed_ptes.RSS] == totals[installed_ptes.ANONYMOUS] == 8 << 12
    assert totals[installed_ptes.PSS] >> 12 == (1 + 7 / 2) * 4096
    assert totals[installed_ptes.SHARED_DIRTY] == 7 << 12
    assert totals[installed_ptes.PRIVATE_DIRTY] == 1 << 12


def test_more_address_spaces_than_a_cpu_remembers(build: Build) -> None:
    machine = make(build)
    touch(machine, [BASE])
    for mm in range(3, 10):
        machine.mmu.new_mm(mm, machine.next)
        machine.next += 1
        touch(machine, [BASE], mm=mm)
    walks = stat(machine, access_stats.WALKS)
    touch(machine, [BASE])
    assert stat(machine, access_stats.WALKS) == walks + 1


def run(build: Build, seed: int) -> list[np.ndarray]:
    """The state after a random run."""
    machine = make(build)
    rng = random.Random(seed)
    for _ in range(60):
        first, count = rng.randrange(64), rng.randrange(1, 40)
        vpns = [BASE + (first + rng.randrange(count)) % 64 for _ in range(count)]
        what = rng.randrange(6)
        if what < 4:
            touch(machine, vpns, installed.WRITE if what < 2 else installed.READ, mm=1 + what % 2)
        elif what == 4:
            machine.mmu.flush_range(1, BASE + first, BASE + first + count)
        else:
            machine.lru.drain_local()
            machine.mmu.sync_rss(1)
            machine.ptes.zap(1, machine.mmu.extents(1, BASE + first, BASE + first + count))
            machine.mmu.flush_range(1, BASE + first, BASE + first + count)
    return [
        machine.mmu.words[: machine.next << 9],
        machine.pages.flags,
        machine.pages.mapping,
        machine.pages.mapcount,
        machine.mmu.rss,
        machine.mmu.stats,
        machine.vmstat.zone_stat,
        machine.vmstat.node_stat,
        machine.context.words,
    ]


@pytest.mark.parametrize("seed", range(3))
def test_the_three_builds_agree(seed: int) -> None:
    states = [run(build_of(kind), seed) for kind in ("installed", "uncompiled", "checked")]
    for mine, *others in zip(*states, strict=True):
        for other in others:
            assert (mine == other).all()


def test_a_run_of_faults_is_what_they_are_one_by_one(build: Build) -> None:
    one, many = make(build), make(build)
    vpns = [*range(BASE + 500, BASE + 700), *range(BASE + 100, BASE + 130), BASE + 200, BASE + 201, BASE + 201]
    touch(one, [BASE + 510, BASE + 120], installed.READ)
    touch(many, [BASE + 510, BASE + 120], installed.READ)
    touch(many, vpns)
    for vpn in vpns:
        touch(one, [vpn])
    pages = [(entry(machine, vpn) & ~PFN_MASK) for machine in (one, many) for vpn in sorted(set(vpns))]
    assert pages[: len(pages) // 2] == pages[len(pages) // 2 :]
    for mine, other in (
        (one.mmu.stats, many.mmu.stats),
        (one.mmu.rss, many.mmu.rss),
        (one.mmu.rss_task, many.mmu.rss_task),
        (one.mmu.faults_of, many.mmu.faults_of),
        (one.vmstat.events, many.vmstat.events),
        (one.vmstat.node_stat, many.vmstat.node_stat),
        (one.vmstat.zone_stat, many.vmstat.zone_stat),
        (one.context.words, many.context.words),
    ):
        assert (mine == other).all()
    assert one.lru.pending(0, installed_lru.ADD) == [pfn + one.next - many.next for pfn in many.lru.pending(0, 0)]
