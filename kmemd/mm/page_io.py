"""Reading and writing swap (mm/page_io.c), and the end of write-back (mm/filemap.c ``folio_end_writeback``).

Models: pages that zswap takes instead of a device, requests of neighbouring slots, writes that are under way until the
device had its time, pages that go to the end of their LRU list when they are clean, errors of the device. A device with
rw_page is done at once. Left out: file systems with swap_rw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kmemd.core import stats
from kmemd.core.context import Context
from kmemd.core.lru import Lru
from kmemd.core.pages import (
    PG_DIRTY,
    PG_ERROR,
    PG_RECLAIM,
    PG_UPTODATE,
    PG_WRITEBACK,
    PageMap,
)
from kmemd.core.pte import SWP_OFFSET_BITS
from kmemd.mm.blk_mq import OP_READ, OP_WRITE
from kmemd.mm.clock import Clock
from kmemd.mm.filemap import PFNs, ZoneCounts, flag
from kmemd.mm.swap_area import SwapArea
from kmemd.mm.swap_device import SwapDevice, requests
from kmemd.mm.vmstat import VmStat

SECTORS_PER_PAGE = 8
OFFSET_MASK = (1 << SWP_OFFSET_BITS) - 1
_WRITEBACK, _RECLAIM, _DIRTY = flag(PG_WRITEBACK), flag(PG_RECLAIM), flag(PG_DIRTY)
_ERROR, _UPTODATE = flag(PG_ERROR), flag(PG_UPTODATE)
Mask = npt.NDArray[np.bool_]


class Frontswap(Protocol):
    """What gets pages before a device does (mm/frontswap.c)."""

    enabled: bool

    @property
    def stored_pages(self) -> int: ...
    def store(self, pfns: PFNs, slots: PFNs) -> Mask: ...
    def refuse_huge(self) -> None: ...
    def load(self, slots: PFNs) -> Mask: ...


@dataclass
class _Transfer:
    """Pages that are being written: until ``when``, as so many requests that began at ``start`` and take ``busy``."""

    when: int
    pfns: PFNs
    offsets: PFNs
    area: SwapArea
    requests: int
    start: int
    busy: int


class SwapIo:
    """The swap devices, which do one request after the other. Costs in ns per request.

    ``frontswap`` and ``device_of(area)`` are there when block devices are.
    """

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
        self._under_way: dict[int, _Transfer] = {}
        self.frontswap: Frontswap | None = None
        self.area_of: Callable[[int], SwapArea] | None = None
        self.device_of: Callable[[SwapArea], SwapDevice | None] = lambda area: None
        self.report: Callable[[str, str], None] = lambda function, text: None
        self.account_read: Callable[[int], None] = lambda pages: None

    # -- reading -----------------------------------------------------------------------------------------

    def read(self, slots: PFNs, pfns: PFNs) -> None:
        """Somebody waits for slots to be read into pages (``swap_readpage``). What cannot be read is not up to date."""
        if self.frontswap is not None and self.frontswap.stored_pages:
            loaded = self.frontswap.load(slots)
            if loaded.any():
                slots, pfns = slots[~loaded], pfns[~loaded]
        if not len(slots):
            return
        few = slots.tolist()
        if min(few) >> SWP_OFFSET_BITS == max(few) >> SWP_OFFSET_BITS:
            self._read(few[0], slots & OFFSET_MASK, pfns)
            return
        types = slots >> SWP_OFFSET_BITS
        for number in dict.fromkeys(types.tolist()):
            mine = types == number
            self._read(int(slots[mine][0]), slots[mine] & OFFSET_MASK, pfns[mine])

    def _read(self, slot: int, offsets: PFNs, pfns: PFNs) -> None:
        """Slots of one area."""
        device = self._device(slot)
        self._vmstat.count(stats.PSWPIN, len(offsets))
        count = requests(offsets)
        own = device.cost(OP_READ, offsets, None) if device is not None else None
        cost = self._read_ns * count if own is None else own
        self._context.charge(cost)
        if device is None or not device.synchronous:
            self._waited(cost)
            self._vmstat.count(stats.PGPGIN, SECTORS_PER_PAGE * len(offsets))
            self.account_read(len(offsets))
        if device is not None:
            failed = device.read(offsets, count, cost)
            if failed.any():
                self._pages.flags[pfns[failed]] = self._pages.flags[pfns[failed]] & ~_UPTODATE | _ERROR
                self._tell("Read", "end_swap_bio_read", device, offsets[failed])

    def _device(self, slot: int) -> SwapDevice | None:
        return self.device_of(self.area_of(slot)) if self.area_of is not None else None

    def _tell(self, what: str, function: str, device: SwapDevice, offsets: PFNs) -> None:
        major, minor = device.number
        for sector in device.sectors(offsets).tolist():
            self.report(function, f"{what}-error on swap-device ({major}:{minor}:{sector})")

    # -- writing -----------------------------------------------------------------------------------------

    @property
    def compresses(self) -> bool:
        """Whether pages are compressed on their way to swap, one by one."""
        return self.frontswap is not None and self.frontswap.enabled

    def write(self, pfns: PFNs, slots: PFNs, area: SwapArea) -> Mask:
        """Pages go to slots of an area (``swap_writepage``): they are clean, and under write-back until that is done.
        Which ones are done already."""
        self.start_writeback(pfns)
        done = np.zeros(len(pfns), dtype=bool)
        if self.frontswap is not None:
            done = self.frontswap.store(pfns, slots)
            self._end(pfns[done])
        if not done.all():
            rest = ~done
            done[rest] = self.write_to_device(pfns[rest], slots[rest], area)
        return done

    def write_huge(self, pfns: PFNs, slots: PFNs, area: SwapArea) -> Mask:
        """``write`` of a huge page, which nobody compresses: a device takes it whole."""
        self.start_writeback(pfns)
        if self.frontswap is not None:
            self.frontswap.refuse_huge()
        self._vmstat.count(stats.THP_SWPOUT)
        return self.write_to_device(pfns, slots, area)

    def start_writeback(self, pfns: PFNs) -> None:
        """Pages are being written from now on (``set_page_writeback``)."""
        self._counts.move(pfns, 1, (stats.NR_WRITEBACK,), (stats.NR_ZONE_WRITE_PENDING,))
        self._pages.flags[pfns] = self._pages.flags[pfns] & ~_DIRTY | _WRITEBACK

    def write_to_device(self, pfns: PFNs, slots: PFNs, area: SwapArea) -> Mask:
        """``__swap_writepage``. Preconditions: the pages are under write-back. Which ones are done already."""
        device = self.device_of(area)
        synchronous = area.synchronous if device is None else device.synchronous
        offsets = slots & OFFSET_MASK
        self._vmstat.count(stats.PSWPOUT, len(pfns))
        if not synchronous:
            self._vmstat.count(stats.PGPGOUT, SECTORS_PER_PAGE * len(pfns))
        count = requests(np.sort(offsets))  # the queue merges what it is given out of order
        own = device.cost(OP_WRITE, offsets, pfns) if device is not None else None
        cost = self._write_ns * count if own is None else own
        now = self._clock.now
        if synchronous:
            self._context.charge(cost)
            failed = self._written(_Transfer(now, pfns, offsets, area, count, now, cost))
            return ~failed
        start = max(self._busy_until, now)
        self._busy_until = start + cost
        number = self._next = self._next + 1
        self._under_way[number] = _Transfer(self._busy_until, pfns, offsets, area, count, now, cost)
        self._clock.call_at(self._busy_until, lambda: self._arrived(number))
        return np.zeros(len(pfns), dtype=bool)

    def _written(self, transfer: _Transfer) -> Mask:
        """The device has had its time (``end_swap_bio_write``): what it could not write is dirty again. Which."""
        pfns, failed = transfer.pfns, np.zeros(len(transfer.pfns), dtype=bool)
        device = self.device_of(transfer.area)
        if device is not None:
            waited = max(transfer.when - transfer.busy - transfer.start, 0)
            failed = device.write(transfer.offsets, pfns, transfer.requests, waited, transfer.busy)
            if failed.any():
                bad = pfns[failed]
                self._pages.flags[bad] = self._pages.flags[bad] & ~_RECLAIM | _ERROR | _DIRTY
                self._tell("Write", "end_swap_bio_write", device, transfer.offsets[failed])
        self._end(pfns)
        return failed

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
            self._written(found)

    @property
    def next_event(self) -> int | None:
        """When the first request is done that is under way, None when none is."""
        first = next(iter(self._under_way.values()), None)
        return first.when if first is not None else None

    def wait_some(self, ns: int) -> int:
        """Reclaim waits up to ``ns`` for the next request to arrive, and sees those that have. How long it took."""
        start = self._context.now
        if ns:
            first = next(iter(self._under_way.values()), None)
            self._context.now = start + ns if first is None else max(start, min(first.when, start + ns))
        self.arrive()
        return self._context.now - start

    def arrive(self) -> None:
        """What the device has done until now is over. It does one thing after the other: the first ends first."""
        while self._under_way:
            number, first = next(iter(self._under_way.items()))
            if first.when > self._context.now:
                return
            self._arrived(number)

    def _end(self, pfns: PFNs) -> None:
        """Pages are not under write-back any more; those that reclaim waits for go to the end of their list."""
        if not len(pfns):
            return
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
