"""A zram device under a file system: requests of the block layer (zram_drv.c ``zram_submit_bio``)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import numpy as np

from kmemd.mm.blk_mq import OP_READ, OP_WRITE, SECTORS_PER_PAGE, Bio, Disk

if TYPE_CHECKING:
    from kmemd.mm.zram import Zram


class ZramDisk(Disk):
    """Its requests are done at once. ``zram`` is there as soon as the device is."""

    zram: Zram

    def read(self, sector: int, pages: int, segments: int, flags: int) -> tuple[int, int]:
        """When a read is done, and EIO when a page of it cannot be read."""
        first = sector // SECTORS_PER_PAGE
        offsets = np.arange(first, first + pages, dtype=np.int64)
        cost = self.zram.cost(OP_READ, offsets, None)
        failed = self.zram.read(offsets, 1, cost)
        return self._io.now + cost, errno.EIO if failed.any() else 0

    def submit(self, bio: Bio) -> None:
        """Store the pages of a bio; it is done when they have been compressed."""
        first = bio.sector // SECTORS_PER_PAGE
        offsets = np.arange(first, first + bio.pages, dtype=np.int64)
        cost = self.zram.cost(OP_WRITE, offsets, None)
        failed = self.zram.store(offsets, self.zram.sizes_of(offsets), cost)
        self._free_at = max(self._free_at, self._io.now + cost)
        self._io.call_at(self._io.now + cost, lambda when: bio.done(errno.EIO if failed.any() else 0))

    def drained_by(self) -> int:
        """When the last bio will be done."""
        return max(self._free_at, self._io.now)
