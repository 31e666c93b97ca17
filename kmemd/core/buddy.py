"""The buddy system's hot loops: free lists, per-cpu lists, watermarks (mm/page_alloc.c).

Models ``__rmqueue`` with fallback and stealing, ``__free_one_page``, ``rmqueue_pcplist``, ``free_unref_page``,
``zone_watermark_fast`` and ``get_page_from_freelist``; given a state, every PFN is the one Linux hands out.
Left out: page shuffling and reporting, guard pages, cpuset checks and node reclaim, which ``mm/page_alloc.py`` does.

Invariants:
- A list is circular through its head. ``next[pfn]`` is PFN + 1 of the next page or -(list + 1) of the head.
- Never touched blocks of the highest order, all Movable, are a zone's *frontier*: up to ``EXTENTS`` PFN ranges that
  stand in the list of that order between the blocks of list ``MOVABLE`` and those of list ``AFTER``.
- NR_FREE_PAGES always equals the lists: the per-CPU lag of Linux's counters, folded when a CPU idles, is left out.
- ``nr_list[list]`` counts the blocks of a list; the frontier and the blocks behind it count as Movable.
"""

from typing import Any

import cython
import numpy as np

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
_TOP = cython.declare(cython.int, 10)
_LISTS = cython.declare(cython.int, 7)  # lists per order: six migratetypes, and AFTER
_AFTER = cython.declare(cython.int, 6)
_MOVABLE = cython.declare(cython.int, 1)
_PCPTYPES = cython.declare(cython.int, 3)
_HIGHATOMIC = cython.declare(cython.int, 3)
_CMA = cython.declare(cython.int, 4)
_ISOLATE = cython.declare(cython.int, 5)
_PCP_LISTS = cython.declare(cython.int, 14)
_PCP_LOW = cython.declare(cython.int, 12)  # lists of orders 0..3; then THP unmovable, THP movable
_COSTLY = cython.declare(cython.int, 3)
_BATCH_SCALE_MAX = cython.declare(cython.int, 5)  # CONFIG_PCP_BATCH_SCALE_MAX
_EXTENTS = cython.declare(cython.int, 64)

_NOT_HEAD = cython.declare(cython.int, 0)
_IN_BUDDY = cython.declare(cython.int, 1)
_IN_PCP = cython.declare(cython.int, 2)
_ALLOCATED = cython.declare(cython.int, 3)

_NOW = cython.declare(cython.int, 0)
_CPU = cython.declare(cython.int, 1)
_PID = cython.declare(cython.int, 2)
_TGID = cython.declare(cython.int, 3)
_COMM = cython.declare(cython.int, 4)
_STACK = cython.declare(cython.int, 5)
_SITE = cython.declare(cython.int, 6)
_MASK = cython.declare(cython.int, 0)  # core/trace.py
_STAGED = cython.declare(cython.int, 1)
_ROW = cython.declare(cython.int, 24)
_ROWS = cython.declare(cython.int, 1024)

# trace events, by their bits in the mask
_T_ALLOC = cython.declare(cython.int, 0)
_T_FREE = cython.declare(cython.int, 1)
_T_ZONE_LOCKED = cython.declare(cython.int, 3)
_T_PCPU_DRAIN = cython.declare(cython.int, 4)
_T_EXTFRAG = cython.declare(cython.int, 5)

_WMARK_MASK = cython.declare(cython.int, 3)
_NO_WATERMARKS = cython.declare(cython.int, 0x04)
_OOM = cython.declare(cython.int, 0x08)
_NON_BLOCK = cython.declare(cython.int, 0x10)
_MIN_RESERVE = cython.declare(cython.int, 0x20)
_ALLOC_CMA = cython.declare(cython.int, 0x80)
_NOFRAGMENT = cython.declare(cython.int, 0x100)
_ALLOC_HIGHATOMIC = cython.declare(cython.int, 0x200)
_KSWAPD = cython.declare(cython.int, 0x800)
_RESERVES = cython.declare(cython.int, 0x10 | 0x20 | 0x200 | 0x08)
_GFP_ATOMIC = cython.declare(cython.longlong, 0x200)
_PG_LRU_BIT = cython.declare(cython.int, 4)
_HEAD = cython.declare(cython.uint, 1 << 16)

_HIT = cython.declare(cython.int, 0)
_MISS = cython.declare(cython.int, 1)
_FOREIGN = cython.declare(cython.int, 2)
_LOCAL = cython.declare(cython.int, 4)
_OTHER = cython.declare(cython.int, 5)
_NUMA_ITEMS = cython.declare(cython.int, 6)


def _view(array: Any) -> Any:
    """Uncompiled, a memoryview gives Python ints, which neither wrap nor warn as numpy scalars do."""
    return array if cython.compiled else memoryview(array)


@cython.final
@cython.cclass
class Buddy:
    """All zones' free lists and per-cpu lists. Zones are numbered in node, then zone order.

    ``zones`` rows are ``(nid, zone type, start_pfn, end_pfn, managed)``; ``cpu_nodes[cpu]`` is a CPU's node;
    ``costs`` is the model time in ns of a per-cpu list operation and of a buddy operation.
    """

    pages = cython.declare(object, visibility="readonly")
    nzones = cython.declare(cython.int, visibility="readonly")
    ncpus = cython.declare(cython.int, visibility="readonly")
    pageblock_order = cython.declare(cython.int, visibility="readonly")
    numa_nodes = cython.declare(cython.int, visibility="public")
    numa_stat_on = cython.declare(cython.bint, visibility="public")
    mobility_disabled = cython.declare(cython.bint, visibility="public")
    boost_factor = cython.declare(cython.longlong, visibility="public")
    cost_pcp = cython.declare(cython.longlong, visibility="public")
    cost_buddy = cython.declare(cython.longlong, visibility="public")
    bad_pfn = cython.declare(cython.longlong, visibility="readonly")
    owner = cython.declare(object, visibility="readonly")
    scan_pfn = cython.declare(cython.longlong, visibility="readonly")
    scanned = cython.declare(cython.longlong, visibility="readonly")
    taken = cython.declare(cython.longlong, visibility="readonly")
    captured = cython.declare(cython.longlong, visibility="readonly")

    _next: cython.int[::1]
    _prev: cython.int[::1]
    _meta: cython.int[::1]
    _flags: cython.uint[::1]
    _ctx: cython.longlong[::1]
    _trace: Any
    _log: cython.longlong[::1]
    _control: cython.longlong[::1]
    _events: cython.longlong[::1]
    _zone_stat: cython.longlong[::1]
    _numa_stat: cython.longlong[::1]
    _head_next: cython.int[::1]
    _head_prev: cython.int[::1]
    _nr_list: cython.longlong[::1]
    _block_type: cython.uchar[::1]
    _block_zone: cython.uchar[::1]
    _zone_nid: cython.int[::1]
    _zone_type: cython.int[::1]
    _zone_start: cython.longlong[::1]
    _zone_end: cython.longlong[::1]
    _managed: cython.longlong[::1]
    _wmark: cython.longlong[::1]
    _boost: cython.longlong[::1]
    _reserve: cython.longlong[::1]
    _highatomic: cython.longlong[::1]
    _kswapd_wake: cython.uchar[::1]
    _reclaim_active: cython.uchar[::1]
    _isolated: cython.longlong[::1]
    _pcp_count: cython.int[::1]
    _pcp_factor: cython.int[::1]
    _pcp_high: cython.int[::1]
    _pcp_batch: cython.int[::1]
    _front_lo: cython.longlong[::1]
    _front_hi: cython.longlong[::1]
    _front_n: cython.int[::1]
    _front_blocks: cython.longlong[::1]
    _cpu_node: cython.int[::1]
    _zonelists: cython.int[::1]
    _ev_alloc: cython.int[::1]
    _last_zone: cython.int
    _pcp_used: cython.int
    _preferred: cython.int
    _pcp_base: cython.int
    _stat_items: cython.int
    _capture_zone: cython.int
    _capture_order: cython.int
    _capture_gfp: cython.longlong
    _nr_free_pages: cython.int
    _nr_free_cma: cython.int
    _ev_free: cython.int
    _types: cython.int
    _row: cython.int
    _owner_on: cython.bint
    _own_order: cython.schar[::1]
    _own_gfp: cython.uint[::1]
    _own_stack: cython.uint[::1]
    _own_pid: cython.int[::1]
    _own_tgid: cython.int[::1]
    _own_comm: cython.uint[::1]
    _own_ts: cython.longlong[::1]
    _own_free_ts: cython.longlong[::1]
    _own_allocated: cython.uchar[::1]

    # numpy arrays for Python readers
    nr_list = cython.declare(object, visibility="readonly")
    block_type = cython.declare(object, visibility="readonly")
    wmark = cython.declare(object, visibility="readonly")
    boost = cython.declare(object, visibility="readonly")
    reserve = cython.declare(object, visibility="readonly")
    highatomic = cython.declare(object, visibility="readonly")
    kswapd_wake = cython.declare(object, visibility="readonly")
    reclaim_active = cython.declare(object, visibility="readonly")
    pcp_count = cython.declare(object, visibility="readonly")
    pcp_factor = cython.declare(object, visibility="readonly")
    pcp_high = cython.declare(object, visibility="readonly")
    pcp_batch = cython.declare(object, visibility="readonly")
    managed = cython.declare(object, visibility="readonly")

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
        self.bad_pfn = -1
        self._types = types
        self._last_zone = 0
        self._pcp_used = -1
        self._preferred = 0
        self.scan_pfn = 0
        self.scanned = 0
        self.taken = 0
        self.captured = -1
        self._capture_zone = 0
        self._capture_order = -1
        self._capture_gfp = 0
        self._next = _view(pages.next)
        self._prev = _view(pages.prev)
        self._meta = _view(pages.meta)
        self._flags = _view(pages.flags)
        self._ctx = _view(context.words)
        self._trace = context.trace
        self._log = _view(context.trace.rows.reshape(-1))
        self._control = _view(context.trace.control)
        self._init_zones(zones, cpu_nodes)
        self._init_lists()
        self._init_stats(stats)
        self._init_owner(owner)

    def _init_zones(self, zones: Any, cpu_nodes: Any) -> None:
        columns = [np.array([zone[i] for zone in zones], dtype=np.int64) for i in range(5)]
        self._zone_nid = _view(columns[0].astype(np.int32))
        self._zone_type = _view(columns[1].astype(np.int32))
        self._zone_start = _view(columns[2])
        self._zone_end = _view(columns[3])
        self.managed = columns[4]
        self._managed = _view(columns[4])
        self._cpu_node = _view(np.array(cpu_nodes, dtype=np.int32))
        blocks = (self.pages.max_pfn >> self.pageblock_order) + 2
        self.block_type = np.full(blocks, 1, dtype=np.uint8)
        self._block_type = _view(self.block_type)
        block_zone = np.zeros(blocks, dtype=np.uint8)
        for zi in range(self.nzones - 1, -1, -1):
            start, end = zones[zi][2], zones[zi][3]
            if end > start:
                block_zone[start >> self.pageblock_order : ((end - 1) >> self.pageblock_order) + 1] = zi
        self._block_zone = _view(block_zone)

    def _init_lists(self) -> None:
        n: cython.int = self.nzones
        self._pcp_base = n * _ORDERS * _LISTS
        heads = self._pcp_base + n * self.ncpus * _PCP_LISTS
        self._head_next = _view(np.zeros(heads, dtype=np.int32))
        self._head_prev = _view(np.zeros(heads, dtype=np.int32))
        self.nr_list = np.zeros(n * MAX_ORDER * 7, dtype=np.int64)
        self._nr_list = _view(self.nr_list)
        self.pcp_count = np.zeros(n * self.ncpus, dtype=np.int32)
        self._pcp_count = _view(self.pcp_count)
        self.pcp_factor = np.zeros(n * self.ncpus, dtype=np.int32)
        self._pcp_factor = _view(self.pcp_factor)
        self.pcp_high = np.zeros(n, dtype=np.int32)
        self._pcp_high = _view(self.pcp_high)
        self.pcp_batch = np.ones(n, dtype=np.int32)
        self._pcp_batch = _view(self.pcp_batch)
        self._front_lo = _view(np.zeros(n * EXTENTS, dtype=np.int64))
        self._front_hi = _view(np.zeros(n * EXTENTS, dtype=np.int64))
        self._front_n = _view(np.zeros(n, dtype=np.int32))
        self._front_blocks = _view(np.zeros(n, dtype=np.int64))

    def _init_stats(self, stats: Any) -> None:
        n: cython.int = self.nzones
        self._events = _view(stats.events)
        self._zone_stat = _view(stats.zone_stat.reshape(-1))
        self._numa_stat = _view(stats.numa_stat.reshape(-1))
        self._stat_items = stats.zone_stat.shape[1]
        self._nr_free_pages = stats.nr_free_pages
        self._nr_free_cma = stats.nr_free_cma
        self._ev_free = stats.pgfree
        self._ev_alloc = _view(np.array(stats.pgalloc, dtype=np.int32))
        self.wmark = np.zeros((n, 4), dtype=np.int64)
        self._wmark = _view(self.wmark.reshape(-1))
        self.boost = np.zeros(n, dtype=np.int64)
        self._boost = _view(self.boost)
        self.reserve = np.zeros((n, self._types), dtype=np.int64)
        self._reserve = _view(self.reserve.reshape(-1))
        self.highatomic = np.zeros(n, dtype=np.int64)
        self._highatomic = _view(self.highatomic)
        self.kswapd_wake = np.zeros(n, dtype=np.uint8)
        self._kswapd_wake = _view(self.kswapd_wake)
        self.reclaim_active = np.zeros(n, dtype=np.uint8)
        self._reclaim_active = _view(self.reclaim_active)
        self._isolated = _view(np.zeros(n, dtype=np.int64))
        self._row = n + 1
        self._zonelists = _view(np.full(2 * 64 * (n + 1), -1, dtype=np.int32))

    def _init_owner(self, owner: Any) -> None:
        self.owner = owner
        self._owner_on = owner is not None
        if owner is None:
            return
        self._own_order = _view(owner.order)
        self._own_gfp = _view(owner.gfp)
        self._own_stack = _view(owner.stack)
        self._own_pid = _view(owner.pid)
        self._own_tgid = _view(owner.tgid)
        self._own_comm = _view(owner.comm)
        self._own_ts = _view(owner.ts)
        self._own_free_ts = _view(owner.free_ts)
        self._own_allocated = _view(owner.allocated)

    def set_zonelist(self, row: cython.int, zones: list) -> None:
        """Zonelist ``2 * nid`` (fallback) or ``2 * nid + 1`` (this node only) as zone numbers in order."""
        i: cython.int
        base: cython.int = row * self._row
        for i in range(self._row):
            self._zonelists[base + i] = zones[i] if i < len(zones) else -1

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

    @cython.cfunc
    @cython.exceptval(check=False)
    def _trace_list(
        self, event: cython.int, zi: cython.int, li: cython.int, order: cython.int, n: cython.longlong
    ) -> cython.void:
        """An event for each of ``n`` blocks of a per-cpu list: those that came, from the head, or go, from the tail."""
        at: cython.int = self._head_next[li] if event == _T_ZONE_LOCKED else self._head_prev[li]
        mt: cython.int
        while at > 0 and n > 0:
            mt = self._meta[at - 1] >> 16
            if event == _T_ZONE_LOCKED:
                self._emit(event, at - 1, order, mt, mt < _PCPTYPES)
                at = self._next[at - 1]
            else:
                if self._isolated[zi]:
                    mt = self._block_type[(at - 1) >> self.pageblock_order]
                self._emit(event, at - 1, order, mt, 0)
                at = self._prev[at - 1]
            n -= 1

    # -- lists ---------------------------------------------------------------------------------------------

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _add(self, li: cython.int, pfn: cython.longlong) -> cython.void:
        first: cython.int = self._head_next[li]
        me: cython.int = cython.cast(cython.int, pfn + 1)
        self._prev[pfn] = -(li + 1)
        if first:
            self._next[pfn] = first
            self._prev[first - 1] = me
        else:
            self._next[pfn] = -(li + 1)
            self._head_prev[li] = me
        self._head_next[li] = me

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _add_tail(self, li: cython.int, pfn: cython.longlong) -> cython.void:
        last: cython.int = self._head_prev[li]
        me: cython.int = cython.cast(cython.int, pfn + 1)
        self._next[pfn] = -(li + 1)
        if last:
            self._prev[pfn] = last
            self._next[last - 1] = me
        else:
            self._prev[pfn] = -(li + 1)
            self._head_next[li] = me
        self._head_prev[li] = me

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _del(self, pfn: cython.longlong) -> cython.void:
        after: cython.int = self._next[pfn]
        before: cython.int = self._prev[pfn]
        if before > 0:
            self._next[before - 1] = after
        else:
            self._head_next[-before - 1] = after if after > 0 else 0
        if after > 0:
            self._prev[after - 1] = before
        else:
            self._head_prev[-after - 1] = before if before > 0 else 0

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _list(self, zi: cython.int, order: cython.int, mt: cython.int) -> cython.int:
        return (zi * _ORDERS + order) * _LISTS + mt

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _free_list_add(self, zi: cython.int, order: cython.int, mt: cython.int, pfn: cython.longlong) -> cython.void:
        li: cython.int = self._list(zi, order, mt)
        self._add(li, pfn)
        self._on_free_list(zi, order, mt, li, pfn)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _free_list_add_tail(
        self, zi: cython.int, order: cython.int, mt: cython.int, pfn: cython.longlong
    ) -> cython.void:
        li: cython.int = self._list(zi, order, mt)
        if order == _TOP and mt == _MOVABLE and self._front_blocks[zi]:
            self._add_tail(self._list(zi, order, _AFTER), pfn)
        else:
            self._add_tail(li, pfn)
        self._on_free_list(zi, order, mt, li, pfn)

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _on_free_list(
        self, zi: cython.int, order: cython.int, mt: cython.int, li: cython.int, pfn: cython.longlong
    ) -> cython.void:
        self._meta[pfn] = _IN_BUDDY | order << 8 | mt << 16
        self._nr_list[li] += 1

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _free_list_del(self, zi: cython.int, order: cython.int, pfn: cython.longlong) -> cython.void:
        self._del(pfn)
        self._nr_list[self._list(zi, order, self._meta[pfn] >> 16)] -= 1
        self._meta[pfn] = _NOT_HEAD

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _first(self, zi: cython.int, order: cython.int, mt: cython.int) -> cython.longlong:
        """The first block of a free list, or -1 (get_page_from_free_area)."""
        li: cython.int = self._list(zi, order, mt)
        first: cython.int = self._head_next[li]
        if first:
            return first - 1
        if order == _TOP and mt == _MOVABLE and self._nr_list[li]:
            return self._first_beyond(zi, li)
        return -1

    @cython.cfunc
    @cython.exceptval(check=False)
    def _first_beyond(self, zi: cython.int, li: cython.int) -> cython.longlong:
        """The list is used up to its frontier: give the frontier's first block a place in the list."""
        base: cython.int = zi * _EXTENTS
        after: cython.int = self._list(zi, _TOP, _AFTER)
        pfn: cython.longlong
        if self._front_blocks[zi]:
            pfn = self._front_lo[base]
            self._take_frontier(zi, 0, pfn)
            self._add(li, pfn)
            self._meta[pfn] = _IN_BUDDY | _TOP << 8 | _MOVABLE << 16
            return pfn
        self._head_next[li] = self._head_next[after]
        self._head_prev[li] = self._head_prev[after]
        self._prev[self._head_next[li] - 1] = -(li + 1)
        self._next[self._head_prev[li] - 1] = -(li + 1)
        self._head_next[after] = 0
        self._head_prev[after] = 0
        return self._head_next[li] - 1

    @cython.cfunc
    @cython.exceptval(check=False)
    def _take_frontier(self, zi: cython.int, extent: cython.int, pfn: cython.longlong) -> cython.void:
        """Cut one block out of a frontier extent; the lists' counts stay."""
        base: cython.int = zi * _EXTENTS
        i: cython.int = base + extent
        j: cython.int
        size: cython.longlong = 1 << _TOP
        high: cython.longlong = self._front_hi[i]
        self._front_blocks[zi] -= 1
        if pfn == self._front_lo[i]:
            self._front_lo[i] += size
        elif pfn + size == high:
            self._front_hi[i] -= size
        else:
            for j in range(base + self._front_n[zi], i + 1, -1):
                self._front_lo[j] = self._front_lo[j - 1]
                self._front_hi[j] = self._front_hi[j - 1]
            self._front_n[zi] += 1
            self._front_hi[i] = pfn
            self._front_lo[i + 1] = pfn + size
            self._front_hi[i + 1] = high
        if self._front_lo[i] == self._front_hi[i]:
            for j in range(i, base + self._front_n[zi] - 1):
                self._front_lo[j] = self._front_lo[j + 1]
                self._front_hi[j] = self._front_hi[j + 1]
            self._front_n[zi] -= 1

    # -- zones and page blocks -----------------------------------------------------------------------------

    @cython.ccall
    @cython.exceptval(check=False)
    def zone_of(self, pfn: cython.longlong) -> cython.int:
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

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _set_block(self, pfn: cython.longlong, mt: cython.int) -> cython.void:
        if self.mobility_disabled and mt < _PCPTYPES:
            mt = 0
        self._block_type[pfn >> self.pageblock_order] = mt

    # -- freeing -------------------------------------------------------------------------------------------

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _count_free(self, zi: cython.int, mt: cython.int, pages: cython.longlong) -> cython.void:
        self._zone_stat[zi * self._stat_items + self._nr_free_pages] += pages
        if mt == _CMA:
            self._zone_stat[zi * self._stat_items + self._nr_free_cma] += pages

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _is_buddy(self, zi: cython.int, buddy: cython.longlong, order: cython.int) -> cython.bint:
        return (
            self._zone_start[zi] <= buddy < self._zone_end[zi] and self._meta[buddy] & 0xFFFF == _IN_BUDDY | order << 8
        )

    @cython.cfunc
    @cython.exceptval(check=False)
    def _free_one(
        self, zi: cython.int, pfn: cython.longlong, order: cython.int, mt: cython.int, tail: cython.bint
    ) -> cython.void:
        """Put a block back and count its pages as free (__free_one_page)."""
        if mt != _ISOLATE:
            self._count_free(zi, mt, 1 << order)
        self._merge(zi, pfn, order, mt, tail)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _merge(
        self, zi: cython.int, pfn: cython.longlong, order: cython.int, mt: cython.int, tail: cython.bint
    ) -> cython.void:
        """Put a block on its free list, merged with its buddies as far as they are free."""
        buddy: cython.longlong = pfn ^ (1 << order)
        theirs: cython.int
        higher: cython.longlong
        while order < _TOP:
            if order == self._capture_order and self._capture(zi, pfn, mt):
                return
            buddy = pfn ^ (1 << order)
            if not self._is_buddy(zi, buddy, order):
                break
            if order >= self.pageblock_order:
                theirs = self._block_type[buddy >> self.pageblock_order]
                if mt != theirs and (mt >= _PCPTYPES or theirs >= _PCPTYPES):
                    break
            self._free_list_del(zi, order, buddy)
            self._meta[pfn] = _NOT_HEAD
            pfn &= buddy
            order += 1
        if not tail and order < _TOP - 1:
            higher = pfn & buddy
            tail = self._is_buddy(zi, higher ^ (1 << (order + 1)), order + 1)
        if tail:
            self._free_list_add_tail(zi, order, mt, pfn)
        else:
            self._free_list_add(zi, order, mt, pfn)

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _pindex(self, mt: cython.int, order: cython.int) -> cython.int:
        if order > _COSTLY:
            return _PCP_LOW + (mt == _MOVABLE)
        return _PCPTYPES * order + mt

    @cython.cfunc
    @cython.exceptval(check=False)
    def _free_pcp_bulk(self, zi: cython.int, pi: cython.int, count: cython.int, pindex: cython.int) -> cython.void:
        """Give ``count`` pages of a per-cpu list set back, list by list from ``pindex`` (free_pcppages_bulk)."""
        low: cython.int = 0
        high: cython.int = _PCP_LISTS - 1
        base: cython.int = self._pcp_base + pi * _PCP_LISTS
        order: cython.int
        freed: cython.int
        if count > self._pcp_count[pi]:
            count = self._pcp_count[pi]
        pindex -= 1
        while count > 0:
            while True:
                pindex += 1
                if pindex > high:
                    pindex = low
                if self._head_next[base + pindex]:
                    break
                if pindex == high:
                    high -= 1
                if pindex == low:
                    low += 1
            order = self.pageblock_order if pindex >= _PCP_LOW else pindex // _PCPTYPES
            freed = self._free_from_tail(zi, base + pindex, count, order)
            count -= freed
            self._pcp_count[pi] -= freed
        self._ctx[_NOW] += self.cost_buddy

    @cython.cfunc
    @cython.exceptval(check=False)
    def _free_from_tail(self, zi: cython.int, li: cython.int, count: cython.int, order: cython.int) -> cython.int:
        """Free at least ``count`` pages off the tail of one per-cpu list, or all it has. The pages freed."""
        last: cython.int = self._head_prev[li]
        mt: cython.int
        pfn: cython.longlong
        freed: cython.int = 0
        plain: cython.longlong = 0
        if self._control[_MASK] >> _T_PCPU_DRAIN & 1:
            self._trace_list(_T_PCPU_DRAIN, zi, li, order, (count + (1 << order) - 1) >> order)
        while last > 0 and freed < count:
            pfn = last - 1
            last = self._prev[pfn]
            mt = self._meta[pfn] >> 16
            self._meta[pfn] = _NOT_HEAD
            freed += 1 << order
            if self._isolated[zi]:
                mt = self._block_type[pfn >> self.pageblock_order]
            if mt < _CMA:
                plain += 1 << order
            elif mt != _ISOLATE:
                self._count_free(zi, mt, 1 << order)
            self._merge(zi, pfn, order, mt, False)
        self._count_free(zi, _MOVABLE, plain)
        if last > 0:
            self._head_prev[li] = last
            self._next[last - 1] = -(li + 1)
        else:
            self._head_prev[li] = 0
            self._head_next[li] = 0
        return freed

    @cython.cfunc
    @cython.exceptval(check=False)
    def _pcp_commit(self, zi: cython.int, pfn: cython.longlong, mt: cython.int, order: cython.int) -> cython.void:
        """Free to the local per-cpu list, and some of it back when it is full (free_unref_page_commit)."""
        pi: cython.int = zi * self.ncpus + cython.cast(cython.int, self._ctx[_CPU])
        pindex: cython.int = self._pindex(mt, order)
        high: cython.int = self._pcp_high[zi]
        batch: cython.int = self._pcp_batch[zi]
        free_high: cython.bint = self._pcp_factor[pi] != 0 and 0 < order <= _COSTLY
        n: cython.int
        self._events[self._ev_free] += 1 << order
        self._add(self._pcp_base + pi * _PCP_LISTS + pindex, pfn)
        self._pcp_count[pi] += 1 << order
        if high == 0 or free_high:
            high = 0
        elif self._reclaim_active[zi] and (batch << 2) < high:
            high = batch << 2
        if self._pcp_count[pi] < high:
            return
        if free_high:
            n = self._pcp_count[pi]
        elif high < batch:
            n = 1
        else:
            n = batch << self._pcp_factor[pi]
            if n < high - batch and self._pcp_factor[pi] < _BATCH_SCALE_MAX:
                self._pcp_factor[pi] += 1
            n = max(batch, min(n, high - batch))
        self._free_pcp_bulk(zi, pi, n, pindex)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _free_pages(self, pfn: cython.longlong, order: cython.int) -> cython.bint:
        """Free an allocated block (free_the_page). False: it is not the head of one of that order."""
        zi: cython.int
        mt: cython.int
        if pfn < 0 or pfn >= self._next.shape[0] or self._meta[pfn] & 0xFFFF != _ALLOCATED | order << 8:
            self.bad_pfn = pfn
            return False
        zi = self.zone_of(pfn)
        if self._flags[pfn]:
            self._flags[pfn] = 0
        if self._owner_on:
            self._reset_owner(pfn, order)
        if self._control[_MASK] >> _T_FREE & 1:
            self._emit(_T_FREE, pfn, order, 0, 0)
        self._ctx[_NOW] += self.cost_pcp
        mt = self._block_type[pfn >> self.pageblock_order]
        if (order > _COSTLY and order != self.pageblock_order) or mt == _ISOLATE:
            self._meta[pfn] = _NOT_HEAD
            self._free_one(zi, pfn, order, mt, False)
            self._events[self._ev_free] += 1 << order
            return True
        self._meta[pfn] = _IN_PCP | order << 8 | mt << 16
        self._pcp_commit(zi, pfn, mt if mt < _PCPTYPES else _MOVABLE, order)
        return True

    def free_pages(self, pfn: cython.longlong, order: cython.int) -> bool:
        """Free a block of ``order``. False, and nothing done, when no such block is allocated at ``pfn``."""
        return self._free_pages(pfn, order)

    def free_bulk(self, pfns: cython.longlong[::1], order: cython.int) -> int:
        """Free blocks in the order given. The number freed: it stops at a bad one, ``bad_pfn``."""
        i: cython.Py_ssize_t = 0
        while i < pfns.shape[0]:
            if order <= _COSTLY and not self._owner_on and not self._control[_MASK] >> _T_FREE & 1:
                i += self._free_run(pfns, i, order)
                if i == pfns.shape[0]:
                    break
            if not self._free_pages(pfns[i], order):
                return i
            i += 1
        return i

    @cython.cfunc
    @cython.exceptval(check=False)
    def _free_run(self, pfns: cython.longlong[::1], start: cython.Py_ssize_t, order: cython.int) -> cython.Py_ssize_t:
        """Put blocks on one per-cpu list for as long as it has room and they belong there. How many."""
        i: cython.Py_ssize_t = start
        pfn: cython.longlong = pfns[start]
        zi: cython.int
        pi: cython.int
        mt: cython.int
        li: cython.int
        first: cython.int
        room: cython.longlong
        if pfn < 0 or pfn >= self._next.shape[0]:
            return 0
        zi = self.zone_of(pfn)
        pi = zi * self.ncpus + cython.cast(cython.int, self._ctx[_CPU])
        mt = self._block_type[pfn >> self.pageblock_order]
        room = (self._pcp_high[zi] - 1 - self._pcp_count[pi]) >> order
        if mt >= _PCPTYPES or self._reclaim_active[zi] or (order and self._pcp_factor[pi]):
            return 0
        room = min(room, pfns.shape[0] - start)
        li = self._pcp_base + pi * _PCP_LISTS + self._pindex(mt, order)
        first = self._head_next[li]
        while i - start < room:
            pfn = pfns[i]
            if (
                pfn < self._zone_start[zi]
                or pfn >= self._zone_end[zi]
                or self._meta[pfn] & 0xFFFF != _ALLOCATED | order << 8
                or self._block_type[pfn >> self.pageblock_order] != mt
            ):
                break
            if self._flags[pfn]:
                self._flags[pfn] = 0
            self._meta[pfn] = _IN_PCP | order << 8 | mt << 16
            if first:
                self._next[pfn] = first
                self._prev[first - 1] = cython.cast(cython.int, pfn + 1)
            else:
                self._next[pfn] = -(li + 1)
                self._head_prev[li] = cython.cast(cython.int, pfn + 1)
            first = cython.cast(cython.int, pfn + 1)
            i += 1
        if i > start:
            self._head_next[li] = first
            self._prev[first - 1] = -(li + 1)
            self._pcp_count[pi] += (i - start) << order
            self._events[self._ev_free] += (i - start) << order
            self._ctx[_NOW] += (i - start) * self.cost_pcp
        return i - start

    def drain(self, zi: cython.int, cpu: cython.int, pages: cython.int = -1) -> None:
        """Give the pages of a per-cpu list set back to the free lists (drain_pages_zone, drain_zone_pages)."""
        pi: cython.int = zi * self.ncpus + cpu
        n: cython.int = self._pcp_batch[zi] << _BATCH_SCALE_MAX
        if pages >= 0:
            self._free_pcp_bulk(zi, pi, pages, 0)
            return
        while self._pcp_count[pi]:
            self._free_pcp_bulk(zi, pi, n, 0)

    def drain_all(self) -> None:
        """Drain every CPU's lists of every zone (drain_all_pages)."""
        zi: cython.int
        cpu: cython.int
        for cpu in range(self.ncpus):
            for zi in range(self.nzones):
                if self._pcp_count[zi * self.ncpus + cpu]:
                    self.drain(zi, cpu)

    # -- allocating ----------------------------------------------------------------------------------------

    @cython.cfunc
    @cython.exceptval(check=False)
    def _smallest(self, zi: cython.int, order: cython.int, mt: cython.int) -> cython.longlong:
        """Split the smallest block of the type that is large enough (__rmqueue_smallest). -1: none."""
        current: cython.int = order
        li: cython.int = self._list(zi, order, mt)
        pfn: cython.longlong
        while self._nr_list[li] == 0:
            current += 1
            if current == _ORDERS:
                return -1
            li += _LISTS
        pfn = self._head_next[li] - 1
        if pfn < 0:
            pfn = self._first_beyond(zi, li)
        self._del(pfn)
        self._nr_list[li] -= 1
        while current > order:
            current -= 1
            self._free_list_add(zi, current, mt, pfn + (1 << current))
        self._meta[pfn] = mt << 16
        return pfn

    @cython.cfunc
    @cython.exceptval(check=False)
    def _fallback_type(self, zi: cython.int, order: cython.int, start: cython.int) -> cython.int:
        """The first other type with a free block of ``order`` (find_suitable_fallback). -1: none."""
        first: cython.int = 2 if start != 2 else 0
        second: cython.int = 1 if start != _MOVABLE else 0
        if start >= _PCPTYPES:
            return -1
        if self._nr_list[self._list(zi, order, first)]:
            return first
        if self._nr_list[self._list(zi, order, second)]:
            return second
        return -1

    @cython.cfunc
    @cython.exceptval(check=False)
    def _can_steal(self, order: cython.int, start: cython.int) -> cython.bint:
        return order >= self.pageblock_order // 2 or start != _MOVABLE or self.mobility_disabled

    @cython.cfunc
    @cython.exceptval(check=False)
    def _fallback(self, zi: cython.int, order: cython.int, start: cython.int, flags: cython.int) -> cython.bint:
        """Move a block of another type to ``start``'s lists, perhaps with its page block (__rmqueue_fallback)."""
        lowest: cython.int = order
        current: cython.int
        mt: cython.int = -1
        steal: cython.bint = False
        pfn: cython.longlong
        at: cython.Py_ssize_t
        if order < self.pageblock_order and flags & _NOFRAGMENT:
            lowest = self.pageblock_order
        current = _TOP
        while current >= lowest:
            mt = self._fallback_type(zi, current, start)
            if mt >= 0:
                break
            current -= 1
        if mt < 0:
            return False
        steal = self._can_steal(current, start)
        if not steal and start == _MOVABLE and current > order:
            for current in range(order, _ORDERS):
                mt = self._fallback_type(zi, current, start)
                if mt >= 0:
                    break
            steal = self._can_steal(current, start)
        pfn = self._first(zi, current, mt)
        self._steal(zi, pfn, flags, start, steal)
        if self._control[_MASK] >> _T_EXTFRAG & 1:
            at = self._emit(_T_EXTFRAG, pfn, order, current, start)
            self._log[at + 4] = mt
            self._log[at + 5] = self._block_type[pfn >> self.pageblock_order] == start
        return True

    @cython.cfunc
    @cython.exceptval(check=False)
    def _move_to_list(self, zi: cython.int, pfn: cython.longlong, mt: cython.int) -> cython.void:
        order: cython.int = self._meta[pfn] >> 8 & 0xFF
        self._free_list_del(zi, order, pfn)
        self._free_list_add_tail(zi, order, mt, pfn)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _steal(
        self, zi: cython.int, pfn: cython.longlong, flags: cython.int, start: cython.int, whole: cython.bint
    ) -> cython.void:
        """Take a block for ``start``, and its page block when most of it suits (steal_suitable_fallback)."""
        order: cython.int = self._meta[pfn] >> 8 & 0xFF
        old: cython.int = self._block_type[pfn >> self.pageblock_order]
        i: cython.longlong
        moved: cython.longlong
        movable: cython.longlong = 0
        alike: cython.longlong
        size: cython.longlong = 1 << self.pageblock_order
        if old != _HIGHATOMIC and order >= self.pageblock_order:
            for i in range(pfn, pfn + (1 << order), size):
                self._set_block(i, start)
        if old == _HIGHATOMIC or order >= self.pageblock_order:
            self._move_to_list(zi, pfn, start)
            return
        if self._boost_watermark(zi) and flags & _KSWAPD:
            self._kswapd_wake[zi] = 1
        if not whole:
            self._move_to_list(zi, pfn, start)
            return
        movable = self._movable_in_block(zi, pfn)
        moved = self._move_block(zi, pfn, start)
        alike = 0
        if start == _MOVABLE:
            alike = movable
        elif old == _MOVABLE:
            alike = size - (moved + movable)
        if not moved:
            self._move_to_list(zi, pfn, start)
            return
        if moved + alike >= size >> 1 or self.mobility_disabled:
            self._set_block(pfn, start)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _boost_watermark(self, zi: cython.int) -> cython.bint:
        size: cython.longlong = 1 << self.pageblock_order
        most: cython.longlong = self._wmark[zi * 4 + 2] * self.boost_factor // 10000
        if not self.boost_factor or size * 4 > self._managed[zi] or not most:
            return False
        most = max(most, size)
        self._boost[zi] = min(self._boost[zi] + size, most)
        return True

    @cython.cfunc
    @cython.exceptval(check=False)
    def _movable_in_block(self, zi: cython.int, pfn: cython.longlong) -> cython.longlong:
        """Pages in use in the page block that could be migrated."""
        i: cython.longlong = (pfn >> self.pageblock_order) << self.pageblock_order
        end: cython.longlong = i + (1 << self.pageblock_order)
        n: cython.longlong = 0
        if i < self._zone_start[zi]:
            i = pfn
        if end > self._zone_end[zi]:
            return 0
        while i < end:
            if self._meta[i] & 0xFF == _IN_BUDDY:
                i += 1 << (self._meta[i] >> 8 & 0xFF)
                continue
            if (self._flags[i] >> _PG_LRU_BIT) & 1:
                n += 1
            i += 1
        return n

    @cython.cfunc
    @cython.exceptval(check=False)
    def _move_block(self, zi: cython.int, pfn: cython.longlong, mt: cython.int) -> cython.longlong:
        """Move the free pages of a page block to the tails of ``mt``'s lists (move_freepages_block)."""
        i: cython.longlong = (pfn >> self.pageblock_order) << self.pageblock_order
        end: cython.longlong = i + (1 << self.pageblock_order)
        moved: cython.longlong = 0
        size: cython.longlong
        if i < self._zone_start[zi]:
            i = pfn
        if end > self._zone_end[zi]:
            return 0
        while i < end:
            if self._meta[i] & 0xFF != _IN_BUDDY:
                i += 1
                continue
            size = 1 << (self._meta[i] >> 8 & 0xFF)
            self._move_to_list(zi, i, mt)
            moved += size
            i += size
        return moved

    @cython.cfunc
    @cython.exceptval(check=False)
    def _rmqueue(self, zi: cython.int, order: cython.int, mt: cython.int, flags: cython.int) -> cython.longlong:
        """One block of the type, falling back to CMA and other types (__rmqueue). -1: none."""
        pfn: cython.longlong
        base: cython.int = zi * self._stat_items
        if (
            flags & _ALLOC_CMA
            and self._zone_stat[base + self._nr_free_cma] > self._zone_stat[base + self._nr_free_pages] // 2
        ):
            pfn = self._smallest(zi, order, _CMA)
            if pfn >= 0:
                return pfn
        while True:
            pfn = self._smallest(zi, order, mt)
            if pfn >= 0:
                return pfn
            if flags & _ALLOC_CMA:
                pfn = self._smallest(zi, order, _CMA)
                if pfn >= 0:
                    return pfn
            if not self._fallback(zi, order, mt, flags):
                return -1

    @cython.cfunc
    @cython.exceptval(check=False)
    def _refill(
        self, zi: cython.int, pi: cython.int, order: cython.int, mt: cython.int, flags: cython.int, li: cython.int
    ) -> cython.void:
        """Fill an empty per-cpu list from the free lists, upwards to its tail (rmqueue_bulk)."""
        batch: cython.int = self._pcp_batch[zi]
        got: cython.int = 0
        last: cython.int = -(li + 1)
        pfn: cython.longlong
        if batch > 1:
            batch = max(batch >> order, 2)
        while got < batch:
            pfn = self._rmqueue(zi, order, mt, flags)
            if pfn < 0:
                break
            if self._meta[pfn] >> 16 == _CMA:
                self._zone_stat[zi * self._stat_items + self._nr_free_cma] -= 1 << order
            self._meta[pfn] |= _IN_PCP | order << 8
            self._prev[pfn] = last
            if last > 0:
                self._next[last - 1] = cython.cast(cython.int, pfn + 1)
            else:
                self._head_next[li] = cython.cast(cython.int, pfn + 1)
            last = cython.cast(cython.int, pfn + 1)
            got += 1
        if got:
            self._next[last - 1] = -(li + 1)
            self._head_prev[li] = last
            if self._control[_MASK] >> _T_ZONE_LOCKED & 1:
                self._trace_list(_T_ZONE_LOCKED, zi, li, order, got)
        self._pcp_count[pi] += got << order
        self._zone_stat[zi * self._stat_items + self._nr_free_pages] -= got << order
        self._ctx[_NOW] += self.cost_buddy

    @cython.cfunc
    @cython.exceptval(check=False)
    def _from_pcp(self, zi: cython.int, order: cython.int, mt: cython.int, flags: cython.int) -> cython.longlong:
        """A block from the local per-cpu list (rmqueue_pcplist). -1: the zone has none."""
        pi: cython.int = zi * self.ncpus + cython.cast(cython.int, self._ctx[_CPU])
        li: cython.int = self._pcp_base + pi * _PCP_LISTS + self._pindex(mt, order)
        pfn: cython.longlong
        self._pcp_factor[pi] >>= 1
        if self._head_next[li] == 0:
            self._refill(zi, pi, order, mt, flags, li)
            if self._head_next[li] == 0:
                return -1
        pfn = self._head_next[li] - 1
        self._del(pfn)
        self._pcp_count[pi] -= 1 << order
        self._pcp_used = li
        self._last_zone = zi
        return pfn

    @cython.cfunc
    @cython.exceptval(check=False)
    def _from_zone(
        self, preferred: cython.int, zi: cython.int, order: cython.int, mt: cython.int, flags: cython.int
    ) -> cython.longlong:
        """A block of a zone (rmqueue): per-cpu lists for small orders, else the free lists. -1: none."""
        pfn: cython.longlong = -1
        if (order <= _COSTLY or order == self.pageblock_order) and (flags & _ALLOC_CMA or mt != _MOVABLE):
            pfn = self._from_pcp(zi, order, mt, flags)
        if pfn < 0:
            if flags & _ALLOC_HIGHATOMIC:
                pfn = self._smallest(zi, order, _HIGHATOMIC)
            if pfn < 0:
                pfn = self._rmqueue(zi, order, mt, flags)
            if pfn < 0 and flags & (_OOM | _NON_BLOCK):
                pfn = self._smallest(zi, order, _HIGHATOMIC)
            if pfn < 0:
                return -1
            if self._control[_MASK] >> _T_ZONE_LOCKED & 1:
                self._emit(_T_ZONE_LOCKED, pfn, order, self._meta[pfn] >> 16, 0)
            self._count_free(zi, self._meta[pfn] >> 16, -(1 << order))
            self._ctx[_NOW] += self.cost_buddy
        self._meta[pfn] = _ALLOCATED | order << 8 | (self._meta[pfn] & 0xFF0000)
        self._events[self._ev_alloc[zi]] += 1 << order
        if self.numa_stat_on:
            self._count_numa(preferred, zi, 1)
        return pfn

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _count_numa(self, preferred: cython.int, zi: cython.int, n: cython.longlong) -> cython.void:
        nid: cython.int = self._zone_nid[zi]
        base: cython.int = zi * _NUMA_ITEMS
        local: cython.bint = nid == self._cpu_node[self._ctx[_CPU]]
        if nid == self._zone_nid[preferred]:
            self._numa_stat[base + _HIT] += n
        else:
            self._numa_stat[base + _MISS] += n
            self._numa_stat[preferred * _NUMA_ITEMS + _FOREIGN] += n
        self._numa_stat[base + (_LOCAL if local else _OTHER)] += n

    @cython.cfunc
    @cython.exceptval(check=False)
    def _unusable(self, zi: cython.int, order: cython.int, flags: cython.int) -> cython.longlong:
        free: cython.longlong = (1 << order) - 1
        if not flags & _RESERVES:
            free += self._highatomic[zi]
        if not flags & _ALLOC_CMA:
            free += self._zone_stat[zi * self._stat_items + self._nr_free_cma]
        return free

    @cython.cfunc
    @cython.exceptval(check=False)
    def _watermark_ok(
        self,
        zi: cython.int,
        order: cython.int,
        mark: cython.longlong,
        highest: cython.int,
        flags: cython.int,
        free: cython.longlong,
    ) -> cython.bint:
        """Whether ``free`` pages leave ``mark`` untouched (__zone_watermark_ok)."""
        low: cython.longlong = mark
        o: cython.int
        li: cython.int
        free -= self._unusable(zi, order, flags)
        if flags & _RESERVES:
            if flags & _MIN_RESERVE:
                low -= low // 2
                if flags & _NON_BLOCK:
                    low -= low // 4
            if flags & _OOM:
                low -= low // 2
        if free <= low + self._reserve[zi * self._types + highest]:
            return False
        if order == 0:
            return True
        for o in range(order, _ORDERS):
            li = self._list(zi, o, 0)
            if self._nr_list[li] or self._nr_list[li + 1] or self._nr_list[li + 2]:
                return True
            if flags & _ALLOC_CMA and self._nr_list[li + _CMA]:
                return True
            if flags & (_ALLOC_HIGHATOMIC | _OOM) and self._nr_list[li + _HIGHATOMIC]:
                return True
        return False

    @cython.cfunc
    @cython.exceptval(check=False)
    def _watermark_fast(
        self, zi: cython.int, order: cython.int, highest: cython.int, flags: cython.int, gfp: cython.longlong
    ) -> cython.bint:
        """zone_watermark_fast with the mark that ``flags`` name."""
        free: cython.longlong = self._zone_stat[zi * self._stat_items + self._nr_free_pages]
        bare: cython.longlong = self._wmark[zi * 4 + (flags & _WMARK_MASK)]
        mark: cython.longlong = bare + self._boost[zi]
        usable: cython.longlong
        if order == 0:
            usable = free - min(free, self._unusable(zi, 0, flags))
            if usable > mark + self._reserve[zi * self._types + highest]:
                return True
        if self._watermark_ok(zi, order, mark, highest, flags, free):
            return True
        if order == 0 and gfp & _GFP_ATOMIC and self._boost[zi] and flags & _WMARK_MASK == 0:
            return self._watermark_ok(zi, 0, bare, highest, flags, free)
        return False

    @cython.cfunc
    @cython.exceptval(check=False)
    def _from_freelists(
        self,
        row: cython.int,
        highest: cython.int,
        nodemask: cython.ulonglong,
        order: cython.int,
        mt: cython.int,
        flags: cython.int,
        gfp: cython.longlong,
    ) -> cython.longlong:
        """Go through a zonelist for a zone with enough free pages (get_page_from_freelist). -1: none."""
        base: cython.int = row * self._row
        i: cython.int
        zi: cython.int
        pfn: cython.longlong
        preferred: cython.int
        one: cython.ulonglong = 1
        no_fallback: cython.bint
        while True:
            no_fallback = (flags & _NOFRAGMENT) != 0
            preferred = -1
            i = base
            while self._zonelists[i] >= 0:
                zi = self._zonelists[i]
                i += 1
                if self._zone_type[zi] > highest or not (nodemask >> self._zone_nid[zi]) & one:
                    continue
                if preferred < 0:
                    preferred = zi
                if (
                    no_fallback
                    and self.numa_nodes > 1
                    and zi != preferred
                    and self._zone_nid[zi] != self._zone_nid[preferred]
                ):
                    break
                if not flags & _NO_WATERMARKS and not self._watermark_fast(zi, order, highest, flags, gfp):
                    continue
                self._preferred = preferred
                pfn = self._from_zone(preferred, zi, order, mt, flags)
                if pfn < 0:
                    continue
                if self._owner_on:
                    self._set_owner(pfn, order, gfp)
                if self._control[_MASK] & 1:
                    self._emit(_T_ALLOC, pfn, order, gfp, mt)
                if flags & _ALLOC_HIGHATOMIC:
                    self._reserve_highatomic(zi, pfn)
                return pfn
            if not no_fallback:
                return -1
            flags &= ~_NOFRAGMENT

    @cython.cfunc
    @cython.exceptval(check=False)
    def _reserve_highatomic(self, zi: cython.int, pfn: cython.longlong) -> cython.void:
        """Keep the block's page block for high-order atomic allocations (reserve_highatomic_pageblock)."""
        size: cython.longlong = 1 << self.pageblock_order
        if self._highatomic[zi] >= self._managed[zi] // 100 + size:
            return
        if self._block_type[pfn >> self.pageblock_order] < _PCPTYPES:
            self._highatomic[zi] += size
            self._set_block(pfn, _HIGHATOMIC)
            self._move_block(zi, pfn, _HIGHATOMIC)

    def unreserve_highatomic(
        self, row: cython.int, highest: cython.int, nodemask: int, mt: cython.int, force: bool
    ) -> bool:
        """Give one reserved page block to ``mt`` (unreserve_highatomic_pageblock). Whether pages were moved."""
        size: cython.longlong = 1 << self.pageblock_order
        base: cython.int = row * self._row
        i: cython.int
        order: cython.int
        zi: cython.int
        pfn: cython.longlong
        for i in range(base, base + self._row):
            zi = self._zonelists[i]
            if zi < 0:
                break
            if self._zone_type[zi] > highest or not (nodemask >> self._zone_nid[zi]) & 1:
                continue
            if not force and self._highatomic[zi] <= size:
                continue
            for order in range(_ORDERS):
                pfn = self._first(zi, order, _HIGHATOMIC)
                if pfn < 0:
                    continue
                if self._block_type[pfn >> self.pageblock_order] == _HIGHATOMIC:
                    self._highatomic[zi] -= min(size, self._highatomic[zi])
                self._set_block(pfn, mt)
                if self._move_block(zi, pfn, mt):
                    return True
        return False

    def alloc_pages(
        self,
        row: cython.int,
        highest: cython.int,
        nodemask: cython.ulonglong,
        order: cython.int,
        mt: cython.int,
        flags: cython.int,
        gfp: cython.longlong,
    ) -> int:
        """One block by get_page_from_freelist with alloc flags ``flags``. -1: no zone has one."""
        pfn: cython.longlong = self._from_freelists(row, highest, nodemask, order, mt, flags, gfp)
        self._ctx[_NOW] += self.cost_pcp
        return pfn

    def alloc_bulk(
        self,
        out: cython.longlong[::1],
        row: cython.int,
        highest: cython.int,
        nodemask: cython.ulonglong,
        order: cython.int,
        mt: cython.int,
        flags: cython.int,
        gfp: cython.longlong,
    ) -> int:
        """Fill ``out`` with blocks, as so many single allocations. The number got: it stops at a failure."""
        i: cython.Py_ssize_t
        pfn: cython.longlong
        n: cython.Py_ssize_t = out.shape[0]
        i = 0
        while i < n:
            self._pcp_used = -1
            pfn = self._from_freelists(row, highest, nodemask, order, mt, flags, gfp)
            self._ctx[_NOW] += self.cost_pcp
            if pfn < 0:
                return i
            out[i] = pfn
            i += 1
            if self._pcp_used >= 0:
                i += self._take_rest(out, i, order, gfp, mt)
        return n

    @cython.cfunc
    @cython.exceptval(check=False)
    def _take_rest(
        self,
        out: cython.longlong[::1],
        start: cython.Py_ssize_t,
        order: cython.int,
        gfp: cython.longlong,
        mt: cython.int,
    ) -> cython.Py_ssize_t:
        """Take what is left on the per-cpu list that the last block came from.

        Taking from it changes nothing that the zone walk looks at, so each walk would end at the same list.
        """
        li: cython.int = self._pcp_used
        zi: cython.int = self._last_zone
        at: cython.int = self._head_next[li]
        n: cython.Py_ssize_t = out.shape[0]
        i: cython.Py_ssize_t = start
        taken: cython.longlong
        pi: cython.int = zi * self.ncpus + cython.cast(cython.int, self._ctx[_CPU])
        each: cython.bint = self._owner_on or self._control[_MASK] & 1
        while at > 0 and i < n:
            out[i] = at - 1
            self._meta[at - 1] += _ALLOCATED - _IN_PCP
            if each:
                if self._owner_on:
                    self._set_owner(at - 1, order, gfp)
                if self._control[_MASK] & 1:
                    self._emit(_T_ALLOC, at - 1, order, gfp, mt)
                self._ctx[_NOW] += self.cost_pcp
            at = self._next[at - 1]
            i += 1
        if at > 0:
            self._head_next[li] = at
            self._prev[at - 1] = -(li + 1)
        else:
            self._head_next[li] = 0
            self._head_prev[li] = 0
        taken = i - start
        self._pcp_count[pi] -= taken << order
        self._pcp_factor[pi] >>= min(taken, 31)
        self._events[self._ev_alloc[zi]] += taken << order
        if not each:
            self._ctx[_NOW] += taken * self.cost_pcp
        if self.numa_stat_on:
            self._count_numa(self._preferred, zi, taken)
        return taken

    def watermark_ok(
        self, zi: cython.int, order: cython.int, mark: cython.longlong, highest: cython.int, flags: cython.int
    ) -> bool:
        """zone_watermark_ok with the zone's free pages."""
        free: cython.longlong = self._zone_stat[zi * self._stat_items + self._nr_free_pages]
        return self._watermark_ok(zi, order, mark, highest, flags, free)

    # -- compaction and contiguous ranges ------------------------------------------------------------------

    def capture(self, zi: cython.int, order: cython.int, gfp: cython.longlong = 0) -> None:
        """From now on keep the first block of ``order`` that a free makes in a zone as ``captured``; -1: no more."""
        self._capture_zone = zi
        self._capture_order = order
        self._capture_gfp = gfp
        self.captured = -1

    @cython.cfunc
    @cython.exceptval(check=False)
    def _capture(self, zi: cython.int, pfn: cython.longlong, mt: cython.int) -> cython.bint:
        """compaction_capture: a block that is less than a page block does not come out of a movable one."""
        if zi != self._capture_zone or mt >= _CMA or (self._capture_order < self.pageblock_order and mt == _MOVABLE):
            return False
        self._count_free(zi, mt, -(1 << self._capture_order))
        self._meta[pfn] = _ALLOCATED | self._capture_order << 8 | mt << 16
        if self._owner_on:
            self._set_owner(pfn, self._capture_order, self._capture_gfp)
        if self._control[_MASK] & 1:
            self._emit(_T_ALLOC, pfn, self._capture_order, self._capture_gfp, mt)
        self.taken += 1 << self._capture_order
        self.captured = pfn
        self._capture_order = -1
        return True

    @cython.cfunc
    @cython.exceptval(check=False)
    def _isolate_free(
        self, zi: cython.int, pfn: cython.longlong, order: cython.int, out: cython.longlong[::1], at: cython.Py_ssize_t
    ) -> cython.Py_ssize_t:
        """Take a free block, as allocated single pages, unless that breaks the min watermark (__isolate_free_page).

        What ``out`` holds then; -1: the watermark forbids it.
        """
        mt: cython.int = self._block_type[pfn >> self.pageblock_order]
        free: cython.longlong = self._zone_stat[zi * self._stat_items + self._nr_free_pages]
        size: cython.longlong = 1 << order
        i: cython.longlong
        if mt != _ISOLATE:
            if not self._watermark_ok(zi, 0, self._wmark[zi * 4] + size, 0, _ALLOC_CMA, free):
                return -1
            self._count_free(zi, mt, -size)
        self._free_list_del(zi, order, pfn)
        if order >= self.pageblock_order - 1 and mt != _ISOLATE:
            for i in range(pfn, pfn + size, 1 << self.pageblock_order):
                if self._block_type[i >> self.pageblock_order] < _PCPTYPES:
                    self._set_block(i, _MOVABLE)
        if self._owner_on:
            for i in range(pfn, pfn + size):
                self._set_owner(i, 0, 0x08)
        for i in range(pfn, pfn + size):
            self._meta[i] = _ALLOCATED | mt << 16
            out[at] = i
            at += 1
        self.taken += size
        return at

    def isolate_free_page(
        self, zi: cython.int, pfn: cython.longlong, order: cython.int, out: cython.longlong[::1], at: cython.Py_ssize_t
    ) -> int:
        """Take one free block as single pages, appended to ``out[at:]``. How many ``out`` holds then, -1: refused."""
        return self._isolate_free(zi, pfn, order, out, at)

    def isolate_freepages_block(
        self,
        zi: cython.int,
        start: cython.longlong,
        end: cython.longlong,
        out: cython.longlong[::1],
        at: cython.Py_ssize_t,
        wanted: cython.longlong,
        stride: cython.int,
        strict: cython.bint,
    ) -> int:
        """Take the free pages of ``[start, end)`` until ``out`` holds ``wanted``; how many it holds then.

        ``strict``: all must be free, and the scan ends at the first that is not. ``scan_pfn`` is where the scan ended,
        ``scanned`` how many pages it looked at.
        """
        pfn: cython.longlong = start
        order: cython.int
        got: cython.Py_ssize_t
        self.scanned = 0
        while pfn < end:
            self.scanned += 1
            if self._meta[pfn] & 0xFF == _IN_BUDDY:
                order = (self._meta[pfn] >> 8) & 0xFF
                got = self._isolate_free(zi, pfn, order, out, at)
                if got < 0:
                    break
                at = got
                self.scanned += (1 << order) - 1
                pfn += 1 << order
                if not strict and wanted <= at:
                    break
                if stride > 1:
                    pfn += stride - 1
                continue
            if strict:
                break
            if self._flags[pfn] & _HEAD and self._meta[pfn] & 0xFF == _ALLOCATED:
                pfn += (1 << ((self._meta[pfn] >> 8) & 0xFF)) - 1
            pfn += stride
        self.scan_pfn = pfn if strict or pfn < end else end
        return at

    @cython.cfunc
    @cython.exceptval(check=False)
    def _list_frontier(self, zi: cython.int, pfn: cython.longlong) -> cython.bint:
        """Give the never touched block that holds a page a place in its list. False: there are too many extents."""
        base: cython.int = zi * _EXTENTS
        i: cython.int
        li: cython.int = self._list(zi, _TOP, _MOVABLE)
        for i in range(base, base + self._front_n[zi]):
            if self._front_lo[i] <= pfn < self._front_hi[i]:
                if self._front_n[zi] >= _EXTENTS - 1:
                    return False
                pfn &= ~((1 << _TOP) - 1)
                self._take_frontier(zi, i - base, pfn)
                self._add_tail(li, pfn)
                self._meta[pfn] = _IN_BUDDY | _TOP << 8 | _MOVABLE << 16
                return True
        return True

    @cython.cfunc
    @cython.exceptval(check=False)
    def _cut(self, zi: cython.int, boundary: cython.longlong) -> cython.void:
        """Split a free block that a page block boundary lies in (split_free_page)."""
        order: cython.int
        mt: cython.int
        pfn: cython.longlong = boundary & ~((1 << _TOP) - 1)
        while pfn < boundary and self._zone_start[zi] <= pfn:
            order = (self._meta[pfn] >> 8) & 0xFF
            if self._meta[pfn] & 0xFF != _IN_BUDDY or pfn + (1 << order) <= boundary:
                break
            mt = self._meta[pfn] >> 16
            self._free_list_del(zi, order, pfn)
            order -= 1
            self._free_list_add(zi, order, mt, pfn + (1 << order))
            self._free_list_add(zi, order, mt, pfn)
            if pfn + (1 << order) == boundary:
                break
            if pfn + (1 << order) < boundary:
                pfn += 1 << order

    def isolate_range(self, zi: cython.int, low: cython.longlong, high: cython.longlong) -> bool:
        """Set page blocks apart: their free pages count no more and nobody gets them (start_isolate_page_range).

        False, and nothing done, where a block is apart already. Preconditions: whole page blocks of one zone.
        """
        size: cython.longlong = 1 << self.pageblock_order
        pfn: cython.longlong
        i: cython.longlong
        mt: cython.int
        for pfn in range(low, high, size):
            if self._block_type[pfn >> self.pageblock_order] == _ISOLATE or not self._list_frontier(zi, pfn):
                return False
        self._cut(zi, low)
        self._cut(zi, high)
        for pfn in range(low, high, size):
            mt = self._block_type[pfn >> self.pageblock_order]
            if mt == _HIGHATOMIC:
                self._highatomic[zi] -= min(size, self._highatomic[zi])
            self._block_type[pfn >> self.pageblock_order] = _ISOLATE
            self._isolated[zi] += 1
        i = low
        while i < high:
            if self._meta[i] & 0xFF != _IN_BUDDY:
                i += 1
                continue
            self._count_free(zi, self._meta[i] >> 16, -(1 << ((self._meta[i] >> 8) & 0xFF)))
            pfn = i
            i += 1 << ((self._meta[i] >> 8) & 0xFF)
            self._move_to_list(zi, pfn, _ISOLATE)
        return True

    def unisolate_range(self, zi: cython.int, low: cython.longlong, high: cython.longlong, mt: cython.int) -> None:
        """Make page blocks that are apart ordinary ones of type ``mt`` again (undo_isolate_page_range)."""
        size: cython.longlong = 1 << self.pageblock_order
        pfn: cython.longlong
        order: cython.int
        end: cython.longlong
        for pfn in range(low, high, size):
            if self._block_type[pfn >> self.pageblock_order] == _ISOLATE:
                self._set_block(pfn, mt)
                self._isolated[zi] -= 1
        pfn = low
        while pfn < high:
            if self._meta[pfn] & 0xFF != _IN_BUDDY or self._meta[pfn] >> 16 != _ISOLATE:
                pfn += 1
                continue
            order = (self._meta[pfn] >> 8) & 0xFF
            end = pfn + (1 << order)
            self._free_list_del(zi, order, pfn)
            self._free_one(zi, pfn, order, mt, False)
            pfn = end

    def isolated_blocks(self, zi: cython.int) -> int:
        """How many page blocks of a zone are set apart (nr_isolate_pageblock)."""
        return self._isolated[zi]

    def fast_search(
        self, zi: cython.int, order: cython.int, limit: cython.int, low: cython.longlong, least: cython.longlong
    ) -> tuple:
        """Look through the end of a free list of Movable for a block at ``low`` or above, else one above ``least``.

        ``(block or -1, blocks looked at, highest block, limit, whether at low or above)``; the list then begins where
        the search ended, so that the next one sees others (fast_isolate_freepages, move_freelist_head).
        """
        li: cython.int = self._list(zi, order, _MOVABLE)
        at: cython.int = self._head_prev[li]
        pfn: cython.longlong = -1
        found: cython.longlong = -1
        highest: cython.longlong = 0
        high: cython.longlong = 0
        n: cython.int = 0
        while at > 0:
            pfn = at - 1
            n += 1
            highest = max(highest, pfn)
            if pfn >= low:
                found = pfn
                break
            if pfn >= least and pfn > high:
                high = pfn
                limit >>= 1
            if n >= limit:
                break
            at = self._prev[pfn]
        if found < 0 and high:
            self.rotate(zi, order, _MOVABLE, high)
            return high, n, highest, limit, False
        if at > 0:
            self.rotate(zi, order, _MOVABLE, pfn)
        return found, n, highest, limit, found >= 0

    def fast_source(
        self,
        zi: cython.int,
        order: cython.int,
        scanned: cython.int,
        limit: cython.int,
        below: cython.longlong,
        skip: cython.uchar[::1],
    ) -> tuple:
        """Look for a free block of Movable below a page, in a page block that is not to be skipped.

        ``(block or -1, blocks looked at so far)``; the list then begins behind it (fast_find_migrateblock).
        """
        li: cython.int = self._list(zi, order, _MOVABLE)
        at: cython.int = self._head_next[li]
        pfn: cython.longlong = -1
        while at > 0:
            pfn = at - 1
            scanned += 1
            if scanned > limit:
                self._rotate_behind(zi, order, pfn)
                return -1, scanned
            if pfn < below and not skip[pfn >> self.pageblock_order]:
                self._rotate_behind(zi, order, pfn)
                return pfn, scanned
            at = self._next[pfn]
        return -1, scanned

    @cython.cfunc
    @cython.exceptval(check=False)
    def _rotate_behind(self, zi: cython.int, order: cython.int, pfn: cython.longlong) -> cython.void:
        if self._next[pfn] > 0:
            self.rotate(zi, order, _MOVABLE, self._next[pfn] - 1)

    def rotate(self, zi: cython.int, order: cython.int, mt: cython.int, pfn: cython.longlong) -> None:
        """Have a free list begin with block ``pfn`` (list_cut_before and list_splice_tail)."""
        li: cython.int = self._list(zi, order, mt)
        before: cython.int = self._prev[pfn]
        first: cython.int = self._head_next[li]
        last: cython.int = self._head_prev[li]
        if before < 0 or first == last:
            return
        self._next[last - 1] = first
        self._prev[first - 1] = last
        self._head_next[li] = cython.cast(cython.int, pfn + 1)
        self._head_prev[li] = before
        self._prev[pfn] = -(li + 1)
        self._next[before - 1] = -(li + 1)

    # -- page owner ----------------------------------------------------------------------------------------

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

    @cython.cfunc
    @cython.exceptval(check=False)
    def _reset_owner(self, pfn: cython.longlong, order: cython.int) -> cython.void:
        i: cython.longlong
        for i in range(pfn, pfn + (1 << order)):
            self._own_free_ts[i] = self._ctx[_NOW]
            self._own_allocated[i] = 0

    # -- boot, capture and inspection ----------------------------------------------------------------------

    def free_range(self, zi: cython.int, low: cython.longlong, high: cython.longlong) -> None:
        """Release never used pages ``[low, high)`` at boot, upwards (memblock_free_all, __free_pages_core)."""
        pfn: cython.longlong = low
        order: cython.int
        last: cython.longlong
        size: cython.longlong = 1 << _TOP
        while pfn < high:
            order = _TOP
            while pfn & ((1 << order) - 1) or pfn + (1 << order) > high:
                order -= 1
            if order == _TOP and self._mt_is_movable(pfn) and self._front_n[zi] < _EXTENTS - 1:
                last = high & ~(size - 1)
                self._extend_frontier(zi, pfn, last)
                pfn = last
                continue
            self._free_one(zi, pfn, order, self._block_type[pfn >> self.pageblock_order], True)
            self._events[self._ev_free] += 1 << order
            pfn += 1 << order

    @cython.cfunc
    @cython.exceptval(check=False)
    def _mt_is_movable(self, pfn: cython.longlong) -> cython.bint:
        return self._block_type[pfn >> self.pageblock_order] == _MOVABLE

    @cython.cfunc
    @cython.exceptval(check=False)
    def _extend_frontier(self, zi: cython.int, low: cython.longlong, high: cython.longlong) -> cython.void:
        i: cython.int = zi * _EXTENTS + self._front_n[zi]
        blocks: cython.longlong = (high - low) >> _TOP
        self._front_lo[i] = low
        self._front_hi[i] = high
        self._front_n[zi] += 1
        self._front_blocks[zi] += blocks
        self._nr_list[self._list(zi, _TOP, _MOVABLE)] += blocks
        self._count_free(zi, _MOVABLE, high - low)
        self._events[self._ev_free] += high - low

    def load_free_block(self, zi: cython.int, order: cython.int, mt: cython.int, pfn: cython.longlong) -> None:
        """Append a free block to a list's tail, without merging: for a captured state."""
        self._free_list_add_tail(zi, order, mt, pfn)
        self._count_free(zi, mt, 1 << order)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _free_until(self, zi: cython.int, pfn: cython.longlong, high: cython.longlong) -> cython.longlong:
        """The end of the free block or never touched range at ``pfn``, at most ``high``; -1: not free."""
        i: cython.int
        base: cython.int = zi * _EXTENTS
        if self._meta[pfn] & 0xFF == _IN_BUDDY:
            return pfn + (1 << ((self._meta[pfn] >> 8) & 0xFF))
        for i in range(base, base + self._front_n[zi]):
            if self._front_lo[i] <= pfn < self._front_hi[i]:
                return min(self._front_hi[i], high)
        return -1

    @cython.cfunc
    @cython.exceptval(check=False)
    def _take_untouched(self, zi: cython.int, low: cython.longlong, high: cython.longlong) -> cython.void:
        """Take never touched blocks ``[low, high)``, which one extent holds, off their list."""
        base: cython.int = zi * _EXTENTS
        i: cython.int
        pfn: cython.longlong = low
        while pfn < high:
            for i in range(base, base + self._front_n[zi]):
                if self._front_lo[i] <= pfn < self._front_hi[i]:
                    self._take_frontier(zi, i - base, pfn)
                    break
            self._nr_list[self._list(zi, _TOP, _MOVABLE)] -= 1
            self._count_free(zi, _MOVABLE, -(1 << _TOP))
            pfn += 1 << _TOP

    def take_range(self, zi: cython.int, low: cython.longlong, high: cython.longlong) -> bool:
        """Take pages ``[low, high)`` of a zone off the free lists if all are there (alloc_contig_range).

        Preconditions: the range begins and ends at a multiple of the largest block; per-cpu lists are empty.
        """
        pfn: cython.longlong = low
        end: cython.longlong
        order: cython.int
        if self._front_n[zi] >= _EXTENTS - 1:
            return False
        while pfn < high:
            pfn = self._free_until(zi, pfn, high)
            if pfn < 0:
                return False
        pfn = low
        while pfn < high:
            end = self._free_until(zi, pfn, high)
            if self._meta[pfn] & 0xFF == _IN_BUDDY:
                order = (self._meta[pfn] >> 8) & 0xFF
                self._count_free(zi, self._meta[pfn] >> 16, -(1 << order))
                self._free_list_del(zi, order, pfn)
            else:
                self._take_untouched(zi, pfn, end)
            pfn = end
        return True

    def mark_allocated(self, pfn: cython.longlong, order: cython.int, mt: cython.int) -> None:
        """Make a page range that is on no list an allocated block."""
        self._meta[pfn] = _ALLOCATED | order << 8 | mt << 16

    def load_pcp(self, zi: cython.int, cpu: cython.int, pindex: cython.int, pfn: cython.longlong) -> None:
        """Append a block to the tail of a per-cpu list: for a captured state."""
        pi: cython.int = zi * self.ncpus + cpu
        order: cython.int = self.pageblock_order if pindex >= _PCP_LOW else pindex // _PCPTYPES
        self._add_tail(self._pcp_base + pi * _PCP_LISTS + pindex, pfn)
        mt: cython.int = pindex % _PCPTYPES if pindex < _PCP_LOW else pindex - _PCP_LOW
        self._meta[pfn] = _IN_PCP | order << 8 | mt << 16
        self._pcp_count[pi] += 1 << order

    def empty_zone(self, zi: cython.int) -> list:
        """Take every block off a zone's free lists, before a captured state is loaded: their PFN ranges, unsorted.

        Preconditions: nothing is on the zone's per-cpu lists.
        """
        ranges: list = self.frontier(zi)
        blocks: cython.longlong = 0
        order: cython.int
        mt: cython.int
        for order in range(_ORDERS):
            for mt in range(_LISTS - 1):
                for pfn in self.free_list(zi, order, mt, False):
                    self._free_list_del(zi, order, pfn)
                    self._count_free(zi, mt, -(1 << order))
                    ranges.append((pfn, pfn + (1 << order)))
        blocks = self._front_blocks[zi]
        self._front_n[zi] = 0
        self._front_blocks[zi] = 0
        self._nr_list[self._list(zi, _TOP, _MOVABLE)] -= blocks
        self._count_free(zi, _MOVABLE, -(blocks << _TOP))
        return ranges

    def _chain(self, li: cython.int) -> list:
        out: list = []
        at: cython.int = self._head_next[li]
        while at > 0:
            out.append(at - 1)
            at = self._next[at - 1]
        return out

    def frontier(self, zi: cython.int) -> list:
        """The never touched ranges ``(low, high)`` of a zone, in list order."""
        base: cython.int = zi * _EXTENTS
        return [(self._front_lo[base + i], self._front_hi[base + i]) for i in range(self._front_n[zi])]

    def free_list(self, zi: cython.int, order: cython.int, mt: cython.int, frontier: bool = True) -> list:
        """The PFNs of a free list in list order; without the never touched blocks if ``frontier`` is false."""
        out: list = self._chain(self._list(zi, order, mt))
        if order == _TOP and mt == _MOVABLE:
            if frontier:
                for low, high in self.frontier(zi):
                    out.extend(range(low, high, 1 << _TOP))
            out.extend(self._chain(self._list(zi, order, _AFTER)))
        return out

    def pcp_list(self, zi: cython.int, cpu: cython.int, pindex: cython.int) -> list:
        """The PFNs of a per-cpu list in list order."""
        return self._chain(self._pcp_base + (zi * self.ncpus + cpu) * _PCP_LISTS + pindex)
