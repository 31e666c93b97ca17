"""Generations of pages: scanning the oldest, making a new one, page tables that are walked (mm/vmscan.c ``lru_gen_*``).

Works on the lists of core/lru.py, which puts pages into generations and takes them out. Here are the loops over whole
generations: ``scan_folios`` with its sorting and isolating, ``inc_min_seq``, ``inc_max_seq``, and entries of page
tables whose accessed bits are moved to pages (``walk_pte_range``, ``lru_gen_look_around``). What controls them is
mm/lru_gen.py.

A lruvec's ``ctrl`` row holds what the controller knows, by kind, type and tier: averages of refaulted and of evicted
plus protected pages, and the protected, evicted and refaulted ones of the oldest generation.

Invariants: ``2 <= generations of files <= generations of anonymous pages <= 4``.
"""

from typing import Any

import cython
import numpy as np

from kmemd.core.lru import ANON_AND_FILE, MAX_MEMCGS, MAX_NR_TIERS
from kmemd.core.pages import lazy_zeros

MIN_LRU_BATCH = 64
MAX_LRU_BATCH = MIN_LRU_BATCH * 64
AVG_REFAULTED, AVG_TOTAL, PROTECTED, EVICTED, REFAULTED = range(5)
CTRL_KINDS = 5
CTRL_ROW = CTRL_KINDS * ANON_AND_FILE * MAX_NR_TIERS

# what ``scan`` tells
SCANNED, ISOLATED, SORTED, GUARDED, LEFT = range(5)
SCAN_RESULTS = 5
# what a walk of entries tells: the first three of the kernel's MM_* statistics
LEAF_TOTAL, LEAF_OLD, LEAF_YOUNG = range(3)

_BATCH = cython.declare(cython.longlong, 64)
_MAX_BATCH = cython.declare(cython.longlong, 4096)
_ROW = cython.declare(cython.longlong, 40)
_REFERENCED = cython.declare(cython.uint, 1 << 1)
_LOCKED = cython.declare(cython.uint, 1 << 0)
_DIRTY = cython.declare(cython.uint, 1 << 3)
_LRU = cython.declare(cython.uint, 1 << 4)
_ACTIVE = cython.declare(cython.uint, 1 << 5)
_WORKINGSET = cython.declare(cython.uint, 1 << 6)
_SWAPCACHE = cython.declare(cython.uint, 1 << 10)
_WRITEBACK = cython.declare(cython.uint, 1 << 15)
_HEAD = cython.declare(cython.uint, 1 << 16)
_RECLAIM = cython.declare(cython.uint, 1 << 18)
_SWAPBACKED = cython.declare(cython.uint, 1 << 19)
_UNEVICTABLE = cython.declare(cython.uint, 1 << 20)
_MLOCKED = cython.declare(cython.uint, 1 << 21)
_GEN_MASK = cython.declare(cython.uint, 7 << 22)
_GEN_ONE = cython.declare(cython.uint, 1 << 22)
_REFS_MASK = cython.declare(cython.uint, 3 << 25)
_REFS_ONE = cython.declare(cython.uint, 1 << 25)
_PRESENT = cython.declare(cython.ulonglong, 1)
_ACCESSED = cython.declare(cython.ulonglong, 1 << 5)
_PTE_DIRTY = cython.declare(cython.ulonglong, 1 << 6)
_SPECIAL = cython.declare(cython.ulonglong, 1 << 9)
_PFN_MASK = cython.declare(cython.ulonglong, ((1 << 40) - 1) << 12)


def _view(array: Any) -> Any:
    """Uncompiled, a memoryview gives Python ints, which neither wrap nor warn as numpy scalars do."""
    return array if cython.compiled else memoryview(array)


@cython.cfunc
@cython.exceptval(check=False)
def _tier(refs: cython.int) -> cython.int:
    """order_base_2(refs + 1): the tier of a page that was used that often beyond PG_referenced."""
    return 0 if refs == 0 else (1 if refs == 1 else (2 if refs < 4 else 3))


@cython.final
@cython.cclass
class LruGen:
    """Generations of all lruvecs. ``lru`` is the core's LRU, ``pages`` the page map, ``zones`` and ``vmstat`` are those
    it was made with, ``items`` its numbers of the first LRU counter of zones and of nodes, ``huge_pages`` the pages of
    a huge one.
    """

    ctrl = cython.declare(object, visibility="readonly")
    results = cython.declare(object, visibility="readonly")
    dirtied = cython.declare(object, visibility="readonly")
    _flags: cython.uint[::1]
    _meta: cython.int[::1]
    _mapping: cython.int[::1]
    _mapcount: cython.int[::1]
    _memcg: cython.short[::1]
    _next: cython.int[::1]
    _prev: cython.int[::1]
    _first: cython.int[::1]
    _last: cython.int[::1]
    _gen_pages: cython.longlong[::1]
    _seqs: cython.longlong[::1]
    _ctrl: cython.longlong[::1]
    _results: cython.longlong[::1]
    _zone_stat: cython.longlong[:, ::1]
    _node_stat: cython.longlong[:, ::1]
    _size: cython.longlong[::1]
    _zone_nid: cython.longlong[::1]
    _zone_start: cython.longlong[::1]
    _zone_end: cython.longlong[::1]
    _base: cython.longlong
    _kinds: cython.int
    _nodes: cython.int
    _zone_item: cython.int
    _node_item: cython.int
    _huge: cython.longlong
    _zone: cython.int
    _ndirtied: cython.Py_ssize_t
    _dirtied: cython.longlong[::1]

    def __init__(self, lru: Any, pages: Any, zones: Any, vmstat: Any, items: Any, huge_pages: int = 512) -> None:
        self._flags, self._meta, self._mapping = _view(pages.flags), _view(pages.meta), _view(pages.mapping)
        self._mapcount, self._memcg = _view(pages.mapcount), _view(pages.memcg)
        self._next, self._prev = _view(pages.next), _view(pages.prev)
        self._first, self._last, self._base = _view(lru.first), _view(lru.last), lru.gen_base
        self._gen_pages, self._seqs, self._size = _view(lru.gen_pages), _view(lru.seqs), _view(lru.sizes)
        self._zone_stat, self._node_stat = _view(vmstat.zone_stat), _view(vmstat.node_stat)
        rows = np.array(zones, dtype=np.int64).reshape(-1, 3)
        self._zone_nid, self._zone_start, self._zone_end = (_view(rows[:, k].copy()) for k in range(3))
        self._zone_item, self._node_item = items
        self._huge = huge_pages
        self._nodes = vmstat.node_stat.shape[0]
        self._kinds = max(1, len(rows) // self._nodes)
        self._zone = 0
        self.ctrl = lazy_zeros(MAX_MEMCGS * self._nodes * CTRL_ROW, "int64")
        self.results = np.zeros(SCAN_RESULTS, dtype=np.int64)
        self.dirtied = np.zeros(1 << 10, dtype=np.int64)
        self._ctrl, self._results, self._dirtied = _view(self.ctrl), _view(self.results), _view(self.dirtied)
        self._ndirtied = 0

    # -- small things --------------------------------------------------------------------------------------

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
    def _pages(self, pfn: cython.longlong) -> cython.longlong:
        return cython.cast(cython.longlong, 1) << ((self._meta[pfn] >> 8) & 0xFF)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _row(self, lruvec: cython.longlong, gen: cython.int, file: cython.int, kind: cython.int) -> cython.longlong:
        return ((lruvec * 4 + gen) * 2 + file) * self._kinds + kind

    @cython.cfunc
    @cython.exceptval(check=False)
    def _gen_of(self, pfn: cython.longlong) -> cython.int:
        """The generation that a page's flags tell, -1 for none (folio_lru_gen)."""
        return cython.cast(cython.int, (self._flags[pfn] & _GEN_MASK) // _GEN_ONE) - 1

    @cython.cfunc
    @cython.exceptval(check=False)
    def _refs(self, pfn: cython.longlong) -> cython.int:
        flags: cython.uint = self._flags[pfn]
        return cython.cast(cython.int, (flags & _REFS_MASK) // _REFS_ONE) + (1 if flags & _WORKINGSET else 0)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _is_active(self, lruvec: cython.longlong, gen: cython.int) -> cython.bint:
        return ((self._seqs[lruvec * 3] + 3 - gen) & 3) < 2

    @cython.cfunc
    @cython.exceptval(check=False)
    def _size_add(
        self, lruvec: cython.longlong, which: cython.int, zi: cython.int, pages: cython.longlong
    ) -> cython.void:
        """The lengths that the rest of the kernel sees (__update_lru_size)."""
        self._zone_stat[zi, self._zone_item + which] += pages
        self._node_stat[self._zone_nid[zi], self._node_item + which] += pages
        self._size[(lruvec * 5 + which) * self._kinds + zi % self._kinds] += pages

    @cython.cfunc
    @cython.exceptval(check=False)
    def _recount(
        self,
        lruvec: cython.longlong,
        file: cython.int,
        zi: cython.int,
        old: cython.int,
        new: cython.int,
        n: cython.longlong,
    ) -> cython.void:
        """Pages are of another generation (lru_gen_update_size)."""
        kind: cython.int = zi % self._kinds
        self._gen_pages[self._row(lruvec, old, file, kind)] -= n
        self._gen_pages[self._row(lruvec, new, file, kind)] += n
        was: cython.bint = self._is_active(lruvec, old)
        now: cython.bint = self._is_active(lruvec, new)
        if was != now:
            self._size_add(lruvec, file * 2 + (1 if was else 0), zi, -n)
            self._size_add(lruvec, file * 2 + (1 if now else 0), zi, n)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _unlink(self, pfn: cython.longlong) -> cython.void:
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

    @cython.cfunc
    @cython.exceptval(check=False)
    def _link(self, row: cython.longlong, pfn: cython.longlong) -> cython.void:
        """To the young end (list_add)."""
        key: cython.longlong = self._base + row
        first: cython.int = self._first[key]
        mark: cython.int = cython.cast(cython.int, -(key + 1))
        self._prev[pfn] = mark
        self._next[pfn] = first if first else mark
        if first:
            self._prev[first - 1] = cython.cast(cython.int, pfn + 1)
        else:
            self._last[key] = cython.cast(cython.int, pfn + 1)
        self._first[key] = cython.cast(cython.int, pfn + 1)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _link_last(self, row: cython.longlong, pfn: cython.longlong) -> cython.void:
        """To the old end (list_add_tail)."""
        key: cython.longlong = self._base + row
        last: cython.int = self._last[key]
        mark: cython.int = cython.cast(cython.int, -(key + 1))
        self._next[pfn] = mark
        self._prev[pfn] = last if last else mark
        if last:
            self._next[last - 1] = cython.cast(cython.int, pfn + 1)
        else:
            self._first[key] = cython.cast(cython.int, pfn + 1)
        self._last[key] = cython.cast(cython.int, pfn + 1)

    # -- moving pages between generations ------------------------------------------------------------------

    @cython.cfunc
    @cython.exceptval(check=False)
    def _inc_gen(
        self, lruvec: cython.longlong, pfn: cython.longlong, zi: cython.int, reclaiming: cython.bint
    ) -> cython.int:
        """A page of the oldest generation to the second oldest (folio_inc_gen); the generation it is in then."""
        flags: cython.uint = self._flags[pfn]
        file: cython.int = 0 if flags & _SWAPBACKED else 1
        old: cython.int = cython.cast(cython.int, self._seqs[lruvec * 3 + 1 + file] & 3)
        gen: cython.int = self._gen_of(pfn)
        if gen >= 0 and gen != old:
            return gen
        gen = (old + 1) & 3
        flags = flags & ~(_GEN_MASK | _REFS_MASK | _REFERENCED | _WORKINGSET)
        flags |= cython.cast(cython.uint, gen + 1) * _GEN_ONE
        self._flags[pfn] = flags | (_RECLAIM if reclaiming else 0)
        self._recount(lruvec, file, zi, old, gen, self._pages(pfn))
        return gen

    @cython.cfunc
    @cython.exceptval(check=False)
    def _update_gen(self, lruvec: cython.longlong, pfn: cython.longlong, new: cython.int) -> cython.bint:
        """A page was used through page tables: it belongs to the youngest generation (folio_update_gen), and is moved
        to its list when it is met there. False: it is on no list.
        """
        flags: cython.uint = self._flags[pfn]
        if not flags & _GEN_MASK:
            self._flags[pfn] = flags | _REFERENCED
            return False
        old: cython.int = self._gen_of(pfn)
        flags = flags & ~(_GEN_MASK | _REFS_MASK | _REFERENCED | _WORKINGSET)
        self._flags[pfn] = flags | cython.cast(cython.uint, new + 1) * _GEN_ONE
        if old != new:
            self._recount(lruvec, 0 if flags & _SWAPBACKED else 1, self._zone_of(pfn), old, new, self._pages(pfn))
        return True

    # -- the eviction --------------------------------------------------------------------------------------

    @cython.cfunc
    @cython.exceptval(check=False)
    def _sort(
        self,
        lruvec: cython.longlong,
        pfn: cython.longlong,
        zi: cython.int,
        file: cython.int,
        tier_idx: cython.int,
        highest: cython.int,
    ) -> cython.bint:
        """Whether a page of the oldest list goes somewhere else instead of being evicted (sort_folio)."""
        flags: cython.uint = self._flags[pfn]
        kind: cython.int = zi % self._kinds
        gen: cython.int = self._gen_of(pfn)
        refs: cython.int = self._refs(pfn)
        tier: cython.int = _tier(refs)
        n: cython.longlong = self._pages(pfn)
        if flags & _MLOCKED:
            return False
        if file and self._mapping[pfn] > 0 and flags & _DIRTY:  # freed lazily, but written to since
            return self._lazy_written(lruvec, pfn, zi, gen)
        if gen != (self._seqs[lruvec * 3 + 1 + file] & 3):  # promoted
            self._unlink(pfn)
            self._link(self._row(lruvec, gen, file, kind), pfn)
            return True
        if tier > tier_idx or refs == 4:  # protected
            self._inc_gen(lruvec, pfn, zi, False)
            self._to_last(lruvec, pfn, file, kind)
            self._ctrl[lruvec * _ROW + (2 * 2 + file) * 4 + tier] += n
            self._results[3] += n
            return True
        if kind > highest:  # of no use to who asks
            self._inc_gen(lruvec, pfn, zi, False)
            self._to_last(lruvec, pfn, file, kind)
            return True
        if flags & (_LOCKED | _WRITEBACK) or (file and flags & _DIRTY):  # waits for write-back
            gen = self._inc_gen(lruvec, pfn, zi, True)
            self._unlink(pfn)
            self._link(self._row(lruvec, gen, file, kind), pfn)
            return True
        return False

    @cython.cfunc
    @cython.exceptval(check=False)
    def _to_last(
        self, lruvec: cython.longlong, pfn: cython.longlong, file: cython.int, kind: cython.int
    ) -> cython.void:
        self._unlink(pfn)
        self._link_last(self._row(lruvec, self._gen_of(pfn), file, kind), pfn)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _lazy_written(
        self, lruvec: cython.longlong, pfn: cython.longlong, zi: cython.int, gen: cython.int
    ) -> cython.bint:
        """A page freed lazily that was written to is an anonymous page like any other, the oldest but one of all."""
        n: cython.longlong = self._pages(pfn)
        self._count(lruvec, gen, 1, zi, -n)
        newest: cython.longlong = self._seqs[lruvec * 3] + 3
        gen = cython.cast(cython.int, (newest - 1) & 3)
        flags: cython.uint = (self._flags[pfn] & ~_GEN_MASK) | _SWAPBACKED
        self._flags[pfn] = flags | cython.cast(cython.uint, gen + 1) * _GEN_ONE
        self._count(lruvec, gen, 0, zi, n)
        self._to_last(lruvec, pfn, 0, zi % self._kinds)
        return True

    @cython.cfunc
    @cython.exceptval(check=False)
    def _count(
        self, lruvec: cython.longlong, gen: cython.int, file: cython.int, zi: cython.int, n: cython.longlong
    ) -> cython.void:
        self._gen_pages[self._row(lruvec, gen, file, zi % self._kinds)] += n
        self._size_add(lruvec, file * 2 + (1 if self._is_active(lruvec, gen) else 0), zi, n)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _may_isolate(self, pfn: cython.longlong, may_unmap: cython.bint, may_write: cython.bint) -> cython.bint:
        flags: cython.uint = self._flags[pfn]
        if not may_unmap and self._mapcount[pfn]:
            return False
        return may_write or not (flags & _DIRTY or (self._mapping[pfn] > 0 and not flags & _SWAPCACHE))

    @cython.cfunc
    @cython.exceptval(check=False)
    def _isolate(self, lruvec: cython.longlong, pfn: cython.longlong, zi: cython.int, file: cython.int) -> cython.void:
        """Off its list, without the marks of its uses (isolate_folio)."""
        flags: cython.uint = self._flags[pfn]
        self._count(lruvec, self._gen_of(pfn), file, zi, -self._pages(pfn))
        self._unlink(pfn)
        self._next[pfn] = 0
        self._prev[pfn] = 0
        if not flags & _REFERENCED:
            flags &= ~(_REFS_MASK | _WORKINGSET)
        self._flags[pfn] = flags & ~(_LRU | _GEN_MASK | _RECLAIM | _REFERENCED)

    def scan(
        self,
        lruvec: cython.longlong,
        file: cython.int,
        tier: cython.int,
        highest: cython.int,
        may_unmap: cython.bint,
        may_write: cython.bint,
        out: cython.longlong[::1],
        skipped: cython.longlong[::1],
    ) -> int:
        """Take the oldest pages of a type off their lists (scan_folios): blocks in ``out``, which has room for 64.

        Pages of tiers above ``tier`` are protected. ``results`` tells the pages scanned, isolated, sorted and
        protected, and how many blocks more could have been looked at; ``skipped`` counts by zone what could not be
        isolated.
        """
        i: cython.int
        kind: cython.int
        blocks: cython.Py_ssize_t = 0
        left: cython.longlong = _MAX_BATCH
        passed: cython.longlong
        k: cython.int
        for k in range(5):
            self._results[k] = 0
        self._results[4] = left
        if self._seqs[lruvec * 3] + 3 - self._seqs[lruvec * 3 + 1 + file] + 1 == 2:
            return 0
        gen: cython.int = cython.cast(cython.int, self._seqs[lruvec * 3 + 1 + file] & 3)
        for i in range(self._kinds, 0, -1):
            kind = (highest + i) % self._kinds
            row: cython.longlong = self._row(lruvec, gen, file, kind)
            passed = 0
            moved: list = []
            while self._last[self._base + row]:
                pfn: cython.longlong = self._last[self._base + row] - 1
                zi: cython.int = self._zone_of(pfn)
                n: cython.longlong = self._pages(pfn)
                self._results[0] += n
                if self._sort(lruvec, pfn, zi, file, tier, highest):
                    self._results[2] += n
                elif self._may_isolate(pfn, may_unmap, may_write):
                    self._isolate(lruvec, pfn, zi, file)
                    out[blocks] = pfn
                    blocks += 1
                    self._results[1] += n
                else:
                    self._unlink(pfn)
                    moved.append(pfn)
                    passed += n
                left -= 1
                if not left or self._results[1] >= _BATCH or passed >= _BATCH:
                    break
            for pfn in moved:
                self._link(row, pfn)
            skipped[kind] += passed
            if not left or self._results[1] >= _BATCH:
                break
        self._results[4] = left
        return blocks

    # -- sequence numbers ----------------------------------------------------------------------------------

    @cython.cfunc
    @cython.exceptval(check=False)
    def _carry_over(self, lruvec: cython.longlong, file: cython.int) -> cython.void:
        """The oldest generation is gone: what it taught goes into the averages (reset_ctrl_pos)."""
        at: cython.longlong
        total: cython.longlong
        tier: cython.int
        for tier in range(4):
            at = lruvec * _ROW + file * 4 + tier
            self._ctrl[at] = (self._ctrl[at] + self._ctrl[at + 32]) // 2
            total = self._ctrl[at + 8] + self._ctrl[at + 24]
            if tier:
                total += self._ctrl[at + 16]
            self._ctrl[at + 8] = total // 2
            self._ctrl[at + 16] = 0
            self._ctrl[at + 24] = 0
            self._ctrl[at + 32] = 0

    def inc_min_seq(self, lruvec: cython.longlong, file: cython.int, can_swap: cython.bint) -> bool:
        """The oldest generation of a type becomes one with the second oldest, pages and all, or as many as are moved
        in one go: then False (inc_min_seq).
        """
        left: cython.longlong = _MAX_BATCH
        gen: cython.int = cython.cast(cython.int, self._seqs[lruvec * 3 + 1 + file] & 3)
        kind: cython.int
        if file or can_swap:
            for kind in range(self._kinds):
                row: cython.longlong = self._row(lruvec, gen, file, kind)
                while self._last[self._base + row]:
                    pfn: cython.longlong = self._last[self._base + row] - 1
                    self._inc_gen(lruvec, pfn, self._zone_of(pfn), False)
                    self._to_last(lruvec, pfn, file, kind)
                    left -= 1
                    if not left:
                        return False
        self._carry_over(lruvec, file)
        self._seqs[lruvec * 3 + 1 + file] += 1
        return True

    @cython.cfunc
    @cython.exceptval(check=False)
    def _oldest_populated(self, lruvec: cython.longlong, file: cython.int) -> cython.longlong:
        seq: cython.longlong = self._seqs[lruvec * 3 + 1 + file]
        kind: cython.int
        while seq + 2 <= self._seqs[lruvec * 3] + 3:
            for kind in range(self._kinds):
                if self._last[self._base + self._row(lruvec, cython.cast(cython.int, seq & 3), file, kind)]:
                    return seq
            seq += 1
        return seq

    def try_to_inc_min_seq(self, lruvec: cython.longlong, can_swap: cython.bint) -> bool:
        """Empty oldest generations go (try_to_inc_min_seq); whether there were any."""
        anon: cython.longlong = self._seqs[lruvec * 3 + 1]
        file: cython.longlong = self._oldest_populated(lruvec, 1)
        done: cython.bint = False
        if can_swap:
            anon = min(self._oldest_populated(lruvec, 0), file)
            file = max(anon, self._seqs[lruvec * 3 + 2])
        if anon != self._seqs[lruvec * 3 + 1]:
            self._carry_over(lruvec, 0)
            self._seqs[lruvec * 3 + 1] = anon
            done = True
        if file != self._seqs[lruvec * 3 + 2]:
            self._carry_over(lruvec, 1)
            self._seqs[lruvec * 3 + 2] = file
            done = True
        return done

    def inc_max_seq(self, lruvec: cython.longlong, nid: cython.int) -> None:
        """A new youngest generation: the second youngest so far is an active one no longer (inc_max_seq).

        Preconditions: there are fewer than four generations of each type.
        """
        newest: cython.longlong = self._seqs[lruvec * 3] + 3
        prev: cython.int = cython.cast(cython.int, (newest - 1) & 3)
        after: cython.int = cython.cast(cython.int, (newest + 1) & 3)
        file: cython.int
        kind: cython.int
        for file in range(2):
            for kind in range(self._kinds):
                delta: cython.longlong = self._gen_pages[self._row(lruvec, prev, file, kind)]
                delta -= self._gen_pages[self._row(lruvec, after, file, kind)]
                if delta:
                    self._size_add(lruvec, file * 2, nid * self._kinds + kind, delta)
                    self._size_add(lruvec, file * 2 + 1, nid * self._kinds + kind, -delta)
        self._seqs[lruvec * 3] += 1

    def pages(self, lruvec: cython.longlong, seq: cython.longlong, file: cython.int) -> int:
        """Pages of a generation."""
        total: cython.longlong = 0
        kind: cython.int
        for kind in range(self._kinds):
            total += self._gen_pages[self._row(lruvec, cython.cast(cython.int, seq & 3), file, kind)]
        return total

    # -- evictions and refaults ----------------------------------------------------------------------------

    def evicted_bulk(
        self,
        lruvecs: cython.longlong[::1],
        pfns: cython.longlong[::1],
        tokens: cython.longlong[::1],
        worked: cython.longlong[::1],
    ) -> None:
        """Pages go: ``tokens`` get the generation and the uses of each for its shadow, ``worked`` whether it was of the
        workingset (lru_gen_eviction).
        """
        i: cython.Py_ssize_t
        file: cython.int
        refs: cython.int
        for i in range(pfns.shape[0]):
            file = 0 if self._flags[pfns[i]] & _SWAPBACKED else 1
            refs = self._refs(pfns[i])
            self._ctrl[lruvecs[i] * _ROW + (3 * 2 + file) * 4 + _tier(refs)] += self._pages(pfns[i])
            tokens[i] = self._seqs[lruvecs[i] * 3 + 1 + file] << 2 | (refs - 1 if refs else 0)
            worked[i] = 1 if refs else 0

    def refaulted(
        self,
        lruvec: cython.longlong,
        pfn: cython.longlong,
        token: cython.longlong,
        mask: cython.longlong,
        workingset: cython.bint,
        in_fault: cython.bint,
    ) -> int:
        """A page comes back (lru_gen_refault): 0 when its generation is gone since, 1 when it is not, 2 when the page
        was missed so much that it is protected. ``mask``: bits that a shadow has for the sequence number.
        """
        file: cython.int = 0 if self._flags[pfn] & _SWAPBACKED else 1
        if token >> 2 != self._seqs[lruvec * 3 + 1 + file] & mask:
            return 0
        refs: cython.int = cython.cast(cython.int, token & 3) + (1 if workingset else 0)
        self._ctrl[lruvec * _ROW + (4 * 2 + file) * 4 + _tier(refs)] += self._pages(pfn)
        if not in_fault and refs < 3:
            return 1
        self._flags[pfn] |= _REFS_MASK | _WORKINGSET
        return 2

    # -- page tables ---------------------------------------------------------------------------------------

    def walk(
        self,
        table: cython.ulonglong[::1],
        first: cython.longlong,
        count: cython.longlong,
        lruvec: cython.longlong,
        nid: cython.int,
        can_swap: cython.bint,
        stats: cython.longlong[::1],
    ) -> int:
        """Entries of one table whose pages were used make them young, and are old from then on (walk_pte_range).

        ``stats`` counts entries, old and young ones. Returns how many were young; ``dirtied`` has the pages of files
        that turned out to be dirty, see ``take_dirtied``.
        """
        i: cython.longlong
        entry: cython.ulonglong
        pfn: cython.longlong
        young: cython.longlong = 0
        new: cython.int = cython.cast(cython.int, (self._seqs[lruvec * 3] + 3) & 3)
        words: cython.ulonglong[::1] = _view(table)
        stats[0] += count
        for i in range(first, first + count):
            entry = words[i]
            if not entry & _PRESENT or entry & _SPECIAL:
                continue
            if not entry & _ACCESSED:
                stats[1] += 1
                continue
            pfn = self._page_of(entry, lruvec, nid, can_swap)
            if pfn < 0:
                continue
            words[i] = entry ^ _ACCESSED
            young += 1
            self._note_dirty(entry, pfn)
            self._update_gen(lruvec, pfn, new)
        stats[2] += young
        return young

    @cython.cfunc
    @cython.exceptval(check=False)
    def _page_of(
        self, entry: cython.ulonglong, lruvec: cython.longlong, nid: cython.int, can_swap: cython.bint
    ) -> cython.longlong:
        """The head of the page of an entry if it is of the lruvec, else -1 (get_pfn_folio)."""
        pfn: cython.longlong = cython.cast(cython.longlong, (entry & _PFN_MASK) >> 12)
        if not self._mapcount[pfn] and not self._meta[pfn] & 0xFF:
            return -1  # the zero page, and the kernel's own
        if not self._meta[pfn] & 0xFF:
            pfn &= ~(self._huge - 1)
        if not self._flags[pfn] & (_LRU | _SWAPBACKED) and not self._mapping[pfn]:
            return -1
        if self._zone_nid[self._zone_of(pfn)] != nid or self._memcg[pfn] * self._nodes + nid != lruvec:
            return -1
        return pfn if can_swap or not self._flags[pfn] & _SWAPBACKED else -1

    @cython.cfunc
    @cython.exceptval(check=False)
    def _note_dirty(self, entry: cython.ulonglong, pfn: cython.longlong) -> cython.void:
        """The entry says that a page of a file is dirty, the page does not say so yet."""
        clean: cython.bint = self._mapping[pfn] < 0 and not self._flags[pfn] & _DIRTY
        if entry & _PTE_DIRTY and clean and self._ndirtied < self._dirtied.shape[0]:
            self._dirtied[self._ndirtied] = pfn
            self._ndirtied += 1

    def take_dirtied(self) -> Any:
        """The pages of files that walks found dirty since the last call."""
        n: cython.Py_ssize_t = self._ndirtied
        self._ndirtied = 0
        return self.dirtied[:n].copy()

    # -- proof ---------------------------------------------------------------------------------------------

    def check(self, lruvecs: cython.longlong) -> None:
        """Links lead both ways; each page is of its list's type, lruvec and zone; generations have the pages that their
        sizes say; sequence numbers keep their distance. AssertionError.
        """
        lruvec: cython.longlong
        file: cython.int
        gen: cython.int
        kind: cython.int
        for lruvec in range(lruvecs):
            newest: cython.longlong = self._seqs[lruvec * 3] + 3
            anon: cython.longlong = newest - self._seqs[lruvec * 3 + 1] + 1
            files: cython.longlong = newest - self._seqs[lruvec * 3 + 2] + 1
            assert 2 <= files <= anon <= 4, f"lruvec {lruvec}: {anon} and {files} generations"
            for file in range(2):
                for kind in range(self._kinds):
                    found: list = [0, 0, 0, 0]
                    for gen in range(4):
                        self._check_list(lruvec, gen, file, kind, found)
                    sizes: list = [self._gen_pages[self._row(lruvec, gen, file, kind)] for gen in range(4)]
                    assert found == sizes, f"lruvec {lruvec}: generations have {found} pages, their sizes say {sizes}"

    @cython.cfunc
    def _check_list(
        self, lruvec: cython.longlong, gen: cython.int, file: cython.int, kind: cython.int, found: list
    ) -> object:
        key: cython.longlong = self._base + self._row(lruvec, gen, file, kind)
        before: cython.longlong = -(key + 1)
        at: cython.longlong = self._first[key]
        while at > 0:
            pfn: cython.longlong = at - 1
            flags: cython.uint = self._flags[pfn]
            assert self._prev[pfn] == before, f"pfn {pfn}: the list of its generation leads back elsewhere"
            assert flags & _LRU, f"pfn {pfn}: in a generation without PG_lru"
            assert flags & _GEN_MASK, f"pfn {pfn}: in a list of generations without one"
            assert not flags & (_ACTIVE | _UNEVICTABLE), f"pfn {pfn}: in a generation by mistake"
            assert (0 if flags & _SWAPBACKED else 1) == file, f"pfn {pfn}: in a generation of the other type"
            zi: cython.int = self._zone_of(pfn)
            mine: cython.longlong = self._memcg[pfn] * self._nodes + self._zone_nid[zi]
            assert (zi % self._kinds, mine) == (kind, lruvec), f"pfn {pfn}: in a generation elsewhere"
            found[self._gen_of(pfn)] += self._pages(pfn)
            before = at
            at = self._next[pfn]
        assert self._last[key] == (before if before > 0 else 0), f"a list of generation {gen} ends elsewhere"
        return None
