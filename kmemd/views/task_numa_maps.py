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
from kmemd.views.task_files import task_file
from kmemd.views.task_maps import SPECIAL, is_heap, is_stack, mangle
from kmemd.views.task_smaps import page_size

HUGE_ROW_PAGES = 1


def _is_numa(kernel: Kernel, *_ids: int) -> bool:
    return kernel.machine.numa


@task_file("numa_maps", private=True, exists=_is_numa)
def numa_maps(kernel: Kernel, task: Task) -> Iterator[str]:
    """A line for each mapping."""
    for vma in task.mm.vmas if task.mm is not None else ():
        assert task.mm is not None
        words = [f"{vma.start:08x}", kernel.mempolicy.shown(vma, task), *_kind(task.mm, vma)]
        yield " ".join([*words, *_figures(kernel, task.mm, vma)]) + "\n"


def _kind(mm: Mm, vma: Vma) -> Iterator[str]:
    if vma.file is not None:
        yield f"file={mangle(vma.file.name, chr(10) + chr(9) + '= ')}"
    elif is_heap(mm, vma):
        yield "heap"
    elif is_stack(mm, vma):
        yield "stack"
    if vma.flags & VM_HUGETLB:
        yield "huge"


def _figures(kernel: Kernel, mm: Mm, vma: Vma) -> Iterator[str]:
    """Pages of each kind; a huge page of a hugetlb mapping counts as one. Nothing for the kernel's own pages."""
    if vma.name in SPECIAL and vma.file is None:
        return
    huge = bool(vma.flags & VM_HUGETLB)
    rows = kernel.mmu.extents(mm.id, vma.vpn, vma.vpn + vma.pages)
    if huge:
        rows = rows[rows[:, 3] > 0]
        rows[:, 1] = HUGE_ROW_PAGES
    elif (rows[:, 3] > 0).any():
        rows = rows[~_huge_zero(kernel, rows)]
    totals = np.zeros(core.NUMA_ITEMS + max(node.nid for node in kernel.nodes) + 1, dtype=np.int64)
    kernel.ptes.numa(rows, totals)
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
