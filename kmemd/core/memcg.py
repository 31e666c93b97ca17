"""What pages that are charged to memory cgroups are: the gauges of memory.stat, read from the page map.

One pass over page frames fills a table with a row for each number that ``PageMap.memcg`` holds and a column for each of
``ITEMS``. Rows ``MIDDLE + number`` are those of groups, rows ``MIDDLE - number`` those of object groups.
"""

from typing import Any

import cython
import numpy as np
from cython import Py_ssize_t as Int

from kmemd.core.array_view import view

ITEMS = (
    *("anon", "file", "shmem", "file_mapped", "file_dirty", "file_writeback", "swapcached"),
    *("anon_thp", "file_thp", "shmem_thp", "pagetables"),
)
NR_ITEMS = len(ITEMS)

_ANON = cython.declare(cython.int, 0)
_FILE = cython.declare(cython.int, 1)
_SHMEM = cython.declare(cython.int, 2)
_FILE_MAPPED = cython.declare(cython.int, 3)
_FILE_DIRTY = cython.declare(cython.int, 4)
_WRITTEN = cython.declare(cython.int, 5)
_SWAPCACHED = cython.declare(cython.int, 6)
_ANON_THP = cython.declare(cython.int, 7)
_FILE_THP = cython.declare(cython.int, 8)
_SHMEM_THP = cython.declare(cython.int, 9)
_PAGETABLES = cython.declare(cython.int, 10)

_DIRTY = cython.declare(cython.uint, 1 << 3)
_SWAPCACHE = cython.declare(cython.uint, 1 << 10)
_WRITEBACK = cython.declare(cython.uint, 1 << 15)
_HEAD = cython.declare(cython.uint, 1 << 16)
_SWAPBACKED = cython.declare(cython.uint, 1 << 19)
_TABLE = cython.declare(cython.uint, 1 << 30)
_ALLOCATED = cython.declare(cython.int, 3)


@cython.final
@cython.cclass
class Gauges:
    """Reads the page map. ``table`` is the result: pages by row and item."""

    _flags: cython.uint[::1]
    _meta: cython.int[::1]
    _mapping: cython.int[::1]
    _mapcount: cython.int[::1]
    _memcg: cython.short[::1]
    _table: cython.longlong[:, ::1]
    _middle: cython.longlong

    def __init__(self, pages: Any) -> None:
        self._flags, self._meta, self._mapping = view(pages.flags), view(pages.meta), view(pages.mapping)
        self._mapcount, self._memcg = view(pages.mapcount), view(pages.memcg)
        self._table = view(np.zeros((1, NR_ITEMS), dtype=np.int64))
        self._middle = 0

    def begin(self, table: Any, middle: Int) -> None:
        """Add to ``table`` from now on, whose row ``middle`` is that of number 0."""
        self._table = view(table)
        self._middle = middle

    def add(self, first: Int, last: Int) -> Int:
        """Add what the frames of a range are; how many of them are charged."""
        pfn: Int
        found: Int = 0
        for pfn in range(first, last):
            if self._memcg[pfn] != 0:
                found += 1
                if self._meta[pfn] & 255 == _ALLOCATED:
                    self._block(pfn)
        return found

    @cython.cfunc
    @cython.exceptval(check=False)
    def _block(self, pfn: Int) -> cython.void:
        row: Int = self._middle + self._memcg[pfn]
        flags: cython.uint = self._flags[pfn]
        size: Int = 1 << (self._meta[pfn] >> 8 & 255)
        if row < self._middle:
            if flags & _TABLE:
                self._table[row, _PAGETABLES] += size
            return
        mapping: cython.int = self._mapping[pfn]
        if flags & _WRITEBACK:
            self._table[row, _WRITTEN] += size
        if flags & _SWAPCACHE and flags & _SWAPBACKED:
            self._table[row, _SWAPCACHED] += size
        if mapping > 0:
            self._table[row, _ANON] += self._mapped(pfn, size)
            if flags & _HEAD and self._mapping[pfn + 1] > 0:
                self._table[row, _ANON_THP] += size
        elif mapping < 0:
            self._of_file(pfn, row, flags, size)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _of_file(self, pfn: Int, row: Int, flags: cython.uint, size: Int) -> cython.void:
        self._table[row, _FILE_MAPPED] += self._mapped(pfn, size)
        if flags & _SWAPCACHE and flags & _SWAPBACKED:
            return
        self._table[row, _FILE] += size
        if flags & _SWAPBACKED:
            self._table[row, _SHMEM] += size
            if flags & _HEAD:
                self._table[row, _SHMEM_THP] += size
        else:
            if flags & _DIRTY:
                self._table[row, _FILE_DIRTY] += size
            if flags & _HEAD:
                self._table[row, _FILE_THP] += size

    @cython.cfunc
    @cython.exceptval(check=False)
    def _mapped(self, pfn: Int, size: Int) -> Int:
        """How many small pages of a block are mapped."""
        count: Int = 0
        i: Int
        if size == 1:
            return 1 if self._mapcount[pfn] > 0 else 0
        if self._mapping[pfn + 1] > 0:
            return size
        for i in range(size):
            count += 1 if self._mapcount[pfn + i] > 0 else 0
        return count
