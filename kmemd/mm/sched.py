"""Tasks: who runs, who is whose child, and what each has used (kernel/fork.c, kernel/exit.c, include/linux/sched.h).

Models the table of processes and kernel threads with the figures that ``/proc/PID`` shows, and pid numbers as
Linux hands them out. A process' memory is a list of ``Mapping`` with resident pages counted per kind; page tables and
faults are left out, and so are threads of one process, sessions, signals and scheduling classes.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kmemd.core.context import Context
from kmemd.errors import KernelError
from kmemd.mm.units import PAGE_SIZE

PF_KTHREAD = 0x00200000
PF_NOFREEZE = 0x00008000
PF_KSWAPD = 0x00020000
PF_MEMALLOC = 0x00000800
PF_NO_SETAFFINITY = 0x04000000
PF_WQ_WORKER = 0x00000020
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


def max_threads(arch: str, totalram_pages: int) -> int:
    """As many threads as an eighth of memory has stacks for (kernel/fork.c ``set_max_threads``)."""
    return min(max(totalram_pages * PAGE_SIZE // (THREAD_SIZE[arch] * 8), MIN_THREADS), MAX_THREADS)


@dataclass(slots=True)
class Mapping:
    """One range of a process' address space with its resident pages, by kind. Sizes in bytes, counts in pages.

    ``sharers`` is how many processes map the same file pages.
    """

    start: int
    end: int
    perms: str
    name: str = ""
    offset: int = 0
    inode: int = 0
    anon_pages: int = 0
    file_pages: int = 0
    sharers: int = 1

    @property
    def rss(self) -> int:
        """Resident pages."""
        return self.anon_pages + self.file_pages

    @property
    def accounted(self) -> bool:
        """Whether the mapping counts against the commit limit: it is, or was until relocated, private and writable."""
        return "w" in self.perms or self.anon_pages > 0

    @property
    def pages(self) -> int:
        """Pages of address space."""
        return (self.end - self.start) >> 12


@dataclass(slots=True)
class Task:
    """One process or kernel thread. Times in ns of model time, memory in pages.

    ``stack_addr`` is the address of the kernel stack, 0 where it is not known.
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
    argv: tuple[str, ...] = ()
    mappings: list[Mapping] = field(default_factory=list)
    page_table_pages: int = 0
    swap_pages: int = 0
    stack_addr: int = 0

    @property
    def is_kthread(self) -> bool:
        """Whether this is a kernel thread: it has no user memory."""
        return bool(self.flags & PF_KTHREAD)

    @property
    def rss_anon(self) -> int:
        """Resident anonymous pages."""
        return sum(mapping.anon_pages for mapping in self.mappings)

    @property
    def rss_file(self) -> int:
        """Resident pages of files on block devices: a booted machine runs from its initramfs and has none."""
        return 0

    @property
    def rss_shmem(self) -> int:
        """Resident pages of tmpfs files, which the initramfs consists of."""
        return sum(mapping.file_pages for mapping in self.mappings)

    @property
    def rss(self) -> int:
        """Resident pages (get_mm_rss)."""
        return self.rss_anon + self.rss_file + self.rss_shmem

    @property
    def total_vm(self) -> int:
        """Pages of address space, without the kernel's own [vvar] and [vdso]."""
        return sum(mapping.pages for mapping in self.mappings if mapping.name not in ("[vvar]", "[vdso]"))


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

    @property
    def processes(self) -> list[Task]:
        """Tasks with user memory, in order of pid."""
        return [task for task in self if not task.is_kthread]

    def check(self) -> None:
        """Every parent exists, and no pid is above the limit."""
        for task in self._tasks.values():
            assert not task.ppid or task.ppid in self._tasks, f"task {task.pid}: no parent {task.ppid}"
            assert 0 < task.pid < self.pid_max, f"pid {task.pid} is not below {self.pid_max}"
