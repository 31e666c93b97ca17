"""Which pages of a range are in memory (mm/mincore.c).

Left out: files that the caller may not write to, of which Linux says that all is in memory: root may write to all.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kmemd.core.mmu import Mmu
from kmemd.core.pte import PRESENT, PROTNONE, SWP_MIGRATION_READ, SWP_TYPE_SHIFT
from kmemd.mm.mm_types import Mm, Vma
from kmemd.mm.mmap_region import Caller, fail, mm_of
from kmemd.mm.units import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from kmemd.steps import Steps

if TYPE_CHECKING:
    from kmemd.mm.filemap import File

SLICE_BYTES = 16 << 20
"""What is looked at before others may run."""
Bytes = npt.NDArray[np.uint8]


class Mincore:
    """``in_cache(file, first, pages)`` says of each page of a file whether the page cache has it up to date;
    ``in_swap_cache(entries)`` of swap entries whether their page is in memory still."""

    def __init__(
        self,
        mmu: Mmu,
        task_size: int,
        in_cache: Callable[[File, int, int], Bytes],
        in_swap_cache: Callable[[npt.NDArray[np.uint64]], Bytes],
    ) -> None:
        self._mmu = mmu
        self._task_size = task_size
        self._in_cache = in_cache
        self._in_swap_cache = in_swap_cache

    def mincore(self, task: Caller, start: int, length: int) -> Steps[Bytes]:
        """One byte for each page, 1 when it is in memory, in slices. EINVAL, ENOMEM."""
        if start & ~PAGE_MASK:
            fail(errno.EINVAL, f"{start:#x} is not page aligned")
        if length > self._task_size or start > self._task_size - length:
            fail(errno.ENOMEM, "the range leaves the address space")
        mm = mm_of(task)
        end = start + (length + PAGE_SIZE - 1 & PAGE_MASK)
        parts: list[Bytes] = []
        while start < end:
            vma = mm.find(start)
            if vma is None:
                fail(errno.ENOMEM, f"nothing is mapped at {start:#x}")
            until = min(vma.end, end, start + SLICE_BYTES)
            parts.append(self._of_vma(mm, vma, start >> PAGE_SHIFT, until >> PAGE_SHIFT))
            start = until
            yield
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint8)

    def _of_vma(self, mm: Mm, vma: Vma, first: int, last: int) -> Bytes:
        """The pages ``[first, last)`` of one mapping: what is mapped, else what the file's cache has."""
        found = np.zeros(last - first, dtype=np.uint8)
        if vma.file is not None:
            found[:] = self._in_cache(vma.file, vma.index_of(first), last - first)
        for vpn, pages, slot, level in self._mmu.extents(mm.id, first, last).tolist():
            if level:
                found[vpn - first : vpn - first + pages] = 1
                continue
            entries = self._mmu.words[slot : slot + pages]
            part = found[vpn - first : vpn - first + pages]
            present = entries & np.uint64(PRESENT | PROTNONE) != 0
            part[present] = 1
            swapped = (entries != 0) & ~present
            if swapped.any():
                part[swapped] = self._swapped(entries[swapped])
        return found

    def _swapped(self, entries: npt.NDArray[np.uint64]) -> Bytes:
        """Pages under migration are in memory, others when the swap cache has them."""
        found = np.ones(len(entries), dtype=np.uint8)
        slots = entries >> np.uint64(SWP_TYPE_SHIFT) < SWP_MIGRATION_READ
        if slots.any():
            found[slots] = self._in_swap_cache(entries[slots])
        return found
