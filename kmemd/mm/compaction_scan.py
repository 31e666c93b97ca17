"""Compacting one zone: the migration scanner comes from below, the free scanner from above (mm/compaction.c).

Models ``compact_zone`` with the search for a source block, isolation, migration of each cluster, when it is finished,
drains of the per-cpu lists and what the zone remembers. The free scanner is mm/compaction_free.py. Left out: contention
and throttling, for nothing else runs meanwhile; movable pages of drivers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from kmemd.core import stats
from kmemd.core import trace_ids as ev
from kmemd.core.buddy import Buddy
from kmemd.core.compact import ASYNC, SYNC, Scanner
from kmemd.core.compact_free import FreeScanner as FreeLists
from kmemd.core.context import Context
from kmemd.core.lru import Lru
from kmemd.core.mmzone import ALLOC_CMA, MAX_ORDER, MIGRATE_CMA, MIGRATE_MOVABLE, MIGRATE_RECLAIMABLE
from kmemd.core.pages import PG_SWAPBACKED, PageMap
from kmemd.mm import gfp as g
from kmemd.mm import trace_points
from kmemd.mm.compaction_free import Blocks, FreeScanner, scan_limit
from kmemd.mm.compaction_zone import NOWHERE, PFNS, Control, Result, ZoneState
from kmemd.mm.migrate import MR_COMPACTION
from kmemd.mm.mmzone import PAGE_ALLOC_COSTLY_ORDER, Zone
from kmemd.mm.vmstat import VmStat, fragmentation_index
from kmemd.steps import Steps

FALLBACKS = ((MIGRATE_RECLAIMABLE, MIGRATE_MOVABLE), (MIGRATE_RECLAIMABLE, 0), (0, MIGRATE_MOVABLE))
"""Whose blocks a request of each migratetype may take (core/migratetypes.py ``_fallback_type``)."""


class Mover(Protocol):
    """Migration (mm/migrate.py)."""

    def move_bulk(self, srcs: PFNS, dsts: PFNS, reason: int, *, wait: bool = True) -> list[int]: ...
    def putback(self, pfns: list[int]) -> None: ...


class Limits(Protocol):
    """The knobs that a run looks at."""

    extfrag_threshold: int
    compact_unevictable_allowed: int

    def proactively_done(self, zone: Zone) -> bool: ...
    def kswapd_runs(self, nid: int) -> bool: ...


class ZoneCompactor:
    """``movers()`` are the LRU lists and migration, None before there is anything to move.

    Invariants: between two steps no page is isolated to be moved, and each isolated free page is in its ``Control``.
    """

    def __init__(
        self,
        buddy: Buddy,
        scanner: Scanner,
        pages: PageMap,
        vmstat: VmStat,
        context: Context,
        free_pages_bulk: Callable[[PFNS, int], None],
        movers: Callable[[], tuple[Lru, Mover] | None],
        limits: Limits,
        page_ns: int = 0,
    ) -> None:
        """``page_ns`` is what isolating and remapping a page costs."""
        self._buddy = buddy
        self._lists = FreeLists(buddy)
        self._scanner = scanner
        self._pages = pages
        self._vmstat = vmstat
        self._context = context
        self._free_pages_bulk = free_pages_bulk
        self._movers = movers
        self._limits = limits
        self._page_ns = page_ns
        self._free = FreeScanner(buddy, scanner, vmstat)
        self._blocks = Blocks(buddy.pageblock_order)

    # -- is it worth it ----------------------------------------------------------------------------------

    def suitable(self, zone: Zone, order: int, alloc_flags: int, highest: int) -> Result:
        """Whether compaction should run: SUCCESS if the request would succeed as it is (compaction_suitable)."""
        found = self._suitable(zone, order, alloc_flags, highest)
        trace_points.compaction_zone(self._vmstat.trace, ev.MM_COMPACTION_SUITABLE, zone, order, found)
        return found

    def _suitable(self, zone: Zone, order: int, alloc_flags: int, highest: int) -> Result:
        """``__compaction_suitable``, and whether free blocks are too few or too small."""
        if order == -1:
            return Result.CONTINUE
        marks = (zone.watermark_min, zone.watermark_low, zone.watermark_high, zone.watermark_min)
        ok = self._buddy.watermark_ok
        if ok(zone.index, order, marks[alloc_flags & 3] + zone.boost, highest, alloc_flags):
            return Result.SUCCESS
        costly = order > PAGE_ALLOC_COSTLY_ORDER
        mark = (marks[1] if costly else marks[0]) + zone.boost + (2 << order)
        if not ok(zone.index, 0, mark, highest, ALLOC_CMA):
            return Result.SKIPPED
        if costly and 0 <= fragmentation_index(zone.nr_free, order) <= self._limits.extfrag_threshold:
            return Result.SKIPPED
        return Result.CONTINUE

    # -- the run -----------------------------------------------------------------------------------------

    def compact_zone(self, state: ZoneState, cc: Control) -> Steps[Result]:
        """Compact a zone, a cluster of pages at a time."""
        movers = self._movers()
        result = self.suitable(state.zone, cc.order, cc.alloc_flags, cc.highest)
        if result is not Result.CONTINUE or movers is None:
            return Result.SKIPPED if movers is None else result
        if state.restarting(cc.order):
            self.reset_isolation_suitable(state)
        self._start(state, cc)
        cached = state.cached_migrate
        in_step = cc.mode == ASYNC and cached[0] == cached[1]
        lru, mover = movers
        trace_points.compaction_run(self._vmstat.trace, ev.MM_COMPACTION_BEGIN, state.zone, cc)
        lru.drain_local()
        self._scanner.set_frontier(self._buddy.frontier(state.zone.index))
        moved_from = 0
        while (result := self._finished(state, cc)) is Result.CONTINUE:
            began = cc.migrate_pfn
            cc.rescan = self._blocks.start(moved_from) == self._blocks.start(began)
            srcs = self._isolate_migratepages(state, cc, lru)
            if len(srcs):
                in_step, moved_from = False, began
                result, moved_from = self._migrate(state, cc, srcs, mover, moved_from)
                if result is not Result.CONTINUE:
                    break
            elif in_step:
                cached[1] = cached[0]
            moved_from = self._drain_behind(state, cc, lru, moved_from)
            if cc.direct and self._buddy.captured >= 0:
                result = Result.SUCCESS
                break
            yield
            self._scanner.set_frontier(self._buddy.frontier(state.zone.index))
        self._end(state, cc)
        trace_points.compaction_run(self._vmstat.trace, ev.MM_COMPACTION_END, state.zone, cc, result)
        return result

    def _start(self, state: ZoneState, cc: Control) -> None:
        """Where the scanners begin."""
        zone = state.zone
        cc.migrate_scanned = cc.free_scanned = cc.nr_migratepages = cc.nr_freepages = cc.fast_start_pfn = 0
        last = self._blocks.start(zone.end_pfn - 1)
        if cc.whole_zone:
            cc.migrate_pfn, cc.free_pfn = zone.start_pfn, last
            return
        cc.migrate_pfn, cc.free_pfn = state.cached_migrate[cc.mode != ASYNC], state.cached_free
        if not zone.holds(cc.free_pfn):
            cc.free_pfn = state.cached_free = last
        if not zone.holds(cc.migrate_pfn):
            cc.migrate_pfn = zone.start_pfn
            state.cached_migrate[:] = [zone.start_pfn] * 2
        cc.whole_zone = cc.migrate_pfn <= state.init_migrate

    def _end(self, state: ZoneState, cc: Control) -> None:
        """Give the free pages back, and go on there next time."""
        if cc.nr_freepages:
            pfns = cc.free[: cc.nr_freepages][::-1].copy()
            cc.nr_freepages = 0
            self._free_pages_bulk(pfns, 0)
            state.cached_free = max(state.cached_free, self._blocks.start(int(pfns.max())))
        self._vmstat.count(stats.COMPACTMIGRATE_SCANNED, cc.migrate_scanned)
        self._vmstat.count(stats.COMPACTFREE_SCANNED, cc.free_scanned)

    def _met(self, cc: Control) -> bool:
        return self._blocks.start(cc.free_pfn) <= self._blocks.start(cc.migrate_pfn)

    def _finished(self, state: ZoneState, cc: Control) -> Result:
        """Whether to go on (compact_finished)."""
        found = self._compact_finished(state, cc)
        trace_points.compaction_zone(self._vmstat.trace, ev.MM_COMPACTION_FINISHED, state.zone, cc.order, found)
        return found

    def _compact_finished(self, state: ZoneState, cc: Control) -> Result:
        """``__compact_finished``."""
        zone = state.zone
        if self._met(cc):
            state.cached_migrate[:] = [zone.start_pfn] * 2
            state.cached_free = self._blocks.start(zone.end_pfn - 1)
            state.blockskip_flush = state.blockskip_flush or cc.direct
            return Result.COMPLETE if cc.whole_zone else Result.PARTIAL_SKIPPED
        if cc.proactive and self._limits.kswapd_runs(zone.nid):
            return Result.PARTIAL_SKIPPED
        if cc.proactive:
            return Result.SUCCESS if self._limits.proactively_done(zone) else Result.CONTINUE
        if cc.via_compact_memory or cc.migrate_pfn != self._blocks.start(cc.migrate_pfn):
            return Result.CONTINUE
        return Result.SUCCESS if self._has_block(zone, cc) else Result.CONTINUE

    def _has_block(self, zone: Zone, cc: Control) -> bool:
        """Whether the request would find a block, of its own or of a type that it may take from."""
        wanted = cc.migratetype
        types = [wanted]
        if wanted == MIGRATE_MOVABLE:
            types.append(MIGRATE_CMA)
        for order in range(cc.order, MAX_ORDER):
            steals = order >= self._buddy.pageblock_order // 2 or wanted != MIGRATE_MOVABLE
            for mt in (*types, *(FALLBACKS[wanted] if steals else ())):
                if zone.nr_free_type(mt)[order]:
                    return True
        return False

    def _drain_behind(self, state: ZoneState, cc: Control, lru: Lru, moved_from: int) -> int:
        """Let pages merge once the scanner has left the block of the wanted order that they were freed in."""
        if cc.order > 0 and moved_from and moved_from < cc.migrate_pfn & -(1 << cc.order):
            lru.drain_local()
            self._buddy.drain(state.zone.index, self._context.cpu)
            return 0
        return moved_from

    # -- the migration scanner ---------------------------------------------------------------------------

    def _isolate_migratepages(self, state: ZoneState, cc: Control, lru: Lru) -> PFNS:
        """The pages to be moved next, the first to move first; empty when a block had none."""
        blocks, zone = self._blocks, state.zone
        low = self._fast_find(state, cc)
        fast = low != cc.migrate_pfn and not cc.fast_search_fail
        start, end = max(blocks.start(low), zone.start_pfn), blocks.end(low)
        while end <= cc.free_pfn:
            if self._is_source(state, cc, low, start, end, fast):
                return self._isolate_block(state, cc, lru, low, end)
            fast = False
            cc.migrate_pfn = low = start = end
            end += blocks.pages
        return np.zeros(0, dtype=np.int64)

    def _is_source(self, state: ZoneState, cc: Control, low: int, start: int, end: int, fast: bool) -> bool:
        """Whether a page block is looked at (isolation_suitable, suitable_migration_source)."""
        if not self._blocks.present(state.zone, start, end):
            return False
        hinted = not cc.ignore_skip_hint and self._scanner.skip[start >> self._buddy.pageblock_order]
        if low == self._blocks.start(low) and not fast and hinted:
            return False
        if self._is_for(cc, start):
            return True
        self._update_cached(state, cc, end)
        return False

    def _is_for(self, cc: Control, start: int) -> bool:
        """suitable_migration_source."""
        if self._scanner.compound_order(start) >= self._buddy.pageblock_order:
            return False
        if not cc.hasty:
            return True
        mt = self._buddy.pageblock_type(start)
        return mt in (MIGRATE_MOVABLE, MIGRATE_CMA) if cc.migratetype == MIGRATE_MOVABLE else mt == cc.migratetype

    def _isolate_block(self, state: ZoneState, cc: Control, lru: Lru, low: int, end: int) -> PFNS:
        """Isolate pages of a page block (isolate_migratepages_block)."""
        scanner = self._scanner
        scanner.isolate_migratepages_block(
            low,
            end,
            max(cc.order, 0),
            cc.mode,
            bool(self._limits.compact_unevictable_allowed),
            bool(cc.gfp & g.F.FS),
            cc.hasty,
            cc.ignore_skip_hint,
            cc.rescan,
            False,
        )
        if scanner.covered:
            self._update_cached(state, cc, int(scanner.pfn))
        cc.migrate_scanned += scanner.scanned
        cc.migrate_pfn = int(scanner.pfn)
        counts = int(scanner.scanned), int(scanner.isolated)
        self._vmstat.trace.emit(ev.MM_COMPACTION_ISOLATE_MIGRATEPAGES, low, cc.migrate_pfn, *counts)
        if scanner.dropped:
            back = scanner.back[: scanner.dropped].copy()
            lru.remove_bulk(back)
            lru.add_bulk(back)
        cc.nr_migratepages = int(scanner.isolated)
        found: PFNS = scanner.found[: scanner.blocks][::-1].copy()
        if len(found):
            self._vmstat.count(stats.COMPACTISOLATED, len(found))
            lru.remove_bulk(found)
            self._count_isolated(state.zone.nid, found)
        return found

    def _count_isolated(self, nid: int, pfns: PFNS) -> None:
        anon = int(np.count_nonzero(self._pages.flags[pfns] & np.uint32(1 << PG_SWAPBACKED)))
        self._vmstat.mod_node(nid, stats.NR_ISOLATED_ANON, anon)
        self._vmstat.mod_node(nid, stats.NR_ISOLATED_FILE, len(pfns) - anon)

    def _update_cached(self, state: ZoneState, cc: Control, pfn: int) -> None:
        """Where the scanner goes on next time (update_cached_migrate)."""
        end = self._blocks.end(pfn)
        for which in (0, 1) if cc.mode != ASYNC else (0,):
            state.cached_migrate[which] = max(state.cached_migrate[which], end)

    def _fast_find(self, state: ZoneState, cc: Control) -> int:
        """A page block of the lower part that is free in part already (fast_find_migrateblock)."""
        zone, blocks = state.zone, self._blocks
        pfn = cc.migrate_pfn
        inside = pfn not in (zone.start_pfn, blocks.start(pfn))
        if cc.ignore_skip_hint or inside or cc.order <= PAGE_ALLOC_COSTLY_ORDER:
            return pfn
        if cc.direct and cc.migratetype != MIGRATE_MOVABLE:
            return pfn
        distance = cc.free_pfn - pfn >> 1
        below = blocks.start(pfn + (distance if pfn == zone.start_pfn else distance >> 2))
        limit, scanned, found = scan_limit(cc), 0, -1
        order = cc.order - 1
        while order >= PAGE_ALLOC_COSTLY_ORDER and found < 0 and scanned < limit:
            if zone.nr_free[order]:
                found, scanned = self._lists.fast_source(zone.index, order, scanned, limit, below, self._scanner.skip)
            order -= 1
        cc.migrate_scanned += scanned
        if found < 0:
            cc.fast_search_fail += 1
            return self._reinit(cc)
        if cc.fast_start_pfn != NOWHERE:
            cc.fast_start_pfn = min(cc.fast_start_pfn or found, found)
        cc.fast_search_fail = 0
        self._scanner.skip[found >> self._buddy.pageblock_order] = 1
        return max(blocks.start(found), zone.start_pfn)

    @staticmethod
    def _reinit(cc: Control) -> int:
        """Scan on from the lowest block that the searches found (reinit_migrate_pfn)."""
        if cc.fast_start_pfn and cc.fast_start_pfn != NOWHERE:
            cc.migrate_pfn, cc.fast_start_pfn = cc.fast_start_pfn, NOWHERE
        return cc.migrate_pfn

    # -- moving ------------------------------------------------------------------------------------------

    def _migrate(self, state: ZoneState, cc: Control, srcs: PFNS, mover: Mover, moved_from: int) -> tuple[Result, int]:
        """Move a cluster: CONTINUE or CONTENDED, and where pages were moved from, 0 when a drain is useless."""
        left: list[int] = []
        at = 0
        while at < len(srcs):
            if not cc.nr_freepages:
                self._free.isolate(state, cc)
                if not cc.nr_freepages:
                    break
            n = min(len(srcs) - at, cc.nr_freepages)
            dsts = cc.free[cc.nr_freepages - n : cc.nr_freepages][::-1].copy()
            cc.nr_freepages -= n
            stuck = mover.move_bulk(srcs[at : at + n], dsts, MR_COMPACTION, wait=cc.mode == SYNC)
            for place in stuck:
                left.append(int(srcs[at + place]))
                cc.free[cc.nr_freepages] = dsts[place]
                cc.nr_freepages += 1
            at += n
        out_of_memory = at < len(srcs)
        self._context.charge(self._page_ns * (at - len(left)))
        self._vmstat.count(stats.PGMIGRATE_FAIL, len(left) + out_of_memory)
        self._vmstat.trace.emit(ev.MM_COMPACTION_MIGRATEPAGES, at - len(left), len(srcs) - at + len(left))
        left += srcs[at:].tolist()
        cc.nr_migratepages = 0
        mover.putback(left)
        if out_of_memory and not self._met(cc):
            return Result.CONTENDED, moved_from
        if left and cc.hasty:
            cc.migrate_pfn = ((cc.migrate_pfn - 1 >> cc.order) + 1) << cc.order
            return Result.CONTINUE, 0
        return Result.CONTINUE, moved_from

    # -- hints -------------------------------------------------------------------------------------------

    def reset_isolation_suitable(self, state: ZoneState) -> None:
        """Forget the skip hints of blocks that look promising (__reset_isolation_suitable)."""
        if not state.blockskip_flush:
            return
        state.blockskip_flush = False
        zone = state.zone
        self._scanner.set_frontier(self._buddy.frontier(zone.index))
        source, target = zone.start_pfn, zone.end_pfn - 1
        lowest, highest = target, source
        source_set = target_set = False
        while source < target:
            if self._reset_block(zone, source, True, source_set) and source < lowest:
                source_set, lowest = True, source
                state.init_migrate = source
                state.cached_migrate[:] = [source, source]
            if self._reset_block(zone, target, target_set, True) and target > highest:
                target_set, highest = True, target
                state.init_free = state.cached_free = target
            source += self._blocks.pages
            target -= self._blocks.pages
        if lowest >= highest:
            state.cached_migrate[:] = [source, source]
            state.cached_free = target

    def _reset_block(self, zone: Zone, pfn: int, source: bool, target: bool) -> bool:
        """One block's hint: whether scanning may begin here (__reset_isolation_pfn)."""
        shift, blocks = self._buddy.pageblock_order, self._blocks
        if not self._blocks.present(zone, pfn, pfn + 1):
            return False
        if self._scanner.compound_order(blocks.start(pfn)) >= shift:
            return False
        if source and target and not self._scanner.skip[pfn >> shift]:
            return True
        if not source and target and self._buddy.pageblock_type(pfn) != MIGRATE_MOVABLE:
            return False
        low, high = max(blocks.start(pfn), zone.start_pfn), min(blocks.end(pfn), zone.end_pfn)
        if not self._scanner.holds(low, high, source, target):
            return False
        self._scanner.skip[pfn >> shift] = 0
        return True
