"""The LRU lists and the per-CPU batches in front of them (mm/swap.c, mm/mlock.c, include/linux/mm_inline.h).

A page goes to its list, or moves to another one, when the batch that holds it is drained: it then has 15 pages, holds
a huge page, or somebody drains it. ``PG_LRU`` and the lists' lengths change at that moment, as in Linux. A lruvec is a
node's part of a memory cgroup, ``memcg * nodes + nid``; its lists are linked through ``PageMap.next``/``prev`` from
the youngest page to the oldest. Left out: the multi-generational lists.

Invariants: a page with PG_LRU is counted in exactly one list of its zone and node: unevictable, or by PG_SWAPBACKED
and PG_ACTIVE. It is linked in that list of its lruvec, unless it is unevictable: such a page is on no linked list, and
``prev`` counts how many mappings lock it. A page is at most once in the ``ADD`` and ``MLOCK`` batches of all CPUs
together.
"""

from typing import Any

import cython
import numpy as np

from kmemd.core.pages import lazy_zeros

ADD, ACTIVATE, DEACTIVATE, LAZYFREE, MLOCK, ROTATE = range(6)
BATCHES = 6
PAGEVEC_SIZE = 15

LRU_INACTIVE_ANON, LRU_ACTIVE_ANON, LRU_INACTIVE_FILE, LRU_ACTIVE_FILE, LRU_UNEVICTABLE = range(5)
NR_LRU_LISTS = 5
MAX_MEMCGS = 1 << 15

# tags of pages in a MLOCK batch
MLOCK_PAGE, MLOCK_NEW, MUNLOCK = 0, 1, 2

_ADD = cython.declare(cython.int, 0)
_ACTIVATE = cython.declare(cython.int, 1)
_DEACTIVATE = cython.declare(cython.int, 2)
_LAZYFREE = cython.declare(cython.int, 3)
_MLOCK = cython.declare(cython.int, 4)
_ROTATE = cython.declare(cython.int, 5)
_BATCHES = cython.declare(cython.int, 6)
_LISTS = cython.declare(cython.int, 5)
_SIZE = cython.declare(cython.int, 15)
_CPU = cython.declare(cython.int, 1)

_REFERENCED = cython.declare(cython.uint, 1 << 1)
_LRU = cython.declare(cython.uint, 1 << 4)
_ACTIVE = cython.declare(cython.uint, 1 << 5)
_LOCKED = cython.declare(cython.uint, 1 << 0)
_DIRTY = cython.declare(cython.uint, 1 << 3)
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
    of pgactivate, pgdeactivate, pglazyfree, unevictable_pgs_{culled, rescued, mlocked, munlocked, stranded}, and
    pgrotated. ``zones`` has the same number of rows for each node.
    """

    _flags: cython.uint[::1]
    _meta: cython.int[::1]
    _mapping: cython.int[::1]
    _mlock_count: cython.int[::1]
    _next: cython.int[::1]
    _prev: cython.int[::1]
    _mapcount: cython.int[::1]
    _memcg: cython.short[::1]
    _first: cython.int[::1]
    _last: cython.int[::1]
    _size: cython.longlong[::1]
    _kinds: cython.int
    _nodes: cython.int
    _most_memcg: cython.longlong
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
        self._next, self._prev = _view(pages.next), _view(pages.prev)
        self._mapcount, self._memcg = _view(pages.mapcount), _view(pages.memcg)
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
        self._nodes = vmstat.node_stat.shape[0]
        self._most_memcg = 0
        self._kinds = max(1, len(rows) // self._nodes)
        lists = MAX_MEMCGS * self._nodes * NR_LRU_LISTS
        self._first, self._last = _view(lazy_zeros(lists, "int32")), _view(lazy_zeros(lists, "int32"))
        self._size = _view(lazy_zeros(lists * self._kinds, "int64"))

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
    def _key(self, pfn: cython.longlong, nid: cython.longlong, which: cython.int) -> cython.longlong:
        """The number of a list: the one of the page's lruvec."""
        if self._memcg[pfn] > self._most_memcg:
            self._most_memcg = self._memcg[pfn]
        return (self._memcg[pfn] * self._nodes + nid) * _LISTS + which

    @cython.cfunc
    @cython.exceptval(check=False)
    def _count_in(self, zi: cython.int, key: cython.longlong, which: cython.int, pages: cython.longlong) -> cython.void:
        self._zone_stat[zi, self._zone_item + which] += pages
        self._node_stat[self._zone_nid[zi], self._node_item + which] += pages
        self._size[key * self._kinds + zi % self._kinds] += pages

    @cython.cfunc
    @cython.exceptval(check=False)
    def _link(self, key: cython.longlong, pfn: cython.longlong) -> cython.void:
        """To the young end of a list."""
        first: cython.int = self._first[key]
        self._next[pfn] = first
        self._prev[pfn] = 0
        if first:
            self._prev[first - 1] = cython.cast(cython.int, pfn + 1)
        else:
            self._last[key] = cython.cast(cython.int, pfn + 1)
        self._first[key] = cython.cast(cython.int, pfn + 1)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _link_last(self, key: cython.longlong, pfn: cython.longlong) -> cython.void:
        """To the old end of a list."""
        last: cython.int = self._last[key]
        self._prev[pfn] = last
        self._next[pfn] = 0
        if last:
            self._next[last - 1] = cython.cast(cython.int, pfn + 1)
        else:
            self._first[key] = cython.cast(cython.int, pfn + 1)
        self._last[key] = cython.cast(cython.int, pfn + 1)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _unlink(self, key: cython.longlong, pfn: cython.longlong) -> cython.void:
        after: cython.int = self._next[pfn]
        before: cython.int = self._prev[pfn]
        if before:
            self._next[before - 1] = after
        else:
            self._first[key] = after
        if after:
            self._prev[after - 1] = before
        else:
            self._last[key] = before
        self._next[pfn] = 0
        self._prev[pfn] = 0

    @cython.cfunc
    @cython.exceptval(check=False)
    def _put(self, pfn: cython.longlong, last: cython.bint) -> cython.void:
        """Count and link the page in the list that its flags say (lruvec_add_folio)."""
        zi: cython.int = self._zone_of(pfn)
        which: cython.int = self._list_of(pfn)
        key: cython.longlong = self._key(pfn, self._zone_nid[zi], which)
        self._count_in(zi, key, which, self._pages(pfn))
        if which < 4:
            if last:
                self._link_last(key, pfn)
            else:
                self._link(key, pfn)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _take(self, pfn: cython.longlong) -> cython.void:
        """The opposite (lruvec_del_folio)."""
        zi: cython.int = self._zone_of(pfn)
        which: cython.int = self._list_of(pfn)
        key: cython.longlong = self._key(pfn, self._zone_nid[zi], which)
        self._count_in(zi, key, which, -self._pages(pfn))
        if which < 4:
            self._unlink(key, pfn)

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
        elif kind == _ROTATE:
            self._rotate(pfn, flags)
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
        self._take(pfn)
        self._flags[pfn] = flags
        self._put(pfn, False)
        self._events[self._event[event]] += self._pages(pfn)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _rotate(self, pfn: cython.longlong, flags: cython.uint) -> cython.void:
        """lru_move_tail_fn: the page is the next one to be reclaimed."""
        if flags & _LRU and not flags & _UNEVICTABLE:
            self._take(pfn)
            self._flags[pfn] = flags & ~_ACTIVE
            self._put(pfn, True)
            self._events[self._event[8]] += self._pages(pfn)

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
            if self._memcg[pfns[i]] != self._memcg[pfns[start]]:
                return False
        if flags & (_HEAD | _MLOCKED | _UNEVICTABLE | _LRU):
            return False
        for i in range(start, stop):
            self._flags[pfns[i]] = flags | _LRU
        which: cython.int = self._list_of(pfns[start])
        key: cython.longlong = self._key(pfns[start], self._zone_nid[zi], which)
        for i in range(start, stop):
            self._link(key, pfns[i])
        self._count_in(zi, key, which, stop - start)
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
                self._take(pfns[i])
                self._flags[pfns[i]] &= ~_LRU

    def remove(self, pfn: cython.longlong) -> None:
        """``remove_bulk`` of one page."""
        if self._flags[pfn] & _LRU:
            self._take(pfn)
            self._flags[pfn] &= ~_LRU

    # -- reclaim -------------------------------------------------------------------------------------------

    def isolate(
        self,
        lruvec: cython.longlong,
        which: cython.int,
        nr_to_scan: cython.longlong,
        highest: cython.int,
        may_unmap: cython.bint,
        out: cython.longlong[::1],
        skipped: cython.longlong[::1],
    ) -> tuple:
        """Take the oldest pages off a list (isolate_lru_folios): ``(blocks in out, pages scanned, pages taken)``.

        Pages of zones above ``highest`` are passed over and become the youngest; ``skipped`` counts them by zone.
        Preconditions: ``out`` holds ``nr_to_scan`` blocks.
        """
        key: cython.longlong = lruvec * _LISTS + which
        scan: cython.longlong = 0
        total: cython.longlong = 0
        taken: cython.longlong = 0
        blocks: cython.Py_ssize_t = 0
        stop: cython.longlong = -1
        pfn: cython.longlong
        pages: cython.longlong
        zi: cython.int
        while scan < nr_to_scan and self._last[key]:
            pfn = self._last[key] - 1
            if pfn == stop:
                break
            zi = self._zone_of(pfn)
            pages = self._pages(pfn)
            total += pages
            if zi % self._kinds > highest or (not may_unmap and self._mapcount[pfn]):
                self._unlink(key, pfn)
                self._link(key, pfn)
                if stop < 0:
                    stop = pfn
                if zi % self._kinds > highest:
                    skipped[zi % self._kinds] += pages
                else:
                    scan += pages
                continue
            scan += pages
            self._unlink(key, pfn)
            self._count_in(zi, key, which, -pages)
            self._flags[pfn] &= ~_LRU
            out[blocks] = pfn
            blocks += 1
            taken += pages
        return blocks, total, taken

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

    def split(self, head: cython.longlong, count: cython.longlong) -> None:
        """A huge page became ``count`` small ones: the others follow it to its list (lru_add_page_tail).

        Preconditions: they have its flags, and are small by now.
        """
        i: cython.longlong
        before: cython.int
        flags: cython.uint = self._flags[head]
        if not flags & _LRU or flags & _UNEVICTABLE:
            return
        key: cython.longlong = self._key(head, self._zone_nid[self._zone_of(head)], self._list_of(head))
        before = self._prev[head]
        for i in range(head + count - 1, head, -1):
            self._prev[i] = before
            if before:
                self._next[before - 1] = cython.cast(cython.int, i + 1)
            else:
                self._first[key] = cython.cast(cython.int, i + 1)
            before = cython.cast(cython.int, i + 1)
        self._prev[head] = before
        self._next[before - 1] = cython.cast(cython.int, head + 1)

    def size(self, lruvec: cython.longlong, which: cython.int, highest: cython.int) -> int:
        """Pages of a list in zones up to ``highest`` (lruvec_lru_size)."""
        key: cython.longlong = (lruvec * _LISTS + which) * self._kinds
        pages: cython.longlong = 0
        kind: cython.int
        for kind in range(min(highest + 1, self._kinds)):
            pages += self._size[key + kind]
        return pages

    def pages_of(self, lruvec: cython.longlong, which: cython.int) -> list:
        """The blocks of a list, from the youngest to the oldest."""
        found: list = []
        pfn: cython.longlong = self._first[lruvec * _LISTS + which]
        while pfn:
            found.append(pfn - 1)
            pfn = self._next[pfn - 1]
        return found

    def check(self) -> None:
        """Links lead both ways, and each list has the pages that its size and its pages' flags say. AssertionError."""
        lruvec: cython.longlong
        which: cython.int
        key: cython.longlong
        pfn: cython.longlong
        before: cython.longlong
        pages: cython.longlong
        for lruvec in range((self._most_memcg + 1) * self._nodes):
            for which in range(4):
                key = lruvec * _LISTS + which
                before, pages = 0, 0
                pfn = self._first[key]
                while pfn:
                    assert self._prev[pfn - 1] == before, f"pfn {pfn - 1}: the LRU list leads back elsewhere"
                    assert self._flags[pfn - 1] & _LRU, f"pfn {pfn - 1}: on an LRU list without PG_lru"
                    assert self._list_of(pfn - 1) == which, f"pfn {pfn - 1}: on LRU list {which} by mistake"
                    pages += self._pages(pfn - 1)
                    before = pfn
                    pfn = self._next[pfn - 1]
                assert self._last[key] == before, f"LRU list {which} of lruvec {lruvec} ends elsewhere"
                size = self.size(lruvec, which, self._kinds)
                assert pages == size, f"LRU list {which} of lruvec {lruvec}: {pages} pages, its size says {size}"
