"""Lives of address spaces: made, copied by fork, ended (kernel/fork.c ``mm_init`` and ``dup_mmap``, mm/mmap.c
``exit_mmap``).

Left out: sharing one address space between threads or by vfork.
"""

from __future__ import annotations

import errno
import heapq
from collections.abc import Callable

from kmemd.core.mmu import MAX_MM
from kmemd.errors import KernelError
from kmemd.mm.memory import Memory
from kmemd.mm.mempolicy import mpol_dup
from kmemd.mm.mm_types import VM_ACCOUNT, VM_DONTCOPY, VM_LOCKED_MASK, VM_WIPEONFORK, Mm, Vma
from kmemd.mm.mmap import Mmap
from kmemd.mm.units import PAGE_SHIFT

COPIED = (
    *("mmap_base", "task_size", "legacy", "legacy_base"),
    *("total_vm", "data_vm", "exec_vm", "stack_vm", "def_flags"),
    *(
        "start_code",
        "end_code",
        "start_data",
        "end_data",
        "start_brk",
        "brk",
        "start_stack",
        "arg_start",
        "env_end",
        "exe",
    ),
)
INHERITED_DEF_FLAGS = 0x60000000
"""MMF flags and def_flags that fork keeps: huge pages or none by default, not mlockall's."""


class MmStructs:
    """Makes and ends the address spaces of one machine. ``ended(mm)`` tells khugepaged.

    Invariants: a number is that of one living address space, or free.
    """

    def __init__(self, memory: Memory, settings: Mmap, ended: Callable[[Mm], None]) -> None:
        self._memory = memory
        self._ended = ended
        self._settings = settings
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

    def dup(self, parent: Mm) -> Mm:
        """A child's address space: the same mappings, and private pages shared until somebody writes. ENOMEM."""
        child = self.alloc()
        for name in COPIED:
            setattr(child, name, getattr(parent, name))
        child.def_flags &= INHERITED_DEF_FLAGS
        child.policy = mpol_dup(parent.policy)
        self._memory.lru.drain_local()
        try:
            for vma in parent.vmas:
                self._dup_vma(child, parent, vma)
        except KernelError:
            self.exit(child)
            raise
        finally:
            self._memory.mmu.flush_mm(parent.id)
        child.hiwater_rss = self._memory.rss(child)
        child.hiwater_vm = child.total_vm
        return child

    def _dup_vma(self, child: Mm, parent: Mm, vma: Vma) -> None:
        if vma.flags & VM_DONTCOPY:
            child.total_vm -= vma.pages
            return
        if vma.flags & VM_ACCOUNT and not self._settings.enough_memory(vma.pages, parent.total_vm, root=True):
            raise KernelError(errno.ENOMEM, "overcommit: the child's memory cannot be promised")
        flags = vma.flags & ~VM_LOCKED_MASK
        new = Vma(vma.start, vma.end, flags, vma.pgoff, vma.file, None, mpol_dup(vma.policy), vma.name)
        child.vmas.append(new)
        child.changed += 1
        if not vma.flags & VM_WIPEONFORK:
            self._memory.rmap.fork(child, new, vma)
        self._memory.rmap.link(child, new)
        if not vma.flags & VM_WIPEONFORK:
            self._memory.copy_range(child, new, parent, vma)

    def exit(self, mm: Mm) -> None:
        """End an address space with all that is in it (exit_mmap)."""
        memory = self._memory
        memory.mmu.sync_rss(mm.id)
        if mm.vmas:
            memory.zap_range(mm, mm.vmas[0].start, mm.vmas[-1].end)
        for vma in mm.vmas:
            if vma.flags & VM_ACCOUNT:
                self._settings.unaccount(vma.pages)
            memory.rmap.unlink(mm, vma)
        mm.vmas = []
        mm.changed += 1
        memory.tables.free_range(mm.id, 0, 1 << 64 - PAGE_SHIFT)
        memory.tables.free_pgd(mm.id)
        memory.forget(mm)
        self._ended(mm)
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
