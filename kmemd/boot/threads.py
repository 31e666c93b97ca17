"""Kernel threads and their stacks (kernel/kthread.c, kernel/fork.c ``alloc_thread_stack_node``).

The threads are those of the captured kernels, in the order of their pids. A stack is a vmalloc area of 16 KiB on
x86_64, two pages on i386.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from kmemd.boot.cache_table import MOST_BOOT_CPUS
from kmemd.core import stats
from kmemd.mm import gfp as g
from kmemd.mm.sched import PF_KSWAPD, PF_KTHREAD, PF_MEMALLOC, PF_NO_SETAFFINITY, PF_NOFREEZE, PF_WQ_WORKER, Task

if TYPE_CHECKING:
    from kmemd.kernel import Kernel

PF_FORKNOEXEC = 0x40
KTHREAD = PF_KTHREAD | PF_NOFREEZE | PF_FORKNOEXEC
BOUND = KTHREAD | PF_NO_SETAFFINITY
WORKER = BOUND | PF_WQ_WORKER
RECLAIMER = KTHREAD | PF_KSWAPD | PF_MEMALLOC
STACK_ORDER = {"x86_64": 2, "i386": 1}
STACK_FRAMES = ("kernel_clone", "kernel_thread", "kthreadd", "ret_from_fork")
IDLE_FRAMES = ("fork_idle", "idle_threads_init", "smp_init", "kernel_init_freeable", "kernel_init", "ret_from_fork")
GFP_STACK = g.GFP_KERNEL_ACCOUNT | g.F.ZERO


class Kthread(NamedTuple):
    """One kernel thread: where it may run, and how."""

    comm: str
    cpu: int = 0
    nid: int | None = None
    flags: int = KTHREAD
    nice: int = 0
    state: str = "S"
    bound: bool = False


def kthreads(cpus: int, nodes: list[int]) -> Iterator[Kthread]:
    """All kernel threads in order of pid, kthreadd first."""
    unbound = f"kworker/u{2 * cpus}"
    yield Kthread("kthreadd")
    for name in ("rcu_gp", "rcu_par_gp", "slub_flushwq"):
        yield _rescuer(name)
    yield from _workers(0)
    yield Kthread(f"{unbound}:0", flags=WORKER, state="I")
    yield _rescuer("mm_percpu_wq")
    yield Kthread("ksoftirqd/0", flags=BOUND, bound=True)
    yield Kthread("rcu_sched", state="I")
    yield Kthread("migration/0", flags=BOUND, bound=True)
    yield Kthread("cpuhp/0", flags=BOUND, bound=True)
    for cpu in range(1, cpus):
        for name in ("cpuhp", "migration", "ksoftirqd"):
            yield Kthread(f"{name}/{cpu}", cpu, flags=BOUND, bound=True)
        yield from _workers(cpu)
    for name in ("kdevtmpfs", "oom_reaper"):
        yield Kthread(name)
    yield _rescuer("writeback")
    yield Kthread(f"{unbound}:1", flags=WORKER, state="I")
    for nid in nodes:
        yield Kthread(f"kcompactd{nid}", nid=nid)
    yield Kthread("ksmd", nice=5)
    yield Kthread("khugepaged", nice=19)
    yield _rescuer("kblockd")
    for nid in nodes:
        yield Kthread(f"kswapd{nid}", nid=nid, flags=RECLAIMER)
    for cpu in range(cpus):
        yield Kthread(f"kworker/{cpu}:1", cpu, flags=WORKER, state="I", bound=True)
    yield _rescuer("zswap-shrink")
    yield Kthread("kworker/0:1H", flags=WORKER, nice=-20, state="I", bound=True)


def _rescuer(name: str) -> Kthread:
    return Kthread(name, nice=-20, state="I")


def _workers(cpu: int) -> Iterator[Kthread]:
    yield Kthread(f"kworker/{cpu}:0", cpu, flags=WORKER, state="I", bound=True)
    yield Kthread(f"kworker/{cpu}:0H", cpu, flags=WORKER, nice=-20, state="I", bound=True)


def spawn_kthreads(kernel: Kernel) -> None:
    """Start all kernel threads, and the idle tasks of the CPUs, which have no pid but a stack.

    The stacks of tasks bound to a CPU beyond MOST_BOOT_CPUS are taken as pages in bulk, and are no areas.
    """
    machine = kernel.machine
    nodes = [node.nid for node in kernel.nodes if node.has_memory]
    site = kernel.depot.save(STACK_FRAMES)
    in_bulk: Counter[int] = Counter()
    for row in kthreads(machine.cpus, nodes):
        parent = 0 if row.comm == "kthreadd" else 2
        node_cpus = None if row.nid is None else kernel.nodes[row.nid].cpus
        cpu = node_cpus[0] if node_cpus else row.cpu
        task = kernel.tasks.spawn(row.comm, parent, cpu=cpu, flags=row.flags, nice=row.nice, state=row.state)
        task.cpus_allowed = (row.cpu,) if row.bound else node_cpus or None
        if row.cpu < MOST_BOOT_CPUS:
            task.stack_addr = alloc_stack(kernel, machine.cpu_nodes[cpu], site)
        else:
            in_bulk[machine.cpu_nodes[cpu]] += 1
    idle = kernel.depot.save(IDLE_FRAMES)
    for cpu in range(1, machine.cpus):
        if cpu < MOST_BOOT_CPUS:
            alloc_stack(kernel, machine.cpu_nodes[cpu], idle)
        else:
            in_bulk[machine.cpu_nodes[cpu]] += 1
    for nid, count in in_bulk.items():
        _alloc_stacks(kernel, nid, count, site)


def _alloc_stacks(kernel: Kernel, nid: int, count: int, site: int) -> None:
    """The pages of many stacks on one node. ENOMEM."""
    order = STACK_ORDER[kernel.machine.arch]
    kernel.context.site = site
    kernel.vmstat.mod_node(nid, stats.NR_KERNEL_STACK_KB, count * 4 << order)
    kernel.page_alloc.alloc_pages_bulk(GFP_STACK, 0, count << order, nid)


def alloc_stack(kernel: Kernel, nid: int, site: int) -> int:
    """The address of a kernel stack on a node. ENOMEM."""
    order = STACK_ORDER[kernel.machine.arch]
    kernel.context.site = site
    kernel.vmstat.mod_node(nid, stats.NR_KERNEL_STACK_KB, 4 << order)
    if kernel.machine.arch == "i386":
        pfn = kernel.page_alloc.alloc_pages(GFP_STACK | g.F.COMP, order, nid)
        return kernel.layout.page_address(pfn)
    return kernel.vmalloc.alloc(4096 << order, GFP_STACK, nid, align=4096 << order, function="").address


def free_stack(kernel: Kernel, address: int, nid: int) -> None:
    """Give back what ``alloc_stack`` gave on a node. EFAULT when it is gone."""
    order = STACK_ORDER[kernel.machine.arch]
    kernel.vmstat.mod_node(nid, stats.NR_KERNEL_STACK_KB, -(4 << order))
    if kernel.machine.arch == "i386":
        kernel.page_alloc.free_pages(kernel.layout.virt_to_pfn(address), order)
    else:
        kernel.vmalloc.vfree(address)


def give_stack(kernel: Kernel, task: Task) -> None:
    """A stack for a process, on the node of its CPU. ENOMEM."""
    site = kernel.depot.save(STACK_FRAMES)
    task.stack_addr = alloc_stack(kernel, kernel.machine.cpu_nodes[task.cpu], site)
