"""kswapd: a kernel thread per node that reclaims before anybody must (mm/vmscan.c ``kswapd``, ``balance_pgdat``).

Models: waking at the low watermark, priorities until the high one, watermark boosts with their gentler reclaim, both
kinds of sleep and what cuts them short, hopeless nodes. Left out: freezing.

Each kswapd has time of its own, ``Thread.at``: it works on another CPU while the model's time goes on, pays for what it
does there, and waits for devices there. Whoever needs memory lets it catch up with the present (``catch_up``), never
beyond: while it is at work, before each 32 blocks of a request. Faults come in batches, whose blocks are asked for when
all have happened: each was needed when its fault was, ``behind`` the clock. When the machine idles, timers let it work.
On a machine with one CPU it has to take turns with who allocates: it has slept and goes first when it is woken, then
the CPU changes hands after each ``TURN_NS``, and everybody's time passes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

from kmemd.core import stats
from kmemd.core import trace_ids as ev
from kmemd.core.buddy import Buddy
from kmemd.core.context import NOW, Context
from kmemd.mm import gfp as g
from kmemd.mm.clock import NSEC_PER_SEC, Clock
from kmemd.mm.mmzone import Node
from kmemd.mm.sched import Task, TaskTable
from kmemd.mm.vmscan_balance import DEF_PRIORITY, SWAP_CLUSTER_MAX, ScanControl
from kmemd.mm.vmscan_reclaim import MAX_RECLAIM_RETRIES, Pauses, Reclaim
from kmemd.mm.vmstat import VmStat

SHORT_SLEEP_NS = NSEC_PER_SEC // 10
TURN_NS = 3_000_000
"""How long a task runs when two want the only CPU: half of the scheduler's latency (sched_slice)."""
TICK_NS = 100_000
"""While the machine idles kswapd's work is done in portions of this."""
STEP_NS = 1_000
"""What a step costs at least: looking at watermarks, lists and cgroups."""
MOST_NS = 200_000
"""A tick lets kswapd catch up by so much at most; the next one goes on."""
TICK_STEPS = 4
"""Steps of a tick between which others get in."""
SLEEP, NAP = -1, -2
"""What kswapd yields besides the waits of reclaim: it sleeps until somebody wakes it, the second at most 100 ms."""

Life = Generator[int, bool, None]


@dataclass(slots=True)
class Thread:
    """The kswapd of a node. ``order`` and ``highest`` are what it was last woken for, -1 nothing
    (``pgdat->kswapd_order``, ``kswapd_highest_zoneidx``); ``sleep`` is SLEEP, NAP or 0 when it is up; ``due`` is when
    the timer comes that goes on with it."""

    node: Node
    life: Life
    at: int = 0
    order: int = 0
    highest: int = -1
    sleep: int = SLEEP
    woken: bool = False
    turn_ended: int = 0
    due: int | None = None
    task: Task | None = None


class Kswapd:
    """The kswapds of all nodes. ``steps`` counts what they have done, ``behind`` is for how many ns the executing task
    has done already what comes after the request that it makes.

    ``laptop_mode()`` is the knob; ``wakeup_kcompactd(nid, order, highest)`` is told when one goes to sleep;
    ``next_io()`` is when a device is next done with something, None when none is at work.
    """

    def __init__(
        self,
        nodes: list[Node],
        buddy: Buddy,
        vmstat: VmStat,
        context: Context,
        clock: Clock,
        tasks: TaskTable,
        reclaim: Reclaim,
        laptop_mode: Callable[[], int],
        wakeup_kcompactd: Callable[[int, int, int], None],
        next_io: Callable[[], int | None] = lambda: None,
        stalled: Callable[[int], None] = lambda ns: None,
    ) -> None:
        self._buddy, self._vmstat, self._context, self._clock = buddy, vmstat, context, clock
        self._tasks, self._reclaim = tasks, reclaim
        self._laptop_mode, self.wakeup_kcompactd = laptop_mode, wakeup_kcompactd
        self._next_io, self._stalled = next_io, stalled
        self._alone = sum(len(node.cpus) for node in nodes) == 1
        self._cpus = {cpu: node.nid for node in nodes for cpu in node.cpus}
        self.running = False
        self.steps = self.behind = 0
        self.threads = [Thread(node, life=self._life(node)) for node in nodes]
        for thread in self.threads:
            next(thread.life)

    # -- waking ------------------------------------------------------------------------------------------

    def balanced(self, node: Node, order: int, highest: int) -> bool:
        """Whether a zone is above its high watermark (``pgdat_balanced``)."""
        zones = [zone for zone in node.zones[: highest + 1] if zone.managed]
        return not zones or any(
            self._buddy.watermark_ok(zone.index, order, zone.watermark_high + zone.boost, highest, 0) for zone in zones
        )

    def wake(self, nid: int, order: int, highest: int, gfp: int = 0) -> None:
        """A request found too little: tell the node's kswapd, and wake it unless it has nothing to do or no hope
        (``wakeup_kswapd``)."""
        thread = self.threads[nid]
        thread.highest = max(thread.highest, highest)
        thread.order = max(thread.order, order)
        node = thread.node
        if not thread.sleep or node.kswapd_failures >= MAX_RECLAIM_RETRIES:
            return
        boosted = any(zone.boost for zone in node.zones[: highest + 1])
        if self.balanced(node, order, highest) and not boosted:
            return
        self._context.trace.emit(ev.MM_VMSCAN_WAKEUP_KSWAPD, nid, highest, order, gfp)
        self.rouse(nid)

    def rouse(self, nid: int) -> None:
        """It gets up, whatever it sleeps for."""
        thread = self.threads[nid]
        if thread.sleep:
            thread.sleep, thread.woken = 0, True
            thread.at = self._now
            thread.turn_ended = self._context.now - TURN_NS
            self._arm(thread)

    def is_awake(self, nid: int) -> bool:
        """Whether it is up, or will look again by itself."""
        return self.threads[nid].sleep != SLEEP

    # -- time --------------------------------------------------------------------------------------------

    @property
    def at_work(self) -> bool:
        """Whether one is up."""
        return any(not thread.sleep for thread in self.threads)

    @property
    def _now(self) -> int:
        """When the request is made that others work beside: on the only CPU nobody is behind."""
        return self._context.now - (0 if self._alone else self.behind)

    def catch_up(self) -> None:
        """Each kswapd does what it had time for until now."""
        if self.running:
            return
        now = self._now
        for thread in self.threads:
            if thread.sleep != SLEEP and thread.at < now + self._alone:
                self._run(thread, now, NSEC_PER_SEC)

    def _run(self, thread: Thread, now: int, most_ns: int, most_steps: int = 1 << 30) -> int:
        """Let it work until ``now``, and for ``most_ns`` at most; on the only CPU, from now on until its turn ends.

        How many ns are left when that took more than ``most_steps``.
        """
        words, worked, end = self._context.words, 0, self.steps + most_steps
        before = words.copy()
        if self._alone:
            most_ns = min(most_ns, now - thread.turn_ended, TURN_NS)
            thread.at, now = now, now + most_ns
        self.running = True
        try:
            self._switch(thread)
            while thread.sleep != SLEEP and thread.at < now and worked < most_ns and self.steps < end:
                worked += self._step(thread)
            left = most_ns - worked if thread.sleep != SLEEP and thread.at < now else 0
        finally:
            self.running = False
            words[NOW + 1 :] = before[NOW + 1 :]
            words[NOW] = before[NOW]
        if self._alone:
            words[NOW] += worked
            thread.turn_ended = self._context.now
        return left

    def _switch(self, thread: Thread) -> None:
        """Execute as kswapd, on a CPU that is not the allocating one's if there is another."""
        task = self._task_of(thread)
        here, context = self._context.cpu, self._context
        cpu = task.cpu if task is not None else here
        if cpu == here:
            near = [cpu for cpu in self._cpus if cpu != here and self._cpus[cpu] == thread.node.nid]
            cpu = next(iter(near or [cpu for cpu in self._cpus if cpu != here]), here)
        if task is not None:
            context.switch(task.pid, task.tgid, task.comm, cpu)
        else:
            context.cpu = cpu

    def _task_of(self, thread: Thread) -> Task | None:
        if thread.task is None or thread.task.pid not in self._tasks:
            name = f"kswapd{thread.node.nid}"
            thread.task = next((task for task in self._tasks if task.comm == name), None)
        return thread.task

    def _step(self, thread: Thread) -> int:
        """It works up to the next point where it waits, sleeps or lets others run. How many ns it worked."""
        self.steps += 1
        start = self._context.now = thread.at
        woken, thread.woken, thread.sleep = thread.woken, False, 0
        pause = thread.life.send(woken)
        worked = max(self._context.now - start, STEP_NS)
        thread.at += worked
        if pause < 0:
            thread.sleep = pause
            thread.at += SHORT_SLEEP_NS if pause == NAP else 0
        elif pause:
            done = self._next_io()
            thread.at += pause if done is None else min(pause, max(done - thread.at, 0))
        self._stalled(worked if pause < 0 else thread.at - start)
        if thread.task is not None:
            thread.task.stime_ns += worked
            if pause:
                self._tasks.slept(thread.task)
        return worked

    def _arm(self, thread: Thread) -> None:
        """Have a timer go on with it while nobody asks for memory."""
        when = max(thread.at, self._clock.now) + (0 if thread.sleep else TICK_NS)
        if thread.sleep != SLEEP and (thread.due is None or when < thread.due):
            thread.due = when
            self._clock.call_at(when, lambda: self._tick(thread, when))

    def _tick(self, thread: Thread, when: int, most_ns: int = MOST_NS) -> None:
        """Its timer: it catches up, a few steps at a time, between which others may get in."""
        if thread.due != when:
            return
        thread.due, left = None, 0
        if not self.running and thread.sleep != SLEEP and thread.at <= self._context.now:
            left = self._run(thread, self._context.now + 1, most_ns, TICK_STEPS if not self._alone else 1 << 30)
        if left > 0 and not self._alone:
            thread.due = when
            self._clock.call_at(self._context.now, lambda: self._tick(thread, when, left))
        else:
            self._arm(thread)

    # -- what it does ------------------------------------------------------------------------------------

    def _life(self, node: Node) -> Life:
        """Sleep and reclaim, for ever (``kswapd``). It is sent whether somebody has woken it."""
        order = reached = 0
        highest = len(node.zones) - 1
        yield SLEEP
        thread = self.threads[node.nid]
        while True:
            order, highest = thread.order, highest if thread.highest < 0 else thread.highest
            thread.order, thread.highest = 0, -1
            self._context.trace.emit(ev.MM_VMSCAN_KSWAPD_WAKE, node.nid, highest, order)
            reached = yield from self._balance_pgdat(node, order, highest)
            if reached < order:  # the small ones come first; the block is asked for again by who needs it
                yield from self._try_to_sleep(thread, order, reached, highest)
                continue
            order, highest = max(thread.order, 0), highest if thread.highest < 0 else thread.highest
            yield from self._try_to_sleep(thread, order, order, highest)

    def _try_to_sleep(self, thread: Thread, order: int, reached: int, highest: int) -> Life:
        """Sleep a little first: who is woken at once is needed (``kswapd_try_to_sleep``)."""
        woken = False
        if self._may_sleep(thread.node, reached, highest):
            self.wakeup_kcompactd(thread.node.nid, order, highest)
            woken = yield NAP
            if woken:
                thread.highest = max(thread.highest, highest)
                thread.order = max(thread.order, reached)
        if not woken and self._may_sleep(thread.node, reached, highest):
            self._context.trace.emit(ev.MM_VMSCAN_KSWAPD_SLEEP, thread.node.nid)
            yield SLEEP
        else:
            quickly = stats.KSWAPD_LOW_WMARK_HIT_QUICKLY if woken else stats.KSWAPD_HIGH_WMARK_HIT_QUICKLY
            self._vmstat.count(quickly)

    def _may_sleep(self, node: Node, order: int, highest: int) -> bool:
        """``prepare_kswapd_sleep``."""
        if node.kswapd_failures >= MAX_RECLAIM_RETRIES:
            return True
        if not self.balanced(node, order, highest):
            return False
        self._reclaim.forget_state(node.nid)
        return True

    def _balance_pgdat(self, node: Node, order: int, highest: int) -> Pauses[int]:
        """Reclaim until a zone is above its high watermark; the order that it did so for."""
        self._vmstat.count(stats.PAGEOUTRUN)
        sc = ScanControl(0, g.GFP_KERNEL, order=order, kswapd=True, reclaim_idx=highest)
        boosts = {zone.index: zone.boost for zone in node.zones[: highest + 1] if zone.managed}
        left = sum(boosts.values())
        done = False
        while sc.priority >= 1:
            balanced = self.balanced(node, sc.order, highest)
            if not balanced and left:
                left, sc.priority = 0, DEF_PRIORITY
                continue
            if not left and balanced:
                done = True
                break
            freed, raise_priority = yield from self._round(node, sc, left)
            left -= min(left, freed)
            if left and not freed:
                break
            if raise_priority or not freed:
                sc.priority -= 1
        if not done and not sc.nr_reclaimed:
            node.kswapd_failures += 1
        self._lower_boosts(node, boosts, highest)
        self._reclaim.snapshot_refaults(0, node.nid)
        return sc.order

    def _lower_boosts(self, node: Node, boosts: dict[int, int], highest: int) -> None:
        """Boosts that were seen at the start are paid off; kcompactd makes whole page blocks of it."""
        for zi, boost in boosts.items():
            self._buddy.boost[zi] -= min(int(self._buddy.boost[zi]), boost)
        if any(boosts.values()):
            self.wakeup_kcompactd(node.nid, self._buddy.pageblock_order, highest)

    def _round(self, node: Node, sc: ScanControl, boost: int) -> Pauses[tuple[int, bool]]:
        """One pass at one priority: pages reclaimed, and whether the next one should scan more."""
        before = sc.nr_reclaimed
        sc.may_writepage = (not self._laptop_mode() and not boost) or sc.priority < DEF_PRIORITY - 2
        sc.may_swap = not boost
        reclaim = self._reclaim
        yield from reclaim.age_node(node, sc)
        sc.nr_scanned = 0
        sc.nr_to_reclaim = sum(
            max(zone.watermark_high + zone.boost, SWAP_CLUSTER_MAX)
            for zone in node.zones[: sc.reclaim_idx + 1]
            if zone.managed
        )
        yield from reclaim.shrink_node(node, sc)
        if sc.order and sc.nr_reclaimed >= 2 << sc.order:
            sc.order = 0
        enough = sc.nr_scanned >= sc.nr_to_reclaim
        return sc.nr_reclaimed - before, not enough and not (boost and sc.priority == DEF_PRIORITY - 2)
