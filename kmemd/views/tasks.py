"""``/proc/PID`` and ``/proc/PID/task/TID`` (fs/proc/base.c): what ps, top and their like read besides a task's memory.

A process has one thread. Sessions, open files and capabilities other than root's are left out: their
files show a process that has none.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator

from kmemd.errors import KernelError
from kmemd.kernel import Kernel
from kmemd.mm.exec import ENVIRONMENT
from kmemd.mm.oom_score import oom_score
from kmemd.mm.rlimit import SHOWN
from kmemd.mm.sched import USER_HZ, Task
from kmemd.mm.units import PAGE_SIZE
from kmemd.views.machine_files import mount_lines
from kmemd.views.task_files import PROC, THREAD, check_ptrace_of, is_task, task_file, task_link, task_of
from kmemd.views.tree import Caller, proc

# include/uapi/linux/auxvec.h
AT_PAGESZ, AT_BASE, AT_FLAGS, AT_UID, AT_EUID, AT_GID, AT_EGID = 6, 7, 8, 11, 12, 13, 14
AT_PLATFORM, AT_CLKTCK, AT_SECURE, AT_RANDOM, AT_EXECFN, AT_SYSINFO_EHDR = 15, 17, 23, 25, 31, 33
OUTSIDE = ".outside"
OWN = ("exe", "cwd", "root", "fd", "fdinfo", "net", "ns", "uid_map", "gid_map", "setgroups")
"""What only the host knows of a visitor; its network, too, stays the host's."""


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


proc.dir(PROC).owner = lambda kernel, pid, *rest: task_of(kernel, pid).uid


@proc.keys(THREAD)
def tids(kernel: Kernel, pid: int) -> Iterable[int]:
    """A task's only thread is itself."""
    return (task_of(kernel, pid).pid,)


def _set_comm(kernel: Kernel, task: Task, text: str) -> None:
    """Any name; what is too long is cut."""
    task.comm = text.split("\0")[0].rstrip("\n")[:15]


@task_file("comm", 0o644, store=_set_comm)
def comm(kernel: Kernel, task: Task) -> str:
    """The task's name."""
    return task.name + "\n"


@task_file("cmdline")
def cmdline(kernel: Kernel, task: Task) -> bytes:
    """The arguments, each ended by a NUL; nothing for kernel threads."""
    return b"".join(argument.encode() + b"\0" for argument in task.argv)


@task_file("environ", 0o400, private=True)
def environ(kernel: Kernel, task: Task) -> bytes:
    """The environment that the kernel gave init, which the others inherit."""
    return b"".join(word.encode() + b"\0" for word in ENVIRONMENT) if task.mm is not None else b""


@task_file("auxv", 0o400, private=True)
def auxv(kernel: Kernel, task: Task) -> bytes:
    """What exec tells a program besides its arguments, as pairs of words (``create_elf_tables``).

    Left out: what only the program's file or the CPU knows (AT_PHDR, AT_ENTRY, AT_HWCAP and their like).
    """
    mm = task.mm
    if mm is None:
        return b""
    vdso = next((vma.start for vma in mm.vmas if vma.name == "[vdso]"), 0)
    ids = ((AT_UID, task.uid), (AT_EUID, task.uid), (AT_GID, task.gid), (AT_EGID, task.gid), (AT_SECURE, 0))
    sizes = ((AT_PAGESZ, PAGE_SIZE), (AT_CLKTCK, USER_HZ), (AT_BASE, 0), (AT_FLAGS, 0))
    strings = ((AT_RANDOM, mm.random), (AT_EXECFN, mm.env_end), (AT_PLATFORM, mm.platform))
    pairs = [(AT_SYSINFO_EHDR, vdso), *sizes, *ids, *strings, (0, 0)]
    width = kernel.layout.pointer_size
    return b"".join(number.to_bytes(width, "little") for pair in pairs for number in pair)


@task_file("oom_score")
def oom_score_file(kernel: Kernel, task: Task) -> str:
    """How likely the OOM killer is to choose the task, 0..2000."""
    return f"{oom_score(task, kernel.mm_counters, kernel.totalram_pages() + kernel.swap.total_swap_pages)}\n"


@task_file("mounts")
def mounts(kernel: Kernel, task: Task) -> Iterator[str]:
    """What is mounted."""
    return mount_lines(kernel)


@task_file("mountinfo")
def mountinfo(kernel: Kernel, task: Task) -> Iterator[str]:
    """What is mounted, with numbers of mounts and devices."""
    for number, line in enumerate(mount_lines(kernel), start=1):
        device, point, kind, options, _, _ = line.split()
        flags = "rw,relatime" if "relatime" in options else "rw"
        rest = options.removeprefix(flags).lstrip(",")
        parent = 1 if number > 1 else 0
        super_options = f"rw,{rest}" if rest else "rw"
        yield f"{number} {parent} 0:{number + 1} / {point} {flags} - {kind} {device} {super_options}\n"


@task_file("mountstats", 0o400, thread=False)
def mountstats(kernel: Kernel, task: Task) -> Iterator[str]:
    """What is mounted, in words."""
    for line in mount_lines(kernel):
        device, point, kind = line.split()[:3]
        yield f"device {device} mounted on {point} with fstype {kind}\n"


@task_file("limits")
def limits(kernel: Kernel, task: Task) -> Iterator[str]:
    """Resource limits: soft, hard, and what they count."""
    rlimits = kernel.user.rlimits
    yield f"{'Limit':<25} {'Soft Limit':<20} {'Hard Limit':<20} {'Units':<10}\n"
    for resource, (name, unit) in enumerate(SHOWN):
        soft, hard = map(rlimits.text, rlimits.get(task, resource))
        yield f"{name:<25} {soft:<20} {hard:<20} {unit:<10}\n"


@task_file("ksm_merging_pages", 0o400)
def ksm_merging_pages(kernel: Kernel, task: Task) -> str:
    """Pages that ksmd has merged: none, for it never runs."""
    return "0\n" if task.mm is not None else ""


@task_file("ksm_stat", 0o400)
def ksm_stat(kernel: Kernel, task: Task) -> str:
    """What ksmd remembers of the task: nothing."""
    return "ksm_rmap_items 0\n" if task.mm is not None else ""


@task_file("cgroup")
def cgroup(kernel: Kernel, task: Task) -> str:
    """The task's control group in the unified hierarchy; one that was removed meanwhile says so."""
    group = kernel.cgroups.of(task)
    return f"0::{group.path}{' (deleted)' if group.dead else ''}\n"


@task_file("personality", 0o400)
def personality(kernel: Kernel, task: Task) -> str:
    """Execution domain: Linux."""
    return "00000000\n"


@task_file("arch_status")
def arch_status(kernel: Kernel, task: Task) -> str:
    """Nothing: no modelled CPU has AVX-512."""
    return ""


def _executable(kernel: Kernel, task: Task) -> str:
    """The file that a process runs. ENOENT for kernel threads."""
    if task.mm is None or task.mm.exe is None:
        raise KernelError(errno.ENOENT, f"{task.comm} runs no file")
    return task.mm.exe.name


task_link("exe", _executable)
task_link("cwd", lambda kernel, task: "/")
task_link("root", lambda kernel, task: "/")
for _path in (PROC, THREAD):
    proc.dir(f"{_path}/fd", 0o500).exists = is_task
    _fdinfo = proc.dir(f"{_path}/fdinfo", 0o555)
    _fdinfo.exists, _fdinfo.may_open = is_task, check_ptrace_of
    proc.dir(f"{_path}/net", 0o555).exists = is_task
    proc.dir(f"{_path}/ns", 0o511).exists = is_task


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
    return () if is_task(kernel, pid) else OWN
