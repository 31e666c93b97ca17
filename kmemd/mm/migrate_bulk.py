"""Many small pages that move at once (mm/migrate.c ``migrate_pages``): those that nobody but one has an interest in.

Models what ``Migrate._move`` comes to for anonymous pages that one entry maps, and for pages of files that no entry
maps; their order on the LRU lists and in the free lists is that of one after the other. Left out: all other pages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kmemd.core import stats
from kmemd.core import trace_ids as ev
from kmemd.core.context import Context
from kmemd.core.lru import Lru
from kmemd.core.mmu import Mmu
from kmemd.core.owner import OwnerTable
from kmemd.core.pages import (
    PG_ACTIVE,
    PG_ANON_EXCLUSIVE,
    PG_CONTENT,
    PG_DIRTY,
    PG_ERROR,
    PG_HEAD,
    PG_IDLE,
    PG_LRU,
    PG_MLOCKED,
    PG_OWNER_PRIV_1,
    PG_RECLAIM,
    PG_REFERENCED,
    PG_SWAPBACKED,
    PG_SWAPCACHE,
    PG_UNEVICTABLE,
    PG_UPTODATE,
    PG_WORKINGSET,
    PG_WRITEBACK,
    PG_YOUNG,
    SECTION_SHIFT,
    PageMap,
)
from kmemd.core.rmap import MappedPages
from kmemd.mm.mempolicy import Mempolicy
from kmemd.mm.page_alloc import PageAllocator
from kmemd.mm.vma_rows import prot_bits
from kmemd.mm.vmstat import VmStat

if TYPE_CHECKING:
    from kmemd.mm.migrate import Holders, ReverseMap

PFNS = npt.NDArray[np.int64]
Flags = npt.NDArray[np.uint8]

COPIED_FLAGS = sum(
    1 << bit
    for bit in (
        *(PG_ERROR, PG_REFERENCED, PG_UPTODATE, PG_DIRTY, PG_ACTIVE, PG_WORKINGSET, PG_OWNER_PRIV_1),
        *(PG_ANON_EXCLUSIVE, PG_RECLAIM, PG_SWAPBACKED, PG_UNEVICTABLE, PG_YOUNG, PG_IDLE),
    )
)
"""What the new page takes over (folio_migrate_flags)."""
NOT_PLAIN = sum(1 << bit for bit in (PG_LRU, PG_SWAPCACHE, PG_WRITEBACK, PG_HEAD, PG_MLOCKED))
"""What a page must not have that is moved with many others."""


def owner_tables(owner: OwnerTable) -> tuple[Any, ...]:
    """What page_owner knows of a page beside why it moved."""
    return owner.order, owner.gfp, owner.stack, owner.pid, owner.tgid, owner.comm, owner.ts, owner.free_ts


class BulkMove:
    """``copy_ns`` is what copying a page costs. All pages are isolated before, and on their lists after a call."""

    def __init__(
        self,
        pages: PageMap,
        mmu: Mmu,
        lru: Lru,
        rmap: ReverseMap,
        holders: Holders,
        page_alloc: PageAllocator,
        vmstat: VmStat,
        context: Context,
        mempolicy: Mempolicy,
        owner: OwnerTable | None,
        copy_ns: int,
    ) -> None:
        self._pages, self._mapped, self._lru, self._rmap = pages, MappedPages(mmu), lru, rmap
        self._holders, self._page_alloc, self._vmstat = holders, page_alloc, vmstat
        self._context, self._mempolicy, self._owner, self._copy_ns = context, mempolicy, owner, copy_ns

    def is_simple(self, pfns: PFNS) -> npt.NDArray[np.bool_]:
        """Which pages ``move`` is likely to move."""
        pages = self._pages
        owner, maps = pages.mapping[pfns], pages.mapcount[pfns]
        plain = pages.flags[pfns] & np.uint32(NOT_PLAIN | 1 << PG_CONTENT) == 0
        found: npt.NDArray[np.bool_] = plain & (((owner > 0) & (maps == 1)) | ((owner < 0) & (maps == 0)))
        return found

    def move(self, srcs: PFNS, dsts: PFNS, reason: int, *, drain: bool) -> Flags:
        """Move what can be moved many at a time: anonymous pages that one entry maps, and pages of files that none
        does. 1 for those that were moved. ``drain``: the CPU's batches are not to keep them. None is moved while
        somebody traces entries.
        """
        done = np.zeros(len(srcs), dtype=np.uint8)
        if self._vmstat.trace.on(ev.SET_MIGRATION_PTE) or self._vmstat.trace.on(ev.REMOVE_MIGRATION_PTE):
            return done
        owners = self._pages.mapping[srcs]
        first = int(owners[0])
        for number in (first,) if (owners == first).all() else set(owners.tolist()):
            anon = self._rmap.anon_vma(number) if number > 0 else None
            for vma, mm in anon.vmas.items() if anon is not None else ():
                span = (vma.vpn, vma.vpn + vma.pages, vma.pgoff)
                self._mapped.move_pages(mm.id, span, prot_bits(vma.flags, cow=True), number, srcs, dsts, done)
        mapped = done == 1
        if mapped.any():
            old, new = (srcs, dsts) if mapped.all() else (srcs[mapped], dsts[mapped])
            self._count_mapped(old, -1)
            self._count_mapped(new, 1)
            self._finish(old, new, reason, drain=True)
        if (owners < 0).any():
            self._move_cached(srcs, dsts, done, reason, drain)
        return done

    def _count_mapped(self, pfns: PFNS, sign: int) -> None:
        """Entries map anonymous pages of nodes, or no more."""
        for nid, count in enumerate(np.bincount(self._mempolicy.nid_of(pfns)).tolist()):
            if count:
                self._vmstat.mod_node(nid, stats.NR_ANON_MAPPED, sign * count)

    def _move_cached(self, srcs: PFNS, dsts: PFNS, done: Flags, reason: int, drain: bool) -> None:
        """Pages of files that nobody maps, works with or writes out."""
        pages = self._pages
        flags = pages.flags[srcs]
        mine = (done == 0) & (pages.mapping[srcs] < 0) & (pages.mapcount[srcs] == 0)
        mine &= flags & np.uint32(NOT_PLAIN) == 0
        pinned = self._holders.pinned(srcs)
        if pinned is not None:
            mine &= ~pinned
        if not mine.any():
            return
        old, new = srcs[mine], dsts[mine]
        self._holders.replace_cached_bulk(old, new)
        pages.flags[new] |= flags[mine] & np.uint32(COPIED_FLAGS)
        for at in np.flatnonzero(flags[mine] >> np.uint32(PG_CONTENT) & np.uint32(1)).tolist():
            self._holders.move_content(int(old[at]), int(new[at]))
        pages.flags[old] = 0
        self._finish(old, new, reason, drain=drain)
        done[mine] = 1

    def _finish(self, srcs: PFNS, dsts: PFNS, reason: int, *, drain: bool) -> None:
        """The rest of a move, once entries and flags are the new pages': charges, lists, owners; the old are freed."""
        pages = self._pages
        self._context.charge(self._copy_ns * len(srcs))
        if pages.memcg[srcs].any():
            pages.memcg[dsts] = pages.memcg[srcs]
            pages.charged_sections[dsts[pages.memcg[dsts] != 0] >> SECTION_SHIFT] = True
            pages.memcg[srcs] = 0
        self._mempolicy.copy_cpupids(srcs, dsts)
        self._count(self._mempolicy.nid_of(srcs), dsts, -1)
        self._lru.add_bulk(dsts)
        if drain:
            self._lru.drain_local()
        if self._owner is not None:
            self._copy_owners(srcs, dsts, reason)
        self._vmstat.count(stats.PGMIGRATE_SUCCESS, len(srcs))
        self._page_alloc.free_pages_bulk(srcs, 0)

    def count_isolated(self, pfns: PFNS) -> None:
        """Pages were isolated."""
        self._count(self._mempolicy.nid_of(pfns), pfns, 1)

    def _count(self, nids: PFNS, pfns: PFNS, sign: int) -> None:
        """Pages of nodes ``nids`` are isolated, or no more; ``pfns`` have their flags."""
        anon = self._pages.flags[pfns] & np.uint32(1 << PG_SWAPBACKED) != 0
        for nid in set(nids.tolist()) if len(nids) and nids.min() != nids.max() else nids[:1].tolist():
            here = nids == nid
            backed = int(np.count_nonzero(anon & here))
            self._vmstat.mod_node(nid, stats.NR_ISOLATED_ANON, sign * backed)
            self._vmstat.mod_node(nid, stats.NR_ISOLATED_FILE, sign * (int(np.count_nonzero(here)) - backed))

    def _copy_owners(self, srcs: PFNS, dsts: PFNS, reason: int) -> None:
        """The new pages were allocated by whoever allocated the old ones (``__folio_copy_owner``)."""
        assert self._owner is not None
        for table in owner_tables(self._owner):
            table[dsts] = table[srcs]
        self._owner.migrate_reason[dsts] = reason + 1
