"""SLUB as a whole: how it comes up, and kmalloc on top of it (mm/slub.c ``kmem_cache_init``, mm/slab_common.c).

``kmalloc`` of more than two pages goes to the page allocator; such blocks are remembered, so that a kfree of pages
that kmalloc did not give is refused (Linux would free any compound page). Left out: what sysfs and debugfs
allocate for a cache, kmalloc of constant sizes as an entry of its own (stacks show ``__kmalloc``).
"""

from __future__ import annotations

import errno

import numpy as np
import numpy.typing as npt

from kmemd.core import trace_ids as ev
from kmemd.core.context import Context
from kmemd.core.mmzone import MAX_ORDER
from kmemd.core.pages import PageMap
from kmemd.core.stats import NR_SLAB_UNRECLAIMABLE_B
from kmemd.errors import KernelError
from kmemd.mm import slab_flags as sf
from kmemd.mm.gfp import GFP_KERNEL, GFP_NOWAIT, F, format_gfp
from kmemd.mm.leak_observer import Addresses, LeakObserver
from kmemd.mm.page_supply import PageSupply
from kmemd.mm.params import CommandLine
from kmemd.mm.percpu import Percpu
from kmemd.mm.preempt import Preempt
from kmemd.mm.printk import KERN_INFO, Printk
from kmemd.mm.slab_common import (
    KMALLOC_CGROUP,
    KMALLOC_MAX_CACHE_SIZE,
    KMALLOC_MINALIGN,
    KMALLOC_NORMAL,
    KMALLOC_TYPE_FLAGS,
    NR_KMALLOC_TYPES,
    ZERO_SIZE_PTR,
    KmemCache,
    kmalloc_cache_size,
    kmalloc_index,
    kmalloc_indices,
    kmalloc_name,
    kmalloc_type,
)
from kmemd.mm.slab_geometry import get_order
from kmemd.mm.slub_caches import (
    GFP_SLAB_BUG_MASK,
    SlabCaches,
)
from kmemd.mm.slub_charging import SlabCharging
from kmemd.mm.slub_check import check_slub
from kmemd.mm.slub_harden import Hardening
from kmemd.mm.slub_machine import SlubMachine
from kmemd.mm.slub_report import ReportTools
from kmemd.mm.slub_trace import kmalloc_large
from kmemd.mm.stackdepot import StackDepot
from kmemd.mm.units import NUMA_NO_NODE, PAGE_SIZE

KMALLOC_FRAMES = ("__kmem_cache_alloc_node", "__kmalloc")
LARGE_FRAMES = ("__kmalloc_large_node", "__kmalloc")
KFREE_FRAMES = ("__kmem_cache_free", "kfree")
NODE_POINTERS = 8  # list_lock, nr_partial, partial (2), nr_slabs, total_objects, full (2)
CACHE_STRUCT_BYTES = {8: 200, 4: 128}
"""offsetof(struct kmem_cache, node) by word size; with NUMA on 64 bits, without on 32."""


class Slub(SlabCaches):
    """The slab allocator of one kernel."""

    def __init__(
        self,
        page_alloc: PageSupply,
        pages: PageMap,
        node_stat: npt.NDArray[np.int64],
        context: Context,
        depot: StackDepot,
        printk: Printk,
        tools: ReportTools,
        machine: SlubMachine,
        cmdline: CommandLine,
        observer: LeakObserver | None = None,
        preempt: Preempt | None = None,
        memcg: SlabCharging | None = None,
        hardening: Hardening | None = None,
        percpu: Percpu | None = None,
    ) -> None:
        super().__init__(
            *(page_alloc, pages, node_stat, context, depot, printk, tools, machine, cmdline, observer, preempt),
            memcg,
            hardening,
            percpu,
        )
        self._large: dict[int, int] = {}
        self._kmalloc: dict[tuple[int, int], KmemCache] = {}
        self._nokmem = "nokmem" in (cmdline.get("cgroup.memory") or "").split(",")
        self._boot()

    # -- boot --------------------------------------------------------------------------------------------

    def _boot(self) -> None:
        """``kmem_cache_init``: the caches that caches are made from, then the kmalloc caches."""
        nodes = self._boot_cache("kmem_cache_node", self.machine.word * NODE_POINTERS)
        self.kmem_cache_node = nodes
        nodes.node_structs = [self._first_node_struct(nodes, nid) for nid in self.slab_nodes]
        pointers = self.machine.word * len(self.machine.nodes)
        caches = self._boot_cache("kmem_cache", CACHE_STRUCT_BYTES[self.machine.word] + pointers)
        self.kmem_cache = caches
        caches.node_structs = [self._internal(nodes, nid) for nid in self.slab_nodes]
        self._alloc_cpus(nodes)
        self._alloc_cpus(caches)
        for cache in (caches, nodes):
            cache.struct = self._internal(caches, NUMA_NO_NODE)
            self.core.flush(cache.index, self._context.cpu)
            self._free_discarded(())
            self._register(cache)
        for kind in range(NR_KMALLOC_TYPES):
            for index in kmalloc_indices():
                self._kmalloc[kind, index] = self._kmalloc_cache(kind, index)
        rules = self.rules
        self._printk.log(
            KERN_INFO,
            f"SLUB: HWalign={rules.cache_line}, Order={rules.slub_min_order}-{rules.slub_max_order}, "
            f"MinObjects={rules.slub_min_objects}, CPUs={self.core.ncpus}, Nodes={self.core.nnodes}",
        )

    def _boot_cache(self, name: str, size: int) -> KmemCache:
        """``create_boot_cache`` for a cache that is cache-line aligned and never merged."""
        flags = sf.SLAB_HWCACHE_ALIGN
        align = self.rules.alignment(flags, KMALLOC_MINALIGN, size)
        return self._permanent(name, size, align, flags, 0, -1)

    def _permanent(self, name: str, size: int, align: int, flags: int, usersize: int, refcount: int) -> KmemCache:
        geometry = self._geometry(name, size, align, flags, False)
        assert geometry is not None
        cache = KmemCache(
            self._new_index(),
            name,
            size,
            align,
            geometry,
            usersize=usersize,
            refcount=refcount,
            permanent=True,
        )
        cache.directory = name if self.merging.keeps_own_directory(cache) else cache.unique_id()
        self.configure(cache)
        return cache

    def _first_node_struct(self, cache: KmemCache, nid: int) -> int:
        """The per-node part of kmem_cache_node itself (``early_kmem_cache_node_alloc``)."""
        stack = self._depot.extend(self._context.site, ("early_kmem_cache_node_alloc",))
        pfns, order, _ = self._new_pages(cache, GFP_NOWAIT, nid, 1, stack)
        if not pfns:
            raise KernelError(errno.ENOMEM, f"no memory on node {nid} for the first slab")
        out = np.empty(1, dtype=np.uint64)
        self.core.boot_slab(cache.index, pfns[0], order, out)
        return int(out[0])

    def _kmalloc_cache(self, kind: int, index: int) -> KmemCache:
        """``new_kmalloc_cache``: aligned to its size when that is a power of two."""
        if kind == KMALLOC_CGROUP and (self._nokmem or not self.machine.memcg_kmem):
            return self._kmalloc[KMALLOC_NORMAL, index]
        size = kmalloc_cache_size(index)
        align = max(KMALLOC_MINALIGN, size) if size & (size - 1) == 0 else KMALLOC_MINALIGN
        flags = KMALLOC_TYPE_FLAGS[kind] | sf.SLAB_KMALLOC
        merged = kind != KMALLOC_NORMAL or not self.machine.memcg_kmem
        name = kmalloc_name(kind, size)
        cache = self._permanent(name, size, self.rules.alignment(flags, align, size), flags, size, 1 if merged else -1)
        self._describe(cache)
        return self._register(cache)

    # -- kmalloc -----------------------------------------------------------------------------------------

    def kmalloc_cache(self, size: int, gfp: int) -> KmemCache:
        """The cache that serves a request of 1 to KMALLOC_MAX_CACHE_SIZE bytes (``kmalloc_slab``)."""
        index = kmalloc_index(size)
        return self._kmalloc[kmalloc_type(gfp, index), index]

    def kmalloc(self, size: int, gfp: int = GFP_KERNEL, nid: int = NUMA_NO_NODE) -> int:
        """The address of ``size`` bytes; ZERO_SIZE_PTR for none. ENOMEM."""
        return int(self.kmalloc_bulk(size, gfp, 1, nid)[0])

    def kmalloc_bulk(self, size: int, gfp: int, n: int, nid: int = NUMA_NO_NODE) -> Addresses:
        """``n`` times ``size`` bytes; fewer when memory ran out. ENOMEM when there is none at all."""
        if size < 0:
            raise KernelError(errno.EINVAL, f"kmalloc of {size} bytes")
        if size == 0:
            return np.full(n, ZERO_SIZE_PTR, dtype=np.uint64)
        if size > KMALLOC_MAX_CACHE_SIZE:
            return self._kmalloc_large(size, gfp, n, nid)
        return self._alloc(self.kmalloc_cache(size, gfp), gfp, n, nid, KMALLOC_FRAMES, size)

    def kzalloc(self, size: int, gfp: int = GFP_KERNEL, nid: int = NUMA_NO_NODE) -> int:
        """``kmalloc`` of zeroed memory."""
        return self.kmalloc(size, gfp | F.ZERO, nid)

    def _kmalloc_large(self, size: int, gfp: int, n: int, nid: int) -> Addresses:
        """Whole page blocks (``__kmalloc_large_node``)."""
        self._check_node(nid)
        order = get_order(size)
        if order >= MAX_ORDER:
            if not gfp & F.NOWARN:
                self.reports.warn_once(("__alloc_pages", *LARGE_FRAMES))
            raise KernelError(errno.ENOMEM, f"kmalloc of {size} bytes is more than a block of order {MAX_ORDER - 1}")
        if gfp & GFP_SLAB_BUG_MASK:
            gfp = self.reports.fix_flags(gfp, GFP_SLAB_BUG_MASK)
        self._context.stack = self._depot.extend(self._context.site, LARGE_FRAMES)
        pfns = self._page_alloc.alloc_pages_bulk(gfp | F.COMP, order, n, nid)
        if n and not len(pfns):
            raise KernelError(errno.ENOMEM, f"no free block of order {order} for {format_gfp(gfp)}")
        out = pfns.astype(np.uint64) * np.uint64(PAGE_SIZE) + np.uint64(self.machine.page_offset)
        kmalloc_large(self._context.trace, out, size, order, gfp, nid)
        for pfn in pfns.tolist():
            self._large[pfn] = order
            self.node_stat[self.core.nid_of(pfn), NR_SLAB_UNRECLAIMABLE_B] += 1 << order
        if self._observer.enabled:
            self._observer.alloc_bulk(out, size, self._depot.extend(self._context.site, LARGE_FRAMES))
        return out

    def krealloc(self, address: int, size: int, gfp: int = GFP_KERNEL) -> int:
        """The address of an object grown to ``size`` bytes, which may be the old one. ENOMEM, EINVAL."""
        if size == 0:
            self.kfree(address)
            return ZERO_SIZE_PTR
        old = 0 if address in (0, ZERO_SIZE_PTR) else self.ksize(address)
        if old >= size:
            return address
        new = self.kmalloc(size, gfp)
        if address not in (0, ZERO_SIZE_PTR):
            self.kfree(address)
        return new

    def kfree(self, address: int) -> None:
        """Give back what kmalloc gave. EINVAL or EFAULT and a report for anything else."""
        self.kfree_bulk(np.array([address], dtype=np.uint64))

    def kfree_bulk(self, addresses: Addresses) -> None:
        """Give back what kmalloc gave; one that is refused does not keep the others. The first error is raised."""
        self._context.trace.emit_objects(ev.KFREE, addresses, -self.machine.costs.free)
        error = self._free(addresses, -1, KFREE_FRAMES, True)
        if error is not None:
            raise error

    def _free_other(self, address: int, index: int, frames: tuple[str, ...]) -> None:
        """NULL, ZERO_SIZE_PTR, page blocks (``free_large_kmalloc``); complaints about the rest."""
        pfn, offset = divmod(address - self.machine.page_offset, PAGE_SIZE)
        if index < 0 and address in (0, ZERO_SIZE_PTR):
            return
        if index >= 0 or offset or pfn not in self._large:
            super()._free_other(address, index, frames)
            return
        order = self._large.pop(pfn)
        self._observer.free(address)
        self.node_stat[self.core.nid_of(pfn), NR_SLAB_UNRECLAIMABLE_B] -= 1 << order
        self._context.stack = self._depot.extend(self._context.site, ("free_large_kmalloc", "kfree"))
        self._page_alloc.free_pages_bulk(np.array([pfn], dtype=np.int64), order)
        self._context.stack = 0

    def ksize(self, address: int) -> int:
        """Usable bytes at an address; 0 for NULL and ZERO_SIZE_PTR. EINVAL for what kmalloc did not give."""
        if address in (0, ZERO_SIZE_PTR):
            return 0
        if self.kfence is not None and self.kfence.covers(address):
            guarded = self.kfence.object_at(address)
            return 0 if guarded is None else guarded.size
        cache = self.cache_of(address)
        if cache is not None:
            return cache.ksize()
        pfn, offset = divmod(address - self.machine.page_offset, PAGE_SIZE)
        if offset or pfn not in self._large:
            raise KernelError(errno.EINVAL, f"{address:#x} was not allocated by kmalloc")
        return PAGE_SIZE << self._large[pfn]

    @property
    def large(self) -> dict[int, int]:
        """PFN and order of every block that kmalloc took from the page allocator."""
        return self._large

    # -- knobs, proof ------------------------------------------------------------------------------------

    def set_min_partial(self, cache: KmemCache, slabs: int) -> None:
        """Partial slabs that a node keeps even when they are empty."""
        cache.min_partial = slabs
        self.configure(cache)

    def set_cpu_partial(self, cache: KmemCache, objects: int) -> None:
        """Objects that a CPU's partial list may hold. EINVAL for a debugged cache, unless it is 0."""
        if objects and cache.debugged:
            raise KernelError(errno.EINVAL, f"{cache.name} is debugged and has no per-cpu partial lists")
        cache.cpu_partial = objects
        self.configure(cache)
        self.flush_all(cache)

    def set_defrag_ratio(self, cache: KmemCache, percent: int) -> None:
        """How readily slabs of other nodes are used. ERANGE above 100."""
        if percent > 100:
            raise KernelError(errno.ERANGE, f"{percent} is not between 0 and 100")
        cache.defrag_ratio = percent * 10
        self.configure(cache)

    def validate(self, cache: KmemCache) -> int:
        """Look at every slab of a cache that is on a list (``validate_slab_cache``); how many."""
        self.flush_all(cache)
        return sum(self.debugging.validate(cache, nid) for nid in self.slab_nodes)

    def check(self) -> None:
        """Recompute every count and list from the slabs. AssertionError on a difference."""
        check_slub(self, self.caches)
