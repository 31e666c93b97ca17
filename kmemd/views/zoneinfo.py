"""``/proc/zoneinfo``: watermarks, reserves, counters and per-CPU lists of every zone (mm/vmstat.c
``zoneinfo_show_print``). Unpopulated zones are listed too: they have a protection."""

from __future__ import annotations

from collections.abc import Iterator

from kmemd.core import stats
from kmemd.kernel import Kernel
from kmemd.mm.mmzone import Node, Zone
from kmemd.views.tree import proc


@proc.file("zoneinfo")
def zoneinfo(kernel: Kernel) -> Iterator[str]:
    """All zones of all nodes, a block of lines each."""
    for node in kernel.nodes:
        first = next((zone for zone in node.zones if zone.populated), None)
        for zone in node.zones:
            yield f"Node {zone.nid}, zone {zone.name:>8}"
            if zone is first:
                yield from _node_stats(kernel, node)
            yield from _sizes(kernel, zone)
            if zone.populated:
                yield from _zone_stats(kernel, zone)
                yield from _pagesets(kernel, zone)
                yield _tail(node, zone)
            yield "\n"


def _node_stats(kernel: Kernel, node: Node) -> Iterator[str]:
    yield "\n  per-node stats"
    for name, value in kernel.vmstat.node_lines(node.nid):
        yield f"\n      {name:<12} {value}"


def _sizes(kernel: Kernel, zone: Zone) -> Iterator[str]:
    yield f"\n  pages free     {kernel.vmstat.zone_stat[zone.index, stats.NR_FREE_PAGES]}"
    for name, pages in (
        ("boost", zone.boost),
        ("min", zone.watermark_min + zone.boost),
        ("low", zone.watermark_low + zone.boost),
        ("high", zone.watermark_high + zone.boost),
        ("spanned", zone.spanned),
        ("present", zone.present),
        ("managed", zone.managed),
        ("cma", zone.cma_pages),
    ):
        yield f"\n        {name:<8} {pages}"
    yield f"\n        protection: ({', '.join(str(pages) for pages in zone.protection)})"


def _zone_stats(kernel: Kernel, zone: Zone) -> Iterator[str]:
    storage = kernel.user.swap_storage
    for item, name in enumerate(stats.ZONE_STAT_NAMES):
        if item == stats.NR_FREE_CMA_PAGES and storage.zsmalloc_loaded:
            yield f"\n      {'nr_zspages':<12} {storage.zspages()[zone.index]}"
        yield f"\n      {name:<12} {kernel.vmstat.zone_stat[zone.index, item]}"
    if kernel.vmstat.numa:
        for item, name in enumerate(stats.NUMA_STAT_NAMES):
            yield f"\n      {name:<12} {kernel.vmstat.numa_stat[zone.index, item]}"


def _pagesets(kernel: Kernel, zone: Zone) -> Iterator[str]:
    yield "\n  pagesets"
    for cpu in kernel.online_cpus:
        count, high, batch = zone.pageset(cpu)
        yield f"\n    cpu: {cpu}"
        yield f"\n              count: {count}"
        yield f"\n              high:  {high}"
        yield f"\n              batch: {batch}"
        yield f"\n  vm stats threshold: {zone.stat_threshold}"


def _tail(node: Node, zone: Zone) -> str:
    return f"\n  node_unreclaimable:  {int(node.unreclaimable)}\n  start_pfn:           {zone.start_pfn}"
