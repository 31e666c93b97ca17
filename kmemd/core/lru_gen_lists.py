"""Lists of generations: counting, moving pages, evicting from the oldest (mm/vmscan.c ``lru_gen_*``).

Works on the lists of core/lru_lists.py, which puts pages into generations and takes them out. Here are the loops over
the oldest generation: ``scan_folios`` with its sorting and isolating, ``inc_min_seq``, and what is remembered of pages
that went. New generations are core/lru_gen.py.

A lruvec's ``ctrl`` row holds what the controller knows, by kind, type and tier: averages of refaulted and of evicted
plus protected pages, and the protected, evicted and refaulted ones of the oldest generation.
"""

from typing import Any

import cython
import numpy as np

from kmemd.core.array_view import view
from kmemd.core.lru_lists import ANON_AND_FILE, MAX_MEMCGS, MAX_NR_TIERS
from kmemd.core.page_arrays import PageArrays
from kmemd.core.pages import lazy_zeros

MIN_LRU_BATCH = 64
MAX_LRU_BATCH = MIN_LRU_BATCH * 64
AVG_REFAULTED, AVG_TOTAL, PROTECTED, EVICTED, REFAULTED = range(5)
CTRL_KINDS = 5
CTRL_ROW = CTRL_KINDS * ANON_AND_FILE * MAX_NR_TIERS

# what ``scan`` tells
SCANNED, ISOLATED, SORTED, GUARDED, LEFT = range(5)
SCAN_RESULTS = 5

_BATCH = cython.declare(cython.longlong, 64)
_MAX_BATCH = cython.declare(cython.longlong, 4096)
_ROW = cython.declare(cython.longlong, 40)
_REFERENCED = cython.declare(cython.uint, 1 << 1)
_LOCKED = cython.declare(cython.uint, 1 << 0)
_DIRTY = cython.declare(cython.uint, 1 << 3)
_LRU = cython.declare(cython.uint, 1 << 4)
_WORKINGSET = cython.declare(cython.uint, 1 << 6)
_SWAPCACHE = cython.declare(cython.uint, 1 << 10)
_WRITEBACK = cython.declare(cython.uint, 1 << 15)
_RECLAIM = cython.declare(cython.uint, 1 << 18)
_SWAPBACKED = cython.declare(cython.uint, 1 << 19)
_MLOCKED = cython.declare(cython.uint, 1 << 21)
_GEN_MASK = cython.declare(cython.uint, 7 << 22)
_GEN_ONE = cython.declare(cython.uint, 1 << 22)
_REFS_MASK = cython.declare(cython.uint, 3 << 25)
_REFS_ONE = cython.declare(cython.uint, 1 << 25)


@cython.cclass
class GenLists(PageArrays):
    """Lists of generations of all lruvecs. ``lru`` is the core's LRU, ``pages`` the page map, ``zones`` and ``vmstat``
    are those it was made with, ``items`` its numbers of the first LRU counter of zones and of nodes.
    """

    def __init__(self, lru: Any, pages: Any, zones: Any, vmstat: Any, items: Any) -> None:
        super().__init__(pages, zones, vmstat)
        self._next, self._prev = view(pages.next), view(pages.prev)
        self._first, self._last, self._base = view(lru.first), view(lru.last), lru.gen_base
        self._gen_pages, self._seqs, self._size = view(lru.gen_pages), view(lru.seqs), view(lru.sizes)
        self._zone_stat = view(vmstat.zone_stat)
        self._zone_item, self._node_item = items
        self._nodes = vmstat.node_stat.shape[0]
        self._kinds = max(1, len(zones) // self._nodes)
        self.ctrl = lazy_zeros(MAX_MEMCGS * self._nodes * CTRL_ROW, "int64")
        self.results = np.zeros(SCAN_RESULTS, dtype=np.int64)
        self._ctrl, self._results = view(self.ctrl), view(self.results)

    # compiled, these are the inline functions of the .pxd
    if not cython.compiled:

        def _pages(self, pfn: int) -> int:
            """Pages of a block (folio_nr_pages)."""
            return 1 << ((self._meta[pfn] >> 8) & 0xFF)

        def _row(self, lruvec: int, gen: int, file: int, kind: int) -> Any:
            """The number of a list among those of generations."""
            return ((lruvec * 4 + gen) * 2 + file) * self._kinds + kind

    # -- small things ------------------------------------------------------------------------------------------

    @cython.cfunc
    @cython.exceptval(check=False)
    def _size_add(
        self, lruvec: cython.longlong, which: cython.int, zi: cython.int, pages: cython.longlong
    ) -> cython.void:
        """``_resize`` for core/lru_gen.py."""
        _resize(self, lruvec, which, zi, pages)

    # -- moving pages between generations ----------------------------------------------------------------------

    @cython.cfunc
    @cython.exceptval(check=False)
    def _inc_gen(
        self, lruvec: cython.longlong, pfn: cython.longlong, zi: cython.int, reclaiming: cython.bint
    ) -> cython.int:
        """A page of the oldest generation to the second oldest (folio_inc_gen); the generation it is in then."""
        flags: cython.uint = self._flags[pfn]
        file: cython.int = 0 if flags & _SWAPBACKED else 1
        old: cython.int = cython.cast(cython.int, self._seqs[lruvec * 3 + 1 + file] & 3)
        gen: cython.int = _gen_of(self._flags[pfn])
        if gen >= 0 and gen != old:
            return gen
        gen = (old + 1) & 3
        flags = flags & ~(_GEN_MASK | _REFS_MASK | _REFERENCED | _WORKINGSET)
        flags |= cython.cast(cython.uint, gen + 1) * _GEN_ONE
        self._flags[pfn] = flags | (_RECLAIM if reclaiming else 0)
        _recount(self, lruvec, file, zi, old, gen, self._pages(pfn))
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
        old: cython.int = _gen_of(self._flags[pfn])
        flags = flags & ~(_GEN_MASK | _REFS_MASK | _REFERENCED | _WORKINGSET)
        self._flags[pfn] = flags | cython.cast(cython.uint, new + 1) * _GEN_ONE
        if old != new:
            _recount(self, lruvec, 0 if flags & _SWAPBACKED else 1, self._zone_of(pfn), old, new, self._pages(pfn))
        return True

    # -- the eviction ------------------------------------------------------------------------------------------

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
        gen: cython.int = _gen_of(flags)
        refs: cython.int = _refs(flags)
        tier: cython.int = _tier(refs)
        n: cython.longlong = self._pages(pfn)
        if flags & _MLOCKED:
            return False
        if file and self._mapping[pfn] > 0 and flags & _DIRTY:  # freed lazily, but written to since
            return self._lazy_written(lruvec, pfn, zi, gen)
        if gen != (self._seqs[lruvec * 3 + 1 + file] & 3):  # promoted
            _unlink(self, pfn)
            _link(self, self._row(lruvec, gen, file, kind), pfn)
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
            _unlink(self, pfn)
            _link(self, self._row(lruvec, gen, file, kind), pfn)
            return True
        return False

    @cython.cfunc
    @cython.exceptval(check=False)
    def _to_last(
        self, lruvec: cython.longlong, pfn: cython.longlong, file: cython.int, kind: cython.int
    ) -> cython.void:
        _unlink(self, pfn)
        _link_last(self, self._row(lruvec, _gen_of(self._flags[pfn]), file, kind), pfn)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _lazy_written(
        self, lruvec: cython.longlong, pfn: cython.longlong, zi: cython.int, gen: cython.int
    ) -> cython.bint:
        """A page freed lazily that was written to is an anonymous page like any other, the oldest but one of all."""
        n: cython.longlong = self._pages(pfn)
        _count(self, lruvec, gen, 1, zi, -n)
        newest: cython.longlong = self._seqs[lruvec * 3] + 3
        gen = cython.cast(cython.int, (newest - 1) & 3)
        flags: cython.uint = (self._flags[pfn] & ~_GEN_MASK) | _SWAPBACKED
        self._flags[pfn] = flags | cython.cast(cython.uint, gen + 1) * _GEN_ONE
        _count(self, lruvec, gen, 0, zi, n)
        self._to_last(lruvec, pfn, 0, zi % self._kinds)
        return True

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
        _count(self, lruvec, _gen_of(self._flags[pfn]), file, zi, -self._pages(pfn))
        _unlink(self, pfn)
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
                    _unlink(self, pfn)
                    moved.append(pfn)
                    passed += n
                left -= 1
                if not left or self._results[1] >= _BATCH or passed >= _BATCH:
                    break
            for pfn in moved:
                _link(self, row, pfn)
            skipped[kind] += passed
            if not left or self._results[1] >= _BATCH:
                break
        self._results[4] = left
        return blocks

    # -- the oldest generation ---------------------------------------------------------------------------------

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

    # -- evictions and refaults --------------------------------------------------------------------------------

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
            refs = _refs(self._flags[pfns[i]])
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


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _gen_of(flags: cython.uint) -> cython.int:
    """The generation that a page's flags tell, -1 for none (folio_lru_gen)."""
    return cython.cast(cython.int, (flags & _GEN_MASK) // _GEN_ONE) - 1


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _refs(flags: cython.uint) -> cython.int:
    """How often a page was used beyond PG_referenced, by its flags (folio_lru_refs)."""
    return cython.cast(cython.int, (flags & _REFS_MASK) // _REFS_ONE) + (1 if flags & _WORKINGSET else 0)


@cython.cfunc
@cython.exceptval(check=False)
def _tier(refs: cython.int) -> cython.int:
    """order_base_2(refs + 1): the tier of a page that was used that often beyond PG_referenced."""
    return 0 if refs == 0 else (1 if refs == 1 else (2 if refs < 4 else 3))


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _unlink(gens: GenLists, pfn: cython.longlong) -> cython.void:
    after: cython.int = gens._next[pfn]
    before: cython.int = gens._prev[pfn]
    if before > 0:
        gens._next[before - 1] = after
    else:
        gens._first[-before - 1] = after if after > 0 else 0
    if after > 0:
        gens._prev[after - 1] = before
    else:
        gens._last[-after - 1] = before if before > 0 else 0


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _link(gens: GenLists, row: cython.longlong, pfn: cython.longlong) -> cython.void:
    """To the young end (list_add)."""
    key: cython.longlong = gens._base + row
    first: cython.int = gens._first[key]
    mark: cython.int = cython.cast(cython.int, -(key + 1))
    gens._prev[pfn] = mark
    gens._next[pfn] = first if first else mark
    if first:
        gens._prev[first - 1] = cython.cast(cython.int, pfn + 1)
    else:
        gens._last[key] = cython.cast(cython.int, pfn + 1)
    gens._first[key] = cython.cast(cython.int, pfn + 1)


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _link_last(gens: GenLists, row: cython.longlong, pfn: cython.longlong) -> cython.void:
    """To the old end (list_add_tail)."""
    key: cython.longlong = gens._base + row
    last: cython.int = gens._last[key]
    mark: cython.int = cython.cast(cython.int, -(key + 1))
    gens._next[pfn] = mark
    gens._prev[pfn] = last if last else mark
    if last:
        gens._next[last - 1] = cython.cast(cython.int, pfn + 1)
    else:
        gens._first[key] = cython.cast(cython.int, pfn + 1)
    gens._last[key] = cython.cast(cython.int, pfn + 1)


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _resize(
    gens: GenLists, lruvec: cython.longlong, which: cython.int, zi: cython.int, pages: cython.longlong
) -> cython.void:
    """The lengths that the rest of the kernel sees (__update_lru_size)."""
    gens._zone_stat[zi, gens._zone_item + which] += pages
    gens._node_stat[gens._zone_nid[zi], gens._node_item + which] += pages
    gens._size[(lruvec * 5 + which) * gens._kinds + zi % gens._kinds] += pages


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _is_active(gens: GenLists, lruvec: cython.longlong, gen: cython.int) -> cython.bint:
    return ((gens._seqs[lruvec * 3] + 3 - gen) & 3) < 2


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _recount(
    gens: GenLists,
    lruvec: cython.longlong,
    file: cython.int,
    zi: cython.int,
    old: cython.int,
    new: cython.int,
    n: cython.longlong,
) -> cython.void:
    """Pages are of another generation (lru_gen_update_size)."""
    kind: cython.int = zi % gens._kinds
    gens._gen_pages[gens._row(lruvec, old, file, kind)] -= n
    gens._gen_pages[gens._row(lruvec, new, file, kind)] += n
    was: cython.bint = _is_active(gens, lruvec, old)
    now: cython.bint = _is_active(gens, lruvec, new)
    if was != now:
        _resize(gens, lruvec, file * 2 + (1 if was else 0), zi, -n)
        _resize(gens, lruvec, file * 2 + (1 if now else 0), zi, n)


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _count(
    gens: GenLists, lruvec: cython.longlong, gen: cython.int, file: cython.int, zi: cython.int, n: cython.longlong
) -> cython.void:
    gens._gen_pages[gens._row(lruvec, gen, file, zi % gens._kinds)] += n
    _resize(gens, lruvec, file * 2 + (1 if _is_active(gens, lruvec, gen) else 0), zi, n)
