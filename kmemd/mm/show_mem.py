"""The memory report of allocation failures and OOM kills (lib/show_mem.c, mm/page_alloc.c ``__show_free_areas``,
mm/hugetlb.c ``hugetlb_show_meminfo_node``, mm/swap_state.c ``show_swap_cache_info``).

Left out: the kernel's count of pages with hardware errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from kmemd.core import stats
from kmemd.core.context import Context
from kmemd.core.mmzone import MAX_ORDER, NR_MIGRATETYPES
from kmemd.mm.mmzone import Node, Zone
from kmemd.mm.printk import KERN_WARNING, Printk
from kmemd.mm.units import KIB_PER_PAGE
from kmemd.mm.vmstat import VmStat

TYPE_LETTERS = "UMEHCI"

_NODE_FIELDS = (
    ("active_anon:", stats.NR_ACTIVE_ANON),
    ("inactive_anon:", stats.NR_INACTIVE_ANON),
    ("active_file:", stats.NR_ACTIVE_FILE),
    ("inactive_file:", stats.NR_INACTIVE_FILE),
    ("unevictable:", stats.NR_UNEVICTABLE),
    ("isolated(anon):", stats.NR_ISOLATED_ANON),
    ("isolated(file):", stats.NR_ISOLATED_FILE),
    ("mapped:", stats.NR_FILE_MAPPED),
    ("dirty:", stats.NR_FILE_DIRTY),
    ("writeback:", stats.NR_WRITEBACK),
    ("shmem:", stats.NR_SHMEM),
    ("shmem_thp: ", stats.NR_SHMEM_THPS),
    ("shmem_pmdmapped: ", stats.NR_SHMEM_PMDMAPPED),
    ("anon_thp: ", stats.NR_ANON_THPS),
    ("writeback_tmp:", stats.NR_WRITEBACK_TEMP),
)


def kb(pages: int) -> int:
    """Pages in KiB."""
    return pages * KIB_PER_PAGE


class ShowMem:
    """Logs the report: ``show_mem(highest)`` for requests up to that zone of a node.

    ``hugetlb(nid)`` gives the lines on a node's pools of huge pages, ``swap()`` the free and all pages of swap areas.
    """

    def __init__(
        self,
        zones: list[Zone],
        nodes: list[Node],
        vmstat: VmStat,
        context: Context,
        printk: Printk,
        hugetlb: Callable[[int], Iterable[str]] = lambda nid: (),
        swap: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        self._zones = zones
        self._nodes = nodes
        self._vmstat = vmstat
        self._context = context
        self._printk = printk
        self._hugetlb = hugetlb
        self._swap = swap

    def __call__(self, highest: int, nodemask: int | None = None) -> None:
        """Log what memory there is and how it is used; of the nodes in ``nodemask`` alone, when there is one."""
        for line in self._lines(highest, nodemask):
            self._printk.log(KERN_WARNING, line)

    def _lines(self, highest: int, nodemask: int | None) -> Iterator[str]:
        nodes = [node for node in self._nodes if nodemask is None or nodemask >> node.nid & 1]
        nids = {node.nid for node in nodes}
        zones = [zone for zone in self._zones if zone.nid in nids]
        yield from mem_info(zones, nodes, self._vmstat, self._context.cpu, highest)
        for node in nodes:
            yield from self._hugetlb(node.nid)
        yield f"{self._vmstat.node_total(stats.NR_FILE_PAGES)} total pagecache pages"
        yield f"{self._vmstat.node_total(stats.NR_SWAPCACHE)} pages in swap cache"
        free, total = self._swap()
        yield f"Free swap  = {kb(free)}kB"
        yield f"Total swap = {kb(total)}kB"
        yield from ram_info(self._zones, sum(zone.cma_pages for zone in self._zones))


def mem_info(zones: list[Zone], nodes: list[Node], vmstat: VmStat, cpu: int, highest: int) -> Iterator[str]:
    """The lines on the given nodes' memory, for requests up to zone ``highest`` of a node."""
    yield "Mem-Info:"
    shown = [zone for zone in zones if zone.populated and zone.kind <= highest]
    yield from _totals(shown, vmstat)
    for node in nodes:
        if any(zone.managed and zone.kind <= highest for zone in node.zones):
            yield _node_line(node)
    for zone in shown:
        yield _zone_line(zone, cpu)
        yield "lowmem_reserve[]: " + " ".join(str(pages) for pages in zone.protection)
    for zone in shown:
        yield _free_list_line(zone)


class HugePages(Protocol):
    """A pool of huge pages: counts by node, and the bytes of a page."""

    nr_node: list[int]
    surplus_node: list[int]
    free_lists: list[list[int]]

    @property
    def size(self) -> int: ...


def hugetlb_lines(pools: Iterable[HugePages], nid: int) -> Iterator[str]:
    """A node's line on each pool."""
    for pool in pools:
        yield (
            f"Node {nid} hugepages_total={pool.nr_node[nid]} hugepages_free={len(pool.free_lists[nid])} "
            f"hugepages_surp={pool.surplus_node[nid]} hugepages_size={pool.size >> 10}kB"
        )


def ram_info(zones: Iterable[Zone], cma: int) -> Iterator[str]:
    """The closing lines: how much memory the machine has."""
    populated = [zone for zone in zones if zone.populated]
    total = sum(zone.present for zone in populated)
    yield f"{total} pages RAM"
    yield f"{sum(zone.present for zone in populated if zone.is_highmem)} pages HighMem/MovableOnly"
    yield f"{total - sum(zone.managed for zone in populated)} pages reserved"
    yield f"{cma} pages cma reserved"


def _totals(zones: list[Zone], vmstat: VmStat) -> Iterator[str]:
    node, zone = vmstat.node_total, vmstat.zone_total
    yield (
        f"active_anon:{node(stats.NR_ACTIVE_ANON)} inactive_anon:{node(stats.NR_INACTIVE_ANON)} "
        f"isolated_anon:{node(stats.NR_ISOLATED_ANON)}"
    )
    yield (
        f" active_file:{node(stats.NR_ACTIVE_FILE)} inactive_file:{node(stats.NR_INACTIVE_FILE)} "
        f"isolated_file:{node(stats.NR_ISOLATED_FILE)}"
    )
    yield (
        f" unevictable:{node(stats.NR_UNEVICTABLE)} dirty:{node(stats.NR_FILE_DIRTY)} "
        f"writeback:{node(stats.NR_WRITEBACK)}"
    )
    yield (
        f" slab_reclaimable:{node(stats.NR_SLAB_RECLAIMABLE_B)} "
        f"slab_unreclaimable:{node(stats.NR_SLAB_UNRECLAIMABLE_B)}"
    )
    yield f" mapped:{node(stats.NR_FILE_MAPPED)} shmem:{node(stats.NR_SHMEM)} pagetables:{node(stats.NR_PAGETABLE)}"
    yield f" sec_pagetables:{node(stats.NR_SECONDARY_PAGETABLE)} bounce:{zone(stats.NR_BOUNCE)}"
    yield f" kernel_misc_reclaimable:{node(stats.NR_KERNEL_MISC_RECLAIMABLE)}"
    yield (
        f" free:{zone(stats.NR_FREE_PAGES)} free_pcp:{sum(z.pcp_pages for z in zones)} "
        f"free_cma:{zone(stats.NR_FREE_CMA_PAGES)}"
    )


def _node_line(node: Node) -> str:
    words = " ".join(f"{label}{kb(node.stat(item))}kB" for label, item in _NODE_FIELDS)
    return (
        f"Node {node.nid} {words} kernel_stack:{node.stat(stats.NR_KERNEL_STACK_KB)}kB "
        f"pagetables:{kb(node.stat(stats.NR_PAGETABLE))}kB "
        f"sec_pagetables:{kb(node.stat(stats.NR_SECONDARY_PAGETABLE))}kB "
        f"all_unreclaimable? {'yes' if node.unreclaimable else 'no'}"
    )


def _zone_line(zone: Zone, cpu: int) -> str:
    boost = zone.boost
    sizes = (
        ("free", zone.free_pages, "kB"),
        ("boost", boost, "kB"),
        ("min", zone.watermark_min + boost, "kB"),
        ("low", zone.watermark_low + boost, "kB"),
        ("high", zone.watermark_high + boost, "kB"),
        ("reserved_highatomic", zone.nr_reserved_highatomic, "KB"),
        ("active_anon", zone.stat(stats.NR_ZONE_ACTIVE_ANON), "kB"),
        ("inactive_anon", zone.stat(stats.NR_ZONE_INACTIVE_ANON), "kB"),
        ("active_file", zone.stat(stats.NR_ZONE_ACTIVE_FILE), "kB"),
        ("inactive_file", zone.stat(stats.NR_ZONE_INACTIVE_FILE), "kB"),
        ("unevictable", zone.stat(stats.NR_ZONE_UNEVICTABLE), "kB"),
        ("writepending", zone.stat(stats.NR_ZONE_WRITE_PENDING), "kB"),
        ("present", zone.present, "kB"),
        ("managed", zone.managed, "kB"),
        ("mlocked", zone.stat(stats.NR_MLOCK), "kB"),
        ("bounce", zone.stat(stats.NR_BOUNCE), "kB"),
        ("free_pcp", zone.pcp_pages, "kB"),
        ("local_pcp", zone.pageset(cpu)[0], "kB"),
        ("free_cma", zone.stat(stats.NR_FREE_CMA_PAGES), "kB"),
    )
    return f"Node {zone.nid} {zone.name} " + " ".join(f"{name}:{kb(pages)}{unit}" for name, pages, unit in sizes)


def _free_list_line(zone: Zone) -> str:
    by_type = [zone.nr_free_type(mt) for mt in range(NR_MIGRATETYPES)]
    words = []
    for order, count in enumerate(zone.nr_free):
        letters = "".join(TYPE_LETTERS[mt] for mt in range(NR_MIGRATETYPES) if by_type[mt][order])
        words.append(f"{count}*{kb(1 << order)}kB " + (f"({letters}) " if count else ""))
    total = sum(count << order for order, count in enumerate(zone.nr_free[:MAX_ORDER]))
    return f"Node {zone.nid} {zone.name}: " + "".join(words) + f"= {kb(total)}kB"
