"""Memory that devices reach: coherent blocks, and mappings of pages for one transfer (kernel/dma/{direct,mapping}.c).

A device says with its masks which bus addresses it can form; bus addresses are physical ones. Coherent memory comes
from the zone that the mask suggests, and is tried again in the next lower one when it lies too high. A page that a
device cannot reach is bounced through the software IO TLB where there is one. Blocks of more than a page come from the
contiguous area (cma=) where there is one. Left out: IOMMUs, atomic pools, memory encryption, scatter lists and the
bytes themselves; coherent memory of i386 is always low.
"""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import dataclass
from typing import NoReturn

from kmemd.core.context import Context
from kmemd.core.mmzone import MAX_ORDER
from kmemd.errors import KernelError
from kmemd.mm import gfp as g
from kmemd.mm.cma import Cma
from kmemd.mm.device import Device
from kmemd.mm.dump_stack import DumpStack
from kmemd.mm.layout import X86_64, Layout
from kmemd.mm.page_alloc import PageAllocator
from kmemd.mm.printk import KERN_WARNING, Printk
from kmemd.mm.stackdepot import StackDepot
from kmemd.mm.swiotlb import Swiotlb
from kmemd.mm.units import PAGE_SHIFT, PAGE_SIZE

ZONE_DMA_BITS = 24
FRAMES = ("__dma_direct_alloc_pages", "dma_direct_alloc", "dma_alloc_attrs")
OVERFLOW_AT = {"DMA": "kernel/dma/direct.h:103", "swiotlb": "kernel/dma/swiotlb.c:949"}
OVERFLOW_FRAMES = {"DMA": ("dma_map_page_attrs",), "swiotlb": ("swiotlb_map", "dma_map_page_attrs")}
TOO_LARGE_AT = "mm/page_alloc.c:5634"


def dma_bit_mask(bits: int) -> int:
    """``DMA_BIT_MASK``."""
    return (1 << bits) - 1


@dataclass(frozen=True)
class Block:
    """One block of coherent memory: its kernel address, its bus address, its pages, and the bytes asked for."""

    device: Device
    address: int
    dma: int
    pfn: int
    order: int
    size: int
    contiguous: int = 0
    """Pages taken of the contiguous area, 0: it is a block of the page allocator."""

    @property
    def end_pfn(self) -> int:
        """One past its last page."""
        return self.pfn + (self.contiguous or 1 << self.order)


@dataclass(frozen=True)
class Mapping:
    """One page mapped for a transfer: the bus address, what the page's own is, and the bytes."""

    device: Device
    dma: int
    phys: int
    size: int

    @property
    def bounced(self) -> bool:
        """Whether the transfer goes through a bounce buffer."""
        return self.dma != self.phys


class Dma:
    """The direct mapping operations of all devices.

    Invariants: blocks do not overlap; a device's ``coherent`` bytes are those of its blocks.
    """

    def __init__(
        self,
        page_alloc: PageAllocator,
        layout: Layout,
        context: Context,
        depot: StackDepot,
        printk: Printk,
        dump_stack: DumpStack,
        swiotlb: Swiotlb,
        zero_ns: int = 0,
        cma: Cma | None = None,
    ) -> None:
        """``zero_ns`` is what clearing a page costs."""
        self._cma = cma
        self._page_alloc = page_alloc
        self._layout = layout
        self._context = context
        self._depot = depot
        self._printk = printk
        self._dump_stack = dump_stack
        self._zero_ns = zero_ns
        self.swiotlb = swiotlb
        self.blocks: dict[int, Block] = {}
        self.mappings: list[Mapping] = []

    # -- masks -----------------------------------------------------------------------------------------------

    def supported(self, mask: int) -> bool:
        """Whether a device with this mask can work here (``dma_direct_supported``)."""
        if mask >= dma_bit_mask(32):
            return True
        return mask >= min(self._layout.max_pfn - 1 << PAGE_SHIFT, dma_bit_mask(ZONE_DMA_BITS))

    def set_mask(self, device: Device, mask: int, *, streaming: bool = True, coherent: bool = False) -> None:
        """Say which bus addresses a device can form. EIO for fewer than the lowest zone needs."""
        if not self.supported(mask):
            raise KernelError(errno.EIO, f"{device.name}: a mask of {mask:#x} does not reach zone DMA")
        if streaming:
            device.dma_mask = mask
        if coherent:
            device.coherent_dma_mask = mask

    # -- coherent memory -------------------------------------------------------------------------------------

    def alloc_coherent(self, device: Device, size: int, gfp: int = g.GFP_KERNEL) -> Block:
        """Memory that a device and the kernel both see. ENOMEM; EINVAL for no bytes."""
        if size <= 0:
            raise KernelError(errno.EINVAL, f"dma_alloc_coherent of {size} bytes")
        pages = -(-size // PAGE_SIZE)
        order = (pages - 1).bit_length()
        found = self._from_area(device, pages, order, gfp)
        if found is not None:
            return self._add(
                Block(device, self._layout.page_address(found), found << PAGE_SHIFT, found, order, size, pages)
            )
        if order >= MAX_ORDER:
            if not gfp & g.F.NOWARN:
                self._warn_once("order", TOO_LARGE_AT, ("__alloc_pages", *FRAMES))
            raise KernelError(errno.ENOMEM, f"{size} bytes are more than a block of order {MAX_ORDER - 1}")
        gfp &= ~(g.F.DMA | g.F.DMA32 | g.F.HIGHMEM | g.F.ZERO)
        pfn = self._alloc_pages(device, pages << PAGE_SHIFT, order, gfp)
        return self._add(Block(device, self._layout.page_address(pfn), pfn << PAGE_SHIFT, pfn, order, size))

    def _add(self, block: Block) -> Block:
        self._context.charge(self._zero_ns * -(-block.size // PAGE_SIZE))
        self.blocks[block.address] = block
        block.device.coherent_bytes += block.size
        return block

    def _from_area(self, device: Device, pages: int, order: int, gfp: int) -> int | None:
        """A run of the contiguous area, where there is one and the device reaches it (dma_alloc_contiguous)."""
        if self._cma is None or not self._cma.areas or pages < 2 or not gfp & g.F.DIRECT_RECLAIM:
            return None
        pfn = self._cma.alloc(self._cma.areas[0], pages, order)
        if pfn is not None and (pfn + pages << PAGE_SHIFT) - 1 > device.coherent_dma_mask:
            self._cma.release(pfn, pages)
            return None
        return pfn

    def _alloc_pages(self, device: Device, size: int, order: int, gfp: int) -> int:
        """A block that the device reaches, from the zone its mask suggests or a lower one. ENOMEM."""
        limit = device.coherent_dma_mask
        if limit <= dma_bit_mask(ZONE_DMA_BITS):
            gfp |= g.F.DMA
        elif limit <= dma_bit_mask(32):
            gfp |= g.F.DMA32
        while True:
            self._context.stack = self._depot.extend(self._context.site, FRAMES)
            pfn = self._page_alloc.alloc_pages(gfp, order, device.nid)
            if (pfn << PAGE_SHIFT) + size - 1 <= limit:
                return pfn
            self._page_alloc.free_pages(pfn, order)
            if self._layout.arch == X86_64 and limit < dma_bit_mask(64) and not gfp & (g.F.DMA32 | g.F.DMA):
                gfp |= g.F.DMA32
            elif not gfp & g.F.DMA:
                gfp = gfp & ~g.F.DMA32 | g.F.DMA
            else:
                raise KernelError(errno.ENOMEM, f"{device.name}: no memory below its mask {limit:#x}")

    def free_coherent(self, address: int) -> Block:
        """Give a block of coherent memory back. EINVAL when none begins there."""
        block = self.blocks.pop(address, None)
        if block is None:
            raise KernelError(errno.EINVAL, f"no coherent memory begins at {address:#x}")
        block.device.coherent_bytes -= block.size
        if block.contiguous and self._cma is not None:
            self._cma.release(block.pfn, block.contiguous)
        else:
            self._page_alloc.free_pages(block.pfn, block.order)
        return block

    # -- mappings for one transfer ---------------------------------------------------------------------------

    def map_page(self, device: Device, pfn: int, offset: int, size: int) -> Mapping:
        """The bus address of bytes of a page. EIO when the device does not reach it and there is no bounce buffer."""
        phys = (pfn << PAGE_SHIFT) + offset
        if not 0 <= pfn < self._layout.max_pfn or size <= 0 or phys + size > self._layout.max_pfn << PAGE_SHIFT:
            raise KernelError(errno.EINVAL, f"{size} bytes from {phys:#x} are not memory")
        dma = phys
        if phys + size - 1 > device.dma_mask:
            dma = self._bounce(device, phys, size)
        mapping = Mapping(device, dma, phys, size)
        self.mappings.append(mapping)
        return mapping

    def _bounce(self, device: Device, phys: int, size: int) -> int:
        if not self.swiotlb.active:
            self._overflow(device, "DMA", f"{phys:#018x}+{size}")
        try:
            dma = self.swiotlb.map(size)
        except KernelError as error:
            self._printk.log(KERN_WARNING, f"{device.label}: {error.reason}")
            raise
        if dma + size - 1 > device.dma_mask:
            self.swiotlb.unmap(dma)
            self._overflow(device, "swiotlb", f"{dma:#018x}+{size}")
        return dma

    def _overflow(self, device: Device, kind: str, place: str) -> NoReturn:
        text = f"{kind} addr {place} overflow (mask {device.dma_mask:x}, bus limit 0)."
        self._warn_once(kind, OVERFLOW_AT[kind], OVERFLOW_FRAMES[kind], f"{device.label}: {text}")
        raise KernelError(errno.EIO, f"{device.name}: {text}")

    def unmap_page(self, device: Device, dma: int) -> Mapping:
        """End a transfer. EINVAL when the device has no mapping at this bus address."""
        mapping = next((one for one in self.mappings if one.device is device and one.dma == dma), None)
        if mapping is None:
            raise KernelError(errno.EINVAL, f"{device.name} has nothing mapped at bus address {dma:#x}")
        self.mappings.remove(mapping)
        if mapping.bounced:
            self.swiotlb.unmap(dma)
        return mapping

    def _warn_once(self, kind: str, where: str, frames: tuple[str, ...], text: str = "") -> None:
        self._dump_stack.warn_once(f"dma {kind}", frames, text, where)

    # -- looking ---------------------------------------------------------------------------------------------

    def busy(self, device: Device) -> bool:
        """Whether a device still has coherent memory or mappings."""
        return device.coherent_bytes > 0 or any(mapping.device is device for mapping in self.mappings)

    def check(self) -> None:
        """Blocks are apart and inside their device's mask of then; bytes and bounce buffers are counted right."""
        sums: Counter[str] = Counter()
        end = 0
        for block in sorted(self.blocks.values(), key=lambda block: block.pfn):
            assert block.pfn >= end, f"pfn {block.pfn} is in two coherent blocks"
            end = block.end_pfn
            assert block.address == self._layout.page_address(block.pfn)
            sums[block.device.name] += block.size
            assert block.device.coherent_bytes > 0
        assert all(block.device.coherent_bytes == sums[block.device.name] for block in self.blocks.values())
        assert sum(mapping.bounced for mapping in self.mappings) == self.swiotlb.live
        self.swiotlb.check()
