"""Watermarks, lowmem reserves and per-cpu list sizes, and the sysctls they follow from.

mm/page_alloc.c ``__setup_per_zone_wmarks``, ``setup_per_zone_lowmem_reserve``, ``zone_batchsize``, ``zone_highsize``,
``calculate_min_free_kbytes``, and mm/khugepaged.c ``set_recommended_min_free_kbytes``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, ClassVar

from kmemd.mm.mmzone import Node, Zone
from kmemd.mm.page_alloc_tunables import PAGE_ALLOC_TUNABLES
from kmemd.mm.printk import KERN_INFO, KERN_WARNING, Printk
from kmemd.mm.units import KIB_PER_PAGE, PAGE_SIZE
from kmemd.tunable import Tunable, Tuned

if TYPE_CHECKING:
    from kmemd.core.buddy import Buddy

SWAP_CLUSTER_MAX = 32
PCP_BATCH_MAX_BYTES = 1 << 20
MIGRATE_PCPTYPES = 3
DEFAULT_RATIO = {"DMA": 256, "DMA32": 256, "Normal": 32, "HighMem": 0, "Movable": 0}
Late = Sequence[tuple[int, int]]
Counts = list[int]


class Watermarks(Tuned):
    """The zones' thresholds, recomputed when a sysctl they follow from changes."""

    TUNABLES: ClassVar[tuple[Tunable, ...]] = PAGE_ALLOC_TUNABLES

    def __init__(self, zones: list[Zone], nodes: list[Node], buddy: Buddy, printk: Printk, late: Late = ()) -> None:
        """``late`` are pages, as (PFN, count), that are managed by now and were not when Linux first computes
        all this: they count from ``boot_finished`` on."""
        self._zones = zones
        self._nodes = nodes
        self._buddy = buddy
        self._printk = printk
        self.numa = not any(zone.name == "HighMem" for zone in zones)
        """Whether the kernel is built for NUMA: x86_64 is, i386 with HIGHMEM is not."""
        self.min_free_kbytes = 1024
        self.user_min_free_kbytes = -1
        self.watermark_scale_factor = 10
        self.percpu_pagelist_high_fraction = 0
        self.lowmem_reserve_ratio = [DEFAULT_RATIO[zone.name] for zone in nodes[0].zones]
        self.numa_zonelist_order = "Node"
        self.min_unmapped_ratio = 1
        self.min_slab_ratio = 5
        self.totalreserve_pages = 0
        self._marks_late: Counts = []
        self._protection_late: Counts = []
        self._reserve_late: Counts = []
        self._reserve_boost: Counts = []
        self._pageset_from = [(0, 0)] * len(zones)
        self._late = [sum(pages for pfn, pages in late if zone.holds(pfn)) for zone in zones]
        self.calculate_min_free_kbytes()
        self.setup_per_zone_wmarks()
        self.setup_per_zone_lowmem_reserve()

    def pages_came(self, ranges: Late) -> None:
        """Late pages are managed from here on (``adjust_managed_page_count``)."""
        self._late = [
            late - sum(pages for pfn, pages in ranges if zone.holds(pfn))
            for late, zone in zip(self._late, self._zones, strict=True)
        ]

    def boot_finished(self) -> None:
        """All memory is managed; what was computed without it stands until a sysctl is written."""
        self._late = [0] * len(self._zones)

    def _managed(self, zone: Zone) -> int:
        """Managed pages as Linux knows them by now."""
        return max(0, zone.managed - self._late[zone.index])

    # -- knobs -------------------------------------------------------------------------------------------

    @property
    def watermark_boost_factor(self) -> int:
        """vm.watermark_boost_factor, in 1/10000 of the high watermark."""
        return int(self._buddy.boost_factor)

    @watermark_boost_factor.setter
    def watermark_boost_factor(self, factor: int) -> None:
        self._buddy.boost_factor = factor

    @property
    def numa_stat(self) -> int:
        """vm.numa_stat: whether NUMA events are counted."""
        return int(self._buddy.numa_stat_on)

    @numa_stat.setter
    def numa_stat(self, on: int) -> None:
        self._buddy.numa_stat_on = bool(on)

    def on_min_free_kbytes(self) -> None:
        """min_free_kbytes_sysctl_handler."""
        self.user_min_free_kbytes = self.min_free_kbytes
        self.setup_per_zone_wmarks()

    def on_watermark_scale_factor(self) -> None:
        """watermark_scale_factor_sysctl_handler."""
        self.setup_per_zone_wmarks()

    def on_lowmem_reserve_ratio(self) -> None:
        """lowmem_reserve_ratio_sysctl_handler: ratios below 1 mean no protection."""
        self.lowmem_reserve_ratio = [ratio if ratio >= 1 else 0 for ratio in self.lowmem_reserve_ratio]
        self.setup_per_zone_lowmem_reserve()

    def on_percpu_pagelist_high_fraction(self) -> None:
        """percpu_pagelist_high_fraction_sysctl_handler; values from 1 to 7 are refused before."""
        for zone in self._zones:
            if zone.populated:
                self._set_pageset(zone)

    def on_numa_stat(self) -> None:
        """sysctl_vm_numa_stat_handler: switching it off clears the counters."""
        if not self._buddy.numa_stat_on:
            for zone in self._zones:
                zone.clear_numa_stat()

    # -- computing ---------------------------------------------------------------------------------------

    def nr_free_buffer_pages(self) -> int:
        """Pages above the high watermark that GFP_USER may use, seen from node 0 (nr_free_zone_pages)."""
        limit = next(zone.kind for zone in self._zones if zone.name == "Normal")
        usable = (zone for zone in self._zones if zone.kind <= limit and zone.managed)
        return sum(max(0, self._managed(zone) - zone.watermark_high) for zone in usable)

    def calculate_min_free_kbytes(self) -> None:
        """min_free_kbytes from the square root of low memory, unless the user set a larger one."""
        fresh = math.isqrt(self.nr_free_buffer_pages() * KIB_PER_PAGE * 16)
        if fresh > self.user_min_free_kbytes:
            self.min_free_kbytes = min(max(fresh, 128), 262144)
        else:
            text = f"min_free_kbytes is not updated to {fresh} because user defined value {self.user_min_free_kbytes}"
            self._printk.log(KERN_WARNING, f"{text} is preferred")

    def set_recommended_min_free_kbytes(self, enabled: bool) -> None:
        """khugepaged starts, stops or is told anew: keep enough free for it (or go back to the default)."""
        if not enabled:
            self.calculate_min_free_kbytes()
        else:
            self._raise_min_free_kbytes()
        self.setup_per_zone_wmarks()

    def _raise_min_free_kbytes(self) -> None:
        limit = next(zone.kind for zone in self._zones if zone.name == "Normal")
        nr_zones = sum(zone.populated and zone.kind <= limit for zone in self._zones)
        blocks = (2 + MIGRATE_PCPTYPES * MIGRATE_PCPTYPES) * nr_zones
        pages = min(blocks << self._buddy.pageblock_order, self.nr_free_buffer_pages() // 20)
        recommended = pages * KIB_PER_PAGE
        if recommended <= self.min_free_kbytes:
            return
        if self.user_min_free_kbytes >= 0:
            text = f"raising min_free_kbytes from {self.min_free_kbytes} to {recommended}"
            self._printk.log(KERN_INFO, f"{text} to help transparent hugepage allocations")
        self.min_free_kbytes = recommended

    def setup_per_zone_wmarks(self) -> None:
        """Distribute min_free_kbytes over the zones; sets low, high and the per-cpu lists from it."""
        self._marks_late = self._late
        for zone, marks in zip(self._zones, self._zone_wmarks(self._late), strict=True):
            self._buddy.wmark[zone.index] = marks
            self._buddy.boost[zone.index] = 0
            self._set_pageset(zone)
        self._calculate_totalreserve_pages()

    def _zone_wmarks(self, late: Counts) -> Iterator[Counts]:
        """Each zone's min, low, high and promotion watermark."""
        pages_min = self.min_free_kbytes // KIB_PER_PAGE
        known = [max(0, zone.managed - late[zone.index]) for zone in self._zones]
        lowmem = sum(known[zone.index] for zone in self._zones if not zone.is_highmem) or 1
        for zone in self._zones:
            managed = known[zone.index]
            share = pages_min * managed // lowmem
            minimum = share
            if zone.is_highmem:
                minimum = min(max(managed // 1024, SWAP_CLUSTER_MAX), 128)
            gap = max(share >> 2, managed * self.watermark_scale_factor // 10000)
            yield [minimum + gap * step for step in range(4)]

    def setup_per_zone_lowmem_reserve(self) -> None:
        """Protect low zones from requests that could have used higher ones."""
        self._protection_late = self._late
        for zone, row in self._zone_reserves(self._late):
            self._buddy.reserve[zone.index, zone.kind + 1 :] = row
        self._calculate_totalreserve_pages()

    def _zone_reserves(self, late: Counts) -> Iterator[tuple[Zone, Counts]]:
        """What each zone but the last keeps from requests that may use the zones above it."""
        for node in self._nodes:
            for i, zone in enumerate(node.zones[:-1]):
                ratio = self.lowmem_reserve_ratio[i]
                above = accumulate(max(0, other.managed - late[other.index]) for other in node.zones[i + 1 :])
                yield zone, [pages // ratio if ratio and zone.managed else 0 for pages in above]

    def _calculate_totalreserve_pages(self) -> None:
        self._reserve_late = self._late
        self._reserve_boost = [zone.boost for zone in self._zones]
        self.totalreserve_pages = self._total_reserve()

    def _total_reserve(self) -> int:
        """Pages that no user gets (totalreserve_pages)."""
        total = 0
        for zone, late, boost in zip(self._zones, self._reserve_late, self._reserve_boost, strict=True):
            most = max(0, *zone.protection[zone.kind :]) + zone.watermark_high + boost
            total += min(most, max(0, zone.managed - late))
        return total

    def _set_pageset(self, zone: Zone) -> None:
        """zone_set_pageset_high_and_batch."""
        self._pageset_from[zone.index] = self._late[zone.index], zone.boost
        self._buddy.pcp_high[zone.index], self._buddy.pcp_batch[zone.index] = self._pageset(zone)

    def _pageset(self, zone: Zone) -> tuple[int, int]:
        """High and batch of the zone's per-cpu lists."""
        late, boost = self._pageset_from[zone.index]
        managed = max(0, zone.managed - late)
        batch = max(1, zone_batchsize(managed))
        if not self.percpu_pagelist_high_fraction:
            pages = zone.watermark_low + boost
        else:
            pages = managed // self.percpu_pagelist_high_fraction
        cpus = len(self._nodes[zone.nid].cpus) or self._buddy.ncpus
        return max(pages // cpus, batch << 2) if zone.populated else 0, batch

    def check(self) -> None:
        """AssertionError where a threshold is not what the sysctls and managed pages give."""
        for zone, marks in zip(self._zones, self._zone_wmarks(self._marks_late), strict=True):
            where = f"node {zone.nid} {zone.name}"
            have = self._buddy.wmark[zone.index].tolist()
            assert have == marks, f"{where}: watermarks are {have}, should be {marks}"
            lists, right = zone.pageset(0)[1:], self._pageset(zone)
            assert lists == right, f"{where}: high and batch of the per-cpu lists are {lists}, should be {right}"
        for zone, row in self._zone_reserves(self._protection_late):
            kept = list(zone.protection[zone.kind + 1 :])
            assert kept == row, f"node {zone.nid} {zone.name}: protection is {kept}, should be {row}"
        total = self._total_reserve()
        assert self.totalreserve_pages == total, f"totalreserve_pages is {self.totalreserve_pages}, should be {total}"


def zone_batchsize(managed: int) -> int:
    """Pages moved at once between a per-cpu list and the free lists: about 1/4096 of the zone, 2^n - 1."""
    batch = max(1, min(managed >> 10, PCP_BATCH_MAX_BYTES // PAGE_SIZE) // 4)
    return (1 << ((batch + batch // 2).bit_length() - 1)) - 1
