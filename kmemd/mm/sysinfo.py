"""Sums over all zones: how much memory there is (mm/page_alloc.c ``si_meminfo``, ``si_mem_available``)."""

from __future__ import annotations

from collections.abc import Sequence

from kmemd.core import stats
from kmemd.mm.mmzone import Zone
from kmemd.mm.vmstat import VmStat


def totalram_pages(zones: Sequence[Zone]) -> int:
    """Pages that the buddy system manages, in all."""
    return sum(zone.managed for zone in zones)


def highmem_pages(zones: Sequence[Zone]) -> tuple[int, int]:
    """Managed and free pages that the kernel has no permanent mapping of (``totalhigh``, ``freehigh``)."""
    high = [zone for zone in zones if zone.is_highmem]
    return sum(zone.managed for zone in high), sum(zone.free_pages for zone in high)


def si_mem_available(vmstat: VmStat, zones: Sequence[Zone], totalreserve_pages: int) -> int:
    """Pages that programs could still get without swapping: an estimate, never below 0.

    Of the page cache and of reclaimable kernel memory, half or the low watermarks' worth counts as needed.
    """
    low = sum(zone.watermark_low + zone.boost for zone in zones)
    available = vmstat.zone_total(stats.NR_FREE_PAGES) - totalreserve_pages
    cache = vmstat.node_total(stats.NR_ACTIVE_FILE) + vmstat.node_total(stats.NR_INACTIVE_FILE)
    reclaimable = vmstat.node_total(stats.NR_SLAB_RECLAIMABLE_B)
    reclaimable += vmstat.node_total(stats.NR_KERNEL_MISC_RECLAIMABLE)
    for pages in (cache, reclaimable):
        available += pages - min(pages // 2, low)
    return max(0, available)
