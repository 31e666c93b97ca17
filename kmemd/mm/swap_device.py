"""What swap areas are on: a disk, a file of one, or a device that is done at once (mm/page_io.c, mm/swapfile.c)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kmemd.mm.blk_mq import OP_READ, OP_WRITE, SECTORS_PER_PAGE, Disk

Numbers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

REQ_SWAP = 0x2000000
PAGES_PER_REQUEST = 256
FEW = 64
"""So many slots are looked at one by one; they are less than a request may have."""


class SwapDevice(Protocol):
    """Where the pages of an area go. ``synchronous``: it has rw_page, and nothing is under way when that returns."""

    synchronous: bool

    @property
    def number(self) -> tuple[int, int]:
        """Major and minor number."""

    def sectors(self, offsets: Numbers) -> Numbers:
        """Where the slots are on the device."""

    def write(self, offsets: Numbers, pfns: Numbers, requests: int, waited: int, busy: int) -> Mask:
        """Pages were written in so many requests, which took ``busy`` ns after ``waited`` ns. Which ones failed."""

    def read(self, offsets: Numbers, requests: int, busy: int) -> Mask:
        """Slots have been read. Which ones could not be."""

    def cost(self, op: int, offsets: Numbers, pfns: Numbers | None) -> int | None:
        """ns that a transfer takes, None where that follows from the number of requests."""

    def freed(self, offsets: Numbers) -> None:
        """Slots are not used any more (``swap_slot_free_notify``)."""

    def discard(self, start: int, pages: int) -> int:
        """What stands in a run of slots is of no use any more; ns that it takes to say so."""


class DiskSwap:
    """An area on a disk: the whole of it, or a file of which ``blocks_at(offsets)`` says where its pages are."""

    def __init__(self, disk: Disk, *, synchronous: bool, blocks_at: Callable[[Numbers], Numbers] | None = None) -> None:
        self.disk, self.synchronous = disk, synchronous
        self._blocks_at = blocks_at

    @property
    def number(self) -> tuple[int, int]:
        """Major and minor number."""
        return self.disk.major, self.disk.minor

    def sectors(self, offsets: Numbers) -> Numbers:
        """Where the slots are on the disk."""
        blocks = offsets if self._blocks_at is None else self._blocks_at(offsets)
        return blocks * SECTORS_PER_PAGE

    def write(self, offsets: Numbers, pfns: Numbers, requests: int, waited: int, busy: int) -> Mask:
        """Account for requests that were written; those pages failed that touch a bad sector."""
        return self._done(OP_WRITE, offsets, requests, waited, busy)

    def read(self, offsets: Numbers, requests: int, busy: int) -> Mask:
        """Account for requests that were read."""
        return self._done(OP_READ, offsets, requests, 0, busy)

    def _done(self, op: int, offsets: Numbers, requests: int, waited: int, busy: int) -> Mask:
        """Each request waits for those before it."""
        stats = self.disk.stats
        stats.ios[op] += requests
        stats.merges[op] += len(offsets) - requests
        stats.sectors[op] += len(offsets) * SECTORS_PER_PAGE
        stats.nsecs[op] += requests * waited + busy * (requests + 1) // 2
        stats.busy_ns += busy
        failed = np.zeros(len(offsets), dtype=bool)
        if self.disk.bad[op]:
            sectors = self.sectors(offsets)
            for sector in sectors.tolist():
                error = self.disk.fails(op, sector, sector + SECTORS_PER_PAGE)
                if error:
                    self.disk.print_error(error, op, sector, 1, REQ_SWAP if op == OP_WRITE else 0)
            for low, high, _ in self.disk.bad[op]:
                failed |= (sectors < high) & (sectors + SECTORS_PER_PAGE > low)
        return failed

    def cost(self, op: int, offsets: Numbers, pfns: Numbers | None) -> int | None:
        """It follows from the number of requests, unless somebody said how fast the disk is."""
        if not self.disk.has_own_speed:
            return None
        sectors = np.sort(self.sectors(offsets)) if op == OP_WRITE else self.sectors(offsets)
        return self.disk.cost(op, requests(sectors // SECTORS_PER_PAGE), len(offsets))

    def freed(self, offsets: Numbers) -> None:
        """Disks are not told."""

    def discard(self, start: int, pages: int) -> int:
        """One request."""
        return self.disk.discard(pages)


def requests(slots: Numbers) -> int:
    """How many requests a device gets for these slots or offsets: runs, of at most 1 MiB."""
    if len(slots) <= FEW:
        few: list[int] = slots.tolist()
        return len(few) - sum(after == slot + 1 for slot, after in pairwise(few))
    edges = np.flatnonzero(np.diff(slots) != 1)
    bounds = np.concatenate(([-1], edges, [len(slots) - 1]))
    return int((-(-np.diff(bounds) // PAGES_PER_REQUEST)).sum())
