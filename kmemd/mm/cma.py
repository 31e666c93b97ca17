"""Areas from which large contiguous blocks can be had at any time (mm/cma.c, kernel/dma/contiguous.c, mm/cma_sysfs.c).

Models the area that ``cma=SIZE[@BASE[-LIMIT]]`` reserves, whose page blocks hold movable pages until somebody needs the
space; its bitmap, the search with alignment, and the counters. Left out: areas of device trees and of each node.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kmemd.core import stats
from kmemd.core.buddy import Buddy
from kmemd.core.mmzone import MIGRATE_CMA
from kmemd.core.page_ranges import PageRanges
from kmemd.mm.contig import Contig
from kmemd.mm.mmzone import Zone
from kmemd.mm.params import memparse
from kmemd.mm.units import MIB, PAGE_SHIFT, PAGE_SIZE
from kmemd.mm.vmstat import VmStat
from kmemd.steps import Steps, finish

MAX_ALIGN_ORDER = 8
"""Blocks are aligned to their size up to this order (CONFIG_CMA_ALIGNMENT)."""
FOUR_GIB = 1 << 32
_OPTION = re.compile(r"([0-9a-fA-FxX]+[KMGTkmgt]?)(?:@([0-9a-fA-FxX]+[KMGTkmgt]?)(?:-([0-9a-fA-FxX]+[KMGTkmgt]?))?)?$")


@dataclass
class CmaArea:
    """One area. ``used`` has a flag for each page; ``given`` are all runs in use, ``held`` those that somebody took
    through debugfs.
    """

    name: str
    base: int
    used: npt.NDArray[np.bool_]
    succeeded: int = 0
    failed: int = 0
    given: list[tuple[int, int]] = field(default_factory=list)
    held: list[tuple[int, int]] = field(default_factory=list)

    @property
    def pages(self) -> int:
        """How large it is."""
        return len(self.used)

    def holds(self, pfn: int) -> bool:
        """Whether a page is of the area."""
        return self.base <= pfn < self.base + self.pages

    def max_chunk(self) -> int:
        """The longest run of pages that nobody has (cma_maxchunk_get)."""
        edges = np.flatnonzero(np.diff(np.concatenate(([True], self.used, [True])).astype(np.int8)))
        return int((edges[1::2] - edges[0::2]).max()) if len(edges) else 0


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for, in bytes."""

    size: int
    base: int = 0
    limit: int = 0


def parse_option(text: str | None) -> Wanted | None:
    """``cma=``; None without one, for nonsense and for size 0."""
    found = _OPTION.match(text or "")
    if found is None:
        return None
    size, base, limit = (memparse(part)[0] if part else 0 for part in found.groups())
    if base and not limit:
        limit = base + size
    return Wanted(size, base, limit) if size else None


def place(wanted: Wanted, zones: Sequence[Zone], block: int) -> tuple[Zone, int, int] | None:
    """Where the area goes: zone, first page, pages. Above 4 GiB from below if there is room, else from above
    (cma_declare_contiguous).
    """
    pages = -(-wanted.size // PAGE_SIZE // block) * block
    least = -(-(wanted.base >> PAGE_SHIFT) // block) * block
    most = wanted.limit >> PAGE_SHIFT or 1 << 52
    found: list[tuple[int, Zone]] = []
    high: list[tuple[int, Zone]] = []
    for zone in zones:
        if zone.is_highmem or zone.name == "Movable":
            continue
        for start, end in zone.free_ranges:
            last = (min(end, most) - pages) & -block
            if last >= max(start, least):
                found.append((max(-(-max(start, least) // block) * block if wanted.base else last, least), zone))
            above = -(-max(start, FOUR_GIB >> PAGE_SHIFT, least) // block) * block
            if above + pages <= min(end, most):
                high.append((above, zone))
    if not found and not high:
        return None
    base, zone = min(high, key=lambda one: one[0]) if high and not wanted.base else max(found, key=lambda one: one[0])
    return zone, base, pages


class Cma:
    """All areas; ``reserve`` makes them at boot. ``contig`` is there when the first block is asked for.

    Invariants: a page block of an area is MIGRATE_CMA; ``used`` pages are allocated.
    """

    def __init__(self, buddy: Buddy, vmstat: VmStat) -> None:
        self._buddy = buddy
        self._ranges = PageRanges(buddy)
        self._vmstat = vmstat
        self.contig: Contig | None = None
        self.areas: list[CmaArea] = []

    def reserve(self, wanted: Wanted, zones: Sequence[Zone], name: str = "reserved") -> CmaArea | None:
        """Set an area aside; None when there is no room (dma_contiguous_reserve, cma_init_reserved_areas)."""
        found = place(wanted, zones, 1 << self._buddy.pageblock_order)
        if found is None:
            return None
        zone, base, pages = found
        if not self._ranges.isolate_range(zone.index, base, base + pages):
            return None
        self._ranges.unisolate_range(zone.index, base, base + pages, MIGRATE_CMA)
        zone.cma_pages += pages
        area = CmaArea(name, base, np.zeros(pages, dtype=np.bool_))
        self.areas.append(area)
        return area

    def use(self, contig: Contig) -> None:
        """From now on blocks can be had."""
        self.contig = contig

    @property
    def total_pages(self) -> int:
        """totalcma_pages."""
        return sum(area.pages for area in self.areas)

    def alloc(self, area: CmaArea, pages: int, align_order: int = 0) -> int | None:
        """``alloc_steps`` at once."""
        return finish(self.alloc_steps(area, pages, align_order))

    def alloc_steps(self, area: CmaArea, pages: int, align_order: int = 0) -> Steps[int | None]:
        """The first of ``pages`` contiguous pages, allocated one by one; None when there is no such run (cma_alloc).

        The bitmap has them from the start, as what others take meanwhile must be elsewhere.
        """
        assert self.contig is not None, "areas are used after boot"
        size = 1 << min(align_order, MAX_ALIGN_ORDER)
        at = self._next_free(area, 0, pages, size)
        while at is not None:
            pfn = area.base + at
            area.used[at : at + pages] = True
            area.given.append((pfn, pages))
            got = False
            try:
                got = yield from self.contig.alloc_contig_range(pfn, pfn + pages, MIGRATE_CMA)
            finally:
                if not got:
                    area.used[at : at + pages] = False
                    area.given.remove((pfn, pages))
            if got:
                area.succeeded += pages
                self._vmstat.count(stats.CMA_ALLOC_SUCCESS)
                return pfn
            at = self._next_free(area, at + size, pages, size)
        area.failed += pages
        self._vmstat.count(stats.CMA_ALLOC_FAIL)
        return None

    @staticmethod
    def _next_free(area: CmaArea, start: int, pages: int, size: int) -> int | None:
        """The next aligned place with so many free pages (bitmap_find_next_zero_area_off)."""
        first = -(-(area.base + start) // size) * size - area.base
        while first + pages <= area.pages:
            taken = np.flatnonzero(area.used[first : first + pages])
            if not len(taken):
                return first
            first = -(-(area.base + first + int(taken[-1]) + 1) // size) * size - area.base
        return None

    def release(self, pfn: int, pages: int) -> bool:
        """``release_steps`` at once."""
        return finish(self.release_steps(pfn, pages))

    def release_steps(self, pfn: int, pages: int) -> Steps[bool]:
        """Give a block back (cma_release); False when it is of no area."""
        area = next((area for area in self.areas if area.holds(pfn)), None)
        if area is None or self.contig is None:
            return False
        yield from self.contig.free_contig_range(pfn, pages)
        area.used[pfn - area.base : pfn - area.base + pages] = False
        run = next((first, count) for first, count in area.given if first <= pfn < first + count)
        area.given.remove(run)
        if pages < run[1]:
            area.given.append((pfn + pages, run[1] - pages))
        return True

    def hold(self, area: CmaArea, pfn: int, pages: int) -> None:
        """Whoever wrote to debugfs has a block (cma_alloc_mem)."""
        area.held.append((pfn, pages))

    def drop(self, area: CmaArea, pages: int) -> Steps[None]:
        """Give so many pages of these back, the latest first (cma_free_mem)."""
        while pages > 0 and area.held:
            pfn, count = area.held.pop()
            freed = min(count, pages)
            if freed < count:
                area.held.append((pfn + freed, count - freed))
            yield from self.release_steps(pfn, freed)
            pages -= freed

    def check(self) -> None:
        """Bitmaps say what was given, and page blocks are of the type."""
        for area in self.areas:
            assert int(area.used.sum()) == sum(pages for _, pages in area.given), f"{area.name}: bitmap"
            shift = self._buddy.pageblock_order
            types = self._buddy.block_type[area.base >> shift : area.base + area.pages >> shift]
            assert (types == MIGRATE_CMA).all(), f"{area.name}: a page block has another type"


def reserved_line(area: CmaArea) -> str:
    """What the kernel says at boot."""
    return f"cma: Reserved {area.pages * PAGE_SIZE // MIB} MiB at {area.base << PAGE_SHIFT:#018x}"
