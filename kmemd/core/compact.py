"""The migration scanner's hot loop over page blocks (mm/compaction.c ``isolate_migratepages_block``).

Models which pages of a page block are taken to be moved, the skip hints of page blocks, and what a look at a page costs
in scanned pages. Taking free pages is core/compact_free.py; moving pages is core/rmap.py and ``mm/migrate.py``. Left
out: locks, so that nothing is ever contended.
"""

from typing import Any

import cython
import numpy as np

from kmemd.core.array_view import view

ASYNC, SYNC_LIGHT, SYNC = range(3)
CLUSTER_MAX = 32
"""Pages that are isolated before they are moved (COMPACT_CLUSTER_MAX)."""

_CLUSTER = cython.declare(cython.int, 32)
_SYNC = cython.declare(cython.int, 2)
_TOP = cython.declare(cython.int, 10)
_NOT_HEAD = cython.declare(cython.int, 0)
_IN_BUDDY = cython.declare(cython.int, 1)
_ALLOCATED = cython.declare(cython.int, 3)
_MOVABLE = cython.declare(cython.int, 1)
_CMA = cython.declare(cython.int, 4)

_LRU = cython.declare(cython.uint, 1 << 4)
_SWAPCACHE = cython.declare(cython.uint, 1 << 10)
_WRITEBACK = cython.declare(cython.uint, 1 << 15)
_HEAD = cython.declare(cython.uint, 1 << 16)
_UNEVICTABLE = cython.declare(cython.uint, 1 << 20)


@cython.final
@cython.cclass
class Scanner:
    """Looks for pages to move. ``skip`` holds the hints of all page blocks (PB_migrate_skip).

    The results of a scan: ``pfn`` where it ended, ``scanned`` pages looked at, ``isolated`` pages in ``found``
    (blocks: ``blocks``), ``dropped`` blocks in ``back`` that were isolated and go back again; ``aborted``: the page
    block is to be skipped; ``covered``: there is nothing more to find in it.
    """

    skip = cython.declare(object, visibility="readonly")
    found = cython.declare(object, visibility="readonly")
    back = cython.declare(object, visibility="readonly")
    pfn = cython.declare(cython.longlong, visibility="readonly")
    scanned = cython.declare(cython.longlong, visibility="readonly")
    isolated = cython.declare(cython.longlong, visibility="readonly")
    blocks = cython.declare(cython.int, visibility="readonly")
    dropped = cython.declare(cython.int, visibility="readonly")
    aborted = cython.declare(cython.bint, visibility="readonly")
    covered = cython.declare(cython.bint, visibility="readonly")

    _flags: cython.uint[::1]
    _meta: cython.int[::1]
    _mapping: cython.int[::1]
    _skip: cython.uchar[::1]
    _found: cython.longlong[::1]
    _back: cython.longlong[::1]
    _lo: cython.longlong[::1]
    _hi: cython.longlong[::1]
    _extents: cython.int
    _shift: cython.int

    def __init__(self, pages: Any, pageblock_order: int) -> None:
        self._flags, self._meta, self._mapping = view(pages.flags), view(pages.meta), view(pages.mapping)
        self._shift = pageblock_order
        self.skip = np.zeros((pages.max_pfn >> pageblock_order) + 2, dtype=np.uint8)
        self.found = np.zeros(1 << pageblock_order, dtype=np.int64)
        self.back = np.zeros(1 << pageblock_order, dtype=np.int64)
        self._skip, self._found, self._back = view(self.skip), view(self.found), view(self.back)
        self._lo, self._hi = view(np.zeros(64, dtype=np.int64)), view(np.zeros(64, dtype=np.int64))
        self._extents = 0
        self.pfn = self.scanned = self.isolated = 0
        self.blocks = self.dropped = 0
        self.aborted = self.covered = False

    def set_frontier(self, ranges: list) -> None:
        """The zone's never touched ranges, whose pages are free though nothing marks them."""
        i: cython.int
        self._extents = len(ranges)
        for i in range(self._extents):
            self._lo[i], self._hi[i] = ranges[i]

    @cython.cfunc
    @cython.exceptval(check=False)
    def _free_order(self, pfn: cython.longlong) -> cython.int:
        """The order of the free block that begins at a page, -1 without one (PageBuddy)."""
        i: cython.int
        if self._meta[pfn] & 0xFF == _IN_BUDDY:
            return (self._meta[pfn] >> 8) & 0xFF
        if pfn & ((1 << _TOP) - 1) == 0:
            for i in range(self._extents):
                if self._lo[i] <= pfn < self._hi[i]:
                    return _TOP
        return -1

    def holds(self, low: cython.longlong, high: cython.longlong, lru: cython.bint, free: cython.bint) -> bool:
        """Whether a sample of every eighth page has one on an LRU list, or a free block (__reset_isolation_pfn)."""
        pfn: cython.longlong = low
        while pfn < high:
            if (lru and self._flags[pfn] & _LRU) or (free and self._free_order(pfn) >= 0):
                return True
            pfn += 8
        return False

    def compound_order(self, pfn: cython.longlong) -> int:
        """The order of the compound page that begins at a page, 0 without one."""
        compound: cython.bint = self._meta[pfn] & 0xFF == _ALLOCATED and self._flags[pfn] & _HEAD != 0
        return (self._meta[pfn] >> 8) & 0xFF if compound else 0

    def target(
        self,
        start: cython.longlong,
        low: cython.longlong,
        types: cython.uchar[::1],
        any_type: cython.bint,
        ignore_skip: cython.bint,
    ) -> int:
        """The next page block from ``start`` downwards, not below ``low``, whose free pages may be taken as targets,
        -1 without one (suitable_migration_target, isolation_suitable).

        ``types`` are those of all page blocks; movable ones and those of CMA areas qualify unless ``any_type``.
        """
        size: cython.longlong = cython.cast(cython.longlong, 1) << self._shift
        block: cython.longlong
        while start >= low:
            block = start >> self._shift
            if (
                (any_type or types[block] == _MOVABLE or types[block] == _CMA)
                and (ignore_skip or not self._skip[block])
                and self._free_order(start) < self._shift
            ):
                return start
            start -= size
        return -1

    def unmovable(self, low: cython.longlong, high: cython.longlong) -> int:
        """The first page of a range that is neither free nor can be moved, -1 without (has_unmovable_pages).

        Preconditions: the range was set apart, so that no free block reaches into it from below.
        """
        pfn: cython.longlong = low
        kind: cython.int
        flags: cython.uint
        while pfn < high:
            kind = self._meta[pfn] & 0xFF
            flags = self._flags[pfn]
            if kind == _NOT_HEAD or (kind == _ALLOCATED and not flags & _LRU):
                return pfn
            pfn += cython.cast(cython.longlong, 1) << ((self._meta[pfn] >> 8) & 0xFF)
        return -1

    # -- the scan ------------------------------------------------------------------------------------------

    @cython.cfunc
    @cython.exceptval(check=False)
    def _takes(
        self, flags: cython.uint, mapping: cython.int, mode: cython.int, unevictable: cython.bint, fs: cython.bint
    ) -> cython.bint:
        """Whether a page that is on an LRU list may be isolated."""
        if not fs and (mapping < 0 or flags & _SWAPCACHE):
            return False
        if flags & _UNEVICTABLE and not unevictable:
            return False
        return mode == _SYNC or not flags & _WRITEBACK

    def isolate_migratepages_block(
        self,
        low: cython.longlong,
        end: cython.longlong,
        order: cython.int,
        mode: cython.int,
        unevictable: cython.bint,
        fs: cython.bint,
        direct: cython.bint,
        ignore_skip: cython.bint,
        rescan: cython.bint,
        contig: cython.bint,
    ) -> int:
        """Find pages of ``[low, end)`` that can be moved: how many, at most a cluster unless ``rescan``.

        ``direct``: a request waits and the scan is asynchronous, so that a block of ``order`` with one page that
        cannot move is given up. ``contig``: huge pages are taken, too. The caller takes what is in ``found`` off its
        list, and puts back what is in ``back``.
        """
        pfn: cython.longlong = low
        next_skip: cython.longlong = 0
        size: cython.longlong
        free: cython.int
        flags: cython.uint
        first: cython.bint = True
        looked: cython.bint = False
        taken: cython.bint
        self.scanned = self.isolated = 0
        self.blocks = self.dropped = 0
        self.aborted = self.covered = False
        if direct:
            next_skip = ((low >> order) + 1) << order
        while pfn < end:
            if direct and pfn >= next_skip:
                if self.isolated:
                    break
                next_skip = ((pfn >> order) + 1) << order
            self.scanned += 1
            if first and pfn & ((1 << self._shift) - 1) == 0:
                if not ignore_skip and self._skip[pfn >> self._shift]:
                    pfn = end
                    self.aborted = True
                    break
                first = False
            free = self._free_order(pfn)
            if free >= 0:
                pfn += 1 << free
                continue
            flags = self._flags[pfn]
            size = 1
            if flags & _HEAD and self._meta[pfn] & 0xFF == _ALLOCATED:
                size = cython.cast(cython.longlong, 1) << ((self._meta[pfn] >> 8) & 0xFF)
            taken = flags & _LRU != 0 and (size == 1 or contig)
            if taken and self._takes(flags, self._mapping[pfn], mode, unevictable, fs):
                if not looked:
                    looked = True
                    if self._test_and_set_skip(pfn, ignore_skip):
                        self.aborted = True
                        break
                self._found[self.blocks] = pfn
                self.blocks += 1
                self.isolated += size
                self.scanned += size - 1
                pfn += size
                if self.isolated >= _CLUSTER and not rescan:
                    break
                continue
            pfn += size if size <= 1 << _TOP else 1
            if direct:
                self._drop()
                if pfn - 1 < next_skip:
                    pfn = next_skip
                    next_skip += cython.cast(cython.longlong, 1) << order
        self.pfn = min(pfn, end)
        self.covered = self.pfn == end and (not self.isolated or rescan)
        if self.covered and not first and not looked:
            self._skip[low >> self._shift] = 1
        return self.isolated

    @cython.cfunc
    @cython.exceptval(check=False)
    def _test_and_set_skip(self, pfn: cython.longlong, ignore_skip: cython.bint) -> cython.bint:
        """Only the first page of a page block asks; what others found to skip is skipped."""
        was: cython.bint
        if ignore_skip or pfn & ((1 << self._shift) - 1):
            return False
        was = self._skip[pfn >> self._shift] != 0
        self._skip[pfn >> self._shift] = 1
        return was

    @cython.cfunc
    @cython.exceptval(check=False)
    def _drop(self) -> cython.void:
        """A block of the wanted order cannot be made: what was isolated of it goes back."""
        i: cython.int
        for i in range(self.blocks):
            if self.dropped < self._back.shape[0]:
                self._back[self.dropped] = self._found[i]
                self.dropped += 1
        self.blocks = 0
        self.isolated = 0
