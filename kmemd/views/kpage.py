"""``/proc/kpageflags``, ``kpagecount``, ``kpagecgroup`` (fs/proc/page.c): eight bytes for each page frame.

Computed for the range that is read, a whole range at a time. Left out: KSM, poisoned and offline pages, which the model
has none of.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from functools import cached_property
from itertools import chain

import numpy as np
import numpy.typing as npt

from kmemd.core import pages as p
from kmemd.errors import KernelError
from kmemd.kernel import Kernel
from kmemd.mm.setup import SECTION_PAGES, SECTION_SIZE
from kmemd.views.tree import proc

Words = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

Figures = Callable[[Kernel, int, int], Words]

ENTRY_BYTES = 8
MAX_BLOCK_ORDER = 18
"""The largest block that has one head: a huge page of 1 GiB."""
ROOT_CGROUP_INO = 1

# include/uapi/linux/kernel-page-flags.h
KPF_SLAB, KPF_BUDDY = 7, 10
KPF_MMAP, KPF_ANON, KPF_SWAPCACHE, KPF_SWAPBACKED, KPF_COMPOUND_HEAD, KPF_COMPOUND_TAIL, KPF_HUGE = range(11, 18)
KPF_NOPAGE, KPF_THP, KPF_ZERO_PAGE, KPF_IDLE, KPF_PGTABLE, KPF_RESERVED = 20, 22, 24, 25, 26, 32

COPIED = (
    *((p.PG_LOCKED, 0), (p.PG_ERROR, 1), (p.PG_REFERENCED, 2), (p.PG_UPTODATE, 3), (p.PG_DIRTY, 4), (p.PG_LRU, 5)),
    *((p.PG_ACTIVE, 6), (p.PG_SLAB, KPF_SLAB), (p.PG_WRITEBACK, 8), (p.PG_RECLAIM, 9)),
    *((p.PG_SWAPBACKED, KPF_SWAPBACKED), (p.PG_UNEVICTABLE, 18), (p.PG_RESERVED, KPF_RESERVED), (p.PG_MLOCKED, 33)),
    *((p.PG_MAPPEDTODISK, 34), (p.PG_PRIVATE, 35), (p.PG_PRIVATE_2, 36), (p.PG_OWNER_PRIV_1, 37), (p.PG_ARCH_1, 38)),
)
"""Bits of ``page->flags`` and the bits that they are shown as."""
_PART_BITS = 11


def _shown(first_bit: int) -> Words:
    """For each value of eleven bits of ``page->flags`` what is shown."""
    table = np.zeros(1 << _PART_BITS, dtype=np.uint64)
    values = np.arange(1 << _PART_BITS)
    for bit, shown in COPIED:
        if first_bit <= bit < first_bit + _PART_BITS:
            table[values >> (bit - first_bit) & 1 == 1] |= np.uint64(1 << shown)
    return table


_LOW_FLAGS, _HIGH_FLAGS = _shown(0), _shown(_PART_BITS)


def covered(low: int, high: int, ranges: Iterable[tuple[int, int]]) -> Mask:
    """Which of the frames ``[low, high)`` lie in some of the PFN ranges."""
    mask = np.zeros(high - low, dtype=np.bool_)
    for first, last in ranges:
        mask[max(first - low, 0) : max(last - low, 0)] = True
    return mask


def _has(flags: Ints, bit: int) -> Mask:
    mask: Mask = flags & (1 << bit) != 0
    return mask


class PageRange:
    """The page frames ``[low, high)`` of a kernel, and of each the block that it lies in.

    ``head`` is the first frame of the block; ``free`` and ``used`` say whether that is on a free list or allocated.
    """

    def __init__(self, kernel: Kernel, low: int, high: int) -> None:
        self._kernel = kernel
        self.map = kernel.pages
        self.low, self.high = low, max(low, min(high, len(kernel.pages.flags)))
        self.pfns: Ints = np.arange(low, self.high, dtype=np.int64)
        self._find_blocks()

    def _find_blocks(self) -> None:
        """The last head at or before a frame is its own, if that block reaches so far."""
        base = self._first_head()
        kind, order = self.map.kind[base : self.high], self.map.order[base : self.high]
        at = np.where(kind != p.NOT_HEAD, np.arange(len(kind)), 0)
        last = np.maximum.accumulate(at)[self.low - base :]
        inside = (self.pfns - base - last < (1 << order[last].astype(np.int64))) & (kind[last] != p.NOT_HEAD)
        self.head: Ints = np.where(inside, last + base, self.pfns)
        frontier = (bounds for zone in self._kernel.zones for bounds in self._kernel.buddy.frontier(zone.index))
        never_touched = covered(self.low, self.high, frontier)
        self.free: Mask = inside & (kind[last] == p.IN_BUDDY) | never_touched
        self.used: Mask = inside & (kind[last] == p.ALLOCATED)

    def _first_head(self) -> int:
        """The head of the block that the first frame lies in, or that frame."""
        if self.low >= self.high:
            return self.low
        for order in range(MAX_BLOCK_ORDER + 1):
            head = self.low >> order << order
            if self.map.kind[head] != p.NOT_HEAD:
                return head if head + (1 << int(self.map.order[head])) > self.low else self.low
        return self.low

    @cached_property
    def flags(self) -> Ints:
        """``page->flags`` of the frames themselves."""
        return self.map.flags[self.low : self.high].astype(np.int64)

    @cached_property
    def head_flags(self) -> Ints:
        """``page->flags`` of the heads of compound pages, of the frames themselves elsewhere."""
        return self.map.flags[self.compound_head].astype(np.int64)

    @cached_property
    def compound(self) -> Mask:
        """Which frames are part of a compound page."""
        return self.used & (self.map.flags[self.head] >> p.PG_HEAD & 1).astype(np.bool_)

    @cached_property
    def compound_head(self) -> Ints:
        """The head of a compound page; the frame itself elsewhere."""
        return np.where(self.compound, self.head, self.pfns)

    @cached_property
    def slab(self) -> Mask:
        """``PageSlab``, which looks at the head."""
        return _has(self.head_flags, p.PG_SLAB)

    @cached_property
    def user(self) -> Mask:
        """Which frames belong to an address space or a file: ``mapping`` of a slab page is the allocator's own."""
        user: Mask = self.used & ~self.slab & (self.map.mapping[self.compound_head] != 0)
        return user

    @cached_property
    def anon(self) -> Mask:
        """``PageAnon``."""
        return self.user & (self.map.mapping[self.compound_head] > 0)

    @cached_property
    def huge(self) -> Mask:
        """``PageHuge``: pages of hugetlb pools."""
        pools = self._kernel.hugetlb.pools
        heads = [np.fromiter(chain(pool.active, *pool.free_lists), dtype=np.int64) for pool in pools]
        huge: Mask = self.compound & np.isin(self.head, np.concatenate(heads))
        return huge

    @cached_property
    def huge_zero(self) -> Mask:
        """``is_huge_zero_page``."""
        candidate = self.compound & ~self.user & (self.map.order[self.head] == self._kernel.pageblock_order)
        heads = [head for head in np.unique(self.head[candidate]).tolist() if self._kernel.user.thp.is_zero(head)]
        zero: Mask = candidate & np.isin(self.head, heads)
        return zero

    @cached_property
    def own(self) -> Ints:
        """Page-table entries that map a frame."""
        return self.map.mapcount[self.low : self.high].astype(np.int64)

    @cached_property
    def entire(self) -> Ints:
        """How often the compound page of a frame is mapped as a whole."""
        first_tail = np.minimum(self.compound_head + 1, len(self.map.mapping) - 1)
        return np.where(self.compound & self.user, self.map.mapping[first_tail].astype(np.int64), 0)

    @cached_property
    def mapped(self) -> Mask:
        """``page_mapped``: a compound page is when any part of it is."""
        mapped = (self.own > 0) & ~self.slab
        compound = self.compound & self.user
        if not compound.any():
            return mapped
        heads = np.unique(self.compound_head[compound])
        bounds = np.stack([heads, heads + (1 << self.map.order[heads].astype(np.int64))], axis=1).ravel()
        base = int(bounds[0])
        entries = np.append(self.map.mapcount[base : int(bounds[-1])] > 0, np.False_)
        parts = np.logical_or.reduceat(entries, bounds - base)[::2]
        any_part = parts[np.minimum(np.searchsorted(heads, self.compound_head), len(heads) - 1)]
        return np.where(compound, any_part | (self.entire > 0), mapped)

    @cached_property
    def reserved(self) -> Mask:
        """Frames that the page allocator was never given: the kernel's image, boot's tables, holes."""
        given = (bounds for zone in self._kernel.zones for bounds in zone.free_ranges)
        return ~(covered(self.low, self.high, given) | self.used | self.free)


def stable_page_flags(kernel: Kernel, low: int, high: int) -> Words:
    """What kpageflags says of the frames ``[low, high)``, as far as the page map reaches."""
    if any(first <= low and high <= last for zone in kernel.zones for first, last in kernel.buddy.frontier(zone.index)):
        return np.full(high - low, 1 << KPF_BUDDY, dtype=np.uint64)
    pages = PageRange(kernel, low, high)
    mask_of_part = (1 << _PART_BITS) - 1
    out: Words = _LOW_FLAGS[pages.flags & mask_of_part] | _HIGH_FLAGS[pages.flags >> _PART_BITS & mask_of_part]
    head = pages.pfns == pages.compound_head
    on_lru = _has(pages.head_flags, p.PG_LRU)
    swap_cache = _has(pages.head_flags, p.PG_SWAPBACKED) & _has(pages.head_flags, p.PG_SWAPCACHE)
    for shown, mask in (
        (KPF_MMAP, pages.mapped),
        (KPF_ANON, pages.anon),
        (KPF_COMPOUND_HEAD, pages.compound & head),
        (KPF_COMPOUND_TAIL, pages.compound & ~head),
        (KPF_HUGE, pages.huge),
        (KPF_THP, pages.compound & ~pages.huge & (on_lru | pages.anon | pages.huge_zero)),
        (KPF_ZERO_PAGE, pages.huge_zero | (pages.pfns == kernel.mmu.zero_pfn)),
        (KPF_IDLE, _has(pages.head_flags, p.PG_IDLE)),
        (KPF_BUDDY, pages.free),
        (KPF_PGTABLE, pages.used & _has(pages.flags, p.PG_TABLE)),
        (KPF_SLAB, pages.slab),
        (KPF_SWAPCACHE, swap_cache & pages.user),
        (KPF_RESERVED, pages.reserved),
    ):
        if mask.any():
            out[mask] |= np.uint64(1 << shown)
    return out


def page_counts(kernel: Kernel, low: int, high: int) -> Words:
    """How often each frame is mapped (``page_mapcount``)."""
    pages = PageRange(kernel, low, high)
    counts: Words = np.where(pages.slab | pages.free, 0, pages.own + pages.entire).astype(np.uint64)
    return counts


def page_cgroups(kernel: Kernel, low: int, high: int) -> Words:
    """The inode of the control group that a page is charged to: user memory, to the root; tails have none."""
    pages = PageRange(kernel, low, high)
    charged = pages.user & (pages.pfns == pages.compound_head) & ~pages.huge
    if "memory" in (kernel.cmdline.get("cgroup_disable") or "").split(","):
        charged[:] = False
    inodes: Words = charged.astype(np.uint64) * np.uint64(ROOT_CGROUP_INO)
    if not kernel.memcg.active:
        return inodes
    numbers = kernel.pages.memcg[low:high].copy()
    numbers[pages.pfns != pages.compound_head] = 0
    for number in np.unique(numbers[numbers != 0]).tolist():
        inodes[numbers == number] = kernel.memcg.online_ino(number)
    return inodes


def max_dump_pfn(kernel: Kernel) -> int:
    """The end of the files. On x86_64 memory is in sections, whose struct pages all exist."""
    end = kernel.layout.max_pfn
    return -(-end // SECTION_PAGES) * SECTION_PAGES if kernel.machine.numa else end


def _online(kernel: Kernel, low: int, high: int) -> Mask:
    """Which frames have a ``struct page``: i386 has one for each, x86_64 for those in sections with memory."""
    if not kernel.machine.numa:
        return np.ones(high - low, dtype=np.bool_)
    regions = kernel.boot_memory.memblock.memory
    sections = ((region.start // SECTION_SIZE, -(-region.end // SECTION_SIZE)) for region in regions)
    return covered(low, high, ((first * SECTION_PAGES, last * SECTION_PAGES) for first, last in sections))


def _read(kernel: Kernel, figures: Figures, offset: int, size: int, *, hole: int, beyond: int) -> bytes:
    """A range of one of the files. EINVAL unless it is of whole entries.

    ``hole`` stands for a frame without a ``struct page``, ``beyond`` for one behind the end of memory.
    """
    if offset % ENTRY_BYTES or size % ENTRY_BYTES:
        raise KernelError(errno.EINVAL, f"{size} bytes at {offset}: entries are of {ENTRY_BYTES} bytes")
    low = offset // ENTRY_BYTES
    high = min(low + size // ENTRY_BYTES, max_dump_pfn(kernel))
    if low >= high:
        return b""
    out = np.full(high - low, beyond, dtype="<u8")
    known = figures(kernel, low, high)
    out[: len(known)] = known
    out[~_online(kernel, low, high)] = hole
    return out.tobytes()


@proc.binary("kpageflags")
def kpageflags(kernel: Kernel, offset: int, size: int) -> bytes:
    """The flags of each page frame, in the numbering for user space. EINVAL."""
    return _read(kernel, stable_page_flags, offset, size, hole=1 << KPF_NOPAGE, beyond=1 << KPF_RESERVED)


@proc.binary("kpagecount")
def kpagecount(kernel: Kernel, offset: int, size: int) -> bytes:
    """How often each page frame is mapped. EINVAL."""
    return _read(kernel, page_counts, offset, size, hole=0, beyond=0)


@proc.binary("kpagecgroup")
def kpagecgroup(kernel: Kernel, offset: int, size: int) -> bytes:
    """The control group that each page frame is charged to. EINVAL."""
    return _read(kernel, page_cgroups, offset, size, hole=0, beyond=0)
