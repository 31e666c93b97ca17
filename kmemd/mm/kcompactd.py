"""The compaction daemons, one for each node (mm/compaction.c ``kcompactd``).

Models the wake-up by kswapd with the largest order and lowest zone asked for, the work, and proactive compaction every
500 ms of model time, put off when it does not help. A daemon runs when the model's clock next stops, as its own task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kmemd.core import stats
from kmemd.core import trace_ids as ev
from kmemd.core.context import Context
from kmemd.mm.clock import Clock
from kmemd.mm.compaction import Compaction
from kmemd.mm.compaction_zone import COMPACT_MAX_DEFER_SHIFT, Result
from kmemd.mm.mmzone import Node
from kmemd.mm.sched import Task, TaskTable
from kmemd.mm.vmstat import VmStat

CHECK_INTERVAL_NS = 500_000_000
"""How often the fragmentation score is looked at (HPAGE_FRAG_CHECK_INTERVAL_MSEC)."""


@dataclass
class _Daemon:
    """One node's: what it is asked for, and which of its timers counts."""

    node: Node
    max_order: int = 0
    highest: int = 3
    turn: int = 0
    awake: bool = False


class Kcompactd:
    """``run_as(comm)`` makes a kernel thread the executing task; ``stalled(ns)`` is told how long it worked;
    ``kswapd_runs(nid)`` says whether kswapd is awake.
    """

    def __init__(
        self,
        compaction: Compaction,
        nodes: list[Node],
        vmstat: VmStat,
        clock: Clock,
        context: Context,
        tasks: TaskTable,
        run_as: Callable[[str], None],
        stalled: Callable[[int], None] = lambda ns: None,
        kswapd_runs: Callable[[int], bool] = lambda nid: False,
    ) -> None:
        self._compaction = compaction
        self._vmstat = vmstat
        self._clock = clock
        self._context = context
        self._tasks = tasks
        self._threads: dict[str, Task] = {}
        self._run_as = run_as
        self._stalled = stalled
        self._kswapd_runs = kswapd_runs
        self._daemons = [_Daemon(node, highest=len(node.zones) - 1) for node in nodes]
        compaction.proactiveness_written = self.trigger

    def start(self) -> None:
        """The daemons begin to look every 500 ms (kcompactd_run)."""
        for daemon in self._daemons:
            if daemon.node.has_memory:
                self._sleep(daemon, CHECK_INTERVAL_NS)

    def trigger(self) -> None:
        """vm.compaction_proactiveness was written: look at once."""
        for daemon in self._daemons:
            if daemon.node.has_memory:
                self._sleep(daemon, 0)

    def kswapd_sleeps(self, nid: int, order: int, highest: int) -> None:
        """A node's kswapd goes to sleep (kswapd_try_to_sleep)."""
        self._compaction.reset_isolation_suitable(self._daemons[nid].node)
        self.wakeup(nid, order, highest)

    def wakeup(self, nid: int, order: int, highest: int) -> None:
        """kswapd made room for a request and goes to sleep: make blocks of it (wakeup_kcompactd)."""
        if not order:
            return
        daemon = self._daemons[nid]
        daemon.max_order = max(daemon.max_order, order)
        daemon.highest = min(daemon.highest, highest)
        if not daemon.awake and self._suitable(daemon):
            daemon.awake = True
            self._context.trace.emit(ev.MM_COMPACTION_WAKEUP_KCOMPACTD, nid, order, highest)
            self._clock.call_at(self._clock.now, lambda: self._work(daemon))

    def _suitable(self, daemon: _Daemon) -> bool:
        """kcompactd_node_suitable."""
        suitable = self._compaction.zone_compactor.suitable
        zones = [zone for zone in daemon.node.zones[: daemon.highest + 1] if zone.populated]
        return any(suitable(zone, daemon.max_order, 0, daemon.highest) is Result.CONTINUE for zone in zones)

    def _work(self, daemon: _Daemon) -> None:
        """kcompactd_do_work."""
        daemon.awake = False
        order, highest = daemon.max_order, daemon.highest
        if order:
            with self._running(daemon):
                self._vmstat.count(stats.KCOMPACTD_WAKE)
                self._context.trace.emit(ev.MM_COMPACTION_KCOMPACTD_WAKE, daemon.node.nid, order, highest)
                for zone in daemon.node.zones[: highest + 1]:
                    if zone.populated:
                        self._compaction.compact_for_daemon(zone, order, highest)
            if daemon.max_order <= order:
                daemon.max_order = 0
            if daemon.highest >= highest:
                daemon.highest = len(daemon.node.zones) - 1
        self._context.trace.emit(ev.MM_COMPACTION_KCOMPACTD_SLEEP, daemon.node.nid)
        self._sleep(daemon, CHECK_INTERVAL_NS)

    # -- proactive ---------------------------------------------------------------------------------------

    def _sleep(self, daemon: _Daemon, ns: int) -> None:
        """Look again after a time, unless something else happens before."""
        daemon.turn += 1
        turn = daemon.turn
        if self._compaction.compaction_proactiveness:
            self._clock.call_at(self._clock.now + ns, lambda: self._look(daemon, turn))

    def _look(self, daemon: _Daemon, turn: int) -> None:
        """Compact when the node is fragmented enough (should_proactive_compact_node)."""
        if turn != daemon.turn:
            return
        node, wait = daemon.node, CHECK_INTERVAL_NS
        compaction = self._compaction
        before = compaction.fragmentation_score_node(node)
        busy = self._kswapd_runs(node.nid)
        if (
            compaction.compaction_proactiveness
            and not busy
            and before > compaction.fragmentation_score_wmark(low=False)
        ):
            with self._running(daemon):
                compaction.proactive_compact_node(node)
            if compaction.fragmentation_score_node(node) >= before:
                wait <<= COMPACT_MAX_DEFER_SHIFT
        self._sleep(daemon, wait)

    @contextmanager
    def _running(self, daemon: _Daemon) -> Iterator[None]:
        """Execute as the node's daemon, whose CPU time it is; what waits for memory meanwhile is stalled."""
        words, start = self._context.words.copy(), self._context.now
        comm = f"kcompactd{daemon.node.nid}"
        self._run_as(comm)
        try:
            yield
        finally:
            now = self._context.now
            self._context.words[:] = words
            self._context.now = now
            self._stalled(now - start)
            thread = self._thread(comm)
            if thread is not None:
                thread.stime_ns += now - start

    def _thread(self, comm: str) -> Task | None:
        """The daemon's task."""
        found = self._threads.get(comm)
        if found is None or found.pid not in self._tasks:
            found = next((task for task in self._tasks if task.comm == comm), None)
            if found is not None:
                self._threads[comm] = found
        return found
