"""ioremap: device memory in the vmalloc area (arch/x86/mm/ioremap.c).

The range must be no memory that the kernel uses, its memory type must agree with other mappings of it, and a mapping
of more than one device's registers is warned of. Left out: pages of memory that are reserved, encryption, mmiotrace.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from kmemd.errors import KernelError
from kmemd.mm import memtype as m
from kmemd.mm.dump_stack import DumpStack
from kmemd.mm.printk import KERN_ERR, KERN_WARNING, Printk
from kmemd.mm.resource import Resources
from kmemd.mm.units import PAGE_MASK, PAGE_SIZE
from kmemd.mm.vmalloc import VM_IOREMAP, Vmalloc

FUNCTIONS = {
    "ioremap": m.UC_MINUS,
    "ioremap_uc": m.UC,
    "ioremap_wc": m.WC,
    "ioremap_wt": m.WT,
    "ioremap_cache": m.WB,
}
"""The entry points and the memory type that each asks for."""
CALLER = "__ioremap_caller"


class Ioremap:
    """Maps device memory for drivers. ``phys_bits``: how wide physical addresses are.

    Invariants: every area of ioremap that is tracked has its range reserved in ``memtypes``.
    """

    def __init__(
        self,
        vmalloc: Vmalloc,
        resources: Resources,
        memtypes: m.Memtypes,
        printk: Printk,
        dump_stack: DumpStack,
        frame_text: Callable[[str, str], str],
        show_pointer: Callable[[int], str],
        phys_bits: int,
    ) -> None:
        """``frame_text`` writes a caller with what it called, ``show_pointer`` is ``%p``."""
        self._vmalloc = vmalloc
        self._resources = resources
        self._memtypes = memtypes
        self._printk = printk
        self._dump_stack = dump_stack
        self._frame_text = frame_text
        self._show_pointer = show_pointer
        self._phys_bits = phys_bits

    def ioremap(self, phys: int, size: int, function: str = "ioremap") -> int:
        """The address of device memory, with the offset of ``phys`` in its page kept.

        EINVAL for memory, for no bytes and for addresses that do not exist; EBUSY for a memory type that other mappings
        of the range rule out; ENOMEM.
        """
        self._check_range(phys, size)
        start, end = phys & PAGE_MASK, phys + size + PAGE_SIZE - 1 & PAGE_MASK
        wanted = FUNCTIONS[function]
        try:
            got = self._memtypes.reserve(start, end, wanted)
        except KernelError:
            self._printk.log(KERN_ERR, f"ioremap memtype_reserve failed {-errno.EBUSY}")
            raise
        try:
            if not self._memtypes.allowed(start, end, wanted, got):
                text = f"ioremap error for {start:#x}-{end:#x}, requested {wanted:#x}, got {got:#x}"
                self._printk.log(KERN_ERR, text)
                reason = f"{start:#x}-{end - 1:#x} is mapped {m.NAMES[got]}, and {function} asks for {m.NAMES[wanted]}"
                raise KernelError(errno.EBUSY, reason)
            address = self._vmalloc.ioremap(phys, size, function=function)
        except KernelError:
            self._memtypes.free(start, end)
            raise
        if not self._resources.map_sanity_check(phys, size):
            area = self._vmalloc.find_vm_area(address & PAGE_MASK)
            caller = self._frame_text(*area.caller) if area is not None and area.caller[0] else "0x0"
            self._printk.log(KERN_WARNING, f"caller {caller} mapping multiple BARs")
        return address

    def _check_range(self, phys: int, size: int) -> None:
        last = phys + size - 1
        if size <= 0 or phys < 0 or last >> 64:
            raise KernelError(errno.EINVAL, f"ioremap of {size} bytes at {phys:#x}")
        if phys >> self._phys_bits:
            self._printk.log(KERN_WARNING, f"ioremap: invalid physical address {phys:x}")
            self._warn_once("invalid", "")
            raise KernelError(errno.EINVAL, f"{phys:#x} is no physical address: they have {self._phys_bits} bits")
        if self._resources.system_ram(phys, last):
            self._warn_once("ram", f"ioremap on RAM at {self._resources.phys(phys)} - {self._resources.phys(last)}")
            raise KernelError(errno.EINVAL, f"{phys:#x}-{last:#x} is memory")

    def _warn_once(self, kind: str, text: str) -> None:
        where = "arch/x86/mm/ioremap.c:" + ("211" if text else "201")
        self._dump_stack.warn_once(f"ioremap {kind}", (CALLER,), text, where)

    def iounmap(self, address: int) -> None:
        """Give back what ``ioremap`` returned. EFAULT, and the kernel's report, when there is no area."""
        area = self._vmalloc.find_vm_area(address & PAGE_MASK)
        if area is None:
            self._printk.log(KERN_ERR, f"iounmap: bad address {self._show_pointer(address & PAGE_MASK)}")
            self._dump_stack(("iounmap",))
            raise KernelError(errno.EFAULT, f"no area of ioremap begins at {address & PAGE_MASK:#x}")
        if area.flags & VM_IOREMAP and area.phys is not None:
            self._memtypes.free(area.phys, area.phys + area.size - PAGE_SIZE)
        self._vmalloc.iounmap(address)

    def adopt(self) -> None:
        """Boot's mappings are there: reserve their ranges, as their drivers did.

        Tables of the firmware, which are outside of any device, were mapped cached, registers were not.
        """
        for area in self._vmalloc.areas():
            if area.flags & VM_IOREMAP and area.phys is not None:
                cached = area.caller[0].startswith("acpi_os_map")
                self._memtypes.reserve(
                    area.phys, area.phys + area.size - PAGE_SIZE, m.WB if cached else m.UC_MINUS, boot=True
                )

    def check(self) -> None:
        """Every area has its range reserved."""
        self._memtypes.check()
        if not self._memtypes.enabled:
            return
        held = sorted((one.start, one.end) for one in self._memtypes.ranges)
        for area in self._vmalloc.areas():
            if area.flags & VM_IOREMAP and area.phys is not None:
                place = (area.phys, area.phys + area.size - PAGE_SIZE)
                assert place in held or not self._memtypes.tracks(*place), f"no memory type for {area.phys:#x}"
