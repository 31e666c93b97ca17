"""Writing shared mappings back (mm/msync.c)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from kmemd.mm import mm_types as mt
from kmemd.mm import mman
from kmemd.mm.mmap_region import Caller, fail, mm_of
from kmemd.mm.units import PAGE_MASK, PAGE_SHIFT
from kmemd.mm.unmapped_area import page_align

if TYPE_CHECKING:
    from kmemd.mm.filemap import File

KNOWN = mman.MS_ASYNC | mman.MS_INVALIDATE | mman.MS_SYNC


class Msync:
    """``fsync_range(file, first, last)`` writes pages of a file to its disk and waits for it; ``addresses`` is where
    they wrap around.
    """

    def __init__(self, fsync_range: Callable[[File, int, int], None], addresses: int) -> None:
        self._fsync_range = fsync_range
        self._addresses = addresses

    def msync(self, task: Caller, start: int, length: int, flags: int) -> None:
        """Write a range back with MS_SYNC; MS_ASYNC only looks. EINVAL, ENOMEM, EBUSY.

        A hole in the range is ENOMEM after the rest was done; with MS_ASYNC alone at once.
        """
        both = mman.MS_ASYNC | mman.MS_SYNC
        if flags & ~KNOWN or start & ~PAGE_MASK or flags & both == both:
            fail(errno.EINVAL, f"{start:#x} is not page aligned, or the flags {flags:#x} do not go together")
        mm, end, hole = mm_of(task), start + page_align(length), False
        if end >= self._addresses:
            fail(errno.ENOMEM, "the range wraps around")
        while start < end:
            vma = mm.find_vma(start)
            if vma is None or vma.start >= end or (vma.start > start and flags == mman.MS_ASYNC):
                fail(errno.ENOMEM, f"nothing is mapped at {start:#x}")
            hole = hole or start < vma.start
            start = max(start, vma.start)
            if flags & mman.MS_INVALIDATE and vma.flags & mt.VM_LOCKED:
                fail(errno.EBUSY, f"the mapping at {vma.start:#x} is locked")
            until = min(end, vma.end)
            if flags & mman.MS_SYNC and vma.file is not None and vma.flags & mt.VM_SHARED:
                first = vma.index_of(start >> PAGE_SHIFT)
                self._fsync_range(vma.file, first, first + ((until - start) >> PAGE_SHIFT))
            start = vma.end
        if hole:
            fail(errno.ENOMEM, "a part of the range is not mapped")
