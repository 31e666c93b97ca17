"""The kernel's address space: where the direct map, vmalloc, struct pages, text and modules lie.

x86_64 with 4-level page tables and i386 with HIGHMEM and without PAE (Documentation/x86/x86_64/mm.rst,
arch/x86/include/asm/pgtable_32_areas.h, arch/x86/mm/kaslr.c ``kernel_randomize_memory``,
arch/x86/boot/compressed/kaslr.c). With KASLR the bases are drawn once, at boot, from the generator that is
passed in, over Linux's ranges and at Linux's alignment. Left out: 5-level tables, KASAN shadow, user space.
"""

from __future__ import annotations

import errno
from random import Random

from kmemd.errors import KernelError
from kmemd.mm.units import GIB, MIB, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, TIB

X86_64 = "x86_64"
I386 = "i386"
STRUCT_PAGE_SIZE = {X86_64: 64, I386: 40}
"""Bytes of a ``struct page``."""

# x86_64, 4-level
PAGE_OFFSET_BASE = 0xFFFF_8880_0000_0000
PHYSMEM_SIZE = 64 * TIB
VMALLOC_BASE = 0xFFFF_C900_0000_0000
VMALLOC_SIZE = 32 * TIB
VMEMMAP_BASE = 0xFFFF_EA00_0000_0000
CPU_ENTRY_AREA_BASE = 0xFFFF_FE00_0000_0000
START_KERNEL_MAP = 0xFFFF_FFFF_8000_0000
PHYSICAL_START = 16 * MIB
PHYSICAL_ALIGN = 2 * MIB
KERNEL_IMAGE_SIZE = 512 * MIB
KERNEL_IMAGE_SIZE_KASLR = GIB
KERNEL_TEXT_SPAN = 32 * MIB
MODULES_END = 0xFFFF_FFFF_FF00_0000
PUD_SIZE = GIB
MEMORY_PHYSICAL_PADDING_TB = 0

# i386
PAGE_OFFSET_32 = 0xC000_0000
VMALLOC_OFFSET_32 = 8 * MIB
VMALLOC_RESERVE_32 = 128 * MIB
PKMAP_BASE_32 = 0xFF00_0000
VMALLOC_END_32 = PKMAP_BASE_32 - 2 * PAGE_SIZE
MAX_LOW_PFN_32 = (VMALLOC_END_32 - PAGE_OFFSET_32 - VMALLOC_RESERVE_32) >> PAGE_SHIFT
"""The end of the direct map on i386: what vmalloc, pkmap and the fixmap leave of 1 GiB (MAXMEM)."""


class Layout:
    """The kernel half of the address space of one booted machine. All bounds are byte addresses.

    ``arch`` is "x86_64" or "i386"; ``max_pfn`` the end of physical memory in page frames. ``kaslr`` is the
    generator that the bases are drawn from, or None for ``nokaslr``. i386 draws nothing but the text base.

    Invariants: ``vmalloc_start < vmalloc_end`` (exclusive); direct map, vmalloc and vmemmap do not overlap.
    """

    def __init__(self, arch: str, max_pfn: int, kaslr: Random | None = None) -> None:
        if arch not in (X86_64, I386):
            raise KernelError(errno.EINVAL, f"no such architecture: {arch}; x86_64 or i386")
        self.arch = arch
        self.max_pfn = max_pfn
        self.pointer_size = 8 if arch == X86_64 else 4
        self.struct_page_size = STRUCT_PAGE_SIZE[arch]
        self.kaslr = kaslr is not None
        if arch == X86_64:
            self._lay_out_64(kaslr)
        else:
            self._lay_out_32(kaslr)
        self.high_memory = self.page_offset + (self.max_low_pfn << PAGE_SHIFT)

    @property
    def kernel_offset(self) -> str:
        """How far KASLR moved the kernel, as a panic says it (arch/x86/kernel/setup.c ``dump_kernel_offset``)."""
        if not self.kaslr:
            return "disabled"
        base, modules = (
            (START_KERNEL_MAP, START_KERNEL_MAP + KERNEL_IMAGE_SIZE_KASLR)
            if self.arch == X86_64
            else (PAGE_OFFSET_32, self.vmalloc_start)
        )
        start = base + PHYSICAL_START
        return f"{self.text_base - start:#x} from {start:#x} (relocation range: {base:#x}-{modules - 1:#x})"

    def _lay_out_64(self, kaslr: Random | None) -> None:
        self.max_low_pfn = self.max_pfn
        self.page_offset, self.vmalloc_start, self.vmemmap_start = self._regions(kaslr)
        self.vmalloc_end = self.vmalloc_start + VMALLOC_SIZE - 1 & PAGE_MASK
        self.text_base = START_KERNEL_MAP + PHYSICAL_START
        self.modules_start = START_KERNEL_MAP + KERNEL_IMAGE_SIZE_KASLR
        self.modules_end = MODULES_END
        if kaslr is not None:
            room = KERNEL_IMAGE_SIZE_KASLR - PHYSICAL_START - KERNEL_TEXT_SPAN
            self.text_base += kaslr.randrange(room // PHYSICAL_ALIGN + 1) * PHYSICAL_ALIGN
            # get_module_load_offset(): one to 1024 pages, drawn at the first module
            offset = kaslr.randrange(1024) + 1
            self.modules_start = START_KERNEL_MAP + KERNEL_IMAGE_SIZE_KASLR + offset * PAGE_SIZE

    def _regions(self, kaslr: Random | None) -> tuple[int, int, int]:
        """Bases of the direct map, vmalloc and vmemmap (``kernel_randomize_memory``)."""
        if kaslr is None:
            return PAGE_OFFSET_BASE, VMALLOC_BASE, VMEMMAP_BASE
        physmem = -(-(self.max_pfn << PAGE_SHIFT) // TIB) + MEMORY_PHYSICAL_PADDING_TB
        physmem = min(physmem * TIB, PHYSMEM_SIZE)
        vmemmap = -(-((physmem >> PAGE_SHIFT) * self.struct_page_size) // TIB) * TIB
        sizes = (physmem, VMALLOC_SIZE, vmemmap)
        spare = CPU_ENTRY_AREA_BASE - PAGE_OFFSET_BASE - sum(sizes)
        address = PAGE_OFFSET_BASE
        bases: list[int] = []
        for index, size in enumerate(sizes):
            gap = kaslr.randrange(spare // (len(sizes) - index) + 1) & ~(PUD_SIZE - 1)
            address += gap
            bases.append(address)
            address = (address + size + 1 + PUD_SIZE - 1) & ~(PUD_SIZE - 1)
            spare -= gap
        return bases[0], bases[1], bases[2]

    def _lay_out_32(self, kaslr: Random | None) -> None:
        self.max_low_pfn = min(self.max_pfn, MAX_LOW_PFN_32)
        self.page_offset = PAGE_OFFSET_32
        self.vmalloc_start = PAGE_OFFSET_32 + (self.max_low_pfn << PAGE_SHIFT) + VMALLOC_OFFSET_32
        self.vmalloc_end = VMALLOC_END_32
        # flat memory map: the struct pages are the last thing that memblock took from low memory
        span = self.max_pfn * self.struct_page_size
        self.vmemmap_start = self.page_offset + ((self.max_low_pfn << PAGE_SHIFT) - span & PAGE_MASK)
        self.text_base = PAGE_OFFSET_32 + PHYSICAL_START
        if kaslr is not None:
            room = KERNEL_IMAGE_SIZE - PHYSICAL_START - KERNEL_TEXT_SPAN
            self.text_base += kaslr.randrange(room // PHYSICAL_ALIGN + 1) * PHYSICAL_ALIGN
        self.modules_start, self.modules_end = self.vmalloc_start, self.vmalloc_end

    @property
    def vmalloc_total(self) -> int:
        """Bytes of the vmalloc area as /proc/meminfo counts them (VMALLOC_TOTAL, kB cut off)."""
        end = self.vmalloc_start + VMALLOC_SIZE - 1 if self.arch == X86_64 else self.vmalloc_end
        return (end - self.vmalloc_start) >> 10 << 10

    def page_address(self, pfn: int) -> int:
        """The direct-map address of a page frame, or 0 for one in high memory (it has none of its own)."""
        if pfn >= self.max_low_pfn:
            return 0
        return self.page_offset + (pfn << PAGE_SHIFT)

    def virt_addr_valid(self, address: int) -> bool:
        """Whether ``address`` lies in the direct map of existing memory."""
        return self.page_offset <= address < self.high_memory

    def virt_to_pfn(self, address: int) -> int:
        """The page frame behind a direct-map address. EFAULT for any other address."""
        if not self.virt_addr_valid(address):
            raise KernelError(errno.EFAULT, f"{address:#x} is not in the direct map")
        return (address - self.page_offset) >> PAGE_SHIFT

    def is_vmalloc_addr(self, address: int) -> bool:
        """Whether ``address`` lies in the vmalloc area."""
        return self.vmalloc_start <= address < self.vmalloc_end

    def page_struct(self, pfn: int) -> int:
        """The address of a frame's ``struct page``."""
        return self.vmemmap_start + pfn * self.struct_page_size

    def virt_to_page(self, address: int) -> int:
        """Where ``struct page`` of any address would be: for one that is neither of the direct map nor of the kernel's
        image, somewhere (``virt_to_page`` without checks).
        """
        mask = (1 << 8 * self.pointer_size) - 1
        image = self.arch == X86_64 and address >= START_KERNEL_MAP
        base = self.text_base - PHYSICAL_START if image else self.page_offset
        return self.page_struct((address - base & mask) >> PAGE_SHIFT) & mask

    def format_address(self, address: int) -> str:
        """``%px``: the address in hexadecimal, as wide as a pointer."""
        return f"{address:0{self.pointer_size * 2}x}"
