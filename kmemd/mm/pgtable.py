"""Page-table pages: where the tables of address spaces come from and go to (mm/memory.c, arch/x86/mm/pgtable.c).

A table is a page of the allocator's; those of the two lowest levels count as NR_PAGETABLE (``pgtable_pte_page_ctor``,
``pgtable_pmd_page_ctor``), and all but the top one belong to what VmPTE shows (``mm_pgtables_bytes``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kmemd.core import stats
from kmemd.core.context import Context
from kmemd.core.mmu import Mmu
from kmemd.core.pages import PG_TABLE, PageMap
from kmemd.mm import gfp as g
from kmemd.mm.mmzone import Zone
from kmemd.mm.page_alloc import PageAllocator
from kmemd.mm.stackdepot import StackDepot
from kmemd.mm.vmstat import VmStat

COUNTED_LEVELS = 2
GFP_PGTABLE = g.GFP_KERNEL_ACCOUNT | g.F.ZERO
TABLE_FRAMES = ("pte_alloc_one", "__pte_alloc", "__handle_mm_fault", "handle_mm_fault", "exc_page_fault")
PGD_FRAMES = ("pgd_alloc", "mm_init", "mm_alloc", "alloc_bprm", "do_execveat_common")


class PageTables:
    """Gives an ``Mmu`` its tables. ``alloc(gfp)`` is a page by the policy of the task that executes.

    Invariants: a linked table of a counted level has PG_TABLE and is counted on its node.
    """

    def __init__(
        self,
        mmu: Mmu,
        page_alloc: PageAllocator,
        pages: PageMap,
        zones: list[Zone],
        vmstat: VmStat,
        context: Context,
        depot: StackDepot,
        alloc: Callable[[int], int],
    ) -> None:
        self.mmu = mmu
        self._alloc_page = alloc
        self._page_alloc = page_alloc
        self._flags = pages.flags.data  # single items of a memoryview cost a tenth of a numpy scalar
        self._spans = [(zone.start_pfn, zone.end_pfn, zone.nid) for zone in zones]
        self._near = self._spans[0]
        self._vmstat = vmstat
        self._context = context
        self._table_site = depot.save(TABLE_FRAMES)
        self._pgd_site = depot.save(PGD_FRAMES)

    def new_pgd(self, mm: int) -> None:
        """Begin an address space: its top table. ENOMEM."""
        self.mmu.new_mm(mm, self._alloc(self._pgd_site))

    def free_pgd(self, mm: int) -> None:
        """End an address space that has no tables left."""
        self._page_alloc.free_pages(self.mmu.free_mm(mm))

    def ensure(self, mm: int, vpn: int, level: int = 0) -> int:
        """Where the entry of ``level`` for a page is, after making the tables above it. ENOMEM.

        Preconditions: no larger page is mapped there.
        """
        slot: int = self.mmu.entry_slot(mm, vpn, level)
        while slot < 0:
            missing: int = self.mmu.leaf(mm, vpn)[1]
            self.mmu.install(mm, vpn, missing, self.alloc_table(missing))
            slot = self.mmu.entry_slot(mm, vpn, level)
        return slot

    def alloc_table(self, level: int = 0) -> int:
        """A zeroed page for a table that is linked, or deposited, later. ENOMEM."""
        pfn = self._alloc(self._table_site)
        if level < COUNTED_LEVELS:
            self._flags[pfn] |= 1 << PG_TABLE
            self._vmstat.mod_node(self._nid(pfn), stats.NR_PAGETABLE, 1)
        return pfn

    def free_tables(self, pfns: Iterable[int]) -> None:
        """Give unlinked tables back."""
        for pfn in pfns:
            if self._flags[pfn] >> PG_TABLE & 1:
                self._vmstat.mod_node(self._nid(pfn), stats.NR_PAGETABLE, -1)
            self._page_alloc.free_pages(pfn)

    def free_range(self, mm: int, start_vpn: int, end_vpn: int) -> None:
        """Give back the tables that serve nothing outside of a range (free_pgd_range with its floor and ceiling)."""
        self.free_tables(self.mmu.free_tables(mm, start_vpn, end_vpn))

    def _alloc(self, site: int) -> int:
        outer = self._context.site
        self._context.site = site
        try:
            return self._alloc_page(GFP_PGTABLE)
        finally:
            self._context.site = outer

    def _nid(self, pfn: int) -> int:
        low, high, nid = self._near
        if not low <= pfn < high:
            low, high, nid = self._near = next(span for span in self._spans if span[0] <= pfn < span[1])
        return nid
