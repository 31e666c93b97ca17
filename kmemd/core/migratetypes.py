"""Blocks that change their type: fallback, stealing, and the high-order atomic reserve (mm/page_alloc.c).

Models ``__rmqueue_fallback``, ``steal_suitable_fallback``, ``move_freepages_block``, ``boost_watermark`` and
``reserve_highatomic_pageblock``.
"""

import cython

from kmemd.core.free_lists import FreeLists

_ORDERS = cython.declare(cython.int, 11)
_TOP = cython.declare(cython.int, 10)
_MOVABLE = cython.declare(cython.int, 1)
_PCPTYPES = cython.declare(cython.int, 3)
_HIGHATOMIC = cython.declare(cython.int, 3)
_IN_BUDDY = cython.declare(cython.int, 1)
_MASK = cython.declare(cython.int, 0)  # core/trace.py
_T_EXTFRAG = cython.declare(cython.int, 5)
_NOFRAGMENT = cython.declare(cython.int, 0x100)
_KSWAPD = cython.declare(cython.int, 0x800)
_PG_LRU_BIT = cython.declare(cython.int, 4)


@cython.cclass
class Migratetypes(FreeLists):
    """Free lists whose types give to each other when they run out."""

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _fallback_type(self, zi: cython.int, order: cython.int, start: cython.int) -> cython.int:
        """The first other type with a free block of ``order`` (find_suitable_fallback). -1: none."""
        first: cython.int = 2 if start != 2 else 0
        second: cython.int = 1 if start != _MOVABLE else 0
        if start >= _PCPTYPES:
            return -1
        if self._nr_list[self._list(zi, order, first)]:
            return first
        if self._nr_list[self._list(zi, order, second)]:
            return second
        return -1

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _can_steal(self, order: cython.int, start: cython.int) -> cython.bint:
        return order >= self.pageblock_order // 2 or start != _MOVABLE or self.mobility_disabled

    @cython.cfunc
    @cython.exceptval(check=False)
    def _fallback(self, zi: cython.int, order: cython.int, start: cython.int, flags: cython.int) -> cython.bint:
        """Move a block of another type to ``start``'s lists, perhaps with its page block (__rmqueue_fallback)."""
        lowest: cython.int = order
        current: cython.int
        mt: cython.int = -1
        steal: cython.bint = False
        pfn: cython.longlong
        at: cython.Py_ssize_t
        if order < self.pageblock_order and flags & _NOFRAGMENT:
            lowest = self.pageblock_order
        current = _TOP
        while current >= lowest:
            mt = self._fallback_type(zi, current, start)
            if mt >= 0:
                break
            current -= 1
        if mt < 0:
            return False
        steal = self._can_steal(current, start)
        if not steal and start == _MOVABLE and current > order:
            for current in range(order, _ORDERS):
                mt = self._fallback_type(zi, current, start)
                if mt >= 0:
                    break
            steal = self._can_steal(current, start)
        pfn = self._first(zi, current, mt)
        self._steal(zi, pfn, flags, start, steal)
        if self._control[_MASK] >> _T_EXTFRAG & 1:
            at = self._emit(_T_EXTFRAG, pfn, order, current, start)
            self._log[at + 4] = mt
            self._log[at + 5] = self._block_type[pfn >> self.pageblock_order] == start
        return True

    # -- page blocks -------------------------------------------------------------------------------------------

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _move_to_list(self, zi: cython.int, pfn: cython.longlong, mt: cython.int) -> cython.void:
        order: cython.int = self._meta[pfn] >> 8 & 0xFF
        self._free_list_del(zi, order, pfn)
        self._free_list_add_tail(zi, order, mt, pfn)

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _steal(
        self, zi: cython.int, pfn: cython.longlong, flags: cython.int, start: cython.int, whole: cython.bint
    ) -> cython.void:
        """Take a block for ``start``, and its page block when most of it suits (steal_suitable_fallback)."""
        order: cython.int = self._meta[pfn] >> 8 & 0xFF
        old: cython.int = self._block_type[pfn >> self.pageblock_order]
        i: cython.longlong
        moved: cython.longlong
        movable: cython.longlong = 0
        alike: cython.longlong
        size: cython.longlong = 1 << self.pageblock_order
        if old != _HIGHATOMIC and order >= self.pageblock_order:
            for i in range(pfn, pfn + (1 << order), size):
                self._set_block(i, start)
        if old == _HIGHATOMIC or order >= self.pageblock_order:
            self._move_to_list(zi, pfn, start)
            return
        if self._boost_watermark(zi) and flags & _KSWAPD:
            self._kswapd_wake[zi] = 1
        if not whole:
            self._move_to_list(zi, pfn, start)
            return
        movable = self._movable_in_block(zi, pfn)
        moved = self._move_block(zi, pfn, start)
        alike = 0
        if start == _MOVABLE:
            alike = movable
        elif old == _MOVABLE:
            alike = size - (moved + movable)
        if not moved:
            self._move_to_list(zi, pfn, start)
            return
        if moved + alike >= size >> 1 or self.mobility_disabled:
            self._set_block(pfn, start)

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _boost_watermark(self, zi: cython.int) -> cython.bint:
        size: cython.longlong = 1 << self.pageblock_order
        most: cython.longlong = self._wmark[zi * 4 + 2] * self.boost_factor // 10000
        if not self.boost_factor or size * 4 > self._managed[zi] or not most:
            return False
        most = max(most, size)
        self._boost[zi] = min(self._boost[zi] + size, most)
        return True

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _movable_in_block(self, zi: cython.int, pfn: cython.longlong) -> cython.longlong:
        """Pages in use in the page block that could be migrated."""
        i: cython.longlong = (pfn >> self.pageblock_order) << self.pageblock_order
        end: cython.longlong = i + (1 << self.pageblock_order)
        n: cython.longlong = 0
        if i < self._zone_start[zi]:
            i = pfn
        if end > self._zone_end[zi]:
            return 0
        while i < end:
            if self._meta[i] & 0xFF == _IN_BUDDY:
                i += 1 << (self._meta[i] >> 8 & 0xFF)
                continue
            if (self._flags[i] >> _PG_LRU_BIT) & 1:
                n += 1
            i += 1
        return n

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _move_block(self, zi: cython.int, pfn: cython.longlong, mt: cython.int) -> cython.longlong:
        """Move the free pages of a page block to the tails of ``mt``'s lists (move_freepages_block)."""
        i: cython.longlong = (pfn >> self.pageblock_order) << self.pageblock_order
        end: cython.longlong = i + (1 << self.pageblock_order)
        moved: cython.longlong = 0
        size: cython.longlong
        if i < self._zone_start[zi]:
            i = pfn
        if end > self._zone_end[zi]:
            return 0
        while i < end:
            if self._meta[i] & 0xFF != _IN_BUDDY:
                i += 1
                continue
            size = 1 << (self._meta[i] >> 8 & 0xFF)
            self._move_to_list(zi, i, mt)
            moved += size
            i += size
        return moved

    # -- the reserve for high-order atomic allocations ---------------------------------------------------------

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _reserve_highatomic(self, zi: cython.int, pfn: cython.longlong) -> cython.void:
        """Keep the block's page block for high-order atomic allocations (reserve_highatomic_pageblock)."""
        size: cython.longlong = 1 << self.pageblock_order
        if self._highatomic[zi] >= self._managed[zi] // 100 + size:
            return
        if self._block_type[pfn >> self.pageblock_order] < _PCPTYPES:
            self._highatomic[zi] += size
            self._set_block(pfn, _HIGHATOMIC)
            self._move_block(zi, pfn, _HIGHATOMIC)

    def unreserve_highatomic(
        self, row: cython.int, highest: cython.int, nodemask: int, mt: cython.int, force: bool
    ) -> bool:
        """Give one reserved page block to ``mt`` (unreserve_highatomic_pageblock). Whether pages were moved."""
        size: cython.longlong = 1 << self.pageblock_order
        base: cython.int = row * self._row
        i: cython.int
        order: cython.int
        zi: cython.int
        pfn: cython.longlong
        for i in range(base, base + self._row):
            zi = self._zonelists[i]
            if zi < 0:
                break
            if self._zone_type[zi] > highest or not (nodemask >> self._zone_nid[zi]) & 1:
                continue
            if not force and self._highatomic[zi] <= size:
                continue
            for order in range(_ORDERS):
                pfn = self._first(zi, order, _HIGHATOMIC)
                if pfn < 0:
                    continue
                if self._block_type[pfn >> self.pageblock_order] == _HIGHATOMIC:
                    self._highatomic[zi] -= min(size, self._highatomic[zi])
                self._set_block(pfn, mt)
                if self._move_block(zi, pfn, mt):
                    return True
        return False
