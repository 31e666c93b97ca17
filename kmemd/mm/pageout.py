"""Reclaiming given pages (mm/vmscan.c ``reclaim_pages``, ``shrink_folio_list``; mm/rmap.c ``try_to_unmap``).

Models what MADV_PAGEOUT does: anonymous and tmpfs pages get slots, lose their entries and are written out; clean
file pages go; pages freed lazily are dropped; an anonymous huge page is written whole where an area has a free cluster,
and split before where none has. Choosing pages by age, and waiting for dirty ones, is reclaim's. Left out: that a huge
page stays one until it has arrived: its pages are small ones as soon as it has its cluster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from kmemd.core import stats
from kmemd.core import trace_ids as ev
from kmemd.core.lru import Lru
from kmemd.core.mmu import Mmu
from kmemd.core.pages import (
    PG_ACTIVE,
    PG_ANON_EXCLUSIVE,
    PG_DIRTY,
    PG_HEAD,
    PG_LRU,
    PG_MLOCKED,
    PG_RECLAIM,
    PG_REFERENCED,
    PG_SWAPBACKED,
    PG_SWAPCACHE,
    PG_UNEVICTABLE,
    PG_WRITEBACK,
    PageMap,
)
from kmemd.core.pte import (
    DIRTY,
    PFN_MASK,
    PFN_SHIFT,
    PRESENT,
    PROTNONE,
    RW,
    SOFT_DIRTY,
    SWP_EXCLUSIVE,
    SWP_OFFSET_BITS,
    SWP_SOFT_DIRTY,
)
from kmemd.mm.filemap import File, PageCache, PFNs, ZoneCounts, flag
from kmemd.mm.huge_page import HugePages
from kmemd.mm.huge_split import HugeSplit
from kmemd.mm.mm_types import (
    MM_ANONPAGES,
    MM_FILEPAGES,
    MM_SHMEMPAGES,
    MM_SWAPENTS,
    NR_MM_COUNTERS,
    VM_LOCKED,
    VM_SHARED,
    Mm,
    Vma,
)
from kmemd.mm.rmap import Rmap
from kmemd.mm.shmem import Shmem
from kmemd.mm.swap_state import SwapState
from kmemd.mm.swapfile import OFFSET_MASK, Entries, entries_of
from kmemd.mm.trace_points import reclaim_flags
from kmemd.mm.vmstat import VmStat

CHUNK = 256
"""Pages that are handled together: those of one request to a device."""
_DIRTY, _SWAPCACHE, _SWAPBACKED = flag(PG_DIRTY), flag(PG_SWAPCACHE), flag(PG_SWAPBACKED)
_EXCLUSIVE, _WRITEBACK, _LRU = flag(PG_ANON_EXCLUSIVE), flag(PG_WRITEBACK), flag(PG_LRU)
_MLOCKED = flag(PG_MLOCKED)


class PageCosts(NamedTuple):
    """ns that reclaim takes for a page.

    ``look``: to isolate, test and put it back; ``drop``: to drop one that is clean and that nobody maps; ``evict``: to
    unmap it, give it a slot and send it to a device.
    """

    look: int
    drop: int
    evict: int

    @classmethod
    def of(cls, line: int, free: int, evict: int) -> PageCosts:
        """As many cache lines of memory as each touches, at ``line`` ns: a page's own; to be dropped, its file's tree
        and its neighbours on a list, and ``free`` for giving it back."""
        return cls(line, 2 * line + free, evict)


class Evictions(Protocol):
    """Where shadows come from and go to (mm/workingset.py)."""

    def eviction(self, pfns: PFNs) -> PFNs: ...
    def keep_swapped(self, slots: PFNs, shadows: PFNs) -> None: ...


class PageOut:
    """Takes pages out of memory that somebody names. ``costs`` is the time that pages take. ``workingset``, once
    it is there, keeps the shadows of pages. ``written`` counts the pages that were sent to a device, ``activated``
    those that became active: anonymous, files'.
    """

    def __init__(
        self,
        mmu: Mmu,
        pages: PageMap,
        counts: ZoneCounts,
        vmstat: VmStat,
        rmap: Rmap,
        lru: Lru,
        cache: PageCache,
        swap: SwapState,
        shmem: Shmem,
        split: HugeSplit,
        huge: HugePages,
        charge: Callable[[int], None],
        costs: PageCosts,
    ) -> None:
        self._mmu, self._pages, self._counts, self._vmstat = mmu, pages, counts, vmstat
        self._rmap, self._lru, self._cache, self._swap, self._shmem = rmap, lru, cache, swap, shmem
        self._split, self._charge, self._costs = split, charge, costs
        self._huge = huge
        self.workingset: Evictions | None = None
        self.written = 0
        self.activated = [0, 0]

    def reclaim_pages(self, pfns: PFNs) -> int:
        """Reclaim pages that are on a list; what cannot go stays. How many were freed at once."""
        flags = self._pages.flags
        heads = flags[pfns] & flag(PG_HEAD) != 0
        freed = 0
        if heads.any():
            heads &= flags[pfns] & flag(PG_LRU, PG_UNEVICTABLE) == _LRU
            whole, small = self._swap_whole(pfns[heads])
            for first in range(0, len(whole), self._huge.pages):
                freed += self._shrink(whole[first : first + self._huge.pages])
            pfns = np.sort(np.concatenate((pfns[~heads], small)))
        for start in range(0, len(pfns), CHUNK):
            part = pfns[start : start + CHUNK]
            on_list = flags[part] & flag(PG_LRU, PG_UNEVICTABLE) == _LRU
            freed += self._shrink(np.ascontiguousarray(part[on_list]))
        return freed

    def _shrink(self, pfns: PFNs) -> int:
        """shrink_folio_list with references ignored. How many pages were freed."""
        self._lru.remove_bulk(pfns)
        kept: list[PFNs] = []
        pfns, busy = _parted(pfns, self._pages.flags[pfns] & (_WRITEBACK | _MLOCKED) == 0)
        kept.append(self.activate(busy))
        freed = self.evict(pfns, kept)
        self._putback(np.concatenate(kept))
        return freed

    def split_huge(self, heads: PFNs) -> PFNs:
        """Small pages of huge ones that are off the lists; those that cannot be split stay as they are."""
        whole, small = self._swap_whole(heads)
        return np.concatenate((whole, small))

    def _swap_whole(self, heads: PFNs) -> tuple[PFNs, PFNs]:
        """Put huge pages in the swap cache under clusters of their own (``add_to_swap``): their pages. And the pages of
        those that get none, which are split; what cannot be split stays as it is."""
        flags, swap = self._pages.flags, self._swap
        whole: list[PFNs] = [heads[:0]]
        rest: list[int] = []
        fallback: list[int] = []
        for head in heads.tolist():
            backed = self._pages.mapping[head] > 0 and bool(flags[head] & _SWAPBACKED)
            if not backed or not self._huge.mapcount(head):
                rest.append(head)  # no entry maps the whole: some of it may be free without any I/O
                continue
            slot = swap.files.alloc_huge(self._huge.pages) if swap.files.may_swap_huge(head, self._huge.pages) else -1
            if slot < 0:
                fallback.append(head)
                continue
            self._split.split_for_swap(head)
            pfns = np.arange(head, head + self._huge.pages)
            swap.add_to_swap_cache(pfns, slot + np.arange(self._huge.pages))
            flags[pfns] |= _DIRTY
            whole.append(pfns)
        small = self._split.split_pages(np.array(rest + fallback, dtype=np.int64))
        split = np.array(fallback, dtype=np.int64)
        self._vmstat.count(stats.THP_SWPOUT_FALLBACK, int((flags[split] & flag(PG_HEAD) == 0).sum()))
        return np.concatenate(whole), small

    def evict(self, pfns: PFNs, kept: list[PFNs]) -> int:
        """Unmap isolated pages, write what is dirty, free the rest (the greater part of shrink_folio_list). How many
        were freed; ``kept`` gets the others."""
        flags, mapping = self._pages.flags, self._pages.mapping
        busy = (self._pages.mapcount[pfns] > 0) | (flags[pfns] & (_DIRTY | _SWAPBACKED) != 0)
        count = int(np.count_nonzero(busy))
        self._charge(self._costs.evict * count + self._costs.drop * (len(pfns) - count))
        anon, files = _parted(pfns, (mapping[pfns] > 0) | (flags[pfns] & _SWAPCACHE != 0))
        backed, lazy = _parted(anon, flags[anon] & _SWAPBACKED != 0)
        freed = self._drop_lazy(lazy, kept)
        freed += self._swap_out(backed, kept)
        for number in np.unique(-mapping[files]).tolist():
            freed += self._drop_file(self._cache.files[number], files[mapping[files] == -number], kept)
        return freed

    def dropped_clean(self, pages: int) -> None:
        """Pages were dropped that were clean and that nobody mapped."""
        self._charge(self._costs.drop * pages)

    def looked_at(self, pages: int) -> None:
        """Pages were isolated and tested."""
        self._charge(self._costs.look * pages)

    def activate(self, pfns: PFNs) -> PFNs:
        """Pages that cannot go are active again (``activate_locked``)."""
        if not len(pfns):
            return pfns
        flags = self._pages.flags
        cached = pfns[flags[pfns] & _SWAPCACHE != 0]
        if len(cached) and self._swap.files.full:
            self._swap.free_swap(cached)
        fresh = pfns[flags[pfns] & (flag(PG_ACTIVE) | _MLOCKED) == 0]
        flags[fresh] |= flag(PG_ACTIVE)
        anon = int(np.count_nonzero(flags[fresh] & _SWAPBACKED))
        self.activated[0] += anon
        self.activated[1] += len(fresh) - anon
        self._vmstat.count(stats.PGACTIVATE, len(fresh))
        return pfns

    def _putback(self, pfns: PFNs) -> None:
        """Back to the lists, by way of the batch (``putback_lru_page``)."""
        self._lru.add_bulk(np.ascontiguousarray(np.sort(pfns)))

    def _free(self, pfns: PFNs) -> int:
        """Pages that are isolated, unmapped and in no cache."""
        if len(pfns):
            self._pages.mapping[pfns] = 0
            self._cache.release(pfns, listed=False)
        return len(pfns)

    # -- anonymous pages ---------------------------------------------------------------------------------

    def _drop_lazy(self, pfns: PFNs, kept: list[PFNs]) -> int:
        """Pages of MADV_FREE: gone, unless they were written to since."""
        if not len(pfns):
            return 0
        gone = [pfn for pfn in pfns.tolist() if self._discard(pfn)]
        self._vmstat.count(stats.PGLAZYFREED, len(gone))
        stay = np.setdiff1d(pfns, gone)
        self._pages.flags[stay] |= _SWAPBACKED
        kept.append(self.activate(stay))
        return self._free(np.array(gone, dtype=np.int64))

    def _discard(self, pfn: int) -> bool:
        """Unmap a lazily freed page when it and its entries are clean (``try_to_unmap_one``)."""
        where = [(mm, self._mmu.slot(mm.id, vpn), vpn) for mm, _, vpn in self._rmap.walk(pfn)]
        words = self._mmu.words
        if self._pages.flags[pfn] & _DIRTY or any(int(words[slot]) & DIRTY for _, slot, _ in where):
            return False
        for mm, slot, vpn in where:
            words[slot] = 0
            self._uncount(mm, MM_ANONPAGES, 1)
            self._rmap.remove(pfn)
            self._mmu.flush_range(mm.id, vpn, vpn + 1)
        return True

    def _uncount(self, mm: Mm, kind: int, pages: int) -> None:
        """Fewer resident pages; the most that there were is remembered before (update_hiwater_rss)."""
        counts = self._mmu.rss[mm.id * NR_MM_COUNTERS : (mm.id + 1) * NR_MM_COUNTERS]
        resident = sum(max(int(counts[item]), 0) for item in (MM_FILEPAGES, MM_ANONPAGES, MM_SHMEMPAGES))
        mm.hiwater_rss = max(mm.hiwater_rss, resident)
        counts[kind] -= pages

    def _swap_out(self, pfns: PFNs, kept: list[PFNs]) -> int:
        """Give pages slots, take their entries, write them. How many were freed at once."""
        if not len(pfns):
            return 0
        flags = self._pages.flags
        fresh = pfns[flags[pfns] & _SWAPCACHE == 0]
        fresh, barred = _parted(fresh, self._swap.files.may_swap(fresh))
        kept.append(self.activate(barred))
        pfns = np.setdiff1d(pfns, barred)
        slots = self._swap.files.alloc(len(fresh))
        self._swap.add_to_swap_cache(fresh[: len(slots)], slots)
        flags[fresh[: len(slots)]] |= _DIRTY
        refused = fresh[len(slots) :]
        kept.append(self.activate(refused))
        pfns = np.setdiff1d(pfns, refused)
        once = self._unmap_single(pfns)
        rest = np.setdiff1d(pfns, once)
        done, stuck = _parted(rest, np.array([self._unmap_to_swap(pfn) for pfn in rest.tolist()], dtype=bool))
        mapped = np.sort(np.concatenate((once, done)))
        kept.append(self.activate(stuck))
        return self._write_out(mapped, kept)

    def _unmap_single(self, pfns: PFNs) -> PFNs:
        """``_unmap_to_swap`` of the pages that one entry maps, an address space at a time. Those that were unmapped."""
        mapping, left = self._pages.mapping, pfns[self._pages.mapcount[pfns] == 1]
        done: list[PFNs] = []
        for owner in np.unique(mapping[left]).tolist():
            mine = left[mapping[left] == owner]
            anon = self._rmap.anon_vma(owner)
            for vma, mm in anon.vmas.items() if anon is not None else ():
                if not vma.flags & VM_LOCKED and len(mine):
                    found = self._unmap_from(mm, vma, mine)
                    done.append(mine[found])
                    mine = mine[~found]
        return np.concatenate(done) if done else pfns[:0]

    def _unmap_from(self, mm: Mm, vma: Vma, pfns: PFNs) -> npt.NDArray[np.bool_]:
        """Swap entries in one mapping for the pages that it maps. Which ones."""
        vpns = vma.vpn + self._pages.index[pfns] - vma.pgoff
        inside = (vpns >= vma.vpn) & (vpns < vma.vpn + vma.pages)
        slots = np.empty(int(inside.sum()), dtype=np.int64)
        self._mmu.slots(mm.id, np.ascontiguousarray(vpns[inside]), slots)
        words = self._mmu.words
        entries = np.where(slots >= 0, words[np.maximum(slots, 0)], np.uint64(0))
        here = (entries & np.uint64(PRESENT | PROTNONE) != 0) & (
            entries & np.uint64(PFN_MASK) == pfns[inside].astype(np.uint64) << np.uint64(PFN_SHIFT)
        )
        found = inside.copy()
        found[inside] = here
        if here.any():
            self._swap_entries(mm, pfns[found], slots[here], entries[here])
            low, high = int(vpns[found].min()), int(vpns[found].max()) + 1
            self._mmu.flush_range(mm.id, low, high)
        return found

    def _swap_entries(self, mm: Mm, pfns: PFNs, at: PFNs, entries: Entries) -> None:
        """Swap entries where pages that nobody else maps were."""
        flags = self._pages.flags
        slots = self._pages.private[pfns]
        new = entries_of(slots)
        new[flags[pfns] & _EXCLUSIVE != 0] |= np.uint64(SWP_EXCLUSIVE)
        new[entries & np.uint64(SOFT_DIRTY) != 0] |= np.uint64(SWP_SOFT_DIRTY)
        self._mmu.words[at] = new
        flags[pfns[entries & np.uint64(DIRTY) != 0]] |= _DIRTY
        flags[pfns] &= ~_EXCLUSIVE
        self._uncount(mm, MM_ANONPAGES, len(pfns))
        self._mmu.rss[mm.id * NR_MM_COUNTERS + MM_SWAPENTS] += len(pfns)
        self._pages.mapcount[pfns] = 0
        self._counts.move(pfns, -1, (stats.NR_ANON_MAPPED,))
        self._swap.files.duplicate(slots)

    def _unmap_to_swap(self, pfn: int) -> bool:
        """Swap entries instead of a page's entries (``try_to_unmap``); whether nobody maps it any more."""
        if not self._pages.mapcount[pfn]:
            return True
        where = self._rmap.walk(pfn)
        if any(vma.flags & VM_LOCKED for _, vma, _ in where):
            return False
        slot = self._pages.private[pfn : pfn + 1]
        base = int(entries_of(slot)[0]) | (SWP_EXCLUSIVE if self._pages.flags[pfn] & _EXCLUSIVE else 0)
        words, rss = self._mmu.words, self._mmu.rss
        for mm, _, vpn in where:
            at = self._mmu.slot(mm.id, vpn)
            entry = int(words[at])
            words[at] = np.uint64(base | (SWP_SOFT_DIRTY if entry & SOFT_DIRTY else 0))
            if entry & DIRTY:
                self._pages.flags[pfn] |= _DIRTY
            self._uncount(mm, MM_ANONPAGES, 1)
            rss[mm.id * NR_MM_COUNTERS + MM_SWAPENTS] += 1
            self._rmap.remove(pfn)
            self._mmu.flush_range(mm.id, vpn, vpn + 1)
        self._pages.flags[pfn] &= ~_EXCLUSIVE
        self._swap.files.duplicate(np.repeat(slot, len(where)))
        return not self._pages.mapcount[pfn]

    def _write_out(self, pfns: PFNs, kept: list[PFNs]) -> int:
        """Write dirty pages of the swap cache (``pageout``); clean ones are dropped. How many were freed."""
        flags = self._pages.flags
        pfns, unused = _parted(pfns, ~self._swap.free_swap(pfns))
        dirty, clean = _parted(pfns, flags[pfns] & _DIRTY != 0)
        for area in self._swap.files.areas:
            mine = dirty[self._pages.private[dirty] >> SWP_OFFSET_BITS == area.number]
            if not len(mine):
                continue
            slots = self._pages.private[mine]
            self._swap.remember(mine)
            self.written += len(mine)
            flags[mine] |= np.uint32(1 << PG_RECLAIM)
            self._counts.move(mine, 1, (stats.NR_VMSCAN_WRITE,))
            self._vmstat.trace.emit_pages(ev.MM_VMSCAN_WRITE_FOLIO, mine, 0, reclaim_flags(file=False))
            huge = area.end_huge(slots & OFFSET_MASK)
            for part in (np.flatnonzero(~huge), *np.flatnonzero(huge).reshape(-1, area.cluster_size)):
                write = self._swap.io.write_huge if len(part) and huge[part[0]] else self._swap.io.write
                done, under_way = _parted(mine[part], write(mine[part], slots[part], area))
                clean = np.concatenate((clean, done))
                kept.append(under_way)
        if self.workingset is not None and len(clean):
            kept_at = self._pages.private[clean].copy()
            self.workingset.keep_swapped(kept_at, self.workingset.eviction(clean))
        self._swap.delete_from_swap_cache(clean)
        return self._free(np.concatenate((clean, unused)))

    # -- pages of files ----------------------------------------------------------------------------------

    def _drop_file(self, file: File, pfns: PFNs, kept: list[PFNs]) -> int:
        """Unmap pages of one file, and drop or swap out those that may go. How many were freed."""
        mapped = pfns[self._pages.mapcount[pfns] > 0]
        stuck = np.array([pfn for pfn in mapped.tolist() if not self._unmap_file(file, pfn)], dtype=np.int64)
        if len(stuck):
            kept.append(self.activate(stuck))
            pfns = pfns[~np.isin(pfns, stuck)]
        clean, dirty = _parted(pfns, self._pages.flags[pfns] & _DIRTY == 0)
        freed = 0
        if file.is_shmem:
            freed += self._swap_file(file, dirty, kept)
        else:
            self._pages.flags[dirty] |= flag(PG_RECLAIM)
            self._counts.move(dirty, 1, (stats.NR_VMSCAN_IMMEDIATE,))
            kept.append(self.activate(dirty))
        shadows: PFNs | int = 0
        if self.workingset is not None and not file.is_shmem and len(clean):
            shadows = self.workingset.eviction(clean)
        if len(clean):
            self._cache.remove_bulk(file, self._pages.index[clean], clean, shadows)
        return freed + self._free(clean)

    def _unmap_file(self, file: File, pfn: int) -> bool:
        """Take all entries of a page of a file (``try_to_unmap``); whether none is left."""
        words = self._mmu.words
        counter = MM_SHMEMPAGES if file.is_shmem else MM_FILEPAGES
        for mm, vma, vpn in self._rmap.walk(pfn) if self._pages.mapcount[pfn] else ():
            if vma.flags & VM_LOCKED:
                return False
            at = self._mmu.slot(mm.id, vpn)
            if int(words[at]) & DIRTY:
                self._cache.set_dirty(file, np.array([pfn], dtype=np.int64))
            words[at] = 0
            self._uncount(mm, counter, 1)
            self._rmap.remove(pfn)
            self._mmu.flush_range(mm.id, vpn, vpn + 1)
        return not self._pages.mapcount[pfn]

    def _swap_file(self, file: File, pfns: PFNs, kept: list[PFNs]) -> int:
        """tmpfs pages go to the swap cache, and are written (``shmem_writepage``). How many were freed."""
        slots = self._swap.files.alloc(len(pfns))
        gone = pfns[: len(slots)]
        kept.append(self.activate(pfns[len(slots) :]))
        if not len(gone):
            return 0
        indices = self._pages.index[gone]
        self._shmem.moved_to_swap(file, indices, gone, slots)
        self._swap.add_to_swap_cache(gone, slots)
        self._swap.files.duplicate(slots)
        self._pages.flags[gone] &= ~flag(PG_REFERENCED)
        return self._write_out(gone, kept)

    # -- cleaning ----------------------------------------------------------------------------------------

    def clean(self, file: File, pfns: PFNs) -> None:
        """Make the entries of shared mappings read-only and clean, and pages dirty whose were (``folio_mkclean``)."""
        words = self._mmu.words
        for pfn in pfns.tolist():
            for mm, vma, vpn in self._rmap.walk(pfn):
                if not vma.flags & VM_SHARED:
                    continue
                at = self._mmu.slot(mm.id, vpn)
                entry = int(words[at])
                if entry & (DIRTY | RW):
                    words[at] = np.uint64(entry & ~(DIRTY | RW))
                    self._mmu.flush_range(mm.id, vpn, vpn + 1)
                    self._cache.set_dirty(file, np.array([pfn], dtype=np.int64))


def _parted(pfns: PFNs, chosen: np.ndarray) -> tuple[PFNs, PFNs]:
    """Those chosen, and the others."""
    return pfns[chosen], pfns[~chosen]
