"""One process' memory as others read and write it (mm/memory.c ``access_remote_vm``, mm/gup.c ``check_vma_flags``).

Pages are faulted in on the way, and what the owner may not do is done all the same (FOLL_FORCE): private mappings are
written however they are protected. Left out: device memory that only ``vm_ops->access`` reaches.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kmemd.core.mmu import READ, WRITE
from kmemd.core.pages import PG_DIRTY
from kmemd.core.pte import PFN_MASK, PFN_SHIFT, PRESENT, PROTNONE, RW
from kmemd.errors import KernelError
from kmemd.mm.contents import Contents
from kmemd.mm.memory import Memory
from kmemd.mm.mm_types import (
    VM_HUGETLB,
    VM_IO,
    VM_MAYREAD,
    VM_MAYWRITE,
    VM_PFNMAP,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
    Mm,
    Vma,
)
from kmemd.mm.signals import Signal
from kmemd.mm.units import PAGE_SHIFT, PAGE_SIZE

HERE = PRESENT | PROTNONE


class RemoteVm:
    """Access to the memory of any process."""

    def __init__(self, memory: Memory, contents: Contents) -> None:
        self._memory = memory
        self._contents = contents

    def read(self, task: Any, address: int, size: int) -> bytes:
        """Up to ``size`` bytes from an address on, as far as there is memory that may be looked at."""
        parts = []
        while size > 0:
            pfn = self._page(task, address, write=False)
            if pfn is None:
                break
            offset = address & (PAGE_SIZE - 1)
            parts.append(self._contents.read(pfn, offset, min(size, PAGE_SIZE - offset)))
            address += len(parts[-1])
            size -= len(parts[-1])
        return b"".join(parts)

    def write(self, task: Any, address: int, data: bytes) -> int:
        """Bytes to an address; how many found memory that may be written."""
        done = 0
        while done < len(data):
            at = address + done
            pfn = self._page(task, at, write=True)
            if pfn is None:
                break
            offset = at & (PAGE_SIZE - 1)
            part = data[done : done + PAGE_SIZE - offset]
            self._contents.write(pfn, offset, part)
            self._memory.pages.flags[self._memory.rmap.head(pfn)] |= np.uint32(1 << PG_DIRTY)
            done += len(part)
        return done

    def _page(self, task: Any, address: int, *, write: bool) -> int | None:
        """The page behind an address (``get_user_pages_remote``), None for an address that cannot be had."""
        mm: Mm | None = task.mm
        vma = mm.find(address) if mm is not None else None
        if mm is None or vma is None or not _allowed(vma, write=write):
            return None
        vpn = address >> PAGE_SHIFT
        pfn = self._present(mm, vpn, write=write)
        if pfn is None:
            self._fault_in(task, mm, vma, vpn, write=write)
            pfn = self._present(mm, vpn, write=False)
        return pfn

    def _present(self, mm: Mm, vpn: int, *, write: bool) -> int | None:
        mmu = self._memory.mmu
        slot, level = mmu.leaf(mm.id, vpn)
        inside: int = vpn & (1 << mmu.bits * level) - 1
        entry = int(mmu.words[slot]) if slot >= 0 else 0
        if not entry & HERE or (write and not entry & RW):
            return None
        return ((entry & PFN_MASK) >> PFN_SHIFT) + inside

    def _fault_in(self, task: Any, mm: Mm, vma: Vma, vpn: int, *, write: bool) -> None:
        """Have the page mapped as the owner's access would; what protection forbids it is passed over."""
        forced = not vma.flags & (VM_WRITE if write else VM_READ | VM_WRITE)
        try:
            if not forced:
                self._memory.access(task, np.array([vpn], dtype=np.int64), WRITE if write else READ)
            elif write:
                self._force_write(task, mm, vma, vpn)
        except (Signal, KernelError):
            return

    def _force_write(self, task: Any, mm: Mm, vma: Vma, vpn: int) -> None:
        """Give the task its own copy of a page that it may not write to; the entry stays read-only."""
        if vma.flags & VM_READ and self._present(mm, vpn, write=False) is None:
            self._memory.access(task, np.array([vpn], dtype=np.int64), READ)
        if self._present(mm, vpn, write=False) is None:
            return
        self._memory.do_wp_page(task, mm, vma, vpn)
        slot, _ = self._memory.mmu.leaf(mm.id, vpn)
        self._memory.mmu.words[slot] &= np.uint64(~RW & (1 << 64) - 1)
        self._memory.mmu.flush_range(mm.id, vpn, vpn + 1)


def _allowed(vma: Vma, *, write: bool) -> bool:
    """``check_vma_flags`` with FOLL_FORCE."""
    if vma.flags & (VM_IO | VM_PFNMAP):
        return False
    if not write:
        return bool(vma.flags & VM_READ or vma.flags & VM_MAYREAD)
    if vma.flags & VM_WRITE:
        return True
    return bool(vma.flags & VM_MAYWRITE) and not vma.flags & (VM_SHARED | VM_HUGETLB)
