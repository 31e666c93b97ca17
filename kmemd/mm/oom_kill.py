"""The out-of-memory killer: whom it kills when no page can be had, and what becomes of him (mm/oom_kill.c).

Models ``out_of_memory`` with its knobs, constraints and panics, and the oom_reaper. A victim dies at once, as it would
on a CPU of its own; one that cannot (it sleeps uninterruptibly) is reaped two seconds of model time later. The victim
that is executing itself may dig into the reserves and ends when its system call or fault does.
Left out: cpusets, notifiers, threads and vfork. A panic is logged and the
request fails: the model lives on. A request that may not call file systems (no __GFP_FS), which Linux lets wait
for others to free memory, fails as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, Protocol

from kmemd.core import stats
from kmemd.core import trace_ids as ev
from kmemd.core.context import Context
from kmemd.mm import gfp as g
from kmemd.mm import trace_points
from kmemd.mm.clock import NSEC_PER_SEC, Clock
from kmemd.mm.memcontrol_group import OOM_GROUP_KILL, OOM_KILL, MemCgroup
from kmemd.mm.mm_counters import MmCounters
from kmemd.mm.mm_types import MMF_OOM_REAP_QUEUED, MMF_OOM_SKIP, MMF_UNSTABLE, Mm
from kmemd.mm.mmzone import Node
from kmemd.mm.mpol import MPOL_BIND
from kmemd.mm.oom_adj import INIT_PID, OOM_SCORE_ADJ_MIN
from kmemd.mm.oom_report import SYSRQ_ORDER, OomControl, OomReport, OomTask
from kmemd.mm.oom_score import oom_badness, unkillable
from kmemd.mm.signals import SIGKILL
from kmemd.mm.sysctl_handlers import vm_knob
from kmemd.mm.vmstat import VmStat
from kmemd.tunable import Tunable, Tuned

OOM_REAPER_DELAY_NS = 2 * NSEC_PER_SEC
LONG_MAX = (1 << 63) - 1
CONSTRAINT_NONE, CONSTRAINT_MEMORY_POLICY = "CONSTRAINT_NONE", "CONSTRAINT_MEMORY_POLICY"
CONSTRAINT_MEMCG = "CONSTRAINT_MEMCG"


class Wanted(Protocol):
    """The request that found no page (page_alloc.Request)."""

    gfp: int
    order: int
    highest: int
    nodemask: int


class OomReaper:
    """The kernel thread that takes a victim's memory when the victim does not get to it (``oom_reaper``).

    ``reap(mm)`` unmaps the private memory of an address space.
    """

    def __init__(self, context: Context, clock: Clock, report: OomReport, reap: Callable[[Mm], None]) -> None:
        self._context = context
        self._clock = clock
        self._report = report
        self._reap = reap
        self._queue: list[tuple[int, OomTask, Mm]] = []

    def queue(self, task: OomTask) -> None:
        """Look at the task in two seconds (queue_oom_reaper)."""
        mm = task.mm
        if mm is None or mm.flags & MMF_OOM_REAP_QUEUED:
            return
        mm.flags |= MMF_OOM_REAP_QUEUED
        self._context.trace.emit(ev.WAKE_REAPER, task.pid)
        entry = (self._clock.now + OOM_REAPER_DELAY_NS, task, mm)
        self._queue.append(entry)
        self._clock.call_at(entry[0], partial(self._timer, entry))

    def _timer(self, entry: tuple[int, OomTask, Mm]) -> None:
        self._wake(entry)

    def wait(self) -> bool:
        """Let the time pass until the next victim is reaped; False when none is queued."""
        while self._queue:
            entry = self._queue[0]
            self._context.charge(max(0, entry[0] - self._clock.now))
            if self._wake(entry):
                return True
        return False

    def _wake(self, entry: tuple[int, OomTask, Mm]) -> bool:
        """Reap, unless the victim has ended by itself (oom_reap_task)."""
        if entry not in self._queue:
            return False
        self._queue.remove(entry)
        _, task, mm = entry
        if task.mm is not mm or mm.flags & MMF_OOM_SKIP:
            self._context.trace.emit(ev.SKIP_TASK_REAPING, task.pid)
            return False
        mm.flags |= MMF_UNSTABLE
        self._context.trace.emit(ev.START_TASK_REAPING, task.pid)
        self._reap(mm)
        self._context.trace.emit(ev.FINISH_TASK_REAPING, task.pid)
        self._report.reaped(task, mm)
        mm.flags |= MMF_OOM_SKIP
        return True


class OomKill(Tuned):
    """The killer and its settings.

    ``tasks()`` lists the tasks in the order of their creation, ``current()`` is the one that executes (None: no
    process does), ``do_exit(task)`` ends another one and says whether it could. ``total_pages()`` gives the pages of
    RAM and of swap.

    Invariants: a task with ``oom_victim`` has a pending SIGKILL.
    """

    TUNABLES: ClassVar[tuple[Tunable, ...]] = (
        vm_knob("panic_on_oom", min=0, max=2),
        vm_knob("oom_kill_allocating_task"),
        vm_knob("oom_dump_tasks"),
    )

    def __init__(
        self,
        nodes: Sequence[Node],
        tasks: Callable[[], Sequence[OomTask]],
        current: Callable[[], OomTask | None],
        total_pages: Callable[[], tuple[int, int]],
        counters: MmCounters,
        vmstat: VmStat,
        report: OomReport,
        reaper: OomReaper,
        do_exit: Callable[[OomTask], bool],
        *,
        long_bits: int = 64,
    ) -> None:
        self._nodes = nodes
        self._tasks = tasks
        self._current = current
        self._total_pages = total_pages
        self._counters = counters
        self._vmstat = vmstat
        self._report = report
        self._reaper = reaper
        self._do_exit = do_exit
        self.long_bits = long_bits
        self.panic_on_oom = 0
        self.oom_kill_allocating_task = 0
        self.oom_dump_tasks = 1

    def is_victim(self) -> bool:
        """Whether the executing task is a victim: it may use the reserves (tsk_is_oom_victim)."""
        current = self._current()
        return current is not None and current.oom_victim

    def out_of_memory(self, request: Wanted) -> bool:
        """Kill somebody, so that the request may be tried again. False: nothing more can be done."""
        current = self._current()
        if current is not None and self._will_free_mem(current):
            self._mark(current)
            self._reaper.queue(current)
            return True
        if not request.gfp & g.F.FS:
            return False
        return self._out_of_memory(self._constrain(request))

    def manual(self, highest: int) -> bool:
        """Kill somebody because a person wants it (SysRq f); no panic comes of it. False: there is nobody."""
        ram, swap = self._total_pages()
        return self._kill_worst(OomControl(g.GFP_KERNEL, SYSRQ_ORDER, highest, None, CONSTRAINT_NONE, ram + swap))

    def mem_cgroup_out_of_memory(self, memcg: MemCgroup, gfp: int, order: int) -> bool:
        """Kill somebody in a control group that is at its limit. False: there is nobody."""
        current = self._current()
        if current is not None and self._will_free_mem(current):
            self._mark(current)
            self._reaper.queue(current)
            return True
        swap = self._total_pages()[1]
        most = memcg.memory.max + (min(memcg.swap.max, swap) if memcg.swap.max else 0)
        return self._out_of_memory(OomControl(gfp, order, 0, None, CONSTRAINT_MEMCG, max(most, 1), memcg))

    def _out_of_memory(self, control: OomControl) -> bool:
        current = self._current()
        if self.panic_on_oom and (self.panic_on_oom == 2 or control.constraint == CONSTRAINT_NONE):
            kind = "compulsory" if self.panic_on_oom == 2 else "system-wide"
            self._header(control)
            self._report.panic(f"Out of memory: {kind} panic_on_oom is enabled", halts=True)
            return False
        asker = control.memcg is None and self.oom_kill_allocating_task
        if asker and current is not None and self._may_kill(current, control):
            self._kill_process(control, current, "Out of memory (oom_kill_allocating_task)")
            return True
        return self._kill_worst(control)

    # -- choice ------------------------------------------------------------------------------------------

    def _constrain(self, request: Wanted) -> OomControl:
        """What bounds the request: a memory policy's nodes, or nothing (constrained_alloc)."""
        ram, swap = self._total_pages()
        all_nodes = sum(1 << node.nid for node in self._nodes if node.has_memory)
        wanted = request.nodemask
        bound = not request.gfp & g.F.THISNODE and all_nodes & ~wanted
        if self.long_bits == 64 and bound:
            mask = wanted & all_nodes
            present = sum(zone.present for node in self._nodes if mask >> node.nid & 1 for zone in node.zones)
            return OomControl(
                request.gfp,
                request.order,
                request.highest,
                mask,
                CONSTRAINT_MEMORY_POLICY,
                swap + present,
            )
        return OomControl(request.gfp, request.order, request.highest, None, CONSTRAINT_NONE, ram + swap)

    def _eligible(self, task: OomTask, control: OomControl) -> bool:
        """Whether the task can have memory that would help: its own policy must not lead elsewhere."""
        if control.memcg is not None:
            return self._is_below(task, control.memcg)
        policy = task.mm.policy if task.mm is not None else None
        if control.nodemask is None or policy is None or policy.mode != MPOL_BIND:
            return True
        return bool(policy.nodes & control.nodemask)

    @staticmethod
    def _is_below(task: OomTask, memcg: MemCgroup) -> bool:
        """Whether a task is in a control group or below it."""
        own = task.cgroup.memcg if task.cgroup is not None else None
        return own is not None and any(group is memcg for group in own.upwards())

    def _may_kill(self, task: OomTask, control: OomControl) -> bool:
        """Whether the task that asks may be killed instead of the worst one."""
        if task.mm is None or unkillable(task) or task.oom_score_adj == OOM_SCORE_ADJ_MIN:
            return False
        return self._eligible(task, control)

    def _kill_worst(self, control: OomControl) -> bool:
        chosen, most, dying = None, 0, False
        for task in self._tasks():
            if unkillable(task) or not self._eligible(task, control):
                continue
            if task.oom_victim:
                dying = task.mm is not None and not task.mm.flags & MMF_OOM_SKIP
                if dying:
                    break
                continue
            points = oom_badness(task, self._counters, control.total_pages)
            if task.oom_flag_origin:
                points = LONG_MAX
            if points is not None and (chosen is None or points >= most):
                chosen, most = task, points
        if dying:
            return control.order == SYSRQ_ORDER or self._reaper.wait()
        if chosen is None:
            self._header(control)
            self._report.nobody()
            if control.memcg is None and control.order != SYSRQ_ORDER:
                self._report.panic("System is deadlocked on memory")
            return False
        self._kill_process(control, chosen, "Out of memory" if control.memcg is None else "Memory cgroup out of memory")
        return True

    # -- killing -----------------------------------------------------------------------------------------

    def _header(self, control: OomControl, frames: tuple[str, ...] = ()) -> None:
        current = self._current()
        listed = None
        if self.oom_dump_tasks:
            listed = [task for task in self._tasks() if not unkillable(task) and self._eligible(task, control)]
        self._report.header(control, 0 if current is None else current.oom_score_adj, listed, frames)

    def _kill_process(self, control: OomControl, victim: OomTask, message: str) -> None:
        """Report and kill (oom_kill_process); one that is about to end only gets at the reserves."""
        if self._will_free_mem(victim):
            self._mark(victim)
            self._reaper.queue(victim)
            return
        if self._report.limit("oom_kill_process"):
            self._header(control, ("oom_kill_process",))
            self._report.summary(control, victim)
        mm = victim.mm
        if mm is None:
            self._report.already_exiting(message, victim)
            return
        group = self._oom_group(victim, control.memcg)
        members = [] if group is None else [task for task in self._tasks() if self._is_below(task, group)]
        self._kill(victim, mm, message)
        if group is not None:
            self._kill_group(group, members, message)

    @staticmethod
    def _oom_group(victim: OomTask, domain: MemCgroup | None) -> MemCgroup | None:
        """The highest group with memory.oom.group that the victim is in, up to the one that ran out of memory."""
        found: MemCgroup | None = None
        own: MemCgroup | None = victim.cgroup.memcg if victim.cgroup is not None else None
        for group in own.upwards() if own is not None else ():
            found = group if group.oom_group else found
            if group is domain:
                break
        return found

    def _kill_group(self, group: MemCgroup, members: list[OomTask], message: str) -> None:
        """The rest of the group goes as well."""
        group.event(OOM_GROUP_KILL)
        self._report.oom_group(group.cgroup.path)
        for task in members:
            if task.mm is not None and not task.oom_victim and task.oom_score_adj != OOM_SCORE_ADJ_MIN:
                self._kill(task, task.mm, message)

    def _kill(self, victim: OomTask, mm: Mm, message: str) -> None:
        """SIGKILL to the victim and to all that share its memory (__oom_kill_process)."""
        self._vmstat.count(stats.OOM_KILL)
        if victim.cgroup is not None and victim.cgroup.memcg is not None:
            victim.cgroup.memcg.event(OOM_KILL)
        victim.killed = SIGKILL
        self._mark(victim)
        trace_points.mark_victim(self._vmstat.trace, victim, self._counters, mm)
        self._report.killed(message, victim, mm)
        dying = [victim]
        for task in self._tasks():
            if task.mm is not mm or task is victim or task.is_kthread:
                continue
            if task.pid == INIT_PID:
                mm.flags |= MMF_OOM_SKIP
                self._report.pinned(victim, task)
                continue
            task.killed = SIGKILL
            dying.append(task)
        if not mm.flags & MMF_OOM_SKIP:
            self._reaper.queue(victim)
        current = self._current()
        for task in dying:
            if task is not current:
                self._do_exit(task)

    @staticmethod
    def _mark(task: OomTask) -> None:
        """Give the task access to the reserves (mark_oom_victim)."""
        task.oom_victim = True

    def _will_free_mem(self, task: OomTask) -> bool:
        """Whether the task, and all that share its memory, are about to end (task_will_free_mem)."""
        mm = task.mm
        if mm is None or not task.killed or mm.flags & MMF_OOM_SKIP:
            return False
        return mm.users <= 1 or all(other.killed for other in self._tasks() if other.mm is mm)
