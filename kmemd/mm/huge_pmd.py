"""Transparent huge pages in page tables: faults, copies, entries that are split, moved, zapped (mm/huge_memory.c).

Models: huge pages of anonymous memory, the huge zero page, the page table that is kept in reserve for each huge entry
(``pgtable_trans_huge_deposit``), and splitting an entry into small ones of the same page. A write to a huge page that
others have too is not copied whole: the entry is split. Left out: huge pages of files, PUD entries, migration entries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from kmemd.core import pte, stats
from kmemd.core.lru import MLOCK_NEW, MUNLOCK, Lru
from kmemd.core.mmu import Mmu
from kmemd.core.pages import PG_ANON_EXCLUSIVE, PG_DIRTY, PG_SWAPBACKED, PG_SWAPCACHE, PageMap
from kmemd.errors import KernelError
from kmemd.mm import gfp as g
from kmemd.mm import mm_types as mt
from kmemd.mm.compound import compound_heads, distinct
from kmemd.mm.huge_memory import HugeMemory
from kmemd.mm.huge_page import HugePages, page_prot
from kmemd.mm.huge_split import HugeSplit
from kmemd.mm.khugepaged import KhugepagedSlots
from kmemd.mm.mempolicy import Mempolicy
from kmemd.mm.mm_types import MM_ANONPAGES, NR_MM_COUNTERS, Mm, Vma
from kmemd.mm.page_alloc import PageAllocator
from kmemd.mm.pgtable import PageTables
from kmemd.mm.rmap import Rmap
from kmemd.mm.units import PAGE_SHIFT
from kmemd.mm.vma_rows import prot_bits
from kmemd.mm.vmstat import VmStat

PMD = 1
HERE = pte.PRESENT | pte.PROTNONE
PROT = HERE | pte.RW | pte.USER | pte.NX
ZERO_GFP = (g.GFP_TRANSHUGE | g.F.ZERO) & ~g.F.MOVABLE


class TransparentHuge:
    """What memory management does with huge entries of mappings that are not hugetlb's. Page numbers are base pages'.

    Invariants: ``mm.deposits`` holds as many page tables in reserve as the address space has huge entries; it is in
    ``_zero_users`` if it ever mapped the huge zero page.
    """

    def __init__(
        self,
        settings: HugeMemory,
        huge: HugePages,
        split: HugeSplit,
        khugepaged: KhugepagedSlots,
        mmu: Mmu,
        tables: PageTables,
        pages: PageMap,
        rmap: Rmap,
        lru: Lru,
        page_alloc: PageAllocator,
        mempolicy: Mempolicy,
        vmstat: VmStat,
    ) -> None:
        self._settings = settings
        self._huge = huge
        self._split = split
        self._khugepaged = khugepaged
        self._mmu = mmu
        self._tables = tables
        self._pages = pages
        self._rmap = rmap
        self._lru = lru
        self._page_alloc = page_alloc
        self._mempolicy = mempolicy
        self._vmstat = vmstat
        self._zero = 0
        self._zero_users: set[int] = set()

    @property
    def generation(self) -> int:
        """Changes whenever other mappings become eligible."""
        return self._settings.generation

    def eligible(self, mm: Mm, vma: Vma) -> bool:
        """Whether a fault in a mapping may get a huge page."""
        return self._settings.allowed(vma, fault=True)

    # -- faults ------------------------------------------------------------------------------------------

    def fault(self, task: Any, mm: Mm, vma: Vma, vpn: int, write: bool) -> bool:
        """A fault where nothing is mapped yet (``do_huge_pmd_anonymous_page``). False: take small pages. ENOMEM."""
        if not self._settings.suitable(vma, vpn):
            return False
        vpn &= -self._huge.pages
        slot = self._tables.ensure(mm.id, vpn, PMD)
        if int(self._mmu.words[slot]):
            return False
        self._rmap.prepare(mm, vma)
        self._khugepaged.enter(mm, vma)
        if not write and self._settings.use_zero_page:
            return self._zero_fault(mm, vma, slot)
        try:
            head = self._mempolicy.alloc_hugepage(vma, task, vpn, self._settings.fault_gfp(vma), self._mmu.bits)
        except KernelError:
            self._vmstat.count(stats.THP_FAULT_FALLBACK)
            return False
        try:
            self._deposit(mm, self._tables.alloc_table())
        except KernelError:
            self._page_alloc.free_pages(head, self._mmu.bits)
            raise
        self._huge.clear(self._huge.pages)
        self.map_new(mm, vma, vpn, slot, head)
        self._vmstat.count(stats.THP_FAULT_ALLOC)
        return True

    def map_new(self, mm: Mm, vma: Vma, vpn: int, slot: int, head: int) -> None:
        """Map a new huge page, writable where the mapping lets it; its page table is in reserve already."""
        assert vma.anon_vma is not None, "anon_vma_prepare comes first"
        self._huge.new_anon_page(head, vma.anon_vma.id, vma.index_of(vpn), 1 << PG_SWAPBACKED)
        self.count_map(head)
        if vma.flags & mt.VM_LOCKED:
            self._lru.mlock(np.array([head], dtype=np.int64), MLOCK_NEW)
        else:
            self._lru.add(head)
        bits = prot_bits(vma.flags, cow=False) | pte.PSE | pte.ACCESSED | pte.DIRTY | pte.SOFT_DIRTY
        self._mmu.words[slot] = np.uint64(head << pte.PFN_SHIFT | bits)
        self._mmu.rss[mm.id * NR_MM_COUNTERS + MM_ANONPAGES] += self._huge.pages

    def _zero_fault(self, mm: Mm, vma: Vma, slot: int) -> bool:
        """A read: the huge zero page, which all share. False when there is none to be had."""
        table = self._tables.alloc_table()
        zero = self._get_zero_page(mm)
        if not zero:
            self._tables.free_tables([table])
            self._vmstat.count(stats.THP_FAULT_FALLBACK)
            return False
        self._deposit(mm, table)
        self._mmu.words[slot] = np.uint64(zero << pte.PFN_SHIFT | page_prot(vma.flags) | pte.PSE | pte.ACCESSED)
        return True

    def _get_zero_page(self, mm: Mm) -> int:
        """The huge zero page, made when first wanted (``mm_get_huge_zero_page``); 0 when there is no memory for it."""
        if not self._zero:
            try:
                self._zero = self._page_alloc.alloc_pages(ZERO_GFP, self._mmu.bits)
            except KernelError:
                self._vmstat.count(stats.THP_ZERO_PAGE_ALLOC_FAILED)
                return 0
            self._vmstat.count(stats.THP_ZERO_PAGE_ALLOC)
        self._zero_users.add(mm.id)
        return self._zero

    def is_zero(self, pfn: int) -> bool:
        """Whether a page is the huge zero page."""
        return bool(self._zero) and pfn == self._zero

    @property
    def zero_pfn(self) -> int:
        """The huge zero page, 0 when there is none."""
        return self._zero

    def shrink_zero_page(self) -> int:
        """Free the huge zero page when nobody uses it: the pages freed (``shrink_huge_zero_page_scan``)."""
        if not self._zero or self._zero_users:
            return 0
        self._page_alloc.free_pages(self._zero, self._mmu.bits)
        self._zero = 0
        return self._huge.pages

    def exit_mm(self, mm: Mm) -> None:
        """An address space ends: it needs neither the huge zero page nor khugepaged any more."""
        self._zero_users.discard(mm.id)
        self._khugepaged.exit(mm)

    def wp_fault(self, task: Any, mm: Mm, vma: Vma, vpn: int) -> bool:
        """A write to a huge page that is mapped read-only (``do_huge_pmd_wp_page``). False: split the entry."""
        slot = self._mmu.entry_slot(mm.id, vpn, PMD)
        entry, head = int(self._mmu.words[slot]), self._huge.pfn_at(slot)
        if entry & pte.RW:
            return True
        if self.is_zero(head) or not (self._huge.is_exclusive(head) or self._only_here(head)):
            return False
        anon = self._rmap.prepare(mm, vma)
        self._huge.own(head, anon.id)
        self._mmu.words[slot] = np.uint64(entry | pte.RW | pte.DIRTY | pte.SOFT_DIRTY | pte.ACCESSED)
        self._mmu.flush_range(mm.id, vpn, vpn + 1)
        return True

    def _only_here(self, head: int) -> bool:
        small = int(self._pages.mapcount[head : head + self._huge.pages].sum())
        return self._huge.mapcount(head) + small == 1 and not self._huge.has_flag(head, PG_SWAPCACHE)

    # -- page tables in reserve --------------------------------------------------------------------------

    def _deposit(self, mm: Mm, table: int) -> None:
        """Keep a page table for an entry (``pgtable_trans_huge_deposit``); it counts as the address space's."""
        mm.deposits.append(table)
        self._mmu.adjust_tables(mm.id, 1)

    def _withdraw(self, mm: Mm) -> int:
        self._mmu.adjust_tables(mm.id, -1)
        return mm.deposits.pop()

    def _drop_deposit(self, mm: Mm) -> None:
        self._tables.free_tables([self._withdraw(mm)])

    # -- counts ------------------------------------------------------------------------------------------

    def count_map(self, head: int) -> None:
        """One more huge entry maps a page (``page_add_anon_rmap``, compound)."""
        unmapped = self._unmapped(head)
        if self._huge.map_again(head) == 1:
            nid = self._huge.nid(head)
            self._vmstat.mod_node(nid, stats.NR_ANON_THPS, self._huge.pages)
            self._vmstat.mod_node(nid, stats.NR_ANON_MAPPED, unmapped)

    def count_unmap(self, head: int) -> None:
        """One huge entry less maps a page, which is freed with the last (``page_remove_anon_compound_rmap``)."""
        if self._huge.unmap(head) == 0:
            nid = self._huge.nid(head)
            self._vmstat.mod_node(nid, stats.NR_ANON_THPS, -self._huge.pages)
            self._vmstat.mod_node(nid, stats.NR_ANON_MAPPED, -self._unmapped(head))

    def _unmapped(self, head: int) -> int:
        """Small pages of a huge one that no small entry maps."""
        return int((self._pages.mapcount[head : head + self._huge.pages] == 0).sum())

    # -- unmapping ---------------------------------------------------------------------------------------

    def zap(self, mm: Mm, vma: Vma, vpn: int, slot: int) -> None:
        """Take a whole huge entry out (``zap_huge_pmd``); the caller flushes the TLB."""
        head = self._huge.pfn_at(slot)
        self._mmu.words[slot] = 0
        self._drop_deposit(mm)
        if self.is_zero(head):
            return
        self.count_unmap(head)
        if vma.flags & mt.VM_LOCKED:
            self._lru.mlock(np.array([head], dtype=np.int64), MUNLOCK)
        self._mmu.rss[mm.id * NR_MM_COUNTERS + MM_ANONPAGES] -= self._huge.pages
        self._split.unmapped(head, whole=True)

    def unmapped_parts(self, heads: npt.NDArray[np.int64]) -> None:
        """Small entries of some huge pages are gone."""
        for head in heads.tolist():
            self._split.unmapped(head, whole=False)

    # -- splitting entries -------------------------------------------------------------------------------

    def split_range(self, mm: Mm, start: int, end: int) -> None:
        """Split the huge entries that cross the ends of a range (``vma_adjust_trans_huge``, ``__split_huge_pmd``)."""
        for vpn in (start, end):
            if vpn & (self._huge.pages - 1):
                slot = self._mmu.entry_slot(mm.id, vpn, PMD)
                if slot >= 0 and int(self._mmu.words[slot]) & pte.PSE:
                    vma = mm.find(vpn << PAGE_SHIFT) or mm.find((vpn - 1) << PAGE_SHIFT)
                    if vma is not None and not vma.flags & mt.VM_HUGETLB:
                        self.split_pmd(mm, vma, vpn)

    def split_pages(self, mm: Mm, start: int, end: int) -> None:
        """Make small pages of the huge ones that cross the ends of a range, if only this task maps them: what is to be
        done is for a part of them."""
        for vpn in (start, end):
            slot = self._mmu.entry_slot(mm.id, vpn, PMD) if vpn & (self._huge.pages - 1) else -1
            if slot >= 0 and int(self._mmu.words[slot]) & pte.PSE:
                head = self._huge.pfn_at(slot)
                if self._huge.is_anon(head) and not self.is_zero(head) and self._only_here(head):
                    self._split.split(head)

    def split_pmd(self, mm: Mm, vma: Vma, vpn: int) -> None:
        """Small entries in place of a huge one, of the same pages (``__split_huge_pmd_locked``)."""
        vpn &= -self._huge.pages
        slot = self._mmu.entry_slot(mm.id, vpn, PMD)
        if slot < 0 or not int(self._mmu.words[slot]) & pte.PSE:
            return
        self._vmstat.count(stats.THP_SPLIT_PMD)
        entry, head = int(self._mmu.words[slot]), self._huge.pfn_at(slot)
        self._mmu.words[slot] = 0
        table = self._withdraw(mm)
        self._mmu.install(mm.id, vpn, 0, table)
        first = table << self._mmu.bits
        where = slice(first, first + self._huge.pages)
        if self.is_zero(head):
            small = self._mmu.zero_pfn << pte.PFN_SHIFT | page_prot(vma.flags) | pte.SPECIAL | pte.ACCESSED
            self._mmu.words[where] = np.uint64(small)
        else:
            bits = np.uint64(self._small_bits(vma, entry, head))
            pfns = np.arange(head, head + self._huge.pages, dtype=np.uint64)
            self._mmu.words[where] = pfns << np.uint64(pte.PFN_SHIFT) | bits
            self._to_small_maps(vma, head)
        self._mmu.flush_range(mm.id, vpn, vpn + self._huge.pages)

    def _small_bits(self, vma: Vma, entry: int, head: int) -> int:
        """What small entries inherit. That the page was written to goes to the page."""
        if entry & pte.DIRTY:
            self._huge.set_flags(head, 1 << PG_DIRTY)
        bits = prot_bits(vma.flags, cow=not entry & pte.RW)
        return bits | entry & (pte.ACCESSED | pte.SOFT_DIRTY)

    def _to_small_maps(self, vma: Vma, head: int) -> None:
        """Every small page is mapped by an entry of its own instead of with the whole."""
        where = slice(head, head + self._huge.pages)
        if self._huge.is_exclusive(head):
            self._pages.flags[where] |= np.uint32(1 << PG_ANON_EXCLUSIVE)
        self._pages.mapcount[where] += 1
        self.count_unmap(head)
        if vma.flags & mt.VM_LOCKED:
            self._lru.mlock(np.array([head], dtype=np.int64), MUNLOCK)

    def split_mappings(self, head: int) -> None:
        """Small entries everywhere for a page that is about to be split (``unmap_folio``)."""
        for mm, vma, vpn in list(self._rmap.candidates(head)):
            slot = self._mmu.entry_slot(mm.id, vpn, PMD)
            if slot >= 0 and int(self._mmu.words[slot]) & pte.PSE and self._huge.pfn_at(slot) == head:
                self.split_pmd(mm, vma, vpn)

    # -- whole entries -----------------------------------------------------------------------------------

    def copy(self, child: Mm, new: Vma, parent: Mm, vma: Vma, vpn: int, slot: int) -> None:
        """A fork: the child maps the huge page too, both read-only (``copy_huge_pmd``). ENOMEM."""
        table = self._tables.alloc_table()
        try:
            target = self._tables.ensure(child.id, vpn, PMD)
        except KernelError:
            self._tables.free_tables([table])
            raise
        entry, head = int(self._mmu.words[slot]) & ~pte.RW, self._huge.pfn_at(slot)
        if self.is_zero(head):
            self._get_zero_page(child)
        else:
            self._huge.share(head)
            self.count_map(head)
            self._mmu.rss[child.id * NR_MM_COUNTERS + MM_ANONPAGES] += self._huge.pages
        self._deposit(child, table)
        self._mmu.words[slot] = np.uint64(entry)
        self._mmu.words[target] = np.uint64(entry & ~pte.ACCESSED)

    def move(self, mm: Mm, vpn: int, target: int) -> bool:
        """Move a huge entry to another address (``move_huge_pmd``); the caller flushes. False: split it. ENOMEM."""
        if (vpn | target) & (self._huge.pages - 1):
            return False
        slot = self._mmu.entry_slot(mm.id, vpn, PMD)
        to = self._tables.ensure(mm.id, target, PMD)
        if int(self._mmu.words[to]):
            return False
        entry = int(self._mmu.words[slot])
        self._mmu.words[slot] = 0
        self._mmu.words[to] = np.uint64(entry | pte.SOFT_DIRTY)
        return True

    def protect(self, vma: Vma, slot: int, *, hint: bool = False) -> int:
        """Give a huge entry the mapping's protection, or make a NUMA ``hint`` of it (``change_huge_pmd``): the pages
        that changed. The caller flushes."""
        entry = int(self._mmu.words[slot])
        if hint and (self.is_zero(self._huge.pfn_at(slot)) or not entry & pte.PRESENT):
            return 0
        prot = pte.PROTNONE | entry & pte.RW if hint else page_prot(vma.flags)
        self._mmu.words[slot] = np.uint64(entry & ~PROT | prot)
        return self._huge.pages

    def cold(self, mm: Mm, vma: Vma, vpn: int, slot: int, *, clean: bool = False) -> bool:
        """Make a whole huge page look unused, and with ``clean`` not written to, when only this task maps it
        (``madvise_cold_or_pageout_pte_range``, ``madvise_free_huge_pmd``). Whether it was done."""
        head = self._huge.pfn_at(slot)
        if self.is_zero(head) or not self._only_here(head):
            return False
        if clean:
            self._huge.clear_flags(head, 1 << PG_DIRTY)
        entry = int(self._mmu.words[slot]) & ~(pte.ACCESSED | (pte.DIRTY if clean else 0))
        self._mmu.words[slot] = np.uint64(entry)
        self._mmu.flush_range(mm.id, vpn, vpn + 1)
        return True

    # -- collapse ----------------------------------------------------------------------------------------

    def install_collapsed(self, mm: Mm, vma: Vma, vpn: int, head: int) -> None:
        """A huge entry in place of a page table that is empty now, and is kept in reserve."""
        table = self._mmu.uninstall(mm.id, vpn, 0)
        slot = self._mmu.entry_slot(mm.id, vpn, PMD)
        self._deposit(mm, table)
        self.map_new(mm, vma, vpn, slot, head)

    def check(self, spaces: Iterable[Mm]) -> None:
        """Every huge entry has its page table in reserve, and pages count what the entries say."""
        maps: Counter[int] = Counter()
        for mm in spaces:
            huge = [self._huge.pfn_at(slot) for _, _, slot, level in self._all_rows(mm) if level == PMD]
            kept = len(mm.deposits)
            assert kept == len(huge), f"mm {mm.id}: {len(huge)} huge entries, {kept} page tables in reserve"
            maps.update(head for head in huge if not self.is_zero(head))
        for head, count in maps.items():
            found = self._huge.mapcount(head)
            assert found == count, f"pfn {head}: mapped {count} times as a whole, counts {found}"
        self._split.check()

    def gauges(self, spaces: Iterable[Mm]) -> Iterator[tuple[str, list[int]]]:
        """What the gauges of anonymous pages claim beyond what entries map, by node; a twin's are mere numbers."""
        rows = [row for mm in spaces for row in self._all_rows(mm)]
        heads = {self._huge.pfn_at(slot) for _, _, slot, level in rows if level == PMD}
        whole = np.array(sorted(head for head in heads if not self.is_zero(head)), dtype=np.int64)
        inside = (whole[:, None] + np.arange(self._huge.pages)).ravel()
        small = self._anon_pages([(slot, pages) for _, pages, slot, level in rows if not level])
        for item, pfns in (
            (stats.NR_ANON_THPS, inside),
            (stats.NR_ANON_MAPPED, distinct(np.concatenate((inside, small)))),
        ):
            yield f"{stats.NODE_STAT_NAMES[item]} less pages that entries map", self._claimed(item, pfns)

    def _all_rows(self, mm: Mm) -> list[list[int]]:
        return [row for vma in mm.vmas if not vma.flags & mt.VM_HUGETLB for row in self._rows(mm, vma)]

    def _rows(self, mm: Mm, vma: Vma) -> list[list[int]]:
        rows: list[list[int]] = self._mmu.extents(mm.id, vma.vpn, vma.end >> PAGE_SHIFT).tolist()
        return rows

    def _anon_pages(self, runs: list[tuple[int, int]]) -> npt.NDArray[np.int64]:
        """The anonymous pages that runs of small entries map, each ``(first slot, entries)``."""
        words = self._mmu.words
        entries = np.concatenate([words[:0], *(words[slot : slot + pages] for slot, pages in runs)])
        here = (entries & np.uint64(HERE) != 0) & (entries & np.uint64(pte.SPECIAL) == 0)
        pfns = ((entries[here] & np.uint64(pte.PFN_MASK)) >> np.uint64(pte.PFN_SHIFT)).astype(np.int64)
        heads = compound_heads(self._pages, pfns, self._huge.pages)
        found: npt.NDArray[np.int64] = pfns[self._pages.mapping[heads] > 0]
        return found

    def _claimed(self, item: int, pfns: npt.NDArray[np.int64]) -> list[int]:
        """A gauge less the pages that there are, by node."""
        return [
            int(self._vmstat.node_stat[nid, item])
            - sum(int(np.count_nonzero((pfns >= low) & (pfns < high))) for low, high in spans)
            for nid, spans in self._huge.node_spans().items()
        ]
