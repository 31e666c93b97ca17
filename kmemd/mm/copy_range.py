"""What a child's mappings show after fork: its parent's pages (mm/memory.c ``copy_page_range``)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from kmemd.core.mmu import Mmu
from kmemd.core.ptes import PteRanges
from kmemd.mm.fault_parts import Parts
from kmemd.mm.mm_types import VM_HUGETLB, VM_MAYWRITE, VM_MIXEDMAP, VM_PFNMAP, VM_SHARED, Mm, Vma
from kmemd.mm.pgtable import PageTables
from kmemd.mm.units import PAGE_SHIFT
from kmemd.mm.zap import ZAP_ROWS

Rows = npt.NDArray[np.int64]


class CopyRange:
    """Copies the entries of a parent's mapping to its child's."""

    def __init__(self, mmu: Mmu, ptes: PteRanges, tables: PageTables, parts: Parts) -> None:
        self._mmu, self._ptes, self._tables, self._parts = mmu, ptes, tables, parts

    def steps(self, child: Mm, new: Vma, parent: Mm, vma: Vma) -> Iterator[None]:
        """Have a child's mapping show the parent's pages, some tables between two yields (copy_page_range); those
        of files are left to faults. ENOMEM.
        """
        if vma.anon_vma is None and not vma.flags & (VM_PFNMAP | VM_MIXEDMAP):
            return
        if vma.flags & VM_HUGETLB:
            self._parts.hugetlb.copy(child, parent, new, vma)
            return
        at, last = vma.vpn, vma.end >> PAGE_SHIFT
        while len(rows := self._mmu.extents(parent.id, at, last)):
            rows = rows[:ZAP_ROWS]
            self._copy_rows(child, new, parent, vma, rows)
            at = int(rows[-1, 0] + rows[-1, 1])
            if at >= last:
                break
            yield

    def _copy_rows(self, child: Mm, new: Vma, parent: Mm, vma: Vma, rows: Rows) -> None:
        """The entries of some tables (copy_pmd_range). ENOMEM."""
        cow = vma.flags & (VM_SHARED | VM_MAYWRITE) == VM_MAYWRITE
        small = np.ascontiguousarray(rows[rows[:, 3] == 0])
        targets = np.array([self._tables.ensure(child.id, vpn) for vpn in small[:, 0].tolist()], dtype=np.int64)
        swapped = self._ptes.copy(child.id, small, targets, cow) if len(small) else 0
        if swapped:
            self._parts.swap.duplicate(self._ptes.swapped[:swapped].copy())
        for vpn, _, slot, _ in rows[rows[:, 3] > 0].tolist():
            self._parts.huge.copy(child, new, parent, vma, vpn, slot)
