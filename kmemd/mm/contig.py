"""Ranges of pages too large for the page allocator's lists (mm/page_alloc.c ``alloc_contig_range``, page_isolation.c).

Models taking a range: its page blocks are set apart, what stands there moves away, and the free pages are taken; if any
of it fails the page blocks are put back. Giving a range back page by page, and blocks set aside before the page
allocator ran. Left out: dissolving huge pages of hugetlb that stand in the way, which makes a range fail; dropping
clean pages of files instead of moving them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from kmemd.core import trace_ids as ev
from kmemd.core.buddy import Buddy
from kmemd.core.compact import SYNC, Scanner
from kmemd.core.compact_free import FreeScanner
from kmemd.core.mmzone import MIGRATE_MOVABLE
from kmemd.core.page_ranges import PageRanges
from kmemd.core.pages import ALLOCATED, IN_BUDDY, PG_HEAD
from kmemd.core.trace import TraceLog
from kmemd.mm import gfp as g
from kmemd.mm.pace import pieces
from kmemd.mm.page_supply import PageSupply
from kmemd.steps import Steps

if TYPE_CHECKING:
    from kmemd.mm.migrate import Outcome

PFNS = npt.NDArray[np.int64]
MR_CONTIG_RANGE = 6
FREED_AT_ONCE = 1 << 13
GFP_TARGET = g.GFP_USER | g.F.MOVABLE | g.F.RETRY_MAYFAIL
"""What pages are moved to (``__alloc_contig_migrate_range``)."""


class Zone(Protocol):
    """What is asked of a zone."""

    index: int

    @property
    def nid(self) -> int: ...
    @property
    def start_pfn(self) -> int: ...
    @property
    def end_pfn(self) -> int: ...


class Migration(Protocol):
    """What moves pages (mm/migrate.py)."""

    def lru_cache_disabled(self) -> AbstractContextManager[None]: ...
    def isolate(self, pfn: int) -> bool: ...
    def isolate_bulk(self, pfns: PFNS) -> npt.NDArray[np.bool_]: ...
    def nid(self, pfn: int) -> int: ...
    def order(self, pfn: int) -> int: ...
    def move_bulk(self, srcs: PFNS, dsts: PFNS, reason: int, *, wait: bool = True) -> list[int]: ...
    def migrate_pages(self, pfns: Sequence[int], new_page: Callable[[int], int], reason: int) -> Outcome: ...
    def putback(self, pfns: Sequence[int]) -> None: ...


class Contig:
    """``pages_taken`` counts pages taken from free lists without an allocation event, beside those that the buddy
    system counts itself; ``migration()`` is None before there is anything to move.
    """

    def __init__(
        self,
        buddy: Buddy,
        zones: Sequence[Zone],
        page_alloc: PageSupply,
        scanner: Callable[[], Scanner | None] = lambda: None,
        migration: Callable[[], Migration | None] = lambda: None,
        trace: TraceLog | None = None,
    ) -> None:
        self._trace = trace
        self._buddy = buddy
        self._ranges = PageRanges(buddy)
        self._free = FreeScanner(buddy)
        self._zones = zones
        self._page_alloc = page_alloc
        self._scanner = scanner
        self._migration = migration
        self.pages_taken = 0

    # -- blocks of a size --------------------------------------------------------------------------------

    def alloc(self, order: int, nid: int) -> Steps[int | None]:
        """The first page of an aligned range of a node that could be had; None when there is none
        (alloc_contig_pages).
        """
        size = 1 << order
        self._buddy.drain_all()
        zones = list(reversed([zone for zone in self._zones if zone.nid == nid]))
        for zone in zones:
            for pfn in self._candidates(zone, size):
                if self._ranges.take_range(zone.index, pfn, pfn + size):
                    self.pages_taken += size
                    self.adopt(pfn, order)
                    return pfn
        for zone in zones:
            for pfn in self._candidates(zone, size):
                if (yield from self.alloc_contig_range(pfn, pfn + size, MIGRATE_MOVABLE)):
                    self._buddy.pages.meta[pfn : pfn + size] = 0
                    self.adopt(pfn, order)
                    return pfn
        return None

    @staticmethod
    def _candidates(zone: Zone, size: int) -> range:
        return range(-(-zone.start_pfn // size) * size, zone.end_pfn - size + 1, size)

    def free(self, pfn: int, order: int) -> Steps[None]:
        """Give every page of a block back (``free_contig_range``)."""
        pages = self._buddy.pages
        pages.flags[pfn] = 0
        pages.meta[pfn : pfn + (1 << order)] = ALLOCATED | MIGRATE_MOVABLE << 16
        yield from self.free_contig_range(pfn, 1 << order)

    def free_contig_range(self, pfn: int, pages: int) -> Steps[None]:
        """Give single pages of a range back."""
        for part in pieces(np.arange(pfn, pfn + pages, dtype=np.int64), FREED_AT_ONCE):
            self._page_alloc.free_pages_bulk(part, 0)
            yield

    def adopt(self, pfn: int, order: int) -> None:
        """Make pages that are on no list one allocated compound page (``prep_compound_gigantic_page``)."""
        self._ranges.mark_allocated(pfn, order, MIGRATE_MOVABLE)
        self._buddy.pages.flags[pfn] |= np.uint32(1 << PG_HEAD)

    def split(self, pfn: int, order: int, parts: int) -> list[int]:
        """Make compound pages of order ``parts`` of one; their first pages (``demote_free_huge_page``)."""
        heads = list(range(pfn, pfn + (1 << order), 1 << parts))
        for head in heads:
            self.adopt(head, parts)
        return heads

    # -- any range ---------------------------------------------------------------------------------------

    def alloc_contig_range(self, start: int, end: int, migratetype: int) -> Steps[bool]:
        """Take the pages ``[start, end)`` of a zone, as allocated single pages: whether they could be had.

        ``migratetype`` is that of their page blocks. What is in use and cannot move makes it fail, without effect but
        for what was moved. Between two steps the range is set apart: nobody else gets pages of it.
        """
        scanner, migration = self._scanner(), self._migration()
        size = 1 << self._buddy.pageblock_order
        zi = int(self._buddy.zone_of(start))
        low, high = start & -size, -(-end // size) * size
        if scanner is None or migration is None or not self._ranges.isolate_range(zi, low, high):
            return False
        try:
            self._buddy.drain_all()
            if scanner.unmovable(self._behind_free(low, start), end) >= 0:
                return False
            moved = yield from self._migrate_range(scanner, migration, start, end)
            self._trace_isolated(low, start, end)
            return moved and self._take(zi, low, start, end)
        finally:
            self._ranges.unisolate_range(zi, low, high, migratetype)

    def _trace_isolated(self, low: int, start: int, end: int) -> None:
        """Whether everything is free now, and if not, which page is in the way (test_pages_isolated)."""
        if self._trace is None or not self._trace.on(ev.TEST_PAGES_ISOLATED):
            return
        pages = self._buddy.pages
        first = pfn = self._block_at(low, start)
        while pfn < end and pages.kind[pfn] == IN_BUDDY:
            pfn += 1 << int(pages.order[pfn])
        self._trace.emit(ev.TEST_PAGES_ISOLATED, first, end, pfn)

    def _migrate_range(self, scanner: Scanner, migration: Migration, start: int, end: int) -> Steps[bool]:
        """Move what is in use to other places (``__alloc_contig_migrate_range``)."""
        size = 1 << self._buddy.pageblock_order
        with migration.lru_cache_disabled():
            pfn = start
            while pfn < end:
                stop = min((pfn & -size) + size, end)
                scanner.set_frontier([])
                found = scanner.isolate_migratepages_block(pfn, stop, 0, SYNC, True, True, False, True, False, True)
                heads = scanner.found[: scanner.blocks].copy()
                pfn = int(scanner.pfn)
                if found and not self._move(migration, heads[::-1].copy()):
                    return False
                yield
        return True

    def _move(self, migration: Migration, heads: PFNS) -> bool:
        nid = migration.nid(int(heads[0]))
        compound = self._buddy.pages.flags[heads] >> np.uint32(PG_HEAD) & np.uint32(1) == 1
        small, others = heads[~compound], heads[compound].tolist()
        migration.isolate_bulk(small)
        for head in others:
            migration.isolate(head)
        if len(small):
            targets = self._page_alloc.alloc_pages_bulk(GFP_TARGET, 0, len(small), nid)
            if len(targets) < len(small) or any(migration.nid(int(pfn)) != nid for pfn in (targets[0], targets[-1])):
                self._page_alloc.free_pages_bulk(targets, 0)
                others += small.tolist()
            else:
                stuck = migration.move_bulk(small, targets, MR_CONTIG_RANGE)
                self._page_alloc.free_pages_bulk(targets[stuck], 0)
                others += small[stuck].tolist()
        if not others:
            return True
        outcome = migration.migrate_pages(others, lambda pfn: self._target(migration, pfn), MR_CONTIG_RANGE)
        migration.putback(outcome.left)
        return not outcome.left

    def _target(self, migration: Migration, pfn: int) -> int:
        """Where a page goes (alloc_migration_target). ENOMEM."""
        order, nid = migration.order(pfn), migration.nid(pfn)
        if order:
            return self._page_alloc.alloc_pages(g.GFP_TRANSHUGE, order, nid)
        return self._page_alloc.alloc_pages(GFP_TARGET, 0, nid)

    def _take(self, zi: int, low: int, start: int, end: int) -> bool:
        """Take the free pages of a range, all or none (isolate_freepages_range)."""
        outer = self._block_at(low, start)
        out = np.zeros(end - outer + (1 << 11), dtype=np.int64)
        got = self._free.isolate_freepages_block(zi, outer, end, out, 0, 0, 1, True)
        taken = out[:got]
        whole = int(self._free.scan_pfn) >= end
        self._page_alloc.free_pages_bulk(taken[(taken < start) | (taken >= end)] if whole else taken, 0)
        return whole

    def _behind_free(self, low: int, start: int) -> int:
        """The end of the free block that reaches over a page from below; the page itself without one."""
        head = self._block_at(low, start)
        pages = self._buddy.pages
        free = head < start and pages.kind[head] == IN_BUDDY
        return head + (1 << int(pages.order[head])) if free else start

    def _block_at(self, low: int, start: int) -> int:
        """The head of the free block that a page is in; the page itself when it is in none."""
        pages = self._buddy.pages
        for order in range(11):
            head = start & -(1 << order)
            if head < low:
                break
            if pages.kind[head] == IN_BUDDY and head + (1 << int(pages.order[head])) > start:
                return head
        return start
