"""Page reclaim with its shadows, and the caches that give way besides, wired (kswapd_init, workingset_init).

A part of ``user_memory.py`` in a module of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kmemd.core import stats
from kmemd.mm.clock import HZ, NSEC_PER_SEC
from kmemd.mm.filemap import ZoneCounts
from kmemd.mm.lruvec import LruVecs
from kmemd.mm.memcontrol_group import MemCgroup
from kmemd.mm.shrinker import Shrinkers
from kmemd.mm.vmscan_balance import Balance
from kmemd.mm.vmscan_folio import ListScan
from kmemd.mm.vmscan_kswapd import Kswapd
from kmemd.mm.vmscan_reclaim import Reclaim
from kmemd.mm.workingset import Workingset

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
        balance = Balance(self.lruvecs, vmstat, lambda: kernel.vmscan.swappiness, lambda: swap.free_pages)
        self.workingset = Workingset(kernel.pages, vmstat, self.lruvecs, counts.nids, balance.swap_left)
        user.pageout.workingset = user.swap_state.workingset = self.workingset
        user.page_cache.refault = self.workingset.refault
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
        self.reclaim = kernel.vmscan.reclaim = Reclaim(
            kernel.nodes,
            kernel.buddy,
            vmstat,
            self.lruvecs,
            balance,
            self.list_scan,
            self.shrinkers,
            self.workingset,
            user.block.wait_some,
            lambda: swap.total_pages,
            lambda: kernel.vmscan.zone_reclaim_mode,
        )
        self.kswapd = Kswapd(
            kernel.nodes,
            kernel.buddy,
            vmstat,
            kernel.context,
            kernel.tasks,
            self.reclaim,
            lambda: kernel.page_writeback.laptop_mode,
            lambda nid, order, highest: None,
            lambda ns: kernel.psi.memstall(None, ns, full=False),
        )
        kernel.pressure.attach(self.reclaim, self.kswapd)

    def try_to_free_mem_cgroup_pages(self, memcg: MemCgroup, nr_pages: int, gfp: int, may_swap: bool) -> int:
        """Reclaim of a control group: the pages freed. Where all are being written, looking at them again and again
        takes as long as the device does for the next ones.
        """
        vmscan, vmstat = self._kernel.vmscan, self._kernel.vmstat
        freed = vmscan.try_to_free_mem_cgroup_pages(memcg.id, nr_pages, gfp, may_swap)
        if not freed and vmstat.node_total(stats.NR_WRITEBACK):
            self._user.block.wait_some(JIFFY_NS)
        return freed
