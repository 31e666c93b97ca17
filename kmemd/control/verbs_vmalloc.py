"""Verbs of the vmalloc area: ``vmalloc``, ``vfree``, ``ioremap``, ``iounmap`` (mm/vmalloc.c, arch/x86/mm/ioremap.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kmemd.control.bulk import Batch, gather, release
from kmemd.control.language import Reply, Slices, allocator, verb
from kmemd.control.words import Address, Count, Gfp, Node, Number, Size
from kmemd.errors import KernelError
from kmemd.mm.gfp import GFP_KERNEL
from kmemd.mm.handles import Handle, Kind
from kmemd.mm.units import NUMA_NO_NODE
from kmemd.mm.vmalloc import Request
from kmemd.steps import Steps

if TYPE_CHECKING:
    from kmemd.kernel import Kernel

PAGES_PER_CHUNK = 256
AREA_PAGES = 16
"""Making an area costs as much wall time as so many of its pages."""


@allocator
def vmalloc(kernel: Kernel, size: Size, *, gfp: Gfp = GFP_KERNEL, node: Node = NUMA_NO_NODE, n: Count = 1) -> Slices:
    """Allocate memory that is contiguous in the kernel's address space only, or n such areas.

    Memory that runs out in the midst of n= is EAGAIN, as with alloc_pages.
    """

    def allocate(count: int) -> Steps[list[int]]:
        found: list[int] = []
        try:
            for _ in range(count):
                area = yield from kernel.vmalloc.alloc_steps(size, Request(gfp, node))
                found.append(area.address)
        except KernelError as error:
            if error.errno != errno.ENOMEM or not found:
                raise
        return found

    reason = f"no room for {size} bytes"
    batch = Batch(n, kernel.layout.max_pfn, reason, _chunk(size), lambda: kernel.page_alloc.slow_paths)
    got = yield from gather(batch, np.uint64, allocate)
    handle = Handle(Kind.VMALLOC, got.items, size=size)
    words: dict[str, int | str] = {"addr": f"{handle.address:#x}", "size": size, "n": len(handle)}
    return Reply(words, handle, got.partial(n))


@verb
def vfree(kernel: Kernel, area: Address, *, every: Count = 1, n: Count | None = None) -> Slices:
    """Give back areas of a handle, or the area at an address.

    every= and n= choose items of a handle as with free_pages. An address that no area begins at is the kernel's
    "Trying to vfree() nonexistent vm area" warning.
    """
    if area.handle is None or area.offset:
        yield from kernel.vmalloc.vfree_steps(area.address)
        return Reply({"addr": f"{area.address:#x}", "n": 1})
    handle = area.handle
    if handle.kind is not Kind.VMALLOC:
        raise KernelError(errno.EINVAL, f"{area.name} is {handle.kind}; vfree takes vmalloc areas")

    def free(positions: NDArray[np.int64]) -> Steps[None]:
        for address in handle.addresses[positions].tolist():
            yield from kernel.vmalloc.vfree_steps(address)

    first = int(handle.addresses[area.index or 0])
    done = yield from release(kernel.handles, area, area.positions(every, n), free, _chunk(handle.size))
    return Reply({"addr": f"{first:#x}", "n": done})


@allocator
def ioremap(kernel: Kernel, phys: Number, size: Size) -> Reply:
    """Map device memory at a physical address into the vmalloc area, uncached; no page is allocated.

    Memory is refused, with the kernel's "ioremap on RAM" warning; so is a range that is mapped in a way that does
    not go together with this one (EBUSY).
    """
    return _ioremap(kernel, phys, size, "ioremap")


@allocator
def ioremap_uc(kernel: Kernel, phys: Number, size: Size) -> Reply:
    """ioremap, strongly uncached."""
    return _ioremap(kernel, phys, size, "ioremap_uc")


@allocator
def ioremap_wc(kernel: Kernel, phys: Number, size: Size) -> Reply:
    """ioremap with writes combined, as for a frame buffer."""
    return _ioremap(kernel, phys, size, "ioremap_wc")


@allocator
def ioremap_wt(kernel: Kernel, phys: Number, size: Size) -> Reply:
    """ioremap, cached with writes that go through."""
    return _ioremap(kernel, phys, size, "ioremap_wt")


@allocator
def ioremap_cache(kernel: Kernel, phys: Number, size: Size) -> Reply:
    """ioremap, cached as memory is."""
    return _ioremap(kernel, phys, size, "ioremap_cache")


def _ioremap(kernel: Kernel, phys: int, size: int, function: str) -> Reply:
    address = kernel.device_memory.mapper.ioremap(phys, size, function)
    handle = Handle(Kind.IOREMAP, np.array([address], dtype=np.uint64), size=size)
    return Reply({"addr": f"{address:#x}", "phys": f"{phys:#x}", "size": size}, handle)


@verb
def iounmap(kernel: Kernel, area: Address) -> Reply:
    """Give back what ioremap returned, by its handle or address."""
    if area.handle is not None and area.handle.kind is not Kind.IOREMAP:
        raise KernelError(errno.EINVAL, f"{area.name} is {area.handle.kind}; iounmap takes what ioremap gave")
    kernel.device_memory.mapper.iounmap(area.address)
    if area.handle is not None and not area.offset:
        kernel.handles.forget(area.name)
    return Reply({"addr": f"{area.address:#x}"})


def _chunk(size: int) -> int:
    """Areas per chunk: those of at most ``PAGES_PER_CHUNK`` pages; a larger one is made in slices of its own."""
    return max(1, PAGES_PER_CHUNK // max(AREA_PAGES, size >> 12))
