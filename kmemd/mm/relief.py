"""What the page allocator turns to when memory is short: kswapd, direct reclaim, compaction, the OOM killer.

Models: who wakes kswapd and when it runs, throttling of those who would use up the last reserves, direct reclaim over
the nodes of a request (mm/vmscan.c ``wakeup_kswapd``, ``throttle_direct_reclaim``, ``try_to_free_pages``). kswapd has
time of its own (mm/vmscan_kswapd.py): a request that goes into the slow path finds what it has done until then, no
more, and so does each part of a long request while kswapd is at work. Before user memory exists there is nothing to
reclaim, and kswapd takes boosts back alone.
"""

from __future__ import annotations

from collections.abc import Callable

from kmemd.core import stats
from kmemd.core import trace_ids as ev
from kmemd.core.buddy import Buddy
from kmemd.mm import gfp as g
from kmemd.mm.clock import NSEC_PER_SEC, Clock
from kmemd.mm.direct_compact import DirectCompaction
from kmemd.mm.mmzone import Node
from kmemd.mm.oom_kill import OomKill
from kmemd.mm.page_request import MAX_RECLAIM_RETRIES, SUSPENDED, Request
from kmemd.mm.patience import KILL_STEPS
from kmemd.mm.vmscan_balance import SWAP_CLUSTER_MAX, ScanControl
from kmemd.mm.vmscan_kswapd import Kswapd
from kmemd.mm.vmscan_reclaim import Pauses, Reclaim
from kmemd.mm.vmstat import VmStat

TAKEN_ALONE = 8
"""So many pages that are taken one by one are as much work as a step of reclaim."""
THROTTLE_NS = 200_000
"""How often a throttled task looks whether kswapd has made progress."""


class MemoryPressure:
    """Implements ``page_alloc.Relief``: kswapd, direct reclaim and its throttling, compaction, the OOM killer."""

    def __init__(
        self,
        nodes: list[Node],
        buddy: Buddy,
        vmstat: VmStat,
        clock: Clock,
        oom_kill: OomKill,
        compact: DirectCompaction,
        executing: Callable[[], int] = lambda: 0,
    ) -> None:
        """``executing()`` is the pid of who allocates."""
        self._executing = executing
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
        self._wait: Callable[[int], int] = lambda ns: 0
        self._reclaiming = False
        self.patience: int | None = None
        self.may_suspend = self.in_parts = False
        self._needed_over = 0, 0
        self._suspended: tuple[int, Pauses[int]] | None = None
        self._alone = 0
        self._suspended_near: tuple[tuple[int, int, int], Pauses[int]] | None = None

    def attach(self, reclaim: Reclaim, kswapd: Kswapd, wait: Callable[[int], int]) -> None:
        """There are pages to reclaim from now on."""
        self._reclaim, self._kswapds, self._wait = reclaim, kswapd, wait
        kswapd.wakeup_kcompactd = self._kswapd_sleeps
        reclaim.meanwhile = kswapd.catch_up

    def wake_kcompactd_by(self, wake: Callable[[int, int, int], None]) -> None:
        """Whom to tell of a node, an order and a zone when kswapd goes to sleep."""
        self._wake_kcompactd = wake

    def _kswapd_sleeps(self, nid: int, order: int, highest: int) -> None:
        self._wake_kcompactd(nid, order, highest)

    def wakeup_kswapd(self, nid: int, order: int, highest: int, gfp: int = 0) -> None:
        """Wake a node's kswapd, unless the node is balanced or hopeless. ``gfp`` is what the request may do."""
        if self._kswapds is not None:
            self._kswapds.wake(nid, order, highest, gfp)
            return
        node = self._nodes[nid]
        boosted = any(zone.boost for zone in node.zones[: highest + 1])
        hopeless = node.kswapd_failures >= MAX_RECLAIM_RETRIES
        if nid in self._awake or hopeless or (self._balanced(node, order, highest) and not boosted):
            return
        self._vmstat.trace.emit(ev.MM_VMSCAN_WAKEUP_KSWAPD, nid, highest, order, gfp)
        self._awake[nid] = (order, highest)
        self._clock.call_at(self._clock.now, self.run_kswapds)

    def run_kswapds(self) -> None:
        """Let the kswapds catch up with the present; before there is anything to reclaim, to their end."""
        if self._kswapds is not None:
            if not self._reclaiming:
                steps = self._kswapds.steps
                self._kswapds.catch_up()
                self._used_up(self._kswapds.steps - steps)
            return
        while self._awake:
            nid = min(self._awake)
            self._kswapd(self._nodes[nid], *self._awake.pop(nid))

    def meanwhile(self, left: int, n: int) -> int:
        """A request lacks ``left`` of its ``n`` blocks: the kswapds at work do what they have time for until it needs
        the next one. How many blocks come before they are looked at again."""
        if self._kswapds is None:
            return left
        ns, after = self._needed_over
        self._kswapds.behind = after + ns * left // n
        if not self._kswapds.at_work:
            return left
        self.run_kswapds()
        return min(left, SWAP_CLUSTER_MAX) if self._kswapds.at_work else left

    def needed_over(self, ns: int, after: int = 0) -> None:
        """The blocks of the next requests were needed one after the other in ``ns``, which ended ``after`` ns ago."""
        self._needed_over = ns, after
        if self._kswapds is not None:
            self._kswapds.behind = ns + after

    def kswapd_runs(self, nid: int) -> bool:
        """Whether a node's kswapd is at work."""
        return self._kswapds is not None and self._kswapds.is_awake(nid)

    def drop_boosts(self) -> None:
        """kswapd catches up, and lowers boosted watermarks where it ran; where it does not run any more, because there
        is nothing that it could reclaim, no boost stays either: the captured machines had none when memory ran out.
        """
        self.run_kswapds()
        for node in self._nodes:
            if self._kswapds is None or node.unreclaimable or not self._kswapds.is_awake(node.nid):
                for zone in node.zones:
                    self._buddy.boost[zone.index] = 0

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
        """Direct reclaim: how many pages were reclaimed. Not from within reclaim (PF_MEMALLOC).

        ``SUSPENDED`` when the caller's patience ended first: it comes again and goes on where it was.
        """
        if self._within_reclaim:
            return 0
        nid, alone = divmod(request.row, 2)
        near = sorted(self._nodes, key=lambda node: (self._nodes[nid].distance[node.nid], node.nid))
        nodes = [self._nodes[nid]] if alone else near
        nodes = [node for node in nodes if node.has_memory and request.nodemask >> node.nid & 1]
        if self._reclaim is None:
            self._vmstat.count(stats.ALLOCSTALL + request.highest)
            return 0
        pid = self._executing()
        steps = self._suspended[1] if self._suspended is not None and self._suspended[0] == pid else None
        self._suspended = None
        if steps is None:
            self._throttle(nodes, request.gfp)
            sc = ScanControl(SWAP_CLUSTER_MAX, request.gfp, order=request.order, reclaim_idx=request.highest)
            steps = self._traced(self._reclaim.try_to_free(nodes, sc), request)
        freed = self._drive(steps)
        if freed is None:
            self._suspended = pid, steps
            return SUSPENDED
        self.run_kswapds()
        return freed

    def _traced(self, steps: Pauses[int], request: Request) -> Pauses[int]:
        """Direct reclaim between its two events."""
        trace = self._vmstat.trace
        trace.emit(ev.MM_VMSCAN_DIRECT_RECLAIM_BEGIN, request.order, request.gfp)
        freed = yield from steps
        trace.emit(ev.MM_VMSCAN_DIRECT_RECLAIM_END, freed)
        return freed

    def _drive(self, steps: Pauses[int]) -> int | None:
        """Reclaim in the executing task, which does the waiting, as long as it has patience: None when that ends."""
        assert self._kswapds is not None
        while not self.tired:
            self._reclaiming = True
            try:
                pause = next(steps)
            except StopIteration as stop:
                return int(stop.value)
            finally:
                self._reclaiming = False
            if pause:
                self._wait(pause)
                self._kswapds.catch_up()
            self._used_up(1)
        return None

    def took_one(self) -> bool:
        """A page was asked for alone, after a look at the nodes; ``tired``."""
        self._alone += 1
        if self._alone % TAKEN_ALONE == 0:
            self._used_up(1)
        return self.tired

    @property
    def enough(self) -> bool:
        """Whether the other blocks of a request wait for the caller's next slice."""
        return self.in_parts and self.tired

    @property
    def tired(self) -> bool:
        """Whether the rest of a request waits for the caller's next slice."""
        return self.may_suspend and self.patience is not None and self.patience <= 0

    def _used_up(self, steps: int) -> None:
        """Some of the caller's patience is gone."""
        if self.patience is not None:
            self.patience -= steps

    @property
    def _within_reclaim(self) -> bool:
        return self._reclaiming or (self._kswapds is not None and self._kswapds.running)

    def is_reclaiming(self) -> bool:
        """Whether this is within direct reclaim or kswapd, whose allocations may use the reserves (PF_MEMALLOC)."""
        return self._within_reclaim

    def node_reclaim(self, nid: int, order: int) -> int:
        """Reclaim within a node before a farther one is asked: how many pages were reclaimed, or ``SUSPENDED``."""
        if self._within_reclaim or self._reclaim is None:
            return 0
        key = self._executing(), nid, order
        steps = self._suspended_near[1] if self._suspended_near is not None and self._suspended_near[0] == key else None
        self._suspended_near = None
        if steps is None:
            steps = self._reclaim.of_node_steps(nid, g.GFP_HIGHUSER_MOVABLE, order)
        freed = self._drive(steps)
        if freed is None:
            self._suspended_near = key, steps
            return SUSPENDED
        return freed

    def _throttle(self, nodes: list[Node], gfp: int) -> None:
        """Who would use up half of the last reserves waits for kswapd (``throttle_direct_reclaim``), who may not
        enter file systems a second at most."""
        if not nodes or self._allow_direct_reclaim(nodes[0]):
            return
        self._vmstat.count(stats.PGSCAN_DIRECT_THROTTLE)
        assert self._kswapds is not None
        end = None if gfp & g.F.FS else self._clock.now + NSEC_PER_SEC
        while not self._allow_direct_reclaim(nodes[0]) and (end is None or self._clock.now < end):
            self._kswapds.rouse(nodes[0].nid)
            self._wait(THROTTLE_NS)
            self._kswapds.catch_up()

    def _allow_direct_reclaim(self, node: Node) -> bool:
        """Whether the lower zones have half of their reserves, or kswapd has given up."""
        assert self._reclaim is not None
        if node.unreclaimable:
            return True
        zones = [zone for zone in node.zones if zone.managed and not zone.is_highmem and zone.name != "Movable"]
        zones = [zone for zone in zones if self._reclaim.reclaimable_pages(zone)]
        reserve = sum(zone.watermark_min + zone.boost for zone in zones)
        return not reserve or sum(zone.free_pages for zone in zones) > reserve // 2

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
        killed = self._oom_kill.out_of_memory(request)
        if killed:
            self._used_up(KILL_STEPS)
        return killed

    def is_oom_victim(self) -> bool:
        """Whether the executing task was killed for want of memory."""
        return self._oom_kill.is_victim()
