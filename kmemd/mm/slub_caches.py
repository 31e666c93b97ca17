"""Slab caches: making and destroying them, their pages, allocation and freeing (mm/slub.c, mm/slab_common.c).

The lists and the order of everything are ``core/slab.py``; here are GFP masks, pages, statistics that outlive a call,
the observers' calls and the complaints. A cache's own description (struct kmem_cache and its per-node part) comes
from the caches ``kmem_cache`` and ``kmem_cache_node`` as in Linux. Left out: the name's copy and sysfs's own
objects, which Linux allocates for a new cache, failslab.
"""

from __future__ import annotations

import errno

import numpy as np
import numpy.typing as npt

from kmemd.core import trace_ids as ev
from kmemd.core.context import Context
from kmemd.core.pages import PageMap
from kmemd.core.slab import SlabCore
from kmemd.core.slab_layout import FREE_OBJECT, MISALIGNED, NO_SLAB, NODE_COLUMNS, NR_OBJECTS, NR_SLABS
from kmemd.core.slab_lists import SlabLists
from kmemd.core.stats import NR_SLAB_RECLAIMABLE_B, NR_SLAB_UNRECLAIMABLE_B
from kmemd.errors import KernelError
from kmemd.mm import slab_flags as sf
from kmemd.mm.fault_inject import FailSlab
from kmemd.mm.gfp import GFP_KERNEL, GFP_RECLAIM_MASK, F, gfp_zone
from kmemd.mm.kfence import Kfence
from kmemd.mm.leak_observer import FILL_POISON, FILL_ZERO, Addresses, LeakObserver, NullObserver
from kmemd.mm.page_supply import PageSupply
from kmemd.mm.params import CommandLine
from kmemd.mm.percpu import Area, Percpu
from kmemd.mm.preempt import Preempt
from kmemd.mm.printk import KERN_ERR, Printk
from kmemd.mm.slab_common import KmemCache, Merging, check_geometry_request
from kmemd.mm.slab_geometry import Geometry, calculate_sizes, get_order
from kmemd.mm.slub_bytes import SlabBytes
from kmemd.mm.slub_charging import SlabCharging
from kmemd.mm.slub_debugging import ALLOC, SlubDebugging
from kmemd.mm.slub_harden import BUG_LINE, Hardening
from kmemd.mm.slub_machine import SlubMachine
from kmemd.mm.slub_oom import SlabOutOfMemory
from kmemd.mm.slub_report import ReportTools, SlubReports
from kmemd.mm.slub_trace import slab_alloc
from kmemd.mm.stackdepot import StackDepot
from kmemd.mm.units import NUMA_NO_NODE

GFP_CONSTRAINT_MASK = F.HARDWALL | F.THISNODE
GFP_SLAB_BUG_MASK = F.DMA32 | F.HIGHMEM
PAGE_FRAMES = ("allocate_slab", "new_slab", "___slab_alloc")
FREE_FRAMES = ("__free_slab", "discard_slab")
CACHE_FRAMES = ("kmem_cache_alloc",)
CACHE_FREE_FRAMES = ("kmem_cache_free",)
CPU_POINTERS, STAT_ITEMS = 4, 26
"""Words of struct kmem_cache_cpu, and its counters of 32 bits behind them (NR_SLUB_STAT_ITEMS)."""
PRE_ALLOC = "slab_pre_alloc_hook.constprop.0"
MOST_PAGES = 256
"""Pages taken from the page allocator at once."""


class SlabCaches:
    """All caches of one kernel.

    ``directories`` and ``links`` are the entries of /sys/kernel/slab: a cache that can be merged has a directory
    named by its properties, and a link for every name. A link stays when its name is destroyed, as in Linux.
    """

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
        self._memcg = memcg
        self._percpu, self._cpu_areas = percpu, dict[int, Area]()
        self._page_alloc = page_alloc
        self.node_stat = node_stat
        self._context = context
        self._depot = depot
        self._printk = printk
        self._observer: LeakObserver = observer or NullObserver()
        self._preempt = preempt
        self.fail: FailSlab | None = None
        """Failures made on purpose, once tasks exist."""
        self.kfence: Kfence | None = None
        """Who serves an object now and then, once the page allocator can give it a pool."""
        self.machine = machine
        self.slab_nodes = machine.slab_nodes()
        self.core = SlabCore(
            pages,
            node_stat,
            context.words,
            machine.page_offset,
            machine.memory_node_of_cpus(),
            self.slab_nodes,
            machine.node_order(),
            machine.spans(),
        )
        self.lists = SlabLists(self.core, pages, machine.page_offset)
        self.hardening = hardening or Hardening()
        self.core.shuffle = self.hardening.shuffle
        self.bytes = SlabBytes(self.lists, self._of_index, machine.word, self.hardening.secret)
        self.reports = SlubReports(self.lists, self.bytes, context, depot, printk, tools, machine.word)
        self.debugging = SlubDebugging(
            self.core, self.lists, self.bytes, self.reports, machine.word, init_on_free=self.hardening.init_on_free
        )
        self.rules = machine.rules(cmdline)
        self.debug = sf.SlubDebug(cmdline.get("slub_debug"), lambda text: printk.log(KERN_ERR, text))
        self.merging = Merging(self.rules, self.debug, machine.merges(cmdline))
        self._caches: list[KmemCache] = []
        self._by_index: dict[int, KmemCache] = {}
        self._by_name: dict[str, KmemCache] = {}
        self._spare_indices: list[int] = []
        self.directories: dict[str, KmemCache] = {}
        self.links: dict[str, KmemCache] = {}
        self.kmem_cache: KmemCache | None = None
        self.kmem_cache_node: KmemCache | None = None
        self._calls = 0
        self._traced = False
        """Whether any cache has SLAB_TRACE."""
        self._complaints = SlabOutOfMemory(self.core, context, printk, self.slab_nodes)

    def _of_index(self, index: int) -> KmemCache:
        return self._by_index[index]

    # -- looking caches up -------------------------------------------------------------------------------

    @property
    def caches(self) -> list[KmemCache]:
        """All caches, the newest first, as slabinfo lists them."""
        return self._caches[::-1]

    @property
    def names(self) -> dict[str, KmemCache]:
        """Every name in use, those of aliases too."""
        return self._by_name

    def cache(self, name: str) -> KmemCache:
        """The cache with a name, its own or an alias. ENOENT."""
        found = self._by_name.get(name)
        if found is None:
            raise KernelError(errno.ENOENT, f"there is no slab cache {name!r}")
        return found

    def cache_of(self, address: int) -> KmemCache | None:
        """The cache that an allocated object belongs to; None for any other address."""
        if self.kfence is not None and self.kfence.covers(address):
            guarded = self.kfence.object_at(address)
            return None if guarded is None else guarded.cache
        kind, slab, _ = self.lists.locate(address)
        return None if kind in (NO_SLAB, FREE_OBJECT, MISALIGNED) else self._by_index[self.lists.cache(slab)]

    # -- making caches -----------------------------------------------------------------------------------

    def kmem_cache_create(
        self,
        name: str,
        size: int,
        align: int = 0,
        flags: int = 0,
        ctor: str | None = None,
        useroffset: int = 0,
        usersize: int = 0,
    ) -> KmemCache:
        """A cache of objects of ``size`` bytes, or one it can share. EINVAL, EEXIST, ENOMEM."""
        check_geometry_request(name, size)
        if flags & ~sf.FLAGS_PERMITTED:
            return self._refuse(name, errno.EINVAL, f"flags {flags & ~sf.FLAGS_PERMITTED:#x} are the allocator's own")
        flags &= sf.CREATE_MASK
        if (useroffset and not usersize) or useroffset + usersize > size:
            useroffset = usersize = 0
        if not usersize:
            shared = self.merging.find(self._caches, name, size, align, flags, ctor)
            if shared is not None:
                return self._share(shared, name, size)
        align = self.rules.alignment(flags, align, size)
        geometry = self._geometry(name, size, align, flags, bool(ctor))
        if geometry is None:
            return self._refuse(name, errno.EINVAL, f"no slab holds an object of {size} bytes")
        cache = KmemCache(self._new_index(), name, size, align, geometry, ctor, useroffset, usersize)
        cache.directory = name if self.merging.keeps_own_directory(cache) else cache.unique_id()
        if cache.directory in self.directories:
            self._spare_indices.append(cache.index)
            self.reports.duplicate_directory(cache.directory)
            return self._refuse(name, errno.EEXIST, f"there is a slab cache {name!r} already")
        self._describe(cache)
        return self._register(cache)

    def _refuse(self, name: str, number: int, reason: str) -> KmemCache:
        """Say that no cache was made, and raise."""
        self.reports.warn(f"kmem_cache_create_usercopy({name}) failed with error {-number}")
        raise KernelError(number, reason)

    def _geometry(self, name: str, size: int, align: int, flags: int, ctor: bool) -> Geometry | None:
        """The layout of a new cache with the command line's debugging flags (``kmem_cache_open``)."""
        flags = self.debug.cache_flags(flags, name)
        geometry = calculate_sizes(self.rules, size, align, flags, ctor)
        if geometry is None or not self.debug.disable_higher_order:
            return geometry
        if get_order(geometry.size) > get_order(size):
            geometry = calculate_sizes(self.rules, size, align, flags & ~sf.DEBUG_METADATA_FLAGS, ctor)
        return geometry

    def _share(self, cache: KmemCache, name: str, size: int) -> KmemCache:
        """Make ``name`` an alias (``__kmem_cache_alias``)."""
        cache.refcount += 1
        cache.names.append(name)
        cache.object_size = max(cache.object_size, size)
        cache.inuse = max(cache.inuse, -(-size // self.rules.word) * self.rules.word)
        self._by_name[name] = cache
        self.links[name] = cache
        return cache

    def _new_index(self) -> int:
        if self._spare_indices:
            return self._spare_indices.pop()
        return int(self.core.add_cache())

    def _describe(self, cache: KmemCache) -> None:
        """Allocate struct kmem_cache and the per-node structures. ENOMEM."""
        assert self.kmem_cache is not None
        assert self.kmem_cache_node is not None
        self.configure(cache)
        try:
            cache.struct = self._internal(self.kmem_cache, NUMA_NO_NODE)
            for nid in self.slab_nodes:
                cache.node_structs.append(self._internal(self.kmem_cache_node, nid))
            self._alloc_cpus(cache)
        except KernelError:
            self._release(cache)
            raise

    def _alloc_cpus(self, cache: KmemCache) -> None:
        """struct kmem_cache_cpu of a cache (``alloc_kmem_cache_cpus``). ENOMEM."""
        if self._percpu is not None:
            word = self.machine.word
            self._cpu_areas[cache.index] = self._percpu.alloc(CPU_POINTERS * word + STAT_ITEMS * 4, 2 * word)

    def _internal(self, cache: KmemCache, nid: int) -> int:
        """An object for the allocator itself, which kmemleak is not told of: its lists point to it."""
        out = self._allocate(cache, GFP_KERNEL, 1, nid, CACHE_FRAMES)
        if not len(out):
            raise KernelError(errno.ENOMEM, f"no memory to describe a slab cache ({cache.name})")
        return int(out[0])

    def _register(self, cache: KmemCache) -> KmemCache:
        self._traced = self._traced or bool(cache.flags & sf.SLAB_TRACE)
        cache.names.append(cache.name)
        cache.directory = cache.directory or cache.name
        self._caches.append(cache)
        self._by_index[cache.index] = cache
        self._by_name[cache.name] = cache
        self.directories[cache.directory] = cache
        if cache.directory != cache.name:
            self.links[cache.name] = cache
        return cache

    def configure(self, cache: KmemCache) -> None:
        """Tell the core a cache's constants, after one of them changed."""
        reclaimable = cache.flags & sf.SLAB_RECLAIM_ACCOUNT
        self.core.configure(
            cache.index,
            cache.size,
            cache.geometry.red_left_pad,
            cache.cpu_partial_slabs,
            min(cache.min_partial, (1 << 62) - 1),
            cache.debugged,
            bool(cache.flags & sf.SLAB_STORE_USER),
            NR_SLAB_RECLAIMABLE_B if reclaimable else NR_SLAB_UNRECLAIMABLE_B,
            cache.defrag_ratio if self.machine.numa else 0,
        )

    # -- destroying and shrinking ------------------------------------------------------------------------

    def kmem_cache_destroy(self, cache: KmemCache, name: str | None = None) -> None:
        """Drop one name of a cache; the last one frees it. EBUSY and a report when objects are left."""
        if cache.permanent:
            raise KernelError(errno.EPERM, f"slab cache {cache.name} is the kernel's own")
        if cache.refcount > 0:
            cache.refcount -= 1
        self._forget_name(cache, name or cache.name)
        if cache.refcount:
            return
        self.flush_all(cache)
        self.debugging.check_empty(cache, CACHE_FREE_FRAMES)
        busy = False
        for nid in self.slab_nodes:
            for slab in self.lists.partial(cache.index, nid):
                if self.lists.inuse(slab):
                    self.reports.objects_remaining(cache, slab)
            self.lists.discard_empty(cache.index, nid)
            busy = busy or self.node_count(cache, nid, NR_SLABS) > 0
        self._free_discarded(CACHE_FREE_FRAMES)
        if busy:
            self.reports.still_has_objects(cache)
            raise KernelError(errno.EBUSY, f"slab cache {cache.name} still has objects")
        self._caches.remove(cache)
        del self._by_index[cache.index]
        del self.directories[cache.directory]
        for names in (self._by_name, self.links):
            for other in [key for key, value in names.items() if value is cache]:
                del names[other]
        self._release(cache)

    def _forget_name(self, cache: KmemCache, name: str) -> None:
        """A name is given up; sysfs keeps an alias's link, and the cache its own name, until the end."""
        if name in cache.names:
            cache.names.remove(name)
        if name != cache.name and name not in cache.names:
            self._by_name.pop(name, None)

    def _release(self, cache: KmemCache) -> None:
        """Free what describes a cache (``slab_kmem_cache_release``)."""
        assert self.kmem_cache is not None
        area = self._cpu_areas.pop(cache.index, None)
        if area is not None and self._percpu is not None:
            self._percpu.free(area)
        addresses = [*cache.node_structs, *([cache.struct] if cache.struct else [])]
        self._free(np.array(addresses, dtype=np.uint64), -1, CACHE_FREE_FRAMES, False)
        self.core.reset_cache(cache.index)
        self.hardening.forget(cache)
        if self.kfence is not None:
            self.kfence.shutdown_cache(cache)
        self._spare_indices.append(cache.index)

    def kmem_cache_shrink(self, cache: KmemCache) -> bool:
        """Give up empty slabs and sort the others. Whether no slab is left."""
        self.flush_all(cache)
        self.debugging.check_empty(cache, ("kmem_cache_shrink",))
        for nid in self.slab_nodes:
            self.lists.shrink(cache.index, nid)
        self._free_discarded(("kmem_cache_shrink",))
        return all(self.node_count(cache, nid, NR_SLABS) == 0 for nid in self.slab_nodes)

    def flush_all(self, cache: KmemCache) -> None:
        """Take every CPU's slabs of a cache from it."""
        for cpu in range(self.core.ncpus):
            self.core.flush(cache.index, cpu)
        self._free_discarded(("unfreeze_partials", "flush_cpu_slab"))

    def node_count(self, cache: KmemCache, nid: int, column: int) -> int:
        """A (cache, node) counter, a column of core/slab_layout."""
        return int(self.core.arrays["node"][(cache.index * self.core.nnodes + nid) * NODE_COLUMNS + column])

    def slab_counts(self, cache: KmemCache) -> tuple[int, int, int]:
        """``(active objects, objects, slabs)`` as slabinfo counts them: a CPU's slab is all in use."""
        slabs = objects = free = 0
        for nid in self.slab_nodes:
            slabs += self.node_count(cache, nid, NR_SLABS)
            objects += self.node_count(cache, nid, NR_OBJECTS)
            inuse, total = self.core.count_partial(cache.index, nid)
            free += total - inuse
        return objects - free, objects, slabs

    # -- objects -----------------------------------------------------------------------------------------

    def kmem_cache_alloc(self, cache: KmemCache, gfp: int = GFP_KERNEL, nid: int = NUMA_NO_NODE) -> int:
        """The address of an object. ENOMEM."""
        return int(self.kmem_cache_alloc_bulk(cache, gfp, 1, nid)[0])

    def kmem_cache_alloc_bulk(self, cache: KmemCache, gfp: int, n: int, nid: int = NUMA_NO_NODE) -> Addresses:
        """``n`` objects, allocated one after the other; fewer when memory ran out. ENOMEM when there is none."""
        return self._alloc(cache, gfp, n, nid, CACHE_FRAMES, cache.object_size)

    def _alloc(self, cache: KmemCache, gfp: int, n: int, nid: int, frames: tuple[str, ...], size: int) -> Addresses:
        """Allocate and tell the observer; ``frames`` are the allocator's own, ``size`` what was asked for."""
        self._check_node(nid)
        if self._preempt is not None and self._preempt.atomic:
            self._preempt.might_alloc(gfp, frames[0])
        if self.fail is not None and self.fail.armed:
            asked, n = n, self.fail.room(cache.flags, cache.object_size, gfp, n, (PRE_ALLOC, *frames))
            if asked and not n:
                raise KernelError(errno.ENOMEM, f"{self.fail.NAME} wants this object of {cache.name} to fail")
        guarded = self.kfence.alloc(cache, size, gfp) if n and self.kfence is not None and self.kfence.due else 0
        out = self._allocate(cache, gfp, n - bool(guarded), nid, frames, size)
        if guarded:
            out = np.concatenate((np.array([guarded], dtype=np.uint64), out))
        if n and not len(out):
            raise KernelError(errno.ENOMEM, f"no memory for a slab of {cache.name}")
        each = self.machine.costs.alloc
        if self._observer.enabled and not cache.flags & sf.SLAB_NOLEAKTRACE:
            handle = self._depot.extend(self._context.site, ("slab_post_alloc_hook", *frames))
            poisoned = cache.flags & sf.OBJECT_POISON and not gfp & F.ZERO
            fill = FILL_POISON if poisoned else FILL_ZERO
            told = self._context.now
            self._observer.alloc_bulk(out, cache.object_size, handle, fill=fill)
            if n:
                each += (self._context.now - told) // len(out)
        slab_alloc(self._context.trace, cache, out, frames[-1], size, gfp, nid, each)
        return out

    def boot_alloc(self, cache: KmemCache, n: int, nid: int = NUMA_NO_NODE) -> Addresses:
        """``n`` objects that kernel data which is not modelled points to: kmemleak is not told. ENOMEM."""
        out = self._allocate(cache, GFP_KERNEL, n, nid, CACHE_FRAMES)
        if len(out) < n:
            raise KernelError(errno.ENOMEM, f"no memory for a slab of {cache.name}")
        return out

    def _check_node(self, nid: int) -> None:
        if nid != NUMA_NO_NODE and not 0 <= nid < self.core.nnodes:
            raise KernelError(errno.EINVAL, f"there is no node {nid}")

    def _allocate(
        self, cache: KmemCache, gfp: int, n: int, nid: int, frames: tuple[str, ...], size: int | None = None
    ) -> Addresses:
        """``slab_alloc_node`` n times for ``size`` bytes (the object's by default), charged to the control group of
        who executes if the cache or the caller wants that."""
        memcg = self._memcg
        if memcg is None or not memcg.active or not (gfp & F.ACCOUNT or cache.flags & sf.SLAB_ACCOUNT):
            return self._fill(cache, gfp, n, nid, frames, size)
        objcg, charged = memcg.pre_alloc(cache.size, gfp, n)
        out = self._fill(cache, gfp, charged, nid, frames, size)
        if objcg is not None:
            reclaimable = bool(cache.flags & sf.SLAB_RECLAIM_ACCOUNT)
            memcg.post_alloc(objcg, out, charged, cache.size, reclaimable=reclaimable)
        return out

    def _fill(
        self, cache: KmemCache, gfp: int, n: int, nid: int, frames: tuple[str, ...], size: int | None
    ) -> Addresses:
        """Objects of a cache, with pages as they are needed; looked at and filled where that is wanted."""
        traced = cache.flags & sf.SLAB_TRACE
        if cache.debugged and (traced or self.bytes.suspects) and (traced or self.debugging.suspects(cache)):
            out = self._take_carefully(cache, gfp, n, nid, frames)
        else:
            out = self._take(cache, gfp, n, nid, frames)
        self._context.charge(self.machine.costs.alloc * len(out))
        if cache.flags & sf.SLAB_STORE_USER:
            self.reports.track_alloc(out, frames[-1:], cache.object_size if size is None else size)
        zero = self.hardening.clears(cache, gfp)
        if (zero and cache.flags & sf.OBJECT_POISON) or self.bytes.concerns(out):
            self.bytes.allocated(cache, out, zero=zero)
        return out

    def _take_carefully(self, cache: KmemCache, gfp: int, n: int, nid: int, frames: tuple[str, ...]) -> Addresses:
        """One object after the other, each looked at before it is taken."""
        zone = gfp_zone(gfp & ~GFP_SLAB_BUG_MASK, self.machine.zone_names)
        parts = []
        for _ in range(n):
            self.debugging.before_alloc(cache, self._context.cpu, nid, zone, frames)
            part = self._take(cache, gfp, 1, nid, frames)
            if not len(part):
                break
            if cache.flags & sf.SLAB_TRACE:
                address = int(part[0])
                self.reports.trace(cache, self.lists.slab_at(address), address, "alloc", (*ALLOC, *frames))
            parts.append(part)
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64)

    def _take(self, cache: KmemCache, gfp: int, n: int, nid: int, frames: tuple[str, ...]) -> Addresses:
        """Objects off the lists, and new slabs when these have none; fewer than ``n`` when memory ran out."""
        self._calls += 1
        out = np.empty(n, dtype=np.uint64)
        zone = gfp_zone(gfp & ~GFP_SLAB_BUG_MASK, self.machine.zone_names)
        cpu = self._context.cpu
        request = (cache.index, cpu, nid, zone, out)
        done = self.core.alloc(*request, 0, n)
        while done < n:
            if gfp & GFP_SLAB_BUG_MASK:
                gfp = self.reports.fix_flags(gfp, GFP_SLAB_BUG_MASK)
            stack = self._depot.extend(self._context.site, (*PAGE_FRAMES, *frames))
            calls = self._calls
            pfns, order, fallback = self._new_pages(cache, gfp, nid, n - done, stack)
            if calls != self._calls:
                # reclaim freed or allocated objects meanwhile: the CPU may have a slab again (retry_load_slab)
                self.core.flush(cache.index, cpu)
            if not pfns:
                self._complaints(cache, gfp, nid)
                break
            self._context.charge(self.machine.costs.slow * len(pfns))
            fed = 0
            while fed < len(pfns) and done < n:
                done = self.core.feed(*request, done, n, pfns[fed], order, fallback)
                fed += 1
            if fed < len(pfns):  # what reclaim freed was enough
                self._page_alloc.free_pages_bulk(np.array(pfns[fed:], dtype=np.int64), order)
            if self.core.discarded:
                self._free_discarded(frames)
        return out[:done]

    def _new_pages(self, cache: KmemCache, gfp: int, nid: int, objects: int, stack: int) -> tuple[list[int], int, bool]:
        """Pages for ``objects`` more objects: ``(PFNs, order, whether it is the minimum order)``.

        ``allocate_slab``: the cache's order first, without trying hard; then the lowest order with the
        caller's own flags.
        """
        geometry = cache.geometry
        gfp = gfp & (GFP_RECLAIM_MASK | GFP_CONSTRAINT_MASK) | geometry.allocflags
        easy = (gfp | F.NOWARN | F.NORETRY) & ~F.NOFAIL
        if easy & F.DIRECT_RECLAIM and geometry.order > geometry.min_order:
            easy = (easy | F.NOMEMALLOC) & ~F.RECLAIM
        need = 1 if nid != NUMA_NO_NODE else min(MOST_PAGES, -(-objects // geometry.objects))
        self._context.stack = stack
        pfns: list[int] = self._page_alloc.alloc_pages_bulk(easy, geometry.order, need, nid).tolist()
        if pfns:
            return pfns, geometry.order, False
        self._context.stack = stack
        try:
            return [self._page_alloc.alloc_pages(gfp, geometry.min_order, nid)], geometry.min_order, True
        except KernelError as error:
            if error.errno != errno.ENOMEM:
                raise
            return [], 0, False

    def kmem_cache_free(self, cache: KmemCache, address: int) -> None:
        """Give an object back. EINVAL and a report when it is none of the cache's."""
        self.kmem_cache_free_bulk(cache, np.array([address], dtype=np.uint64))

    def kmem_cache_free_bulk(self, cache: KmemCache, addresses: Addresses) -> None:
        """Give objects back; one that is refused does not keep the others. The first error is raised."""
        self._context.trace.emit_objects(ev.KMEM_CACHE_FREE, addresses, -self.machine.costs.free, cache.name)
        observed = not cache.flags & sf.SLAB_NOLEAKTRACE
        error = self._free(addresses, cache.index, CACHE_FREE_FRAMES, observed)
        if error is not None:
            raise error

    def _free(self, addresses: Addresses, index: int, frames: tuple[str, ...], observed: bool) -> KernelError | None:
        """Free objects, of one cache or (-1) of any; the first refusal. ``observed``: tell the observer."""
        self._calls += 1
        todo = np.ascontiguousarray(addresses, dtype=np.uint64)
        cpu, done, end = self._context.cpu, 0, len(todo)
        first: KernelError | None = None
        careful = self._traced or self.bytes.concerns(todo, suspects=True)
        if not careful and self.bytes.concerns(todo):
            self.debugging.objects_freed(todo)
        while done < end:
            before = done
            stop = done + 1 if careful else end
            refused = self.debugging.before_free(int(todo[done]), index, frames) if careful else None
            done = self.core.free(cpu, todo, done, stop, index) if refused is None else done
            self._given_back(todo[before:done], frames, observed)
            if done < stop:
                error = refused or self._refusal(int(todo[done]), index, frames)
                first = first or error
                done += 1
        self._context.charge(self.machine.costs.free * end)
        return first

    def _given_back(self, objects: Addresses, frames: tuple[str, ...], observed: bool) -> None:
        """Objects are on the lists again: tell who listens, give the pages of empty slabs back."""
        self.reports.track_free(objects, frames)
        if self._memcg is not None and self._memcg.objects:
            self._memcg.free_objects(objects)
        self.bytes.freed(objects)
        if observed:
            self._observer.free_bulk(objects)
        if self.core.discarded:
            self._free_discarded(frames)

    def _refusal(self, address: int, index: int, frames: tuple[str, ...]) -> KernelError | None:
        """What is wrong with an address that the lists do not take; None for what is no object and is freed."""
        try:
            self._free_other(address, index, frames)
        except KernelError as error:
            return error
        return None

    def _free_other(self, address: int, index: int, frames: tuple[str, ...]) -> None:
        """Complain about an address that is no object of the cache."""
        if self.kfence is not None and self.kfence.covers(address):
            self.kfence.free(address)
            self._observer.free(address)
            return
        cache = self._by_index.get(index)
        kind, slab, _ = self.lists.locate(address)
        if kind == FREE_OBJECT and self.hardening.hardened:
            self._detect_double_free(slab, address, frames)
        owner = self._by_index[self.lists.cache(slab)] if slab else None
        raise self.reports.refuse_free(address, kind, slab, owner, cache)

    def _detect_double_free(self, slab: int, address: int, frames: tuple[str, ...]) -> None:
        """The object that is first in its free list is freed again: a BUG with hardened lists (``set_freepointer``)."""
        cache = self._by_index[self.lists.cache(slab)]
        cpu = self._context.cpu
        on_cpu = self.lists.cpu_slab(cache.index, cpu) == slab
        chain = self.lists.cpu_freelist(cache.index, cpu) if on_cpu else self.lists.freelist(slab)
        if chain and self.lists.address(slab, chain[0]) == address and not cache.flags & sf.SLAB_CONSISTENCY_CHECKS:
            self.hardening.bug(BUG_LINE, ("__slab_free" if not on_cpu else "__kmem_cache_free", *frames[-1:]))
            raise KernelError(errno.EFAULT, f"{address:#x} was freed twice in a row")

    def _free_discarded(self, frames: tuple[str, ...]) -> None:
        """Give the pages of discarded slabs back, in the order in which they were discarded."""
        blocks = self.core.discarded
        start = 0
        stack = self._depot.extend(self._context.site, (*FREE_FRAMES, *frames))
        while start < len(blocks):
            order = blocks[start] & 15
            end = start + 1
            while end < len(blocks) and blocks[end] & 15 == order:
                end += 1
            if self.reports.allocated or self.bytes:
                self._forget_tracks(blocks[start:end])
            self._context.stack = stack
            self._page_alloc.free_pages_bulk(np.array(blocks[start:end], dtype=np.int64) >> 4, order)
            start = end
        self._context.stack = 0
        blocks.clear()

    def _forget_tracks(self, blocks: list[int]) -> None:
        for block in blocks:
            first = self.machine.page_offset + (block >> 4 << 12)
            self.bytes.forget(first)
            self.reports.forget(first, first + (4096 << (block & 15)))
