"""The compaction daemons, one for each node (mm/compaction.c ``kcompactd``).

Models the wake-up by kswapd with the largest order and lowest zone asked for, the work, and proactive compaction every
500 ms of model time, put off when it does not help.

A daemon works in portions, as its own task. On a machine with several CPUs it has one for itself: the model's time
stands still meanwhile, and the next portion comes when the time that this one took has gone by. On the only CPU its
work is everybody's time. Between two portions others allocate, free and compact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kmemd.core import stats
from kmemd.core import trace_ids as ev
from kmemd.core.context import NOW, Context
from kmemd.mm.clock import Clock
from kmemd.mm.compaction import Compaction
from kmemd.mm.compaction_zone import COMPACT_MAX_DEFER_SHIFT, Result
from kmemd.mm.mmzone import Node
from kmemd.mm.sched import Task, TaskTable
from kmemd.mm.vmstat import VmStat
from kmemd.steps import Steps

CHECK_INTERVAL_NS = 500_000_000
"""How often the fragmentation score is looked at (HPAGE_FRAG_CHECK_INTERVAL_MSEC)."""


TICK_NS = 200_000
"""A portion of work ends when it has taken so long, or so many steps."""
STEPS_AT_ONCE = 64
STEP_NS = 1_000
"""What a step costs at least: looking at a page block."""


@dataclass
class _Daemon:
    """One node's: what it is asked for, what it is doing, and which of its timers counts. ``stalls``: what it does is
    for somebody who waits for memory.
    """

    node: Node
    max_order: int = 0
    highest: int = 3
    turn: int = 0
    work: Steps[int] | None = None
    stalls: bool = False
    thread: Task | None = None


class Kcompactd:
    """``run_as(comm)`` makes a kernel thread the executing task; ``stalled(ns)`` is told how long it worked for kswapd;
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
        self._alone = sum(len(node.cpus) for node in nodes) == 1
        self._run_as = run_as
        self._stalled = stalled
        self._kswapd_runs = kswapd_runs
        self._daemons = [_Daemon(node, highest=len(node.zones) - 1) for node in nodes]
        compaction.proactiveness_written = self.trigger
        compaction.kswapd_runs = kswapd_runs

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
        if daemon.work is None and self._suitable(daemon):
            self._context.trace.emit(ev.MM_COMPACTION_WAKEUP_KCOMPACTD, nid, order, highest)
            self._begin(daemon, self._do_work(daemon), stalls=True)

    def _suitable(self, daemon: _Daemon) -> bool:
        """kcompactd_node_suitable."""
        suitable = self._compaction.zone_compactor.suitable
        zones = [zone for zone in daemon.node.zones[: daemon.highest + 1] if zone.populated]
        return any(suitable(zone, daemon.max_order, 0, daemon.highest) is Result.CONTINUE for zone in zones)

    def _do_work(self, daemon: _Daemon) -> Steps[int]:
        """Compact what was asked for, until nobody asks (kcompactd_do_work): when to look again, in ns."""
        while daemon.max_order:
            order, highest = daemon.max_order, daemon.highest
            self._vmstat.count(stats.KCOMPACTD_WAKE)
            self._context.trace.emit(ev.MM_COMPACTION_KCOMPACTD_WAKE, daemon.node.nid, order, highest)
            for zone in daemon.node.zones[: highest + 1]:
                if zone.populated:
                    yield from self._compaction.compact_for_daemon(zone, order, highest)
            if daemon.max_order <= order:
                daemon.max_order = 0
            if daemon.highest >= highest:
                daemon.highest = len(daemon.node.zones) - 1
        return CHECK_INTERVAL_NS

    # -- portions ----------------------------------------------------------------------------------------

    def _begin(self, daemon: _Daemon, work: Steps[int], *, stalls: bool) -> None:
        """The daemon has something to do from now on."""
        daemon.work, daemon.stalls = work, stalls
        daemon.turn += 1
        self._clock.call_at(self._clock.now, lambda: self._portion(daemon, work))

    def _portion(self, daemon: _Daemon, work: Steps[int]) -> None:
        """Work for a while, as the daemon, whose CPU time it is; then come back, or sleep."""
        words = self._context.words
        before, start = words.copy(), self._context.now
        self._run_as(f"kcompactd{daemon.node.nid}")
        wait: int | None = None
        try:
            wait = self._some_steps(work, start + TICK_NS)
        finally:
            took = self._context.now - start
            words[:] = before
            words[NOW] = start + took if self._alone else start
            self._account(daemon, took)
        if wait is None:
            self._clock.call_at(start + took, lambda: self._portion(daemon, work))
        else:
            daemon.work = None
            self._sleep(daemon, wait)

    def _some_steps(self, work: Steps[int], until: int) -> int | None:
        """A few steps: None, or how long to sleep afterwards."""
        for _ in range(STEPS_AT_ONCE):
            began = self._context.now
            try:
                next(work)
            except StopIteration as stop:
                self._context.now = max(self._context.now, began + STEP_NS)
                return int(stop.value)
            self._context.now = max(self._context.now, began + STEP_NS)
            if self._context.now >= until:
                break
        return None

    def _account(self, daemon: _Daemon, ns: int) -> None:
        """The daemon has used its CPU."""
        if daemon.stalls:
            self._stalled(ns)
        if daemon.thread is None or daemon.thread.pid not in self._tasks:
            name = f"kcompactd{daemon.node.nid}"
            daemon.thread = next((task for task in self._tasks if task.comm == name), None)
        if daemon.thread is not None:
            daemon.thread.stime_ns += ns

    # -- proactive ---------------------------------------------------------------------------------------

    def _sleep(self, daemon: _Daemon, ns: int) -> None:
        """Look again after a time, unless something else happens before."""
        if ns and self._context.trace.on(ev.MM_COMPACTION_KCOMPACTD_SLEEP):
            before = self._context.words.copy()
            self._run_as(f"kcompactd{daemon.node.nid}")
            self._context.trace.emit(ev.MM_COMPACTION_KCOMPACTD_SLEEP, daemon.node.nid)
            self._context.words[:] = before
        daemon.turn += 1
        turn = daemon.turn
        if self._compaction.compaction_proactiveness:
            self._clock.call_at(self._clock.now + ns, lambda: self._look(daemon, turn))

    def _look(self, daemon: _Daemon, turn: int) -> None:
        """Compact when the node is fragmented enough (should_proactive_compact_node)."""
        if turn != daemon.turn or daemon.work is not None:
            return
        compaction, node = self._compaction, daemon.node
        fragmented = compaction.fragmentation_score_node(node) > compaction.fragmentation_score_wmark(low=False)
        if compaction.compaction_proactiveness and fragmented and not self._kswapd_runs(node.nid):
            self._begin(daemon, self._proactively(node), stalls=False)
        else:
            self._sleep(daemon, CHECK_INTERVAL_NS)

    def _proactively(self, node: Node) -> Steps[int]:
        """Compact until the score is low enough: when to look again, in ns; later when it did not help."""
        before = self._compaction.fragmentation_score_node(node)
        yield from self._compaction.proactive_compact_node(node)
        helped = self._compaction.fragmentation_score_node(node) < before
        return CHECK_INTERVAL_NS if helped else CHECK_INTERVAL_NS << COMPACT_MAX_DEFER_SHIFT
