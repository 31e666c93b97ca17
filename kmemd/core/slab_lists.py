"""What SLUB does rarely with its lists: shrink, drain, look (mm/slub.c ``__kmem_cache_do_shrink``, ``free_partial``).

The readers walk the arrays of a ``SlabCore`` and change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from kmemd.core import slab_layout as at
from kmemd.core.pages import PageMap
from kmemd.core.slab import SlabCore

SHRINK_PROMOTE_MAX = 32


class SlabLists:
    """The lists of a ``SlabCore`` as Python lists of slab numbers."""

    def __init__(self, core: SlabCore, pages: PageMap, page_offset: int) -> None:
        self._core = core
        self._mapping = pages.mapping
        self._page_offset = page_offset

    def field(self, slab: int, column: int) -> int:
        """One column of a slab's row."""
        return int(self._core.arrays["slab"].item(slab * at.SLAB_COLUMNS + column))

    def cache(self, slab: int) -> int:
        """The cache that a slab belongs to."""
        return self.field(slab, at.CACHE)

    def pfn(self, slab: int) -> int:
        """The first page frame of a slab."""
        return self.field(slab, at.PFN)

    def base(self, slab: int) -> int:
        """The address of a slab's first page."""
        return self._page_offset + (self.pfn(slab) << 12)

    def address(self, slab: int, index: int) -> int:
        """The address of an object."""
        row = self.cache(slab) * at.CACHE_COLUMNS
        settings = self._core.arrays["cache"]
        return self.base(slab) + int(settings[row + at.START]) + index * int(settings[row + at.SIZE])

    def index(self, slab: int, address: int) -> int:
        """The object that begins at an address."""
        row = self.cache(slab) * at.CACHE_COLUMNS
        settings = self._core.arrays["cache"]
        return (address - self.base(slab) - int(settings[row + at.START])) // int(settings[row + at.SIZE])

    def locate(self, address: int) -> tuple[int, int, int]:
        """What an address is: ``(OBJECT, FREE_OBJECT, MISALIGNED or NO_SLAB; the slab; the object)``."""
        slab = self.slab_at(address)
        if not slab:
            return at.NO_SLAB, 0, 0
        index = self.index(slab, address)
        if not 0 <= index < self.objects(slab) or self.address(slab, index) != address:
            return at.MISALIGNED, slab, 0
        bits = int(self._core.arrays["used"][self.field(slab, at.ARENA) + (index >> 3)])
        return (at.OBJECT if bits >> (index & 7) & 1 else at.FREE_OBJECT), slab, index

    def objects(self, slab: int) -> int:
        """Objects that a slab holds."""
        return self.field(slab, at.OBJECTS)

    def inuse(self, slab: int) -> int:
        """Objects that are not on the slab's own free list."""
        return self.field(slab, at.INUSE)

    def nid(self, slab: int) -> int:
        """The node of a slab's pages."""
        return self.field(slab, at.META) >> 16

    def order(self, slab: int) -> int:
        """The order of a slab's page block."""
        return self.field(slab, at.META) >> 8 & 0xFF

    def frozen(self, slab: int) -> bool:
        """Whether a slab belongs to a CPU."""
        return bool(self.field(slab, at.META) & at.FROZEN)

    def slabs_from(self, slab: int) -> int:
        """Slabs on a CPU's partial list from this one on."""
        return self.field(slab, at.SLABS)

    def slabs_at(self, start: int, end: int) -> npt.NDArray[np.int32]:
        """The slab numbers that pages carry."""
        return self._mapping[start:end]

    def partial(self, cache: int, nid: int) -> list[int]:
        """A node's partial slabs, the first to be taken first."""
        return self._walk(self._node(cache, nid, at.HEAD))

    def full(self, cache: int, nid: int) -> list[int]:
        """A node's full slabs, of a cache with SLAB_STORE_USER."""
        return self._walk(self._node(cache, nid, at.FULL))

    def cpu_partial(self, cache: int, cpu: int) -> list[int]:
        """A CPU's partial slabs, the first to be taken first."""
        return self._walk(self._cpu(cache, cpu, at.PARTIAL))

    def cpu_slab(self, cache: int, cpu: int) -> int:
        """A CPU's slab, 0 for none."""
        return self._cpu(cache, cpu, at.SLAB)

    def cpu_freelist(self, cache: int, cpu: int) -> list[int]:
        """The objects on a CPU's own free list."""
        slab = self.cpu_slab(cache, cpu)
        return self._chain(slab, self._cpu(cache, cpu, at.FREE)) if slab else []

    def freelist(self, slab: int) -> list[int]:
        """The objects on a slab's own free list."""
        return self._chain(slab, self.field(slab, at.FREELIST))

    def next_of(self, slab: int, index: int) -> int:
        """The object that the free pointer of an object was last set to; ``objects`` for none."""
        link = int(self._core.arrays["link"][self.field(slab, at.ARENA) * 8 + index])
        return (index + 1 + link) & 0xFFFF

    def slab_at(self, address: int) -> int:
        """The slab that an address lies in, 0 for none."""
        pfn = address - self._page_offset >> 12
        return int(self._mapping[pfn]) if 0 <= pfn < len(self._mapping) and self._is_slab(pfn) else 0

    def slabs_of(self, addresses: npt.NDArray[np.uint64]) -> npt.NDArray[np.int32]:
        """What the pages of addresses carry: of an address in a slab its number."""
        pfns = (addresses - np.uint64(self._page_offset)) >> np.uint64(12)
        found: npt.NDArray[np.int32] = self._mapping[np.minimum(pfns, len(self._mapping) - 1).astype(np.int64)]
        return found

    def _is_slab(self, pfn: int) -> bool:
        """Whether a page's mapping is the number of the slab it belongs to."""
        slab = int(self._mapping[pfn])
        return 0 < slab < self._core.nslabs and 0 <= pfn - self.pfn(slab) < 1 << self.order(slab)

    def used(self, slab: int) -> list[int]:
        """The allocated objects of a slab."""
        bits = self.used_bits(slab)
        return [i for i in range(self.objects(slab)) if bits >> i & 1]

    def used_bits(self, slab: int) -> int:
        """The allocated objects of a slab, a bit each."""
        start, objects = self.field(slab, at.ARENA), self.objects(slab)
        bits = self._core.arrays["used"][start : start + (objects + 7 >> 3)]
        return int.from_bytes(bits.tobytes(), "little") & ((1 << objects) - 1)

    def live(self) -> Iterator[int]:
        """Every slab that has pages."""
        rows = self._core.arrays["slab"][: self._core.nslabs * at.SLAB_COLUMNS]
        return iter((np.flatnonzero(rows[at.PFN :: at.SLAB_COLUMNS][1:] >= 0) + 1).tolist())

    def _node(self, cache: int, nid: int, column: int) -> int:
        row = (cache * self._core.nnodes + nid) * at.NODE_COLUMNS
        return int(self._core.arrays["node"][row + column])

    def _cpu(self, cache: int, cpu: int, column: int) -> int:
        row = (cache * self._core.ncpus + cpu) * at.CPU_COLUMNS
        return int(self._core.arrays["cpu"][row + column])

    def _walk(self, slab: int) -> list[int]:
        rows: Any = memoryview(self._core.arrays["slab"])
        slabs = []
        while slab:
            slabs.append(slab)
            slab = rows[slab * at.SLAB_COLUMNS + at.NEXT]
        return slabs

    def _chain(self, slab: int, index: int) -> list[int]:
        links = self._core.arrays["link"]
        start, end = self.field(slab, at.ARENA) * 8, self.objects(slab)
        found: list[int] = []
        while index < end and len(found) <= end:
            found.append(index)
            index = (index + 1 + int(links[start + index])) & 0xFFFF
        return found

    def shrink(self, cache: int, nid: int) -> None:
        """Give up a node's empty slabs and put the nearly full ones first, the fullest at the head."""
        kept: list[int] = []
        discard: list[int] = []
        promote: list[list[int]] = [[] for _ in range(SHRINK_PROMOTE_MAX)]
        for slab in self.partial(cache, nid):
            free = self.objects(slab) - self.inuse(slab)
            if free == self.objects(slab):
                discard.append(slab)
            else:
                (promote[free - 1] if free <= SHRINK_PROMOTE_MAX else kept).append(slab)
            self._core.take_partial(slab)
        # list_move puts each slab at the head of its group, so a group comes out backwards
        for group in [*(reversed(group) for group in promote), kept]:
            for slab in group:
                self._core.put_partial(slab)
        self._give_up(discard)

    def discard_empty(self, cache: int, nid: int) -> None:
        """Give up the empty slabs of a node's partial list."""
        empty = [slab for slab in self.partial(cache, nid) if not self.inuse(slab)]
        for slab in empty:
            self._core.take_partial(slab)
        self._give_up(empty)

    def _give_up(self, slabs: list[int]) -> None:
        for slab in reversed(slabs):
            self._core.discard(slab)
