"""Generations, the other replacement policies, and the files that show them, wired (init_lru_gen).

A part of ``memory_pressure.py`` in a module of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kmemd.core import stats
from kmemd.core.lru_gen import LruGen
from kmemd.mm.clock import HZ, NSEC_PER_SEC
from kmemd.mm.filemap import PFNs, ZoneCounts
from kmemd.mm.lru_gen import Generations
from kmemd.mm.lru_gen_debugfs import LruGenFiles
from kmemd.mm.lru_gen_evict import GenEviction
from kmemd.mm.lru_gen_walk import PageTableWalk
from kmemd.mm.mm_types import Mm, Vma
from kmemd.mm.page_request import Request
from kmemd.mm.replacement import OneList, Replacement
from kmemd.mm.vmscan import LRU_GEN_CAPS, LRU_GEN_CORE
from kmemd.mm.vmscan_balance import Balance
from kmemd.steps import Steps

if TYPE_CHECKING:
    from kmemd.kernel import Kernel

JIFFY_NS = NSEC_PER_SEC // HZ
LRU_ITEMS = (stats.NR_ZONE_INACTIVE_ANON, stats.NR_INACTIVE_ANON)


class PageReplacement:
    """Everything about which pages go first. ``user`` is the ``UserMemory`` that is being made, ``reclaim`` the
    ``PageReclaim``."""

    def __init__(self, kernel: Kernel, user: Any, reclaim: Any, balance: Balance, counts: ZoneCounts) -> None:
        self._kernel, self._user = kernel, user
        zones = [(zone.nid, zone.start_pfn, zone.end_pfn) for zone in kernel.zones]
        core = LruGen(user.lru, kernel.pages, zones, kernel.vmstat, LRU_ITEMS, kernel.vmstat.hpage_pmd_nr)
        lruvecs, lists, lru = reclaim.lruvecs, reclaim.list_scan, user.lru
        self._walk = PageTableWalk(
            kernel.pages,
            core,
            user.mmu,
            self._mms,
            self._ran,
            user.page_cache.dirty_pages,
            HZ,
            lruvecs.number,
            counts.nids,
        )
        self.generations = Generations(
            core,
            lru,
            lruvecs,
            balance,
            kernel.vmstat,
            self._walk,
            lambda: kernel.clock.now // JIFFY_NS,
            lambda: kernel.vmscan.lru_gen_caps,
            lambda: kernel.vmscan.lru_gen_min_ttl,
            lambda: kernel.vmscan.swappiness,
            self._out_of_memory,
        )
        self._lists = lists
        eviction = GenEviction(
            kernel.pages,
            lru,
            self.generations,
            lists,
            kernel.nodes,
            kernel.vmstat,
            user.block.wait_some,
            self._killed,
            stats.ZONES_PER_NODE,
        )
        one_list = OneList(kernel.pages, lru, lists, balance, kernel.vmstat, user.block.wait_some)
        self.policy = Replacement(
            lru, lruvecs, kernel.vmstat, user.page_cache, self.generations, eviction, one_list, self._changed
        )
        self.files = LruGenFiles(self.generations, eviction, kernel.nodes, self._groups)
        reclaim.reclaim.replacement = self.policy
        reclaim.workingset.generations = self.generations
        kernel.vmscan.change_state = self._switch

    # -- switching ---------------------------------------------------------------------------------------

    def _switch(self, enabled: bool) -> Steps[None]:
        """The knob was written: generations, or what Linux has without."""
        if enabled != self.generations.enabled:
            yield from self.policy.select("mglru" if enabled else "two-list")

    def _changed(self, enabled: bool) -> None:
        """Another policy is in force: the knob shows whether it is the one of generations."""
        vmscan = self._kernel.vmscan
        caps = vmscan.lru_gen_caps or LRU_GEN_CAPS
        vmscan.lru_gen_caps = caps | LRU_GEN_CORE if enabled else vmscan.lru_gen_caps & ~LRU_GEN_CORE
        self._lists.look_around = self._look_around if enabled else None

    def _look_around(self, mm: Mm, vma: Vma, vpns: PFNs, pfns: PFNs) -> None:
        self._walk.look_around(mm, vma, vpns, pfns, self.generations.noted)

    # -- what generations ask for ------------------------------------------------------------------------

    def _mms(self, memcg: int) -> list[Mm]:
        """The address spaces of a control group, oldest first."""
        kernel = self._kernel
        living = list(self._user.mms.living.values())
        if not kernel.memcg.active:
            return living if not memcg else []
        groups = {}
        for task in kernel.tasks:
            if task.mm is not None:
                group = kernel.memcg.of(task)
                groups[task.mm.id] = group.id if group is not None else 0
        return [mm for mm in living if groups.get(mm.id, 0) == memcg]

    def _ran(self, mm: Mm) -> int | None:
        """The time for which a process was executed; None while it is."""
        tasks = self._kernel.tasks
        current = tasks.current()
        if current is not None and current.mm is mm:
            return None
        return sum(task.utime_ns + task.stime_ns for task in tasks if task.mm is mm)

    def _killed(self) -> bool:
        current = self._kernel.tasks.current()
        return current is not None and bool(current.killed)

    def _out_of_memory(self, gfp: int) -> bool:
        """Nothing may be evicted: kill instead of thrash."""
        nodes = (1 << len(self._kernel.nodes)) - 1
        return self._kernel.oom_kill.out_of_memory(Request(gfp, 0, 0, stats.ZONES_PER_NODE - 1, nodes, 0))

    def _groups(self) -> list[tuple[int, str]]:
        """Control groups with memory of their own: numbers and paths, the root first."""
        found: dict[int, str] = {}
        for group in self._kernel.cgroups.root.descendants():
            if group.memcg is not None:
                found.setdefault(group.memcg.id, group.path)  # a group without the controller has its parent's
        return list(found.items())
