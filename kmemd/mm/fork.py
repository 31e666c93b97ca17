"""What fork, exec and exit do to the memory manager (kernel/fork.c ``copy_process``, kernel/exit.c, ``free_task``).

Models a process' kernel stack, the slab objects that describe it, the limits of their number, what a child has of its
parent and a parent learns of a child that ended, and the address space, which is ``mm_struct``'s and ``exec``'s work.
Left out: the threads of one process, and zombies: every parent waits for its children.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress

import numpy as np
import numpy.typing as npt

from kmemd.core import stats
from kmemd.core.context import Context
from kmemd.errors import KernelError
from kmemd.mm import gfp as g
from kmemd.mm.cgroup import Cgroups
from kmemd.mm.exec import Exec, Image
from kmemd.mm.layout import X86_64, Layout
from kmemd.mm.memcontrol import MemControl
from kmemd.mm.memcontrol_group import ObjCgroup
from kmemd.mm.mm_struct import MmStructs
from kmemd.mm.mpol import mpol_dup
from kmemd.mm.page_alloc import PageAllocator
from kmemd.mm.rlimit import RLIMIT_NPROC, Rlimits, capable
from kmemd.mm.sched import COMM_LENGTH, PF_FORKNOEXEC, PF_MEMALLOC, PF_SUPERPRIV, THREAD_SIZE, Task, TaskTable
from kmemd.mm.signals import Signal
from kmemd.mm.slab_geometry import get_order
from kmemd.mm.slub import Slub
from kmemd.mm.stackdepot import StackDepot
from kmemd.mm.units import KIB_PER_PAGE, PAGE_SIZE
from kmemd.mm.vmalloc import Vmalloc
from kmemd.mm.vmstat import VmStat
from kmemd.steps import Steps, finish

Faults = npt.NDArray[np.int64]
INIT_PID = 1
DESCRIPTORS = (
    "task_struct",
    "cred_jar",
    "files_cache",
    "fs_cache",
    "sighand_cache",
    "signal_cache",
    "mm_struct",
    "pid",
)
"""The caches that copy_process takes an object of, in its order."""

INHERITED = (
    *("uid", "gid", "flags", "nice", "cpus_allowed", "oom_score_adj", "oom_score_adj_min", "argv"),
    *("timerslack_ns", "make_it_fail"),
)
"""What a child has of its parent; it starts on the CPU that made it."""
NOT_INHERITED_FLAGS = PF_SUPERPRIV | PF_MEMALLOC

FORK_FRAMES = ("kernel_clone", "__do_sys_fork", "__x64_sys_fork", "do_syscall_64", "entry_SYSCALL_64_after_hwframe")
FORK_FRAMES_32 = ("kernel_clone", "__do_sys_fork", "__ia32_sys_fork", "do_int80_syscall_32", "entry_INT80_32")
GFP_STACK = g.GFP_KERNEL_ACCOUNT | g.F.ZERO
EXIT_FRAMES = ("free_task", "delayed_put_task_struct", "rcu_core", "__do_softirq")


class ThreadStacks:
    """Kernel stacks: a vmalloc area on x86_64, a block of pages on i386 (``alloc_thread_stack_node``)."""

    def __init__(
        self,
        arch: str,
        page_alloc: PageAllocator,
        vmalloc: Vmalloc,
        vmstat: VmStat,
        layout: Layout,
        context: Context,
        memcg: MemControl,
    ) -> None:
        self._memcg = memcg
        self._groups: dict[int, ObjCgroup] = {}
        self._page_alloc = page_alloc
        self._vmalloc = vmalloc
        self._vmstat = vmstat
        self._layout = layout
        self._context = context
        self._vmapped = arch == X86_64
        self._order = get_order(THREAD_SIZE[arch])

    def _count(self, nid: int, stacks: int) -> None:
        self._vmstat.mod_node(nid, stats.NR_KERNEL_STACK_KB, stacks * KIB_PER_PAGE << self._order)

    def alloc(self, nid: int, site: int) -> int:
        """The address of a stack on a node, allocated from ``site`` (a stack depot handle). ENOMEM."""
        self._context.site = site
        if self._vmapped:
            size = PAGE_SIZE << self._order
            address = self._vmalloc.alloc(size, GFP_STACK, nid, align=size, function="").address
        else:
            address = self._layout.page_address(self._page_alloc.alloc_pages(GFP_STACK | g.F.COMP, self._order, nid))
        self._count(nid, 1)
        objcg = self._memcg.kernel.account_stack(KIB_PER_PAGE << self._order, nid, None)
        if objcg is not None:
            self._groups[address] = objcg
        return address

    def alloc_pages(self, nid: int, count: int, site: int) -> None:
        """The pages of ``count`` stacks that no one will free, and no areas. Fewer when memory runs out."""
        self._context.site = site
        self._count(nid, count)
        self._page_alloc.alloc_pages_bulk(GFP_STACK, 0, count << self._order, nid)

    def free(self, address: int, nid: int) -> None:
        """Give back what ``alloc`` gave on a node. EFAULT when it is gone."""
        self._count(nid, -1)
        self._memcg.kernel.account_stack(-KIB_PER_PAGE << self._order, nid, self._groups.pop(address, None))
        if self._vmapped:
            self._vmalloc.vfree(address)
        else:
            self._page_alloc.free_pages(self._layout.virt_to_pfn(address), self._order)


class Fork:
    """Makes and ends processes.

    ``kernel_data()`` marks what is allocated inside as held by the kernel's own structures.

    Invariants: every pid in ``_objects`` is a task that ``fork`` made.
    """

    def __init__(
        self,
        tasks: TaskTable,
        slub: Slub,
        context: Context,
        depot: StackDepot,
        cpu_nodes: tuple[int, ...],
        stacks: ThreadStacks,
        kernel_data: Callable[[], AbstractContextManager[None]],
        arch: str,
        mms: MmStructs,
        programs: Exec,
        rlimits: Rlimits,
        threads_max: Callable[[], int],
        faults_of: Faults,
        cgroups: Cgroups,
    ) -> None:
        self._rlimits = rlimits
        self._threads_max = threads_max
        self._faults_of = faults_of
        self._mms = mms
        self._programs = programs
        self._cgroups = cgroups
        self._tasks = tasks
        self._slub = slub
        self._context = context
        self._depot = depot
        self._cpu_nodes = cpu_nodes
        self._stacks = stacks
        self._kernel_data = kernel_data
        self._frames = FORK_FRAMES if arch == "x86_64" else FORK_FRAMES_32
        self._objects: dict[int, list[int]] = {}

    def spawn(self, comm: str, image: Image | None = None, uid: int | None = None) -> Task:
        """A child of the executing task (of init, when that is none) that runs a program, or none, as a user.

        ENOMEM, EAGAIN; EPERM when the parent may not become that user.
        """
        pid = next((pid for pid in (self._context.pid, INIT_PID) if pid in self._tasks), 0)
        parent = self._tasks.find(pid) if pid else None
        if parent is not None and parent.is_kthread:
            pid, parent = INIT_PID, self._tasks.find(INIT_PID)
        if parent is not None and uid not in (None, parent.uid) and not capable(parent):
            raise KernelError(errno.EPERM, f"user {parent.uid} may not become user {uid}")
        task = self._new_task(comm, parent, uid)
        task.argv = (comm,)
        policy = mpol_dup(parent.mm.policy) if parent is not None and parent.mm is not None else None
        if image is not None:
            task.signals.flush_handlers()
            self._or_undo(task, lambda: self._programs.exec(task, image, policy))
        return task

    def fork(self, pid: int) -> Task:
        """``fork_steps`` at once."""
        return finish(self.fork_steps(pid))

    def fork_steps(self, pid: int) -> Steps[Task]:
        """A child of ``pid`` with a copy of its address space. ESRCH, EPERM for kernel threads, ENOMEM, EAGAIN."""
        parent = self._tasks.find(pid)
        if parent.is_kthread:
            raise KernelError(errno.EPERM, f"{parent.comm} is a kernel thread")
        self._context.switch(pid, parent.tgid, parent.comm, parent.cpu)
        task = self._new_task(parent.comm, parent)
        if parent.mm is not None:
            try:
                task.mm = yield from self._mms.dup(parent)
            except KernelError:
                self._end(task)
                raise
        return task

    def exec(self, pid: int, comm: str, image: Image) -> Task:
        """Have a process run another program. ESRCH, EPERM for kernel threads; ENOMEM ends the process."""
        task = self._tasks.find(pid)
        if task.is_kthread:
            raise KernelError(errno.EPERM, f"{task.comm} is a kernel thread")
        task.comm, task.argv = comm[:COMM_LENGTH], (comm,)
        task.signals.flush_handlers()
        self._or_undo(task, lambda: self._programs.exec(task, image))
        return task

    def _new_task(self, comm: str, parent: Task | None, uid: int | None = None) -> Task:
        """A task with what it has of its parent, a kernel stack, and no memory. ENOMEM, EAGAIN."""
        if len(self._tasks) >= self._threads_max():
            raise KernelError(errno.EAGAIN, f"there are {len(self._tasks)} tasks (kernel.threads-max)")
        if parent is not None:
            self._check_nproc(parent, parent.uid if uid is None else uid)
        task = self._tasks.spawn(comm, parent.pid if parent is not None else 0)
        if parent is not None:
            self._inherit(task, parent)
        if uid is not None:
            task.uid = task.gid = uid
        self._cgroups.enter(task, parent.cgroup if parent is not None else None)
        site = self._context.site = self._depot.save(self._frames)
        self._objects[task.pid] = []

        def make() -> None:
            with self._kernel_data():
                self._describe(self._objects[task.pid])
                task.stack_addr = self._stacks.alloc(self._cpu_nodes[task.cpu], site)

        self._or_undo(task, make)
        return task

    @staticmethod
    def _inherit(task: Task, parent: Task) -> None:
        for name in INHERITED:
            setattr(task, name, getattr(parent, name))
        task.flags = task.flags & ~NOT_INHERITED_FLAGS | PF_FORKNOEXEC
        task.signals = parent.signals.copy()
        task.rlimits = dict(parent.rlimits)

    def _check_nproc(self, parent: Task, uid: int) -> None:
        """RLIMIT_NPROC, which holds for all users but root. EAGAIN."""
        limit = self._rlimits.soft(parent, RLIMIT_NPROC)
        if uid and sum(other.uid == uid for other in self._tasks) >= limit:
            raise KernelError(errno.EAGAIN, f"user {uid} has {limit} processes or more (RLIMIT_NPROC)")

    def _or_undo(self, task: Task, work: Callable[[], None]) -> None:
        """Do a part of making a process; when it fails there is no process."""
        try:
            work()
        except (KernelError, Signal) as error:
            self._end(task)
            if isinstance(error, Signal):
                raise KernelError(errno.ENOMEM, f"{task.comm} was killed while it started") from None
            raise

    def exit(self, pid: int) -> Task:
        """End a process. ESRCH; EPERM for init and kernel threads."""
        task = self.mortal(pid)
        self._context.site = self._depot.save(EXIT_FRAMES)
        self._end(task)
        return task

    def empty(self, pid: int) -> Steps[None]:
        """Take the pages of a process whose memory is about to go out of it, in slices. ESRCH."""
        task = self._tasks.find(pid)
        if task.mm is not None:
            yield from self._mms.empty(task.mm)

    def mortal(self, pid: int) -> Task:
        """A process that may end. ESRCH; EPERM for init and kernel threads."""
        task = self._tasks.find(pid)
        if task.is_kthread or pid == INIT_PID:
            raise KernelError(errno.EPERM, f"{task.comm} does not end")
        return task

    def _end(self, task: Task) -> None:
        mm, task.mm = task.mm, None
        faults = int(self._faults_of[mm.id]) if mm is not None else 0
        if mm is not None:
            self._mms.exit(mm)
        if task.ppid:
            self._wait(self._tasks.find(task.ppid), task, task.minor_faults(faults))
        self._cgroups.exit(task)
        self._tasks.exit(task.pid)
        self._release(task)

    @staticmethod
    def _wait(parent: Task, child: Task, minor_faults: int) -> None:
        """What a parent learns of its child's end (``wait_task_zombie``)."""
        parent.cmin_flt += minor_faults + child.cmin_flt
        parent.cmaj_flt += child.maj_flt + child.cmaj_flt
        parent.cutime_ns += child.utime_ns + child.cutime_ns
        parent.cstime_ns += child.stime_ns + child.cstime_ns

    def adopt(self, task: Task) -> None:
        """A task of boot is one that may end."""
        self._objects[task.pid] = []

    def _describe(self, objects: list[int]) -> None:
        for name in DESCRIPTORS:
            if name in self._slub.names:
                objects.append(self._slub.kmem_cache_alloc(self._slub.cache(name)))

    def _release(self, task: Task) -> None:
        """Free what a process has. What somebody freed already is the allocators' report and nothing more."""
        for address in reversed(self._objects.pop(task.pid, [])):
            with suppress(KernelError):
                self._slub.kfree(address)
        if task.stack_addr:
            with suppress(KernelError):
                self._stacks.free(task.stack_addr, self._cpu_nodes[task.cpu])

    def check(self) -> None:
        """Every process that was made is in the table and has a stack."""
        for pid in self._objects:
            assert self._tasks.find(pid).stack_addr, f"pid {pid} has no stack"
