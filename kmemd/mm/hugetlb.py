"""Persistent huge pages (mm/hugetlb.c): pools that take their pages from the page allocator and give them back.

Models: a pool per size with its nodes, growing and shrinking round robin over nodes, overcommit limit, surplus and
reserved pages, the boot parameters hugepages=, hugepagesz=, default_hugepagesz=. Left out: mappings (nothing
reserves or uses a page yet), 1 GiB pages (the modelled CPU has none), hugetlb_cma, vmemmap optimisation.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import ClassVar, Protocol

import numpy as np

from kmemd.core import stats
from kmemd.core.context import Context
from kmemd.errors import KernelError
from kmemd.mm import gfp as g
from kmemd.mm import kstrtox
from kmemd.mm.layout import STRUCT_PAGE_SIZE, X86_64
from kmemd.mm.pace import Pace, pieces
from kmemd.mm.page_supply import PageSupply
from kmemd.mm.params import CommandLine, memparse
from kmemd.mm.printk import KERN_ERR, KERN_INFO, KERN_WARNING, Printk
from kmemd.mm.stackdepot import StackDepot
from kmemd.mm.sysctl_handlers import proc_dobool, proc_doulongvec_minmax, vm_knob
from kmemd.mm.units import MIB, PAGE_SIZE
from kmemd.mm.vmstat import VmStat
from kmemd.steps import Steps, finish
from kmemd.tunable import Tunable, Tuned

PMD_ORDER = {64: 9, 32: 10}
POOL_FLAGS = g.F.THISNODE | g.F.COMP | g.F.NOWARN
TRY_HARD = g.F.RETRY_MAYFAIL
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


class Zone(Protocol):
    """What is asked of a zone."""

    @property
    def managed(self) -> int: ...


class Node(Protocol):
    """What is asked of a node."""

    @property
    def nid(self) -> int: ...
    @property
    def has_memory(self) -> bool: ...
    @property
    def zones(self) -> Sequence[Zone]: ...


class Pool:
    """Huge pages of one size (``struct hstate``). Counts are in huge pages, one list entry per node.

    Invariants: a node's free pages are a subset of its pages; persistent pages are those that are not surplus.
    """

    def __init__(self, order: int, nr_nodes: int) -> None:
        self.order = order
        self.nr_node = [0] * nr_nodes
        self.surplus_node = [0] * nr_nodes
        self.free_lists: list[list[int]] = [[] for _ in range(nr_nodes)]
        self.resv = 0
        self.overcommit = 0
        self.max_huge_pages = 0
        self.next_nid_to_alloc = 0
        self.next_nid_to_free = 0

    @property
    def size(self) -> int:
        """Bytes of a page."""
        return PAGE_SIZE << self.order

    @property
    def name(self) -> str:
        """The name of its directory."""
        return f"hugepages-{self.size // 1024}kB"

    @property
    def nr(self) -> int:
        """All pages of the pool."""
        return sum(self.nr_node)

    @property
    def free(self) -> int:
        """Pages that no mapping uses."""
        return sum(len(pages) for pages in self.free_lists)

    @property
    def surplus(self) -> int:
        """Pages above the pool's persistent size."""
        return sum(self.surplus_node)

    @property
    def persistent(self) -> int:
        """Pages that stay when they become free."""
        return self.nr - self.surplus

    def free_node(self, nid: int) -> int:
        """Free pages of a node."""
        return len(self.free_lists[nid])


def _next(nid: int, nodes: Sequence[int]) -> int:
    """The node at or after ``nid``, round robin (``get_valid_node_allowed``)."""
    return next((node for node in nodes if node >= nid), nodes[0])


def _after(nid: int, nodes: Sequence[int]) -> int:
    return _next(nid + 1, nodes)


class Hugetlb(Tuned):
    """All pools. ``highmem_pfn`` is where memory without a kernel mapping begins, None where all is mapped."""

    TUNABLES: ClassVar[tuple[Tunable, ...]] = (
        vm_knob("nr_hugepages", proc_doulongvec_minmax, steps="resize_default"),
        vm_knob(
            "nr_hugepages_mempolicy",
            proc_doulongvec_minmax,
            attr="nr_hugepages",
            when="numa",
            steps="resize_default",
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
    ) -> None:
        self._page_alloc = page_alloc
        self._nodes = tuple(node.nid for node in nodes if node.has_memory)
        self._managed = {node.nid: sum(zone.managed for zone in node.zones) for node in nodes}
        self._vmstat = vmstat
        self._context = context
        self._depot = depot
        self._printk = printk
        self._highmem_pfn = highmem_pfn
        self.long_bits = long_bits
        self.numa = long_bits == 64
        self.hugetlb_shm_group = 0
        self.optimize_vmemmap = cmdline.flag("hugetlb_free_vmemmap")
        self.default = Pool(PMD_ORDER[long_bits], max(node.nid for node in nodes) + 1)
        self.pools = (self.default,)
        self._boot(_BootParameters(cmdline, self.default.size, self._nodes, printk))

    def pool(self, name: str) -> Pool | None:
        """The pool whose directory has this name."""
        return next((pool for pool in self.pools if pool.name == name), None)

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
        self.default.overcommit = count

    def holds(self, pfn: int) -> bool:
        """Whether a page frame begins a free page of a pool."""
        return any(pfn in pages for pool in self.pools for pages in pool.free_lists)

    def total_pages(self) -> int:
        """Base pages in all pools (``hugetlb_total_pages``)."""
        return sum(pool.nr << pool.order for pool in self.pools)

    def set_max_huge_pages(self, pool: Pool, count: int, nid: int | None = None) -> None:
        """``resize_steps`` in one go."""
        finish(self.resize_steps(pool, count, nid))

    def resize_default(self, count: int) -> Steps[None]:
        """``resize_steps`` of the default pool."""
        return self.resize_steps(self.default, count)

    def resize_steps(self, pool: Pool, count: int, nid: int | None = None) -> Steps[None]:
        """Grow or shrink a pool to ``count`` persistent pages, of one node or of all; as far as memory goes
        (``set_max_huge_pages``)."""
        nodes = self._nodes if nid is None else (nid,)
        if nid is not None:
            count += pool.nr - pool.nr_node[nid]
        while pool.surplus and count > pool.persistent and self._adjust_surplus(pool, nodes, -1):
            pass
        if count > pool.persistent:
            yield from self._grow(pool, count - pool.persistent, nodes)
        yield from self._shrink(pool, count, nodes)
        while count < pool.persistent and self._adjust_surplus(pool, nodes, 1):
            pass
        pool.max_huge_pages = pool.persistent

    def restore(self, captured: Mapping[str, str]) -> None:
        """Take over the settings. A twin's pool is among the pages in use already, and is not taken a second time."""
        pool_sizes = ("proc/sys/vm/nr_hugepages", "proc/sys/vm/nr_hugepages_mempolicy")
        super().restore({path: text for path, text in captured.items() if path not in pool_sizes})

    def check(self) -> None:
        """Every page is of the pool's size, in one list, and counted."""
        for pool in self.pools:
            pages = [pfn for free in pool.free_lists for pfn in free]
            assert len(set(pages)) == len(pages), f"{pool.name}: a page is twice in the pool"
            assert all(pfn % (1 << pool.order) == 0 for pfn in pages), f"{pool.name}: a page is not aligned"
            for nid, free in enumerate(pool.free_lists):
                assert 0 <= len(free) <= pool.nr_node[nid], f"{pool.name}: node {nid} has more free pages than pages"
                assert 0 <= pool.surplus_node[nid] <= pool.nr_node[nid], f"{pool.name}: surplus of node {nid}"

    # -- growing -----------------------------------------------------------------------------------------

    def _gfp(self) -> int:
        """Movable only where huge pages can migrate, which i386's cannot."""
        return POOL_FLAGS | (g.GFP_HIGHUSER_MOVABLE if self.long_bits == 64 else g.GFP_HIGHUSER)

    def _grow(self, pool: Pool, count: int, nodes: Sequence[int]) -> Steps[int]:
        """Take up to ``count`` pages, an even share from each node, then one by one; the number taken."""
        stack = self._depot.extend(self._context.site, FRAMES)
        share = count // len(nodes)
        left = count
        if share > 1:
            for nid in nodes:
                left -= yield from self._take(pool, min(share, self._managed[nid] >> pool.order), nid, stack)
        given_up: set[int] = set()
        self._context.stack = stack
        while left and self._grow_one(pool, nodes, given_up):
            left -= 1
            if not left % SINGLES:
                yield
        return count - left

    def _take(self, pool: Pool, count: int, nid: int, stack: int) -> Steps[int]:
        """Up to ``count`` pages of one node; the number taken."""
        pace = Pace(lambda: self._page_alloc.slow_paths, TAKEN)
        taken = 0
        while taken < count:
            want = pace.next(count - taken)
            self._context.stack = stack
            pfns = self._page_alloc.alloc_pages_bulk(self._hard(), pool.order, want, nid)
            self._enqueue(pool, nid, pfns.tolist())
            taken += len(pfns)
            yield
            if len(pfns) < want:
                break
        return taken

    def _hard(self) -> int:
        return self._gfp() | TRY_HARD

    def _grow_one(self, pool: Pool, nodes: Sequence[int], given_up: set[int]) -> bool:
        """One page from the next node that has one (``alloc_pool_huge_page``). No try is hard after a failure."""
        for _ in nodes:
            nid = _next(pool.next_nid_to_alloc, nodes)
            pool.next_nid_to_alloc = _after(nid, nodes)
            try:
                pfn = self._page_alloc.alloc_pages(self._gfp() if nid in given_up else self._hard(), pool.order, nid)
            except KernelError as error:
                if error.errno != errno.ENOMEM:
                    raise
                self._vmstat.count(stats.HTLB_BUDDY_PGALLOC_FAIL)
                given_up.add(nid)
                continue
            given_up.discard(nid)
            self._enqueue(pool, nid, [pfn])
            return True
        return False

    def _enqueue(self, pool: Pool, nid: int, pfns: list[int]) -> None:
        """New pages go to the head of the node's free list."""
        self._vmstat.count(stats.HTLB_BUDDY_PGALLOC, len(pfns))
        pool.nr_node[nid] += len(pfns)
        pool.free_lists[nid] += pfns

    # -- shrinking ---------------------------------------------------------------------------------------

    def _shrink(self, pool: Pool, count: int, nodes: Sequence[int]) -> Steps[None]:
        """Give free pages back until ``count`` are left; reserved ones stay, and those in use."""
        target = max(count, pool.resv + pool.nr - pool.free)
        for part in pieces(np.array(self._free_low(pool, target, nodes), dtype=np.int64), TAKEN):
            self._page_alloc.free_pages_bulk(part, pool.order)
            yield
        surplus = pool.persistent - target
        while surplus > 0:
            freed = list(islice(iter(lambda: self._remove_one(pool, nodes), None), min(surplus, TAKEN)))
            if not freed:
                break
            surplus -= len(freed)
            self._page_alloc.free_pages_bulk(np.array(freed, dtype=np.int64), pool.order)
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

    def _remove_one(self, pool: Pool, nodes: Sequence[int]) -> int | None:
        for _ in nodes:
            nid = _next(pool.next_nid_to_free, nodes)
            pool.next_nid_to_free = _after(nid, nodes)
            if pool.free_lists[nid]:
                pool.nr_node[nid] -= 1
                return pool.free_lists[nid].pop()
        return None

    def _adjust_surplus(self, pool: Pool, nodes: Sequence[int], delta: int) -> bool:
        """Turn one surplus page into a persistent one (-1) or back (1); whether there was one."""
        for _ in nodes:
            if delta < 0:
                nid = _next(pool.next_nid_to_alloc, nodes)
                pool.next_nid_to_alloc = _after(nid, nodes)
                found = pool.surplus_node[nid] > 0
            else:
                nid = _next(pool.next_nid_to_free, nodes)
                pool.next_nid_to_free = _after(nid, nodes)
                found = pool.surplus_node[nid] < pool.nr_node[nid]
            if found:
                pool.surplus_node[nid] += delta
                return True
        return False

    # -- boot --------------------------------------------------------------------------------------------

    def _boot(self, parameters: _BootParameters) -> None:
        """Fill the pool as the command line wants it, and say so (``hugetlb_init``)."""
        pool, size = self.default, _size_text(self.default.size)
        for nid, wanted in parameters.per_node.items():
            got = finish(self._grow(pool, wanted, (nid,)))
            if got < wanted:
                text = f"HugeTLB: allocating {wanted} of page size {size} failed node{nid}."
                self._printk.log(KERN_WARNING, f"{text}  Only allocated {got} hugepages.")
        if not parameters.per_node and parameters.count:
            got = finish(self._grow(pool, parameters.count, self._nodes))
            if got < parameters.count:
                text = f"HugeTLB: allocating {parameters.count} of page size {size} failed."
                self._printk.log(KERN_WARNING, f"{text}  Only allocated {got} hugepages.")
        pool.max_huge_pages = pool.persistent
        self._printk.log(KERN_INFO, f"HugeTLB: registered {size} page size, pre-allocated {pool.free} pages")
        vmemmap = (STRUCT_PAGE_SIZE[X86_64] << pool.order) - PAGE_SIZE if self.numa else 0
        self._printk.log(KERN_INFO, f"HugeTLB: {vmemmap // 1024} KiB vmemmap can be freed for a {size} page")


def _size_text(size: int) -> str:
    return f"{size // MIB}.00 MiB"


class _BootParameters:
    """hugepagesz=, default_hugepagesz= and hugepages=, in the order in which they stand."""

    def __init__(self, cmdline: CommandLine, size: int, nodes: Sequence[int], printk: Printk) -> None:
        self.count = 0
        self.per_node: dict[int, int] = {}
        self._size = size
        self._nodes = nodes
        self._printk = printk
        self._valid_size = True
        self._given = False
        for name, value in cmdline.pairs():
            if name in ("hugepagesz", "default_hugepagesz"):
                self._page_size(name, value)
            elif name == "hugepages":
                self._pages(value)

    def _page_size(self, name: str, value: str) -> None:
        self._valid_size = memparse(value)[0] == self._size
        self._given = False
        if not self._valid_size:
            self._printk.log(KERN_ERR, f"HugeTLB: unsupported {name}={value}")

    def _pages(self, value: str) -> None:
        if not self._valid_size:
            text = f"HugeTLB: hugepages={value} does not follow a valid hugepagesz, ignoring"
            self._printk.log(KERN_WARNING, text)
            self._valid_size = True
            return
        if self._given:
            text = "HugeTLB: hugepages= specified twice without interleaving hugepagesz=, ignoring"
            self._printk.log(KERN_WARNING, f"{text} hugepages={value}")
            return
        self._given = True
        try:
            self._take(value)
        except KernelError:
            self.per_node.clear()
            self._printk.log(KERN_WARNING, f"HugeTLB: Invalid hugepages parameter {value}")

    def _take(self, value: str) -> None:
        """``N``, or ``node:N,node:N``. EINVAL."""
        if ":" not in value:
            self.count = _leading_number(value)
            return
        for part in value.split(","):
            node, _, count = part.partition(":")
            nid = _leading_number(node)
            if nid not in self._nodes:
                raise KernelError(errno.EINVAL, f"node {nid} is not online")
            self.per_node[nid] = _leading_number(count)


def _leading_number(text: str) -> int:
    value, _, digits = kstrtox.parse_integer(text.encode(), 10)
    if not digits:
        raise KernelError(errno.EINVAL, f"{text!r} does not begin with a number")
    return value
