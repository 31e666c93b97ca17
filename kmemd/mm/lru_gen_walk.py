"""Page tables, where a new generation comes from (mm/vmscan.c ``walk_mm``, ``lru_gen_look_around``).

Models: the list of address spaces of a cgroup, those that ran since the last walk and new ones, the filters that say
which tables are worth a walk, mappings that are passed over, and the neighbours of a page that the reverse map found
used. Left out: accessed bits of entries that lead to tables (LRU_GEN_NONLEAF_YOUNG), which the model's walks do not
clear: every table counts as used. A filter here is exact, where the kernel's Bloom filter may let a table through.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from kmemd.core.lru_gen import LruGen
from kmemd.core.lru_gen_lists import MIN_LRU_BATCH
from kmemd.core.mmu import Mmu
from kmemd.core.pages import PG_SWAPBACKED, PageMap
from kmemd.mm.mm_types import (
    MM_ANONPAGES,
    MM_FILEPAGES,
    MM_SHMEMPAGES,
    NR_MM_COUNTERS,
    VM_EXEC,
    VM_HUGETLB,
    VM_IO,
    VM_LOCKED,
    VM_MIXEDMAP,
    VM_PFNMAP,
    VM_RAND_READ,
    VM_READ,
    VM_SEQ_READ,
    VM_WRITE,
    Mm,
    Vma,
)
from kmemd.mm.units import PAGE_SHIFT

if TYPE_CHECKING:
    from kmemd.mm.lru_gen import GenState
    from kmemd.mm.vmscan_reclaim import Pauses

PFNs = npt.NDArray[np.int64]
MM_NONLEAF_TOTAL, MM_NONLEAF_FOUND, MM_NONLEAF_ADDED = 3, 4, 5
PTES_PER_CACHELINE = 8
WALK_PAGES = 1 << 15
"""Pages of address space that are walked at once."""
SKIPPED = VM_HUGETLB | VM_LOCKED | VM_IO | VM_PFNMAP | VM_MIXEDMAP | VM_SEQ_READ | VM_RAND_READ
MSEC_PER_SEC = 1000


class PageTableWalk:
    """Walks page tables. ``mms(memcg)`` are the address spaces of a cgroup, oldest first; ``ran(mm)`` is for how long
    one was executed, None while it is; ``dirty(pfns)`` is told of pages of files that turn out to be dirty."""

    def __init__(
        self,
        pages: PageMap,
        core: LruGen,
        mmu: Mmu,
        mms: Callable[[int], list[Mm]],
        ran: Callable[[Mm], int | None],
        dirty: Callable[[PFNs], None],
        hz: int,
        number: Callable[[int, int], int],
        nids: Callable[[PFNs], PFNs],
    ) -> None:
        self._pages, self._core, self._mmu, self._mms = pages, core, mmu, mms
        self._ran, self._dirty, self._hz, self._number, self._nids = ran, dirty, hz, number, nids
        self._seen: WeakKeyDictionary[Mm, dict[int, int | None]] = WeakKeyDictionary()
        self._ignored = np.zeros(3, dtype=np.int64)

    def to_ms(self, jiffies: int) -> int:
        """Milliseconds of jiffies."""
        return jiffies * MSEC_PER_SEC // self._hz

    def is_file(self, pfn: int) -> bool:
        """Whether a page is of the type of file pages (``folio_is_file_lru``)."""
        return not int(self._pages.flags[pfn]) >> PG_SWAPBACKED & 1

    # -- aging -------------------------------------------------------------------------------------------

    def walk_mms(
        self, memcg: int, nid: int, lruvec: int, state: GenState, seq: int, *, can_swap: bool, force_scan: bool
    ) -> Pauses[None]:
        """Walk the address spaces of a cgroup for the generation that ends with ``seq`` (``iterate_mm_list``)."""
        upcoming: set[int] | None = None
        for mm in self._mms(memcg):
            seen = self._seen.setdefault(mm, {})
            force_scan = force_scan or lruvec not in seen
            stamp = self._ran(mm)
            idle = stamp is not None and seen.get(lruvec) == stamp
            seen[lruvec] = stamp
            if (idle and not force_scan) or self._resident(mm, can_swap=can_swap) < MIN_LRU_BATCH:
                continue
            if upcoming is None:
                upcoming = state.filters[(seq + 1) % 2] = set()
            known = None if force_scan else state.filters[seq % 2]
            at = 0
            while (vma := mm.find_vma(at << PAGE_SHIFT)) is not None:
                at = max(at, vma.vpn)
                end = (at & -WALK_PAGES) + WALK_PAGES
                self._walk_part(mm, at, end, nid, lruvec, state, known, upcoming, can_swap)
                at = end
                yield 0

    def _resident(self, mm: Mm, *, can_swap: bool) -> int:
        kinds = (MM_FILEPAGES, MM_ANONPAGES, MM_SHMEMPAGES) if can_swap else (MM_FILEPAGES,)
        return sum(int(self._mmu.rss[mm.id * NR_MM_COUNTERS + kind]) for kind in kinds)

    def _walk_part(
        self,
        mm: Mm,
        start: int,
        end: int,
        nid: int,
        lruvec: int,
        state: GenState,
        known: set[int] | None,
        upcoming: set[int],
        can_swap: bool,
    ) -> None:
        """The tables of some addresses, those that are ``known`` to be worth it (``walk_pmd_range``)."""
        tables: dict[int, list[tuple[int, int]]] = {}
        for vma in mm.overlapping(start << PAGE_SHIFT, end << PAGE_SHIFT):
            if _skipped(vma, can_swap=can_swap):
                continue
            rows = self._mmu.extents(mm.id, max(vma.vpn, start), min(vma.vpn + vma.pages, end))
            for _, count, slot, level in rows.tolist():
                # the entry of a huge page stands for itself
                spans = tables.setdefault(-slot - 1 if level else slot >> self._mmu.bits, [])
                spans.append((slot, 1 if level else count))
        for table, spans in tables.items():
            if table < 0:
                self._entries(spans, lruvec, nid, can_swap, state.stats)
                continue
            state.stats[MM_NONLEAF_TOTAL] += 1
            if known is not None and table not in known:
                continue
            state.stats[MM_NONLEAF_FOUND] += 1
            young = self._entries(spans, lruvec, nid, can_swap, state.stats)
            if young * PTES_PER_CACHELINE >= sum(count for _, count in spans):
                state.stats[MM_NONLEAF_ADDED] += 1
                upcoming.add(table)

    def _entries(
        self, spans: list[tuple[int, int]], lruvec: int, nid: int, can_swap: bool, counts: npt.NDArray[np.int64]
    ) -> int:
        """Entries of one table; how many were young."""
        words = self._mmu.words
        young = sum(self._core.walk(words, slot, count, lruvec, nid, can_swap, counts) for slot, count in spans)
        dirtied = self._core.take_dirtied()
        if len(dirtied):
            self._dirty(dirtied)
        return young

    # -- eviction ----------------------------------------------------------------------------------------

    def look_around(
        self, mm: Mm, vma: Vma, vpns: PFNs, pfns: PFNs, filters: Callable[[int], tuple[GenState, int]]
    ) -> None:
        """Pages near ones that were found used, in order of address: used ones go to the youngest generation, and the
        table is worth a walk. ``filters(lruvec)`` is where that is noted, and for which generation."""
        if vma.flags & (VM_IO | VM_PFNMAP | VM_MIXEDMAP | VM_SEQ_READ | VM_RAND_READ):
            return
        covered = -1
        order = np.argsort(vpns)
        nids = self._nids(pfns)
        for at in order.tolist():
            vpn = int(vpns[at])
            if vpn < covered:
                continue
            first, last = self._window(vma, vpn)
            slot, level = self._mmu.leaf(mm.id, vpn)
            if slot < 0 or level:
                continue
            nid = int(nids[at])
            lruvec = self._number(int(self._pages.memcg[pfns[at]]), nid)
            covered = last
            young = 1 + self._entries([(slot - (vpn - first), last - first)], lruvec, nid, True, self._ignored)
            if young * PTES_PER_CACHELINE >= last - first:
                state, seq = filters(lruvec)
                known = state.filters[seq % 2]
                if known is not None:
                    known.add(slot >> self._mmu.bits)

    def _window(self, vma: Vma, vpn: int) -> tuple[int, int]:
        """64 entries around one, within its table and mapping."""
        size, half = 1 << self._mmu.bits, MIN_LRU_BATCH // 2
        first, last = max(vpn & -size, vma.vpn), min((vpn & -size) + size, vma.vpn + vma.pages)
        if last - first <= MIN_LRU_BATCH:
            return first, last
        if vpn - first < half:
            return first, first + MIN_LRU_BATCH
        if last - vpn < half:
            return last - MIN_LRU_BATCH, last
        return vpn - half, vpn + half


def _skipped(vma: Vma, *, can_swap: bool) -> bool:
    """Whether a mapping says nothing about what is used (``should_skip_vma``)."""
    if not vma.flags & (VM_READ | VM_WRITE | VM_EXEC) or vma.flags & SKIPPED:
        return True
    if vma.is_anon or (vma.file is not None and vma.file.is_shmem):
        return not can_swap
    return vma.file is None or vma.file.is_device
