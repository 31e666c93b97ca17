"""The swap cache and faults on swapped pages (mm/swap_state.c, mm/memory.c ``do_swap_page``).

Models: pages that have a slot and are in memory, their leaving when the slot has no other user, readahead by slots
and by addresses, swap-in with the rules for who may write at once. Page-out is in mm/pageout.py, slots in
mm/swapfile.py. Faults that need no more than an entry are the loop's in core/swap_fault.py. Left out: KSM.

A page of the swap cache has PG_swapcache, and its slot in ``PageMap.private``; an anonymous one keeps its owner in
``mapping``, one of tmpfs has none while it is there.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from kmemd.core import stats
from kmemd.core.lru import MLOCK_PAGE
from kmemd.core.pages import (
    PG_ANON_EXCLUSIVE,
    PG_DIRTY,
    PG_LRU,
    PG_RECLAIM,
    PG_SWAPBACKED,
    PG_SWAPCACHE,
    PG_UPTODATE,
    PG_WRITEBACK,
    PageMap,
)
from kmemd.core.pte import (
    ACCESSED,
    DIRTY,
    MAX_SWAPFILES,
    PFN_SHIFT,
    RW,
    SOFT_DIRTY,
    SWP_EXCLUSIVE,
    SWP_OFFSET_BITS,
    SWP_SOFT_DIRTY,
    SWP_SWAPIN_ERROR,
    SWP_TYPE_SHIFT,
    swap_offset,
    swap_type,
)
from kmemd.core.swap_fault import HITS, HITS_MOST, PREVIOUS, SwapFaults
from kmemd.errors import KernelError
from kmemd.mm.contents import Content, Contents
from kmemd.mm.filemap import PageCache, PFNs, ZoneCounts, flag
from kmemd.mm.memory import Memory
from kmemd.mm.mm_types import MM_ANONPAGES, MM_SWAPENTS, VM_LOCKED, VM_WRITE, Mm, Vma
from kmemd.mm.page_io import SwapIo
from kmemd.mm.signals import BUS_ADRERR, SIGBUS, Signal
from kmemd.mm.swap import Swap
from kmemd.mm.swap_area import SwapArea
from kmemd.mm.swapfile import Entries, Slots, slots_of
from kmemd.mm.units import PAGE_SHIFT
from kmemd.mm.vma_rows import prot_bits
from kmemd.mm.vmstat import VmStat

SWAP_RA_ORDER_CEILING = {64: 5, 32: 3}
REMEMBERED = 1 << 12
FIRST_HITS = 4
_SWAPCACHE, _WRITEBACK, _DIRTY = flag(PG_SWAPCACHE), flag(PG_WRITEBACK), flag(PG_DIRTY)
_AHEAD, _LRU, _EXCLUSIVE = flag(PG_RECLAIM), flag(PG_LRU), flag(PG_ANON_EXCLUSIVE)
_FRESH, _UPTODATE = flag(PG_SWAPBACKED, PG_UPTODATE), flag(PG_UPTODATE)
CACHE_ITEMS = (stats.NR_FILE_PAGES, stats.NR_SWAPCACHE)


class SwapPages(Protocol):
    """Where pages to read into come from: the policy of the mapping and the task."""

    def __call__(self, task: Any, vma: Vma | None, vpn: int, n: int) -> PFNs: ...


class Shadows(Protocol):
    """What is remembered of evicted pages (mm/workingset.py)."""

    def take_swapped(self, slots: Slots) -> Slots: ...
    def refault(self, pfns: PFNs, shadows: Slots) -> None: ...


class SwapState:
    """The swap cache of a machine.

    Invariants: a page has PG_swapcache just when its slot's ``cache`` names it; NR_SWAPCACHE counts these pages, and
    NR_FILE_PAGES has them too.
    """

    def __init__(
        self,
        swap: Swap,
        pages: PageMap,
        counts: ZoneCounts,
        vmstat: VmStat,
        cache: PageCache,
        contents: Contents,
        alloc: SwapPages,
        io: SwapIo,
        make_faults: Callable[[Slots, Slots], SwapFaults],
    ) -> None:
        """``make_faults(room, windows)`` makes the loop of faults (core/swap_fault.py)."""
        self._swap, self.files = swap, swap.files
        self._pages, self._counts, self._vmstat = pages, counts, vmstat
        self._cache, self._contents = cache, contents
        self._alloc, self.io = alloc, io
        self.windows = np.zeros((REMEMBERED + 1, 3), dtype=np.int64)
        self.windows[0, HITS] = FIRST_HITS
        self._by_vma: dict[tuple[int, int], int] = {}
        self._wanted = np.zeros(1, dtype=np.int64)
        self._data: dict[int, Content] = {}
        self.files.reclaim = self._try_to_reclaim
        self.faults = make_faults(self.files.room, self.windows)
        self.files.changed = self._areas_changed
        self._areas_changed()
        self.workingset: Shadows | None = None

    def _areas_changed(self) -> None:
        """The loop of faults knows the areas."""
        self.faults.forget_areas()
        for area in self.files.areas:
            self.faults.add_area(area.number, area.count, area.cache)

    # -- the cache ---------------------------------------------------------------------------------------

    def add_to_swap_cache(self, pfns: PFNs, slots: Slots) -> None:
        """Pages get slots that were taken for them, and are not among the evicted ones any more."""
        if self.workingset is not None:
            self.workingset.take_swapped(slots)
        self._pages.flags[pfns] |= _SWAPCACHE
        self._pages.private[pfns] = slots
        self.files.set_cache(slots, pfns)
        self._counts.move(pfns, 1, CACHE_ITEMS)

    def delete_from_swap_cache(self, pfns: PFNs) -> None:
        """Pages lose their slots, which are free when nothing else refers to them."""
        if not len(pfns):
            return
        slots = self._pages.private[pfns]
        self._pages.flags[pfns] &= ~_SWAPCACHE
        self._pages.private[pfns] = 0
        self._counts.move(pfns, -1, CACHE_ITEMS)
        self.files.drop_cache(slots)
        self._forget_unused(slots)

    def replace_page(self, old: int, new: int) -> None:
        """Another page holds a slot from now on, as migration does."""
        slot = self._pages.private[np.array([old])]
        self._counts.move(np.array([old]), -1, CACHE_ITEMS)
        self._pages.flags[old] &= ~_SWAPCACHE
        self._pages.private[old] = 0
        self.add_to_swap_cache(np.array([new]), slot)

    def free_swap(self, pfns: PFNs) -> npt.NDArray[np.bool_]:
        """Take the slots of pages away that nothing else refers to and that are not being written
        (``folio_free_swap``); such a page is dirty again. Which ones."""
        flags = self._pages.flags
        done: npt.NDArray[np.bool_] = (flags[pfns] & (_SWAPCACHE | _WRITEBACK)) == _SWAPCACHE
        if done.any():
            done[done] = self.files.counts(self._pages.private[pfns[done]]) == 0
        gone = pfns[done]
        if len(gone):
            self.delete_from_swap_cache(gone)
            flags[gone] |= _DIRTY
        return done

    def free_cached(self, pfns: PFNs) -> None:
        """Pages of the swap cache that nobody maps any more (``free_pages_and_swap_cache``)."""
        self.release(pfns[self.free_swap(pfns)])

    def release(self, pfns: PFNs) -> None:
        """Give back pages that are in no cache and mapped by nobody."""
        if len(pfns):
            self._pages.mapping[pfns] = 0
            self._cache.release(pfns)

    def _try_to_reclaim(self, area: SwapArea, offset: int) -> bool:
        """Have the page of a slot that the swap cache alone holds give it up (``__try_to_reclaim_swap``); whether it
        did. The slot may then be one that a CPU keeps."""
        pfn = int(area.cache[offset]) - 1
        if pfn < 0 or not self.free_swap(np.array([pfn], dtype=np.int64))[0]:
            return False
        if not self._pages.mapcount[pfn]:
            self.release(np.array([pfn], dtype=np.int64))
        return True

    # -- references --------------------------------------------------------------------------------------

    def duplicate(self, entries: Entries) -> None:
        """Page table entries were copied (``swap_duplicate`` of each)."""
        self.files.duplicate(slots_of(_swapped(entries)))

    def free_entries(self, entries: Entries) -> None:
        """Page table entries are gone (``free_swap_and_cache`` of each)."""
        self.free_slots(slots_of(_swapped(entries)))

    def free_slots(self, slots: Slots) -> None:
        """Something no longer refers to slots; pages that were kept for it alone go too."""
        if not len(slots):
            return
        kept = self.files.cached(self.files.free(slots))
        mapped = self._pages.mapcount[kept] > 0
        self.free_cached(kept[~mapped])
        if mapped.any() and self.files.full:
            self.free_swap(kept[mapped])
        self._forget_unused(slots)

    def _forget_unused(self, slots: Slots) -> None:
        """Bytes of slots that are in no use any more."""
        if self._data:
            for slot in slots[self.files.counts(slots) == 0].tolist():
                self._data.pop(slot, None)

    def remember(self, pfns: PFNs) -> None:
        """What stands in pages of the swap cache is written out with them."""
        known = pfns[self._pages.flags[pfns] >> np.uint32(31) != 0]
        for pfn in known.tolist():
            data = self._contents.take(pfn)
            if data is not None:
                self._data[int(self._pages.private[pfn])] = data

    # -- reading -----------------------------------------------------------------------------------------

    def read_slots(self, slots: Slots, task: Any = None, vma: Vma | None = None, vpn: int = 0) -> PFNs:
        """Read slots that are not in the cache into new pages of it (``read_swap_cache_async``); fewer when memory is
        short. Preconditions: something refers to each."""
        pfns = self._new_pages(slots, task, vma, vpn)
        if len(pfns):
            self._fill(slots[: len(pfns)], pfns)
        return pfns

    def _new_pages(self, slots: Slots, task: Any, vma: Vma | None, vpn: int) -> PFNs:
        """New pages of the cache for slots, before they are read (``__read_swap_cache_async``)."""
        if not len(slots):
            return slots
        pfns = np.ascontiguousarray(self._charged(slots, self._alloc(task, vma, vpn, len(slots))))
        slots = slots[: len(pfns)]
        stale = (self.files.counts(slots) == 0) | (self.files.cached(slots) >= 0)
        if stale.any():  # reclaim for these pages, or a kill, gave the slot back or read it meanwhile
            left = int(stale.argmax())
            self._cache.release(pfns[left:], listed=False)
            slots, pfns = slots[:left], pfns[:left]
        if not len(pfns):
            return pfns
        self._pages.flags[pfns] |= _FRESH
        self._refault(slots, pfns)
        self.faults.enter(pfns, slots)
        self.files.charge_slots(slots, pfns)
        self._cache.lru.add_bulk(pfns)
        return pfns

    def write_back(self, slot: int) -> bool:
        """Bring a page that zswap holds into the cache and have its device write it; whether that could be done
        (the greater part of ``zswap_writeback_entry``)."""
        area = self.files.area(slot)
        if not self.files.count_one(slot) or self.files.cached_one(slot) >= 0:
            return False
        slots = np.array([slot], dtype=np.int64)
        pfns = self._new_pages(slots, None, None, 0)
        if not len(pfns):
            return False
        self._restore(slots, pfns)
        self._pages.flags[pfns] |= _AHEAD
        self.io.start_writeback(pfns)
        self.io.write_to_device(pfns, slots, area)
        return True

    def _charged(self, slots: Slots, pfns: PFNs) -> PFNs:
        """New pages, charged to the control groups of their slots; those that could not be are given back."""
        done = self.files.charge_swapin(slots, pfns)
        if done < len(pfns):
            self._cache.release(pfns[done:], listed=False)
        return pfns[:done]

    def _refault(self, slots: Slots, pfns: PFNs) -> None:
        if self.workingset is not None:
            self.workingset.refault(pfns, self.workingset.take_swapped(slots))

    def _fill(self, slots: Slots, pfns: PFNs) -> None:
        """The pages get what the slots hold: one request for each run of slots."""
        self.io.read(slots, pfns)
        self._restore(slots, pfns)

    def _restore(self, slots: Slots, pfns: PFNs) -> None:
        """What was written out with the slots stands in the pages that could be read."""
        if self._data:
            for slot, pfn in zip(slots.tolist(), pfns.tolist(), strict=True):
                if slot in self._data and self._pages.flags[pfn] & _UPTODATE:
                    self._contents.put(pfn, self._data[slot])

    def lookup(self, slot: int, mm: Mm | None = None, vma: Vma | None = None, vpn: int = 0) -> int:
        """The page of the cache at a slot, -1 for none (``swap_cache_get_folio``): readahead learns from hits."""
        pfn = self.files.cached_one(slot)
        if pfn < 0:
            return -1
        flags = self._pages.flags
        ahead = int(flags[pfn]) >> PG_RECLAIM & 1  # PG_readahead is the same bit: pages under write-back are hits, too
        row = self.window_row(mm, vma) if mm is not None and vma is not None else 0
        if ahead:
            flags[pfn] &= ~_AHEAD
            self._vmstat.count(stats.SWAP_RA_HIT)
        window = self.windows[row]
        window[HITS] += ahead
        if row:
            window[PREVIOUS] = vpn
            window[HITS] = min(window[HITS], HITS_MOST)
        return pfn

    def readahead(self, slot: int, task: Any = None, mm: Mm | None = None, vma: Vma | None = None, vpn: int = 0,
                  memory: Memory | None = None) -> int:  # fmt: skip
        """Read a slot, and others that may be wanted next (``swapin_readahead``). Its page, -1 without memory."""
        row = self.window_row(mm, vma) if mm is not None and vma is not None and memory is not None else 0
        if row and mm is not None and vma is not None and memory is not None:
            wanted = self._around_address(row, slot, mm, vma, vpn, memory)
        else:
            wanted = self._around_slot(slot)
        alone = wanted is None
        wanted = np.array([slot], dtype=np.int64) if wanted is None else wanted
        pfns = self.read_slots(wanted, task, vma, vpn)
        self._vmstat.count(stats.SWAP_RA, self.faults.ahead(pfns, wanted[: len(pfns)], slot))
        if not alone:
            self._cache.lru.drain_local()
        found = self.files.cached_one(slot)
        if found < 0:
            pfns = self.read_slots(np.array([slot], dtype=np.int64), task, vma, vpn)
            found = int(pfns[0]) if len(pfns) else -1
        return found

    def _use_vma_readahead(self) -> bool:
        return self._swap.vma_ra_enabled and not self.files.rotating

    def window_row(self, mm: Mm, vma: Vma) -> int:
        """Where readahead remembers how it did in a mapping: one of the last ``REMEMBERED`` that were swapped in from
        (``vma->swap_readahead_info``). 0, which is for all, where it goes by slots."""
        if not self._use_vma_readahead():
            return 0
        key = (mm.id, vma.start)
        found = self._by_vma.get(key, 0)
        if not found:
            full = len(self._by_vma) >= REMEMBERED
            found = self._by_vma.pop(next(iter(self._by_vma))) if full else len(self._by_vma) + 1
            self._by_vma[key] = found
            self.windows[found] = 0, 0, FIRST_HITS
        return found

    def _room(self, slots: int) -> Slots:
        """An array for the slots of a window."""
        if len(self._wanted) < slots:
            self._wanted = np.zeros(slots, dtype=np.int64)
        return self._wanted

    def _around_slot(self, slot: int) -> Slots | None:
        """Those of the aligned run of slots around one that are to be read (``swap_cluster_readahead``); None for no
        others."""
        offset = slot & ((1 << SWP_OFFSET_BITS) - 1)
        most = 1 << self._swap.page_cluster
        if most <= 1:
            return None
        previous, pages, hits = self.windows[0].tolist()
        size = swapin_nr_pages(previous, offset, hits, most, pages)
        self.windows[0] = previous if hits else offset, size, 0
        if size == 1:
            return None
        area = self.files.area(slot)
        first = max(offset & -size, 1)
        end = min((offset | (size - 1)) + 1, area.max)
        out = self._room(end - first)
        return out[: self.faults.wanted(area.number, first, end, out)].copy()

    def _around_address(self, row: int, slot: int, mm: Mm, vma: Vma, vpn: int, memory: Memory) -> Slots | None:
        """The slots to be read of entries around one, within the mapping and the page table
        (``swap_vma_readahead``); None for no others."""
        most = 1 << min(self._swap.page_cluster, SWAP_RA_ORDER_CEILING[self._swap.long_bits])
        if most == 1:
            return None
        before, pages, hits = self.windows[row].tolist()
        size = swapin_nr_pages(before, vpn, hits, most, pages)
        self.windows[row] = vpn, size, 0
        if size == 1:
            return None
        if vpn == before + 1:
            low = vpn
        elif before == vpn + 1:
            low = vpn - size + 1
        else:
            low = vpn - (size - 1) // 2
        table = vpn & -(1 << memory.mmu.bits)
        start = max(low, vma.vpn, table)
        end = min(low + size, vma.end >> PAGE_SHIFT, table + (1 << memory.mmu.bits))
        base = memory.mmu.slot(mm.id, vpn) - vpn
        out = self._room(end - start)
        return out[: self.faults.wanted_around(base + start, base + end, out)].copy()

    def read_for_file(self, slot: int) -> tuple[int, bool]:
        """A tmpfs file's page, out of the cache; whether it had to be read (``shmem_swapin_folio``). ENOMEM, EIO."""
        pfn, major = self.lookup(slot), False
        if pfn < 0:
            pfn, major = self.readahead(slot), True
        if pfn < 0:
            raise KernelError(errno.ENOMEM, "no page to read swap into")
        if self._pages.flags[pfn] & _WRITEBACK:
            self.io.wait()
        self._pages.flags[pfn] &= ~_AHEAD
        self.delete_from_swap_cache(np.array([pfn], dtype=np.int64))
        if not self._pages.flags[pfn] & _UPTODATE:
            self.release(np.array([pfn], dtype=np.int64))
            raise KernelError(errno.EIO, "the swap device cannot read the page")
        return pfn, major

    # -- faults ------------------------------------------------------------------------------------------

    def do_swap_page(self, memory: Memory, task: Any, mm: Mm, vma: Vma, vpn: int, entry: int, write: bool) -> None:
        """A fault on an entry that names a slot. ENOMEM; SIGBUS when it cannot be read."""
        if swap_type(entry) == SWP_SWAPIN_ERROR:
            raise Signal(SIGBUS, BUS_ADRERR, vpn << PAGE_SHIFT, write=write)
        assert entry >> SWP_TYPE_SHIFT < MAX_SWAPFILES, "pages are migrated while nobody looks"
        slot = swap_type(entry) << SWP_OFFSET_BITS | swap_offset(entry)
        pfn = self.lookup(slot, mm, vma, vpn)
        if pfn < 0:
            pfn = self.read_for_fault(memory, task, mm, vma, vpn, slot, write=write)
        elif not self._pages.flags[pfn] & _UPTODATE:
            raise Signal(SIGBUS, BUS_ADRERR, vpn << PAGE_SHIFT, write=write)
        if write and not int(self._pages.flags[pfn]) >> PG_LRU & 1:
            self._cache.lru.drain_local()
        cached = bool(int(self._pages.flags[pfn]) >> PG_SWAPCACHE & 1)
        exclusive = bool(entry & SWP_EXCLUSIVE) or not cached
        self.files.free_one(slot)
        if not cached:
            self._forget_unused(np.array([slot], dtype=np.int64))
        if cached and self._should_free_swap(pfn, vma, write=write):
            cached = not self.free_swap(np.array([pfn], dtype=np.int64))[0]
        alone = not cached and not self._pages.mapcount[pfn] and bool(self._pages.flags[pfn] & _LRU)
        self._map(memory, mm, vma, vpn, pfn, entry, exclusive=exclusive or alone, write=write)
        if write and not (exclusive or alone):
            memory.do_wp_page(task, mm, vma, vpn)

    def lost_page(self, slot: int) -> None:
        """Nothing is at a slot any more: a fault took it, or its page does not need it."""
        self.files.unused_one(slot)
        if self._data:
            self._data.pop(slot, None)

    def lost_pages(self, area: SwapArea, offsets: Slots) -> None:
        """``lost_page`` of some slots of an area."""
        self.files.unused(area, offsets)
        self._forget_unused(offsets | area.number << SWP_OFFSET_BITS)

    def read_for_fault(self, memory: Memory, task: Any, mm: Mm, vma: Vma, vpn: int, slot: int, *, write: bool) -> int:
        """The page is not in memory: a major fault. ENOMEM, SIGKILL; SIGBUS when it cannot be read."""
        area = self.files.area(slot)
        if area.synchronous and self.files.count_one(slot) == 1:
            pfns = self._charged(np.array([slot], dtype=np.int64), self._alloc(task, vma, vpn, 1))
            pfn = int(pfns[0]) if len(pfns) else -1
            if pfn >= 0:
                self._pages.flags[pfn] |= _FRESH
                self._refault(np.array([slot], dtype=np.int64), pfns)
                self._cache.lru.add(pfn)
                self._fill(np.array([slot], dtype=np.int64), pfns)
        else:
            pfn = self.readahead(slot, task, mm, vma, vpn, memory)
        if pfn < 0:
            memory.out_of_memory(task)
        self._vmstat.count(stats.PGMAJFAULT)
        task.maj_flt += 1
        if not self._pages.flags[pfn] & _UPTODATE:
            if not self._pages.flags[pfn] & _SWAPCACHE:
                self.release(np.array([pfn], dtype=np.int64))
            raise Signal(SIGBUS, BUS_ADRERR, vpn << PAGE_SHIFT, write=write)
        return pfn

    def _should_free_swap(self, pfn: int, vma: Vma, *, write: bool) -> bool:
        """``should_try_to_free_swap``."""
        if self.files.full or vma.flags & VM_LOCKED:
            return True
        return write and not self._pages.mapcount[pfn] and bool(self._pages.flags[pfn] & _LRU)

    def _map(
        self, memory: Memory, mm: Mm, vma: Vma, vpn: int, pfn: int, entry: int, *, exclusive: bool, write: bool
    ) -> None:
        """The page takes the entry's place."""
        bits = prot_bits(vma.flags, cow=True) | ACCESSED
        if exclusive and write:
            bits |= DIRTY | SOFT_DIRTY | (RW if vma.flags & VM_WRITE else 0)
        if entry & SWP_SOFT_DIRTY:
            bits |= SOFT_DIRTY
        self.map_page(memory, mm, vma, vpn, pfn, bits, exclusive=exclusive)
        memory.mmu.rss_task[mm.id * 4 + MM_ANONPAGES] += 1
        memory.mmu.rss_task[mm.id * 4 + MM_SWAPENTS] -= 1

    def map_page(self, memory: Memory, mm: Mm, vma: Vma, vpn: int, pfn: int, bits: int, *, exclusive: bool) -> None:
        """An anonymous page instead of a swap entry (``page_add_anon_rmap``, ``__page_set_anon_rmap``)."""
        anon = memory.rmap.prepare(mm, vma)
        pages = self._pages
        if pages.mapping[pfn] <= 0:
            while not exclusive and anon.parent is not None:
                anon = anon.parent
            pages.mapping[pfn] = anon.id
            pages.index[pfn] = vma.index_of(vpn)
        if exclusive:
            pages.flags[pfn] |= _EXCLUSIVE
        memory.rmap.map_again(pfn)
        memory.mmu.words[memory.mmu.slot(mm.id, vpn)] = np.uint64(pfn << PFN_SHIFT | bits)
        if vma.flags & VM_LOCKED:
            memory.lru.mlock(np.array([pfn], dtype=np.int64), MLOCK_PAGE)

    # -- proof -------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Slots and pages name each other, and the gauge counts them. AssertionError."""
        self.files.check()
        held, taken = self.files.slots.held(), self.files.in_nobodys_page()
        assert held == taken, f"CPUs keep {held} swap slots, {taken} are in nobody's page"
        total = 0
        for area in self.files.areas:
            offsets = np.flatnonzero(area.cache > 0)
            pfns = area.cache[offsets].astype(np.int64) - 1
            total += len(pfns)
            assert (self._pages.private[pfns] == (offsets | area.number << SWP_OFFSET_BITS)).all(), (
                f"{area.path}: a page of the swap cache has another slot"
            )
            assert (self._pages.flags[pfns] & _SWAPCACHE != 0).all(), f"{area.path}: a cached page lacks PG_swapcache"
        gauge = self._vmstat.node_total(stats.NR_SWAPCACHE)
        assert total == gauge, f"{total} pages are in the swap cache, NR_SWAPCACHE is {gauge}"


def swapin_nr_pages(previous: int, offset: int, hits: int, most: int, last: int) -> int:
    """How many pages to read, from how well the last guess went (``__swapin_nr_pages``)."""
    alone = 2 if abs(offset - previous) == 1 else 1
    pages = max(4, 1 << (hits + 1).bit_length()) if hits else alone
    return max(min(pages, most), last // 2)


def _swapped(entries: Entries) -> Entries:
    """Those of the entries that name slots, and not pages under migration."""
    return entries[entries >> np.uint64(SWP_TYPE_SHIFT) < np.uint64(MAX_SWAPFILES)]
