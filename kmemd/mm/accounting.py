"""Proof that counters and gauges are what pages and tasks say: ``System.check`` asks here after any command.

There is no Linux counterpart but CONFIG_DEBUG_VM. Every rule is a sum that is zero while the books are right. What a
twin took from its capture as mere numbers (LRU lists, events, page tables) has no pages in the model, and boot makes
kernel stacks and maps pages of tasks by numbers alone: these differences are noted when boot ends and may not change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt

from kmemd.core import stats
from kmemd.core.buddy import Buddy
from kmemd.core.mmzone import MIGRATE_CMA, MIGRATE_HIGHATOMIC
from kmemd.core.pages import ALLOCATED, PG_ACTIVE, PG_LRU, PG_SWAPBACKED, PG_TABLE, PG_UNEVICTABLE, PageMap
from kmemd.mm.mmzone import Zone
from kmemd.mm.sched import THREAD_SIZE, TaskTable
from kmemd.mm.vmstat import VmStat

LRU_LISTS = 5
COUNTED_UP = (
    *(stats.NR_VMSCAN_WRITE, stats.NR_VMSCAN_IMMEDIATE, stats.NR_DIRTIED, stats.NR_WRITTEN),
    stats.NR_THROTTLED_WRITTEN,
    *(stats.PGPROMOTE_SUCCESS, stats.PGPROMOTE_CANDIDATE),
    *range(stats.WORKINGSET_REFAULT_ANON, stats.WORKINGSET_RESTORE_FILE + 1),
)
"""Node items that are events: nothing that is there now says how many there were."""
COMPUTED = (
    *range(stats.NR_INACTIVE_ANON, stats.NR_INACTIVE_ANON + LRU_LISTS),
    stats.NR_SLAB_RECLAIMABLE_B,
    stats.NR_SLAB_UNRECLAIMABLE_B,
    stats.NR_KERNEL_STACK_KB,
    stats.NR_PAGETABLE,
    *range(stats.NR_ANON_MAPPED, stats.NR_WRITEBACK_TEMP),
    *(stats.NR_SHMEM, stats.NR_ANON_THPS, stats.NR_SWAPCACHE),
)
"""Node items that are recomputed, here or by rules and checks of other subsystems. Nothing moves those in neither."""
Numbers = npt.NDArray[np.int64]
Rules = Iterator[tuple[str, list[int]]]
"""Sums that are zero while the books are right, by zone, node or list, each with its name."""


class Accounting:
    """Recomputes what the counters claim."""

    def __init__(
        self,
        buddy: Buddy,
        pages: PageMap,
        zones: list[Zone],
        vmstat: VmStat,
        tasks: TaskTable,
        arch: str,
        contig_pages: Callable[[], int] = lambda: 0,
        active: Callable[[Numbers, npt.NDArray[np.uint8]], None] | None = None,
    ) -> None:
        """``contig_pages()`` are the pages that were taken off free lists without an allocation event; ``active(pfns,
        out)`` says which pages count as active where not only PG_active does."""
        self._active = active
        self._contig_pages = contig_pages
        self._buddy = buddy
        self._pages = pages
        self._zones = zones
        self._vmstat = vmstat
        self._tasks = tasks
        self._stack_kib = THREAD_SIZE[arch] >> 10
        self._others: list[Callable[[], Rules]] = []
        self.owed: dict[str, list[int]] = {}

    def also(self, rules: Callable[[], Rules]) -> None:
        """Have another subsystem's rules hold, too."""
        self._others.append(rules)

    def boot_finished(self, *, twin: bool) -> None:
        """From now on the differences that there are must stay as they are; only a twin's pages have any."""
        self.owed = dict(self.differences() if twin else self._by_numbers())

    def check(self) -> None:
        """AssertionError where a counter is not what pages and tasks say."""
        for name, gap in self.differences():
            owed = self.owed.get(name, [0] * len(gap))
            off = {place: now - was for place, (now, was) in enumerate(zip(gap, owed, strict=True)) if now != was}
            assert not off, f"{name}: off by {off} (by zone, node or list)"

    def differences(self) -> Iterator[tuple[str, list[int]]]:
        """Every rule with what it leaves over."""
        yield from self._by_pages()
        yield from self._by_numbers()
        for rules in self._others:
            yield from rules()

    def _by_pages(self) -> Iterator[tuple[str, list[int]]]:
        """The rules that look at every page that was ever touched."""
        used = [self.used(zone) for zone in self._zones]
        in_use = [self._pages_of(heads) for heads in used]
        lost = [
            zone.managed - zone.free_pages - zone.pcp_pages - pages
            for zone, pages in zip(self._zones, in_use, strict=True)
        ]
        yield "managed pages that are neither free nor in use", lost
        events = self._vmstat.events
        allocated = int(events[stats.PGALLOC : stats.PGALLOC + stats.ZONES_PER_NODE].sum())
        freed = int(events[stats.PGFREE]) - sum(zone.managed for zone in self._zones)  # each page, once, by boot
        yield "pgalloc less pgfree and pages in use", [allocated + self._contig_pages() - freed - sum(in_use)]
        yield from self._lru(used)
        yield from self._page_tables(used)

    def _by_numbers(self) -> Iterator[tuple[str, list[int]]]:
        """The rules that compare numbers, of which a machine has few however large it is."""
        yield from self._reserves()
        yield from self._numa()
        yield from self._task_pages()
        moved = np.isin(np.arange(stats.NR_VM_NODE_STAT_ITEMS), COMPUTED + COUNTED_UP)
        yield "node items that nothing moves", self._vmstat.node_stat[:, ~moved].ravel().tolist()

    def _task_pages(self) -> Iterator[tuple[str, list[int]]]:
        """Kernel stacks; boot also makes stacks of tasks that are in no list."""
        stacks = sum(self._stack_kib for task in self._tasks if task.stack_addr)
        total = self._vmstat.node_total
        yield "NR_KERNEL_STACK_KB less the tasks' stacks", [total(stats.NR_KERNEL_STACK_KB) - stacks]

    def _page_tables(self, used: list[Numbers]) -> Iterator[tuple[str, list[int]]]:
        """Tables of small pages and of the level above are counted."""
        tables = sum(int((self._pages.flags[heads] >> PG_TABLE & 1).sum()) for heads in used)
        yield "NR_PAGETABLE less pages that are tables", [self._vmstat.node_total(stats.NR_PAGETABLE) - tables]

    def used(self, zone: Zone) -> Numbers:
        """The heads of the blocks in use; never touched ranges are passed over, for they may be a terabyte."""
        found = [
            np.flatnonzero(self._pages.kind[low:high] == ALLOCATED) + low
            for low, high in _between(zone.start_pfn, zone.end_pfn, self._buddy.frontier(zone.index))
        ]
        return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)

    def _pages_of(self, heads: Numbers) -> int:
        return int((1 << self._pages.order[heads].astype(np.int64)).sum())

    def pages_in_use(self, zone: Zone) -> int:
        """Pages of a zone in allocated blocks."""
        return self._pages_of(self.used(zone))

    def _reserves(self) -> Iterator[tuple[str, list[int]]]:
        """Pages of page block types that have a count of their own."""
        shift = self._buddy.pageblock_order
        cma, atomic = [], []
        for zone in self._zones:
            free = sum(count << order for order, count in enumerate(zone.nr_free_type(MIGRATE_CMA)))
            cma.append(zone.stat(stats.NR_FREE_CMA_PAGES) - free)
            blocks = self._buddy.block_type[zone.start_pfn >> shift : (zone.end_pfn + (1 << shift) - 1) >> shift]
            reserved = int((blocks == MIGRATE_HIGHATOMIC).sum()) << shift
            atomic.append(zone.nr_reserved_highatomic - reserved)
        yield "NR_FREE_CMA_PAGES less the pages on CMA lists", cma
        yield "nr_reserved_highatomic less its page blocks", atomic

    def _numa(self) -> Iterator[tuple[str, list[int]]]:
        """Each allocation is a hit or a miss, and local or other; each miss is foreign to some zone."""
        hit, miss, foreign, _, local, other = self._vmstat.numa_stat.T
        yield "numa_hit and numa_miss less local and other", (hit + miss - local - other).tolist()
        yield "numa_miss less numa_foreign", [int((miss - foreign).sum())]

    def _lru(self, used: list[Numbers]) -> Iterator[tuple[str, list[int]]]:
        """The LRU lists' lengths, by zone from the pages' flags and by node from the zones."""
        zones = self._vmstat.zone_stat[:, stats.NR_ZONE_INACTIVE_ANON : stats.NR_ZONE_INACTIVE_ANON + LRU_LISTS]
        nodes = self._vmstat.node_stat[:, stats.NR_INACTIVE_ANON : stats.NR_INACTIVE_ANON + LRU_LISTS]
        listed = np.array([self._lru_lengths(heads) for heads in used])
        yield "zones' LRU lengths less pages with PG_lru", (zones - listed).ravel().tolist()
        sums = zones.reshape(len(nodes), -1, LRU_LISTS).sum(axis=1)
        yield "nodes' LRU lengths less their zones'", (nodes - sums).ravel().tolist()

    def _lru_lengths(self, heads: Numbers) -> Numbers:
        """Pages per LRU list of some blocks."""
        flags = self._pages.flags[heads]
        active = (flags >> PG_ACTIVE & 1).astype(np.uint8)
        if self._active is not None:
            self._active(heads, active)
        return _lru_lengths(flags, self._pages.order[heads], active)


def _between(low: int, high: int, gaps: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The ranges of ``[low, high)`` outside of ``gaps``."""
    for start, end in sorted(gaps):
        if start > low:
            yield low, start
        low = max(low, end)
    if high > low:
        yield low, high


def _lru_lengths(flags: npt.NDArray[np.uint32], order: npt.NDArray[np.uint8], active: npt.NDArray[np.uint8]) -> Numbers:
    """Pages per LRU list: inactive and active anonymous, inactive and active file, unevictable."""
    on_list = flags >> PG_LRU & 1 == 1
    flags = flags[on_list]
    pages = np.int64(1) << order[on_list].astype(np.int64)
    index = 2 * (1 - (flags >> PG_SWAPBACKED & 1)) + active[on_list]
    index[flags >> PG_UNEVICTABLE & 1 == 1] = LRU_LISTS - 1
    lengths = np.zeros(LRU_LISTS, dtype=np.int64)
    np.add.at(lengths, index, pages)
    return lengths
