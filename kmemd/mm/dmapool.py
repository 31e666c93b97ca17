"""DMA pools: small blocks of coherent memory for one device (mm/dmapool.c).

A pool cuts pages of coherent memory into blocks that cross no boundary; a page's free blocks are a chain, last freed
first, and pages are searched the newest first. Pages stay until the pool is destroyed. Left out: poisoning.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field

from kmemd.errors import KernelError
from kmemd.mm import gfp as g
from kmemd.mm.descriptors import Descriptors
from kmemd.mm.device import Device
from kmemd.mm.dma import Block, Dma
from kmemd.mm.printk import KERN_ERR, Printk
from kmemd.mm.units import PAGE_SIZE

MIN_SIZE = 4
NAME_MAX = 31
DESCRIPTOR_SIZES = {8: (104, 40), 4: (68, 24)}
"""sizeof(struct dma_pool) and of struct dma_page, by the size of a pointer."""


@dataclass(eq=False)
class PoolPage:
    """One block of coherent memory that a pool cuts up. ``free`` are offsets, the next one last."""

    block: Block
    free: list[int]
    descriptor: int = 0
    used: set[int] = field(default_factory=set)


@dataclass(eq=False)
class Pool:
    """One pool. Sizes in bytes; ``pages`` are the newest first.

    Invariants: a page's free and used offsets are apart, and together are all blocks of it.
    """

    name: str
    device: Device
    size: int
    boundary: int
    allocation: int
    descriptor: int = 0
    pages: list[PoolPage] = field(default_factory=list)

    @property
    def in_use(self) -> int:
        """Blocks that are given out."""
        return sum(len(page.used) for page in self.pages)

    def offsets(self) -> Iterator[int]:
        """Where the blocks of a page begin (``pool_initialise_page``)."""
        offset, next_boundary = 0, self.boundary
        while offset < self.allocation:
            yield offset
            following = offset + self.size
            if following + self.size >= next_boundary:
                following = next_boundary
                next_boundary += self.boundary
            offset = following


class DmaPools:
    """The pools by name."""

    def __init__(self, dma: Dma, printk: Printk, descriptors: Descriptors, pointer_size: int) -> None:
        self._dma = dma
        self._descriptors = descriptors
        self._pool_size, self._page_size = DESCRIPTOR_SIZES[pointer_size]
        self._printk = printk
        self._pools: dict[str, Pool] = {}

    def __iter__(self) -> Iterator[Pool]:
        return iter(list(self._pools.values()))

    def find(self, name: str) -> Pool:
        """The pool of a name. ENOENT."""
        pool = self._pools.get(name)
        if pool is None:
            raise KernelError(errno.ENOENT, f"no DMA pool {name}")
        return pool

    def create(self, name: str, device: Device, size: int, align: int = 0, boundary: int = 0) -> Pool:
        """``dma_pool_create``. EINVAL for sizes that do not go together, EEXIST for a name in use."""
        name = name[:NAME_MAX]
        if name in self._pools:
            raise KernelError(errno.EEXIST, f"there is a DMA pool {name}")
        if align & (align - 1):
            raise KernelError(errno.EINVAL, f"an alignment of {align} is no power of two")
        if not size:
            raise KernelError(errno.EINVAL, "a DMA pool of blocks of 0 bytes")
        align = align or 1
        size = -(-max(size, MIN_SIZE) // align) * align
        allocation = max(size, PAGE_SIZE)
        if boundary and (boundary < size or boundary & (boundary - 1)):
            raise KernelError(errno.EINVAL, f"a boundary of {boundary} is no power of two of at least {size}")
        descriptor = self._descriptors.alloc(self._pool_size, "dma_pool_create")
        pool = Pool(name, device, size, boundary or allocation, allocation, descriptor)
        self._pools[name] = pool
        return pool

    def alloc(self, pool: Pool, gfp: int = g.GFP_KERNEL) -> tuple[int, int]:
        """A block: its kernel address and its bus address. ENOMEM."""
        page = next((page for page in pool.pages if page.free), None)
        if page is None:
            page = self._new_page(pool, gfp & ~g.F.ZERO)
            pool.pages.insert(0, page)
        offset = page.free.pop()
        page.used.add(offset)
        return page.block.address + offset, page.block.dma + offset

    def _new_page(self, pool: Pool, gfp: int) -> PoolPage:
        """Coherent memory for more blocks (``pool_alloc_page``). ENOMEM."""
        descriptor = self._descriptors.alloc(self._page_size, "dma_pool_alloc", gfp)
        try:
            block = self._dma.alloc_coherent(pool.device, pool.allocation, gfp)
        except KernelError:
            self._descriptors.free(descriptor)
            raise
        return PoolPage(block, list(pool.offsets())[::-1], descriptor)

    def free(self, pool: Pool, address: int) -> None:
        """Give a block back. EINVAL, and the kernel's message, when the address is not in the pool, or is free."""
        found = (page for page in pool.pages if 0 <= address - page.block.address < pool.allocation)
        page = next(found, None)
        if page is None or address - page.block.address not in page.used:
            text = f"{pool.device.label}: dma_pool_free {pool.name}, {address:#x} (bad dma)"
            self._printk.log(KERN_ERR, text)
            raise KernelError(errno.EINVAL, f"{address:#x} is no block of pool {pool.name} that is in use")
        page.used.remove(address - page.block.address)
        page.free.append(address - page.block.address)

    def destroy(self, pool: Pool) -> int:
        """Give a pool's pages back; those with blocks in use are lost, and reported. How many were lost."""
        del self._pools[pool.name]
        lost = 0
        self._descriptors.free(pool.descriptor)
        for page in pool.pages:
            self._descriptors.free(page.descriptor)
            if page.used:
                lost += 1
                text = f"dma_pool_destroy {pool.name}, {page.block.address:#x} busy"
                self._printk.log(KERN_ERR, f"{pool.device.label}: {text}")
            else:
                self._dma.free_coherent(page.block.address)
        return lost

    def holds(self, address: int) -> bool:
        """Whether a block of coherent memory is one that a pool cuts up."""
        return any(page.block.address == address for pool in self for page in pool.pages)

    def check(self) -> None:
        """Free and used blocks are apart and complete, and their pages are there."""
        for pool in self:
            every = set(pool.offsets())
            for page in pool.pages:
                assert self._dma.blocks.get(page.block.address) is page.block, f"pool {pool.name} has lost a page"
                assert not page.used & set(page.free), f"pool {pool.name}: a block is free and in use"
                assert page.used | set(page.free) == every, f"pool {pool.name} has lost a block"
