"""What SLUB depends on in a machine: CPUs, nodes, word and cache line, and the boot parameters of mm/slub.c.

The kernel's configuration is that of the captured ones: SLUB_CPU_PARTIAL, SLUB_STATS, SLUB_DEBUG, MEMCG_KMEM, and no
SLAB_MERGE_DEFAULT: caches are merged when the command line says ``slab_merge``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kmemd.core.mmzone import MAX_ORDER
from kmemd.mm.mmzone import PAGE_ALLOC_COSTLY_ORDER
from kmemd.mm.params import CommandLine
from kmemd.mm.slab_geometry import GeometryRules


class ZoneLike(Protocol):
    """A zone, as far as SLUB looks at it."""

    kind: int
    start_pfn: int
    spanned: int

    @property
    def managed(self) -> int:
        """Pages that the buddy system manages."""


class NodeLike(Protocol):
    """A node, as far as SLUB looks at it."""

    nid: int

    @property
    def zones(self) -> Sequence[ZoneLike]:
        """Its zones, the lowest first."""


@dataclass(frozen=True)
class SlubCosts:
    """Model time in ns of an allocation, of freeing, and of a trip through the slow path for a page."""

    alloc: int = 25
    free: int = 20
    slow: int = 150


@dataclass(frozen=True)
class SlubMachine:
    """A machine as SLUB sees it.

    ``cpu_nodes`` is the node of each CPU, ``zonelists`` the nodes by distance for each node, ``normal_zone``
    the kind of zone Normal. ``page_offset`` is the address of PFN 0, ``word`` and ``cache_line`` are bytes.
    ``numa``, ``memcg_kmem`` and ``merge_default`` stand for the configuration options.
    """

    cpu_nodes: Sequence[int]
    nodes: Sequence[NodeLike]
    zonelists: Sequence[Sequence[int]]
    zone_names: tuple[str, ...]
    page_offset: int
    word: int = 8
    cache_line: int = 64
    numa: bool = True
    memcg_kmem: bool = True
    merge_default: bool = False
    costs: SlubCosts = field(default_factory=SlubCosts)

    @property
    def normal_zone(self) -> int:
        """The kind of zone Normal."""
        return self.zone_names.index("Normal")

    def slab_nodes(self) -> list[int]:
        """Nodes with memory that the kernel has mapped (N_NORMAL_MEMORY)."""
        return self._nodes_up_to(self.normal_zone)

    def _nodes_up_to(self, kind: int) -> list[int]:
        return [node.nid for node in self.nodes if any(z.managed and z.kind <= kind for z in node.zones)]

    def node_order(self) -> list[list[list[int]]]:
        """``[zone kind][nid]``: nodes with such a zone or a lower one, the nearest first."""
        order = []
        for kind in range(len(self.zone_names)):
            allowed = set(self._nodes_up_to(kind))
            order.append([[nid for nid in row if nid in allowed] for row in self.zonelists])
        return order

    def memory_node_of_cpus(self) -> list[int]:
        """The node each CPU allocates from (``numa_mem_id``)."""
        usable = self.slab_nodes()
        return [next(nid for nid in self.zonelists[node] if nid in usable) for node in self.cpu_nodes]

    def spans(self) -> list[tuple[int, int, int]]:
        """``(start PFN, end PFN, nid)`` of every zone."""
        return [
            (zone.start_pfn, zone.start_pfn + zone.spanned, node.nid)
            for node in self.nodes
            for zone in node.zones
            if zone.spanned
        ]

    def rules(self, cmdline: CommandLine) -> GeometryRules:
        """The rules of geometry with ``slub_min_order=``, ``slub_max_order=`` and ``slub_min_objects=``."""
        return GeometryRules(
            cpus=len(self.cpu_nodes),
            word=self.word,
            cache_line=self.cache_line,
            slub_min_order=_number(cmdline, "slub_min_order", 0),
            slub_max_order=min(_number(cmdline, "slub_max_order", PAGE_ALLOC_COSTLY_ORDER), MAX_ORDER - 1),
            slub_min_objects=_number(cmdline, "slub_min_objects", 0),
        )

    def merges(self, cmdline: CommandLine) -> bool:
        """Whether caches are merged: the last of ``slab_merge`` and ``slab_nomerge`` on the command line."""
        merge = self.merge_default
        for name, _ in cmdline.pairs():
            if name in ("slab_nomerge", "slub_nomerge"):
                merge = False
            elif name in ("slab_merge", "slub_merge"):
                merge = True
        return merge


def _number(cmdline: CommandLine, name: str, default: int) -> int:
    value = cmdline.get(name) or ""
    return int(value) if value.isdigit() else default


__all__ = ["NodeLike", "SlubCosts", "SlubMachine", "ZoneLike"]
