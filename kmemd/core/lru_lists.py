"""The lists of pages by use: what is counted in them, and how pages go in and out (include/linux/mm_inline.h).

A lruvec is a node's part of a memory cgroup, ``memcg * nodes + nid``; its lists are linked through
``PageMap.next``/``prev`` from the youngest page to the oldest. Where a page belongs depends on its flags and on the
replacement policy in force, ``words[POLICY]``: with the generations of the multi-generational LRU
(``lru_gen_add_folio`` and its like) a lruvec has a list for each generation, type and zone. The batches in front of
the lists are core/lru.py, what works on whole generations is core/lru_gen_lists.py.

Invariants: a page with PG_LRU is counted in exactly one list of its zone and node: unevictable, or by PG_SWAPBACKED
and PG_ACTIVE. It is linked in that list of its lruvec, unless it is unevictable: such a page is on no linked list, and
``prev`` counts how many mappings lock it. A page of a generation says which in its flags, is counted by it, has no
PG_ACTIVE, and is linked in a list of its type, lruvec and zone, but not always of its generation: one that was used is
moved when it is met. The ends of such a list link to ``-(list + 1)``.
"""

from typing import Any

import cython
import numpy as np

from kmemd.core.array_view import view
from kmemd.core.page_arrays import PageArrays
from kmemd.core.pages import lazy_zeros

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

_LISTS = cython.declare(cython.int, 5)
_LRU = cython.declare(cython.uint, 1 << 4)
_ACTIVE = cython.declare(cython.uint, 1 << 5)
_DIRTY = cython.declare(cython.uint, 1 << 3)
_SWAPCACHE = cython.declare(cython.uint, 1 << 10)
_SWAPBACKED = cython.declare(cython.uint, 1 << 19)
_UNEVICTABLE = cython.declare(cython.uint, 1 << 20)
_WRITEBACK = cython.declare(cython.uint, 1 << 15)
_RECLAIM = cython.declare(cython.uint, 1 << 18)
_GEN_MASK = cython.declare(cython.uint, 7 << 22)
_GEN_ONE = cython.declare(cython.uint, 1 << 22)
_MGLRU = cython.declare(cython.longlong, 1)


@cython.cclass
class LruLists(PageArrays):
    """Lists of all lruvecs. ``zones`` rows are ``(nid, start_pfn, end_pfn)``, numbered as the counters' rows, as many
    for each node; ``items`` gives the numbers of the first LRU counter of zones and of nodes.

    For core/lru_gen_lists.py: ``first`` and ``last`` hold PFN + 1 of the ends of all lists, those of generations from
    ``gen_base`` on; ``gen_pages`` the pages of each generation, type and zone, ``seqs`` the sequence numbers by lruvec.
    """

    def __init__(self, pages: Any, zones: Any, vmstat: Any, items: Any) -> None:
        super().__init__(pages, zones, vmstat)
        self._next, self._prev = view(pages.next), view(pages.prev)
        self._zone_stat = view(vmstat.zone_stat)
        self._zone_item, self._node_item = items
        self._nodes = vmstat.node_stat.shape[0]
        self._most_memcg = 0
        self._kinds = max(1, len(zones) // self._nodes)
        lists = MAX_MEMCGS * self._nodes * NR_LRU_LISTS
        generations = MAX_MEMCGS * self._nodes * MAX_NR_GENS * ANON_AND_FILE * self._kinds
        self.gen_base = lists
        self.first, self.last = (lazy_zeros(lists + generations, "int32") for _ in range(2))
        self._first, self._last = view(self.first), view(self.last)
        self.sizes = lazy_zeros(lists * self._kinds, "int64")
        self._size = view(self.sizes)
        self.gen_pages = lazy_zeros(generations, "int64")
        self.seqs = lazy_zeros(MAX_MEMCGS * self._nodes * SEQS, "int64")
        self.words = np.zeros(4, dtype=np.int64)
        self._gen_pages, self._seqs, self._words = view(self.gen_pages), view(self.seqs), view(self.words)

    # compiled, this is the inline function of the .pxd
    if not cython.compiled:

        def _pages(self, pfn: int) -> int:
            """Pages of a block (folio_nr_pages)."""
            return 1 << ((self._meta[pfn] >> 8) & 0xFF)

    # -- lists -------------------------------------------------------------------------------------------------

    @cython.cfunc
    @cython.exceptval(check=False)
    def _which(self, pfn: cython.longlong) -> cython.int:
        """The list of its lruvec that a page is in."""
        return _list_of(self._flags[pfn])

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
        which: cython.int = _list_of(self._flags[pfn])
        key: cython.longlong = _key(self, pfn, self._zone_nid[zi], which)
        _count_in(self, zi, key, which, self._pages(pfn))
        if which < 4:
            if last:
                _link_last(self, key, pfn)
            else:
                _link(self, key, pfn)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _take(self, pfn: cython.longlong) -> cython.void:
        """The opposite (lruvec_del_folio)."""
        zi: cython.int = self._zone_of(pfn)
        if self._flags[pfn] & _GEN_MASK:
            self._gen_take(pfn, zi)
            return
        which: cython.int = _list_of(self._flags[pfn])
        key: cython.longlong = _key(self, pfn, self._zone_nid[zi], which)
        _count_in(self, zi, key, which, -self._pages(pfn))
        if which < 4:
            _unlink(self, key, pfn)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _link_alike(self, pfns: cython.longlong[::1], start: cython.Py_ssize_t, stop: cython.Py_ssize_t) -> cython.void:
        """Link and count small pages of one zone, cgroup and kind, which the two-list policy or one of its like has."""
        i: cython.Py_ssize_t
        zi: cython.int = self._zone_of(pfns[start])
        which: cython.int = _list_of(self._flags[pfns[start]])
        key: cython.longlong = _key(self, pfns[start], self._zone_nid[zi], which)
        for i in range(start, stop):
            _link(self, key, pfns[i])
        _count_in(self, zi, key, which, stop - start)

    # -- lists of generations ----------------------------------------------------------------------------------

    @cython.cfunc
    @cython.exceptval(check=False)
    def _gen_put(self, pfn: cython.longlong, zi: cython.int, last: cython.bint) -> cython.void:
        """Into the generation that a page deserves (lru_gen_add_folio): new ones that were faulted in are the youngest.

        ``last``: it was written for reclaim, and is the next to go.
        """
        flags: cython.uint = self._flags[pfn]
        file: cython.int = 0 if flags & _SWAPBACKED else 1
        lruvec: cython.longlong = _key(self, pfn, self._zone_nid[zi], 0) // _LISTS
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
        key: cython.longlong = _gen_count(self, lruvec, gen, file, zi, self._pages(pfn))
        mark: cython.int = cython.cast(cython.int, -(key + 1))
        if last:
            _link_last(self, key, pfn)
        else:
            _link(self, key, pfn)
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
        lruvec: cython.longlong = _key(self, pfn, self._zone_nid[zi], 0) // _LISTS
        active: cython.uint = _ACTIVE if _gen_active(self, lruvec, gen) else 0
        self._flags[pfn] = (flags & ~_GEN_MASK) | active
        _gen_count(self, lruvec, gen, 0 if flags & _SWAPBACKED else 1, zi, -self._pages(pfn))
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

    # -- reclaim -----------------------------------------------------------------------------------------------

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
                _unlink(self, key, pfn)
                _link(self, key, pfn)
                if stop < 0:
                    stop = pfn
                if zi % self._kinds > highest:
                    skipped[zi % self._kinds] += pages
                else:
                    scan += pages
                continue
            scan += pages
            _unlink(self, key, pfn)
            _count_in(self, zi, key, which, -pages)
            self._flags[pfn] &= ~_LRU
            out[blocks] = pfn
            blocks += 1
            taken += pages
        return blocks, total, taken

    def split(self, head: cython.longlong, count: cython.longlong) -> None:
        """A huge page became ``count`` small ones: the others follow it to its list (lru_add_page_tail).

        Preconditions: they have its flags, and are small by now.
        """
        i: cython.longlong
        before: cython.int
        flags: cython.uint = self._flags[head]
        if not flags & _LRU or flags & _UNEVICTABLE:
            return
        key: cython.longlong = _key(self, head, self._zone_nid[self._zone_of(head)], _list_of(self._flags[head]))
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

    # -- what is in the lists ----------------------------------------------------------------------------------

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
                out[i] = _gen_active(self, self._memcg[pfns[i]] * self._nodes + nid, gen)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _in_gens(self, lruvec: cython.longlong, which: cython.int) -> cython.longlong:
        """Pages of generations that count in one of the four lists."""
        pages: cython.longlong = 0
        gen: cython.int
        kind: cython.int
        for gen in range(4):
            if _gen_active(self, lruvec, gen) == (which & 1):
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
                    assert _list_of(self._flags[pfn - 1]) == which, f"pfn {pfn - 1}: on LRU list {which} by mistake"
                    pages += self._pages(pfn - 1)
                    before = pfn
                    pfn = self._next[pfn - 1]
                assert self._last[key] == before, f"LRU list {which} of lruvec {lruvec} ends elsewhere"
                size = self.size(lruvec, which, self._kinds) - self._in_gens(lruvec, which)
                assert pages == size, f"LRU list {which} of lruvec {lruvec}: {pages} pages, its size says {size}"


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _list_of(flags: cython.uint) -> cython.int:
    """Which of a lruvec's lists a page is in by its flags (folio_lru_list)."""
    if flags & _UNEVICTABLE:
        return 4
    return (0 if flags & _SWAPBACKED else 2) + (1 if flags & _ACTIVE else 0)


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _link(lists: LruLists, key: cython.longlong, pfn: cython.longlong) -> cython.void:
    """To the young end of a list."""
    first: cython.int = lists._first[key]
    lists._next[pfn] = first
    lists._prev[pfn] = 0
    if first:
        lists._prev[first - 1] = cython.cast(cython.int, pfn + 1)
    else:
        lists._last[key] = cython.cast(cython.int, pfn + 1)
    lists._first[key] = cython.cast(cython.int, pfn + 1)


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _link_last(lists: LruLists, key: cython.longlong, pfn: cython.longlong) -> cython.void:
    """To the old end of a list."""
    last: cython.int = lists._last[key]
    lists._prev[pfn] = last
    lists._next[pfn] = 0
    if last:
        lists._next[last - 1] = cython.cast(cython.int, pfn + 1)
    else:
        lists._first[key] = cython.cast(cython.int, pfn + 1)
    lists._last[key] = cython.cast(cython.int, pfn + 1)


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _unlink(lists: LruLists, key: cython.longlong, pfn: cython.longlong) -> cython.void:
    after: cython.int = lists._next[pfn]
    before: cython.int = lists._prev[pfn]
    if before:
        lists._next[before - 1] = after
    else:
        lists._first[key] = after
    if after:
        lists._prev[after - 1] = before
    else:
        lists._last[key] = before
    lists._next[pfn] = 0
    lists._prev[pfn] = 0


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _key(lists: LruLists, pfn: cython.longlong, nid: cython.longlong, which: cython.int) -> cython.longlong:
    """The number of a list: the one of the page's lruvec."""
    if lists._memcg[pfn] > lists._most_memcg:
        lists._most_memcg = lists._memcg[pfn]
    return (lists._memcg[pfn] * lists._nodes + nid) * _LISTS + which


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _count_in(
    lists: LruLists, zi: cython.int, key: cython.longlong, which: cython.int, pages: cython.longlong
) -> cython.void:
    lists._zone_stat[zi, lists._zone_item + which] += pages
    lists._node_stat[lists._zone_nid[zi], lists._node_item + which] += pages
    lists._size[key * lists._kinds + zi % lists._kinds] += pages


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _gen_active(lists: LruLists, lruvec: cython.longlong, gen: cython.int) -> cython.bint:
    """Whether pages of a generation count as active: those of the two youngest (lru_gen_is_active)."""
    return ((lists._seqs[lruvec * 3] + 3 - gen) & 3) < 2


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _gen_count(
    lists: LruLists, lruvec: cython.longlong, gen: cython.int, file: cython.int, zi: cython.int, pages: cython.longlong
) -> cython.longlong:
    """Count pages of a generation; the number of its list."""
    row: cython.longlong = ((lruvec * 4 + gen) * 2 + file) * lists._kinds + zi % lists._kinds
    which: cython.int = file * 2 + (1 if _gen_active(lists, lruvec, gen) else 0)
    lists._gen_pages[row] += pages
    _count_in(lists, zi, lruvec * _LISTS + which, which, pages)
    return lists.gen_base + row
