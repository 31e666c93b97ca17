"""The kernel's own threads, each with its stack (kernel/kthread.c): those of the captured kernels, in order of pid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from kmemd.boot.cache_table import MOST_BOOT_CPUS
from kmemd.mm.sched import PF_KSWAPD, PF_KTHREAD, PF_MEMALLOC, PF_NO_SETAFFINITY, PF_NOFREEZE, PF_WQ_WORKER, Task

if TYPE_CHECKING:
    from kmemd.kernel import Kernel

PF_FORKNOEXEC = 0x40
KTHREAD = PF_KTHREAD | PF_NOFREEZE | PF_FORKNOEXEC
BOUND = KTHREAD | PF_NO_SETAFFINITY
WORKER = BOUND | PF_WQ_WORKER
RECLAIMER = KTHREAD | PF_KSWAPD | PF_MEMALLOC
STACK_FRAMES = ("kernel_clone", "kernel_thread", "kthreadd", "ret_from_fork")
IDLE_FRAMES = ("fork_idle", "idle_threads_init", "smp_init", "kernel_init_freeable", "kernel_init", "ret_from_fork")


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
            task.stack_addr = kernel.stacks.alloc(machine.cpu_nodes[cpu], site)
        else:
            in_bulk[machine.cpu_nodes[cpu]] += 1
    idle = kernel.depot.save(IDLE_FRAMES)
    for cpu in range(1, machine.cpus):
        if cpu < MOST_BOOT_CPUS:
            kernel.stacks.alloc(machine.cpu_nodes[cpu], idle)
        else:
            in_bulk[machine.cpu_nodes[cpu]] += 1
    for nid, count in in_bulk.items():
        kernel.stacks.alloc_pages(nid, count, site)


def give_stack(kernel: Kernel, task: Task) -> None:
    """A stack for a process, on the node of its CPU. ENOMEM."""
    site = kernel.depot.save(STACK_FRAMES)
    task.stack_addr = kernel.stacks.alloc(kernel.machine.cpu_nodes[task.cpu], site)
