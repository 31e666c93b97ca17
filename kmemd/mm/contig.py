"""Ranges of pages too large for the page allocator's lists (mm/page_alloc.c ``alloc_contig_pages``, mm/hugetlb.c).

Models: taking an aligned range that is wholly free, giving one back page by page, and blocks set aside before the page
allocator ran. Left out: moving pages away from a range that is not free, so that such a range is passed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from kmemd.core.buddy import MIGRATE_MOVABLE, Buddy
from kmemd.core.pages import ALLOCATED, PG_HEAD
from kmemd.mm.page_supply import PageSupply


class Zone(Protocol):
    """What is asked of a zone."""

    index: int

    @property
    def nid(self) -> int: ...
    @property
    def start_pfn(self) -> int: ...
    @property
    def end_pfn(self) -> int: ...


class Contig:
    """``pages_taken`` counts pages taken from free lists without an allocation event."""

    def __init__(self, buddy: Buddy, zones: Sequence[Zone], page_alloc: PageSupply) -> None:
        self._buddy = buddy
        self._zones = zones
        self._page_alloc = page_alloc
        self.pages_taken = 0

    def alloc(self, order: int, nid: int) -> int | None:
        """The first page of an aligned range of a node in which every page is free; None when there is none."""
        size = 1 << order
        self._buddy.drain_all()
        for zone in reversed([zone for zone in self._zones if zone.nid == nid]):
            first = -(-zone.start_pfn // size) * size
            for pfn in range(first, zone.end_pfn - size + 1, size):
                if self._buddy.take_range(zone.index, pfn, pfn + size):
                    self.pages_taken += size
                    self.adopt(pfn, order)
                    return pfn
        return None

    def free(self, pfn: int, order: int) -> None:
        """Give every page of a block back (``free_contig_range``)."""
        pages = self._buddy.pages
        pages.flags[pfn] = 0
        pages.meta[pfn : pfn + (1 << order)] = ALLOCATED | MIGRATE_MOVABLE << 16
        self._page_alloc.free_pages_bulk(np.arange(pfn, pfn + (1 << order), dtype=np.int64), 0)

    def adopt(self, pfn: int, order: int) -> None:
        """Make pages that are on no list one allocated compound page (``prep_compound_gigantic_page``)."""
        self._buddy.mark_allocated(pfn, order, MIGRATE_MOVABLE)
        self._buddy.pages.flags[pfn] |= np.uint32(1 << PG_HEAD)

    def split(self, pfn: int, order: int, parts: int) -> list[int]:
        """Make compound pages of order ``parts`` of one; their first pages (``demote_free_huge_page``)."""
        heads = list(range(pfn, pfn + (1 << order), 1 << parts))
        for head in heads:
            self.adopt(head, parts)
        return heads
