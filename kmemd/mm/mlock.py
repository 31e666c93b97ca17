"""Locking memory (mm/mlock.c): mlock, mlock2, munlock, mlockall, munlockall.

Models the marks of mappings, the sum of locked pages and its limit, and the pages: those that are mapped are locked or
unlocked at once, by way of the CPU's batch; the caller faults in the others. A page that is locked twice stays so until
both let go, as far as Linux itself remembers. Left out: locked System V segments, secret memory.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from kmemd.errors import KernelError
from kmemd.mm import mm_types as mt
from kmemd.mm import mman
from kmemd.mm.mm_types import Mm, Vma
from kmemd.mm.mmap_region import AddressSpaces, Caller, Mapped, fail, mm_of
from kmemd.mm.rlimit import RLIMIT_MEMLOCK, capable
from kmemd.mm.units import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from kmemd.mm.unmapped_area import page_align
from kmemd.steps import Steps

SLICE_BYTES = 16 << 20
"""What is locked or unlocked before others may run."""


class Mlock:
    """``lock_pages(mm, vma, start, end)`` locks, or unlocks, the pages that are mapped, as the mapping's flags say."""

    def __init__(self, spaces: AddressSpaces, lock_pages: Callable[[Mm, Vma, int, int], None]) -> None:
        self._spaces = spaces
        self._lock_pages = lock_pages

    def mlock(self, task: Caller, start: int, length: int, *, on_fault: bool = False) -> Steps[Mapped]:
        """Lock a range, in slices; the caller populates what is returned. EPERM, ENOMEM, EINVAL."""
        mm, spaces = mm_of(task), self._spaces
        if not spaces.can_mlock(task):
            fail(errno.EPERM, "RLIMIT_MEMLOCK is 0")
        start, length = self._whole_pages(start, length)
        limit = spaces.rlimits.pages(task, RLIMIT_MEMLOCK)
        locked = (length >> PAGE_SHIFT) + mm.locked_vm
        if locked > limit and not capable(task):
            locked -= _locked_pages(mm, start, start + length)
            if locked > limit:
                fail(errno.ENOMEM, "the limit of locked memory (RLIMIT_MEMLOCK) is reached")
        yield from self._apply(task, start, length, mt.VM_LOCKED | (mt.VM_LOCKONFAULT if on_fault else 0))
        return Mapped(start, length, length)

    def mlock2(self, task: Caller, start: int, length: int, flags: int) -> Steps[Mapped]:
        """``mlock`` with MLOCK_ONFAULT. EINVAL."""
        if flags & ~mman.MLOCK_ONFAULT:
            fail(errno.EINVAL, f"mlock2 knows MLOCK_ONFAULT, not {flags:#x}")
        return (yield from self.mlock(task, start, length, on_fault=flags != 0))

    def munlock(self, task: Caller, start: int, length: int) -> Steps[None]:
        """Unlock a range. ENOMEM, EINVAL."""
        start, length = self._whole_pages(start, length)
        yield from self._apply(task, start, length, 0)

    def mlockall(self, task: Caller, flags: int) -> Steps[Mapped]:
        """Lock all mappings, or those to come; the caller populates what is returned. EINVAL, EPERM, ENOMEM."""
        mm, spaces = mm_of(task), self._spaces
        known = mman.MCL_CURRENT | mman.MCL_FUTURE | mman.MCL_ONFAULT
        if not flags or flags & ~known or flags == mman.MCL_ONFAULT:
            fail(errno.EINVAL, "mlockall takes MCL_CURRENT, MCL_FUTURE or both, and MCL_ONFAULT with them")
        if not spaces.can_mlock(task):
            fail(errno.EPERM, "RLIMIT_MEMLOCK is 0")
        current = flags & mman.MCL_CURRENT
        if current and mm.total_vm > spaces.rlimits.pages(task, RLIMIT_MEMLOCK) and not capable(task):
            fail(errno.ENOMEM, "the limit of locked memory (RLIMIT_MEMLOCK) is reached")
        yield from self._apply_all(mm, flags)
        return Mapped(0, 0, spaces.area.layout.task_size if current else 0)

    def munlockall(self, task: Caller) -> Steps[None]:
        """Unlock all mappings, and those to come."""
        yield from self._apply_all(mm_of(task), 0)

    @staticmethod
    def _whole_pages(start: int, length: int) -> tuple[int, int]:
        """The pages that a range touches."""
        return start & PAGE_MASK, page_align(length + (start & (PAGE_SIZE - 1)))

    def _apply(self, task: Caller, start: int, length: int, flags: int) -> Steps[None]:
        """Set the lock flags of a range (``apply_vma_lock_flags``). EINVAL, ENOMEM."""
        mm, end = mm_of(task), start + length
        if end >= self._spaces.area.layout.addresses:
            fail(errno.EINVAL, "the range wraps around")
        if not length:
            return
        while start < end:
            vma = mm.find(start)
            if vma is None:
                fail(errno.ENOMEM, f"nothing is mapped at {start:#x}")
            until = min(vma.end, end)
            vma = yield from self._fixup(mm, vma, start, until, vma.flags & ~mt.VM_LOCKED_MASK | flags)
            start = max(until, vma.end)

    def _apply_all(self, mm: Mm, flags: int) -> Steps[None]:
        """``apply_mlockall_flags``: errors of single mappings do not count."""
        mm.def_flags &= ~mt.VM_LOCKED_MASK
        on_fault = mt.VM_LOCKONFAULT if flags & mman.MCL_ONFAULT else 0
        if flags & mman.MCL_FUTURE:
            mm.def_flags |= mt.VM_LOCKED | on_fault
            if not flags & mman.MCL_CURRENT:
                return
        to_add = mt.VM_LOCKED | on_fault if flags & mman.MCL_CURRENT else 0
        at = 0
        while (vma := mm.find_vma(at)) is not None:
            try:
                vma = yield from self._fixup(mm, vma, vma.start, vma.end, vma.flags & ~mt.VM_LOCKED_MASK | to_add)
                at = vma.end
            except KernelError:
                at = vma.end

    def _fixup(self, mm: Mm, vma: Vma, start: int, end: int, flags: int) -> Steps[Vma]:
        """One mapping's part of the range (``mlock_fixup``). The mapping that holds it now. ENOMEM."""
        old = vma.flags
        if flags == old or old & (mt.VM_SPECIAL | mt.VM_HUGETLB):
            return vma
        holder = self._spaces.vmas.set_flags(mm, vma, start, end, flags)
        if not flags & mt.VM_LOCKED:
            mm.locked_vm -= (end - start) >> PAGE_SHIFT
        elif not old & mt.VM_LOCKED:
            mm.locked_vm += (end - start) >> PAGE_SHIFT
        if not (flags & mt.VM_LOCKED and old & mt.VM_LOCKED):
            for at in range(start, end, SLICE_BYTES):
                self._lock_pages(mm, holder, at, min(at + SLICE_BYTES, end))
                yield
        return holder


def _locked_pages(mm: Mm, start: int, end: int) -> int:
    """Pages of a range that are locked already (``count_mm_mlocked_page_nr``)."""
    locked = (vma for vma in mm.overlapping(start, end) if vma.flags & mt.VM_LOCKED)
    return sum((min(vma.end, end) - max(vma.start, start)) >> PAGE_SHIFT for vma in locked)


def posix_error(error: KernelError) -> KernelError:
    """What mlock answers when a page cannot be faulted in (``__mlock_posix_error_return``)."""
    number = {errno.EFAULT: errno.ENOMEM, errno.ENOMEM: errno.EAGAIN}.get(error.errno, error.errno)
    return KernelError(number, error.reason)
