"""The page allocator: watermarks, the walk over zones, and blocks one by one or in bulk (mm/page_alloc.c).

Models ``rmqueue``, ``free_unref_page``, ``zone_watermark_fast`` and ``get_page_from_freelist``; given a state,
every PFN is the one Linux hands out. What lies below are core/free_lists.py and core/migratetypes.py.
Left out: page shuffling and reporting, guard pages, cpuset checks and node reclaim, which ``mm/page_alloc.py`` does.
"""

from typing import Any

import cython

from kmemd.core.migratetypes import Migratetypes

_ORDERS = cython.declare(cython.int, 11)
_MOVABLE = cython.declare(cython.int, 1)
_PCPTYPES = cython.declare(cython.int, 3)
_HIGHATOMIC = cython.declare(cython.int, 3)
_CMA = cython.declare(cython.int, 4)
_ISOLATE = cython.declare(cython.int, 5)
_PCP_LISTS = cython.declare(cython.int, 14)
_COSTLY = cython.declare(cython.int, 3)
_BATCH_SCALE_MAX = cython.declare(cython.int, 5)  # CONFIG_PCP_BATCH_SCALE_MAX
_NOT_HEAD = cython.declare(cython.int, 0)
_IN_PCP = cython.declare(cython.int, 2)
_ALLOCATED = cython.declare(cython.int, 3)
_NOW = cython.declare(cython.int, 0)
_CPU = cython.declare(cython.int, 1)
_MASK = cython.declare(cython.int, 0)  # core/trace.py
_T_ALLOC = cython.declare(cython.int, 0)
_T_FREE = cython.declare(cython.int, 1)
_T_ZONE_LOCKED = cython.declare(cython.int, 3)
_WMARK_MASK = cython.declare(cython.int, 3)
_NO_WATERMARKS = cython.declare(cython.int, 0x04)
_OOM = cython.declare(cython.int, 0x08)
_NON_BLOCK = cython.declare(cython.int, 0x10)
_MIN_RESERVE = cython.declare(cython.int, 0x20)
_ALLOC_CMA = cython.declare(cython.int, 0x80)
_NOFRAGMENT = cython.declare(cython.int, 0x100)
_ALLOC_HIGHATOMIC = cython.declare(cython.int, 0x200)
_RESERVES = cython.declare(cython.int, 0x10 | 0x20 | 0x200 | 0x08)
_GFP_ATOMIC = cython.declare(cython.longlong, 0x200)
_HIT = cython.declare(cython.int, 0)
_MISS = cython.declare(cython.int, 1)
_FOREIGN = cython.declare(cython.int, 2)
_LOCAL = cython.declare(cython.int, 4)
_OTHER = cython.declare(cython.int, 5)
_NUMA_ITEMS = cython.declare(cython.int, 6)


@cython.final
@cython.cclass
class Buddy(Migratetypes):
    """The allocator of all zones: single blocks, and blocks in bulk as so many single ones.

    The arguments are those of ``Zones``. ``bad_pfn`` is where a free stopped that was not of an allocated block.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.bad_pfn = -1
        self._preferred = 0

    # -- freeing -----------------------------------------------------------------------------------------------

    @cython.cfunc
    @cython.exceptval(check=False)
    def _free_pages(self, pfn: cython.longlong, order: cython.int) -> cython.bint:
        """Free an allocated block (free_the_page). False: it is not the head of one of that order."""
        zi: cython.int
        mt: cython.int
        if pfn < 0 or pfn >= self._next.shape[0] or self._meta[pfn] & 0xFFFF != _ALLOCATED | order << 8:
            self.bad_pfn = pfn
            return False
        zi = self._last_zone
        if not self._zone_start[zi] <= pfn < self._zone_end[zi]:
            zi = self._zone_of(pfn)
        if self._flags[pfn]:
            self._flags[pfn] = 0
        if self._owner_on:
            self._reset_owner(pfn, order)
        if self._control[_MASK] >> _T_FREE & 1:
            self._emit(_T_FREE, pfn, order, 0, 0)
        self._ctx[_NOW] += self.cost_pcp
        mt = self._block_type[pfn >> self.pageblock_order]
        if (order > _COSTLY and order != self.pageblock_order) or mt == _ISOLATE:
            self._meta[pfn] = _NOT_HEAD
            self._free_one(zi, pfn, order, mt, False)
            self._events[self._ev_free] += 1 << order
            return True
        self._meta[pfn] = _IN_PCP | order << 8 | mt << 16
        self._pcp_commit(zi, pfn, mt if mt < _PCPTYPES else _MOVABLE, order)
        return True

    def free_pages(self, pfn: cython.longlong, order: cython.int) -> bool:
        """Free a block of ``order``. False, and nothing done, when no such block is allocated at ``pfn``."""
        return self._free_pages(pfn, order)

    def free_bulk(self, pfns: cython.longlong[::1], order: cython.int) -> int:
        """Free blocks in the order given. The number freed: it stops at a bad one, ``bad_pfn``."""
        i: cython.Py_ssize_t = 0
        while i < pfns.shape[0]:
            if order <= _COSTLY and not self._control[_MASK] >> _T_FREE & 1:
                i += self._free_run(pfns, i, order)
                if i == pfns.shape[0]:
                    break
            if not self._free_pages(pfns[i], order):
                return i
            i += 1
        return i

    @cython.cfunc
    @cython.exceptval(check=False)
    def _free_run(self, pfns: cython.longlong[::1], start: cython.Py_ssize_t, order: cython.int) -> cython.Py_ssize_t:
        """Put blocks on one per-cpu list for as long as it has room and they belong there. How many."""
        i: cython.Py_ssize_t = start
        pfn: cython.longlong = pfns[start]
        zi: cython.int
        pi: cython.int
        mt: cython.int
        li: cython.int
        first: cython.int
        room: cython.longlong
        if pfn < 0 or pfn >= self._next.shape[0]:
            return 0
        zi = self._last_zone
        if not self._zone_start[zi] <= pfn < self._zone_end[zi]:
            zi = self._zone_of(pfn)
        pi = zi * self.ncpus + cython.cast(cython.int, self._ctx[_CPU])
        mt = self._block_type[pfn >> self.pageblock_order]
        room = (self._pcp_high[zi] - 1 - self._pcp_count[pi]) >> order
        if mt >= _PCPTYPES or self._reclaim_active[zi] or (order and self._pcp_factor[pi]):
            return 0
        room = min(room, pfns.shape[0] - start)
        li = self._pcp_base + pi * _PCP_LISTS + self._pindex(mt, order)
        first = self._head_next[li]
        while i - start < room:
            pfn = pfns[i]
            if (
                pfn < self._zone_start[zi]
                or pfn >= self._zone_end[zi]
                or self._meta[pfn] & 0xFFFF != _ALLOCATED | order << 8
                or self._block_type[pfn >> self.pageblock_order] != mt
            ):
                break
            if self._flags[pfn]:
                self._flags[pfn] = 0
            if self._owner_on:
                self._reset_owner(pfn, order)
                self._ctx[_NOW] += self.cost_pcp
            self._meta[pfn] = _IN_PCP | order << 8 | mt << 16
            if first:
                self._next[pfn] = first
                self._prev[first - 1] = cython.cast(cython.int, pfn + 1)
            else:
                self._next[pfn] = -(li + 1)
                self._head_prev[li] = cython.cast(cython.int, pfn + 1)
            first = cython.cast(cython.int, pfn + 1)
            i += 1
        if i > start:
            self._head_next[li] = first
            self._prev[first - 1] = -(li + 1)
            self._pcp_count[pi] += (i - start) << order
            self._events[self._ev_free] += (i - start) << order
            if not self._owner_on:
                self._ctx[_NOW] += (i - start) * self.cost_pcp
        return i - start

    def drain(self, zi: cython.int, cpu: cython.int, pages: cython.int = -1) -> None:
        """Give the pages of a per-cpu list set back to the free lists (drain_pages_zone, drain_zone_pages)."""
        pi: cython.int = zi * self.ncpus + cpu
        n: cython.int = self._pcp_batch[zi] << _BATCH_SCALE_MAX
        if pages >= 0:
            self._free_pcp_bulk(zi, pi, pages, 0)
            return
        while self._pcp_count[pi]:
            self._free_pcp_bulk(zi, pi, n, 0)

    def drain_all(self) -> None:
        """Drain every CPU's lists of every zone (drain_all_pages)."""
        zi: cython.int
        cpu: cython.int
        for cpu in range(self.ncpus):
            for zi in range(self.nzones):
                if self._pcp_count[zi * self.ncpus + cpu]:
                    self.drain(zi, cpu)

    # -- allocating --------------------------------------------------------------------------------------------

    @cython.cfunc
    @cython.exceptval(check=False)
    def _from_zone(
        self, preferred: cython.int, zi: cython.int, order: cython.int, mt: cython.int, flags: cython.int
    ) -> cython.longlong:
        """A block of a zone (rmqueue): per-cpu lists for small orders, else the free lists. -1: none."""
        pfn: cython.longlong = -1
        if (order <= _COSTLY or order == self.pageblock_order) and (flags & _ALLOC_CMA or mt != _MOVABLE):
            pfn = self._from_pcp(zi, order, mt, flags)
        if pfn < 0:
            if flags & _ALLOC_HIGHATOMIC:
                pfn = self._smallest(zi, order, _HIGHATOMIC)
            if pfn < 0:
                pfn = self._rmqueue(zi, order, mt, flags)
            if pfn < 0 and flags & (_OOM | _NON_BLOCK):
                pfn = self._smallest(zi, order, _HIGHATOMIC)
            if pfn < 0:
                return -1
            if self._control[_MASK] >> _T_ZONE_LOCKED & 1:
                self._emit(_T_ZONE_LOCKED, pfn, order, self._meta[pfn] >> 16, 0)
            self._count_free(zi, self._meta[pfn] >> 16, -(1 << order))
            self._ctx[_NOW] += self.cost_buddy
        self._meta[pfn] = _ALLOCATED | order << 8 | (self._meta[pfn] & 0xFF0000)
        self._events[self._ev_alloc[zi]] += 1 << order
        if self.numa_stat_on:
            self._count_numa(preferred, zi, 1)
        return pfn

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _count_numa(self, preferred: cython.int, zi: cython.int, n: cython.longlong) -> cython.void:
        nid: cython.int = self._zone_nid[zi]
        base: cython.int = zi * _NUMA_ITEMS
        local: cython.bint = nid == self._cpu_node[self._ctx[_CPU]]
        if nid == self._zone_nid[preferred]:
            self._numa_stat[base + _HIT] += n
        else:
            self._numa_stat[base + _MISS] += n
            self._numa_stat[preferred * _NUMA_ITEMS + _FOREIGN] += n
        self._numa_stat[base + (_LOCAL if local else _OTHER)] += n

    @cython.cfunc
    @cython.exceptval(check=False)
    def _unusable(self, zi: cython.int, order: cython.int, flags: cython.int) -> cython.longlong:
        free: cython.longlong = (1 << order) - 1
        if not flags & _RESERVES:
            free += self._highatomic[zi]
        if not flags & _ALLOC_CMA:
            free += self._zone_stat[zi * self._stat_items + self._nr_free_cma]
        return free

    @cython.cfunc
    @cython.exceptval(check=False)
    def _watermark_ok(
        self,
        zi: cython.int,
        order: cython.int,
        mark: cython.longlong,
        highest: cython.int,
        flags: cython.int,
        free: cython.longlong,
    ) -> cython.bint:
        """Whether ``free`` pages leave ``mark`` untouched (__zone_watermark_ok)."""
        low: cython.longlong = mark
        o: cython.int
        li: cython.int
        free -= self._unusable(zi, order, flags)
        if flags & _RESERVES:
            if flags & _MIN_RESERVE:
                low -= low // 2
                if flags & _NON_BLOCK:
                    low -= low // 4
            if flags & _OOM:
                low -= low // 2
        if free <= low + self._reserve[zi * self._types + highest]:
            return False
        if order == 0:
            return True
        for o in range(order, _ORDERS):
            li = self._list(zi, o, 0)
            if self._nr_list[li] or self._nr_list[li + 1] or self._nr_list[li + 2]:
                return True
            if flags & _ALLOC_CMA and self._nr_list[li + _CMA]:
                return True
            if flags & (_ALLOC_HIGHATOMIC | _OOM) and self._nr_list[li + _HIGHATOMIC]:
                return True
        return False

    @cython.cfunc
    @cython.exceptval(check=False)
    def _watermark_fast(
        self, zi: cython.int, order: cython.int, highest: cython.int, flags: cython.int, gfp: cython.longlong
    ) -> cython.bint:
        """zone_watermark_fast with the mark that ``flags`` name."""
        free: cython.longlong = self._zone_stat[zi * self._stat_items + self._nr_free_pages]
        bare: cython.longlong = self._wmark[zi * 4 + (flags & _WMARK_MASK)]
        mark: cython.longlong = bare + self._boost[zi]
        usable: cython.longlong
        if order == 0:
            usable = free - min(free, self._unusable(zi, 0, flags))
            if usable > mark + self._reserve[zi * self._types + highest]:
                return True
        if self._watermark_ok(zi, order, mark, highest, flags, free):
            return True
        if order == 0 and gfp & _GFP_ATOMIC and self._boost[zi] and flags & _WMARK_MASK == 0:
            return self._watermark_ok(zi, 0, bare, highest, flags, free)
        return False

    def watermark_ok(
        self, zi: cython.int, order: cython.int, mark: cython.longlong, highest: cython.int, flags: cython.int
    ) -> bool:
        """zone_watermark_ok with the zone's free pages."""
        free: cython.longlong = self._zone_stat[zi * self._stat_items + self._nr_free_pages]
        return self._watermark_ok(zi, order, mark, highest, flags, free)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _from_freelists(
        self,
        row: cython.int,
        highest: cython.int,
        nodemask: cython.ulonglong,
        order: cython.int,
        mt: cython.int,
        flags: cython.int,
        gfp: cython.longlong,
    ) -> cython.longlong:
        """Go through a zonelist for a zone with enough free pages (get_page_from_freelist). -1: none."""
        base: cython.int = row * self._row
        i: cython.int
        zi: cython.int
        pfn: cython.longlong
        preferred: cython.int
        one: cython.ulonglong = 1
        no_fallback: cython.bint
        while True:
            no_fallback = (flags & _NOFRAGMENT) != 0
            preferred = -1
            i = base
            while self._zonelists[i] >= 0:
                zi = self._zonelists[i]
                i += 1
                if self._zone_type[zi] > highest or not (nodemask >> self._zone_nid[zi]) & one:
                    continue
                if preferred < 0:
                    preferred = zi
                if (
                    no_fallback
                    and self.numa_nodes > 1
                    and zi != preferred
                    and self._zone_nid[zi] != self._zone_nid[preferred]
                ):
                    break
                if not flags & _NO_WATERMARKS and not self._watermark_fast(zi, order, highest, flags, gfp):
                    continue
                self._preferred = preferred
                pfn = self._from_zone(preferred, zi, order, mt, flags)
                if pfn < 0:
                    continue
                if self._owner_on:
                    self._set_owner(pfn, order, gfp)
                if self._control[_MASK] & 1:
                    self._emit(_T_ALLOC, pfn, order, gfp, mt)
                if flags & _ALLOC_HIGHATOMIC:
                    self._reserve_highatomic(zi, pfn)
                return pfn
            if not no_fallback:
                return -1
            flags &= ~_NOFRAGMENT

    def alloc_pages(
        self,
        row: cython.int,
        highest: cython.int,
        nodemask: cython.ulonglong,
        order: cython.int,
        mt: cython.int,
        flags: cython.int,
        gfp: cython.longlong,
    ) -> int:
        """One block by get_page_from_freelist with alloc flags ``flags``. -1: no zone has one."""
        pfn: cython.longlong = self._from_freelists(row, highest, nodemask, order, mt, flags, gfp)
        self._ctx[_NOW] += self.cost_pcp
        return pfn

    def alloc_bulk(
        self,
        out: cython.longlong[::1],
        row: cython.int,
        highest: cython.int,
        nodemask: cython.ulonglong,
        order: cython.int,
        mt: cython.int,
        flags: cython.int,
        gfp: cython.longlong,
    ) -> int:
        """Fill ``out`` with blocks, as so many single allocations. The number got: it stops at a failure."""
        i: cython.Py_ssize_t
        pfn: cython.longlong
        n: cython.Py_ssize_t = out.shape[0]
        i = 0
        while i < n:
            self._pcp_used = -1
            pfn = self._from_freelists(row, highest, nodemask, order, mt, flags, gfp)
            self._ctx[_NOW] += self.cost_pcp
            if pfn < 0:
                return i
            out[i] = pfn
            i += 1
            if self._pcp_used >= 0:
                i += self._take_rest(out, i, order, gfp, mt)
        return n

    @cython.cfunc
    @cython.exceptval(check=False)
    def _take_rest(
        self,
        out: cython.longlong[::1],
        start: cython.Py_ssize_t,
        order: cython.int,
        gfp: cython.longlong,
        mt: cython.int,
    ) -> cython.Py_ssize_t:
        """Take what is left on the per-cpu list that the last block came from.

        Taking from it changes nothing that the zone walk looks at, so each walk would end at the same list.
        """
        li: cython.int = self._pcp_used
        zi: cython.int = self._last_zone
        at: cython.int = self._head_next[li]
        n: cython.Py_ssize_t = out.shape[0]
        i: cython.Py_ssize_t = start
        taken: cython.longlong
        pi: cython.int = zi * self.ncpus + cython.cast(cython.int, self._ctx[_CPU])
        each: cython.bint = self._owner_on or self._control[_MASK] & 1
        if self._owner_on:
            self._set_owners(at, n - i, order, gfp)
        while at > 0 and i < n:
            out[i] = at - 1
            self._meta[at - 1] += _ALLOCATED - _IN_PCP
            if each:
                if self._control[_MASK] & 1:
                    self._emit(_T_ALLOC, at - 1, order, gfp, mt)
                self._ctx[_NOW] += self.cost_pcp
            at = self._next[at - 1]
            i += 1
        if at > 0:
            self._head_next[li] = at
            self._prev[at - 1] = -(li + 1)
        else:
            self._head_next[li] = 0
            self._head_prev[li] = 0
        taken = i - start
        self._pcp_count[pi] -= taken << order
        self._pcp_factor[pi] >>= min(taken, 31)
        self._events[self._ev_alloc[zi]] += taken << order
        if not each:
            self._ctx[_NOW] += taken * self.cost_pcp
        if self.numa_stat_on:
            self._count_numa(self._preferred, zi, taken)
        return taken

    # -- capture -----------------------------------------------------------------------------------------------

    def capture(self, zi: cython.int, order: cython.int, gfp: cython.longlong = 0) -> None:
        """From now on keep the first block of ``order`` that a free makes in a zone as ``captured``; -1: no more."""
        self._capture_zone = zi
        self._capture_order = order
        self._capture_gfp = gfp
        self.captured = -1

    @cython.cfunc
    @cython.exceptval(check=False)
    def _capture(self, zi: cython.int, pfn: cython.longlong, mt: cython.int) -> cython.bint:
        """compaction_capture: a block that is less than a page block does not come out of a movable one."""
        if zi != self._capture_zone or mt >= _CMA or (self._capture_order < self.pageblock_order and mt == _MOVABLE):
            return False
        self._count_free(zi, mt, -(1 << self._capture_order))
        self._meta[pfn] = _ALLOCATED | self._capture_order << 8 | mt << 16
        if self._owner_on:
            self._set_owner(pfn, self._capture_order, self._capture_gfp)
        if self._control[_MASK] & 1:
            self._emit(_T_ALLOC, pfn, self._capture_order, self._capture_gfp, mt)
        self.taken += 1 << self._capture_order
        self.captured = pfn
        self._capture_order = -1
        return True
