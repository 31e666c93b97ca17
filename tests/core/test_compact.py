"""The scanners of compaction: which pages are taken, skip hints, and the same from all three builds."""

from __future__ import annotations

import random
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kmemd.core import compact as installed
from kmemd.core.mmzone import MIGRATE_MOVABLE
from kmemd.core.pages import ALLOCATED, PG_HEAD, PG_LRU, PG_SWAPCACHE, PG_UNEVICTABLE, PG_WRITEBACK, PageMap
from tests.core import builds, test_buddy, test_mmu

START, END = test_buddy.START, test_buddy.END
BLOCK = 512
ON_LRU = 1 << PG_LRU


@pytest.fixture(params=["installed", "uncompiled", "checked"])
def build(request: pytest.FixtureRequest) -> ModuleType:
    return installed if request.param == "installed" else getattr(builds, request.param)("compact")


@pytest.fixture(params=["installed", "uncompiled", "checked"])
def buddies(request: pytest.FixtureRequest) -> SimpleNamespace:
    return test_buddy.build_of(request.param)


@pytest.fixture(params=["installed", "uncompiled", "checked"])
def mmus(request: pytest.FixtureRequest) -> Any:
    return test_mmu.build_of(request.param)


def make(build: ModuleType, pages: int = 4 * BLOCK) -> Any:
    page_map = PageMap(pages)
    return SimpleNamespace(pages=page_map, scanner=build.Scanner(page_map, 9))


def put(machine: Any, pfns: Any, flags: int = ON_LRU, order: int = 0) -> None:
    machine.pages.meta[pfns] = ALLOCATED | order << 8
    machine.pages.flags[pfns] = flags


def scan(machine: Any, low: int = 0, end: int = BLOCK, **how: Any) -> list[int]:
    at = {"order": 9, "mode": installed.SYNC, "unevictable": True, "fs": True, "direct": False}
    at |= {"ignore_skip": False, "rescan": False, "contig": False} | how
    machine.scanner.isolate_migratepages_block(low, end, *at.values())
    return [int(pfn) for pfn in machine.scanner.found[: machine.scanner.blocks]]


# -- the migration scanner -----------------------------------------------------------------------------------


def test_a_cluster_is_taken_and_the_rest_of_the_block_later(build: ModuleType) -> None:
    machine = make(build)
    put(machine, np.arange(100))
    assert scan(machine) == list(range(32))
    assert (machine.scanner.pfn, machine.scanner.scanned, machine.scanner.covered) == (32, 32, False)
    assert scan(machine, 32, rescan=True) == list(range(32, 100))
    assert (machine.scanner.pfn, machine.scanner.scanned, machine.scanner.covered) == (512, 480, True)


@pytest.mark.parametrize(
    ("flags", "how", "taken"),
    [
        (0, {}, False),
        (ON_LRU, {}, True),
        (ON_LRU | 1 << PG_UNEVICTABLE, {}, True),
        (ON_LRU | 1 << PG_UNEVICTABLE, {"unevictable": False}, False),
        (ON_LRU | 1 << PG_WRITEBACK, {}, True),
        (ON_LRU | 1 << PG_WRITEBACK, {"mode": installed.SYNC_LIGHT}, False),
        (ON_LRU | 1 << PG_SWAPCACHE, {}, True),
        (ON_LRU | 1 << PG_SWAPCACHE, {"fs": False}, False),
        (ON_LRU | 1 << PG_HEAD, {}, True),
    ],
)
def test_which_pages_can_move(build: ModuleType, flags: int, how: dict[str, Any], taken: bool) -> None:
    machine = make(build)
    put(machine, [7], flags)
    assert scan(machine, **how) == ([7] if taken else [])


def test_huge_pages_are_passed_over_unless_a_range_is_wanted(build: ModuleType) -> None:
    machine = make(build)
    put(machine, [0], ON_LRU | 1 << PG_HEAD, order=9)
    assert scan(machine) == []
    assert (machine.scanner.scanned, machine.scanner.isolated) == (1, 0)
    assert scan(machine, contig=True, ignore_skip=True) == [0]
    assert (machine.scanner.scanned, machine.scanner.isolated) == (512, 512)


def test_free_blocks_are_stepped_over_and_never_touched_ones_too(build: ModuleType) -> None:
    machine = make(build)
    machine.pages.meta[0] = 1 | 8 << 8
    put(machine, [300])
    assert scan(machine) == [300]
    assert machine.scanner.scanned == 1 + 256
    machine.scanner.set_frontier([(1024, 2048)])
    assert scan(machine, 1024, 1536) == []
    assert machine.scanner.scanned == 1
    scan(machine, 1536, 2048)  # the second half of a block of the highest order: tails, which look like any other
    assert machine.scanner.scanned == 512


def test_an_empty_block_is_skipped_from_then_on(build: ModuleType) -> None:
    machine = make(build)
    scan(machine)
    assert machine.scanner.skip[:2].tolist() == [1, 0]
    put(machine, [5])
    assert scan(machine) == []
    assert machine.scanner.aborted
    assert scan(machine, ignore_skip=True) == [5]


def test_a_request_in_haste_gives_up_what_cannot_become_its_block(build: ModuleType) -> None:
    machine = make(build)
    put(machine, [0, 1, 2, 8, 9])
    put(machine, [3], 0)
    machine.pages.meta[[4, 10, 12]] = 1 | 2 << 8
    machine.pages.meta[10] = 1 | 1 << 8
    assert scan(machine, order=3, direct=True) == [8, 9]
    assert machine.scanner.back[: machine.scanner.dropped].tolist() == [0, 1, 2]


def test_the_first_page_that_cannot_move(build: ModuleType) -> None:
    machine = make(build)
    put(machine, np.arange(512))
    assert machine.scanner.unmovable(0, 512) == -1
    put(machine, [77], 0)
    assert machine.scanner.unmovable(0, 512) == 77
    machine.pages.meta[512] = 1 | 9 << 8
    assert machine.scanner.unmovable(512, 1024) == -1
    assert machine.scanner.unmovable(512, 1025) == 1024


def test_builds_agree_on_random_blocks() -> None:
    rng = random.Random(5)
    machines = [make(module) for module in (installed, builds.uncompiled("compact"), builds.checked("compact"))]
    for round_ in range(60):
        flags = [rng.choice((0, 0, ON_LRU, ON_LRU, ON_LRU | 1 << PG_WRITEBACK)) for _ in range(BLOCK)]
        how = {"order": rng.randrange(10), "mode": rng.randrange(3), "direct": rng.random() < 0.5}
        how |= {"rescan": rng.random() < 0.3, "ignore_skip": rng.random() < 0.7}
        results = []
        for machine in machines:
            put(machine, np.arange(BLOCK), np.array(flags, dtype=np.uint32))
            found = scan(machine, **how)
            s = machine.scanner
            results.append((found, s.pfn, s.scanned, s.isolated, s.dropped, s.covered, s.aborted, s.skip.tolist()))
        assert results[0] == results[1] == results[2], round_


# -- free pages ----------------------------------------------------------------------------------------------


def test_free_pages_are_taken_until_there_are_enough(buddies: SimpleNamespace) -> None:
    zone = test_buddy.make(buddies)
    pages = [test_buddy.alloc(zone) for _ in range(1024)]
    for pfn in pages[::2]:
        zone.buddy.free_pages(pfn, 0)
    zone.buddy.drain_all()
    out = np.zeros(2048, dtype=np.int64)
    before = test_buddy.free_pages(zone)
    got = zone.scanner.isolate_freepages_block(0, START, START + 512, out, 0, 20, 1, False)
    assert out[:got].tolist() == list(range(START, START + 40, 2))
    assert (zone.scanner.scan_pfn, zone.scanner.scanned) == (START + 39, 39)
    assert test_buddy.free_pages(zone) == before - 20
    assert zone.buddy.pages.kind[out[:got]].tolist() == [ALLOCATED] * 20
    assert zone.buddy.taken == 20
    assert zone.scanner.isolate_freepages_block(0, START, START + 512, out, 0, 20, 1, True) == 0
    assert zone.scanner.isolate_freepages_block(0, START + 40, START + 512, out, 0, 600, 32, False) == 15


def test_the_min_watermark_is_kept(buddies: SimpleNamespace) -> None:
    zone = test_buddy.make(buddies)
    test_buddy.alloc(zone, 3)
    zone.buddy.wmark[0, 0] = END - START - 20
    out = np.zeros(2048, dtype=np.int64)
    assert zone.scanner.isolate_freepages_block(0, START, START + 512, out, 0, 1, 1, False) == 0
    assert zone.scanner.scan_pfn < START + 512


def test_a_block_is_caught_as_it_is_freed(buddies: SimpleNamespace) -> None:
    zone = test_buddy.make(buddies)
    zone.buddy.pcp_high[0] = 0
    pages = [test_buddy.alloc(zone) for _ in range(1024)]
    zone.buddy.capture(0, 9)
    for pfn in pages:
        zone.buddy.free_pages(pfn, 0)
    caught = int(zone.buddy.captured)
    assert caught >= START
    assert caught % 512 == 0
    assert zone.buddy.pages.meta[caught] & 0xFFFF == ALLOCATED | 9 << 8
    zone.buddy.drain_all()
    assert test_buddy.free_pages(zone) == END - START - 512
    zone.buddy.capture(0, -1)
    assert zone.buddy.free_pages(caught, 9)
    zone.buddy.drain_all()
    assert test_buddy.nr_free(zone) == [0] * 10 + [8]


def test_page_blocks_are_set_apart_and_put_back(buddies: SimpleNamespace) -> None:
    zone = test_buddy.make(buddies)
    pages = [test_buddy.alloc(zone) for _ in range(63)]
    low, high = START + 512, START + 2 * 1024 + 512
    assert zone.ranges.isolate_range(0, low, high)
    assert not zone.ranges.isolate_range(0, low, low + 512)
    assert test_buddy.free_pages(zone) == END - START - 63 - (high - low)
    assert all(not low <= test_buddy.alloc(zone) < high for _ in range(600))
    zone.ranges.unisolate_range(0, low, high, MIGRATE_MOVABLE)
    assert zone.ranges.isolated_blocks(0) == 0
    assert len(pages) == 63
    listed = sum(zone.buddy.nr_list[order * 7 : order * 7 + 7].sum() << order for order in range(11))
    assert listed == test_buddy.free_pages(zone) == END - START - 63 * 11  # ten more batches, one partly given out


def test_searches_of_a_free_list_go_on_where_they_ended(buddies: SimpleNamespace) -> None:
    zone = test_buddy.make(buddies)
    zone.buddy.pcp_high[0] = 0
    blocks = [test_buddy.alloc(zone, 4) for _ in range(32)]
    for pfn in blocks[::2]:
        zone.buddy.free_pages(pfn, 4)
    listed = zone.state.free_list(0, 4, 1)
    found, scanned, highest, _, preferred = zone.scanner.fast_search(0, 4, 8, START + 400, START)
    assert (found >= START + 400) == preferred
    assert highest == max(listed[-scanned:])
    assert zone.state.free_list(0, 4, 1)[0] == (found if found >= 0 else listed[-scanned])
    skip = np.zeros(END // 512 + 1, dtype=np.uint8)
    found, scanned = zone.scanner.fast_source(0, 4, 0, 33, START + 100, skip)
    assert START <= found < START + 100
    assert zone.state.free_list(0, 4, 1)[-1] == found
    skip[:] = 1
    assert zone.scanner.fast_source(0, 4, 0, 33, END, skip)[0] == -1
    assert sorted(zone.state.free_list(0, 4, 1)) == sorted(listed)


# -- moving --------------------------------------------------------------------------------------------------


def test_pages_of_one_mapping_move_with_their_entries(mmus: Any) -> None:
    machine = test_mmu.make(mmus)
    test_mmu.touch(machine, np.arange(test_mmu.BASE, test_mmu.BASE + 64))
    machine.lru.drain_all()
    vpns = np.arange(test_mmu.BASE, test_mmu.BASE + 64, 2, dtype=np.int64)
    old = [test_mmu.entry(machine, int(vpn)) for vpn in vpns]
    srcs = np.array([(one & test_mmu.PFN_MASK) >> 12 for one in old], dtype=np.int64)
    dsts = np.arange(9000, 9000 + len(srcs), dtype=np.int64)
    done = np.zeros(len(srcs), dtype=np.uint8)
    span = (test_mmu.BASE, test_mmu.BASE + 4096, test_mmu.BASE)
    prot = test_mmu.PRESENT | test_mmu.USER | test_mmu.NX
    assert machine.mapped.move_pages(1, span, prot, 7, srcs, dsts, done) == 0  # they are on an LRU list still
    machine.lru.remove_bulk(srcs)
    done[3] = 1
    assert machine.mapped.move_pages(1, span, prot, 7, srcs, dsts, done) == len(srcs) - 1
    for place, vpn in enumerate(vpns.tolist()):
        want = old[place] if place == 3 else old[place] & ~test_mmu.PFN_MASK | int(dsts[place]) << 12
        assert test_mmu.entry(machine, vpn) == want
    assert machine.pages.mapcount[dsts[4:]].all()
    assert not machine.pages.mapcount[srcs[4:]].any()
    assert not machine.pages.flags[srcs[4:]].any()
    assert machine.mmu.stale(1) == []
    assert machine.mapped.move_pages(2, span, prot, 7, srcs, dsts, np.zeros(len(srcs), dtype=np.uint8)) == 0
