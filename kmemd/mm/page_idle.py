"""Idle page tracking (mm/page_idle.c).

Models: which pages of programs nobody used since they were marked idle, by asking their page table entries through the
reverse map, and that the accessed bits which asking clears are kept for reclaim (PG_young). All of it is in the page
map: this object has no state. Left out: the lock of a page, which nobody holds while a file is read.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kmemd.core.mmu import Mmu
from kmemd.core.pages import PG_IDLE, PG_LRU, PG_YOUNG, PageMap
from kmemd.core.rmap import MappedPages
from kmemd.mm.rmap import Rmap

Numbers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_IDLE, _LRU, _YOUNG = (np.uint32(1 << bit) for bit in (PG_IDLE, PG_LRU, PG_YOUNG))


class PageIdle:
    """The idle bits of a machine. ``hpage_pmd_nr`` are the pages of the largest page on a list."""

    def __init__(self, pages: PageMap, mmu: Mmu, rmap: Rmap, hpage_pmd_nr: int) -> None:
        self._pages, self._mapped, self._rmap, self._hpage_pmd_nr = pages, MappedPages(mmu), rmap, hpage_pmd_nr

    def idle(self, low: int, high: int) -> Mask:
        """Which frames of ``[low, high)`` are in pages that are idle, once their entries were asked
        (``page_idle_bitmap_read``)."""
        heads = self._heads(low, high)
        heads = heads[self._pages.flags[heads] & _IDLE != 0]
        self._clear_refs(heads)
        found = np.zeros(high - low, dtype=np.bool_)
        for head in heads[self._pages.flags[heads] & _IDLE != 0].tolist():
            found[max(head - low, 0) : max(head + (1 << int(self._pages.order[head])) - low, 0)] = True
        return found

    def set_idle(self, low: int, wanted: Mask) -> None:
        """Mark those of the frames from ``low`` on that are in a program's page (``page_idle_bitmap_write``)."""
        heads = self._heads(low, low + len(wanted))
        chosen = [wanted[self._frames(head, low, len(wanted))].any() for head in heads.tolist()]
        heads = heads[np.array(chosen, dtype=np.bool_)]
        self._clear_refs(heads)
        self._pages.flags[heads] |= _IDLE

    def _frames(self, head: int, low: int, count: int) -> slice:
        end = head + (1 << int(self._pages.order[head])) - low
        return slice(min(max(head - low, 0), count), min(max(end, 0), count))

    def _heads(self, low: int, high: int) -> Numbers:
        """The pages on an LRU list that frames of a range are in (``page_idle_get_page``)."""
        base = low & -self._hpage_pmd_nr
        heads = np.flatnonzero(self._pages.flags[base:high] & _LRU) + base
        found: Numbers = heads[heads + (np.int64(1) << self._pages.order[heads].astype(np.int64)) > low]
        return found

    def _clear_refs(self, heads: Numbers) -> None:
        """Make all entries of pages old; a page that was used is young, and not idle (``page_idle_clear_pte_refs``)."""
        used = np.zeros(len(heads), dtype=np.bool_)
        huge = self._pages.order[heads] > 0
        for at in np.flatnonzero(huge).tolist():
            head = int(heads[at])
            used[at] = self._used(np.arange(head, head + (1 << int(self._pages.order[head])))).any()
        small = np.flatnonzero(~huge)
        used[small] = self._used(heads[small])
        gone = heads[used]
        self._pages.flags[gone] = self._pages.flags[gone] & ~_IDLE | _YOUNG

    def _used(self, pfns: Numbers) -> Mask:
        """Which of some frames an entry was used for; all their entries are old then."""
        used = np.zeros(len(pfns), dtype=np.bool_)
        if not len(pfns):
            return used
        heads = np.array([self._rmap.head(pfn) for pfn in pfns.tolist()]) if self._pages.order[pfns].any() else pfns
        index = self._pages.index[heads] + pfns - heads
        owners = self._pages.mapping[heads]
        for owner in np.unique(owners[owners != 0]).tolist():
            mine = np.flatnonzero(owners == owner)
            for mm, vma in self._rmap.mappings_of(int(heads[mine[0]])):
                vpns = vma.vpn + index[mine] - vma.pgoff
                inside = (vpns >= vma.vpn) & (vpns < vma.vpn + vma.pages)
                young = np.empty(int(inside.sum()), dtype=np.uint8)
                self._mapped.young(mm.id, np.ascontiguousarray(vpns[inside]), pfns[mine[inside]], young)
                used[mine[inside]] |= young == 3
        return used
