"""Compaction for a request that found no block (mm/page_alloc.c ``__alloc_pages_direct_compact``).

Models the stall counters, the block that is caught as it is freed, and how often and how hard a request tries again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kmemd.core import stats
from kmemd.mm import trace_points
from kmemd.mm.compaction import Compaction
from kmemd.mm.compaction_zone import Priority, Result
from kmemd.mm.mmzone import PAGE_ALLOC_COSTLY_ORDER, Zone
from kmemd.mm.page_request import Request
from kmemd.mm.vmstat import VmStat

MAX_COMPACT_RETRIES = 16
UNSUCCESSFUL = (Result.COMPLETE, Result.DEFERRED, Result.CONTENDED, Result.PARTIAL_SKIPPED)
"""Failed, or left early: trying as hard again is of no use."""


class DirectCompaction:
    """``compaction()`` is there when the first request needs it; ``eligible(request)`` are the zones it may use."""

    def __init__(
        self,
        compaction: Callable[[], Compaction | None],
        eligible: Callable[[Request], Iterable[Zone]],
        zone_of: Callable[[int], Zone],
        vmstat: VmStat,
    ) -> None:
        self._compaction = compaction
        self._eligible = eligible
        self._zone_of = zone_of
        self._vmstat = vmstat

    def try_to_compact_pages(self, request: Request, alloc_flags: int, attempt: Callable[[], int]) -> int:
        """Compact, and let the request try again by ``attempt``: its block, or -1."""
        compaction = self._compaction()
        request.compact_result = Result.SKIPPED
        if compaction is None or not request.order:
            return -1
        priority = Priority(request.compact_priority)
        result, caught = compaction.try_to_compact_pages(
            self._eligible(request), request.gfp, request.order, alloc_flags, request.highest, priority
        )
        request.compact_result = result
        if result is Result.SKIPPED:
            return -1
        self._vmstat.count(stats.COMPACTSTALL)
        pfn = caught if caught >= 0 else attempt()
        if pfn >= 0:
            compaction.allocated(self._zone_of(pfn), request.order)
        self._vmstat.count(stats.COMPACTSUCCESS if pfn >= 0 else stats.COMPACTFAIL)
        return pfn

    def should_compact_retry(self, request: Request, alloc_flags: int, reclaimable: Callable[[int], int]) -> bool:
        """Whether to compact once more, perhaps harder (should_compact_retry). ``reclaimable(zi)`` are pages."""
        if self._compaction() is None or not request.order:
            return False
        if request.compact_result == Result.SUCCESS:
            request.compact_retries += 1
        priority, retries, result = request.compact_priority, request.compact_retries, request.compact_result
        again, most = self._retry(request, reclaimable)
        trace_points.compact_retry(self._vmstat.trace, request.order, priority, result, retries, most, again)
        return again

    def _retry(self, request: Request, reclaimable: Callable[[int], int]) -> tuple[bool, int]:
        """Whether, and how many times at most at a priority."""
        result, costly = request.compact_result, request.order > PAGE_ALLOC_COSTLY_ORDER
        if result == Result.SKIPPED:
            return self._room_after_reclaim(request, reclaimable), MAX_COMPACT_RETRIES
        most = MAX_COMPACT_RETRIES // (4 if costly else 1)
        if result not in UNSUCCESSFUL and request.compact_retries <= most:
            return True, most
        least = Priority.SYNC_LIGHT if costly else Priority.SYNC_FULL
        if request.compact_priority <= least:
            return False, most
        request.compact_priority -= 1
        request.compact_retries = 0
        return True, most

    def _room_after_reclaim(self, request: Request, reclaimable: Callable[[int], int]) -> bool:
        """Whether reclaim could make the room that compaction needs (compaction_zonelist_suitable)."""
        for zone in self._eligible(request):
            costly = request.order > PAGE_ALLOC_COSTLY_ORDER
            mark = (zone.watermark_low if costly else zone.watermark_min) + zone.boost + (2 << request.order)
            available = zone.free_pages + reclaimable(zone.index) // request.order
            if available > mark + zone.protection[request.highest]:
                return True
        return False
