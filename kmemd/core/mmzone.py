"""The zones of a machine and their arrays, which the buddy system's loops work on (include/linux/mmzone.h).

A page block's migratetype, the zonelists, watermarks and counters of zones, and what page_owner and trace events are
told of a page.

Invariants:
- A list is circular through its head. ``next[pfn]`` is PFN + 1 of the next page or -(list + 1) of the head.
- ``nr_list[list]`` counts the blocks of a list; the frontier and the blocks behind it count as Movable.
- NR_FREE_PAGES always equals the lists: the per-CPU lag of Linux's counters, folded when a CPU idles, is left out.
"""

from typing import Any

import cython
import numpy as np

from kmemd.core.array_view import view

MAX_ORDER = 11
NR_MIGRATETYPES = 6
MIGRATE_UNMOVABLE, MIGRATE_MOVABLE, MIGRATE_RECLAIMABLE = 0, 1, 2
MIGRATE_HIGHATOMIC, MIGRATE_CMA, MIGRATE_ISOLATE = 3, 4, 5
NR_PCP_LISTS = 14

ALLOC_WMARK_MIN, ALLOC_WMARK_LOW, ALLOC_WMARK_HIGH = 0, 1, 2
ALLOC_NO_WATERMARKS = 0x04
ALLOC_OOM = 0x08
ALLOC_NON_BLOCK = 0x10
ALLOC_MIN_RESERVE = 0x20
ALLOC_CPUSET = 0x40
ALLOC_CMA = 0x80
ALLOC_NOFRAGMENT = 0x100
ALLOC_HIGHATOMIC = 0x200
ALLOC_KSWAPD = 0x800

EXTENTS = 64

# The same as C variables: module constants are Python objects to compiled code.
_ORDERS = cython.declare(cython.int, 11)
_LISTS = cython.declare(cython.int, 7)  # lists per order: six migratetypes, and AFTER
_PCPTYPES = cython.declare(cython.int, 3)
_PCP_LISTS = cython.declare(cython.int, 14)
_NOW = cython.declare(cython.int, 0)
_CPU = cython.declare(cython.int, 1)
_PID = cython.declare(cython.int, 2)
_TGID = cython.declare(cython.int, 3)
_COMM = cython.declare(cython.int, 4)
_STACK = cython.declare(cython.int, 5)
_SITE = cython.declare(cython.int, 6)
_STAGED = cython.declare(cython.int, 1)
_ROW = cython.declare(cython.int, 24)
_ROWS = cython.declare(cython.int, 1024)


@cython.cclass
class Zones:
    """All zones' arrays. Zones are numbered in node, then zone order.

    ``zones`` rows are ``(nid, zone type, start_pfn, end_pfn, managed)``; ``cpu_nodes[cpu]`` is a CPU's node;
    ``costs`` is the model time in ns of a per-cpu list operation and of a buddy operation.
    """

    def __init__(
        self,
        pages: Any,
        context: Any,
        zones: Any,
        cpu_nodes: Any,
        types: Any,
        pageblock_order: Any,
        costs: Any,
        stats: Any,
        owner: Any = None,
    ) -> None:
        self.pages = pages
        self.nzones = len(zones)
        self.ncpus = len(cpu_nodes)
        self.pageblock_order = pageblock_order
        self.numa_nodes = len({zone[0] for zone in zones if zone[4]}) or 1
        self.numa_stat_on = True
        self.mobility_disabled = False
        self.boost_factor = 15000
        self.cost_pcp, self.cost_buddy = costs
        self._types = types
        self._last_zone = 0
        self._next = view(pages.next)
        self._prev = view(pages.prev)
        self._meta = view(pages.meta)
        self._flags = view(pages.flags)
        self._ctx = view(context.words)
        self._trace = context.trace
        self._log = view(context.trace.rows.reshape(-1))
        self._control = view(context.trace.control)
        self._init_zones(zones, cpu_nodes)
        self._init_lists()
        self._init_stats(stats)
        self._init_owner(owner)

    def _init_zones(self, zones: Any, cpu_nodes: Any) -> None:
        columns = [np.array([zone[i] for zone in zones], dtype=np.int64) for i in range(5)]
        self._zone_nid = view(columns[0].astype(np.int32))
        self._zone_type = view(columns[1].astype(np.int32))
        self._zone_start = view(columns[2])
        self._zone_end = view(columns[3])
        self.managed = columns[4]
        self._managed = view(columns[4])
        self._cpu_node = view(np.array(cpu_nodes, dtype=np.int32))
        blocks = (self.pages.max_pfn >> self.pageblock_order) + 2
        self.block_type = np.full(blocks, 1, dtype=np.uint8)
        self._block_type = view(self.block_type)
        block_zone = np.zeros(blocks, dtype=np.uint8)
        for zi in range(self.nzones - 1, -1, -1):
            start, end = zones[zi][2], zones[zi][3]
            if end > start:
                block_zone[start >> self.pageblock_order : ((end - 1) >> self.pageblock_order) + 1] = zi
        self._block_zone = view(block_zone)

    def _init_lists(self) -> None:
        n: cython.int = self.nzones
        self._pcp_base = n * _ORDERS * _LISTS
        heads = self._pcp_base + n * self.ncpus * _PCP_LISTS
        self._head_next = view(np.zeros(heads, dtype=np.int32))
        self._head_prev = view(np.zeros(heads, dtype=np.int32))
        self.nr_list = np.zeros(n * MAX_ORDER * 7, dtype=np.int64)
        self._nr_list = view(self.nr_list)
        self.pcp_count = np.zeros(n * self.ncpus, dtype=np.int32)
        self._pcp_count = view(self.pcp_count)
        self.pcp_factor = np.zeros(n * self.ncpus, dtype=np.int32)
        self._pcp_factor = view(self.pcp_factor)
        self.pcp_high = np.zeros(n, dtype=np.int32)
        self._pcp_high = view(self.pcp_high)
        self.pcp_batch = np.ones(n, dtype=np.int32)
        self._pcp_batch = view(self.pcp_batch)
        self._front_lo = view(np.zeros(n * EXTENTS, dtype=np.int64))
        self._front_hi = view(np.zeros(n * EXTENTS, dtype=np.int64))
        self._front_n = view(np.zeros(n, dtype=np.int32))
        self._front_blocks = view(np.zeros(n, dtype=np.int64))

    def _init_stats(self, stats: Any) -> None:
        n: cython.int = self.nzones
        self._events = view(stats.events)
        self._zone_stat = view(stats.zone_stat.reshape(-1))
        self._numa_stat = view(stats.numa_stat.reshape(-1))
        self._stat_items = stats.zone_stat.shape[1]
        self._nr_free_pages = stats.nr_free_pages
        self._nr_free_cma = stats.nr_free_cma
        self._ev_free = stats.pgfree
        self._ev_alloc = view(np.array(stats.pgalloc, dtype=np.int32))
        self.wmark = np.zeros((n, 4), dtype=np.int64)
        self._wmark = view(self.wmark.reshape(-1))
        self.boost = np.zeros(n, dtype=np.int64)
        self._boost = view(self.boost)
        self.reserve = np.zeros((n, self._types), dtype=np.int64)
        self._reserve = view(self.reserve.reshape(-1))
        self.highatomic = np.zeros(n, dtype=np.int64)
        self._highatomic = view(self.highatomic)
        self.kswapd_wake = np.zeros(n, dtype=np.uint8)
        self._kswapd_wake = view(self.kswapd_wake)
        self.reclaim_active = np.zeros(n, dtype=np.uint8)
        self._reclaim_active = view(self.reclaim_active)
        self._isolated = view(np.zeros(n, dtype=np.int64))
        self._row = n + 1
        self._zonelists = view(np.full(2 * 64 * (n + 1), -1, dtype=np.int32))

    def _init_owner(self, owner: Any) -> None:
        self.owner = owner
        self._owner_on = owner is not None
        if owner is None:
            return
        self._own_order = view(owner.order)
        self._own_gfp = view(owner.gfp)
        self._own_stack = view(owner.stack)
        self._own_pid = view(owner.pid)
        self._own_tgid = view(owner.tgid)
        self._own_comm = view(owner.comm)
        self._own_ts = view(owner.ts)
        self._own_free_ts = view(owner.free_ts)
        self._own_allocated = view(owner.allocated)

    # -- zones and page blocks ---------------------------------------------------------------------------------

    def set_zonelist(self, row: cython.int, zones: list) -> None:
        """Zonelist ``2 * nid`` (fallback) or ``2 * nid + 1`` (this node only) as zone numbers in order."""
        i: cython.int
        base: cython.int = row * self._row
        for i in range(self._row):
            self._zonelists[base + i] = zones[i] if i < len(zones) else -1

    def zone_of(self, pfn: cython.longlong) -> int:
        """The number of the zone that spans ``pfn``."""
        return self._zone_of(pfn)

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _zone_of(self, pfn: cython.longlong) -> cython.int:
        """The number of the zone that spans ``pfn``."""
        zi: cython.int = self._last_zone
        if self._zone_start[zi] <= pfn < self._zone_end[zi]:
            return zi
        zi = self._block_zone[pfn >> self.pageblock_order]
        while zi < self.nzones - 1 and not (self._zone_start[zi] <= pfn < self._zone_end[zi]):
            zi += 1
        self._last_zone = zi
        return zi

    def set_pageblock_type(self, pfn: cython.longlong, mt: cython.int) -> None:
        """Set the migratetype of the page block that holds ``pfn`` (set_pageblock_migratetype)."""
        self._set_block(pfn, mt)

    def pageblock_type(self, pfn: cython.longlong) -> int:
        """The migratetype of the page block that holds ``pfn``."""
        return self._block_type[pfn >> self.pageblock_order]

    @cython.final
    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _set_block(self, pfn: cython.longlong, mt: cython.int) -> cython.void:
        if self.mobility_disabled and mt < _PCPTYPES:
            mt = 0
        self._block_type[pfn >> self.pageblock_order] = mt

    # -- page owner --------------------------------------------------------------------------------------------

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _set_owner(self, pfn: cython.longlong, order: cython.int, gfp: cython.longlong) -> cython.void:
        """Record who allocated each page of a block (__set_page_owner)."""
        i: cython.longlong
        for i in range(pfn, pfn + (1 << order)):
            self._own_order[i] = order
            self._own_gfp[i] = cython.cast(cython.uint, gfp)
            self._own_stack[i] = cython.cast(cython.uint, self._ctx[_STACK])
            self._own_pid[i] = cython.cast(cython.int, self._ctx[_PID])
            self._own_tgid[i] = cython.cast(cython.int, self._ctx[_TGID])
            self._own_comm[i] = cython.cast(cython.uint, self._ctx[_COMM])
            self._own_ts[i] = self._ctx[_NOW]
            self._own_allocated[i] = 1

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _set_owners(self, at: cython.int, n: cython.Py_ssize_t, order: cython.int, gfp: cython.longlong) -> cython.void:
        """``_set_owner`` of the next ``n`` blocks of a list, allocated one after the other off a per-cpu list."""
        now: cython.longlong = self._ctx[_NOW]
        while at > 0 and n > 0:
            self._set_owner(at - 1, order, gfp)
            self._ctx[_NOW] += self.cost_pcp
            at = self._next[at - 1]
            n -= 1
        self._ctx[_NOW] = now

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _reset_owner(self, pfn: cython.longlong, order: cython.int) -> cython.void:
        i: cython.longlong
        for i in range(pfn, pfn + (1 << order)):
            self._own_free_ts[i] = self._ctx[_NOW]
            self._own_allocated[i] = 0

    # -- trace events ------------------------------------------------------------------------------------------

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _emit(
        self, event: cython.int, pfn: cython.longlong, a: cython.longlong, b: cython.longlong, c: cython.longlong
    ) -> cython.Py_ssize_t:
        """Append a trace event of a page to the log (``TraceLog``). Where its arguments stand."""
        at: cython.Py_ssize_t
        if self._control[_STAGED] >= _ROWS:
            self._trace.drain()
        at = self._control[_STAGED] * _ROW
        self._control[_STAGED] += 1
        self._log[at] = event
        self._log[at + 1] = self._ctx[_NOW]
        self._log[at + 2] = self._ctx[_CPU]
        self._log[at + 3] = self._ctx[_PID]
        self._log[at + 4] = self._ctx[_COMM]
        self._log[at + 5] = self._ctx[_SITE]
        self._log[at + 6] = self._ctx[_STACK]
        self._log[at + 7] = pfn
        self._log[at + 8] = a
        self._log[at + 9] = b
        self._log[at + 10] = c
        return at + 7
