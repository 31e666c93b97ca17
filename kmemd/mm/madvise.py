"""Advice about ranges of memory (mm/madvise.c).

Models all advice of Linux 6.1 but memory failure: what only changes flags splits and merges mappings; the rest acts
on the pages by way of ``PageAdvice``. An error in one mapping ends the call; a hole is ENOMEM after the rest was done.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Protocol

from kmemd.errors import KernelError
from kmemd.mm import mm_types as mt
from kmemd.mm import mman
from kmemd.mm.mm_types import Mm, Vma
from kmemd.mm.mmap_region import AddressSpaces, Caller, fail, huge_unit, mm_of
from kmemd.mm.units import PAGE_MASK, PAGE_SHIFT
from kmemd.mm.unmapped_area import page_align
from kmemd.steps import Steps

SLICE_BYTES = 512 << PAGE_SHIFT
"""What the slow kinds of advice do before others may run: what one table maps."""
NOT_MERGEABLE = (
    mt.VM_MERGEABLE | mt.VM_SHARED | mt.VM_MAYSHARE | mt.VM_PFNMAP | mt.VM_IO | mt.VM_DONTEXPAND | mt.VM_HUGETLB
) | mt.VM_MIXEDMAP


class PageAdvice(Protocol):
    """What is done to pages. Ranges lie within the mapping; addresses are bytes."""

    def begin(self) -> None:
        """The executing CPU's batches of pages go to their lists first (``lru_add_drain``)."""

    def drop(self, mm: Mm, vma: Vma, start: int, end: int) -> None:
        """MADV_DONTNEED: the pages are not mapped any more."""

    def lazy_free(self, mm: Mm, vma: Vma, start: int, end: int) -> None:
        """MADV_FREE: anonymous pages may be dropped until they are written again."""

    def cold(self, mm: Mm, vma: Vma, start: int, end: int) -> None:
        """MADV_COLD: pages that only this task maps look unused."""

    def pageout_end(self, mm: Mm, at: int, end: int) -> int:
        """How far of a range from ``at`` is done in one go."""

    def pageout(self, mm: Mm, vma: Vma, start: int, end: int) -> None:
        """MADV_PAGEOUT: such pages are reclaimed."""

    def willneed(self, mm: Mm, vma: Vma, start: int, end: int) -> None:
        """MADV_WILLNEED: pages are read ahead, from swap or the file."""

    def remove(self, mm: Mm, vma: Vma, start: int, end: int) -> None:
        """MADV_REMOVE: the file loses its pages."""

    def populate_access(self, task: Caller, vma: Vma, start: int, end: int, *, write: bool) -> None:
        """MADV_POPULATE_*: pages are faulted in. EFAULT, ENOMEM."""

    def collapse(self, mm: Mm, vma: Vma, start: int, end: int) -> None:
        """MADV_COLLAPSE: huge pages are made of small ones. EINVAL, EAGAIN, EBUSY, ENOMEM."""

    def enter_huge(self, mm: Mm, vma: Vma) -> None:
        """MADV_HUGEPAGE: khugepaged looks at the mapping."""

    def enter_ksm(self, mm: Mm) -> None:
        """MADV_MERGEABLE: ksmd looks at the address space."""


_SET = {
    mman.MADV_NORMAL: (mt.VM_RAND_READ | mt.VM_SEQ_READ, 0),
    mman.MADV_SEQUENTIAL: (mt.VM_RAND_READ, mt.VM_SEQ_READ),
    mman.MADV_RANDOM: (mt.VM_SEQ_READ, mt.VM_RAND_READ),
    mman.MADV_DONTFORK: (0, mt.VM_DONTCOPY),
    mman.MADV_DOFORK: (mt.VM_DONTCOPY, 0),
    mman.MADV_WIPEONFORK: (0, mt.VM_WIPEONFORK),
    mman.MADV_KEEPONFORK: (mt.VM_WIPEONFORK, 0),
    mman.MADV_DONTDUMP: (0, mt.VM_DONTDUMP),
    mman.MADV_DODUMP: (mt.VM_DONTDUMP, 0),
    mman.MADV_HUGEPAGE: (mt.VM_NOHUGEPAGE, mt.VM_HUGEPAGE),
    mman.MADV_NOHUGEPAGE: (mt.VM_HUGEPAGE, mt.VM_NOHUGEPAGE),
    mman.MADV_MERGEABLE: (0, mt.VM_MERGEABLE),
    mman.MADV_UNMERGEABLE: (mt.VM_MERGEABLE, 0),
}
"""The flags that advice clears and sets."""
_HUGE = {mman.MADV_HUGEPAGE, mman.MADV_NOHUGEPAGE, mman.MADV_COLLAPSE}
_DROPS = {mman.MADV_DONTNEED, mman.MADV_DONTNEED_LOCKED, mman.MADV_FREE}
_ACTS = _DROPS | {
    *(mman.MADV_REMOVE, mman.MADV_WILLNEED, mman.MADV_COLD, mman.MADV_PAGEOUT),
    *(mman.MADV_POPULATE_READ, mman.MADV_POPULATE_WRITE, mman.MADV_COLLAPSE),
}
_KNOWN = _ACTS | set(_SET)


class Madvise:
    """``thp`` says whether the kernel knows transparent huge pages (not on i386 without PAE)."""

    def __init__(self, spaces: AddressSpaces, pages: PageAdvice, *, thp: bool) -> None:
        self._spaces = spaces
        self._pages = pages
        self._thp = thp

    def madvise(self, task: Caller, start: int, length: int, advice: int) -> Steps[None]:
        """Give advice, in slices (``do_madvise``). EINVAL, ENOMEM, EAGAIN, EACCES, EFAULT, EBUSY."""
        if advice not in _KNOWN or (advice in _HUGE and not self._thp):
            fail(errno.EINVAL, f"the kernel knows no advice {advice}")
        end = start + page_align(length)
        if start & ~PAGE_MASK or end >= self._spaces.area.layout.addresses:
            fail(errno.EINVAL, f"{start:#x} is not page aligned, or the range wraps around")
        mm, hole = mm_of(task), False
        while start < end:
            vma = mm.find_vma(start)
            if vma is None or vma.start >= end:
                fail(errno.ENOMEM, f"nothing is mapped at {start:#x}")
            hole = hole or vma.start > start
            start = max(start, vma.start)
            until = min(vma.end, end)
            if advice in _ACTS:
                yield from self._act(task, mm, vma, start, until, advice)
                start = until
            else:
                start = max(until, self._set(mm, vma, start, until, advice).end)
            yield
        if hole:
            fail(errno.ENOMEM, "a part of the range is not mapped")

    # -- advice that changes flags -----------------------------------------------------------------------

    def _set(self, mm: Mm, vma: Vma, start: int, end: int, advice: int) -> Vma:
        """Change flags of a mapping's part (``madvise_vma_behavior``). The mapping that holds it. EINVAL, EAGAIN."""
        self._check_flags(vma, advice)
        clear, add = _SET[advice]
        if advice == mman.MADV_MERGEABLE and vma.flags & NOT_MERGEABLE:
            add = 0
        flags = vma.flags & ~clear | add
        if add & mt.VM_MERGEABLE:
            self._pages.enter_ksm(mm)
        if flags != vma.flags:
            vma = self._update(mm, vma, start, end, flags)
        if advice == mman.MADV_HUGEPAGE:
            self._pages.enter_huge(mm, vma)
        return vma

    @staticmethod
    def _check_flags(vma: Vma, advice: int) -> None:
        """What a mapping's kind forbids. EINVAL."""
        wrong = (
            (advice == mman.MADV_DOFORK and vma.flags & mt.VM_IO)
            or (advice == mman.MADV_WIPEONFORK and (vma.file is not None or vma.flags & mt.VM_SHARED))
            or (advice == mman.MADV_DODUMP and not vma.flags & mt.VM_HUGETLB and vma.flags & mt.VM_SPECIAL)
        )
        if wrong:
            fail(errno.EINVAL, f"the mapping at {vma.start:#x} does not take this advice")

    def _update(self, mm: Mm, vma: Vma, start: int, end: int, flags: int) -> Vma:
        """``madvise_update_vma``; no memory, or too many mappings, is EAGAIN (madvise_behavior)."""
        try:
            return self._spaces.vmas.set_flags(mm, vma, start, end, flags)
        except KernelError as error:
            if error.errno != errno.ENOMEM:
                raise
            fail(errno.EAGAIN, error.reason)

    # -- advice that acts on pages -----------------------------------------------------------------------

    def _act(self, task: Caller, mm: Mm, vma: Vma, start: int, end: int, advice: int) -> Steps[None]:
        """Advice for a part of one mapping. EINVAL, EACCES, EFAULT, ENOMEM, EBUSY, EAGAIN."""
        pages = self._pages
        if advice in _DROPS:
            start, end = self._droppable(vma, start, end, advice)
            act = pages.lazy_free if advice == mman.MADV_FREE else pages.drop
        elif advice in (mman.MADV_COLD, mman.MADV_PAGEOUT):
            if vma.flags & (mt.VM_LOCKED | mt.VM_PFNMAP | mt.VM_HUGETLB):
                fail(errno.EINVAL, f"the mapping at {vma.start:#x} is locked, or has no pages to reclaim")
            act = pages.cold if advice == mman.MADV_COLD else pages.pageout
        elif advice == mman.MADV_REMOVE:
            self._check_remove(vma)
            act = pages.remove
        elif advice == mman.MADV_WILLNEED:
            act = pages.willneed
        elif advice == mman.MADV_COLLAPSE:
            # the whole range is one call: what fails in its midst decides the answer
            pages.collapse(mm, vma, start, end)
            return
        else:
            yield from self._populate(task, vma, start, end, write=advice == mman.MADV_POPULATE_WRITE)
            return
        if advice in (mman.MADV_FREE, mman.MADV_COLD, mman.MADV_PAGEOUT):
            pages.begin()
        if advice == mman.MADV_PAGEOUT:
            yield from self._pageout(mm, vma, start, end)
            return
        for first, last in slices(start, end, SLICE_BYTES):
            act(mm, vma, first, last)
            yield

    def _pageout(self, mm: Mm, vma: Vma, start: int, end: int) -> Steps[None]:
        """MADV_PAGEOUT, in parts that leave huge pages whole."""
        while start < end:
            last = self._pages.pageout_end(mm, start, end)
            self._pages.pageout(mm, vma, start, last)
            start = last
            yield

    def _droppable(self, vma: Vma, start: int, end: int, advice: int) -> tuple[int, int]:
        """The range whose pages may be dropped: whole huge pages only. EINVAL."""
        forbidden = mt.VM_PFNMAP | (0 if advice == mman.MADV_DONTNEED_LOCKED else mt.VM_LOCKED)
        if vma.flags & mt.VM_HUGETLB:
            unit = huge_unit(vma.file)
            if advice == mman.MADV_FREE or start & (unit - 1):
                fail(errno.EINVAL, "huge pages are dropped whole, and not lazily")
            return start, end & -unit
        if vma.flags & forbidden or (advice == mman.MADV_FREE and not vma.is_anon):
            fail(errno.EINVAL, f"the mapping at {vma.start:#x} is locked, or not anonymous memory")
        return start, end

    @staticmethod
    def _check_remove(vma: Vma) -> None:
        if vma.flags & mt.VM_LOCKED or vma.file is None:
            fail(errno.EINVAL, f"the mapping at {vma.start:#x} is locked, or has no file")
        if vma.flags & (mt.VM_SHARED | mt.VM_MAYWRITE) != mt.VM_SHARED | mt.VM_MAYWRITE:
            fail(errno.EACCES, f"the mapping at {vma.start:#x} is not shared and writable")

    def _populate(self, task: Caller, vma: Vma, start: int, end: int, *, write: bool) -> Steps[None]:
        """``madvise_populate``: what the mapping does not allow is EINVAL."""
        needed = mt.VM_WRITE if write else mt.VM_READ
        if vma.flags & (mt.VM_IO | mt.VM_PFNMAP) or not vma.flags & needed:
            fail(errno.EINVAL, f"the mapping at {vma.start:#x} does not allow that access")
        for first, last in slices(start, end):
            self._pages.populate_access(task, vma, first, last, write=write)
            yield


def slices(start: int, end: int, size: int = SLICE_BYTES) -> Iterator[tuple[int, int]]:
    """A range in parts of at most ``size`` bytes that do not cross what one table maps."""
    while start < end:
        last = min((start // size + 1) * size, end)
        yield start, last
        start = last
