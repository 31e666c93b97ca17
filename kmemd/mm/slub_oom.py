"""The complaint of a slab cache that got no page (mm/slub.c ``slab_out_of_memory``): at most ten in five seconds."""

from __future__ import annotations

from collections.abc import Sequence

from kmemd.core.context import Context
from kmemd.core.slab import SlabCore
from kmemd.core.slab_layout import NODE_COLUMNS, NR_OBJECTS, NR_SLABS
from kmemd.mm.gfp import F, format_gfp
from kmemd.mm.printk import KERN_WARNING, Printk
from kmemd.mm.slab_common import KmemCache
from kmemd.mm.slab_geometry import get_order

OOM_INTERVAL_NS = 5_000_000_000
OOM_BURST = 10


class SlabOutOfMemory:
    """Says what a cache wanted, and what it has on each of ``nodes``."""

    def __init__(self, core: SlabCore, context: Context, printk: Printk, nodes: Sequence[int]) -> None:
        self._core = core
        self._context = context
        self._printk = printk
        self._nodes = nodes
        self._window = (0, 0)

    def __call__(self, cache: KmemCache, gfp: int, nid: int) -> None:
        """No page for an object of ``cache`` from node ``nid`` (-1: any)."""
        start, count = self._window
        now = self._context.now
        if gfp & F.NOWARN:
            return
        if now - start >= OOM_INTERVAL_NS:
            start, count = now, 0
        self._window = (start, count + 1)
        if count >= OOM_BURST:
            return
        geometry = cache.geometry
        say = self._printk.log
        say(KERN_WARNING, f"SLUB: Unable to allocate memory on node {nid}, gfp={gfp:#x}({format_gfp(gfp)})")
        say(
            KERN_WARNING,
            f"  cache: {cache.name}, object size: {cache.object_size}, buffer size: {cache.size}, "
            f"default order: {geometry.order}, min order: {geometry.min_order}",
        )
        if geometry.min_order > get_order(cache.object_size):
            say(KERN_WARNING, f"  {cache.name} debugging increased min order, use slub_debug=O to disable.")
        for node in self._nodes:
            inuse, total = self._core.count_partial(cache.index, node)
            slabs, objects = self._count(cache, node, NR_SLABS), self._count(cache, node, NR_OBJECTS)
            say(KERN_WARNING, f"  node {node}: slabs: {slabs}, objs: {objects}, free: {total - inuse}")

    def _count(self, cache: KmemCache, nid: int, column: int) -> int:
        """A (cache, node) counter, a column of core/slab_layout."""
        return int(self._core.arrays["node"][(cache.index * self._core.nnodes + nid) * NODE_COLUMNS + column])
