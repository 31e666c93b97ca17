"""kmemleak's objects, the pointers stored in them, and the mark phase over both (mm/kmemleak.c).

An object is a row of the arrays, in the order of creation (Linux's ``object_list``); freed rows are holes
that ``_compact`` closes. ``_hash`` finds an object by its first byte (open addressing, linear probing);
any other address inside an object is found by bisection in a table sorted when a scan first needs it.
Stored pointers are *edges*: per object a chain ordered by descending offset.

What the mark phase touches lies together, because it jumps about: ``_record`` holds four words per row
(references found, references needed, first edge, flags), ``_hash`` pairs of address and row, ``_edge``
offset, value and next.

Left out: RCU, locks, ``scan_block``'s chunks, physical-address objects (nothing here makes one).
Overlap with another object is noticed at its first byte only.

Invariants: ``_hash`` holds exactly the live rows; ``live`` counts them; a live row's flags have ALLOCATED; an
edge is on the chain of one live row, or free. ``debug.leak_sweep.check`` proves it.
"""

from __future__ import annotations

from typing import Any

import cython
import numpy as np
import numpy.typing as npt

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

# words of a record
_COUNT = cython.declare(cython.int, 0)
_NEEDED = cython.declare(cython.int, 1)
_EDGE = cython.declare(cython.int, 2)
_FLAGS = cython.declare(cython.int, 3)

# Contents of an object: the byte it was filled with; POISON_LAST: the last byte is POISON_END
POISON_BYTE = 0x6B
POISON_END = 0xA5
POISON_LAST = 0x100

_EMPTY = cython.declare(cython.int, 0)
_FIB = cython.declare(cython.ulonglong, 0x9E3779B97F4A7C15)
_FIRST_ROWS = 1024
_BATCH = cython.declare(cython.int, 256)


def _view(array: Any) -> Any:
    """Uncompiled, a memoryview gives Python ints, which neither wrap nor warn as numpy scalars do."""
    return array if cython.compiled else memoryview(array)


@cython.cclass
class LeakTable:
    """All tracked objects. ``word`` is the size of a pointer in bytes.

    ``compactions`` counts how often rows have changed their numbers.
    """

    live = cython.declare(cython.longlong, visibility="readonly")
    rows = cython.declare(cython.longlong, visibility="readonly")
    word = cython.declare(cython.int, visibility="readonly")
    areas = cython.declare(dict, visibility="readonly")
    lookups = cython.declare(cython.longlong, visibility="readonly")
    compactions = cython.declare(cython.longlong, visibility="readonly")
    edges = cython.declare(cython.longlong, visibility="readonly")
    edge_free = cython.declare(cython.longlong, visibility="readonly")

    pointer = cython.declare(object, visibility="readonly")
    size = cython.declare(object, visibility="readonly")
    record = cython.declare(object, visibility="readonly")
    checksum = cython.declare(object, visibility="readonly")
    born = cython.declare(object, visibility="readonly")
    task = cython.declare(object, visibility="readonly")
    stack = cython.declare(object, visibility="readonly")
    fill = cython.declare(object, visibility="readonly")
    excess = cython.declare(dict, visibility="readonly")
    hash = cython.declare(object, visibility="readonly")
    edge = cython.declare(object, visibility="readonly")
    queue = cython.declare(object, visibility="readonly")
    sorted_pointer = cython.declare(object, visibility="readonly")
    sorted_row = cython.declare(object, visibility="readonly")

    _pointer: cython.ulonglong[::1]
    _size: cython.longlong[::1]
    _record: cython.int[::1]
    _checksum: cython.uint[::1]
    _born: cython.longlong[::1]
    _task: cython.int[::1]
    _stack: cython.uint[::1]
    _fill: cython.ushort[::1]
    _hash: cython.ulonglong[::1]
    _hash_shift: cython.int
    _hash_mask: cython.longlong
    _edge: cython.ulonglong[::1]
    _queue: cython.int[::1]
    _head: cython.longlong
    _tail: cython.longlong
    _sorted_pointer: cython.ulonglong[::1]
    _sorted_row: cython.int[::1]
    _nsorted: cython.longlong
    _is_sorted: cython.bint
    _words: cython.ulonglong[::1]
    _from: cython.longlong[::1]
    _hits: cython.longlong[::1]
    _nwords: cython.longlong
    _touched: cython.longlong
    _min_addr: cython.ulonglong
    _max_addr: cython.ulonglong

    def __init__(self, word: int = 8) -> None:
        self.word = word
        self.live = self.rows = self.lookups = self.compactions = 0
        self.areas = {}
        self.excess = {}
        self._min_addr = 0xFFFF_FFFF_FFFF_FFFF
        self._max_addr = 0
        self.edges = 0
        self.edge_free = 0
        self._head = self._tail = 0
        self._words = _view(np.zeros(_BATCH, np.uint64))
        self._from = _view(np.zeros(_BATCH, np.int64))
        self._hits = _view(np.zeros(_BATCH, np.int64))
        self._nwords = self._touched = 0
        self._is_sorted = False
        self._nsorted = 0
        self.queue = np.zeros(1, np.int32)
        self._queue = _view(self.queue)
        self._resize_rows(_FIRST_ROWS)
        self._resize_edges(_FIRST_ROWS)
        self._resize_hash(4 * _FIRST_ROWS)

    # -- storage ---------------------------------------------------------------------------------------------

    def _resize_rows(self, capacity: int) -> None:
        """Make room for ``capacity`` rows, keeping the first ``rows``."""
        used = self.rows
        self.pointer = _grown(self.pointer, capacity, used, np.uint64)
        self.size = _grown(self.size, capacity, used, np.int64)
        self.record = _grown(self.record, 4 * capacity, 4 * used, np.int32)
        self.checksum = _grown(self.checksum, capacity, used, np.uint32)
        self.born = _grown(self.born, capacity, used, np.int64)
        self.task = _grown(self.task, capacity, used, np.int32)
        self.stack = _grown(self.stack, capacity, used, np.uint32)
        self.fill = _grown(self.fill, capacity, used, np.uint16)
        self._pointer = _view(self.pointer)
        self._size = _view(self.size)
        self._record = _view(self.record)
        self._checksum = _view(self.checksum)
        self._born = _view(self.born)
        self._task = _view(self.task)
        self._stack = _view(self.stack)
        self._fill = _view(self.fill)

    def _resize_edges(self, capacity: int) -> None:
        self.edge = _grown(self.edge, 3 * capacity, 3 * self.edges, np.uint64)
        self._edge = _view(self.edge)

    @property
    def count(self) -> Column:
        """References found in the last scan, by row."""
        return self.record[0::4]

    @property
    def min_count(self) -> Column:
        """References an object needs, by row."""
        return self.record[1::4]

    @property
    def flags(self) -> Column:
        """OBJECT_ flags by row; 0 for a hole."""
        return self.record[3::4]

    def _resize_hash(self, capacity: int) -> None:
        """Rebuild the hash with ``capacity`` (a power of two) places."""
        row: cython.longlong
        place: cython.longlong
        self.hash = np.zeros(2 * capacity, np.uint64)
        self._hash = _view(self.hash)
        self._hash_mask = capacity - 1
        self._hash_shift = 64 - (capacity - 1).bit_length()
        for row in range(self.rows):
            if self._record[4 * row + _FLAGS] & _ALLOCATED:
                place = self._place(self._pointer[row])
                self._hash[2 * place] = self._pointer[row]
                self._hash[2 * place + 1] = row + 1

    def _reserve(self, n: int) -> None:
        """Make room for ``n`` more objects."""
        if self.rows + n > len(self.pointer):
            if self.live < self.rows // 2:
                self._compact()
            if self.rows + n > len(self.pointer):
                self._resize_rows(max(2 * len(self.pointer), self.rows + n))
        capacity = self._hash_mask + 1
        while 2 * (self.live + n) > capacity:
            capacity *= 2
        if capacity != self._hash_mask + 1:
            self._resize_hash(capacity)

    def _compact(self) -> None:
        """Close the holes, keeping the order."""
        keep = np.flatnonzero(self.flags[: self.rows] & OBJECT_ALLOCATED)
        record = self.record.reshape(-1, 4)
        columns = (
            self.pointer,
            self.size,
            self.checksum,
            self.born,
            self.task,
            self.stack,
            self.fill,
            record,
        )
        for array in columns:
            array[: len(keep)] = array[keep]
            array[len(keep) : self.rows] = 0
        self.rows = len(keep)
        self.compactions += 1
        self._is_sorted = False
        self._resize_hash(self._hash_mask + 1)

    # -- lookup ----------------------------------------------------------------------------------------------

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _home(self, pointer: cython.ulonglong) -> cython.longlong:
        mixed: cython.ulonglong = (pointer >> 3) * _FIB
        if not cython.compiled:
            mixed &= 0xFFFF_FFFF_FFFF_FFFF
        return cython.cast(cython.longlong, mixed >> self._hash_shift)

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _place(self, pointer: cython.ulonglong) -> cython.longlong:
        """Where in the hash ``pointer`` is, or the empty place where it would go."""
        place: cython.longlong = self._home(pointer)
        while self._hash[2 * place + 1] != _EMPTY and self._hash[2 * place] != pointer:
            place = (place + 1) & self._hash_mask
        return place

    @cython.ccall
    def find(self, pointer: cython.ulonglong) -> cython.longlong:
        """The row of the object that begins at ``pointer``, or -1."""
        return cython.cast(cython.longlong, self._hash[2 * self._place(pointer) + 1]) - 1

    @cython.ccall
    def find_containing(self, address: cython.ulonglong) -> cython.longlong:
        """The row of the object that ``address`` lies in, or -1 (``lookup_object(ptr, 1)``)."""
        row: cython.longlong = self.find(address)
        low: cython.longlong
        high: cython.longlong
        middle: cython.longlong
        if row >= 0:
            return row
        if not self._is_sorted:
            self._sort()
        low, high = 0, self._nsorted
        while low < high:
            middle = (low + high) >> 1
            if self._sorted_pointer[middle] <= address:
                low = middle + 1
            else:
                high = middle
        if low == 0:
            return -1
        row = self._sorted_row[low - 1]
        if not self._record[4 * row + _FLAGS] & _ALLOCATED:
            return -1
        if address - self._sorted_pointer[low - 1] < cython.cast(cython.ulonglong, self._size[row]):
            return row
        return -1

    def _sort(self) -> None:
        rows = np.flatnonzero(self.flags[: self.rows] & OBJECT_ALLOCATED)
        order = np.argsort(self.pointer[rows], kind="stable")
        self.sorted_row = rows[order].astype(np.int32)
        self.sorted_pointer = self.pointer[self.sorted_row]
        if len(rows) == 0:
            self.sorted_row = np.zeros(1, np.int32)
            self.sorted_pointer = np.zeros(1, np.uint64)
        self._sorted_row = _view(self.sorted_row)
        self._sorted_pointer = _view(self.sorted_pointer)
        self._nsorted = len(rows)
        self._is_sorted = True

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
        """Track objects of one size at ``pointers`` (uint64 array). Returns -1, or the index of an address
        that is tracked already; what stands before it has been taken."""
        addresses: cython.ulonglong[::1] = _view(pointers)
        n: cython.longlong = len(pointers)
        i: cython.longlong
        place: cython.longlong
        row: cython.longlong
        pointer: cython.ulonglong
        self._reserve(n)
        for i in range(n):
            pointer = addresses[i]
            place = self._place(pointer)
            if self._hash[2 * place + 1] != _EMPTY:
                return i
            row = self.rows
            self._hash[2 * place] = pointer
            self._hash[2 * place + 1] = row + 1
            self.rows += 1
            self.live += 1
            self._pointer[row] = pointer
            self._size[row] = size
            self._record[4 * row + _COUNT] = 0
            self._record[4 * row + _NEEDED] = min_count
            self._record[4 * row + _EDGE] = 0
            self._record[4 * row + _FLAGS] = _ALLOCATED
            self._checksum[row] = 0
            self._born[row] = born
            self._task[row] = task
            self._stack[row] = stack
            self._fill[row] = fill
            if pointer < self._min_addr:
                self._min_addr = pointer
            if pointer + cython.cast(cython.ulonglong, size) > self._max_addr:
                self._max_addr = pointer + cython.cast(cython.ulonglong, size)
        self._is_sorted = False
        return -1

    def remove_bulk(self, pointers: Words) -> int:
        """Forget the objects at ``pointers`` (uint64 array). Returns how many were tracked."""
        addresses: cython.ulonglong[::1] = _view(pointers)
        i: cython.longlong
        place: cython.longlong
        removed: cython.longlong = 0
        for i in range(len(pointers)):
            place = self._place(addresses[i])
            if self._hash[2 * place + 1] != _EMPTY:
                self._remove(cython.cast(cython.longlong, self._hash[2 * place + 1]) - 1, place)
                removed += 1
        return removed

    @cython.cfunc
    def _remove(self, row: cython.longlong, place: cython.longlong) -> None:
        """Drop a row and close the gap in the hash's run (backward shift)."""
        hole: cython.longlong = place
        home: cython.longlong
        if self._record[4 * row + _EDGE]:
            self._drop_edges(row)
        if self._record[4 * row + _FLAGS] & _SPECIAL:
            self.areas.pop(self._pointer[row], None)
            self.excess.pop(self._pointer[row], None)
        self._record[4 * row + _FLAGS] = 0
        self.live -= 1
        while True:
            place = (place + 1) & self._hash_mask
            if self._hash[2 * place + 1] == _EMPTY:
                break
            home = self._home(self._hash[2 * place])
            if ((place - home) & self._hash_mask) >= ((place - hole) & self._hash_mask):
                self._hash[2 * hole] = self._hash[2 * place]
                self._hash[2 * hole + 1] = self._hash[2 * place + 1]
                hole = place
        self._hash[2 * hole + 1] = 0

    def set_excess(self, row: cython.longlong, reference: cython.ulonglong) -> None:
        """Surplus references to the object count for ``reference`` (``object_set_excess_ref``)."""
        self.excess[self._pointer[row]] = reference
        self._record[4 * row + _FLAGS] |= _HAS_EXCESS

    def add_area(self, row: cython.longlong, start: cython.longlong, size: cython.longlong) -> None:
        """Scan only this range of the object, in bytes from its start, and those added before."""
        self.areas.setdefault(self._pointer[row], []).append((start, size))
        self._record[4 * row + _FLAGS] |= _AREAS

    def set_fill(self, row: cython.longlong, fill: cython.ushort) -> None:
        """The object was overwritten with one byte: its pointers are gone."""
        self._drop_edges(row)
        self._fill[row] = fill

    # -- stored pointers -------------------------------------------------------------------------------------

    @cython.cfunc
    def _drop_edges(self, row: cython.longlong) -> None:
        edge: cython.longlong = self._record[4 * row + _EDGE]
        following: cython.longlong
        while edge:
            following = self._edge[3 * edge - 1]
            self._edge[3 * edge - 1] = self.edge_free
            self.edge_free = edge
            edge = following
        self._record[4 * row + _EDGE] = 0

    @cython.cfunc
    def _new_edge(self) -> cython.longlong:
        edge: cython.longlong = self.edge_free
        if edge:
            self.edge_free = self._edge[3 * edge - 1]
            return edge
        if 3 * self.edges == len(self.edge):
            self._resize_edges(2 * self.edges)
        self.edges += 1
        return self.edges

    @cython.ccall
    def store(self, row: cython.longlong, offset: cython.longlong, value: cython.ulonglong) -> None:
        """Write a pointer-sized value into an object, ``offset`` bytes from its start.

        Preconditions: the word lies in the object whole."""
        edge: cython.longlong = self._record[4 * row + _EDGE]
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
            self._record[4 * row + _EDGE] = cython.cast(cython.int, new)

    def store_bulk(self, objects: Words, offset: cython.longlong, values: Words) -> int:
        """Write ``values[i]`` at ``offset`` of the object at ``objects[i]``. Returns how many are known."""
        where: cython.ulonglong[::1] = _view(objects)
        what: cython.ulonglong[::1] = _view(values)
        i: cython.longlong
        row: cython.longlong
        stored: cython.longlong = 0
        for i in range(len(objects)):
            row = self.find(where[i])
            if row >= 0 and offset + self.word <= self._size[row]:
                self.store(row, offset, what[i])
                stored += 1
        return stored

    def pointers_in(self, row: cython.longlong) -> list[tuple[int, int]]:
        """The values stored in an object: ``(offset, value)``, by descending offset."""
        edge: cython.longlong = self._record[4 * row + _EDGE]
        found: list[tuple[int, int]] = []
        while edge:
            found.append((self._edge[3 * edge - 3], self._edge[3 * edge - 2]))
            edge = self._edge[3 * edge - 1]
        return found

    # -- mark and sweep --------------------------------------------------------------------------------------

    def whiten(self) -> None:
        """Begin a scan: no object is referenced; grey ones are queued. (``kmemleak_scan``, first loop)"""
        row: cython.longlong
        if len(self.queue) < self.rows:
            self.queue = np.zeros(len(self.pointer), np.int32)
            self._queue = _view(self.queue)
        self._head = self._tail = 0
        self.lookups = 0
        for row in range(self.rows):
            self._record[4 * row + _COUNT] = 0
            if self._record[4 * row + _FLAGS] & _ALLOCATED and self._record[4 * row + _NEEDED] == 0:
                self._push(row)

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _push(self, row: cython.longlong) -> cython.void:
        self._queue[self._tail] = cython.cast(cython.int, row)
        self._tail += 1

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _refer(self, row: cython.longlong) -> cython.void:
        """One more pointer to an object (``update_refs``)."""
        if self._record[4 * row + _COUNT] < self._record[4 * row + _NEEDED]:
            self._record[4 * row + _COUNT] += 1
            if self._record[4 * row + _COUNT] >= self._record[4 * row + _NEEDED]:
                self._push(row)

    @cython.cfunc
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
        """Count the words gathered. Three passes of independent loads, so that cache misses overlap."""
        n: cython.longlong = self._nwords
        i: cython.longlong
        row: cython.longlong
        touched: cython.longlong = 0
        self._nwords = 0
        self.lookups += n
        for i in range(n):
            self._hits[i] = self.find(self._words[i])
        for i in range(n):
            if self._hits[i] < 0:
                self._hits[i] = self.find_containing(self._words[i])
            if self._hits[i] >= 0:
                touched += self._record[4 * self._hits[i]]
        self._touched = touched
        for i in range(n):
            row = self._hits[i]
            if row < 0 or row == self._from[i]:
                continue
            if self._record[4 * row + _COUNT] < self._record[4 * row + _NEEDED]:
                self._refer(row)
            elif self._record[4 * row + _FLAGS] & _HAS_EXCESS and self._record[4 * row + _NEEDED] != -1:
                row = self.find(self.excess[self._pointer[row]])
                if row >= 0 and row != self._from[i]:
                    self._refer(row)

    def mark(self, values: Words) -> None:
        """Words found outside objects: module data, stacks, struct pages (uint64 array)."""
        words: cython.ulonglong[::1] = _view(values)
        i: cython.longlong
        for i in range(len(values)):
            self._word(words[i], -1)
        self._mark_words()

    def drain(self) -> None:
        """Scan the queued objects and all that they reach (``scan_gray_list``)."""
        row: cython.longlong
        while self._head < self._tail:
            while self._head < self._tail:
                row = self._queue[self._head]
                self._head += 1
                if self._record[4 * row + _EDGE] and not self._record[4 * row + _FLAGS] & _NO_SCAN:
                    self._scan(row)
            self._mark_words()

    @cython.cfunc
    def _scan(self, row: cython.longlong) -> None:
        """The aligned words of one object (``scan_object``)."""
        edge: cython.longlong = self._record[4 * row + _EDGE]
        offset: cython.longlong
        limited: cython.bint = (self._record[4 * row + _FLAGS] & _AREAS) != 0
        while edge:
            offset = self._edge[3 * edge - 3]
            if not offset & (self.word - 1) and (not limited or self._in_area(row, offset)):
                self._word(self._edge[3 * edge - 2], row)
            edge = self._edge[3 * edge - 1]

    @cython.cfunc
    def _in_area(self, row: cython.longlong, offset: cython.longlong) -> cython.bint:
        for start, size in self.areas[self._pointer[row]]:
            if start <= offset and offset + self.word <= start + size:
                return True
        return False

    def requeue(self, rows: npt.NDArray[np.int64]) -> None:
        """Colour white objects grey until the next scan, and scan them with ``drain``."""
        row: cython.longlong
        for row in rows.tolist():
            self._record[4 * row + _COUNT] = self._record[4 * row + _NEEDED]
            self._push(row)


def _grown(array: Column | None, capacity: int, used: int, dtype: npt.DTypeLike) -> Column:
    """A copy of ``array`` with ``capacity`` elements."""
    grown = np.zeros(capacity, dtype)
    if array is not None:
        grown[:used] = array[:used]
    return grown
