"""Translations that CPUs remember, and how they forget them (arch/x86/mm/tlb.c).

A TLB per CPU: a first level split by page size, a second that both share, process-context identifiers. Models
``switch_mm_irqs_off`` as far as it gives out contexts, ``flush_tlb_mm_range`` and shootdowns; core/mmu.py fills them.

Invariants: an entry's tag holds a context number that is new after each full flush, so stale entries never match.
"""

from typing import Any

import cython
import numpy as np

from kmemd.core.array_view import view
from kmemd.core.page_tables import MAX_MM, PageTables
from kmemd.core.pages import lazy_zeros

PCIDS = 6
"""Address spaces whose translations a CPU keeps (TLB_NR_DYN_ASIDS)."""
FLUSH_CEILING = 33
"""Pages up to which they are flushed one by one (tlb_single_page_flush_ceiling)."""

_PCIDS = cython.declare(cython.int, 6)
_CEILING = cython.declare(cython.int, 33)
_CTX_SHIFT = cython.declare(cython.int, 45)
_CTX_LAST = cython.declare(cython.longlong, (1 << 17) - 1)
_HUGE_TAG = cython.declare(cython.longlong, 1 << 62)
_PRESENT = cython.declare(cython.ulonglong, 1)
_RW = cython.declare(cython.ulonglong, 2)
_DIRTY = cython.declare(cython.ulonglong, 1 << 6)
_NX = cython.declare(cython.ulonglong, 1 << 63)
_CPU = cython.declare(cython.int, 1)
_S_FLUSH_PAGE = cython.declare(cython.int, 20)
_S_FLUSH_FULL = cython.declare(cython.int, 21)
_S_SHOOTDOWN = cython.declare(cython.int, 22)
_S_SWITCH = cython.declare(cython.int, 23)


@cython.cclass
class Tlb(PageTables):
    """The TLBs of all CPUs, over the tables of all address spaces. ``cpu_nodes[cpu]`` is a CPU's node."""

    def __init__(
        self, pages: Any, zones: Any, vmstat: Any, context: Any, bits: int, levels: int, cpu_nodes: Any
    ) -> None:
        super().__init__(pages, zones, vmstat, context, bits, levels)
        self._cpu_node = view(np.array(cpu_nodes, dtype=np.int64))
        self._ncpus = len(cpu_nodes)
        self._mm_end = 0
        self._init_tlb()

    def _init_tlb(self) -> None:
        n: cython.int = self._ncpus
        self._context_of = view(lazy_zeros(MAX_MM * n, "int64"))
        self._pcid_mm = view(np.full(n * PCIDS, -1, dtype=np.int32))
        self._pcid_next = view(np.zeros(n, dtype=np.int32))
        self._loaded = view(np.full(n, -1, dtype=np.int32))
        self._has_huge = view(np.zeros(MAX_MM, dtype=np.uint8))
        self._next_context = 0
        self._l1, self._l1_data = view(lazy_zeros(n * 64, "int64")), view(lazy_zeros(n * 64, "int64"))
        self._h1, self._h1_data = view(lazy_zeros(n * 32, "int64")), view(lazy_zeros(n * 32, "int64"))
        self._l2, self._l2_data = view(lazy_zeros(n * 1024, "int64")), view(lazy_zeros(n * 1024, "int64"))
        self._l1_next = view(np.zeros(n * 16, dtype=np.uint8))
        self._h1_next = view(np.zeros(n * 8, dtype=np.uint8))
        self._l2_next = view(np.zeros(n * 128, dtype=np.uint8))

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

    # -- contexts ----------------------------------------------------------------------------------------------

    @cython.final
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

    @cython.final
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

    # -- forgetting --------------------------------------------------------------------------------------------

    @cython.final
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

    @cython.final
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

    @cython.final
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

    @cython.final
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

    # -- checks ------------------------------------------------------------------------------------------------

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

    @cython.final
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

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def _is_stale(self, data: cython.longlong) -> cython.bint:
        entry: cython.ulonglong = self._words[data >> 3]
        if not entry & _PRESENT or (data & 4 and entry & _NX):
            return True
        return data & 2 != 0 and not (entry & _RW and entry & _DIRTY)
