"""``/proc/PID/stat``, ``statm`` and ``status`` (fs/proc/array.c, fs/proc/task_mmu.c ``task_mem``, ``task_statm``).

Resident pages are the counters that the kernel keeps, which lag behind the page tables by up to 64 faults of the task.
"""

from __future__ import annotations

from collections.abc import Iterator

from kmemd.kernel import Kernel
from kmemd.mm.mm_types import MM_ANONPAGES, MM_FILEPAGES, MM_SHMEMPAGES, Mm
from kmemd.mm.rlimit import RLIMIT_RSS, RLIMIT_SIGPENDING
from kmemd.mm.sched import Task
from kmemd.mm.signals import Action
from kmemd.mm.units import KIB_PER_PAGE, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from kmemd.views.bitmap import format_list, format_mask
from kmemd.views.machine_files import NS_PER_TICK
from kmemd.views.task_files import may_ptrace, task_file
from kmemd.views.tree import Caller

STATES = {"R": "R (running)", "S": "S (sleeping)", "D": "D (disk sleep)", "I": "I (idle)", "Z": "Z (zombie)"}
ALL_CAPABILITIES = 0x1FFFFFFFFFF
SIGCHLD = 17
NO_ADDRESSES = [0] * 7
ALL_SIGNALS, OLD_SIGNALS = (1 << 64) - 1, (1 << 31) - 1


def text_pages(mm: Mm) -> int:
    """Pages of the program's code."""
    return ((mm.end_code + PAGE_SIZE - 1 & PAGE_MASK) - (mm.start_code & PAGE_MASK)) >> PAGE_SHIFT


def _rss(kernel: Kernel, task: Task) -> tuple[int, int, int]:
    """Resident pages: anonymous, of files, of shared memory."""
    if task.mm is None:
        return 0, 0, 0
    anon, file, shmem = (
        kernel.mm_counters.counter(task.mm, kind) for kind in (MM_ANONPAGES, MM_FILEPAGES, MM_SHMEMPAGES)
    )
    return anon, file, shmem


def _minor_faults(kernel: Kernel, task: Task) -> int:
    """Faults that needed no I/O: those of the address space are counted in the core."""
    return task.minor_faults(int(kernel.mmu.faults_of[task.mm.id]) if task.mm is not None else 0)


@task_file("stat", caller=True)
def stat(kernel: Kernel, task: Task, caller: Caller) -> str:
    """52 numbers in one line; addresses for those alone who may look into the task's memory."""
    mm, permitted = task.mm, may_ptrace(task, caller)
    fields = [task.ppid, 0, 0, 0, -1, task.flags]
    fields += [_minor_faults(kernel, task), task.cmin_flt, task.maj_flt, task.cmaj_flt]
    fields += [ns // NS_PER_TICK for ns in (task.utime_ns, task.stime_ns, task.cutime_ns, task.cstime_ns)]
    fields += [20 + task.nice, task.nice, 1, 0, task.start_ns // NS_PER_TICK]
    fields += [mm.total_vm << PAGE_SHIFT if mm is not None else 0, sum(_rss(kernel, task))]
    fields += [kernel.user.rlimits.soft(task, RLIMIT_RSS), *_code(mm, permitted=permitted)]
    fields += [0, 0, *(mask & OLD_SIGNALS for mask in _signals(task)), int(permitted and task.state != "R"), 0, 0]
    fields += [SIGCHLD if not task.is_kthread else 0, task.cpu, 0, 0, 0, 0, 0]
    fields += _addresses(mm) if mm is not None and permitted else NO_ADDRESSES
    return f"{task.pid} ({task.name}) {task.state} " + " ".join(map(str, fields)) + " 0\n"


def _code(mm: Mm | None, *, permitted: bool) -> tuple[int, int, int]:
    """startcode, endcode, startstack."""
    if mm is None:
        return 0, 0, 0
    return (mm.start_code, mm.end_code, mm.start_stack) if permitted else (1, 1, 0)


def _addresses(mm: Mm) -> list[int]:
    """start_data, end_data, start_brk, arg_start, arg_end, env_start, env_end."""
    return [mm.start_data, mm.end_data, mm.start_brk, mm.arg_start, mm.arg_end, mm.env_start, mm.env_end]


def _signals(task: Task) -> tuple[int, int, int, int]:
    """Signals that are pending for the thread alone, blocked, ignored and caught. Kernel threads ignore all."""
    if task.is_kthread:
        return 0, 0, ALL_SIGNALS, 0
    return 0, 0, task.signals.mask(Action.IGNORE), task.signals.mask(Action.CATCH)


@task_file("statm")
def statm(kernel: Kernel, task: Task) -> str:
    """Pages: size, resident, shared, text, 0, data, 0."""
    mm = task.mm
    if mm is None:
        return "0 0 0 0 0 0 0\n"
    anon, file, shmem = _rss(kernel, task)
    shared = file + shmem
    return f"{mm.total_vm} {anon + shared} {shared} {text_pages(mm)} 0 {mm.data_vm + mm.stack_vm} 0\n"


@task_file("status")
def status(kernel: Kernel, task: Task) -> Iterator[str]:
    """The task in words."""
    name = task.name.replace("\\", "\\\\").replace("\n", "\\n")
    yield f"Name:\t{name}\nUmask:\t0022\nState:\t{STATES[task.state]}\nTgid:\t{task.tgid}\nNgid:\t0\n"
    yield f"Pid:\t{task.pid}\nPPid:\t{task.ppid}\nTracerPid:\t0\n"
    yield "Uid:" + f"\t{task.uid}" * 4 + "\nGid:" + f"\t{task.gid}" * 4 + "\n"
    yield f"FDSize:\t{kernel.machine.long_bits}\nGroups:\t \n"
    if task.mm is not None:
        yield from _memory(kernel, task, task.mm)
    yield f"Threads:\t1\nSigQ:\t0/{kernel.user.rlimits.soft(task, RLIMIT_SIGPENDING)}\n"
    pending, blocked, ignored, caught = _signals(task)
    shared = 1 << task.killed - 1 if task.killed else 0
    masks = {"SigPnd": pending, "ShdPnd": shared, "SigBlk": blocked, "SigIgn": ignored, "SigCgt": caught}
    for name, mask in masks.items():
        yield f"{name}:\t{mask:016x}\n"
    capabilities = ALL_CAPABILITIES if task.uid == 0 else 0
    sets = (0, capabilities, capabilities, ALL_CAPABILITIES, 0)
    for name, value in zip(("Inh", "Prm", "Eff", "Bnd", "Amb"), sets, strict=True):
        yield f"Cap{name}:\t{value:016x}\n"
    x86_64 = kernel.machine.arch == "x86_64"
    yield "NoNewPrivs:\t0\n"
    yield f"Speculation_Store_Bypass:\t{'not vulnerable' if x86_64 else 'vulnerable'}\n"
    yield "SpeculationIndirectBranch:\talways enabled\n"
    cpus = range(kernel.machine.cpus) if task.cpus_allowed is None else task.cpus_allowed
    yield f"Cpus_allowed:\t{format_mask(cpus, kernel.machine.cpus)}\nCpus_allowed_list:\t{format_list(cpus)}\n"
    yield f"voluntary_ctxt_switches:\t{task.nvcsw}\nnonvoluntary_ctxt_switches:\t0\n"


def _memory(kernel: Kernel, task: Task, mm: Mm) -> Iterator[str]:
    """The lines about the address space, in KiB."""
    anon, file, shmem = _rss(kernel, task)
    rss = anon + file + shmem
    text = min(text_pages(mm), mm.exec_vm)
    for name, pages in (
        ("VmPeak", max(mm.hiwater_vm, mm.total_vm)),
        ("VmSize", mm.total_vm),
        ("VmLck", mm.locked_vm),
        ("VmPin", mm.pinned_vm),
        ("VmHWM", max(mm.hiwater_rss, rss)),
        ("VmRSS", rss),
        ("RssAnon", anon),
        ("RssFile", file),
        ("RssShmem", shmem),
        ("VmData", mm.data_vm),
        ("VmStk", mm.stack_vm),
        ("VmExe", text),
        ("VmLib", mm.exec_vm - text),
        ("VmPTE", kernel.mm_counters.pgtables_bytes(mm) >> PAGE_SHIFT),
        ("VmSwap", kernel.mm_counters.swap(mm)),
        ("HugetlbPages", mm.hugetlb_pages),
    ):
        yield f"{name}:\t{pages * KIB_PER_PAGE:8d} kB\n"
    yield "CoreDumping:\t0\nTHP_enabled:\t1\n"
