"""Eviction from generations (mm/vmscan.c ``evict_folios``, ``isolate_folios``, ``lru_gen_shrink_lruvec``).

Models: which type is scanned, from swappiness and the controller; pages that are rejected go to the youngest
generation, those under write-back wait in the second youngest; when to stop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kmemd.core import stats
from kmemd.core.lru import Lru
from kmemd.core.lru_gen_lists import GUARDED, ISOLATED, LEFT, MIN_LRU_BATCH, SCANNED, SORTED
from kmemd.core.lru_lists import MIN_NR_GENS
from kmemd.core.pages import (
    LRU_REFS_MASK,
    PG_ACTIVE,
    PG_DIRTY,
    PG_LOCKED,
    PG_MLOCKED,
    PG_RECLAIM,
    PG_REFERENCED,
    PG_UNEVICTABLE,
    PG_WORKINGSET,
    PG_WRITEBACK,
    PageMap,
)
from kmemd.mm import gfp as g
from kmemd.mm.filemap import PFNs, flag
from kmemd.mm.lru_gen import ANON, FILE, Generations
from kmemd.mm.mmzone import Node
from kmemd.mm.vmscan_balance import DEF_PRIORITY, ScanControl
from kmemd.mm.vmscan_folio import ListScan
from kmemd.mm.vmstat import VmStat

if TYPE_CHECKING:
    from kmemd.mm.vmscan_reclaim import Pauses

_BUSY = flag(PG_DIRTY, PG_WRITEBACK)
_RECLAIM, _WORKINGSET, _REFERENCED = flag(PG_RECLAIM), flag(PG_WORKINGSET), flag(PG_REFERENCED)
_MARKS = np.uint32(LRU_REFS_MASK) | _WORKINGSET | _REFERENCED
_REJECTED = flag(PG_ACTIVE, PG_REFERENCED, PG_LOCKED, PG_DIRTY, PG_WRITEBACK)
_LOCKED_IN = flag(PG_MLOCKED, PG_UNEVICTABLE)


class GenEviction:
    """Evicts pages of generations. ``killed()`` tells whether the executing task is about to end; ``wait(0)`` lets
    devices go on."""

    def __init__(
        self,
        pages: PageMap,
        lru: Lru,
        generations: Generations,
        lists: ListScan,
        nodes: list[Node],
        vmstat: VmStat,
        wait: Callable[[int], int],
        killed: Callable[[], bool],
        zones_per_node: int,
    ) -> None:
        self._pages, self._lru, self._gens, self._lists, self._nodes = pages, lru, generations, lists, nodes
        self._vmstat, self._wait, self._killed = vmstat, wait, killed
        self._out = np.empty(MIN_LRU_BATCH, dtype=np.int64)
        self._skipped = np.zeros(zones_per_node, dtype=np.int64)

    def shrink_lruvec(self, memcg: int, nid: int, sc: ScanControl) -> Pauses[None]:
        """Evict as much of a lruvec as the priority says (``lru_gen_shrink_lruvec``)."""
        lruvec = self._gens.lruvecs.number(memcg, nid)
        self._lru.drain_local()
        scanned, before, seq = 0, sc.nr_reclaimed, self._gens.max_seq(lruvec)
        need_swapping = False
        while True:
            swappiness = self._swappiness(memcg, sc)
            nr_to_scan, need_aging = yield from self._nr_to_scan(memcg, nid, sc, can_swap=bool(swappiness))
            if not nr_to_scan:
                return
            delta, file = self.evict(memcg, nid, sc, swappiness)
            yield 0
            need_swapping = need_swapping or file == ANON
            if not delta:
                return
            scanned += delta
            if scanned >= nr_to_scan or self._should_abort(lruvec, nid, seq, sc, need_swapping=need_swapping):
                break
        if sc.nr_reclaimed - before >= MIN_LRU_BATCH and not need_aging:
            sc.memcgs_need_aging = False

    def _swappiness(self, memcg: int, sc: ScanControl) -> int:
        swappiness = self._gens.swappiness(memcg)
        if sc.may_swap:
            return swappiness
        return 1 if not sc.cgroup and swappiness else 0

    def _nr_to_scan(self, memcg: int, nid: int, sc: ScanControl, *, can_swap: bool) -> Pauses[tuple[int, bool]]:
        """How much to scan, and whether a new generation was due; it is begun by who may (``get_nr_to_scan``)."""
        gens = self._gens
        lruvec = gens.lruvecs.number(memcg, nid)
        due, scan = gens.should_run_aging(memcg, lruvec, sc.priority, can_swap)
        if not due:
            return scan, False
        if sc.priority != DEF_PRIORITY:
            if sc.kswapd:
                return 0, True  # it begins one before it evicts
            newest = gens.max_seq(lruvec)
            yield from gens.try_to_inc_max_seq(memcg, nid, newest, can_swap=can_swap)
            if newest < gens.max_seq(lruvec):
                return scan, True
        return (scan if gens.nr_gens(lruvec, int(not can_swap)) > MIN_NR_GENS else 0), True

    def _should_abort(self, lruvec: int, nid: int, seq: int, sc: ScanControl, *, need_swapping: bool) -> bool:
        """Whether enough was done for now (``should_abort_scan``)."""
        if not sc.kswapd:
            enough = sc.nr_reclaimed >= sc.nr_to_reclaim
            if self._gens.max_seq(lruvec) - seq > 1 or (enough and need_swapping):
                return True
            if self._killed():
                sc.nr_reclaimed += MIN_LRU_BATCH
                return True
            if sc.cgroup:
                return False
        elif sc.nr_reclaimed - sc.last_reclaimed < sc.nr_to_reclaim:
            return False
        if sc.priority > DEF_PRIORITY - 2:
            return False
        for zone in self._nodes[nid].zones[: sc.reclaim_idx + 1]:
            mark = (zone.watermark_high if sc.kswapd else zone.watermark_low) + zone.boost
            if zone.managed and mark > zone.free_pages:
                return False
        sc.nr_reclaimed += MIN_LRU_BATCH
        return True

    # -- one batch ---------------------------------------------------------------------------------------

    def evict(self, memcg: int, nid: int, sc: ScanControl, swappiness: int) -> tuple[int, int]:
        """One batch of pages (``evict_folios``): how many were scanned, 0 when there is no more to do, and which type
        they were of, -1 where no page was isolated."""
        self._wait(0)
        lruvec = self._gens.lruvecs.number(memcg, nid)
        pfns, scanned, file = self._isolate(memcg, nid, lruvec, sc, swappiness)
        scanned += self._gens.core.try_to_inc_min_seq(lruvec, bool(swappiness))
        if self._gens.nr_gens(lruvec, int(not swappiness)) == MIN_NR_GENS:
            scanned = 0
        if not len(pfns):
            return scanned, -1
        clean = self._shrink(pfns, memcg, nid, file, sc, retry=True)
        if len(clean):
            self._shrink(clean, memcg, nid, file, sc, retry=False)
        return scanned, file

    def _isolate(self, memcg: int, nid: int, lruvec: int, sc: ScanControl, swappiness: int) -> tuple[PFNs, int, int]:
        """The oldest pages of the type that is missed less (``isolate_folios``)."""
        oldest = self._gens.min_seq(lruvec)
        tier = -1
        if not swappiness:
            file = FILE
        elif oldest[ANON] < oldest[FILE]:
            file = ANON
        elif swappiness in (1, 200):
            file = FILE if swappiness == 1 else ANON
        else:
            file, tier = self._gens.type_to_scan(lruvec, swappiness)
        for _ in range(2 if swappiness else 1):
            if tier < 0:
                tier = self._gens.tier_to_scan(lruvec, file)
            pfns, scanned = self._scan(memcg, nid, lruvec, file, tier, sc)
            if scanned:
                return pfns, scanned, file
            file, tier = 1 - file, -1
        return pfns, 0, file

    def _scan(self, memcg: int, nid: int, lruvec: int, file: int, tier: int, sc: ScanControl) -> tuple[PFNs, int]:
        """Isolate pages of a type, with the events of it (``scan_folios``)."""
        core = self._gens.core
        may_write = sc.may_writepage and bool(sc.gfp & g.F.IO)
        blocks = core.scan(lruvec, file, tier, sc.reclaim_idx, sc.may_unmap, may_write, self._out, self._skipped)
        isolated, refilled = int(core.results[ISOLATED]), int(core.results[SORTED])
        if self._skipped.any():
            for kind in np.flatnonzero(self._skipped).tolist():
                self._vmstat.count(stats.PGSCAN_SKIP + kind, int(self._skipped[kind]))
            self._skipped[:] = 0
        if core.results[GUARDED]:
            self._gens.protected(memcg, nid, file, int(core.results[GUARDED]))
        event = stats.PGSCAN_KSWAPD if sc.kswapd else stats.PGSCAN_DIRECT
        for item, pages in ((event, isolated), (stats.PGREFILL, refilled)):
            if not sc.cgroup:
                self._vmstat.count(item, pages)
            self._gens.lruvecs.count(memcg, nid, -item, pages)
        self._vmstat.count(stats.PGSCAN_ANON + file, isolated)
        progress = blocks or not core.results[LEFT]
        return self._out[:blocks].copy(), int(core.results[SCANNED]) if progress else 0

    def _shrink(self, pfns: PFNs, memcg: int, nid: int, file: int, sc: ScanControl, *, retry: bool) -> PFNs:
        """Reclaim isolated pages; those that could not go are back on lists, but for clean ones worth another try."""
        freed, kept = self._lists.shrink_folio_list(pfns, nid, sc)
        sc.nr_reclaimed += freed
        event = stats.PGSTEAL_KSWAPD if sc.kswapd else stats.PGSTEAL_DIRECT
        if not sc.cgroup:
            self._vmstat.count(event, freed)
        self._gens.lruvecs.count(memcg, nid, -event, freed)
        self._vmstat.count(stats.PGSTEAL_ANON + file, freed)
        again = self._reject(kept, retry=retry)
        self._lists.putback(kept[~again])
        found: PFNs = kept[again]
        return found

    def _reject(self, pfns: PFNs, *, retry: bool) -> npt.NDArray[np.bool_]:
        """Mark pages that were not reclaimed: they are not the oldest. Which of them to try once more."""
        flags = self._pages.flags
        evictable = flags[pfns] & _LOCKED_IN == 0
        waits = evictable & (flags[pfns] & _RECLAIM != 0) & (flags[pfns] & _BUSY != 0)
        worked = pfns[waits & (flags[pfns] & _WORKINGSET != 0)]
        flags[worked] |= _REFERENCED
        rejected = (flags[pfns] & _REJECTED != 0) | (self._pages.mapcount[pfns] > 0)
        rejected = evictable & ~waits & (rejected if retry else np.ones(len(pfns), dtype=bool))
        flags[pfns[rejected]] = flags[pfns[rejected]] & ~_MARKS | flag(PG_ACTIVE)
        again: npt.NDArray[np.bool_] = evictable & ~waits & ~rejected
        return again
