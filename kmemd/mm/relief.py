"""What the page allocator turns to when memory is short (mm/vmscan.c, as far as this machine goes).

Nothing is reclaimed yet and nothing moves: direct reclaim and compaction find nothing, and kswapd gives up a node after
16 vain runs as Linux's does; the OOM killer (``oom_kill``) is what is left. What kswapd does without reclaiming is
here: it takes the watermark boost back.
"""

from __future__ import annotations

from kmemd.core import stats
from kmemd.core.buddy import ALLOC_CMA, Buddy
from kmemd.mm import gfp as g
from kmemd.mm.clock import Clock
from kmemd.mm.mmzone import PAGE_ALLOC_COSTLY_ORDER, Node
from kmemd.mm.oom_kill import OomKill
from kmemd.mm.page_alloc import MAX_RECLAIM_RETRIES, Request
from kmemd.mm.vmstat import VmStat


class MemoryPressure:
    """Implements ``page_alloc.Relief``; kswapd runs when the model's clock next stops."""

    def __init__(self, nodes: list[Node], buddy: Buddy, vmstat: VmStat, clock: Clock, oom_kill: OomKill) -> None:
        self._nodes = nodes
        self._buddy = buddy
        self._vmstat = vmstat
        self._clock = clock
        self._oom_kill = oom_kill
        self._awake: dict[int, tuple[int, int]] = {}

    def wakeup_kswapd(self, nid: int, order: int, highest: int) -> None:
        """Wake a node's kswapd, unless the node is balanced or hopeless."""
        node = self._nodes[nid]
        boosted = any(zone.boost for zone in node.zones[: highest + 1])
        hopeless = node.kswapd_failures >= MAX_RECLAIM_RETRIES
        if nid in self._awake or hopeless or (self._balanced(node, order, highest) and not boosted):
            return
        self._awake[nid] = (order, highest)
        self._clock.call_at(self._clock.now, self.run_kswapds)

    def run_kswapds(self) -> None:
        """Let the kswapds that are awake run: each has a CPU of its own as far as allocations are concerned."""
        for nid, (order, highest) in sorted(self._awake.items()):
            self._kswapd(self._nodes[nid], order, highest)
        self._awake.clear()

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
        """Direct reclaim: a stall is counted, no page is reclaimed."""
        self._vmstat.count(stats.ALLOCSTALL + request.highest)
        return 0

    def try_to_compact_pages(self, request: Request, alloc_flags: int) -> bool:
        """Direct compaction: tries where there is room for it, and fails, for want of pages that could move."""
        if request.gfp & g.F.IO and self._has_room(request):
            self._vmstat.count(stats.COMPACTSTALL)
            self._vmstat.count(stats.COMPACTFAIL)
        return False

    def _has_room(self, request: Request) -> bool:
        """Whether a zone has the free pages that compaction moves others to (compaction_suitable)."""
        nid, alone = divmod(request.row, 2)
        nodes = [self._nodes[nid]] if alone else self._nodes
        for zone in (zone for node in nodes for zone in node.zones[: request.highest + 1] if zone.managed):
            mark = zone.watermark_low if request.order > PAGE_ALLOC_COSTLY_ORDER else zone.watermark_min
            mark += 2 << request.order
            if self._buddy.watermark_ok(zone.index, 0, mark, request.highest, ALLOC_CMA):
                return True
        return False

    def reclaimable_pages(self, zi: int) -> int:
        """No page of the zone could be reclaimed."""
        return 0

    def out_of_memory(self, request: Request) -> bool:
        """Whether a task was killed, or is about to end, so that the request may be tried again."""
        return self._oom_kill.out_of_memory(request)

    def is_oom_victim(self) -> bool:
        """Whether the executing task was killed for want of memory."""
        return self._oom_kill.is_victim()
