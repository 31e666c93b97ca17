"""Verbs of address spaces: ``mmap``, ``munmap``, ``mremap``, ``mprotect``, ``brk``, ``madvise``, ``mlock`` and the like
(mm/mmap.c and its neighbours).

Each is the system call of its name, made by the process whose pid comes first, with Linux' errno.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from kmemd.control.language import Reply, Slices, WordType, allocator, invalid, quoted, suggestion, verb, word_type
from kmemd.control.words import Address, Pid, Reference, Size, Text, mask, number
from kmemd.errors import KernelError
from kmemd.mm import mman
from kmemd.mm.handles import Handle, Kind
from kmemd.mm.mlock import posix_error
from kmemd.mm.mmap_region import Mapped, Request
from kmemd.mm.rlimit import NAMES, Rlimits, capable
from kmemd.mm.sched import Task
from kmemd.mm.units import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from kmemd.kernel import Kernel

SHOWN_PAGES = 256
"""As many pages mincore's reply lists one by one."""
_LETTERS = {"r": mman.PROT_READ, "w": mman.PROT_WRITE, "x": mman.PROT_EXEC, "-": 0}
_PROT = re.compile(r"[rwx-]{1,3}", re.ASCII)


def run_as(kernel: Kernel, pid: int) -> Task:
    """Become the process that makes a call. ESRCH; EINVAL for a kernel thread."""
    task = kernel.tasks.find(pid)
    if task.mm is None:
        invalid(f"{task.comm} is a kernel thread and has no address space")
    if kernel.context.pid != pid:
        kernel.context.switch(task.pid, task.tgid, task.comm, task.cpu)
    kernel.context.charge(kernel.machine.latency.syscall)
    task.stime_ns += kernel.machine.latency.syscall
    return task


# -- words -----------------------------------------------------------------------------------------------


def _named(metavar: str, meaning: str, names: Mapping[str, int]) -> WordType:
    def show(value: int) -> str:
        return "|".join(name for name, bit in names.items() if bit and value & bit == bit) or str(value)

    return WordType(metavar, meaning, lambda text, kernel: mask(text, names), show)


def _prot(text: str, kernel: Any) -> int:
    if text == "none":
        return 0
    if _PROT.fullmatch(text):
        return sum(bit for letter, bit in _LETTERS.items() if letter in text)
    return mask(text, mman.PROT_NAMES)


def _show_prot(value: int) -> str:
    return "".join(letter for letter, bit in _LETTERS.items() if value & bit) or "none"


def _advice(text: str, kernel: Any) -> int:
    if text[:1].isdigit():
        return number(text, (1 << 31) - 1, "a number")
    if text not in mman.MADV_NAMES:
        invalid(f"no advice {quoted(text)}{suggestion(text, mman.MADV_NAMES)}")
    return int(mman.MADV_NAMES[text])


def _open_mode(text: str, kernel: Any) -> bool:
    if text not in ("r", "rw"):
        invalid(f"{quoted(text)} is not a way to open a file; write r or rw")
    return text == "rw"


def _resource(text: str, kernel: Any) -> int:
    if text not in NAMES:
        invalid(f"no limit {quoted(text)}{suggestion(text, NAMES)}")
    return NAMES.index(text)


def _limit(text: str, kernel: Any) -> int:
    return (1 << 64) - 1 if text in ("unlimited", "RLIM_INFINITY") else int(word_type(Size).read(text, kernel))


Prot = Annotated[int, WordType("PROT", "rw, r-x, none, PROT_READ|... or a number", _prot, _show_prot)]
MapFlags = Annotated[int, _named("FLAGS", "MAP_PRIVATE|MAP_ANONYMOUS..., or numbers", mman.MAP_NAMES)]
MremapFlags = Annotated[int, _named("FLAGS", "MREMAP_MAYMOVE|..., or numbers", mman.MREMAP_NAMES)]
MsyncFlags = Annotated[int, _named("FLAGS", "MS_SYNC, MS_ASYNC, MS_INVALIDATE, or a number", mman.MS_NAMES)]
McaFlags = Annotated[int, _named("FLAGS", "MCL_CURRENT|MCL_FUTURE|MCL_ONFAULT, or a number", mman.MCL_NAMES)]
MlockFlags = Annotated[int, _named("FLAGS", "MLOCK_ONFAULT, or a number", {"MLOCK_ONFAULT": mman.MLOCK_ONFAULT})]
OpenMode = Annotated[
    bool, WordType("MODE", "r or rw: how the file was opened", _open_mode, lambda value: "rw" if value else "r")
]
Advice = Annotated[int, WordType("ADVICE", "MADV_DONTNEED, MADV_FREE..., or a number", _advice)]
Resource = Annotated[int, WordType("RESOURCE", "RLIMIT_AS, RLIMIT_MEMLOCK...", _resource)]
Limit = Annotated[int, WordType("LIMIT", "bytes, a number with K, M, G or T, or unlimited", _limit)]


# -- mappings --------------------------------------------------------------------------------------------


@allocator
def mmap(
    kernel: Kernel,
    pid: Pid,
    length: Size,
    *,
    addr: Address | None = None,
    prot: Prot = mman.PROT_READ | mman.PROT_WRITE,
    flags: MapFlags | None = None,
    file: Text | None = None,
    offset: Size = 0,
    open: OpenMode = True,
) -> Slices:
    """Map memory, or a file, into a process; NAME stands for the address.

    Without flags= it is MAP_PRIVATE, and MAP_ANONYMOUS without file=. MAP_POPULATE and MAP_LOCKED fault the pages
    in at once. open=r: a shared mapping of a file that was opened for reading cannot be written to (EACCES).
    """
    task = run_as(kernel, pid)
    found = kernel.user.vfs.lookup(file) if file is not None else None
    if flags is None:
        flags = mman.MAP_PRIVATE | (mman.MAP_ANONYMOUS if found is None else 0)
    if offset & (PAGE_SIZE - 1):
        invalid(f"offset: {offset} is not a multiple of the page size")
    where = addr.address if addr is not None else 0
    mapped = kernel.user.spaces.mmap(task, Request(length, prot, flags, where, found, offset >> PAGE_SHIFT, open))
    yield from _populate(kernel, task, mapped)
    address = np.array([mapped.address], dtype=np.uint64)
    handle = Handle(Kind.MAPPING, address, size=mapped.length, pid=pid)
    return Reply({"addr": f"{mapped.address:#x}", "size": mapped.length}, handle)


def _populate(kernel: Kernel, task: Task, mapped: Mapped) -> Slices:
    """Fault in what a call left to its caller; errors do not count."""
    if mapped.populate:
        start = mapped.address if mapped.populate > mapped.length else mapped.address + mapped.length - mapped.populate
        yield from kernel.user.vma_pages.populate(task, start, start + mapped.populate)
    return Reply()


@verb
def munmap(kernel: Kernel, pid: Pid, addr: Address, length: Size) -> Slices:
    """Unmap a range; parts of it need not be mapped. A NAME of mmap whose whole mapping goes is dropped."""
    task = run_as(kernel, pid)
    yield from kernel.user.spaces.munmap_steps(task, addr.address, length)
    _drop(kernel, addr, length)
    return Reply({"addr": f"{addr.address:#x}", "size": length})


def _drop(kernel: Kernel, where: Reference, length: int) -> None:
    handle = where.handle
    if handle is not None and handle.kind is Kind.MAPPING and not where.offset and length >= handle.size:
        kernel.handles.forget(where.name)


@verb
def mremap(
    kernel: Kernel,
    pid: Pid,
    addr: Address,
    old_size: Size,
    new_size: Size,
    *,
    flags: MremapFlags = 0,
    new: Address | None = None,
) -> Slices:
    """Grow, shrink or move a mapping; a NAME follows when all of it moves.

    new= is the address for MREMAP_FIXED and the wish for MREMAP_DONTUNMAP.
    """
    task = run_as(kernel, pid)
    to = new.address if new is not None else 0
    mapped = kernel.user.mremap.mremap(task, addr.address, old_size, new_size, flags, to)
    yield from _populate(kernel, task, mapped)
    handle = addr.handle
    whole = handle is not None and handle.kind is Kind.MAPPING and not addr.offset and old_size >= handle.size
    if handle is not None and whole and not flags & mman.MREMAP_DONTUNMAP:
        handle.addresses, handle.size = np.array([mapped.address], dtype=np.uint64), mapped.length
    return Reply({"addr": f"{mapped.address:#x}", "size": mapped.length})


@verb
def mprotect(kernel: Kernel, pid: Pid, addr: Address, length: Size, prot: Prot) -> Reply:
    """Change what a range may be used for."""
    task = run_as(kernel, pid)
    kernel.user.mprotect.mprotect(task, addr.address, length, prot)
    return Reply({"addr": f"{addr.address:#x}", "size": length})


@verb
def brk(kernel: Kernel, pid: Pid, addr: Address | None = None) -> Slices:
    """Move the end of a process' heap; without an address only tell where it is."""
    task = run_as(kernel, pid)
    if addr is not None:
        mapped = kernel.user.spaces.brk(task, addr.address)
        yield from _populate(kernel, task, mapped)
    assert task.mm is not None
    return Reply({"addr": f"{task.mm.brk:#x}", "start": f"{task.mm.start_brk:#x}"})


@verb
def madvise(kernel: Kernel, pid: Pid, addr: Address, length: Size, advice: Advice) -> Slices:
    """Tell the kernel how a range will be used, or to drop, page out or populate it."""
    task = run_as(kernel, pid)
    yield from kernel.user.madvise.madvise(task, addr.address, length, advice)
    return Reply({"addr": f"{addr.address:#x}", "size": length})


# -- locking ---------------------------------------------------------------------------------------------


def _lock(kernel: Kernel, task: Task, mapped: Mapped) -> Slices:
    """Fault in what was locked; a page that cannot be is the call's error."""
    try:
        end = mapped.address + mapped.populate
        yield from kernel.user.vma_pages.populate(task, mapped.address, end, ignore_errors=False)
    except KernelError as error:
        raise posix_error(error) from None
    return Reply({"addr": f"{mapped.address:#x}", "size": mapped.length})


@verb
def mlock(kernel: Kernel, pid: Pid, addr: Address, length: Size) -> Slices:
    """Lock a range in memory, after faulting it in."""
    task = run_as(kernel, pid)
    mapped = yield from kernel.user.mlock.mlock(task, addr.address, length)
    return (yield from _lock(kernel, task, mapped))


@verb
def mlock2(kernel: Kernel, pid: Pid, addr: Address, length: Size, flags: MlockFlags = 0) -> Slices:
    """Lock a range as mlock does, or with MLOCK_ONFAULT each page when it is first used."""
    task = run_as(kernel, pid)
    mapped = yield from kernel.user.mlock.mlock2(task, addr.address, length, flags)
    return (yield from _lock(kernel, task, mapped))


@verb
def munlock(kernel: Kernel, pid: Pid, addr: Address, length: Size) -> Slices:
    """Unlock a range."""
    yield from kernel.user.mlock.munlock(run_as(kernel, pid), addr.address, length)
    return Reply({"addr": f"{addr.address:#x}", "size": length})


@verb
def mlockall(kernel: Kernel, pid: Pid, flags: McaFlags) -> Slices:
    """Lock all that is mapped now (MCL_CURRENT) or later (MCL_FUTURE)."""
    task = run_as(kernel, pid)
    mapped = yield from kernel.user.mlock.mlockall(task, flags)
    yield from _populate(kernel, task, mapped)
    return _locked(task)


@verb
def munlockall(kernel: Kernel, pid: Pid) -> Slices:
    """Unlock all that is mapped."""
    task = run_as(kernel, pid)
    yield from kernel.user.mlock.munlockall(task)
    return _locked(task)


def _locked(task: Task) -> Reply:
    assert task.mm is not None
    return Reply({"pid": task.pid, "locked": task.mm.locked_vm << PAGE_SHIFT})


# -- the rest --------------------------------------------------------------------------------------------


@verb
def msync(kernel: Kernel, pid: Pid, addr: Address, length: Size, flags: MsyncFlags = mman.MS_SYNC) -> Reply:
    """Write a shared mapping of a file back to its disk."""
    kernel.user.msync.msync(run_as(kernel, pid), addr.address, length, flags)
    return Reply({"addr": f"{addr.address:#x}", "size": length})


@verb
def mincore(kernel: Kernel, pid: Pid, addr: Address, length: Size) -> Slices:
    """Tell how many pages of a range are in memory; vec= shows the first 256 of them, one digit each."""
    found = yield from kernel.user.mincore.mincore(run_as(kernel, pid), addr.address, length)
    words: dict[str, int | str] = {"pages": len(found), "resident": int(found.sum())}
    if len(found):
        words["vec"] = "".join(map(str, found[:SHOWN_PAGES].tolist()))
    return Reply(words)


@verb
def prlimit(
    kernel: Kernel, pid: Pid, resource: Resource, soft: Limit | None = None, hard: Limit | None = None
) -> Reply:
    """Show or set a resource limit of a process. Only root raises a hard limit, or asks for another user's process.

    The caller is the task that the line runs as (pid=).
    """
    task, rlimits, caller = kernel.tasks.find(pid), kernel.user.rlimits, kernel.tasks.current()
    privileged = caller is None or capable(caller)
    if caller is not None and caller.uid != task.uid and not privileged:
        raise KernelError(errno.EPERM, f"user {caller.uid} may not see or change the limits of user {task.uid}")
    if soft is not None:
        limit = hard if hard is not None else rlimits.get(task, resource)[1]
        rlimits.set(task, resource, soft, limit, privileged=privileged)
    return Reply(_shown(rlimits, task, resource))


def _shown(rlimits: Rlimits, task: Task, resource: int) -> dict[str, int | str]:
    soft, hard = rlimits.get(task, resource)
    return {"pid": task.pid, "soft": rlimits.text(soft), "hard": rlimits.text(hard)}
