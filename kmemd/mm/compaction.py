"""Memory compaction: its knobs, triggers, deferral, and requests that wait for it (mm/compaction.c).

Models ``compact_memory`` and each node's ``compact``, direct compaction with its priorities, zone by zone, and the
fragmentation scores that proactive compaction goes by. One zone is mm/compaction_scan.py, kcompactd mm/kcompactd.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar

from kmemd.core import stats
from kmemd.core import trace_ids as ev
from kmemd.core.buddy import Buddy
from kmemd.core.compact import ASYNC, SYNC, SYNC_LIGHT, Scanner
from kmemd.core.context import Context
from kmemd.core.lru import Lru
from kmemd.core.pages import PageMap
from kmemd.mm import gfp as g
from kmemd.mm import trace_points
from kmemd.mm.compaction_scan import Mover, ZoneCompactor
from kmemd.mm.compaction_zone import PFNS, Control, Priority, Result, ZoneState
from kmemd.mm.mmzone import Node, Zone
from kmemd.mm.sysctl_handlers import take_all, vm_knob
from kmemd.mm.vmstat import ContigPageInfo, VmStat
from kmemd.steps import Steps, finish
from kmemd.tunable import Tunable, Tuned

DEFER_RESULTS = (Result.COMPLETE, Result.PARTIAL_SKIPPED)
"""The scanners met and there is no block: leave the zone alone for a while."""


class Compaction(Tuned):
    """``free_pages_bulk(pfns, order)`` gives pages back; ``movers()`` are the LRU lists and migration, once there are
    any.
    """

    TUNABLES: ClassVar[tuple[Tunable, ...]] = (
        vm_knob("compact_memory", take_all, mode=0o200, steps="compact_nodes_steps"),
        vm_knob("compaction_proactiveness", min=0, max=100, on_change="on_proactiveness"),
        vm_knob("extfrag_threshold", min=0, max=1000),
        vm_knob("compact_unevictable_allowed", min=0, max=1),
    )

    def __init__(
        self,
        zones: list[Zone],
        nodes: list[Node],
        buddy: Buddy,
        pages: PageMap,
        vmstat: VmStat,
        context: Context,
        free_pages_bulk: Callable[[PFNS, int], None],
        movers: Callable[[], tuple[Lru, Mover] | None],
        *,
        page_ns: int = 0,
        long_bits: int = 64,
    ) -> None:
        """``page_ns`` is what isolating and remapping a page costs."""
        self._nodes = nodes
        self._buddy = buddy
        self._vmstat = vmstat
        self._movers = movers
        self.scanner = Scanner(pages, buddy.pageblock_order)
        self.states = [ZoneState(zone) for zone in zones]
        self.zone_compactor = ZoneCompactor(
            buddy, self.scanner, pages, vmstat, context, free_pages_bulk, movers, self, page_ns
        )
        self.long_bits = long_bits
        self.proactiveness_written: Callable[[], None] = lambda: None
        self.kswapd_runs: Callable[[int], bool] = lambda nid: False
        self.compact_memory = 0
        self.compaction_proactiveness = 20
        self.extfrag_threshold = 500
        self.compact_unevictable_allowed = 1

    # -- the whole machine -------------------------------------------------------------------------------

    def compact_nodes_steps(self, value: int) -> Steps[None]:
        """Compact every node (``echo 1 > /proc/sys/vm/compact_memory``)."""
        self.compact_memory = value
        self._drain_lru()
        for node in self._nodes:
            yield from self._compact_node(node)

    def compact_node_steps(self, nid: int) -> Steps[None]:
        """Compact one node (``echo 1 > /sys/devices/system/node/nodeN/compact``)."""
        self._drain_lru()
        yield from self._compact_node(self._nodes[nid])

    def _drain_lru(self) -> None:
        movers = self._movers()
        if movers is not None:
            movers[0].drain_all()

    def _compact_node(self, node: Node) -> Steps[None]:
        for zone in self._populated(node):
            cc = Control(mode=SYNC, ignore_skip_hint=True, whole_zone=True)
            yield from self.zone_compactor.compact_zone(self.states[zone.index], cc)

    @staticmethod
    def _populated(node: Node) -> list[Zone]:
        return [zone for zone in node.zones if zone.populated]

    # -- for a request -----------------------------------------------------------------------------------

    def try_to_compact_pages(
        self, zones: Iterable[Zone], gfp: int, order: int, alloc_flags: int, highest: int, priority: Priority
    ) -> tuple[Result, int]:
        """Direct compaction of the zones that a request may use, until one has a block: what came of it, and the
        block if it was caught as it was freed, else -1.
        """
        found = Result.SKIPPED
        if not gfp & g.F.IO:
            return found, -1
        trace = self._vmstat.trace
        trace.emit(ev.MM_COMPACTION_TRY_TO_COMPACT_PAGES, order, gfp, priority)
        for zone in zones:
            state = self.states[zone.index]
            if priority > Priority.SYNC_FULL and state.deferred(order):
                trace_points.compaction_zone(trace, ev.MM_COMPACTION_DEFERRED, zone, order, *state.deferral)
                found = max(found, Result.DEFERRED)
                continue
            result, captured = self._compact_for(state, gfp, order, alloc_flags, highest, priority)
            found = max(found, result)
            if result is Result.SUCCESS:
                state.defer_reset(order, allocated=False)
                trace_points.compaction_zone(trace, ev.MM_COMPACTION_DEFER_RESET, zone, order, *state.deferral)
                return found, captured
            if priority != Priority.ASYNC and result in DEFER_RESULTS:
                state.defer(order)
                trace_points.compaction_zone(trace, ev.MM_COMPACTION_DEFER_COMPACTION, zone, order, *state.deferral)
        return found, -1

    def _compact_for(
        self, state: ZoneState, gfp: int, order: int, alloc_flags: int, highest: int, priority: Priority
    ) -> tuple[Result, int]:
        """compact_zone_order."""
        full = priority == Priority.SYNC_FULL
        cc = Control(
            order=order,
            search_order=order,
            gfp=gfp,
            mode=ASYNC if priority == Priority.ASYNC else SYNC_LIGHT,
            alloc_flags=alloc_flags,
            highest=highest,
            direct=True,
            whole_zone=full,
            ignore_skip_hint=full,
            ignore_block_suitable=full,
        )
        self._buddy.capture(state.zone.index, order, gfp)
        result = finish(self.zone_compactor.compact_zone(state, cc))
        captured = int(self._buddy.captured)
        self._buddy.capture(0, -1)
        return (Result.SUCCESS if captured >= 0 else result), captured

    def allocated(self, zone: Zone, order: int) -> None:
        """A request got its block after compaction."""
        state = self.states[zone.index]
        state.blockskip_flush = False
        state.defer_reset(order, allocated=True)

    # -- kcompactd ---------------------------------------------------------------------------------------

    def compact_for_daemon(self, zone: Zone, order: int, highest: int) -> Steps[None]:
        """One zone by kcompactd (kcompactd_do_work)."""
        state = self.states[zone.index]
        if state.deferred(order) or self.zone_compactor.suitable(zone, order, 0, zone.kind) is not Result.CONTINUE:
            return
        cc = Control(order=order, search_order=order, highest=highest)
        result = yield from self.zone_compactor.compact_zone(state, cc)
        if result is Result.SUCCESS:
            state.defer_reset(order, allocated=False)
        elif result in DEFER_RESULTS:
            for cpu in range(self._buddy.ncpus):
                self._buddy.drain(zone.index, cpu)
            state.defer(order)
        self._vmstat.count(stats.KCOMPACTD_MIGRATE_SCANNED, cc.migrate_scanned)
        self._vmstat.count(stats.KCOMPACTD_FREE_SCANNED, cc.free_scanned)

    def proactive_compact_node(self, node: Node) -> Steps[None]:
        """Compact until the score is low enough."""
        for zone in self._populated(node):
            cc = Control(ignore_skip_hint=True, whole_zone=True, proactive=True)
            yield from self.zone_compactor.compact_zone(self.states[zone.index], cc)

    def on_proactiveness(self) -> None:
        """A value other than 0 has every kcompactd look at once."""
        if self.compaction_proactiveness:
            self.proactiveness_written()

    # -- scores ------------------------------------------------------------------------------------------

    def fragmentation_score_zone(self, zone: Zone) -> int:
        """Percent of a zone's free memory that no huge page could use (extfrag_for_order)."""
        order = int(self._buddy.pageblock_order)
        info = ContigPageInfo.of(zone.nr_free, order)
        if not info.free_pages:
            return 0
        return (info.free_pages - (info.free_blocks_suitable << order)) * 100 // info.free_pages

    def fragmentation_score_node(self, node: Node) -> int:
        """The zones' scores, weighted by their size."""
        total = node.present + 1
        return sum(zone.present * self.fragmentation_score_zone(zone) // total for zone in node.zones)

    def fragmentation_score_wmark(self, *, low: bool) -> int:
        """The score at which proactive compaction begins, or ends (``low``)."""
        mark = max(100 - self.compaction_proactiveness, 5)
        return mark if low else min(mark + 10, 100)

    def proactively_done(self, zone: Zone) -> bool:
        """Whether a zone's score is low enough."""
        return self.fragmentation_score_zone(zone) <= self.fragmentation_score_wmark(low=True)

    def reset_isolation_suitable(self, node: Node) -> None:
        """kswapd goes to sleep: forget hints where direct compaction went through the whole zone."""
        for zone in self._populated(node):
            self.zone_compactor.reset_isolation_suitable(self.states[zone.index])
