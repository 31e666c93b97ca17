"""Changing what a mapping allows (mm/mprotect.c).

Models splitting and merging by flags, the commitment that a private mapping becomes when it is made writable,
RLIMIT_DATA, and the change of the page-table entries; locked memory that becomes writable is copied at once. Left out:
protection keys, security modules, mappings of device memory that must not lose all access.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from kmemd.errors import KernelError
from kmemd.mm import mm_types as mt
from kmemd.mm import mman
from kmemd.mm.mm_types import Mm, Vma
from kmemd.mm.mmap_region import AddressSpaces, Caller, fail, mm_of, prot_flags
from kmemd.mm.units import PAGE_MASK, PAGE_SHIFT
from kmemd.mm.unmapped_area import page_align

ALLOWED = mman.PROT_READ | mman.PROT_WRITE | mman.PROT_EXEC | mman.PROT_SEM
GROWS = mman.PROT_GROWSDOWN | mman.PROT_GROWSUP


class Mprotect:
    """``populate(task, start, end)`` faults in a range of locked memory that became writable."""

    def __init__(self, spaces: AddressSpaces, populate: Callable[[Caller, int, int], None]) -> None:
        self._spaces = spaces
        self._populate = populate

    def mprotect(self, task: Caller, start: int, length: int, prot: int) -> None:
        """Change the protection of a range (``do_mprotect_pkey``). EINVAL, ENOMEM, EACCES.

        An error in the midst leaves what comes before changed.
        """
        mm, grows, prot = mm_of(task), prot & GROWS, prot & ~GROWS
        if grows == GROWS or start & ~PAGE_MASK:
            fail(errno.EINVAL, f"{start:#x} is not page aligned, or both PROT_GROWS are given")
        if not length:
            return
        end = start + page_align(length)
        if end >= self._spaces.area.layout.addresses:
            fail(errno.ENOMEM, "the range wraps around")
        if prot & ~ALLOWED:
            fail(errno.EINVAL, f"protection {prot:#x} has unknown bits")
        self._spaces.execmem(prot)
        vma = mm.find_vma(start)
        start, end = self._bounds(mm, vma, start, end, grows)
        while start < end:
            vma = mm.find(start)
            if vma is None:
                fail(errno.ENOMEM, f"nothing is mapped at {start:#x}")
            until = min(vma.end, end)
            flags = vma.flags & ~mt.VM_ACCESS_FLAGS | prot_flags(prot)
            if flags & ~(flags >> 4) & mt.VM_ACCESS_FLAGS:
                fail(errno.EACCES, f"the mapping at {vma.start:#x} may not get this protection")
            start = max(until, self._fixup(task, vma, start, until, flags).end)

    @staticmethod
    def _bounds(mm: Mm, vma: Vma | None, start: int, end: int, grows: int) -> tuple[int, int]:
        """The range, from the beginning of a stack with PROT_GROWSDOWN. ENOMEM, EINVAL."""
        if vma is None or (vma.start >= end if grows & mman.PROT_GROWSDOWN else vma.start > start):
            fail(errno.ENOMEM, f"nothing is mapped at {start:#x}")
        if grows and not (grows & mman.PROT_GROWSDOWN and vma.flags & mt.VM_GROWSDOWN):
            fail(errno.EINVAL, f"the mapping at {vma.start:#x} does not grow")
        return (vma.start, end) if grows else (start, end)

    def _fixup(self, task: Caller, vma: Vma, start: int, end: int, flags: int) -> Vma:
        """One mapping's part of the range (``mprotect_fixup``). The mapping that holds it now."""
        spaces, mm, old = self._spaces, mm_of(task), vma.flags
        if flags == old:
            return vma
        pages = (end - start) >> PAGE_SHIFT
        charged = 0
        if flags & mt.VM_WRITE:
            if not spaces.may_expand(task, flags, pages) and spaces.may_expand(task, old, pages):
                fail(errno.ENOMEM, "the limit of data (RLIMIT_DATA) is reached")
            if not old & (mt.VM_ACCOUNT | mt.VM_WRITE | mt.VM_HUGETLB | mt.VM_SHARED | mt.VM_NORESERVE):
                spaces.charge(task, pages)
                charged = pages
                flags |= mt.VM_ACCOUNT
        try:
            holder = spaces.vmas.set_flags(mm, vma, start, end, flags)
        except KernelError:
            spaces.settings.unaccount(charged)
            raise
        spaces.memory.change_protection(mm, holder, start, end)
        if old & (mt.VM_WRITE | mt.VM_SHARED | mt.VM_LOCKED) == mt.VM_LOCKED and flags & mt.VM_WRITE:
            self._populate(task, start, end)
        spaces.account(mm, old, -pages)
        spaces.account(mm, flags, pages)
        return holder
