"""Loops over page-table entries: unmapping, protection, fork, moves, and what smaps and clear_refs look at.

Models the ``pte`` level of mm/memory.c (``zap_pte_range``, ``copy_pte_range``), mm/mprotect.c, mm/mremap.c and
fs/proc/task_mmu.c. Each works on rows ``(vpn, pages, slot, level)`` of ``Mmu.extents``, of level 0; ``scan`` and
``numa``
take huge entries too. Flushing the TLB, and giving back what ``zap`` found, is the caller's.

A page of a compound block that is mapped by small entries has its own mapcount; its head's flags and mapping count.
"""

from typing import Any

import cython
import numpy as np

from kmemd.core.array_view import view
from kmemd.core.page_arrays import PageArrays

# what scan adds up: bytes, but PSS in bytes << 12
(
    RSS,
    PSS,
    PSS_DIRTY,
    SHARED_CLEAN,
    SHARED_DIRTY,
    PRIVATE_CLEAN,
    PRIVATE_DIRTY,
    REFERENCED,
    ANONYMOUS,
    LAZYFREE,
    ANON_HUGE,
    SWAP,
    PSS_ANON,
    PSS_FILE,
    PSS_SHMEM,
) = range(15)
SCAN_ITEMS = 15
# what numa adds up, in pages, before a count for each node
NUMA_PAGES, NUMA_ANON, NUMA_DIRTY, NUMA_MAPPED, NUMA_MAPMAX, NUMA_ACTIVE, NUMA_WRITEBACK, NUMA_SWAPCACHE = range(8)
NUMA_ITEMS = 8
# what change_protection may do

_PRESENT = cython.declare(cython.ulonglong, 1)
_RW = cython.declare(cython.ulonglong, 2)
_USER = cython.declare(cython.ulonglong, 4)
_ACCESSED = cython.declare(cython.ulonglong, 1 << 5)
_DIRTY = cython.declare(cython.ulonglong, 1 << 6)
_PROTNONE = cython.declare(cython.ulonglong, 1 << 8)
_HERE = cython.declare(cython.ulonglong, 1 | 1 << 8)  # pte_present
_SPECIAL = cython.declare(cython.ulonglong, 1 << 9)
_SOFT_DIRTY = cython.declare(cython.ulonglong, 1 << 11)
_SWP_SOFT_DIRTY = cython.declare(cython.ulonglong, 1 << 1)
_SWP_EXCLUSIVE = cython.declare(cython.ulonglong, 1 << 3)
_SWP_TYPE_SHIFT = cython.declare(cython.int, 59)
_MAX_SWAPFILES = cython.declare(cython.ulonglong, 23)  # higher types are migration, and pages that swapoff lost
_NX = cython.declare(cython.ulonglong, 1 << 63)
_PFN_MASK = cython.declare(cython.ulonglong, ((1 << 40) - 1) << 12)
_PROT = cython.declare(cython.ulonglong, 1 | 2 | 4 | 1 << 8 | 1 << 63)

_REFERENCED_FLAG = cython.declare(cython.uint, 1 << 1)
_YOUNG = cython.declare(cython.uint, 1 << 28)
_IDLE = cython.declare(cython.uint, 1 << 29)
_DIRTY_FLAG = cython.declare(cython.uint, 1 << 3)
_LRU = cython.declare(cython.uint, 1 << 4)
_ACTIVE = cython.declare(cython.uint, 1 << 5)
_SWAPCACHE = cython.declare(cython.uint, 1 << 10)
_WRITEBACK = cython.declare(cython.uint, 1 << 15)
_EXCLUSIVE = cython.declare(cython.uint, 1 << 17)
_SWAPBACKED = cython.declare(cython.uint, 1 << 19)
_UNEVICTABLE = cython.declare(cython.uint, 1 << 20)

_FILE = cython.declare(cython.int, 0)
_ANON = cython.declare(cython.int, 1)
_SWAPENTS = cython.declare(cython.int, 2)
_SHMEM = cython.declare(cython.int, 3)

_S_RSS = cython.declare(cython.int, 0)
_S_PSS = cython.declare(cython.int, 1)
_S_PSS_DIRTY = cython.declare(cython.int, 2)
_S_SHARED_CLEAN = cython.declare(cython.int, 3)
_S_PRIVATE_CLEAN = cython.declare(cython.int, 5)
_S_REFERENCED = cython.declare(cython.int, 7)
_S_ANONYMOUS = cython.declare(cython.int, 8)
_S_LAZYFREE = cython.declare(cython.int, 9)
_S_ANON_HUGE = cython.declare(cython.int, 10)
_S_SWAP = cython.declare(cython.int, 11)
_S_PSS_ANON = cython.declare(cython.int, 12)


@cython.final
@cython.cclass
class PteRanges(PageArrays):
    """Works on the tables of one ``Mmu``. ``items`` are the numbers of NR_ANON_MAPPED and NR_FILE_MAPPED.

    What ``zap`` leaves to the caller stands in ``freed`` (pages nobody maps any more), ``compound`` (heads of blocks of
    which one page less is mapped), ``dirtied`` (file pages written to), ``cached`` (swap cache pages nobody maps) and
    ``swapped`` (raw swap entries): the first so many of each, as ``zap`` returns.
    """

    freed = cython.declare(object, visibility="readonly")
    compound = cython.declare(object, visibility="readonly")
    dirtied = cython.declare(object, visibility="readonly")
    cached = cython.declare(object, visibility="readonly")
    swapped = cython.declare(object, visibility="readonly")

    _words: cython.ulonglong[::1]
    _rss: cython.longlong[::1]
    _freed: cython.longlong[::1]
    _compound: cython.longlong[::1]
    _dirtied: cython.longlong[::1]
    _cached: cython.longlong[::1]
    _swapped: cython.ulonglong[::1]
    _nr_anon: cython.int
    _nr_mapped: cython.int
    _zero: cython.longlong
    _huge: cython.longlong
    _block: cython.int
    _nfreed: cython.int
    _ncompound: cython.int
    _ndirtied: cython.int
    _ncached: cython.int
    _nswapped: cython.int

    def __init__(self, mmu: Any, pages: Any, zones: Any, vmstat: Any, items: Any, huge_pages: int) -> None:
        super().__init__(pages, zones, vmstat)
        self._words, self._rss = view(mmu.words), view(mmu.rss)
        self._nr_anon, self._nr_mapped = items
        self._zero, self._huge = mmu.zero_pfn, huge_pages
        self._block = 3 | (huge_pages.bit_length() - 1) << 8  # the head of an allocated block of huge_pages pages
        self._room(1)

    def _room(self, entries: Any) -> None:
        self.freed, self.compound, self.dirtied, self.cached = (np.zeros(entries, dtype=np.int64) for _ in range(4))
        self.swapped = np.zeros(entries, dtype=np.uint64)
        self._freed, self._compound = view(self.freed), view(self.compound)
        self._dirtied, self._cached = view(self.dirtied), view(self.cached)
        self._swapped = view(self.swapped)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _head(self, pfn: cython.longlong) -> cython.longlong:
        """The head of the block a page is in (compound_head). Pages of the kernel's image are in none."""
        head: cython.longlong
        if self._meta[pfn] & 0xFF:
            return pfn
        head = pfn & ~(self._huge - 1)
        return head if self._meta[head] & 0xFFFF == self._block else pfn

    @cython.cfunc
    @cython.exceptval(check=False)
    def _page(self, entry: cython.ulonglong) -> cython.longlong:
        """The page that an entry maps and that is counted (vm_normal_page); -1 when there is none."""
        if not entry & _HERE or entry & _SPECIAL:
            return -1
        return cython.cast(cython.longlong, (entry & _PFN_MASK) >> 12)

    # -- zap -----------------------------------------------------------------------------------------------

    def zap(self, mm: cython.int, rows: cython.longlong[:, ::1]) -> tuple:
        """Clear the entries of some rows; page counts and RSS follow. How many of freed, compound, dirtied, cached,
        swapped.

        The task's own counts were handed over before (add_mm_rss_vec).
        """
        r: cython.Py_ssize_t
        i: cython.longlong
        entries: cython.longlong = 0
        entry: cython.ulonglong
        for r in range(rows.shape[0]):
            entries += rows[r, 1]
        if entries > self._freed.shape[0]:
            self._room(entries)
        self._nfreed = self._ncompound = self._ndirtied = self._ncached = self._nswapped = 0
        for r in range(rows.shape[0]):
            for i in range(rows[r, 2], rows[r, 2] + rows[r, 1]):
                entry = self._words[i]
                if entry:
                    self._words[i] = 0
                    self._zap_one(mm, entry)
        return self._nfreed, self._ncompound, self._ndirtied, self._ncached, self._nswapped

    @cython.cfunc
    @cython.exceptval(check=False)
    def _zap_one(self, mm: cython.int, entry: cython.ulonglong) -> cython.void:
        pfn: cython.longlong
        head: cython.longlong
        if not entry & _HERE:
            self._swapped[self._nswapped] = entry
            self._nswapped += 1
            if entry >> _SWP_TYPE_SHIFT < _MAX_SWAPFILES:
                self._rss[mm * 4 + _SWAPENTS] -= 1
            return
        pfn = self._page(entry)
        if pfn < 0:
            return
        head = self._head(pfn)
        if self._mapping[head] > 0:
            self._zap_anon(mm, pfn, head)
        else:
            self._zap_file(mm, pfn, head, entry)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _zap_anon(self, mm: cython.int, pfn: cython.longlong, head: cython.longlong) -> cython.void:
        self._rss[mm * 4 + _ANON] -= 1
        self._mapcount[pfn] -= 1
        if self._meta[head] >> 8 & 0xFF:
            if not self._mapcount[pfn] and not self._mapping[head + 1]:
                self._node_stat[self._nid_of(pfn), self._nr_anon] -= 1
            self._compound[self._ncompound] = head
            self._ncompound += 1
        elif not self._mapcount[pfn]:
            self._node_stat[self._nid_of(pfn), self._nr_anon] -= 1
            if self._flags[pfn] & _SWAPCACHE:
                self._cached[self._ncached] = pfn
                self._ncached += 1
            else:
                self._mapping[pfn] = 0
                self._freed[self._nfreed] = pfn
                self._nfreed += 1

    @cython.cfunc
    @cython.exceptval(check=False)
    def _zap_file(
        self, mm: cython.int, pfn: cython.longlong, head: cython.longlong, entry: cython.ulonglong
    ) -> cython.void:
        self._rss[mm * 4 + (_SHMEM if self._flags[head] & _SWAPBACKED else _FILE)] -= 1
        self._mapcount[pfn] -= 1
        if not self._mapcount[pfn]:
            self._node_stat[self._nid_of(pfn), self._nr_mapped] -= 1
        if entry & _ACCESSED and self._flags[head] & (_REFERENCED_FLAG | _IDLE) != _REFERENCED_FLAG:
            self._flags[head] = self._flags[head] & ~_IDLE | _REFERENCED_FLAG
        if entry & _DIRTY and not self._flags[head] & _DIRTY_FLAG:
            self._dirtied[self._ndirtied] = pfn
            self._ndirtied += 1

    # -- fork, mremap --------------------------------------------------------------------------------------

    def copy(
        self, mm: cython.int, rows: cython.longlong[:, ::1], targets: cython.longlong[::1], cow: cython.bint
    ) -> int:
        """Have a child map what the rows map (copy_pte_range); ``targets[r]`` is where row ``r`` goes in its tables.

        With ``cow`` (a private mapping) writable entries become read-only in both. The number of ``swapped`` entries,
        which the caller counts once more; ``mm`` is the child.
        """
        r: cython.Py_ssize_t
        i: cython.longlong
        entries: cython.longlong = 0
        for r in range(rows.shape[0]):
            entries += rows[r, 1]
        if entries > self._freed.shape[0]:
            self._room(entries)
        self._nswapped = 0
        for r in range(rows.shape[0]):
            for i in range(rows[r, 1]):
                if self._words[rows[r, 2] + i]:
                    self._copy_one(mm, rows[r, 2] + i, targets[r] + i, cow)
        return self._nswapped

    @cython.cfunc
    @cython.exceptval(check=False)
    def _copy_one(
        self, mm: cython.int, source: cython.longlong, target: cython.longlong, cow: cython.bint
    ) -> cython.void:
        entry: cython.ulonglong = self._words[source]
        pfn: cython.longlong
        head: cython.longlong
        if not entry & _HERE:
            self._swapped[self._nswapped] = entry
            self._nswapped += 1
            if entry >> _SWP_TYPE_SHIFT < _MAX_SWAPFILES:
                self._rss[mm * 4 + _SWAPENTS] += 1
            self._words[source] = self._words[target] = entry & ~_SWP_EXCLUSIVE
            return
        if cow and entry & _RW:
            entry &= ~_RW
            self._words[source] = entry
        if not cow:
            entry &= ~_DIRTY
        pfn = self._page(entry)
        if pfn >= 0:
            head = self._head(pfn)
            self._mapcount[pfn] += 1
            if self._mapping[head] > 0:
                self._flags[pfn] &= ~_EXCLUSIVE
                self._rss[mm * 4 + _ANON] += 1
            else:
                self._rss[mm * 4 + (_SHMEM if self._flags[head] & _SWAPBACKED else _FILE)] += 1
            entry &= ~_ACCESSED
        self._words[target] = entry

    def move(self, rows: cython.longlong[:, ::1], targets: cython.longlong[::1]) -> None:
        """Entries to another address of the same task (move_ptes): they count as soft-dirty there."""
        r: cython.Py_ssize_t
        i: cython.longlong
        entry: cython.ulonglong
        for r in range(rows.shape[0]):
            for i in range(rows[r, 1]):
                entry = self._words[rows[r, 2] + i]
                if entry:
                    self._words[rows[r, 2] + i] = 0
                    self._words[targets[r] + i] = entry | (_SOFT_DIRTY if entry & _HERE else _SWP_SOFT_DIRTY)

    # -- protection ----------------------------------------------------------------------------------------

    def protect(
        self, rows: cython.longlong[:, ::1], prot: cython.ulonglong, careful: cython.bint, shared: cython.bint
    ) -> int:
        """Give present entries the protection bits ``prot`` (change_pte_range); the number that changed.

        ``prot`` is without RW for private mappings; with ``careful`` entries that need no fault before a write get it:
        private pages that are exclusive, shared ones that are dirty (MM_CP_TRY_CHANGE_WRITABLE).
        """
        r: cython.Py_ssize_t
        i: cython.longlong
        old: cython.ulonglong
        new: cython.ulonglong
        changed: cython.longlong = 0
        for r in range(rows.shape[0]):
            for i in range(rows[r, 2], rows[r, 2] + rows[r, 1]):
                old = self._words[i]
                if not old & _HERE:
                    continue
                new = (old & ~_PROT) | prot
                if careful and not old & _PROTNONE and self._may_write(old, shared):
                    new |= _RW
                if new != old:
                    self._words[i] = new
                    changed += 1
        return changed

    @cython.cfunc
    @cython.exceptval(check=False)
    def _may_write(self, entry: cython.ulonglong, shared: cython.bint) -> cython.bint:
        """can_change_pte_writable."""
        pfn: cython.longlong = self._page(entry)
        if shared:
            return entry & _DIRTY != 0
        if pfn < 0:
            return False
        return self._mapping[self._head(pfn)] > 0 and self._flags[pfn] & _EXCLUSIVE != 0

    def clear_refs(self, rows: cython.longlong[:, ::1], soft_dirty: cython.bint) -> None:
        """Forget that pages were used, or with ``soft_dirty`` that they were written (clear_refs_pte_range)."""
        r: cython.Py_ssize_t
        i: cython.longlong
        pfn: cython.longlong
        entry: cython.ulonglong
        for r in range(rows.shape[0]):
            for i in range(rows[r, 2], rows[r, 2] + rows[r, 1]):
                entry = self._words[i]
                if soft_dirty:
                    if entry & _HERE:
                        self._words[i] = entry & ~(_RW | _SOFT_DIRTY)
                    elif entry:
                        self._words[i] = entry & ~_SWP_SOFT_DIRTY
                elif entry & _HERE:
                    pfn = self._page(entry)
                    if pfn >= 0:
                        self._words[i] = entry & ~_ACCESSED
                        self._flags[self._head(pfn)] &= ~(_REFERENCED_FLAG | _YOUNG)

    def young_and_clean(self, rows: cython.longlong[:, ::1], clean: cython.bint) -> int:
        """Make entries old, and with ``clean`` also clean, as MADV_COLD and MADV_FREE do: how many pages there are in
        ``freed``.

        MADV_COLD is for pages on a list that only this task maps; MADV_FREE for small anonymous pages, but not for one
        that is in the swap cache still, nor for a dirty one that others map.
        """
        r: cython.Py_ssize_t
        i: cython.longlong
        pfn: cython.longlong
        flags: cython.uint
        entry: cython.ulonglong
        entries: cython.longlong = 0
        for r in range(rows.shape[0]):
            entries += rows[r, 1]
        if entries > self._freed.shape[0]:
            self._room(entries)
        self._nfreed = 0
        for r in range(rows.shape[0]):
            for i in range(rows[r, 2], rows[r, 2] + rows[r, 1]):
                entry = self._words[i]
                pfn = self._page(entry)
                if pfn < 0 or not self._meta[pfn] & 0xFF or self._meta[pfn] >> 8 & 0xFF:
                    continue
                flags = self._flags[pfn]
                if clean:
                    if self._mapping[pfn] <= 0 or flags & _SWAPCACHE:
                        continue
                    if flags & _DIRTY_FLAG and self._mapcount[pfn] != 1:
                        continue
                elif not flags & _LRU or self._mapcount[pfn] != 1:
                    continue
                self._words[i] = entry & ~(_ACCESSED | (_DIRTY if clean else 0))
                self._freed[self._nfreed] = pfn
                self._nfreed += 1
        return self._nfreed

    # -- looking -------------------------------------------------------------------------------------------

    def pages_of(self, rows: cython.longlong[:, ::1]) -> Any:
        """The PFNs that some rows map and that are counted, in order."""
        found: list = []
        r: cython.Py_ssize_t
        i: cython.longlong
        pfn: cython.longlong
        for r in range(rows.shape[0]):
            for i in range(rows[r, 2], rows[r, 2] + (rows[r, 1] if rows[r, 3] == 0 else 1)):
                pfn = self._page(self._words[i])
                if pfn >= 0:
                    found.append(pfn)
        return np.array(found, dtype=np.int64)

    def swap_entries(self, rows: cython.longlong[:, ::1]) -> Any:
        """The swap entries in some rows."""
        found: list = []
        r: cython.Py_ssize_t
        i: cython.longlong
        for r in range(rows.shape[0]):
            if rows[r, 3]:
                continue
            for i in range(rows[r, 2], rows[r, 2] + rows[r, 1]):
                if not self._words[i] or self._words[i] & _HERE:
                    continue
                if self._words[i] >> _SWP_TYPE_SHIFT < _MAX_SWAPFILES:
                    found.append(self._words[i])
        return np.array(found, dtype=np.uint64)

    def scan(self, rows: cython.longlong[:, ::1], totals: cython.longlong[::1]) -> None:
        """Add what smaps shows of some rows to ``totals`` (smaps_pte_range). SWAP counts entries."""
        r: cython.Py_ssize_t
        i: cython.longlong
        pfn: cython.longlong
        entry: cython.ulonglong
        for r in range(rows.shape[0]):
            if rows[r, 3]:
                self._scan_huge(self._words[rows[r, 2]], rows[r, 1], totals)
                continue
            for i in range(rows[r, 2], rows[r, 2] + rows[r, 1]):
                entry = self._words[i]
                if not entry:
                    continue
                pfn = self._page(entry)
                if pfn >= 0:
                    self._scan_page(pfn, 1, self._mapcount[pfn] + self._huge_maps(pfn), entry, totals)
                elif not entry & _HERE:
                    totals[_S_SWAP] += 1

    @cython.cfunc
    @cython.exceptval(check=False)
    def _huge_maps(self, pfn: cython.longlong) -> cython.longlong:
        """How often the block that a page is in is mapped as a whole."""
        head: cython.longlong = self._head(pfn)
        return self._mapping[head + 1] if self._meta[head] >> 8 & 0xFF else 0

    @cython.cfunc
    @cython.exceptval(check=False)
    def _scan_huge(self, entry: cython.ulonglong, pages: cython.longlong, totals: cython.longlong[::1]) -> cython.void:
        i: cython.longlong
        head: cython.longlong = self._page(entry)
        if head < 0 or head == self._zero or not self._mapping[head]:
            return
        if self._mapping[head] > 0:
            totals[_S_ANON_HUGE] += pages << 12
        for i in range(pages):
            self._scan_page(head + i, 1, self._mapping[head + 1] + self._mapcount[head + i], entry, totals)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _scan_page(
        self,
        pfn: cython.longlong,
        pages: cython.longlong,
        mapcount: cython.longlong,
        entry: cython.ulonglong,
        totals: cython.longlong[::1],
    ) -> cython.void:
        """smaps_account and smaps_page_accumulate."""
        head: cython.longlong = self._head(pfn)
        flags: cython.uint = self._flags[head]
        size: cython.longlong = pages << 12
        pss: cython.longlong = size << 12
        dirty: cython.bint = entry & _DIRTY != 0 or flags & _DIRTY_FLAG != 0
        kind: cython.int = _S_PSS_ANON + 1
        if self._mapping[head] > 0:
            kind = _S_PSS_ANON
            totals[_S_ANONYMOUS] += size
            if not flags & _SWAPBACKED and not dirty:
                totals[_S_LAZYFREE] += size
        elif flags & _SWAPBACKED:
            kind = _S_PSS_ANON + 2
        totals[_S_RSS] += size
        if entry & _ACCESSED or flags & (_REFERENCED_FLAG | _YOUNG):
            totals[_S_REFERENCED] += size
        if mapcount >= 2:
            pss //= mapcount
        totals[_S_PSS] += pss
        totals[kind] += pss
        if dirty:
            totals[_S_PSS_DIRTY] += pss
        totals[(_S_SHARED_CLEAN if mapcount >= 2 else _S_PRIVATE_CLEAN) + (1 if dirty else 0)] += size

    def numa(self, rows: cython.longlong[:, ::1], totals: cython.longlong[::1]) -> None:
        """Add what numa_maps shows of some rows to ``totals`` (gather_stats): NUMA_ITEMS, then pages by node."""
        r: cython.Py_ssize_t
        i: cython.longlong
        pfn: cython.longlong
        for r in range(rows.shape[0]):
            if rows[r, 3]:
                pfn = self._page(self._words[rows[r, 2]])
                if pfn >= 0:
                    self._numa_page(pfn, rows[r, 1], self._words[rows[r, 2]], totals)
                continue
            for i in range(rows[r, 2], rows[r, 2] + rows[r, 1]):
                pfn = self._page(self._words[i])
                if pfn >= 0:
                    self._numa_page(pfn, 1, self._words[i], totals)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _numa_page(
        self, pfn: cython.longlong, pages: cython.longlong, entry: cython.ulonglong, totals: cython.longlong[::1]
    ) -> cython.void:
        head: cython.longlong = self._head(pfn)
        flags: cython.uint = self._flags[head]
        mapcount: cython.longlong = self._mapcount[pfn] + self._huge_maps(pfn)
        totals[0] += pages
        if self._mapping[head] > 0:
            totals[1] += pages
        if entry & _DIRTY or flags & _DIRTY_FLAG:
            totals[2] += pages
        if flags & _SWAPCACHE:
            totals[7] += pages
        if flags & _ACTIVE or flags & _UNEVICTABLE:
            totals[5] += pages
        if flags & _WRITEBACK:
            totals[6] += pages
        if mapcount > totals[4]:
            totals[4] = mapcount
        totals[8 + self._nid_of(pfn)] += pages
