"""Migration of pages of huge page pools (mm/migrate.c ``unmap_and_move_huge_page``, mm/hugetlb.c
``alloc_huge_page_nodemask`` and ``move_hugetlb_state``).

The new page is a free one of the pool that nobody was promised; without one it comes from the page allocator, and the
pool is as large as before, because the old page goes there in its place. Left out: isolation, for nobody else can get
hold of the page meanwhile, and pools of i386 machines, whose pages cannot move.
"""

from __future__ import annotations

from collections.abc import Iterator

from kmemd.core import pte, stats
from kmemd.core.mmu import Mmu
from kmemd.core.pages import PG_ANON_EXCLUSIVE, PG_HEAD, PG_UPTODATE, PageMap
from kmemd.errors import KernelError
from kmemd.mm.filemap import PageCache
from kmemd.mm.huge_page import HugePages
from kmemd.mm.hugetlb import Hugetlb
from kmemd.mm.hugetlb_pool import Pool
from kmemd.mm.hugetlbfs import HugetlbFile
from kmemd.mm.mm_types import VM_HUGETLB, Mm, Vma
from kmemd.mm.rmap import Rmap
from kmemd.mm.units import PAGE_SHIFT
from kmemd.mm.vmstat import VmStat

COPIED = 1 << PG_UPTODATE | 1 << PG_ANON_EXCLUSIVE


class HugetlbMigrate:
    """Moves pages of pools that are in use."""

    def __init__(
        self,
        pools: Hugetlb,
        cache: PageCache,
        rmap: Rmap,
        mmu: Mmu,
        pages: PageMap,
        huge: HugePages,
        vmstat: VmStat,
    ) -> None:
        self._pools = pools
        self._cache = cache
        self._rmap = rmap
        self._mmu = mmu
        self._pages = pages
        self._huge = huge
        self._vmstat = vmstat

    def pool_of(self, pfn: int) -> Pool | None:
        """The pool that a page in use belongs to, where its pages can move; None for other pages."""
        pool = self._pools.pool_of(pfn) if self._pools.numa else None
        return pool if pool is not None and pfn in pool.active else None

    def migrate(self, pfn: int, nid: int, mask: int) -> None:
        """Move a page to the nodes of ``mask``, ``nid`` first. ENOMEM when these have none.

        Preconditions: ``pool_of`` knows it.
        """
        pool = self._pools.pool_of(pfn)
        assert pool is not None, "the page is of no pool"
        try:
            new, temporary = self._pools.migration_target(pool, nid, mask)
        except KernelError:
            self._vmstat.count(stats.PGMIGRATE_FAIL, pool.pages)
            raise
        pool.active[new] = pool.active[pfn]
        self._move(pool, pfn, new)
        self._huge.wipe(pfn, pool.pages, keep=1 << PG_HEAD)
        self._pools.migrated(pool, pfn, new, temporary=temporary)
        self._vmstat.count(stats.PGMIGRATE_SUCCESS, pool.pages)

    def _move(self, pool: Pool, old: int, new: int) -> None:
        """Content, owner and mappings of a page are another's from now on."""
        pages = self._pages
        self._huge.copy(old, new, pool.pages)
        self._huge.set_flags(new, int(pages.flags[old]) & COPIED)
        for place in (old, old + 1):
            pages.mapping[new + place - old] = pages.mapping[place]
        pages.index[new] = pages.index[old]
        file = self._cache.files.get(-int(pages.mapping[old]))
        if isinstance(file, HugetlbFile):
            file.cache[int(pages.index[old])] = new
        for mm, vpn, slot in list(self._entries(pool, old, file)):
            self._mmu.words[slot] = int(self._mmu.words[slot]) & ~pte.PFN_MASK | new << pte.PFN_SHIFT
            self._mmu.flush_range(mm.id, vpn, vpn + pool.pages)

    def _entries(self, pool: Pool, pfn: int, file: object) -> Iterator[tuple[Mm, int, int]]:
        """Address space, page number and place of every entry that maps a page (rmap_walk)."""
        index = int(self._pages.index[pfn]) << pool.order
        for mm, vma in self._may_map(pool, pfn, index, file):
            vpn = vma.vpn + index - vma.pgoff
            if not vma.flags & VM_HUGETLB or not vma.vpn <= vpn < vma.end >> PAGE_SHIFT:
                continue
            slot = self._mmu.entry_slot(mm.id, vpn, pool.level)
            if slot >= 0 and int(self._mmu.words[slot]) and self._huge.pfn_at(slot) == pfn:
                yield mm, vpn, slot

    def _may_map(self, pool: Pool, pfn: int, index: int, file: object) -> list[tuple[Mm, Vma]]:
        if isinstance(file, HugetlbFile):
            return list(file.mappings(index, index + pool.pages))
        anon = self._rmap.anon_vma(int(self._pages.mapping[pfn]))
        return [(mm, vma) for vma, mm in anon.vmas.items()] if anon is not None else []
