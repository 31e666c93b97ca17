"""Lives of address spaces: made, copied by fork, ended (kernel/fork.c ``mm_init`` and ``dup_mmap``, mm/mmap.c
``exit_mmap``).

Left out: sharing one address space between threads or by vfork.
"""

from __future__ import annotations

import errno
import heapq

from kmemd.core import trace_ids as ev
from kmemd.core.page_tables import MAX_MM
from kmemd.errors import KernelError
from kmemd.mm import mm_types as mt
from kmemd.mm.huge_pmd import TransparentHuge
from kmemd.mm.khugepaged import KhugepagedSlots
from kmemd.mm.memory import Memory
from kmemd.mm.mm_types import Mm, Vma
from kmemd.mm.mmap_region import UNMAP_BYTES, AddressSpaces, Caller, huge_unit, mm_of
from kmemd.mm.mpol import mpol_dup
from kmemd.mm.units import PAGE_SHIFT
from kmemd.steps import Steps

COPIED = (
    *("mmap_base", "task_size", "legacy", "legacy_base", "exe"),
    *("start_code", "end_code", "start_data", "end_data", "start_brk", "brk"),
    *("start_stack", "arg_start", "arg_end", "env_start", "env_end", "platform", "random"),
)
VM_INIT_DEF_MASK = mt.VM_NOHUGEPAGE
"""What of ``def_flags`` a child keeps: not what mlockall said."""


class MmStructs:
    """Makes and ends the address spaces of one machine.

    Invariants: a number is that of one living address space, or free.
    """

    def __init__(
        self,
        memory: Memory,
        spaces: AddressSpaces,
        khugepaged: KhugepagedSlots,
        huge: TransparentHuge,
    ) -> None:
        self._memory = memory
        self._spaces = spaces
        self._khugepaged = khugepaged
        self._huge = huge
        self._free: list[int] = []
        self._next = 1
        self.living: dict[int, Mm] = {}

    def alloc(self) -> Mm:
        """An empty address space with its top page table. ENOMEM, EAGAIN."""
        number = heapq.heappop(self._free) if self._free else self._next
        if number >= MAX_MM:
            raise KernelError(errno.EAGAIN, f"all {MAX_MM} address spaces are in use")
        self._next = max(self._next, number + 1)
        try:
            self._memory.tables.new_pgd(number)
        except KernelError:
            heapq.heappush(self._free, number)
            raise
        mm = self.living[number] = Mm(number)
        return mm

    def dup(self, task: Caller) -> Steps[Mm]:
        """A child's address space: the mappings of ``task``, and private pages shared until somebody writes. ENOMEM.

        In slices: the child has what was copied so far, and the parent no translation that allows more than its tables.
        """
        parent, rmap = mm_of(task), self._memory.rmap
        child = self.alloc()
        for name in COPIED:
            setattr(child, name, getattr(parent, name))
        child.def_flags = parent.def_flags & VM_INIT_DEF_MASK
        child.policy = mpol_dup(parent.policy)
        self._khugepaged.fork(child, parent)
        self._memory.lru.drain_local()
        try:
            rmap.reserve_fork([vma for vma in parent.vmas if not vma.flags & mt.VM_DONTCOPY])
            for vma in parent.vmas:
                yield from self._dup_vma(task, child, vma)
        except KernelError:
            self.exit(child)
            raise
        finally:
            rmap.forked()
            self._memory.mmu.flush_mm(parent.id)
        child.hiwater_rss = self._memory.zap.counters.rss(child)
        child.hiwater_vm = child.total_vm
        return child

    def _dup_vma(self, task: Caller, child: Mm, vma: Vma) -> Steps[None]:
        """One mapping of the child. ENOMEM."""
        parent, rmap = mm_of(task), self._memory.rmap
        if vma.flags & mt.VM_DONTCOPY:
            return
        if vma.flags & mt.VM_ACCOUNT:
            self._spaces.charge(task, vma.pages)
        flags = vma.flags & ~mt.VM_LOCKED_MASK
        new = Vma(vma.start, vma.end, flags, vma.pgoff, vma.file, None, mpol_dup(vma.policy), vma.name)
        child.vmas.append(new)
        child.changed += 1
        self._spaces.account(child, vma.flags, vma.pages)
        wiped = vma.flags & mt.VM_WIPEONFORK
        if not wiped:
            rmap.fork(child, new, vma)
        rmap.link(child, new)
        if not wiped:
            for _ in self._memory.copy_range.steps(child, new, parent, vma):
                self._memory.mmu.flush_mm(parent.id)
                yield

    def empty(self, mm: Mm) -> Steps[None]:
        """Take the pages of a large address space that is about to end out of it, a part between two yields."""
        counts = self._memory.mmu
        if self._memory.zap.counters.rss(mm) + int(counts.rss[mm.id * 4 + mt.MM_SWAPENTS]) <= UNMAP_BYTES >> PAGE_SHIFT:
            return
        for vma in list(mm.vmas):
            unit = max(huge_unit(vma.file), UNMAP_BYTES)
            for start in range(vma.start, vma.end, unit):
                end = min(start + unit, vma.end)
                self._memory.zap.zap_range(mm, start, end)
                self._memory.tables.free_range(mm.id, start >> PAGE_SHIFT, end >> PAGE_SHIFT)
                yield

    def exit(self, mm: Mm) -> None:
        """End an address space with all that is in it (exit_mmap)."""
        memory = self._memory
        memory.mmu.sync_rss(mm.id)
        if mm.vmas:
            memory.zap.zap_range(mm, mm.vmas[0].start, mm.vmas[-1].end)
        self._spaces.settings.unaccount(sum(vma.pages for vma in mm.vmas if vma.flags & mt.VM_ACCOUNT))
        memory.rmap.unlink(mm.vmas)
        memory.zap.counters.trace.emit(ev.EXIT_MMAP, mm.id, mm.id)
        mm.vmas = []
        mm.changed += 1
        memory.tables.free_range(mm.id, 0, 1 << 64 - PAGE_SHIFT)
        memory.tables.free_pgd(mm.id)
        memory.rows.forget(mm)
        self._huge.exit_mm(mm)
        del self.living[mm.id]
        heapq.heappush(self._free, mm.id)

    def check(self) -> None:
        """Each address space agrees with its page tables: see ``mm_check``."""
        for mm in self.living.values():
            ends = [0, *(vma.end for vma in mm.vmas)]
            for vma, before in zip(mm.vmas, ends, strict=False):
                assert before <= vma.start < vma.end, f"mm {mm.id}: mappings overlap at {vma.start:#x}"
            total = sum(vma.pages for vma in mm.vmas)
            assert mm.total_vm == total, f"mm {mm.id}: total_vm is {mm.total_vm}, mappings have {total} pages"
