"""The memory controller: charging pages to control groups and taking charges back (mm/memcontrol.c).

Models: page counters in a tree, charges in batches of 64 that a CPU keeps in stock, reclaim of a group at its limit
with its retries, the delay above memory.high, protection by min and low, the group's own OOM killer, swap charged by
slot, kernel memory (memcontrol_kmem.py), groups that were removed and still have pages. A page's group is in
``PageMap.memcg``, minus the number of an object group for a page of the kernel's. The root is charged nothing, as in
Linux, and costs nothing. Left out: moving charges with a task (version 1), the delayed flushing of statistics.

Invariants: ``pages`` of a group are the sizes of all blocks whose ``memcg`` is its number; its counter is the sum of
``pages``, ``kmem`` and stocks of the group and all below it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from kmemd.core.context import Context
from kmemd.core.pages import SECTION_SHIFT, PageMap
from kmemd.errors import KernelError
from kmemd.mm import gfp as g
from kmemd.mm.cgroup import Cgroup
from kmemd.mm.clock import HZ, NSEC_PER_SEC
from kmemd.mm.memcontrol_group import HIGH, MAX, OOM, SWAP_FAIL, SWAP_HIGH, SWAP_MAX, MemCgroup
from kmemd.mm.memcontrol_kmem import KernelMemory
from kmemd.mm.memcontrol_stock import MEMCG_CHARGE_BATCH, Stock
from kmemd.mm.memcontrol_tree import MemcgTree
from kmemd.mm.mmzone import Zone
from kmemd.mm.page_counter import PageCounter
from kmemd.mm.psi import Psi
from kmemd.mm.sched import Task
from kmemd.steps import Steps

PFNs = npt.NDArray[np.int64]
MAX_RECLAIM_RETRIES = 16
SWAP_CLUSTER_MAX = 32
COSTLY_PAGES = 1 << 3
MEM_CGROUP_ID_MAX = 32767
MEMCG_MAX_HIGH_DELAY_JIFFIES = 2 * HZ
MEMCG_DELAY_PRECISION_SHIFT = 20
MEMCG_DELAY_SCALING_SHIFT = 14


class OomKiller(Protocol):
    """The OOM killer, bounded by a group."""

    def mem_cgroup_out_of_memory(self, memcg: MemCgroup, gfp: int, order: int) -> bool: ...


class MemControl(MemcgTree):
    """All memory cgroups by number; 0 is the root.

    ``changes`` counts charges that came or went. ``reclaim(memcg, pages, gfp, may_swap)`` frees pages of a group,
    ``reclaim_steps(memcg, pages, gfp)`` with points where others may run; ``oom`` is the OOM killer;
    ``released(cgroup)`` hears that the last charge of a removed group is gone, ``forget(number)`` that
    its number is free.
    """

    def __init__(
        self,
        pages: PageMap,
        zones: list[Zone],
        page_offset: int,
        context: Context,
        current: Callable[[], Task | None],
        psi: Psi,
        cpus: int,
        reclaim: Callable[[MemCgroup, int, int, bool], int],
        reclaim_steps: Callable[[MemCgroup, int, int], Steps[int]],
        oom: OomKiller,
        released: Callable[[Cgroup | None], None],
        forget: Callable[[int], None],
        *,
        pointer: int = 8,
        kmem: bool = True,
    ) -> None:
        """``kmem``: the kernel's memory is charged, too; ``pointer`` is the size of one."""
        super().__init__()
        self._pages, self._context, self._current, self._psi = pages, context, current, psi
        self._reclaim_steps = reclaim_steps
        self._reclaim, self._oom, self._released = reclaim, oom, released
        self.stock = Stock(context, cpus)
        self.kernel = KernelMemory(
            pages,
            zones,
            page_offset,
            self.stock,
            self._try_charge,
            self._kernel_group,
            self._number_free,
            pointer=pointer,
            cpus=cpus,
            enabled=kmem,
        )
        self._memcg, self._sections = pages.memcg, pages.charged_sections
        self._forget = forget
        self._free_ids: list[int] = []
        self.charged = 0
        self.changes = 0
        self._reclaiming = False
        self._over_high = 0

    # -- groups ------------------------------------------------------------------------------------------

    def css_alloc(self, cgroup: Cgroup, parent: MemCgroup | None) -> MemCgroup:
        """A memory cgroup for a directory. ENOSPC when all numbers are taken, ENOMEM."""
        if not self._free_ids and len(self.groups) > MEM_CGROUP_ID_MAX:
            raise KernelError(errno.ENOSPC, f"there are {MEM_CGROUP_ID_MAX} memory cgroups")
        percpu = self.kernel.charge_percpu(parent)
        number = self._free_ids[-1] if self._free_ids else len(self.groups)
        try:
            self.kernel.alloc_percpu(number)
        except KernelError:
            self.kernel.uncharge_percpu(percpu)
            raise
        if self._free_ids:
            self._free_ids.pop()
        memcg = MemCgroup(number, cgroup, parent, self.kernel.nodes)
        memcg.percpu_of = percpu
        if number == len(self.groups):
            self.groups.append(memcg)
        else:
            self.groups[number] = memcg
        self.kernel.online(memcg)
        if parent is not None:
            self._forget(number)
            parent.children[number] = memcg
            self.active = True
        return memcg

    def css_offline(self, memcg: MemCgroup) -> None:
        """The directory is gone: limits and protection too; the group goes when its last page does."""
        memcg.online = False
        memcg.memory.set_protection("min", 0)
        memcg.memory.set_protection("low", 0)
        self.stock.drain(memcg)
        self.kernel.offline(memcg)
        self._release_if_unused(memcg)

    def _release_if_unused(self, memcg: MemCgroup) -> None:
        """An offline group without charges and children is no more; its counts are its parent's."""
        parent = memcg.parent
        if memcg.online or memcg.pages or memcg.swapped or memcg.children or parent is None:
            return
        self.stock.drain(memcg)
        for name, count in memcg.counts.items():
            parent.counts[name] += count
        del parent.children[memcg.id]
        self.groups[memcg.id] = None
        self.kernel.freed(memcg)
        self._number_free(memcg.id)
        self._released(memcg.cgroup.parent)
        self._release_if_unused(parent)

    def _number_free(self, number: int) -> None:
        """A group or an object group is gone: its number is free when both are."""
        if self.groups[number] is None and not self.kernel.in_use(number):
            self._free_ids.append(number)
            self._forget(number)

    @property
    def now(self) -> int:
        """The model's time, ns."""
        return self._context.now

    def of(self, task: Any) -> MemCgroup | None:
        """The group that a task's memory is charged to; None for the root."""
        cgroup = task.cgroup if task is not None else None
        if cgroup is None:
            return None
        found: MemCgroup = cgroup.memcg
        return found if found is not None and found.id else None

    def current(self) -> MemCgroup | None:
        """The group of the executing task; None for the root."""
        return self.of(self._current()) if self.active else None

    def _kernel_group(self) -> MemCgroup | None:
        """Who is charged for the kernel's memory; None for the root and for kernel threads (``memcg_kmem_bypass``)."""
        task = self._current() if self.active else None
        return None if task is None or task.is_kthread else self.of(task)

    def of_number(self, number: int) -> MemCgroup:
        """The group that ``PageMap.memcg`` names."""
        return self.kernel.owner(-number) if number < 0 else self.by_id(number)

    def page_group(self, pfn: int) -> MemCgroup:
        """The group that a page is charged to."""
        return self.of_number(int(self._memcg[pfn]))

    def online_ino(self, number: int) -> int:
        """The inode of a page's group, or of the nearest one above it that was not removed (``page_cgroup_ino``)."""
        memcg = self.of_number(number)
        while not memcg.online and memcg.parent is not None:
            memcg = memcg.parent
        return memcg.cgroup.ino

    def page_name(self, pfn: int) -> str:
        """The name of the group that a page is charged to, as page_owner shows it."""
        if not self.active:
            return "memcg /"
        memcg = self.page_group(pfn)
        return f"{'' if memcg.online else 'offline '}memcg {memcg.cgroup.name or '/'}"

    # -- charging ----------------------------------------------------------------------------------------

    def charge(self, memcg: MemCgroup, n: int, gfp: int = g.GFP_KERNEL, *, exact: bool = False) -> int:
        """Charge ``n`` small pages one after the other; how many could be.

        The first one is fought for: reclaim, retries, the OOM killer. The others are charged as far as they fit, or
        with ``exact`` fought for as well.
        """
        got = self._charge_freely(memcg, n)
        while got < n:
            taken = self.stock.take(memcg, n - got)
            if taken:
                got += taken
            elif (got and not exact and not memcg.memory.margin()) or not self._try_charge(memcg, gfp, 1):
                break
            else:
                got += 1
        return got

    def _charge_freely(self, memcg: MemCgroup, n: int) -> int:
        """The pages out of stock and in whole batches as far as no limit and no high mark is near: all or none.

        What is charged and in stock afterwards is the same as page by page.
        """
        cpu = self._context.cpu
        cached, have = self.stock.pages[cpu]
        if cached is not memcg:
            have = 0
        missing = n - have
        if missing <= 0:
            self.stock.pages[cpu] = (memcg, -missing)
            return n
        pages = -(-missing // MEMCG_CHARGE_BATCH) * MEMCG_CHARGE_BATCH
        if memcg.memory.room() < pages or memcg.swap_is_high:
            return 0
        memcg.memory.charge(pages)
        if cached is not memcg:
            self.stock.refill(memcg, pages - missing)
        else:
            self.stock.pages[cpu] = (memcg, pages - missing)
        return n

    def _try_charge(self, memcg: MemCgroup, gfp: int, pages: int) -> bool:
        """``try_charge_memcg`` of one block that the stock has not got."""
        batch = max(MEMCG_CHARGE_BATCH, pages)
        over = memcg.memory.try_charge(batch)
        if over is not None and batch > pages:
            batch = pages
            over = memcg.memory.try_charge(batch)
        if over is not None:
            return self._make_room(memcg, over, gfp, pages)
        self._charged(memcg, batch, pages, gfp)
        return True

    def _charged(self, memcg: MemCgroup, batch: int, pages: int, gfp: int) -> None:
        """A charge went through: the rest of the batch is for the stock; is the group above its high mark?"""
        if batch > pages:
            self.stock.refill(memcg, batch - pages)
        for group in memcg.upwards():
            if group.memory.usage > group.memory.high or group.swap.usage > group.swap.high:
                self._over_high += batch
                break
        if self._over_high and gfp & g.F.DIRECT_RECLAIM and not self._reclaiming:
            self._handle_over_high(memcg)

    def _group_of(self, memcg: MemCgroup, counter: PageCounter) -> MemCgroup:
        """The group whose counter it is."""
        return next(group for group in memcg.upwards() if group.memory is counter or group.swap is counter)

    def _make_room(self, memcg: MemCgroup, over: PageCounter, gfp: int, pages: int) -> bool:
        """A limit is in the way: reclaim until the charge fits or nothing helps."""
        retries, drained, passed_oom, raised = MAX_RECLAIM_RETRIES, False, False, False
        limited = self._group_of(memcg, over)
        while not self._reclaiming and gfp & g.F.DIRECT_RECLAIM:
            limited.event(MAX)
            raised = True
            freed = self.try_to_free(limited, pages, gfp)
            if limited.memory.margin() < pages:
                if not drained:
                    self.stock.drain(limited)
                    drained = True
                elif gfp & g.F.NORETRY:
                    break
                elif not (freed and pages <= COSTLY_PAGES):
                    retries -= 1
                    if retries < 0:
                        if gfp & g.F.RETRY_MAYFAIL or (passed_oom and self.is_dying()):
                            break
                        if not self._out_of_memory(limited, gfp, pages):
                            break
                        passed_oom, retries = True, MAX_RECLAIM_RETRIES
            if self.stock.take_all(memcg, pages):
                return True
            found = memcg.memory.try_charge(pages)
            if found is None:
                self._charged(memcg, pages, pages, gfp)
                return True
            limited = self._group_of(memcg, found)
        return self._force(memcg, limited, gfp, pages, raised=raised)

    def _force(self, memcg: MemCgroup, limited: MemCgroup, gfp: int, pages: int, *, raised: bool) -> bool:
        """Charge over the limit who frees memory or must not fail; nobody else."""
        if not self._reclaiming and not gfp & (g.F.NOFAIL | g.F.HIGH):
            return False
        if not raised:
            limited.event(MAX)
        memcg.memory.charge(pages)
        return True

    def is_dying(self) -> bool:
        """Whether the executing task has a fatal signal."""
        task = self._current()
        return task is not None and bool(task.killed)

    def _out_of_memory(self, limited: MemCgroup, gfp: int, pages: int) -> bool:
        """Nothing could be reclaimed: kill one of the group (``mem_cgroup_oom``). Whether to go on."""
        order = max(0, (pages - 1).bit_length())
        if 1 << order > COSTLY_PAGES:
            return False
        limited.event(OOM)
        return self.out_of_memory(limited, gfp, order)

    def out_of_memory(self, memcg: MemCgroup, gfp: int, order: int = 0) -> bool:
        """``mem_cgroup_out_of_memory``: whether there is room, or somebody was killed."""
        if memcg.memory.margin() >= 1 << order or self.is_dying():
            return True
        return self._oom.mem_cgroup_out_of_memory(memcg, gfp, order)

    # -- reclaim -----------------------------------------------------------------------------------------

    def try_to_free(self, memcg: MemCgroup, pages: int, gfp: int, *, may_swap: bool = True) -> int:
        """Free pages of a group, a memory stall of the task that waits for it."""
        if self._reclaiming:
            return 0
        start, self._reclaiming = self._context.now, True
        try:
            freed = self._reclaim(memcg, max(pages, SWAP_CLUSTER_MAX), gfp, may_swap)
        finally:
            self._reclaiming = False
        self.stalled(self._context.now - start)
        return freed

    def try_to_free_steps(self, memcg: MemCgroup, pages: int, gfp: int) -> Steps[int]:
        """``try_to_free`` with points where others may run."""
        steps = self._reclaim_steps(memcg, max(pages, SWAP_CLUSTER_MAX), gfp)
        while True:
            start, self._reclaiming = self._context.now, True
            try:
                next(steps)
            except StopIteration as stop:
                return int(stop.value)
            finally:
                self._reclaiming = False
                self.stalled(self._context.now - start)
            yield

    def stalled(self, ns: int) -> None:
        """The executing task has waited so long for memory (``psi_memstall_leave``)."""
        self._psi.memstall(self._current(), ns)

    @property
    def stalled_ns(self) -> int:
        """How long all tasks together have waited, by their own account."""
        return self._psi.told_ns

    def ran(self, task: Any, ns: int, stalled_ns: int) -> None:
        """A task took ``ns``, since when it was told that tasks had waited ``stalled_ns``."""
        self._psi.ran(task, ns - (self._psi.told_ns - stalled_ns))
        memcg = self.of(task) if self._over_high else None
        if memcg is not None:
            self._resume_user_mode(memcg)

    def _handle_over_high(self, memcg: MemCgroup) -> None:
        """Reclaim what is above memory.high, and slow down who goes on charging (``mem_cgroup_handle_over_high``)."""
        pages, self._over_high = self._over_high, 0
        retries, goal = MAX_RECLAIM_RETRIES, pages
        while True:
            freed = self._reclaim_high(memcg, goal)
            delay = min(self._delay(memcg, pages), MEMCG_MAX_HIGH_DELAY_JIFFIES)
            if delay <= HZ // 100:
                return
            if not freed:
                retries -= 1
            if not freed and retries < 0:
                break
            goal = SWAP_CLUSTER_MAX
        start = self._context.now
        self._context.wait(delay * NSEC_PER_SEC // HZ)
        self.stalled(self._context.now - start)

    def _reclaim_high(self, memcg: MemCgroup, pages: int) -> int:
        freed = 0
        for group in memcg.upwards():
            if group.memory.usage > group.memory.high:
                group.event(HIGH)
                freed += self.try_to_free(group, pages, g.GFP_KERNEL)
        return freed

    def _delay(self, memcg: MemCgroup, pages: int) -> int:
        """Jiffies that a charge of ``pages`` costs, by how far memory and swap are above high."""
        memory = max(_overage(group.memory) for group in memcg.upwards())
        swap = [(group, _overage(group.swap)) for group in memcg.upwards()]
        for group, overage in swap:
            if overage:
                group.event(SWAP_HIGH)
        return _high_delay(pages, memory) + _high_delay(pages, max(overage for _, overage in swap))

    # -- pages of users ----------------------------------------------------------------------------------

    def alloc(self, memcg: MemCgroup, n: int, get: Callable[[int], PFNs], *, exact: bool = False) -> PFNs:
        """Pages that ``get`` allocates, charged to a group; fewer when either has no more."""
        granted = self.charge(memcg, n, exact=exact)
        pfns = get(granted) if granted else np.empty(0, dtype=np.int64)
        self._cancel(memcg, granted - len(pfns))
        self._commit(memcg, pfns, 1)
        return pfns

    def _cancel(self, memcg: MemCgroup, pages: int) -> None:
        if pages:
            memcg.memory.uncharge(pages)

    def _commit(self, memcg: MemCgroup, pfns: PFNs, size: int) -> None:
        """Charged blocks belong to the group."""
        self._memcg[pfns] = memcg.id
        self._sections[pfns >> SECTION_SHIFT] = True
        self.changes += 1
        memcg.pages += size * len(pfns)
        self.charged += size * len(pfns)

    def room(self, memcg: MemCgroup) -> int:
        """Pages that may be charged one after the other before anything is reclaimed for them."""
        if any(group.swap.usage > group.swap.high for group in memcg.upwards()):
            return 0
        below_high = min(counter.high - counter.usage for counter in memcg.memory.upwards())
        return max(0, min(memcg.memory.margin(), below_high - MEMCG_CHARGE_BATCH))

    def charge_block(self, memcg: MemCgroup, pfn: int, order: int, gfp: int) -> bool:
        """Charge a block that was allocated, a huge page; whether it could be."""
        pages = 1 << order
        if not self.stock.take_all(memcg, pages) and not self._try_charge(memcg, gfp, pages):
            return False
        self._commit(memcg, np.array([pfn], dtype=np.int64), pages)
        self._resume_user_mode(memcg)
        return True

    def _resume_user_mode(self, memcg: MemCgroup) -> None:
        """A task goes back to its program: what it charged above a high mark and could not wait for is settled now
        (``resume_user_mode_work``)."""
        if self._over_high and not self._reclaiming:
            self._handle_over_high(memcg)

    def move(self, src: int, dst: int, order: int) -> None:
        """A page's charge goes to the page that takes its place (``mem_cgroup_migrate``)."""
        self.changes += 1
        self._sections[dst >> SECTION_SHIFT] = True
        self._memcg[dst : dst + (1 << order)] = self._memcg[src]
        self._memcg[src : src + (1 << order)] = 0

    def uncharge(self, pfns: PFNs, order: int) -> None:
        """Blocks are about to be freed."""
        if not self.charged:
            return
        numbers = self._memcg[pfns]
        if not numbers.any():
            return
        self.changes += 1
        for number in np.unique(numbers[numbers != 0]).tolist():
            blocks = int((numbers == number).sum())
            self.charged -= blocks << order
            if number < 0:
                self.kernel.uncharge_blocks(-number, blocks, order)
                continue
            memcg = self.by_id(number)
            memcg.pages -= blocks << order
            memcg.memory.uncharge(blocks << order)
            self._release_if_unused(memcg)
        if order:
            for pfn in pfns[numbers != 0].tolist():
                self._memcg[pfn : pfn + (1 << order)] = 0  # tails, too, know their group after migration
        self._memcg[pfns] = 0

    # -- kernel memory -----------------------------------------------------------------------------------

    def charge_kmem(self, pfns: PFNs, order: int, gfp: int) -> int:
        """Charge blocks of the kernel's to the executing task's group; how many could be."""
        done = self.kernel.charge_blocks(pfns, order, gfp)
        if done and self._memcg[pfns[0]]:
            self._sections[pfns[:done] >> SECTION_SHIFT] = True
            self.changes += 1
            self.charged += done << order
        return done

    # -- swap --------------------------------------------------------------------------------------------

    def may_swap(self, pfns: PFNs) -> npt.NDArray[np.bool_]:
        """Which pages' groups let them be swapped out; those above a limit count a failure each."""
        allowed = np.ones(len(pfns), dtype=bool)
        if not self.charged:
            return allowed
        numbers = self._memcg[pfns]
        for number in np.unique(numbers[numbers > 0]).tolist():
            memcg = self.by_id(number)
            where = np.flatnonzero(numbers == number)
            room = memcg.swap.margin()
            for at in where[room:].tolist():
                allowed[at] = False
                memcg.event(SWAP_MAX)
                memcg.event(SWAP_FAIL)
        return allowed

    def may_swap_huge(self, head: int, pages: int) -> bool:
        """Whether the group of a huge page lets it be swapped out whole (``mem_cgroup_try_charge_swap``)."""
        number = int(self._memcg[head]) if self.charged else 0
        memcg = self.by_id(number) if number > 0 else None
        if memcg is None or memcg.swap.margin() >= pages:
            return True
        memcg.event(SWAP_MAX)
        memcg.event(SWAP_FAIL)
        return False

    def swap_slots(self, memcg: npt.NDArray[np.int16], offsets: PFNs, pfns: PFNs) -> None:
        """Pages got slots of an area, whose groups are recorded (``swap_cgroup_record``)."""
        numbers = self._memcg[pfns]
        for number in np.unique(numbers[numbers > 0]).tolist() if self.charged else ():
            mine = offsets[numbers == number]
            mine = mine[memcg[mine] == 0]
            group = self.by_id(number)
            group.swap.charge(len(mine))
            group.swapped += len(mine)
            memcg[mine] = number

    def free_slots(self, memcg: npt.NDArray[np.int16], offsets: PFNs) -> None:
        """Slots of an area are free (``mem_cgroup_uncharge_swap``)."""
        if not self.active:
            return
        numbers = memcg[offsets]
        for number in np.unique(numbers[numbers > 0]).tolist():
            group = self.by_id(number)
            slots = int((numbers == number).sum())
            group.swap.uncharge(slots)
            group.swapped -= slots
            self._release_if_unused(group)
        memcg[offsets] = 0

    def charge_swapin(self, numbers: npt.NDArray[np.int16], pfns: PFNs) -> int:
        """Charge new pages to the groups of the slots that they are read from; how many could be, in order."""
        done = 0
        for number, pfn in zip(numbers.tolist(), pfns.tolist(), strict=True):
            memcg = self.by_id(number) if number else None
            while memcg is not None and not memcg.online:
                memcg = memcg.parent
            if memcg is not None and memcg.id:
                if not self.charge(memcg, 1):
                    break
                self._commit(memcg, np.array([pfn], dtype=np.int64), 1)
            done += 1
        return done


def _overage(counter: PageCounter) -> int:
    """How far usage is above the high mark, as a fraction (``calculate_overage``)."""
    if counter.usage <= counter.high:
        return 0
    high = max(counter.high, 1)
    return ((counter.usage - high) << MEMCG_DELAY_PRECISION_SHIFT) // high


def _high_delay(pages: int, overage: int) -> int:
    """Jiffies of delay, growing with the square of the overage (``calculate_high_delay``)."""
    delay = (overage * overage * HZ) >> MEMCG_DELAY_PRECISION_SHIFT >> MEMCG_DELAY_SCALING_SHIFT
    return delay * pages // MEMCG_CHARGE_BATCH
