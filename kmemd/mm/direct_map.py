"""How the direct map of memory is made of pages of each size (arch/x86/mm/init.c ``split_mem_range``,
arch/x86/mm/pat/set_memory.c ``direct_pages_count``).

Models boot's mapping of each range of memory and the large pages that it splits again to protect the kernel
image; with ``pdpe1gb`` whole GiBs are mapped as such. Later splits come from ``set_memory_*``: of a GiB all at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kmemd.mm.units import GIB, MIB, PAGE_SIZE

ISA_END = MIB
LARGE_PAGE = {"x86_64": 2 * MIB, "i386": 4 * MIB}
SPLIT_BY_IMAGE = {"x86_64": 6, "i386": 2}
"""Large pages that boot splits for the protections of the captured kernels' text and data; on x86_64 those of
the image's own mapping count, too."""
SPLIT_BY_IDT = {"x86_64": 2, "i386": 1}
"""As many with rodata=off."""
LABELS = {PAGE_SIZE: "DirectMap4k", 2 * MIB: "DirectMap2M", 4 * MIB: "DirectMap4M", GIB: "DirectMap1G"}


@dataclass(frozen=True)
class DirectMap:
    """Bytes of the direct map by page size, small pages first."""

    mapped: tuple[tuple[int, int], ...]

    @property
    def lines(self) -> tuple[tuple[str, int], ...]:
        """Labels and KiB as /proc/meminfo shows them (``arch_report_meminfo``)."""
        return tuple((LABELS[size], mapped >> 10) for size, mapped in self.mapped)

    def split(self, size: int, count: int = 1) -> DirectMap:
        """With some pages of a size made into small ones (``split_page_count``)."""
        small = dict(self.mapped)
        moved = min(size * count, small.get(size, 0))
        small[size] = small.get(size, 0) - moved
        small[PAGE_SIZE] = small.get(PAGE_SIZE, 0) + moved
        return DirectMap(tuple(small.items()))


def map_memory(
    arch: str, ranges: Iterable[tuple[int, int]], limit: int, *, gbpages: bool = False, rodata: bool = True
) -> DirectMap:
    """The direct map of memory ``ranges`` (bytes) below ``limit``, as it stands when boot is over.

    All of the first MiB is mapped, in small pages, whatever the firmware says of it.
    """
    size = LARGE_PAGE[arch]
    small, large, giant = ISA_END, 0, 0
    for start, end in ranges:
        start, end = max(start, ISA_END), min(end, limit)
        if start >= end:
            continue
        first, last = -(-start // size) * size, end // size * size
        whole = max(0, last - first)
        huge = max(0, last // GIB - -(-first // GIB)) * GIB if gbpages else 0
        giant += huge
        large += whole - huge
        small += end - start - whole
    split = min((SPLIT_BY_IMAGE if rodata else SPLIT_BY_IDT)[arch] * size, large)
    mapped = ((PAGE_SIZE, small + split), (size, large - split))
    return DirectMap((*mapped, (GIB, giant)) if gbpages else mapped)


def from_meminfo(meminfo: Mapping[str, int]) -> DirectMap | None:
    """The direct map that a machine's meminfo (in kB) tells of; None when it does not."""
    found = tuple((size, meminfo[label] << 10) for size, label in LABELS.items() if label in meminfo)
    return DirectMap(found) if found else None
