"""Verbs of the slab allocator: ``kmalloc`` and its kin, ``kmem_cache_*`` (mm/slub.c, mm/slab_common.c)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kmemd.control.bulk import CHUNK, Batch, gather, release
from kmemd.control.language import Reply, Slices, allocator, verb
from kmemd.control.words import Address, Cache, CacheName, Count, Gfp, Node, Reference, Size, SlabFlags
from kmemd.errors import KernelError
from kmemd.mm.gfp import GFP_KERNEL, F, format_gfp
from kmemd.mm.handles import Handle, Kind, Pointers
from kmemd.mm.slab_common import KMALLOC_MAX_CACHE_SIZE, KMALLOC_MINALIGN
from kmemd.mm.units import NUMA_NO_NODE, PAGE_SIZE

if TYPE_CHECKING:
    from kmemd.kernel import Kernel


@allocator
def kmalloc(kernel: Kernel, size: Size, *, gfp: Gfp = GFP_KERNEL, node: Node = NUMA_NO_NODE, n: Count = 1) -> Slices:
    """Allocate an object of a size, or n of them. A size of 0 gives ZERO_SIZE_PTR, once.

    Memory that runs out in the midst of n= is EAGAIN, as with alloc_pages.
    """
    return (yield from _kmalloc(kernel, size, gfp, node, n))


@allocator
def kzalloc(kernel: Kernel, size: Size, *, gfp: Gfp = GFP_KERNEL, node: Node = NUMA_NO_NODE, n: Count = 1) -> Slices:
    """Allocate zeroed objects: kmalloc with __GFP_ZERO."""
    return (yield from _kmalloc(kernel, size, gfp | F.ZERO, node, n))


def _kmalloc(kernel: Kernel, size: int, gfp: int, node: int, n: int) -> Slices:
    def allocate(count: int) -> Pointers:
        return kernel.slub.kmalloc_bulk(size, gfp, count, node)

    reason = f"no object of {size} bytes for {format_gfp(gfp)}"
    got = yield from gather(_batch(kernel, n if size else 1, size, reason), np.uint64, allocate)
    return _objects(kernel, got.items, size, got.partial(n))


@allocator
def krealloc(kernel: Kernel, object: Address, size: Size, *, gfp: Gfp = GFP_KERNEL) -> Reply:
    """Grow or shrink an object, which may move; its handle follows it, and gets NAME if there is one.

    When memory runs out the old object stays, and the line fails with ENOMEM.
    """
    handle = object.handle
    if handle is not None and (len(handle) > 1 or handle.kind is not Kind.SLAB or object.offset):
        raise KernelError(errno.EINVAL, f"{object.text}: krealloc takes a handle of one slab object, or an address")
    address = kernel.slub.krealloc(object.address, size, gfp)
    reply = _objects(kernel, np.array([address], dtype=np.uint64), size, "")
    if handle is not None and reply.handle is not None:
        handle.addresses, handle.size, handle.cache = reply.handle.addresses, size, reply.handle.cache
        reply.handle = handle
    return reply


@verb
def kfree(kernel: Kernel, object: Address, *, every: Count = 1, n: Count | None = None) -> Slices:
    """Free objects of a handle, or the object at an address.

    every= and n= choose items of a handle as with free_pages. Freeing what kmalloc did not give, or freeing
    it twice by its address, is the kernel's own bug report.
    """
    return (yield from _free(kernel, object, every, n, kernel.slub.kfree_bulk))


@allocator
def kmem_cache_create(kernel: Kernel, cache: CacheName, size: Size, *, align: Size = 0, flags: SlabFlags = 0) -> Reply:
    """Make a slab cache, or an alias of one that has room for such objects.

    The reply tells what SLUB chose: the cache it became an alias of, the distance of objects, objects per slab and
    the order of a slab. A cache may be named by its name or by NAME.
    """
    made = kernel.slub.kmem_cache_create(cache, size, align, flags)
    words: dict[str, int | str] = {
        "cache": cache,
        "size": made.size,
        "object_size": made.object_size,
        "objects": made.objects,
        "order": made.order,
    }
    if made.name != cache:
        words["alias_of"] = made.name
    return Reply(words, Handle(Kind.CACHE, cache=cache, size=size))


@allocator
def kmem_cache_alloc(
    kernel: Kernel, cache: Cache, *, gfp: Gfp = GFP_KERNEL, node: Node = NUMA_NO_NODE, n: Count = 1
) -> Slices:
    """Allocate an object of a cache, or n of them.

    Memory that runs out in the midst of n= is EAGAIN, as with alloc_pages.
    """
    found = kernel.slub.cache(cache)

    def allocate(count: int) -> Pointers:
        return kernel.slub.kmem_cache_alloc_bulk(found, gfp, count, node)

    reason = f"no object of {cache} for {format_gfp(gfp)}"
    got = yield from gather(_batch(kernel, n, found.size, reason), np.uint64, allocate)
    return _objects(kernel, got.items, found.object_size, got.partial(n))


@verb
def kmem_cache_free(
    kernel: Kernel, cache: Cache, object: Address, *, every: Count = 1, n: Count | None = None
) -> Slices:
    """Free objects of a handle, or the object at an address, that the cache gave.

    every= and n= choose items of a handle as with free_pages. An object of another cache is the kernel's own report,
    and is not freed.
    """
    found = kernel.slub.cache(cache)

    def free(addresses: Pointers) -> None:
        kernel.slub.kmem_cache_free_bulk(found, addresses)

    if object.handle is not None and object.handle.cache != found.name:
        free(np.array([object.address], dtype=np.uint64))
    return (yield from _free(kernel, object, every, n, free))


@verb
def kmem_cache_shrink(kernel: Kernel, cache: Cache) -> Reply:
    """Give a cache's empty slabs back to the page allocator."""
    found = kernel.slub.cache(cache)
    before = kernel.slub.slab_counts(found)[2]
    kernel.slub.kmem_cache_shrink(found)
    after = kernel.slub.slab_counts(found)[2]
    return Reply({"cache": found.name, "slabs": after, "freed": before - after})


@verb
def kmem_cache_destroy(kernel: Kernel, cache: Cache) -> Reply:
    """Destroy a cache, or drop an alias. Objects that are left are EBUSY and the kernel's own report."""
    kernel.slub.kmem_cache_destroy(kernel.slub.cache(cache), cache)
    for name, handle in kernel.handles.items():
        if handle.kind is Kind.CACHE and handle.cache == cache:
            kernel.handles.forget(name)
    return Reply({"cache": cache})


def _free(kernel: Kernel, what: Reference, every: int, n: int | None, free: Callable[[Pointers], None]) -> Slices:
    """Free one address, or items of a handle of slab objects. EINVAL for handles of other kinds."""
    handle = what.handle
    if handle is None or what.offset:
        free(np.array([what.address], dtype=np.uint64))
        return Reply({"addr": f"{what.address:#x}", "n": 1})
    if handle.kind is not Kind.SLAB:
        raise KernelError(errno.EINVAL, f"{what.name} is {handle.kind}, not slab objects")
    first = int(handle.addresses[what.index or 0])

    def free_items(positions: NDArray[np.int64]) -> None:
        free(handle.addresses[positions])

    done = yield from release(kernel.handles, what, what.positions(every, n), free_items, _chunk(kernel, handle.size))
    return Reply({"addr": f"{first:#x}", "n": done})


def _batch(kernel: Kernel, n: int, size: int, reason: str) -> Batch:
    """``n`` objects of ``size`` bytes; the smallest object takes KMALLOC_MINALIGN bytes."""
    most = kernel.layout.max_pfn * PAGE_SIZE // max(size, KMALLOC_MINALIGN) + 1
    return Batch(n, most, reason, _chunk(kernel, size), lambda: kernel.page_alloc.slow_paths)


def _chunk(kernel: Kernel, size: int) -> int:
    """Objects per chunk: page blocks are freed one by one, and so are the tracks that slub_debug=U keeps."""
    one_by_one = size > KMALLOC_MAX_CACHE_SIZE or kernel.slub.reports.allocated
    return CHUNK // 8 if one_by_one else CHUNK


def _objects(kernel: Kernel, addresses: Pointers, size: int, partial: str) -> Reply:
    """The reply for allocated objects, and their handle."""
    handle = Handle(Kind.SLAB, addresses, size=size)
    cache = kernel.slub.cache_of(handle.address)
    words: dict[str, int | str] = {"addr": f"{handle.address:#x}", "size": size, "n": len(handle)}
    if cache is not None:
        handle.cache = cache.name
        words["cache"] = cache.name
    return Reply(words, handle, partial)
