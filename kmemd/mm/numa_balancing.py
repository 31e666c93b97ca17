"""Automatic NUMA balancing: hints in page tables, the faults that they cause, and pages that follow their users.

Models kernel/sched/fair.c ``task_numa_work``, ``task_tick_numa``, ``task_numa_fault`` with its scan period,
``should_numa_migrate_memory``; mm/mempolicy.c ``change_prot_numa`` and ``mpol_misplaced``; mm/memory.c
``do_numa_page``; mm/migrate.c ``migrate_misplaced_page``. A task's run time is the model time that its accesses take;
its state is kept with its address space, for a process has one thread. All memory is of one tier. Left out: groups of
tasks that share memory, and moving a task to its preferred node, which are the scheduler's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from kmemd.core import stats
from kmemd.core.context import Context
from kmemd.core.pages import PG_DIRTY, PG_HEAD, PG_LRU, PG_SWAPBACKED, PG_SWAPCACHE, PageMap
from kmemd.core.pte import (
    ACCESSED,
    DIRTY,
    PFN_MASK,
    PFN_SHIFT,
    PRESENT,
    PROTNONE,
    PSE,
    RW,
    SOFT_DIRTY,
    SPECIAL,
)
from kmemd.mm import gfp as g
from kmemd.mm.clock import HZ, NSEC_PER_SEC
from kmemd.mm.debugfs_handlers import DEBUGFS, SimpleAttr, show_number
from kmemd.mm.mempolicy import NUMA_BALANCING_NORMAL, Mempolicy
from kmemd.mm.migrate import MR_NUMA_MISPLACED, Migrate
from kmemd.mm.mm_types import (
    VM_ACCESS_FLAGS,
    VM_EXEC,
    VM_HUGETLB,
    VM_IO,
    VM_MAYWRITE,
    VM_MIXEDMAP,
    VM_PFNMAP,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
)
from kmemd.mm.mmzone import Node, Zone
from kmemd.mm.mpol import MPOL_BIND, MPOL_F_MOF, MPOL_F_MORON, MPOL_INTERLEAVE, MPOL_LOCAL, MPOL_PREFERRED
from kmemd.mm.nodemask import first_node
from kmemd.mm.page_alloc import PageAllocator
from kmemd.mm.units import MIB, NUMA_NO_NODE, PAGE_SHIFT
from kmemd.mm.vma_rows import prot_bits
from kmemd.mm.vmstat import VmStat
from kmemd.tunable import Tunable, Tuned

if TYPE_CHECKING:
    from kmemd.mm.mm_types import Mm, Vma

Rows = npt.NDArray[np.int64]

NSEC_PER_MSEC = 1_000_000
JIFFY_NS = NSEC_PER_SEC // HZ
MAX_SCAN_WINDOW = 2560
"""MiB that are scanned in a second at most."""
VIRTUAL_PAGES = 8
"""Address space that is looked at for each page that may be marked."""
NUMA_PERIOD_SLOTS, NUMA_PERIOD_THRESHOLD = 10, 7
PID_MASK = 0xFF
"""Bits of a pid that a page remembers."""
KEPT = PFN_MASK | SPECIAL | ACCESSED | DIRTY | SOFT_DIRTY | PSE
"""What pte_modify keeps of an entry."""
SETTINGS = f"{DEBUGFS}/sched/numa_balancing"


def _knob(name: str, attr: str) -> Tunable:
    return Tunable(f"{SETTINGS}/{name}", attr, show_number, SimpleAttr(32), when="numa")


class Tables(Protocol):
    """Page tables."""

    words: npt.NDArray[np.uint64]
    bits: int

    def leaf(self, mm: int, vpn: int) -> tuple[int, int]: ...
    def extents(self, mm: int, start: int, end: int) -> Rows: ...
    def flush_range(self, mm: int, start: int, end: int) -> None: ...


class HasMm(Protocol):
    """A task."""

    pid: int
    start_ns: int
    mm: Mm | None


@dataclass
class MmScan:
    """Where the scan of an address space stands: next time in ns, passes, next address."""

    next_ns: int
    seq: int = 0
    offset: int = 0


@dataclass
class TaskScan:
    """What a task knows of its faults. Times in ns, periods in ms.

    ``fresh`` and ``faults`` count pages by node and whether private, of this pass and decayed ones; ``locality`` counts
    remote ones, local ones and failed migrations.
    """

    period: int
    period_max: int = 0
    runtime_ns: int = 0
    stamp_ns: int = 0
    seq: int = 0
    preferred_nid: int = NUMA_NO_NODE
    retry_ns: int = 0
    pages_migrated: int = 0
    fresh: dict[tuple[int, int], int] = field(default_factory=dict)
    faults: dict[tuple[int, int], int] = field(default_factory=dict)
    locality: list[int] = field(default_factory=lambda: [0, 0, 0])


class NumaBalancing(Tuned):
    """Marks pages for the tasks that run and moves what they touch. ``rss(mm)`` is an address space's size in pages.

    ``mempolicy.numa_balancing`` switches it; while that is 0 nothing here runs but a comparison.
    """

    TUNABLES: ClassVar[tuple[Tunable, ...]] = (
        _knob("scan_delay_ms", "scan_delay"),
        _knob("scan_period_min_ms", "scan_period_min"),
        _knob("scan_period_max_ms", "scan_period_max"),
        _knob("scan_size_mb", "scan_size"),
        _knob("hot_threshold_ms", "hot_threshold"),
    )

    def __init__(
        self,
        pages: PageMap,
        mmu: Tables,
        mempolicy: Mempolicy,
        migrate: Migrate,
        page_alloc: PageAllocator,
        zones: list[Zone],
        nodes: list[Node],
        vmstat: VmStat,
        context: Context,
        watermark_ok: Callable[[int, int, int, int, int], bool],
        rss: Callable[[Mm], int],
    ) -> None:
        self._pages = pages
        self._mmu = mmu
        self._mempolicy = mempolicy
        self._migrate = migrate
        self._page_alloc = page_alloc
        self._zones = zones
        self._vmstat = vmstat
        self._context = context
        self._watermark_ok = watermark_ok
        self._rss = rss
        self._movable = [zone.name for zone in nodes[0].zones].index("Movable")
        self._cpu_nid = {cpu: node.nid for node in nodes for cpu in node.cpus}
        self.numa = mempolicy.numa
        self.scan_delay = 1000
        self.scan_period_min = 1000
        self.scan_period_max = 60000
        self.scan_size = 256
        self.hot_threshold = 1000
        self._mms: WeakKeyDictionary[Mm, MmScan] = WeakKeyDictionary()
        self._tasks: WeakKeyDictionary[Mm, TaskScan] = WeakKeyDictionary()

    # -- state -------------------------------------------------------------------------------------------

    def task_scan(self, mm: Mm) -> TaskScan:
        """The state of the task of an address space; that of a new task when it has none yet (init_numa_balancing)."""
        found = self._tasks.get(mm)
        if found is None:
            found = self._tasks[mm] = TaskScan(self.scan_delay)
        return found

    def mm_scan(self, mm: Mm, since_ns: int) -> MmScan:
        """The state of an address space that exists since ``since_ns``."""
        found = self._mms.get(mm)
        if found is None:
            found = self._mms[mm] = MmScan(since_ns + self.scan_delay * NSEC_PER_MSEC)
        return found

    @property
    def enabled(self) -> bool:
        """Whether anything happens at all."""
        return bool(self._mempolicy.numa_balancing)

    def _pages_per_scan(self) -> int:
        return max(1, self.scan_size) * MIB >> PAGE_SHIFT

    def _scan_min(self, mm: Mm) -> int:
        """The shortest scan period in ms (task_scan_min)."""
        size = max(1, self.scan_size)
        floor = 1000 // (MAX_SCAN_WINDOW // size if size < MAX_SCAN_WINDOW else 1)
        return max(floor, self.scan_period_min // self._windows(mm))

    def _scan_max(self, mm: Mm) -> int:
        return max(self._scan_min(mm), self.scan_period_max // self._windows(mm))

    def _windows(self, mm: Mm) -> int:
        """Scans that it takes to see all resident pages (task_nr_scan_windows)."""
        per_scan = self._pages_per_scan()
        return max(1, -(-self._rss(mm) // per_scan))

    # -- scanning ----------------------------------------------------------------------------------------

    def ran(self, task: HasMm, ns: int) -> None:
        """A task has run for ``ns``: when it has run long enough, its next pages are marked (task_tick_numa)."""
        if not self._mempolicy.numa_balancing or task.mm is None:
            return
        state = self.task_scan(task.mm)
        state.runtime_ns += ns
        mm_state = self.mm_scan(task.mm, task.start_ns)
        while state.runtime_ns > state.stamp_ns + state.period * NSEC_PER_MSEC:
            step = state.period * NSEC_PER_MSEC
            if not state.stamp_ns:
                state.period = self._scan_min(task.mm)
            state.stamp_ns += step
            if self._context.now >= mm_state.next_ns:
                self._work(task, task.mm, state, mm_state)

    def _work(self, task: HasMm, mm: Mm, state: TaskScan, mm_state: MmScan) -> None:
        """Mark the next ``scan_size`` of an address space (task_numa_work)."""
        if not state.period:
            state.period_max = self._scan_max(mm)
            state.period = self._scan_min(mm)
        mm_state.next_ns = self._context.now + state.period * NSEC_PER_MSEC
        state.stamp_ns += 2 * JIFFY_NS
        vmas = [vma for vma in mm.vmas if vma.end > mm_state.offset]
        if not vmas:
            mm_state.seq += 1
            mm_state.offset, vmas = 0, list(mm.vmas)
        left = self._pages_per_scan()
        virtual = left * VIRTUAL_PAGES
        for vma in vmas:
            if not self._scannable(vma, task):
                continue
            start = max(mm_state.offset, vma.start)
            while start < vma.end:
                end = min(_align(start + (left << PAGE_SHIFT), self._huge_bytes()), vma.end)
                if self.change_prot_numa(mm, vma, start, end):
                    left -= (end - start) >> PAGE_SHIFT
                virtual -= (end - start) >> PAGE_SHIFT
                start = end
                if left <= 0 or virtual <= 0:
                    mm_state.offset = start
                    return
        mm_state.seq += 1
        mm_state.offset = 0

    def _huge_bytes(self) -> int:
        return 1 << PAGE_SHIFT + self._mmu.bits

    def _scannable(self, vma: Vma, task: HasMm) -> bool:
        """Whether hints make sense: no shared libraries, no devices, nothing a policy pins down."""
        flags = vma.flags
        if flags & (VM_IO | VM_PFNMAP | VM_HUGETLB | VM_MIXEDMAP) or not flags & VM_ACCESS_FLAGS:
            return False
        if vma.file is not None and flags & (VM_READ | VM_WRITE) == VM_READ:
            return False
        return bool(self._mempolicy.vma_policy(vma, vma.vpn, task).flags & MPOL_F_MOF)

    def change_prot_numa(self, mm: Mm, vma: Vma, start: int, end: int) -> int:
        """Make hints of the entries of a range of bytes: the number of pages (change_prot_numa)."""
        updated, huge = 0, 0
        low, high = start >> PAGE_SHIFT, end >> PAGE_SHIFT
        for vpn, count, slot, level in self._mmu.extents(mm.id, low, high).tolist():
            if not level:
                updated += self._mark_small(vma, slot, count)
            elif vpn >= low and vpn + count <= high and self._mark_huge(slot):
                updated += count
                huge += 1
        if updated:
            self._mmu.flush_range(mm.id, low, high)
            self._vmstat.count(stats.NUMA_PTE_UPDATES, updated)
            self._vmstat.count(stats.NUMA_HUGE_PTE_UPDATES, huge)
        return updated

    def _mark_small(self, vma: Vma, slot: int, count: int) -> int:
        """Hints in a table of small pages: not for what is here already, is shared by a fork, or cannot move."""
        entries = self._mmu.words[slot : slot + count]
        here = np.flatnonzero(entries & np.uint64(PRESENT | SPECIAL) == np.uint64(PRESENT))
        if not len(here) or not self._mempolicy.numa_balancing & NUMA_BALANCING_NORMAL:
            return 0
        pfns = ((entries[here] & np.uint64(PFN_MASK)) >> np.uint64(PFN_SHIFT)).astype(np.int64)
        flags = self._pages.flags[pfns]
        wanted = self._pages.mapping[pfns] != 0
        if vma.flags & (VM_SHARED | VM_MAYWRITE) == VM_MAYWRITE:
            # a page in a batch, in a cache, or mapped twice has another reference
            alone = (self._pages.mapcount[pfns] == 1) & (self._pages.mapping[pfns] > 0) & (flags >> PG_LRU & 1 == 1)
            wanted &= alone & (flags >> PG_SWAPCACHE & 1 == 0)
        wanted &= (flags >> PG_SWAPBACKED & 1 == 1) | (flags >> PG_DIRTY & 1 == 0)
        if not vma.flags & VM_SHARED:
            wanted &= self._mempolicy.nid_of(pfns) != self._page_alloc.numa_node_id()
        here = here[wanted]
        entries[here] = (entries[here] & np.uint64(KEPT | RW)) | np.uint64(PROTNONE | ACCESSED)
        return len(here)

    def _mark_huge(self, slot: int) -> bool:
        """A hint in a huge entry, unless it is the huge zero page's."""
        entry = int(self._mmu.words[slot])
        pfn = (entry & PFN_MASK) >> PFN_SHIFT
        if not entry & PRESENT or not self._pages.mapping[pfn]:
            return False
        if not self._mempolicy.numa_balancing & NUMA_BALANCING_NORMAL:
            return False
        self._mmu.words[slot] = entry & (KEPT | RW) | PROTNONE | ACCESSED
        return True

    # -- hint faults -------------------------------------------------------------------------------------

    def numa_fault(self, task: HasMm, mm: Mm, vma: Vma, vpn: int) -> None:
        """A task touched a page that was marked (do_numa_page, do_huge_pmd_numa_page): move it, or unmark it.

        Preconditions: the entry is PROTNONE and the mapping allows accesses.
        """
        slot, level = self._mmu.leaf(mm.id, vpn)
        entry = int(self._mmu.words[slot])
        pfn = (entry & PFN_MASK) >> PFN_SHIFT
        normal = not entry & SPECIAL and self._pages.mapping[pfn] and (level or not self._in_huge(pfn))
        if not normal:
            self._unmark(slot, entry, vma)
            return
        pages = 1 << self._migrate.order(pfn)
        nid = self._migrate.nid(pfn)
        last = self._mempolicy.last_cpupid(pfn)
        here = self._page_alloc.numa_node_id()
        self._vmstat.count(stats.NUMA_HINT_FAULTS)
        if nid == here:
            self._vmstat.count(stats.NUMA_HINT_FAULTS_LOCAL)
        target = self._misplaced(task, mm, vma, vpn, pfn, nid)
        moved = target != NUMA_NO_NODE and self._move(vma, pfn, target)
        if not moved:
            self._unmark(slot, int(self._mmu.words[slot]), vma)
        failed = target != NUMA_NO_NODE and not moved
        self._task_fault(task, last, target if moved else nid, pages, local=nid == here, moved=moved, failed=failed)

    def _in_huge(self, pfn: int) -> bool:
        """Whether a page is a part of a huge one."""
        return not self._pages.kind[pfn] or bool(int(self._pages.flags[pfn]) >> PG_HEAD & 1)

    def _unmark(self, slot: int, entry: int, vma: Vma) -> None:
        """Make an entry present again, writable if it was."""
        if entry & PROTNONE and not entry & PRESENT:
            self._mmu.words[slot] = entry & (KEPT | RW) | prot_bits(vma.flags, cow=True) | ACCESSED

    def _misplaced(self, task: HasMm, mm: Mm, vma: Vma, vpn: int, pfn: int, nid: int) -> int:
        """The node that a page belongs on, NUMA_NO_NODE if it may stay (mpol_misplaced)."""
        policy = self._mempolicy.vma_policy(vma, vpn, task)
        here = self._page_alloc.numa_node_id()
        if not policy.flags & MPOL_F_MOF:
            return NUMA_NO_NODE
        if policy.mode == MPOL_INTERLEAVE:
            wanted = self._mempolicy.interleave_nid(policy, vma, vpn)
        elif policy.mode == MPOL_LOCAL:
            wanted = here
        elif policy.mode == MPOL_BIND and policy.flags & MPOL_F_MORON:
            if not policy.nodes >> here & 1:
                return NUMA_NO_NODE
            wanted = here
        elif policy.nodes >> nid & 1:
            return NUMA_NO_NODE
        elif policy.mode == MPOL_PREFERRED:
            wanted = first_node(policy.nodes)
        else:
            wanted = next(near for near in self._page_alloc.zonelists[here] if policy.nodes >> near & 1)
        if policy.flags & MPOL_F_MORON:
            wanted = here
            if not self._should_migrate(task, mm, pfn, here):
                return NUMA_NO_NODE
        return wanted if wanted != nid else NUMA_NO_NODE

    def _should_migrate(self, task: HasMm, mm: Mm, pfn: int, here: int) -> bool:
        """The two-stage filter: the same task, or the same node twice in a row (should_numa_migrate_memory)."""
        last = self._mempolicy.last_cpupid(pfn)
        self._mempolicy.set_last_cpupid(pfn, self._context.cpu << 8 | task.pid & PID_MASK)
        state = self.task_scan(mm)
        unset, mine = last & PID_MASK == PID_MASK, last & PID_MASK == task.pid & PID_MASK
        if (state.preferred_nid == NUMA_NO_NODE or state.seq <= 4) and (unset or mine):
            return True
        return unset or self._cpu_nid.get(last >> 8, NUMA_NO_NODE) == here

    def _move(self, vma: Vma, pfn: int, nid: int) -> bool:
        """Move one page to a node, if that has room and the page is no library's (migrate_misplaced_page)."""
        flags = int(self._pages.flags[pfn])
        file = not flags >> PG_SWAPBACKED & 1
        if file and (flags >> PG_DIRTY & 1 or (vma.flags & VM_EXEC and self._pages.mapcount[pfn] != 1)):
            return False
        order = self._migrate.order(pfn)
        if order and self._huge_sharers(pfn) > 1:
            return False
        if not self._balanced(nid, 1 << order) or not self._migrate.isolate(pfn):
            return False
        gfp = g.GFP_TRANSHUGE_LIGHT if order else g.GFP_HIGHUSER_MOVABLE | g.F.NOMEMALLOC | g.F.NORETRY | g.F.NOWARN
        gfp = (gfp | g.F.THISNODE | g.F.COMP) & ~(0 if order else g.F.RECLAIM)

        def new_page(_pfn: int) -> int:
            return self._page_alloc.alloc_pages(gfp, order, nid)

        outcome = self._migrate.migrate_pages([pfn], new_page, MR_NUMA_MISPLACED, may_split=False)
        self._migrate.putback(outcome.left)
        if outcome.failed or outcome.left:
            return False
        self._vmstat.count(stats.NUMA_PAGE_MIGRATE, 1 << order)
        return True

    def _huge_sharers(self, head: int) -> int:
        """How often a huge page and its pages are mapped (total_mapcount)."""
        whole = int(self._pages.mapping[head + 1])
        return whole + int(self._pages.mapcount[head : head + (1 << self._migrate.order(head))].sum())

    def _balanced(self, nid: int, pages: int) -> bool:
        """Whether a node can take pages and stay above its high watermark (migrate_balanced_pgdat)."""
        return any(
            self._watermark_ok(zone.index, 0, zone.watermark_high + zone.boost + pages, self._movable, 0)
            for zone in self._zones
            if zone.nid == nid and zone.managed
        )

    # -- what the faults tell ----------------------------------------------------------------------------

    def _task_fault(
        self,
        task: HasMm,
        last: int,
        nid: int,
        pages: int,
        *,
        local: bool,
        moved: bool,
        failed: bool,
    ) -> None:
        """Count a hint fault for its task, and look at all of them once per pass (task_numa_fault)."""
        if not self.enabled or task.mm is None:
            return
        state = self.task_scan(task.mm)
        private = last == -1 or last & PID_MASK == task.pid & PID_MASK
        if self._context.now > state.retry_ns:
            self._placement(task.mm, state)
            if state.preferred_nid != NUMA_NO_NODE:
                jiffies = min(HZ, state.period * HZ // 1000 // 16)
                state.retry_ns = self._context.now + jiffies * JIFFY_NS
        state.pages_migrated += pages if moved else 0
        state.locality[2] += pages if failed else 0
        state.fresh[nid, private] = state.fresh.get((nid, private), 0) + pages
        state.locality[local] += pages

    def _placement(self, mm: Mm, state: TaskScan) -> None:
        """After each pass: the node with most of the task's faults, and the next scan period (task_numa_placement)."""
        mm_state = self._mms.get(mm)
        if mm_state is None or state.seq == mm_state.seq:
            return
        state.seq = mm_state.seq
        state.period_max = self._scan_max(mm)
        best, most = NUMA_NO_NODE, 0
        kinds = [0, 0]
        for nid in sorted(set(self._cpu_nid.values()) | {key[0] for key in state.fresh}):
            for private in (False, True):
                fresh = state.fresh.pop((nid, private), 0)
                kinds[private] += fresh
                old = state.faults.get((nid, private), 0)
                state.faults[nid, private] = old + fresh - old // 2
            total = state.faults[nid, False] + state.faults[nid, True]
            if total > most:
                best, most = nid, total
        if most and best in self._cpu_nid.values():
            state.preferred_nid = best
        self._update_period(mm, mm_state, state, *kinds)

    def _update_period(self, mm: Mm, mm_state: MmScan, state: TaskScan, shared: int, private: int) -> None:
        """Scan slower where faults are local or shared, faster where they are remote (update_task_scan_period)."""
        remote, local, failed = state.locality
        if local + shared == 0 or failed:
            state.period = min(state.period_max, state.period << 1)
            mm_state.next_ns = self._context.now + state.period * NSEC_PER_MSEC
            return
        slot = -(-state.period // NUMA_PERIOD_SLOTS)
        local_ratio = local * NUMA_PERIOD_SLOTS // (local + remote) if local + remote else 0
        private_ratio = private * NUMA_PERIOD_SLOTS // (private + shared) if private + shared else 0
        if private_ratio >= NUMA_PERIOD_THRESHOLD:
            change = (private_ratio - NUMA_PERIOD_THRESHOLD or 1) * slot
        elif local_ratio >= NUMA_PERIOD_THRESHOLD:
            change = (local_ratio - NUMA_PERIOD_THRESHOLD or 1) * slot
        else:
            change = -(NUMA_PERIOD_THRESHOLD - max(local_ratio, private_ratio)) * slot
        state.period = min(max(state.period + change, self._scan_min(mm)), self._scan_max(mm))
        state.locality = [0, 0, 0]


def _align(address: int, size: int) -> int:
    return -(-address // size) * size
