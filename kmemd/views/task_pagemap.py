"""``/proc/PID/pagemap`` and ``clear_refs`` (fs/proc/task_mmu.c ``pagemap_read``, ``clear_refs_write``).

pagemap has eight bytes for each page of address space, computed for the range that is read. Left out: the write
protection of userfaultfd. Soft-dirty bits show on machines that track them (CONFIG_MEM_SOFT_DIRTY).
"""

from __future__ import annotations

import errno
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from kmemd.core.pages import PG_REFERENCED
from kmemd.core.pte import (
    ACCESSED,
    PFN_MASK,
    PFN_SHIFT,
    PRESENT,
    PROTNONE,
    RW,
    SOFT_DIRTY,
    SPECIAL,
    SWP_OFFSET_BITS,
    SWP_SOFT_DIRTY,
)
from kmemd.errors import KernelError
from kmemd.kernel import Kernel
from kmemd.mm import kstrtox
from kmemd.mm.capability import CAP_SYS_ADMIN
from kmemd.mm.compound import compound_heads, mapcounts
from kmemd.mm.mm_types import VM_HUGETLB, VM_PFNMAP, VM_SOFTDIRTY, Mm, Vma
from kmemd.mm.sched import Task
from kmemd.mm.swapfile import slots_of
from kmemd.mm.units import PAGE_SHIFT
from kmemd.views.task_files import task_binary, task_control
from kmemd.views.tree import Caller

Words = npt.NDArray[np.uint64]
PFNs = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

ENTRY_BYTES = 8
HERE = PRESENT | PROTNONE
PM_SOFT_DIRTY, PM_MMAP_EXCLUSIVE = 1 << 55, 1 << 56
PM_FILE, PM_SWAP, PM_PRESENT = 1 << 61, 1 << 62, 1 << 63
SWAP_TYPE_BITS = 5
NUMBER_BUFFER = 12
"""Characters that a write to clear_refs is cut to (PROC_NUMBUF without its NUL)."""


class ClearRefs(IntEnum):
    """What a number written to clear_refs does."""

    ALL = 1
    ANON = 2
    MAPPED = 3
    SOFT_DIRTY = 4
    MM_HIWATER_RSS = 5


@task_binary("pagemap")
def pagemap(kernel: Kernel, task: Task, offset: int, size: int, caller: Caller) -> bytes:
    """Where each page is. EINVAL unless whole entries are read. Page frames and swap slots take CAP_SYS_ADMIN."""
    mm = task.mm
    if mm is None:
        return b""
    if offset % ENTRY_BYTES or size % ENTRY_BYTES:
        raise KernelError(errno.EINVAL, f"{size} bytes at {offset}: entries are of {ENTRY_BYTES} bytes")
    low = offset // ENTRY_BYTES
    high = min(low + size // ENTRY_BYTES, mm.task_size >> PAGE_SHIFT)
    if low >= high:
        return b""
    out = np.zeros(high - low, dtype="<u8")
    for vma in mm.overlapping(low << PAGE_SHIFT, high << PAGE_SHIFT):
        first, last = max(vma.vpn, low), min(vma.vpn + vma.pages, high)
        out[first - low : last - low] = _entries(kernel, mm, vma, first, last)
    if not caller.capable(CAP_SYS_ADMIN):
        out &= np.uint64(PM_SOFT_DIRTY | PM_MMAP_EXCLUSIVE | PM_FILE | PM_SWAP | PM_PRESENT)
    return out.tobytes()


def _entries(kernel: Kernel, mm: Mm, vma: Vma, low: int, high: int) -> Words:
    """The entries of some pages of a mapping."""
    out = np.zeros(high - low, dtype=np.uint64)
    for vpn, pages, slot, level in kernel.mmu.extents(mm.id, low, high).tolist():
        first, last = max(vpn, low), min(vpn + pages, high)
        if level:
            out[first - low : last - low] = _huge(kernel, kernel.mmu.words[slot : slot + 1], first - vpn, last - vpn)
        else:
            out[first - low : last - low] = _small(kernel, kernel.mmu.words[slot : slot + pages])
    if not kernel.machine.soft_dirty:
        out &= np.uint64(~PM_SOFT_DIRTY & (1 << 64) - 1)
    elif vma.flags & VM_SOFTDIRTY:
        out |= np.uint64(PM_SOFT_DIRTY)
    return out


def _where(words: Words, bits: int) -> Mask:
    mask: Mask = words & np.uint64(bits) != 0
    return mask


def _pfns(words: Words) -> PFNs:
    return ((words & np.uint64(PFN_MASK)) >> np.uint64(PFN_SHIFT)).astype(np.int64)


def _small(kernel: Kernel, words: Words) -> Words:
    """Entries of small pages (``pte_to_pagemap_entry``)."""
    out = np.zeros(len(words), dtype=np.uint64)
    present = _where(words, HERE)
    if present.any():
        pfns = _pfns(words[present])
        heads = compound_heads(kernel.pages, pfns, kernel.vmstat.hpage_pmd_nr)
        out[present] = _present(kernel, words[present], pfns, heads, mapcounts(kernel.pages, pfns, heads))
    swapped = (words != 0) & ~present
    if swapped.any():
        out[swapped] = _swapped(words[swapped])
    return out


def _huge(kernel: Kernel, entry: Words, first: int, last: int) -> Words:
    """The part ``[first, last)``, in small pages, of what a huge entry maps."""
    words = np.repeat(entry, last - first)
    if not _where(entry, HERE).any():
        return np.zeros(last - first, dtype=np.uint64)
    head = _pfns(entry)
    heads = np.repeat(head, last - first)
    counts = np.repeat(mapcounts(kernel.pages, head, head), last - first)
    return _present(kernel, words, heads + np.arange(first, last), heads, counts)


def _present(kernel: Kernel, words: Words, pfns: PFNs, heads: PFNs, counts: PFNs) -> Words:
    """What is mapped: whether it belongs to a file, and whether one entry alone maps it."""
    normal = ~_where(words, SPECIAL)
    out = pfns.astype(np.uint64) | np.uint64(PM_PRESENT)
    out[_where(words, SOFT_DIRTY)] |= np.uint64(PM_SOFT_DIRTY)
    out[normal & (kernel.pages.mapping[heads] <= 0)] |= np.uint64(PM_FILE)
    out[normal & (counts == 1)] |= np.uint64(PM_MMAP_EXCLUSIVE)
    return out


def _swapped(words: Words) -> Words:
    """The type and the offset of what is in swap, or under migration."""
    slots = slots_of(words)
    kind, offset = slots >> SWP_OFFSET_BITS, slots & (1 << SWP_OFFSET_BITS) - 1
    out = (kind | offset << SWAP_TYPE_BITS).astype(np.uint64) | np.uint64(PM_SWAP)
    out[_where(words, SWP_SOFT_DIRTY)] |= np.uint64(PM_SOFT_DIRTY)
    return out


@task_control("clear_refs")
def clear_refs(kernel: Kernel, task: Task, text: str) -> int:
    """1 to 3: forget that pages were used; 4: that they were written; 5: the peak of residency. EINVAL, ERANGE."""
    data = kstrtox.to_bytes(text)[:NUMBER_BUFFER]
    number = kstrtox.kstrtoint(kstrtox.strip(kstrtox.c_string(data)))
    if number not in tuple(ClearRefs):
        raise KernelError(errno.EINVAL, f"{number} is not one of 1 to {ClearRefs.MM_HIWATER_RSS:d}")
    mm = task.mm
    if mm is not None and number == ClearRefs.MM_HIWATER_RSS:
        mm.hiwater_rss = kernel.mm_counters.rss(mm)
    elif mm is not None:
        _clear(kernel, mm, ClearRefs(number))
    return len(data)


def _clear(kernel: Kernel, mm: Mm, kind: ClearRefs) -> None:
    """Walk the address space; pages of hugetlb mappings and device memory stay as they are."""
    soft_dirty = kind is ClearRefs.SOFT_DIRTY
    for vma in mm.vmas if not soft_dirty or kernel.machine.soft_dirty else ():
        if soft_dirty:
            vma.flags &= ~VM_SOFTDIRTY
            mm.changed += 1
        skipped = vma.file is not None if kind is ClearRefs.ANON else kind is ClearRefs.MAPPED and vma.file is None
        if vma.flags & (VM_PFNMAP | VM_HUGETLB) or skipped:
            continue
        rows = kernel.mmu.extents(mm.id, vma.vpn, vma.vpn + vma.pages)
        kernel.ptes.clear_refs(np.ascontiguousarray(rows[rows[:, 3] == 0]), soft_dirty)
        _clear_huge(kernel, rows[rows[:, 3] > 0, 2], soft_dirty=soft_dirty)
    if soft_dirty:
        kernel.mmu.flush_mm(mm.id)


def _clear_huge(kernel: Kernel, slots: PFNs, *, soft_dirty: bool) -> None:
    words = kernel.mmu.words
    slots = slots[_where(words[slots], HERE)]
    if soft_dirty:
        words[slots] &= np.uint64(~(RW | SOFT_DIRTY) & (1 << 64) - 1)
        return
    words[slots] &= np.uint64(~ACCESSED & (1 << 64) - 1)
    kernel.pages.flags[_pfns(words[slots])] &= ~np.uint32(1 << PG_REFERENCED)
