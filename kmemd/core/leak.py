"""kmemleak's objects, the pointers stored in them, and the mark phase over both (mm/kmemleak.c).

An object is a row of the arrays; rows of freed objects are used again, and ``seq`` numbers the objects in the
order of creation (Linux's ``object_list``). Stored pointers are *edges*: per object a chain ordered by
descending offset.

What Linux's red-black tree of objects does, a table over addresses does here, because it neither has to be
sorted for a scan nor rebuilt as it grows: ``_regions`` (a hash, the one part that grows by copying: 16 bytes per
16 MiB of address space), ``_leaf`` (an entry per page of a region) and ``_slots`` (the granules of a page that small
objects share). An entry is the row that covers the whole region, page or granule, or leads to the finer level. A
page's granules are as fine as its objects demand, each belongs to one object at most.

What the mark phase touches lies together, because it jumps about: ``record`` holds per row references found,
references needed, first edge, flags, address and size, ``edge`` offset, value and next. All arrays are zero-filled
memory reserved for a machine of ``pages`` pages, which appears as it is touched; so no operation waits for a copy
unless objects are many more than 64 a page.

Left out: RCU, locks, ``scan_block``'s chunks, physical-address objects (nothing here makes one).

Invariants: the address table leads to exactly the live rows, for every byte of each; ``live`` counts them; a live
row's flags have ALLOCATED, a free row's are 0; an edge is on the chain of one live row, or free.
``debug.leak_sweep.check`` proves it.
"""

from __future__ import annotations

from typing import Any

import cython
import numpy as np
import numpy.typing as npt

from kmemd.core.pages import lazy_zeros

Words = npt.NDArray[np.uint64]
Column = npt.NDArray[Any]

# Object flags as in mm/kmemleak.c; above them two of our own, for scan areas and a surplus reference.
OBJECT_ALLOCATED, OBJECT_REPORTED, OBJECT_NO_SCAN, OBJECT_FULL_SCAN = 1, 2, 4, 8
LINUX_FLAGS = 0x1F
GREY, BLACK = 0, -1

_ALLOCATED = cython.declare(cython.int, 1)
_NO_SCAN = cython.declare(cython.int, 4)
_AREAS = cython.declare(cython.int, 32)
_HAS_EXCESS = cython.declare(cython.int, 64)
_SPECIAL = cython.declare(cython.int, 96)

# a record: eight words of 32 bits, or four of 64; a free row's first edge is the next free row + 1
_COUNT = cython.declare(cython.int, 0)
_NEEDED = cython.declare(cython.int, 1)
_EDGE = cython.declare(cython.int, 2)
_FLAGS = cython.declare(cython.int, 3)
_POINTER = cython.declare(cython.int, 2)
_SIZE = cython.declare(cython.int, 3)

# Contents of an object: the byte it was filled with; POISON_LAST: the last byte is POISON_END
POISON_BYTE = 0x6B
POISON_END = 0xA5
POISON_LAST = 0x100

# entries of the address table: a number << 5 | what it is: the bits of the granule, or of what a row covers
_REGION_BITS = cython.declare(cython.int, 24)
_PAGE_BITS = cython.declare(cython.int, 12)
_IN_PAGE = cython.declare(cython.ulonglong, 4095)
_IN_REGION = cython.declare(cython.ulonglong, 0xFFFFFF)
_KIND = cython.declare(cython.int, 31)
_LEAF = cython.declare(cython.int, 1)

_FIB = cython.declare(cython.ulonglong, 0x9E3779B97F4A7C15)
_FIRST_REGIONS = 1024
_ROWS_PER_PAGE, _LEAST_ROWS, _MOST_ROWS = 64, 1 << 14, 1 << 27
_BATCH = cython.declare(cython.int, 256)


def _view(array: Any) -> Any:
    """Uncompiled, a memoryview gives Python ints, which neither wrap nor warn as numpy scalars do."""
    return array if cython.compiled else memoryview(array)


@cython.cclass
class LeakTable:
    """All tracked objects. ``word`` is the size of a pointer in bytes, ``pages`` that of the machine's memory.

    Columns by row: ``count`` and ``min_count`` (references found in the last scan, and needed), ``first_edge``,
    ``flags`` (0: free row), ``pointer``, ``size``, ``checksum``, ``born`` (jiffies), ``task``, ``stack``, ``fill``,
    ``seq``.
    """

    live = cython.declare(cython.longlong, visibility="readonly")
    rows = cython.declare(cython.longlong, visibility="readonly")
    word = cython.declare(cython.int, visibility="readonly")
    areas = cython.declare(dict, visibility="readonly")
    excess = cython.declare(dict, visibility="readonly")
    lookups = cython.declare(cython.longlong, visibility="readonly")
    edges = cython.declare(cython.longlong, visibility="readonly")
    edge_free = cython.declare(cython.longlong, visibility="readonly")

    record = cython.declare(object, visibility="readonly")
    count = cython.declare(object, visibility="readonly")
    min_count = cython.declare(object, visibility="readonly")
    first_edge = cython.declare(object, visibility="readonly")
    flags = cython.declare(object, visibility="readonly")
    pointer = cython.declare(object, visibility="readonly")
    size = cython.declare(object, visibility="readonly")
    checksum = cython.declare(object, visibility="readonly")
    born = cython.declare(object, visibility="readonly")
    task = cython.declare(object, visibility="readonly")
    stack = cython.declare(object, visibility="readonly")
    fill = cython.declare(object, visibility="readonly")
    seq = cython.declare(object, visibility="readonly")
    edge = cython.declare(object, visibility="readonly")

    _record: cython.int[::1]
    _wide: cython.ulonglong[::1]
    _checksum: cython.uint[::1]
    _born: cython.longlong[::1]
    _task: cython.int[::1]
    _stack: cython.uint[::1]
    _fill: cython.ushort[::1]
    _seq: cython.longlong[::1]
    _created: cython.longlong
    _free_row: cython.longlong
    _edge: cython.ulonglong[::1]
    _arrays: dict
    _regions: cython.ulonglong[::1]
    _nregions: cython.longlong
    _region_mask: cython.longlong
    _region_shift: cython.int
    _leaf: cython.longlong[::1]
    _nleaves: cython.longlong
    _slots: cython.int[::1]
    _nslots: cython.longlong
    _spare: cython.longlong[::1]
    _queue: cython.int[::1]
    _head: cython.longlong
    _tail: cython.longlong
    _words: cython.ulonglong[::1]
    _from: cython.longlong[::1]
    _hits: cython.longlong[::1]
    _nwords: cython.longlong
    _min_addr: cython.ulonglong
    _max_addr: cython.ulonglong

    def __init__(self, word: int = 8, pages: int = 0) -> None:
        self.word = word
        self.live = self.rows = self.lookups = 0
        self._created = self._free_row = 0
        self.areas = {}
        self.excess = {}
        self._min_addr = 0xFFFF_FFFF_FFFF_FFFF
        self._max_addr = 0
        self.edges = 0
        self.edge_free = 0
        self._head = self._tail = self._nwords = 0
        self._words = _view(np.zeros(_BATCH, np.uint64))
        self._from = _view(np.zeros(_BATCH, np.int64))
        self._hits = _view(np.zeros(_BATCH, np.int64))
        self._arrays = {}
        capacity = min(max(_ROWS_PER_PAGE * pages, _LEAST_ROWS), _MOST_ROWS)
        self._resize_rows(capacity)
        self._edge = self._room("edge", "uint64", 3 * capacity)
        self._queue = self._room("queue", "int32", capacity)
        self._nleaves, self._nslots, self._nregions = 0, 1, 0
        self._leaf = self._room("leaf", "int64", max(2 * pages, 64 << _PAGE_BITS))
        self._slots = self._room("slots", "int32", 2 * capacity)
        self._spare = _view(np.zeros(_PAGE_BITS, np.int64))
        self._resize_regions(_FIRST_REGIONS)

    # -- storage ---------------------------------------------------------------------------------------------

    def _room(self, name: str, dtype: str, capacity: int) -> Any:
        """The array ``name`` with room for ``capacity`` elements, its old ones kept."""
        old = self._arrays.get(name)
        array = lazy_zeros(capacity, dtype)
        if old is not None:
            array[: len(old)] = old
        self._arrays[name] = array
        if name == "edge":
            self.edge = array
        return _view(array)

    def _resize_rows(self, capacity: int) -> None:
        """Make room for ``capacity`` rows."""
        self._record = self._room("record", "int32", 8 * capacity)
        record = self.record = self._arrays["record"]
        wide = record.view(np.uint64)
        self._wide = _view(wide)
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
        self._regions = _view(self._arrays["regions"])
        self._region_mask = capacity - 1
        self._region_shift = 64 - (capacity - 1).bit_length()
        if old is not None:
            for key, entry in old.reshape(-1, 2)[old[0::2] != 0].tolist():
                place = self._region(key - 1)
                self._regions[place] = key
                self._regions[place + 1] = entry

    # -- the table over addresses ----------------------------------------------------------------------------

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _region(self, number: cython.ulonglong) -> cython.longlong:
        """Where in the hash the region is, or the empty place where it would go."""
        mixed: cython.ulonglong = number * _FIB
        if not cython.compiled:
            mixed &= 0xFFFF_FFFF_FFFF_FFFF
        place: cython.longlong = cython.cast(cython.longlong, mixed >> self._region_shift)
        while self._regions[2 * place] != 0 and self._regions[2 * place] != number + 1:
            place = (place + 1) & self._region_mask
        return 2 * place

    @cython.cfunc
    def _enter_region(self, number: cython.ulonglong) -> cython.longlong:
        """The place of a region in the hash, put in if it is new."""
        place: cython.longlong = self._region(number)
        if self._regions[place] == 0:
            if 2 * self._nregions > self._region_mask:
                self._resize_regions(2 * (self._region_mask + 1))
                place = self._region(number)
            self._nregions += 1
            self._regions[place] = number + 1
        return place

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _holder(self, address: cython.ulonglong) -> cython.longlong:
        """The row of the one object that may hold ``address``, or -1."""
        entry: cython.longlong = cython.cast(cython.longlong, self._regions[self._region(address >> _REGION_BITS) + 1])
        if entry & _KIND == _LEAF:
            entry = self._leaf[
                (entry >> 5 << _PAGE_BITS) + cython.cast(cython.longlong, address >> _PAGE_BITS & _IN_PAGE)
            ]
            if entry & _KIND < _PAGE_BITS and entry:
                return (
                    self._slots[
                        (entry >> 5) + 1 + cython.cast(cython.longlong, (address & _IN_PAGE) >> (entry & _KIND))
                    ]
                    - 1
                )
        return (entry >> 5) - 1

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _within(self, row: cython.longlong, address: cython.ulonglong) -> cython.bint:
        start: cython.ulonglong = self._wide[4 * row + _POINTER]
        return address == start or (address > start and address - start < self._wide[4 * row + _SIZE])

    @cython.ccall
    def find(self, pointer: cython.ulonglong) -> cython.longlong:
        """The row of the object that begins at ``pointer``, or -1."""
        row: cython.longlong = self._holder(pointer)
        return row if row >= 0 and self._wide[4 * row + _POINTER] == pointer else -1

    @cython.ccall
    def find_containing(self, address: cython.ulonglong) -> cython.longlong:
        """The row of the object that ``address`` lies in, or -1 (``lookup_object(ptr, 1)``)."""
        row: cython.longlong = self._holder(address)
        return row if row >= 0 and self._within(row, address) else -1

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

    @cython.cfunc
    def _overlaps(self, row: cython.longlong, at: cython.ulonglong, end: cython.ulonglong) -> cython.bint:
        return at < self._end(row) and end > self._wide[4 * row + _POINTER]

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _end(self, row: cython.longlong) -> cython.ulonglong:
        """The first byte behind an object; one of no size takes up a byte."""
        size: cython.ulonglong = self._wide[4 * row + _SIZE]
        return self._wide[4 * row + _POINTER] + (size if size else 1)

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

    @cython.cfunc
    def _new_leaf(self) -> cython.longlong:
        """Entries for the pages of a region, all empty."""
        if (self._nleaves + 1) << _PAGE_BITS > self._leaf.shape[0]:
            self._leaf = self._room("leaf", "int64", 2 * self._leaf.shape[0])
        self._nleaves += 1
        return self._nleaves - 1

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

    @cython.cfunc
    @cython.exceptval(check=False)
    def _drop_slots(self, entry: cython.longlong) -> cython.void:
        base: cython.longlong = entry >> 5
        slot: cython.longlong
        for slot in range(base + 1, base + 1 + (4096 >> (entry & _KIND))):
            self._slots[slot] = 0
        self._slots[base] = cython.cast(cython.int, self._spare[entry & _KIND])
        self._spare[entry & _KIND] = base

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
            place = self._region(at >> _REGION_BITS)
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

    # -- objects ---------------------------------------------------------------------------------------------

    def insert_bulk(
        self,
        pointers: Words,
        size: cython.longlong,
        min_count: cython.int,
        born: cython.longlong,
        task: cython.int,
        stack: cython.uint,
        fill: cython.ushort,
    ) -> int:
        """Track objects of one size at ``pointers`` (uint64 array). Returns -1, or the index of one that
        overlaps an object tracked already; what stands before it has been taken."""
        addresses: cython.ulonglong[::1] = _view(pointers)
        n: cython.longlong = len(pointers)
        length: cython.ulonglong = max(size, 1)
        i: cython.longlong
        row: cython.longlong
        pointer: cython.ulonglong
        if self.rows + n > len(self.checksum):
            self._resize_rows(max(2 * len(self.checksum), self.rows + n))
        for i in range(n):
            pointer = addresses[i]
            row = self._new_row()
            if not self._cover(row, pointer, pointer + length):
                self._drop_row(row)
                return i
            self.live += 1
            self._created += 1
            self._wide[4 * row + _POINTER] = pointer
            self._wide[4 * row + _SIZE] = size
            self._record[8 * row + _NEEDED] = min_count
            self._record[8 * row + _FLAGS] = _ALLOCATED
            self._checksum[row] = 0
            self._born[row] = born
            self._task[row] = task
            self._stack[row] = stack
            self._fill[row] = fill
            self._seq[row] = self._created
            if pointer < self._min_addr:
                self._min_addr = pointer
            if pointer + length > self._max_addr:
                self._max_addr = pointer + length
        return -1

    @cython.cfunc
    def _new_row(self) -> cython.longlong:
        """The free row that was given back last, or one never used."""
        row: cython.longlong = self._free_row - 1
        if row >= 0:
            self._free_row = self._record[8 * row + _EDGE]
            self._record[8 * row + _EDGE] = 0
            self._record[8 * row + _COUNT] = 0
            return row
        self.rows += 1
        return self.rows - 1

    @cython.cfunc
    @cython.exceptval(check=False)
    def _drop_row(self, row: cython.longlong) -> cython.void:
        self._record[8 * row + _FLAGS] = 0
        self._record[8 * row + _EDGE] = cython.cast(cython.int, self._free_row)
        self._free_row = row + 1

    def remove_bulk(self, pointers: Words) -> int:
        """Forget the objects at ``pointers`` (uint64 array). Returns how many were tracked."""
        addresses: cython.ulonglong[::1] = _view(pointers)
        i: cython.longlong
        row: cython.longlong
        removed: cython.longlong = 0
        for i in range(len(pointers)):
            row = self.find(addresses[i])
            if row >= 0:
                self._remove(row)
                removed += 1
        return removed

    @cython.cfunc
    def _remove(self, row: cython.longlong) -> None:
        if self._record[8 * row + _EDGE]:
            self._drop_edges(row)
        if self._record[8 * row + _FLAGS] & _SPECIAL:
            self.areas.pop(self._wide[4 * row + _POINTER], None)
            self.excess.pop(self._wide[4 * row + _POINTER], None)
        self._uncover(self._wide[4 * row + _POINTER], self._end(row))
        self.live -= 1
        self._drop_row(row)

    def set_excess(self, row: cython.longlong, reference: cython.ulonglong) -> None:
        """Surplus references to the object count for ``reference`` (``object_set_excess_ref``)."""
        self.excess[self._wide[4 * row + _POINTER]] = reference
        self._record[8 * row + _FLAGS] |= _HAS_EXCESS

    def add_area(self, row: cython.longlong, start: cython.longlong, size: cython.longlong) -> None:
        """Scan only this range of the object, in bytes from its start, and those added before."""
        self.areas.setdefault(self._wide[4 * row + _POINTER], []).append((start, size))
        self._record[8 * row + _FLAGS] |= _AREAS

    def set_fill(self, row: cython.longlong, fill: cython.ushort) -> None:
        """The object was overwritten with one byte: its pointers are gone."""
        self._drop_edges(row)
        self._fill[row] = fill

    # -- stored pointers -------------------------------------------------------------------------------------

    @cython.cfunc
    @cython.exceptval(check=False)
    def _drop_edges(self, row: cython.longlong) -> cython.void:
        edge: cython.longlong = self._record[8 * row + _EDGE]
        following: cython.longlong
        while edge:
            following = self._edge[3 * edge - 1]
            self._edge[3 * edge - 1] = self.edge_free
            self.edge_free = edge
            edge = following
        self._record[8 * row + _EDGE] = 0

    @cython.cfunc
    def _new_edge(self) -> cython.longlong:
        edge: cython.longlong = self.edge_free
        if edge:
            self.edge_free = self._edge[3 * edge - 1]
            return edge
        if 3 * self.edges == len(self.edge):
            self._edge = self._room("edge", "uint64", 2 * len(self.edge))
        self.edges += 1
        return self.edges

    @cython.ccall
    def store(self, row: cython.longlong, offset: cython.longlong, value: cython.ulonglong) -> None:
        """Write a pointer-sized value into an object, ``offset`` bytes from its start.

        Preconditions: the word lies in the object whole."""
        edge: cython.longlong = self._record[8 * row + _EDGE]
        before: cython.longlong = 0
        new: cython.longlong
        at: cython.ulonglong = cython.cast(cython.ulonglong, offset)
        while edge and self._edge[3 * edge - 3] > at:
            before = edge
            edge = self._edge[3 * edge - 1]
        if edge and self._edge[3 * edge - 3] == at:
            self._edge[3 * edge - 2] = value
            return
        new = self._new_edge()
        self._edge[3 * new - 3] = at
        self._edge[3 * new - 2] = value
        self._edge[3 * new - 1] = edge
        if before:
            self._edge[3 * before - 1] = new
        else:
            self._record[8 * row + _EDGE] = cython.cast(cython.int, new)

    def store_bulk(self, targets: Words, values: Words) -> int:
        """Write ``values[i]`` at the address ``targets[i]``. Returns how many of the words lie in an object, whole."""
        where: cython.ulonglong[::1] = _view(targets)
        what: cython.ulonglong[::1] = _view(values)
        i: cython.longlong
        row: cython.longlong
        offset: cython.longlong
        stored: cython.longlong = 0
        for i in range(len(targets)):
            row = self.find_containing(where[i])
            if row < 0:
                continue
            offset = cython.cast(cython.longlong, where[i] - self._wide[4 * row + _POINTER])
            if offset + self.word <= cython.cast(cython.longlong, self._wide[4 * row + _SIZE]):
                self.store(row, offset, what[i])
                stored += 1
        return stored

    def pointers_in(self, row: cython.longlong) -> list[tuple[int, int]]:
        """The values stored in an object: ``(offset, value)``, by descending offset."""
        edge: cython.longlong = self._record[8 * row + _EDGE]
        found: list[tuple[int, int]] = []
        while edge:
            found.append((self._edge[3 * edge - 3], self._edge[3 * edge - 2]))
            edge = self._edge[3 * edge - 1]
        return found

    # -- mark and sweep --------------------------------------------------------------------------------------

    def whiten(self, first: cython.longlong = 0, last: cython.longlong = -1) -> None:
        """Begin a scan: no object is referenced; grey ones are queued. (``kmemleak_scan``, first loop)

        ``[first, last)`` are the rows to do, all by default; 0 begins anew.
        """
        row: cython.longlong
        if first == 0:
            self._head = self._tail = self._nwords = 0
            self.lookups = 0
        if last < 0 or last > self.rows:
            last = self.rows
        for row in range(first, last):
            self._record[8 * row + _COUNT] = 0
            if self._record[8 * row + _FLAGS] & _ALLOCATED and self._record[8 * row + _NEEDED] == 0:
                self._push(row)

    @cython.cfunc
    @cython.inline
    def _push(self, row: cython.longlong) -> None:
        if self._tail == self._queue.shape[0]:
            self._widen_queue()
        self._queue[self._tail] = cython.cast(cython.int, row)
        self._tail += 1

    def _widen_queue(self) -> None:
        """Drop what was taken from the queue. It is twice as long when that was little."""
        waiting = self._arrays["queue"][self._head : self._tail].copy()
        if 2 * len(waiting) > len(self._arrays["queue"]):
            self._queue = self._room("queue", "int32", 2 * len(self._arrays["queue"]))
        self._arrays["queue"][: len(waiting)] = waiting
        self._head, self._tail = 0, len(waiting)

    @cython.cfunc
    @cython.inline
    def _refer(self, row: cython.longlong) -> None:
        """One more pointer to an object (``update_refs``)."""
        if self._record[8 * row + _COUNT] < self._record[8 * row + _NEEDED]:
            self._record[8 * row + _COUNT] += 1
            if self._record[8 * row + _COUNT] >= self._record[8 * row + _NEEDED]:
                self._push(row)

    @cython.cfunc
    @cython.inline
    def _word(self, value: cython.ulonglong, scanned: cython.longlong) -> None:
        """A word was found in memory: in object ``scanned``, or -1 for a root (``scan_block``)."""
        if value < self._min_addr or value >= self._max_addr:
            return
        if self._nwords == _BATCH:
            self._mark_words()
        self._words[self._nwords] = value
        self._from[self._nwords] = scanned
        self._nwords += 1

    @cython.cfunc
    def _mark_words(self) -> None:
        """Count the words gathered. First passes of independent loads, so that cache misses overlap."""
        n: cython.longlong = self._nwords
        i: cython.longlong
        row: cython.longlong
        self._nwords = 0
        self.lookups += n
        for i in range(n):
            self._hits[i] = self._holder(self._words[i])
        for i in range(n):
            row = self._hits[i]
            if row >= 0 and not self._within(row, self._words[i]):
                self._hits[i] = -1
        for i in range(n):
            row = self._hits[i]
            if row < 0 or row == self._from[i]:
                continue
            if self._record[8 * row + _COUNT] < self._record[8 * row + _NEEDED]:
                self._refer(row)
            elif self._record[8 * row + _FLAGS] & _HAS_EXCESS and self._record[8 * row + _NEEDED] != -1:
                row = self.find(self.excess[self._wide[4 * row + _POINTER]])
                if row >= 0 and row != self._from[i]:
                    self._refer(row)

    def mark(self, values: Words) -> None:
        """Words found outside objects: module data, stacks, struct pages (uint64 array)."""
        words: cython.ulonglong[::1] = _view(values)
        i: cython.longlong
        for i in range(len(values)):
            self._word(words[i], -1)
        self._mark_words()

    def drain(self, most: cython.longlong = -1) -> bool:
        """Scan the queued objects and all that they reach (``scan_gray_list``), up to about ``most`` lookups
        and objects. Whether some are left."""
        done: cython.longlong = 0
        before: cython.longlong = self.lookups
        while self._head < self._tail:
            if most >= 0 and done + self.lookups - before >= most:
                return True
            done += self._tail - self._head if self._tail - self._head < _BATCH else _BATCH
            self._scan_some()
        return False

    @cython.cfunc
    def _scan_some(self) -> None:
        """Scan objects from the head of the queue, and mark what they point to."""
        n: cython.longlong = min(self._tail - self._head, _BATCH)
        i: cython.longlong
        row: cython.longlong
        for i in range(n):  # noqa: B007  (typed, so that the loop is compiled)
            row = self._queue[self._head]
            self._head += 1
            if self._record[8 * row + _FLAGS] & (_ALLOCATED | _NO_SCAN) == _ALLOCATED and self._record[8 * row + _EDGE]:
                self._scan(row)
        self._mark_words()

    @cython.cfunc
    def _scan(self, row: cython.longlong) -> None:
        """The aligned words of one object (``scan_object``)."""
        edge: cython.longlong = self._record[8 * row + _EDGE]
        offset: cython.longlong
        limited: cython.bint = (self._record[8 * row + _FLAGS] & _AREAS) != 0
        while edge:
            offset = self._edge[3 * edge - 3]
            if not offset & (self.word - 1) and (not limited or self._in_area(row, offset)):
                self._word(self._edge[3 * edge - 2], row)
            edge = self._edge[3 * edge - 1]

    @cython.cfunc
    def _in_area(self, row: cython.longlong, offset: cython.longlong) -> cython.bint:
        for start, size in self.areas[self._wide[4 * row + _POINTER]]:
            if start <= offset and offset + self.word <= start + size:
                return True
        return False

    def requeue(self, rows: npt.NDArray[np.int64]) -> None:
        """Colour white objects grey until the next scan, and scan them with ``drain``."""
        row: cython.longlong
        for row in rows.tolist():
            self._record[8 * row + _COUNT] = self._record[8 * row + _NEEDED]
            self._push(row)
