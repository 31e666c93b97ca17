"""Verbs of the page allocator: ``alloc_pages`` and ``free_pages`` (mm/page_alloc.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kmemd.control.bulk import CHUNK, Batch, gather, release
from kmemd.control.language import Reply, Slices, allocator, invalid, verb
from kmemd.control.words import Address, Count, Gfp, Node, Number, Order, Reference
from kmemd.errors import KernelError
from kmemd.mm.gfp import GFP_KERNEL, format_gfp
from kmemd.mm.handles import Handle, Kind
from kmemd.mm.patience import attempt
from kmemd.mm.units import NUMA_NO_NODE, PAGE_SIZE

if TYPE_CHECKING:
    from kmemd.kernel import Kernel


@allocator
def alloc_pages(
    kernel: Kernel,
    *,
    order: Order = 0,
    gfp: Gfp = GFP_KERNEL,
    node: Node = NUMA_NO_NODE,
    n: Count = 1,
) -> Slices:
    """Allocate a block of 2^order pages, or n of them.

    The reply tells the first block's pfn, its zone and node, and its address (0 in high memory). When memory runs
    out in the midst of n=, what was got is kept under NAME and the line fails with EAGAIN; when nothing was
    got it fails with ENOMEM.
    """

    again = False

    def some(count: int) -> NDArray[np.int64]:
        return kernel.page_alloc.alloc_pages_bulk(gfp, order, count, node)

    def allocate(count: int) -> NDArray[np.int64]:
        nonlocal again
        pfns, again = attempt(kernel.page_alloc, lambda: some(count))
        return pfns

    reason = f"no free block of order {order} for {format_gfp(gfp)}"
    slow_paths, chunk = lambda: kernel.page_alloc.slow_paths, _chunk(order)
    batch = Batch(n, kernel.layout.max_pfn >> order, reason, chunk, slow_paths, lambda: again)
    got = yield from gather(batch, np.int64, allocate)
    partial = got.partial(n)
    handle = Handle(Kind.PAGES, pfns=got.items, order=order, size=PAGE_SIZE << order)
    return Reply({**_where(kernel, handle), "n": len(handle)}, handle, partial)


@verb
def free_pages(
    kernel: Kernel,
    pages: Address | None = None,
    *,
    order: Order | None = None,
    pfn: Number | None = None,
    every: Count = 1,
    n: Count | None = None,
) -> Slices:
    """Give back blocks of a handle, or the block at an address or pfn.

    every=2 frees each second block of the handle, which leaves holes; n= frees at most so many. NAME[3] is one
    block. An address or pfn= needs order=, as in Linux; freeing what is not allocated is the kernel's
    "Bad page state" report.
    """
    if pages is None or pages.handle is None:
        block = _block(kernel, pages, pfn)
        if kernel.hugetlb.holds(block):
            raise KernelError(errno.EFAULT, f"pfn {block} is a free huge page: nobody has a reference to drop")
        kernel.page_alloc.free_pages(block, order or 0)
        return Reply({"pfn": block, "order": order or 0, "n": 1})
    handle = pages.handle
    if handle.kind is not Kind.PAGES:
        raise KernelError(errno.EINVAL, f"{pages.name} is {handle.kind}; free_pages takes pages")
    if pfn is not None or order not in (None, handle.order) or pages.offset:
        invalid(f"{pages.name} has blocks of order {handle.order}; name it alone, or give pfn= and order=")

    def free(positions: NDArray[np.int64]) -> None:
        kernel.page_alloc.free_pages_bulk(handle.pfns[positions], handle.order)

    first = int(handle.pfns[pages.index or 0])
    done = yield from release(kernel.handles, pages, pages.positions(every, n), free, _chunk(handle.order))
    return Reply({"pfn": first, "order": handle.order, "n": done})


def _chunk(order: int) -> int:
    """Blocks per chunk: any may need the slow path, and page_owner writes a record for each page."""
    return min(CHUNK // 2, max(1, 8 * CHUNK >> order))


def _block(kernel: Kernel, pages: Reference | None, pfn: int | None) -> int:
    """The page frame that an address or ``pfn=`` means. EINVAL, EFAULT."""
    if pages is not None and pfn is None:
        return kernel.layout.virt_to_pfn(pages.address)
    if pages is not None or pfn is None:
        invalid("free_pages needs a handle, an address or pfn=, one of them")
    if pfn >= kernel.layout.max_pfn:
        raise KernelError(errno.EFAULT, f"no page frame {pfn}")
    return pfn


def _where(kernel: Kernel, handle: Handle) -> dict[str, int | str]:
    zone = kernel.zones[kernel.buddy.zone_of(handle.pfn)]
    return {
        "pfn": handle.pfn,
        "addr": f"{kernel.layout.page_address(handle.pfn):#x}",
        "order": handle.order,
        "zone": zone.name,
        "node": zone.nid,
    }
