"""All that drivers use of the memory manager, wired: the resource tree, memory types, ioremap, devices, DMA."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from kmemd.core.context import Context
from kmemd.mm.cma import Cma
from kmemd.mm.descriptors import Descriptors
from kmemd.mm.device import Devices
from kmemd.mm.dma import Dma
from kmemd.mm.dmapool import DmaPools
from kmemd.mm.dump_stack import DumpStack
from kmemd.mm.firmware import Resource
from kmemd.mm.ioremap import Ioremap
from kmemd.mm.layout import X86_64, Layout
from kmemd.mm.memtype import Memtypes
from kmemd.mm.page_alloc import PageAllocator
from kmemd.mm.printk import Printk
from kmemd.mm.resource import Resources
from kmemd.mm.stackdepot import StackDepot
from kmemd.mm.swiotlb import Swiotlb
from kmemd.mm.vmalloc import Vmalloc

PHYS_BITS = {True: 40, False: 32}
"""Width of a physical address: on the captured x86_64 machines, and on i386 without PAE."""


class DeviceMemory:
    """The parts by name. ``swiotlb``: start and size of the bounce buffers in bytes, (0, 0) for none.

    ``mapped()``: the physical ranges that address spaces map (``PfnMap.ranges``).
    """

    def __init__(
        self,
        iomem: Sequence[Resource],
        layout: Layout,
        context: Context,
        depot: StackDepot,
        printk: Printk,
        dump_stack: DumpStack,
        page_alloc: PageAllocator,
        vmalloc: Vmalloc,
        descriptors: Descriptors,
        frame_text: Callable[[str, str], str],
        show_pointer: Callable[[int], str],
        *,
        pat: bool,
        cpus: int,
        swiotlb: tuple[int, int] = (0, 0),
        zero_ns: int = 0,
        mapped: Callable[[], Iterable[tuple[int, int]]] = tuple,
        cma: Cma | None = None,
    ) -> None:
        wide = layout.arch == X86_64
        bits = self.phys_bits = max(PHYS_BITS[wide], *(resource.last.bit_length() for resource in iomem), 0)
        self.resources = Resources(iomem, (1 << bits) - 1, printk, 2 * layout.pointer_size, descriptors)
        self.memtypes = Memtypes(context, printk, enabled=pat, descriptors=descriptors, mapped=mapped)
        self.mapper = Ioremap(
            vmalloc, self.resources, self.memtypes, printk, dump_stack, frame_text, show_pointer, bits
        )
        self.devices = Devices(self.resources)
        self.swiotlb = Swiotlb(context, *swiotlb, cpus)
        self.dma = Dma(page_alloc, layout, context, depot, printk, dump_stack, self.swiotlb, zero_ns, cma)
        self.pools = DmaPools(self.dma, printk, descriptors, layout.pointer_size)

    def check(self) -> None:
        """Every part agrees with the others."""
        self.mapper.check()
        self.devices.check()
        self.dma.check()
        self.pools.check()
