"""The buddy core: lists, merging, stealing, per-cpu lists, and the same state from all three builds."""

from __future__ import annotations

import itertools
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kmemd.core import mmzone
from kmemd.core.context import Context
from kmemd.core.owner import OwnerTable
from kmemd.core.pages import ALLOCATED, PageMap
from tests.core import builds

FAST = mmzone.ALLOC_WMARK_LOW | mmzone.ALLOC_CMA | mmzone.ALLOC_KSWAPD
NONE = mmzone.ALLOC_NO_WATERMARKS | mmzone.ALLOC_CMA
START, END = 1024, 1024 * 9


@pytest.fixture(params=["installed", "uncompiled", "checked"])
def build(request: pytest.FixtureRequest) -> SimpleNamespace:
    return build_of(request.param)


def build_of(kind: str) -> SimpleNamespace:
    """The classes of the buddy system in one build."""
    modules = {
        "buddy": "Buddy",
        "buddy_state": "BuddyState",
        "page_ranges": "PageRanges",
        "compact_free": "FreeScanner",
    }
    return SimpleNamespace(**{name: getattr(builds.load(kind, module), name) for module, name in modules.items()})


def make(build: SimpleNamespace, *, owner: bool = False, free: bool = True, cpus: int = 2) -> Any:
    """One zone of 32 MiB, two CPUs, no watermarks, everything free."""
    stats = SimpleNamespace(
        events=np.zeros(8, dtype=np.int64),
        zone_stat=np.zeros((1, 4), dtype=np.int64),
        numa_stat=np.zeros((1, 6), dtype=np.int64),
        nr_free_pages=0,
        nr_free_cma=1,
        pgfree=1,
        pgalloc=[2],
    )
    context = Context()
    table = OwnerTable(END) if owner else None
    rows = [(0, 0, START, END, END - START)]
    made = build.Buddy(PageMap(END), context, rows, [0] * cpus, 1, 9, (60, 180), stats, table)
    made.set_zonelist(0, [0])
    made.pcp_high[0], made.pcp_batch[0] = 186, 63
    zone = SimpleNamespace(buddy=made, context=context, stats=stats, owner=table)
    zone.state, zone.ranges, zone.scanner = build.BuddyState(made), build.PageRanges(made), build.FreeScanner(made)
    if free:
        zone.ranges.free_range(0, START, END)
    return zone


def alloc(zone: Any, order: int = 0, mt: int = 1, flags: int = NONE, gfp: int = 0) -> int:
    return int(zone.buddy.alloc_pages(0, 0, 1, order, mt, flags, gfp))


def nr_free(zone: Any) -> list[int]:
    return [int(zone.buddy.nr_list[order * 7 : order * 7 + 7].sum()) for order in range(11)]


def free_pages(zone: Any) -> int:
    return int(zone.stats.zone_stat[0, 0])


def test_boot_leaves_whole_blocks_in_the_frontier(build: SimpleNamespace) -> None:
    zone = make(build)
    assert zone.buddy.frontier(0) == [(START, END)]
    assert nr_free(zone) == [0] * 10 + [8]
    assert free_pages(zone) == END - START
    assert zone.state.free_list(0, 10, 1) == list(range(START, END, 1024))


def test_boot_release_of_a_ragged_range(build: SimpleNamespace) -> None:
    zone = make(build, free=False)
    zone.ranges.free_range(0, 1025, 4099)
    assert zone.state.free_list(0, 10, 1) == [2048, 3072]
    assert zone.state.free_list(0, 0, 1) == [1025, 4098]
    assert zone.state.free_list(0, 1, 1) == [1026, 4096]
    assert free_pages(zone) == 4099 - 1025


def test_order_0_comes_in_batches_upwards(build: SimpleNamespace) -> None:
    zone = make(build)
    assert [alloc(zone) for _ in range(130)] == list(range(START, START + 130))
    assert zone.buddy.pcp_count.tolist() == [3 * 63 - 130, 0]


def test_split_and_merge_give_the_block_back_whole(build: SimpleNamespace) -> None:
    zone = make(build)
    pfn = alloc(zone, 4)
    assert pfn == START
    assert nr_free(zone) == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 7]
    assert zone.buddy.free_pages(pfn, 4)
    assert nr_free(zone) == [0] * 10 + [8]
    assert zone.state.free_list(0, 10, 1)[0] == START


def test_a_block_likely_to_merge_goes_to_the_tail(build: SimpleNamespace) -> None:
    zone = make(build)
    zone.buddy.pcp_high[0] = 0  # every free goes straight to the free lists
    block = alloc(zone, 6)
    pages = [alloc(zone, 4) for _ in range(4)]
    assert pages == [block + 64 + 16 * i for i in range(4)]
    zone.buddy.free_pages(block, 6)
    zone.buddy.free_pages(pages[3], 4)
    zone.buddy.free_pages(pages[0], 4)
    order4 = zone.state.free_list(0, 4, 1)
    assert order4[-1] == pages[0] or order4 == [pages[0], pages[3]]


def test_frees_beyond_high_go_back_in_growing_batches(build: SimpleNamespace) -> None:
    zone = make(build)
    pages = [alloc(zone) for _ in range(400)]
    counts = []
    for pfn in pages:
        zone.buddy.free_pages(pfn, 0)
        counts.append(int(zone.buddy.pcp_count[0]))
    drops = [before + 1 - after for before, after in itertools.pairwise(counts) if after < before]
    assert drops == [63, 123, 123]
    assert zone.buddy.pcp_factor[0] == 1


def test_unmovable_request_steals_whole_page_blocks(build: SimpleNamespace) -> None:
    zone = make(build)
    pfn = alloc(zone, 4, mt=0)
    assert pfn == START
    assert zone.buddy.pageblock_type(pfn) == 0
    assert zone.buddy.nr_list[(0 * 11 + 10) * 7 + 1] == 7
    assert zone.state.free_list(0, 9, 0) == [START + 512]


def test_reclaimable_request_prefers_unmovable_blocks_then_takes_movable_ones(build: SimpleNamespace) -> None:
    zone = make(build)
    assert alloc(zone, 4, mt=2) == START
    assert zone.buddy.pageblock_type(START) == 2


def test_a_page_block_half_of_which_is_free_changes_its_type(build: SimpleNamespace) -> None:
    zone = make(build)
    blocks = [alloc(zone, 8, mt=0) for _ in range(32)]
    zone.buddy.free_pages(blocks[6], 8)
    assert alloc(zone, 8, mt=1) == blocks[6]
    assert zone.buddy.pageblock_type(blocks[6]) == 1


def test_atomic_reserve_stops_at_a_hundredth_and_a_page_block(build: SimpleNamespace) -> None:
    zone = make(build)
    for _ in range(5):
        alloc(zone, 8, mt=0, flags=NONE | mmzone.ALLOC_HIGHATOMIC)
        alloc(zone, 10, mt=1)
    kinds = [zone.buddy.pageblock_type(pfn) for pfn in range(START, END, 512)]
    assert kinds.count(mmzone.MIGRATE_HIGHATOMIC) == 2


def test_the_mark_itself_is_not_given_out(build: SimpleNamespace) -> None:
    zone = make(build)
    free = free_pages(zone)
    assert not zone.buddy.watermark_ok(0, 0, free, 0, 0)
    assert zone.buddy.watermark_ok(0, 0, free - 1, 0, 0)


@pytest.mark.parametrize(("other", "merged"), [(mmzone.MIGRATE_MOVABLE, True), (mmzone.MIGRATE_CMA, False)])
def test_page_blocks_merge_unless_one_is_special(build: SimpleNamespace, other: int, merged: bool) -> None:
    zone = make(build)
    low, high = alloc(zone, 9, mt=0), alloc(zone, 9, mt=0)
    assert zone.buddy.pcp_count.sum() == 0
    zone.buddy.set_pageblock_type(high, other)
    zone.buddy.free_pages(low, 9)
    zone.buddy.free_pages(high, 9)
    zone.buddy.drain_all()
    assert nr_free(zone)[9:] == ([0, 8] if merged else [2, 7])


def test_a_refill_takes_two_blocks_at_least(build: SimpleNamespace) -> None:
    zone = make(build)
    alloc(zone, 9)
    assert zone.buddy.pcp_count.sum() == 512


def test_small_movable_fallback_takes_the_smallest_block(build: SimpleNamespace) -> None:
    zone = make(build, free=False)
    for pfn in range(START, END, 512):
        zone.buddy.set_pageblock_type(pfn, 0)
    zone.state.load_free_block(0, 3, 0, START)
    zone.state.load_free_block(0, 1, 0, START + 512)
    zone.state.load_free_block(0, 2, 0, START + 520)
    zone.buddy.pcp_batch[0] = 1
    assert alloc(zone, 0, mt=1) == START + 512
    assert zone.buddy.pageblock_type(START + 512) == 0


def test_nofragment_keeps_page_blocks_apart_until_all_zones_are_tried(build: SimpleNamespace) -> None:
    zone = make(build, free=False)
    zone.state.load_free_block(0, 5, 1, START)
    assert alloc(zone, 0, mt=0, flags=NONE | mmzone.ALLOC_NOFRAGMENT) == START


def test_high_order_atomic_keeps_its_page_block(build: SimpleNamespace) -> None:
    zone = make(build)
    pfn = alloc(zone, 2, mt=0, flags=NONE | mmzone.ALLOC_HIGHATOMIC)
    assert zone.buddy.pageblock_type(pfn) == mmzone.MIGRATE_HIGHATOMIC
    assert zone.buddy.highatomic[0] == 512
    assert zone.buddy.unreserve_highatomic(0, 0, 1, 1, False) is False
    assert zone.buddy.unreserve_highatomic(0, 0, 1, 1, True) is True
    assert zone.buddy.highatomic[0] == 0


def test_watermark_and_lowmem_reserve_stop_a_request(build: SimpleNamespace) -> None:
    zone = make(build)
    zone.buddy.wmark[0] = [1000, 2000, 3000, 4000]
    got = 0
    while alloc(zone, 0, flags=FAST) >= 0:
        got += 1
    assert free_pages(zone) <= 2000
    assert free_pages(zone) + 63 > 2000
    zone.buddy.reserve[0, 0] = 5000
    assert alloc(zone, 0, flags=mmzone.ALLOC_WMARK_MIN) == -1
    zone.buddy.reserve[0, 0] = 0
    assert alloc(zone, 0, flags=mmzone.ALLOC_WMARK_MIN) >= 0


def test_boost_raises_the_watermarks_after_a_mixing_fallback(build: SimpleNamespace) -> None:
    zone = make(build, free=False)
    zone.buddy.wmark[0] = [100, 200, 4000, 500]
    zone.state.load_free_block(0, 8, 1, START)
    assert alloc(zone, 0, mt=0, flags=NONE | mmzone.ALLOC_KSWAPD) >= 0
    assert zone.buddy.boost[0] == 512
    assert zone.buddy.kswapd_wake[0] == 1


def test_bad_frees_are_refused(build: SimpleNamespace) -> None:
    zone = make(build)
    pfn = alloc(zone, 3)
    assert not zone.buddy.free_pages(pfn, 2)
    assert not zone.buddy.free_pages(pfn + 1, 0)
    assert not zone.buddy.free_pages(END + 5, 0)
    assert not zone.buddy.free_pages(-1, 0)
    assert zone.buddy.free_pages(pfn, 3)
    assert not zone.buddy.free_pages(pfn, 3)
    assert zone.buddy.bad_pfn == pfn


def test_owner_records_every_page_of_a_block(build: SimpleNamespace) -> None:
    zone = make(build, owner=True)
    zone.context.switch(7, 7, "probe", 1)
    zone.context.stack = 5
    zone.context.now = 1000
    pfn = alloc(zone, 2, gfp=0xCC0)
    zone.context.now = 5000
    zone.buddy.free_pages(pfn, 2)
    pages = slice(pfn, pfn + 4)
    assert zone.owner.stack[pages].tolist() == [5] * 4
    assert zone.owner.gfp[pages].tolist() == [0xCC0] * 4
    assert zone.owner.pid[pages].tolist() == [7] * 4
    assert (zone.owner.free_ts[pages] == 5000).all()
    assert (zone.owner.allocated[pages] == 0).all()


def test_drain_all_empties_every_cpu(build: SimpleNamespace) -> None:
    zone = make(build)
    for cpu in (0, 1):
        zone.context.cpu = cpu
        zone.buddy.free_pages(alloc(zone), 0)
    assert zone.buddy.pcp_count.sum() == 126
    zone.buddy.drain_all()
    assert zone.buddy.pcp_count.sum() == 0
    assert nr_free(zone) == [0] * 10 + [8]


def _state(zone: Any) -> dict[str, Any]:
    lists = {(o, mt): zone.state.free_list(0, o, mt) for o in range(11) for mt in range(6)}
    pcp = {(cpu, i): zone.state.pcp_list(0, cpu, i) for cpu in (0, 1) for i in range(14)}
    arrays = {
        "stat": zone.stats.zone_stat.tolist(),
        "numa": zone.stats.numa_stat.tolist(),
        "events": zone.stats.events.tolist(),
        "types": zone.buddy.block_type.tolist(),
        "kinds": zone.buddy.pages.kind.tolist(),
        "now": zone.context.now,
    }
    return {"lists": lists, "pcp": pcp, **arrays}


def _play(build: SimpleNamespace, seed: int, steps: int) -> dict[str, Any]:
    """Random allocations and frees of all orders and types on two CPUs."""
    zone = make(build, owner=True)
    zone.buddy.wmark[0] = [50, 80, 110, 140]
    rng = random.Random(seed)
    held: list[tuple[int, int]] = []
    for _ in range(steps):
        zone.context.cpu = rng.randrange(2)
        order = rng.choice((0, 0, 0, 1, 2, 3, 4, 6, 9, 10))
        flags = rng.choice((FAST, FAST | mmzone.ALLOC_NOFRAGMENT, NONE, mmzone.ALLOC_HIGHATOMIC))
        if held and rng.random() < 0.45:
            zone.buddy.free_pages(*held.pop(rng.randrange(len(held))))
        elif (pfn := alloc(zone, order, rng.randrange(3), flags)) >= 0:
            held.append((pfn, order))
    for pfn, order in held:
        assert zone.buddy.pages.kind[pfn] == ALLOCATED
        assert zone.buddy.pages.order[pfn] == order
    return _state(zone)


@pytest.mark.parametrize("seed", range(3))
def test_all_builds_reach_the_same_state(seed: int) -> None:
    wanted = _play(build_of("uncompiled"), seed, 3000)
    assert _play(build_of("installed"), seed, 3000) == wanted
    assert _play(build_of("checked"), seed, 3000) == wanted


@pytest.mark.parametrize("module", ["buddy", "free_lists", "page_ranges"])
def test_the_compiled_build_is_the_one_installed(module: str) -> None:
    assert not builds.load("installed", module).__file__.endswith(".py")


@pytest.mark.parametrize("order", [0, 1, 3, 4, 9])
@pytest.mark.parametrize("mt", [0, 1])
def test_bulk_is_so_many_single_operations(order: int, mt: int) -> None:
    one, bulk = make(build_of("installed")), make(build_of("installed"))
    count = 6000 >> order
    singles = [alloc(one, order, mt) for _ in range(count)]
    out = np.empty(count, dtype=np.int64)
    assert bulk.buddy.alloc_bulk(out, 0, 0, 1, order, mt, NONE, 0) == count
    assert out.tolist() == singles
    assert _state(one) == _state(bulk)
    mixed = random.Random(order).sample(singles, count)
    for pfn in mixed:
        assert one.buddy.free_pages(pfn, order)
    assert bulk.buddy.free_bulk(np.array(mixed, dtype=np.int64), order) == count
    assert _state(one) == _state(bulk)


def test_bulk_free_stops_at_the_first_bad_block() -> None:
    zone = make(build_of("installed"))
    pages = [alloc(zone) for _ in range(10)]
    wrong = np.array([*pages[:4], pages[0], *pages[4:]], dtype=np.int64)
    assert zone.buddy.free_bulk(wrong, 0) == 4
    assert zone.buddy.bad_pfn == pages[0]
    assert zone.buddy.free_bulk(np.array([END + 7], dtype=np.int64), 0) == 0
    assert zone.buddy.free_bulk(np.array(pages[4:], dtype=np.int64), 0) == 6


def test_page_owner_of_pages_freed_in_bulk_is_that_of_one_by_one(build: SimpleNamespace) -> None:
    one, bulk = make(build, owner=True), make(build, owner=True)
    pfns = np.array([alloc(one) for _ in range(300)], dtype=np.int64)
    assert [alloc(bulk) for _ in range(300)] == pfns.tolist()
    assert bulk.buddy.free_bulk(pfns, 0) == sum(one.buddy.free_pages(int(pfn), 0) for pfn in pfns) == 300
    assert one.context.now == bulk.context.now
    assert (one.owner.free_ts == bulk.owner.free_ts).all()
    assert len(set(one.owner.free_ts[pfns].tolist())) == 300
    assert not bulk.owner.allocated[pfns].any()
