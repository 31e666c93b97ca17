"""What the page allocator turns to when memory is short: kswapd, direct reclaim, compaction, the OOM killer.

Models: who wakes kswapd and when it runs, throttling of those who would use up the last reserves, direct reclaim over
the nodes of a request (mm/vmscan.c ``wakeup_kswapd``, ``throttle_direct_reclaim``, ``try_to_free_pages``). kswapd runs
on another CPU meanwhile: a request that goes into the slow path finds what it has done. Before user memory exists there
is nothing to reclaim, and kswapd takes boosts back alone.
"""

from __future__ import annotations

from collections.abc import Callable

from kmemd.core import stats
from kmemd.core import trace_ids as ev
from kmemd.core.buddy import Buddy
from kmemd.mm import gfp as g
from kmemd.mm.clock import Clock
from kmemd.mm.direct_compact import DirectCompaction
from kmemd.mm.mmzone import Node
from kmemd.mm.oom_kill import OomKill
from kmemd.mm.page_alloc import MAX_RECLAIM_RETRIES, Request
from kmemd.mm.vmscan_balance import SWAP_CLUSTER_MAX, ScanControl
from kmemd.mm.vmscan_kswapd import Kswapd
from kmemd.mm.vmscan_reclaim import Reclaim
from kmemd.mm.vmstat import VmStat


class MemoryPressure:
    """Implements ``page_alloc.Relief``; kswapd runs when the model's clock next stops."""

    def __init__(
        self,
        nodes: list[Node],
        buddy: Buddy,
        vmstat: VmStat,
        clock: Clock,
        oom_kill: OomKill,
        compact: DirectCompaction,
    ) -> None:
        self._nodes = nodes
        self._buddy = buddy
        self._vmstat = vmstat
        self._clock = clock
        self._oom_kill = oom_kill
        self._compact = compact
        self._wake_kcompactd: Callable[[int, int, int], None] = lambda nid, order, highest: None
        self._awake: dict[int, tuple[int, int]] = {}
        self._reclaim: Reclaim | None = None
        self._kswapds: Kswapd | None = None
        self._reclaiming = False

    def attach(self, reclaim: Reclaim, kswapd: Kswapd) -> None:
        """There are pages to reclaim from now on."""
        self._reclaim, self._kswapds = reclaim, kswapd
        kswapd.wakeup_kcompactd = self._kswapd_sleeps

    def wake_kcompactd_by(self, wake: Callable[[int, int, int], None]) -> None:
        """Whom to tell of a node, an order and a zone when kswapd goes to sleep."""
        self._wake_kcompactd = wake

    def _kswapd_sleeps(self, nid: int, order: int, highest: int) -> None:
        self._wake_kcompactd(nid, order, highest)

    def wakeup_kswapd(self, nid: int, order: int, highest: int) -> None:
        """Wake a node's kswapd, unless the node is balanced or hopeless."""
        node = self._nodes[nid]
        boosted = any(zone.boost for zone in node.zones[: highest + 1])
        hopeless = node.kswapd_failures >= MAX_RECLAIM_RETRIES
        if nid in self._awake or hopeless or (self._balanced(node, order, highest) and not boosted):
            return
        self._vmstat.trace.emit(ev.MM_VMSCAN_WAKEUP_KSWAPD, nid, highest, order, 0)
        self._awake[nid] = (order, highest)
        self._clock.call_at(self._clock.now, self.run_kswapds)

    def run_kswapds(self) -> None:
        """Let the kswapds that are awake run: each has a CPU of its own as far as allocations are concerned."""
        if self._reclaiming:
            return
        self._reclaiming = True
        try:
            while self._awake:
                nid = min(self._awake)
                order, highest = self._awake.pop(nid)
                if self._kswapds is not None:
                    self._kswapds.run(self._nodes[nid], order, highest)
                else:
                    self._kswapd(self._nodes[nid], order, highest)
        finally:
            self._reclaiming = False

    def drop_boosts(self) -> None:
        """What any kswapd run does to boosted watermarks.

        A node that runs short has its kswapd on its feet, whoever woke it: it looks again 100 ms after each run.
        """
        self.run_kswapds()
        self._buddy.boost[:] = 0

    def _balanced(self, node: Node, order: int, highest: int) -> bool:
        """Whether a zone is above its high watermark (pgdat_balanced)."""
        zones = [zone for zone in node.zones[: highest + 1] if zone.managed]
        return not zones or any(
            self._buddy.watermark_ok(zone.index, order, zone.watermark_high + zone.boost, highest, 0) for zone in zones
        )

    def _kswapd(self, node: Node, order: int, highest: int) -> None:
        """One run of balance_pgdat with nothing to reclaim."""
        self._vmstat.count(stats.PAGEOUTRUN)
        for zone in node.zones:
            self._buddy.boost[zone.index] = 0
        if not self._balanced(node, order, highest):
            node.kswapd_failures += 1

    def try_to_free_pages(self, request: Request) -> int:
        """Direct reclaim: how many pages were reclaimed. Not from within reclaim (PF_MEMALLOC)."""
        if self._reclaiming:
            return 0
        nid, alone = divmod(request.row, 2)
        near = sorted(self._nodes, key=lambda node: (self._nodes[nid].distance[node.nid], node.nid))
        nodes = [self._nodes[nid]] if alone else near
        nodes = [node for node in nodes if node.has_memory and request.nodemask >> node.nid & 1]
        if self._reclaim is None:
            self._vmstat.count(stats.ALLOCSTALL + request.highest)
            return 0
        self._throttle(nodes)
        self._reclaiming = True
        try:
            sc = ScanControl(SWAP_CLUSTER_MAX, request.gfp, order=request.order, reclaim_idx=request.highest)
            self._vmstat.trace.emit(ev.MM_VMSCAN_DIRECT_RECLAIM_BEGIN, request.order, request.gfp)
            freed = self._reclaim.try_to_free(nodes, sc)
            self._vmstat.trace.emit(ev.MM_VMSCAN_DIRECT_RECLAIM_END, freed)
            return freed
        finally:
            self._reclaiming = False

    def node_reclaim(self, nid: int, order: int) -> int:
        """Reclaim within a node before a farther one is asked: how many pages were reclaimed."""
        if self._reclaiming or self._reclaim is None:
            return 0
        self._reclaiming = True
        try:
            return self._reclaim.of_node(nid, g.GFP_HIGHUSER_MOVABLE, order)
        finally:
            self._reclaiming = False

    def _throttle(self, nodes: list[Node]) -> None:
        """Who would use up half of the last reserves waits for kswapd (``throttle_direct_reclaim``)."""
        if self._reclaim is None or not nodes or nodes[0].kswapd_failures >= MAX_RECLAIM_RETRIES:
            return
        zones = [zone for zone in nodes[0].zones if zone.managed and not zone.is_highmem and zone.name != "Movable"]
        zones = [zone for zone in zones if self._reclaim.reclaimable_pages(zone)]
        reserve = sum(zone.watermark_min + zone.boost for zone in zones)
        if reserve and sum(zone.free_pages for zone in zones) <= reserve // 2:
            self._vmstat.count(stats.PGSCAN_DIRECT_THROTTLE)
            self._awake.setdefault(nodes[0].nid, (0, zones[-1].kind))
            self.run_kswapds()

    def try_to_compact_pages(self, request: Request, alloc_flags: int, attempt: Callable[[], int]) -> int:
        """Direct compaction, after which ``attempt`` is made: the block, or -1."""
        return self._compact.try_to_compact_pages(request, alloc_flags, attempt)

    def should_compact_retry(self, request: Request, alloc_flags: int) -> bool:
        """Whether to reclaim and compact once more."""
        return self._compact.should_compact_retry(request, alloc_flags, self.reclaimable_pages)

    def reclaimable_pages(self, zi: int) -> int:
        """Pages of the zone that reclaim could free at most."""
        if self._reclaim is None:
            return 0
        nid, kind = divmod(zi, stats.ZONES_PER_NODE)
        return self._reclaim.reclaimable_pages(self._nodes[nid].zones[kind])

    def out_of_memory(self, request: Request) -> bool:
        """Whether a task was killed, or is about to end, so that the request may be tried again."""
        return self._oom_kill.out_of_memory(request)

    def is_oom_victim(self) -> bool:
        """Whether the executing task was killed for want of memory."""
        return self._oom_kill.is_victim()
