"""Making small pages of transparent huge ones, and the queue of those that are partly unmapped (mm/huge_memory.c).

Models: splitting a page into its small ones, of which unmapped ones are freed; the queue of each node, which reclaim
works off when memory is short. Left out: pages of files, pages in the swap cache, which nothing makes huge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from kmemd.core import stats
from kmemd.core.lru import Lru
from kmemd.core.owner import OwnerTable
from kmemd.core.pages import (
    ALLOCATED,
    LRU_GEN_MASK,
    LRU_REFS_MASK,
    PG_ACTIVE,
    PG_DIRTY,
    PG_HEAD,
    PG_IDLE,
    PG_LRU,
    PG_MLOCKED,
    PG_REFERENCED,
    PG_SWAPBACKED,
    PG_SWAPCACHE,
    PG_UNEVICTABLE,
    PG_UPTODATE,
    PG_WORKINGSET,
    PG_WRITEBACK,
    PG_YOUNG,
    PageMap,
)
from kmemd.mm.huge_page import HugePages
from kmemd.mm.page_alloc import PageAllocator
from kmemd.mm.vmstat import VmStat

INHERITED = sum(
    1 << bit
    for bit in (
        *(PG_REFERENCED, PG_SWAPBACKED, PG_MLOCKED, PG_UPTODATE, PG_ACTIVE, PG_WORKINGSET),
        *(PG_UNEVICTABLE, PG_DIRTY, PG_LRU, PG_YOUNG, PG_IDLE),
    )
) | (LRU_GEN_MASK | LRU_REFS_MASK)
"""Flags of the head that every small page gets."""


class HugeSplit:
    """``split_mappings(head)`` makes small entries of all huge ones that map a page.

    Invariants: a page on a node's queue is a compound page of that node, in use, and on no other queue.
    """

    def __init__(
        self,
        pages: PageMap,
        huge: HugePages,
        lru: Lru,
        page_alloc: PageAllocator,
        vmstat: VmStat,
        owner: OwnerTable | None,
        nr_nodes: int,
        split_mappings: Callable[[int], None],
    ) -> None:
        self._pages = pages
        self._huge = huge
        self._lru = lru
        self._page_alloc = page_alloc
        self._vmstat = vmstat
        self._owner = owner
        self._split_mappings = split_mappings
        self._queues: list[dict[int, None]] = [{} for _ in range(nr_nodes)]

    # -- the queue ---------------------------------------------------------------------------------------

    def defer(self, head: int) -> None:
        """A part of a page is not mapped any more: split it when memory is short (``deferred_split_huge_page``)."""
        queue = self._queues[self._huge.nid(head)]
        if head not in queue and not self._huge.has_flag(head, PG_SWAPCACHE):
            self._vmstat.count(stats.THP_DEFERRED_SPLIT_PAGE)
            queue[head] = None

    def forget(self, head: int) -> None:
        """The page is freed or split: it is on no queue."""
        self._queues[self._huge.nid(head)].pop(head, None)

    def deferred(self, nid: int) -> Sequence[int]:
        """The pages on a node's queue, the oldest first."""
        return list(self._queues[nid])

    def split_deferred(self, nid: int, count: int) -> int:
        """Split up to ``count`` pages of a node's queue for reclaim (``deferred_split_scan``); how many were split."""
        return sum(self.split(head) for head in self.deferred(nid)[:count])

    # -- splitting ---------------------------------------------------------------------------------------

    def split(self, head: int) -> bool:
        """Make small pages of a huge one (``split_huge_page``); whether it could be."""
        if self._huge.has_flag(head, PG_SWAPCACHE) or self._huge.has_flag(head, PG_WRITEBACK):
            self._vmstat.count(stats.THP_SPLIT_PAGE_FAILED)
            return False
        self._split_mappings(head)
        self.forget(head)
        self._to_small_pages(head)
        self._vmstat.count(stats.THP_SPLIT_PAGE)
        self._free_unmapped(head)
        return True

    def split_pages(self, pfns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Split the huge ones of some pages: small pages, all of them but what could not be split."""
        found: list[int] = []
        for pfn in pfns.tolist():
            if not self._huge.has_flag(pfn, PG_HEAD):
                found.append(pfn)
            elif self.split(pfn):
                found += range(pfn, pfn + self._huge.pages)
        return np.array(found, dtype=np.int64)

    def split_for_swap(self, head: int) -> None:
        """Handle the pages of a huge one that goes to swap as a whole one by one from now on. Linux splits its entries
        alone. Preconditions: some entry maps the whole, and it is in no cache."""
        self._split_mappings(head)
        self.forget(head)
        self._to_small_pages(head)

    def _to_small_pages(self, head: int) -> None:
        """``__split_huge_page``: each page gets what the head knew of all."""
        pages, count = self._pages, self._huge.pages
        where = slice(head, head + count)
        inherited = np.uint32(int(pages.flags[head]) & INHERITED)
        pages.flags[where] = pages.flags[where] & np.uint32(~(INHERITED | 1 << PG_HEAD) & 0xFFFFFFFF) | inherited
        pages.mapping[where] = pages.mapping[head]
        pages.index[where] = int(pages.index[head]) + np.arange(count)
        pages.meta[where] = ALLOCATED | int(pages.migratetype[head]) << 16
        pages.prev[head + 1 : head + count] = 0  # how often an unevictable page is mlocked
        pages.memcg[where] = pages.memcg[head]
        self._lru.split(head, count)
        if self._owner is not None:
            self._owner.order[where] = 0

    def _free_unmapped(self, head: int) -> None:
        """Small pages that nobody maps are free (``free_page_and_swap_cache``)."""
        unmapped = np.flatnonzero(self._pages.mapcount[head : head + self._huge.pages] == 0) + head
        if len(unmapped):
            pfns = unmapped.astype(np.int64)
            self._release(pfns)
            self._page_alloc.free_pages_bulk(pfns, 0)

    def _release(self, pfns: npt.NDArray[np.int64]) -> None:
        self._lru.remove_bulk(pfns)
        self._lru.clear_mlock(pfns)
        self._pages.flags[pfns] = 0
        self._pages.mapping[pfns] = 0

    # -- freeing -----------------------------------------------------------------------------------------

    def unmapped(self, head: int, *, whole: bool) -> None:
        """One mapping of the ``whole``, or of a small page, less: queue the page when a part of it is not mapped,
        free it when nothing is."""
        if self._huge.mapcount(head):
            return
        counts = self._pages.mapcount[head : head + self._huge.pages]
        if counts.all():
            return
        if not whole or counts.any():
            self.defer(head)
        if not counts.any():
            self.free(head)

    def free(self, head: int) -> None:
        """Nobody maps a page any more (``free_transhuge_page``)."""
        self.forget(head)
        one = np.array([head], dtype=np.int64)
        self._lru.remove_bulk(one)
        self._lru.clear_mlock(one)
        self._huge.wipe(head, self._huge.pages)
        self._page_alloc.free_pages(head, int(self._pages.order[head]))

    def check(self) -> None:
        """Pages on a queue are whole, of the node, and not mapped as a whole."""
        for nid, queue in enumerate(self._queues):
            for head in queue:
                huge = self._pages.kind[head] == ALLOCATED and self._huge.has_flag(head, PG_HEAD)
                assert huge, f"pfn {head}: no huge page"
                assert self._huge.nid(head) == nid, f"pfn {head}: on the queue of node {nid}"
                assert not self._huge.mapcount(head), f"pfn {head}: on a queue, and mapped as a whole"
