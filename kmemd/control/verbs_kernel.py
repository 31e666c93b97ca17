"""Verbs of kernel code that touches memory: loads, calls, protections, deep recursion (arch/x86/mm/fault.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from kmemd.control.language import Reply, verb
from kmemd.control.words import Address, Count
from kmemd.core.pte import PFN_MASK, PRESENT
from kmemd.errors import KernelError
from kmemd.mm.init_mm import Leaf
from kmemd.mm.oops import THREAD_SIZE, KernelAccess
from kmemd.mm.units import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from kmemd.kernel import Kernel


@verb
def READ_ONCE(kernel: Kernel, where: Address) -> Reply:
    """Load a word. EFAULT, and the kernel's report of a page fault, where nothing is mapped.

    The report ends the task that the line runs as (``pid=``), unless kernel.panic_on_oops is set.
    """
    _touch(kernel, KernelAccess(where.address))
    return Reply({"addr": f"{where.address:#x}"})


@verb
def call(kernel: Kernel, where: Address) -> Reply:
    """Call what is at an address, as a corrupted function pointer does.

    EFAULT, and the kernel's report, where memory is not executable or nothing is mapped.
    """
    _touch(kernel, KernelAccess(where.address, execute=True))
    return Reply({"addr": f"{where.address:#x}"})


@verb
def recurse(kernel: Kernel, depth: Count, *, frame: Count = 128) -> Reply:
    """Call a function in itself, each call with a frame of some bytes on the kernel stack.

    EFAULT, and the kernel's report, when the stack runs into the guard page below it. A stack on i386 has none.
    """
    size = THREAD_SIZE[kernel.init_mm.long]
    used = depth * frame
    if used > size and kernel.init_mm.long:
        kernel.oops.stack_overflow()
        raise KernelError(errno.EFAULT, f"{depth} calls of {frame} bytes need more than the stack's {size} bytes")
    return Reply({"used": used, "free": max(size - used, 0)})


def _protect(kernel: Kernel, function: str, where: Address, pages: Count) -> Reply:
    kernel.set_memory.change(function, where.address, pages)
    return Reply({"addr": f"{where.address & -PAGE_SIZE:#x}", "n": pages})


@verb
def set_memory_ro(kernel: Kernel, where: Address, pages: Count = 1) -> Reply:
    """Make pages of kernel memory read-only. EFAULT where nothing is mapped."""
    return _protect(kernel, "set_memory_ro", where, pages)


@verb
def set_memory_rw(kernel: Kernel, where: Address, pages: Count = 1) -> Reply:
    """Make pages of kernel memory writable.

    Of what is executable Linux warns once, and lets it; EACCES when kmemd/security/kernel_wx says refuse.
    """
    return _protect(kernel, "set_memory_rw", where, pages)


@verb
def set_memory_x(kernel: Kernel, where: Address, pages: Count = 1) -> Reply:
    """Make pages of kernel memory executable.

    Of what is writable Linux warns once, and lets it; EACCES when kmemd/security/kernel_wx says refuse.
    """
    return _protect(kernel, "set_memory_x", where, pages)


@verb
def set_memory_nx(kernel: Kernel, where: Address, pages: Count = 1) -> Reply:
    """Make pages of kernel memory not executable. EFAULT where nothing is mapped."""
    return _protect(kernel, "set_memory_nx", where, pages)


def _touch(kernel: Kernel, access: KernelAccess) -> None:
    """Make an access that may fault. EFAULT."""
    user = _user_leaf(kernel, access.address)
    code = kernel.oops.fault(access) if user is None else kernel.oops.user_fault(access, user.flags)
    if code >= 0:
        kernel.oops.page_fault(access, code, user)
        raise KernelError(errno.EFAULT, f"{access.what} to {access.address:#x}: page fault {code:#x}")


def _user_leaf(kernel: Kernel, address: int) -> Leaf | None:
    """What maps an address for the executing task; None where it does not."""
    task = kernel.tasks.current()
    if task is None or task.mm is None or address >= task.mm.task_size:
        return None
    slot, level = kernel.mmu.leaf(task.mm.id, address >> PAGE_SHIFT)
    entry = int(kernel.mmu.words[slot]) if slot >= 0 else 0
    if not entry & PRESENT:
        return None
    size = PAGE_SIZE << kernel.mmu.bits * level
    start = address & -size
    return Leaf(start, start + size, size, entry & ~PFN_MASK, entry & PFN_MASK)
