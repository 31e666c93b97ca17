"""Proof that address spaces, page tables, page counts and the reverse map agree: what ``System.check`` asks of user
memory.

There is no Linux counterpart but CONFIG_DEBUG_VM. Everything is recomputed from the entries of all page tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from kmemd.core import stats
from kmemd.core.pages import PG_SWAPBACKED
from kmemd.core.pte import MAX_SWAPFILES, PFN_MASK, PFN_SHIFT, PRESENT, PROTNONE, SPECIAL, SWP_TYPE_SHIFT
from kmemd.mm.compound import compound_heads, distinct
from kmemd.mm.memory import Memory
from kmemd.mm.mm_struct import MmStructs
from kmemd.mm.mm_types import MM_ANONPAGES, MM_FILEPAGES, MM_SHMEMPAGES, MM_SWAPENTS, NR_MM_COUNTERS, VM_HUGETLB, Mm
from kmemd.mm.mmzone import Zone
from kmemd.mm.units import PAGE_SHIFT
from kmemd.mm.vmstat import VmStat

Entries = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]
P4D_LEVELS = 5
WALKED = 256
"""Pages of each address space whose reverse map is followed."""


class MmCheck:
    """Recomputes what the books of user memory claim."""

    def __init__(
        self, memory: Memory, mms: MmStructs, vmstat: VmStat, zones: list[Zone], used: Callable[[Zone], Numbers]
    ) -> None:
        """``used(zone)`` gives the heads of the blocks in use."""
        self._zones = zones
        self._used = used
        self._memory = memory
        self._mms = mms
        self._vmstat = vmstat
        self._pages = memory.pages

    def check(self) -> None:
        """AssertionError where a count is not what the page tables say."""
        mapped = [self._check_mm(mm) for mm in self._mms.living.values()]
        self._check_mapcounts(np.concatenate(mapped) if mapped else np.zeros(0, dtype=np.int64))

    def _check_mm(self, mm: Mm) -> Numbers:
        """One address space. The pages it maps by small entries."""
        mmu = self._memory.mmu
        rows = mmu.extents(mm.id, 0, 1 << 64 - PAGE_SHIFT)
        entries = _entries(mmu.words, rows[rows[:, 3] == 0])
        self._check_inside(mm, _vpns(rows[rows[:, 3] == 0])[entries != 0])
        small = _pfns(entries)
        self._check_rss(mm, entries, small, rows)
        linked = mmu.table_pfns(mm.id)
        held = len(mm.deposits)
        counted = len(linked) - self._p4d_tables(mm)
        assert counted + held == int(mmu.tables[mm.id]), f"mm {mm.id}: {counted} tables linked, {held} held"
        assert not mmu.stale(mm.id), f"mm {mm.id}: a TLB knows what the page tables do not"
        self._check_rmap(mm, rows)
        return small

    def _p4d_tables(self, mm: Mm) -> int:
        """Tables of the fourth level, which no sum of page tables has: there are some where there are five."""
        mmu = self._memory.mmu
        if mmu.levels < P4D_LEVELS:
            return 0
        first = int(mmu.pgd(mm.id)) << mmu.bits
        return int(np.count_nonzero(mmu.words[first : first + (1 << mmu.bits)]))

    @staticmethod
    def _check_inside(mm: Mm, vpns: Numbers) -> None:
        """No entry lies outside of a mapping. ``vpns``: where entries are."""
        starts = np.array([vma.vpn for vma in mm.vmas], dtype=np.int64)
        ends = np.array([0, *(vma.end >> PAGE_SHIFT for vma in mm.vmas)], dtype=np.int64)
        outside = vpns[vpns >= ends[np.searchsorted(starts, vpns, side="right")]]
        assert not len(outside), f"mm {mm.id}: an entry outside of mappings at page {int(outside[0]):#x}"

    def _check_rss(self, mm: Mm, entries: Entries, small: Numbers, rows: Numbers) -> None:
        pages = self._pages
        heads = compound_heads(pages, small, self._vmstat.hpage_pmd_nr)
        owner = pages.mapping[heads]
        shmem = (pages.flags[heads] >> np.uint32(PG_SWAPBACKED) & np.uint32(1)) == 1
        computed = np.zeros(NR_MM_COUNTERS, dtype=np.int64)
        computed[MM_ANONPAGES] = int((owner > 0).sum())
        computed[MM_SHMEMPAGES] = int(((owner <= 0) & shmem).sum())
        computed[MM_FILEPAGES] = int(((owner <= 0) & ~shmem).sum())
        absent = entries[(entries != 0) & (entries & np.uint64(PRESENT | PROTNONE) == 0)]
        computed[MM_SWAPENTS] = int((absent >> np.uint64(SWP_TYPE_SHIFT) < np.uint64(MAX_SWAPFILES)).sum())
        for vpn, count, slot, _ in rows[rows[:, 3] > 0].tolist():
            vma = mm.find(vpn << PAGE_SHIFT)
            assert vma is not None, f"mm {mm.id}: a huge entry outside of mappings at page {vpn:#x}"
            entry = int(self._memory.mmu.words[slot])
            if not vma.flags & VM_HUGETLB and pages.mapping[(entry & PFN_MASK) >> PFN_SHIFT] > 0:
                computed[MM_ANONPAGES] += count
        at = mm.id * NR_MM_COUNTERS
        counted = (self._memory.mmu.rss + self._memory.mmu.rss_task)[at : at + NR_MM_COUNTERS]
        assert (counted == computed).all(), f"mm {mm.id}: RSS counters {counted.tolist()}, entries {computed.tolist()}"

    def _check_rmap(self, mm: Mm, rows: Numbers) -> None:
        """The reverse map leads from pages back to the entries that map them."""
        left = WALKED
        for vpn, pages, slot, _ in rows[rows[:, 3] == 0].tolist():
            entries = self._memory.mmu.words[slot : slot + pages]
            for at in np.flatnonzero(entries).tolist()[:left]:
                entry = int(entries[at])
                pfn = (entry & PFN_MASK) >> PFN_SHIFT
                if (
                    not entry & (PRESENT | PROTNONE)
                    or entry & SPECIAL
                    or not self._pages.mapping[self._memory.rmap.head(pfn)]
                ):
                    continue
                found = [(other.id, place) for other, _, place in self._memory.rmap.walk(pfn)]
                assert (mm.id, vpn + at) in found, f"mm {mm.id}: rmap of pfn {pfn} misses page {vpn + at:#x}"
                left -= 1
            if left <= 0:
                return

    def _check_mapcounts(self, small: Numbers) -> None:
        """Each page is counted as often as entries map it, and pages that none maps not at all."""
        pfns, counts = np.unique(small, return_counts=True)
        off = pfns[self._pages.mapcount[pfns] != counts]
        assert not len(off), (
            f"mapcount of pfn {int(off[0])} is {int(self._pages.mapcount[off[0]])}, not what entries say"
        )
        used = self._used_by_users()
        stray = used[(self._pages.mapcount[used] != 0) & ~np.isin(used, pfns)]
        assert not len(stray), f"pfn {int(stray[0])} has a mapcount and no entry"

    def _used_by_users(self) -> Numbers:
        """Pages in use that name an owner; ``used`` passes never touched memory over."""
        used = np.concatenate([self._used(zone) for zone in self._zones])
        found: Numbers = used[self._pages.mapping[used] != 0]
        return found

    def gauges(self) -> Iterator[tuple[str, list[int]]]:
        """What counters of mapped pages claim beyond the pages that entries map; a twin's are mere numbers."""
        rows = [self._memory.mmu.extents(mm.id, 0, 1 << 64 - PAGE_SHIFT) for mm in self._mms.living.values()]
        every = np.concatenate(rows) if rows else np.zeros((0, 4), dtype=np.int64)
        pfns = distinct(_pfns(_entries(self._memory.mmu.words, every[every[:, 3] == 0])))
        total = self._vmstat.node_total
        heads = compound_heads(self._pages, pfns, self._vmstat.hpage_pmd_nr)
        files = int((self._pages.mapping[heads] <= 0).sum()) if len(heads) else 0
        yield "NR_FILE_MAPPED less pages of files that entries map", [total(stats.NR_FILE_MAPPED) - files]


def _entries(words: Entries, rows: Numbers) -> Entries:
    """All entries of some rows."""
    parts = [words[slot : slot + pages] for _, pages, slot, _ in rows.tolist()]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64)


def _vpns(rows: Numbers) -> Numbers:
    """The page number of each entry of ``_entries``."""
    counts = rows[:, 1]
    before = np.cumsum(counts) - counts
    found: Numbers = np.repeat(rows[:, 0] - before, counts) + np.arange(int(counts.sum()), dtype=np.int64)
    return found


def _pfns(entries: Entries) -> Numbers:
    """The counted pages that entries map."""
    here = (entries & np.uint64(PRESENT | PROTNONE) != 0) & (entries & np.uint64(SPECIAL) == 0)
    found: Numbers = ((entries[here] & np.uint64(PFN_MASK)) >> np.uint64(PFN_SHIFT)).astype(np.int64)
    return found
