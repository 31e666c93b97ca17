"""Faults on pages that swap holds (mm/memory.c ``do_swap_page``, mm/swap_state.c ``swap_cache_get_folio``).

Models what a fault does with a page of the swap cache: readahead's hits, the slot's count, taking the slot away when
swap is full or the page is written to, the entry. ``handle`` is called by core/faults.py; what it leaves to Python is
reading pages (``read``), giving slots back (``freed``) and all that ``handle`` refuses: locked mappings, pages that
could not be read, pages that have to be copied. ``enter`` puts pages that are about to be read into the cache.

A slot is ``type << 50 | offset``; an area has two arrays, ``count`` and ``cache`` (mm/swap_area.py).
"""

from typing import Any

import cython

from kmemd.core.array_view import view
from kmemd.core.page_arrays import PageArrays

PREVIOUS, PAGES, HITS = range(3)
"""Columns of ``windows``: the last page or slot that was asked for, how many were read, how many of them were used."""
HITS_MOST = 0x3F
FREE, TOTAL = range(2)
"""Of the words that say how full swap is: free slots, and slots of all areas that may be written to."""

_WRITE = cython.declare(cython.int, 1)
_ANON = cython.declare(cython.int, 1)
_SWAPENTS = cython.declare(cython.int, 2)
_EXEC_ROW = cython.declare(cython.longlong, 4)
_LOCKED_ROW = cython.declare(cython.longlong, 32)
_WRITE_ROW = cython.declare(cython.longlong, 2)
_TYPE_SHIFT = cython.declare(cython.int, 59)
_OFFSET_SHIFT = cython.declare(cython.int, 9)
_OFFSET_BITS = cython.declare(cython.int, 50)
_OFFSET_MASK = cython.declare(cython.ulonglong, (1 << 50) - 1)
_MAX_SWAPFILES = cython.declare(cython.ulonglong, 23)
_SWP_SOFT_DIRTY = cython.declare(cython.ulonglong, 1 << 1)
_SWP_EXCLUSIVE = cython.declare(cython.ulonglong, 1 << 3)
_RW = cython.declare(cython.ulonglong, 2)
_ACCESSED = cython.declare(cython.ulonglong, 1 << 5)
_DIRTY = cython.declare(cython.ulonglong, 1 << 6)
_SOFT_DIRTY = cython.declare(cython.ulonglong, 1 << 11)
_NX = cython.declare(cython.ulonglong, 1 << 63)

_RESERVED = cython.declare(cython.int, -1)  # in an area's ``cache``: taken, and in nobody's page

_UPTODATE = cython.declare(cython.uint, 1 << 2)
_PG_DIRTY = cython.declare(cython.uint, 1 << 3)
_LRU = cython.declare(cython.uint, 1 << 4)
_SWAPCACHE = cython.declare(cython.uint, 1 << 10)
_WRITEBACK = cython.declare(cython.uint, 1 << 15)
_EXCLUSIVE = cython.declare(cython.uint, 1 << 17)
_RECLAIM = cython.declare(cython.uint, 1 << 18)
_FRESH = cython.declare(cython.uint, 1 << 2 | 1 << 19)  # uptodate, swapbacked

_S_SWAP_FAULT = cython.declare(cython.int, 15)
_S_CACHE_HIT = cython.declare(cython.int, 16)


@cython.final
@cython.cclass
class SwapFaults(PageArrays):
    """Faults of one machine. ``items`` are the numbers of NR_ANON_MAPPED, NR_FILE_PAGES, NR_SWAPCACHE and of the event
    SWAP_RA_HIT; ``full`` holds ``FREE`` and ``TOTAL``; ``windows`` rows of readahead, row 0 that of slots.

    ``mapping(row)`` gives ``(row of windows, root anon_vma)`` of a row of the table of mappings; ``freed(slot)`` hears
    of a slot that has no page any more; ``read(row, vpn, slot, write)`` counts the fault and gives the page of a slot
    that was read, or -1 to leave the fault alone.
    """

    mapping = cython.declare(object, visibility="public")
    read = cython.declare(object, visibility="public")
    freed = cython.declare(object, visibility="public")
    _mmu: Any
    _lru: Any
    _areas: dict
    _words: cython.ulonglong[::1]
    _rss_task: cython.longlong[::1]
    _stats: cython.longlong[::1]
    _full: cython.longlong[::1]
    _windows: cython.longlong[:, ::1]
    _count: cython.int[::1]
    _cache: cython.int[::1]
    _type: cython.longlong
    _window: cython.longlong
    _root: cython.int
    _nr_anon: cython.int
    _nr_pages: cython.int
    _nr_cache: cython.int
    _ra_hit: cython.int

    def __init__(
        self, mmu: Any, pages: Any, zones: Any, vmstat: Any, lru: Any, items: Any, full: Any, windows: Any
    ) -> None:
        self._mmu, self._lru = mmu, lru
        self._areas = {}
        self._words, self._rss_task, self._stats = view(mmu.words), view(mmu.rss_task), view(mmu.stats)
        super().__init__(pages, zones, vmstat)
        self._nr_anon, self._nr_pages, self._nr_cache, self._ra_hit = items
        self._full, self._windows = view(full), view(windows)
        self._type = -1
        self._window, self._root = 0, 0

    def add_area(self, number: int, count: Any, cache: Any) -> None:
        """An area of this type is on from now on."""
        self._areas[number] = (view(count), view(cache))
        self._type = -1

    def forget_areas(self) -> None:
        """No area is on."""
        self._areas.clear()
        self._type = -1

    @cython.cfunc
    def _use(self, number: cython.longlong) -> cython.bint:
        """Turn to the area of a type; whether there is one."""
        if number == self._type:
            return True
        found: Any = self._areas.get(number)
        if found is None:
            return False
        self._count, self._cache = found
        self._type = number
        return True

    # -- faults --------------------------------------------------------------------------------------------

    def handle(
        self,
        mm: cython.int,
        row: cython.longlong,
        vpn: cython.longlong,
        at: cython.longlong,
        op: cython.int,
        kind: cython.longlong,
        anon: cython.int,
        index: cython.longlong,
        prot: cython.ulonglong,
        fresh: cython.bint,
    ) -> bool:
        """A fault on the swap entry in ``words[at]``, in a private anonymous mapping whose flags, anon_vma, page index
        and protection are given; ``fresh``: the row is another one than last time. Whether the entry maps a page now.
        """
        entry: cython.ulonglong = self._words[at]
        number: cython.ulonglong = entry >> _TYPE_SHIFT
        offset: cython.longlong = cython.cast(cython.longlong, (~entry >> _OFFSET_SHIFT) & _OFFSET_MASK)
        slot: cython.longlong
        pfn: cython.longlong
        if kind & _LOCKED_ROW or number >= _MAX_SWAPFILES or not self._use(cython.cast(cython.longlong, number)):
            return False
        if offset >= self._cache.shape[0]:
            return False
        slot = cython.cast(cython.longlong, number) << _OFFSET_BITS | offset
        pfn = cython.cast(cython.longlong, self._cache[offset]) - 1
        if pfn >= 0 and not self._may_map(pfn, offset, entry, op):
            return False
        if pfn < 0 and op == _WRITE and not entry & _SWP_EXCLUSIVE and self._count[offset] != 1:
            return False
        if fresh:
            self._window, self._root = self.mapping(row)
        if pfn < 0:
            pfn = self.read(row, vpn, slot, op == _WRITE)
            if pfn < 0:
                return False
            self._use(cython.cast(cython.longlong, number))
            if op == _WRITE and not self._flags[pfn] & _LRU:
                self._lru.drain_local()
        else:
            self._mmu.count_fault(mm)
            self._stats[_S_SWAP_FAULT] += 1
            self._stats[_S_CACHE_HIT] += 1
            self._hit(pfn, vpn)
        self._map(mm, pfn, at, slot, entry, op, kind, anon, index, prot)
        return True

    @cython.cfunc
    @cython.exceptval(check=False)
    def _may_map(
        self, pfn: cython.longlong, offset: cython.longlong, entry: cython.ulonglong, op: cython.int
    ) -> cython.bint:
        """Whether a page of the cache needs no more than its entry: it was read, and nobody has to copy it."""
        flags: cython.uint = self._flags[pfn]
        if not flags & _UPTODATE:
            return False
        if op != _WRITE:
            return True
        if not flags & _LRU:
            return False
        return entry & _SWP_EXCLUSIVE != 0 or (
            not self._mapcount[pfn] and self._count[offset] == 1 and not flags & _WRITEBACK
        )

    @cython.cfunc
    @cython.exceptval(check=False)
    def _hit(self, pfn: cython.longlong, vpn: cython.longlong) -> cython.void:
        """Readahead learns from a page that was found (swap_cache_get_folio).

        PG_readahead is PG_reclaim: a page that is being written for reclaim is a hit too, and is not rotated then.
        """
        flags: cython.uint = self._flags[pfn]
        ahead: cython.int = 1 if flags & _RECLAIM else 0
        window: cython.longlong = self._window
        if ahead:
            self._flags[pfn] = flags & ~_RECLAIM
            self._events[self._ra_hit] += 1
        if not window:
            self._windows[0, 2] += ahead
            return
        self._windows[window, 0] = vpn
        self._windows[window, 2] = min(self._windows[window, 2] + ahead, 0x3F)

    @cython.cfunc
    def _map(
        self,
        mm: cython.int,
        pfn: cython.longlong,
        at: cython.longlong,
        slot: cython.longlong,
        entry: cython.ulonglong,
        op: cython.int,
        kind: cython.longlong,
        anon: cython.int,
        index: cython.longlong,
        prot: cython.ulonglong,
    ) -> object:
        """The page takes the entry's place, and loses its slot where that is of no more use."""
        offset: cython.longlong = slot & cython.cast(cython.longlong, _OFFSET_MASK)
        exclusive: cython.bint = entry & _SWP_EXCLUSIVE != 0
        flags: cython.uint = self._flags[pfn]
        bits: cython.ulonglong
        self._count[offset] -= 1
        if not flags & _SWAPCACHE:
            exclusive = True
            if not self._count[offset]:
                self._cache[offset] = _RESERVED
                self.freed(slot)
        elif self._should_free(pfn, flags, op) and not self._count[offset] and not flags & _WRITEBACK:
            self._free_swap(pfn, offset)
            self.freed(slot)
            if not self._mapcount[pfn] and flags & _LRU:
                exclusive = True
        bits = (prot & ~_RW) | (0 if kind & _EXEC_ROW else _NX) | _ACCESSED
        if exclusive and op == _WRITE:
            bits |= _DIRTY | _SOFT_DIRTY | (_RW if kind & _WRITE_ROW else 0)
        if entry & _SWP_SOFT_DIRTY:
            bits |= _SOFT_DIRTY
        if self._mapping[pfn] <= 0:
            self._mapping[pfn] = anon if exclusive else self._root
            self._index[pfn] = index
        if exclusive:
            self._flags[pfn] |= _EXCLUSIVE
        self._mapcount[pfn] += 1
        if self._mapcount[pfn] == 1:
            self._node_stat[self._nid_of(pfn), self._nr_anon] += 1
        self._words[at] = cython.cast(cython.ulonglong, pfn) << 12 | bits
        self._rss_task[mm * 4 + _ANON] += 1
        self._rss_task[mm * 4 + _SWAPENTS] -= 1
        return None

    @cython.cfunc
    @cython.exceptval(check=False)
    def _should_free(self, pfn: cython.longlong, flags: cython.uint, op: cython.int) -> cython.bint:
        """Whether the slot is wanted for others, or the page is about to differ from it (should_try_to_free_swap)."""
        if self._full[0] * 2 < self._full[1]:
            return True
        return op == _WRITE and not self._mapcount[pfn] and flags & _LRU != 0

    @cython.cfunc
    @cython.exceptval(check=False)
    def _free_swap(self, pfn: cython.longlong, offset: cython.longlong) -> cython.void:
        """A page leaves the cache, dirty (folio_free_swap)."""
        nid: cython.longlong = self._nid_of(pfn)
        self._flags[pfn] = (self._flags[pfn] & ~_SWAPCACHE) | _PG_DIRTY
        self._private[pfn] = 0
        self._cache[offset] = _RESERVED
        self._node_stat[nid, self._nr_pages] -= 1
        self._node_stat[nid, self._nr_cache] -= 1

    # -- swapoff -------------------------------------------------------------------------------------------

    def unuse(
        self,
        vpns: cython.longlong[::1],
        at: tuple,
        inside: tuple,
        window: cython.longlong,
        anon: tuple,
        bits: cython.ulonglong,
        freed: cython.longlong[::1],
    ) -> tuple:
        """Map pages of the cache instead of entries that name them, as swapoff does (unuse_pte), up to the first whose
        page has to be read or waited for, or is not ``inside`` of ``(first, end)``.

        ``at`` is ``(type of the area, index in words of page number 0, bits of a table)``; ``anon`` the mapping's
        ``(anon_vma, its root, page index of page number 0)``. How many entries are done with, how many pages were
        mapped, and how many slots in ``freed`` have no page any more, which are still marked as taken.
        """
        number: cython.longlong = at[0]
        base: cython.longlong = at[1]
        table: cython.longlong = vpns[0] >> cython.cast(cython.int, at[2])
        shift: cython.int = at[2]
        first: cython.longlong = inside[0]
        end: cython.longlong = inside[1]
        mine: cython.int = anon[0]
        root: cython.int = anon[1]
        index: cython.longlong = anon[2]
        i: cython.Py_ssize_t
        mapped: cython.longlong = 0
        lost: cython.longlong = 0
        vpn: cython.longlong
        offset: cython.longlong
        pfn: cython.longlong
        entry: cython.ulonglong
        if not self._use(number):
            return 0, 0, 0
        self._window = window
        for i in range(vpns.shape[0]):
            vpn = vpns[i]
            if vpn < first or vpn >= end or vpn >> shift != table:
                return i, mapped, lost
            entry = self._words[base + vpn]
            if not entry or entry & (1 | 1 << 8) or cython.cast(cython.longlong, entry >> _TYPE_SHIFT) != number:
                continue
            offset = cython.cast(cython.longlong, (~entry >> _OFFSET_SHIFT) & _OFFSET_MASK)
            pfn = cython.cast(cython.longlong, self._cache[offset]) - 1
            if pfn < 0 or self._flags[pfn] & (_UPTODATE | _SWAPCACHE | _WRITEBACK) != _UPTODATE | _SWAPCACHE:
                return i, mapped, lost
            self._hit(pfn, vpn)
            self._map_old(pfn, base + vpn, mine if entry & _SWP_EXCLUSIVE else root, index + vpn, entry, bits)
            mapped += 1
            self._count[offset] -= 1
            if not self._count[offset]:
                self._free_swap(pfn, offset)
                freed[lost] = offset
                lost += 1
        return vpns.shape[0], mapped, lost

    @cython.cfunc
    @cython.exceptval(check=False)
    def _map_old(
        self,
        pfn: cython.longlong,
        at: cython.longlong,
        owner: cython.int,
        index: cython.longlong,
        entry: cython.ulonglong,
        bits: cython.ulonglong,
    ) -> cython.void:
        """A page takes the place of an entry, not accessed and read-only."""
        if self._mapping[pfn] <= 0:
            self._mapping[pfn] = owner
            self._index[pfn] = index
        if entry & _SWP_EXCLUSIVE:
            self._flags[pfn] |= _EXCLUSIVE
        self._mapcount[pfn] += 1
        if self._mapcount[pfn] == 1:
            self._node_stat[self._nid_of(pfn), self._nr_anon] += 1
        if entry & _SWP_SOFT_DIRTY:
            bits |= _SOFT_DIRTY
        self._words[at] = cython.cast(cython.ulonglong, pfn) << 12 | bits

    # -- reading -------------------------------------------------------------------------------------------

    def wanted(
        self, number: cython.longlong, first: cython.longlong, end: cython.longlong, out: cython.longlong[::1]
    ) -> int:
        """The slots ``[first, end)`` of an area that something refers to and that have no page: how many in ``out``."""
        offset: cython.longlong
        n: cython.int = 0
        if not self._use(number):
            return 0
        for offset in range(first, end):
            if self._count[offset] > 0 and self._cache[offset] <= 0:
                out[n] = number << _OFFSET_BITS | offset
                n += 1
        return n

    def wanted_around(self, start: cython.longlong, end: cython.longlong, out: cython.longlong[::1]) -> int:
        """The slots without a page that the entries ``words[start:end]`` name: how many in ``out``."""
        at: cython.longlong
        n: cython.int = 0
        entry: cython.ulonglong
        offset: cython.longlong
        for at in range(start, end):
            entry = self._words[at]
            if not entry or entry & (1 | 1 << 8) or entry >> _TYPE_SHIFT >= _MAX_SWAPFILES:
                continue
            offset = cython.cast(cython.longlong, (~entry >> _OFFSET_SHIFT) & _OFFSET_MASK)
            if self._use(cython.cast(cython.longlong, entry >> _TYPE_SHIFT)) and self._cache[offset] <= 0:
                out[n] = cython.cast(cython.longlong, entry >> _TYPE_SHIFT) << _OFFSET_BITS | offset
                n += 1
        return n

    def enter(self, pfns: cython.longlong[::1], slots: cython.longlong[::1]) -> None:
        """New pages are in the cache under their slots, to be read into (add_to_swap_cache)."""
        i: cython.Py_ssize_t
        pfn: cython.longlong
        nid: cython.longlong
        for i in range(pfns.shape[0]):
            pfn = pfns[i]
            self._use(slots[i] >> _OFFSET_BITS)
            self._cache[slots[i] & cython.cast(cython.longlong, _OFFSET_MASK)] = cython.cast(cython.int, pfn + 1)
            self._flags[pfn] |= _SWAPCACHE | _FRESH
            self._mapping[pfn] = 0
            self._private[pfn] = slots[i]
            nid = self._nid_of(pfn)
            self._node_stat[nid, self._nr_pages] += 1
            self._node_stat[nid, self._nr_cache] += 1

    def ahead(self, pfns: cython.longlong[::1], slots: cython.longlong[::1], target: cython.longlong) -> int:
        """Mark pages as read ahead, but that for the slot ``target``. How many."""
        i: cython.Py_ssize_t
        n: cython.int = 0
        for i in range(pfns.shape[0]):
            if slots[i] != target:
                self._flags[pfns[i]] |= _RECLAIM
                n += 1
        return n
