"""Moving pages to other page frames while programs use them (mm/migrate.c).

Models: isolation from the LRU lists, migration entries in place of every mapping, the copy with its flags, and entries
of the new page; small pages, transparent huge pages, and pages of files. Nothing else runs meanwhile, so no page is
ever busy and nothing is tried again. Left out: pages of drivers that move by themselves, memory failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from kmemd.core import stats
from kmemd.core import trace_ids as ev
from kmemd.core.context import Context
from kmemd.core.lru import MLOCK_PAGE, MUNLOCK, Lru
from kmemd.core.mmu import Mmu
from kmemd.core.owner import OwnerTable
from kmemd.core.pages import (
    PG_ANON_EXCLUSIVE,
    PG_CONTENT,
    PG_DIRTY,
    PG_HEAD,
    PG_LRU,
    PG_MLOCKED,
    PG_SWAPBACKED,
    PG_SWAPCACHE,
    PG_WRITEBACK,
    SECTION_SHIFT,
    PageMap,
)
from kmemd.core.pte import (
    ACCESSED,
    DIRTY,
    PFN_SHIFT,
    PSE,
    RW,
    SOFT_DIRTY,
    SWP_MIGRATION_READ,
    SWP_MIGRATION_READ_EXCLUSIVE,
    SWP_MIGRATION_WRITE,
    SWP_SOFT_DIRTY,
    swap_entry,
    swap_offset,
    swap_type,
)
from kmemd.errors import KernelError
from kmemd.mm import trace_points
from kmemd.mm.compound import compound_heads
from kmemd.mm.mempolicy import Mempolicy
from kmemd.mm.migrate_bulk import COPIED_FLAGS, BulkMove, owner_tables
from kmemd.mm.mm_types import VM_LOCKED, VM_SPECIAL
from kmemd.mm.page_alloc import PageAllocator
from kmemd.mm.vma_rows import prot_bits
from kmemd.mm.vmstat import VmStat

if TYPE_CHECKING:
    from kmemd.mm.mm_types import Mm, Vma
    from kmemd.mm.rmap import AnonVma

PFNS = npt.NDArray[np.int64]

MR_COMPACTION, MR_MEMORY_FAILURE, MR_MEMORY_HOTPLUG, MR_SYSCALL, MR_MEMPOLICY_MBIND, MR_NUMA_MISPLACED = range(6)

MIGRATE_ASYNC, MIGRATE_SYNC_LIGHT, MIGRATE_SYNC = range(3)
"""How long a caller waits (``enum migrate_mode``)."""

SWP_PFN_BITS = 40
SWP_MIG_YOUNG, SWP_MIG_DIRTY = 1 << SWP_PFN_BITS, 1 << SWP_PFN_BITS + 1
SWP_PFN_MASK = SWP_MIG_YOUNG - 1


def migration_entry(entry: int, pfn: int, exclusive: bool) -> int:
    """What stands for a page under migration where ``entry`` was."""
    kind = SWP_MIGRATION_WRITE if entry & RW else SWP_MIGRATION_READ_EXCLUSIVE if exclusive else SWP_MIGRATION_READ
    offset = pfn | (SWP_MIG_YOUNG if entry & ACCESSED else 0) | (SWP_MIG_DIRTY if entry & DIRTY else 0)
    return swap_entry(kind, offset) | (SWP_SOFT_DIRTY if entry & SOFT_DIRTY else 0)


def restored_entry(entry: int, pfn: int, vma: Vma, dirty: bool) -> int:
    """The entry of page ``pfn`` where a migration entry was (remove_migration_pte)."""
    offset = swap_offset(entry)
    found = pfn << PFN_SHIFT | prot_bits(vma.flags, cow=True)
    found |= ACCESSED if offset & SWP_MIG_YOUNG else 0
    found |= DIRTY | SOFT_DIRTY if dirty and offset & SWP_MIG_DIRTY else 0
    found |= SOFT_DIRTY if entry & SWP_SOFT_DIRTY else 0
    return found | (RW if swap_type(entry) == SWP_MIGRATION_WRITE else 0)


class ReverseMap(Protocol):
    """Who maps a page."""

    def head(self, pfn: int) -> int: ...
    def anon_vma(self, number: int) -> AnonVma | None: ...
    def walk(self, pfn: int) -> Iterable[tuple[Mm, Vma, int]]: ...
    def map_again(self, pfn: int) -> None: ...
    def remove(self, pfn: int) -> None: ...


class Holders(Protocol):
    """What else refers to a page by its frame: page cache, swap cache, known contents, huge page state."""

    def replace_cached(self, src: int, dst: int) -> None:
        """The page cache or the swap cache that holds ``src`` holds ``dst`` from now on, counters included."""

    def replace_cached_bulk(self, srcs: PFNS, dsts: PFNS) -> None:
        """The same for pages of files, none of them in the swap cache."""

    def pinned(self, pfns: PFNS) -> npt.NDArray[np.bool_] | None:
        """Which pages somebody works with right now, who would not know that they moved; None: none at all."""

    def mark_dirty(self, pfn: int) -> None:
        """A page of a file was written to through a mapping."""

    def move_content(self, src: int, dst: int) -> None:
        """The bytes of ``src`` are those of ``dst`` from now on."""

    def split_huge(self, pfn: int) -> bool:
        """Make small pages of an isolated huge one: whether it worked."""

    def free_huge(self, pfn: int) -> None:
        """Nobody maps a huge page any more."""

    def map_huge(self, pfn: int) -> None:
        """One more huge entry maps a huge page (page_add_anon_rmap, compound)."""

    def unmap_huge(self, pfn: int) -> None:
        """One huge entry less maps it (page_remove_rmap, compound)."""


@dataclass
class Outcome:
    """What a call of migrate_pages came to. ``failed`` is its result: folios that did not move, negative an errno.

    ``left`` are the pages that are still isolated, ``moved`` maps old frames to new ones.
    """

    failed: int = 0
    left: list[int] = field(default_factory=list)
    moved: dict[int, int] = field(default_factory=dict)


@dataclass
class _Stats:
    """Counts of one call (struct migrate_pages_stats), in base pages or in huge pages."""

    succeeded: int = 0
    failed_pages: int = 0
    thp_succeeded: int = 0
    thp_failed: int = 0
    thp_split: int = 0

    @property
    def traced(self) -> tuple[int, int, int, int, int]:
        """The counts as mm_migrate_pages has them."""
        return self.succeeded, self.failed_pages, self.thp_succeeded, self.thp_failed, self.thp_split


@dataclass(frozen=True)
class _Place:
    """One entry that maps a page: where it is, and what stood there."""

    mm: Mm
    vma: Vma
    vpn: int
    slot: int
    level: int
    pfn: int


class Migrate:
    """Moves pages. ``copy_ns`` is what copying a page costs, ``wait_writeback()`` lets writes end.

    Invariants: between two calls every isolated page is in ``NR_ISOLATED_*`` and in its caller's list, and no entry is
    a migration entry.
    """

    def __init__(
        self,
        pages: PageMap,
        mmu: Mmu,
        lru: Lru,
        rmap: ReverseMap,
        holders: Holders,
        page_alloc: PageAllocator,
        vmstat: VmStat,
        context: Context,
        mempolicy: Mempolicy,
        owner: OwnerTable | None = None,
        copy_ns: int = 0,
        wait_writeback: Callable[[], None] = lambda: None,
    ) -> None:
        self._pages = pages
        self._mmu = mmu
        self._lru = lru
        self._rmap = rmap
        self._holders = holders
        self._page_alloc = page_alloc
        self._vmstat = vmstat
        self._context = context
        self._mempolicy = mempolicy
        self._owner = owner
        self._copy_ns = copy_ns
        self._wait_writeback = wait_writeback
        self._no_batches = 0
        self._bulk = BulkMove(pages, mmu, lru, rmap, holders, page_alloc, vmstat, context, mempolicy, owner, copy_ns)

    # -- isolation ---------------------------------------------------------------------------------------

    @contextmanager
    def lru_cache_disabled(self) -> Iterator[None]:
        """Empty the per-CPU batches, and let none fill up (lru_cache_disable): a page in one cannot be isolated."""
        self._lru.drain_all()
        self._no_batches += 1
        try:
            yield
        finally:
            self._no_batches -= 1

    def nid(self, pfn: int) -> int:
        """The node of one page."""
        return self._mempolicy.nid_of_page(pfn)

    def head(self, pfn: int) -> int:
        """The first page of the block that a page is in."""
        return self._rmap.head(pfn)

    def heads(self, pfns: PFNS) -> PFNS:
        """``head`` of each."""
        return compound_heads(self._pages, pfns, self._vmstat.hpage_pmd_nr)

    def order(self, pfn: int) -> int:
        """The order of the block that begins at a page: 0, or that of a huge page."""
        return int(self._pages.order[pfn]) if int(self._pages.flags[pfn]) >> PG_HEAD & 1 else 0

    def isolate(self, pfn: int) -> bool:
        """Take a page off its LRU list, when it is on one (isolate_lru_page)."""
        if not int(self._pages.flags[pfn]) >> PG_LRU & 1:
            return False
        self._lru.remove(pfn)
        self._count_isolated(pfn, 1)
        return True

    def isolate_bulk(self, pfns: PFNS) -> npt.NDArray[np.bool_]:
        """``isolate`` of small pages, each there once: which were on a list."""
        taken: npt.NDArray[np.bool_] = self._pages.flags[pfns] & np.uint32(1 << PG_LRU) != 0
        found = pfns[taken]
        self._lru.remove_bulk(found)
        self._bulk.count_isolated(found)
        return taken

    def putback(self, pfns: Iterable[int]) -> None:
        """Put isolated pages back on their lists (putback_movable_pages)."""
        for pfn in pfns:
            self._count_isolated(pfn, -1)
            self._lru_add(pfn)

    def _count_isolated(self, pfn: int, sign: int) -> None:
        self._vmstat.mod_node(self.nid(pfn), self._isolated_item(pfn), sign << self.order(pfn))

    def _isolated_item(self, pfn: int) -> int:
        """Which gauge an isolated page is in."""
        anon = int(self._pages.flags[pfn]) >> PG_SWAPBACKED & 1
        return stats.NR_ISOLATED_ANON if anon else stats.NR_ISOLATED_FILE

    def _lru_add(self, pfn: int) -> None:
        self._lru.add(pfn)
        if self._no_batches:
            self._lru.drain_local()

    # -- migrate_pages -----------------------------------------------------------------------------------

    def migrate_pages(
        self, pfns: Sequence[int], new_page: Callable[[int], int], reason: int, *, may_split: bool = True
    ) -> Outcome:
        """Move isolated pages to frames that ``new_page(pfn)`` gives, or raises ENOMEM.

        A huge page that gets no frame is split and its small pages are moved, unless ``may_split`` is off. For want of
        a small page the call ends. Preconditions: all are isolated.
        """
        outcome, counts = Outcome(), _Stats()
        self._vmstat.trace.emit(ev.MM_MIGRATE_PAGES_START, MIGRATE_SYNC, reason)
        todo = list(pfns)
        splits: list[int] = []
        out_of_memory = False
        while todo and not out_of_memory:
            for at, src in enumerate(todo):
                order = self.order(src)
                if not self._written_back(src, reason):
                    counts.failed_pages += 1 << order
                    outcome.failed += 1
                    outcome.left.append(src)
                    continue
                try:
                    dst = new_page(src)
                except KernelError as error:
                    if order and may_split and self._split(src, splits, counts):
                        outcome.failed += 1
                        continue
                    counts.thp_failed += bool(order)
                    counts.failed_pages += 1 << order
                    outcome.failed = -error.errno
                    outcome.left += [*todo[at:], *splits]
                    out_of_memory = True
                    break
                outcome.moved[src] = dst
                self._move(src, dst, order, reason)
                counts.succeeded += 1 << order
                counts.thp_succeeded += bool(order)
            todo, splits = splits, []
        if not outcome.left:
            outcome.failed = 0
        self._count(counts)
        self._vmstat.trace.emit(ev.MM_MIGRATE_PAGES, *counts.traced, MIGRATE_SYNC, reason)
        return outcome

    def move_bulk(self, srcs: PFNS, dsts: PFNS, reason: int, *, wait: bool = True) -> list[int]:
        """Move isolated small pages, each to the frame that stands for it in ``dsts``; the places of those that did
        not: they are being written and are not waited for, or somebody works with them.

        Preconditions: all frames are of one node, and allocated.
        """
        mode = MIGRATE_SYNC if wait else MIGRATE_ASYNC
        trace = self._vmstat.trace
        trace.emit(ev.MM_MIGRATE_PAGES_START, mode, reason)
        left = self._move_bulk(srcs, dsts, reason, wait=wait)
        trace.emit(ev.MM_MIGRATE_PAGES, *_Stats(len(srcs) - len(left), len(left)).traced, mode, reason)
        return left

    def _move_bulk(self, srcs: PFNS, dsts: PFNS, reason: int, *, wait: bool) -> list[int]:
        done = self._bulk.move(srcs, dsts, reason, drain=self._no_batches > 0)
        if done.all():
            return []
        pinned = self._holders.pinned(srcs)
        left: list[int] = []
        moved = 0
        for at in np.flatnonzero(done == 0).tolist():
            src, dst = int(srcs[at]), int(dsts[at])
            if (pinned is not None and pinned[at]) or not self._may_move(src, reason, wait):
                left.append(at)
            else:
                self._move(src, dst, 0, reason)
                moved += 1
        self._vmstat.count(stats.PGMIGRATE_SUCCESS, moved)
        return left

    def move_many(self, pfns: PFNS, new_pages: Callable[[PFNS], PFNS], reason: int) -> list[int]:
        """Move isolated pages of which many can be moved at a time to frames that ``new_pages(pfns)`` gives, or some;
        the others are still isolated, in their order.
        """
        moved = self._bulk.is_simple(pfns)
        srcs = pfns[moved]
        dsts = new_pages(srcs) if len(srcs) else srcs
        if len(dsts):
            done = self._bulk.move(srcs[: len(dsts)], dsts, reason, drain=self._no_batches > 0) == 1
            self._page_alloc.free_pages_bulk(dsts[~done], 0)
            moved[moved] = np.concatenate((done, np.zeros(len(srcs) - len(dsts), dtype=np.bool_)))
        else:
            moved[:] = False
        found: list[int] = pfns[~moved].tolist()
        return found

    def _may_move(self, src: int, reason: int, wait: bool) -> bool:
        """Whether nothing writes the page, or has ended when that is waited for."""
        return not int(self._pages.flags[src]) >> PG_WRITEBACK & 1 or (wait and self._written_back(src, reason))

    def _written_back(self, src: int, reason: int) -> bool:
        """A page that is being written cannot move; only NUMA balancing does not wait for it (MIGRATE_ASYNC)."""
        if not int(self._pages.flags[src]) >> PG_WRITEBACK & 1:
            return True
        if reason != MR_NUMA_MISPLACED:
            self._wait_writeback()
        return not int(self._pages.flags[src]) >> PG_WRITEBACK & 1

    def _split(self, src: int, splits: list[int], counts: _Stats) -> bool:
        """Split a huge page that cannot move as one; the small pages are isolated as it was, but those nobody maps."""
        order, nid = self.order(src), self.nid(src)
        item = self._isolated_item(src)
        if not self._holders.split_huge(src):
            return False
        counts.thp_failed += 1
        counts.thp_split += 1
        mapped = np.flatnonzero(self._pages.mapcount[src : src + (1 << order)]) + src
        gone = (1 << order) - len(mapped)
        self._vmstat.mod_node(nid, item, -gone)
        counts.succeeded += gone
        splits.extend(mapped.tolist())
        return True

    def _count(self, counts: _Stats) -> None:
        for event, n in (
            (stats.PGMIGRATE_SUCCESS, counts.succeeded),
            (stats.PGMIGRATE_FAIL, counts.failed_pages),
            (stats.THP_MIGRATION_SUCCESS, counts.thp_succeeded),
            (stats.THP_MIGRATION_FAIL, counts.thp_failed),
            (stats.THP_MIGRATION_SPLIT, counts.thp_split),
        ):
            self._vmstat.count(event, n)

    def _move(self, src: int, dst: int, order: int, reason: int) -> None:
        """One page, from all its mappings to all those of the new one (migrate_folio_unmap, migrate_folio_move)."""
        places = self._unmap(src, order)
        self._copy(src, dst, order)
        self._lru_add(dst)
        if places:
            self._lru.drain_local()
        self._remap(src, dst, places)
        if self._owner is not None:
            self._copy_owner(src, dst, order, reason)
        self._count_isolated(src, -1)
        self._release(src, order)

    # -- unmapping ---------------------------------------------------------------------------------------

    def _unmap(self, src: int, order: int) -> list[_Place]:
        """Put migration entries in place of all mappings of a page (try_to_migrate)."""
        anon = int(self._pages.mapping[src]) > 0
        places = list(self._places(src, order))
        for place in places:
            entry = int(self._mmu.words[place.slot])
            exclusive = anon and bool(int(self._pages.flags[place.pfn]) >> PG_ANON_EXCLUSIVE & 1)
            waiting = migration_entry(entry, place.pfn, exclusive)
            self._mmu.words[place.slot] = waiting
            trace_points.migration_entry(self._vmstat.trace, place.vpn, waiting, order, set_=True, pmd=place.level > 0)
            self._mmu.flush_range(place.mm.id, place.vpn, place.vpn + (1 << order if place.level else 1))
            if entry & DIRTY:
                self._mark_dirty(src, anon)
            if place.level:
                self._holders.unmap_huge(place.pfn)
            else:
                self._rmap.remove(place.pfn)
            if self._locks(place):
                self._lru.mlock(np.array([src], dtype=np.int64), MUNLOCK)
        if anon:
            self._pages.flags[src : src + (1 << order)] &= ~np.uint32(1 << PG_ANON_EXCLUSIVE)
        return places

    def _places(self, src: int, order: int) -> Iterator[_Place]:
        """Every entry that maps a page of a block; a huge one counts once."""
        for pfn in range(src, src + (1 << order)):
            for mm, vma, vpn in self._rmap.walk(pfn) if pfn == src or self._pages.mapcount[pfn] else ():
                slot, level = self._mmu.leaf(mm.id, vpn)
                if pfn == src or not level:
                    yield _Place(mm, vma, vpn, slot, level, pfn)

    def _mark_dirty(self, src: int, anon: bool) -> None:
        if anon:
            self._pages.flags[src] |= np.uint32(1 << PG_DIRTY)
        elif not int(self._pages.flags[src]) >> PG_DIRTY & 1:
            self._holders.mark_dirty(src)

    def _locks(self, place: _Place) -> bool:
        """Whether a mapping holds the page in memory (mlock_vma_page, munlock_vma_page)."""
        if place.vma.flags & (VM_LOCKED | VM_SPECIAL) != VM_LOCKED:
            return False
        return bool(place.level) or not self.order(self._rmap.head(place.pfn))

    # -- the new page ------------------------------------------------------------------------------------

    def _copy(self, src: int, dst: int, order: int) -> None:
        """Give the new page content, place and state of the old one (migrate_folio)."""
        pages, size = self._pages, 1 << order
        self._context.charge(self._copy_ns * size)
        pages.index[dst : dst + size] = pages.index[src : src + size]
        pages.mapping[dst] = pages.mapping[src]
        pages.memcg[dst : dst + size] = pages.memcg[src]
        pages.charged_sections[dst >> SECTION_SHIFT] |= pages.memcg[src] != 0
        pages.memcg[src : src + size] = 0
        self._mempolicy.copy_cpupid(src, dst)
        flags = int(pages.flags[src])
        if pages.mapping[src] < 0 or (flags >> PG_SWAPCACHE & 1 and flags >> PG_SWAPBACKED & 1):
            self._holders.replace_cached(src, dst)
        pages.flags[dst] |= np.uint32(flags & COPIED_FLAGS)
        for page in range(size):
            content = int(pages.flags[src + page]) >> PG_CONTENT & 1
            if content:
                self._holders.move_content(src + page, dst + page)
        pages.flags[src] &= np.uint32(1 << PG_SWAPBACKED | 1 << PG_HEAD | 1 << PG_MLOCKED)

    def _remap(self, src: int, dst: int, places: list[_Place]) -> None:
        """Let entries of the new page take the place of migration entries (remove_migration_ptes)."""
        anon = int(self._pages.mapping[dst]) > 0
        dirty = bool(int(self._pages.flags[dst]) >> PG_DIRTY & 1)
        for place in places:
            pfn = dst + place.pfn - src
            entry = int(self._mmu.words[place.slot])
            if anon and swap_type(entry) != SWP_MIGRATION_READ:
                self._pages.flags[pfn] |= np.uint32(1 << PG_ANON_EXCLUSIVE)
            if place.level:
                self._holders.map_huge(pfn)
            else:
                self._rmap.map_again(pfn)
            found = restored_entry(entry, pfn, place.vma, dirty)
            found |= PSE if place.level else 0
            self._mmu.words[place.slot] = found
            order = self.order(dst)
            trace_points.migration_entry(self._vmstat.trace, place.vpn, found, order, set_=False, pmd=place.level > 0)
            if self._locks(place):
                self._lru.mlock(np.array([dst], dtype=np.int64), MLOCK_PAGE)
                self._lru.drain_local()

    def _copy_owner(self, src: int, dst: int, order: int, reason: int) -> None:
        """The new page was allocated by whoever allocated the old one (__folio_copy_owner)."""
        owner = self._owner
        assert owner is not None
        for table in owner_tables(owner):
            table[dst : dst + (1 << order)] = table[src]
        owner.migrate_reason[dst : dst + (1 << order)] = reason + 1

    def _release(self, src: int, order: int) -> None:
        """Free the old page."""
        if order:
            self._holders.free_huge(src)
            return
        self._pages.mapping[src] = 0
        self._pages.flags[src] = 0
        self._page_alloc.free_pages(src)
