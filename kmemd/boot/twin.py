"""A twin of a captured machine: its slab caches, and then exactly its free lists.

The caches and kernel threads are allocated as at any boot. Then the free lists are taken apart, places are found for
the captured free blocks among the pages that are not in use (mm/free_placement.py), and what is left over
stays allocated or reserved, as it was on the original. Left out: what the original's pages hold, and its processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from kmemd.boot.cache_table import BOOT_CACHES
from kmemd.core import stats
from kmemd.core.buddy_state import BuddyState
from kmemd.core.mmzone import MAX_ORDER, NR_MIGRATETYPES
from kmemd.core.page_ranges import PageRanges
from kmemd.errors import KernelError
from kmemd.mm import slab_flags as sf
from kmemd.mm.free_placement import Placement, place_free_blocks, split_aligned
from kmemd.mm.leak_observer import Addresses
from kmemd.mm.mmzone import MIGRATETYPE_NAMES, Zone
from kmemd.mm.units import KIB_PER_PAGE

if TYPE_CHECKING:
    from kmemd.capture import Capture, SlabRow, ZoneState
    from kmemd.kernel import Kernel
    from kmemd.mm.slab_common import KmemCache

PCP_TYPES = 3
CAPTURED_NODE_STATS = (
    *("nr_inactive_anon", "nr_active_anon", "nr_inactive_file", "nr_active_file", "nr_unevictable"),
    *("nr_anon_pages", "nr_mapped", "nr_file_pages", "nr_shmem", "nr_page_table_pages", "nr_swapcached"),
    *("nr_dirty", "nr_anon_transparent_hugepages", "nr_shmem_hugepages"),
)
CAPTURED_ZONE_STATS = (
    *("nr_zone_inactive_anon", "nr_zone_active_anon", "nr_zone_inactive_file", "nr_zone_active_file"),
    *("nr_zone_unevictable", "nr_mlock"),
)
_IN_SECTORS = (stats.PGPGIN, stats.PGPGOUT)
"""Events counted in sectors of 512 bytes and shown in KiB."""
_KNOWN_FLAGS = {row.name: row.create_flags for row in BOOT_CACHES}


class Twin:
    """Makes a booting kernel the twin of a capture."""

    def __init__(self, kernel: Kernel, capture: Capture) -> None:
        self._kernel = kernel
        self._lists = BuddyState(kernel.buddy)
        self._ranges = PageRanges(kernel.buddy)
        self._capture = capture
        self._states = {(state.nid, state.name): state for state in capture.zones}
        self.uptime_ns = capture.uptime_ns

    def create_caches(self) -> None:
        """Create the captured slab caches, oldest first, with the captured geometry."""
        slub = self._kernel.slub
        existing = set(slub.names)
        for row in reversed(self._capture.slabs):
            try:
                cache = slub.cache(row.name) if row.name in existing else self._create(row)
                self._fit(cache, row)
            except KernelError as error:
                self._capture.note(f"slab cache {row.name}: {error.reason}")

    def _create(self, row: SlabRow) -> KmemCache:
        folder = f"sys/kernel/slab/{row.name}"
        flags = _KNOWN_FLAGS.get(row.name, sf.SLAB_ACCOUNT) & ~(sf.SLAB_TYPESAFE_BY_RCU | sf.SLAB_HWCACHE_ALIGN)
        if (self._capture.text(f"{folder}/reclaim_account") or "").strip() == "1":
            flags |= sf.SLAB_RECLAIM_ACCOUNT
        return self._kernel.slub.kmem_cache_create(row.name, row.size, 0, flags)

    def _fit(self, cache: KmemCache, row: SlabRow) -> None:
        """Take over a geometry that the original chose otherwise, as other kernel versions do."""
        order = row.pages_per_slab.bit_length() - 1
        geometry = cache.geometry
        if (geometry.size, geometry.objects, geometry.order) == (row.size, row.per_slab, order):
            return
        if self._kernel.slub.slab_counts(cache)[2]:
            self._capture.note(f"slab cache {row.name}: in use from the start, keeps Linux 6.1's geometry")
            return
        cache.geometry = replace(geometry, size=row.size, objects=row.per_slab, order=order)
        self._kernel.slub.configure(cache)

    def load(self) -> None:
        """Fill the caches, and load the free lists and counters. The sysctls are restored already."""
        kernel = self._kernel
        for row in self._capture.slabs:
            self._fill(row)
        kernel.page_alloc.drain_all_pages()
        for zone in kernel.zones:
            state = self._states.get((zone.nid, zone.name))
            if zone.populated and state is not None:
                self._load_zone(zone, state)
        self._load_counters()

    # -- slabs -------------------------------------------------------------------------------------------

    def _fill(self, row: SlabRow) -> None:
        """Make a cache's objects and slabs as many as captured."""
        slub = self._kernel.slub
        cache = slub.names.get(row.name)
        if cache is None:
            return
        made: list[Addresses] = []
        while (missing := row.objects - slub.slab_counts(cache)[1]) > 0:
            try:
                made.append(slub.boot_alloc(cache, missing))
            except KernelError:
                self._capture.note(f"slab cache {row.name}: no room for {missing} objects")
                return
        if slub.slab_counts(cache)[0] == row.active_objects:
            return
        slub.flush_all(cache)  # what is free in a CPU's slab would count as in use
        surplus = slub.slab_counts(cache)[0] - row.active_objects
        if surplus > 0 and made:
            self._free_some(cache, np.concatenate(made), surplus)
        elif surplus < 0:
            self._use_partial(cache, row.active_objects)
        slub.flush_all(cache)

    def _free_some(self, cache: KmemCache, made: Addresses, surplus: int) -> None:
        """Free ``surplus`` objects without emptying a slab while there is another way."""
        bases = made // np.uint64(4096 << cache.order)
        first = np.flatnonzero(np.concatenate(([True], bases[1:] != bases[:-1])))
        keep = np.zeros(len(made), dtype=bool)
        keep[first] = True
        order = np.concatenate((np.flatnonzero(~keep), first))
        self._kernel.slub.kmem_cache_free_bulk(cache, made[order[:surplus]])

    def _use_partial(self, cache: KmemCache, active: int) -> None:
        """Allocate from the nodes' partial slabs until ``active`` objects are in use; no slab is added."""
        kernel, slub = self._kernel, self._kernel.slub
        for node in kernel.nodes:
            missing = active - slub.slab_counts(cache)[0]
            used, total = slub.core.count_partial(cache.index, node.nid)
            if node.cpus and missing > 0 and total > used:
                kernel.context.cpu = node.cpus[0]
                slub.boot_alloc(cache, min(missing, total - used))
                slub.flush_all(cache)
        kernel.context.cpu = 0

    # -- pages -------------------------------------------------------------------------------------------

    def _load_zone(self, zone: Zone, state: ZoneState) -> None:
        kernel = self._kernel
        untouched = sorted(self._lists.empty_zone(zone.index))
        used = _complement(zone.free_ranges, untouched)
        present = _intersect(self._capture.present_ranges(state), zone.online)
        available = _complement(present, used)
        free = [state.free.get(name, [0] * MAX_ORDER) for name in MIGRATETYPE_NAMES]
        types = [state.blocks.get(name, 0) for name in MIGRATETYPE_NAMES]
        if not state.free:
            self._load_without_lists(zone, state, untouched)
            return
        counted = [block for blocks in zone.counted_pageblocks() for block in blocks]
        placement = place_free_blocks(available, free, types, kernel.pageblock_order, counted, self._shared(zone))
        if placement.missing:
            short = sum(count << order for (order, _), count in placement.missing.items())
            self._capture.note(f"node {zone.nid} zone {zone.name}: no place for {short} free pages")
        self._load_blocks(zone, placement)
        self._load_rest(zone, state, placement)

    def _shared(self, zone: Zone) -> dict[int, int]:
        """The type of the page block in which the zone begins, when the zone before ends in it."""
        buddy = self._kernel.buddy
        if not zone.index or not zone.start_pfn & ((1 << buddy.pageblock_order) - 1):
            return {}
        before = self._kernel.zones[zone.index - 1]
        if before.end_pfn != zone.start_pfn:
            return {}
        return {zone.start_pfn >> buddy.pageblock_order: buddy.pageblock_type(zone.start_pfn)}

    def _load_without_lists(self, zone: Zone, state: ZoneState, untouched: list[tuple[int, int]]) -> None:
        """Neither pagetypeinfo nor buddyinfo: the zone's free pages as one run of each range."""
        wanted = state.fields.get("free", 0)
        for low, high in untouched:
            taken = min(wanted, high - low)
            self._ranges.free_range(zone.index, low, low + taken)
            wanted -= taken

    def _load_blocks(self, zone: Zone, placement: Placement) -> None:
        buddy, shift = self._kernel.buddy, self._kernel.pageblock_order
        for block, migratetype in placement.types.items():
            buddy.set_pageblock_type(block << shift, migratetype)
        events = int(self._kernel.vmstat.events[stats.PGFREE])
        for migratetype, low, high in sorted(placement.runs, key=lambda run: run[1]):
            if migratetype == 1:
                self._ranges.free_range(zone.index, low, high)
                continue
            for pfn in range(low, high, 1 << (MAX_ORDER - 1)):
                self._lists.load_free_block(zone.index, MAX_ORDER - 1, migratetype, pfn)
        for order, migratetype, pfn in sorted(placement.blocks, key=lambda block: block[2]):
            self._lists.load_free_block(zone.index, order, migratetype, pfn)
        self._kernel.vmstat.events[stats.PGFREE] = events

    def _load_rest(self, zone: Zone, state: ZoneState, placement: Placement) -> None:
        """Per-cpu lists from the pages left over; the others are in use, but for the reserved ones at the end."""
        buddy = self._kernel.buddy
        rest = list(placement.rest)
        for cpu, count in sorted(state.pcp_counts.items()):
            for pfn in _take_pages(rest, count) if cpu < self._kernel.machine.cpus else []:
                pindex = min(buddy.pageblock_type(pfn), PCP_TYPES - 1)
                self._lists.load_pcp(zone.index, cpu, pindex, pfn)
        left = zone.managed - zone.free_pages - zone.pcp_pages - self._kernel.accounting.pages_in_use(zone)
        for low, high in rest:
            for order, pfn in split_aligned(low, min(high, low + max(0, left))):
                self._ranges.mark_allocated(pfn, order, buddy.pageblock_type(pfn) % NR_MIGRATETYPES)
            left -= high - low

    def _load_counters(self) -> None:
        """LRU sizes, mapped and cached pages, and the events since boot."""
        vmstat, capture = self._kernel.vmstat, self._capture
        zone_items = {name: item for item, name in enumerate(stats.ZONE_STAT_NAMES)}
        node_items = {name: item for item, name in enumerate(stats.NODE_STAT_NAMES)}
        for zone in self._kernel.zones:
            state = self._states.get((zone.nid, zone.name))
            if state is None:
                continue
            for name in CAPTURED_ZONE_STATS:
                if name in state.fields:
                    vmstat.zone_stat[zone.index, zone_items[name]] = state.fields[name]
            for name in CAPTURED_NODE_STATS:
                if name in state.node_stats and name in node_items:
                    vmstat.node_stat[zone.nid, node_items[name]] = state.node_stats[name]
        captured = dict(line.split()[:2] for line in (capture.text("proc/vmstat") or "").splitlines() if " " in line)
        for event, name in vmstat.event_names:
            if name in captured:
                vmstat.events[event] = int(captured[name]) << (event in _IN_SECTORS)
        self._kernel.mmap.committed = capture.meminfo.get("Committed_AS", 0) // KIB_PER_PAGE


def _complement(ranges: Sequence[tuple[int, int]], taken: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """What of the ascending ``ranges`` is not in the ascending ``taken``."""
    left: list[tuple[int, int]] = []
    at = 0
    for low, high in ranges:
        while at < len(taken) and taken[at][1] <= low:
            at += 1
        scan = at
        while scan < len(taken) and taken[scan][0] < high:
            if taken[scan][0] > low:
                left.append((low, taken[scan][0]))
            low = max(low, taken[scan][1])
            scan += 1
        if low < high:
            left.append((low, high))
    return left


def _intersect(ranges: list[tuple[int, int]], within: tuple[tuple[int, int], ...]) -> list[tuple[int, int]]:
    return sorted(
        (max(low, start), min(high, end))
        for low, high in ranges
        for start, end in within
        if max(low, start) < min(high, end)
    )


def _take_pages(rest: list[tuple[int, int]], count: int) -> list[int]:
    """Take ``count`` single pages out of ``rest``, from its largest ranges.

    Small ranges keep free blocks apart: a page of theirs that is freed one day would make those merge.
    """
    pages: list[int] = []
    while rest and len(pages) < count:
        at = max(range(len(rest)), key=lambda i: rest[i][1] - rest[i][0])
        low, high = rest[at]
        taken = min(high - low, count - len(pages))
        pages += range(low, low + taken)
        if low + taken < high:
            rest[at] = (low + taken, high)
        else:
            del rest[at]
    return pages
