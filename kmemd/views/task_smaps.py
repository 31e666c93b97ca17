"""``/proc/PID/smaps`` and ``smaps_rollup`` (fs/proc/task_mmu.c ``smap_gather_stats``, ``__show_smap``): what of each
mapping is resident, and whose it is.

Sums are in bytes and turned into KiB at the end; a share of a page keeps twelve bits behind the point, as in Linux.
Left out: pages under migration, which no reader ever meets here.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from kmemd.core import ptes as core
from kmemd.core.pages import PG_SWAPBACKED
from kmemd.core.pte import (
    MAX_SWAPFILES,
    PFN_MASK,
    PFN_SHIFT,
    PRESENT,
    PROTNONE,
    SWP_TYPE_SHIFT,
)
from kmemd.errors import KernelError
from kmemd.kernel import Kernel
from kmemd.mm.hugetlbfs import HugetlbFile
from kmemd.mm.mm_types import (
    VM_HUGETLB,
    VM_LOCKED,
    VM_SHARED,
    VM_WRITE,
    Mm,
    Vma,
)
from kmemd.mm.sched import Task
from kmemd.mm.swapfile import slots_of
from kmemd.mm.units import PAGE_SHIFT, PAGE_SIZE
from kmemd.views.sliced import Sliced
from kmemd.views.task_files import task_file
from kmemd.views.task_maps import header, map_line

PSS_SHIFT = 12
TABLES = 64
"""Rows of entries, a table each at most, that are looked at before others may read."""
HERE = PRESENT | PROTNONE

VM_FLAG_NAMES = {
    **{0: "rd", 1: "wr", 2: "ex", 3: "sh", 4: "mr", 5: "mw", 6: "me", 7: "ms", 8: "gd", 9: "um", 10: "pf", 12: "uw"},
    **{13: "lo", 14: "io", 15: "sr", 16: "rr", 17: "dc", 18: "de", 20: "ac", 21: "nr", 22: "ht", 23: "sf", 24: "ar"},
    **{25: "wf", 26: "dd", 28: "mm", 29: "hg", 30: "nh", 31: "mg"},
}
"""Bits of ``vm_flags``. Others show as ??: VM_SOFTDIRTY has no name, for the captured kernels do not track it."""
VM_SOFTDIRTY_BIT = 27
FIELDS: tuple[str, ...] = (
    *("Rss", "Pss", "Pss_Dirty", "Shared_Clean", "Shared_Dirty", "Private_Clean", "Private_Dirty"),
    *("Referenced", "Anonymous", "LazyFree", "AnonHugePages", "ShmemPmdMapped", "FilePmdMapped"),
    *("Shared_Hugetlb", "Private_Hugetlb", "Swap", "SwapPss", "Locked"),
)
ROLLUP_FIELDS: tuple[str, ...] = (*FIELDS[:3], "Pss_Anon", "Pss_File", "Pss_Shmem", *FIELDS[3:])
SCANNED = (
    *(("Rss", core.RSS), ("Pss", core.PSS), ("Pss_Dirty", core.PSS_DIRTY), ("Shared_Clean", core.SHARED_CLEAN)),
    *(
        ("Shared_Dirty", core.SHARED_DIRTY),
        ("Private_Clean", core.PRIVATE_CLEAN),
        ("Private_Dirty", core.PRIVATE_DIRTY),
    ),
    *(("Referenced", core.REFERENCED), ("Anonymous", core.ANONYMOUS), ("LazyFree", core.LAZYFREE)),
    *(("AnonHugePages", core.ANON_HUGE), ("Pss_Anon", core.PSS_ANON), ("Pss_File", core.PSS_FILE)),
    ("Pss_Shmem", core.PSS_SHMEM),
)
SHARES = frozenset({"Pss", "Pss_Dirty", "Pss_Anon", "Pss_File", "Pss_Shmem", "SwapPss", "Locked"})
"""Figures in bytes << PSS_SHIFT."""
_SHIFTS = {name: (PSS_SHIFT if name in SHARES else 0) + 10 for name in ROLLUP_FIELDS}
_LINES = {fields: "".join(f"{name + ':':<16}%8d kB\n" for name in fields) for fields in (FIELDS, ROLLUP_FIELDS)}
_SIZES = "Size:           %8d kB\nKernelPageSize: %8d kB\nMMUPageSize:    %8d kB\n"

Rows = npt.NDArray[np.int64]


@dataclass(slots=True)
class Figures:
    """What is resident of one mapping or of several (``struct mem_size_stats``)."""

    sums: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ROLLUP_FIELDS, 0))

    def add(self, name: str, amount: int) -> None:
        """Count bytes, or a share."""
        self.sums[name] += amount

    def kib(self, name: str) -> int:
        """A figure as it is shown."""
        return self.sums[name] >> _SHIFTS[name]

    def lines(self, fields: tuple[str, ...]) -> str:
        """The figures as text."""
        sums = self.sums
        return _LINES[fields] % tuple([sums[name] >> _SHIFTS[name] for name in fields])


def gather(kernel: Kernel, mm: Mm, vma: Vma, figures: Figures) -> Iterator[str]:
    """Add a mapping to the figures, in parts that each give no text."""
    rows = kernel.mmu.extents(mm.id, vma.vpn, vma.vpn + vma.pages)
    if vma.flags & VM_HUGETLB:
        _gather_hugetlb(kernel, rows, figures)
        return
    array = np.zeros(core.SCAN_ITEMS, dtype=np.int64)
    for start in range(0, len(rows), TABLES):
        kernel.ptes.scan(np.ascontiguousarray(rows[start : start + TABLES]), array)
        yield ""
    totals = array.tolist()
    for name, item in SCANNED:
        figures.sums[name] += totals[item]
    if vma.flags & VM_LOCKED:
        figures.add("Locked", totals[core.PSS])
    if (rows[:, 3] > 0).any() and vma.file is not None:
        _gather_file_huge(kernel, rows, figures)
    if totals[core.SWAP]:
        _gather_swap(kernel, rows, figures)
    if vma.file is not None and vma.file.is_shmem and vma.file.swapped:
        figures.add("Swap", _shmem_swap(kernel, vma, rows) << PAGE_SHIFT)


def huge_heads(kernel: Kernel, rows: Rows) -> Rows:
    """The pages that the huge entries of some rows map."""
    entries = kernel.mmu.words[rows[rows[:, 3] > 0, 2]]
    present = entries[entries & np.uint64(HERE) != 0]
    heads: Rows = ((present & np.uint64(PFN_MASK)) >> np.uint64(PFN_SHIFT)).astype(np.int64)
    return heads


def _gather_hugetlb(kernel: Kernel, rows: Rows, figures: Figures) -> None:
    sizes = rows[rows[:, 3] > 0, 1]
    entries = kernel.mmu.words[rows[rows[:, 3] > 0, 2]]
    sizes = sizes[entries & np.uint64(HERE) != 0] << PAGE_SHIFT
    heads = huge_heads(kernel, rows)
    shared = kernel.pages.mapping[heads + 1] + kernel.pages.mapcount[heads] >= 2
    figures.add("Shared_Hugetlb", int(sizes[shared].sum()))
    figures.add("Private_Hugetlb", int(sizes[~shared].sum()))


def _gather_file_huge(kernel: Kernel, rows: Rows, figures: Figures) -> None:
    heads = huge_heads(kernel, rows)
    heads = heads[kernel.pages.mapping[heads] < 0]
    shmem = int((kernel.pages.flags[heads] >> PG_SWAPBACKED & 1).sum())
    size = PAGE_SIZE * kernel.vmstat.hpage_pmd_nr
    figures.add("ShmemPmdMapped", shmem * size)
    figures.add("FilePmdMapped", (len(heads) - shmem) * size)


def _gather_swap(kernel: Kernel, rows: Rows, figures: Figures) -> None:
    entries = kernel.ptes.swap_entries(rows)
    entries = entries[entries >> np.uint64(SWP_TYPE_SHIFT) < MAX_SWAPFILES]
    figures.add("Swap", len(entries) << PAGE_SHIFT)
    sharers = np.maximum(kernel.swap.files.counts(slots_of(entries)), 1)
    figures.add("SwapPss", int(((PAGE_SIZE << PSS_SHIFT) // sharers).sum()))


def _shmem_swap(kernel: Kernel, vma: Vma, rows: Rows) -> int:
    """Pages of a tmpfs file in swap that a mapping shows; in a private writable one, where nothing else is mapped."""
    assert vma.file is not None
    window = vma.file.slots.window(vma.pgoff, vma.pgoff + vma.pages)
    swapped = window < 0
    if vma.flags & VM_SHARED or not vma.flags & VM_WRITE:
        return int(swapped.sum())
    for vpn, pages, slot, level in rows.tolist():
        first = vpn - vma.vpn
        taken = swapped[max(first, 0) : first + pages]
        taken &= (kernel.mmu.words[slot : slot + len(taken)] == 0) if level == 0 else False
    return int(swapped.sum())


@lru_cache(256)
def vm_flags(flags: int, *, soft_dirty: bool = False) -> str:
    """Two letters for each property, in the order of the bits; ?? for one without a name."""
    names = VM_FLAG_NAMES | ({VM_SOFTDIRTY_BIT: "sd"} if soft_dirty else {})
    if not soft_dirty:
        flags &= ~(1 << VM_SOFTDIRTY_BIT)
    return "".join(names.get(bit, "??") + " " for bit in range(flags.bit_length()) if flags >> bit & 1)


def page_size(vma: Vma) -> int:
    """Bytes of the pages that a mapping is made of (``vma_kernel_pagesize``)."""
    return int(vma.file.huge_page_size) if isinstance(vma.file, HugetlbFile) else PAGE_SIZE


@task_file("smaps", private=True)
def smaps(kernel: Kernel, task: Task) -> Sliced:
    """Each mapping with what of it is resident."""
    return Sliced(_mappings(kernel, task.mm) if task.mm is not None else iter(()))


def _mappings(kernel: Kernel, mm: Mm) -> Iterator[str]:
    for vma in mm.vmas:
        figures = Figures()
        yield from gather(kernel, mm, vma, figures)
        yield map_line(kernel.machine.arch, mm, vma)
        size = page_size(vma) >> 10
        yield _SIZES % (vma.end - vma.start >> 10, size, size)
        yield figures.lines(FIELDS)
        yield f"THPeligible:    {kernel.huge_memory.allowed(vma, smaps=True):d}\n"
        yield f"VmFlags: {vm_flags(vma.flags, soft_dirty=kernel.machine.soft_dirty)}\n"


@task_file("smaps_rollup", private=True)
def smaps_rollup(kernel: Kernel, task: Task) -> Sliced:
    """The sums over all mappings. ESRCH for tasks without an address space."""
    if task.is_kthread:
        raise KernelError(errno.ESRCH, f"{task.comm} has no address space")
    return Sliced(_rollup(kernel, task.mm) if task.mm is not None else iter(()))


def _rollup(kernel: Kernel, mm: Mm) -> Iterator[str]:
    figures = Figures()
    for vma in mm.vmas:
        yield from gather(kernel, mm, vma, figures)
    bounds = (mm.vmas[0].start, mm.vmas[-1].end) if mm.vmas else (0, 0)
    yield header(kernel.machine.arch, *bounds, "---p", "[rollup]")
    yield figures.lines(ROLLUP_FIELDS)
