"""How much reclaim scans of which list (mm/vmscan.c ``get_scan_count``, ``prepare_scan_count``).

Models: a reclaim's settings and what it found (``struct scan_control``), the balance between anonymous and file
pages from swappiness and costs, cache trimming, tiny file lists, the protection of cgroups, and when a list of
inactive pages is too short. Left out: demotion to slower nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import isqrt

from kmemd.core import stats
from kmemd.core.lru_lists import LRU_ACTIVE_ANON, LRU_ACTIVE_FILE, LRU_INACTIVE_ANON, LRU_INACTIVE_FILE
from kmemd.mm.lruvec import ROOT_MEMCG, LruVecs
from kmemd.mm.mmzone import Node
from kmemd.mm.units import PAGE_SHIFT
from kmemd.mm.vmstat import VmStat

DEF_PRIORITY = 12
SWAP_CLUSTER_MAX = 32
DEACTIVATE_ANON, DEACTIVATE_FILE = 1, 2
EVICTABLE = (LRU_INACTIVE_ANON, LRU_ACTIVE_ANON, LRU_INACTIVE_FILE, LRU_ACTIVE_FILE)
GIB_SHIFT = 30


@dataclass(slots=True)
class Found:
    """What the pages of a scan were (``sc->nr``)."""

    dirty: int = 0
    unqueued_dirty: int = 0
    congested: int = 0
    writeback: int = 0
    immediate: int = 0
    ref_keep: int = 0
    file_taken: int = 0
    taken: int = 0


@dataclass(slots=True)
class ScanControl:
    """One reclaim. ``target`` is the cgroup whose limit it is for, 0 for the machine's memory."""

    nr_to_reclaim: int
    gfp: int
    order: int = 0
    priority: int = DEF_PRIORITY
    reclaim_idx: int = 3
    target: int = ROOT_MEMCG
    kswapd: bool = False
    proactive: bool = False
    may_writepage: bool = True
    may_unmap: bool = True
    may_swap: bool = True
    may_deactivate: int = 0
    force_deactivate: bool = False
    skipped_deactivate: bool = False
    cache_trim_mode: bool = False
    file_is_tiny: bool = False
    memcg_low_reclaim: bool = False
    memcg_low_skipped: bool = False
    compaction_ready: bool = False
    anon_cost: int = 0
    file_cost: int = 0
    last_reclaimed: int = 0
    memcgs_need_aging: bool = False
    nr_scanned: int = 0
    nr_reclaimed: int = 0
    nr: Found = field(default_factory=Found)

    @property
    def cgroup(self) -> bool:
        """Whether it is for the limit of a cgroup (``cgroup_reclaim``)."""
        return self.target != ROOT_MEMCG


class Balance:
    """``swappiness()`` is the knob, ``swap_pages()`` the free slots of all areas."""

    def __init__(
        self, lruvecs: LruVecs, vmstat: VmStat, swappiness: Callable[[], int], swap_pages: Callable[[], int]
    ) -> None:
        self._lruvecs, self._vmstat = lruvecs, vmstat
        self._swappiness, self._swap_pages = swappiness, swap_pages

    def can_reclaim_anon(self, memcg: int) -> bool:
        """Whether anonymous pages have somewhere to go (``can_reclaim_anon_pages``)."""
        return self.swap_left(memcg) > 0

    def swap_left(self, memcg: int) -> int:
        """Slots that a cgroup may take (``mem_cgroup_get_nr_swap_pages``)."""
        return min(self._swap_pages(), self._lruvecs.memcgs.swap_left(memcg))

    def inactive_is_low(self, memcg: int, nid: int, inactive: int) -> bool:
        """Whether active pages should become inactive: the larger the memory, the fewer are inactive."""
        count = self._lruvecs.pages
        few, many = count(memcg, nid, inactive), count(memcg, nid, inactive + 1)
        gib = few + many >> GIB_SHIFT - PAGE_SHIFT
        return few * (isqrt(10 * gib) if gib else 1) < many

    def prepare(self, node: Node, sc: ScanControl) -> None:
        """Look at the whole target before its parts are scanned (``prepare_scan_count``)."""
        lruvec = self._lruvecs.get(sc.target, node.nid)
        sc.anon_cost, sc.file_cost = lruvec.anon_cost, lruvec.file_cost
        if sc.force_deactivate:
            sc.may_deactivate = DEACTIVATE_ANON | DEACTIVATE_FILE
        else:
            sc.may_deactivate = 0
            for file, inactive in enumerate((LRU_INACTIVE_ANON, LRU_INACTIVE_FILE)):
                refaults = self._lruvecs.counted(sc.target, node.nid, stats.WORKINGSET_ACTIVATE_ANON + file)
                if refaults != lruvec.refaults[file] or self.inactive_is_low(sc.target, node.nid, inactive):
                    sc.may_deactivate |= 1 << file
        pages = self._lruvecs.pages(sc.target, node.nid, LRU_INACTIVE_FILE)
        sc.cache_trim_mode = bool(pages >> sc.priority) and not sc.may_deactivate & DEACTIVATE_FILE
        if not sc.cgroup:
            sc.file_is_tiny = self._file_is_tiny(node, sc)

    def _file_is_tiny(self, node: Node, sc: ScanControl) -> bool:
        """Whether so few file pages are left that taking them all would not help."""
        if sc.may_deactivate & DEACTIVATE_ANON or not node.stat(stats.NR_INACTIVE_ANON) >> sc.priority:
            return False
        free = sum(zone.free_pages for zone in node.zones)
        file = node.stat(stats.NR_ACTIVE_FILE) + node.stat(stats.NR_INACTIVE_FILE)
        high = sum(zone.watermark_high + zone.boost for zone in node.zones if zone.managed)
        return file + free <= high

    def scan_count(self, memcg: int, nid: int, sc: ScanControl) -> list[int]:
        """How many pages to scan of each list (``get_scan_count``)."""
        anon, file = self._fractions(memcg, sc)
        counts = []
        for which in EVICTABLE:
            scan = self._protected(memcg, self._lruvecs.size(memcg, nid, which, sc.reclaim_idx), sc) >> sc.priority
            part = file if which >= LRU_INACTIVE_FILE else anon
            counts.append(scan if anon == file == 1 else scan * part // (anon + file))
        return counts

    def _fractions(self, memcg: int, sc: ScanControl) -> tuple[int, int]:
        """The pressure on anonymous and file pages; (1, 1) is both in full."""
        swappiness = self._swappiness()
        if not sc.may_swap or not self.can_reclaim_anon(memcg) or (sc.cgroup and not swappiness):
            return 0, 1
        if not sc.priority and swappiness:
            return 1, 1
        if sc.file_is_tiny:
            return 1, 0
        if sc.cache_trim_mode:
            return 0, 1
        total = sc.anon_cost + sc.file_cost
        anon_cost, file_cost = total + sc.anon_cost, total + sc.file_cost
        total = anon_cost + file_cost
        anon = swappiness * (total + 1) // (anon_cost + 1)
        file = (200 - swappiness) * (total + 1) // (file_cost + 1)
        # equal shares are halves of the scan; (1, 1) has another meaning
        return (2, 2) if anon == file else (anon, file)

    def _protected(self, memcg: int, size: int, sc: ScanControl) -> int:
        """What of a list may be scanned, given memory.min and memory.low of its cgroup."""
        least, low, usage = self._lruvecs.memcgs.protection(sc.target, memcg)
        if not least and not low:
            return size
        protection = least
        if not sc.memcg_low_reclaim and low > least:
            protection, sc.memcg_low_skipped = low, True
        return max(size - size * protection // (max(usage, protection) + 1), SWAP_CLUSTER_MAX)
