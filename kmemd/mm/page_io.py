"""Reading and writing swap (mm/page_io.c), and the end of write-back (mm/filemap.c ``folio_end_writeback``).

Models: requests of neighbouring slots, writes that are under way until the device had its time, pages that go to the
end of their LRU list when they are clean. A device with rw_page is done at once. Left out: zswap, file systems with
swap_rw, errors.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kmemd.core import stats
from kmemd.core.context import Context
from kmemd.core.lru import Lru
from kmemd.core.pages import (
    PG_DIRTY,
    PG_RECLAIM,
    PG_WRITEBACK,
    PageMap,
)
from kmemd.mm.clock import Clock
from kmemd.mm.filemap import PFNs, ZoneCounts, flag
from kmemd.mm.vmstat import VmStat

SECTORS_PER_PAGE = 8
PAGES_PER_REQUEST = 256
_WRITEBACK, _RECLAIM, _DIRTY = flag(PG_WRITEBACK), flag(PG_RECLAIM), flag(PG_DIRTY)


class SwapIo:
    """The swap devices, which do one request after the other. Costs in ns per request."""

    def __init__(
        self,
        pages: PageMap,
        counts: ZoneCounts,
        vmstat: VmStat,
        context: Context,
        clock: Clock,
        lru: Lru,
        read_ns: int,
        write_ns: int,
        waited: Callable[[int], None] = lambda ns: None,
    ) -> None:
        """``waited(ns)`` hears how long the executing task has waited for a device."""
        self._waited = waited
        self._pages, self._counts, self._vmstat = pages, counts, vmstat
        self._context, self._clock, self._lru = context, clock, lru
        self._read_ns, self._write_ns = read_ns, write_ns
        self._busy_until = 0
        self._next = 0
        self._under_way: dict[int, tuple[int, PFNs]] = {}

    def read(self, slots: PFNs) -> None:
        """Somebody waits for slots to be read (``swap_readpage``)."""
        cost = self._read_ns * requests(slots)
        self._context.charge(cost)
        self._waited(cost)
        self._vmstat.count(stats.PSWPIN, len(slots))
        self._vmstat.count(stats.PGPGIN, SECTORS_PER_PAGE * len(slots))

    def write(self, pfns: PFNs, slots: PFNs, *, synchronous: bool) -> None:
        """Pages are written out (``swap_writepage``): they are clean, and under write-back until that is done."""
        flags = self._pages.flags
        flags[pfns] &= ~_DIRTY
        self._vmstat.count(stats.PSWPOUT, len(pfns))
        self._vmstat.count(stats.PGPGOUT, SECTORS_PER_PAGE * len(pfns))
        self._counts.move(pfns, 1, (stats.NR_WRITEBACK,), (stats.NR_ZONE_WRITE_PENDING,))
        flags[pfns] |= _WRITEBACK
        cost = self._write_ns * requests(np.sort(slots))  # the queue merges what it is given out of order
        if synchronous:
            self._context.charge(cost)
            self._end(pfns)
            return
        self._busy_until = max(self._busy_until, self._clock.now) + cost
        number = self._next = self._next + 1
        self._under_way[number] = self._busy_until, pfns
        self._clock.call_at(self._busy_until, lambda: self._arrived(number))

    def wait(self) -> None:
        """Wait until all that is under way has arrived."""
        if self._under_way:
            left = max(0, self._busy_until - self._clock.now)
            self._context.charge(left)
            self._waited(left)
            for number in list(self._under_way):
                self._arrived(number)

    def _arrived(self, number: int) -> None:
        found = self._under_way.pop(number, None)
        if found is not None:
            self._end(found[1])

    def wait_some(self, ns: int) -> int:
        """Reclaim waits up to ``ns`` for the next request to arrive, and sees those that have. How long it took."""
        start = self._context.now
        if ns:
            first = next(iter(self._under_way.values()), None)
            self._context.now = start + ns if first is None else max(start, min(first[0], start + ns))
        for number in [number for number, (when, _) in self._under_way.items() if when <= self._context.now]:
            self._arrived(number)
        return self._context.now - start

    def _end(self, pfns: PFNs) -> None:
        """Pages are not under write-back any more; those that reclaim waits for go to the end of their list."""
        flags = self._pages.flags
        flags[pfns] &= ~_WRITEBACK
        self._counts.move(pfns, -1, (stats.NR_WRITEBACK,), (stats.NR_ZONE_WRITE_PENDING,))
        self._counts.move(pfns, 1, (stats.NR_WRITTEN,))
        self.rotate_reclaimable(pfns)

    def rotate_reclaimable(self, pfns: PFNs) -> None:
        """Pages are written: those that reclaim waits for go to the end of their list."""
        flags = self._pages.flags
        marked = pfns[flags[pfns] & _RECLAIM != 0]
        flags[marked] &= ~_RECLAIM
        self._lru.rotate(np.ascontiguousarray(marked))


def requests(slots: PFNs) -> int:
    """How many requests a device gets for these slots or offsets: runs, of at most 1 MiB."""
    if len(slots) < 2:
        return len(slots)
    edges = np.flatnonzero(np.diff(slots) != 1)
    bounds = np.concatenate(([-1], edges, [len(slots) - 1]))
    return int((-(-np.diff(bounds) // PAGES_PER_REQUEST)).sum())
