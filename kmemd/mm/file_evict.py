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
        self._nodes, self._trace = len(vmstat.node_stat), vmstat.trace
        rows = [(zone.nid, zone.start_pfn, zone.end_pfn) for zone in zones]
        self._core = CleanPages(pages, rows, vmstat, stats.NR_FILE_PAGES, SHIFTS)
        self._clean, self._rest = (np.empty(0, dtype=np.int64) for _ in range(2))

    def __call__(self, pfns: PFNs) -> tuple[int, PFNs]:
        """Drop what can be dropped of isolated pages: how many, and the others.

        Pages of several files are left to those who part them, all are while somebody traces.
        """
        if self._trace.any_on:
            return 0, pfns
        if len(self._clean) < len(pfns):
            self._clean, self._rest = (np.empty(len(pfns), dtype=np.int64) for _ in range(2))
        count, kept, owner = self._core.part(pfns, self._clean, self._rest)
        file = self._cache.files.get(owner) if owner else None
        if file is None or self._cache.pinned:
            return 0, pfns
        clean = self._clean[:count]
        memcg = self._workingset.target_memcg
        ages = np.array([self._lruvecs.get(memcg, nid).nonresident_age for nid in range(self._nodes)], dtype=np.int64)
        before = ages.tolist()
        self._charge(count)
        self._core.drop(file.slots.array, clean, memcg, ages)
        for nid, age in enumerate(ages.tolist()):
            if age != before[nid]:
                self._lruvecs.age(memcg, nid, age - before[nid])
        file.nrpages -= count
        self._page_alloc.free_pages_bulk(clean.copy(), 0)
        return count, self._rest[:kept].copy()
