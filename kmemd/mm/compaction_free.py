"""The free scanner of compaction: from the end of a zone downwards (mm/compaction.c ``isolate_freepages``).

Models the search of the free lists for a page in the upper part (fast_isolate_freepages), the scan of page blocks with
its stride, which blocks are suitable targets, and the skip hints. The loops are ``core/compact_free.py``'s.
"""

from __future__ import annotations

from kmemd.core import stats
from kmemd.core import trace_ids as ev
from kmemd.core.buddy import Buddy
from kmemd.core.compact import ASYNC, CLUSTER_MAX, Scanner
from kmemd.core.compact_free import FreeScanner as FreeLists
from kmemd.mm.compaction_zone import Control, ZoneState
from kmemd.mm.mmzone import Zone
from kmemd.mm.vmstat import VmStat


class Blocks:
    """Page blocks of zones: where they begin and end, and whether they are there."""

    def __init__(self, pageblock_order: int) -> None:
        self.pages = 1 << pageblock_order

    def start(self, pfn: int) -> int:
        """The first page of a page's block (pageblock_start_pfn)."""
        return pfn & -self.pages

    def end(self, pfn: int) -> int:
        """One past the last page of a page's block (pageblock_end_pfn)."""
        return (pfn & -self.pages) + self.pages

    def present(self, zone: Zone, start: int, end: int) -> bool:
        """Whether the first and the last page are the zone's (pageblock_pfn_to_page)."""
        inside = zone.start_pfn <= start and end <= zone.end_pfn
        return inside and all(any(low <= pfn < high for low, high in zone.online) for pfn in (start, end - 1))


class FreeScanner:
    """Fills ``Control.free`` with free pages of the zone."""

    def __init__(self, buddy: Buddy, scanner: Scanner, vmstat: VmStat) -> None:
        self._buddy = buddy
        self._lists = FreeLists(buddy)
        self._scanner = scanner
        self._vmstat = vmstat
        self._blocks = Blocks(buddy.pageblock_order)

    def isolate(self, state: ZoneState, cc: Control) -> None:
        """Find free pages to move the isolated ones to (isolate_freepages). Preconditions: none are left."""
        cc.nr_freepages = 0
        self._fast(state, cc)
        if not cc.nr_freepages:
            self._scan(state, cc)

    # -- page block by page block ------------------------------------------------------------------------

    def _scan(self, state: ZoneState, cc: Control) -> None:
        zone, size = state.zone, self._blocks.pages
        at = cc.free_pfn
        start = self._blocks.start(at)
        end = min(start + size, zone.end_pfn)
        low = self._blocks.end(cc.migrate_pfn)
        stride = CLUSTER_MAX if cc.mode == ASYNC else 1
        types, any_type = self._buddy.block_type, cc.ignore_block_suitable
        while start >= low:
            found = self._scanner.target(start, low, types, any_type, cc.ignore_skip_hint)
            if found != start:
                at = start = found if found >= 0 else self._blocks.start(low) - size
                end = start + size
            if start < low:
                break
            if self._blocks.present(zone, start, end):
                had = cc.nr_freepages
                at = self._isolate_block(state, cc, at, end, stride)
                if at == end:
                    self._skip(state, start)
                if cc.nr_freepages >= cc.nr_migratepages:
                    at = start - size if at >= end else at
                    break
                if at < end:
                    break
                stride = 1 if cc.nr_freepages > had else min(CLUSTER_MAX, stride << 1)
            end = start
            start -= size
            at = start
        cc.free_pfn = at

    def _isolate_block(self, state: ZoneState, cc: Control, start: int, end: int, stride: int) -> int:
        """Take free pages of a part of a block; where the scan ended (isolate_freepages_block)."""
        had = cc.nr_freepages
        cc.nr_freepages = self._lists.isolate_freepages_block(
            state.zone.index, start, end, cc.free, had, cc.nr_migratepages, stride, False
        )
        cc.free_scanned += self._lists.scanned
        self._vmstat.count(stats.COMPACTISOLATED, cc.nr_freepages - had)
        stop, counts = int(self._lists.scan_pfn), (int(self._lists.scanned), cc.nr_freepages - had)
        self._vmstat.trace.emit(ev.MM_COMPACTION_ISOLATE_FREEPAGES, start, stop, *counts)
        return min(int(self._lists.scan_pfn), end)

    def _skip(self, state: ZoneState, start: int) -> None:
        """A block was scanned to its end (update_pageblock_skip)."""
        self._scanner.skip[start >> self._buddy.pageblock_order] = 1
        state.cached_free = min(state.cached_free, start)

    # -- through the free lists --------------------------------------------------------------------------

    def _fast(self, state: ZoneState, cc: Control) -> None:
        """Look in the free lists first, for requests of an order (fast_isolate_freepages)."""
        if cc.order <= 0:
            return
        blocks = self._blocks
        distance = cc.free_pfn - cc.migrate_pfn
        low, least = blocks.start(cc.free_pfn - (distance >> 2)), blocks.start(cc.free_pfn - (distance >> 1))
        scan_start = cc.free_pfn >= state.init_free
        limit = blocks.pages >> 1 if scan_start else max(1, scan_limit(cc) >> 1)
        found, highest = self._search(state, cc, low, least, limit)
        if found < 0:
            cc.fast_search_fail += 1
            if scan_start and highest >= least:
                found = cc.free_pfn = highest
            elif scan_start and cc.direct and self._in_zone(state.zone, least):
                found = cc.free_pfn = least
        if highest and highest >= state.cached_free:
            state.cached_free = highest - blocks.pages
        if found >= 0:
            self._around(state, cc, found)

    def _search(self, state: ZoneState, cc: Control, low: int, least: int, limit: int) -> tuple[int, int]:
        """One order after the other: the block taken or -1, and the highest page block that was seen."""
        zone, highest = state.zone, 0
        cc.search_order = min(cc.order - 1, cc.search_order)
        order = cc.search_order
        while order >= 0:
            if zone.nr_free[order]:
                found, scanned, top, limit, preferred = self._lists.fast_search(zone.index, order, limit, low, least)
                cc.free_scanned += scanned
                if top >= highest and scanned:
                    highest = max(self._blocks.start(top), zone.start_pfn)
                if preferred:
                    cc.fast_search_fail, cc.search_order = 0, order
                if found >= 0:
                    return self._take(zone, cc, found, order), highest
                if scanned >= limit:
                    limit = max(1, limit >> 1)
            order = self._next_order(cc, order)
        return -1, highest

    def _take(self, zone: Zone, cc: Control, pfn: int, order: int) -> int:
        got = self._lists.isolate_free_page(zone.index, pfn, order, cc.free, 0)
        if got < 0:
            return -1
        cc.nr_freepages = got
        cc.free_scanned += got - 1
        self._vmstat.count(stats.COMPACTISOLATED, got)
        return pfn

    @staticmethod
    def _next_order(cc: Control, order: int) -> int:
        """Round robin from where the last search had success (next_search_order)."""
        order -= 1
        if order < 0:
            order = cc.order - 1
        if order == cc.search_order:
            cc.search_order = cc.search_order - 1 if cc.search_order > 0 else cc.order - 1
            return -1
        return order

    def _in_zone(self, zone: Zone, pfn: int) -> bool:
        return self._blocks.present(zone, pfn, min(self._blocks.end(pfn), zone.end_pfn))

    def _around(self, state: ZoneState, cc: Control, pfn: int) -> None:
        """Take more of the same page block (fast_isolate_around)."""
        zone = state.zone
        if cc.nr_freepages >= cc.nr_migratepages or cc.hasty:
            return
        start = max(self._blocks.start(pfn), zone.start_pfn)
        end = min(self._blocks.end(pfn), zone.end_pfn)
        if not self._blocks.present(zone, start, end):
            return
        self._isolate_block(state, cc, start, end, 1)
        if cc.nr_freepages < cc.nr_migratepages:
            self._scanner.skip[start >> self._buddy.pageblock_order] = 1


def scan_limit(cc: Control) -> int:
    """How many entries of the free lists are looked at (freelist_scan_limit)."""
    return (CLUSTER_MAX >> min(63, cc.fast_search_fail)) + 1
