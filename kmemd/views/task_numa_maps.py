"""``/proc/PID/numa_maps`` (fs/proc/task_mmu.c ``show_numa_map``): each mapping's policy and pages by kind and node."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from kmemd.core import ptes as core
from kmemd.core.pte import PFN_MASK, PFN_SHIFT
from kmemd.kernel import Kernel
from kmemd.mm.mm_types import VM_HUGETLB, Mm, Vma
from kmemd.mm.sched import Task
from kmemd.views.sliced import Sliced
from kmemd.views.task_files import task_file
from kmemd.views.task_maps import SPECIAL, is_heap, is_stack, mangle
from kmemd.views.task_smaps import TABLES, page_size

HUGE_ROW_PAGES = 1


def _is_numa(kernel: Kernel, *_ids: int) -> bool:
    return kernel.machine.numa


@task_file("numa_maps", private=True, exists=_is_numa)
def numa_maps(kernel: Kernel, task: Task) -> Sliced:
    """A line for each mapping."""
    return Sliced(_mappings(kernel, task, task.mm) if task.mm is not None else iter(()))


def _mappings(kernel: Kernel, task: Task, mm: Mm) -> Iterator[str]:
    for vma in mm.vmas:
        words = [f"{vma.start:08x}", kernel.mempolicy.shown(vma, task), *_kind(mm, vma)]
        if vma.name not in SPECIAL or vma.file is not None:  # nothing for the kernel's own pages
            totals = np.zeros(core.NUMA_ITEMS + max(node.nid for node in kernel.nodes) + 1, dtype=np.int64)
            yield from _count(kernel, mm, vma, totals)
            words += _figures(vma, totals)
        yield " ".join(words) + "\n"


def _kind(mm: Mm, vma: Vma) -> Iterator[str]:
    if vma.file is not None:
        yield f"file={mangle(vma.file.name, chr(10) + chr(9) + '= ')}"
    elif is_heap(mm, vma):
        yield "heap"
    elif is_stack(mm, vma):
        yield "stack"
    if vma.flags & VM_HUGETLB:
        yield "huge"


def _count(kernel: Kernel, mm: Mm, vma: Vma, totals: npt.NDArray[np.int64]) -> Iterator[str]:
    """Count the pages of a mapping, in parts that each give no text."""
    rows = kernel.mmu.extents(mm.id, vma.vpn, vma.vpn + vma.pages)
    if vma.flags & VM_HUGETLB:
        rows = rows[rows[:, 3] > 0]
        rows[:, 1] = HUGE_ROW_PAGES
    elif (rows[:, 3] > 0).any():
        rows = rows[~_huge_zero(kernel, rows)]
    for start in range(0, len(rows), TABLES):
        kernel.ptes.numa(np.ascontiguousarray(rows[start : start + TABLES]), totals)
        yield ""


def _figures(vma: Vma, totals: npt.NDArray[np.int64]) -> Iterator[str]:
    """Pages of each kind; a huge page of a hugetlb mapping counts as one."""
    huge = bool(vma.flags & VM_HUGETLB)
    pages, anon, dirty = (int(totals[item]) for item in (core.NUMA_PAGES, core.NUMA_ANON, core.NUMA_DIRTY))
    if not pages:
        return
    active, mapmax = int(totals[core.NUMA_ACTIVE]), int(totals[core.NUMA_MAPMAX])
    for name, count, shown in (
        ("anon", anon, anon),
        ("dirty", dirty, dirty),
        ("mapped", pages, pages not in (anon, dirty)),
        ("mapmax", mapmax, mapmax > 1),
        ("swapcache", int(totals[core.NUMA_SWAPCACHE]), totals[core.NUMA_SWAPCACHE]),
        ("active", active, active < pages and not huge),
        ("writeback", int(totals[core.NUMA_WRITEBACK]), totals[core.NUMA_WRITEBACK]),
    ):
        if shown:
            yield f"{name}={count}"
    for nid, count in enumerate(totals[core.NUMA_ITEMS :].tolist()):
        if count:
            yield f"N{nid}={count}"
    yield f"kernelpagesize_kB={page_size(vma) >> 10}"


def _huge_zero(kernel: Kernel, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which rows are of the huge zero page, which is nobody's."""
    heads = (kernel.mmu.words[rows[:, 2]] & np.uint64(PFN_MASK)) >> np.uint64(PFN_SHIFT)
    mask: npt.NDArray[np.bool_] = (rows[:, 3] > 0) & (kernel.pages.mapping[heads.astype(np.int64)] == 0)
    return mask
