"""Shrinkers: caches other than the page cache that give way to memory pressure (mm/vmscan.c ``shrink_slab``).

Models: registered shrinkers in order, the share of a cache that is scanned for a priority and the cost of its
objects (``seeks``), scanning in batches, and work that is put off until the next time. Left out: shrinkers that know of
memory cgroups, so that caches shrink for the whole machine alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from kmemd.core import stats
from kmemd.mm import trace_points
from kmemd.mm.vmstat import VmStat
from kmemd.steps import Steps

DEFAULT_SEEKS = 2
SHRINK_BATCH = 128
SHRINK_STOP = -1


@dataclass(slots=True)
class Shrinker:
    """One cache. ``count(nid)`` says how many objects could go, ``scan(nid, n)`` looks at ``n`` and says how many
    went, or ``SHRINK_STOP``, in slices where that takes long. ``seeks`` is what an object costs to make again, 0 for
    nothing."""

    name: str
    count: Callable[[int], int]
    scan: Callable[[int, int], int | Steps[int]]
    seeks: int = DEFAULT_SEEKS
    batch: int = SHRINK_BATCH
    deferred: dict[int, int] = field(default_factory=dict)


class Shrinkers:
    """All shrinkers. ``reclaimed`` tells the pages that shrinkers freed themselves since it was last set to 0: those of
    inodes. Objects of slabs are freed after a grace period, when their pages are nobody's success
    (``reclaim_state``)."""

    def __init__(self, vmstat: VmStat) -> None:
        self._vmstat = vmstat
        self._all: list[Shrinker] = []
        self.reclaimed = 0

    def register(
        self,
        name: str,
        count: Callable[[int], int],
        scan: Callable[[int, int], int | Steps[int]],
        seeks: int = DEFAULT_SEEKS,
        batch: int = SHRINK_BATCH,
    ) -> Shrinker:
        """A cache takes part from now on (``register_shrinker``)."""
        shrinker = Shrinker(name, count, scan, seeks, batch or SHRINK_BATCH)
        self._all.append(shrinker)
        return shrinker

    def taken(self) -> int:
        """What ``reclaimed`` was; it is 0 then."""
        pages, self.reclaimed = self.reclaimed, 0
        return pages

    def unregister(self, shrinker: Shrinker) -> None:
        """It is gone."""
        self._all.remove(shrinker)

    def shrink_slab(self, nid: int, priority: int) -> Steps[int]:
        """Have all caches of a node give up some of their objects; how many did."""
        freed = 0
        for shrinker in list(self._all):
            freed += yield from self._shrink_steps(shrinker, nid, priority)
        return freed

    def drop_slab(self, nids: list[int]) -> Steps[None]:
        """Shrink until hardly anything goes any more (``drop_slab``, for drop_caches)."""
        for nid in nids:
            freed, shift = 2, 0
            while freed >> shift > 1:
                freed = 0
                for shrinker in list(self._all):
                    freed += yield from self._shrink_steps(shrinker, nid, 0)
                shift += 1

    def _shrink_steps(self, shrinker: Shrinker, nid: int, priority: int) -> Steps[int]:
        """``do_shrink_slab``, a batch at a time."""
        freeable = shrinker.count(nid)
        if freeable <= 0:
            return 0
        waiting = shrinker.deferred.pop(nid, 0)
        delta = (freeable >> priority) * 4 // shrinker.seeks if shrinker.seeks else freeable // 2
        left = min((waiting >> priority) + delta, 2 * freeable)
        freed = scanned = 0
        total = left
        trace = self._vmstat.trace
        trace_points.shrink_slab_start(trace, shrinker.name, nid, waiting, freeable, delta, total, priority)
        while left >= shrinker.batch or left >= freeable:
            part = min(shrinker.batch, left)
            gone = shrinker.scan(nid, part) if part else SHRINK_STOP
            if not isinstance(gone, int):
                gone = yield from gone
            if gone == SHRINK_STOP:
                break
            freed += gone
            self._vmstat.count(stats.SLABS_SCANNED, part)
            left -= part
            scanned += part
            yield
        shrinker.deferred[nid] = min(max(waiting + delta - scanned, 0), 2 * freeable)
        trace_points.shrink_slab_end(trace, shrinker.name, nid, freed, waiting, shrinker.deferred[nid], left)
        return freed
