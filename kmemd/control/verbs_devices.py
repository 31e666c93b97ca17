"""Verbs of drivers: regions of device memory, DMA masks, coherent memory, mappings for transfers, DMA pools.

kernel/resource.c, kernel/dma/mapping.c, mm/dmapool.c, drivers/base/platform.c.
"""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray

from kmemd.control.bulk import Batch, gather, release
from kmemd.control.language import Reply, Slices, WordType, allocator, invalid, quoted, verb
from kmemd.control.words import Address, Count, Gfp, Node, Number, Pid, Size, Text, number
from kmemd.errors import KernelError
from kmemd.mm.dma import dma_bit_mask
from kmemd.mm.gfp import GFP_KERNEL
from kmemd.mm.handles import Handle, Kind
from kmemd.mm.units import NUMA_NO_NODE, PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from kmemd.kernel import Kernel

CHUNK = 256
PAGES_PER_CHUNK = 4096
_BITS = re.compile(r"DMA_BIT_MASK\(([0-9]{1,2})\)", re.ASCII)
_NAME = re.compile(r"[!-.0-~]{1,64}", re.ASCII)


def _mask(text: str, kernel: Any) -> int:
    match = _BITS.fullmatch(text)
    if match is None:
        return number(text, (1 << 64) - 1, "a mask")
    if not 0 < int(match[1]) <= 64:
        invalid(f"{quoted(text)} has no mask of 1 to 64 bits")
    return dma_bit_mask(int(match[1]))


def _device_name(text: str, kernel: Any) -> str:
    if _NAME.fullmatch(text) is None:
        invalid(f"{quoted(text)} is not the name of a device")
    return text


Mask = Annotated[int, WordType("MASK", "a number, or DMA_BIT_MASK(24): the highest bus address", _mask, hex)]
Dev = Annotated[str, WordType("DEV", "a device: 0000:00:03.0, or one that was registered", _device_name)]

# -- regions ----------------------------------------------------------------------------------------------------


@verb
def request_mem_region(kernel: Kernel, start: Number, size: Size, *name: Text) -> Reply:
    """Claim a range of device memory for a driver, which /proc/iomem then shows. EBUSY when somebody has it."""
    if not name:
        invalid("request_mem_region needs the name of the driver")
    region = kernel.device_memory.resources.request_mem_region(start, size, " ".join(name))
    return Reply({"start": f"{region.start:#x}", "end": f"{region.last:#x}"})


@verb
def release_mem_region(kernel: Kernel, start: Number, size: Size) -> Reply:
    """Give a claimed range back. What was not claimed so is a warning of the kernel, and EINVAL."""
    kernel.device_memory.resources.release_mem_region(start, size)
    return Reply({"start": f"{start:#x}", "end": f"{start + size - 1:#x}"})


@verb
def platform_device_register(kernel: Kernel, dev: Dev, *, size: Size = 0, node: Node = NUMA_NO_NODE) -> Reply:
    """Add a device, with registers of a size in a free range of the PCI window (allocate_resource)."""
    device = kernel.device_memory.devices.add(dev, size, node)
    start = f"{device.registers[0].start:#x}" if device.registers else "none"
    return Reply({"dev": device.name, "start": start, "size": size})


@verb
def platform_device_unregister(kernel: Kernel, dev: Dev) -> Reply:
    """Take a device away. EBUSY while its registers are claimed, or it has DMA memory or pools."""
    memory = kernel.device_memory
    device = memory.devices.find(dev)
    if memory.dma.busy(device) or any(pool.device is device for pool in memory.pools):
        raise KernelError(errno.EBUSY, f"{dev} still has DMA memory")
    memory.devices.remove(device)
    return Reply({"dev": dev})


# -- masks ------------------------------------------------------------------------------------------------------


@verb
def dma_set_mask(kernel: Kernel, dev: Dev, mask: Mask) -> Reply:
    """Say which bus addresses a device can form in transfers. EIO when zone DMA is beyond it."""
    return _set_mask(kernel, dev, mask, streaming=True, coherent=False)


@verb
def dma_set_coherent_mask(kernel: Kernel, dev: Dev, mask: Mask) -> Reply:
    """Say where coherent memory of a device may lie: 24 bits force zone DMA, 32 bits zone DMA32."""
    return _set_mask(kernel, dev, mask, streaming=False, coherent=True)


@verb
def dma_set_mask_and_coherent(kernel: Kernel, dev: Dev, mask: Mask) -> Reply:
    """Set both masks of a device."""
    return _set_mask(kernel, dev, mask, streaming=True, coherent=True)


def _set_mask(kernel: Kernel, dev: str, mask: int, *, streaming: bool, coherent: bool) -> Reply:
    device = kernel.device_memory.devices.find(dev)
    kernel.device_memory.dma.set_mask(device, mask, streaming=streaming, coherent=coherent)
    return Reply({"dma_mask": f"{device.dma_mask:#x}", "coherent_dma_mask": f"{device.coherent_dma_mask:#x}"})


# -- coherent memory --------------------------------------------------------------------------------------------


@allocator
def dma_alloc_coherent(kernel: Kernel, dev: Dev, size: Size, *, gfp: Gfp = GFP_KERNEL, n: Count = 1) -> Slices:
    """Allocate memory that a device and the kernel both see, from the zone that its coherent mask asks for.

    Memory that runs out in the midst of n= is EAGAIN, as with alloc_pages.
    """
    dma = kernel.device_memory.dma
    device = kernel.device_memory.devices.find(dev)

    def allocate(count: int) -> list[int]:
        return _repeat(count, lambda: dma.alloc_coherent(device, size, gfp).address)

    pages = -(-size // PAGE_SIZE)
    batch = _batch(kernel, n, f"no coherent memory for {dev}", pages)
    got = yield from gather(batch, np.uint64, allocate)
    partial = got.partial(n)
    handle = Handle(Kind.DMA, got.items, size=size)
    block = dma.blocks[handle.address]
    zone = kernel.zones[kernel.buddy.zone_of(block.pfn)]
    words: dict[str, int | str] = {
        "addr": f"{block.address:#x}",
        "dma": f"{block.dma:#x}",
        "pfn": block.pfn,
        "order": block.order,
    }
    return Reply({**words, "zone": zone.name, "node": zone.nid, "n": len(handle)}, handle, partial)


def _repeat(count: int, allocate: Any) -> list[int]:
    """So many items, fewer when memory ran out; ENOMEM when there is none."""
    found: list[int] = []
    try:
        for _ in range(count):
            found.append(allocate())
    except KernelError as error:
        if error.errno != errno.ENOMEM or not found:
            raise
    return found


def _batch(kernel: Kernel, n: int, reason: str, pages: int) -> Batch:
    chunk = max(1, min(CHUNK, PAGES_PER_CHUNK // max(pages, 1)))
    return Batch(n, kernel.layout.max_pfn * PAGE_SIZE, reason, chunk, lambda: kernel.page_alloc.slow_paths)


@verb
def dma_free_coherent(kernel: Kernel, memory: Address, *, every: Count = 1, n: Count | None = None) -> Slices:
    """Give coherent memory back: blocks of a handle, or the block at a kernel address."""

    def free(address: int) -> None:
        if kernel.device_memory.pools.holds(address):
            raise KernelError(errno.EINVAL, f"{address:#x} belongs to a DMA pool")
        kernel.device_memory.dma.free_coherent(address)

    return (yield from _free(kernel, memory, Kind.DMA, every, n, free))


def _free(kernel: Kernel, what: Address, kind: Kind, every: int, n: int | None, free: Any) -> Slices:
    """Free items of a handle of one kind, or what is at an address."""
    handle = what.handle
    if handle is None or what.offset:
        free(what.address)
        return Reply({"addr": f"{what.address:#x}", "n": 1})
    if handle.kind is not kind:
        raise KernelError(errno.EINVAL, f"{what.name} is {handle.kind}, not {kind}")

    def free_some(positions: NDArray[np.int64]) -> None:
        refused: KernelError | None = None
        for address in handle.addresses[positions].tolist():
            try:
                free(address)
            except KernelError as error:
                refused = refused or error
        if refused is not None:
            raise refused

    first = int(handle.addresses[what.index or 0])
    done = yield from release(kernel.handles, what, what.positions(every, n), free_some, CHUNK)
    return Reply({"addr": f"{first:#x}", "n": done})


# -- transfers --------------------------------------------------------------------------------------------------


@verb
def dma_map_page(kernel: Kernel, dev: Dev, pages: Address | None = None, *, pfn: Number | None = None,
                 size: Size = PAGE_SIZE) -> Reply:  # fmt: skip
    """Map bytes of a page for a transfer: the page of a handle, or pfn=. The reply has the bus address.

    A page that the device's mask does not reach goes through a bounce buffer, where the machine has them; else it is
    the kernel's "DMA addr overflow" warning, and EIO.
    """
    if (pages is None) == (pfn is None):
        invalid("dma_map_page takes a handle of pages, a kernel address or pfn=, one of them")
    device = kernel.device_memory.devices.find(dev)
    phys = _phys(kernel, pages) if pages is not None else int(pfn or 0) << PAGE_SHIFT
    mapping = kernel.device_memory.dma.map_page(device, phys >> PAGE_SHIFT, phys & (PAGE_SIZE - 1), size)
    return Reply({"dma": f"{mapping.dma:#x}", "phys": f"{phys:#x}", "bounced": int(mapping.bounced)})


def _phys(kernel: Kernel, pages: Address) -> int:
    if pages.handle is not None and pages.handle.kind is Kind.PAGES:
        return (int(pages.handle.pfns[pages.index or 0]) << PAGE_SHIFT) + pages.offset
    return (kernel.layout.virt_to_pfn(pages.address) << PAGE_SHIFT) + pages.address % PAGE_SIZE


@verb
def dma_unmap_page(kernel: Kernel, dev: Dev, dma: Number) -> Reply:
    """End a transfer, by the bus address that dma_map_page gave."""
    mapping = kernel.device_memory.dma.unmap_page(kernel.device_memory.devices.find(dev), dma)
    return Reply({"dma": f"{dma:#x}", "phys": f"{mapping.phys:#x}", "bounced": int(mapping.bounced)})


# -- pools ------------------------------------------------------------------------------------------------------


@verb
def dma_pool_create(kernel: Kernel, pool: Dev, dev: Dev, size: Size, *, align: Size = 0, boundary: Size = 0) -> Reply:
    """Make a pool of small blocks of coherent memory for a device; no block crosses a boundary."""
    device = kernel.device_memory.devices.find(dev)
    made = kernel.device_memory.pools.create(pool, device, size, align, boundary)
    return Reply({"pool": made.name, "dev": dev, "size": made.size, "boundary": made.boundary})


@allocator
def dma_pool_alloc(kernel: Kernel, pool: Dev, *, gfp: Gfp = GFP_KERNEL, n: Count = 1) -> Slices:
    """Take blocks of a pool."""
    pools = kernel.device_memory.pools
    found = pools.find(pool)

    def allocate(count: int) -> list[int]:
        return _repeat(count, lambda: pools.alloc(found, gfp)[0])

    got = yield from gather(_batch(kernel, n, f"no memory for pool {pool}", 1), np.uint64, allocate)
    partial = got.partial(n)
    handle = Handle(Kind.DMA_POOL, got.items, size=found.size, cache=found.name)
    dma = handle.address - kernel.layout.page_offset
    return Reply({"addr": f"{handle.address:#x}", "dma": f"{dma:#x}", "n": len(handle)}, handle, partial)


@verb
def dma_pool_free(kernel: Kernel, pool: Dev, block: Address, *, every: Count = 1, n: Count | None = None) -> Slices:
    """Give blocks back to their pool: of a handle, or the one at an address."""
    pools = kernel.device_memory.pools
    found = pools.find(pool)
    steps = _free(kernel, block, Kind.DMA_POOL, every, n, lambda address: pools.free(found, address))
    return (yield from steps)


@verb
def dma_pool_destroy(kernel: Kernel, pool: Dev) -> Reply:
    """Give a pool's pages back. Pages with blocks in use are lost, as the kernel then says."""
    pools = kernel.device_memory.pools
    return Reply({"pool": pool, "lost": pools.destroy(pools.find(pool))})


# -- address spaces ---------------------------------------------------------------------------------------------


@verb
def remap_pfn_range(kernel: Kernel, pid: Pid, address: Address, pfn: Number, size: Size) -> Reply:
    """Map page frames of a device into a mapping of a process, as the mmap of its driver does.

    The mapping becomes one of VM_IO and VM_PFNMAP, which smaps shows as io and pf; nothing in it counts as resident.
    A private writable one is remapped whole (EINVAL); pages that are there are the kernel's bug report.
    """
    mm = kernel.tasks.find(pid).mm
    if mm is None:
        raise KernelError(errno.EINVAL, f"task {pid} is a kernel thread and has no memory of its own")
    vma = mm.find(address.address)
    if vma is None:
        raise KernelError(errno.EFAULT, f"task {pid} maps nothing at {address.address:#x}")
    kernel.user.pfn_map.remap_pfn_range(mm, vma, address.address, pfn, size)
    return Reply({"addr": f"{address.address:#x}", "pfn": pfn, "pages": -(-size // PAGE_SIZE)})
