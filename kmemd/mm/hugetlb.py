"""Persistent huge pages (mm/hugetlb.c): pools that take their pages from the page allocator and give them back.

Models: a pool per size with its nodes, growing and shrinking round robin over nodes, overcommit limit, surplus pages,
promises (``hugetlb_acct_memory``), pages handed out and taken back, demotion to the smaller size, and what
boot fills. Mappings are ``mm/hugetlb_vm.py``. Left out: hugetlb_cma, vmemmap optimisation, cgroup limits.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar, Protocol

import numpy as np

from kmemd.core import stats
from kmemd.core.context import Context
from kmemd.errors import KernelError
from kmemd.mm import gfp as g
from kmemd.mm.hugetlb_boot import PMD_ORDER, PUD_ORDER, BootParameters, Wanted, size_text
from kmemd.mm.hugetlb_pool import Pool
from kmemd.mm.layout import STRUCT_PAGE_SIZE, X86_64
from kmemd.mm.pace import Pace, pieces
from kmemd.mm.page_supply import PageSupply, PFNs
from kmemd.mm.params import CommandLine
from kmemd.mm.printk import KERN_INFO, KERN_WARNING, Printk
from kmemd.mm.stackdepot import StackDepot
from kmemd.mm.sysctl_handlers import proc_dobool, proc_doulongvec_minmax, vm_knob
from kmemd.mm.units import NUMA_NO_NODE, PAGE_SHIFT, PAGE_SIZE
from kmemd.mm.vmstat import VmStat
from kmemd.steps import Steps, finish
from kmemd.tunable import Tunable, Tuned

__all__ = ["PMD_ORDER", "Hugetlb", "Pool"]

POOL_FLAGS = g.F.THISNODE | g.F.COMP | g.F.NOWARN
TRY_HARD = g.F.RETRY_MAYFAIL
ALL_NODES = (1 << 64) - 1
TAKEN = 64
"""Pages that are taken or given back before others may get in."""
SINGLES = 32
"""Likewise, of those that are taken one by one."""
FRAMES = (
    "alloc_fresh_huge_page",
    "alloc_pool_huge_page",
    "set_max_huge_pages",
    "__nr_hugepages_store_common",
)


class Pages(PageSupply, Protocol):
    """The page allocator, which counts how often it went into its slow path."""

    slow_paths: int
    zonelists: list[list[int]]

    def alloc_pages(self, gfp: int, order: int = 0, nid: int = NUMA_NO_NODE, nodemask: int = ALL_NODES) -> int:
        """The PFN of a block. ENOMEM."""

    def numa_node_id(self) -> int:
        """The executing CPU's node."""


class Contig(Protocol):
    """What finds, splits and dissolves blocks that are too large for the page allocator."""

    def alloc(self, order: int, nid: int) -> Steps[int | None]:
        """The first page of a range that could be emptied."""

    def free(self, pfn: int, order: int) -> Steps[None]:
        """Give every page of a block back."""

    def adopt(self, pfn: int, order: int) -> None:
        """Make a range that was taken before the page allocator ran an allocated block."""

    def split(self, pfn: int, order: int, parts: int) -> list[int]:
        """Make blocks of order ``parts`` of one."""


class Zone(Protocol):
    """What is asked of a zone."""

    @property
    def managed(self) -> int: ...
    @property
    def start_pfn(self) -> int: ...
    @property
    def end_pfn(self) -> int: ...


class Node(Protocol):
    """What is asked of a node."""

    @property
    def nid(self) -> int: ...
    @property
    def has_memory(self) -> bool: ...
    @property
    def zones(self) -> Sequence[Zone]: ...


class Hugetlb(Tuned):
    """All pools.

    ``writer_nodes()`` are the nodes that the policy of the task that writes spreads over, None for all.
    ``highmem_pfn`` is where memory without a kernel mapping begins, None where all is mapped. ``contig`` is
    there when the CPU maps 1 GiB pages, and ``bootmem`` are those that boot set aside.
    """

    TUNABLES: ClassVar[tuple[Tunable, ...]] = (
        vm_knob("nr_hugepages", proc_doulongvec_minmax, steps="resize_default"),
        vm_knob(
            "nr_hugepages_mempolicy",
            proc_doulongvec_minmax,
            attr="nr_hugepages",
            when="numa",
            steps="resize_by_policy",
        ),
        vm_knob("nr_overcommit_hugepages", proc_doulongvec_minmax, attr="nr_overcommit"),
        vm_knob("hugetlb_shm_group"),
        vm_knob("hugetlb_optimize_vmemmap", proc_dobool, attr="optimize_vmemmap", when="numa"),
    )

    def __init__(
        self,
        page_alloc: Pages,
        nodes: Sequence[Node],
        vmstat: VmStat,
        context: Context,
        depot: StackDepot,
        printk: Printk,
        cmdline: CommandLine,
        *,
        long_bits: int = 64,
        highmem_pfn: int | None = None,
        contig: Contig | None = None,
        bootmem: Sequence[int] = (),
        writer_nodes: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._page_alloc = page_alloc
        self._nodes = tuple(node.nid for node in nodes if node.has_memory)
        self._managed = {node.nid: sum(zone.managed for zone in node.zones) for node in nodes}
        self._spans = [(zone.start_pfn, zone.end_pfn, node.nid) for node in nodes for zone in node.zones]
        self._vmstat = vmstat
        self._context = context
        self._depot = depot
        self._printk = printk
        self._highmem_pfn = highmem_pfn
        self._contig = contig
        self._writer_nodes = writer_nodes
        self.long_bits = long_bits
        self.numa = long_bits == 64
        self.hugetlb_shm_group = 0
        self.optimize_vmemmap = cmdline.flag("hugetlb_free_vmemmap")
        parameters = BootParameters(cmdline, huge_page_sizes(long_bits, contig is not None), self._nodes)
        width = max(node.nid for node in nodes) + 1
        self.pools = tuple(Pool(size.bit_length() - 1 - PAGE_SHIFT, width) for size in _sizes(parameters.wanted))
        self.default = self.pools[parameters.wanted.index(parameters.default)]
        for pool in self.pools:
            pool.demote_order = max((other.order for other in self.pools if other.order < pool.order), default=0)
        self._boot(parameters, bootmem)

    def pool(self, name: str) -> Pool | None:
        """The pool whose directory has this name."""
        return next((pool for pool in self.pools if pool.name == name), None)

    def pool_of_shift(self, shift: int) -> Pool | None:
        """The pool of pages of ``2**shift`` bytes, the default one for 0 (``hstate_sizelog``)."""
        if not shift:
            return self.default
        return next((pool for pool in self.pools if pool.size == 1 << shift), None)

    @property
    def nr_hugepages(self) -> int:
        """vm.nr_hugepages: the persistent pages of the default pool, as last reached."""
        return self.default.max_huge_pages

    @nr_hugepages.setter
    def nr_hugepages(self, count: int) -> None:
        self.set_max_huge_pages(self.default, count)

    @property
    def nr_overcommit(self) -> int:
        """vm.nr_overcommit_hugepages: how many surplus pages the default pool may have."""
        return self.default.overcommit

    @nr_overcommit.setter
    def nr_overcommit(self, count: int) -> None:
        self.set_overcommit(self.default, count)

    def set_overcommit(self, pool: Pool, count: int) -> None:
        """Let a pool grow by so many surplus pages. EINVAL for pages that cannot be had at any time."""
        if pool.gigantic:
            raise KernelError(errno.EINVAL, f"{pool.name} has no surplus pages")
        pool.overcommit = count

    def holds(self, pfn: int) -> bool:
        """Whether a page frame begins a page of a pool, free or in use."""
        return self.pool_of(pfn) is not None

    def pool_of(self, pfn: int) -> Pool | None:
        """The pool that a page frame begins a page of."""
        for pool in self.pools:
            if pfn in pool.active or any(pfn in pages for pages in pool.free_lists):
                return pool
        return None

    def node_of(self, pfn: int) -> int:
        """The node of a page frame."""
        return next(nid for low, high, nid in self._spans if low <= pfn < high)

    def total_pages(self) -> int:
        """Base pages in all pools (``hugetlb_total_pages``)."""
        return sum(pool.nr << pool.order for pool in self.pools)

    def set_max_huge_pages(self, pool: Pool, count: int, nid: int | None = None) -> None:
        """``resize_steps`` in one go."""
        finish(self.resize_steps(pool, count, nid))

    def resize_default(self, count: int) -> Steps[None]:
        """``resize_steps`` of the default pool."""
        return self.resize_steps(self.default, count)

    def resize_by_policy(self, count: int) -> Steps[None]:
        """``resize_steps`` of the default pool, on the nodes of the writer's policy."""
        return self.resize_steps(self.default, count, by_policy=True)

    def resize_steps(self, pool: Pool, count: int, nid: int | None = None, *, by_policy: bool = False) -> Steps[None]:
        """Grow or shrink a pool to ``count`` persistent pages, of one node, of those that the writer's policy spreads
        over, or of all; as far as memory goes (``set_max_huge_pages``)."""
        mask = self._writer_nodes() if by_policy and nid is None else None
        allowed = tuple(node for node in self._nodes if mask is None or mask >> node & 1)
        nodes = allowed if nid is None else (nid,)
        if nid is not None:
            count += pool.nr - pool.nr_node[nid]
        while pool.surplus and count > pool.persistent and pool.adjust_surplus(nodes, -1):
            pass
        if count > pool.persistent:
            yield from self._grow(pool, count - pool.persistent, nodes)
        yield from self._shrink(pool, count, nodes)
        while count < pool.persistent and pool.adjust_surplus(nodes, 1):
            pass
        pool.max_huge_pages = pool.persistent

    def restore(self, captured: Mapping[str, str]) -> None:
        """Take over the settings. A twin's pool is among the pages in use already, and is not taken a second time."""
        pool_sizes = ("proc/sys/vm/nr_hugepages", "proc/sys/vm/nr_hugepages_mempolicy")
        super().restore({path: text for path, text in captured.items() if path not in pool_sizes})

    def check(self) -> None:
        """Every page is of the pool's size, in one place, and counted."""
        node_of: list[Any] = [_Spans([]) for _ in range(len(self.default.nr_node))]
        for low, high, nid in self._spans:
            node_of[nid].ranges.append(range(low, high))
        for pool in self.pools:
            pool.check(node_of)

    # -- growing -----------------------------------------------------------------------------------------

    def _gfp(self, pool: Pool) -> int:
        """Movable only where huge pages can migrate, which i386's and gigantic ones cannot (``htlb_alloc_mask``)."""
        movable = self.long_bits == 64 and not pool.gigantic
        return (g.GFP_HIGHUSER_MOVABLE if movable else g.GFP_HIGHUSER) | g.F.COMP | g.F.NOWARN

    def _grow(self, pool: Pool, count: int, nodes: Sequence[int]) -> Steps[int]:
        """Take up to ``count`` pages, an even share from each node, then one by one; the number taken."""
        stack = self._depot.extend(self._context.site, FRAMES)
        share = 0 if pool.gigantic else count // len(nodes)
        left = count
        if share > 1:
            for nid in nodes:
                left -= yield from self._take(pool, min(share, self._managed[nid] >> pool.order), nid, stack)
        given_up: set[int] = set()
        self._context.stack = stack
        while left and (yield from self._grow_one(pool, nodes, given_up)):
            left -= 1
            if pool.gigantic or not left % SINGLES:
                yield
        return count - left

    def _take(self, pool: Pool, count: int, nid: int, stack: int) -> Steps[int]:
        """Up to ``count`` pages of one node; the number taken."""
        pace = Pace(lambda: self._page_alloc.slow_paths, TAKEN)
        taken = 0
        while taken < count:
            want = pace.next(count - taken)
            self._context.stack = stack
            gfp = self._gfp(pool) | g.F.THISNODE | TRY_HARD
            pfns = self._page_alloc.alloc_pages_bulk(gfp, pool.order, want, nid)
            self._enqueue(pool, nid, pfns.tolist())
            taken += len(pfns)
            yield
            if len(pfns) < want:
                break
        return taken

    def _grow_one(self, pool: Pool, nodes: Sequence[int], given_up: set[int]) -> Steps[bool]:
        """One page from the next node that has one (``alloc_pool_huge_page``). No try is hard after a failure."""
        for _ in nodes:
            nid = pool.next_to_alloc(nodes)
            if pool.gigantic:
                pfn = (yield from self._contig.alloc(pool.order, nid)) if self._contig else None
            else:
                pfn = self._fresh(pool, g.F.THISNODE | (0 if nid in given_up else TRY_HARD), nid)
            if pfn is not None:
                given_up.discard(nid)
                pool.add(nid, [pfn])
                return True
            given_up.add(nid)
        return False

    def _fresh(self, pool: Pool, flags: int, nid: int, nodemask: int = ALL_NODES) -> int | None:
        """A page that no pool has yet (``alloc_fresh_huge_page``), of an order that the page allocator has."""
        try:
            pfn = self._page_alloc.alloc_pages(self._gfp(pool) | flags, pool.order, nid, nodemask)
        except KernelError as error:
            if error.errno != errno.ENOMEM:
                raise
            self._vmstat.count(stats.HTLB_BUDDY_PGALLOC_FAIL)
            return None
        self._vmstat.count(stats.HTLB_BUDDY_PGALLOC)
        return pfn

    def _enqueue(self, pool: Pool, nid: int, pfns: list[int]) -> None:
        self._vmstat.count(stats.HTLB_BUDDY_PGALLOC, len(pfns))
        pool.add(nid, pfns)

    # -- shrinking ---------------------------------------------------------------------------------------

    def _shrink(self, pool: Pool, count: int, nodes: Sequence[int]) -> Steps[None]:
        """Give free pages back until ``count`` are left; reserved ones stay, and those in use."""
        target = max(count, pool.resv + pool.nr - pool.free)
        for part in pieces(np.array(self._free_low(pool, target, nodes), dtype=np.int64), TAKEN):
            yield from self._give_back_steps(pool, part)
        surplus = pool.persistent - target
        while surplus > 0:
            freed = list(islice(iter(lambda: pool.remove_one(nodes), None), min(surplus, TAKEN)))
            if not freed:
                break
            surplus -= len(freed)
            yield from self._give_back_steps(pool, np.array(freed, dtype=np.int64))

    def _give_back(self, pool: Pool, pfns: PFNs) -> None:
        """``_give_back_steps`` at once."""
        finish(self._give_back_steps(pool, pfns))

    def _give_back_steps(self, pool: Pool, pfns: PFNs) -> Steps[None]:
        """The pages are the page allocator's again (``update_and_free_page``)."""
        if pool.gigantic and self._contig is not None:
            for pfn in pfns.tolist():
                yield from self._contig.free(pfn, pool.order)
        else:
            self._page_alloc.free_pages_bulk(pfns, pool.order)
            yield

    def _free_low(self, pool: Pool, target: int, nodes: Sequence[int]) -> list[int]:
        """With HIGHMEM, pages that the kernel could use itself go first (``try_to_free_low``)."""
        freed: list[int] = []
        if self._highmem_pfn is None:
            return freed
        for nid in nodes:
            low = [pfn for pfn in reversed(pool.free_lists[nid]) if pfn < self._highmem_pfn]
            for pfn in low[: max(pool.nr - target, 0)]:
                pool.free_lists[nid].remove(pfn)
                pool.nr_node[nid] -= 1
                freed.append(pfn)
        return freed

    # -- promises ----------------------------------------------------------------------------------------

    def acct_memory(self, pool: Pool, delta: int, mask: int = ALL_NODES) -> None:
        """Promise ``delta`` pages, growing the pool by surplus pages where it may, or take promises back
        (``hugetlb_acct_memory``). ``mask``: the nodes that the task is bound to. ENOMEM: there are too few pages."""
        if delta < 0:
            self._return_unused_surplus(pool, -delta)
        elif delta:
            self._gather_surplus(pool, delta)
            if delta > sum(pool.free_node(nid) for nid in self._nodes if mask >> nid & 1):
                self._return_unused_surplus(pool, delta)
                raise KernelError(errno.ENOMEM, f"{pool.name}: the allowed nodes have fewer than {delta} free pages")

    def _gather_surplus(self, pool: Pool, delta: int) -> None:
        """Free pages for all promises and ``delta`` more. ENOMEM (``gather_surplus_pages``)."""
        needed = pool.resv + delta - pool.free
        fresh: list[int] = []
        while len(fresh) < needed:
            pfn = self._surplus_page(pool, self._page_alloc.numa_node_id(), ALL_NODES)
            if pfn is None:
                for extra in reversed(fresh):
                    self.free_huge_page(pool, extra)
                raise KernelError(errno.ENOMEM, f"{pool.name}: {needed} pages short of a reservation of {delta}")
            fresh.append(pfn)
        pool.resv += delta
        for pfn in reversed(fresh):
            del pool.active[pfn]
            pool.free_lists[self.node_of(pfn)].append(pfn)

    def _surplus_page(self, pool: Pool, nid: int, nodemask: int) -> int | None:
        """A page above the pool's persistent size, in use (``alloc_surplus_huge_page``)."""
        if pool.gigantic or pool.surplus >= pool.overcommit:
            return None
        pfn = self._fresh(pool, TRY_HARD, nid, nodemask)
        if pfn is None:
            return None
        where = self.node_of(pfn)
        pool.nr_node[where] += 1
        pool.surplus_node[where] += 1
        pool.active[pfn] = None
        return pfn

    def _return_unused_surplus(self, pool: Pool, unused: int) -> None:
        """Promises are taken back, and surplus pages that were there for them freed, spread over the nodes."""
        pool.resv -= unused
        gone = [pool.remove_one(self._nodes, surplus=True) for _ in range(min(unused, pool.surplus))]
        freed = [pfn for pfn in gone if pfn is not None]
        self._give_back(pool, np.array(freed, dtype=np.int64))

    # -- pages in use ------------------------------------------------------------------------------------

    def take_page(self, pool: Pool, nid: int, nodemask: int, *, reserved: bool, avoid_reserve: bool) -> int | None:
        """A page for a mapping, of the nodes of ``nodemask`` nearest to ``nid``; None when there is none
        (the middle of ``alloc_huge_page``). ``reserved``: it was promised; with ``avoid_reserve`` a page that comes
        from the page allocator does not use the promise up."""
        if reserved or pool.available > 0:
            pfn = pool.dequeue([node for node in self._page_alloc.zonelists[nid] if nodemask >> node & 1])
            if pfn is not None:
                self._use_promise(pool, pfn, reserved)
                return pfn
        pfn = self._surplus_page(pool, nid, nodemask)
        if pfn is not None:
            self._use_promise(pool, pfn, reserved and not avoid_reserve)
        return pfn

    def _use_promise(self, pool: Pool, pfn: int, reserved: bool) -> None:
        if reserved:
            pool.restore.add(pfn)
            pool.resv -= 1

    def free_huge_page(self, pool: Pool, pfn: int) -> None:
        """Nobody uses a page any more: it is free, or goes back to the page allocator if its node has surplus pages."""
        subpool = pool.active.pop(pfn)
        restore = pfn in pool.restore
        pool.restore.discard(pfn)
        if not restore and subpool is not None and subpool.put_pages(1) == 0:
            restore = True
        pool.resv += restore
        nid = self.node_of(pfn)
        if pool.surplus_node[nid]:
            pool.surplus_node[nid] -= 1
            pool.nr_node[nid] -= 1
            self._give_back(pool, np.array([pfn], dtype=np.int64))
        else:
            pool.free_lists[nid].append(pfn)

    def migration_target(self, pool: Pool, nid: int, nodemask: int) -> tuple[int, bool]:
        """A page to move another one to, and whether the pool does not count it (``alloc_huge_page_nodemask``).
        ENOMEM.
        """
        nodes = [node for node in self._page_alloc.zonelists[nid] if nodemask >> node & 1]
        if pool.available > 0:
            pfn = pool.dequeue(nodes)
            if pfn is not None:
                return pfn, False
        pfn = None if pool.gigantic else self._fresh(pool, 0, nid, nodemask)
        if pfn is None:
            raise KernelError(errno.ENOMEM, f"{pool.name}: no page to move to")
        return pfn, True

    def migrated(self, pool: Pool, old: int, new: int, *, temporary: bool) -> None:
        """Everything that used a page uses another one: the old one is free (``move_hugetlb_state``)."""
        if not temporary:
            pool.active[old] = None  # the new one is charged to the mount now
            self.free_huge_page(pool, old)
            return
        source, target = self.node_of(old), self.node_of(new)
        del pool.active[old]
        pool.restore.discard(old)
        moved = 1 if source != target and pool.surplus_node[source] else 0
        for nid, sign in ((source, -1), (target, 1)):
            pool.nr_node[nid] += sign
            pool.surplus_node[nid] += sign * moved
        self._give_back(pool, np.array([old], dtype=np.int64))

    # -- demotion ----------------------------------------------------------------------------------------

    def demote(self, pool: Pool, count: int, nid: int | None = None) -> None:
        """Make pages of the smaller size of up to ``count`` free ones (``demote_store``). EINVAL: there is none."""
        target = next((other for other in self.pools if other.order == pool.demote_order), None)
        if target is None or self._contig is None:
            raise KernelError(errno.EINVAL, f"there is no page size below {pool.name}")
        nodes = self._nodes if nid is None else (nid,)
        for _ in range(count):
            free = pool.free if nid is None else pool.free_node(nid)
            pfn = pool.remove_one(nodes) if free > pool.resv else None
            if pfn is None:
                return
            parts = self._contig.split(pfn, pool.order, target.order)
            target.add(self.node_of(pfn), parts)
            pool.max_huge_pages -= 1
            target.max_huge_pages += len(parts)

    def set_demote_size(self, pool: Pool, size: int) -> None:
        """Choose the size that pages are demoted to (``demote_size_store``). EINVAL."""
        target = next((other for other in self.pools if other.size == size), None)
        if target is None or target.order >= pool.order:
            raise KernelError(errno.EINVAL, f"{pool.name}: pages of {size} bytes are not smaller huge pages")
        pool.demote_order = target.order

    # -- boot --------------------------------------------------------------------------------------------

    def _boot(self, parameters: BootParameters, bootmem: Sequence[int]) -> None:
        """Fill the pools as the command line wants it, and say so (``hugetlb_init``)."""
        for level, text in parameters.messages:
            self._printk.log(level, text)
        for pool, wanted in zip(self.pools, parameters.wanted, strict=True):
            if pool.gigantic:
                self._adopt(pool, bootmem)
                self._complain(wanted, wanted.count, pool.nr)
            else:
                self._fill(pool, wanted)
            pool.max_huge_pages = pool.persistent
        for pool in self.pools:
            size = size_text(pool.size)
            self._printk.log(KERN_INFO, f"HugeTLB: registered {size} page size, pre-allocated {pool.free} pages")
            vmemmap = (STRUCT_PAGE_SIZE[X86_64] << pool.order) - PAGE_SIZE if self.numa else 0
            self._printk.log(KERN_INFO, f"HugeTLB: {vmemmap // 1024} KiB vmemmap can be freed for a {size} page")

    def _fill(self, pool: Pool, wanted: Wanted) -> None:
        for nid, count in sorted(wanted.per_node.items()):
            self._complain(wanted, count, finish(self._grow(pool, count, (nid,))), f" node{nid}")
        if wanted.count and not wanted.per_node:
            self._complain(wanted, wanted.count, finish(self._grow(pool, wanted.count, self._nodes)))

    def _adopt(self, pool: Pool, bootmem: Sequence[int]) -> None:
        """The pages that boot set aside are the pool's (``gather_bootmem_prealloc``)."""
        for pfn in bootmem:
            if self._contig is not None:
                self._contig.adopt(pfn, pool.order)
            pool.add(self.node_of(pfn), [pfn])

    def _complain(self, wanted: Wanted, asked: int, got: int, where: str = "") -> None:
        if got < asked:
            text = f"HugeTLB: allocating {asked} of page size {size_text(wanted.size)} failed{where}."
            self._printk.log(KERN_WARNING, f"{text}  Only allocated {got} hugepages.")


class _Spans:
    """The PFNs of a node."""

    def __init__(self, ranges: list[range]) -> None:
        self.ranges = ranges

    def __contains__(self, pfn: int) -> bool:
        return any(pfn in span for span in self.ranges)


def huge_page_sizes(long_bits: int, gbpages: bool) -> tuple[int, ...]:
    """The sizes that the CPU maps, in bytes, of a PMD's first."""
    pmd = PAGE_SIZE << PMD_ORDER[long_bits]
    return (pmd, PAGE_SIZE << PUD_ORDER) if gbpages else (pmd,)


def _sizes(wanted: Sequence[Wanted]) -> list[int]:
    return [one.size for one in wanted]
