"""The LRU lists and the per-CPU batches in front of them (mm/swap.c, mm/mlock.c, include/linux/mm_inline.h).

A page goes to its list, or moves to another one, when the batch that holds it is drained: it then has 15 pages, holds
a huge page, or somebody drains it. ``PG_LRU`` and the lists' lengths change at that moment, as in Linux. A lruvec is a
node's part of a memory cgroup, ``memcg * nodes + nid``; its lists are linked through ``PageMap.next``/``prev`` from
the youngest page to the oldest.

What a page does when it is used, and where new ones go, depends on the replacement policy in force: ``words[POLICY]``.
With the generations of the multi-generational LRU (``lru_gen_add_folio`` and its like) a lruvec has a list for each
generation, type and zone; what works on whole generations is core/lru_gen.py.

Invariants: a page with PG_LRU is counted in exactly one list of its zone and node: unevictable, or by PG_SWAPBACKED
and PG_ACTIVE. It is linked in that list of its lruvec, unless it is unevictable: such a page is on no linked list, and
``prev`` counts how many mappings lock it. A page of a generation says which in its flags, is counted by it, has no
PG_ACTIVE, and is linked in a list of its type, lruvec and zone, but not always of its generation: one that was used is
moved when it is met. The ends of such a list link to ``-(list + 1)``. A page is at most once in the ``ADD`` and
``MLOCK`` batches of all CPUs together.
"""

from typing import Any

import cython
import numpy as np

from kmemd.core import trace_ids
from kmemd.core.pages import lazy_zeros

ADD, ACTIVATE, DEACTIVATE, LAZYFREE, MLOCK, ROTATE, DEACTIVATE_FILE = range(7)
BATCHES = 7
PAGEVEC_SIZE = 15

LRU_INACTIVE_ANON, LRU_ACTIVE_ANON, LRU_INACTIVE_FILE, LRU_ACTIVE_FILE, LRU_UNEVICTABLE = range(5)
NR_LRU_LISTS = 5
MAX_MEMCGS = 1 << 15

# words: the policy, whether pages that are added were faulted in (current->in_lru_fault), and how many pages read(2)
# found and did not find
POLICY, IN_FAULT, HITS, MISSES = range(4)
TWO_LIST, MGLRU, FIFO, CLOCK, TRUE_LRU = range(5)
MIN_NR_GENS, MAX_NR_GENS, ANON_AND_FILE, MAX_NR_TIERS = 2, 4, 2, 4
FIRST_SEQ = MIN_NR_GENS + 1
SEQS = 3
"""Sequence numbers of a lruvec: the youngest generation, less FIRST_SEQ, and the oldest of each type."""

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
_LISTS = cython.declare(cython.int, 5)
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
_GEN_ONE = cython.declare(cython.uint, 1 << 22)
_REFS_MASK = cython.declare(cython.uint, 3 << 25)
_REFS_ONE = cython.declare(cython.uint, 1 << 25)
_MGLRU = cython.declare(cython.longlong, 1)
_FIFO = cython.declare(cython.longlong, 2)
_CLOCK = cython.declare(cython.longlong, 3)


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

    For core/lru_gen.py: ``first`` and ``last`` hold PFN + 1 of the ends of all lists, those of generations from
    ``gen_base`` on; ``gen_pages`` the pages of each generation, type and zone, ``seqs`` the sequence numbers by lruvec.
    """

    words = cython.declare(object, visibility="readonly")
    first = cython.declare(object, visibility="readonly")
    last = cython.declare(object, visibility="readonly")
    gen_pages = cython.declare(object, visibility="readonly")
    sizes = cython.declare(object, visibility="readonly")
    seqs = cython.declare(object, visibility="readonly")
    gen_base = cython.declare(cython.longlong, visibility="readonly")
    _trace: Any
    _traced: cython.longlong[::1]
    _words: cython.longlong[::1]
    _gen_pages: cython.longlong[::1]
    _seqs: cython.longlong[::1]
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
        self._trace, self._traced = context.trace, _view(context.trace.control)
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
        generations = MAX_MEMCGS * self._nodes * MAX_NR_GENS * ANON_AND_FILE * self._kinds
        self.gen_base = lists
        self.first, self.last = (lazy_zeros(lists + generations, "int32") for _ in range(2))
        self._first, self._last = _view(self.first), _view(self.last)
        self.sizes = lazy_zeros(lists * self._kinds, "int64")
        self._size = _view(self.sizes)
        self.gen_pages = lazy_zeros(generations, "int64")
        self.seqs = lazy_zeros(MAX_MEMCGS * self._nodes * SEQS, "int64")
        self.words = np.zeros(4, dtype=np.int64)
        self._gen_pages, self._seqs, self._words = _view(self.gen_pages), _view(self.seqs), _view(self.words)

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
        """Count and link the page in the list that its flags and the policy say (lruvec_add_folio)."""
        zi: cython.int = self._zone_of(pfn)
        if self._words[0] and not self._flags[pfn] & _UNEVICTABLE:
            if self._words[0] == _MGLRU:
                self._gen_put(pfn, zi, last)
                return
            self._flags[pfn] &= ~_ACTIVE  # the other policies have one list
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
        if self._flags[pfn] & _GEN_MASK:
            self._gen_take(pfn, zi)
            return
        which: cython.int = self._list_of(pfn)
        key: cython.longlong = self._key(pfn, self._zone_nid[zi], which)
        self._count_in(zi, key, which, -self._pages(pfn))
        if which < 4:
            self._unlink(key, pfn)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _pages(self, pfn: cython.longlong) -> cython.longlong:
        return cython.cast(cython.longlong, 1) << ((self._meta[pfn] >> 8) & 0xFF)

    # -- lists of generations ------------------------------------------------------------------------------

    @cython.cfunc
    @cython.exceptval(check=False)
    def _gen_put(self, pfn: cython.longlong, zi: cython.int, last: cython.bint) -> cython.void:
        """Into the generation that a page deserves (lru_gen_add_folio): new ones that were faulted in are the youngest.

        ``last``: it was written for reclaim, and is the next to go.
        """
        flags: cython.uint = self._flags[pfn]
        file: cython.int = 0 if flags & _SWAPBACKED else 1
        lruvec: cython.longlong = self._key(pfn, self._zone_nid[zi], 0) // _LISTS
        seq: cython.longlong = self._seqs[lruvec * 3] + 3
        oldest: cython.longlong = self._seqs[lruvec * 3 + 1 + file]
        if not flags & _ACTIVE:
            if (not file and not flags & _SWAPCACHE) or (flags & _RECLAIM and flags & (_DIRTY | _WRITEBACK)):
                seq -= 1
            elif last or oldest + 2 >= seq:
                seq = oldest
            else:
                seq = oldest + 1
        gen: cython.int = cython.cast(cython.int, seq & 3)
        self._flags[pfn] = (flags & ~(_GEN_MASK | _ACTIVE)) | cython.cast(cython.uint, gen + 1) * _GEN_ONE
        key: cython.longlong = self._gen_count(lruvec, gen, file, zi, self._pages(pfn))
        mark: cython.int = cython.cast(cython.int, -(key + 1))
        if last:
            self._link_last(key, pfn)
        else:
            self._link(key, pfn)
        if not self._next[pfn]:
            self._next[pfn] = mark
        if not self._prev[pfn]:
            self._prev[pfn] = mark

    @cython.cfunc
    @cython.exceptval(check=False)
    def _gen_take(self, pfn: cython.longlong, zi: cython.int) -> cython.void:
        """Out of its generation (lru_gen_del_folio); a page of a young one is an active page elsewhere."""
        flags: cython.uint = self._flags[pfn]
        gen: cython.int = cython.cast(cython.int, (flags & _GEN_MASK) // _GEN_ONE) - 1
        lruvec: cython.longlong = self._key(pfn, self._zone_nid[zi], 0) // _LISTS
        active: cython.uint = _ACTIVE if self._gen_active(lruvec, gen) else 0
        self._flags[pfn] = (flags & ~_GEN_MASK) | active
        self._gen_count(lruvec, gen, 0 if flags & _SWAPBACKED else 1, zi, -self._pages(pfn))
        after: cython.int = self._next[pfn]
        before: cython.int = self._prev[pfn]
        if before > 0:
            self._next[before - 1] = after
        else:
            self._first[-before - 1] = after if after > 0 else 0
        if after > 0:
            self._prev[after - 1] = before
        else:
            self._last[-after - 1] = before if before > 0 else 0
        self._next[pfn] = 0
        self._prev[pfn] = 0

    @cython.cfunc
    @cython.exceptval(check=False)
    def _gen_active(self, lruvec: cython.longlong, gen: cython.int) -> cython.bint:
        """Whether pages of a generation count as active: those of the two youngest (lru_gen_is_active)."""
        return ((self._seqs[lruvec * 3] + 3 - gen) & 3) < 2

    @cython.cfunc
    @cython.exceptval(check=False)
    def _gen_count(
        self, lruvec: cython.longlong, gen: cython.int, file: cython.int, zi: cython.int, pages: cython.longlong
    ) -> cython.longlong:
        """Count pages of a generation; the number of its list."""
        row: cython.longlong = ((lruvec * 4 + gen) * 2 + file) * self._kinds + zi % self._kinds
        which: cython.int = file * 2 + (1 if self._gen_active(lruvec, gen) else 0)
        self._gen_pages[row] += pages
        self._count_in(zi, lruvec * _LISTS + which, which, pages)
        return self.gen_base + row

    def lruvecs(self) -> int:
        """How many lruvecs may have pages."""
        return (self._most_memcg + 1) * self._nodes

    def gen_keys(self, lruvec: cython.longlong) -> Any:
        """The numbers of the lists of a lruvec's generations."""
        lists: cython.longlong = 8 * self._kinds
        return range(self.gen_base + lruvec * lists, self.gen_base + (lruvec + 1) * lists)

    def refile(self, key: cython.longlong, most: cython.longlong) -> int:
        """Up to ``most`` pages from the old end of a list to where the policy wants them; how many there were
        (fill_evictable, drain_evictable).
        """
        n: cython.longlong = 0
        pfn: cython.longlong
        while n < most and self._last[key]:
            pfn = self._last[key] - 1
            self._take(pfn)
            self._put(pfn, False)
            n += 1
        return n

    # -- being used ----------------------------------------------------------------------------------------

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
        self._trace.emit(_INSERTION, self._struct_page(pfn), pfn, self._list_of(pfn), kind)
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

    # -- what others call ----------------------------------------------------------------------------------

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
        if before < 0:
            key = -before - 1
        for i in range(head + count - 1, head, -1):
            self._prev[i] = before
            if before > 0:
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

    def active(self, pfns: cython.longlong[::1], out: cython.uchar[::1]) -> None:
        """Which pages count as active."""
        i: cython.Py_ssize_t
        flags: cython.uint
        gen: cython.int
        for i in range(pfns.shape[0]):
            flags = self._flags[pfns[i]]
            out[i] = 1 if flags & _ACTIVE else 0
            if flags & _GEN_MASK:
                gen = cython.cast(cython.int, (flags & _GEN_MASK) // _GEN_ONE) - 1
                nid: cython.longlong = self._zone_nid[self._zone_of(pfns[i])]
                out[i] = self._gen_active(self._memcg[pfns[i]] * self._nodes + nid, gen)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _in_gens(self, lruvec: cython.longlong, which: cython.int) -> cython.longlong:
        """Pages of generations that count in one of the four lists."""
        pages: cython.longlong = 0
        gen: cython.int
        kind: cython.int
        for gen in range(4):
            if self._gen_active(lruvec, gen) == (which & 1):
                for kind in range(self._kinds):
                    pages += self._gen_pages[((lruvec * 4 + gen) * 2 + which // 2) * self._kinds + kind]
        return pages

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
                size = self.size(lruvec, which, self._kinds) - self._in_gens(lruvec, which)
                assert pages == size, f"LRU list {which} of lruvec {lruvec}: {pages} pages, its size says {size}"
