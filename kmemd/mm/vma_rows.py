"""Mappings as the loop over accesses reads them: a row of numbers each (core/mmu.py says what the columns are)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kmemd.core import mmu as core
from kmemd.core.pte import NX, PRESENT, PROTNONE, RW, USER
from kmemd.mm.fault_parts import HugePages
from kmemd.mm.mm_types import VM_EXEC, VM_HUGETLB, VM_LOCKED, VM_READ, VM_WRITE, Mm, Vma
from kmemd.mm.units import PAGE_SHIFT

Rows = npt.NDArray[np.int64]
Vpns = npt.NDArray[np.int64]

FEW_VMAS = 256
"""So many mappings are made into one table, once."""


class VmaRows:
    """The tables of all address spaces. ``vmas`` are the mappings behind the rows of the last one asked for."""

    def __init__(self, huge: HugePages) -> None:
        self._huge = huge
        self._rows: dict[int, tuple[Mm, int, int, Rows]] = {}
        self.vmas: list[Vma] = []

    def of(self, mm: Mm, vpns: Vpns) -> Rows:
        """The table of mappings as the core reads it, made anew when something changed.

        Where there are many, only those that lie about the pages: a process at max_map_count has 65,530.
        """
        found = self._rows.get(mm.id)
        policy = self._huge.generation
        if len(mm.vmas) > FEW_VMAS:
            self.vmas = list(mm.overlapping(int(vpns.min()) << PAGE_SHIFT, int(vpns.max()) + 1 << PAGE_SHIFT))
            return self._make_rows(mm, self.vmas)
        if found is None or found[0] is not mm or found[1] != mm.changed or found[2] != policy:
            found = self._rows[mm.id] = (mm, mm.changed, policy, self._make_rows(mm, mm.vmas))
        self.vmas = mm.vmas
        return found[3]

    def forget(self, mm: Mm) -> None:
        """An address space ends."""
        self._rows.pop(mm.id, None)

    def _make_rows(self, mm: Mm, vmas: list[Vma]) -> Rows:
        rows = np.zeros((len(vmas), core.VMA_COLUMNS), dtype=np.int64)
        for row, vma in zip(rows, vmas, strict=True):
            row[:] = (
                vma.vpn,
                vma.end >> PAGE_SHIFT,
                self._row_flags(mm, vma),
                vma.anon_vma.id if vma.anon_vma is not None else 0,
                vma.pgoff - vma.vpn,
                prot_bits(vma.flags, cow=False) & ~NX,
            )
        return rows

    def _row_flags(self, mm: Mm, vma: Vma) -> int:
        flags = vma.flags & (VM_READ | VM_WRITE | VM_EXEC)
        kind = flags & VM_READ and core.ROW_READ
        kind |= flags & VM_WRITE and core.ROW_WRITE | core.ROW_READ
        kind |= flags & VM_EXEC and core.ROW_EXEC | core.ROW_READ
        if vma.is_anon and not vma.flags & VM_HUGETLB:
            kind |= core.ROW_FAST
            kind |= core.ROW_HUGE if self._huge.eligible(mm, vma) else 0
        return kind | (core.ROW_LOCKED if vma.flags & VM_LOCKED else 0)


def prot_bits(flags: int, *, cow: bool) -> int:
    """The protection of entries of a mapping (vm_page_prot); ``cow``: without the right to write."""
    if not flags & (VM_READ | VM_WRITE | VM_EXEC):
        return PROTNONE
    bits = PRESENT | USER
    if flags & VM_WRITE and not cow:
        bits |= RW
    return bits if flags & VM_EXEC else bits | NX
