"""Faults: how accesses reach pages (mm/memory.c, mm/gup.c).

Models ``handle_mm_fault`` with all that it may have to do, ``copy_page_range``, ``populate``. Private anonymous memory
is faulted in by the core's loop (core/mmu.py); everything else comes here one fault at a time. How mappings lose their
pages is in mm/zap.py. Left out: userfaultfd, hardware poison, and races: a fault sees the address space as it is.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from kmemd.core import access_stats, stats
from kmemd.core import mmu as core
from kmemd.core.context import Context
from kmemd.core.lru import MLOCK_NEW, Lru
from kmemd.core.lru_lists import IN_FAULT
from kmemd.core.mmu import Mmu
from kmemd.core.pages import PG_ANON_EXCLUSIVE, PG_LRU, PG_SWAPCACHE, PageMap
from kmemd.core.pte import ACCESSED, DIRTY, PFN_MASK, PFN_SHIFT, PRESENT, PROTNONE, RW, SOFT_DIRTY, SPECIAL
from kmemd.core.ptes import PteRanges
from kmemd.errors import KernelError
from kmemd.mm.contents import Contents
from kmemd.mm.copy_range import CopyRange
from kmemd.mm.fault_around import FaultAround
from kmemd.mm.fault_parts import Parts, Stacks, Task
from kmemd.mm.memcontrol import MemControl
from kmemd.mm.memcontrol_group import MemCgroup
from kmemd.mm.mempolicy import Mempolicy
from kmemd.mm.mm_types import (
    MM_ANONPAGES,
    MM_FILEPAGES,
    MM_SHMEMPAGES,
    VM_HUGETLB,
    VM_LOCKED,
    VM_RAND_READ,
    VM_SEQ_READ,
    VM_SHARED,
    Mm,
    Vma,
)
from kmemd.mm.page_alloc import PageAllocator
from kmemd.mm.patience import PATIENCE
from kmemd.mm.pgtable import PageTables
from kmemd.mm.rmap import Rmap
from kmemd.mm.signals import BUS_ADRERR, SEGV_ACCERR, SEGV_MAPERR, SI_KERNEL, SIGBUS, SIGKILL, SIGSEGV, Signal
from kmemd.mm.stackdepot import StackDepot
from kmemd.mm.units import PAGE_SHIFT
from kmemd.mm.user_regs import UserMode
from kmemd.mm.vma_rows import Rows, VmaRows, Vpns, prot_bits
from kmemd.mm.vmstat import VmStat
from kmemd.mm.zap import ZapPages

FAULT_FRAMES = (
    *("__folio_alloc", "vma_alloc_folio", "__handle_mm_fault", "handle_mm_fault"),
    *("exc_page_fault", "asm_exc_page_fault"),
)
SLOW_PAGES = 64
"""Pages are asked for in parts of so many by who has patience."""
FAULT_EVENTS = {"pgfault": stats.PGFAULT, "pgmajfault": stats.PGMAJFAULT, "thp_fault_alloc": stats.THP_FAULT_ALLOC}
"""What a program's faults count for its control group, too, by the name in memory.stat."""
ROOMY = 4
"""A control group that may have so many times the pages of a batch of faults has others to reclaim for them."""
CHARGE_FRAMES = ("mem_cgroup_charge.constprop.0", *FAULT_FRAMES[2:])
VDSO_PAGE, VVAR_PAGE = 1, 2
"""Pages of the kernel's data behind the shared zero page."""


class Memory:
    """User memory of all processes.

    Invariants: while a fault is handled, the table of mappings that the core has is that of the executing task.
    """

    def __init__(
        self,
        mmu: Mmu,
        ptes: PteRanges,
        lru: Lru,
        tables: PageTables,
        rmap: Rmap,
        pages: PageMap,
        page_alloc: PageAllocator,
        mempolicy: Mempolicy,
        contents: Contents,
        context: Context,
        depot: StackDepot,
        parts: Parts,
        zap: ZapPages,
        user: UserMode,
        vmstat: VmStat,
        access_ns: int,
        memcg: MemControl,
    ) -> None:
        self.mmu = mmu
        self.ptes = ptes
        self.lru = lru
        self.tables = tables
        self.rmap = rmap
        self.pages = pages
        self.page_alloc = page_alloc
        self.mempolicy = mempolicy
        self.contents = contents
        self._context = context
        self._parts = parts
        self.zap = zap
        self._user = user
        self._vmstat = vmstat
        self._access_ns = access_ns
        self._memcg = memcg
        self._at_limit = False
        self.fault_around = FaultAround(1 << mmu.bits)
        self._supplied_ns = 0
        self._site = depot.save(FAULT_FRAMES)
        self._charge_site = depot.save(CHARGE_FRAMES)
        self._task: Task | None = None
        self.rows = VmaRows(parts.huge)
        self.copy_range = CopyRange(mmu, ptes, tables, parts)
        mmu.supply = self._supply
        mmu.make_table = tables.ensure
        mmu.copied = contents.copy

    # -- access ------------------------------------------------------------------------------------------

    def access(
        self,
        task: Task,
        vpns: Vpns,
        op: int,
        stacks: Stacks | None = None,
        span: tuple[int, int] | None = None,
        *,
        patient: bool = True,
    ) -> int:
        """Read, write or execute pages one after the other. ``Signal`` for a bad access, ENOMEM. How many were done.

        That is all of them unless the caller is not ``patient``: then it may be fewer once memory is short, so that
        the caller lets others in before it goes on.

        ``stacks`` lets mappings that grow down grow; ``span`` is the range in bytes (start, length) that the
        pages are a part of, as far as the program goes.
        """
        mm = task.mm
        assert mm is not None, "kernel threads access no user memory"
        outer, self._context.site = self._context.site, self._site
        before, self._task = self._task, task
        start_ns, stalled_ns = self._context.now, self._memcg.stalled_ns
        waited_ns = self._context.waited_ns
        counted = self._memcg.of(task) if self._memcg.active else None
        faults = self._fault_counts() if counted is not None else []
        done = 0
        user = self._user.begin(mm, vpns, write=op == core.WRITE, execute=op == core.EXEC, span=span, task=task)
        self.mmu.fault_ip = self._user.ip(self._user.access) if self._user.access is not None else 0
        try:
            end = self._first_beyond(mm, vpns)
            self._supplied_ns = self._context.now
            self.page_alloc.patience = None if patient else PATIENCE
            while done < end and not self._out_of_patience:
                rows = self.rows.of(mm, vpns)
                done = self.mmu.access(mm.id, vpns[:end], done, op, rows)
                if done < end:
                    self._stopped(task, mm, int(vpns[done]), op, stacks)
            if done == end < len(vpns):
                raise self._beyond(mm, int(vpns[end]), op)
            if task.killed:
                self.out_of_memory(task)
            return done
        finally:
            self.page_alloc.patience = None
            self._user.access = user
            self._context.site = outer
            self._task = before
            if counted is not None:
                self._count_faults(counted, faults)
            slept = self._context.waited_ns - waited_ns
            self._ran(task, self._context.now - start_ns - slept, done)
            self._memcg.ran(task, self._context.now - start_ns, stalled_ns)

    def _ran(self, task: Task, ns: int, accesses: int) -> None:
        """Charge a task the time that its accesses ran: what is beyond the memory's own was the kernel's. Waits for
        devices are neither.
        """
        user = min(ns, accesses * self._access_ns)
        task.utime_ns += user
        task.stime_ns += ns - user
        self._parts.numa.ran(task, ns)

    @staticmethod
    def _first_beyond(mm: Mm, vpns: Vpns) -> int:
        """How many accesses come before one outside of user space."""
        beyond = (vpns < 0) | (vpns >= mm.task_size >> PAGE_SHIFT)
        return int(np.argmax(beyond)) if beyond.any() else len(vpns)

    def _beyond(self, mm: Mm, vpn: int, op: int) -> Signal:
        """An access to the kernel's half of the address space, or to no address of this machine at all."""
        address = vpn << PAGE_SHIFT & (1 << 64) - 1
        width = self.mmu.bits * self.mmu.levels + PAGE_SHIFT
        if width < 64 and address >> width - 1 not in (0, (1 << 65 - width) - 1) and width > 32:
            return Signal(SIGSEGV, SI_KERNEL, 0, write=op == core.WRITE, execute=op == core.EXEC)
        return Signal(SIGSEGV, SEGV_MAPERR, address, write=op == core.WRITE, execute=op == core.EXEC, present=True)

    def page_at(self, task: Task, address: int) -> int:
        """The page behind an address that was just accessed."""
        assert task.mm is not None
        slot, level = self.mmu.leaf(task.mm.id, address >> PAGE_SHIFT)
        inside = address >> PAGE_SHIFT & ((1 << self.mmu.bits * level) - 1)
        return ((int(self.mmu.words[slot]) & PFN_MASK) >> PFN_SHIFT) + int(inside)

    def _stopped(self, task: Task, mm: Mm, vpn: int, op: int, stacks: Stacks | None) -> None:
        """What the core leaves: mend it, or raise."""
        why = self.mmu.why
        address = vpn << PAGE_SHIFT
        if why == core.NO_MEMORY and self._at_limit:
            self._at_limit = False  # what was charged is mapped, so that reclaim can take it; the next page goes on
        elif why == core.NO_MEMORY:
            self.out_of_memory(task)
        elif why == core.NO_VMA:
            self._no_vma(task, mm, address, op, stacks)
        elif why == core.BAD_ACCESS:
            raise self._segv(SEGV_ACCERR, address, op, mm)
        else:
            vma = mm.find(address)
            assert vma is not None, "the core found a mapping"
            self.handle_mm_fault(task, mm, vma, vpn, op)
            self._tire(1)

    def out_of_memory(self, task: Task) -> None:
        """A fault found no page (pagefault_out_of_memory). Raises: SIGKILL for a victim, ENOMEM."""
        if task.killed:
            raise Signal(SIGKILL, SI_KERNEL, 0)
        raise KernelError(errno.ENOMEM, "no page for a fault, and nothing that could be freed")

    def _no_vma(self, task: Task, mm: Mm, address: int, op: int, stacks: Stacks | None) -> None:
        above = mm.find_vma(address)
        if stacks is None or above is None:
            raise self._segv(SEGV_MAPERR, address, op, mm)
        try:
            stacks.expand_stack(task, address)
        except KernelError:
            raise self._segv(SEGV_MAPERR, address, op, mm) from None

    def _segv(self, code: int, address: int, op: int, mm: Mm) -> Signal:
        slot, _ = self.mmu.leaf(mm.id, address >> PAGE_SHIFT)
        present = slot >= 0 and bool(int(self.mmu.words[slot]) & PRESENT)
        return Signal(SIGSEGV, code, address, write=op == core.WRITE, execute=op == core.EXEC, present=present)

    @property
    def _out_of_patience(self) -> bool:
        """Whether memory is so short that the slice is over."""
        patience = self.page_alloc.patience
        return patience is not None and patience <= 0

    def _tire(self, steps: int) -> None:
        """Something took long."""
        if self.page_alloc.patience is not None:
            self.page_alloc.patience -= steps

    def _supply(self, row: int, vpns: Vpns) -> Rows:
        """Pages for the core's faults in one mapping, in their order."""
        self._came_to(int(vpns[0]))
        self.page_alloc.may_suspend(True)
        try:
            pfns = self._some_pages(row, vpns)
        finally:
            suspended = self.page_alloc.suspended
            self.page_alloc.may_suspend(False)
            self.page_alloc.needed_over(0)
            self._supplied_ns = self._context.now
        short, task = len(vpns) - len(pfns), self._task
        again = suspended or self._out_of_patience or (len(pfns) and self._memcg.active)
        self._at_limit = bool(short and again and task is not None and not task.killed)
        if self._at_limit and task is not None and task.mm is not None:
            # the core takes these faults back, and has them again
            self._vmstat.events[stats.PGFAULT] -= short
            self.mmu.faults_of[task.mm.id] -= short
        return pfns

    def _some_pages(self, row: int, vpns: Vpns) -> Rows:
        """``_user_pages`` in parts, as long as the caller has patience. The faults were one after the other."""
        vma, done, slow = self.rows.vmas[row], 0, self.page_alloc.slow_paths
        spent = self._context.now - self._supplied_ns
        part = len(vpns) if self.page_alloc.patience is None else SLOW_PAGES
        parts: list[Rows] = []
        while done < len(vpns) and not (done and self._out_of_patience):
            wanted = vpns[done : done + part]
            left = len(vpns) - done - len(wanted)
            self.page_alloc.needed_over(spent * len(wanted) // len(vpns), spent * left // len(vpns))
            parts.append(self._user_pages(vma, self._task, wanted))
            done += len(parts[-1])
            self._tire(self.page_alloc.slow_paths - slow)
            slow = self.page_alloc.slow_paths
            if len(parts[-1]) < len(wanted):
                break
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def _user_pages(self, vma: Vma, task: Task | None, vpns: Vpns) -> Rows:
        """Pages by policy, charged to the task's control group; fewer when either has no more."""
        memcg = self._memcg.of(task) if self._memcg.active else None
        if memcg is None:
            return self.mempolicy.alloc_bulk(vma, task, vpns)

        def get(granted: int) -> Rows:
            self._context.site = outer
            return self.mempolicy.alloc_bulk(vma, task, vpns[:granted])

        outer, self._context.site = self._context.site, self._charge_site
        try:
            return self._memcg.alloc(memcg, len(vpns), get, exact=memcg.limit >= ROOMY * len(vpns))
        finally:
            self._context.site = outer

    def _fault_counts(self) -> list[int]:
        return [int(self._vmstat.events[item]) for item in FAULT_EVENTS.values()]

    def _count_faults(self, memcg: MemCgroup, before: list[int]) -> None:
        """The faults of a program are its control group's (``count_memcg_event_mm``)."""
        for name, count, was in zip(FAULT_EVENTS, self._fault_counts(), before, strict=True):
            memcg.counts[name] += count - was

    def _came_to(self, vpn: int) -> None:
        """The program is at this page, for reports to say so."""
        if self._user.access is not None:
            self._user.access.come_to(vpn)

    # -- faults on swap, for mm/swap_fault.py -------------------------------------------------------------

    @property
    def task(self) -> Task | None:
        """Who accesses memory now."""
        return self._task

    def executing(self, row: int) -> tuple[Mm, Vma]:
        """The address space that is accessed, and the mapping in a row of its table."""
        assert self._task is not None, "somebody accesses memory"
        assert self._task.mm is not None, "somebody accesses memory"
        return self._task.mm, self.rows.vmas[row]

    def go_on(self, vpn: int, *, tired: bool) -> bool:
        """The program comes to a page that takes long; whether the slice is not over."""
        if self._task is None or self._task.killed or self._out_of_patience:
            return False
        self._came_to(vpn)
        self._tire(tired)
        return True

    # -- one fault ---------------------------------------------------------------------------------------

    def handle_mm_fault(self, task: Task, mm: Mm, vma: Vma, vpn: int, op: int) -> None:
        """One fault that the access rights of the mapping allow. ENOMEM, ``Signal``."""
        self._came_to(vpn)
        write = op == core.WRITE
        if vma.flags & VM_HUGETLB:
            self.count_step(mm, access_stats.HUGETLB_FAULTS)
            self._parts.hugetlb.fault(task, mm, vma, vpn, write)
            return
        slot, level = self.mmu.leaf(mm.id, vpn)
        if slot < 0 and self._parts.huge.eligible(mm, vma) and self._huge_fault(task, mm, vma, vpn, write):
            return
        if slot >= 0 and level:
            entry = int(self.mmu.words[slot])
            if not entry & PRESENT and entry & PROTNONE:
                self.count_step(mm, access_stats.HINT_FAULTS)
                self._parts.numa.numa_fault(task, mm, vma, vpn)
                return
            self.count_step(mm, access_stats.HUGE_FAULTS)
            if not self._parts.huge.wp_fault(task, mm, vma, vpn):
                self._parts.huge.split_range(mm, vpn, vpn + 1)
            return
        with self.lru_fault(vma):
            self.handle_pte_fault(task, mm, vma, vpn, write)

    @contextmanager
    def lru_fault(self, vma: Vma) -> Iterator[None]:
        """What comes to the LRU lists is in use, unless the mapping is read once, from one end to the other, or at
        random (``lru_gen_enter_fault``)."""
        words = self.lru.words
        words[IN_FAULT] = not vma.flags & (VM_SEQ_READ | VM_RAND_READ)
        try:
            yield
        finally:
            words[IN_FAULT] = 0

    def _huge_fault(self, task: Task, mm: Mm, vma: Vma, vpn: int, write: bool) -> bool:
        size = 1 << self.mmu.bits
        if vpn & -size < vma.vpn or (vpn & -size) + size > vma.end >> PAGE_SHIFT:
            return False
        if not self._parts.huge.fault(task, mm, vma, vpn, write):
            return False
        self.count_step(mm, access_stats.HUGE_FAULTS)
        return True

    def count_step(self, mm: Mm, step: int) -> None:
        """A fault, and what it has to do: a step of the translation path."""
        self.mmu.count_fault(mm.id)
        self.mmu.stats[step] += 1

    def handle_pte_fault(self, task: Task, mm: Mm, vma: Vma, vpn: int, write: bool) -> None:
        """A fault on a small page (handle_pte_fault)."""
        slot = self.tables.ensure(mm.id, vpn)
        entry = int(self.mmu.words[slot])
        if not entry and vma.is_anon:
            self.rmap.prepare(mm, vma)  # the core does the rest when the access is tried again
            return
        if not entry:
            self._missing_page(task, mm, vma, vpn, slot, write)
        elif not entry & (PRESENT | PROTNONE):
            self.count_step(mm, access_stats.SWAP_FAULTS)
            with self._major(access_stats.SWAP_CACHE_HITS, access_stats.SWAP_READS):
                self._parts.swap.do_swap_page(self, task, mm, vma, vpn, entry, write)
        elif not entry & PRESENT:
            self.count_step(mm, access_stats.HINT_FAULTS)
            self._parts.numa.numa_fault(task, mm, vma, vpn)
        else:
            self.mmu.count_fault(mm.id)
            if write and not entry & RW:
                self.do_wp_page(task, mm, vma, vpn)

    def _missing_page(self, task: Task, mm: Mm, vma: Vma, vpn: int, slot: int, write: bool) -> None:
        """An empty entry of memory that is not anonymous (do_fault)."""
        if vma.file is None:
            self.mmu.count_fault(mm.id)
            self._special_fault(mm, vma, vpn, slot)
            return
        self.count_step(mm, access_stats.FILE_FAULTS)
        with self._major(access_stats.CACHE_HITS, access_stats.DISK_READS):
            vma.file.fault(self, task, mm, vma, vpn, write)

    @contextmanager
    def _major(self, hit: int, read: int) -> Iterator[None]:
        """Count whether a fault found its page in memory, or had it read."""
        before = int(self._vmstat.events[stats.PGMAJFAULT])
        yield
        self.mmu.stats[read if int(self._vmstat.events[stats.PGMAJFAULT]) > before else hit] += 1

    def _special_fault(self, mm: Mm, vma: Vma, vpn: int, slot: int) -> None:
        """[vdso] is a page of the kernel's image that counts as a file's, [vvar] one that is not counted
        (special_mapping_fault, vvar_fault). Other mappings of page frames have their entries from the start: SIGBUS."""
        bits = prot_bits(vma.flags, cow=True) | ACCESSED
        if vma.name == "[vdso]":
            pfn = self.mmu.zero_pfn + VDSO_PAGE
            self.rmap.add_file(pfn)
            self.mmu.rss_task[mm.id * 4 + MM_FILEPAGES] += 1
            self.mmu.words[slot] = np.uint64(pfn << PFN_SHIFT | bits)
        elif vma.name == "[vvar]":
            self.mmu.words[slot] = np.uint64(self.mmu.zero_pfn + VVAR_PAGE << PFN_SHIFT | bits | SPECIAL)
        else:
            raise Signal(SIGBUS, BUS_ADRERR, vpn << PAGE_SHIFT)

    def do_wp_page(self, task: Task, mm: Mm, vma: Vma, vpn: int) -> None:
        """A write to a page that is mapped read-only (do_wp_page). ENOMEM."""
        slot = self.mmu.slot(mm.id, vpn)
        entry = int(self.mmu.words[slot])
        pfn = (entry & PFN_MASK) >> PFN_SHIFT
        if vma.flags & VM_SHARED:
            if vma.file is not None and not entry & SPECIAL:
                vma.file.page_mkwrite(pfn)
            self._make_writable(mm, vpn, slot)
            return
        self.rmap.prepare(mm, vma)
        if not entry & SPECIAL and self.may_reuse(pfn):
            self.pages.flags[pfn] |= np.uint32(1 << PG_ANON_EXCLUSIVE)
            self._make_writable(mm, vpn, slot)
            self.mmu.stats[access_stats.REUSES] += 1
            return
        self.copy_page(task, mm, vma, vpn, slot, None if entry & SPECIAL else pfn)

    def may_reuse(self, pfn: int) -> bool:
        """Whether nobody else has an anonymous page, so that its only mapper may write to it."""
        if self.pages.mapping[self.rmap.head(pfn)] <= 0:
            return False
        flags = int(self.pages.flags[pfn])
        if flags >> PG_ANON_EXCLUSIVE & 1:
            return True
        if not flags >> PG_LRU & 1:
            self.lru.drain_local()  # a batch holds a reference
        if self.pages.kind[pfn] == 0 or self.pages.order[pfn]:
            return False  # the whole huge page is referenced
        if int(self.pages.mapcount[pfn]) != 1:
            return False
        return not flags >> PG_SWAPCACHE & 1 or bool(self._parts.swap.free_swap(np.array([pfn], dtype=np.int64))[0])

    def _make_writable(self, mm: Mm, vpn: int, slot: int) -> None:
        """The page that is mapped takes writes from now on (wp_page_reuse)."""
        self._vmstat.count(stats.PGREUSE)
        self.mmu.words[slot] |= np.uint64(RW | DIRTY | ACCESSED | SOFT_DIRTY)
        self.mmu.flush_range(mm.id, vpn, vpn + 1)

    def copy_page(self, task: Task, mm: Mm, vma: Vma, vpn: int, slot: int, old: int | None) -> None:
        """A private copy of a page, None for zeros, in place of what is mapped (wp_page_copy). ENOMEM."""
        with self._parts.files.pin([] if old is None else [old]):
            new = self.new_page(task, vma, vpn)
        if old is not None:
            self.contents.copy(old, new)
        self.mmu.flush_range(mm.id, vpn, vpn + 1)
        if old is not None:
            self.unmap_page(mm, vma, old)
        self.mmu.words[slot] = 0
        self.map_anon(mm, vma, vpn, new)
        self.mmu.stats[access_stats.COPIES] += 1

    def unmap_page(self, mm: Mm, vma: Vma, pfn: int) -> None:
        """Count a page out of an address space whose entry is about to go."""
        self.mmu.rss_task[mm.id * 4 + self.counter_of(pfn)] -= 1
        self.rmap.remove(pfn)
        head = self.rmap.head(pfn)
        if self.pages.order[head] and self.pages.mapping[head] > 0:
            self._parts.huge.unmapped_parts(np.array([head], dtype=np.int64))

    def counter_of(self, pfn: int) -> int:
        """Which RSS counter a page is in (mm_counter)."""
        if self.pages.mapping[self.rmap.head(pfn)] > 0:
            return MM_ANONPAGES
        file = self.rmap.file_of(pfn)
        return MM_SHMEMPAGES if file is not None and file.is_shmem else MM_FILEPAGES

    def new_page(self, task: Task | None, vma: Vma, vpn: int) -> int:
        """A page for a fault by the policy of task and mapping. ENOMEM, or SIGKILL for a victim of the OOM killer."""
        pfns = self._user_pages(vma, task, np.array([vpn], dtype=np.int64))
        if not len(pfns) and task is not None:
            self.out_of_memory(task)
        return int(pfns[0])

    def map_anon(self, mm: Mm, vma: Vma, vpn: int, pfn: int) -> None:
        """Map a new anonymous page, writable and dirty when the mapping lets it."""
        self.rmap.prepare(mm, vma)
        self.rmap.add_anon(pfn, vma, vpn)
        self._to_lru(vma, pfn)
        slot = self.tables.ensure(mm.id, vpn)
        self.mmu.words[slot] = np.uint64(
            pfn << PFN_SHIFT | prot_bits(vma.flags, cow=False) | ACCESSED | DIRTY | SOFT_DIRTY
        )
        self.mmu.rss_task[mm.id * 4 + MM_ANONPAGES] += 1

    def _to_lru(self, vma: Vma, pfn: int) -> None:
        """lru_cache_add_inactive_or_unevictable."""
        if vma.flags & VM_LOCKED:
            self.lru.mlock(np.array([pfn], dtype=np.int64), MLOCK_NEW)
        else:
            self.lru.add(pfn)

    # -- for who changes mappings -------------------------------------------------------------------------

    def split_huge(self, mm: Mm, address: int) -> None:
        """Make small entries of a huge one that ``address`` lies inside of."""
        self._parts.huge.split_range(mm, address >> PAGE_SHIFT, address >> PAGE_SHIFT)

    def prepare_anon(self, mm: Mm, vma: Vma) -> None:
        """The mapping gets an anon_vma when it has none (anon_vma_prepare)."""
        self.rmap.prepare(mm, vma)


POPULATE_PAGES = 1 << 13
