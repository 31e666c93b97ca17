"""Page reclaim of nodes and cgroups, by whoever needs it (mm/vmscan.c ``shrink_node``, ``do_try_to_free_pages``).

Models: shrinking a lruvec in proportion to the balance, all cgroups below a target with their protection, slabs,
reclaim for compaction, priorities, throttling in model time, forced deactivation, node reclaim. Left out: hibernation,
soft limits (cgroup v1), vmpressure.

What may take long is a generator (``Pauses``): between two ``yield`` no page is isolated, so that others may run. The
value it yields is a wait in ns, 0 for none. A task that reclaims directly waits itself; kswapd waits on its own CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Protocol, TypeVar

from kmemd.core import stats
from kmemd.core import trace_ids as ev
from kmemd.core.buddy import Buddy
from kmemd.core.lru_lists import LRU_ACTIVE_ANON, LRU_INACTIVE_ANON
from kmemd.core.mmzone import ALLOC_CMA
from kmemd.mm import gfp as g
from kmemd.mm import trace_points
from kmemd.mm.clock import HZ, NSEC_PER_SEC
from kmemd.mm.lruvec import LruVecs
from kmemd.mm.mmzone import PAGE_ALLOC_COSTLY_ORDER, Node, Zone
from kmemd.mm.node_reclaim import RECLAIM_UNMAP, RECLAIM_WRITE
from kmemd.mm.replacement import Replacement
from kmemd.mm.shrinker import Shrinkers
from kmemd.mm.vmscan_balance import DEF_PRIORITY, EVICTABLE, SWAP_CLUSTER_MAX, Balance, ScanControl
from kmemd.mm.vmscan_folio import PGDAT_DIRTY, PGDAT_WRITEBACK, ListScan
from kmemd.mm.vmstat import VmStat
from kmemd.mm.workingset import Workingset

JIFFY_NS = NSEC_PER_SEC // HZ
TIMEOUT_WRITEBACK, TIMEOUT_NOPROGRESS = HZ // 10 * JIFFY_NS, JIFFY_NS
NODE_RECLAIM_PRIORITY = 4
STRIDE = 512
"""Pages of a list that are handled at once where only one kind is scanned: the same pages as in smaller steps."""
MAX_RECLAIM_RETRIES = 16

T = TypeVar("T")
Pauses = Generator[int, None, T]
"""Reclaim with points where others may run; each tells how many ns to wait there at most."""


class Wait(Protocol):
    """How reclaim waits."""

    def __call__(self, ns: int) -> int:
        """Let up to ``ns`` pass, less when a device has done something. How much it was."""


class Reclaim:
    """Everything that reclaims. ``mode()`` is zone_reclaim_mode. ``stall`` lets model time pass while devices work.

    ``meanwhile()`` is called when the executing task has waited: other threads had the time, too. ``replacement``,
    where it is there, says which policy is in force.
    """

    def __init__(
        self,
        nodes: list[Node],
        buddy: Buddy,
        vmstat: VmStat,
        lruvecs: LruVecs,
        balance: Balance,
        lists: ListScan,
        shrinkers: Shrinkers,
        workingset: Workingset,
        stall: Wait,
        total_swap: Callable[[], int],
        mode: Callable[[], int] = lambda: 0,
    ) -> None:
        self._nodes, self._buddy, self._vmstat = nodes, buddy, vmstat
        self.lruvecs, self.balance, self._lists = lruvecs, balance, lists
        self.shrinkers, self._workingset = shrinkers, workingset
        self._wait, self._total_swap, self._mode = stall, total_swap, mode
        self.meanwhile: Callable[[], None] = lambda: None
        self.replacement: Replacement | None = None

    def finish(self, steps: Pauses[T]) -> T:
        """Reclaim to the end in the executing task, which does the waiting."""
        while True:
            try:
                pause = next(steps)
            except StopIteration as stop:
                found: T = stop.value
                return found
            if pause:
                self._wait(pause)
                self.meanwhile()

    # -- one lruvec --------------------------------------------------------------------------------------

    def shrink_lruvec(self, memcg: int, nid: int, sc: ScanControl) -> Pauses[None]:
        """Scan the lists of a cgroup on a node as far as the balance says (``shrink_lruvec``)."""
        if self.replacement is not None and not self.replacement.two_list:
            yield from self.replacement.shrink_lruvec(memcg, nid, sc)
            return
        nr = self.balance.scan_count(memcg, nid, sc)
        targets = list(nr)
        proportional = not sc.cgroup and not sc.kswapd and sc.priority == DEF_PRIORITY
        reclaimed, again = 0, False
        while nr[0] or nr[2] or nr[3]:
            if again:
                yield 0
            again = True
            step = SWAP_CLUSTER_MAX
            if not nr[0] + nr[1] or not nr[2] + nr[3]:
                missing = sum(nr) if proportional else sc.nr_to_reclaim - reclaimed
                step = max(step, min(missing // SWAP_CLUSTER_MAX * SWAP_CLUSTER_MAX, STRIDE))
            for which in EVICTABLE:
                part = min(nr[which], step)
                nr[which] -= part
                if part:
                    reclaimed += self._shrink_list(memcg, nid, which, part, sc)
            if reclaimed < sc.nr_to_reclaim or proportional:
                continue
            if not nr[0] + nr[1] or not nr[2] + nr[3]:
                break
            _even_out(nr, targets)
        sc.nr_reclaimed += reclaimed
        if self._total_swap() and self.balance.inactive_is_low(memcg, nid, LRU_INACTIVE_ANON):
            self._lists.shrink_active(memcg, nid, LRU_ACTIVE_ANON, SWAP_CLUSTER_MAX, sc)

    def _shrink_list(self, memcg: int, nid: int, which: int, count: int, sc: ScanControl) -> int:
        if not which & 1:
            self._wait(0)
            self._workingset.target_memcg = sc.target
            try:
                return self._lists.shrink_inactive(memcg, nid, which, count, sc)
            finally:
                self._workingset.target_memcg = 0
        if sc.may_deactivate >> which // 2 & 1:
            self._lists.shrink_active(memcg, nid, which, count, sc)
        else:
            sc.skipped_deactivate = True
        return 0

    # -- one node ----------------------------------------------------------------------------------------

    def shrink_node(self, node: Node, sc: ScanControl) -> Pauses[None]:
        """All cgroups of the target on one node, and the slabs (``shrink_node``)."""
        reclaimable = False
        while True:
            sc.nr = type(sc.nr)()
            before = sc.nr_reclaimed
            self.balance.prepare(node, sc)
            yield from self._shrink_memcgs(node, sc)
            progress = sc.nr_reclaimed - before
            reclaimable = reclaimable or progress > 0
            yield from self._throttle(node, sc)
            if not self._should_continue(node, progress, sc):
                break
        if reclaimable:
            node.kswapd_failures = 0

    def _shrink_memcgs(self, node: Node, sc: ScanControl) -> Pauses[None]:
        memcgs = self.lruvecs.memcgs
        for memcg in memcgs.subtree(sc.target):
            least, low, usage = memcgs.protection(sc.target, memcg)
            if least and usage <= least:
                continue
            if low and usage <= low:
                if not sc.memcg_low_reclaim:
                    sc.memcg_low_skipped = True
                    continue
                memcgs.low_event(memcg)
            yield from self.shrink_lruvec(memcg, node.nid, sc)
            if memcg == 0:
                self.shrinkers.taken()
                for _ in self.shrinkers.shrink_slab(node.nid, sc.priority):
                    sc.nr_reclaimed += self.shrinkers.taken()
                    yield 0
                    self.shrinkers.taken()  # what others' reclaim did meanwhile
            yield 0

    def _throttle(self, node: Node, sc: ScanControl) -> Pauses[None]:
        """What the pages met say about devices; kswapd waits when pages come round before they are written."""
        found, state = sc.nr, self._lists.state.get(node.nid, 0)
        if sc.kswapd:
            if found.writeback and found.writeback == found.taken:
                state |= PGDAT_WRITEBACK
            if found.unqueued_dirty == found.file_taken:
                state |= PGDAT_DIRTY
            self._lists.state[node.nid] = state
            if found.immediate:
                yield from self._wait_for(node.nid, TIMEOUT_WRITEBACK, trace_points.THROTTLE_WRITEBACK)
        lruvec = self.lruvecs.get(sc.target, node.nid)
        if (sc.kswapd or sc.cgroup) and found.dirty and found.dirty == found.congested:
            lruvec.congested = True
        if not sc.kswapd and lruvec.congested and self._may_help_to_wait(node):
            yield from self._wait_for(node.nid, TIMEOUT_NOPROGRESS, trace_points.THROTTLE_CONGESTED)

    def _wait_for(self, nid: int, ns: int, reason: int) -> Pauses[None]:
        """Wait for devices (``reclaim_throttle``)."""
        start = self._vmstat.trace.now
        yield ns
        trace_points.throttled(self._vmstat.trace, nid, ns, self._vmstat.trace.now - start, reason)

    def _may_help_to_wait(self, node: Node) -> bool:
        """Whether most of what could go is being written, and the node not hopeless (``skip_throttle_noprogress``)."""
        zones = [zone for zone in node.zones if zone.managed]
        reclaimable = sum(self.reclaimable_pages(zone) for zone in zones)
        pending = sum(zone.stat(stats.NR_ZONE_WRITE_PENDING) for zone in zones)
        return node.kswapd_failures < MAX_RECLAIM_RETRIES and 2 * pending > reclaimable

    def _should_continue(self, node: Node, progress: int, sc: ScanControl) -> bool:
        """Whether compaction needs more free pages than were reclaimed (``should_continue_reclaim``)."""
        costly = sc.order > PAGE_ALLOC_COSTLY_ORDER
        if not sc.order or not (costly or sc.priority < DEF_PRIORITY - 2) or not progress:
            return False
        if not sc.gfp & g.F.IO or any(self._suitable(zone, sc) for zone in node.zones[: sc.reclaim_idx + 1]):
            return False
        inactive = node.stat(stats.NR_INACTIVE_FILE)
        if self.balance.can_reclaim_anon(0):
            inactive += node.stat(stats.NR_INACTIVE_ANON)
        return inactive > 2 << sc.order

    def _suitable(self, zone: Zone, sc: ScanControl, mark: int | None = None) -> bool:
        """Whether compaction could run in a zone, or need not (``compaction_suitable``)."""
        if not zone.managed:
            return False
        least = zone.watermark_min + zone.boost
        if self._buddy.watermark_ok(zone.index, sc.order, least, sc.reclaim_idx, 0):
            return True
        low = zone.watermark_low if sc.order > PAGE_ALLOC_COSTLY_ORDER else zone.watermark_min
        need = (low if mark is None else mark) + (2 << sc.order)
        return bool(self._buddy.watermark_ok(zone.index, 0, need, sc.reclaim_idx, ALLOC_CMA))

    # -- direct reclaim ----------------------------------------------------------------------------------

    def try_to_free(self, nodes: Iterable[Node], sc: ScanControl) -> Pauses[int]:
        """Scan harder and harder until there is enough (``do_try_to_free_pages``). Pages reclaimed."""
        nodes = list(nodes)
        while True:
            if not sc.cgroup:
                self._vmstat.count(stats.ALLOCSTALL + sc.reclaim_idx)
            yield from self._by_priority(nodes, sc)
            self._snapshot_refaults(nodes, sc)
            if sc.nr_reclaimed:
                return sc.nr_reclaimed
            if sc.compaction_ready:
                return 1
            if sc.skipped_deactivate:
                sc.force_deactivate, sc.skipped_deactivate = True, False
            elif sc.memcg_low_skipped:
                sc.force_deactivate, sc.memcg_low_reclaim, sc.memcg_low_skipped = False, True, False
            else:
                return 0
            sc.priority = DEF_PRIORITY

    def _by_priority(self, nodes: list[Node], sc: ScanControl) -> Pauses[None]:
        while sc.priority >= 0:
            sc.nr_scanned = 0
            yield from self._shrink_zones(nodes, sc)
            if sc.nr_reclaimed >= sc.nr_to_reclaim or sc.compaction_ready:
                break
            sc.priority -= 1

    def _shrink_zones(self, nodes: list[Node], sc: ScanControl) -> Pauses[None]:
        first: Node | None = None
        for node in nodes:
            zones = [zone for zone in node.zones[: sc.reclaim_idx + 1] if zone.managed]
            if not zones:
                continue
            if not sc.cgroup and sc.order > PAGE_ALLOC_COSTLY_ORDER:
                ready = [self._suitable(zone, sc, zone.watermark_high + zone.boost) for zone in zones]
                sc.compaction_ready = sc.compaction_ready or any(ready)
                if all(ready):
                    continue
            first = first or node
            yield from self.shrink_node(node, sc)
        if first is not None and not sc.cgroup and sc.priority == 1 and not sc.nr_reclaimed:
            yield from self._no_progress(first)

    def _no_progress(self, node: Node) -> Pauses[None]:
        """A direct reclaim that gets nowhere waits for devices (``consider_reclaim_throttle``)."""
        if self._may_help_to_wait(node):
            yield from self._wait_for(node.nid, TIMEOUT_NOPROGRESS, trace_points.THROTTLE_NOPROGRESS)

    def _snapshot_refaults(self, nodes: list[Node], sc: ScanControl) -> None:
        for node in nodes:
            self.snapshot_refaults(sc.target, node.nid)
            if sc.cgroup:
                self.lruvecs.get(sc.target, node.nid).congested = False

    def snapshot_refaults(self, memcg: int, nid: int) -> None:
        """Remember the activations so far: the next reclaim looks whether there are more."""
        lruvec = self.lruvecs.get(memcg, nid)
        for file in range(2):
            lruvec.refaults[file] = self.lruvecs.counted(memcg, nid, stats.WORKINGSET_ACTIVATE_ANON + file)

    def of_cgroup(self, memcg: int, nr_pages: int, gfp: int, *, may_swap: bool, proactive: bool = False) -> int:
        """Reclaim from a cgroup and all below it (``try_to_free_mem_cgroup_pages``). Pages reclaimed."""
        return self.finish(self.of_cgroup_steps(memcg, nr_pages, gfp, may_swap=may_swap, proactive=proactive))

    def of_cgroup_steps(
        self, memcg: int, nr_pages: int, gfp: int, *, may_swap: bool = True, proactive: bool = False
    ) -> Pauses[int]:
        """``of_cgroup`` with points where others may run."""
        sc = ScanControl(max(nr_pages, SWAP_CLUSTER_MAX), gfp, target=memcg, may_swap=may_swap, proactive=proactive)
        self._vmstat.trace.emit(ev.MM_VMSCAN_MEMCG_RECLAIM_BEGIN, 0, gfp)
        freed = yield from self.try_to_free([node for node in self._nodes if node.has_memory], sc)
        self._vmstat.trace.emit(ev.MM_VMSCAN_MEMCG_RECLAIM_END, freed)
        return freed

    def of_node_steps(self, nid: int, gfp: int, order: int) -> Pauses[int]:
        """Reclaim within a node before another one is asked (``__node_reclaim``). Pages reclaimed."""
        mode = self._mode()
        sc = ScanControl(
            max(1 << order, SWAP_CLUSTER_MAX),
            gfp,
            order=order,
            priority=NODE_RECLAIM_PRIORITY,
            may_writepage=bool(mode & RECLAIM_WRITE),
            may_unmap=bool(mode & RECLAIM_UNMAP),
        )
        self._vmstat.trace.emit(ev.MM_VMSCAN_NODE_RECLAIM_BEGIN, nid, order, gfp)
        while sc.priority >= 0 and sc.nr_reclaimed < 1 << order:
            yield from self.shrink_node(self._nodes[nid], sc)
            sc.priority -= 1
        self._vmstat.trace.emit(ev.MM_VMSCAN_NODE_RECLAIM_END, sc.nr_reclaimed)
        return sc.nr_reclaimed

    # -- kswapd's --------------------------------------------------------------------------------------

    def age_node(self, node: Node, sc: ScanControl) -> Pauses[None]:
        """Give anonymous pages a chance to be referenced before they are reclaimed (``kswapd_age_node``)."""
        if self.replacement is not None and not self.replacement.two_list:
            yield from self.replacement.age_node(node, sc)
            return
        if self._total_swap() and self.balance.inactive_is_low(0, node.nid, LRU_INACTIVE_ANON):
            for memcg in list(self.lruvecs.memcgs.subtree(0)):
                self._lists.shrink_active(memcg, node.nid, LRU_ACTIVE_ANON, SWAP_CLUSTER_MAX, sc)

    def reclaimable_pages(self, zone: Zone) -> int:
        """Pages of a zone that could go at most (``zone_reclaimable_pages``)."""
        pages = zone.stat(stats.NR_ZONE_INACTIVE_FILE) + zone.stat(stats.NR_ZONE_ACTIVE_FILE)
        if self.balance.can_reclaim_anon(0):
            pages += zone.stat(stats.NR_ZONE_INACTIVE_ANON) + zone.stat(stats.NR_ZONE_ACTIVE_ANON)
        return pages

    def forget_state(self, nid: int) -> None:
        """A node is balanced: what was said of its devices is out of date (``clear_pgdat_congested``)."""
        self._lists.state[nid] = 0
        self.lruvecs.get(0, nid).congested = False


def _even_out(nr: list[int], targets: list[int]) -> None:
    """Enough was reclaimed: stop with the kind that has less left, and scan the other one as far in proportion."""
    anon, file = nr[0] + nr[1], nr[2] + nr[3]
    small, large, left = (0, 2, anon) if file > anon else (2, 0, file)
    percentage = left * 100 // (targets[small] + targets[small + 1] + 1)
    nr[small] = nr[small + 1] = 0
    for which in (large, large + 1):
        scanned = targets[which] - nr[which]
        nr[which] = max(targets[which] * (100 - percentage) // 100 - scanned, 0)
