"""Dropping clean pages of files in bulk (mm/vmscan.c ``shrink_folio_list``, ``__remove_mapping``).

Most pages that reclaim takes are clean, mapped by nobody and of a file on a disk: there is nothing to ask and nothing
to write, they leave their file's table for a shadow and are free. The core does that (core/filemap.py). Every other
page goes through mm/vmscan_folio.py and mm/pageout.py, with the same effect on counters, shadows and ages.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kmemd.core import stats
from kmemd.core.filemap import CleanPages
from kmemd.core.pages import PageMap
from kmemd.mm.file_read import SHIFTS
from kmemd.mm.filemap import PageCache, PageSupply, PFNs
from kmemd.mm.lruvec import LruVecs
from kmemd.mm.mmzone import Zone
from kmemd.mm.vmstat import VmStat
from kmemd.mm.workingset import Workingset

NONE: PFNs = np.empty(0, dtype=np.int64)


class CleanEviction:
    """``charge(pages)`` takes the time that dropping clean pages costs."""

    def __init__(
        self,
        pages: PageMap,
        zones: list[Zone],
        vmstat: VmStat,
        cache: PageCache,
        lruvecs: LruVecs,
        workingset: Workingset,
        page_alloc: PageSupply,
        charge: Callable[[int], None],
    ) -> None:
        self._cache, self._lruvecs, self._workingset = cache, lruvecs, workingset
        self._page_alloc, self._charge = page_alloc, charge
        self._lru, self._nodes, self._trace = cache.lru, len(vmstat.node_stat), vmstat.trace
        self._ages = np.zeros(self._nodes, dtype=np.int64)
        rows = [(zone.nid, zone.start_pfn, zone.end_pfn) for zone in zones]
        self._core = CleanPages(pages, rows, vmstat, stats.NR_FILE_PAGES, SHIFTS)
        self._clean, self._rest = (np.empty(0, dtype=np.int64) for _ in range(2))

    def __call__(self, pfns: PFNs) -> tuple[int, PFNs]:
        """Drop what can be dropped of isolated pages, in their order: how many, and the others; none while somebody
        traces.
        """
        if self._trace.any_on:
            return 0, pfns
        if len(self._clean) < len(pfns):
            self._clean, self._rest = (np.empty(len(pfns), dtype=np.int64) for _ in range(2))
        if self._cache.pinned:
            return 0, pfns
        count, kept = self._core.part(pfns, self._clean, self._rest)
        if not count:
            return 0, pfns
        clean = self._clean[:count].copy()
        memcg = self._workingset.target_memcg
        before = [self._lruvecs.get(memcg, nid).nonresident_age for nid in range(self._nodes)]
        self._ages[:] = before
        self._charge(count)
        start = 0
        while start < count:
            owner, stop = self._core.run_of(clean, start)
            file = self._cache.files[owner]
            self._core.drop(file.slots.array, clean[start:stop], memcg, self._ages)
            file.nrpages -= stop - start
            start = stop
        for nid, age in enumerate(self._ages.tolist()):
            if age != before[nid]:
                self._lruvecs.age(memcg, nid, age - before[nid])
        self._page_alloc.free_pages_bulk(clean, 0)
        return count, self._rest[:kept].copy() if kept else NONE

    def deactivate(self, pfns: PFNs) -> bool:
        """Pages that were taken off an active list become inactive if nobody maps or locks any; whether that was so."""
        if not self._core.deactivate(pfns):
            return False
        self._lru.putback(pfns)
        return True
