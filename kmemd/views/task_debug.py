"""Files of ``/proc/PID`` about a task's sleep and its scheduling (fs/proc/base.c, kernel/sched/debug.c): ``stack``,
``wchan``, ``syscall``, ``sched``, ``timerslack_ns``, ``make-it-fail``, ``fail-nth``.

A process of the model sleeps in ``pause`` between the commands that make it do something, and a kernel thread in its
main loop. Left out: load averages of one task, context switches, NUMA groups.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

from kmemd.errors import KernelError
from kmemd.kernel import Kernel
from kmemd.mm import kstrtox
from kmemd.mm.capability import CAP_SYS_ADMIN, CAP_SYS_NICE, CAP_SYS_RESOURCE
from kmemd.mm.layout import X86_64
from kmemd.mm.sched import KTHREAD_FRAMES, TIMERSLACK_NS, Task
from kmemd.mm.user_regs import TEXT_OFFSET
from kmemd.views.task_files import PROC, may_ptrace, task_file, task_of
from kmemd.views.tree import Caller, proc

ASLEEP = {
    X86_64: ("__x64_sys_pause", "do_syscall_64", "entry_SYSCALL_64_after_hwframe"),
    "i386": ("__ia32_sys_pause", "do_int80_syscall_32", "entry_INT80_32"),
}
SYS_PAUSE = {X86_64: 34, "i386": 29}
MAIN_LOOPS = {
    **{"kthreadd": "kthreadd", "kworker": "worker_thread", "kswapd": "kswapd", "kcompactd": "kcompactd"},
    **{"khugepaged": "khugepaged", "ksmd": "ksm_scan_thread", "kmemleak": "kmemleak_scan_thread"},
    **{"cpuhp": "smpboot_thread_fn", "ksoftirqd": "smpboot_thread_fn", "migration": "smpboot_thread_fn"},
    **{"oom_reaper": "oom_reaper", "rcu_": "rcu_gp_kthread", "kdevtmpfs": "devtmpfs_work_loop"},
}
"""The function that a kernel thread sleeps in, by the beginning of its name; others are rescuers of workqueues."""
RESCUER = "rescuer_thread"
NICE_0_WEIGHT = 1024
WEIGHT_STEP = 1.25
"""A step of niceness is a quarter more, or less, of the CPU."""
WEIGHT_BITS = {X86_64: 10, "i386": 0}
DEFAULT_PRIO = 120
NUMBER_BUFFER = 12


def frames(arch: str, task: Task) -> tuple[str, ...]:
    """The functions that a task sleeps in, innermost first."""
    if not task.is_kthread:
        return ASLEEP[arch]
    loop = next((name for start, name in MAIN_LOOPS.items() if task.comm.startswith(start)), RESCUER)
    return (loop, *KTHREAD_FRAMES[loop == "kthreadd" :])


@task_file("wchan", caller=True)
def wchan(kernel: Kernel, task: Task, caller: Caller) -> str:
    """The function that a task sleeps in; 0 for one that runs, or that is not the caller's to look into."""
    asleep = task.state != "R" and may_ptrace(task, caller)
    return frames(kernel.machine.arch, task)[0] if asleep else "0"


@task_file("stack", 0o400, caller=True)
def stack(kernel: Kernel, task: Task, caller: Caller) -> Iterator[str]:
    """The kernel stack of a task that sleeps. EACCES without CAP_SYS_ADMIN."""
    if not caller.capable(CAP_SYS_ADMIN):
        raise KernelError(errno.EACCES, "kernel stacks take CAP_SYS_ADMIN")
    if task.state == "R":
        return iter(())
    handle = kernel.depot.save(frames(kernel.machine.arch, task))
    return (f"[<0>] {text}\n" for text in kernel.kallsyms.stack(handle))


@task_file("syscall", 0o400, caller=True)
def syscall(kernel: Kernel, task: Task, caller: Caller) -> str:
    """The system call that a task sleeps in: number, arguments, stack and instruction pointers. EPERM."""
    if not may_ptrace(task, caller):
        raise KernelError(errno.EPERM, f"uid {caller.uid} may not look into process {task.pid}")
    if task.state == "R":
        return "running\n"
    mm = task.mm
    number = SYS_PAUSE[kernel.machine.arch] if mm is not None else 0
    pointers = (mm.start_stack, mm.start_code + TEXT_OFFSET) if mm is not None else (0, 0)
    return " ".join([str(number), *("0x0",) * 6, *(f"{pointer:#x}" for pointer in pointers)]) + "\n"


def _reset_sched(kernel: Kernel, task: Task, text: str) -> None:
    """Whatever is written resets what schedstats counts, which is off."""


@task_file("sched", 0o644, store=_reset_sched)
def sched(kernel: Kernel, task: Task) -> Iterator[str]:
    """What the scheduler knows of a task."""
    yield f"{task.comm} ({task.pid}, #threads: 1)\n{'-' * 67}\n"
    runtime = task.utime_ns + task.stime_ns
    for name, ns in (("exec_start", task.start_ns), ("vruntime", runtime), ("sum_exec_runtime", runtime)):
        yield f"{'se.' + name:<45}:{ns // 1000000:14d}.{ns % 1000000:06d}\n"
    weight = round(NICE_0_WEIGHT * WEIGHT_STEP**-task.nice) << WEIGHT_BITS[kernel.machine.arch]
    numbers = {"se.nr_migrations": 0, "nr_switches": task.nvcsw}
    numbers |= {"nr_voluntary_switches": task.nvcsw, "nr_involuntary_switches": 0}
    numbers |= {"se.load.weight": weight, "policy": 0, "prio": DEFAULT_PRIO + task.nice, "clock-delta": 0}
    for name, number in numbers.items():
        yield f"{name:<45}:{number:21d}\n"


def _may_tune(task: Task, caller: Caller) -> None:
    if caller.pid != task.pid and not caller.capable(CAP_SYS_NICE):
        raise KernelError(errno.EPERM, "only root looks at another task's timer slack")


@proc.file(f"{PROC}/timerslack_ns", 0o666, caller=True)
def timerslack_ns(kernel: Kernel, pid: int, caller: Caller) -> str:
    """How late timers of the task may be, in ns. EPERM for other users."""
    task = task_of(kernel, pid)
    _may_tune(task, caller)
    return f"{task.timerslack_ns}\n"


@timerslack_ns.store_as_caller
def timerslack_ns_store(kernel: Kernel, pid: int, text: str, caller: Caller) -> None:
    """Set it; 0 for the default. EINVAL, ERANGE, EPERM."""
    task = task_of(kernel, pid)
    slack = kstrtox.kstrtoull(kstrtox.c_string(kstrtox.to_bytes(text)), 10)
    _may_tune(task, caller)
    task.timerslack_ns = slack or TIMERSLACK_NS


def _set_make_it_fail(kernel: Kernel, task: Task, text: str) -> int:
    data = kstrtox.to_bytes(text)[:NUMBER_BUFFER]
    number = kstrtox.kstrtoint(kstrtox.strip(kstrtox.c_string(data)), 0)
    if number not in (0, 1):
        raise KernelError(errno.EINVAL, "make-it-fail is 0 or 1")
    task.make_it_fail = number
    return len(data)


@task_file("make-it-fail", 0o644, store=_set_make_it_fail, needs=CAP_SYS_RESOURCE)
def make_it_fail(kernel: Kernel, task: Task) -> str:
    """Whether fault injection with a task filter is for this task. EPERM without CAP_SYS_RESOURCE."""
    return f"{task.make_it_fail}\n"


def _set_fail_nth(kernel: Kernel, task: Task, text: str) -> None:
    task.fail_nth = kstrtox.kstrtouint(kstrtox.c_string(kstrtox.to_bytes(text)), 0)
    kernel.fail_slab.rearm()
    kernel.fail_page_alloc.rearm()


@task_file("fail-nth", 0o644, store=_set_fail_nth)
def fail_nth(kernel: Kernel, task: Task) -> str:
    """Which of the next calls is to fail; 0 for none."""
    return f"{task.fail_nth}\n"
