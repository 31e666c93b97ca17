"""The per-CPU batches in front of the LRU lists, and what a page does when it is used (mm/swap.c, mm/mlock.c).

A page goes to its list, or moves to another one, when the batch that holds it is drained: it then has 15 pages, holds
a huge page, or somebody drains it. ``PG_LRU`` and the lists' lengths change at that moment, as in Linux. The lists
are core/lru_lists.py. What a page does when it is used, and where new ones go, depends on the replacement policy in
force: ``words[POLICY]``.

Invariants: those of the lists. A page is at most once in the ``ADD`` and ``MLOCK`` batches of all CPUs together.
"""

from typing import Any

import cython
import numpy as np

from kmemd.core import trace_ids
from kmemd.core.array_view import view
from kmemd.core.lru_lists import LruLists

ADD, ACTIVATE, DEACTIVATE, LAZYFREE, MLOCK, ROTATE, DEACTIVATE_FILE = range(7)
BATCHES = 7
PAGEVEC_SIZE = 15

# tags of pages in a MLOCK batch
MLOCK_PAGE, MLOCK_NEW, MUNLOCK = 0, 1, 2

_ADD = cython.declare(cython.int, 0)
_ACTIVATE = cython.declare(cython.int, 1)
_DEACTIVATE = cython.declare(cython.int, 2)
_LAZYFREE = cython.declare(cython.int, 3)
_MLOCK = cython.declare(cython.int, 4)
_ROTATE = cython.declare(cython.int, 5)
_FILE = cython.declare(cython.int, 6)
_BATCHES = cython.declare(cython.int, 7)
_SIZE = cython.declare(cython.int, 15)
_CPU = cython.declare(cython.int, 1)
_INSERTION = cython.declare(cython.int, trace_ids.MM_LRU_INSERTION)
_ACTIVATION = cython.declare(cython.int, trace_ids.MM_LRU_ACTIVATE)
_REFERENCED = cython.declare(cython.uint, 1 << 1)
_IDLE = cython.declare(cython.uint, 1 << 29)
_LRU = cython.declare(cython.uint, 1 << 4)
_ACTIVE = cython.declare(cython.uint, 1 << 5)
_LOCKED = cython.declare(cython.uint, 1 << 0)
_DIRTY = cython.declare(cython.uint, 1 << 3)
_SWAPCACHE = cython.declare(cython.uint, 1 << 10)
_PRIVATE = cython.declare(cython.uint, 1 << 13)
_HEAD = cython.declare(cython.uint, 1 << 16)
_ON_DISK = cython.declare(cython.uint, 1 << 17)
_SWAPBACKED = cython.declare(cython.uint, 1 << 19)
_UNEVICTABLE = cython.declare(cython.uint, 1 << 20)
_MLOCKED = cython.declare(cython.uint, 1 << 21)
_WORKINGSET = cython.declare(cython.uint, 1 << 6)
_WRITEBACK = cython.declare(cython.uint, 1 << 15)
_RECLAIM = cython.declare(cython.uint, 1 << 18)
_GEN_MASK = cython.declare(cython.uint, 7 << 22)
_REFS_MASK = cython.declare(cython.uint, 3 << 25)
_REFS_ONE = cython.declare(cython.uint, 1 << 25)
_MGLRU = cython.declare(cython.longlong, 1)
_FIFO = cython.declare(cython.longlong, 2)
_CLOCK = cython.declare(cython.longlong, 3)


@cython.final
@cython.cclass
class Lru(LruLists):
    """Batches and lists. ``zones`` rows are ``(nid, start_pfn, end_pfn)``, numbered as the counters' rows.

    ``items`` gives the numbers of the counters: the first LRU item of zones and of nodes, NR_MLOCK; ``events`` those
    of pgactivate, pgdeactivate, pglazyfree, unevictable_pgs_{culled, rescued, mlocked, munlocked, stranded}, and
    pgrotated. ``zones`` has the same number of rows for each node.
    """

    _trace: Any
    _traced: cython.longlong[::1]
    _mlock_count: cython.int[::1]
    _ctx: cython.longlong[::1]
    _batch: cython.longlong[:, ::1]
    _count: cython.int[::1]
    _event: cython.longlong[::1]
    _nr_mlock: cython.int
    _ncpus: cython.int

    def __init__(self, pages: Any, context: Any, zones: Any, ncpus: int, vmstat: Any, items: Any, events: Any) -> None:
        super().__init__(pages, zones, vmstat, items[:2])
        self._nr_mlock = items[2]
        self._mlock_count = view(pages.prev)  # an unevictable page is on no list: its link counts its mlocks
        self._ctx = view(context.words)
        self._trace, self._traced = context.trace, view(context.trace.control)
        self._batch = view(np.zeros((ncpus * BATCHES, PAGEVEC_SIZE), dtype=np.int64))
        self._count = view(np.zeros(ncpus * BATCHES, dtype=np.int32))
        self._event = view(np.array(events, dtype=np.int64))
        self._ncpus = ncpus

    # -- being used --------------------------------------------------------------------------------------------

    @cython.cfunc
    @cython.exceptval(check=False)
    def _mark(self, pfn: cython.longlong) -> cython.longlong:
        """A page was used by a system call; the pages that become active by that."""
        policy: cython.longlong = self._words[0]
        flags: cython.uint = self._flags[pfn]
        if flags & _IDLE:
            flags &= ~_IDLE
            self._flags[pfn] = flags
        if policy == 0:
            return self._mark_two_list(pfn, flags)
        if policy == _MGLRU:
            self._inc_refs(pfn, flags)
        elif policy == _CLOCK:
            self._flags[pfn] = flags | _REFERENCED
        elif policy != _FIFO and flags & _LRU and not flags & _UNEVICTABLE:
            self._take(pfn)
            self._put(pfn, False)
        return 0

    @cython.cfunc
    @cython.exceptval(check=False)
    def _mark_two_list(self, pfn: cython.longlong, flags: cython.uint) -> cython.longlong:
        """Referenced the first time, active the second, by way of the batch (folio_mark_accessed)."""
        if not flags & _REFERENCED:
            self._flags[pfn] = flags | _REFERENCED
            return 0
        if flags & (_UNEVICTABLE | _ACTIVE):
            return 0
        if flags & _LRU:
            self._push(_ACTIVATE, pfn, 0)
        else:
            self._flags[pfn] |= _ACTIVE
        self._flags[pfn] &= ~_REFERENCED
        return self._pages(pfn)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _inc_refs(self, pfn: cython.longlong, flags: cython.uint) -> cython.void:
        """One more access, which makes a page of a higher tier in the end (folio_inc_refs)."""
        if flags & _UNEVICTABLE:
            return
        if not flags & _REFERENCED:
            self._flags[pfn] = flags | _REFERENCED
        elif not flags & _WORKINGSET:
            self._flags[pfn] = flags | _WORKINGSET
        elif flags & _REFS_MASK != _REFS_MASK:
            self._flags[pfn] = flags + _REFS_ONE

    # -- batches -----------------------------------------------------------------------------------------------

    @cython.cfunc
    @cython.exceptval(check=False)
    def _push(self, kind: cython.int, pfn: cython.longlong, tag: cython.longlong) -> cython.void:
        """Into the executing CPU's batch, which is drained when full."""
        b: cython.int = cython.cast(cython.int, self._ctx[_CPU]) * _BATCHES + kind
        n: cython.int = self._count[b]
        self._batch[b, n] = pfn << 2 | tag
        self._count[b] = n + 1
        if n + 1 == _SIZE or self._flags[pfn] & _HEAD:
            self._flush(b, kind)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _flush(self, b: cython.int, kind: cython.int) -> cython.void:
        i: cython.int
        entry: cython.longlong
        n: cython.int = self._count[b]
        self._count[b] = 0
        for i in range(n):
            entry = self._batch[b, i]
            self._apply(kind, entry >> 2, entry & 3)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _apply(self, kind: cython.int, pfn: cython.longlong, tag: cython.longlong) -> cython.void:
        flags: cython.uint = self._flags[pfn]
        if kind == _ADD:
            self._lru_add(pfn)
        elif kind == _MLOCK:
            self._mlock(pfn, tag)
        elif kind == _ROTATE:
            self._rotate(pfn, flags)
        elif not flags & _LRU or flags & _UNEVICTABLE:
            return
        elif kind == _ACTIVATE and not flags & _ACTIVE:
            self._move(pfn, (flags | _ACTIVE), 0)
            if self._traced[0] >> _ACTIVATION & 1:
                self._trace.emit(_ACTIVATION, self._struct_page(pfn), pfn)
        elif kind == _DEACTIVATE and (flags & _ACTIVE or self._words[0] == _MGLRU):
            self._move(pfn, flags & ~(_ACTIVE | _REFERENCED), 1)
        elif kind == _FILE:
            self._deactivate_file(pfn, flags)
        elif kind == _LAZYFREE and self._mapping[pfn] > 0 and flags & _SWAPBACKED and not flags & _SWAPCACHE:
            self._move(pfn, flags & ~(_ACTIVE | _REFERENCED | _SWAPBACKED), 2)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _move(self, pfn: cython.longlong, flags: cython.uint, event: cython.int) -> cython.void:
        self._take(pfn)
        self._flags[pfn] = flags & ~_GEN_MASK
        self._put(pfn, False)
        self._events[self._event[event]] += self._pages(pfn)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _rotate(self, pfn: cython.longlong, flags: cython.uint) -> cython.void:
        """lru_move_tail_fn: the page is the next one to be reclaimed."""
        if flags & _LRU and not flags & _UNEVICTABLE:
            self._take(pfn)
            self._flags[pfn] &= ~_ACTIVE
            self._put(pfn, True)
            self._events[self._event[8]] += self._pages(pfn)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _deactivate_file(self, pfn: cython.longlong, flags: cython.uint) -> cython.void:
        """lru_deactivate_file_fn: a page that could not be dropped goes next, or once it has been written."""
        if self._mapcount[pfn] > 0:
            return
        self._take(pfn)
        self._flags[pfn] &= ~(_ACTIVE | _REFERENCED)
        if flags & (_DIRTY | _WRITEBACK):
            self._put(pfn, False)
            self._flags[pfn] |= _RECLAIM
        else:
            self._put(pfn, True)
            self._events[self._event[8]] += self._pages(pfn)
        if flags & _ACTIVE:
            self._events[self._event[1]] += self._pages(pfn)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _lru_add(self, pfn: cython.longlong) -> cython.void:
        """lru_add_fn: a page that is mlocked goes to the unevictable ones."""
        flags: cython.uint = self._flags[pfn]
        was: cython.uint = flags & _UNEVICTABLE
        if flags & _MLOCKED:
            self._flags[pfn] = (flags | _LRU | _UNEVICTABLE) & ~_ACTIVE
            self._mlock_count[pfn] = 0
            if not was:
                self._events[self._event[3]] += self._pages(pfn)
        else:
            self._flags[pfn] = (flags | _LRU) & ~_UNEVICTABLE
            if was:
                self._events[self._event[4]] += self._pages(pfn)
        self._put(pfn, False)
        if self._traced[0] >> _INSERTION & 1:
            self._trace_insertion(pfn)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _struct_page(self, pfn: cython.longlong) -> cython.longlong:
        return self._traced[2] + pfn * self._traced[3]

    @cython.cfunc
    def _trace_insertion(self, pfn: cython.longlong) -> object:
        """mm_lru_insertion: the list, and what the page is (trace_pagemap_flags)."""
        flags: cython.uint = self._flags[pfn]
        kind: cython.int = 1 if self._mapcount[pfn] > 0 else 0
        kind |= 2 if self._mapping[pfn] > 0 else 4
        if flags & _SWAPBACKED:
            kind |= 24 if flags & _SWAPCACHE else 16
        kind |= (32 if flags & _ON_DISK else 0) | (64 if flags & _PRIVATE else 0)
        self._trace.emit(_INSERTION, self._struct_page(pfn), pfn, self._which(pfn), kind)
        return None

    @cython.cfunc
    @cython.exceptval(check=False)
    def _mlock(self, pfn: cython.longlong, tag: cython.longlong) -> cython.void:
        """mlock_pagevec's three cases; an unevictable page counts how many mappings lock it."""
        flags: cython.uint = self._flags[pfn]
        if tag == 2:
            self._munlock(pfn)
        elif tag == 1:
            self._flags[pfn] = flags | _LRU | (_UNEVICTABLE if flags & _MLOCKED else 0)
            self._mlock_count[pfn] = 1 if flags & _MLOCKED else 0
            if flags & _MLOCKED:
                self._events[self._event[3]] += self._pages(pfn)
            self._put(pfn, False)
        elif not flags & _LRU:
            return
        elif flags & _UNEVICTABLE:
            if flags & _MLOCKED:
                self._mlock_count[pfn] += 1
        elif flags & _MLOCKED:
            self._move(pfn, (flags | _UNEVICTABLE) & ~_ACTIVE, 3)
            self._mlock_count[pfn] = 1

    @cython.cfunc
    @cython.exceptval(check=False)
    def _munlock(self, pfn: cython.longlong) -> cython.void:
        flags: cython.uint = self._flags[pfn]
        if flags & _LRU and flags & _UNEVICTABLE:
            if self._mlock_count[pfn] > 0:
                self._mlock_count[pfn] -= 1
            if self._mlock_count[pfn] > 0:
                return
        if flags & _MLOCKED:
            self._flags[pfn] = flags & ~_MLOCKED
            self._zone_stat[self._zone_of(pfn), self._nr_mlock] -= self._pages(pfn)
            stranded: cython.bint = not flags & _LRU and flags & _UNEVICTABLE != 0
            self._events[self._event[7 if stranded else 6]] += self._pages(pfn)
        flags = self._flags[pfn]
        if flags & _LRU and flags & _UNEVICTABLE and not flags & _MLOCKED:
            self._move(pfn, flags & ~_UNEVICTABLE, 4)

    # -- what others call --------------------------------------------------------------------------------------

    def add(self, pfn: cython.longlong) -> None:
        """A page to its list by its flags (folio_add_lru). One that was faulted in is used at once."""
        if self._words[1] and self._words[0] == _MGLRU and not self._flags[pfn] & _UNEVICTABLE:
            self._flags[pfn] |= _ACTIVE
        self._push(_ADD, pfn, 0)

    def mark_accessed(self, pfn: cython.longlong) -> int:
        """A page was used by a system call (folio_mark_accessed): what that means is the policy's. How many pages of
        it become active.
        """
        return self._mark(pfn)

    def mark_accessed_bulk(self, pfns: cython.longlong[::1]) -> int:
        """``mark_accessed`` of each page, in order. How many pages become active."""
        i: cython.Py_ssize_t
        active: cython.longlong = 0
        for i in range(pfns.shape[0]):
            active += self._mark(pfns[i])
        return active

    def add_faulted(self, pfns: cython.longlong[::1]) -> None:
        """``add_bulk`` of pages that a fault was for."""
        was: cython.longlong = self._words[1]
        self._words[1] = 1
        self.add_bulk(pfns)
        self._words[1] = was

    def add_bulk(self, pfns: cython.longlong[::1]) -> None:
        """``add`` for each page, in order."""
        if self._words[0] == _MGLRU:
            self._add_gens(pfns)
            return
        b: cython.int = cython.cast(cython.int, self._ctx[_CPU]) * _BATCHES + _ADD
        i: cython.Py_ssize_t = 0
        stop: cython.Py_ssize_t
        n: cython.Py_ssize_t = pfns.shape[0]
        while i < n:
            stop = i + _SIZE - self._count[b]
            if self._count[b] or stop > n or not self._add_alike(pfns, i, stop):
                self._push(_ADD, pfns[i], 0)
                i += 1
            else:
                i = stop

    @cython.cfunc
    @cython.exceptval(check=False)
    def _add_gens(self, pfns: cython.longlong[::1]) -> cython.void:
        i: cython.Py_ssize_t
        for i in range(pfns.shape[0]):
            if self._words[1] and not self._flags[pfns[i]] & _UNEVICTABLE:
                self._flags[pfns[i]] |= _ACTIVE
            self._push(_ADD, pfns[i], 0)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _add_alike(self, pfns: cython.longlong[::1], start: cython.Py_ssize_t, stop: cython.Py_ssize_t) -> cython.bint:
        """Put a whole batch of small pages of one zone with the same flags on its list. False: they are not that."""
        i: cython.Py_ssize_t
        flags: cython.uint = self._flags[pfns[start]]
        zi: cython.int = self._zone_of(pfns[start])
        for i in range(start, stop):
            if self._flags[pfns[i]] != flags or pfns[i] < self._zone_start[zi] or pfns[i] >= self._zone_end[zi]:
                return False
            if self._memcg[pfns[i]] != self._memcg[pfns[start]]:
                return False
        if flags & (_HEAD | _MLOCKED | _UNEVICTABLE | _LRU) or self._traced[0] >> _INSERTION & 1:
            return False
        for i in range(start, stop):
            self._flags[pfns[i]] = flags | _LRU
        self._link_alike(pfns, start, stop)
        return True

    def batch(self, kind: cython.int, pfns: cython.longlong[::1]) -> None:
        """Have pages activated, deactivated or made lazily freeable, each by way of the batch ``kind``."""
        i: cython.Py_ssize_t
        for i in range(pfns.shape[0]):
            flags: cython.uint = self._flags[pfns[i]]
            if not flags & _LRU or flags & _UNEVICTABLE:
                continue
            if (kind == _ACTIVATE and flags & _ACTIVE) or (
                kind == _DEACTIVATE and not flags & _ACTIVE and self._words[0] != _MGLRU
            ):
                continue
            if kind == _LAZYFREE and (not flags & _SWAPBACKED or flags & _SWAPCACHE):
                continue
            self._push(kind, pfns[i], 0)

    def deactivate_file(self, pfns: cython.longlong[::1]) -> None:
        """Pages of files of which somebody said that they are not needed, and that could not be dropped, are reclaimed
        first (deactivate_file_folio).
        """
        i: cython.Py_ssize_t
        for i in range(pfns.shape[0]):
            if not self._flags[pfns[i]] & _UNEVICTABLE:
                self._push(_FILE, pfns[i], 0)

    def mlock(self, pfns: cython.longlong[::1], tag: cython.int) -> None:
        """Lock pages in memory, new ones or ones on a list, or unlock them (mlock_folio, mlock_new_page,
        munlock_page).
        """
        i: cython.Py_ssize_t
        pages: cython.longlong
        for i in range(pfns.shape[0]):
            if tag != 2 and not self._flags[pfns[i]] & _MLOCKED:
                pages = self._pages(pfns[i])
                self._flags[pfns[i]] |= _MLOCKED
                self._zone_stat[self._zone_of(pfns[i]), self._nr_mlock] += pages
                self._events[self._event[5]] += pages
            self._push(_MLOCK, pfns[i], tag)

    def clear_mlock(self, pfns: cython.longlong[::1]) -> None:
        """Pages that are freed are no longer mlocked (free_pages_prepare, __page_cache_release)."""
        i: cython.Py_ssize_t
        for i in range(pfns.shape[0]):
            if self._flags[pfns[i]] & _MLOCKED:
                self._flags[pfns[i]] &= ~_MLOCKED
                self._zone_stat[self._zone_of(pfns[i]), self._nr_mlock] -= self._pages(pfns[i])
                self._events[self._event[6]] += self._pages(pfns[i])

    def drain(self, cpu: cython.int) -> None:
        """Empty the batches of one CPU (lru_add_drain_cpu, mlock_page_drain)."""
        first: cython.int = cpu * _BATCHES
        self._flush(first + _ADD, _ADD)
        self._flush(first + _ROTATE, _ROTATE)
        self._flush(first + _FILE, _FILE)
        self._flush(first + _DEACTIVATE, _DEACTIVATE)
        self._flush(first + _LAZYFREE, _LAZYFREE)
        self._flush(first + _ACTIVATE, _ACTIVATE)
        self._flush(first + _MLOCK, _MLOCK)

    def drain_local(self) -> None:
        """Empty the executing CPU's batches (lru_add_drain)."""
        self.drain(cython.cast(cython.int, self._ctx[_CPU]))

    def drain_all(self) -> None:
        """Empty all batches (lru_add_drain_all)."""
        cpu: cython.int
        for cpu in range(self._ncpus):
            self.drain(cpu)

    def pending(self, cpu: cython.int, kind: cython.int) -> list:
        """The pages in a batch."""
        b: cython.int = cpu * _BATCHES + kind
        return [self._batch[b, i] >> 2 for i in range(self._count[b])]

    def remove_bulk(self, pfns: cython.longlong[::1]) -> None:
        """Take pages off their lists, to free or to isolate them.

        Preconditions: those that are not on a list are in no batch, that is, the batches were drained.
        """
        i: cython.Py_ssize_t
        for i in range(pfns.shape[0]):
            if self._flags[pfns[i]] & _LRU:
                self._take(pfns[i])
                self._flags[pfns[i]] &= ~_LRU

    def remove(self, pfn: cython.longlong) -> None:
        """``remove_bulk`` of one page."""
        if self._flags[pfn] & _LRU:
            self._take(pfn)
            self._flags[pfn] &= ~_LRU

    # -- reclaim -----------------------------------------------------------------------------------------------

    def putback(self, pfns: cython.longlong[::1]) -> int:
        """Isolated pages go to the young end of the lists that their flags say, in order (move_folios_to_lru); how
        many pages of them are active. What is locked in memory takes the way of new pages.
        """
        i: cython.Py_ssize_t
        active: cython.longlong = 0
        for i in range(pfns.shape[0]):
            if self._flags[pfns[i]] & (_MLOCKED | _UNEVICTABLE):
                self._push(_ADD, pfns[i], 0)
                continue
            self._flags[pfns[i]] |= _LRU
            self._put(pfns[i], False)
            if self._flags[pfns[i]] & _ACTIVE:
                active += self._pages(pfns[i])
        return active

    def rotate(self, pfns: cython.longlong[::1]) -> None:
        """Pages whose write-back reclaim waited for are the next to go, by way of their batch
        (folio_rotate_reclaimable).
        """
        i: cython.Py_ssize_t
        flags: cython.uint
        for i in range(pfns.shape[0]):
            flags = self._flags[pfns[i]]
            if flags & _LRU and not flags & (_LOCKED | _DIRTY | _UNEVICTABLE):
                self._push(_ROTATE, pfns[i], 0)
