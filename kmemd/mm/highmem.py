"""Mappings of high memory: kmap's window and the local slots of kmap_local_page and kmap_atomic (mm/highmem.c).

On i386 a page above the direct map has no address of its own. ``kmap`` gives it one of ``LAST_PKMAP`` slots at
PKMAP_BASE (arch/x86/include/asm/pgtable_32_areas.h). A slot's count is 0 when it is free, 1 when nobody uses it any
more but a TLB may still know it, and one more than its users otherwise. Slots are looked for behind the last one; where
the search comes to the start of the window, those with a count of 1 are given back and all TLBs are flushed.
``kmap_local_page`` and ``kmap_atomic`` take the next slot of the task's own stack in the fixmap of its CPU
(include/asm-generic/kmap_size.h); they are undone in reverse order, and a task that is undone in another order
loses the mapping on top, as in Linux. On x86_64, and for low pages, all of them give the direct-map address, and
only the rules about sleeping are left.

When all slots of kmap are in use, the task that calls goes to sleep, uninterruptible (D), until ``kunmap`` frees one;
it then gets it and goes on. A command cannot sleep: it fails with EAGAIN, its task stays in D, and the mapping that it
waits for is made by the ``kunmap`` that wakes it, which tells ``Waiter.granted``. The waiters are woken all at once,
the last first, as Linux queues them, and those who find no slot queue again. A task in D does not call ``kmap``;
anybody may call ``kunmap``.

Left out: the page tables of the window (the slots are known here), the colours of other architectures' caches,
CONFIG_DEBUG_KMAP_LOCAL. A task is taken off its CPU, as far as its local slots go, when another one makes or undoes
a local mapping there.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from kmemd.core.context import Context
from kmemd.errors import KernelError
from kmemd.mm.dump_stack import DumpStack
from kmemd.mm.layout import I386, PKMAP_BASE_32, Layout
from kmemd.mm.preempt import Preempt, Thread
from kmemd.mm.sched import Task
from kmemd.mm.units import PAGE_MASK, PAGE_SHIFT

LAST_PKMAP = 1024
LAST_PKMAP_PAE = 512
KM_MAX_IDX = 16
NR_CPUS_32 = 8
FIXADDR_TOP_32 = 0xFFFF_F000
MAX_IO_APICS_32 = 64
FIX_KMAP_BEGIN_32 = 4 + MAX_IO_APICS_32
"""Behind FIX_HOLE, FIX_DBGP_BASE, FIX_EARLYCON_MEM_BASE, FIX_APIC_BASE and the IO-APICs (enum fixed_addresses)."""

MIGHT_SLEEP_KMAP = {True: "include/linux/highmem-internal.h:44", False: "include/linux/highmem-internal.h:166"}
MIGHT_SLEEP_KUNMAP = "include/linux/highmem-internal.h:55"
BUG_NOT_MAPPED, BUG_NOT_IN_USE = "mm/highmem.c:358", "mm/highmem.c:368"
BUG_OVERFLOW, BUG_UNDERFLOW = "mm/highmem.c:467", "mm/highmem.c:479"
WARN_USER_ADDRESS, WARN_ORDER = "mm/highmem.c:604", "mm/highmem.c:610"
SCHEDULE_FRAMES = ("preempt_schedule_common",)


@dataclass(frozen=True, eq=False)
class Waiter:
    """A task that sleeps until a slot of kmap's window is free. ``granted`` gets the address once it has one."""

    thread: Thread
    pfn: int
    granted: Callable[[int], None]


class Highmem:
    """The temporary mappings of one kernel.

    ``flushes`` counts the TLB flushes of the whole window, ``local_flushes`` those of one local slot, ``sleeps`` how
    often a task found no slot.

    Invariants: addresses and the slots' PFNs agree; a slot without PFN has a count of 0, one with a PFN at least 1;
    a waiter's task is in D, and waits only while no slot is free or can be flushed.
    """

    def __init__(
        self,
        layout: Layout,
        context: Context,
        preempt: Preempt,
        dump_stack: DumpStack,
        *,
        cpus: int = NR_CPUS_32,
        pae: bool = False,
    ) -> None:
        self._layout = layout
        self._context = context
        self._preempt = preempt
        self._dump_stack = dump_stack
        self.enabled = layout.arch == I386
        self._local_slots = KM_MAX_IDX * max(cpus, NR_CPUS_32)
        self.slots = (LAST_PKMAP_PAE if pae else LAST_PKMAP) if self.enabled else 0
        self.counts = np.zeros(self.slots, dtype=np.int64)
        self._pfns = np.full(self.slots, -1, dtype=np.int64)
        self._addresses: dict[int, int] = {}
        self.last_nr = 0
        self.flushes = 0
        self.local_flushes = 0
        self.sleeps = 0
        self._waiters: list[Waiter] = []
        self._on_cpu: dict[int, Thread] = {}

    # -- addresses -------------------------------------------------------------------------------------------

    def _slot_address(self, nr: int) -> int:
        return PKMAP_BASE_32 + (nr << PAGE_SHIFT)

    def _slot_of(self, address: int) -> int:
        """The slot of the window that an address lies in, -1 outside."""
        nr = (address - PKMAP_BASE_32) >> PAGE_SHIFT
        return nr if 0 <= nr < self.slots else -1

    def _local_address(self, cpu: int, index: int) -> int:
        return FIXADDR_TOP_32 - (FIX_KMAP_BEGIN_32 + index + KM_MAX_IDX * cpu << PAGE_SHIFT)

    def mapped_pages(self) -> list[int]:
        """Addresses of the pages that the window and the local slots map now."""
        local = [
            self._local_address(cpu, index)
            for cpu, thread in self._on_cpu.items()
            for index in range(len(thread.kmaps))
        ]
        return sorted([*self._addresses.values(), *local])

    def _is_local(self, address: int) -> bool:
        """Whether an address lies in the fixmap's part for local mappings."""
        first = self._local_address(0, 0)
        return self.enabled and first - (self._local_slots << PAGE_SHIFT) < address & PAGE_MASK <= first

    def page_address(self, pfn: int) -> int:
        """The address of a page now: of the direct map, of kmap's window, or 0 (``page_address``)."""
        return self._layout.page_address(pfn) or self._addresses.get(pfn, 0)

    def to_pfn(self, address: int) -> int:
        """The page that is mapped at an address of the window or of the local slots now, -1 when none is."""
        nr = self._slot_of(address)
        if nr >= 0:
            return int(self._pfns[nr])
        if self._is_local(address):
            index = (self._local_address(0, 0) - (address & PAGE_MASK)) >> PAGE_SHIFT
            thread = self._on_cpu.get(index // KM_MAX_IDX)
            if thread is not None and self._preempt.alive(thread) and index % KM_MAX_IDX < len(thread.kmaps):
                return thread.kmaps[index % KM_MAX_IDX]
        return -1

    def _is_high(self, pfn: int) -> bool:
        """``PageHighMem``. EFAULT for what is no page frame."""
        if not 0 <= pfn < self._layout.max_pfn:
            raise KernelError(errno.EFAULT, f"no page frame {pfn}")
        return pfn >= self._layout.max_low_pfn

    # -- kmap ------------------------------------------------------------------------------------------------

    def kmap(self, pfn: int, granted: Callable[[int], None] = lambda address: None) -> int:
        """The address of a page, mapped for as long as the caller likes. May sleep.

        EAGAIN when all slots are in use: the task now sleeps, and ``granted`` hears of the address when it was woken.
        EBUSY for a task that already sleeps here. EFAULT for what is no page frame.
        """
        high = self._is_high(pfn)
        thread = self._preempt.current()
        if any(waiter.thread.pid == thread.pid for waiter in self.waiters()):
            raise KernelError(errno.EBUSY, f"task {thread.pid} sleeps in kmap until a kunmap wakes it")
        self._preempt.might_sleep(MIGHT_SLEEP_KMAP[self.enabled], "kmap")
        if not high:
            return self._layout.page_address(pfn)
        address = self._kmap_high(pfn)
        if not address:
            self._sleep(Waiter(thread, pfn, granted))
        return address

    def _kmap_high(self, pfn: int) -> int:
        """Take a reference on a page's slot, a new one if it has none; 0 when all are in use."""
        address = self._addresses.get(pfn, 0) or self._map_new_virtual(pfn)
        if address:
            self.counts[self._slot_of(address)] += 1
        return address

    def _map_new_virtual(self, pfn: int) -> int:
        """The next free slot; 0 when a whole turn found none."""
        left = self.slots
        while left:
            self.last_nr = (self.last_nr + 1) & (self.slots - 1)
            if self.last_nr == 0:
                self.flush_all_zero_pkmaps()
                left = self.slots
            if not self.counts[self.last_nr]:
                break
            left -= 1
        else:
            return 0
        address = self._slot_address(self.last_nr)
        self.counts[self.last_nr] = 1
        self._pfns[self.last_nr] = pfn
        self._addresses[pfn] = address
        return address

    def flush_all_zero_pkmaps(self) -> None:
        """Unmap what nobody uses any more, and flush the window from all TLBs when there was any."""
        unused = np.flatnonzero(self.counts == 1)
        for pfn in self._pfns[unused].tolist():
            del self._addresses[pfn]
        self.counts[unused] = 0
        self._pfns[unused] = -1
        self.flushes += len(unused) > 0

    def _sleep(self, waiter: Waiter) -> NoReturn:
        """Queue a task and let it sleep, which one in an atomic section must not."""
        thread = waiter.thread
        self._preempt.schedule_thread(thread, "kmap_high")
        self._queue(waiter)
        reason = f"all {self.slots} slots of kmap are in use; task {thread.pid} sleeps (D) until a kunmap frees one"
        raise KernelError(errno.EAGAIN, reason)

    def _queue(self, waiter: Waiter) -> None:
        self.sleeps += 1
        self._waiters.insert(0, waiter)
        if waiter.thread.task is not None:
            waiter.thread.task.state = "D"

    def waiters(self) -> Sequence[Waiter]:
        """The tasks that sleep in kmap, the one that is woken first first; those that ended are dropped."""
        self._waiters = [waiter for waiter in self._waiters if self._preempt.alive(waiter.thread)]
        return self._waiters

    def kunmap(self, pfn: int) -> None:
        """Give back one reference on a page's slot; wakes those who wait when it was the last.

        EFAULT, and the kernel's report of a bug, for a page that is not mapped, or not in use.
        """
        high = self._is_high(pfn)
        if self.enabled:
            self._preempt.might_sleep(MIGHT_SLEEP_KUNMAP, "kunmap")
        if not high:
            return
        address = self._addresses.get(pfn, 0)
        if not address:
            self._bug(BUG_NOT_MAPPED, "kunmap_high", f"pfn {pfn} is not mapped by kmap")
        nr = self._slot_of(address)
        if self.counts[nr] < 2:
            self._bug(BUG_NOT_IN_USE, "kunmap_high", f"pfn {pfn} was unmapped as often as it was mapped")
        self.counts[nr] -= 1
        if self.counts[nr] == 1 and self.waiters():
            self._wake_up()

    def _wake_up(self) -> None:
        """All waiters run again, in their order; who finds no slot goes back to sleep."""
        woken, self._waiters = list(self._waiters), []
        for waiter in woken:
            if waiter.thread.task is not None:
                waiter.thread.task.state = "S"
            address = self._kmap_high(waiter.pfn)
            if address:
                waiter.granted(address)
            else:
                self._queue(waiter)

    def _bug(self, where: str, function: str, reason: str) -> NoReturn:
        self._dump_stack.bug(where, (function,))
        raise KernelError(errno.EFAULT, reason)

    # -- kmap_local_page and kmap_atomic -----------------------------------------------------------------------

    def kmap_local_page(self, pfn: int) -> int:
        """The address of a page for the task that runs, on its CPU, until it undoes it.

        EFAULT and a bug report when the task's slots are all in use; EBUSY on another CPU than its other mappings.
        """
        thread = self._enter()
        address = self._map_local(thread, pfn)
        self._preempt.keep(thread)
        return address

    def kmap_atomic(self, pfn: int) -> int:
        """``kmap_local_page`` for a task that from here on must not sleep."""
        thread = self._enter()
        address = self._map_local(thread, pfn)
        thread.atomics += 1
        self._preempt.disable(thread)
        return address

    def kunmap_local(self, address: int) -> None:
        """Undo ``kmap_local_page``. EINVAL for an address that the task did not get from it; warns out of order."""
        thread = self._enter()
        self._unmap_local(thread, address, "kunmap_local_indexed")
        self._preempt.keep(thread)

    def kunmap_atomic(self, address: int) -> None:
        """Undo ``kmap_atomic``. EINVAL for a task that is in no atomic section."""
        thread = self._enter()
        if not thread.atomics:
            raise KernelError(errno.EINVAL, f"task {thread.pid} holds no mapping of kmap_atomic")
        self._unmap_local(thread, address, "kunmap_local_indexed")
        thread.atomics -= 1
        self._preempt.enable(thread)

    def _enter(self) -> Thread:
        """The task that runs, with its own slots installed on its CPU. EBUSY when it cannot be on this one."""
        thread, cpu = self._preempt.current(), self._context.cpu
        pinned = bool(thread.preempt_count or thread.kmaps)
        if pinned and thread.cpu != cpu:
            raise KernelError(errno.EBUSY, f"task {thread.pid} holds local mappings on CPU {thread.cpu}")
        thread.cpu = cpu
        thread.comm = self._context.comm
        before = self._on_cpu.get(cpu)
        if before is not None and before is not thread and self._preempt.alive(before):
            # it was switched away from: its slots are cleared, and come back when it does (__kmap_local_sched_out)
            self._preempt.schedule_thread(before, *SCHEDULE_FRAMES)
            self.local_flushes += len(before.kmaps)
        self._on_cpu[cpu] = thread
        return thread

    def _map_local(self, thread: Thread, pfn: int) -> int:
        if not self._is_high(pfn):
            address = self._layout.page_address(pfn)
        else:
            if len(thread.kmaps) + 1 >= KM_MAX_IDX:
                reason = f"task {thread.pid} holds {len(thread.kmaps)} local mappings; there is no slot for another"
                self._bug(BUG_OVERFLOW, "__kmap_local_pfn_prot", reason)
            thread.kmaps.append(pfn)
            address = self._local_address(thread.cpu, len(thread.kmaps) - 1)
        thread.held.append(address)
        return address

    def _unmap_local(self, thread: Thread, address: int, function: str) -> None:
        page = address & PAGE_MASK
        if self._is_local(page):
            self._pop(thread, page, function)
        elif page not in thread.held:
            if self.enabled and page < self._layout.page_offset:
                self._warn_once(WARN_USER_ADDRESS, function)
            raise KernelError(errno.EINVAL, f"task {thread.pid} mapped nothing at {page:#x}")
        if page in thread.held:
            thread.held.remove(page)

    def _pop(self, thread: Thread, page: int, function: str) -> None:
        """Clear the slot on top of a task's stack, which should be the one that is named."""
        index = len(thread.kmaps) - 1
        if page != self._local_address(thread.cpu, index):
            self._warn_once(WARN_ORDER, function)
        if index < 0:
            self._bug(BUG_UNDERFLOW, function, f"task {thread.pid} has no local mapping to undo")
        thread.kmaps.pop()
        self.local_flushes += 1

    def _warn_once(self, where: str, function: str) -> None:
        self._dump_stack.warn_once(where, (function,), where=where)

    # -- looking ---------------------------------------------------------------------------------------------

    def slots_in_use(self) -> int:
        """Slots of the window that somebody uses."""
        return int((self.counts > 1).sum())

    def slots_to_flush(self) -> int:
        """Slots that nobody uses any more and that a TLB may still know."""
        return int((self.counts == 1).sum())

    def local_maps(self, thread: Thread) -> list[tuple[int, int]]:
        """A task's local mappings of high pages: address and PFN, outermost first."""
        return [(self._local_address(thread.cpu, index), pfn) for index, pfn in enumerate(thread.kmaps)]

    def blocked(self, task: Task) -> bool:
        """Whether a task sleeps in kmap."""
        return any(waiter.thread.task is task for waiter in self.waiters())

    def check(self) -> None:
        """Slots, counts and addresses agree; waiters sleep, and only while there is no slot for them."""
        assert ((self.counts == 0) == (self._pfns < 0)).all()
        assert (self.counts >= 0).all()
        mapped = {int(self._pfns[nr]): self._slot_address(nr) for nr in np.flatnonzero(self.counts).tolist()}
        assert mapped == self._addresses
        assert all(pfn >= self._layout.max_low_pfn for pfn in mapped)
        for waiter in self.waiters():
            assert waiter.thread.task is None or waiter.thread.task.state == "D", f"task {waiter.thread.pid} waits"
            assert not (self.counts < 2).any(), f"task {waiter.thread.pid} waits for a slot and there is one"
        for thread in self._preempt.threads():
            assert len(thread.kmaps) < KM_MAX_IDX, f"task {thread.pid} has too many local mappings"
            assert all(self._is_high(pfn) for pfn in thread.kmaps)
        self._preempt.check()
