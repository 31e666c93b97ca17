"""Bytes that kernel code writes and reads: who keeps them, and which guard hears of it.

A byte goes to the slab it lies in (mm/slub_bytes.py), to a guarded object (mm/kfence.py), to a page that is free and
poisoned (mm/page_poison.py), or to the page it lies in (mm/contents.py). There is no Linux counterpart: it is memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kmemd.core.mmzone import MAX_ORDER
from kmemd.core.pages import ALLOCATED, IN_BUDDY, IN_PCP, PageMap
from kmemd.mm.contents import Contents
from kmemd.mm.kfence import Kfence
from kmemd.mm.layout import Layout
from kmemd.mm.page_poison import PagePoison
from kmemd.mm.slub import Slub
from kmemd.mm.slub_bytes import LOOKED_AT
from kmemd.mm.units import PAGE_SHIFT, PAGE_SIZE


class KernelWrite:
    """The bytes of one kernel's direct map, as far as anybody looks at them."""

    def __init__(
        self,
        layout: Layout,
        pages: PageMap,
        contents: Callable[[], Contents],
        slub: Slub,
        kfence: Kfence,
        poison: PagePoison,
    ) -> None:
        self._layout = layout
        self._pages = pages
        self._contents = contents
        self._slub = slub
        self._kfence = kfence
        self._poison = poison

    @property
    def watching(self) -> bool:
        """Whether a guard is on that wants to hear of single pointers, too."""
        looked_at = any(cache.flags & LOOKED_AT for cache in self._slub.caches)
        return bool(looked_at or self._kfence.pool or self._poison.enabled)

    def touch(self, address: int, *, write: bool) -> bool:
        """A byte is accessed: KFENCE's pages may not be. Whether that was reported."""
        return self._kfence.fault(address, write=write)

    def store(self, address: int, data: bytes, *, keep: bool = True) -> None:
        """Bytes are written to mapped memory. ``keep``: also where no guard looks at them."""
        for start, done, size in _pages(address, len(data)):
            self._store_in_page(start, data[done : done + size], keep)

    def _store_in_page(self, address: int, data: bytes, keep: bool) -> None:
        if not self._layout.virt_addr_valid(address):
            return
        if self._kfence.covers(address):
            self._store_guarded(address, data)
            return
        slab = self._slub.lists.slab_at(address)
        pfn = address - self._layout.page_offset >> PAGE_SHIFT
        if slab:
            self._slub.bytes.write(slab, address, data, keep=keep)
        elif self._free(pfn):
            self._poison.write(pfn, address & PAGE_SIZE - 1, data)
        elif keep and int(self._pages.kind[pfn]) == ALLOCATED and not self._pages.order[pfn]:
            self._contents().write(pfn, address & PAGE_SIZE - 1, data)

    def _store_guarded(self, address: int, data: bytes) -> None:
        """The first byte in a page that may not be touched is a fault, and the page may be touched then."""
        self._kfence.fault(address, write=True)
        self._kfence.write(address, data)

    def load(self, address: int, size: int) -> bytes:
        """Bytes as kernel code reads them; what nobody wrote reads as zero."""
        out = b""
        for start, _, count in _pages(address, size):
            out += self._load_from_page(start, count)
        return out

    def _free(self, pfn: int) -> bool:
        """Whether a page is on a free list, in whatever block."""
        for order in range(MAX_ORDER):
            head = pfn & -(1 << order)
            if int(self._pages.kind[head]) in (IN_BUDDY, IN_PCP) and int(self._pages.order[head]) >= order:
                return True
        return False

    def _load_from_page(self, address: int, size: int) -> bytes:
        if not self._layout.virt_addr_valid(address):
            return bytes(size)
        if self._kfence.covers(address):
            self._kfence.fault(address, write=False)
            return self._kfence.read(address, size)
        slab = self._slub.lists.slab_at(address)
        if slab:
            return self._slub.bytes.read(slab, address, size)
        pfn = address - self._layout.page_offset >> PAGE_SHIFT
        if self._free(pfn):
            return self._poison.read(pfn, address & PAGE_SIZE - 1, size)
        return self._contents().read(pfn, address & PAGE_SIZE - 1, size)


def _pages(address: int, size: int) -> Iterator[tuple[int, int, int]]:
    """``(address, bytes before it, bytes)`` of the parts of a range that lie in one page each."""
    done = 0
    while done < size:
        count = min(size - done, PAGE_SIZE - (address + done & PAGE_SIZE - 1))
        yield address + done, done, count
        done += count
