"""NUMA policies: where a task and its mappings want their pages, and the allocations that obey (mm/mempolicy.c).

Models the allocations of ``vma_alloc_folio``, ``alloc_pages``, ``huge_node``. Policies themselves are in ``mpol.py``,
the system calls that change those of mappings in ``mbind.py``, automatic balancing (kernel/sched/fair.c) in
``numa_balancing.py``. A process has one thread, so its policy is that of its address space; an interleave policy
carries the task's ``il_prev``.
Left out: cpusets (CONFIG_CPUSETS is off: every task may use all memory, and nothing is rebound) and policies of slabs.
"""

from __future__ import annotations

import errno
from bisect import bisect_right
from collections.abc import Callable
from itertools import groupby
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from kmemd.core import stats
from kmemd.core.buddy import Buddy
from kmemd.core.pages import lazy_zeros
from kmemd.errors import KernelError
from kmemd.mm import gfp as g
from kmemd.mm.mmzone import Node, Zone
from kmemd.mm.mpol import (
    MAX_NUMNODES,
    MPOL_BIND,
    MPOL_F_MOF,
    MPOL_F_MORON,
    MPOL_INTERLEAVE,
    MPOL_PREFERRED,
    MPOL_PREFERRED_MANY,
    Policy,
    SharedPolicy,
    mpol_new,
    mpol_to_str,
    sanitize_mpol_flags,
    user_mask,
)
from kmemd.mm.nodemask import first_node, mask_of, next_node_in, nodes_of
from kmemd.mm.page_alloc import ALL_NODES, PageAllocator
from kmemd.mm.sysctl_handlers import proc_dointvec_minmax, show_number
from kmemd.mm.sysfs_handlers import show_word, store_bool
from kmemd.mm.units import NUMA_NO_NODE, PAGE_SHIFT
from kmemd.mm.vmstat import VmStat
from kmemd.tunable import Tunable, Tuned

if TYPE_CHECKING:
    from kmemd.mm.filemap import File
    from kmemd.mm.memcontrol import MemControl
    from kmemd.mm.mm_types import Mm, Vma

PFNS = npt.NDArray[np.int64]

NUMA_BALANCING_DISABLED, NUMA_BALANCING_NORMAL, NUMA_BALANCING_MEMORY_TIERING = 0, 1, 2
SYSCTL_FOUR = 4
GFP_USER_PAGE = g.GFP_HIGHUSER_MOVABLE | g.F.COMP | g.F.ZERO
"""What a fault asks for."""


class HasMm(Protocol):
    """A task, as far as policies go."""

    @property
    def mm(self) -> Mm | None:
        """Its address space; None for a kernel thread."""


class Mempolicy(Tuned):
    """Allocations by policy, and the system-wide switches.

    ``current()`` is the executing task, None for the idle one. ``numa``: built for NUMA; without it there are no
    policies. ``option`` is what ``numa_balancing=`` says; ``memcg`` charges pages of files and huge ones.
    """

    TUNABLES: ClassVar[tuple[Tunable, ...]] = (
        Tunable("sys/kernel/mm/numa/demotion_enabled", "demotion_enabled", show_word, store_bool, when="numa"),
        Tunable(
            "proc/sys/kernel/numa_balancing",
            "numa_balancing",
            show_number,
            proc_dointvec_minmax,
            min=0,
            max=SYSCTL_FOUR,
            when="numa",
        ),
    )

    def __init__(
        self,
        page_alloc: PageAllocator,
        zones: list[Zone],
        nodes: list[Node],
        vmstat: VmStat,
        buddy: Buddy,
        current: Callable[[], HasMm | None],
        *,
        numa: bool,
        long_bits: int = 64,
        option: str | None = None,
        memcg: MemControl | None = None,
    ) -> None:
        self._page_alloc = page_alloc
        self._memcg = memcg
        self._vmstat = vmstat
        self._buddy = buddy
        self._current = current
        self.numa = numa
        self.long_bits = long_bits
        self.demotion_enabled = False
        # CONFIG_NUMA_BALANCING_DEFAULT_ENABLED is off
        self.numa_balancing = NUMA_BALANCING_NORMAL if numa and option == "enable" else NUMA_BALANCING_DISABLED
        self.online_nodes = mask_of([node.nid for node in nodes])
        self.memory_nodes = mask_of([node.nid for node in nodes if node.has_memory])
        self._names = tuple(zone.name for zone in nodes[0].zones)
        movable = self._names.index("Movable")
        self._normal_nodes = mask_of([zone.nid for zone in zones if zone.managed and zone.kind < movable])
        self._policy_zone = max((zone.kind for zone in zones if zone.managed and zone.kind < movable), default=0)
        self._gfp_zones: dict[int, int] = {}
        spans = sorted((zone.start_pfn, zone.index, zone.nid) for zone in zones if zone.populated)
        self._starts = np.array([start for start, _, _ in spans], dtype=np.int64)
        self._zone_index = np.array([index for _, index, _ in spans], dtype=np.int64)
        self._zone_nid = np.array([nid for _, _, nid in spans], dtype=np.int64)
        self._bounds, self._nids = [start for start, _, _ in spans], [nid for _, _, nid in spans]
        self._local = [Policy(MPOL_PREFERRED, MPOL_F_MOF | MPOL_F_MORON, 1 << node.nid) for node in nodes]
        self._cpupids: npt.NDArray[np.int32] | None = None
        self._zones_of = {node.nid: [zone for zone in zones if zone.nid == node.nid and zone.managed] for node in nodes}

    # -- whose policy ------------------------------------------------------------------------------------

    def nid_of(self, pfns: PFNS) -> PFNS:
        """The node of each page."""
        return self._zone_nid[np.searchsorted(self._starts, pfns, "right") - 1]

    def nid_of_page(self, pfn: int) -> int:
        """The node of one page."""
        return self._nids[bisect_right(self._bounds, pfn) - 1]

    def task_policy(self, task: HasMm | None) -> Policy:
        """The policy of a task, that of its CPU's node when it has none (get_task_policy)."""
        mm = task.mm if task is not None else None
        if mm is not None and mm.policy is not None:
            return mm.policy
        return self._local[self._page_alloc.numa_node_id()]

    @staticmethod
    def own_policy(vma: Vma, vpn: int) -> Policy | None:
        """The policy of a mapping at a page: of the file in shared memory (__get_vma_policy)."""
        shared: SharedPolicy | None = getattr(vma.file, "shared_policy", None) if vma.file is not None else None
        return shared.lookup(vma.index_of(vpn)) if shared is not None else vma.policy

    def vma_policy(self, vma: Vma, vpn: int, task: HasMm | None) -> Policy:
        """The policy in force for a page (get_vma_policy)."""
        return self.own_policy(vma, vpn) or self.task_policy(task)

    def shown(self, vma: Vma, task: HasMm | None) -> str:
        """The policy of a mapping as numa_maps prints it: its own, else the task's."""
        mm = task.mm if task is not None else None
        return mpol_to_str(self.own_policy(vma, vma.vpn) or (mm.policy if mm is not None else None))

    # -- where a policy leads ----------------------------------------------------------------------------

    def _nodemask(self, gfp: int, policy: Policy) -> int:
        """The nodes that a request is confined to (policy_nodemask): lower zones are not bound."""
        if policy.mode == MPOL_PREFERRED_MANY:
            return policy.nodes
        if policy.mode != MPOL_BIND:
            return ALL_NODES
        zone = self._gfp_zones.get(gfp)
        if zone is None:
            zone = self._gfp_zones[gfp] = g.gfp_zone(gfp, self._names)
        lowest = self._policy_zone if policy.nodes & self._normal_nodes else self._names.index("Movable")
        return policy.nodes if zone >= lowest else ALL_NODES

    def _node(self, policy: Policy) -> int:
        """The node to begin with (policy_node)."""
        if policy.mode == MPOL_PREFERRED:
            return first_node(policy.nodes)
        return policy.home_node if policy.mode in (MPOL_BIND, MPOL_PREFERRED_MANY) else NUMA_NO_NODE

    def interleave_nid(self, policy: Policy, vma: Vma | None, vpn: int, order: int = 0) -> int:
        """The node of a page: by its offset in the object that is mapped, else the task's next one."""
        if vma is None:
            policy.il_prev = next_node_in(policy.il_prev, policy.nodes)
            return policy.il_prev
        members = list(nodes_of(policy.nodes))
        offset = (vma.pgoff >> order) + ((vpn << PAGE_SHIFT) - vma.start >> PAGE_SHIFT + order)
        return members[(offset & 0xFFFFFFFF) % len(members)]

    def interleave_next(self, policy: Policy) -> int:
        """The node that the task's next interleaved page would come from; nothing moves."""
        return next_node_in(policy.il_prev, policy.nodes)

    def huge_node(self, vma: Vma, vpn: int, task: HasMm | None, order: int) -> tuple[int, int]:
        """The node and the set of nodes for a hugetlb page (huge_node)."""
        policy = self.vma_policy(vma, vpn, task)
        if policy.mode == MPOL_INTERLEAVE:
            return self.interleave_nid(policy, vma, vpn, order), ALL_NODES
        node = self._node(policy)
        mask = policy.nodes if policy.mode in (MPOL_BIND, MPOL_PREFERRED_MANY) else ALL_NODES
        return (self._page_alloc.numa_node_id() if node == NUMA_NO_NODE else node), mask

    def pool_nodes(self, task: HasMm | None) -> int | None:
        """The nodes that a task's huge page pool writes spread over; None: all (init_nodemask_of_mempolicy)."""
        mm = task.mm if task is not None else None
        if mm is None or mm.policy is None:
            return None
        return mm.policy.nodes or 1 << self._page_alloc.numa_node_id()

    def in_oom_domain(self, task: HasMm | None, nodemask: int) -> bool:
        """Whether a task may have memory on the nodes of a constrained OOM (mempolicy_in_oom_domain)."""
        mm = task.mm if task is not None else None
        policy = mm.policy if mm is not None else None
        return policy is None or policy.mode != MPOL_BIND or bool(policy.nodes & nodemask)

    # -- pages -------------------------------------------------------------------------------------------

    def alloc_bulk(self, vma: Vma, task: HasMm | None, vpns: PFNS, gfp: int = GFP_USER_PAGE) -> PFNS:
        """Pages for some page numbers of a mapping, in their order; fewer when memory ran out.

        The same pages as one ``alloc_pages_vma`` after the other.
        """
        policy = vma.policy if vma.file is None else self.own_policy(vma, int(vpns[0]))
        if policy is None:
            mm = task.mm if task is not None else None
            policy = mm.policy if mm is not None else None
        if policy is not None and policy.mode == MPOL_INTERLEAVE:
            offsets = np.asarray(vpns, dtype=np.int64) + (vma.pgoff - vma.vpn)
            return self._forget(self._interleaved(self._by_offset(policy, offsets), gfp))
        return self._forget(self._bulk(policy, gfp, len(vpns)))

    def _bulk(self, policy: Policy | None, gfp: int, n: int) -> PFNS:
        """Pages by a policy that does not tell pages apart."""
        if policy is None:
            return self._page_alloc.alloc_pages_bulk(gfp, 0, n)
        if policy.mode == MPOL_PREFERRED_MANY:
            return self._preferred_many_bulk(policy, gfp, n)
        return self._page_alloc.alloc_pages_bulk(gfp, 0, n, self._node(policy), self._nodemask(gfp, policy))

    def alloc_file_pages(self, gfp: int, n: int) -> PFNS:
        """Pages for a file's page cache, by the policy of the executing task and charged to its control group; fewer
        when either has no more.
        """
        memcg = self._memcg.current() if self._memcg is not None and self._memcg.active else None
        if memcg is None or self._memcg is None:
            return self._file_pages(gfp, n)
        return self._memcg.alloc(memcg, n, lambda granted: self._file_pages(gfp, granted), exact=True)

    def take_file_pages(self, gfp: int, n: int) -> PFNS:
        """What ``alloc_file_pages`` would give one by one, up to ``n``, as far as no reclaim has a say in it."""
        task = self._current()
        policy = task.mm.policy if task is not None and task.mm is not None else None
        memcg = self._memcg.current() if self._memcg is not None and self._memcg.active else None
        if memcg is not None and self._memcg is not None:
            n = min(n, self._memcg.room(memcg))
        if n <= 0 or (policy is not None and policy.mode in (MPOL_INTERLEAVE, MPOL_PREFERRED_MANY)):
            return np.empty(0, dtype=np.int64)
        if policy is None:
            pfns = self._page_alloc.take_free_pages(gfp, n)
        else:
            pfns = self._page_alloc.take_free_pages(gfp, n, self._node(policy), self._nodemask(gfp, policy))
        if memcg is not None and self._memcg is not None:
            self._memcg.alloc(memcg, len(pfns), lambda granted: pfns, exact=True)
        return self._forget(pfns)

    def _file_pages(self, gfp: int, n: int) -> PFNS:
        task = self._current()
        policy = task.mm.policy if task is not None and task.mm is not None else None
        if policy is not None and policy.mode == MPOL_INTERLEAVE:
            return self._forget(self._interleaved(self._in_turn(policy, n), gfp))
        return self._forget(self._bulk(policy, gfp, n))

    def alloc_shmem_pages(
        self,
        file: File,
        indices: PFNS,
        task: HasMm | None,
        vma: Vma | None = None,
        vpn: int = 0,
    ) -> PFNS:
        """Pages of a tmpfs file by its own policy, else the task's (shmem_alloc_folio); fewer when memory ran out.

        An interleaving policy goes by the offset in the file and the file's number.
        """
        memcg = self._memcg.of(task or self._current()) if self._memcg is not None and self._memcg.active else None
        if memcg is None or self._memcg is None:
            return self._shmem_pages(file, indices, task)
        return self._memcg.alloc(
            memcg,
            len(indices),
            lambda granted: self._shmem_pages(file, indices[:granted], task),
            exact=True,
        )

    def _shmem_pages(self, file: File, indices: PFNS, task: HasMm | None) -> PFNS:
        found = task if task is not None else self._current()
        general = found.mm.policy if found is not None and found.mm is not None else None
        shared = file.shared_policy
        policies = [shared.lookup(index) if shared is not None else None for index in indices.tolist()]
        parts: list[PFNS] = []
        for _, run in groupby(range(len(indices)), key=lambda at: id(policies[at])):
            at = list(run)
            policy = policies[at[0]] or general
            if policy is not None and policy.mode == MPOL_INTERLEAVE:
                parts.append(self._interleaved(self._by_offset(policy, indices[at] + file.ino), GFP_USER_PAGE))
            else:
                parts.append(self._bulk(policy, GFP_USER_PAGE, len(at)))
            if len(parts[-1]) < len(at):
                break
        return self._forget(np.concatenate(parts) if parts else np.empty(0, dtype=np.int64))

    def _forget(self, pfns: PFNS) -> PFNS:
        """New pages have no last user."""
        if self._cpupids is not None:
            self._cpupids[pfns] = 0
        return pfns

    def alloc_pages_vma(self, vma: Vma | None, task: HasMm | None, vpn: int, gfp: int, order: int = 0) -> int:
        """A block for an address of a mapping (vma_alloc_folio). ENOMEM."""
        policy = self.vma_policy(vma, vpn, task) if vma is not None else self.task_policy(task)
        return self._alloc(policy, gfp, order, vma, vpn)

    def alloc_hugepage(self, vma: Vma, task: HasMm | None, vpn: int, gfp: int, order: int) -> int:
        """A transparent huge page: from the node that is nearest, and only for those who may wait from another. ENOMEM.

        Where the policy forbids that node, or interleaves, it is an allocation like any other.
        """
        head = self._hugepage(vma, task, vpn, gfp, order)
        memcg = self._memcg.of(task) if self._memcg is not None and self._memcg.active else None
        if memcg is not None and self._memcg is not None and not self._memcg.charge_block(memcg, head, order, gfp):
            self._page_alloc.free_pages(head, order)
            self._vmstat.count(stats.THP_FAULT_FALLBACK_CHARGE)
            raise KernelError(errno.ENOMEM, "the control group has no room for a huge page")
        return head

    def _hugepage(self, vma: Vma, task: HasMm | None, vpn: int, gfp: int, order: int) -> int:
        policy = self.vma_policy(vma, vpn, task)
        if policy.mode in (MPOL_INTERLEAVE, MPOL_PREFERRED_MANY):
            return self._alloc(policy, gfp, order, vma, vpn)
        nid = first_node(policy.nodes) if policy.mode == MPOL_PREFERRED else self._page_alloc.numa_node_id()
        nodemask = self._nodemask(gfp, policy)
        if not nodemask >> nid & 1:
            return self._alloc(policy, gfp, order, vma, vpn)
        try:
            return self._page_alloc.alloc_pages(gfp | g.F.THISNODE | g.F.NORETRY, order, nid)
        except KernelError:
            if not gfp & g.F.DIRECT_RECLAIM:
                raise
        return self._page_alloc.alloc_pages(gfp, order, nid, nodemask)

    def alloc_pages(self, task: HasMm | None, gfp: int, order: int = 0) -> int:
        """A block for a task's own purposes: page cache, page tables (alloc_pages). ENOMEM."""
        local = gfp & g.F.THISNODE or task is None
        return self._alloc(
            self._local[self._page_alloc.numa_node_id()] if local else self.task_policy(task),
            gfp,
            order,
        )

    def _alloc(self, policy: Policy, gfp: int, order: int, vma: Vma | None = None, vpn: int = 0) -> int:
        if policy.mode == MPOL_INTERLEAVE:
            nid = self.interleave_nid(policy, vma, vpn, order)
            pfn = self._page_alloc.alloc_pages(gfp, order, nid)
            self._count_interleave(np.array([pfn]), np.array([nid]))
            return pfn
        if policy.mode == MPOL_PREFERRED_MANY:
            nid = self._node(policy)
            first = (gfp | g.F.NOWARN) & ~(g.F.DIRECT_RECLAIM | g.F.NOFAIL)
            try:
                return self._page_alloc.alloc_pages(first, order, nid, policy.nodes)
            except KernelError:
                return self._page_alloc.alloc_pages(gfp, order, nid)
        return self._page_alloc.alloc_pages(gfp, order, self._node(policy), self._nodemask(gfp, policy))

    def _preferred_many_bulk(self, policy: Policy, gfp: int, n: int) -> PFNS:
        """Each page from the preferred nodes without reclaim, and only if that fails from all."""
        first = (gfp | g.F.NOWARN) & ~(g.F.DIRECT_RECLAIM | g.F.NOFAIL)
        nid = self._node(policy)
        parts: list[PFNS] = []
        got = 0
        while got < n:
            parts.append(self._page_alloc.alloc_pages_bulk(first, 0, n - got, nid, policy.nodes))
            got += len(parts[-1])
            if got < n:
                parts.append(self._page_alloc.alloc_pages_bulk(gfp, 0, 1, nid))
                got += len(parts[-1])
                if not len(parts[-1]) or self._dying():
                    break
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def _by_offset(self, policy: Policy, offsets: PFNS) -> PFNS:
        """The nodes of interleaved pages by their offsets in what is mapped (offset_il_node)."""
        members = np.array(list(nodes_of(policy.nodes)), dtype=np.int64)
        targets: PFNS = members[(offsets & 0xFFFFFFFF) % len(members)]
        return targets

    def _in_turn(self, policy: Policy, n: int) -> PFNS:
        """The nodes of a task's next interleaved pages (interleave_nodes)."""
        return np.array([self.interleave_nid(policy, None, 0) for _ in range(n)], dtype=np.int64)

    def _interleaved(self, targets: PFNS, gfp: int) -> PFNS:
        """Pages from the nodes given.

        All pages of a node at a time, which gives each node's in the same order: unless memory is so short that a page
        may have to come from a node other than its own.
        """
        counts = {nid: int((targets == nid).sum()) for nid in np.unique(targets).tolist()}
        out = np.empty(len(targets), dtype=np.int64)
        if all(self._roomy(nid, n) for nid, n in counts.items()):
            for nid, n in counts.items():
                out[targets == nid] = self._page_alloc.alloc_pages_bulk(gfp, 0, n, nid)
        else:
            for i, nid in enumerate(targets.tolist()):
                page = self._page_alloc.alloc_pages_bulk(gfp, 0, 1, nid)
                if not len(page):
                    out, targets = out[:i], targets[:i]
                    break
                out[i] = page[0]
                if self._dying():
                    out, targets = out[: i + 1], targets[: i + 1]
                    break
        self._count_interleave(out, targets)
        return out

    def _dying(self) -> bool:
        """Whether the executing task was killed: it gets no more than it had asked for."""
        return bool(getattr(self._current(), "killed", 0))

    def _roomy(self, nid: int, n: int) -> bool:
        """Whether a node can give ``n`` pages to anybody, far from every watermark."""
        spare = (zone.free_pages - zone.watermark_high - max(zone.protection) for zone in self._zones_of[nid])
        return sum(max(0, pages) for pages in spare) > 2 * n

    def _count_interleave(self, pfns: PFNS, targets: PFNS) -> None:
        """Pages that came from the node that they were meant to come from (NUMA_INTERLEAVE_HIT)."""
        if not self._buddy.numa_stat_on:
            return
        at = np.searchsorted(self._starts, pfns, "right") - 1
        hits = self._zone_index[at[self._zone_nid[at] == targets]]
        for zi, count in enumerate(np.bincount(hits).tolist()):
            if count:
                self._vmstat.numa_stat[zi, stats.NUMA_INTERLEAVE_HIT] += count

    # -- who touched a page last -------------------------------------------------------------------------

    def last_cpupid(self, pfn: int) -> int:
        """CPU and low bits of the pid of the last hint fault on a page; -1: none since it was allocated."""
        return -1 if self._cpupids is None else int(self._cpupids[pfn]) - 1

    def set_last_cpupid(self, pfn: int, cpupid: int) -> None:
        """Remember a hint fault (page_cpupid_xchg_last)."""
        if self._cpupids is None:
            self._cpupids = lazy_zeros(self._buddy.pages.max_pfn, "int32")
        self._cpupids[pfn] = cpupid + 1

    def copy_cpupid(self, src: int, dst: int) -> None:
        """A page that moves keeps its last user."""
        if self._cpupids is not None:
            self._cpupids[dst] = self._cpupids[src]

    def copy_cpupids(self, srcs: PFNS, dsts: PFNS) -> None:
        """``copy_cpupid`` of several pages."""
        if self._cpupids is not None:
            self._cpupids[dsts] = self._cpupids[srcs]

    # -- policies of tasks -------------------------------------------------------------------------------

    def set_mempolicy(self, task: HasMm, mode: int, mask: int | None, maxnode: int = MAX_NUMNODES + 1) -> None:
        """Set a task's policy (set_mempolicy(2)). EINVAL; ENOSYS on a kernel without NUMA."""
        self.require_numa()
        mode, flags = sanitize_mpol_flags(mode)
        policy = mpol_new(mode, flags, user_mask(mask, maxnode), self.memory_nodes)
        if task.mm is None:
            raise KernelError(errno.EINVAL, "a kernel thread calls nothing")
        task.mm.policy = policy

    def require_numa(self) -> None:
        """ENOSYS where the kernel has none of these calls."""
        if not self.numa:
            raise KernelError(errno.ENOSYS, "this kernel is built without CONFIG_NUMA")
