"""``/proc/PID`` and ``/proc/PID/task/TID`` (fs/proc/base.c, fs/proc/array.c): what ps, top and their like read.

A process has one thread. Signals, sessions, open files, capabilities other than root's and cgroups are left out: their
files and lines show a process that has none.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from kmemd.errors import KernelError
from kmemd.kernel import Kernel
from kmemd.mm.oom_score import oom_score
from kmemd.mm.sched import Mapping, Task, max_threads
from kmemd.mm.units import KIB_PER_PAGE
from kmemd.views import task_memory
from kmemd.views.bitmap import format_list, format_mask
from kmemd.views.machine_files import NS_PER_TICK, mount_lines
from kmemd.views.tree import Caller, proc

PROC, THREAD = "{pid}", "{pid}/task/{tid}"
STATES = {"R": "R (running)", "S": "S (sleeping)", "D": "D (disk sleep)", "I": "I (idle)", "Z": "Z (zombie)"}
ALL_CAPABILITIES = 0x1FFFFFFFFFF
SIGCHLD = 17
EXECUTABLE = "/bin/busybox"
OUTSIDE = ".outside"
OWN = ("exe", "cwd", "root", "fd", "fdinfo", "net", "ns", "uid_map", "gid_map", "setgroups")
"""What only the host knows of a visitor; its network, too, stays the host's."""
Show = Callable[[Kernel, Task], Any]
Store = Callable[[Kernel, Task, str], Any]


def task_of(kernel: Kernel, pid: int) -> Task:
    """The task of a directory. ESRCH when it is gone."""
    return kernel.tasks.visitor(pid) or kernel.tasks.find(pid)


def _has_pid(kernel: Kernel, text: str, caller: Caller) -> int | None:
    """A task of the model, or a visitor: the program that looks (os.getpid()) or an ancestor of it (a shell's $$)."""
    if not text.isascii() or not text.isdigit() or text.startswith("0") or len(text) > 10:
        return None
    pid = int(text)
    if pid in kernel.tasks or kernel.tasks.visitor(pid):
        return pid
    return kernel.tasks.visit(pid, caller.uid) if pid == caller.pid or pid in caller.relatives() else None


@proc.keys(PROC, has=_has_pid, caller=True)
def pids(kernel: Kernel) -> Iterable[int]:
    """All tasks."""
    return kernel.tasks.pids()


@proc.keys(THREAD)
def tids(kernel: Kernel, pid: int) -> Iterable[int]:
    """A task's only thread is itself."""
    return (task_of(kernel, pid).pid,)


def _task_file(
    name: str, mode: int = 0o444, *, thread: bool = True, store: Store | None = None
) -> Callable[[Show], Show]:
    """Decorator: a file of the process and, with ``thread``, of its thread."""

    def declare(show: Show) -> Show:
        for path in (PROC, THREAD) if thread else (PROC,):

            def of_task(kernel: Kernel, pid: int, *tid: int) -> Any:
                return show(kernel, task_of(kernel, pid))

            declared = proc.file(f"{path}/{name}", mode)(of_task)
            if store is not None:
                declared.store(_stored(store))
        return show

    return declare


def _stored(store: Store) -> Callable[..., Any]:
    def write(kernel: Kernel, pid: int, *rest: Any) -> Any:
        return store(kernel, task_of(kernel, pid), rest[-1])

    return write


def _set_comm(kernel: Kernel, task: Task, text: str) -> None:
    """Any name; what is too long is cut."""
    task.comm = text.split("\0")[0].rstrip("\n")[:15]


@_task_file("comm", 0o644, store=_set_comm)
def comm(kernel: Kernel, task: Task) -> str:
    """The task's name."""
    return task.comm + "\n"


@_task_file("cmdline")
def cmdline(kernel: Kernel, task: Task) -> bytes:
    """The arguments, each ended by a NUL; nothing for kernel threads."""
    return b"".join(argument.encode() + b"\0" for argument in task.argv)


@_task_file("environ", 0o400)
def environ(kernel: Kernel, task: Task) -> bytes:
    """The environment that the kernel gave init, which the others inherit."""
    return b"" if task.is_kthread else b"HOME=/\0TERM=linux\0"


@_task_file("stat")
def stat(kernel: Kernel, task: Task) -> str:
    """52 numbers in one line."""
    fields = [task.ppid, 0, 0, 0, -1, task.flags, task.min_flt, 0, task.maj_flt, 0]
    fields += [task.utime_ns // NS_PER_TICK, task.stime_ns // NS_PER_TICK, 0, 0]
    fields += [20 + task.nice, task.nice, 1, 0, task.start_ns // NS_PER_TICK]
    fields += [task.total_vm << 12, task.rss, (1 << (64 if kernel.machine.arch == "x86_64" else 32)) - 1]
    fields += _layout(task)
    fields += [0, 0, 0, 0, 0, 0, 0, 0, 0]
    fields += [SIGCHLD if not task.is_kthread else 0, task.cpu, 0, 0, 0, 0, 0]
    fields += _data_layout(task)
    return f"{task.pid} ({task.comm}) {task.state} " + " ".join(map(str, fields)) + "\n"


def _find(task: Task, **wanted: str) -> Mapping | None:
    return next((m for m in task.mappings if all(getattr(m, key) == value for key, value in wanted.items())), None)


def _layout(task: Task) -> list[int]:
    """startcode, endcode, startstack."""
    code, stack = _find(task, perms="r-xp", name=EXECUTABLE), _find(task, name="[stack]")
    return [code.start if code else 0, code.end if code else 0, _arguments(task)[0] if stack else 0]


def _arguments(task: Task) -> tuple[int, int, int]:
    """Start and end of the arguments, end of the environment, which ends at the top of the stack."""
    stack = _find(task, name="[stack]")
    if stack is None:
        return 0, 0, 0
    end = stack.end - 8
    start_env = end - len(b"HOME=/\0TERM=linux\0")
    return start_env - sum(len(argument) + 1 for argument in task.argv), start_env, end


def _data_layout(task: Task) -> list[int]:
    """start_data, end_data, start_brk, arg_start, arg_end, env_start, env_end, exit_code."""
    data, heap = _find(task, perms="rw-p", name=EXECUTABLE), _find(task, name="[heap]")
    arg_start, arg_end, env_end = _arguments(task)
    start, end = (data.start, data.end) if data else (0, 0)
    return [start, end, heap.start if heap else 0, arg_start, arg_end, arg_end, env_end, 0]


@_task_file("statm")
def statm(kernel: Kernel, task: Task) -> str:
    """Pages: size, resident, shared, text, 0, data, 0."""
    code = _find(task, perms="r-xp", name=EXECUTABLE)
    shared = task.rss_file + task.rss_shmem
    return f"{task.total_vm} {task.rss} {shared} {code.pages if code else 0} 0 {_data_pages(task)} 0\n"


def _data_pages(task: Task) -> int:
    """Private writable pages, and the stack."""
    return sum(mapping.pages for mapping in task.mappings if "w" in mapping.perms)


@_task_file("status")
def status(kernel: Kernel, task: Task) -> Iterator[str]:
    """The task in words."""
    yield f"Name:\t{task.comm}\nUmask:\t0022\nState:\t{STATES[task.state]}\nTgid:\t{task.tgid}\nNgid:\t0\n"
    yield f"Pid:\t{task.pid}\nPPid:\t{task.ppid}\nTracerPid:\t0\n"
    yield "Uid:" + f"\t{task.uid}" * 4 + "\nGid:" + f"\t{task.gid}" * 4 + "\n"
    yield "FDSize:\t64\nGroups:\t \n"
    if not task.is_kthread:
        yield from _status_memory(task)
    yield f"Threads:\t1\nSigQ:\t0/{_max_pending(kernel)}\n"
    for name in ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt"):
        yield f"{name}:\t{0:016x}\n"
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
    yield "voluntary_ctxt_switches:\t0\nnonvoluntary_ctxt_switches:\t0\n"


def _status_memory(task: Task) -> Iterator[str]:
    code, stack, vdso = (
        _find(task, perms="r-xp", name=EXECUTABLE),
        _find(task, name="[stack]"),
        _find(task, name="[vdso]"),
    )
    stack_pages = stack.pages if stack else 0
    lines = (
        ("VmPeak", task.total_vm),
        ("VmSize", task.total_vm),
        ("VmLck", 0),
        ("VmPin", 0),
        ("VmHWM", task.rss),
        ("VmRSS", task.rss),
        ("RssAnon", task.rss_anon),
        ("RssFile", task.rss_file),
        ("RssShmem", task.rss_shmem),
        ("VmData", _data_pages(task) - stack_pages),
        ("VmStk", stack_pages),
        ("VmExe", code.pages if code else 0),
        ("VmLib", vdso.pages if vdso else 0),
        ("VmPTE", task.page_table_pages),
        ("VmSwap", task.swap_pages),
        ("HugetlbPages", 0),
    )
    for name, pages in lines:
        yield f"{name}:\t{pages * KIB_PER_PAGE:8d} kB\n"
    yield "CoreDumping:\t0\nTHP_enabled:\t1\n"


def _max_pending(kernel: Kernel) -> int:
    """RLIMIT_SIGPENDING: half of the threads that an eighth of memory has stacks for (fork_init)."""
    return max_threads(kernel.machine.arch, kernel.totalram_pages()) // 2


@_task_file("maps")
def maps(kernel: Kernel, task: Task) -> Iterator[str]:
    """The address space."""
    return task_memory.maps(kernel, task)


@_task_file("smaps")
def smaps(kernel: Kernel, task: Task) -> Iterator[str]:
    """The address space with what is resident."""
    return task_memory.smaps(kernel, task)


@_task_file("smaps_rollup")
def smaps_rollup(kernel: Kernel, task: Task) -> Iterator[str]:
    """Sums over the address space. ESRCH for kernel threads."""
    if task.is_kthread:
        raise KernelError(errno.ESRCH, f"{task.comm} has no address space")
    return task_memory.smaps_rollup(kernel, task)


@_task_file("numa_maps")
def numa_maps(kernel: Kernel, task: Task) -> Iterator[str]:
    """The address space by nodes."""
    return task_memory.numa_maps(kernel, task)


@_task_file("oom_score")
def oom_score_file(kernel: Kernel, task: Task) -> str:
    """How likely the OOM killer is to choose the task, 0..2000."""
    return f"{oom_score(task, kernel.totalram_pages() + kernel.swap.total_pages)}\n"


@_task_file("mounts")
def mounts(kernel: Kernel, task: Task) -> Iterator[str]:
    """What is mounted."""
    return mount_lines(kernel)


@_task_file("mountinfo")
def mountinfo(kernel: Kernel, task: Task) -> Iterator[str]:
    """What is mounted, with numbers of mounts and devices."""
    for number, line in enumerate(mount_lines(kernel), start=1):
        device, point, kind, options, _, _ = line.split()
        flags = "rw,relatime" if "relatime" in options else "rw"
        rest = options.removeprefix(flags).lstrip(",")
        parent = 1 if number > 1 else 0
        super_options = f"rw,{rest}" if rest else "rw"
        yield f"{number} {parent} 0:{number + 1} / {point} {flags} - {kind} {device} {super_options}\n"


@_task_file("limits")
def limits(kernel: Kernel, task: Task) -> Iterator[str]:
    """Resource limits: the kernel's defaults for init, which all inherit."""
    yield f"{'Limit':<25} {'Soft Limit':<20} {'Hard Limit':<20} {'Units':<10}\n"
    threads = _max_pending(kernel)
    unlimited = "unlimited"
    rows: tuple[tuple[str, object, object, str], ...] = (
        ("Max cpu time", unlimited, unlimited, "seconds"),
        ("Max file size", unlimited, unlimited, "bytes"),
        ("Max data size", unlimited, unlimited, "bytes"),
        ("Max stack size", 8 << 20, unlimited, "bytes"),
        ("Max core file size", 0, unlimited, "bytes"),
        ("Max resident set", unlimited, unlimited, "bytes"),
        ("Max processes", threads, threads, "processes"),
        ("Max open files", 1024, 4096, "files"),
        ("Max locked memory", 8 << 20, 8 << 20, "bytes"),
        ("Max address space", unlimited, unlimited, "bytes"),
        ("Max file locks", unlimited, unlimited, "locks"),
        ("Max pending signals", threads, threads, "signals"),
        ("Max msgqueue size", 819200, 819200, "bytes"),
        ("Max nice priority", 0, 0, ""),
        ("Max realtime priority", 0, 0, ""),
        ("Max realtime timeout", unlimited, unlimited, "us"),
    )
    for name, soft, hard, unit in rows:
        yield f"{name:<25} {soft!s:<20} {hard!s:<20} {unit:<10}\n"


@_task_file("cgroup")
def cgroup(kernel: Kernel, task: Task) -> str:
    """The task's control group: the root of the unified hierarchy."""
    return "0::/\n"


@_task_file("personality", 0o400)
def personality(kernel: Kernel, task: Task) -> str:
    """Execution domain: Linux."""
    return "00000000\n"


@_task_file("wchan")
def wchan(kernel: Kernel, task: Task) -> str:
    """Where a task sleeps; 0 for one that runs or does not tell."""
    return "0"


@_task_file("arch_status", thread=False)
def arch_status(kernel: Kernel, task: Task) -> str:
    """Nothing: no modelled CPU has AVX-512."""
    return ""


def _task_link(name: str, target: Callable[[Kernel, Task], str]) -> None:
    for path in (PROC, THREAD):

        def of_task(kernel: Kernel, pid: int, *rest: Any) -> str:
            return target(kernel, task_of(kernel, pid))

        of_task.__doc__ = f"/proc/PID/{name}."
        proc.link(f"{path}/{name}")(of_task).exists = _is_task


def _executable(kernel: Kernel, task: Task) -> str:
    """The file that a process runs. ENOENT for kernel threads."""
    if not task.mappings:
        raise KernelError(errno.ENOENT, f"{task.comm} runs no file")
    return EXECUTABLE


def _is_task(kernel: Kernel, pid: int, *tid: int) -> bool:
    return kernel.tasks.visitor(pid) is None


_task_link("exe", _executable)
_task_link("cwd", lambda kernel, task: "/")
_task_link("root", lambda kernel, task: "/")
for _path in (PROC, THREAD):
    proc.dir(f"{_path}/fd", 0o500).exists = _is_task
    proc.dir(f"{_path}/fdinfo", 0o555).exists = _is_task


def _has_outside(kernel: Kernel, text: str) -> str | None:
    return text if text == OUTSIDE else None


@proc.keys("{outside}", has=_has_outside, fixed=True)
def outside(kernel: Kernel) -> Iterable[str]:
    """Where ``kmemd run`` puts the host's /proc, for what visitors have open. In no listing."""
    return ()


@proc.link(f"{PROC}/{{own}}")
def own_link(kernel: Kernel, pid: int, name: str, caller: Caller) -> str:
    """What a visitor has of its own: without it /dev/stdin and the shell's <(...) would lead nowhere."""
    return f"/proc/{OUTSIDE}/{pid}/{name}"


@proc.keys(f"{PROC}/{{own}}", fixed=True)
def own_links(kernel: Kernel, pid: int) -> Iterable[str]:
    """Only visitors have them."""
    return () if _is_task(kernel, pid) else OWN
