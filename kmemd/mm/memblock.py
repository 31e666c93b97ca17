"""The boot memory allocator: which physical memory there is and which of it is taken (mm/memblock.c).

Regions are byte ranges ``[start, end)``. Allocation is top-down, as on x86, and prefers a node. It
leaves out mirrored, hot-pluggable and nomap memory. Ranges are few, so plain lists serve.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass

from kmemd.mm.units import PAGE_SHIFT, PAGE_SIZE


@dataclass(frozen=True)
class Region:
    """A byte range. ``owner`` says in words what a reserved one holds."""

    start: int
    end: int
    nid: int = 0
    owner: str = ""

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start


class Memblock:
    """Memory and reservations before the page allocator exists.

    Invariants: both lists are sorted by address; memory regions are disjoint; reserved ones may touch.
    """

    def __init__(self) -> None:
        self.memory: list[Region] = []
        self.reserved: list[Region] = []
        self.current_limit = 1 << 52

    def add(self, start: int, end: int, nid: int) -> None:
        """Tell of usable memory."""
        if end > start:
            bisect.insort(self.memory, Region(start, end, nid), key=lambda region: region.start)

    def reserve(self, start: int, end: int, owner: str) -> None:
        """Take an exact range, whether or not it is memory."""
        if end > start:
            bisect.insort(self.reserved, Region(start, end, owner=owner), key=lambda region: (region.start, region.end))

    def release(self, start: int, end: int) -> None:
        """Give a range back: reservations are cut to what lies outside it."""
        kept: list[Region] = []
        for region in self.reserved:
            if region.end <= start or region.start >= end:
                kept.append(region)
                continue
            if region.start < start:
                kept.append(Region(region.start, start, owner=region.owner))
            if region.end > end:
                kept.append(Region(end, region.end, owner=region.owner))
        self.reserved = kept

    def alloc(self, size: int, owner: str, align: int = PAGE_SIZE, nid: int | None = None, limit: int = 0) -> int:
        """Take ``size`` bytes at the highest free address below ``limit``, from node ``nid`` if it has them.

        Returns the address, or -1 when nothing fits anywhere.
        """
        top = min(limit or self.current_limit, self.current_limit)
        for wanted in (nid, None) if nid is not None else (None,):
            found = self._find(size, align, wanted, top)
            if found >= 0:
                self.reserve(found, found + size, owner)
                return found
        return -1

    def _find(self, size: int, align: int, nid: int | None, top: int) -> int:
        for lo, hi in reversed(list(self.free_ranges(nid))):
            start = (min(hi, top) - size) // align * align
            if start >= lo:
                return start
        return -1

    def free_ranges(self, nid: int | None = None) -> Iterator[tuple[int, int]]:
        """Memory that nobody reserved, ascending, as byte ranges."""
        reserved = iter(self.reserved)
        taken = next(reserved, None)
        for region in self.memory:
            if nid is not None and region.nid != nid:
                continue
            start = region.start
            while taken is not None and taken.end <= start:
                taken = next(reserved, None)
            while taken is not None and taken.start < region.end:
                if taken.start > start:
                    yield start, taken.start
                start = max(start, taken.end)
                if taken.end >= region.end:
                    break
                taken = next(reserved, None)
            if start < region.end:
                yield start, region.end

    def free_pfns(self, lo_pfn: int, hi_pfn: int, nid: int) -> tuple[tuple[int, int], ...]:
        """Whole free pages of a node between two PFNs, as ascending PFN ranges."""
        ranges = []
        for start, end in self.free_ranges(nid):
            lo = max(-(-start >> PAGE_SHIFT), lo_pfn)
            hi = min(end >> PAGE_SHIFT, hi_pfn)
            if lo < hi:
                ranges.append((lo, hi))
        return tuple(ranges)

    def online_pfns(self, lo_pfn: int, hi_pfn: int, nid: int, section: int) -> tuple[tuple[int, int], ...]:
        """PFN ranges between two PFNs whose sections (of ``section`` pages) hold any memory of the node."""
        ranges: list[tuple[int, int]] = []
        for low, high in self.node_pfn_ranges(nid):
            low, high = low // section * section, -(-high // section) * section
            low, high = max(low, lo_pfn), min(high, hi_pfn)
            if ranges and low <= ranges[-1][1]:
                low, high = ranges.pop()[0], max(high, low)
            if low < high:
                ranges.append((low, high))
        return tuple(ranges)

    def headless_blocks(self, size: int) -> list[int]:
        """The first PFNs of aligned blocks of ``size`` pages that begin outside memory and hold some."""
        ranges = [(-(-region.start >> PAGE_SHIFT), region.end >> PAGE_SHIFT) for region in self.memory]
        heads = {low // size * size for low, _ in ranges}
        return sorted(head for head in heads if not any(low <= head < high for low, high in ranges))

    def node_pfn_ranges(self, nid: int) -> list[tuple[int, int]]:
        """The node's memory in whole pages."""
        return [
            (-(-region.start >> PAGE_SHIFT), region.end >> PAGE_SHIFT) for region in self.memory if region.nid == nid
        ]
