"""Page faults of private anonymous memory, many at a time (mm/memory.c).

Models ``handle_pte_fault``, ``do_anonymous_page``, ``do_wp_page`` and the counting of pages (``SPLIT_RSS_COUNTING``).
What else a fault may need (files, swap, huge pages, hints) is left to the caller.

A run of faults is handled in batches: their entries are written with PFN 0, then their pages are taken from the
allocator at once and put in. The order of allocations is that of the faults, and nobody looks in between.

Invariants: ``rss`` is what the kernel has counted; ``rss_task`` what the task has not yet handed over.
"""

from typing import Any

import cython
import numpy as np

from kmemd.core import trace_ids
from kmemd.core.array_view import view
from kmemd.core.page_tables import MAX_MM
from kmemd.core.tlb import Tlb

BATCH = 2048

_BATCH = cython.declare(cython.int, 2048)
_PRESENT = cython.declare(cython.ulonglong, 1)
_RW = cython.declare(cython.ulonglong, 2)
_USER = cython.declare(cython.ulonglong, 4)
_ACCESSED = cython.declare(cython.ulonglong, 1 << 5)
_DIRTY = cython.declare(cython.ulonglong, 1 << 6)
_PROTNONE = cython.declare(cython.ulonglong, 1 << 8)
_SPECIAL = cython.declare(cython.ulonglong, 1 << 9)
_SOFT_DIRTY = cython.declare(cython.ulonglong, 1 << 11)
_NX = cython.declare(cython.ulonglong, 1 << 63)
_PFN_MASK = cython.declare(cython.ulonglong, ((1 << 40) - 1) << 12)
_NOW = cython.declare(cython.int, 0)
_RSS_STAT = cython.declare(cython.int, trace_ids.RSS_STAT)
_WRITE = cython.declare(cython.int, 1)
_MM_ANON = cython.declare(cython.int, 1)
_FAST = cython.declare(cython.int, 8)
_ROW_HUGE = cython.declare(cython.int, 16)
_ROW_LOCKED = cython.declare(cython.int, 32)
_EVENTS_THRESH = cython.declare(cython.int, 64)
_NEW_FLAGS = cython.declare(cython.uint, 1 << 2 | 1 << 17 | 1 << 19)
_EXCLUSIVE = cython.declare(cython.uint, 1 << 17)
_LRU = cython.declare(cython.uint, 1 << 4)
_SWAPCACHE = cython.declare(cython.uint, 1 << 10)
_CONTENT = cython.declare(cython.uint, 1 << 31)
_SINGLE = cython.declare(cython.int, 3)  # PageMap.meta of a page in use that is no part of a block
_S_FAULT = cython.declare(cython.int, 5)
_S_ZERO = cython.declare(cython.int, 6)
_S_NEW = cython.declare(cython.int, 7)
_S_COPY = cython.declare(cython.int, 8)
_S_REUSE = cython.declare(cython.int, 9)
_DONE = cython.declare(cython.int, 0)
_NO_VMA = cython.declare(cython.int, 1)
_BAD_ACCESS = cython.declare(cython.int, 2)
_SLOW = cython.declare(cython.int, 3)
_NO_MEMORY = cython.declare(cython.int, 4)


@cython.cclass
class Faults(Tlb):
    """Faults, and what they count of each address space.

    ``supply(row, vpns)`` gives pages for faults in a row of the table of mappings, fewer when memory runs out;
    ``make_table(mm, vpn)`` makes the missing tables of an address; ``copied(old, new)`` hears of pages whose content
    is known.
    These callables belong to ``mm/memory.py``, which sets them when it is made. ``swap`` handles faults on swap entries
    (core/swap_fault.py); without it they are the caller's.
    """

    def __init__(
        self,
        pages: Any,
        context: Any,
        zones: Any,
        cpu_nodes: Any,
        vmstat: Any,
        lru: Any,
        bits: int,
        levels: int,
        zero_pfn: int,
        items: Any,
        fault_ns: int,
    ) -> None:
        super().__init__(pages, zones, vmstat, context, bits, levels, cpu_nodes)
        self.lru, self.zero_pfn = lru, zero_pfn
        self._trace, self._traced = context.trace, view(context.trace.control)
        self._pgfault, self._nr_anon, self._pgreuse = items
        self._cost_fault = fault_ns
        self.supply: Any = None
        self.make_table: Any = None
        self.copied: Any = None
        self.swap: Any = None
        self.at = self.row = 0
        self._vmas = view(np.zeros((1, 6), dtype=np.int64))
        self._fault_slot = 0
        self._swap_row = -1
        self._init_counts()
        self._init_batch()

    def _init_counts(self) -> None:
        self.rss, self.rss_task = (np.zeros(MAX_MM * 4, dtype=np.int64) for _ in range(2))
        self._rss, self._rss_task = view(self.rss), view(self.rss_task)
        self._rss_events = view(np.zeros(MAX_MM, dtype=np.int32))
        self.faults_of = np.zeros(MAX_MM, dtype=np.int64)
        self._faults_of = view(self.faults_of)

    def _init_batch(self) -> None:
        self._pend = self._pend_row = 0
        self._pend_vpns = np.zeros(BATCH, dtype=np.int64)
        self._pend_vpn = view(self._pend_vpns)
        self._pend_slot, self._pend_at = (view(np.zeros(BATCH, dtype=np.int64)) for _ in range(2))
        self._pend_old = view(np.zeros(BATCH, dtype=np.uint64))

    def new_mm(self, mm: cython.int, pgd_pfn: cython.longlong) -> None:
        """Begin an address space whose top table is a zeroed page."""
        k: cython.int
        self._pgd[mm] = pgd_pfn
        for k in range(4):
            self._rss[mm * 4 + k] = 0
            self._rss_task[mm * 4 + k] = 0
        self._rss_events[mm] = 0
        self._tables[mm] = 0
        self._faults_of[mm] = 0
        self._has_huge[mm] = 0
        self._mm_end = max(self._mm_end, mm + 1)

    # -- what is counted ---------------------------------------------------------------------------------------

    def sync_rss(self, mm: cython.int) -> None:
        """Hand the task's own counts over to the address space (sync_mm_rss)."""
        self._sync(mm, 0)

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _uncount(self, mm: cython.int, faults: cython.int) -> cython.void:
        """Faults are taken back: the counts that they handed over are the task's again."""
        events: cython.int = self._rss_events[mm] - faults
        while events < 0:
            events += _EVENTS_THRESH + 2
            self._rss_task[mm * 4 + _MM_ANON] += _EVENTS_THRESH + 2
            self._rss[mm * 4 + _MM_ANON] -= _EVENTS_THRESH + 2
        self._rss_events[mm] = events

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _sync(self, mm: cython.int, current: cython.int) -> cython.void:
        """``current``: it is the executing task's own address space."""
        k: cython.int
        for k in range(mm * 4, mm * 4 + 4):
            self._rss[k] += self._rss_task[k]
            if self._rss_task[k] and self._traced[0] >> _RSS_STAT & 1:
                self._trace.emit(_RSS_STAT, 0, current, k - mm * 4, self._rss[k] << 12)
            self._rss_task[k] = 0
        self._rss_events[mm] = 0

    def count_fault(self, mm: cython.int) -> None:
        """A fault begins: every 66th hands the counts over (check_sync_rss_stat)."""
        self._tick(mm)

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _tick(self, mm: cython.int) -> cython.void:
        self._events[self._pgfault] += 1
        self._stats[_S_FAULT] += 1
        self._faults_of[mm] += 1
        self._ctx[_NOW] += self._cost_fault
        if self._rss_events[mm] > _EVENTS_THRESH:
            self._sync(mm, 1)
        else:
            self._rss_events[mm] += 1

    # -- faults ------------------------------------------------------------------------------------------------

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _row_of(self, vpn: cython.longlong) -> cython.Py_ssize_t:
        """The mapping of an address, -1 when there is none."""
        low: cython.Py_ssize_t = 0
        high: cython.Py_ssize_t = self._vmas.shape[0]
        middle: cython.Py_ssize_t
        if self.row < high and self._vmas[self.row, 0] <= vpn < self._vmas[self.row, 1]:
            return self.row
        while low < high:
            middle = (low + high) >> 1
            if self._vmas[middle, 1] <= vpn:
                low = middle + 1
            else:
                high = middle
        if low == self._vmas.shape[0] or self._vmas[low, 0] > vpn:
            return -1
        self.row = low
        return low

    @cython.final
    @cython.cfunc
    def _fault(
        self,
        mm: cython.int,
        vpn: cython.longlong,
        op: cython.int,
        at: cython.Py_ssize_t,
    ) -> cython.int:
        """A page fault (do_user_addr_fault, handle_pte_fault) as far as it is private anonymous memory's."""
        row: cython.Py_ssize_t = self._row_of(vpn)
        kind: cython.longlong
        slot: cython.longlong
        entry: cython.ulonglong
        failed: cython.longlong
        if row < 0:
            return _NO_VMA
        kind = self._vmas[row, 2]
        if not kind >> op & 1:
            return _BAD_ACCESS
        if not kind & _FAST:
            return _SLOW
        slot = self._leaf(mm, vpn)
        if slot < 0:
            if kind & _ROW_HUGE and self._level <= 0:
                return _SLOW
            if self._pend:
                failed = self._commit(mm)
                if failed >= 0:
                    self.at = failed
                    return _NO_MEMORY
            if kind & _ROW_HUGE:
                return _SLOW
            self.make_table(mm, vpn)
            slot = self._leaf(mm, vpn)
        if self._level:
            return _SLOW
        self._fault_slot = slot
        entry = self._words[slot]
        if entry & _PRESENT:
            return self._wp_fault(mm, vpn, slot, entry, row, at)
        if entry and not entry & _PROTNONE and self.swap is not None and self._vmas[row, 3]:
            return self._swap_fault(mm, vpn, slot, op, row)
        if entry or (op == _WRITE and not self._vmas[row, 3]):
            return _SLOW
        self._tick(mm)
        if op != _WRITE:
            self._words[slot] = (
                (cython.cast(cython.ulonglong, self.zero_pfn) << 12)
                | _PRESENT
                | _USER
                | _ACCESSED
                | _SPECIAL
                | (0 if kind & 4 else _NX)
            )
            self._stats[_S_ZERO] += 1
            return _DONE
        self._stats[_S_NEW] += 1
        self._rss_task[mm * 4 + _MM_ANON] += 1
        return self._put_off(mm, vpn, slot, 0, row, at)

    @cython.final
    @cython.cfunc
    def _swap_fault(
        self,
        mm: cython.int,
        vpn: cython.longlong,
        slot: cython.longlong,
        op: cython.int,
        row: cython.Py_ssize_t,
    ) -> cython.int:
        """A fault on a swap entry: core/swap_fault.py does it, or the caller."""
        fresh: cython.bint = row != self._swap_row
        failed: cython.longlong
        if self._pend:
            failed = self._commit(mm)
            if failed >= 0:
                self.at = failed
                return _NO_MEMORY
        self._swap_row = row
        index: cython.longlong = vpn + self._vmas[row, 4]
        if self.swap.handle(
            mm, row, vpn, slot, op, self._vmas[row, 2], self._vmas[row, 3], index, self._vmas[row, 5], fresh
        ):
            return _DONE
        self._swap_row = -1
        return _SLOW

    @cython.final
    @cython.cfunc
    def _wp_fault(
        self,
        mm: cython.int,
        vpn: cython.longlong,
        slot: cython.longlong,
        entry: cython.ulonglong,
        row: cython.Py_ssize_t,
        at: cython.Py_ssize_t,
    ) -> cython.int:
        """A write to a page that is mapped read-only (do_wp_page): use it again, or copy it."""
        pfn: cython.longlong = cython.cast(cython.longlong, (entry & _PFN_MASK) >> 12)
        flags: cython.uint
        if entry & _RW or not self._vmas[row, 3]:
            return _SLOW
        if pfn == self.zero_pfn:
            self._tick(mm)
            self._stats[_S_NEW] += 1
            self._rss_task[mm * 4 + _MM_ANON] += 1
            self._flush_pages(mm, vpn, vpn + 1)
            return self._put_off(mm, vpn, slot, entry, row, at)
        if entry & _SPECIAL or not pfn or self._meta[pfn] & 0xFFFF != _SINGLE or self._mapping[pfn] <= 0:
            return _SLOW
        flags = self._flags[pfn]
        if flags & _SWAPCACHE or (not flags & _EXCLUSIVE and self._mapcount[pfn] == 1 and not flags & _LRU):
            return _SLOW
        self._tick(mm)
        self._flush_pages(mm, vpn, vpn + 1)
        if flags & _EXCLUSIVE or self._mapcount[pfn] == 1:
            self._flags[pfn] = flags | _EXCLUSIVE
            if self._mapping[pfn] != cython.cast(cython.int, self._vmas[row, 3]):
                self._mapping[pfn] = cython.cast(cython.int, self._vmas[row, 3])
            self._words[slot] = entry | _RW | _DIRTY | _SOFT_DIRTY | _ACCESSED
            self._stats[_S_REUSE] += 1
            self._events[self._pgreuse] += 1
            return _DONE
        self._stats[_S_COPY] += 1
        return self._put_off(mm, vpn, slot, entry, row, at)

    # -- new pages, in batches ---------------------------------------------------------------------------------

    @cython.final
    @cython.cfunc
    def _put_off(
        self,
        mm: cython.int,
        vpn: cython.longlong,
        slot: cython.longlong,
        old: cython.ulonglong,
        row: cython.Py_ssize_t,
        at: cython.Py_ssize_t,
    ) -> cython.int:
        """Write the entry of a new page, whose page comes with the batch."""
        j: cython.longlong
        if self._pend and (self._pend == _BATCH or self._pend_row != row):
            j = self._commit(mm)
            if j >= 0:
                self.at = j
                if not self._mapped_page(old):
                    self._rss_task[mm * 4 + _MM_ANON] -= 1
                return _NO_MEMORY
        self._pend_row = row
        self._pend_slot[self._pend] = slot
        self._pend_vpn[self._pend] = vpn
        self._pend_at[self._pend] = at
        self._pend_old[self._pend] = old
        self._pend += 1
        self._words[slot] = (
            cython.cast(cython.ulonglong, self._vmas[row, 5])
            | _ACCESSED
            | _DIRTY
            | _SOFT_DIRTY
            | (0 if self._vmas[row, 2] & 4 else _NX)
        )
        return _DONE

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _mapped_page(self, entry: cython.ulonglong) -> cython.longlong:
        """The page of an entry, 0 for an empty one and the zero page."""
        pfn: cython.longlong = cython.cast(cython.longlong, (entry & _PFN_MASK) >> 12)
        return 0 if not entry & _PRESENT or pfn == self.zero_pfn else pfn

    @cython.final
    @cython.cfunc
    def _commit(self, mm: cython.int) -> cython.longlong:
        """Take the pages that the batch waits for and put them in. -1, or the access for which there was none."""
        k: cython.int = self._pend
        got: cython.int
        j: cython.int
        pfns: object
        page: cython.longlong[::1]
        self._pend = 0
        pfns = self.supply(self._pend_row, self._pend_vpns[:k])
        page = pfns
        got = cython.cast(cython.int, page.shape[0])
        for j in range(got):
            self._put_in(page[j], j)
        if got and self._vmas[self._pend_row, 2] & _ROW_LOCKED:
            self.lru.mlock(pfns, 1)
        elif got:
            self.lru.add_faulted(pfns)
        if got == k:
            return -1
        for j in range(got, k):
            self._words[self._pend_slot[j]] = self._pend_old[j]
            if not self._mapped_page(self._pend_old[j]):
                self._rss_task[mm * 4 + _MM_ANON] -= 1
        self._uncount(mm, k - got)
        self.flush_mm(mm)
        return self._pend_at[got]

    @cython.final
    @cython.cfunc
    def _put_in(self, pfn: cython.longlong, j: cython.int) -> object:
        """A new anonymous page in its entry, in place of the one that it is a copy of."""
        old: cython.longlong = self._mapped_page(self._pend_old[j])
        self._words[self._pend_slot[j]] |= cython.cast(cython.ulonglong, pfn) << 12
        self._flags[pfn] = _NEW_FLAGS
        self._mapping[pfn] = cython.cast(cython.int, self._vmas[self._pend_row, 3])
        self._index[pfn] = self._pend_vpn[j] + self._vmas[self._pend_row, 4]
        self._mapcount[pfn] = 1
        self._node_stat[self._zone_nid[self._zone_of(pfn)], self._nr_anon] += 1
        if old:
            self._mapcount[old] -= 1
            if self._flags[old] & _CONTENT:
                self.copied(old, pfn)
        return None
