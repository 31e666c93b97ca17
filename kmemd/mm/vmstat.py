"""Counters of the memory manager and what is computed from them (mm/vmstat.c, Linux 6.1).

Models: VM events, per-zone and per-node gauges, NUMA events, the per-CPU counter thresholds, and the
fragmentation indices. Left out: the per-CPU deltas themselves; counters here are always exact, as
Linux's are right after ``vm.stat_refresh``.

Invariants: row ``zi`` of ``zone_stat`` and ``numa_stat`` is zone ``zi`` of node ``zi // ZONES_PER_NODE``.
Gauges are never negative. ``NR_SLAB_RECLAIMABLE_B`` and ``NR_SLAB_UNRECLAIMABLE_B`` are held in pages, as
Linux holds them globally; ``NR_KERNEL_STACK_KB`` is in KiB; ``PGPGIN`` and ``PGPGOUT`` are in sectors;
all else is in pages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kmemd.core import stats
from kmemd.core.context import Context
from kmemd.core.trace import TraceLog

Counters = npt.NDArray[np.int64]

PAGES_PER_128M_SHIFT = 27 - 12
MAX_THRESHOLD = 125

_NUMA_BALANCING_NODE_ITEMS = (stats.PGPROMOTE_SUCCESS, stats.PGPROMOTE_CANDIDATE)
_NUMA_EVENTS = (stats.PGSCAN_ZONE_RECLAIM_FAILED, *range(stats.NUMA_PTE_UPDATES, stats.NUMA_PAGE_MIGRATE + 1))
_IN_HUGE_PAGES = (
    stats.NR_ANON_THPS,
    stats.NR_FILE_THPS,
    stats.NR_SHMEM_THPS,
    stats.NR_SHMEM_PMDMAPPED,
    stats.NR_FILE_PMDMAPPED,
)
_MAY_BE_NEGATIVE_ZONE = (stats.NR_ZONE_WRITE_PENDING, stats.NR_FREE_CMA_PAGES)
_MAY_BE_NEGATIVE_NODE = (stats.NR_WRITEBACK,)


@dataclass(frozen=True)
class BuddyStats:
    """The counters and their numbers as the buddy core takes them.

    ``pgalloc`` is the number of each zone's PGALLOC event.
    """

    events: Counters
    zone_stat: Counters
    numa_stat: Counters
    pgalloc: Sequence[int]
    nr_free_pages: int = stats.NR_FREE_PAGES
    nr_free_cma: int = stats.NR_FREE_CMA_PAGES
    pgfree: int = stats.PGFREE


class VmStat:
    """The counters of one machine.

    ``zone_names`` are the zone types of a node in order, "DMA", "DMA32", … ; ``numa`` says that the kernel
    was built for NUMA (x86_64, not i386), ``pud_thp`` that it has PUD-sized huge pages;
    ``hpage_pmd_nr`` is the number of base pages of a PMD-sized huge page.
    The arrays are public: the compiled core counts into them. ``trace`` takes the trace events of whoever counts.
    """

    def __init__(
        self,
        zone_names: Sequence[str],
        nr_nodes: int,
        *,
        numa: bool = True,
        pud_thp: bool = True,
        hpage_pmd_nr: int = 512,
        trace: TraceLog | None = None,
    ) -> None:
        assert len(zone_names) == stats.ZONES_PER_NODE
        nr_zones = nr_nodes * stats.ZONES_PER_NODE
        self.numa = numa
        self.hpage_pmd_nr = hpage_pmd_nr
        self.trace = trace if trace is not None else Context().trace
        self.events: Counters = np.zeros(stats.NR_VM_EVENT_ITEMS, dtype=np.int64)
        self.zone_stat: Counters = np.zeros((nr_zones, stats.NR_VM_ZONE_STAT_ITEMS), dtype=np.int64)
        self.numa_stat: Counters = np.zeros((nr_zones, stats.NR_VM_NUMA_EVENT_ITEMS), dtype=np.int64)
        self.node_stat: Counters = np.zeros((nr_nodes, stats.NR_VM_NODE_STAT_ITEMS), dtype=np.int64)
        self.event_names = tuple(_event_names(zone_names, numa, pud_thp))
        self.node_items = tuple(
            item for item in range(stats.NR_VM_NODE_STAT_ITEMS) if numa or item not in _NUMA_BALANCING_NODE_ITEMS
        )

    def buddy_stats(self) -> BuddyStats:
        """What the buddy core counts into."""
        kinds = range(stats.ZONES_PER_NODE)
        pgalloc = [stats.PGALLOC + kind for kind in kinds] * len(self.node_stat)
        return BuddyStats(self.events, self.zone_stat, self.numa_stat, pgalloc)

    def count(self, event: int, n: int = 1) -> None:
        """``n`` more of a VM event (``count_vm_events``)."""
        self.events[event] += n

    def mod_zone(self, zi: int, item: int, n: int) -> None:
        """Change a zone's gauge by ``n`` (``mod_zone_page_state``)."""
        self.zone_stat[zi, item] += n

    def mod_node(self, nid: int, item: int, n: int) -> None:
        """Change a node's gauge by ``n`` (``mod_node_page_state``); slab items in pages."""
        self.node_stat[nid, item] += n

    def zone_total(self, item: int) -> int:
        """The item summed over all zones (``global_zone_page_state``), never below 0."""
        return max(0, int(sum(self.zone_stat[:, item].tolist())))

    def numa_total(self, item: int) -> int:
        """The NUMA event summed over all zones."""
        return int(sum(self.numa_stat[:, item].tolist()))

    def node_total(self, item: int) -> int:
        """The item summed over all nodes (``global_node_page_state_pages``), never below 0."""
        return max(0, int(sum(self.node_stat[:, item].tolist())))

    def node_page_state(self, nid: int, item: int) -> int:
        """One node's gauge (``node_page_state_pages``), never below 0."""
        return max(0, int(self.node_stat[nid, item]))

    def sum_zone_node_page_state(self, nid: int, item: int) -> int:
        """A zone item summed over the zones of one node."""
        return max(0, int(sum(self.zone_stat[self._zones_of(nid), item].tolist())))

    def sum_zone_numa_event_state(self, nid: int, item: int) -> int:
        """A NUMA event summed over the zones of one node."""
        return int(sum(self.numa_stat[self._zones_of(nid), item].tolist()))

    def in_shown_unit(self, item: int, pages: int) -> int:
        """A node item as vmstat files print it: huge page items in huge pages."""
        return pages // self.hpage_pmd_nr if item in _IN_HUGE_PAGES else pages

    def event(self, event: int) -> int:
        """A VM event as ``/proc/vmstat`` prints it: sectors become KiB."""
        value = int(self.events[event])
        return value // 2 if event in (stats.PGPGIN, stats.PGPGOUT) else value

    def global_lines(self) -> Iterator[tuple[str, int]]:
        """Names and values of all zone, NUMA and node items, in the order of ``/proc/vmstat``."""
        for item, name in enumerate(stats.ZONE_STAT_NAMES):
            yield name, self.zone_total(item)
        if self.numa:
            for item, name in enumerate(stats.NUMA_STAT_NAMES):
                yield name, self.numa_total(item)
        for item in self.node_items:
            yield stats.NODE_STAT_NAMES[item], self.in_shown_unit(item, self.node_total(item))

    def node_lines(self, nid: int) -> Iterator[tuple[str, int]]:
        """Names and values of one node's own items, as zoneinfo prints them."""
        for item in self.node_items:
            yield stats.NODE_STAT_NAMES[item], self.in_shown_unit(item, self.node_page_state(nid, item))

    def event_lines(self) -> Iterator[tuple[str, int]]:
        """Names and values of the VM events that this kernel has."""
        for event, name in self.event_names:
            yield name, self.event(event)

    def negative(self) -> Iterator[tuple[str, int]]:
        """Gauges below zero that must not be: what ``vmstat_refresh`` warns of."""
        for item, name in enumerate(stats.ZONE_STAT_NAMES):
            value = int(self.zone_stat[:, item].sum())
            if value < 0 and item not in _MAY_BE_NEGATIVE_ZONE:
                yield name, value
        for item, name in enumerate(stats.NODE_STAT_NAMES):
            value = int(self.node_stat[:, item].sum())
            if value < 0 and item not in _MAY_BE_NEGATIVE_NODE:
                yield name, value

    def check(self) -> None:
        """Raise AssertionError when a gauge is negative in any zone or node, or an event is."""
        assert (self.zone_stat >= 0).all(), f"negative zone counters: {_below_zero(self.zone_stat)}"
        assert (self.node_stat >= 0).all(), f"negative node counters: {_below_zero(self.node_stat)}"
        assert (self.numa_stat >= 0).all(), f"negative NUMA counters: {_below_zero(self.numa_stat)}"
        assert (self.events >= 0).all(), f"negative events: {_below_zero(self.events)}"

    @staticmethod
    def _zones_of(nid: int) -> slice:
        return slice(nid * stats.ZONES_PER_NODE, (nid + 1) * stats.ZONES_PER_NODE)


def _below_zero(counters: Counters) -> list[list[int]]:
    """The indices of negative counters."""
    found: list[list[int]] = np.argwhere(counters < 0).tolist()
    return found


def _event_names(zone_names: Sequence[str], numa: bool, pud_thp: bool) -> Iterator[tuple[int, str]]:
    """The VM events this kernel has, with the names it prints."""
    yield from enumerate(stats.EVENT_NAMES_BEFORE_ZONED)
    suffixes = ["high" if name == "HighMem" else name.lower() for name in zone_names]
    for base, prefix in zip((stats.PGALLOC, stats.ALLOCSTALL, stats.PGSCAN_SKIP), stats.ZONED_EVENT_NAMES, strict=True):
        yield from ((base + position, f"{prefix}_{suffix}") for position, suffix in enumerate(suffixes))
    for event, name in enumerate(stats.EVENT_NAMES_AFTER_ZONED, start=stats.PGFREE):
        if (numa or event not in _NUMA_EVENTS) and (pud_thp or event != stats.THP_SPLIT_PUD):
            yield event, name


def calculate_normal_threshold(managed_pages: int, nr_cpus: int) -> int:
    """How far a per-CPU delta may drift before it is folded (``calculate_normal_threshold``)."""
    mem = managed_pages >> PAGES_PER_128M_SHIFT
    return min(MAX_THRESHOLD, 2 * nr_cpus.bit_length() * (1 + mem.bit_length()))


@dataclass(frozen=True)
class ContigPageInfo:
    """Free memory of a zone as seen by a request of one order (``fill_contig_page_info``)."""

    free_pages: int
    free_blocks_total: int
    free_blocks_suitable: int

    @classmethod
    def of(cls, nr_free: Sequence[int], suitable_order: int) -> ContigPageInfo:
        """From the number of free blocks per order."""
        return cls(
            free_pages=sum(blocks << order for order, blocks in enumerate(nr_free)),
            free_blocks_total=sum(nr_free),
            free_blocks_suitable=sum(
                blocks << (order - suitable_order) for order, blocks in enumerate(nr_free) if order >= suitable_order
            ),
        )


def fragmentation_index(nr_free: Sequence[int], order: int) -> int:
    """Thousandths: towards 0 a request of ``order`` fails for lack of memory, towards 1000 for fragmentation.

    -1000 when it would not fail, 0 when nothing is free.
    """
    info = ContigPageInfo.of(nr_free, order)
    if not info.free_blocks_total:
        return 0
    if info.free_blocks_suitable:
        return -1000
    return 1000 - (1000 + info.free_pages * 1000 // (1 << order)) // info.free_blocks_total


def unusable_free_index(nr_free: Sequence[int], order: int) -> int:
    """Thousandths of the free memory that a request of ``order`` cannot use; 1000 when nothing is free."""
    info = ContigPageInfo.of(nr_free, order)
    if not info.free_pages:
        return 1000
    return (info.free_pages - (info.free_blocks_suitable << order)) * 1000 // info.free_pages
