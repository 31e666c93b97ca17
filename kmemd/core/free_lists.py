"""The buddy system's lists: merging and splitting, and the per-cpu lists in front of them (mm/page_alloc.c).

Models ``__free_one_page``, ``__rmqueue_smallest`` and ``__rmqueue``; ``rmqueue_pcplist``, ``rmqueue_bulk``,
``free_unref_page_commit`` and ``free_pcppages_bulk``. What happens to each page of a batch happens in this module.

Invariants:
- Never touched blocks of the highest order, all Movable, are a zone's *frontier*: up to ``EXTENTS`` PFN ranges that
  stand in the list of that order between the blocks of list ``MOVABLE`` and those of list ``AFTER``.
"""

from typing import Any

import cython

from kmemd.core.mmzone import Zones

_ORDERS = cython.declare(cython.int, 11)
_TOP = cython.declare(cython.int, 10)
_LISTS = cython.declare(cython.int, 7)  # lists per order: six migratetypes, and AFTER
_AFTER = cython.declare(cython.int, 6)
_MOVABLE = cython.declare(cython.int, 1)
_PCPTYPES = cython.declare(cython.int, 3)
_CMA = cython.declare(cython.int, 4)
_ISOLATE = cython.declare(cython.int, 5)
_PCP_LISTS = cython.declare(cython.int, 14)
_PCP_LOW = cython.declare(cython.int, 12)  # lists of orders 0..3; then THP unmovable, THP movable
_COSTLY = cython.declare(cython.int, 3)
_BATCH_SCALE_MAX = cython.declare(cython.int, 5)  # CONFIG_PCP_BATCH_SCALE_MAX
_EXTENTS = cython.declare(cython.int, 64)
_NOT_HEAD = cython.declare(cython.int, 0)
_IN_BUDDY = cython.declare(cython.int, 1)
_IN_PCP = cython.declare(cython.int, 2)
_NOW = cython.declare(cython.int, 0)
_CPU = cython.declare(cython.int, 1)
_MASK = cython.declare(cython.int, 0)  # core/trace.py
_T_ZONE_LOCKED = cython.declare(cython.int, 3)
_T_PCPU_DRAIN = cython.declare(cython.int, 4)
_ALLOC_CMA = cython.declare(cython.int, 0x80)


@cython.cclass
class FreeLists(Zones):
    """The free lists of all zones.

    ``captured`` is the block that ``capture`` waited for, -1 without; ``taken`` counts the pages that left the lists
    without an allocation.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.captured = -1
        self.taken = 0
        self._pcp_used = -1
        self._capture_zone = 0
        self._capture_order = -1
        self._capture_gfp = 0

    # -- lists -------------------------------------------------------------------------------------------------

    @cython.final
    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _add(self, li: cython.int, pfn: cython.longlong) -> cython.void:
        first: cython.int = self._head_next[li]
        me: cython.int = cython.cast(cython.int, pfn + 1)
        self._prev[pfn] = -(li + 1)
        if first:
            self._next[pfn] = first
            self._prev[first - 1] = me
        else:
            self._next[pfn] = -(li + 1)
            self._head_prev[li] = me
        self._head_next[li] = me

    @cython.final
    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _add_tail(self, li: cython.int, pfn: cython.longlong) -> cython.void:
        last: cython.int = self._head_prev[li]
        me: cython.int = cython.cast(cython.int, pfn + 1)
        self._next[pfn] = -(li + 1)
        if last:
            self._prev[pfn] = last
            self._next[last - 1] = me
        else:
            self._prev[pfn] = -(li + 1)
            self._head_next[li] = me
        self._head_prev[li] = me

    @cython.final
    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _del(self, pfn: cython.longlong) -> cython.void:
        after: cython.int = self._next[pfn]
        before: cython.int = self._prev[pfn]
        if before > 0:
            self._next[before - 1] = after
        else:
            self._head_next[-before - 1] = after if after > 0 else 0
        if after > 0:
            self._prev[after - 1] = before
        else:
            self._head_prev[-after - 1] = before if before > 0 else 0

    @cython.final
    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _list(self, zi: cython.int, order: cython.int, mt: cython.int) -> cython.int:
        return (zi * _ORDERS + order) * _LISTS + mt

    @cython.final
    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _free_list_add(self, zi: cython.int, order: cython.int, mt: cython.int, pfn: cython.longlong) -> cython.void:
        li: cython.int = self._list(zi, order, mt)
        self._add(li, pfn)
        self._on_free_list(zi, order, mt, li, pfn)

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _free_list_add_tail(
        self, zi: cython.int, order: cython.int, mt: cython.int, pfn: cython.longlong
    ) -> cython.void:
        li: cython.int = self._list(zi, order, mt)
        if order == _TOP and mt == _MOVABLE and self._front_blocks[zi]:
            self._add_tail(self._list(zi, order, _AFTER), pfn)
        else:
            self._add_tail(li, pfn)
        self._on_free_list(zi, order, mt, li, pfn)

    @cython.final
    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _on_free_list(
        self, zi: cython.int, order: cython.int, mt: cython.int, li: cython.int, pfn: cython.longlong
    ) -> cython.void:
        self._meta[pfn] = _IN_BUDDY | order << 8 | mt << 16
        self._nr_list[li] += 1

    @cython.final
    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _free_list_del(self, zi: cython.int, order: cython.int, pfn: cython.longlong) -> cython.void:
        self._del(pfn)
        self._nr_list[self._list(zi, order, self._meta[pfn] >> 16)] -= 1
        self._meta[pfn] = _NOT_HEAD

    @cython.final
    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _first(self, zi: cython.int, order: cython.int, mt: cython.int) -> cython.longlong:
        """The first block of a free list, or -1 (get_page_from_free_area)."""
        li: cython.int = self._list(zi, order, mt)
        first: cython.int = self._head_next[li]
        if first:
            return first - 1
        if order == _TOP and mt == _MOVABLE and self._nr_list[li]:
            return self._first_beyond(zi, li)
        return -1

    # -- the frontier ------------------------------------------------------------------------------------------

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _first_beyond(self, zi: cython.int, li: cython.int) -> cython.longlong:
        """The list is used up to its frontier: give the frontier's first block a place in the list."""
        base: cython.int = zi * _EXTENTS
        after: cython.int = self._list(zi, _TOP, _AFTER)
        pfn: cython.longlong
        if self._front_blocks[zi]:
            pfn = self._front_lo[base]
            self._take_frontier(zi, 0, pfn)
            self._add(li, pfn)
            self._meta[pfn] = _IN_BUDDY | _TOP << 8 | _MOVABLE << 16
            return pfn
        self._head_next[li] = self._head_next[after]
        self._head_prev[li] = self._head_prev[after]
        self._prev[self._head_next[li] - 1] = -(li + 1)
        self._next[self._head_prev[li] - 1] = -(li + 1)
        self._head_next[after] = 0
        self._head_prev[after] = 0
        return self._head_next[li] - 1

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _take_frontier(self, zi: cython.int, extent: cython.int, pfn: cython.longlong) -> cython.void:
        """Cut one block out of a frontier extent; the lists' counts stay."""
        base: cython.int = zi * _EXTENTS
        i: cython.int = base + extent
        j: cython.int
        size: cython.longlong = 1 << _TOP
        high: cython.longlong = self._front_hi[i]
        self._front_blocks[zi] -= 1
        if pfn == self._front_lo[i]:
            self._front_lo[i] += size
        elif pfn + size == high:
            self._front_hi[i] -= size
        else:
            for j in range(base + self._front_n[zi], i + 1, -1):
                self._front_lo[j] = self._front_lo[j - 1]
                self._front_hi[j] = self._front_hi[j - 1]
            self._front_n[zi] += 1
            self._front_hi[i] = pfn
            self._front_lo[i + 1] = pfn + size
            self._front_hi[i + 1] = high
        if self._front_lo[i] == self._front_hi[i]:
            for j in range(i, base + self._front_n[zi] - 1):
                self._front_lo[j] = self._front_lo[j + 1]
                self._front_hi[j] = self._front_hi[j + 1]
            self._front_n[zi] -= 1

    def frontier(self, zi: cython.int) -> list:
        """The never touched ranges ``(low, high)`` of a zone, in list order."""
        base: cython.int = zi * _EXTENTS
        return [(self._front_lo[base + i], self._front_hi[base + i]) for i in range(self._front_n[zi])]

    # -- freeing -----------------------------------------------------------------------------------------------

    @cython.final
    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _count_free(self, zi: cython.int, mt: cython.int, pages: cython.longlong) -> cython.void:
        self._zone_stat[zi * self._stat_items + self._nr_free_pages] += pages
        if mt == _CMA:
            self._zone_stat[zi * self._stat_items + self._nr_free_cma] += pages

    @cython.final
    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _is_buddy(self, zi: cython.int, buddy: cython.longlong, order: cython.int) -> cython.bint:
        return (
            self._zone_start[zi] <= buddy < self._zone_end[zi] and self._meta[buddy] & 0xFFFF == _IN_BUDDY | order << 8
        )

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _free_one(
        self, zi: cython.int, pfn: cython.longlong, order: cython.int, mt: cython.int, tail: cython.bint
    ) -> cython.void:
        """Put a block back and count its pages as free (__free_one_page)."""
        if mt != _ISOLATE:
            self._count_free(zi, mt, 1 << order)
        self._merge(zi, pfn, order, mt, tail)

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _merge(
        self, zi: cython.int, pfn: cython.longlong, order: cython.int, mt: cython.int, tail: cython.bint
    ) -> cython.void:
        """Put a block on its free list, merged with its buddies as far as they are free."""
        buddy: cython.longlong = pfn ^ (1 << order)
        theirs: cython.int
        higher: cython.longlong
        while order < _TOP:
            if order == self._capture_order and self._capture(zi, pfn, mt):
                return
            buddy = pfn ^ (1 << order)
            if not self._is_buddy(zi, buddy, order):
                break
            if order >= self.pageblock_order:
                theirs = self._block_type[buddy >> self.pageblock_order]
                if mt != theirs and (mt >= _PCPTYPES or theirs >= _PCPTYPES):
                    break
            self._free_list_del(zi, order, buddy)
            self._meta[pfn] = _NOT_HEAD
            pfn &= buddy
            order += 1
        if not tail and order < _TOP - 1:
            higher = pfn & buddy
            tail = self._is_buddy(zi, higher ^ (1 << (order + 1)), order + 1)
        if tail:
            self._free_list_add_tail(zi, order, mt, pfn)
        else:
            self._free_list_add(zi, order, mt, pfn)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _capture(self, zi: cython.int, pfn: cython.longlong, mt: cython.int) -> cython.bint:
        """Whether somebody waits for the block of ``_capture_order`` that a free has just made (core/buddy.py)."""
        return False

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _free_pcp_bulk(self, zi: cython.int, pi: cython.int, count: cython.int, pindex: cython.int) -> cython.void:
        """Give ``count`` pages of a per-cpu list set back, list by list from ``pindex`` (free_pcppages_bulk)."""
        low: cython.int = 0
        high: cython.int = _PCP_LISTS - 1
        base: cython.int = self._pcp_base + pi * _PCP_LISTS
        order: cython.int
        freed: cython.int
        if count > self._pcp_count[pi]:
            count = self._pcp_count[pi]
        pindex -= 1
        while count > 0:
            while True:
                pindex += 1
                if pindex > high:
                    pindex = low
                if self._head_next[base + pindex]:
                    break
                if pindex == high:
                    high -= 1
                if pindex == low:
                    low += 1
            order = self.pageblock_order if pindex >= _PCP_LOW else pindex // _PCPTYPES
            freed = self._free_from_tail(zi, base + pindex, count, order)
            count -= freed
            self._pcp_count[pi] -= freed
        self._ctx[_NOW] += self.cost_buddy

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _free_from_tail(self, zi: cython.int, li: cython.int, count: cython.int, order: cython.int) -> cython.int:
        """Free at least ``count`` pages off the tail of one per-cpu list, or all it has. The pages freed."""
        last: cython.int = self._head_prev[li]
        mt: cython.int
        pfn: cython.longlong
        freed: cython.int = 0
        plain: cython.longlong = 0
        if self._control[_MASK] >> _T_PCPU_DRAIN & 1:
            self._trace_list(_T_PCPU_DRAIN, zi, li, order, (count + (1 << order) - 1) >> order)
        while last > 0 and freed < count:
            pfn = last - 1
            last = self._prev[pfn]
            mt = self._meta[pfn] >> 16
            self._meta[pfn] = _NOT_HEAD
            freed += 1 << order
            if self._isolated[zi]:
                mt = self._block_type[pfn >> self.pageblock_order]
            if mt < _CMA:
                plain += 1 << order
            elif mt != _ISOLATE:
                self._count_free(zi, mt, 1 << order)
            self._merge(zi, pfn, order, mt, False)
        self._count_free(zi, _MOVABLE, plain)
        if last > 0:
            self._head_prev[li] = last
            self._next[last - 1] = -(li + 1)
        else:
            self._head_prev[li] = 0
            self._head_next[li] = 0
        return freed

    # -- allocating --------------------------------------------------------------------------------------------

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _smallest(self, zi: cython.int, order: cython.int, mt: cython.int) -> cython.longlong:
        """Split the smallest block of the type that is large enough (__rmqueue_smallest). -1: none."""
        current: cython.int = order
        li: cython.int = self._list(zi, order, mt)
        pfn: cython.longlong
        while self._nr_list[li] == 0:
            current += 1
            if current == _ORDERS:
                return -1
            li += _LISTS
        pfn = self._head_next[li] - 1
        if pfn < 0:
            pfn = self._first_beyond(zi, li)
        self._del(pfn)
        self._nr_list[li] -= 1
        while current > order:
            current -= 1
            self._free_list_add(zi, current, mt, pfn + (1 << current))
        self._meta[pfn] = mt << 16
        return pfn

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _rmqueue(self, zi: cython.int, order: cython.int, mt: cython.int, flags: cython.int) -> cython.longlong:
        """One block of the type, falling back to CMA and other types (__rmqueue). -1: none."""
        pfn: cython.longlong
        base: cython.int = zi * self._stat_items
        if (
            flags & _ALLOC_CMA
            and self._zone_stat[base + self._nr_free_cma] > self._zone_stat[base + self._nr_free_pages] // 2
        ):
            pfn = self._smallest(zi, order, _CMA)
            if pfn >= 0:
                return pfn
        while True:
            pfn = self._smallest(zi, order, mt)
            if pfn >= 0:
                return pfn
            if flags & _ALLOC_CMA:
                pfn = self._smallest(zi, order, _CMA)
                if pfn >= 0:
                    return pfn
            if not self._fallback(zi, order, mt, flags):
                return -1

    @cython.cfunc
    @cython.exceptval(check=False)
    def _fallback(self, zi: cython.int, order: cython.int, start: cython.int, flags: cython.int) -> cython.bint:
        """Move a block of another type to ``start``'s lists, if types have anything to give (core/migratetypes.py)."""
        return False

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _refill(
        self, zi: cython.int, pi: cython.int, order: cython.int, mt: cython.int, flags: cython.int, li: cython.int
    ) -> cython.void:
        """Fill an empty per-cpu list from the free lists, upwards to its tail (rmqueue_bulk)."""
        batch: cython.int = self._pcp_batch[zi]
        got: cython.int = 0
        last: cython.int = -(li + 1)
        pfn: cython.longlong
        if batch > 1:
            batch = max(batch >> order, 2)
        while got < batch:
            pfn = self._rmqueue(zi, order, mt, flags)
            if pfn < 0:
                break
            if self._meta[pfn] >> 16 == _CMA:
                self._zone_stat[zi * self._stat_items + self._nr_free_cma] -= 1 << order
            self._meta[pfn] |= _IN_PCP | order << 8
            self._prev[pfn] = last
            if last > 0:
                self._next[last - 1] = cython.cast(cython.int, pfn + 1)
            else:
                self._head_next[li] = cython.cast(cython.int, pfn + 1)
            last = cython.cast(cython.int, pfn + 1)
            got += 1
        if got:
            self._next[last - 1] = -(li + 1)
            self._head_prev[li] = last
            if self._control[_MASK] >> _T_ZONE_LOCKED & 1:
                self._trace_list(_T_ZONE_LOCKED, zi, li, order, got)
        self._pcp_count[pi] += got << order
        self._zone_stat[zi * self._stat_items + self._nr_free_pages] -= got << order
        self._ctx[_NOW] += self.cost_buddy

    # -- per-cpu lists -----------------------------------------------------------------------------------------

    @cython.final
    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _pindex(self, mt: cython.int, order: cython.int) -> cython.int:
        if order > _COSTLY:
            return _PCP_LOW + (mt == _MOVABLE)
        return _PCPTYPES * order + mt

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _pcp_commit(self, zi: cython.int, pfn: cython.longlong, mt: cython.int, order: cython.int) -> cython.void:
        """Free to the local per-cpu list, and some of it back when it is full (free_unref_page_commit)."""
        pi: cython.int = zi * self.ncpus + cython.cast(cython.int, self._ctx[_CPU])
        pindex: cython.int = self._pindex(mt, order)
        high: cython.int = self._pcp_high[zi]
        batch: cython.int = self._pcp_batch[zi]
        free_high: cython.bint = self._pcp_factor[pi] != 0 and 0 < order <= _COSTLY
        n: cython.int
        self._events[self._ev_free] += 1 << order
        self._add(self._pcp_base + pi * _PCP_LISTS + pindex, pfn)
        self._pcp_count[pi] += 1 << order
        if high == 0 or free_high:
            high = 0
        elif self._reclaim_active[zi] and (batch << 2) < high:
            high = batch << 2
        if self._pcp_count[pi] < high:
            return
        if free_high:
            n = self._pcp_count[pi]
        elif high < batch:
            n = 1
        else:
            n = batch << self._pcp_factor[pi]
            if n < high - batch and self._pcp_factor[pi] < _BATCH_SCALE_MAX:
                self._pcp_factor[pi] += 1
            n = max(batch, min(n, high - batch))
        self._free_pcp_bulk(zi, pi, n, pindex)

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _from_pcp(self, zi: cython.int, order: cython.int, mt: cython.int, flags: cython.int) -> cython.longlong:
        """A block from the local per-cpu list (rmqueue_pcplist). -1: the zone has none."""
        pi: cython.int = zi * self.ncpus + cython.cast(cython.int, self._ctx[_CPU])
        li: cython.int = self._pcp_base + pi * _PCP_LISTS + self._pindex(mt, order)
        pfn: cython.longlong
        self._pcp_factor[pi] >>= 1
        if self._head_next[li] == 0:
            self._refill(zi, pi, order, mt, flags, li)
            if self._head_next[li] == 0:
                return -1
        pfn = self._head_next[li] - 1
        self._del(pfn)
        self._pcp_count[pi] -= 1 << order
        self._pcp_used = li
        self._last_zone = zi
        return pfn

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _trace_list(
        self, event: cython.int, zi: cython.int, li: cython.int, order: cython.int, n: cython.longlong
    ) -> cython.void:
        """An event for each of ``n`` blocks of a per-cpu list: those that came, from the head, or go, from the tail."""
        at: cython.int = self._head_next[li] if event == _T_ZONE_LOCKED else self._head_prev[li]
        mt: cython.int
        while at > 0 and n > 0:
            mt = self._meta[at - 1] >> 16
            if event == _T_ZONE_LOCKED:
                self._emit(event, at - 1, order, mt, mt < _PCPTYPES)
                at = self._next[at - 1]
            else:
                if self._isolated[zi]:
                    mt = self._block_type[(at - 1) >> self.pageblock_order]
                self._emit(event, at - 1, order, mt, 0)
                at = self._prev[at - 1]
            n -= 1
