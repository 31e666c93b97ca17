"""Page reclaim with its shadows, and the caches that give way besides, wired (kswapd_init, workingset_init).

A part of ``user_memory.py`` in a module of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kmemd.core import stats
from kmemd.core.context import WAITED
from kmemd.mm.clock import HZ, NSEC_PER_SEC
from kmemd.mm.file_evict import CleanEviction
from kmemd.mm.filemap import ZoneCounts
from kmemd.mm.lruvec import LruVecs
from kmemd.mm.memcontrol_group import MemCgroup
from kmemd.mm.shrinker import Shrinkers
from kmemd.mm.vmscan_balance import Balance
from kmemd.mm.vmscan_folio import ListScan
from kmemd.mm.vmscan_kswapd import Kswapd
from kmemd.mm.vmscan_reclaim import Reclaim
from kmemd.mm.workingset import Workingset
from kmemd.page_replacement import PageReplacement
from kmemd.steps import Steps

if TYPE_CHECKING:
    from kmemd.kernel import Kernel

JIFFY_NS = NSEC_PER_SEC // HZ


class PageReclaim:
    """Everything that takes pages away. ``user`` is the ``UserMemory`` that is being made."""

    def __init__(self, kernel: Kernel, user: Any, counts: ZoneCounts) -> None:
        self._kernel, self._user = kernel, user
        vmstat, swap = kernel.vmstat, kernel.swap
        self.lruvecs = LruVecs(user.lru, vmstat)
        self.lruvecs.memcgs = kernel.memcg
        balance = Balance(self.lruvecs, vmstat, lambda: kernel.vmscan.swappiness, lambda: swap.nr_swap_pages)
        self.workingset = Workingset(kernel.pages, vmstat, self.lruvecs, counts.nids, balance.swap_left)
        user.pageout.workingset = user.swap_state.workingset = self.workingset
        user.page_cache.refault = self.workingset.refault
        user.page_cache.activated = self.workingset.activation
        self.shrinkers = Shrinkers(vmstat)
        self.shrinkers.register(
            "thp-deferred_split",
            lambda nid: len(user.huge_split.deferred(nid)),
            user.huge_split.split_deferred,
        )
        self.list_scan = ListScan(
            kernel.pages,
            user.lru,
            self.lruvecs,
            user.mmu,
            user.rmap,
            user.page_cache,
            counts,
            vmstat,
            user.pageout,
            user.block.flushers.wakeup_flusher_threads,
            stats.ZONES_PER_NODE,
        )
        clean = CleanEviction(
            kernel.pages,
            kernel.zones,
            vmstat,
            user.page_cache,
            self.lruvecs,
            self.workingset,
            kernel.page_alloc,
            user.pageout.dropped_clean,
        )
        self.list_scan.drop_clean, self.list_scan.deactivate_unmapped = clean, clean.deactivate
        self.reclaim = kernel.vmscan.reclaim = Reclaim(
            kernel.nodes,
            kernel.buddy,
            vmstat,
            self.lruvecs,
            balance,
            self.list_scan,
            self.shrinkers,
            self.workingset,
            self._wait_some,
            lambda: swap.total_swap_pages,
            lambda: kernel.vmscan.zone_reclaim_mode,
        )
        self.replacement = PageReplacement(kernel, user, self, balance, counts)
        self.kswapd = Kswapd(
            kernel.nodes,
            kernel.buddy,
            vmstat,
            kernel.context,
            kernel.clock,
            kernel.tasks,
            self.reclaim,
            lambda: kernel.page_writeback.laptop_mode,
            lambda nid, order, highest: None,
            self._next_io,
            lambda ns: kernel.psi.memstall(None, ns, elsewhere=True),
        )
        kernel.pressure.attach(self.reclaim, self.kswapd, self._wait_some)

    def _wait_some(self, ns: int) -> int:
        """Reclaim has the executing task wait up to ``ns`` for devices: how long it did."""
        words, waited = self._kernel.context.words, self._kernel.context.waited_ns
        took: int = self._user.block.wait_some(ns)
        words[WAITED] = waited + took
        if took:
            self._kernel.tasks.slept(self._kernel.tasks.current())
        return took

    def forget(self, memcg: int) -> None:
        """A control group is gone for good: its number may be used again."""
        self.lruvecs.forget(memcg)
        self.replacement.generations.forget(memcg)

    def _next_io(self) -> int | None:
        """When a disk or a swap device is next done with something."""
        times = (self._user.block.io.next_event, self._user.swap_io.next_event)
        return min((when for when in times if when is not None), default=None)

    def try_to_free_mem_cgroup_pages(self, memcg: MemCgroup, nr_pages: int, gfp: int, may_swap: bool) -> int:
        """Reclaim of a control group: the pages freed. Where all are being written, looking at them again and again
        takes as long as the device does for the next ones.
        """
        vmscan, vmstat = self._kernel.vmscan, self._kernel.vmstat
        freed = vmscan.try_to_free_mem_cgroup_pages(memcg.id, nr_pages, gfp, may_swap)
        if not freed and vmstat.node_total(stats.NR_WRITEBACK):
            self._wait_some(JIFFY_NS)
        return freed

    def mem_cgroup_steps(self, memcg: MemCgroup, nr_pages: int, gfp: int) -> Steps[int]:
        """``try_to_free_mem_cgroup_pages`` with points where others may run."""
        steps, freed = self.reclaim.of_cgroup_steps(memcg.id, nr_pages, gfp), -1
        while freed < 0:
            try:
                pause = next(steps)
            except StopIteration as stop:
                freed = stop.value
                pause = JIFFY_NS if not freed and self._kernel.vmstat.node_total(stats.NR_WRITEBACK) else 0
            if pause:
                self._wait_some(pause)
                self.reclaim.meanwhile()
            yield
        return freed
