"""The path of an access: TLB, page walk, and the fault it may end in (arch/x86/mm, mm/memory.c).

``access`` is a loop over addresses of one address space. Where a fault needs what core/faults.py has not, it stops and
says why.
"""

from typing import Any

import cython

from kmemd.core import trace_ids
from kmemd.core.faults import Faults

READ, WRITE, EXEC = 0, 1, 2
DONE, NO_VMA, BAD_ACCESS, SLOW, NO_MEMORY = range(5)

# columns of a row of the table of mappings; VMA_PROT is the entries' protection without NX
VMA_START, VMA_END, VMA_FLAGS, VMA_ANON, VMA_DELTA, VMA_PROT = range(6)
VMA_COLUMNS = 6
# VMA_FLAGS
ROW_READ, ROW_WRITE, ROW_EXEC, ROW_FAST, ROW_HUGE, ROW_LOCKED = 1, 2, 4, 8, 16, 32

_BATCH = cython.declare(cython.int, 2048)
_AHEAD = cython.declare(cython.int, 16)
_CTX_SHIFT = cython.declare(cython.int, 45)
_HUGE_TAG = cython.declare(cython.longlong, 1 << 62)
_PRESENT = cython.declare(cython.ulonglong, 1)
_RW = cython.declare(cython.ulonglong, 2)
_ACCESSED = cython.declare(cython.ulonglong, 1 << 5)
_DIRTY = cython.declare(cython.ulonglong, 1 << 6)
_SOFT_DIRTY = cython.declare(cython.ulonglong, 1 << 11)
_NX = cython.declare(cython.ulonglong, 1 << 63)
_PSE = cython.declare(cython.ulonglong, 1 << 7)
_PFN_MASK = cython.declare(cython.ulonglong, ((1 << 40) - 1) << 12)
_NOW = cython.declare(cython.int, 0)
_PAGE_FAULT = cython.declare(cython.int, trace_ids.PAGE_FAULT_USER)
_CPU = cython.declare(cython.int, 1)
_WRITE = cython.declare(cython.int, 1)
_EXEC = cython.declare(cython.int, 2)
_MM_ANON = cython.declare(cython.int, 1)
_EVENTS_THRESH = cython.declare(cython.int, 64)
_S_ACCESS = cython.declare(cython.int, 0)
_S_L1 = cython.declare(cython.int, 1)
_S_L2 = cython.declare(cython.int, 2)
_S_WALK = cython.declare(cython.int, 3)
_S_LEVELS = cython.declare(cython.int, 4)
_S_FAULT = cython.declare(cython.int, 5)
_S_NEW = cython.declare(cython.int, 7)
_S_FILL = cython.declare(cython.int, 19)
_DONE = cython.declare(cython.int, 0)
_SLOW = cython.declare(cython.int, 3)
_NO_MEMORY = cython.declare(cython.int, 4)


@cython.final
@cython.cclass
class Mmu(Faults):
    """What a CPU does with an address, over all address spaces' tables and all CPUs' TLBs.

    ``bits`` is the log2 of the entries of a table, ``levels`` how many levels there are; ``zones`` rows are
    ``(nid, start_pfn, end_pfn)``; ``costs`` the model time in ns of a TLB hit, a walk, a fault, and local and remote
    memory.
    """

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
        super().__init__(pages, context, zones, cpu_nodes, vmstat, lru, bits, levels, zero_pfn, items, costs[2])
        self._cost_hit, self._cost_walk, _, self._cost_local, self._cost_remote = costs
        self.fault_ip = 0

    # -- access ------------------------------------------------------------------------------------------------

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
        self._vmas = vmas
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
            got = self._miss(mm, cpu, tags, vpns[i], op, i)
            if got == _DONE:
                i += 1
                if op == _WRITE and self._pend and self._pend_at[self._pend - 1] == i - 1 and not self._traced[0]:
                    i = self._run(mm, cpu, tags, vpns, i)
                continue
            i = self.at
            if self._pend:
                k = self._commit(mm)
                if k >= 0:
                    i = k
                    got = _NO_MEMORY
            self.why = got
            break
        if self._pend:
            k = self._commit(mm)
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
        seen: cython.ulonglong = 0
        for i in range(start, stop):
            seen |= self._peek(mm, vpns[i])
        self._seen = seen

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _peek(self, mm: cython.int, vpn: cython.longlong) -> cython.ulonglong:
        """The entry at which a walk ends, without what the walk remembers."""
        level: cython.int = self.levels - 1
        pfn: cython.longlong = self._pgd[mm]
        entry: cython.ulonglong
        while True:
            entry = self._words[(pfn << self.bits) + ((vpn >> (self.bits * level)) & self._mask)]
            if level == 0 or entry & _PSE or not entry & _PRESENT:
                return entry
            pfn = cython.cast(cython.longlong, (entry & _PFN_MASK) >> 12)
            level -= 1

    @cython.cfunc
    def _miss(
        self,
        mm: cython.int,
        cpu: cython.int,
        tags: cython.longlong,
        vpn: cython.longlong,
        op: cython.int,
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
            got = self._fault(mm, vpn, op, at)
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
    ) -> cython.Py_ssize_t:
        """After the first write to a page: go on while the next access is the first write to the next page.

        Each is a TLB miss, a walk that ends at an empty entry, a fault, and a walk that ends well: what the loop would
        find out, without looking. Where it stops.
        """
        row: cython.Py_ssize_t = self.row
        vpn: cython.longlong = vpns[start - 1]
        slot: cython.longlong = self._fault_slot
        end: cython.longlong = min(self._vmas[row, 1], (vpn | self._mask) + 1)
        entry: cython.ulonglong = self._words[slot]
        data: cython.longlong = 3 | (self._vmas[row, 2] & 4)
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

    # -- the hardware's walk -----------------------------------------------------------------------------------

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

    # -- the TLB -----------------------------------------------------------------------------------------------

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
