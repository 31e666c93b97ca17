"""kmemleak's objects, the pointers stored in them, and the mark phase over both (mm/kmemleak.c).

An object is a row of the arrays of core/leak_index.py; rows of freed objects are used again, and ``seq`` numbers the
objects in the order of creation (Linux's ``object_list``). Stored pointers are *edges*: per object a chain ordered by
descending offset.

Left out: RCU, locks, ``scan_block``'s chunks, physical-address objects (nothing here makes one).

Invariants: ``live`` counts the live rows; a live row's flags have ALLOCATED, a free row's are 0; an edge is on the
chain of one live row, or free. ``debug.leak_sweep.check`` proves it.
"""

from __future__ import annotations

from typing import Any

import cython
import numpy as np
import numpy.typing as npt

from kmemd.core.array_view import view
from kmemd.core.leak_index import LeakIndex

Words = npt.NDArray[np.uint64]
Column = npt.NDArray[Any]

# Object flags as in mm/kmemleak.c; above them two of our own, for scan areas and a surplus reference.
OBJECT_ALLOCATED, OBJECT_REPORTED, OBJECT_NO_SCAN, OBJECT_FULL_SCAN = 1, 2, 4, 8
LINUX_FLAGS = 0x1F
GREY, BLACK = 0, -1

# Contents of an object: the byte it was filled with; POISON_LAST: the last byte is POISON_END
POISON_BYTE = 0x6B
POISON_END = 0xA5
POISON_LAST = 0x100

_ALLOCATED = cython.declare(cython.int, 1)
_NO_SCAN = cython.declare(cython.int, 4)
_AREAS = cython.declare(cython.int, 32)
_HAS_EXCESS = cython.declare(cython.int, 64)
_SPECIAL = cython.declare(cython.int, 96)
_COUNT = cython.declare(cython.int, 0)
_NEEDED = cython.declare(cython.int, 1)
_EDGE = cython.declare(cython.int, 2)
_FLAGS = cython.declare(cython.int, 3)
_POINTER = cython.declare(cython.int, 2)
_SIZE = cython.declare(cython.int, 3)
_BATCH = cython.declare(cython.int, 256)


@cython.final
@cython.cclass
class LeakTable(LeakIndex):
    """All tracked objects; the arguments are those of ``LeakIndex``."""

    # -- objects -----------------------------------------------------------------------------------------------

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
        addresses: cython.ulonglong[::1] = view(pointers)
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
        addresses: cython.ulonglong[::1] = view(pointers)
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

    # -- stored pointers ---------------------------------------------------------------------------------------

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
        where: cython.ulonglong[::1] = view(targets)
        what: cython.ulonglong[::1] = view(values)
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

    # -- mark and sweep ----------------------------------------------------------------------------------------

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
        """Count the words gathered."""
        n: cython.longlong = self._nwords
        i: cython.longlong
        row: cython.longlong
        self._nwords = 0
        self.lookups += n
        self._find_words(n)
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
        words: cython.ulonglong[::1] = view(values)
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
