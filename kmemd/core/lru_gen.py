"""Making a new generation, and page tables that are walked for it (mm/vmscan.c ``lru_gen_*``: the aging).

Works on core/lru_gen_lists.py. Here are ``inc_max_seq``, and entries of page tables whose accessed bits are moved to
pages (``walk_pte_range``, ``lru_gen_look_around``). What controls them is mm/lru_gen.py.

Invariants: ``2 <= generations of files <= generations of anonymous pages <= 4``.
"""

from typing import Any

import cython
import numpy as np

from kmemd.core.array_view import view
from kmemd.core.lru_gen_lists import GenLists

# what a walk of entries tells: the first three of the kernel's MM_* statistics
LEAF_TOTAL, LEAF_OLD, LEAF_YOUNG = range(3)

_DIRTY = cython.declare(cython.uint, 1 << 3)
_LRU = cython.declare(cython.uint, 1 << 4)
_ACTIVE = cython.declare(cython.uint, 1 << 5)
_SWAPBACKED = cython.declare(cython.uint, 1 << 19)
_UNEVICTABLE = cython.declare(cython.uint, 1 << 20)
_GEN_MASK = cython.declare(cython.uint, 7 << 22)
_GEN_ONE = cython.declare(cython.uint, 1 << 22)
_PRESENT = cython.declare(cython.ulonglong, 1)
_ACCESSED = cython.declare(cython.ulonglong, 1 << 5)
_PTE_DIRTY = cython.declare(cython.ulonglong, 1 << 6)
_SPECIAL = cython.declare(cython.ulonglong, 1 << 9)
_PFN_MASK = cython.declare(cython.ulonglong, ((1 << 40) - 1) << 12)


@cython.final
@cython.cclass
class LruGen(GenLists):
    """Generations of all lruvecs. ``lru`` is the core's LRU, ``pages`` the page map, ``zones`` and ``vmstat`` are those
    it was made with, ``items`` its numbers of the first LRU counter of zones and of nodes, ``huge_pages`` the pages of
    a huge one.
    """

    dirtied = cython.declare(object, visibility="readonly")
    _huge: cython.longlong
    _ndirtied: cython.Py_ssize_t
    _dirtied: cython.longlong[::1]

    def __init__(self, lru: Any, pages: Any, zones: Any, vmstat: Any, items: Any, huge_pages: int = 512) -> None:
        super().__init__(lru, pages, zones, vmstat, items)
        self._huge = huge_pages
        self.dirtied = np.zeros(1 << 10, dtype=np.int64)
        self._dirtied = view(self.dirtied)
        self._ndirtied = 0

    # -- sequence numbers --------------------------------------------------------------------------------------

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

    # -- page tables -------------------------------------------------------------------------------------------

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
        words: cython.ulonglong[::1] = view(table)
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

    # -- proof -------------------------------------------------------------------------------------------------

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
            found[(flags & _GEN_MASK) // _GEN_ONE - 1] += self._pages(pfn)
            before = at
            at = self._next[pfn]
        assert self._last[key] == (before if before > 0 else 0), f"a list of generation {gen} ends elsewhere"
        return None
