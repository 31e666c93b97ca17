"""``/sys/kernel/debug/split_huge_pages``: make small pages of transparent huge ones on demand (mm/huge_memory.c).

``1`` splits all there are, ``PID,0xSTART,0xEND`` those at a range of addresses of a process,
``PATH,0xSTART,0xEND`` those in a range of pages of a file.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable

import numpy as np

from kmemd.core.mmu import Mmu
from kmemd.core.pages import ALLOCATED, PG_HEAD, PG_LRU, PageMap
from kmemd.core.pte import PFN_MASK, PFN_SHIFT, PRESENT
from kmemd.errors import KernelError
from kmemd.mm.filemap import File, PageCache, PFNs
from kmemd.mm.huge_page import HugePages
from kmemd.mm.huge_split import HugeSplit
from kmemd.mm.mm_types import VM_HUGETLB, VM_SPECIAL
from kmemd.mm.sched import TaskTable
from kmemd.mm.units import PAGE_SHIFT
from kmemd.steps import Steps

MAX_INPUT_BUF_SZ = 255
SLICE = 16
"""Pages split before others get their turn."""
_RANGE = re.compile(r"\s*([+-]?\d+)(?:,0x([0-9a-fA-F]+),0x([0-9a-fA-F]+))?")
_FILE = re.compile(r"(/[^,]*),0x([0-9a-fA-F]+),0x([0-9a-fA-F]+)")


class SplitHugePages:
    """``lookup(path)`` opens a file. ENOENT and the like."""

    def __init__(
        self,
        pages: PageMap,
        mmu: Mmu,
        huge: HugePages,
        split: HugeSplit,
        cache: PageCache,
        tasks: TaskTable,
        lookup: Callable[[str], File],
    ) -> None:
        self._pages, self._mmu, self._huge, self._split, self._cache = pages, mmu, huge, split, cache
        self._tasks, self._lookup = tasks, lookup

    def __call__(self, text: str) -> Steps[int]:
        """Take a write; how much of it was taken. EINVAL, ESRCH."""
        text = text[: MAX_INPUT_BUF_SZ - 1]
        of_file, found = _FILE.match(text), _RANGE.match(text)
        if of_file is not None:
            yield from self._split_heads(self._of_file(of_file[1], int(of_file[2], 16), int(of_file[3], 16)))
        elif found is not None and found[2] is not None:
            first, end = int(found[2], 16) >> PAGE_SHIFT, int(found[3], 16) >> PAGE_SHIFT
            yield from self._split_heads(self._of_process(int(found[1]), first, end))
        elif found is not None and int(found[1]) == 1:
            yield from self._split_heads(self._heads(np.arange(0, len(self._pages.flags), self._huge.pages)))
        else:
            raise KernelError(errno.EINVAL, "1, PID,0xSTART,0xEND, or PATH,0xSTART,0xEND")
        return len(text)

    def _split_heads(self, heads: PFNs) -> Steps[None]:
        """Split pages that are still huge when their turn comes."""
        for number, head in enumerate(heads.tolist(), 1):
            if len(self._heads(np.array([head], dtype=np.int64))):
                self._split.split(head)
            if number % SLICE == 0:
                yield

    def _heads(self, pfns: PFNs) -> PFNs:
        """The first pages of the transparent huge pages among some, or that some are parts of."""
        heads = np.unique(pfns & -self._huge.pages)
        wanted = np.uint32(1 << PG_HEAD | 1 << PG_LRU)
        whole = self._pages.order[heads] == self._mmu.bits
        lists = self._pages.flags[heads] & wanted == wanted
        found: PFNs = heads[whole & lists & (self._pages.kind[heads] == ALLOCATED)]
        return found

    def _of_process(self, pid: int, first: int, end: int) -> PFNs:
        """What a process maps in a range of page numbers, up to the first address without a mapping
        (``split_huge_pages_pid``)."""
        mm = self._tasks.find(pid).mm
        if mm is None:
            raise KernelError(errno.EINVAL, f"process {pid} is a kernel thread and has no address space")
        found = [np.empty(0, dtype=np.int64)]
        vma = mm.find(first << PAGE_SHIFT)
        while vma is not None and first < end:
            stop = min(end, vma.end >> PAGE_SHIFT)
            if not vma.flags & (VM_SPECIAL | VM_HUGETLB):
                found += [self._mapped(row) for row in self._mmu.extents(mm.id, first, stop).tolist()]
            first = stop
            vma = mm.find(first << PAGE_SHIFT)
        return self._heads(np.concatenate(found))

    def _mapped(self, row: list[int]) -> PFNs:
        """The pages of one table's entries, or of a huge entry."""
        _, count, slot, level = row
        words = self._mmu.words[slot : slot + (count if level == 0 else 1)]
        present = words[words & np.uint64(PRESENT) != 0]
        pfns: PFNs = ((present & np.uint64(PFN_MASK)) >> np.uint64(PFN_SHIFT)).astype(np.int64)
        return pfns

    def _of_file(self, path: str, first: int, end: int) -> PFNs:
        """What a file has cached in a range of pages (``split_huge_pages_in_file``)."""
        try:
            file = self._lookup(path)
        except KernelError as error:
            raise KernelError(errno.EINVAL, error.reason) from None
        _, pfns = self._cache.find_get_pages(file, first, max(0, min(end, file.pages) - first))
        return self._heads(np.asarray(pfns, dtype=np.int64))
