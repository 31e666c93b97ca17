"""Device memory in address spaces: ``remap_pfn_range``, and the mappings of /dev/mem (mm/memory.c, drivers/char/mem.c).

The entries are special: no page is counted, resident or mapped by them, whatever lies there. A private writable
mapping is remapped whole or not at all, and its offset becomes the PFN, by which copies are told from the original.
Which memory types such mappings hold follows from them (arch/x86/mm/pat/memtype.c ``track_pfn_remap``). Left out:
entries of huge pages, caching bits in entries, the bytes of devices; what memory a PFN names is not looked after.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from kmemd.core.mmu import Mmu
from kmemd.core.pte import ACCESSED, NX, PFN_MASK, PFN_SHIFT, PRESENT, RW, SPECIAL, USER
from kmemd.errors import KernelError
from kmemd.mm.dump_stack import DumpStack
from kmemd.mm.filemap import File
from kmemd.mm.mm_types import (
    VM_ARCH_1,
    VM_DONTDUMP,
    VM_DONTEXPAND,
    VM_EXEC,
    VM_IO,
    VM_MAYWRITE,
    VM_PFNMAP,
    VM_SHARED,
    VM_WRITE,
    Mm,
    Vma,
)
from kmemd.mm.pgtable import PageTables
from kmemd.mm.resource import Resources
from kmemd.mm.signals import BUS_ADRERR, SIGBUS, Signal
from kmemd.mm.units import PAGE_SHIFT, PAGE_SIZE

VM_PAT = VM_ARCH_1
REMAPPED = VM_IO | VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP
BUG_NOT_EMPTY = "mm/memory.c:2402"
LOW_MEGABYTE = 256
"""Pages that /dev/mem lets anybody see."""


class PfnMap:
    """Puts page frames of devices into address spaces.

    ``phys_bits``: how wide physical addresses are; ``spaces()`` gives all address spaces.
    """

    def __init__(
        self,
        mmu: Mmu,
        tables: PageTables,
        resources: Resources,
        dump_stack: DumpStack,
        spaces: Callable[[], Iterable[Mm]],
        phys_bits: int,
    ) -> None:
        self._mmu = mmu
        self._tables = tables
        self._resources = resources
        self._dump_stack = dump_stack
        self._spaces = spaces
        self._phys_bits = phys_bits

    def remap_pfn_range(self, mm: Mm, vma: Vma, address: int, pfn: int, size: int) -> None:
        """Map page frames into a mapping. EINVAL, ENOMEM for tables; EFAULT and a bug report where pages are mapped.

        EINVAL: an address that is not aligned, a range that is not in the mapping, a part of a private writable one,
        page frames that no physical address reaches.
        """
        pages = -(-size // PAGE_SIZE)
        end = address + (pages << PAGE_SHIFT)
        self._check(vma, address, end, pfn)
        if self._in_use(mm, address >> PAGE_SHIFT, end >> PAGE_SHIFT):
            self._dump_stack.bug(BUG_NOT_EMPTY, ("remap_pfn_range_notrack", "remap_pfn_range"))
            raise KernelError(errno.EFAULT, f"pages are mapped in {address:#x}-{end:#x} already")
        slots = self._make_slots(mm, address >> PAGE_SHIFT, end >> PAGE_SHIFT)
        if vma.flags & (VM_SHARED | VM_MAYWRITE) == VM_MAYWRITE:
            vma.pgoff = pfn
        vma.flags |= REMAPPED
        if (address, end) == (vma.start, vma.end):
            vma.flags |= VM_PAT
        mm.changed += 1
        for place in slots:
            count = place.stop - place.start
            frames = np.arange(pfn, pfn + count, dtype=np.uint64) << np.uint64(PFN_SHIFT)
            self._mmu.words[place] = frames | np.uint64(_prot(vma.flags))
            pfn += count

    def _in_use(self, mm: Mm, first: int, last: int) -> bool:
        rows = self._mmu.extents(mm.id, first, last).tolist()
        return any(level or self._mmu.words[slot : slot + pages].any() for _, pages, slot, level in rows)

    def _make_slots(self, mm: Mm, first: int, last: int) -> list[slice]:
        """Where the entries of a range are, table by table, with the tables made. ENOMEM."""
        slots = []
        while first < last:
            end = min(last, (first >> self._mmu.bits) + 1 << self._mmu.bits)
            slot = self._tables.ensure(mm.id, first)
            slots.append(slice(slot, slot + end - first))
            first = end
        return slots

    def _check(self, vma: Vma, address: int, end: int, pfn: int) -> None:
        if address % PAGE_SIZE or not vma.start <= address < end <= vma.end:
            raise KernelError(
                errno.EINVAL, f"{address:#x}-{end:#x} is not made of pages of {vma.start:#x}-{vma.end:#x}"
            )
        if (pfn << PAGE_SHIFT) + end - address > 1 << self._phys_bits:
            raise KernelError(errno.EINVAL, f"pfn {pfn:#x} and on: physical addresses have {self._phys_bits} bits")
        private = vma.flags & (VM_SHARED | VM_MAYWRITE) == VM_MAYWRITE
        if private and (address, end) != (vma.start, vma.end):
            raise KernelError(errno.EINVAL, "a private writable mapping is remapped whole or not at all")

    def devmem_is_allowed(self, pfn: int, pages: int) -> bool:
        """Whether /dev/mem shows some page frames: not memory, but for the first MiB (CONFIG_STRICT_DEVMEM)."""
        start = max(pfn, LOW_MEGABYTE)
        last = (pfn + pages << PAGE_SHIFT) - 1
        return pfn + pages <= start or not self._resources.system_ram(start << PAGE_SHIFT, last)

    def mmap_mem(self, mm: Mm, vma: Vma) -> None:
        """A mapping of /dev/mem: its offset is the page frame. EINVAL beyond what exists, EPERM for memory."""
        if vma.pgoff + vma.pages > 1 << self._phys_bits - PAGE_SHIFT:
            raise KernelError(errno.EINVAL, f"physical addresses have {self._phys_bits} bits")
        if not self.devmem_is_allowed(vma.pgoff, vma.pages):
            raise KernelError(
                errno.EPERM, f"{vma.pgoff << PAGE_SHIFT:#x} and on is memory, which /dev/mem does not show"
            )
        self.remap_pfn_range(mm, vma, vma.start, vma.pgoff, vma.end - vma.start)

    def ranges(self) -> Iterator[tuple[int, int]]:
        """The physical ranges that mappings remapped as a whole hold, memory left out: bytes ``[start, end)``."""
        for mm in self._spaces():
            for vma in mm.vmas:
                if vma.flags & (VM_PFNMAP | VM_PAT) == VM_PFNMAP | VM_PAT:
                    start = self._first(mm, vma)
                    if start >= 0 and not self._resources.system_ram(start, start + vma.end - vma.start - 1):
                        yield start, start + vma.end - vma.start

    def _first(self, mm: Mm, vma: Vma) -> int:
        """The physical address that a mapping begins with, -1 when it is unknown (``get_pat_info``)."""
        slot = self._mmu.slot(mm.id, vma.vpn)
        entry = int(self._mmu.words[slot]) if slot >= 0 else 0
        if entry & PRESENT and entry & SPECIAL:
            return entry & PFN_MASK
        return vma.pgoff << PAGE_SHIFT if vma.flags & (VM_SHARED | VM_MAYWRITE) == VM_MAYWRITE else -1

    def check(self) -> None:
        """Entries of remapped mappings are special, or private copies."""
        for mm in self._spaces():
            for vma in mm.vmas:
                if vma.flags & VM_PFNMAP and vma.flags & VM_SHARED:
                    for _, pages, slot, _ in self._mmu.extents(mm.id, vma.vpn, vma.end >> PAGE_SHIFT).tolist():
                        words = self._mmu.words[slot : slot + pages]
                        assert ((words == 0) | (words & np.uint64(SPECIAL) != 0)).all(), f"{vma.start:#x} maps pages"


def _prot(flags: int) -> int:
    """The bits of an entry: a private one is not writable until it is copied."""
    bits = PRESENT | USER | ACCESSED | SPECIAL
    if flags & VM_WRITE and flags & VM_SHARED:
        bits |= RW
    return bits if flags & VM_EXEC else bits | NX


class DeviceFaults:
    """What a mapping of /dev/mem does on a fault: all entries are there from the start, so there is no page."""

    def fault(self, file: File, memory: object, task: object, mm: Mm, vma: Vma, vpn: int, write: bool) -> None:
        """SIGBUS."""
        raise Signal(SIGBUS, BUS_ADRERR, vpn << PAGE_SHIFT)

    def page_mkwrite(self, file: File, pfn: int) -> None:
        """Nothing to do: what a device has is not dirty."""

    def unused(self, file: File) -> None:
        """Nothing goes with the last mapping."""

    def remove(self, file: File, start: int, end: int) -> int:
        """A device has no pages to drop."""
        return 0
