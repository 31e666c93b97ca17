"""``/proc/PID/maps`` and ``map_files`` (fs/proc/task_mmu.c ``show_map_vma``, fs/proc/base.c ``proc_map_files_lookup``).

Left out: the gate area of legacy vsyscalls, which the captured kernels have switched off.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator

from kmemd.errors import KernelError
from kmemd.kernel import Kernel
from kmemd.mm.mm_types import VM_EXEC, VM_MAYSHARE, VM_READ, VM_WRITE, Mm, Vma
from kmemd.mm.sched import Task
from kmemd.mm.units import PAGE_SHIFT
from kmemd.views.task_files import PROC, check_ptrace, is_task, task_file, task_of
from kmemd.views.tree import Caller, proc

NAME_COLUMN = {"x86_64": 72, "i386": 48}
NO_DEVICE = "00:00"
SPECIAL = ("[vvar]", "[vdso]")
LINK_MODE = 0o400
"""Of files that were opened for reading, as those of programs are."""


def mangle(path: str, escaped: str) -> str:
    """A path with the characters that would end it as octal numbers (``mangle_path``)."""
    return "".join(f"\\{ord(letter):03o}" if letter in escaped else letter for letter in path)


def is_heap(mm: Mm, vma: Vma) -> bool:
    """Whether a mapping holds part of what brk gave."""
    return vma.start <= mm.brk and vma.end >= mm.start_brk


def is_stack(mm: Mm, vma: Vma) -> bool:
    """Whether a mapping is the stack that exec made."""
    return vma.start <= mm.start_stack <= vma.end


def name_of(mm: Mm, vma: Vma) -> str:
    """What maps says a mapping is, "" for nothing in particular."""
    if vma.file is not None:
        return mangle(vma.file.name, "\n")
    if vma.name in SPECIAL:
        return vma.name
    if is_heap(mm, vma):
        return "[heap]"
    return "[stack]" if is_stack(mm, vma) else vma.name


def header(
    arch: str, start: int, end: int, perms: str, name: str, origin: tuple[int, str, int] = (0, NO_DEVICE, 0)
) -> str:
    """A line of maps; ``origin`` is the offset in the file, in bytes, its device and its inode."""
    offset, device, inode = origin
    line = f"{start:08x}-{end:08x} {perms} {offset:08x} {device} {inode} "
    return f"{line.ljust(NAME_COLUMN[arch])} {name}\n" if name else line + "\n"


def permissions(flags: int) -> str:
    """``rwxp`` and the like."""
    letters = ((VM_READ, "r"), (VM_WRITE, "w"), (VM_EXEC, "x"))
    return "".join(letter if flags & bit else "-" for bit, letter in letters) + ("s" if flags & VM_MAYSHARE else "p")


def map_line(arch: str, mm: Mm, vma: Vma) -> str:
    """The line of a mapping."""
    origin = (0, NO_DEVICE, 0)
    if vma.file is not None:
        origin = (vma.pgoff << PAGE_SHIFT, vma.file.device, vma.file.ino)
    return header(arch, vma.start, vma.end, permissions(vma.flags), name_of(mm, vma), origin)


@task_file("maps", private=True)
def maps(kernel: Kernel, task: Task) -> Iterator[str]:
    """A line for each mapping."""
    if task.mm is not None:
        for vma in task.mm.vmas:
            yield map_line(kernel.machine.arch, task.mm, vma)


# -- map_files ---------------------------------------------------------------------------------------------


def _file_vma(kernel: Kernel, pid: int, text: str) -> Vma | None:
    """The mapping of a file with exactly these bounds, in hexadecimal without leading zeroes."""
    mm = task_of(kernel, pid).mm
    first, dash, last = text.partition("-")
    try:
        start, end = int(first, 16), int(last, 16)
    except ValueError:
        return None
    vma = mm.find(start) if mm is not None and dash and text == f"{start:x}-{end:x}" else None
    return vma if vma is not None and vma.file is not None and (vma.start, vma.end) == (start, end) else None


def _has_range(kernel: Kernel, pid: int, text: str, caller: Caller) -> str | None:
    """A name in the directory. EACCES for what the caller may not look into."""
    check_ptrace(task_of(kernel, pid), caller)
    return text if _file_vma(kernel, pid, text) is not None else None


@proc.link(f"{PROC}/map_files/{{range}}")
def map_file(kernel: Kernel, pid: int, bounds: str, caller: Caller) -> str:
    """The file that a range of addresses shows. EACCES.

    Linux lets CAP_SYS_ADMIN alone follow the link; FUSE does not tell following from reading it.
    """
    check_ptrace(task_of(kernel, pid), caller)
    vma = _file_vma(kernel, pid, bounds)
    if vma is None or vma.file is None:
        raise KernelError(errno.ENOENT, f"process {pid} maps no file at {bounds}")
    return vma.file.name


map_file.mode = LINK_MODE


@proc.keys(f"{PROC}/map_files/{{range}}", has=_has_range, caller=True)
def map_files(kernel: Kernel, pid: int) -> Iterable[str]:
    """The ranges of addresses that show files."""
    mm = task_of(kernel, pid).mm
    return [f"{vma.start:x}-{vma.end:x}" for vma in mm.vmas if vma.file is not None] if mm is not None else []


proc.dir(f"{PROC}/map_files", 0o500).exists = is_task
