"""Which page frames belong to which zone (``free_area_init`` and its helpers, mm/page_alloc.c).

Models the architecture's limits (``zone_sizes_init`` in arch/x86/mm/init.c), ``kernelcore=`` and
``movablecore=`` (``find_zone_movable_pfns_for_nodes``) and the estimate of usable pages that sizes the
boot-time hash tables. It leaves out mirrored memory and movable_node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kmemd.mm.layout import MAX_LOW_PFN_32, STRUCT_PAGE_SIZE
from kmemd.mm.mmzone_layout import ZONE_NAMES
from kmemd.mm.params import CommandLine, memparse
from kmemd.mm.units import GIB, MIB, PAGE_SHIFT

MAX_ORDER_NR_PAGES = 1 << 10
MAX_DMA_PFN = (16 * MIB) >> PAGE_SHIFT
MAX_DMA32_PFN = (4 * GIB) >> PAGE_SHIFT

Ranges = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class ZoneSpan:
    """A zone's place: PFNs, and pages present."""

    name: str
    start_pfn: int = 0
    spanned: int = 0
    present: int = 0


def zone_limits(arch: str, max_pfn: int) -> list[tuple[int, int]]:
    """Lowest and highest possible PFN of each zone but Movable, in zone order; empty when low == high."""
    low = min(max_pfn, MAX_LOW_PFN_32)
    if arch == "i386":
        tops = [min(MAX_DMA_PFN, low), low, max_pfn]
    else:
        tops = [min(MAX_DMA_PFN, max_pfn), min(MAX_DMA32_PFN, max_pfn), max_pfn]
    limits, start = [], 0
    for top in tops:
        limits.append((start, max(top, start)))
        start = max(top, start)
    return limits


def movable_zone_limits(limits: Ranges) -> tuple[int, int]:
    """The highest zone that has any page: Movable memory is taken from there."""
    return next((lo, hi) for lo, hi in reversed(limits) if hi > lo)


def _requested(cmdline: CommandLine, name: str, total: int) -> int:
    value = cmdline.get(name)
    if not value:
        return 0
    size, rest = memparse(value)
    if rest.startswith("%"):
        return total * 100 * size // 10000
    return size >> 12


def _required_kernelcore(cmdline: CommandLine, total: int) -> int:
    """Pages that must stay out of Movable; 0 when there is no Movable zone."""
    kernelcore = _requested(cmdline, "kernelcore", total)
    movablecore = _requested(cmdline, "movablecore", total)
    if movablecore:
        movablecore = min(total, -(-movablecore // MAX_ORDER_NR_PAGES) * MAX_ORDER_NR_PAGES)
        kernelcore = max(kernelcore, total - movablecore)
    return 0 if kernelcore >= total else kernelcore


def movable_start_pfns(nodes: Mapping[int, Ranges], limits: Ranges, cmdline: CommandLine) -> dict[int, int]:
    """The first PFN of Movable on each node that has it.

    Kernel memory is spread evenly over the nodes; what a node lacks, the others give in further passes.
    """
    populated = {nid: ranges for nid, ranges in nodes.items() if ranges}
    total = sum(hi - lo for ranges in populated.values() for lo, hi in ranges)
    required = _required_kernelcore(cmdline, total)
    if not required:
        return {}
    usable_start, _ = movable_zone_limits(limits)
    starts = dict.fromkeys(populated, 0)
    usable_nodes = len(populated)
    while True:
        share = required // usable_nodes
        for nid, ranges in populated.items():
            if required < share:
                share = required // usable_nodes
            starts[nid], required = _kernelcore_of_node(ranges, starts[nid], usable_start, share, required)
        usable_nodes -= 1
        if not (usable_nodes and required > usable_nodes):
            break
    return _aligned_starts(populated, starts)


def _kernelcore_of_node(ranges: Ranges, movable: int, usable_start: int, share: int, required: int) -> tuple[int, int]:
    """One node's part of a pass: (where its Movable would start, what is still required of all)."""
    remaining = share
    for start, end in ranges:
        start = max(start, movable)
        if start >= end:
            continue
        if start < usable_start:
            pages = min(end, usable_start) - start
            remaining -= min(pages, remaining)
            required -= min(pages, required)
            if end <= usable_start:
                movable = end
                continue
            start = usable_start
        pages = min(end - start, remaining)
        movable = start + pages
        required -= min(required, pages)
        remaining -= pages
        if not remaining:
            break
    return movable, required


def _aligned_starts(nodes: Mapping[int, Ranges], starts: Mapping[int, int]) -> dict[int, int]:
    aligned = {nid: -(-pfn // MAX_ORDER_NR_PAGES) * MAX_ORDER_NR_PAGES for nid, pfn in starts.items()}
    return {nid: pfn for nid, pfn in aligned.items() if 0 < pfn < nodes[nid][-1][1]}


def zone_spans(arch: str, ranges: Ranges, limits: Ranges, movable_start: int) -> list[ZoneSpan]:
    """The zones of one node whose memory is ``ranges``, Movable last, in Linux's order."""
    names = ZONE_NAMES[arch]
    if not ranges:
        return [ZoneSpan(name) for name in names]
    node_start, node_end = ranges[0][0], ranges[-1][1]
    bounds = []
    for low, high in limits:
        start, end = (min(max(pfn, low), high) for pfn in (node_start, node_end))
        if movable_start:
            if start < movable_start < end:
                end = movable_start
            elif start >= movable_start:
                start = end
        bounds.append((start, end))
    movable_end = min(node_end, movable_zone_limits(limits)[1])
    bounds.append((movable_start, movable_end) if movable_start else (0, 0))
    return [_span(name, start, end, ranges) for name, (start, end) in zip(names, bounds, strict=True)]


def _span(name: str, start: int, end: int, ranges: Ranges) -> ZoneSpan:
    present = sum(max(0, min(hi, end) - max(lo, start)) for lo, hi in ranges)
    return ZoneSpan(name, start, end - start, present) if end > start else ZoneSpan(name)


def nr_kernel_pages(arch: str, nodes: Sequence[Sequence[ZoneSpan]]) -> tuple[int, int]:
    """(pages the kernel may use directly, all pages), each without its memory map: what sizes hash tables."""
    kernel = total = 0
    page = STRUCT_PAGE_SIZE[arch]
    for zones in nodes:
        for zone in zones:
            sparse = zone.spanned > zone.present + (zone.present >> 4)
            memmap = -(-(zone.present if sparse else zone.spanned) * page // 4096)
            free = zone.present
            if zone.name == "HighMem":
                kernel -= memmap if kernel > memmap * 2 else 0
            else:
                free -= memmap if free >= memmap else 0
                kernel += free
            total += free
    return kernel, total


def hash_entries(
    arch: str, kernel_pages: int, scale: int, low_limit: int = 0, high_limit: int = 0, all_pages: int = 0
) -> int:
    """Buckets of a boot-time hash table, one per ``2**scale`` bytes (``alloc_large_system_hash``)."""
    bucket = 8 if arch == "x86_64" else 4
    entries = -(-kernel_pages // 256) * 256
    if arch == "x86_64" and not high_limit:
        adapt = (64 << 30) >> 12
        while adapt < entries:
            adapt <<= 2
            scale += 1
    entries = entries >> (scale - 12) if scale > 12 else entries << (12 - scale)
    entries = max(entries, 4096 // bucket)
    entries = 1 << (entries - 1).bit_length()
    limit = high_limit or ((all_pages or kernel_pages) << 12 >> 4) // bucket
    entries = min(max(entries, low_limit), limit, 0x80000000)
    return 1 << (entries.bit_length() - 1)
