"""Which of kmemleak's objects an address is in, and the records of all objects (mm/kmemleak.c).

What Linux's red-black tree of objects does, a table over addresses does here, because it neither has to be
sorted for a scan nor rebuilt as it grows: ``_regions`` (a hash, the one part that grows by copying: 16 bytes per
16 MiB of address space), ``_leaf`` (an entry per page of a region) and ``_slots`` (the granules of a page that small
objects share). An entry is the row that covers the whole region, page or granule, or leads to the finer level. A
page's granules are as fine as its objects demand, each belongs to one object at most.

What the mark phase touches lies together, because it jumps about: ``record`` holds per row references found,
references needed, first edge, flags, address and size, ``edge`` offset, value and next. All arrays are zero-filled
memory reserved for a machine of ``pages`` pages, which appears as it is touched; so no operation waits for a copy
unless objects are many more than 64 a page.

Invariants: the address table leads to exactly the live rows, for every byte of each.
"""

from __future__ import annotations

from typing import Any

import cython
import numpy as np

from kmemd.core.array_view import view
from kmemd.core.pages import lazy_zeros

_FIRST_REGIONS = 1024
_ROWS_PER_PAGE, _LEAST_ROWS, _MOST_ROWS = 64, 1 << 14, 1 << 27

_POINTER = cython.declare(cython.int, 2)
_SIZE = cython.declare(cython.int, 3)
_REGION_BITS = cython.declare(cython.int, 24)
_PAGE_BITS = cython.declare(cython.int, 12)
_IN_PAGE = cython.declare(cython.ulonglong, 4095)
_IN_REGION = cython.declare(cython.ulonglong, 0xFFFFFF)
_KIND = cython.declare(cython.int, 31)
_LEAF = cython.declare(cython.int, 1)
_FIB = cython.declare(cython.ulonglong, 0x9E3779B97F4A7C15)
_BATCH = cython.declare(cython.int, 256)


@cython.cclass
class LeakIndex:
    """All tracked objects. ``word`` is the size of a pointer in bytes, ``pages`` that of the machine's memory.

    Columns by row: ``count`` and ``min_count`` (references found in the last scan, and needed), ``first_edge``,
    ``flags`` (0: free row), ``pointer``, ``size``, ``checksum``, ``born`` (jiffies), ``task``, ``stack``, ``fill``,
    ``seq``.
    """

    def __init__(self, word: int = 8, pages: int = 0) -> None:
        self.word = word
        self.live = self.rows = self.lookups = 0
        self._created = self._free_row = 0
        self.areas: dict[int, list[tuple[int, int]]] = {}
        self.excess: dict[int, int] = {}
        self._min_addr = 0xFFFF_FFFF_FFFF_FFFF
        self._max_addr = 0
        self.edges = 0
        self.edge_free = 0
        self._head = self._tail = self._nwords = 0
        self._words = view(np.zeros(_BATCH, np.uint64))
        self._from = view(np.zeros(_BATCH, np.int64))
        self._hits = view(np.zeros(_BATCH, np.int64))
        self._arrays: dict[str, Any] = {}
        capacity = min(max(_ROWS_PER_PAGE * pages, _LEAST_ROWS), _MOST_ROWS)
        self._resize_rows(capacity)
        self._edge = self._room("edge", "uint64", 3 * capacity)
        self._queue = self._room("queue", "int32", capacity)
        self._nleaves, self._nslots, self._nregions = 0, 1, 0
        self._leaf = self._room("leaf", "int64", max(2 * pages, 64 << _PAGE_BITS))
        self._slots = self._room("slots", "int32", 2 * capacity)
        self._spare = view(np.zeros(_PAGE_BITS, np.int64))
        self._resize_regions(_FIRST_REGIONS)

    # -- storage -----------------------------------------------------------------------------------------------

    def _room(self, name: str, dtype: str, capacity: int) -> Any:
        """The array ``name`` with room for ``capacity`` elements, its old ones kept."""
        old = self._arrays.get(name)
        array = lazy_zeros(capacity, dtype)
        if old is not None:
            array[: len(old)] = old
        self._arrays[name] = array
        if name == "edge":
            self.edge = array
        return view(array)

    def _resize_rows(self, capacity: int) -> None:
        """Make room for ``capacity`` rows."""
        self._record = self._room("record", "int32", 8 * capacity)
        record = self.record = self._arrays["record"]
        wide = record.view(np.uint64)
        self._wide = view(wide)
        self.count, self.min_count, self.first_edge, self.flags = (record[word::8] for word in range(4))
        self.pointer, self.size = wide[_POINTER::4], record.view(np.int64)[_SIZE::4]
        self._checksum = self._room("checksum", "uint32", capacity)
        self._born = self._room("born", "int64", capacity)
        self._task = self._room("task", "int32", capacity)
        self._stack = self._room("stack", "uint32", capacity)
        self._fill = self._room("fill", "uint16", capacity)
        self._seq = self._room("seq", "int64", capacity)
        self.checksum, self.born, self.task = (self._arrays[name] for name in ("checksum", "born", "task"))
        self.stack, self.fill, self.seq = (self._arrays[name] for name in ("stack", "fill", "seq"))

    def _resize_regions(self, capacity: int) -> None:
        """Make room for ``capacity`` (a power of two) regions."""
        old = self._arrays.get("regions")
        self._arrays["regions"] = np.zeros(2 * capacity, np.uint64)
        self._regions = view(self._arrays["regions"])
        self._region_mask = capacity - 1
        self._region_shift = 64 - (capacity - 1).bit_length()
        if old is not None:
            for key, entry in old.reshape(-1, 2)[old[0::2] != 0].tolist():
                place = _region(self, key - 1)
                self._regions[place] = key
                self._regions[place + 1] = entry

    # -- look-up -----------------------------------------------------------------------------------------------

    @cython.final
    @cython.cfunc
    def _enter_region(self, number: cython.ulonglong) -> cython.longlong:
        """The place of a region in the hash, put in if it is new."""
        place: cython.longlong = _region(self, number)
        if self._regions[place] == 0:
            if 2 * self._nregions > self._region_mask:
                self._resize_regions(2 * (self._region_mask + 1))
                place = _region(self, number)
            self._nregions += 1
            self._regions[place] = number + 1
        return place

    @cython.ccall
    def find(self, pointer: cython.ulonglong) -> cython.longlong:
        """The row of the object that begins at ``pointer``, or -1."""
        row: cython.longlong = _holder(self, pointer)
        return row if row >= 0 and self._wide[4 * row + _POINTER] == pointer else -1

    @cython.ccall
    def find_containing(self, address: cython.ulonglong) -> cython.longlong:
        """The row of the object that ``address`` lies in, or -1 (``lookup_object(ptr, 1)``)."""
        row: cython.longlong = _holder(self, address)
        return row if row >= 0 and _within(self, row, address) else -1

    @cython.cfunc
    @cython.exceptval(check=False)
    def _find_words(self, n: cython.longlong) -> cython.void:
        """Rows that hold the first ``n`` words gathered, -1 for none, in ``_hits``.

        Passes of independent loads, so that cache misses overlap.
        """
        i: cython.longlong
        row: cython.longlong
        for i in range(n):
            self._hits[i] = _holder(self, self._words[i])
        for i in range(n):
            row = self._hits[i]
            if row >= 0 and not _within(self, row, self._words[i]):
                self._hits[i] = -1

    # -- entries -----------------------------------------------------------------------------------------------

    @cython.final
    @cython.cfunc
    def _cover(self, row: cython.longlong, start: cython.ulonglong, end: cython.ulonglong) -> cython.bint:
        """Enter ``[start, end)`` for a row. False when part of it is another's: nothing is entered then."""
        at: cython.ulonglong = start
        reached: cython.ulonglong
        while at < end:
            reached = self._cover_piece(row, at, end)
            if reached == at:
                self._uncover(start, at)
                return False
            at = reached
        return True

    @cython.final
    @cython.cfunc
    def _cover_piece(self, row: cython.longlong, at: cython.ulonglong, end: cython.ulonglong) -> cython.ulonglong:
        """Enter the region, page or part of a page that begins at ``at``. Its end, or ``at`` when it is taken."""
        place: cython.longlong = self._enter_region(at >> _REGION_BITS)
        entry: cython.longlong = cython.cast(cython.longlong, self._regions[place + 1])
        page: cython.longlong
        page_end: cython.ulonglong = (at | _IN_PAGE) + 1
        if entry == 0:
            if at & _IN_REGION == 0 and end - at > _IN_REGION:
                self._regions[place + 1] = cython.cast(cython.ulonglong, (row + 1) << 5 | _REGION_BITS)
                return at + _IN_REGION + 1
            entry = self._new_leaf() << 5 | _LEAF
            self._regions[place + 1] = cython.cast(cython.ulonglong, entry)
        elif entry & _KIND != _LEAF:
            return at
        page = (entry >> 5 << _PAGE_BITS) + cython.cast(cython.longlong, at >> _PAGE_BITS & _IN_PAGE)
        if page_end > end:
            page_end = end
        if page_end - at <= _IN_PAGE:
            return page_end if self._cover_part(row, page, at, page_end) else at
        if self._leaf[page]:
            return at
        self._leaf[page] = (row + 1) << 5 | _PAGE_BITS
        return page_end

    @cython.final
    @cython.cfunc
    def _cover_part(
        self, row: cython.longlong, page: cython.longlong, at: cython.ulonglong, end: cython.ulonglong
    ) -> cython.bint:
        """Enter a part of a page, in granules no other object has; they are made finer as long as that helps."""
        shift: cython.int
        base: cython.longlong
        first: cython.longlong
        last: cython.longlong
        slot: cython.longlong
        if self._leaf[page] == 0:
            shift = 0
            while shift < _PAGE_BITS - 1 and (end - at) >> (shift + 1):
                shift += 1
            self._leaf[page] = self._new_slots(shift) << 5 | shift
        elif self._leaf[page] & _KIND == _PAGE_BITS:
            return False
        while True:
            shift = self._leaf[page] & _KIND
            base = self._leaf[page] >> 5
            first = base + 1 + cython.cast(cython.longlong, (at & _IN_PAGE) >> shift)
            last = base + 1 + cython.cast(cython.longlong, (end - 1 & _IN_PAGE) >> shift)
            slot = first
            while slot <= last and self._slots[slot] == 0:
                slot += 1
            if slot > last:
                break
            if shift == 0 or self._overlaps(self._slots[slot] - 1, at, end):
                return False
            self._refine(page, at, end)
        for slot in range(first, last + 1):
            self._slots[slot] = cython.cast(cython.int, row + 1)
        self._slots[base] += 1
        return True

    @cython.final
    @cython.cfunc
    def _overlaps(self, row: cython.longlong, at: cython.ulonglong, end: cython.ulonglong) -> cython.bint:
        return at < self._end(row) and end > self._wide[4 * row + _POINTER]

    @cython.final
    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _end(self, row: cython.longlong) -> cython.ulonglong:
        """The first byte behind an object; one of no size takes up a byte."""
        size: cython.ulonglong = self._wide[4 * row + _SIZE]
        return self._wide[4 * row + _POINTER] + (size if size else 1)

    @cython.final
    @cython.cfunc
    def _refine(self, page: cython.longlong, at: cython.ulonglong, end: cython.ulonglong) -> cython.void:
        """Divide a page into granules fine enough for ``[at, end)``, as far as its alignment tells."""
        entry: cython.longlong = self._leaf[page]
        old: cython.int = entry & _KIND
        shift: cython.int = 0
        base: cython.longlong
        slot: cython.longlong
        row: cython.longlong = 0
        start: cython.ulonglong
        stop: cython.ulonglong
        first: cython.ulonglong = at - (at & _IN_PAGE)
        while shift < old - 1 and not (at | end) >> shift & 1:
            shift += 1
        base = self._new_slots(shift)
        self._slots[base] = self._slots[entry >> 5]
        for slot in range((entry >> 5) + 1, (entry >> 5) + 1 + (4096 >> old)):
            if self._slots[slot] == 0 or self._slots[slot] == row:
                continue
            row = self._slots[slot]
            start = self._wide[4 * (row - 1) + _POINTER]
            start = 0 if start < first else start - first
            stop = self._end(row - 1) - first
            stop = (4095 if stop > 4096 else stop - 1) >> shift
            start >>= shift
            while start <= stop:
                self._slots[base + 1 + cython.cast(cython.longlong, start)] = cython.cast(cython.int, row)
                start += 1
        self._drop_slots(entry)
        self._leaf[page] = base << 5 | shift

    @cython.final
    @cython.cfunc
    def _new_leaf(self) -> cython.longlong:
        """Entries for the pages of a region, all empty."""
        if (self._nleaves + 1) << _PAGE_BITS > self._leaf.shape[0]:
            self._leaf = self._room("leaf", "int64", 2 * self._leaf.shape[0])
        self._nleaves += 1
        return self._nleaves - 1

    @cython.final
    @cython.cfunc
    def _new_slots(self, shift: cython.int) -> cython.longlong:
        """A page's slots for granules of ``1 << shift`` bytes, all empty, behind the number of objects in it."""
        base: cython.longlong = self._spare[shift]
        if base:
            self._spare[shift] = self._slots[base]
            self._slots[base] = 0
            return base
        if self._nslots + (4096 >> shift) + 1 > self._slots.shape[0]:
            self._slots = self._room("slots", "int32", 2 * self._slots.shape[0])
        base = self._nslots
        self._nslots += (4096 >> shift) + 1
        return base

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _drop_slots(self, entry: cython.longlong) -> cython.void:
        base: cython.longlong = entry >> 5
        slot: cython.longlong
        for slot in range(base + 1, base + 1 + (4096 >> (entry & _KIND))):
            self._slots[slot] = 0
        self._slots[base] = cython.cast(cython.int, self._spare[entry & _KIND])
        self._spare[entry & _KIND] = base

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _uncover(self, start: cython.ulonglong, end: cython.ulonglong) -> cython.void:
        """Take out ``[start, end)``, which one row has entered."""
        at: cython.ulonglong = start
        stop: cython.ulonglong
        place: cython.longlong
        page: cython.longlong
        entry: cython.longlong
        slot: cython.longlong
        while at < end:
            place = _region(self, at >> _REGION_BITS)
            entry = cython.cast(cython.longlong, self._regions[place + 1])
            if entry & _KIND != _LEAF:
                self._regions[place + 1] = 0
                at += _IN_REGION + 1
                continue
            page = (entry >> 5 << _PAGE_BITS) + cython.cast(cython.longlong, at >> _PAGE_BITS & _IN_PAGE)
            entry = self._leaf[page]
            stop = min((at | _IN_PAGE) + 1, end)
            if entry & _KIND != _PAGE_BITS:
                slot = (entry >> 5) + 1 + cython.cast(cython.longlong, (at & _IN_PAGE) >> (entry & _KIND))
                place = (entry >> 5) + 1 + cython.cast(cython.longlong, (stop - 1 & _IN_PAGE) >> (entry & _KIND))
                while slot <= place:
                    self._slots[slot] = 0
                    slot += 1
                self._slots[entry >> 5] -= 1
                if self._slots[entry >> 5] == 0:
                    self._drop_slots(entry)
                    self._leaf[page] = 0
            else:
                self._leaf[page] = 0
            at = stop

    # -- checks ------------------------------------------------------------------------------------------------

    def covered(self) -> int:
        """How many rows the table over addresses leads to."""
        leaf, slots = self._arrays["leaf"][: self._nleaves << _PAGE_BITS], self._arrays["slots"]
        regions = self._arrays["regions"][1::2].astype(np.int64)
        found = set((regions[regions & _KIND == _REGION_BITS] >> 5).tolist())
        found.update((leaf[leaf & _KIND == _PAGE_BITS] >> 5).tolist())
        for entry in leaf[(leaf != 0) & (leaf & _KIND < _PAGE_BITS)].tolist():
            inside = set(slots[(entry >> 5) + 1 : (entry >> 5) + 1 + (4096 >> (entry & _KIND))].tolist()) - {0}
            assert len(inside) == slots[entry >> 5], f"a page has {len(inside)} objects, not {slots[entry >> 5]}"
            found |= inside
        return len(found)


# Not methods: one that a .pxd declares is not inlined.


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _region(index: LeakIndex, number: cython.ulonglong) -> cython.longlong:
    """Where in the hash the region is, or the empty place where it would go."""
    mixed: cython.ulonglong = number * _FIB
    if not cython.compiled:
        mixed &= 0xFFFF_FFFF_FFFF_FFFF
    place: cython.longlong = cython.cast(cython.longlong, mixed >> index._region_shift)
    while index._regions[2 * place] != 0 and index._regions[2 * place] != number + 1:
        place = (place + 1) & index._region_mask
    return 2 * place


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _holder(index: LeakIndex, address: cython.ulonglong) -> cython.longlong:
    """The row of the one object that may hold ``address``, or -1."""
    entry: cython.longlong = cython.cast(cython.longlong, index._regions[_region(index, address >> _REGION_BITS) + 1])
    if entry & _KIND == _LEAF:
        entry = index._leaf[(entry >> 5 << _PAGE_BITS) + cython.cast(cython.longlong, address >> _PAGE_BITS & _IN_PAGE)]
        if entry & _KIND < _PAGE_BITS and entry:
            return (
                index._slots[(entry >> 5) + 1 + cython.cast(cython.longlong, (address & _IN_PAGE) >> (entry & _KIND))]
                - 1
            )
    return (entry >> 5) - 1


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _within(index: LeakIndex, row: cython.longlong, address: cython.ulonglong) -> cython.bint:
    start: cython.ulonglong = index._wide[4 * row + _POINTER]
    return address == start or (address > start and address - start < index._wide[4 * row + _SIZE])
