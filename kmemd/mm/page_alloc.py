"""The page allocator: ``__alloc_pages`` with its slow path, and ``__free_pages`` (mm/page_alloc.c).

The zone walk, per-cpu lists and buddy lists are ``core/buddy.py``; here are the request's preparation, zonelists, the
order of attempts when memory is short, and the failure report. Reclaim, compaction and the OOM killer are reached
through ``Relief``. Left out: cpusets, CMA areas and struct page initialisation.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from kmemd.core.buddy import Buddy
from kmemd.core.context import Context
from kmemd.core.mmzone import (
    ALLOC_CMA,
    ALLOC_CPUSET,
    ALLOC_HIGHATOMIC,
    ALLOC_KSWAPD,
    ALLOC_MIN_RESERVE,
    ALLOC_NO_WATERMARKS,
    ALLOC_NOFRAGMENT,
    ALLOC_NON_BLOCK,
    ALLOC_OOM,
    ALLOC_WMARK_HIGH,
    ALLOC_WMARK_LOW,
    ALLOC_WMARK_MIN,
    MAX_ORDER,
    MIGRATE_MOVABLE,
)
from kmemd.core.pages import (
    ALLOCATED,
    PG_ACTIVE,
    PG_HEAD,
    PG_LOCKED,
    PG_LRU,
    PG_MLOCKED,
    PG_PRIVATE,
    PG_PRIVATE_2,
    PG_RESERVED,
    PG_SLAB,
    PG_UNEVICTABLE,
    PG_WRITEBACK,
)
from kmemd.errors import KernelError
from kmemd.mm import gfp as g
from kmemd.mm.clock import NSEC_PER_SEC
from kmemd.mm.dump_stack import DumpStack
from kmemd.mm.fault_inject import FailPageAlloc
from kmemd.mm.mmzone import PAGE_ALLOC_COSTLY_ORDER, Node, Zone
from kmemd.mm.node_reclaim import NodeReclaim
from kmemd.mm.page_poison import PagePoison
from kmemd.mm.page_request import (
    COMPACT_DEFERRED,
    COMPACT_SKIPPED,
    DEF_COMPACT_PRIORITY,
    MAX_RECLAIM_RETRIES,
    SUSPENDED,
    Charging,
    Relief,
    Request,
)
from kmemd.mm.panic import TAINT_BAD_PAGE
from kmemd.mm.preempt import Preempt
from kmemd.mm.printk import KERN_ALERT, KERN_WARNING, Printk
from kmemd.mm.stackdepot import StackDepot
from kmemd.mm.trace_points import reclaim_retry
from kmemd.mm.units import NUMA_NO_NODE
from kmemd.mm.zonelists import build_all_zonelists, zonelist_rows, zones_of

ALL_NODES = (1 << 64) - 1
WARN_INTERVAL_NS = 10 * NSEC_PER_SEC
PFNS = npt.NDArray[np.int64]
SLOW_BATCH = 31
"""After a block from the slow path so many more are taken before kswapd is looked at again (SWAP_CLUSTER_MAX)."""

CHECK_AT_FREE = sum(
    1 << bit
    for bit in (
        *(PG_LRU, PG_LOCKED, PG_PRIVATE, PG_PRIVATE_2, PG_WRITEBACK),
        *(PG_RESERVED, PG_SLAB, PG_ACTIVE, PG_UNEVICTABLE, PG_MLOCKED),
    )
)
"""Flags of a page that somebody still uses (PAGE_FLAGS_CHECK_AT_FREE)."""

FRAMES = ("post_alloc_hook", "prep_new_page", "get_page_from_freelist", "__alloc_pages")


class PageAllocator:
    """``alloc_pages`` and ``free_pages`` over all zones. ``slow_paths`` counts the ways through the slow path.

    ``suspended``: the last request that got less than it wanted is to be made again (see ``Relief.patience``).
    """

    def __init__(
        self,
        buddy: Buddy,
        zones: list[Zone],
        nodes: list[Node],
        context: Context,
        depot: StackDepot,
        printk: Printk,
        dump_stack: DumpStack,
        relief: Relief,
        show_mem: Callable[[int, int | None], None],
        zero_ns: int = 0,
        preempt: Preempt | None = None,
        node_reclaim: NodeReclaim | None = None,
        memcg: Charging | None = None,
    ) -> None:
        """``zero_ns`` is what clearing a page costs; ``preempt`` knows who must not sleep; ``memcg`` charges."""
        self._buddy = buddy
        self._zones = zones
        self._nodes = nodes
        self._context = context
        self._depot = depot
        self._printk = printk
        self._dump_stack = dump_stack
        self._relief = relief
        self._show_mem = show_mem
        self._zero_ns = zero_ns
        self._preempt = preempt
        self._node_reclaim = node_reclaim
        self._memcg = memcg
        self._names = tuple(zone.name for zone in nodes[0].zones)
        self._normal = self._names.index("Normal")
        self._next_warning_ns = 0
        self._wake = buddy.kswapd_wake.data
        self._plans: dict[tuple[int, int, int, int], tuple[int, int, int, int]] = {}
        self.slow_paths = 0
        self.suspended = False
        self._rounds = (0, 0)
        self.poison: PagePoison | None = None
        """What fills and looks at pages, once it is known."""
        self.fail: FailPageAlloc | None = None
        """Failures made on purpose, once tasks exist."""
        self.zonelists = build_all_zonelists(nodes)
        rows = [zones_of(nodes, row) for row in zonelist_rows(self.zonelists)]
        for row, indices in enumerate(rows):
            buddy.set_zonelist(row, indices)
        self._rows = [[zones[index] for index in indices] for indices in rows]
        self._several_nodes = sum(node.has_memory for node in nodes) > 1
        self._cpu_node = {cpu: node.nid for node in nodes for cpu in node.cpus}

    # -- requests ----------------------------------------------------------------------------------------

    def _plan(self, gfp: int, order: int, nid: int, nodemask: int) -> tuple[Request, int]:
        """What a request may use, and the alloc flags of its first attempt: both follow from its arguments, once."""
        if self._preempt is not None and self._preempt.atomic:
            self._preempt.might_alloc(gfp, "__alloc_pages")
        if nid == NUMA_NO_NODE:
            nid = self.numa_node_id()
        key = (gfp, order, nid, nodemask)
        plan = self._plans.get(key)
        if plan is None:
            request = self._request(gfp, order, nid, nodemask)
            plan = request.row, request.highest, request.migratetype, self._fast_flags(request)
            self._plans[key] = plan
        row, highest, migratetype, flags = plan
        return Request(gfp, order, row, highest, nodemask, migratetype), flags

    def _request(self, gfp: int, order: int, nid: int, nodemask: int) -> Request:
        """Check a request and work out what it may use (prepare_alloc_pages). EINVAL."""
        if not 0 <= order < MAX_ORDER:
            raise KernelError(errno.EINVAL, f"order {order} is not between 0 and {MAX_ORDER - 1}")
        if not 0 <= nid < len(self._nodes):
            raise KernelError(errno.EINVAL, f"there is no node {nid}")
        if gfp & g.GFP_MOVABLE_MASK == g.GFP_MOVABLE_MASK:
            raise KernelError(errno.EINVAL, f"{g.format_gfp(gfp)}: a page is either movable or reclaimable")
        row = 2 * nid + bool(gfp & g.F.THISNODE)
        return Request(gfp, order, row, g.gfp_zone(gfp, self._names), nodemask, g.gfp_migratetype(gfp))

    def numa_node_id(self) -> int:
        """The nearest node with memory to the executing CPU."""
        return self._cpu_node.get(self._context.cpu, 0)

    def _fast_flags(self, request: Request) -> int:
        """Alloc flags of the first attempt: leave the low watermark, and do not mix page blocks."""
        flags = ALLOC_WMARK_LOW
        if request.migratetype == MIGRATE_MOVABLE:
            flags |= ALLOC_CMA
        if request.gfp & g.F.KSWAPD_RECLAIM:
            flags |= ALLOC_KSWAPD
        preferred = self._preferred(request)
        if preferred is None or preferred.name != "Normal" or "DMA32" not in self._names:
            return flags
        below = self._zones[preferred.index - 1]
        if self._several_nodes and not below.populated:
            return flags
        return flags | ALLOC_NOFRAGMENT

    def _preferred(self, request: Request) -> Zone | None:
        return next(self._eligible(request), None)

    def zones_of(self, request: Request) -> Iterator[Zone]:
        """The zones that a request may use, in its order."""
        return self._eligible(request)

    def _eligible(self, request: Request) -> Iterator[Zone]:
        for zone in self._rows[request.row]:
            if zone.kind <= request.highest and request.nodemask >> zone.nid & 1:
                yield zone

    def alloc_pages(self, gfp: int, order: int = 0, nid: int = NUMA_NO_NODE, nodemask: int = ALL_NODES) -> int:
        """The PFN of a block of ``2**order`` pages (__alloc_pages). ENOMEM, EINVAL.

        The call site is ``context.stack``, or ``context.site`` when a caller set none.
        """
        request, flags = self._plan(gfp, order, nid, nodemask)
        if self.fail is not None and self.fail.armed and not self.fail.room(gfp, order, 1):
            self._context.stack = 0
            raise KernelError(errno.ENOMEM, f"{self.fail.NAME} wants this block of order {order} to fail")
        self._enter()
        pfn = self._try(request, flags)
        if pfn < 0:
            pfn = self._slow_path(request)
        self._context.stack = 0
        if pfn < 0:
            raise KernelError(errno.ENOMEM, f"no free block of order {order} for {g.format_gfp(gfp)}")
        self._prepare(gfp, order, pfn, 1)
        if gfp & g.F.ACCOUNT and self._memcg is not None and self._memcg.active:
            self._charge(gfp, order, np.array([pfn], dtype=np.int64))
        return pfn

    def _charge(self, gfp: int, order: int, heads: PFNS) -> None:
        """Charge the kernel's blocks to the control group of who asked. ENOMEM when it may have no more."""
        assert self._memcg is not None
        done = self._memcg.charge_kmem(heads, order, gfp)
        if done < len(heads):
            self.free_pages_bulk(heads, order)
            raise KernelError(errno.ENOMEM, f"the memory cgroup has no room for {g.format_gfp(gfp)}")

    def alloc_pages_bulk(
        self, gfp: int, order: int, n: int, nid: int = NUMA_NO_NODE, nodemask: int = ALL_NODES
    ) -> PFNS:
        """The PFNs of ``n`` blocks, allocated one after the other; fewer when memory ran out.

        A task that the OOM killer has chosen gets the block that it asked for then, and no more.
        """
        request, flags = self._plan(gfp, order, nid, nodemask)
        if self.fail is not None and self.fail.armed:
            n = self.fail.room(gfp, order, n)
        out = np.empty(n, dtype=np.int64)
        self._enter()
        got = 0
        while got < n:
            some = self._relief.meanwhile(n - got, n)
            more = self._bulk(request, flags, out[got : got + some])
            got += more
            if more == some or (more and self._reclaims_nodes):
                self.slow_paths += (alone := more == 1 and self._reclaims_nodes)
                self.suspended = got < n and (self._relief.took_one() if alone else self._relief.enough)
                if self.suspended:
                    break
                continue
            pfn = self._slow_path(request)
            if pfn < 0:
                break
            out[got] = pfn
            got += 1
            self.suspended = got < n and self._relief.enough
            if self._relief.is_oom_victim() or self.suspended:
                break
            if got < n and not self._reclaims_nodes:
                got += self._bulk(request, self._slow_flags(request), out[got : got + SLOW_BATCH])
        self._context.stack = 0
        self._prepare(gfp, order, out[:got], got)
        if gfp & g.F.ACCOUNT and self._memcg is not None and self._memcg.active:
            self._charge(gfp, order, out[:got])
        return out[:got]

    def take_free_pages(self, gfp: int, n: int, nid: int = NUMA_NO_NODE, nodemask: int = ALL_NODES) -> PFNS:
        """Up to ``n`` single pages, as far as their allocation one after the other would not get into the slow path."""
        if self._reclaims_nodes:
            return np.empty(0, dtype=np.int64)
        request, flags = self._plan(gfp, 0, nid, nodemask)
        out = np.empty(n, dtype=np.int64)
        self._enter()
        got = self._bulk(request, flags, out)
        self._context.stack = 0
        if got < n:
            self._context.charge(-self._buddy.cost_pcp)  # the attempt that failed is made by who goes on
        return out[:got]

    def _prepare(self, gfp: int, order: int, heads: int | PFNS, blocks: int) -> None:
        """Clear the pages and make compound ones of blocks (prep_new_page)."""
        if self.poison is not None and self.poison.active:
            self.poison.allocated(heads, order, zero=bool(gfp & g.F.ZERO))
        if gfp & g.F.ZERO:
            self._context.charge(self._zero_ns * blocks << order)
        if gfp & g.F.COMP and order:
            self._buddy.pages.flags[heads] |= np.uint32(1 << PG_HEAD)

    def _enter(self) -> None:
        """Put the allocator's own frames on the stack that is recorded."""
        outer = self._context.stack or self._context.site
        self._context.stack = self._depot.extend(outer, FRAMES)

    @property
    def _reclaims_nodes(self) -> bool:
        return self._node_reclaim is not None and self._node_reclaim.enabled

    def _reclaim_near(self, request: Request, flags: int) -> bool:
        """vm.zone_reclaim_mode, before a walk. False: it takes longer than the caller's slice."""
        assert self._node_reclaim is not None
        if flags & ALLOC_NO_WATERMARKS:
            return True
        who = self._context.pid, self.numa_node_id()
        return self._node_reclaim.before_walk(request, flags, self._eligible(request), self._buddy, who)

    def _try(self, request: Request, flags: int) -> int:
        """get_page_from_freelist. Below 0: none, or ``SUSPENDED``."""
        r = request
        if self._reclaims_nodes and not self._reclaim_near(request, flags):
            return SUSPENDED
        pfn: int = self._buddy.alloc_pages(r.row, r.highest, r.nodemask, r.order, r.migratetype, flags, r.gfp)
        self._wake_boosted(request)
        return pfn

    def _bulk(self, request: Request, flags: int, out: PFNS) -> int:
        r = request
        first = self._preferred(request) if self._reclaims_nodes else None
        if first is not None and not NodeReclaim.roomy(r, flags, first, self._buddy, len(out)):
            out[0] = self._try(request, flags)
            return int(out[0] >= 0)
        got: int = self._buddy.alloc_bulk(out, r.row, r.highest, r.nodemask, r.order, r.migratetype, flags, r.gfp)
        self._wake_boosted(request)
        return got

    def _wake_boosted(self, request: Request) -> None:
        """Wake the kswapd of zones whose watermark was boosted (ZONE_BOOSTED_WATERMARK)."""
        if any(self._wake):
            for zi in [zi for zi, boosted in enumerate(self._wake) if boosted]:
                self._wake[zi] = 0
                self._relief.wakeup_kswapd(self._zones[zi].nid, 0, self._zones[zi].kind)

    # -- slow path ---------------------------------------------------------------------------------------

    def _slow_path(self, request: Request) -> int:
        """Go on until there is a block or nothing more to try (__alloc_pages_slowpath). -1: none."""
        self.slow_paths += 1
        gfp = request.gfp
        if gfp & (g.F.ATOMIC | g.F.DIRECT_RECLAIM) == g.F.ATOMIC | g.F.DIRECT_RECLAIM:
            request.gfp = gfp = gfp & ~g.F.ATOMIC
        flags = self._slow_flags(request)
        self._wake_kswapds(request, flags)
        self._relief.drop_boosts()
        pfn = self._try(request, flags)
        self.suspended = pfn == SUSPENDED
        if pfn >= 0 or self.suspended:
            return pfn
        pfn = self._compact_first(request, flags)
        pid, no_progress = self._rounds
        no_progress, self._rounds = no_progress if pid == self._context.pid else 0, (0, 0)
        while pfn == -1:
            pfn, flags, no_progress = self._attempt(request, flags, no_progress)
        self.suspended = pfn == SUSPENDED
        if self.suspended:
            self._rounds = self._context.pid, no_progress
            return pfn
        if pfn < 0 and gfp & g.F.NOFAIL and gfp & g.F.DIRECT_RECLAIM:
            pfn = self._no_fail(request)
        if pfn < 0:
            self._warn_alloc(request)
        return pfn

    def _slow_flags(self, request: Request) -> int:
        """gfp_to_alloc_flags: how far below the watermarks the request may dig."""
        gfp = request.gfp
        flags = ALLOC_WMARK_MIN | ALLOC_CPUSET
        if gfp & g.F.HIGH:
            flags |= ALLOC_MIN_RESERVE
        if gfp & g.F.KSWAPD_RECLAIM:
            flags |= ALLOC_KSWAPD
        if not gfp & g.F.DIRECT_RECLAIM:
            if not gfp & g.F.NOMEMALLOC:
                flags |= ALLOC_NON_BLOCK
                if request.order and flags & ALLOC_MIN_RESERVE:
                    flags |= ALLOC_HIGHATOMIC
            if flags & ALLOC_MIN_RESERVE:
                flags &= ~ALLOC_CPUSET
        if request.migratetype == MIGRATE_MOVABLE:
            flags |= ALLOC_CMA
        return flags

    def _wake_kswapds(self, request: Request, flags: int) -> None:
        if not flags & ALLOC_KSWAPD:
            return
        seen: list[int] = []
        for zone in self._eligible(request):
            if zone.nid not in seen:
                seen.append(zone.nid)
                self._relief.wakeup_kswapd(zone.nid, request.order, request.highest, request.gfp)

    def _compact_first(self, request: Request, flags: int) -> int:
        """Costly and non-movable blocks: compact before reclaiming. -1: go on, -2: give up."""
        gfp, order = request.gfp, request.order
        costly = order > PAGE_ALLOC_COSTLY_ORDER
        eligible = costly or (order > 0 and request.migratetype != MIGRATE_MOVABLE)
        if not gfp & g.F.DIRECT_RECLAIM or not gfp & g.F.IO or not eligible or self._reserve_flags(gfp):
            request.compact_priority = DEF_COMPACT_PRIORITY
            return -1
        pfn = self._compact(request, flags)
        if pfn >= 0:
            return pfn
        in_vain = request.compact_result in (COMPACT_SKIPPED, COMPACT_DEFERRED)
        if costly and gfp & g.F.NORETRY:
            return -2 if in_vain or gfp & g.F.THISNODE else -1
        request.compact_priority = DEF_COMPACT_PRIORITY
        return -1

    def _attempt(self, request: Request, flags: int, no_progress: int) -> tuple[int, int, int]:
        """One round of the retry loop: ``(PFN, -1 retry or -2 give up; flags; rounds without progress)``."""
        gfp, order = request.gfp, request.order
        self._wake_kswapds(request, flags)
        reserve = self._reserve_flags(gfp)
        if reserve:
            flags = reserve | (flags & (ALLOC_KSWAPD | ALLOC_CMA))
        if reserve or not flags & ALLOC_CPUSET:
            request.nodemask = ALL_NODES
        pfn = self._try(request, flags)
        if pfn >= 0 or pfn == SUSPENDED or not gfp & g.F.DIRECT_RECLAIM:
            return (-2 if pfn == -1 else pfn), flags, no_progress
        pfn, progress = self._direct_reclaim(request, flags)
        if pfn == SUSPENDED:
            return pfn, flags, no_progress
        if pfn < 0 and order:
            pfn = self._compact(request, flags)
        if pfn >= 0:
            return pfn, flags, no_progress
        costly = order > PAGE_ALLOC_COSTLY_ORDER
        if gfp & g.F.NORETRY or (costly and not (gfp & g.F.RETRY_MAYFAIL and gfp & g.F.IO)):
            return -2, flags, no_progress
        no_progress = 0 if progress and not costly else no_progress + 1
        if self._should_reclaim_retry(request, flags, no_progress):
            return -1, flags, no_progress
        if progress and gfp & g.F.IO and self._relief.should_compact_retry(request, flags):
            return -1, flags, no_progress
        pfn = self._may_oom(request, flags)
        if pfn == -1 and (flags & ALLOC_OOM or gfp & g.F.NOMEMALLOC) and self._relief.is_oom_victim():
            return -2, flags, 0
        return pfn, flags, 0

    def _reserve_flags(self, gfp: int) -> int:
        """Flags of a request that may ignore watermarks, or half of the lowest (__gfp_pfmemalloc_flags)."""
        if gfp & g.F.NOMEMALLOC:
            return 0
        if gfp & g.F.MEMALLOC or self._relief.is_reclaiming():
            return ALLOC_NO_WATERMARKS
        return ALLOC_OOM if self._relief.is_oom_victim() else 0

    def _compact(self, request: Request, flags: int) -> int:
        """__alloc_pages_direct_compact: a PFN or -1."""
        start = self._context.now
        pfn = self._relief.try_to_compact_pages(request, flags, lambda: self._try(request, flags))
        self._stalled(start)
        return pfn

    def _stalled(self, start: int) -> None:
        """The executing task has waited for memory since ``start`` (psi_memstall_leave)."""
        if self._memcg is not None:
            self._memcg.stalled(self._context.now - start)

    def _direct_reclaim(self, request: Request, flags: int) -> tuple[int, int]:
        """__alloc_pages_direct_reclaim: ``(PFN or -1, pages reclaimed)``."""
        start = self._context.now
        progress = self._relief.try_to_free_pages(request)
        self._stalled(start)
        if progress <= 0:
            return (SUSPENDED if progress == SUSPENDED else -1), 0
        pfn = self._try(request, flags)
        if pfn < 0:
            self._unreserve(request, False)
            self._buddy.drain_all()
            pfn = self._try(request, flags)
        return pfn, progress

    def _should_reclaim_retry(self, request: Request, flags: int, no_progress: int) -> bool:
        """Whether reclaiming everything reclaimable could help; the atomic reserve is the last resort."""
        if no_progress <= MAX_RECLAIM_RETRIES:
            for zone in self._eligible(request):
                reclaimable = self._relief.reclaimable_pages(zone.index)
                mark = zone.watermark_min + zone.boost - reclaimable
                ok = self._buddy.watermark_ok(zone.index, request.order, mark, request.highest, flags)
                least = zone.watermark_min + zone.boost
                reclaim_retry(self._context.trace, zone, request.order, reclaimable, least, no_progress, ok)
                if reclaimable and ok:
                    return True
        return self._unreserve(request, True)

    def _unreserve(self, request: Request, force: bool) -> bool:
        r = request
        moved: bool = self._buddy.unreserve_highatomic(r.row, r.highest, r.nodemask, r.migratetype, force)
        return moved

    def _may_oom(self, request: Request, flags: int) -> int:
        """__alloc_pages_may_oom: a PFN, -1 after a kill, or -2."""
        gfp = request.gfp
        pfn = self._try(request, ALLOC_WMARK_HIGH | ALLOC_CPUSET)
        if pfn >= 0 or pfn == SUSPENDED:
            return pfn
        lowmem = request.highest < self._normal
        if request.order > PAGE_ALLOC_COSTLY_ORDER or gfp & (g.F.RETRY_MAYFAIL | g.F.THISNODE) or lowmem:
            return -2
        killed = self._relief.out_of_memory(request)
        if gfp & g.F.NOFAIL:
            pfn = self._try(request, ALLOC_NO_WATERMARKS)
        return pfn if pfn >= 0 else -1 if killed else -2

    def _no_fail(self, request: Request) -> int:
        """__GFP_NOFAIL: dig into the reserves. Linux would loop for ever where this gives -1."""
        return self._try(request, ALLOC_MIN_RESERVE)

    # -- complaints --------------------------------------------------------------------------------------

    def _warn_alloc(self, request: Request) -> None:
        """The failure report (warn_alloc), at most one in ten seconds."""
        gfp = request.gfp
        no_dma = gfp & g.F.DMA and not any(z.managed for z in self._zones if z.name == "DMA")
        if gfp & g.F.NOWARN or no_dma or self._context.now < self._next_warning_ns:
            return
        self._next_warning_ns = self._context.now + WARN_INTERVAL_NS
        comm = self._context.comm
        text = f"{comm}: page allocation failure: order:{request.order}, mode:{gfp:#x}({g.format_gfp(gfp)})"
        self._printk.log(KERN_WARNING, f"{text}, nodemask=(null)")
        self._dump_stack(("warn_alloc", "__alloc_pages_slowpath.constprop.0", "__alloc_pages"))
        self._show_mem(request.highest, None if request.nodemask == ALL_NODES else request.nodemask)

    def _bad_page(self, pfn: int, reason: str) -> None:
        """A page that is freed and not in use (bad_page)."""
        self._printk.log(KERN_ALERT, f"BUG: Bad page state in process {self._context.comm}  pfn:{pfn:05x}")
        self._printk.log(KERN_ALERT, f"page dumped because: {reason}")
        self._dump_stack(("bad_page", "free_unref_page", "__free_pages"), KERN_ALERT)
        self._dump_stack.taint.add(TAINT_BAD_PAGE)

    # -- freeing -----------------------------------------------------------------------------------------

    def free_pages(self, pfn: int, order: int = 0) -> None:
        """Give a block back (__free_pages). EFAULT and a bad page report when none is allocated there, or it is in use.

        Invariants: what is in a slab or on an LRU list never gets on a free list.
        """
        pages = self._buddy.pages
        if self.poison is not None and self.poison.active:
            self.poison.freed(1 << order)
        if 0 <= pfn < pages.max_pfn and pages.kind[pfn] == ALLOCATED and int(pages.flags[pfn]) & CHECK_AT_FREE:
            self._bad_page(pfn, "PAGE_FLAGS_CHECK_AT_FREE flag(s) set")
            raise KernelError(errno.EFAULT, f"pfn {pfn} is in use: in a slab, or on an LRU list")
        if self._memcg is not None and self._memcg.charged and not self._is_free(pfn):
            self._memcg.uncharge(np.array([pfn], dtype=np.int64), order)
        if not self._buddy.free_pages(pfn, order):
            self._bad_page(pfn, "nonzero _refcount" if self._is_free(pfn) else "page_type")
            raise KernelError(errno.EFAULT, f"no block of order {order} is allocated at pfn {pfn}")

    def free_pages_bulk(self, pfns: PFNS, order: int = 0) -> None:
        """Give blocks back in the order given. EFAULT when one is not allocated; the others are freed all the same."""
        blocks = np.ascontiguousarray(pfns, dtype=np.int64)
        if self._memcg is not None and self._memcg.charged:
            self._memcg.uncharge(blocks, order)
        if self.poison is not None and self.poison.active:
            self.poison.freed(len(blocks) << order)
        done, bad = 0, None
        while done < len(blocks):
            done += self._buddy.free_bulk(blocks[done:], order)
            if done < len(blocks):
                try:
                    self.free_pages(int(blocks[done]), order)
                except KernelError as error:
                    bad = bad or error
                done += 1
        if bad is not None:
            raise bad

    def _is_free(self, pfn: int) -> bool:
        return 0 <= pfn < self._buddy.pages.max_pfn and int(self._buddy.pages.kind[pfn]) != 3

    @property
    def patience(self) -> int | None:
        """How many steps of reclaim whoever allocates can wait for; None: for all that it takes."""
        return self._relief.patience

    @patience.setter
    def patience(self, steps: int | None) -> None:
        self._relief.patience = steps

    def needed_over(self, ns: int, after: int = 0) -> None:
        """The blocks of the next requests were needed one after the other in ``ns``, which ended ``after`` ns ago."""
        self._relief.needed_over(ns, after)

    def may_suspend(self, allowed: bool, *, in_parts: bool = False) -> None:
        """Whether requests from now on may be ``suspended``, ``in_parts`` between two blocks, too."""
        self._relief.may_suspend, self._relief.in_parts = allowed, in_parts
        self.suspended = False

    def drain_all_pages(self) -> None:
        """Empty the per-cpu lists of every CPU."""
        self._buddy.drain_all()
