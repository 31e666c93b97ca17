"""The page allocator above the core: zonelists, the slow path's order of attempts, failure reports, bad frees."""

from __future__ import annotations

import errno
from collections.abc import Callable

import numpy as np
import pytest

from kmemd.core import stats
from kmemd.core.mmzone import ALLOC_NOFRAGMENT
from kmemd.core.pages import PG_HEAD, PG_LOCKED, PG_LRU, PG_MLOCKED, PG_SLAB, PG_WRITEBACK
from kmemd.errors import KernelError
from kmemd.kernel import Kernel
from kmemd.machine import Machine
from kmemd.mm.gfp import GFP_ATOMIC, GFP_HIGHUSER_MOVABLE, GFP_KERNEL, GFP_NOWAIT, F
from kmemd.mm.page_request import Request
from kmemd.mm.printk import KERN_WARNING


@pytest.fixture
def kernel() -> Kernel:
    return Kernel(Machine.load("default"))


def zone_names(kernel: Kernel, pfns: np.ndarray) -> set[str]:
    return {kernel.zones[kernel.buddy.zone_of(int(pfn))].name for pfn in pfns}


def log(kernel: Kernel) -> list[str]:
    return [record.text for record in kernel.printk.since(0) if record.level <= KERN_WARNING]


def test_single_and_bulk_allocations_are_the_same_pages(kernel: Kernel) -> None:
    other = Kernel(Machine.load("default"))
    singles = [kernel.page_alloc.alloc_pages(GFP_KERNEL) for _ in range(500)]
    assert other.page_alloc.alloc_pages_bulk(GFP_KERNEL, 0, 500).tolist() == singles


def test_everything_comes_back(kernel: Kernel) -> None:
    kernel.page_alloc.drain_all_pages()
    free = kernel.vmstat.zone_total(stats.NR_FREE_PAGES)
    counts = [zone.nr_free for zone in kernel.zones]
    pages = kernel.page_alloc.alloc_pages_bulk(GFP_KERNEL, 0, 50_000)
    blocks = kernel.page_alloc.alloc_pages_bulk(GFP_HIGHUSER_MOVABLE, 5, 500)
    kernel.page_alloc.free_pages_bulk(pages)
    kernel.page_alloc.free_pages_bulk(blocks, 5)
    kernel.page_alloc.drain_all_pages()
    assert kernel.vmstat.zone_total(stats.NR_FREE_PAGES) == free
    assert [sum(c << o for o, c in enumerate(zone.nr_free)) for zone in kernel.zones] == [
        sum(c << o for o, c in enumerate(zone_counts)) for zone_counts in counts
    ]
    kernel.check()


@pytest.mark.parametrize(("order", "gfp", "nid"), [(11, GFP_KERNEL, -1), (-1, GFP_KERNEL, -1), (0, GFP_KERNEL, 9)])
def test_bad_requests(kernel: Kernel, order: int, gfp: int, nid: int) -> None:
    with pytest.raises(KernelError) as failure:
        kernel.page_alloc.alloc_pages(gfp, order, nid)
    assert failure.value.errno == errno.EINVAL


def test_movable_and_reclaimable_contradict(kernel: Kernel) -> None:
    with pytest.raises(KernelError) as failure:
        kernel.page_alloc.alloc_pages(GFP_KERNEL | F.MOVABLE | F.RECLAIMABLE)
    assert failure.value.errno == errno.EINVAL


def test_dma_requests_stay_in_their_zone(kernel: Kernel) -> None:
    assert zone_names(kernel, kernel.page_alloc.alloc_pages_bulk(F.DMA, 0, 100)) == {"DMA"}


def test_masks_dig_to_different_depths(kernel: Kernel) -> None:
    """NOWAIT stops at min, ATOMIC at 3/8 of it, MEMALLOC takes all."""
    left = []
    for gfp in (GFP_NOWAIT, GFP_ATOMIC, GFP_KERNEL | F.MEMALLOC | F.NORETRY):
        kernel.page_alloc.alloc_pages_bulk(gfp | F.NOWARN, 0, 10**6)
        left.append(kernel.zones[1].free_pages)
    minimum, batch = kernel.zones[1].watermark_min, kernel.zones[1].pageset(0)[2]
    reserve = minimum - minimum // 2
    assert minimum - batch <= left[0] <= minimum
    assert reserve - reserve // 4 - batch <= left[1] <= reserve - reserve // 4
    assert left[2] == 0
    kernel.check()


def test_failure_report_in_the_kernels_words(kernel: Kernel) -> None:
    kernel.context.switch(42, 42, "probe", 1)
    kernel.page_alloc.alloc_pages_bulk(GFP_KERNEL, 4, 10**6)
    lines = log(kernel)
    assert lines[0] == "probe: page allocation failure: order:4, mode:0xcc0(GFP_KERNEL), nodemask=(null)"
    assert lines[1].startswith("CPU: 1 PID: 42 Comm: probe Not tainted 6.1.")
    assert "Mem-Info:" in lines
    zone = kernel.zones[1]
    summary = next(line for line in lines if line.startswith("Node 0 DMA32: "))
    assert summary.endswith(f"= {zone.free_pages * 4}kB")
    assert any(line.endswith("pages RAM") for line in lines)


def test_failure_reports_are_limited_and_can_be_silenced(kernel: Kernel) -> None:
    kernel.page_alloc.alloc_pages_bulk(GFP_KERNEL | F.NOWARN | F.NORETRY, 3, 10**6)
    assert not log(kernel)
    for _ in range(3):
        with pytest.raises(KernelError):
            kernel.page_alloc.alloc_pages(GFP_KERNEL | F.NORETRY, 3)
    assert sum("page allocation failure" in line for line in log(kernel)) == 1


def test_double_free_is_a_report_and_no_crash(kernel: Kernel) -> None:
    pfn = kernel.page_alloc.alloc_pages(GFP_KERNEL, 2)
    kernel.page_alloc.free_pages(pfn, 2)
    with pytest.raises(KernelError) as failure:
        kernel.page_alloc.free_pages(pfn, 2)
    assert failure.value.errno == errno.EFAULT
    assert log(kernel)[0] == f"BUG: Bad page state in process swapper/0  pfn:{pfn:05x}"
    kernel.check()


def test_bulk_free_stops_at_the_bad_page(kernel: Kernel) -> None:
    pages = kernel.page_alloc.alloc_pages_bulk(GFP_KERNEL, 0, 10)
    with pytest.raises(KernelError):
        kernel.page_alloc.free_pages_bulk(np.append(pages, pages[:1]))
    kernel.check()


class Recorder:
    """A relief that gives nothing and remembers the order in which it was asked."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def wakeup_kswapd(self, nid: int, order: int, highest: int, gfp: int = 0) -> None:
        self.calls.append("kswapd")

    def drop_boosts(self) -> None:
        """Nothing is boosted."""

    def try_to_free_pages(self, request: Request) -> int:
        self.calls.append("reclaim")
        return 0

    def try_to_compact_pages(self, request: Request, alloc_flags: int, attempt: Callable[[], int]) -> int:
        self.calls.append("compact")
        return -1

    def should_compact_retry(self, request: Request, alloc_flags: int) -> bool:
        return False

    def reclaimable_pages(self, zi: int) -> int:
        return 0

    def out_of_memory(self, request: Request) -> bool:
        self.calls.append("oom")
        return False

    def is_oom_victim(self) -> bool:
        return False

    def is_reclaiming(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("gfp", "order", "calls"),
    [
        (GFP_NOWAIT, 0, ["kswapd", "kswapd"]),
        (F.NOWARN, 0, []),
        (GFP_KERNEL, 0, ["kswapd", "kswapd", "reclaim", "oom"]),
        (GFP_KERNEL | F.NORETRY, 0, ["kswapd", "kswapd", "reclaim"]),
        (GFP_KERNEL, 2, ["kswapd", "compact", "kswapd", "reclaim", "compact", "oom"]),
        (GFP_HIGHUSER_MOVABLE, 2, ["kswapd", "kswapd", "reclaim", "compact", "oom"]),
        (GFP_KERNEL | F.NORETRY, 2, ["kswapd", "compact", "kswapd", "reclaim", "compact"]),
        (GFP_KERNEL | F.DMA, 0, ["kswapd", "kswapd", "reclaim"]),
        (GFP_KERNEL | F.NORETRY, 5, ["kswapd", "compact"]),
        (GFP_KERNEL, 5, ["kswapd", "compact", "kswapd", "reclaim", "compact"]),
        (GFP_KERNEL | F.RETRY_MAYFAIL, 2, ["kswapd", "compact", "kswapd", "reclaim", "compact"]),
    ],
)
def test_order_of_attempts(kernel: Kernel, gfp: int, order: int, calls: list[str]) -> None:
    kernel.page_alloc.alloc_pages_bulk(GFP_KERNEL | F.MEMALLOC | F.NOWARN | F.NORETRY, 0, 10**6)
    recorder = Recorder()
    kernel.page_alloc._relief = recorder
    with pytest.raises(KernelError) as failure:
        kernel.page_alloc.alloc_pages(gfp | F.NOWARN, order)
    assert failure.value.errno == errno.ENOMEM
    assert recorder.calls == calls


def test_nofail_digs_into_the_reserve(kernel: Kernel) -> None:
    kernel.page_alloc.alloc_pages_bulk(GFP_NOWAIT | F.NOWARN, 0, 10**6)
    assert kernel.page_alloc.alloc_pages(GFP_KERNEL | F.NOFAIL) > 0


def test_fallback_order_of_nodes() -> None:
    kernel = Kernel(Machine.load("four-node"))
    for node in kernel.nodes:
        order = kernel.page_alloc.zonelists[node.nid]
        assert order[0] == node.nid
        distances = [node.distance[nid] for nid in order]
        assert distances == sorted(distances)
        assert sorted(order) == [n.nid for n in kernel.nodes if n.has_memory or n is node]


def test_numa_counters_follow_the_page() -> None:
    kernel = Kernel(Machine.load("two-node"))
    before = kernel.vmstat.numa_stat.copy()
    far = kernel.page_alloc.alloc_pages(GFP_KERNEL, 0, 1)
    zi = kernel.buddy.zone_of(far)
    assert kernel.zones[zi].nid == 1
    row = kernel.vmstat.numa_stat[zi] - before[zi]
    assert (row[stats.NUMA_HIT], row[stats.NUMA_OTHER], row[stats.NUMA_LOCAL]) == (1, 1, 0)
    kernel.page_alloc.alloc_pages_bulk(GFP_KERNEL | F.NOWARN | F.NORETRY, 0, 10**6, 0)
    assert kernel.vmstat.numa_total(stats.NUMA_MISS) == kernel.vmstat.numa_total(stats.NUMA_FOREIGN) > 0


def test_this_node_does_not_leave_the_node() -> None:
    kernel = Kernel(Machine.load("two-node"))
    pages = kernel.page_alloc.alloc_pages_bulk(GFP_KERNEL | F.THISNODE | F.NOWARN | F.NORETRY, 0, 10**6, 1)
    assert {kernel.zones[kernel.buddy.zone_of(int(pfn))].nid for pfn in pages[::1000]} == {1}
    assert kernel.zones[4 * 1 + 1].free_pages or kernel.zones[4 * 1 + 2].free_pages


def test_time_passes_with_work(kernel: Kernel) -> None:
    before = kernel.clock.now
    kernel.page_alloc.alloc_pages_bulk(GFP_KERNEL, 0, 1000)
    assert kernel.clock.now - before >= 1000 * kernel.machine.latency.pcp_alloc


def test_nofail_takes_the_last_page_and_no_other_request_does(kernel: Kernel) -> None:
    kernel.page_alloc.alloc_pages_bulk(GFP_NOWAIT | F.HIGH | F.NOWARN, 0, 10**6)
    left = sum(zone.free_pages for zone in kernel.zones)
    assert left > 0
    with pytest.raises(KernelError):
        kernel.page_alloc.alloc_pages(GFP_KERNEL | F.NOWARN)
    with pytest.raises(KernelError):
        kernel.page_alloc.alloc_pages(GFP_KERNEL | F.MEMALLOC | F.NOMEMALLOC | F.NOWARN)
    with pytest.raises(KernelError):
        kernel.page_alloc.alloc_pages(GFP_NOWAIT | F.NOFAIL | F.NOWARN)
    usable = left - sum(zone.free_pages for zone in kernel.zones if zone.name == "DMA")
    got = kernel.page_alloc.alloc_pages_bulk(GFP_KERNEL | F.NOFAIL | F.NOWARN, 0, 10**6)
    assert len(got) >= usable
    kernel.check()


def test_zeroing_takes_time_for_each_page(kernel: Kernel) -> None:
    zero = kernel.machine.latency.zero_page
    costs = []
    for gfp in (GFP_KERNEL, GFP_KERNEL | F.ZERO):
        kernel.page_alloc.drain_all_pages()
        before = kernel.clock.now
        kernel.page_alloc.free_pages(kernel.page_alloc.alloc_pages(gfp, 4), 4)
        costs.append(kernel.clock.now - before)
    assert costs[1] - costs[0] == 16 * zero
    before = kernel.clock.now
    kernel.page_alloc.alloc_pages_bulk(GFP_KERNEL | F.ZERO, 0, 100)
    assert kernel.clock.now - before >= 100 * zero


def test_compound_pages_have_a_head_until_they_are_freed(kernel: Kernel) -> None:
    flags = kernel.pages.flags
    plain = kernel.page_alloc.alloc_pages(GFP_KERNEL, 2)
    single = kernel.page_alloc.alloc_pages(GFP_KERNEL | F.COMP, 0)
    blocks = kernel.page_alloc.alloc_pages_bulk(GFP_KERNEL | F.COMP, 2, 20)
    assert not flags[plain] >> PG_HEAD & 1
    assert not flags[single] >> PG_HEAD & 1
    assert (flags[blocks] >> PG_HEAD & 1).all()
    kernel.page_alloc.free_pages_bulk(blocks, 2)
    assert not flags[blocks].any()


@pytest.mark.parametrize("flag", [PG_LRU, PG_SLAB, PG_LOCKED, PG_WRITEBACK, PG_MLOCKED])
def test_what_somebody_uses_is_not_freed(kernel: Kernel, flag: int) -> None:
    pfn = kernel.page_alloc.alloc_pages(GFP_KERNEL)
    kernel.pages.flags[pfn] |= np.uint32(1 << flag)
    with pytest.raises(KernelError) as failure:
        kernel.page_alloc.free_pages(pfn)
    assert failure.value.errno == errno.EFAULT
    assert "page dumped because: PAGE_FLAGS_CHECK_AT_FREE flag(s) set" in log(kernel)
    kernel.pages.flags[pfn] = 0
    kernel.page_alloc.free_pages(pfn)


def test_compaction_is_tried_only_where_there_is_room(kernel: Kernel) -> None:
    pages = np.sort(kernel.page_alloc.alloc_pages_bulk(GFP_KERNEL | F.MEMALLOC | F.NOWARN, 0, 10**6))
    for count, stalls in ((0, 0), (100_000, 2)):  # without waiting, before reclaim and after it
        kernel.page_alloc.free_pages_bulk(pages[: 2 * count : 2])
        before = int(kernel.vmstat.events[stats.COMPACTSTALL])
        with pytest.raises(KernelError):
            kernel.page_alloc.alloc_pages(GFP_KERNEL | F.NOWARN | F.NORETRY, 8)
        assert kernel.vmstat.events[stats.COMPACTSTALL] - before == stalls


def test_page_blocks_are_kept_apart_only_where_a_lower_zone_could_help() -> None:
    kernel = Kernel(Machine.load("four-node"))
    flags = [
        kernel.page_alloc._fast_flags(kernel.page_alloc._request(GFP_KERNEL, 0, nid, (1 << 64) - 1)) for nid in (0, 1)
    ]
    assert [node.zones[1].populated for node in kernel.nodes[:2]] == [True, False]
    assert [kernel.nodes[nid].zones[2].populated for nid in (0, 1)] == [True, True]
    assert [bool(each & ALLOC_NOFRAGMENT) for each in flags] == [True, False]
