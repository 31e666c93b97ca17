"""``/proc/buddyinfo`` and ``/proc/pagetypeinfo``: free blocks per order (mm/vmstat.c ``frag_show``,
``pagetypeinfo_show``)."""

from __future__ import annotations

from collections.abc import Iterator

from kmemd.kernel import Kernel
from kmemd.mm.mmzone import MIGRATETYPE_NAMES, Node, Zone
from kmemd.views.tree import proc

FREE_COUNT_CAP = 100_000
"""The kernel stops counting a free list here and prints ``>``."""


@proc.file("buddyinfo")
def buddyinfo(kernel: Kernel) -> Iterator[str]:
    """Free blocks of each order, a line per populated zone."""
    for zone in kernel.zones:
        if zone.populated:
            counts = "".join(f"{count:6d} " for count in zone.nr_free)
            yield f"Node {zone.nid}, zone {zone.name:>8} {counts}\n"


@proc.file("pagetypeinfo", mode=0o400)
def pagetypeinfo(kernel: Kernel) -> Iterator[str]:
    """Free blocks per order and migratetype, and page blocks per migratetype, for each node with memory."""
    for node in kernel.nodes:
        if node.has_memory:
            yield from _node(kernel, node)


def _node(kernel: Kernel, node: Node) -> Iterator[str]:
    yield f"Page block order: {kernel.pageblock_order}\n"
    yield f"Pages per block:  {1 << kernel.pageblock_order}\n\n"
    zones = [zone for zone in node.zones if zone.populated]
    yield f"{'Free pages count per migrate type at order':<43} "
    yield "".join(f"{order:6d} " for order in range(len(zones[0].nr_free))) + "\n"
    for zone in zones:
        yield from _free_lines(zone)
    yield from _block_lines("Number of blocks type ", zones)


def _free_lines(zone: Zone) -> Iterator[str]:
    for migratetype, name in enumerate(MIGRATETYPE_NAMES):
        counts = "".join(_capped(count) for count in zone.nr_free_type(migratetype))
        yield f"Node {zone.nid:4d}, zone {zone.name:>8}, type {name:>12} {counts}\n"


def _capped(count: int) -> str:
    return f"{count:6d} " if count < FREE_COUNT_CAP else f">{FREE_COUNT_CAP:6d} "


def _block_lines(title: str, zones: list[Zone]) -> Iterator[str]:
    names = "".join(f"{name:>12} " for name in MIGRATETYPE_NAMES)
    yield f"\n{title:<23}{names}\n"
    for zone in zones:
        counts = "".join(f"{count:12d} " for count in zone.pageblock_counts())
        yield f"Node {zone.nid}, zone {zone.name:>8} {counts}\n"
