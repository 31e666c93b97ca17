"""The software IO TLB: memory below 4 GiB that transfers bounce through when a device cannot reach a page (swiotlb.c).

Boot takes it on machines with memory above 4 GiB: slots of 2 KiB in segments of 128, in one area for each CPU. An area
is searched from where the last search in it ended, beginning with that of the executing CPU. Left out: the bytes that
are copied, swiotlb= and its force options, restricted pools of single devices, and growing it later.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

import numpy as np

from kmemd.core.context import Context
from kmemd.errors import KernelError
from kmemd.mm.memblock import Region
from kmemd.mm.units import PAGE_SHIFT, PAGE_SIZE

IO_TLB_SHIFT = 11
IO_TLB_SIZE = 1 << IO_TLB_SHIFT
IO_TLB_SEGSIZE = 128
MAX_MAPPING = IO_TLB_SEGSIZE << IO_TLB_SHIFT


class Swiotlb:
    """The slots. ``start`` and ``size`` are bytes of physical memory; a size of 0: the machine has none.

    ``free_run`` of a slot says how many free ones begin there in its segment, 0 when it is taken. ``bounced`` counts
    the mappings ever made.

    Invariants: an area's ``area_used`` is the number of its taken slots; a free run ends where its segment does, or
    before a taken slot.
    """

    def __init__(self, context: Context, start: int, size: int, cpus: int) -> None:
        self._context = context
        self.start = start
        self.nslabs = size >> IO_TLB_SHIFT
        self.areas = min(1 << (cpus - 1).bit_length(), max(self.nslabs // IO_TLB_SEGSIZE, 1))
        self.area_nslabs = self.nslabs // self.areas
        self.free_run = IO_TLB_SEGSIZE - np.arange(self.nslabs, dtype=np.int64) % IO_TLB_SEGSIZE
        self._sizes: dict[int, int] = {}
        self._index = [0] * self.areas
        self.area_used = [0] * self.areas
        self.bounced = 0

    @property
    def active(self) -> bool:
        """Whether the machine has one."""
        return self.nslabs > 0

    @property
    def used(self) -> int:
        """Slots that are taken."""
        return sum(self.area_used)

    @property
    def live(self) -> int:
        """Bounce buffers that are in use."""
        return len(self._sizes)

    def holds(self, phys: int) -> bool:
        """Whether a physical address is one of a bounce buffer (``is_swiotlb_buffer``)."""
        return self.start <= phys < self.start + (self.nslabs << IO_TLB_SHIFT)

    def map(self, size: int) -> int:
        """The physical address of a bounce buffer (``swiotlb_tbl_map_single``). EIO when there is no room."""
        area = self._context.cpu & (self.areas - 1)
        for _ in range(self.areas):
            slot = self._find(area, size)
            if slot >= 0:
                self.bounced += 1
                return self.start + (slot << IO_TLB_SHIFT)
            area = (area + 1) % self.areas
        reason = f"swiotlb buffer is full (sz: {size} bytes), total {self.nslabs} (slots), used {self.used} (slots)"
        raise KernelError(errno.EIO, reason)

    def _find(self, area: int, size: int) -> int:
        """Take slots in one area: the first of them, or -1 (``swiotlb_do_find_slots``)."""
        wanted = -(-size // IO_TLB_SIZE)
        stride = PAGE_SIZE >> IO_TLB_SHIFT if size >= PAGE_SIZE else 1
        if wanted > self.area_nslabs - self.area_used[area]:
            return -1
        base = area * self.area_nslabs
        index = wrap = -(-self._index[area] // stride) * stride % self.area_nslabs
        while self.free_run[base + index] < wanted:
            index = (index + stride) % self.area_nslabs
            if index == wrap:
                return -1
        slot = base + index
        self.free_run[slot : slot + wanted] = 0
        self._renumber(slot, 0)
        self._sizes[slot] = size
        self._index[area] = index + wanted if index + wanted < self.area_nslabs else 0
        self.area_used[area] += wanted
        return slot

    def _renumber(self, slot: int, run: int) -> None:
        """Count the free runs below ``slot`` anew; ``run`` is the one that begins at it."""
        below = slot - 1
        while below >= 0 and below % IO_TLB_SEGSIZE != IO_TLB_SEGSIZE - 1 and self.free_run[below]:
            run += 1
            self.free_run[below] = run
            below -= 1

    def unmap(self, phys: int) -> None:
        """Give a bounce buffer back (``swiotlb_release_slots``). EINVAL when none begins there."""
        slot = (phys - self.start) >> IO_TLB_SHIFT
        size = self._sizes.pop(slot, 0)
        if not size:
            raise KernelError(errno.EINVAL, f"no bounce buffer begins at {phys:#x}")
        count = -(-size // IO_TLB_SIZE)
        end = slot + count
        run = int(self.free_run[end]) if end % IO_TLB_SEGSIZE else 0
        self.free_run[slot:end] = np.arange(run + count, run, -1)
        self._renumber(slot, run + count)
        self.area_used[slot // self.area_nslabs] -= count

    def check(self) -> None:
        """Runs and counts follow from the mappings there are."""
        if not self.active:
            return
        taken = np.zeros(self.nslabs, dtype=bool)
        for slot, size in self._sizes.items():
            assert not taken[slot : slot - (-size // IO_TLB_SIZE)].any(), f"slot {slot} is taken twice"
            taken[slot : slot - (-size // IO_TLB_SIZE)] = True
        assert ((self.free_run == 0) == taken).all()
        used = taken[: self.areas * self.area_nslabs].reshape(self.areas, -1).sum(axis=1)
        assert used.tolist() == self.area_used
        inner = np.arange(self.nslabs - 1) % IO_TLB_SEGSIZE != IO_TLB_SEGSIZE - 1
        free = inner & ~taken[:-1]
        assert (self.free_run[:-1][free] == self.free_run[1:][free] + 1).all()


def region_of(reserved: Sequence[Region]) -> tuple[int, int]:
    """Where boot put the bounce buffers: start and size in bytes, of memblock's reserved regions; none: (0, 0)."""
    for region in reserved:
        if region.owner == "swiotlb":
            return region.start, region.size >> PAGE_SHIFT << PAGE_SHIFT
    return 0, 0
