"""Page tables in the model's own physical memory (arch/x86/include/asm/pgtable.h, mm/memory.c).

An entry is ``words[(pfn << bits) + index]``, as x86 has it. Models the walk, and linking, listing and freeing tables.

Invariants: an address space's tables belong to it alone; ``tables`` counts those of the three lowest levels but the top
one.
"""

from typing import Any

import cython
import numpy as np

from kmemd.core.access_stats import STAT_NAMES
from kmemd.core.array_view import view
from kmemd.core.page_arrays import PageArrays
from kmemd.core.pages import lazy_zeros

MAX_MM = 1 << 16

_COUNTED = cython.declare(cython.int, 3)  # tables of PTEs, PMDs and PUDs are in mm_pgtables_bytes, of P4Ds not
_PRESENT = cython.declare(cython.ulonglong, 1)
_PSE = cython.declare(cython.ulonglong, 1 << 7)
_PFN_MASK = cython.declare(cython.ulonglong, ((1 << 40) - 1) << 12)
_TABLE = cython.declare(cython.ulonglong, 0x67)
_S_TABLES = cython.declare(cython.int, 24)


@cython.cclass
class PageTables(PageArrays):
    """All address spaces' tables, by number of the address space.

    ``bits`` is the log2 of the entries of a table, ``levels`` how many levels there are; ``zones`` rows are
    ``(nid, start_pfn, end_pfn)``.
    """

    def __init__(self, pages: Any, zones: Any, vmstat: Any, context: Any, bits: int, levels: int) -> None:
        super().__init__(pages, zones, vmstat)
        self._ctx = view(context.words)
        self.bits, self.levels = bits, levels
        self._mask = (1 << bits) - 1
        self.words = lazy_zeros(pages.max_pfn << bits, "uint64")
        self._words = view(self.words)
        self.tables = np.zeros(MAX_MM, dtype=np.int64)
        self._tables = view(self.tables)
        self._pgd = view(np.zeros(MAX_MM, dtype=np.int64))
        self.stats = np.zeros(len(STAT_NAMES), dtype=np.int64)
        self._stats = view(self.stats)
        self._level = 0
        self._near_mm = -1
        self._near_block = self._near_base = 0

    def pgd(self, mm: cython.int) -> int:
        """The PFN of the top table."""
        return self._pgd[mm]

    # -- the walk ----------------------------------------------------------------------------------------------

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _find(self, mm: cython.int, vpn: cython.longlong, stop: cython.int) -> cython.longlong:
        """The entry for an address: that of level ``stop``, or of a huge page above; ``_level`` says which.

        -1 when a table is missing; ``_level`` is then the missing table's.
        """
        level: cython.int = self.levels - 1
        pfn: cython.longlong = self._pgd[mm]
        slot: cython.longlong
        entry: cython.ulonglong
        while True:
            slot = (pfn << self.bits) + ((vpn >> (self.bits * level)) & self._mask)
            if level == stop:
                break
            entry = self._words[slot]
            if entry & _PSE:
                break
            if not entry & _PRESENT:
                self._level = level - 1
                return -1
            pfn = cython.cast(cython.longlong, (entry & _PFN_MASK) >> 12)
            level -= 1
        self._level = level
        return slot

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _leaf(self, mm: cython.int, vpn: cython.longlong) -> cython.longlong:
        """``_find`` at level 0, which remembers the last table."""
        slot: cython.longlong
        if mm == self._near_mm and vpn >> self.bits == self._near_block:
            self._level = 0
            return self._near_base + (vpn & self._mask)
        slot = self._find(mm, vpn, 0)
        if slot >= 0 and self._level == 0:
            self._near_mm = mm
            self._near_block = vpn >> self.bits
            self._near_base = slot - (vpn & self._mask)
        return slot

    def slot(self, mm: cython.int, vpn: cython.longlong) -> int:
        """Where in ``words`` the entry of a small page is; -1 without a table (or under a huge page)."""
        slot: cython.longlong = self._leaf(mm, vpn)
        return slot if self._level == 0 else -1

    def leaf(self, mm: cython.int, vpn: cython.longlong) -> tuple:
        """``(slot, level)`` of the entry that maps an address, or would; slot -1 and the missing table's level
        without.
        """
        slot: cython.longlong = self._leaf(mm, vpn)
        return slot, self._level

    def slots(self, mm: cython.int, vpns: cython.longlong[::1], out: cython.longlong[::1]) -> None:
        """``slot`` of several pages."""
        i: cython.Py_ssize_t
        slot: cython.longlong
        for i in range(vpns.shape[0]):
            slot = self._leaf(mm, vpns[i])
            out[i] = slot if self._level == 0 else -1

    def present(self, mm: cython.int, vpn: cython.longlong) -> bool:
        """Whether the hardware finds a page for an address."""
        slot: cython.longlong = self._leaf(mm, vpn)
        return slot >= 0 and self._words[slot] & _PRESENT != 0

    def entry_slot(self, mm: cython.int, vpn: cython.longlong, level: cython.int) -> int:
        """Where the entry of ``level`` for an address is; -1 without its table, or under a larger page."""
        slot: cython.longlong = self._find(mm, vpn, level)
        return slot if slot >= 0 and self._level == level else -1

    # -- tables ------------------------------------------------------------------------------------------------

    def install(self, mm: cython.int, vpn: cython.longlong, level: cython.int, pfn: cython.longlong) -> None:
        """Link a zeroed page as the table of ``level`` for an address.

        Preconditions: the tables above it exist, and the entry that leads to it is empty.
        """
        slot: cython.longlong = self._find(mm, vpn, level + 1)
        assert slot >= 0, "the table above is missing"
        assert self._level == level + 1, "a huge page is mapped there"
        assert not self._words[slot], "there is a table already"
        self._words[slot] = (cython.cast(cython.ulonglong, pfn) << 12) | _TABLE
        self._tables[mm] += level < _COUNTED
        self._stats[_S_TABLES] += 1

    def uninstall(self, mm: cython.int, vpn: cython.longlong, level: cython.int) -> int:
        """Unlink the table of ``level`` for an address and clear it. Its PFN, -1 when there is none."""
        slot: cython.longlong = self._find(mm, vpn, level + 1)
        entry: cython.ulonglong
        if slot < 0 or self._level != level + 1 or not self._words[slot] & _PRESENT or self._words[slot] & _PSE:
            return -1
        entry = self._words[slot]
        self._words[slot] = 0
        self._tables[mm] -= level < _COUNTED
        self._near_mm = -1
        self._wipe(cython.cast(cython.longlong, (entry & _PFN_MASK) >> 12))
        return cython.cast(cython.longlong, (entry & _PFN_MASK) >> 12)

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _wipe(self, pfn: cython.longlong) -> cython.void:
        i: cython.longlong
        base: cython.longlong = pfn << self.bits
        for i in range(base, base + self._mask + 1):
            if self._words[i]:
                self._words[i] = 0

    def adjust_tables(self, mm: cython.int, n: cython.int) -> None:
        """Count tables that are held but not linked: those deposited for huge pages."""
        self._tables[mm] += n

    def extents(self, mm: cython.int, start: cython.longlong, end: cython.longlong) -> Any:
        """Rows ``(vpn, pages, slot, level)`` of all tables of small pages and all huge entries in a range,
        ascending.
        """
        found: list = []
        if self._pgd[mm]:
            self._extents(self._pgd[mm], self.levels - 1, 0, start, end, found)
        return np.array(found, dtype=np.int64).reshape(-1, 4)

    @cython.final
    @cython.cfunc
    def _extents(
        self,
        pfn: cython.longlong,
        level: cython.int,
        base: cython.longlong,
        start: cython.longlong,
        end: cython.longlong,
        found: list,
    ) -> object:
        """Append the rows below one table, whose first address is page ``base``."""
        shift: cython.int = self.bits * level
        low: cython.longlong = max(start, base)
        high: cython.longlong = min(end, base + (cython.cast(cython.longlong, 1) << (shift + self.bits)))
        i: cython.longlong
        slot: cython.longlong
        entry: cython.ulonglong
        if low >= high:
            return None
        if level == 0:
            found.append((low, high - low, (pfn << self.bits) + (low - base), 0))
            return None
        for i in range((low - base) >> shift, ((high - 1 - base) >> shift) + 1):
            slot = (pfn << self.bits) + i
            entry = self._words[slot]
            if entry & _PSE:
                at: cython.longlong = base + (i << shift)
                found.append((at, cython.cast(cython.longlong, 1) << shift, slot, level))
            elif entry & _PRESENT:
                below: cython.longlong = cython.cast(cython.longlong, (entry & _PFN_MASK) >> 12)
                self._extents(below, level - 1, base + (i << shift), start, end, found)
        return None

    def table_pfns(self, mm: cython.int) -> list:
        """The PFNs of all linked tables without the top one."""
        found: list = []
        if self._pgd[mm]:
            self._table_pfns(self._pgd[mm], self.levels - 1, found)
        return found

    @cython.final
    @cython.cfunc
    def _table_pfns(self, pfn: cython.longlong, level: cython.int, found: list) -> object:
        i: cython.longlong
        entry: cython.ulonglong
        if level == 0:
            return None
        for i in range((pfn << self.bits), (pfn << self.bits) + self._mask + 1):
            entry = self._words[i]
            if entry & _PRESENT and not entry & _PSE:
                found.append(cython.cast(cython.longlong, (entry & _PFN_MASK) >> 12))
                self._table_pfns(cython.cast(cython.longlong, (entry & _PFN_MASK) >> 12), level - 1, found)
        return None

    def free_tables(self, mm: cython.int, start: cython.longlong, end: cython.longlong) -> list:
        """Unlink and clear the tables whose whole span lies in a range; their PFNs, lowest level first (free_pgtables).

        Preconditions: nothing is mapped there any more.
        """
        freed: list = []
        if self._pgd[mm]:
            self._free_tables(mm, self._pgd[mm], self.levels - 1, 0, start, end, freed)
        self._near_mm = -1
        return freed

    @cython.final
    @cython.cfunc
    def _free_tables(
        self,
        mm: cython.int,
        pfn: cython.longlong,
        level: cython.int,
        base: cython.longlong,
        start: cython.longlong,
        end: cython.longlong,
        freed: list,
    ) -> object:
        shift: cython.int = self.bits * level
        span: cython.longlong = cython.cast(cython.longlong, 1) << shift
        low: cython.longlong = max(start, base)
        high: cython.longlong = min(end, base + (span << self.bits))
        i: cython.longlong
        at: cython.longlong
        entry: cython.ulonglong
        if low >= high or level == 0:
            return None
        for i in range((low - base) >> shift, ((high - 1 - base) >> shift) + 1):
            entry = self._words[(pfn << self.bits) + i]
            if not entry & _PRESENT or entry & _PSE:
                continue
            at = base + (i << shift)
            below: cython.longlong = cython.cast(cython.longlong, (entry & _PFN_MASK) >> 12)
            self._free_tables(mm, below, level - 1, at, start, end, freed)
            if at >= start and at + span <= end:
                self._words[(pfn << self.bits) + i] = 0
                self._wipe(below)
                self._tables[mm] -= level <= _COUNTED
                freed.append(below)
        return None
