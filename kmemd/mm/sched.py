"""Tasks: who runs, who is whose child, and what each has used (kernel/fork.c, kernel/exit.c, include/linux/sched.h).

Models the table of processes and kernel threads with the figures that ``/proc/PID`` shows, and pid numbers as
Linux hands them out. A process' memory is its ``Mm``. Left out: threads of one process, sessions and scheduling
classes.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from kmemd.core.context import NOW, WAITED, Context
from kmemd.errors import KernelError
from kmemd.mm.mm_types import Mm
from kmemd.mm.signals import Dispositions
from kmemd.mm.units import PAGE_SIZE

PF_KTHREAD = 0x00200000
PF_NOFREEZE = 0x00008000
PF_KSWAPD = 0x00020000
PF_MEMALLOC = 0x00000800
PF_NO_SETAFFINITY = 0x04000000
PF_WQ_WORKER = 0x00000020
PF_FORKNOEXEC = 0x00000040
PF_SUPERPRIV = 0x00000100
PF_RANDOMIZE = 0x00400000
COMM_LENGTH = 15
PID_MAX_DEFAULT = 4096
"""CONFIG_BASE_SMALL, as on the captured machines."""
PIDS_PER_CPU_DEFAULT = 1024
RESERVED_PIDS = 300
USER_HZ = 100
THREAD_SIZE = {"x86_64": 16384, "i386": 8192}
"""Bytes of a kernel stack."""
MAX_THREADS = 0x3FFFFFFF
MIN_THREADS = 20
MAX_VISITORS = 256
TIMERSLACK_NS = 50_000
KTHREAD_FRAMES = ("kthread", "ret_from_fork")
WORKER_FRAMES = ("process_one_work", "worker_thread", *KTHREAD_FRAMES)
"""Where kernel threads, and functions that were queued as work, are called from."""


@contextmanager
def elsewhere(context: Context) -> Iterator[None]:
    """What an interrupt, or a task on another CPU, changes of the executing context is undone, but for the time."""
    words = context.words
    before = words.copy()
    try:
        yield
    finally:
        words[NOW + 1 :] = before[NOW + 1 :]


def max_threads(arch: str, totalram_pages: int) -> int:
    """As many threads as an eighth of memory has stacks for (kernel/fork.c ``set_max_threads``)."""
    return min(max(totalram_pages * PAGE_SIZE // (THREAD_SIZE[arch] * 8), MIN_THREADS), MAX_THREADS)


@dataclass(slots=True)
class IoAccounting:
    """What a task read and wrote (``struct task_io_accounting``), in bytes and system calls."""

    rchar: int = 0
    wchar: int = 0
    syscr: int = 0
    syscw: int = 0
    read_bytes: int = 0
    write_bytes: int = 0
    cancelled_write_bytes: int = 0


@dataclass(slots=True)
class Task:
    """One process or kernel thread. Times in ns of model time, memory in pages.

    ``min_flt`` are the faults of address spaces that exec replaced; those of the one it has count in the core, from
    ``mm_maj_flt`` major ones on. ``cmin_flt`` and so on are sums over children that ended.
    ``stack_addr`` is the address of the kernel stack, 0 where it is not known. ``killed`` is the fatal signal that
    is pending, 0 for none; ``oom_victim`` says that the OOM killer sent it and gave the task its reserves;
    ``oom_flag_origin`` that the task takes so much memory that it is the one to kill. ``cgroup`` is its control group,
    None for the root. ``desc`` is what a kworker last worked on, ``dirty`` how far a writer is from being throttled
    (mm/dirty_throttle.py). ``nvcsw`` counts its sleeps.
    """

    pid: int
    tgid: int
    ppid: int
    comm: str
    uid: int = 0
    gid: int = 0
    cpu: int = 0
    flags: int = 0
    start_ns: int = 0
    oom_score_adj: int = 0
    state: str = "S"
    nice: int = 0
    cpus_allowed: tuple[int, ...] | None = None
    utime_ns: int = 0
    stime_ns: int = 0
    min_flt: int = 0
    maj_flt: int = 0
    mm_maj_flt: int = 0
    cmin_flt: int = 0
    cmaj_flt: int = 0
    cutime_ns: int = 0
    cstime_ns: int = 0
    timerslack_ns: int = TIMERSLACK_NS
    nvcsw: int = 0
    make_it_fail: int = 0
    fail_nth: int = 0
    argv: tuple[str, ...] = ()
    stack_addr: int = 0
    killed: int = 0
    oom_victim: bool = False
    oom_flag_origin: bool = False
    oom_score_adj_min: int = 0
    signals: Dispositions = field(default_factory=Dispositions)
    rlimits: dict[int, tuple[int, int]] = field(default_factory=dict)
    mm: Mm | None = None
    cgroup: Any = None
    desc: str = ""
    dirty: Any = None
    ioac: IoAccounting = field(default_factory=IoAccounting)

    @property
    def name(self) -> str:
        """What /proc shows as the name: a worker's tells what it worked on (``proc_task_name``)."""
        return f"{self.comm}-{self.desc}" if self.desc else self.comm

    @property
    def is_kthread(self) -> bool:
        """Whether this is a kernel thread: it has no user memory."""
        return bool(self.flags & PF_KTHREAD)

    def minor_faults(self, faults_of_mm: int) -> int:
        """Faults that needed no I/O, of which the address space has had ``faults_of_mm`` of either kind."""
        return self.min_flt + faults_of_mm - (self.maj_flt - self.mm_maj_flt)


class TaskTable:
    """All tasks by pid.

    Invariants: every task's parent is in the table or is 0; pids are handed out upwards and wrap to 300
    at ``pid_max`` (``alloc_pid``).
    """

    def __init__(self, context: Context, cpus: int) -> None:
        self._context = context
        self._tasks: dict[int, Task] = {}
        self.pid_max = max(PID_MAX_DEFAULT, cpus * PIDS_PER_CPU_DEFAULT)
        self.last_pid = 0
        self.forks = 0
        self._visitors: OrderedDict[int, int] = OrderedDict()
        self._gone_ns = [(0, 0)] * cpus
        self.iowait_ns = [0] * cpus
        self.nr_switches = 0

    def cpu_times(self, cpu: int) -> tuple[int, int]:
        """ns that tasks, also those that are gone, have run on a CPU: in their programs, and in the kernel for them."""
        times = [(task.utime_ns, task.stime_ns) for task in self._tasks.values() if task.cpu == cpu]
        user, system = (sum(column) for column in zip(self._gone_ns[cpu], *times, strict=True))
        return user, system

    def io_waited(self, ns: int, sleeps: int = 1) -> None:
        """The executing task has waited for a device, so often: its CPU was idle (``account_idle_time``)."""
        self.iowait_ns[self._context.cpu] += ns
        self._context.words[WAITED] += ns
        if ns:
            self.slept(self.current(), sleeps)

    def slept(self, task: Task | None, sleeps: int = 1) -> None:
        """A task slept so often: each time its CPU switched to the idle task, and back when it was woken
        (``__schedule``)."""
        self.nr_switches += 2 * sleeps
        if task is not None:
            task.nvcsw += sleeps

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[Task]:
        """Tasks in order of pid."""
        return iter([self._tasks[pid] for pid in sorted(self._tasks)])

    def __contains__(self, pid: object) -> bool:
        return pid in self._tasks

    def pids(self) -> list[int]:
        """All pids, ascending."""
        return sorted(self._tasks)

    def find(self, pid: int) -> Task:
        """The task ``pid``. ESRCH."""
        task = self._tasks.get(pid)
        if task is None:
            raise KernelError(errno.ESRCH, f"no process {pid}")
        return task

    def spawn(self, comm: str, ppid: int = 0, *, cpu: int | None = None, flags: int = 0, **rest: Any) -> Task:
        """A new task with the next free pid. EAGAIN when all are in use, ESRCH for a parent that is gone."""
        if ppid:
            self.find(ppid)
        pid = self._alloc_pid()
        task = Task(pid, pid, ppid, comm[:COMM_LENGTH], flags=flags, **rest)
        task.cpu = self._context.cpu if cpu is None else cpu
        task.start_ns = self._context.now
        if not task.is_kthread and not task.argv:
            task.argv = (comm,)
        self._tasks[pid] = task
        self.forks += 1
        return task

    def _alloc_pid(self) -> int:
        pid = self.last_pid + 1
        for _ in range(self.pid_max):
            if pid >= self.pid_max:
                pid = RESERVED_PIDS
            if pid not in self._tasks:
                self.last_pid = pid
                return pid
            pid += 1
        raise KernelError(errno.EAGAIN, f"all {self.pid_max} pids are in use")

    def exit(self, pid: int) -> Task:
        """Take a task out; its children become init's. ESRCH; EPERM for init. Returns the task."""
        task = self.find(pid)
        if pid == 1:
            raise KernelError(errno.EPERM, "init does not exit")
        del self._tasks[pid]
        user, system = self._gone_ns[task.cpu]
        self._gone_ns[task.cpu] = user + task.utime_ns, system + task.stime_ns
        for child in self._tasks.values():
            if child.ppid == pid:
                child.ppid = 1 if not child.is_kthread else 2
        return task

    def visit(self, pid: int, uid: int) -> int:
        """The pid that ``/proc/self`` means to a program that reads the model from outside.

        Its own number, under which it then finds a process of its name that uses no memory of the model; init
        for a reader without one. The last ``MAX_VISITORS`` are remembered; they are in no listing.
        """
        if pid <= 0 or pid in self._tasks:
            return pid if pid in self._tasks else 1
        self._visitors[pid] = uid
        self._visitors.move_to_end(pid)
        if len(self._visitors) > MAX_VISITORS:
            self._visitors.popitem(last=False)
        return pid

    def visitor(self, pid: int) -> Task | None:
        """A task that stands for a program outside the model, or None."""
        uid = self._visitors.get(pid)
        return None if uid is None else Task(pid, pid, 1, "visitor", uid, uid, state="R", argv=("visitor",))

    def in_order_of_fork(self) -> list[Task]:
        """All tasks, the oldest first (for_each_process)."""
        return list(self._tasks.values())

    def has(self, task: object) -> bool:
        """Whether this very task is in the table."""
        return any(found is task for found in self._tasks.values())

    def current(self) -> Task | None:
        """The task that executes; None when it is the idle task."""
        return self._tasks.get(self._context.pid)

    @property
    def processes(self) -> list[Task]:
        """Tasks with user memory, in order of pid."""
        return [task for task in self if not task.is_kthread]

    def check(self) -> None:
        """Every parent exists, and no pid is above the limit."""
        for task in self._tasks.values():
            assert not task.ppid or task.ppid in self._tasks, f"task {task.pid}: no parent {task.ppid}"
            assert 0 < task.pid < self.pid_max, f"pid {task.pid} is not below {self.pid_max}"
