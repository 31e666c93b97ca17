"""What compaction remembers of a zone, and what one run of it knows (mm/compaction.c, mm/internal.h).

Models the deferral of zones in which it failed, where its scanners go on, and ``struct compact_control``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from kmemd.core.compact import ASYNC, SYNC_LIGHT
from kmemd.mm import gfp as g
from kmemd.mm.mmzone import Zone

COMPACT_MAX_DEFER_SHIFT = 6
FREE_ROOM = 4096
"""Free pages that are held at a time, at most: those of a rescanned page block, and one block of the highest order."""
NOWHERE = -1

PFNS = npt.NDArray[np.int64]


class Result(IntEnum):
    """What came of it (enum compact_result); the largest of several zones counts."""

    NOT_SUITABLE_ZONE = 0
    SKIPPED = 1
    DEFERRED = 2
    NO_SUITABLE_PAGE = 3
    CONTINUE = 4
    COMPLETE = 5
    PARTIAL_SKIPPED = 6
    CONTENDED = 7
    SUCCESS = 8


class Priority(IntEnum):
    """How hard direct compaction tries (enum compact_priority)."""

    SYNC_FULL = 0
    SYNC_LIGHT = 1
    ASYNC = 2


@dataclass
class ZoneState:
    """One zone: ``cached_migrate`` are for asynchronous runs and for others."""

    zone: Zone
    cached_migrate: list[int] = field(default_factory=lambda: [0, 0])
    cached_free: int = 0
    init_migrate: int = 0
    init_free: int = 0
    considered: int = 0
    defer_shift: int = 0
    order_failed: int = 0
    blockskip_flush: bool = False

    @property
    def deferral(self) -> tuple[int, int, int]:
        """What trace events say of it: tries since, how many are left out (log2), the order that failed."""
        return self.considered, self.defer_shift, self.order_failed

    def defer(self, order: int) -> None:
        """Compaction failed: leave the zone alone for a number of times that doubles (defer_compaction)."""
        self.considered = 0
        self.order_failed = min(self.order_failed, order)
        self.defer_shift = min(self.defer_shift + 1, COMPACT_MAX_DEFER_SHIFT)

    def deferred(self, order: int) -> bool:
        """Whether the zone is to be left alone this time (compaction_deferred)."""
        if order < self.order_failed:
            return False
        limit = 1 << self.defer_shift
        self.considered = min(self.considered + 1, limit)
        return self.considered < limit

    def defer_reset(self, order: int, *, allocated: bool) -> None:
        """Compaction worked, or even the allocation did (compaction_defer_reset)."""
        if allocated:
            self.considered = self.defer_shift = 0
        self.order_failed = max(self.order_failed, order + 1)

    def restarting(self, order: int) -> bool:
        """Whether it is tried again after many failures (compaction_restarting)."""
        full = self.defer_shift == COMPACT_MAX_DEFER_SHIFT and self.considered >= 1 << self.defer_shift
        return order >= self.order_failed and full


@dataclass
class Control:
    """One run over one zone (struct compact_control). ``free`` holds the isolated free pages, the next one last."""

    order: int = -1
    mode: int = SYNC_LIGHT
    gfp: int = g.GFP_KERNEL
    alloc_flags: int = 0
    highest: int = 0
    direct: bool = False
    whole_zone: bool = False
    ignore_skip_hint: bool = False
    ignore_block_suitable: bool = False
    proactive: bool = False
    search_order: int = -1
    migrate_pfn: int = 0
    free_pfn: int = 0
    fast_start_pfn: int = 0
    fast_search_fail: int = 0
    rescan: bool = False
    nr_migratepages: int = 0
    migrate_scanned: int = 0
    free_scanned: int = 0
    free: PFNS = field(default_factory=lambda: np.zeros(FREE_ROOM, dtype=np.int64))
    nr_freepages: int = 0

    @property
    def migratetype(self) -> int:
        """The migratetype of the request that it is done for."""
        return g.gfp_migratetype(self.gfp)

    @property
    def via_compact_memory(self) -> bool:
        """Whether the whole zone is compacted, for no request."""
        return self.order == -1

    @property
    def hasty(self) -> bool:
        """Whether a request waits and nothing may be waited for."""
        return self.direct and self.mode == ASYNC
