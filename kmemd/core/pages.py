"""The page map: what ``struct page`` holds, as arrays indexed by page frame number.

Every array is anonymous zero-filled memory that costs nothing until it is touched, and zero means
"never touched", so that a machine of any size boots for free.
"""

import mmap
import sys

import numpy as np

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
SECTION_SHIFT = 12

# PageMap.kind
NOT_HEAD = 0  # inside a block, in the frontier, reserved since boot, or a hole
IN_BUDDY = 1  # head of a block on a free list
IN_PCP = 2  # head of a block on a per-cpu list
ALLOCATED = 3  # head of a block in use

# PageMap.flags: bits numbered as in include/linux/page-flags.h
PG_LOCKED, PG_REFERENCED, PG_UPTODATE, PG_DIRTY, PG_LRU, PG_ACTIVE, PG_WORKINGSET, PG_WAITERS = range(8)
PG_ERROR, PG_SLAB, PG_OWNER_PRIV_1, PG_ARCH_1, PG_RESERVED, PG_PRIVATE, PG_PRIVATE_2, PG_WRITEBACK = range(8, 16)
PG_HEAD, PG_MAPPEDTODISK, PG_RECLAIM, PG_SWAPBACKED, PG_UNEVICTABLE, PG_MLOCKED = range(16, 22)
LRU_GEN_PGOFF, LRU_REFS_PGOFF = 22, 25  # three bits of generation + 1, two of accesses beyond PG_workingset
LRU_GEN_MASK, LRU_REFS_MASK = 7 << LRU_GEN_PGOFF, 3 << LRU_REFS_PGOFF
PG_ANON_EXCLUSIVE, PG_SWAPCACHE = PG_MAPPEDTODISK, PG_OWNER_PRIV_1  # as Linux shares them
PG_YOUNG, PG_IDLE = 28, 29  # Linux has them at 23 and 24
PG_TABLE = 30  # the model's own: a page-table page, which Linux keeps in page_type
PG_CONTENT = 31  # the model's own: the bytes of the page are known (mm/contents.py)


def lazy_zeros(count: int, dtype: str) -> np.ndarray:
    """A zero array whose memory appears when it is touched, however large it is."""
    size = max(1, count * np.dtype(dtype).itemsize)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    if size < 1 << 16 or not sys.platform.startswith("linux"):
        return np.zeros(count, dtype=dtype)
    return np.frombuffer(mmap.mmap(-1, size, flags=flags), dtype=dtype, count=count)


class PageMap:
    """Arrays over the PFNs ``[0, max_pfn)``.

    ``next``/``prev`` are list links: PFN + 1, or -(list + 1) for a list's head, 0 for none.
    ``kind`` says where the head of a block is and ``order`` the block's order; ``migratetype`` is that of the list a
    free head is on, or was allocated from. The three are bytes of ``meta``, which the core writes at once.
    ``flags``, ``mapping`` and ``index`` belong to the user of an allocated page, as in Linux: ``mapping`` of a user
    page
    is the number of its anon_vma, or minus the number of its file. ``mapcount`` counts the page-table entries that
    map a
    page; how often a compound page is mapped as a whole stands in ``mapping`` of its first tail
    (``compound_mapcount``).
    ``memcg`` is the number of the memory cgroup that a page is charged to, 0 for the root; ``charged_sections`` tells
    in which sections of ``1 << SECTION_SHIFT`` frames it may be anything else.
    ``private`` is the slot of a page in the swap cache (``type << 50 | offset``), 0 for all others.
    """

    def __init__(self, max_pfn: int) -> None:
        self.max_pfn = max_pfn
        self.next = lazy_zeros(max_pfn, "int32")
        self.prev = lazy_zeros(max_pfn, "int32")
        self.meta = lazy_zeros(max_pfn, "int32")
        parts = self.meta.view(np.uint8)
        self.kind, self.order, self.migratetype = parts[0::4], parts[1::4], parts[2::4]
        self.flags = lazy_zeros(max_pfn, "uint32")
        self.mapping = lazy_zeros(max_pfn, "int32")
        self.index = lazy_zeros(max_pfn, "int64")
        self.mapcount = lazy_zeros(max_pfn, "int32")
        self.private = lazy_zeros(max_pfn, "int64")
        self.memcg = lazy_zeros(max_pfn, "int16")
        self.charged_sections = np.zeros((max_pfn >> SECTION_SHIFT) + 1, dtype=bool)
