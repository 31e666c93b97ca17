"""kswapd: a kernel thread per node that reclaims before anybody must (mm/vmscan.c ``kswapd``, ``balance_pgdat``).

Models: one run from waking to the high watermark, priorities, watermark boosts with their gentler reclaim, hopeless
nodes, and the counters of short sleeps. What kswapd computes is its own CPU time. Left out: freezing, CPU affinity.
"""

from __future__ import annotations

from collections.abc import Callable

from kmemd.core import stats
from kmemd.core import trace_ids as ev
from kmemd.core.buddy import Buddy
from kmemd.core.context import Context
from kmemd.mm import gfp as g
from kmemd.mm.clock import NSEC_PER_SEC
from kmemd.mm.mmzone import Node
from kmemd.mm.sched import Task, TaskTable
from kmemd.mm.vmscan_balance import DEF_PRIORITY, SWAP_CLUSTER_MAX, ScanControl
from kmemd.mm.vmscan_reclaim import Reclaim
from kmemd.mm.vmstat import VmStat

SHORT_SLEEP_NS = NSEC_PER_SEC // 10


class Kswapd:
    """The kswapds of all nodes. ``laptop_mode()`` is the knob; ``wakeup_kcompactd(nid, order, highest)`` is told when
    one goes to sleep."""

    def __init__(
        self,
        nodes: list[Node],
        buddy: Buddy,
        vmstat: VmStat,
        context: Context,
        tasks: TaskTable,
        reclaim: Reclaim,
        laptop_mode: Callable[[], int],
        wakeup_kcompactd: Callable[[int, int, int], None],
        stalled: Callable[[int], None] = lambda ns: None,
    ) -> None:
        self._stalled = stalled
        self._nodes, self._buddy, self._vmstat = nodes, buddy, vmstat
        self._context, self._tasks, self._reclaim = context, tasks, reclaim
        self._laptop_mode, self.wakeup_kcompactd = laptop_mode, wakeup_kcompactd
        self._asleep_since: dict[int, int] = {}
        self._threads: dict[int, Task] = {}

    def balanced(self, node: Node, order: int, highest: int) -> bool:
        """Whether a zone is above its high watermark (``pgdat_balanced``)."""
        zones = [zone for zone in node.zones[: highest + 1] if zone.managed]
        return not zones or any(
            self._buddy.watermark_ok(zone.index, order, zone.watermark_high + zone.boost, highest, 0) for zone in zones
        )

    def run(self, node: Node, order: int, highest: int) -> None:
        """From waking until the node is balanced or hopeless."""
        self._count_short_sleep(node)
        self._context.trace.emit(ev.MM_VMSCAN_KSWAPD_WAKE, node.nid, highest, order)
        reclaim = self._reclaim
        start, waited = self._context.now, reclaim.waited_ns
        reached = self._balance_pgdat(node, order, highest)
        if reached < order and not self.balanced(node, 0, highest):
            reached = self._balance_pgdat(node, reached, highest)
        self._asleep_since[node.nid] = self._context.now
        self._context.trace.emit(ev.MM_VMSCAN_KSWAPD_SLEEP, node.nid)
        self._stalled(self._context.now - start)
        if self.balanced(node, reached, highest):
            reclaim.forget_state(node.nid)
            self.wakeup_kcompactd(node.nid, order, highest)
        self._account(node, self._context.now - start - (reclaim.waited_ns - waited))

    def _count_short_sleep(self, node: Node) -> None:
        """It was woken within the short sleep that comes first (``kswapd_try_to_sleep``)."""
        since = self._asleep_since.get(node.nid)
        if since is not None and self._context.now - since < SHORT_SLEEP_NS:
            self._vmstat.count(stats.KSWAPD_LOW_WMARK_HIT_QUICKLY)

    def _account(self, node: Node, worked: int) -> None:
        """The time is the thread's."""
        thread = self._threads.get(node.nid)
        if thread is None or thread.pid not in self._tasks:
            name = f"kswapd{node.nid}"
            thread = next((task for task in self._tasks if task.comm == name), None)
            if thread is None:
                return
            self._threads[node.nid] = thread
        thread.stime_ns += worked

    def _balance_pgdat(self, node: Node, order: int, highest: int) -> int:
        """Reclaim until a zone is above its high watermark; the order that it did so for."""
        self._vmstat.count(stats.PAGEOUTRUN)
        sc = ScanControl(0, g.GFP_KERNEL, order=order, kswapd=True, reclaim_idx=highest)
        boosts = {zone.index: zone.boost for zone in node.zones[: highest + 1] if zone.managed}
        left = sum(boosts.values())
        if left and not self.balanced(node, order, highest):
            left = 0
        done = False
        while sc.priority >= 1:
            balanced = self.balanced(node, sc.order, highest)
            if not balanced and left:
                left, sc.priority = 0, DEF_PRIORITY
                continue
            if not left and balanced:
                done = True
                break
            freed, raise_priority = self._round(node, sc, left)
            if left and not freed:
                break
            left -= min(left, freed)
            if raise_priority or not freed:
                sc.priority -= 1
        if not done and not sc.nr_reclaimed:
            node.kswapd_failures += 1
        for zi, boost in boosts.items():
            self._buddy.boost[zi] -= min(int(self._buddy.boost[zi]), boost)
        self._reclaim.snapshot_refaults(0, node.nid)
        return sc.order

    def _round(self, node: Node, sc: ScanControl, boost: int) -> tuple[int, bool]:
        """One pass at one priority: pages reclaimed, and whether the next one should scan more."""
        before = sc.nr_reclaimed
        sc.may_writepage = (not self._laptop_mode() and not boost) or sc.priority < DEF_PRIORITY - 2
        sc.may_swap = not boost
        reclaim = self._reclaim
        reclaim.age_node(node, sc)
        sc.nr_scanned = 0
        sc.nr_to_reclaim = sum(
            max(zone.watermark_high + zone.boost, SWAP_CLUSTER_MAX)
            for zone in node.zones[: sc.reclaim_idx + 1]
            if zone.managed
        )
        reclaim.shrink_node(node, sc)
        if sc.order and sc.nr_reclaimed >= 2 << sc.order:
            sc.order = 0
        enough = sc.nr_scanned >= sc.nr_to_reclaim
        return sc.nr_reclaimed - before, not enough and not (boost and sc.priority == DEF_PRIORITY - 2)
