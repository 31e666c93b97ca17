"""Trace events of the slab allocator: kmalloc, kmem_cache_alloc and their frees (include/trace/events/kmem.h)."""

from __future__ import annotations

from kmemd.core import trace_ids as ev
from kmemd.core.trace import TraceLog
from kmemd.mm.gfp import F
from kmemd.mm.leak_observer import Addresses
from kmemd.mm.slab_common import KmemCache
from kmemd.mm.slab_flags import SLAB_ACCOUNT
from kmemd.mm.units import PAGE_SIZE


def slab_alloc(
    trace: TraceLog, cache: KmemCache, objects: Addresses, frame: str, size: int | None, gfp: int, nid: int, ns: int
) -> None:
    """Objects were allocated by ``frame`` for ``size`` bytes each, ``ns`` one after the other."""
    size = cache.object_size if size is None else size
    if frame != "kmem_cache_alloc":
        trace.emit_objects(ev.KMALLOC, objects, ns, size, cache.size, gfp, nid)
    else:
        accounted = bool(gfp & F.ACCOUNT or cache.flags & SLAB_ACCOUNT)
        trace.emit_objects(ev.KMEM_CACHE_ALLOC, objects, ns, size, cache.size, gfp, nid, accounted)


def kmalloc_large(trace: TraceLog, objects: Addresses, size: int, order: int, gfp: int, nid: int) -> None:
    """Page blocks were allocated for kmalloc."""
    trace.emit_objects(ev.KMALLOC, objects, 0, size, PAGE_SIZE << order, gfp, nid)
