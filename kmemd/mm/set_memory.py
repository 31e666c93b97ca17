"""Protections of kernel memory, and who may have what is both writable and executable
(arch/x86/mm/pat/set_memory.c ``set_memory_*``, ``verify_rwx``; security/selinux ``execmem``).

Linux 6.1 says when kernel memory becomes writable and executable, and lets it; a program may map what it likes unless
a security module objects. ``kmemd/security/kernel_wx`` and ``user_wx`` make either an error. Left out: the alias in the
direct map of what vmalloc maps, cache modes.
"""

from __future__ import annotations

import errno
from typing import ClassVar

from kmemd.core.pte import NX, PFN_MASK, RW
from kmemd.errors import KernelError
from kmemd.mm.dump_stack import DumpStack
from kmemd.mm.init_mm import InitMm, Leaf
from kmemd.mm.mman import PROT_EXEC, PROT_WRITE
from kmemd.mm.sysfs_handlers import choice, show_choice
from kmemd.mm.units import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from kmemd.tunable import Tunable, Tuned

ALLOW, WARN, REFUSE = "allow", "warn", "refuse"
CHANGES = {
    "set_memory_ro": (RW, 0),
    "set_memory_rw": (0, RW),
    "set_memory_x": (NX, 0),
    "set_memory_nx": (0, NX),
}
"""Bits that each takes away and gives."""
FRAMES = ("__change_page_attr", "__change_page_attr_set_clr", "change_page_attr_set_clr")


class SetMemory(Tuned):
    """The calls, and the policy. ``kernel_wx``: what becomes of kernel memory that gets both; ``user_wx``: of
    mappings."""

    TUNABLES: ClassVar[tuple[Tunable, ...]] = (
        Tunable("kmemd/security/kernel_wx", "kernel_wx", show_choice(WARN, REFUSE), choice(WARN, REFUSE)),
        Tunable("kmemd/security/user_wx", "user_wx", show_choice(ALLOW, REFUSE), choice(ALLOW, REFUSE)),
    )

    def __init__(self, mm: InitMm, dump_stack: DumpStack) -> None:
        self._mm = mm
        self._dump_stack = dump_stack
        self.kernel_wx, self.user_wx = WARN, ALLOW

    def change(self, function: str, address: int, pages: int) -> None:
        """Change the protection of pages. EFAULT where nothing is mapped; EACCES where the policy says so.

        Pages before one that fails are changed, as in Linux.
        """
        off, on = CHANGES[function]
        if (off | on) & NX and not self._mm.long:
            return  # without PAE there is no such bit
        at = address & PAGE_MASK
        end = at + pages * PAGE_SIZE
        start = at
        try:
            for leaf in self._mm.mappings.within(start, end):
                if leaf.start > at:
                    break
                new = leaf.flags & ~off | on
                if new != leaf.flags and new & RW and not new & NX and self._mm.long:
                    self._both(function, leaf, new)
                at = leaf.end
        finally:
            self._mm.change(start, at, off, on)
        if at < end:
            text = f"CPA: called for zero pte. vaddr = {at:x} cpa->vaddr = {at:x}"
            self._dump_stack.warn((*FRAMES, function), text)
            raise KernelError(errno.EFAULT, f"nothing is mapped at {at:#x}")

    def _both(self, function: str, leaf: Leaf, new: int) -> None:
        """A page would be writable and executable."""
        page, old = leaf.start, leaf.flags
        span = f"range: 0x{page:016x} - 0x{page + PAGE_SIZE - 1:016x}"
        pfn = max(leaf.phys, 0) >> PAGE_SHIFT
        text = f"CPA detected W^X violation: {old & ~PFN_MASK:016x} -> {new & ~PFN_MASK:016x} {span} PFN {pfn:x}"
        self._dump_stack.warn_once("verify_rwx", (*FRAMES, function), text)
        if self.kernel_wx == REFUSE:
            raise KernelError(errno.EACCES, f"{page:#x} would be writable and executable, and kernel_wx is {REFUSE}")

    def check_user(self, prot: int) -> None:
        """Whether a program may have a mapping of such a protection. EACCES."""
        if prot & PROT_WRITE and prot & PROT_EXEC and self.user_wx == REFUSE:
            raise KernelError(errno.EACCES, f"a mapping that is written and executed, and user_wx is {REFUSE}")
