"""What boot takes of physical memory before the page allocator runs (arch/x86/kernel/setup.c, mm/sparse.c).

From the firmware's map and the nodes it makes the reservations in the order in which x86 Linux 6.1 makes them, and
from those the zones with their free ranges. The sizes are those of the captured kernels; ``docs/fidelity.md``
lists them. What boot gives back before ``init`` runs (the initrd, init code, the gaps between
the kernel's sections) is free from the start. It leaves out KASLR, crash kernels and EFI.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kmemd.mm.hugetlb_boot import PMD_ORDER, PUD_ORDER, BootParameters, reserve_gigantic
from kmemd.mm.layout import MAX_LOW_PFN_32, STRUCT_PAGE_SIZE
from kmemd.mm.memblock import Memblock
from kmemd.mm.mmzone_layout import NodeLayout, ZoneLayout
from kmemd.mm.params import CommandLine
from kmemd.mm.units import GIB, KIB, MIB, PAGE_SIZE
from kmemd.mm.zone_sizes import (
    MAX_DMA32_PFN,
    ZoneSpan,
    hash_entries,
    movable_start_pfns,
    nr_kernel_pages,
    zone_limits,
    zone_spans,
)

LOW_RESERVED = MIB
"""The first MiB is never given out (``reserve_real_mode`` and friends)."""
NODE_DATA_SIZE = 20 * KIB
SWIOTLB_SIZE = 64 * MIB
SWIOTLB_SLOTS_SIZE = 768 * KIB
"""24 bytes for each 2 KiB slot of the bounce buffer."""
PERCPU_PAGES = {"x86_64": 51, "i386": 30}
"""First chunk per CPU: static, reserved and dynamic part."""
BRK_SIZE = {"x86_64": 48 * KIB, "i386": 0}
"""Early page tables, right behind the kernel image."""
EARLY_SIZE = {"x86_64": 64 * KIB, "i386": 56 * KIB}
"""Section arrays, pageblock flags, ACPI tables and page tables of a small machine."""
EARLY_NUMA_SIZE = 16 * KIB
PAGE_TABLE_FREE_GIB = 16
"""The direct map of this many GiB is in EARLY_SIZE; each further GiB takes one page."""
LATE_IMAGE_PAGES = {"x86_64": (796 + 2040 + 312) // 4, "i386": 372 // 4}
"""Init code and the gaps between the kernel's sections, given back only before the first process runs."""
INITRD_PAGES = {"x86_64": 1432 // 4, "i386": 1484 // 4}
"""The initrd, at the end of low memory: given back once it is unpacked, after the watermarks were first set."""
SECTION_SIZE = 128 * MIB
SECTION_PAGES = SECTION_SIZE // PAGE_SIZE


@dataclass(frozen=True)
class KernelImage:
    """Physical placement of the kernel. ``parts``: (name in iomem, start, last byte); ``kept``: what stays."""

    parts: tuple[tuple[str, int, int], ...]
    kept: tuple[tuple[int, int], ...]


KERNEL_IMAGES = {
    "x86_64": KernelImage(
        (
            ("Kernel code", 0x1000000, 0x16011C7),
            ("Kernel rodata", 0x1800000, 0x19B1FFF),
            ("Kernel data", 0x1A00000, 0x1B2217F),
            ("Kernel bss", 0x1BF6000, 0x1FFFFFF),
        ),
        ((0x1000000, 0x1602000), (0x1800000, 0x19B2000), (0x1A00000, 0x1B2B000), (0x1BF6000, 0x2000000)),
    ),
    "i386": KernelImage(
        (
            ("Kernel code", 0x1000000, 0x12888DF),
            ("Kernel rodata", 0x1289000, 0x13F1FFF),
            ("Kernel data", 0x13F2000, 0x14A977F),
            ("Kernel bss", 0x1511000, 0x1706FFF),
        ),
        ((0x1000000, 0x14B1000), (0x1511000, 0x1707000)),
    ),
}


@dataclass(frozen=True)
class NodeMemory:
    """A node before its zones are known: memory as byte ranges, CPUs, distances."""

    nid: int
    ranges: tuple[tuple[int, int], ...]
    cpus: tuple[int, ...]
    distance: tuple[int, ...]


@dataclass(frozen=True)
class HashTable:
    """A boot-time hash table. ``early`` ones are in the reserved memory, others are vmalloc areas."""

    name: str
    entries: int
    size: int
    early: bool


def memory_block_size(end_pfn: int) -> int:
    """Bytes of a block that memory hotplug handles: 2 GiB from 64 GiB on, else a section (probe_memory_block_size)."""
    return 2 * GIB if end_pfn * PAGE_SIZE >= 64 * GIB else SECTION_SIZE


@dataclass(frozen=True)
class BootMemory:
    """Everything known about memory when the page allocator takes over."""

    memblock: Memblock
    nodes: tuple[NodeLayout, ...]
    hash_tables: tuple[HashTable, ...]
    kernel_pages: int
    late: tuple[tuple[int, int], ...] = ()
    """Pages that the page allocator gets last, as (PFN, pages)."""
    gigantic: tuple[int, ...] = ()
    """Huge pages too large for the page allocator, by their first PFN: managed, and in use from the start."""

    def late_tables_kb(self, arch: str) -> int:
        """KiB of the VFS hash tables that a machine with several nodes takes from the page allocator."""
        if len(self.nodes) == 1:
            return 0
        tables = hash_tables(arch, self.kernel_pages, self.kernel_pages, numa=True)
        return sum(table.size for table in tables if not table.early) >> 10


def setup_memory(arch: str, nodes: Sequence[NodeMemory], cmdline: CommandLine, *, gbpages: bool = False) -> BootMemory:
    """Lay out the machine: reservations, zones, and the pages that go to the page allocator."""
    memblock = Memblock()
    for node in nodes:
        for start, end in node.ranges:
            memblock.add(start, _mem_limit(arch, end, cmdline), node.nid)
    pfns = {node.nid: memblock.node_pfn_ranges(node.nid) for node in nodes}
    limits = zone_limits(arch, max(hi for ranges in pfns.values() for _, hi in ranges))
    movable = movable_start_pfns(pfns, limits, cmdline)
    spans = [zone_spans(arch, pfns[node.nid], limits, movable.get(node.nid, 0)) for node in nodes]
    kernel_pages, all_pages = nr_kernel_pages(arch, spans)
    tables = hash_tables(arch, kernel_pages, all_pages, numa=len(nodes) > 1)
    populated = [nid for nid, ranges in pfns.items() if ranges]
    sizes = (PAGE_SIZE << PMD_ORDER[64], *((PAGE_SIZE << PUD_ORDER,) if gbpages else ()))
    huge = BootParameters(cmdline, sizes, populated)
    gigantic = _reserve(memblock, arch, nodes, tables, huge)
    layouts = tuple(
        NodeLayout(node.nid, node.cpus, node.distance, _zones(memblock, node.nid, zones, gigantic))
        for node, zones in zip(nodes, spans, strict=True)
    )
    late = late_pages(arch, memblock) + tuple((pfn, 1 << PUD_ORDER) for pfn in gigantic)
    return BootMemory(memblock, layouts, tables, kernel_pages, late, gigantic)


def late_pages(arch: str, memblock: Memblock) -> tuple[tuple[int, int], ...]:
    """The pages of the kernel image and of the initrd that are free when boot is over and not before."""
    limit = MAX_LOW_PFN_32 * PAGE_SIZE if arch == "i386" else 4 * GIB
    end = max((min(region.end, limit) for region in memblock.memory if region.start < limit), default=0)
    initrd = INITRD_PAGES[arch]
    return ((KERNEL_IMAGES[arch].kept[0][0] // PAGE_SIZE, LATE_IMAGE_PAGES[arch]), (end // PAGE_SIZE - initrd, initrd))


def _mem_limit(arch: str, end: int, cmdline: CommandLine) -> int:
    """The end of a range under ``mem=``; without PAE, i386 ends at 4 GiB."""
    limit = cmdline.size("mem") or 1 << 52
    return min(end, limit, 4 * GIB) if arch == "i386" else min(end, limit)


def _zones(memblock: Memblock, nid: int, spans: Sequence[ZoneSpan], gigantic: Sequence[int]) -> tuple[ZoneLayout, ...]:
    zones = []
    for span in spans:
        free = memblock.free_pfns(span.start_pfn, span.start_pfn + span.spanned, nid)
        huge = sum(span.start_pfn <= pfn < span.start_pfn + span.spanned for pfn in gigantic)
        managed = sum(hi - lo for lo, hi in free) + (huge << PUD_ORDER)
        online = memblock.online_pfns(span.start_pfn, span.start_pfn + span.spanned, nid, SECTION_PAGES)
        zones.append(ZoneLayout(nid, span.name, span.start_pfn, span.spanned, span.present, managed, free, online))
    return tuple(zones)


def hash_tables(arch: str, kernel_pages: int, all_pages: int, numa: bool) -> tuple[HashTable, ...]:
    """The large tables by Linux's scales; with several nodes those of the VFS are spread by vmalloc."""
    bucket = 8 if arch == "x86_64" else 4
    early = not (numa and arch == "x86_64")
    wanted = (
        ("Dentry cache", 13, 0, early),
        ("Inode-cache", 14, 0, early),
        ("stackdepot", 14, 1 << 20, True),
        ("Mount-cache", 19, 0, False),
        ("Mountpoint-cache", 19, 0, False),
    )
    tables = []
    for name, scale, high, is_early in wanted:
        low = 1 << 12 if high else 0
        entries = hash_entries(arch, kernel_pages, scale, low, high, all_pages)
        tables.append(HashTable(name, entries, entries * bucket, is_early))
    return tuple(tables)


def _reserve(
    memblock: Memblock,
    arch: str,
    nodes: Sequence[NodeMemory],
    tables: Sequence[HashTable],
    huge: BootParameters,
) -> tuple[int, ...]:
    """Make boot's reservations, in its order; the gigantic pages among them."""
    if arch == "i386":
        memblock.current_limit = MAX_LOW_PFN_32 * PAGE_SIZE
    populated = [node for node in nodes if memblock.node_pfn_ranges(node.nid)]
    memblock.reserve(0, LOW_RESERVED, "low memory")
    for start, end in KERNEL_IMAGES[arch].kept:
        memblock.reserve(start, end, "kernel image")
    image_end = KERNEL_IMAGES[arch].kept[-1][1]
    memblock.reserve(image_end, image_end + BRK_SIZE[arch], "brk")
    top = max(region.end for region in memblock.memory)
    _reserve_early(memblock, arch, populated, top)
    if arch == "x86_64":
        for node in populated:
            memblock.alloc(NODE_DATA_SIZE, "node data", nid=node.nid)
    for node in populated:
        _reserve_memmap(memblock, arch, node)
    for node in nodes:
        if node.cpus:
            memblock.alloc(len(node.cpus) * PERCPU_PAGES[arch] * PAGE_SIZE, "percpu", nid=node.nid)
    gigantic = reserve_gigantic(memblock, huge, [node.nid for node in populated])
    for table in tables:
        if table.early:
            memblock.alloc(table.size, f"{table.name} hash table")
    if arch == "x86_64" and top > MAX_DMA32_PFN * PAGE_SIZE:
        memblock.alloc(SWIOTLB_SIZE, "swiotlb", limit=4 * GIB)
        memblock.alloc(SWIOTLB_SLOTS_SIZE, "swiotlb slots")
    return gigantic


def _reserve_early(memblock: Memblock, arch: str, nodes: Sequence[NodeMemory], top: int) -> None:
    size = EARLY_SIZE[arch]
    if len(nodes) > 1:
        memblock.alloc(EARLY_NUMA_SIZE, "page tables", nid=nodes[0].nid)
    if arch == "x86_64":
        size += max(0, -(-top // GIB) - PAGE_TABLE_FREE_GIB) * PAGE_SIZE
    memblock.alloc(size, "early allocations")


def _reserve_memmap(memblock: Memblock, arch: str, node: NodeMemory) -> None:
    """struct page for every page of the sections that the node's memory touches."""
    sections = memblock.online_pfns(0, 1 << 52, node.nid, SECTION_PAGES)
    size = sum(hi - lo for lo, hi in sections) * STRUCT_PAGE_SIZE[arch]
    memblock.alloc(size, "memory map", align=2 * MIB, nid=node.nid)
