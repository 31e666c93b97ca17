"""What the boot memory allocator hands to the page allocator: nodes, zones and the free page ranges.

Models the result of ``free_area_init`` and ``memblock_free_all`` (mm/page_alloc.c, mm/memblock.c) as
plain values; how they come about is the business of ``memblock`` and ``zone_sizes``. It leaves out
``ZONE_DEVICE``, which has no memory of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

X86_64_ZONES = ("DMA", "DMA32", "Normal", "Movable")
I386_ZONES = ("DMA", "Normal", "HighMem", "Movable")
ZONE_NAMES = {"x86_64": X86_64_ZONES, "i386": I386_ZONES}


@dataclass(frozen=True)
class ZoneLayout:
    """One zone as it stands when the page allocator takes over. All figures are pages.

    Invariants: ``managed <= present <= spanned``; ``free`` holds ascending, disjoint PFN ranges
    ``[lo, hi)`` inside ``[start_pfn, start_pfn + spanned)``, of ``managed`` pages in all but
    the huge pages that boot set aside. ``online`` are the
    PFN ranges in the zone's span that have struct pages (whole sections). An empty zone is all zeros.
    """

    nid: int
    name: str
    start_pfn: int = 0
    spanned: int = 0
    present: int = 0
    managed: int = 0
    free: tuple[tuple[int, int], ...] = ()
    online: tuple[tuple[int, int], ...] = ()

    @property
    def end_pfn(self) -> int:
        """The first PFN behind the zone."""
        return self.start_pfn + self.spanned


@dataclass(frozen=True)
class NodeLayout:
    """One NUMA node: its CPUs, its distance to every node (itself 10), and its zones in Linux's order."""

    nid: int
    cpus: tuple[int, ...]
    distance: tuple[int, ...]
    zones: tuple[ZoneLayout, ...] = field(default=())

    @property
    def present(self) -> int:
        """Pages of memory in the node."""
        return sum(zone.present for zone in self.zones)
