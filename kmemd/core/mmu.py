"""Page tables, TLB and the fault loop (arch/x86/mm, mm/memory.c): where a virtual address becomes a page.

Models: page tables in the model's own physical memory, ``words[(pfn << bits) + index]``, with x86's entries; a TLB per
CPU (first level split by page size, second level shared, process-context identifiers); and the path of an access:
TLB, page walk, then for private anonymous memory the fault itself. What else a fault may need (files, swap, huge
pages, hints) is left to the caller: ``access`` stops there and says why.

A run of faults is handled in batches: their entries are written with PFN 0, then their pages are taken from the
allocator
at once and put in. The order of allocations is that of the faults, and nobody looks in between.

Invariants:
- An address space's tables belong to it alone; ``tables`` counts those of the three lowest levels but the top one.
- A TLB entry's tag holds a context number that is new after each full flush, so stale entries never match.
- ``rss`` is what the kernel has counted; ``rss_task`` what the task has not yet handed over (SPLIT_RSS_COUNTING).
"""

from typing import Any

import cython
import numpy as np

from kmemd.core import trace_ids
from kmemd.core.pages import lazy_zeros

READ, WRITE, EXEC = 0, 1, 2
DONE, NO_VMA, BAD_ACCESS, SLOW, NO_MEMORY = range(5)

# columns of a row of the table of mappings; VMA_PROT is the entries' protection without NX
VMA_START, VMA_END, VMA_FLAGS, VMA_ANON, VMA_DELTA, VMA_PROT = range(6)
VMA_COLUMNS = 6
# VMA_FLAGS
ROW_READ, ROW_WRITE, ROW_EXEC, ROW_FAST, ROW_HUGE, ROW_LOCKED = 1, 2, 4, 8, 16, 32

(
    ACCESSES,
    L1_HITS,
    L2_HITS,
    WALKS,
    WALK_LEVELS,
    FAULTS,
    ZERO_PAGES,
    NEW_PAGES,
    COPIES,
    REUSES,
    HUGE_FAULTS,
    HUGETLB_FAULTS,
    FILE_FAULTS,
    CACHE_HITS,
    DISK_READS,
    SWAP_FAULTS,
    SWAP_CACHE_HITS,
    SWAP_READS,
    HINT_FAULTS,
    TLB_FILLS,
    FLUSH_PAGES,
    FLUSH_FULL,
    SHOOTDOWNS,
    SWITCHES,
    TABLES_MADE,
) = range(25)
STAT_NAMES = (
    *("accesses", "tlb_l1_hits", "tlb_l2_hits", "page_walks", "walk_levels", "faults", "zero_page_faults"),
    *("anon_faults", "cow_faults", "reuse_faults", "huge_faults", "hugetlb_faults", "file_faults", "page_cache_hits"),
    *("disk_reads", "swap_faults", "swap_cache_hits", "swap_reads", "numa_hint_faults", "tlb_fills"),
    *("tlb_flush_pages", "tlb_flush_full", "tlb_shootdowns", "mm_switches", "page_tables_made"),
)
"""The path of an access, in its order. What the core leaves to Python is counted by ``mm/memory.py``."""

BATCH = 2048
MAX_MM = 1 << 16
PCIDS = 6
"""Address spaces whose translations a CPU keeps (TLB_NR_DYN_ASIDS)."""
FLUSH_CEILING = 33
"""Pages up to which they are flushed one by one (tlb_single_page_flush_ceiling)."""

_BATCH = cython.declare(cython.int, 2048)
_PCIDS = cython.declare(cython.int, 6)
_CEILING = cython.declare(cython.int, 33)
_COUNTED = cython.declare(cython.int, 3)  # tables of PTEs, PMDs and PUDs are in mm_pgtables_bytes, of P4Ds not
_AHEAD = cython.declare(cython.int, 16)
_CTX_SHIFT = cython.declare(cython.int, 45)
_CTX_LAST = cython.declare(cython.longlong, (1 << 17) - 1)
_L1_SETS = cython.declare(cython.int, 16)
_L1_WAYS = cython.declare(cython.int, 4)
_H1_SETS = cython.declare(cython.int, 8)
_L2_SETS = cython.declare(cython.int, 128)
_L2_WAYS = cython.declare(cython.int, 8)
_HUGE_TAG = cython.declare(cython.longlong, 1 << 62)

_PRESENT = cython.declare(cython.ulonglong, 1)
_RW = cython.declare(cython.ulonglong, 2)
_USER = cython.declare(cython.ulonglong, 4)
_ACCESSED = cython.declare(cython.ulonglong, 1 << 5)
_DIRTY = cython.declare(cython.ulonglong, 1 << 6)
_PSE = cython.declare(cython.ulonglong, 1 << 7)
_PROTNONE = cython.declare(cython.ulonglong, 1 << 8)
_SPECIAL = cython.declare(cython.ulonglong, 1 << 9)
_SOFT_DIRTY = cython.declare(cython.ulonglong, 1 << 11)
_NX = cython.declare(cython.ulonglong, 1 << 63)
_PFN_MASK = cython.declare(cython.ulonglong, ((1 << 40) - 1) << 12)
_TABLE = cython.declare(cython.ulonglong, 0x67)

_NOW = cython.declare(cython.int, 0)
_PAGE_FAULT = cython.declare(cython.int, trace_ids.PAGE_FAULT_USER)
_RSS_STAT = cython.declare(cython.int, trace_ids.RSS_STAT)
_CPU = cython.declare(cython.int, 1)
_READ = cython.declare(cython.int, 0)
_WRITE = cython.declare(cython.int, 1)
_EXEC = cython.declare(cython.int, 2)
_MM_ANON = cython.declare(cython.int, 1)
_ALLOWS = cython.declare(cython.int, 7)
_FAST = cython.declare(cython.int, 8)
_ROW_HUGE = cython.declare(cython.int, 16)
_ROW_LOCKED = cython.declare(cython.int, 32)
_EVENTS_THRESH = cython.declare(cython.int, 64)

# PageMap.flags: referenced none, uptodate, swapbacked, anon_exclusive (mappedtodisk)
_NEW_FLAGS = cython.declare(cython.uint, 1 << 2 | 1 << 17 | 1 << 19)
_EXCLUSIVE = cython.declare(cython.uint, 1 << 17)
_LRU = cython.declare(cython.uint, 1 << 4)
_SWAPCACHE = cython.declare(cython.uint, 1 << 10)
_CONTENT = cython.declare(cython.uint, 1 << 31)
_PG_DIRTY = cython.declare(cython.uint, 1 << 3)
# what a page takes along to another frame; and the flags of pages that ``move_pages`` leaves to Python: those on a
# list, in the swap cache, being written, mlocked, huge, or with known bytes
_MOVED_FLAGS = cython.declare(cython.uint, 0x2 | 0x4 | 0x8 | 0x20 | 0x40 | 0x100 | 0xE0000 | 0x30000000)
_NOT_SIMPLE = cython.declare(cython.uint, 0x10 | 0x400 | 0x8000 | 0x10000 | 0x100000 | 0x200000 | 0xC0000000)
_MOVED_BITS = cython.declare(cython.ulonglong, 2 | 1 << 5 | 1 << 6 | 1 << 11)  # RW, accessed, dirty, soft-dirty
_SINGLE = cython.declare(cython.int, 3)  # PageMap.meta of a page in use that is no part of a block

_S_ACCESS = cython.declare(cython.int, 0)
_S_L1 = cython.declare(cython.int, 1)
_S_L2 = cython.declare(cython.int, 2)
_S_WALK = cython.declare(cython.int, 3)
_S_LEVELS = cython.declare(cython.int, 4)
_S_FAULT = cython.declare(cython.int, 5)
_S_ZERO = cython.declare(cython.int, 6)
_S_NEW = cython.declare(cython.int, 7)
_S_COPY = cython.declare(cython.int, 8)
_S_REUSE = cython.declare(cython.int, 9)
_S_FILL = cython.declare(cython.int, 19)
_S_FLUSH_PAGE = cython.declare(cython.int, 20)
_S_FLUSH_FULL = cython.declare(cython.int, 21)
_S_SHOOTDOWN = cython.declare(cython.int, 22)
_S_SWITCH = cython.declare(cython.int, 23)
_S_TABLES = cython.declare(cython.int, 24)

_DONE = cython.declare(cython.int, 0)
_NO_VMA = cython.declare(cython.int, 1)
_BAD_ACCESS = cython.declare(cython.int, 2)
_SLOW = cython.declare(cython.int, 3)
_NO_MEMORY = cython.declare(cython.int, 4)


def _view(array: Any) -> Any:
    """Uncompiled, a memoryview gives Python ints, which neither wrap nor warn as numpy scalars do."""
    return array if cython.compiled else memoryview(array)


@cython.final
@cython.cclass
class Mmu:
    """All address spaces' tables and all CPUs' TLBs.

    ``bits`` is the log2 of the entries of a table, ``levels`` how many levels there are; ``zones`` rows are
    ``(nid, start_pfn, end_pfn)``; ``costs`` the model time in ns of a TLB hit, a walk, a fault, and local and remote
    memory.
    ``supply(row, vpns)`` gives pages for faults in a row of the table of mappings, fewer when memory runs out;
    ``make_table(mm, vpn)`` makes the missing tables of an address; ``copied(old, new)`` hears of pages whose content
    is known.
    These callables belong to ``mm/memory.py``, which sets them when it is made. ``swap`` handles faults on swap entries
    (core/swap_fault.py); without it they are the caller's.
    """

    words = cython.declare(object, visibility="readonly")
    rss = cython.declare(object, visibility="readonly")
    rss_task = cython.declare(object, visibility="readonly")
    tables = cython.declare(object, visibility="readonly")
    stats = cython.declare(object, visibility="readonly")
    faults_of = cython.declare(object, visibility="readonly")
    bits = cython.declare(cython.int, visibility="readonly")
    levels = cython.declare(cython.int, visibility="readonly")
    zero_pfn = cython.declare(cython.longlong, visibility="readonly")
    why = cython.declare(cython.int, visibility="readonly")
    fault_ip = cython.declare(object, visibility="public")
    at = cython.declare(cython.Py_ssize_t, visibility="readonly")
    row = cython.declare(cython.Py_ssize_t, visibility="readonly")
    supply = cython.declare(object, visibility="public")
    make_table = cython.declare(object, visibility="public")
    copied = cython.declare(object, visibility="public")
    swap = cython.declare(object, visibility="public")
    lru = cython.declare(object, visibility="readonly")

    _words: cython.ulonglong[::1]
    _pgd: cython.longlong[::1]
    _rss: cython.longlong[::1]
    _rss_task: cython.longlong[::1]
    _rss_events: cython.int[::1]
    _tables: cython.longlong[::1]
    _faults_of: cython.longlong[::1]
    _stats: cython.longlong[::1]
    _flags: cython.uint[::1]
    _mapping: cython.int[::1]
    _index: cython.longlong[::1]
    _mapcount: cython.int[::1]
    _meta: cython.int[::1]
    _ctx: cython.longlong[::1]
    _events: cython.longlong[::1]
    _node_stat: cython.longlong[:, ::1]
    _zone_nid: cython.longlong[::1]
    _zone_start: cython.longlong[::1]
    _zone_end: cython.longlong[::1]
    _cpu_node: cython.longlong[::1]
    _zone: cython.int
    _ncpus: cython.int
    _mask: cython.longlong
    _level: cython.int
    _pgfault: cython.int
    _pgreuse: cython.int
    _nr_anon: cython.int
    _cost_hit: cython.longlong
    _cost_walk: cython.longlong
    _cost_fault: cython.longlong
    _cost_local: cython.longlong
    _cost_remote: cython.longlong

    _trace: Any
    _traced: cython.longlong[::1]
    _context_of: cython.longlong[::1]
    _pcid_mm: cython.int[::1]
    _pcid_next: cython.int[::1]
    _loaded: cython.int[::1]
    _next_context: cython.longlong
    _mm_end: cython.int
    _l1: cython.longlong[::1]
    _l1_data: cython.longlong[::1]
    _l1_next: cython.uchar[::1]
    _h1: cython.longlong[::1]
    _h1_data: cython.longlong[::1]
    _h1_next: cython.uchar[::1]
    _l2: cython.longlong[::1]
    _l2_data: cython.longlong[::1]
    _l2_next: cython.uchar[::1]

    _has_huge: cython.uchar[::1]

    _fault_slot: cython.longlong
    _swap_row: cython.Py_ssize_t
    _seen: cython.ulonglong
    _near_mm: cython.int
    _near_block: cython.longlong
    _near_base: cython.longlong

    _pend: cython.int
    _pend_row: cython.Py_ssize_t
    _pend_slot: cython.longlong[::1]
    _pend_vpn: cython.longlong[::1]
    _pend_at: cython.longlong[::1]
    _pend_old: cython.ulonglong[::1]
    _pend_vpns: Any

    def __init__(
        self,
        pages: Any,
        context: Any,
        zones: Any,
        cpu_nodes: Any,
        vmstat: Any,
        lru: Any,
        bits: int,
        levels: int,
        zero_pfn: int,
        items: Any,
        costs: Any,
    ) -> None:
        self.bits, self.levels, self.zero_pfn = bits, levels, zero_pfn
        self._mask = (1 << bits) - 1
        self.lru = lru
        self._flags, self._mapping = _view(pages.flags), _view(pages.mapping)
        self._index, self._mapcount = _view(pages.index), _view(pages.mapcount)
        self._meta = _view(pages.meta)
        self._ctx, self._events = _view(context.words), _view(vmstat.events)
        self._trace, self._traced = context.trace, _view(context.trace.control)
        self.fault_ip = 0
        self._node_stat = _view(vmstat.node_stat)
        rows = np.array(zones, dtype=np.int64).reshape(-1, 3)
        self._zone_nid, self._zone_start, self._zone_end = (_view(rows[:, k].copy()) for k in range(3))
        self._cpu_node = _view(np.array(cpu_nodes, dtype=np.int64))
        self._ncpus = len(cpu_nodes)
        self._zone = 0
        self._pgfault, self._nr_anon, self._pgreuse = items
        self._cost_hit, self._cost_walk, self._cost_fault, self._cost_local, self._cost_remote = costs
        self._init_spaces(pages.max_pfn)
        self._init_tlb()
        self._pend = 0
        self.swap = None
        self._swap_row = -1
        self._pend_vpns = np.zeros(BATCH, dtype=np.int64)
        self._pend_vpn = _view(self._pend_vpns)
        self._pend_slot, self._pend_at = _view(np.zeros(BATCH, dtype=np.int64)), _view(np.zeros(BATCH, dtype=np.int64))
        self._pend_old = _view(np.zeros(BATCH, dtype=np.uint64))

    def _init_spaces(self, max_pfn: Any) -> None:
        self.words = lazy_zeros(max_pfn << self.bits, "uint64")
        self._words = _view(self.words)
        self.rss, self.rss_task = np.zeros(MAX_MM * 4, dtype=np.int64), np.zeros(MAX_MM * 4, dtype=np.int64)
        self.tables = np.zeros(MAX_MM, dtype=np.int64)
        self.faults_of = np.zeros(MAX_MM, dtype=np.int64)
        self._faults_of = _view(self.faults_of)
        self._rss, self._rss_task, self._tables = _view(self.rss), _view(self.rss_task), _view(self.tables)
        self._rss_events = _view(np.zeros(MAX_MM, dtype=np.int32))
        self._pgd = _view(np.zeros(MAX_MM, dtype=np.int64))
        self._has_huge = _view(np.zeros(MAX_MM, dtype=np.uint8))
        self.stats = np.zeros(len(STAT_NAMES), dtype=np.int64)
        self._stats = _view(self.stats)
        self._mm_end = 0
        self._near_mm = -1

    def _init_tlb(self) -> None:
        n: cython.int = self._ncpus
        self._context_of = _view(lazy_zeros(MAX_MM * n, "int64"))
        self._pcid_mm = _view(np.full(n * PCIDS, -1, dtype=np.int32))
        self._pcid_next = _view(np.zeros(n, dtype=np.int32))
        self._loaded = _view(np.full(n, -1, dtype=np.int32))
        self._next_context = 0
        self._l1, self._l1_data = _view(lazy_zeros(n * 64, "int64")), _view(lazy_zeros(n * 64, "int64"))
        self._h1, self._h1_data = _view(lazy_zeros(n * 32, "int64")), _view(lazy_zeros(n * 32, "int64"))
        self._l2, self._l2_data = _view(lazy_zeros(n * 1024, "int64")), _view(lazy_zeros(n * 1024, "int64"))
        self._l1_next = _view(np.zeros(n * 16, dtype=np.uint8))
        self._h1_next = _view(np.zeros(n * 8, dtype=np.uint8))
        self._l2_next = _view(np.zeros(n * 128, dtype=np.uint8))

    # -- address spaces ------------------------------------------------------------------------------------

    def new_mm(self, mm: cython.int, pgd_pfn: cython.longlong) -> None:
        """Begin an address space whose top table is a zeroed page."""
        k: cython.int
        self._pgd[mm] = pgd_pfn
        for k in range(4):
            self._rss[mm * 4 + k] = 0
            self._rss_task[mm * 4 + k] = 0
        self._rss_events[mm] = 0
        self._tables[mm] = 0
        self._faults_of[mm] = 0
        self._has_huge[mm] = 0
        self._mm_end = max(self._mm_end, mm + 1)

    def free_mm(self, mm: cython.int) -> int:
        """End an address space without mappings: its translations are gone. The PFN of its top table."""
        cpu: cython.int
        slot: cython.longlong
        self.flush_mm(mm)
        for cpu in range(self._ncpus):
            if self._loaded[cpu] == mm:
                self._loaded[cpu] = -1
        for slot in range(cython.cast(cython.longlong, self._ncpus) * _PCIDS):
            if self._pcid_mm[slot] == mm:
                self._pcid_mm[slot] = -1
        self._near_mm = -1
        pgd: cython.longlong = self._pgd[mm]
        self._pgd[mm] = 0
        self._wipe(pgd)
        return pgd

    def pgd(self, mm: cython.int) -> int:
        """The PFN of the top table."""
        return self._pgd[mm]

    def sync_rss(self, mm: cython.int) -> None:
        """Hand the task's own counts over to the address space (sync_mm_rss)."""
        self._sync(mm, 0)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _uncount(self, mm: cython.int, faults: cython.int) -> cython.void:
        """Faults are taken back: the counts that they handed over are the task's again."""
        events: cython.int = self._rss_events[mm] - faults
        while events < 0:
            events += _EVENTS_THRESH + 2
            self._rss_task[mm * 4 + _MM_ANON] += _EVENTS_THRESH + 2
            self._rss[mm * 4 + _MM_ANON] -= _EVENTS_THRESH + 2
        self._rss_events[mm] = events

    @cython.cfunc
    @cython.exceptval(check=False)
    def _sync(self, mm: cython.int, current: cython.int) -> cython.void:
        """``current``: it is the executing task's own address space."""
        k: cython.int
        for k in range(mm * 4, mm * 4 + 4):
            self._rss[k] += self._rss_task[k]
            if self._rss_task[k] and self._traced[0] >> _RSS_STAT & 1:
                self._trace.emit(_RSS_STAT, 0, current, k - mm * 4, self._rss[k] << 12)
            self._rss_task[k] = 0
        self._rss_events[mm] = 0

    def count_fault(self, mm: cython.int) -> None:
        """A fault begins: every 66th hands the counts over (check_sync_rss_stat)."""
        self._tick(mm)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _tick(self, mm: cython.int) -> cython.void:
        self._events[self._pgfault] += 1
        self._stats[_S_FAULT] += 1
        self._faults_of[mm] += 1
        self._ctx[_NOW] += self._cost_fault
        if self._rss_events[mm] > _EVENTS_THRESH:
            self._sync(mm, 1)
        else:
            self._rss_events[mm] += 1

    # -- tables --------------------------------------------------------------------------------------------

    @cython.cfunc
    @cython.exceptval(check=False)
    def _find(self, mm: cython.int, vpn: cython.longlong, stop: cython.int) -> cython.longlong:
        """The entry for an address: that of level ``stop``, or of a huge page above; ``_level`` says which.

        -1 when a table is missing; ``_level`` is then the missing table's.
        """
        level: cython.int = self.levels - 1
        pfn: cython.longlong = self._pgd[mm]
        slot: cython.longlong
        entry: cython.ulonglong
        while True:
            slot = (pfn << self.bits) + ((vpn >> (self.bits * level)) & self._mask)
            if level == stop:
                break
            entry = self._words[slot]
            if entry & _PSE:
                break
            if not entry & _PRESENT:
                self._level = level - 1
                return -1
            pfn = cython.cast(cython.longlong, (entry & _PFN_MASK) >> 12)
            level -= 1
        self._level = level
        return slot

    @cython.cfunc
    @cython.exceptval(check=False)
    def _leaf(self, mm: cython.int, vpn: cython.longlong) -> cython.longlong:
        """``_find`` at level 0, which remembers the last table."""
        slot: cython.longlong
        if mm == self._near_mm and vpn >> self.bits == self._near_block:
            self._level = 0
            return self._near_base + (vpn & self._mask)
        slot = self._find(mm, vpn, 0)
        if slot >= 0 and self._level == 0:
            self._near_mm = mm
            self._near_block = vpn >> self.bits
            self._near_base = slot - (vpn & self._mask)
        return slot

    def slot(self, mm: cython.int, vpn: cython.longlong) -> int:
        """Where in ``words`` the entry of a small page is; -1 without a table (or under a huge page)."""
        slot: cython.longlong = self._leaf(mm, vpn)
        return slot if self._level == 0 else -1

    def leaf(self, mm: cython.int, vpn: cython.longlong) -> tuple:
        """``(slot, level)`` of the entry that maps an address, or would; slot -1 and the missing table's level
        without.
        """
        slot: cython.longlong = self._leaf(mm, vpn)
        return slot, self._level

    def slots(self, mm: cython.int, vpns: cython.longlong[::1], out: cython.longlong[::1]) -> None:
        """``slot`` of several pages."""
        i: cython.Py_ssize_t
        slot: cython.longlong
        for i in range(vpns.shape[0]):
            slot = self._leaf(mm, vpns[i])
            out[i] = slot if self._level == 0 else -1

    def young(
        self, mm: cython.int, vpns: cython.longlong[::1], pfns: cython.longlong[::1], out: cython.uchar[::1]
    ) -> None:
        """Which pages are mapped where the reverse map expects them (1), and were accessed since they were asked
        last (2 more): their accessed bits are cleared (folio_referenced_one).

        The TLB keeps what it knows, as on x86.
        """
        i: cython.Py_ssize_t
        slot: cython.longlong
        entry: cython.ulonglong
        inside: cython.longlong
        for i in range(vpns.shape[0]):
            out[i] = 0
            slot = self._leaf(mm, vpns[i])
            if slot < 0:
                continue
            entry = self._words[slot]
            inside = vpns[i] & ((cython.cast(cython.longlong, 1) << self.bits * self._level) - 1)
            if not entry & (_PRESENT | _PROTNONE) or ((entry & _PFN_MASK) >> 12) + inside != pfns[i]:
                continue
            out[i] = 3 if entry & _ACCESSED else 1
            self._words[slot] = entry & ~_ACCESSED

    def move_pages(
        self,
        mm: cython.int,
        span: tuple,
        prot: cython.ulonglong,
        anon: cython.int,
        srcs: cython.longlong[::1],
        dsts: cython.longlong[::1],
        done: cython.uchar[::1],
    ) -> int:
        """Let anonymous pages that one entry of a mapping maps go on in other page frames, contents apart.

        ``span`` is the mapping's ``(first page number, one past its last, pgoff)``, ``prot`` its entries' protection,
        ``anon`` the anon_vma that the pages name. What migration does page by page (try_to_migrate,
        folio_migrate_flags, remove_migration_ptes) comes to this for a page without other users. ``done`` says which
        were moved, by this call or before; how many this call moved.
        """
        i: cython.Py_ssize_t
        moved: cython.Py_ssize_t = 0
        vpn: cython.longlong
        first: cython.longlong = span[0]
        end: cython.longlong = span[1]
        pgoff: cython.longlong = span[2]
        slot: cython.longlong
        src: cython.longlong
        dst: cython.longlong
        entry: cython.ulonglong
        for i in range(srcs.shape[0]):
            src = srcs[i]
            if done[i] or self._mapping[src] != anon or self._mapcount[src] != 1 or self._flags[src] & _NOT_SIMPLE:
                continue
            vpn = first + self._index[src] - pgoff
            if vpn < first or vpn >= end:
                continue
            slot = self._leaf(mm, vpn)
            if slot < 0 or self._level:
                continue
            entry = self._words[slot]
            if not entry & (_PRESENT | _PROTNONE) or cython.cast(cython.longlong, (entry & _PFN_MASK) >> 12) != src:
                continue
            dst = dsts[i]
            self._flush_pages(mm, vpn, vpn + 1)
            self._words[slot] = (
                cython.cast(cython.ulonglong, dst) << 12
                | prot
                | (entry & _MOVED_BITS)
                | (_SOFT_DIRTY if entry & _DIRTY else 0)
            )
            self._flags[dst] |= self._flags[src] & _MOVED_FLAGS
            if entry & _DIRTY:
                self._flags[dst] |= _PG_DIRTY
            if entry & _RW:
                self._flags[dst] |= _EXCLUSIVE
            self._mapping[dst] = anon
            self._index[dst] = self._index[src]
            self._mapcount[dst] = 1
            self._mapcount[src] = 0
            self._mapping[src] = 0
            self._flags[src] = 0
            done[i] = 1
            moved += 1
        return moved

    def present(self, mm: cython.int, vpn: cython.longlong) -> bool:
        """Whether the hardware finds a page for an address."""
        slot: cython.longlong = self._leaf(mm, vpn)
        return slot >= 0 and self._words[slot] & _PRESENT != 0

    def entry_slot(self, mm: cython.int, vpn: cython.longlong, level: cython.int) -> int:
        """Where the entry of ``level`` for an address is; -1 without its table, or under a larger page."""
        slot: cython.longlong = self._find(mm, vpn, level)
        return slot if slot >= 0 and self._level == level else -1

    def install(self, mm: cython.int, vpn: cython.longlong, level: cython.int, pfn: cython.longlong) -> None:
        """Link a zeroed page as the table of ``level`` for an address.

        Preconditions: the tables above it exist, and the entry that leads to it is empty.
        """
        slot: cython.longlong = self._find(mm, vpn, level + 1)
        assert slot >= 0, "the table above is missing"
        assert self._level == level + 1, "a huge page is mapped there"
        assert not self._words[slot], "there is a table already"
        self._words[slot] = (cython.cast(cython.ulonglong, pfn) << 12) | _TABLE
        self._tables[mm] += level < _COUNTED
        self._stats[_S_TABLES] += 1

    def uninstall(self, mm: cython.int, vpn: cython.longlong, level: cython.int) -> int:
        """Unlink the table of ``level`` for an address and clear it. Its PFN, -1 when there is none."""
        slot: cython.longlong = self._find(mm, vpn, level + 1)
        entry: cython.ulonglong
        if slot < 0 or self._level != level + 1 or not self._words[slot] & _PRESENT or self._words[slot] & _PSE:
            return -1
        entry = self._words[slot]
        self._words[slot] = 0
        self._tables[mm] -= level < _COUNTED
        self._near_mm = -1
        self._wipe(cython.cast(cython.longlong, (entry & _PFN_MASK) >> 12))
        return cython.cast(cython.longlong, (entry & _PFN_MASK) >> 12)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _wipe(self, pfn: cython.longlong) -> cython.void:
        i: cython.longlong
        base: cython.longlong = pfn << self.bits
        for i in range(base, base + self._mask + 1):
            if self._words[i]:
                self._words[i] = 0

    def adjust_tables(self, mm: cython.int, n: cython.int) -> None:
        """Count tables that are held but not linked: those deposited for huge pages."""
        self._tables[mm] += n

    def extents(self, mm: cython.int, start: cython.longlong, end: cython.longlong) -> Any:
        """Rows ``(vpn, pages, slot, level)`` of all tables of small pages and all huge entries in a range,
        ascending.
        """
        found: list = []
        if self._pgd[mm]:
            self._extents(self._pgd[mm], self.levels - 1, 0, start, end, found)
        return np.array(found, dtype=np.int64).reshape(-1, 4)

    @cython.cfunc
    def _extents(
        self,
        pfn: cython.longlong,
        level: cython.int,
        base: cython.longlong,
        start: cython.longlong,
        end: cython.longlong,
        found: list,
    ) -> object:
        """Append the rows below one table, whose first address is page ``base``."""
        shift: cython.int = self.bits * level
        low: cython.longlong = max(start, base)
        high: cython.longlong = min(end, base + (cython.cast(cython.longlong, 1) << (shift + self.bits)))
        i: cython.longlong
        slot: cython.longlong
        entry: cython.ulonglong
        if low >= high:
            return None
        if level == 0:
            found.append((low, high - low, (pfn << self.bits) + (low - base), 0))
            return None
        for i in range((low - base) >> shift, ((high - 1 - base) >> shift) + 1):
            slot = (pfn << self.bits) + i
            entry = self._words[slot]
            if entry & _PSE:
                at: cython.longlong = base + (i << shift)
                found.append((at, cython.cast(cython.longlong, 1) << shift, slot, level))
            elif entry & _PRESENT:
                below: cython.longlong = cython.cast(cython.longlong, (entry & _PFN_MASK) >> 12)
                self._extents(below, level - 1, base + (i << shift), start, end, found)
        return None

    def table_pfns(self, mm: cython.int) -> list:
        """The PFNs of all linked tables without the top one."""
        found: list = []
        if self._pgd[mm]:
            self._table_pfns(self._pgd[mm], self.levels - 1, found)
        return found

    @cython.cfunc
    def _table_pfns(self, pfn: cython.longlong, level: cython.int, found: list) -> object:
        i: cython.longlong
        entry: cython.ulonglong
        if level == 0:
            return None
        for i in range((pfn << self.bits), (pfn << self.bits) + self._mask + 1):
            entry = self._words[i]
            if entry & _PRESENT and not entry & _PSE:
                found.append(cython.cast(cython.longlong, (entry & _PFN_MASK) >> 12))
                self._table_pfns(cython.cast(cython.longlong, (entry & _PFN_MASK) >> 12), level - 1, found)
        return None

    def free_tables(self, mm: cython.int, start: cython.longlong, end: cython.longlong) -> list:
        """Unlink and clear the tables whose whole span lies in a range; their PFNs, lowest level first (free_pgtables).

        Preconditions: nothing is mapped there any more.
        """
        freed: list = []
        if self._pgd[mm]:
            self._free_tables(mm, self._pgd[mm], self.levels - 1, 0, start, end, freed)
        self._near_mm = -1
        return freed

    @cython.cfunc
    def _free_tables(
        self,
        mm: cython.int,
        pfn: cython.longlong,
        level: cython.int,
        base: cython.longlong,
        start: cython.longlong,
        end: cython.longlong,
        freed: list,
    ) -> object:
        shift: cython.int = self.bits * level
        span: cython.longlong = cython.cast(cython.longlong, 1) << shift
        low: cython.longlong = max(start, base)
        high: cython.longlong = min(end, base + (span << self.bits))
        i: cython.longlong
        at: cython.longlong
        entry: cython.ulonglong
        if low >= high or level == 0:
            return None
        for i in range((low - base) >> shift, ((high - 1 - base) >> shift) + 1):
            entry = self._words[(pfn << self.bits) + i]
            if not entry & _PRESENT or entry & _PSE:
                continue
            at = base + (i << shift)
            below: cython.longlong = cython.cast(cython.longlong, (entry & _PFN_MASK) >> 12)
            self._free_tables(mm, below, level - 1, at, start, end, freed)
            if at >= start and at + span <= end:
                self._words[(pfn << self.bits) + i] = 0
                self._wipe(below)
                self._tables[mm] -= level <= _COUNTED
                freed.append(below)
        return None

    # -- TLB -----------------------------------------------------------------------------------------------

    @cython.cfunc
    @cython.exceptval(check=False)
    def _context(self, mm: cython.int, cpu: cython.int) -> cython.longlong:
        """Have a CPU run an address space; the number in the tags of its translations (switch_mm_irqs_off)."""
        at: cython.longlong = cython.cast(cython.longlong, mm) * self._ncpus + cpu
        k: cython.int
        if self._loaded[cpu] == mm and self._context_of[at]:
            return self._context_of[at]
        self._stats[_S_SWITCH] += self._loaded[cpu] != mm
        self._loaded[cpu] = mm
        for k in range(cpu * _PCIDS, cpu * _PCIDS + _PCIDS):
            if self._pcid_mm[k] == mm:
                break
        else:
            k = cpu * _PCIDS + self._pcid_next[cpu]
            self._pcid_next[cpu] = (self._pcid_next[cpu] + 1) % _PCIDS
            if self._pcid_mm[k] >= 0:
                self._context_of[cython.cast(cython.longlong, self._pcid_mm[k]) * self._ncpus + cpu] = 0
            self._pcid_mm[k] = mm
            self._context_of[at] = 0
        if not self._context_of[at]:
            self._context_of[at] = self._fresh_context()
        return self._context_of[at]

    @cython.cfunc
    @cython.exceptval(check=False)
    def _fresh_context(self) -> cython.longlong:
        i: cython.longlong
        if self._next_context == _CTX_LAST:
            for i in range(self._l1.shape[0]):
                self._l1[i] = 0
            for i in range(self._h1.shape[0]):
                self._h1[i] = 0
            for i in range(self._l2.shape[0]):
                self._l2[i] = 0
            for i in range(cython.cast(cython.longlong, self._mm_end) * self._ncpus):
                self._context_of[i] = 0
            self._next_context = 0
        self._next_context += 1
        return self._next_context

    @cython.cfunc
    @cython.exceptval(check=False)
    def _insert_l1(self, cpu: cython.int, tag: cython.longlong, data: cython.longlong) -> cython.void:
        s: cython.longlong
        if tag & _HUGE_TAG:
            s = cpu * 8 + (tag & 7)
            self._h1[s * 4 + self._h1_next[s]] = tag
            self._h1_data[s * 4 + self._h1_next[s]] = data
            self._h1_next[s] = (self._h1_next[s] + 1) & 3
        else:
            s = cpu * 16 + (tag & 15)
            self._l1[s * 4 + self._l1_next[s]] = tag
            self._l1_data[s * 4 + self._l1_next[s]] = data
            self._l1_next[s] = (self._l1_next[s] + 1) & 3

    @cython.cfunc
    @cython.exceptval(check=False)
    def _insert(self, cpu: cython.int, tag: cython.longlong, data: cython.longlong) -> cython.void:
        """Into both levels. Preconditions: there is no entry for the page."""
        s: cython.longlong = cpu * 128 + (tag & 127)
        self._stats[_S_FILL] += 1
        self._l2[s * 8 + self._l2_next[s]] = tag
        self._l2_data[s * 8 + self._l2_next[s]] = data
        self._l2_next[s] = (self._l2_next[s] + 1) & 7
        self._insert_l1(cpu, tag, data)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _drop(self, cpu: cython.int, tag: cython.longlong) -> cython.void:
        """INVLPG."""
        k: cython.longlong
        s: cython.longlong = cpu * 128 + (tag & 127)
        for k in range(s * 8, s * 8 + 8):
            if self._l2[k] == tag:
                self._l2[k] = 0
        if tag & _HUGE_TAG:
            s = cpu * 8 + (tag & 7)
            for k in range(s * 4, s * 4 + 4):
                if self._h1[k] == tag:
                    self._h1[k] = 0
        else:
            s = cpu * 16 + (tag & 15)
            for k in range(s * 4, s * 4 + 4):
                if self._l1[k] == tag:
                    self._l1[k] = 0

    @cython.cfunc
    @cython.exceptval(check=False)
    def _search(self, cpu: cython.int, tag: cython.longlong) -> cython.longlong:
        """What the TLB says of a page, -1 when it does not know it; a second-level hit enters the first."""
        k: cython.longlong
        s: cython.longlong
        if tag & _HUGE_TAG:
            s = cpu * 8 + (tag & 7)
            for k in range(s * 4, s * 4 + 4):
                if self._h1[k] == tag:
                    self._stats[_S_L1] += 1
                    return self._h1_data[k]
        s = cpu * 128 + (tag & 127)
        for k in range(s * 8, s * 8 + 8):
            if self._l2[k] == tag:
                self._stats[_S_L2] += 1
                self._insert_l1(cpu, tag, self._l2_data[k])
                return self._l2_data[k]
        return -1

    @cython.cfunc
    @cython.exceptval(check=False)
    def _drop_all(self, cpu: cython.int, tags: cython.longlong, vpn: cython.longlong) -> cython.void:
        """Forget a page of any size."""
        level: cython.int
        self._drop(cpu, tags | vpn)
        for level in range(1, self.levels - 1 if self.levels > 2 else 2):
            self._drop(cpu, tags | _HUGE_TAG | vpn >> (self.bits * level))

    def flush_range(self, mm: cython.int, start: cython.longlong, end: cython.longlong) -> None:
        """Forget the translations of a range, on every CPU that has any (flush_tlb_mm_range)."""
        if end - start > _CEILING:
            self.flush_mm(mm)
        else:
            self._flush_pages(mm, start, end)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _flush_pages(self, mm: cython.int, start: cython.longlong, end: cython.longlong) -> cython.void:
        cpu: cython.int
        vpn: cython.longlong
        at: cython.longlong = cython.cast(cython.longlong, mm) * self._ncpus
        here: cython.int = cython.cast(cython.int, self._ctx[_CPU])
        for cpu in range(self._ncpus):
            if not self._context_of[at + cpu]:
                continue
            if cpu != here and self._loaded[cpu] == mm:
                self._stats[_S_SHOOTDOWN] += 1
            for vpn in range(start, end):
                self._flush_page(cpu, self._context_of[at + cpu], vpn)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _flush_page(self, cpu: cython.int, context: cython.longlong, vpn: cython.longlong) -> cython.void:
        self._stats[_S_FLUSH_PAGE] += 1
        self._drop_all(cpu, context << _CTX_SHIFT, vpn)

    def flush_mm(self, mm: cython.int) -> None:
        """Forget all translations of an address space (flush_tlb_mm)."""
        cpu: cython.int
        at: cython.longlong = cython.cast(cython.longlong, mm) * self._ncpus
        here: cython.int = cython.cast(cython.int, self._ctx[_CPU])
        for cpu in range(self._ncpus):
            if self._context_of[at + cpu]:
                self._stats[_S_FLUSH_FULL] += 1
                if cpu != here and self._loaded[cpu] == mm:
                    self._stats[_S_SHOOTDOWN] += 1
                self._context_of[at + cpu] = 0

    def stale(self, mm: cython.int) -> list:
        """Translations in a TLB that the tables do not have, or that allow more: ``(cpu, tag, data)``. For checks."""
        wrong: list = []
        cpu: cython.int
        context: cython.longlong
        for cpu in range(self._ncpus):
            context = self._context_of[cython.cast(cython.longlong, mm) * self._ncpus + cpu]
            if context:
                self._stale_in(cpu, context, self._l1, self._l1_data, wrong)
                self._stale_in(cpu, context, self._h1, self._h1_data, wrong)
                self._stale_in(cpu, context, self._l2, self._l2_data, wrong)
        return wrong

    @cython.cfunc
    def _stale_in(
        self,
        cpu: cython.int,
        context: cython.longlong,
        tags: cython.longlong[::1],
        data: cython.longlong[::1],
        wrong: list,
    ) -> object:
        k: cython.longlong
        ways: cython.longlong = tags.shape[0] // self._ncpus
        for k in range(cpu * ways, (cpu + 1) * ways):
            if (tags[k] & (_HUGE_TAG - 1)) >> _CTX_SHIFT == context and self._is_stale(data[k]):
                wrong.append((cpu, tags[k], data[k]))
        return None

    @cython.cfunc
    @cython.exceptval(check=False)
    def _is_stale(self, data: cython.longlong) -> cython.bint:
        entry: cython.ulonglong = self._words[data >> 3]
        if not entry & _PRESENT or (data & 4 and entry & _NX):
            return True
        return data & 2 != 0 and not (entry & _RW and entry & _DIRTY)

    # -- access --------------------------------------------------------------------------------------------

    def access(
        self,
        mm: cython.int,
        vpns: cython.longlong[::1],
        start: cython.Py_ssize_t,
        op: cython.int,
        vmas: cython.longlong[:, ::1],
    ) -> int:
        """Access pages one after the other on the executing CPU, from ``vpns[start]`` on. How far it got; ``why`` says
        why not further: no mapping, an access the mapping forbids, a fault the caller has to handle, or no memory.

        ``row`` is then the mapping's row. ``at`` is the same number, for when a callback raises.
        """
        cpu: cython.int = cython.cast(cython.int, self._ctx[_CPU])
        tags: cython.longlong = self._context(mm, cpu) << _CTX_SHIFT
        need: cython.longlong = 1 << op
        i: cython.Py_ssize_t = start
        n: cython.Py_ssize_t = vpns.shape[0]
        k: cython.longlong
        tag: cython.longlong
        hits: cython.longlong = 0
        ahead: cython.Py_ssize_t = start
        got: cython.int
        self.why = _DONE
        self.row = 0
        self._swap_row = -1
        while i < n:
            tag = tags | vpns[i]
            k = (cpu * 16 + (tag & 15)) * 4
            if self._l1[k] == tag:
                pass
            elif self._l1[k + 1] == tag:
                k += 1
            elif self._l1[k + 2] == tag:
                k += 2
            elif self._l1[k + 3] == tag:
                k += 3
            else:
                k = -1
            if k >= 0 and self._l1_data[k] & need:
                hits += 1
                i += 1
                continue
            self.at = i
            if i >= ahead:
                ahead = min(i + _AHEAD, n)
                self._look_ahead(mm, vpns, i, ahead)
            got = self._miss(mm, cpu, tags, vpns[i], op, vmas, i)
            if got == _DONE:
                i += 1
                if op == _WRITE and self._pend and self._pend_at[self._pend - 1] == i - 1 and not self._traced[0]:
                    i = self._run(mm, cpu, tags, vpns, i, vmas)
                continue
            i = self.at
            if self._pend:
                k = self._commit(mm, vmas)
                if k >= 0:
                    i = k
                    got = _NO_MEMORY
            self.why = got
            break
        if self._pend:
            k = self._commit(mm, vmas)
            if k >= 0:
                i = k
                self.why = _NO_MEMORY
        self.at = i
        self._stats[_S_ACCESS] += i - start
        self._stats[_S_L1] += hits
        self._ctx[_NOW] += hits * self._cost_hit
        return i

    @cython.cfunc
    @cython.exceptval(check=False)
    def _look_ahead(
        self, mm: cython.int, vpns: cython.longlong[::1], start: cython.Py_ssize_t, stop: cython.Py_ssize_t
    ) -> cython.void:
        """Load the entries of the next accesses together: at random addresses each would wait for the host's memory."""
        i: cython.Py_ssize_t
        slot: cython.longlong
        seen: cython.ulonglong = 0
        for i in range(start, stop):
            slot = self._find(mm, vpns[i], 0)
            if slot >= 0:
                seen |= self._words[slot]
        self._seen = seen

    @cython.cfunc
    def _miss(
        self,
        mm: cython.int,
        cpu: cython.int,
        tags: cython.longlong,
        vpn: cython.longlong,
        op: cython.int,
        vmas: cython.longlong[:, ::1],
        at: cython.Py_ssize_t,
    ) -> cython.int:
        """An access that the first level does not know as a small page: huge pages, second level, walk, fault."""
        data: cython.longlong = -1
        level: cython.int
        got: cython.int
        if self._has_huge[mm]:
            for level in range(1, self.levels - 1 if self.levels > 2 else 2):
                data = self._search(cpu, tags | _HUGE_TAG | vpn >> (self.bits * level))
                if data >= 0:
                    break
        if data < 0:
            data = self._search(cpu, tags | vpn)
        if data >= 0:
            if data >> op & 1:
                self._ctx[_NOW] += self._cost_hit
                return _DONE
            self._drop_all(cpu, tags, vpn)
        if self._walk(mm, cpu, tags, vpn, op):
            return _DONE
        if self._traced[0] >> _PAGE_FAULT & 1:
            self._trace_fault(mm, vpn, op)
        for _ in range(2):
            got = self._fault(mm, vpn, op, vmas, at)
            if got != _DONE:
                return got
            self._stats[_S_WALK] += 1  # the access is tried again, and this time the walk ends well
            self._stats[_S_LEVELS] += self.levels
            self._ctx[_NOW] += self._cost_walk
            if self._fill(mm, cpu, tags, vpn, op, self._fault_slot, 0):
                return _DONE
        return _SLOW

    @cython.cfunc
    @cython.exceptval(check=False)
    def _trace_fault(self, mm: cython.int, vpn: cython.longlong, op: cython.int) -> cython.void:
        """The exception as the program caused it (page_fault_user): X86_PF_USER, and what else the access was."""
        slot: cython.longlong = self._leaf(mm, vpn)
        code: cython.int = 4 | (2 if op == _WRITE else 0) | (16 if op == _EXEC else 0)
        if slot >= 0 and self._words[slot] & _PRESENT:
            code |= 1
        self._trace.emit(_PAGE_FAULT, vpn << 12, vpn << 12 if op == _EXEC else self.fault_ip, code)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _run(
        self,
        mm: cython.int,
        cpu: cython.int,
        tags: cython.longlong,
        vpns: cython.longlong[::1],
        start: cython.Py_ssize_t,
        vmas: cython.longlong[:, ::1],
    ) -> cython.Py_ssize_t:
        """After the first write to a page: go on while the next access is the first write to the next page.

        Each is a TLB miss, a walk that ends at an empty entry, a fault, and a walk that ends well: what the loop would
        find out, without looking. Where it stops.
        """
        row: cython.Py_ssize_t = self.row
        vpn: cython.longlong = vpns[start - 1]
        slot: cython.longlong = self._fault_slot
        end: cython.longlong = min(vmas[row, 1], (vpn | self._mask) + 1)
        entry: cython.ulonglong = self._words[slot]
        data: cython.longlong = 3 | (vmas[row, 2] & 4)
        n: cython.Py_ssize_t = min(vpns.shape[0], start + (_BATCH - self._pend), start + (end - vpn - 1))
        i: cython.Py_ssize_t = start
        events: cython.int = self._rss_events[mm]
        pend: cython.int = self._pend
        while i < n and vpns[i] == vpn + 1 and not self._words[slot + 1]:
            vpn += 1
            slot += 1
            if events > _EVENTS_THRESH:
                self._sync(mm, 1)
                events = 0
            else:
                events += 1
            self._rss_task[mm * 4 + _MM_ANON] += 1
            self._words[slot] = entry
            self._pend_slot[pend] = slot
            self._pend_vpn[pend] = vpn
            self._pend_at[pend] = i
            self._pend_old[pend] = 0
            pend += 1
            self._insert(cpu, tags | vpn, slot << 3 | data)
            i += 1
        self._rss_events[mm] = events
        self._pend = pend
        self._count_run(mm, i - start)
        return i

    @cython.cfunc
    @cython.exceptval(check=False)
    def _count_run(self, mm: cython.int, n: cython.longlong) -> cython.void:
        """What ``n`` faults of a run count and cost."""
        self._events[self._pgfault] += n
        self._faults_of[mm] += n
        self._stats[_S_FAULT] += n
        self._stats[_S_NEW] += n
        self._stats[_S_WALK] += 2 * n
        self._stats[_S_LEVELS] += 2 * n * self.levels
        self._ctx[_NOW] += n * (2 * self._cost_walk + self._cost_fault + self._cost_local)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _walk(
        self, mm: cython.int, cpu: cython.int, tags: cython.longlong, vpn: cython.longlong, op: cython.int
    ) -> cython.bint:
        """The hardware's page walk: sets the accessed and dirty bits, fills the TLB. False: a page fault."""
        slot: cython.longlong = self._leaf(mm, vpn)
        self._stats[_S_WALK] += 1
        self._stats[_S_LEVELS] += self.levels - self._level
        self._ctx[_NOW] += self._cost_walk
        return slot >= 0 and self._fill(mm, cpu, tags, vpn, op, slot, self._level)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _fill(
        self,
        mm: cython.int,
        cpu: cython.int,
        tags: cython.longlong,
        vpn: cython.longlong,
        op: cython.int,
        slot: cython.longlong,
        level: cython.int,
    ) -> cython.bint:
        """What a walk does with the entry that it found. False: the entry does not allow the access."""
        entry: cython.ulonglong = self._words[slot]
        tag: cython.longlong = tags | vpn
        pfn: cython.longlong
        if not entry & _PRESENT or (op == _WRITE and not entry & _RW) or (op == _EXEC and entry & _NX):
            return False
        entry |= _ACCESSED
        if op == _WRITE:
            entry |= _DIRTY | _SOFT_DIRTY
        self._words[slot] = entry
        if level:
            tag = tags | _HUGE_TAG | vpn >> (self.bits * level)
            self._has_huge[mm] = 1
        self._insert(cpu, tag, slot << 3 | 1 | (2 if entry & _RW and entry & _DIRTY else 0) | (0 if entry & _NX else 4))
        pfn = cython.cast(cython.longlong, (entry & _PFN_MASK) >> 12)
        near: cython.bint = not pfn or self._zone_nid[self._zone_of(pfn)] == self._cpu_node[cpu]
        self._ctx[_NOW] += self._cost_local if near else self._cost_remote
        return True

    @cython.cfunc
    @cython.exceptval(check=False)
    def _zone_of(self, pfn: cython.longlong) -> cython.int:
        zi: cython.int = self._zone
        if pfn < self._zone_start[zi] or pfn >= self._zone_end[zi]:
            zi = 0
            while zi < self._zone_start.shape[0] and (pfn < self._zone_start[zi] or pfn >= self._zone_end[zi]):
                zi += 1
            if zi == self._zone_start.shape[0]:
                return 0
            self._zone = zi
        return zi

    @cython.cfunc
    @cython.exceptval(check=False)
    def _row_of(self, vpn: cython.longlong, vmas: cython.longlong[:, ::1]) -> cython.Py_ssize_t:
        """The mapping of an address, -1 when there is none."""
        low: cython.Py_ssize_t = 0
        high: cython.Py_ssize_t = vmas.shape[0]
        middle: cython.Py_ssize_t
        if self.row < high and vmas[self.row, 0] <= vpn < vmas[self.row, 1]:
            return self.row
        while low < high:
            middle = (low + high) >> 1
            if vmas[middle, 1] <= vpn:
                low = middle + 1
            else:
                high = middle
        if low == vmas.shape[0] or vmas[low, 0] > vpn:
            return -1
        self.row = low
        return low

    @cython.cfunc
    def _fault(
        self,
        mm: cython.int,
        vpn: cython.longlong,
        op: cython.int,
        vmas: cython.longlong[:, ::1],
        at: cython.Py_ssize_t,
    ) -> cython.int:
        """A page fault (do_user_addr_fault, handle_pte_fault) as far as it is private anonymous memory's."""
        row: cython.Py_ssize_t = self._row_of(vpn, vmas)
        kind: cython.longlong
        slot: cython.longlong
        entry: cython.ulonglong
        failed: cython.longlong
        if row < 0:
            return _NO_VMA
        kind = vmas[row, 2]
        if not kind >> op & 1:
            return _BAD_ACCESS
        if not kind & _FAST:
            return _SLOW
        slot = self._leaf(mm, vpn)
        if slot < 0:
            if kind & _ROW_HUGE and self._level <= 0:
                return _SLOW
            if self._pend:
                failed = self._commit(mm, vmas)
                if failed >= 0:
                    self.at = failed
                    return _NO_MEMORY
            if kind & _ROW_HUGE:
                return _SLOW
            self.make_table(mm, vpn)
            slot = self._leaf(mm, vpn)
        if self._level:
            return _SLOW
        self._fault_slot = slot
        entry = self._words[slot]
        if entry & _PRESENT:
            return self._wp_fault(mm, vpn, slot, entry, vmas, row, at)
        if entry and not entry & _PROTNONE and self.swap is not None and vmas[row, 3]:
            return self._swap_fault(mm, vpn, slot, op, vmas, row)
        if entry or (op == _WRITE and not vmas[row, 3]):
            return _SLOW
        self._tick(mm)
        if op != _WRITE:
            self._words[slot] = (
                (cython.cast(cython.ulonglong, self.zero_pfn) << 12)
                | _PRESENT
                | _USER
                | _ACCESSED
                | _SPECIAL
                | (0 if kind & 4 else _NX)
            )
            self._stats[_S_ZERO] += 1
            return _DONE
        self._stats[_S_NEW] += 1
        self._rss_task[mm * 4 + _MM_ANON] += 1
        return self._put_off(mm, vpn, slot, 0, vmas, row, at)

    @cython.cfunc
    def _swap_fault(
        self,
        mm: cython.int,
        vpn: cython.longlong,
        slot: cython.longlong,
        op: cython.int,
        vmas: cython.longlong[:, ::1],
        row: cython.Py_ssize_t,
    ) -> cython.int:
        """A fault on a swap entry: core/swap_fault.py does it, or the caller."""
        fresh: cython.bint = row != self._swap_row
        failed: cython.longlong
        if self._pend:
            failed = self._commit(mm, vmas)
            if failed >= 0:
                self.at = failed
                return _NO_MEMORY
        self._swap_row = row
        index: cython.longlong = vpn + vmas[row, 4]
        if self.swap.handle(mm, row, vpn, slot, op, vmas[row, 2], vmas[row, 3], index, vmas[row, 5], fresh):
            return _DONE
        self._swap_row = -1
        return _SLOW

    @cython.cfunc
    def _wp_fault(
        self,
        mm: cython.int,
        vpn: cython.longlong,
        slot: cython.longlong,
        entry: cython.ulonglong,
        vmas: cython.longlong[:, ::1],
        row: cython.Py_ssize_t,
        at: cython.Py_ssize_t,
    ) -> cython.int:
        """A write to a page that is mapped read-only (do_wp_page): use it again, or copy it."""
        pfn: cython.longlong = cython.cast(cython.longlong, (entry & _PFN_MASK) >> 12)
        flags: cython.uint
        if entry & _RW or not vmas[row, 3]:
            return _SLOW
        if pfn == self.zero_pfn:
            self._tick(mm)
            self._stats[_S_NEW] += 1
            self._rss_task[mm * 4 + _MM_ANON] += 1
            self._flush_pages(mm, vpn, vpn + 1)
            return self._put_off(mm, vpn, slot, entry, vmas, row, at)
        if entry & _SPECIAL or not pfn or self._meta[pfn] & 0xFFFF != _SINGLE or self._mapping[pfn] <= 0:
            return _SLOW
        flags = self._flags[pfn]
        if flags & _SWAPCACHE or (not flags & _EXCLUSIVE and self._mapcount[pfn] == 1 and not flags & _LRU):
            return _SLOW
        self._tick(mm)
        self._flush_pages(mm, vpn, vpn + 1)
        if flags & _EXCLUSIVE or self._mapcount[pfn] == 1:
            self._flags[pfn] = flags | _EXCLUSIVE
            if self._mapping[pfn] != cython.cast(cython.int, vmas[row, 3]):
                self._mapping[pfn] = cython.cast(cython.int, vmas[row, 3])
            self._words[slot] = entry | _RW | _DIRTY | _SOFT_DIRTY | _ACCESSED
            self._stats[_S_REUSE] += 1
            self._events[self._pgreuse] += 1
            return _DONE
        self._stats[_S_COPY] += 1
        return self._put_off(mm, vpn, slot, entry, vmas, row, at)

    @cython.cfunc
    def _put_off(
        self,
        mm: cython.int,
        vpn: cython.longlong,
        slot: cython.longlong,
        old: cython.ulonglong,
        vmas: cython.longlong[:, ::1],
        row: cython.Py_ssize_t,
        at: cython.Py_ssize_t,
    ) -> cython.int:
        """Write the entry of a new page, whose page comes with the batch."""
        j: cython.longlong
        if self._pend and (self._pend == _BATCH or self._pend_row != row):
            j = self._commit(mm, vmas)
            if j >= 0:
                self.at = j
                if not self._mapped_page(old):
                    self._rss_task[mm * 4 + _MM_ANON] -= 1
                return _NO_MEMORY
        self._pend_row = row
        self._pend_slot[self._pend] = slot
        self._pend_vpn[self._pend] = vpn
        self._pend_at[self._pend] = at
        self._pend_old[self._pend] = old
        self._pend += 1
        self._words[slot] = (
            cython.cast(cython.ulonglong, vmas[row, 5])
            | _ACCESSED
            | _DIRTY
            | _SOFT_DIRTY
            | (0 if vmas[row, 2] & 4 else _NX)
        )
        return _DONE

    @cython.cfunc
    @cython.exceptval(check=False)
    def _mapped_page(self, entry: cython.ulonglong) -> cython.longlong:
        """The page of an entry, 0 for an empty one and the zero page."""
        pfn: cython.longlong = cython.cast(cython.longlong, (entry & _PFN_MASK) >> 12)
        return 0 if not entry & _PRESENT or pfn == self.zero_pfn else pfn

    @cython.cfunc
    def _commit(self, mm: cython.int, vmas: cython.longlong[:, ::1]) -> cython.longlong:
        """Take the pages that the batch waits for and put them in. -1, or the access for which there was none."""
        k: cython.int = self._pend
        got: cython.int
        j: cython.int
        pfns: object
        page: cython.longlong[::1]
        self._pend = 0
        pfns = self.supply(self._pend_row, self._pend_vpns[:k])
        page = pfns
        got = cython.cast(cython.int, page.shape[0])
        for j in range(got):
            self._put_in(page[j], j, vmas)
        if got and vmas[self._pend_row, 2] & _ROW_LOCKED:
            self.lru.mlock(pfns, 1)
        elif got:
            self.lru.add_faulted(pfns)
        if got == k:
            return -1
        for j in range(got, k):
            self._words[self._pend_slot[j]] = self._pend_old[j]
            if not self._mapped_page(self._pend_old[j]):
                self._rss_task[mm * 4 + _MM_ANON] -= 1
        self._uncount(mm, k - got)
        self.flush_mm(mm)
        return self._pend_at[got]

    @cython.cfunc
    def _put_in(self, pfn: cython.longlong, j: cython.int, vmas: cython.longlong[:, ::1]) -> object:
        """A new anonymous page in its entry, in place of the one that it is a copy of."""
        old: cython.longlong = self._mapped_page(self._pend_old[j])
        self._words[self._pend_slot[j]] |= cython.cast(cython.ulonglong, pfn) << 12
        self._flags[pfn] = _NEW_FLAGS
        self._mapping[pfn] = cython.cast(cython.int, vmas[self._pend_row, 3])
        self._index[pfn] = self._pend_vpn[j] + vmas[self._pend_row, 4]
        self._mapcount[pfn] = 1
        self._node_stat[self._zone_nid[self._zone_of(pfn)], self._nr_anon] += 1
        if old:
            self._mapcount[old] -= 1
            if self._flags[old] & _CONTENT:
                self.copied(old, pfn)
        return None
