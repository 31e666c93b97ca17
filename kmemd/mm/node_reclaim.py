"""Reclaim inside a node before memory comes from a farther one (mm/vmscan.c ``node_reclaim``, vm.zone_reclaim_mode).

Models when the zone walk tries it. Left out: the reclaim itself, which ``reclaim`` stands for; where that frees too
little, it was in vain (zone_reclaim_failed).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kmemd.core import stats
from kmemd.core.buddy import Buddy
from kmemd.mm import gfp as g
from kmemd.mm.mmzone import Node, Zone
from kmemd.mm.page_request import SUSPENDED, Request
from kmemd.mm.vmstat import VmStat

RECLAIM_ZONE, RECLAIM_WRITE, RECLAIM_UNMAP = 1, 2, 4
RECLAIM_DISTANCE = 30
"""How far a node may be to count as near (node_reclaim_distance)."""
MARGIN = 2048
"""More pages than a CPU's list takes at once."""


class NodeReclaim:
    """``mode()`` is the knob, ``ratios()`` the percentages of a node that stay page cache, and reclaimable slabs.

    ``reclaim(nid, order)`` tells how many pages it freed, or is ``SUSPENDED``: the walk is to be made again, and goes
    on where it was.
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
        self._tried: tuple[int, set[int]] = (0, set())

    @property
    def enabled(self) -> bool:
        """Whether the zone walk asks at all (node_reclaim_enabled)."""
        return bool(self._mode() & (RECLAIM_ZONE | RECLAIM_WRITE | RECLAIM_UNMAP))

    def allows(self, local: int, nid: int) -> bool:
        """Whether a node is near enough to one that is preferred (zone_allows_reclaim)."""
        return self._nodes[local].distance[nid] <= RECLAIM_DISTANCE

    @staticmethod
    def roomy(request: Request, flags: int, zone: Zone, buddy: Buddy, blocks: int) -> bool:
        """Whether so many blocks can be taken from the first zone without anybody being asked."""
        mark = zone.watermark_high + zone.boost + (blocks << request.order) + MARGIN
        return bool(buddy.watermark_ok(zone.index, request.order, mark, request.highest, flags))

    def before_walk(
        self, request: Request, flags: int, zones: Iterable[Zone], buddy: Buddy, who: tuple[int, int]
    ) -> bool:
        """Zones that the walk would pass over for want of pages let their node reclaim first. False: not done yet.

        ``who`` asks: a pid, and the node of its CPU.
        """
        pid, here = who
        tried, self._tried = self._tried[1] if self._tried[0] == pid else set(), (0, set())
        preferred = None
        for zone in zones:
            preferred = preferred or zone
            mark = (zone.watermark_min, zone.watermark_low, zone.watermark_high)[flags & 3] + zone.boost
            if buddy.watermark_ok(zone.index, request.order, mark, request.highest, flags):
                return True
            if zone.index not in tried and self.allows(preferred.nid, zone.nid):
                if not self(zone.nid, request.gfp, request.order, here):
                    self._tried = pid, tried
                    return False
                tried.add(zone.index)
        return True

    def __call__(self, nid: int, gfp: int, order: int, here: int) -> bool:
        """A zone of a node has too little for a request of a CPU on node ``here`` (node_reclaim). False: suspended."""
        node = self._nodes[nid]
        min_unmapped_ratio, min_slab_ratio = self._ratios()
        managed = sum(zone.managed for zone in node.zones)
        enough_cache = self._reclaimable(node, self._mode()) > managed * min_unmapped_ratio // 100
        slabs = node.stat(stats.NR_SLAB_RECLAIMABLE_B) > managed * min_slab_ratio // 100
        if not (enough_cache or slabs) or not gfp & g.F.DIRECT_RECLAIM or (node.has_cpu and nid != here):
            return True
        freed = self._reclaim(nid, order)
        if 0 <= freed < 1 << order:
            self._vmstat.count(stats.PGSCAN_ZONE_RECLAIM_FAILED)
        return freed != SUSPENDED

    def _reclaimable(self, node: Node, mode: int) -> int:
        """Pages of files that could go (node_pagecache_reclaimable)."""
        if mode & RECLAIM_UNMAP:
            pages = node.stat(stats.NR_FILE_PAGES)
        else:
            listed = node.stat(stats.NR_INACTIVE_FILE) + node.stat(stats.NR_ACTIVE_FILE)
            pages = max(0, listed - node.stat(stats.NR_FILE_MAPPED))
        dirty = 0 if mode & RECLAIM_WRITE else node.stat(stats.NR_FILE_DIRTY)
        return max(0, pages - dirty)
