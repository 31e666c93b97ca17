"""The LRU lists' membership and the per-CPU batches in front of them (mm/swap.c, mm/mlock.c).

A page goes to its list, or moves to another one, when the batch that holds it is drained: it then has 15 pages, holds
a huge page, or somebody drains it. ``PG_LRU`` and the lists' lengths change at that moment, as in Linux. Left out:
the order of pages within a list.

Invariants: a page with PG_LRU is counted in exactly one list of its zone and node: unevictable, or by PG_SWAPBACKED
and PG_ACTIVE. A page is at most once in the ``ADD`` and ``MLOCK`` batches of all CPUs together.
"""

from typing import Any

import cython
import numpy as np

ADD, ACTIVATE, DEACTIVATE, LAZYFREE, MLOCK = range(5)
BATCHES = 5
PAGEVEC_SIZE = 15

# tags of pages in a MLOCK batch
MLOCK_PAGE, MLOCK_NEW, MUNLOCK = 0, 1, 2

_ADD = cython.declare(cython.int, 0)
_ACTIVATE = cython.declare(cython.int, 1)
_DEACTIVATE = cython.declare(cython.int, 2)
_LAZYFREE = cython.declare(cython.int, 3)
_MLOCK = cython.declare(cython.int, 4)
_BATCHES = cython.declare(cython.int, 5)
_SIZE = cython.declare(cython.int, 15)
_CPU = cython.declare(cython.int, 1)

_REFERENCED = cython.declare(cython.uint, 1 << 1)
_LRU = cython.declare(cython.uint, 1 << 4)
_ACTIVE = cython.declare(cython.uint, 1 << 5)
_SWAPCACHE = cython.declare(cython.uint, 1 << 10)
_HEAD = cython.declare(cython.uint, 1 << 16)
_SWAPBACKED = cython.declare(cython.uint, 1 << 19)
_UNEVICTABLE = cython.declare(cython.uint, 1 << 20)
_MLOCKED = cython.declare(cython.uint, 1 << 21)


def _view(array: Any) -> Any:
    """Uncompiled, a memoryview gives Python ints, which neither wrap nor warn as numpy scalars do."""
    return array if cython.compiled else memoryview(array)


@cython.final
@cython.cclass
class Lru:
    """Batches and lists. ``zones`` rows are ``(nid, start_pfn, end_pfn)``, numbered as the counters' rows.

    ``items`` gives the numbers of the counters: the first LRU item of zones and of nodes, NR_MLOCK; ``events`` those
    of pgactivate, pgdeactivate, pglazyfree, unevictable_pgs_{culled, rescued, mlocked, munlocked, stranded}.
    """

    _flags: cython.uint[::1]
    _meta: cython.int[::1]
    _mapping: cython.int[::1]
    _mlock_count: cython.int[::1]
    _ctx: cython.longlong[::1]
    _events: cython.longlong[::1]
    _zone_stat: cython.longlong[:, ::1]
    _node_stat: cython.longlong[:, ::1]
    _batch: cython.longlong[:, ::1]
    _count: cython.int[::1]
    _zone_nid: cython.longlong[::1]
    _zone_start: cython.longlong[::1]
    _zone_end: cython.longlong[::1]
    _event: cython.longlong[::1]
    _zone_item: cython.int
    _node_item: cython.int
    _nr_mlock: cython.int
    _zone: cython.int
    _ncpus: cython.int

    def __init__(self, pages: Any, context: Any, zones: Any, ncpus: int, vmstat: Any, items: Any, events: Any) -> None:
        self._flags, self._meta = _view(pages.flags), _view(pages.meta)
        self._mapping = _view(pages.mapping)
        self._mlock_count = _view(pages.prev)  # an unevictable page is on no list: its link counts its mlocks
        self._ctx = _view(context.words)
        self._events = _view(vmstat.events)
        self._zone_stat, self._node_stat = _view(vmstat.zone_stat), _view(vmstat.node_stat)
        self._batch = _view(np.zeros((ncpus * BATCHES, PAGEVEC_SIZE), dtype=np.int64))
        self._count = _view(np.zeros(ncpus * BATCHES, dtype=np.int32))
        rows = np.array(zones, dtype=np.int64).reshape(-1, 3)
        self._zone_nid, self._zone_start, self._zone_end = (_view(rows[:, k].copy()) for k in range(3))
        self._zone_item, self._node_item, self._nr_mlock = items
        self._event = _view(np.array(events, dtype=np.int64))
        self._zone = 0
        self._ncpus = ncpus

    # -- lists ---------------------------------------------------------------------------------------------

    @cython.cfunc
    @cython.exceptval(check=False)
    def _zone_of(self, pfn: cython.longlong) -> cython.int:
        zi: cython.int = self._zone
        if pfn < self._zone_start[zi] or pfn >= self._zone_end[zi]:
            zi = 0
            while pfn < self._zone_start[zi] or pfn >= self._zone_end[zi]:
                zi += 1
            self._zone = zi
        return zi

    @cython.cfunc
    @cython.exceptval(check=False)
    def _list_of(self, pfn: cython.longlong) -> cython.int:
        flags: cython.uint = self._flags[pfn]
        if flags & _UNEVICTABLE:
            return 4
        return (0 if flags & _SWAPBACKED else 2) + (1 if flags & _ACTIVE else 0)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _resize(self, pfn: cython.longlong, sign: cython.longlong) -> cython.void:
        """Count the page in or out of the list that its flags say."""
        zi: cython.int = self._zone_of(pfn)
        which: cython.int = self._list_of(pfn)
        pages: cython.longlong = sign * (cython.cast(cython.longlong, 1) << ((self._meta[pfn] >> 8) & 0xFF))
        self._zone_stat[zi, self._zone_item + which] += pages
        self._node_stat[self._zone_nid[zi], self._node_item + which] += pages

    @cython.cfunc
    @cython.exceptval(check=False)
    def _pages(self, pfn: cython.longlong) -> cython.longlong:
        return cython.cast(cython.longlong, 1) << ((self._meta[pfn] >> 8) & 0xFF)

    # -- batches -------------------------------------------------------------------------------------------

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
        elif not flags & _LRU or flags & _UNEVICTABLE:
            return
        elif kind == _ACTIVATE and not flags & _ACTIVE:
            self._move(pfn, (flags | _ACTIVE), 0)
        elif kind == _DEACTIVATE and flags & _ACTIVE:
            self._move(pfn, flags & ~(_ACTIVE | _REFERENCED), 1)
        elif kind == _LAZYFREE and self._mapping[pfn] > 0 and flags & _SWAPBACKED and not flags & _SWAPCACHE:
            self._move(pfn, flags & ~(_ACTIVE | _REFERENCED | _SWAPBACKED), 2)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _move(self, pfn: cython.longlong, flags: cython.uint, event: cython.int) -> cython.void:
        self._resize(pfn, -1)
        self._flags[pfn] = flags
        self._resize(pfn, 1)
        self._events[self._event[event]] += self._pages(pfn)

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
        self._resize(pfn, 1)

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
            self._resize(pfn, 1)
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

    # -- what others call ----------------------------------------------------------------------------------

    def add(self, pfn: cython.longlong) -> None:
        """A page to its list by its flags (folio_add_lru)."""
        self._push(_ADD, pfn, 0)

    def add_bulk(self, pfns: cython.longlong[::1]) -> None:
        """``add`` for each page, in order."""
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
    def _add_alike(self, pfns: cython.longlong[::1], start: cython.Py_ssize_t, stop: cython.Py_ssize_t) -> cython.bint:
        """Put a whole batch of small pages of one zone with the same flags on its list. False: they are not that."""
        i: cython.Py_ssize_t
        flags: cython.uint = self._flags[pfns[start]]
        zi: cython.int = self._zone_of(pfns[start])
        for i in range(start, stop):
            if self._flags[pfns[i]] != flags or pfns[i] < self._zone_start[zi] or pfns[i] >= self._zone_end[zi]:
                return False
        if flags & (_HEAD | _MLOCKED | _UNEVICTABLE | _LRU):
            return False
        for i in range(start, stop):
            self._flags[pfns[i]] = flags | _LRU
        which: cython.int = self._list_of(pfns[start])
        self._zone_stat[zi, self._zone_item + which] += stop - start
        self._node_stat[self._zone_nid[zi], self._node_item + which] += stop - start
        return True

    def batch(self, kind: cython.int, pfns: cython.longlong[::1]) -> None:
        """Have pages activated, deactivated or made lazily freeable, each by way of the batch ``kind``."""
        i: cython.Py_ssize_t
        for i in range(pfns.shape[0]):
            flags: cython.uint = self._flags[pfns[i]]
            if not flags & _LRU or flags & _UNEVICTABLE:
                continue
            if (kind == _ACTIVATE and flags & _ACTIVE) or (kind == _DEACTIVATE and not flags & _ACTIVE):
                continue
            if kind == _LAZYFREE and (not flags & _SWAPBACKED or flags & _SWAPCACHE):
                continue
            self._push(kind, pfns[i], 0)

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
        kind: cython.int
        for kind in range(_BATCHES):
            self._flush(cpu * _BATCHES + kind, kind)

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
                self._resize(pfns[i], -1)
                self._flags[pfns[i]] &= ~_LRU

    def remove(self, pfn: cython.longlong) -> None:
        """``remove_bulk`` of one page."""
        if self._flags[pfn] & _LRU:
            self._resize(pfn, -1)
            self._flags[pfn] &= ~_LRU
