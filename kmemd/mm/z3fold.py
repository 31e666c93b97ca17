"""z3fold: at most three compressed pages to a page (mm/z3fold.c).

As zbud, with a third place in the middle, which moves when its neighbours go and room is to be won. An object that is
too large to share its page has it for itself. Left out: lists per CPU, and moving objects to other pages.
"""

from __future__ import annotations

import errno

from kmemd.errors import KernelError
from kmemd.mm.units import PAGE_SIZE
from kmemd.mm.zbud import CHUNK_SHIFT, CHUNK_SIZE, BuddiedPage, Zbud

HEADER_CHUNKS = 2
"""``struct z3fold_header`` takes more than 64 bytes."""
TOTAL_CHUNKS = PAGE_SIZE >> CHUNK_SHIFT
MOST_SHARED = PAGE_SIZE - HEADER_CHUNKS * CHUNK_SIZE - CHUNK_SIZE
BIG_CHUNK_GAP = 3
"""Chunks that must be won for the middle object to be moved."""
FIRST, MIDDLE, LAST = range(3)


class Z3fold(Zbud):
    """One pool. ``start`` of a page is the chunk where its middle object begins."""

    type = "z3fold"
    places = 3

    def _check_size(self, size: int) -> None:
        if size > PAGE_SIZE:
            raise KernelError(errno.ENOSPC, f"{size} bytes are more than a page")

    def _place(self, page: BuddiedPage, chunks: int) -> int:
        """The place that suits (``get_free_buddy``)."""
        if page.chunks[MIDDLE]:
            before = page.start - HEADER_CHUNKS
            return FIRST if page.parts[FIRST] is None and chunks <= before else LAST
        if page.parts[FIRST] is None:
            return FIRST
        if page.parts[LAST] is None:
            return LAST
        page.start = page.chunks[FIRST] + HEADER_CHUNKS
        return MIDDLE

    def _room(self, page: BuddiedPage) -> int | None:
        """The larger of the gaps beside a middle object, or all that is left; None for a page that is full."""
        first, middle, last = page.chunks
        if first > MOST_SHARED >> CHUNK_SHIFT or all(page.parts):
            return None
        if middle:
            before = 0 if first else page.start - HEADER_CHUNKS
            after = 0 if last else TOTAL_CHUNKS - page.start - middle
            return max(before, after)
        return TOTAL_CHUNKS - HEADER_CHUNKS - first - last

    def _freed(self, page: BuddiedPage) -> None:
        """Move the middle object to where it leaves one gap (``z3fold_compact_page``)."""
        first, middle, last = page.chunks
        if not middle:
            return
        if not first and not last:
            page.parts[FIRST], page.parts[MIDDLE] = page.parts[MIDDLE], None
            page.chunks[FIRST], page.chunks[MIDDLE] = middle, 0
        elif first and not last and page.start - first - HEADER_CHUNKS >= BIG_CHUNK_GAP:
            page.start = first + HEADER_CHUNKS
        elif last and not first and TOTAL_CHUNKS - last - page.start - middle >= BIG_CHUNK_GAP:
            page.start = TOTAL_CHUNKS - last - middle
