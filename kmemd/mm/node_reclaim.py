"""Reclaim inside a node before memory comes from a farther one (mm/vmscan.c ``node_reclaim``, vm.zone_reclaim_mode).

Models when the zone walk tries it. Left out: the reclaim itself, which ``reclaim`` stands for; where that frees too
little, it was in vain (zone_reclaim_failed).
"""

from __future__ import annotations

from collections.abc import Callable

from kmemd.core import stats
from kmemd.mm import gfp as g
from kmemd.mm.mmzone import Node
from kmemd.mm.vmstat import VmStat

RECLAIM_ZONE, RECLAIM_WRITE, RECLAIM_UNMAP = 1, 2, 4
RECLAIM_DISTANCE = 30
"""How far a node may be to count as near (node_reclaim_distance)."""


class NodeReclaim:
    """``mode()`` is the knob, ``ratios()`` the percentages of a node that stay page cache, and reclaimable slabs.

    ``reclaim(nid, order)`` tells how many pages it freed.
    """

    def __init__(
        self,
        nodes: list[Node],
        vmstat: VmStat,
        mode: Callable[[], int],
        ratios: Callable[[], tuple[int, int]],
        reclaim: Callable[[int, int], int],
    ) -> None:
        self._nodes = nodes
        self._vmstat = vmstat
        self._mode = mode
        self._ratios = ratios
        self._reclaim = reclaim

    @property
    def enabled(self) -> bool:
        """Whether the zone walk asks at all (node_reclaim_enabled)."""
        return bool(self._mode() & (RECLAIM_ZONE | RECLAIM_WRITE | RECLAIM_UNMAP))

    def allows(self, local: int, nid: int) -> bool:
        """Whether a node is near enough to one that is preferred (zone_allows_reclaim)."""
        return self._nodes[local].distance[nid] <= RECLAIM_DISTANCE

    def __call__(self, nid: int, gfp: int, order: int, here: int) -> None:
        """A zone of a node has too little for a request of a CPU on node ``here`` (node_reclaim)."""
        node = self._nodes[nid]
        min_unmapped_ratio, min_slab_ratio = self._ratios()
        managed = sum(zone.managed for zone in node.zones)
        enough_cache = self._reclaimable(node, self._mode()) > managed * min_unmapped_ratio // 100
        slabs = node.stat(stats.NR_SLAB_RECLAIMABLE_B) > managed * min_slab_ratio // 100
        if not (enough_cache or slabs) or not gfp & g.F.DIRECT_RECLAIM or (node.has_cpu and nid != here):
            return
        if self._reclaim(nid, order) < 1 << order:
            self._vmstat.count(stats.PGSCAN_ZONE_RECLAIM_FAILED)

    def _reclaimable(self, node: Node, mode: int) -> int:
        """Pages of files that could go (node_pagecache_reclaimable)."""
        if mode & RECLAIM_UNMAP:
            pages = node.stat(stats.NR_FILE_PAGES)
        else:
            listed = node.stat(stats.NR_INACTIVE_FILE) + node.stat(stats.NR_ACTIVE_FILE)
            pages = max(0, listed - node.stat(stats.NR_FILE_MAPPED))
        dirty = 0 if mode & RECLAIM_WRITE else node.stat(stats.NR_FILE_DIRTY)
        return max(0, pages - dirty)
