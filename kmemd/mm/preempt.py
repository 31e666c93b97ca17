"""Who must not sleep: the preemption count of each task (include/linux/preempt.h, kernel/sched/core.c).

``kmap_atomic`` raises the count and ``kunmap_atomic`` lowers it. A function that may sleep and finds it raised is
reported (``__might_resched``, at most once a second), and so is a task that gives up its CPU (``__schedule_bug``),
whose count is then set to what it should have been. The reports are those of a kernel built with
CONFIG_DEBUG_ATOMIC_SLEEP; the captured ones were built without and say nothing. Left out: interrupts, softirqs and
RCU, which have bits of their own in the count, spinlocks, and CONFIG_DEBUG_PREEMPT's "Preemption disabled at".
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kmemd.core.context import Context
from kmemd.mm import gfp as g
from kmemd.mm.clock import NSEC_PER_SEC
from kmemd.mm.dump_stack import DumpStack
from kmemd.mm.panic import TAINT_WARN
from kmemd.mm.printk import KERN_ERR, KERN_WARNING, Printk
from kmemd.mm.sched import Task, TaskTable

COUNT_MASK = 0x7FFF_FFFF
"""The count without PREEMPT_NEED_RESCHED: what ``preempt_count()`` returns, also when it fell below 0."""
PREEMPT_DISABLE_OFFSET = 1
MIGHT_ALLOC = "include/linux/sched/mm.h:274"


@dataclass(eq=False)
class Thread:
    """What a running task holds: its preemption count, and its local mappings.

    ``task`` is None for the idle task. ``kmaps`` are the PFNs of ``task_struct.kmap_ctrl``, innermost last;
    ``held`` all the addresses that it got from kmap_local_page and kmap_atomic; ``atomics`` how many of the latter.
    ``cpu`` is where it cannot leave as long as it holds something.
    """

    pid: int
    comm: str
    task: Task | None
    cpu: int = 0
    preempt_count: int = 0
    atomics: int = 0
    kmaps: list[int] = field(default_factory=list)
    held: list[int] = field(default_factory=list)

    @property
    def idle(self) -> bool:
        """Whether it holds nothing, so that nobody needs to remember it."""
        return not (self.preempt_count or self.atomics or self.kmaps or self.held)


class Preempt:
    """The tasks that hold something. ``atomic`` is how many of them must not sleep: 0 spares a look.

    Invariants: a thread is remembered while it is not idle and its task is in the table.
    """

    def __init__(self, context: Context, tasks: TaskTable, printk: Printk, dump_stack: DumpStack) -> None:
        self._context = context
        self._tasks = tasks
        self._printk = printk
        self._dump_stack = dump_stack
        self._threads: dict[int, Thread] = {}
        self._next_report_ns = 0
        self.atomic = 0
        self.reports = 0

    def current(self) -> Thread:
        """The thread that runs, new or remembered."""
        pid = self._context.pid
        task = self._tasks.find(pid) if pid in self._tasks else None
        thread = self._threads.get(pid)
        if thread is None or thread.task is not task:
            self.forget(pid)
            thread = Thread(pid, self._context.comm, task, self._context.cpu)
        return thread

    def keep(self, thread: Thread) -> None:
        """Remember a thread, or forget it when it holds nothing any more."""
        if thread.idle:
            self._threads.pop(thread.pid, None)
        else:
            self._threads[thread.pid] = thread
        self._count()

    def forget(self, pid: int) -> None:
        """A task is gone, with what it held."""
        if self._threads.pop(pid, None) is not None:
            self._count()

    def alive(self, thread: Thread) -> bool:
        """Whether a thread's task is still there."""
        return thread.task is None or (thread.pid in self._tasks and self._tasks.find(thread.pid) is thread.task)

    def threads(self) -> list[Thread]:
        """Those that hold something, by pid; tasks that ended meanwhile are dropped."""
        for pid, thread in list(self._threads.items()):
            if not self.alive(thread):
                self.forget(pid)
        return [self._threads[pid] for pid in sorted(self._threads)]

    def _count(self) -> None:
        self.atomic = sum(thread.preempt_count != 0 for thread in self._threads.values())

    def disable(self, thread: Thread) -> None:
        """``preempt_disable``."""
        thread.preempt_count = thread.preempt_count + 1 & COUNT_MASK
        self.keep(thread)

    def enable(self, thread: Thread) -> None:
        """``preempt_enable``: a count that was reset meanwhile falls below 0, as in Linux."""
        thread.preempt_count = thread.preempt_count - 1 & COUNT_MASK
        self.keep(thread)

    # -- complaints ------------------------------------------------------------------------------------------

    def might_alloc(self, gfp: int, function: str) -> None:
        """A request for memory that may wait for reclaim is a function that may sleep."""
        if self.atomic and gfp & g.F.DIRECT_RECLAIM:
            self.might_sleep(MIGHT_ALLOC, function)

    def might_sleep(self, where: str, function: str) -> None:
        """Report a function that may sleep, called by a task that must not. ``where`` is its file and line."""
        if not self.atomic:
            return
        thread = self.current()
        if not thread.preempt_count or self._context.now < self._next_report_ns:
            return
        self._next_report_ns = self._context.now + NSEC_PER_SEC
        self.reports += 1
        log = self._printk.log
        log(KERN_ERR, f"BUG: sleeping function called from invalid context at {where}")
        state = "in_atomic(): 1, irqs_disabled(): 0, non_block: 0"
        log(KERN_ERR, f"{state}, pid: {thread.pid}, name: {self._context.comm}")
        log(KERN_ERR, f"preempt_count: {thread.preempt_count:x}, expected: 0")
        self._dump_stack(("__might_resched", function))
        self._dump_stack.taint.add(TAINT_WARN)

    def schedule(self, *frames: str) -> None:
        """The task that runs gives up its CPU, in ``frames``."""
        if self.atomic:
            self.schedule_thread(self.current(), *frames)

    def schedule_thread(self, thread: Thread, *frames: str) -> None:
        """A thread gives up its CPU: reported when it must not, and then its count is made right."""
        if not thread.preempt_count:
            return
        self.reports += 1
        count = thread.preempt_count + PREEMPT_DISABLE_OFFSET & COUNT_MASK
        log = self._printk.log
        log(KERN_ERR, f"BUG: scheduling while atomic: {thread.comm}/{thread.pid}/0x{count:08x}")
        log(KERN_WARNING, self._dump_stack.modules())
        self._dump_stack(("__schedule_bug", "__schedule", "schedule", *frames))
        self._dump_stack.taint.add(TAINT_WARN)
        thread.preempt_count = 0
        self.keep(thread)

    def check(self) -> None:
        """Nobody is remembered for nothing, and ``atomic`` is right."""
        for thread in self._threads.values():
            assert not thread.idle, f"task {thread.pid} holds nothing"
        assert self.atomic == sum(thread.preempt_count != 0 for thread in self._threads.values())
