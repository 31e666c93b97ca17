"""Ranges of pages that come to the free lists or leave them whole (mm/page_isolation.c, mm/page_alloc.c).

Models ``memblock_free_all`` as far as it fills the lists, ``start_isolate_page_range`` and its undoing, and taking a
free range (``alloc_contig_range``).
"""

import cython

from kmemd.core.buddy import Buddy

_TOP = cython.declare(cython.int, 10)
_MOVABLE = cython.declare(cython.int, 1)
_HIGHATOMIC = cython.declare(cython.int, 3)
_ISOLATE = cython.declare(cython.int, 5)
_EXTENTS = cython.declare(cython.int, 64)
_IN_BUDDY = cython.declare(cython.int, 1)
_ALLOCATED = cython.declare(cython.int, 3)


@cython.final
@cython.cclass
class PageRanges:
    """What is done to ranges of a ``Buddy``'s pages."""

    def __init__(self, buddy: Buddy) -> None:
        self._buddy = buddy

    def free_range(self, zi: cython.int, low: cython.longlong, high: cython.longlong) -> None:
        """Release never used pages ``[low, high)`` at boot, upwards (memblock_free_all, __free_pages_core)."""
        b: Buddy = self._buddy
        pfn: cython.longlong = low
        order: cython.int
        last: cython.longlong
        size: cython.longlong = 1 << _TOP
        while pfn < high:
            order = _TOP
            while pfn & ((1 << order) - 1) or pfn + (1 << order) > high:
                order -= 1
            if order == _TOP and self._mt_is_movable(pfn) and b._front_n[zi] < _EXTENTS - 1:
                last = high & ~(size - 1)
                self._extend_frontier(zi, pfn, last)
                pfn = last
                continue
            b._free_one(zi, pfn, order, b._block_type[pfn >> b.pageblock_order], True)
            b._events[b._ev_free] += 1 << order
            pfn += 1 << order

    @cython.cfunc
    @cython.exceptval(check=False)
    def _mt_is_movable(self, pfn: cython.longlong) -> cython.bint:
        b: Buddy = self._buddy
        return b._block_type[pfn >> b.pageblock_order] == _MOVABLE

    @cython.cfunc
    @cython.exceptval(check=False)
    def _extend_frontier(self, zi: cython.int, low: cython.longlong, high: cython.longlong) -> cython.void:
        b: Buddy = self._buddy
        i: cython.int = zi * _EXTENTS + b._front_n[zi]
        blocks: cython.longlong = (high - low) >> _TOP
        b._front_lo[i] = low
        b._front_hi[i] = high
        b._front_n[zi] += 1
        b._front_blocks[zi] += blocks
        b._nr_list[b._list(zi, _TOP, _MOVABLE)] += blocks
        b._count_free(zi, _MOVABLE, high - low)
        b._events[b._ev_free] += high - low

    def take_range(self, zi: cython.int, low: cython.longlong, high: cython.longlong) -> bool:
        """Take pages ``[low, high)`` of a zone off the free lists if all are there (alloc_contig_range).

        Preconditions: the range begins and ends at a multiple of the largest block; per-cpu lists are empty.
        """
        b: Buddy = self._buddy
        pfn: cython.longlong = low
        end: cython.longlong
        order: cython.int
        if b._front_n[zi] >= _EXTENTS - 1:
            return False
        while pfn < high:
            pfn = self._free_until(zi, pfn, high)
            if pfn < 0:
                return False
        pfn = low
        while pfn < high:
            end = self._free_until(zi, pfn, high)
            if b._meta[pfn] & 0xFF == _IN_BUDDY:
                order = (b._meta[pfn] >> 8) & 0xFF
                b._count_free(zi, b._meta[pfn] >> 16, -(1 << order))
                b._free_list_del(zi, order, pfn)
            else:
                self._take_untouched(zi, pfn, end)
            pfn = end
        return True

    @cython.cfunc
    @cython.exceptval(check=False)
    def _free_until(self, zi: cython.int, pfn: cython.longlong, high: cython.longlong) -> cython.longlong:
        """The end of the free block or never touched range at ``pfn``, at most ``high``; -1: not free."""
        b: Buddy = self._buddy
        i: cython.int
        base: cython.int = zi * _EXTENTS
        if b._meta[pfn] & 0xFF == _IN_BUDDY:
            return pfn + (1 << ((b._meta[pfn] >> 8) & 0xFF))
        for i in range(base, base + b._front_n[zi]):
            if b._front_lo[i] <= pfn < b._front_hi[i]:
                return min(b._front_hi[i], high)
        return -1

    @cython.cfunc
    @cython.exceptval(check=False)
    def _take_untouched(self, zi: cython.int, low: cython.longlong, high: cython.longlong) -> cython.void:
        """Take never touched blocks ``[low, high)``, which one extent holds, off their list."""
        b: Buddy = self._buddy
        base: cython.int = zi * _EXTENTS
        i: cython.int
        pfn: cython.longlong = low
        while pfn < high:
            for i in range(base, base + b._front_n[zi]):
                if b._front_lo[i] <= pfn < b._front_hi[i]:
                    b._take_frontier(zi, i - base, pfn)
                    break
            b._nr_list[b._list(zi, _TOP, _MOVABLE)] -= 1
            b._count_free(zi, _MOVABLE, -(1 << _TOP))
            pfn += 1 << _TOP

    def mark_allocated(self, pfn: cython.longlong, order: cython.int, mt: cython.int) -> None:
        """Make a page range that is on no list an allocated block."""
        b: Buddy = self._buddy
        b._meta[pfn] = _ALLOCATED | order << 8 | mt << 16

    def isolate_range(self, zi: cython.int, low: cython.longlong, high: cython.longlong) -> bool:
        """Set page blocks apart: their free pages count no more and nobody gets them (start_isolate_page_range).

        False, and nothing done, where a block is apart already. Preconditions: whole page blocks of one zone.
        """
        b: Buddy = self._buddy
        size: cython.longlong = 1 << b.pageblock_order
        pfn: cython.longlong
        i: cython.longlong
        mt: cython.int
        for pfn in range(low, high, size):
            if b._block_type[pfn >> b.pageblock_order] == _ISOLATE or not self._list_frontier(zi, pfn):
                return False
        self._cut(zi, low)
        self._cut(zi, high)
        for pfn in range(low, high, size):
            mt = b._block_type[pfn >> b.pageblock_order]
            if mt == _HIGHATOMIC:
                b._highatomic[zi] -= min(size, b._highatomic[zi])
            b._block_type[pfn >> b.pageblock_order] = _ISOLATE
            b._isolated[zi] += 1
        i = low
        while i < high:
            if b._meta[i] & 0xFF != _IN_BUDDY:
                i += 1
                continue
            b._count_free(zi, b._meta[i] >> 16, -(1 << ((b._meta[i] >> 8) & 0xFF)))
            pfn = i
            i += 1 << ((b._meta[i] >> 8) & 0xFF)
            b._move_to_list(zi, pfn, _ISOLATE)
        return True

    @cython.cfunc
    @cython.exceptval(check=False)
    def _list_frontier(self, zi: cython.int, pfn: cython.longlong) -> cython.bint:
        """Give the never touched block that holds a page a place in its list. False: there are too many extents."""
        b: Buddy = self._buddy
        base: cython.int = zi * _EXTENTS
        i: cython.int
        li: cython.int = b._list(zi, _TOP, _MOVABLE)
        for i in range(base, base + b._front_n[zi]):
            if b._front_lo[i] <= pfn < b._front_hi[i]:
                if b._front_n[zi] >= _EXTENTS - 1:
                    return False
                pfn &= ~((1 << _TOP) - 1)
                b._take_frontier(zi, i - base, pfn)
                b._add_tail(li, pfn)
                b._meta[pfn] = _IN_BUDDY | _TOP << 8 | _MOVABLE << 16
                return True
        return True

    @cython.cfunc
    @cython.exceptval(check=False)
    def _cut(self, zi: cython.int, boundary: cython.longlong) -> cython.void:
        """Split a free block that a page block boundary lies in (split_free_page)."""
        b: Buddy = self._buddy
        order: cython.int
        mt: cython.int
        pfn: cython.longlong = boundary & ~((1 << _TOP) - 1)
        while pfn < boundary and b._zone_start[zi] <= pfn:
            order = (b._meta[pfn] >> 8) & 0xFF
            if b._meta[pfn] & 0xFF != _IN_BUDDY or pfn + (1 << order) <= boundary:
                break
            mt = b._meta[pfn] >> 16
            b._free_list_del(zi, order, pfn)
            order -= 1
            b._free_list_add(zi, order, mt, pfn + (1 << order))
            b._free_list_add(zi, order, mt, pfn)
            if pfn + (1 << order) == boundary:
                break
            if pfn + (1 << order) < boundary:
                pfn += 1 << order

    def unisolate_range(self, zi: cython.int, low: cython.longlong, high: cython.longlong, mt: cython.int) -> None:
        """Make page blocks that are apart ordinary ones of type ``mt`` again (undo_isolate_page_range)."""
        b: Buddy = self._buddy
        size: cython.longlong = 1 << b.pageblock_order
        pfn: cython.longlong
        order: cython.int
        end: cython.longlong
        for pfn in range(low, high, size):
            if b._block_type[pfn >> b.pageblock_order] == _ISOLATE:
                b._set_block(pfn, mt)
                b._isolated[zi] -= 1
        pfn = low
        while pfn < high:
            if b._meta[pfn] & 0xFF != _IN_BUDDY or b._meta[pfn] >> 16 != _ISOLATE:
                pfn += 1
                continue
            order = (b._meta[pfn] >> 8) & 0xFF
            end = pfn + (1 << order)
            b._free_list_del(zi, order, pfn)
            b._free_one(zi, pfn, order, mt, False)
            pfn = end

    def isolated_blocks(self, zi: cython.int) -> int:
        """How many page blocks of a zone are set apart (nr_isolate_pageblock)."""
        b: Buddy = self._buddy
        return b._isolated[zi]
