"""Zones and nodes as Python objects over the core's arrays (include/linux/mmzone.h).

A ``Zone`` holds nothing that changes: its numbers are read from the buddy system and the counters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kmemd.core import stats
from kmemd.core.mmzone import MAX_ORDER, NR_MIGRATETYPES
from kmemd.mm.mmzone_layout import NodeLayout, ZoneLayout
from kmemd.mm.vmstat import VmStat, calculate_normal_threshold

if TYPE_CHECKING:
    from kmemd.core.buddy import Buddy

MIGRATETYPE_NAMES = ("Unmovable", "Movable", "Reclaimable", "HighAtomic", "CMA", "Isolate")
PAGE_ALLOC_COSTLY_ORDER = 3
"""Blocks beyond this order may fail without the kernel trying everything."""
_LISTS = 7  # core/mmzone: six migratetypes, and the blocks behind the frontier


class Zone:
    """One zone of one node. ``index`` is its number in the core, ``kind`` its place within the node."""

    def __init__(
        self, index: int, kind: int, layout: ZoneLayout, buddy: Buddy, vmstat: VmStat, *, highmem: bool
    ) -> None:
        self._movable_is_highmem = highmem
        self.index = index
        self.kind = kind
        self.nid = layout.nid
        self.name = layout.name
        self.start_pfn = layout.start_pfn
        self.spanned = layout.spanned
        self.present = layout.present
        self.free_ranges = layout.free
        self.online = layout.online
        self.cma_pages = 0
        self._buddy = buddy
        self._vmstat = vmstat

    @property
    def end_pfn(self) -> int:
        """The first PFN behind the zone."""
        return self.start_pfn + self.spanned

    @property
    def managed(self) -> int:
        """Pages that the buddy system manages."""
        return int(self._buddy.managed[self.index])

    @property
    def populated(self) -> bool:
        """Whether the zone has any memory (populated_zone)."""
        return self.present > 0

    def holds(self, pfn: int) -> bool:
        """Whether the zone spans a page frame (zone_spans_pfn)."""
        return self.start_pfn <= pfn < self.end_pfn

    @property
    def is_highmem(self) -> bool:
        """Whether the kernel has no permanent mapping of the zone (is_highmem): HighMem, and Movable above it."""
        return self.name == "HighMem" or (self.name == "Movable" and self._movable_is_highmem)

    @property
    def nr_free(self) -> list[int]:
        """Free blocks of each order."""
        base = self.index * MAX_ORDER * _LISTS
        lists = self._buddy.nr_list[base : base + MAX_ORDER * _LISTS].reshape(MAX_ORDER, _LISTS)
        counts: list[int] = lists.sum(axis=1).tolist()
        return counts

    def nr_free_type(self, migratetype: int) -> list[int]:
        """Free blocks of each order on the lists of a migratetype."""
        base = self.index * MAX_ORDER * _LISTS + migratetype
        counts: list[int] = self._buddy.nr_list[base : base + MAX_ORDER * _LISTS : _LISTS].tolist()
        return counts

    @property
    def free_pages(self) -> int:
        """NR_FREE_PAGES of the zone."""
        return int(self._vmstat.zone_stat[self.index, stats.NR_FREE_PAGES])

    def stat(self, item: int) -> int:
        """A zone counter."""
        return int(self._vmstat.zone_stat[self.index, item])

    @property
    def watermark_min(self) -> int:
        """The min watermark in pages, without boost."""
        return int(self._buddy.wmark[self.index, 0])

    @property
    def watermark_low(self) -> int:
        """The low watermark in pages, without boost."""
        return int(self._buddy.wmark[self.index, 1])

    @property
    def watermark_high(self) -> int:
        """The high watermark in pages, without boost."""
        return int(self._buddy.wmark[self.index, 2])

    @property
    def boost(self) -> int:
        """Pages that all watermarks are raised by after fragmenting fallbacks."""
        return int(self._buddy.boost[self.index])

    @property
    def nr_reserved_highatomic(self) -> int:
        """Pages in page blocks kept for high-order atomic allocations."""
        return int(self._buddy.highatomic[self.index])

    @property
    def protection(self) -> tuple[int, ...]:
        """Pages kept from requests that could use higher zones, per highest zone (lowmem_reserve)."""
        return tuple(self._buddy.reserve[self.index].tolist())

    def pageset(self, cpu: int) -> tuple[int, int, int]:
        """``(count, high, batch)`` of a CPU's page lists."""
        return (
            int(self._buddy.pcp_count[self.index * self._buddy.ncpus + cpu]),
            int(self._buddy.pcp_high[self.index]),
            int(self._buddy.pcp_batch[self.index]),
        )

    @property
    def pcp_pages(self) -> int:
        """Pages on the per-cpu lists of all CPUs."""
        n = self._buddy.ncpus
        return int(self._buddy.pcp_count[self.index * n : (self.index + 1) * n].sum())

    @property
    def stat_threshold(self) -> int:
        """How far Linux lets a per-CPU counter drift before it is folded."""
        return calculate_normal_threshold(self.managed, self._buddy.ncpus)

    def clear_numa_stat(self) -> None:
        """Zero the zone's NUMA events (vm.numa_stat switched off)."""
        self._vmstat.numa_stat[self.index] = 0

    def pageblock_counts(self) -> list[int]:
        """Page blocks of each migratetype in the zone that have struct pages (pagetypeinfo_showblockcount).

        Linux looks at every ``pageblock_nr_pages``-th page from the zone's start, aligned or not.
        """
        counts = [0] * NR_MIGRATETYPES
        for blocks in self.counted_pageblocks():
            types = self._buddy.block_type[blocks.start : blocks.stop]
            for mt in range(NR_MIGRATETYPES):
                counts[mt] += int((types == mt).sum())
        return counts

    def counted_pageblocks(self) -> list[range]:
        """The numbers of the page blocks that pagetypeinfo counts, a range for each online range."""
        shift = self._buddy.pageblock_order
        ranges = []
        for low, high in self.online:
            first = low + (self.start_pfn - low) % (1 << shift)
            ranges.append(range(first >> shift, (high - 1 - (first & (1 << shift) - 1) >> shift) + 1))
        return ranges


class Node:
    """One NUMA node."""

    def __init__(self, layout: NodeLayout, zones: list[Zone], vmstat: VmStat) -> None:
        self.nid = layout.nid
        self.cpus = layout.cpus
        self.distance = layout.distance
        self.zones = zones
        self.kswapd_failures = 0
        self._vmstat = vmstat

    def stat(self, item: int) -> int:
        """A node counter."""
        return int(self._vmstat.node_stat[self.nid, item])

    @property
    def has_cpu(self) -> bool:
        """Whether a CPU belongs to the node."""
        return bool(self.cpus)

    @property
    def has_memory(self) -> bool:
        """Whether the node has memory (N_MEMORY)."""
        return any(zone.populated for zone in self.zones)

    @property
    def present(self) -> int:
        """Pages of memory in the node."""
        return sum(zone.present for zone in self.zones)

    @property
    def unreclaimable(self) -> bool:
        """Whether kswapd has given up on the node (kswapd_failures >= MAX_RECLAIM_RETRIES)."""
        return self.kswapd_failures >= 16
