"""How mappings lose their pages (mm/memory.c: ``zap_page_range``, ``unmap_region``; mm/oom_kill.c: the reaper).

Entries are emptied some tables at a time; what then nobody maps goes back to who gave it: the page allocator, the page
cache, swap, huge pages. Left out: what else sees entries go (mmu notifiers, userfaultfd).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kmemd.core import trace_ids as ev
from kmemd.core.lru import MUNLOCK, Lru
from kmemd.core.mmu import Mmu
from kmemd.core.pages import PG_LRU, PageMap
from kmemd.core.ptes import PteRanges
from kmemd.mm.fault_parts import Parts
from kmemd.mm.mm_counters import MmCounters
from kmemd.mm.mm_types import VM_HUGETLB, VM_LOCKED, VM_PFNMAP, VM_SHARED, Mm, Vma
from kmemd.mm.page_alloc import PageAllocator
from kmemd.mm.pgtable import PageTables
from kmemd.mm.units import PAGE_SHIFT

Rows = npt.NDArray[np.int64]

ZAP_ROWS = 64
"""Page tables that are emptied before their pages are given back: the gather of a TLB flush."""


class ZapPages:
    """Takes pages out of address spaces."""

    def __init__(
        self,
        mmu: Mmu,
        ptes: PteRanges,
        lru: Lru,
        tables: PageTables,
        pages: PageMap,
        page_alloc: PageAllocator,
        counters: MmCounters,
        parts: Parts,
    ) -> None:
        self.counters = counters
        self._mmu = mmu
        self._ptes = ptes
        self._lru = lru
        self._tables = tables
        self._pages = pages
        self._page_alloc = page_alloc
        self._parts = parts

    def zap_range(self, mm: Mm, start: int, end: int) -> None:
        """Take all pages out of a range of addresses; the mappings stay (zap_page_range)."""
        first, last = start >> PAGE_SHIFT, end >> PAGE_SHIFT
        self.update_hiwater_rss(mm)
        self._lru.drain_local()
        for vma in list(mm.overlapping(start, end)):
            low, high = max(first, vma.vpn), min(last, vma.end >> PAGE_SHIFT)
            if vma.flags & VM_HUGETLB:
                self._parts.hugetlb.unmap(mm, vma, low, high)
            else:
                self._zap_vma(mm, vma, low, high)

    def _zap_vma(self, mm: Mm, vma: Vma, low: int, high: int) -> None:
        self._parts.huge.split_range(mm, low, high)
        rows = self._mmu.extents(mm.id, low, high)
        if not len(rows):
            return
        self._mmu.sync_rss(mm.id)
        small = rows[rows[:, 3] == 0]
        for at in range(0, len(small), ZAP_ROWS):
            self._zap_rows(mm, vma, np.ascontiguousarray(small[at : at + ZAP_ROWS]))
        for vpn, _, slot, _ in rows[rows[:, 3] > 0].tolist():
            self._parts.huge.zap(mm, vma, vpn, slot)
        self._mmu.flush_range(mm.id, low, high)

    def _zap_rows(self, mm: Mm, vma: Vma, rows: Rows) -> None:
        """Empty some tables and give back what nobody maps any more."""
        if vma.flags & VM_LOCKED:
            self._munlock(rows)
        freed, compound, dirtied, cached, swapped = self._ptes.zap(mm.id, rows)
        if freed:
            self.free_anon(self._ptes.freed[:freed].copy())
        if dirtied:
            self._parts.files.dirty_pages(self._ptes.dirtied[:dirtied].copy())
        if compound:
            self._parts.huge.unmapped_parts(np.unique(self._ptes.compound[:compound]))
        if cached:
            self._parts.swap.free_cached(self._ptes.cached[:cached].copy())
        if swapped:
            self._parts.swap.free_entries(self._ptes.swapped[:swapped].copy())

    def _munlock(self, rows: Rows) -> None:
        """Pages of files stay in memory, unlocked; others are about to be freed (munlock_vma_page)."""
        pfns = self._ptes.pages_of(rows)
        self._lru.mlock(pfns[self._pages.mapping[pfns] < 0], MUNLOCK)

    def free_anon(self, pfns: Rows) -> None:
        """Give back anonymous pages that nobody maps (free_unref_page_list)."""
        flags = self._pages.flags[pfns]
        if not (flags >> np.uint32(PG_LRU) & np.uint32(1)).all():
            self._lru.drain_all()
        self._lru.remove_bulk(pfns)
        self._lru.clear_mlock(pfns)
        self._pages.flags[pfns] = 0
        self._page_alloc.free_pages_bulk(pfns)
        self.counters.trace.emit_pages(ev.MM_PAGE_FREE_BATCHED, pfns, 0)

    def reap(self, mm: Mm) -> None:
        """Take the pages of private memory from a dying task, locked ones as well (__oom_reap_task_mm)."""
        for vma in mm.vmas:
            if not vma.flags & (VM_PFNMAP | VM_HUGETLB) and (vma.is_anon or not vma.flags & VM_SHARED):
                self.zap_range(mm, vma.start, vma.end)

    def unmap_region(self, mm: Mm, start: int, end: int, floor: int, ceiling: int) -> None:
        """Take the pages of a range out, and the tables that nothing between floor and ceiling needs (unmap_region)."""
        self.zap_range(mm, start, end)
        self._tables.free_range(mm.id, floor >> PAGE_SHIFT, ceiling >> PAGE_SHIFT)

    def update_hiwater_rss(self, mm: Mm) -> None:
        """Remember the most pages that were resident before some go (update_hiwater_rss)."""
        mm.hiwater_rss = max(mm.hiwater_rss, self.counters.rss(mm))
