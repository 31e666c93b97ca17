"""The free scanner's hot loop, and the search of free lists for where to scan (mm/compaction.c, mm/page_alloc.c).

Models ``isolate_freepages_block``, ``__isolate_free_page``, ``fast_isolate_freepages`` and ``fast_find_migrateblock``
as far as they touch free lists; ``mm/compaction_free.py`` and ``mm/compaction_scan.py`` do the rest.
"""

import cython

from kmemd.core.buddy import Buddy

_MOVABLE = cython.declare(cython.int, 1)
_PCPTYPES = cython.declare(cython.int, 3)
_ISOLATE = cython.declare(cython.int, 5)
_IN_BUDDY = cython.declare(cython.int, 1)
_ALLOCATED = cython.declare(cython.int, 3)
_ALLOC_CMA = cython.declare(cython.int, 0x80)
_HEAD = cython.declare(cython.uint, 1 << 16)


@cython.final
@cython.cclass
class FreeScanner:
    """Takes free pages of a ``Buddy`` for pages that move.

    ``scan_pfn`` is where the last scan of a range ended, ``scanned`` how many pages it looked at.
    """

    def __init__(self, buddy: Buddy) -> None:
        self._buddy = buddy
        self.scan_pfn = 0
        self.scanned = 0

    @cython.cfunc
    @cython.exceptval(check=False)
    def _isolate_free(
        self, zi: cython.int, pfn: cython.longlong, order: cython.int, out: cython.longlong[::1], at: cython.Py_ssize_t
    ) -> cython.Py_ssize_t:
        """Take a free block, as allocated single pages, unless that breaks the min watermark (__isolate_free_page).

        What ``out`` holds then; -1: the watermark forbids it.
        """
        b: Buddy = self._buddy
        mt: cython.int = b._block_type[pfn >> b.pageblock_order]
        free: cython.longlong = b._zone_stat[zi * b._stat_items + b._nr_free_pages]
        size: cython.longlong = 1 << order
        i: cython.longlong
        if mt != _ISOLATE:
            if not b._watermark_ok(zi, 0, b._wmark[zi * 4] + size, 0, _ALLOC_CMA, free):
                return -1
            b._count_free(zi, mt, -size)
        b._free_list_del(zi, order, pfn)
        if order >= b.pageblock_order - 1 and mt != _ISOLATE:
            for i in range(pfn, pfn + size, 1 << b.pageblock_order):
                if b._block_type[i >> b.pageblock_order] < _PCPTYPES:
                    b._set_block(i, _MOVABLE)
        if b._owner_on:
            for i in range(pfn, pfn + size):
                b._set_owner(i, 0, 0x08)
        for i in range(pfn, pfn + size):
            b._meta[i] = _ALLOCATED | mt << 16
            out[at] = i
            at += 1
        b.taken += size
        return at

    def isolate_free_page(
        self, zi: cython.int, pfn: cython.longlong, order: cython.int, out: cython.longlong[::1], at: cython.Py_ssize_t
    ) -> int:
        """Take one free block as single pages, appended to ``out[at:]``. How many ``out`` holds then, -1: refused."""
        return self._isolate_free(zi, pfn, order, out, at)

    def isolate_freepages_block(
        self,
        zi: cython.int,
        start: cython.longlong,
        end: cython.longlong,
        out: cython.longlong[::1],
        at: cython.Py_ssize_t,
        wanted: cython.longlong,
        stride: cython.int,
        strict: cython.bint,
    ) -> int:
        """Take the free pages of ``[start, end)`` until ``out`` holds ``wanted``; how many it holds then.

        ``strict``: all must be free, and the scan ends at the first that is not. ``scan_pfn`` is where the scan ended,
        ``scanned`` how many pages it looked at.
        """
        b: Buddy = self._buddy
        pfn: cython.longlong = start
        order: cython.int
        got: cython.Py_ssize_t
        self.scanned = 0
        while pfn < end:
            self.scanned += 1
            if b._meta[pfn] & 0xFF == _IN_BUDDY:
                order = (b._meta[pfn] >> 8) & 0xFF
                got = self._isolate_free(zi, pfn, order, out, at)
                if got < 0:
                    break
                at = got
                self.scanned += (1 << order) - 1
                pfn += 1 << order
                if not strict and wanted <= at:
                    break
                if stride > 1:
                    pfn += stride - 1
                continue
            if strict:
                break
            if b._flags[pfn] & _HEAD and b._meta[pfn] & 0xFF == _ALLOCATED:
                pfn += (1 << ((b._meta[pfn] >> 8) & 0xFF)) - 1
            pfn += stride
        self.scan_pfn = pfn if strict or pfn < end else end
        return at

    def fast_search(
        self, zi: cython.int, order: cython.int, limit: cython.int, low: cython.longlong, least: cython.longlong
    ) -> tuple:
        """Look through the end of a free list of Movable for a block at ``low`` or above, else one above ``least``.

        ``(block or -1, blocks looked at, highest block, limit, whether at low or above)``; the list then begins where
        the search ended, so that the next one sees others (fast_isolate_freepages, move_freelist_head).
        """
        b: Buddy = self._buddy
        li: cython.int = b._list(zi, order, _MOVABLE)
        at: cython.int = b._head_prev[li]
        pfn: cython.longlong = -1
        found: cython.longlong = -1
        highest: cython.longlong = 0
        high: cython.longlong = 0
        n: cython.int = 0
        while at > 0:
            pfn = at - 1
            n += 1
            highest = max(highest, pfn)
            if pfn >= low:
                found = pfn
                break
            if pfn >= least and pfn > high:
                high = pfn
                limit >>= 1
            if n >= limit:
                break
            at = b._prev[pfn]
        if found < 0 and high:
            self.rotate(zi, order, _MOVABLE, high)
            return high, n, highest, limit, False
        if at > 0:
            self.rotate(zi, order, _MOVABLE, pfn)
        return found, n, highest, limit, found >= 0

    def fast_source(
        self,
        zi: cython.int,
        order: cython.int,
        scanned: cython.int,
        limit: cython.int,
        below: cython.longlong,
        skip: cython.uchar[::1],
    ) -> tuple:
        """Look for a free block of Movable below a page, in a page block that is not to be skipped.

        ``(block or -1, blocks looked at so far)``; the list then begins behind it (fast_find_migrateblock).
        """
        b: Buddy = self._buddy
        li: cython.int = b._list(zi, order, _MOVABLE)
        at: cython.int = b._head_next[li]
        pfn: cython.longlong = -1
        while at > 0:
            pfn = at - 1
            scanned += 1
            if scanned > limit:
                self._rotate_behind(zi, order, pfn)
                return -1, scanned
            if pfn < below and not skip[pfn >> b.pageblock_order]:
                self._rotate_behind(zi, order, pfn)
                return pfn, scanned
            at = b._next[pfn]
        return -1, scanned

    @cython.cfunc
    @cython.exceptval(check=False)
    def _rotate_behind(self, zi: cython.int, order: cython.int, pfn: cython.longlong) -> cython.void:
        b: Buddy = self._buddy
        if b._next[pfn] > 0:
            self.rotate(zi, order, _MOVABLE, b._next[pfn] - 1)

    def rotate(self, zi: cython.int, order: cython.int, mt: cython.int, pfn: cython.longlong) -> None:
        """Have a free list begin with block ``pfn`` (list_cut_before and list_splice_tail)."""
        b: Buddy = self._buddy
        li: cython.int = b._list(zi, order, mt)
        before: cython.int = b._prev[pfn]
        first: cython.int = b._head_next[li]
        last: cython.int = b._head_prev[li]
        if before < 0 or first == last:
            return
        b._next[last - 1] = first
        b._prev[first - 1] = last
        b._head_next[li] = cython.cast(cython.int, pfn + 1)
        b._head_prev[li] = before
        b._prev[pfn] = -(li + 1)
        b._next[before - 1] = -(li + 1)
