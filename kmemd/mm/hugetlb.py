"""Persistent huge pages (mm/hugetlb.c): pools that take their pages from the page allocator and give them back.

Models: a pool per size with its nodes, growing and shrinking round robin over nodes, overcommit limit, surplus and
reserved pages, the boot parameters hugepages=, hugepagesz=, default_hugepagesz=. Left out: mappings (nothing
reserves or uses a page yet), 1 GiB pages (the modelled CPU has none), hugetlb_cma, vmemmap optimisation.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from kmemd.core import stats
from kmemd.core.context import Context
from kmemd.errors import KernelError
from kmemd.mm import gfp as g
from kmemd.mm import kstrtox
from kmemd.mm.params import CommandLine, memparse
from kmemd.mm.printk import KERN_ERR, KERN_INFO, KERN_WARNING, Printk
from kmemd.mm.stackdepot import StackDepot
from kmemd.mm.sysctl_handlers import (
    PAGE_SIZE,
    proc_dobool,
    proc_dointvec_minmax,
    proc_doulongvec_minmax,
    show_number,
)
from kmemd.mm.vmstat import VmStat
from kmemd.tunable import Tunable, Tuned

PMD_ORDER = {64: 9, 32: 10}
STRUCT_PAGE_SIZE = {64: 64, 32: 32}
MIB = 1 << 20
POOL_FLAGS = g.F.THISNODE | g.F.COMP | g.F.NOWARN
TRY_HARD = g.F.RETRY_MAYFAIL
FRAMES = (
    "alloc_fresh_huge_page",
    "alloc_pool_huge_page",
    "set_max_huge_pages",
    "__nr_hugepages_store_common",
)


class Allocator(Protocol):
    """The page allocator as far as pools need it."""

    def alloc_pages(self, gfp: int, order: int = 0, nid: int = -1) -> int: ...
    def alloc_pages_bulk(self, gfp: int, order: int, n: int, nid: int = -1) -> npt.NDArray[np.int64]: ...
    def free_pages_bulk(self, pfns: npt.NDArray[np.int64], order: int) -> None: ...


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
        Tunable("proc/sys/vm/nr_hugepages", "nr_hugepages", show_number, proc_doulongvec_minmax),
        Tunable(
            "proc/sys/vm/nr_hugepages_mempolicy",
            "nr_hugepages",
            show_number,
            proc_doulongvec_minmax,
            when="numa",
        ),
        Tunable("proc/sys/vm/nr_overcommit_hugepages", "nr_overcommit", show_number, proc_doulongvec_minmax),
        Tunable("proc/sys/vm/hugetlb_shm_group", "hugetlb_shm_group", show_number, proc_dointvec_minmax),
        Tunable("proc/sys/vm/hugetlb_optimize_vmemmap", "optimize_vmemmap", show_number, proc_dobool, when="numa"),
    )

    def __init__(
        self,
        page_alloc: Allocator,
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

    def total_pages(self) -> int:
        """Base pages in all pools (``hugetlb_total_pages``)."""
        return sum(pool.nr << pool.order for pool in self.pools)

    def set_max_huge_pages(self, pool: Pool, count: int, nid: int | None = None) -> None:
        """Grow or shrink a pool to ``count`` persistent pages, of one node or of all; as far as memory goes."""
        nodes = self._nodes if nid is None else (nid,)
        if nid is not None:
            count += pool.nr - pool.nr_node[nid]
        while pool.surplus and count > pool.persistent and self._adjust_surplus(pool, nodes, -1):
            pass
        if count > pool.persistent:
            self._grow(pool, count - pool.persistent, nodes)
        self._shrink(pool, count, nodes)
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

    def _grow(self, pool: Pool, count: int, nodes: Sequence[int]) -> int:
        """Take up to ``count`` pages, an even share from each node, then one by one; the number taken."""
        self._context.stack = self._depot.extend(self._context.site, FRAMES)
        share = count // len(nodes)
        left = count
        if share > 1:
            for nid in nodes:
                most = min(share, self._managed[nid] >> pool.order)
                pfns = self._page_alloc.alloc_pages_bulk(self._hard(), pool.order, most, nid)
                self._enqueue(pool, nid, pfns.tolist())
                left -= len(pfns)
        given_up: set[int] = set()
        while left and self._grow_one(pool, nodes, given_up):
            left -= 1
        return count - left

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

    def _shrink(self, pool: Pool, count: int, nodes: Sequence[int]) -> None:
        """Give free pages back until ``count`` are left; reserved ones stay, and those in use."""
        target = max(count, pool.resv + pool.nr - pool.free)
        freed: list[int] = self._free_low(pool, target, nodes)
        while target < pool.persistent:
            pfn = self._remove_one(pool, nodes)
            if pfn is None:
                break
            freed.append(pfn)
        if freed:
            self._page_alloc.free_pages_bulk(np.array(freed, dtype=np.int64), pool.order)

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
            got = self._grow(pool, wanted, (nid,))
            if got < wanted:
                text = f"HugeTLB: allocating {wanted} of page size {size} failed node{nid}."
                self._printk.log(KERN_WARNING, f"{text}  Only allocated {got} hugepages.")
        if not parameters.per_node and parameters.count:
            got = self._grow(pool, parameters.count, self._nodes)
            if got < parameters.count:
                text = f"HugeTLB: allocating {parameters.count} of page size {size} failed."
                self._printk.log(KERN_WARNING, f"{text}  Only allocated {got} hugepages.")
        pool.max_huge_pages = pool.persistent
        self._printk.log(KERN_INFO, f"HugeTLB: registered {size} page size, pre-allocated {pool.free} pages")
        vmemmap = (STRUCT_PAGE_SIZE[self.long_bits] << pool.order) - PAGE_SIZE if self.numa else 0
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
